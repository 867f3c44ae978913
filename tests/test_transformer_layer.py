"""The transformer layer in the core: each of its options against a NumPy twin and finite differences; its passes."""

import numpy as np
import pytest
from op_harness import SAMPLES, OpCase, assert_close, check_forward, check_gradients
from test_ops_elementwise import ACTIVATIONS
from test_ops_mixing import grouped_attention, rotated

from sherl import _core, _core_double
from sherl.blocks.rotary import speeds

pytestmark = pytest.mark.core

CHANNELS, HEADS, INTERMEDIATE, MEMORY = 6, 2, 5, 4
LENGTHS, MEMORY_LENGTHS = [3, 1, 4], [2, 5, 1]
POSITIONS = {"first": np.array([0, 0, 0]), "last": np.array([2, 0, 3]), "position": np.array([1, 0, 2])}
DEFAULTS = {
    "key_heads": HEADS, "head_size": CHANNELS // HEADS, "activation": "gelu", "gated": False, "placement": "post",
    "norm": "layernorm", "eps": 1e-3, "query_bias": True, "output_bias": True, "feed_forward_bias": True,
    "norm_bias": True, "layer_scale": False, "causal": False, "scale": None, "rotary_theta": None,
    "rotary_dimensions": None, "rotary_factor": 0.0, "rotary_original": 0.0, "rotary_low": 0.0, "rotary_high": 0.0,
    "position_buckets": 0, "max_distance": 5, "bidirectional": True,
}  # fmt: skip
OPTIONS = {
    "bert": {},
    "vit": {"placement": "pre"},
    "clip": {"placement": "pre", "causal": True, "activation": "quick_gelu"},
    "beit": {"placement": "pre", "layer_scale": True},
    "gpt2": {"placement": "pre", "causal": True, "activation": "gelu_tanh"},
    "mpnet": {"position_buckets": 8},
    "t5 encoder": {
        "placement": "pre", "norm": "rmsnorm", "scale": 1.0, "position_buckets": 8, "activation": "relu",
        "query_bias": False, "output_bias": False, "feed_forward_bias": False,
    },
    "t5 decoder": {
        "placement": "pre", "norm": "rmsnorm", "scale": 1.0, "position_buckets": 4, "bidirectional": False,
        "gated": True,
        "activation": "gelu_tanh", "query_bias": False, "output_bias": False, "feed_forward_bias": False,
        "causal": True, "memory": True, "head_size": 2,
    },
    "llama": {
        "placement": "pre", "norm": "rmsnorm", "rotary_theta": 100.0, "gated": True, "activation": "silu",
        "query_bias": False, "output_bias": False, "feed_forward_bias": False, "causal": True, "key_heads": 1,
        "head_size": 4,
    },
    "qwen2": {
        "placement": "pre", "norm": "rmsnorm", "rotary_theta": 100.0, "gated": True, "activation": "silu",
        "output_bias": False, "feed_forward_bias": False, "causal": True, "key_heads": 1, "head_size": 4,
        "rotary_dimensions": 2,
    },
    "llama 3": {
        "placement": "pre", "norm": "rmsnorm", "rotary_theta": 100.0, "gated": True, "activation": "silu",
        "causal": True, "head_size": 6, "rotary_factor": 3.0, "rotary_original": 40.0, "rotary_low": 0.5,
        "rotary_high": 2.0,
    },
    "gemma": {
        "placement": "sandwich", "norm": "rmsnorm", "rotary_theta": 100.0, "gated": True, "activation": "gelu_tanh",
        "query_bias": False, "output_bias": False, "feed_forward_bias": False, "causal": True, "key_heads": 1,
        "head_size": 4, "scale": 0.3,
    },
    "detr encoder": {"activation": "relu", "positions": True},
    "detr decoder": {"activation": "relu", "positions": True, "memory": True, "memory_positions": True},
    "all": {
        "placement": "sandwich", "layer_scale": True, "gated": True, "rotary_theta": 50.0, "position_buckets": 8,
        "memory": True, "memory_positions": True, "positions": True, "key_heads": 1, "head_size": 4,
    },
    "norms without bias": {"placement": "sandwich", "norm_bias": False, "memory": True},
}  # fmt: skip
INPUTS = {"positions": ("rows", CHANNELS), "memory": ("memory", MEMORY), "memory_positions": ("memory", MEMORY)}


