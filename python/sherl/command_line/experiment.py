"""An experiment on frozen states: a trivial guess, a linear probe, and one network or several at once."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

import sherl

from .._typing import Array, Pooling, Record
from ..checks import count_of
from ..training.metrics import METRICS, TASK_METRICS, default_metrics
from ..training.probe import fit_linear_probe
from .arguments import UsageError
from .console import aligned
from .measure import Measured, megabytes
from .states import layers_of, selected, states_of

if TYPE_CHECKING:
    from .console import Console
    from .data import Data

__all__ = ["Result", "Settings", "baselines", "results_record", "results_table", "train_network", "train_several"]

WARMUP = 0.06
DROPOUT = 0.1


@dataclass(frozen=True)
class Settings:
    """What an experiment does; the fields are options of `sherl train`, and these are their defaults."""

    task: str = "classification"
    metrics: tuple[str, ...] = ()
    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    hidden: int = 48
    pool: Pooling = "mean"
    taps: Any = "all"  # a choice of `Taps`; of a sweep a list of them, as of other fields
    max_length: int | None = None
    seed: int = 0
    patience: int | None = None
    probe: bool = True
    schedule: str = "linear"
    step_every: int | None = None
    step_factor: float = 0.1
    clip_norm: float | None = 1.0
    learning_rate_factors: dict[str, float] | None = None
    ema: float | None = None

    @classmethod
    def of(cls, arguments: Namespace) -> Settings:
        """Return the settings that options ask for."""
        given = {field.name: getattr(arguments, field.name) for field in fields(cls) if hasattr(arguments, field.name)}
        given["task"] = given.get("task") or cls.task
        factors = getattr(arguments, "learning_rate_factor", None)
        made = cls(**given, learning_rate_factors=dict(factors) if factors else None)
        return replace(made, metrics=metrics_of(made.task, getattr(arguments, "metric", None)))

    @property
    def optimizer(self) -> dict[str, Any]:
        """What `fit` and `sweep` take of an optimizer."""
        names = ("learning_rate", "weight_decay", "schedule", "step_every", "step_factor", "clip_norm",
                 "learning_rate_factors", "ema")
        return {**{name: getattr(self, name) for name in names}, "warmup": WARMUP}

    @property
    def course(self) -> dict[str, Any]:
        """What `fit` and `sweep` take of the rest."""
        return {"epochs": self.epochs, "batch_size": self.batch_size, "metrics": list(self.metrics), "seed": self.seed}


@dataclass(frozen=True)
class Result:
    """How one predictor did on the held-out samples; seconds and bytes are those of its training."""

    name: str
    scores: dict[str, float]
    parameters: int
    seconds: float | None = None
    memory: int | None = None


def metrics_of(task: str, asked: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the metrics to report."""
    names = tuple(dict.fromkeys(asked or default_metrics(task)))
    for name in names:
        if name not in TASK_METRICS[task]:
            suitable = ", ".join(TASK_METRICS[task])
            raise UsageError(f"--metric {name} does not go with {task}; choose from {suitable}")
    return names


def baselines(data: Data, settings: Settings, console: Console) -> list[Result]:
    """Return the results of a trivial guess and, where it is asked for, of a linear probe."""
    guess: Any
    if data.classes:
        name, guess = "majority class", np.bincount(data.train_targets).argmax()
    else:
        name, guess = "mean", data.train_targets.mean()
    results = [Result(name, scores_of(np.full(len(data.dev), guess), data.dev_targets, settings.metrics), 0)]
    if settings.probe:
        whole = layers_of(data.train) in states_of(data.train)
        console.say(f"Fitting a linear probe on mean-pooled outputs of the last {'layer' if whole else 'tap'}")
        results.append(_probe(data, settings, console))
    return results


def train_network(data: Data, settings: Settings, console: Console) -> tuple[sherl.SideNetwork, Result, bool]:
    """Train one network.

    Returns
    -------
    network : sherl.SideNetwork
    result : Result
    interrupted : bool
        Whether Ctrl-C ended the training early; the network then has the weights of its last step.
    """
    train, dev = data.tapped(settings.taps)
    network = _network(train, data, settings)
    length = count_of(settings.epochs, "epoch")
    console.say(f"Training a SHERL network of {network.num_parameters():,} parameters for {length}")
    unit = _Unit.of(data.train_targets, settings.task)
    with Measured() as training:
        history = network.fit(
            train,
            unit.standardised(data.train_targets),
            validation=(dev, unit.standardised(data.dev_targets)),
            patience=settings.patience,
            progress=console.progress,
            **settings.course,
            **settings.optimizer,
        )
    unit.restore(network)
    scores = scores_of(network.predict(dev, progress=console.progress), data.dev_targets, settings.metrics)
    result = Result("SHERL", scores, network.num_parameters(), training.seconds, training.memory)
    interrupted = history.stopped == "interrupt"
    if interrupted:
        console.say("   interrupted: what follows is from the steps so far")
    return network, result, interrupted


