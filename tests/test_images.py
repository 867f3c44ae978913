"""Images and towers as users meet them: features, blocks, networks, training, saving, errors."""

import copy
import pickle

import numpy as np
import pytest
from small import (
    RESNET,
    basic_block_weights,
    bottleneck_weights,
    frozen_layer,
    image_network,
    image_problem,
    image_taps,
    same_bits,
)

import sherl

pytestmark = pytest.mark.core


def ragged_taps(samples=5, seed=0):
    """Return taps of images of different sizes as matrices of pixels, and their sizes."""
    rng = np.random.default_rng([seed, 9])
    last = rng.integers(1, 4, (samples, 2))
    sizes = [last * window for window in RESNET["pool"]]
    rows = [int(size.prod(axis=1).sum()) for size in sizes]
    taps = [rng.standard_normal((count, width), dtype=np.float32) for count, width in zip(rows, RESNET["features"])]
    return taps, sizes


# ---- Features --------------------------------------------------------------------------------------------------------


def test_features_of_images_of_one_size():
    taps = image_taps()
    features = sherl.Features.from_arrays(taps)
    assert len(features) == 6
    assert features.channels == RESNET["features"]
    assert [sizes[0].tolist() for sizes in features.sizes] == [list(side) for side in RESNET["sides"]]
    assert features.lengths.tolist() == [2] * 6
    assert features.nbytes == sum(tap.nbytes for tap in taps)
    assert np.shares_memory(features.taps[0], taps[0])
    chosen = features[[4, 1]]
    assert np.array_equal(chosen.taps[0], taps[0][[4, 1]].reshape(-1, 8))
    assert chosen.select([1]).lengths.tolist() == [32, 32]
    np.testing.assert_allclose(features.pooled(0), taps[0].mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    assert np.array_equal(features.pooled(1, "max"), taps[1].max(axis=(1, 2)))
    assert np.array_equal(features.pooled(2, "first"), taps[2][:, 0, 0])


def test_features_of_images_of_many_sizes():
    taps, sizes = ragged_taps()
    features = sherl.Features(taps, sizes=sizes)
    assert np.array_equal(features.lengths, sizes[-1].prod(axis=1))
    narrow = features.astype("float16")
    assert [np.array_equal(a, b) for a, b in zip(narrow.sizes, sizes)] == [True] * 4
    assert features.fingerprint == sherl.Features(taps, sizes=sizes).fingerprint
    assert features.fingerprint != sherl.Features(taps, sizes=[size[:, ::-1] for size in sizes]).fingerprint
    assert np.array_equal(features[3:].sizes[1], sizes[1][3:])
    assert "5 samples" in repr(features)


def test_features_of_a_tower():
    taps = [np.ones((3, 4, 5), np.float32), np.full((3, 2), 7, np.float32)]
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    features = sherl.Features.from_arrays(taps, mask)
    assert features.lengths.tolist() == [2, 4, 1]
    assert [tap.shape for tap in features.taps] == [(7, 5), (3, 2)]
    assert features.nbytes == 7 * 5 * 4 + 3 * 2 * 4
    matrices = sherl.Features([np.ones((7, 5)), np.ones((3, 2))], [2, 4, 1])
    assert [tap.shape for tap in matrices[1:].taps] == [(5, 5), (2, 2)]
    assert matrices.select([1]).lengths.tolist() == [1, 1, 1]
    assert matrices.pooled().shape == (3, 2)
    assert matrices.astype("float32").channels == [5, 2]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda t, s: sherl.Features(t, [1], sizes=s), ValueError, "lengths must be left out with sizes"),
        (lambda t, s: sherl.Features(t, sizes=s[:2]), ValueError, "an item for each of the 4 taps, got 2"),
        (lambda t, s: sherl.Features(t, sizes=[*s[:3], s[3][:, :1]]), ValueError, r"sizes\[3\] must be whole numbers"),
        (lambda t, s: sherl.Features(t, sizes=[*s[:3], 0 * s[3]]), ValueError, r"sizes\[3\] must be 1 or more, got 0"),
        (lambda t, s: sherl.Features(t, sizes=[*s[:3], s[3][1:]]), ValueError, r"sizes\[3\] must have 5 samples"),
        (lambda t, s: sherl.Features([*t[:3], t[3][1:]], sizes=s), ValueError, r"taps\[3\] must have .*as sizes count"),
        (lambda t, s: sherl.Features.from_arrays(image_taps(), np.ones((6, 2))), ValueError, "mask goes with tokens"),
        (lambda t, s: sherl.Features.from_arrays([*image_taps(), t[0]]), ValueError,
         r"taps\[4\] must have shape \(batch, height, width, channels\)"),
        (lambda t, s: sherl.Features.from_arrays([image_taps()[0][:2], image_taps()[1]]), ValueError,
         r"taps\[1\] must have a batch of 2"),
        (lambda t, s: sherl.Features.from_arrays([np.ones((3, 2, 4)), np.ones((2, 4))]), ValueError,
         r"taps\[1\] must have shape \(batch, channels\) with a batch of 3"),
    ],
)  # fmt: skip
def test_bad_features(make, error, message):
    with pytest.raises(error, match=message):
        make(*ragged_taps())


