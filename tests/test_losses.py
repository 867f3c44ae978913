"""Losses across the batch and of detection: finite differences in float64, and plain twins."""

import itertools
import sys

import numpy as np
import pytest
from op_harness import central_differences
from small import FEATURES, network, taps_of

import sherl
from sherl import losses

SEEDS = pytest.mark.parametrize("seed", range(4))


def embeddings(seed, pairs=6, channels=5, unit=True):
    generator = np.random.default_rng(seed)
    a, b = generator.standard_normal((2, pairs, channels))
    b += a
    return [x / np.linalg.norm(x, axis=1, keepdims=True) if unit else x for x in (a, b)]


def matches_of(pairs=6):
    groups = np.array([0, 1, 0, 2, 3, 1])[:pairs]
    return groups[:, None] == groups


def cross_entropy(row, wanted, left_out):
    kept = [value for place, value in enumerate(row) if place not in left_out]
    return np.log(np.sum(np.exp(kept))) - row[wanted]


def contrastive_twin(a, b, matches, temperature):
    if temperature:
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    s, n = a @ b.T / (temperature or 1), len(a)
    out = [{j for j in range(n) if matches[i, j] and i != j} for i in range(n)]
    return sum(cross_entropy(s[i], i, out[i]) + cross_entropy(s[:, i], i, out[i]) for i in range(n)) / (2 * n)


def triplet_twin(a, b, matches, margin, hardest):
    s, total, pick = a @ b.T, 0.0, max if hardest else sum
    for i in range(len(a)):
        for row in (s[i], s[:, i]):
            costs = [max(0.0, margin - s[i, i] + row[j]) for j in range(len(a)) if not matches[i, j]]
            total += pick(costs) if costs else 0.0
    return total


PAIRED = {
    "contrastive": (losses.contrastive(0.2), lambda a, b, m: contrastive_twin(a, b, m, 0.2)),
    "contrastive, as it is": (losses.contrastive(None), lambda a, b, m: contrastive_twin(a, b, m, None)),
    "triplet": (losses.triplet(0.7), lambda a, b, m: triplet_twin(a, b, m, 0.7, True)),
    "triplet, all": (losses.triplet(0.7, "all"), lambda a, b, m: triplet_twin(a, b, m, 0.7, False)),
    "triplet, mean": (losses.triplet(0.7, reduction="mean"), lambda a, b, m: triplet_twin(a, b, m, 0.7, True) / len(a)),
}


@SEEDS
@pytest.mark.parametrize("matched", [False, True])
@pytest.mark.parametrize("case", PAIRED)
def test_losses_of_pairs(case, matched, seed):
    loss, twin = PAIRED[case]
    a, b = embeddings(seed, unit="triplet" in case)
    matches = matches_of() if matched else None
    known = np.eye(6, dtype=bool) if matches is None else matches
    value, *gradients = loss(a, b, matches)
    assert value == pytest.approx(twin(a, b, known), rel=1e-12)
    assert value > 0
    for array, gradient in zip((a, b), gradients, strict=True):
        expected = central_differences(lambda: loss(a, b, matches)[0], array, 1e-6)
        assert np.allclose(gradient, expected, atol=1e-8)


def test_losses_of_pairs_where_nothing_is_wrong():
    eye = np.eye(4)
    value, *gradients = losses.triplet(0.2)(eye, eye)
    assert value == 0 and not any(gradient.any() for gradient in gradients)
    assert losses.contrastive(0.01)(eye, eye)[0] == pytest.approx(0, abs=1e-12)
    zero = losses.contrastive(0.5)(np.zeros((3, 2)), embeddings(0, 3, 2)[0])
    assert zero[0] == pytest.approx(np.log(3)) and not zero[1].any()
    assert losses.triplet(0.2)(eye[:1], eye[:1])[0] == 0


