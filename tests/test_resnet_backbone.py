"""ResNets as backbones on tiny models: torchvision's and Hugging Face's names, ONNX graphs, and what is wrong."""

import json

import numpy as np
import pytest
from tiny_models import PREPROCESSOR, write_tensors

import sherl
from sherl.backbones.resnet import HUGGING_FACE

pytestmark = pytest.mark.core

DEPTHS, WIDTHS, STEM = (2, 1, 1, 2), (3, 4, 5, 6), 8


BASIC_CHANNELS = (STEM, 10, 12, 14)  # of the stages of a ResNet of basic blocks, whose first has no shortcut map


def resnet_weights(seed=0, basic=False, depths=DEPTHS):
    """Return the weights of a small ResNet of bottlenecks, or of basic blocks, by torchvision's names."""
    random = np.random.default_rng(seed)
    weights = {"fc.weight": np.zeros((2, 24), np.float32)}

    def add(convolution, norm, shape):
        weights[f"{convolution}.weight"] = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) / 2)
        for leaf, centre in (("weight", 1), ("bias", 0), ("running_mean", 0)):
            weights[f"{norm}.{leaf}"] = centre + 0.1 * random.standard_normal(shape[0])
        weights[f"{norm}.running_var"] = 0.5 + random.random(shape[0])

    add("conv1", "bn1", (STEM, 3, 7, 7))
    features = STEM
    for stage, (depth, width) in enumerate(zip(depths, WIDTHS), 1):
        for block in range(depth):
            place = f"layer{stage}.{block}."
            if basic:
                outputs = BASIC_CHANNELS[stage - 1]
                add(place + "conv1", place + "bn1", (outputs, features, 3, 3))
                add(place + "conv2", place + "bn2", (outputs, outputs, 3, 3))
                if outputs != features:
                    add(place + "downsample.0", place + "downsample.1", (outputs, features, 1, 1))
                features = outputs
                continue
            add(place + "conv1", place + "bn1", (width, features, 1, 1))
            add(place + "conv2", place + "bn2", (width, width, 3, 3))
            add(place + "conv3", place + "bn3", (4 * width, width, 1, 1))
            if block == 0:
                add(place + "downsample.0", place + "downsample.1", (4 * width, features, 1, 1))
            features = 4 * width
    return {name: np.asarray(array, np.float32) for name, array in weights.items()}


def write_resnet(folder, weights, config=None):
    folder.mkdir(exist_ok=True)
    write_tensors(folder / "model.safetensors", weights)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def hugging_face_names(weights):
    """Return a ResNet's weights by the names of Hugging Face."""
    renamed = {}
    for name, array in weights.items():
        place, _, leaf = name.rpartition(".")
        if name.startswith("layer"):
            layer, block, ours = place.split(".", 2)
            place = HUGGING_FACE.block.format(stage=int(layer[5:]) - 1, block=block) + HUGGING_FACE.places[ours]
        elif name.startswith(("conv1", "bn1")):
            place = HUGGING_FACE.stem[name.startswith("bn1")]
        renamed[f"resnet.{place}.{leaf}"] = array
    return renamed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_resnet(tmp_path_factory.mktemp("resnet") / "tiny", resnet_weights())


@pytest.fixture(scope="module")
def backbone(folder):
    return sherl.load_backbone(folder)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).random((3, 33, 40, 3)).astype(np.float32)


def first_state(weights, image):
    """Return the convolution, norm, ReLU and pooling before the blocks, in NumPy."""
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), axis=(0, 1))[::2, ::2]
    x = np.einsum("yxcij,fcij->yxf", windows, weights["conv1.weight"])
    x = (x - weights["bn1.running_mean"]) / np.sqrt(weights["bn1.running_var"] + 1e-5)
    x = np.maximum(x * weights["bn1.weight"] + weights["bn1.bias"], 0)
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))[::2, ::2].max(axis=(3, 4))


