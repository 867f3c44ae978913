"""Networks on disk: the trained weights in model.safetensors, what else makes the network in config.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from .._typing import LateType, PathLike, Record, StateDict
from ..blocks import (
    MTSA,
    BasicBlock,
    Bottleneck,
    Classifier,
    Detector,
    Embedding,
    LayerNorm,
    Positions,
    Queries,
    Regressor,
    RMSNorm,
    SpanPredictor,
    T5Block,
    TokenClassifier,
    TransformerLayer,
)
from ..blocks.foreign import ForeignLayer
from ..blocks.language_head import LanguageHead
from ..checks import write_files
from ..features import Features

if TYPE_CHECKING:
    from .network import Network
    from .seq2seq_network import Seq2SeqSideNetwork
    from .side_network import SideNetwork

FORMAT_VERSION = 1
_TITLES = {"SideNetwork": "side network", "Seq2SeqSideNetwork": "seq2seq side network"}
_PARTS = {"SideNetwork": ("early",), "Seq2SeqSideNetwork": ("encoder", "decoder", "eps")}
WEIGHTS, CONFIG = "model.safetensors", "config.json"

FOREIGN = "Late"  # type of layers that are computed outside the core; their weights stay outside, too

_EARLY = {"MTSA": MTSA}
_LATE = {kind.__name__: kind
         for kind in (TransformerLayer, T5Block, Bottleneck, BasicBlock, LayerNorm, RMSNorm, Positions,
                                          Queries)}
_HEADS = {kind.__name__: kind for kind in (Classifier, Detector, Embedding, Regressor, SpanPredictor, TokenClassifier)}


def describe(network: SideNetwork) -> Record:
    """Return what makes an equal network, but for the trained weights, as JSON can hold it."""
    return {
        "early": _described(network.early),
        "late": [{**_described(layer), "frozen": layer.fingerprint} for layer in network.late],
        "head": _described(network.head),
        "late_dtype": network.late_dtype,
        "seed": network.seed,
        "features": network.features_source,
    }


def describe_seq2seq(network: Seq2SeqSideNetwork) -> Record:
    """Return the same of a network with an encoder and a decoder."""
    return {
        "encoder": _described(network.encoder),
        "decoder": _described(network.decoder),
        "late": [{**_described(layer), "frozen": layer.fingerprint} for layer in network.late],
        "head": {**_described(network.head), "frozen": network.head.fingerprint},
        "eps": network.norm.eps,
        "late_dtype": network.late_dtype,
        "seed": network.seed,
        "features": network.features_source,
    }


def save(network: Network, folder: PathLike) -> None:
    """Write a network's folder."""
    safetensors = import_safetensors("saving a network")
    form = f"sherl.{type(network).__name__}"
    config = {"format": form, "format_version": FORMAT_VERSION, "sherl_version": _core.config()["version"],
              **network._described()}
    weights = safetensors.save(network.state_dict(), metadata={"format": form})
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    write_files(folder, {WEIGHTS: weights, CONFIG: text.encode()})


def load(kind: type[Any], folder: PathLike, backbone: Any, late_dtype: LateType | None) -> Any:
    """Return the network of a folder."""
    safetensors = import_safetensors("loading a network")
    folder = Path(folder)
    config = read_config(folder / CONFIG, kind.__name__)
    _offered(backbone)
    arrays = read_weights(safetensors, folder / WEIGHTS)
    config["late_dtype"] = config.get("late_dtype", "float32") if late_dtype is None else late_dtype
    stored = sum(array.size for array in arrays.values())
    build = _build_seq2seq if "encoder" in _PARTS[kind.__name__] else _build
    try:
        network = build(kind, config, backbone, stored)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG} does not make a network: {error}") from error
    network.features_source = config["features"]
    if isinstance(backbone, Features):
        network._check_source(backbone)
    elif hasattr(backbone, "fingerprint"):
        network._check_backbone(backbone)
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise ValueError(f"{folder / WEIGHTS}: {name} must be float32, got {array.dtype}")
    try:
        network.load_state_dict(arrays)
    except ValueError as error:
        raise ValueError(f"{folder / WEIGHTS}: {error}") from error
    return network


def import_safetensors(purpose: str) -> ModuleType:
    """Return the safetensors functions for NumPy."""
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(f"{purpose} needs the safetensors package: pip install 'sherl[text]'") from None
    functions: ModuleType = safetensors.numpy
    return functions


def read_weights(safetensors: ModuleType, path: PathLike) -> StateDict:
    """Return the arrays of a safetensors file by name."""
    content = _read(path)
    try:
        arrays: StateDict = safetensors.load(content)
        return arrays
    except Exception as error:  # its own error type, and those of what its numpy layer calls
        raise ValueError(f"{path} is not a whole safetensors file of real numbers: {error}") from error


