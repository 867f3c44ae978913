"""Frozen backbones that run in sherl's own core."""

from .bert import BertBackbone

__all__ = ["BertBackbone", "load_backbone"]


def load_backbone(folder):
    """Load a frozen backbone.

    Parameters
    ----------
    folder : str or path-like
        A BERT encoder in Hugging Face layout: config.json, model.safetensors, and for texts tokenizer.json.

    Returns
    -------
    BertBackbone

    Raises
    ------
    ValueError
        Where a file is not whole, or a tensor is missing or of another shape than config.json says.
    ImportError
        Without the safetensors package.
    """
    return BertBackbone(folder)
