"""What the core runs on: its version, BLAS library and instruction set, and the number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core
from .checks import whole_number

__all__ = ["get_num_threads", "set_num_threads", "show_config"]


def read_config() -> dict[str, Any]:
    """Return what `show_config` prints, by name."""
    facts = {**_core.config(), "numpy": np.__version__}
    facts["bfloat16"] = "available" if facts["bfloat16"] else "not available on this processor"
    return facts


def show_config() -> None:
    """Print versions (sherl, BLAS, NumPy), the instruction set, whether it has bfloat16, and the number of threads."""
    facts = read_config()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {value}")


def set_num_threads(threads: int) -> None:
    """Set how many threads the core computes with; results do not depend on it.

    Parameters
    ----------
    threads : int
        One or more.
    """
    _core.set_threads(whole_number(threads, "threads", 1))


def get_num_threads() -> int:
    """Return how many threads the core computes with.

    Returns
    -------
    int
    """
    return _core.threads()
