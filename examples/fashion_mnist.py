"""Fashion-MNIST on a frozen backbone of images: a linear probe beside a SHERL side network.

    python examples/fashion_mnist.py                       # a vision transformer
    python examples/fashion_mnist.py --backbone resnet     # a ResNet

The images are H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms", 2017 (MIT), from Debian's package dataset-fashion-mnist. Needs `pip install
'sherl[demo,onnx,image]'`.
"""

import argparse
import gzip
import time

import numpy as np
from common import (
    EXPLANATION,
    TRAINING_COLUMNS,
    Training,
    add_common_options,
    fetch_debian_package,
    load_resnet,
    load_vit,
    prepare,
    read_debian_package,
    spread,
)
from PIL import Image

import sherl
from sherl.command_line.console import aligned
from sherl.command_line.measure import megabytes
from sherl.training.probe import fit_linear_probe

CLASSES = 10
SIZES = {"vit": 84, "resnet": 64}
VIT_STATES = [1, 3, 5, 7, 9, 11]  # every other one, to take half the memory; the last is what the late layer receives
RESNET_STATES = [3, 7, 13, 15]  # outputs of stages 1 to 3, and of the second to last block


def load_fashion_mnist():
    """Return images, uint8 (samples, 28, 28), and labels of the training and the test set."""
    package = fetch_debian_package(
        "dataset-fashion-mnist", "0.0~git20200523.55506a9-1",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    )  # fmt: skip
    arrays = {}
    for name, content in read_debian_package(package, lambda name: "-idx" in name):
        arrays[name.rpartition("/")[2]] = read_idx(gzip.decompress(content))
    return [(arrays[f"{part}-images-idx3-ubyte.gz"], arrays[f"{part}-labels-idx1-ubyte.gz"].astype(np.int64))
            for part in ("train", "t10k")]  # fmt: skip


def read_idx(content):
    """Return the array of a file in IDX format with unsigned bytes."""
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def enlarged(images, size):
    """Return gray images as uint8 of shape (samples, size, size, 3)."""
    out = np.empty((len(images), size, size, 3), np.uint8)
    for number, image in enumerate(images):
        out[number] = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))[..., None]
    return out


def load_backbone(name):
    """Return a backbone and the states that a side network taps."""
    return (load_vit(), VIT_STATES) if name == "vit" else (load_resnet(), RESNET_STATES)


def extract(backbone, states, images, size):
    """Return the taps of a side network, and what a linear probe gets: the last state, pooled."""
    features = backbone.extract(enlarged(images, size), [*states, backbone.num_layers], dtype="float16", progress=True)
    pooled = [features.pooled(how="mean")]
    if backbone.family != "ResNet":
        pooled.append(features.pooled(how="first"))  # the class token
    return features.select(range(len(states))), np.concatenate(pooled, axis=1)


def make_network(backbone, states, hidden, pool, seed):
    """Return an untrained side network."""
    channels = [backbone.channels[state] for state in states]
    if backbone.family == "ResNet":
        early = sherl.MTSA.resnet(channels, hidden=hidden)
    else:
        early = sherl.MTSA.bert(channels[-1], taps=len(states), hidden=hidden)
    head = sherl.Classifier(channels[-1], CLASSES, pool=pool)
    return sherl.SideNetwork(early, late=[backbone.layers[-1]], head=head, seed=seed)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", choices=("vit", "resnet"), default="vit", help="which one (%(default)s)")
    parser.add_argument("--train", type=int, default=10000, metavar="N", help="images to train on (%(default)s)")
    parser.add_argument("--test", type=int, default=10000, metavar="N", help="images to score on (%(default)s)")
    parser.add_argument("--held-out", action="store_true",
                        help="score on the last images of the training set, not on the test set: for choices")
    parser.add_argument("--size", type=int, metavar="N", help="pixels of a side (84 with the transformer, else 64)")
    parser.add_argument("--hidden", type=int, default=96, metavar="N", help="side channels (%(default)s)")
    parser.add_argument("--pool", choices=("mean", "first"), default="mean",
                        help="what the head reads; the first row is the class token (%(default)s)")
    parser.add_argument("--epochs", type=int, default=5, metavar="N", help="passes over the images (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images of a step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, metavar="X", help="peak rate (%(default)s)")
    add_common_options(parser)
    arguments = parser.parse_args(argv)
    prepare(arguments)
    size = arguments.size or SIZES[arguments.backbone]

    (images, labels), test = load_fashion_mnist()
    test_images, test_labels = (images[-arguments.test :], labels[-arguments.test :]) if arguments.held_out else test
    test_images, test_labels = test_images[: arguments.test], test_labels[: arguments.test]
    images, labels = images[: arguments.train], labels[: arguments.train]
    backbone, states = load_backbone(arguments.backbone)
    start = time.perf_counter()
    (train, train_pooled), (test, test_pooled) = (
        extract(backbone, states, part, size) for part in (images, test_images)
    )
    print(f"{backbone}\n{len(images):,} images to train on and {len(test_images):,} to score, {size} pixels "
          f"a side: states in {time.perf_counter() - start:.0f} s, {megabytes(train.nbytes + test.nbytes)} as float16")

    with Training() as fitting:
        probe = fit_linear_probe(train_pooled, labels, "classification")
    score = np.mean(probe.predict(test_pooled) == test_labels)
    print(f"linear probe: {score:.4f}, {fitting.seconds:.0f} s", flush=True)
    rows = [["", "accuracy", "each seed", "trained", *TRAINING_COLUMNS, "planned"]]
    rows.append(["linear probe", f"{score:.4f}", "", f"{probe.num_parameters:,}", *fitting.cells, ""])

    scores, trainings = [], []
    for seed in arguments.seeds:
        network = make_network(backbone, states, arguments.hidden, arguments.pool, seed)
        tokens = tuple(map(int, train.sizes[-1][0])) if train.sizes is not None else train.longest
        plan = network.memory_plan(batch_size=arguments.batch_size, tokens=tokens)
        with Training() as fitting:
            network.fit(train, labels, epochs=arguments.epochs, batch_size=arguments.batch_size,
                        learning_rate=arguments.learning_rate, seed=seed)  # fmt: skip
        scores.append(network.evaluate(test, test_labels)["accuracy"])
        trainings.append(fitting)
        print(f"seed {seed}: {scores[-1]:.4f}, {fitting.seconds:.0f} s, {megabytes(fitting.memory)}", flush=True)
    rows.append(["SHERL", spread(scores), " ".join(f"{score:.4f}" for score in scores),
                 f"{network.num_parameters():,}", *trainings[0].cells, megabytes(plan.total)])  # fmt: skip
    print(aligned(rows))
    print(EXPLANATION)


if __name__ == "__main__":
    main()
