"""The rows of one call to a block that are not the tokens of a text alone: images, and tokens with a tower's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from .. import _core
from .._typing import Array, ArrayLike, Integers, Source, Spaces, Uint16As
from ..features.features import Features, check_channels, from_images
from ..features.rows import Batch, read_reals, readable
from .block import Rows, read_sample_rows


class Images:
    """Images of one call to a block, arrays (batch, height, width, channels) or Features, and the form given back.

    Parameters
    ----------
    values : list of array_like, or list of Features that hold the inputs between them
    names : list of str
        What errors call them.
    inputs : list of (str, int)
        Name and channels of each as the block declares it.
    dtype : {None, "bfloat16"}
    output : int or callable, optional
        The input whose sizes the output has, or a function that makes the output's sizes of those of the first.
    shared : dict of int to int, optional
        Inputs that must have the sizes of another, whose row space they lie in.
    """

    def __init__(self, values: Sequence[Any], names: Sequence[str], inputs: Sequence[tuple[str, int]], dtype: Uint16As,
                 output: int | Callable[[Integers], Integers] = 0, shared: Mapping[int, int] | None = None) -> None:
        ragged = [isinstance(value, Features) for value in values]
        if any(ragged) and not all(ragged):
            raise TypeError(f"{' and '.join((names[0], names[-1]))} must be all arrays or all Features")
        self.ragged = all(ragged)
        self.parts = values if self.ragged else [from_images(values, names, dtype)]
        check_channels([width for part in self.parts for width in part.channels], [width for _, width in inputs], names)
        for part in self.parts:
            if part.sizes is None:
                raise TypeError(f"{names[0]} must be images: Features with sizes, got those of tokens")
        shared = shared or {}
        self.sizes = [sizes for part in self.parts for sizes in part.sizes or ()]
        for number, sizes in enumerate(self.sizes):
            if len(sizes) != len(self.sizes[0]):
                raise ValueError(f"{names[number]} must have {len(self.sizes[0])} samples, as {names[0]} has")
        for number, other in shared.items():
            if not np.array_equal(self.sizes[number], self.sizes[other]):
                raise ValueError(f"{names[number]} must have the heights and widths of {names[other]}")
        self._by_name: dict[str | None, Integers] = {name: sizes for (name, _), sizes in zip(inputs, self.sizes)}
        own = [tap for part in self.parts for tap in part.batch().own or () if tap is not None]
        taps = [tap for number, tap in enumerate(own) if number not in shared]
        self.batch = Batch(own[0].offsets, own[0].rows, own=taps)
        self.lengths = np.diff(self.batch.offsets)
        self._by_name[None] = self.sizes[output] if isinstance(output, int) else output(self.sizes[0])

    memory = None  # as of Rows

    @property
    def spaces(self) -> Spaces:
        return self.batch.spaces

    def sources(self) -> list[Source]:
        return [source for part in self.parts for source in part.sources(part.batch())]

    def sink(self, channels: int, name: str | None = None) -> tuple[Array, Source]:
        """Return a matrix for the core to write an input's gradient or the output to, and the source that tells it."""
        matrix = np.empty((int(self._by_name[name].prod(axis=1).sum()), channels), _core.REAL)
        return matrix, (matrix, None)

    def given(self, matrix: Array, name: str | None = None) -> Array | Features:
        """Return a matrix made by `sink` in the caller's form."""
        sizes = self._by_name[name]
        if self.ragged:
            return Features([matrix], sizes=[sizes])
        return matrix.reshape(len(sizes), *sizes[0], -1)

    def cotangent(self, values: ArrayLike | Features, channels: int, dtype: Uint16As) -> Source:
        """Return the source of a gradient that comes in the form of the output."""
        if self.ragged:
            if not isinstance(values, Features) or values.sizes is None:
                raise TypeError(f"cotangent must be Features of images, as the output is, got {type(values).__name__}")
            if len(values.sizes) != 1 or not np.array_equal(values.sizes[0], self._by_name[None]):
                raise ValueError("cotangent must have the heights and widths of the output")
            check_channels(values.channels, [channels], ["cotangent"])
            return values.sources(values.batch())[0]
        array, _ = read_reals(cast(ArrayLike, values), "cotangent", dtype)
        shape = (len(self._by_name[None]), *(int(length) for length in self._by_name[None][0]), channels)
        if array.shape != shape:
            raise ValueError(f"cotangent must have the output's shape {shape}, got {array.shape}")
        return readable(array.reshape(-1, channels)), None


