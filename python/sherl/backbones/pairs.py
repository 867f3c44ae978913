"""Encoder-decoder backbones of texts: the taps of pairs, and what the decoder needs beside its layers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .. import _core
from .._typing import Element, Integers, Record, StateDict
from ..checks import flag, one_of, whole_number
from ..features.disk import fields_of
from ..features.rows import offsets_of
from ..features.seq2seq import Seq2SeqFeatures
from ..features.sinks import DTYPES, MemorySink
from ..training.progress import PATIENCE, progress_bar
from .tokenization import read_texts

if TYPE_CHECKING:
    from .backbone import Backbone
    from .files import Tensors
    from .onnx_weights import OnnxTensors

# The layers, numbered from 0, whose outputs are tapped beside the embeddings, by how many layers there are. The last
# decoder layer is the late one.
_ENCODER_LAYERS = {12: (1, 2, 3, 5, 6, 7, 9, 10, 11), 24: (*range(1, 22, 2), 22, 23)}
_DECODER_LAYERS = {12: (1, 2, 3, 5, 6, 7, 9, 10), 24: (*range(1, 22, 2), 22)}
_MOST_LAYERS = 12  # where nothing is published


class LanguageDecoder:
    """The decoder of a backbone, beside its layers.

    Attributes
    ----------
    lm_head : numpy.ndarray, shape (words, features)
    scale : float
        What the decoder's output is multiplied by before it.
    norm : numpy.ndarray, shape (features,)
        Factors of the norm after the last layer.
    start, end : int
        The tokens that a decoder's input begins with, and that its output ends with.
    """

    def __init__(self, facts: Record, stem_arrays: StateDict, tensors: Tensors | OnnxTensors) -> None:
        features = facts["features"]
        self.norm = tensors.read("decoder.final_layer_norm.weight", (features,))
        self.lm_head = stem_arrays["words"]
        if "lm_head.weight" in tensors:
            self.lm_head = tensors.read("lm_head.weight", (facts["vocabulary"], features))
        self.scale = features**-0.5 if facts["scaled"] else 1.0
        self.start, self.end = facts["start"], facts["end"]


def default_taps(backbone: Backbone) -> tuple[list[int], list[int]]:
    """Return the states of encoder and decoder that a side network taps where nothing else is asked for."""
    encoder, decoder = len(backbone.layers), len(backbone.decoder_layers)
    return (_default(_ENCODER_LAYERS.get(encoder), encoder),
            _default(_DECODER_LAYERS.get(decoder), decoder - 1))


def _default(published: Sequence[int] | None, layers: int) -> list[int]:
    if published is None:
        every = -(-layers // _MOST_LAYERS) or 1
        published = range((layers - 1) % every, layers, every)
    return [0, *(number + 1 for number in published)]


def read_pair_taps(backbone: Backbone, encoder_taps: Sequence[int] | None,
                   decoder_taps: Sequence[int] | None) -> list[list[int]]:
    """Return state numbers, those of `default_taps` where None are given."""
    defaults = default_taps(backbone)
    most = len(backbone.layers), len(backbone.decoder_layers)
    given = (("encoder_taps", encoder_taps), ("decoder_taps", decoder_taps))
    return [default if taps is None else _read_taps(taps, name, last)
            for (name, taps), default, last in zip(given, defaults, most)]


def _read_taps(taps: Sequence[int], name: str, last: int) -> list[int]:
    if isinstance(taps, str) or not hasattr(taps, "__iter__"):
        raise TypeError(f"{name} must be a sequence of state numbers, got {taps!r}")
    taps = [whole_number(tap, name, 0, last) for tap in taps]
    if len(taps) < 2 or len(set(taps)) < len(taps):
        raise ValueError(f"{name} must be different state numbers, at least two, got {taps}")
    return taps


def pair_source(backbone: Backbone, encoder_taps: Sequence[int], decoder_taps: Sequence[int]) -> Record:
    """Return what `Seq2SeqFeatures` of these states name as their source."""
    return {"backbone": pair_fingerprint(backbone), "states": list(encoder_taps), "decoder_states": list(decoder_taps)}


def pair_fingerprint(backbone: Backbone) -> str:
    """SHA-256 of the backbone's own fingerprint and those of the decoder's layers."""
    digest = hashlib.sha256(backbone.fingerprint.encode())
    for layer in backbone.decoder_layers:
        digest.update(str(layer.fingerprint).encode())
    return digest.hexdigest()


def build_encoder(backbone: Backbone, graph: _core.Graph, depth: int) -> list[int]:
    """Add the stem and some layers to a graph; return all states, none of them normed."""
    states = [backbone._stem.build(graph)]
    for number, layer in enumerate(backbone.layers[:depth]):
        states.append(layer._build(graph, f"layer.{number}.", states[-1:]))
    return states


def build_output(backbone: Backbone, graph: _core.Graph, state: int) -> int:
    """Add the norm after the encoder's last layer."""
    weight = backbone._norm["weight"]
    return graph.rms_norm(state, graph.parameter("norm.weight", weight.shape, "frozen", data=weight),
                          cast(float, backbone._eps))


