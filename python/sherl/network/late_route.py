"""The late route of a side network: what may stand in it, what each block finds to read, and the rows it ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..blocks.foreign import ForeignLayer
from ..blocks.norm import LayerNorm, RMSNorm
from ..blocks.queries import Positions, Queries
from ..blocks.residual import ResidualBlock
from ..blocks.transformer import TransformerLayer
from ..features.features import check_channels

if TYPE_CHECKING:
    from ..blocks.heads import Head
    from ..blocks.mtsa import MTSA
    from ..features.features import Features

LATE = (TransformerLayer, ResidualBlock, LayerNorm, RMSNorm, Positions, Queries, ForeignLayer)

# What gives the inputs that a layer may read beside x.
_GIVERS = {"positions": "Positions, or Queries with positions,", "memory": "Queries",
           "memory_positions": "Positions before the Queries"}
_MEANT = {"positions": "positions", "memory": "a memory", "memory_positions": "positions of the memory"}


def check_late(early: MTSA, late: Sequence[Any], head: Head) -> None:
    """Raise where the blocks do not fit each other."""
    width, before = early.out_features, "early"
    known: dict[str, int] = {}
    unread: dict[str, str] = {}  # what no layer has read so far, and which block gives it
    for number, block in enumerate(late):
        name = f"late[{number}]"
        _check_kind(name, block, early, known)
        for read, channels in block._inputs()[1:]:
            unread.pop(read, None)
            if read not in known:
                raise ValueError(f"{name} must read x alone unless a block before it in late gives the rest, but it "
                                 f"reads {read}, which {_GIVERS[read]} would give")
            if known[read] != channels:
                raise ValueError(f"{name} must have {known[read]} channels of {read}, got {channels}")
        if isinstance(block, Queries):
            known = {"memory": width, **({"memory_positions": width} if "positions" in known else {}),
                     **({"positions": block.features} if block.positions else {})}
            unread = {"memory_positions" if read == "positions" else read: giver for read, giver in unread.items()}
            unread.update(dict.fromkeys(["memory", "positions"][: 1 + block.positions], name))
        elif block.features != width:
            raise ValueError(f"{name} must have the {width} features that {before} gives, got {block.features}")
        elif isinstance(block, Positions):
            known["positions"], unread["positions"] = width, name
        width, before = block.out_features, name
    if head.features != width:
        raise ValueError(f"head must have the {width} features that {before} gives, got {head.features}")
    for read, giver in unread.items():
        raise ValueError(f"{giver} gives {_MEANT[read]}, which no layer behind it reads")


def _check_kind(name: str, block: Any, early: MTSA, known: Mapping[str, int]) -> None:
    """Raise where a block cannot stand here."""
    if not isinstance(block, LATE):
        raise TypeError(f"{name} must be a TransformerLayer or a Bottleneck, got {type(block).__name__}")
    if isinstance(block, ResidualBlock) and (not early.images or "memory" in known):
        raise ValueError(f"{name} is a {type(block).__name__}, which takes images: early must have pool=")
    if isinstance(block, Queries) and "memory" in known:
        raise ValueError(f"{name} must not be Queries once more: late has one decoder")
    if isinstance(block, Positions) and known:
        raise ValueError(f"{name} must be the only Positions, and stand before Queries")
    if isinstance(block, Positions) and block.rows is None and early.images:
        raise ValueError(f"{name} must have a table, since images bring no rows of positions along")
    if isinstance(block, ForeignLayer) and known:
        raise ValueError(f"{name} must read x alone, and so it cannot stand behind Positions or Queries")


def queries_of(late: Sequence[Any]) -> int | None:
    """Return the number of queries, or None without any."""
    return next((block.count for block in late if isinstance(block, Queries)), None)


def given_positions(late: Sequence[Any]) -> int | None:
    """Return the channels of the position rows that samples bring along, or None where they bring none."""
    return next((block.features for block in late if isinstance(block, Positions) and block.rows is None), None)


def check_rows(early: MTSA, late: Sequence[Any], features: Features) -> None:
    """Raise where features are not what the early block and the late route read.

    Parameters
    ----------
    early : MTSA
    late : list of Block
    features : Features
    """
    channels = given_positions(late)
    if channels is None:
        early._check_taps(features)
    else:
        taps = len(features.channels) - 1
        if taps != early.taps:
            raise ValueError(f"taps must be {early.taps} arrays and one of position rows, got {taps + 1}")
        if features.batch().own is not None:
            raise ValueError(f"taps[{taps}], the position rows, must have a row for each row of the other taps")
        check_channels(features.channels[taps:], [channels], [f"taps[{taps}], the position rows,"])
        early._check_taps(features.select(range(taps)))
    for number, block in enumerate(late):
        if not isinstance(block, Positions) or block.rows is None:
            continue
        wrong = np.flatnonzero(features.lengths != block.rows)
        if len(wrong):
            raise ValueError(f"samples must have the {block.rows} rows that the table of late[{number}] has, got "
                             f"{features.lengths[wrong[0]]} in sample {wrong[0]}")
