"""What a fit reports back."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

from .. import plots
from .._typing import Record
from ..checks import count_of
from ..html import html_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["History"]


class History:
    """Course of a training.

    Attributes
    ----------
    epochs : list of dict
        One for each whole epoch: ``"epoch"`` (from 1), ``"loss"`` (mean over the epoch), ``"learning_rate"`` (of its
        last step), ``"seconds"``, and with validation ``"validation_loss"`` and the metrics with that prefix.
    step_losses : list of float
        Mean loss of each step's samples, before the step.
    monitor : str or None
        The entry of `epochs` by which the best epoch is told.
    best_epoch : int or None
        Its number, with validation.
    interrupted : bool
        Whether the training ended early by an interrupt (Ctrl-C).
    stopped : str or None
        Why the training ended before its last epoch: "patience", "callback", "interrupt", or in a sweep "not finite".
    """

    def __init__(self, monitor: str | None = None) -> None:
        self.epochs: list[Record] = []
        self.step_losses: list[float] = []
        self.monitor = monitor
        self.best_epoch: int | None = None
        self.stopped: str | None = None

    @property
    def interrupted(self) -> bool:
        return self.stopped == "interrupt"

    @property
    def best(self) -> Record | None:
        """Entry of the best epoch, or None."""
        return None if self.best_epoch is None else self.epochs[self.best_epoch - 1]

    def to_dict(self) -> Record:
        """Return everything as plain lists and dictionaries.

        Returns
        -------
        dict
        """
        names = ("epochs", "step_losses", "monitor", "best_epoch", "stopped")
        return {**copy.deepcopy({name: getattr(self, name) for name in names}), "interrupted": self.interrupted}

    @classmethod
    def from_dict(cls, values: Record) -> History:
        """Return the history of what `to_dict` gave."""
        history = cls(values["monitor"])
        for name in ("epochs", "step_losses", "best_epoch", "stopped"):
            setattr(history, name, copy.deepcopy(values[name]))
        return history

    def plot(self) -> Figure:
        """Draw the course: losses by step and by epoch, and the metrics of the validation.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            Without the matplotlib package.
        """
        return plots.history(self)

    def _title(self) -> str:
        ended = f", ended by {self.stopped}" if self.stopped else ""
        return f"History: {count_of(len(self.epochs), 'epoch')}, {count_of(len(self.step_losses), 'step')}{ended}"

    def _repr_html_(self) -> str:
        names = list(self.epochs[0]) if self.epochs else []
        rows = [[entry.get(name) for name in names] for entry in self.epochs]
        return html_table(self._title(), names, rows, None if self.best_epoch is None else self.best_epoch - 1)

    def __repr__(self) -> str:
        title = self._title()
        if not self.epochs:
            return title
        names = list(self.epochs[0])
        cells = [names, *([_cell(entry.get(name)) for name in names] for entry in self.epochs)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(names))]
        lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths)) for row in cells]
        if self.best_epoch is not None:
            lines[self.best_epoch] += "  best"
        return "\n".join([title, *lines])

    def _compare(self, value: float, best: float | None) -> bool:
        """Tell whether a value of the monitored entry is better than the best before; nan never is."""
        if math.isnan(value):
            return False
        if best is None or math.isnan(best):
            return True
        return value < best if self.monitor == "validation_loss" else value > best


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
