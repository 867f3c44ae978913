"""Late layers that are computed outside the core, between two of its programs: what the network asks of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._typing import Array

if TYPE_CHECKING:
    from ..features.rows import Segments


class ForeignLayer:
    """A frozen late layer that something else than the core computes. `sherl.torch.Late` is one.

    Attributes
    ----------
    features, out_features : int
        Channels of its input and output.
    settings : dict
        What is saved to describe it, beside its fingerprint.
    """

    trainable = False
    _is_frozen = True
    _network = False

    def __init__(self, features: int, out_features: int) -> None:
        self.features, self.out_features = features, out_features

    @property
    def settings(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of what else the output depends on, in hexadecimal."""
        raise NotImplementedError

    def num_parameters(self, trainable_only: bool = True) -> int:
        """Count parameters; none are trained."""
        return 0 if trainable_only else self._frozen_count()

    def _inputs(self) -> list[tuple[str, int]]:
        return [("x", self.features)]

    def _frozen_count(self) -> int:
        raise NotImplementedError

    def _least_parameters(self) -> int:
        return 0

    def _with_dropout(self, other: object) -> ForeignLayer:
        return self

    def _run(self, x: Array, segments: Segments,
             gradient: bool) -> tuple[Array, Segments, Callable[[Array], Array] | None]:
        """Compute the output for some samples.

        Parameters
        ----------
        x : numpy.ndarray, shape (rows, features)
        segments : Segments
            Which rows are a sample's; with `sizes` where they are the pixels of images.
        gradient : bool
            Whether the gradient will be asked for.

        Returns
        -------
        numpy.ndarray, shape (rows, out_features)
        Segments
            Of the output: tokens stay as they are, images may change their size.
        callable or None
            Gradient of the output -> gradient of `x`.
        """
        raise NotImplementedError

    def _segments(self, segments: Segments) -> Segments:
        """Return the segments that the output will have."""
        raise NotImplementedError
