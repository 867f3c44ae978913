"""The door to PyTorch: taps by hooks, modules as late layers, blocks as modules, networks as plain modules."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers.models.vit.modeling_vit import ViTLayer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import peer_torch
from exported import NETWORKS, make, samples_of
from small import (
    FEATURES,
    HEADS,
    basic_block_weights,
    bert_weights,
    bottleneck_weights,
    frozen_layer,
    image_network,
    image_problem,
    mask_of,
    network,
    problem,
    same_bits,
    taps_of,
)

import sherl
import sherl.torch

LIMIT = 1e-4


def close(found, expected, limit=LIMIT):
    found, expected = (np.asarray(each.detach() if torch.is_tensor(each) else each) for each in (found, expected))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= limit * max(1, np.abs(expected).max())


class Rows(nn.Module):
    """A late layer that mixes the tokens of a sample, given no mask: of the weights of a BERT layer."""

    def __init__(self, seed=0):
        super().__init__()
        weights = {name: torch.from_numpy(value) for name, value in bert_weights(seed).items()}
        self.layer = peer_torch.TransformerLayer(weights, HEADS)

    def forward(self, x, mask=None):
        return self.layer(x, mask), None  # as layers of transformers do, a tuple


def masked(module, x, mask):
    return module(x, mask)


def foreign(late=1, call=None, head=None, seed=0, **settings):
    """The network of `small.network` with its late layers as modules of PyTorch."""
    native = network(late=late, head=head, seed=seed, **settings)
    made = sherl.SideNetwork(
        early=sherl.MTSA(**native.early.settings),
        late=[sherl.torch.Late(Rows(number), FEATURES, call=call) for number in range(late)],
        head=copy.deepcopy(native.head), seed=seed,
    )
    made.load_state_dict(native.state_dict())
    return native, made


# ---- Late layers ----


@pytest.mark.parametrize("call", [None, masked])
@pytest.mark.parametrize("late", [1, 2])
def test_a_late_module_gives_what_the_same_layer_gives(call, late):
    native, made = foreign(late, call)
    taps, labels, mask = problem()
    close(made.forward(taps, mask), native.forward(taps, mask))
    loss, gradients = made.loss_and_gradients(taps, labels, mask)
    expected, wanted = native.loss_and_gradients(taps, labels, mask)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == wanted.keys()
    for name, value in wanted.items():
        close(gradients[name], value)
    cotangent = np.random.default_rng(0).standard_normal((40, 2), dtype=np.float32)
    outputs, gradients = made.vjp(taps, cotangent, mask, taps_gradient=True)
    _, wanted = native.vjp(taps, cotangent, mask, taps_gradient=True)
    close(outputs, native.forward(taps, mask))
    assert gradients.keys() == wanted.keys()
    for name, value in wanted.items():
        close(gradients[name], value)


@pytest.mark.parametrize("head", [
    sherl.TokenClassifier(FEATURES, 3), sherl.SpanPredictor(FEATURES), sherl.Classifier(FEATURES, 3, pool="position"),
    sherl.Classifier(FEATURES, 3, multi_label=True), sherl.Regressor(FEATURES, 2),
], ids=lambda head: type(head).__name__)
def test_heads_of_all_kinds_behind_a_late_module(head):
    native, made = foreign(head=head)
    taps, mask, generator = taps_of(300), mask_of(300), np.random.default_rng(0)  # more than one block
    lengths = mask.sum(axis=1)
    labels = {
        "TokenClassifier": lambda: generator.integers(0, 3, mask.shape),
        "SpanPredictor": lambda: np.sort(generator.integers(0, lengths[:, None], (300, 2)), axis=1),
        "Regressor": lambda: generator.standard_normal((300, 2)),
        "Classifier": lambda: generator.integers(0, 2, (300, 3) if getattr(head, "multi_label", False) else 300),
    }[type(head).__name__]()
    places = {"positions": lengths - 1} if getattr(head, "pool", "") == "position" else {}
    loss, gradients = made.loss_and_gradients(taps, labels, mask, **places)
    expected, wanted = native.loss_and_gradients(taps, labels, mask, **places)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, value in wanted.items():
        close(gradients[name], value)
    close(made.forward(taps, mask, **places), native.forward(taps, mask, **places))
    found = made.evaluate(taps, labels, mask, **places)
    assert found == pytest.approx(native.evaluate(taps, labels, mask, **places), rel=1e-4)


def test_native_layers_on_both_sides_of_a_late_module():
    layers = [frozen_layer(0), sherl.torch.Late(Rows(1), FEATURES), frozen_layer(2)]
    native, made = network(late=3), network(late=0)
    made = sherl.SideNetwork(sherl.MTSA(**native.early.settings), layers, sherl.Classifier(FEATURES, 2))
    made.load_state_dict(native.state_dict())
    taps, labels, mask = problem()
    loss, gradients = made.loss_and_gradients(taps, labels, mask)
    expected, wanted = native.loss_and_gradients(taps, labels, mask)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, value in wanted.items():
        close(gradients[name], value)
    with pytest.raises(ValueError, match="side by side, got them at 1, 3"):
        sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), [*layers, layers[1]], sherl.Classifier(FEATURES, 2))


def test_training_with_a_late_module_follows_that_with_the_same_layer():
    native, made = foreign()
    taps, labels, mask = problem(400)
    settings = {"epochs": 2, "batch_size": 350, "progress": False, "learning_rate": 1e-3, "accumulate": 2}
    expected = native.fit(taps, labels, mask, **settings)
    found = made.fit(taps, labels, mask, **settings)
    assert found.step_losses == pytest.approx(expected.step_losses, rel=1e-4)
    for name, value in native.state_dict().items():
        assert np.abs(made.state_dict()[name] - value).max() < 1e-4


def test_training_with_dropout_repeats_itself_and_resumes(tmp_path, keep_threads):
    taps, labels, mask = problem(300)
    runs = []
    for threads, folder in ((1, None), (2, tmp_path / "a")):
        sherl.set_num_threads(threads)
        torch.set_num_threads(1)
        _, made = foreign(dropout=0.3)
        made.fit(taps, labels, mask, epochs=2, batch_size=300, progress=False, checkpoint=folder)
        runs.append(made.state_dict())
    assert same_bits(*runs)
    _, made = foreign(dropout=0.3)

    class Stop(sherl.Callback):
        def on_epoch_end(self, state):
            return state.epoch == 1

    settings = {"epochs": 2, "batch_size": 300, "progress": False}
    made.fit(taps, labels, mask, **settings, checkpoint=tmp_path / "b", callbacks=[Stop()])
    made.fit(taps, labels, mask, **settings, resume_from=tmp_path / "b")
    assert same_bits(made.state_dict(), runs[0])


def test_dropout_of_two_blocks_and_two_programs_differs():
    head = sherl.Classifier(FEATURES, 2, dropout=0.5)
    _, made = foreign(head=head, dropout=0.5)
    taps = [np.repeat(tap[:1], 600, axis=0) for tap in taps_of(1)]  # the same sample in every block
    program = made._programs.output_gradient(True, False)
    features = made._features(taps)
    batch, outputs = features.batch(), np.empty((600, 2), np.float32)
    program.forward(batch.samples, batch.spaces, features.sources(batch), [(outputs, None)], seed=3)
    assert len(np.unique(outputs[:, 0])) > 590


def test_an_own_loss_and_a_late_module():
    native, made = foreign()
    taps, labels, mask = problem(60)

    def loss(outputs, targets):
        errors = outputs[:, 0] - targets
        gradient = np.zeros_like(outputs)
        gradient[:, 0] = 2 * errors / len(errors)
        return float((errors**2).mean()), gradient

    steps = [net.stepper(loss=loss, learning_rate=1e-3) for net in (native, made)]
    for _ in range(3):
        assert steps[1](taps, labels, mask) == pytest.approx(steps[0](taps, labels, mask), rel=1e-4)


def test_a_dual_encoder_with_a_late_module():
    a, b = taps_of(16), taps_of(16, 5, seed=9)
    encoders = []
    for number in (0, 1):
        towers = [foreign(head=sherl.Embedding(FEATURES, 6), seed=seed)[number] for seed in (0, 1)]
        encoders.append(sherl.DualEncoder(towers[0], towers[1]))
    mixed = sherl.DualEncoder(foreign(head=sherl.Embedding(FEATURES, 6), seed=0)[0],
                              foreign(head=sherl.Embedding(FEATURES, 6), seed=1)[1])
    steps = [encoder.stepper(learning_rate=1e-3, clip_norm=0.5) for encoder in (*encoders, mixed)]
    for _ in range(3):
        losses = [step(a, b) for step in steps]
        assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4)
        assert [step.gradient_norm for step in steps[1:]] == pytest.approx([steps[0].gradient_norm] * 2, rel=1e-3)


class Torchvision(nn.Module):
    """A bottleneck with the parts and names of torchvision's."""

    def __init__(self, weights, stride=1):
        super().__init__()
        width, features = weights["conv1.weight"].shape[:2]
        outputs = len(weights["conv3.weight"])
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(features, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if "downsample.0.weight" in weights:
            self.downsample = nn.Sequential(nn.Conv2d(features, outputs, 1, stride, bias=False),
                                            nn.BatchNorm2d(outputs))
        self.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)

    def forward(self, x):
        z = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(z)) + (x if self.downsample is None else self.downsample(x)))


