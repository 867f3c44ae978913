"""Text tables (.tsv, .csv, .jsonl, each also gzipped), read by column name and written; labels from a column."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .._typing import Array, PathLike
from ..checks import write_files

__all__ = ["Column", "encode_labels", "read_table", "table_format", "write_table"]

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_SHOWN_CLASSES = 20


class Column(list[str]):
    """The cells of one column, which remember where they came from.

    Parameters
    ----------
    name : str
        Name of the column.
    path : str or path-like
        File that the column was read from.

    Attributes
    ----------
    lines : array of unsigned int
        For each cell, the number (from 1) of the line of the file on which its record ends.
    """

    def __init__(self, name: str, path: PathLike) -> None:
        super().__init__()
        self.name = name
        self.path = path
        self.lines = array("Q")


def read_table(path: PathLike, columns: Sequence[str]) -> dict[str, Column]:
    """Read some columns of a text table.

    The file is read as a stream: cells of other columns are never kept.

    Parameters
    ----------
    path : str or path-like
        A file in UTF-8 (a byte order mark is removed) whose name tells its format:

        * ``.tsv``: tab-separated, as the GLUE benchmark has it. There is no quoting: quote characters are text.
        * ``.csv``: comma-separated with double quotes (RFC 4180).
        * ``.jsonl``: one JSON object a line. Numbers and booleans come back as their JSON text.

        Each may be gzipped, with ``.gz`` added to its name. Blank lines at the end of the file are ignored.
    columns : sequence of str
        Names of the columns to read: as in the header line, or keys of the JSON objects.

    Returns
    -------
    dict of str to Column
        The columns asked for, each a list of str with one cell a row.

    Raises
    ------
    ValueError
        Where the file's format is not known, a column is missing (the error lists those there are), the file has no
        rows, a line has the wrong number of fields, or bytes cannot be read. The error names the file and the line.
    OSError
        Where the file cannot be opened.
    """
    columns = _checked_columns(columns)
    path = Path(path)
    suffix, gzipped = table_format(path)
    rows = {".tsv": _tsv_rows, ".csv": _csv_rows, ".jsonl": _jsonl_rows}[suffix]

    table = [Column(name, path) for name in columns]
    with (gzip.open if gzipped else open)(path, "rb") as stream:
        for line, cells in rows(path, _decoded_lines(path, stream), columns):
            for column, cell in zip(table, cells):
                column.append(cell)
                column.lines.append(line)
    if table and not table[0]:
        raise ValueError(f"{path}: the file holds no rows")
    return {column.name: column for column in table}


def table_format(path: PathLike) -> tuple[str, bool]:
    """Tell a table's format by its name.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    suffix : {".tsv", ".csv", ".jsonl"}
    gzipped : bool

    Raises
    ------
    ValueError
        Where the name ends otherwise.
    """
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    gzipped = suffixes[-1:] == [".gz"]
    suffix = (suffixes[:-1] if gzipped else suffixes)[-1:]
    if suffix not in ([".tsv"], [".csv"], [".jsonl"]):
        raise ValueError(f"{path}: expected a file named *.tsv, *.csv or *.jsonl (or one of these with .gz added)")
    return suffix[0], gzipped


def write_table(path: PathLike, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a text table, which takes its name when it is whole.

    Parameters
    ----------
    path : str or path-like
        The file; its name tells the format, as in `read_table`. Its folder is made where it does not exist.
    columns : sequence of str
        Names of the columns.
    rows : iterable of sequence of str or float
        One cell a column.

    Raises
    ------
    ValueError
        Where a cell holds a tab or a line break and the file is a .tsv, which cannot hold them.
    """
    path = Path(path)
    suffix, gzipped = table_format(path)
    text = io.StringIO(newline="")
    if suffix == ".jsonl":
        text.writelines(json.dumps(dict(zip(columns, row)), ensure_ascii=False) + "\n" for row in rows)
    elif suffix == ".csv":
        csv.writer(text).writerows(chain([columns], rows))
    else:
        text.writelines(_tsv_line(path, row) for row in chain([columns], rows))
    content = text.getvalue().encode()
    # No time in the header: the same rows give the same bytes.
    write_files(path.parent, {path.name: gzip.compress(content, mtime=0) if gzipped else content})


def _tsv_line(path: Path, cells: Sequence[object]) -> str:
    texts = [str(cell) for cell in cells]
    for cell in texts:
        if any(character in cell for character in "\t\r\n"):
            raise ValueError(f"{path}: a .tsv cannot hold a tab or a line break, as in {cell!r}")
    return "\t".join(texts) + "\n"


