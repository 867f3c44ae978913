"""Rotary positions that turn more slowly, for texts longer than those of the first training: settings, frequencies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checks import real_number

_PARTIAL = ("original", "low", "high")


def read_scaling(scaling: Any) -> dict[str, float]:
    """Return `rotary_scaling` of a layer, checked: a factor and, where pairs differ, what decides about them."""
    wanted = ("factor", *_PARTIAL)
    if not isinstance(scaling, dict):
        raise TypeError(f"rotary_scaling must be a dictionary or None, got {type(scaling).__name__}")
    if set(scaling) not in ({"factor"}, set(wanted)):
        raise ValueError(f"rotary_scaling must have the key factor alone, or {', '.join(wanted)}, got "
                         f"{', '.join(map(str, scaling)) or 'none'}")
    read = {"factor": real_number(scaling["factor"], "factor", least=1.0)}
    if len(scaling) > 1:
        read["original"] = real_number(scaling["original"], "original", least=1.0)
        read["low"] = real_number(scaling["low"], "low", least=0.0)
        read["high"] = real_number(scaling["high"], "high", above=read["low"])
    return read


def core_scaling(scaling: Mapping[str, float] | None) -> dict[str, float]:
    """Return `rotary_scaling` as arguments of the core's transformer layer."""
    return {f"rotary_{name}": value for name, value in (scaling or {}).items()}


def speeds(theta: float, dimensions: int, scaling: Mapping[str, float] | None) -> Any:
    """Return the angles by which pairs of channels turn from one position to the next, as `sherl_rotary` has them."""
    plain = theta ** (-np.arange(dimensions // 2) * 2.0 / dimensions)
    if scaling is None:
        return plain
    kept = 0.0
    if "original" in scaling:
        turns = scaling["original"] * plain / (2 * math.pi)
        kept = np.clip((turns - scaling["low"]) / (scaling["high"] - scaling["low"]), 0, 1)
    return kept * plain + (1 - kept) * plain / scaling["factor"]
