"""Heads with outputs for every row, and embeddings: losses, labels, forms of what comes back, saving, sweeps."""

import numpy as np
import pytest
from op_harness import central_differences
from small import FEATURES, mask_of, network, same_bits, taps_of

import sherl
from sherl.features.layout import Layout

pytestmark = pytest.mark.core

FAST = {"epochs": 2, "batch_size": 5, "learning_rate": 1e-2, "progress": False}


def token_problem(samples=12, tokens=7, classes=4, seed=0):
    """Taps, labels of every row with some left out, and a mask."""
    taps, mask = taps_of(samples, tokens, seed=seed), mask_of(samples, tokens, seed)
    labels = taps[-1][:, :, :classes].argmax(axis=2)
    return taps, np.where(np.random.default_rng(seed).random(labels.shape) < 0.2, -100, labels), mask


def span_problem(samples=12, tokens=7, seed=0):
    """Taps, spans that two channels of the last tap mark, and a mask with holes."""
    taps, generator = taps_of(samples, tokens, seed=seed), np.random.default_rng([seed, 9])
    mask = generator.random((samples, tokens)) < 0.7
    mask[:, 0] = True
    spans = np.array([np.sort(generator.choice(np.flatnonzero(row), 2)) for row in mask])
    for column in (0, 1):
        taps[-1][np.arange(samples), spans[:, column], column] += 6
    return taps, spans, mask


def ragged(values, mask):
    return [row[kept] for row, kept in zip(values, mask)]


def features_of(taps, mask):
    lengths = mask.sum(axis=1)
    return sherl.Features([tap[mask] for tap in taps], lengths)


def log_softmax(x, axis):
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def span_loss(outputs, spans, mask):
    """The twin: outputs (samples, tokens, 2)."""
    chances = log_softmax(np.where(mask[:, :, None], outputs.astype(np.float64), -np.inf), 1)
    return -np.mean([chances[np.arange(len(spans)), spans[:, column], column] for column in (0, 1)])


HEADS = {
    "tokens": lambda **more: sherl.TokenClassifier(FEATURES, 4, **more),
    "weighted tokens": lambda **more: sherl.TokenClassifier(FEATURES, 4, class_weights=[1, 2, 0.5, 3],
                                                            label_smoothing=0.1, **more),
    "spans": lambda **more: sherl.SpanPredictor(FEATURES, **more),
}
PROBLEMS = {"tokens": token_problem, "weighted tokens": token_problem, "spans": span_problem}


def test_token_loss_is_the_mean_over_the_rows_that_count():
    taps, labels, mask = token_problem()
    net = network(head=HEADS["tokens"]())
    outputs = net.forward(taps, mask)
    assert outputs.shape == (*mask.shape, 4) and not outputs[~mask].any()
    counted = mask & (labels != -100)
    expected = -np.mean(log_softmax(outputs.astype(np.float64), 2)[counted, labels[counted]])
    assert net.loss_and_gradients(taps, labels, mask)[0] == pytest.approx(expected, rel=1e-5)
    scores = net.evaluate(taps, labels, mask, batch_size=5)
    assert scores["loss"] == pytest.approx(expected, rel=1e-5)
    predicted = net.predict(taps, mask)
    assert np.array_equal(predicted[mask], outputs[mask].argmax(axis=1)) and (predicted[~mask] == -100).all()
    assert scores["accuracy"] == pytest.approx(np.mean(predicted[counted] == labels[counted]))
    chances = net.predict_proba(taps, mask)
    assert np.allclose(chances[mask].sum(axis=1), 1) and not chances[~mask].any()
    assert net.score(taps, labels, mask) == scores["accuracy"]


def test_weights_of_classes_and_samples_in_the_mean_over_rows():
    taps, labels, mask = token_problem()
    net, weights = network(head=HEADS["weighted tokens"]()), np.random.default_rng(1).random(12)
    outputs, class_weights = net.forward(taps, mask).astype(np.float64), np.array([1, 2, 0.5, 3])
    counted = mask & (labels != -100)
    target = 0.9 * np.eye(4)[np.maximum(labels, 0)] + 0.1 / 4
    losses = -np.sum(target * class_weights * log_softmax(outputs, 2), axis=2) * weights[:, None]
    shares = class_weights[np.maximum(labels, 0)] * weights[:, None]
    expected = losses[counted].sum() / shares[counted].sum()
    assert net.loss_and_gradients(taps, labels, mask, sample_weight=weights)[0] == pytest.approx(expected, rel=1e-5)


