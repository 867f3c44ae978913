"""Learning rates over the steps, against their closed forms, and that updates use them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sherl import _core_double

pytestmark = pytest.mark.core

RATE = 0.3


def make_trainer(**settings):
    """A trainer of the map y = w x under the squared error, and w, which starts at 0."""
    store = _core_double.Parameters()
    graph = _core_double.Graph(store, True)
    x = graph.input("x", _core_double.SAMPLES, 1)
    targets = graph.input("targets", _core_double.SAMPLES, 1)
    weights = graph.input("weights", _core_double.SAMPLES, 1)
    weight = graph.parameter("weight", (1, 1))
    graph.loss(graph.squared_error(graph.linear(x, weight), targets, weights))
    trainer = _core_double.Trainer(graph.compile(True), optimizer="sgd", learning_rate=RATE, **settings)
    return trainer, store.array("weight")


def rates(steps, **settings):
    trainer, _ = make_trainer(**settings)
    return np.array([trainer.learning_rate(step) for step in range(steps)])


def closed_form(step, schedule, warmup, total, every, factor):
    if step < warmup:
        return RATE * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / (total - warmup)) if total else 0.0
    return RATE * {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": 0.5 + 0.5 * math.cos(math.pi * progress),
        "step": factor ** (step // every) if every else 1.0,
    }[schedule]


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "step"])
def test_rates_have_their_closed_form(schedule, warmup):
    total, every, factor = 20, 3, 0.7
    found = rates(25, schedule=schedule, warmup_steps=warmup, total_steps=total, step_every=every, step_factor=factor)
    expected = [closed_form(step, schedule, warmup, total, every, factor) for step in range(25)]
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-16)


def test_warmup_moves_at_once_and_ends_at_the_whole_rate():
    found = rates(5, schedule="constant", warmup_steps=4)
    np.testing.assert_allclose(found, RATE * np.array([0.25, 0.5, 0.75, 1, 1]), rtol=1e-14)


def test_cosine_is_half_way_in_the_middle():
    found = rates(11, schedule="cosine", total_steps=10)
    np.testing.assert_allclose(found[[0, 5, 10]], [RATE, RATE / 2, 0], atol=1e-16)


def test_rates_stay_zero_after_the_last_step():
    for schedule in ("linear", "cosine"):
        trainer, _ = make_trainer(schedule=schedule, total_steps=10)
        assert [trainer.learning_rate(step) for step in (10, 11, 10**15)] == [0, 0, 0]


@given(schedule=st.sampled_from(["linear", "cosine"]), warmup=st.integers(0, 50), rest=st.integers(1, 50))
def test_rates_rise_and_then_fall_within_bounds(schedule, warmup, rest):
    found = rates(warmup + rest + 1, schedule=schedule, warmup_steps=warmup, total_steps=warmup + rest)
    assert np.all((found >= 0) & (found <= RATE))
    assert np.all(np.diff(found[:warmup]) > 0)
    assert np.all(np.diff(found[warmup:]) < 0)
    assert found[warmup] == RATE and found[-1] == 0


def test_updates_use_the_rate_of_their_step():
    settings = dict(schedule="linear", warmup_steps=2, total_steps=6)
    trainer, weight = make_trainer(**settings)
    batch = [(np.array([[value]]), None) for value in (1.0, 1.0, 0.5)]
    expected = 0.0
    for step in range(6):
        trainer.accumulate(1, [None], batch)
        trainer.update()
        expected -= closed_form(step, "linear", 2, 6, 0, 0) * (expected - 1)
        assert weight[0, 0] == pytest.approx(expected, rel=1e-13)
    # A trainer that is set to a later step takes that step's rate.
    trainer.steps = 1
    trainer.accumulate(1, [None], batch)
    trainer.update()
    expected -= RATE * (expected - 1)
    assert weight[0, 0] == pytest.approx(expected, rel=1e-13)
