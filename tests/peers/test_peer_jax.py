"""The JAX peer against the PyTorch peer, and its AdamW steps."""

import dataclasses

import numpy as np
import pytest
from benchmarks import compare, sides
from benchmarks.problem import Problem

PROBLEM = Problem(batch=3, tokens=7, features=64, taps=4, hidden=8)


@pytest.mark.parametrize("head, needed_rows", [("first", False), ("first", True), ("mean", False)])
@pytest.mark.parametrize("lengths", [(), (7, 2, 4)])
def test_gradients_match_the_torch_peer(head, needed_rows, lengths):
    problem = dataclasses.replace(PROBLEM, head=head, lengths=lengths)
    found = compare.agreement(sides.Jax(problem, needed_rows).loss_and_gradients(),
                              sides.Torch(problem).loss_and_gradients())
    loss, overall, worst, worst_error = found
    assert loss < 1e-5 and overall < 1e-4, (worst, worst_error)


def test_steps_match_the_torch_peer():
    jax_side, torch_side = sides.Jax(PROBLEM), sides.Torch(PROBLEM)
    losses = [(jax_side.step(), torch_side.step()) for _ in range(5)]
    np.testing.assert_allclose(*zip(*losses), rtol=1e-4)
