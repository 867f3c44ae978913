"""`sherl predict`: predictions of a trained network for the texts of a table."""

from pathlib import Path

import sherl

from ..data.tables import read_table, write_table
from ..training.progress import progress_bar
from .arguments import count, described, table_name
from .console import Console
from .task_file import Task
from .train import output_folder, texts_of

__all__ = ["add_parser"]

# Texts whose frozen states are in memory at a time.
_CHUNK = 512

_EXAMPLE = """\
sherl predict my-network/ --backbone all-MiniLM-L6-v2/ \\
      --input test.tsv --text sentence --out predictions.tsv"""


def add_parser(commands):
    """Add the command's arguments."""
    parser = commands.add_parser(
        "predict",
        help="predict labels for a text table",
        **described(
            "Write a network's prediction for each row of a text table, in the order of the rows: the column "
            "'prediction' and, for classification, its 'probability'.",
            _EXAMPLE,
        ),
    )
    parser.add_argument("network", metavar="DIR", help="folder that `sherl train` wrote")
    parser.add_argument("--backbone", required=True, metavar="DIR", help="the backbone that it was trained on")
    parser.add_argument("--input", required=True, type=table_name, metavar="FILE", help="table with the texts")
    parser.add_argument("--text", metavar="COL", help="column that holds the text (default: as in training)")
    parser.add_argument("--text-pair", metavar="COL", help="column of the second text (default: as in training)")
    parser.add_argument("--out", required=True, type=table_name, metavar="FILE", help="table to write")
    parser.add_argument("--threads", type=count, metavar="N", help="threads (default: all cores)")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    parser.set_defaults(run=run)


def run(arguments):
    """Run the command; return its exit code."""
    console = Console(arguments.quiet)
    if arguments.threads:
        sherl.set_num_threads(arguments.threads)
    task = Task.load(arguments.network)
    if arguments.text_pair and not task.text_pair:
        raise ValueError(f"--text-pair: the network in {arguments.network} was trained on single texts")
    text, text_pair = arguments.text or task.text, arguments.text_pair or task.text_pair
    output_folder(Path(arguments.out).parent)
    table = read_table(arguments.input, [text, text_pair] if text_pair else [text])
    texts = texts_of(table, text, text_pair)
    backbone = sherl.load_backbone(arguments.backbone)
    network = sherl.SideNetwork.from_pretrained(arguments.network, backbone=backbone)

    console.say(f"Predicting for {len(texts):,} texts")
    columns = ["prediction", "probability"] if task.classes else ["prediction"]
    write_table(arguments.out, columns, predicted_rows(backbone, network, task, texts, console.progress))
    console.say(f"Wrote {arguments.out}")
    return 0


def predicted_rows(backbone, network, task, texts, progress=False):
    """Yield one row per text: class name and probability, or a value. A chunk of texts is in memory at a time."""
    with progress_bar(progress, len(texts), "predict") as bar:
        for start in range(0, len(texts), _CHUNK):
            chunk = texts[start : start + _CHUNK]
            features = backbone.extract(chunk, taps="all", max_length=task.max_length, dtype="float16", progress=False)
            if task.classes:
                for probabilities in network.predict_proba(features, progress=False):
                    best = int(probabilities.argmax())
                    yield task.classes[best], round(float(probabilities[best]), 6)
            else:
                for value in network.predict(features, progress=False):
                    yield (round(float(value), 6),)
            bar.update(len(chunk))
