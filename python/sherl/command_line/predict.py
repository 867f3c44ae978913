"""`sherl predict`: predictions of a trained network."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ..data.tables import write_table
from .arguments import Commands, described, table_name
from .options import add_backbone, add_columns, add_input, add_network, add_reporting, add_threads, begin
from .output import output_folder
from .trained import load_trained

__all__ = ["add_parser"]

_EXAMPLE = """\
sherl predict my-network/ --backbone all-MiniLM-L6-v2/ \\
      --input test.tsv --text sentence --out predictions.tsv
  sherl predict my-network/ --input features/test/ --out predictions.jsonl"""


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "predict",
        help="predict labels, or values",
        **described(
            "Write a network's prediction for each sample, in the order of the samples: the column 'prediction' and, "
            "for classification, its 'probability'; for images after their 'file'.",
            _EXAMPLE,
        ),
    )
    add_network(parser)
    add_backbone(parser)
    add_input(parser, "what to predict for")
    add_columns(parser, "as in training", label=False)
    parser.add_argument("--out", required=True, type=table_name, metavar="FILE", help="table to write")
    add_threads(parser)
    add_reporting(parser)
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Run the command; return its exit code."""
    console = begin(arguments)
    trained, inputs = load_trained(arguments)
    output_folder(Path(arguments.out).parent)
    console.say(f"Predicting for {len(inputs):,} {inputs.noun}")
    columns = ["prediction", "probability"] if trained.task.classes else ["prediction"]
    rows = trained.rows(inputs, console.progress)
    if inputs.names is not None:
        columns, rows = ["file", *columns], ((name, *row) for name, row in zip(inputs.names, rows))
    write_table(arguments.out, columns, rows)
    console.say(f"Wrote {arguments.out}")
    console.report({"out": arguments.out, "rows": len(inputs), "columns": columns, "classes": trained.task.classes})
    return 0
