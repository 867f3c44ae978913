"""Blocks of side networks; each also works alone on NumPy arrays."""

from .detector import Detector
from .embedding import Embedding
from .heads import Classifier, Regressor
from .mtsa import MTSA
from .norm import LayerNorm, RMSNorm
from .queries import Positions, Queries
from .residual import BasicBlock, Bottleneck
from .row_heads import SpanPredictor, TokenClassifier
from .transformer import T5Block, TransformerLayer

__all__ = ["MTSA", "BasicBlock", "Bottleneck", "Classifier", "Detector", "Embedding", "LayerNorm", "Positions",
           "Queries",
           "RMSNorm", "Regressor", "SpanPredictor", "T5Block", "TokenClassifier", "TransformerLayer"]
