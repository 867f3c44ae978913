"""Losses of a user's own: agreement with built-in ones, gradients across the batch, memory, and what goes wrong."""

import signal
from pathlib import Path

import numpy as np
import pytest
from binding_problem import Classification
from small import FEATURES, mask_of, network, problem, same_bits, taps_of

import sherl
from sherl import _core, _core_double

pytestmark = pytest.mark.core

CORES = pytest.mark.parametrize("core", [_core, _core_double], ids=["float32", "float64"])
FAST = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "progress": False}
GUIDE = Path(__file__).parents[1] / "docs" / "how-to-custom-loss.md"


def cross_entropy(outputs, targets):
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    chances = shifted / shifted.sum(axis=1, keepdims=True)
    wanted = np.eye(outputs.shape[1])[targets]
    return -np.sum(wanted * np.log(chances)) / len(outputs), (chances - wanted) / len(outputs)


def squared_error(outputs, targets):
    error = outputs - targets[:, None]
    return np.mean(error**2), 2 * error / error.size


def fitted(loss=None, net=None, **settings):
    taps, labels, mask = problem()
    net = net or network(dropout=0.2)
    return net, net.fit(taps, labels, mask, loss=loss, **{**FAST, **settings})


def close(first, second, atol=1e-5):
    return all(np.allclose(value, second[name], atol=atol, rtol=0) for name, value in first.items())


# As built-in losses.


@pytest.mark.parametrize("settings", [{}, {"batch_size": 7, "accumulate": 3}], ids=["batch", "accumulated"])
def test_cross_entropy_as_the_built_in_one(settings):
    settings = {"optimizer": "sgd", "validation": problem(30, seed=1), "metrics": ["accuracy"], **settings}
    (own, history), (built_in, reference) = fitted(cross_entropy, **settings), fitted(**settings)
    assert close(own.state_dict(), built_in.state_dict(), 1e-6)
    assert np.allclose(history.step_losses, reference.step_losses, rtol=1e-5)
    for entry, expected in zip(history.epochs, reference.epochs):
        for name in ("loss", "validation_loss", "validation_accuracy"):
            assert entry[name] == pytest.approx(expected[name], rel=1e-5)


def test_squared_error_as_the_built_in_one():
    taps, _, mask = problem()
    values = taps[-1][:, 0, 0]
    nets = [network(head=sherl.Regressor(FEATURES, dropout=0.1), dropout=0.2) for _ in range(2)]
    for net, loss in zip(nets, (squared_error, None)):
        step = net.stepper(learning_rate=1e-3, loss=loss)
        losses = [step(taps, values, mask) for _ in range(6)]
    assert close(nets[0].state_dict(), nets[1].state_dict())
    assert not close(nets[0].state_dict(), network(head=sherl.Regressor(FEATURES)).state_dict(), 1e-4)
    assert losses[-1] < losses[0]


def test_a_batch_norm_takes_the_statistics_of_a_batch_once():
    nets = [network(guidance="residual_mlp") for _ in range(2)]
    for net, loss in zip(nets, (cross_entropy, None)):
        net.fit(*problem(), loss=loss, **{**FAST, "optimizer": "sgd", "accumulate": 2})
    assert close(nets[0].state_dict(), nets[1].state_dict())


@CORES
def test_accumulate_takes_cotangents(core):
    own, whole = Classification(core, loss=False), Classification(core)
    samples, offsets, inputs = whole.batch()
    outputs = np.empty((samples, 3), core.REAL)
    assert own.program.forward(samples, offsets, inputs[:1], [(outputs, None)], seed=3) is None
    cotangent = cross_entropy(outputs, whole.targets[:, 0])[1].astype(core.REAL)
    trainers = [core.Trainer(each.program, optimizer="sgd", learning_rate=1.0) for each in (own, whole)]
    assert trainers[0].accumulate(samples, offsets, inputs[:1], cotangents=[(cotangent, None)], seed=3) is None
    trainers[1].accumulate(samples, offsets, inputs, seed=3)
    norms = [trainer.update() for trainer in trainers]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert close(own.states(), whole.states(), 1e-6)
    with pytest.raises(ValueError, match="cotangents must be given, not None: the graph has no loss"):
        trainers[0].accumulate(samples, offsets, inputs[:1])
    with pytest.raises(ValueError, match="cotangents must be None: the graph has a loss"):
        trainers[1].accumulate(samples, offsets, inputs, cotangents=[(cotangent, None)])
    bad = np.full_like(cotangent, np.nan)
    before = own.states()
    with pytest.raises(FloatingPointError):
        trainers[0].accumulate(samples, offsets, inputs[:1], cotangents=[(bad, None)])
        trainers[0].update()
    assert same_bits(own.states(), before)


