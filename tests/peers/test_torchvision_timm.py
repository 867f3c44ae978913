"""Real models of torchvision and timm, with random weights: their taps, their blocks as late layers, their ResNets."""

import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import peer_torch, resnet_torch
from test_resnet_backbone import write_resnet

import sherl
import sherl.torch

LIMIT = 1e-4
CLASSES, CHANNELS = 3, 192  # of ViT-Ti
VIT = {"img_size": 64, "depth": 4}


def distance(found, expected):
    """Return the largest distance of two arrays, as a part of the largest number where that is above 1."""
    found, expected = (np.asarray(each.detach() if torch.is_tensor(each) else each) for each in (found, expected))
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(1, np.abs(expected).max()))


@pytest.fixture(scope="module")
def table():
    rows = []
    yield rows
    print("\n\nlargest distance\n" + "\n".join(f"{name:52}{worst:10.1e}" for name, worst in rows))


def randomized(model):
    """Return a model, for evaluation, whose norms do not stand where they begin."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.LayerNorm)):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
    return model.eval()


def images_of(samples=6, seed=0):
    return torch.randn(samples, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def loader_of(images):
    dataset = torch.utils.data.TensorDataset(images, torch.zeros(len(images)))
    return torch.utils.data.DataLoader(dataset, batch_size=4)


def extracted(model, images, taps, late=(), layout="nchw"):
    """Return what `sherl.torch.extract` gives for batches of images and labels."""
    return sherl.torch.extract(model, loader_of(images), taps, late, call=lambda model, batch: model(batch[0]),
                               images=layout, progress=False)


def states_of(features):
    """Return taps as arrays (samples, tokens, channels), or images with channels last."""
    if features.sizes is None:
        return [tap.reshape(len(features), -1, tap.shape[-1]) for tap in features.taps]
    return [tap.reshape(len(features), *sizes[0], -1) for tap, sizes in zip(features.taps, features.sizes)]


# ---- Taps ----


def by_torchvision(model, images, names):
    """Return intermediate outputs by torchvision's own means, which cut the graph of the model."""
    return list(create_feature_extractor(model, list(names))(images).values())


def by_timm(model, images, names):
    """Return intermediate outputs by timm's own means; the names end with the number, but for the first stage."""
    tokens = isinstance(model, timm.models.VisionTransformer)
    first = 1 if isinstance(model, timm.models.ResNet) else 0  # before it comes the stem
    options = {"output_fmt": "NLC", "return_prefix_tokens": True} if tokens else {}
    indices = [int(name[-1]) - (1 - first) * name.startswith("layer") for name in names]
    states = model.forward_intermediates(images, indices=indices, intermediates_only=True, **options)
    return [torch.cat([prefix, rows], dim=1) for rows, prefix in states] if tokens else states


TAPS = {
    "torchvision resnet18": (torchvision.models.resnet18, {}, [f"layer{number}" for number in (1, 2, 3, 4)]),
    "torchvision convnext_tiny": (torchvision.models.convnext_tiny, {}, ["features.1", "features.3", "features.5"]),
    "torchvision swin_t": (torchvision.models.swin_t, {}, ["features.1", "features.3", "features.5"]),
    "torchvision ViT": (
        torchvision.models.VisionTransformer,
        dict(image_size=64, patch_size=16, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128),
        [f"encoder.layers.encoder_layer_{number}" for number in range(3)]),
    "timm resnet18": ("resnet18", {}, [f"layer{number}" for number in (1, 2, 3, 4)]),
    "timm convnext_atto": ("convnext_atto", {}, [f"stages.{number}" for number in range(3)]),
    "timm vit_tiny_patch16_224": ("vit_tiny_patch16_224", VIT, [f"blocks.{number}" for number in range(3)]),
}


@pytest.mark.parametrize("name", TAPS)
def test_taps_are_the_outputs_of_the_modules(name, table):
    torch.manual_seed(0)
    make, settings, taps = TAPS[name]
    model = randomized(timm.create_model(make, **settings) if isinstance(make, str) else make(**settings))
    images, layout = images_of(), "nhwc" if "swin" in name else "nchw"
    features = extracted(model, images, taps, layout=layout)
    with torch.no_grad():
        expected = (by_timm if isinstance(make, str) else by_torchvision)(model, images, taps)
    worst = 0.0
    for state, wanted in zip(states_of(features), expected, strict=True):
        worst = max(worst, distance(state, wanted.permute(0, 2, 3, 1) if layout == "nchw" and wanted.ndim == 4 else
                                    wanted))
    table.append((f"taps of {name}", worst))
    assert worst < 1e-6