class TorchvisionBasic(nn.Module):
    """A basic block with the parts and names of torchvision's."""

    def __init__(self, weights, stride=1):
        super().__init__()
        outputs, features = weights["conv1.weight"].shape[:2]
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(features, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(features, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)

    def forward(self, x):
        z = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(z + self.downsample(x))


class ChannelsLast(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("images", ["nchw", "nhwc"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_late_module_of_images(images, stride):
    weights = bottleneck_weights(24, 6, 14, shortcut=True)
    block = Torchvision(weights, stride)
    layers = [sherl.Bottleneck.from_resnet(weights, stride=stride),
              sherl.torch.Late(block if images == "nchw" else ChannelsLast(block), 24, 14, images=images)]
    adapter = image_network().early
    native, made = (sherl.SideNetwork(sherl.MTSA(**adapter.settings), [layer], sherl.Classifier(14, 2, pool="mean"))
                    for layer in layers)
    made.load_state_dict({**native.state_dict(), "early.gate": np.full(1, 0.1, np.float32)})
    native.load_state_dict(made.state_dict())
    taps, labels = image_problem()
    close(made.forward(taps), native.forward(taps))
    step, expected = (net.stepper(optimizer="sgd", learning_rate=0.05) for net in (made, native))
    for _ in range(3):
        assert step(taps, labels) == pytest.approx(expected(taps, labels), rel=1e-4)
    for name, value in native.state_dict().items():
        close(made.state_dict()[name], value)
    close(made.forward(taps), native.forward(taps))
    plan, wanted = (net.memory_plan(batch_size=8, tokens=(2, 1)) for net in (made, native))
    assert plan.optimizer == wanted.optimizer and plan.parameters == wanted.parameters
    with torch.no_grad():
        close(sherl.torch.to_torch(made)([torch.from_numpy(tap) for tap in taps]), native.forward(taps))


@pytest.mark.parametrize("call", [None, masked])
def test_a_module_is_given_no_more_than_a_block(call):
    _, made = foreign(call=call)
    rows = []
    made.late[0].module.register_forward_pre_hook(lambda module, given: rows.append(given[0].shape[:2].numel()))
    lengths = np.where(np.arange(2000) % 100, 3, 300)
    features = sherl.Features([np.zeros((lengths.sum(), FEATURES), np.float32)] * 3, lengths)
    labels, held = np.arange(2000) % 2, []
    for samples in (1000, 2000):
        rows.clear()
        made.loss_and_gradients(features[:samples], labels[:samples])
        assert sum(rows) >= lengths[:samples].sum() and max(rows) <= (4096 if call else 2048)
        held.append(made._programs.loss_gradient(False).nbytes)
    assert held[1] == held[0]  # of the core: it does not grow with the batch


def test_a_failed_step_changes_nothing():
    _, made = foreign()
    taps, labels, mask = problem(300)
    before, step = made.state_dict(), made.stepper()
    taps[0][-1, 0] = np.inf
    with pytest.raises(FloatingPointError):
        step(taps, labels, mask)
    assert same_bits(made.state_dict(), before)
    taps[0][-1, 0] = 0
    first = step(taps, labels, mask)
    _, other = foreign()
    assert first == other.stepper()(taps, labels, mask)
    assert same_bits(made.state_dict(), other.state_dict())


def test_saving_and_plans_with_a_late_module(tmp_path):
    _, made = foreign()
    taps, labels, mask = problem()
    made.save_pretrained(tmp_path)
    loaded = sherl.SideNetwork.from_pretrained(tmp_path, backbone=[sherl.torch.Late(Rows(0), FEATURES)])
    assert np.array_equal(loaded.forward(taps, mask), made.forward(taps, mask))
    with pytest.raises(ValueError, match="no layer of backbone has the weights"):
        sherl.SideNetwork.from_pretrained(tmp_path, backbone=[sherl.torch.Late(Rows(1), FEATURES)])
    assert made.memory_plan().parameters > 0
    assert "Late" in made.summary()
    assert made.num_parameters(trainable_only=False) > made.num_parameters()
    with pytest.raises(ValueError, match="memory_budget must be None"):
        made.fit(taps, labels, mask, memory_budget="1 GiB", progress=False)
    with pytest.raises(ValueError, match="late layers that sherl computes itself"):
        sherl.sweep(taps, labels, {"a": made}, mask=mask)
    same = copy.deepcopy(made)
    assert np.array_equal(same.forward(taps, mask), made.forward(taps, mask))


def test_late_modules_keep_their_mode_and_take_no_gradient():
    module = Rows(0).train()
    module.layer.query.weight.requires_grad_(True)
    made = sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), [sherl.torch.Late(module, FEATURES)],
                             sherl.Classifier(FEATURES, 2))
    taps, labels, mask = problem()
    made.loss_and_gradients(taps, labels, mask)
    assert module.training and module.layer.query.weight.grad is None


def test_late_modules_that_do_not_fit():
    with pytest.raises(TypeError, match="module must be a torch.nn.Module"):
        sherl.torch.Late(len, 3)
    late = sherl.torch.Late(nn.Linear(FEATURES, 5), FEATURES)
    made = sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), [late], sherl.Classifier(FEATURES, 2))
    with pytest.raises(ValueError, match=r"must give shape \(12, 7, 32\), got \(12, 7, 5\)"):
        made.forward(taps_of())


