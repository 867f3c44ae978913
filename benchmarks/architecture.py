"""Networks other than the suite's own: what is compared on each, and its command line."""

import argparse
import dataclasses
import sys

from benchmarks import measure, step
from benchmarks.compare import Disagreement, compare, memories


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One network and its sides.

    Attributes
    ----------
    title : str
    problem : object
        Frozen dataclass of its sizes, ``described`` among its properties.
    build : type
        sherl's side.
    peers : dict of str to sides.Peer
    vanishing : tuple of str
        Patterns of parameters whose gradient is zero but for rounding.
    checked : dict
        Settings of the problem that take the place of its own where loss and gradients are held against the peers'.
    """

    title: str
    problem: object
    build: type
    peers: dict
    vanishing: tuple = ()
    checked: dict = dataclasses.field(default_factory=dict)

    def resized(self, **sizes):
        """The same network with other sizes."""
        return dataclasses.replace(self, problem=dataclasses.replace(self.problem, **sizes))

    @property
    def check_problem(self):
        """The problem on which sides must agree."""
        return dataclasses.replace(self.problem, **self.checked)

    def measured(self, repeats, memory_steps=3):
        """Outcome of the comparison, and bytes that the first steps take by side."""
        outcome = compare(self.problem, self.peers, repeats, build=self.build, vanishing=self.vanishing,
                          checked=self.check_problem)
        return outcome, memories(self.problem, self.build, self.peers, outcome.timings, memory_steps)


def command(architecture, module, arguments=None):
    """Run one comparison, its sizes from the command line, and print it."""
    problem = architecture.problem
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}",
                                     description=f"A training step of a side network, {architecture.title}, and the "
                                                 "memory that it takes: sherl against PyTorch.")
    for field in dataclasses.fields(problem):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=step.at_least(min(1, field.default)),
                            default=getattr(problem, field.name), metavar="N",
                            help=f"default {getattr(problem, field.name)}")
    parser.add_argument("--repeats", type=step.at_least(2), default=9, metavar="N", help="timed steps, default 9")
    sizes = vars(parser.parse_args(arguments))
    repeats = sizes.pop("repeats")
    architecture = architecture.resized(**sizes)
    print(measure.machine(["numpy", "torch", "sherl"]))
    print(architecture.problem.described)
    try:
        outcome, growths = architecture.measured(repeats)
    except Disagreement as error:
        sys.exit(f"error: {error}")
    step.report(outcome, growths)
