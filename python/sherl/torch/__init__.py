"""The door to PyTorch: taps of any module, its last layers as late ones, blocks and networks as modules."""

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise ImportError("sherl.torch needs PyTorch: pip install 'sherl[torch]'") from None

from ..onnx import to_onnx
from .export import to_torch
from .extraction import extract
from .late import Late
from .side_module import SideModule

__all__ = ["Late", "SideModule", "extract", "to_onnx", "to_torch"]
