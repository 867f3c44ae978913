"""Transformer layers of model families: how their checkpoints name the weights of a layer, and reading those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._typing import Array, ArrayLike, Norm, Placement, StateDict
from .weights import read_weight


@dataclass(frozen=True)
class Naming:
    """One way to name the weights of a layer.

    Attributes
    ----------
    places : dict of str to str or tuple
        By part of a layer ("query"), its place: "self_attn.q_proj" has the names "self_attn.q_proj.weight" and ".bias",
        and "self_attn.in_proj_" the names "self_attn.in_proj_weight" and so on. A tuple (place, number, count) is that
        share of the outputs of a fused map.
    transposed : bool
        Whether matrices have one row per input channel.
    vectors : dict of str to str
        By part that is one array, its whole name.
    """

    places: Mapping[str, Any]
    transposed: bool = False
    vectors: Mapping[str, str] = field(default_factory=dict)

    def name(self, role: str) -> str | None:
        """Return the name of a role's array, or None where there is none."""
        part, _, kind = role.rpartition("_")
        place = self.places.get(part)
        if place is None:
            return self.vectors.get(part) if kind == "weight" else None
        place = place[0] if isinstance(place, tuple) else place
        return f"{place}{'' if place.endswith('_') else '.'}{kind}"

    def share(self, role: str) -> tuple[int, int]:
        """Return which share of its array a role has: its number, and of how many."""
        place = self.places.get(role.rpartition("_")[0])
        return (place[1], place[2]) if isinstance(place, tuple) else (0, 1)


@dataclass(frozen=True)
class Family:
    """What errors call a family's layer, the ways in which its weights are named, and names that are no weights."""

    title: str
    namings: tuple[Naming, ...]
    ignored: frozenset[str] = frozenset()


def _projections(prefix: str, letters: str = "qkv", form: str = "{}_proj", output: str = "out_proj") -> dict[str, str]:
    parts = dict(zip(("query", "key", "value"), letters))
    places = {part: f"{prefix}.{form.format(letter)}" for part, letter in parts.items()}
    return {**places, "output": f"{prefix}.{output}"}


def _crossing(places: Mapping[str, str]) -> dict[str, Any]:
    return {f"cross_{part}": place for part, place in places.items()}


def _fused(place: str, prefix: str = "") -> dict[str, Any]:
    return {f"{prefix}{part}": (place, number, 3) for number, part in enumerate(("query", "key", "value"))}


_BERT_FEED_FORWARD = {"up": "intermediate.dense", "down": "output.dense"}
_FC = {"up": "mlp.fc1", "down": "mlp.fc2"}
_VIT_NORMS = {"attention_norm": "layernorm_before", "feed_forward_norm": "layernorm_after"}
_DETR_NORMS = {"attention_norm": "self_attn_layer_norm", "feed_forward_norm": "final_layer_norm"}
_DETR_CROSS_NORM = {"cross_norm": "encoder_attn_layer_norm"}

BERT = Family("BERT", (Naming({
    "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
    "output": "attention.output.dense", "attention_norm": "attention.output.LayerNorm", **_BERT_FEED_FORWARD,
    "feed_forward_norm": "output.LayerNorm",
}),))  # fmt: skip
MPNET = Family("MPNet", (Naming({
    **_projections("attention.attn", form="{}", output="o"), "attention_norm": "attention.LayerNorm",
    **_BERT_FEED_FORWARD, "feed_forward_norm": "output.LayerNorm", "position_bias": "relative_attention_bias",
}),))  # fmt: skip
DISTILBERT = Family("DistilBERT", (Naming({
    **_projections("attention", form="{}_lin", output="out_lin"), "attention_norm": "sa_layer_norm", "up": "ffn.lin1",
    "down": "ffn.lin2", "feed_forward_norm": "output_layer_norm",
}),))  # fmt: skip
VIT = Family("ViT", (
    Naming({
        "query": "attention.attention.query", "key": "attention.attention.key", "value": "attention.attention.value",
        "output": "attention.output.dense", **_BERT_FEED_FORWARD, **_VIT_NORMS,
    }),
    Naming({**_projections("attention", output="o_proj"), **_FC, **_VIT_NORMS}),
))  # fmt: skip
_DINOV2 = {**VIT.namings[0].places, "attention_norm": "norm1", "feed_forward_norm": "norm2"}
_DINOV2_SCALES = {"attention_scale": "layer_scale1.lambda1", "feed_forward_scale": "layer_scale2.lambda1"}
_SWIGLU = {"gate": ("mlp.weights_in", 0, 2), "up": ("mlp.weights_in", 1, 2), "down": "mlp.weights_out"}
DINOV2 = Family("DINOv2", tuple(
    Naming({**_DINOV2, **maps}, vectors=_DINOV2_SCALES) for maps in (_FC, _SWIGLU)
))  # fmt: skip
CLIP = Family("CLIP", (Naming({
    **_projections("self_attn"), "attention_norm": "layer_norm1", **_FC, "feed_forward_norm": "layer_norm2",
}),))  # fmt: skip
GPT2 = Family("GPT-2", (Naming({
    **_fused("attn.c_attn"), "output": "attn.c_proj", "attention_norm": "ln_1", "up": "mlp.c_fc", "down": "mlp.c_proj",
    "feed_forward_norm": "ln_2",
}, transposed=True),), frozenset({"attn.bias", "attn.masked_bias"}))  # fmt: skip
LLAMA = Family("Llama", (Naming({
    **_projections("self_attn", output="o_proj"), "attention_norm": "input_layernorm", "gate": "mlp.gate_proj",
    "up": "mlp.up_proj", "down": "mlp.down_proj", "feed_forward_norm": "post_attention_layernorm",
}),), frozenset({"self_attn.rotary_emb.inv_freq"}))  # fmt: skip


