"""`sherl extract`: the hidden states of a frozen backbone, written to disk once."""

from __future__ import annotations

from argparse import Namespace

import sherl

from ..checks import count_of
from ..features.sinks import DTYPES
from .arguments import Commands, count, described, numbers
from .data import DTYPE, check_backbone, compute_features, usual_length
from .inputs import read_inputs, write_labels
from .measure import Measured, megabytes
from .options import add_columns, add_input, add_reporting, add_threads, begin
from .states import chosen_states, states_of

__all__ = ["add_parser"]

_EXAMPLE = """\
sherl extract --backbone all-MiniLM-L6-v2/ --input train.tsv --text sentence --label label \\
      --out features/train/
  sherl extract --backbone dinov2-small/ --input images/train/ --out features/train/"""


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "extract",
        help="run a backbone once, and keep its states on disk",
        **described(
            "Run a frozen backbone on a text table or a folder of images, and write its states, its last layer and the "
            "labels into a folder, which `sherl train`, `sweep`, `evaluate` and `predict` take. Interrupted, it goes "
            "on where it was when it is called again.",
            _EXAMPLE,
        ),
    )
    parser.add_argument("--backbone", required=True, metavar="DIR", help="text or image model in Hugging Face layout")
    add_input(parser, "what to run it on")
    add_columns(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--taps", type=numbers, metavar="N,N,…",
                        help="states to keep, like 0,2,5 (all that networks tap, and the last)")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPE, help="type to store (%(default)s)")
    parser.add_argument("--max-length", type=count, metavar="N", help="tokens kept a text (128, or what the model can)")
    add_threads(parser)
    add_reporting(parser)
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Run the command; return its exit code."""
    console = begin(arguments)
    columns = {name: getattr(arguments, name) for name in ("text", "text_pair", "label")}
    inputs = read_inputs(arguments.input, **columns, labelled=False)
    if inputs.kind == "features":
        raise ValueError(f"{inputs.place} holds states already; a backbone is run on texts or images")
    in_classes = inputs.names is not None and all("/" in name for name in inputs.names)
    if in_classes or (inputs.kind == "text" and arguments.label):
        inputs = read_inputs(arguments.input, **columns)
    backbone = sherl.load_backbone(arguments.backbone)
    check_backbone(inputs, backbone)
    layers = backbone.num_layers
    images = backbone.family == "ResNet"
    states = chosen_states(arguments.taps or "all", range(layers + 1), backbone.channels, layers, images)
    states += [] if arguments.taps else [layers]
    console.say(f"Running the frozen backbone ({layers} layers, {backbone.hidden_size} channels) on {len(inputs):,} "
                f"{inputs.noun}")
    length = usual_length(inputs, backbone, arguments.max_length)
    with Measured() as running:
        features = compute_features(inputs, states, backbone, length, dtype=arguments.dtype, out=arguments.out,
                                    progress=console.progress)
    if inputs.labels is not None:
        write_labels(arguments.out, inputs.labels)
    use = "train --train" if inputs.labels is not None else "predict DIR --input"
    console.conclude(
        f"Wrote {count_of(len(features), 'sample')} to {arguments.out}, {megabytes(features.nbytes)}. "
        f"Next: sherl {use} {arguments.out} …",
        {
            "out": arguments.out,
            "samples": len(features),
            "rows": int(features.lengths.sum()),
            "states": states_of(features),
            "dtype": arguments.dtype,
            "bytes": features.nbytes,
            "labels": inputs.labels is not None,
            "seconds": running.seconds,
        },
    )
    return 0
