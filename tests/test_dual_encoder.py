"""Two networks trained on pairs: gradients, learning, retrieval, resuming, saving, and what goes wrong."""

import copy

import numpy as np
import pytest
from small import FEATURES, mask_of, network, same_bits, taps_of

import sherl
from sherl.training.metrics import retrieval

pytestmark = pytest.mark.core

FAST = {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3, "progress": False}


def pair_problem(samples=32, seed=0):
    """Two kinds of taps of their own shapes, which share a code of six numbers a sample, and their masks."""
    generator = np.random.default_rng([seed, 5])
    code = generator.standard_normal((samples, 1, 6))
    a, b = taps_of(samples, 6, 3, seed), taps_of(samples, 4, 2, seed + 50)
    a[-1][:, :, :6] = 3 * code
    b[-1][:, :, 10:16] = 3 * code
    return a, b, mask_of(samples, 6, seed), mask_of(samples, 4, seed + 50)


def towers(pool_a="gpo", pool_b="mean", temperature=None, dropout=0.1, out=12):
    heads = [sherl.Embedding(FEATURES, out, pool=pool_a, dropout=dropout, temperature=temperature),
             sherl.Embedding(FEATURES, out, pool=pool_b)]
    return [network(taps, late, head, seed, dropout)
            for taps, late, head, seed in ((3, 1, heads[0], 0), (2, 0, heads[1], 1))]


def dual(loss=None, **settings):
    return sherl.DualEncoder(*towers(**settings), loss=loss)


LOSSES = {
    "contrastive": lambda: (sherl.losses.contrastive(0.1), None),
    "learned temperature": lambda: (None, 0.2),
    "triplet": lambda: (sherl.losses.triplet(), None),
    "triplet, all": lambda: (sherl.losses.triplet(negatives="all"), None),
}