def test_states_follow_from_each_other(backbone, images):
    assert backbone.num_layers == 6 and backbone.channels == [8, 12, 12, 16, 20, 24, 24]
    assert [layer.stride for layer in backbone.layers] == [1, 1, 2, 2, 2, 1]
    features = backbone.extract(images, "all+last", preprocessed=True, batch_size=2)
    assert [sizes[0].tolist() for sizes in features.sizes] == [
        [9, 10], [9, 10], [9, 10], [5, 5], [3, 3], [2, 2], [2, 2]
    ]  # fmt: skip
    weights = resnet_weights()
    states = [tap.reshape(3, *sizes[0], -1) for tap, sizes in zip(features.taps, features.sizes)]
    for image, state in zip(images, states[0]):
        assert np.allclose(state, first_state(weights, image), atol=1e-4)
    for layer, before, after in zip(backbone.layers, states, states[1:]):
        assert np.allclose(layer(before), after, atol=1e-5)
    assert np.allclose(backbone.encode(images, preprocessed=True), states[-1].mean(axis=(1, 2)), atol=1e-5)


def test_sizes_may_differ(backbone, images):
    mixed = [images[0], images[1, :20, :17], images[2]]
    features = backbone.extract(mixed, [0, 3, 6], preprocessed=True)
    for number, image in enumerate(mixed):
        alone = backbone.extract([image], [0, 3, 6], preprocessed=True)
        assert all(np.allclose(one, other, atol=1e-5) for one, other in zip(features[number].taps, alone.taps))
        assert np.array_equal(np.concatenate(features[number].sizes), np.concatenate(alone.sizes))


def test_uint8_and_half_precision(backbone):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
    wide = backbone.extract(pictures, [2, 6])
    assert np.allclose(backbone.extract(pictures / 255, [2, 6]).taps[1], wide.taps[1], atol=1e-4)
    assert np.array_equal(backbone.extract(pictures, [2, 6], dtype="float16").taps[0], wide.taps[0].astype(np.float16))
    channels_first = backbone.extract(pictures.transpose(0, 3, 1, 2) / 255, [2, 6])
    assert np.allclose(channels_first.taps[1], wide.taps[1], atol=1e-4)
    done = (pictures[:1] / 255).transpose(0, 3, 1, 2).copy()
    assert len(backbone.extract(done, [2, 6], preprocessed=True)) == 1
    narrow = backbone.extract(pictures, [2, 6], dtype="int8", batch_size=1)
    assert all(np.array_equal(one, other) for one, other in zip(narrow.taps, wide.astype("int8").taps))


def test_names_of_hugging_face(backbone, tmp_path):
    config = {"model_type": "resnet", "depths": DEPTHS, "layer_type": "bottleneck"}
    other = write_resnet(tmp_path / "other", hugging_face_names(resnet_weights()), config)
    assert sherl.load_backbone(other).fingerprint == backbone.fingerprint
    (other / "config.json").write_text(json.dumps({**config, "downsample_in_first_stage": True}))
    assert [layer.stride for layer in sherl.load_backbone(other).layers] == [2, 1, 2, 2, 2, 1]
    (other / "config.json").write_text(json.dumps({**config, "downsample_in_bottleneck": True}))
    assert all(layer.stride_first for layer in sherl.load_backbone(other).layers)


def test_names_of_timm(backbone, tmp_path):
    other = write_resnet(tmp_path / "timm", resnet_weights(), {"architecture": "resnet50", "num_classes": 2})
    assert sherl.load_backbone(other).fingerprint == backbone.fingerprint
    write_resnet(other, resnet_weights(), {"architecture": "wide_resnet50_2"})
    assert sherl.load_backbone(other).fingerprint == backbone.fingerprint


# ---- Basic blocks ----


@pytest.fixture(scope="module")
def basic(tmp_path_factory):
    return sherl.load_backbone(write_resnet(tmp_path_factory.mktemp("basic") / "tiny", resnet_weights(basic=True)))


