"""Losses of detection: boxes matched to queries, class or soft-token cross-entropy, alignment of queries with tokens.

Public names are in `sherl.losses`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._typing import Array, ArrayLike, Float64s, Integers, Loss
from .checks import real_number, whole_number
from .loss_tools import log_softmax, named

NO_OBJECT = 0.1


def box_targets(boxes: Sequence[ArrayLike], labels: Sequence[ArrayLike]) -> Array:
    """Pack the objects of each sample into an array with one entry a sample, which `detection` takes.

    Parameters
    ----------
    boxes : sequence of array_like, each of shape (objects, 4)
        Center x, center y, width, height in shares of the image; width and height more than 0. A sample may have none.
    labels : sequence of array_like of int, each of shape (objects,)
        Class numbers.

    Returns
    -------
    numpy.ndarray, shape (samples,)
        With the fields ``"count"``, ``"boxes"`` and ``"labels"``.
    """
    boxes = _read_boxes(boxes)
    numbers = [np.asarray(label) for label in labels]
    if [len(label) for label in numbers] != [len(rows) for rows in boxes]:
        raise ValueError("labels must be as many as boxes, in each sample")
    most = max(1, *map(len, boxes))
    packed = np.zeros(len(boxes),
                      [("count", np.int64), ("boxes", np.float64, (most, 4)), ("labels", np.int64, (most,))])
    for entry, rows, label in zip(packed, boxes, numbers):
        if len(label) and (label.dtype.kind not in "iu" or label.min() < 0):
            raise ValueError(f"labels must be whole class numbers, 0 or more, got {label!r:.60}")
        entry["count"] = len(rows)
        entry["boxes"][: len(rows)], entry["labels"][: len(rows)] = rows, label
    return packed


def grounding_targets(boxes: Sequence[ArrayLike], tokens: Sequence[ArrayLike],
                      embeddings: Sequence[ArrayLike] | None = None) -> Array:
    """Pack the objects of each sample, and which tokens name them, into an array, which `grounding` takes.

    Parameters
    ----------
    boxes : sequence of array_like, each of shape (objects, 4)
        As for `box_targets`.
    tokens : sequence of array_like, each of shape (objects, tokens)
        1 where a token names the object, at least once for each; the number of tokens may differ between samples.
    embeddings : sequence of array_like, each of shape (tokens, align), optional
        Of the tokens, with l2 norm 1, for the alignment.

    Returns
    -------
    numpy.ndarray, shape (samples,)
        With the fields ``"count"``, ``"boxes"``, ``"length"``, ``"tokens"`` and ``"embeddings"``.
    """
    boxes, tokens = _read_boxes(boxes), _reals(tokens)
    of_tokens = [np.zeros((naming.shape[-1], 0)) for naming in tokens] if embeddings is None else _reals(embeddings)
    if not len(boxes) == len(tokens) == len(of_tokens):
        raise ValueError(f"boxes, tokens and embeddings must have one entry a sample, got {len(boxes)}, {len(tokens)} "
                         f"and {len(of_tokens)}")
    for number, (rows, naming, embedded) in enumerate(zip(boxes, tokens, of_tokens)):
        if naming.ndim != 2 or len(naming) != len(rows) or naming.shape[1] != len(embedded):
            raise ValueError(f"tokens of sample {number} must have shape (objects, tokens) = "
                             f"{(len(rows), len(embedded))}, got {naming.shape}")
        if not np.isin(naming, (0, 1)).all() or not naming.any(axis=1).all():
            raise ValueError(f"tokens of sample {number} must be 0 or 1, with a 1 for each object")
    most, longest = max(1, *map(len, boxes)), max(len(rows) for rows in of_tokens)
    packed = np.zeros(len(boxes), [
        ("count", np.int64), ("boxes", np.float64, (most, 4)), ("length", np.int64),
        ("tokens", np.float64, (most, longest)), ("embeddings", np.float64, (longest, of_tokens[0].shape[-1])),
    ])
    for entry, rows, naming, embedded in zip(packed, boxes, tokens, of_tokens):
        entry["count"], entry["length"] = len(rows), len(embedded)
        entry["boxes"][: len(rows)], entry["tokens"][: len(rows), : naming.shape[1]] = rows, naming
        entry["embeddings"][: len(embedded)] = embedded
    return packed


def box_l1(boxes: ArrayLike, targets: ArrayLike) -> tuple[float, Float64s]:
    """L1 distance of boxes, summed over the boxes and their four numbers.

    Parameters
    ----------
    boxes, targets : array_like, shape (boxes, 4)

    Returns
    -------
    float, numpy.ndarray of shape (boxes, 4)
        The loss and its gradient with respect to `boxes`.
    """
    difference = np.asarray(boxes, np.float64) - np.asarray(targets, np.float64)
    return float(np.abs(difference).sum()), np.sign(difference)


def generalized_iou(boxes: ArrayLike, targets: ArrayLike) -> tuple[Float64s, Float64s]:
    """Generalized intersection over union of each box with its target, and its gradient.

    ``I/U - (C - U)/C`` with I the area of the intersection, U that of the union and C that of the smallest box around
    both (Rezatofighi et al., 2019).

    Parameters
    ----------
    boxes, targets : array_like, shape (..., 4)
        Center x, center y, width, height; leading dimensions broadcast.

    Returns
    -------
    numpy.ndarray of shape (...), numpy.ndarray of shape (..., 4)
        The values, from -1 to 1, and their gradients with respect to `boxes`.
    """
    boxes, targets = np.broadcast_arrays(np.asarray(boxes, np.float64), np.asarray(targets, np.float64))
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    target_low, target_high = targets[..., :2] - targets[..., 2:] / 2, targets[..., :2] + targets[..., 2:] / 2
    overlap = np.minimum(high, target_high) - np.maximum(low, target_low)
    shared, around = np.maximum(overlap, 0), np.maximum(high, target_high) - np.minimum(low, target_low)
    inner, outer = shared.prod(axis=-1, keepdims=True), around.prod(axis=-1, keepdims=True)
    union = boxes[..., 2:].prod(axis=-1, keepdims=True) + targets[..., 2:].prod(axis=-1, keepdims=True) - inner
    values = inner / union - 1 + union / outer

    # By the sides along one axis: the other axis' length times what a side adds to this one's.
    of_inner, of_union, of_outer = 1 / union, 1 / outer - inner / union**2, -union / outer**2
    inner_gradient = (of_inner - of_union) * shared[..., ::-1] * (overlap > 0)
    outer_gradient = of_outer * around[..., ::-1]
    of_low = -inner_gradient * (low > target_low) - outer_gradient * (low < target_low)
    of_high = inner_gradient * (high < target_high) + outer_gradient * (high > target_high)
    of_sizes = (of_high - of_low) / 2 + of_union * boxes[..., :1:-1]
    return values[..., 0], np.concatenate([of_low + of_high, of_sizes], axis=-1)


def match_boxes(costs: ArrayLike) -> tuple[Integers, Integers]:
    """Assign targets to queries so that the sum of the costs is least.

    Parameters
    ----------
    costs : array_like, shape (queries, targets)

    Returns
    -------
    numpy.ndarray of int, numpy.ndarray of int
        Numbers of queries and of the targets that they get; as many as the smaller of both.

    Raises
    ------
    ImportError
        Without the scipy package.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise ImportError("matching boxes needs the scipy package: pip install 'sherl[detection]'") from None
    queries, targets = linear_sum_assignment(costs)
    return queries, targets


