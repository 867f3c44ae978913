"""The stem of audio models: log-mel features through two convolutions in time."""

from __future__ import annotations

import numpy as np

from .. import _core
from .._typing import Array, ArrayLike, PathLike, Record, Source, StateDict
from ..features.rows import read_reals, widened
from .samples import Samples, arrays_fingerprint

_WINDOW = 3  # frames that a convolution reads


class AudioStem:
    """Two convolutions over three frames with GELU, the second with stride 2, and positions.

    Each is a linear map on the frames of its window side by side, which are arranged between two programs.

    Parameters
    ----------
    folder : str or path-like
    facts : dict
    arrays : dict of str to numpy.ndarray
        By role.
    """

    max_length = None

    def __init__(self, folder: PathLike, facts: Record, arrays: StateDict) -> None:
        self.facts, self.arrays = facts, arrays
        self._maps = {
            name: np.ascontiguousarray(arrays[f"{name}_weight"].transpose(0, 2, 1)).reshape(facts["features"], -1)
            for name in ("first", "second")
        }
        self._store = _core.Parameters()
        self._program: _core.Program | None = None

    @property
    def out_features(self) -> int:
        """Channels of state 0."""
        return int(self.facts["features"])

    def read(self, samples: ArrayLike) -> Samples:
        """Return recordings, checked, as `Samples`."""
        features = self._read_features(samples)
        rows = self.facts["positions"]
        lengths = np.full(len(features), rows, np.int64)

        def inputs(start: int, stop: int) -> list[Source]:
            count = stop - start
            frames = np.stack([np.asarray(sample, np.float32).T for sample in features[start:stop]])
            first = self._first(_windows(frames, 1)).reshape(count, 2 * rows, -1)
            positions = np.tile(np.arange(rows, dtype=np.int64), count)
            return [(_windows(first, 2), None), (self.arrays["positions"], positions)]

        return Samples(lengths, inputs, lambda: arrays_fingerprint([features]), {"inputs": "log-mel features"})

    def build(self, graph: _core.Graph) -> int:
        """Add the stem's second half to a graph, and return state 0."""
        space = graph.space("tokens")
        windows = graph.input("windows", space, self._maps["second"].shape[1])
        positions = graph.input("positions", space, self.facts["features"])
        return graph.add(self._convolution(graph, "second", windows), positions)

    def _convolution(self, graph: _core.Graph, name: str, windows: int) -> int:
        weight, bias = self._maps[name], self.arrays[f"{name}_bias"]
        weight = graph.parameter(f"stem.{name}.weight", weight.shape, "frozen", data=weight)
        bias = graph.parameter(f"stem.{name}.bias", bias.shape, "frozen", data=bias)
        return graph.linear(windows, weight, bias, activation="gelu")

    def _first(self, windows: Array) -> Array:
        """Return the rows of the first convolution."""
        if self._program is None:
            graph = _core.Graph(self._store, False)
            x = graph.input("windows", graph.space("frames"), windows.shape[1])
            graph.output(self._convolution(graph, "first", x))
            self._program = graph.compile(False)
        out = np.empty((len(windows), self.facts["features"]), np.float32)
        self._program.forward(1, [None, np.array([0, len(windows)])], [(windows, None)], [(out, None)])
        return out

    def _read_features(self, samples: ArrayLike) -> Array:
        shape = self.facts["bins"], 2 * self.facts["positions"]
        array, element = read_reals(samples, "samples")
        if array.ndim != 3 or len(array) == 0 or array.shape[1:] != shape:
            raise ValueError(f"samples must be log-mel features of shape (recordings, {shape[0]}, {shape[1]}), got "
                             f"{array.shape}")
        if not np.isfinite(array).all():
            raise ValueError("samples must hold finite numbers")
        return widened(array, element)


def _windows(frames: Array, stride: int) -> Array:
    """Return the frames (recordings, frames, channels) of each window side by side, one row a window; zeros outside."""
    count, length, channels = frames.shape
    padded = np.zeros((count, length + _WINDOW - 1, channels), np.float32)
    padded[:, 1:-1] = frames
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW, axis=1)[:, ::stride]
    return np.ascontiguousarray(windows.transpose(0, 1, 3, 2)).reshape(-1, _WINDOW * channels)
