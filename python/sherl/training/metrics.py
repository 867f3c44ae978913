"""Scores of predictions against targets, in plain NumPy: accuracy, F1, Matthews, Pearson and Spearman correlation."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._typing import Array, ArrayLike, Bools, Float64s, Integers

__all__ = [
    "METRICS",
    "TASK_METRICS",
    "accuracy",
    "default_metrics",
    "exact_match",
    "f1",
    "matthews_correlation",
    "pearson",
    "retrieval",
    "span_f1",
    "spearman",
]


def accuracy(predictions: ArrayLike, targets: ArrayLike) -> float:
    """Share of predictions that equal their target.

    Parameters
    ----------
    predictions, targets : array_like of int, shape (samples,)
        Class ids.

    Returns
    -------
    float
        Between 0 and 1.
    """
    predictions, targets = _classes(predictions, targets)
    return float(np.mean(predictions == targets))


def f1(predictions: ArrayLike, targets: ArrayLike) -> float:
    """F1 score: the harmonic mean of precision and recall.

    Where all ids are 0 or 1 it is the score of class 1. Otherwise it is the mean over the classes that occur in either
    array of each class's score (macro F1).

    Parameters
    ----------
    predictions, targets : array_like of int, shape (samples,)
        Class ids.

    Returns
    -------
    float
        Between 0 and 1; nan in the binary case where neither array holds a 1.
    """
    confusion, ids = count_confusion(predictions, targets)
    in_both = np.diagonal(confusion)
    in_either = confusion.sum(axis=0) + confusion.sum(axis=1)
    scores = 2.0 * in_both / in_either
    if set(ids) <= {0, 1}:
        return float(scores[ids.index(1)]) if 1 in ids else float("nan")
    return float(np.mean(scores))


def matthews_correlation(predictions: ArrayLike, targets: ArrayLike) -> float:
    """Matthews correlation coefficient, for any number of classes (Gorodkin, 2004).

    Parameters
    ----------
    predictions, targets : array_like of int, shape (samples,)
        Class ids.

    Returns
    -------
    float
        Between -1 and 1; nan where the predictions or the targets are all one class.
    """
    confusion, _ = count_confusion(predictions, targets)
    samples = confusion.sum()
    if confusion.sum(axis=0).max() == samples or confusion.sum(axis=1).max() == samples:
        return float("nan")
    # Shares, not counts: products of counts would overflow for large sets.
    predicted, true = confusion.sum(axis=0) / samples, confusion.sum(axis=1) / samples
    covariance = np.trace(confusion) / samples - predicted @ true
    return _bounded(covariance / np.sqrt((1.0 - predicted @ predicted) * (1.0 - true @ true)))


def pearson(predictions: ArrayLike, targets: ArrayLike) -> float:
    """Pearson correlation coefficient.

    Parameters
    ----------
    predictions, targets : array_like of float, shape (samples,)
        Values; they are widened to float64.

    Returns
    -------
    float
        Between -1 and 1; nan where either array is constant (as one sample always is) or holds a value that is not
        finite.
    """
    predictions, targets = _values(predictions, targets)
    if not (np.isfinite(predictions).all() and np.isfinite(targets).all()):
        return float("nan")
    if _constant(predictions) or _constant(targets):
        return float("nan")
    predictions, targets = _centred(predictions), _centred(targets)
    return _bounded(predictions @ targets / (np.linalg.norm(predictions) * np.linalg.norm(targets)))


def spearman(predictions: ArrayLike, targets: ArrayLike) -> float:
    """Spearman rank correlation coefficient: Pearson's over ranks, where ties get the mean of their ranks.

    Parameters
    ----------
    predictions, targets : array_like of float, shape (samples,)
        Values; they are widened to float64.

    Returns
    -------
    float
        Between -1 and 1; nan where either array is constant (as one sample always is) or holds a nan.
    """
    predictions, targets = _values(predictions, targets)
    if np.isnan(predictions).any() or np.isnan(targets).any():
        return float("nan")
    return pearson(_ranks(predictions), _ranks(targets))


def exact_match(predictions: ArrayLike, targets: ArrayLike) -> float:
    """Share of spans that are predicted whole.

    Parameters
    ----------
    predictions, targets : array_like of int, shape (samples, 2)
        First and last row.

    Returns
    -------
    float
        Between 0 and 1.
    """
    predictions, targets = _spans(predictions, targets)
    return float(np.mean((predictions == targets).all(axis=1)))


def span_f1(predictions: ArrayLike, targets: ArrayLike) -> float:
    """Mean over the samples of the F1 score of the rows in a span: twice the rows in both, over the rows of both.

    Parameters
    ----------
    predictions, targets : array_like of int, shape (samples, 2)
        First and last row.

    Returns
    -------
    float
        Between 0 and 1.
    """
    predictions, targets = _spans(predictions, targets)
    first, last = np.maximum(predictions[:, 0], targets[:, 0]), np.minimum(predictions[:, 1], targets[:, 1])
    rows = np.diff(predictions, axis=1) + np.diff(targets, axis=1) + 2
    return float(np.mean(2.0 * np.maximum(last - first + 1, 0) / rows[:, 0]))


def retrieval(similarity: ArrayLike, pairs: ArrayLike | None = None) -> dict[str, float]:
    """How well matches are found by similarity, in both directions.

    Parameters
    ----------
    similarity : array_like of float, shape (a, b)
        Of each item of one kind with each of the other; larger is nearer.
    pairs : array_like of int, shape (pairs, 2), optional
        Numbers (a, b) of the items that match; each item may be in several. Row i and column i match when None.

    Returns
    -------
    dict of str to float
        ``"a_to_b_r1"``, ``"a_to_b_r5"``, ``"a_to_b_r10"``: percentage of items of the first kind with a match among the
        1, 5, 10 nearest of the other; ``"a_to_b_median_rank"``: the median over them of the best match's rank, from 1;
        the same for ``"b_to_a"``; and ``"rsum"``, the sum of the six percentages. A match ranks behind all items that
        are not matches and equally near. Items without a match are left out.
    """
    similarity = np.asarray(similarity)
    if similarity.ndim != 2 or similarity.size == 0 or similarity.dtype.kind not in "biuf":
        raise ValueError(f"similarity must be numbers of shape (a, b), got {similarity.dtype} of {similarity.shape}")
    if np.isnan(similarity).any():
        raise ValueError("similarity must not hold nan")
    matches = _matches(pairs, similarity.shape)
    scores = {}
    for name, values, wanted in (("a_to_b", similarity, matches), ("b_to_a", similarity.T, matches.T)):
        values, wanted = values[wanted.any(axis=1)], wanted[wanted.any(axis=1)]
        best = np.where(wanted, values.astype(np.float64), -np.inf).max(axis=1, keepdims=True)
        ranks = 1 + np.sum((values >= best) & ~wanted, axis=1)
        scores.update({f"{name}_r{count}": 100 * float(np.mean(ranks <= count)) for count in (1, 5, 10)})
        scores[f"{name}_median_rank"] = float(np.median(ranks))
    return {**scores, "rsum": sum(value for name, value in scores.items() if not name.endswith("rank"))}


METRICS = {
    "accuracy": accuracy,
    "exact_match": exact_match,
    "f1": f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "span_f1": span_f1,
    "spearman": spearman,
}
"""Metric functions of (predictions, targets) by name."""

TASK_METRICS = {
    "classification": ("accuracy", "f1", "matthews_correlation"),
    "regression": ("pearson", "spearman"),
    "spans": ("exact_match", "span_f1"),
    "language": ("accuracy",),
}
"""Names of the metrics that suit each task."""

_DEFAULTS = {"classification": ("accuracy", "f1"), "regression": ("pearson", "spearman"),
             "spans": ("exact_match", "span_f1"), "language": ("accuracy",)}


def default_metrics(task: str) -> tuple[str, ...]:
    """Names of the metrics that are reported for a task when none are asked for.

    Parameters
    ----------
    task : {"classification", "regression", "spans", "language"}

    Returns
    -------
    tuple of str
        Keys of `METRICS`; the first is the one to rank by.
    """
    if task not in _DEFAULTS:
        raise ValueError(f"task must be 'classification', 'regression', 'spans' or 'language', got {task!r}")
    return _DEFAULTS[task]


def _classes(predictions: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
    return _paired(predictions, targets, "biu", "integer class ids")


def _values(predictions: ArrayLike, targets: ArrayLike) -> tuple[Float64s, Float64s]:
    predictions, targets = _paired(predictions, targets, "biuf", "numbers")
    return predictions.astype(np.float64), targets.astype(np.float64)


def _spans(predictions: ArrayLike, targets: ArrayLike) -> tuple[Integers, Integers]:
    pair = np.asarray(predictions), np.asarray(targets)
    for name, values in zip(("predictions", "targets"), pair):
        if values.ndim != 2 or values.size == 0 or values.shape[1] != 2:
            raise ValueError(f"{name} must have shape (samples, 2) with at least one sample, got {values.shape}")
        if values.dtype.kind not in "iu":
            raise TypeError(f"{name} must hold integer row numbers, got dtype {values.dtype}")
        if (values[:, 0] > values[:, 1]).any():
            raise ValueError(f"{name} must not end before they begin")
    if len(pair[0]) != len(pair[1]):
        raise ValueError(f"predictions and targets must be equally many, got {len(pair[0])} and {len(pair[1])}")
    return pair[0].astype(np.int64), pair[1].astype(np.int64)


def _matches(pairs: ArrayLike | None, shape: tuple[int, ...]) -> Bools:
    """Return which (row, column) are pairs, a bool array."""
    matches = np.zeros(shape, bool)
    if pairs is None:
        if shape[0] != shape[1]:
            raise ValueError("pairs must be given where the two kinds are not equally many, "
                             f"got {shape[0]} and {shape[1]}")
        np.fill_diagonal(matches, True)
        return matches
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.size == 0 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError(f"pairs must be whole numbers of shape (pairs, 2), got {pairs.dtype} of shape {pairs.shape}")
    if (pairs < 0).any() or (pairs >= shape).any():
        raise ValueError(f"pairs must be numbers below {shape[0]} and {shape[1]}, got {pairs.max(axis=0).tolist()}")
    matches[pairs[:, 0], pairs[:, 1]] = True
    return matches


def _paired(predictions: ArrayLike, targets: ArrayLike, kinds: str, expected: str) -> tuple[Array, Array]:
    pair = np.asarray(predictions), np.asarray(targets)
    for name, values in zip(("predictions", "targets"), pair):
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"{name} must have shape (samples,) with at least one sample, got {values.shape}")
        if values.dtype.kind not in kinds:
            raise TypeError(f"{name} must hold {expected}, got dtype {values.dtype}")
    if pair[0].size != pair[1].size:
        raise ValueError(f"predictions and targets must be equally many, got {pair[0].size} and {pair[1].size}")
    return pair


def count_confusion(predictions: ArrayLike, targets: ArrayLike) -> tuple[Integers, list[int]]:
    """Return the counts by (target, prediction), and the sorted ids that occur in either."""
    predictions, targets = (values.tolist() for values in _classes(predictions, targets))
    ids = sorted({int(number) for number in predictions + targets})
    index = {number: place for place, number in enumerate(ids)}
    counts = np.zeros((len(ids), len(ids)), dtype=np.int64)
    np.add.at(counts, ([index[number] for number in targets], [index[number] for number in predictions]), 1)
    return counts, ids


def _constant(values: Array) -> bool:
    return bool((values == values[0]).all())


def _centred(values: Float64s) -> Float64s:
    # Scaled by powers of two alone, which is exact, so that neither the mean nor the norm overflows or vanishes.
    values = np.ldexp(values, -np.frexp(np.abs(values).max())[1])
    values = values - values.mean()
    scaled: Float64s = np.ldexp(values, -np.frexp(np.abs(values).max())[1])
    return scaled


def _ranks(values: Float64s) -> Float64s:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[index.reshape(-1)]


def _bounded(value: Any) -> float:
    return float(np.clip(value, -1.0, 1.0))
