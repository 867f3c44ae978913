"""Samples with labels and weights, cut into batches that the core takes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from .._typing import Array, ArrayLike, Float64s, Integers, Metric, Source, Spaces, Uint16As
from ..features.layout import Layout
from ..features.rows import offsets_of, select_rows
from .own_loss import read_targets

if TYPE_CHECKING:
    from ..blocks.heads import Head
    from ..network.network import Network


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

    def __init__(self, network: Network, taps: Any, labels: Any, mask: ArrayLike | None = None,
                 positions: ArrayLike | None = None, sample_weight: ArrayLike | None = None, dtype: Uint16As = None,
                 name: str = "labels", own_loss: bool = False, layout: Layout | None = None) -> None:
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

    def __len__(self) -> int:
        return len(self.features)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything, in hexadecimal."""
        digest = hashlib.sha256(self.features.fingerprint.encode())
        for array in (self.labels, self.weights):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def share(self, index: Integers | None = None) -> float:
        """Return the sum of the shares of some samples."""
        return float(self.shares.sum() if index is None else self.shares[index].sum())

    def batch(self, index: Integers | None = None, total: float | None = None) -> tuple[int, Spaces, list[Source]]:
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

    def sources(self, batch: Any) -> list[Source]:
        """Return what a batch of the features gives to a program of the network."""
        return self._network._sources(self.features, batch)

    def targets(self, index: Integers | None = None, total: float | None = None) -> list[Source]:
        """Return labels and weights of some samples as a program's inputs; the arguments are those of `batch`."""
        rows = index
        if self._row_offsets is not None and index is not None:
            rows = select_rows(self._row_offsets, None, index).rows
        weights = self._row_weights if rows is None else self._row_weights[rows]
        total = self.share(index) if total is None else total
        # Where every weight is zero, so is every loss, whatever it is divided by.
        scaled = (weights / (total or 1.0)).astype(_core.REAL).reshape(-1, 1)
        return [*((column, rows) for column in self._columns), (scaled, None)]


def read_head_labels(head: Head, labels: Any, layout: Layout, name: str) -> Array:
    """Return labels as a head reads them."""
    return head._read_labels(labels, layout if head._needs_layout else layout.samples, name)


def score_outputs(head: Head, functions: Mapping[str, Metric], outputs: Array, labels: Array,
                  layout: Layout) -> dict[str, float]:
    """Return the value of each metric function by name."""
    return head._scores(functions, outputs, labels, *([layout] if head._needs_layout else []))


def _sample_weights(values: ArrayLike | None, samples: int) -> Float64s:
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
