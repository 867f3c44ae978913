"""The training loop: epochs of steps, validation, the best weights, callbacks, interrupts, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .. import _core
from .._typing import ByteCount, Integers, Metric, PathLike, Record, StateDict, Uint16As
from ..checks import flag, seed_number, whole_number
from .batching import epoch_batches
from .callbacks import Callback, FitState, StopTraining
from .checkpoint import read_checkpoint, write_checkpoint
from .history import History
from .interrupt import Interrupt
from .labelled import Labelled, read_head_labels
from .optimizers import OptimizerSettings
from .own_loss import loss_name
from .progress import progress_bar
from .scoring import BATCH_SIZE, Metrics, metric_functions, own_scores_of, scores_of
from .stepper import Stepper

if TYPE_CHECKING:
    from ..features.layout import Layout
    from ..network.network import Network

_PREFIX = "validation_"


class Fit:
    """One training of a network; the arguments are those of `SideNetwork.fit`, labelled samples and settings read."""

    def __init__(self, network: Any, labelled: Any, validation: Any, settings: OptimizerSettings, *, epochs: int,
                 batch_size: int, accumulate: int, metrics: Metrics, monitor: str | None, patience: int | None,
                 restore_best: bool | None, callbacks: Callback | Iterable[Callback], progress: bool, seed: int,
                 bucket_by_length: bool, checkpoint: PathLike | None, checkpoint_every: int | None,
                 resume_from: PathLike | None, memory_budget: ByteCount | None = None,
                 loss: Callable[..., Any] | None = None) -> None:
        self.network, self.labelled, self.validation = network, labelled, validation
        self.epochs = whole_number(epochs, "epochs", 1)
        self.batch_size = whole_number(batch_size, "batch_size", 1)
        self.accumulate = whole_number(accumulate, "accumulate", 1)
        self.seed = seed_number(seed)
        self.bucket_by_length = flag(bucket_by_length, "bucket_by_length")
        self.progress = flag(progress, "progress")
        self.loss = loss
        self.metrics = self._read_metrics(metrics)
        self.patience = None if patience is None else whole_number(patience, "patience", 1)
        self.restore_best = patience is not None if restore_best is None else flag(restore_best, "restore_best")
        if validation is None and (monitor is not None or patience is not None or self.restore_best):
            raise ValueError("monitor, patience and restore_best need validation")
        self.callbacks = _checked_callbacks(callbacks)
        self.checkpoint, self.resume_from = checkpoint, resume_from
        self.checkpoint_every = (
            None if checkpoint_every is None else whole_number(checkpoint_every, "checkpoint_every", 1)
        )
        if checkpoint is None and checkpoint_every is not None:
            raise ValueError("checkpoint_every needs checkpoint, the folder to write to")

        batches = -(-len(labelled) // self.batch_size)
        self.total_steps = self.epochs * -(-batches // self.accumulate)
        self.stepper = self._make_stepper(settings, memory_budget)
        self._check_budget()
        self.settings = settings
        self.history = History(self._monitor(monitor))
        self.state = FitState(network, self.history, self.epochs, self.total_steps)
        self.epoch, self.position = 0, 0  # whole epochs, and steps of the epoch under way
        self.loss_sum, self.share_sum, self.seconds = 0.0, 0.0, 0.0
        self.best_value: float | None = None
        self.best_weights: StateDict = {}
        self.described = self._describe() if checkpoint is not None or resume_from is not None else None

    def run(self) -> History:
        """Train, and return the history."""
        if self.resume_from is not None:
            self._resume()
        self.network._note_source(self.labelled.features)
        with (
            Interrupt() as self.interrupt,
            progress_bar(self.progress, self.total_steps, "fit", self.stepper.steps) as self.bar,
        ):
            self._call("on_fit_begin")
            while self.epoch < self.epochs and self.history.stopped is None:
                self._run_epoch()
            if self.checkpoint is not None:
                self._write_checkpoint()
        self._keep_weights()
        self._call("on_fit_end")
        return self.history

    def _keep_weights(self) -> None:
        """Let the network have the weights that it keeps: the best, the average, or the last."""
        average = self.stepper.average
        kept = self.best_weights if self.restore_best and self.best_weights else average and average.values
        if kept:
            self.network.load_state_dict(kept)

    def _averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the network has the weights that are evaluated."""
        average = self.stepper.average
        return nullcontext() if average is None else average.applied(self.network)

    def _read_metrics(self, metrics: Metrics) -> dict[str, Metric]:
        head, own = self.network.head, self.loss is not None
        functions = metric_functions(() if metrics is None and own else metrics, head.task)
        if own and self.validation is not None and functions:
            read_head_labels(head, self.validation.labels, self.validation.layout, "validation labels")
        return functions

    def _make_stepper(self, settings: OptimizerSettings, memory_budget: ByteCount | None) -> Any:
        return Stepper(self.network, settings, self.total_steps, self.accumulate, self.seed, memory_budget, self.loss)

    def _check_budget(self) -> None:
        """Raise where a sample does not fit the memory budget."""
        budget = self.stepper.budget
        if budget is None:
            return
        samples = min(self.batch_size, len(self.labelled))
        budget.room(self.stepper.program, self.labelled.features.largest, samples)
        if self.validation is not None:
            programs = self.network._programs
            program = programs.evaluation() if self.loss is None else programs.output()
            budget.room(program, self.validation.features.largest)

    def _run_epoch(self) -> None:
        self.state.epoch = self.epoch + 1
        if self.position == 0:
            self._call("on_epoch_begin")
        started = time.perf_counter() - self.seconds
        for parts in self._steps_of_epoch()[self.position :]:
            if self.history.stopped is not None:
                return
            self._step(parts)
            self.seconds = time.perf_counter() - started
            if self.checkpoint_every is not None and self.stepper.steps % self.checkpoint_every == 0:
                self._write_checkpoint()
            self._heed_interrupt()
        if self.history.stopped is None:
            self._end_epoch(started)

    def _steps_of_epoch(self) -> list[list[Integers]]:
        """Return for each step of the epoch the sample numbers of its batches."""
        lengths = self.labelled.features.lengths
        batches = epoch_batches(lengths, self.batch_size, self.seed, self.epoch, self.bucket_by_length)
        return [batches[start : start + self.accumulate] for start in range(0, len(batches), self.accumulate)]

    def _step(self, parts: list[Integers]) -> None:
        number = self.stepper.steps + 1
        rate = self.stepper.learning_rate
        try:
            loss = self.stepper.step(self.labelled, parts)
        except (FloatingPointError, MemoryError) as error:
            raise type(error)(
                f"step {number} (epoch {self.epoch + 1}) failed, and the network keeps its weights before it: {error}"
            ) from error
        share = sum(self.labelled.share(part) for part in parts)
        self.loss_sum += loss * share
        self.share_sum += share
        self.position += 1
        self.history.step_losses.append(loss)
        self.state.step, self.state.loss = self.stepper.steps, loss
        self.state.learning_rate, self.state.gradient_norm = rate, self.stepper.gradient_norm
        self.bar.update()
        self.bar.set_postfix_str(f"epoch {self.epoch + 1}, loss {loss:.4f}{self._validated()}", refresh=False)
        self._call("on_step_end")

    def _end_epoch(self, started: float) -> None:
        entry: Record = {"epoch": self.epoch + 1, "loss": self.loss_sum / (self.share_sum or 1.0),
                         "learning_rate": self.state.learning_rate, "seconds": time.perf_counter() - started}
        if self.validation is not None:
            scores = self._validate()
            entry.update({_PREFIX + name: value for name, value in scores.items()})
        self.history.epochs.append(entry)
        self.state.metrics = entry
        self.epoch, self.position = self.epoch + 1, 0
        self.loss_sum, self.share_sum, self.seconds = 0.0, 0.0, 0.0
        if self.validation is not None:
            self._judge(entry[str(self.history.monitor)])
        self._call("on_epoch_end")
        self._heed_interrupt()
        if self.checkpoint is not None and self.checkpoint_every is None:
            self._write_checkpoint()

    def _validate(self) -> dict[str, float]:
        budget, progress = self.stepper.budget, "validation" if self.progress else None
        with self.network._lock, self._averaged():
            if self.loss is None:
                return scores_of(self.network, self.validation, self.metrics, BATCH_SIZE, budget, progress)
            return own_scores_of(self.network, self.validation, self.metrics, self.loss, self.batch_size, budget,
                                 progress)

    def _judge(self, value: float) -> None:
        """Keep the weights where the epoch is the best yet; end the training where the best is too long ago."""
        if self.history._compare(value, self.best_value):
            self.best_value, self.history.best_epoch = value, self.epoch
            if self.restore_best:
                with self.network._lock, self._averaged():
                    self.best_weights = self.network.state_dict()
        elif self.patience is not None and self.epoch - (self.history.best_epoch or 0) >= self.patience:
            self.history.stopped = "patience"

    def _monitor(self, monitor: str | None) -> str | None:
        if self.validation is None:
            return None
        return monitor_name(monitor, self.metrics)

    def _validated(self) -> str:
        entry = self.history.epochs[-1] if self.history.epochs else {}
        return f", {self.history.monitor} {entry[self.history.monitor]:.4f}" if self.history.monitor in entry else ""

    def _call(self, name: str) -> None:
        for callback in self.callbacks:
            try:
                stop = getattr(callback, name)(self.state) is True
            except StopTraining:
                stop = True
            if stop and self.history.stopped is None:
                self.history.stopped = "callback"

    def _heed_interrupt(self) -> None:
        if self.interrupt.asked and self.history.stopped is None:
            self.history.stopped = "interrupt"

    # Checkpoints.

    def _describe(self) -> Record:
        """Return what a resumed training must share with the one that wrote the checkpoint."""
        network = self.network._described()
        del network["features"], network["seed"]
        return {
            **asdict(self.settings), "epochs": self.epochs, "batch_size": self.batch_size,
            "accumulate": self.accumulate, "seed": self.seed, "bucket_by_length": self.bucket_by_length,
            "metrics": list(self.metrics), "monitor": self.history.monitor, "patience": self.patience,
            "restore_best": self.restore_best,
            "network": network, "precision": _core.REAL, "data": self.labelled.fingerprint,
            "loss": loss_name(self.loss),
            "validation": None if self.validation is None else self.validation.fingerprint,
        }

    def _write_checkpoint(self) -> None:
        arrays = {f"weight/{name}": array for name, array in self.network.state_dict().items()}
        arrays.update({f"best/{name}": array for name, array in self.best_weights.items()})
        if self.stepper.average is not None:
            arrays.update({f"average/{name}": array for name, array in self.stepper.average.values.items()})
        moments = self.stepper.moments()
        arrays.update({f"moment{number}/{name}": array for (number, name), array in moments.items()})
        assert self.checkpoint is not None
        write_checkpoint(self.checkpoint, {
            "settings": self.described, "steps": self.stepper.steps, "epoch": self.epoch, "position": self.position,
            "loss_sum": self.loss_sum, "share_sum": self.share_sum, "seconds": self.seconds,
            "best_value": self.best_value, "learning_rate": self.state.learning_rate,
            "history": self.history.to_dict(),
        }, arrays)

    def _resume(self) -> None:
        assert self.resume_from is not None and self.described is not None
        state, arrays = read_checkpoint(self.resume_from, self.described)
        groups: dict[str, StateDict] = {"weight": {}, "best": {}, "average": {}, "moment0": {}, "moment1": {}}
        try:
            for key, array in arrays.items():
                group, _, name = key.partition("/")
                groups[group][name] = array
            moments = {(number, name): array for number in (0, 1) for name, array in groups[f"moment{number}"].items()}
            expected = self.stepper.moments()
            if {key: array.shape for key, array in expected.items()} != {key: a.shape for key, a in moments.items()}:
                raise ValueError("the optimizer's state does not fit")
            if self.stepper.average is not None:
                self.stepper.average.restore(groups["average"])
            history = History.from_dict(state["history"])
            self.epoch, self.position = int(state["epoch"]), int(state["position"])
            self.loss_sum, self.share_sum = state["loss_sum"], state["share_sum"]
            self.seconds, self.best_value = state["seconds"], state["best_value"]
            self.state.learning_rate, steps = state["learning_rate"], int(state["steps"])
            self.network.load_state_dict(groups["weight"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"resume_from: the checkpoint in {self.resume_from} is not whole: {error}") from error
        self.stepper.restore(steps, moments)
        self.best_weights = groups["best"]
        if history.stopped in ("interrupt", "callback"):
            history.stopped = None
        self.history = self.state.history = history
        self.state.step = steps
        self.state.metrics = history.epochs[-1] if history.epochs else {}


def monitor_name(monitor: str | None, metrics: Iterable[str]) -> str:
    """Return the entry of an epoch that a `monitor` argument means; the first metric where it is None."""
    names = ["loss", *metrics]
    chosen = ([*metrics, "loss"][0] if monitor is None else str(monitor)).removeprefix(_PREFIX)
    if chosen not in names:
        raise ValueError(f"monitor must be one of {', '.join(names)}, got {monitor!r}")
    return _PREFIX + chosen


def read_validation(network: Network, validation: Any, dtype: Uint16As, own_loss: bool = False,
                    layout: Layout | None = None) -> Labelled | None:
    """Return the labelled samples of a `validation` argument, or None."""
    if validation is None:
        return None
    check_validation(validation)
    try:
        taps, labels, mask, positions = (*validation, None, None)[:4]
        return Labelled(network, taps, labels, mask, positions, dtype=dtype, name="validation labels",
                        own_loss=own_loss, layout=layout)
    except (TypeError, ValueError) as error:
        raise type(error)(f"validation: {error}") from error


def check_validation(validation: object) -> None:
    """Raise where a `validation` argument is not of its form."""
    if not isinstance(validation, (tuple, list)) or len(validation) not in (2, 3, 4):
        raise TypeError("validation must be (taps, labels), (taps, labels, mask) or (taps, labels, mask, positions)")


def _checked_callbacks(callbacks: Callback | Iterable[Callback]) -> list[Callback]:
    callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks must be instances of sherl.Callback, got {type(callback).__name__}")
    return callbacks
