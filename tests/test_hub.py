"""Backbones by their names on the hub, with a stub in place of huggingface_hub: no test asks the network."""

import importlib
import sys
import types

import pytest
from tiny_bert import write_tiny_bert

import sherl
import sherl.hub
import sherl.onnx


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A huggingface_hub that notes what it is asked for, and has one model."""
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        return str(write_tiny_bert(tmp_path / "model"))

    stub = types.ModuleType("huggingface_hub")
    stub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", stub)
    return asked


def test_a_backbone_of_the_hub(hub, tmp_path):
    backbone = sherl.hub.load_backbone("someone/tiny", revision="v1", cache_dir=tmp_path / "c", local_files_only=True)
    assert backbone.fingerprint == sherl.load_backbone(tmp_path / "model").fingerprint
    (name, options), = hub
    assert name == "someone/tiny"
    patterns = options.pop("allow_patterns")
    assert options == {"revision": "v1", "cache_dir": tmp_path / "c", "token": None, "local_files_only": True}
    assert "config.json" in patterns and not any(pattern.endswith((".bin", ".msgpack", "*")) for pattern in patterns)


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "/tiny", "someone/", "./model/"])
def test_names_that_are_none(hub, name):
    with pytest.raises(ValueError, match="name must be of the form"):
        sherl.hub.load_backbone(name)
    assert not hub


def test_without_the_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'sherl\[hub\]'"):
        sherl.hub.load_backbone("someone/tiny")
    with pytest.raises(TypeError, match="name must be text"):
        sherl.hub.load_backbone(3)
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("sherl.torch")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"pip install 'sherl\[torch\]'"):
        importlib.import_module("sherl.torch")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'sherl\[onnx\]'"):
        sherl.onnx.extract(b"", {}, ["a"])
    with pytest.raises(ImportError, match=r"pip install 'sherl\[onnx\]'"):
        sherl.onnx.to_onnx(None, "network.onnx")
