"""Side networks: training, prediction, saving."""

from .dual_encoder import DualEncoder
from .explanation import Explanation
from .side_network import SideNetwork

__all__ = ["DualEncoder", "Explanation", "SideNetwork"]
