"""A side network with a decoder against PyTorch: layers of transformers' DETR around the same adapter and heads."""

import numpy as np
import pytest
import torch
import transformers
from benchmarks import peer_torch
from test_heads_torch import assert_same_weights, compare, tensors, torch_detection
from test_layers_transformers import EAGER, FEATURES, HEADS, INNER, first, randomized, weights_of
from torch import nn
from transformers.models.detr.modeling_detr import DetrDecoderLayer, DetrEncoderLayer

import sherl
import sherl.torch
from sherl import losses

SAMPLES, TOKENS, QUERIES, CLASSES, TAPS = 6, 9, 4, 3, 3


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.classes = nn.Linear(FEATURES, CLASSES + 1)
        sizes = (FEATURES, 10, 10, 4)
        self.box = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes, sizes[1:]))

    def forward(self, x):
        box = self.box[2](torch.relu(self.box[1](torch.relu(self.box[0](x)))))
        return torch.cat([self.classes(x), box.sigmoid()], dim=-1)


class Tables(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(QUERIES, FEATURES))


class Peer(nn.Module):
    """Adapter, an encoder layer, two decoder layers over the queries, their final norm, and the heads of DETR."""

    def __init__(self):
        super().__init__()
        config = transformers.DetrConfig(
            use_timm_backbone=False, backbone_config=transformers.ResNetConfig(), d_model=FEATURES,
            encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=INNER, decoder_ffn_dim=INNER,
            **EAGER,
        )  # fmt: skip
        self.early = peer_torch.MTSA(TAPS, FEATURES, 8, guidance="residual_mlp", up_norm="layernorm", eps=1e-6,
                                     up_norm_eps=1e-5)
        layers = [randomized(kind(config), seed) for seed, kind in
                  enumerate((DetrEncoderLayer, DetrDecoderLayer, DetrDecoderLayer))]
        self.late = nn.ModuleList([nn.Identity(), layers[0], Tables(), *layers[1:], randomized(nn.LayerNorm(FEATURES))])
        self.head = Head()

    def forward(self, taps, places):
        _, encoder, queries, *decoder, norm = self.late
        memory = first(encoder(self.early(taps), None, spatial_position_embeddings=places))
        positions = queries.positions.expand(len(places), -1, -1)
        y = torch.zeros_like(positions)
        for layer in decoder:
            y = first(layer(y, object_queries_position_embeddings=positions, encoder_hidden_states=memory,
                            spatial_position_embeddings=places))
        return self.head(norm(y))

    def trainable(self):
        return {name: value for name, value in self.named_parameters() if value.requires_grad}


@pytest.fixture
def pair():
    torch.manual_seed(0)
    peer = Peer()
    _, encoder, _, *decoder, norm = peer.late
    late = [sherl.Positions(FEATURES), sherl.TransformerLayer.from_detr(weights_of(encoder), HEADS),
            sherl.Queries(FEATURES, QUERIES),
            *(sherl.TransformerLayer.from_detr(weights_of(layer), HEADS, decoder=True) for layer in decoder),
            sherl.LayerNorm.from_weights(*weights_of(norm).values())]
    net = sherl.SideNetwork(sherl.MTSA.detr(FEATURES, TAPS, 8), late, sherl.Detector(FEATURES, CLASSES, hidden=10))
    peer = peer.double()
    with torch.no_grad():
        for value in peer.trainable().values():
            value.add_(0.05 * torch.randn_like(value))
    net.load_state_dict({name: value.detach().numpy() for name, value in peer.trainable().items()})
    return net, peer


def problem():
    generator = np.random.default_rng(1)
    given = [generator.standard_normal((SAMPLES, TOKENS, FEATURES), dtype=np.float32) for _ in range(TAPS + 1)]
    boxes = [generator.uniform(0.2, 0.6, (1 + number % 3, 4)) for number in range(SAMPLES)]
    return given, boxes, [generator.integers(0, CLASSES, len(rows)) for rows in boxes]


def peer_loss(peer, given, boxes, labels):
    *taps, places = tensors(given)
    outputs = peer(taps, places).flatten(0, 1)
    return torch_detection(outputs, [QUERIES] * SAMPLES, boxes, labels, CLASSES)


def test_loss_and_all_gradients(pair):
    net, peer = pair
    given, boxes, labels = problem()
    outputs = net.forward(given)
    value, gradient = losses.detection(CLASSES)(outputs.reshape(-1, outputs.shape[-1]),
                                                losses.box_targets(boxes, labels),
                                                np.full(SAMPLES, QUERIES))
    _, gradients = net.vjp(given, gradient.reshape(outputs.shape).astype(np.float32))
    assert "late.2.positions" in gradients
    compare(net, value, gradients, peer, peer_loss(peer, given, boxes, labels))


def test_ten_steps(pair):
    net, peer = pair
    given, boxes, labels = problem()
    step = net.stepper(learning_rate=1e-3, weight_decay=0.01, clip_norm=0.5, loss=losses.detection(CLASSES))
    parameters = list(peer.trainable().values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    for _ in range(10):
        optimizer.zero_grad()
        expected = peer_loss(peer, given, boxes, labels)
        expected.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        assert step(given, losses.box_targets(boxes, labels)) == pytest.approx(expected.item(), rel=1e-4)
    assert_same_weights([net], [peer])


def test_as_a_module_of_pytorch(pair):
    """Padded or ragged, its outputs are rows of queries."""
    net, _ = pair
    module, (given, _, _) = sherl.torch.SideModule(net).eval(), problem()
    mask = np.arange(TOKENS) < np.array([9, 4, 1, 7, 9, 2])[:, None]
    cotangent = torch.randn(SAMPLES, QUERIES, CLASSES + 5)
    taps = [torch.from_numpy(tap).requires_grad_() for tap in given]
    outputs = module(*taps, mask=mask)
    np.testing.assert_array_equal(outputs.detach().numpy(), net.forward(given, mask))
    outputs.backward(cotangent)
    _, expected = net.vjp(given, cotangent.numpy(), mask, taps_gradient=True)
    for number, tap in enumerate(taps):
        np.testing.assert_array_equal(tap.grad.numpy(), expected[f"tap{number}"])
    found = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.zero_grad()
    ragged = module(sherl.Features([tap[mask] for tap in given], mask.sum(axis=1)))
    ragged.backward(cotangent)
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(parameter.grad, found[name], atol=1e-5)