# ---- Blocks ----------------------------------------------------------------------------------------------------------


def test_blocks_take_images_of_many_sizes_as_one_by_one():
    taps, sizes = ragged_taps()
    features = sherl.Features(taps, sizes=sizes)
    mtsa = image_network().early
    block = sherl.Bottleneck.from_resnet(bottleneck_weights(24, 6, 10, shortcut=True), stride=2)
    out = mtsa(features)
    late = block(out)
    assert np.array_equal(out.sizes[0], sizes[-1])
    assert np.array_equal(late.sizes[0], (sizes[-1] - 1) // 2 + 1)
    for number in range(len(features)):
        one = features[number]
        arrays = [tap.reshape(1, *size[0], -1) for tap, size in zip(one.taps, one.sizes)]
        assert np.allclose(mtsa(arrays).reshape(-1, 24), out[number].taps[0], rtol=1e-5, atol=1e-6)
        assert np.allclose(block(mtsa(arrays)).reshape(-1, 10), late[number].taps[0], rtol=1e-5, atol=1e-6)
    same, gradients = block.vjp(out, late)
    assert np.array_equal(same.taps[0], late.taps[0])
    assert np.array_equal(gradients["x"].sizes[0], sizes[-1])


def test_gradients_come_in_the_form_of_the_taps():
    taps = image_taps(3)
    network = image_network()
    out, gradients = network.early.vjp(taps, np.ones_like(taps[-1]), taps_gradient=True)
    assert out.shape == taps[-1].shape
    assert [gradients[f"tap{number}"].shape for number in range(4)] == [tap.shape for tap in taps]
    assert gradients["last"].shape == taps[-1].shape
    outputs, of_network = network.vjp(taps, np.ones((3, 2)), taps_gradient=True)
    assert [of_network[f"tap{number}"].shape for number in range(4)] == [tap.shape for tap in taps]
    _, ragged = network.vjp(sherl.Features.from_arrays(taps), np.ones((3, 2)), taps_gradient=True)
    for number in range(4):
        flat = of_network[f"tap{number}"].reshape(-1, RESNET["features"][number])
        assert np.array_equal(ragged[f"tap{number}"].taps[0], flat)
    assert np.array_equal(outputs, network.forward(taps))


def test_bottleneck_is_frozen_and_copies():
    weights = bottleneck_weights()
    block = sherl.Bottleneck.from_resnet({**weights, "bn1.num_batches_tracked": np.array(3)})
    x = image_taps()[-1]
    again = pickle.loads(pickle.dumps(block))
    assert np.array_equal(again(x), block(x))
    other = sherl.Bottleneck.from_resnet(bottleneck_weights(seed=1))
    assert again.fingerprint == block.fingerprint != other.fingerprint
    assert copy.deepcopy(block) is block
    assert block.num_parameters() == 0
    assert block.num_parameters(trainable_only=False) == 24 * 6 + 6 + 6 * 54 + 6 + 6 * 24 + 24
    assert not block.trainable
    assert "stride=1" in repr(block)


def without(name):
    weights = bottleneck_weights()
    del weights[name]
    return weights


@pytest.mark.parametrize(
    ("weights", "settings", "error", "message"),
    [
        (without("bn2.running_var"), {}, ValueError, "missing bn2.running_var"),
        ({**bottleneck_weights(), "fc.weight": np.ones(3)}, {}, ValueError, "unexpected fc.weight"),
        ({**bottleneck_weights(), "downsample.0.weight": np.ones((24, 24, 1, 1))}, {}, ValueError,
         "missing downsample.1"),
        ({**bottleneck_weights(), "conv2.weight": np.ones((6, 6, 5, 5))}, {}, ValueError,
         r"conv2.weight'\] must have shape \(6, 6, 3, 3\)"),
        ({**bottleneck_weights(), "conv1.weight": np.ones((6, 24))}, {}, ValueError, "must have shape .out, in"),
        ({**bottleneck_weights(), "bn1.running_var": -np.ones(6)}, {}, ValueError, "must be 0 or more"),
        ({**bottleneck_weights(), "bn1.bias": np.full(6, np.nan)}, {}, ValueError, "finite"),
        (bottleneck_weights(), {"stride": 2}, ValueError, "stride must be 1 and out_features those of x"),
        (bottleneck_weights(24, 6, 10), {}, ValueError, "out_features those of x"),
        (bottleneck_weights(), {"stride": 0}, ValueError, "stride must be 1 or more"),
        (bottleneck_weights(), {"eps": 0}, ValueError, "eps must be more than"),
        ([1], {}, TypeError, "weights must be a dictionary"),
    ],
)  # fmt: skip
def test_bad_bottlenecks(weights, settings, error, message):
    with pytest.raises(error, match=message):
        sherl.Bottleneck.from_resnet(weights, **settings)


@pytest.mark.parametrize(("stride", "outputs"), [(1, None), (1, 10), (2, 24), (2, 10)])
def test_basic_block(stride, outputs, double_core):
    """Against NumPy, and its gradient against finite differences."""
    shortcut = stride > 1 or outputs is not None
    weights = basic_block_weights(24, outputs, shortcut)
    block = sherl.BasicBlock.from_resnet(weights, stride=stride)
    assert (block.shortcut, block.out_features) == (shortcut, outputs or 24)
    rng = np.random.default_rng(stride)
    x = rng.standard_normal((2, 5, 4, 24))

    def convolved(x, place, norm, stride):
        kernel = weights[f"{place}.weight"].astype(np.float64)
        edge = kernel.shape[2] // 2
        padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], axis=(1, 2))
        z = np.einsum("nyxcij,fcij->nyxf", windows[:, ::stride, ::stride], kernel)
        z = (z - weights[f"{norm}.running_mean"]) / np.sqrt(weights[f"{norm}.running_var"].astype(float) + 1e-5)
        return z * weights[f"{norm}.weight"] + weights[f"{norm}.bias"]

    def twin(x):
        z = convolved(np.maximum(convolved(x, "conv1", "bn1", stride), 0), "conv2", "bn2", 1)
        return np.maximum(z + (convolved(x, "downsample.0", "downsample.1", stride) if shortcut else x), 0)

    cotangent = rng.standard_normal(twin(x).shape)
    out, gradients = block.vjp(x, cotangent)
    assert out.dtype == np.float64 and np.allclose(out, twin(x), rtol=1e-9, atol=1e-9)
    assert np.array_equal(out, block(x))
    for _ in range(3):
        step = rng.standard_normal(x.shape)
        slope = ((twin(x + 1e-7 * step) - twin(x - 1e-7 * step)) * cotangent).sum() / 2e-7
        assert np.isclose(slope, (gradients["x"] * step).sum(), rtol=1e-5)


