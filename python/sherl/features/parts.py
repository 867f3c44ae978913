"""Padded states of a backbone, batch by batch, as features: what the doors to other frameworks share."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from .._typing import Array, ArrayLike, Bools, Element, Record
from .features import Features
from .rows import narrowed, widened


class TapParts:
    """The taps of all batches so far, each as a list of matrices, and how their rows are cut into samples.

    Parameters
    ----------
    names : list of str
        What errors call the taps.
    images : {"nchw", "nhwc"}
        How taps of four dimensions lie.
    dtype : {"float32", "float16", "bfloat16", "int8"}
        How the taps are stored.
    """

    def __init__(self, names: list[str], images: str, dtype: Element) -> None:
        self._names, self._images, self._dtype = names, images, dtype
        self._matrices: list[list[Array]] = [[] for _ in names]
        self._scales: list[list[Array]] = [[] for _ in names]
        self._sizes: list[list[Array]] = [[] for _ in names]
        self._lengths: list[Array] = []
        self._kinds: list[int] | None = None

    def add(self, states: list[Array], mask: ArrayLike | None = None) -> None:
        """Add a batch.

        Parameters
        ----------
        states : list of numpy.ndarray, each of shape (batch, tokens, channels), or images
            bfloat16 as uint16. The last one may be (batch, channels).
        mask : numpy.ndarray, shape (batch, tokens), optional
            1 where a row is meant.
        """
        kinds = [state.ndim for state in states]
        self._check(kinds, states)
        self._kinds = kinds
        kept = None if mask is None or kinds[0] == 4 else _kept(mask, states[0].shape[:2])
        if kinds[0] == 3:
            tokens = np.full(len(states[0]), states[0].shape[1]) if kept is None else kept.sum(axis=1)
            self._lengths.append(tokens)
        for number, state in enumerate(states):
            if state.ndim == 4:
                state = state.transpose(0, 2, 3, 1) if self._images == "nchw" else state
                self._sizes[number].append(np.tile(np.array(state.shape[1:3], np.int64), (len(state), 1)))
            rows = state[kept] if kept is not None and state.ndim == 3 else state
            self._store(number, rows.reshape(-1, rows.shape[-1]))

    def features(self, source: Record | None) -> Features:
        """Return all batches as features."""
        if self._kinds is None:
            raise ValueError("there must be at least one batch, got none")
        options: dict[str, Any] = {"dtype": "bfloat16" if self._dtype == "bfloat16" else None, "source": source,
                                   "scales": [np.concatenate(scales) if scales else None for scales in self._scales]}
        taps = [np.concatenate(matrices) for matrices in self._matrices]
        if self._kinds[0] == 4:
            return Features(taps, sizes=[np.concatenate(sizes) for sizes in self._sizes], **options)
        return Features(taps, np.concatenate(self._lengths), **options)

    def _store(self, number: int, rows: Array) -> None:
        element: Element = "bfloat16" if rows.dtype == np.uint16 else cast(Element, rows.dtype.name)
        if element == self._dtype:
            # Of its own: the state may be a view of what the next batch is written over.
            self._matrices[number].append(np.array(rows, order="C"))
            return
        array, scales = narrowed(widened(rows, element), self._dtype)
        self._matrices[number].append(array)
        if scales is not None:
            self._scales[number].append(scales)

    def _check(self, kinds: list[int], states: list[Array]) -> None:
        if self._kinds is not None and kinds != self._kinds:
            raise ValueError(f"taps must have as many dimensions in all batches, got {self._kinds} and {kinds}")
        body = kinds[:-1] if len(kinds) > 1 and kinds[-1] == 2 else kinds
        if set(body) not in ({3}, {4}):
            shapes = ", ".join(f"{name} {state.shape}" for name, state in zip(self._names, states))
            raise ValueError("taps must be all tokens (batch, tokens, channels) or all images, the last one also "
                             f"(batch, channels), got {shapes}")
        for name, state in zip(self._names, states):
            if state.dtype.kind != "f" and state.dtype != np.uint16:
                raise TypeError(f"{name} must hold real numbers, got dtype {state.dtype}")
            alike = state.shape[:2] == states[0].shape[:2] if state.ndim == 3 else len(state) == len(states[0])
            if not alike:
                raise ValueError(f"taps must have the same batch and tokens; {name} has shape {state.shape}, "
                                 f"{self._names[0]} {states[0].shape}")


def _kept(mask: ArrayLike, grid: tuple[int, ...]) -> Bools:
    mask = np.asarray(mask)
    if mask.shape != grid:
        raise ValueError(f"mask must have shape (batch, tokens) = {grid}, got {mask.shape}")
    kept: Bools = mask == 1
    if not (kept | (mask == 0)).all():
        raise ValueError("mask must hold 0 and 1 only")
    if not kept.any(axis=1).all():
        raise ValueError(f"mask leaves no row of sample {int((~kept.any(axis=1)).argmax())} of a batch")
    return kept