def test_span_loss_and_the_best_span():
    taps, spans, mask = span_problem()
    net = network(head=HEADS["spans"]())
    outputs = net.forward(taps, mask)
    assert net.loss_and_gradients(taps, spans, mask)[0] == pytest.approx(span_loss(outputs, spans, mask), rel=1e-5)
    for most in (None, 2):
        limited = network(head=sherl.SpanPredictor(FEATURES, max_length=most))
        found = limited.predict(taps, mask)
        for number, (first, last) in enumerate(found):
            kept = np.flatnonzero(mask[number])
            possible = [(outputs[number, i, 0] + outputs[number, j, 1], i, j) for a, i in enumerate(kept)
                        for b, j in enumerate(kept) if a <= b and (most is None or b - a < most)]
            assert (first, last) == max(possible)[1:]
    scores = net.evaluate(taps, spans, mask)
    assert scores["exact_match"] == np.mean((net.predict(taps, mask) == spans).all(axis=1))


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_against_finite_differences(kind, double_core):
    taps, labels, mask = PROBLEMS[kind](5)
    net = network(head=HEADS[kind](), late=1)
    gradients = net.loss_and_gradients(taps, labels, mask)[1]
    for name in ("head.weight", "head.bias", "early.gate", "early.guide.weight"):
        array = net._programs.store.array(name)
        expected = central_differences(lambda: net.loss_and_gradients(taps, labels, mask)[0], array, 1e-6)
        assert np.allclose(gradients[name], expected, atol=1e-7), name


@pytest.mark.parametrize("kind", HEADS)
def test_ragged_features_give_the_same_bits_as_padded_arrays(kind):
    taps, labels, mask = PROBLEMS[kind]()
    features, net = features_of(taps, mask), network(head=HEADS[kind]())
    if kind == "spans":
        rows = np.cumsum(mask, axis=1) - 1
        own = np.take_along_axis(rows, labels, axis=1)
    else:
        own = ragged(labels, mask)
    padded, loose = net.loss_and_gradients(taps, labels, mask), net.loss_and_gradients(features, own)
    assert padded[0] == loose[0] and same_bits(padded[1], loose[1])
    outputs = net.forward(features)
    assert isinstance(outputs, sherl.Features)
    assert same_bits(outputs.taps[0], net.forward(taps, mask)[mask])
    predicted = net.predict(features)
    if kind == "spans":
        assert np.array_equal(predicted, np.take_along_axis(rows, net.predict(taps, mask), axis=1))
    else:
        assert all(np.array_equal(a, b) for a, b in zip(predicted, ragged(net.predict(taps, mask), mask), strict=True))
        assert same_bits(net.predict_proba(features).taps[0], net.predict_proba(taps, mask)[mask])


@pytest.mark.parametrize("kind", HEADS)
def test_training_learns_and_has_the_same_bits_on_any_number_of_threads_and_after_a_resume(kind, tmp_path,
                                                                                           keep_threads):
    taps, labels, mask = PROBLEMS[kind](24)
    settings = {**FAST, "epochs": 20, "accumulate": 2, "validation": (taps, labels, mask)}

    def fitted(threads=1, **more):
        sherl.set_num_threads(threads)
        net = network(head=HEADS[kind](dropout=0.1))
        return net, net.fit(taps, labels, mask, **{**settings, **more})

    net, history = fitted(checkpoint=tmp_path, checkpoint_every=7)
    assert history.epochs[-1]["validation_loss"] < 0.5 * history.epochs[0]["validation_loss"]
    assert same_bits(net.state_dict(), fitted(threads=3)[0].state_dict())

    class Stop(sherl.Callback):
        def on_step_end(self, state):
            return state.step == 7

    fitted(checkpoint=tmp_path / "half", callbacks=Stop())
    assert same_bits(net.state_dict(), fitted(resume_from=tmp_path / "half")[0].state_dict())


