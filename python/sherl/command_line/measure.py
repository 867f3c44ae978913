"""How long a block of work takes, and by how much the process's resident memory grows in it."""

from __future__ import annotations

import ctypes
import re
import time
from pathlib import Path

__all__ = ["Measured", "megabytes"]


class Measured:
    """A ``with`` block whose time and memory are measured.

    Attributes
    ----------
    seconds : float
        Wall time of the block.
    memory : int or None
        Bytes by which the resident set at its peak inside the block exceeded that at the block's start. None where the
        system does not tell (it needs Linux's /proc).
    """

    seconds: float
    memory: int | None

    def __enter__(self) -> Measured:
        _return_free_memory()
        self._can_tell = _forget_peak()
        self._before = _status("VmRSS")
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.perf_counter() - self._start
        peak = _status("VmHWM")
        self.memory = None
        if self._can_tell and peak is not None and self._before is not None:
            self.memory = max(0, peak - self._before)


def megabytes(count: int | None) -> str:
    """Return a number of bytes as text in MB (1 MB = 1,000,000 bytes), or n/a for None."""
    return "n/a" if count is None else f"{count / 1e6:,.0f} MB"


def _return_free_memory() -> None:
    """Let the C library give back what earlier work freed: used again, it would not count as growth."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def _forget_peak() -> bool:
    """Let the peak that Linux keeps start anew from the present resident set."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int | None:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None
