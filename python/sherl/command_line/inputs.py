"""What a command is given to read: a text table, a folder of images, features on disk, or arrays of taps."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .._typing import Array, Integers, PathLike
from ..backbones.image import read_images
from ..backbones.samples import arrays_fingerprint
from ..backbones.tokenization import inputs_fingerprint
from ..data.tables import read_table, table_format, write_table
from ..features import Features
from ..features.manifest import MANIFEST
from .arguments import UsageError

if TYPE_CHECKING:
    from .task_file import Task

__all__ = ["LABELS", "Inputs", "read_inputs", "read_labels", "write_labels"]

LABELS = "labels.jsonl"  # beside features on disk: one label a sample, in the column "label"
_COLUMN = "label"
_ARRAYS = (".npy", ".npz")
_TAP = re.compile(r"tap[_.]?(\d+)")
_IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # as torchvision's ImageFolder


@dataclass(frozen=True)
class Inputs:
    """Samples that a command was given, and their labels where it asked for them.

    Attributes
    ----------
    kind : {"text", "image", "features"}
    samples : list of str or pairs of str, list of Path of images, or Features
    labels : sequence of str or None
    place : str
        Where they come from, for messages.
    """

    kind: str
    samples: Any
    labels: Sequence[str] | None
    place: str

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def noun(self) -> str:
        """What a sample is called."""
        return {"text": "texts", "image": "images", "features": "samples"}[self.kind]

    @property
    def features(self) -> Features:
        """The samples where they are features."""
        assert isinstance(self.samples, Features)
        return self.samples

    @property
    def known_labels(self) -> Sequence[str]:
        """The labels of samples that were read with them."""
        assert self.labels is not None
        return self.labels

    @property
    def names(self) -> list[str] | None:
        """Names of the images within their folder, else None."""
        if self.kind != "image":
            return None
        return [path.relative_to(self.place).as_posix() for path in self.samples]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of texts or images, as features on disk have it."""
        if self.kind == "text":
            return inputs_fingerprint(self.samples)
        return arrays_fingerprint(read_images(self.loaded(), 3))

    def chosen(self, index: Integers) -> Inputs:
        """Return the samples of these numbers, in this order."""
        labels = None if self.labels is None else [self.labels[number] for number in index]
        samples = self.samples[index] if self.kind == "features" else [self.samples[number] for number in index]
        return replace(self, samples=samples, labels=labels)

    def loaded(self) -> Any:
        """Return texts, or images as arrays (height, width, 3) of uint8."""
        return [_read_image(path) for path in self.samples] if self.kind == "image" else self.samples


def read_inputs(paths: Sequence[str], *, text: str | None = None, text_pair: str | None = None,
                label: str | None = None, labelled: bool = True, usual: Task | None = None) -> Inputs:
    """Read samples and, where they are wanted, their labels.

    Parameters
    ----------
    paths : list of str
        One text table, one folder of images whose subfolders are their classes, one folder of features, one .npz file
        or folder with the arrays tap_0, tap_1 …, mask and labels; or several .npy files of these names.
    text, text_pair, label : str, optional
        Columns of a table; in arrays `label` names the one of the labels.
    labelled : bool
        Whether labels are wanted.
    usual : Task, optional
        Whose columns are those of a table unless others are named.

    Returns
    -------
    Inputs

    Raises
    ------
    UsageError
        Where a table's columns were not named, or a path is none of these.
    ValueError, OSError
        Where a file is not as it must be.
    """
    first = Path(paths[0])
    if len(paths) > 1 or first.suffix in _ARRAYS:
        return _from_arrays(list(map(Path, paths)), str(first), label, labelled, usual)
    if not first.is_dir():
        if usual is not None:
            text, text_pair, label = text or usual.text, text_pair or usual.text_pair, label or usual.label
        return _from_table(first, text, text_pair, label, labelled)
    if (first / MANIFEST).exists():
        return _from_features(first, labelled)
    if arrays := sorted(first.glob("*.npy")):
        return _from_arrays(arrays, str(first), label, labelled, usual)
    return _from_images(first, labelled)


def write_labels(folder: PathLike, labels: Sequence[str]) -> None:
    """Write labels beside the features in a folder."""
    write_table(Path(folder) / LABELS, [_COLUMN], ([label] for label in labels))


