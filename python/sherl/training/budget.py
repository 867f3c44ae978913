"""The memory budget: a bound on what the core allocates for a network, beside frozen weights and taps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .._typing import ByteCount
from ..checks import byte_count

if TYPE_CHECKING:
    from ..features.rows import Batch
    from ..features.seq2seq import PairBatch
    from .chain import Program

MIB = 2**20


class Budget:
    """Bound on parameters, optimizer state, gradients and arenas.

    Parameters
    ----------
    size : int
        Bytes.
    optimizer : int
        Bytes of the optimizer's state.
    """

    def __init__(self, size: int, optimizer: int = 0) -> None:
        self.size, self.optimizer = size, optimizer
        self._rooms: dict[Any, int] = {}

    def room(self, program: Program, largest: Batch | PairBatch, samples: int = 1) -> int:
        """Return the bytes that are left for arenas and gradients.

        Parameters
        ----------
        program : _core.Program
        largest : Batch
            One sample, the largest; one that fits alone fits in any batch, unless the program is coupled.
        samples : int
            Of a batch; what a coupled program must hold at once.

        Raises
        ------
        ValueError
            Where it does not fit; it names the least budget with which it would.
        """
        samples = samples if program.coupled else 1
        spaces = largest.spaces_of(samples)
        key = program, *(space.tobytes() for space in spaces if space is not None)
        if key not in self._rooms:
            sample = samples, spaces
            fixed = self.optimizer + program.memory(*sample)["parameters"]
            least = fixed + program.least_memory(*sample)
            if self.size < least:
                batch = f"batches of {samples}, which batch norms keep whole, of " if program.coupled else ""
                raise ValueError(
                    f"memory_budget must be at least {least} bytes ({math.ceil(100 * least / MIB) / 100:.2f} MiB) for "
                    f"{batch}samples of up to {largest.counted}, got {self.size} bytes"
                )
            self._rooms[key] = self.size - fixed
        return self._rooms[key]


def read_budget(value: ByteCount | None, optimizer: int = 0) -> Budget | None:
    """Return the budget of a `memory_budget` argument, or None."""
    size = byte_count(value, "memory_budget")
    return None if size is None else Budget(size, optimizer)
