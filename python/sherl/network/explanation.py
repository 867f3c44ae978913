"""Which taps a network uses: how its adapter weighs them row by row, and how redundant they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .. import _core, plots
from .._typing import Array, Float64s, Integers, Record
from ..checks import count_of
from ..features.rows import offsets_of
from ..html import html_table
from ..training.progress import PATIENCE, progress_bar
from ..training.scoring import batches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..features.features import Features
    from .inference import Inference

__all__ = ["Explanation"]

BATCH_SIZE = 32  # samples whose reduced features are held at a time
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Explanation:
    """How the adapter of a network weighs its taps over some samples. Made by `SideNetwork.explain`.

    Of every row, tap i has the weight a_i in the sum that the adapter passes on, and the redundancy r_i, which is 1
    where it is like no other tap and the number of taps where all are alike (docs/method.md has the equations). The
    guide, the last tap, comes with every sum in full and is not among them; with spatial guidance it is the tower's
    output.

    Attributes
    ----------
    names : list of str
        Of the taps: what the features say that they are, or "tap 0", "tap 1" …
    weights : numpy.ndarray of float64, shape (rows, taps)
        a_i. They are 0 or more and sum to 1 (but for eps), or are all 0 where the guide picks no tap.
    redundancy : numpy.ndarray of float64, shape (rows, taps)
        r_i.
    lengths : numpy.ndarray of int64, shape (samples,)
        Rows of each sample, one after the other.
    """

    def __init__(self, names: list[str], weights: Float64s, redundancy: Float64s, lengths: Integers) -> None:
        self.names, self.weights, self.redundancy, self.lengths = names, weights, redundancy, lengths

    @property
    def unguided(self) -> float:
        """Share of the rows in which no tap has a weight, so that the guide goes on alone."""
        return float(np.mean(~self.weights.any(axis=1)))

    def by_sample(self) -> Float64s:
        """Return the mean weights of each sample.

        Returns
        -------
        numpy.ndarray of float64, shape (samples, taps)
        """
        return np.add.reduceat(self.weights, offsets_of(self.lengths)[:-1], axis=0) / self.lengths[:, None]

    def quantiles(self, levels: Sequence[float] = _QUANTILES) -> dict[str, Float64s]:
        """Return quantiles over all rows.

        Parameters
        ----------
        levels : sequence of float
            From 0 to 1.

        Returns
        -------
        dict of str to numpy.ndarray of float64, shape (levels, taps)
            Of ``"weights"`` and of ``"redundancy"``.
        """
        return {name: np.quantile(getattr(self, name), levels, axis=0) for name in ("weights", "redundancy")}

    @property
    def table(self) -> list[Record]:
        """Mean and quantiles (5, 50 and 95 %) of weight and redundancy: a dictionary for each tap."""
        low, middle, high = self.quantiles((0.05, 0.5, 0.95))["weights"]
        least, median, most = self.quantiles((0.05, 0.5, 0.95))["redundancy"]
        return [
            {"tap": name, "weight": float(self.weights[:, i].mean()), "weight 5 %": float(low[i]),
             "weight 50 %": float(middle[i]), "weight 95 %": float(high[i]),
             "redundancy": float(self.redundancy[:, i].mean()), "redundancy 5 %": float(least[i]),
             "redundancy 50 %": float(median[i]), "redundancy 95 %": float(most[i])}
            for i, name in enumerate(self.names)
        ]  # fmt: skip

    def plot(self) -> Figure:
        """Draw weights and redundancies by tap: means, and the spread over the rows.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            Without the matplotlib package.
        """
        return plots.explanation(self)

    def __repr__(self) -> str:
        rows = self.table
        names = list(rows[0])
        cells = [names, *([row["tap"], *(f"{row[name]:.3f}" for name in names[1:])] for row in rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(names))]
        lines = ["  ".join(f"{cell:<{width}}" if column == 0 else f"{cell:>{width}}"
                           for column, (cell, width) in enumerate(zip(row, widths))) for row in cells]
        return "\n".join([self._title(), *lines])

    def _repr_html_(self) -> str:
        rows = self.table
        most_used = int(np.argmax([row["weight"] for row in rows]))
        return html_table(self._title(), list(rows[0]), [list(row.values()) for row in rows], most_used)

    def _title(self) -> str:
        return (f"Explanation of {count_of(len(self.lengths), 'sample')}, {count_of(len(self.weights), 'row')}, "
                f"of which {100 * self.unguided:.1f} % use no tap but the guide")


def explain(network: Inference, features: Features, batch_size: int, show: bool) -> Explanation:
    """Return the explanation of a network over features."""
    early = network.early
    rows = np.ones(len(features), np.int64) if early._pooled else features.lengths
    offsets, taps = offsets_of(rows), early.taps if early._pooled else early.taps - 1
    weights, redundancy = np.empty((2, offsets[-1], taps))
    state = network.state_dict()
    weight, bias = (state[f"early.guide.{name}"].astype(np.float64) for name in ("weight", "bias"))
    program = network._programs.consolidation()
    with progress_bar(show, len(features), "explain", delay=PATIENCE) as bar:
        for index in batches(len(features), batch_size):
            batch, place = features.batch(index), slice(offsets[index[0]], offsets[index[-1] + 1])
            reduced = np.empty((taps + 1, place.stop - place.start, early.hidden), _core.REAL)
            program.forward(batch.samples, batch.spaces, features.sources(batch)[: early.taps + early._pooled],
                            [(part, None) for part in reduced])
            weights[place], redundancy[place] = consolidate(reduced, weight[0], bias, early.eps)
            bar.update(len(index))
    return Explanation(_names(features, taps), weights, redundancy, rows)


def consolidate(features: Array, weight: Float64s, bias: Float64s, eps: float) -> tuple[Float64s, Float64s]:
    """Return the weights a_i and the redundancies r_i of each row.

    Parameters
    ----------
    features : numpy.ndarray, shape (taps + 1, rows, hidden)
        x_i, and the guide e as the last.
    weight : numpy.ndarray of float64, shape (hidden,)
    bias : numpy.ndarray of float64, shape (1,)
    eps : float

    Returns
    -------
    tuple of numpy.ndarray of float64, each of shape (rows, taps)
    """
    x = np.ascontiguousarray(features[:-1].transpose(1, 0, 2), np.float64)
    norms = np.linalg.norm(x, axis=2, keepdims=True)
    s = _quotient(x, np.where(norms > 0, norms + eps, 0))  # s_i = x_i / (|x_i| + eps); 0 where x_i is
    r = np.maximum(s @ s.transpose(0, 2, 1), 0).sum(axis=2)  # r_i = sum_j relu(s_i . s_j)
    m = np.maximum(x @ (features[-1] * weight)[:, :, None] + bias, 0)[:, :, 0]  # m_i = relu(w . (x_i * e) + b)
    t = _quotient(m, r)
    return _quotient(t, t.sum(axis=1, keepdims=True) + eps), r


def _quotient(a: Float64s, b: Float64s) -> Float64s:
    """Return a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


def _names(features: Features, taps: int) -> list[str]:
    states = (features.source or {}).get("states")
    if states is None:
        return [f"tap {number}" for number in range(taps)]
    # Taps of other frameworks have names; those of a backbone have numbers.
    return [state if isinstance(state, str) else f"layer {state}" if state else "embedding" for state in states[:taps]]
