"""The stem of text models: token ids to embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _core
from .._typing import PathLike, Record, StateDict
from ..features.rows import offsets_of
from .samples import Samples
from .tokenization import Tokenizer, inputs_fingerprint, read_texts


class TextStem:
    """Embeddings of words, positions and token types where a model has them, their norm, and their projection.

    Parameters
    ----------
    folder : str or path-like
        Of the tokenizer.
    facts : dict
    arrays : dict of str to numpy.ndarray
        By role.
    """

    def __init__(self, folder: PathLike, facts: Record, arrays: StateDict) -> None:
        self.facts, self.arrays = facts, arrays
        if facts.get("word_scale", 1.0) != 1.0:
            arrays["words"] = arrays["words"] * arrays["words"].dtype.type(facts["word_scale"])
        self._tokenizer = Tokenizer(folder)
        self._first = facts.get("first_position", 0)
        self.max_length = facts["positions"] - self._first if "positions" in arrays else facts["longest"]

    def tokenize(self, texts: Sequence[Any], max_length: int) -> list[list[int]]:
        """Return the token ids of texts, without padding."""
        texts, kind = read_texts(texts)
        if kind == "ids":
            raise TypeError("texts must be str or pairs of str, got token ids")
        return self._tokenizer.encode(texts, max_length)[0]

    @property
    def out_features(self) -> int:
        """Channels of state 0."""
        return int(self.facts["features"])

    def detokenize(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of token ids."""
        return self._tokenizer.decode(ids)

    def read(self, texts: Sequence[Any], max_length: int) -> Samples:
        """Return texts, checked, as `Samples`."""
        texts, kind = read_texts(texts)
        ids, types = self._tokens(texts, kind, max_length)
        lengths = np.array([len(tokens) for tokens in ids], np.int64)
        offsets = offsets_of(lengths)
        inputs = [np.concatenate(ids)]
        if "positions" in self.arrays:
            inputs.append(self._first + np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths))
        if "types" in self.arrays:
            inputs.append(np.concatenate(types))
        inputs = [np.ascontiguousarray(values, np.int32).reshape(-1, 1) for values in inputs]
        facts = {"inputs": "token ids"}
        if kind != "ids":
            facts = {"inputs": "texts", "tokenizer": self._tokenizer.fingerprint, "max_length": max_length}
        return Samples(
            lengths, lambda start, stop: [(values[offsets[start] : offsets[stop]], None) for values in inputs],
            lambda: inputs_fingerprint(texts), facts,
        )  # fmt: skip

    def build(self, graph: _core.Graph) -> int:
        """Add the stem to a graph, and return state 0."""
        space = graph.space("tokens")
        tables = [name for name in ("words", "positions", "types") if name in self.arrays]
        indices = {name: graph.indices(name, space) for name in tables}
        weights = {name: graph.parameter(f"stem.{name}", array.shape, "frozen", data=array)
                   for name, array in self.arrays.items()}
        x = graph.embedding(indices["words"], weights["words"])
        for name in ("types", "positions"):
            if name in weights:
                x = graph.add(x, graph.embedding(indices[name], weights[name]))
        if "norm_weight" in weights:
            x = graph.layer_norm(x, weights["norm_weight"], weights["norm_bias"], self.facts["eps"])
        if "project_weight" in weights:
            x = graph.linear(x, weights["project_weight"], weights["project_bias"])
        return x

    def _tokens(self, texts: list[Any], kind: str, max_length: int) -> tuple[list[list[int]], list[list[int]]]:
        if kind == "ids":
            ids, types = texts, [[0] * len(tokens) for tokens in texts]
        else:
            ids, types = self._tokenizer.encode(texts, max_length)
            if "padding" in self.facts:
                ids = [tokens + [self.facts["padding"]] * (max_length - len(tokens)) for tokens in ids]
        vocabulary = self.facts["vocabulary"]
        for number, tokens in enumerate(ids):
            if not 1 <= len(tokens) <= max_length:
                raise ValueError(f"text {number} must have 1 to {max_length} tokens, got {len(tokens)}")
            if min(tokens) < 0 or max(tokens) >= vocabulary:
                raise ValueError(f"text {number} must have token ids from 0 to {vocabulary - 1}, got "
                                 f"{min(tokens) if min(tokens) < 0 else max(tokens)}")
        if "types" in self.arrays and max(map(max, types)) >= self.facts["types"]:
            raise ValueError(f"texts: the model has {self.facts['types']} token type, so it takes no pairs")
        return ids, types
