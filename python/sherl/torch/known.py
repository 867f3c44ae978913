"""Modules that sherl has a layer of its own for, which runs in its core."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._typing import Array
from ..blocks.residual import BasicBlock, Bottleneck, ResidualBlock
from ..blocks.transformer import TransformerLayer
from .tensors import first_tensor, to_array, weights_of

_TOLERANCE = 1e-4


def own_layer(module: torch.nn.Module) -> TransformerLayer | Bottleneck | None:
    """Return sherl's own frozen layer of a module's weights, or None where there is none that gives the same.

    Known are layers of BERT, ViT and their kin in transformers, and blocks of ResNets. The layer shares the weights
    of a module on the CPU; it is compared with the module on random rows.
    """
    weights = {name: tensor for name, tensor in weights_of(module).items() if not name.endswith("num_batches_tracked")}
    if not weights or any(tensor.dtype != torch.float32 for tensor in weights.values()):
        return None
    arrays = {name: to_array(tensor) for name, tensor in weights.items()}
    make = _residual_block if "conv1.weight" in weights else _transformer
    try:
        layer = make(module, arrays)
    except (AttributeError, TypeError, ValueError):  # it has other parts, or other weights
        return None
    return layer if layer is not None and _same(layer, module) else None


def _transformer(module: Any, arrays: dict[str, Array]) -> TransformerLayer | None:
    parts = list(module.modules())
    heads = [part.num_attention_heads for part in parts if hasattr(part, "num_attention_heads")]
    configurations = [part.config for part in parts if hasattr(part, "config")]
    norms = [part for part in parts if isinstance(part, torch.nn.LayerNorm)]
    if not heads or not configurations or not norms or getattr(module, "is_decoder", False):
        return None
    bert = "attention.self.query.weight" in arrays
    make = TransformerLayer.from_bert if bert else TransformerLayer.from_vit
    return make(arrays, heads[0], activation=configurations[0].hidden_act, eps=norms[0].eps)


def _residual_block(module: Any, arrays: dict[str, Array]) -> Any:
    kind, stride = Bottleneck if "conv3.weight" in arrays else BasicBlock, module.stride
    return kind.from_resnet(arrays, stride=stride[0] if isinstance(stride, (tuple, list)) else stride,
                            eps=module.bn1.eps)


def _same(layer: TransformerLayer | Bottleneck, module: Any) -> bool:
    """Compare a layer with the module it stands for, which must be in evaluation mode."""
    images = isinstance(layer, ResidualBlock)
    shape = (2, 6, 4, layer.features) if images else (2, 7, layer.features)
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    device = next(module.parameters()).device
    given = torch.from_numpy(x).to(device)
    try:
        with torch.no_grad():
            output = first_tensor(module(given.permute(0, 3, 1, 2) if images else given), "the module")
    except Exception:  # it needs more than the states, say
        return False
    expected = (output.permute(0, 2, 3, 1) if images and output.ndim == 4 else output).cpu().numpy()
    found = layer(x)
    limit = _TOLERANCE * max(1.0, np.abs(expected).max())
    return found.shape == expected.shape and np.abs(found - expected).max() <= limit