# ---- Modules ----


@pytest.mark.usefixtures("double_core")
@pytest.mark.parametrize("name", ["bert", "clip"])
def test_gradients_of_a_side_module(name):
    made = make(name)
    module = sherl.torch.SideModule(made).eval()
    taps, others = samples_of(made, samples=2, tokens=3)
    taps = [torch.from_numpy(tap.astype(np.float64)).requires_grad_() for tap in taps]
    assert torch.autograd.gradcheck(lambda *taps: module(*taps, **others), taps, eps=1e-6, atol=1e-5)
    parameters = list(module.parameters())
    module(*taps, **others).sum().backward()
    for parameter in parameters[:3]:
        flat, found = parameter.detach().reshape(-1), parameter.grad.reshape(-1)
        for place in (0, len(flat) - 1):
            values = []
            for step in (1e-6, -1e-6):
                flat[place] += step
                values.append(module(*taps, **others).sum().item())
                flat[place] -= step
            assert found[place] == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-7)


@pytest.mark.usefixtures("double_core")
@pytest.mark.parametrize("call", [None, lambda module, x, mask: module(x)])
def test_gradients_through_a_late_module(call):
    torch.manual_seed(0)
    late = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)).double()
    made = sherl.SideNetwork(sherl.MTSA(2, 6, 4, down="gated"), [sherl.torch.Late(late, 6, call=call)],
                             sherl.Classifier(6, 2, pool="mean"))
    made.load_state_dict({**made.state_dict(), "early.gate": np.full(1, 0.05)})
    module = sherl.torch.SideModule(made)
    taps = [torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    mask = np.arange(4) < np.array([[4], [2], [3]])
    assert torch.autograd.gradcheck(lambda *taps: module(*taps, mask=mask), taps, eps=1e-6, atol=1e-6)


def test_a_side_module_shares_its_parameters():
    made = network()
    module = sherl.torch.SideModule(made)
    assert module.state_dict().keys() == made.state_dict().keys()
    with torch.no_grad():
        module.head.bias.fill_(3)
    assert (made.state_dict()["head.bias"] == 3).all()
    made.load_state_dict({name: 0 * value for name, value in made.state_dict().items()})
    assert not module.early.up.weight.any()


def test_a_training_loop_of_ones_own():
    made, twin = network(), network()
    module, peer = sherl.torch.SideModule(made), as_peer(twin)
    taps, labels, mask = problem()
    tensors = [torch.from_numpy(tap) for tap in taps]
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-3)
                  for each in (module, nn.ParameterList(peer.trainable().values()))]
    for _ in range(5):
        losses = []
        for each, optimizer in zip((module, peer), optimizers):
            optimizer.zero_grad()
            outputs = each(tensors, mask=torch.from_numpy(mask))
            loss = F.cross_entropy(outputs, torch.from_numpy(labels))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, value in peer.trainable().items():
        close(made.state_dict()[name], value)


