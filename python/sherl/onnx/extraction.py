"""Taps of any ONNX model by the names of its tensors, computed by ONNX Runtime."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._typing import Array, ArrayLike, Element, PathLike
from ..checks import flag, one_of, whole_number
from ..features.features import read_sequence
from ..features.parts import TapParts
from ..training.progress import PATIENCE, progress_bar

if TYPE_CHECKING:
    from ..features.features import Features

__all__ = ["extract"]


def extract(model: PathLike | bytes, inputs: Mapping[str, ArrayLike] | Iterable[Mapping[str, ArrayLike]],
            taps: Sequence[str], *, mask: str = "attention_mask", images: str = "nchw", batch_size: int = 32,
            dtype: Element = "float32", providers: Sequence[str] = ("CPUExecutionProvider",),
            progress: bool = True) -> Features:
    """Run an ONNX model and keep some of the tensors inside it.

    Parameters
    ----------
    model : str, path-like or bytes
        The model.
    inputs : dict of str to array_like, or iterable of such
        All inputs by name, of one batch that is cut into pieces of `batch_size` samples; or batches, one after another.
        Entries that the model has no input for are left out of the call: a mask for `mask` alone, say.
    taps : sequence of str
        Names of tensors, the guide last: outputs of any nodes. Tokens are (batch, tokens, channels), images have four
        dimensions; the last tap may be (batch, channels): the output of a tower.
    mask : str
        Which entry tells the tokens that are meant, (batch, tokens) of 1 and 0. Tokens where it is 0 are left out of
        the features, and so is the padding. Where there is none, all tokens count.
    images : {"nchw", "nhwc"}
        How taps of four dimensions lie.
    batch_size : int
        Samples of a piece.
    dtype : {"float32", "float16", "bfloat16", "int8"}
        How the taps are stored; bfloat16 as uint16, int8 with one scale a row.
    providers : sequence of str
        Execution providers of ONNX Runtime.
    progress : bool
        Whether to show a progress bar where it takes more than two seconds and tqdm is installed.

    Returns
    -------
    Features
        In the order of the samples. Their source is the model's SHA-256 and the names of the taps.

    Raises
    ------
    ImportError
        Without the onnx or the onnxruntime package.
    ValueError
        Where the model has no tensor of a name, lacks an input, or tensors do not fit each other.
    """
    names = [str(name) for name in read_sequence(taps)]
    if len(set(names)) < len(names):
        raise ValueError(f"taps must be different names, got {', '.join(names)}")
    one_of(images, "images", ("nchw", "nhwc"))
    one_of(dtype, "dtype", ("float32", "float16", "bfloat16", "int8"))
    session, fingerprint = _open(model, names, list(providers))
    batches = _pieces(inputs, whole_number(batch_size, "batch_size", 1)) if isinstance(inputs, Mapping) else inputs
    wanted = [given.name for given in session.get_inputs()]
    parts = TapParts(names, images, dtype)
    total = len(batches) if isinstance(batches, Sized) else None
    with progress_bar(flag(progress, "progress"), total, "extract", delay=PATIENCE) as bar:
        for batch in batches:
            missing = [name for name in wanted if name not in batch]
            if missing:
                raise ValueError(f"inputs must have {', '.join(missing)}, which the model reads, got "
                                 f"{', '.join(batch)}")
            states = session.run(names, {name: np.asarray(batch[name]) for name in wanted})
            parts.add(states, batch.get(mask))
            bar.update(1)
    return parts.features({"backbone": fingerprint, "states": names})


def _open(model: PathLike | bytes, taps: list[str], providers: list[str]) -> tuple[Any, str]:
    """Return a session that gives the taps, and the SHA-256 of the model."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"taps of ONNX models need the package {error.name}: pip install 'sherl[onnx]'") from None
    content = model if isinstance(model, bytes) else _read(model)
    try:
        made = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own
        raise ValueError(f"model is not a whole ONNX file: {error}") from error
    known = {name for node in made.graph.node for name in node.output}
    missing = [name for name in taps if name not in known]
    if missing:
        raise ValueError(f"taps must be names of tensors of the model, which has no {', '.join(map(repr, missing))}")
    outputs = {output.name for output in made.graph.output}
    shown = {value.name: value for value in made.graph.value_info}
    for name in taps:
        if name not in outputs:
            made.graph.output.append(shown.get(name, onnx.ValueInfoProto(name=name)))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not isinstance(model, bytes):
        # Where weights lie in files beside the model.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path",
                                         os.fspath(Path(model).resolve().parent))
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=providers)
    return session, hashlib.sha256(content).hexdigest()


def _read(path: PathLike) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None


def _pieces(inputs: Mapping[str, ArrayLike], batch_size: int) -> list[dict[str, Array]]:
    """Return views of the samples of one batch, some at a time."""
    arrays = {str(name): np.asarray(values) for name, values in inputs.items()}
    sizes = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"inputs must have one entry a sample each, got {', '.join(map(str, sorted(sizes)))} entries")
    return [{name: array[start : start + batch_size] for name, array in arrays.items()}
            for start in range(0, sizes.pop(), batch_size)]
