"""`sherl train`: a SHERL network on a frozen backbone."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arguments import Commands, Options, described
from .console import Console
from .data import Data, read_data
from .experiment import Result, Settings, baselines, results_record, results_table, train_network
from .options import add_data, add_metrics, add_reporting, add_training, begin
from .output import output_folder, save_network

__all__ = ["add_parser"]

_EXAMPLE = """\
sherl train --backbone all-MiniLM-L6-v2/ --train train.tsv --dev dev.tsv \\
      --text sentence --label label --task classification --out my-network/
  sherl train --backbone dinov2-small/ --train images/train/ --dev images/dev/ --out my-network/
  sherl train --train features/train/ --dev features/dev/ --out my-network/
  sherl train --train train.npz --dev dev.npz --config run.toml --out my-network/"""


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "train",
        help="train a network on texts, images, or states of your own",
        **described(
            "Train a SHERL side network on a frozen backbone from a text table, a folder of images with a folder for "
            "each class, features on disk, or arrays of hidden states; score it on a second set, and save it. The "
            "backbone is run once; its states are kept in memory, or with --features on disk, as float16.",
            _EXAMPLE,
        ),
    )
    add_data(parser)
    add_training(parser)
    add_scoring(parser)
    parser.set_defaults(run=run)


def add_scoring(parser: Options) -> Options:
    """Add what is reported on the held-out set."""
    shown = add_reporting(parser)
    add_metrics(shown)
    shown.add_argument("--probe", action=argparse.BooleanOptionalAction, help="report a linear probe too, or not")
    parser.set_defaults(probe=Settings.probe)
    return shown


def run(arguments: Namespace) -> int:
    """Run the command; return its exit code."""
    console = begin(arguments)
    settings = Settings.of(arguments)
    out = output_folder(arguments.out)
    data = read_data(arguments, settings, [settings.taps], console)
    results = baselines(data, settings, console)
    network, result, interrupted = train_network(data, settings, console)
    save_network(network, data.task(settings, arguments), out, console, arguments.backbone)
    console.say()
    return conclude(console, out, data, [*results, result], interrupted)


def conclude(console: Console, out: Path, data: Data, results: Sequence[Result], interrupted: bool,
             marked: str | None = None, **more: Any) -> int:
    """Print what was trained; return the exit code."""
    console.conclude(
        results_table(results, marked),
        {
            "out": str(out),
            "train_rows": len(data.train),
            "dev_rows": len(data.dev),
            "classes": data.classes,
            "interrupted": interrupted,
            "results": results_record(results),
            **more,
        },
    )
    return 130 if interrupted else 0
