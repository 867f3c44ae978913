"""Transformer layers, frozen over the caller's weights or trainable: one block with the options of all families."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import _core
from .._typing import Activation, Array, ArrayLike, Norm, Placement, StateDict, Uint16As
from ..checks import flag, one_of, rate, real_number, whole_number
from ..features.features import Features
from . import families
from .block import Block, Rows
from .checkpoints import FromCheckpoints
from .families import BIAS_ROLES, LETTERS, LayerWeights, layer_roles, own_name
from .memory_rows import MEMORY_INPUTS, RowsWithMemory
from .rotary import core_scaling, read_scaling

if TYPE_CHECKING:
    from typing import Self

    from .block import AnyRows
    from .families import Family

__all__ = ["T5Block", "TransformerLayer"]

ACTIVATIONS: dict[str, Activation] = {  # by the names of model configurations
    "gelu": "gelu", "gelu_erf": "gelu", "gelu_new": "gelu_tanh", "gelu_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu", "swish": "silu",
    "tanh": "tanh",
}
# The settings that every fingerprint has; others are in it where they are not the defaults.
_ALWAYS = ("heads", "activation", "eps")
_T5 = {"placement": "pre", "norm": "rmsnorm", "scale": 1.0, "query_bias": False, "output_bias": False,
       "feed_forward_bias": False}
_NOT_IN_FINGERPRINT = ("features", "intermediate", "dropout", "attention_dropout", *_ALWAYS)


class TransformerLayer(FromCheckpoints, Block):
    """Transformer layer, by default with its norms after the residual sums (BERT), trainable from drawn weights.

    `from_bert`, `from_mpnet`, `from_vit`, `from_clip`, `from_gpt2`, `from_llama` and `from_detr` make one of a
    checkpoint's weights, frozen or trainable.

    Parameters
    ----------
    features : int
        Channels of input and output.
    heads : int
        Attention heads; without `head_size` they share the features evenly.
    intermediate : int, optional
        Channels inside the feed-forward part; four times the features when None.
    activation : str
        Of the feed-forward part: "gelu", "gelu_tanh" (also "gelu_new"), "quick_gelu", "relu", "silu" or "tanh".
    eps : float
        Of the norms.
    dropout, attention_dropout : float
        Rates after the sublayers and on the attention probabilities, in training.
    seed : int
        Of the first weights, where the block is used alone.
    key_heads : int, optional
        Heads of keys and values, each shared by as many heads of queries; one for each of them when None.
    head_size : int, optional
        Channels of a head.
    gated : bool
        Feed-forward ``down(activation(gate(x)) * up(x))`` in place of ``down(activation(up(x)))``.
    placement : {"post", "pre", "sandwich"}
        Norms after the residual sums, before the sublayers, or before and after the sublayers.
    norm : {"layernorm", "rmsnorm"}
    query_bias, output_bias, feed_forward_bias, norm_bias : bool
        Whether there are biases: of queries, keys and values; of the attention's output; of the feed-forward part; of
        layer norms.
    layer_scale : bool
        Whether what a sublayer adds is multiplied by a factor for each channel.
    causal : bool
        Whether a token sees itself and those before it only.
    scale : float, optional
        Of the scores; one over the root of the head size when None.
    rotary_theta : float, optional
        Base of the frequencies of rotary positions; None for none.
    rotary_dimensions : int, optional
        Channels of a head that turn, the first ones; all when None.
    rotary_scaling : dict of str to float, optional
        Slower turns for longer texts. ``"factor"`` divides the frequencies; with ``"original"``, ``"low"`` and
        ``"high"`` those of pairs of channels that make fewer than `low` turns over the `original` positions. Pairs of
        more than `high` turns keep theirs, and in between is the mean of both, weighted by where the turns lie.
    position_buckets : int
        Buckets of relative positions, each with a bias for each head; 0 for none. Positions count the rows that are
        meant, without those that a mask leaves out.
    max_distance : int
        Of a key from a query, from which on all share a bucket.
    bidirectional : bool
        Whether keys after the query have buckets of their own.
    positions : bool
        Whether the layer reads ``positions`` beside x, which are added to what makes queries and keys.
    memory_features : int, optional
        Channels of a ``memory`` that the layer attends to between self-attention and feed-forward part; None for none.
    memory_positions : bool
        Whether it reads ``memory_positions``, which are added to what makes the memory's keys.
    """

    _SETTINGS: tuple[str, ...] = (
        "features", "heads", "intermediate", "activation", "eps", "dropout", "attention_dropout", "key_heads",
        "head_size", "gated", "placement", "norm", "query_bias", "output_bias", "feed_forward_bias", "norm_bias",
        "layer_scale", "causal", "scale", "rotary_theta", "rotary_dimensions", "rotary_scaling", "position_buckets",
        "max_distance", "bidirectional", "positions", "memory_features", "memory_positions",
    )  # fmt: skip

    def __init__(self, features: int, heads: int, *, intermediate: int | None = None, activation: str = "gelu",
                 eps: float = 1e-12, dropout: float = 0.0, attention_dropout: float = 0.0, seed: int = 0,
                 key_heads: int | None = None, head_size: int | None = None, gated: bool = False,
                 placement: Placement = "post", norm: Norm = "layernorm", query_bias: bool = True,
                 output_bias: bool = True, feed_forward_bias: bool = True, norm_bias: bool = True,
                 layer_scale: bool = False, causal: bool = False, scale: float | None = None,
                 rotary_theta: float | None = None, rotary_dimensions: int | None = None,
                 rotary_scaling: Mapping[str, float] | None = None, position_buckets: int = 0, max_distance: int = 128,
                 bidirectional: bool = True, positions: bool = False, memory_features: int | None = None,
                 memory_positions: bool = False) -> None:
        super().__init__(seed)
        self.features = whole_number(features, "features", 1)
        self.intermediate = _whole_or_none(intermediate, "intermediate") or 4 * self.features
        self.activation = ACTIVATIONS[one_of(activation, "activation", tuple(ACTIVATIONS))]
        self.eps = real_number(eps, "eps", above=0.0)
        self.dropout = rate(dropout, "dropout")
        self.attention_dropout = rate(attention_dropout, "attention_dropout")
        self._set_heads(heads, key_heads, head_size)
        self.placement = one_of(placement, "placement", ("post", "pre", "sandwich"))
        self.norm = one_of(norm, "norm", ("layernorm", "rmsnorm"))
        self.scale = None if scale is None else real_number(scale, "scale", above=0.0)
        self._set_rotary(rotary_theta, rotary_dimensions, rotary_scaling)
        self.gated = flag(gated, "gated")
        self.query_bias, self.output_bias = flag(query_bias, "query_bias"), flag(output_bias, "output_bias")
        self.feed_forward_bias = flag(feed_forward_bias, "feed_forward_bias")
        self.norm_bias = flag(norm_bias, "norm_bias")
        self.layer_scale = flag(layer_scale, "layer_scale")
        self.causal = flag(causal, "causal")
        self.bidirectional = flag(bidirectional, "bidirectional")
        self._set_buckets(position_buckets, max_distance)
        self.positions = flag(positions, "positions")
        self.memory_features = _whole_or_none(memory_features, "memory_features")
        self.memory_positions = flag(memory_positions, "memory_positions")
        if self.memory_positions and self.memory_features is None:
            raise ValueError("memory_positions goes with memory_features")
        self._frozen: StateDict | None = None
        self._fingerprint: str | None = None

    def _set_heads(self, heads: int, key_heads: int | None, head_size: int | None) -> None:
        self.heads = whole_number(heads, "heads", 1)
        self.key_heads = _whole_or_none(key_heads, "key_heads")
        self.head_size = _whole_or_none(head_size, "head_size")
        if self.head_size is None and self.features % self.heads:
            raise ValueError(f"heads must divide the {self.features} features, got {self.heads}")
        if self.heads % (self.key_heads or self.heads):
            raise ValueError(f"key_heads must divide the {self.heads} heads, got {self.key_heads}")

    def _set_rotary(self, theta: float | None, dimensions: int | None, scaling: Any) -> None:
        self.rotary_theta = None if theta is None else real_number(theta, "rotary_theta", least=1.0)
        self.rotary_dimensions = _whole_or_none(dimensions, "rotary_dimensions")
        turned = self.rotary_dimensions or self._head_channels
        if theta is not None and (turned % 2 or turned > self._head_channels):
            raise ValueError(
                f"rotary_dimensions must be even, and at most the {self._head_channels} channels of a head, "
                f"got {turned}"
            )
        if scaling is not None and theta is None:
            raise ValueError("rotary_scaling goes with rotary_theta")
        self.rotary_scaling = None if scaling is None else read_scaling(scaling)

    def _set_buckets(self, buckets: int, max_distance: int) -> None:
        sides = 2 if self.bidirectional else 1
        self.position_buckets = whole_number(buckets, "position_buckets")
        self.max_distance = whole_number(max_distance, "max_distance", 1)
        if self.position_buckets and (self.position_buckets < 2 * sides or self.position_buckets % sides):
            raise ValueError(
                f"position_buckets must be {'even, and 4' if self.bidirectional else '2'} or more, got {buckets}"
            )
        exact = self.position_buckets // sides // 2
        if self.max_distance <= exact:
            raise ValueError(f"max_distance must be more than {exact} with {buckets} buckets, got {max_distance}")

    @classmethod
    def _of_family(cls, family: Family, weights: Mapping[str, ArrayLike], heads: int, trainable: bool,
                   **settings: Any) -> Self:
        """Make a layer of a family's weights.

        Of the settings a bias may be None, and key_heads, position_buckets and memory_features True: as the weights
        say.
        """
        given = LayerWeights(weights, family)
        for name, role in BIAS_ROLES.items():
            if name in settings and settings[name] is None:
                settings[name] = given.has(role)
        roles = _roles_of(cls._in_full(settings))
        given.require(roles)
        layer = cls._of_sizes(given.sizes(roles), whole_number(heads, "heads", 1), settings)
        arrays = given.arrays(roles, layer._sizes())
        if flag(trainable, "trainable"):
            layer.load_state_dict({own_name(role): array for role, array in arrays.items()})
        else:
            layer._frozen = arrays
        return layer

    @classmethod
    def _in_full(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Return settings with those that the kind of layer decides."""
        return settings

    @classmethod
    def _of_sizes(cls, sizes: Mapping[str, int], heads: int, settings: dict[str, Any]) -> Self:
        queries, keys = sizes["q"], sizes["k"]
        if queries % heads:
            raise ValueError(f"heads must divide the {queries} {LETTERS['q']}, got {heads}")
        head_size = queries // heads
        if settings.get("key_heads") is True:
            if keys % head_size or heads % (keys // head_size):
                raise ValueError(f"the {keys} {LETTERS['k']} must be heads of {head_size} that {heads} heads can share")
            settings["key_heads"] = None if keys == queries else keys // head_size
        for name, letter in (("position_buckets", "b"), ("memory_features", "m")):
            if settings.get(name) is True:
                settings[name] = sizes[letter]
        if queries != sizes["f"]:
            settings["head_size"] = head_size
        return cls(sizes["f"], heads, intermediate=sizes["i"], **settings)

    @property
    def _head_channels(self) -> int:
        return self.head_size or self.features // self.heads

    def _sizes(self) -> dict[str, int]:
        """Return the numbers of the weights' shapes, by the letters of `families.LETTERS`."""
        return {
            "f": self.features, "i": self.intermediate, "q": self.heads * self._head_channels,
            "k": (self.key_heads or self.heads) * self._head_channels, "m": self.memory_features or 0,
            "b": self.position_buckets, "h": self.heads,
        }  # fmt: skip

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the weights by role."""
        sizes = self._sizes()
        roles = _roles_of({name: getattr(self, name) for name in TransformerLayer._SETTINGS})
        return {role: tuple(sizes[letter] for letter in letters) for role, letters in roles.items()}

    @property
    def out_features(self) -> int:
        return self.features

    @property
    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._SETTINGS}

    @property
    def trainable(self) -> bool:
        """Whether training changes the weights."""
        return self._frozen is None

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of a frozen layer's weights and of what else its output depends on, in hexadecimal; else None."""
        if self._frozen is not None and self._fingerprint is None:
            digest = hashlib.sha256(repr(tuple(getattr(self, name) for name in _ALWAYS)).encode())
            others = self._unusual()
            if others:
                digest.update(repr(others).encode())
            for role, array in sorted(self._frozen.items()):
                digest.update(repr((role, array.shape)).encode())
                digest.update(array)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _unusual(self) -> list[tuple[str, Any]]:
        """Return the settings, in order, that a fingerprint has beside those it always has."""
        usual = TransformerLayer.__init__.__kwdefaults__ or {}
        names = sorted(set(TransformerLayer._SETTINGS) - set(_NOT_IN_FINGERPRINT))
        return [(name, getattr(self, name)) for name in names if getattr(self, name) != usual[name]]

    def __repr__(self) -> str:
        usual = type(self).__init__.__kwdefaults__ or {}
        settings = ", ".join(
            f"{name}={value!r}" for name, value in self.settings.items() if name not in usual or value != usual[name]
        )
        return f"{type(self).__name__}({settings}{'' if self.trainable else ', frozen'})"

    @property
    def _is_frozen(self) -> bool:
        return self._frozen is not None

    def _frozen_count(self) -> int:
        return sum(array.size for array in (self._frozen or {}).values())

    def _least_parameters(self) -> int:
        matrices = [shape for shape in self._shapes().values() if len(shape) == 2]
        return sum(rows * columns for rows, columns in matrices) if self.trainable else 0

    def _with_dropout(self, other: TransformerLayer) -> TransformerLayer:
        """Return a frozen layer of the same weights with the dropout rates of another."""
        if (self.dropout, self.attention_dropout) == (other.dropout, other.attention_dropout):
            return self
        settings = {**self.settings, "dropout": other.dropout, "attention_dropout": other.attention_dropout}
        return _restored(type(self), settings, self._seed, {}, self._frozen)

    def __deepcopy__(self, memo: dict[int, Any]) -> TransformerLayer:
        # A frozen layer never changes, so that one will do.
        return _restored(*self.__reduce__()[1]) if self.trainable else self

    def __reduce__(self) -> tuple[Any, ...]:
        kind, settings, seed, state = super().__reduce__()[1]
        return _restored, (kind, settings, seed, state, self._frozen)

    def __call__(self, x: ArrayLike | Features, mask: ArrayLike | None = None, *,
                 positions: ArrayLike | Features | None = None, memory: ArrayLike | Features | None = None,
                 memory_mask: ArrayLike | None = None, memory_positions: ArrayLike | Features | None = None,
                 dtype: Uint16As = None) -> Array | Features:
        """Compute the output.

        Parameters
        ----------
        x : array_like, shape (batch, tokens, features), or Features of one tap
            float32, float64, float16 or bfloat16.
        mask : array_like of bool, int or float, shape (batch, tokens), optional
            1 where a row is meant. Other rows are left out, and carry zeros in what comes back.
        positions : array_like of the shape of `x`, or Features, optional
            What is added for queries and keys; with a layer of these, and only there.
        memory : array_like, shape (batch, memory tokens, memory features), or Features of one tap, optional
            What the layer attends to; with a layer that has `memory_features`, and only there.
        memory_mask : array_like, shape (batch, memory tokens), optional
            As `mask`, of the memory.
        memory_positions : array_like of the shape of `memory`, or Features, optional
            What is added for the memory's keys; with a layer of these, and only there.
        dtype : {None, "bfloat16"}
            How to take uint16.

        Returns
        -------
        numpy.ndarray of float32, shape (batch, tokens, features), or Features where `x` is
        """
        given = {"x": x, "positions": positions, "memory": memory, "memory_positions": memory_positions}
        return self._forward(self._rows(given, mask, memory_mask, dtype))

    def vjp(self, x: ArrayLike | Features, cotangent: ArrayLike | Features, mask: ArrayLike | None = None, *,
            positions: ArrayLike | Features | None = None, memory: ArrayLike | Features | None = None,
            memory_mask: ArrayLike | None = None, memory_positions: ArrayLike | Features | None = None,
            training: bool = False, seed: int = 0,
            dtype: Uint16As = None) -> tuple[Array | Features, dict[str, Array | Features]]:
        """Compute the output and the gradient of its product with a cotangent.

        Parameters
        ----------
        x, mask, positions, memory, memory_mask, memory_positions, dtype
            As for a call.
        cotangent : array_like or Features
            Gradient of a scalar with respect to the output, of the output's form.
        training : bool
            Whether dropout acts.
        seed : int
            Of dropout.

        Returns
        -------
        numpy.ndarray of float32, or Features
            The output.
        dict of str to numpy.ndarray of float32, or Features
            Gradients by parameter name, and by the names of the inputs: ``"x"`` and, where given, ``"positions"``,
            ``"memory"``, ``"memory_positions"``.
        """
        given = {"x": x, "positions": positions, "memory": memory, "memory_positions": memory_positions}
        wanted = tuple(name for name, _ in self._inputs())
        return self._gradient(self._rows(given, mask, memory_mask, dtype), cotangent, wanted, training, seed, dtype)

    def _rows(self, given: Mapping[str, Any], mask: ArrayLike | None, memory_mask: ArrayLike | None,
              dtype: Uint16As) -> AnyRows:
        channels = dict(self._inputs())
        for name, value in given.items():
            if (value is None) == (name in channels):
                raise ValueError(f"{name} must be {'given to' if name in channels else 'None with'} this layer")
        if memory_mask is not None and "memory" not in channels:
            raise ValueError("memory_mask must be None with this layer")

        def rows_of(names: Sequence[str], mask: ArrayLike | None, mask_name: str) -> Rows:
            names = [name for name in names if name in channels]
            return Rows([given[name] for name in names], names, mask, [channels[name] for name in names], dtype,
                        mask_name)

        rows = rows_of(("x", "positions"), mask, "mask")
        return RowsWithMemory(rows,
                              rows_of(MEMORY_INPUTS, memory_mask, "memory_mask")) if "memory" in channels else rows

    def _inputs(self) -> list[tuple[str, int]]:
        inputs = [("x", self.features)]
        if self.positions:
            inputs.append(("positions", self.features))
        if self.memory_features is not None:
            inputs.append(("memory", self.memory_features))
        if self.memory_positions:
            inputs.append(("memory_positions", self.memory_features or 0))
        return inputs

    def _declare(self, graph: _core.Graph, wanted: Sequence[str]) -> list[int]:
        tokens = graph.space("tokens")
        memory = tokens if self.memory_features is None else graph.space("memory")
        return [
            graph.input(name, memory if name in MEMORY_INPUTS else tokens, channels, name in wanted)
            for name, channels in self._inputs()
        ]

    def _build(self, graph: _core.Graph, prefix: str, inputs: Sequence[int], bfloat16: bool = False) -> int:
        x, *others = inputs
        beside: dict[str, Any] = dict(zip([name for name, _ in self._inputs()][1:], others))
        left_out = ("features", "positions", "memory_features", "memory_positions")
        settings = {name: getattr(self, name) for name in TransformerLayer._SETTINGS if name not in left_out}
        settings |= core_scaling(settings.pop("rotary_scaling"))
        return graph.transformer_layer(prefix, x, self._frozen, **beside, **settings, bfloat16=bfloat16)


class T5Block(TransformerLayer):
    """Block of T5's encoder or decoder: RMS norms before the sublayers, no biases, biased scores that are not scaled.

    `from_t5` makes one of a checkpoint's weights. A decoder block reads ``memory`` beside x.

    Parameters
    ----------
    features, heads, intermediate, dropout, attention_dropout, seed, head_size, gated, position_buckets, max_distance
        As for `TransformerLayer`.
    activation : str
        Of the feed-forward part.
    eps : float
        Of the RMS norms.
    decoder : bool
        Whether a token sees itself and those before it only, and the block attends to a memory.
    """

    _SETTINGS = ("features", "heads", "intermediate", "activation", "eps", "dropout", "attention_dropout", "head_size",
                 "gated", "decoder", "position_buckets", "max_distance")

    def __init__(self, features: int, heads: int, *, intermediate: int | None = None, activation: str = "relu",
                 eps: float = 1e-6, dropout: float = 0.0, attention_dropout: float = 0.0, seed: int = 0,
                 head_size: int | None = None, gated: bool = False, decoder: bool = False, position_buckets: int = 32,
                 max_distance: int = 128) -> None:
        self.decoder = flag(decoder, "decoder")
        given = {"intermediate": intermediate, "activation": activation, "eps": eps, "dropout": dropout,
                 "attention_dropout": attention_dropout, "head_size": head_size, "gated": gated, "decoder": decoder,
                 "position_buckets": position_buckets, "max_distance": max_distance}
        super().__init__(features, heads, seed=seed, **self._in_full(given, features))

    @classmethod
    def _in_full(cls, settings: dict[str, Any], features: int | bool = True) -> dict[str, Any]:
        if "decoder" not in settings:
            raise TypeError("a T5Block is made by from_t5; layers of other families are made by TransformerLayer")
        settings = {**settings, **_T5}
        decoder = settings.pop("decoder")
        return settings | {"causal": decoder, "bidirectional": not decoder,
                           "memory_features": features if decoder else None}

    @classmethod
    def from_t5(cls, weights: Mapping[str, ArrayLike], heads: int, eps: float = 1e-6, decoder: bool = False,
                max_distance: int = 128, activation: str | None = None, trainable: bool = False, *,
                dropout: float = 0.0, attention_dropout: float = 0.0) -> Self:
        """Make a block of a T5 checkpoint's weights.

        Parameters
        ----------
        weights : mapping of str to array_like
            By names relative to the block, such as ``"layer.0.SelfAttention.q.weight"``. The table
            ``"layer.0.SelfAttention.relative_attention_bias.weight"``, which checkpoints have in block 0 alone, is that
            of all blocks and must be among them. A frozen block keeps the caller's arrays where they are float32 and
            C-contiguous; they must not change while it is in use.
        heads : int
            Attention heads.
        eps : float
            Of the RMS norms.
        decoder : bool
            Whether the block is one of the decoder.
        max_distance : int
            Of a key from a query, from which on all share a bucket.
        activation : str, optional
            Of the feed-forward part; when None ReLU with ``wi`` and tanh-GELU with ``wi_0`` and ``wi_1``.
        trainable : bool
            Whether training changes the weights; then they are copied.
        dropout, attention_dropout : float
            Rates in training.

        Returns
        -------
        T5Block

        Raises
        ------
        ValueError
            Where a weight is missing, unexpected, of another shape, or not finite.
        """
        family = families.T5_DECODER if flag(decoder, "decoder") else families.T5_ENCODER
        gated = LayerWeights(weights, family).has("gate_weight")
        return cls._of_family(
            family, weights, heads, trainable, gated=gated, eps=eps, decoder=decoder, max_distance=max_distance,
            activation=activation or ("gelu_tanh" if gated else "relu"), position_buckets=True, dropout=dropout,
            attention_dropout=attention_dropout,
        )


def _whole_or_none(value: object, name: str) -> int | None:
    return None if value is None else whole_number(value, name, 1)


def _roles_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the roles of the weights of a layer of these settings, with their shapes by letters."""
    names = (layer_roles.__kwdefaults__ or {}).keys() & settings.keys()
    return layer_roles(**{name: settings[name] for name in names}, memory=bool(settings.get("memory_features")))


def _restored(kind: type[Any], settings: dict[str, Any], seed: int, state: StateDict,
              frozen: StateDict | None) -> TransformerLayer:
    layer: TransformerLayer = kind(**settings, seed=seed)
    layer._frozen = frozen
    layer.load_state_dict(state)
    return layer
