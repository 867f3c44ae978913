"""Side networks: training, prediction, saving."""

from .side_network import SideNetwork

__all__ = ["SideNetwork"]
