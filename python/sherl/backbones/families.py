"""The families of backbones: what their config.json and their tensors are called, and how their layers are set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .. import _core
from .._typing import Record
from ..blocks import families as blocks
from ..blocks.rotary import read_scaling
from ..blocks.transformer import ACTIVATIONS, T5Block, TransformerLayer
from ..checks import flag, real_number, whole_number

# ---- What a family is ----


@dataclass(frozen=True)
class Layers:
    """Layers of one kind in a checkpoint.

    Attributes
    ----------
    place : str
        What comes before the names of a layer's tensors, with {} for its number.
    family : blocks.families.Family
        How they are named.
    settings : dict
        Of the layers, where they are not the defaults. A bias that is None is there where layer 0 has one.
    facts : dict of str to str
        Settings that the configuration tells, by the name of the fact.
    kind : type
        Of the layers.
    shared : dict of str to str
        Tensors that all layers have: their names in a layer, and in the checkpoint.
    zeros : frozenset of str
        Tensors, by their names in a layer, that are zeros where the checkpoint has none.
    count, heads, intermediate : str
        Names of those facts.
    """

    place: str
    family: blocks.Family
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    kind: type[TransformerLayer] = TransformerLayer
    shared: dict[str, str] = field(default_factory=dict)
    zeros: frozenset[str] = frozenset()
    count: str = "layers"
    heads: str = "heads"
    intermediate: str = "intermediate"


@dataclass(frozen=True)
class Family:
    """One kind of model.

    Attributes
    ----------
    title : str
    stem : {"text", "image", "audio"}
        What makes state 0.
    sizes : dict of str to str or tuple
        Whole numbers, by fact: their names in the configuration; a tuple (name, default) where it need not be there.
        Where the default is the name of another fact, that is meant.
    tensors : dict of str to tuple
        What the stem is made of, by role: the tensor's name (or "one|another"), its shape in facts and numbers, and,
        where a checkpoint may do without it, a function that makes it of that shape.
    layers : Layers
    prefixes : tuple of str
        What may come before all names, the first where nothing tells.
    activation, eps : tuple of (str, default)
        Their names in the configuration.
    norm : str or None
        Place of the norm after the last layer.
    projection : str or None
        Name of the map to the space that two towers share, which a checkpoint may have.
    needs : tuple of (str, values, str)
        Names in the configuration, the values that can be run (the first where it is not there), and what to say.
    decoder : Layers or None
    constants : dict
        Facts that all models of the family share.
    derive : callable or None
        Takes facts and configuration, and adds facts that are no plain numbers.
    """

    title: str
    stem: str
    sizes: Mapping[str, Any]
    tensors: Mapping[str, tuple[Any, ...]]
    layers: Layers
    prefixes: tuple[str, ...] = ("",)
    activation: tuple[str | None, str] = ("hidden_act", "gelu")
    eps: tuple[str | None, float] = ("layer_norm_eps", 1e-12)
    norm: str | None = None
    projection: str | None = None
    needs: tuple[tuple[str, tuple[Any, ...], str], ...] = ()
    decoder: Layers | None = None
    constants: dict[str, Any] = field(default_factory=dict)
    derive: Callable[[Record, Record], None] | None = None


# ---- Encoders of text ----

_SIZES = {
    "features": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
}  # fmt: skip
_PRE = {"placement": "pre"}
_TEXT_SIZES = {**_SIZES, "vocabulary": "vocab_size", "positions": "max_position_embeddings"}
_ENCODER = (
    ("position_embedding_type", ("absolute",), "only absolute position embeddings can be run"),
    ("is_decoder", (False,), "only encoders can be run"),
)


def _embeddings(width: str = "features", types: bool = True) -> dict[str, tuple[Any, ...]]:
    """The tensors of BERT's embeddings; without token types where a family has none."""
    tensors = {
        "words": ("embeddings.word_embeddings.weight", ("vocabulary", width)),
        "positions": ("embeddings.position_embeddings.weight", ("positions", width)),
        "types": ("embeddings.token_type_embeddings.weight", ("types", width)),
        "norm_weight": ("embeddings.LayerNorm.weight", (width,)),
        "norm_bias": ("embeddings.LayerNorm.bias", (width,)),
    }
    if not types:
        del tensors["types"]
    return tensors