def as_peer(net):
    weights = [{name: torch.from_numpy(value) for name, value in bert_weights(0).items()}]
    peer = peer_torch.SideNetwork(peer_torch.MTSA(3, FEATURES, 8, up_norm="layernorm"),
                                  [peer_torch.TransformerLayer(weights[0], HEADS)], peer_torch.Classifier(FEATURES, 2))
    peer.load_trainable(net.state_dict())
    return peer


def test_blocks_between_modules_of_pytorch():
    adapter, head = sherl.MTSA(3, FEATURES, 8), sherl.Classifier(FEATURES, 2, pool="mean")
    late = nn.Linear(FEATURES, FEATURES)
    early, top = sherl.torch.SideModule(adapter), sherl.torch.SideModule(head)
    taps, mask = taps_of(), mask_of()
    tensors = [torch.from_numpy(tap).requires_grad_() for tap in taps]
    x = early(*tensors, mask=mask)
    outputs = top(late(x), mask=mask)
    outputs.square().sum().backward()
    assert late.weight.grad.any() and early.up.weight.grad.any() and top.weight.grad.any()
    expected = head(late(torch.from_numpy(adapter(taps, mask=mask))).detach().numpy(), mask)
    close(outputs, expected)
    _, gradients = adapter.vjp(taps, x.grad_fn and _gradient_of(late, top, adapter, taps, mask), mask=mask,
                               taps_gradient=True)
    close(tensors[0].grad, gradients["tap0"])
    close(tensors[-1].grad, gradients["tap2"] + gradients["last"])  # the last tap stands for `last`, too


