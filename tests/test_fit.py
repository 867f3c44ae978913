"""fit: learning, determinism, validation, early stopping, callbacks, interrupts, checkpoints, failures."""

import builtins
import math
import signal
import threading

import numpy as np
import pytest
from small import FEATURES, network, problem, same_bits

import sherl
from sherl import _core

pytestmark = pytest.mark.core

FAST = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "progress": False}


def fitted(data=None, net=None, **settings):
    taps, labels, mask = data or problem()
    net = net or network()
    history = net.fit(taps, labels, mask, **{**FAST, **settings})
    return net, history


def course(history):
    """Return a history without times."""
    values = history.to_dict()
    for entry in values["epochs"]:
        del entry["seconds"]
    return values


class Recorder(sherl.Callback):
    """Notes every call; may do something at the end of a step."""

    def __init__(self, action=None):
        self.calls, self.action = [], action

    def on_fit_begin(self, state):
        self.calls.append("fit_begin")

    def on_epoch_begin(self, state):
        self.calls.append(f"epoch_begin {state.epoch}")

    def on_step_end(self, state):
        self.calls.append(f"step_end {state.step}")
        return self.action(state) if self.action else None

    def on_epoch_end(self, state):
        self.calls.append(f"epoch_end {state.metrics['epoch']}")

    def on_fit_end(self, state):
        self.calls.append("fit_end")


def at_step(number, action):
    return Recorder(lambda state: action() if state.step == number else None)


def test_learns_what_decides_the_labels():
    data, dev = problem(200), problem(60, seed=1)
    net, history = fitted(data, validation=dev)
    assert history.epochs[-1]["validation_accuracy"] > 0.95
    assert net.score(*dev) == history.epochs[-1]["validation_accuracy"]
    assert history.epochs[-1]["loss"] < 0.5 * history.epochs[0]["loss"]
    assert [entry["epoch"] for entry in history.epochs] == [1, 2, 3]
    assert len(history.step_losses) == 75
    assert "3 epochs, 75 steps" in repr(history)
    assert history.epochs[0]["loss"] == pytest.approx(np.mean(history.step_losses[:25]), rel=1e-6)


def test_learns_numbers():
    taps, _, mask = problem(200)
    target = taps[-1][:, 0, 0]
    net = network(head=sherl.Regressor(FEATURES))
    history = net.fit(taps, target, mask, **{**FAST, "epochs": 8})
    assert history.epochs[-1]["loss"] < 0.3 * history.epochs[0]["loss"]
    assert net.score(taps, target, mask) > 0.8


def test_same_seed_same_bits(keep_threads):
    first, history = fitted(net=network(dropout=0.2))
    sherl.set_num_threads(1)
    second, again = fitted(net=network(dropout=0.2))
    assert same_bits(first.state_dict(), second.state_dict())
    assert course(history) == course(again)
    other, _ = fitted(net=network(dropout=0.2), seed=1)
    assert not np.array_equal(first.state_dict()["head.weight"], other.state_dict()["head.weight"])


def test_features_and_padded_arrays_train_alike():
    taps, labels, mask = problem()
    ragged, padded = network(), network()
    ragged.fit(sherl.Features.from_arrays(taps, mask), labels, **FAST)
    padded.fit(taps, labels, mask, **FAST)
    assert same_bits(ragged.state_dict(), padded.state_dict())


def test_accumulated_batches_make_the_step_of_one_large_batch():
    small, history = fitted(batch_size=7, accumulate=3, bucket_by_length=False)
    large, again = fitted(batch_size=21, bucket_by_length=False)
    for name, value in large.state_dict().items():
        assert np.allclose(small.state_dict()[name], value, atol=2e-4)
    assert np.allclose(history.step_losses, again.step_losses, rtol=1e-3)


def test_sample_weight_of_nought_is_as_without_the_sample():
    taps, labels, mask = problem(16)
    kept = np.arange(16) < 11
    weighted, _ = fitted((taps, labels, mask), batch_size=16, sample_weight=3.0 * kept)
    without, _ = fitted(([tap[kept] for tap in taps], labels[kept], mask[kept]), batch_size=16)
    for name, value in without.state_dict().items():
        assert np.allclose(weighted.state_dict()[name], value, atol=1e-4)


def test_schedule_and_warmup():
    rates = []
    fitted(schedule="linear", warmup=0.2, callbacks=[Recorder(lambda state: rates.append(state.learning_rate))])
    assert max(rates) == pytest.approx(1e-2, rel=0.1)
    assert rates.index(max(rates)) == 3 or rates.index(max(rates)) == 2
    assert rates[-1] < 0.15 * max(rates)
    _, history = fitted(schedule="step", step_every=5, step_factor=0.1, warmup=0)
    assert [entry["learning_rate"] for entry in history.epochs] == pytest.approx([1e-2, 1e-3, 1e-4])


