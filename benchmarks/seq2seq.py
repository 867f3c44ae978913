"""A step of a T5 side network, sherl against PyTorch, and the memory of both: ``python -m benchmarks.seq2seq``."""

import argparse
import contextlib
import dataclasses
import sys

import numpy as np

from benchmarks import measure
from benchmarks.compare import agreement, memory
from benchmarks.problem import draw

EXPANSION, HEAD_CHANNELS, BUCKETS = 4, 64, 32
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01
LIMIT = 1e-4  # relative, of the loss and of all gradients


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
        shapes["layer.0.SelfAttention.relative_attention_bias.weight"] = (BUCKETS, self.features // HEAD_CHANNELS)
        shapes |= {f"layer.{number}.layer_norm.weight": (self.features,) for number in range(3)}
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            shapes[f"layer.2.DenseReluDense.{name}.weight"] = (inner, self.features)
        shapes["layer.2.DenseReluDense.wo.weight"] = (self.features, inner)
        weights = {name: draw(f"late.{name}", shape, self.seed) for name, shape in shapes.items()}
        for part in ("0.SelfAttention", "1.EncDecAttention"):  # scores are not scaled in T5, whose weights are small
            weights[f"layer.{part}.q.weight"] *= np.float32(HEAD_CHANNELS**-0.5)
        return weights

    def trained(self, name, shape):
        """A trained weight. Guides lean to one side: with all weights of a token near zero no gradient is stable."""
        return draw(name, shape, self.seed) + np.float32(name.endswith("guide.bias"))

    def lm_head(self):
        return draw("lm_head", (self.words, self.features), self.seed) * np.float32(self.features**0.5)


class Sherl:
    """sherl's side of a comparison."""

    def __init__(self, problem, late_dtype="float32"):
        import sherl

        sherl.set_num_threads(problem.threads)
        adapters = [sherl.MTSA(count, problem.features, problem.hidden, down="gated", eps=1e-6)
                    for count in (problem.taps, problem.decoder_taps)]
        late = sherl.T5Block.from_t5(problem.block_weights(), problem.features // HEAD_CHANNELS, decoder=True)
        self.network = sherl.Seq2SeqSideNetwork(*adapters, [late], problem.lm_head(), problem.features**-0.5,
                                                late_dtype=late_dtype)
        self.network.load_state_dict({name: problem.trained(name, value.shape)
                                      for name, value in self.network.state_dict().items()})
        taps, decoder_taps, labels = problem.inputs()
        self.problem = problem
        parts = [sherl.Features.from_arrays(side) for side in (taps, decoder_taps)]
        self.features = sherl.Seq2SeqFeatures(*parts, list(labels))
        self.stepper = self.network.stepper(learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def loss_and_gradients(self):
        loss, gradients = self.network.loss_and_gradients(self.features)
        return loss, {name: gradient.ravel() for name, gradient in gradients.items()}

    def step(self):
        return self.stepper(self.features)


class Torch:
    """The PyTorch side, eager."""

    def __init__(self, problem):
        import torch

        from benchmarks import seq2seq_torch

        torch.set_num_threads(problem.threads)
        weights = {name: torch.from_numpy(value) for name, value in problem.block_weights().items()}
        late = seq2seq_torch.T5Block(weights, problem.features // HEAD_CHANNELS)
        self.network = seq2seq_torch.Seq2SeqSideNetwork(
            problem.taps, problem.decoder_taps, problem.features, problem.hidden, [late],
            torch.from_numpy(problem.lm_head()), problem.features**-0.5)
        self.network.load_trainable({name: problem.trained(name, tuple(value.shape))
                                     for name, value in self.network.trainable().items()})
        taps, decoder_taps, labels = problem.inputs()
        self.batch = ([torch.from_numpy(tap) for tap in taps], [torch.from_numpy(tap) for tap in decoder_taps],
                      torch.from_numpy(labels))
        self.stepper = self.network.stepper(learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def loss_and_gradients(self):
        loss, gradients = self.network.loss_and_gradients(*self.batch)
        return float(loss), {name: gradient.numpy().ravel() for name, gradient in gradients.items()}

    def step(self):
        return self.stepper(*self.batch)


@contextlib.contextmanager
def sides_of(builders, problem):
    """All sides of a problem, each in a process of its own."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(measure.Side(build, problem)) for name, build in builders.items()}


def main(arguments=None):
    default = Seq2SeqProblem()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seq2seq", description=__doc__.replace("``", ""))
    for field in dataclasses.fields(default)[:-1]:
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default, metavar="N",
                            help=f"default {field.default}")
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="timed steps, default 9")
    options = vars(parser.parse_args(arguments))
    repeats = options.pop("repeats")
    problem = Seq2SeqProblem(**options)
    print(measure.machine(["numpy", "torch", "sherl"]))
    builders = {"sherl": Sherl, "PyTorch": Torch}
    # Of a ReLU so near to zero that rounding decides its sign the gradient is another: the gated block has none.
    with sides_of(builders, dataclasses.replace(problem, gated=True)) as sides:
        loss, gradients, worst, error = agreement(*(side.call("loss_and_gradients") for side in sides.values()))
    print(f"agreement: loss {loss:.1e}, gradients {gradients:.1e}, worst {worst} {error:.1e}")
    if not (loss <= LIMIT and gradients <= LIMIT):
        sys.exit("error: sherl and PyTorch disagree")
    with sides_of(builders, problem) as sides:
        timings = measure.paired(sides, repeats)
    growths = {name: memory(build, problem) for name, build in builders.items()}
    for name, timing in timings.items():
        print(f"{name:8}  median {1e3 * timing.median:7.1f} ms  minimum {1e3 * timing.minimum:7.1f} ms"
              f"  memory {growths[name] / 2**20:7.1f} MiB")
    print(f"PyTorch / sherl: {timings['PyTorch'].ratio(timings['sherl']):.2f} x the time, "
          f"{growths['PyTorch'] / max(growths['sherl'], 1):.1f} x the memory")


if __name__ == "__main__":
    main()