def read_labels(folder: PathLike) -> Sequence[str]:
    """Return the labels beside the features in a folder."""
    return read_table(Path(folder) / LABELS, [_COLUMN])[_COLUMN]


def _from_table(path: Path, text: str | None, text_pair: str | None, label: str | None, labelled: bool) -> Inputs:
    try:
        table_format(path)
    except ValueError as error:
        raise UsageError(f"{error}, a .npz file, .npy files, or a folder of images or features") from None
    needed = {"--text": text, "--label": label} if labelled else {"--text": text}
    if missing := [option for option, value in needed.items() if not value]:
        raise UsageError(f"{path}: {' and '.join(missing)} must name columns of the table")
    text, label = cast(str, text), cast(str, label)  # the label is used where it is wanted, and so known
    table = read_table(path, [name for name in (text, text_pair, label if labelled else None) if name])
    texts = list(zip(table[text], table[text_pair])) if text_pair else list(table[text])
    return Inputs("text", texts, table[label] if labelled else None, str(path))


def _from_features(folder: Path, labelled: bool) -> Inputs:
    labels = None
    if labelled:
        if not (folder / LABELS).exists():
            raise ValueError(f"{folder}: there are no labels beside the features: give --label to `sherl extract`")
        labels = read_labels(folder)
    features = Features.open(folder)
    _check_labels(labels, features, folder)
    return Inputs("features", features, labels, str(folder))


def _from_images(folder: Path, labelled: bool) -> Inputs:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGES and path.is_file())
    if not paths:
        raise ValueError(f"{folder}: expected images, features or .npy files in the folder, but it holds none")
    labels = [path.relative_to(folder).parts[0] for path in paths] if labelled else None
    if labelled and (loose := [path for path in paths if path.parent == folder]):
        raise ValueError(f"{loose[0]}: expected images in a folder for each class, but this one is in none")
    return Inputs("image", paths, labels, str(folder))


def _from_arrays(paths: Sequence[Path], place: str, label: str | None, labelled: bool, usual: Task | None) -> Inputs:
    arrays = _load_npz(paths[0]) if paths[0].suffix == ".npz" else {path.stem: _load(path) for path in paths}
    if paths[0].suffix == ".npz" and len(paths) > 1:
        raise UsageError(f"{paths[1]}: expected a single .npz file, or several .npy files")
    taps = {int(match[1]): name for name in arrays if (match := _TAP.fullmatch(name))}
    if label is None:
        label = usual.label if usual is not None and usual.label in arrays else "labels"
    if unknown := sorted(arrays.keys() - set(taps.values()) - {"mask", "labels", label}):
        raise ValueError(f"{place}: expected the arrays tap_0, tap_1 …, mask and {label}, got {', '.join(unknown)} too")
    if sorted(taps) != list(range(len(taps))) or not taps:
        raise ValueError(f"{place}: expected the arrays tap_0, tap_1 … without gaps, got {', '.join(arrays)}")
    if labelled and label not in arrays:
        raise ValueError(f"{place}: there is no array {label!r}; the arrays are {', '.join(arrays)}")
    try:
        features = Features.from_arrays([arrays[taps[number]] for number in sorted(taps)], arrays.get("mask"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error
    labels = _label_texts(arrays[label], place, label) if labelled else None
    _check_labels(labels, features, place)
    return Inputs("features", features, labels, place)


def _load_npz(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: the file is not an archive of arrays ({error})") from None


def _load(path: Path) -> Array:
    if path.suffix != ".npy":
        raise UsageError(f"{path}: expected a .npy file, as the others are")
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        return array
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: the file is not an array of numbers ({error})") from None


def _label_texts(array: Array, place: str, name: str) -> list[str]:
    if array.ndim != 1 or array.dtype.kind not in "biufU":
        raise ValueError(f"{place}: {name} must be numbers or text of shape (samples,), got {array.dtype} of shape "
                         f"{array.shape}")
    return [str(value) for value in array.tolist()]


def _check_labels(labels: Sequence[str] | None, features: Features, place: PathLike) -> None:
    if labels is not None and len(labels) != len(features):
        raise ValueError(f"{place}: expected {len(features)} labels, one for each sample, got {len(labels)}")


def _read_image(path: Path) -> Array:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ImportError("reading images needs the pillow package: pip install 'sherl[image]'") from None
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: the image cannot be read ({error})") from None
