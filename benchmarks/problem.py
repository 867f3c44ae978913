"""What every side of a comparison is given: sizes, taps, labels, and weights drawn by name."""

import dataclasses
import math
import zlib

import numpy as np

HEAD_CHANNELS = 64  # channels of one attention head in BERT models of every size
EXPANSION = 4  # channels inside the feed-forward part, as a multiple of the features


@dataclasses.dataclass(frozen=True)
class Problem:
    """Sizes of one training step; the arrays follow from them and the seed.

    ``lengths`` holds the tokens of each sample; where it is empty, all have ``tokens``.
    """

    batch: int = 32
    tokens: int = 128
    features: int = 768
    taps: int = 12
    hidden: int = 96
    classes: int = 2
    head: str = "first"
    lengths: tuple = ()
    threads: int = 2
    seed: int = 0

    @property
    def heads(self):
        return self.features // HEAD_CHANNELS

    def sample_lengths(self):
        """Tokens of each sample, (batch,) int64."""
        if not self.lengths:
            return np.full(self.batch, self.tokens)
        if len(self.lengths) != self.batch:
            raise ValueError(f"lengths must have {self.batch} entries, one a sample, got {len(self.lengths)}")
        return np.array(self.lengths, np.int64)

    def inputs(self):
        """Taps as float32 (batch, longest, features), int64 labels, and the mask, or None without padding."""
        lengths = self.sample_lengths()
        longest = int(lengths.max())
        rng = np.random.default_rng([self.seed, 2])
        taps = [rng.standard_normal((self.batch, longest, self.features), dtype=np.float32) for _ in range(self.taps)]
        labels = rng.integers(0, self.classes, self.batch)
        mask = np.arange(longest) < lengths[:, None]
        return taps, labels, None if mask.all() else mask

    def layer_weights(self):
        """Weights of one BERT layer by checkpoint name relative to the layer."""
        return bert_layer_weights(self.features, self.seed)

    def trained(self, name, shape):
        """A trained weight."""
        return draw(name, shape, self.seed)


def bert_layer_shapes(features):
    """Shape of each weight of a BERT layer by checkpoint name relative to the layer."""
    inner = EXPANSION * features
    linear = {"attention.self.query": (features, features), "attention.self.key": (features, features),
              "attention.self.value": (features, features), "attention.output.dense": (features, features),
              "intermediate.dense": (inner, features), "output.dense": (features, inner)}
    shapes = {}
    for name, shape in linear.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (features,)
    return shapes


def bert_layer_weights(features, seed, place="late"):
    """Weights of a BERT layer by checkpoint name relative to the layer."""
    return {name: draw(f"{place}.{name}", shape, seed) for name, shape in bert_layer_shapes(features).items()}


def leaning(name, shape, seed):
    """As `draw`, but guides lean to one side: with all weights of a token near zero no gradient is stable."""
    return draw(name, shape, seed) + np.float32(name.endswith("guide.bias"))


def draw(name, shape, seed):
    """Random float32 weights that depend on the seed and the name alone, so that sides need not exchange them.

    Nothing is left at the zero or one it would start training from, so that every gradient is exercised.
    """
    values = np.random.default_rng([seed, 3, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        return values / np.float32(math.sqrt(shape[-1]))
    centre = 1 if name.endswith(("norm.weight", "LayerNorm.weight")) else 0
    return np.float32(centre) + np.float32(0.1) * values
