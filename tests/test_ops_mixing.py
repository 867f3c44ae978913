"""Attention, guidance and pooling against NumPy twins and finite differences."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from op_harness import SAMPLES, OpCase, assert_close, check_forward, check_gradients, ragged

from sherl import _core, _core_double
from sherl.blocks.rotary import speeds

pytestmark = pytest.mark.core
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40, deadline=None)


def offsets(lengths):
    return np.cumsum([0, *lengths])


def segments(rows, lengths):
    return np.split(rows, offsets(lengths)[1:-1])


def check_float32_gradients(build, generator, tolerance=1e-4, **arguments):
    single, double = (OpCase(build, core=core, **arguments) for core in (_core, _core_double))
    cotangent = generator.standard_normal(double.output_shape).astype(np.float32)
    for actual, expected in zip(single.gradient(cotangent), double.gradient(cotangent), strict=True):
        for name in expected:
            assert_close(actual[name], expected[name], tolerance, f"gradient of {name} in float32")


# ---- Attention ----


def softmax(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention_probabilities(query, key, heads, scale, causal):
    """One segment: (heads, queries, keys)."""
    query, key = (rows.reshape(len(rows), heads, -1).transpose(1, 0, 2) for rows in (query, key))
    scores = scale * query @ key.transpose(0, 2, 1)
    if causal:
        scores = np.where(np.arange(len(key[0])) <= np.arange(len(query[0]))[:, None], scores, -np.inf)
    return softmax(scores)


def attention(query, key, value, query_lengths, key_lengths, *, heads, scale, causal=False):
    outputs = []
    rows = segments(query, query_lengths), segments(key, key_lengths), segments(value, key_lengths)
    for q, k, v in zip(*rows, strict=True):
        p = attention_probabilities(q, k, heads, scale, causal)
        outputs.append((p @ v.reshape(len(v), heads, -1).transpose(1, 0, 2)).transpose(1, 0, 2).reshape(len(q), -1))
    return np.concatenate(outputs)


def attend(**options):
    return attend_named(("query", "key", "value"), **options)


def attend_named(names, **options):
    return lambda graph, values, parameters: graph.attention(*(values[name] for name in names), **options)


def attention_arguments(generator, query_lengths, key_lengths, channels, query_space="queries"):
    """What an `OpCase` takes, for queries of one row space and keys and values of another."""
    spaces = {"keys": key_lengths} if query_space == SAMPLES else {"queries": query_lengths, "keys": key_lengths}
    inputs = {"query": (query_space, generator.standard_normal((sum(query_lengths), channels)))}
    for name in ("key", "value"):
        inputs[name] = ("keys", generator.standard_normal((sum(key_lengths), channels)))
    return {"lengths": spaces, "inputs": inputs, "output": (query_space, channels)}


@quick
@given(seed=seeds, heads=st.integers(1, 3), head_size=st.integers(1, 3), causal=st.booleans(), one_query=st.booleans())
def test_attention_forward_and_gradients(seed, heads, head_size, causal, one_query):
    generator = np.random.default_rng(seed)
    key_lengths = ragged(generator)
    query_lengths = [1] * len(key_lengths) if one_query else ragged(generator, samples=len(key_lengths))
    options = {"heads": heads, "scale": 0.7, "causal": causal}
    arguments = attention_arguments(
        generator, query_lengths, key_lengths, heads * head_size, SAMPLES if one_query else "queries"
    )
    rows = [array for _, array in arguments["inputs"].values()]
    check_forward(attend(**options), attention(*rows, query_lengths, key_lengths, **options), **arguments)
    check_gradients(attend(**options), generator, **arguments)
    check_float32_gradients(attend(**options), generator, **arguments)


@quick
@given(seed=seeds, causal=st.booleans(), names=st.sampled_from(["xxx", "xyy", "xyx", "xxy"]))
def test_attention_over_one_value_in_several_places(seed, causal, names):
    generator = np.random.default_rng(seed)
    lengths = ragged(generator)
    arguments = {
        "lengths": {"rows": lengths},
        "inputs": {name: ("rows", generator.standard_normal((sum(lengths), 4))) for name in sorted(set(names))},
        "output": ("rows", 4),
    }
    build = attend_named(names, heads=2, scale=0.9, causal=causal)
    rows = [arguments["inputs"][name][1] for name in names]
    check_forward(build, attention(*rows, lengths, lengths, heads=2, scale=0.9, causal=causal), **arguments)
    check_gradients(build, generator, **arguments)


@pytest.mark.parametrize("names", ["xyz", "xxx"])
def test_attention_adds_to_gradients_that_other_readers_have_begun(names):
    generator = np.random.default_rng(4)
    inputs = {name: ("rows", generator.standard_normal((6, 4))) for name in sorted(set(names))}

    def build(graph, values, parameters):
        output = attend_named(names, heads=2, scale=0.9)(graph, values, parameters)
        for value in values.values():
            output = graph.add(output, value)
        return output

    check_gradients(build, generator, lengths={"rows": [4, 2]}, inputs=inputs, output=("rows", 4))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", ["first", "last", "position"])
def test_attention_asked_for_one_row_a_sample(causal, rows):
    generator = np.random.default_rng(5)
    lengths = [3, 1, 4]
    options = {"heads": 2, "scale": 0.5, "causal": causal}
    operands = {name: ("rows", generator.standard_normal((8, 6))) for name in ("query", "key", "value")}
    inputs = operands | {"positions": (SAMPLES, np.array([1, 0, 2]))}
    arguments = {"lengths": {"rows": lengths}, "inputs": inputs, "output": (SAMPLES, 6)}

    def build(graph, values, parameters):
        return pool(rows)(graph, {"x": attend(**options)(graph, values, parameters), **values}, parameters)

    expected = attention(*(array for _, array in operands.values()), lengths, lengths, **options)
    at = {"first": [0, 0, 0], "last": [2, 0, 3], "position": [1, 0, 2]}[rows]
    check_forward(build, expected[offsets(lengths)[:-1] + at], **arguments)
    check_gradients(build, generator, **arguments)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", ["first", "last", "position"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_single_query_attention_gradients(causal, rows, dropout):
    """Frozen maps of one value make keys and values: they vanish, and the gradients are those of the formula."""
    generator = np.random.default_rng(6)
    frozen = {name: ("frozen", generator.standard_normal((6, 6))) for name in ("key", "value")}
    frozen["bias"] = ("frozen", generator.standard_normal(6))
    inputs = {name: ("rows", generator.standard_normal((8, 6))) for name in ("query", "memory")}
    inputs["positions"] = SAMPLES, np.array([1, 0, 2])

    def build(graph, values, parameters):
        key, value = (graph.linear(values["memory"], parameters[name], parameters["bias"]) for name in ("key", "value"))
        y = graph.attention(values["query"], key, value, 2, 0.5, causal=causal, dropout=dropout)
        return pool(rows)(graph, {"x": y, **values}, parameters)

    arguments = {"lengths": {"rows": [3, 1, 4]}, "inputs": inputs, "output": (SAMPLES, 6), "parameters": frozen,
                 "training": True}
    assert "single_query_attention" in OpCase(build, **arguments).program.describe()
    check_gradients(build, generator, **arguments)
    check_float32_gradients(build, generator, **arguments)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_over_long_segments(causal):
    """More queries than the op works on at once; the gradient is checked along a random direction."""
    generator = np.random.default_rng(6)
    query_lengths, key_lengths = [300, 1, 129], [140, 3, 260]
    options = {"heads": 3, "scale": 0.4, "causal": causal}
    arguments = attention_arguments(generator, query_lengths, key_lengths, 12)
    rows = [array for _, array in arguments["inputs"].values()]
    check_forward(attend(**options), attention(*rows, query_lengths, key_lengths, **options), **arguments)
    case = OpCase(attend(**options), **arguments)
    cotangent = generator.standard_normal(case.output_shape)
    gradients, _ = case.gradient(cotangent)
    for name, gradient in gradients.items():
        direction = generator.standard_normal(gradient.shape)
        kept, values = case.inputs[name].copy(), []
        for step in (1e-5, -1e-5):
            case.inputs[name][...] = kept + step * direction
            values.append(np.sum(cotangent * case.forward()))
        case.inputs[name][...] = kept
        assert_close(np.sum(gradient * direction), (values[0] - values[1]) / 2e-5, 1e-6, name)


def dropped_probabilities(rate, *, tile_rows=5, training=True, core=_core_double, **run):
    """Probabilities after dropout, (queries, heads, keys), read through values that are unit vectors."""
    lengths, heads = [6, 1, 5], 2
    generator = np.random.default_rng(7)
    unit = np.concatenate([np.tile(np.eye(length, 6), heads) for length in lengths])
    inputs = {"query": generator.standard_normal((12, 12)), "key": generator.standard_normal((12, 12)), "value": unit}
    case = OpCase(
        attend(heads=heads, scale=0.3, dropout=rate),
        lengths={"rows": lengths},
        inputs={name: ("rows", rows) for name, rows in inputs.items()},
        output=("rows", 12),
        training=training,
        core=core,
        tile_rows=tile_rows,
    )
    return case.forward(**run).reshape(12, heads, 6)


def test_attention_dropout_keeps_or_drops_each_probability():
    whole = dropped_probabilities(0.0)
    dropped = dropped_probabilities(0.25, seed=3, step=4)
    kept = dropped != 0
    assert_close(dropped[kept], whole[kept] / 0.75, 1e-12)
    alive = whole != 0
    assert 0 < np.sum(alive & ~kept) < np.sum(alive) / 2
    assert np.any(kept[:, 0] != kept[:, 1]), "both heads drop the same"


def test_attention_dropout_depends_on_seed_and_step_alone():
    first = dropped_probabilities(0.5, seed=3, step=4)
    assert np.array_equal(first, dropped_probabilities(0.5, seed=3, step=4, tile_rows=100))
    assert not np.array_equal(first, dropped_probabilities(0.5, seed=3, step=5))
    assert not np.array_equal(first, dropped_probabilities(0.5, seed=4, step=4))
    assert np.array_equal(first != 0, dropped_probabilities(0.5, seed=3, step=4, core=_core) != 0)
    assert np.array_equal(dropped_probabilities(0.5, training=False), dropped_probabilities(0.0))


def test_attention_dropout_differs_between_far_queries():
    """Every query of a segment longer than the op works on at once has draws of its own."""
    inputs = {name: ("rows", np.zeros((300, 300))) for name in ("query", "key")}
    inputs["value"] = ("rows", np.eye(300))
    build = attend(heads=1, scale=1.0, dropout=0.5)
    case = OpCase(build, lengths={"rows": [300]}, inputs=inputs, output=("rows", 300), training=True)
    kept = case.forward() != 0
    assert len(np.unique(kept, axis=0)) == 300


def test_attention_dropout_has_the_expectation_of_no_dropout():
    draws = np.mean([dropped_probabilities(0.3, seed=seed) for seed in range(400)], axis=0)
    # One probability's standard error is at most sqrt(0.3 / 0.7 / 400) = 0.033.
    assert np.max(np.abs(draws - dropped_probabilities(0.0))) < 5 * 0.033


@pytest.mark.parametrize("names", ["xyz", "xxx"])
def test_attention_dropout_gradients(names):
    generator = np.random.default_rng(8)
    inputs = {name: ("rows", generator.standard_normal((6, 4))) for name in sorted(set(names))}
    build = attend_named(names, heads=2, scale=0.9, causal=True, dropout=0.4)
    check_gradients(build, generator, lengths={"rows": [4, 2]}, inputs=inputs, output=("rows", 4), training=True)


# ---- Grouped heads and relative positions ----


def bucket(distance, buckets, max_distance, bidirectional):
    """The bucket of a distance (Raffel et al., 2020), in exact arithmetic but for the logarithm."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    share = np.log(distance / exact) / np.log(max_distance / exact)
    return first + min(exact + int(share * (buckets - exact) + 1e-9), buckets - 1)


