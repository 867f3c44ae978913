"""Decoder blocks of T5 one position at a time, with the keys and values of the positions before at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from .. import _core
from .._typing import Activation, Integers, Source

if TYPE_CHECKING:
    from ..blocks.transformer import TransformerLayer

# A step's programs have a row space with all positions of each hypothesis up to the new one. Only the last row of what
# enters is read, as the output is asked for the last row alone: its queries meet the keys and values of all positions,
# and masks and relative positions are those of a whole sequence.


def parameter(graph: _core.Graph, prefix: str, block: TransformerLayer, role: str) -> int:
    """Return a weight of a block, frozen or trained under this prefix."""
    part, _, leaf = role.rpartition("_")
    name, shape = f"{prefix}{part}.{leaf}", block._shapes()[role]
    if block._frozen is not None:
        return graph.parameter(name, shape, "frozen", data=block._frozen[role])
    return graph.parameter(name, shape, "trainable")


def _map(graph: _core.Graph, prefix: str, block: TransformerLayer, part: str, x: int, bfloat16: bool,
         activation: Activation = "identity") -> int:
    return graph.linear(x, parameter(graph, prefix, block, f"{part}_weight"), activation=activation, bfloat16=bfloat16)


def _norm(graph: _core.Graph, prefix: str, block: TransformerLayer, part: str, x: int) -> int:
    return graph.rms_norm(x, parameter(graph, prefix, block, f"{part}_norm_weight"), block.eps)


def add_keys(graph: _core.Graph, prefix: str, block: TransformerLayer, x: int, bfloat16: bool = False) -> list[int]:
    """Return the keys and values that self-attention makes of rows that enter a block."""
    n = _norm(graph, prefix, block, "attention", x)
    return [_map(graph, prefix, block, part, n, bfloat16) for part in ("key", "value")]


def add_memory_keys(graph: _core.Graph, prefix: str, block: TransformerLayer, memory: int,
                    bfloat16: bool = False) -> list[int]:
    """Return the keys and values that a block makes of a memory."""
    return [_map(graph, prefix, block, part, memory, bfloat16) for part in ("cross_key", "cross_value")]


def add_block(graph: _core.Graph, prefix: str, block: TransformerLayer, x: int, keys: list[int], memory_keys: list[int],
              bfloat16: bool = False) -> int:
    """Return the output of a block for rows x, given the keys and values that it attends to."""
    n = _norm(graph, prefix, block, "attention", x)
    mixed = graph.attention(
        _map(graph, prefix, block, "query", n, bfloat16), keys[0], keys[1], block.heads, cast(float, block.scale), True,
        position_bias=parameter(graph, prefix, block, "position_bias_weight"), position_buckets=block.position_buckets,
        max_distance=block.max_distance, bidirectional=False,
    )
    x = graph.add(_map(graph, prefix, block, "output", mixed, bfloat16), x)
    n = _norm(graph, prefix, block, "cross", x)
    query = _map(graph, prefix, block, "cross_query", n, bfloat16)
    mixed = graph.attention(query, memory_keys[0], memory_keys[1], block.heads, cast(float, block.scale))
    x = graph.add(_map(graph, prefix, block, "cross_output", mixed, bfloat16), x)
    n = _norm(graph, prefix, block, "feed_forward", x)
    if block.gated:
        gate, up = (_map(graph, prefix, block, part, n, bfloat16) for part in ("gate", "up"))
        inner = graph.gated(gate, up, block.activation)
    else:
        inner = _map(graph, prefix, block, "up", n, bfloat16, block.activation)
    return graph.add(_map(graph, prefix, block, "down", inner, bfloat16), x)


class Cache:
    """Keys and values of a block for all positions so far, one row a hypothesis and position."""

    def __init__(self, channels: int) -> None:
        self.keys, self.values = (np.empty((0, channels), _core.REAL) for _ in range(2))
        self.count = 0

    def take(self, rows: int) -> list[Source]:
        """Make room for the rows of a new position; return where they go."""
        first, self.count = self.count, self.count + rows
        if self.count > len(self.keys):
            # As much again, so that rows are moved seldom.
            more = np.empty((self.count, self.keys.shape[1]), _core.REAL)
            self.keys, self.values = (np.concatenate([array, more]) for array in (self.keys, self.values))
        return [(array[first : self.count], None) for array in (self.keys, self.values)]

    def sources(self, rows: Integers) -> list[Source]:
        """Return the two as inputs of which a program reads these rows."""
        return [(self.keys, rows), (self.values, rows)]
