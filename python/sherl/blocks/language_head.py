"""The head of language models: a frozen map of every row to the words of a vocabulary."""

import hashlib

import numpy as np

from .. import _core
from ..checks import real_number
from .row_heads import IGNORED, TokenClassifier

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

    task = "language"

    def __init__(self, weight, scale=1.0, label_smoothing=0.0):
        self._weight = _read_weight(weight)
        words, features = self._weight.shape
        self.scale = real_number(scale, "scale", above=0.0)
        self._factors = np.full(features, self.scale, _core.REAL)
        self._fingerprint = None
        super().__init__(features, words, label_smoothing=label_smoothing)

    @property
    def settings(self):
        return {"words": self.classes, "scale": self.scale, "label_smoothing": self.label_smoothing}

    @property
    def fingerprint(self):
        """SHA-256 of the weight and the scale, in hexadecimal."""
        if self._fingerprint is None:
            digest = hashlib.sha256(repr((self._weight.shape, self.scale)).encode())
            digest.update(self._weight)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    @property
    def trainable(self):
        return False

    @property
    def _is_frozen(self):
        return True

    def _frozen_count(self):
        return self._weight.size

    def _least_parameters(self):
        return 0

    def __reduce__(self):
        return type(self), (self._weight, self.scale, self.label_smoothing)

    def __deepcopy__(self, memo):
        return self  # it never changes

    def _enter(self, graph, prefix, x):
        """Return the scaled rows and the table."""
        table = graph.parameter(prefix + "weight", self._weight.shape, "frozen", data=self._weight)
        if self.scale != 1:
            factors = graph.parameter(prefix + "scale", self._factors.shape, "frozen", data=self._factors)
            x = graph.scale_channels(x, factors)
        return x, table

    def _build(self, graph, prefix, inputs, bfloat16=False):
        x, table = self._enter(graph, prefix, inputs[0])
        return graph.linear(x, table, bfloat16=bfloat16)

    def _build_loss(self, graph, prefix, x, best=False, bfloat16=False):
        """Add the loss of the rows of x, in place of that of their logits; with `best` the best word beside it."""
        rows = graph.value_space(x)
        targets, weights = graph.indices("labels", rows), graph.input("weights", rows, 1)
        x, table = self._enter(graph, prefix, x)
        return graph.vocabulary_cross_entropy(x, targets, weights, table, label_smoothing=self.label_smoothing,
                                              best=best, bfloat16=bfloat16)

    def _read_labels(self, labels, layout, name):
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

    _evaluated_channels = 2

    def _evaluation(self, outputs, losses):
        return float(outputs[:, 0].sum(dtype=np.float64)), outputs[:, 1:]

    def _kept(self, outputs):
        return outputs.argmax(axis=1).reshape(-1, 1)

    def _scores(self, functions, outputs, labels, layout):
        counted = labels[:, 0] != IGNORED
        predicted, labels = outputs[counted, 0].astype(np.int64), labels[counted, 0]
        return {name: float(function(predicted, labels)) for name, function in functions.items()}


def _read_weight(weight):
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