def test_weight_decay_spares_biases_norms_and_gate():
    decayed, _ = fitted(weight_decay=10.0, epochs=1)
    plain, _ = fitted(weight_decay=0.0, epochs=1)

    def ratio(name):
        return np.linalg.norm(decayed.state_dict()[name]) / np.linalg.norm(plain.state_dict()[name])

    assert ratio("early.up.weight") < 0.9
    assert 0.9 < ratio("early.up.norm.weight") < 1.1
    assert 0.9 < ratio("early.up.bias") < 1.2


def test_early_stopping_restores_the_best_weights():
    data, dev = problem(), problem(30, seed=1)
    scores = iter([0.1, 0.5, 0.3, 0.2, 0.9, 0.9])
    states = []

    class Keep(sherl.Callback):
        def on_epoch_end(self, state):
            states.append(state.network.state_dict())

    net, history = fitted(
        data, epochs=6, validation=dev, metrics={"made_up": lambda *_: next(scores)}, patience=2, callbacks=[Keep()]
    )
    assert (history.stopped, history.best_epoch, len(history.epochs)) == ("patience", 2, 4)
    assert history.best["validation_made_up"] == 0.5
    assert same_bits(net.state_dict(), states[1])


def test_monitor_takes_the_least_loss():
    net, history = fitted(validation=problem(30, seed=1), monitor="loss", metrics=(), restore_best=True, epochs=4)
    losses = [entry["validation_loss"] for entry in history.epochs]
    assert history.best_epoch == 1 + int(np.argmin(losses))
    assert net.evaluate(*problem(30, seed=1))["loss"] == pytest.approx(min(losses), rel=1e-6)


def test_nan_is_never_the_best():
    scores = iter([math.nan, 0.2, math.nan])
    _, history = fitted(validation=problem(30, seed=1), metrics={"made_up": lambda *_: next(scores)})
    assert history.best_epoch == 2


def test_callbacks_are_called_in_order():
    recorder = Recorder()
    fitted(epochs=2, batch_size=20, callbacks=[recorder])
    assert recorder.calls == [
        "fit_begin",
        "epoch_begin 1",
        "step_end 1",
        "step_end 2",
        "epoch_end 1",
        "epoch_begin 2",
        "step_end 3",
        "step_end 4",
        "epoch_end 2",
        "fit_end",
    ]


def stop():
    raise sherl.StopTraining


@pytest.mark.parametrize("action", [lambda: True, stop])
def test_a_callback_can_end_the_training(action):
    net, history = fitted(callbacks=[at_step(7, action)])
    assert (history.stopped, len(history.step_losses), len(history.epochs)) == ("callback", 7, 1)
    assert not history.interrupted
    assert np.isfinite(net.predict_proba(problem()[0])).all()


def test_an_error_in_a_callback_passes_and_leaves_the_last_whole_step():
    net = network()
    states = []

    class Fails(sherl.Callback):
        def on_step_end(self, state):
            states.append(state.network.state_dict())
            if state.step == 4:
                raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        fitted(net=net, callbacks=[Fails()])
    assert same_bits(net.state_dict(), states[-1])
    fitted(net=net)


def interrupt():
    signal.raise_signal(signal.SIGINT)


