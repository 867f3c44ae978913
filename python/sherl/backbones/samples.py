"""What a stem reads of the samples that a backbone is given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from .._typing import Array, Integers, Record, Source


@dataclass(frozen=True)
class Samples:
    """Samples, read and checked.

    Attributes
    ----------
    sizes : numpy.ndarray of int64
        Of state 0: rows of each sample, (samples,), or heights and widths, (samples, 2).
    inputs : callable
        Takes numbers start and stop, and returns the sources of the program's inputs for these samples.
    fingerprint : callable
        Returns the SHA-256 of the samples as they were given, in hexadecimal.
    preprocessing : dict
        How samples become rows, beside what the backbone's fingerprint tells.
    """

    sizes: Integers
    inputs: Callable[[int, int], list[Source]]
    fingerprint: Callable[[], str]
    preprocessing: Record


def arrays_fingerprint(arrays: Iterable[Array]) -> str:
    """Return the SHA-256 of arrays, in hexadecimal."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
