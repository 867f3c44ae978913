"""The counts of operations that the benchmarks relate times to."""

import dataclasses

from benchmarks import flops
from benchmarks.problem import Problem

PROBLEM = Problem(batch=2, tokens=5, features=64, taps=3, hidden=8, classes=2)


def test_counts_of_a_step_by_hand():
    down, up = 2 * 3 * (2 * 10 * 64 * 8), 3 * (2 * 10 * 8 * 64)
    guidance = 3 * (2 * 20 * 8 * 2) + 6 * (2 * 10 * 2 * 8)
    head = 3 * (2 * 2 * 64 * 2)
    maps = 2 * (2 * 12 * 64 * 64)  # forward and backward of one row
    first = flops.step(PROBLEM)
    assert first == down + up + guidance + head + 2 * maps + 6 * (2 * 10 * 64 * 1)
    mean = flops.step(dataclasses.replace(PROBLEM, head="mean"))
    assert mean == down + up + guidance + head + 10 * maps + 2 * 6 * (2 * 5 * 64 * 5)


def test_padding_is_not_counted():
    assert flops.step(dataclasses.replace(PROBLEM, lengths=(5, 5))) == flops.step(PROBLEM)
    assert flops.step(dataclasses.replace(PROBLEM, lengths=(5, 1))) < flops.step(PROBLEM)
