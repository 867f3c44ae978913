"""A side network on the stages of a small ResNet against the same network in PyTorch: loss, gradients, training."""

import numpy as np
import pytest
import torch
from benchmarks import resnet_torch
from small import RESNET, bottleneck_weights, image_network, image_problem
from torch.nn import functional as F

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

STEPS = 5


def make_pair():
    network = image_network(classes=3)
    weights = {name: torch.from_numpy(array) for name, array in bottleneck_weights().items()}
    peer = resnet_torch.SideNetwork(RESNET["features"], 8, RESNET["pool"], [weights], 3)
    state = peer.state_dict()
    for name, array in network.state_dict().items():
        state[name].copy_(torch.from_numpy(array).reshape(state[name].shape))
    taps, _ = image_problem(6)
    labels = np.array([0, 2, 1, 1, 0, 2])
    tensors = [torch.from_numpy(tap).permute(0, 3, 1, 2) for tap in taps]
    return network, peer.train(), taps, labels, tensors


def assert_agree(found, expected, tolerance, largest):
    for name, value in found.items():
        wanted = expected[name].detach().numpy().reshape(value.shape)
        scale = max(np.linalg.norm(wanted), 1e-3 * largest)  # a bias before a batch norm has no gradient
        assert np.linalg.norm(value - wanted) / scale <= tolerance, name


def test_loss_gradients_and_running_statistics():
    network, peer, taps, labels, tensors = make_pair()
    loss, gradients = network.loss_and_gradients(taps, labels, training=True)
    expected = F.cross_entropy(peer(tensors), torch.from_numpy(labels))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    wanted = {name: peer.trainable()[name].grad for name in gradients}
    assert_agree(gradients, wanted, 2e-4, max(value.norm().item() for value in wanted.values()))
    state = network.state_dict()
    running = {name: state[name] for name in state if "running" in name}
    assert len(running) == 10
    assert_agree(running, {name: peer.state_dict()[name] for name in running}, 1e-5, 1)
    peer.eval()
    with torch.no_grad():
        np.testing.assert_allclose(network.forward(taps), peer(tensors).numpy(), rtol=1e-4, atol=1e-4)


def test_five_steps():
    network, peer, taps, labels, tensors = make_pair()
    step = network.stepper(learning_rate=1e-3, weight_decay=0.01)
    optimizer = torch.optim.AdamW(peer.trainable().values(), lr=1e-3, weight_decay=0.01)
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
    assert_agree(exact, {name: peer.state_dict()[name] for name in exact}, 1e-3, 1)
    for name in kept.keys() - exact.keys():
        assert np.abs(kept[name] - peer.state_dict()[name].numpy()).max() <= 2 * STEPS * 1e-3
