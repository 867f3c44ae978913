"""Features in a folder: opening them, and writing those of any source piece by piece."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._typing import Element, Integers, PathLike, Record
from ..checks import differences, flag
from .manifest import (
    LAYERS,
    Manifest,
    check_sizes,
    map_array,
    read_manifest,
    scales_file,
    tap_file,
    verify_files,
    verify_once,
)
from .rows import Segments, offsets_of, pixels_of, read_positions
from .writer import StoreWriter

if TYPE_CHECKING:
    from ..blocks.late import OwnLayer
    from .features import Features

_PIECE_BYTES = 8 << 20  # of the rows that are gathered at a time

# Fields of taps that do not share the rows of the others, by number: heights and widths of images, or rows.
_SIZES, _LENGTHS = "sizes.{}", "lengths.{}"


def read(folder: PathLike, verify: bool | None = None) -> dict[str, Any]:
    """Return what `Features` hold, by name, of a folder."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_sizes(folder, manifest)
    if verify is None:
        verify_once(folder, manifest)
    elif flag(verify, "verify"):
        verify_files(folder, manifest)
    fields = {
        name: np.array(map_array(folder, file, *kind))
        for name, (file, kind) in zip(manifest.fields, manifest.field_files().items())
    }
    arrays = {name: map_array(folder, name, *kind) for name, kind in manifest.tap_files().items()}
    offsets, own = _segments(folder, manifest, fields)
    return {
        "arrays": [arrays[tap_file(number)] for number in range(len(manifest.taps))],
        "elements": [tap["element"] for tap in manifest.taps],
        "offsets": offsets, "rows": None, "samples": None, "source": manifest.source,
        "scales": [arrays.get(scales_file(number)) for number in range(len(manifest.taps))],
        "positions": read_positions(fields["positions"], np.diff(offsets)) if "positions" in fields else None,
        "own": own, "preprocessing": manifest.preprocessing,
        "layers": StoredLayers(folder, manifest) if manifest.layers else (),
    }


def _fields(features: Features) -> dict[str, Integers]:
    """Return the whole numbers that every sample has, by name."""
    fields = {"lengths": features.lengths}
    if features.positions is not None:
        fields["positions"] = features.positions
    for number, own in enumerate(features.batch().own or ()):
        if own is not None and own.sizes is not None:
            fields[_SIZES.format(number)] = own.sizes
        elif own is not None:
            fields[_LENGTHS.format(number)] = np.diff(own.offsets)
    return fields


def fields_of(sizes: Sequence[Integers]) -> dict[str, Integers]:
    """Return the whole numbers of every sample, by name, of the taps' sizes: lengths, or heights and widths."""
    if sizes[0].ndim == 1:
        return {"lengths": sizes[0]}
    fields = {_SIZES.format(number): array for number, array in enumerate(sizes)}
    return {"lengths": sizes[-1].prod(axis=1), **fields}


def own_segments(fields: Mapping[str, Integers], taps: int) -> list[Segments | None]:
    """Return for each of some taps the rows of each sample where it has its own, else None."""
    return [_own_segments(fields, tap) for tap in range(taps)]


def _own_segments(fields: Mapping[str, Integers], tap: int) -> Segments | None:
    if (sizes := fields.get(_SIZES.format(tap))) is not None:
        return pixels_of(sizes)
    lengths = fields.get(_LENGTHS.format(tap))
    return None if lengths is None else Segments(offsets_of(lengths), None)


def _segments(folder: Path, manifest: Manifest,
              fields: Mapping[str, Integers]) -> tuple[Integers, list[Segments | None] | None]:
    """Return the offsets of samples, and by tap the segments of those that have their own, or None; checked."""
    taps = range(len(manifest.taps))
    known = {"lengths", "positions", *map(_SIZES.format, taps), *map(_LENGTHS.format, taps)}
    if unknown := fields.keys() - known:
        raise ValueError(f"{folder} has numbers of samples that this sherl does not know: {', '.join(sorted(unknown))}")
    offsets = offsets_of(fields.get("lengths", np.zeros(0, np.int64)))
    own = own_segments(fields, len(taps))
    for number, tap in enumerate(manifest.taps):
        segments = own[number]
        found = offsets if segments is None else segments.offsets
        if len(found) != manifest.samples + 1 or np.diff(found).min(initial=0) < 0 or found[-1] != tap["rows"]:
            raise ValueError(f"{folder}: the numbers of rows of the samples do not fit tap {number}")
    return offsets, own if any(segments is not None for segments in own) else None