@pytest.mark.parametrize("kind", HEADS)
def test_sweeps_give_the_bits_of_fit(kind):
    taps, labels, mask = PROBLEMS[kind]()
    alone = network(head=HEADS[kind](dropout=0.1))
    held_out = PROBLEMS[kind](seed=1)
    history = alone.fit(taps, labels, mask, validation=held_out, **FAST)
    result = sherl.sweep(taps, labels, {"a": network(head=HEADS[kind](dropout=0.1)),
                                        "b": {"network": network(head=HEADS[kind]()), "learning_rate": 1e-3}},
                         mask=mask, validation=held_out, **FAST)
    for entry, expected in zip(result.histories["a"].epochs, history.epochs, strict=True):
        assert {**entry, "seconds": 0} == {**expected, "seconds": 0}
    assert same_bits(result.networks["a"].state_dict(), alone.state_dict())


@pytest.mark.parametrize("kind", [*HEADS, "embedding", "detector"])
def test_saved_networks_come_back(kind, tmp_path):
    pytest.importorskip("safetensors")
    heads = {**HEADS, "embedding": lambda: sherl.Embedding(FEATURES, 6, pool="gpo", temperature=0.1),
             "detector": lambda: sherl.Detector(FEATURES, 3, hidden=8, align=5)}
    net = network(late=0, head=heads[kind]())
    net.save_pretrained(tmp_path)
    loaded = sherl.SideNetwork.from_pretrained(tmp_path)
    taps, mask = taps_of(), mask_of()
    assert same_bits(loaded.forward(taps, mask), net.forward(taps, mask))
    assert loaded.head.settings == net.head.settings
    assert repr(loaded.head).startswith(type(net.head).__name__)
    assert net.memory_plan().total > 0


def test_bad_labels_are_named():
    taps, labels, mask = token_problem()
    net = network(head=HEADS["tokens"]())
    for wrong, error, message in (
        (labels[:, :3], ValueError, r"labels must have shape \(batch, tokens\) = \(12, 7\), got \(12, 3\)"),
        (labels.astype(float), TypeError, "labels must be whole class numbers, got dtype float64"),
        (np.where(labels == 1, 4, labels), ValueError, "labels must be class numbers from 0 to 3, or -100 .*, got 4"),
        (np.where(labels == 1, -1, labels), ValueError, "or -100 .*, got -1"),
        (np.full_like(labels, -100), ValueError, "labels must have a row that counts, got -100 alone"),
    ):
        with pytest.raises(error, match=message):
            net.fit(taps, wrong, mask, **FAST)
    features = features_of(taps, mask)
    with pytest.raises(ValueError, match="labels must be 12 arrays, one a sample, got 11"):
        net.fit(features, ragged(labels, mask)[1:], **FAST)
    with pytest.raises(ValueError, match=r"labels must have shape \(\d,\) for sample 0, got \(9,\)"):
        net.fit(features, [np.zeros(9, int), *ragged(labels, mask)[1:]], **FAST)

    taps, spans, mask = span_problem()
    net = network(head=HEADS["spans"]())
    hole = np.argwhere(~mask)[0]
    inside = spans.copy()
    inside[hole[0]] = hole[1]
    for wrong, error, message in (
        (spans[:, :1], ValueError, r"labels must have shape \(samples, 2\) = \(12, 2\), got \(12, 1\)"),
        (spans.astype(float), TypeError, "labels must be whole row numbers, got dtype float64"),
        (np.where(spans == spans.max(), 7, spans), ValueError, "labels of sample .* must be from 0 to 6, got"),
        (inside, ValueError, f"labels of sample {hole[0]} must be rows that mask keeps"),
        (np.array([[3, 0]] * 12), ValueError, "labels must not end before they begin"),
    ):
        with pytest.raises(error, match=message):
            net.fit(taps, wrong, mask, **FAST)


