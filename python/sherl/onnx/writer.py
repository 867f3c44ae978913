"""A graph of ONNX under construction: nodes named one after the other, and the maps that blocks are made of."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from .._typing import Array, ArrayLike, StateDict

OPSET, IR_VERSION = 18, 8

Operand: TypeAlias = ArrayLike  # text is the name of a value


class Writer:
    """Nodes and constants of a graph. Values are names.

    Parameters
    ----------
    helper, numpy_helper
        The modules of the onnx package.
    """

    def __init__(self, helper: Any, numpy_helper: Any) -> None:
        self._helper, self._numpy_helper = helper, numpy_helper
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._names = 0

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return its output."""
        return self.split(kind, *inputs, outputs=1, **attributes)[0]

    def split(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node and return its outputs."""
        self._names += 1
        names = [f"{kind}_{self._names}_{number}" if outputs > 1 else f"{kind}_{self._names}"
                 for number in range(outputs)]
        self.nodes.append(self._helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def constant(self, values: ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        """Add a constant and return its name."""
        self._names += 1
        name = f"constant_{self._names}"
        self.constants.append(self._numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def whole(self, *values: int) -> str:
        """Return whole numbers, as shapes and axes are given."""
        return self.constant(values, np.int64)

    # Arithmetic; numbers stand for constants.

    def _operand(self, value: Operand) -> str:
        return value if isinstance(value, str) else self.constant(value)

    def add(self, a: Operand, b: Operand) -> str:
        return self.node("Add", self._operand(a), self._operand(b))

    def subtract(self, a: Operand, b: Operand) -> str:
        return self.node("Sub", self._operand(a), self._operand(b))

    def multiply(self, a: Operand, b: Operand) -> str:
        return self.node("Mul", self._operand(a), self._operand(b))

    def divide(self, a: Operand, b: Operand) -> str:
        return self.node("Div", self._operand(a), self._operand(b))

    def where(self, condition: str, a: Operand, b: Operand) -> str:
        return self.node("Where", condition, self._operand(a), self._operand(b))

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def sum(self, x: str, axis: int, keep: bool = False) -> str:
        return self.node("ReduceSum", x, self.whole(axis), keepdims=int(keep))

    def unsqueeze(self, x: str, axis: int) -> str:
        return self.node("Unsqueeze", x, self.whole(axis))

    def squeeze(self, x: str, axis: int) -> str:
        return self.node("Squeeze", x, self.whole(axis))

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape; 0 keeps a length, -1 is what is left."""
        return self.node("Reshape", x, self.whole(*shape))

    def transpose(self, x: str, *order: int) -> str:
        return self.node("Transpose", x, perm=order)

    def cast(self, x: str, kind: str) -> str:
        codes = {"float32": self._helper.np_dtype_to_tensor_dtype(np.dtype(np.float32)),
                 "float64": self._helper.np_dtype_to_tensor_dtype(np.dtype(np.float64)),
                 "int64": self._helper.np_dtype_to_tensor_dtype(np.dtype(np.int64))}
        return self.node("Cast", x, to=codes[kind])

    def length(self, x: str, axis: int) -> str:
        """Return the length of an axis, int64 of shape (1,)."""
        return self.node("Shape", x, start=axis, end=axis + 1)

    def activate(self, x: str, kind: str) -> str:
        """Apply an activation of transformer layers."""
        if kind in ("relu", "tanh"):
            return self.node(kind.capitalize(), x)
        if kind in ("silu", "quick_gelu"):
            slope = x if kind == "silu" else self.multiply(x, 1.702)
            return self.multiply(x, self.node("Sigmoid", slope))
        if kind == "gelu":
            inner = self.node("Erf", self.multiply(x, math.sqrt(0.5)))
        else:
            cube = self.multiply(self.multiply(x, x), x)
            inner = self.node("Tanh", self.multiply(self.add(x, self.multiply(cube, 0.044715)), math.sqrt(2 / math.pi)))
        return self.multiply(self.multiply(x, 0.5), self.add(inner, 1.0))


class Weights:
    """The weights of one block, and the maps made of them."""

    def __init__(self, writer: Writer, weights: StateDict) -> None:
        self.writer, self._weights = writer, weights

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def array(self, name: str) -> Array:
        return self._weights[name]

    def __getitem__(self, name: str) -> str:
        return self.writer.constant(self._weights[name])

    def linear(self, place: str, x: str) -> str:
        prefix = f"{place}." if place else ""
        y = self.writer.node("MatMul", x, self.writer.constant(self._weights[f"{prefix}weight"].T))
        return self.writer.add(y, self[f"{prefix}bias"]) if f"{prefix}bias" in self else y

    def layer_norm(self, place: str, x: str, eps: float) -> str:
        prefix = f"{place}." if place else ""
        bias = [self[f"{prefix}bias"]] if f"{prefix}bias" in self else []
        return self.writer.node("LayerNormalization", x, self[f"{prefix}weight"], *bias, axis=-1, epsilon=eps)

    def rms_norm(self, place: str, x: str, eps: float) -> str:
        writer = self.writer
        mean = writer.node("ReduceMean", writer.multiply(x, x), writer.whole(-1), keepdims=1)
        root = writer.node("Sqrt", writer.add(mean, eps))
        return writer.multiply(writer.divide(x, root), self[f"{place}.weight" if place else "weight"])

    def batch_norm(self, place: str, x: str, eps: float) -> str:
        """With the running statistics."""
        mean, variance, weight, bias = (
            self._weights[f"{place}.{leaf}"].astype(np.float64)
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        scale = weight / np.sqrt(variance + eps)
        return self.writer.add(self.writer.multiply(x, scale), bias - mean * scale)

    def convolution(self, place: str, x: str, stride: int = 1, padding: int = 0) -> str:
        weight = self._weights[f"{place}.weight"]
        return self.writer.node("Conv", x, self.writer.constant(weight), self[f"{place}.bias"],
                                kernel_shape=weight.shape[2:], strides=[stride] * 2, pads=[padding] * 4)