class StoredLayers:
    """The frozen layers of a folder, read when they are gone through."""

    def __init__(self, folder: PathLike, manifest: Manifest) -> None:
        self.path, self.records, self._parts = Path(folder) / LAYERS, manifest.layers, manifest.files[LAYERS]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[OwnLayer]:
        from ..network.late_layers import unpack

        content = self.path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self._parts[0][1]:
            raise ValueError(f"{self.path} was altered: its checksum does not fit")
        return iter(unpack(content, self.records, self.path))


def writer(folder: PathLike, taps: list[tuple[Element, int]], fields: Mapping[str, Integers], *, source: Record | None,
           preprocessing: Record | None = None, inputs: str | None = None, layers: Sequence[OwnLayer] = (),
           recipe: Record | None = None) -> StoreWriter:
    """Return a writer of features; the arguments are those of `Manifest` and `StoreWriter`.

    Parameters
    ----------
    taps : list of (str, int)
        Element and channels of each.
    fields : dict of str to numpy.ndarray of int64
    layers : sequence of TransformerLayer
    """
    from ..network.late_layers import pack

    content, records = pack(layers) if len(layers) else (None, [])
    offsets = offsets_of(fields["lengths"])
    rows = [offsets if own is None else own.offsets for own in own_segments(fields, len(taps))]
    plan = Manifest(
        samples=len(offsets) - 1, source=source, preprocessing=preprocessing, inputs=inputs, layers=records,
        taps=[{"element": element, "rows": int(ends[-1]), "channels": channels}
              for ends, (element, channels) in zip(rows, taps)],
        fields={name: list(array.shape) for name, array in fields.items()},
    )
    return StoreWriter(folder, plan, fields, content, recipe)


def write(parts: Sequence[Features], folder: PathLike, *, dtype: Element | None = None,
          layers: Sequence[OwnLayer] | None = None, inputs: str | None = None, progress: Any = None) -> None:
    """Write features, one after the other, into a folder.

    Parameters
    ----------
    parts : sequence of Features
        Of the same source, taps and preprocessing.
    folder : str or path-like
    dtype : str, optional
        As for `Features.astype`; each tap's own when None.
    layers : sequence of TransformerLayer, optional
        Those of the first part when None.
    inputs : str, optional
        SHA-256 of the inputs.
    progress : progress bar, optional
        Told of every sample.
    """
    first = parts[0]
    _check_alike(parts)
    each = [_fields(part) for part in parts]
    fields = {name: np.concatenate([fields[name] for fields in each]) for name in each[0]}
    taps = [(dtype or element, channels) for element, channels in zip(first.dtypes, first.channels)]
    layers = first.layers if layers is None else list(layers)
    with writer(folder, taps, fields, source=first.source, preprocessing=first.preprocessing, inputs=inputs,
                layers=layers) as store:
        for piece in (piece for part in parts for piece in _pieces(part)):
            piece = piece if dtype is None else piece.astype(dtype)
            store.append(len(piece), piece.taps, piece.scales)
            if progress is not None:
                progress.update(len(piece))
        store.finish()


def _pieces(features: Features) -> Iterator[Features]:
    """Yield the samples in order, a few at a time."""
    batch = features.batch()
    ends = sum(
        batch.offsets_of(number) * (array.shape[1] * array.itemsize)
        for number, (array, *_) in enumerate(features.sources(batch))
    )
    start = 0
    while start < len(features):
        stop = max(int(np.searchsorted(ends, ends[start] + _PIECE_BYTES, side="right")) - 1, start + 1)
        yield features[start:stop]
        start = stop


def _check_alike(parts: Sequence[Features]) -> None:
    """Raise where features cannot be put after each other."""
    for number, part in enumerate(parts[1:], 1):
        if differing := differences(_described(parts[0]), _described(part)):
            raise ValueError(f"features {number} must be like features 0: {differing}")


def _described(features: Features) -> Record:
    return {
        "source": features.source, "preprocessing": features.preprocessing, "dtypes": features.dtypes,
        "channels": features.channels, "numbers of samples": list(_fields(features)),
        "layers": [layer.fingerprint for layer in features.layers],
    }