def train_several(data: Data, tried: Mapping[str, Settings], console: Console) -> tuple[sherl.SweepResult, bool]:
    """Train a network for each of several settings, those of the same taps in one pass over the states.

    Parameters
    ----------
    tried : dict of str to Settings

    Returns
    -------
    sherl.SweepResult
        Its table has scores of epochs, named as in `History.epochs`.
    interrupted : bool
    """
    first = next(iter(tried.values()))
    unit = _Unit.of(data.train_targets, first.task)
    networks: dict[str, sherl.SideNetwork] = {}
    histories: dict[str, sherl.History] = {}
    rows: dict[str, Record] = {}
    for taps in dict.fromkeys(settings.taps for settings in tried.values()):
        names = [name for name, settings in tried.items() if settings.taps == taps]
        train, dev = data.tapped(taps)
        configurations = {
            name: {"network": _network(train, data, tried[name]), **tried[name].optimizer} for name in names
        }
        console.say(f"Training {count_of(len(names), 'SHERL network')} for {count_of(first.epochs, 'epoch')}")
        outcome = sherl.sweep(
            train,
            unit.standardised(data.train_targets),
            configurations,
            validation=(dev, unit.standardised(data.dev_targets)),
            progress=console.progress,
            **first.course,
        )
        networks |= outcome.networks
        histories |= outcome.histories
        rows |= {row["name"]: row for row in outcome.table}
        if any(history.stopped == "interrupt" for history in outcome.histories.values()):
            console.say("   interrupted: what follows is from the epochs so far")
            break
    for network in networks.values():
        unit.restore(network)
    table = [rows[name] for name in tried if name in rows]
    interrupted = any(history.stopped == "interrupt" for history in histories.values())
    return sherl.SweepResult(networks, histories, table, _best(table, f"validation_{first.metrics[0]}")), interrupted


def results_table(results: Sequence[Result], best: str | None = None) -> str:
    """Lay results out as an aligned table, and mark the best."""
    rows = [["", *results[0].scores, "trainable", "seconds", "memory"]]
    for result in results:
        scores = ["n/a" if math.isnan(score) else f"{score:.4f}" for score in result.scores.values()]
        trained = result.seconds is not None
        seconds, memory = (f"{result.seconds:.1f}", megabytes(result.memory)) if trained else ("-", "-")
        rows.append([result.name, *scores, f"{result.parameters:,}", seconds, memory])
    lines = aligned(rows).split("\n")
    marks = [False] + [result.name == best for result in results]
    return "\n".join(line + "   best" if marked else line for line, marked in zip(lines, marks))


def results_record(results: Sequence[Result]) -> list[Record]:
    """Give results as a list of dict, for JSON."""
    return [
        {
            "name": result.name,
            **result.scores,
            "trainable_parameters": result.parameters,
            "seconds": result.seconds,
            "memory_bytes": result.memory,
        }
        for result in results
    ]


def scores_of(predictions: Array, targets: Array, metrics: Sequence[str]) -> dict[str, float]:
    """Return the value of each metric by name."""
    return {name: METRICS[name](predictions, targets) for name in metrics}


def _best(table: Sequence[Record], score: str) -> str | None:
    """Return the name of the row with the largest score, or None."""
    scored = [row for row in table if row["stopped"] != "not finite" and math.isfinite(row.get(score, math.nan))]
    return max(scored, key=lambda row: row[score])["name"] if scored else None


def _network(features: sherl.Features, data: Data, settings: Settings) -> sherl.SideNetwork:
    """Return an untrained network on such taps."""
    channels = features.channels[-1]
    if features.sizes is not None:
        early = sherl.MTSA.resnet(features.channels, len(features.channels), settings.hidden)
    else:
        early = sherl.MTSA(
            taps=len(features.channels),
            features=features.channels,
            hidden=settings.hidden,
            down="layernorm",
            up_norm="layernorm",
            dropout=DROPOUT,
        )
    late = data.late
    width = late[-1].out_features if late else channels
    if data.classes:
        head = sherl.Classifier(features=width, classes=len(data.classes), pool=settings.pool)
    else:
        head = sherl.Regressor(features=width, outputs=1, pool=settings.pool)
    return sherl.SideNetwork(early=early, late=late, head=head, seed=settings.seed)


@dataclass(frozen=True)
class _Unit:
    """Mean and spread of the numbers to learn, which a network learns best around 0 with spread 1."""

    mean: float
    spread: float

    @classmethod
    def of(cls, targets: Array, task: str) -> _Unit:
        if task == "classification":
            return cls(0.0, 1.0)
        return cls(float(np.mean(targets)), float(np.std(targets)) or 1.0)

    def standardised(self, targets: Array) -> Array:
        if (self.mean, self.spread) == (0.0, 1.0):
            return targets
        return ((targets - self.mean) / self.spread).astype(np.float32)

    def restore(self, network: sherl.SideNetwork) -> None:
        """Let the head, a linear map, give numbers in the unit of the targets again."""
        state = network.state_dict()
        state["head.weight"] = state["head.weight"] * self.spread
        state["head.bias"] = state["head.bias"] * self.spread + self.mean
        network.load_state_dict(state)


def _probe(data: Data, settings: Settings, console: Console) -> Result:
    with Measured() as fitting:
        last = states_of(data.train)[-1:]
        pooled = [selected(one, last).pooled(how="mean") for one in (data.train, data.dev)]
        probe = fit_linear_probe(pooled[0], data.train_targets, settings.task, seed=settings.seed)
    chosen = f"penalty {probe.penalty:g}, features {'standardised' if probe.standardised else 'as they are'}"
    console.say(f"   {chosen}: chosen on a tenth of the training samples")
    scores = scores_of(probe.predict(pooled[1]), data.dev_targets, settings.metrics)
    return Result("linear probe", scores, probe.num_parameters, fitting.seconds, fitting.memory)
