"""Late layers in bfloat16: products against a NumPy twin, and networks against their float32 selves.

On a processor without the instructions each way in is refused with a sentence, which the same tests then assert.
"""

import functools
import gc
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from small import FEATURES, bert_weights, frozen_layer, network, problem, same_bits

import sherl
from sherl import _core, _core_double

pytestmark = pytest.mark.core

AVAILABLE = _core.config()["bfloat16"]
UNAVAILABLE = "not available on this processor"


def refused_elsewhere(test):
    """Expect the refusal instead where the processor lacks bfloat16."""

    @functools.wraps(test)
    def run(**arguments):
        if AVAILABLE:
            test(**arguments)
            return
        with pytest.raises(ValueError, match=UNAVAILABLE):
            test(**arguments)

    return run


def rounded(array):
    """Round to bfloat16, to the nearest with ties to even; the result is float64."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def half(**settings):
    """Return a network with bfloat16 late layers; settings as for `small.network`."""
    full = network(**settings)
    made = sherl.SideNetwork(
        early=sherl.MTSA(**full.early.settings), late=full.late, late_dtype="bfloat16",
        head=sherl.Classifier(**full.head.settings),
    )  # fmt: skip
    made.load_state_dict(full.state_dict())
    return made, full


def linear(core, depth, columns, role="frozen", seed=0):
    """Return a bfloat16 linear map with the gradient of its input as a program, and its weight and bias."""
    rng = np.random.default_rng([seed, depth, columns])
    weight = rng.standard_normal((columns, depth)).astype(core.REAL)
    bias = rng.standard_normal(columns).astype(core.REAL)
    store = core.Parameters()
    graph = core.Graph(store, False)
    x = graph.input("x", core.SAMPLES, depth, True)
    w = graph.parameter("w", weight.shape, role, data=weight if role == "frozen" else None)
    b = graph.parameter("b", bias.shape, "frozen", data=bias)
    graph.output(graph.linear(x, w, b, bfloat16=True))
    return graph.compile(True), weight, bias


@pytest.mark.parametrize("depth, columns",
                         [(1, 1), (2, 16), (7, 5), (31, 64), (33, 65), (192, 100), (193, 17), (385, 130)])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 70, 300])
def test_products_are_those_of_rounded_factors(rows, depth, columns):
    if not AVAILABLE:
        with pytest.raises(ValueError, match=UNAVAILABLE):
            linear(_core, depth, columns)
        return
    program, weight, bias = linear(_core, depth, columns)
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, depth), dtype=np.float32)
    dy = rng.standard_normal((rows, columns), dtype=np.float32)
    y, dx = np.full_like(dy, np.nan), np.full_like(x, np.nan)
    program.forward(rows, [None], [(x, None)], [(y, None)])
    program.gradient(rows, [None], [(x, None)], cotangents=[(dy, None)], input_gradients=[(dx, None)])
    for value, left, right, shift in ((y, x, weight.T, bias), (dx, dy, weight, 0)):
        scale = rounded(np.abs(left)) @ rounded(np.abs(right)) + 1
        assert np.max(np.abs(value - (rounded(left) @ rounded(right) + shift)) / scale) < 2e-6


def test_float64_core_refuses():
    with pytest.raises(ValueError, match="the float32 core"):
        linear(_core_double, 4, 4)


def test_trained_weights_are_refused():
    with pytest.raises(ValueError, match="frozen weight" if AVAILABLE else UNAVAILABLE):
        linear(_core, 4, 4, role="trainable")


@refused_elsewhere
def test_trained_layers_stay_float32():
    taps, _, mask = problem()
    outputs = []
    for late_dtype in ("float32", "bfloat16"):
        late = [sherl.TransformerLayer(FEATURES, 4)]
        made = sherl.SideNetwork(
            sherl.MTSA(3, FEATURES, 8), late, sherl.Classifier(FEATURES, 2), seed=5, late_dtype=late_dtype
        )
        outputs.append(made.forward(taps, mask))
    assert same_bits(*outputs)


@pytest.mark.parametrize("pool", ["first", "mean"])
@refused_elsewhere
def test_network_is_close_to_float32(pool):
    taps, labels, mask = problem()
    made, full = half(late=2, head=sherl.Classifier(FEATURES, 2, pool=pool))
    loss, gradients = made.loss_and_gradients(taps, labels, mask)
    expected_loss, expected = full.loss_and_gradients(taps, labels, mask)
    assert 0 < abs(loss - expected_loss) < 1e-2 * expected_loss
    whole, other = (np.concatenate([arrays[name].ravel() for name in expected]) for arrays in (expected, gradients))
    assert np.linalg.norm(other - whole) < 1e-2 * np.linalg.norm(whole)


@pytest.mark.parametrize("features, pool", [(64, "mean"), (256, "first")])  # tile by tile; parts of a wide tail
@refused_elsewhere
def test_bits_do_not_depend_on_threads(features, pool):
    taps, labels, mask = problem()
    taps = [np.tile(tap, features // FEATURES) for tap in taps]
    layer = sherl.TransformerLayer.from_bert(bert_weights(0, features, 3 * features), 4)
    head = sherl.Classifier(features, 2, pool=pool)
    made = sherl.SideNetwork(sherl.MTSA(3, features, 8), [layer], head, late_dtype="bfloat16")
    before, found = sherl.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            sherl.set_num_threads(threads)
            found.append(made.loss_and_gradients(taps, labels, mask))
    finally:
        sherl.set_num_threads(before)
    assert all(loss == found[0][0] and same_bits(gradients, found[0][1]) for loss, gradients in found)


@refused_elsewhere
def test_packed_weights_are_counted_once_and_released():
    live = _core.live_allocations()
    made, full = half()
    plan, plain = made.memory_plan(), full.memory_plan()
    # Two copies of two bytes, of matrices that fill whole panels or less.
    matrices = sum(array.size for name, array in bert_weights().items() if array.ndim == 2)
    assert 4 * matrices <= plan.frozen_weights - plain.frozen_weights <= 16 * matrices
    taps, labels, mask = problem()
    made.loss_and_gradients(taps, labels, mask)
    made.predict(taps, mask)
    assert made.memory_plan().frozen_weights == plan.frozen_weights
    del made, full
    gc.collect()
    assert _core.live_allocations() == live


@refused_elsewhere
def test_every_failing_allocation_is_reported():
    taps, labels, mask = problem(samples=4)
    made, _ = half()
    _core.fail_allocation(None)
    expected = made.loss_and_gradients(taps, labels, mask)[0]
    for number in range(1, _core.allocations() + 1):
        again, _ = half()
        _core.fail_allocation(number)
        try:
            with pytest.raises(MemoryError):
                again.loss_and_gradients(taps, labels, mask)
        finally:
            _core.fail_allocation(None)
        assert again.loss_and_gradients(taps, labels, mask)[0] == expected


@refused_elsewhere
def test_save_load_and_pickle_keep_it(tmp_path):
    taps, _, mask = problem()
    made, _ = half()
    made.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["late_dtype"] == "bfloat16"
    backbone = [frozen_layer(0)]
    for again in (sherl.SideNetwork.from_pretrained(tmp_path, backbone), pickle.loads(pickle.dumps(made))):
        assert again.late_dtype == "bfloat16"
        assert same_bits(again.forward(taps, mask), made.forward(taps, mask))
    full = sherl.SideNetwork.from_pretrained(tmp_path, backbone, late_dtype="float32")
    assert full.late_dtype == "float32"
    assert not same_bits(full.forward(taps, mask), made.forward(taps, mask))


def test_folder_without_the_setting_is_float32(tmp_path):
    network().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("late_dtype") == "float32"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert sherl.SideNetwork.from_pretrained(tmp_path, [frozen_layer(0)]).late_dtype == "float32"


@pytest.mark.parametrize("given", ["float16", None, 16])
def test_other_types_are_refused(given):
    with pytest.raises(ValueError, match="late_dtype"):
        sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), (), sherl.Classifier(FEATURES, 2), late_dtype=given)


def test_instruction_set_without_it_refuses():
    script = """
import sherl
assert not sherl._core.config()["bfloat16"]
sherl.show_config()
try:
    sherl.SideNetwork(sherl.MTSA(3, 32, 8), (), sherl.Classifier(32, 2), late_dtype="bfloat16")
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "SHERL_INSTRUCTION_SET": "baseline"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(UNAVAILABLE) == 2