def convolved(image, weights, convolution, norm, stride=1):
    """Return a convolution and its norm at a 3x3 or 1x1 window of an image, in NumPy."""
    kernel = weights[f"{convolution}.weight"].astype(np.float64)
    side = kernel.shape[2]
    padded = np.pad(image, ((side // 2, side // 2), (side // 2, side // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(0, 1))[::stride, ::stride]
    x = np.einsum("yxcij,fcij->yxf", windows, kernel)
    x = (x - weights[f"{norm}.running_mean"]) / np.sqrt(weights[f"{norm}.running_var"] + 1e-5)
    return x * weights[f"{norm}.weight"] + weights[f"{norm}.bias"]


def test_a_resnet_of_basic_blocks(basic, images):
    assert all(isinstance(layer, sherl.BasicBlock) for layer in basic.layers)
    assert basic.channels == [8, 8, 8, 10, 12, 14, 14]
    assert [layer.stride for layer in basic.layers] == [1, 1, 2, 2, 2, 1]
    assert [layer.shortcut for layer in basic.layers] == [False, False, True, True, True, False]
    weights = resnet_weights(basic=True)
    features = basic.extract(images, "all+last", preprocessed=True)
    for number, image in enumerate(images):
        x = first_state(weights, image)
        states = [x]
        for layer, place in zip(basic.layers, ("1.0", "1.1", "2.0", "3.0", "4.0", "4.1")):
            place = f"layer{place}."
            z = np.maximum(convolved(x, weights, place + "conv1", place + "bn1", layer.stride), 0)
            short = (convolved(x, weights, place + "downsample.0", place + "downsample.1", layer.stride)
                     if layer.shortcut else x)
            x = np.maximum(convolved(z, weights, place + "conv2", place + "bn2") + short, 0)
            states.append(x)
        for found, expected in zip(features[number].taps, states):
            assert np.allclose(found, expected.reshape(found.shape), atol=1e-4)


def test_names_of_hugging_face_for_basic_blocks(basic, tmp_path):
    config = {"model_type": "resnet", "depths": DEPTHS, "layer_type": "basic"}
    other = write_resnet(tmp_path / "other", hugging_face_names(resnet_weights(basic=True)), config)
    assert sherl.load_backbone(other).fingerprint == basic.fingerprint


def test_a_network_on_basic_blocks(basic, tmp_path):
    images = np.random.default_rng(0).random((8, 32, 32, 3))
    features = basic.extract(images, [2, 3, 4, 5], preprocessed=True)
    net = sherl.SideNetwork(
        sherl.MTSA.resnet(features.channels, hidden=4), [basic.layers[-1]], sherl.Classifier(14, 2, pool="mean")
    )
    history = net.fit(features, np.arange(8) % 2, epochs=20, batch_size=8, learning_rate=1e-2, progress=False)
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]
    net.save_pretrained(tmp_path / "net")
    again = sherl.SideNetwork.from_pretrained(tmp_path / "net", backbone=basic)
    assert list(again.late) == [basic.layers[-1]]
    assert np.array_equal(again.predict(features), net.predict(features))


@pytest.mark.parametrize(
    "names, message",
    [
        ({"conv1.0.weight": (4, 3, 3, 3)}, r"not those with a first part of three convolutions \(ResNet-C, ResNet-D\)"),
        ({"layer2.0.downsample.2.weight": (16,)}, "not those with shortcuts that average pixels"),
        ({"layer1.0.se.fc1.weight": (2, 12, 1, 1)}, "not those with squeeze-and-excitation"),
        ({"layer1.0.conv2.weight": (4, 2, 3, 3), "layer1.0.conv1.weight": (4, 8, 1, 1)},
         "not those of ResNeXt: layer1.0.conv2.weight has 2 groups"),
    ],
)  # fmt: skip
def test_relatives(tmp_path, names, message):
    weights = resnet_weights() | {name: np.zeros(shape, np.float32) for name, shape in names.items()}
    with pytest.raises(ValueError, match=message):
        sherl.load_backbone(write_resnet(tmp_path / "relative", weights))


@pytest.mark.parametrize("name", ["resnetblur50", "seresnet50", "resnetv2_50", "vit_base_patch16_224"])
def test_other_models_of_timm(tmp_path, name):
    with pytest.raises(ValueError, match=f"of timm's models only ResNets can be run, .* got architecture '{name}'"):
        sherl.load_backbone(write_resnet(tmp_path / "other", resnet_weights(), {"architecture": name}))


# ---- What is wrong ----


def test_a_network_on_a_resnet(backbone):
    images = np.random.default_rng(0).random((8, 32, 32, 3))
    features = backbone.extract(images, [2, 3, 4, 5], preprocessed=True)
    net = sherl.SideNetwork(
        sherl.MTSA(4, features.channels, 4, down="batchnorm", up_norm="batchnorm", pool=[8, 4, 2, 1]),
        [backbone.layers[-1]], sherl.Classifier(24, 2, pool="mean"),
    )  # fmt: skip
    history = net.fit(features, np.arange(8) % 2, epochs=20, batch_size=8, learning_rate=1e-2, progress=False)
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("conv1.weight", None, r"lacks the tensor conv1.weight"),
        ("conv1.weight", (8, 3, 3, 3), r"conv1.weight must have shape \(8, 3, 7, 7\), got \(8, 3, 3, 3\)"),
        ("bn1.bias", (9,), r"bn1.bias must have shape \(8,\), got \(9,\)"),
        ("layer2.0.conv1.weight", None, "lacks the tensor layer2.0.conv1.weight"),
        ("layer1.1.conv3.weight", None, "lacks the tensor layer1.1.conv3.weight"),
        ("layer1.1.conv1.weight", (3, 12), r"layer1.1.conv1.weight must have 4 dimensions, got shape \(3, 12\)"),
        ("layer4.1.conv2.weight", (6, 3, 3, 3), r"layer4.1.conv2.weight must have shape \(6, 6, 3, 3\), got"),
        ("layer3.0.bn2.running_var", None, r"lacks the tensor layer3.0.bn2.running_var, of shape \(5,\)"),
    ],
)
def test_wrong_tensors(tmp_path, name, shape, message):
    weights = resnet_weights()
    del weights[name]
    if shape is not None:
        weights[name] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=message):
        sherl.load_backbone(write_resnet(tmp_path / "wrong", weights, {"architecture": "resnet50"}))