def detection(classes: int, class_weight: float = 1.0, l1_weight: float = 5.0, giou_weight: float = 2.0,
              no_object: float = NO_OBJECT) -> Loss:
    """The loss of DETR over a `Detector`'s outputs: each object gets a query, the other queries "no object".

    The matching has the least sum of ``-p(class) class_weight + L1 l1_weight - GIoU giou_weight``. The loss is the
    cross-entropy over all queries, weighted by `no_object` where that is the target, as a weighted mean, times
    `class_weight`; and of matched queries the L1 distance and 1 - GIoU of the boxes, over the number of objects in the
    batch (1 where there is none), times their weights. Carion et al., "End-to-End Object Detection with Transformers"
    (2020).

    Parameters
    ----------
    classes : int
        As of the `Detector`.
    class_weight, l1_weight, giou_weight, no_object : float

    Returns
    -------
    callable
        Takes outputs, targets of `box_targets`, and lengths. Columns after the box get no gradient.
    """
    classes = whole_number(classes, "classes", 1)
    weights = _weights(class_weight, l1_weight, giou_weight, no_object)

    def loss(outputs: Array, targets: Array, lengths: Integers) -> tuple[float, Float64s]:
        _check_fields(targets, "box_targets", "labels")
        if (targets["labels"] >= classes).any():
            raise ValueError(f"targets must have labels from 0 to {classes - 1}, got {targets['labels'].max()}")
        logits, boxes = _columns_of(outputs, classes)
        log_chances = log_softmax(logits)
        wanted, matched = np.full(len(logits), classes), []
        for rows, entry in zip(_samples(lengths), targets):
            labels = entry["labels"][: entry["count"]]
            costs = -weights["classes"] * np.exp(log_chances[rows][:, labels])
            queries, objects = _matched(costs, boxes[rows], entry, weights)
            wanted[rows][queries] = labels[objects]
            matched.append((rows.start + queries, entry["boxes"][objects]))
        counts = np.where(wanted == classes, weights["no_object"], 1.0)
        chosen = np.arange(len(logits)), wanted
        scale = weights["classes"] * counts / (counts.sum() or 1.0)
        gradient = np.zeros(outputs.shape)
        gradient[:, : classes + 1] = scale[:, None] * np.exp(log_chances)
        gradient[chosen] -= scale
        value = -np.sum(scale * log_chances[chosen])
        return value + _add_boxes(gradient, classes, boxes, matched, _objects(targets), weights), gradient

    return named(loss, f"detection(classes={classes}, {_described(weights)})")


