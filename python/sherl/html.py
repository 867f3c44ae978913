"""Tables in HTML, as notebooks show objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], marked: int | None = None) -> str:
    """Return a table.

    Parameters
    ----------
    title : str
    header : sequence of str
    rows : sequence of sequence
        Cells; columns of what begins with a digit are set to the right.
    marked : int, optional
        Number of a row in bold.

    Returns
    -------
    str
    """
    rows = [list(row) for row in rows]
    sides = ["right" if _is_number(value) else "left" for value in (rows[0] if rows else header)]
    lines = [_line("th", header, sides)]
    for number, row in enumerate(rows):
        lines.append(_line("td", row, sides, " style=\"font-weight: bold\"" if number == marked else ""))
    caption = f"<caption style=\"text-align: left; white-space: nowrap\">{escape(title)}</caption>"
    return f"<table>{caption}{''.join(lines)}</table>"


def _line(tag: str, values: Sequence[object], sides: list[str], style: str = "") -> str:
    cells = (f"<{tag} style=\"text-align: {side}\">{escape(_text(value))}</{tag}>"
             for value, side in zip(values, sides))
    return f"<tr{style}>{''.join(cells)}</tr>"


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _is_number(value: object) -> bool:
    return _text(value)[:1].isdigit()
