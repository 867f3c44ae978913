"""A folder's configuration and tensors, read as a family's table says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from .._typing import Array, PathLike, Record, StateDict
from ..blocks.families import BIAS_ROLES, Naming
from ..blocks.transformer import ACTIVATIONS, T5Block, TransformerLayer
from ..checks import one_of, real_number, whole_number
from .families import FAMILIES, TOWERS, Family, Layers
from .files import Tensors
from .onnx_weights import OnnxTensors

AnyTensors: TypeAlias = Tensors | OnnxTensors

_PARTS = {"text": "text_config", "image": "vision_config"}  # of the configuration of two towers


def read_family(config: Record, path: PathLike, tower: str | None = None) -> tuple[Family, Record]:
    """Return the family of a configuration, and the facts that the model's states depend on."""
    kind = config.get("model_type")
    known = [*FAMILIES, *TOWERS]
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(f"{path}: model_type must be one of {', '.join(known)}, got {kind!r}")
    if kind in TOWERS:
        family = TOWERS[kind][str(one_of(tower, "tower", tuple(TOWERS[kind])))]
        config = config.get(_PARTS[str(tower)], None)
    else:
        family = FAMILIES[kind]
        one_of(tower, "tower", (None, family.stem))
    try:
        return family, _facts(family, config)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _facts(family: Family, config: Any) -> Record:
    if not isinstance(config, dict):
        raise ValueError(f"the configuration of the tower must be an object, got {config!r}")
    for name, values, message in family.needs:
        if config.get(name, values[0]) not in values:
            raise ValueError(f"{message}, but {name} is {config[name]!r}")
    plain = {fact: entry for fact, entry in family.sizes.items() if isinstance(entry, str)}
    missing = [name for name in plain.values() if name not in config]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    facts: Record = {fact: whole_number(config[name], name, 1) for fact, name in plain.items()}
    for fact, (name, default) in ((fact, entry) for fact, entry in family.sizes.items() if fact not in plain):
        value = config.get(name)
        facts[fact] = facts.get(default, default) if value is None else whole_number(value, name, 1)
    name, default = family.activation
    facts["activation"] = config.get(name, default)
    name, eps = family.eps
    facts["eps"] = real_number(config.get(name, eps), str(name), above=0.0)
    facts |= family.constants
    if family.derive is not None:
        family.derive(facts, config)
    if facts["activation"] not in ACTIVATIONS:
        name = family.activation[0]
        raise ValueError(f"{name} must be one of {', '.join(ACTIVATIONS)}, got {facts['activation']!r}")
    if not facts.get("head_size") and facts["features"] % facts["heads"]:
        raise ValueError(f"{_named(family, 'heads')} must divide {_named(family, 'features')}")
    return facts


def _named(family: Family, fact: str) -> str:
    """Return what the configuration calls a fact."""
    entry = family.sizes[fact]
    return entry if isinstance(entry, str) else entry[0]


def read_stem(family: Family, facts: Record, tensors: AnyTensors) -> StateDict:
    """Return the arrays of the stem by role."""
    arrays = {}
    for role, (names, shape, *made) in family.tensors.items():
        if role.startswith("project") and facts["embedding"] == facts["features"]:
            continue
        choices = names.split("|")
        name = next((name for name in choices if name in tensors), choices[0])
        shape = tuple(facts.get(size, size) for size in shape)
        arrays[role] = made[0](shape) if made and name not in tensors else tensors.read(name, shape)
    return arrays


def read_norm(family: Family, facts: Record, tensors: AnyTensors) -> StateDict:
    """Return the arrays of the norm after the last layer, by "weight" and "bias"; none where there is no norm."""
    if family.norm is None:
        return {}
    kinds = ("weight",) if _normed_by_root(family) else ("weight", "bias")
    return {kind: tensors.read(f"{family.norm}.{kind}", (facts["features"],)) for kind in kinds}


def read_projection(family: Family, facts: Record, tensors: AnyTensors) -> Array | None:
    """Return the map to the space that two towers share, (channels, features); None where the checkpoint has none."""
    # Of an ONNX file it is not known: no family with a projection is read from one.
    if family.projection is None or isinstance(tensors, OnnxTensors) or family.projection not in tensors:
        return None
    return tensors.read(family.projection, (tensors.shape(family.projection, 2)[0], facts["features"]))


def _normed_by_root(family: Family) -> bool:
    return family.layers.kind is T5Block or family.layers.settings.get("norm") == "rmsnorm"


def read_layers(layers: Layers, facts: Record, tensors: AnyTensors) -> list[TransformerLayer]:
    """Return layers made of a checkpoint's tensors."""
    settings = {name: facts[fact] for name, fact in layers.facts.items()}
    settings |= {"activation": facts["activation"], "eps": facts["eps"], **layers.settings}
    heads, features = facts[layers.heads], facts["features"]
    # Equal to what a layer made of such weights alone has.
    if settings.get("head_size") and settings["head_size"] * heads == features:
        settings["head_size"] = None
    if settings.get("key_heads") == heads:
        settings["key_heads"] = None
    told = [bias for bias in BIAS_ROLES if bias in settings and settings[bias] is None]
    settings |= dict.fromkeys(told, False)
    sizes = {"features": features, "heads": heads, "intermediate": facts[layers.intermediate]}
    naming = _naming_of(layers, layers.kind(**sizes, **settings)._shapes(), tensors)
    for bias in told:
        settings[bias] = layers.place.format(0) + str(naming.name(BIAS_ROLES[bias])) in tensors
    shapes = layers.kind(**sizes, **settings)._shapes()
    made = []
    for number in range(facts[layers.count]):
        weights = _read_layer(layers, naming, shapes, number, tensors)
        made.append(layers.kind._of_family(layers.family, weights, heads, False, **settings))
    return made


def read_decoder(family: Family, facts: Record, tensors: AnyTensors) -> list[TransformerLayer]:
    """Return the layers of a decoder; none where the family or the checkpoint has no decoder."""
    layers = family.decoder
    if layers is None:
        return []
    first = f"{layers.place.format(0)}{layers.family.namings[0].name('query_weight')}"
    return read_layers(layers, facts, tensors) if first in tensors else []


def _naming_of(layers: Layers, roles: Iterable[str], tensors: AnyTensors) -> Naming:
    """Return the naming of a family that has all of some roles, and by which layer 0 has most of them."""
    place = layers.place.format(0)
    fit = [naming for naming in layers.family.namings if None not in map(naming.name, roles)]
    return max(fit, key=lambda naming: sum(f"{place}{naming.name(role)}" in tensors for role in roles))


def _read_layer(layers: Layers, naming: Naming, shapes: Mapping[str, tuple[int, ...]], number: int,
                tensors: AnyTensors) -> StateDict:
    """Return the tensors of a layer by their names in it."""
    weights: StateDict = {}
    for role, shape in shapes.items():
        name, count = str(naming.name(role)), naming.share(role)[1]
        shape = (shape[0] * count, *shape[1:])
        shape = tuple(reversed(shape)) if naming.transposed else shape
        full = layers.shared.get(name, layers.place.format(number) + name)
        if name in layers.zeros and full not in tensors:
            weights[name] = np.zeros(shape, np.float32)
        elif name not in weights:
            weights[name] = tensors.read(full, shape)
    return weights
