"""Frozen late layers as one safetensors file, so that a network can be trained and loaded without its backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._typing import Array, PathLike, Record
from .saving import _LATE, import_safetensors

if TYPE_CHECKING:
    from ..blocks.late import OwnLayer


def pack(layers: Sequence[OwnLayer]) -> tuple[bytes, list[Record]]:
    """Return frozen layers as the bytes of a file, and a record of each that `unpack` makes it of.

    Parameters
    ----------
    layers : sequence of TransformerLayer

    Returns
    -------
    bytes
    list of dict
    """
    safetensors = import_safetensors("storing late layers")
    arrays, records = {}, []
    for number, layer in enumerate(layers):
        if type(layer).__name__ not in _LATE or layer.fingerprint is None:
            raise ValueError(f"layers must be frozen {' or '.join(_LATE)}, got {layer!r:.80} as number {number}")
        records.append({"type": type(layer).__name__, "settings": layer.settings, "fingerprint": layer.fingerprint})
        arrays.update({f"{number}.{role}": array for role, array in (layer._frozen or {}).items()})
    return safetensors.save(arrays), records


def unpack(content: bytes, records: Sequence[Record], path: PathLike) -> list[OwnLayer]:
    """Return the layers of a file's bytes.

    Raises
    ------
    ValueError
        Where a layer has another fingerprint than its record.
    """
    safetensors = import_safetensors("reading late layers")
    try:
        arrays = safetensors.load(content)
        layers = [_made(number, record, arrays) for number, record in enumerate(records)]
    except Exception as error:  # its own error type, and those of what its numpy layer calls
        raise ValueError(f"{path} does not hold the late layers that the manifest describes: {error}") from error
    for number, (layer, record) in enumerate(zip(layers, records)):
        if layer.fingerprint != record["fingerprint"]:
            raise ValueError(f"{path}: layer {number} does not have the fingerprint that the manifest tells")
    return layers


def _made(number: int, record: Record, arrays: Mapping[str, Array]) -> OwnLayer:
    prefix = f"{number}."
    kind: type[Any] = _LATE[record["type"]]
    layer: OwnLayer = kind(**record["settings"])
    layer._frozen = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return layer
