"""The door to ONNX: taps of any ONNX model, and trained networks as ONNX files that need no sherl."""

from .export import to_onnx
from .extraction import extract

__all__ = ["extract", "to_onnx"]
