"""The passes of a program: what they leave out must not change a number, and what they promise about memory holds."""

import numpy as np
import pytest

from sherl import _core_double as core

pytestmark = pytest.mark.core

CHANNELS, HIDDEN, TAPS = 12, 5, 3
LENGTHS = [3, 1, 6, 2, 4]


def layer_weights():
    """Weights of a frozen transformer layer by role."""
    generator = np.random.default_rng(4)
    inner = 7
    shapes = {"query": (CHANNELS, CHANNELS), "key": (CHANNELS, CHANNELS), "value": (CHANNELS, CHANNELS),
              "output": (CHANNELS, CHANNELS), "attention_norm": (CHANNELS,), "up": (inner, CHANNELS),
              "down": (CHANNELS, inner), "feed_forward_norm": (CHANNELS,)}
    weights = {f"{role}_weight": 0.5 * generator.standard_normal(shape) for role, shape in shapes.items()}
    return weights | {f"{role}_bias": generator.standard_normal(shape[0]) for role, shape in shapes.items()}


PICKS = ("first", "last", "position")


def positions_of(lengths, pick="position"):
    """The row of each sample that a network picks."""
    lengths = np.asarray(lengths)
    return {"first": 0 * lengths, "last": lengths - 1, "position": (3 * np.arange(len(lengths)) + 1) % lengths}[pick]


def post_norm_layer(graph, prefix, x, frozen, dropout):
    return graph.transformer_layer(prefix, x, layer_weights() if frozen else None, heads=3, intermediate=7,
                                   dropout=dropout, attention_dropout=dropout)


def pre_norm_layer(graph, prefix, x, frozen, dropout, causal=True):
    """x + attention(norm(x)), then the same with a feed-forward map, as GPT-like models have it."""
    weights = layer_weights()

    def parameter(name):
        data = weights[name]
        role = {"role": "frozen", "data": data} if frozen else {"initializer": "xavier_uniform"}
        return graph.parameter(f"{prefix}{name}", data.shape, **role)

    def linear(x, name, activation="identity"):
        return graph.linear(x, parameter(f"{name}_weight"), parameter(f"{name}_bias"), activation)

    def norm(x, name):
        return graph.layer_norm(x, parameter(f"{name}_weight"), parameter(f"{name}_bias"), 1e-5)

    normal = norm(x, "attention_norm")
    query, key, value = (linear(normal, name) for name in ("query", "key", "value"))
    mixed = graph.attention(query, key, value, 3, 0.5, causal=causal, dropout=dropout)
    x = graph.add(x, graph.dropout(linear(mixed, "output"), dropout))
    inner = linear(norm(x, "feed_forward_norm"), "up", "gelu_tanh")
    return graph.add(x, graph.dropout(linear(inner, "down"), dropout))


class Network:
    """Taps -> MTSA -> transformer layers, with one row of each sample picked inside or outside."""

    def __init__(self, pick_inside, late=("trained",), dropout=0.0, training=False, pick="first",
                 layer=post_norm_layer):
        self.parameters = core.Parameters()
        graph = core.Graph(self.parameters, training)
        tokens = graph.space("tokens")
        taps = [graph.input(f"tap{i}", tokens, CHANNELS) for i in range(TAPS)]
        self.pick, self.given = pick, pick_inside and pick == "position"
        positions = graph.indices("positions", core.SAMPLES) if self.given else None
        x = graph.mtsa("early.", taps, taps[-1], hidden=HIDDEN, out_features=CHANNELS, up_norm="layernorm",
                       dropout=dropout)
        for number, kind in enumerate(late):
            x = layer(graph, f"late.{number}.", x, kind == "frozen", dropout)
        if pick_inside:
            x = graph.select(x, positions) if self.given else graph.pool(x, pick)
        graph.output(x)
        self.pick_inside = pick_inside
        self.program = graph.compile(gradient=True)
        self.parameters.initialize(3)
        self.parameters.array("early.gate")[...] = 0.05

    def run(self, taps, cotangent, lengths=LENGTHS):
        """Output and gradients; without picking inside, the cotangent of the other rows is zero."""
        offsets, positions = np.cumsum([0, *lengths]), positions_of(lengths, self.pick)
        picked = slice(None) if self.pick_inside else offsets[:-1] + positions
        rows = len(lengths) if self.pick_inside else offsets[-1]
        given = np.zeros((rows, CHANNELS))
        given[picked] = cotangent
        output = np.full((rows, CHANNELS), np.nan)
        inputs = [*taps, positions.reshape(-1, 1)] if self.given else taps
        self.program.gradient(len(lengths), [None, offsets], [(rows, None) for rows in inputs], [(output, None)],
                              cotangents=[(given, None)], seed=5, step=7)
        names = self.parameters.names("trainable")
        return output[picked], {name: self.program.parameter_gradient(name) for name in names}