def _gradient_of(late, top, adapter, taps, mask):
    x = torch.from_numpy(adapter(taps, mask=mask)).requires_grad_()
    return torch.autograd.grad(top(late(x), mask=mask).square().sum(), x)[0].numpy()


def test_dropout_of_a_side_module_is_that_of_torch_manual_seed():
    made = network(dropout=0.5)
    module = sherl.torch.SideModule(made)
    tensors = [torch.from_numpy(tap) for tap in taps_of()]
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(module(tensors))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    module.eval()
    close(module(tensors), made.forward(taps_of()), 0)


def test_what_changed_before_the_backward_is_noticed():
    module = sherl.torch.SideModule(network())
    outputs = module([torch.from_numpy(tap) for tap in taps_of()])
    with torch.no_grad():
        module.head.bias.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


def test_side_modules_of_other_types_and_forms():
    made = network()
    module = sherl.torch.SideModule(made).eval()
    taps, mask = taps_of(), mask_of()
    narrow = [torch.from_numpy(tap).bfloat16() for tap in taps]
    close(module(narrow, mask=mask), made.forward([tap.float().numpy() for tap in narrow], mask))
    features = sherl.Features.from_arrays(taps, mask)
    close(module(features), made.forward(features), 0)
    double = copy.deepcopy(module).double()
    close(double([tap.double() for tap in map(torch.from_numpy, taps)], mask=mask), made.forward(taps, mask))
    rows = network(head=sherl.TokenClassifier(FEATURES, 3))
    outputs = sherl.torch.SideModule(rows)(features)
    assert outputs.shape == (mask.sum(), 3)
    outputs.sum().backward()
    again = pickle.loads(pickle.dumps(module))
    close(again([torch.from_numpy(tap) for tap in taps]), made.forward(taps))
    with pytest.raises(TypeError, match="inputs must be tensors"):
        module(taps)
    with pytest.raises(TypeError, match="block must be a SideNetwork or a block"):
        sherl.torch.SideModule(3)


