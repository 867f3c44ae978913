"""Cross-entropy, binary cross-entropy and squared error against NumPy twins and finite differences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_harness import assert_close, central_differences, ragged

from sherl import _core, _core_double

pytestmark = pytest.mark.core
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40, deadline=None)


class Loss:
    """A compiled loss over the rows of ragged segments; the predictions get a gradient, targets and weights do not.

    ``options`` go to the graph's function of that name; class weights are given as an array.
    """

    def __init__(
        self, name, predictions, targets, weights, *, core=_core_double, lengths=None, class_weights=None, **options
    ):
        real = np.dtype(core.REAL)
        self.predictions, self.weights = np.array(predictions, real), np.array(weights, real).reshape(-1, 1)
        self.targets = np.array(targets, np.int32 if name == "cross_entropy" else real).reshape(len(predictions), -1)
        lengths = lengths or [len(predictions)]
        self.samples, self.offsets = len(lengths), [None, np.cumsum([0, *lengths]).astype(np.int64)]
        graph = core.Graph(core.Parameters(), True)
        rows = graph.space("rows")
        x = graph.input("predictions", rows, self.predictions.shape[1], needs_gradient=True)
        if name == "cross_entropy":
            given_targets = graph.indices("targets", rows)
        else:
            given_targets = graph.input("targets", rows, self.targets.shape[1])
        if class_weights is not None:
            self.class_weights = np.array(class_weights, real)
            data = {"role": "frozen", "data": self.class_weights}
            options["class_weights"] = graph.parameter("class_weights", self.class_weights.shape, **data)
        loss = getattr(graph, name)(x, given_targets, graph.input("weights", rows, 1), **options)
        graph.output(loss)
        graph.loss(loss)
        self.program = graph.compile(True)
        self.program.set_tile_rows(3)

    def sources(self):
        return [(array, None) for array in (self.predictions, self.targets, self.weights)]

    def rows(self):
        """The loss of each row."""
        output = np.full((len(self.predictions), 1), np.nan, self.predictions.dtype)
        total = self.program.forward(self.samples, self.offsets, self.sources(), [(output, None)])
        assert_close(total, output.sum(dtype=np.float64), 1e-6, "the sum over the rows")
        return output[:, 0]

    def total(self):
        return self.program.forward(self.samples, self.offsets, self.sources())

    def gradient(self):
        """The gradient of the sum over the rows with respect to the predictions."""
        sink = np.full(self.predictions.shape, np.nan, self.predictions.dtype)
        sinks = [(sink, None), None, None]
        self.program.gradient(self.samples, self.offsets, self.sources(), input_gradients=sinks)
        return sink


def check(name, expected, predictions, targets, weights, lengths, **options):
    """Both precisions against the twin, and the gradient against finite differences."""
    given_rows = predictions, targets, weights
    double, single = (Loss(name, *given_rows, core=core, lengths=lengths, **options) for core in (_core_double, _core))
    assert_close(double.rows(), expected, 1e-12, "float64")
    assert_close(single.rows(), expected, 1e-5, "float32")
    gradient = double.gradient()
    assert_close(gradient, central_differences(double.total, double.predictions, 1e-5), 1e-6, "gradient")
    assert_close(single.gradient(), gradient, 1e-5, "gradient in float32")


def draw(seed, channels):
    generator = np.random.default_rng(seed)
    lengths = ragged(generator)
    predictions = 3 * generator.standard_normal((sum(lengths), channels))
    return generator, lengths, predictions, generator.random(sum(lengths))


def cross_entropy(logits, targets, weights, class_weights=None, label_smoothing=0.0):
    classes = logits.shape[1]
    peak = logits.max(axis=1, keepdims=True)
    log_softmax = logits - peak - np.log(np.sum(np.exp(logits - peak), axis=1, keepdims=True))
    q = (1 - label_smoothing) * np.eye(classes)[targets] + label_smoothing / classes
    return -weights * np.sum(q * (1 if class_weights is None else class_weights) * log_softmax, axis=1)


@quick
@given(
    seed=seeds,
    classes=st.integers(1, 40),
    weighted=st.booleans(),
    label_smoothing=st.sampled_from([0.0, 0.1, 0.9]),
)
def test_cross_entropy(seed, classes, weighted, label_smoothing):
    generator, lengths, logits, weights = draw(seed, classes)
    targets = generator.integers(0, classes, len(logits))
    class_weights = generator.random(classes) if weighted else None
    check(
        "cross_entropy",
        cross_entropy(logits, targets, weights, class_weights, label_smoothing),
        logits, targets, weights, lengths, class_weights=class_weights, label_smoothing=label_smoothing,
    )


def test_cross_entropy_with_class_weights_and_label_smoothing_has_the_known_value():
    # log softmax of (0, log 3) is (-log 4, log 3 - log 4); q = (0.1, 0.9); class weights (2, 0.5)
    expected = 0.1 * 2 * np.log(4) + 0.9 * 0.5 * (np.log(4) - np.log(3))
    loss = Loss("cross_entropy", [[0, np.log(3)]], [1], [1], class_weights=[2, 0.5], label_smoothing=0.2)
    assert_close(loss.rows(), [expected], 1e-12)


@pytest.mark.parametrize("core", [_core, _core_double])
def test_cross_entropy_of_large_logits_is_finite(core):
    loss = Loss("cross_entropy", [[1e4, -1e4, 0], [1e4, -1e4, 0]], [0, 1], [1, 1], core=core)
    assert np.array_equal(loss.rows(), [0, 2e4])
    assert np.array_equal(loss.gradient(), [[0, 0, 0], [1, -1, 0]])


def test_cross_entropy_of_a_class_that_is_ruled_out():
    loss = Loss("cross_entropy", [[0, 0, -np.inf]], [1], [1])
    assert_close(loss.rows(), [np.log(2)], 1e-12)
    assert_close(loss.gradient(), [[0.5, -0.5, 0]], 1e-12)


@pytest.mark.parametrize("target", [-1, 3, 2**31 - 1, -(2**31)])
def test_cross_entropy_refuses_targets_that_are_no_class(target):
    loss = Loss("cross_entropy", np.zeros((2, 3)), [0, target], [1, 1])
    with pytest.raises(ValueError, match="."):
        loss.total()
    with pytest.raises(ValueError, match="."):
        loss.gradient()


def binary_cross_entropy(logits, targets, weights):
    losses = targets * np.logaddexp(0, -logits) + (1 - targets) * np.logaddexp(0, logits)
    return weights * losses.mean(axis=1)


@quick
@given(seed=seeds, channels=st.integers(1, 20))
def test_binary_cross_entropy(seed, channels):
    generator, lengths, logits, weights = draw(seed, channels)
    targets = generator.random(logits.shape)
    check(
        "binary_cross_entropy", binary_cross_entropy(logits, targets, weights), logits, targets, weights, lengths
    )


@pytest.mark.parametrize("core", [_core, _core_double])
def test_binary_cross_entropy_of_large_logits_is_finite(core):
    loss = Loss("binary_cross_entropy", [[1e4], [1e4], [-1e4], [-1e4]], [1, 0, 1, 0], [1, 1, 1, 1], core=core)
    assert np.array_equal(loss.rows(), [0, 1e4, 1e4, 0])
    assert np.array_equal(loss.gradient(), [[0], [1], [-1], [0]])


@quick
@given(seed=seeds, channels=st.integers(1, 20))
def test_squared_error(seed, channels):
    generator, lengths, predictions, weights = draw(seed, channels)
    targets = generator.standard_normal(predictions.shape)
    expected = weights * np.mean((predictions - targets) ** 2, axis=1)
    check("squared_error", expected, predictions, targets, weights, lengths)


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "squared_error"])
def test_rows_of_weight_zero_count_nothing(name):
    generator = np.random.default_rng(1)
    predictions = generator.standard_normal((3, 4))
    targets = [0, 3, 1] if name == "cross_entropy" else generator.random((3, 4))
    loss = Loss(name, predictions, targets, [1, 0, 1])
    assert loss.rows()[1] == 0
    gradient = loss.gradient()
    assert not np.any(gradient[1])
    assert np.all(gradient[[0, 2]] != 0)


def test_a_loss_adds_to_a_gradient_that_other_readers_have_begun():
    """The predictions are read by two losses."""
    generator = np.random.default_rng(2)
    predictions, targets = generator.standard_normal((3, 4)), generator.standard_normal((3, 4))
    weights, labels = np.ones((3, 1)), np.array([[0], [3], [1]], np.int32)
    graph = _core_double.Graph(_core_double.Parameters(), True)
    rows = graph.space("rows")
    x = graph.input("predictions", rows, 4, needs_gradient=True)
    given_targets, given_labels = graph.input("targets", rows, 4), graph.indices("labels", rows)
    given_weights = graph.input("weights", rows, 1)
    losses = [
        graph.squared_error(x, given_targets, given_weights),
        graph.cross_entropy(x, given_labels, given_weights),
        graph.binary_cross_entropy(x, given_targets, given_weights),
    ]
    graph.loss(graph.add(graph.add(losses[0], losses[1]), losses[2]))
    sink = np.full((3, 4), np.nan)
    sources = [(array, None) for array in (predictions, targets, labels, weights)]
    sinks = [(sink, None), None, None, None]
    graph.compile(True).gradient(1, [None, np.array([0, 3])], sources, input_gradients=sinks)
    separate = [
        Loss("squared_error", predictions, targets, weights),
        Loss("cross_entropy", predictions, labels[:, 0], weights),
        Loss("binary_cross_entropy", predictions, targets, weights),
    ]
    assert_close(sink, sum(loss.gradient() for loss in separate), 1e-12)
