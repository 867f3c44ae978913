"""Time and peak memory of one training step of sherl and of its PyTorch peers: ``python -m benchmarks.step``."""

import argparse
import dataclasses
import sys

from benchmarks import lengths, measure
from benchmarks.compare import SHERL, Disagreement, compare, memories
from benchmarks.problem import HEAD_CHANNELS, Problem
from benchmarks.sides import Sherl, eager, everyone


def report(outcome, growths):
    """Print how far the peers agree, a line a side, then each peer as multiples of sherl."""
    for name, (loss, gradient, worst, worst_error) in outcome.agreements.items():
        print(f"agreement with {name}: loss {loss:.1e}, gradients {gradient:.1e}, worst {worst} {worst_error:.1e}")
    for name, reason in outcome.unmeasured.items():
        print(f"not measured: {name}: {reason}")
    timings = outcome.timings
    width = max(map(len, timings)) + len(" / sherl")
    print(f"\n{'':{width}}  {'median':>10}  {'minimum':>10}  {'spread':>10}  {'memory':>12}")
    for name, timing in timings.items():
        print(f"{name:{width}}  {1e3 * timing.median:7.1f} ms  {1e3 * timing.minimum:7.1f} ms"
              f"  {1e3 * timing.spread:7.1f} ms  {growths[name] / 2**20:8.1f} MiB")
    for name, timing in timings.items():
        if name == SHERL:
            continue
        mine = timings[SHERL]
        print(f"{name + ' / sherl':{width}}  {timing.ratio(mine):8.2f} x  {timing.minimum / mine.minimum:8.2f} x"
              f"  {'':10}  {growths[name] / max(growths[SHERL], 1):10.2f} x")


def at_least(least):
    """Parser of a whole number no smaller than ``least``."""
    def parse(text):
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected {least} or more, got {value}")
        return value

    parse.__name__ = "whole number"
    return parse


def parse_arguments(arguments):
    default = Problem()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.replace("``", ""))
    parser.add_argument("--head", choices=("first", "mean"), default=default.head, help="rows that the head reads")
    parser.add_argument("--lengths", choices=("full", *lengths.TASKS), default="full",
                        help="every sample at --tokens, or lengths as those of the task, padded to the longest")
    parser.add_argument("--peers", choices=("eager", "all"), default="eager",
                        help="PyTorch eager, or also compiled, in bfloat16, and JAX")
    least = {"batch": 1, "tokens": 1, "features": HEAD_CHANNELS, "taps": 2, "hidden": 1, "threads": 1}
    for name, smallest in least.items():
        value = getattr(default, name)
        parser.add_argument(f"--{name}", type=at_least(smallest), default=value, metavar="N", help=f"default {value}")
    parser.add_argument("--repeats", type=at_least(2), default=15, metavar="N", help="timed steps, default 15")
    options = vars(parser.parse_args(arguments))
    if options["features"] % HEAD_CHANNELS:
        parser.error(f"--features must be a multiple of {HEAD_CHANNELS}, got {options['features']}")
    repeats, task, peers = options.pop("repeats"), options.pop("lengths"), options.pop("peers")
    if task != "full":
        options["lengths"] = lengths.drawn(lengths.shipped()[task], options["batch"])
    return Problem(**options), everyone if peers == "all" else eager, repeats


def main(arguments=None):
    problem, choose, repeats = parse_arguments(arguments)
    peers = choose(problem)
    print(measure.machine(["numpy", "torch", "sherl"]))
    sizes = problem.sample_lengths()
    print(", ".join(f"{name} {value}" for name, value in dataclasses.asdict(problem).items() if name != "lengths"))
    print(f"rows {sizes.sum()} of {problem.batch * sizes.max()} with padding")
    try:
        outcome = compare(problem, peers, repeats)
    except Disagreement as error:
        sys.exit(f"error: {error}")
    report(outcome, memories(problem, Sherl, peers, outcome.timings))


if __name__ == "__main__":
    main()