# ---- Plain modules ----


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plain_module_predicts_the_same(name):
    made = make(name)
    module = sherl.torch.to_torch(made)
    assert {name for name, _ in module.named_parameters()} == {
        name for name in made.state_dict() if "running" not in name}
    state = module.state_dict()
    for key, value in made.state_dict().items():
        assert np.array_equal(state[key].numpy(), value)
    for mask in (None, "padded", "holes"):
        taps, others = samples_of(made, mask=mask)
        with torch.no_grad():
            found = module([torch.from_numpy(tap) for tap in taps],
                           **{name: torch.from_numpy(value) for name, value in others.items()})
        close(found, made.forward(taps, **others))


@pytest.mark.parametrize("name", ["bert", "t5", "resnet", "decoder of T5", "table of positions"])
def test_gradients_of_a_plain_module(name):
    made = make(name)
    module = sherl.torch.to_torch(made)
    taps, others = samples_of(made, mask="padded")
    outputs = module([torch.from_numpy(tap) for tap in taps],
                     **{name: torch.from_numpy(value) for name, value in others.items()})
    cotangent = np.random.default_rng(0).standard_normal(outputs.shape, dtype=np.float32)
    outputs.backward(torch.from_numpy(cotangent))
    _, gradients = made.vjp(taps, cotangent, **others)
    for key, value in module.named_parameters():
        close(value.grad, gradients[key])


@pytest.mark.parametrize("call", [None, masked])
def test_a_plain_module_of_a_late_module(call):
    native, made = foreign(call=call)
    made.late[0].module.train()
    module = sherl.torch.to_torch(made)
    assert made.late[0].module.training and not module.late[0].module.training
    assert not any(each.requires_grad for each in module.late.parameters())
    for mask in (None, mask_of(), np.random.default_rng(0).random((12, 7)) < 0.5):
        if mask is not None:
            mask[:, 3] = True
        found = module([torch.from_numpy(tap) for tap in taps_of()], None if mask is None else torch.from_numpy(mask))
        close(found, native.forward(taps_of(), mask))


def test_an_exported_program_runs_without_sherl(tmp_path):
    made = make("bert")
    taps, others = samples_of(made, mask="padded")
    tensors, mask = [torch.from_numpy(tap) for tap in taps], torch.from_numpy(others["mask"])
    program = torch.export.export(sherl.torch.to_torch(made), (tensors, mask))
    torch.export.save(program, tmp_path / "network.pt2")
    torch.save((tensors, mask), tmp_path / "samples.pt")
    code = ("import sys, torch; tensors, mask = torch.load('samples.pt'); "
            "outputs = torch.export.load('network.pt2').module()(tensors, mask); "
            "assert 'sherl' not in sys.modules; torch.save(outputs, 'outputs.pt')")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    close(torch.load(tmp_path / "outputs.pt"), made.forward(taps, **others))