def test_bad_pairs_are_named():
    for loss in (losses.contrastive(), losses.triplet()):
        with pytest.raises(ValueError,
                           match=r"a and b must have one shape \(pairs, channels\), got \(2, 3\) and \(3, 3\)"):
            loss(np.ones((2, 3)), np.ones((3, 3)))
        with pytest.raises(ValueError, match="matches must have shape"):
            loss(np.ones((2, 3)), np.ones((2, 3)), np.eye(3, dtype=bool))
    with pytest.raises(ValueError, match="temperature must be more than 0"):
        losses.contrastive(0)
    with pytest.raises(ValueError, match="negatives must be one of 'hardest', 'all', got 'some'"):
        losses.triplet(negatives="some")


# Boxes.


def random_boxes(generator, *shape):
    return np.concatenate([generator.uniform(0.2, 0.8, (*shape, 2)), generator.uniform(0.1, 0.5, (*shape, 2))], axis=-1)


def iou_twin(box, target):
    (ax, ay, aw, ah), (bx, by, bw, bh) = box, target
    lengths = [(min(p + w / 2, q + v / 2) - max(p - w / 2, q - v / 2),
                max(p + w / 2, q + v / 2) - min(p - w / 2, q - v / 2))
               for p, w, q, v in ((ax, aw, bx, bw), (ay, ah, by, bh))]
    inner, outer = (np.prod([max(0, pair[place]) for pair in lengths]) for place in (0, 1))
    union = aw * ah + bw * bh - inner
    return inner / union - (outer - union) / outer


@SEEDS
def test_generalized_iou(seed):
    generator = np.random.default_rng(seed)
    boxes, targets = random_boxes(generator, 30), random_boxes(generator, 30)
    boxes[:3], targets[:3] = [[0.1, 0.1, 0.1, 0.1]] * 3, [[0.9, 0.9, 0.1, 0.15]] * 3  # apart
    boxes[3], targets[3] = [0.5, 0.5, 0.2, 0.2], [0.51, 0.5, 0.6, 0.7]  # inside
    values, gradients = losses.generalized_iou(boxes, targets)
    assert np.allclose(values, [iou_twin(*pair) for pair in zip(boxes, targets)], atol=1e-12)
    expected = central_differences(lambda: losses.generalized_iou(boxes, targets)[0].sum(), boxes, 1e-7)
    assert np.allclose(gradients, expected, atol=1e-5)
    assert losses.generalized_iou(boxes, boxes)[0] == pytest.approx(1)
    assert losses.generalized_iou(boxes[:, None], targets)[0].shape == (30, 30)


def test_matching_has_the_least_cost():
    costs = np.random.default_rng(0).random((5, 3))
    queries, objects = losses.match_boxes(costs)
    least = min(sum(costs[q, t] for t, q in enumerate(chosen)) for chosen in itertools.permutations(range(5), 3))
    assert costs[queries, objects].sum() == pytest.approx(least)


def test_matching_without_scipy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"pip install 'sherl\[detection\]'"):
        losses.match_boxes(np.ones((2, 2)))


LENGTHS = np.array([4, 2, 5, 3])


def detection_problem(seed, classes=3, extra=0):
    generator = np.random.default_rng(seed)
    rows = LENGTHS.sum()
    outputs = np.concatenate([generator.standard_normal((rows, classes + 1)), random_boxes(generator, rows),
                              generator.standard_normal((rows, extra))], axis=1)
    boxes = [random_boxes(generator, count) for count in (2, 3, 0, 1)]  # one more than queries in the second sample
    return generator, outputs, boxes


def log_softmax(x):
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def matched_twin(costs):
    return [*zip(*losses.match_boxes(costs))]


def box_costs(outputs, classes, targets, chances):
    boxes = outputs[:, classes + 1 : classes + 5]
    return np.array([[-chances[q][t] + 5 * np.abs(box - target).sum() - 2 * iou_twin(box, target)
                      for t, target in enumerate(targets)] for q, box in enumerate(boxes)]).reshape(
                          len(boxes), len(targets))


