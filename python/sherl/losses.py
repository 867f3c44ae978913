"""Losses for `loss=` of `fit` and `stepper`: functions (outputs, targets) -> (loss, gradient), in plain NumPy."""

import numpy as np

from .checks import real_number

__all__ = ["focal", "supervised_contrastive"]


def supervised_contrastive(temperature=0.1):
    """Supervised contrastive loss, which draws samples of a class together and apart from the others of the batch.

    With z the outputs divided by their l2 norms, P(i) the other samples of i's class and A(i) all other samples::

        1/n sum_i -1/|P(i)| sum_{p in P(i)} log( exp(s_ip) / sum_{a in A(i)} exp(s_ia) ),  s_ij = z_i . z_j / temperature

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

    def loss(outputs, targets):
        targets = _one_each(targets, len(outputs))
        x = np.asarray(outputs, np.float64)
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
        z = x * scale
        others = ~np.eye(len(z), dtype=bool)
        positive = (targets[:, None] == targets) & others
        anchors = positive.any(axis=1)
        share = positive[anchors] / positive[anchors].sum(axis=1, keepdims=True)
        similarity = np.where(others, z @ z.T / temperature, -np.inf)[anchors]
        log_share = _log_softmax(similarity)
        value = np.sum(share * np.where(share > 0, -log_share, 0.0)) / len(z)
        of_similarity = np.zeros(others.shape)
        of_similarity[anchors] = (np.exp(log_share) - share) / len(z)
        of_z = (of_similarity + of_similarity.T) @ z / temperature
        return value, scale * (of_z - z * np.sum(z * of_z, axis=1, keepdims=True))

    return _named(loss, f"supervised_contrastive(temperature={temperature})")


def focal(gamma=2.0):
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

    def loss(outputs, targets):
        targets = _class_numbers(targets, outputs.shape)
        x, chosen = np.asarray(outputs, np.float64), (np.arange(len(outputs)), targets)
        log_all = _log_softmax(x)
        rest = np.exp(log_all)
        of_outputs = -rest
        of_outputs[chosen] = rest[chosen] = 0.0
        missing = rest.sum(axis=1)  # 1 - p, exact where p is almost 1
        log_p = np.where(missing < 0.5, np.log1p(-np.minimum(missing, 0.5)), log_all[chosen])
        of_outputs[chosen] = missing
        ratio = np.divide(log_p, missing, out=np.full(len(x), -1.0), where=missing > 0)
        of_log_p = missing**gamma * (gamma * np.exp(log_p) * ratio - 1)
        return -np.mean(missing**gamma * log_p), of_log_p[:, None] * of_outputs / len(x)

    return _named(loss, f"focal(gamma={gamma})")


def _log_softmax(x):
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _one_each(targets, samples):
    targets = np.asarray(targets)
    if targets.shape != (samples,):
        raise ValueError(f"targets must have shape (samples,) = ({samples},), got {targets.shape}")
    return targets


def _class_numbers(targets, shape):
    targets = _one_each(targets, shape[0])
    if targets.dtype.kind not in "biu":
        raise TypeError(f"targets must be whole class numbers, got dtype {targets.dtype}")
    if targets.min() < 0 or targets.max() >= shape[1]:
        found = f"{targets.min()} to {targets.max()}"
        raise ValueError(f"targets must be class numbers from 0 to {shape[1] - 1}, got {found}")
    return targets.astype(np.int64)


def _named(loss, name):
    """Return the loss under a name with its settings, by which checkpoints tell it from others."""
    loss.__name__ = loss.__qualname__ = name
    loss.__module__ = __name__
    return loss