def encode_labels(column: Sequence[str], task: str,
                  classes: Sequence[str] | None = None) -> tuple[Array, list[str] | None]:
    """Turn a column of text into targets for training.

    Parameters
    ----------
    column : sequence of str
        One label a row, as from `read_table` (errors then name the file and the line).
    task : {"classification", "regression"}
        For classification any text that is not blank is a class name. For regression every label is a finite number.
    classes : sequence of str, optional
        The class names, in the order of their ids. By default they are those that occur in the column, sorted: as
        numbers where all are integers, else as text.

    Returns
    -------
    targets : numpy.ndarray of shape (rows,)
        Class ids (int64) or values (float64).
    classes : list of str or None
        The class names by id; None for regression.

    Raises
    ------
    ValueError
        For an empty column, a blank label, a label that is no finite number (regression), or a class that is not
        among `classes`.
    """
    if task not in ("classification", "regression"):
        raise ValueError(f"task must be 'classification' or 'regression', got {task!r}")
    if len(column) == 0:
        raise ValueError("column must hold at least one label, got none")
    for row, label in enumerate(column):
        if not isinstance(label, str):
            raise TypeError(f"{_place(column, row)}: a label must be a str, got {type(label).__name__}")
        if not label.strip():
            raise ValueError(f"{_place(column, row)}: the label is empty")
    if task == "regression":
        return np.array([_number(column, row) for row in range(len(column))], dtype=np.float64), None
    if classes is None:
        classes = _sorted_classes(set(column))
    ids = {name: number for number, name in enumerate(classes)}
    for row, label in enumerate(column):
        if label not in ids:
            known = ", ".join(map(repr, list(ids)[:_SHOWN_CLASSES])) + (", …" if len(ids) > _SHOWN_CLASSES else "")
            raise ValueError(f"{_place(column, row)}: the label {label!r} is none of the classes {known}")
    return np.array([ids[label] for label in column], dtype=np.int64), list(classes)


def _checked_columns(columns: Sequence[str]) -> list[str]:
    if isinstance(columns, str):
        raise TypeError(f"columns must be a sequence of column names, got the str {columns!r}")
    columns = list(dict.fromkeys(columns))
    for name in columns:
        if not isinstance(name, str):
            raise TypeError(f"columns must hold names as str, got {name!r}")
    if not columns:
        raise ValueError("columns must name at least one column, got none")
    return columns


def _decoded_lines(path: Path, stream: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """Yield (line number, text with its line end) without the blank lines at the end of the file."""
    number = 0
    blank = []
    empty = True
    try:
        for number, line in enumerate(stream, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            empty = empty and not line
            if not line.strip(b"\r\n"):
                blank.append((number, line.decode()))
                continue
            yield from blank
            blank.clear()
            yield number, line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, line {number}: the bytes are not UTF-8 text ({error.reason}, byte {error.start + 1} of the line)"
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}, after line {number}: the gzip data cannot be read ({error})") from None
    if empty:
        raise ValueError(f"{path}: the file is empty")


def _tsv_rows(path: Path, lines: Iterator[tuple[int, str]], columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    return _rows_below_header(path, ((number, line.rstrip("\r\n").split("\t")) for number, line in lines), columns)


def _csv_rows(path: Path, lines: Iterator[tuple[int, str]], columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    # The line numbers are the reader's own, as a quoted field may run over several lines.
    reader = csv.reader((line for _, line in lines), strict=True)

    def records() -> Iterator[tuple[int, list[str]]]:
        try:
            for fields in reader:
                yield reader.line_num, fields or [""]
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from None

    return _rows_below_header(path, records(), columns)


def _rows_below_header(path: Path, records: Iterator[tuple[int, list[str]]],
                       columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    header = None
    for line, fields in records:
        if header is None:
            header = fields
            positions = [_position(path, header, name) for name in columns]
        elif len(fields) != len(header):
            raise ValueError(f"{path}, line {line}: expected {len(header)} fields as in the header, got {len(fields)}")
        else:
            yield line, [fields[position] for position in positions]


def _position(path: Path, header: list[str], name: str) -> int:
    count = header.count(name)
    if count == 0:
        raise ValueError(f"{path}, line 1: there is no column {name!r}; the columns are {_listed(header)}")
    if count > 1:
        raise ValueError(f"{path}, line 1: the column {name!r} occurs {count} times; the columns are {_listed(header)}")
    return header.index(name)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _jsonl_rows(path: Path, lines: Iterator[tuple[int, str]],
                columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    # Numbers stay the text that they are, so that an id or a class name is never rounded or rewritten.
    decoder = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
    for number, line in lines:
        try:
            record = decoder.decode(line.strip())
        except json.JSONDecodeError as error:
            fault = f"{error.msg}, character {error.colno} of the line"
            raise ValueError(f"{path}, line {number}: the line is not JSON ({fault})") from None
        except RecursionError:
            raise ValueError(f"{path}, line {number}: the JSON is nested too deeply") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {line.strip()[:40]!r}")
        yield number, [_jsonl_cell(path, number, record, name) for name in columns]


def _jsonl_cell(path: Path, number: int, record: dict[str, Any], name: str) -> str:
    if name not in record:
        raise ValueError(f"{path}, line {number}: there is no column {name!r}; the columns are {_listed(record)}")
    cell = record[name]
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if not isinstance(cell, str):
        kind = "null" if cell is None else "an array" if isinstance(cell, list) else "an object"
        raise ValueError(f"{path}, line {number}: the column {name!r} must hold text or a number, got {kind}")
    try:
        cell.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path}, line {number}: the column {name!r} holds half of a surrogate pair") from None
    return cell


def _sorted_classes(names: set[str]) -> list[str]:
    if all(_INTEGER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _number(column: Sequence[str], row: int) -> float:
    text = column[row]
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{_place(column, row)}: the label must be a finite number, got {text!r}")
    return value


def _place(column: Sequence[str], row: int) -> str:
    if isinstance(column, Column):
        return f"{column.path}, line {column.lines[row]}, column {column.name!r}"
    return f"row {row + 1}"
