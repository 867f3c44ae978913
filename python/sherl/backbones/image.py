"""The stem of image models: patches, class tokens and positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import _core
from .._typing import Array, Integers, PathLike, Record, Source, StateDict
from ..features.rows import offsets_of
from .preprocessing import Preprocessor
from .samples import Samples, arrays_fingerprint


class ImageStem:
    """A linear map on patches, with class token and registers where a model has them, positions, and their norm.

    Parameters
    ----------
    folder : str or path-like
        Of the preprocessing.
    facts : dict
    arrays : dict of str to numpy.ndarray
        By role.
    """

    max_length = None

    def __init__(self, folder: PathLike, facts: Record, arrays: StateDict) -> None:
        self.facts, self.arrays = facts, arrays
        self._preprocess = Preprocessor(folder, facts["channels"])
        extra = [arrays[name].reshape(-1, facts["features"]) for name in ("class", "registers") if name in arrays]
        self._extra = sum(map(len, extra))
        self._tables: dict[tuple[int, int], Array] = {}

    @property
    def out_features(self) -> int:
        """Channels of state 0."""
        return int(self.facts["features"])

    def read(self, images: Any, preprocessed: bool) -> Samples:
        """Return images, checked, as `Samples`."""
        channels = self.facts["channels"]
        images, sizes, preprocess, facts = read_preprocessed(images, channels, preprocessed, self._preprocess)
        grids = [self._grid(*size) for size in sizes]
        lengths = np.array([rows * columns + self._extra for rows, columns in grids], np.int64)

        def inputs(start: int, stop: int) -> list[Source]:
            chosen = [preprocess(image) for image in images[start:stop]]
            return [(self._patches(chosen, lengths[start:stop]), None), self._positions(grids[start:stop])]

        return Samples(lengths, inputs, lambda: arrays_fingerprint(images), facts)

    def build(self, graph: _core.Graph) -> int:
        """Add the stem to a graph, and return state 0."""
        facts, space = self.facts, graph.space("tokens")
        arrays = {"patch": self.arrays["patch_weight"].reshape(facts["features"], -1)}
        arrays |= {name: array for name, array in self.arrays.items() if name.startswith("norm")}
        weights = {name: graph.parameter(f"stem.{name}", array.shape, "frozen", data=array)
                   for name, array in arrays.items()}
        patches = graph.input("patches", space, facts["channels"] * facts["patch"] ** 2)
        positions = graph.input("positions", space, facts["features"])
        x = graph.add(graph.linear(patches, weights["patch"]), positions)
        if "norm_weight" in weights:
            x = graph.layer_norm(x, weights["norm_weight"], weights["norm_bias"], facts["eps"])
        return x

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of patches."""
        image, patch = self.facts["image"], self.facts["patch"]
        if not self.facts.get("interpolates") and (height, width) != (image, image):
            raise ValueError(f"images must have {image} x {image} pixels, got {height} x {width}")
        if height % patch or width % patch or 0 in (height, width):
            raise ValueError(f"images must have height and width in multiples of {patch}, got {height} x {width}")
        return height // patch, width // patch

    def _patches(self, images: Sequence[Array], lengths: Integers) -> Array:
        """Return the pixels of each patch as a row, after rows of zeros for the extra tokens of its image."""
        patch, channels = self.facts["patch"], self.facts["channels"]
        rows = np.zeros((int(lengths.sum()), channels * patch**2), np.float32)
        for image, start in zip(images, offsets_of(lengths)):
            down, across = image.shape[0] // patch, image.shape[1] // patch
            pixels = image.reshape(down, patch, across, patch, channels).transpose(0, 2, 4, 1, 3)
            start += self._extra
            rows[start : start + down * across] = pixels.reshape(down * across, -1)
        return rows

    def _positions(self, grids: Sequence[tuple[int, int]]) -> Source:
        """Return what is added to the mapped patches, as rows of a table and their numbers."""
        kinds = list(dict.fromkeys(grids))
        tables = [self._table(grid) for grid in kinds]
        starts = dict(zip(kinds, offsets_of(np.array([len(table) for table in tables]))))
        numbers = [starts[grid] + np.arange(len(self._table(grid))) for grid in grids]
        return (tables[0] if len(tables) == 1 else np.concatenate(tables)), np.concatenate(numbers).astype(np.int64)

    def _table(self, grid: tuple[int, int]) -> Array:
        """Return what is added to an image's mapped rows: its extra tokens, then positions with the map's bias."""
        if grid not in self._tables:
            facts, arrays = self.facts, self.arrays
            positions = arrays["positions"].reshape(-1, facts["features"])
            first = len(positions) - (facts["image"] // facts["patch"]) ** 2
            extra = [positions[:first] + arrays["class"].reshape(-1, facts["features"])] if first else []
            if "registers" in arrays:
                extra.append(arrays["registers"].reshape(-1, facts["features"]))
            rest = interpolated(positions[first:], grid) + arrays.get("patch_bias", np.float32(0))
            self._tables[grid] = np.ascontiguousarray(np.concatenate([*extra, rest]), np.float32)
        return self._tables[grid]


def read_preprocessed(
    images: Any, channels: int, preprocessed: bool, preprocessor: Preprocessor
) -> tuple[list[Array], list[tuple[int, int]], Callable[[Array], Array], Record]:
    """Return images as arrays, their sizes as the model gets them, what is to be done with each, and facts about that.

    Parameters
    ----------
    images : array_like, or sequence of array_like
        As for `read_images`.
    channels : int
    preprocessed : bool
        Whether the model takes them as they are.
    preprocessor : Preprocessor
    """
    images = read_images(images, channels)
    if preprocessed:
        if images[0].dtype == np.uint8:
            raise TypeError("images must be float where they are preprocessed, got uint8")
        return images, [image.shape[:2] for image in images], lambda image: image, {"inputs": "pixels"}
    for number, image in enumerate(images):
        if image.dtype != np.uint8 and not (image.min() >= 0 and image.max() <= 1):
            raise ValueError(f"images must be uint8, or float from 0 to 1, but image {number} has values from "
                             f"{image.min():g} to {image.max():g}; pass what the model takes with preprocessed=True")
    sizes = [preprocessor.size(*image.shape[:2]) for image in images]
    return images, sizes, preprocessor, {"inputs": "images", "preprocessor": preprocessor.fingerprint}


def read_images(images: Any, channels: int) -> list[Array]:
    """Return images as a list of arrays (height, width, channels), all uint8 or all float32.

    Parameters
    ----------
    images : array_like, or sequence of array_like
        (images, height, width, channels) or (images, channels, height, width), or a sequence of images of such shapes,
        which may differ in size.
    channels : int
    """
    if isinstance(images, str) or not hasattr(images, "__iter__"):
        raise TypeError(f"images must be an array or a sequence of arrays, got {type(images).__name__}")
    read = [_read_image(image, number, channels) for number, image in enumerate(images)]
    if not read:
        raise ValueError("images must hold at least one image, got none")
    if len({image.dtype for image in read}) > 1:
        raise TypeError("images must be all uint8 or all float")
    return read


def _read_image(image: Any, number: int, channels: int) -> Array:
    try:
        array = np.asarray(image)
    except Exception as error:
        raise TypeError(f"image {number} cannot be read as an array: {error}") from error
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise TypeError(f"images must be uint8 or float, but image {number} has dtype {array.dtype}")
    if array.ndim != 3 or channels not in (array.shape[0], array.shape[2]) or 0 in array.shape:
        raise ValueError(f"image {number} must have shape (height, width, {channels}) or ({channels}, height, width), "
                         f"got {array.shape}")
    array = array if array.shape[2] == channels else array.transpose(1, 2, 0)
    if array.dtype == np.uint8:
        return array
    array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"image {number} must hold finite numbers")
    return array


