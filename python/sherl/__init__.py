"""sherl: train SHERL side networks on the hidden states of frozen backbones."""

from . import _core, losses, plots
from .backbones import load_backbone
from .blocks import (
    MTSA,
    BasicBlock,
    Bottleneck,
    Classifier,
    Detector,
    Embedding,
    LayerNorm,
    Positions,
    Queries,
    Regressor,
    RMSNorm,
    SpanPredictor,
    T5Block,
    TokenClassifier,
    TransformerLayer,
)
from .configuration import get_num_threads, set_num_threads, show_config
from .features import Features, Seq2SeqFeatures
from .network import DualEncoder, Explanation, Seq2SeqSideNetwork, SideNetwork
from .training import Callback, History, StopTraining
from .training.sweep import SweepResult, grid, sweep

__version__ = _core.config()["version"]

__all__ = [
    "MTSA",
    "BasicBlock",
    "Bottleneck",
    "Callback",
    "Classifier",
    "Detector",
    "DualEncoder",
    "Embedding",
    "Explanation",
    "Features",
    "History",
    "LayerNorm",
    "Positions",
    "Queries",
    "RMSNorm",
    "Regressor",
    "Seq2SeqFeatures",
    "Seq2SeqSideNetwork",
    "SideNetwork",
    "SpanPredictor",
    "StopTraining",
    "SweepResult",
    "T5Block",
    "TokenClassifier",
    "TransformerLayer",
    "get_num_threads",
    "grid",
    "load_backbone",
    "losses",
    "plots",
    "set_num_threads",
    "show_config",
    "sweep",
]
