"""Seq2SeqSideNetwork: losses, threads, budgets, resuming, saving, generation, and bad input."""

import copy
import pickle

import numpy as np
import pytest
from tiny_models import write_tiny_model, write_tokenizer

import sherl
from sherl import _core
from sherl.network.generation import StepDecoder, search

WORDS, END = 20, 1
LENGTHS, TARGET_LENGTHS = (3, 9, 1, 12, 5, 7), (2, 4, 1, 6, 3, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("t5") / "model", "t5", num_layers=3)


@pytest.fixture(scope="module")
def backbone(folder):
    return sherl.load_backbone(folder)


def pairs(seed=0):
    generator = np.random.default_rng(seed)
    return [[[*generator.integers(2, WORDS, length - 1).tolist(), END] for length in lengths]
            for lengths in (LENGTHS, TARGET_LENGTHS)]


@pytest.fixture(scope="module")
def features(backbone):
    return backbone.extract_pairs(*pairs())


def network_of(backbone, seed=3, **settings):
    """A network with random weights in every place, so that no gradient is zero."""
    network = sherl.Seq2SeqSideNetwork.from_backbone(backbone, hidden=4, **settings)
    generator = np.random.default_rng(seed)
    network.load_state_dict({
        name: value + (0.02 if name.endswith("gate") else 0.3) * generator.standard_normal(value.shape, np.float32)
        for name, value in network.state_dict().items()
    })
    return network


@pytest.fixture
def network(backbone):
    return network_of(backbone)


def trained(network, features, **settings):
    return network.fit(features, **{"epochs": 3, "batch_size": 2, "learning_rate": 1e-2, "progress": False, **settings})


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


# ---- The loss ----


def losses_of(network, features):
    """Of every token, by the logits."""
    losses = []
    for logits, labels in zip(network.forward(features), features.labels):
        z = logits.astype(np.float64)
        losses.append(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), np.maximum(labels, 0)])
    return losses