def random_taps(lengths=LENGTHS):
    generator = np.random.default_rng(0)
    return list(generator.standard_normal((TAPS, sum(lengths), CHANNELS))), generator.standard_normal((len(lengths),
                                                                                                       CHANNELS))


def op_lines(network):
    return network.program.describe().splitlines()


LATE = [(), ("trained",), ("frozen",), ("frozen", "frozen"), ("trained", "frozen"), ("frozen", "trained")]


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize("layer", [post_norm_layer, pre_norm_layer])
def test_demand_changes_no_number(late, dropout, pick, layer):
    taps, cotangent = random_taps()
    shrunk = Network(True, late, dropout, training=True, pick=pick, layer=layer)
    full = Network(False, late, dropout, training=True, pick=pick, layer=layer)
    output, gradients = shrunk.run(taps, cotangent)
    expected, expected_gradients = full.run(taps, cotangent)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-12)
    for name in expected_gradients:
        np.testing.assert_allclose(gradients[name], expected_gradients[name], rtol=0, atol=1e-11, err_msg=name)


def test_demand_shrinks_queries_and_what_follows_but_not_keys():
    lines = op_lines(Network(True))
    space = {line.split(" ")[-2 if line.endswith("gradient") else -1].rstrip(","): line for line in lines}
    assert "space 0" in space["late.0.query.weight"]
    assert "space 1" in space["late.0.key.weight"] and "space 1" in space["late.0.value.weight"]
    for name in ("output", "up", "down", "feed_forward_norm"):
        assert "space 0" in space[f"late.0.{name}.weight"]
    assert "space 1" in space["early.up.weight"]  # keys and values read every row of the adapter


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize("layer", [post_norm_layer, pre_norm_layer])
def test_keys_and_values_of_a_frozen_layer_are_never_computed(pick, layer):
    options = {"pick": pick, "layer": layer}
    listing = Network(True, late=("frozen", "frozen"), **options).program.describe().replace("_weight", ".weight")
    assert "late.0.key.weight" in listing and "late.0.value.weight" in listing  # all its rows feed the next layer
    assert "linear: space 1, 12 channels late.1" not in listing
    assert "linear: space 0, 12 channels late.1.query.weight" in listing
    assert listing.count("single_query_attention") == 1
    assert "single_query_attention" not in Network(True, late=("trained",), **options).program.describe()
    assert "single_query_attention" not in Network(False, late=("frozen",), **options).program.describe()


@pytest.mark.parametrize("pick_inside, pick", [(False, "first"), *((True, pick) for pick in PICKS)])
@pytest.mark.parametrize("late", [("frozen",), ("trained",), ("trained", "frozen")])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_change_nothing_but_the_order_of_sums(pick_inside, pick, late, threads):
    lengths = [int(n) for n in np.random.default_rng(1).integers(1, 40, 50)]
    taps, cotangent = random_taps(lengths)
    one, many = (Network(pick_inside, late, dropout=0.2, training=True, pick=pick) for _ in range(2))
    many.program.set_block_rows(100)
    many.program.set_tile_rows(20)
    output, gradients = one.run(taps, cotangent, lengths)
    former = core.threads()
    core.set_threads(threads)
    try:
        cut_output, cut_gradients = many.run(taps, cotangent, lengths)
    finally:
        core.set_threads(former)
    np.testing.assert_allclose(cut_output, output, rtol=0, atol=1e-11)
    for name in gradients:
        np.testing.assert_allclose(cut_gradients[name], gradients[name], rtol=0, atol=1e-9, err_msg=name)
    again, same_gradients = many.run(taps, cotangent, lengths)
    np.testing.assert_array_equal(again, cut_output)
    for name in gradients:
        np.testing.assert_array_equal(same_gradients[name], cut_gradients[name], err_msg=name)


