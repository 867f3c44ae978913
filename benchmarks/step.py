"""Time and peak memory of one training step of sherl and of its PyTorch peers: ``python -m benchmarks.step``."""

import argparse
import dataclasses
import sys

import numpy as np

from benchmarks import measure
from benchmarks.problem import HEAD_CHANNELS, Problem, draw

EPS = 1e-8
LEARNING_RATE = 1e-4
LOSS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3
MEMORY_STEPS = 3


class SherlSide:
    """The network in sherl."""

    def __init__(self, problem):
        import sherl

        sherl.set_num_threads(problem.threads)
        self.taps, self.labels, self.mask = problem.inputs()
        self.network = sherl.SideNetwork(
            early=sherl.MTSA(taps=problem.taps, features=problem.features, hidden=problem.hidden, down="layernorm",
                             guidance="token", up_norm="layernorm", eps=EPS),
            late=[sherl.TransformerLayer.from_bert(problem.layer_weights(), heads=problem.heads)],
            head=sherl.Classifier(features=problem.features, classes=problem.classes, pool=problem.head),
            seed=problem.seed)
        shapes = {name: value.shape for name, value in self.network.state_dict().items()}
        self.network.load_state_dict({name: draw(name, shape, problem.seed) for name, shape in shapes.items()})
        self.stepper = self.network.stepper(optimizer="adamw", learning_rate=LEARNING_RATE)

    def loss_and_gradients(self):
        loss, gradients = self.network.loss_and_gradients(self.taps, self.labels, mask=self.mask)
        return float(loss), gradients

    def step(self):
        return self.stepper(self.taps, self.labels, mask=self.mask)


class TorchSide:
    """The network in PyTorch; with ``needed_rows`` the late layer computes only the row that the head reads."""

    def __init__(self, problem, needed_rows=False):
        import torch

        from benchmarks import peer_torch

        torch.set_num_threads(problem.threads)
        taps, labels, mask = problem.inputs()
        self.taps, self.labels = [torch.from_numpy(tap) for tap in taps], torch.from_numpy(labels)
        self.mask = None if mask is None else torch.from_numpy(mask)
        weights = {name: torch.from_numpy(value) for name, value in problem.layer_weights().items()}
        self.network = peer_torch.SideNetwork(
            peer_torch.MTSA(problem.taps, problem.features, problem.hidden, up_norm="layernorm", eps=EPS),
            [peer_torch.TransformerLayer(weights, problem.heads)],
            peer_torch.Classifier(problem.features, problem.classes, pool=problem.head), needed_rows=needed_rows)
        self.network.load_trainable({name: draw(name, tuple(value.shape), problem.seed)
                                     for name, value in self.network.trainable().items()})
        self.stepper = self.network.stepper(LEARNING_RATE)

    def loss_and_gradients(self):
        loss, gradients = self.network.loss_and_gradients(self.taps, self.labels, self.mask)
        return loss.item(), {name: value.numpy() for name, value in gradients.items()}

    def step(self):
        return self.stepper(self.taps, self.labels, self.mask)


def peers(problem):
    """What sherl is compared with: a label, the side's class, and arguments after the problem."""
    chosen = {"PyTorch": (TorchSide,)}
    if problem.head == "first":
        chosen["PyTorch, first row"] = (TorchSide, True)
    return chosen


def agreement(actual, expected):
    """Relative errors of the loss and of all gradients as one vector, and the worst parameter with its error."""
    (loss, gradients), (expected_loss, expected_gradients) = actual, expected
    if gradients.keys() != expected_gradients.keys():
        unshared = sorted(gradients.keys() ^ expected_gradients.keys())
        raise ValueError(f"parameters differ: {unshared} are on one side only")
    differences = {name: np.linalg.norm(gradients[name] - value) for name, value in expected_gradients.items()}
    norms = {name: np.linalg.norm(value) for name, value in expected_gradients.items()}
    errors = {name: differences[name] / norms[name] for name in norms}
    worst = max(errors, key=errors.get)
    overall = np.linalg.norm(list(differences.values())) / np.linalg.norm(list(norms.values()))
    return abs(loss - expected_loss) / abs(expected_loss), overall, worst, errors[worst]