def detection_twin(outputs, boxes, labels, classes):
    value, weight, objects = 0.0, 0.0, max(1, sum(map(len, boxes)))
    geometry = 0.0
    for rows, targets, label in zip(np.split(outputs, np.cumsum(LENGTHS)[:-1]), boxes, labels):
        logs = log_softmax(rows[:, : classes + 1])
        pairs = dict(matched_twin(box_costs(rows, classes, targets, np.exp(logs)[:, label])))
        for query in range(len(rows)):
            wanted, counts = (label[pairs[query]], 1.0) if query in pairs else (classes, 0.1)
            value, weight = value - counts * logs[query, wanted], weight + counts
        for query, target in pairs.items():
            box = rows[query, classes + 1 : classes + 5]
            geometry += 5 * np.abs(box - targets[target]).sum() + 2 * (1 - iou_twin(box, targets[target]))
    return value / weight + geometry / objects


@SEEDS
def test_detection(seed):
    generator, outputs, boxes = detection_problem(seed, extra=2)
    labels = [generator.integers(0, 3, len(rows)) for rows in boxes]
    targets, loss = losses.box_targets(boxes, labels), losses.detection(3)
    value, gradient = loss(outputs, targets, LENGTHS)
    assert value == pytest.approx(detection_twin(outputs, boxes, labels, 3), rel=1e-12)
    assert np.allclose(gradient, central_differences(lambda: loss(outputs, targets, LENGTHS)[0], outputs, 1e-7),
                       atol=1e-5)
    assert not gradient[:, 8:].any()


def test_detection_where_there_is_no_object():
    _, outputs, _ = detection_problem(0)
    targets = losses.box_targets([[]] * 4, [[]] * 4)
    value, gradient = losses.detection(3)(outputs, targets, LENGTHS)
    assert value == pytest.approx(-log_softmax(outputs[:, :4])[:, 3].mean())
    assert not gradient[:, 4:].any()


def alignment_twin(queries, tokens, positive, temperature):
    s, value = queries @ tokens.T / temperature, 0.0
    for matrix, wanted in ((s, positive), (s.T, positive.T)):
        for row, mine in zip(matrix, wanted):
            if mine.any():
                value += (np.log(np.exp(row).sum()) - row[mine].mean()) / 2
    return value


@SEEDS
def test_contrastive_alignment(seed):
    generator = np.random.default_rng(seed)
    queries, tokens = generator.standard_normal((5, 4)), generator.standard_normal((6, 4))
    positive = generator.random((5, 6)) < 0.3
    value, *gradients = losses.contrastive_alignment(queries, tokens, positive, 0.5)
    assert value == pytest.approx(alignment_twin(queries, tokens, positive, 0.5), rel=1e-12)
    for array, gradient in zip((queries, tokens), gradients, strict=True):
        call = lambda: losses.contrastive_alignment(queries, tokens, positive, 0.5)[0]
        assert np.allclose(gradient, central_differences(call, array, 1e-6), atol=1e-7)


def grounding_twin(outputs, boxes, named, embedded, tokens):
    value, objects = 0.0, max(1, sum(map(len, boxes)))
    for rows, targets, names, texts in zip(np.split(outputs, np.cumsum(LENGTHS)[:-1]), boxes, named, embedded):
        logs = log_softmax(rows[:, : tokens + 1])
        spread = np.zeros((len(targets), tokens + 1))
        spread[:, : names.shape[1]] = names / names.sum(axis=1, keepdims=True)
        pairs = dict(matched_twin(box_costs(rows, tokens, targets, np.exp(logs) @ spread.T)))
        positive = np.zeros((len(rows), len(texts)), bool)
        for query in range(len(rows)):
            if query in pairs:
                value -= spread[pairs[query]] @ logs[query]
                positive[query] = names[pairs[query]] > 0
            else:
                value -= 0.1 * logs[query, -1]
        for query, target in pairs.items():
            box = rows[query, tokens + 1 : tokens + 5]
            value += 5 * np.abs(box - targets[target]).sum() + 2 * (1 - iou_twin(box, targets[target]))
        value += 0.5 * alignment_twin(rows[:, tokens + 5 :], texts, positive, 0.3)
    return value / objects


