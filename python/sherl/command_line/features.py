"""`sherl features`: check, describe, join and narrow folders of features."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sherl

from .._typing import PathLike, Record
from ..checks import count_of
from ..features import disk
from ..features.manifest import Manifest, read_manifest, verify_files
from ..features.sinks import DTYPES
from ..training.progress import progress_bar
from .arguments import Commands, described
from .console import facts_table
from .inputs import LABELS, read_labels, write_labels
from .measure import megabytes
from .options import add_reporting, begin

__all__ = ["add_parser", "describe_features"]


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "features",
        help="check, describe, join or narrow features on disk",
        **described(
            "Work on folders of features, which `sherl extract`, `sherl train --features` or Features.save wrote.",
            "sherl features verify features/train/\n"
            "  sherl features convert features/train/ --dtype int8 --out narrow/",
        ),
    )
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    verify = _add(actions, "verify", _verify, "read all files and check them against their checksums",
                  "sherl features verify features/train/")
    info = _add(actions, "info", _info, "describe what a folder holds", "sherl features info features/train/")
    merge = _add(actions, "merge", _merge, "write the samples of several folders, in this order, into one",
                 "sherl features merge part-1/ part-2/ --out whole/")
    convert = _add(actions, "convert", _convert, "write the features in another type",
                   "sherl features convert features/train/ --dtype int8 --out narrow/")
    for action in (verify, info, convert):
        action.add_argument("folder", metavar="DIR", help="folder of features")
    merge.add_argument("folders", metavar="DIR", nargs="+", help="folders of features of one backbone")
    convert.add_argument("--dtype", required=True, choices=DTYPES, help="type to store")
    for action in (merge, convert):
        action.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    for action in (verify, info, merge, convert):
        add_reporting(action)


def _add(actions: Commands, name: str, run: Callable[[Namespace], int], help: str,
         example: str) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=help, **described(help[0].upper() + help[1:] + ".", example))
    action.set_defaults(run=run)
    return action


def _verify(arguments: Namespace) -> int:
    console = begin(arguments)
    manifest = read_manifest(arguments.folder)
    size = _size(manifest)
    with progress_bar(console.progress, size, "verify") as bar:
        verify_files(arguments.folder, manifest, bar.update)
    console.say(f"{count_of(len(manifest.files), 'file')} of {megabytes(size)} are as they were written")
    console.report({"files": len(manifest.files), "bytes": size, "intact": True})
    return 0


def _info(arguments: Namespace) -> int:
    record = describe_features(arguments.folder)
    begin(arguments).conclude(facts_table(record), record)
    return 0


def describe_features(folder: PathLike) -> Record:
    """Return what a folder of features holds."""
    manifest = read_manifest(folder)
    facts = {**(manifest.source or {}), **(manifest.preprocessing or {})}
    return {
        "kind": "features",
        "samples": manifest.samples,
        "rows": manifest.taps[-1]["rows"],
        "taps": [f"{tap['channels']} {tap['element']}" for tap in manifest.taps],
        "numbers_of_samples": list(manifest.fields),
        "late_layers": [layer["type"] for layer in manifest.layers],
        **{name: facts[name] for name in sorted(facts)},
        "labels": (Path(folder) / LABELS).exists(),
        "bytes": _size(manifest),
    }


def _merge(arguments: Namespace) -> int:
    parts = [sherl.Features.open(folder) for folder in arguments.folders]
    return _write(arguments, parts, arguments.folders)


def _convert(arguments: Namespace) -> int:
    features = sherl.Features.open(arguments.folder)
    inputs = read_manifest(arguments.folder).inputs
    return _write(arguments, [features], [arguments.folder], dtype=arguments.dtype, inputs=inputs)


def _write(arguments: Namespace, parts: Sequence[sherl.Features], folders: Sequence[str], **more: Any) -> int:
    console = begin(arguments)
    samples = sum(map(len, parts))
    with progress_bar(console.progress, samples, arguments.action) as bar:
        disk.write(parts, arguments.out, progress=bar, **more)
    if all((Path(folder) / LABELS).exists() for folder in folders):
        write_labels(arguments.out, [label for folder in folders for label in read_labels(folder)])
    size = _size(read_manifest(arguments.out))
    console.say(f"Wrote {count_of(samples, 'sample')} to {arguments.out}, {megabytes(size)}")
    console.report({"out": arguments.out, "samples": samples, "bytes": size})
    return 0


def _size(manifest: Manifest) -> int:
    return sum(size for parts in manifest.files.values() for size, _ in parts)
