"""Between tensors and arrays, without a copy where both can have the same memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from .. import _core
from .._typing import Array, Uint16As


def to_array(tensor: torch.Tensor) -> Array:
    """Return a tensor as an array that the core reads: of the same memory where it lies on the CPU.

    bfloat16 comes as uint16.
    """
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def element_of(tensors: Iterable[torch.Tensor]) -> Uint16As:
    """Return what `dtype=` tells the core of the arrays of some tensors: "bfloat16" where all are, else None."""
    kinds = {tensor.dtype for tensor in tensors}
    if kinds == {torch.bfloat16}:
        return "bfloat16"
    if torch.bfloat16 in kinds:
        raise TypeError(f"taps must be all bfloat16 or none of them, got {', '.join(sorted(map(str, kinds)))}")
    return None


def first_tensor(output: Any, name: str) -> torch.Tensor:
    """Return the hidden states of what a module gave: a tensor, the first of a sequence, or `last_hidden_state`."""
    if hasattr(output, "last_hidden_state"):
        output = output.last_hidden_state
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, torch.Tensor):
        raise TypeError(f"{name} must give a tensor, or a sequence that begins with one, got {type(output).__name__}")
    return output


def real_array(tensor: torch.Tensor) -> Array:
    """Return a tensor as a contiguous array of the core's own type."""
    return tensor.detach().to("cpu", getattr(torch, _core.REAL)).contiguous().numpy()


def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers of a module by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
