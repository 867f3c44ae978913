"""Taps as int8 with one scale a row: what the core reads, what storing them costs, what is refused."""

import numpy as np
import pytest
from small import network, problem, same_bits

import sherl
from sherl import _core, _core_double

pytestmark = pytest.mark.core


def both():
    """Return int8 features, the float32 features that they stand for, and labels."""
    taps, labels, mask = problem()
    narrow = sherl.Features.from_arrays(taps, mask).astype("int8")
    return narrow, narrow.astype("float32"), labels


def test_losses_and_gradients_are_those_of_the_float32_taps():
    narrow, wide, labels = both()
    net = network()
    loss, gradients = net.loss_and_gradients(narrow, labels)
    expected, wanted = net.loss_and_gradients(wide, labels)
    assert loss == pytest.approx(expected, rel=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, wanted[name], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(net.forward(narrow[[5, 3]]), net.forward(wide[[5, 3]]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("core", [_core, _core_double])
def test_every_integer_is_read_with_its_scale(core):
    integers = np.arange(-128, 128).astype(np.int8).reshape(4, 64)
    scales = np.array([0.0, 0.5, 1e-3, 3.0], np.float32)
    graph = core.Graph(core.Parameters(), False)
    graph.output(graph.activate(graph.input("x", core.SAMPLES, 64), "identity"))
    rows, read = np.array([3, 0, 2]), np.empty((3, 64), core.REAL)
    graph.compile(False).forward(3, [None], [(integers, rows, scales)], [(read, None)])
    np.testing.assert_array_equal(read, (scales.astype(core.REAL)[:, None] * integers.astype(core.REAL))[rows])


def test_rounding_is_at_most_half_a_step_a_row():
    taps, _, _ = problem()
    taps[0][3, 2] = 0
    wide = sherl.Features.from_arrays(taps)
    narrow = wide.astype("int8")
    for array, back, scales in zip(wide.taps, narrow.astype("float32").taps, narrow.scales):
        largest = np.abs(array).max(axis=1)
        np.testing.assert_allclose(scales, largest / 127, rtol=1e-6)
        assert (np.abs(array - back) <= (largest / 254 * (1 + 1e-4))[:, None]).all()


def test_size_name_pooling_and_selection():
    narrow, wide, _ = both()
    rows, channels = int(wide.lengths.sum()), sum(wide.channels)
    assert narrow.dtypes == ["int8"] * 3 and "int8" in repr(narrow)
    assert narrow.nbytes == rows * (channels + 4 * 3)
    for how in ("mean", "first", "max"):
        np.testing.assert_allclose(narrow[3:9].pooled(1, how), wide[3:9].pooled(1, how), rtol=1e-6)
    part = narrow.select([2, 0])[[7, 1]]
    assert same_bits(part.astype("float32").taps[0], wide.select([2])[[7, 1]].taps[0])
    scaled = sherl.Features(narrow.taps, narrow.lengths, scales=[2 * array for array in narrow.scales])
    assert scaled.fingerprint != narrow.fingerprint


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_taps_of_every_type_train(dtype):
    taps, labels, mask = problem()
    features = sherl.Features.from_arrays(taps, mask).astype(dtype)
    history = network().fit(features, labels, epochs=8, batch_size=10, learning_rate=1e-2, progress=False)
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]


def test_bad_scales_are_refused():
    integers, good = np.ones((6, 4), np.int8), np.ones(6, np.float32)
    cases = [
        ([integers], [good[:5]], ValueError, "scales of taps.0. must be float32 of shape"),
        ([integers], [good.astype(np.float64)], ValueError, "must be float32"),
        ([integers], [-good], ValueError, "finite and 0 or more"),
        ([integers], [good * np.nan], ValueError, "finite and 0 or more"),
        ([integers], [good, good], ValueError, "scales must have an item for each of the 1 tap"),
        ([integers.astype(np.int16)], [good], TypeError, "must hold int8"),
        ([integers], None, TypeError, "got dtype int8"),
    ]
    for taps, scales, error, sentence in cases:
        with pytest.raises(error, match=sentence):
            sherl.Features(taps, [2, 4], scales=scales)
    with pytest.raises(ValueError, match="must be finite to be stored as int8"):
        sherl.Features([np.full((2, 3), np.inf, np.float32)], [2]).astype("int8")


def test_the_core_refuses_bad_scales():
    graph = _core.Graph(_core.Parameters(), False)
    graph.output(graph.activate(graph.input("x", _core.SAMPLES, 4), "identity"))
    program = graph.compile(False)
    integers, good, sink = np.ones((6, 4), np.int8), np.ones(6, np.float32), np.empty((6, 4), np.float32)
    cases = [
        ((integers, None), ValueError, "must have the dtype float32, float64"),
        ((integers, None, good[:5]), ValueError, "an element for each row"),
        ((integers, None, np.ones(12, np.float32)[::2]), ValueError, "must be contiguous"),
        ((integers, None, good.astype(np.float64)), ValueError, "scales must have the dtype float32"),
        ((sink, None, good), ValueError, "must have the dtype int8"),
        ((integers, None, good, good), TypeError, "must be a tuple"),
    ]
    for source, error, sentence in cases:
        with pytest.raises(error, match=sentence):
            program.forward(6, [None], [source], [(sink, None)])
    with pytest.raises(TypeError, match="must be a tuple"):
        program.forward(6, [None], [(integers, None, good)], [(integers, None, good)])
