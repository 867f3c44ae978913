"""`sherl sweep`: several networks in one pass over the states, and the best of them saved."""

from __future__ import annotations

import itertools
import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .. import plots
from .._typing import Record
from .arguments import Commands, described, picture_name
from .data import read_data
from .experiment import Result, Settings, baselines, train_several
from .options import add_data, add_training, begin
from .output import output_folder, save_network, save_plot
from .train import add_scoring, conclude

__all__ = ["add_parser"]

_TRIED = ("hidden", "learning_rate", "weight_decay", "schedule", "pool", "taps")
_EXAMPLE = """\
sherl sweep --backbone all-MiniLM-L6-v2/ --train train.tsv --dev dev.tsv --text sentence \\
      --label label --hidden 8 48 --learning-rate 1e-3 3e-3 --taps all 0,5 --out best/ --plot sweep.png"""


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "sweep",
        help="train several networks in one pass, and save the best",
        **described(
            "Train a network for each combination of the values given to --hidden, --learning-rate, --weight-decay, "
            "--schedule, --pool and --taps. Networks with the same taps are trained in one pass over the states, each "
            "with the bits that it would have alone. The best by the first metric is saved.",
            _EXAMPLE,
        ),
    )
    add_data(parser)
    add_training(parser, several=True)
    shown = add_scoring(parser)
    shown.add_argument("--plot", type=picture_name, metavar="FILE", help="picture (.png) of scores against sizes")
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Run the command; return its exit code."""
    console = begin(arguments)
    asked = Settings.of(arguments)
    tried = _combinations(asked)
    out = output_folder(arguments.out)
    data = read_data(arguments, asked, asked.taps, console)
    results = baselines(data, asked, console)
    outcome, interrupted = train_several(data, tried, console)
    results += [_result(row, asked.metrics) for row in outcome.table]
    if outcome.best is None or outcome.best_name is None:
        console.say("No network finished an epoch with finite numbers, so none is saved")
    else:
        task = data.task(tried[outcome.best_name], arguments)
        save_network(outcome.best, task, out, console, arguments.backbone)
    if arguments.plot and outcome.best is not None:
        save_plot(plots.frontier(outcome), arguments.plot)
        console.say(f"Drew {arguments.plot}")
    console.say()
    code = conclude(console, out, data, results, interrupted, outcome.best_name, best=outcome.best_name)
    return code or (1 if outcome.best is None else 0)


def _combinations(asked: Settings) -> dict[str, Settings]:
    """Return the settings of each network by name, which tells the options with several values."""
    choices = {name: list(dict.fromkeys(getattr(asked, name))) for name in _TRIED}
    tried: dict[str, Settings] = {}
    for values in itertools.product(*choices.values()):
        chosen: dict[str, Any] = dict(zip(choices, values))
        told = (f"{name.replace('_', '-')}={_shown(value)}" for name, value in chosen.items() if len(choices[name]) > 1)
        tried[", ".join(told) or "SHERL"] = replace(asked, **chosen)
    return tried


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _result(row: Record, metrics: Sequence[str]) -> Result:
    scores = {name: row.get(f"validation_{name}", math.nan) for name in metrics}
    return Result(row["name"], scores, row["parameters"])
