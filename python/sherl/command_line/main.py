"""The entry point of the `sherl` command: its arguments, and how errors become exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import sherl

from . import bench, completion, demo, evaluate, extract, features, info, predict, sweep, train
from .arguments import UsageError, described
from .config_file import with_config

__all__ = ["main", "make_parser"]

_COMMANDS = (demo, extract, train, sweep, evaluate, predict, features, info, bench, completion)
_EXAMPLE = """\
sherl demo              fetch a small backbone and train on movie reviews, in a few minutes
  sherl train --help      train on tables, images or arrays of your own

exit codes: 0 done, 1 failed or refused what it was to read, 2 wrong usage, 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        Arguments without the program's name; by default those of the process.

    Returns
    -------
    int
        0 on success; 1 where the command failed, or refused what it was to read; 2 for wrong usage; 130 when
        interrupted. A sentence goes to standard error.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        parser = make_parser()
        arguments = parser.parse_args(with_config(parser, argv))
        code: int = arguments.run(arguments)
        return code
    except KeyboardInterrupt:
        print("\nsherl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output, such as `head`, has gone; Python's own flush at exit must not fail on that again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, RuntimeError, ImportError, FloatingPointError, MemoryError) as error:
        print(f"sherl {argv[0]}: error: {_sentence(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="sherl", **described("Train SHERL side networks on frozen backbones, on a CPU.", _EXAMPLE)
    )
    parser.add_argument("--version", action="version", version=f"sherl {sherl.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for module in _COMMANDS:
        module.add_parser(commands)
    return parser


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error) or ("not enough memory" if isinstance(error, MemoryError) else type(error).__name__)
