"""A post-norm transformer encoder layer, as in BERT: frozen over the caller's weights, or trainable."""

import hashlib

from ..checks import flag, one_of, rate, real_number, whole_number
from .block import UnaryBlock
from .weights import read_weight

__all__ = ["TransformerLayer"]

ACTIVATIONS = {  # by the names of model configurations
    "gelu": "gelu", "gelu_erf": "gelu", "gelu_new": "gelu_tanh", "gelu_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu", "swish": "silu",
    "tanh": "tanh",
}

# Roles of the weights by their place in a BERT layer, and the shape of each by features and intermediate channels.
_BERT_LINEAR = {
    "query": ("attention.self.query", "ff"), "key": ("attention.self.key", "ff"),
    "value": ("attention.self.value", "ff"), "output": ("attention.output.dense", "ff"),
    "attention_norm": ("attention.output.LayerNorm", "f"), "up": ("intermediate.dense", "if"),
    "down": ("output.dense", "fi"), "feed_forward_norm": ("output.LayerNorm", "f"),
}


def bert_names():
    """Return for each role of a weight its name in a BERT layer, and its shape by letters: features, intermediate."""
    names = {}
    for role, (place, shape) in _BERT_LINEAR.items():
        names[f"{role}_weight"] = f"{place}.weight", shape
        names[f"{role}_bias"] = f"{place}.bias", shape[0]
    return names


class TransformerLayer(UnaryBlock):
    """Transformer encoder layer with its norms after the residual sums (BERT), trainable from drawn weights.

    `from_bert` makes one of a checkpoint's weights, frozen or trainable.

    Parameters
    ----------
    features : int
        Channels of input and output.
    heads : int
        Attention heads; they share the features evenly.
    intermediate : int, optional
        Channels inside the feed-forward part; four times the features when None.
    activation : str
        Of the feed-forward part: "gelu", "gelu_tanh" (also "gelu_new"), "quick_gelu", "relu", "silu" or "tanh".
    eps : float
        Of the layer norms.
    dropout, attention_dropout : float
        Rates after the two sublayers and on the attention probabilities, in training.
    seed : int
        Of the first weights, where the block is used alone.
    """

    def __init__(self, features, heads, *, intermediate=None, activation="gelu", eps=1e-12, dropout=0.0,
                 attention_dropout=0.0, seed=0):
        super().__init__(seed)
        self.features = whole_number(features, "features", 1)
        self.heads = whole_number(heads, "heads", 1)
        if self.features % self.heads:
            raise ValueError(f"heads must divide the {self.features} features, got {self.heads}")
        self.intermediate = (
            4 * self.features if intermediate is None else whole_number(intermediate, "intermediate", 1)
        )
        self.activation = ACTIVATIONS[one_of(activation, "activation", tuple(ACTIVATIONS))]
        self.eps = real_number(eps, "eps", above=0.0)
        self.dropout = rate(dropout, "dropout")
        self.attention_dropout = rate(attention_dropout, "attention_dropout")
        self._frozen = None
        self._fingerprint = None

    @classmethod
    def from_bert(cls, weights, heads, activation="gelu", eps=1e-12, trainable=False, *, dropout=0.0,
                  attention_dropout=0.0):
        """Make a layer of a BERT checkpoint's weights.

        Parameters
        ----------
        weights : mapping of str to array_like
            By names relative to the layer, such as ``"attention.self.query.weight"``. A frozen layer keeps the
            caller's arrays where they are float32 and C-contiguous; they must not change while it is in use.
        heads : int
            Attention heads.
        activation : str
            Of the feed-forward part.
        eps : float
            Of the layer norms.
        trainable : bool
            Whether training changes the weights; then they are copied.
        dropout, attention_dropout : float
            Rates in training.

        Returns
        -------
        TransformerLayer

        Raises
        ------
        ValueError
            Where a weight is missing, unexpected, of another shape, or not finite.
        """
        frozen = _read_bert(weights)
        intermediate, features = frozen["up_weight"].shape
        layer = cls(features, heads, intermediate=intermediate, activation=activation, eps=eps, dropout=dropout,
                    attention_dropout=attention_dropout)
        if flag(trainable, "trainable"):
            layer.load_state_dict({_own_name(role): array for role, array in frozen.items()})
        else:
            layer._frozen = frozen
        return layer

    @property
    def out_features(self):
        return self.features

    @property
    def settings(self):
        names = ("features", "heads", "intermediate", "activation", "eps", "dropout", "attention_dropout")
        return {name: getattr(self, name) for name in names}

    @property
    def trainable(self):
        """Whether training changes the weights."""
        return self._frozen is None

    @property
    def fingerprint(self):
        """SHA-256 of a frozen layer's weights and of what else its output depends on, in hexadecimal; else None."""
        if self._frozen is not None and self._fingerprint is None:
            digest = hashlib.sha256(repr((self.heads, self.activation, self.eps)).encode())
            for role, array in sorted(self._frozen.items()):
                digest.update(repr((role, array.shape)).encode())
                digest.update(array)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def __repr__(self):
        return super().__repr__()[:-1] + ("" if self.trainable else ", frozen") + ")"

    def _frozen_count(self):
        return 0 if self.trainable else sum(array.size for array in self._frozen.values())

    def _least_parameters(self):
        return 2 * self.features * (2 * self.features + self.intermediate) if self.trainable else 0

    def _with_dropout(self, other):
        """Return a frozen layer of the same weights with the dropout rates of another."""
        if (self.dropout, self.attention_dropout) == (other.dropout, other.attention_dropout):
            return self
        settings = {**self.settings, "dropout": other.dropout, "attention_dropout": other.attention_dropout}
        return _restored(type(self), settings, self._seed, {}, self._frozen)

    def __deepcopy__(self, memo):
        # A frozen layer never changes, so that one will do.
        return _restored(*self.__reduce__()[1]) if self.trainable else self

    def __reduce__(self):
        kind, settings, seed, state = super().__reduce__()[1]
        return _restored, (kind, settings, seed, state, self._frozen)

    def _inputs(self):
        return [("x", self.features)]

    def _build(self, graph, prefix, inputs, bfloat16=False):
        return graph.transformer_layer(
            prefix, inputs[0], self._frozen, heads=self.heads, intermediate=self.intermediate,
            activation=self.activation, eps=self.eps, dropout=self.dropout, attention_dropout=self.attention_dropout,
            bfloat16=bfloat16,
        )


