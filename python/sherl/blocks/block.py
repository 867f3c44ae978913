"""What all blocks share: parameters, programs that are compiled when first asked for, and calls on NumPy arrays."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from .. import _core
from .._typing import Array, ArrayLike, Source, StateDict, Uint16As
from ..checks import flag, seed_number
from ..features.features import Features, check_channels, from_padded
from ..features.rows import Batch, offsets_of, read_reals, readable
from .weights import LoadReport, load_state, owned_names, read_state, trainable_names

if TYPE_CHECKING:
    from .forms import Images
    from .memory_rows import RowsWithMemory

_TOKENS = "tokens"

AnyRows: TypeAlias = "Rows | Images | RowsWithMemory"


class Rows:
    """The rows of one call to a block, and the form in which rows are given back: padded arrays or features."""

    def __init__(self, values: Sequence[Any], names: Sequence[str], mask: ArrayLike | None, channels: Sequence[int],
                 dtype: Uint16As, mask_name: str = "mask") -> None:
        # `values`: padded arrays, or Features that hold the inputs between them.
        ragged = [isinstance(value, Features) for value in values]
        if all(ragged):
            if mask is not None:
                raise ValueError(f"{mask_name} goes with padded arrays; Features know the rows of each sample")
            self.parts, self.grid = list(values), None
        elif any(ragged):
            raise TypeError(f"{' and '.join((names[0], names[-1]))} must be all padded arrays or all Features")
        else:
            features, self.grid = from_padded(values, mask, names, dtype, mask_name)
            self.parts = [features]
        lengths = self.parts[0].lengths
        if not all(np.array_equal(part.lengths, lengths) for part in self.parts):
            raise ValueError(f"{names[-1]} must have as many rows in each sample as {names[0]}")
        check_channels([width for part in self.parts for width in part.channels], channels, names)
        # Where a sample has no row there is nothing to compute, and nothing of it in the outputs.
        self.batch = Batch(offsets_of(lengths[lengths > 0]), self.parts[0].batch().rows)
        if self.batch.samples == 0:
            raise ValueError(f"{mask_name} leaves no row of any sample")
        self.lengths = lengths
        self.positions: Array | None = None  # (samples, 1), where a head reads them

    def sources(self) -> list[Source]:
        sources = [source for part in self.parts for source in part.sources(part.batch())]
        return sources if self.positions is None else [*sources, (self.positions, None)]

    def sink(self, channels: int, name: str | None = None) -> tuple[Array, Source]:
        """Return a matrix of the caller's form for the core to write to, and the source that tells it where.

        `name` is that of the input whose gradient it will hold, or None for the output; here all have the same rows.
        """
        if self.grid is None:
            matrix = np.empty((int(self.batch.offsets[-1]), channels), _core.REAL)
            return matrix, (matrix, None)
        make = np.empty if self.batch.rows is None else np.zeros
        matrix = make((self.grid[0] * self.grid[1], channels), _core.REAL)
        return matrix, (matrix, self.batch.rows)

    def given(self, matrix: Array, name: str | None = None) -> Array | Features:
        """Return a matrix made by `sink` in the caller's form."""
        if self.grid is None:
            return Features([matrix], self.lengths)
        return matrix.reshape(*self.grid, -1)

    def cotangent(self, values: ArrayLike | Features, channels: int, dtype: Uint16As) -> Source:
        """Return the source of a gradient that comes in the form of the output."""
        if self.grid is None:
            if not isinstance(values, Features):
                raise TypeError(f"cotangent must be Features, as the output is, got {type(values).__name__}")
            if not np.array_equal(values.lengths, self.lengths):
                raise ValueError("cotangent must have the lengths of the output")
            check_channels(values.channels, [channels], ["cotangent"])
            return values.sources(values.batch())[0]
        array, _ = read_reals(cast(ArrayLike, values), "cotangent", dtype)
        if array.shape != (*self.grid, channels):
            raise ValueError(f"cotangent must have the output's shape {(*self.grid, channels)}, got {array.shape}")
        return readable(array.reshape(-1, channels)), self.batch.rows


class QueryRows:
    """The rows of the queries of some samples, in arrays (batch, queries, channels)."""

    def __init__(self, samples: int, queries: int) -> None:
        self._grid = samples, queries

    def sink(self, channels: int) -> tuple[Array, Source]:
        matrix = np.empty((self._grid[0] * self._grid[1], channels), _core.REAL)
        return matrix, (matrix, None)

    def given(self, matrix: Array) -> Array:
        return matrix.reshape(*self._grid, -1)

    def cotangent(self, values: Any, channels: int, dtype: Uint16As) -> Source:
        array, _ = read_reals(values, "cotangent", dtype)
        if array.shape != (*self._grid, channels):
            raise ValueError(f"cotangent must have the output's shape {(*self._grid, channels)}, got {array.shape}")
        return readable(array.reshape(-1, channels)), None