def test_a_basic_block_takes_images_of_many_sizes_and_copies():
    taps, sizes = ragged_taps()
    block = sherl.BasicBlock.from_resnet(basic_block_weights(24, 10, shortcut=True), stride=2)
    features = sherl.Features([taps[-1]], sizes=[sizes[-1]])
    out = block(features)
    for number in range(len(features)):
        one = features[number]
        image = one.taps[0].reshape(1, *one.sizes[0][0], -1)
        assert np.allclose(block(image).reshape(-1, 10), out[number].taps[0], rtol=1e-5, atol=1e-6)
    again = pickle.loads(pickle.dumps(block))
    assert np.array_equal(again(features).taps[0], out.taps[0]) and again.fingerprint == block.fingerprint
    assert block.fingerprint != sherl.BasicBlock.from_resnet(basic_block_weights(24, 10, True, 1), stride=2).fingerprint
    assert copy.deepcopy(block) is block and not block.trainable and block.num_parameters() == 0
    assert block.num_parameters(trainable_only=False) == 10 * 9 * 24 + 10 + 10 * 9 * 10 + 10 + 10 * 24 + 10
    half = block.vjp(features, out)
    assert np.array_equal(half[0].taps[0], out.taps[0])


@pytest.mark.parametrize(
    ("weights", "settings", "error", "message"),
    [
        (bottleneck_weights(), {}, ValueError, "those of a ResNet basic block: unexpected bn3.bias"),
        ({**basic_block_weights(), "conv2.weight": np.ones((24, 12, 3, 3))}, {}, ValueError,
         r"conv2.weight'\] must have shape \(24, 24, 3, 3\)"),
        ({**basic_block_weights(), "conv1.weight": np.ones((24, 24))}, {}, ValueError, "must have shape .out, in"),
        (basic_block_weights(), {"stride": 2}, ValueError, "stride must be 1 and out_features those of x"),
        (basic_block_weights(24, 10), {}, ValueError, "out_features those of x"),
    ],
)  # fmt: skip
def test_bad_basic_blocks(weights, settings, error, message):
    with pytest.raises(error, match=message):
        sherl.BasicBlock.from_resnet(weights, **settings)
    with pytest.raises(ValueError, match="make one with BasicBlock.from_resnet"):
        sherl.BasicBlock(24)(image_taps()[-1])


