"""`sherl train`: a SHERL network from a backbone folder and two text tables."""

from pathlib import Path

import numpy as np

import sherl

from ..data.tables import encode_labels, read_table
from ..features.manifest import read_manifest
from ..training.metrics import METRICS, TASK_METRICS, default_metrics
from ..training.optimizers import SCHEDULES
from .arguments import count, described, factor, natural, positive, share, table_name
from .console import Console
from .experiment import Sample, Settings, results_record, results_table, run_experiment
from .task_file import Task

__all__ = ["add_parser"]

_EXAMPLE = """\
sherl train --backbone all-MiniLM-L6-v2/ --train train.tsv --dev dev.tsv \\
      --text sentence --label label --task classification --out my-network/"""


def add_parser(commands):
    """Add the command's arguments."""
    parser = commands.add_parser(
        "train",
        help="train a network on a text table",
        **described(
            "Train a SHERL side network on a frozen backbone from a text table (.tsv, .csv, .jsonl, each also .gz), "
            "score it on a second one, and save it. The backbone is run once; its states are kept in memory, or with "
            "--features on disk, as float16.",
            _EXAMPLE,
        ),
    )
    needed = parser.add_argument_group("what to train on")
    needed.add_argument("--backbone", metavar="DIR", help="folder of a text model in Hugging Face layout")
    needed.add_argument(
        "--features", metavar="DIR", help="folder for the states; once they are there, --backbone is not needed"
    )
    needed.add_argument("--train", required=True, type=table_name, metavar="FILE", help="table to train on")
    needed.add_argument("--dev", required=True, type=table_name, metavar="FILE", help="table to score on")
    needed.add_argument("--text", required=True, metavar="COL", help="column that holds the text")
    needed.add_argument("--text-pair", metavar="COL", help="column that holds the second text of a pair")
    needed.add_argument("--label", required=True, metavar="COL", help="column that holds the label")
    needed.add_argument("--task", required=True, choices=["classification", "regression"], help="kind of label")
    needed.add_argument("--out", required=True, metavar="DIR", help="folder to save the network to")
    how = parser.add_argument_group("how to train")
    how.add_argument("--epochs", type=count, default=5, metavar="N", help="passes over the texts (%(default)s)")
    how.add_argument("--batch-size", type=count, default=32, metavar="N", help="texts a step (%(default)s)")
    how.add_argument("--learning-rate", type=positive, default=3e-3, metavar="X", help="peak rate (%(default)s)")
    how.add_argument("--weight-decay", type=share, default=0.0, metavar="X", help="AdamW's decay (%(default)s)")
    how.add_argument("--schedule", choices=SCHEDULES, default="linear", help="how the rate falls (%(default)s)")
    how.add_argument("--step-every", type=count, metavar="N", help="steps after which --schedule step changes the rate")
    how.add_argument("--step-factor", type=positive, default=0.1, metavar="X", help="by what it does (%(default)s)")
    how.add_argument("--clip-norm", type=positive, default=1.0, metavar="X", help="most gradient norm (%(default)s)")
    how.add_argument(
        "--learning-rate-factor", type=factor, action="append", metavar="PATTERN=X",
        help="multiply the rate of some parameters, like 'head.*=0.1'; may be given several times",
    )
    how.add_argument("--ema", type=share, metavar="X", help="keep a moving average of the weights, with this decay")
    how.add_argument("--hidden", type=count, default=48, metavar="N", help="side channels (%(default)s)")
    how.add_argument("--pool", choices=["first", "last", "mean", "max"], default="mean", help="pooling (%(default)s)")
    how.add_argument("--max-length", type=count, metavar="N", help="tokens kept a text (128, or what the model can)")
    how.add_argument("--train-rows", type=count, metavar="N", help="train on a random subset of so many rows")
    how.add_argument("--patience", type=count, metavar="N", help="stop after N epochs without a better dev score")
    how.add_argument("--seed", type=natural, default=0, metavar="N", help="seed of all randomness (%(default)s)")
    how.add_argument("--threads", type=count, metavar="N", help="threads (default: all cores)")
    shown = parser.add_argument_group("what to report")
    shown.add_argument(
        "--metric", action="append", choices=list(METRICS), help="score to report; may be given several times"
    )
    shown.add_argument("--no-probe", dest="probe", action="store_false", help="leave the linear probe out")
    shown.add_argument("--probe", action="store_true", help="report a linear probe too (this is the default)")
    shown.add_argument("--quiet", action="store_true", help="print the final table alone")
    shown.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.set_defaults(run=run, probe=True)


