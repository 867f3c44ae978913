"""Losses for `loss=`, in plain NumPy with exact gradients.

Of `fit` and `stepper` of a network they are functions (outputs, targets) -> (loss, gradient), or with outputs for every
row (outputs, targets, lengths); of a `DualEncoder` functions (a, b, matches) -> (loss, gradient of a, gradient of b).
"""

from __future__ import annotations

import numpy as np

from ._typing import Array, ArrayLike, Bools, Float64s, Integers, Loss, PairLoss
from .box_losses import (
    box_l1,
    box_targets,
    contrastive_alignment,
    detection,
    generalized_iou,
    grounding,
    grounding_targets,
    match_boxes,
)
from .checks import one_of, real_number
from .loss_tools import log_softmax, made, named

__all__ = [
    "box_l1",
    "box_targets",
    "contrastive",
    "contrastive_alignment",
    "detection",
    "focal",
    "generalized_iou",
    "grounding",
    "grounding_targets",
    "match_boxes",
    "supervised_contrastive",
    "triplet",
]


def supervised_contrastive(temperature: float = 0.1) -> Loss:
    """Supervised contrastive loss, which draws samples of a class together and apart from the others of the batch.

    With z the outputs divided by their l2 norms, P(i) the other samples of i's class and A(i) all other samples::

        1/n sum_i -1/|P(i)| sum_{p in P(i)} log( exp(s_ip) / sum_{a in A(i)} exp(s_ia) ),  s_ij = z_i . z_j /
        temperature

    which is equation 2 of Khosla et al., "Supervised Contrastive Learning" (2020), over n, the samples of the batch. A
    sample that is alone in its class adds 0. Outputs that are all zero have no direction: z is 0, without a gradient.

    Parameters
    ----------
    temperature : float
        More than 0.

    Returns
    -------
    callable
        Takes outputs (samples, outputs) and targets, class labels of any type of shape (samples,).
    """
    temperature = real_number(temperature, "temperature", above=0)

    def loss(outputs: Array, targets: Array) -> tuple[float, Float64s]:
        targets = _one_each(targets, len(outputs))
        x = np.asarray(outputs, np.float64)
        z, scale = _unit(x)
        others = ~np.eye(len(z), dtype=bool)
        positive = (targets[:, None] == targets) & others
        anchors = positive.any(axis=1)
        share = positive[anchors] / positive[anchors].sum(axis=1, keepdims=True)
        similarity = np.where(others, z @ z.T / temperature, -np.inf)[anchors]
        log_share = log_softmax(similarity)
        value = np.sum(share * np.where(share > 0, -log_share, 0.0)) / len(z)
        of_similarity = np.zeros(others.shape)
        of_similarity[anchors] = (np.exp(log_share) - share) / len(z)
        of_z = (of_similarity + of_similarity.T) @ z / temperature
        return value, _through_unit(of_z, z, scale)

    return named(loss, f"supervised_contrastive(temperature={temperature})")


def focal(gamma: float = 2.0) -> Loss:
    """Focal loss, a cross-entropy that turns to the samples which are classified badly.

    The mean over the samples of ``-(1 - p)**gamma log(p)`` with p the softmax probability of a sample's class: equation
    4 of Lin et al., "Focal Loss for Dense Object Detection" (2017), for any number of classes. With gamma = 0 it is the
    cross-entropy.

    Parameters
    ----------
    gamma : float
        0 or more.

    Returns
    -------
    callable
        Takes outputs (samples, classes) and targets, class numbers of shape (samples,).
    """
    gamma = real_number(gamma, "gamma", least=0)

    def loss(outputs: Array, targets: Array) -> tuple[float, Float64s]:
        targets = _class_numbers(targets, outputs.shape)
        x, chosen = np.asarray(outputs, np.float64), (np.arange(len(outputs)), targets)
        log_all = log_softmax(x)
        rest = np.exp(log_all)
        of_outputs = -rest
        of_outputs[chosen] = rest[chosen] = 0.0
        missing = rest.sum(axis=1)  # 1 - p, exact where p is almost 1
        log_p = np.where(missing < 0.5, np.log1p(-np.minimum(missing, 0.5)), log_all[chosen])
        of_outputs[chosen] = missing
        ratio = np.divide(log_p, missing, out=np.full(len(x), -1.0), where=missing > 0)
        of_log_p = missing**gamma * (gamma * np.exp(log_p) * ratio - 1)
        return -np.mean(missing**gamma * log_p), of_log_p[:, None] * of_outputs / len(x)

    return named(loss, f"focal(gamma={gamma})")


