"""Side networks: what they compute, gradients, losses, weights shared with blocks, memory, threads, processes."""

import copy
import gc
import multiprocessing
import pickle

import numpy as np
import pytest
from small import FEATURES, HEADS, bert_weights, network, problem, same_bits

import sherl
from sherl import _core

pytestmark = pytest.mark.core


def test_network_is_its_blocks_in_a_row():
    taps, _, mask = problem()
    net = network(late=2)
    early, (first, second), head = net.early, net.late, net.head
    alone = head(second(first(early(taps, mask=mask), mask), mask), mask)
    assert np.allclose(net.forward(taps, mask), alone, atol=1e-5)
    assert np.allclose(
        network(late=0).forward(taps, mask), network(late=0).head(net.early(taps, mask=mask), mask), atol=1e-5
    )


def test_features_and_padded_arrays_agree():
    taps, labels, mask = problem()
    net, features = network(), sherl.Features.from_arrays(taps, mask)
    assert same_bits(net.forward(features), net.forward(taps, mask))
    padded, ragged = net.loss_and_gradients(taps, labels, mask), net.loss_and_gradients(features, labels)
    assert padded[0] == ragged[0]
    assert same_bits(padded[1], ragged[1])


def test_selection_and_batch_size_do_not_matter():
    taps, labels, mask = problem()
    net, features = network(), sherl.Features.from_arrays(taps, mask)
    whole = net.forward(features)
    index = np.array([7, 3, 3, 39])
    assert np.allclose(net.forward(features[index]), whole[index], atol=1e-5)
    assert np.allclose(net.forward(features, batch_size=3), whole, atol=1e-5)
    assert net.evaluate(features, labels, batch_size=7)["loss"] == pytest.approx(net.evaluate(features, labels)["loss"])


def test_samples_longer_than_a_tile_beside_short_ones():
    rng = np.random.default_rng(0)
    lengths = [700, 1, 3, 600, 2, 513]
    taps = [rng.standard_normal((sum(lengths), FEATURES), dtype=np.float32) for _ in range(3)]
    labels = np.array([0, 1, 1, 0, 1, 0])
    features, net = sherl.Features(taps, lengths), network(late=2, head=sherl.Classifier(FEATURES, 2, pool="mean"))
    loss, gradients = net.loss_and_gradients(features, labels)
    singly = [net.loss_and_gradients(features[number], labels[[number]]) for number in range(6)]
    assert np.allclose(net.forward(features), np.concatenate([net.forward(sample) for sample in features]), atol=1e-5)
    assert loss == pytest.approx(np.mean([one for one, _ in singly]), rel=1e-5)
    for name, value in gradients.items():
        assert np.allclose(value, np.mean([single[name] for _, single in singly], axis=0), atol=1e-5)


def test_predictions_follow_from_the_outputs():
    taps, labels, mask = problem()
    net = network()
    outputs = net.forward(taps, mask).astype(np.float64)
    probabilities = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    assert np.allclose(net.predict_proba(taps, mask), probabilities, atol=1e-6)
    assert np.array_equal(net.predict(taps, mask), outputs.argmax(axis=1))
    scores = net.evaluate(taps, labels, mask, metrics=["accuracy", "matthews_correlation"])
    assert scores["loss"] == pytest.approx(-np.log(probabilities[np.arange(40), labels]).mean(), rel=1e-5)
    assert scores["accuracy"] == (outputs.argmax(axis=1) == labels).mean() == net.score(taps, labels, mask)


def cross_entropy(outputs, labels, smoothing, class_weights, sample_weight):
    """Loss of torch.nn.CrossEntropyLoss's definition, times sample weights."""
    outputs = outputs.astype(np.float64)
    log = outputs - np.log(np.exp(outputs).sum(axis=1, keepdims=True))
    targets = (1 - smoothing) * np.eye(outputs.shape[1])[labels] + smoothing / outputs.shape[1]
    losses = -(targets * class_weights * log).sum(axis=1)
    return (sample_weight * losses).sum() / (sample_weight * class_weights[labels]).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(smoothing, weighted):
    taps, labels, mask = problem()
    class_weights = [0.5, 2.0] if weighted else None
    sample_weight = np.random.default_rng(0).random(40) if weighted else None
    net = network(head=sherl.Classifier(FEATURES, 2, label_smoothing=smoothing, class_weights=class_weights))
    expected = cross_entropy(
        net.forward(taps, mask),
        labels,
        smoothing,
        np.array(class_weights or [1, 1]),
        np.ones(40) if sample_weight is None else sample_weight,
    )
    loss, _ = net.loss_and_gradients(taps, labels, mask, sample_weight=sample_weight)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert net.evaluate(taps, labels, mask, sample_weight=sample_weight, batch_size=9)["loss"] == pytest.approx(
        loss, rel=1e-5
    )
    assert "head.class_weights" not in net.state_dict()


