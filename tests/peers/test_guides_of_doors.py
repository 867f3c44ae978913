"""The examples of the how-to pages that need PyTorch or ONNX Runtime run as printed, and do what the pages say."""

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_guides import run


def test_torch():
    torch.manual_seed(0)
    names = {"taps": [torch.randn(64, 12, 32) for _ in range(3)], "targets": torch.arange(64) % 2}
    names = run("how-to-torch.md", names)
    assert names["net"].evaluate(names["features"], names["labels"])["accuracy"] > 0.9
    features, plain = names["features"], names["plain"]
    index = np.flatnonzero(features.lengths == features.longest)
    taps = [torch.from_numpy(tap.reshape(len(index), -1, 32)) for tap in features[index].taps]
    with torch.no_grad():
        found = plain(taps).numpy()
    assert np.abs(found - names["net"].forward(features[index])).max() < 1e-4


def test_onnx(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_language_model(tmp_path / "model.onnx")
    names = run("how-to-onnx.md", {"ids": np.random.default_rng(0).integers(0, 20, (32, 10))})
    assert np.abs(names["outputs"] - names["net"].forward(names["taps"], names["mask"])).max() < 1e-4
    assert names["features"].channels == [16, 16]
    assert (names["features"].lengths == names["mask"].sum(axis=1)).all()


def write_language_model(path):
    """Write an ONNX model whose tensors have the names of a BERT's."""
    table = np.random.default_rng(1).standard_normal((20, 16)).astype(np.float32)
    tokens = ["samples", "tokens"]
    first, second = (f"/encoder/layer.{number}/output/LayerNorm/Add_1_output_0" for number in range(2))
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], [first]), helper.make_node("Tanh", [first], [second]),
         helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
         helper.make_node("Unsqueeze", ["mask", "axis"], ["column"]),
         helper.make_node("Mul", [second, "column"], ["states"])],
        "model",
        [helper.make_tensor_value_info(name, TensorProto.INT64, tokens) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, [*tokens, 16])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([-1]), "axis")])  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def test_images(monkeypatch):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    resnet50 = torchvision.models.resnet50
    monkeypatch.setattr(torchvision.models, "resnet50", lambda weights: resnet50())  # random ones, without a download
    draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
    sides = [(1, 2), (2, 1)]
    names = {
        "np": np, "images": torch.rand(8, 3, 32, 32), "labels": np.arange(8) % 10,
        "taps": [[draw(height * window, width * window, channels) for height, width in sides]
                 for window, channels in zip((8, 4, 2, 1), (256, 512, 1024, 2048))],
        "image_states": [draw(3, 4, 768) for _ in range(13)], "image_output": draw(3, 512),
        "text_states": [draw(3, 5, 512) for _ in range(13)], "text_output": draw(3, 512),
        "attention_mask": np.arange(5) < np.array([[2], [5], [3]]), "end_of_text": np.array([1, 4, 2]),
        "cotangent": draw(3, 512),
    }  # fmt: skip
    names = run("how-to-images.md", names)
    assert names["net"].predict(names["features"]).shape == (2,)
