"""All that a block computes with, for doors that write it down elsewhere: settings in full, and weights by name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .._typing import StateDict
from ..blocks.families import own_name
from ..blocks.frozen import MaybeFrozen
from ..blocks.residual import ResidualBlock
from ..blocks.rotary import speeds
from ..blocks.transformer import TransformerLayer
from ..blocks.weights import read_state, trainable_names

if TYPE_CHECKING:
    from ..blocks.block import Block


def described(block: Block) -> dict[str, Any]:
    """Return a block's settings, with what defaults stand for, and its kind."""
    settings = {**block.settings, "kind": type(block).__name__}
    if isinstance(block, TransformerLayer):
        settings.update({name: getattr(block, name) for name in TransformerLayer._SETTINGS})
        size = block._head_channels
        settings.update(head_size=size, key_heads=block.key_heads or block.heads,
                        scale=block.scale or 1 / math.sqrt(size),
                        rotary_dimensions=block.rotary_dimensions or size)
        if block.rotary_theta is not None:
            turned = speeds(block.rotary_theta, settings["rotary_dimensions"], block.rotary_scaling)
            settings["rotary_speeds"] = turned.tolist()
    return settings


def weights_of_block(block: Block) -> tuple[StateDict, set[str]]:
    """Return copies of a block's weights by name, frozen ones included, and the names of those that are trained.

    Maps of a ResNet's block are convolutions, (out, in, height, width).
    """
    if isinstance(block, ResidualBlock):
        return {own_name(role): array for role, array in block._convolutions().items()}, set()
    if isinstance(block, MaybeFrozen) and block._is_frozen:
        return {name: np.array(array) for name, array in (block._frozen or {}).items()}, set()
    if isinstance(block, TransformerLayer) and not block.trainable:
        return {own_name(role): np.array(array) for role, array in (block._frozen or {}).items()}, set()
    store, prefix = block._home()
    return read_state(store, prefix), set(trainable_names(store, prefix))
