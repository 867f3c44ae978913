"""Blocks and networks as modules of PyTorch, whose forward and backward run in sherl's core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from .. import _core
from .._typing import Array, StateDict, Uint16As
from ..blocks.block import AnyRows, Block, UnaryBlock
from ..blocks.heads import Head
from ..blocks.mtsa import MTSA
from ..blocks.transformer import TransformerLayer
from ..blocks.weights import owned_names
from ..features.features import Features, read_sequence
from ..network.side_network import SideNetwork
from .tensors import element_of, to_array

__all__ = ["SideModule"]


class SideModule(torch.nn.Module):
    """Side network, or a single block, as a module of PyTorch, for training loops of one's own.

    Forward and backward run in sherl's core, on the CPU. Parameters have sherl's names and share their memory with the
    network: what an optimizer of PyTorch does to them, the network has done. Where they were moved to another device or
    type, or copied, they are copied into the network at each call. Dropout acts in training mode, with draws that
    ``torch.manual_seed`` decides; batch norms move their running statistics in the backward pass.

    Parameters
    ----------
    block : SideNetwork, MTSA, TransformerLayer, Bottleneck, BasicBlock, or a head

    Attributes
    ----------
    block
    """

    def __init__(self, block: SideNetwork | Block) -> None:
        super().__init__()
        if not isinstance(block, (SideNetwork, Block)):
            raise TypeError(f"block must be a SideNetwork or a block, got {type(block).__name__}")
        self.block = block
        for name, array in self._arrays().items():
            *path, leaf = name.split(".")
            owner: torch.nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, torch.nn.Module())
                owner = cast(torch.nn.Module, owner._modules[part])
            tensor = torch.from_numpy(array)
            if name in self._trained():
                owner.register_parameter(leaf, torch.nn.Parameter(tensor))
            else:
                owner.register_buffer(leaf, tensor)

    def forward(self, *inputs: Any, mask: Any = None, positions: Any = None) -> torch.Tensor:
        """Compute the output.

        Parameters
        ----------
        *inputs : torch.Tensor
            Of a network the taps, or one list of them, or `Features`; of an MTSA the taps, and `last` where it is not
            the last of them; of another block x. Shapes are those that the block takes: (batch, tokens, channels), or
            images (batch, height, width, channels). They may ask for gradients; `Features` do not.
        mask : torch.Tensor or array_like, shape (batch, tokens), optional
            1 where a row is meant.
        positions : torch.Tensor or array_like of int, shape (batch,), optional
            With a head whose pool is "position".

        Returns
        -------
        torch.Tensor
            On the device of the first input, of the core's own type. Of a head with an output for every row and
            `Features` as the input (rows, outputs).
        """
        if len(inputs) == 1 and isinstance(inputs[0], (tuple, list)):
            inputs = tuple(inputs[0])
        others = [None if values is None else np.asarray(values.detach().cpu() if torch.is_tensor(values) else values)
                  for values in (mask, positions)]
        features = len(inputs) == 1 and isinstance(inputs[0], Features)
        if not features:
            for value in inputs:
                if not torch.is_tensor(value):
                    raise TypeError(f"inputs must be tensors, a list of them, or Features, got {type(value).__name__}")
        parameters = self._share()
        seed = int(torch.randint(2**31, ()).item()) if self.training else 0
        kind: Any = _NetworkCall if isinstance(self.block, SideNetwork) else _BlockCall
        call = kind(
            self.block, inputs if features else [to_array(value) for value in inputs], *others,
            None if features else element_of(inputs), self.training, seed, list(parameters))
        tensors = () if features else inputs
        output: torch.Tensor = _Function.apply(  # type: ignore[no-untyped-call]  # PyTorch does not annotate it
            call, len(tensors), *tensors, *parameters.values())
        return output

    def _store(self) -> tuple[_core.Parameters, str]:
        if isinstance(self.block, SideNetwork):
            return self.block._programs.store, ""
        return self.block._home()

    def _arrays(self) -> StateDict:
        store, prefix = self._store()
        return {name: store.array(prefix + name) for name in owned_names(store, prefix)}

    def _trained(self) -> set[str]:
        store, prefix = self._store()
        return {name for name in owned_names(store, prefix) if store.role(prefix + name) == "trainable"}

    def _share(self) -> dict[str, torch.Tensor]:
        """Return the parameters by name; those that do not lie in the network's memory are copied there."""
        named, parameters = dict(self.named_parameters()), {}
        buffers = dict(self.named_buffers())
        trained = self._trained()
        for name, array in self._arrays().items():
            tensor = named[name] if name in trained else buffers[name]
            if tensor.data_ptr() != array.ctypes.data:
                array[...] = to_array(tensor.detach().to(torch.from_numpy(array).dtype))
            if name in trained:
                parameters[name] = tensor
        return parameters