def run(arguments):
    """Run the command; return its exit code."""
    console = Console(arguments.quiet, arguments.json)
    if not arguments.backbone and not arguments.features:
        raise ValueError("--backbone is needed, or --features with the states of one")
    metrics = _metrics(arguments)
    if arguments.threads:
        sherl.set_num_threads(arguments.threads)
    out = output_folder(arguments.out)
    train, classes = _read(arguments.train, arguments)
    dev, _ = _read(arguments.dev, arguments, classes)
    train = _subset(train, arguments.train_rows, arguments.seed)
    console.say(f"Read {len(train):,} texts to train on and {len(dev):,} to score on")
    backbone, max_length = None, arguments.max_length
    if arguments.backbone:
        backbone = sherl.load_backbone(arguments.backbone)
        console.say(f"Running the frozen backbone ({backbone.num_layers} layers, {backbone.hidden_size} channels) once")
        max_length = max_length or min(128, backbone.max_length)
    else:
        console.say(f"Opening the features in {arguments.features}")
        facts = read_manifest(Path(arguments.features) / "train").preprocessing
        max_length = max_length or (facts or {}).get("max_length")
    settings = _settings(arguments, classes, metrics, max_length)
    network, results, interrupted = run_experiment(backbone, train, dev, settings, console, arguments.features)

    network.save_pretrained(out)
    Task(arguments.task, classes, arguments.text, arguments.text_pair, arguments.label, settings.max_length).save(out)
    console.say(f"Saved the network to {out}")
    console.say()
    console.conclude(
        results_table(results),
        {
            "out": str(out),
            "train_rows": len(train),
            "dev_rows": len(dev),
            "classes": classes,
            "interrupted": interrupted,
            "results": results_record(results),
        },
    )
    return 130 if interrupted else 0


def _metrics(arguments):
    names = tuple(dict.fromkeys(arguments.metric or default_metrics(arguments.task)))
    suitable = TASK_METRICS[arguments.task]
    for name in names:
        if name not in suitable:
            raise ValueError(f"--metric {name} does not go with {arguments.task}; choose from {', '.join(suitable)}")
    return names


def output_folder(name):
    """Make the folder before the work, so that a folder that cannot be written costs no training."""
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _read(path, arguments, classes=None):
    names = [arguments.text, arguments.label] + ([arguments.text_pair] if arguments.text_pair else [])
    table = read_table(path, names)
    targets, classes = encode_labels(table[arguments.label], arguments.task, classes)
    if classes is not None and len(classes) < 2:
        raise ValueError(f"{path}: the column {arguments.label!r} must hold at least two classes, got {classes}")
    return Sample(texts_of(table, arguments.text, arguments.text_pair), targets), classes


def texts_of(table, text, text_pair):
    """Return the texts of a table, or pairs of texts where there is a second column."""
    return list(zip(table[text], table[text_pair])) if text_pair else list(table[text])


def _subset(sample, rows, seed):
    if rows is None or rows >= len(sample):
        return sample
    chosen = np.sort(np.random.default_rng(seed).permutation(len(sample))[:rows])
    return Sample([sample.texts[index] for index in chosen], sample.targets[chosen])


def _settings(arguments, classes, metrics, max_length):
    return Settings(
        task=arguments.task,
        outputs=len(classes) if classes else 1,
        metrics=metrics,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        hidden=arguments.hidden,
        pool=arguments.pool,
        max_length=max_length,
        seed=arguments.seed,
        patience=arguments.patience,
        probe=arguments.probe,
        schedule=arguments.schedule,
        step_every=arguments.step_every,
        step_factor=arguments.step_factor,
        clip_norm=arguments.clip_norm,
        learning_rate_factors=dict(arguments.learning_rate_factor) if arguments.learning_rate_factor else None,
        ema=arguments.ema,
    )
