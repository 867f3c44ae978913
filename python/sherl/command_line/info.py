"""`sherl info`: what a backbone folder, a saved network, features on disk or this installation holds."""

from __future__ import annotations

import json
import math
import platform
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

import sherl

from .._typing import Record
from ..features.manifest import MANIFEST
from ..network.saving import read_config
from .arguments import Commands, described
from .console import aligned, facts_table
from .features import describe_features
from .options import add_reporting, begin
from .task_file import Task

__all__ = ["add_parser"]


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "info",
        help="describe a backbone, a network, features, or this installation",
        **described(
            "Describe a backbone folder, a network that `sherl train` or save_pretrained wrote, or features on disk; "
            "without a folder the version, the linear algebra library, the instruction set and the threads in use.",
            "sherl info all-MiniLM-L6-v2/\n  sherl info my-network/\n  sherl info",
        ),
    )
    parser.add_argument(
        "folder", metavar="DIR", nargs="?",
        help="a backbone folder in Hugging Face layout, a saved network, or features",
    )
    add_reporting(parser)
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Run the command; return its exit code."""
    record = _installation() if arguments.folder is None else _folder(Path(arguments.folder))
    text = facts_table({name: value for name, value in record.items() if name != "tensors"})
    if record.get("tensors"):
        rows = [(name, " x ".join(map(str, shape)) or "scalar") for name, shape in record["tensors"].items()]
        text += "\n\n" + aligned(rows)
    begin(arguments).conclude(text, record)
    return 0


def _installation() -> Record:
    return {"kind": "installation", **sherl.configuration.read_config(), "python": platform.python_version()}


def _folder(folder: Path) -> Record:
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder, but there is none of this name")
    if (folder / MANIFEST).exists():
        return describe_features(folder)
    return _backbone(folder) if _is_backbone(folder) else _network(folder)


def _is_backbone(folder: Path) -> bool:
    """Whether the folder is in Hugging Face layout: its config.json names the kind of model."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config


def _backbone(folder: Path) -> Record:
    backbone = sherl.load_backbone(folder)
    layers = backbone.num_layers
    return {
        "kind": "backbone",
        "layers": layers,
        "channels": backbone.hidden_size,
        "parameters": _count(_tensors(folder)),
        "fingerprint": backbone.fingerprint,
        "taps": f"the embeddings and the outputs of layers 1 to {layers - 1}; layer {layers} is the late layer",
    }


def _network(folder: Path) -> Record:
    tensors = _tensors(folder)
    config = read_config(folder / "config.json")
    record: Record = {"kind": "network", "trained_parameters": _count(tensors)}
    try:
        for part in ("early", "head"):
            settings = ", ".join(f"{name}={value}" for name, value in config[part]["settings"].items())
            record[part] = f"{config[part]['type']}({settings})"
        record["late_layers"] = len(config["late"])
        record["backbone"] = (config["features"] or {}).get("backbone", "not known")
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"{folder / 'config.json'} does not describe the parts of a network") from None
    if (folder / "task.json").exists():
        task = Task.load(folder)
        record["task"] = task.task
        if task.classes:
            record["classes"] = task.classes
        facts = {"columns": [name for name in (task.text, task.text_pair, task.label) if name],
                 "max_length": task.max_length, "taps": task.taps}
        record.update({name: value for name, value in facts.items() if value})
    return record | {"tensors": tensors}


def _tensors(folder: Path) -> dict[str, list[int]]:
    """Return the shapes of all weights in the folder's .safetensors files, by name; arrays of integers are none."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError("reading weights needs the safetensors package: pip install 'sherl[text]'") from None
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ValueError(f"{folder}: expected a backbone folder or a saved network, but it holds no .safetensors file")
    shapes: dict[str, list[int]] = {}
    for path in paths:
        try:
            with safe_open(path, framework="numpy") as weights:
                for name in weights.keys():  # noqa: SIM118  # it is no dictionary
                    array = weights.get_slice(name)
                    if array.get_dtype().startswith(("F", "BF")):
                        shapes[name] = list(array.get_shape())
        except SafetensorError as error:
            raise ValueError(f"{path}: the file is not in the safetensors format ({error})") from None
    return shapes


def _count(tensors: Mapping[str, Sequence[int]]) -> int:
    return sum(math.prod(shape) for shape in tensors.values())