def test_bad_calls_of_blocks():
    block = sherl.Bottleneck.from_resnet(bottleneck_weights())
    x = image_taps()[-1]
    mtsa, taps = image_network().early, image_taps()
    for attempt, error, message in [
        (lambda: block(x[..., :3]), ValueError, "x must have 24 channels, got 3"),
        (lambda: block(x[0]), ValueError, r"x must have shape \(batch, height, width, channels\)"),
        (lambda: block(x, np.ones(6)), ValueError, "mask goes with tokens"),
        (lambda: block(sherl.Features([np.ones((3, 24))], [3])), TypeError, "must be images"),
        (lambda: block.vjp(x, x[:, :1]), ValueError, "cotangent must have the output's shape"),
        (lambda: sherl.Bottleneck(24, 6)(x), ValueError, "has no weights"),
        (lambda: mtsa([taps[0][:, :15], *taps[1:]]), ValueError, r"taps\[0\] must have 8 times the height and width"),
        (lambda: mtsa(taps, last=taps[-1][:, :1]), ValueError, r"last must have the heights and widths of taps\[3\]"),
        (lambda: mtsa(taps[:3]), ValueError, "taps must be 4 arrays, got 3"),
        (lambda: mtsa(taps, mask=np.ones((6, 2))), ValueError, "mask goes with tokens"),
        (lambda: mtsa(taps, position=[0] * 6), ValueError, "position goes with base"),
        (lambda: mtsa(sherl.Features.from_arrays(taps), taps[-1]), TypeError, "all arrays or all Features"),
    ]:
        with pytest.raises(error, match=message):
            attempt()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": [2, 2]}, "pool must be None or one window for each of the 3 taps"),
        ({"pool": [2, 2, 2]}, "pool must end with 1"),
        ({"pool": [2, 0, 1]}, "pool must be 1 or more"),
        ({"pool": [2, 2, 1], "guidance": "spatial"}, "pool must be None with spatial guidance"),
        ({"base": "position"}, "base and gated_base go with guidance"),
        ({"gated_base": True}, "base and gated_base go with guidance"),
        ({"momentum": 1.0}, "momentum must be less than 1"),
        ({"base": "class"}, "base must be one of 'first', 'position'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        sherl.MTSA(3, 32, 8, **settings)


# ---- Presets ---------------------------------------------------------------------------------------------------------


def test_presets_have_the_published_settings():
    """The table of variants: down map, guidance, norm after the up map, its eps, eps of the weights, dropout."""
    rows = {
        "bert": ("layernorm", "token", "layernorm", 1e-12, 1e-8, 0.1),
        "t5": ("gated", "token", None, None, 1e-6, 0.0),
        "cross_modal": ("gated", "token", None, None, 1e-6, 0.0),
        "resnet": ("batchnorm", "token", "batchnorm", 1e-5, 1e-8, 0.0),
        "detr": ("layernorm", "residual_mlp", "layernorm", 1e-5, 1e-6, 0.0),
        "clip": ("relu", "spatial", None, None, 1e-6, 0.0),
    }
    shapes = {
        "bert": (12, 768, 96, 768), "t5": (10, 768, 96, 768), "cross_modal": (12, 768, 384, 768),
        "resnet": (4, [256, 512, 1024, 2048], 512, 2048), "detr": (4, 256, 128, 256), "clip": (13, 768, 512, 512),
    }  # fmt: skip
    for name, (down, guidance, up_norm, up_norm_eps, eps, dropout) in rows.items():
        mtsa = getattr(sherl.MTSA, name)()
        assert (mtsa.down, mtsa.guidance, mtsa.up_norm) == (down, guidance, up_norm)
        assert (mtsa.eps, mtsa.dropout) == (eps, dropout)
        assert up_norm is None or mtsa.up_norm_eps == up_norm_eps
        assert mtsa.down_norm_eps == 1e-5
        assert (mtsa.taps, mtsa.settings["features"], mtsa.hidden, mtsa.out_features) == shapes[name]
        assert mtsa.gate_temperature == 0.1
    assert sherl.MTSA.resnet().pool == [8, 4, 2, 1]
    assert sherl.MTSA.clip(tower="text", gated_base=True).settings["base"] == "position"
    assert sherl.MTSA.bert(32, taps=3, hidden=4, dropout=0.0).settings["dropout"] == 0.0
    with pytest.raises(ValueError, match="tower must be one of 'image', 'text'"):
        sherl.MTSA.clip(tower="video")


# ---- Networks on images ----------------------------------------------------------------------------------------------


def test_training_on_images_learns_and_is_the_same_on_any_number_of_threads(keep_threads):
    taps, labels = image_problem()
    found = []
    for threads in (1, 3):
        sherl.set_num_threads(threads)
        network = image_network()
        before = network.state_dict()["early.up.norm.running_mean"]
        history = network.fit(taps, labels, epochs=10, batch_size=8, learning_rate=1e-2, progress=False,
                              validation=(taps, labels))
        assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]
        assert network.score(taps, labels) > 0.8
        state = network.state_dict()
        assert not np.array_equal(state["early.up.norm.running_mean"], before)
        found.append(state)
    assert same_bits(*found)


