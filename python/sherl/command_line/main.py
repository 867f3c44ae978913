"""The entry point of the `sherl` command: its arguments, and how errors become exit codes."""

import argparse
import os
import sys

import sherl

from . import demo, features, info, predict, train
from .arguments import described

__all__ = ["main"]

_EXAMPLE = """\
sherl demo              fetch a small backbone and train on movie reviews, in a few minutes
  sherl train --help      train on tables of your own"""


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        Arguments without the program's name; by default those of the process.

    Returns
    -------
    int
        0 on success, 2 for bad usage or input (a sentence goes to standard error), 130 when interrupted.
    """
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("\nsherl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output, such as `head`, has gone; Python's own flush at exit must not fail on that again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, RuntimeError, ImportError, FloatingPointError, MemoryError) as error:
        print(f"sherl {arguments.command}: error: {_sentence(error)}", file=sys.stderr)
        return 2


def _parser():
    parser = argparse.ArgumentParser(
        prog="sherl", **described("Train SHERL side networks on frozen backbones, on a CPU.", _EXAMPLE)
    )
    parser.add_argument("--version", action="version", version=f"sherl {sherl.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for module in (demo, train, predict, info, features):
        module.add_parser(commands)
    config = commands.add_parser(
        "config",
        help="show how this copy was built and what it uses",
        **described(
            "Show the version, the linear algebra library, the instruction set and the threads in use.", "sherl config"
        ),
    )
    config.set_defaults(run=_show_config)
    return parser


def _show_config(arguments):
    sherl.show_config()
    return 0


def _sentence(error):
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error) or ("not enough memory" if isinstance(error, MemoryError) else type(error).__name__)
