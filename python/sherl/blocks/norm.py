"""Norms as blocks of their own: trained, or frozen as those at the end of pre-norm backbones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _core
from .._typing import ArrayLike, Initializer
from ..checks import flag, real_number, whole_number
from .block import UnaryBlock
from .frozen import MaybeFrozen, read_array

__all__ = ["LayerNorm", "RMSNorm"]


class _Norm(MaybeFrozen, UnaryBlock):
    def __init__(self, features: int, eps: float, seed: int) -> None:
        super().__init__(seed)
        self.features = whole_number(features, "features", 1)
        self.eps = real_number(eps, "eps", above=0.0)

    @property
    def out_features(self) -> int:
        return self.features

    def _initializer(self, name: str) -> Initializer:
        return "ones" if name == "weight" else "zeros"

    def _inputs(self) -> list[tuple[str, int]]:
        return [("x", self.features)]


class RMSNorm(_Norm):
    """Each row divided by the root of its mean square, times a factor for each channel.

    Parameters
    ----------
    features : int
        Channels of input and output.
    eps : float
    seed : int
        As of all blocks; the factors begin at 1.
    """

    def __init__(self, features: int, eps: float = 1e-6, *, seed: int = 0) -> None:
        super().__init__(features, eps, seed)

    @classmethod
    def from_weights(cls, weight: ArrayLike, eps: float = 1e-6, trainable: bool = False) -> RMSNorm:
        """Make the norm of given factors.

        Parameters
        ----------
        weight : array_like, shape (features,)
            Frozen ones are kept where they are float32 and C-contiguous; they must not change while they are in use.
        eps : float
        trainable : bool
            Whether training changes the factors; then they are copied.

        Returns
        -------
        RMSNorm
        """
        weight = read_array(weight, "weight", 1)
        return cls(len(weight), eps)._set({"weight": weight}, trainable)

    @property
    def settings(self) -> dict[str, Any]:
        return {"features": self.features, "eps": self.eps}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.features,)}

    def _build(self, graph: _core.Graph, prefix: str, inputs: Sequence[int], bfloat16: bool = False) -> int:
        return graph.rms_norm(inputs[0], self._parameters(graph, prefix)["weight"], self.eps)


class LayerNorm(_Norm):
    """Each row less its mean, divided by its standard deviation, times a factor and plus a bias for each channel.

    Parameters
    ----------
    features : int
        Channels of input and output.
    eps : float
    bias : bool
        Whether there are biases.
    seed : int
        As of all blocks; factors begin at 1, biases at 0.
    """

    def __init__(self, features: int, eps: float = 1e-5, bias: bool = True, *, seed: int = 0) -> None:
        super().__init__(features, eps, seed)
        self.bias = flag(bias, "bias")

    @classmethod
    def from_weights(cls, weight: ArrayLike, bias: ArrayLike | None = None, eps: float = 1e-5,
                     trainable: bool = False) -> LayerNorm:
        """Make the norm of given factors and biases.

        Parameters
        ----------
        weight, bias : array_like, shape (features,)
            Frozen ones are kept where they are float32 and C-contiguous; they must not change while they are in use.
        eps : float
        trainable : bool
            Whether training changes them; then they are copied.

        Returns
        -------
        LayerNorm
        """
        arrays = {"weight": read_array(weight, "weight", 1)}
        if bias is not None:
            arrays["bias"] = read_array(bias, "bias", 1)
            if len(arrays["bias"]) != len(arrays["weight"]):
                raise ValueError(f"bias must have shape {np.shape(arrays['weight'])}, got {np.shape(arrays['bias'])}")
        return cls(len(arrays["weight"]), eps, bias is not None)._set(arrays, trainable)

    @property
    def settings(self) -> dict[str, Any]:
        return {"features": self.features, "eps": self.eps, "bias": self.bias}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(["weight", "bias"][: 1 + self.bias], (self.features,))

    def _build(self, graph: _core.Graph, prefix: str, inputs: Sequence[int], bfloat16: bool = False) -> int:
        parameters = self._parameters(graph, prefix)
        return graph.layer_norm(inputs[0], parameters["weight"], parameters.get("bias"), self.eps)