def test_evaluation_leaves_running_statistics_alone():
    taps, labels = image_problem(6)
    network = image_network()
    before = network.state_dict()
    network.predict(taps)
    network.evaluate(taps, labels)
    network.loss_and_gradients(taps, labels)
    assert same_bits(network.state_dict(), before)
    network.loss_and_gradients(taps, labels, training=True)
    assert not same_bits(network.state_dict(), before)


def test_a_step_that_fails_leaves_running_statistics_alone():
    taps, labels = image_problem(8)
    network = image_network()
    step = network.stepper()
    step(taps, labels)
    before = network.state_dict()
    bad = [*taps[:-1], taps[-1].copy()]
    bad[-1][3, 0, 0, 0] = np.nan
    with pytest.raises(FloatingPointError):
        step(bad, labels)
    assert same_bits(network.state_dict(), before)
    step(taps, labels)
    assert not same_bits(network.state_dict(), before)


def test_a_step_of_several_batches_that_fails_late_leaves_running_statistics_alone():
    taps, labels = image_problem(8)
    taps[0][5] = np.inf  # in the second batch of a step, or the first, as the order falls
    network = image_network()
    before = network.state_dict()
    with pytest.raises(FloatingPointError, match="keeps its weights"):
        network.fit(taps, labels, epochs=1, batch_size=4, accumulate=2, progress=False)
    assert same_bits(network.state_dict(), before)


def test_an_interrupt_between_the_batches_of_a_step_leaves_running_statistics_alone(monkeypatch):
    taps, labels = image_problem(8)
    network = image_network()
    step = network.stepper()
    before = network.state_dict()

    class Interrupted:
        def __init__(self, trainer):
            self._trainer = trainer

        def __getattr__(self, name):
            if name == "update":
                raise KeyboardInterrupt
            return getattr(self._trainer, name)

    monkeypatch.setattr(step, "trainer", Interrupted(step.trainer))
    with pytest.raises(KeyboardInterrupt):
        step(taps, labels)
    assert same_bits(network.state_dict(), before)


def test_resumed_training_has_the_bits_of_one_without_a_break(tmp_path):
    taps, labels = image_problem(12)
    arguments = {"epochs": 3, "batch_size": 4, "progress": False, "seed": 3}
    whole = image_network()
    whole.fit(taps, labels, **arguments)

    class Stop(sherl.Callback):
        def on_epoch_end(self, state):
            return state.epoch == 2

    image_network().fit(taps, labels, **arguments, checkpoint=tmp_path, callbacks=[Stop()])
    resumed = image_network()
    resumed.fit(taps, labels, **arguments, resume_from=tmp_path)
    assert same_bits(resumed.state_dict(), whole.state_dict())


