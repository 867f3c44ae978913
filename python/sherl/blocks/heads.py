"""Heads: a sample's rows to class logits or regression values, with their losses and what they predict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from .. import _core
from .._typing import Array, ArrayLike, Float64s, Integers, Metric, Pooling, Task, Uint16As
from ..checks import flag, one_of, rate, whole_number
from ..features.features import MISSING_POSITIONS, Features, check_own_positions
from ..features.rows import read_positions
from .block import Rows, UnaryBlock

if TYPE_CHECKING:
    from ..features.layout import Layout

__all__ = ["Classifier", "Regressor"]

POOLINGS = ("first", "last", "mean", "max", "position")


class Head(UnaryBlock):
    """What heads share: each sample's rows are pooled, dropped out, and mapped linearly to the outputs."""

    @property
    def _pooled(self) -> bool:
        return True

    def __init__(self, features: int, outputs: int, pool: Pooling, pooler: bool, dropout: float, seed: int) -> None:
        super().__init__(seed)
        self.features = whole_number(features, "features", 1)
        self._outputs = outputs
        self.pool: Pooling | Literal["gpo"] = one_of(pool, "pool", POOLINGS)
        self.pooler = flag(pooler, "pooler")
        self.dropout = rate(dropout, "dropout")

    @property
    def out_features(self) -> int:
        return self._outputs

    def _least_parameters(self) -> int:
        return self.features * (self._outputs + (self.features if self.pooler else 0))

    def _inputs(self) -> list[tuple[str, int]]:
        return [("x", self.features)]

    def _declare_positions(self, graph: _core.Graph) -> list[int]:
        return [graph.indices("positions", _core.SAMPLES)] if self._takes_positions else []

    def _declared(self) -> list[str]:
        return [*super()._declared(), *(["positions"] if self._takes_positions else [])]

    def _build(self, graph: _core.Graph, prefix: str, inputs: Sequence[int]) -> int:
        x, *positions = inputs
        return graph.head(prefix, x, outputs=self._outputs, pooling=cast(Pooling, self.pool), pooler=self.pooler,
                          dropout=self.dropout, positions=positions[0] if self._takes_positions else None)

    def __call__(self, x: ArrayLike | Features, mask: ArrayLike | None = None, *, positions: ArrayLike | None = None,
                 dtype: Uint16As = None) -> Array | Features:
        """Compute the output.

        Parameters
        ----------
        x : array_like, shape (batch, tokens, channels), or Features of one tap
            float32, float64, float16 or bfloat16.
        mask : array_like of bool, int or float, shape (batch, tokens), optional
            1 where a row is meant. Other rows are left out.
        positions : array_like of int, shape (batch,), optional
            With padded arrays and ``pool="position"``: which of its rows that are meant each sample is read from.
        dtype : {None, "bfloat16"}
            How to take uint16.

        Returns
        -------
        numpy.ndarray of float32, shape (batch, outputs)
        """
        return self._forward(self._rows(x, mask, dtype, positions))

    def vjp(self, x: ArrayLike | Features, cotangent: ArrayLike | Features, mask: ArrayLike | None = None, *,
            positions: ArrayLike | None = None, training: bool = False, seed: int = 0,
            dtype: Uint16As = None) -> tuple[Array | Features, dict[str, Array | Features]]:
        """Compute the output and the gradient of its product with a cotangent.

        Parameters
        ----------
        x, mask, positions, dtype
            As for a call.
        cotangent : array_like, shape (batch, outputs)
            Gradient of a scalar with respect to the output.
        training : bool
            Whether dropout acts.
        seed : int
            Of dropout.

        Returns
        -------
        numpy.ndarray of float32, shape (batch, outputs)
            The output.
        dict of str to numpy.ndarray of float32, or Features
            Gradients by parameter name, and ``"x"``.
        """
        return self._gradient(self._rows(x, mask, dtype, positions), cotangent, ("x",), training, seed, dtype)

    def _rows(self, x: ArrayLike | Features, mask: ArrayLike | None, dtype: Uint16As,
              positions: ArrayLike | None = None) -> Rows:
        rows = cast(Rows, super()._rows(x, mask, dtype))
        if isinstance(x, Features):
            check_own_positions(positions)
            positions = x.positions
        if positions is not None:
            positions = read_positions(positions, rows.lengths).reshape(-1, 1)
        rows.positions = self._positions_read(positions)
        return rows

    @property
    def _takes_positions(self) -> bool:
        return self.pool == "position"

    def _positions_read(self, positions: Integers | None) -> Integers | None:
        """Return positions where the head reads them, else None."""
        if not self._takes_positions:
            return None
        if positions is None:
            raise ValueError(MISSING_POSITIONS)
        return positions

    # What a network asks of its head. Labels come as read_labels gives them: one row a sample.

    task: Task | None = None  # "classification", "regression" or "spans"
    _has_loss = True
    # whether labels are read with the layout of the rows, and not with the number of samples alone
    _needs_layout = False
    _loss_each_row = False  # whether the loss has one row for every row of the input, and not one a sample

    def _build_loss(self, graph: _core.Graph, prefix: str, outputs: int) -> int:
        """Add the inputs "labels" and "weights" and the loss of the outputs to a graph."""
        raise NotImplementedError

    def _read_labels(self, labels: Any, samples: Any, name: str) -> Array:
        raise NotImplementedError

    def _columns(self, labels: Array) -> list[Array]:
        """Return the labels as the inputs that `_build_loss` declares before the weights."""
        return [labels]

    def _counts(self, labels: Array) -> Float64s:
        """Return 1 where a row of labels counts, and 0 where its loss is left out."""
        return np.ones(len(labels))

    def _shares(self, labels: Array) -> Float64s:
        """Return by what a row's loss counts in the mean, float64 of shape (samples,)."""
        return np.ones(len(labels))

    def _predicted(self, outputs: Array) -> Array:
        raise TypeError(f"a network with a {type(self).__name__} has no predictions; use forward")

    def _probabilities(self, outputs: Array) -> Array:
        raise TypeError(f"a network with a {type(self).__name__} has no class probabilities; use predict")

    # The same for outputs in the order of the rows, given back in the user's form.

    def _arranged(self, outputs: Array, layout: Layout) -> Any:
        return outputs if self._pooled else layout.matrix(outputs)

    def _predict(self, outputs: Array, layout: Layout) -> Any:
        return self._predicted(outputs)

    def _chances(self, outputs: Array, layout: Layout) -> Any:
        return self._probabilities(outputs)

    def _rows_of(self, lengths: Integers) -> Integers:
        """Return how many output rows each of the samples with so many rows has."""
        return np.ones_like(lengths) if self._pooled else lengths

    @property
    def _evaluated_channels(self) -> int:
        """Channels of what the evaluation program gives for a row."""
        return self.out_features

    def _evaluation(self, outputs: Array, losses: Sequence[float]) -> tuple[float, Array]:
        """Return the loss, and what metrics are computed from, of what the evaluation program gave for all rows."""
        return math.fsum(losses), outputs

    def _kept(self, outputs: Array) -> Array:
        """Return what metrics are computed from."""
        return outputs

    def _scores(self, functions: Mapping[str, Metric], outputs: Array, labels: Array, *layout: Any) -> dict[str, float]:
        """Return the value of each metric function by name; the layout comes where labels were read with it."""
        raise NotImplementedError


