"""The linear op against NumPy and finite differences, at the sizes where it changes from one product to another."""

import numpy as np
import pytest
from op_harness import OpCase, assert_close, check_gradients, ragged

from sherl import _core, _core_double

pytestmark = pytest.mark.core

ACTIVATIONS = {"identity": lambda z: z, "relu": lambda z: np.maximum(z, 0), "tanh": np.tanh,
               "sigmoid": lambda z: 1 / (1 + np.exp(-z))}  # fmt: skip


def case_of(rows, inputs, outputs, activation="identity", bias=True, core=_core_double, seed=0):
    generator = np.random.default_rng([seed, rows, inputs, outputs])
    arrays = {"x": ("tokens", generator.standard_normal((rows, inputs)))}
    parameters = {"weight": ("trainable", generator.standard_normal((outputs, inputs)) / np.sqrt(inputs))}
    if bias:
        parameters["bias"] = ("trainable", generator.standard_normal(outputs))
    build = lambda graph, values, known: graph.linear(values["x"], known["weight"], known.get("bias"), activation)
    return {"build": build, "lengths": {"tokens": [rows]}, "inputs": arrays, "output": ("tokens", outputs),
            "parameters": parameters, "core": core, "tile_rows": 1000}  # fmt: skip


@pytest.mark.parametrize("core", [_core, _core_double])
@pytest.mark.parametrize("outputs", [1, 8, 16, 24, 48, 64, 80, 96, 112, 192, 208])
@pytest.mark.parametrize(("rows", "inputs"), [(7, 64), (8, 16), (9, 48), (70, 208), (131, 400), (64, 33)])
def test_products_of_all_widths_equal_numpy(core, rows, inputs, outputs):
    case = OpCase(**case_of(rows, inputs, outputs, core=core))
    x, weight, bias = case.inputs["x"], case.parameters["weight"], case.parameters["bias"]
    cotangent = np.random.default_rng(1).standard_normal((rows, outputs)).astype(core.REAL)
    tolerance = 1e-5 if core is _core else 1e-13
    wide = [np.asarray(array, np.float64) for array in (x, weight, bias, cotangent)]
    assert_close(case.forward(), wide[0] @ wide[1].T + wide[2], tolerance)
    by_input, by_parameter = case.gradient(cotangent)
    assert_close(by_input["x"], wide[3] @ wide[1], tolerance)
    assert_close(by_parameter["weight"], wide[3].T @ wide[0], tolerance)
    assert_close(by_parameter["bias"], wide[3].sum(0), tolerance)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_fused_activations(activation, bias):
    arguments = case_of(11, 16, 8, activation, bias)
    case = OpCase(**arguments)
    z = case.inputs["x"] @ case.parameters["weight"].T + (case.parameters["bias"] if bias else 0)
    assert_close(case.forward(), ACTIVATIONS[activation](z), 1e-12)
    del arguments["core"]
    check_gradients(generator=np.random.default_rng(2), **arguments)


def test_tiles_add_up():
    generator = np.random.default_rng(3)
    lengths = ragged(generator, samples=40, longest=9)
    arguments = case_of(sum(lengths), 32, 16) | {"lengths": {"tokens": lengths}, "tile_rows": 3}
    case = OpCase(**arguments)
    cotangent = generator.standard_normal((sum(lengths), 16))
    _, by_parameter = case.gradient(cotangent)
    assert_close(by_parameter["weight"], cotangent.T @ case.inputs["x"], 1e-12)


def test_a_widening_map_is_computed_again_for_the_norm_behind_it():
    """The output of a map of few channels to many is not kept; a relu before it makes its input stay."""
    generator = np.random.default_rng(4)
    arguments = case_of(13, 8, 64)
    linear = arguments.pop("build")
    del arguments["core"]
    arguments["parameters"] |= {"scale": ("trainable", generator.standard_normal(64)),
                                "shift": ("trainable", generator.standard_normal(64))}
    build = lambda graph, values, known: graph.layer_norm(linear(graph, values, known), known["scale"], known["shift"],
                                                          1e-5)
    check_gradients(build=build, generator=generator, **arguments)
