"""What blocks share that are either frozen, over arrays of the caller, or trained."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from .._typing import Array, ArrayLike, Initializer, StateDict
from ..checks import flag
from ..features.rows import read_reals, widened
from .block import Block

if TYPE_CHECKING:
    from typing import Self


class MaybeFrozen(Block):
    """A block of few arrays: `_frozen` holds them by parameter name where it is frozen, else None."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._frozen: StateDict | None = None
        self._fingerprint: str | None = None

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays by parameter name."""
        raise NotImplementedError

    def _initializer(self, name: str) -> Initializer:
        """Return how a trained array begins."""
        raise NotImplementedError

    def _set(self, arrays: StateDict, trainable: bool) -> Self:
        """Take arrays by parameter name: as they are, or as the first values of trained ones."""
        if flag(trainable, "trainable"):
            self.load_state_dict(arrays)
        else:
            self._frozen = arrays
        return self

    def _parameters(self, graph: _core.Graph, prefix: str) -> dict[str, int]:
        """Return the parameters in a graph by name."""
        if self._frozen is not None:
            return {name: graph.parameter(prefix + name, array.shape, "frozen", data=array)
                    for name, array in self._frozen.items()}
        return {name: graph.parameter(prefix + name, shape, "trainable", self._initializer(name))
                for name, shape in self._shapes().items()}

    @property
    def trainable(self) -> bool:
        """Whether training changes the arrays."""
        return not self._is_frozen and bool(self._shapes())

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of a frozen block's arrays and settings, in hexadecimal; else None."""
        if self._is_frozen and self._fingerprint is None:
            digest = hashlib.sha256(repr((type(self).__name__, sorted(self.settings.items()))).encode())
            for name, array in sorted((self._frozen or {}).items()):
                digest.update(repr((name, array.shape)).encode())
                digest.update(array)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    @property
    def _is_frozen(self) -> bool:
        return self._frozen is not None

    def _frozen_count(self) -> int:
        return sum(int(array.size) for array in (self._frozen or {}).values())

    def _least_parameters(self) -> int:
        return 0 if self._is_frozen else sum(int(np.prod(shape)) for shape in self._shapes().values())

    def _with_dropout(self, other: object) -> Self:
        return self

    def __repr__(self) -> str:
        return super().__repr__()[:-1] + (", frozen)" if self._is_frozen else ")")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self if self._is_frozen else _restored(*self.__reduce__()[1])  # a frozen one never changes

    def __reduce__(self) -> tuple[Any, ...]:
        kind, settings, seed, state = super().__reduce__()[1]
        return _restored, (kind, settings, seed, state, self._frozen)


def read_array(values: ArrayLike, name: str, dimensions: int) -> Array:
    """Return an array of finite numbers as the core reads it; float32 and C-contiguous ones are kept."""
    array, element = read_reals(values, name)
    if array.ndim != dimensions or 0 in array.shape:
        shape = {1: "(features,)", 2: "(rows, features)"}[dimensions]
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    array = np.ascontiguousarray(widened(array, element), _core.REAL)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must hold finite numbers")
    return array


def _restored(kind: type[Any], settings: dict[str, Any], seed: int, state: StateDict, frozen: StateDict | None) -> Any:
    block = kind(**settings, seed=seed)
    block._frozen = frozen
    if state:
        block.load_state_dict(state)
    return block
