"""The door to ONNX: networks as files that ONNX Runtime runs, and taps of ONNX models."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported import NETWORKS, make, samples_of
from onnx import TensorProto, helper, numpy_helper

import sherl
import sherl.onnx
import sherl.torch

LIMIT = 1e-4


def close(found, expected, limit=LIMIT):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= limit * max(1, np.abs(expected).max())


def feed(taps, others):
    inputs = {f"tap{number}": tap for number, tap in enumerate(taps)}
    return inputs | {name: value.astype(bool if name == "mask" else np.int64) for name, value in others.items()}


# ---- Networks as files ----


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_predicts_the_same(name, tmp_path):
    made = make(name)
    for masks, masked in (((None,), False), (("padded", "holes"), True)):
        path = tmp_path / "network.onnx"
        sherl.onnx.to_onnx(made, path, mask=masked)
        session = onnxruntime.InferenceSession(path)
        for mask in masks:
            for samples, tokens in ((5, 9), (1, 4)):
                taps, others = samples_of(made, samples, tokens, mask)
                found, = session.run(["outputs"], feed(taps, others))
                close(found, made.forward(taps, **others))
    assert [path.name for path in tmp_path.iterdir()] == ["network.onnx"]


def test_a_tap_of_zeros_has_no_direction(tmp_path):
    made = sherl.SideNetwork(sherl.MTSA(3, 16, 5, down="relu"), head=sherl.Regressor(16))
    taps, _ = samples_of(made)
    taps[0][:, 0] = -1
    sherl.onnx.to_onnx(made, tmp_path / "network.onnx", mask=False)
    found, = onnxruntime.InferenceSession(tmp_path / "network.onnx").run(None, feed(taps, {}))
    close(found, made.forward(taps))
    with torch.no_grad():
        close(sherl.torch.to_torch(made)([torch.from_numpy(tap) for tap in taps]).numpy(), made.forward(taps))


def test_files_need_neither_sherl_nor_pytorch(tmp_path):
    made = make("bert")
    taps, others = samples_of(made, mask="padded")
    sherl.onnx.to_onnx(made, tmp_path / "network.onnx")
    np.savez(tmp_path / "inputs.npz", **feed(taps, others))
    code = ("import sys, numpy as np, onnxruntime; session = onnxruntime.InferenceSession('network.onnx'); "
            "outputs = session.run(['outputs'], dict(np.load('inputs.npz')))[0]; np.save('outputs.npy', outputs); "
            "assert not {'sherl', 'torch'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    close(np.load(tmp_path / "outputs.npy"), made.forward(taps, **others))


def test_networks_that_cannot_be_written(tmp_path):
    late = sherl.torch.Late(torch.nn.Linear(16, 16), 16)
    made = sherl.SideNetwork(sherl.MTSA(3, 16, 5), [late], sherl.Classifier(16, 2))
    with pytest.raises(ValueError, match=r"late\[0\] is a module of PyTorch"):
        sherl.onnx.to_onnx(made, tmp_path / "network.onnx")
    with pytest.raises(TypeError, match="network must be a SideNetwork"):
        sherl.onnx.to_onnx(3, tmp_path / "network.onnx")


# ---- Taps ----


def token_model():
    """Embeddings, two maps with relu, and a pooled output, with a mask that only the last node reads."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((rows, 6)) for name, rows in (("table", 20), ("w0", 6), ("w1", 6))}
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("MatMul", ["embedded", "w0"], ["first"]),
        helper.make_node("Relu", ["first"], ["inner"]),
        helper.make_node("MatMul", ["inner", "w1"], ["second"]),
        helper.make_node("ReduceMean", ["second"], ["pooled"], axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "tokens", [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["batch", 6])], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString(), weights


def test_taps_by_name(tmp_path):
    content, weights = token_model()
    (tmp_path / "model.onnx").write_bytes(content)
    rng = np.random.default_rng(1)
    ids, mask = rng.integers(0, 20, (7, 5)), np.arange(5) < rng.integers(1, 6, 7)[:, None]
    inputs = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
    features = sherl.onnx.extract(tmp_path / "model.onnx", inputs, ["embedded", "inner", "second"], batch_size=3)
    embedded = weights["table"].astype(np.float32)[ids]
    inner = np.maximum(embedded @ weights["w0"].astype(np.float32), 0)
    close(features.taps[0], embedded[mask], 1e-6)
    close(features.taps[1], inner[mask], 1e-5)
    assert features.lengths.tolist() == mask.sum(axis=1).tolist()
    pieces = [{name: value[start : start + 4] for name, value in inputs.items()} for start in (0, 4)]
    again = sherl.onnx.extract(content, pieces, ["embedded", "inner", "second"], dtype="int8")
    assert again.source == features.source
    assert all(np.array_equal(a, b) for a, b in zip(again.taps, features.astype("int8").taps))
    tower = sherl.onnx.extract(content, {"input_ids": ids}, ["embedded", "inner", "pooled"])
    assert tower.channels == [6, 6, 6] and tower.longest == 5
    net = sherl.SideNetwork(sherl.MTSA(3, 6, 4), head=sherl.Classifier(6, 2))
    net.fit(features, np.arange(7) % 2, epochs=1, progress=False)


def test_taps_of_images():
    values = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    weight = numpy_helper.from_array(values, "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[3, 3], pads=[1] * 4),
             helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2])]
    graph = helper.make_graph(nodes, "images", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 6])],
                              [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", 4, 4, 3])], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    x = np.random.default_rng(1).standard_normal((5, 3, 8, 6)).astype(np.float32)
    features = sherl.onnx.extract(model, {"x": x}, ["a", "b"], batch_size=2)
    assert [sizes[0].tolist() for sizes in features.sizes] == [[8, 6], [4, 3]]
    with torch.no_grad():
        state = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(values), padding=1)
    close(features.taps[0].reshape(5, 8, 6, 4), state.permute(0, 2, 3, 1).numpy(), 1e-5)


def test_models_and_inputs_that_do_not_fit(tmp_path):
    content, _ = token_model()
    ids = np.zeros((2, 3), np.int64)
    for arguments, message in (
        ({"taps": ["nowhere"]}, "has no 'nowhere'"),
        ({"taps": ["inner", "inner"]}, "different names"),
        ({"inputs": {"x": ids}}, "inputs must have input_ids"),
        ({"inputs": {"input_ids": ids, "attention_mask": ids[:1]}}, "one entry a sample"),
        ({"inputs": {"input_ids": ids, "attention_mask": ids}}, "leaves no row of sample 0"),
        ({"model": b"nonsense"}, "not a whole ONNX file"),
        ({"dtype": "float64"}, "dtype must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            sherl.onnx.extract(**{"model": content, "inputs": {"input_ids": ids}, "taps": ["inner"], **arguments})
    with pytest.raises(FileNotFoundError, match="does not exist"):
        sherl.onnx.extract(tmp_path / "none.onnx", {"input_ids": ids}, ["inner"])
