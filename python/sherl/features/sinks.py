"""Where a backbone puts the rows that it computes, batch by batch: into memory, or into a folder."""

import numpy as np

from . import disk
from .features import Features
from .rows import offsets_of

DTYPES = ("float32", "float16", "bfloat16", "int8")


def _empty(element, rows, channels):
    """Return an array for rows, and one for their scales where the type has some, else None."""
    array = np.empty((rows, channels), np.uint16 if element == "bfloat16" else element)
    return array, np.empty(rows, np.float32) if element == "int8" else None


def _offsets_of(taps, fields):
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

    def __init__(self, taps, fields, *, source, preprocessing, layers):
        self._elements = [element for element, _ in taps]
        self._facts = {"source": source, "preprocessing": preprocessing, "layers": layers}
        self._lengths, own = fields["lengths"], disk.own_segments(fields, len(taps))
        self._own = own if any(own) else None
        self._offsets = _offsets_of(taps, fields)
        made = [_empty(element, int(rows[-1]), channels) for rows, (element, channels) in zip(self._offsets, taps)]
        self._arrays, self._scales = map(list, zip(*made))
        self.samples = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def room(self, samples):
        """Return arrays for the rows of the next samples, and of scales (None but for int8), by tap."""
        places = [slice(rows[self.samples], rows[self.samples + samples]) for rows in self._offsets]
        arrays = [array[place] for array, place in zip(self._arrays, places)]
        return arrays, [None if array is None else array[place] for array, place in zip(self._scales, places)]

    def take(self, samples):
        """Take the rows of the next samples, which have been put into the arrays of `room`."""
        self.samples += samples

    def features(self):
        """Return the features, whole."""
        made = Features.__new__(Features)
        made._set(self._arrays, self._elements, offsets_of(self._lengths), None, None, scales=self._scales,
                  own=self._own, **self._facts)
        return made


class DiskSink:
    """Takes rows into a folder; the other arguments are those of `disk.writer`."""

    def __init__(self, folder, taps, fields, **facts):
        self._folder, self._taps, self._offsets = folder, taps, _offsets_of(taps, fields)
        self._writer = disk.writer(folder, taps, fields, **facts)
        self._batch, self._verify = None, False

    @property
    def samples(self):
        return self._writer.samples

    def __enter__(self):
        self._writer.__enter__()
        self._verify = None if self._writer.finished else False  # what is written now need not be read again
        return self

    def __exit__(self, *error):
        self._writer.__exit__(*error)

    def room(self, samples):
        counts = [int(rows[self.samples + samples] - rows[self.samples]) for rows in self._offsets]
        made = [_empty(element, rows, channels) for rows, (element, channels) in zip(counts, self._taps)]
        self._batch = tuple(map(list, zip(*made)))
        return self._batch

    def take(self, samples):
        self._writer.append(samples, *self._batch)

    def features(self):
        self._writer.finish()
        return Features.open(self._folder, verify=self._verify)
