"""What networks are trained on: two labelled sets of samples, and the frozen states of both, computed once."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

import sherl

from .._typing import Array, Element, PathLike
from ..data.tables import Column, encode_labels
from ..features.manifest import read_manifest
from .arguments import UsageError
from .inputs import Inputs, read_inputs
from .measure import Measured, megabytes
from .states import Taps, chosen_states, layers_of, selected, states_of
from .task_file import Task

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone
    from .console import Console
    from .experiment import Settings

__all__ = [
    "DTYPE",
    "Data",
    "check_backbone",
    "compute_features",
    "encode_targets",
    "prepare",
    "read_data",
    "targets_of",
    "usual_length",
]

DTYPE: Element = "float16"  # in which states are kept
_LONGEST = 128  # tokens that are kept of a text unless asked otherwise


# Of both sets, and the classes: None for regression.
Targets: TypeAlias = tuple[Array, Array, list[str] | None]


@dataclass(frozen=True)
class Data:
    """A training set and a held-out set.

    Attributes
    ----------
    train, dev : Features
        All states that were read.
    train_targets, dev_targets : numpy.ndarray
    classes : list of str or None
        None for regression.
    late : list of TransformerLayer or Bottleneck
        The frozen last layer, or none.
    max_length : int or None
        Tokens that were kept of a text.
    """

    train: sherl.Features
    dev: sherl.Features
    train_targets: Array
    dev_targets: Array
    classes: list[str] | None
    late: list[Any]
    max_length: int | None

    def states(self, taps: Taps) -> list[int]:
        """Return the states that a network with this choice of taps reads."""
        images = self.train.sizes is not None
        return chosen_states(taps, states_of(self.train), self.train.channels, layers_of(self.train), images)

    def tapped(self, taps: Taps) -> tuple[sherl.Features, sherl.Features]:
        """Return what such a network reads of both sets."""
        states = self.states(taps)
        return selected(self.train, states), selected(self.dev, states)

    def task(self, settings: Settings, arguments: Namespace) -> Task:
        """Return the description of a network that was trained with these settings."""
        columns = {name: getattr(arguments, name, None) for name in ("text", "text_pair", "label")}
        return Task(settings.task, self.classes, **columns, max_length=self.max_length,
                    taps=self.states(settings.taps))


def read_data(arguments: Namespace, settings: Settings, taps: Sequence[Taps], console: Console) -> Data:
    """Read what the options name, and compute or open the states.

    Parameters
    ----------
    arguments : argparse.Namespace
    settings : Settings
    taps : sequence of "all" or tuple of int
        Of every network that is to be trained.
    console : Console
    """
    columns = {name: getattr(arguments, name) for name in ("text", "text_pair", "label")}
    train, dev = (read_inputs(paths, **columns) for paths in (arguments.train, arguments.dev))
    if any(one.kind != "features" for one in (train, dev)) and not arguments.backbone and not arguments.features:
        raise UsageError("--backbone is needed, or --features with the states of one")
    if train.kind == dev.kind == "features" and arguments.features:
        raise UsageError(f"--features keeps the states of texts or images, but {train.place} holds states already")
    if arguments.task is None and _are_measures(train.known_labels):
        raise UsageError(f"{train.place}: the labels are numbers that are not whole; pass --task regression to learn "
                         "them, or --task classification to take each for a class")
    targets = encode_targets(train, dev, settings.task)
    if arguments.train_rows and arguments.train_rows < len(train):
        chosen = np.sort(np.random.default_rng(settings.seed).permutation(len(train))[: arguments.train_rows])
        train, targets = train.chosen(chosen), (targets[0][chosen], *targets[1:])
    console.say(f"Read {len(train):,} {train.noun} to train on and {len(dev):,} to score on")
    backbone = sherl.load_backbone(arguments.backbone) if arguments.backbone else None
    return prepare(train, dev, targets, settings, taps, backbone, console, arguments.features)


def targets_of(inputs: Inputs, task: str, classes: list[str] | None = None) -> tuple[Array, list[str] | None]:
    """Return the labels of samples as targets, and the classes."""
    try:
        return encode_labels(inputs.known_labels, task, classes)
    except ValueError as error:
        raise error if inputs.place in str(error) else ValueError(f"{inputs.place}: {error}") from None


def encode_targets(train: Inputs, dev: Inputs, task: str) -> Targets:
    """Return the targets of both sets and the classes."""
    targets, classes = targets_of(train, task)
    if classes is not None and len(classes) < 2:
        name = f"the column {train.labels.name!r}" if isinstance(train.labels, Column) else "the labels"
        raise ValueError(f"{train.place}: {name} must hold at least two classes, got {classes}")
    return targets, targets_of(dev, task, classes)[0], classes


def prepare(train: Inputs, dev: Inputs, targets: Targets, settings: Settings, taps: Sequence[Taps],
            backbone: Backbone | None, console: Console, folder: PathLike | None = None) -> Data:
    """Compute or open the states of two sets of samples, and return them as Data.

    Parameters
    ----------
    train, dev : Inputs
    targets : tuple
        As of `encode_targets`.
    folder : path-like, optional
        Where the states are kept on disk: in its folders train and dev.
    """
    max_length = _kept_tokens(train, settings, backbone, folder, console)
    with Measured() as reading:
        features = [
            _features(inputs, settings, taps, backbone, max_length, Path(folder) / name if folder else None, console)
            for name, inputs in (("train", train), ("dev", dev))
        ]
    rate = sum(int(np.sum(one.lengths)) for one in features) / max(reading.seconds, 1e-9)
    computed = folder is None and train.kind != "features"
    speed = f", {rate:,.0f} {'tokens' if train.kind == 'text' else 'rows'} a second" if computed else ""
    size = megabytes(sum(one.nbytes for one in features))
    console.say(f"   {reading.seconds:.1f} s{speed}; the states take {size} as {features[0].dtypes[0]}")
    return Data(features[0], features[1], *targets, _late(features[0], backbone, train.place), max_length)


def check_backbone(inputs: Inputs, backbone: Backbone) -> None:
    """Raise where a backbone does not take such samples."""
    if backbone.takes != inputs.kind:
        raise ValueError(
            f"{inputs.place} holds {inputs.noun}, but the {backbone.family} backbone takes {backbone.takes}"
        )


def usual_length(inputs: Inputs, backbone: Backbone, max_length: int | None) -> int | None:
    """Return how many tokens are kept of a text; None where samples are no texts."""
    if inputs.kind != "text":
        return None
    assert backbone.max_length is not None  # it takes texts
    return max_length or min(_LONGEST, backbone.max_length)


def compute_features(inputs: Inputs, states: Literal["all"] | Sequence[int], backbone: Backbone,
                     max_length: int | None, *, dtype: Element = DTYPE, out: PathLike | None = None,
                     progress: bool = True) -> sherl.Features:
    """Run a backbone on texts or images."""
    return backbone.extract(
        inputs.loaded(), states, max_length=max_length, dtype=dtype, progress=progress, out=out
    )


def _are_measures(labels: Sequence[str]) -> bool:
    """Whether all labels are numbers, and some not whole: most likely no classes."""
    try:
        return not all(float(label).is_integer() for label in labels)
    except ValueError:
        return False


def _kept_tokens(inputs: Inputs, settings: Settings, backbone: Backbone | None, folder: PathLike | None,
                 console: Console) -> int | None:
    """Return the tokens that are kept of a text, and say where states come from."""
    if inputs.kind == "features":
        console.say(f"Opening the features in {inputs.place}")
        return (inputs.samples.preprocessing or {}).get("max_length")
    if backbone is not None:
        check_backbone(inputs, backbone)
        console.say(f"Running the frozen backbone ({backbone.num_layers} layers, {backbone.hidden_size} channels) once")
        return usual_length(inputs, backbone, settings.max_length)
    assert folder is not None  # one of both is given
    console.say(f"Opening the features in {folder}")
    return settings.max_length or (read_manifest(Path(folder) / "train").preprocessing or {}).get("max_length")


def _features(inputs: Inputs, settings: Settings, taps: Sequence[Taps], backbone: Backbone | None,
              max_length: int | None, folder: Path | None, console: Console) -> sherl.Features:
    """Return the states of samples, in memory or in a folder."""
    if inputs.kind == "features":
        return inputs.features
    if backbone is None:
        assert folder is not None  # one of both is given
        return _open(folder, inputs, settings, max_length)
    check_backbone(inputs, backbone)
    layers, images = backbone.num_layers, backbone.family == "ResNet"
    choices: list[Taps] = ["all", *taps] if folder and not images else [*taps]
    wanted = {
        state
        for choice in choices
        for state in chosen_states(choice, range(layers + 1), backbone.channels, layers, images)
    }
    wanted |= {layers} if folder or settings.probe else set()
    return compute_features(inputs, sorted(wanted), backbone, max_length, out=folder, progress=console.progress)


def _open(folder: Path, inputs: Inputs, settings: Settings, max_length: int | None) -> sherl.Features:
    """Return the features of a folder, which must be those of the samples."""
    manifest, features = read_manifest(folder), sherl.Features.open(folder)
    facts, layers = features.preprocessing or {}, layers_of(features)
    if not layers or not features.layers or layers - 1 not in states_of(features):
        raise ValueError(f"{folder} must hold all states of a backbone and its last layer, as --backbone writes them")
    if manifest.inputs != inputs.fingerprint:
        raise ValueError(f"{folder} must hold the features of the {inputs.noun} of {inputs.place}, but it holds those "
                         "of others")
    if facts.get("max_length") != max_length:
        raise ValueError(f"{folder} has --max-length {facts.get('max_length')}, got {max_length}")
    if settings.probe and layers not in states_of(features):
        raise ValueError(f"{folder} lacks the last layer's output, which the linear probe needs: pass --no-probe")
    return features


def _late(features: sherl.Features, backbone: Backbone | None, place: str) -> list[Any]:
    """Return the frozen last layer, of the features or of the backbone."""
    source = features.source or {}
    if backbone is not None and source.get("backbone", backbone.fingerprint) != backbone.fingerprint:
        raise ValueError(f"{place} holds the states of another backbone than --backbone")
    layers = features.layers or (backbone.layers if backbone is not None else [])
    if layers_of(features) and not layers:
        raise ValueError(f"{place} lacks the frozen last layer of its backbone: pass --backbone")
    return list(layers[-1:])
