"""The memory budget: a bound on what the core allocates for a network, beside frozen weights and taps."""

import math

import numpy as np

from ..checks import byte_count

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

    def __init__(self, size, optimizer=0):
        self.size, self.optimizer = size, optimizer
        self._rooms = {}

    def room(self, program, longest):
        """Return the bytes that are left for arenas and gradients.

        Parameters
        ----------
        program : _core.Program
        longest : int
            Rows of the longest sample; one that fits alone fits in any batch.

        Raises
        ------
        ValueError
            Where it does not fit; it names the least budget with which it would.
        """
        if (program, longest) not in self._rooms:
            sample = 1, [None, np.array([0, longest], np.int64)]
            fixed = self.optimizer + program.memory(*sample)["parameters"]
            least = fixed + program.least_memory(*sample)
            if self.size < least:
                raise ValueError(
                    f"memory_budget must be at least {least} bytes ({math.ceil(100 * least / MIB) / 100:.2f} MiB) for "
                    f"samples of up to {longest} rows, got {self.size} bytes"
                )
            self._rooms[program, longest] = self.size - fixed
        return self._rooms[program, longest]


def read_budget(value, optimizer=0):
    """Return the budget of a `memory_budget` argument, or None."""
    size = byte_count(value, "memory_budget")
    return None if size is None else Budget(size, optimizer)