def grounding(tokens: int, class_weight: float = 1.0, l1_weight: float = 5.0, giou_weight: float = 2.0,
              align_weight: float = 0.0, no_object: float = NO_OBJECT, temperature: float = 0.07) -> Loss:
    """The loss of MDETR over a `Detector`'s outputs: matched boxes, soft tokens, and alignment with tokens.

    The logits of a query are over `tokens` positions of the text and "no object". A matched query's target is spread
    evenly over the tokens that name its object. The soft-token loss is the sum over the queries of the cross-entropy,
    times `no_object` where nothing was matched, over the number of objects in the batch; boxes are as in `detection`,
    the matching takes the softmax' mean over the tokens of the object for p. With `align_weight` the alignment (see
    `contrastive_alignment`) of the last columns of the outputs with the embeddings of the tokens is added, over the
    number of objects. Kamath et al., "MDETR" (2021).

    Parameters
    ----------
    tokens : int
        As `classes` of the `Detector`; the longest text may have as many.
    class_weight, l1_weight, giou_weight, align_weight, no_object : float
    temperature : float
        Of the alignment.

    Returns
    -------
    callable
        Takes outputs, targets of `grounding_targets`, and lengths.
    """
    tokens = whole_number(tokens, "tokens", 1)
    weights = _weights(class_weight, l1_weight, giou_weight, no_object)
    align_weight = real_number(align_weight, "align_weight", least=0.0)
    temperature = real_number(temperature, "temperature", above=0.0)

    def loss(outputs: Array, targets: Array, lengths: Integers) -> tuple[float, Float64s]:
        _check_fields(targets, "grounding_targets", "tokens")
        named, embeddings = targets["tokens"], targets["embeddings"]
        if named.shape[2] > tokens:
            raise ValueError(f"targets must have {tokens} tokens or fewer, got {named.shape[2]}")
        if align_weight and embeddings.shape[2] != outputs.shape[1] - tokens - 5:
            raise ValueError(f"targets must have embeddings of the {outputs.shape[1] - tokens - 5} align columns of "
                             f"the outputs, got {embeddings.shape[2]}")
        logits, boxes = _columns_of(outputs, tokens)
        log_chances, gradient = log_softmax(logits), np.zeros(outputs.shape)
        wanted = np.zeros(logits.shape)
        wanted[:, -1] = weights["no_object"]
        matched, aligned, objects_in_all = [], 0.0, _objects(targets)
        for rows, entry in zip(_samples(lengths), targets):
            of_objects = entry["tokens"][: entry["count"]]
            spread = np.zeros((entry["count"], tokens + 1))
            spread[:, : of_objects.shape[1]] = of_objects / of_objects.sum(axis=1, keepdims=True)
            costs = -weights["classes"] * np.exp(log_chances[rows]) @ spread.T
            queries, objects = _matched(costs, boxes[rows], entry, weights)
            wanted[rows][queries] = spread[objects]
            matched.append((rows.start + queries, entry["boxes"][objects]))
            if align_weight:
                positive = np.zeros((rows.stop - rows.start, entry["length"]), bool)
                positive[queries] = of_objects[objects][:, : entry["length"]] > 0
                value, of_queries, _ = contrastive_alignment(
                    outputs[rows, tokens + 5 :], entry["embeddings"][: entry["length"]], positive, temperature)
                aligned += value
                gradient[rows, tokens + 5 :] = align_weight / objects_in_all * of_queries
        scale = weights["classes"] / objects_in_all
        gradient[:, : tokens + 1] = scale * (np.exp(log_chances) * wanted.sum(axis=1, keepdims=True) - wanted)
        value = -scale * np.sum(wanted * log_chances) + align_weight / objects_in_all * aligned
        return value + _add_boxes(gradient, tokens, boxes, matched, objects_in_all, weights), gradient

    name = f"tokens={tokens}, {_described(weights)}, align_weight={align_weight}, temperature={temperature}"
    return named(loss, f"grounding({name})")


