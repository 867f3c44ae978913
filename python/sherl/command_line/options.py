"""The options that commands share: each is defined once, so that it means the same everywhere."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import sherl

from ..training.metrics import METRICS
from ..training.optimizers import SCHEDULES
from .arguments import Options, count, factor, natural, numbers, positive, share
from .console import Console
from .experiment import Settings

__all__ = [
    "DATA",
    "POOLS",
    "add_backbone",
    "add_columns",
    "add_data",
    "add_input",
    "add_metrics",
    "add_network",
    "add_reporting",
    "add_threads",
    "add_training",
    "begin",
]

DATA = "a text table (.tsv, .csv, .jsonl, also .gz), a folder of images, features or arrays, a .npz, or .npy files"
POOLS = ["first", "last", "mean", "max"]


def begin(arguments: Namespace) -> Console:
    """Do what options ask of every command; return the console."""
    if getattr(arguments, "threads", None):
        sherl.set_num_threads(arguments.threads)
    return Console(arguments.quiet, arguments.json)


def add_reporting(parser: Options) -> Options:
    """Add how a command reports, and where its options may stand."""
    group = parser.add_argument_group("what to report")
    group.add_argument("--quiet", action="store_true", help="print the result alone")
    group.add_argument("--json", action="store_true", help="print one JSON object; text goes to standard error")
    group.add_argument("--config", metavar="FILE", help="TOML file whose keys are the long options")
    return group


def add_threads(parser: Options) -> None:
    parser.add_argument("--threads", type=count, metavar="N", help="threads (default: all cores)")


def add_backbone(parser: Options) -> None:
    parser.add_argument("--backbone", metavar="DIR", help="folder of a text or image model in Hugging Face layout")


def add_network(parser: Options) -> None:
    parser.add_argument("network", metavar="DIR", help="folder that `sherl train`, `sweep` or `demo` wrote")


def add_input(parser: Options, what: str) -> None:
    parser.add_argument("--input", required=True, nargs="+", metavar="PATH", help=f"{what}: {DATA}")


def add_columns(parser: Options, default: str = "", label: bool = True) -> None:
    """Add the columns of a table, and tell what they are by default."""
    default = f" ({default})" if default else ""
    parser.add_argument("--text", metavar="COL", help=f"column of a table that holds the text{default}")
    parser.add_argument("--text-pair", metavar="COL", help=f"column that holds the second text of a pair{default}")
    if label:
        parser.add_argument("--label", metavar="COL", help=f"column, or array, that holds the labels{default}")


def add_metrics(parser: Options) -> None:
    names = list(METRICS)
    parser.add_argument("--metric", action="append", choices=names, metavar="NAME",
                        help=f"score to report, of {', '.join(names)}; may be given several times")


def add_data(parser: Options) -> None:
    """Add what networks are trained on, and where to save one."""
    group = parser.add_argument_group("what to train on")
    add_backbone(group)
    group.add_argument("--train", required=True, nargs="+", metavar="PATH", help=f"to train on: {DATA}")
    group.add_argument("--dev", required=True, nargs="+", metavar="PATH", help="to score on: the same")
    add_columns(group)
    group.add_argument(
        "--features", metavar="DIR", help="folder for the states; once they are there, --backbone is not needed"
    )
    group.add_argument(
        "--task", choices=["classification", "regression"],
        help="kind of label (classification; it must be given where labels are numbers that are not whole)",
    )
    group.add_argument("--max-length", type=count, metavar="N", help="tokens kept a text (128, or what the model can)")
    group.add_argument("--train-rows", type=count, metavar="N", help="train on a random subset of so many samples")
    group.add_argument("--out", required=True, metavar="DIR", help="folder to save the network to")


def add_training(parser: Options, several: bool = False) -> None:
    """Add how networks are trained; with `several`, options of a network take several values to try."""
    group = parser.add_argument_group("how to train")

    def tried(name: str, help: str, **settings: Any) -> None:
        default = getattr(Settings, name.replace("-", "_"))
        shown = default if isinstance(default, str) else f"{default:g}"
        if "choices" in settings:
            help, settings["metavar"] = f"{help}: {', '.join(settings['choices'])}", "NAME"
        more: dict[str, Any] = {"nargs": "+", "default": [default]} if several else {"default": default}
        group.add_argument(f"--{name}", help=f"{help} ({shown})", **more, **settings)

    def once(name: str, help: str, **settings: Any) -> None:
        group.add_argument(f"--{name}", default=getattr(Settings, name.replace("-", "_")), help=help, **settings)

    once("epochs", "passes over the samples (%(default)s)", type=count, metavar="N")
    once("batch-size", "samples a step (%(default)s)", type=count, metavar="N")
    tried("learning-rate", "peak rate", type=positive, metavar="X")
    tried("weight-decay", "AdamW's decay", type=share, metavar="X")
    tried("schedule", "how the rate falls", choices=SCHEDULES)
    once("step-every", "steps after which --schedule step changes the rate", type=count, metavar="N")
    once("step-factor", "by what it does (%(default)s)", type=positive, metavar="X")
    once("clip-norm", "most gradient norm (%(default)s)", type=positive, metavar="X")
    group.add_argument(
        "--learning-rate-factor", type=factor, action="append", metavar="PATTERN=X",
        help="multiply the rate of some parameters, like 'head.*=0.1'; may be given several times",
    )
    once("ema", "keep a moving average of the weights, with this decay", type=share, metavar="X")
    tried("hidden", "side channels", type=count, metavar="N")
    tried("pool", "pooling", choices=POOLS)
    tried("taps", "states that the network reads, like 0,2,5", type=numbers, metavar="N,N,…")
    if not several:
        once("patience", "stop after N epochs without a better dev score", type=count, metavar="N")
    once("seed", "seed of all randomness (%(default)s)", type=natural, metavar="N")
    add_threads(group)
