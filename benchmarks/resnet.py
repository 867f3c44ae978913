"""A step of a ResNet's side network, sherl against PyTorch, and the memory of both: ``python -m benchmarks.resnet``."""

import dataclasses
import math

import numpy as np

from benchmarks.architecture import Architecture, command
from benchmarks.problem import draw, leaning
from benchmarks.sides import Peer, SherlSide, TorchSide

STAGES, NARROWING = 4, 4  # a bottleneck's 3x3 map has a quarter of the block's channels
STRIDE = 32  # pixels of the picture to one of the last stage


@dataclasses.dataclass(frozen=True)
class ResNetProblem:
    """Sizes of one training step; the defaults are those of ResNet-50.

    ``features`` are the channels of the last stage; each one before has half the channels, twice the height and width.
    """

    batch: int = 32
    pixels: int = 224
    features: int = 2048
    hidden: int = 512
    blocks: int = 1
    classes: int = 100
    threads: int = 2
    seed: int = 0

    @property
    def widths(self):
        """Channels of each tap."""
        return [self.features >> power for power in reversed(range(STAGES))]

    @property
    def pool(self):
        """Windows that bring each tap to the size of the last."""
        return [2**power for power in reversed(range(STAGES))]

    @property
    def described(self):
        side = self.pixels // STRIDE
        grids = ", ".join(f"{window * side}x{window * side}x{width}" for window, width in zip(self.pool, self.widths))
        return (f"{self.batch} pictures of {self.pixels} pixels a side, taps of {grids}, {self.hidden} hidden channels"
                f", {self.blocks} frozen bottleneck{'s' * (self.blocks > 1)}, {self.classes} classes, batch statistics")

    def inputs(self):
        """Taps as float32 (batch, height, width, channels), none below 0 as behind a relu, and int64 labels."""
        rng, side = np.random.default_rng([self.seed, 2]), self.pixels // STRIDE
        taps = [np.maximum(rng.standard_normal((self.batch, window * side, window * side, width), dtype=np.float32), 0)
                for window, width in zip(self.pool, self.widths)]
        return taps, rng.integers(0, self.classes, self.batch)

    def block_weights(self, number):
        """Weights of one of the last blocks by checkpoint name relative to it."""
        width = self.features // NARROWING
        shapes = {"conv1": (width, self.features, 1, 1), "conv2": (width, width, 3, 3),
                  "conv3": (self.features, width, 1, 1)}
        weights = {}
        for (name, shape), norm in zip(shapes.items(), ("bn1", "bn2", "bn3")):
            rows = draw(f"late.{number}.{name}", (shape[0], math.prod(shape[1:])), self.seed)
            weights[f"{name}.weight"] = rows.reshape(shape)
            for leaf, centre in {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}.items():
                noise = draw(f"late.{number}.{norm}.{leaf}", shape[:1], self.seed)
                weights[f"{norm}.{leaf}"] = np.float32(centre) + (np.abs(noise) if leaf == "running_var" else noise)
        return weights

    def trained(self, name, shape):
        """A trained weight, or the running statistics of a batch norm as they begin."""
        if "running" in name:
            return np.full(shape, name.endswith("running_var"), np.float32)
        return leaning(name, shape[:2], self.seed)  # of a 1x1 convolution the other two are 1


class Sherl(SherlSide):
    """The network in sherl."""

    def __init__(self, problem):
        import sherl

        network = sherl.SideNetwork(
            sherl.MTSA.resnet(problem.widths, STAGES, problem.hidden),
            [sherl.Bottleneck.from_resnet(problem.block_weights(number)) for number in range(problem.blocks)],
            sherl.Classifier(problem.features, problem.classes, pool="mean"))
        super().__init__(problem, network, *problem.inputs())

    def loss_and_gradients(self):
        return self.network.loss_and_gradients(*self.batch, training=True)


class Torch(TorchSide):
    """The network in PyTorch, images with channels first, or last in memory."""

    def __init__(self, problem, channels_last=False):
        import torch

        from benchmarks import resnet_torch

        late = [{name: torch.from_numpy(value) for name, value in problem.block_weights(number).items()}
                for number in range(problem.blocks)]
        network = resnet_torch.SideNetwork(problem.widths, problem.hidden, problem.pool, late, problem.classes)
        taps, labels = problem.inputs()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        super().__init__(problem, network.to(memory_format=layout),
                         [torch.from_numpy(tap).permute(0, 3, 1, 2).contiguous(memory_format=layout) for tap in taps],
                         torch.from_numpy(labels))


# Of the millions of relus some are so near to zero that rounding decides their sign; small gradients show it.
RELU = {"worst_tolerance": 2e-2}
RESNET_50 = Architecture(
    "ResNet-50", ResNetProblem(), Sherl,
    {"PyTorch": Peer(Torch, **RELU), "PyTorch, channels last": Peer(Torch, (True,), **RELU)},
    vanishing=("early.down.?.bias", "early.up.bias"))  # a batch norm takes the mean off again

if __name__ == "__main__":
    command(RESNET_50, "resnet")
