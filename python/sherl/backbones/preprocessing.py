"""Images to what a model takes, as a folder's preprocessor_config.json says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from .._typing import Array, Float32s, PathLike, Record
from ..checks import flag, real_number, whole_number
from .files import read_json

PREPROCESSOR = "preprocessor_config.json"

_RESAMPLING = {0: "NEAREST", 1: "LANCZOS", 2: "BILINEAR", 3: "BICUBIC"}


class Preprocessor:
    """Resizing, cropping and scaling of images.

    Parameters
    ----------
    folder : str or path-like
        Its preprocessor_config.json is read when it is first used.
    channels : int
        Of the images.
    """

    def __init__(self, folder: PathLike, channels: int) -> None:
        self._path = Path(folder) / PREPROCESSOR
        self._channels = channels
        self._read: dict[str, Any] | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the settings, in hexadecimal."""
        settings = {name: np.asarray(value).tolist() for name, value in self._settings().items()}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width that an image of these gets."""
        settings = self._settings()
        height, width = _resized_size(settings["size"], height, width)
        return settings["crop"] or (height, width)

    def __call__(self, image: Array) -> Array:
        """Return one image (height, width, channels), uint8 or float from 0 to 1, as the model takes it."""
        settings = self._settings()
        size = _resized_size(settings["size"], *image.shape[:2])
        if size != image.shape[:2]:
            image = _resized(image, size, settings["resampling"])
        if settings["crop"] is not None:
            image = self._cropped(image, *settings["crop"])
        if image.dtype == np.uint8:
            image = image * settings["factor"]
        scaled: Array = (image.astype(np.float32) - settings["mean"]) / settings["deviation"]
        return scaled

    def _cropped(self, image: Array, height: int, width: int) -> Array:
        if image.shape[0] < height or image.shape[1] < width:
            raise ValueError(f"images must have {height} x {width} pixels or more to be cropped, as {self._path} says, "
                             f"got {image.shape[0]} x {image.shape[1]}")
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return image[top : top + height, left : left + width]

    def _settings(self) -> dict[str, Any]:
        if self._read is None:
            if not self._path.is_file():
                raise FileNotFoundError(f"{self._path} does not exist, and tells how images are resized and scaled; "
                                        "pass what the model takes, as float with preprocessed=True")
            try:
                self._read = _read_settings(read_json(self._path), self._channels)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self._path}: {error}") from error
        return self._read


def _read_settings(config: Record, channels: int) -> dict[str, Any]:
    crop = config.get("crop_size") if flag(config.get("do_center_crop", False), "do_center_crop") else None
    crop = None if crop is None else _read_size(crop, "crop_size", False)
    size = config.get("size") if flag(config.get("do_resize", True), "do_resize") else None
    # Before sizes had names, a number was the shorter side where a crop follows, else both.
    size = None if size is None else _read_size(size, "size", crop is not None)
    if isinstance(crop, int):
        raise ValueError(f"crop_size must tell height and width, got {config['crop_size']!r}")
    resampling = config.get("resample", 2)
    if resampling not in _RESAMPLING:
        raise ValueError(f"resample must be one of {', '.join(map(str, _RESAMPLING))}, got {resampling!r}")
    rescaled = flag(config.get("do_rescale", True), "do_rescale")
    normalized = flag(config.get("do_normalize", True), "do_normalize")
    if not rescaled:
        raise ValueError("do_rescale must be true")
    return {
        "size": size,
        "crop": crop,
        "resampling": _RESAMPLING[resampling],
        "factor": np.float32(real_number(config.get("rescale_factor", 1 / 255), "rescale_factor", above=0.0)),
        "mean": _read_channels(config, "image_mean", channels, None) if normalized else np.float32(0),
        "deviation": _read_channels(config, "image_std", channels, 0.0) if normalized else np.float32(1),
    }


def _read_size(size: Any, name: str, shorter: bool) -> int | tuple[int, int]:
    """Return height and width, or the length of the shorter side."""
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return whole_number(size["shortest_edge"], name, 1)
    if isinstance(size, dict) and set(size) == {"height", "width"}:
        return whole_number(size["height"], name, 1), whole_number(size["width"], name, 1)
    if isinstance(size, dict):
        raise ValueError(f"{name} must have height and width, or shortest_edge, got {', '.join(map(str, size))}")
    size = whole_number(size, name, 1)
    return size if shorter else (size, size)


def _read_channels(config: Record, name: str, channels: int, above: float | None) -> Float32s:
    values = config.get(name)
    if not isinstance(values, list) or len(values) != channels:
        raise ValueError(f"{name} must be a list of {channels} numbers, got {values!r}")
    return np.array([real_number(value, name, above=above) for value in values], np.float32)


def _resized_size(size: Any, height: int, width: int) -> tuple[int, int]:
    if isinstance(size, int):
        short, long = min(height, width), max(height, width)
        longer = int(size * long / short)
        return (size, longer) if height <= width else (longer, size)
    return size or (height, width)


def _resized(image: Array, size: tuple[int, int], resampling: str) -> Array:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(f"resizing images, here from {image.shape[0]} x {image.shape[1]} pixels to {size[0]} x "
                          f"{size[1]}, needs the pillow package: pip install 'sherl[image]'") from None
    method = getattr(Image.Resampling, resampling)
    # Channel by channel, which Pillow can do with reals too.
    channels = [
        np.asarray(Image.fromarray(np.ascontiguousarray(image[..., channel])).resize(size[::-1], method))
        for channel in range(image.shape[2])
    ]
    return np.stack(channels, axis=-1)
