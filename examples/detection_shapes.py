"""Boxes around shapes: a detection head on the patches of a frozen vision transformer, through a SHERL side network.

    python examples/detection_shapes.py

Images are drawn here: one to three disks, rectangles and triangles on noise. Every patch of an image is a query that
may give a box; Hungarian matching pairs boxes with objects in training. There is no decoder: the rows of the late
layer, in which patches attend to each other, are the queries. Needs `pip install 'sherl[demo,onnx,image,detection]'`.
"""

import argparse
import time

import numpy as np
from common import EXPLANATION, TRAINING_COLUMNS, Training, add_common_options, load_vit, prepare, spread

import sherl
from sherl import losses
from sherl.command_line.console import aligned
from sherl.command_line.measure import megabytes

KINDS = ("disk", "rectangle", "triangle")
STATES = [1, 3, 5, 7, 9, 11]
MOST_OBJECTS = 3


def draw_scene(random, size):
    """Return one image, its boxes (center x, center y, width, height, in shares of the image) and their classes."""
    image = random.uniform(0, 60, (size, size, 3)) + random.uniform(0, 120, 3)
    y, x = np.mgrid[0:size, 0:size] + 0.5
    boxes, labels = [], []
    wanted = random.integers(1, MOST_OBJECTS + 1)
    while len(boxes) < wanted:
        width, height = random.uniform(0.18, 0.45, 2)
        center_x, center_y = random.uniform(width / 2, 1 - width / 2), random.uniform(height / 2, 1 - height / 2)
        box = np.array([center_x, center_y, width, height])
        if any(overlap(box, other) > 0.05 for other in boxes):
            continue
        across, down = (x / size - center_x) / (width / 2), (y / size - center_y) / (height / 2)  # -1 to 1 in the box
        kind = random.integers(len(KINDS))
        inside = (np.abs(across) <= 1) & (np.abs(down) <= 1)
        if KINDS[kind] == "disk":
            inside = across**2 + down**2 <= 1
        elif KINDS[kind] == "triangle":
            inside &= np.abs(across) <= (down + 1) / 2
        image[inside] = random.uniform(0, 255, 3)
        boxes.append(box)
        labels.append(kind)
    return image.clip(0, 255).astype(np.uint8), np.array(boxes), np.array(labels)


def overlap(boxes, others):
    """Return the intersection over union of boxes, by broadcasting."""
    low = np.maximum(boxes[..., :2] - boxes[..., 2:] / 2, others[..., :2] - others[..., 2:] / 2)
    high = np.minimum(boxes[..., :2] + boxes[..., 2:] / 2, others[..., :2] + others[..., 2:] / 2)
    shared = np.maximum(high - low, 0).prod(axis=-1)
    return shared / (boxes[..., 2:].prod(axis=-1) + others[..., 2:].prod(axis=-1) - shared)


def draw_scenes(count, size, seed):
    """Return images, boxes and classes of some scenes."""
    random = np.random.default_rng(seed)
    images, boxes, labels = zip(*(draw_scene(random, size) for _ in range(count)))
    return np.stack(images), list(boxes), list(labels)


