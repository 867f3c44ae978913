"""Single optimizer steps on a network: for training loops of the user's own, and for fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from .._typing import Array, ArrayLike, ByteCount, Integers, Loss, Uint16As
from ..blocks.weights import trainable_names
from ..checks import seed_number, whole_number
from .average import WeightAverage, averaged_weights
from .budget import read_budget
from .labelled import Labelled
from .optimizers import OptimizerSettings
from .own_loss import check_finite, loss_and_gradient, read_loss

if TYPE_CHECKING:
    from ..network.network import Network


class Stepper:
    """Takes optimizer steps: ``loss = step(taps, labels, mask=mask)``.

    Made by `SideNetwork.stepper`.

    Attributes
    ----------
    gradient_norm : float or None
        Norm of the last step's gradient before clipping.
    average : WeightAverage or None
        Moving average of the weights, with `ema`; ``step.average.values`` has them by parameter name.
    """

    def __init__(self, network: Network, settings: OptimizerSettings, total_steps: int = 0, accumulate: int = 1,
                 seed: int = 0, memory_budget: ByteCount | None = None, loss: Loss | None = None) -> None:
        self.network, self.settings = network, settings
        self.loss = read_loss(loss)
        self.accumulate = whole_number(accumulate, "accumulate", 1)
        self.seed = seed_number(seed)
        self.gradient_norm: float | None = None
        with network._lock:
            programs = network._programs
            program = programs.loss_gradient(True) if loss is None else programs.output_gradient(True, False)
            self.names = trainable_names(network._programs.store)
            self.trainer = settings.trainer(program, self.names, whole_number(total_steps, "total_steps"))
            settings.check_patterns(self.names)
            self.average: WeightAverage | None = None
            if settings.ema is not None:
                self.average = WeightAverage(averaged_weights(network._programs.store), settings.ema)
        self.program, self.budget = program, read_budget(memory_budget, self.trainer.nbytes)

    @property
    def steps(self) -> int:
        """Whole steps taken."""
        return self.trainer.steps

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return self.trainer.learning_rate(self.steps)

    def __call__(self, taps: Any, labels: ArrayLike, mask: ArrayLike | None = None, *,
                 positions: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
                 dtype: Uint16As = None) -> float:
        """Take one step on a batch.

        Parameters
        ----------
        taps, labels, mask, positions, sample_weight, dtype
            As for `SideNetwork.loss_and_gradients`.

        Returns
        -------
        float
            The batch's mean loss, before the step.

        Raises
        ------
        FloatingPointError
            Where the loss or the gradient is not finite; the network is as it was.
        """
        own = self.loss is not None
        labelled = Labelled(self.network, taps, labels, mask, positions, sample_weight, dtype, own_loss=own)
        self.network._note_source(labelled.features)
        return self.step(labelled, [None])

    def step(self, labelled: Labelled, parts: Sequence[Integers | None]) -> float:
        """Take one step over samples whose gradients are computed part by part.

        Parameters
        ----------
        labelled : Labelled
        parts : list of numpy.ndarray of int64, or [None] for all samples
            Numbers of the samples of each part.

        Returns
        -------
        float
            The mean loss over all parts.
        """
        total = math.fsum(labelled.share(part) for part in parts)
        accumulate = self._accumulate if self.loss is None else self._accumulate_in_two_phases
        with self.network._lock, self.network._programs.bounded(self.program, self.budget, labelled.features):
            first = self.steps * self.accumulate
            draws: list[dict[str, Any]] = [{"seed": self.seed, "step": first + number} for number in range(len(parts))]
            try:
                losses = accumulate(labelled, parts, total, draws)
                self.gradient_norm = self.trainer.update()
            except BaseException:
                self.trainer.discard()
                raise
            if self.average is not None:
                self.average.update()
        return math.fsum(losses)

    def _accumulate(self, labelled: Labelled, parts: Sequence[Integers | None], total: float,
                    draws: list[dict[str, Any]]) -> list[Any]:
        return [self.trainer.accumulate(*labelled.batch(part, total), **draw) for part, draw in zip(parts, draws)]

    def _accumulate_in_two_phases(self, labelled: Labelled, parts: Sequence[Integers | None], total: float,
                                  draws: list[dict[str, Any]]) -> list[float]:
        """All outputs and losses first, then all backward parts: an error in the loss finds nothing begun."""
        losses, backwards, own_loss = [], [], self.loss
        assert own_loss is not None
        for part, draw in zip(parts, draws):
            batch = labelled.features.batch(part)
            arguments = batch.samples, batch.spaces, labelled.sources(batch)
            head, rows = self.network.head, self.network._output_rows(np.diff(batch.offsets))
            outputs = np.empty((rows.sum(), head.out_features), _core.REAL)
            self.program.forward(*arguments, [(outputs, None)], **draw)
            targets = labelled.labels if part is None else labelled.labels[part]
            loss, gradient = loss_and_gradient(own_loss, outputs, targets, None if head._pooled else rows)
            check_finite(loss, gradient)
            share = labelled.share(part) / total
            losses.append(share * loss)
            backwards.append((arguments, share * gradient, draw))
        for arguments, cotangent, draw in backwards:
            self.trainer.accumulate(*arguments, cotangents=[(cotangent, None)], **draw)
        return losses

    def moments(self) -> dict[tuple[int, str], Array]:
        """Return copies of the optimizer's state by number and parameter name."""
        state = {(number, name): self.trainer.moment(number, name) for number in (0, 1) for name in self.names}
        return {key: array.copy() for key, array in state.items() if array is not None}

    def restore(self, steps: int, moments: dict[tuple[int, str], Array]) -> None:
        """Go on from a state of `steps` and `moments`."""
        for (number, name), array in moments.items():
            moment = self.trainer.moment(number, name)
            assert moment is not None, "the optimizer must keep this moment"
            moment[...] = array
        self.trainer.steps = steps