def grouped_attention(query, key, value, query_lengths, key_lengths, *, heads, key_heads, scale, causal, table=None,
                      **positions):
    """Attention of one head after the other, with biases from a table (buckets, heads)."""
    size, outputs = query.shape[1] // heads, []
    rows = segments(query, query_lengths), segments(key, key_lengths), segments(value, key_lengths)
    for q, k, v in zip(*rows, strict=True):
        parts = []
        for head in range(heads):
            own, shared = (slice(h * size, (h + 1) * size) for h in (head, head // (heads // key_heads)))
            scores = scale * q[:, own] @ k[:, shared].T
            for i, j in np.ndindex(scores.shape):
                if table is not None:
                    scores[i, j] += table[bucket(j - i, len(table), **positions), head]
                if causal and j > i:
                    scores[i, j] = -np.inf
            parts.append(softmax(scores) @ v[:, shared])
        outputs.append(np.concatenate(parts, axis=1))
    return np.concatenate(outputs)


@quick
@given(
    seed=seeds,
    sharing=st.integers(1, 3),
    key_heads=st.integers(1, 2),
    causal=st.booleans(),
    one_query=st.booleans(),
    buckets=st.sampled_from([None, 4, 6, 8]),
    bidirectional=st.booleans(),
    role=st.sampled_from(["trainable", "frozen"]),
)
def test_grouped_attention_with_relative_positions(
    seed, sharing, key_heads, causal, one_query, buckets, bidirectional, role
):
    generator = np.random.default_rng(seed)
    key_lengths = ragged(generator, longest=7)
    query_lengths = [1] * len(key_lengths) if one_query else ragged(generator, samples=len(key_lengths), longest=7)
    heads = sharing * key_heads
    options = {"heads": heads, "key_heads": key_heads, "scale": 0.7, "causal": causal}
    arguments = attention_arguments(generator, query_lengths, key_lengths, 2 * heads, SAMPLES if one_query
                                    else "queries")
    for name in ("key", "value"):
        space, rows = arguments["inputs"][name]
        arguments["inputs"][name] = space, rows[:, : 2 * key_heads]
    rows = [array for _, array in arguments["inputs"].values()]
    positions, table = {"max_distance": 5, "bidirectional": bidirectional}, None
    if buckets:
        table = generator.standard_normal((buckets, heads))
        arguments["parameters"] = {"table": (role, table)}
        options |= {"position_buckets": buckets, **positions}

    def build(graph, values, known):
        return attend(position_bias=known.get("table"), **options)(graph, values, known)

    wanted = {name: options[name] for name in ("heads", "key_heads", "scale", "causal")}
    expected = grouped_attention(*rows, query_lengths, key_lengths, table=table, **wanted, **positions)
    check_forward(build, expected, **arguments)
    check_gradients(build, generator, **arguments)
    check_float32_gradients(build, generator, **arguments)


def test_position_bias_over_long_segments():
    """More queries than the op works on at once, several samples a tile, and far distances."""
    generator = np.random.default_rng(9)
    lengths = [300, 1, 140]
    positions = {"max_distance": 128, "bidirectional": True}
    table = generator.standard_normal((32, 2))
    arguments = {
        "lengths": {"rows": lengths},
        "inputs": {name: ("rows", generator.standard_normal((441, 4))) for name in ("query", "key", "value")},
        "output": ("rows", 4),
        "parameters": {"table": ("trainable", table)},
        "tile_rows": 1000,
    }

    def build(graph, values, known):
        return graph.attention(
            *values.values(), heads=2, scale=1.0, position_bias=known["table"], position_buckets=32, **positions
        )

    rows = [array for _, array in arguments["inputs"].values()]
    expected = grouped_attention(
        *rows, lengths, lengths, heads=2, key_heads=2, scale=1.0, causal=False, table=table, **positions
    )
    check_forward(build, expected, **arguments)
    case = OpCase(build, **arguments)
    cotangent = generator.standard_normal((441, 4))
    _, gradients = case.gradient(cotangent)
    for entry in [(0, 0), (7, 1), (15, 0), (20, 1), (31, 0)]:
        kept, values = table[entry], []
        for step in (1e-5, -1e-5):
            case.parameters["table"][entry] = kept + step
            values.append(np.sum(cotangent * case.forward()))
        case.parameters["table"][entry] = kept
        assert_close(gradients["table"][entry], (values[0] - values[1]) / 2e-5, 1e-6, str(entry))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"key_heads": 3}, "3 key heads do not divide 4 heads"),
        ({"key_heads": 2}, "key must have 4 channels, not 8"),
        ({"position_buckets": 8}, "position bias is not a parameter"),
        ({"position_buckets": 2}, "even, and 4 or more, not 2"),
        ({"position_buckets": 1, "bidirectional": False}, "2 or more, not 1"),
        ({"position_buckets": 8, "max_distance": 2}, "more than 2, not 2"),
    ],
)
def test_attention_refuses(options, message):
    graph = _core.Graph(_core.Parameters(), False)
    x = graph.input("x", graph.space("rows"), 8)
    with pytest.raises(ValueError, match=message):
        graph.attention(x, x, x, heads=4, scale=1.0, **options)


