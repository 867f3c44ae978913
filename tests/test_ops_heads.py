"""The ops behind heads: generalized pooling, l2 norms, a learned scale, concatenation, cross-entropy over rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_harness import SAMPLES, OpCase, assert_close, central_differences, check_forward, check_gradients, ragged

from sherl import _core, _core_double

pytestmark = pytest.mark.core
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=25, deadline=None)


def segments(rows, lengths):
    return np.split(rows, np.cumsum(lengths)[:-1])


def softmax(scores):
    weights = np.exp(scores - scores.max(axis=0))
    return weights / weights.sum(axis=0)


def distinct(generator, rows, channels):
    """Values so far apart that a step of the differences does not change their order."""
    return generator.permuted(np.tile(np.arange(rows)[:, None], channels), axis=0) / 3 + generator.random(channels)


# ---- Generalized pooling ----


def sorted_pool(graph, values, parameters):
    return graph.sorted_pool(values["x"], values["scores"])


@quick
@given(seed=seeds, channels=st.integers(1, 9), longest=st.integers(1, 9))
def test_sorted_pool(seed, channels, longest):
    generator = np.random.default_rng(seed)
    lengths = ragged(generator, longest=longest)
    x, scores = distinct(generator, sum(lengths), channels), generator.standard_normal((sum(lengths), 1))
    expected = [np.sum(softmax(score) * np.sort(rows, axis=0)[::-1], axis=0)
                for rows, score in zip(segments(x, lengths), segments(scores, lengths))]
    arguments = {"lengths": {"rows": lengths}, "inputs": {"x": ("rows", x), "scores": ("rows", scores)},
                 "output": (SAMPLES, channels)}
    check_forward(sorted_pool, np.stack(expected), **arguments)
    check_gradients(sorted_pool, generator, **arguments)


def test_sorted_pool_orders_equals_by_row_and_what_is_not_a_number_first():
    x = np.array([[1, 2.0], [3, np.nan], [3, 5], [0, 5]])
    scores = np.array([[0.0], [1], [2], [3]])
    case = OpCase(sorted_pool, lengths={"rows": [4]}, inputs={"x": ("rows", x), "scores": ("rows", scores)},
                  output=(SAMPLES, 2))
    share = softmax(scores)[:, 0]
    assert_close(case.forward()[0, 0], share @ [3, 3, 1, 0], 1e-12)
    assert np.isnan(case.forward()[0, 1])
    assert_close(case.gradient([[1, 0]])[0]["x"][:, 0], share[[2, 0, 1, 3]], 1e-12)


def test_sorted_pool_adds_to_gradients_that_other_readers_have_begun():
    generator = np.random.default_rng(3)
    x, scores = distinct(generator, 6, 4), generator.standard_normal((6, 1))

    def build(graph, values, parameters):
        pooled = graph.sorted_pool(values["x"], values["scores"])
        return graph.add(graph.multiply(pooled, graph.pool(values["x"], "mean")),
                         graph.sorted_pool(values["x"], values["scores"]))

    check_gradients(build, generator, lengths={"rows": [2, 1, 3]},
                    inputs={"x": ("rows", x), "scores": ("rows", scores)},
                    output=(SAMPLES, 4))


def rank_encoding(lengths, channels):
    frequencies = 10000.0 ** (-4 * np.arange(channels // 4) / channels)
    rows = []
    for length in lengths:
        for k in range(length):
            above, below = k * frequencies, (length - 1 - k) * frequencies
            rows.append(np.stack([np.sin(above), np.cos(above), np.sin(below), np.cos(below)], axis=1).ravel())
    return np.array(rows)


def test_rank_encoding():
    lengths = [3, 1, 6]
    check_forward(
        lambda graph, values, parameters: graph.rank_encoding(values["x"], 8), rank_encoding(lengths, 8),
        lengths={"rows": lengths}, inputs={"x": ("rows", np.ones((10, 2)))}, output=("rows", 8),
    )
    graph = _core.Graph(_core.Parameters(), False)
    x = graph.input("x", graph.space("rows"), 2)
    with pytest.raises(ValueError, match="channels must be a multiple of 4, not 6"):
        graph.rank_encoding(x, 6)


# ---- Row by row ----


@quick
@given(seed=seeds, channels=st.integers(1, 40), eps=st.sampled_from([0, 1e-6, 0.1]))
def test_l2_normalize(seed, channels, eps):
    generator = np.random.default_rng(seed)
    lengths = ragged(generator)
    x = 1 + generator.random((sum(lengths), channels))
    arguments = {"lengths": {"rows": lengths}, "inputs": {"x": ("rows", x)}, "output": ("rows", channels)}
    build = lambda graph, values, parameters: graph.l2_normalize(values["x"], eps)
    check_forward(build, x / (np.linalg.norm(x, axis=1, keepdims=True) + eps), **arguments)
    check_gradients(build, generator, **arguments)


def test_l2_normalize_of_zeros_is_zero_without_a_gradient():
    case = OpCase(lambda graph, values, parameters: graph.l2_normalize(values["x"], 1e-8), lengths={"rows": [2]},
                  inputs={"x": ("rows", np.array([[0, 0], [3, 4.0]]))}, output=("rows", 2))
    assert_close(case.forward(), [[0, 0], [0.6, 0.8]], 1e-7)
    assert_close(case.gradient(np.ones((2, 2)))[0]["x"], [[0, 0], [0.032, -0.024]], 1e-7)


def test_l2_normalize_and_amplify_add_to_a_gradient_that_other_readers_have_begun():
    generator = np.random.default_rng(4)

    def build(graph, values, parameters):
        x = values["x"]
        scaled = graph.amplify(x, parameters["logarithm"], 2.0)
        return graph.concatenate([graph.l2_normalize(x), graph.multiply(scaled, x), x])

    check_gradients(build, generator, lengths={"rows": [2, 1]}, inputs={"x": ("rows", generator.random((3, 4)))},
                    output=("rows", 12), parameters={"logarithm": ("trainable", [0.3])})


@pytest.mark.parametrize("role", ["trainable", "frozen"])
def test_amplify(role):
    generator = np.random.default_rng(5)
    x = generator.standard_normal((5, 3))
    arguments = {"lengths": {"rows": [2, 3]}, "inputs": {"x": ("rows", x)}, "output": ("rows", 3),
                 "parameters": {"logarithm": (role, [0.5])}}
    build = lambda graph, values, parameters: graph.amplify(values["x"], parameters["logarithm"], 1 / 0.07)
    check_forward(build, np.exp(0.5) / 0.07 * x, **arguments)
    check_gradients(build, generator, **arguments)


@quick
@given(seed=seeds, widths=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_concatenate(seed, widths):
    generator = np.random.default_rng(seed)
    lengths = ragged(generator)
    inputs = {f"x{number}": ("rows", generator.standard_normal((sum(lengths), width)))
              for number, width in enumerate(widths)}
    arguments = {"lengths": {"rows": lengths}, "inputs": inputs, "output": ("rows", sum(widths))}
    build = lambda graph, values, parameters: graph.concatenate(list(values.values()))
    check_forward(build, np.concatenate([rows for _, rows in inputs.values()], axis=1), **arguments)
    check_gradients(build, generator, **arguments)


def test_concatenate_refuses_other_rows():
    graph = _core.Graph(_core.Parameters(), False)
    values = [graph.input(name, graph.space(name), 2) for name in ("a", "b")]
    with pytest.raises(ValueError, match="one row space"):
        graph.concatenate(values)


# ---- Cross-entropy over the rows of a sample ----


class RowLoss:
    def __init__(self, x, targets, weights, lengths, core=_core_double):
        real = np.dtype(core.REAL)
        self.x, self.weights = np.array(x, real), np.array(weights, real).reshape(-1, 1)
        self.targets = [np.array(column, np.int32).reshape(-1, 1) for column in np.transpose(targets)]
        self.batch = len(lengths), [None, np.cumsum([0, *lengths]).astype(np.int64)]
        graph = core.Graph(core.Parameters(), True)
        logits = graph.input("x", graph.space("rows"), self.x.shape[1], needs_gradient=True)
        columns = [graph.indices(f"target{number}", core.SAMPLES) for number in range(len(self.targets))]
        weights = graph.input("weights", core.SAMPLES, 1)
        first = graph.row_cross_entropy(logits, columns, weights)
        graph.output(first)
        graph.loss(graph.add(first, graph.row_cross_entropy(logits, columns, weights)))  # the gradient is added to
        self.program = graph.compile(True)
        self.program.set_tile_rows(4)

    def sources(self):
        return [(array, None) for array in (self.x, *self.targets, self.weights)]

    def rows(self):
        output = np.full(self.weights.shape, np.nan, self.x.dtype)
        self.program.forward(*self.batch, self.sources(), [(output, None)])
        return output[:, 0]

    def total(self):
        return self.program.forward(*self.batch, self.sources())

    def gradient(self):
        sink = np.full(self.x.shape, np.nan, self.x.dtype)
        self.program.gradient(*self.batch, self.sources(),
                              input_gradients=[(sink, None), *[None] * (len(self.targets) + 1)])
        return sink


@quick
@given(seed=seeds, channels=st.integers(1, 3))
def test_row_cross_entropy(seed, channels):
    generator = np.random.default_rng(seed)
    lengths = ragged(generator, longest=6)
    x = 3 * generator.standard_normal((sum(lengths), channels))
    targets = np.stack([generator.integers(0, length, channels) for length in lengths])
    weights = generator.random(len(lengths))
    expected = [weight * -np.mean(np.log(softmax(rows))[target, np.arange(channels)])
                for rows, target, weight in zip(segments(x, lengths), targets, weights)]
    double, single = (RowLoss(x, targets, weights, lengths, core) for core in (_core_double, _core))
    assert_close(double.rows(), expected, 1e-12)
    assert_close(single.rows(), expected, 1e-5)
    gradient = double.gradient()
    assert_close(gradient, central_differences(double.total, double.x, 1e-5), 1e-6)
    assert_close(single.gradient(), gradient, 1e-5)


@pytest.mark.parametrize("target", [-1, 2])
def test_row_cross_entropy_refuses_rows_that_the_sample_has_not(target):
    with pytest.raises(ValueError, match="."):
        RowLoss(np.zeros((5, 1)), [[0], [target]], [1, 1], [3, 2]).total()


def test_row_cross_entropy_of_large_logits_is_finite():
    loss = RowLoss([[1e4], [-1e4], [0]], [[2]], [1], [3], core=_core)
    assert np.array_equal(loss.rows(), [1e4])
    assert np.array_equal(loss.gradient(), [[2], [0], [-2]])


def test_row_cross_entropy_checks_its_operands():
    graph = _core.Graph(_core.Parameters(), False)
    rows = graph.space("rows")
    logits, target = graph.input("x", rows, 2), graph.indices("target", _core.SAMPLES)
    weights = graph.input("weights", _core.SAMPLES, 1)
    with pytest.raises(ValueError, match="target_rows must be 2 values, one a channel of the logits, not 1"):
        graph.row_cross_entropy(logits, [target], weights)
    with pytest.raises(ValueError, match="one row space"):
        graph.row_cross_entropy(logits, [target, graph.indices("other", rows)], weights)
