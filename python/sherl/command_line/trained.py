"""A trained network with what it needs to read samples: what `sherl predict` and `sherl evaluate` share."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import sherl

from .._typing import Array
from ..training.progress import progress_bar
from .arguments import UsageError
from .data import check_backbone, compute_features
from .inputs import Inputs, read_inputs
from .states import selected
from .task_file import Task

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone

__all__ = ["Trained", "load_trained"]

_CHUNK = 512  # samples whose frozen states are in memory at a time


@dataclass(frozen=True)
class Trained:
    """A network, its task, and the backbone that it was trained on, if one was given."""

    network: sherl.SideNetwork
    task: Task
    backbone: Backbone | None = None

    def outputs(self, inputs: Inputs, progress: bool = False) -> Iterator[Array]:
        """Yield for a chunk of samples at a time the probabilities (samples, classes), or the values (samples,)."""
        compute = self.network.predict_proba if self.task.classes else self.network.predict
        with progress_bar(progress, len(inputs), "predict") as bar:
            for start in range(0, len(inputs), _CHUNK):
                chunk = inputs.chosen(np.arange(start, min(start + _CHUNK, len(inputs))))
                yield compute(self._features(chunk), progress=False)
                bar.update(len(chunk))

    def predictions(self, inputs: Inputs, progress: bool = False) -> Array:
        """Return all predictions: class numbers, or values."""
        parts = list(self.outputs(inputs, progress))
        return np.concatenate([part.argmax(axis=1) for part in parts] if self.task.classes else parts)

    def rows(self, inputs: Inputs, progress: bool = False) -> Iterator[tuple[Any, ...]]:
        """Yield for each sample the name of its class and the probability, or its value."""
        for part in self.outputs(inputs, progress):
            for output in part:
                if self.task.classes:
                    best = int(output.argmax())
                    yield self.task.classes[best], round(float(output[best]), 6)
                else:
                    yield (round(float(output), 6),)

    def _features(self, inputs: Inputs) -> sherl.Features:
        if inputs.kind == "features":
            return inputs.features
        assert self.backbone is not None  # samples that are no features need it
        taps: Literal["all"] | list[int] = self.task.taps or "all"
        length = self.task.max_length if inputs.kind == "text" else None
        return compute_features(inputs, taps, self.backbone, length, progress=False)


def load_trained(arguments: Namespace, labelled: bool = False) -> tuple[Trained, Inputs]:
    """Load the network that options name, and read the samples.

    Returns
    -------
    Trained, Inputs
        Of features those taps alone that the network reads.
    """
    task = Task.load(arguments.network)
    if arguments.text_pair and task.text and not task.text_pair:
        raise ValueError(f"--text-pair: the network in {arguments.network} was trained on single texts")
    columns = {name: getattr(arguments, name, None) for name in ("text", "text_pair", "label")}
    inputs = read_inputs(arguments.input, **columns, labelled=labelled, usual=task)
    if inputs.kind == "features" and task.taps:
        inputs = replace(inputs, samples=selected(inputs.samples, task.taps))
    backbone = None
    if arguments.backbone:
        backbone = sherl.load_backbone(arguments.backbone)
        if inputs.kind != "features":
            check_backbone(inputs, backbone)
    elif inputs.kind != "features":
        raise UsageError(f"--backbone is needed for the {inputs.noun} of {inputs.place}")
    layers = backbone if backbone is not None else (inputs.samples if inputs.samples.layers else None)
    return Trained(sherl.SideNetwork.from_pretrained(arguments.network, backbone=layers), task, backbone), inputs