def interpolated(table: Array, grid: tuple[int, int]) -> Array:
    """Return rows of a square grid, (side * side, channels), resampled to another grid by bicubic interpolation.

    With the kernel of R. Keys, "Cubic convolution interpolation for digital image processing", 1981, at a = -0.75, and
    the border repeated, as torch.nn.functional.interpolate does.
    """
    side = round(len(table) ** 0.5)
    if grid == (side, side):
        return table
    cube = table.reshape(side, side, -1).astype(np.float64)
    cube = np.einsum("yi,ijc->yjc", _cubic(side, grid[0]), cube)
    cube = np.einsum("xj,yjc->yxc", _cubic(side, grid[1]), cube)
    rows: Array = cube.reshape(grid[0] * grid[1], -1)
    return rows


def _cubic(size: int, count: int) -> Array:
    """Return the weights of `size` points for each of `count` that cover the same length."""
    places = (np.arange(count) + 0.5) * (size / count) - 0.5
    left = np.floor(places).astype(int)
    weights = np.zeros((count, size))
    a = -0.75
    for step in range(-1, 3):
        distance = np.abs(places - (left + step))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        points = np.clip(left + step, 0, size - 1)
        np.add.at(weights, (np.arange(count), points), np.where(distance <= 1, near, far))
    return weights
