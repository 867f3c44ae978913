"""`sherl evaluate`: scores of a trained network on labelled samples."""

from __future__ import annotations

import math
from argparse import Namespace

from .. import plots
from .._typing import Record
from ..training.metrics import count_confusion
from .arguments import Commands, UsageError, described, picture_name
from .console import aligned
from .data import targets_of
from .experiment import metrics_of, scores_of
from .options import add_backbone, add_columns, add_input, add_metrics, add_network, add_reporting, add_threads, begin
from .output import save_plot
from .trained import load_trained

__all__ = ["add_parser"]

_EXAMPLE = """\
sherl evaluate my-network/ --backbone all-MiniLM-L6-v2/ --input test.tsv
  sherl evaluate my-network/ --input features/test/ --metric accuracy --plot confusion.png"""


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "evaluate",
        help="score a trained network on labelled samples",
        **described(
            "Score a network on labelled samples: its metrics and, for classification, how often each class (a line) "
            "was taken for each (a column).",
            _EXAMPLE,
        ),
    )
    add_network(parser)
    add_backbone(parser)
    add_input(parser, "what to score on")
    add_columns(parser, "as in training")
    add_threads(parser)
    shown = add_reporting(parser)
    add_metrics(shown)
    shown.add_argument("--plot", type=picture_name, metavar="FILE", help="picture (.png) of the confusion of classes")
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Run the command; return its exit code."""
    console = begin(arguments)
    trained, inputs = load_trained(arguments, labelled=True)
    task = trained.task
    metrics = metrics_of(task.task, arguments.metric)
    if arguments.plot and not task.classes:
        raise UsageError("--plot draws the confusion of classes, and the network predicts values")
    targets, _ = targets_of(inputs, task.task, task.classes)
    console.say(f"Scoring on {len(inputs):,} {inputs.noun}")
    predictions = trained.predictions(inputs, console.progress)
    scores = scores_of(predictions, targets, metrics)
    record: Record = {"rows": len(inputs), "scores": scores}
    text = aligned([[name, "n/a" if math.isnan(score) else f"{score:.4f}"] for name, score in scores.items()])
    if task.classes:
        counts, ids = count_confusion(predictions, targets)
        names = [task.classes[number] for number in ids]
        record["confusion"] = {"classes": names, "counts": counts.tolist()}
        lines = [[name, *map(str, row)] for name, row in zip(names, counts)]
        text += "\n\n" + aligned([["true \\ predicted", *names], *lines])
    if arguments.plot:
        save_plot(plots.confusion_matrix(targets, predictions, task.classes), arguments.plot)
        console.say(f"Drew {arguments.plot}")
    console.conclude(text, record)
    return 0