def require_agreement(sides):
    """Print how far sherl's loss and gradients are from those of each peer; end the run where that is too far."""
    reference = sides["sherl"].call("loss_and_gradients")
    for name, side in sides.items():
        if name == "sherl":
            continue
        loss, gradient, worst, worst_error = agreement(reference, side.call("loss_and_gradients"))
        print(f"agreement with {name}: loss {loss:.1e}, gradients {gradient:.1e}, worst {worst} {worst_error:.1e}")
        # Comparisons are written so that a NaN fails.
        if not (loss <= LOSS_TOLERANCE and gradient <= GRADIENT_TOLERANCE and worst_error <= GRADIENT_TOLERANCE):
            sys.exit(f"error: sherl and {name} disagree: the limit is {LOSS_TOLERANCE:.0e} for the loss and "
                     f"{GRADIENT_TOLERANCE:.0e} for gradients")


def memory(build, problem, arguments):
    """Bytes that the first steps of a side take at their peak above its inputs and weights."""
    with measure.Side(build, problem, *arguments) as side:
        return side.growth(MEMORY_STEPS)


def report(timings, growths):
    """Print a line a side, then each peer as multiples of sherl."""
    width = max(map(len, timings)) + len(" / sherl")
    print(f"\n{'':{width}}  {'median':>10}  {'minimum':>10}  {'spread':>10}  {'memory':>12}")
    for name, timing in timings.items():
        print(f"{name:{width}}  {1e3 * timing.median:7.1f} ms  {1e3 * timing.minimum:7.1f} ms"
              f"  {1e3 * timing.spread:7.1f} ms  {growths[name] / 2**20:8.1f} MiB")
    for name, timing in timings.items():
        if name == "sherl":
            continue
        mine = timings["sherl"]
        print(f"{name + ' / sherl':{width}}  {timing.ratio(mine):8.2f} x  {timing.minimum / mine.minimum:8.2f} x"
              f"  {'':10}  {growths[name] / max(growths['sherl'], 1):10.2f} x")


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
    parser.add_argument("--lengths", choices=("full", "mrpc-like"), default=default.lengths,
                        help="every sample at --tokens, or lengths as those of MRPC, padded to the longest")
    least = {"batch": 1, "tokens": 1, "features": HEAD_CHANNELS, "taps": 2, "hidden": 1, "threads": 1}
    for name, smallest in least.items():
        value = getattr(default, name)
        parser.add_argument(f"--{name}", type=at_least(smallest), default=value, metavar="N", help=f"default {value}")
    parser.add_argument("--repeats", type=at_least(2), default=15, metavar="N", help="timed steps, default 15")
    options = vars(parser.parse_args(arguments))
    if options["features"] % HEAD_CHANNELS:
        parser.error(f"--features must be a multiple of {HEAD_CHANNELS}, got {options['features']}")
    repeats = options.pop("repeats")
    return Problem(**options), repeats


def main(arguments=None):
    problem, repeats = parse_arguments(arguments)
    builders = {"sherl": (SherlSide,), **peers(problem)}
    print(measure.machine(["numpy", "torch", "sherl"]))
    lengths = problem.sample_lengths()
    print(", ".join(f"{name} {value}" for name, value in dataclasses.asdict(problem).items()))
    print(f"rows {lengths.sum()} of {problem.batch * lengths.max()} with padding")
    sides = {}
    try:
        for name, (build, *rest) in builders.items():
            sides[name] = measure.Side(build, problem, *rest)
        require_agreement(sides)
        timings = measure.paired(sides, repeats)
    finally:
        for side in sides.values():
            side.close()
    report(timings, {name: memory(build, problem, rest) for name, (build, *rest) in builders.items()})


if __name__ == "__main__":
    main()
