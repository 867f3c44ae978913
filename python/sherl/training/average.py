"""The exponential moving average of a network's weights, which is evaluated and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from .. import _core
from .._typing import Array, StateDict
from ..blocks.weights import owned_names

if TYPE_CHECKING:
    from ..network.network import Network


def averaged_weights(store: _core.Parameters, prefix: str = "") -> StateDict:
    """Return views of the parameters under a prefix that an average is taken of, by name."""
    return {name: store.array(prefix + name) for name in owned_names(store, prefix)}


class WeightAverage:
    """Average of weights, given as views by name; it starts as they are.

    Attributes
    ----------
    values : dict of str to numpy.ndarray
        By parameter name. Running statistics are averaged too.
    """

    def __init__(self, weights: StateDict, decay: float) -> None:
        self._weights, self._decay = weights, decay
        self.values = {name: np.array(value) for name, value in weights.items()}

    def update(self) -> None:
        """Move the average towards the weights: average = decay average + (1 - decay) weights."""
        for name, value in self.values.items():
            value *= value.dtype.type(self._decay)
            value += value.dtype.type(1 - self._decay) * self._weights[name]

    def restore(self, values: Mapping[str, Array]) -> None:
        """Go on from an average that a checkpoint holds."""
        shapes = {name: value.shape for name, value in self.values.items()}
        if {name: np.shape(value) for name, value in values.items()} != shapes:
            raise ValueError("the average of the weights does not fit")
        for name, value in values.items():
            self.values[name][...] = value

    @contextmanager
    def applied(self, network: Network) -> Iterator[None]:
        """Put the average in place of a network's weights for a while."""
        weights = network.state_dict()
        network.load_state_dict(self.values)
        try:
            yield
        finally:
            network.load_state_dict(weights)
