"""Hidden states of frozen backbones, ragged: the input of side networks."""

from .features import Features
from .seq2seq import Seq2SeqFeatures

__all__ = ["Features", "Seq2SeqFeatures"]
