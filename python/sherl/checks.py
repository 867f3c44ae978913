"""Checks of settings, each of which gives the value back or raises and names the argument; and atomic writing."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ._typing import PathLike

SEEDS = 2**64

Choice = TypeVar("Choice")

_UNITS = {"b": 1}
_UNITS.update({f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)})
_UNITS.update({f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)})


def whole_number(value: object, name: str, least: int = 0, most: int | None = None) -> int:
    """Return `value` as an int from `least` to `most`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, got {value}")
    if most is not None and value > most:
        raise ValueError(f"{name} must be {most} or less, got {value}")
    return int(value)


def real_number(value: object, name: str, least: float | None = None, above: float | None = None,
                below: float | None = None) -> float:
    """Return `value` as a finite float, at least `least`, more than `above` and less than `below`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be {least} or more, got {value}")
    if above is not None and value <= above:
        raise ValueError(f"{name} must be more than {above}, got {value}")
    if below is not None and value >= below:
        raise ValueError(f"{name} must be less than {below}, got {value}")
    return value


def rate(value: object, name: str) -> float:
    """Return `value` as a float from 0 to below 1, as a dropout rate is."""
    return real_number(value, name, least=0.0, below=1.0)


def seed_number(value: object, name: str = "seed") -> int:
    """Return `value` as an int that the random numbers can be keyed by."""
    return whole_number(value, name, 0, SEEDS - 1)


def one_of(value: Choice, name: str, choices: tuple[object, ...]) -> Choice:
    """Return `value` where it is among `choices`."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def flag(value: object, name: str) -> bool:
    """Return `value` as a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def byte_count(value: object, name: str) -> int | None:
    """Return a number of bytes, given as one or as text like "256 MiB" or "1.5 GB", as an int; None stays."""
    if value is None:
        return None
    if not isinstance(value, str):
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} must be a number of bytes or text like '256 MiB', got {value!r}")
        return whole_number(value, name, 1)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b)\s*", value, re.ASCII | re.IGNORECASE)
    unit = match[2].lower() if match else ""
    if match is None or unit not in _UNITS:
        raise ValueError(f"{name} must be like '256 MiB' or '1.5 GB' (units B, KB to TB, KiB to TiB), got {value!r}")
    return whole_number(int(Fraction(match[1]) * _UNITS[unit]), name, 1)


def count_of(number: int, noun: str) -> str:
    """Return "1 tap", "2 taps"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def differences(former: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what differs between two records of settings, as "name was … and is …"; empty where they are equal.

    Parameters
    ----------
    former, now : dict
        What JSON can hold.
    """
    # As JSON gives them back, where a tuple is a list.
    former, now = (dict(_leaves(json.loads(json.dumps(record)))) for record in (former, now))
    differing = [name for name in {**now, **former} if now.get(name) != former.get(name)]
    return ", ".join(f"{name} was {_short(former.get(name))} and is {_short(now.get(name))}" for name in differing)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the names and values at the ends of nested dictionaries and lists."""
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def write_files(folder: PathLike, contents: Mapping[str, bytes | memoryview]) -> None:
    """Write files into a folder, each one whole or not at all.

    Parameters
    ----------
    folder : str or path-like
        Made where it does not exist.
    contents : dict of str to bytes
        What the files hold, by name. All are on disk under temporary names before the first takes its own.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    staged = {}
    try:
        for name, content in contents.items():
            descriptor, staged[name] = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(staged[name], 0o666 & ~_umask())
        for name in contents:
            os.replace(staged[name], folder / name)
            del staged[name]
    finally:
        for path in staged.values():
            with suppress(FileNotFoundError):
                os.unlink(path)
    sync_folder(folder)


def _umask() -> int:
    # The mask can only be read by setting it; a file that anyone makes in between gets the stricter one.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sync_folder(folder: PathLike) -> None:
    """Have the names of a folder's files on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