def build_embedding(backbone: Backbone, graph: _core.Graph, indices: int) -> int:
    """Add the embedding of decoder tokens."""
    words = backbone._stem.arrays["words"]
    return graph.embedding(indices, graph.parameter("stem.words", words.shape, "frozen", data=words))


def extract_pairs(backbone: Backbone, inputs: Sequence[Any], targets: Sequence[Any], encoder_taps: Sequence[int] | None,
                  decoder_taps: Sequence[int] | None, batch_size: int, max_length: int | None,
                  target_max_length: int | None, dtype: Element, progress: bool) -> Seq2SeqFeatures:
    """Return the `Seq2SeqFeatures` of pairs; the arguments are those of `Backbone.extract_pairs`."""
    encoder_taps, decoder_taps = read_pair_taps(backbone, encoder_taps, decoder_taps)
    one_of(dtype, "dtype", DTYPES)
    batch_size = whole_number(batch_size, "batch_size", 1)
    read = backbone._stem.read(inputs, backbone._length(max_length))
    labels, preprocessing = read_targets(backbone, targets, target_max_length)
    count = len(read.sizes)
    if len(labels) != count:
        raise ValueError(f"inputs and targets must be as many, got {count} and {len(labels)}")
    lengths = read.sizes, np.array([len(label) for label in labels], np.int64)
    offsets = [offsets_of(rows) for rows in lengths]
    start_token = cast(LanguageDecoder, backbone.language).start
    shifted = np.concatenate([[start_token, *label[:-1]] for label in labels]).astype(np.int32)[:, None]
    fingerprint = pair_fingerprint(backbone)
    sinks = [
        MemorySink([(dtype, backbone.hidden_size)] * len(taps), fields_of([rows] * len(taps)), layers=[],
                   source={"backbone": fingerprint, "states": taps}, preprocessing={"layers": layers, **facts})
        for taps, rows, layers, facts in ((encoder_taps, lengths[0], backbone.num_layers, read.preprocessing),
                                          (decoder_taps, lengths[1], len(backbone.decoder_layers), preprocessing))
    ]
    with progress_bar(flag(progress, "progress"), count, "extract", delay=PATIENCE) as bar, backbone._lock:
        program = _program(backbone, tuple(encoder_taps), tuple(decoder_taps))
        for start in range(0, count, batch_size):
            stop = min(start + batch_size, count)
            spaces = [None, *(part[start : stop + 1] - part[start] for part in offsets)]
            sources = [*read.inputs(start, stop), (shifted[offsets[1][start] : offsets[1][stop]], None)]
            (stored, scales), (decoded, decoder_scales) = (sink.room(stop - start) for sink in sinks)
            backbone._forward(program, stop - start, spaces, sources, stored + decoded, scales + decoder_scales)
            for sink in sinks:
                sink.take(stop - start)
            bar.update(stop - start)
    return Seq2SeqFeatures(sinks[0].features(), sinks[1].features(), labels)


def read_targets(backbone: Backbone, targets: Sequence[Any], max_length: int | None) -> tuple[list[Integers], Record]:
    """Return the token ids of each target, as the decoder shall give them, and how they were made."""
    if read_texts(targets)[1] == "pair":
        raise TypeError("targets must be texts or token ids, got pairs of texts")
    read = backbone._stem.read(targets, backbone._length(max_length))
    ids = read.inputs(0, len(read.sizes))[0][0][:, 0]
    return np.split(ids, offsets_of(read.sizes)[1:-1]), read.preprocessing


def _program(backbone: Backbone, encoder_taps: tuple[int, ...], decoder_taps: tuple[int, ...]) -> _core.Program:
    key = "pairs", encoder_taps, decoder_taps
    if key not in backbone._programs:
        graph = _core.Graph(backbone._store, False)
        states = build_encoder(backbone, graph, backbone.num_layers)
        targets = graph.space("targets")
        memory = build_output(backbone, graph, states[-1])
        decoded = [build_embedding(backbone, graph, graph.indices("targets", targets))]
        for number, layer in enumerate(backbone.decoder_layers[: max(decoder_taps)]):
            decoded.append(layer._build(graph, f"decoder.{number}.", [decoded[-1], memory]))
        for state in [*(states[tap] for tap in encoder_taps), *(decoded[tap] for tap in decoder_taps)]:
            graph.output(state)
        backbone._programs[key] = graph.compile(False)
    return backbone._programs[key]
