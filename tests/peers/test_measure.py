"""The measuring tools of the benchmarks: timing in turn, growth of memory, failures of a side, agreement."""

import time

import numpy as np
import pytest

from benchmarks import measure, step
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
    loss, overall, worst, worst_error = step.agreement((1.1, actual), (1.0, expected))
    assert (round(loss, 9), worst, round(worst_error, 9)) == (0.1, "b", 0.2)
    assert overall == pytest.approx(0.1 / np.hypot(5, 0.5))
    with pytest.raises(ValueError, match="'b'"):
        step.agreement((1.0, {"a": actual["a"]}), (1.0, expected))


def test_lengths_like_mrpc():
    lengths = Problem(batch=4000, lengths="mrpc-like").sample_lengths()
    assert lengths.min() >= 19 and lengths.max() <= 100
    assert abs(lengths.mean() - 50.1) < 1
    taps, labels, mask = Problem(batch=5, taps=2, features=64, lengths="mrpc-like").inputs()
    assert taps[0].shape == (5, mask.shape[1], 64) and labels.shape == (5,) and mask.any(axis=0).all()
