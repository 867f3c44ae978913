"""Backbones from ONNX files that the tests write: the names of an export, and files that are wrong."""

import json
import sys

import numpy as np
import pytest
from tiny_models import CONFIGS, weights_of, write_tiny_model

import sherl

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.core

PREFIX = "backbone."
MATRICES = ("query.weight", "key.weight", "value.weight", "dense.weight", "fc1.weight", "fc2.weight")


def export(weights, heads=2, without=(), fused_norm=False):
    """Return the nodes and initializers that an export of a DINOv2 leaves, as far as weights and sizes are told."""
    helper, nodes, initializers = onnx.helper, [], []

    def initialize(name, array):
        if name not in without:
            initializers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))

    for name, array in weights.items():
        if name == "embeddings.position_embeddings":
            initialize("onnx::Concat_1", array[:, :1])
            initialize("onnx::Reshape_2", array[:, 1:])
            nodes.append(helper.make_node("Reshape", ["onnx::Reshape_2", "shape"], ["grid"],
                                          name="/backbone/embeddings/Reshape_1"))
            nodes.append(helper.make_node("Concat", ["onnx::Concat_1", "grid"], ["positions"], axis=1,
                                          name="/backbone/embeddings/Concat_6"))
        elif name.endswith(MATRICES):
            anonymous = f"onnx::MatMul_{len(initializers)}"
            initialize(anonymous, array.T)
            place = "/backbone/" + name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.")
            nodes.append(helper.make_node("MatMul", ["x", anonymous], [anonymous + "_out"], name=place + "/MatMul"))
        else:
            initialize(PREFIX + name, array)
    place = "/backbone/encoder/layer.0"
    shape = [helper.make_node("Constant", [], [f"size_{number}"], value=onnx.numpy_helper.from_array(np.array([value])))
             for number, value in enumerate((heads, 16 // heads))]
    shape.append(helper.make_node("Concat", ["samples", "rows", "size_0", "size_1"], ["shape_of_heads"], axis=0))
    nodes += [*shape, helper.make_node("Reshape", ["x", "shape_of_heads"], ["y"],
                                       name=place + "/attention/attention/Reshape")]
    if fused_norm:
        nodes.append(helper.make_node("LayerNormalization", ["x", "w", "b"], ["z"], epsilon=1e-6,
                                      name=place + "/norm1/LayerNormalization"))
    else:
        eps = onnx.numpy_helper.from_array(np.array(1e-6, np.float32))
        nodes += [
            helper.make_node("Constant", [], ["eps"], name=place + "/norm1/Constant_1", value=eps),
            helper.make_node("Add", ["variance", "eps"], ["sum"], name=place + "/norm1/Add"),
            helper.make_node("Sqrt", ["sum"], ["root"], name=place + "/norm1/Sqrt"),
        ]
    return helper.make_model(helper.make_graph(nodes, "graph", [], [], initializers))


@pytest.fixture(scope="module")
def weights():
    return weights_of({"model_type": "dinov2", **CONFIGS["dinov2"], "mlp_ratio": 1.5})


@pytest.mark.parametrize("fused_norm", [False, True])
def test_an_export_is_the_folder_s_model(tmp_path, weights, fused_norm):
    folder = sherl.load_backbone(write_tiny_model(tmp_path / "folder", "dinov2", mlp_ratio=1.5))
    path = tmp_path / "model.onnx"
    onnx.save(export(weights, fused_norm=fused_norm), path)
    backbone = sherl.load_backbone(path)
    images = np.random.default_rng(0).random((2, 8, 12, 3)).astype(np.float32)
    found, expected = (one.extract(images, "all+last", preprocessed=True) for one in (backbone, folder))
    assert all(np.allclose(one, other, atol=1e-6) for one, other in zip(found.taps, expected.taps))
    assert [layer.fingerprint for layer in backbone.layers] == [layer.fingerprint for layer in folder.layers]
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"do_resize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    assert len(backbone.extract(images)) == 2


@pytest.mark.parametrize(
    "without, message",
    [
        (["backbone.embeddings.patch_embeddings.projection.weight"], "holds no backbone that can be read"),
        (["onnx::Concat_1"], "no position embeddings can be told"),
        (["backbone.encoder.layer.0.mlp.fc1.bias"], "holds no layers that can be read"),
        (["backbone.encoder.layer.1.norm1.bias"], r"lacks the tensor backbone.encoder.layer.1.norm1.bias, of shape"),
        (["backbone.layernorm.weight"], r"lacks the tensor backbone.layernorm.weight"),
    ],
)
def test_exports_that_lack_something(tmp_path, weights, without, message):
    onnx.save(export(weights, without=without), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=message):
        sherl.load_backbone(tmp_path / "model.onnx")


def test_exports_that_do_not_fit(tmp_path, weights):
    name = "encoder.layer.1.norm2.bias"
    onnx.save(export({**weights, name: np.zeros(17, np.float32)}), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=rf"backbone.{name} must have shape \(16,\), got \(17,\)"):
        sherl.load_backbone(tmp_path / "model.onnx")
    onnx.save(export(weights, heads=3), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="no attention tells its heads"):
        sherl.load_backbone(tmp_path / "model.onnx")


def test_files_that_are_no_export(tmp_path, weights, monkeypatch):
    path = tmp_path / "model.onnx"
    with pytest.raises(FileNotFoundError, match="model.onnx does not exist"):
        sherl.load_backbone(path)
    content = export(weights).SerializeToString()
    for spoilt in (content[: len(content) // 2], b"text"):
        path.write_bytes(spoilt)
        with pytest.raises(ValueError, match="is not a whole ONNX file"):
            sherl.load_backbone(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="holds no backbone that can be read"):
        sherl.load_backbone(path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"needs the onnx package: pip install 'sherl\[onnx\]'"):
        sherl.load_backbone(path)