def contrastive_alignment(queries: ArrayLike, tokens: ArrayLike, positive: ArrayLike,
                          temperature: float = 0.07) -> tuple[float, Float64s, Float64s]:
    """Draw queries and the tokens that name their objects together: MDETR's contrastive alignment, for one sample.

    With s = queries tokens^T / temperature, the mean of two sums: over the queries that have tokens,
    ``log sum_t exp(s_qt) - mean_{t of q} s_qt``, and the same over the tokens that have queries.

    Parameters
    ----------
    queries : array_like, shape (queries, channels)
    tokens : array_like, shape (tokens, channels)
    positive : array_like of bool, shape (queries, tokens)
        Which go together.
    temperature : float

    Returns
    -------
    float
    numpy.ndarray, shape (queries, channels)
        The gradient with respect to `queries`.
    numpy.ndarray, shape (tokens, channels)
        That with respect to `tokens`.
    """
    queries, tokens = np.asarray(queries, np.float64), np.asarray(tokens, np.float64)
    positive = np.asarray(positive, np.float64)
    if positive.shape != (len(queries), len(tokens)):
        raise ValueError(f"positive must have shape {(len(queries), len(tokens))}, got {positive.shape}")
    similarity, value, gradient = queries @ tokens.T / temperature, 0.0, np.zeros(positive.shape)
    for s, wanted, into in ((similarity, positive, gradient), (similarity.T, positive.T, gradient.T)):
        found = wanted.any(axis=1)
        share = wanted[found] / wanted[found].sum(axis=1, keepdims=True)
        log_chances = log_softmax(s[found])
        value -= np.sum(share * log_chances) / 2
        into[found] += (np.exp(log_chances) - share) / 2
    return float(value), gradient @ tokens / temperature, gradient.T @ queries / temperature


