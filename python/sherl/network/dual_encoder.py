"""DualEncoder: two side networks that embed two kinds of samples into one space, for retrieval."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Any, cast

from .. import _core, losses
from .._typing import Array, ArrayLike, Optimizer, PairLoss, PathLike, Record, Schedule, StateDict, Uint16As
from ..blocks.embedding import Embedding
from ..blocks.weights import LoadReport
from ..checks import flag, write_files
from ..features.features import Features
from ..training.average import averaged_weights
from ..training.callbacks import Callback
from ..training.dual import DualFit, DualStepper, Pairs
from ..training.history import History
from ..training.metrics import retrieval
from ..training.optimizers import NO_DECAY, OptimizerSettings
from ..training.own_loss import loss_name
from ..training.scoring import BATCH_SIZE, outputs_of
from .memory import MemoryPlan
from .side_network import SideNetwork

__all__ = ["DualEncoder"]

FORMAT, FORMAT_VERSION, CONFIG = "sherl.DualEncoder", 1, "config.json"


class DualEncoder:
    """Two side networks with embedding heads, and a loss over pairs of their embeddings.

    Parameters
    ----------
    a, b : SideNetwork
        Of the two kinds of samples: images and captions, say. Their heads are `Embedding` with as many channels.
    loss : callable, optional
        ``loss(a, b, matches) -> (value, gradient of a, gradient of b)`` over the embeddings of a batch of pairs, both
        of shape (pairs, channels); `matches` tells which a go with which b, bool of shape (pairs, pairs), or is None
        where only row i with row i does. `sherl.losses.contrastive` and `sherl.losses.triplet` are such. When None,
        ``contrastive()``, or ``contrastive(None)`` where a head has a learned temperature.

    Attributes
    ----------
    a, b, loss
    """

    def __init__(self, a: SideNetwork, b: SideNetwork, loss: PairLoss | None = None) -> None:
        for name, network in (("a", a), ("b", b)):
            if not isinstance(network, SideNetwork):
                raise TypeError(f"{name} must be a SideNetwork, got {type(network).__name__}")
            if not isinstance(network.head, Embedding):
                raise TypeError(f"{name} must have an Embedding as its head, got {type(network.head).__name__}")
        if a is b:
            raise ValueError("a and b must be two networks, got one twice")
        heads = _head_of(a), _head_of(b)
        if heads[0].out != heads[1].out:
            raise ValueError(f"a and b must embed into as many channels, got {heads[0].out} and {heads[1].out}")
        learned = [head.temperature is not None for head in heads]
        if all(learned):
            raise ValueError("a and b must not both have a head with a temperature")
        if loss is not None and not callable(loss):
            raise TypeError(f"loss must be a function (a, b, matches) -> (loss, gradient, gradient), got {loss!r}")
        self.a, self.b = a, b
        self.loss = loss or (losses.contrastive(None) if any(learned) else losses.contrastive())
        self._lock = _BothLocks(a, b)

    def _towers(self) -> list[tuple[str, SideNetwork]]:
        return [("a", self.a), ("b", self.b)]

    # Training.

    def fit(self, taps_a: Features | Sequence[ArrayLike], taps_b: Features | Sequence[ArrayLike],
            pairs: ArrayLike | None = None, *, mask_a: ArrayLike | None = None, mask_b: ArrayLike | None = None,
            epochs: int = 3, batch_size: int = 32, learning_rate: float = 1e-3, optimizer: Optimizer = "adamw",
            weight_decay: float = 0.01, no_decay: Sequence[str] = NO_DECAY, schedule: Schedule = "linear",
            warmup: float = 0.06, clip_norm: float | None = 1.0, accumulate: int = 1,
            betas: Sequence[float] = (0.9, 0.999), momentum: float = 0.0, step_every: int | None = None,
            step_factor: float = 0.1, learning_rate_factors: Mapping[str, float] | None = None,
            weight_decay_factors: Mapping[str, float] | None = None, ema: float | None = None,
            validation: Sequence[Any] | None = None, monitor: str | None = None, patience: int | None = None,
            restore_best: bool | None = None, callbacks: Callback | Iterable[Callback] = (), progress: bool = True,
            seed: int = 0, bucket_by_length: bool = False, checkpoint: PathLike | None = None,
            checkpoint_every: int | None = None, resume_from: PathLike | None = None,
            dtype: Uint16As = None) -> History:
        """Train both networks.

        A step computes the embeddings of a batch of pairs, the loss and its gradient, and then each network once more
        with its backward part: memory does not grow with the batch. The same arguments give the same bits, whatever the
        number of threads, and after a resume. Interrupts and errors are as of `SideNetwork.fit`.

        Parameters
        ----------
        taps_a, taps_b : Features, or sequence of array_like, each of shape (batch, tokens, channels)
            Of the two kinds.
        pairs : array_like of int, shape (pairs, 2), optional
            Numbers (a, b) of the samples that go together; a sample may be in several pairs, and those that match are
            not taken for each other's negatives. Sample i with sample i when None.
        mask_a, mask_b : array_like, optional
            With padded arrays: 1 where a row is meant.
        batch_size : int
            Pairs of a batch.
        clip_norm : float or None
            Largest norm of the gradient of all parameters of both networks.
        learning_rate_factors, weight_decay_factors, no_decay
            As for `SideNetwork.fit`; names begin with "a." or "b.".
        validation : tuple, optional
            (taps_a, taps_b), (taps_a, taps_b, pairs) or (taps_a, taps_b, pairs, mask_a, mask_b), evaluated after every
            epoch: the loss and the scores of `evaluate`.
        monitor : str, optional
            "loss", "rsum" (the default) or a recall, by which the best epoch is told.
        epochs, learning_rate, optimizer, weight_decay, schedule, warmup, accumulate, betas, momentum, step_every, \
        step_factor, ema, patience, restore_best, callbacks, progress, seed, bucket_by_length, checkpoint, \
        checkpoint_every, resume_from, dtype
            As for `SideNetwork.fit`.

        Returns
        -------
        History
        """
        settings = OptimizerSettings(
            optimizer=optimizer, learning_rate=learning_rate, weight_decay=weight_decay, no_decay=no_decay, betas=betas,
            momentum=momentum, clip_norm=clip_norm, schedule=schedule, warmup=warmup, step_every=step_every,
            step_factor=step_factor, learning_rate_factors=learning_rate_factors,
            weight_decay_factors=weight_decay_factors, ema=ema,
        )
        labelled = Pairs(self, taps_a, taps_b, pairs, mask_a, mask_b, dtype)
        return DualFit(
            self, labelled, self._read_validation(validation, dtype), settings, epochs=epochs, batch_size=batch_size,
            accumulate=accumulate, metrics=None, monitor=monitor, patience=patience, restore_best=restore_best,
            callbacks=callbacks, progress=progress, seed=seed, bucket_by_length=bucket_by_length, checkpoint=checkpoint,
            checkpoint_every=checkpoint_every, resume_from=resume_from, loss=self.loss,
        ).run()

    def stepper(self, *, optimizer: Optimizer = "adamw", learning_rate: float = 1e-3, weight_decay: float = 0.01,
                no_decay: Sequence[str] = (), betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8,
                momentum: float = 0.0, clip_norm: float | None = None, schedule: Schedule = "constant",
                warmup: float = 0, total_steps: int = 0, step_every: int | None = None, step_factor: float = 0.1,
                learning_rate_factors: Mapping[str, float] | None = None,
                weight_decay_factors: Mapping[str, float] | None = None, ema: float | None = None,
                seed: int = 0) -> DualStepper:
        """Make an object that takes one step of both networks at each call.

        Parameters
        ----------
        optimizer, learning_rate, weight_decay, no_decay, betas, eps, momentum, clip_norm, schedule, warmup, \
        total_steps, step_every, step_factor, learning_rate_factors, weight_decay_factors, ema, seed
            As for `SideNetwork.stepper`.

        Returns
        -------
        DualStepper
            ``loss = step(taps_a, taps_b, pairs=None)``
        """
        settings = OptimizerSettings(
            optimizer=optimizer, learning_rate=learning_rate, weight_decay=weight_decay, no_decay=no_decay, betas=betas,
            eps=eps, momentum=momentum, clip_norm=clip_norm, schedule=schedule, warmup=warmup, step_every=step_every,
            step_factor=step_factor, learning_rate_factors=learning_rate_factors,
            weight_decay_factors=weight_decay_factors, ema=ema,
        )
        return DualStepper(self, settings, total_steps, seed=seed)

    # Embeddings and scores.

    def embed_a(self, taps: Features | Sequence[ArrayLike], mask: ArrayLike | None = None, *,
                batch_size: int = BATCH_SIZE, dtype: Uint16As = None, progress: bool = True) -> Array:
        """Embed samples of the first kind.

        Parameters
        ----------
        taps, mask, batch_size, dtype, progress
            As for `SideNetwork.forward`.

        Returns
        -------
        numpy.ndarray of float32, shape (samples, channels)
            Without the scale of a learned temperature.
        """
        outputs = self.a.forward(taps, mask, batch_size=batch_size, dtype=dtype, progress=progress)
        return _head_of(self.a)._embedding(outputs)

    def embed_b(self, taps: Features | Sequence[ArrayLike], mask: ArrayLike | None = None, *,
                batch_size: int = BATCH_SIZE, dtype: Uint16As = None, progress: bool = True) -> Array:
        """Embed samples of the second kind, as `embed_a` does those of the first."""
        outputs = self.b.forward(taps, mask, batch_size=batch_size, dtype=dtype, progress=progress)
        return _head_of(self.b)._embedding(outputs)

    def evaluate(self, taps_a: Features | Sequence[ArrayLike], taps_b: Features | Sequence[ArrayLike],
                 pairs: ArrayLike | None = None, *, mask_a: ArrayLike | None = None, mask_b: ArrayLike | None = None,
                 dtype: Uint16As = None, progress: bool = True) -> dict[str, float]:
        """Score retrieval in both directions, by the products of all embeddings with all.

        Parameters
        ----------
        taps_a, taps_b, pairs, mask_a, mask_b, dtype
            As for `fit`.
        progress : bool
            As for `SideNetwork.forward`.

        Returns
        -------
        dict of str to float
            As `sherl.training.metrics.retrieval` gives it: recalls at 1, 5 and 10 and median ranks both ways, and rsum.
        """
        labelled = Pairs(self, taps_a, taps_b, pairs, mask_a, mask_b, dtype)
        with self._lock:
            a, b = self._outputs(labelled.a, labelled.b, "evaluate" if flag(progress, "progress") else None)
        return retrieval(a @ b.T, labelled.pairs)

    def _outputs(self, a: Features, b: Features, progress: str | None) -> tuple[Array, Array]:
        return (outputs_of(self.a, a, BATCH_SIZE, progress=progress),
                outputs_of(self.b, b, BATCH_SIZE, progress=progress))

    def _read_validation(self, validation: Sequence[Any] | None, dtype: Uint16As) -> Pairs | None:
        if validation is None:
            return None
        if not isinstance(validation, (tuple, list)) or not 2 <= len(validation) <= 5:
            raise TypeError("validation must be (taps_a, taps_b), (taps_a, taps_b, pairs) or "
                            "(taps_a, taps_b, pairs, mask_a, mask_b)")
        try:
            taps_a, taps_b, pairs, mask_a, mask_b = (*validation, None, None, None)[:5]
            return Pairs(self, taps_a, taps_b, pairs, mask_a, mask_b, dtype)
        except (TypeError, ValueError) as error:
            raise type(error)(f"validation: {error}") from error

    def _note_source(self, labelled: Pairs) -> None:
        self.a._note_source(labelled.a)
        self.b._note_source(labelled.b)

    # Weights.

    def state_dict(self) -> StateDict:
        """Return copies of the trained parameters by name, with the prefixes a. and b.

        Returns
        -------
        dict of str to numpy.ndarray of float32
        """
        with self._lock:
            return {f"{name}.{key}": value for name, tower in self._towers()
                    for key, value in tower.state_dict().items()}

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike], strict: bool = True) -> LoadReport:
        """Set the trained parameters; as `SideNetwork.load_state_dict`."""
        parts: dict[str, dict[str, ArrayLike]] = {"a": {}, "b": {}}
        other = []
        for name, value in state_dict.items():
            tower, _, own = str(name).partition(".")
            if tower in parts and own:
                parts[tower][own] = value
            else:
                other.append(str(name))
        if strict and other:
            raise ValueError(f"the state dictionary does not fit: unexpected {', '.join(other)}")
        with self._lock:
            before, reports = self.a.state_dict(), {}
            try:
                for name, tower in self._towers():
                    reports[name] = tower.load_state_dict(parts[name], strict)
            except (TypeError, ValueError) as error:
                self.a.load_state_dict(before)
                raise type(error)(f"{'b' if 'a' in reports else 'a'}: {error}") from error
        joined = [[f"{name}.{key}" for name in reports for key in getattr(reports[name], field)]
                  for field in LoadReport._fields]
        joined[1] += other
        return LoadReport(*joined)

    def num_parameters(self, trainable_only: bool = True) -> int:
        """Count the parameters of both networks; as `SideNetwork.num_parameters`."""
        return self.a.num_parameters(trainable_only) + self.b.num_parameters(trainable_only)

    def memory_plan(self, *, batch_size: int = 32, tokens_a: int = 128, tokens_b: int = 128,
                    optimizer: Optimizer = "adamw") -> MemoryPlan:
        """Tell what memory training will take: the sum over the two networks.

        Parameters
        ----------
        batch_size : int
            Pairs of a batch.
        tokens_a, tokens_b : int
            Rows of a sample of each kind.
        optimizer : {"adamw", "adam", "sgd"}

        Returns
        -------
        MemoryPlan
            The buffers of OpenBLAS, which the process has once, and rows, lanes and workers are those of the larger.
        """
        plans = [tower.memory_plan(batch_size=batch_size, tokens=tokens, optimizer=optimizer)
                 for (_, tower), tokens in zip(self._towers(), (tokens_a, tokens_b))]
        once = ("blas", "tile_rows", "lanes", "workers")
        joined = {field.name: [getattr(plan, field.name) for plan in plans] for field in fields(MemoryPlan)}
        return MemoryPlan(**{name: max(values) if name in once else sum(values) for name, values in joined.items()})

    def _weights(self) -> StateDict:
        return {f"{name}.{key}": view for name, tower in self._towers()
                for key, view in averaged_weights(tower._programs.store).items()}

    def _described(self) -> Record:
        towers = {name: tower._described() for name, tower in self._towers()}
        for described in towers.values():
            del described["features"], described["seed"]
        return {**towers, "features": None, "seed": None}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.a, self.b, self.loss)

    def __repr__(self) -> str:
        return f"DualEncoder, {loss_name(self.loss)}\na: {self.a!r}\nb: {self.b!r}"

    def _repr_html_(self) -> str:
        return f"DualEncoder, {escape(str(loss_name(self.loss)))}{self.a._repr_html_()}{self.b._repr_html_()}"

    # Disk.

    def save_pretrained(self, folder: PathLike) -> None:
        """Save both networks, in the folders a and b, and the loss where it is one of `sherl.losses`.

        Parameters
        ----------
        folder : str or path-like
            Made where it does not exist.
        """
        folder = Path(folder)
        for name, tower in self._towers():
            tower.save_pretrained(folder / name)
        config = {"format": FORMAT, "format_version": FORMAT_VERSION, "sherl_version": _core.config()["version"],
                  "loss": getattr(self.loss, "made", None)}
        write_files(folder, {CONFIG: (json.dumps(config, indent=2) + "\n").encode()})

    @classmethod
    def from_pretrained(cls, folder: PathLike, backbone_a: Any = None, backbone_b: Any = None,
                        loss: PairLoss | None = None) -> DualEncoder:
        """Load what `save_pretrained` wrote.

        Parameters
        ----------
        folder : str or path-like
        backbone_a, backbone_b
            As `backbone` of `SideNetwork.from_pretrained`.
        loss : callable, optional
            In place of the saved one; needed for training where that was a function of one's own.

        Returns
        -------
        DualEncoder
        """
        path = Path(folder) / CONFIG
        try:
            config = json.loads(path.read_bytes().decode())
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} does not exist") from None
        except ValueError as error:
            raise ValueError(f"{path} is not a JSON file: {error}") from error
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise ValueError(f"{path} does not describe a sherl dual encoder: it has no \"format\": \"{FORMAT}\"")
        if config.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"{path} has format version {config.get('format_version')!r}; this sherl reads version "
                             f"{FORMAT_VERSION}")
        a = SideNetwork.from_pretrained(Path(folder) / "a", backbone_a)
        b = SideNetwork.from_pretrained(Path(folder) / "b", backbone_b)
        saved = config.get("loss")
        if loss is None and saved is not None:
            makers: dict[str, Callable[..., PairLoss]] = {"contrastive": losses.contrastive, "triplet": losses.triplet}
            try:
                loss = makers[saved["maker"]](**saved["settings"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: loss does not make one of sherl.losses: {saved!r:.80}") from error
        return cls(a, b, loss)


def _head_of(network: SideNetwork) -> Embedding:
    return cast(Embedding, network.head)


class _BothLocks:
    """The locks of two networks, always taken in one order."""

    def __init__(self, a: SideNetwork, b: SideNetwork) -> None:
        self._locks = sorted((a._lock, b._lock), key=id)

    def __enter__(self) -> None:
        for lock in self._locks:
            lock.acquire()

    def __exit__(self, *_: object) -> None:
        for lock in reversed(self._locks):
            lock.release()
