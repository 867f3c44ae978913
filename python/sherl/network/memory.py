"""The memory that training will take, told before the first step."""

from dataclasses import dataclass

import numpy as np

from ..checks import one_of, whole_number
from ..training.optimizers import MOMENTS

MIB = 2**20


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that training steps on batches of one size take, above those of the taps.

    Attributes
    ----------
    frozen_weights : int
        Weights of frozen layers; they are the caller's arrays, counted here whether shared or not.
    parameters, gradients, optimizer : int
        Trained weights, their gradients, and the optimizer's state.
    workspace : int
        Activations of the tiles that are computed at one time. It does not grow with the batch.
    tile_rows : int
        Rows of the largest tile.
    workers : int
        Tiles that are computed at one time.
    """

    frozen_weights: int
    parameters: int
    gradients: int
    optimizer: int
    workspace: int
    tile_rows: int
    workers: int

    @property
    def total(self):
        """Bytes in all."""
        return self.frozen_weights + self.parameters + self.gradients + self.optimizer + self.workspace

    def to_dict(self):
        """Return bytes by kind.

        Returns
        -------
        dict of str to int
        """
        kinds = ("frozen_weights", "parameters", "gradients", "optimizer", "workspace", "total")
        return {kind: getattr(self, kind) for kind in kinds}

    def __repr__(self):
        lines = [f"  {kind.replace('_', ' '):15}{size / MIB:10.2f} MiB" for kind, size in self.to_dict().items()]
        where = f"MemoryPlan: {self.workers} x tiles of up to {self.tile_rows} rows at a time"
        return "\n".join([where, *lines])


def plan(network, batch_size, tokens, optimizer):
    """Return the memory plan for batches of `batch_size` samples of `tokens` rows."""
    one_of(optimizer, "optimizer", tuple(MOMENTS))
    batch_size = whole_number(batch_size, "batch_size", 1)
    offsets = np.arange(batch_size + 1, dtype=np.int64) * whole_number(tokens, "tokens", 1)
    report = network._programs.loss_gradient(True).memory(batch_size, [None, offsets])
    return MemoryPlan(
        frozen_weights=report["frozen_weights"],
        parameters=report["parameters"],
        gradients=report["gradients"],
        optimizer=MOMENTS[optimizer] * report["parameters"],
        workspace=report["arenas"],
        tile_rows=report["tile_rows"],
        workers=report["workers"],
    )


def summary(network):
    """Return a table of a network's blocks."""
    rows = [("block", "kind", "input", "output", "parameters", "")]
    for name, block in network._blocks():
        widths = [channels for _, channels in block._inputs()]
        taps = widths[:-1] if name == "early" else widths
        entering = f"{len(taps)} x {taps[0]}" if len(taps) > 1 and len(set(taps)) == 1 else " ".join(map(str, taps))
        count = block.num_parameters(trainable_only=False)
        rows.append((name, type(block).__name__, entering, str(block.out_features), f"{count:,}",
                     "" if block.trainable else "frozen"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:>{width}}" if column in (2, 3, 4) else f"{cell:{width}}"
                       for column, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows]
    rule = "-" * max(map(len, lines))
    trained, total = network.num_parameters(), network.num_parameters(trainable_only=False)
    return "\n".join([lines[0], rule, *lines[1:], rule, f"{trained:,} of {total:,} parameters are trained"])