def _offset(facts: Record, config: Record) -> None:
    """Positions count from the one after the padding token's number."""
    facts["first_position"] = whole_number(config.get("pad_token_id", 1), "pad_token_id") + 1


def _padding(facts: Record, config: Record) -> None:
    """Texts are as long as the model allows, and the padding counts."""
    facts["padding"] = whole_number(config.get("pad_token_id", 1), "pad_token_id")


BERT = Family(
    "BERT", "text", {**_TEXT_SIZES, "types": ("type_vocab_size", 2)}, _embeddings(),
    Layers("encoder.layer.{}.", blocks.BERT), prefixes=("", "bert."), needs=_ENCODER,
)  # fmt: skip
ROBERTA = replace(BERT, title="RoBERTa", prefixes=("", "roberta."), eps=("layer_norm_eps", 1e-5), derive=_offset)
DISTILBERT = Family(
    "DistilBERT", "text",
    {"features": "dim", "layers": "n_layers", "heads": "n_heads", "intermediate": "hidden_dim",
     "vocabulary": "vocab_size", "positions": "max_position_embeddings"},
    _embeddings(types=False), Layers("transformer.layer.{}.", blocks.DISTILBERT), prefixes=("", "distilbert."),
    activation=("activation", "gelu"),
)  # fmt: skip
MPNET = Family(
    "MPNet", "text", {**_TEXT_SIZES, "buckets": ("relative_attention_num_buckets", 32)}, _embeddings(types=False),
    Layers("encoder.layer.{}.", blocks.MPNET, facts={"position_buckets": "buckets"},
           shared={"relative_attention_bias.weight": "encoder.relative_attention_bias.weight"}),
    prefixes=("", "mpnet."), derive=_offset,
)  # fmt: skip
ELECTRA = replace(
    BERT, title="ELECTRA", prefixes=("", "electra."), sizes={**BERT.sizes, "embedding": ("embedding_size", "features")},
    tensors={**_embeddings("embedding"), "project_weight": ("embeddings_project.weight", ("features", "embedding")),
             "project_bias": ("embeddings_project.bias", ("features",))},
)  # fmt: skip

# ---- Causal models of text ----

_CAUSAL = {**_PRE, "causal": True}


def _gpt2(facts: Record, config: Record) -> None:
    facts["intermediate"] = facts["intermediate"] or 4 * facts["features"]


_LLAMA3 = {"low": "low_freq_factor", "high": "high_freq_factor"}


