"""BERT encoders in the core: embeddings and layers as one program whose hidden states are written where they stay."""

import hashlib
import json
import threading

import numpy as np

from .. import _core
from ..blocks.transformer import TransformerLayer
from ..checks import flag, one_of, whole_number
from ..features.rows import offsets_of, quantised
from ..features.sinks import DTYPES, DiskSink, MemorySink
from ..training.progress import progress_bar
from .files import read_bert_config, read_bert_weights
from .tokenization import Tokenizer, inputs_fingerprint, read_texts

__all__ = ["BertBackbone"]

MOST_TOKENS = 512


class BertBackbone:
    """Frozen BERT encoder that runs in the core, without padding. Made by `load_backbone`.

    Attributes
    ----------
    hidden_size : int
        Channels of its states.
    num_layers : int
    layers : list of TransformerLayer
        The frozen layers; they share their weights with the backbone.
    max_length : int
        Tokens that a text can have.
    """

    def __init__(self, folder):
        self._config = read_bert_config(folder)
        self._embeddings, layers = read_bert_weights(folder, self._config)
        self._tokenizer = Tokenizer(folder)
        self.hidden_size = self._config["hidden_size"]
        self.num_layers = self._config["num_hidden_layers"]
        self.max_length = min(self._config["max_position_embeddings"], MOST_TOKENS)
        self.layers = [
            TransformerLayer.from_bert(weights, self._config["num_attention_heads"], self._config["hidden_act"],
                                       self._config["layer_norm_eps"])
            for weights in layers
        ]
        self._store = _core.Parameters()
        self._programs = {}
        self._fingerprint = None
        self._lock = threading.RLock()

    @property
    def fingerprint(self):
        """SHA-256 of the configuration and all weights that the states depend on, in hexadecimal."""
        if self._fingerprint is None:
            digest = hashlib.sha256(json.dumps(self._config, sort_keys=True).encode())
            for name, array in sorted(self._embeddings.items()):
                digest.update(repr((name, array.shape)).encode())
                digest.update(array)
            for layer in self.layers:
                digest.update(layer.fingerprint.encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def __repr__(self):
        return f"BertBackbone({self.num_layers} layers of {self.hidden_size} channels, {self._count():,} parameters)"

    def tokenize(self, texts, max_length=None):
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
        texts, kind = read_texts(texts)
        if kind == "ids":
            raise TypeError("texts must be str or pairs of str, got token ids")
        return self._tokenizer.encode(texts, self._length(max_length))[0]

    def extract(self, texts, taps="all", *, batch_size=128, max_length=None, dtype="float32", progress=False,
                out=None, late=1):
        """Compute hidden states.

        With `out` they are written to disk as they are computed, and memory holds those of one batch. An interrupted
        extraction goes on where it was when it is called again with the same arguments, to the same bits; a finished one
        is opened.

        Parameters
        ----------
        texts : sequence of str, of (str, str), or of sequences of int
            Texts, pairs of texts, or token ids with their special tokens.
        taps : {"all", "all+last"} or sequence of int
            Which states: 0 is the embeddings, i the output of layer i. "all" are those that a side network with the
            last layer as its late one taps: 0 to num_layers - 1. "all+last" are all.
        batch_size : int
            Texts that are computed at a time; the results do not depend on it.
        max_length : int, optional
            Tokens that are kept of a text; the model's limit when None.
        dtype : {"float32", "float16", "bfloat16", "int8"}
            How the states are stored; bfloat16 as uint16, int8 with one scale a row.
        progress : bool
            Whether to show a progress bar, where tqdm is installed.
        out : str or path-like, optional
            Folder to write to, made where it does not exist; otherwise the states are kept in memory.
        late : int
            How many of the last layers come with the features, in `Features.layers`, and are written with them.

        Returns
        -------
        Features
            In the order of the texts.

        Raises
        ------
        ImportError
            Without the tokenizers package, unless `texts` are token ids.
        ValueError
            Where `out` holds features of other texts, another backbone, other states or other settings.
        RuntimeError
            Where another process writes to `out`.
        """
        states = self._states(taps)
        one_of(dtype, "dtype", DTYPES)
        batch_size = whole_number(batch_size, "batch_size", 1)
        max_length, (texts, _) = self._length(max_length), read_texts(texts)
        ids, types = self._tokens(texts, max_length)
        lengths = np.array([len(tokens) for tokens in ids], np.int64)
        offsets = offsets_of(lengths)
        positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        inputs = [np.concatenate(ids), positions, np.concatenate(types)]
        inputs = [np.ascontiguousarray(values, np.int32).reshape(-1, 1) for values in inputs]
        facts = {
            "source": {"backbone": self.fingerprint, "states": states},
            "preprocessing": self._preprocessing(texts, max_length),
            "layers": self.layers[self.num_layers - whole_number(late, "late", 0, self.num_layers) :],
        }
        if out is None:
            sink = MemorySink([(dtype, self.hidden_size)] * len(states), lengths, **facts)
        else:
            sink = DiskSink(out, [(dtype, self.hidden_size)] * len(states), lengths, **facts,
                            inputs=inputs_fingerprint(texts), recipe={"batch_size": batch_size})
        with sink, progress_bar(flag(progress, "progress"), len(ids), "extract", sink.samples) as bar, self._lock:
            for start in range(sink.samples, len(ids), batch_size):
                stop = min(start + batch_size, len(ids))
                self._run(states, offsets[start : stop + 1], inputs, *sink.room(stop - start))
                sink.take(stop - start)
                bar.update(stop - start)
            return sink.features()

    def encode(self, texts, how="mean", *, normalize=False, batch_size=128, max_length=None, progress=False):
        """Compute one vector a text: its last states, pooled.

        Parameters
        ----------
        texts, batch_size, max_length, progress
            As for `extract`.
        how : {"mean", "max", "first", "last"}
        normalize : bool
            Whether to scale the vectors to length 1.

        Returns
        -------
        numpy.ndarray of float32, shape (texts, hidden_size)
        """
        flag(normalize, "normalize")
        features = self.extract(texts, [self.num_layers], batch_size=batch_size, max_length=max_length,
                                progress=progress)
        pooled = features.pooled(how=how)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True) if normalize else pooled

    def _run(self, states, offsets, inputs, stored, scales):
        """Compute the states of some texts into arrays of their rows."""
        rows = slice(offsets[0], offsets[-1])
        sinks = [part if part.dtype != np.int8 else np.empty(part.shape, np.float32) for part in stored]
        self._program(tuple(states)).forward(
            len(offsets) - 1, [None, offsets - offsets[0]], [(values[rows], None) for values in inputs],
            [(sink, None) for sink in sinks],
        )
        for part, sink, scale in zip(stored, sinks, scales):
            if scale is not None:
                part[...], scale[...] = quantised(sink)

    def _program(self, states):
        if states not in self._programs:
            graph = _core.Graph(self._store, False)
            outputs = self._build(graph, max(states))
            for state in states:
                graph.output(outputs[state])
            self._programs[states] = graph.compile(False)
        return self._programs[states]

    def _build(self, graph, depth):
        """Add the embeddings and `depth` layers to a graph, and return all states."""
        tokens = graph.space("tokens")
        ids, positions, types = (graph.indices(name, tokens) for name in ("ids", "positions", "types"))
        words, places, kinds, weight, bias = (
            graph.parameter(name, array.shape, "frozen", data=array) for name, array in self._embeddings.items()
        )
        x = graph.add(graph.embedding(ids, words), graph.embedding(types, kinds))
        x = graph.add(x, graph.embedding(positions, places))
        states = [graph.layer_norm(x, weight, bias, self._config["layer_norm_eps"])]
        for number, layer in enumerate(self.layers[:depth]):
            states.append(layer._build(graph, f"layer.{number}.", states[-1:]))
        return states

    def _tokens(self, texts, max_length):
        texts, kind = read_texts(texts)
        if kind == "ids":
            ids, types = texts, [[0] * len(tokens) for tokens in texts]
        else:
            ids, types = self._tokenizer.encode(texts, max_length)
        for number, tokens in enumerate(ids):
            if not 1 <= len(tokens) <= max_length:
                raise ValueError(f"text {number} must have 1 to {max_length} tokens, got {len(tokens)}")
            if min(tokens) < 0 or max(tokens) >= self._config["vocab_size"]:
                raise ValueError(
                    f"text {number} must have token ids from 0 to {self._config['vocab_size'] - 1}, got "
                    f"{min(tokens) if min(tokens) < 0 else max(tokens)}"
                )
        if max(map(max, types)) >= self._config["type_vocab_size"]:
            raise ValueError(f"texts: the model has {self._config['type_vocab_size']} token type, so it takes no pairs")
        return ids, types

    def _preprocessing(self, texts, max_length):
        """Return how texts become rows, beside what the fingerprint tells."""
        facts = {"inputs": "token ids", "layers": self.num_layers}
        if isinstance(texts[0], list):
            return facts
        return {**facts, "inputs": "texts", "tokenizer": self._tokenizer.fingerprint, "max_length": max_length}

    def _length(self, max_length):
        return self.max_length if max_length is None else whole_number(max_length, "max_length", 1, self.max_length)

    def _states(self, taps):
        if isinstance(taps, str):
            one_of(taps, "taps", ("all", "all+last"))
            return list(range(self.num_layers + (taps == "all+last")))
        if not hasattr(taps, "__iter__"):
            raise TypeError(f"taps must be 'all', 'all+last' or a sequence of state numbers, got {taps!r}")
        states = [whole_number(state, "taps", 0, self.num_layers) for state in taps]
        if not states or len(set(states)) < len(states):
            raise ValueError(f"taps must be different state numbers, at least one, got {states}")
        return states

    def _count(self):
        return sum(array.size for array in self._embeddings.values()) + sum(
            layer.num_parameters(trainable_only=False) for layer in self.layers
        )
