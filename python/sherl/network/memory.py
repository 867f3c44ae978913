"""The memory that training will take, told before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import plots
from .._typing import ByteCount, Optimizer
from ..blocks.mtsa import MTSA
from ..checks import one_of, whole_number
from ..features.rows import Batch, pixels_of
from ..features.seq2seq import PairBatch
from ..html import html_table
from ..training.budget import read_budget
from ..training.chain import Chain
from ..training.optimizers import MOMENTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .network import Network

MIB = 2**20
BLAS_BUFFER = 3 * 2**19  # of the 32 MiB that OpenBLAS reserves for a thread, what products of these sizes touch


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that training steps on batches of one size take, above those of the taps.

    A memory budget bounds `parameters`, `gradients`, `optimizer` and `workspace`.

    Attributes
    ----------
    frozen_weights : int
        Weights of frozen layers; they are the caller's arrays, counted here whether shared or not.
    parameters, optimizer : int
        Trained weights and the optimizer's state.
    gradients : int
        Gradients of the trained weights, once for each of the `lanes`.
    workspace : int
        Activations of the tiles that are computed at one time. It does not grow with the batch, unless there are batch
        norms.
    blas : int
        Buffers that OpenBLAS packs matrices into, one a thread; the process has them once, whatever uses it.
    staging : int
        The part of the workspace where taps of other types than float32, or with rows left out, are laid out.
    tile_rows : int
        Most rows of a tile.
    lanes, workers : int
        Sums that gradients are gathered in, and tiles that are computed at one time.
    """

    frozen_weights: int
    parameters: int
    gradients: int
    optimizer: int
    workspace: int
    blas: int
    staging: int
    tile_rows: int
    lanes: int
    workers: int

    @property
    def total(self) -> int:
        """Bytes in all; `staging` lies in `workspace` and is not added."""
        return sum(getattr(self, kind) for kind in _KINDS)

    def to_dict(self) -> dict[str, int]:
        """Return bytes by kind.

        Returns
        -------
        dict of str to int
        """
        return {kind: getattr(self, kind) for kind in (*_KINDS, "total")}

    def plot(self) -> Figure:
        """Draw the parts as bars.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            Without the matplotlib package.
        """
        return plots.memory_plan(self)

    def _repr_html_(self) -> str:
        sizes = self.to_dict()
        rows = [(kind.replace("_", " "), f"{size / MIB:,.2f} MiB") for kind, size in sizes.items()]
        return html_table(self._title(), ("part", "size"), rows, len(rows) - 1)

    def __repr__(self) -> str:
        lines = [f"  {kind.replace('_', ' '):15}{size / MIB:10.2f} MiB" for kind, size in self.to_dict().items()]
        return "\n".join([self._title(), *lines])

    def _title(self) -> str:
        return (f"MemoryPlan: {self.workers} x tiles of up to {self.tile_rows} rows at a time, "
                f"{self.lanes} gradient lanes")


_KINDS = ("frozen_weights", "parameters", "gradients", "optimizer", "workspace", "blas")


def plan(network: Network, batch_size: int, sample: Batch | PairBatch, optimizer: Optimizer,
         memory_budget: ByteCount | None) -> MemoryPlan:
    """Return the memory plan for batches of so many samples like one, a Batch."""
    one_of(optimizer, "optimizer", tuple(MOMENTS))
    batch_size = whole_number(batch_size, "batch_size", 1)
    spaces = sample.spaces_of(batch_size)
    programs = network._programs
    program = programs.loss_gradient(True) if network.head._has_loss else programs.output_gradient(True, False)
    report = program.memory(batch_size, spaces)
    state = MOMENTS[optimizer] * (report["gradients"] // report["lanes"])
    budget = read_budget(memory_budget, state)
    if budget is not None:
        room = budget.room(program, sample, batch_size)
        assert not isinstance(program, Chain)  # which no budget bounds
        program.set_memory_budget(room)
        try:
            report = program.memory(batch_size, spaces)
        finally:
            program.set_memory_budget(0)
    return MemoryPlan(
        frozen_weights=report["frozen_weights"],
        parameters=report["parameters"],
        gradients=report["gradients"],
        optimizer=state,
        workspace=report["arenas"],
        blas=report["workers"] * BLAS_BUFFER,
        staging=report["staging"],
        tile_rows=report["tile_rows"],
        lanes=report["lanes"],
        workers=report["workers"],
    )


def sample_of(early: MTSA, tokens: int | Sequence[int]) -> Batch:
    """Return one sample of so many rows, or of images of this height and width in the last tap."""
    if not early.images:
        return Batch(np.array([0, whole_number(tokens, "tokens", 1)]), None)
    side = tokens if isinstance(tokens, Sequence) else (tokens, tokens)
    if len(side) != 2:
        raise ValueError(f"tokens must be the height and width of the last tap, got {tokens!r}")
    size = np.array([[whole_number(length, "tokens", 1) for length in side]])
    own = [pixels_of(size * window) for window in early.pool or ()]
    return Batch(own[-1].offsets, None, own=own)


def pair_sample(tokens: int, target_tokens: int) -> PairBatch:
    """Return one sample of so many rows in the encoder and in the decoder."""
    lengths = whole_number(tokens, "tokens", 1), whole_number(target_tokens, "target_tokens", 1)
    return PairBatch(*(Batch(np.array([0, length]), None) for length in lengths))


SUMMARY_HEADER = ("block", "kind", "input", "output", "parameters", "")


def summary(network: Network) -> str:
    """Return a table of a network's blocks."""
    rows = [SUMMARY_HEADER, *summary_rows(network)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:>{width}}" if column in (2, 3, 4) else f"{cell:{width}}"
                       for column, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:], rule, counted(network)])


def summary_rows(network: Network) -> list[tuple[str, ...]]:
    """Return the cells of `summary`, a row for each block."""
    rows: list[tuple[str, ...]] = []
    for name, block in network._blocks():
        widths = [channels for _, channels in block._inputs()]
        taps = widths[:-1] if isinstance(block, MTSA) else widths
        entering = f"{len(taps)} x {taps[0]}" if len(taps) > 1 and len(set(taps)) == 1 else " ".join(map(str, taps))
        count = block.num_parameters(trainable_only=False)
        rows.append((name, type(block).__name__, entering, str(block.out_features), f"{count:,}",
                     "" if block.trainable else "frozen"))
    return rows


def counted(network: Network) -> str:
    """Return a sentence on the number of parameters."""
    trained, total = network.num_parameters(), network.num_parameters(trainable_only=False)
    return f"{trained:,} of {total:,} parameters are trained"