@pytest.mark.parametrize("pick", PICKS)
def test_without_attention_only_selected_rows_are_read(pick):
    taps, cotangent = random_taps()
    network = Network(True, late=(), pick=pick)
    assert all("space 0" in line for line in op_lines(network))
    output, _ = network.run(taps, cotangent)
    offsets = np.cumsum([0, *LENGTHS])
    unread = np.setdiff1d(np.arange(offsets[-1]), offsets[:-1] + positions_of(LENGTHS, pick))
    for tap in taps:
        tap[unread] = np.nan
    poisoned, gradients = network.run(taps, cotangent)
    np.testing.assert_array_equal(poisoned, output)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


class Picked:
    """A map of rows with dropout, of which ``pick(graph, value, positions)`` gives one or more values to add up."""

    def __init__(self, pick):
        self.parameters = core.Parameters()
        graph = core.Graph(self.parameters, True)
        x = graph.input("x", graph.space("tokens"), CHANNELS)
        positions = [graph.indices(f"positions{i}", core.SAMPLES) for i in range(2)]
        weight = graph.parameter("weight", (CHANNELS, CHANNELS), "trainable", "xavier_uniform")
        values = pick(graph, graph.dropout(graph.linear(x, weight, None, "tanh"), 0.4), positions)
        for value in values:
            graph.output(value)
        self.outputs = len(values)
        self.program = graph.compile(gradient=True)
        self.parameters.initialize(1)

    def run(self, x, positions, cotangents, lengths=LENGTHS):
        outputs = [np.full(given.shape, np.nan) for given in cotangents]
        self.program.gradient(len(lengths), [None, np.cumsum([0, *lengths])],
                              [(rows, None) for rows in (x, *positions)], [(rows, None) for rows in outputs],
                              cotangents=[(given, None) for given in cotangents], seed=1, step=2)
        return outputs, self.program.parameter_gradient("weight")


def test_several_selections_of_one_value_mean_all_its_rows():
    generator = np.random.default_rng(3)
    offsets = np.cumsum([0, *LENGTHS])
    x, positions = generator.standard_normal((offsets[-1], CHANNELS)), positions_of(LENGTHS)
    zero = np.zeros_like(positions)
    given = [positions.reshape(-1, 1), zero.reshape(-1, 1)]
    picks = {
        "first": (lambda g, v, p: g.pool(v, "first"), zero),
        "last": (lambda g, v, p: g.pool(v, "last"), np.array(LENGTHS) - 1),
        "given": (lambda g, v, p: g.select(v, p[0]), positions),
        "other": (lambda g, v, p: g.select(v, p[1]), zero),  # the same rows as "first", which the graph cannot know
    }
    cotangent = generator.standard_normal((len(LENGTHS), CHANNELS))
    full = Picked(lambda g, v, p: [v])
    for names in (["first", "last"], ["given", "other"], ["last", "given", "last"], ["first", "first"],
                  ["given", "given"]):
        found = Picked(lambda g, v, p: [picks[name][0](g, v, p) for name in names])
        at_once = len(set(names)) == 1
        assert ("linear: space 0" in found.program.describe()) == at_once
        assert found.program.describe().count("select") == (0 if at_once else len(set(names)))
        spread = np.zeros_like(x)
        for name in names:
            spread[offsets[:-1] + picks[name][1]] += cotangent
        (expected,), expected_gradient = full.run(x, given, [spread])
        outputs, gradient = found.run(x, given, [cotangent] * len(names))
        for name, output in zip(names, outputs, strict=True):
            np.testing.assert_allclose(output, expected[offsets[:-1] + picks[name][1]], rtol=0, atol=1e-14)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-12)


