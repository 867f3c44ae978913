"""A head for detection: class logits and a box for every row, which are the decoder's queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import _core
from ..checks import rate, whole_number
from .row_heads import RowHead

__all__ = ["Detector"]


class Detector(RowHead):
    """Head that gives each row (query) class logits and a box, and where asked for a projection.

    The columns of an output row are `classes` + 1 logits, the last of which stands for "no object"; a box (center x,
    center y, width, height) in shares of the image, each the sigmoid of a map of three layers; and with `align` a
    projection of l2 norm 1, for contrastive alignment with tokens. It has no loss of its own: `sherl.losses.detection`
    matches boxes.

    Parameters
    ----------
    features : int
        Channels of the input.
    classes : int
        Number of classes without "no object"; with soft tokens the number of token positions.
    hidden : int, optional
        Channels inside the map to boxes; as many as `features` when None.
    align : int
        Channels of the projection; 0 for none.
    dropout : float
        Rate before the maps, in training.
    seed : int
        Of the first weights, where the block is used alone.
    """

    _has_loss = False

    def __init__(self, features: int, classes: int, hidden: int | None = None, align: int = 0, dropout: float = 0.0, *,
                 seed: int = 0) -> None:
        self.classes = whole_number(classes, "classes", 1)
        self.align = whole_number(align, "align", 0)
        super().__init__(features, self.classes + 5 + self.align, rate(dropout, "dropout"), seed)
        self.hidden = self.features if hidden is None else whole_number(hidden, "hidden", 1)

    @property
    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("features", "classes", "hidden", "align", "dropout")}

    def _least_parameters(self) -> int:
        return (self.features * (self.classes + 1 + self.hidden + self.align) + self.hidden * (self.hidden + 4))

    def _build(self, graph: _core.Graph, prefix: str, inputs: Sequence[int]) -> int:
        return graph.detector(prefix, inputs[0], classes=self.classes + 1, hidden=self.hidden, align=self.align,
                              dropout=self.dropout)
