"""What a backbone is made of, read from a folder or from an ONNX file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .._typing import PathLike, Record, StateDict
from ..blocks.late import OwnLayer
from ..blocks.transformer import TransformerLayer
from ..checks import one_of
from .audio import AudioStem
from .families import Family
from .files import CONFIG, Tensors, read_config
from .image import ImageStem
from .onnx_weights import OnnxGraph, OnnxTensors
from .pairs import LanguageDecoder
from .reading import read_decoder, read_family, read_layers, read_norm, read_projection, read_stem
from .resnet import HUGGING_FACE, TORCH, Naming, ResNetStem, read_onnx_resnet, read_resnet
from .text import TextStem

Stem: TypeAlias = TextStem | ImageStem | AudioStem | ResNetStem

_STEMS: dict[str, Any] = {"text": TextStem, "image": ImageStem, "audio": AudioStem}
_RESNET = "ResNet"
_RESNETS = re.compile(r"(wide_)?(resnet|resnext)\d+[a-z0-9_]*")  # timm's names; the tensors tell what can be run


@dataclass(frozen=True)
class Parts:
    """The parts of a backbone.

    Attributes
    ----------
    title : str
        Of the family.
    takes : {"text", "image", "audio"}
    stem : TextStem, ImageStem, AudioStem or ResNetStem
    layers : list of Block
    decoder_layers : list of Block
    norm : dict of str to numpy.ndarray
        "weight" and, of a layer norm, "bias", of the norm after the last layer.
    eps : float or None
        Of that norm.
    language : LanguageDecoder or None
        What a decoder of texts has beside its layers.
    projection : numpy.ndarray or None
        Map to the space that two towers share.
    """

    title: str
    takes: str
    stem: Stem
    layers: Sequence[OwnLayer]
    decoder_layers: Sequence[TransformerLayer] = ()
    norm: StateDict = field(default_factory=dict)
    eps: float | None = None
    language: LanguageDecoder | None = None
    projection: np.ndarray | None = None


def read_parts(path: PathLike, tower: str | None) -> Parts:
    """Return the parts of a backbone.

    Parameters
    ----------
    path : str or path-like
        A folder, or an ONNX file.
    tower : {"text", "image"} or None
        Which one of a model with two.
    """
    folder = Path(path)
    if folder.suffix == ".onnx":
        return _read_onnx(path, folder.parent, tower)
    if _is_torch_resnet(folder):
        return _read_resnet(folder, TORCH, {}, tower)
    config = read_config(folder)
    if config.get("model_type") == "resnet":
        return _read_resnet(folder, HUGGING_FACE, config, tower)
    if "model_type" not in config and "architecture" in config:
        if not _RESNETS.fullmatch(str(config["architecture"])):
            raise ValueError(f"{folder / CONFIG}: of timm's models only ResNets can be run, such as 'resnet18' and "
                             f"'wide_resnet50_2', got architecture {config['architecture']!r}")
        return _read_resnet(folder, TORCH, {}, tower)
    family, facts = read_family(config, folder / CONFIG, tower)
    tensors = Tensors(folder)
    tensors.choose_prefix(family.prefixes, next(iter(family.tensors.values()))[0])
    return _of_family(family, facts, tensors, folder)


def _is_torch_resnet(folder: Path) -> bool:
    """Tell whether a folder holds nothing but a state dictionary by torchvision's names."""
    return not (folder / CONFIG).exists() and folder.is_dir() and any(folder.glob("*.safetensors*")) and (
        "layer1.0.conv1.weight" in Tensors(folder)
    )


def _read_resnet(folder: Path, naming: Naming, config: Record, tower: str | None) -> Parts:
    one_of(tower, "tower", (None, "image"))
    try:
        return Parts(_RESNET, "image", *read_resnet(folder, Tensors(folder, told=""), naming, config))
    except TypeError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error


def _read_onnx(path: PathLike, folder: Path, tower: str | None) -> Parts:
    graph = OnnxGraph(path)
    one_of(tower, "tower", (None, "image"))
    if not OnnxTensors.fit(graph):
        return Parts(_RESNET, "image", *read_onnx_resnet(graph, folder))
    tensors = OnnxTensors(graph)
    return _of_family(*read_family(tensors.config, path, tower), tensors, folder)


def _of_family(family: Family, facts: Record, tensors: Tensors | OnnxTensors, folder: Path) -> Parts:
    stem = _STEMS[family.stem](folder, facts, read_stem(family, facts, tensors))
    decoder = read_decoder(family, facts, tensors)
    language = LanguageDecoder(facts, stem.arrays, tensors) if decoder and "scaled" in facts else None
    return Parts(
        family.title, family.stem, stem, read_layers(family.layers, facts, tensors), decoder,
        read_norm(family, facts, tensors), facts["eps"], language, read_projection(family, facts, tensors),
    )  # fmt: skip
