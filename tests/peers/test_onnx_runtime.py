"""States of backbones from ONNX files against those of ONNX Runtime on the same files."""

import numpy as np
import onnx
from onnx_models import FOCUS, NSFW, fetched, inner_values

import sherl

LIMIT = 1e-4


def distance(found, expected):
    assert found.size == expected.size
    return np.linalg.norm(found.reshape(-1) - expected.reshape(-1)) / np.linalg.norm(expected)


def test_dinov2():
    path = fetched(FOCUS)
    backbone = sherl.load_backbone(path)
    # What each layer's first norm reads is its input; the final norm adds its bias last.
    nodes = {node.name: node for node in onnx.load(path).graph.node}
    names = [nodes[f"/backbone/encoder/layer.{number}/norm1/Sub"].input[0] for number in range(backbone.num_layers)]
    names.append(nodes["/backbone/layernorm/Add_1"].output[0])
    images = np.random.default_rng(0).standard_normal((3, 3, 224, 224), np.float32)
    images[1] = 0.5
    features = backbone.extract(images, "all+last", preprocessed=True)
    assert features.lengths.tolist() == [257] * 3
    distances = [distance(*pair) for pair in zip(features.taps, inner_values(path, names, images))]
    print(f"\nDINOv2, 12 layers: largest distance of a state {max(distances):.1e}")
    assert max(distances) <= LIMIT


def test_resnet():
    path = fetched(NSFW)
    backbone = sherl.load_backbone(path)
    assert backbone.num_layers == 16
    # A block ends with the ReLU after its sum; the graph has its values channels first.
    nodes = list(onnx.load(path).graph.node)
    sums = {node.output[0] for node in nodes if node.op_type == "Add" and node.name.startswith("Add")}
    names = [node.output[0] for node in nodes if node.op_type == "MaxPool" or sums & set(node.input)]
    images = 255 * np.random.default_rng(0).random((3, 224, 224, 3), np.float32) - 115
    features = backbone.extract(images, "all+last", preprocessed=True)
    expected = [value.transpose(0, 2, 3, 1) for value in inner_values(path, names, images)]
    distances = [distance(*pair) for pair in zip(features.taps, expected, strict=True)]
    print(f"\nResNet-50 with half the channels, 16 blocks: largest distance of a state {max(distances):.1e}")
    assert max(distances) <= LIMIT
