"""From the user's arrays to rows that the core reads in place: dtypes, masks, offsets, and outputs in the same form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from .._typing import Array, ArrayLike, Bools, Element, Float32s, Integers, Spaces, Uint16As
from ..checks import count_of

REALS = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class Segments:
    """Rows of each sample in a tap that does not share those of the other taps.

    Attributes
    ----------
    offsets, rows
        As of a `Batch`.
    sizes : numpy.ndarray of int64, shape (samples, 2), or None
        Height and width of each sample, where the rows are the pixels of images.
    """

    offsets: Integers
    rows: Integers | None
    sizes: Integers | None = None

    def select(self, samples: Array) -> Segments:
        """Return those of some samples."""
        chosen = select_rows(self.offsets, self.rows, samples)
        return Segments(chosen.offsets, chosen.rows, None if self.sizes is None else self.sizes[samples])


@dataclass(frozen=True)
class Batch:
    """Some samples, as the core takes them.

    Attributes
    ----------
    offsets : numpy.ndarray of int64, shape (samples + 1,)
        Where each sample's rows begin, counted within the batch.
    rows : numpy.ndarray of int64, shape (rows,), or None
        Which rows of the arrays the batch takes, in order; None for all of them.
    positions : numpy.ndarray of int64, shape (samples, 1), or None
        A row of each sample, counted within it.
    own : list of Segments or None, optional
        By tap: rows of its own. None for a tap, or for all, that has those above.
    """

    offsets: Integers
    rows: Integers | None
    positions: Integers | None = None
    own: Sequence[Segments | None] | None = None

    @property
    def samples(self) -> int:
        return len(self.offsets) - 1

    @property
    def counted(self) -> str:
        """How many rows there are, in words."""
        return count_of(self.offsets[-1], "row")

    @property
    def spaces(self) -> Spaces:
        """Offsets by row space: that of the samples, then that of the tokens, or the sizes of images tap by tap."""
        images = [tap.sizes for tap in self.own or () if tap is not None and tap.sizes is not None]
        return [None, *images] if images else [None, self.offsets]

    def spaces_of(self, samples: int) -> Spaces:
        """Return the same of so many samples like the first."""
        first, *others = (space for space in self.spaces if space is not None)
        if not others and first.ndim == 1:
            return [None, np.arange(samples + 1, dtype=np.int64) * first[1]]
        return [None, *(np.repeat(sizes[:1], samples, axis=0) for sizes in (first, *others))]

    def rows_of(self, tap: int) -> Integers | None:
        """Return which rows the batch takes of a tap's array."""
        own = None if self.own is None else self.own[tap]
        return self.rows if own is None else own.rows

    def offsets_of(self, tap: int) -> Integers:
        """Return where each sample's rows of a tap begin, counted within the batch."""
        own = None if self.own is None else self.own[tap]
        return self.offsets if own is None else own.offsets


def read_reals(values: ArrayLike, name: str, dtype: Element | None = None) -> tuple[Array, Element]:
    """Return values as an array of reals in native byte order, and the name of their type.

    Parameters
    ----------
    values : array_like
        float32, float64 or float16; bfloat16 of ml_dtypes; or uint16 with `dtype` "bfloat16".
    name : str
        What errors call them.
    dtype : {None, "bfloat16"}
        How to take uint16.

    Returns
    -------
    numpy.ndarray
        bfloat16 comes as uint16.
    str
        One of `REALS`.
    """
    if dtype not in (None, *REALS):
        raise ValueError(f"dtype must be None or one of {', '.join(REALS)}, got {dtype!r}")
    try:
        array = np.asarray(values)
    except Exception as error:
        raise TypeError(f"{name} cannot be read as an array: {error}") from error
    element: Element = "bfloat16"
    if array.dtype.name == "bfloat16":
        array = array.view(np.uint16)
    elif array.dtype.kind == "f" and array.dtype.itemsize in (2, 4, 8):
        element = cast(Element, array.dtype.name)
    elif array.dtype != np.uint16 or dtype != "bfloat16":
        hint = "; for bfloat16 in uint16, pass dtype='bfloat16'" if array.dtype == np.uint16 else ""
        raise TypeError(f"{name} must hold {', '.join(REALS[:-1])} or bfloat16, got dtype {array.dtype}{hint}")
    if dtype is not None and element != dtype:
        raise TypeError(f"{name} must hold {dtype}, as dtype says, got dtype {np.asarray(values).dtype}")
    return array.astype(array.dtype.newbyteorder("="), copy=False), element


def readable(matrix: Array) -> Array:
    """Return a matrix whose rows the core can read where they lie: the same one, or else a copy."""
    row, channel = matrix.strides
    whole = channel == matrix.itemsize and row >= matrix.shape[1] * matrix.itemsize
    return matrix if whole and matrix.flags.aligned else np.require(matrix, requirements=["C", "A"])


def quantised(rows: Array) -> tuple[Array, Float32s]:
    """Return reals (rows, channels) as int8 and one float32 scale a row: the largest magnitude becomes 127."""
    scales = (np.abs(rows).max(axis=1) / 127).astype(np.float32)
    if not np.isfinite(scales).all():
        raise ValueError("taps must be finite to be stored as int8")
    with np.errstate(divide="ignore", invalid="ignore"):
        integers = np.where(scales[:, None] > 0, np.rint(rows / scales[:, None]), 0)
    return np.clip(integers, -127, 127).astype(np.int8), scales


