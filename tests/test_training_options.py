"""Factors of learning rate and weight decay by parameter, moving averages of weights, steps of two trainers at once."""

import numpy as np
import pytest
from binding_problem import Classification
from small import network, problem, same_bits

import sherl
from sherl import _core, _core_double
from sherl.command_line.arguments import factor

pytestmark = pytest.mark.core

CORES = pytest.mark.parametrize("core", [_core, _core_double], ids=["float32", "float64"])
FAST = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "progress": False}


def fitted(net=None, **settings):
    taps, labels, mask = problem()
    net = net or network(dropout=0.1)
    return net, net.fit(taps, labels, mask, **{**FAST, **settings})


# ---- Factors ----


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_factors_are_those_of_a_twin(optimizer, double_core):
    """Ten steps against plain NumPy on the network's own gradients."""
    taps, labels, mask = problem(10)
    settings = {"optimizer": optimizer, "learning_rate": 0.03, "weight_decay": 0.2, "clip_norm": 0.5}
    factors = {"learning_rate_factors": {"head.bias": 0.0, "head.*": 0.1}, "weight_decay_factors": {"early.up.*": 3.0}}
    net, twin = network(late=0), network(late=0)
    step = net.stepper(no_decay=["*bias"], **settings, **factors)
    weights = twin.state_dict()
    moments = {name: np.zeros((2, *value.shape)) for name, value in weights.items()}
    for number in range(1, 11):
        _, gradients = twin.loss_and_gradients(taps, labels, mask)
        norm = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients.values()))
        for name, gradient in gradients.items():
            rate = 0.03 * (0.0 if name == "head.bias" else 0.1 if name.startswith("head.") else 1.0)
            decay = 0.2 * (0.0 if name.endswith("bias") else 3.0 if name.startswith("early.up.") else 1.0)
            gradient = gradient * min(1, 0.5 / (norm + 1e-6))
            if optimizer == "adamw":
                weights[name] *= 1 - rate * decay
            else:
                gradient = gradient + decay * weights[name]
            if optimizer == "sgd":
                weights[name] -= rate * gradient
                continue
            moments[name][0] = 0.9 * moments[name][0] + 0.1 * gradient
            moments[name][1] = 0.999 * moments[name][1] + 0.001 * gradient**2
            first, second = moments[name][0] / (1 - 0.9**number), moments[name][1] / (1 - 0.999**number)
            weights[name] -= rate * first / (np.sqrt(second) + 1e-8)
        twin.load_state_dict(weights)
        step(taps, labels, mask)
        assert step.gradient_norm == pytest.approx(norm, rel=1e-6)
    for name, value in net.state_dict().items():
        assert np.allclose(value, weights[name], rtol=0, atol=1e-6), name
    assert same_bits(net.state_dict()["head.bias"], network(late=0).state_dict()["head.bias"])


def test_factors_of_one_change_no_bit():
    plain, _ = fitted()
    same, _ = fitted(learning_rate_factors={"*": 1.0}, weight_decay_factors={"head.*": 1})
    assert same_bits(plain.state_dict(), same.state_dict())


@CORES
def test_factors_of_the_trainer(core):
    small = Classification(core)
    trainer = core.Trainer(small.program, parameters=["head.weight"])
    trainer.set_factors("head.weight", learning_rate=0.5)
    for call in (lambda: trainer.set_factors("head.bias"), lambda: trainer.set_factors("head.weight", -1.0),
                 lambda: trainer.set_factors("head.weight", weight_decay=-2.0)):
        with pytest.raises(ValueError, match="must be trained here, and its factors 0 or more"):
            call()
    with pytest.raises(ValueError, match="no parameter named"):
        trainer.set_factors("nothing")


def test_bad_factors_and_averages_are_named():
    for settings, error, message in (
        ({"learning_rate_factors": {"tail.*": 0.1}}, ValueError, "'tail.\\*' fits none of them"),
        ({"learning_rate_factors": [0.1]}, TypeError,
         "learning_rate_factors must be a dictionary of numbers by pattern"),
        ({"weight_decay_factors": {"head.*": -1}}, ValueError,
         r"weight_decay_factors\['head.\*'\] must be 0.0 or more"),
        ({"ema": 1.0}, ValueError, "ema must be less than 1.0"),
    ):
        with pytest.raises(error, match=message):
            fitted(**settings)


# ---- Moving averages ----


