"""Backbones in the core: a stem and layers as one program, whose hidden states are written where they stay."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import _core
from .._typing import Array, Element, Float32s, Integers, PathLike, Pooling, Spaces
from ..blocks.norm import LayerNorm, RMSNorm
from ..blocks.residual import ResidualBlock
from ..checks import flag, one_of, whole_number
from ..features.disk import fields_of
from ..features.features import Features
from ..features.rows import offsets_of, quantised
from ..features.sinks import DTYPES, DiskSink, MemorySink
from ..training.progress import PATIENCE, progress_bar
from . import pairs
from .loading import read_parts

if TYPE_CHECKING:
    from ..features.seq2seq import Seq2SeqFeatures
    from .samples import Samples

__all__ = ["Backbone"]


class Backbone:
    """Frozen backbone that runs in the core, without padding. Made by `load_backbone`.

    Its states are numbered: 0 is what the first layer receives, i the output of layer i; the last one, `num_layers`, is
    taken after the model's final norm where it has one.

    Attributes
    ----------
    family : str
        Of the model, such as "BERT".
    takes : {"text", "image", "audio"}
    channels : list of int
        Of each state.
    hidden_size : int
        Those of the last state; of all but ResNets those of every one.
    num_layers : int
    layers : list of TransformerLayer, T5Block, Bottleneck or BasicBlock
        The frozen layers; they share their weights with the backbone.
    decoder_layers : list of TransformerLayer or T5Block
        Those of the decoder of T5, BART, Marian or Whisper; `extract` does not use them.
    final_norm : LayerNorm, RMSNorm or None
        The frozen norm behind the last layer, where the model has one: a side network whose late layer is the last one
        may end its late route with it, ``late=[backbone.layers[-1], backbone.final_norm]``.
    projection : numpy.ndarray of float32, shape (channels, hidden_size), or None
        Of a tower of CLIP, where the checkpoint has it, the map to the space that texts and images share; states do not
        depend on it. `Embedding.from_projection` makes a head of it.
    language : LanguageDecoder or None
        What T5's decoder has beside its layers: norm, language-model head, the tokens that begin and end a text.
    max_length : int or None
        Tokens that a text can have; None where it takes no texts.
    """

    def __init__(self, path: PathLike, tower: Literal["text", "image"] | None = None) -> None:
        parts = read_parts(path, tower)
        self.family, self.takes = parts.title, parts.takes
        self.layers, self.decoder_layers = parts.layers, parts.decoder_layers
        self.num_layers = len(self.layers)
        self.channels = [parts.stem.out_features, *(layer.out_features for layer in self.layers)]
        self.hidden_size = self.channels[-1]
        self.max_length = parts.stem.max_length
        self._stem: Any = parts.stem  # one of loading.Stem, as `takes` tells
        self._norm, self._eps = parts.norm, parts.eps
        self.final_norm: LayerNorm | RMSNorm | None = None
        if self._norm:
            norm: dict[str, Any] = {**self._norm, "eps": self._eps}
            self.final_norm = (LayerNorm if "bias" in norm else RMSNorm).from_weights(**norm)
        self.language, self.projection = parts.language, parts.projection
        self._store = _core.Parameters()
        self._programs: dict[Any, _core.Program] = {}
        self._fingerprint: str | None = None
        self._lock = threading.RLock()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the configuration and all weights that the states depend on, in hexadecimal."""
        if self._fingerprint is None:
            digest = hashlib.sha256(json.dumps([self.family, self._stem.facts], sort_keys=True).encode())
            for arrays in (self._stem.arrays, self._norm):
                for name, array in sorted(arrays.items()):
                    digest.update(repr((name, array.shape)).encode())
                    digest.update(array)
            for layer in self.layers:
                digest.update(str(layer.fingerprint).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def __repr__(self) -> str:
        return (f"Backbone({self.family}, {self.num_layers} layers of {self.hidden_size} channels, "
                f"{self.num_parameters():,} parameters)")

    def num_parameters(self) -> int:
        """Count the numbers in all weights that the states depend on.

        Returns
        -------
        int
        """
        own = [*self._stem.arrays.values(), *self._norm.values()]
        return sum(int(array.size) for array in own) + sum(
            layer.num_parameters(trainable_only=False) for layer in self.layers
        )

    def tokenize(self, texts: Sequence[Any], max_length: int | None = None) -> list[list[int]]:
        """Turn texts into token ids.

        Parameters
        ----------
        texts : sequence of str or of (str, str)
        max_length : int, optional
            Tokens that are kept of a text; the model's limit when None.

        Returns
        -------
        list of list of int
            Special tokens included.
        """
        if self.takes != "text":
            raise TypeError(f"the {self.family} backbone takes no texts")
        ids: list[list[int]] = self._stem.tokenize(texts, self._length(max_length))
        return ids

    def extract(self, samples: Any, taps: str | Sequence[int] = "all", *, batch_size: int = 128,
                max_length: int | None = None, dtype: Element = "float32", progress: bool = True,
                preprocessed: bool = False, out: PathLike | None = None, late: int = 1) -> Features:
        """Compute hidden states.

        With `out` they are written to disk as they are computed, and memory holds those of one batch. An interrupted
        extraction goes on where it was when it is called again with the same arguments, to the same bits; a finished
        one is opened.

        Parameters
        ----------
        samples : sequence
            Of a text model texts, pairs of texts, or token ids (sequences of int) with their special tokens. Of an
            image model an array (images, height, width, channels) or (images, channels, height, width), or a sequence
            of such images of any sizes, uint8 or float from 0 to 1. Of an audio model the log-mel features of
            recordings, float of shape (recordings, bins, frames).
        taps : {"all", "all+last"} or sequence of int
            Which states: 0 is the embeddings, i the output of layer i. "all" are those that a side network with the
            last layer as its late one taps: 0 to num_layers - 1. "all+last" are all.
        batch_size : int
            Samples that are computed at a time; the results do not depend on it.
        max_length : int, optional
            Tokens that are kept of a text; the model's limit when None.
        dtype : {"float32", "float16", "bfloat16", "int8"}
            How the states are stored; bfloat16 as uint16, int8 with one scale a row.
        progress : bool
            Whether to show a progress bar where it takes more than two seconds and tqdm is installed.
        preprocessed : bool
            Whether images are float as the model itself takes them. Otherwise they are resized, cropped and normalised
            as the folder's preprocessor_config.json says.
        out : str or path-like, optional
            Folder to write to, made where it does not exist; otherwise the states are kept in memory.
        late : int
            How many of the last layers come with the features, in `Features.layers`, and are written with them.

        Returns
        -------
        Features
            In the order of the samples; of images one row a class token, register and patch, patches line by line.

        Raises
        ------
        ImportError
            Without the tokenizers package, unless `samples` are token ids; without the pillow package where images are
            resized.
        ValueError
            Where a sample does not fit the model, or `out` holds features of other samples, another backbone, other
            states or other settings.
        RuntimeError
            Where another process writes to `out`.
        """
        states = self._states(taps)
        one_of(dtype, "dtype", DTYPES)
        batch_size = whole_number(batch_size, "batch_size", 1)
        read = self._read(samples, max_length, flag(preprocessed, "preprocessed"))
        sizes = self._sizes(read.sizes)
        taps = [(dtype, self.channels[state]) for state in states]
        facts: dict[str, Any] = {
            "source": {"backbone": self.fingerprint, "states": states},
            "preprocessing": {"layers": self.num_layers, **read.preprocessing},
            "layers": self.layers[self.num_layers - whole_number(late, "late", 0, self.num_layers) :],
        }
        fields = fields_of([sizes[state] for state in states])
        if out is None:
            sink = MemorySink(taps, fields, **facts)
        else:
            sink = DiskSink(out, taps, fields, **facts, inputs=read.fingerprint(), recipe={"batch_size": batch_size})
        count = len(read.sizes)
        with (
            sink,
            progress_bar(flag(progress, "progress"), count, "extract", sink.samples, delay=PATIENCE) as bar,
            self._lock,
        ):
            for start in range(sink.samples, count, batch_size):
                stop = min(start + batch_size, count)
                self._run(states, read.sizes[start:stop], read.inputs(start, stop), *sink.room(stop - start))
                sink.take(stop - start)
                bar.update(stop - start)
            return sink.features()

    def extract_pairs(self, inputs: Sequence[Any], targets: Sequence[Any], *, encoder_taps: Sequence[int] | None = None,
                      decoder_taps: Sequence[int] | None = None, batch_size: int = 64, max_length: int | None = None,
                      target_max_length: int | None = None, dtype: Element = "float32",
                      progress: bool = True) -> Seq2SeqFeatures:
        """Compute states of T5's encoder on inputs, and of its decoder, which is fed the targets (teacher forcing).

        Parameters
        ----------
        inputs, targets : sequence of str, or of sequences of int
            Texts, or token ids with the end token. Row t of a target's states is that from which its token t is
            predicted: the decoder sees the start token and those before.
        encoder_taps, decoder_taps : sequence of int, optional
            Which states: 0 is the embeddings, i the output of layer i, before the final norm. When None those that
            `Seq2SeqSideNetwork.from_backbone` taps.
        batch_size, dtype, progress
            As for `extract`.
        max_length, target_max_length : int, optional
            Tokens that are kept of an input, and of a target.

        Returns
        -------
        Seq2SeqFeatures
            With the tokens of the targets as labels.
        """
        self._check_language()
        return pairs.extract_pairs(self, inputs, targets, encoder_taps, decoder_taps, batch_size, max_length,
                                   target_max_length, dtype, progress)

    def _check_language(self) -> None:
        if self.language is None:
            raise TypeError(f"the {self.family} backbone has no decoder of texts that can be run")

    def detokenize(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Turn token ids into texts.

        Parameters
        ----------
        ids : sequence of sequences of int

        Returns
        -------
        list of str
            Without special tokens.
        """
        if self.takes != "text":
            raise TypeError(f"the {self.family} backbone takes no texts")
        texts: list[str] = self._stem.detokenize(ids)
        return texts

    def encode(self, samples: Any, how: Pooling = "mean", *, normalize: bool = False, batch_size: int = 128,
               max_length: int | None = None, progress: bool = True, preprocessed: bool = False) -> Array:
        """Compute one vector a sample: its last states, pooled.

        Parameters
        ----------
        samples, batch_size, max_length, progress, preprocessed
            As for `extract`.
        how : {"mean", "first", "last", "max"}
        normalize : bool
            Whether to scale the vectors to length 1.

        Returns
        -------
        numpy.ndarray of float32, shape (samples, hidden_size)
        """
        flag(normalize, "normalize")
        one_of(how, "how", ("mean", "first", "last", "max"))
        features = self.extract(samples, [self.num_layers], batch_size=batch_size, max_length=max_length,
                                progress=progress, preprocessed=preprocessed)
        pooled = features.pooled(how=how)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True) if normalize else pooled

    def _read(self, samples: Any, max_length: int | None, preprocessed: bool) -> Samples:
        if preprocessed and self.takes != "image":
            raise ValueError(f"preprocessed goes with images, but the backbone takes {self.takes}")
        if max_length is not None and self.takes != "text":
            raise ValueError(f"max_length goes with texts, but the backbone takes {self.takes}")
        others: dict[str, list[Any]] = {"text": [self._length(max_length)], "image": [preprocessed]}
        read: Samples = self._stem.read(samples, *others.get(self.takes, []))
        return read

    def _sizes(self, first: Integers) -> list[Integers]:
        """Return what the states have, given the first: rows of each sample, or heights and widths."""
        sizes = [first]
        for layer in self.layers:
            sizes.append(layer.output_sizes(sizes[-1]) if isinstance(layer, ResidualBlock) else sizes[-1])
        return sizes

    def _run(self, states: Sequence[int], sizes: Integers, inputs: Any, stored: Sequence[Array],
             scales: Sequence[Float32s | None]) -> None:
        """Compute the states of some samples into arrays of their rows."""
        space = offsets_of(sizes) if sizes.ndim == 1 else sizes
        self._forward(self._program(tuple(states)), len(sizes), [None, space], inputs, stored, scales)

    def _forward(self, program: _core.Program, samples: int, spaces: Spaces, inputs: Any, stored: Sequence[Array],
                 scales: Sequence[Float32s | None]) -> None:
        """Run a program whose outputs go to arrays of any type."""
        sinks = [part if part.dtype != np.int8 else np.empty(part.shape, np.float32) for part in stored]
        program.forward(samples, spaces, inputs, [(sink, None) for sink in sinks])
        for part, sink, scale in zip(stored, sinks, scales):
            if scale is not None:
                part[...], scale[...] = quantised(sink)

    def _program(self, states: tuple[int, ...]) -> _core.Program:
        if states not in self._programs:
            graph = _core.Graph(self._store, False)
            outputs = self._build(graph, max(states))
            for state in states:
                graph.output(outputs[state])
            self._programs[states] = graph.compile(False)
        return self._programs[states]

    def _build(self, graph: _core.Graph, depth: int) -> list[int]:
        """Add the stem and `depth` layers to a graph, and return all states."""
        states = [self._stem.build(graph)]
        for number, layer in enumerate(self.layers[:depth]):
            states.append(layer._build(graph, f"layer.{number}.", states[-1:]))
        if self.final_norm is not None and depth == self.num_layers:
            states[-1] = self.final_norm._build(graph, "norm.", states[-1:])
        return states

    def _length(self, max_length: int | None) -> int | None:
        return self.max_length if max_length is None else whole_number(max_length, "max_length", 1, self.max_length)

    def _states(self, taps: str | Sequence[int]) -> list[int]:
        if isinstance(taps, str):
            one_of(taps, "taps", ("all", "all+last"))
            return list(range(self.num_layers + (taps == "all+last")))
        if not hasattr(taps, "__iter__"):
            raise TypeError(f"taps must be 'all', 'all+last' or a sequence of state numbers, got {taps!r}")
        states = [whole_number(state, "taps", 0, self.num_layers) for state in taps]
        if not states or len(set(states)) < len(states):
            raise ValueError(f"taps must be different state numbers, at least one, got {states}")
        return states
