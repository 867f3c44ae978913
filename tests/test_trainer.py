"""Trainers against optimizers written out in NumPy, on a linear map under the squared error."""

import numpy as np
import pytest

from sherl import _core, _core_double

pytestmark = pytest.mark.core

CORES = pytest.mark.parametrize("core", [_core, _core_double], ids=["float32", "float64"])
SAMPLES, INPUTS, OUTPUTS = 6, 3, 2


class LinearFit:
    """A program of ``y = x W^T + b`` under the mean squared error, with data that is drawn from a seed."""

    def __init__(self, core, seed=0, inputs=INPUTS, outputs=OUTPUTS, frozen=None):
        self.real = np.dtype(core.REAL)
        self.inputs, self.outputs = inputs, outputs
        self.random = np.random.default_rng(seed)
        self.store = core.Parameters()
        graph = core.Graph(self.store, True)
        x = graph.input("x", core.SAMPLES, inputs)
        targets = graph.input("targets", core.SAMPLES, outputs)
        weights = graph.input("weights", core.SAMPLES, 1)
        if frozen is not None:
            x = graph.linear(x, graph.parameter("frozen", frozen.shape, "frozen", data=frozen))
        weight = graph.parameter("weight", (outputs, inputs), initializer="xavier_uniform")
        bias = graph.parameter("bias", (outputs,), initializer="normal")
        graph.loss(graph.squared_error(graph.linear(x, weight, bias), targets, weights))
        self.program = graph.compile(True)
        self.names = self.store.names("trainable")

    def batch(self, scale=1.0):
        """Inputs, targets and weights of a new batch; `scale` scales the loss."""
        x = self.random.standard_normal((SAMPLES, self.inputs)).astype(self.real)
        targets = self.random.standard_normal((SAMPLES, self.outputs)).astype(self.real)
        return x, targets, np.full((SAMPLES, 1), scale / SAMPLES, self.real)

    def weights(self):
        return {name: self.store.array(name).copy() for name in self.names}

    def set_weights(self, weights):
        for name, value in weights.items():
            self.store.array(name)[...] = value


def accumulate(trainer, batch):
    return trainer.accumulate(len(batch[0]), [None], [(rows, None) for rows in batch])


def loss_and_gradients(weights, batch):
    """The loss of a batch and its gradients, in float64."""
    x, targets, row_weights = (array.astype(np.float64) for array in batch)
    error = x @ weights["weight"].T + weights["bias"] - targets
    cotangent = 2 * row_weights * error / error.shape[1]
    gradients = {"weight": cotangent.T @ x, "bias": cotangent.sum(axis=0)}
    return float(np.sum(row_weights * np.mean(error**2, axis=1, keepdims=True))), gradients


class NumpyTrainer:
    """SGD with momentum, Adam and AdamW, clipped by the global norm, in float64; the settings are those of Trainer."""

    def __init__(self, weights, *, optimizer, learning_rate, weight_decay=0.0, momentum=0.0, beta1=0.9, beta2=0.999,
                 eps=1e-8, clip_norm=0.0, no_decay=()):  # fmt: skip
        self.weights = {name: value.astype(np.float64) for name, value in weights.items()}
        self.first = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self.second = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self.optimizer, self.learning_rate, self.weight_decay = optimizer, learning_rate, weight_decay
        self.momentum, self.beta1, self.beta2, self.eps = momentum, beta1, beta2, eps
        self.clip_norm, self.no_decay, self.steps = clip_norm, no_decay, 0

    def update(self, gradients):
        norm = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients.values()))
        scale = min(1, self.clip_norm / (norm + 1e-6)) if self.clip_norm else 1
        self.steps += 1
        for name, gradient in gradients.items():
            decay = 0 if name in self.no_decay else self.weight_decay
            if self.optimizer == "sgd":
                self._sgd(name, scale * gradient, decay)
            else:
                self._adam(name, scale * gradient, decay)
        return norm

    def _sgd(self, name, gradient, decay):
        gradient = gradient + decay * self.weights[name]
        self.first[name] = self.momentum * self.first[name] + gradient
        self.weights[name] = self.weights[name] - self.learning_rate * self.first[name]

    def _adam(self, name, gradient, decay):
        if self.optimizer == "adamw":
            self.weights[name] = self.weights[name] * (1 - self.learning_rate * decay)
        else:
            gradient = gradient + decay * self.weights[name]
        self.first[name] = self.beta1 * self.first[name] + (1 - self.beta1) * gradient
        self.second[name] = self.beta2 * self.second[name] + (1 - self.beta2) * gradient**2
        first = self.first[name] / (1 - self.beta1**self.steps)
        second = self.second[name] / (1 - self.beta2**self.steps)
        self.weights[name] = self.weights[name] - self.learning_rate * first / (np.sqrt(second) + self.eps)


