"""What losses in NumPy share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ._typing import Float64s

Function = TypeVar("Function", bound=Callable[..., Any])


def log_softmax(x: Float64s) -> Float64s:
    """Return the logarithm of the softmax of each row."""
    shifted: Float64s = x - x.max(axis=1, keepdims=True)
    logarithm: Float64s = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted - logarithm


def named(loss: Function, name: str) -> Function:
    """Return the loss under a name with its settings, by which checkpoints tell it from others."""
    loss.__name__ = loss.__qualname__ = name
    loss.__module__ = "sherl.losses"
    return loss


def made(loss: Function, maker: str, **settings: object) -> Function:
    """Return the loss under its maker's name, with what it takes to make it again."""
    loss.made = {"maker": maker, "settings": settings}  # type: ignore[attr-defined]  # functions take attributes
    return named(loss, f"{maker}({', '.join(f'{name}={value!r}' for name, value in settings.items())})")
