"""Training of two side networks on pairs: batches of pairs, steps of both networks, the loop."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .. import _core
from .._typing import Array, ArrayLike, Bools, ByteCount, Integers, PairLoss, Source, Spaces, Uint16As
from ..blocks.embedding import Embedding
from ..blocks.weights import trainable_names
from ..checks import seed_number, whole_number
from ..features.features import Features
from .average import WeightAverage
from .budget import Budget
from .chain import update_together
from .fit import Fit
from .metrics import retrieval
from .optimizers import OptimizerSettings
from .own_loss import check_finite
from .scoring import batches

if TYPE_CHECKING:
    from ..network.dual_encoder import DualEncoder
    from ..network.side_network import SideNetwork

SCORES = ("rsum", *(f"{way}_r{count}" for way in ("a_to_b", "b_to_a") for count in (1, 5, 10)))
MOST_SCALE = 100.0  # of a learned temperature


class Pairs:
    """Features of two kinds and which of them go together.

    Attributes
    ----------
    a, b : Features
    pairs : numpy.ndarray of int64, shape (pairs, 2)
        Numbers of the samples in `a` and in `b`.
    """

    def __init__(self, network: DualEncoder, taps_a: Features | Sequence[ArrayLike],
                 taps_b: Features | Sequence[ArrayLike], pairs: ArrayLike | None = None,
                 mask_a: ArrayLike | None = None, mask_b: ArrayLike | None = None, dtype: Uint16As = None) -> None:
        self.a = network.a._features(taps_a, mask_a, dtype=dtype)
        self.b = network.b._features(taps_b, mask_b, dtype=dtype)
        self.pairs = read_pairs(pairs, len(self.a), len(self.b))
        self._codes: Array | None = None
        if any(len(np.unique(column)) < len(column) for column in self.pairs.T):
            self._codes = np.unique(self.pairs @ [len(self.b), 1])

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def features(self) -> Pairs:
        """What batches are made by: `lengths`."""
        return self

    @cached_property
    def lengths(self) -> Integers:
        """Rows of each pair."""
        return self.a.lengths[self.pairs[:, 0]] + self.b.lengths[self.pairs[:, 1]]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything, in hexadecimal."""
        digest = hashlib.sha256((self.a.fingerprint + self.b.fingerprint).encode())
        digest.update(self.pairs.tobytes())
        return digest.hexdigest()

    def share(self, index: Integers | None = None) -> float:
        """Return how many pairs there are."""
        return float(len(self.pairs) if index is None else len(index))

    def matches(self, index: Integers) -> Bools | None:
        """Return which a of some pairs go with which b, bool of shape (pairs, pairs); None where only the pairs do."""
        if self._codes is None:
            return None
        a, b = self.pairs[index].T
        return np.isin(a[:, None] * len(self.b) + b, self._codes)


def read_pairs(pairs: ArrayLike | None, count_a: int, count_b: int) -> Integers:
    """Return a `pairs` argument as int64 (pairs, 2); row i with row i where it is None."""
    if pairs is None:
        if count_a != count_b:
            raise ValueError("pairs must be given where the two kinds are not equally many, "
                             f"got {count_a} and {count_b}")
        return np.stack([np.arange(count_a)] * 2, axis=1)
    array = np.asarray(pairs)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) == 0 or array.dtype.kind not in "iu":
        raise ValueError(f"pairs must be whole numbers of shape (pairs, 2), got {array.dtype} of shape {array.shape}")
    array = array.astype(np.int64)
    if (array < 0).any() or (array >= [count_a, count_b]).any():
        raise ValueError(f"pairs must be from 0 to {count_a - 1} and {count_b - 1}, got {array.min(axis=0).tolist()} "
                         f"to {array.max(axis=0).tolist()}")
    return np.ascontiguousarray(array, np.int64)