def test_a_selection_beside_all_rows_is_picked_from_them():
    generator = np.random.default_rng(3)
    offsets = np.cumsum([0, *LENGTHS])
    x, positions = generator.standard_normal((offsets[-1], CHANNELS)), positions_of(LENGTHS)
    given = [positions.reshape(-1, 1), positions.reshape(-1, 1)]
    both = Picked(lambda g, v, p: [v, g.select(v, p[0])])
    assert "linear: space 1" in both.program.describe() and both.program.describe().count("linear") == 1
    cotangents = [generator.standard_normal((rows, CHANNELS)) for rows in (offsets[-1], len(LENGTHS))]
    (rows, picked), gradient = both.run(x, given, cotangents)
    np.testing.assert_array_equal(picked, rows[offsets[:-1] + positions])
    spread = cotangents[0].copy()
    spread[offsets[:-1] + positions] += cotangents[1]
    (expected,), expected_gradient = Picked(lambda g, v, p: [v]).run(x, given, [spread])
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-12)


def test_each_selection_of_a_tap_is_loaded_on_its_own():
    x = np.random.default_rng(3).standard_normal((sum(LENGTHS), CHANNELS))
    offsets, positions = np.cumsum([0, *LENGTHS]), positions_of(LENGTHS)
    graph = core.Graph(core.Parameters(), False)
    tap, at = graph.input("x", graph.space("tokens"), CHANNELS), graph.indices("positions", core.SAMPLES)
    picked = [graph.pool(tap, "first"), graph.pool(tap, "last"), graph.select(tap, at), graph.pool(tap, "last")]
    for value in [*picked, graph.add(picked[0], picked[2])]:
        graph.output(value)
    program = graph.compile(False)
    assert [line.split(":")[0] for line in program.describe().splitlines()] == ["add"]
    outputs = [np.full((len(LENGTHS), CHANNELS), np.nan) for _ in range(5)]
    program.forward(len(LENGTHS), [None, offsets], [(x, None), (positions.reshape(-1, 1), None)],
                    [(output, None) for output in outputs])
    first, last, given = x[offsets[:-1]], x[offsets[1:] - 1], x[offsets[:-1] + positions]
    for output, expected in zip(outputs, [first, last, given, last, first + given], strict=True):
        np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("pick", PICKS)