SETTINGS = {
    "sgd": dict(optimizer="sgd", learning_rate=0.1),
    "momentum": dict(optimizer="sgd", learning_rate=0.05, momentum=0.9, weight_decay=0.1, no_decay=["bias"]),
    "adam": dict(optimizer="adam", learning_rate=0.03, weight_decay=0.2, beta1=0.8, beta2=0.95, eps=1e-6),
    "adamw": dict(optimizer="adamw", learning_rate=0.03, weight_decay=0.5, no_decay=["weight"]),
    "clipped sgd": dict(optimizer="sgd", learning_rate=0.3, momentum=0.5, clip_norm=0.7),
    "clipped adamw": dict(optimizer="adamw", learning_rate=0.03, weight_decay=0.5, clip_norm=0.7),
}


@CORES
@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_ten_steps_are_those_of_numpy(core, settings, batches):
    fit = LinearFit(core)
    trainer = core.Trainer(fit.program, **settings)
    twin = NumpyTrainer(fit.weights(), **settings)
    tolerance = 1e-4 if core is _core else 1e-11
    clipped = 0
    for step in range(10):
        waiting = dict.fromkeys(fit.names, 0.0)
        for _ in range(batches):
            batch = fit.batch(scale=0.5 + step % 3)
            loss, gradients = loss_and_gradients(twin.weights, batch)
            assert accumulate(trainer, batch) == pytest.approx(loss, rel=tolerance)
            waiting = {name: waiting[name] + gradients[name] for name in fit.names}
        norm = twin.update(waiting)
        assert trainer.update() == pytest.approx(norm, rel=tolerance)
        clipped += norm > settings.get("clip_norm", np.inf)
        for name in fit.names:
            np.testing.assert_allclose(fit.store.array(name), twin.weights[name], rtol=tolerance, atol=tolerance)
    assert trainer.steps == 10
    assert clipped > 0 or "clip_norm" not in settings


@CORES
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_resumed_trainer_takes_the_same_steps(core, settings):
    schedule = dict(schedule="cosine", warmup_steps=2, total_steps=8)
    straight, resumed = LinearFit(core, seed=4), LinearFit(core, seed=4)
    trainer = core.Trainer(straight.program, **settings, **schedule)
    batches = [straight.batch() for _ in range(6)]
    for step, batch in enumerate(batches):
        if step == 3:
            resumed.set_weights(straight.weights())
            other = core.Trainer(resumed.program, **settings, **schedule)
            other.steps = trainer.steps
            for number, name in ((n, name) for n in (0, 1) for name in straight.names):
                if trainer.moment(number, name) is not None:
                    other.moment(number, name)[...] = trainer.moment(number, name)
        accumulate(trainer, batch)
        trainer.update()
    for batch in batches[3:]:
        accumulate(other, batch)
        other.update()
    for name in straight.names:
        np.testing.assert_array_equal(straight.store.array(name), resumed.store.array(name))


@CORES
def test_threads_do_not_change_a_bit(core):
    results = []
    before = core.threads()
    try:
        for threads in (1, 2, 5):
            core.set_threads(threads)
            fit = LinearFit(core, seed=2, inputs=150, outputs=130)
            trainer = core.Trainer(fit.program, optimizer="adamw", learning_rate=0.01, clip_norm=0.1)
            for _ in range(3):
                accumulate(trainer, fit.batch())
                results.append(trainer.update())
            results.append(fit.weights())
    finally:
        core.set_threads(before)
    for other in (results[4:8], results[8:]):
        assert other[:3] == results[:3]
        for name in ("weight", "bias"):
            np.testing.assert_array_equal(other[3][name], results[3][name])


@CORES
def test_a_gradient_that_is_not_finite_changes_nothing(core):
    fit = LinearFit(core)
    trainer = core.Trainer(fit.program, optimizer="adamw", learning_rate=0.1, weight_decay=0.1)
    good = fit.batch()
    accumulate(trainer, good)
    trainer.update()
    # The squared error of these stays finite while its gradient does not.
    small, large = (1e-3, 1e21) if core is _core else (1e-10, 1e160)
    fit.set_weights({"weight": np.full((OUTPUTS, INPUTS), small), "bias": np.zeros(OUTPUTS)})
    bad = np.full((SAMPLES, INPUTS), large, fit.real), *fit.batch()[1:]
    before, moments = fit.weights(), [trainer.moment(number, "weight").copy() for number in (0, 1)]
    assert np.isfinite(accumulate(trainer, bad))
    with pytest.raises(FloatingPointError):
        trainer.update()
    assert trainer.steps == 1
    for name in fit.names:
        np.testing.assert_array_equal(fit.store.array(name), before[name])
    for number in (0, 1):
        np.testing.assert_array_equal(trainer.moment(number, "weight"), moments[number])
    accumulate(trainer, good)
    trainer.update()
    assert trainer.steps == 2


