"""`sherl completion`: scripts that let a shell complete the command line, made from its parser."""

from __future__ import annotations

import argparse
import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import TypeAlias

from .arguments import Commands, described

__all__ = ["add_parser", "script"]

Words: TypeAlias = dict[str, str]  # with their help, which may be empty
Values: TypeAlias = tuple[str, Words]  # the kind of what an argument takes, and the words that it may be
# The words that call a command; its options with what they take and their help; what may stand by position.
Command: TypeAlias = tuple[tuple[str, ...], list[tuple[str, Values | None, str]], Values | None]

_EXAMPLE = """\
sherl completion bash > ~/.local/share/bash-completion/completions/sherl
  sherl completion zsh > "${fpath[1]}/_sherl"
  sherl completion fish > ~/.config/fish/completions/sherl.fish"""


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "completion",
        help="print a script that completes the command line",
        **described("Print a script for a shell, which then completes commands, options and their values.", _EXAMPLE),
    )
    parser.add_argument("shell", choices=list(_SHELLS), help="which one")
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Run the command; return its exit code."""
    from .main import make_parser

    print(script(make_parser(), arguments.shell))
    return 0


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script for a shell.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Of the whole command line.
    shell : {"bash", "zsh", "fish"}
    """
    return "\n".join(_SHELLS[shell](list(_walk(parser, (parser.prog,)))))


def _walk(parser: argparse.ArgumentParser, path: tuple[str, ...]) -> Iterator[Command]:
    """Yield the words that call each command, its options, and what may stand by position."""
    options: list[tuple[str, Values | None, str]] = []
    positional: Values | None = None
    below: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            below = dict(action.choices)
            positional = "words", {name: helps.get(name, "") for name in below}
        elif action.option_strings:
            for name in action.option_strings:
                options.append((name, _values(action), _help(parser, action)))
        else:
            positional = _values(action)
    yield path, options, positional
    for name, made in below.items():
        yield from _walk(made, (*path, name))


def _values(action: argparse.Action) -> Values | None:
    """Return what an argument takes: (kind, words); None for nothing."""
    if action.nargs == 0:
        return None
    if action.choices:
        return "words", dict.fromkeys(map(str, action.choices), "")
    return {"DIR": "folders", "FILE": "files", "PATH": "files"}.get(str(action.metavar), "text"), {}


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return parser._get_formatter()._expand_help(action) if action.help else ""


def _bash(commands: list[Command]) -> list[str]:
    """Return lines for bash."""
    names = {"words": '-W "{}"', "folders": "-d", "files": "-f"}

    def reply(kind: str, words: Words) -> str:
        if kind == "text":
            return "return"
        made = f'mapfile -t COMPREPLY < <(compgen {names[kind].format(" ".join(words))} -- "$word"); return'
        return made if kind == "words" else "compopt -o filenames 2>/dev/null; " + made

    calls = [" ".join(path) for path, *_ in commands[1:]]
    lines = [
        "# Completes sherl in bash.",
        "_sherl() {",
        '    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} command=sherl index',
        "    COMPREPLY=()",
        "    for ((index = 1; index < COMP_CWORD; index++)); do",
        '        case "$command ${COMP_WORDS[index]}" in',
        f'            {"|".join(map(shlex.quote, calls))}) command="$command ${{COMP_WORDS[index]}}" ;;',
        "        esac",
        "    done",
        '    case "$command $previous" in',
    ]
    alike: dict[str, list[str]] = {}
    for path, options, _ in commands:
        for name, values, _ in options:
            if values:
                alike.setdefault(reply(*values), []).append(f"'{' '.join(path)} {name}'")
    lines += [f"        {'|'.join(patterns)}) {answer} ;;" for answer, patterns in alike.items()]
    lines += ["    esac", '    case "$command" in']
    for path, options, positional in commands:
        words = {name: "" for name, *_ in options}
        lines.append(f"        '{' '.join(path)}')")
        lines.append(f"            if [[ $word == -* ]]; then {reply('words', words)}; fi")
        lines.append(f"            {reply(*(positional or ('files', {})))} ;;")
    return [*lines, "    esac", "}", "complete -F _sherl sherl"]


def _zsh(commands: list[Command]) -> list[str]:
    """Return lines for zsh."""
    actions = {"words": "({})", "folders": "_files -/", "files": "_files", "text": ""}

    def plain(text: str) -> str:
        return "".join(" " if character in "[]:'\\`$\"" else character for character in text)

    def action(kind: str, words: Words) -> str:
        return f":{kind}:{actions[kind].format(' '.join(words))}"

    lines = ["#compdef sherl"]
    for path, options, positional in commands:
        specs = [f"'*{name}[{plain(text)}]{action(*values) if values else ''}'" for name, values, text in options]
        below = [other for other, *_ in commands if other[:-1] == path]
        if below:
            words = " ".join(f'{name}\\:"{plain(text)}"' for name, text in (positional or ('words', {}))[1].items())
            specs += [f"'1:command:(({words}))'", "'*::argument:->below'"]
        else:
            specs.append(f"'*{action(*(positional or ('files', {})))}'")
        lines.append(f"_{'_'.join(path)}() {{")
        lines.append("    local curcontext=$curcontext state line; typeset -A opt_args")
        lines.append(f"    _arguments -C {' '.join(specs)}")
        if below:
            known = "|".join(other[-1] for other in below)
            lines.append(f"    [[ $state == below && $line[1] == ({known}) ]] && _{'_'.join(path)}_$line[1]")
        lines.append("}")
    return [*lines, 'if [[ $funcstack[1] == _sherl ]]; then _sherl "$@"; else compdef _sherl sherl; fi']


def _fish(commands: list[Command]) -> list[str]:
    """Return lines for fish."""
    takes = {"words": " -x -a '{}'", "folders": " -x -a '(__fish_complete_directories)'", "files": " -r -F",
             "text": " -x"}  # fmt: skip

    def told(text: str) -> str:
        return " -d " + shlex.quote(text.replace("'", "")) if text else ""

    lines = [
        "function __sherl_in  # whether the line begins with these words",
        "    set -l words (commandline -opc)",
        '    test "$words[1..$(count $argv)]" = "$argv"',
        "end",
        "function __sherl_at  # whether it has these words alone",
        "    set -l words (commandline -opc)",
        '    test "$words" = "$argv"',
        "end",
        "complete -c sherl -f",
    ]
    for path, options, positional in commands:
        ends = any(other[:-1] == path for other, *_ in commands)
        when = f"complete -c sherl -n '{'__sherl_at' if ends else '__sherl_in'} {' '.join(path)}'"
        for name, values, text in options:
            flag = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
            taken = takes[values[0]].format(" ".join(values[1])) if values else ""
            lines.append(f"{when} {flag}{taken}{told(text)}")
        kind, words = positional or ("files", {})
        if kind == "words":
            lines += [f"{when} -a {name}{told(text)}" for name, text in words.items()]
        else:
            lines.append(f"{when} -F")
    return lines


_SHELLS: dict[str, Callable[[list[Command]], list[str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
