"""The binding refuses bad input with a sentence that names the argument."""

import numpy as np
import pytest
from binding_problem import CHANNELS, CLASSES, Classification, layer_weights, settled

from sherl import _core, _core_double

pytestmark = pytest.mark.core


@pytest.fixture(params=[_core, _core_double], ids=["float32", "float64"])
def core(request):
    yield request.param
    request.param.fail_allocation(None)


def unaligned(core):
    raw = np.zeros(6 * CHANNELS * 8 + 1, np.uint8)
    return raw[1 : 1 + 6 * CHANNELS * np.dtype(core.REAL).itemsize].view(core.REAL).reshape(6, CHANNELS)


READ_ONLY = np.zeros((3, CLASSES), np.float32)
READ_ONLY.flags.writeable = False

BATCHES = {
    "samples_zero": (dict(samples=0), ValueError, "samples must be at least 1, not 0"),
    "samples_negative": (dict(samples=-(2**70)), ValueError, "samples must be at least 1"),
    "samples_huge": (dict(samples=2**70), ValueError, "samples must be at most"),
    "samples_float": (dict(samples=3.0), TypeError, "samples must be an integer, not float"),
    "offsets_none": (dict(offsets=None), TypeError, "offsets must be a sequence, not NoneType"),
    "offsets_short": (dict(offsets=[None]), ValueError, "offsets must have.* each row space, 2 in all, not 1"),
    "offsets_samples": (dict(offsets=[np.arange(4)] * 2), ValueError, r"offsets\[0\] must be None"),
    "offsets_list": (dict(offsets=[None, [0, 2, 5, 6]]), TypeError, r"offsets\[1\] must be a NumPy array, not list"),
    "offsets_dtype": (dict(offsets=[None, np.array([0, 2, 5, 6], "i4")]), ValueError, r"offsets\[1\].*int64.*int32"),
    "offsets_swapped": (dict(offsets=[None, np.array([0, 2, 5, 6], ">i8")]), ValueError, r"offsets\[1\].*native"),
    "offsets_shape": (dict(offsets=[None, np.zeros((4, 1), int)]), ValueError, r"offsets\[1\] must have 1 dimension"),
    "offsets_length": (dict(offsets=[None, np.array([0, 2, 5])]), ValueError, r"offsets\[1\].* 4 elements, not 3"),
    "offsets_start": (dict(offsets=[None, np.array([1, 2, 5, 6])]), ValueError, r"offsets\[1\] must start at 0, not 1"),
    "offsets_empty": (dict(offsets=[None, np.array([0, 2, 2, 6])]), ValueError, "sample 1 goes from 2 to 2"),
    "offsets_falling": (dict(offsets=[None, np.array([0, -(2**63), 5, 6])]), ValueError, "sample 0 goes from 0"),
    "inputs_none": (dict(inputs=None), TypeError, "inputs must be a sequence"),
    "inputs_text": (dict(inputs="abc"), TypeError, "inputs must be a sequence, not str"),
    "inputs_count": (dict(inputs=[]), ValueError, "inputs must have one entry for each input, 3 in all, not 0"),
    "outputs_count": (dict(outputs=[None, None]), ValueError, "outputs must have one entry for each output, 1 in all"),
    "outputs_read_only": (dict(outputs=[(READ_ONLY, None)]), ValueError, r"outputs\[0\] must be writeable"),
    "outputs_integer": (dict(outputs=[(np.zeros((3, 3), int), None)]), ValueError, r"outputs\[0\].*float32.*int64"),
    "outputs_rows": (dict(outputs=[(np.zeros((2, 3)), None)]), ValueError, r"outputs\[0\].*at least 3 rows, not 2"),
    "outputs_columns": (dict(outputs=[(np.zeros((3, 7)), None)]), ValueError, r"outputs\[0\].* 3 columns, not 7"),
    "seed": (dict(seed=-1), ValueError, "seed must be at least 0, not -1"),
    "step": (dict(step=2**64), ValueError, "step must be at most 18446744073709551615"),
    "unknown": (dict(sede=1), TypeError, 'has no argument "sede"'),
}