# Across the batch.


def test_contrastive_gradient_of_the_whole_network(double_core):
    loss, labels = sherl.losses.supervised_contrastive(0.3), np.array(list("abcabcabca"))
    taps, mask = taps_of(10), mask_of(10)
    net = network(head=sherl.Classifier(FEATURES, 5), dropout=0.2)
    weights = net.state_dict()

    def stepped(state):
        """Return the loss of a step of length 1 from a state; the network is behind the step then."""
        net.load_state_dict(state)
        return net.stepper(optimizer="sgd", learning_rate=1.0, weight_decay=0.0, loss=loss)(taps, labels, mask)

    assert stepped(weights) > 0.5
    after = net.state_dict()
    random, size = np.random.default_rng(0), 1e-5
    for name, value in weights.items():
        direction = random.standard_normal(value.shape)
        ends = [stepped({**weights, name: value + sign * size * direction}) for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * size)
        assert np.sum((value - after[name]) * direction) == pytest.approx(expected, rel=1e-5, abs=1e-8), name


LOSSES = {
    "contrastive": (sherl.losses.supervised_contrastive(0.2), [0, 1, 2, 0, 1, 0, 3]),
    "contrastive, nothing shared": (sherl.losses.supervised_contrastive(), [0, 1, 2, 3, 4, 5, 6]),
    "contrastive, one class": (sherl.losses.supervised_contrastive(), [4] * 7),
    "focal": (sherl.losses.focal(), [0, 1, 2, 3, 0, 1, 2]),
    "focal 0.5": (sherl.losses.focal(0.5), [0, 1, 2, 3, 0, 1, 2]),
    "focal 0": (sherl.losses.focal(0), [0, 1, 2, 3, 0, 1, 2]),
}


@pytest.mark.parametrize("case", LOSSES)
def test_ready_losses_against_finite_differences(case):
    loss, targets = LOSSES[case]
    outputs, targets = np.random.default_rng(1).standard_normal((7, 4)), np.array(targets)
    gradient, expected = loss(outputs, targets)[1], np.zeros_like(outputs)
    for place in np.ndindex(outputs.shape):
        ends = []
        for sign in (1, -1):
            moved = outputs.copy()
            moved[place] += sign * 1e-6
            ends.append(loss(moved, targets)[0])
        expected[place] = (ends[0] - ends[1]) / 2e-6
    assert np.allclose(gradient, expected, atol=1e-8)


def test_contrastive_is_equation_2():
    outputs, targets = np.random.default_rng(2).standard_normal((6, 3)), np.array([0, 1, 0, 1, 0, 2])
    z = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
    total = 0.0
    for i in range(6):
        others = [a for a in range(6) if a != i]
        positives = [p for p in others if targets[p] == targets[i]]
        divisor = sum(np.exp(z[i] @ z[a] / 0.1) for a in others)
        for p in positives:
            total -= np.log(np.exp(z[i] @ z[p] / 0.1) / divisor) / len(positives)
    assert sherl.losses.supervised_contrastive()(outputs, targets)[0] == pytest.approx(total / 6, rel=1e-12)


def test_contrastive_of_one_sample_and_of_zeros():
    loss = sherl.losses.supervised_contrastive()
    value, gradient = loss(np.ones((1, 3), np.float32), np.array([1]))
    assert value == 0 and not gradient.any()
    outputs = np.eye(3, dtype=np.float32)
    outputs[1] = 0
    value, gradient = loss(outputs, np.array([1, 1, 0]))
    assert np.isfinite(value) and np.isfinite(gradient).all() and not gradient[1].any()


def test_focal_where_classes_are_certain():
    outputs = np.array([[800.0, 0.0], [0.0, 40.0], [0.0, 800.0]], np.float32)
    for gamma in (0, 0.5, 1, 2):
        value, gradient = sherl.losses.focal(gamma)(outputs, np.array([0, 1, 0]))
        assert value == pytest.approx(800 / 3)
        assert np.allclose(gradient, [[0, 0], [0, 0], [-1 / 3, 1 / 3]], atol=1e-6)
    gradients = [loss(outputs[1:2], np.array([0]))[1] for loss in (sherl.losses.focal(0), cross_entropy)]
    assert np.allclose(*gradients)