def test_images_of_many_sizes_train_and_predict():
    taps, sizes = ragged_taps(7)
    features = sherl.Features(taps, sizes=sizes)
    network = image_network()
    history = network.fit(features, [0, 1] * 3 + [0], epochs=2, batch_size=3, progress=False)
    assert np.isfinite(history.step_losses).all()
    outputs = network.forward(features)
    assert np.allclose(np.concatenate([network.forward(features[number]) for number in range(7)]), outputs, atol=1e-5)
    assert np.array_equal(network.forward(features, batch_size=2), outputs)


def test_narrow_images():
    taps, labels = image_problem(8)
    network = image_network()
    exact = network.forward(taps)
    for dtype, tolerance in (("float16", 0.02), ("bfloat16", 0.1), ("int8", 0.2)):
        features = sherl.Features.from_arrays(taps).astype(dtype)
        assert np.abs(network.forward(features) - exact).max() < tolerance
        assert np.isfinite(network.loss_and_gradients(features, labels)[0])


def test_memory_is_planned_and_bounded():
    taps, labels = image_problem(16)
    network = image_network()
    plan = network.memory_plan(batch_size=8, tokens=(2, 1))
    assert plan.workspace > 0
    assert network.memory_plan(batch_size=8, tokens=2).total > plan.total
    free = network.fit(taps, labels, batch_size=8, epochs=1, progress=False)
    bounded = image_network()
    with pytest.raises(ValueError, match="memory_budget must be at least"):
        bounded.fit(taps, labels, batch_size=8, epochs=1, progress=False, memory_budget=1000)
    with pytest.raises(ValueError,
                       match="batches of 8, which batch norms keep whole, of samples of up to 2 rows") as why:
        network.memory_plan(batch_size=8, tokens=(2, 1), memory_budget=1000)
    least = int(str(why.value).split("at least ")[1].split()[0])
    planned = network.memory_plan(batch_size=8, tokens=(2, 1), memory_budget=least)
    assert planned.total - planned.blas - planned.frozen_weights <= least
    least += least // 50  # the plan leaves out tables of the optimizer and its copy of running statistics
    image_network().fit(taps, labels, batch_size=8, epochs=1, progress=False, memory_budget=least)
    with pytest.raises(ValueError, match="memory_budget must be at least"):
        image_network().fit(taps, labels, batch_size=16, epochs=1, progress=False, memory_budget=least)
    tight = bounded.fit(taps, labels, batch_size=8, epochs=1, progress=False, memory_budget="4 MiB")
    assert np.allclose(tight.step_losses, free.step_losses, rtol=1e-4)
    for tokens in ((1, 2, 3), "ab", (0, 1)):
        with pytest.raises((TypeError, ValueError), match="tokens must be"):
            network.memory_plan(tokens=tokens)


def test_a_saved_network_of_images_comes_back(tmp_path):
    pytest.importorskip("safetensors")
    taps, labels = image_problem(8)
    network = image_network(late=2)
    network.fit(taps, labels, epochs=1, progress=False)
    network.save_pretrained(tmp_path)
    offered = [sherl.Bottleneck.from_resnet(bottleneck_weights(seed=seed)) for seed in range(3)]
    loaded = sherl.SideNetwork.from_pretrained(tmp_path, backbone=offered)
    assert np.array_equal(loaded.forward(taps), network.forward(taps))
    assert same_bits(loaded.state_dict(), network.state_dict())
    with pytest.raises(ValueError, match="no layer of backbone has the weights"):
        sherl.SideNetwork.from_pretrained(tmp_path, backbone=offered[1:])
    again = pickle.loads(pickle.dumps(network))
    assert np.array_equal(again.forward(taps), network.forward(taps))
    assert "Bottleneck" in network.summary()


