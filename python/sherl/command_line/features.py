"""`sherl features`: check, describe, join and narrow folders of features."""

import sherl

from ..checks import count_of
from ..features import disk
from ..features.manifest import read_manifest, verify_files
from ..features.sinks import DTYPES
from ..training.progress import progress_bar
from .arguments import described
from .console import Console
from .measure import megabytes

__all__ = ["add_parser"]


def add_parser(commands):
    """Add the command's arguments."""
    parser = commands.add_parser(
        "features",
        help="check, describe, join or narrow features on disk",
        **described(
            "Work on folders of features, which a backbone's extract, Features.save or `sherl train --features` wrote.",
            "sherl features verify features/train/\n  sherl features convert features/train/ --dtype int8 --out narrow/",
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
    for action in (verify, merge, convert):
        action.add_argument("--quiet", action="store_true", help="print nothing")
    info.add_argument("--json", action="store_true", help="print one JSON object")


def _add(actions, name, run, help, example):
    action = actions.add_parser(name, help=help, **described(help[0].upper() + help[1:] + ".", example))
    action.set_defaults(run=run)
    return action


def _verify(arguments):
    console = Console(arguments.quiet)
    manifest = read_manifest(arguments.folder)
    size = _size(manifest)
    with progress_bar(console.progress, size, "verify") as bar:
        verify_files(arguments.folder, manifest, bar.update)
    console.say(f"{count_of(len(manifest.files), 'file')} of {megabytes(size)} are as they were written")
    return 0


def _info(arguments):
    manifest = read_manifest(arguments.folder)
    taps = [f"{tap['channels']} {tap['element']}" for tap in manifest.taps]
    facts = {**(manifest.source or {}), **(manifest.preprocessing or {})}
    record = {
        "kind": "features",
        "samples": manifest.samples,
        "rows": manifest.taps[-1]["rows"],
        "taps": taps,
        "numbers_of_samples": list(manifest.fields),
        "late_layers": [layer["type"] for layer in manifest.layers],
        **{name: facts[name] for name in sorted(facts)},
        "bytes": _size(manifest),
    }
    width = max(map(len, record))
    lines = (f"{name.replace('_', ' '):<{width}}   {_shown(value)}" for name, value in record.items())
    Console(as_json=arguments.json).conclude("\n".join(lines), record)
    return 0


def _merge(arguments):
    parts = [sherl.Features.open(folder) for folder in arguments.folders]
    return _write(arguments, parts)


def _convert(arguments):
    features = sherl.Features.open(arguments.folder)
    return _write(arguments, [features], dtype=arguments.dtype, inputs=read_manifest(arguments.folder).inputs)


def _write(arguments, parts, **more):
    console = Console(arguments.quiet)
    samples = sum(map(len, parts))
    with progress_bar(console.progress, samples, arguments.action) as bar:
        disk.write(parts, arguments.out, progress=bar, **more)
    size = megabytes(_size(read_manifest(arguments.out)))
    console.say(f"Wrote {count_of(samples, 'sample')} to {arguments.out}, {size}")
    return 0


def _size(manifest):
    return sum(size for parts in manifest.files.values() for size, _ in parts)


def _shown(value):
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
