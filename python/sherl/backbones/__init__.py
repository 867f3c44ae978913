"""Frozen backbones that run in sherl's own core."""

from .backbone import Backbone

__all__ = ["Backbone", "load_backbone"]


def load_backbone(folder, tower=None):
    """Load a frozen backbone.

    Parameters
    ----------
    folder : str or path-like
        A model in Hugging Face layout: config.json, model.safetensors (or its shards and their index), and for texts
        tokenizer.json, for images preprocessor_config.json. Its model_type tells the family.
    tower : {"text", "image"}, optional
        Which one of a model with two (CLIP, SigLIP).

    Returns
    -------
    Backbone

    Raises
    ------
    FileNotFoundError
        Where a file is missing.
    ValueError
        Where the family is not known or set in a way that cannot be run, a file is not whole, or a tensor is missing or
        of another shape than config.json says.
    """
    return Backbone(folder, tower)
