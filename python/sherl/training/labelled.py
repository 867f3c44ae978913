"""Samples with labels and weights, cut into batches that the core takes."""

import hashlib

import numpy as np

from .. import _core
from .own_loss import read_targets


class Labelled:
    """Features, labels, and by what each sample's loss counts in a mean.

    Attributes
    ----------
    features : Features
    labels : numpy.ndarray, shape (samples, 1 or outputs)
        As the head reads them; with `own_loss` as given, one entry a sample.
    weights : numpy.ndarray of float64, shape (samples,)
        What a sample's loss is multiplied by; they are divided by the sum of `shares` over the batch.
    shares : numpy.ndarray of float64, shape (samples,)
        What a sample adds to the divisor of the mean: its weight times that of its class.
    """

    def __init__(self, network, taps, labels, mask=None, positions=None, sample_weight=None, dtype=None, name="labels",
                 own_loss=False):
        self._network = network
        self.features = network._features(taps, mask, positions, dtype)
        self.weights = _sample_weights(sample_weight, len(self.features))
        if own_loss:
            if sample_weight is not None:
                raise ValueError("sample_weight must be left out with loss; labels may hold weights for it")
            self.labels, self.shares = read_targets(labels, len(self.features), name), self.weights
            return
        self.labels = network.head._read_labels(labels, len(self.features), name)
        self.shares = self.weights * network.head._shares(self.labels)

    def __len__(self):
        return len(self.features)

    @property
    def fingerprint(self):
        """SHA-256 of everything, in hexadecimal."""
        digest = hashlib.sha256(self.features.fingerprint.encode())
        for array in (self.labels, self.weights):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def share(self, index=None):
        """Return the sum of the shares of some samples."""
        return float(self.shares.sum() if index is None else self.shares[index].sum())

    def batch(self, index=None, total=None):
        """Return some samples as the arguments of a program with a loss.

        Parameters
        ----------
        index : numpy.ndarray of int64, optional
            Numbers of the samples; all when None.
        total : float, optional
            What the loss is divided by; the samples' own share when None.

        Returns
        -------
        tuple
            (samples, offsets, inputs)
        """
        batch = self.features.batch(index)
        return batch.samples, batch.spaces, [*self.sources(batch), *self.targets(index, total)]

    def sources(self, batch):
        """Return what a batch of the features gives to a program of the network."""
        return self._network._sources(self.features, batch)

    def targets(self, index=None, total=None):
        """Return labels and weights of some samples as a program's inputs; the arguments are those of `batch`."""
        weights = self.weights if index is None else self.weights[index]
        total = self.share(index) if total is None else total
        # Where every weight is zero, so is every loss, whatever it is divided by.
        scaled = (weights / (total or 1.0)).astype(_core.REAL).reshape(-1, 1)
        return [(self.labels, index), (scaled, None)]


def _sample_weights(values, samples):
    if values is None:
        return np.ones(samples)
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"sample_weight must be numbers: {error}") from error
    if array.shape != (samples,):
        raise ValueError(f"sample_weight must have shape (samples,) = ({samples},), got {array.shape}")
    if not np.isfinite(array).all() or array.min() < 0 or array.max() == 0:
        raise ValueError("sample_weight must be finite, 0 or more, and not all 0")
    return array
