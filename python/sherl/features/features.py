"""Features: hidden states of a frozen backbone for many samples, without padding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .._typing import Array, ArrayLike, Element, Float32s, Integers, PathLike, Pooling, Record, Source, Uint16As
from ..checks import count_of, one_of, whole_number
from ..html import html_table
from . import disk, joining
from .rows import (
    Batch,
    Segments,
    narrowed,
    offsets_of,
    pixels_of,
    read_images,
    read_mask,
    read_padded,
    read_positions,
    read_reals,
    read_scales,
    readable,
    select_rows,
    widened,
)

if TYPE_CHECKING:
    from ..blocks.late import OwnLayer

__all__ = ["Features"]

MISSING_POSITIONS = (
    "positions must be given for \"position\" pooling, the number of a row for each sample: positions= beside arrays, "
    "Features(..., positions=) or Features.with_positions otherwise"
)
_CHUNK = 512  # samples that are gathered at a time where rows must be copied


class Features:
    """Taps of a frozen backbone: for every sample some rows (tokens), for every tap a matrix of rows and channels.

    Taps may also be images, whose rows are pixels, row of pixels after row; then every tap has rows of its own, and
    `lengths` and `offsets` are those of the last.

    A selection (``features[index]``, ``features.select(taps)``) shares the arrays of what it was taken from.

    Parameters
    ----------
    taps : sequence of array_like, each of shape (rows, channels)
        The samples' rows one after the other. float32, float64, float16 or bfloat16 (ml_dtypes, or uint16 with
        ``dtype="bfloat16"``). They are kept, not copied, where their channels lie side by side in native byte order.
    lengths : array_like of int, shape (samples,), optional
        Rows of each sample, one or more; needed unless there are `sizes`. A last tap of one row a sample may come after
        taps of others: the output of a tower, for spatial guidance.
    dtype : {None, "bfloat16"}
        How to take uint16.
    scales : sequence of array_like of float32, shape (rows,), or None, optional
        Of each tap that is int8, one number a row by which its integers are multiplied; None for another tap.
    positions : array_like of int, shape (samples,), optional
        A row of each sample, counted from its first, for heads with ``pool="position"``.
    sizes : sequence of array_like of int, each of shape (samples, 2), optional
        Of taps that are images: height and width of each sample.
    source : dict or None
        What the features were taken from; a network refuses features of another source than it was trained on.

    Raises
    ------
    TypeError
        Where an array holds another type than those.
    ValueError
        Where shapes do not fit each other.
    """

    def __init__(self, taps: Sequence[ArrayLike], lengths: ArrayLike | None = None, *, dtype: Uint16As = None,
                 scales: Sequence[ArrayLike | None] | None = None, positions: ArrayLike | None = None,
                 sizes: Sequence[ArrayLike] | None = None, source: Record | None = None) -> None:
        taps = read_sequence(taps)
        own: list[Segments | None] | None = None
        if sizes is not None:
            if lengths is not None:
                raise ValueError("lengths must be left out with sizes, which tell them")
            images = _read_sizes(sizes, len(taps))
            own, lengths = [*images], np.diff(images[-1].offsets)
        lengths = np.asarray(lengths)
        if lengths.ndim != 1 or lengths.size == 0 or lengths.dtype.kind not in "iu":
            raise ValueError(
                f"lengths must be whole numbers of shape (samples,), got {lengths.dtype} of shape {lengths.shape}"
            )
        if lengths.min() < 1:
            raise ValueError(f"lengths must be 1 or more, got {lengths.min()} for sample {lengths.argmin()}")
        arrays: list[Array] = []
        elements: list[Element] = []
        given: list[Any] = [None] * len(taps) if scales is None else list(scales)
        if len(given) != len(taps):
            raise ValueError(f"scales must have an item for each of the {count_of(len(taps), 'tap')}, got {len(given)}")
        for number, tap in enumerate(taps):
            name = f"taps[{number}]"
            if given[number] is None:
                array, element = read_reals(tap, name, dtype)
            else:
                array, element = np.asarray(tap), "int8"
                given[number] = read_scales(given[number], array, name)
            segments = None if own is None else own[number]
            rows = lengths.sum() if segments is None else segments.offsets[-1]
            final = own is None and 0 < number == len(taps) - 1
            if final and array.shape[:1] == lengths.shape != (rows,):
                own, rows = [*[None] * number, _one_row_each(len(lengths))], len(lengths)
            if array.ndim != 2 or array.shape[0] != rows or array.shape[1] == 0:
                raise ValueError(
                    f"taps[{number}] must have shape (rows, channels) with {rows} rows, as many as "
                    f"{'lengths' if sizes is None else 'sizes'} count, got {array.shape}"
                )
            arrays.append(readable(array))
            elements.append(element)
        positions = None if positions is None else read_positions(positions, lengths)
        self._set(arrays, elements, offsets_of(lengths), None, None, source, given, positions, own)

    def _set(self, arrays: list[Array], elements: list[Element], offsets: Integers, rows: Integers | None,
             samples: Integers | None, source: Record | None, scales: Sequence[Array | None] | None = None,
             positions: Integers | None = None, own: Sequence[Segments | None] | None = None,
             preprocessing: Record | None = None, layers: Sequence[OwnLayer] | disk.StoredLayers = ()) -> None:
        # Sample i of the selection is sample samples[i] of the whole; that has rows offsets[…] to offsets[… + 1] of
        # `rows`, which are row numbers of the arrays. None stands for 0, 1, 2 … A tap with segments in `own` has those.
        self._arrays, self._elements = arrays, elements
        self._offsets, self._rows, self._samples = offsets, rows, samples
        self._source = source
        self._scales = [None] * len(arrays) if scales is None else scales
        self._positions = positions  # of the samples of the selection
        self._own = own
        self._preprocessing, self._layers = preprocessing, layers
        self._fingerprint: str | None = None

    def _with(self, **changes: Any) -> Features:
        names = ("arrays", "elements", "offsets", "rows", "samples", "source", "scales", "positions", "own",
                 "preprocessing", "layers")
        made = Features.__new__(Features)
        made._set(**{name: changes.get(name, getattr(self, "_" + name)) for name in names})
        return made

    @classmethod
    def from_arrays(cls, taps: Sequence[ArrayLike], mask: ArrayLike | None = None, positions: ArrayLike | None = None,
                    *, dtype: Uint16As = None) -> Features:
        """Take padded arrays as features, without copying them.

        Parameters
        ----------
        taps : sequence of array_like, each of shape (batch, tokens, channels)
            Or images (batch, height, width, channels), each tap of its own height and width. The last one may have
            shape (batch, channels): one row a sample.
        mask : array_like of bool, int or float, shape (batch, tokens), optional
            1 where a row is meant, in any pattern; rows where it is 0 are left out. Not with images.
        positions : array_like of int, shape (batch,), optional
            A row of each sample, counted among its rows that are meant, for heads with ``pool="position"``.
        dtype : {None, "bfloat16"}
            How to take uint16.

        Returns
        -------
        Features
        """
        taps = read_sequence(taps)
        dimensions = [_dimensions(tap) for tap in taps]
        if 4 in dimensions:
            if mask is not None:
                raise ValueError("mask goes with tokens; images have all their pixels")
            features = from_images(taps, dtype=dtype)
            return features if positions is None else features.with_positions(positions)
        if len(taps) > 1 and dimensions[-1] == 2:
            return _with_sample_rows(cls.from_arrays(taps[:-1], mask, positions, dtype=dtype), taps[-1], dtype)
        features, _ = from_padded(taps, mask, dtype=dtype)
        empty = np.flatnonzero(features.lengths == 0)
        if len(empty):
            raise ValueError(f"mask leaves no row of sample {empty[0]}")
        return features if positions is None else features.with_positions(positions)

    @classmethod
    def joined(cls, *features: Features) -> Features:
        """Put the rows of several sets one after the other in each sample: tokens, then patches, say.

        The rows are copied once, however often selections repeat a sample (one image of several questions, say).

        Parameters
        ----------
        *features : Features
            Two or more, of as many samples and taps, whose channels and types agree tap by tap.

        Returns
        -------
        Features
            With the positions and the late layers of the first set.

        Raises
        ------
        ValueError
            Where they do not fit each other, or hold images or a tower's output.
        """
        for number, part in enumerate(features):
            if not isinstance(part, Features):
                raise TypeError(f"features[{number}] must be Features, got {type(part).__name__}")
        if len(features) < 2:
            raise ValueError(f"joined takes two sets of features or more, got {len(features)}")
        return joining.joined(features)

    @property
    def taps(self) -> list[Array]:
        """The samples' rows one after the other, a matrix (rows, channels) per tap; copies where it is a selection."""
        batch = self.batch()
        return [_picked(array, batch.rows_of(number)) for number, array in enumerate(self._arrays)]

    @property
    def scales(self) -> list[Float32s | None]:
        """For each tap what its rows are multiplied by, float32 of shape (rows,), where it is int8, else None."""
        batch = self.batch()
        return [None if array is None else _picked(array, batch.rows_of(number))
                for number, array in enumerate(self._scales)]

    @property
    def sizes(self) -> list[Integers] | None:
        """For each tap the heights and widths, int64 of shape (samples, 2), where taps are images, else None."""
        sizes = [own.sizes for own in self._own or () if own is not None and own.sizes is not None]
        return [each if self._samples is None else each[self._samples] for each in sizes] or None

    @property
    def dtypes(self) -> list[Element]:
        """Name of the type of each tap; bfloat16 is held as uint16, int8 with `scales`."""
        return list(self._elements)

    @property
    def channels(self) -> list[int]:
        """Channels of each tap."""
        return [array.shape[1] for array in self._arrays]

    @property
    def lengths(self) -> Integers:
        """Rows of each sample, int64 of shape (samples,)."""
        lengths = np.diff(self._offsets)
        return lengths if self._samples is None else lengths[self._samples]

    @cached_property
    def longest(self) -> int:
        """Rows of the longest sample."""
        return int(self.lengths.max())

    @cached_property
    def largest(self) -> Batch:
        """One sample with as many rows in each tap as any sample has there, as a `Batch` without rows."""
        own = None
        if self.sizes is not None:
            own = [pixels_of(sizes.max(axis=0, keepdims=True)) for sizes in self.sizes]
        return Batch(np.array([0, self.longest], np.int64), None, own=own)

    @property
    def offsets(self) -> Integers:
        """Where each sample's rows begin in `taps`, int64 of shape (samples + 1,)."""
        return offsets_of(self.lengths)

    @property
    def positions(self) -> Integers | None:
        """A row of each sample, counted from its first, int64 of shape (samples,), or None where none were given."""
        return None if self._positions is None else self._positions.copy()

    @property
    def source(self) -> Record | None:
        """What the features were taken from (``"backbone"``: its fingerprint, ``"states"``), or None."""
        return None if self._source is None else dict(self._source)

    @property
    def preprocessing(self) -> Record | None:
        """How inputs became rows, or None: ``"layers"`` of the backbone; of texts ``"tokenizer"``, ``"max_length"``."""
        return None if self._preprocessing is None else dict(self._preprocessing)

    @cached_property
    def layers(self) -> list[OwnLayer]:
        """Frozen late layers that came with the features, as blocks for a network; those of a folder are read now.

        Raises
        ------
        ValueError
            Where a layer of the folder is not the one that was written.
        ImportError
            Where they are in a folder, without the safetensors package.
        """
        return list(self._layers)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows of these samples in all taps, scales included."""
        batch = self.batch()
        row_bytes = [
            array.shape[1] * array.itemsize + (0 if scales is None else scales.itemsize)
            for array, scales in zip(self._arrays, self._scales)
        ]
        return sum(int(batch.offsets_of(number)[-1]) * size for number, size in enumerate(row_bytes))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of lengths, positions, types and values, in hexadecimal; it reads everything once."""
        if self._fingerprint is None:
            digest = hashlib.sha256(repr((self.dtypes, self.channels)).encode())
            digest.update(np.ascontiguousarray(self.lengths))
            if self._positions is not None:
                digest.update(b"positions")
                digest.update(self._positions)
            for sizes in self.sizes or ():
                digest.update(np.ascontiguousarray(sizes))
            for arrays in (self._arrays, self._scales):
                for number, array in enumerate(arrays):
                    for rows in self._pieces(number, array):
                        digest.update(np.ascontiguousarray(rows))
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def __len__(self) -> int:
        return len(self._offsets) - 1 if self._samples is None else len(self._samples)

    def __getitem__(self, index: Any) -> Features:
        """Select samples by number, slice, index array or bool array; rows are not copied."""
        if isinstance(index, tuple) and len(index) == 2 and index[1] is Ellipsis:  # as scikit-learn indexes arrays
            index = index[0]
        if isinstance(index, (int, np.integer)) and not isinstance(index, (bool, np.bool_)):
            index = [index]
        every = np.arange(len(self._offsets) - 1) if self._samples is None else self._samples
        if not isinstance(index, slice):
            index = np.asarray(index)
            if index.ndim != 1 or index.dtype.kind not in "biu":
                raise TypeError("features[index] takes a number, a slice, or an array of numbers or of bool")
        chosen = every[index]
        if len(chosen) == 0:
            raise IndexError("features[index] would hold no sample")
        positions = None if self._positions is None else np.ascontiguousarray(self._positions[index])
        return self._with(samples=chosen, positions=positions)

    @property
    def shape(self) -> tuple[int]:
        """(samples,): what is indexed, as scikit-learn asks for it."""
        return (len(self),)

    def __repr__(self) -> str:
        channels = " ".join(map(str, dict.fromkeys(self.channels)))
        return (
            f"Features({self._counted()}, {count_of(len(self._arrays), 'tap')} of "
            f"{channels} channels, {' '.join(dict.fromkeys(self._elements))}, {self.nbytes / 2**20:.1f} MiB)"
        )

    def _repr_html_(self) -> str:
        rows = [(f"tap {number}", width, element)
                for number, (width, element) in enumerate(zip(self.channels, self.dtypes))]
        title = f"Features: {self._counted()}, {self.nbytes / 2**20:,.1f} MiB"
        return html_table(title, ("", "channels", "type"), rows)

    def _counted(self) -> str:
        lengths = self.lengths
        span = f"{lengths.min()}" if lengths.min() == lengths.max() else f"{lengths.min()} to {lengths.max()}"
        return f"{count_of(len(self), 'sample')} of {span} rows"

    def select(self, taps: Sequence[int]) -> Features:
        """Take some of the taps.

        Parameters
        ----------
        taps : sequence of int
            Their numbers, in the order wanted; negative ones count from the end.

        Returns
        -------
        Features
        """
        count = len(self._arrays)
        numbers = [whole_number(tap, "taps", -count, count - 1) for tap in read_sequence(taps)]
        source = joining.selected_source(self._source, numbers)
        own = None if self._own is None else [self._own[number] for number in numbers]
        if own is not None and all(tap is None for tap in own):
            own = None
        primary = {}
        if own is not None and (own[-1] is not None) and (own[-1].sizes is not None or None not in own):
            primary = {"offsets": own[-1].offsets, "rows": own[-1].rows}
        return self._with(
            **primary,
            own=own,
            arrays=[self._arrays[number] for number in numbers],
            elements=[self._elements[number] for number in numbers],
            scales=[self._scales[number] for number in numbers],
            source=source,
        )

    def with_positions(self, positions: ArrayLike) -> Features:
        """Give each sample the number of one of its rows, for heads with ``pool="position"``.

        Parameters
        ----------
        positions : array_like of int, shape (samples,)
            Counted from the sample's first row: the end-of-text token of CLIP, say.

        Returns
        -------
        Features
            With the same arrays.

        Raises
        ------
        TypeError, ValueError
            Where they are not whole numbers, not as many as samples, or a sample does not have the row.
        """
        return self._with(positions=read_positions(positions, self.lengths))

    def astype(self, dtype: Element) -> Features:
        """Store the taps in another type.

        Parameters
        ----------
        dtype : {"float32", "float16", "bfloat16", "int8"}
            bfloat16 is held as uint16. int8 comes with one scale a row: the row's largest magnitude divided by 127.

        Returns
        -------
        Features
            Of these samples alone, in arrays of its own.
        """
        one_of(dtype, "dtype", ("float32", "float16", "bfloat16", "int8"))
        arrays, scales = [], []
        for array, element, old in zip(self.taps, self._elements, self.scales):
            made, scale = narrowed(widened(array, element, old), dtype)
            arrays.append(made)
            scales.append(scale)
        made = Features(arrays, None if self.sizes else self.lengths, dtype=dtype if dtype == "bfloat16" else None,
                        scales=scales, positions=self.positions, sizes=self.sizes, source=self.source)
        return made._with(preprocessing=self._preprocessing, layers=self._layers)

    def pooled(self, tap: int = -1, how: Pooling = "mean") -> Array:
        """Reduce each sample's rows of one tap to one.

        Parameters
        ----------
        tap : int
            Number of the tap.
        how : {"mean", "max", "first", "last", "position"}
            Their mean or maximum, the first or the last, or the one that `positions` tells.

        Returns
        -------
        numpy.ndarray of float32 (of float64 where the tap is), shape (samples, channels)
        """
        one_of(how, "how", ("mean", "max", "first", "last", "position"))
        tap = whole_number(tap, "tap", -len(self._arrays), len(self._arrays) - 1)
        array, element, scales = self._arrays[tap], self._elements[tap], self._scales[tap]
        if how in ("first", "last", "position"):
            chosen = self._row_numbers(tap, how)
            return widened(array[chosen], element, None if scales is None else scales[chosen])
        pooled = []
        for start in range(0, len(self), _CHUNK):
            batch = self.batch(np.arange(start, min(start + _CHUNK, len(self))))
            chosen, offsets = batch.rows_of(tap), batch.offsets_of(tap)
            rows = widened(array[chosen], element, None if scales is None else scales[chosen])
            if how == "max":
                pooled.append(np.maximum.reduceat(rows, offsets[:-1], axis=0))
            else:
                sums = np.add.reduceat(rows, offsets[:-1], axis=0, dtype=np.float64)
                pooled.append((sums / np.diff(offsets)[:, None]).astype(rows.dtype))
        return np.concatenate(pooled)

    def _row_numbers(self, tap: int, how: Pooling) -> Integers:
        """Return which row of a tap's array is the first, the last or the given one of each sample."""
        batch = self.batch()
        offsets, rows = batch.offsets_of(tap), batch.rows_of(tap)
        if how == "position":
            if self._positions is None:
                raise ValueError(MISSING_POSITIONS)
            chosen = offsets[:-1] + self._positions
        else:
            chosen = offsets[:-1] if how == "first" else offsets[1:] - 1
        return chosen if rows is None else rows[chosen]

    def batch(self, index: Integers | None = None) -> Batch:
        """Return the rows of some samples as the core takes them.

        Parameters
        ----------
        index : numpy.ndarray of int64, optional
            Numbers of the samples; all when None.

        Returns
        -------
        Batch
        """
        positions = self._positions
        if positions is not None:
            positions = (positions if index is None else positions[index]).reshape(-1, 1)
        if self._samples is not None:
            index = self._samples if index is None else self._samples[index]
        elif index is None:
            return Batch(self._offsets, self._rows, positions, self._own)
        chosen = select_rows(self._offsets, self._rows, index, positions)
        if self._own is None:
            return chosen
        return replace(chosen, own=[own and own.select(index) for own in self._own])

    def sources(self, batch: Batch) -> list[Source]:
        """Return every tap's array with the rows that a batch takes of it."""
        return [
            (array, batch.rows_of(number)) if scales is None else (array, batch.rows_of(number), scales)
            for number, (array, scales) in enumerate(zip(self._arrays, self._scales))
        ]

    # Disk.

    def save(self, folder: PathLike, layers: Sequence[OwnLayer] | None = None) -> None:
        """Write these samples into a folder, to be opened with `Features.open`.

        An interrupted save leaves no features; the next one into the folder begins anew.

        Parameters
        ----------
        folder : str or path-like
            Made where it does not exist; it must not hold features.
        layers : sequence of TransformerLayer, optional
            Frozen late layers to store with them; those that the features came with when None.

        Raises
        ------
        ValueError
            Where the folder holds features, or a layer is not frozen.
        RuntimeError
            Where another process writes into the folder.
        """
        disk.write([self], folder, layers=layers)

    @classmethod
    def open(cls, folder: PathLike, *, verify: bool | None = None) -> Features:
        """Open features that `save` or a backbone's `extract` wrote, mapped into memory for reading.

        The manifest and the sizes of all files are checked always. Files must not change while they are in use.

        Parameters
        ----------
        folder : str or path-like
        verify : bool, optional
            Whether to read all files and check them against their checksums. When None, only if that has not been done
            since they were last changed.

        Returns
        -------
        Features

        Raises
        ------
        ValueError
            Where the features are not complete, or a file is not the one that was written.
        FileNotFoundError
            Where a file is missing.
        """
        made = cls.__new__(cls)
        made._set(**disk.read(folder, verify))
        return made

    def _pieces(self, tap: int, array: Array | None) -> Iterator[Array]:
        if array is None:
            return
        for start in range(0, len(self), _CHUNK):
            yield array[self.batch(np.arange(start, min(start + _CHUNK, len(self)))).rows_of(tap)]