@SEEDS
def test_grounding(seed):
    generator, outputs, boxes = detection_problem(seed, classes=6, extra=3)
    texts = [generator.standard_normal((length, 3)) for length in (4, 6, 5, 2)]
    named = [np.maximum(generator.random((len(rows), len(text))) < 0.4, np.eye(len(rows), len(text)))
             for rows, text in zip(boxes, texts)]
    targets = losses.grounding_targets(boxes, named, texts)
    loss = losses.grounding(6, align_weight=0.5, temperature=0.3)
    value, gradient = loss(outputs, targets, LENGTHS)
    assert value == pytest.approx(grounding_twin(outputs, boxes, named, texts, 6), rel=1e-12)
    assert np.allclose(gradient, central_differences(lambda: loss(outputs, targets, LENGTHS)[0], outputs, 1e-7),
                       atol=1e-5)


def test_bad_boxes_are_named():
    with pytest.raises(ValueError, match=r"boxes of sample 1 must have shape \(objects, 4\), got \(1, 3\)"):
        losses.box_targets([[[0, 0, 1, 1]], [[0, 0, 1]]], [[0], [0]])
    with pytest.raises(ValueError, match="width and height more than 0"):
        losses.box_targets([[[0, 0, 0, 1]]], [[0]])
    with pytest.raises(ValueError, match="labels must be as many as boxes"):
        losses.box_targets([[[0, 0, 1, 1]]], [[0, 1]])
    with pytest.raises(ValueError, match="tokens of sample 0 must be 0 or 1, with a 1 for each object"):
        losses.grounding_targets([[[0, 0, 1, 1]]], [[[0, 0]]])
    outputs = np.ones((2, 8))
    with pytest.raises(TypeError, match="targets must be an array made by sherl.losses.box_targets, got dtype int64"):
        losses.detection(3)(outputs, np.zeros(1, int), np.array([2]))
    targets = losses.box_targets([[[0, 0, 1, 1]]], [[3]])
    with pytest.raises(ValueError, match="targets must have labels from 0 to 2, got 3"):
        losses.detection(3)(outputs, targets, np.array([2]))
    with pytest.raises(ValueError, match="outputs must have 9 columns or more"):
        losses.detection(4)(outputs, targets, np.array([2]))


@pytest.mark.core
def test_a_detector_learns_to_find_a_box():
    pytest.importorskip("scipy")
    generator = np.random.default_rng(0)
    taps = taps_of(24, 4)
    labels = generator.integers(0, 2, (24, 1))
    boxes = random_boxes(generator, 24, 1)
    taps[-1][:, 1, :4] = 6 * boxes[:, 0]
    taps[-1][:, 1, 4] = 4 * labels[:, 0] - 2
    taps[-1][:, 1, 5] = 5  # this query, and no other, has something to find
    net = network(late=0, head=sherl.Detector(FEATURES, 2, hidden=16))
    targets, loss = losses.box_targets(boxes, labels), losses.detection(2)
    history = net.fit(taps, targets, loss=loss, epochs=60, batch_size=8, learning_rate=1e-2, progress=False,
                      validation=(taps, targets))
    assert history.epochs[-1]["validation_loss"] < 0.4 * history.epochs[0]["validation_loss"]
    outputs = net.forward(taps)
    assert outputs.shape == (24, 4, 7)
    chances = np.exp(outputs[:, :, :3]) / np.exp(outputs[:, :, :3]).sum(axis=2, keepdims=True)
    best = outputs[np.arange(24), chances[:, :, 2].argmin(axis=1)]
    assert (best[:, :2].argmax(axis=1) == labels[:, 0]).mean() > 0.8
    assert losses.generalized_iou(best[:, 3:7], boxes[:, 0])[0].mean() > 0.4
