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


class Network:
    """Taps -> MTSA -> transformer layers, with the first row of each sample picked inside or outside."""

    def __init__(self, pick_inside, late=("trained",), dropout=0.0, training=False):
        self.parameters = core.Parameters()
        graph = core.Graph(self.parameters, training)
        tokens = graph.space("tokens")
        taps = [graph.input(f"tap{i}", tokens, CHANNELS) for i in range(TAPS)]
        x = graph.mtsa("early.", taps, taps[-1], hidden=HIDDEN, out_features=CHANNELS, up_norm=True, dropout=dropout)
        for number, kind in enumerate(late):
            x = graph.transformer_layer(f"late.{number}.", x, layer_weights() if kind == "frozen" else None, heads=3,
                                        intermediate=7, dropout=dropout, attention_dropout=dropout)
        graph.output(graph.pool(x, "first") if pick_inside else x)
        self.pick_inside = pick_inside
        self.program = graph.compile(gradient=True)
        self.parameters.initialize(3)
        self.parameters.array("early.gate")[...] = 0.05

    def run(self, taps, cotangent, lengths=LENGTHS):
        """Output and gradients; without picking inside, the cotangent of the other rows is zero."""
        offsets = np.cumsum([0, *lengths])
        rows = len(lengths) if self.pick_inside else offsets[-1]
        given = np.zeros((rows, CHANNELS))
        given[slice(None) if self.pick_inside else offsets[:-1]] = cotangent
        output = np.full((rows, CHANNELS), np.nan)
        self.program.gradient(len(lengths), [None, offsets], [(tap, None) for tap in taps], [(output, None)],
                              cotangents=[(given, None)], seed=5, step=7)
        names = self.parameters.names("trainable")
        return (output if self.pick_inside else output[offsets[:-1]],
                {name: self.program.parameter_gradient(name) for name in names})


def random_taps(lengths=LENGTHS):
    generator = np.random.default_rng(0)
    return list(generator.standard_normal((TAPS, sum(lengths), CHANNELS))), generator.standard_normal((len(lengths), CHANNELS))


def op_lines(network):
    return network.program.describe().splitlines()


LATE = [(), ("trained",), ("frozen",), ("frozen", "frozen"), ("trained", "frozen"), ("frozen", "trained")]


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_demand_changes_no_number(late, dropout):
    taps, cotangent = random_taps()
    shrunk = Network(True, late, dropout, training=True)
    full = Network(False, late, dropout, training=True)
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


def test_keys_and_values_of_a_frozen_layer_are_never_computed():
    listing = Network(True, late=("frozen", "frozen")).program.describe()
    assert "late.0.key.weight" in listing and "late.0.value.weight" in listing  # all its rows feed the next layer
    assert "linear: space 1, 12 channels late.1" not in listing
    assert listing.count("single_query_attention") == 1
    assert "single_query_attention" not in Network(True, late=("trained",)).program.describe()
    assert "single_query_attention" not in Network(False, late=("frozen",)).program.describe()


@pytest.mark.parametrize("pick_inside", [True, False])
@pytest.mark.parametrize("late", [("frozen",), ("trained",), ("trained", "frozen")])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_change_nothing_but_the_order_of_sums(pick_inside, late, threads):
    lengths = [int(n) for n in np.random.default_rng(1).integers(1, 40, 50)]
    taps, cotangent = random_taps(lengths)
    one, many = (Network(pick_inside, late, dropout=0.2, training=True) for _ in range(2))
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


def test_without_attention_only_first_rows_are_read():
    taps, cotangent = random_taps()
    network = Network(True, late=())
    assert all("space 0" in line for line in op_lines(network))
    output, _ = network.run(taps, cotangent)
    offsets = np.cumsum([0, *LENGTHS])
    unread = np.setdiff1d(np.arange(offsets[-1]), offsets[:-1])
    for tap in taps:
        tap[unread] = np.nan
    poisoned, gradients = network.run(taps, cotangent)
    np.testing.assert_array_equal(poisoned, output)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


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
    bytes_of = lambda samples: program.memory(samples, [None, 16 * np.arange(samples + 1)])["arenas"]  # noqa: E731
    assert bytes_of(64) < bytes_of(256) == bytes_of(1024) == bytes_of(8192)


def test_arenas_of_blocks_do_not_grow_with_the_batch():
    program = Network(True, late=("frozen",)).program
    bytes_of = lambda samples: program.memory(samples, [None, 16 * np.arange(samples + 1)])["arenas"]  # noqa: E731
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