def _t5(decoder: bool) -> Family:
    last = "layer.2" if decoder else "layer.1"
    places = {
        **_projections("layer.0.SelfAttention", form="{}", output="o"), "attention_norm": "layer.0.layer_norm",
        "position_bias": "layer.0.SelfAttention.relative_attention_bias", "down": f"{last}.DenseReluDense.wo",
        "feed_forward_norm": f"{last}.layer_norm",
    }  # fmt: skip
    if decoder:
        places |= _crossing(_projections("layer.1.EncDecAttention", form="{}", output="o"))
        places["cross_norm"] = "layer.1.layer_norm"
    maps = f"{last}.DenseReluDense"
    return Family(f"T5 {'decoder' if decoder else 'encoder'}", (
        Naming({**places, "up": f"{maps}.wi"}), Naming({**places, "gate": f"{maps}.wi_0", "up": f"{maps}.wi_1"}),
    ), frozenset({"layer.1.EncDecAttention.relative_attention_bias.weight"}))  # fmt: skip


def _detr(decoder: bool) -> Family:
    def named(output: str, maps: str) -> Naming:
        places = {**_projections("self_attn", output=output), **_DETR_NORMS, "up": f"{maps}fc1", "down": f"{maps}fc2"}
        if decoder:
            places |= {**_crossing(_projections("encoder_attn", output=output)), **_DETR_CROSS_NORM}
        return Naming(places)

    # The names of torch.nn.Transformer, which DETR and MDETR themselves use; their fused maps have names of their own.
    last = "norm3" if decoder else "norm2"
    torch = {"output": "self_attn.out_proj", "attention_norm": "norm1", "up": "linear1", "down": "linear2",
             "feed_forward_norm": last}
    fused = _fused("self_attn.in_proj_")
    if decoder:
        fused |= _fused("multihead_attn.in_proj_", "cross_")
        torch |= {"cross_output": "multihead_attn.out_proj", "cross_norm": "norm2"}
    return Family(f"DETR {'decoder' if decoder else 'encoder'}", (
        named("out_proj", ""), named("o_proj", "mlp."), Naming({**torch, **fused}),
    ))  # fmt: skip


T5_ENCODER, T5_DECODER = _t5(False), _t5(True)
DETR_ENCODER, DETR_DECODER = _detr(False), _detr(True)
# Layers of speech and translation models have the names that DETR's have, but other settings.
WHISPER_ENCODER = Family("Whisper encoder", DETR_ENCODER.namings[:1])
WHISPER_DECODER = Family("Whisper decoder", DETR_DECODER.namings[:1])
BART_ENCODER = Family("BART encoder", DETR_ENCODER.namings[:1])
BART_DECODER = Family("BART decoder", DETR_DECODER.namings[:1])


# ---- Reading ----

# What the numbers of a weight's shape are, by letter.
LETTERS = {
    "f": "features", "i": "intermediate", "q": "channels of the queries", "k": "channels of the keys",
    "m": "memory_features", "b": "position_buckets", "h": "heads",
}  # fmt: skip

# Settings that tell whether there are biases, and the first of these.
BIAS_ROLES = {"query_bias": "query_bias", "output_bias": "output_bias", "feed_forward_bias": "up_bias"}


