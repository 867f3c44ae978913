"""save_pretrained and from_pretrained: the same network back, and every way in which a folder can be wrong."""

import builtins
import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small import FEATURES, HEADS, bert_weights, frozen_layer, network, problem, same_bits
from tiny_bert import write_tiny_bert

import sherl

pytestmark = pytest.mark.core

HEADS_OF_ALL_KINDS = {
    "classifier": lambda: sherl.Classifier(
        FEATURES, 2, pool="mean", dropout=0.1, label_smoothing=0.1, class_weights=[1, 3]
    ),
    "multi_label": lambda: sherl.Classifier(FEATURES, 2, pool="max", multi_label=True),
    "regressor": lambda: sherl.Regressor(FEATURES, 3, pooler=True),
}


@pytest.fixture
def saved(tmp_path):
    net = network()
    net.save_pretrained(tmp_path / "net")
    return net, tmp_path / "net"


@pytest.mark.parametrize("head", HEADS_OF_ALL_KINDS)
def test_the_same_network_comes_back(tmp_path, head):
    taps, _, mask = problem()
    net = network(late=2, head=HEADS_OF_ALL_KINDS[head](), dropout=0.2)
    net.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = sherl.SideNetwork.from_pretrained(tmp_path, backbone=[frozen_layer(5), frozen_layer(0), frozen_layer(1)])
    assert same_bits(loaded.state_dict(), net.state_dict())
    assert same_bits(loaded.forward(taps, mask), net.forward(taps, mask))
    assert [block.settings for _, block in loaded._blocks()] == [block.settings for _, block in net._blocks()]


def test_without_late_layers_and_with_a_trainable_one(tmp_path):
    taps, _, mask = problem()
    late = [sherl.TransformerLayer.from_bert(bert_weights(), HEADS, trainable=True)]
    for layers in ([], late):
        net = sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), layers, sherl.Classifier(FEATURES, 2))
        net.save_pretrained(tmp_path)
        assert same_bits(sherl.SideNetwork.from_pretrained(tmp_path).forward(taps, mask), net.forward(taps, mask))


def test_with_a_backbone(tmp_path):
    backbone = sherl.load_backbone(write_tiny_bert(tmp_path / "backbone"))
    other = sherl.load_backbone(write_tiny_bert(tmp_path / "other", seed=1))
    texts = ["a good film", "a dull plot"]
    features = backbone.extract(texts)
    for number, late in enumerate(([backbone.layers[-1]], [])):
        net = sherl.SideNetwork(sherl.MTSA(3, 32, 8), late, sherl.Classifier(32, 2))
        net.fit(features, [1, 0], epochs=1, progress=False)
        net.save_pretrained(tmp_path / f"net{number}")
        loaded = sherl.SideNetwork.from_pretrained(tmp_path / f"net{number}", backbone=backbone)
        assert same_bits(loaded.forward(features), net.forward(features))
        with pytest.raises(ValueError, match="taps come from another backbone"):
            loaded.predict(other.extract(texts))
        with pytest.raises(ValueError, match="no layer of backbone has the weights|backbone .* is not the one"):
            sherl.SideNetwork.from_pretrained(tmp_path / f"net{number}", backbone=other)


def test_dropout_of_a_late_layer_is_kept(tmp_path):
    net = sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), [frozen_layer(dropout=0.3)], sherl.Classifier(FEATURES, 2))
    net.save_pretrained(tmp_path)
    plain = frozen_layer()
    loaded = sherl.SideNetwork.from_pretrained(tmp_path, backbone=[plain])
    assert loaded.late[0].dropout == 0.3
    assert plain.dropout == 0.0
    assert loaded.late[0]._frozen is plain._frozen


def test_a_frozen_layer_must_be_given_and_be_the_same(saved):
    _, folder = saved
    with pytest.raises(
        ValueError, match="late layer 0 is frozen, and its weights are not in the folder: pass backbone="
    ):
        sherl.SideNetwork.from_pretrained(folder)
    with pytest.raises(ValueError, match="no layer of backbone has the weights that late layer 0"):
        sherl.SideNetwork.from_pretrained(folder, backbone=[frozen_layer(7)])
    with pytest.raises(ValueError, match="no layer of backbone has the weights"):
        sherl.SideNetwork.from_pretrained(folder, backbone=[frozen_layer(0, eps=1e-5)])
    with pytest.raises(TypeError, match="backbone must be"):
        sherl.SideNetwork.from_pretrained(folder, backbone="folder")


def load(folder):
    return sherl.SideNetwork.from_pretrained(folder, backbone=[frozen_layer(0)])


