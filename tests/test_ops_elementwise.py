"""The ops over the elements of rows: activations, norms, dropout, sums, products, gate, embedding.

Each is compared with a NumPy twin, and its gradients with finite differences, over random ragged batches.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_harness import SAMPLES, OpCase, assert_close, check_forward, check_gradients, ragged
from scipy.special import erf, expit

from sherl import _core, _core_double

pytestmark = pytest.mark.core

quick = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**32 - 1)

ACTIVATIONS = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * expit(1.702 * x),
    "silu": lambda x: x * expit(x),
    "sigmoid": expit,
    "tanh": np.tanh,
}


class Shape:
    """A random ragged batch: lengths of its segments, channels, and rows of normal numbers."""

    def __init__(self, seed, least_rows=1):
        self.generator = np.random.default_rng(seed)
        self.lengths = {"tokens": ragged(self.generator)}
        if sum(self.lengths["tokens"]) < least_rows:
            self.lengths["tokens"].append(least_rows)
        self.rows = sum(self.lengths["tokens"])
        self.channels = int(self.generator.integers(1, 24))

    def normal(self):
        return self.generator.standard_normal((self.rows, self.channels))

    def vector(self):
        return self.generator.standard_normal(self.channels)

    def arguments(self, parameters=None, **inputs):
        return {
            "lengths": self.lengths,
            "inputs": {name: ("tokens", rows) for name, rows in inputs.items()},
            "output": ("tokens", self.channels),
            "parameters": parameters or {},
        }


def away_from_zero(x):
    """Numbers at which the derivative of ReLU exists."""
    return np.where(np.abs(x) < 0.01, 0.5, x)


# ---- Activations ----


@pytest.mark.parametrize("activation", ACTIVATIONS)
@quick
@given(seed=seeds)
def test_activation(activation, seed):
    shape = Shape(seed)
    x = away_from_zero(2 * shape.normal())
    build = lambda graph, values, _: graph.activate(values["x"], activation)
    check_forward(build, ACTIVATIONS[activation](x), **shape.arguments(x=x))
    check_gradients(build, shape.generator, **shape.arguments(x=x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_of_an_activation_adds_to_that_of_a_second_reader(activation):
    shape = Shape(1)
    x = away_from_zero(shape.normal())
    build = lambda graph, values, _: graph.add(graph.activate(values["x"], activation), values["x"])
    check_forward(build, ACTIVATIONS[activation](x) + x, **shape.arguments(x=x))
    check_gradients(build, shape.generator, **shape.arguments(x=x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_chained_activations_may_share_memory_but_not_values(activation):
    shape = Shape(2)
    x = shape.normal() + 3
    build = lambda graph, values, _: graph.activate(graph.activate(values["x"], "sigmoid"), activation)
    check_forward(build, ACTIVATIONS[activation](expit(x)), **shape.arguments(x=x))
    check_gradients(build, shape.generator, **shape.arguments(x=x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("read_twice", [False, True])
@quick
@given(seed=seeds)
def test_gated(activation, read_twice, seed):
    shape = Shape(seed)
    z, x = away_from_zero(2 * shape.normal()), shape.normal()

    def build(graph, values, _):
        y = graph.gated(values["z"], values["x"], activation)
        return graph.add(graph.add(y, values["x"]), values["z"]) if read_twice else y

    check_forward(build, ACTIVATIONS[activation](z) * x + (x + z if read_twice else 0), **shape.arguments(z=z, x=x))
    check_gradients(build, shape.generator, **shape.arguments(z=z, x=x))


def test_gated_refuses_one_value_for_both():
    graph = _core.Graph(_core.Parameters(), False)
    x = graph.input("x", graph.space("rows"), 8)
    with pytest.raises(ValueError, match="gate and x must be two values"):
        graph.gated(x, x, "silu")


# ---- Norms ----


@quick
@given(seed=seeds, offset=st.sampled_from([0.0, 100.0]))
def test_layer_norm(seed, offset):
    shape = Shape(seed)
    x, weight, bias, eps = shape.normal() + offset, shape.vector(), shape.vector(), 1e-2
    deviation = np.sqrt(x.var(axis=1, keepdims=True) + eps)
    expected = (x - x.mean(axis=1, keepdims=True)) / deviation * weight + bias
    build = lambda graph, values, known: graph.layer_norm(values["x"], known["weight"], known["bias"], eps)
    arguments = shape.arguments({"weight": ("trainable", weight), "bias": ("trainable", bias)}, x=x)
    check_forward(build, expected, tolerance=1e-5 * (1 + offset), **arguments)
    check_gradients(build, shape.generator, tolerance=1e-6 * (1 + offset / 10), **arguments)


@pytest.mark.parametrize("trainable", ["weight", "bias", None])
def test_layer_norm_with_frozen_parameters(trainable):
    shape = Shape(3)
    roles = {name: "trainable" if name == trainable else "frozen" for name in ("weight", "bias")}
    arguments = shape.arguments({name: (role, shape.vector()) for name, role in roles.items()}, x=shape.normal())
    build = lambda graph, values, known: graph.add(
        graph.layer_norm(values["x"], known["weight"], known["bias"], 1e-5), values["x"]
    )
    check_gradients(build, shape.generator, **arguments)


def test_layer_norm_without_bias():
    shape = Shape(4)
    x, weight = shape.normal(), shape.vector()
    expected = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-2) * weight
    build = lambda graph, values, known: graph.layer_norm(values["x"], known["weight"], None, 1e-2)
    arguments = shape.arguments({"weight": ("trainable", weight)}, x=x)
    check_forward(build, expected, **arguments)
    check_gradients(build, shape.generator, **arguments)


def rms_norm(eps=1e-2, read_twice=False):
    def build(graph, values, known):
        normalized = graph.rms_norm(values["x"], known["weight"], eps)
        return graph.add(normalized, values["x"]) if read_twice else normalized

    return build


@quick
@given(seed=seeds, offset=st.sampled_from([0.0, 100.0]))
def test_rms_norm(seed, offset):
    shape = Shape(seed)
    x, weight = shape.normal() + offset, shape.vector()
    expected = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + 1e-2) * weight
    arguments = shape.arguments({"weight": ("trainable", weight)}, x=x)
    check_forward(rms_norm(), expected, **arguments)
    check_gradients(rms_norm(), shape.generator, **arguments)


@pytest.mark.parametrize("role", ["trainable", "frozen"])
@pytest.mark.parametrize("read_twice", [True, False])
def test_rms_norm_with_frozen_weight_or_a_second_reader(role, read_twice):
    shape = Shape(5)
    arguments = shape.arguments({"weight": (role, shape.vector())}, x=shape.normal())
    check_gradients(rms_norm(1e-5, read_twice), shape.generator, **arguments)


def test_rms_norm_of_zeros_is_zero():
    x = np.zeros((3, 7))
    arguments = {"lengths": {"rows": [3]}, "inputs": {"x": ("rows", x)}, "output": ("rows", 7)}
    case = OpCase(rms_norm(1e-6), parameters={"weight": ("trainable", np.ones(7))}, core=_core, **arguments)
    assert not case.forward().any()
    inputs, _ = case.gradient(np.ones((3, 7)))
    assert_close(inputs["x"], np.full((3, 7), 1e3), 1e-6)


@pytest.mark.parametrize("role", ["trainable", "frozen"])
@pytest.mark.parametrize("read_twice", [True, False])
def test_scale_channels(role, read_twice):
    shape = Shape(6)
    x, factors = shape.normal(), shape.vector()

    def build(graph, values, known):
        scaled = graph.scale_channels(values["x"], known["factors"])
        return graph.add(scaled, values["x"]) if read_twice else scaled

    arguments = shape.arguments({"factors": (role, factors)}, x=x)
    check_forward(build, x * factors + (x if read_twice else 0), **arguments)
    check_gradients(build, shape.generator, **arguments)


def batch_norm(graph, values, known):
    return graph.batch_norm(
        values["x"], known["weight"], known["bias"], known["running_mean"], known["running_variance"], 1e-3, 0.25
    )


def batch_norm_parameters(shape, role="trainable"):
    return {
        "weight": (role, shape.vector()),
        "bias": (role, shape.vector()),
        "running_mean": ("state", shape.vector()),
        "running_variance": ("state", shape.vector() ** 2 + 0.1),
    }


def normalized(x, mean, variance, parameters):
    return (x - mean) / np.sqrt(variance + 1e-3) * parameters["weight"][1] + parameters["bias"][1]


@quick
@given(seed=seeds)
def test_batch_norm_of_a_training_graph_uses_the_batch(seed):
    shape = Shape(seed, least_rows=3)
    x, parameters = 2 * shape.normal() + 5, batch_norm_parameters(shape)
    arguments = shape.arguments(parameters, x=x)
    expected = normalized(x, x.mean(axis=0), x.var(axis=0), parameters)
    check_forward(batch_norm, expected, tolerance=1e-4, training=True, **arguments)
    check_gradients(batch_norm, shape.generator, training=True, **arguments)


@quick
@given(seed=seeds)
def test_batch_norm_moves_the_running_statistics(seed):
    shape = Shape(seed, least_rows=3)
    x, parameters = shape.normal(), batch_norm_parameters(shape)
    case = OpCase(batch_norm, training=True, **shape.arguments(parameters, x=x))
    case.gradient(np.ones(case.output_shape))
    for name, batch in (("running_mean", x.mean(axis=0)), ("running_variance", x.var(axis=0, ddof=1))):
        assert_close(case.parameters[name], 0.75 * parameters[name][1] + 0.25 * batch, 1e-12, name)


@pytest.mark.parametrize("role", ["trainable", "frozen"])
@quick
@given(seed=seeds)
def test_batch_norm_otherwise_uses_the_running_statistics(role, seed):
    shape = Shape(seed)
    x, parameters = shape.normal(), batch_norm_parameters(shape, role)
    arguments = shape.arguments(parameters, x=x)
    expected = normalized(x, parameters["running_mean"][1], parameters["running_variance"][1], parameters)
    check_forward(batch_norm, expected, **arguments)
    check_gradients(batch_norm, shape.generator, **arguments)


def test_batch_norm_has_the_same_bits_on_any_number_of_threads():
    shape = Shape(7)
    shape.lengths, shape.rows, shape.channels = {"tokens": [40, 1, 90, 70]}, 201, 33
    arguments = shape.arguments(batch_norm_parameters(shape), x=shape.normal())
    cotangent, before, results = shape.normal(), _core.threads(), []
    try:
        for threads in (1, 2, 3):
            _core.set_threads(threads)
            case = OpCase(batch_norm, core=_core, training=True, **arguments)
            gradients, parameter_gradients = case.gradient(cotangent)
            results.append([*gradients.values(), *parameter_gradients.values(), *case.parameters.values()])
    finally:
        _core.set_threads(before)
    for other in results[1:]:
        assert all(map(np.array_equal, results[0], other))


def test_batch_norm_of_one_row_has_no_statistics():
    arguments = {"lengths": {"tokens": [1]}, "inputs": {"x": ("tokens", np.ones((1, 3)))}, "output": ("tokens", 3)}
    vectors = {"weight": "trainable", "bias": "trainable", "running_mean": "state", "running_variance": "state"}
    parameters = {name: (role, np.ones(3)) for name, role in vectors.items()}
    with pytest.raises(ValueError):
        OpCase(batch_norm, training=True, parameters=parameters, **arguments).forward()


# ---- Dropout ----


def dropout(graph, values, _):
    return graph.dropout(values["x"], 0.25)


@quick
@given(seed=seeds)
def test_dropout_gradient_uses_the_mask_of_the_forward(seed):
    shape = Shape(seed)
    check_gradients(dropout, shape.generator, training=True, **shape.arguments(x=shape.normal()))
    added = lambda graph, values, _: graph.add(dropout(graph, values, _), values["x"])
    check_gradients(added, shape.generator, training=True, **shape.arguments(x=shape.normal()))


WIDE_LENGTHS = [7, 31, 20] + 25 * [3, 1]


def wide_dropout(core, tile_rows=512, lengths=WIDE_LENGTHS, **arguments):
    """Rows of ones, 1001 channels wide."""
    inputs = {"x": ("tokens", np.ones((sum(lengths), 1001)))}
    return OpCase(dropout, lengths={"tokens": list(lengths)}, inputs=inputs, output=("tokens", 1001), core=core,
                  tile_rows=tile_rows, **arguments)  # fmt: skip


def test_dropout_keeps_the_share_it_says_and_scales_it():
    kept = wide_dropout(_core_double, training=True).forward()
    assert set(np.unique(kept)) == {0.0, 1 / 0.75}
    deviation = np.sqrt(0.25 * 0.75 / kept.size)
    assert abs(np.mean(kept != 0) - 0.75) < 5 * deviation
    for axis in (0, 1):  # no row and no channel is special
        deviation = np.sqrt(0.25 * 0.75 / kept.shape[axis])
        assert np.max(np.abs(np.mean(kept != 0, axis=axis) - 0.75)) < 6 * deviation
    neighbours = np.corrcoef(kept[:, :-1].ravel(), kept[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 5 / np.sqrt(kept.size)


def test_dropout_mask_depends_on_seed_and_step_but_not_on_tiles_or_precision():
    case = wide_dropout(_core_double, training=True)
    mask = case.forward(seed=5, step=2) != 0
    assert np.array_equal(mask, case.forward(seed=5, step=2) != 0)
    in_more_tiles = wide_dropout(_core_double, tile_rows=7, training=True)
    assert np.array_equal(mask, in_more_tiles.forward(seed=5, step=2) != 0)
    assert np.array_equal(mask, wide_dropout(_core, training=True).forward(seed=5, step=2) != 0)
    for other in (case.forward(seed=6, step=2), case.forward(seed=5, step=3)):
        assert 0.5 < np.mean(mask == (other != 0)) < 0.7  # 0.25^2 + 0.75^2 = 0.625 by chance


def test_dropout_mask_of_a_sample_does_not_depend_on_the_lengths_before_it():
    one = wide_dropout(_core, training=True).forward()
    other = wide_dropout(_core, lengths=[2, *WIDE_LENGTHS[1:]], training=True).forward()
    assert np.array_equal(one[7:], other[2:])


def test_two_dropouts_of_a_graph_draw_apart():
    build = lambda graph, values, _: graph.multiply(dropout(graph, values, _), dropout(graph, values, _))
    arguments = {"inputs": {"x": ("tokens", np.ones((100, 500)))}, "output": ("tokens", 500)}
    kept = OpCase(build, lengths={"tokens": [100]}, training=True, **arguments).forward() != 0
    assert abs(np.mean(kept) - 0.75**2) < 5 * np.sqrt(0.25 / kept.size)


def test_dropout_is_off_outside_training():
    case = wide_dropout(_core, training=False)
    assert np.array_equal(case.forward(), np.ones(case.output_shape))


# ---- Sums and products ----

PAIRS = {
    "add": (lambda graph, a, b: graph.add(a, b), lambda a, b: a + b),
    "multiply": (lambda graph, a, b: graph.multiply(a, b), lambda a, b: a * b),
}


@pytest.mark.parametrize("name", PAIRS)
@quick
@given(seed=seeds)
def test_pair(name, seed):
    shape = Shape(seed)
    op, twin = PAIRS[name]
    a, b = shape.normal(), shape.normal()
    build = lambda graph, values, _: op(graph, values["a"], values["b"])
    check_forward(build, twin(a, b), **shape.arguments(a=a, b=b))
    check_gradients(build, shape.generator, **shape.arguments(a=a, b=b))


@pytest.mark.parametrize("name", PAIRS)
def test_pair_of_one_value_with_itself(name):
    shape = Shape(4)
    op, twin = PAIRS[name]
    x = shape.normal()
    build = lambda graph, values, _: op(graph, graph.activate(values["x"], "tanh"), values["x"])
    check_gradients(build, shape.generator, **shape.arguments(x=x))
    build = lambda graph, values, _: op(graph, values["x"], values["x"])
    check_forward(build, twin(x, x), **shape.arguments(x=x))
    check_gradients(build, shape.generator, **shape.arguments(x=x))


@pytest.mark.parametrize("role", ["trainable", "frozen"])
@quick
@given(seed=seeds)
def test_gated_residual(role, seed):
    shape = Shape(seed)
    x, last, gate = shape.normal(), shape.normal(), 0.1 * shape.generator.standard_normal((1, 1))
    build = lambda graph, values, known: graph.gated_residual(values["x"], values["last"], known["gate"], 0.1)
    arguments = shape.arguments({"gate": (role, gate)}, x=x, last=last)
    check_forward(build, x + np.tanh(gate / 0.1) * last, **arguments)
    check_gradients(build, shape.generator, **arguments)


def test_gated_residual_of_one_value_with_itself():
    shape = Shape(5)
    build = lambda graph, values, known: graph.gated_residual(
        graph.activate(values["x"], "tanh"), values["x"], known["gate"], 0.5
    )
    check_gradients(build, shape.generator, **shape.arguments({"gate": ("trainable", [[0.3]])}, x=shape.normal()))
    build = lambda graph, values, known: graph.gated_residual(values["x"], values["x"], known["gate"], 0.5)
    check_gradients(build, shape.generator, **shape.arguments({"gate": ("trainable", [[0.3]])}, x=shape.normal()))


# ---- Embedding ----


def embedding(graph, values, known):
    return graph.embedding(values["indices"], known["table"])


@quick
@given(seed=seeds)
def test_embedding(seed):
    shape = Shape(seed)
    table = shape.generator.standard_normal((5, shape.channels))
    indices = shape.generator.integers(0, 5, shape.rows)
    arguments = shape.arguments({"table": ("trainable", table)}, indices=indices)
    check_forward(embedding, table[indices], **arguments)
    check_gradients(embedding, shape.generator, **arguments)


@pytest.mark.parametrize("index", [-1, 5, 2**31 - 1])
def test_embedding_refuses_an_index_outside_the_table(index):
    arguments = {"inputs": {"indices": (SAMPLES, np.array([0, index]))}, "output": (SAMPLES, 3)}
    case = OpCase(embedding, lengths={"tokens": [1, 1]}, parameters={"table": ("trainable", np.ones((5, 3)))},
                  **arguments)
    with pytest.raises(ValueError):
        case.forward()


# ---- Among others ----

PARAMETERS = {
    "layer_norm": ("weight", "bias"),
    "batch_norm": ("weight", "bias", "running_mean", "running_variance"),
    "gated_residual": ("gate",),
}
OPS = {
    **{name: lambda graph, h, last, known, name=name: graph.activate(h, name) for name in ACTIVATIONS},
    "layer_norm": lambda graph, h, last, known: graph.layer_norm(h, known["weight"], known["bias"], 1e-3),
    "batch_norm": lambda graph, h, last, known: batch_norm(graph, {"x": h}, known),
    "dropout": lambda graph, h, last, known: graph.dropout(h, 0.3),
    "add": lambda graph, h, last, known: graph.add(h, last),
    "multiply": lambda graph, h, last, known: graph.multiply(h, last),
    "gated_residual": lambda graph, h, last, known: graph.gated_residual(h, last, known["gate"], 0.5),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_op_amid_others_finds_what_its_backward_reads(name, training):
    """Its inputs are values that the plan may overwrite, and enough values follow for it to do so."""
    shape = Shape(6)

    def build(graph, values, known):
        h = graph.add(values["x"], values["z"])
        last = graph.add(values["z"], values["z"])
        y = OPS[name](graph, h, last, known)
        for _ in range(3):
            y = graph.multiply(graph.add(y, values["x"]), graph.activate(y, "sigmoid"))
        return graph.add(y, graph.activate(y, "gelu"))

    known = {**batch_norm_parameters(shape), "gate": ("trainable", [[0.4]])}
    parameters = {given: known[given] for given in PARAMETERS.get(name, ())}
    arguments = shape.arguments(parameters, x=shape.normal(), z=shape.normal())
    check_gradients(build, shape.generator, training=training, **arguments)