@pytest.mark.parametrize("name, taps, late, kinds", [
    ("resnet18", ["layer1", "layer2", "layer3", "layer4.0"], ["layer4.1"], (sherl.BasicBlock, sherl.BasicBlock)),
    ("resnet50", ["layer1", "layer2", "layer3", "layer4.1"], ["layer4.2"], (sherl.Bottleneck, sherl.Bottleneck)),
    ("resnext50_32x4d", ["layer1", "layer2", "layer3", "layer4.1"], ["layer4.2"],
     (sherl.torch.Late, sherl.torch.Late)),
])
def test_blocks_of_resnets_become_layers(name, taps, late, kinds, table):
    torch.manual_seed(0)
    images = images_of()
    for package, model, kind in zip(("torchvision", "timm"), (torchvision.models.get_model(name),
                                                              timm.create_model(name)), kinds):
        features, layers = extracted(randomized(model), images, taps, late)
        assert type(layers[0]) is kind
        network = sherl.SideNetwork(sherl.MTSA.resnet(features.channels, hidden=8), layers,
                                    sherl.Classifier(features.channels[-1], CLASSES, pool="mean"))
        x = torch.randn(2, features.channels[-1], 2, 2)
        expected = model.get_submodule(late[0])(x).permute(0, 2, 3, 1)
        channels_last = x.permute(0, 2, 3, 1).contiguous()
        found = layers[0](x).permute(0, 2, 3, 1) if kind is sherl.torch.Late else layers[0](channels_last.numpy())
        table.append((f"late block of {package} {name}", distance(found, expected)))
        assert table[-1][1] < LIMIT
        history = network.fit(features, np.arange(len(images)) % CLASSES, epochs=2, batch_size=3, progress=False)
        assert np.isfinite(history.step_losses).all()


# ---- Late layers that only PyTorch has ----


def as_tensors(features):
    return [torch.from_numpy(np.array(state)) for state in states_of(features)]


def vit_pair():
    """Return a network whose late layer is a block of timm's ViT, the same in PyTorch, features, and how they go in."""
    model = randomized(timm.create_model("vit_tiny_patch16_224", **VIT))
    features, layers = extracted(model, images_of(), ["blocks.0", "blocks.1", "blocks.2"], ["blocks.3"])
    assert type(layers[0]) is sherl.torch.Late and layers[0].module is model.blocks[3]
    network = sherl.SideNetwork(sherl.MTSA(3, CHANNELS, 16), layers, sherl.Classifier(CHANNELS, CLASSES, pool="mean"))

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = model.blocks[3].requires_grad_(False)

        def forward(self, x, mask, rows):
            return self.block(x)

    peer = peer_torch.SideNetwork(peer_torch.MTSA(3, CHANNELS, 16), [Block()],
                                  peer_torch.Classifier(CHANNELS, CLASSES, pool="mean"))
    return network, peer, features, as_tensors(features)


def resnet_pair():
    """The same with a basic block of torchvision's ResNet-18, and images."""
    model = randomized(torchvision.models.resnet18())
    block = model.layer4[1].requires_grad_(False)
    features = extracted(model, images_of(), ["layer1", "layer2", "layer3", "layer4.0"])
    network = sherl.SideNetwork(sherl.MTSA.resnet(features.channels, hidden=16), [sherl.torch.Late(block, 512)],
                                sherl.Classifier(512, CLASSES, pool="mean"))
    peer = resnet_torch.SideNetwork(features.channels, 16, (8, 4, 2, 1), [], CLASSES)
    peer.late.append(block)
    return network, peer, features, [tensor.permute(0, 3, 1, 2) for tensor in as_tensors(features)]


PAIRS = {"ViT of timm": vit_pair, "ResNet-18 of torchvision": resnet_pair}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    torch.manual_seed(0)
    network, peer, features, tensors = PAIRS[request.param]()
    generator = np.random.default_rng(0)
    state = {name: array + (0.1 * generator.standard_normal(array.shape, np.float32)) * ("running" not in name)
             for name, array in network.state_dict().items()}
    return network, peer, features, tensors, state, np.arange(len(features)) % CLASSES, request.param


