"""Which hidden states networks read: those that are usual for a backbone, those asked for, those of given features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from ..features import Features

__all__ = ["Taps", "chosen_states", "layers_of", "selected", "states_of"]


# Which states a network taps: all that are usual, or these.
Taps: TypeAlias = Literal["all"] | tuple[int, ...]


def states_of(features: Features) -> list[int]:
    """Return the numbers of features' taps: those of the backbone's states where they tell, else 0, 1, 2 …"""
    return (features.source or {}).get("states") or list(range(len(features.channels)))


def layers_of(features: Features) -> int | None:
    """Return how many layers the backbone of features has, or None; the state of this number is its last output."""
    return (features.preprocessing or {}).get("layers")


def selected(features: Features, states: Sequence[int]) -> Features:
    """Return features with these states alone."""
    given = states_of(features)
    if missing := [state for state in states if state not in given]:
        raise ValueError(f"the features have no state {missing[0]}; they have {', '.join(map(str, given))}")
    return features if list(states) == list(given) else features.select([given.index(state) for state in states])


def chosen_states(taps: Taps, states: Sequence[int], channels: Sequence[int], layers: int | None = None,
                  images: bool = False) -> list[int]:
    """Return the states that a network taps.

    Parameters
    ----------
    taps : "all" or tuple of int
        What was asked for. "all" are the embeddings and the outputs of all layers but the last; of a ResNet, whose
        states are images, the outputs of its stages, the last one before its last layer.
    states, channels : sequence of int
        Those that there are.
    layers : int or None
        Of the backbone, where it is known.
    images : bool
        Whether states are images.

    Returns
    -------
    list of int
    """
    usable = [(state, width) for state, width in zip(states, channels) if layers is None or state < layers]
    if taps == "all":
        if images and layers is not None:
            widths = [width for _, width in usable[1:]] + [None]
            usable = [pair for pair, following in zip(usable, widths) if pair[0] > 0 and pair[1] != following]
        return [state for state, _ in usable]
    known = [state for state, _ in usable]
    if missing := [state for state in taps if state not in known]:
        raise ValueError(f"--taps: there is no state {missing[0]} to tap; there are {', '.join(map(str, known))}")
    if layers is not None and taps[-1] != layers - 1:
        raise ValueError(f"--taps must end with {layers - 1}, which the last layer receives, got {taps[-1]}")
    return list(taps)
