"""One comparison: build the sides, hold sherl's loss and gradients against each peer's, then time them in turn."""

import contextlib
import dataclasses
import fnmatch
import statistics

import numpy as np

from benchmarks import flops, measure
from benchmarks.sides import Products, Sherl, products_blas

SHERL = "sherl"


class Disagreement(RuntimeError):
    """Loss or gradients of sherl and of a peer are further apart than the peer's tolerances."""


@dataclasses.dataclass
class Outcome:
    """What one comparison gave.

    Attributes
    ----------
    timings : dict of str to measure.Timing
        Of sherl and of each peer that was measured.
    agreements : dict of str to tuple
        For each peer what `agreement` returns.
    unmeasured : dict of str to str
        Why, for each peer that could not be measured.
    share : float or None
        Operations needed over those that matrix products would have done in the same time, where that was asked for.
    """

    timings: dict
    agreements: dict
    unmeasured: dict
    share: float | None = None

    @property
    def roofline(self):
        """Sherl's time as multiples of what the needed operations would take at the rate of matrix products."""
        return 1 / self.share


def agreement(actual, expected, vanishing=()):
    """Relative errors of the loss and of all gradients as one vector, and the worst parameter with its error.

    The gradient of parameters whose names match a pattern of `vanishing` is zero but for rounding: their errors are
    relative to the norm of all.
    """
    (loss, gradients), (expected_loss, expected_gradients) = actual, expected
    if gradients.keys() != expected_gradients.keys():
        unshared = sorted(gradients.keys() ^ expected_gradients.keys())
        raise ValueError(f"parameters differ: {unshared} are on one side only")
    differences = {name: np.linalg.norm(gradients[name].ravel() - value.ravel())  # a 1x1 convolution has more axes
                   for name, value in expected_gradients.items()}
    norms = {name: np.linalg.norm(value) for name, value in expected_gradients.items()}
    whole = np.linalg.norm(list(norms.values()))
    errors = {name: differences[name] / (whole if matches(name, vanishing) else norms[name]) for name in norms}
    worst = max(errors, key=errors.get)
    overall = np.linalg.norm(list(differences.values())) / whole
    return abs(loss - expected_loss) / abs(expected_loss), overall, worst, errors[worst]


def matches(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def require_agreement(name, peer, found):
    """Raise where what `agreement` found is beyond a peer's tolerances."""
    loss, gradient, worst, worst_error = found
    # Comparisons are written so that a NaN fails.
    if not (loss <= peer.loss_tolerance and gradient <= peer.gradient_tolerance
            and worst_error <= peer.worst_tolerance):
        raise Disagreement(
            f"sherl and {name} disagree: loss {loss:.1e} (limit {peer.loss_tolerance:.0e}), gradients {gradient:.1e} "
            f"(limit {peer.gradient_tolerance:.0e}), {worst} {worst_error:.1e} (limit {peer.worst_tolerance:.0e})")


def compare(problem, peers, repeats, rate=False, build=Sherl, vanishing=(), checked=None):
    """Compare sherl with peers on one problem.

    Parameters
    ----------
    problem : Problem or other dataclass of sizes
    peers : dict of str to sides.Peer
        A peer that fails to start, for want of a package say, is left out and its reason kept.
    repeats : int
    rate : bool
        Whether to time matrix products in turn with the sides, and relate sherl's step to them; of a `Problem` only.
    build : type
        sherl's side.
    vanishing : tuple of str
        As for `agreement`.
    checked : Problem or other dataclass of sizes, optional
        On which loss and gradients must agree, where it is not the one that is timed.

    Returns
    -------
    Outcome

    Raises
    ------
    Disagreement
    measure.SideError
        Where sherl itself fails.
    """
    with contextlib.ExitStack() as stack:
        sides = {SHERL: stack.enter_context(measure.Side(build, problem))}
        apart = None if checked is None or checked == problem else checked
        reference = gradients_of(sides[SHERL], apart, build)
        agreements, unmeasured = {}, {}
        for name, peer in peers.items():
            try:
                side = stack.enter_context(measure.Side(peer.build, problem, *peer.arguments))
                gradients = gradients_of(side, apart, peer.build, peer.arguments)
            except measure.SideError as error:
                unmeasured[name] = str(error).strip().splitlines()[-1]
                continue
            agreements[name] = agreement(reference, gradients, vanishing)
            require_agreement(name, peer, agreements[name])
            sides[name] = side
        if not rate:
            return Outcome(measure.paired(sides, repeats), agreements, unmeasured)
        with products_blas():
            products = stack.enter_context(measure.Side(Products, problem))
        timings = measure.paired(sides | {"products": products}, repeats)
        operations, step = products.call("operations"), flops.step(problem)
        shares = [step / mine * theirs / operations
                  for mine, theirs in zip(timings[SHERL].rounds, timings.pop("products").rounds)]
        return Outcome(timings, agreements, unmeasured, statistics.median(shares))


def gradients_of(side, apart, build, arguments=()):
    """Loss and gradients of a side, or, where the problem for them is one apart, of a side that is made for it."""
    if apart is None:
        return side.call("loss_and_gradients")
    with measure.Side(build, apart, *arguments) as other:
        return other.call("loss_and_gradients")


def memory(build, problem, arguments=(), steps=3):
    """Bytes that the first steps of a side take at their peak above its inputs and weights."""
    with measure.Side(build, problem, *arguments) as side:
        return side.growth(steps)


def memories(problem, build, peers, names, steps=3):
    """What `memory` gives, by side, for those of some names: sherl's, made by ``build``, and peers."""
    builders = {SHERL: (build, ())} | {name: (peer.build, peer.arguments) for name, peer in peers.items()}
    return {name: memory(builders[name][0], problem, builders[name][1], steps) for name in names}
