"""A user's own loss: a function (outputs, targets) -> (loss, gradient), and checks of what it takes and gives."""

from __future__ import annotations

import numpy as np

from .. import _core
from .._typing import Array, ArrayLike, Integers, Loss


def read_loss(loss: Loss | None) -> Loss | None:
    """Return a `loss` argument, which is None or a function."""
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function (outputs, targets) -> (loss, gradient), got {loss!r}")
    return loss


def loss_name(loss: object) -> str | None:
    """Return the qualified name of a loss, of its type where it has none, or None."""
    if loss is None:
        return None
    named = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{named.__module__}.{named.__qualname__}"


def read_targets(labels: ArrayLike, samples: int, name: str) -> Array:
    """Return labels as an array with one entry a sample, unchanged."""
    try:
        array = np.asarray(labels)
    except Exception as error:
        raise TypeError(f"{name} cannot be read as an array: {error}") from error
    if array.dtype.hasobject:
        raise TypeError(f"{name} must be an array of numbers or text, got Python objects (dtype {array.dtype})")
    if array.ndim == 0 or len(array) != samples:
        raise ValueError(f"{name} must have shape ({samples}, ...), one entry a sample, got {array.shape}")
    return array


def loss_and_gradient(loss: Loss, outputs: Array, targets: Array,
                      lengths: Integers | None = None) -> tuple[float, Array]:
    """Return the value of a loss as a float and its gradient, checked, in the core's own type.

    `lengths` are the output rows of each sample, where the head gives more than one.
    """
    answer = loss(outputs, targets) if lengths is None else loss(outputs, targets, lengths)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise TypeError(f"loss must return a tuple (loss, gradient), got {_described(answer)}")
    value, gradient = np.asarray(answer[0]), np.asarray(answer[1])
    if value.ndim != 0 or value.dtype.kind not in "iuf":
        raise TypeError(f"loss must return a number first, got {_described(answer[0])}")
    if gradient.dtype.kind != "f":
        raise TypeError(f"loss must return a gradient of floating-point numbers, got dtype {gradient.dtype}")
    if gradient.shape != outputs.shape:
        raise ValueError(f"loss must return a gradient of the outputs' shape {outputs.shape}, got {gradient.shape}")
    with np.errstate(over="ignore"):
        gradient = gradient.astype(_core.REAL, order="C")
    return float(value), gradient


def check_finite(value: float, gradient: Array) -> None:
    """Raise where what a loss returned is not finite."""
    if not np.isfinite(value):
        raise FloatingPointError(f"loss returned {value}, which is not finite")
    if not np.isfinite(gradient).all():
        raise FloatingPointError("loss returned a gradient that is not finite")


def _described(value: object) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)