# ---- Taps ----


def bert_model():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=FEATURES, num_hidden_layers=3, num_attention_heads=HEADS, intermediate_size=64,
        max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BertModel(config, add_pooling_layer=False)


NAMES = ["embeddings", "encoder.layer.0", "encoder.layer.1"]


def token_batches(labels=False):
    generator = torch.Generator().manual_seed(0)
    for samples, tokens in ((5, 7), (3, 9)):
        lengths = torch.randint(1, tokens + 1, (samples, 1), generator=generator)
        batch = {"input_ids": torch.randint(0, 50, (samples, tokens), generator=generator),
                 "attention_mask": (torch.arange(tokens) < lengths).long()}
        yield {**batch, "labels": torch.zeros(samples)} if labels else batch


def test_taps_of_a_transformer():
    model = bert_model().train()
    features = sherl.torch.extract(model, token_batches(labels=True), NAMES)
    assert model.training and len(features) == 8
    states = [[] for _ in NAMES]
    model.eval()
    for batch in token_batches():
        with torch.no_grad():
            hidden = model(**batch, output_hidden_states=True).hidden_states
        for found, state in zip(states, hidden):
            found.append(state[batch["attention_mask"].bool()])
    for tap, state in zip(features.taps, states):
        close(tap, torch.cat(state), 1e-5)
    assert features.lengths.tolist() == [int(row.sum()) for batch in token_batches() for row in batch["attention_mask"]]
    assert features.source["states"] == NAMES
    net = sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), head=sherl.Classifier(FEATURES, 2))
    assert net.explain(features).names == NAMES[:2]
    again = sherl.torch.extract(model, token_batches(), ["encoder.layer.0:input", *NAMES[1:]])
    assert all(np.array_equal(a, b) for a, b in zip(features.taps, again.taps))
    narrow = sherl.torch.extract(model, token_batches(), NAMES, dtype="int8")
    assert same_bits(narrow.taps[1], features.astype("int8").taps[1])
    half = sherl.torch.extract(model.bfloat16(), token_batches(), NAMES, dtype="bfloat16")
    assert half.dtypes == ["bfloat16"] * 3


def test_a_transformer_from_extraction_to_training():
    model = bert_model()
    features, layers = sherl.torch.extract(model, token_batches(), NAMES, late=["encoder.layer.2"])
    weights = {name: value.numpy() for name, value in model.encoder.layer[2].state_dict().items()}
    native = sherl.TransformerLayer.from_bert(weights, HEADS)
    assert layers[0].fingerprint == native.fingerprint
    labels = np.arange(8) % 2
    losses = []
    for layer in (sherl.torch.Late(model.encoder.layer[2], FEATURES), native):
        net = sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), [layer], sherl.Classifier(FEATURES, 2))
        losses.append(net.fit(features, labels, epochs=2, batch_size=4, progress=False).step_losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def late_of(module, x):
    """What `extract` makes of a module as a late layer."""
    _, (layer,) = sherl.torch.extract(nn.Sequential(nn.Identity(), module), [x], ["0"], late=["1"])
    return layer


def test_layers_that_sherl_knows_run_in_its_core():
    x, pixels = torch.randn(2, 5, FEATURES), torch.randn(2, 24, 6, 6)
    torch.manual_seed(0)
    sizes = {"hidden_size": FEATURES, "num_attention_heads": HEADS, "intermediate_size": 48}
    vit = ViTLayer(transformers.ViTConfig(**sizes, hidden_act="gelu_pytorch_tanh", attn_implementation="eager"))
    layer = late_of(vit, x)
    assert isinstance(layer, sherl.TransformerLayer) and vit.training
    with torch.no_grad():
        close(layer(x.numpy()), vit.eval()(x))
    assert np.shares_memory(layer._frozen["up_weight"], vit.mlp.fc1.weight.detach().numpy())
    block = Torchvision(bottleneck_weights(24, 6, 14, shortcut=True), stride=2)
    layer = late_of(block, pixels)
    assert isinstance(layer, sherl.Bottleneck) and layer.stride == 2
    with torch.no_grad():
        close(layer(pixels.permute(0, 2, 3, 1).numpy()), block.eval()(pixels).permute(0, 2, 3, 1))
    basic = TorchvisionBasic(basic_block_weights(24, 14, shortcut=True), stride=2)
    layer = late_of(basic, pixels)
    assert isinstance(layer, sherl.BasicBlock) and layer.stride == 2
    with torch.no_grad():
        close(layer(pixels.permute(0, 2, 3, 1).numpy()), basic.eval()(pixels).permute(0, 2, 3, 1))
    block.forward = lambda x: F.gelu(x)  # the names of a bottleneck, and something else
    assert isinstance(late_of(block, pixels), sherl.torch.Late)
    assert isinstance(late_of(vit.bfloat16(), x.bfloat16()), sherl.torch.Late)
    assert isinstance(late_of(nn.Linear(FEATURES, 4), x), sherl.torch.Late)


def convolutions(channels=(4, 6, 8)):
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
              for a, b in zip((3, *channels), channels)]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))


