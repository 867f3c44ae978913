"""What narrow types cost in accuracy: MiniLM on SST-2 with taps of each type, and with late layers in bfloat16.

``python -m benchmarks.tap_types DIR``, where DIR holds the folder SST-2 of the GLUE benchmark. Prints two tables.
"""

import argparse
import dataclasses
import statistics
import time

import numpy as np

from benchmarks import fine_tune, lengths, measure
from benchmarks.report import MEBIBYTE, table

TYPES = ("float32", "float16", "bfloat16", "int8")
EPOCHS = 5
LEARNING_RATE = 3e-3  # this and what follows are those of `sherl train`
DROPOUT = 0.1


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: dev accuracy at the end, the classes predicted, and processor seconds of an epoch."""

    accuracy: float
    classes: np.ndarray
    seconds: float


def texts(folder, train_rows):
    """Sentences and labels: some of the training set, drawn, and the whole dev set."""
    from sherl.data.tables import read_table

    parts = []
    for file in ("train.tsv", "dev.tsv"):
        read = read_table(lengths.find(folder, "SST-2", file), ["sentence", "label"])
        parts.append((np.array(read["sentence"], object), np.array([int(label) for label in read["label"]])))
    (sentences, labels), dev = parts
    chosen = np.sort(np.random.default_rng(0).permutation(len(sentences))[:train_rows])
    return (list(sentences[chosen]), labels[chosen]), (list(dev[0]), dev[1])


def train(layer, features, labels, dev, dev_labels, seed, late_dtype="float32"):
    import sherl

    network = sherl.SideNetwork(
        sherl.MTSA(fine_tune.TAPS, fine_tune.FEATURES, fine_tune.HIDDEN, up_norm="layernorm", dropout=DROPOUT), [layer],
        sherl.Classifier(fine_tune.FEATURES, 2, pool="mean"), seed=seed, late_dtype=late_dtype)
    start = time.process_time()
    network.fit(features, labels, epochs=EPOCHS, batch_size=fine_tune.BATCH, learning_rate=LEARNING_RATE,
                weight_decay=0.0, seed=seed, progress=False)
    seconds = (time.process_time() - start) / EPOCHS
    classes = network.predict(dev)
    return Run(float((classes == dev_labels).mean()), classes, seconds)


def accuracy_table(what, runs, plain, size=None):
    """A line for each type: accuracies by seed, their mean, predictions like those of float32, processor seconds."""
    rows = []
    for name, found in runs.items():
        like = np.mean([mine.classes == theirs.classes for mine, theirs in zip(found, runs[plain])])
        rows.append([name, *([f"{size[name] / MEBIBYTE:.0f}"] if size else []),
                     ", ".join(f"{100 * run.accuracy:.1f}" for run in found),
                     f"{100 * statistics.mean(run.accuracy for run in found):.1f}",
                     "" if name == plain else f"{100 * like:.1f} %",
                     f"{statistics.median(run.seconds for run in found):.2f}"])
    return table([what, *(["features, MiB"] if size else []), "dev accuracy of each seed, %", "mean, %",
                  f"predictions as with {plain}", "processor s an epoch"], rows)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tap_types", description="Accuracy with narrow types.")
    parser.add_argument("folder", help="folder with SST-2 of the GLUE benchmark")
    parser.add_argument("--train", type=int, default=4000, metavar="N", help="training sentences, default 4000")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default 3")
    options = parser.parse_args(arguments)
    import sherl
    from sherl.data.assets import fetch_demo_assets

    (sentences, labels), (dev, dev_labels) = texts(options.folder, options.train)
    backbone = sherl.load_backbone(fetch_demo_assets(progress=False).backbone_folder)
    plain, dev = (backbone.extract(part, taps="all", dtype="float32") for part in (sentences, dev))
    features = {name: plain.astype(name) for name in TYPES}
    held_out = {name: dev.astype(name) for name in TYPES}
    layer = backbone.layers[-1]
    taps, late = {name: [] for name in TYPES}, {"float32": [], "bfloat16": []}
    for seed in range(options.seeds):  # types take turns, so that a slow spell falls on all of them
        for name in TYPES:
            taps[name].append(train(layer, features[name], labels, held_out[name], dev_labels, seed))
        for name in late:
            late[name].append(train(layer, plain, labels, dev, dev_labels, seed, name))
    print(measure.machine(["numpy", "sherl"]))
    print(f"{len(labels)} training and {len(dev_labels)} dev sentences\n")
    print("\n".join(accuracy_table("taps", taps, "float32", {name: made.nbytes for name, made in features.items()})))
    print("\n".join(accuracy_table("late layers", late, "float32")))


if __name__ == "__main__":
    main()
