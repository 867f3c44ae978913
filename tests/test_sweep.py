"""Sweeps: bits as alone, failures that stay alone, the table, interrupts, bad arguments."""

import signal

import numpy as np
import pytest
from small import FEATURES, frozen_layer, network, problem, same_bits

import sherl

pytestmark = pytest.mark.core

FAST = {"epochs": 2, "batch_size": 8, "progress": False}


def trained_layer():
    return sherl.TransformerLayer(FEATURES, 4, intermediate=64, dropout=0.1, attention_dropout=0.1)


def makers(targets):
    """Return what makes the configurations: (network, settings) by name; networks of every kind of block."""
    numbers = np.random.default_rng(7).standard_normal(len(targets)).astype(np.float32)
    return {
        "plain": lambda: (network(), {}),
        "dropout": lambda: (network(dropout=0.2, seed=1), {"learning_rate": 1e-2}),
        "wide": lambda: (sherl.SideNetwork(sherl.MTSA(3, FEATURES, 24, dropout=0.1), [frozen_layer(0)],
                                           sherl.Classifier(FEATURES, 2, dropout=0.3), seed=2), {"optimizer": "sgd"}),
        "gated": lambda: (network(down="gated", dropout=0.1), {"clip_norm": 0.1}),
        "mean": lambda: (network(head=sherl.Classifier(FEATURES, 2, pool="mean", pooler=True)), {"warmup": 3}),
        "deep": lambda: (network(late=2, dropout=0.1), {"weight_decay": 0.1, "no_decay": ["early.*"]}),
        "shallow": lambda: (network(late=0, head=sherl.Classifier(FEATURES, 2, class_weights=[1, 3])), {}),
        "numbers": lambda: (network(head=sherl.Regressor(FEATURES, pool="mean", dropout=0.1)), {"labels": numbers}),
        "trained": lambda: (sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), [trained_layer()],
                                              sherl.Classifier(FEATURES, 2)), {"schedule": "constant"}),
    }


@pytest.fixture
def threads():
    before = sherl.get_num_threads()
    yield sherl.set_num_threads
    sherl.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_same_bits_as_alone(threads, count, dtype):
    threads(count)
    taps, labels, mask = problem(samples=44)
    taps = [tap.astype(dtype) for tap in taps]
    configurations, alone = {}, {}
    for name, make in makers(labels).items():
        net, settings = make()
        configurations[name] = {"network": net, **settings}
        net, settings = make()
        own = settings.pop("labels", labels)
        history = net.fit(taps, own, mask, seed=3, **FAST, **settings)
        alone[name] = net.state_dict(), history
    result = sherl.sweep(taps, labels, configurations, mask=mask, seed=3, **FAST)
    for name, (weights, history) in alone.items():
        assert same_bits(result.networks[name].state_dict(), weights), name
        assert result.histories[name].step_losses == history.step_losses, name
        assert result.histories[name].epochs[-1]["loss"] == history.epochs[-1]["loss"], name
        assert result.histories[name].epochs[0]["learning_rate"] == history.epochs[0]["learning_rate"], name
    assert result.best is None  # "numbers" has labels of its own


def test_lanes_and_stages_as_alone():
    """Networks whose own programs are cut otherwise go into programs of their own, and keep their bits."""
    features = 256
    rng = np.random.default_rng(0)
    taps = [rng.standard_normal((64, 16, features), dtype=np.float32) for _ in range(2)]
    labels = rng.integers(0, 2, 64)

    def make():
        big = sherl.TransformerLayer(features, 4, intermediate=1024)
        return {
            "small": sherl.SideNetwork(sherl.MTSA(2, features, 8), (), sherl.Classifier(features, 2)),
            "staged": sherl.SideNetwork(sherl.MTSA(2, features, 8), [big], sherl.Classifier(features, 2)),
            "mean": sherl.SideNetwork(sherl.MTSA(2, features, 8), (), sherl.Classifier(features, 2, pool="mean")),
        }

    settings = {"epochs": 1, "batch_size": 64, "progress": False}
    together, alone = make(), make()
    programs = {name: net._programs.loss_gradient(True) for name, net in alone.items()}
    assert len({(program.lanes, program.staged) for program in programs.values()}) > 1
    sherl.sweep(taps, labels, together, **settings)
    for name, net in alone.items():
        net.fit(taps, labels, **settings)
        assert same_bits(together[name].state_dict(), net.state_dict()), name


def test_divergence_stays_alone():
    taps, labels, mask = problem()
    calm, alone = network(), network()
    result = sherl.sweep(
        taps, labels,
        {"wild": {"network": network(seed=1), "learning_rate": 1e30, "clip_norm": None, "warmup": 0}, "calm": calm},
        mask=mask, **FAST,
    )
    alone.fit(taps, labels, mask, **FAST)
    assert same_bits(calm.state_dict(), alone.state_dict())
    assert result.histories["wild"].stopped == "not finite"
    assert len(result.histories["wild"].step_losses) < len(result.histories["calm"].step_losses)
    assert all(np.isfinite(value).all() for value in result.networks["wild"].state_dict().values())
    assert result.best is calm
    assert result.table[0]["stopped"] == "not finite"
    assert "not finite" in repr(result)