class Case:
    """A layer of some options with random weights and inputs, as the arguments of an `OpCase` and as a NumPy twin."""

    def __init__(self, options, seed=0):
        self.options = {**DEFAULTS, **{name: value for name, value in options.items() if name not in INPUTS}}
        self.reads = [name for name in INPUTS if options.get(name)]
        self.generator = np.random.default_rng(seed)
        rows = {"rows": LENGTHS, "memory": MEMORY_LENGTHS}
        self.inputs = {"x": ("rows", self.generator.standard_normal((sum(LENGTHS), CHANNELS)))}
        for name in self.reads:
            space, channels = INPUTS[name]
            self.inputs[name] = space, self.generator.standard_normal((sum(rows[space]), channels))
        self.lengths = rows if "memory" in self.reads else {"rows": LENGTHS}
        self.weights = {role: self.generator.standard_normal(shape) for role, shape in self.shapes().items()}

    def shapes(self):
        """Shapes by role, of the weights that the options ask for."""
        o, shapes = self.options, {}
        inner, key_inner = (heads * o["head_size"] for heads in (HEADS, o["key_heads"]))

        def linear(name, outputs, inputs, bias):
            shapes[f"{name}_weight"] = outputs, inputs
            if bias:
                shapes[f"{name}_bias"] = (outputs,)

        def vectors(part):
            norms = [f"{part}_norm"] + [f"{part}_after_norm"] * (o["placement"] == "sandwich")
            for norm in norms:
                shapes[f"{norm}_weight"] = (CHANNELS,)
                if o["norm"] == "layernorm" and o["norm_bias"]:
                    shapes[f"{norm}_bias"] = (CHANNELS,)
            if o["layer_scale"]:
                shapes[f"{part}_scale_weight"] = (CHANNELS,)

        for prefix, width in [("", CHANNELS)] + [("cross_", MEMORY)] * ("memory" in self.reads):
            linear(f"{prefix}query", inner, CHANNELS, o["query_bias"])
            linear(f"{prefix}key", key_inner, width, o["query_bias"])
            linear(f"{prefix}value", key_inner, width, o["query_bias"])
            linear(f"{prefix}output", CHANNELS, inner, o["output_bias"])
            vectors(prefix[:-1] or "attention")
        if o["position_buckets"]:
            shapes["position_bias_weight"] = o["position_buckets"], HEADS
        for name in ["gate"] * o["gated"] + ["up"]:
            linear(name, INTERMEDIATE, CHANNELS, o["feed_forward_bias"])
        linear("down", CHANNELS, INTERMEDIATE, o["feed_forward_bias"])
        vectors("feed_forward")
        return shapes

    def build(self, frozen, pick=None, core=None):
        """What an `OpCase` builds: a layer of frozen weights, or of trainable parameters of the same names.

        With `pick` of one row a sample.
        """

        def build(graph, values, parameters):
            real = np.dtype((core or _core_double).REAL)
            weights = {role: array.astype(real) for role, array in self.weights.items()} if frozen else None
            others = {name: values[name] for name in self.reads}
            y = graph.transformer_layer("", values["x"], weights, heads=HEADS, intermediate=INTERMEDIATE, **others,
                                        **self.options)
            return graph.select(y, values["at"]) if pick == "position" else graph.pool(y, pick) if pick else y

        return build

    def arguments(self, frozen=True, pick=None):
        names = {} if frozen else {
            ".".join(role.rsplit("_", 1)): ("trainable", array) for role, array in self.weights.items()
        }
        output = (SAMPLES if pick else "rows", CHANNELS)
        inputs = self.inputs | ({"at": (SAMPLES, POSITIONS["position"])} if pick == "position" else {})
        return {"lengths": self.lengths, "inputs": inputs, "output": output, "parameters": names}

    # The twin.

    def linear(self, name, x):
        y = x @ self.weights[f"{name}_weight"].T
        return y + self.weights.get(f"{name}_bias", 0)

    def normalize(self, name, x):
        if self.options["norm"] == "layernorm":
            x = x - x.mean(axis=1, keepdims=True)
        x = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + self.options["eps"])
        return x * self.weights[f"{name}_weight"] + self.weights.get(f"{name}_bias", 0)

    def sublayer(self, part, x, function):
        placement = self.options["placement"]
        f = function(x if placement == "post" else self.normalize(f"{part}_norm", x))
        if placement == "sandwich":
            f = self.normalize(f"{part}_after_norm", f)
        y = x + f * self.weights.get(f"{part}_scale_weight", 1)
        return self.normalize(f"{part}_norm", y) if placement == "post" else y

    def attend(self, prefix, n):
        o, given = self.options, {name: rows for name, (_, rows) in self.inputs.items()}
        placed = n + given.get("positions", 0)
        memory = given["memory"] if prefix else n
        query = self.linear(f"{prefix}query", placed)
        key = self.linear(f"{prefix}key", memory + given.get("memory_positions", 0) if prefix else placed)
        value = self.linear(f"{prefix}value", memory)
        if o["rotary_theta"] and not prefix:
            dimensions = o["rotary_dimensions"] or o["head_size"]
            scaling = {name: o[f"rotary_{name}"] for name in ("factor", "original", "low", "high")}
            turns = speeds(o["rotary_theta"], dimensions, scaling if o["rotary_factor"] else None)
            query = rotated(query, LENGTHS, HEADS, dimensions, turns)
            key = rotated(key, LENGTHS, o["key_heads"], dimensions, turns)
        mixed = grouped_attention(
            query, key, value, LENGTHS, MEMORY_LENGTHS if prefix else LENGTHS, heads=HEADS, key_heads=o["key_heads"],
            scale=o["scale"] or o["head_size"] ** -0.5, causal=o["causal"] and not prefix,
            table=None if prefix else self.weights.get("position_bias_weight"), max_distance=o["max_distance"],
            bidirectional=o["bidirectional"],
        )  # fmt: skip
        return self.linear(f"{prefix}output", mixed)

    def feed_forward(self, n):
        activation = ACTIVATIONS[self.options["activation"]]
        up = self.linear("up", n)
        return self.linear("down", activation(self.linear("gate", n)) * up if self.options["gated"] else activation(up))

    def expected(self):
        y = self.sublayer("attention", self.inputs["x"][1], lambda n: self.attend("", n))
        if "memory" in self.reads:
            y = self.sublayer("cross", y, lambda n: self.attend("cross_", n))
        return self.sublayer("feed_forward", y, self.feed_forward)