@CORES
def test_a_loss_that_is_not_finite_leaves_nothing_waiting(core):
    fit = LinearFit(core)
    trainer = core.Trainer(fit.program, optimizer="sgd", learning_rate=0.1)
    before = fit.weights()
    accumulate(trainer, fit.batch())
    x, targets, weights = fit.batch()
    targets[0, 0] = np.nan
    with pytest.raises(FloatingPointError):
        accumulate(trainer, (x, targets, weights))
    with pytest.raises(ValueError):
        trainer.update()
    for name in fit.names:
        np.testing.assert_array_equal(fit.store.array(name), before[name])


@CORES
def test_discarded_gradients_do_not_come_back(core):
    fit, twin = LinearFit(core, seed=1), LinearFit(core, seed=1)
    trainer, other = (core.Trainer(each.program, optimizer="sgd", learning_rate=0.1) for each in (fit, twin))
    dropped, kept = fit.batch(), fit.batch()
    accumulate(trainer, dropped)
    trainer.discard()
    with pytest.raises(ValueError):
        trainer.update()
    for each in (trainer, other):
        accumulate(each, kept)
    assert trainer.update() == other.update()


@CORES
def test_moments_are_those_of_the_optimizer(core):
    frozen = np.eye(INPUTS, dtype=core.REAL)
    fit = LinearFit(core, frozen=frozen)
    counts, nbytes = {}, {}
    for name, settings in SETTINGS.items():
        trainer = core.Trainer(fit.program, **settings)
        counts[name] = [trainer.moment(number, "weight") is not None for number in (0, 1)]
        nbytes[name] = trainer.nbytes
        assert trainer.moment(0, "frozen") is None
    assert counts["sgd"] == [False, False]
    assert counts["momentum"] == [True, False]
    assert counts["adam"] == counts["adamw"] == [True, True]
    elements = OUTPUTS * INPUTS + OUTPUTS
    for optimizer, moments in (("momentum", 1), ("adamw", 2)):
        assert nbytes[optimizer] - nbytes["sgd"] >= moments * elements * fit.real.itemsize
    trainer = core.Trainer(fit.program, **SETTINGS["adamw"])
    accumulate(trainer, fit.batch())
    trainer.update()
    assert trainer.moment(0, "weight").shape == (OUTPUTS, INPUTS)
    assert trainer.moment(1, "bias").shape == (OUTPUTS,)
    assert np.all(trainer.moment(1, "weight") > 0)
    np.testing.assert_array_equal(frozen, np.eye(INPUTS))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(learning_rate=-1.0),
        dict(learning_rate=np.nan),
        dict(weight_decay=np.inf),
        dict(beta1=1.0),
        dict(beta2=-0.5),
        dict(eps=0.0),
        dict(clip_norm=-1.0),
        dict(optimizer="sgd", momentum=1.0),
        dict(optimizer="newton"),
        dict(schedule="linear", warmup_steps=5, total_steps=5),
        dict(schedule="step", step_every=0),
        dict(schedule="square"),
        dict(no_decay=["no such parameter"]),
    ],
    ids=str,
)
def test_settings_outside_their_range_are_refused(wrong):
    fit = LinearFit(_core)
    with pytest.raises(ValueError):
        _core.Trainer(fit.program, **wrong)


@CORES
def test_two_trainers_share_one_run(core):
    both, apart = LinearFit(core), LinearFit(core)
    batch = both.batch()
    whole = core.Trainer(apart.program, learning_rate=0.1)
    accumulate(whole, batch)
    whole.update()
    trainers = [core.Trainer(both.program, learning_rate=0.1, parameters=[name]) for name in both.names]
    with pytest.raises(ValueError, match="no gradients yet"):
        trainers[0].adopt()
    both.program.gradient(SAMPLES, [None], [(rows, None) for rows in batch])
    for trainer, name in zip(trainers, both.names):
        trainer.adopt()
        assert trainer.update() == pytest.approx(np.linalg.norm(both.program.parameter_gradient(name)), rel=1e-6)
        assert trainer.nbytes < whole.nbytes
    for name in both.names:
        assert both.store.array(name).tobytes() == apart.store.array(name).tobytes()
    assert trainers[0].moment(0, both.names[1]) is None


def test_lanes_of_a_program_are_checked():
    program = LinearFit(_core).program
    program.lanes = 3
    assert program.lanes == 3
    assert not program.staged
    with pytest.raises(ValueError, match="lanes"):
        program.lanes = 0
