"""Trained networks as plain modules of PyTorch."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from ..blocks.norm import LayerNorm, RMSNorm
from ..blocks.queries import Positions, Queries
from ..blocks.residual import BasicBlock, Bottleneck
from ..network.side_network import SideNetwork
from ..network.weights_of_blocks import described, weights_of_block
from . import plain
from .late import Late

if TYPE_CHECKING:
    from ..blocks.late import LateLayer

__all__ = ["to_torch"]

_KINDS = {  # the others are transformer layers
    Bottleneck: plain.Bottleneck, BasicBlock: plain.BasicBlock, LayerNorm: plain.Norm, RMSNorm: plain.Norm,
    Positions: plain.Positions, Queries: plain.Queries,
}  # fmt: skip


def to_torch(network: SideNetwork) -> plain.Network:
    """Return a network as a plain module of PyTorch, to be served or trained on without sherl.

    Parameters
    ----------
    network : SideNetwork

    Returns
    -------
    sherl.torch.plain.Network
        In evaluation mode; ``outputs = module(taps, mask=None, positions=None)``. Its weights are copies under sherl's
        names; those of frozen late layers are buffers, or do not ask for gradients. Its classes are in one file that
        needs PyTorch alone.
    """
    if not isinstance(network, SideNetwork):
        raise TypeError(f"network must be a SideNetwork, got {type(network).__name__}")
    late = [_late(layer) for layer in network.late]
    head = plain.Pooled if network.head._pooled else plain.EachRow
    return plain.Network(_part(plain.Adapter, network.early), late, _part(head, network.head)).eval()


def _late(layer: LateLayer) -> torch.nn.Module:
    if isinstance(layer, Late):
        return plain.Foreign(copy.deepcopy(layer.module).requires_grad_(False), layer.call, layer.images)
    return _part(_KINDS.get(type(layer), plain.Layer), layer)


def _part(kind: type[plain.Part], block: Any) -> plain.Part:
    weights, trained = weights_of_block(block)
    return kind(described(block), {name: torch.from_numpy(array) for name, array in weights.items()}, trained)
