"""Features of an encoder and of a decoder, for the same samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .._typing import ArrayLike, Element, Integers, Record, Source, Spaces
from ..checks import count_of
from .features import Features
from .rows import Batch

__all__ = ["Seq2SeqFeatures"]


@dataclass(frozen=True)
class PairBatch:
    """Some samples, as the core takes them: in the row space of the encoder, and in that of the decoder."""

    encoder: Batch
    decoder: Batch

    @property
    def samples(self) -> int:
        return self.encoder.samples

    @property
    def offsets(self) -> Integers:
        """Where each sample's outputs begin: they are the decoder's rows."""
        return self.decoder.offsets

    @property
    def counted(self) -> str:
        return f"{self.encoder.counted} in the encoder and {self.decoder.counted} in the decoder"

    @property
    def spaces(self) -> Spaces:
        return [None, self.encoder.offsets, self.decoder.offsets]

    def spaces_of(self, samples: int) -> Spaces:
        """Return the same of so many samples like the first."""
        return [*self.encoder.spaces_of(samples), self.decoder.spaces_of(samples)[1]]


class Seq2SeqFeatures:
    """Taps of a frozen encoder on the inputs and of a frozen decoder on the targets.

    Made by a backbone's `extract_pairs`. A selection (``features[index]``) shares the arrays of what it was taken from.

    Parameters
    ----------
    encoder, decoder : Features
        Of the same samples in the same order. Row t of a sample's decoder taps is that from which label t is predicted.
    labels : sequence of array_like of int, optional
        For each sample the token ids that the decoder's rows shall give; -100 where one does not count.
    """

    def __init__(self, encoder: Features, decoder: Features, labels: Sequence[ArrayLike] | None = None) -> None:
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(part, Features):
                raise TypeError(f"{name} must be Features, got {type(part).__name__}")
        if len(encoder) != len(decoder):
            raise ValueError(f"encoder and decoder must have as many samples, got {len(encoder)} and {len(decoder)}")
        self.encoder, self.decoder = encoder, decoder
        self.labels = None if labels is None else _read_labels(labels, decoder.lengths)

    def __len__(self) -> int:
        return len(self.encoder)

    def __getitem__(self, index: Any) -> Seq2SeqFeatures:
        """Select samples by number, slice, index array or bool array; rows are not copied."""
        encoder, decoder = self.encoder[index], self.decoder[index]
        labels = None
        if self.labels is not None:
            chosen = np.arange(len(self))[index]
            labels = [self.labels[number] for number in np.atleast_1d(chosen)]
        return Seq2SeqFeatures(encoder, decoder, labels)

    def __repr__(self) -> str:
        return f"Seq2SeqFeatures({count_of(len(self), 'sample')}, encoder {self.encoder}, decoder {self.decoder})"

    @property
    def lengths(self) -> Integers:
        """Decoder rows of each sample, int64 of shape (samples,)."""
        return self.decoder.lengths

    @cached_property
    def largest(self) -> PairBatch:
        """One sample with as many rows in the encoder, and in the decoder, as any has; a batch."""
        return PairBatch(self.encoder.largest, self.decoder.largest)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows of these samples in all taps."""
        return self.encoder.nbytes + self.decoder.nbytes

    @property
    def source(self) -> Record | None:
        """What the features were taken from, or None."""
        encoder, decoder = self.encoder.source, self.decoder.source
        return None if encoder is None or decoder is None else {**encoder, "decoder_states": decoder.get("states")}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of both parts, in hexadecimal; it reads everything once."""
        return hashlib.sha256((self.encoder.fingerprint + self.decoder.fingerprint).encode()).hexdigest()

    def astype(self, dtype: Element) -> Seq2SeqFeatures:
        """Store the taps in another type, as `Features.astype`.

        Parameters
        ----------
        dtype : {"float32", "float16", "bfloat16", "int8"}

        Returns
        -------
        Seq2SeqFeatures
        """
        return Seq2SeqFeatures(self.encoder.astype(dtype), self.decoder.astype(dtype), self.labels)

    def batch(self, index: Integers | None = None) -> PairBatch:
        """Return the rows of some samples as the core takes them; the argument is as of `Features.batch`."""
        return PairBatch(self.encoder.batch(index), self.decoder.batch(index))

    def sources(self, batch: PairBatch) -> list[Source]:
        """Return every tap's array with the rows that a batch takes of it, those of the encoder first."""
        return [*self.encoder.sources(batch.encoder), *self.decoder.sources(batch.decoder)]


def _read_labels(labels: Sequence[ArrayLike], lengths: Integers) -> list[Integers]:
    if isinstance(labels, (str, bytes, dict)) or not hasattr(labels, "__iter__"):
        raise TypeError(f"labels must be a sequence of arrays of token ids, got {type(labels).__name__}")
    arrays = [np.asarray(label) for label in labels]
    if len(arrays) != len(lengths):
        raise ValueError(f"labels must be {len(lengths)} arrays, one a sample, got {len(arrays)}")
    for number, (array, length) in enumerate(zip(arrays, lengths)):
        if array.dtype.kind not in "iu":
            raise TypeError(f"labels must be whole token ids, got dtype {array.dtype} for sample {number}")
        if array.shape != (length,):
            raise ValueError(f"labels of sample {number} must have shape {(int(length),)}, one for each of its decoder "
                             f"rows, got {array.shape}")
    return [np.array(array, np.int64) for array in arrays]