def layer_roles(*, gated: bool = False, placement: Placement = "post", norm: Norm = "layernorm",
                query_bias: bool = True, output_bias: bool = True, feed_forward_bias: bool = True,
                norm_bias: bool = True, layer_scale: bool = False, position_buckets: int = 0,
                memory: bool = False) -> dict[str, str]:
    """Return the roles of a layer's weights, each with its shape by `LETTERS`: "query_weight" is "qf"."""
    roles: dict[str, str] = {}

    def add_map(part: str, letters: str, bias: bool) -> None:
        roles[f"{part}_weight"] = letters
        if bias:
            roles[f"{part}_bias"] = letters[0]

    def add_norms(part: str) -> None:
        bias = norm_bias and norm == "layernorm"
        for suffix in ["_norm"] + ["_after_norm"] * (placement == "sandwich"):
            add_map(part + suffix, "f", bias)
        if layer_scale:
            roles[f"{part}_scale_weight"] = "f"

    for prefix, source in [("", "f")] + [("cross_", "m")] * memory:
        add_map(f"{prefix}query", "qf", query_bias)
        add_map(f"{prefix}key", f"k{source}", query_bias)
        add_map(f"{prefix}value", f"k{source}", query_bias)
        add_map(f"{prefix}output", "fq", output_bias)
        add_norms(prefix[:-1] or "attention")
    if position_buckets:
        roles["position_bias_weight"] = "bh"
    for part in ["gate"] * gated + ["up"]:
        add_map(part, "if", feed_forward_bias)
    add_map("down", "fi", feed_forward_bias)
    add_norms("feed_forward")
    return roles


def own_name(role: str) -> str:
    """Return the name that sherl gives the weight of a role."""
    part, _, kind = role.rpartition("_")
    return f"{part}.{kind}"


class LayerWeights:
    """The weights of one layer as a family names them.

    Parameters
    ----------
    weights : mapping of str to array_like
        By names relative to the layer.
    family : Family
    """

    def __init__(self, weights: Mapping[str, ArrayLike], family: Family) -> None:
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights must be a dictionary of arrays by name, got {type(weights).__name__}")
        self._weights, self._family = weights, family
        self._naming = max(family.namings, key=self._known)
        self._arrays: StateDict = {}

    def _known(self, naming: Naming) -> int:
        roles = (f"{part}_{kind}" for part in naming.places for kind in ("weight", "bias"))
        return sum(naming.name(role) in self._weights for role in roles)

    def has(self, role: str) -> bool:
        """Tell whether there is a weight of a role."""
        return self._naming.name(role) in self._weights

    def require(self, roles: Iterable[str]) -> None:
        """Raise where the weights are not those of some roles, each of which the family has a name for."""
        known = {str(self._naming.name(role)) for role in roles}
        missing = sorted(known - set(self._weights))
        unexpected = sorted(str(name) for name in set(self._weights) - known - self._family.ignored)
        groups = {"missing": missing, "unexpected": unexpected}
        faults = "; ".join(f"{kind} {', '.join(names)}" for kind, names in groups.items() if names)
        if faults:
            raise ValueError(f"weights must be those of a {self._family.title} layer: {faults}")

    def sizes(self, roles: Mapping[str, str]) -> dict[str, int]:
        """Return the numbers that the shapes of matrices tell, by letter."""
        sizes: dict[str, int] = {}
        for role, letters in roles.items():
            if len(letters) == 2:
                outputs, inputs = self._matrix_shape(role)
                count = self._naming.share(role)[1]
                if outputs % count:
                    raise ValueError(
                        f"weights[{self._naming.name(role)!r}] must have outputs for {count} maps, got {outputs}"
                    )
                sizes = {letters[0]: outputs // count, letters[1]: inputs} | sizes
        return sizes

    def arrays(self, roles: Mapping[str, str], sizes: Mapping[str, int]) -> StateDict:
        """Return the arrays by role, each of which must have the shape that its letters tell."""
        for role, letters in roles.items():
            count = self._naming.share(role)[1]
            shape = [sizes[letter] for letter in letters]
            shape[0] *= count
            shape = tuple(reversed(shape) if self._naming.transposed else shape)
            found = self._read(role).shape
            if found != shape:
                raise ValueError(f"weights[{self._naming.name(role)!r}] must have shape {shape}, got {found}")
        return {role: self._share(role) for role in roles}

    def _read(self, role: str) -> Array:
        name = str(self._naming.name(role))
        if name not in self._arrays:
            self._arrays[name] = read_weight(self._weights[name], f"weights[{name!r}]")
        return self._arrays[name]

    def _matrix_shape(self, role: str) -> tuple[int, int]:
        shape = self._read(role).shape
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"weights[{self._naming.name(role)!r}] must have two dimensions, got shape {shape}")
        rows, columns = reversed(shape) if self._naming.transposed else shape
        return rows, columns

    def _share(self, role: str) -> Array:
        array = self._read(role)
        number, count = self._naming.share(role)
        if count == 1 and not self._naming.transposed:
            return array  # the caller's own
        array = array.T if self._naming.transposed else array
        length = len(array) // count
        return np.ascontiguousarray(array[number * length : (number + 1) * length])