def test_blocks_must_fit_each_other():
    mtsa = lambda: sherl.MTSA.resnet(RESNET["features"], hidden=4)
    head = lambda: sherl.Classifier(24, 2, pool="mean")
    block = sherl.Bottleneck.from_resnet(bottleneck_weights())
    for attempt, message in [
        (lambda: sherl.SideNetwork(mtsa(), [block], sherl.Classifier(24, 2)), "head must have pool=\"mean\""),
        (lambda: sherl.SideNetwork(mtsa(), [], sherl.Classifier(24, 2, pool="last")), "got \"last\""),
        (lambda: sherl.SideNetwork(sherl.MTSA(4, 24, 4), [block], head()), "is a Bottleneck, which takes images"),
        (lambda: sherl.SideNetwork(sherl.MTSA.clip(24, 2, 4, 24), [frozen_layer()], head()), "late must be empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            attempt()
    network, taps = image_network(), image_taps()
    tokens = [np.ones((2, 3, width), np.float32) for width in RESNET["features"]]
    for given, message in [
        (tokens, "taps must be images"),
        ([tap[..., :1] for tap in taps], r"taps\[0\] must have 8 channels"),
        ([*taps[:3], taps[3][:, :1]], r"taps\[0\] must have 8 times"),
    ]:
        with pytest.raises(ValueError, match=message):
            network.forward(given)
    plain = sherl.SideNetwork(sherl.MTSA(4, RESNET["features"], 4), [], sherl.Classifier(24, 2))
    with pytest.raises(ValueError, match="taps must be tokens"):
        plain.forward(taps)
    with pytest.raises(ValueError, match="must read tokens, without batch norms"):
        sherl.sweep(taps, [0] * 6, {"a": network})


def test_batch_norm_without_images_trains_on_tokens():
    taps = [np.random.default_rng(n).standard_normal((6, 5, 8), dtype=np.float32) for n in range(3)]
    network = sherl.SideNetwork(
        sherl.MTSA(3, 8, 4, down="batchnorm", up_norm="batchnorm"), [], sherl.Classifier(8, 2)
    )
    mask = np.arange(5) < np.array([5, 3, 1, 2, 4, 5])[:, None]
    network.fit(taps, [0, 1] * 3, mask, epochs=1, batch_size=3, progress=False)
    assert network.state_dict()["early.down.1.norm.running_mean"].any()


# ---- Networks on towers ----------------------------------------------------------------------------------------------


def tower_problem(samples=12, tokens=5):
    rng = np.random.default_rng(3)
    taps = [rng.standard_normal((samples, tokens, 16), dtype=np.float32) for _ in range(3)]
    last = rng.standard_normal((samples, 8), dtype=np.float32)
    mask = np.arange(tokens) < rng.integers(1, tokens + 1, samples)[:, None]
    return [*taps, last], np.arange(samples) % 3, mask


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_network_on_a_tower(tower, keep_threads, tmp_path):
    taps, labels, mask = tower_problem()
    make = lambda: sherl.SideNetwork(
        sherl.MTSA.clip(16, 3, 6, 8, tower=tower, gated_base=tower == "text"), [], sherl.Classifier(8, 3)
    )
    states = []
    for threads in (1, 2):
        sherl.set_num_threads(threads)
        network = make()
        history = network.fit(taps, labels, mask, epochs=8, batch_size=4, learning_rate=1e-2, progress=False)
        states.append(network.state_dict())
    assert same_bits(*states)
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]
    block = network.early(taps[:-1], taps[-1], mask)
    head = states[-1]["head.weight"]
    expected = block @ head.T + states[-1]["head.bias"]
    assert np.allclose(network.forward(taps, mask), expected, atol=1e-5)
    features = sherl.Features.from_arrays(taps, mask)
    assert np.array_equal(network.forward(features[3:7]), network.forward(features)[3:7])
    outputs, gradients = network.vjp(taps, np.ones((12, 3)), mask, taps_gradient=True)
    assert [gradients[f"tap{number}"].shape for number in range(4)] == [np.shape(tap) for tap in taps]
    assert not gradients["tap0"][~mask].any()
    _, ragged = network.vjp(features, np.ones((12, 3)), taps_gradient=True)
    assert np.array_equal(ragged["tap3"].taps[0], gradients["tap3"])
    assert np.array_equal(ragged["tap1"].taps[0], gradients["tap1"][mask])
    assert network.memory_plan(batch_size=4, tokens=5).total > 0


def test_bad_towers():
    taps, labels, mask = tower_problem()
    network = sherl.SideNetwork(sherl.MTSA.clip(16, 3, 6, 8), [], sherl.Classifier(8, 3))
    text = sherl.MTSA.clip(16, 3, 6, 8, tower="text")
    plain = sherl.SideNetwork(sherl.MTSA(2, [16, 8], 4), [], sherl.Classifier(8, 3))
    every = taps[:3]
    for attempt, error, message in [
        (lambda: network.forward(every), ValueError, "taps must be 4 arrays, got 3"),
        (lambda: network.forward([*every, taps[3][:, :4]]), ValueError, r"taps\[3\] must have 8 channels"),
        (lambda: network.forward([*every, np.ones((12, 5, 8), np.float32)]), ValueError, "must have one row a sample"),
        (lambda: plain.forward([taps[0], taps[3]]), ValueError, "must have as many rows as the other taps"),
        (lambda: text(every, taps[3], mask, position=[0.5] * 12), ValueError, "position must be whole numbers"),
        (lambda: text(every, taps[3], mask, position=[9] * 12), ValueError, "number of a row of each sample"),
        (lambda: text(every, taps[3], mask, position=[4] * 12), ValueError, "must be a row where mask is 1"),
        (lambda: text(every), TypeError, "last must be given with spatial guidance"),
        (lambda: text(every, taps[3][:5]), ValueError, r"last must have shape \(12, 8\)"),
        (lambda: text(every, sherl.Features([taps[3]], [1] * 12)), TypeError, "last must be an array"),
        (lambda: text(every, taps[3], np.zeros((12, 5))), ValueError, "mask leaves no row"),
    ]:
        with pytest.raises(error, match=message):
            attempt()
    anywhere = np.array([row.nonzero()[0][-1] for row in mask])
    assert np.array_equal(text(every, taps[3], mask, position=anywhere), text(every, taps[3], mask))
    features = sherl.Features.from_arrays(every, mask)
    assert np.array_equal(text(features, taps[3], position=mask.sum(axis=1) - 1), text(every, taps[3], mask))


@pytest.mark.skipif(not sherl._core.config()["bfloat16"], reason="the processor has no bfloat16 products")
def test_a_late_route_in_bfloat16():
    taps, labels = image_problem(8)
    exact = image_network()
    half = sherl.SideNetwork(
        sherl.MTSA(**exact.early.settings), exact.late, sherl.Classifier(24, 2, pool="mean"), late_dtype="bfloat16"
    )
    half.load_state_dict(exact.state_dict())
    difference = np.abs(half.forward(taps) - exact.forward(taps)).max()
    assert 0 < difference < 0.1
    half.fit(taps, labels, epochs=1, progress=False)


def test_images_and_texts_embed_into_one_space():
    """Two networks of both kinds, trained on pairs; batch norms take the statistics of a batch in both of its runs."""
    image_taps_, _ = image_problem(12)
    text_taps, _, mask = tower_problem()
    embed = lambda features: sherl.Embedding(features, 5, pool="mean")
    images = sherl.SideNetwork(
        sherl.MTSA.resnet(RESNET["features"], hidden=6), [sherl.Bottleneck.from_resnet(bottleneck_weights())], embed(24)
    )
    texts = sherl.SideNetwork(sherl.MTSA.clip(16, 3, 6, 8, tower="text"), [], embed(8))
    model = sherl.DualEncoder(images, texts)
    before = images.state_dict()
    history = model.fit(image_taps_, text_taps, mask_b=mask, epochs=6, batch_size=6, learning_rate=1e-2, progress=False)
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]
    after = images.state_dict()
    assert not np.array_equal(after["early.up.norm.running_var"], before["early.up.norm.running_var"])
    bad = [tap.copy() for tap in image_taps_]
    bad[0][:] = np.nan
    with pytest.raises(FloatingPointError):
        model.fit(bad, text_taps, mask_b=mask, epochs=1, batch_size=6, progress=False)
    assert same_bits(images.state_dict(), after)


def test_an_average_of_the_weights_has_running_statistics():
    taps, labels = image_problem(12)
    network = image_network()
    network.fit(taps, labels, epochs=2, batch_size=6, progress=False, ema=0.5)
    assert np.isfinite(network.predict_proba(taps)).all()


def test_heads_for_every_row_are_refused():
    with pytest.raises(ValueError, match="head must give one row a sample for images and towers, got TokenClassifier"):
        sherl.SideNetwork(sherl.MTSA.resnet(RESNET["features"], hidden=4), [], sherl.TokenClassifier(24, 3))