def respelt(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def set_to(name, value):
    return lambda folder: respelt(folder, lambda weights: weights.__setitem__(name, value))


def configured(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


SPOILT_WEIGHTS = {
    "cut": (
        lambda folder: rewritten(folder / "model.safetensors", lambda data: data[:-9]),
        "not a whole safetensors file",
    ),
    "cut in the header": (
        lambda folder: rewritten(folder / "model.safetensors", lambda data: data[:40]),
        "not a whole safetensors file",
    ),
    "longer": (
        lambda folder: rewritten(folder / "model.safetensors", lambda data: data + b"x"),
        "not a whole safetensors file",
    ),
    "empty": (lambda folder: rewritten(folder / "model.safetensors", lambda data: b""), "not a whole safetensors file"),
    "huge header": (
        lambda folder: rewritten(folder / "model.safetensors", lambda data: b"\xff" * 8 + data[8:]),
        "not a whole safetensors file",
    ),
    "not safetensors": (
        lambda folder: rewritten(folder / "model.safetensors", lambda data: b"PK\x03\x04 not a model"),
        "not a whole safetensors file",
    ),
    "extra": (set_to("head.extra", np.zeros(2, np.float32)), "unexpected head.extra"),
    "missing": (lambda folder: respelt(folder, lambda weights: weights.pop("early.gate")), "missing early.gate"),
    "renamed": (
        lambda folder: respelt(folder, lambda weights: weights.__setitem__("early.Gate", weights.pop("early.gate"))),
        "missing early.gate; unexpected early.Gate",
    ),
    "shape": (set_to("head.bias", np.zeros(3, np.float32)), r"head.bias must have shape \(2,\), got \(3,\)"),
    "type": (set_to("head.bias", np.zeros(2, np.float64)), "head.bias must be float32, got float64"),
    "integers": (set_to("head.bias", np.zeros(2, np.int64)), "head.bias must be float32, got int64"),
    "not finite": (set_to("head.bias", np.full(2, np.inf, np.float32)), "head.bias must hold finite"),
}


def rewritten(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("case", SPOILT_WEIGHTS)
def test_spoilt_weights_are_refused(saved, case):
    spoil, message = SPOILT_WEIGHTS[case]
    spoil(saved[1])
    with pytest.raises(ValueError, match=message):
        load(saved[1])


def entry(*path, value):
    def change(config):
        for name in path[:-1]:
            config = config[name]
        config[path[-1]] = value

    return change


SPOILT_CONFIGS = {
    "not JSON": (lambda folder: (folder / "config.json").write_text("{"), "is not a JSON file"),
    "not text": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), "is not a JSON file"),
    "a list": (lambda folder: (folder / "config.json").write_text("[1]"), "does not describe a sherl side network"),
    "another format": (
        lambda folder: configured(folder, entry("format", value="other")),
        "does not describe a sherl side network",
    ),
    "future": (lambda folder: configured(folder, entry("format_version", value=2)), "has format version 2"),
    "no version": (
        lambda folder: configured(folder, lambda config: config.pop("format_version")),
        "has format version None",
    ),
    "no head": (lambda folder: configured(folder, lambda config: config.pop("head")), "lacks head"),
    "unknown block": (
        lambda folder: configured(folder, entry("early", "type", value="Adapter")),
        "a block must have a type among MTSA",
    ),
    "unknown setting": (
        lambda folder: configured(folder, entry("early", "settings", "depth", value=3)),
        "does not make a network: .*depth",
    ),
    "bad setting": (
        lambda folder: configured(folder, entry("early", "settings", "hidden", value=-1)),
        "hidden must be 1 or more",
    ),
    "text for a number": (
        lambda folder: configured(folder, entry("early", "settings", "eps", value="tiny")),
        "eps must be a number",
    ),
    "late is no list": (lambda folder: configured(folder, entry("late", value={"a": 1})), "late must be a list"),
    "late of nothing": (
        lambda folder: configured(folder, entry("late", value=[None])),
        "a block must have a type among TransformerLayer",
    ),
    "settings is a list": (
        lambda folder: configured(folder, entry("head", "settings", value=[1])),
        "a block must have a type",
    ),
    "other sizes": (
        lambda folder: configured(folder, entry("early", "settings", "hidden", value=9)),
        "parameters or more, but|does not fit",
    ),
    "huge": (
        lambda folder: configured(folder, entry("early", "settings", "hidden", value=10**15)),
        "parameters or more, but",
    ),
    "many taps": (
        lambda folder: configured(folder, entry("early", "settings", "taps", value=10**15)),
        "taps must be 1024 or less",
    ),
    "huge head": (
        lambda folder: configured(folder, entry("head", "settings", "classes", value=10**15)),
        "parameters or more, but",
    ),
    "source": (lambda folder: configured(folder, entry("features", value=[3])), "features must be"),
    "seed": (lambda folder: configured(folder, entry("seed", value=-3)), "seed must be 0 or more"),
}


@pytest.mark.parametrize("case", SPOILT_CONFIGS)
def test_spoilt_configurations_are_refused(saved, case):
    spoil, message = SPOILT_CONFIGS[case]
    spoil(saved[1])
    with pytest.raises(ValueError, match=message):
        load(saved[1])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved[1] / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} does not exist"):
        load(saved[1])


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_former_one(saved, monkeypatch, failing):
    net, folder = saved
    before = net.state_dict()

    def full(*_):
        raise OSError(28, "No space left on device")

    net.load_state_dict({name: value + 1 for name, value in before.items()})
    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space"):
        net.save_pretrained(folder)
    monkeypatch.undo()
    assert same_bits(load(folder).state_dict(), before)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    net.save_pretrained(folder)
    assert same_bits(load(folder).state_dict(), net.state_dict())


def test_missing_package_is_named(saved, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "safetensors":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs the safetensors package: pip install 'sherl\[text\]'"):
        load(saved[1])
    with pytest.raises(ImportError, match=r"needs the safetensors package: pip install 'sherl\[text\]'"):
        saved[0].save_pretrained(saved[1])
