"""Features of several backbones as one stream: each sample has the rows of one, and then those of the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._typing import Integers, Record
from .rows import offsets_of, select_rows

if TYPE_CHECKING:
    from .features import Features


def joined(parts: Sequence[Features]) -> Features:
    """Return features whose samples have the rows of all parts, one part after the other.

    Rows of samples that a part holds are copied once, however often its selection repeats them.

    Parameters
    ----------
    parts : sequence of Features
    """
    first = parts[0]
    for number, part in enumerate(parts[1:], 1):
        _check(first, part, f"features[{number}]")
    for number, part in enumerate(parts):
        if part._own is not None:
            raise ValueError(f"features[{number}] must have rows of tokens that all its taps share, "
                             "not images or a tower")
    held = [_held(part) for part in parts]
    starts, lengths, base = [], [], 0
    for rows, offsets, which in held:
        starts.append(base + offsets[:-1][which])
        lengths.append(np.diff(offsets)[which])
        base += len(rows)
    starts, lengths = np.stack(starts, axis=1), np.stack(lengths, axis=1)
    places = offsets_of(lengths.ravel())
    rows = np.repeat(starts.ravel() - places[:-1], lengths.ravel()) + np.arange(places[-1])
    arrays, scales = ([_stacked([(getattr(part, name)[tap], rows) for part, (rows, _, _) in zip(parts, held)])
                       for tap in range(len(first._arrays))] for name in ("_arrays", "_scales"))
    sources = [part.source for part in parts]
    return first._with(arrays=arrays, scales=scales, offsets=offsets_of(lengths.sum(axis=1)), rows=rows, samples=None,
                       source=None if None in sources else {"joined": sources}, preprocessing=None)


def selected_source(source: Record | None, numbers: Sequence[int]) -> Record | None:
    """Return what features were taken from where only taps of these numbers are left."""
    if source is None:
        return None
    source = dict(source)
    if "states" in source:
        source["states"] = [source["states"][number] for number in numbers]
    if "joined" in source:
        source["joined"] = [selected_source(part, numbers) for part in source["joined"]]
    return source


def _check(first: Features, part: Features, name: str) -> None:
    if len(part) != len(first):
        raise ValueError(f"{name} must have the {len(first)} samples of features[0], got {len(part)}")
    for what in ("channels", "dtypes"):
        found, wanted = getattr(part, what), getattr(first, what)
        if found != wanted:
            hint = "; astype gives another type" if what == "dtypes" and len(found) == len(wanted) else ""
            raise ValueError(f"{name} must have taps of the {what} of features[0], {wanted}, got {found}{hint}")


def _held(part: Features) -> tuple[Any, Integers, Integers]:
    """Return row numbers of the samples that a part holds, where each begins among them, and which each sample is."""
    samples = np.arange(len(part)) if part._samples is None else part._samples
    chosen, which = np.unique(samples, return_inverse=True)
    batch = select_rows(part._offsets, part._rows, chosen)
    return batch.rows, batch.offsets, which


def _stacked(pieces: Sequence[tuple[Any, Integers]]) -> Any:
    if pieces[0][0] is None:
        return None
    return np.concatenate([array[rows] for array, rows in pieces])