def _read_bert(weights):
    """Return a BERT layer's weights by role, checked."""
    if not hasattr(weights, "keys"):
        raise TypeError(f"weights must be a dictionary of arrays by name, got {type(weights).__name__}")
    places = bert_names()
    known = {name for name, _ in places.values()}
    missing = sorted(known - set(weights))
    unexpected = sorted(str(name) for name in set(weights) - known)
    if missing or unexpected:
        groups = {"missing": missing, "unexpected": unexpected}
        faults = "; ".join(f"{kind} {', '.join(names)}" for kind, names in groups.items() if names)
        raise ValueError(f"weights must be those of a BERT layer: {faults}")
    arrays = {role: read_weight(weights[name], f"weights[{name!r}]") for role, (name, _) in places.items()}
    up = arrays["up_weight"]
    if up.ndim != 2:
        raise ValueError(f"weights['intermediate.dense.weight'] must have two dimensions, got shape {up.shape}")
    sizes = {"i": up.shape[0], "f": up.shape[1]}
    for role, (name, letters) in places.items():
        shape = tuple(sizes[letter] for letter in letters)
        if arrays[role].shape != shape:
            raise ValueError(f"weights[{name!r}] must have shape {shape}, got {arrays[role].shape}")
    return arrays


def _own_name(role):
    part, _, kind = role.rpartition("_")
    return f"{part}.{kind}"


def _restored(kind, settings, seed, state, frozen):
    layer = kind(**settings, seed=seed)
    layer._frozen = frozen
    layer.load_state_dict(state)
    return layer
