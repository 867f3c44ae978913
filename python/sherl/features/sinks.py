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


class MemorySink:
    """Takes rows into arrays of the whole size.

    Parameters
    ----------
    taps : list of (str, int)
        Element (one of `DTYPES`) and channels of each.
    lengths : numpy.ndarray of int64, shape (samples,)
    source, preprocessing : dict
    layers : list of TransformerLayer

    Attributes
    ----------
    samples : int
        Samples that were taken.
    """

    def __init__(self, taps, lengths, *, source, preprocessing, layers):
        self._elements, self._offsets = [element for element, _ in taps], offsets_of(lengths)
        self._facts = {"source": source, "preprocessing": preprocessing, "layers": layers}
        made = [_empty(element, int(self._offsets[-1]), channels) for element, channels in taps]
        self._arrays, self._scales = map(list, zip(*made))
        self.samples = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def room(self, samples):
        """Return arrays for the rows of the next samples, and of scales (None but for int8), by tap."""
        rows = slice(self._offsets[self.samples], self._offsets[self.samples + samples])
        return [array[rows] for array in self._arrays], [None if array is None else array[rows] for array in self._scales]

    def take(self, samples):
        """Take the rows of the next samples, which have been put into the arrays of `room`."""
        self.samples += samples

    def features(self):
        """Return the features, whole."""
        made = Features.__new__(Features)
        made._set(self._arrays, self._elements, self._offsets, None, None, scales=self._scales, **self._facts)
        return made


class DiskSink:
    """Takes rows into a folder; the other arguments are those of `disk.writer`."""

    def __init__(self, folder, taps, lengths, **facts):
        self._folder, self._taps, self._offsets = folder, taps, offsets_of(lengths)
        self._writer = disk.writer(folder, taps, {"lengths": lengths}, **facts)
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
        rows = int(self._offsets[self.samples + samples] - self._offsets[self.samples])
        self._batch = tuple(map(list, zip(*(_empty(element, rows, channels) for element, channels in self._taps))))
        return self._batch

    def take(self, samples):
        self._writer.append(samples, *self._batch)

    def features(self):
        self._writer.finish()
        return Features.open(self._folder, verify=self._verify)
