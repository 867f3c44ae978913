"""Blocks of side networks; each also works alone on NumPy arrays."""

from .heads import Classifier, Regressor
from .mtsa import MTSA
from .transformer import T5Block, TransformerLayer

__all__ = ["MTSA", "Classifier", "Regressor", "T5Block", "TransformerLayer"]
