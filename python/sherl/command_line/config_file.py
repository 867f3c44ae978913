"""Config files: TOML whose keys are the long options of a command; the command line wins."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .arguments import UsageError

__all__ = ["with_config"]

_OPTION = "--config"
_NOT_KEYS = ("--help", "--version", _OPTION)


def with_config(parser: argparse.ArgumentParser, tokens: list[str]) -> list[str]:
    """Return a command line in which the options of its config file, if it names one, stand before its own.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    tokens : list of str

    Raises
    ------
    UsageError
        Where the file is no TOML, or a key is no option of the command.
    """
    chosen, depth = _command(parser, tokens)
    options = {option: action for action in chosen._actions for option in action.option_strings}
    own = tokens[depth:]
    path = _config_path(own)
    if path is None or _OPTION not in options:
        return tokens
    added: list[str] = []
    for key, value in _read(path).items():
        option = f"--{key}"
        if option not in options or option in _NOT_KEYS:
            raise UsageError(f"{path}: {_unknown(key, options)}")
        if not _given(options[option], own):
            added += _tokens(path, key, value, options[option])
    # After its own: a value that an option takes any number of must not swallow what stands by position.
    return [*tokens, *added]


def _command(parser: argparse.ArgumentParser, tokens: Sequence[str]) -> tuple[argparse.ArgumentParser, int]:
    """Return the parser of the command that is called, and how many tokens name it."""
    depth = 0
    while depth < len(tokens):
        groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not groups or tokens[depth] not in groups[0].choices:
            break
        parser = groups[0].choices[tokens[depth]]
        depth += 1
    return parser, depth


def _config_path(tokens: Sequence[str]) -> str | None:
    for token, following in zip(tokens, [*tokens[1:], None]):
        if token == _OPTION:
            return following
        if token.startswith(_OPTION + "="):
            return token.partition("=")[2]
    return None


def _given(action: argparse.Action, tokens: Iterable[str]) -> bool:
    """Whether the command line itself has the option, or its opposite."""
    return any(token.partition("=")[0] in action.option_strings for token in tokens)


def _read(path: str) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:
        try:
            import tomli as tomllib  # type: ignore[no-redef]  # either does
        except ImportError:
            raise ImportError(
                "a config file needs Python 3.11 or later, or the tomli package: pip install 'sherl[config]'"
            ) from None
    with open(path, "rb") as stream:
        try:
            return tomllib.load(stream)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: the file is not TOML: {error}") from None


def _unknown(key: str, options: Mapping[str, argparse.Action]) -> str:
    keys = sorted(option[2:] for option in options if option.startswith("--") and option not in _NOT_KEYS)
    near = difflib.get_close_matches(key.replace("_", "-"), keys, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(keys)}"
    return f"the command has no option {key!r}; {hint}"


def _tokens(path: str, key: str, value: Any, action: argparse.Action) -> list[str]:
    """Return what the command line would have in the place of one key."""
    option, switch = f"--{key}", action.nargs == 0
    if isinstance(value, bool) or switch:
        if not (isinstance(value, bool) and switch):
            raise UsageError(f"{path}: {key} must be {'true or false' if switch else 'a value'}, got {value!r}")
        if not value and isinstance(action, argparse.BooleanOptionalAction):
            option = next(name for name in action.option_strings if name.startswith("--no-") != key.startswith("no-"))
            return [option]
        return [option] if value else []
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(item, bool) or not isinstance(item, (str, int, float)) for item in values):
        raise UsageError(f"{path}: {key} must be text, a number, or a list of these, got {value!r}")
    texts = list(map(str, values))
    if action.nargs is not None:
        return [option, *texts]
    if len(texts) > 1 and not isinstance(action, argparse._AppendAction):
        raise UsageError(f"{path}: {key} must be one value, got {value!r}")
    return [f"{option}={text}" for text in texts]