def pair_loss(loss: PairLoss, a: Array, b: Array, matches: Bools | None) -> tuple[float, list[Array]]:
    """Return the value of a loss of pairs as a float and its two gradients, checked, in the core's own type."""
    answer = loss(a, b, matches)
    if not isinstance(answer, tuple) or len(answer) != 3:
        raise TypeError("loss must return a tuple (loss, gradient of a, gradient of b)")
    value, gradients = answer[0], [np.asarray(gradient) for gradient in answer[1:]]
    if np.ndim(value) != 0 or any(gradient.shape != a.shape for gradient in gradients):
        raise ValueError(f"loss must return a number and two gradients of the embeddings' shape {a.shape}, got "
                         f"{np.shape(value)}, {gradients[0].shape} and {gradients[1].shape}")
    with np.errstate(over="ignore"):
        return float(value), [gradient.astype(_core.REAL, order="C") for gradient in gradients]


class _Tower:
    """One of the two networks in training."""

    def __init__(self, name: str, network: SideNetwork, settings: OptimizerSettings, total_steps: int) -> None:
        self.name, self.network = name, network
        self.program = network._programs.output_gradient(True, False)
        self.names = trainable_names(network._programs.store)
        self.trainer = settings.trainer(self.program, self.names, total_steps, shown=f"{name}.")

    def forward(self, features: Features, samples: Integers,
                draw: dict[str, Any]) -> tuple[tuple[int, Spaces, list[Source]], Array]:
        """Return what a program takes of some samples, and their embeddings."""
        batch = features.batch(samples)
        arguments = batch.samples, batch.spaces, self.network._sources(features, batch)
        outputs = np.empty((batch.samples, self.network.head.out_features), _core.REAL)
        self.program.forward(*arguments, [(outputs, None)], **draw)
        return arguments, outputs


