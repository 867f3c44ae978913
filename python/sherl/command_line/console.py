"""What the commands print: step lines, a final table or one JSON object, and where each of them goes."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Console", "aligned", "facts_table"]


class Console:
    """Where a command prints to.

    Parameters
    ----------
    quiet : bool
        Whether to leave out step lines and progress bars.
    as_json : bool
        Whether standard output gets nothing but one JSON object at the end; step lines then go to standard error.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        self.progress = not quiet
        self._json = as_json

    def say(self, text: str = "") -> None:
        """Print a line on what is being done."""
        if self.progress:
            print(text, file=sys.stderr if self._json else sys.stdout, flush=True)

    def conclude(self, text: str, record: Mapping[str, Any]) -> None:
        """Print a command's result: the text, or the record as JSON."""
        if self._json:
            self.report(record)
        else:
            print(text, flush=True)

    def report(self, record: Mapping[str, Any]) -> None:
        """Print a record where JSON is wanted, else nothing."""
        if self._json:
            print(json.dumps(_plain(record), indent=2, ensure_ascii=False), flush=True)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of text cells under each other: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(others, widths[1:])]
        lines.append("   ".join(cells).rstrip())
    return "\n".join(lines)


def facts_table(record: Mapping[str, Any]) -> str:
    """Lay facts out, one a line."""
    width = max(map(len, record))
    return "\n".join(f"{name.replace('_', ' '):<{width}}   {_shown(value)}" for name, value in record.items())


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if type(value) is int else str(value)


def _plain(value: Any) -> Any:
    """Make a record fit for strict JSON, which has no nan."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
