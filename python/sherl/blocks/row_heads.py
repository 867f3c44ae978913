"""Heads with an output for every row: classes of tokens, and spans of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from .._typing import Array, ArrayLike, Float64s, Integers, Metric, Task
from ..checks import rate, whole_number
from .heads import Head, _class_weights

if TYPE_CHECKING:
    from ..features.layout import Layout

__all__ = ["SpanPredictor", "TokenClassifier"]

IGNORED = -100


class RowHead(Head):
    """A linear map of every row."""

    _needs_layout = True

    @property
    def _pooled(self) -> bool:
        return False

    def __init__(self, features: int, outputs: int, dropout: float, seed: int) -> None:
        super().__init__(features, outputs, "first", False, dropout, seed)

    def _build(self, graph: _core.Graph, prefix: str, inputs: Sequence[int]) -> int:
        return graph.head(prefix, inputs[0], outputs=self._outputs, dropout=self.dropout, each_row=True)


class TokenClassifier(RowHead):
    """Head that classifies every row (token).

    Labels are class numbers in the form of the taps: of shape (batch, tokens) beside padded arrays, one array a sample
    beside `Features`. Rows with the label -100 and rows that the mask leaves out count nothing; the loss is the mean
    cross-entropy over the other rows of the batch, as PyTorch's CrossEntropyLoss takes it. Predictions come in the same
    form, with -100 where the mask leaves rows out.

    Parameters
    ----------
    features : int
        Channels of the input.
    classes : int
        Number of classes, two or more.
    dropout : float
        Rate before the map, in training.
    label_smoothing : float
        Share of each target that is spread over all classes.
    class_weights : array_like of float, shape (classes,), optional
        By what the loss of each class counts; the mean over rows is weighted by it too.
    seed : int
        Of the first weights, where the block is used alone.
    """

    task: Task = "classification"
    _loss_each_row = True

    def __init__(self, features: int, classes: int, dropout: float = 0.0, label_smoothing: float = 0.0,
                 class_weights: ArrayLike | None = None, *, seed: int = 0) -> None:
        self.classes = whole_number(classes, "classes", 2)
        self.label_smoothing = rate(label_smoothing, "label_smoothing")
        self.class_weights = None if class_weights is None else _class_weights(class_weights, self.classes)
        super().__init__(features, self.classes, dropout, seed)

    @property
    def settings(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in ("features", "classes", "dropout", "label_smoothing")}
        weights = self.class_weights
        return {**settings, "class_weights": None if weights is None else weights.tolist()}

    def _build_loss(self, graph: _core.Graph, prefix: str, outputs: int) -> int:
        rows = graph.value_space(outputs)
        targets, weights = graph.indices("labels", rows), graph.input("weights", rows, 1)
        class_weights = None
        if self.class_weights is not None:
            class_weights = graph.parameter(prefix + "class_weights", self.class_weights.shape, "frozen",
                                            data=self.class_weights)
        return graph.cross_entropy(outputs, targets, weights, class_weights, self.label_smoothing)

    def _read_labels(self, labels: Any, layout: Layout, name: str) -> Array:
        array = layout.read(labels, name)
        if array.dtype.kind not in "biu":
            raise TypeError(f"{name} must be whole class numbers, got dtype {array.dtype}")
        if array.ndim != 1:
            raise ValueError(f"{name} must hold one class number a row, got shape {array.shape[1:]} for each")
        wrong = array[((array < 0) & (array != IGNORED)) | (array >= self.classes)]
        if len(wrong):
            raise ValueError(f"{name} must be class numbers from 0 to {self.classes - 1}, or {IGNORED} for rows that "
                             f"do not count, got {wrong[0]}")
        if (array == IGNORED).all():
            raise ValueError(f"{name} must have a row that counts, got {IGNORED} alone")
        return np.ascontiguousarray(array, np.int64).reshape(-1, 1)

    def _columns(self, labels: Array) -> list[Array]:
        return [np.maximum(labels, 0)]

    def _counts(self, labels: Array) -> Float64s:
        counts: Float64s = (labels[:, 0] != IGNORED).astype(np.float64)
        return counts

    def _shares(self, labels: Array) -> Float64s:
        if self.class_weights is None:
            return np.ones(len(labels))
        weights: Float64s = self.class_weights.astype(np.float64)[np.maximum(labels[:, 0], 0)]
        return weights

    def _predict(self, outputs: Array, layout: Layout) -> Any:
        return layout.given(outputs.argmax(axis=1), IGNORED)

    def _chances(self, outputs: Array, layout: Layout) -> Any:
        shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return layout.matrix(shifted / shifted.sum(axis=1, keepdims=True))

    def _scores(self, functions: Mapping[str, Metric], outputs: Array, labels: Array, *layout: Any) -> dict[str, float]:
        counted = labels[:, 0] != IGNORED
        predicted, labels = outputs.argmax(axis=1)[counted], labels[counted, 0]
        return {name: float(function(predicted, labels)) for name, function in functions.items()}


class SpanPredictor(RowHead):
    """Head that finds a span of a sample's rows, as extractive question answering does.

    Every row gets a logit for being the first of the span and one for being the last. The loss of a sample is the mean
    of two cross-entropies, each with a softmax over the sample's rows. Labels are whole numbers of shape (samples, 2):
    first and last row of the span; beside padded arrays they count all positions, those that the mask leaves out
    included, and must not be one of those. For questions without an answer, by custom both are the position of the
    first token.

    Predictions are the span with the largest sum of logits among those that do not end before they begin, and are no
    longer than `max_length`.

    Parameters
    ----------
    features : int
        Channels of the input.
    dropout : float
        Rate before the map, in training.
    max_length : int or None
        Most rows of a predicted span.
    seed : int
        Of the first weights, where the block is used alone.
    """

    task = "spans"

    def __init__(self, features: int, dropout: float = 0.0, max_length: int | None = None, *, seed: int = 0) -> None:
        self.max_length = None if max_length is None else whole_number(max_length, "max_length", 1)
        super().__init__(features, 2, dropout, seed)

    @property
    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("features", "dropout", "max_length")}

    def _build_loss(self, graph: _core.Graph, prefix: str, outputs: int) -> int:
        ends = [graph.indices(name, _core.SAMPLES) for name in ("first", "last")]
        return graph.row_cross_entropy(outputs, ends, graph.input("weights", _core.SAMPLES, 1))

    def _read_labels(self, labels: Any, layout: Layout, name: str) -> Array:
        array = np.asarray(labels)
        if array.dtype.kind not in "iu":
            raise TypeError(f"{name} must be whole row numbers, got dtype {array.dtype}")
        if array.shape != (layout.samples, 2):
            raise ValueError(f"{name} must have shape (samples, 2) = {(layout.samples, 2)}, got {array.shape}")
        array = array.astype(np.int64)
        if (array[:, 0] > array[:, 1]).any():
            number = int(np.argmax(array[:, 0] > array[:, 1]))
            raise ValueError(f"{name} must not end before they begin, got {array[number]} for sample {number}")
        return layout.row_numbers(array, name)

    def _columns(self, labels: Array) -> list[Array]:
        return [labels[:, column : column + 1].copy() for column in (0, 1)]

    def _predict(self, outputs: Array, layout: Layout) -> Any:
        return layout.columns(self._spans(outputs, layout))

    def _spans(self, outputs: Array, layout: Layout) -> Integers:
        spans = np.empty((layout.samples, 2), np.int64)
        for number, rows in enumerate(np.split(outputs, layout.offsets[1:-1])):
            sums = rows[:, :1] + rows[:, 1]
            possible = np.triu(np.ones(sums.shape, bool))
            if self.max_length is not None:
                possible &= np.tri(len(sums), len(sums), self.max_length - 1, dtype=bool)
            spans[number] = np.unravel_index(np.argmax(np.where(possible, sums, -np.inf)), sums.shape)
        return spans

    def _scores(self, functions: Mapping[str, Metric], outputs: Array, labels: Array, *layout: Any) -> dict[str, float]:
        spans = self._spans(outputs, *layout)
        return {name: float(function(spans, labels)) for name, function in functions.items()}
