"""A step of a T5 side network, sherl against PyTorch, and the memory of both: ``python -m benchmarks.seq2seq``."""

import dataclasses

import numpy as np

from benchmarks.architecture import Architecture, command
from benchmarks.problem import EXPANSION, HEAD_CHANNELS, draw, leaning
from benchmarks.sides import Peer, SherlSide, TorchSide

BUCKETS = 32


@dataclasses.dataclass(frozen=True)
class Seq2SeqProblem:
    """Sizes of one training step; the defaults are those of T5-base with the published taps.

    ``gated`` makes the block that of T5 1.1.
    """

    batch: int = 16
    tokens: int = 128
    target_tokens: int = 32
    features: int = 768
    taps: int = 10
    decoder_taps: int = 9
    hidden: int = 96
    words: int = 32128
    threads: int = 2
    seed: int = 0
    gated: bool = False

    @property
    def heads(self):
        return self.features // HEAD_CHANNELS

    @property
    def described(self):
        return (f"{self.batch} pairs of {self.tokens} and {self.target_tokens} tokens, {self.taps} and "
                f"{self.decoder_taps} taps of {self.features} channels, {self.hidden} hidden channels, one frozen "
                f"decoder block, {self.words} words")

    def inputs(self):
        """Taps of encoder and decoder, float32 (batch, tokens, features), and int64 labels (batch, target tokens)."""
        rng = np.random.default_rng([self.seed, 2])
        sides = (self.taps, self.tokens), (self.decoder_taps, self.target_tokens)
        taps = [[rng.standard_normal((self.batch, tokens, self.features), dtype=np.float32) for _ in range(count)]
                for count, tokens in sides]
        return *taps, rng.integers(0, self.words, (self.batch, self.target_tokens))

    def block_weights(self):
        """Weights of the last decoder block by checkpoint name relative to it."""
        square, inner = (self.features, self.features), EXPANSION * self.features
        shapes = {f"layer.{part}.{letter}.weight": square
                  for part in ("0.SelfAttention", "1.EncDecAttention") for letter in "qkvo"}
        shapes["layer.0.SelfAttention.relative_attention_bias.weight"] = (BUCKETS, self.heads)
        shapes |= {f"layer.{number}.layer_norm.weight": (self.features,) for number in range(3)}
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            shapes[f"layer.2.DenseReluDense.{name}.weight"] = (inner, self.features)
        shapes["layer.2.DenseReluDense.wo.weight"] = (self.features, inner)
        weights = {name: draw(f"late.{name}", shape, self.seed) for name, shape in shapes.items()}
        for part in ("0.SelfAttention", "1.EncDecAttention"):  # scores are not scaled in T5, whose weights are small
            weights[f"layer.{part}.q.weight"] *= np.float32(HEAD_CHANNELS**-0.5)
        return weights

    def trained(self, name, shape):
        """A trained weight."""
        return leaning(name, shape, self.seed)

    def lm_head(self):
        return draw("lm_head", (self.words, self.features), self.seed) * np.float32(self.features**0.5)


class Sherl(SherlSide):
    """The network in sherl."""

    def __init__(self, problem):
        import sherl

        adapters = [sherl.MTSA.t5(problem.features, count, problem.hidden)
                    for count in (problem.taps, problem.decoder_taps)]
        late = sherl.T5Block.from_t5(problem.block_weights(), problem.heads, decoder=True)
        network = sherl.Seq2SeqSideNetwork(*adapters, [late], problem.lm_head(), problem.features**-0.5)
        *taps, labels = problem.inputs()
        parts = [sherl.Features.from_arrays(side) for side in taps]
        super().__init__(problem, network, sherl.Seq2SeqFeatures(*parts, list(labels)))


class Torch(TorchSide):
    """The network in PyTorch."""

    def __init__(self, problem):
        import torch

        from benchmarks import seq2seq_torch

        weights = {name: torch.from_numpy(value) for name, value in problem.block_weights().items()}
        network = seq2seq_torch.Seq2SeqSideNetwork(
            problem.taps, problem.decoder_taps, problem.features, problem.hidden,
            [seq2seq_torch.T5Block(weights, problem.heads)], torch.from_numpy(problem.lm_head()),
            problem.features**-0.5)
        *taps, labels = problem.inputs()
        super().__init__(problem, network, *([torch.from_numpy(tap) for tap in side] for side in taps),
                         torch.from_numpy(labels))


# Of a ReLU so near to zero that rounding decides its sign the gradient is another: the gated block has none.
T5_BASE = Architecture("T5-base", Seq2SeqProblem(), Sherl, {"PyTorch": Peer(Torch)}, checked={"gated": True})

if __name__ == "__main__":
    command(T5_BASE, "seq2seq")
