"""Texts to token ids, by a folder's tokenizer.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .._typing import PathLike
from .files import TOKENIZER


class Tokenizer:
    """Tokenizer of a model folder; its file is read when it is first used.

    Parameters
    ----------
    folder : str or path-like
    """

    def __init__(self, folder: PathLike) -> None:
        self._path = Path(folder) / TOKENIZER
        self._loaded: Any = None
        self._fingerprint = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        self._load()
        return self._fingerprint

    def encode(self, texts: Sequence[Any], max_length: int) -> tuple[list[list[int]], list[list[int]]]:
        """Tokenize texts, or pairs of texts.

        Parameters
        ----------
        texts : list of str, or list of tuple of (str, str)
        max_length : int
            Tokens that are kept of a text, special tokens included.

        Returns
        -------
        ids, types : list of list of int
            Token ids and token types (0, and 1 for the second text of a pair), without padding.
        """
        tokenizer = self._load()
        special = tokenizer.num_special_tokens_to_add(any(isinstance(text, tuple) for text in texts))
        if max_length <= special:
            raise ValueError(f"max_length must be more than the {special} special tokens, got {max_length}")
        tokenizer.enable_truncation(max_length)
        encodings = tokenizer.encode_batch(texts)
        return [encoding.ids for encoding in encodings], [encoding.type_ids for encoding in encodings]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of token ids, a list of list of int, without special tokens."""
        texts: list[str] = self._load().decode_batch(ids, skip_special_tokens=True)
        return texts

    def _load(self) -> Any:
        if self._loaded is None:
            try:
                import tokenizers
            except ImportError:
                raise ImportError("tokenizing needs the tokenizers package: pip install 'sherl[text]'") from None
            if not self._path.is_file():
                raise FileNotFoundError(f"{self._path} does not exist; pass token ids instead of texts")
            try:
                content = self._path.read_bytes()
                loaded = tokenizers.Tokenizer.from_buffer(content)
            except Exception as error:  # the package raises plain Exception
                raise ValueError(f"{self._path} is not a tokenizer file: {error}") from error
            loaded.no_padding()
            self._loaded, self._fingerprint = loaded, hashlib.sha256(content).hexdigest()
        return self._loaded


def read_texts(texts: Iterable[Any]) -> tuple[list[Any], str]:
    """Return texts as a list, and of what: "text", "pair" or "ids".

    Parameters
    ----------
    texts : sequence of str, of (str, str), or of sequences of int

    Returns
    -------
    list
        of str, of tuple of two str, or of list of int
    str
    """
    if isinstance(texts, str) or not hasattr(texts, "__iter__"):
        raise TypeError(f"texts must be a sequence of texts, got {type(texts).__name__}")
    texts = list(texts)
    if not texts:
        raise ValueError("texts must hold at least one text, got none")
    kinds: dict[str, int] = {}
    read = []
    for number, text in enumerate(texts):
        kind, value = _read(text, number)
        kinds.setdefault(kind, number)
        read.append(value)
    if len(kinds) > 1:
        (first, one), (second, other) = list(kinds.items())[:2]
        raise TypeError(f"texts must be all of one kind, but text {one} is a {first} and text {other} a {second}")
    return read, next(iter(kinds))


def inputs_fingerprint(texts: Iterable[Any]) -> str:
    """Return the SHA-256 of texts as `read_texts` gives them, in hexadecimal."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode() + b"\n")
    return digest.hexdigest()


def _read(text: Any, number: int) -> tuple[str, Any]:
    if isinstance(text, str):
        return "text", str(text)
    parts = list(text) if hasattr(text, "__iter__") else []
    if len(parts) == 2 and all(isinstance(part, str) for part in parts):
        return "pair", tuple(map(str, parts))
    if parts and all(hasattr(part, "__index__") and not isinstance(part, bool) for part in parts):
        return "ids", [int(part) for part in parts]
    raise TypeError(f"texts must be str, pairs of str, or lists of token ids; text {number} is {text!r:.60}")
