"""The manifest of a folder of features: what its files hold, and the checksum of every part of every file."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core
from .._typing import Array, PathLike, Record
from ..checks import count_of, write_files

FORMAT, FORMAT_VERSION = "sherl.Features", 1
MANIFEST, PROGRESS, LAYERS, STAMP = "manifest.json", "progress.json", "layers.safetensors", ".verified"

STORED = {"float32": "<f4", "float64": "<f8", "float16": "<f2", "bfloat16": "<u2", "int8": "|i1"}

_BLOCK = 1 << 20  # bytes that are read at a time
_SETTLED = 1_000_000_000  # nanoseconds after which another change of a file must show in its times


@dataclass(frozen=True)
class Manifest:
    """What a folder of features holds.

    Attributes
    ----------
    samples : int
    taps : list of dict
        Of each tap ``"element"`` (a name of `STORED`), ``"rows"`` and ``"channels"``.
    fields : dict of str to list of int
        Shapes of the whole numbers that every sample has, by name: (samples,) or (samples, n). "lengths" is one.
    source : dict or None
        What the features were taken from, as a network compares it.
    preprocessing : dict or None
        How inputs became rows: the number of the backbone's layers, of texts the tokenizer's SHA-256 and the tokens
        kept.
    inputs : str or None
        SHA-256 of the inputs.
    layers : list of dict
        Of each frozen late layer that is stored beside the taps its ``"type"``, ``"settings"`` and ``"fingerprint"``.
    files : dict of str to list of (int, str)
        Of each file its parts in order: bytes and SHA-256.
    """

    samples: int
    taps: list[Record]
    fields: dict[str, list[int]]
    source: Record | None = None
    preprocessing: Record | None = None
    inputs: str | None = None
    layers: list[Record] = field(default_factory=list)
    files: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def facts(self) -> Record:
        """Everything but the files."""
        return {name: value for name, value in asdict(self).items() if name != "files"}

    def tap_files(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return for each file of taps its type and shape by name."""
        files: dict[str, tuple[str, tuple[int, ...]]] = {}
        for number, tap in enumerate(self.taps):
            files[tap_file(number)] = STORED[tap["element"]], (tap["rows"], tap["channels"])
            if tap["element"] == "int8":
                files[scales_file(number)] = "<f4", (tap["rows"],)
        return files

    def field_files(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the same for the numbers of samples."""
        return {field_file(name): ("<i8", tuple(shape)) for name, shape in self.fields.items()}

    def save(self, folder: PathLike, others: Mapping[str, bytes]) -> None:
        """Write the manifest into a folder, after other files by name."""
        record = {"format": FORMAT, "format_version": FORMAT_VERSION, "sherl_version": _core.config()["version"],
                  **asdict(self)}
        record["checksum"] = checksum_of(record)
        write_files(folder, {**others, MANIFEST: encoded(record)})


def tap_file(number: int) -> str:
    return f"tap.{number}.npy"


def scales_file(number: int) -> str:
    return f"tap.{number}.scales.npy"


def field_file(name: str) -> str:
    return f"samples.{name}.npy"


def encoded(record: Record) -> bytes:
    """Return a record as the bytes of a JSON file."""
    return (json.dumps(record, indent=1, allow_nan=False) + "\n").encode()


def checksum_of(record: Record) -> str:
    """Return the SHA-256 of a record but for its "checksum"."""
    rest = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_record(path: Path) -> Record:
    """Return the record of a JSON file with a "checksum"."""
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe features: it has no \"format\": \"{FORMAT}\"")
    version = record.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version!r} (written by sherl {record.get('sherl_version', '?')}); this sherl, "
            f"{_core.config()['version']}, reads version {FORMAT_VERSION}"
        )
    if record.get("checksum") != checksum_of(record):
        raise ValueError(f"{path} was altered: its checksum does not fit")
    return record


def read_manifest(folder: PathLike) -> Manifest:
    """Return the manifest of a folder.

    Raises
    ------
    FileNotFoundError
        Where the folder holds none.
    ValueError
        Where it is not whole, or the features are not complete.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        record = read_record(path)
    except FileNotFoundError:
        if (folder / PROGRESS).exists():
            raise ValueError(f"{folder} holds features that are not complete: write them again, to go on") from None
        raise FileNotFoundError(f"{folder} is not a folder of features: it has no {MANIFEST}") from None
    try:
        manifest = Manifest(**{name: record[name] for name in Manifest.__dataclass_fields__})
        expected = {*manifest.tap_files(), *manifest.field_files(), *([LAYERS] if manifest.layers else [])}
        if expected != set(manifest.files):
            raise ValueError("its files are not those that it describes")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} does not describe features: {error!r}") from error
    return manifest


def check_sizes(folder: PathLike, manifest: Manifest) -> None:
    """Raise where a file is not there, or not as long as it was written."""
    for name, parts in manifest.files.items():
        path, size = Path(folder) / name, sum(part[0] for part in parts)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; the manifest lists it")
        if (found := path.stat().st_size) != size:
            raise ValueError(f"{path} must have {count_of(size, 'byte')}, as the manifest says, got {found}")


def verify_files(folder: PathLike, manifest: Manifest, seen: Callable[[int], object] = lambda size: None) -> None:
    """Read every file and raise where a part is not the one that was written.

    Parameters
    ----------
    folder : str or path-like
    manifest : Manifest
    seen : callable
        Called with the number of bytes after each part.
    """
    check_sizes(folder, manifest)
    for name, parts in manifest.files.items():
        path = Path(folder) / name
        if (whole := whole_parts(path, parts, seen)) < len(parts):
            start = sum(size for size, _ in parts[:whole])
            raise ValueError(
                f"{path} was altered: bytes {start} to {start + parts[whole][0]} are not those that were written"
            )


def whole_parts(path: Path, parts: list[Any], seen: Callable[[int], object] = lambda size: None) -> int:
    """Return how many parts of a file, from the first on, have their checksums."""
    block = memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as stream:
        for number, (size, checksum) in enumerate(parts):
            digest, left = hashlib.sha256(), size
            while left and (count := stream.readinto(block[: min(left, _BLOCK)])):
                digest.update(block[:count])
                left -= count
            if left or digest.hexdigest() != checksum:
                return number
            seen(size)
    return len(parts)


def verify_once(folder: PathLike, manifest: Manifest) -> None:
    """Verify all files, unless none has changed since that was done; a stamp in the folder tells.

    A change of a file, by whatever way, changes the time of its inode's last change, which no program can set.
    """
    path, started = Path(folder) / STAMP, time.time_ns()
    states = {name: _state(Path(folder) / name) for name in [MANIFEST, *manifest.files]}
    with suppress(OSError, ValueError):
        if json.loads(path.read_bytes()) == states:
            return
    verify_files(folder, manifest)
    # Files so new that another change could leave their times alone are verified again next time.
    if max(state[2] for state in states.values()) < started - _SETTLED:
        with suppress(OSError):
            write_files(folder, {STAMP: encoded(states)})


def _state(path: Path) -> list[int]:
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def map_array(folder: PathLike, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    """Return an array file of a folder, mapped into memory for reading."""
    path = Path(folder) / name
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise ValueError(f"{path} is not a whole .npy file: {error}") from error
    if array.dtype != np.dtype(dtype) or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(
            f"{path} must hold {np.dtype(dtype)} of shape {shape}, as the manifest says, got {array.dtype} of shape "
            f"{array.shape}"
        )
    return np.asarray(array)
