"""How a user's arrays lay out rows: padded or ragged. Reads one entry a row from them, and gives rows back so."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from .._typing import Array, ArrayLike, Bools, Integers
from .features import Features
from .rows import offsets_of


class Layout:
    """The rows of some samples, and the form in which a user holds an entry for each row.

    Parameters
    ----------
    taps : Features, or sequence of padded arrays
        What the user gave.
    features : Features
        The same, read.
    queries : int, optional
        Rows that every sample has, where they are not those of the taps.
    """

    def __init__(self, taps: Features | Sequence[ArrayLike], features: Features, queries: int | None = None) -> None:
        self._features, self.samples = features, len(features)
        self.grid: tuple[int, int] | None
        if queries is not None:
            self.lengths, self.grid = np.full(self.samples, queries), (self.samples, queries)
            self.mask = None
            return
        self.lengths = features.lengths
        # Features that were made of padded arrays hold those, and which rows are meant.
        self.grid = None if isinstance(taps, Features) else (self.samples, len(features._arrays[0]) // self.samples)

    @cached_property
    def mask(self) -> Bools | None:
        """Which places of padded arrays are meant, bool of shape (batch, tokens), or None for all."""
        if self.grid is None or self._features._rows is None:
            return None
        mask = np.zeros(self.grid, bool)
        mask.ravel()[self._features._rows] = True
        return mask

    @property
    def rows(self) -> int:
        return int(self.lengths.sum())

    @property
    def offsets(self) -> Integers:
        return offsets_of(self.lengths)

    def read(self, values: Any, name: str) -> Array:
        """Return one entry a row, as an array with an entry for each row that is meant."""
        if self.grid is not None:
            array = np.asarray(values)
            if array.shape[:2] != self.grid:
                raise ValueError(f"{name} must have shape (batch, tokens) = {self.grid}, got {array.shape}")
            return array.reshape(-1, *array.shape[2:]) if self.mask is None else array[self.mask]
        arrays = [np.asarray(value) for value in values]
        if len(arrays) != self.samples:
            raise ValueError(f"{name} must be {self.samples} arrays, one a sample, got {len(arrays)}")
        for number, (array, length) in enumerate(zip(arrays, self.lengths)):
            if array.shape != (length,):
                raise ValueError(f"{name} must have shape {(int(length),)} for sample {number}, got {array.shape}")
        return np.concatenate(arrays)

    def given(self, rows: Array, fill: float = 0) -> Array | list[Array]:
        """Return an entry for each row in the user's form: padded with `fill`, or a list of one array a sample."""
        if self.grid is None:
            return np.split(rows, self.offsets[1:-1])
        if self.mask is None:
            return rows.reshape(*self.grid, *rows.shape[1:])
        padded = np.full((*self.grid, *rows.shape[1:]), fill, rows.dtype)
        padded[self.mask] = rows
        return padded

    def matrix(self, rows: Array) -> Array | list[Array] | Features:
        """Return a matrix of rows in the user's form: padded with zeros, or Features."""
        return Features([rows], self.lengths) if self.grid is None else self.given(rows)

    def row_numbers(self, columns: Integers, name: str) -> Integers:
        """Return positions (samples, any) of padded arrays as numbers of the rows that are meant."""
        beyond = self.lengths if self.grid is None else np.full(self.samples, self.grid[1])
        wrong = np.flatnonzero(((columns < 0) | (columns >= beyond[:, None])).any(axis=1))
        if len(wrong):
            number = wrong[0]
            raise ValueError(f"{name} of sample {number} must be from 0 to {beyond[number] - 1}, got {columns[number]}")
        if self.mask is None:
            return columns
        if not np.take_along_axis(self.mask, columns, axis=1).all():
            number = np.flatnonzero(~np.take_along_axis(self.mask, columns, axis=1).all(axis=1))[0]
            raise ValueError(f"{name} of sample {number} must be rows that mask keeps, got {columns[number]}")
        return np.take_along_axis(np.cumsum(self.mask, axis=1) - 1, columns, axis=1)

    def columns(self, rows: Integers) -> Integers:
        """Return numbers of rows that are meant (samples, any) as positions of padded arrays."""
        if self.mask is None:
            return rows
        # A stable sort puts the positions that are kept first, in order.
        return np.take_along_axis(np.argsort(~self.mask, axis=1, kind="stable"), rows, axis=1)
