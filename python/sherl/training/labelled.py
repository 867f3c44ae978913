"""Samples with labels and weights, cut into batches that the core takes."""

import hashlib

import numpy as np

from .. import _core
from ..features.rows import offsets_of, select_rows
from .own_loss import read_targets


class Labelled:
    """Features, labels, and by what each sample's loss counts in a mean.

    Attributes
    ----------
    features : Features
    layout : Layout
        Of the rows, as they were given.
    labels : numpy.ndarray, shape (samples or rows, 1 or outputs)
        As the head reads them; with `own_loss` as given, one entry a sample.
    weights : numpy.ndarray of float64, shape (samples,)
        What a sample's loss is multiplied by; they are divided by the sum of `shares` over the batch.
    shares : numpy.ndarray of float64, shape (samples,)
        What a sample adds to the divisor of the mean: its weight times that of its class, or the sum of these over its
        rows that count.
    """

    def __init__(self, network, taps, labels, mask=None, positions=None, sample_weight=None, dtype=None, name="labels",
                 own_loss=False, layout=None):
        self._network = network
        self.features = network._features(taps, mask, positions, dtype)
        self.layout = layout or network._layout(taps, self.features)
        self.weights = _sample_weights(sample_weight, len(self.features))
        if own_loss:
            if sample_weight is not None:
                raise ValueError("sample_weight must be left out with loss; labels may hold weights for it")
            self.labels, self.shares = read_targets(labels, len(self.features), name), self.weights
            return
        head = network.head
        if not head._has_loss:
            raise ValueError(f"a network with the head {type(head).__name__} has no loss of its own: pass loss=")
        self.labels = read_head_labels(head, labels, self.layout, name)
        self._columns = head._columns(self.labels)
        self._row_weights, self._row_offsets = self.weights, None
        if not head._loss_each_row:
            self.shares = self.weights * head._shares(self.labels)
            return
        self._row_offsets = offsets_of(self.layout.lengths)
        self._row_weights = np.repeat(self.weights, self.layout.lengths) * head._counts(self.labels)
        shares = self._row_weights * head._shares(self.labels)
        self.shares = np.add.reduceat(shares, self._row_offsets[:-1])

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
        rows = index
        if self._row_offsets is not None and index is not None:
            rows = select_rows(self._row_offsets, None, index).rows
        weights = self._row_weights if rows is None else self._row_weights[rows]
        total = self.share(index) if total is None else total
        # Where every weight is zero, so is every loss, whatever it is divided by.
        scaled = (weights / (total or 1.0)).astype(_core.REAL).reshape(-1, 1)
        return [*((column, rows) for column in self._columns), (scaled, None)]


def read_head_labels(head, labels, layout, name):
    """Return labels as a head reads them."""
    return head._read_labels(labels, layout if head._needs_layout else layout.samples, name)


def score_outputs(head, functions, outputs, labels, layout):
    """Return the value of each metric function by name."""
    return head._scores(functions, outputs, labels, *([layout] if head._needs_layout else []))


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
        raise ValueError("sample_weight must be finite, zero or more, and not all zero")
    return array
