"""The head of language models: a frozen map of every row to the words of a vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from .._typing import Array, ArrayLike, Metric, Task
from ..checks import real_number
from .row_heads import IGNORED, TokenClassifier

if TYPE_CHECKING:
    from ..features.layout import Layout

__all__ = ["LanguageHead"]


class LanguageHead(TokenClassifier):
    """Frozen map of every row to a vocabulary, with the cross-entropy over it.

    The logits of a batch never exist at one time, neither in training nor in evaluation. Labels are as of
    `TokenClassifier`; those that are -100 count nothing.

    Parameters
    ----------
    weight : array_like, shape (words, features)
        Kept where it is float32 and C-contiguous; it must not change while it is in use.
    scale : float
        What rows are multiplied by before the map.
    label_smoothing : float
        Share of each target that is spread over all words.
    """

    task: Task = "language"

    def __init__(self, weight: ArrayLike, scale: float = 1.0, label_smoothing: float = 0.0) -> None:
        self._weight = _read_weight(weight)
        words, features = self._weight.shape
        self.scale = real_number(scale, "scale", above=0.0)
        self._factors = np.full(features, self.scale, _core.REAL)
        self._fingerprint: str | None = None
        super().__init__(features, words, label_smoothing=label_smoothing)

    @property
    def settings(self) -> dict[str, Any]:
        return {"words": self.classes, "scale": self.scale, "label_smoothing": self.label_smoothing}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weight and the scale, in hexadecimal."""
        if self._fingerprint is None:
            digest = hashlib.sha256(repr((self._weight.shape, self.scale)).encode())
            digest.update(self._weight)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    @property
    def trainable(self) -> bool:
        return False

    @property
    def _is_frozen(self) -> bool:
        return True

    def _frozen_count(self) -> int:
        return self._weight.size

    def _least_parameters(self) -> int:
        return 0

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._weight, self.scale, self.label_smoothing)

    def __deepcopy__(self, memo: dict[int, Any]) -> LanguageHead:
        return self  # it never changes

    def _enter(self, graph: _core.Graph, prefix: str, x: int) -> tuple[int, int]:
        """Return the scaled rows and the table."""
        table = graph.parameter(prefix + "weight", self._weight.shape, "frozen", data=self._weight)
        if self.scale != 1:
            factors = graph.parameter(prefix + "scale", self._factors.shape, "frozen", data=self._factors)
            x = graph.scale_channels(x, factors)
        return x, table

    def _build(self, graph: _core.Graph, prefix: str, inputs: Sequence[int], bfloat16: bool = False) -> int:
        x, table = self._enter(graph, prefix, inputs[0])
        return graph.linear(x, table, bfloat16=bfloat16)

    def _build_loss(self, graph: _core.Graph, prefix: str, x: int, best: bool = False, bfloat16: bool = False) -> int:
        """Add the loss of the rows of x, in place of that of their logits; with `best` the best word beside it."""
        rows = graph.value_space(x)
        targets, weights = graph.indices("labels", rows), graph.input("weights", rows, 1)
        x, table = self._enter(graph, prefix, x)
        return graph.vocabulary_cross_entropy(x, targets, weights, table, label_smoothing=self.label_smoothing,
                                              best=best, bfloat16=bfloat16)

    def _read_labels(self, labels: Any, layout: Layout, name: str) -> Array:
        """Read one array a sample, or a matrix (samples, any) padded with -100."""
        if isinstance(labels, np.ndarray) and labels.ndim == 2 and len(labels) == layout.samples:
            beyond = np.arange(labels.shape[1]) >= layout.lengths[:, None]
            wrong = (beyond & (labels != IGNORED)).any(axis=1)
            if wrong.any():
                number = wrong.argmax()
                rows = layout.lengths[number]
                raise ValueError(f"{name} of sample {number} must be {IGNORED} beyond its {rows} decoder rows")
            labels = [row[:length] for row, length in zip(labels, layout.lengths)]
        return super()._read_labels(labels, layout, name)

    # What evaluation gives for a row: its loss and the best word.

    @property
    def _evaluated_channels(self) -> int:
        return 2

    def _evaluation(self, outputs: Array, losses: Sequence[float]) -> tuple[float, Array]:
        return float(outputs[:, 0].sum(dtype=np.float64)), outputs[:, 1:]

    def _kept(self, outputs: Array) -> Array:
        best: Array = outputs.argmax(axis=1).reshape(-1, 1)
        return best

    def _scores(self, functions: Mapping[str, Metric], outputs: Array, labels: Array, *layout: Any) -> dict[str, float]:
        counted = labels[:, 0] != IGNORED
        predicted, labels = outputs[counted, 0].astype(np.int64), labels[counted, 0]
        return {name: float(function(predicted, labels)) for name, function in functions.items()}


def _read_weight(weight: ArrayLike) -> Array:
    try:
        array = np.asarray(weight)
    except Exception as error:
        raise TypeError(f"lm_head cannot be read as an array: {error}") from error
    if array.dtype.kind != "f":
        raise TypeError(f"lm_head must be an array of reals, got dtype {array.dtype}")
    if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] == 0:
        raise ValueError(f"lm_head must have shape (words, features) with two words or more, got {array.shape}")
    array = np.ascontiguousarray(array, _core.REAL)
    if not np.isfinite(array).all():
        raise ValueError("lm_head must be finite")
    return array
