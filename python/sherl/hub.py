"""The door to the Hugging Face hub: backbones by their names there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import backbones

if TYPE_CHECKING:
    from .backbones.backbone import Backbone

__all__ = ["load_backbone"]

_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "preprocessor_config.json")


def load_backbone(name: str, *, revision: str | None = None, cache_dir: str | Path | None = None,
                  token: str | bool | None = None, local_files_only: bool = False, **options: Any) -> Backbone:
    """Download what a backbone needs, where it is not in the cache, and load it.

    Parameters
    ----------
    name : str
        Such as ``"sentence-transformers/all-MiniLM-L6-v2"``.
    revision : str, optional
        A branch, tag or commit.
    cache_dir : str or path-like, optional
        Where files are kept; the cache of huggingface_hub when None.
    token : str or bool, optional
        For repositories that are not open to all.
    local_files_only : bool
        Whether to load what is in the cache, and never ask the network.
    **options
        Others of `sherl.load_backbone`.

    Returns
    -------
    Backbone
        As `sherl.load_backbone` gives it.

    Raises
    ------
    ImportError
        Without the huggingface_hub package.
    ValueError
        Where the name is not of the form "organisation/name".
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be text such as \"organisation/name\", got {type(name).__name__}")
    if name.count("/") != 1 or not all(name.split("/")):
        raise ValueError(f"name must be of the form \"organisation/name\", got {name!r}; sherl.load_backbone takes "
                         "folders")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ImportError("backbones of the hub need the huggingface_hub package: pip install 'sherl[hub]'") from None
    folder = snapshot_download(name, revision=revision, cache_dir=cache_dir, token=token,
                               local_files_only=local_files_only, allow_patterns=list(_FILES))
    return backbones.load_backbone(folder, **options)
