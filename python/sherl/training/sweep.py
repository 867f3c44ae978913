"""Sweeps: many side networks trained in one pass over the features, each with the bits that it would have alone."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from .._typing import ArrayLike, Integers, Metric, Record, StateDict, Uint16As
from ..blocks.queries import Stream
from ..blocks.weights import load_state, read_state, trainable_names
from ..checks import count_of, flag, seed_number, whole_number
from ..features.features import Features, as_features
from ..features.layout import Layout
from ..html import html_table
from ..network.late_route import given_positions, queries_of
from ..network.side_network import SideNetwork
from .average import WeightAverage, averaged_weights
from .batching import epoch_batches
from .chain import Chain
from .fit import check_validation, monitor_name, read_validation
from .history import History
from .interrupt import Interrupt
from .labelled import Labelled
from .optimizers import OptimizerSettings
from .progress import progress_bar
from .scoring import BATCH_SIZE, Metrics, metric_functions, scores_of

if TYPE_CHECKING:
    pass

__all__ = ["SweepResult", "grid", "sweep"]

_SETTINGS = tuple(field.name for field in fields(OptimizerSettings) if field.name != "eps")
_USUAL = {"schedule": "linear", "warmup": 0.06, "clip_norm": 1.0}  # where fit differs from OptimizerSettings
_OWN = ("network", "labels", "validation_labels", "sample_weight")


def sweep(taps: Features | Sequence[ArrayLike], labels: ArrayLike | None,
          configurations: Mapping[str, SideNetwork | Mapping[str, Any]], *, mask: ArrayLike | None = None,
          positions: ArrayLike | None = None, epochs: int = 3, batch_size: int = 32,
          validation: Sequence[Any] | None = None, metrics: Metrics = None, monitor: str | None = None,
          restore_best: bool = False, progress: bool = True, seed: int = 0, bucket_by_length: bool = False,
          dtype: Uint16As = None, **settings: Any) -> SweepResult:
    """Train several side networks in one pass over the features.

    Each network ends up with the same bits as after ``network.fit`` with the same arguments: the order of the samples
    and the seed of dropout are common, the first weights are each network's own. Reading and widening of taps is
    shared. A network whose loss or gradient is not finite keeps its weights before that step and is left alone from
    then on; the others go on. An interrupt (Ctrl-C) ends the sweep after the step under way; a second one raises
    KeyboardInterrupt.

    Parameters
    ----------
    taps, mask, positions, dtype
        As for `SideNetwork.fit`.
    labels : array_like or None
        As for `SideNetwork.fit`; None where every configuration has its own.
    configurations : mapping of str to SideNetwork or dict
        By name a network, or a dictionary with ``"network"`` and, where wanted, what differs from the common settings:
        ``"learning_rate"``, ``"optimizer"``, ``"weight_decay"``, ``"no_decay"``, ``"schedule"``, ``"warmup"``,
        ``"clip_norm"``, ``"betas"``, ``"momentum"``, ``"step_every"``, ``"step_factor"``,
        ``"learning_rate_factors"``, ``"weight_decay_factors"``, ``"ema"``; ``"labels"``,
        ``"validation_labels"`` and ``"sample_weight"`` of a task of its own. All networks must take the same taps.
    epochs, batch_size, bucket_by_length, seed
        As for `SideNetwork.fit`.
    validation : tuple, optional
        (taps, labels), (taps, labels, mask) or (taps, labels, mask, positions), on which each network is evaluated
        after every epoch.
    metrics, monitor
        As for `SideNetwork.fit`.
    restore_best : bool
        Whether each network gets the weights of its best epoch at the end.
    progress : bool
        Whether to show a progress bar, where tqdm is installed.
    **settings
        Common settings: learning_rate and the others that a configuration may have, with the defaults of
        `SideNetwork.fit`.

    Returns
    -------
    SweepResult

    Raises
    ------
    TypeError, ValueError
        Where an argument does not fit; no network has changed then.
    """
    return _Sweep(
        taps, labels, configurations, settings, mask=mask, positions=positions, epochs=epochs, batch_size=batch_size,
        validation=validation, metrics=metrics, monitor=monitor, restore_best=restore_best, progress=progress,
        seed=seed, bucket_by_length=bucket_by_length, dtype=dtype,
    ).run()


def grid(factory: Callable[..., SideNetwork], **choices: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Return configurations for `sweep`: one for each combination of choices.

    Parameters
    ----------
    factory : callable
        Makes a network of the choices that are not settings of the training, given by name.
    **choices : sequence
        Values to try, by name: settings of the training, like learning_rate, and arguments of the factory.

    Returns
    -------
    dict of str to dict
        Names look like ``"hidden=8, learning_rate=0.001"``.
    """
    for name, values in choices.items():
        if isinstance(values, str) or not hasattr(values, "__iter__"):
            raise TypeError(f"{name} must be a sequence of values to try, got {values!r}")
    configurations = {}
    for values in itertools.product(*choices.values()):
        chosen = dict(zip(choices, values))
        made = factory(**{name: value for name, value in chosen.items() if name not in _SETTINGS})
        name = ", ".join(f"{name}={value}" for name, value in chosen.items())
        settings = {name: value for name, value in chosen.items() if name in _SETTINGS}
        configurations[name] = {"network": made, **settings}
    return configurations