def test_a_loss_of_ones_own_gets_the_rows_of_each_sample():
    taps, labels, mask = token_problem()

    def own(outputs, targets, lengths):
        parts = np.split(outputs, np.cumsum(lengths)[:-1])
        gradient, value = [], 0.0
        counts = sum(np.count_nonzero(target[:len(rows)] != -100) for rows, target in zip(parts, targets))
        for rows, target in zip(parts, targets):
            chances = np.exp(log_softmax(rows.astype(np.float64), 1))
            target = target[:len(rows)]
            counted = target != -100
            wanted = np.eye(4)[np.maximum(target, 0)]
            value -= np.sum(np.log(chances)[counted, np.maximum(target, 0)[counted]]) / counts
            gradient.append(np.where(counted[:, None], chances - wanted, 0) / counts)
        return value, np.concatenate(gradient)

    nets = [network(head=HEADS["tokens"](dropout=0.2)) for _ in range(2)]
    histories = [net.fit(taps, labels, mask, loss=loss, validation=(taps, labels, mask), metrics="accuracy",
                         **{**FAST, "optimizer": "sgd"}) for net, loss in zip(nets, (own, None))]
    for name, value in nets[0].state_dict().items():
        assert np.allclose(value, nets[1].state_dict()[name], atol=1e-6), name
    assert np.allclose(histories[0].step_losses, histories[1].step_losses, rtol=1e-5)
    assert histories[0].epochs[-1]["validation_accuracy"] == histories[1].epochs[-1]["validation_accuracy"]


def test_vjp_of_rows_and_of_embeddings(double_core):
    taps, mask = [tap.astype(np.float64) for tap in taps_of(4)], mask_of(4)
    generator = np.random.default_rng(0)
    for head in (sherl.Detector(FEATURES, 2, hidden=5, align=3),
                 sherl.Embedding(FEATURES, 5, pool="gpo", temperature=0.2),
                 sherl.Embedding(FEATURES, 5, pool="max"), sherl.Embedding(FEATURES, 5, pool="first", normalize=False)):
        net = network(late=0, head=head)
        cotangent = generator.standard_normal(net.forward(taps, mask).shape)
        output, gradients = net.vjp(taps, cotangent, mask)
        assert same_bits(output, net.forward(taps, mask))
        for name in [name for name in net.state_dict() if name.startswith("head.")] + ["early.gate"]:
            array = net._programs.store.array(name)
            expected = central_differences(lambda: np.sum(cotangent * net.forward(taps, mask)), array, 1e-6)
            assert np.allclose(gradients[name], expected, atol=1e-6), name


def test_the_head_of_a_detector():
    head = sherl.Detector(FEATURES, 2, hidden=5, align=3)
    x = taps_of(3)[0]
    rows, state = x.reshape(-1, FEATURES).astype(np.float64), head.state_dict()

    def linear(x, name):
        return x @ state[f"{name}.weight"].T.astype(np.float64) + state[f"{name}.bias"]

    box = linear(np.maximum(linear(np.maximum(linear(rows, "box.0"), 0), "box.1"), 0), "box.2")
    align = linear(rows, "align")
    expected = np.concatenate([linear(rows, "classes"), 1 / (1 + np.exp(-box)),
                               align / np.linalg.norm(align, axis=1, keepdims=True)], axis=1)
    assert np.allclose(head(x).reshape(len(rows), -1), expected, atol=1e-5)
    assert sum(value.size for value in state.values() if value.ndim == 2) == head._least_parameters()


