"""MTSA, the Multi-Tiered Sensing Adapter: consolidates a backbone's shallow states into one feature map."""

from ..checks import one_of, rate, real_number, whole_number
from ..features.features import Features
from .block import Block, Rows

__all__ = ["MTSA"]

MOST_TAPS = 1024


class MTSA(Block):
    """Multi-Tiered Sensing Adapter, token by token.

    Every tap is mapped down to `hidden` channels; the last one guides how the others are weighted against each other,
    similar ones sharing their weight; the result is mapped up and added to the gated `last`.

    Parameters
    ----------
    taps : int
        Hidden states that the block reads, two or more.
    features : int or sequence of int
        Channels of the taps, or of each of them.
    hidden : int
        Channels after the down maps.
    down : {"layernorm", "gated"}
        Down map: a linear map and layer norm, or a gated linear map.
    guidance : {"token", "residual_mlp"}
        Whether the weighted sum of the shallow features is taken as it is, or through a two-layer map with a norm.
    up_norm : {None, "layernorm"}
        Norm after the up map.
    eps : float, optional
        Of the norms by which the weights are scaled; 1e-8 for layer norm with token guidance, else 1e-6.
    down_norm_eps : float
        Of the layer norms of the down maps and of the guidance.
    up_norm_eps : float, optional
        Of the layer norm of the up map; 1e-12 with token guidance, else 1e-5.
    dropout : float
        Rate after the up map.
    gate_temperature : float
        What the gate is divided by before its tanh.
    out_features : int, optional
        Channels of the output and of `last`; those of the last tap when None.
    seed : int
        Of the first weights, where the block is used alone.

    References
    ----------
    H. Diao et al., "SHERL: Synthesizing High Accuracy and Efficient Memory for Resource-Limited Transfer Learning",
    ECCV 2024, arXiv:2407.07523.
    """

    def __init__(self, taps, features, hidden, *, down="layernorm", guidance="token", up_norm=None, eps=None,
                 down_norm_eps=1e-5, up_norm_eps=None, dropout=0.0, gate_temperature=0.1, out_features=None, seed=0):
        super().__init__(seed)
        self.taps = whole_number(taps, "taps", 2, MOST_TAPS)
        self.features = _widths(features, self.taps)
        self.hidden = whole_number(hidden, "hidden", 1)
        self.down = one_of(down, "down", ("layernorm", "gated"))
        self.guidance = one_of(guidance, "guidance", ("token", "residual_mlp"))
        self.up_norm = one_of(up_norm, "up_norm", (None, "layernorm"))
        if eps is None:
            eps = 1e-8 if (down, guidance) == ("layernorm", "token") else 1e-6
        if up_norm_eps is None:
            up_norm_eps = 1e-12 if guidance == "token" else 1e-5
        self.eps = real_number(eps, "eps", above=0.0)
        self.down_norm_eps = real_number(down_norm_eps, "down_norm_eps", above=0.0)
        self.up_norm_eps = real_number(up_norm_eps, "up_norm_eps", above=0.0)
        self.dropout = rate(dropout, "dropout")
        self.gate_temperature = real_number(gate_temperature, "gate_temperature", above=0.0)
        self._out_features = (
            self.features[-1] if out_features is None else whole_number(out_features, "out_features", 1)
        )

    @property
    def out_features(self):
        return self._out_features

    @property
    def settings(self):
        names = ("taps", "features", "hidden", "down", "guidance", "up_norm", "eps", "down_norm_eps", "up_norm_eps",
                 "dropout", "gate_temperature", "out_features")
        settings = {name: getattr(self, name) for name in names}
        settings["features"] = self.features[0] if len(set(self.features)) == 1 else list(self.features)
        return settings

    def __call__(self, taps, last=None, mask=None, *, dtype=None):
        """Compute the output.

        Parameters
        ----------
        taps : sequence of array_like, each of shape (batch, tokens, channels), or Features
            The hidden states, the guide last. float32, float64, float16 or bfloat16.
        last : array_like, shape (batch, tokens, out_features), or Features of one tap, optional
            What the late layer would have received; the last tap when None.
        mask : array_like of bool, int or float, shape (batch, tokens), optional
            1 where a row is meant. Other rows are left out, and carry zeros in what comes back.
        dtype : {None, "bfloat16"}
            How to take uint16.

        Returns
        -------
        numpy.ndarray of float32, shape (batch, tokens, out_features), or Features where `taps` are
        """
        return self._forward(self._rows(taps, last, mask, dtype))

    def vjp(self, taps, cotangent, last=None, mask=None, taps_gradient=False, *, training=False, seed=0, dtype=None):
        """Compute the output and the gradient of its product with a cotangent.

        Parameters
        ----------
        taps, last, mask, dtype
            As for a call.
        cotangent : array_like or Features
            Gradient of a scalar with respect to the output, of the output's form.
        taps_gradient : bool
            Whether to compute gradients of the taps too. Where `last` is None, that of the last tap is the one
            through its down map alone, and the rest is under ``"last"``.
        training : bool
            Whether dropout acts.
        seed : int
            Of dropout.

        Returns
        -------
        numpy.ndarray of float32, or Features
            The output.
        dict of str to numpy.ndarray of float32, or Features
            Gradients by parameter name, ``"last"``, and ``"tap0"``, ``"tap1"`` … where asked for.
        """
        names = [name for name, _ in self._inputs()]
        wanted = tuple(names) if taps_gradient else ("last",)
        return self._gradient(self._rows(taps, last, mask, dtype), cotangent, wanted, training, seed, dtype)

    def _rows(self, taps, last, mask, dtype):
        if isinstance(taps, Features):
            values = [taps, taps.select([-1]) if last is None else last]
        elif isinstance(taps, str) or not hasattr(taps, "__iter__"):
            raise TypeError(f"taps must be a sequence of arrays or Features, got {type(taps).__name__}")
        else:
            taps = list(taps)
            if len(taps) != self.taps:
                raise ValueError(f"taps must be {self.taps} arrays, got {len(taps)}")
            values = [*taps, taps[-1] if last is None else last]
        names = [*(f"taps[{number}]" for number in range(self.taps)), "last"]
        return Rows(values, names, mask, [channels for _, channels in self._inputs()], dtype)

    def _least_parameters(self):
        down = sum(self.features) + (2 * self.taps * self.hidden if self.down == "gated" else 0)
        guidance = 2 * self.features[-1] if self.guidance == "residual_mlp" else 0
        return self.hidden * (down + guidance + self.out_features)

    def _inputs(self):
        return [*((f"tap{number}", width) for number, width in enumerate(self.features)), ("last", self.out_features)]

    def _build(self, graph, prefix, inputs):
        *taps, last = inputs
        return graph.mtsa(
            prefix, taps, last, hidden=self.hidden, out_features=self.out_features, down=self.down,
            guidance=self.guidance, up_norm=self.up_norm is not None, eps=self.eps, down_norm_eps=self.down_norm_eps,
            up_norm_eps=self.up_norm_eps, dropout=self.dropout, gate_temperature=self.gate_temperature,
        )


def _widths(features, taps):
    if not hasattr(features, "__len__"):
        return [whole_number(features, "features", 1)] * taps
    if len(features) != taps:
        raise ValueError(f"features must be a number, or one for each of the {taps} taps, got {len(features)}")
    return [whole_number(width, "features", 1) for width in features]