class Classifier(Head):
    """Head that classifies samples.

    Parameters
    ----------
    features : int
        Channels of the input.
    classes : int
        Number of classes, two or more (with `multi_label` one or more).
    pool : {"first", "last", "mean", "max", "position"}
        How a sample's rows become one: its first or last row, their mean or maximum, or the row whose number
        `positions` gives with each sample.
    pooler : bool
        Whether a linear map to as many features and tanh come before the output map.
    dropout : float
        Rate before the output map, in training.
    label_smoothing : float
        Share of each target that is spread over all classes.
    class_weights : array_like of float, shape (classes,), optional
        By what the loss of each class counts; the mean over samples is weighted by it too.
    multi_label : bool
        Whether a sample may have any number of the classes. Labels then are 0 or 1 (or between) of shape
        (samples, classes), and the loss is the mean binary cross-entropy.
    seed : int
        Of the first weights, where the block is used alone.
    """

    task = "classification"

    def __init__(self, features: int, classes: int, pool: Pooling = "first", pooler: bool = False, dropout: float = 0.0,
                 label_smoothing: float = 0.0, class_weights: ArrayLike | None = None, multi_label: bool = False, *,
                 seed: int = 0) -> None:
        self.multi_label = flag(multi_label, "multi_label")
        self.classes = whole_number(classes, "classes", 1 if self.multi_label else 2)
        self.label_smoothing = rate(label_smoothing, "label_smoothing")
        self.class_weights = None if class_weights is None else _class_weights(class_weights, self.classes)
        if self.multi_label and (self.label_smoothing or class_weights is not None):
            raise ValueError("label_smoothing and class_weights must be left out with multi_label=True")
        super().__init__(features, self.classes, pool, pooler, dropout, seed)

    @property
    def settings(self) -> dict[str, Any]:
        names = ("features", "classes", "pool", "pooler", "dropout", "label_smoothing", "class_weights", "multi_label")
        settings = {name: getattr(self, name) for name in names}
        if self.class_weights is not None:
            settings["class_weights"] = self.class_weights.tolist()
        return settings

    def _build_loss(self, graph: _core.Graph, prefix: str, outputs: int) -> int:
        if self.multi_label:
            targets = graph.input("labels", _core.SAMPLES, self.classes)
            return graph.binary_cross_entropy(outputs, targets, graph.input("weights", _core.SAMPLES, 1))
        targets = graph.indices("labels", _core.SAMPLES)
        weights = graph.input("weights", _core.SAMPLES, 1)
        class_weights = None
        if self.class_weights is not None:
            class_weights = graph.parameter(prefix + "class_weights", self.class_weights.shape, "frozen",
                                            data=self.class_weights)
        return graph.cross_entropy(outputs, targets, weights, class_weights, self.label_smoothing)

    def _read_labels(self, labels: Any, samples: int, name: str) -> Array:
        if self.multi_label:
            array = _real_labels(labels, (samples, self.classes), name)
            if array.min() < 0 or array.max() > 1:
                raise ValueError(f"{name} must be from 0 to 1 with multi_label=True")
            return array
        array = _label_array(labels, name)
        if array.dtype.kind not in "biu":
            raise TypeError(f"{name} must be whole class numbers, got dtype {array.dtype}")
        if array.shape != (samples,):
            raise ValueError(f"{name} must have shape (samples,) = ({samples},), got {array.shape}")
        if array.min() < 0 or array.max() >= self.classes:
            wrong = array[(array < 0) | (array >= self.classes)][0]
            raise ValueError(f"{name} must be class numbers from 0 to {self.classes - 1}, got {wrong}")
        return np.ascontiguousarray(array, np.int64).reshape(-1, 1)

    def _shares(self, labels: Array) -> Float64s:
        if self.class_weights is None:
            return np.ones(len(labels))
        weights: Float64s = self.class_weights.astype(np.float64)[labels[:, 0]]
        return weights

    def _predicted(self, outputs: Array) -> Array:
        return (outputs > 0).astype(np.int64) if self.multi_label else outputs.argmax(axis=1)

    def _probabilities(self, outputs: Array) -> Array:
        if self.multi_label:
            chances: Array = (0.5 * (1 + np.tanh(0.5 * outputs))).astype(outputs.dtype)
            return chances
        shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        shares: Array = shifted / shifted.sum(axis=1, keepdims=True)
        return shares

    def _scores(self, functions: Mapping[str, Metric], outputs: Array, labels: Array, *layout: Any) -> dict[str, float]:
        targets = (labels > 0.5).astype(np.int64) if self.multi_label else labels
        predicted = self._predicted(outputs).ravel()
        return {name: float(function(predicted, targets.ravel())) for name, function in functions.items()}


