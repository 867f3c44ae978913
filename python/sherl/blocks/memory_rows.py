"""The rows of a call to a layer that reads a memory beside x: two row spaces, of each of which a sample has some."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .. import _core
from .._typing import Array, Source, Spaces
from ..features.rows import offsets_of, select_rows

if TYPE_CHECKING:
    from ..features.features import Features
    from .block import Rows

MEMORY_INPUTS = ("memory", "memory_positions")


class _Batch(NamedTuple):
    samples: int
    spaces: Spaces  # offsets by row space: of the samples, of x, of the memory


class RowsWithMemory:
    """The rows of x, and those of the memory that its samples bring along; outputs have the form of x.

    Parameters
    ----------
    rows, memory : Rows
        A sample without a row of x is left out, and its rows of the memory with it.
    """

    def __init__(self, rows: Rows, memory: Rows) -> None:
        if len(memory.lengths) != len(rows.lengths):
            raise ValueError(f"memory must have the {len(rows.lengths)} samples of x, got {len(memory.lengths)}")
        empty = (rows.lengths > 0) & (memory.lengths == 0)
        if empty.any():
            raise ValueError(f"memory_mask leaves no row of sample {empty.argmax()}")
        self._rows, self._memory, self._kept = rows, memory, np.flatnonzero(rows.lengths > 0)
        self._memory_batch = memory.parts[0].batch(self._kept)
        self.lengths, self.cotangent = rows.lengths, rows.cotangent
        self.batch = _Batch(rows.batch.samples, [*rows.batch.spaces, self._memory_batch.offsets])

    def sources(self) -> list[Source]:
        memory = [source for part in self._memory.parts for source in part.sources(part.batch(self._kept))]
        return self._rows.sources() + memory

    def sink(self, channels: int, name: str | None = None) -> tuple[Array, Source]:
        """As that of `Rows`; `name` tells which rows, and None those of the output."""
        if name not in MEMORY_INPUTS:
            return self._rows.sink(channels)
        memory, offsets = self._memory, offsets_of(self._memory.lengths)
        rows = select_rows(offsets, None, self._kept).rows if memory.grid is None else self._memory_batch.rows
        count = int(offsets[-1]) if memory.grid is None else memory.grid[0] * memory.grid[1]
        matrix = np.zeros((count, channels), _core.REAL)
        return matrix, (matrix, rows)

    def given(self, matrix: Array, name: str | None = None) -> Array | Features:
        return (self._memory if name in MEMORY_INPUTS else self._rows).given(matrix)
