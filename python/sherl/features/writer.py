"""Writing a folder of features part by part, so that after any interruption what is there can be gone on from."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core
from .._typing import Array, Float32s, Integers, PathLike, Record
from ..checks import count_of, differences, sync_folder, write_files
from .manifest import (
    FORMAT,
    FORMAT_VERSION,
    LAYERS,
    MANIFEST,
    PROGRESS,
    Manifest,
    checksum_of,
    encoded,
    field_file,
    read_manifest,
    read_record,
    whole_parts,
)

LOCK = ".lock"
PART_BYTES = 64 << 20  # of all taps together, after which what was written is made sure of

_PARTIAL = ".part"


class BeingWritten(RuntimeError):
    """Raised where another process writes into the folder."""


class StoreWriter:
    """Writes the rows of samples, in order, into a folder of features. A context: it holds the folder's lock.

    Files have temporary names until all is written; the manifest comes last. In between, `PROGRESS` tells which parts
    of the files are on disk. A writer with the same recipe goes on after them.

    Parameters
    ----------
    folder : str or path-like
        Made where it does not exist.
    plan : Manifest
        What the folder is to hold; its files are found out here.
    fields : dict of str to numpy.ndarray of int64
        The numbers of samples that the plan names.
    layers : bytes or None
        Of the file with the late layers.
    recipe : dict or None
        What makes the same bits again. None: nothing does, and a writer begins anew.

    Attributes
    ----------
    samples : int
        Samples whose rows have been written.
    finished : bool
        Whether the folder holds what was planned.
    """

    def __init__(self, folder: PathLike, plan: Manifest, fields: Mapping[str, Integers], layers: bytes | None = None,
                 recipe: Record | None = None) -> None:
        self.folder, self.plan = Path(folder), plan
        self._fields, self._layers, self._recipe = fields, layers, recipe
        self.samples, self.finished = 0, False
        self._commits: list[int] = []  # samples written by the end of each part
        self._files: list[_PartFile] = []
        self._lock = -1

    def __enter__(self) -> StoreWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(self.folder)
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            file.close()
        os.close(self._lock)

    def _begin(self) -> None:
        if (self.folder / MANIFEST).exists():
            self._check_finished()
            return
        former = self._former()
        if former is None and (found := [name for name in self._names() if (self.folder / name).exists()]):
            raise ValueError(f"{self.folder} must not hold other files called {', '.join(found)}")
        # Those that a killed writer left before they took their names.
        for name in (PROGRESS, MANIFEST, LAYERS, *map(field_file, self.plan.fields)):
            for path in self.folder.glob(f".{name}.*"):
                path.unlink()
        parts = former["files"] if former and self._recipe is not None else {}
        files = [_PartFile(self.folder, name, *kind, parts.get(name, []))
                 for name, kind in self.plan.tap_files().items()]
        whole = min(file.whole for file in files)
        self._commits = former["samples"][:whole] if former and whole else []
        self.samples = self._commits[-1] if whole else 0
        if former is None:
            self._write_progress()  # from now on the files are known to be ours
        for file in files:
            self._files.append(file)
            file.open(whole)

    def _check_finished(self) -> None:
        found = read_manifest(self.folder)
        if self._recipe is None:
            raise ValueError(f"{self.folder} must not hold features already, but it does: {_named(found)}")
        if differing := differences(found.facts, self.plan.facts):
            raise ValueError(f"{self.folder} holds other features: {differing}")
        with suppress(FileNotFoundError):
            os.unlink(self.folder / PROGRESS)
        self.samples, self.finished = found.samples, True

    def _former(self) -> Record | None:
        """Return the record of an interrupted writer, or None where there was none."""
        try:
            record = read_record(self.folder / PROGRESS)
        except FileNotFoundError:
            return None
        former = {name: record.get(name) for name in ("plan", "recipe")}
        now = {"plan": self.plan.facts, "recipe": self._recipe}
        if (self._recipe is not None or former["recipe"] is not None) and (differing := differences(former, now)):
            raise ValueError(f"{self.folder} holds other features, not complete: {differing}")
        return record

    def _names(self) -> list[str]:
        return [*self.plan.tap_files(), *self.plan.field_files(), *([LAYERS] if self._layers else [])]

    def append(self, samples: int, taps: Sequence[Array], scales: Sequence[Float32s | None]) -> None:
        """Write the rows of the next samples.

        Parameters
        ----------
        samples : int
        taps : list of numpy.ndarray, each of shape (rows, channels)
        scales : list of numpy.ndarray of shape (rows,), or None
            By tap; None but for int8.
        """
        arrays = [array for pair in zip(taps, scales) for array in pair if array is not None]
        for file, array in zip(self._files, arrays, strict=True):
            file.write(array)
        self.samples += samples
        if sum(file.pending for file in self._files) >= PART_BYTES:
            self._commit()

    def finish(self) -> None:
        """Give the files their names and write the manifest."""
        if self.finished:
            return
        if any(file.pending for file in self._files):
            self._commit()
        if self.samples != self.plan.samples:
            raise ValueError(f"{self.folder} must get {count_of(self.plan.samples, 'sample')}, got {self.samples}")
        for file in self._files:
            file.close()
            file.take_name()
        sync_folder(self.folder)
        others = {field_file(name): _npy(array) for name, array in self._fields.items()}
        if self._layers is not None:
            others[LAYERS] = self._layers
        files = {file.name: file.parts for file in self._files}
        files.update({name: [[len(content), hashlib.sha256(content).hexdigest()]] for name, content in others.items()})
        replace(self.plan, files=files).save(self.folder, others)
        os.unlink(self.folder / PROGRESS)
        self.finished = True

    def _commit(self) -> None:
        for file in self._files:
            file.commit()
        self._commits.append(self.samples)
        self._write_progress()

    def _write_progress(self) -> None:
        record = {
            "format": FORMAT, "format_version": FORMAT_VERSION, "sherl_version": _core.config()["version"],
            "plan": self.plan.facts, "recipe": self._recipe, "samples": self._commits,
            "files": {file.name: file.parts for file in self._files},
        }
        write_files(self.folder, {PROGRESS: encoded({**record, "checksum": checksum_of(record)})})


class _PartFile:
    """An array file that grows by parts: bytes with a checksum, the first with the file's header."""

    def __init__(self, folder: Path, name: str, dtype: str, shape: tuple[int, ...], parts: list[Any]) -> None:
        self.name, self._dtype, self._shape = name, dtype, shape
        self._final, partial = folder / name, folder / (name + _PARTIAL)
        # A writer that was killed while files took their names has left some of them.
        self._path = self._final if parts and self._final.exists() and not partial.exists() else partial
        self.parts = parts
        self.whole = whole_parts(self._path, parts) if parts and self._path.exists() else 0
        self.pending, self._digest = 0, hashlib.sha256()
        self._stream: io.FileIO | None = None

    def open(self, whole: int) -> None:
        """Open the file for what comes after its first parts."""
        del self.parts[whole:]
        stream = open(self._path, "r+b" if whole else "wb", buffering=0)  # noqa: SIM115  # closed by close()
        self._stream = stream
        stream.truncate(sum(size for size, _ in self.parts))
        stream.seek(0, os.SEEK_END)
        if not whole:
            self._put(_header(self._dtype, self._shape))

    def write(self, array: Array) -> None:
        self._put(memoryview(np.ascontiguousarray(array, self._dtype)).cast("B"))

    def commit(self) -> None:
        """Have all that was written on disk, as one part."""
        os.fsync(self._opened().fileno())
        self.parts.append([self.pending, self._digest.hexdigest()])
        self.pending, self._digest = 0, hashlib.sha256()

    def take_name(self) -> None:
        if self._path != self._final:
            os.replace(self._path, self._final)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _opened(self) -> io.FileIO:
        assert self._stream is not None, "the file must be open"
        return self._stream

    def _put(self, content: bytes | memoryview) -> None:
        self._digest.update(content)
        self.pending += len(content)
        while len(content):
            content = content[self._opened().write(content) :]


def _take_lock(folder: Path) -> int:
    """Return the descriptor of the folder's lock file; the system frees the lock when a process ends."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BeingWritten(f"{folder} is being written by another process") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _npy(array: Array) -> bytes:
    return _header("<i8", array.shape) + np.ascontiguousarray(array, "<i8").tobytes()


def _named(manifest: Manifest) -> str:
    return f"{count_of(manifest.samples, 'sample')}, {count_of(len(manifest.taps), 'tap')}"
