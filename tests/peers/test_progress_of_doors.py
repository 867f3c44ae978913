"""Extraction through PyTorch and ONNX Runtime shows a bar that comes to its end, and none where none is wanted."""

import sys
from pathlib import Path

import numpy as np
import torch
from test_onnx_door import token_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_progress import Bar, bars  # noqa: F401  # a fixture

import sherl.onnx
import sherl.torch


def test_pytorch(bars):  # noqa: F811
    module, batches = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)), [torch.ones(2, 3, 4)] * 5
    sherl.torch.extract(module, batches, ["0", "1"])
    assert bars() == {"extract": (5, 5)} and Bar.made[0].delay > 1
    Bar.made.clear()
    sherl.torch.extract(module, iter(batches), ["0", "1"])
    assert bars() == {"extract": (5, None)}
    Bar.made.clear()
    sherl.torch.extract(module, batches, ["0", "1"], progress=False)
    assert bars() == {}


def test_onnx(bars):  # noqa: F811
    content, _ = token_model()
    inputs = {"input_ids": np.zeros((7, 5), np.int64)}
    sherl.onnx.extract(content, inputs, ["embedded", "inner"], batch_size=3)
    assert bars() == {"extract": (3, 3)} and Bar.made[0].delay > 1
    Bar.made.clear()
    sherl.onnx.extract(content, iter([inputs] * 2), ["embedded", "inner"])
    assert bars() == {"extract": (2, None)}
    Bar.made.clear()
    sherl.onnx.extract(content, inputs, ["embedded", "inner"], progress=False)
    assert bars() == {}