def test_contrastive_training_gathers_classes():
    taps, labels, mask = problem(120)
    net = network(head=sherl.Classifier(FEATURES, 6))
    net.fit(taps, labels, mask, loss=sherl.losses.supervised_contrastive(), **{**FAST, "batch_size": 40, "epochs": 8})
    z = net.forward(taps, mask)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    same = labels[:, None] == labels
    assert np.mean((z @ z.T)[same]) > np.mean((z @ z.T)[~same]) + 0.5


@pytest.mark.parametrize("make", [
    lambda: sherl.losses.supervised_contrastive(0), lambda: sherl.losses.focal(-1),
    lambda: sherl.losses.supervised_contrastive()(np.zeros((3, 2)), np.zeros((3, 1), int)),
    lambda: sherl.losses.focal()(np.zeros((3, 2)), np.array([0, 1, 2])),
])  # fmt: skip
def test_ready_losses_check_what_they_take(make):
    with pytest.raises(ValueError, match="^(temperature|gamma|targets) must"):
        make()


# Promises.


def test_memory_does_not_grow_with_the_batch():
    net = network(late=2)
    program = net._programs.output_gradient(True, False)
    memory = [program.memory(samples, [None, np.arange(samples + 1) * 64]) for samples in (256, 4096)]
    for kind in ("arenas", "gradients"):
        assert memory[0][kind] == memory[1][kind]
    built_in = net._programs.loss_gradient(True).memory(4096, [None, np.arange(4097) * 64])
    assert memory[1]["arenas"] <= 1.02 * built_in["arenas"]
    taps, labels = taps_of(512, 16), np.arange(512) % 4
    step = network(late=2, head=sherl.Classifier(FEATURES, 4)).stepper(loss=sherl.losses.supervised_contrastive())
    step([tap[:256] for tap in taps], labels[:256])
    before = step.program.nbytes
    step(taps, labels)
    assert step.program.nbytes == before


def test_same_bits_on_any_number_of_threads(keep_threads):
    results = []
    for threads in (1, 2, 5):
        sherl.set_num_threads(threads)
        results.append(fitted(sherl.losses.supervised_contrastive(), batch_size=20)[0].state_dict())
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


def test_under_a_memory_budget():
    plan = network(dropout=0.2).memory_plan(batch_size=8, tokens=7)
    budget = (plan.parameters + plan.gradients + plan.optimizer + plan.workspace) // 2
    dev = problem(30, seed=1)
    bounded, _ = fitted(cross_entropy, memory_budget=budget, validation=dev)
    assert close(bounded.state_dict(), fitted(cross_entropy)[0].state_dict(), 1e-3)
    with pytest.raises(ValueError, match="memory_budget must be at least"):
        fitted(cross_entropy, memory_budget=1000)


def resumable(**settings):
    return {"accumulate": 2, "batch_size": 5, "validation": problem(30, seed=1), **settings}


def test_resumed_training_has_the_same_bits(tmp_path):
    whole, history = fitted(sherl.losses.focal(), **resumable())

    class Stop(sherl.Callback):
        def on_step_end(self, state):
            if state.step == 7:
                signal.raise_signal(signal.SIGINT)

    _, part = fitted(sherl.losses.focal(), **resumable(checkpoint=tmp_path, callbacks=[Stop()]))
    assert part.interrupted
    resumed, rest = fitted(sherl.losses.focal(), network(seed=9, dropout=0.2), **resumable(resume_from=tmp_path))
    assert same_bits(resumed.state_dict(), whole.state_dict())
    assert rest.step_losses == history.step_losses
    for loss in (None, cross_entropy, sherl.losses.focal(3)):
        with pytest.raises(ValueError, match=r"loss was \"sherl.losses.focal\(gamma=2.0\)\" and is"):
            fitted(loss, **resumable(resume_from=tmp_path, metrics=() if loss is None else None))


def test_labels_come_as_they_were_given():
    taps, labels, mask = problem()
    given = np.column_stack([np.arange(40), labels, labels]).reshape(40, 3, 1).astype(np.int16)[:, ::-1]
    seen = []

    def loss(outputs, targets):
        assert targets.dtype == np.int16 and targets.shape == (len(outputs), 3, 1) and outputs.dtype == np.float32
        seen.extend(targets[:, 2, 0])
        return cross_entropy(outputs, targets[:, 1, 0])

    net = network()
    history = net.fit(taps, given, mask, loss=loss, **FAST, validation=(taps, given, mask), restore_best=True)
    assert sorted(seen) == sorted(np.repeat(np.arange(40), 6))
    assert history.monitor == "validation_loss" and "validation_accuracy" not in history.epochs[0]
    other = network()
    other.fit(taps, labels, mask, loss=cross_entropy, **FAST)
    final = network()
    final.fit(taps, given, mask, loss=loss, **FAST)
    assert same_bits(other.state_dict(), final.state_dict())


