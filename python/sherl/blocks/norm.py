"""A norm as a block of its own, trainable."""

from ..checks import real_number, whole_number
from .block import UnaryBlock

__all__ = ["RMSNorm"]


class RMSNorm(UnaryBlock):
    """Each row divided by the root of its mean square, times a trained factor for each channel.

    Parameters
    ----------
    features : int
        Channels of input and output.
    eps : float
    seed : int
        As of all blocks; the factors begin at 1.
    """

    def __init__(self, features, eps=1e-6, *, seed=0):
        super().__init__(seed)
        self.features = whole_number(features, "features", 1)
        self.eps = real_number(eps, "eps", above=0.0)

    @property
    def out_features(self):
        return self.features

    @property
    def settings(self):
        return {"features": self.features, "eps": self.eps}

    def _least_parameters(self):
        return self.features

    def _inputs(self):
        return [("x", self.features)]

    def _build(self, graph, prefix, inputs):
        weight = graph.parameter(prefix + "weight", (self.features,), "trainable", "ones")
        return graph.rms_norm(inputs[0], weight, self.eps)
