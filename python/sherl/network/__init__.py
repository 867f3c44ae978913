"""Side networks: training, prediction, saving."""

from .dual_encoder import DualEncoder
from .explanation import Explanation
from .seq2seq_network import Seq2SeqSideNetwork
from .side_network import SideNetwork

__all__ = ["DualEncoder", "Explanation", "Seq2SeqSideNetwork", "SideNetwork"]