def from_padded(taps: Sequence[ArrayLike], mask: ArrayLike | None, names: Sequence[str] | None = None,
                dtype: Uint16As = None, mask_name: str = "mask") -> tuple[Features, tuple[int, int]]:
    """Return padded arrays as features, and (batch, tokens); samples may have no row."""
    arrays, elements, grids = [], [], []
    taps = read_sequence(taps)
    names = names or [f"taps[{number}]" for number in range(len(taps))]
    for name, tap in zip(names, taps):
        array, element, grid = read_padded(tap, name, dtype)
        arrays.append(array)
        elements.append(element)
        grids.append(grid)
        if grid != grids[0]:
            raise ValueError(
                f"{name} must have the same batch and tokens as {names[0]}, {grids[0]}, got {grid}"
            )
    (samples, tokens), mask = grids[0], read_mask(mask, grids[0], mask_name)
    made = Features.__new__(Features)
    if mask is None:
        made._set(arrays, elements, np.arange(samples + 1, dtype=np.int64) * tokens, None, None, None)
    else:
        rows = np.flatnonzero(mask).astype(np.int64, copy=False)
        made._set(arrays, elements, offsets_of(mask.sum(axis=1)), rows, None, None)
    return made, grids[0]


def from_images(taps: Sequence[ArrayLike], names: Sequence[str] | None = None, dtype: Uint16As = None) -> Features:
    """Return images (batch, height, width, channels), of one size a tap, as features."""
    arrays, elements, own, taps = [], [], [], read_sequence(taps)
    names = names or [f"taps[{number}]" for number in range(len(taps))]
    for name, tap in zip(names, taps):
        array, element, sizes = read_images(tap, name, dtype)
        arrays.append(array)
        elements.append(element)
        own.append(pixels_of(sizes))
        samples = len(own[0].offsets) - 1
        if len(sizes) != samples:
            raise ValueError(f"{name} must have a batch of {samples}, as {names[0]} has, got {len(sizes)}")
    made = Features.__new__(Features)
    made._set(arrays, elements, own[-1].offsets, None, None, None, own=own)
    return made