def test_selected_rows_of_integers_are_read_alone(pick):
    table = np.random.default_rng(0).standard_normal((9, CHANNELS))
    offsets, positions = np.cumsum([0, *LENGTHS]), positions_of(LENGTHS, pick)
    tokens = np.full((offsets[-1], 1), 99)  # beyond the table, but for the rows that are read
    tokens[offsets[:-1] + positions, 0] = np.arange(len(LENGTHS))
    parameters = core.Parameters()
    graph = core.Graph(parameters, False)
    ids, at = graph.indices("ids", graph.space("tokens")), graph.indices("positions", core.SAMPLES)
    rows = graph.embedding(ids, graph.parameter("table", table.shape, "frozen", data=table))
    graph.output(graph.select(rows, at) if pick == "position" else graph.pool(rows, pick))
    output = np.empty((len(LENGTHS), CHANNELS))
    graph.compile(False).forward(len(LENGTHS), [None, offsets], [(tokens, None), (positions.reshape(-1, 1), None)],
                                 [(output, None)])
    np.testing.assert_array_equal(output, table[: len(LENGTHS)])


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_queries_of_another_row_space_keep_their_own_positions(pick, causal, frozen):
    """Cross-attention: more queries than keys in some samples, fewer in others."""
    generator = np.random.default_rng(8)
    memory_lengths = [2, 5, 3, 1, 9]
    rows = {"x": sum(LENGTHS), "memory": sum(memory_lengths)}
    x, memory = (generator.standard_normal((count, CHANNELS)) for count in rows.values())
    data = {name: generator.standard_normal((CHANNELS, CHANNELS)) for name in ("query", "key", "value")}
    offsets, positions = np.cumsum([0, *LENGTHS]), positions_of(LENGTHS, pick)
    found = []
    for inside in (True, False):
        parameters = core.Parameters()
        graph = core.Graph(parameters, True)
        values = [graph.input(name, graph.space(name), CHANNELS, needs_gradient=True) for name in rows]
        at = graph.indices("positions", core.SAMPLES)
        mapped = [
            graph.linear(value, graph.parameter(name, (CHANNELS, CHANNELS), "frozen", data=data[name]) if frozen else
                         graph.parameter(name, (CHANNELS, CHANNELS)))
            for name, value in zip(data, (values[0], values[1], values[1]), strict=True)
        ]
        y = graph.attention(*mapped, 3, 0.3, causal=causal, dropout=0.3)
        if inside:
            y = graph.select(y, at) if pick == "position" else graph.pool(y, pick)
        graph.output(y)
        program = graph.compile(True)
        assert ("single_query_attention" in program.describe()) == (inside and frozen)
        for name in parameters.names("trainable"):
            parameters.array(name)[...] = data[name]
        picked = slice(None) if inside else offsets[:-1] + positions
        cotangent = np.zeros((len(LENGTHS) if inside else offsets[-1], CHANNELS))
        cotangent[picked] = np.random.default_rng(9).standard_normal((len(LENGTHS), CHANNELS))
        output, gradients = np.empty_like(cotangent), [np.empty_like(x), np.empty_like(memory)]
        inputs = [(x, None), (memory, None), (positions.reshape(-1, 1), None)]
        program.gradient(len(LENGTHS), [None, offsets, np.cumsum([0, *memory_lengths])], inputs, [(output, None)],
                         cotangents=[(cotangent, None)], seed=3, step=4,
                         input_gradients=[*((gradient, None) for gradient in gradients), None])
        trained = [program.parameter_gradient(name) for name in parameters.names("trainable")]
        found.append([output[picked], *gradients, *trained])
    for actual, expected in zip(*found, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("wrong", [-1, 6, 2**31, 2**40])
def test_a_position_that_a_sample_lacks_ends_the_run_before_it_begins(wrong):
    taps, cotangent = random_taps()
    network = Network(True, ("frozen",), pick="position")
    trainer = core.Trainer(network.program)
    offsets, positions = np.cumsum([0, *LENGTHS]), positions_of(LENGTHS).reshape(-1, 1)
    positions[2] = wrong  # of 6 rows
    before = {name: network.parameters.array(name).copy() for name in network.parameters.names()}
    output = np.full_like(cotangent, np.nan)
    inputs = [(rows, None) for rows in (*taps, positions)]
    with pytest.raises(ValueError, match="outside"):
        network.program.forward(len(LENGTHS), [None, offsets], inputs, [(output, None)])
    assert np.isnan(output).all()
    with pytest.raises(ValueError, match="outside"):
        trainer.accumulate(len(LENGTHS), [None, offsets], inputs, cotangents=[(cotangent, None)])
    with pytest.raises(ValueError):  # nothing waits
        trainer.update()
    for name, array in before.items():
        np.testing.assert_array_equal(network.parameters.array(name), array)
    positions[2] = 5
    trainer.accumulate(len(LENGTHS), [None, offsets], inputs, cotangents=[(cotangent, None)])
    trainer.update()
    assert trainer.steps == 1


def test_nothing_above_the_trainable_parameters_has_a_gradient():
    parameters = core.Parameters()
    graph = core.Graph(parameters, False)
    tokens = graph.space("tokens")
    frozen = graph.parameter("frozen", (CHANNELS, CHANNELS), "frozen", data=np.eye(CHANNELS))
    head = graph.parameter("head", (2, CHANNELS), "trainable", "xavier_uniform")
    x = graph.linear(graph.linear(graph.input("x", tokens, CHANNELS), frozen), head)
    graph.output(x)
    lines = graph.compile(gradient=True).describe().splitlines()
    assert ["gradient" in line for line in lines] == [False, True]


def test_dead_ops_are_left_out():
    parameters = core.Parameters()
    graph = core.Graph(parameters, False)
    x = graph.input("x", graph.space("tokens"), CHANNELS)
    graph.activate(x, "relu")
    graph.output(graph.activate(x, "tanh"))
    assert len(graph.compile(gradient=False).describe().splitlines()) == 1


@pytest.mark.parametrize("pick_inside", [True, False])
def test_tiles_change_nothing_but_the_order_of_sums(pick_inside):
    lengths = [int(n) for n in np.random.default_rng(1).integers(1, 40, 50)]
    taps, cotangent = random_taps(lengths)
    one, many = Network(pick_inside), Network(pick_inside)
    many.program.set_tile_rows(1)
    output, gradients = one.run(taps, cotangent, lengths)
    tiled_output, tiled_gradients = many.run(taps, cotangent, lengths)
    offsets = [None, np.cumsum([0, *lengths])]
    assert many.program.memory(len(lengths), offsets)["tiles"] == len(lengths)
    assert one.program.memory(len(lengths), offsets)["tiles"] < len(lengths)
    np.testing.assert_allclose(tiled_output, output, rtol=0, atol=1e-12)
    for name in gradients:
        np.testing.assert_allclose(tiled_gradients[name], gradients[name], rtol=0, atol=1e-10, err_msg=name)


def test_arenas_do_not_grow_with_the_batch():
    program = Network(False).program
    bytes_of = lambda samples: program.memory(samples, [None, 16 * np.arange(samples + 1)])["arenas"]
    assert bytes_of(64) < bytes_of(256) == bytes_of(1024) == bytes_of(8192)


def test_arenas_of_blocks_do_not_grow_with_the_batch():
    program = Network(True, late=("frozen",)).program
    bytes_of = lambda samples: program.memory(samples, [None, 16 * np.arange(samples + 1)])["arenas"]
    assert bytes_of(64) < 0.8 * bytes_of(128)
    assert all(0.9 * bytes_of(128) <= bytes_of(samples) <= bytes_of(128) for samples in (1024, 4096, 8192))


def test_runs_of_changing_sizes_share_one_workspace():
    network = Network(True)
    fresh = {}
    for lengths in ([2, 2], [9] * 30, [1], [40, 3], [2, 2]):
        taps, cotangent = random_taps(lengths)
        output, gradients = network.run(taps, cotangent, lengths)
        expected, expected_gradients = Network(True).run(taps, cotangent, lengths)
        np.testing.assert_array_equal(output, expected)
        for name in gradients:
            np.testing.assert_array_equal(gradients[name], expected_gradients[name], err_msg=name)
        fresh[tuple(lengths)] = output
    assert len(fresh) == 4


def test_batch_norm_in_training_sees_the_whole_batch():
    parameters = core.Parameters()
    graph = core.Graph(parameters, True)
    tokens = graph.space("tokens")
    weight = graph.parameter("weight", (CHANNELS,), "trainable", "ones")
    bias = graph.parameter("bias", (CHANNELS,), "trainable", "zeros")
    mean = graph.parameter("mean", (CHANNELS,), "state", "zeros")
    variance = graph.parameter("variance", (CHANNELS,), "state", "ones")
    x = graph.batch_norm(graph.input("x", tokens, CHANNELS), weight, bias, mean, variance, 1e-5, 0.1)
    graph.output(graph.activate(x, "tanh"))
    program = graph.compile(gradient=True)
    program.set_tile_rows(2)
    rows = np.random.default_rng(2).standard_normal((100, CHANNELS))
    output = np.empty_like(rows)
    program.gradient(50, [None, 2 * np.arange(51)], [(rows, None)], [(output, None)], cotangents=[(rows, None)])
    normal = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
    np.testing.assert_allclose(output, np.tanh(normal), rtol=0, atol=1e-12)
    np.testing.assert_allclose(parameters.array("mean"), 0.1 * rows.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(parameters.array("variance"), 0.9 + 0.1 * rows.var(0, ddof=1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(program.parameter_gradient("bias"), (rows * (1 - np.tanh(normal) ** 2)).sum(0), rtol=0,
                               atol=1e-11)