def test_multi_label():
    taps, _, mask = problem()
    labels = np.random.default_rng(1).integers(0, 2, (40, 3))
    net = network(head=sherl.Classifier(FEATURES, 3, multi_label=True))
    outputs = net.forward(taps, mask).astype(np.float64)
    probabilities = 1 / (1 + np.exp(-outputs))
    expected = -(labels * np.log(probabilities) + (1 - labels) * np.log(1 - probabilities)).mean()
    loss, _ = net.loss_and_gradients(taps, labels, mask)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert np.allclose(net.predict_proba(taps, mask), probabilities, atol=1e-6)
    assert np.array_equal(net.predict(taps, mask), (outputs > 0).astype(int))
    assert net.evaluate(taps, labels, mask)["accuracy"] == ((outputs > 0) == labels).mean()


@pytest.mark.parametrize("outputs", [1, 2])
def test_regression(outputs):
    taps, _, mask = problem()
    labels = np.random.default_rng(1).standard_normal((40, outputs))
    net = network(head=sherl.Regressor(FEATURES, outputs, pool="mean"))
    predicted = net.predict(taps, mask)
    given = labels[:, 0] if outputs == 1 else labels
    assert predicted.shape == given.shape
    loss, _ = net.loss_and_gradients(taps, given, mask)
    assert loss == pytest.approx(((predicted - given) ** 2).mean(), rel=1e-5)
    columns = predicted.reshape(40, -1).T, labels.T
    expected = np.mean([np.corrcoef(one, other)[0, 1] for one, other in zip(*columns)])
    assert net.score(taps, given, mask) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(TypeError, match="no class probabilities"):
        net.predict_proba(taps, mask)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_gradient_is_that_of_the_loss(late, double_core):
    taps, labels, mask = problem(8, 4)
    net = network(late=late)
    _, gradients = net.loss_and_gradients(taps, labels, mask)
    state, rng, step = net.state_dict(), np.random.default_rng(0), 1e-7
    assert gradients.keys() == state.keys()
    for name, value in state.items():
        direction = rng.standard_normal(value.shape)
        losses = []
        for sign in (1, -1):
            net.load_state_dict({name: value + sign * step * direction}, strict=False)
            losses.append(net.evaluate(taps, labels, mask)["loss"])
        slope = (losses[0] - losses[1]) / (2 * step)
        net.load_state_dict({name: value}, strict=False)
        assert slope == pytest.approx(np.vdot(gradients[name], direction), rel=1e-5, abs=1e-7)


def test_vjp_with_the_gradient_of_the_loss_is_its_gradient():
    taps, labels, mask = problem()
    net = network()
    cotangent = net.predict_proba(taps, mask)
    cotangent[np.arange(40), labels] -= 1
    outputs, gradients = net.vjp(taps, cotangent / 40, mask, taps_gradient=True)
    _, expected = net.loss_and_gradients(taps, labels, mask)
    assert same_bits(outputs, net.forward(taps, mask)) or np.allclose(outputs, net.forward(taps, mask), atol=1e-6)
    for name, value in expected.items():
        assert np.allclose(gradients[name], value, atol=1e-5)
    for number in range(3):
        assert gradients[f"tap{number}"].shape == taps[number].shape
        assert not gradients[f"tap{number}"][~mask].any()


