"""A side network on the stages of a small ResNet against the same network in PyTorch: loss, gradients, training."""

import numpy as np
import pytest
import torch
from small import RESNET, bottleneck_weights, image_network, image_problem
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

EPS = 1e-8
STEPS = 5


class Adapter(nn.Module):
    def __init__(self, features, hidden, pool):
        super().__init__()
        self.pool = pool
        self.down = nn.ModuleList(nn.Conv2d(width, hidden, 1) for width in features)
        self.down_norm = nn.ModuleList(nn.BatchNorm2d(hidden) for _ in features)
        self.guide = nn.Linear(hidden, 1)
        self.up = nn.Conv2d(hidden, features[-1], 1)
        self.up_norm = nn.BatchNorm2d(features[-1])
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, taps):
        x = []
        for tap, k, down, norm in zip(taps, self.pool, self.down, self.down_norm):
            pooled = F.max_pool2d(tap, k) + F.avg_pool2d(tap, k)
            x.append(norm(down(pooled)).permute(0, 2, 3, 1))
        guide = x.pop()
        x = torch.stack(x, -2)  # batch, height, width, shallow features, hidden
        unit = x / (x.norm(dim=-1, keepdim=True) + EPS)
        redundancy = F.relu(unit @ unit.transpose(-1, -2)).sum(-1)
        weights = F.relu(self.guide(x * guide.unsqueeze(-2))).squeeze(-1) / redundancy
        weights = weights / (weights.abs().sum(-1, keepdim=True) + EPS)
        mixed = (weights.unsqueeze(-1) * x).sum(-2) + guide
        out = F.relu(self.up_norm(self.up(mixed.permute(0, 3, 1, 2))))
        return out + torch.tanh(self.gate / 0.1) * taps[-1]


class FrozenBottleneck(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.weights = {name: torch.from_numpy(array) for name, array in weights.items()}

    def _map(self, x, number, **window):
        w = self.weights
        x = F.conv2d(x, w[f"conv{number}.weight"], **window)
        norm = (w[f"bn{number}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *norm)

    def forward(self, x):
        z = F.relu(self._map(x, 1))
        return F.relu(self._map(F.relu(self._map(z, 2, padding=1)), 3) + x)


class Peer(nn.Module):
    def __init__(self, hidden, classes):
        super().__init__()
        self.early = Adapter(RESNET["features"], hidden, RESNET["pool"])
        self.late = FrozenBottleneck(bottleneck_weights())
        self.head = nn.Linear(RESNET["features"][-1], classes)

    def forward(self, taps):
        return self.head(self.late(self.early(taps)).mean(dim=(2, 3)))


def peer_names(network):
    """The peer's name of each parameter of the network."""
    names = {}
    for name in network.state_dict():
        peer = name
        for part in ("down.0", "down.1", "down.2", "down.3", "up"):
            stem, _, number = part.partition(".")
            peer = peer.replace(f"early.{part}.norm.", f"early.{stem}_norm.{number + '.' if number else ''}")
        names[name] = peer
    return names


def make_pair():
    network = image_network(classes=3)
    peer, names = Peer(8, 3), peer_names(network)
    state = peer.state_dict()
    for name, array in network.state_dict().items():
        state[names[name]].copy_(torch.from_numpy(array).reshape(state[names[name]].shape))
    taps, _ = image_problem(6)
    labels = np.array([0, 2, 1, 1, 0, 2])
    tensors = [torch.from_numpy(tap).permute(0, 3, 1, 2) for tap in taps]
    return network, peer.train(), names, taps, labels, tensors


def assert_agree(found, expected, tolerance, largest):
    for name, value in found.items():
        wanted = expected[name].detach().numpy().reshape(value.shape)
        scale = max(np.linalg.norm(wanted), 1e-3 * largest)  # a bias before a batch norm has no gradient
        assert np.linalg.norm(value - wanted) / scale <= tolerance, name


def test_loss_gradients_and_running_statistics():
    network, peer, names, taps, labels, tensors = make_pair()
    loss, gradients = network.loss_and_gradients(taps, labels, training=True)
    expected = F.cross_entropy(peer(tensors), torch.from_numpy(labels))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    wanted = {name: dict(peer.named_parameters())[names[name]].grad for name in gradients}
    assert_agree(gradients, wanted, 2e-4, max(value.norm().item() for value in wanted.values()))
    state = network.state_dict()
    running = {name: state[name] for name in state if "running" in name}
    assert len(running) == 10
    assert_agree(running, {name: peer.state_dict()[names[name]] for name in running}, 1e-5, 1)
    peer.eval()
    with torch.no_grad():
        np.testing.assert_allclose(network.forward(taps), peer(tensors).numpy(), rtol=1e-4, atol=1e-4)


def test_five_steps():
    network, peer, names, taps, labels, tensors = make_pair()
    step = network.stepper(learning_rate=1e-3, weight_decay=0.01)
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(STEPS):
        loss = step(taps, labels)
        expected = F.cross_entropy(peer(tensors), torch.from_numpy(labels))
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        assert loss == pytest.approx(expected.item(), rel=1e-4)
    state = network.state_dict()
    # Adam divides a gradient that is rounding noise, as that of a bias before a batch norm, by itself.
    noise = {f"early.{part}.bias" for part in ("down.0", "down.1", "down.2", "down.3", "up")}
    kept = {name: state[name] for name in state if name not in noise}
    # Such a bias also moves the running mean behind it, by no more than itself: five steps of the learning rate.
    exact = {name: value for name, value in kept.items() if "running_mean" not in name}
    assert_agree(exact, {name: peer.state_dict()[names[name]] for name in exact}, 1e-3, 1)
    for name in kept.keys() - exact.keys():
        assert np.abs(kept[name] - peer.state_dict()[names[name]].numpy()).max() <= 2 * STEPS * 1e-3