def narrowed(rows: Array, dtype: Element) -> tuple[Array, Float32s | None]:
    """Return reals (rows, channels) as `dtype`, rounded to the nearest even, and the scales of int8, else None."""
    if dtype == "int8":
        return quantised(rows)
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return rows.astype(dtype), None
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1)).astype(np.uint32)) >> 16
    return np.where(np.isnan(rows), bits >> 16 | 0x40, rounded).astype(np.uint16), None


def read_scales(values: ArrayLike, array: Array, name: str) -> Float32s:
    """Return the scales of an int8 array, checked."""
    if array.dtype != np.int8:
        raise TypeError(f"{name} must hold int8, since it comes with scales, got dtype {array.dtype}")
    scales = np.asarray(values)
    if scales.dtype != np.float32 or scales.shape != array.shape[:1]:
        raise ValueError(
            f"scales of {name} must be float32 of shape ({len(array)},), one a row, got {scales.dtype} of shape "
            f"{scales.shape}"
        )
    if not np.isfinite(scales).all() or (scales < 0).any():
        raise ValueError(f"scales of {name} must be finite and 0 or more")
    return np.require(scales.astype(scales.dtype.newbyteorder("="), copy=False), requirements=["C", "A"])


def widened(array: Array, element: Element, scales: Array | None = None) -> Array:
    """Return reals as float32 (float64 stays); int8 with the scales of its rows."""
    if element == "int8":
        assert scales is not None, "int8 comes with scales"
        return array * scales[:, None]
    if element == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if element == "float16" else array


def read_padded(values: ArrayLike, name: str, dtype: Uint16As = None) -> tuple[Array, Element, tuple[int, int]]:
    """Return an array (batch, tokens, channels) as a matrix of rows, with the type's name and (batch, tokens)."""
    array, element = read_reals(values, name, dtype)
    if array.ndim != 3:
        raise ValueError(f"{name} must have shape (batch, tokens, channels), got {array.shape}")
    if 0 in array.shape:
        raise ValueError(f"{name} is empty: its shape is {array.shape}")
    batch, tokens, channels = array.shape
    return readable(array.reshape(batch * tokens, channels)), element, (batch, tokens)


def read_images(values: ArrayLike, name: str, dtype: Uint16As = None) -> tuple[Array, Element, Integers]:
    """Return images (batch, height, width, channels) as a matrix of pixels, with the type's name and the sizes."""
    array, element = read_reals(values, name, dtype)
    if array.ndim != 4:
        raise ValueError(f"{name} must have shape (batch, height, width, channels), got {array.shape}")
    if 0 in array.shape:
        raise ValueError(f"{name} is empty: its shape is {array.shape}")
    sizes = np.tile(np.array(array.shape[1:3], np.int64), (len(array), 1))
    return readable(array.reshape(-1, array.shape[-1])), element, sizes


def pixels_of(sizes: Integers) -> Segments:
    """Return the segments of images of these heights and widths, (samples, 2)."""
    return Segments(offsets_of(sizes.prod(axis=1)), None, sizes)


def read_mask(mask: ArrayLike | None, grid: tuple[int, ...], name: str = "mask") -> Bools | None:
    """Return which rows of a padded batch are meant, as a bool array of shape (batch, tokens), or None for all."""
    if mask is None:
        return None
    try:
        array = np.asarray(mask)
    except Exception as error:
        raise TypeError(f"{name} cannot be read as an array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold bool, int or float, got dtype {array.dtype}")
    if array.shape != grid:
        raise ValueError(f"{name} must have shape (batch, tokens) = {grid}, got {array.shape}")
    if array.dtype != bool:
        meant = array == 1
        if not (meant | (array == 0)).all():
            raise ValueError(f"{name} must hold 0 and 1 only")
        array = meant
    return None if array.all() else array


def read_positions(values: ArrayLike, lengths: Integers) -> Integers:
    """Return one row number a sample, counted within the sample, as an int64 array of its own."""
    try:
        array = np.asarray(values)
    except Exception as error:
        raise TypeError(f"positions cannot be read as an array: {error}") from error
    if array.dtype.kind not in "iu":
        raise TypeError(f"positions must hold whole numbers, got dtype {array.dtype}")
    if array.shape != lengths.shape:
        raise ValueError(f"positions must have shape (samples,) = {lengths.shape}, got {array.shape}")
    wrong = np.flatnonzero((array < 0) | (array >= lengths))
    if len(wrong):
        sample = wrong[0]
        raise ValueError(
            f"positions must be from 0 to below the rows of their sample, got {array[sample]} for sample {sample}, "
            f"which has {count_of(lengths[sample], 'row')}"
        )
    return np.array(array, np.int64)


def select_rows(offsets: Integers, rows: Integers | None, samples: Array, positions: Integers | None = None) -> Batch:
    """Return the batch of some samples of a ragged set; `samples` is an int64 index array, `positions` is theirs."""
    starts = offsets[samples]
    lengths = offsets[samples + 1] - starts
    chosen = offsets_of(lengths)
    index = np.repeat(starts - chosen[:-1], lengths) + np.arange(chosen[-1])
    return Batch(chosen, index if rows is None else rows[index], positions)


def offsets_of(lengths: Array) -> Integers:
    """Return where each of the segments of these lengths begins, and where the last ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
