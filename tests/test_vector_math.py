"""The float32 activations of every instruction set against float64 references, over dense and extreme arguments.

Run as a script, this file writes what one instruction set computes: the core picks it once, when it is imported.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from op_harness import SAMPLES, OpCase
from scipy.special import expit, ndtr

from sherl import _core

pytestmark = pytest.mark.core

EXTREMES = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-38, -1e-38, 3e38, -3e38, 88.7, 88.8, -88.8, -104.0]
ACTIVATIONS = ["relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid", "tanh"]
INSTRUCTION_SETS = ["baseline", "avx2", "avx512", "avx512bf16"]  # a processor that lacks one runs its best instead
EPSILON = float(np.finfo(np.float32).eps)


def arguments():
    dense = [np.linspace(-12, 12, 60001), np.linspace(-110, 110, 20001), np.linspace(-0.01, 0.01, 2001)]
    return np.concatenate([*dense, EXTREMES]).astype(np.float32)


def compute(activation):
    """The activation and its derivative at every argument."""
    x = arguments()[:, None]
    build = lambda graph, values, _: graph.activate(values["x"], activation)
    lengths = {"unused": [1] * len(x)}
    case = OpCase(build, lengths=lengths, inputs={"x": (SAMPLES, x)}, output=(SAMPLES, 1), core=_core, tile_rows=4096)
    gradients, _ = case.gradient(np.ones_like(x))
    return case.forward()[:, 0], gradients["x"][:, 0]


def reference(activation):
    """The same in float64, with the limits at the infinities."""
    x = arguments().astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        value, slope = formulas(activation, x)
    if activation not in ("sigmoid", "tanh"):
        value = np.where(x == -np.inf, 0, value)
        slope = np.where(np.isinf(x), x > 0, slope)
    return value, slope


def formulas(activation, x):
    if activation == "relu":
        return np.where(x < 0, 0, x), np.where(np.isnan(x), 0, x > 0)
    if activation == "sigmoid":
        return expit(x), expit(x) * expit(-x)
    if activation == "tanh":
        return np.tanh(x), 1 - np.tanh(x) ** 2
    if activation == "gelu":
        return x * ndtr(x), ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    if activation == "gelu_tanh":
        scale = np.sqrt(8 / np.pi)
        argument, slope = scale * (x + 0.044715 * x**3), scale * (1 + 3 * 0.044715 * x**2)
    else:
        slope = {"silu": 1.0, "quick_gelu": 1.702}[activation]
        argument = slope * x
    return x * expit(argument), expit(argument) + x * expit(argument) * expit(-argument) * slope


@pytest.fixture(scope="module", params=INSTRUCTION_SETS)
def computed(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("vector_math") / "computed.npz"
    environment = {**os.environ, "SHERL_INSTRUCTION_SET": request.param}
    result = subprocess.run([sys.executable, __file__, str(path)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with np.load(path) as arrays:
        return dict(arrays)


def test_instruction_set_is_the_one_asked_for_where_the_processor_has_it(computed, request):
    asked, picked = request.node.callspec.params["computed"], str(computed["instruction_set"])
    assert picked in INSTRUCTION_SETS
    assert picked == asked or asked != "baseline"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_not_a_number_and_infinities(computed, activation):
    x, (expected, _) = arguments(), reference(activation)
    value = computed[activation]
    special = ~np.isfinite(x)
    assert special.sum() == 3
    np.testing.assert_array_equal(value[special], expected[special].astype(np.float32))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_are_within_a_few_units_in_the_last_place(computed, activation):
    x, (expected, _) = arguments(), reference(activation)
    finite = np.isfinite(x)
    x, value, expected = x[finite], computed[activation][finite], expected[finite]
    error = np.abs(value - expected)
    unit = EPSILON * np.maximum(np.abs(expected), np.finfo(np.float32).tiny)
    units = 3 if activation in ("relu", "sigmoid", "tanh") else 6
    near = np.full(x.shape, True) if activation in ("relu", "sigmoid", "tanh") else x > -1
    assert np.max(error[near] / unit[near]) < units
    # Where x times a vanishing tail is small, it is right relative to itself too, though not to the last bits.
    tail = ~near & (x > -5)
    assert np.all(error[tail] <= 1e-5 * np.abs(expected[tail]))
    assert np.all(error <= EPSILON * np.maximum(np.abs(x), 1e-30) * 2 + unit)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives(computed, activation):
    _, expected = reference(activation)
    slope = computed[activation + "_slope"]
    np.testing.assert_allclose(slope, expected, rtol=0, atol=3e-7)


def main(path):
    arrays = {"instruction_set": np.array(_core.config()["instruction_set"])}
    for activation in ACTIVATIONS:
        arrays[activation], arrays[activation + "_slope"] = compute(activation)
    np.savez(path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