class Block:
    """A part of a network that also works alone on NumPy arrays.

    Attributes
    ----------
    settings : dict
        The arguments that make an equal block.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed_number(seed)
        self._store: _core.Parameters | None = None
        self._prefix = ""
        self._network = False
        self._programs: dict[Any, _core.Program] = {}
        self._lock = threading.RLock()

    # What a kind of block tells about itself.

    @property
    def _pooled(self) -> bool:
        """Whether the output has one row a sample."""
        return False

    def _inputs(self) -> list[tuple[str, int]]:
        """Return (name, channels) of each input."""
        raise NotImplementedError

    def _declare(self, graph: _core.Graph, wanted: Sequence[str]) -> list[int]:
        """Declare the inputs in a graph, with a gradient those that are wanted."""
        tokens = graph.space(_TOKENS)
        inputs = [graph.input(name, tokens, channels, name in wanted) for name, channels in self._inputs()]
        return inputs + self._declare_positions(graph)

    def _declare_positions(self, graph: _core.Graph) -> list[int]:
        """Return the input of the positions in a list, which is empty for a block that reads none."""
        return []

    def _declared(self) -> list[str]:
        """Return the names of what `_declare` declares, in that order."""
        return [name for name, _ in self._inputs()]

    def _build(self, graph: _core.Graph, prefix: str, inputs: Sequence[int]) -> int:
        """Add the block to a graph and return its output."""
        raise NotImplementedError

    def _advance(self, graph: _core.Graph, prefix: str, stream: Any, **options: Any) -> Any:
        """Add the block to a graph as a late one, and return the stream behind it."""
        inputs = [getattr(stream, name) for name, _ in self._inputs()]
        return stream._replace(x=self._build(graph, prefix, inputs, **options))

    @property
    def settings(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def out_features(self) -> int:
        """Channels of the output."""
        raise NotImplementedError

    @property
    def _is_frozen(self) -> bool:
        """Whether the weights are the caller's, and none of a network's store."""
        return False

    def _frozen_count(self) -> int:
        return 0

    def _least_parameters(self) -> int:
        """Count the numbers in the trained weight matrices, without making them."""
        raise NotImplementedError

    # Parameters.

    def state_dict(self) -> StateDict:
        """Return copies of the trained parameters by name.

        Returns
        -------
        dict of str to numpy.ndarray of float32
        """
        store, prefix = self._home()
        return read_state(store, prefix)

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike], strict: bool = True) -> LoadReport:
        """Set the trained parameters.

        Parameters
        ----------
        state_dict : mapping of str to array_like
            Arrays by parameter name. Nothing is changed where an error is raised.
        strict : bool
            Whether all names and shapes must fit. Otherwise those that do are loaded.

        Returns
        -------
        LoadReport
            Names that are missing, unexpected, or of another shape.

        Raises
        ------
        ValueError
            Where `strict` and something does not fit; the message lists all of it.
        """
        store, prefix = self._home()
        with self._lock:
            return load_state(store, prefix, state_dict, flag(strict, "strict"))

    def num_parameters(self, trainable_only: bool = True) -> int:
        """Count parameters.

        Parameters
        ----------
        trainable_only : bool
            Whether to leave out frozen ones.

        Returns
        -------
        int
        """
        store, prefix = self._home()
        count = sum(store.array(prefix + name).size for name in trainable_names(store, prefix))
        return count if flag(trainable_only, "trainable_only") else count + self._frozen_count()

    @property
    def trainable(self) -> bool:
        """Whether the block has parameters that training changes."""
        store, prefix = self._home()
        return bool(trainable_names(store, prefix))

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{type(self).__name__}({settings})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.settings, self._seed, self.state_dict())

    def _home(self) -> tuple[_core.Parameters, str]:
        """Return the store and the prefix of the parameters, drawn from the seed where there are none yet."""
        with self._lock:
            if self._store is None:
                store = _core.Parameters()
                self._graph(store, "", False, ())
                store.initialize(self._seed)
                self._store = store
            return self._store, self._prefix

    def _used(self) -> bool:
        return self._store is not None

    def _move(self, store: _core.Parameters, prefix: str) -> None:
        """Live in a network's store from now on."""
        with self._lock:
            self._store, self._prefix = store, prefix
            self._network = True
            self._programs.clear()

    # Programs.

    def _graph(self, store: _core.Parameters, prefix: str, training: bool, wanted: Sequence[str]) -> _core.Graph:
        graph = _core.Graph(store, training)
        graph.output(self._build(graph, prefix, self._declare(graph, wanted)))
        return graph

    def _program(self, training: bool, wanted: tuple[str, ...] | None) -> _core.Program:
        """Return the program for a mode; `wanted` names the inputs with a gradient, or is None without any."""
        store, prefix = self._home()
        key = training, wanted
        if key not in self._programs:
            graph = self._graph(store, prefix, training, wanted or ())
            self._programs[key] = graph.compile(wanted is not None)
        return self._programs[key]

    def _sink(self, rows: AnyRows) -> tuple[Array, Source]:
        if not self._pooled:
            return rows.sink(self.out_features)
        matrix = np.empty((rows.batch.samples, self.out_features), _core.REAL)
        return matrix, (matrix, None)

    def _given(self, rows: AnyRows, matrix: Array) -> Array | Features:
        return matrix if self._pooled else rows.given(matrix)

    def _forward(self, rows: AnyRows, training: bool = False, wanted: tuple[str, ...] = (),
                 seed: int = 0) -> Array | Features:
        """Return the output; in training that of the program with the gradients of the wanted inputs."""
        output, sink = self._sink(rows)
        with self._lock:
            program = self._program(training, wanted if training else None)
            program.forward(rows.batch.samples, rows.batch.spaces, rows.sources(), [sink], seed=seed)
        return self._given(rows, output)

    def _gradient(self, rows: AnyRows, cotangent: ArrayLike | Features, wanted: tuple[str, ...], training: bool,
                  seed: int, dtype: Uint16As) -> tuple[Array | Features, dict[str, Array | Features]]:
        """Return the output, and gradients by parameter name and by the names of the wanted inputs."""
        output, sink = self._sink(rows)
        cotangent = self._cotangent(rows, cotangent, dtype)
        sinks = {name: rows.sink(channels, name) for name, channels in self._inputs() if name in wanted}
        with self._lock:
            program = self._program(flag(training, "training"), wanted)
            program.gradient(
                rows.batch.samples, rows.batch.spaces, rows.sources(), [sink], cotangents=[cotangent],
                input_gradients=[sinks[name][1] if name in wanted else None for name in self._declared()],
                seed=seed_number(seed),
            )
            store, prefix = self._home()
            gradients: dict[str, Array | Features] = {
                name: program.parameter_gradient(prefix + name) for name in trainable_names(store, prefix)
            }
        gradients.update({name: rows.given(matrix, name) for name, (matrix, _) in sinks.items()})
        return self._given(rows, output), gradients

    def _cotangent(self, rows: AnyRows, values: ArrayLike | Features, dtype: Uint16As) -> Source:
        if not self._pooled:
            return rows.cotangent(values, self.out_features, dtype)
        return read_sample_rows(cast(ArrayLike, values), rows.batch.samples, self.out_features, dtype), None


