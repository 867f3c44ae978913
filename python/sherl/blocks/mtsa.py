"""MTSA, the Multi-Tiered Sensing Adapter: consolidates a backbone's shallow states into one feature map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, cast

import numpy as np

from .. import _core
from .._typing import Array, ArrayLike, Down, Guidance, Integers, Uint16As, UpNorm
from ..checks import flag, one_of, rate, real_number, whole_number
from ..features.features import Features, check_channels
from .block import Block, Rows
from .forms import Images, Tower

__all__ = ["MTSA"]

MOST_TAPS = 1024
LARGEST_WINDOW = 1024

Added = TypeVar("Added", int, list[int])


class MTSA(Block):
    """Multi-Tiered Sensing Adapter.

    Every tap is mapped down to `hidden` channels; the last one guides how the others are weighted against each other,
    similar ones sharing their weight; the result is mapped up and added to the gated `last`. Token by token; pixel by
    pixel of images with `pool`; sample by sample, over all its tokens, with spatial guidance.

    The presets `bert`, `t5`, `cross_modal`, `resnet`, `detr` and `clip` have the published settings of each backbone.

    Parameters
    ----------
    taps : int
        Hidden states that the block reads, two or more.
    features : int or sequence of int
        Channels of the taps, or of each of them.
    hidden : int
        Channels after the down maps.
    down : {"layernorm", "gated", "relu", "batchnorm"}
        Down map: a linear map and layer norm, a gated linear map, a relu and a linear map, or a linear map and batch
        norm.
    guidance : {"token", "residual_mlp", "spatial"}
        Whether the weighted sum of the shallow features is taken as it is, or through a two-layer map with a norm.
        Spatial guidance first reduces every tap to one row a sample, by token weights and a base row, with `last`, the
        output of a tower, as the guide; its output has one row a sample.
    up_norm : {None, "layernorm", "batchnorm"}
        Norm after the up map. With batch norm a relu follows it, and none comes before the up map.
    eps : float, optional
        Of the norms by which the weights are scaled; 1e-8 for token guidance with layer norm or batch norm, else 1e-6.
    down_norm_eps : float
        Of the norms of the down maps and of the guidance.
    up_norm_eps : float, optional
        Of the norm of the up map; 1e-12 with layer norm and token guidance, else 1e-5.
    dropout : float
        Rate after the up map.
    gate_temperature : float
        What the gate is divided by before its tanh, or the gates of the base rows before their sigmoid.
    out_features : int, optional
        Channels of the output and of `last`; those of the last tap when None.
    pool : sequence of int, optional
        Taps are images, and these are the windows of their pooling (maximum plus mean, windows side by side), which
        bring all to the size of the last, whose window is 1.
    base : {"first", "position"}
        With spatial guidance: the base row of each sample, its first or the one that `position` tells.
    gated_base : bool
        With spatial guidance: whether the base rows are scaled by trained gates.
    momentum : float
        By which batch norms move their running statistics in training.
    seed : int
        Of the first weights, where the block is used alone.

    References
    ----------
    H. Diao et al., "SHERL: Synthesizing High Accuracy and Efficient Memory for Resource-Limited Transfer Learning",
    ECCV 2024, arXiv:2407.07523.
    """

    def __init__(self, taps: int, features: int | Sequence[int], hidden: int, *, down: Down = "layernorm",
                 guidance: Guidance = "token", up_norm: UpNorm | None = None, eps: float | None = None,
                 down_norm_eps: float = 1e-5, up_norm_eps: float | None = None, dropout: float = 0.0,
                 gate_temperature: float = 0.1, out_features: int | None = None, pool: Sequence[int] | None = None,
                 base: Literal["first", "position"] = "first", gated_base: bool = False, momentum: float = 0.1,
                 seed: int = 0) -> None:
        super().__init__(seed)
        self.taps = whole_number(taps, "taps", 2, MOST_TAPS)
        self.features = _widths(features, self.taps)
        self.hidden = whole_number(hidden, "hidden", 1)
        self.down = one_of(down, "down", ("layernorm", "gated", "relu", "batchnorm"))
        self.guidance = one_of(guidance, "guidance", ("token", "residual_mlp", "spatial"))
        self.up_norm = one_of(up_norm, "up_norm", (None, "layernorm", "batchnorm"))
        if eps is None:
            eps = 1e-8 if guidance == "token" and down in ("layernorm", "batchnorm") else 1e-6
        if up_norm_eps is None:
            up_norm_eps = 1e-12 if guidance == "token" and up_norm != "batchnorm" else 1e-5
        self.eps = real_number(eps, "eps", above=0.0)
        self.down_norm_eps = real_number(down_norm_eps, "down_norm_eps", above=0.0)
        self.up_norm_eps = real_number(up_norm_eps, "up_norm_eps", above=0.0)
        self.dropout = rate(dropout, "dropout")
        self.gate_temperature = real_number(gate_temperature, "gate_temperature", above=0.0)
        self._out_features = (
            self.features[-1] if out_features is None else whole_number(out_features, "out_features", 1)
        )
        self.pool = _windows(pool, self.taps)
        self.base = one_of(base, "base", ("first", "position"))
        self.gated_base = flag(gated_base, "gated_base")
        self.momentum = real_number(momentum, "momentum", least=0.0, below=1.0)
        if guidance == "spatial" and pool is not None:
            raise ValueError("pool must be None with spatial guidance, whose taps are tokens")
        if guidance != "spatial" and (base != "first" or gated_base):
            raise ValueError("base and gated_base go with guidance=\"spatial\"")

    # Presets: the published settings of each backbone.

    @classmethod
    def bert(cls, features: int | Sequence[int] = 768, taps: int = 12, hidden: int | None = None,
             **settings: Any) -> MTSA:
        """Make the adapter of BERT and other post-norm encoders: layer norms, dropout 0.1 (by default of BERT base).

        Parameters
        ----------
        features, taps, hidden
            As for MTSA; `hidden` is by default an eighth of the channels.
        **settings
            Others of MTSA.

        Returns
        -------
        MTSA
        """
        return cls._preset(features, taps, hidden, 8, settings, up_norm="layernorm", eps=1e-8, up_norm_eps=1e-12,
                           dropout=0.1)

    @classmethod
    def t5(cls, features: int | Sequence[int] = 768, taps: int = 10, hidden: int | None = None,
           **settings: Any) -> MTSA:
        """Make the adapter of a T5 encoder or decoder: gated down maps (by default of the encoder of T5 base).

        Parameters
        ----------
        features, taps, hidden
            As for MTSA; `hidden` is by default an eighth of the channels.
        **settings
            Others of MTSA.

        Returns
        -------
        MTSA
        """
        return cls._preset(features, taps, hidden, 8, settings, down="gated", eps=1e-6)

    @classmethod
    def cross_modal(cls, features: int | Sequence[int] = 768, taps: int = 12, hidden: int | None = None,
                    **settings: Any) -> MTSA:
        """Make the adapter of a cross-modal transformer (CLIP-ViL, LXMERT): gated down maps.

        Parameters
        ----------
        features, taps, hidden
            As for MTSA; `hidden` is by default half of the channels.
        **settings
            Others of MTSA.

        Returns
        -------
        MTSA
        """
        return cls._preset(features, taps, hidden, 2, settings, down="gated", eps=1e-6)

    @classmethod
    def resnet(cls, features: int | Sequence[int] = (256, 512, 1024, 2048), taps: int = 4, hidden: int | None = 512,
               **settings: Any) -> MTSA:
        """Make the adapter of a ResNet: batch norms, taps pooled to the last stage (by default of ResNet-50).

        Parameters
        ----------
        features, taps, hidden
            As for MTSA; `hidden` is by default 512.
        **settings
            Others of MTSA.

        Returns
        -------
        MTSA
        """
        pool = settings.pop("pool", [2**power for power in reversed(range(whole_number(taps, "taps", 2, 10)))])
        return cls._preset(features, taps, hidden, 8, settings, down="batchnorm", up_norm="batchnorm", eps=1e-8,
                           pool=pool)

    @classmethod
    def detr(cls, features: int | Sequence[int] = 256, taps: int = 4, hidden: int | None = None,
             **settings: Any) -> MTSA:
        """Make the adapter of a DETR-style encoder or decoder (MDETR): guidance through a two-layer map.

        Parameters
        ----------
        features, taps, hidden
            As for MTSA; `hidden` is by default half of the channels.
        **settings
            Others of MTSA.

        Returns
        -------
        MTSA
        """
        return cls._preset(features, taps, hidden, 2, settings, guidance="residual_mlp", up_norm="layernorm", eps=1e-6,
                           up_norm_eps=1e-5)

    @classmethod
    def clip(cls, features: int | Sequence[int] = 768, taps: int = 13, hidden: int | None = 512,
             out_features: int = 512, *, tower: Literal["image", "text"] = "image", **settings: Any) -> MTSA:
        """Make the adapter of a tower of CLIP: spatial guidance (by default of the image tower of ViT-B/32).

        Parameters
        ----------
        features, taps, hidden, out_features
            As for MTSA; `out_features` are the channels of the tower's output.
        tower : {"image", "text"}
            Whose base row is that of the class token, the first, or of the end of the text, which `position` tells.
        **settings
            Others of MTSA.

        Returns
        -------
        MTSA
        """
        base = "first" if one_of(tower, "tower", ("image", "text")) == "image" else "position"
        return cls._preset(features, taps, hidden, 2, settings, down="relu", guidance="spatial", eps=1e-6, base=base,
                           out_features=out_features)

    @classmethod
    def _preset(cls, features: int | Sequence[int], taps: int, hidden: int | None, share: int, settings: dict[str, Any],
                **published: Any) -> MTSA:
        if hidden is None:
            hidden = max(1, max(_widths(features, taps)) // share)
        return cls(taps, features, hidden, **{**published, **settings})

    @property
    def out_features(self) -> int:
        return self._out_features

    @property
    def images(self) -> bool:
        """Whether the taps are images."""
        return self.pool is not None

    @property
    def _pooled(self) -> bool:
        return self.guidance == "spatial"

    @property
    def settings(self) -> dict[str, Any]:
        names = ("taps", "features", "hidden", "down", "guidance", "up_norm", "eps", "down_norm_eps", "up_norm_eps",
                 "dropout", "gate_temperature", "out_features", "pool", "base", "gated_base", "momentum")
        settings = {name: getattr(self, name) for name in names}
        settings["features"] = self.features[0] if len(set(self.features)) == 1 else list(self.features)
        return settings

    def __call__(self, taps: Sequence[ArrayLike] | Features, last: ArrayLike | Features | None = None,
                 mask: ArrayLike | None = None, *, position: ArrayLike | None = None,
                 dtype: Uint16As = None) -> Array | Features:
        """Compute the output.

        Parameters
        ----------
        taps : sequence of array_like, each of shape (batch, tokens, channels), or Features
            The hidden states, the guide last. float32, float64, float16 or bfloat16. With `pool`: images
            (batch, height, width, channels).
        last : array_like, shape (batch, tokens, out_features), or Features of one tap, optional
            What the late layer would have received; the last tap when None. With spatial guidance the output of the
            tower, (batch, out_features) or (batch, 1, out_features), which must be given.
        mask : array_like of bool, int or float, shape (batch, tokens), optional
            1 where a row is meant. Other rows are left out, and carry zeros in what comes back.
        position : array_like of int, shape (batch,), optional
            With base "position": the number of each sample's base row; its last when None.
        dtype : {None, "bfloat16"}
            How to take uint16.

        Returns
        -------
        numpy.ndarray of float32, shape (batch, tokens, out_features), or Features where `taps` are
            Images (batch, height, width, out_features) with `pool`; (batch, out_features) with spatial guidance.
        """
        return self._forward(self._rows(taps, last, mask, position, dtype))

    def vjp(self, taps: Sequence[ArrayLike] | Features, cotangent: ArrayLike | Features,
            last: ArrayLike | Features | None = None, mask: ArrayLike | None = None, taps_gradient: bool = False, *,
            position: ArrayLike | None = None, training: bool = False, seed: int = 0,
            dtype: Uint16As = None) -> tuple[Array | Features, dict[str, Array | Features]]:
        """Compute the output and the gradient of its product with a cotangent.

        Parameters
        ----------
        taps, last, mask, position, dtype
            As for a call.
        cotangent : array_like or Features
            Gradient of a scalar with respect to the output, of the output's form.
        taps_gradient : bool
            Whether to compute gradients of the taps too. Where `last` is None, that of the last tap is the one
            through its down map alone, and the rest is under ``"last"``.
        training : bool
            Whether dropout acts, and batch norms take the statistics of the batch and move their running ones.
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
        return self._gradient(self._rows(taps, last, mask, position, dtype), cotangent, wanted, training, seed, dtype)

    def _rows(self, taps: Sequence[ArrayLike] | Features, last: ArrayLike | Features | None, mask: ArrayLike | None,
              position: ArrayLike | None, dtype: Uint16As) -> Rows | Images:
        if isinstance(taps, Features):
            taps_given, default = [taps], taps.select([-1])
        elif isinstance(taps, str) or not hasattr(taps, "__iter__"):
            raise TypeError(f"taps must be a sequence of arrays or Features, got {type(taps).__name__}")
        else:
            taps_given = list(taps)
            if len(taps_given) != self.taps:
                raise ValueError(f"taps must be {self.taps} arrays, got {len(taps_given)}")
            default = taps_given[-1]
        names = [f"taps[{number}]" for number in range(self.taps)]
        if position is not None and self.base != "position":
            raise ValueError("position goes with base=\"position\"")
        if self.guidance == "spatial":
            return Tower(taps_given, names, mask, self.features, cast("ArrayLike | None", last), self.out_features,
                         dtype, position)
        values, names = [*taps_given, default if last is None else last], [*names, "last"]
        if not self.images:
            return Rows(values, names, mask, [channels for _, channels in self._inputs()], dtype)
        if mask is not None:
            raise ValueError("mask goes with tokens; images have all their pixels")
        images = Images(values, names, self._inputs(), dtype, self.taps - 1, {self.taps: self.taps - 1})
        self._check_pools(images.sizes, names)
        return images

    def _check_pools(self, sizes: Sequence[Integers], names: Sequence[str]) -> None:
        """Raise where images of these sizes are not pooled to the size of the last tap."""
        wanted = sizes[self.taps - 1]
        for number, window in enumerate(self.pool or ()):
            wrong = np.flatnonzero((sizes[number] // window != wanted).any(axis=1))
            if len(wrong):
                height, width = sizes[number][wrong[0]]
                raise ValueError(
                    f"{names[number]} must have {window} times the height and width of {names[self.taps - 1]}, which "
                    f"are {wanted[wrong[0]][0]} x {wanted[wrong[0]][1]} in sample {wrong[0]}, got {height} x {width}"
                )

    def _least_parameters(self) -> int:
        down = sum(self.features) + (2 * self.taps * self.hidden if self.down == "gated" else 0)
        guidance = {"token": 0, "residual_mlp": 2 * self.features[-1], "spatial": self.out_features}[self.guidance]
        return self.hidden * (down + guidance + self.out_features)

    def _inputs(self) -> list[tuple[str, int]]:
        return [*((f"tap{number}", width) for number, width in enumerate(self.features)), ("last", self.out_features)]

    def _declared(self) -> list[str]:
        names = super()._declared()
        return [*names, "position"] if self._pooled else names

    def _declare(self, graph: _core.Graph, wanted: Sequence[str]) -> list[int]:
        taps = self._declare_taps(graph, wanted)
        space = _core.SAMPLES if self._pooled else graph.value_space(taps[-1])
        last = graph.input("last", space, self.out_features, "last" in wanted)
        return [*taps, last, *([graph.indices("position", _core.SAMPLES)] if self._pooled else [])]

    def _declare_taps(self, graph: _core.Graph, wanted: Sequence[str]) -> list[int]:
        if self.images:
            spaces = [graph.grid(f"pixels{number}") for number in range(self.taps)]
        else:
            spaces = [graph.space("tokens")] * self.taps
        return [graph.input(name, space, channels, name in wanted)
                for space, (name, channels) in zip(spaces, self._inputs())]

    # What a network asks of its early block.

    def _declare_in_network(self, graph: _core.Graph, taps_gradient: bool) -> list[int]:
        """Declare the taps of a network, and return the inputs of the block.

        The block stands in for what the first late layer would have received: the last tap. With spatial guidance a
        network has one more tap, the tower's output.
        """
        taps = self._declare_taps(graph, [name for name, _ in self._inputs()] if taps_gradient else ())
        if not self._pooled:
            return [*taps, taps[-1]]
        return [*taps, graph.input("last", _core.SAMPLES, self.out_features, taps_gradient)]

    def _check_taps(self, features: Features) -> None:
        """Raise where features are not what a network with this block reads."""
        check_channels(features.channels, [*self.features, *([self.out_features] if self._pooled else [])])
        if self.images != (features.sizes is not None):
            wanted = "images (batch, height, width, channels)" if self.images else "tokens (batch, tokens, channels)"
            raise ValueError(f"taps must be {wanted}, got {'tokens' if self.images else 'images'}")
        if self.images:
            self._check_pools(features.sizes or (), [f"taps[{number}]" for number in range(self.taps)])
        last_rows = features.positions is None or np.array_equal(features.positions, features.lengths - 1)
        if self.base == "position" and not last_rows:
            raise ValueError("positions must be the last row of each sample, which is the base row in a network")
        one_row = features.batch().own is not None and not self.images
        if one_row and not self._pooled:
            raise ValueError(f"taps[{self.taps - 1}] must have as many rows as the other taps, got one a sample")
        if self._pooled and not one_row and features.longest > 1:
            raise ValueError(f"taps[{self.taps}], the tower's output, must have one row a sample: (batch, channels)")

    def _build(self, graph: _core.Graph, prefix: str, inputs: Sequence[int]) -> int:
        return self._added(graph.mtsa, prefix, inputs)

    def _build_features(self, graph: _core.Graph, prefix: str, inputs: Sequence[int]) -> list[int]:
        """Add the down maps to a graph, and return the features that the guidance weighs, and their guide."""
        return self._added(graph.mtsa_features, prefix, inputs)

    def _added(self, add: Callable[..., Added], prefix: str, inputs: Sequence[int]) -> Added:
        taps, (last, *position) = inputs[: self.taps], inputs[self.taps :]
        if self.base == "first":
            base = {"base": "first"}
        else:
            base = {"base": "position", "position": position[0]} if position else {"base": "last"}
        return add(
            prefix, taps, last, hidden=self.hidden, out_features=self.out_features, down=self.down,
            guidance=self.guidance, up_norm=self.up_norm or "none", eps=self.eps, down_norm_eps=self.down_norm_eps,
            up_norm_eps=self.up_norm_eps, momentum=self.momentum, dropout=self.dropout,
            gate_temperature=self.gate_temperature, windows=self.pool, gated_base=self.gated_base, **base,
        )


def _widths(features: int | Sequence[int], taps: int) -> list[int]:
    if not hasattr(features, "__len__") or isinstance(features, int):
        return [whole_number(features, "features", 1)] * taps
    if len(features) != taps:
        raise ValueError(f"features must be a number, or one for each of the {taps} taps, got {len(features)}")
    return [whole_number(width, "features", 1) for width in features]


def _windows(pool: Sequence[int] | None, taps: int) -> list[int] | None:
    if pool is None:
        return None
    if not hasattr(pool, "__len__") or len(pool) != taps:
        raise ValueError(f"pool must be None or one window for each of the {taps} taps, got {pool!r}")
    windows = [whole_number(window, "pool", 1, LARGEST_WINDOW) for window in pool]
    if windows[-1] != 1:
        raise ValueError(f"pool must end with 1, as the output has the size of the last tap, got {windows[-1]}")
    return windows
