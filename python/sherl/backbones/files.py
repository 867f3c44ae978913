"""Folders in Hugging Face layout: config.json and the tensors of safetensors files, read and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._typing import Array, PathLike, Record
from ..blocks.weights import read_weight
from ..features.rows import widened

CONFIG, WEIGHTS, INDEX, TOKENIZER = (
    "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
)  # fmt: skip

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def read_json(path: Path) -> Record:
    """Return what a JSON file holds, which must be an object."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(found).__name__}")
    return found


def read_config(folder: PathLike) -> Record:
    """Return what a model folder's config.json holds."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a model folder in Hugging Face layout: it has no {CONFIG}")
    return read_json(path)


class Tensors:
    """The tensors of a model folder, in one safetensors file or in those that its index names.

    Parameters
    ----------
    folder : str or path-like
    told : str
        What errors say of where a shape that is asked for comes from.
    """

    def __init__(self, folder: PathLike, told: str = f", as {CONFIG} says") -> None:
        self._prefix, self._told = "", told
        self._places: dict[str, tuple[Path, int, Any]] = {}  # by tensor name: its file and what that says of it
        for path in _files(Path(folder)):
            start, entries = _read_header(path)
            self._places.update({name: (path, start, entry) for name, entry in entries.items()})
        self._origin = str(Path(folder) / WEIGHTS)

    def choose_prefix(self, prefixes: Sequence[str], name: str) -> None:
        """Put before all names the first of some prefixes with which there is a tensor of a name, "one|another"."""
        names = name.split("|")
        self._prefix = next((prefix for prefix in prefixes if any(prefix + each in self._places for each in names)),
                            prefixes[0])

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._places

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """Return the shape of a tensor, which must have some dimensions."""
        full = self._prefix + name
        if full not in self._places:
            raise ValueError(f"{self._origin} lacks the tensor {full}")
        path, _, entry = self._places[full]
        found = tuple(entry["shape"])
        if len(found) != dimensions or 0 in found:
            raise ValueError(f"{path}: {full} must have {dimensions} dimensions, got shape {found}")
        return found

    def read(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return a tensor as an array of the core's type, which must be of a shape."""
        full = self._prefix + name
        if full not in self._places:
            raise ValueError(f"{self._origin} lacks the tensor {full}, of shape {shape}")
        path, start, entry = self._places[full]
        found = tuple(entry["shape"])
        if found != shape:
            raise ValueError(f"{path}: {full} must have shape {shape}{self._told}, got {found}")
        if entry["dtype"] not in _TYPES:
            raise ValueError(f"{path}: {full} must hold F32, F16, BF16 or F64, got {entry['dtype']}")
        kind = np.dtype(_TYPES[entry["dtype"]]).newbyteorder("<")
        array = np.fromfile(path, kind, math.prod(shape), offset=start + entry["data_offsets"][0])
        if array.size != math.prod(shape):
            raise ValueError(f"{path} is not a whole safetensors file: it ends within {full}")
        array = array.astype(kind.newbyteorder("="), copy=False).reshape(shape)
        return read_weight(widened(array, "bfloat16") if entry["dtype"] == "BF16" else array, f"{path}: {full}")


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}; other formats cannot be read")
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{folder / INDEX} must have a weight_map of file names")
    paths = [folder / Path(name).name for name in sorted(set(places.values()))]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{folder} lacks {path.name}, which {INDEX} names")
    return paths


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return where the data of a safetensors file begin, and what its header says of each tensor."""
    with open(path, "rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path} is not a whole safetensors file: its header does not end")
        header = stream.read(length)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        last = max((_checked(entry) for entry in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: its header cannot be read") from error
    if last > size - 8 - length:
        raise ValueError(
            f"{path} is not a whole safetensors file: it must have {8 + length + last:,} bytes, got {size:,}"
        )
    return 8 + length, entries


def _checked(entry: Record) -> int:
    """Return where a tensor's data end, which must be as long as type and shape say."""
    first, last = entry["data_offsets"]
    numbers = [first, last, *entry["shape"]]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("sizes must be whole numbers")
    kind = _TYPES.get(entry["dtype"])
    if kind is not None and last - first != math.prod(entry["shape"]) * np.dtype(kind).itemsize:
        raise ValueError("a tensor's bytes do not fit its shape")
    return int(last)