@pytest.fixture(params=OPTIONS)
def case(request):
    return Case(OPTIONS[request.param])


def test_output(case):
    for core, tolerance in ((_core_double, 1e-12), (_core, 1e-4)):
        made = OpCase(case.build(True, core=core), core=core, **case.arguments())
        assert_close(made.forward(), case.expected(), tolerance, core.REAL)


def test_gradients_of_inputs(case):
    check_gradients(case.build(True), case.generator, **case.arguments())


def test_gradients_of_parameters(case):
    build, arguments = case.build(False), case.arguments(frozen=False)
    check_forward(build, case.expected(), tolerance=1e-4, **arguments)
    check_gradients(build, case.generator, **arguments)


@pytest.mark.parametrize("pick", POSITIONS)
@pytest.mark.parametrize("frozen", [True, False])
def test_one_row_of_each_sample(case, pick, frozen):
    """Demand leaves out what nobody reads, and association the keys and values, without changing a number."""
    rows = np.cumsum([0, *LENGTHS])[:-1] + POSITIONS[pick]
    build, arguments = case.build(frozen, pick), case.arguments(frozen, pick)
    assert_close(OpCase(build, **arguments).forward(), case.expected()[rows], 1e-12)
    check_gradients(build, case.generator, **arguments)


def test_which_attentions_read_x_itself(case):
    """Those of frozen maps of one matrix: not where keys turn, nor where positions are added to them."""
    listing = OpCase(case.build(True, "last"), **case.arguments(pick="last")).program.describe()
    own = not (case.options["rotary_theta"] or "positions" in case.reads)
    cross = "memory" in case.reads and "memory_positions" not in case.reads
    assert listing.count("single_query_attention") == own + cross
    trained = OpCase(case.build(False, "last"), **case.arguments(False, "last")).program.describe()
    assert "single_query_attention" not in trained


def test_one_row_a_tile_and_many_agree(case):
    cotangent = case.generator.standard_normal((sum(LENGTHS), CHANNELS))
    results = []
    for tile_rows in (1, 100):
        made = OpCase(case.build(False), tile_rows=tile_rows, **case.arguments(frozen=False))
        results.append((made.forward(), *made.gradient(cotangent)))
    assert_close(*(output for output, _, _ in results), 1e-12)
    for one, many in zip(*(result[1:] for result in results), strict=True):
        for name in many:
            assert_close(one[name], many[name], 1e-11, name)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"heads": 4}, "4 heads do not divide 6"),
        ({"weights": {"gate_weight": np.zeros((5, 6))}}, "the key 'gate_weight', which a transformer layer of these"),
        ({"gated": True}, 'the key "gate_weight", which is missing'),
        ({"layer_scale": True}, 'the key "attention_scale_weight", which is missing'),
        ({"key_heads": 1}, "key_weight.* length 3 "),
        ({"head_size": 5}, "query_weight.* length 10 "),
        ({"head_size": 2**62}, "smaller product"),
        ({"memory_positions": 0}, "memory positions go with a memory"),
        ({"placement": "after"}, "placement must be one of"),
        ({"norm": "batchnorm"}, "norm must be one of"),
        ({"rotary_theta": 10.0}, "even and 2 to the 3 of a head, not 3"),
    ],
)
def test_refuses(change, message):
    case = Case(OPTIONS["bert"])
    graph = _core_double.Graph(_core_double.Parameters(), False)
    x = graph.input("x", graph.space("rows"), CHANNELS)
    weights = case.weights | change.get("weights", {})
    change = {name: value for name, value in change.items() if name != "weights"}
    with pytest.raises(ValueError, match=message):
        graph.transformer_layer("", x, weights, **{"heads": HEADS, "intermediate": INTERMEDIATE, **change})


def test_trained_heads_that_overflow_are_refused():
    graph = _core_double.Graph(_core_double.Parameters(), False)
    x = graph.input("x", graph.space("rows"), CHANNELS)
    with pytest.raises(ValueError, match="too large"):
        graph.transformer_layer("", x, None, heads=4, head_size=2**62, intermediate=INTERMEDIATE)