class _Function(torch.autograd.Function):
    """A call of the core. What it read is saved, so that PyTorch notices where that was changed before the backward."""

    @staticmethod
    def forward(ctx: Any, call: _NetworkCall | _BlockCall, count: int, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.call, ctx.count = call, count
        ctx.save_for_backward(*tensors)
        call.wanted = [ctx.needs_input_grad[2 + number] for number in range(count)]
        device = tensors[0].device if count else "cpu"
        return torch.from_numpy(call.forward()).to(device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors, call = ctx.saved_tensors, ctx.call
        gradients = call.backward(cotangent.detach().cpu().contiguous().numpy())
        found: list[torch.Tensor | None] = [None, None]
        for number, tensor in enumerate(tensors):
            values: Any = None
            if ctx.needs_input_grad[2 + number]:
                values = call.input_gradient(gradients, number) if number < ctx.count else (
                    gradients[call.names[number - ctx.count]])
                values = torch.from_numpy(values).reshape(tensor.shape).to(tensor.device, tensor.dtype)
            found.append(values)
        return tuple(found)


class _NetworkCall:
    """A forward and a backward pass of a network over one batch."""

    def __init__(self, network: SideNetwork, taps: Sequence[Any], mask: Array | None, positions: Array | None,
                 element: Uint16As, training: bool, seed: int, names: list[str]) -> None:
        self.network, self.training, self.seed, self.names = network, training, seed, names
        self.taps = taps[0] if isinstance(taps[0], Features) else read_sequence(taps)
        self.arguments: dict[str, Any] = {"mask": mask, "positions": positions, "dtype": element}
        self.wanted: list[bool] = []

    def forward(self) -> Array:
        output = self.network._run_forward(self.taps, **self.arguments, taps_gradient=any(self.wanted),
                                           training=self.training, seed=self.seed)
        self.ragged = isinstance(output, Features)
        return output.taps[0] if isinstance(output, Features) else output

    def backward(self, cotangent: Array) -> Mapping[str, Any]:
        outputs: Array | Features = cotangent
        if self.ragged:
            assert isinstance(self.taps, Features)  # of padded arrays outputs are padded too
            outputs = Features([cotangent], self.taps.lengths)
        _, gradients = self.network.vjp(self.taps, outputs, **self.arguments, taps_gradient=any(self.wanted),
                                        training=self.training, seed=self.seed)
        return gradients

    def input_gradient(self, gradients: Mapping[str, Any], number: int) -> Array:
        gradient: Array = gradients[f"tap{number}"]
        return gradient


class _BlockCall:
    """A forward and a backward pass of a block over one batch."""

    def __init__(self, block: Block, inputs: Sequence[Any], mask: Array | None, positions: Array | None,
                 element: Uint16As, training: bool, seed: int, names: list[str]) -> None:
        self.block, self.training, self.seed, self.names = block, training, seed, names
        self.wanted: list[bool] = []
        self.element = element
        if isinstance(inputs[0], Features):
            raise TypeError("inputs must be tensors for a single block, got Features")
        if positions is not None and not isinstance(block, Head):
            raise ValueError("positions goes with a network, or a head")
        if isinstance(block, MTSA):
            taps = inputs[: block.taps]
            last = inputs[block.taps] if len(inputs) == block.taps + 1 else None
            self.rows: AnyRows = block._rows(taps, last, mask, None, element)
        elif len(inputs) != 1:
            raise ValueError(f"inputs must be one tensor for a {type(block).__name__}, got {len(inputs)}")
        elif isinstance(block, Head):
            self.rows = block._rows(inputs[0], mask, element, positions)
        elif isinstance(block, TransformerLayer):
            names = [name for name, _ in block._inputs()]
            if len(names) > 1:
                raise ValueError(f"block must read x alone, but it reads {', '.join(names[1:])} too")
            self.rows = block._rows({"x": inputs[0]}, mask, None, element)
        else:
            self.rows = cast(UnaryBlock, block)._rows(inputs[0], mask, element)

    def forward(self) -> Array:
        return np.ascontiguousarray(self.block._forward(self.rows, self.training, self._names(), self.seed))

    def backward(self, cotangent: Array) -> Mapping[str, Any]:
        _, gradients = self.block._gradient(self.rows, cotangent, self._names(), self.training, self.seed, None)
        return gradients

    def _names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.block._inputs()) if any(self.wanted) else ()

    def input_gradient(self, gradients: Mapping[str, Any], number: int) -> Array:
        values: Array = gradients[self.block._inputs()[number][0]]
        # Where no `last` was given the last tap stands for it, too.
        if isinstance(self.block, MTSA) and number == len(self.wanted) - 1 == self.block.taps - 1:
            values = values + gradients["last"]
        return values