def score(outputs, boxes, labels):
    """Score the outputs of a detector, a matrix (queries, classes + 5) for each image.

    Returns
    -------
    dict of str to float
        "matched_iou": mean intersection over union of each object with its query, which Hungarian matching picks among
        all queries by box and class as in training; "f1": of the boxes that a user would see, those of queries whose
        likeliest class is an object, without others of that class on the same place. A box is right where it has an
        intersection over union above a half with an object of its class that no likelier box has.
    """
    classes, ious, right, shown, objects = len(KINDS), [], 0, 0, 0
    for rows, true_boxes, true_labels in zip(outputs, boxes, labels):
        chances = np.exp(rows[:, : classes + 1] - rows[:, : classes + 1].max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        found = rows[:, classes + 1 :].astype(np.float64)
        table = overlap(found[:, None], true_boxes[None])
        costs = (5 * np.abs(found[:, None] - true_boxes[None]).sum(axis=2) - chances[:, true_labels]
                 - 2 * losses.generalized_iou(found[:, None], true_boxes[None])[0])  # fmt: skip
        ious.extend(table[losses.match_boxes(costs)])

        seen, free = [], np.ones(len(true_boxes), bool)
        best = chances.argmax(axis=1)
        for query in np.argsort(-chances[:, :classes].max(axis=1), kind="stable"):
            doubled = any(best[query] == best[other] and overlap(found[query], found[other]) > 0.5 for other in seen)
            if best[query] == classes or doubled:
                continue
            seen.append(query)
            candidates = np.where(free & (true_labels == best[query]), table[query], 0)
            if candidates.max() > 0.5:
                free[candidates.argmax()] = False
                right += 1
        shown, objects = shown + len(seen), objects + len(true_boxes)
    return {"matched_iou": float(np.mean(ious)), "f1": 2 * right / (shown + objects)}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=1000, metavar="N", help="images to train on (%(default)s)")
    parser.add_argument("--test", type=int, default=200, metavar="N", help="images to score (%(default)s)")
    parser.add_argument("--held-out", action="store_true", help="score on other images than those of the test")
    parser.add_argument("--size", type=int, default=84, metavar="N", help="pixels of a side (%(default)s)")
    parser.add_argument("--hidden", type=int, default=96, metavar="N", help="side channels (%(default)s)")
    parser.add_argument("--epochs", type=int, default=12, metavar="N", help="passes over the images (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="images of a step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, metavar="X", help="peak rate (%(default)s)")
    add_common_options(parser)
    arguments = parser.parse_args(argv)
    prepare(arguments)

    start = time.perf_counter()
    vit = load_vit()
    images, boxes, labels = draw_scenes(arguments.train, arguments.size, seed=1000)
    test_seed = 1002 if arguments.held_out else 1001
    test_images, test_boxes, test_labels = draw_scenes(arguments.test, arguments.size, test_seed)
    train, test = (vit.extract(part, STATES, dtype="float16", progress=True) for part in (images, test_images))
    print(f"{len(train)} images to train on, {len(test)} to score, {train.longest} queries an image: states in "
          f"{time.perf_counter() - start:.0f} s, {megabytes(train.nbytes + test.nbytes)}")

    names = {"untrained": 0, "SHERL": arguments.epochs}
    scores, facts = {name: [] for name in names}, {"untrained": ["0", "", "", "", ""]}
    for seed in arguments.seeds:
        for name, epochs in names.items():
            network = sherl.SideNetwork(
                sherl.MTSA.detr(vit.hidden_size, taps=len(STATES), hidden=arguments.hidden), late=[vit.layers[-1]],
                head=sherl.Detector(vit.hidden_size, len(KINDS), hidden=arguments.hidden), seed=seed,
            )  # fmt: skip
            if epochs:
                with Training() as fitting:
                    network.fit(train, losses.box_targets(boxes, labels), loss=losses.detection(len(KINDS)),
                                epochs=epochs, batch_size=arguments.batch_size, learning_rate=arguments.learning_rate,
                                seed=seed)  # fmt: skip
                plan = network.memory_plan(batch_size=arguments.batch_size, tokens=train.longest)
                facts.setdefault(name, [f"{network.num_parameters():,}", *fitting.cells, megabytes(plan.total)])
            outputs = network.forward(test)
            scores[name].append(score(np.split(outputs.taps[0], outputs.offsets[1:-1]), test_boxes, test_labels))
            print(f"seed {seed}, {name}: {scores[name][-1]}", flush=True)
    rows = [["", "IoU, matched", "each seed", "F1 at IoU .5", "trained", *TRAINING_COLUMNS, "planned"]]
    for name, found in scores.items():
        ious, f1 = ([one[metric] for one in found] for metric in ("matched_iou", "f1"))
        rows.append([name, spread(ious), " ".join(f"{iou:.3f}" for iou in ious), spread(f1), *facts[name]])
    print(aligned(rows))
    print(EXPLANATION)


if __name__ == "__main__":
    main()
