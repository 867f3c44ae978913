"""The SHERL path for a ResNet written in PyTorch: the adapter of images, frozen bottlenecks, a mean, a classifier.

Written as `peer_torch` is, on images (batch, channels, height, width) in any memory format, with sherl's names.
"""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peer_torch import GATE_TEMPERATURE, Guide, Trained, frozen


class NormedConvolution(nn.Conv2d):
    """A 1x1 convolution, then batch normalization."""

    def __init__(self, features, out):
        super().__init__(features, out, 1)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x):
        return self.norm(super().forward(x))


class MTSA(nn.Module):
    """The adapter of `sherl.MTSA.resnet`: taps pooled to the last one's size, guidance pixel by pixel."""

    def __init__(self, features, hidden, pool, eps=1e-8):
        super().__init__()
        self.pool = pool
        self.down = nn.ModuleList(NormedConvolution(width, hidden) for width in features)
        self.guide = Guide(features[-1], hidden, eps, residual_mlp=False, norm_eps=None)
        self.up = NormedConvolution(hidden, features[-1])
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, taps):
        # Of a window of one pixel, maximum and mean are that pixel.
        pooled = [2 * tap if window == 1 else F.max_pool2d(tap, window) + F.avg_pool2d(tap, window)
                  for tap, window in zip(taps, self.pool)]
        reduced = [down(tap) for down, tap in zip(self.down, pooled)]
        *shallow, guide = [x.permute(0, 2, 3, 1) for x in reduced]
        fused = self.guide(torch.stack(shallow, dim=-2), guide).permute(0, 3, 1, 2)
        return F.relu(self.up(fused)) + torch.tanh(self.gate / GATE_TEMPERATURE) * taps[-1]


class Bottleneck(nn.Module):
    """Frozen bottleneck; ``weights`` are tensors by their checkpoint name relative to the block."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.ParameterDict({name.replace(".", "/"): frozen(value) for name, value in weights.items()})

    def map(self, x, number, padding=0):
        x = F.conv2d(x, self.weights[f"conv{number}/weight"], padding=padding)
        norm = (self.weights[f"bn{number}/{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *norm)

    def forward(self, x):
        inner = F.relu(self.map(F.relu(self.map(x, 1)), 2, padding=1))
        return F.relu(self.map(inner, 3) + x)


class SideNetwork(Trained):
    """Taps of the stages to class scores."""

    def __init__(self, features, hidden, pool, late, classes):
        super().__init__()
        self.early = MTSA(features, hidden, pool)
        self.late = nn.ModuleList(Bottleneck(weights) for weights in late)
        self.head = nn.Linear(features[-1], classes)

    def forward(self, taps):
        x = self.early(taps)
        for block in self.late:
            x = block(x)
        return self.head(x.mean(dim=(2, 3)))

    def loss(self, taps, labels):
        """Mean cross-entropy."""
        return F.cross_entropy(self(taps), labels)