def contrastive(temperature: float | None = 0.05) -> PairLoss:
    """Symmetric cross-entropy over the similarities of pairs: each item finds its own among those of the batch.

    With s_ij = a_i . b_j / temperature, where a and b were divided by their l2 norms::

        1/(2n) sum_i -log softmax_j(s_ij)_i + 1/(2n) sum_j -log softmax_i(s_ij)_j

    as in Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021). Items of the
    batch that match beside their pair (an image that is there twice, say) are left out of each other's sums.

    Parameters
    ----------
    temperature : float or None
        More than 0. None takes the products a_i . b_j as they are, which goes with ``Embedding(temperature=…)``, where
        the temperature is learned.

    Returns
    -------
    callable
        Takes a and b (pairs, channels), and matches, bool of shape (pairs, pairs), or None where only a row's own pair
        matches. Gives the loss and its gradients with respect to a and b.
    """
    if temperature is not None:
        temperature = real_number(temperature, "temperature", above=0)

    def loss(a: Array, b: Array, matches: Bools | None = None) -> tuple[float, Float64s, Float64s]:
        a, b, others = _pairs_of(a, b, matches)
        (unit_a, scale_a), (unit_b, scale_b) = (_unit(x) if temperature else (x, np.ones((1, 1))) for x in (a, b))
        similarity = np.where(others, -np.inf, unit_a @ unit_b.T / (temperature or 1.0))
        by_row, by_column = log_softmax(similarity), log_softmax(similarity.T).T
        pairs = np.eye(len(a))
        value = -(np.trace(by_row) + np.trace(by_column)) / (2 * len(a))
        of_similarity = (np.exp(by_row) + np.exp(by_column) - 2 * pairs) / (2 * len(a) * (temperature or 1.0))
        gradients = of_similarity @ unit_b, of_similarity.T @ unit_a
        if temperature is None:
            return value, *gradients
        return value, _through_unit(gradients[0], unit_a, scale_a), _through_unit(gradients[1], unit_b, scale_b)

    return made(loss, "contrastive", temperature=temperature)


def triplet(margin: float = 0.2, negatives: str = "hardest", reduction: str = "sum") -> PairLoss:
    """Hinge loss over pairs and negatives of the batch, in both directions.

    With s_ij = a_i . b_j, of outputs that have l2 norm 1::

        sum_i max_j [margin - s_ii + s_ij]_+ + sum_j max_i [margin - s_jj + s_ij]_+      i, j no match

    or with sums in place of the maxima (Faghri et al., "VSE++", 2018). Of several negatives that are equally hard the
    first counts.

    Parameters
    ----------
    margin : float
    negatives : {"hardest", "all"}
    reduction : {"sum", "mean"}
        Over the pairs; the published settings take the sum.

    Returns
    -------
    callable
        As of `contrastive`.
    """
    margin = real_number(margin, "margin", least=0)
    hardest = one_of(negatives, "negatives", ("hardest", "all")) == "hardest"
    one_of(reduction, "reduction", ("sum", "mean"))

    def loss(a: Array, b: Array, matches: Bools | None = None) -> tuple[float, Float64s, Float64s]:
        a, b, others = _pairs_of(a, b, matches)
        similarity = a @ b.T
        own = np.diag(similarity)
        left_out = others | np.eye(len(a), dtype=bool)
        value, of_similarity = 0.0, np.zeros(similarity.shape)
        for s, skipped, into in ((similarity, left_out, of_similarity), (similarity.T, left_out.T, of_similarity.T)):
            costs = np.where(skipped, 0.0, np.maximum(margin - own[:, None] + s, 0.0))
            active = costs > 0
            if hardest:
                active &= np.arange(len(a)) == costs.argmax(axis=1)[:, None]
            value += costs[active].sum()
            into += active
            into[np.diag_indices(len(a))] -= active.sum(axis=1)
        scale = 1.0 if reduction == "sum" else 1.0 / len(a)
        return scale * value, scale * of_similarity @ b, scale * of_similarity.T @ a

    return made(loss, "triplet", margin=margin, negatives=negatives, reduction=reduction)


def _pairs_of(a: ArrayLike, b: ArrayLike, matches: ArrayLike | None) -> tuple[Float64s, Float64s, Bools]:
    """Return a and b in float64, and where row i and row j match without being a pair."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"a and b must have one shape (pairs, channels), got {a.shape} and {b.shape}")
    if matches is None:
        return a, b, np.zeros((len(a), len(a)), bool)
    matches = np.asarray(matches, bool)
    if matches.shape != (len(a), len(a)):
        raise ValueError(f"matches must have shape (pairs, pairs) = {(len(a), len(a))}, got {matches.shape}")
    return a, b, matches & ~np.eye(len(a), dtype=bool)


def _unit(x: Float64s) -> tuple[Float64s, Float64s]:
    """Return rows divided by their l2 norms, and by what they were multiplied; rows of zeros stay."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    return x * scale, scale


def _through_unit(gradient: Float64s, unit: Float64s, scale: Float64s) -> Float64s:
    """Return the gradient with respect to the rows before they were divided."""
    along: Float64s = np.sum(unit * gradient, axis=1, keepdims=True)
    return scale * (gradient - unit * along)


def _one_each(targets: ArrayLike, samples: int) -> Array:
    targets = np.asarray(targets)
    if targets.shape != (samples,):
        raise ValueError(f"targets must have shape (samples,) = ({samples},), got {targets.shape}")
    return targets


def _class_numbers(targets: ArrayLike, shape: tuple[int, ...]) -> Integers:
    targets = _one_each(targets, shape[0])
    if targets.dtype.kind not in "biu":
        raise TypeError(f"targets must be whole class numbers, got dtype {targets.dtype}")
    if targets.min() < 0 or targets.max() >= shape[1]:
        found = f"{targets.min()} to {targets.max()}"
        raise ValueError(f"targets must be class numbers from 0 to {shape[1] - 1}, got {found}")
    return targets.astype(np.int64)
