"""The door to PyTorch: taps of any module, its last layers as late ones, blocks as modules, networks as plain modules."""

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise ImportError("sherl.torch needs PyTorch: pip install 'sherl[torch]'") from None

from .extraction import extract
from .late import Late
from .export import to_torch
from .side_module import SideModule

__all__ = ["Late", "SideModule", "extract", "to_torch"]
