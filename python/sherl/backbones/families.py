"""The families of backbones: what their config.json and their tensors are called, and how their layers are set."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..blocks import families as blocks
from ..blocks.transformer import ACTIVATIONS, T5Block, TransformerLayer
from ..checks import real_number, whole_number

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
    settings: dict = field(default_factory=dict)
    facts: dict = field(default_factory=dict)
    kind: type = TransformerLayer
    shared: dict = field(default_factory=dict)
    zeros: frozenset = frozenset()
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
        What the stem is made of, by role: the tensor's name, and its shape in facts and numbers.
    layers : Layers
    prefixes : tuple of str
        What may come before all names, the first where nothing tells.
    activation, eps : tuple of (str, default)
        Their names in the configuration.
    norm : str or None
        Place of the norm after the last layer.
    needs : tuple of (str, values, str)
        Names in the configuration, the values that can be run (the first where it is not there), and what to say.
    decoder : Layers or None
    derive : callable or None
        Takes facts and configuration, and adds facts that are no plain numbers.
    """

    title: str
    stem: str
    sizes: dict
    tensors: dict
    layers: Layers
    prefixes: tuple = ("",)
    activation: tuple = ("hidden_act", "gelu")
    eps: tuple = ("layer_norm_eps", 1e-12)
    norm: str | None = None
    needs: tuple = ()
    decoder: Layers | None = None
    derive: Callable | None = None


# ---- Encoders of text ----

_SIZES = {
    "features": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
}  # fmt: skip
_TEXT_SIZES = {**_SIZES, "vocabulary": "vocab_size", "positions": "max_position_embeddings"}
_ENCODER = (
    ("position_embedding_type", ("absolute",), "only absolute position embeddings can be run"),
    ("is_decoder", (False,), "only encoders can be run"),
)


def _embeddings(width="features", types=True):
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


def _offset(facts, config):
    """Positions count from the one after the padding token's number."""
    facts["first_position"] = whole_number(config.get("pad_token_id", 1), "pad_token_id") + 1


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

_CAUSAL = {"placement": "pre", "causal": True}


def _gpt2(facts, config):
    facts["intermediate"] = facts["intermediate"] or 4 * facts["features"]


def _llama(facts, config):
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or rope
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default" or rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1)) != 1:
        raise ValueError(f"only plain rotary positions can be run, not rescaled or partial ones, got {kind!r}")
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
    Layers("h.{}.", blocks.GPT2, _CAUSAL), prefixes=("", "transformer."), activation=("activation_function", "gelu_new"),
    eps=("layer_norm_epsilon", 1e-5), norm="ln_f", derive=_gpt2,
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
           {"rotary_theta": "theta", "key_heads": "key_heads", "head_size": "head_size"}),
    prefixes=("", "model."), activation=("hidden_act", "silu"), eps=("rms_norm_eps", 1e-6), norm="norm", derive=_llama,
)  # fmt: skip

# ---- T5 ----


def _t5(facts, config):
    form = config.get("feed_forward_proj", "relu")
    gated, _, name = str(form).rpartition("-")
    if gated not in ("", "gated") or name not in ACTIVATIONS:
        raise ValueError(f"feed_forward_proj must be an activation, or 'gated-' and one, got {form!r}")
    facts["gated"] = bool(gated)
    # The reference reads "gated-gelu" as the tanh form.
    facts["activation"] = "gelu_new" if form == "gated-gelu" else name
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
    prefixes=("", "transformer."), activation=(None, "relu"), eps=("layer_norm_epsilon", 1e-6),
    norm="encoder.final_layer_norm", derive=_t5,
    decoder=Layers("decoder.block.{}.", blocks.T5_DECODER, {"decoder": True}, _T5_FACTS, T5Block,
                   {_T5_BIAS: f"decoder.block.0.{_T5_BIAS}"}, count="decoder_layers"),
)  # fmt: skip

# ---- By model_type ----

FAMILIES = {
    "bert": BERT, "roberta": ROBERTA, "xlm-roberta": ROBERTA, "camembert": ROBERTA, "distilbert": DISTILBERT,
    "mpnet": MPNET, "electra": ELECTRA, "gpt2": GPT2, "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "t5": T5,
    "mt5": T5,
}  # fmt: skip
