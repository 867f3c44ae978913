"""State dictionaries over a parameter store: reading copies, and loading that is exact or changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from .. import _core
from .._typing import Array, ArrayLike, StateDict
from ..features.rows import read_reals, widened


class LoadReport(NamedTuple):
    """What a load that need not be exact left aside, as lists of names.

    Attributes
    ----------
    missing : list of str
        Parameters without an array.
    unexpected : list of str
        Arrays without a parameter.
    mismatched : list of str
        Arrays of another shape than their parameter.
    """

    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]


def owned_names(store: _core.Parameters, prefix: str = "") -> list[str]:
    """Return the names of trained and saved parameters under a prefix, without it."""
    owned = [name for name in store.names() if store.role(name) != "frozen"]
    return [name[len(prefix) :] for name in owned if name.startswith(prefix)]


def trainable_names(store: _core.Parameters, prefix: str = "") -> list[str]:
    """Return the names of trainable parameters under a prefix, without it."""
    return [name[len(prefix) :] for name in store.names("trainable") if name.startswith(prefix)]


def read_state(store: _core.Parameters, prefix: str = "") -> StateDict:
    """Return copies of the trained and saved parameters by name."""
    return {name: np.array(store.array(prefix + name)) for name in owned_names(store, prefix)}


def load_state(store: _core.Parameters, prefix: str, arrays: Mapping[str, ArrayLike], strict: bool) -> LoadReport:
    """Set parameters from arrays by name; where anything is wrong, none is changed.

    Parameters
    ----------
    store : sherl._core.Parameters
    prefix : str
        What comes before each name in the store.
    arrays : mapping of str to array_like
    strict : bool
        Whether every name and shape must fit; otherwise those that do are loaded.

    Returns
    -------
    LoadReport
    """
    if not isinstance(arrays, Mapping):
        raise TypeError(f"state_dict must be a dictionary of arrays by name, got {type(arrays).__name__}")
    names = owned_names(store, prefix)
    shapes = {name: tuple(store.shape(prefix + name)) for name in names}
    values = {name: read_weight(arrays[name], name) for name in names if name in arrays}
    report = LoadReport(
        missing=[name for name in names if name not in arrays],
        unexpected=[str(name) for name in arrays if name not in shapes],
        mismatched=[name for name, value in values.items() if value.shape != shapes[name]],
    )
    if strict and any(report):
        raise ValueError(f"the state dictionary does not fit: {'; '.join(_faults(report, values, shapes))}")
    for name, value in values.items():
        if name not in report.mismatched:
            store.array(prefix + name)[...] = value
    return report


def read_weight(values: ArrayLike, name: str) -> Array:
    """Return a weight as a finite, C-contiguous array of the core's type: the caller's own where it is one."""
    array, element = read_reals(values, name)
    with np.errstate(over="ignore"):
        array = np.require(widened(array, element), dtype=_core.REAL, requirements=["C", "A"])
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must hold finite numbers of {_core.REAL}")
    return array


def _faults(report: LoadReport, values: StateDict, shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    if report.missing:
        yield f"missing {', '.join(report.missing)}"
    if report.unexpected:
        yield f"unexpected {', '.join(report.unexpected)}"
    for name in report.mismatched:
        yield f"{name} must have shape {shapes[name]}, got {values[name].shape}"
