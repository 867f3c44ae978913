"""Outputs and scores of a network over any number of samples, some at a time."""

import math

import numpy as np

from .. import _core
from ..checks import whole_number
from ..features.rows import offsets_of
from .labelled import read_head_labels, score_outputs
from .metrics import METRICS, default_metrics
from .own_loss import loss_and_gradient
from .progress import PATIENCE, progress_bar

BATCH_SIZE = 256


def batches(samples, batch_size):
    """Yield the numbers of samples in order, batch by batch."""
    batch_size = whole_number(batch_size, "batch_size", 1)
    for start in range(0, samples, batch_size):
        yield np.arange(start, min(start + batch_size, samples))


def outputs_of(network, features, batch_size, budget=None, progress=None):
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


def scores_of(network, labelled, metrics, batch_size, budget=None, progress=None):
    """Return {"loss": …} and the value of each metric function over labelled samples; `progress` as of `outputs_of`."""
    offsets = offsets_of(network._output_rows(labelled.features.lengths))
    outputs = np.empty((offsets[-1], network.head._evaluated_channels), _core.REAL)
    program = network._programs.evaluation()
    total, losses = labelled.share(), []
    with network._programs.bounded(program, budget, labelled.features), _bar(progress, len(labelled)) as bar:
        for index in batches(len(labelled), batch_size):
            sink = outputs[offsets[index[0]] : offsets[index[-1] + 1]], None
            losses.append(program.forward(*labelled.batch(index, total), [sink]))
            bar.update(len(index))
    loss, kept = network.head._evaluation(outputs, losses)
    return {"loss": loss, **score_outputs(network.head, metrics, kept, labelled.labels, labelled.layout)}


def own_scores_of(network, labelled, metrics, loss, batch_size, budget=None, progress=None):
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


def _bar(progress, samples):
    return progress_bar(progress is not None, samples, progress, delay=PATIENCE, leave=False)


def metric_functions(metrics, task):
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
        metrics = default_metrics(task)
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