class Tower(Rows):
    """Taps of tokens, a tower's output with one row a sample, and the row of each sample that is its base.

    Parameters
    ----------
    taps, names, mask, channels, dtype
        As for `Rows`.
    last : array_like, shape (batch, channels) or (batch, 1, channels)
    last_channels : int
    position : array_like of int, shape (batch,), or None
        Number of a token, or of a row of Features; None for the last row that is meant.
    """

    def __init__(self, taps: Sequence[Any], names: Sequence[str], mask: ArrayLike | None, channels: Sequence[int],
                 last: ArrayLike | None, last_channels: int, dtype: Uint16As, position: ArrayLike | None) -> None:
        super().__init__(taps, names, mask, channels, dtype)
        if not self.lengths.all():
            raise ValueError(f"mask leaves no row of sample {self.lengths.argmin()}")
        if last is None:
            raise TypeError("last must be given with spatial guidance: the output of the tower, got None")
        samples = self.batch.samples
        if isinstance(last, Features):
            raise TypeError("last must be an array of shape (batch, channels) with spatial guidance, got Features")
        array, _ = read_reals(last, "last", dtype)
        self._last_shape = array.shape
        self._last = read_sample_rows(
            array[:, 0] if array.ndim == 3 and array.shape[1] == 1 else array, samples, last_channels, dtype, "last"
        )
        self._position = (self.lengths - 1 if position is None else self._read_position(position)).reshape(-1, 1)

    def sources(self) -> list[Source]:
        return [*super().sources(), (self._last, None), (self._position, None)]

    def sink(self, channels: int, name: str | None = None) -> tuple[Array, Source]:
        if name != "last":
            return super().sink(channels)
        matrix = np.empty((self.batch.samples, channels), _core.REAL)
        return matrix, (matrix, None)

    def given(self, matrix: Array, name: str | None = None) -> Array | Features:
        return matrix.reshape(self._last_shape) if name == "last" else super().given(matrix)

    def _read_position(self, values: ArrayLike) -> Integers:
        array = np.asarray(values)
        samples = self.batch.samples
        if array.dtype.kind not in "iu" or array.shape != (samples,):
            raise ValueError(
                f"position must be whole numbers of shape ({samples},), got {array.dtype} of shape {array.shape}"
            )
        tokens = self.lengths if self.grid is None else np.full(samples, self.grid[1])
        if (array < 0).any() or (array >= tokens).any():
            raise ValueError(f"position must be the number of a row of each sample, got {array.tolist()}")
        if self.grid is None or self.batch.rows is None:
            return array.astype(np.int64)
        # Rows are those where the mask is 1: count them up to the position.
        asked = array + np.arange(samples) * self.grid[1]
        places = np.searchsorted(self.batch.rows, asked)
        found = self.batch.rows[np.minimum(places, len(self.batch.rows) - 1)] == asked
        if not found.all():
            sample = found.argmin()
            raise ValueError(f"position must be a row where mask is 1, got {array[sample]} for sample {sample}")
        return places - self.batch.offsets[:-1]


def tap_sinks(features: Features, taps: Any) -> list[tuple[Array, Source]]:
    """Return for each tap of a network a matrix for its gradient, and the source that tells the core where.

    `taps` is what the features were made of: arrays, or the features themselves.
    """
    batch = features.batch()
    sinks: list[tuple[Array, Source]] = []
    for number, channels in enumerate(features.channels):
        if isinstance(taps, Features):
            matrix = np.empty((int(batch.offsets_of(number)[-1]), channels), _core.REAL)
            sinks.append((matrix, (matrix, None)))
        else:
            matrix = np.zeros((np.prod(np.shape(taps[number])[:-1], dtype=int), channels), _core.REAL)
            sinks.append((matrix, (matrix, batch.rows_of(number))))
    return sinks


def taps_given(features: Features, taps: Any, sinks: Sequence[tuple[Array, Source]]) -> dict[str, Array | Features]:
    """Return matrices made by `tap_sinks` in the form of the taps, by name."""
    given: dict[str, Array | Features] = {}
    for number, (matrix, _) in enumerate(sinks):
        if not isinstance(taps, Features):
            made = matrix.reshape(np.shape(taps[number]))
        elif features.sizes is not None:
            made = Features([matrix], sizes=[features.sizes[number]])
        else:
            made = Features([matrix], np.diff(features.batch().offsets_of(number)))
        given[f"tap{number}"] = made
    return given
