"""Training: the loop, its settings, history, callbacks, metrics and checkpoints."""

from .callbacks import Callback, FitState, StopTraining
from .history import History

__all__ = ["Callback", "FitState", "History", "StopTraining"]
