"""A head whose output is an embedding of each sample, for retrieval and losses that compare samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from .. import _core
from .._typing import Array, ArrayLike, Pooling
from ..checks import flag, one_of, rate, real_number, whole_number
from .frozen import read_array
from .heads import POOLINGS, Head

__all__ = ["Embedding"]


class Embedding(Head):
    """Head that embeds samples: a linear map, pooling over a sample's rows, and division by the l2 norm.

    It has no loss of its own: train it with `loss=` of `SideNetwork.fit`, or two of them in a `DualEncoder`.

    Parameters
    ----------
    features : int
        Channels of the input.
    out : int
        Channels of the embedding.
    pool : {"mean", "first", "last", "max", "position", "gpo"}
        How a sample's rows become one; "position" as of `Classifier`. "gpo" is generalized pooling: each channel's
        values, sorted over the rows, are summed with weights that are learned for every rank, the same for all
        channels: the softmax over the ranks k of n rows of ``w . relu(W e(k, n) + b)``, where e holds sines and cosines
        of k and of n - 1 - k at eight frequencies each. It starts as the mean (w = 0), and can become the maximum, the
        minimum or a mean of the k largest. Chen et al., "Learning the Best Pooling Strategy for Visual Semantic
        Embedding" (2021), compute the scores with a recurrent network over such encodings instead.
    normalize : bool
        Whether to divide the embedding by its l2 norm.
    dropout : float
        Rate before the linear map, in training.
    temperature : float, optional
        With it the output is multiplied by ``exp(log_scale) / temperature``, `log_scale` learned from 0: a learned
        temperature for losses that take products of two embeddings as they are. One of two heads should have it.
    seed : int
        Of the first weights, where the block is used alone.
    """

    _has_loss = False

    def __init__(self, features: int, out: int, pool: Pooling | Literal["gpo"] = "mean", normalize: bool = True,
                 dropout: float = 0.0, temperature: float | None = None, *, seed: int = 0) -> None:
        self.out = whole_number(out, "out", 1)
        one_of(pool, "pool", (*POOLINGS, "gpo"))
        super().__init__(features, self.out, "mean" if pool == "gpo" else pool, False, rate(dropout, "dropout"), seed)
        self.pool = pool
        self.normalize = flag(normalize, "normalize")
        self.temperature = None if temperature is None else real_number(temperature, "temperature", above=0.0)

    @classmethod
    def from_projection(cls, projection: ArrayLike, pool: Pooling = "mean", **settings: Any) -> Embedding:
        """Make a head whose linear map begins as a given one, such as ``backbone.projection`` of a tower of CLIP.

        Parameters
        ----------
        projection : array_like, shape (out, features)
            Copied; the bias begins at 0. ``learning_rate_factors={"head.weight": 0, "head.bias": 0}`` of a training
            keep both as they are.
        pool : str
            CLIP reads the first row of an image, and the last of a text.
        **settings
            Others of `Embedding`.

        Returns
        -------
        Embedding
        """
        projection = read_array(projection, "projection", 2)
        head = cls(projection.shape[1], projection.shape[0], pool, **settings)
        head.load_state_dict({**head.state_dict(), "weight": projection})
        return head

    @property
    def settings(self) -> dict[str, Any]:
        names = ("features", "out", "pool", "normalize", "dropout", "temperature")
        return {name: getattr(self, name) for name in names}

    def _build(self, graph: _core.Graph, prefix: str, inputs: Sequence[int]) -> int:
        x, *positions = inputs
        generalized = self.pool == "gpo"
        return graph.embedder(prefix, x, outputs=self.out, pooling="mean" if self.pool == "gpo" else self.pool,
                              generalized=generalized, dropout=self.dropout, normalize=self.normalize,
                              temperature=self.temperature or 0.0,
                              positions=positions[0] if self._takes_positions else None)

    def _embedding(self, outputs: Array) -> Array:
        """Return outputs without the learned scale."""
        if self.temperature is None:
            return outputs
        store, prefix = self._home()
        scale = np.exp(np.float64(store.array(prefix + "log_scale")[0])) / self.temperature
        unscaled: Array = (outputs / scale).astype(outputs.dtype)
        return unscaled

    def _bound_scale(self, most: float) -> None:
        """Keep the learned scale at `most` or below."""
        if self.temperature is not None:
            store, prefix = self._home()
            logarithm = store.array(prefix + "log_scale")
            np.minimum(logarithm, np.log(most * self.temperature), out=logarithm)
