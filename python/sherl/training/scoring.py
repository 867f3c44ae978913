"""Outputs and scores of a network over any number of samples, some at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .. import _core
from .._typing import Array, Integers, Loss, Metric
from ..checks import whole_number
from ..features.rows import offsets_of
from .labelled import read_head_labels, score_outputs
from .metrics import METRICS, default_metrics
from .own_loss import loss_and_gradient
from .progress import PATIENCE, progress_bar

if TYPE_CHECKING:
    from ..network.network import Network
    from .budget import Budget
    from .labelled import Labelled

BATCH_SIZE = 256

Metrics: TypeAlias = str | Metric | Iterable[str | Metric] | Mapping[str, Metric] | None


def batches(samples: int, batch_size: int) -> Iterator[Integers]:
    """Yield the numbers of samples in order, batch by batch."""
    batch_size = whole_number(batch_size, "batch_size", 1)
    for start in range(0, samples, batch_size):
        yield np.arange(start, min(start + batch_size, samples))


def outputs_of(network: Network, features: Any, batch_size: int, budget: Budget | None = None,
               progress: str | None = None) -> Array:
    """Return the outputs of the head, (samples or rows, outputs); `progress` is what a bar says, or None for no bar."""
    offsets = offsets_of(network._output_rows(features.lengths))
    outputs = np.empty((offsets[-1], network.head.out_features), _core.REAL)
    program = network._programs.output()
    with network._programs.bounded(program, budget, features), _bar(progress, len(features)) as bar:
        for index in batches(len(features), batch_size):
            batch = features.batch(index)
            sink = outputs[offsets[index[0]] : offsets[index[-1] + 1]], None
            program.forward(batch.samples, batch.spaces, network._sources(features, batch), [sink])
            bar.update(len(index))
    return outputs


def scores_of(network: Network, labelled: Labelled, metrics: Mapping[str, Metric], batch_size: int,
              budget: Budget | None = None, progress: str | None = None) -> dict[str, float]:
    """Return {"loss": …} and the value of each metric function over labelled samples; `progress` as of `outputs_of`."""
    offsets = offsets_of(network._output_rows(labelled.features.lengths))
    outputs = np.empty((offsets[-1], network.head._evaluated_channels), _core.REAL)
    program = network._programs.evaluation()
    total, losses = labelled.share(), list[float]()
    with network._programs.bounded(program, budget, labelled.features), _bar(progress, len(labelled)) as bar:
        for index in batches(len(labelled), batch_size):
            sink = outputs[offsets[index[0]] : offsets[index[-1] + 1]], None
            losses.append(program.forward(*labelled.batch(index, total), [sink]) or 0.0)
            bar.update(len(index))
    loss, kept = network.head._evaluation(outputs, losses)
    return {"loss": loss, **score_outputs(network.head, metrics, kept, labelled.labels, labelled.layout)}


def own_scores_of(network: Network, labelled: Labelled, metrics: Mapping[str, Metric], loss: Loss, batch_size: int,
                  budget: Budget | None = None, progress: str | None = None) -> dict[str, float]:
    """Return the same with a loss of the user's own: its mean over batches in order, weighted by their samples."""
    samples, head, features = len(labelled), network.head, labelled.features
    rows, losses, kept = network._output_rows(features.lengths), [], []
    program = network._programs.output()
    with network._programs.bounded(program, budget, features), _bar(progress, samples) as bar:
        for index in batches(samples, batch_size):
            batch = features.batch(index)
            outputs = np.empty((rows[index].sum(), head.out_features), _core.REAL)
            program.forward(batch.samples, batch.spaces, network._sources(features, batch), [(outputs, None)])
            lengths = None if head._pooled else rows[index]
            losses.append(len(index) / samples * loss_and_gradient(loss, outputs, labelled.labels[index], lengths)[0])
            kept.append(head._kept(outputs))
            bar.update(len(index))
    scores = {"loss": math.fsum(losses)}
    if metrics:
        labels = read_head_labels(head, labelled.labels, labelled.layout, "validation labels")
        scores.update(score_outputs(head, metrics, np.concatenate(kept), labels, labelled.layout))
    return scores


def _bar(progress: str | None, samples: int) -> Any:
    return progress_bar(progress is not None, samples, progress, delay=PATIENCE, leave=False)


def metric_functions(metrics: Metrics, task: str | None) -> dict[str, Metric]:
    """Return metric functions by name.

    Parameters
    ----------
    metrics : None, str, callable, or a sequence or a dictionary of them
        Names out of `METRICS`, functions (predictions, targets) -> float, or functions by name. None: the task's usual.
    task : {"classification", "regression", "spans"}

    Returns
    -------
    dict of str to callable
    """
    if metrics is None:
        metrics = default_metrics(str(task))
    if isinstance(metrics, str) or callable(metrics):
        metrics = [metrics]
    if isinstance(metrics, dict):
        named = {str(name): function for name, function in metrics.items()}
    else:
        named = {}
        for metric in metrics:
            if isinstance(metric, str) and metric not in METRICS:
                raise ValueError(f"metrics must be among {', '.join(METRICS)}, or functions, got {metric!r}")
            name = metric if isinstance(metric, str) else getattr(metric, "__name__", str(metric))
            named[name] = METRICS[metric] if isinstance(metric, str) else metric
    for name, function in named.items():
        if not callable(function):
            raise TypeError(f"metrics must be functions (predictions, targets) -> float, got {function!r} for {name!r}")
    if "loss" in named:
        raise ValueError("metrics must not be called 'loss', which is always reported")
    return named