class Regressor(Head):
    """Head that predicts numbers, under the mean squared error.

    Parameters
    ----------
    features : int
        Channels of the input.
    outputs : int
        Numbers a sample.
    pool : {"first", "last", "mean", "max", "position"}
        How a sample's rows become one: its first or last row, their mean or maximum, or the row whose number
        `positions` gives with each sample.
    pooler : bool
        Whether a linear map to as many features and tanh come before the output map.
    dropout : float
        Rate before the output map, in training.
    seed : int
        Of the first weights, where the block is used alone.
    """

    task = "regression"

    def __init__(self, features: int, outputs: int = 1, pool: Pooling = "first", pooler: bool = False,
                 dropout: float = 0.0, *, seed: int = 0) -> None:
        self.outputs = whole_number(outputs, "outputs", 1)
        super().__init__(features, self.outputs, pool, pooler, dropout, seed)

    @property
    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("features", "outputs", "pool", "pooler", "dropout")}

    def _build_loss(self, graph: _core.Graph, prefix: str, outputs: int) -> int:
        targets = graph.input("labels", _core.SAMPLES, self.outputs)
        return graph.squared_error(outputs, targets, graph.input("weights", _core.SAMPLES, 1))

    def _read_labels(self, labels: Any, samples: int, name: str) -> Array:
        array = _label_array(labels, name)
        if self.outputs == 1 and array.shape == (samples,):
            array = array.reshape(samples, 1)
        return _real_labels(array, (samples, self.outputs), name)

    def _predicted(self, outputs: Array) -> Array:
        return outputs[:, 0] if self.outputs == 1 else outputs

    def _scores(self, functions: Mapping[str, Metric], outputs: Array, labels: Array, *layout: Any) -> dict[str, float]:
        columns = range(self.outputs)
        return {
            name: float(np.mean([function(outputs[:, column], labels[:, column]) for column in columns]))
            for name, function in functions.items()
        }


def _label_array(labels: Any, name: str) -> Array:
    try:
        return np.asarray(labels)
    except Exception as error:
        raise TypeError(f"{name} cannot be read as an array: {error}") from error


def _real_labels(labels: Any, shape: tuple[int, ...], name: str) -> Array:
    array = _label_array(labels, name)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be numbers, got dtype {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, _core.REAL)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array


def _class_weights(values: ArrayLike, classes: int) -> Array:
    array = _real_labels(values, (classes,), "class_weights")
    if array.min() < 0 or array.max() == 0:
        raise ValueError("class_weights must be 0 or more, and not all 0")
    return np.array(array)