def test_the_loss_is_the_mean_over_the_tokens_that_count(network, features):
    labels = copy.deepcopy(features.labels)
    labels[1][0] = labels[3][2] = -100
    counted = np.concatenate(labels) >= 0
    losses = np.concatenate(losses_of(network, features))[counted]
    loss, _ = network.loss_and_gradients(features, labels)
    assert loss == pytest.approx(losses.mean(), rel=1e-5)
    scores = network.evaluate(features, labels, batch_size=2)
    assert scores["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    best = np.concatenate([logits.argmax(axis=1) for logits in network.forward(features)])
    assert scores["accuracy"] == pytest.approx((best == np.concatenate(labels))[counted].mean())


def test_labels_may_be_padded(network, features):
    padded = np.full((len(features), 9), -100)
    for row, label in zip(padded, features.labels):
        row[: len(label)] = label
    assert network.evaluate(features, padded) == network.evaluate(features)
    padded[1, 5] = 3
    with pytest.raises(ValueError, match="labels of sample 1 must be -100 beyond its 4 decoder rows"):
        network.evaluate(features, padded)


def test_sample_weights_and_accumulation(backbone, features):
    weighted = network_of(backbone).loss_and_gradients(features, sample_weight=[2, 0, 0, 0, 0, 0])
    alone = network_of(backbone).loss_and_gradients(features[:1])
    assert weighted[0] == pytest.approx(alone[0], rel=1e-5)
    whole, parts = network_of(backbone), network_of(backbone)
    trained(whole, features, batch_size=6, epochs=2)
    trained(parts, features, batch_size=2, accumulate=3, epochs=2)
    for name, value in whole.state_dict().items():
        np.testing.assert_allclose(parts.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_a_loss_of_ones_own_that_is_the_cross_entropy_gives_the_same_weights(backbone, features):
    def cross_entropy(logits, labels, lengths):
        kept = labels[np.arange(labels.shape[1]) < lengths[:, None]]
        z = logits.astype(np.float64)
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        losses = -np.log(p[np.arange(len(kept)), kept])
        p[np.arange(len(kept)), kept] -= 1
        return losses.mean(), p / len(kept)

    own, usual = network_of(backbone), network_of(backbone)
    history = trained(own, features, loss=cross_entropy, batch_size=6, validation=features, metrics="accuracy")
    expected = trained(usual, features, batch_size=6, validation=features)
    for name, value in usual.state_dict().items():
        np.testing.assert_allclose(own.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    assert history.epochs[-1]["validation_accuracy"] == expected.epochs[-1]["validation_accuracy"]


# ---- Training ----


def test_training_learns_the_targets(network, features):
    history = trained(network, features, epochs=60, learning_rate=2e-2, validation=features)
    assert history.epochs[-1]["validation_loss"] < 0.8 * history.epochs[0]["validation_loss"]
    assert history.epochs[-1]["validation_accuracy"] > history.epochs[0]["validation_accuracy"]


def test_the_number_of_threads_changes_no_bit(backbone, features):
    states, threads = [], sherl.get_num_threads()
    try:
        for count in (1, 2, 3):
            sherl.set_num_threads(count)
            network = network_of(backbone)
            trained(network, features, batch_size=4)
            states.append(network.state_dict() | {"loss": np.array(network.evaluate(features)["loss"])})
    finally:
        sherl.set_num_threads(threads)
    assert_same(states[0], states[1])
    assert_same(states[0], states[2])


def test_a_resumed_training_has_the_same_bits(backbone, features, tmp_path):
    class Stop(sherl.Callback):
        def on_step_end(self, state):
            return state.step == 4

    whole, halves = network_of(backbone), network_of(backbone)
    trained(whole, features)
    trained(halves, features, checkpoint=tmp_path, callbacks=[Stop()])
    resumed = network_of(backbone, seed=8)
    trained(resumed, features, resume_from=tmp_path)
    assert_same(whole.state_dict(), resumed.state_dict())


def test_the_stepper_does_what_fit_does(backbone, features):
    fitted, stepped = network_of(backbone), network_of(backbone)
    trained(fitted, features, epochs=2, batch_size=6, schedule="constant", warmup=0, clip_norm=None, weight_decay=0.0)
    step = stepped.stepper(learning_rate=1e-2, weight_decay=0.0)
    for _ in range(2):
        step(features)
    for name, value in fitted.state_dict().items():  # the order of the samples is another
        np.testing.assert_allclose(stepped.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_a_memory_budget_is_kept(backbone, features):
    network = network_of(backbone)
    plan = network.memory_plan(batch_size=6, tokens=12, target_tokens=6)
    assert plan.gradients > 0 and plan.workspace > 0
    trained(network, features, memory_budget=plan.parameters + plan.gradients + plan.optimizer + plan.workspace)
    with pytest.raises(ValueError, match="12 rows in the encoder and 6 rows in the decoder"):
        trained(network, features, memory_budget=1000)


def test_the_logits_of_a_batch_never_exist():
    """The workspace of T5-base sizes at batch 16 holds far less than the logits of its 512 rows."""
    table = np.full((32128, 64), 0.01, np.float32)
    encoder, decoder = sherl.MTSA(3, 64, 8, down="gated"), sherl.MTSA(3, 64, 8, down="gated")
    network = sherl.Seq2SeqSideNetwork(encoder, decoder, [sherl.T5Block(64, 4, decoder=True)], table)
    assert network.memory_plan(batch_size=16, tokens=128, target_tokens=32).workspace < 32128 * 512 * 4 / 2


def test_narrow_taps_and_selections(network, backbone, features):
    expected = network.evaluate(features)["loss"]
    for dtype, limit in (("float16", 1e-3), ("bfloat16", 2e-2), ("int8", 5e-2)):
        narrow = backbone.extract_pairs(*pairs(), dtype=dtype)
        assert network.evaluate(narrow)["loss"] == pytest.approx(expected, rel=limit)
    assert network.evaluate(features.astype("float16"))["loss"] == pytest.approx(expected, rel=1e-3)
    chosen = features[[4, 1]]
    losses = losses_of(network, features)
    assert network.evaluate(chosen)["loss"] == pytest.approx(np.concatenate([losses[4], losses[1]]).mean(), rel=1e-5)


@pytest.mark.skipif(not _core.config()["bfloat16"], reason="the processor lacks AVX512-BF16")
def test_bfloat16_is_near_float32(backbone, features):
    usual, narrow = network_of(backbone), network_of(backbone, late_dtype="bfloat16")
    (loss, gradients), (near, others) = (network.loss_and_gradients(features) for network in (usual, narrow))
    assert near == pytest.approx(loss, rel=1e-2) and near != loss
    assert narrow.evaluate(features)["loss"] == pytest.approx(near, rel=1e-5)
    whole, other = (np.concatenate([made[name].ravel() for name in gradients]) for made in (gradients, others))
    assert np.linalg.norm(other - whole) < 0.05 * np.linalg.norm(whole)
    inputs = pairs()[0]
    assert narrow.generate(inputs, 5, 2) == search(WithoutCache(narrow, inputs), 6, backbone.language, 5, 2, 1.0)


# ---- Copies and folders ----


def test_copies_are_equal(network, features):
    expected = network.evaluate(features)
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert copied.evaluate(features) == expected
        assert copied.features_source == network.features_source


def test_saving_and_loading(network, features, backbone, folder, tmp_path):
    network.save_pretrained(tmp_path)
    loaded = sherl.Seq2SeqSideNetwork.from_pretrained(tmp_path, sherl.load_backbone(folder))
    assert_same(network.state_dict(), loaded.state_dict())
    assert loaded.evaluate(features) == network.evaluate(features)
    assert loaded.generate(pairs()[0], 5) == network.generate(pairs()[0], 5)
    with pytest.raises(ValueError, match="pass backbone="):
        sherl.Seq2SeqSideNetwork.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not describe a sherl side network"):
        sherl.SideNetwork.from_pretrained(tmp_path, backbone)


def test_another_backbone_is_refused(network, tmp_path):
    network.save_pretrained(tmp_path / "saved")
    other = sherl.load_backbone(write_tiny_model(tmp_path / "other", "t5", seed=9, num_layers=3))
    with pytest.raises(ValueError, match="late layer 0|head of backbone"):
        sherl.Seq2SeqSideNetwork.from_pretrained(tmp_path / "saved", other)
    with pytest.raises(ValueError, match="another backbone"):
        network.evaluate(other.extract_pairs(*pairs()))


# ---- Generation ----


class WithoutCache:
    """Logits of the next token from the whole sequence, computed anew at each step."""

    def __init__(self, network, inputs):
        self.network, self.inputs, self.tokens = network, inputs, None

    def __call__(self, owners, tokens, parents):
        before = [[] for _ in owners] if self.tokens is None else [self.tokens[parent] for parent in parents]
        first = self.tokens is None
        self.tokens = [[] if first else [*kept, int(token)] for kept, token in zip(before, tokens)]
        features = self.network.backbone.extract_pairs(
            [self.inputs[owner] for owner in owners], [[*tokens, END] for tokens in self.tokens], **self.network.taps)
        return np.stack([logits[-1] for logits in self.network.forward(features)])


@pytest.mark.parametrize("beams", [1, 2, 4])
def test_generation_with_a_cache_is_that_without(network, features, beams):
    trained(network, features, epochs=5)
    inputs = pairs()[0]
    expected = search(WithoutCache(network, inputs), len(inputs), network.backbone.language, 7, beams, 1.0)
    assert network.generate(inputs, 7, beams) == expected
    assert network.generate(inputs, 7, beams, batch_size=2) == expected


def test_the_logits_of_a_step_are_those_of_the_whole_sequence(network):
    inputs = pairs()[0][:2]
    read = network.backbone._stem.read(inputs, 12)
    decoder = StepDecoder(network, np.array([0, *np.cumsum(read.sizes)]), read.inputs(0, 2))
    other = WithoutCache(network, inputs)
    steps = ([0, 1], [0, 0], [0, 1]), ([0, 0, 1], [5, 6, 7], [0, 0, 1]), ([0, 1], [3, 4], [1, 2])
    for owners, tokens, parents in steps:
        owners, parents = np.array(owners), np.array(parents)
        expected = other(owners, tokens, parents)
        np.testing.assert_allclose(decoder(owners, np.array(tokens), parents), expected, rtol=1e-3, atol=1e-4)


def test_more_beams_never_rank_lower_at_one_step(network):
    inputs = pairs()[0]
    assert network.generate(inputs, 1) == network.generate(inputs, 1, 4)


def test_late_blocks_can_be_two_and_trainable(backbone, features):
    made = network_of(backbone)
    trainable = sherl.T5Block(**backbone.decoder_layers[-1].settings)
    network = sherl.Seq2SeqSideNetwork(
        sherl.MTSA(made.encoder.taps, 16, 4, down="gated"), sherl.MTSA(made.decoder.taps, 16, 4, down="gated"),
        [backbone.decoder_layers[-1], trainable], backbone.language.lm_head, backbone.language.scale, backbone=backbone)
    trained(network, features)
    inputs = pairs()[0]
    expected = search(WithoutCache(network, inputs), len(inputs), backbone.language, 5, 2, 1.0)
    assert network.generate(inputs, 5, 2) == expected


def test_texts_go_in_and_come_out(tmp_path):
    words = ["<pad>", "</s>", *(f"w{number}" for number in range(2, WORDS))]
    backbone = sherl.load_backbone(write_tokenizer(write_tiny_model(tmp_path / "texts", "t5", num_layers=3), words))
    texts, targets = ["w3 w4", "w5", "w6 w7 w8"], ["w9 w10", "w11 w12", "w13"]
    features = backbone.extract_pairs(texts, targets)
    assert features.labels[0].tolist() == [9, 10, 1]
    network = sherl.Seq2SeqSideNetwork.from_backbone(backbone, hidden=16)
    trained(network, features, epochs=150, batch_size=3, learning_rate=2e-2)
    assert network.generate(texts, 5) == targets
    assert network.generate(texts, 5, 3) == targets


# ---- Bad input ----


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (lambda b, n, f: n.evaluate([1]), TypeError, "features must be Seq2SeqFeatures"),
        (lambda b, n, f: n.evaluate(f, [[1]]), ValueError, "labels must be 6 arrays"),
        (lambda b, n, f: n.evaluate(f, [label[:-1] for label in f.labels]), ValueError, "labels must have shape"),
        (lambda b, n, f: n.evaluate(f, [label + 30 for label in f.labels]), ValueError, "from 0 to 19"),
        (lambda b, n, f: n.evaluate(sherl.Seq2SeqFeatures(f.encoder, f.decoder)), ValueError, "labels must be given"),
        (lambda b, n, f: n.evaluate(sherl.Seq2SeqFeatures(f.encoder.select([0]), f.decoder, f.labels)), ValueError,
         "encoder taps"),
        (lambda b, n, f: sherl.Seq2SeqFeatures(f.encoder, f.decoder[:2]), ValueError, "as many samples"),
        (lambda b, n, f: sherl.Seq2SeqFeatures(f.encoder, [1]), TypeError, "decoder must be Features"),
        (lambda b, n, f: sherl.Seq2SeqFeatures(f.encoder, f.decoder, [[1.5]] * 6), TypeError, "whole token ids"),
        (lambda b, n, f: n.fit(f, validation=(f, None, None)), TypeError, "validation must be"),
        (lambda b, n, f: n.generate([[3, 1]], 0), ValueError, "max_new_tokens"),
        (lambda b, n, f: n.generate([[3, 1]], 3, 20), ValueError, "num_beams"),
        (lambda b, n, f: n.generate([[30, 1]]), ValueError, "token ids from 0 to 19"),
        (lambda b, n, f: pickle.loads(pickle.dumps(n)).generate([[3, 1]]), ValueError, "generate needs the frozen"),
        (lambda b, n, f: b.extract_pairs([[3, 1]], [[3, 1], [4, 1]]), ValueError, "as many, got 1 and 2"),
        (lambda b, n, f: b.extract_pairs([[3, 1]], [[3, 1]], encoder_taps=[0]), ValueError, "at least two"),
        (lambda b, n, f: b.extract_pairs([[3, 1]], [[3, 1]], decoder_taps=[0, 9]), ValueError, "decoder_taps"),
        (lambda b, n, f: sherl.Seq2SeqSideNetwork.from_backbone(b, decoder_taps=[0, 3]), ValueError, "the late one"),
        (lambda b, n, f: sherl.Seq2SeqSideNetwork.from_backbone([1]), TypeError, "with a decoder"),
        (lambda b, n, f: sherl.Seq2SeqSideNetwork(n.encoder, n.decoder, n.late, n.head), ValueError, "already belongs"),
        (lambda b, n, f: sherl.Seq2SeqSideNetwork(*adapters(), (), n.head), ValueError, "at least one block"),
        (lambda b, n, f: hand_made(b, None), TypeError, "lm_head must be an array"),
        (lambda b, n, f: hand_made(b, np.ones((5, 9))), ValueError, "lm_head must have"),
        (lambda b, n, f: sherl.Seq2SeqSideNetwork(*adapters(), b.layers[-1:], b.language.lm_head), TypeError,
         r"late\[0\] must be a T5Block of a decoder"),
        (lambda b, n, f: hand_made(b, b.language.lm_head, encoder_norm=[1.0]), ValueError,
         "encoder_norm must have shape"),
    ],
)  # fmt: skip
def test_bad_input_is_named(backbone, features, call, kind, message):
    with pytest.raises(kind, match=message):
        call(backbone, network_of(backbone), features)


def hand_made(backbone, lm_head, **settings):
    return sherl.Seq2SeqSideNetwork(*adapters(), backbone.decoder_layers[-1:], lm_head, **settings)


def adapters():
    return sherl.MTSA(3, 16, 4, down="gated"), sherl.MTSA(3, 16, 4, down="gated")
