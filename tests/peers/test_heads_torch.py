"""Heads, losses and training options against PyTorch: the same network, loss and optimizer written there."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import peer_torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from small import FEATURES, HEADS, bert_weights, frozen_layer, mask_of, network, taps_of

import sherl
from sherl import losses

IGNORED = -100


def as_peer(net, head, taps=3, late=1):
    """The network of `small.network` in PyTorch, in float64, with a head of its own and the same weights."""
    weights = [{name: torch.from_numpy(value) for name, value in bert_weights(number).items()}
               for number in range(late)]
    mtsa = peer_torch.MTSA(taps, FEATURES, 8, up_norm="layernorm")
    head.pool = None
    peer = peer_torch.SideNetwork(mtsa, [peer_torch.TransformerLayer(each, HEADS) for each in weights], head).double()
    peer.load_trainable(net.state_dict())
    return peer


def tensors(arrays):
    return [torch.from_numpy(array).double() for array in arrays]


class RowHead(nn.Linear):
    def forward(self, x, mask=None):
        return super().forward(x)


class EmbeddingHead(nn.Linear):
    """Linear map, the mean over the rows that are meant, the l2 norm, and a learned scale."""

    def __init__(self, features, out, temperature=None):
        super().__init__(features, out)
        self.temperature = temperature
        if temperature:
            self.log_scale = nn.Parameter(torch.zeros(1))

    def forward(self, x, mask=None):
        mask = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        pooled = (super().forward(x) * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        unit = F.normalize(pooled, dim=1)
        return unit * self.log_scale.exp() / self.temperature if self.temperature else unit


def compare(net, loss, gradients, peer, peer_loss):
    parameters = peer.trainable()
    expected = dict(zip(parameters, torch.autograd.grad(peer_loss, list(parameters.values()))))
    assert loss == pytest.approx(peer_loss.item(), rel=1e-4)
    assert gradients.keys() == expected.keys()
    overall = np.linalg.norm([np.linalg.norm(value) for value in expected.values()])
    for name, value in expected.items():
        scale = max(np.linalg.norm(value), 1e-2 * overall)
        assert np.linalg.norm(gradients[name] - value.numpy()) < 1e-4 * scale, name


@pytest.mark.parametrize("weighted", [False, True])
def test_token_classification(weighted):
    taps, mask = taps_of(), mask_of()
    generator = np.random.default_rng(0)
    labels = np.where(generator.random(mask.shape) < 0.25, IGNORED, generator.integers(0, 5, mask.shape))
    options = {"class_weights": [1, 2, 0.5, 3, 1], "label_smoothing": 0.1} if weighted else {}
    net = network(head=sherl.TokenClassifier(FEATURES, 5, **options))
    peer = as_peer(net, RowHead(FEATURES, 5))
    logits = peer(tensors(taps), torch.from_numpy(mask))
    targets = torch.from_numpy(np.where(mask, labels, IGNORED)).reshape(-1)
    weight = torch.tensor(options["class_weights"], dtype=torch.float64) if weighted else None
    expected = F.cross_entropy(logits.reshape(-1, 5), targets, weight=weight, ignore_index=IGNORED,
                               label_smoothing=options.get("label_smoothing", 0.0))
    compare(net, *net.loss_and_gradients(taps, labels, mask), peer, expected)


def test_spans():
    taps, mask = taps_of(), mask_of()
    spans = np.sort(np.random.default_rng(0).integers(0, mask.sum(axis=1)[:, None], (12, 2)), axis=1)
    net = network(head=sherl.SpanPredictor(FEATURES))
    peer = as_peer(net, RowHead(FEATURES, 2))
    logits = peer(tensors(taps), torch.from_numpy(mask)).masked_fill(~torch.from_numpy(mask)[:, :, None], -torch.inf)
    targets = torch.from_numpy(spans)
    expected = (F.cross_entropy(logits[:, :, 0], targets[:, 0]) + F.cross_entropy(logits[:, :, 1], targets[:, 1])) / 2
    compare(net, *net.loss_and_gradients(taps, spans, mask), peer, expected)


def test_binary_cross_entropy():
    taps, mask = taps_of(), mask_of()
    labels = np.random.default_rng(0).random((12, 6)).astype(np.float32)
    net = network(head=sherl.Classifier(FEATURES, 6, multi_label=True))

    class FirstRow(nn.Linear):
        def forward(self, x, mask=None):
            return super().forward(x[:, 0])

    peer = as_peer(net, FirstRow(FEATURES, 6))
    logits = peer(tensors(taps), torch.from_numpy(mask))
    expected = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels).double())
    compare(net, *net.loss_and_gradients(taps, labels, mask), peer, expected)


# ---- Pairs ----


def torch_contrastive(a, b, temperature=None):
    if temperature:
        a, b = F.normalize(a, dim=1) / temperature, F.normalize(b, dim=1)
    similarity, own = a @ b.T, torch.arange(len(a))
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


def torch_triplet(a, b, margin=0.2, hardest=True):
    similarity = a @ b.T
    own = similarity.diag()
    costs = [(margin - own[:, None] + similarity).clamp(min=0), (margin - own[None] + similarity).clamp(min=0)]
    eye = torch.eye(len(a), dtype=torch.bool)
    costs = [cost.masked_fill(eye, 0) for cost in costs]
    if hardest:
        return costs[0].max(dim=1)[0].sum() + costs[1].max(dim=0)[0].sum()
    return costs[0].sum() + costs[1].sum()


PAIRED = {
    "contrastive": (losses.contrastive(0.1), lambda a, b: torch_contrastive(a, b, 0.1), None),
    "learned temperature": (None, torch_contrastive, 0.1),
    "triplet": (losses.triplet(), torch_triplet, None),
    "triplet, all": (losses.triplet(negatives="all"), lambda a, b: torch_triplet(a, b, hardest=False), None),
}


@pytest.mark.parametrize("case", PAIRED)
def test_losses_of_pairs(case):
    loss, peer_loss, _ = PAIRED[case]
    rows = np.random.default_rng(1).standard_normal((2, 9, 5))
    rows[1] += rows[0]
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    a, b = (torch.tensor(each, requires_grad=True) for each in rows)
    expected = peer_loss(a, b)
    expected.backward()
    value, *gradients = (loss or losses.contrastive(None))(*rows)
    assert value == pytest.approx(expected.item(), rel=1e-10)
    for gradient, tensor in zip(gradients, (a, b)):
        assert np.allclose(gradient, tensor.grad, atol=1e-12)


@pytest.mark.parametrize("case", PAIRED)
def test_ten_steps_of_a_dual_encoder(case):
    loss, peer_loss, temperature = PAIRED[case]
    a, b, mask_a, mask_b = taps_of(16, 6, 3), taps_of(16, 5, 2, seed=9), mask_of(16, 6), mask_of(16, 5, 9)
    nets = [network(3, 1, sherl.Embedding(FEATURES, 6, temperature=temperature), 0),
            network(2, 0, sherl.Embedding(FEATURES, 6), 1)]
    peers = [as_peer(nets[0], EmbeddingHead(FEATURES, 6, temperature)),
             as_peer(nets[1], EmbeddingHead(FEATURES, 6), taps=2, late=0)]
    step = sherl.DualEncoder(*nets, loss=loss).stepper(learning_rate=1e-3, weight_decay=0.01, clip_norm=0.5)
    parameters = [value for peer in peers for value in peer.trainable().values()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    given = [(tensors(taps), torch.from_numpy(mask)) for taps, mask in ((a, mask_a), (b, mask_b))]
    for _ in range(10):
        optimizer.zero_grad()
        expected = peer_loss(*(peer(*each) for peer, each in zip(peers, given)))
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        assert step(a, b, mask_a=mask_a, mask_b=mask_b) == pytest.approx(expected.item(), rel=1e-4)
        assert step.gradient_norm == pytest.approx(norm.item(), rel=1e-3)
    assert_same_weights(nets, peers)


def assert_same_weights(nets, peers):
    """Within a hundredth of the distance 1e-2 that ten steps of the learning rate 1e-3 go at most."""
    for net, peer in zip(nets, peers):
        state = net.state_dict()
        for name, value in peer.trainable().items():
            assert np.abs(state[name] - value.detach().numpy()).max() < 1e-4, name


# ---- Options ----


def test_ten_steps_with_groups_and_an_average():
    taps, mask, labels = taps_of(16), mask_of(16), np.random.default_rng(0).integers(0, 4, 16)
    net = network(head=sherl.Classifier(FEATURES, 4, pool="mean"))
    peer = as_peer(net, peer_torch.Classifier(FEATURES, 4, pool="mean"))
    peer.head.pool = "mean"
    average = torch.optim.swa_utils.AveragedModel(
        peer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True)
    average.update_parameters(peer)  # the first call copies: the average starts as the weights are
    groups = {(rate, decay): [] for rate in (1.0, 0.1) for decay in (0.0, 0.05, 0.15)}
    for name, value in peer.trainable().items():
        rate = 0.1 if name.startswith("head.") else 1.0
        decay = 0.0 if name.endswith("bias") else 0.15 if name.startswith("early.down.") else 0.05
        groups[rate, decay].append(value)
    optimizer = torch.optim.AdamW([{"params": values, "lr": 1e-3 * rate, "weight_decay": decay}
                                   for (rate, decay), values in groups.items() if values])
    step = net.stepper(learning_rate=1e-3, weight_decay=0.05, no_decay=["*bias"], ema=0.9, clip_norm=0.3,
                       learning_rate_factors={"head.*": 0.1}, weight_decay_factors={"early.down.*": 3.0})
    arguments = tensors(taps), torch.from_numpy(mask)
    for _ in range(10):
        optimizer.zero_grad()
        expected = F.cross_entropy(peer(*arguments), torch.from_numpy(labels))
        expected.backward()
        torch.nn.utils.clip_grad_norm_(list(peer.trainable().values()), 0.3)
        optimizer.step()
        average.update_parameters(peer)
        assert step(taps, labels, mask) == pytest.approx(expected.item(), rel=1e-4)
    assert_same_weights([net], [peer])
    for name, value in average.module.trainable().items():
        assert np.abs(step.average.values[name] - value.detach().numpy()).max() < 1e-4, name


# ---- Boxes ----


def torch_giou(boxes, targets):
    low, high = (torch.stack([rows[:, :2] - rows[:, 2:] / 2, rows[:, :2] + rows[:, 2:] / 2])
                 for rows in (boxes, targets))
    inner = (torch.minimum(low[1], high[1]) - torch.maximum(low[0], high[0])).clamp(min=0).prod(dim=1)
    outer = (torch.maximum(low[1], high[1]) - torch.minimum(low[0], high[0])).prod(dim=1)
    union = boxes[:, 2:].prod(dim=1) + targets[:, 2:].prod(dim=1) - inner
    return inner / union - (outer - union) / outer


def test_boxes():
    generator = np.random.default_rng(0)
    rows = [np.concatenate([generator.uniform(0.2, 0.8, (40, 2)), generator.uniform(0.05, 0.5, (40, 2))], axis=1)
            for _ in range(2)]
    boxes, targets = torch.tensor(rows[0], requires_grad=True), torch.tensor(rows[1])
    values, gradients = losses.generalized_iou(*rows)
    expected = torch_giou(boxes, targets)
    expected.sum().backward()
    assert np.allclose(values, expected.detach(), atol=1e-12) and np.allclose(gradients, boxes.grad, atol=1e-9)
    boxes.grad = None
    F.l1_loss(boxes, targets, reduction="sum").backward()
    assert np.allclose(losses.box_l1(*rows)[1], boxes.grad)


def torch_detection(outputs, lengths, boxes, labels, classes):
    """The loss of DETR over the rows of some images, one image after the other."""
    columns = classes + 1
    wanted, geometry, start = torch.full((len(outputs),), classes), 0.0, 0
    for length, rows, label in zip(lengths, boxes, labels):
        mine, rows = outputs[start : start + length], torch.tensor(rows)
        overlap = torch.stack([torch_giou(mine[:, columns:], row.expand(length, 4)) for row in rows], dim=1)
        costs = -mine[:, :columns].softmax(dim=1)[:, label] + 5 * torch.cdist(mine[:, columns:], rows,
                                                                              p=1) - 2 * overlap
        queries, objects = losses.match_boxes(costs.detach().numpy())
        wanted[start + queries] = torch.from_numpy(label[objects])
        geometry = geometry + 5 * F.l1_loss(mine[queries, columns:], rows[objects], reduction="sum")
        geometry = geometry + 2 * (1 - torch_giou(mine[queries, columns:], rows[objects])).sum()
        start += length
    weight = torch.ones(columns, dtype=torch.float64)
    weight[-1] = 0.1
    return F.cross_entropy(outputs[:, :columns], wanted, weight=weight) + geometry / sum(map(len, boxes))


def test_the_loss_of_detection():
    generator = np.random.default_rng(0)
    lengths, classes = np.array([5, 3]), 4
    outputs = np.concatenate([generator.standard_normal((8, classes + 1)), generator.uniform(0.2, 0.6, (8, 4))], axis=1)
    boxes = [generator.uniform(0.2, 0.6, (count, 4)) for count in (2, 3)]
    labels = [generator.integers(0, classes, count) for count in (2, 3)]
    value, gradient = losses.detection(classes)(outputs, losses.box_targets(boxes, labels), lengths)
    x = torch.tensor(outputs, requires_grad=True)
    expected = torch_detection(x, lengths, boxes, labels, classes)
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-10)
    assert np.allclose(gradient, x.grad, atol=1e-9)


def test_frozen_layers_of_both_sides_are_alike():
    x, mask = taps_of()[0], mask_of()
    peer = peer_torch.TransformerLayer({name: torch.from_numpy(value) for name, value in bert_weights().items()}, HEADS)
    expected = peer.double()(torch.from_numpy(x).double(), torch.from_numpy(mask)).numpy()
    assert np.allclose(frozen_layer()(x, mask)[mask], expected[mask], atol=1e-4)
