"""The state of a training on disk: one file, replaced whole."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._typing import Array, PathLike, Record, StateDict
from ..checks import differences, write_files

FILE = "fit.npz"
FORMAT, FORMAT_VERSION = "sherl.fit", 1

_STATE = "state"


def write_checkpoint(folder: PathLike, state: Record, arrays: Mapping[str, Array]) -> None:
    """Write a checkpoint.

    Parameters
    ----------
    folder : str or path-like
    state : dict
        What JSON can hold, with ``"settings"``.
    arrays : dict of str to numpy.ndarray
    """
    text = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **state})
    stream = io.BytesIO()
    every: dict[str, Any] = {_STATE: np.frombuffer(text.encode(), np.uint8), **arrays}
    np.savez(stream, **every)
    write_files(folder, {FILE: stream.getbuffer()})


def read_checkpoint(folder: PathLike, settings: Record) -> tuple[Record, StateDict]:
    """Return the state and the arrays of a checkpoint that was written under the same settings.

    Raises
    ------
    ValueError
        Where the file is not a whole checkpoint, or of another training; the message tells what differs.
    """
    path = Path(folder) / FILE
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        state = json.loads(arrays.pop(_STATE).tobytes().decode())
        if state["format"] != FORMAT:
            raise ValueError(f"its format is {state['format']!r}")
    except FileNotFoundError:
        raise FileNotFoundError(f"resume_from: {path} does not exist") from None
    except Exception as error:  # a broken archive raises errors of many types
        raise ValueError(f"resume_from: {path} is not a whole checkpoint: {error}") from error
    if state.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"resume_from: {path} has format version {state.get('format_version')!r}; this sherl reads {FORMAT_VERSION}"
        )
    differing = differences(state.get("settings"), settings)
    if differing:
        raise ValueError(f"resume_from: {path} is of another training: {differing}")
    return state, arrays
