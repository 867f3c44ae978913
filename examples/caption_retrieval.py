"""Pictures and their captions: two frozen towers, and side networks that let what belongs together embed alike.

    python examples/caption_retrieval.py

The pictures are the stamps of Tux Paint (B. Kendrick and others, GPL-2), from Debian's package tuxpaint-stamps-default:
drawings and photographs of animals, things and letters, each with a caption. The package is fetched into the cache.
Needs `pip install 'sherl[demo,onnx,image]'`.
"""

import argparse
import hashlib
import time

import numpy as np
from common import (
    EXPLANATION,
    TRAINING_COLUMNS,
    Training,
    add_common_options,
    fetch_debian_package,
    load_language_model,
    load_vit,
    prepare,
    read_debian_package,
    read_image,
    spread,
)

import sherl
from sherl.command_line.console import aligned
from sherl.command_line.measure import megabytes

IMAGE_STATES = [1, 3, 5, 7, 9, 11]
EMBEDDING = 256
METRICS = [f"{way}_r{count}" for way in ("a_to_b", "b_to_a") for count in (1, 5, 10)]


def load_stamps(size):
    """Return names, images (uint8, size pixels a side) and captions of all pictures that have a caption."""
    package = fetch_debian_package(
        "tuxpaint-stamps-default", "2022.06.04-1",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    )  # fmt: skip
    pictures, texts = {}, {}
    for name, content in read_debian_package(package, lambda name: name.endswith((".png", ".txt"))):
        stem = name.rpartition(".")[0].removeprefix("usr/share/tuxpaint/stamps/")
        if name.endswith(".png"):
            pictures[stem] = read_image(content, size)
        else:
            texts[stem] = content.decode("utf-8").splitlines()[0].strip()  # the first line is in English
    names = sorted(set(pictures) & set(texts))
    return names, np.stack([pictures[name] for name in names]), [texts[name] for name in names]


def split(names, held_out):
    """Return which pictures train and which score, by a hash of their names.

    Two tenths are the test set. With `held_out` another tenth scores in its place, and the test set is left alone.
    """
    tenth = np.array([int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 for name in names])
    if held_out:
        return np.flatnonzero(tenth > 2), np.flatnonzero(tenth == 2)
    return np.flatnonzero(tenth > 1), np.flatnonzero(tenth < 2)


class Pairs:
    """Taps of some pictures and of their different captions, and which go together."""

    def __init__(self, image_taps, language_model, captions, chosen):
        self.texts = sorted({captions[number] for number in chosen})
        numbers = {text: number for number, text in enumerate(self.texts)}
        self.images = image_taps[chosen]
        self.captions = language_model.extract(self.texts)
        self.pairs = np.array([(row, numbers[captions[number]]) for row, number in enumerate(chosen)])


def make_encoder(vit, language_model, hidden, pool, temperature, seed):
    """Return untrained networks for both towers."""
    towers = []
    for backbone, taps in ((vit, len(IMAGE_STATES)), (language_model, language_model.num_layers)):
        early = sherl.MTSA.bert(backbone.hidden_size, taps=taps, hidden=hidden)
        head = sherl.Embedding(backbone.hidden_size, out=EMBEDDING, pool=pool)
        towers.append(sherl.SideNetwork(early, late=[backbone.layers[-1]], head=head, seed=seed))
    return sherl.DualEncoder(*towers, loss=sherl.losses.contrastive(temperature))


def let_states_through(encoder):
    """Let the adapters give what the frozen late layers would have received in their backbones."""
    state = encoder.state_dict()
    for tower in ("a", "b"):
        for name in ("up.weight", "up.bias", "up.norm.weight", "up.norm.bias"):
            state[f"{tower}.early.{name}"][...] = 0
        state[f"{tower}.early.gate"][...] = 1  # its tanh, at a temperature of 0.1, is 1
    encoder.load_state_dict(state)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=84, metavar="N", help="pixels of a side (%(default)s)")
    parser.add_argument("--held-out", action="store_true",
                        help="score on a tenth of the training pictures, not on the test set: for choices")
    parser.add_argument("--hidden", type=int, default=96, metavar="N", help="side channels (%(default)s)")
    parser.add_argument("--pool", choices=("gpo", "mean", "first", "max"), default="mean", help="(%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.05, metavar="X", help="of the loss (%(default)s)")
    parser.add_argument("--epochs", type=int, default=15, metavar="N", help="passes over the pairs (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=112, metavar="N", help="pairs of a step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, metavar="X", help="peak rate (%(default)s)")
    add_common_options(parser)
    arguments = parser.parse_args(argv)
    prepare(arguments)

    start = time.perf_counter()
    names, images, captions = load_stamps(arguments.size)
    vit, language_model = load_vit(), load_language_model()
    image_taps = vit.extract(images, IMAGE_STATES, dtype="float16", progress=True)
    train, test = (Pairs(image_taps, language_model, captions, chosen) for chosen in split(names, arguments.held_out))
    known = sum(text in set(train.texts) for text in test.texts)
    print(f"{len(train.images)} pictures with {len(train.texts)} captions to train on, {len(test.images)} with "
          f"{len(test.texts)} to score, {known} of which are in training too; states in "
          f"{time.perf_counter() - start:.0f} s")

    scores = {"untrained": [], "linear heads": [], "SHERL": []}
    rows = [["", *(f"{way} R@{count}" for way in ("text", "image") for count in (1, 5, 10)), "rsum", "trained",
             *TRAINING_COLUMNS, "planned"]]  # fmt: skip
    facts = {"untrained": ["0", "", "", "", ""]}
    for seed in arguments.seeds:
        for name in scores:
            encoder = make_encoder(vit, language_model, arguments.hidden, arguments.pool, arguments.temperature, seed)
            factors = None
            if name == "linear heads":
                let_states_through(encoder)
                factors = {"*.early.*": 0.0}
            if name != "untrained":
                with Training() as fitting:
                    encoder.fit(train.images, train.captions, train.pairs, epochs=arguments.epochs,
                                batch_size=arguments.batch_size, learning_rate=arguments.learning_rate, clip_norm=2.0,
                                learning_rate_factors=factors, seed=seed)  # fmt: skip
                plan = encoder.memory_plan(batch_size=arguments.batch_size, tokens_a=train.images.longest,
                                           tokens_b=train.captions.longest)  # fmt: skip
                parts = [encoder] if factors is None else [encoder.a.head, encoder.b.head]
                trained = sum(part.num_parameters() for part in parts)
                facts.setdefault(name, [f"{trained:,}", *fitting.cells, megabytes(plan.total)])
            scores[name].append(encoder.evaluate(test.images, test.captions, test.pairs))
            print(f"seed {seed}, {name}: rsum {scores[name][-1]['rsum']:.1f}", flush=True)
    for name, found in scores.items():
        means = [f"{np.mean([score[metric] for score in found]):.1f}" for metric in METRICS]
        rows.append([name, *means, spread([score["rsum"] for score in found], 1), *facts[name]])
    print(aligned(rows))
    print(f"text R@K: captions found for a picture; image R@K: pictures found for a caption; {EXPLANATION}")


if __name__ == "__main__":
    main()