def _reals(arrays: Sequence[ArrayLike]) -> list[Float64s]:
    return [np.asarray(array, np.float64) for array in arrays]


def _read_boxes(boxes: Sequence[ArrayLike]) -> list[Float64s]:
    read = [np.asarray(rows, np.float64).reshape(-1, 4) if np.size(rows) == 0 else np.asarray(rows, np.float64)
            for rows in boxes]
    if not read:
        raise ValueError("boxes must have at least one sample, got none")
    for number, rows in enumerate(read):
        if rows.ndim != 2 or rows.shape[1] != 4:
            raise ValueError(f"boxes of sample {number} must have shape (objects, 4), got {rows.shape}")
        if not np.isfinite(rows).all() or (rows[:, 2:] <= 0).any():
            raise ValueError(f"boxes of sample {number} must be finite, with width and height more than 0")
    return read


def _weights(classes: float, l1: float, giou: float, no_object: float) -> dict[str, float]:
    given = {"classes": (classes, "class_weight"), "l1": (l1, "l1_weight"), "giou": (giou, "giou_weight"),
             "no_object": (no_object, "no_object")}
    return {key: real_number(value, name, least=0.0) for key, (value, name) in given.items()}


def _described(weights: dict[str, float]) -> str:
    return ", ".join(f"{name}={value}" for name, value in weights.items())


def _check_fields(targets: Array, maker: str, field: str) -> None:
    if targets.dtype.names is None or field not in targets.dtype.names:
        raise TypeError(f"targets must be an array made by sherl.losses.{maker}, got dtype {targets.dtype}")


def _columns_of(outputs: Array, classes: int) -> tuple[Float64s, Float64s]:
    if outputs.ndim != 2 or outputs.shape[1] < classes + 5:
        raise ValueError(f"outputs must have {classes + 5} columns or more, as a Detector of {classes} classes gives, "
                         f"got shape {outputs.shape}")
    outputs = np.asarray(outputs, np.float64)
    return outputs[:, : classes + 1], outputs[:, classes + 1 : classes + 5]


def _samples(lengths: Integers) -> list[slice]:
    ends = np.cumsum(lengths)
    return [slice(int(end - length), int(end)) for end, length in zip(ends, lengths)]


def _objects(targets: Array) -> float:
    return float(max(1, targets["count"].sum()))


def _matched(costs: Array, boxes: Float64s, entry: Array, weights: dict[str, float]) -> tuple[Integers, Integers]:
    """Return the queries of a sample, counted within it, and their objects."""
    targets = entry["boxes"][: entry["count"]]
    distance = np.abs(boxes[:, None] - targets).sum(axis=2)
    return match_boxes(costs + weights["l1"] * distance - weights["giou"] * generalized_iou(boxes[:, None], targets)[0])


def _add_boxes(gradient: Float64s, classes: int, boxes: Float64s, matched: list[tuple[Integers, Float64s]],
               objects: float, weights: dict[str, float]) -> float:
    """Add the gradient of the losses of matched boxes, and return their value."""
    queries = np.concatenate([numbers for numbers, _ in matched])
    targets = np.concatenate([rows for _, rows in matched])
    distance, of_distance = box_l1(boxes[queries], targets)
    overlap, of_overlap = generalized_iou(boxes[queries], targets)
    l1, giou = weights["l1"] / objects, weights["giou"] / objects
    gradient[queries, classes + 1 : classes + 5] = l1 * of_distance - giou * of_overlap
    return l1 * distance + giou * np.sum(1 - overlap)
