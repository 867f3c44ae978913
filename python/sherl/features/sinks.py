"""Where a backbone puts the rows that it computes, batch by batch: into memory, or into a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._typing import Array, Element, Float32s, Integers, PathLike, Record
from . import disk
from .features import Features
from .rows import offsets_of

if TYPE_CHECKING:
    from ..blocks.late import OwnLayer

DTYPES = ("float32", "float16", "bfloat16", "int8")


def _empty(element: Element, rows: int, channels: int) -> tuple[Array, Float32s | None]:
    """Return an array for rows, and one for their scales where the type has some, else None."""
    array = np.empty((rows, channels), np.uint16 if element == "bfloat16" else element)
    return array, np.empty(rows, np.float32) if element == "int8" else None


def _offsets_of(taps: list[tuple[Element, int]], fields: Mapping[str, Integers]) -> list[Integers]:
    """Return where each sample's rows begin, by tap."""
    shared = offsets_of(fields["lengths"])
    return [shared if own is None else own.offsets for own in disk.own_segments(fields, len(taps))]


class MemorySink:
    """Takes rows into arrays of the whole size.

    Parameters
    ----------
    taps : list of (str, int)
        Element (one of `DTYPES`) and channels of each.
    fields : dict of str to numpy.ndarray of int64
        As `disk.fields_of` gives them.
    source, preprocessing : dict
    layers : list of TransformerLayer

    Attributes
    ----------
    samples : int
        Samples that were taken.
    """

    def __init__(self, taps: list[tuple[Element, int]], fields: Mapping[str, Integers], *, source: Record | None,
                 preprocessing: Record | None, layers: Sequence[OwnLayer]) -> None:
        self._elements = [element for element, _ in taps]
        self._facts: dict[str, Any] = {"source": source, "preprocessing": preprocessing, "layers": layers}
        self._lengths, own = fields["lengths"], disk.own_segments(fields, len(taps))
        self._own = own if any(own) else None
        self._offsets = _offsets_of(taps, fields)
        made = [_empty(element, int(rows[-1]), channels) for rows, (element, channels) in zip(self._offsets, taps)]
        self._arrays, self._scales = map(list, zip(*made))
        self.samples = 0

    def __enter__(self) -> MemorySink:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def room(self, samples: int) -> tuple[list[Array], list[Float32s | None]]:
        """Return arrays for the rows of the next samples, and of scales (None but for int8), by tap."""
        places = [slice(rows[self.samples], rows[self.samples + samples]) for rows in self._offsets]
        arrays = [array[place] for array, place in zip(self._arrays, places)]
        return arrays, [None if array is None else array[place] for array, place in zip(self._scales, places)]

    def take(self, samples: int) -> None:
        """Take the rows of the next samples, which have been put into the arrays of `room`."""
        self.samples += samples

    def features(self) -> Features:
        """Return the features, whole."""
        made = Features.__new__(Features)
        made._set(self._arrays, self._elements, offsets_of(self._lengths), None, None, scales=self._scales,
                  own=self._own, **self._facts)
        return made


class DiskSink:
    """Takes rows into a folder; the other arguments are those of `disk.writer`."""

    def __init__(self, folder: PathLike, taps: list[tuple[Element, int]], fields: Mapping[str, Integers],
                 **facts: Any) -> None:
        self._folder, self._taps, self._offsets = folder, taps, _offsets_of(taps, fields)
        self._writer = disk.writer(folder, taps, fields, **facts)
        self._batch: tuple[list[Array], list[Float32s | None]] = [], []
        self._verify: bool | None = False

    @property
    def samples(self) -> int:
        return self._writer.samples

    def __enter__(self) -> DiskSink:
        self._writer.__enter__()
        self._verify = None if self._writer.finished else False  # what is written now need not be read again
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.__exit__(*error)

    def room(self, samples: int) -> tuple[list[Array], list[Float32s | None]]:
        counts = [int(rows[self.samples + samples] - rows[self.samples]) for rows in self._offsets]
        made = [_empty(element, rows, channels) for rows, (element, channels) in zip(counts, self._taps)]
        self._batch = [array for array, _ in made], [scales for _, scales in made]
        return self._batch

    def take(self, samples: int) -> None:
        self._writer.append(samples, *self._batch)

    def features(self) -> Features:
        self._writer.finish()
        return Features.open(self._folder, verify=self._verify)