def test_ends_when_all_diverge():
    taps, labels, mask = problem()
    wild = {"network": network(), "learning_rate": 1e30, "clip_norm": None, "warmup": 0}
    result = sherl.sweep(taps, labels, {"wild": wild}, mask=mask, **FAST)
    assert result.best is None
    assert result.histories["wild"].stopped == "not finite"


def test_validation_and_best():
    taps, labels, mask = problem(samples=60)
    train, held = [tap[:40] for tap in taps], [tap[40:] for tap in taps]
    validation = held, labels[40:], mask[40:]
    slow, quick, alone = network(), network(), network()
    result = sherl.sweep(
        train, labels[:40], {"slow": {"network": slow, "learning_rate": 0.0}, "quick": quick}, mask=mask[:40],
        validation=validation, monitor="loss", restore_best=True, learning_rate=1e-2, **FAST,
    )
    history = alone.fit(train, labels[:40], mask[:40], validation=validation, monitor="loss", restore_best=True,
                        learning_rate=1e-2, **FAST)
    assert same_bits(quick.state_dict(), alone.state_dict())
    assert result.best_name == "quick"
    assert result.best is quick
    row = result.table[1]
    assert row["validation_loss"] == history.best["validation_loss"]
    assert row["epoch"] == history.best_epoch
    assert row["validation_accuracy"] == quick.evaluate(held, labels[40:], mask[40:])["accuracy"]
    lines = repr(result).splitlines()
    assert lines[0] == "SweepResult: 2 networks"
    assert lines[3].endswith("best")


def test_own_labels_need_own_validation_labels():
    taps, labels, mask = problem()
    own = {"network": network(), "labels": 1 - labels}
    with pytest.raises(ValueError, match="'a': labels of its own need validation_labels"):
        sherl.sweep(taps, labels, {"a": own}, mask=mask, validation=(taps, labels, mask), **FAST)
    result = sherl.sweep(taps, None, {"a": {**own, "validation_labels": 1 - labels}}, mask=mask,
                         validation=(taps, labels, mask), **FAST)
    assert result.table[0]["validation_accuracy"] == own["network"].evaluate(taps, 1 - labels, mask)["accuracy"]


def test_interrupt_keeps_weights(monkeypatch):
    taps, labels, mask = problem()
    former = sherl.training.sweep._Group.step

    def step(self, index, seed, number):
        former(self, index, seed, number)
        if number == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sherl.training.sweep._Group, "step", step)
    net = network()
    before = net.state_dict()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = sherl.sweep(taps, labels, {"a": net}, mask=mask, **FAST)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert result.histories["a"].interrupted
    assert len(result.histories["a"].step_losses) == 3
    assert not same_bits(net.state_dict(), before)


def test_grid():
    made = sherl.grid(lambda hidden: hidden, hidden=[8, 48], learning_rate=[1e-3, 1e-2])
    assert list(made) == ["hidden=8, learning_rate=0.001", "hidden=8, learning_rate=0.01",
                          "hidden=48, learning_rate=0.001", "hidden=48, learning_rate=0.01"]
    assert made["hidden=48, learning_rate=0.01"] == {"network": 48, "learning_rate": 1e-2}
    with pytest.raises(TypeError, match="hidden must be a sequence"):
        sherl.grid(lambda hidden: hidden, hidden=8)


@pytest.mark.parametrize(
    ("configurations", "settings", "error", "message"),
    [
        ({}, {}, TypeError, "configurations must be a dictionary"),
        ([1], {}, TypeError, "configurations must be a dictionary"),
        ({"a": 1}, {}, TypeError, "'a' must be a SideNetwork"),
        ({"a": {"learning_rate": 1}}, {}, TypeError, "'a' must be a SideNetwork"),
        ({"a": {"network": network(), "rate": 1}}, {}, TypeError, "'a' has no setting rate"),
        ({"a": network()}, {"rate": 1}, TypeError, "sweep has no setting rate"),
        ({"a": {"network": network(), "learning_rate": -1}}, {}, ValueError, "'a': learning_rate must be 0.0 or more"),
        ({"a": network(), "b": network(taps=2)}, {}, ValueError, "'b' must take taps of"),
        ({1: network(), "1": network()}, {}, ValueError, "differ as text"),
        ({"a": network(head=sherl.Classifier(FEATURES, 1, multi_label=True))}, {}, ValueError, "'a': labels must"),
        ({"a": {"network": network(), "validation_labels": [1]}}, {}, ValueError, "need validation"),
        ({"a": network()}, {"epochs": 0}, ValueError, "epochs must be 1 or more"),
        ({"a": network()}, {"monitor": "loss"}, ValueError, "need validation"),
        ({"a": network()}, {"validation": 3}, TypeError, "validation must be"),
    ],
)
def test_bad_arguments(configurations, settings, error, message):
    taps, labels, mask = problem()
    with pytest.raises(error, match=message):
        sherl.sweep(taps, labels, configurations, mask=mask, **{**FAST, **settings})


def test_one_network_twice():
    taps, labels, mask = problem()
    net = network()
    with pytest.raises(ValueError, match="'b' has the network of 'a'"):
        sherl.sweep(taps, labels, {"a": net, "b": net}, mask=mask, **FAST)
    with pytest.raises(ValueError, match="labels must be given"):
        sherl.sweep(taps, None, {"a": net}, mask=mask, **FAST)
