"""What stands among late layers and gives them more to read than x: tables of queries, and rows of positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from .._typing import ArrayLike, Initializer
from ..checks import flag, whole_number
from .frozen import MaybeFrozen, read_array

__all__ = ["Positions", "Queries"]


class Stream(NamedTuple):
    """What a late layer finds in a graph, by the names of the layers' inputs; None for what there is not."""

    x: int
    positions: int | None = None
    memory: int | None = None
    memory_positions: int | None = None
    given: int | None = None  # rows of positions that come with each sample


class _Tables(MaybeFrozen):
    """A block of tables that are the same for every sample. It reads nothing: it is of use in a network only."""

    features: int

    def _graph(self, store: _core.Parameters, prefix: str, training: bool, wanted: Sequence[str]) -> _core.Graph:
        graph = _core.Graph(store, training)
        self._parameters(graph, prefix)
        return graph

    def _inputs(self) -> list[tuple[str, int]]:
        return []

    @property
    def out_features(self) -> int:
        return self.features

    def _initializer(self, name: str) -> Initializer:
        return "standard_normal"


class Queries(_Tables):
    """The queries of a decoder, the same for every sample: where they stand in `late`, the decoder begins.

    The rows before them become the memory of the layers behind them, and the positions of these rows the memory's. The
    rows from there on are the queries', as many in every sample, and so are the head's.

    Parameters
    ----------
    features : int
        Channels of a query.
    count : int
        How many there are.
    positions : bool
        Whether there is a table of rows that layers with positions add to queries and keys, as DETR's object queries.
    start : bool
        Whether there is a table of the rows that enter the first layer; otherwise they are zeros, as in DETR.
    seed : int
        Of the first tables, drawn from N(0, 1), where the block is used alone.

    Attributes
    ----------
    features, count, positions, start
        As given.
    """

    def __init__(self, features: int, count: int, *, positions: bool = True, start: bool = False,
                 seed: int = 0) -> None:
        super().__init__(seed)
        self.features = whole_number(features, "features", 1)
        self.count = whole_number(count, "count", 1)
        self.positions, self.start = flag(positions, "positions"), flag(start, "start")
        if not (self.positions or self.start):
            raise ValueError("positions or start must be True: without a table all queries would be the same")
        self._zeros = None if self.start else np.zeros((self.count, self.features), _core.REAL)

    @classmethod
    def from_tables(cls, positions: ArrayLike | None = None, start: ArrayLike | None = None,
                    trainable: bool = False) -> Queries:
        """Make queries of given tables.

        Parameters
        ----------
        positions, start : array_like of float, shape (queries, features), optional
            As for `Queries`: ``model.query_position_embeddings.weight`` of DETR is the first. At least one. Frozen
            tables are kept where they are float32 and C-contiguous; they must not change while they are in use.
        trainable : bool
            Whether training changes the tables; then they are copied.

        Returns
        -------
        Queries
        """
        given = {"positions": positions, "start": start}
        arrays = {name: read_array(table, name, 2) for name, table in given.items() if table is not None}
        if not arrays:
            raise ValueError("positions or start must be given")
        shape = next(iter(arrays.values())).shape
        if any(array.shape != shape for array in arrays.values()):
            raise ValueError(f"start must have the shape of positions, {shape}, got {arrays['start'].shape}")
        queries = cls(shape[1], shape[0], positions="positions" in arrays, start="start" in arrays)
        return queries._set(arrays, trainable)

    @property
    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("features", "count", "positions", "start")}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        names = [name for name in ("positions", "start") if getattr(self, name)]
        return dict.fromkeys(names, (self.count, self.features))

    def _advance(self, graph: _core.Graph, prefix: str, stream: Stream, **options: Any) -> Stream:
        tables = self._parameters(graph, prefix)
        if self._zeros is not None:
            tables["start"] = graph.parameter(prefix + "zeros", self._zeros.shape, "frozen", data=self._zeros)
        space = graph.fixed_space("queries", self.count)
        rows = {name: graph.table(table, space) for name, table in tables.items()}
        return Stream(rows["start"], rows.get("positions"), memory=stream.x, memory_positions=stream.positions)


class Positions(_Tables):
    """Rows of positions, which the layers behind it in `late` add to what makes queries and keys.

    They are those of the rows that come from the early block: layers with ``positions=True`` read them, and, once
    `Queries` made these rows the memory, layers with ``memory_positions=True``.

    Parameters
    ----------
    features : int
        Channels of a row.
    rows : int, optional
        Rows of a table that is trained, the same for every sample; every sample must have as many rows. When None each
        sample brings its own: the taps are then followed by one more array, of position rows.
    seed : int
        Of the first table, drawn from N(0, 1), where the block is used alone.

    Attributes
    ----------
    features, rows
        As given.
    """

    def __init__(self, features: int, rows: int | None = None, *, seed: int = 0) -> None:
        super().__init__(seed)
        self.features = whole_number(features, "features", 1)
        self.rows = None if rows is None else whole_number(rows, "rows", 1)

    @classmethod
    def from_table(cls, table: ArrayLike, trainable: bool = False) -> Positions:
        """Make positions of a given table.

        Parameters
        ----------
        table : array_like of float, shape (rows, features)
            Row r is added to row r of every sample. A frozen one is kept where it is float32 and C-contiguous; it must
            not change while it is in use.
        trainable : bool
            Whether training changes the table; then it is copied.

        Returns
        -------
        Positions
        """
        table = read_array(table, "table", 2)
        return cls(table.shape[1], table.shape[0])._set({"table": table}, trainable)

    @property
    def settings(self) -> dict[str, Any]:
        return {"features": self.features, "rows": self.rows}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {} if self.rows is None else {"table": (self.rows, self.features)}

    def _advance(self, graph: _core.Graph, prefix: str, stream: Stream, **options: Any) -> Stream:
        if self.rows is None:
            return stream._replace(positions=stream.given)
        table = self._parameters(graph, prefix)["table"]
        return stream._replace(positions=graph.table(table, graph.value_space(stream.x)))