@pytest.fixture
def begun(pair):
    """Both networks with the same weights."""
    network, peer, features, tensors, state, labels, _ = pair
    network.load_state_dict(state)
    own = peer.state_dict()
    with torch.no_grad():
        for name, array in state.items():
            own[name].copy_(torch.from_numpy(array).reshape(own[name].shape))
    peer.train()
    peer.late.eval()
    return network, peer, features, tensors, labels


def compared(gradients, expected):
    """Return the largest distance of gradients by name, as a part of the largest of its own and of all."""
    largest = max(value.abs().max().item() for value in expected.values())
    assert gradients.keys() == expected.keys()
    worst = 0.0
    for name, value in expected.items():
        wanted, found = value.detach().numpy(), np.asarray(gradients[name]).reshape(value.shape)
        # The bias before a batch norm has no gradient but rounding.
        worst = max(worst, float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-2 * largest)))
    return worst


def test_loss_and_gradients(begun, pair, table):
    network, peer, features, tensors, labels = begun
    loss, gradients = network.loss_and_gradients(features, labels, training=True)
    expected, wanted = peer.loss_and_gradients(tensors, torch.from_numpy(labels))
    table.append((f"loss, late block of {pair[-1]}", abs(loss - expected.item())))
    table.append((f"gradients, late block of {pair[-1]}", compared(gradients, wanted)))
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert table[-1][1] < LIMIT


def test_training(begun, pair, table):
    network, peer, features, tensors, labels = begun
    step = network.stepper(optimizer="sgd", learning_rate=1e-3)
    expected = torch.optim.SGD(peer.trainable().values(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = peer.loss(tensors, torch.from_numpy(labels))
        expected.zero_grad()
        loss.backward()
        expected.step()
        losses.append((step(features, labels), loss.item()))
    found, wanted = np.array(losses).T
    table.append((f"five losses, late block of {pair[-1]}", float(np.abs(found - wanted).max())))
    assert wanted[-1] < wanted[0]
    assert found == pytest.approx(wanted, rel=LIMIT)
    peer.eval()
    with torch.no_grad():
        assert distance(network.forward(features), peer(tensors)) < 10 * LIMIT


def test_a_network_as_a_module(begun):
    network, peer, features, tensors, labels = begun
    module = sherl.torch.SideModule(network).train()
    targets = torch.from_numpy(labels)
    F.cross_entropy(module(as_tensors(features)), targets).backward()
    _, wanted = peer.loss_and_gradients(tensors, targets)
    assert compared({name: value.grad for name, value in module.named_parameters()}, wanted) < LIMIT


def test_blocks_around_a_module(begun):
    network, peer, features, tensors, labels = begun
    early, head = (sherl.torch.SideModule(block).train() for block in (network.early, network.head))
    images = features.sizes is not None
    x = early(as_tensors(features))
    x = network.late[0].module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if images else network.late[0].module(x)
    loss = F.cross_entropy(head(x.flatten(1, 2) if images else x), torch.from_numpy(labels))
    loss.backward()
    expected, wanted = peer.loss_and_gradients(tensors, torch.from_numpy(labels))
    found = {f"{place}.{name}": value.grad for place, module in (("early", early), ("head", head))
             for name, value in module.named_parameters()}
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert compared(found, wanted) < LIMIT


# ---- ResNets that the core runs ----


@pytest.mark.parametrize("name, blocks", [("resnet18", (2, 2, 2, 2)), ("resnet50", (3, 4, 6, 3))])
@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_backbone_from_their_weights(package, name, blocks, tmp_path, table):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name) if package == "torchvision" else timm.create_model(name)
    model, images = randomized(model), images_of(2)
    weights = {key: value.numpy() for key, value in model.state_dict().items() if "num_batches" not in key}
    config = None if package == "torchvision" else {"architecture": name, "num_classes": 1000}
    backbone = sherl.load_backbone(write_resnet(tmp_path / name, weights, config))
    names = ["layer1.0:input", *(f"layer{stage}.{number}" for stage, depth in enumerate(blocks, 1)
                                 for number in range(depth))]
    assert backbone.num_layers == sum(blocks) == len(names) - 1
    expected = extracted(model, images, names)
    found = backbone.extract(images.numpy(), "all+last", preprocessed=True, progress=False)
    worst = max(distance(*both) for both in zip(states_of(found), states_of(expected), strict=True))
    table.append((f"states of {package} {name}", worst))
    assert worst < LIMIT