class DualStepper:
    """Takes optimizer steps of both networks: ``loss = step(taps_a, taps_b)``.

    Made by `DualEncoder.stepper`.

    Attributes
    ----------
    gradient_norm : float or None
        Norm of the last step's gradient of all parameters before clipping.
    average : WeightAverage or None
        Moving average of the weights, with `ema`.
    """

    budget: Budget | None = None
    average: WeightAverage | None
    gradient_norm: float | None

    def __init__(self, network: DualEncoder, settings: OptimizerSettings, total_steps: int = 0, accumulate: int = 1,
                 seed: int = 0) -> None:
        self.network, self.settings = network, settings
        self.accumulate = whole_number(accumulate, "accumulate", 1)
        self.seed, self.gradient_norm, self.average = seed_number(seed), None, None
        total_steps = whole_number(total_steps, "total_steps")
        with network._lock:
            self.towers = [_Tower(name, tower, settings, total_steps) for name, tower in network._towers()]
            settings.check_patterns([f"{tower.name}.{name}" for tower in self.towers for name in tower.names])
            if settings.ema is not None:
                self.average = WeightAverage(network._weights(), settings.ema)

    @property
    def steps(self) -> int:
        """Whole steps taken."""
        return self.towers[0].trainer.steps

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return self.towers[0].trainer.learning_rate(self.steps)

    def __call__(self, taps_a: Features | Sequence[ArrayLike], taps_b: Features | Sequence[ArrayLike],
                 pairs: ArrayLike | None = None, *, mask_a: ArrayLike | None = None, mask_b: ArrayLike | None = None,
                 dtype: Uint16As = None) -> float:
        """Take one step on a batch of pairs.

        Parameters
        ----------
        taps_a, taps_b, pairs, mask_a, mask_b, dtype
            As for `DualEncoder.fit`.

        Returns
        -------
        float
            The loss before the step.

        Raises
        ------
        FloatingPointError
            Where the loss or the gradient is not finite; both networks are as they were.
        """
        given = Pairs(self.network, taps_a, taps_b, pairs, mask_a, mask_b, dtype)
        self.network._note_source(given)
        return self.step(given, [np.arange(len(given))])

    def step(self, labelled: Pairs, parts: Sequence[Integers]) -> float:
        """Take one step over pairs whose gradients are computed part by part; arguments are as of `Stepper.step`."""
        total = math.fsum(labelled.share(part) for part in parts)
        with self.network._lock:
            try:
                losses = self._accumulate(labelled, parts, total)
                self.gradient_norm = update_together(*(tower.trainer for tower in self.towers))
            except BaseException:
                for tower in self.towers:
                    tower.trainer.discard()
                raise
            for tower in self.towers:
                cast(Embedding, tower.network.head)._bound_scale(MOST_SCALE)
            if self.average is not None:
                self.average.update()
        return math.fsum(losses)

    def _accumulate(self, labelled: Pairs, parts: Sequence[Integers], total: float) -> list[float]:
        """All embeddings and losses first, then all backward parts: an error in the loss finds nothing begun."""
        losses, backwards = [], []
        for number, part in enumerate(parts):
            embeddings, runs = [], []
            for place, (tower, features) in enumerate(zip(self.towers, (labelled.a, labelled.b))):
                # A sample that is in several pairs is computed once. Both networks draw dropout of their own.
                samples, inverse = np.unique(labelled.pairs[part, place], return_inverse=True)
                draw: dict[str, Any] = {"seed": self.seed, "step": 2 * (self.steps * self.accumulate + number) + place}
                arguments, outputs = tower.forward(features, samples, draw)
                embeddings.append(outputs[inverse])
                runs.append((tower, arguments, inverse, draw))
            a, b = embeddings
            value, gradients = pair_loss(self.network.loss, a, b, labelled.matches(part))
            share = labelled.share(part) / total
            for (tower, arguments, inverse, draw), gradient in zip(runs, gradients):
                check_finite(value, gradient)
                cotangent = np.zeros((arguments[0], gradient.shape[1]), _core.REAL)
                np.add.at(cotangent, inverse, share * gradient)
                backwards.append((tower, arguments, cotangent, draw))
            losses.append(share * value)
        for tower, arguments, cotangent, draw in backwards:
            tower.trainer.accumulate(*arguments, cotangents=[(cotangent, None)], **draw)
        return losses

    def moments(self) -> dict[tuple[int, str], Array]:
        """Return copies of the optimizer's state by number and parameter name."""
        state = {(number, f"{tower.name}.{name}"): tower.trainer.moment(number, name)
                 for tower in self.towers for number in (0, 1) for name in tower.names}
        return {key: array.copy() for key, array in state.items() if array is not None}

    def restore(self, steps: int, moments: dict[tuple[int, str], Array]) -> None:
        """Go on from a state of `steps` and `moments`."""
        by_name = {tower.name: tower.trainer for tower in self.towers}
        for (number, name), array in moments.items():
            tower, _, own = name.partition(".")
            moment = by_name[tower].moment(number, own)
            assert moment is not None, "the optimizer must keep this moment"
            moment[...] = array
        for trainer in by_name.values():
            trainer.steps = steps


class DualFit(Fit):
    """One training of two networks; the arguments are those of `DualEncoder.fit`, pairs and settings read."""

    def _read_metrics(self, metrics: object) -> dict[str, Any]:
        return dict.fromkeys(SCORES)

    def _make_stepper(self, settings: OptimizerSettings, memory_budget: ByteCount | None) -> DualStepper:
        return DualStepper(self.network, settings, self.total_steps, self.accumulate, self.seed)

    def _validate(self) -> dict[str, float]:
        with self.network._lock, self._averaged():
            return dual_scores(self.network, self.validation, self.batch_size, "validation" if self.progress else None)


def dual_scores(network: DualEncoder, labelled: Pairs, batch_size: int, progress: str | None) -> dict[str, float]:
    """Return the loss, its mean over batches of pairs in order, and the scores of retrieval."""
    a, b = network._outputs(labelled.a, labelled.b, progress)
    losses = []
    for index in batches(len(labelled), batch_size):
        numbers = labelled.pairs[index]
        value, _ = pair_loss(network.loss, a[numbers[:, 0]], b[numbers[:, 1]], labelled.matches(index))
        losses.append(len(index) / len(labelled) * value)
    return {"loss": math.fsum(losses), **retrieval(a @ b.T, labelled.pairs)}