def test_interrupt_ends_after_the_step_and_returns_the_history():
    net, history = fitted(callbacks=[at_step(6, interrupt)])
    assert history.interrupted
    assert history.stopped == "interrupt"
    assert (len(history.step_losses), len(history.epochs)) == (6, 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    _, reference = fitted(callbacks=[at_step(6, lambda: True)])
    assert history.step_losses == reference.step_losses
    assert np.isfinite(net.predict_proba(problem()[0])).all()


def test_a_second_interrupt_raises():
    with pytest.raises(KeyboardInterrupt):
        fitted(callbacks=[at_step(6, lambda: (interrupt(), interrupt()))])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_users_stays():
    caught = []
    before = signal.signal(signal.SIGINT, lambda *_: caught.append(1))
    try:
        _, history = fitted(callbacks=[at_step(6, interrupt)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught == [1]
    assert not history.interrupted


def test_fit_in_another_thread():
    results = []
    worker = threading.Thread(target=lambda: results.append(fitted()[0].state_dict()))
    worker.start()
    worker.join()
    assert same_bits(results[0], fitted()[0].state_dict())


def test_a_loss_that_is_not_finite_raises_and_leaves_the_network():
    taps, labels, mask = problem()
    taps[0][7, 0, 0] = np.nan
    net = network()
    before = net.state_dict()
    with pytest.raises(
        FloatingPointError, match=r"step 1 \(epoch 1\) failed, and the network keeps its weights before it"
    ):
        net.fit(taps, labels, mask, **{**FAST, "batch_size": 40})
    assert same_bits(net.state_dict(), before)
    with pytest.raises(FloatingPointError):
        net.stepper()(taps, labels, mask)
    assert same_bits(net.state_dict(), before)


@pytest.mark.parametrize("once", [True, False])
def test_running_out_of_memory_leaves_the_last_whole_step(once):
    settings = {**FAST, "epochs": 1, "batch_size": 20}
    taps, labels, mask = problem()
    net = network()
    start = net.state_dict()
    states = [start]
    _core.fail_allocation(None)
    record = Recorder(lambda state: states.append(state.network.state_dict()))
    net.fit(taps, labels, mask, **settings, callbacks=[record])
    allocations = _core.allocations()
    assert allocations > 20
    for number in range(1, allocations + 1):
        net = network()
        _core.fail_allocation(number, once)
        try:
            with pytest.raises(MemoryError):
                net.fit(taps, labels, mask, **settings)
        finally:
            _core.fail_allocation(None)
        assert any(same_bits(net.state_dict(), state) for state in states[:-1])
        net.load_state_dict(start)
        net.fit(taps, labels, mask, **settings)
        assert same_bits(net.state_dict(), states[-1])


@pytest.mark.parametrize("stop_at", [1, 5, 7, 10, 12])
def test_resumed_training_has_the_same_bits(tmp_path, stop_at):
    settings = {"validation": problem(30, seed=1), "restore_best": True, "accumulate": 2, "batch_size": 5, "epochs": 3}
    whole, history = fitted(net=network(dropout=0.2), **settings)
    _, part = fitted(net=network(dropout=0.2), checkpoint=tmp_path, callbacks=[at_step(stop_at, interrupt)], **settings)
    assert len(part.step_losses) == stop_at
    resumed, rest = fitted(net=network(seed=9, dropout=0.2), resume_from=tmp_path, **settings)
    assert same_bits(resumed.state_dict(), whole.state_dict())
    assert course(rest) == course(history)


def test_resume_from_the_last_checkpoint_before_a_crash(tmp_path):
    whole, history = fitted(net=network(dropout=0.2))

    def crash():
        raise OSError("power")

    with pytest.raises(OSError, match="power"):
        fitted(net=network(dropout=0.2), checkpoint=tmp_path, checkpoint_every=3, callbacks=[at_step(8, crash)])
    resumed, rest = fitted(net=network(seed=9, dropout=0.2), resume_from=tmp_path, checkpoint=tmp_path)
    assert same_bits(resumed.state_dict(), whole.state_dict())
    assert rest.step_losses == history.step_losses
    assert [path.name for path in tmp_path.iterdir()] == ["fit.npz"]


def test_resume_after_the_end_gives_the_outcome(tmp_path):
    settings = {"validation": problem(30, seed=1), "patience": 1, "epochs": 6, "learning_rate": 0.1}
    whole, history = fitted(checkpoint=tmp_path, **settings)
    again, rest = fitted(net=network(seed=9), resume_from=tmp_path, **settings)
    assert same_bits(again.state_dict(), whole.state_dict())
    assert course(rest) == course(history)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"learning_rate": 2e-2}, "learning_rate was 0.01 and is 0.02"),
        ({"batch_size": 4}, "batch_size was 8 and is 4"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"data": problem(seed=3)}, "data was"),
        ({"sample_weight": np.arange(1, 41)}, "data was"),
        ({"net": network(late=2)}, r"network.late.1.type was null"),
        ({"net": network(dropout=0.5)}, r"network.early.settings.dropout was 0.0 and is 0.5"),
        ({"validation": problem(30, seed=1)}, "validation was null and is"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, changed, message):
    fitted(checkpoint=tmp_path, epochs=1)
    with pytest.raises(ValueError, match=f"resume_from: .* is of another training: .*{message}"):
        fitted(resume_from=tmp_path, **{"epochs": 1, **changed})


@pytest.mark.parametrize("spoil", ["cut", "text", "empty", "without", "shape"])
def test_a_broken_checkpoint_is_refused(tmp_path, spoil):
    fitted(checkpoint=tmp_path, epochs=1)
    path = tmp_path / "fit.npz"
    content = path.read_bytes()
    if spoil in ("without", "shape"):
        with np.load(path) as loaded:
            arrays = dict(loaded)
        if spoil == "without":
            del arrays["weight/head.bias"]
        else:
            arrays["moment0/head.bias"] = np.zeros(7, np.float32)
        np.savez(path, **arrays)
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "text": b"not a checkpoint", "empty": b""}[spoil])
    net = network()
    before = net.state_dict()
    with pytest.raises(ValueError, match="resume_from: .* is not whole|resume_from: .* not a whole checkpoint"):
        fitted(net=net, resume_from=tmp_path, epochs=1)
    assert same_bits(net.state_dict(), before)


def test_no_checkpoint_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="resume_from: .*fit.npz does not exist"):
        fitted(resume_from=tmp_path)


def test_progress_bar(capsys):
    fitted(progress=True, validation=problem(30, seed=1))
    assert "15/15" in capsys.readouterr().err
    fitted(progress=False)
    assert capsys.readouterr().err == ""


def test_progress_without_tqdm(monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("tqdm"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    _, history = fitted(progress=True)
    assert len(history.epochs) == 3
    assert capsys.readouterr().err == ""


def test_history_round_trip():
    _, history = fitted(validation=problem(30, seed=1))
    values = history.to_dict()
    assert sherl.History.from_dict(values).to_dict() == values
    values["epochs"].clear()
    assert len(history.epochs) == 3


def test_training_twice_goes_on_from_the_weights():
    net, first = fitted()
    _, second = fitted(net=net)
    assert second.step_losses[0] < first.step_losses[0]
