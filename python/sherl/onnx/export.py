"""Trained networks as ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._typing import PathLike, Record
from ..blocks.foreign import ForeignLayer
from ..blocks.norm import LayerNorm, RMSNorm
from ..blocks.queries import Positions, Queries
from ..blocks.residual import BasicBlock, Bottleneck
from ..blocks.transformer import TransformerLayer
from ..checks import flag, write_files
from ..network.late_route import given_positions, queries_of
from ..network.side_network import SideNetwork
from ..network.weights_of_blocks import described, weights_of_block
from . import blocks
from .writer import IR_VERSION, OPSET, Weights, Writer

if TYPE_CHECKING:
    pass

__all__ = ["to_onnx"]

_KINDS = {Bottleneck: blocks.bottleneck, BasicBlock: blocks.basic_block, LayerNorm: blocks.norm, RMSNorm: blocks.norm}


def to_onnx(network: SideNetwork, path: PathLike, mask: bool = True) -> None:
    """Write a network as an ONNX file, to be served without sherl.

    The inputs are ``tap0``, ``tap1`` …, float32 of shape (batch, tokens, channels), or images
    (batch, height, width, channels), of a tower one more of shape (batch, channels), or of position rows where the
    network reads them (batch, tokens, channels); ``mask``, bool of shape
    (batch, tokens); and ``positions``, int64 of shape (batch,), with a head whose pool is "position". The output is
    ``outputs``, what `SideNetwork.forward` gives. Batch, tokens, heights and widths are free.

    Parameters
    ----------
    network : SideNetwork
    path : str or path-like
        Replaced whole where it exists.
    mask : bool
        Whether the graph has the input ``mask``; without it all tokens count. Images have none.

    Raises
    ------
    ImportError
        Without the onnx package.
    ValueError
        Where a late layer is a module of PyTorch; such a network goes through `sherl.torch.to_torch` and torch.onnx.
    """
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError:
        raise ImportError("writing a network as ONNX needs the onnx package: pip install 'sherl[onnx]'") from None
    if not isinstance(network, SideNetwork):
        raise TypeError(f"network must be a SideNetwork, got {type(network).__name__}")
    for number, layer in enumerate(network.late):
        if isinstance(layer, ForeignLayer):
            raise ValueError(f"late[{number}] is a module of PyTorch, which sherl cannot write as ONNX: use torch.onnx "
                             "on what sherl.torch.to_torch gives")
    writer = Writer(helper, numpy_helper)
    masked = flag(mask, "mask") and not network.early.images
    inputs = _inputs(network, masked)
    mask_name = "mask" if masked else None
    output = _write(network, writer, [name for name in inputs if name.startswith("tap")], mask_name)
    writer.nodes.append(helper.make_node("Identity", [output], ["outputs"]))
    shape = ["batch", network.head.out_features]
    if not network.head._pooled:
        shape.insert(1, queries_of(network.late) or "tokens")
    kinds = {"mask": np.bool_, "positions": np.int64}

    def value(name: str, shape: list[Any]) -> Any:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(kinds.get(name, np.float32)))
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(writer.nodes, "sherl", [value(name, shape) for name, shape in inputs.items()],
                              [value("outputs", shape)], writer.constants)
    model = helper.make_model(graph, producer_name="sherl", ir_version=IR_VERSION,
                              opset_imports=[helper.make_opsetid("", OPSET)])
    onnx.checker.check_model(model)
    path = Path(path)
    write_files(path.parent, {path.name: model.SerializeToString()})


def _inputs(network: SideNetwork, masked: bool) -> dict[str, list[Any]]:
    """Return the shape of each input by name."""
    early, inputs = network.early, {}
    for number, channels in enumerate(early.features):
        places = [f"height{number}", f"width{number}"] if early.images else ["tokens"]
        inputs[f"tap{number}"] = ["batch", *places, channels]
    if early._pooled:
        inputs[f"tap{early.taps}"] = ["batch", early.out_features]
    if given_positions(network.late) is not None:
        inputs[f"tap{early.taps}"] = ["batch", "tokens", given_positions(network.late)]
    if masked:
        inputs["mask"] = ["batch", "tokens"]
    if network.head._takes_positions:
        inputs["positions"] = ["batch"]
    return inputs


def _write(network: SideNetwork, writer: Writer, taps: list[str], mask: str | None) -> str:
    def part(block: Any) -> tuple[Weights, Record]:
        return Weights(writer, weights_of_block(block)[0]), described(block)

    early, head = network.early, network.head
    given = taps.pop() if given_positions(network.late) is not None else None
    x = blocks.adapter(*part(early), taps, mask)
    beside: dict[str, Any] = {}
    for layer in network.late:
        if isinstance(layer, Positions):
            beside["positions"] = given if layer.rows is None else part(layer)[0]["table"]
            continue
        if isinstance(layer, Queries):
            beside = {"memory": x, "memory_positions": beside.get("positions"), "memory_mask": mask}
            (x, beside["positions"]), mask = blocks.queries(*part(layer), x), None
            continue
        if isinstance(layer, TransformerLayer):
            x = blocks.transformer_layer(*part(layer), x, mask, **beside)
            continue
        x = _KINDS[type(layer)](*part(layer), x, mask)
    if not head._pooled:
        return blocks.row_head(*part(head), x, mask)
    decodes = queries_of(network.late) is not None
    dimensions = 2 if early._pooled else 4 if early.images and not decodes else 3
    positions = "positions" if head._takes_positions else None
    return blocks.pooled_head(*part(head), x, dimensions, mask, positions)