@pytest.mark.parametrize("case", LOSSES)
@pytest.mark.parametrize("repeated", [False, True])
def test_a_step_follows_the_gradient_of_both_networks(case, repeated, double_core):
    a, b, mask_a, mask_b = pair_problem(7)
    pairs = np.array([[0, 0], [1, 1], [1, 2], [2, 3], [3, 3], [4, 4], [6, 5]]) if repeated else None
    loss, temperature = LOSSES[case]()
    net = dual(loss, temperature=temperature)
    weights = net.state_dict()

    def stepped(state):
        net.load_state_dict(state)
        step = net.stepper(optimizer="sgd", learning_rate=1.0, weight_decay=0.0)
        return step(a, b, pairs, mask_a=mask_a, mask_b=mask_b)

    assert stepped(weights) > 0
    after = net.state_dict()
    random, size = np.random.default_rng(0), 1e-6
    for name, value in weights.items():
        direction = random.standard_normal(value.shape)
        ends = [stepped({**weights, name: value + sign * size * direction}) for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * size)
        assert np.sum((value - after[name]) * direction) == pytest.approx(expected, rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("case", LOSSES)
def test_training_learns_to_find_what_belongs_together(case):
    a, b, mask_a, mask_b = pair_problem(160)
    held_out = pair_problem(40, seed=3)
    loss, temperature = LOSSES[case]()
    net = dual(loss, temperature=temperature)
    before = net.evaluate(held_out[0], held_out[1], mask_a=held_out[2], mask_b=held_out[3])
    history = net.fit(a, b, mask_a=mask_a, mask_b=mask_b, validation=(*held_out[:2], None, *held_out[2:]),
                      **{**FAST, "epochs": 40, "batch_size": 32, "learning_rate": 1e-2})
    scores = net.evaluate(held_out[0], held_out[1], mask_a=held_out[2], mask_b=held_out[3])
    assert before["a_to_b_r1"] < 15
    assert min(scores["a_to_b_r1"], scores["b_to_a_r1"]) > 40  # by chance 2.5
    assert scores["a_to_b_r10"] > 80
    for name, value in scores.items():
        assert history.epochs[-1][f"validation_{name}"] == value
    assert history.monitor == "validation_rsum"


def test_embeddings_are_what_is_scored():
    a, b, mask_a, mask_b = pair_problem(20)
    net = dual(temperature=0.2)
    first, second = net.embed_a(a, mask_a), net.embed_b(b, mask_b)
    for rows in (first, second):
        assert rows.shape == (20, 12) and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    scores = net.evaluate(a, b, mask_a=mask_a, mask_b=mask_b)
    assert scores == retrieval(first @ second.T)
    several = [[0, 0], [0, 1], [1, 2]]
    assert net.evaluate(a, b, several, mask_a=mask_a, mask_b=mask_b) == retrieval(first @ second.T, several)


def test_rows_given_with_each_sample():
    a, b, mask_a, mask_b = pair_problem(16)
    net = dual(pool_a="position", pool_b="last")
    features, rows = sherl.Features.from_arrays(a, mask_a), mask_a.sum(axis=1) - 1
    history = net.fit(features.with_positions(rows), sherl.Features.from_arrays(b, mask_b), **FAST)
    other = dual(pool_a="last", pool_b="last")
    assert other.fit(features, sherl.Features.from_arrays(b, mask_b), **FAST).step_losses == history.step_losses
    with pytest.raises(ValueError, match="positions must be given"):
        net.fit(a, b, **FAST)


def test_a_learned_temperature_moves_and_is_bounded():
    a, b, mask_a, mask_b = pair_problem(24)
    net = dual(temperature=0.011)
    net.fit(a, b, mask_a=mask_a, mask_b=mask_b, **{**FAST, "learning_rate": 0.05})
    scale = np.exp(net.state_dict()["a.head.log_scale"][0]) / 0.011
    assert scale <= 100 * (1 + 1e-5) and net.state_dict()["a.head.log_scale"] != 0


def test_same_bits_on_any_number_of_threads_and_after_a_resume(tmp_path, keep_threads):
    a, b, mask_a, mask_b = pair_problem(30)
    pairs = np.stack([np.arange(30) // 2, np.arange(30)], axis=1)  # two of the second kind for one of the first
    settings = {**FAST, "accumulate": 2, "mask_a": mask_a, "mask_b": mask_b,
                "validation": (a, b, pairs, mask_a, mask_b),
                "ema": 0.9, "learning_rate_factors": {"a.head.*": 0.5}, "seed": 4}

    def fitted(threads=1, **more):
        sherl.set_num_threads(threads)
        net = dual(temperature=0.1)
        return net, net.fit(a, b, pairs, **{**settings, **more})

    class Stop(sherl.Callback):
        def on_step_end(self, state):
            return state.step == 3

    net, history = fitted()
    assert same_bits(net.state_dict(), fitted(threads=3)[0].state_dict())
    fitted(checkpoint=tmp_path, callbacks=Stop())
    resumed, after = fitted(resume_from=tmp_path)
    assert same_bits(resumed.state_dict(), net.state_dict())
    assert after.step_losses == history.step_losses
    with pytest.raises(ValueError, match="of another training: loss was"):
        other = dual(sherl.losses.triplet(), temperature=0.1)
        other.fit(a, b, pairs, resume_from=tmp_path, **settings)


def test_repeated_samples_are_no_negatives_of_each_other():
    a, b, mask_a, mask_b = pair_problem(6)
    seen = []

    def loss(a, b, matches):
        seen.append((np.array(a), np.array(b), matches))
        return 0.0, np.zeros_like(a), np.zeros_like(b)

    net = dual(loss, dropout=0.0)
    pairs = np.array([[2, 0], [2, 1], [0, 5], [1, 5]])
    net.stepper(weight_decay=0.0)(a, b, pairs, mask_a=mask_a, mask_b=mask_b)
    assert np.allclose(seen[0][0], net.embed_a(a, mask_a)[pairs[:, 0]], atol=1e-6)
    assert np.allclose(seen[0][1], net.embed_b(b, mask_b)[pairs[:, 1]], atol=1e-6)
    assert np.array_equal(seen[0][2], [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    net.stepper()(a, b, mask_a=mask_a, mask_b=mask_b)
    assert seen[1][2] is None


def test_saved_copied_and_loaded(tmp_path):
    pytest.importorskip("safetensors")
    a, b, mask_a, mask_b = pair_problem(8)
    nets = [network(3, 0, sherl.Embedding(FEATURES, 5, pool="max"), 0), network(2, 0, sherl.Embedding(FEATURES, 5), 1)]
    net = sherl.DualEncoder(*nets, loss=sherl.losses.triplet(0.3, "all"))
    net.save_pretrained(tmp_path)
    loaded = sherl.DualEncoder.from_pretrained(tmp_path)
    for other in (loaded, copy.deepcopy(net)):
        assert same_bits(other.state_dict(), net.state_dict())
        assert same_bits(other.embed_a(a, mask_a), net.embed_a(a, mask_a))
        assert other.loss.made == net.loss.made
    other = sherl.DualEncoder.from_pretrained(tmp_path, loss=sherl.losses.contrastive())
    assert other.loss.__name__ == "contrastive(temperature=0.05)"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="does not describe a sherl dual encoder"):
        sherl.DualEncoder.from_pretrained(tmp_path)
    assert "DualEncoder, sherl.losses.triplet" in repr(net)
    assert net.num_parameters() == nets[0].num_parameters() + nets[1].num_parameters()
    plan = net.memory_plan(batch_size=16, tokens_a=6, tokens_b=4)
    parts = nets[0].memory_plan(batch_size=16, tokens=6), nets[1].memory_plan(batch_size=16, tokens=4)
    assert plan.workspace == parts[0].workspace + parts[1].workspace
    assert plan.parameters == parts[0].parameters + parts[1].parameters


def test_a_load_changes_both_networks_or_none():
    net = dual()
    before = net.state_dict()
    changed = {name: value + 1 for name, value in before.items()}
    for wrong, message in (({**changed, "b.head.bias": np.zeros(3)}, "b: the state dictionary does not fit"),
                           ({**changed, "c.head.bias": np.zeros(3)}, "unexpected c.head.bias"),
                           ({**changed, "a.tail": np.zeros(3)},
                            "a: the state dictionary does not fit: unexpected tail")):
        with pytest.raises(ValueError, match=message):
            net.load_state_dict(wrong)
        assert same_bits(net.state_dict(), before)
    report = net.load_state_dict({**changed, "c": np.zeros(1), "b.x": np.zeros(1)}, strict=False)
    assert report.unexpected == ["b.x", "c"] and same_bits(net.state_dict(), changed)


def test_an_error_in_a_step_changes_nothing():
    a, b, mask_a, mask_b = pair_problem(8)
    answers = {
        "raises": (lambda a, b, m: 1 / 0, ZeroDivisionError, "division"),
        "pair": (lambda a, b, m: (0.0, a), TypeError, r"must return a tuple \(loss, gradient of a, gradient of b\)"),
        "shape": (lambda a, b, m: (0.0, a, b[1:]), ValueError, "two gradients of the embeddings' shape"),
        "value": (lambda a, b, m: (np.nan, a, b), FloatingPointError, "loss returned nan"),
        "gradient": (lambda a, b, m: (0.0, a, np.full_like(b, np.inf)), FloatingPointError, "not finite"),
        "overflow": (lambda a, b, m: (0.0, a, np.full_like(b, 3e38)), FloatingPointError, "."),
    }
    for loss, error, message in answers.values():
        net = dual(loss)
        before, step = net.state_dict(), net.stepper()
        with pytest.raises(error, match=message):
            step(a, b, mask_a=mask_a, mask_b=mask_b)
        assert same_bits(net.state_dict(), before) and step.steps == 0


def test_bad_input_is_named():
    a, b, mask_a, mask_b = pair_problem(8)
    first, second = towers()
    for arguments, error, message in (
        ((first, first), ValueError, "a and b must be two networks"),
        ((first, 3), TypeError, "b must be a SideNetwork, got int"),
        ((network(), second), TypeError, "a must have an Embedding as its head, got Classifier"),
        ((first, towers(out=5)[1]), ValueError, "must embed into as many channels, got 12 and 5"),
        ((first, second, 3), TypeError, "loss must be a function"),
        ((towers(temperature=1.0)[0], towers(temperature=1.0)[0]), ValueError, "must not both have a head with a temp"),
    ):
        with pytest.raises(error, match=message):
            sherl.DualEncoder(*arguments)
    net = sherl.DualEncoder(first, second)
    with pytest.raises(ValueError, match="pairs must be given where the two kinds are not equally many, got 8 and 7"):
        net.fit(a, [tap[:7] for tap in b], **FAST)
    with pytest.raises(ValueError, match="pairs must be from 0 to 7 and 7"):
        net.fit(a, b, [[0, 8]], **FAST)
    with pytest.raises(ValueError, match=r"pairs must be whole numbers of shape \(pairs, 2\)"):
        net.fit(a, b, [0, 1], **FAST)
    with pytest.raises(ValueError, match="validation: pairs must be"):
        net.fit(a, b, validation=(a, b, [[9, 0]]), **FAST)
    with pytest.raises(ValueError, match="monitor must be one of loss, rsum, .*, got 'accuracy'"):
        net.fit(a, b, validation=(a, b), monitor="accuracy", **FAST)
    with pytest.raises(ValueError, match="'head.\\*' fits none of them"):
        net.fit(a, b, learning_rate_factors={"head.*": 0.1}, **FAST)
