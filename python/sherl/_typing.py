"""Types that annotations share, here and in the stubs of the core."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Activation", "Array", "ArrayLike", "Bools", "ByteCount", "Down", "Element", "Float32s", "Float64s",
    "Guidance", "Initializer", "Integers", "LateType", "Loss", "Metric", "Norm", "Optimizer", "PairLoss", "PathLike",
    "Placement", "Pooling", "Record", "Role", "Schedule", "Source", "Spaces", "StateDict", "Task", "Uint16As",
    "UpNorm",
]  # fmt: skip

# Of a dtype that only run time knows: taps may be of several types, and the core has two builds.
Array: TypeAlias = NDArray[Any]
Bools: TypeAlias = NDArray[np.bool_]
Float32s: TypeAlias = NDArray[np.float32]
Float64s: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

PathLike: TypeAlias = str | os.PathLike[str]
Record: TypeAlias = dict[str, Any]  # what JSON can hold
StateDict: TypeAlias = dict[str, Array]  # weights by name
ByteCount: TypeAlias = int | str  # text is like "256 MiB"

# Functions of the user's own. A loss takes the lengths of the samples too where the head gives an output for every row.
Loss: TypeAlias = Callable[..., tuple[float, Array]]
PairLoss: TypeAlias = Callable[..., tuple[float, Array, Array]]
Metric: TypeAlias = Callable[[Array, Array], float]

# Rows in memory: a two-dimensional array (rows, channels) whose channels are contiguous, and which of its rows the
# batch takes, in order (int64), or None for all. Reals: float32, float64, float16, or uint16 holding bfloat16; of
# inputs and cotangents also int8 with one float32 scale a row. Integers: int32 or int64.
Source: TypeAlias = tuple[Array, Array | None] | tuple[Array, Array | None, Array]
# Of a batch, by row space: None for the samples, else offsets, or heights and widths of images.
Spaces: TypeAlias = list[Array | None]

Activation: TypeAlias = Literal["identity", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid", "tanh"]
Down: TypeAlias = Literal["layernorm", "gated", "relu", "batchnorm"]
Element: TypeAlias = Literal["float32", "float64", "float16", "bfloat16", "int8"]
Guidance: TypeAlias = Literal["token", "residual_mlp", "spatial"]
Initializer: TypeAlias = Literal["zeros", "ones", "xavier_uniform", "normal", "standard_normal"]
LateType: TypeAlias = Literal["float32", "bfloat16"]
Norm: TypeAlias = Literal["layernorm", "rmsnorm"]
Optimizer: TypeAlias = Literal["adamw", "adam", "sgd"]
Placement: TypeAlias = Literal["post", "pre", "sandwich"]
Pooling: TypeAlias = Literal["first", "mean", "max", "last", "position"]
Role: TypeAlias = Literal["trainable", "frozen", "state"]
Schedule: TypeAlias = Literal["constant", "linear", "cosine", "step"]
Task: TypeAlias = Literal["classification", "regression", "spans", "language"]
Uint16As: TypeAlias = Literal["bfloat16"] | None  # how to take uint16
UpNorm: TypeAlias = Literal["none", "layernorm", "batchnorm"]
