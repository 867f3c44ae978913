"""The measuring tools of the benchmarks: timing in turn, growth of memory, failures of a side, agreement, lengths."""

import dataclasses
import time

import numpy as np
import pytest
from benchmarks import compare, lengths, measure, sides
from benchmarks.problem import Problem

MEBIBYTE = 2**20


class Sleeper:
    """A side whose step takes a known time and a known amount of memory for a while."""

    def __init__(self, seconds, mebibytes):
        self.duration, self.mebibytes = seconds, mebibytes
        self.kept = np.ones(32 * MEBIBYTE, np.uint8)

    def step(self):
        passing = np.ones(self.mebibytes * MEBIBYTE, np.uint8)
        time.sleep(self.duration)
        return int(passing[-1])

    def fail(self):
        raise KeyError("no such tap")


def test_growth_counts_what_a_step_takes_and_frees():
    with measure.Side(Sleeper, 0.0, 48) as side:
        grown = side.growth(2) / MEBIBYTE
    assert 46 < grown < 60


def test_paired_times_and_ratio():
    with measure.Side(Sleeper, 0.01, 1) as short, measure.Side(Sleeper, 0.04, 1) as long:
        timings = measure.paired({"short": short, "long": long}, 4)
    assert len(timings["short"].rounds) == 4
    assert timings["short"].minimum >= 0.01 and timings["long"].minimum >= 0.04
    assert timings["long"].ratio(timings["short"]) > 1


def test_summary_of_rounds():
    timing = measure.Timing((4.0, 1.0, 2.0, 3.0, 5.0))
    assert (timing.median, timing.minimum, timing.spread) == (3.0, 1.0, 2.0)
    assert timing.ratio(measure.Timing((2.0, 1.0, 1.0, 1.0, 1.0))) == 2.0


def test_failure_of_a_side_reaches_the_caller():
    with measure.Side(Sleeper, 0.0, 1) as side, pytest.raises(measure.SideError, match="no such tap"):
        side.call("fail")
    with pytest.raises(measure.SideError, match="positional argument"):
        measure.Side(Sleeper)


def test_agreement_names_the_worst_parameter():
    expected = {"a": np.array([3.0, 4.0]), "b": np.array([0.5])}
    actual = {"a": np.array([3.0, 4.0]), "b": np.array([0.6])}
    loss, overall, worst, worst_error = compare.agreement((1.1, actual), (1.0, expected))
    assert (round(loss, 9), worst, round(worst_error, 9)) == (0.1, "b", 0.2)
    assert overall == pytest.approx(0.1 / np.hypot(5, 0.5))
    with pytest.raises(ValueError, match="'b'"):
        compare.agreement((1.0, {"a": actual["a"]}), (1.0, expected))


def test_lengths_follow_the_table():
    counts = lengths.shipped()
    assert counts.keys() == lengths.TASKS.keys()
    for table in counts.values():
        drawn = lengths.drawn(table, 4000)
        mean = sum(length * times for length, times in table.items()) / sum(table.values())
        assert set(drawn) <= table.keys() and abs(np.mean(drawn) / mean - 1) < 0.05
    problem = Problem(batch=5, taps=2, features=64, lengths=lengths.drawn(counts["mrpc"], 5))
    taps, labels, mask = problem.inputs()
    assert taps[0].shape == (5, mask.shape[1], 64) and labels.shape == (5,) and mask.any(axis=0).all()
    assert tuple(mask.sum(axis=1)) == problem.lengths
    with pytest.raises(ValueError, match="lengths must have 6"):
        Problem(batch=6, lengths=problem.lengths).inputs()


class Unusable:
    """A peer whose package is missing."""

    def __init__(self, problem):
        import no_such_package_of_a_peer  # noqa: F401


SMALL = Problem(batch=3, tokens=7, features=64, taps=3, hidden=8)


@pytest.mark.parametrize("head", ["first", "mean"])
def test_comparison_leaves_out_what_cannot_start_and_says_why(head):
    problem = dataclasses.replace(SMALL, head=head, lengths=(7, 2, 4))
    peers = sides.eager(problem) | {"missing": sides.Peer(Unusable)}
    outcome = compare.compare(problem, peers, 2, rate=True)
    assert outcome.timings.keys() == {"sherl", *sides.eager(problem)}
    assert "no_such_package_of_a_peer" in outcome.unmeasured["missing"]
    assert outcome.share > 0


def test_disagreement_is_an_error():
    with pytest.raises(compare.Disagreement, match="sherl and half disagree"):
        compare.require_agreement("half", sides.Peer(Unusable), (1e-6, 1e-6, "gate", 0.5))
    with pytest.raises(compare.Disagreement):
        compare.require_agreement("nan", sides.Peer(Unusable), (float("nan"), 1e-6, "gate", 1e-6))


def test_bfloat16_peer_is_near():
    network = sides.Torch(SMALL)
    loss, gradients = network.loss_and_gradients()
    near_loss, near = sides.Torch(SMALL, autocast=True).loss_and_gradients()
    differs, overall, _, _ = compare.agreement((near_loss, near), (loss, gradients))
    assert differs < 0.05 and 1e-5 < overall < 0.2


def test_machine_names_variables_that_change_speed(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert "OPENBLAS_CORETYPE=Haswell" in measure.machine()
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    assert "OPENBLAS_CORETYPE" not in measure.machine()
