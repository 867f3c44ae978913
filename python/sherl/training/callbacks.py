"""Callbacks: the user's own code at fixed points of a fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .._typing import Record

if TYPE_CHECKING:
    from ..network.dual_encoder import DualEncoder
    from ..network.network import Network
    from .history import History

__all__ = ["Callback", "FitState", "StopTraining"]


class StopTraining(Exception):
    """Raised in a callback to end a training after the step that is done."""


@dataclass
class FitState:
    """Where a fit stands, for callbacks.

    Attributes
    ----------
    network : SideNetwork
    history : History
    epochs, total_steps : int
        Of the whole training.
    epoch : int
        The epoch under way, from 1.
    step : int
        Steps taken.
    loss, gradient_norm : float or None
        Of the last step; the norm before clipping.
    learning_rate : float or None
        Of the last step.
    metrics : dict
        Entry of the last whole epoch.
    """

    network: Network | DualEncoder
    history: History
    epochs: int
    total_steps: int
    epoch: int = 0
    step: int = 0
    loss: float | None = None
    gradient_norm: float | None = None
    learning_rate: float | None = None
    metrics: Record = field(default_factory=dict)


class Callback:
    """Base class of callbacks; every method does nothing.

    A method that returns True, or raises `StopTraining`, ends the training. Any other exception ends it too and is
    passed on; the network keeps its weights after the last whole step.
    """

    def on_fit_begin(self, state: FitState) -> object:
        """Before the first epoch."""

    def on_epoch_begin(self, state: FitState) -> object:
        """Before the first step of an epoch."""

    def on_step_end(self, state: FitState) -> object:
        """After each step."""

    def on_epoch_end(self, state: FitState) -> object:
        """After each epoch and its validation; `state.metrics` has its entry."""

    def on_fit_end(self, state: FitState) -> object:
        """After the last epoch, and after the best weights were restored where that is asked for."""
