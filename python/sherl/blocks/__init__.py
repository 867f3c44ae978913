"""Blocks of side networks; each also works alone on NumPy arrays."""

from .heads import Classifier, Regressor
from .mtsa import MTSA
from .transformer import TransformerLayer

__all__ = ["MTSA", "Classifier", "Regressor", "TransformerLayer"]
