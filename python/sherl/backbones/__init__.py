"""Frozen backbones that run in sherl's own core."""

from __future__ import annotations

from typing import Literal

from .._typing import PathLike
from .backbone import Backbone

__all__ = ["Backbone", "load_backbone"]


def load_backbone(path: PathLike, tower: Literal["text", "image"] | None = None) -> Backbone:
    """Load a frozen backbone.

    Parameters
    ----------
    path : str or path-like
        A folder in Hugging Face layout: config.json, model.safetensors (or its shards and their index), and for texts
        tokenizer.json, for images preprocessor_config.json. Its model_type tells the family. A ResNet may have
        torchvision's names and no config.json, or timm's. Or an ONNX file of a DINOv2, or of a ResNet whose batch norms
        are folded in.
    tower : {"text", "image"}, optional
        Which one of a model with two (CLIP, SigLIP).

    Returns
    -------
    Backbone

    Raises
    ------
    FileNotFoundError
        Where a file is missing.
    ImportError
        Of an ONNX file, without the onnx package.
    ValueError
        Where the family is not known or set in a way that cannot be run, a file is not whole, or a tensor is missing or
        of another shape than config.json says.
    """
    return Backbone(path, tower)