def test_an_average_is_evaluated_and_kept():
    taps, labels, mask = problem()
    net, weights, averages = network(dropout=0.1), [], []

    class Watch(sherl.Callback):
        def on_step_end(self, state):
            weights.append(state.network.state_dict())

        def on_epoch_end(self, state):
            assert same_bits(state.network.state_dict(), weights[-1])  # steps go on from the weights themselves
            averages.append(state.metrics["validation_loss"])

    start = net.state_dict()
    _, history = fitted(net, ema=0.9, validation=(taps, labels, mask), callbacks=Watch())
    expected = start
    for index, state in enumerate(weights):
        expected = {name: np.float32(0.9) * value + np.float32(1 - 0.9) * state[name]
                    for name, value in expected.items()}
        if (index + 1) % 5 == 0:
            other = network()
            other.load_state_dict(expected)
            assert other.evaluate(taps, labels, mask)["loss"] == pytest.approx(averages[index // 5], rel=1e-6)
    assert same_bits(net.state_dict(), expected)
    plain, plain_history = fitted()
    assert history.step_losses == plain_history.step_losses
    assert same_bits(plain.state_dict(), weights[-1])


@pytest.mark.parametrize("restore_best", [False, True])
def test_an_average_has_the_same_bits_after_a_resume(tmp_path, restore_best):
    settings = {"ema": 0.8, "validation": problem(20, seed=1), "restore_best": restore_best,
                "learning_rate_factors": {"head.*": 0.5}}

    class Stop(sherl.Callback):
        def on_step_end(self, state):
            return state.step == 7

    whole, history = fitted(**settings)
    fitted(checkpoint=tmp_path, callbacks=Stop(), **settings)
    resumed, after = fitted(resume_from=tmp_path, **settings)
    assert same_bits(resumed.state_dict(), whole.state_dict())
    assert [{**entry, "seconds": 0} for entry in after.epochs] == [{**entry, "seconds": 0} for entry in history.epochs]
    with pytest.raises(ValueError, match="ema was 0.8 and is 0.7"):
        fitted(resume_from=tmp_path, **{**settings, "ema": 0.7})


def test_the_best_weights_are_those_of_the_average():
    held_out = problem(20, seed=1)
    net, history = fitted(ema=0.8, validation=held_out, restore_best=True, monitor="loss")
    assert net.evaluate(*held_out)["loss"] == pytest.approx(history.best["validation_loss"], rel=1e-6)


def test_a_stepper_keeps_its_average_aside():
    taps, labels, mask = problem(10)
    net = network()
    step = net.stepper(ema=0.5)
    assert network().stepper().average is None
    before = net.state_dict()
    step(taps, labels, mask)
    for name, value in net.state_dict().items():
        assert np.allclose(step.average.values[name], (before[name] + value) / 2, atol=1e-7)


@pytest.mark.parametrize("restore_best", [False, True])
def test_sweeps_give_the_bits_of_fit(restore_best):
    taps, labels, mask = problem()
    held_out = problem(20, seed=1)
    own = {"ema": 0.9, "learning_rate_factors": {"head.*": 0.1}, "weight_decay_factors": {"early.*": 2.0}}
    alone, history = fitted(validation=held_out, restore_best=restore_best, **own)
    result = sherl.sweep(taps, labels, {"a": {"network": network(dropout=0.1), **own}, "b": network()}, mask=mask,
                         validation=held_out, restore_best=restore_best, **FAST)
    assert same_bits(result.networks["a"].state_dict(), alone.state_dict())
    for entry, expected in zip(result.histories["a"].epochs, history.epochs, strict=True):
        assert {**entry, "seconds": 0} == {**expected, "seconds": 0}


def test_factors_of_the_command_line():
    assert factor("head.*=0.1") == ("head.*", 0.1)
    for wrong in ("head.*", "=1", "a=-1", "a=nan"):
        with pytest.raises(Exception, match="expected a pattern and a number"):
            factor(wrong)


# ---- Two trainers at once ----


@CORES
@pytest.mark.parametrize("clip_norm", [0.0, 0.01])
def test_trainers_step_together_by_their_common_norm(core, clip_norm):
    first, second = Classification(core), Classification(core)
    trainers = [core.Trainer(each.program, optimizer="sgd", learning_rate=1.0, clip_norm=clip_norm)
                for each in (first, second)]
    before = [each.states() for each in (first, second)]
    for number, (trainer, each) in enumerate(zip(trainers, (first, second))):
        trainer.accumulate(*each.batch(seed=number))
    gradients = [{name: each.program.parameter_gradient(name) for name in each.states()} for each in (first, second)]
    norm = np.sqrt(sum(np.sum(np.square(gradient, dtype=np.float64)) for each in gradients
                       for gradient in each.values()))
    assert trainers[0].update(trainers[1]) == pytest.approx(norm, rel=1e-5)
    scale = min(1, clip_norm / (norm + 1e-6)) if clip_norm else 1
    for each, state, gradient in zip((first, second), before, gradients):
        for name, value in each.states().items():
            assert np.allclose(value, state[name] - scale * gradient[name], atol=1e-6)
    assert [trainer.steps for trainer in trainers] == [1, 1]


@CORES
def test_trainers_step_together_or_not_at_all(core):
    first, second = Classification(core), Classification(core)
    trainers = [core.Trainer(each.program) for each in (first, second)]
    trainers[0].accumulate(*first.batch())
    with pytest.raises(ValueError, match="no gradient is waiting"):
        trainers[0].update(trainers[1])
    before = [each.states() for each in (first, second)]
    trainers[0].accumulate(*first.batch())
    trainers[1].accumulate(*second.batch(seed=1))
    second.program.release_workspace()
    with pytest.raises(ValueError, match="no gradient is waiting"):
        trainers[0].update(trainers[1])
    assert all(same_bits(each.states(), state) for each, state in zip((first, second), before))
    for other, error, message in ((3, TypeError, "other must be a Trainer of this module"),
                                  (trainers[0], ValueError, "other must train another program"),
                                  (core.Trainer(second.program, clip_norm=1.0), ValueError, "the same clip_norm")):
        with pytest.raises(error, match=message):
            trainers[0].update(other)
    with pytest.raises(ValueError, match="other must train another program"):
        trainers[0].update(trainers[1], core.Trainer(second.program))
    with pytest.raises(ValueError, match="at most 8 trainers"):
        trainers[0].update(*[trainers[1]] * 8)