class SweepResult:
    """What a sweep gave.

    Attributes
    ----------
    networks : dict of str to SideNetwork
        The trained networks, those that were given.
    histories : dict of str to History
        Their ``stopped`` is "not finite" where a loss or a gradient was not finite.
    table : list of dict
        A row for each network, in the order given: ``"name"``, ``"parameters"``, ``"learning_rate"``, ``"stopped"``,
        and of the epoch whose weights it holds ``"epoch"``, ``"loss"``, and with validation its loss and metrics.
    best_name : str or None
        The network that is best by the monitored entry, or without validation by its loss. None where no epoch was
        finished, or where the networks are not to be compared: other labels, or another entry.
    """

    def __init__(self, networks: dict[str, SideNetwork], histories: dict[str, History], table: list[Record],
                 best_name: str | None) -> None:
        self.networks, self.histories, self.table, self.best_name = networks, histories, table, best_name

    @property
    def best(self) -> SideNetwork | None:
        """The best network, or None."""
        return None if self.best_name is None else self.networks[self.best_name]

    def __repr__(self) -> str:
        names = list(dict.fromkeys(name for row in self.table for name in row))
        cells = [names, *([_cell(row.get(name)) for name in names] for row in self.table)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(names))]
        lines = ["  ".join(f"{cell:<{width}}" if column == 0 else f"{cell:>{width}}"
                           for column, (cell, width) in enumerate(zip(row, widths))) for row in cells]
        for number, row in enumerate(self.table, 1):
            if row["name"] == self.best_name:
                lines[number] += "  best"
        return "\n".join([self._title(), *lines])

    def _repr_html_(self) -> str:
        names = list(dict.fromkeys(name for row in self.table for name in row))
        best = [number for number, row in enumerate(self.table) if row["name"] == self.best_name]
        return html_table(self._title(), names, [[row.get(name) for name in names] for row in self.table], *best)

    def _title(self) -> str:
        return f"SweepResult: {count_of(len(self.table), 'network')}"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class _Entry:
    """One network of a sweep: its data, settings and history."""

    def __init__(self, name: str, network: SideNetwork, settings: OptimizerSettings, labelled: Labelled,
                 validation: Labelled | None, metrics: dict[str, Metric], monitor: str | None,
                 own_labels: bool) -> None:
        self.name, self.network, self.settings = name, network, settings
        self.labelled, self.validation, self.metrics = labelled, validation, metrics
        self.own_labels = own_labels
        self.history = History(None if validation is None else monitor_name(monitor, metrics))
        self.trainer: Any = None  # set by the group
        self.average: WeightAverage | None = None
        self.best_value: float | None = None
        self.best_weights: StateDict = {}
        self.loss_sum = self.share_sum = 0.0

    @property
    def running(self) -> bool:
        return self.history.stopped is None

    def begin_epoch(self) -> None:
        self.loss_sum = self.share_sum = 0.0

    def step(self, loss: float, share: float) -> None:
        """Apply the gradient that the program has now."""
        if not math.isfinite(loss):
            self.history.stopped = "not finite"
            return
        self.rate = self.trainer.learning_rate(self.trainer.steps)
        self.trainer.adopt()
        try:
            self.trainer.update()
        except FloatingPointError:
            self.history.stopped = "not finite"
            return
        if self.average is not None:
            self.average.update()
        self.loss_sum += loss * share
        self.share_sum += share
        self.history.step_losses.append(loss)

    def end_epoch(self, epoch: int, started: float, restore_best: bool, progress: bool) -> None:
        entry: Record = {"epoch": epoch + 1, "loss": self.loss_sum / (self.share_sum or 1.0),
                         "learning_rate": self.rate,
                 "seconds": time.perf_counter() - started}
        if self.validation is not None:
            with self.network._lock, self._averaged():
                scores = scores_of(self.network, self.validation, self.metrics, BATCH_SIZE,
                                   progress=f"validation of {self.name}" if progress else None)
            entry.update({f"validation_{name}": value for name, value in scores.items()})
        self.history.epochs.append(entry)
        if self.validation is not None and self.history._compare(entry[str(self.history.monitor)], self.best_value):
            self.best_value, self.history.best_epoch = entry[str(self.history.monitor)], epoch + 1
            if restore_best:
                with self._averaged():
                    self.best_weights = self.network.state_dict()

    def _averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the network has the weights that are evaluated."""
        return nullcontext() if self.average is None else self.average.applied(self.network)

    def keep_weights(self, restore_best: bool) -> None:
        """Let the network have the weights that it keeps: the best, the average, or the last."""
        if restore_best and self.best_weights:
            self.network.load_state_dict(self.best_weights)
        elif self.average is not None and self.history.stopped != "not finite":
            self.network.load_state_dict(self.average.values)

    def row(self, restore_best: bool) -> Record:
        held = self.history.best if restore_best else (self.history.epochs or [{}])[-1]
        scores = {name: value for name, value in (held or {}).items() if name not in ("learning_rate", "seconds")}
        return {"name": self.name, "parameters": self.network.num_parameters(),
                "learning_rate": self.settings.learning_rate, "stopped": self.history.stopped, **scores}


class _Group:
    """Networks in one program. It holds copies of their weights, each under a prefix, in a store of its own."""

    def __init__(self, entries: list[_Entry], total_steps: int) -> None:
        self.entries = entries
        self.prefixes = [f"{number}." for number in range(len(entries))]
        # All heads that read positions read the same ones; this network declares them, if any does.
        self.reader = max((entry.network for entry in entries), key=lambda network: network.head._takes_positions)
        self.store = _core.Parameters()
        self.program = self._build().compile(True)
        self.program.lanes = _program_of(entries[0].network).lanes
        for entry, prefix in zip(entries, self.prefixes):
            with entry.network._lock:
                load_state(self.store, prefix, read_state(entry.network._programs.store), strict=True)
            names = trainable_names(self.store, prefix)
            entry.settings.check_patterns(names)
            entry.trainer = entry.settings.trainer(self.program, names, total_steps, prefix)
            if entry.settings.ema is not None:
                entry.average = WeightAverage(averaged_weights(self.store, prefix), entry.settings.ema)

    def _build(self) -> _core.Graph:
        """Return the graph: blocks of a kind one after the other, so that steps over a whole block lie together."""
        graph = _core.Graph(self.store, True)
        graph.set_staged(_program_of(self.entries[0].network).staged)
        taps, given = self.entries[0].network._programs.declare_rows(graph, False)
        positions = self.reader.head._declare_positions(graph)
        values = [Stream(taps[-1], given=given) for _ in self.entries]  # x: what the last block gave
        streams = [0] * len(self.entries)
        parts = [entry.network._programs.parts() for entry in self.entries]
        depth = max(map(len, parts))
        # The head comes last in all networks, whatever their number of late layers.
        aligned = [[*blocks[:-1], *[None] * (depth - len(blocks)), blocks[-1]] for blocks in parts]
        for level in range(depth):
            for number, blocks in enumerate(aligned):
                present = blocks[level]
                if present is None:
                    continue
                prefix, block = present
                graph.stream = streams[number]  # as if the network had a graph of its own
                programs, stream = self.entries[number].network._programs, values[number]
                prefix = self.prefixes[number] + prefix
                if level in (0, depth - 1):
                    inputs = taps if level == 0 else [stream.x, *positions]
                    values[number] = stream._replace(x=programs._build(graph, prefix, block, inputs))
                else:
                    values[number] = programs.advance(graph, prefix, block, stream)
                streams[number] = graph.stream
        losses = [entry.network.head._build_loss(graph, f"{prefix}head.", stream.x)
                  for entry, prefix, stream in zip(self.entries, self.prefixes, values)]
        for loss in losses:
            graph.output(loss)
        total = losses[0]
        for loss in losses[1:]:
            total = graph.add(total, loss)
        graph.loss(total)
        return graph

    def step(self, index: Integers, seed: int, number: int) -> None:
        """Take a step of every network that still runs."""
        features = self.entries[0].labelled.features
        batch = features.batch(index)
        targets = [source for entry in self.entries for source in entry.labelled.targets(index)]
        rows = [entry.network._output_rows(np.diff(batch.offsets)).sum() if entry.network.head._loss_each_row
                else batch.samples for entry in self.entries]
        losses = [np.empty((count, 1), _core.REAL) for count in rows]
        self.program.gradient(
            batch.samples, batch.spaces, [*self.reader._sources(features, batch), *targets],
            [(loss, None) for loss in losses], seed=seed, step=number,
        )
        for entry, loss in zip(self.entries, losses):
            if entry.running:
                entry.step(float(loss.sum(dtype=np.float64)), entry.labelled.share(index))

    @property
    def running(self) -> bool:
        return any(entry.running for entry in self.entries)

    def write_back(self) -> None:
        """Copy the weights to the networks."""
        for entry, prefix in zip(self.entries, self.prefixes):
            with entry.network._lock:
                load_state(entry.network._programs.store, "", read_state(self.store, prefix), strict=True)


class _Sweep:
    def __init__(self, taps: Features | Sequence[ArrayLike], labels: ArrayLike | None,
                 configurations: Mapping[str, SideNetwork | Mapping[str, Any]], settings: dict[str, Any], *,
                 mask: ArrayLike | None, positions: ArrayLike | None, epochs: int, batch_size: int,
                 validation: Sequence[Any] | None, metrics: Metrics, monitor: str | None, restore_best: bool,
                 progress: bool, seed: int, bucket_by_length: bool, dtype: Uint16As) -> None:
        self.epochs = whole_number(epochs, "epochs", 1)
        self.batch_size = whole_number(batch_size, "batch_size", 1)
        self.restore_best = flag(restore_best, "restore_best")
        self.progress = flag(progress, "progress")
        self.seed = seed_number(seed)
        self.bucket_by_length = flag(bucket_by_length, "bucket_by_length")
        if validation is None and (monitor is not None or self.restore_best):
            raise ValueError("monitor and restore_best need validation")
        _check_names(settings, _SETTINGS, "sweep")
        given = _read_configurations(configurations)
        channels = _channels(next(iter(given.values()))["network"])
        self.features = as_features(taps, mask, positions, channels=channels, dtype=dtype)
        self.taps, held_out = taps, None
        if validation is not None:
            check_validation(validation)
            features = as_features(validation[0], *validation[2:], channels=channels, dtype=dtype)
            held_out = features, *validation[:2]
        self.entries = [
            self._entry(name, {**_USUAL, **settings, **own}, labels, held_out, metrics, monitor)
            for name, own in given.items()
        ]
        self.batches = -(-len(self.features) // self.batch_size)
        # Networks of one program are cut into tiles and lanes alike, each as its own program would be.
        groups: dict[Any, list[_Entry]] = {}
        for entry in self.entries:
            program = _program_of(entry.network)
            queries, each_row = queries_of(entry.network.late), entry.network.head._loss_each_row
            # Losses of a program lie in one row space; queries of a network have their own.
            alone = entry.name if queries and each_row else None
            kind = program.lanes, program.staged, each_row, queries, alone
            groups.setdefault(kind, []).append(entry)
        self.groups = [_Group(entries, self.epochs * self.batches) for entries in groups.values()]

    def _entry(self, name: str, settings: dict[str, Any], labels: ArrayLike | None,
               held_out: tuple[Features, Any, Layout] | None, metrics: Metrics, monitor: str | None) -> _Entry:
        network, own_labels, held_out_labels, sample_weight = (settings.pop(key, None) for key in _OWN)
        try:
            if network._programs.foreign:
                raise ValueError("the network must have late layers that sherl computes itself, got "
                                 f"{network._programs.foreign[0]!r}")
            if labels is None and own_labels is None:
                raise ValueError("labels must be given, in common or here")
            labelled = Labelled(network, self.features, labels if own_labels is None else own_labels,
                                sample_weight=sample_weight, layout=network._layout(self.taps, self.features))
            if held_out is None and held_out_labels is not None:
                raise ValueError("validation_labels need validation")
            if held_out is not None:
                if own_labels is not None and held_out_labels is None:
                    raise ValueError("labels of its own need validation_labels with validation")
                features, padded, targets = held_out
                targets = targets if held_out_labels is None else held_out_labels
                held_out = read_validation(network, (features, targets), None, layout=network._layout(padded, features))
            functions = metric_functions(metrics, network.head.task)
            return _Entry(name, network, OptimizerSettings(**settings), labelled, held_out, functions, monitor,
                          own_labels is not None)
        except (TypeError, ValueError) as error:
            raise type(error)(f"configuration {name!r}: {error}") from error

    def run(self) -> SweepResult:
        steps = 0
        for entry in self.entries:
            entry.network._note_source(self.features)
        with Interrupt() as interrupt, progress_bar(self.progress, self.epochs * self.batches, "sweep") as bar:
            for epoch in range(self.epochs):
                started = time.perf_counter()
                for entry in self.entries:
                    entry.begin_epoch()
                batches = epoch_batches(self.features.lengths, self.batch_size, self.seed, epoch,
                                        self.bucket_by_length)
                try:
                    for index in batches:
                        if interrupt.asked or not self._running:
                            break
                        for group in self._running:
                            group.step(index, self.seed, steps)
                        steps += 1
                        bar.update()
                        bar.set_postfix_str(f"epoch {epoch + 1}", refresh=False)
                finally:
                    for group in self.groups:
                        group.write_back()
                if steps == (epoch + 1) * len(batches):
                    for entry in filter(_is_running, self.entries):
                        entry.end_epoch(epoch, started, self.restore_best, self.progress)
                if interrupt.asked:
                    for entry in filter(_is_running, self.entries):
                        entry.history.stopped = "interrupt"
                if not self._running:
                    break
        for entry in self.entries:
            entry.keep_weights(self.restore_best)
        return self._result()

    @property
    def _running(self) -> list[_Group]:
        return [group for group in self.groups if group.running]

    def _result(self) -> SweepResult:
        table = [entry.row(self.restore_best) for entry in self.entries]
        histories = {entry.name: entry.history for entry in self.entries}
        return SweepResult({entry.name: entry.network for entry in self.entries}, histories, table, self._best(table))

    def _best(self, table: list[Record]) -> str | None:
        monitors = {entry.history.monitor for entry in self.entries}
        if len(monitors) > 1 or len({entry.network.head.task for entry in self.entries}) > 1:
            return None
        if any(entry.own_labels for entry in self.entries):
            return None
        monitor = monitors.pop() or "loss"
        sign = 1 if monitor.endswith("loss") else -1
        scored = [(sign * row[monitor], row["name"]) for row in table
                  if row["stopped"] != "not finite" and math.isfinite(row.get(monitor, math.nan))]
        return min(scored, key=lambda pair: pair[0])[1] if scored else None


def _program_of(network: SideNetwork) -> _core.Program:
    """Return the program that trains a network, all of which the core computes."""
    program = network._programs.loss_gradient(True)
    assert not isinstance(program, Chain)
    return program


def _is_running(entry: _Entry) -> bool:
    return entry.running


def _read_configurations(configurations: Mapping[str, SideNetwork | Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return dictionaries with a network each, by name, all checked."""
    if not isinstance(configurations, Mapping) or not configurations:
        raise TypeError("configurations must be a dictionary with a network, or a dictionary, for each name, "
                        f"got {configurations!r}")
    given: dict[str, dict[str, Any]] = {}
    seen: dict[int, str] = {}
    for name, own in configurations.items():
        own = {"network": own} if isinstance(own, SideNetwork) else own
        if not isinstance(own, Mapping) or not isinstance(own.get("network"), SideNetwork):
            raise TypeError(f"configuration {name!r} must be a SideNetwork, or a dictionary with one under 'network'")
        _check_names(own, (*_OWN, *_SETTINGS), f"configuration {name!r}")
        network = own["network"]
        early = network.early
        if early.images or early.guidance == "spatial" or "batchnorm" in (early.down, early.up_norm):
            raise ValueError(f"configuration {name!r} must read tokens, without batch norms and spatial guidance; "
                             "train it with fit")
        if id(network) in seen:
            raise ValueError(f"configuration {name!r} has the network of {seen[id(network)]!r}: each needs its own")
        seen[id(network)] = name
        first = next(iter(given.values()), own)["network"]
        if _channels(network) != _channels(first):
            raise ValueError(f"configuration {name!r} must take taps of {_channels(first)} channels, as the first "
                             f"does, got {_channels(network)}")
        given[str(name)] = dict(own)
    if len(given) < len(configurations):
        raise ValueError("configurations must have names that differ as text")
    return given


def _channels(network: SideNetwork) -> list[int]:
    """Return the channels of the arrays that a network reads."""
    positions = given_positions(network.late)
    return [*network.early.features, *([] if positions is None else [positions])]


def _check_names(given: Iterable[str], known: Iterable[str], where: str) -> None:
    unknown = [str(name) for name in given if name not in known]
    if unknown:
        raise TypeError(f"{where} has no setting {', '.join(unknown)}; there are {', '.join(known)}")
