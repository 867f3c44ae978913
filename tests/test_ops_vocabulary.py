"""Cross-entropy over a vocabulary with its map, and a whole small seq2seq graph: twins, finite differences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_harness import OpCase, assert_close, ragged

from sherl import _core, _core_double

pytestmark = pytest.mark.core
seeds = st.integers(0, 2**32 - 1)


def draw(seed, words, channels, samples=None):
    generator = np.random.default_rng(seed)
    lengths = ragged(generator, samples)
    rows = sum(lengths)
    return generator, lengths, {
        "x": ("rows", generator.standard_normal((rows, channels))),
        "targets": ("rows", generator.integers(0, words, rows)),
    }, generator.standard_normal((words, channels))  # fmt: skip


class Vocabulary:
    """The op with weights that get no gradient, as its rows, its sum, and the gradient of the sum."""

    def __init__(self, lengths, inputs, table, weights, core=_core_double, best=False, **options):
        self.real = np.dtype(core.REAL)
        self.x = inputs["x"][1].astype(self.real)
        self.targets = inputs["targets"][1].astype(np.int32).reshape(-1, 1)
        self.weights, self.table = weights.astype(self.real).reshape(-1, 1), table.astype(self.real)
        self.samples, self.offsets = len(lengths), [None, np.cumsum([0, *lengths]).astype(np.int64)]
        graph = core.Graph(core.Parameters(), True)
        rows = graph.space("rows")
        x = graph.input("x", rows, self.x.shape[1], not best)
        known = graph.parameter("table", self.table.shape, "frozen", data=self.table)
        targets, given_weights = graph.indices("targets", rows), graph.input("weights", rows, 1)
        value = graph.vocabulary_cross_entropy(x, targets, given_weights, known, best=best, **options)
        graph.output(value)
        if not best:
            graph.loss(value)
        self.columns = 1 + best
        self.program = graph.compile(not best)
        self.program.set_tile_rows(3)

    def sources(self):
        return [(array, None) for array in (self.x, self.targets, self.weights)]

    def rows(self):
        output = np.full((len(self.x), self.columns), np.nan, self.real)
        self.program.forward(self.samples, self.offsets, self.sources(), [(output, None)])
        return output

    def gradient(self):
        sink = np.full(self.x.shape, np.nan, self.real)
        self.program.gradient(self.samples, self.offsets, self.sources(), input_gradients=[(sink, None), None, None])
        return sink


def twin(x, targets, table, weights, smoothing):
    """The loss of each row, its gradient, and the best word."""
    z = x @ table.T
    shifted = np.exp(z - z.max(axis=1, keepdims=True))
    p = shifted / shifted.sum(axis=1, keepdims=True)
    q = np.full(z.shape, smoothing / len(table))
    q[np.arange(len(z)), targets] += 1 - smoothing
    return weights * -(q * np.log(p)).sum(axis=1), weights[:, None] * (p - q) @ table, z.argmax(axis=1)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([2, 3, 64, 200]), st.sampled_from([1, 5, 16]), st.sampled_from([0.0, 0.2]))
def test_vocabulary_cross_entropy(seed, words, channels, smoothing):
    generator, lengths, inputs, table = draw(seed, words, channels)
    weights = generator.uniform(0, 2, sum(lengths)) * generator.integers(0, 2, sum(lengths))
    expected, gradient, best = twin(inputs["x"][1], inputs["targets"][1], table, weights, smoothing)
    for core, limit in ((_core_double, 1e-12), (_core, 1e-5)):
        case = Vocabulary(lengths, inputs, table, weights, core, label_smoothing=smoothing)
        assert_close(case.rows()[:, 0], expected, limit)
        assert_close(case.gradient(), gradient, limit)
        both = Vocabulary(lengths, inputs, table, weights, core, best=True, label_smoothing=smoothing).rows()
        assert_close(both[:, 0], expected, limit)
        np.testing.assert_array_equal(both[:, 1], best)


def test_more_rows_than_are_computed_at_a_time():
    generator, _, inputs, table = draw(1, 33, 8)
    lengths, rows = [150, 20], 170
    inputs = {"x": ("rows", generator.standard_normal((rows, 8))), "targets": ("rows", generator.integers(0, 33, rows))}
    weights = generator.uniform(0, 2, rows)
    case = Vocabulary(lengths, inputs, table, weights, label_smoothing=0.1)
    expected, gradient, _ = twin(inputs["x"][1], inputs["targets"][1], table, weights, 0.1)
    assert_close(case.rows()[:, 0], expected, 1e-12)
    assert_close(case.gradient(), gradient, 1e-12)


@pytest.mark.parametrize("target", [-1, 7])
def test_a_target_beyond_the_vocabulary_is_refused(target):
    _, lengths, inputs, table = draw(2, 7, 4)
    inputs["targets"][1][0] = target
    case = Vocabulary(lengths, inputs, table, np.ones(sum(lengths)))
    with pytest.raises((ValueError, IndexError), match="outside its table"):
        case.rows()


def test_bad_graphs_are_refused():
    store = _core.Parameters()
    graph = _core.Graph(store, False)
    rows = graph.space("rows")
    x, targets, weights = graph.input("x", rows, 4), graph.indices("targets", rows), graph.input("weights", rows, 1)
    trained = graph.parameter("trained", (5, 4), "trainable")
    with pytest.raises(ValueError, match="table must be frozen"):
        graph.vocabulary_cross_entropy(x, targets, weights, trained)
    wide = np.zeros((5, 3), np.float32)
    graph = _core.Graph(store, False)
    rows = graph.space("rows")
    x, targets, weights = graph.input("x", rows, 4), graph.indices("targets", rows), graph.input("weights", rows, 1)
    table = graph.parameter("wide", wide.shape, "frozen", data=wide)
    with pytest.raises(ValueError, match="table"):
        graph.vocabulary_cross_entropy(x, targets, weights, table)


# ---- The whole graph of a small network, in float64 ----

CHANNELS, HIDDEN, WORDS = 6, 3, 9
LATE = {"heads": 2, "intermediate": 5, "placement": "pre", "norm": "rmsnorm", "scale": 1.0, "query_bias": False,
        "output_bias": False, "feed_forward_bias": False, "causal": True, "position_buckets": 4, "max_distance": 8,
        "bidirectional": False, "activation": "gelu_tanh", "eps": 1e-6}


def late_weights(generator):
    square = ("query", "key", "value", "output", "cross_query", "cross_key", "cross_value", "cross_output")
    weights = {f"{name}_weight": 0.5 * generator.standard_normal((CHANNELS, CHANNELS)) for name in square}
    weights |= {f"{name}_norm_weight": 1 + 0.1 * generator.standard_normal(CHANNELS)
                for name in ("attention", "cross", "feed_forward")}
    weights |= {"up_weight": generator.standard_normal((5, CHANNELS)),
                "down_weight": generator.standard_normal((CHANNELS, 5)),
                "position_bias_weight": generator.standard_normal((4, 2))}
    return weights


def test_the_whole_network_has_the_gradients_of_finite_differences():
    generator = np.random.default_rng(0)
    lengths = {"encoder": [4, 1, 3], "decoder": [2, 3, 1]}
    weights = late_weights(generator)
    inputs = {f"{side}_tap{number}": (side, generator.standard_normal((sum(rows), CHANNELS)))
              for side, rows in lengths.items() for number in range(3)}
    parameters = {"table": ("frozen", generator.standard_normal((WORDS, CHANNELS))),
                  "encoder_norm": ("trainable", 1 + 0.2 * generator.standard_normal((1, CHANNELS))),
                  "norm": ("trainable", 1 + 0.2 * generator.standard_normal((1, CHANNELS)))}

    def adapter(graph, side, values):
        taps = [values[f"{side}_tap{number}"] for number in range(3)]
        return graph.mtsa(f"{side}.", taps, taps[-1], hidden=HIDDEN, out_features=CHANNELS, down="gated", eps=1e-6)

    def build(graph, values, known):
        memory = graph.rms_norm(adapter(graph, "encoder", values), known["encoder_norm"], 1e-6)
        x = adapter(graph, "decoder", values)
        x = graph.transformer_layer("late.0.", x, weights, memory=memory, **LATE)
        return graph.linear(graph.rms_norm(x, known["norm"], 1e-6), known["table"])

    case = OpCase(build, lengths=lengths, inputs=inputs, output=("decoder", WORDS), parameters=parameters)
    case.store.initialize(1)
    for name in case.store.names("trainable"):
        array = case.store.array(name)
        array[...] += 0.3 * generator.standard_normal(array.shape)
        case.parameters[name] = array
    # Logits in one graph, and in another the loss over them: its gradient is that of the logits for softmax - target.
    targets = generator.integers(0, WORDS, 6)
    logits = case.forward()
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    cotangent = p - np.eye(WORDS)[targets]
    got, wanted = case.gradient(cotangent), case.finite_differences(cotangent)
    for kind, actual, expected in zip(("input", "parameter"), got, wanted, strict=True):
        assert actual.keys() == expected.keys()
        for name in actual:
            assert_close(actual[name], expected[name], 1e-6, f"{kind} {name}")