class UnaryBlock(Block):
    """A block of one input, x."""

    def __call__(self, x: ArrayLike | Features, mask: ArrayLike | None = None, *,
                 dtype: Uint16As = None) -> Array | Features:
        """Compute the output.

        Parameters
        ----------
        x : array_like, shape (batch, tokens, channels), or Features of one tap
            float32, float64, float16 or bfloat16.
        mask : array_like of bool, int or float, shape (batch, tokens), optional
            1 where a row is meant. Other rows are left out, and carry zeros in what comes back.
        dtype : {None, "bfloat16"}
            How to take uint16.

        Returns
        -------
        numpy.ndarray of float32, or Features where `x` is
            Shape (batch, tokens, channels); of a head (batch, outputs).
        """
        return self._forward(self._rows(x, mask, dtype))

    def vjp(self, x: ArrayLike | Features, cotangent: ArrayLike | Features, mask: ArrayLike | None = None, *,
            training: bool = False, seed: int = 0,
            dtype: Uint16As = None) -> tuple[Array | Features, dict[str, Array | Features]]:
        """Compute the output and the gradient of its product with a cotangent.

        Parameters
        ----------
        x, mask, dtype
            As for a call.
        cotangent : array_like or Features
            Gradient of a scalar with respect to the output, of the output's form.
        training : bool
            Whether dropout acts.
        seed : int
            Of dropout.

        Returns
        -------
        numpy.ndarray of float32, or Features
            The output.
        dict of str to numpy.ndarray of float32, or Features
            Gradients by parameter name, and ``"x"``.
        """
        return self._gradient(self._rows(x, mask, dtype), cotangent, ("x",), training, seed, dtype)

    def _rows(self, x: ArrayLike | Features, mask: ArrayLike | None, dtype: Uint16As) -> Rows | Images:
        rows = Rows([x], ["x"], mask, [channels for _, channels in self._inputs()], dtype)
        if self._pooled and not rows.lengths.all():
            raise ValueError(f"mask leaves no row of sample {rows.lengths.argmin()}")
        return rows


def read_sample_rows(values: ArrayLike, samples: int, channels: int, dtype: Uint16As = None,
                     name: str = "cotangent") -> Array:
    """Return a matrix with one row a sample, readable for the core."""
    array, _ = read_reals(values, name, dtype)
    if array.shape != (samples, channels):
        raise ValueError(f"{name} must have shape {(samples, channels)}, got {array.shape}")
    return readable(array)


def count_owned(store: _core.Parameters) -> int:
    """Return how many numbers a store's trained and saved parameters have."""
    return sum(store.array(name).size for name in owned_names(store))


def _restored(kind: type[Any], settings: dict[str, Any], seed: int, state: StateDict) -> Block:
    block: Block = kind(**settings, seed=seed)
    block.load_state_dict(state)
    return block