def test_the_guide_runs():
    names = {}
    exec(compile(GUIDE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0], str(GUIDE), "exec"), names)
    assert names["history"].epochs[-1]["validation_pearson"] > 0.9
    assert names["embeddings"].shape == (96, 16)


# What goes wrong.


def gives(value, gradient=lambda outputs: np.zeros_like(outputs)):
    return lambda outputs, targets: (value, gradient(outputs))


WRONG = {
    "not a function": ("mse", TypeError, "loss must be a function .* got 'mse'"),
    "number alone": (lambda outputs, targets: 1.5, TypeError, r"must return a tuple \(loss, gradient\), got 1.5"),
    "three": (lambda outputs, targets: (1, 2, 3), TypeError, "must return a tuple .* got a tuple of 3"),
    "array": (gives(np.zeros(8)), TypeError, r"must return a number first, got an array of shape \(8,\)"),
    "text": (gives("1"), TypeError, "must return a number first, got '1'"),
    "shape": (
        gives(1.0, lambda outputs: outputs[:, 0]), ValueError,
        r"gradient of the outputs' shape \(8, 2\), got \(8,\)",
    ),
    "whole numbers": (gives(1.0, lambda outputs: outputs.astype(int)), TypeError, "floating-point .* dtype int64"),
    "none": (gives(1.0, lambda outputs: None), TypeError, "gradient of floating-point numbers, got dtype object"),
    "nan": (gives(np.nan), FloatingPointError, "step 1 .* loss returned nan, which is not finite"),
    "infinite gradient": (gives(1.0, lambda outputs: outputs / 0), FloatingPointError, "gradient that is not finite"),
    "too large": (
        gives(1.0, lambda outputs: outputs.astype(float) * 1e300), FloatingPointError, "gradient that is not finite",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_losses(case):
    loss, error, message = WRONG[case]
    net = network()
    before = net.state_dict()
    with pytest.raises(error, match=message):
        fitted(loss, net)
    assert same_bits(net.state_dict(), before)


def test_an_error_in_the_loss_leaves_the_last_whole_step():
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        if len(calls) == 8:
            raise LookupError("mine")
        return cross_entropy(outputs, targets)

    states = []

    class Keep(sherl.Callback):
        def on_step_end(self, state):
            states.append(state.network.state_dict())

    net = network(guidance="residual_mlp", dropout=0.2)
    with pytest.raises(LookupError, match="mine"):
        fitted(loss, net, accumulate=3, callbacks=[Keep()])
    assert len(states) == 2
    assert same_bits(net.state_dict(), states[-1])
    fitted(cross_entropy, net)


@pytest.mark.parametrize("labels, error, message", [
    (np.zeros(39), ValueError, r"labels must have shape \(40, ...\), one entry a sample, got \(39,\)"),
    (3, ValueError, r"labels must have shape \(40, ...\)"),
    ([{}] * 40, TypeError, "labels must be an array of numbers or text, got Python objects"),
    ([[1], [1, 2]] * 20, TypeError, "labels cannot be read as an array"),
])  # fmt: skip
def test_wrong_labels(labels, error, message):
    taps, _, mask = problem()
    with pytest.raises(error, match=message):
        network().fit(taps, labels, mask, loss=cross_entropy, **FAST)


def test_what_does_not_go_together():
    taps, labels, mask = problem()
    with pytest.raises(ValueError, match="sample_weight must be left out with loss"):
        fitted(cross_entropy, sample_weight=np.ones(40))
    with pytest.raises(ValueError, match="sample_weight must be left out with loss"):
        network().stepper(loss=cross_entropy)(taps, labels, mask, sample_weight=np.ones(40))
    with pytest.raises(TypeError, match="loss must be a function"):
        network().stepper(loss=1)
    with pytest.raises(TypeError, match="validation labels must be whole class numbers"):
        fitted(cross_entropy, validation=(taps, labels + 0.5, mask), metrics="accuracy")


def test_a_validation_loss_that_is_not_finite_is_reported():
    def loss(outputs, targets):
        value, gradient = cross_entropy(outputs, targets)
        return (np.nan if len(outputs) < 8 else value), gradient

    _, history = fitted(loss, validation=problem(30, seed=1))
    assert np.isnan(history.epochs[-1]["validation_loss"])
    assert history.best_epoch is None