@pytest.mark.parametrize("case", BATCHES)
def test_bad_batches(core, case):
    changes, error, message = BATCHES[case]
    problem = Classification(core)
    samples, offsets, inputs = problem.batch()
    arguments = {"samples": samples, "offsets": offsets, "inputs": inputs} | changes
    for method in [problem.program.forward, problem.program.gradient]:
        with pytest.raises(error, match=message):
            method(**arguments)
    if "outputs" not in changes:
        with pytest.raises(error, match=message):
            core.Trainer(problem.program).accumulate(**arguments)
    assert problem.program.forward(samples, offsets, inputs) > 0


SOURCES = {
    "pair": (lambda tap: [tap, None], TypeError, "must be a tuple"),
    "four": (lambda tap: (tap, None, None, None), TypeError, "must be a tuple"),
    "none": (lambda tap: None, TypeError, "must be a tuple"),
    "list": (lambda tap: (tap.tolist(), None), TypeError, "must be a NumPy array, not list"),
    "dimensions": (lambda tap: (tap[0], None), ValueError, "must have 2 dimensions, not 1"),
    "columns": (lambda tap: (tap[:, :-1], None), ValueError, "must have 8 columns, not 7"),
    "few_rows": (lambda tap: (tap[:-1], None), ValueError, "must have at least 6 rows, not 5"),
    "integers": (lambda tap: (tap.astype(int), None), ValueError, "must have the dtype float32.*int64"),
    "complex": (lambda tap: (tap.astype(complex), None), ValueError, "dtype float32.*complex128"),
    "objects": (lambda tap: (tap.astype(object), None), ValueError, "dtype float32.*object"),
    "swapped": (lambda tap: (tap.astype(tap.dtype.newbyteorder()), None), ValueError, "native byte order"),
    "fortran": (lambda tap: (np.asfortranarray(tap), None), ValueError, "contiguous channels"),
    "reversed": (lambda tap: (tap[::-1], None), ValueError, "positive row stride"),
    "broadcast": (lambda tap: (np.broadcast_to(tap[0], tap.shape), None), ValueError, "positive row stride"),
    "rows_list": (lambda tap: (tap, list(range(6))), TypeError, r"rows must be a NumPy array, not list"),
    "rows_dtype": (lambda tap: (tap, np.arange(6.0)), ValueError, "rows must have the dtype int64"),
    "rows_length": (lambda tap: (tap, np.arange(5)), ValueError, "rows must have 6 elements, not 5"),
    "rows_shape": (lambda tap: (tap, np.zeros((6, 1), int)), ValueError, "rows must have 1 dimension, not 2"),
    "rows_over": (lambda tap: (tap, np.arange(1, 7)), ValueError, "rows must lie between 0 and 5, but element 5 is 6"),
    "rows_under": (lambda tap: (tap, np.arange(-1, 5)), ValueError, "between 0 and 5, but element 0 is -1"),
    "rows_empty": (lambda tap: (tap[:0], np.zeros(6, int)), ValueError, "element 0 is 0"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_bad_sources_and_sinks(core, case):
    change, error, message = SOURCES[case]
    problem = Classification(core)
    samples, offsets, inputs = problem.batch()
    with pytest.raises(error, match=r"inputs\[0\].*" + message):
        problem.program.forward(samples, offsets, [change(problem.tap), *inputs[1:]])
    if case in ("none", "reversed", "broadcast"):
        return
    sinks = [change(np.zeros_like(problem.tap)), None, None]
    with pytest.raises(error, match=r"input_gradients\[0\].*" + message):
        problem.program.gradient(samples, offsets, inputs, input_gradients=sinks)


def test_unaligned_rows_are_refused(core):
    problem = Classification(core)
    samples, offsets, inputs = problem.batch()
    with pytest.raises(ValueError, match=r"inputs\[0\] must be aligned"):
        problem.program.forward(samples, offsets, [(unaligned(core), None), *inputs[1:]])


def test_bad_gradient_calls(core):
    problem = Classification(core)
    samples, offsets, inputs = problem.batch()
    with pytest.raises(ValueError, match=r"input_gradients\[2\] must be None"):
        problem.program.gradient(samples, offsets, inputs, input_gradients=[None, None, inputs[2]])
    with pytest.raises(ValueError, match=r"cotangents must have one entry for each output, 1 in all, not 0"):
        problem.program.gradient(samples, offsets, inputs, cotangents=[])
    no_loss = Classification(core, loss=False)
    with pytest.raises(ValueError, match="cotangents must be given"):
        no_loss.program.gradient(samples, offsets, inputs[:1])
    assert no_loss.program.forward(samples, offsets, inputs[:1]) is None
    no_gradient = Classification(core, gradient=False)
    with pytest.raises(ValueError, match="gradient=False"):
        no_gradient.program.gradient(samples, offsets, inputs)
    with pytest.raises(ValueError, match="gradient=True"):
        core.Trainer(no_gradient.program)
    with pytest.raises(ValueError, match='no parameter named "nothing"'):
        problem.program.parameter_gradient("nothing")
    with pytest.raises(ValueError, match="no gradients yet"):
        problem.program.parameter_gradient("down.bias")
    problem.program.gradient(samples, offsets, inputs)
    core.Graph(problem.parameters, True).parameter("later", (2,))
    with pytest.raises(ValueError, match='no gradient of the parameter "later"'):
        problem.program.parameter_gradient("later")
    assert core.Trainer(problem.program, no_decay=["later"]).moment(0, "later") is None
    with pytest.raises(ValueError, match="rows must be at least 1, not 0"):
        problem.program.set_tile_rows(0)


def test_labels_outside_the_classes_are_refused(core):
    problem = Classification(core)
    trainer = core.Trainer(problem.program)
    samples, offsets, inputs = problem.batch()
    before = problem.states()
    for wrong in [-1, CLASSES, 2**40]:
        problem.targets[1] = wrong
        with pytest.raises(ValueError, match="label"):
            trainer.accumulate(samples, offsets, inputs)
    assert all(np.array_equal(array, before[name]) for name, array in problem.states().items())


def test_what_is_not_finite_changes_nothing(core):
    problem = Classification(core)
    trainer = core.Trainer(problem.program)
    samples, offsets, inputs = problem.batch()
    before = problem.states()
    problem.tap[3, 2] = np.nan
    with pytest.raises(FloatingPointError):
        trainer.accumulate(samples, offsets, inputs)
        trainer.update()
    assert trainer.steps == 0
    assert all(np.array_equal(array, before[name]) for name, array in problem.states().items())


def graph_calls(core):
    frozen = np.zeros((2, 3), core.REAL)
    wrong = frozen.astype("float64" if core.REAL == "float32" else "float32")
    swapped = frozen.astype(frozen.dtype.newbyteorder())
    layer = layer_weights(core)
    part = {"query_weight": layer["query_weight"]}
    block = {"heads": 2, "intermediate": 6}
    mtsa = {"hidden": 2, "out_features": 8}
    return [
        (lambda g: g.space(3), TypeError, "name must be a string, not int"),
        (lambda g: g.space("a\0b"), ValueError, "name must not contain a zero character"),
        (lambda g: g.space("a", "b"), TypeError, "at most 1 positional argument"),
        (lambda g: g.space(), TypeError, 'space.. needs the argument "name"'),
        (lambda g: g.space("a", name="b"), TypeError, 'the argument "name" twice'),
        (lambda g: g.input("a", 9, 4), ValueError, "there is no row space 9"),
        (lambda g: g.input("a", -1, 4), ValueError, "space must be at least 0, not -1"),
        (lambda g: g.input("a", 2**32 - 1, 4), ValueError, "space must be at most 4294967294"),
        (lambda g: g.input("a", 1, 0), ValueError, "channels must be at least 1, not 0"),
        (lambda g: g.input("a", 1, 2**62), ValueError, "channels"),
        (lambda g: g.parameter("", (2,)), ValueError, "parameter"),
        (lambda g: g.parameter("p", 3), TypeError, "shape must be a sequence, not int"),
        (lambda g: g.parameter("p", ()), ValueError, "shape must have one or two dimensions, not 0"),
        (lambda g: g.parameter("p", (1, 2, 3)), ValueError, "shape must have one or two dimensions, not 3"),
        (lambda g: g.parameter("p", (2, 0)), ValueError, r"shape\[1\] must be at least 1, not 0"),
        (lambda g: g.parameter("p", (2, 2.5)), TypeError, r"shape\[1\] must be an integer, not float"),
        (lambda g: g.parameter("p", (2**40, 2**40)), ValueError, "parameter p"),
        (lambda g: g.parameter("p", (2, 3), "fixed"), ValueError, 'role must be one of "trainable".*not .fixed'),
        (lambda g: g.parameter("p", (2, 3), initializer="x"), ValueError, 'initializer must be one of "zeros"'),
        (lambda g: g.parameter("p", (2, 3), "frozen"), ValueError, "data must be an array for a frozen parameter"),
        (lambda g: g.parameter("p", (2, 3), data=frozen), ValueError, "data must be None"),
        (lambda g: g.parameter("p", (3, 2), "frozen", data=frozen), ValueError, "data.* length 3 in dimension 0"),
        (lambda g: g.parameter("p", (6,), "frozen", data=frozen), ValueError, "data must have 1 dimension, not 2"),
        (lambda g: g.parameter("p", (2, 3), "frozen", data=frozen.tolist()), TypeError, "data must be a NumPy array"),
        (lambda g: g.parameter("p", (2, 3), "frozen", data=wrong), ValueError, f"dtype {core.REAL}, not {wrong.dtype}"),
        (lambda g: g.parameter("p", (2, 3), "frozen", data=np.zeros((3, 2), core.REAL).T), ValueError, "C-contiguous"),
        (lambda g: g.parameter("p", (2, 3), "frozen", data=swapped), ValueError, "native byte order"),
        (lambda g: g.parameter("w", (9, 9)), ValueError, "parameter w exists with another shape"),
        (lambda g: g.output(77), ValueError, "not a value of this graph"),
        (lambda g: g.output(None), TypeError, "value must be an integer, not NoneType"),
        (lambda g: g.loss(0), ValueError, "channels"),
        (lambda g: g.linear(77, 0), ValueError, "not a value"),
        (lambda g: g.linear(0, 77), ValueError, "not a parameter"),
        (lambda g: g.linear(0, 0, activation="softplus"), ValueError, 'one of "identity", "relu", "gelu".*softplus'),
        (lambda g: g.activate(0, 3), ValueError, "activation must be one of"),
        (lambda g: g.layer_norm(0, 0, 1, 1e-5), ValueError, "layer norm"),
        (lambda g: g.layer_norm(0, 0, 1, "x"), TypeError, "eps must be a real number, not str"),
        (lambda g: g.layer_norm(0, 0, 1, float("nan")), ValueError, "eps must be finite, not nan"),
        (lambda g: g.batch_norm(1, 2, 2, 2, 2, 1e-5, 2.0), ValueError, "momentum"),
        (lambda g: g.dropout(0, 1.0), ValueError, "rate"),
        (lambda g: g.dropout(0, 10**400), ValueError, "rate must be finite"),
        (lambda g: g.add(0, 1), ValueError, "add"),
        (lambda g: g.multiply(0, 1), ValueError, "multiply"),
        (lambda g: g.embedding(0, 0), ValueError, "embedding"),
        (lambda g: g.attention(0, 0, 0, 3, 1.0), ValueError, "heads"),
        (lambda g: g.attention(0, 0, 0, 0, 1.0), ValueError, "heads must be at least 1, not 0"),
        (lambda g: g.pool(0, "median"), ValueError, 'pooling must be one of "first", .*"position", not .median'),
        (lambda g: g.value_space(99), ValueError, "value 99 is not one of this graph"),
        (lambda g: g.rank_encoding(0, 6), ValueError, "channels must be a multiple of 4, not 6"),
        (lambda g: g.rank_encoding(0, 0), ValueError, "channels must be"),
        (lambda g: g.sorted_pool(0, 0), ValueError, "sorted pool: scores must have 1 channels"),
        (lambda g: g.l2_normalize(0, -1.0), ValueError, "eps must be at least 0"),
        (lambda g: g.amplify(0, g.parameter("scale", (2,))), ValueError, "logarithm .* must be 1 x 1, not 1 x 2"),
        (lambda g: g.concatenate([]), ValueError, "needs 1 to 128 values, not 0"),
        (lambda g: g.concatenate([0, g.pool(0, "mean")]), ValueError, "must lie in one row space"),
        (lambda g: g.row_cross_entropy(0, [], 0), ValueError, "target_rows must be"),
        (lambda g: g.embedder("e.", 0, outputs=0), ValueError, "outputs must be at least 1"),
        (lambda g: g.embedder("e.", 0, outputs=1, pooling="position"), ValueError, "select: positions"),
        (lambda g: g.detector("d.", 0, classes=1, hidden=1), ValueError, "classes must be at least 2"),
        (lambda g: g.pool(0, "position"), ValueError, "needs positions, which select takes"),
        (lambda g: g.select(0, 0), ValueError, "select: positions must hold integers"),
        (lambda g: g.select(0, g.indices("p", 1)), ValueError, "select: positions must have one row a sample"),
        (lambda g: g.select(g.pool(0, "last"), g.indices("p", 0)), ValueError, "x has one row a sample already"),
        (lambda g: g.guidance(0, 0, 1, 1e-5), TypeError, "features must be a sequence, not int"),
        (lambda g: g.guidance([0, "x"], 0, 1, 1e-5), TypeError, r"features\[1\] must be an integer, not str"),
        (lambda g: g.guidance([0, -3], 0, 1, 1e-5), ValueError, r"features\[1\] must be at least 0, not -3"),
        (lambda g: g.guidance([], 0, 1, 1e-5), ValueError, "guidance"),
        (lambda g: g.gated_residual(0, 0, 0, 0.1), ValueError, "gate"),
        (lambda g: g.cross_entropy(0, 0, 0), ValueError, "cross-entropy"),
        (lambda g: g.binary_cross_entropy(0, 77, 0), ValueError, "binary cross-entropy"),
        (lambda g: g.squared_error(0, 77, 0), ValueError, "squared error"),
        (lambda g: g.mtsa("m.", [0, 77], 0, **mtsa), ValueError, "not a value"),
        (lambda g: g.mtsa("m.", [0], 0, hidden=0, out_features=8), ValueError, "hidden must be at least 1"),
        (lambda g: g.mtsa("m.", [0, 0], 0, **mtsa, down="linear"), ValueError, 'down must be one of "layernorm"'),
        (lambda g: g.mtsa("m.", [0, 0], 0, **mtsa, guidance="mlp"), ValueError, 'guidance must be one of "token"'),
        (lambda g: g.mtsa("m.", [0, 0], 0, 2, 8), TypeError, "at most 3 positional arguments, but 5"),
        (lambda g: g.head("h.", 0, outputs=0), ValueError, "outputs must be at least 1"),
        (lambda g: g.head("h" * 300, 0, outputs=2), ValueError, "too long"),
        (lambda g: g.transformer_layer("l.", 1, [layer], **block), TypeError, "weights must be a mapping.*not list"),
        (lambda g: g.transformer_layer("l.", 1, {**layer, "gate": frozen}, **block), ValueError, "the key .gate., "),
        (lambda g: g.transformer_layer("l.", 1, layer | {7: frozen}, **block), ValueError, "the key 7, which"),
        (lambda g: g.transformer_layer("l.", 1, part, **block), ValueError, 'the key "query_bias", which is missing'),
        (lambda g: g.transformer_layer("l.", 1, layer, heads=2, intermediate=5), ValueError, '"up_weight".*length 5'),
        (lambda g: g.transformer_layer("l.", 1, layer, heads=3, intermediate=6), ValueError, "3 heads do not divide 4"),
        (lambda g: g.transformer_layer("l.", 0, layer, **block), ValueError, r'weights\["query_weight"\].* 8 .*not 4'),
        (lambda g: g.transformer_layer("l.", 77, layer, **block), ValueError, "not a value"),
        (lambda g: g.compile(), TypeError, "gradient"),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(len(graph_calls(_core))))
def test_bad_graph_calls(core, number):
    call, error, message = graph_calls(core)[number]
    parameters = core.Parameters()
    graph = core.Graph(parameters, True)
    assert graph.input("x", graph.space("tokens"), 8) == 0
    assert graph.input("y", 1, 4) == 1
    assert graph.parameter("w", (3, 8)) == 0
    assert graph.parameter("b", (3,)) == 1
    assert graph.parameter("c", (4,)) == 2
    with pytest.raises(error, match=message):
        call(graph)
    assert parameters.shape("w") == (3, 8)


def test_a_failed_graph_stays_failed(core):
    graph = core.Graph(core.Parameters(), True)
    x = graph.input("x", core.SAMPLES, 8)
    with pytest.raises(ValueError, match="rate"):
        graph.dropout(x, 7.0)
    for call in [lambda: graph.activate(x, "relu"), lambda: graph.output(x), lambda: graph.compile(False)]:
        with pytest.raises(ValueError, match="rate"):
            call()


TRAINERS = [
    (dict(optimizer="lion"), 'optimizer must be one of "sgd", "adam", "adamw"'),
    (dict(schedule="cyclic"), 'schedule must be one of "constant"'),
    (dict(learning_rate=-1.0), "learning_rate must be at least 0, not -1.0"),
    (dict(weight_decay=-1.0), "weight_decay must be at least 0"),
    (dict(momentum=1.0), "momentum must be at least 0 and below 1, not 1.0"),
    (dict(beta1=1.0), "beta1 must be"),
    (dict(beta2=-0.1), "beta2 must be"),
    (dict(eps=0.0), "eps must be more than 0"),
    (dict(eps=float("inf")), "eps must be finite"),
    (dict(clip_norm=-1.0), "clip_norm must be"),
    (dict(schedule="linear", warmup_steps=5, total_steps=5), "total_steps must be more than warmup_steps .5. .*not 5"),
    (dict(schedule="cosine"), "total_steps must be more than"),
    (dict(schedule="step"), "step_every must be at least 1"),
    (dict(warmup_steps=-1), "warmup_steps must be at least 0"),
    (dict(step_factor=-1), "step_factor must be"),
    (dict(no_decay=["head.bias", "x"]), 'no parameter named "x"'),
]


@pytest.mark.parametrize(("settings", "message"), TRAINERS)
def test_bad_trainer_settings(core, settings, message):
    problem = Classification(core)
    live = settled(core)
    with pytest.raises(ValueError, match=message):
        core.Trainer(problem.program, **settings)
    assert settled(core) == live


def test_more_bad_calls(core):
    problem = Classification(core)
    trainer = core.Trainer(problem.program)
    for settings, message in [
        (dict(no_decay="head.bias"), "no_decay must be a sequence, not str"),
        (dict(no_decay=[3]), r"no_decay\[0\] must be a string"),
    ]:
        with pytest.raises(TypeError, match=message):
            core.Trainer(problem.program, **settings)
    with pytest.raises(TypeError, match="at most 1 positional"):
        core.Trainer(problem.program, "sgd")
    with pytest.raises(TypeError, match="program must be a Program"):
        core.Trainer(problem.parameters)
    with pytest.raises(TypeError, match="parameters must be a Parameters"):
        core.Graph(trainer, True)
    with pytest.raises(TypeError, match="cannot create"):
        type(problem.program)()
    with pytest.raises(ValueError, match="number must be at most 1, not 2"):
        trainer.moment(2, "head.bias")
    with pytest.raises(ValueError, match="no parameter named"):
        trainer.moment(0, "nothing")
    with pytest.raises(ValueError, match="steps must be at least 0"):
        trainer.steps = -1
    with pytest.raises(TypeError, match="steps cannot be deleted"):
        del trainer.steps
    with pytest.raises(AttributeError):
        trainer.nbytes = 1
    with pytest.raises(ValueError, match="seed must be at least 0"):
        problem.parameters.initialize(-1)
    with pytest.raises(ValueError, match="role must be one of"):
        problem.parameters.names("x")
    for method in [problem.parameters.shape, problem.parameters.role, problem.parameters.array]:
        with pytest.raises(ValueError, match='no parameter named "\N{SNOWMAN}"'):
            method("\N{SNOWMAN}")
        with pytest.raises(UnicodeEncodeError):
            method("\ud800")
    with pytest.raises(ValueError, match="threads must be at least 0"):
        core.set_threads(-1)
    with pytest.raises(ValueError, match="number must be at least 1"):
        core.fail_allocation(0)


def test_sizes_that_no_memory_holds(core):
    problem = Classification(core)
    for offsets in [np.array([0, 2**62]), np.array([0, 2**40])]:
        with pytest.raises((MemoryError, ValueError)):
            problem.program.forward(1, [None, offsets], problem.batch()[2])
        assert problem.program.memory(1, [None, np.array([0, 5])])["tiles"] == 1
    graph = core.Graph(core.Parameters(), True)
    graph.output(graph.input("x", core.SAMPLES, 4))
    with pytest.raises(ValueError, match=r"inputs\[0\] must have at least 4611686018427387904 rows"):
        graph.compile(False).forward(2**62, [None], [(np.zeros((3, 4)), None)])
