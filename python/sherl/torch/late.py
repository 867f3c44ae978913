"""Modules of PyTorch as frozen late layers of a side network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .._typing import Array, Bools, Integers, Record
from ..blocks.foreign import ForeignLayer
from ..checks import one_of, whole_number
from ..features.rows import Segments, offsets_of, pixels_of
from .tensors import first_tensor, real_array, to_array, weights_of

__all__ = ["Late"]

PADDED_ROWS = 4096  # that a module gets at once with its padding, unless one sample has more


class Late(ForeignLayer):
    """Frozen module of PyTorch as a late layer of a `SideNetwork`.

    The network then runs in two programs, before the layer and behind it, block by block: some samples go through the
    first, through the module, through the second with the backward part, back through the module, and back through the
    first. Memory stays bounded by a block of some 2,048 rows, but for what PyTorch itself holds. The module is in
    evaluation mode meanwhile, and no gradient is computed for its weights.

    Parameters
    ----------
    module : torch.nn.Module
        It is given a tensor (batch, tokens, features), or images, and gives one of the same batch and tokens; a tuple's
        first tensor, or ``last_hidden_state``, counts. It stays on its device.
    features : int
        Channels of its input.
    out_features : int, optional
        Channels of its output; `features` when None.
    call : callable, optional
        ``call(module, x, mask)`` in place of ``module(x)``, where more than the states must be given: `mask`, bool of
        shape (batch, tokens), tells the tokens of each sample, whose rows come first, padded with zeros. Without it
        samples of one length are computed together and nothing is padded, so that no mask is needed.
    images : {"nchw", "nhwc"}
        How the module wants images, and gives them.

    Attributes
    ----------
    module, features, out_features, call, images
    """

    def __init__(self, module: torch.nn.Module, features: int, out_features: int | None = None, *,
                 call: Callable[[torch.nn.Module, torch.Tensor, torch.Tensor | None], Any] | None = None,
                 images: str = "nchw") -> None:
        if not isinstance(module, torch.nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        if call is not None and not callable(call):
            raise TypeError(f"call must be a function (module, x, mask) -> tensor, got {call!r}")
        features = whole_number(features, "features", 1)
        super().__init__(
            features, features if out_features is None else whole_number(out_features, "out_features", 1)
        )
        self.module, self.call = module, call
        self.images = one_of(images, "images", ("nchw", "nhwc"))
        self._fingerprint: str | None = None

    @property
    def settings(self) -> Record:
        return {"features": self.features, "out_features": self.out_features, "images": self.images}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the kind of module and of its parameters and buffers, in hexadecimal."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self.module)
        return self._fingerprint

    def __repr__(self) -> str:
        return f"Late({type(self.module).__name__}, {self.features}, {self.out_features}, frozen)"

    def __deepcopy__(self, memo: dict[int, Any]) -> Late:
        return self  # it never changes

    def __call__(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the output.

        Parameters
        ----------
        x : torch.Tensor, shape (batch, tokens, features), or images as the module wants them
        mask : torch.Tensor of bool, shape (batch, tokens), optional
            True where a row is meant, with `call`.

        Returns
        -------
        torch.Tensor
        """
        output = self.module(x) if self.call is None else self.call(self.module, x, mask)
        return first_tensor(output, type(self.module).__name__)

    def _frozen_count(self) -> int:
        return sum(tensor.numel() for tensor in self.module.parameters())

    def _segments(self, segments: Segments) -> Segments:
        if segments.sizes is None:
            return segments
        x = np.zeros((int(segments.offsets[-1]), self.features), np.float32)
        return self._run(x, segments, False)[1]

    def _run(self, x: Array, segments: Segments,
             gradient: bool) -> tuple[Array, Segments, Callable[[Array], Array] | None]:
        groups = _groups(segments, padded=self.call is not None)
        modes = {module: module.training for module in self.module.modules()}
        self.module.eval()
        try:
            with torch.set_grad_enabled(gradient):
                runs = [self._run_group(x, group, gradient) for group in groups]
        finally:
            for module, mode in modes.items():
                module.training = mode
        if segments.sizes is not None:
            sizes = np.empty_like(segments.sizes)
            for group, (_, output) in zip(groups, runs):
                sizes[group.samples] = output.shape[1:3]
            segments = pixels_of(sizes)
            for group in groups:
                group.place_outputs(segments)
        y = np.empty((int(segments.offsets[-1]), self.out_features), x.dtype)
        for group, (_, output) in zip(groups, runs):
            y[group.output_rows] = real_array(output.reshape(-1, self.out_features))[group.kept]
        return y, segments, (lambda dy: self._pull(x, groups, runs, dy)) if gradient else None

    def _run_group(self, x: Array, group: _Group, gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the input of the module, a leaf, and its output, (batch, tokens, channels) or images channels last."""
        tensors = (tensor for tensor in weights_of(self.module).values() if tensor.is_floating_point())
        like = next(tensors, torch.from_numpy(x))
        rows = np.zeros((np.prod(group.shape, dtype=int), self.features), x.dtype)
        rows[group.kept] = x[group.rows]
        given = torch.from_numpy(rows).to(like.device, like.dtype).reshape(*group.shape, self.features)
        given.requires_grad_(gradient)
        first = len(group.shape) == 3 and self.images == "nchw"
        entering = given.clone() if gradient else given  # which the module may write over
        mask = None if group.mask is None else torch.from_numpy(group.mask).to(like.device)
        output = self(entering.permute(0, 3, 1, 2) if first else entering, mask)
        output = output.permute(0, 2, 3, 1) if first and output.ndim == 4 else output
        images = len(group.shape) == 3
        fits = output.ndim == 4 if images else output.shape[:-1] == group.shape
        if not fits or output.shape[0] != group.shape[0] or output.shape[-1] != self.out_features:
            wanted = (f"images of {self.out_features} channels in the layout {self.images!r}" if images else
                      f"shape {(*group.shape, self.out_features)}")
            raise ValueError(f"the late layer {type(self.module).__name__} must give {wanted}, got "
                             f"{tuple(output.shape)}")
        return given, output

    def _pull(self, x: Array, groups: list[_Group], runs: list[tuple[torch.Tensor, torch.Tensor]], dy: Array) -> Array:
        dx = np.empty_like(x)
        for group, (given, output) in zip(groups, runs):
            cotangent = np.zeros((output.numel() // self.out_features, self.out_features), dy.dtype)
            cotangent[group.kept] = dy[group.output_rows]
            cotangent = torch.from_numpy(cotangent).to(output.device, output.dtype).reshape(output.shape)
            gradient, = torch.autograd.grad(output, given, cotangent)
            dx[group.rows] = real_array(gradient.reshape(-1, self.features))[group.kept]
        return dx


class _Group:
    """Samples that a module computes at once.

    Attributes
    ----------
    samples : numpy.ndarray of int64
    shape : tuple
        (samples, tokens) or (samples, height, width).
    mask : numpy.ndarray of bool, shape (samples, tokens), or None
    rows, output_rows : numpy.ndarray of int64
        Of the input and the output of the layer.
    kept : numpy.ndarray of bool or slice
        Which rows of the padded tensor these are.
    """

    def __init__(self, segments: Segments, samples: Integers, shape: tuple[int, ...], mask: Bools | None) -> None:
        self.samples, self.shape, self.mask = samples, shape, mask
        self.rows = _rows_of(segments, samples)
        self.output_rows = self.rows
        self.kept = slice(None) if mask is None else mask.ravel()

    def place_outputs(self, segments: Segments) -> None:
        self.output_rows = _rows_of(segments, self.samples)


def _groups(segments: Segments, padded: bool) -> list[_Group]:
    lengths = np.diff(segments.offsets)
    if padded and segments.sizes is None:
        return _padded_groups(segments, lengths)
    kinds = lengths[:, None] if segments.sizes is None else segments.sizes
    shapes, inverse = np.unique(kinds, axis=0, return_inverse=True)
    groups = [np.flatnonzero(inverse.ravel() == number) for number in range(len(shapes))]
    return [_Group(segments, samples, (len(samples), *map(int, shape)), None)
            for samples, shape in zip(groups, shapes)]


def _padded_groups(segments: Segments, lengths: Integers) -> list[_Group]:
    """Cut samples, sorted by length, into groups that take no more than `PADDED_ROWS` rows with their padding."""
    order, groups = np.argsort(-lengths, kind="stable"), []
    while len(order):
        longest = lengths[order[0]]
        chosen = np.sort(order[: max(1, PADDED_ROWS // longest)])
        order = order[len(chosen) :]
        mask = np.arange(longest) < lengths[chosen][:, None]
        groups.append(_Group(segments, chosen, mask.shape, mask))
    return groups


def _rows_of(segments: Segments, samples: Integers) -> Integers:
    lengths = np.diff(segments.offsets)[samples]
    starts = segments.offsets[samples]
    ends = offsets_of(lengths)
    return np.repeat(starts - ends[:-1], lengths) + np.arange(ends[-1])


def fingerprint_of(module: torch.nn.Module) -> str:
    """Return the SHA-256 of the kind of a module and of its parameters and buffers, in hexadecimal."""
    digest = hashlib.sha256(type(module).__qualname__.encode())
    for name, tensor in sorted(weights_of(module).items()):
        digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(np.ascontiguousarray(to_array(tensor)))
    return digest.hexdigest()