def _with_sample_rows(features: Features, values: ArrayLike, dtype: Uint16As) -> Features:
    """Return features with a last tap of one row a sample."""
    name, samples = f"taps[{len(features.channels)}]", len(features)
    array, element = read_reals(values, name, dtype)
    if array.shape[0] != samples or array.shape[1] == 0:
        raise ValueError(f"{name} must have shape (batch, channels) with a batch of {samples}, got {array.shape}")
    taps = len(features.channels)
    return features._with(
        arrays=[*features._arrays, readable(array)], elements=[*features._elements, element],
        scales=[*features._scales, None], own=[*[None] * taps, _one_row_each(samples)],
    )


def _one_row_each(samples: int) -> Segments:
    return Segments(np.arange(samples + 1, dtype=np.int64), None)


def _dimensions(values: ArrayLike) -> int | None:
    try:
        return np.ndim(values)
    except ValueError:  # uneven lists, which are refused where they are read
        return None


def _picked(array: Array, rows: Integers | None) -> Array:
    return array if rows is None else array[rows]


def _read_sizes(sizes: Sequence[ArrayLike], taps: int) -> list[Segments]:
    """Return the segments of taps that are images of these sizes."""
    sizes, own = list(sizes), []
    if len(sizes) != taps:
        raise ValueError(f"sizes must have an item for each of the {count_of(taps, 'tap')}, got {len(sizes)}")
    for number, values in enumerate(sizes):
        array = np.asarray(values)
        if array.ndim != 2 or array.shape[1] != 2 or len(array) == 0 or array.dtype.kind not in "iu":
            raise ValueError(
                f"sizes[{number}] must be whole numbers of shape (samples, 2), got {array.dtype} of shape {array.shape}"
            )
        if array.min() < 1:
            raise ValueError(f"sizes[{number}] must be 1 or more, got {array.min()}")
        own.append(pixels_of(np.ascontiguousarray(array, np.int64)))
        samples = len(own[0].offsets) - 1
        if len(array) != samples:
            raise ValueError(f"sizes[{number}] must have {samples} samples, as sizes[0] has, got {len(array)}")
    return own


