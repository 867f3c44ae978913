"""Tiny models of every family with random weights, written as Hugging Face folders, for tests without a framework."""

import json

import numpy as np
import pytest

from sherl.backbones.families import TOWERS
from sherl.backbones.pairs import LanguageDecoder
from sherl.backbones.reading import read_decoder, read_family, read_layers, read_norm, read_projection, read_stem

_ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_TEXT = {**_ENCODER, "vocab_size": 20, "max_position_embeddings": 12, "pad_token_id": 1}
_IMAGE = {**_ENCODER, "image_size": 8, "patch_size": 4}
_TOWERS = {"text_config": _TEXT, "vision_config": _IMAGE}
_T5 = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_kv": 6, "d_ff": 24, "vocab_size": 20, "n_positions": 12,
       "relative_attention_num_buckets": 8}
CONFIGS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "mpnet"), _TEXT),
    "electra": {**_TEXT, "embedding_size": 10},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 20,
                   "max_position_embeddings": 12},
    **dict.fromkeys(("bart", "marian"), {
        "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_layers": 1,
        "decoder_attention_heads": 2, "decoder_ffn_dim": 20, "vocab_size": 20, "max_position_embeddings": 12}),
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 20, "n_positions": 12},
    **dict.fromkeys(("llama", "mistral", "qwen2"), {**_TEXT, "num_key_value_heads": 1, "rope_theta": 100.0}),
    "t5": _T5,
    "mt5": {**_T5, "feed_forward_proj": "gated-gelu"},
    "vit": _IMAGE,
    "dinov2": _IMAGE,
    "dinov2_with_registers": _IMAGE,
    "clip": _TOWERS,
    "siglip": _TOWERS,
    **dict.fromkeys(("clip_text_model", "siglip_text_model"), _TEXT),
    **dict.fromkeys(("clip_vision_model", "siglip_vision_model"), _IMAGE),
    "whisper": {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24,
                "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 20, "num_mel_bins": 3,
                "max_source_positions": 6},
}  # fmt: skip
PREPROCESSOR = {"do_resize": False, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
                "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}


class Asked:
    """Stands for the tensors of a checkpoint: remembers what is read, and gives random numbers."""

    def __init__(self, seed):
        self.arrays, self._random = {}, np.random.default_rng(seed)

    def __contains__(self, name):
        return not name.endswith("k_proj.bias")

    def shape(self, name, dimensions):
        return (10,) * dimensions

    def read(self, name, shape):
        self.arrays[name] = (0.3 * self._random.standard_normal(shape)).astype(np.float32)
        return self.arrays[name]


def weights_of(config, seed=0):
    """Return random weights by name for a configuration."""
    asked = Asked(seed)
    for tower in TOWERS.get(config["model_type"], [None]):
        family, facts = read_family(config, "config.json", tower)
        stem, _, decoder = (read(family, facts, asked) for read in (read_stem, read_norm, read_decoder))
        if family.title == "T5" and decoder:
            LanguageDecoder(facts, stem, asked)
        read_layers(family.layers, facts, asked)
        read_projection(family, facts, asked)
    return asked.arrays


def write_tiny_model(folder, model_type, seed=0, **changes):
    """Write config.json, model.safetensors and preprocessor_config.json; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": model_type, **CONFIGS[model_type], **changes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    write_tensors(folder / "model.safetensors", weights_of(config, seed))
    return folder


def write_tokenizer(folder, words, end="</s>"):
    """Write a tokenizer.json of whole words, the first the padding, that ends texts; return the folder."""
    tokenizers = pytest.importorskip("tokenizers")
    numbers = {word: number for number, word in enumerate(words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token=words[2]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens([words[0], end])
    special = [(end, numbers[end])]
    made.post_processor = tokenizers.processors.TemplateProcessing(single=f"$A {end}", special_tokens=special)
    made.save(str(folder / "tokenizer.json"))
    return folder


def write_tensors(path, arrays):
    """Write a safetensors file; uint16 stands for bfloat16."""
    codes = {"float32": "F32", "float16": "F16", "float64": "F64", "uint16": "BF16", "int32": "I32"}
    header, data = {}, b""
    for name, array in arrays.items():
        bytes_of = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": codes[array.dtype.name], "shape": list(array.shape),
                        "data_offsets": [len(data), len(data) + len(bytes_of)]}
        data += bytes_of
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def samples_of(backbone):
    """Return three samples that a tiny model takes."""
    random = np.random.default_rng(0)
    if backbone.takes == "text":
        return [random.integers(2, 20, length).tolist() for length in (9, 1, 4)]
    shape = (3, 8, 8, 3) if backbone.takes == "image" else (3, 3, 12)
    return random.random(shape).astype(np.float32)