# ---- Rotary positions ----


def rotated(x, lengths, heads, dimensions, speeds):
    """Pairs of channels as complex numbers, times exp(i position speed); a number is theta, with plain speeds."""
    if np.ndim(speeds) == 0:
        speeds = speeds ** (-2 * np.arange(dimensions // 2) / dimensions)
    half, outputs = dimensions // 2, []
    for rows in segments(x, lengths):
        by_head = rows.reshape(len(rows), heads, -1).copy()
        turns = np.exp(1j * np.arange(len(rows))[:, None] * speeds)
        turned = (by_head[..., :half] + 1j * by_head[..., half:dimensions]) * turns[:, None]
        by_head[..., :half], by_head[..., half:dimensions] = turned.real, turned.imag
        outputs.append(by_head.reshape(rows.shape))
    return np.concatenate(outputs)


@quick
@given(
    seed=seeds,
    heads=st.integers(1, 3),
    pairs=st.integers(1, 5),
    rest=st.integers(0, 3),
    theta=st.sampled_from([10.0, 10000.0]),
    read_twice=st.booleans(),
)
def test_rotary(seed, heads, pairs, rest, theta, read_twice):
    generator = np.random.default_rng(seed)
    lengths = ragged(generator, longest=9)
    x = generator.standard_normal((sum(lengths), heads * (2 * pairs + rest)))
    arguments = {"lengths": {"rows": lengths}, "inputs": {"x": ("rows", x)}, "output": ("rows", x.shape[1])}

    def build(graph, values, parameters):
        turned = graph.rotary(values["x"], heads, 2 * pairs, theta)
        return graph.add(turned, values["x"]) if read_twice else turned

    check_forward(build, rotated(x, lengths, heads, 2 * pairs, theta) + (x if read_twice else 0), **arguments)
    check_gradients(build, generator, **arguments)


@pytest.mark.parametrize(
    "scaling", [{"factor": 3.0}, {"factor": 3.0, "original": 40.0, "low": 0.5, "high": 2.0}]
)
def test_rotary_that_turns_more_slowly(scaling):
    generator = np.random.default_rng(11)
    x = generator.standard_normal((9, 2 * 12))
    arguments = {"lengths": {"rows": [9]}, "inputs": {"x": ("rows", x)}, "output": ("rows", 24)}
    plain = 100.0 ** (-np.arange(6) / 6)
    turned = speeds(100.0, 12, scaling)
    shares = (plain - turned) / (plain - plain / 3)  # of the slower speed in a pair's
    turns = 40 * plain / (2 * np.pi)
    if len(scaling) == 1:
        assert np.allclose(turned, plain / 3)
    else:
        assert (turns > 2).any() and (turns < 0.5).any() and ((turns > 0.5) & (turns < 2)).any()
        assert np.allclose(shares[turns > 2], 0) and np.allclose(shares[turns < 0.5], 1)
        assert np.allclose(shares, np.interp(turns, [0.5, 2], [1, 0]))

    def build(graph, values, parameters):
        return graph.rotary(values["x"], 2, 12, 100.0, **scaling)

    check_forward(build, rotated(x, [9], 2, 12, turned), **arguments)
    check_gradients(build, generator, **arguments)


@pytest.mark.parametrize(
    "scaling, message",
    [
        ({"factor": 0.5}, "factor"),
        ({"factor": 2.0, "original": -1.0}, "original"),
        ({"factor": 2.0, "original": 8.0, "low": 2.0, "high": 2.0}, "low must be less than high, not 2 and 2"),
    ],
)
def test_rotary_refuses_scaling(scaling, message):
    graph = _core.Graph(_core.Parameters(), False)
    x = graph.input("x", graph.space("rows"), 8)
    with pytest.raises(ValueError, match=message):
        graph.rotary(x, 2, 4, 10.0, **scaling)


@pytest.mark.parametrize("pick, rows", [("first", [0, 3, 4]), ("last", [2, 3, 7])])
def test_rotary_asked_for_one_row_of_each_sample(pick, rows):
    generator = np.random.default_rng(10)
    x = generator.standard_normal((8, 6))
    arguments = {"lengths": {"rows": [3, 1, 4]}, "inputs": {"x": ("rows", x)}, "output": (SAMPLES, 6)}

    def build(graph, values, parameters):
        return graph.pool(graph.rotary(values["x"], 1, 6, 100.0), pick)

    check_forward(build, rotated(x, [3, 1, 4], 1, 6, 100.0)[rows], **arguments)
    check_gradients(build, generator, **arguments)


@pytest.mark.parametrize(
    "heads, dimensions, theta, message",
    [
        (3, 2, 10.0, "3 heads do not divide 8"),
        (2, 3, 10.0, "even and 2 to the 4"),
        (2, 6, 10.0, "not 6"),
        (2, 2, 0.5, "theta"),
    ],
)
def test_rotary_refuses(heads, dimensions, theta, message):
    graph = _core.Graph(_core.Parameters(), False)
    x = graph.input("x", graph.space("rows"), 8)
    with pytest.raises(ValueError, match=message):
        graph.rotary(x, heads, dimensions, theta)


# ---- Guidance ----


def guidance_terms(features, weight, bias, eps):
    """Cosines (rows, n, n) and scores (rows, n) of n shallow features and the guide, the last one."""
    shallow, guide = np.stack(features[:-1], axis=1), features[-1]
    unit = shallow / (np.linalg.norm(shallow, axis=-1, keepdims=True) + eps)
    return unit @ unit.transpose(0, 2, 1), (shallow * guide[:, None]) @ weight + bias


def guidance(features, weight, bias, *, eps, add_guide=True):
    cosines, scores = guidance_terms(features, weight, bias, eps)
    redundancy = np.maximum(cosines, 0).sum(axis=-1)
    terms = np.where(redundancy > 0, np.maximum(scores, 0) / np.where(redundancy > 0, redundancy, 1), 0)
    shares = terms / (np.abs(terms).sum(axis=1, keepdims=True) + eps)
    mixed = np.einsum("rn,rnh->rh", shares, np.stack(features[:-1], axis=1))
    return mixed + features[-1] if add_guide else mixed


def consolidate(names, **options):
    def build(graph, values, parameters):
        return graph.guidance([values[name] for name in names], parameters["weight"], parameters["bias"], **options)

    return build


def guidance_arguments(features, weight, bias, role="trainable"):
    rows, hidden = features[0].shape
    return {
        "lengths": {"rows": [1, rows - 1]},
        "inputs": {f"x{i}": ("rows", x) for i, x in enumerate(features)},
        "output": ("rows", hidden),
        "parameters": {"weight": (role, weight[None]), "bias": (role, np.array([[bias]]))},
    }


@quick
@given(
    seed=seeds,
    count=st.sampled_from([2, 5, 12]),
    hidden=st.integers(1, 300),
    eps=st.sampled_from([1e-8, 1e-6, 0.1]),
    add_guide=st.booleans(),
)
def test_guidance_in_both_precisions(seed, count, hidden, eps, add_guide):
    generator = np.random.default_rng(seed)
    features = [generator.standard_normal((7, hidden)).astype(np.float32).astype(np.float64) for _ in range(count)]
    weight, bias = generator.standard_normal(hidden) / np.sqrt(hidden), generator.standard_normal()
    cosines, scores = guidance_terms(features, weight, bias, eps)
    # In float32 the signs must be clear, and nothing that the gradient divides by may be small.
    assume(np.min(np.abs(cosines)) > 1e-5 and np.min(np.abs(scores)) > 0.03)
    assume(min(np.min(np.linalg.norm(x, axis=1)) for x in features) > 0.1)
    build = consolidate([f"x{i}" for i in range(count)], eps=eps, add_guide=add_guide)
    arguments = guidance_arguments(features, weight, bias)
    expected = guidance(features, weight, bias, eps=eps, add_guide=add_guide)
    check_forward(build, expected, tolerance=1e-4, **arguments)
    check_float32_gradients(build, generator, tolerance=1e-3, **arguments)


@quick
@given(seed=seeds, count=st.sampled_from([2, 5, 12]), eps=st.sampled_from([1e-8, 0.1]), add_guide=st.booleans())
def test_guidance_gradients(seed, count, eps, add_guide):
    generator = np.random.default_rng(seed)
    features = [generator.standard_normal((3, 5)) for _ in range(count)]
    weight, bias = generator.standard_normal(5), generator.standard_normal()
    cosines, scores = guidance_terms(features, weight, bias, eps)
    # Away from the kinks of relu, and where a step of the differences is short against the features and the scores.
    assume(np.min(np.abs(cosines)) > 1e-3 and np.min(np.abs(scores)) > 0.02)
    assume(min(np.min(np.linalg.norm(x, axis=1)) for x in features) > 0.3)
    names = [f"x{i}" for i in range(count)]
    check_gradients(
        consolidate(names, eps=eps, add_guide=add_guide), generator, **guidance_arguments(features, weight, bias)
    )


def test_guidance_gradients_over_several_chunks_of_channels():
    generator = np.random.default_rng(11)
    features = [generator.standard_normal((2, 260)) for _ in range(4)]
    check_gradients(
        consolidate(["x0", "x1", "x2", "x3"], eps=1e-8),
        generator,
        **guidance_arguments(features, generator.standard_normal(260) / 16, 0.3),
    )


@pytest.mark.parametrize("names", [["x0", "x1", "x0", "x2"], ["x0", "x1", "x1"], ["x0", "x0"]])
def test_guidance_takes_one_value_in_several_places(names):
    generator = np.random.default_rng(12)
    features = [generator.standard_normal((3, 6)) for _ in sorted(set(names))]
    weight = generator.standard_normal(6)
    arguments = guidance_arguments(features, weight, 0.5)
    build = consolidate(names, eps=1e-6)
    check_forward(build, guidance([features[int(name[1])] for name in names], weight, 0.5, eps=1e-6), **arguments)
    check_gradients(build, generator, **arguments)


def test_guidance_gives_features_their_gradient_when_its_weights_are_frozen():
    generator = np.random.default_rng(13)
    features = [generator.standard_normal((3, 6)) for _ in range(4)]
    arguments = guidance_arguments(features, generator.standard_normal(6), 0.5, role="frozen")
    check_gradients(consolidate(["x0", "x1", "x2", "x3"], eps=1e-6), generator, **arguments)


@pytest.mark.parametrize("core", [_core, _core_double])
@pytest.mark.parametrize("zero", [[0], [1, 2], [0, 1, 2], [3]])
def test_guidance_with_features_of_zeros(core, zero):
    """A zero feature takes no share, gets no gradient of its own and disturbs no other feature."""
    generator = np.random.default_rng(14)
    features = [generator.standard_normal((3, 6)).astype(np.float32) for _ in range(4)]
    for i in zero:
        features[i][1] = 0
    weight, bias = generator.standard_normal(6), 0.5
    case = OpCase(
        consolidate(["x0", "x1", "x2", "x3"], eps=1e-8), core=core, **guidance_arguments(features, weight, bias)
    )
    wide = [x.astype(np.float64) for x in features]
    assert_close(case.forward(), guidance(wide, weight, bias, eps=1e-8), 1e-5)
    inputs, parameters = case.gradient(generator.standard_normal((3, 6)))
    for gradient in [*inputs.values(), *parameters.values()]:
        assert np.all(np.isfinite(gradient))
    for i in set(zero) - {3}:
        assert np.all(inputs[f"x{i}"][1] == 0)


def test_guidance_takes_a_feature_whose_square_underflows_for_zeros():
    generator = np.random.default_rng(17)
    features = [generator.standard_normal((2, 6)) for _ in range(4)]
    weight, bias = generator.standard_normal(6), 0.5
    results = []
    for scale in (0.0, 1e-30):
        features[1] = scale * np.ones((2, 6))
        arguments = guidance_arguments(features, weight, bias)
        case = OpCase(consolidate(["x0", "x1", "x2", "x3"], eps=1e-8), core=_core, **arguments)
        inputs, parameters = case.gradient(np.ones((2, 6)))
        results.append([case.forward(), *inputs.values(), *parameters.values()])
    for actual, expected in zip(*results, strict=True):
        assert np.all(np.isfinite(actual))
        assert_close(actual, expected, 1e-6)


def test_guidance_lets_nothing_flow_between_orthogonal_features():
    """relu'(0) = 0: the gradient is the one of features that stand at slightly more than a right angle."""
    generator = np.random.default_rng(18)
    # A third feature leans to x0 alone: with equal redundancies the flow between x0 and x1 would be zero anyway.
    leaning, guide = np.array([[1, -0.5, 1], [-0.5, 1, 1]]), np.ones((2, 3))
    cotangent = generator.standard_normal((2, 3))
    results = []
    for tilt in (0.0, -1e-9):
        features = [np.array([[1, 0, 0], [0, 2.0, 0]]), np.array([[tilt, 1, 0], [0.5, tilt, 0]]), leaning, guide]
        arguments = guidance_arguments(features, np.ones(3), 0.5)
        inputs, parameters = OpCase(consolidate(["x0", "x1", "x2", "x3"], eps=1e-8), **arguments).gradient(cotangent)
        results.append([*inputs.values(), *parameters.values()])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, 1e-7)


def test_guidance_without_a_positive_score_is_the_guide():
    generator = np.random.default_rng(15)
    features = [np.abs(generator.standard_normal((3, 6))) for _ in range(4)]
    case = OpCase(
        consolidate(["x0", "x1", "x2", "x3"], eps=1e-8), **guidance_arguments(features, -np.ones(6), -0.1)
    )
    assert np.array_equal(case.forward(), features[3])
    cotangent = generator.standard_normal((3, 6))
    inputs, parameters = case.gradient(cotangent)
    assert np.array_equal(inputs.pop("x3"), cotangent)
    assert not any(np.any(gradient) for gradient in [*inputs.values(), *parameters.values()])


def test_guidance_passes_on_what_is_not_a_number():
    generator = np.random.default_rng(16)
    features = [generator.standard_normal((3, 6)) for _ in range(3)]
    features[1][2, 3] = np.nan
    case = OpCase(consolidate(["x0", "x1", "x2"], eps=1e-8), **guidance_arguments(features, np.ones(6), 0.5))
    output = case.forward()
    assert np.all(np.isnan(output[2]))
    assert np.all(np.isfinite(output[:2]))


# ---- Pooling ----

POOLINGS = {"first": lambda x: x[0], "mean": lambda x: x.mean(axis=0), "max": lambda x: x.max(axis=0),
            "last": lambda x: x[-1]}


def pool(pooling):
    if pooling == "position":
        return lambda graph, values, parameters: graph.select(values["x"], values["positions"])
    return lambda graph, values, parameters: graph.pool(values["x"], pooling)


@quick
@given(seed=seeds, pooling=st.sampled_from(sorted(POOLINGS)), channels=st.integers(1, 20))
def test_pooling_forward_and_gradients(seed, pooling, channels):
    generator = np.random.default_rng(seed)
    lengths = ragged(generator)
    x = generator.standard_normal((sum(lengths), channels))
    arguments = {"lengths": {"rows": lengths}, "inputs": {"x": ("rows", x)}, "output": (SAMPLES, channels)}
    check_forward(pool(pooling), np.stack([POOLINGS[pooling](rows) for rows in segments(x, lengths)]), **arguments)
    if pooling == "max":  # a step of the differences must not change which row is the largest
        gaps = [np.diff(np.sort(rows, axis=0), axis=0) for rows in segments(x, lengths)]
        assume(min(np.min(gap, initial=1) for gap in gaps) > 1e-3)
    check_gradients(pool(pooling), generator, **arguments)


@quick
@given(seed=seeds, channels=st.integers(1, 20))
def test_selection_forward_and_gradients(seed, channels):
    generator = np.random.default_rng(seed)
    lengths = ragged(generator)
    x, positions = generator.standard_normal((sum(lengths), channels)), generator.integers(0, lengths)
    arguments = {"lengths": {"rows": lengths}, "inputs": {"x": ("rows", x), "positions": (SAMPLES, positions)},
                 "output": (SAMPLES, channels)}
    check_forward(pool("position"), x[offsets(lengths)[:-1] + positions], **arguments)
    check_gradients(pool("position"), generator, **arguments)


def test_gradients_of_several_poolings_add_up():
    generator = np.random.default_rng(21)
    x = generator.permuted(np.arange(24.0)).reshape(6, 4) / 5
    inputs = {"x": ("rows", x), "positions": (SAMPLES, np.array([0, 0, 1]))}

    def build(graph, values, parameters):
        first, mean, largest, last, given = (
            pool(pooling)(graph, values, parameters) for pooling in ("first", "mean", "max", "last", "position")
        )
        return graph.multiply(graph.add(first, graph.multiply(mean, last)), graph.add(largest, graph.add(mean, given)))

    check_gradients(build, generator, lengths={"rows": [2, 1, 3]}, inputs=inputs, output=(SAMPLES, 4))


def test_max_pooling_gives_the_gradient_to_the_first_of_equals():
    x = np.array([[1, 5], [2, 5], [2, 4.0]])
    case = OpCase(pool("max"), lengths={"rows": [3]}, inputs={"x": ("rows", x)}, output=(SAMPLES, 2))
    assert np.array_equal(case.forward(), [[2, 5]])
    inputs, _ = case.gradient([[10, 20]])
    assert np.array_equal(inputs["x"], [[0, 20], [10, 0], [0, 0]])


@pytest.mark.parametrize("row", [0, 1, 2])
def test_max_pooling_passes_on_what_is_not_a_number(row):
    x = np.array([[1, 5], [2, 5], [2, 4.0]])
    x[row, 0] = np.nan
    case = OpCase(pool("max"), lengths={"rows": [3]}, inputs={"x": ("rows", x)}, output=(SAMPLES, 2))
    assert np.array_equal(case.forward(), [[np.nan, 5]], equal_nan=True)