def _rotary_scaling(rope: Any, longest: int) -> Any:
    """Return how rotary positions are rescaled, as a layer takes it; None where they are plain."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", "dynamic"):  # which rescales only texts that are longer than the model takes
        return None
    if kind not in ("linear", "llama3"):
        raise ValueError("rotary positions must be plain or rescaled by a rule that can be run, 'linear', 'dynamic' or "
                         f"'llama3', got {kind!r}")
    names = {"factor": "factor", **(_LLAMA3 if kind == "llama3" else {})}
    missing = [name for name in names.values() if name not in rope]
    if missing:
        raise ValueError(f"rotary positions of type {kind!r} need {', '.join(missing)}")
    numbers = {fact: real_number(rope[name], name) for fact, name in names.items()}
    if kind == "llama3":
        numbers["original"] = rope.get("original_max_position_embeddings", longest)
    return read_scaling(numbers)


def _llama(facts: Record, config: Record) -> None:
    rope = config.get("rope_parameters") or {}
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1)) != 1:
        raise ValueError("only rotary positions that turn all channels of a head can be run, not partial ones")
    facts["rotary_scaling"] = _rotary_scaling(config.get("rope_scaling") or rope, facts["longest"])
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    facts["theta"] = real_number(theta, "rope_theta", least=1.0)
    window = config.get("sliding_window")
    if window is not None and config.get("use_sliding_window", True):
        facts["longest"] = min(facts["longest"], whole_number(window, "sliding_window", 1))


GPT2 = Family(
    "GPT-2", "text",
    {"features": "n_embd", "layers": "n_layer", "heads": "n_head", "intermediate": ("n_inner", None),
     "vocabulary": "vocab_size", "positions": "n_positions"},
    {"words": ("wte.weight", ("vocabulary", "features")), "positions": ("wpe.weight", ("positions", "features"))},
    Layers("h.{}.", blocks.GPT2, _CAUSAL), prefixes=("", "transformer."),
    activation=("activation_function", "gelu_new"), eps=("layer_norm_epsilon", 1e-5), norm="ln_f", derive=_gpt2,
    needs=(("scale_attn_weights", (True,), "only scores over the root of the head size can be run"),
           ("scale_attn_by_inverse_layer_idx", (False,), "scores scaled by the layer's number cannot be run"),
           ("add_cross_attention", (False,), "only models without a memory can be run")),
)  # fmt: skip
LLAMA = Family(
    "Llama", "text",
    {**_SIZES, "vocabulary": "vocab_size", "longest": ("max_position_embeddings", 2048),
     "key_heads": ("num_key_value_heads", "heads"), "head_size": ("head_dim", None)},
    {"words": ("embed_tokens.weight", ("vocabulary", "features"))},
    Layers("layers.{}.", blocks.LLAMA,
           {**_CAUSAL, "norm": "rmsnorm", "gated": True, "query_bias": None, "output_bias": None,
            "feed_forward_bias": None},
           {"rotary_theta": "theta", "rotary_scaling": "rotary_scaling", "key_heads": "key_heads",
            "head_size": "head_size"}),
    prefixes=("", "model."), activation=("hidden_act", "silu"), eps=("rms_norm_eps", 1e-6), norm="norm", derive=_llama,
)  # fmt: skip

# ---- T5 ----


def _t5(facts: Record, config: Record) -> None:
    form = config.get("feed_forward_proj", "relu")
    gated, _, name = str(form).rpartition("-")
    if gated not in ("", "gated") or name not in ACTIVATIONS:
        raise ValueError(f"feed_forward_proj must be an activation, or 'gated-' and one, got {form!r}")
    facts["gated"] = bool(gated)
    # The reference reads "gated-gelu" as the tanh form.
    facts["activation"] = "gelu_new" if form == "gated-gelu" else name
    tied = flag(config.get("tie_word_embeddings", True), "tie_word_embeddings")
    facts["scaled"] = flag(config.get("scale_decoder_outputs", tied), "scale_decoder_outputs")
    facts["start"] = whole_number(config.get("decoder_start_token_id", 0), "decoder_start_token_id")
    facts["end"] = whole_number(config.get("eos_token_id", 1), "eos_token_id")
    facts["decoder_layers"] = facts["decoder_layers"] if config.get("is_encoder_decoder", True) else 0


_T5_FACTS = {"gated": "gated", "head_size": "head_size", "position_buckets": "buckets", "max_distance": "max_distance"}
_T5_BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"
T5 = Family(
    "T5", "text",
    {"features": "d_model", "layers": "num_layers", "decoder_layers": ("num_decoder_layers", "layers"),
     "heads": "num_heads", "intermediate": "d_ff", "head_size": "d_kv", "vocabulary": "vocab_size",
     "longest": ("n_positions", 512), "buckets": ("relative_attention_num_buckets", 32),
     "max_distance": ("relative_attention_max_distance", 128)},
    {"words": ("shared.weight|encoder.embed_tokens.weight", ("vocabulary", "features"))},
    Layers("encoder.block.{}.", blocks.T5_ENCODER, {"decoder": False}, _T5_FACTS, T5Block,
           {_T5_BIAS: f"encoder.block.0.{_T5_BIAS}"}),
    activation=(None, "relu"), eps=("layer_norm_epsilon", 1e-6),
    norm="encoder.final_layer_norm", derive=_t5,
    decoder=Layers("decoder.block.{}.", blocks.T5_DECODER, {"decoder": True}, _T5_FACTS, T5Block,
                   {_T5_BIAS: f"decoder.block.0.{_T5_BIAS}"}, count="decoder_layers"),
)  # fmt: skip

# ---- BART and Marian ----


def _sinusoids(shape: tuple[int, ...]) -> Any:
    """Return fixed positions (rows, channels): sines of ever slower angles, then cosines (Vaswani et al., 2017)"""
    rows, channels = shape
    angles = np.arange(rows)[:, None] / 10000 ** (2 * np.arange((channels + 1) // 2) / channels)
    return np.concatenate([np.sin(angles), np.cos(angles[:, : channels // 2])], axis=1).astype(_core.REAL)


def _marian(facts: Record, config: Record) -> None:
    scaled = flag(config.get("scale_embedding", False), "scale_embedding")
    facts["word_scale"] = facts["features"] ** 0.5 if scaled else 1.0


def _bart(facts: Record, config: Record) -> None:
    _marian(facts, config)
    facts["first_position"] = 2  # of the table, whose first rows nothing uses
    facts["positions"] += 2


MARIAN = Family(
    "Marian", "text",
    {"features": "d_model", "layers": "encoder_layers", "heads": "encoder_attention_heads",
     "intermediate": "encoder_ffn_dim", "decoder_layers": "decoder_layers", "decoder_heads": "decoder_attention_heads",
     "decoder_intermediate": "decoder_ffn_dim", "vocabulary": "vocab_size",
     "positions": ("max_position_embeddings", 1024)},
    {"words": ("shared.weight|encoder.embed_tokens.weight", ("vocabulary", "features")),
     "positions": ("encoder.embed_positions.weight", ("positions", "features"), _sinusoids)},
    Layers("encoder.layers.{}.", blocks.BART_ENCODER), prefixes=("", "model."),
    activation=("activation_function", "gelu"), eps=(None, 1e-5), derive=_marian,
    needs=(("normalize_before", (False,), "only layers with their norms after the sums can be run"),
           ("add_final_layer_norm", (False,), "a norm after the last layer cannot be run")),
    decoder=Layers("decoder.layers.{}.", blocks.BART_DECODER, {"causal": True}, {"memory_features": "features"},
                   count="decoder_layers", heads="decoder_heads", intermediate="decoder_intermediate"),
)  # fmt: skip
BART = replace(
    MARIAN, title="BART", derive=_bart,
    tensors={"words": MARIAN.tensors["words"],
             "positions": ("encoder.embed_positions.weight", ("positions", "features")),
             "norm_weight": ("encoder.layernorm_embedding.weight", ("features",)),
             "norm_bias": ("encoder.layernorm_embedding.bias", ("features",))},
    needs=(*MARIAN.needs, ("normalize_embedding", (True,), "only embeddings with a norm can be run")),
)  # fmt: skip

# ---- Encoders of images ----

_IMAGE_SIZES = {**_SIZES, "image": ("image_size", 224), "patch": ("patch_size", 16), "channels": ("num_channels", 3)}
_PATCH = ("features", "channels", "patch", "patch")
_VIT_TENSORS = {
    "patch_weight": ("embeddings.patch_embeddings.projection.weight", _PATCH),
    "patch_bias": ("embeddings.patch_embeddings.projection.bias", ("features",)),
    "class": ("embeddings.cls_token", (1, 1, "features")),
    "positions": ("embeddings.position_embeddings", (1, "tokens", "features")),
}  # fmt: skip


def _tokens(facts: Record, config: Record) -> None:
    """Positions are those of the patches, and of a class token unless the family has none."""
    if facts["image"] % facts["patch"]:
        raise ValueError(f"patch_size must divide the image_size {facts['image']}, got {facts['patch']}")
    facts["tokens"] = (facts["image"] // facts["patch"]) ** 2 + facts.get("class_tokens", 1)


def _dinov2(facts: Record, config: Record) -> None:
    _tokens(facts, config)
    inner = int(facts["features"] * real_number(config.get("mlp_ratio", 4), "mlp_ratio", above=0.0))
    facts["gated"] = flag(config.get("use_swiglu_ffn", False), "use_swiglu_ffn")
    if facts["gated"]:
        inner, facts["activation"] = (int(inner * 2 / 3) + 7) // 8 * 8, "silu"
    facts["intermediate"] = inner


VIT = Family(
    "ViT", "image", _IMAGE_SIZES, _VIT_TENSORS, Layers("encoder.layer.{}.", blocks.VIT, {**_PRE, "query_bias": None}),
    prefixes=("", "vit."), norm="layernorm", derive=_tokens,
)  # fmt: skip
_DINOV2_SIZES = {fact: name for fact, name in _IMAGE_SIZES.items() if fact != "intermediate"}
DINOV2 = Family(
    "DINOv2", "image", _DINOV2_SIZES, _VIT_TENSORS,
    Layers("encoder.layer.{}.", blocks.DINOV2, {**_PRE, "query_bias": None, "layer_scale": True}, {"gated": "gated"}),
    prefixes=("", "dinov2."), eps=("layer_norm_eps", 1e-6), norm="layernorm", constants={"interpolates": True},
    derive=_dinov2,
)  # fmt: skip
DINOV2_REGISTERS = replace(
    DINOV2, title="DINOv2 with registers", prefixes=("", "dinov2_with_registers."),
    sizes={**_DINOV2_SIZES, "registers": ("num_register_tokens", 4)},
    tensors={**_VIT_TENSORS, "registers": ("embeddings.register_tokens", (1, "registers", "features"))},
)  # fmt: skip

# ---- Two towers ----


def _defaults(sizes: Mapping[str, str], *defaults: int) -> dict[str, tuple[str, int]]:
    """Sizes that a configuration may leave out."""
    return {fact: (name, default) for (fact, name), default in zip(sizes.items(), defaults)}


_TOWER_PATCHES = {
    "patch_weight": ("vision_model.embeddings.patch_embedding.weight", _PATCH),
    "positions": ("vision_model.embeddings.position_embedding.weight", ("tokens", "features")),
}  # fmt: skip
CLIP_TEXT = Family(
    "CLIP text", "text", _defaults(_TEXT_SIZES, 512, 12, 8, 2048, 49408, 77),
    {"words": ("text_model.embeddings.token_embedding.weight", ("vocabulary", "features")),
     "positions": ("text_model.embeddings.position_embedding.weight", ("positions", "features"))},
    Layers("text_model.encoder.layers.{}.", blocks.CLIP, _CAUSAL), activation=("hidden_act", "quick_gelu"),
    eps=("layer_norm_eps", 1e-5), norm="text_model.final_layer_norm", projection="text_projection.weight",
)  # fmt: skip
CLIP_IMAGE = replace(
    CLIP_TEXT, title="CLIP image", stem="image",
    sizes={**_IMAGE_SIZES, **_defaults(_SIZES, 768, 12, 12, 3072), "patch": ("patch_size", 32)},
    tensors={**_TOWER_PATCHES, "class": ("vision_model.embeddings.class_embedding", ("features",)),
             "norm_weight": ("vision_model.pre_layrnorm.weight", ("features",)),
             "norm_bias": ("vision_model.pre_layrnorm.bias", ("features",))},
    layers=Layers("vision_model.encoder.layers.{}.", blocks.CLIP, _PRE), norm="vision_model.post_layernorm",
    projection="visual_projection.weight", derive=_tokens,
)  # fmt: skip
_SIGLIP: dict[str, Any] = {"activation": ("hidden_act", "gelu_pytorch_tanh"), "eps": ("layer_norm_eps", 1e-6),
                           "projection": None}
SIGLIP_TEXT = replace(
    CLIP_TEXT, title="SigLIP text", sizes=_defaults(_TEXT_SIZES, 768, 12, 12, 3072, 32000, 64),
    layers=Layers("text_model.encoder.layers.{}.", blocks.CLIP, _PRE), derive=_padding, **_SIGLIP,
)  # fmt: skip
SIGLIP_IMAGE = replace(
    CLIP_IMAGE, title="SigLIP image", sizes={**CLIP_IMAGE.sizes, "patch": ("patch_size", 16)},
    tensors={**_TOWER_PATCHES, "patch_bias": ("vision_model.embeddings.patch_embedding.bias", ("features",))},
    constants={"class_tokens": 0}, **_SIGLIP,
)  # fmt: skip

# ---- Audio ----


def _whisper_layers(part: str, family: blocks.Family, settings: dict[str, Any]) -> Layers:
    return Layers(
        f"{part}.layers.{{}}.", family, {**_PRE, **settings},
        zeros=frozenset({"self_attn.k_proj.bias", "encoder_attn.k_proj.bias"}),
        **dict[str, Any]({"count": "decoder_layers", "heads": "decoder_heads", "intermediate": "decoder_intermediate",
            "facts": {"memory_features": "features"}} if part == "decoder" else {}),
    )  # fmt: skip


WHISPER = Family(
    "Whisper", "audio",
    {"features": "d_model", "layers": "encoder_layers", "heads": "encoder_attention_heads",
     "intermediate": "encoder_ffn_dim", "decoder_layers": "decoder_layers",
     "decoder_heads": "decoder_attention_heads", "decoder_intermediate": "decoder_ffn_dim",
     "bins": ("num_mel_bins", 80), "positions": ("max_source_positions", 1500)},
    {"first_weight": ("encoder.conv1.weight", ("features", "bins", 3)),
     "first_bias": ("encoder.conv1.bias", ("features",)),
     "second_weight": ("encoder.conv2.weight", ("features", "features", 3)),
     "second_bias": ("encoder.conv2.bias", ("features",)),
     "positions": ("encoder.embed_positions.weight", ("positions", "features"))},
    _whisper_layers("encoder", blocks.WHISPER_ENCODER, {}), prefixes=("", "model."),
    activation=("activation_function", "gelu"), eps=(None, 1e-5), norm="encoder.layer_norm",
    decoder=_whisper_layers("decoder", blocks.WHISPER_DECODER, {"causal": True}),
)  # fmt: skip

# ---- By model_type ----

FAMILIES = {
    "bert": BERT, "roberta": ROBERTA, "xlm-roberta": ROBERTA, "camembert": ROBERTA, "distilbert": DISTILBERT,
    "mpnet": MPNET, "electra": ELECTRA, "gpt2": GPT2, "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "t5": T5,
    "mt5": T5, "vit": VIT, "dinov2": DINOV2, "dinov2_with_registers": DINOV2_REGISTERS, "clip_text_model": CLIP_TEXT,
    "clip_vision_model": CLIP_IMAGE, "siglip_text_model": SIGLIP_TEXT, "siglip_vision_model": SIGLIP_IMAGE,
    "whisper": WHISPER, "marian": MARIAN, "bart": BART,
}
TOWERS = {
    "clip": {"text": CLIP_TEXT, "image": CLIP_IMAGE},
    "siglip": {"text": SIGLIP_TEXT, "image": SIGLIP_IMAGE},
}  # fmt: skip
