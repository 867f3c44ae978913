"""The main claims: what is aimed at, beside what a run measured."""

import dataclasses
import statistics

from benchmarks import sweeps
from benchmarks.compare import SHERL
from benchmarks.sides import BFLOAT16, FIRST_ROW

EAGER = "PyTorch"
SWEPT = 10  # networks of the sweep that an aim is set for


@dataclasses.dataclass(frozen=True)
class Aim:
    """One claim; ``measured`` is None where the run has no such case."""

    what: str
    limit: float
    at_least: bool
    measured: float | None
    note: str = ""

    @property
    def met(self):
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def titled(cases, title):
    """Outcome of the case of a title, or None."""
    return next((case.outcome for case in cases if case.title == title), None)


def ratio(outcome, peer, side=SHERL):
    """Time of a peer as multiples of a side's, or None."""
    if outcome is None or peer not in outcome.timings or side not in outcome.timings:
        return None
    return outcome.timings[peer].ratio(outcome.timings[side])


def fastest_peer(outcome, first_row):
    """Ratio of the fastest peer to sherl and its name; only those that compute all rows late, or only the others."""
    if outcome is None:
        return None, ""
    ratios = {name: ratio(outcome, name) for name in outcome.timings
              if name not in (SHERL, BFLOAT16) and name.endswith(FIRST_ROW) == first_row}
    name = min(ratios, key=ratios.get, default="")
    return ratios.get(name), name


def aims(results, model):
    """All of them, in the order of the page; ``model`` names the sizes."""
    first, mean = (titled(results.models, f"{model}, {head}") for head in ("first token", "mean"))
    step = f"step of {model} size, {{}}: {{}}".format
    made = [Aim(step("first token", "PyTorch eager / sherl"), 8, True, ratio(first, EAGER))]
    for first_row, form in ((False, "that computes all rows"), (True, "that computes the first row alone")):
        fastest, name = fastest_peer(first, first_row)
        made.append(Aim(step("first token", f"fastest peer {form} / sherl"), 5, True, fastest, name))
    made += [
        Aim(step("first token", "sherl / roofline"), 1.25, False, first and first.roofline),
        Aim(step("mean", "PyTorch eager / sherl"), 1.25, True, ratio(mean, EAGER)),
        Aim(step("mean", "sherl / roofline"), 1.12, False, mean and mean.roofline),
        Aim(step("mean", "PyTorch bfloat16 autocast / sherl bfloat16"), 1, True,
            ratio(mean, "PyTorch bfloat16", BFLOAT16)),
    ]
    for task in ("MRPC", "SST-2"):
        made.append(Aim(f"lengths of {task}, {model}, first token: PyTorch eager / sherl", 12, True,
                        ratio(titled(results.texts, f"{task}, {model}, first token"), EAGER)))
    return made + memory_aims(results.memory) + sweep_aims(results.sweeps)


def memory_aims(cases):
    least, most = cases[0], cases[-1]
    eager = least.growths.get(EAGER)
    return [
        Aim(f"peak memory, batch {least.problem.batch}: sherl / PyTorch eager", 0.1, False,
            eager and least.growths[SHERL] / eager),
        Aim(f"peak memory of sherl: batch {most.problem.batch} / batch {least.problem.batch}", 1.05, False,
            most.growths[SHERL] / least.growths[SHERL]),
    ]


def sweep_aims(cases):
    made = []
    for case in cases:
        swept = (sweeps.SWEEP, SWEPT) in case.timings
        made.append(Aim(f"{SWEPT} networks from text / one, lengths of {case.title}", 4, False,
                        statistics.median(sweeps.from_text(case.timings, SWEPT)) if swept else None))
    return made
