"""Taps of any module of PyTorch by forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from .._typing import Array, Element
from ..blocks.late import LateLayer
from ..checks import flag, one_of
from ..features.features import Features, read_sequence
from ..features.parts import TapParts
from ..training.progress import PATIENCE, progress_bar
from .known import own_layer
from .late import Late, fingerprint_of
from .tensors import first_tensor, to_array

__all__ = ["extract"]

_LABELS = ("labels", "label")
Hook: TypeAlias = Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any], Any], None]
_STORED = ("float32", "float16", "bfloat16", "int8")


def extract(module: torch.nn.Module, loader: Iterable[Any], taps: Sequence[str], late: str | Sequence[str] = (), *,
            mask: str | Callable[[Any], Any] = "attention_mask", images: str = "nchw",
            call: Callable[[torch.nn.Module, Any], object] | None = None, dtype: Element = "float32",
            progress: bool = True) -> Features | tuple[Features, list[LateLayer]]:
    """Run a module over batches and keep the outputs of some of its submodules.

    The module runs as it is, on its device, in evaluation mode and without gradients; its modes come back afterwards.

    Parameters
    ----------
    module : torch.nn.Module
        A backbone: of transformers, torchvision, timm, or one's own.
    loader : iterable
        Batches, such as a DataLoader gives: a dictionary goes to the module by name (without ``"labels"``), a tuple or
        list argument by argument, anything else as the one argument. Tensors are moved to the module's device.
    taps : sequence of str
        Names of submodules, as `named_modules` gives them, whose outputs are the taps, the guide last. An output is a
        tensor, a sequence that begins with one, or has ``last_hidden_state``; a name that ends in ``":input"`` stands
        for what the submodule was given first. Tokens are (batch, tokens, channels), images have four dimensions; the
        last tap may be (batch, channels): the output of a tower.
    late : sequence of str
        Names of the submodules that are to be late layers. What sherl knows (layers of BERT, ViT and their kin in
        transformers, blocks of ResNets) becomes a layer of its own that shares the weights; else it is a `Late`.
    mask : str or callable
        Which entry of a batch that is a dictionary tells the tokens that are meant, (batch, tokens) of 1 and 0; or a
        function ``mask(batch) -> tensor or None``. Tokens where it is 0 are left out of the features, and so is the
        padding. Where a batch has none, all tokens count.
    images : {"nchw", "nhwc"}
        How taps of four dimensions lie.
    call : callable, optional
        ``call(module, batch)`` in place of the call described above.
    dtype : {"float32", "float16", "bfloat16", "int8"}
        How the taps are stored; int8 with one scale a row. A tap that has it already is kept as it is.
    progress : bool
        Whether to show a progress bar where it takes more than two seconds and tqdm is installed.

    Returns
    -------
    Features
        In the order of the batches. Their source is the module's fingerprint and the names of the taps.
    list of TransformerLayer, Bottleneck, BasicBlock or Late
        Only where `late` names some; in their order.

    Raises
    ------
    ValueError
        Where the module has no submodule of a name, one did not run or ran twice, or outputs do not fit each other.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    names = [str(name) for name in read_sequence(taps)]
    layers_of = dict(module.named_modules())
    late = [str(name) for name in ([late] if isinstance(late, str) else late)]
    for argument, wanted in (("taps", names), ("late", late)):
        for name in wanted:
            if name.removesuffix(":input") not in layers_of:
                raise ValueError(f"{argument} must be names of submodules, and {type(module).__name__} has no {name!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"taps must be different names, got {', '.join(names)}")
    one_of(images, "images", ("nchw", "nhwc"))
    one_of(dtype, "dtype", _STORED)
    hooks = _Hooks(layers_of, names, late)
    parts = TapParts(names, images, dtype)
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), progress_bar(flag(progress, "progress"), _length(loader), "extract",
                                           delay=PATIENCE) as bar:
            for batch in loader:
                states = hooks.of(partial(_call, module, _moved(batch, device), call))
                parts.add([to_array(state) for state in states], _mask_of(batch, mask))
                bar.update(1)
        features = parts.features({"backbone": fingerprint_of(module), "states": names})
        layers: list[LateLayer] = [
            own_layer(layers_of[name]) or Late(layers_of[name], *hooks.widths(name, images), images=images)
            for name in late
        ]
    finally:
        hooks.remove()
        for part, mode in modes.items():
            part.training = mode
    return (features, layers) if late else features


class _Hooks:
    """Hooks on submodules, that keep what these were given or gave in one call of the whole."""

    def __init__(self, layers: dict[str, torch.nn.Module], taps: list[str], late: list[str]) -> None:
        self._taps = taps
        self._states: dict[str, torch.Tensor] = {}
        self._widths: dict[str, list[torch.Size]] = {}
        self._hooks = [layers[name.removesuffix(":input")].register_forward_hook(self._keep(name), with_kwargs=True)
                       for name in taps]
        self._hooks += [layers[name].register_forward_hook(self._measure(name), with_kwargs=True) for name in late]

    def _keep(self, name: str) -> Hook:
        def hook(layer: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            if name in self._states:
                raise ValueError(f"taps must be submodules that run once in a call; {name!r} ran twice")
            state = _entering(name, arguments, keywords) if name.endswith(":input") else first_tensor(output, name)
            self._states[name] = state.detach().clone()  # what comes after may write over it

        return hook

    def _measure(self, name: str) -> Hook:
        def hook(layer: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            self._widths[name] = [tensor.shape for tensor in
                                  (_entering(name, arguments, keywords), first_tensor(output, name))]

        return hook

    def of(self, call: Callable[[], object]) -> list[torch.Tensor]:
        """Return the states of one call, in the order of the taps."""
        self._states.clear()
        call()
        missing = [name for name in self._taps if name not in self._states]
        if missing:
            raise ValueError(f"taps must be submodules that run; {', '.join(map(repr, missing))} did not")
        return [self._states[name] for name in self._taps]

    def widths(self, name: str, images: str) -> list[int]:
        """Return the channels of what a submodule was given, and of what it gave."""
        if name not in self._widths:
            raise ValueError(f"late must be submodules that run; {name!r} did not")
        return [int(shape[1] if len(shape) == 4 and images == "nchw" else shape[-1]) for shape in self._widths[name]]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _entering(name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> torch.Tensor:
    given = [value for value in (*arguments, *keywords.values()) if isinstance(value, torch.Tensor)]
    if not given:
        raise TypeError(f"{name} must be given a tensor, got none")
    return given[0]


def _call(module: torch.nn.Module, batch: Any, call: Callable[[torch.nn.Module, Any], object] | None) -> object:
    if call is not None:
        return call(module, batch)
    if isinstance(batch, Mapping):
        return module(**{name: value for name, value in batch.items() if name not in _LABELS})
    return module(*batch) if isinstance(batch, (tuple, list)) else module(batch)


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: _moved(value, device) for name, value in batch.items()}
    return type(batch)(_moved(value, device) for value in batch) if type(batch) in (tuple, list) else batch


def _mask_of(batch: Any, mask: str | Callable[[Any], Any]) -> Array | None:
    found = mask(batch) if callable(mask) else batch.get(mask) if isinstance(batch, Mapping) else None
    return None if found is None else np.asarray(found.cpu() if torch.is_tensor(found) else found)


def _length(loader: Any) -> int | None:
    return len(loader) if hasattr(loader, "__len__") else None