def read_config(path: PathLike, kind: str = "SideNetwork") -> Record:
    """Return the settings of the folder of such a network, of a form that this version knows."""
    try:
        config = json.loads(_read(path).decode())
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(config, dict) or config.get("format") != f"sherl.{kind}":
        raise ValueError(f"{path} does not describe a sherl {_TITLES[kind]}: it has no \"format\": \"sherl.{kind}\"")
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version!r} (written by sherl {config.get('sherl_version', '?')}); this sherl, "
            f"{_core.config()['version']}, reads version {FORMAT_VERSION}"
        )
    missing = [name for name in (*_PARTS[kind], "late", "head", "seed", "features") if name not in config]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    if not isinstance(config["features"], (dict, type(None))):
        raise ValueError(f"{path}: features must be an object or null, got {config['features']!r:.60}")
    return config


def _read(path: PathLike) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None


def _described(block: Any) -> Record:
    return {"type": type(block).__name__, "settings": block.settings}


def _offered(backbone: Any) -> list[Any]:
    """Return the layers that a backbone, or a sequence, offers."""
    layers = getattr(backbone, "layers", backbone)
    if layers is None:
        return []
    if layers is not backbone:
        norm = getattr(backbone, "final_norm", None)
        layers = [*layers, *getattr(backbone, "decoder_layers", ()), *([] if norm is None else [norm])]
    if not hasattr(layers, "__iter__") or not all(
        isinstance(layer, (*_LATE.values(), ForeignLayer)) for layer in layers
    ):
        raise TypeError(f"backbone must be one of load_backbone or a sequence of layers, got {type(backbone).__name__}")
    return list(layers)


def _build(kind: type[Any], config: Record, backbone: Any, stored: int) -> SideNetwork:
    """Return the network of a configuration beside which so many numbers are stored."""
    early, head = _made(config["early"], _EARLY), _made(config["head"], _HEADS)
    late = _late_layers(config["late"], _offered(backbone))
    _check_stored((early, *late, head), stored)
    network: SideNetwork = kind(early, late, head, seed=config["seed"], late_dtype=config["late_dtype"])
    return network


def _build_seq2seq(kind: type[Any], config: Record, backbone: Any, stored: int) -> Seq2SeqSideNetwork:
    """Return the same of a network with an encoder and a decoder."""
    encoder, decoder = (_made(config[name], _EARLY) for name in ("encoder", "decoder"))
    late = _late_layers(config["late"], list(getattr(backbone, "decoder_layers", ())))
    head = config["head"]
    if not isinstance(head, dict) or not isinstance(head.get("settings"), dict):
        raise ValueError(f"the head must have settings, got {str(head)[:80]}")
    language = getattr(backbone, "language", None)
    if language is None:
        raise ValueError("the head is frozen, and its weights are not in the folder: pass backbone= with a decoder")
    smoothing = head["settings"]["label_smoothing"]
    made = LanguageHead(language.lm_head, head["settings"]["scale"], smoothing)
    if made.fingerprint != head.get("frozen"):
        raise ValueError("the language-model head of backbone is not the one that the network was trained with")
    _check_stored((encoder, decoder, *late), stored)
    network: Seq2SeqSideNetwork = kind(encoder, decoder, late, made, eps=config["eps"], seed=config["seed"],
                                       late_dtype=config["late_dtype"], backbone=backbone)
    return network


def _check_stored(blocks: Iterable[Any], stored: int) -> None:
    """Raise where blocks have more numbers than are stored; only config.json vouches for their sizes."""
    least = sum(block._least_parameters() for block in blocks)
    if least > stored:
        raise ValueError(f"it has {least:,} parameters or more, but {WEIGHTS} holds {stored:,} numbers")


def _late_layers(entries: Any, layers: list[Any]) -> list[Any]:
    if not isinstance(entries, list):
        raise ValueError("late must be a list")
    return [_late(number, entry, layers) for number, entry in enumerate(entries)]


def _made(entry: Any, kinds: Mapping[str, type[Any]]) -> Any:
    if not isinstance(entry, dict) or entry.get("type") not in kinds or not isinstance(entry.get("settings"), dict):
        raise ValueError(f"a block must have a type among {', '.join(kinds)} and settings, got {str(entry)[:80]}")
    return kinds[entry["type"]](**entry["settings"])


def _late(number: int, entry: Any, layers: list[Any]) -> Any:
    foreign = isinstance(entry, dict) and entry.get("type") == FOREIGN
    described = None if foreign else _made(entry, _LATE)
    if not foreign and entry.get("frozen") is None:
        return described
    if not layers:
        raise ValueError(f"late layer {number} is frozen, and its weights are not in the folder: pass backbone=")
    # The last layers are the likely ones; a fingerprint reads a layer's weights once.
    for layer in reversed(layers):
        if _same_shape(layer, described, entry) and layer.fingerprint == entry["frozen"]:
            return layer._with_dropout(described)
    raise ValueError(f"no layer of backbone has the weights that late layer {number} was trained with")


def _same_shape(layer: Any, described: Any, entry: Any) -> bool:
    if described is None:
        return isinstance(layer, ForeignLayer) and layer.settings == entry.get("settings")
    if type(layer) is not type(described):
        return False
    if isinstance(layer, TransformerLayer):  # whose dropout may differ
        return (layer.features, layer.intermediate) == (described.features, described.intermediate)
    return bool(layer.settings == described.settings)