def test_taps_of_images():
    model, images = convolutions(), torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=2)
    features = sherl.torch.extract(model, loader, ["0", "1", "2"])
    with torch.no_grad():
        state = model.eval()[:2](images)
    assert [sizes[0].tolist() for sizes in features.sizes] == [[8, 8], [4, 4], [2, 2]]
    close(features.taps[1].reshape(5, 4, 4, 6), state.permute(0, 2, 3, 1), 1e-5)
    net = sherl.SideNetwork(sherl.MTSA.resnet([4, 6, 8], 3, 4), head=sherl.Classifier(8, 2, pool="mean"))
    net.fit(features, [0, 1, 0, 1, 0], epochs=1, progress=False)
    last = sherl.torch.extract(model, iter([images]), ["0"], images="nchw", dtype="float16")
    assert last.dtypes == ["float16"]


class Patches(nn.Module):
    """Like a ViT of timm: tokens, and one vector of the whole."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(FEATURES, FEATURES) for _ in range(2))
        self.head = nn.Linear(FEATURES, 6)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


def test_taps_of_a_tower():
    features = sherl.torch.extract(Patches(), [torch.randn(4, 5, FEATURES)], ["blocks.0", "blocks.1", "head"])
    assert features.channels == [FEATURES, FEATURES, 6]
    net = sherl.SideNetwork(sherl.MTSA.clip(FEATURES, 2, 8, 6), head=sherl.Embedding(6, 3))
    assert net.forward(features).shape == (4, 3)


def test_extraction_of_what_does_not_fit():
    model, images = convolutions(), torch.randn(2, 3, 16, 16)
    for arguments, message in (
        ({"taps": ["7"]}, "no '7'"),
        ({"taps": ["0", "0"]}, "different names"),
        ({"taps": ["0", "5"], "loader": []}, "at least one batch"),
        ({"taps": ["5", "0"]}, "taps must be all tokens"),
        ({"taps": ["0"], "late": ["9"]}, "late must be names of submodules"),
        ({"taps": ["0"], "dtype": "float64"}, "dtype must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            sherl.torch.extract(model, **{"loader": [images], **arguments})
    with pytest.raises(TypeError, match="module must be a torch.nn.Module"):
        sherl.torch.extract(len, [images], ["0"])
    model.unused = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="'inner.unused' did not"):
        sherl.torch.extract(lambda_module(model), [images], ["inner.0", "inner.unused"])
    assert not any(module._forward_hooks for module in model.modules())


def lambda_module(model):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner[0](x)

    return Outer()
