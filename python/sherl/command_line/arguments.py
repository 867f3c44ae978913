"""Types of command-line arguments, each refusing a bad value with a sentence, and the error of those that clash."""

from __future__ import annotations

import argparse
import math
import textwrap
from typing import Any, Literal, TypeAlias

from ..data.tables import table_format

__all__ = [
    "Commands",
    "Options",
    "UsageError",
    "count",
    "described",
    "factor",
    "natural",
    "numbers",
    "picture_name",
    "positive",
    "share",
    "table_name",
]


# What argparse gives and has no public names for: where commands are added, and where options are.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Options: TypeAlias = argparse._ActionsContainer


class UsageError(ValueError):
    """Options that do not go together, or that the command lacks."""


def described(description: str, example: str) -> dict[str, Any]:
    """Return the options of a parser with this description, and an example below its help."""
    return {
        "description": textwrap.fill(description, 88),
        "epilog": f"example:\n  {example}\n",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }


def count(text: str) -> int:
    """Parse an integer of at least 1."""
    return _integer(text, 1)


def natural(text: str) -> int:
    """Parse an integer of at least 0."""
    return _integer(text, 0)


def numbers(text: str) -> Literal["all"] | tuple[int, ...]:
    """Parse the word all, or different integers of at least 0 with commas between them, as a tuple."""
    if text == "all":
        return "all"
    try:
        values = tuple(map(natural, text.split(",")))
    except argparse.ArgumentTypeError:
        values = ()
    if not values or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"expected all, or different numbers like 0,2,5, got {text!r}")
    return values


def picture_name(text: str) -> str:
    """Check that a file's name is that of a picture."""
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"expected a file named *.png, got {text!r}")
    return text


def positive(text: str) -> float:
    """Parse a finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def factor(text: str) -> tuple[str, float]:
    """Parse a pattern of names and a number of at least 0, like head.*=0.1."""
    pattern, _, number = text.rpartition("=")
    value = _number(number)
    if not pattern or not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a pattern and a number, like 'head.*=0.1', got {text!r}")
    return pattern, value


def share(text: str) -> float:
    """Parse a number from 0 up to, but not including, 1."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 up to below 1, got {text!r}")
    return value


def table_name(text: str) -> str:
    """Check that a file's name is that of a text table."""
    try:
        table_format(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