@pytest.mark.parametrize("pool", ["mean", "first", "last", "max", "position", "gpo"])
def test_embeddings(pool):
    head, x, mask = sherl.Embedding(FEATURES, 6, pool=pool, temperature=0.5), taps_of(5)[0], mask_of(5)
    generator = np.random.default_rng(2)
    head.load_state_dict({name: value + 0.3 * generator.standard_normal(value.shape)
                          for name, value in head.state_dict().items()})
    state = {name: value.astype(np.float64) for name, value in head.state_dict().items()}
    expected, positions = [], mask.sum(axis=1) // 2
    for rows, kept, position in zip(x.astype(np.float64), mask, positions):
        rows = rows[kept] @ state["weight"].T + state["bias"]
        if pool == "gpo":
            n, k = len(rows), np.arange(len(rows))[:, None]
            w = 10000.0 ** (-np.arange(8) / 8)
            encoding = np.stack([np.sin(k * w), np.cos(k * w), np.sin((n - 1 - k) * w), np.cos((n - 1 - k) * w)],
                                axis=2).reshape(n, 32)
            hidden = np.maximum(encoding @ state["pool.hidden.weight"].T + state["pool.hidden.bias"], 0)
            shares = np.exp(log_softmax(hidden @ state["pool.score.weight"].T, 0))
            expected.append(np.sum(shares * np.sort(rows, axis=0)[::-1], axis=0))
        else:
            expected.append({"mean": rows.mean(axis=0), "first": rows[0], "last": rows[-1], "max": rows.max(axis=0),
                             "position": rows[position]}[pool])
    expected = np.array(expected)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    outputs = head(x, mask, positions=positions if pool == "position" else None)
    assert np.allclose(outputs, expected * np.exp(state["log_scale"]) / 0.5, atol=1e-5)
    assert np.allclose(head._embedding(outputs), expected, atol=1e-5)
    head._bound_scale(1.5)
    assert np.exp(head.state_dict()["log_scale"]) / 0.5 <= 1.5 * (1 + 1e-6)


def test_generalized_pooling_starts_as_the_mean():
    x, mask = taps_of(5)[0], mask_of(5)
    mean, learned = (sherl.Embedding(FEATURES, 6, pool=pool) for pool in ("mean", "gpo"))
    assert np.allclose(mean(x, mask), learned(x, mask), atol=1e-6)


def test_an_embedding_has_no_loss_and_no_predictions_of_its_own():
    taps, mask, labels = taps_of(), mask_of(), np.arange(12) % 3
    net = network(head=sherl.Embedding(FEATURES, 6))
    for call in (net.fit, net.evaluate, net.loss_and_gradients):
        with pytest.raises(ValueError, match="a network with the head Embedding has no loss of its own: pass loss="):
            call(taps, labels, mask)
    with pytest.raises(TypeError, match="has no predictions; use forward"):
        net.predict(taps, mask)
    history = net.fit(taps, labels, mask, loss=sherl.losses.supervised_contrastive(), **{**FAST, "epochs": 10})
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]


def test_layouts_map_positions_there_and_back():
    taps, spans, mask = span_problem()
    layout = Layout(taps, sherl.Features.from_arrays(taps, mask))
    rows = layout.row_numbers(spans, "spans")
    assert np.array_equal(layout.columns(rows), spans)
    assert layout.rows == mask.sum()
    assert np.array_equal(layout.given(layout.read(taps[0], "taps"))[mask], taps[0][mask])


def test_heads_of_all_kinds_share_a_sweep():
    taps, labels, mask = token_problem()
    _, spans, _ = span_problem()
    rows = np.minimum(spans, mask.sum(axis=1)[:, None] - 1)
    classes = np.arange(12) % 3
    tasks = {"tokens": (lambda: HEADS["tokens"](dropout=0.1), labels), "spans": (HEADS["spans"], rows),
             "samples": (lambda: sherl.Classifier(FEATURES, 3, pool="last"), classes)}
    result = sherl.sweep(taps, None, {name: {"network": network(head=make()), "labels": given}
                                      for name, (make, given) in tasks.items()}, mask=mask, **FAST)
    for name, (make, given) in tasks.items():
        alone = network(head=make())
        history = alone.fit(taps, given, mask, **FAST)
        assert same_bits(result.networks[name].state_dict(), alone.state_dict()), name
        assert result.histories[name].step_losses == history.step_losses


def test_a_memory_budget_bounds_rows_too():
    taps, labels, mask = token_problem(40, 30)
    nets = [network(head=HEADS["tokens"]()) for _ in range(2)]
    for net, budget in zip(nets, ("300 KiB", None)):
        net.fit(taps, labels, mask, memory_budget=budget, validation=(taps, labels, mask), **FAST)
    for name, value in nets[0].state_dict().items():
        assert np.allclose(value, nets[1].state_dict()[name], atol=1e-4), name
    assert np.allclose(nets[0].forward(taps, mask, memory_budget="300 KiB"), nets[0].forward(taps, mask), atol=1e-5)
    with pytest.raises(ValueError, match="memory_budget must be at least"):
        nets[0].fit(taps, labels, mask, memory_budget="1 KiB", **FAST)
