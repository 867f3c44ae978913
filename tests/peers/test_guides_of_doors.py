"""The examples of the how-to pages that need PyTorch or ONNX Runtime run as printed, and do what the pages say."""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_guides import run  # noqa: E402


def test_torch():
    torch.manual_seed(0)
    names = run("how-to-torch.md")
    assert names["net"].evaluate(names["features"], names["labels"])["accuracy"] > 0.9
    features, plain = names["features"], names["plain"]
    index = np.flatnonzero(features.lengths == features.longest)
    taps = [torch.from_numpy(tap.reshape(len(index), -1, 32)) for tap in features[index].taps]
    with torch.no_grad():
        found = plain(taps).numpy()
    assert np.abs(found - names["net"].forward(features[index])).max() < 1e-4


def test_onnx(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("how-to-onnx.md")
    assert np.abs(names["outputs"] - names["net"].forward(names["taps"], names["mask"])).max() < 1e-4
