"""`sherl bench`: how long a training step takes on this machine, and the memory that it needs."""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections.abc import Callable

import numpy as np

import sherl

from .. import _core
from .._typing import Float32s, Integers, Record
from .arguments import Commands, UsageError, count, described
from .console import aligned
from .experiment import Settings
from .measure import Measured, megabytes
from .options import POOLS, add_reporting, add_threads, begin

__all__ = ["add_parser"]

_WARM = 2  # steps that are not timed: memory is laid out in them
_LONGEST = 8.0  # seconds after which no further step is begun
_HEAD_CHANNELS = 64  # of an attention head, as in BERT; the last layer has as many heads as fit
_EXAMPLE = """\
sherl bench                                               the size of all-MiniLM-L6-v2
  sherl bench --channels 768 --layers 12 --hidden 96        that of BERT base"""


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "bench",
        help="time a training step, and tell its memory",
        **described(
            "Time training steps of a network of a given size on made-up states, and tell the memory that they take, "
            "in less than twenty seconds: `layers` taps, one frozen layer, two classes.",
            _EXAMPLE,
        ),
    )
    parser.add_argument("--channels", type=count, default=384, metavar="N", help="of the backbone (%(default)s)")
    parser.add_argument("--layers", type=count, default=6, metavar="N", help="of the backbone (%(default)s)")
    parser.add_argument("--tokens", type=count, default=128, metavar="N", help="of each text (%(default)s)")
    parser.add_argument("--batch-size", type=count, default=32, metavar="N", help="texts a step (%(default)s)")
    hidden = Settings.hidden
    parser.add_argument("--hidden", type=count, default=hidden, metavar="N", help="side channels (%(default)s)")
    parser.add_argument("--pool", choices=POOLS, default=Settings.pool, help="pooling (%(default)s)")
    parser.add_argument("--steps", type=count, default=20, metavar="N", help="most steps to time (%(default)s)")
    add_threads(parser)
    add_reporting(parser)
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Run the command; return its exit code."""
    console = begin(arguments)
    if arguments.layers < 2:
        raise UsageError(f"--layers must be 2 or more, one for each tap, got {arguments.layers}")
    network, features, labels = _problem(arguments)
    plan = network.memory_plan(batch_size=arguments.batch_size, tokens=arguments.tokens)
    console.say(f"Timing steps of a network of {network.num_parameters():,} parameters, "
                f"{arguments.batch_size} x {arguments.tokens} tokens, on {sherl.get_num_threads()} threads")
    with Measured() as measured:
        times = _time_steps(network.stepper(), features, labels, arguments.steps)
    median = statistics.median(times)
    record: Record = {
        "parameters": network.num_parameters(),
        "threads": sherl.get_num_threads(),
        "instruction_set": _core.config()["instruction_set"],
        "steps": len(times),
        "seconds_median": median,
        "seconds_least": min(times),
        "samples_a_second": arguments.batch_size / median,
        "memory_bytes": measured.memory,
        "memory_plan": plan.to_dict(),
    }
    rows = [
        ("time of a step, median", f"{1e3 * median:.1f} ms"),
        ("least", f"{1e3 * min(times):.1f} ms"),
        ("texts a second", f"{record['samples_a_second']:,.0f}"),
        ("memory growth, measured", megabytes(measured.memory)),
        *((f"planned {name.replace('_', ' ')}", f"{size / 1e6:,.1f} MB") for name, size in plan.to_dict().items()),
    ]
    console.conclude(aligned(rows), record)
    return 0


def _problem(arguments: Namespace) -> tuple[sherl.SideNetwork, sherl.Features, Integers]:
    """Return a network with a frozen layer of drawn weights, and one batch for it."""
    channels = arguments.channels
    draw = np.random.default_rng(0).standard_normal
    heads = max(1, channels // _HEAD_CHANNELS) if channels % _HEAD_CHANNELS == 0 else 1
    rows = arguments.batch_size * arguments.tokens
    taps = [draw((rows, channels), dtype=np.float32) for _ in range(arguments.layers)]
    features = sherl.Features(taps, [arguments.tokens] * arguments.batch_size)
    network = sherl.SideNetwork(
        sherl.MTSA.bert(channels, arguments.layers, arguments.hidden),
        [sherl.TransformerLayer.from_bert(_layer_weights(channels, draw), heads)],
        sherl.Classifier(channels, 2, pool=arguments.pool),
    )
    return network, features, np.arange(arguments.batch_size) % 2


def _layer_weights(channels: int, draw: Callable[..., Float32s]) -> dict[str, Float32s]:
    """Return weights of a BERT layer by name."""
    shapes = {f"attention.self.{part}": (channels, channels) for part in ("query", "key", "value")}
    shapes |= {"attention.output.dense": (channels, channels), "intermediate.dense": (4 * channels, channels),
               "output.dense": (channels, 4 * channels)}  # fmt: skip
    weights: dict[str, Float32s] = {}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = draw(shape, dtype=np.float32) / np.float32(shape[1] ** 0.5)
        weights[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        weights[f"{name}.weight"] = np.ones(channels, np.float32)
        weights[f"{name}.bias"] = np.zeros(channels, np.float32)
    return weights


def _time_steps(step: Callable[[sherl.Features, Integers], object], features: sherl.Features, labels: Integers,
                most: int) -> list[float]:
    """Return the seconds of each step after the first ones, of at least one."""
    times: list[float] = []
    begun = time.perf_counter()
    for number in range(_WARM + most):
        start = time.perf_counter()
        step(features, labels)
        if number >= _WARM:
            times.append(time.perf_counter() - start)
        if times and time.perf_counter() - begun > _LONGEST:
            break
    return times