def test_trainable_late_layer():
    taps, labels, mask = problem()
    net = sherl.SideNetwork(
        sherl.MTSA(3, FEATURES, 8),
        [sherl.TransformerLayer.from_bert(bert_weights(), HEADS, trainable=True)],
        sherl.Classifier(FEATURES, 2),
    )
    state = net.state_dict()
    assert np.array_equal(state["late.0.query.weight"], bert_weights()["attention.self.query.weight"])
    _, gradients = net.loss_and_gradients(taps, labels, mask)
    assert np.abs(gradients["late.0.query.weight"]).max() > 0
    net.fit(taps, labels, mask, epochs=1, progress=False)
    assert not np.array_equal(net.state_dict()["late.0.query.weight"], state["late.0.query.weight"])
    assert same_bits(net.late[0].state_dict()["query.weight"], net.state_dict()["late.0.query.weight"])


def test_frozen_layers_stay_as_they_are():
    taps, labels, mask = problem()
    weights = bert_weights()
    before = {name: value.copy() for name, value in weights.items()}
    layer = sherl.TransformerLayer.from_bert(weights, HEADS)
    first, second = (
        sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), [layer, layer], sherl.Classifier(FEATURES, 2)) for _ in range(2)
    )
    first.fit(taps, labels, mask, epochs=2, progress=False)
    second.fit(taps, labels, mask, epochs=2, progress=False)
    assert same_bits(weights, before)
    assert same_bits(first.state_dict(), second.state_dict())
    assert all(name.startswith(("early.", "head.")) for name in first.state_dict())


def test_blocks_share_their_weights_with_the_network():
    taps, labels, mask = problem()
    early = sherl.MTSA(3, FEATURES, 8)
    early.load_state_dict({name: value + 0.25 for name, value in early.state_dict().items()})
    loaded = early.state_dict()
    net = sherl.SideNetwork(early, [], sherl.Classifier(FEATURES, 2), seed=4)
    assert same_bits({name: net.state_dict()[f"early.{name}"] for name in loaded}, loaded)
    net.fit(taps, labels, mask, epochs=1, progress=False)
    assert same_bits(early.state_dict()["up.weight"], net.state_dict()["early.up.weight"])
    assert not np.array_equal(early.state_dict()["up.weight"], loaded["up.weight"])
    with pytest.raises(ValueError, match="early already belongs to another network"):
        sherl.SideNetwork(early, [], sherl.Classifier(FEATURES, 2))


def test_seed_decides_the_weights():
    def made(seed):
        return sherl.SideNetwork(sherl.MTSA(3, 32, 8), [], sherl.Classifier(32, 2), seed=seed).state_dict()

    assert same_bits(made(1), made(1))
    assert not np.array_equal(made(1)["head.weight"], made(2)["head.weight"])


def test_loading_is_exact_or_changes_nothing():
    net, state = network(), network(seed=5).state_dict()
    before = net.state_dict()
    wrong = {**state, "head.extra": np.zeros(3), "early.up.bias": np.zeros(5)}
    del wrong["early.gate"]
    with pytest.raises(
        ValueError,
        match=r"missing early.gate; unexpected head.extra; early.up.bias must have shape \(32,\), got \(5,\)",
    ):
        net.load_state_dict(wrong)
    assert same_bits(net.state_dict(), before)
    report = net.load_state_dict(wrong, strict=False)
    assert report == (["early.gate"], ["head.extra"], ["early.up.bias"])
    assert same_bits(
        net.state_dict(), {**state, "early.gate": before["early.gate"], "early.up.bias": before["early.up.bias"]}
    )
    with pytest.raises(ValueError, match=r"head.bias must hold finite"):
        net.load_state_dict({**state, "head.bias": [np.nan, 0.0]})
    assert net.load_state_dict({name: value.astype(np.float64) for name, value in state.items()}) == ([], [], [])
    assert same_bits(net.state_dict(), state)


def test_state_dict_is_a_copy():
    net = network()
    state = net.state_dict()
    for value in state.values():
        value[...] = 7
    assert not any((value == 7).all() for value in net.state_dict().values())


def test_counts_and_descriptions(capsys):
    net = network()
    frozen = sum(value.size for value in bert_weights().values())
    trained = sum(value.size for value in net.state_dict().values())
    assert (net.num_parameters(), net.num_parameters(trainable_only=False)) == (trained, trained + frozen)
    net.print_trainable_parameters()
    assert f"{trained:,} of {trained + frozen:,}" in capsys.readouterr().out
    assert f"{trained:,} of {trained + frozen:,}" in net.summary()
    assert "late[0]  TransformerLayer" in repr(net)


