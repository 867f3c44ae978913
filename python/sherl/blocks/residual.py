"""The two blocks of a ResNet, bottlenecks and basic blocks, frozen, for the late route of images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from .. import _core
from .._typing import Array, ArrayLike, Integers, StateDict, Uint16As
from ..checks import flag, real_number, whole_number
from ..features.features import Features
from .block import UnaryBlock
from .forms import Images
from .weights import read_weight

__all__ = ["BasicBlock", "Bottleneck", "ResidualBlock"]

_SHORTCUT = ("downsample.0", "downsample.1")
_NORM = ("weight", "bias", "running_mean", "running_var")
_UNREAD = "num_batches_tracked"  # a counter beside each norm in checkpoints


class ResidualBlock(UnaryBlock):
    """What both blocks of a ResNet have: frozen maps with their batch norms folded in, and a shortcut.

    Kinds set `_MAPS`, by role the convolution and the norm of checkpoints, `_SIDES`, by role the pixels of a window's
    side where it is not one, `_SETTINGS` and `_TITLE`.
    """

    trainable = False
    _is_frozen = True
    _MAPS: ClassVar[dict[str, tuple[str, str]]] = {}
    _SIDES: ClassVar[dict[str, int]] = {}
    _SETTINGS: ClassVar[tuple[str, ...]] = ()
    _TITLE = ""

    def __init__(self, features: int, out_features: int | None, stride: int, shortcut: bool) -> None:
        super().__init__(0)
        self.features = whole_number(features, "features", 1)
        self._out_features = (
            self.features if out_features is None else whole_number(out_features, "out_features", 1)
        )
        self.stride = whole_number(stride, "stride", 1)
        self.shortcut = flag(shortcut, "shortcut")
        if not self.shortcut and (self.stride > 1 or self._out_features != self.features):
            raise ValueError("stride must be 1 and out_features those of x where the shortcut is no map")
        self._frozen: StateDict | None = None
        self._fingerprint: str | None = None

    @classmethod
    def _read(cls, weights: Mapping[str, ArrayLike], eps: float) -> Any:
        """Return the arrays of a checkpoint's block, checked, and those of the block by role."""
        eps = real_number(eps, "eps", above=0.0)
        arrays = cls._checked(weights)
        frozen = {}
        for role, (convolution, norm) in cls._maps(arrays):
            frozen[f"{role}_weight"], frozen[f"{role}_bias"] = folded(arrays, convolution, norm, eps)
        return arrays, frozen

    @classmethod
    def _maps(cls, names: Any) -> Any:
        """Return (role, (convolution, norm)) of the maps that a block with arrays of some names has."""
        shortcut = any(str(name).startswith("downsample.") for name in names)
        return [(role, places) for role, places in cls._MAPS.items() if role != "shortcut" or shortcut]

    @classmethod
    def _shapes(cls, arrays: StateDict) -> Any:
        """Return the shape that each convolution must have, by its place, as those of the first ones tell."""
        raise NotImplementedError

    @classmethod
    def _checked(cls, weights: Mapping[str, ArrayLike]) -> Any:
        """Return a block's weights by name, checked."""
        if not hasattr(weights, "keys"):
            raise TypeError(f"weights must be a dictionary of arrays by name, got {type(weights).__name__}")
        given = [name for name in weights if not str(name).endswith(_UNREAD)]
        maps = [places for _, places in cls._maps(given)]
        beside = {pair: _beside(given, *pair) for pair in maps}  # what goes with each convolution's weight
        known = {f"{convolution}.weight" for convolution, _ in maps}.union(*beside.values())
        groups = {"missing": sorted(known - set(given)), "unexpected": sorted(str(name) for name in set(given) - known)}
        if any(groups.values()):
            faults = "; ".join(f"{kind} {', '.join(names)}" for kind, names in groups.items() if names)
            raise ValueError(f"weights must be those of a ResNet {cls._TITLE}: {faults}")
        arrays = {name: read_weight(weights[name], f"weights[{name!r}]") for name in known}
        for convolution, _ in maps:
            name = f"{convolution}.weight"
            if arrays[name].ndim != 4:
                raise ValueError(f"weights[{name!r}] must have shape (out, in, height, width), got "
                                 f"{arrays[name].shape}")
        shapes = cls._shapes(arrays)
        for convolution, norm in maps:
            shape = shapes[convolution]
            wanted = {f"{convolution}.weight": shape, **dict.fromkeys(beside[convolution, norm], shape[:1])}
            for name, right in wanted.items():
                if arrays[name].shape != right:
                    raise ValueError(f"weights[{name!r}] must have shape {right}, got {arrays[name].shape}")
            if (arrays.get(f"{norm}.running_var", np.zeros(1)) < 0).any():
                raise ValueError(f"weights['{norm}.running_var'] must be 0 or more")
        return arrays

    @property
    def out_features(self) -> int:
        return self._out_features

    @property
    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._SETTINGS}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and the stride, in hexadecimal."""
        if self._fingerprint is None:
            digest = hashlib.sha256(repr(self._facts()).encode())
            for role, array in sorted(self._weights().items()):
                digest.update(repr((role, array.shape)).encode())
                digest.update(array)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _facts(self) -> Any:
        """Return what the output depends on beside the weights."""
        return (self.stride,)

    def output_sizes(self, sizes: Integers) -> Integers:
        """Return heights and widths of the output, (samples, 2), of those of the input."""
        return (sizes - 1) // self.stride + 1

    def _weights(self) -> StateDict:
        if self._frozen is None:
            kind = type(self).__name__
            raise ValueError(f"the {kind} has no weights: make one with {kind}.from_resnet")
        return self._frozen

    def _convolutions(self) -> Any:
        """Return copies of the weights by role, those of maps as convolutions (out, in, height, width)."""
        made = {}
        for role, array in self._weights().items():
            part, _, kind = role.rpartition("_")
            if kind == "weight":
                side = self._SIDES.get(part, 1)
                array = array.reshape(len(array), side, side, -1).transpose(0, 3, 1, 2)
            made[role] = np.array(array, order="C")
        return made

    def _core_weights(self) -> StateDict:
        """Return the weights as the core that is at work takes them: float32, and in tests float64 as well."""
        return {role: np.ascontiguousarray(array, _core.REAL) for role, array in self._weights().items()}

    def _frozen_count(self) -> int:
        return sum(array.size for array in self._weights().values())

    def _least_parameters(self) -> int:
        return 0

    def _with_dropout(self, other: object) -> Any:
        return self  # it has none

    def _rows(self, x: ArrayLike | Features, mask: ArrayLike | None, dtype: Uint16As) -> Images:
        if mask is not None:
            raise ValueError("mask goes with tokens; images have all their pixels")
        return Images([x], ["x"], self._inputs(), dtype, self.output_sizes)

    def _inputs(self) -> list[tuple[str, int]]:
        return [("x", self.features)]

    def _declare(self, graph: _core.Graph, wanted: Sequence[str]) -> list[int]:
        return [graph.input("x", graph.grid("pixels"), self.features, "x" in wanted)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self  # it never changes

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.settings, self._frozen)


class Bottleneck(ResidualBlock):
    """Frozen bottleneck block of a ResNet on images (batch, height, width, channels).

    out = relu(W3 z + b3 + shortcut), z = relu(W2 relu(W1 x + b1) + b2) with 3x3 pixels at W2, and the shortcut is x or
    W4 x + b4. The batch norms, frozen, are folded into the maps.

    Made by `from_resnet`; a block made directly has no weights and only describes one.

    Parameters
    ----------
    features : int
        Channels of x.
    width : int
        Channels of the 3x3 map.
    out_features : int, optional
        Channels of the output; `features` when None.
    stride : int
        Of the 3x3 map and the shortcut.
    shortcut : bool
        Whether the shortcut is a map.
    stride_first : bool
        Whether the stride stands at W1, as first published, rather than at the 3x3 map, as in torchvision.

    References
    ----------
    K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """

    _MAPS = {"reduce": ("conv1", "bn1"), "window": ("conv2", "bn2"), "expand": ("conv3", "bn3"), "shortcut": _SHORTCUT}
    _SIDES = {"window": 3}
    _SETTINGS = ("features", "width", "out_features", "stride", "shortcut", "stride_first")
    _TITLE = "bottleneck"

    def __init__(self, features: int, width: int, out_features: int | None = None, *, stride: int = 1,
                 shortcut: bool = False, stride_first: bool = False) -> None:
        super().__init__(features, out_features, stride, shortcut)
        self.width = whole_number(width, "width", 1)
        self.stride_first = flag(stride_first, "stride_first")

    @classmethod
    def from_resnet(cls, weights: Mapping[str, ArrayLike], stride: int = 1, eps: float = 1e-5,
                    stride_first: bool = False) -> Bottleneck:
        """Make a block of a ResNet's weights, by the names of torchvision.

        Parameters
        ----------
        weights : mapping of str to array_like
            By names relative to the block: ``"conv1.weight"``, ``"bn1.weight"``, ``"bn1.bias"``,
            ``"bn1.running_mean"``, ``"bn1.running_var"``, … of conv1 to conv3, and of ``"downsample.0"`` and
            ``"downsample.1"`` where there is a shortcut map. Convolutions have shape (out, in, height, width). They are
            copied, with the norms folded in. Where they are already, a convolution's ``"conv1.bias"`` stands for its
            norm.
        stride : int
            Of the block.
        eps : float
            Of the batch norms.
        stride_first : bool
            Whether the stride stands at the first map rather than at the 3x3 one.

        Returns
        -------
        Bottleneck

        Raises
        ------
        ValueError
            Where a weight is missing, unexpected, of another shape, or not finite.
        """
        arrays, frozen = cls._read(weights, eps)
        width, features = arrays["conv1.weight"].shape[:2]
        block = cls(features, width, len(arrays["conv3.weight"]), stride=stride,
                    shortcut="shortcut_weight" in frozen, stride_first=stride_first)
        block._frozen = frozen
        return block

    @classmethod
    def _shapes(cls, arrays: StateDict) -> Any:
        width, features = arrays["conv1.weight"].shape[:2]
        outputs = len(arrays["conv3.weight"])
        return {"conv1": (width, features, 1, 1), "conv2": (width, width, 3, 3), "conv3": (outputs, width, 1, 1),
                "downsample.0": (outputs, features, 1, 1)}

    def _facts(self) -> Any:
        return (self.stride, self.stride_first)

    def _build(self, graph: _core.Graph, prefix: str, inputs: Sequence[int], bfloat16: bool = False) -> int:
        return graph.bottleneck(prefix, inputs[0], self._core_weights(), width=self.width,
                                out_features=self.out_features, stride=self.stride, stride_first=self.stride_first,
                                bfloat16=bfloat16)


class BasicBlock(ResidualBlock):
    """Frozen basic block of a ResNet, that of ResNet-18 and ResNet-34, on images (batch, height, width, channels).

    out = relu(W2 relu(W1 x + b1) + b2 + shortcut) with 3x3 pixels at W1 and W2, and the shortcut is x or W3 x + b3. The
    batch norms, frozen, are folded into the maps.

    Made by `from_resnet`; a block made directly has no weights and only describes one.

    Parameters
    ----------
    features : int
        Channels of x.
    out_features : int, optional
        Channels of both maps and the output; `features` when None.
    stride : int
        Of the first map and the shortcut.
    shortcut : bool
        Whether the shortcut is a map.

    References
    ----------
    K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """

    _MAPS = {"first": ("conv1", "bn1"), "second": ("conv2", "bn2"), "shortcut": _SHORTCUT}
    _SIDES = {"first": 3, "second": 3}
    _SETTINGS = ("features", "out_features", "stride", "shortcut")
    _TITLE = "basic block"

    def __init__(self, features: int, out_features: int | None = None, *, stride: int = 1,
                 shortcut: bool = False) -> None:
        super().__init__(features, out_features, stride, shortcut)

    @classmethod
    def from_resnet(cls, weights: Mapping[str, ArrayLike], stride: int = 1, eps: float = 1e-5) -> BasicBlock:
        """Make a block of a ResNet's weights, by the names of torchvision.

        Parameters
        ----------
        weights : mapping of str to array_like
            As for `Bottleneck.from_resnet`, of conv1 and conv2.
        stride : int
            Of the block.
        eps : float
            Of the batch norms.

        Returns
        -------
        BasicBlock

        Raises
        ------
        ValueError
            Where a weight is missing, unexpected, of another shape, or not finite.
        """
        arrays, frozen = cls._read(weights, eps)
        outputs, features = arrays["conv1.weight"].shape[:2]
        block = cls(features, outputs, stride=stride, shortcut="shortcut_weight" in frozen)
        block._frozen = frozen
        return block

    @classmethod
    def _shapes(cls, arrays: StateDict) -> Any:
        outputs, features = arrays["conv1.weight"].shape[:2]
        return {"conv1": (outputs, features, 3, 3), "conv2": (outputs, outputs, 3, 3),
                "downsample.0": (outputs, features, 1, 1)}

    def _build(self, graph: _core.Graph, prefix: str, inputs: Sequence[int], bfloat16: bool = False) -> int:
        return graph.basic_block(prefix, inputs[0], self._core_weights(), out_features=self.out_features,
                                 stride=self.stride, bfloat16=bfloat16)


def _beside(given: Sequence[str], convolution: str, norm: str) -> list[str]:
    """Return the names of the arrays that go with a convolution's weight: its norm's, or a bias that has them in it."""
    bias = f"{convolution}.bias"
    return [bias] if bias in given else [f"{norm}.{leaf}" for leaf in _NORM]


def folded(arrays: StateDict, convolution: str, norm: str, eps: float) -> tuple[Array, Array]:
    """Return weight and bias of a convolution followed by its norm, the weight as (out, height * width * in)."""
    weight = arrays[f"{convolution}.weight"].astype(np.float64)
    if f"{convolution}.bias" in arrays:
        scale, bias, mean = np.ones(len(weight)), arrays[f"{convolution}.bias"], 0
    else:
        scale, bias, mean, variance = (arrays[f"{norm}.{leaf}"].astype(np.float64) for leaf in _NORM)
        scale = scale / np.sqrt(variance + eps)
    matrix = (weight * scale[:, None, None, None]).transpose(0, 2, 3, 1).reshape(len(weight), -1)
    return np.ascontiguousarray(matrix, _core.REAL), (bias - mean * scale).astype(_core.REAL)


def _restored(kind: type[Any], settings: dict[str, Any], frozen: StateDict | None) -> Any:
    block = kind(**settings)
    block._frozen = frozen
    return block
