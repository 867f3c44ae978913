"""The task.json that `sherl train` leaves beside a network: what its inputs and outputs mean."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .._typing import PathLike, Record
from ..checks import write_files

__all__ = ["Task"]

_NAME = "task.json"
_FORMAT = "sherl task"
_VERSION = 1


@dataclass(frozen=True)
class Task:
    """The meaning of a network's inputs and outputs.

    Attributes
    ----------
    task : {"classification", "regression"}
    classes : list of str or None
        Class names by id; None for regression.
    text, text_pair, label : str or None
        Columns of the training table that hold texts and labels, where it was trained on one; `text_pair` is None for
        single texts.
    max_length : int or None
        Tokens that a text is cut to.
    taps : list of int or None
        States of the backbone that the network reads, or numbers of the arrays; None for all that are usual.
    """

    task: str
    classes: list[str] | None
    text: str | None
    text_pair: str | None
    label: str | None
    max_length: int | None
    taps: list[int] | None = None

    def save(self, folder: PathLike) -> None:
        """Write the file into a folder."""
        record = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        write_files(folder, {_NAME: (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()})

    @classmethod
    def load(cls, folder: PathLike) -> Task:
        """Read the file from a folder; ValueError where it is not there or not as `save` writes it."""
        path = Path(folder) / _NAME
        try:
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ValueError(f"{folder}: expected a folder that `sherl train` wrote, but it has no {_NAME}") from None
        except ValueError as error:
            raise ValueError(f"{path}: the file is not JSON ({error})") from None
        if not isinstance(record, dict) or record.pop("format", None) != _FORMAT:
            raise ValueError(f"{path}: the file is not a task description that `sherl train` wrote")
        if (version := record.pop("version", None)) != _VERSION:
            raise ValueError(f"{path}: expected version {_VERSION} of the format, got {version!r}")
        return cls._checked(path, record)

    @classmethod
    def _checked(cls, path: Path, record: Record) -> Task:
        kinds: dict[str, Any] = {
            "task": str,
            "classes": (list, type(None)),
            **dict.fromkeys(("text", "text_pair", "label"), (str, type(None))),
            "max_length": (int, type(None)),
            "taps": (list, type(None)),
        }
        record = {"taps": None, **record}
        for name, kind in kinds.items():
            if name not in record or not isinstance(record[name], kind):
                raise ValueError(f"{path}: {name!r} is missing or of another type than `sherl train` writes")
        task = cls(**{name: record[name] for name in kinds})
        classes = task.classes or []
        if (task.task, bool(classes)) not in (("classification", True), ("regression", False)):
            raise ValueError(f"{path}: the task {task.task!r} does not go with {len(classes)} classes")
        if not all(isinstance(name, str) for name in classes) or (task.max_length is not None and task.max_length < 1):
            raise ValueError(f"{path}: 'classes' must hold names and 'max_length' be at least 1")
        if not all(isinstance(state, int) and state >= 0 for state in task.taps or []):
            raise ValueError(f"{path}: 'taps' must hold numbers of at least 0")
        return task