def test_memory_plan():
    net = network()
    plan = net.memory_plan(batch_size=8, tokens=7)
    assert plan.parameters == 4 * net.num_parameters()
    assert plan.optimizer == 2 * plan.gradients // plan.lanes >= 2 * plan.parameters
    assert plan.total == sum(size for kind, size in plan.to_dict().items() if kind != "total")
    assert f"{plan.total / 2**20:.2f} MiB" in repr(plan)
    assert net.memory_plan(batch_size=8, tokens=7, optimizer="sgd").optimizer < plan.optimizer
    large, larger = (net.memory_plan(batch_size=size, tokens=128) for size in (256, 4096))
    assert large.workspace == larger.workspace


def test_copies_are_equal_and_apart():
    taps, labels, mask = problem()
    net = network()
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert same_bits(copied.forward(taps, mask), net.forward(taps, mask))
        before = net.state_dict()
        copied.fit(taps, labels, mask, epochs=1, progress=False)
        assert same_bits(net.state_dict(), before)


def test_bits_do_not_depend_on_threads(keep_threads):
    taps, labels, mask = problem(60, 40)
    states, outputs = [], []
    for threads in (1, 2, 3):
        sherl.set_num_threads(threads)
        assert sherl.get_num_threads() == threads
        net = network(dropout=0.1)
        step = net.stepper(learning_rate=1e-2, clip_norm=0.5)
        losses = np.array([step(taps, labels, mask) for _ in range(4)])
        states.append({**net.state_dict(), "losses": losses})
        outputs.append(net.forward(taps, mask))
    assert all(same_bits(state, states[0]) for state in states)
    assert all(same_bits(output, outputs[0]) for output in outputs)


def predict_in_child(net, taps, mask, pipe):
    pipe.send(net.predict_proba(taps, mask))
    pipe.close()


# Later versions of Python warn of any fork beside threads; that the core stands it is what this tests.
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_predict_in_a_forked_child():
    taps, _, mask = problem(60, 40)
    net = network()
    expected = net.predict_proba(taps, mask)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=predict_in_child, args=(net, taps, mask, sender))
    child.start()
    sender.close()
    assert receiver.poll(30), "the child gave no answer"
    assert same_bits(receiver.recv(), expected)
    child.join(30)
    assert child.exitcode == 0


def test_stepper_lowers_the_loss():
    taps, labels, mask = problem()
    for optimizer, rate in (("adamw", 1e-2), ("adam", 1e-2), ("sgd", 1e-1)):
        net = network()
        step = net.stepper(optimizer=optimizer, learning_rate=rate, momentum=0.9)
        losses = [step(taps, labels, mask=mask) for _ in range(20)]
        assert losses[-1] < 0.7 * losses[0]
        assert step.steps == 20
        assert step.gradient_norm > 0
        assert losses[0] == pytest.approx(network().evaluate(taps, labels, mask)["loss"], rel=1e-5)


def test_float16_taps_give_the_same_as_widened_ones():
    taps, labels, mask = problem()
    half = [tap.astype(np.float16) for tap in taps]
    widened = [tap.astype(np.float32) for tap in half]
    found, expected = (network().loss_and_gradients(arrays, labels, mask) for arrays in (half, widened))
    assert found[0] == expected[0]
    assert same_bits(found[1], expected[1])


def test_nothing_is_left_in_memory():
    taps, labels, mask = problem()

    def use():
        net = network(dropout=0.1)
        net.fit(taps, labels, mask, validation=(taps, labels, mask), epochs=1, progress=False)
        net.vjp(taps, net.predict_proba(taps, mask), mask, taps_gradient=True)
        net.early(taps, mask=mask)
        with pytest.raises(ValueError):
            net.predict(taps[:2])

    use()
    gc.collect()
    before = _core.live_allocations()
    use()
    gc.collect()
    assert _core.live_allocations() == before


def test_show_config(capsys):
    sherl.show_config()
    printed = capsys.readouterr().out
    assert sherl.__version__ in printed
    assert np.__version__ in printed