@pytest.mark.parametrize(
    "config, message",
    [
        ({"layer_type": "other"}, "only ResNets of bottlenecks or basic blocks with ReLU"),
        ({"hidden_act": "gelu"}, "only ResNets of bottlenecks or basic blocks with ReLU"),
        ({"depths": [2, 2, 1, 2]}, "lacks the tensor resnet.encoder.stages.1.layers.1.layer.0.convolution.weight"),
        ({"depths": 4}, "depths must be a list of whole numbers, got 4"),
        ({"depths": [2, "one"]}, "depths must be a list of whole numbers"),
        ({"downsample_in_bottleneck": 1}, "downsample_in_bottleneck must be True or False"),
    ],
)
def test_wrong_configurations(tmp_path, config, message):
    config = {"model_type": "resnet", "depths": DEPTHS, **config}
    folder = write_resnet(tmp_path / "wrong", hugging_face_names(resnet_weights()), config)
    with pytest.raises(ValueError, match=message):
        sherl.load_backbone(folder)


# ---- ONNX graphs ----


class Export:
    """A ResNet's graph with its batch norms folded in, as exports have it."""

    def __init__(self, stride_first, edges, padding=1, folded=True, basic=False):
        onnx = pytest.importorskip("onnx")
        self.helper, self.numpy_helper = onnx.helper, onnx.numpy_helper
        self.nodes, self.initializers = [], []
        self.weights, self.padding, self.folded = resnet_weights(basic=basic), padding, folded
        x = self.relu(self.convolution("pixels", "conv1", "bn1", 2, 3))
        x = self.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[edges[0]] * 2 + [edges[1]] * 2)
        for stage, depth in enumerate(DEPTHS, 1):
            for block in range(depth):
                place, stride = f"layer{stage}.{block}.", 2 if block == 0 and stage > 1 else 1
                first, second = (stride, 1) if stride_first else (1, stride)
                if basic:
                    z = self.relu(self.convolution(x, place + "conv1", place + "bn1", stride, 1))
                    z = self.convolution(z, place + "conv2", place + "bn2", 1, 1)
                else:
                    z = self.relu(self.convolution(x, place + "conv1", place + "bn1", first))
                    z = self.relu(self.convolution(z, place + "conv2", place + "bn2", second, self.padding))
                    z = self.convolution(z, place + "conv3", place + "bn3")
                if place + "downsample.0.weight" in self.weights:
                    x = self.convolution(x, place + "downsample.0", place + "downsample.1", stride)
                x = self.relu(self.node("Add", [z, x] if stage % 2 else [x, z]))
        x = self.node("GlobalAveragePool", [x])
        self.model = self.helper.make_model(self.helper.make_graph(self.nodes, "graph", [], [], self.initializers))

    def node(self, kind, inputs, **attributes):
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(kind, inputs, [name + ":0"], name=name, **attributes))
        return name + ":0"

    def relu(self, x):
        return self.node("Relu", [x])

    def convolution(self, x, convolution, norm, stride=1, padding=0):
        scale, bias, mean, variance = (
            self.weights[f"{norm}.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / np.sqrt(variance + 1e-5)
        arrays = [self.weights[f"{convolution}.weight"] * scale[:, None, None, None], bias - mean * scale]
        names = [f"fused_{len(self.initializers) + number}" for number in range(2)]
        pairs = zip(arrays, names)
        self.initializers += [self.numpy_helper.from_array(np.float32(array), name) for array, name in pairs]
        size = arrays[0].shape[2]
        x = self.node("Conv", [x, *names], kernel_shape=[size] * 2, strides=[stride] * 2, pads=[padding] * 4)
        return x if self.folded else self.node("BatchNormalization", [x, "scale", "bias", "mean", "variance"])

    def save(self, path):
        path.write_bytes(self.model.SerializeToString())
        return path


def test_an_export_is_the_folder_s_model(backbone, images, tmp_path):
    other = sherl.load_backbone(Export(False, (1, 1)).save(tmp_path / "model.onnx"))
    found, expected = (one.extract(images, "all+last", preprocessed=True) for one in (other, backbone))
    assert all(np.allclose(one, two, atol=1e-4) for one, two in zip(found.taps, expected.taps))


def test_an_export_of_basic_blocks(basic, images, tmp_path):
    other = sherl.load_backbone(Export(False, (1, 1), basic=True).save(tmp_path / "model.onnx"))
    assert [type(layer) for layer in other.layers] == [sherl.BasicBlock] * 6
    found, expected = (one.extract(images, "all+last", preprocessed=True) for one in (other, basic))
    assert all(np.allclose(one, two, atol=1e-4) for one, two in zip(found.taps, expected.taps))


def test_an_export_with_strides_first(images, tmp_path):
    backbone = sherl.load_backbone(Export(True, (0, 1)).save(tmp_path / "model.onnx"))
    assert [(layer.stride, layer.stride_first) for layer in backbone.layers[2:4]] == [(2, True), (2, True)]
    features = backbone.extract(images[:, :32, :32], "all+last", preprocessed=True)
    assert [sizes[0].tolist() for sizes in features.sizes] == [[8, 8]] * 3 + [[4, 4], [2, 2], [1, 1], [1, 1]]
    # A stride at the first map is a block without stride on every second pixel.
    block = sherl.Bottleneck.from_resnet(
        {name.removeprefix("layer2.0."): array for name, array in resnet_weights().items() if "layer2.0." in name}
    )
    before, after = (features.taps[state].reshape(3, side, side, -1) for state, side in ((2, 8), (3, 4)))
    assert np.allclose(block(before[:, ::2, ::2]), after, atol=1e-4)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"folded": False}, "neither a DINOv2 nor a ResNet with its batch norms folded in"),
        ({"padding": 0}, "must keep heights and widths but for its stride"),
    ],
)
def test_exports_that_do_not_fit(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        sherl.load_backbone(Export(False, (1, 1), **settings).save(tmp_path / "model.onnx"))


# ---- Folders of features ----


def test_features_on_disk(backbone, images, tmp_path):
    mixed = [images[0], images[1, :20, :17], images[2]]
    expected = backbone.extract(mixed, [0, 3, 6], preprocessed=True, dtype="int8")
    written = backbone.extract(mixed, [0, 3, 6], preprocessed=True, dtype="int8", out=tmp_path / "out", batch_size=2)
    assert all(np.array_equal(one, other) for one, other in zip(written.sizes, expected.sizes))
    assert written.source == expected.source and written.preprocessing == {"layers": 6, "inputs": "pixels"}
    close = [np.abs(one.astype(int) - other).max() <= 1 for one, other in zip(written.taps, expected.taps)]
    assert all(close)
    assert [layer.fingerprint for layer in written.layers] == [backbone.layers[-1].fingerprint]
    with pytest.raises(ValueError, match="inputs"):
        backbone.extract(mixed[::-1], [0, 3, 6], preprocessed=True, dtype="int8", out=tmp_path / "out", batch_size=2)
