"""Folders in Hugging Face layout: config.json and model.safetensors, read and checked."""

import json
from pathlib import Path

import numpy as np

from ..blocks.families import BERT
from ..blocks.transformer import ACTIVATIONS, TransformerLayer
from ..blocks.weights import read_weight
from ..checks import real_number, whole_number

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"

EMBEDDINGS = {  # tensors before the layers, with their shapes in terms of the configuration
    "embeddings.word_embeddings.weight": ("vocab_size", "hidden_size"),
    "embeddings.position_embeddings.weight": ("max_position_embeddings", "hidden_size"),
    "embeddings.token_type_embeddings.weight": ("type_vocab_size", "hidden_size"),
    "embeddings.LayerNorm.weight": ("hidden_size",),
    "embeddings.LayerNorm.bias": ("hidden_size",),
}

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
          "max_position_embeddings", "type_vocab_size")


def read_bert_config(folder):
    """Return the settings of a BERT model's folder that its hidden states depend on.

    Returns
    -------
    dict
        The sizes by their names in the file, and "hidden_act" and "layer_norm_eps".
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a model folder in Hugging Face layout: it has no {CONFIG}")
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "bert":
        raise ValueError(f"{path}: model_type must be 'bert', got {kind!r}")
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        raise ValueError(f"{path}: only encoders with absolute position embeddings can be run")
    known = {"type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12, **config}
    missing = [name for name in _SIZES if name not in known]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    try:
        facts = {name: whole_number(known[name], name, 1) for name in _SIZES}
        facts["layer_norm_eps"] = real_number(known["layer_norm_eps"], "layer_norm_eps", above=0.0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    facts["hidden_act"] = known["hidden_act"]
    if facts["hidden_act"] not in ACTIVATIONS:
        raise ValueError(f"{path}: hidden_act must be one of {', '.join(ACTIVATIONS)}, got {facts['hidden_act']!r}")
    if facts["hidden_size"] % facts["num_attention_heads"]:
        raise ValueError(f"{path}: num_attention_heads must divide hidden_size")
    return facts


def read_bert_weights(folder, config):
    """Return the embeddings' weights by name, and for each layer its weights by name relative to the layer.

    Parameters
    ----------
    folder : str or path-like
    config : dict
        As `read_bert_config` gives it.

    Returns
    -------
    dict of str to numpy.ndarray
    list of dict of str to numpy.ndarray
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}; other formats cannot be read")
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError("loading a backbone needs the safetensors package: pip install 'sherl[text]'") from None
    try:
        with safe_open(path, framework="numpy") as tensors:
            return _read_tensors(path, tensors, config)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _read_tensors(path, tensors, config):
    names = set(tensors.keys())
    prefix = "bert." if any(name.startswith("bert.embeddings.") for name in names) else ""

    def read(name, shape):
        full = prefix + name
        if full not in names:
            raise ValueError(f"{path} lacks the tensor {full}")
        found = tensors.get_slice(full)
        if tuple(found.get_shape()) != shape:
            got = tuple(found.get_shape())
            raise ValueError(f"{path}: {full} must have shape {shape}, as {CONFIG} says, got {got}")
        if found.get_dtype() not in ("F32", "F16", "F64"):
            raise ValueError(f"{path}: {full} must hold F32, F16 or F64, got {found.get_dtype()}")
        return read_weight(np.asarray(tensors.get_tensor(full)), f"{path}: {full}")

    embeddings = {name: read(name, tuple(config[size] for size in shape)) for name, shape in EMBEDDINGS.items()}
    layer = TransformerLayer(
        config["hidden_size"], config["num_attention_heads"], intermediate=config["intermediate_size"]
    )
    shapes = {BERT.namings[0].name(role): shape for role, shape in layer._shapes().items()}
    layers = [
        {name: read(f"encoder.layer.{number}.{name}", shape) for name, shape in shapes.items()}
        for number in range(config["num_hidden_layers"])
    ]
    return embeddings, layers