def as_features(taps: Features | Sequence[ArrayLike], mask: ArrayLike | None = None, positions: ArrayLike | None = None,
                *, channels: Sequence[int] | None = None, dtype: Uint16As = None) -> Features:
    """Return a network's input as features.

    Parameters
    ----------
    taps : Features, or sequence of array_like, each of shape (batch, tokens, channels), or images
    mask : array_like, shape (batch, tokens), optional
    positions : array_like of int, shape (batch,), optional
    channels : sequence of int, optional
        Channels that each tap must have.
    dtype : {None, "bfloat16"}

    Returns
    -------
    Features
    """
    if isinstance(taps, Features):
        if mask is not None:
            raise ValueError("mask goes with padded arrays; Features know the rows of each sample")
        check_own_positions(positions)
        features = taps
    else:
        features = Features.from_arrays(taps, mask, positions, dtype=dtype)
    if channels is not None:
        check_channels(features.channels, channels)
    return features


def check_own_positions(positions: object) -> None:
    """Raise where positions were given beside Features."""
    if positions is not None:
        raise ValueError("positions goes with padded arrays; Features have their own, from Features.with_positions")


def check_channels(found: Sequence[int], wanted: Sequence[int], names: Sequence[str] | None = None) -> None:
    """Raise where arrays are not as many, or not as wide, as wanted."""
    if len(found) != len(wanted):
        raise ValueError(f"taps must be {count_of(len(wanted), 'array')}, got {len(found)}")
    for number, (width, right) in enumerate(zip(found, wanted)):
        if width != right:
            name = names[number] if names else f"taps[{number}]"
            raise ValueError(f"{name} must have {count_of(right, 'channel')}, got {width}")


def read_sequence(taps: Iterable[Any]) -> list[Any]:
    """Return taps as a list of at least one."""
    if isinstance(taps, (str, bytes, dict)) or not hasattr(taps, "__iter__"):
        raise TypeError(f"taps must be a sequence of arrays, got {type(taps).__name__}")
    taps = list(taps)
    if not taps:
        raise ValueError("taps must hold at least one array, got none")
    return taps
