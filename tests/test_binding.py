"""The binding: its contract with the stub, and the life of its objects."""

import ast
import gc
import inspect
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from binding_problem import CHANNELS, CLASSES, Classification, layer_weights, settled

from sherl import _core, _core_double

pytestmark = pytest.mark.core


@pytest.fixture(params=[_core, _core_double], ids=["float32", "float64"])
def core(request):
    yield request.param
    request.param.fail_allocation(None)


# ---- The contract ----------------------------------------------------------------------------------------------------


def stub_signatures():
    tree = ast.parse(Path(_core.__file__).with_name("_core.pyi").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node.args
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name != "__len__":
                    yield f"{node.name}.{method.name}".removesuffix(".__new__"), method.args


@pytest.mark.parametrize(("name", "stub"), [pytest.param(n, a, id=n) for n, a in stub_signatures()])
def test_signatures_are_those_of_the_stub(core, name, stub):
    target = core
    for part in name.split("."):
        target = getattr(target, part)
    found = [p for p in inspect.signature(target).parameters.values() if p.name != "self"]
    others = [[arg] if arg else [] for arg in (stub.vararg, stub.kwarg)]
    expected = [a.arg for a in [*stub.args, *others[0], *stub.kwonlyargs, *others[1]] if a.arg not in ("self", "cls")]
    assert [p.name for p in found] == expected
    assert [p.name for p in found if p.kind is p.KEYWORD_ONLY] == [a.arg for a in stub.kwonlyargs]
    defaults = [ast.literal_eval(d) for d in [*stub.defaults, *(d for d in stub.kw_defaults if d is not None)]]
    assert [p.default for p in found if p.default is not p.empty] == defaults


def test_configuration(core):
    assert {"_core": "float32", "_core_double": "float64"}[core.__name__.split(".")[1]] == core.REAL
    before = core.threads()
    assert set(core.config()) == {"version", "blas", "instruction_set", "bfloat16", "threads"}
    try:
        core.set_threads(1)
        assert core.threads() == core.config()["threads"] == 1
    finally:
        core.set_threads(before)


def test_parameters(core):
    parameters = core.Parameters()
    graph = core.Graph(parameters, True)
    frozen = np.arange(6, dtype=core.REAL).reshape(2, 3)
    assert graph.parameter("a", (2, 3), "frozen", data=frozen) == 0
    assert graph.parameter("b", (4,), "state", "ones") == 1
    assert graph.parameter("c", (3, 4), initializer="normal") == 2
    assert graph.parameter("c", (3, 4), initializer="normal") == 2
    assert len(parameters) == 3
    assert parameters.names() == ["a", "b", "c"]
    assert parameters.names("state") == ["b"]
    assert [parameters.shape(name) for name in "abc"] == [(2, 3), (4,), (3, 4)]
    assert [parameters.role(name) for name in "abc"] == ["frozen", "state", "trainable"]
    assert np.shares_memory(parameters.array("a"), frozen)
    assert not parameters.array("a").flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        parameters.array("a").setflags(write=True)
    parameters.array("c")[0, 0] = 7
    assert parameters.array("c")[0, 0] == 7
    parameters.initialize(3)
    drawn = parameters.array("c").copy()
    assert np.std(drawn) > 0
    parameters.initialize(4)
    assert not np.array_equal(parameters.array("c"), drawn)
    parameters.initialize(3)
    assert np.array_equal(parameters.array("c"), drawn)
    assert np.array_equal(parameters.array("b"), np.ones(4))


def test_forward_agrees_with_numpy(core):
    problem = Classification(core)
    samples, offsets, inputs = problem.batch((4, 1, 3))
    logits = np.zeros((samples, CLASSES))
    loss = problem.program.forward(samples, offsets, inputs, [(logits, None)])
    weights = problem.states()
    hidden = np.maximum(problem.tap @ weights["down.weight"].T + weights["down.bias"], 0)
    pooled = np.stack([part.mean(axis=0) for part in np.split(hidden, offsets[1][1:-1])])
    expected = pooled @ weights["head.weight"].T + weights["head.bias"]
    assert np.allclose(logits, expected, rtol=1e-5, atol=1e-6)
    probabilities = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    picked = np.take_along_axis(probabilities, problem.targets, axis=1)
    assert np.isclose(loss, -np.mean(np.log(picked)), rtol=1e-5)


def bfloat16(array):
    return (np.asarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("form", ["float32", "float64", "float16", "bfloat16", "strided", "rows", "sink_rows"])
def test_forms_of_rows_give_the_same_numbers(core, form):
    problem = Classification(core, loss=False)
    samples, offsets, inputs = problem.batch((3, 4))
    # Few enough binary digits for any of the types.
    problem.tap[:] = np.round(problem.tap * 4) / 4
    expected = np.zeros((samples, CLASSES), core.REAL)
    problem.program.forward(samples, offsets, inputs[:1], [(expected, None)])
    found = np.zeros((samples, CLASSES), core.REAL)
    rows, sink_rows = None, None
    if form == "bfloat16":
        tap = bfloat16(problem.tap)
    elif form == "strided":
        tap = np.full((14, CHANNELS + 3), np.nan, core.REAL)[::2, 2:-1]
        tap[:] = problem.tap
    elif form == "rows":
        rows = np.arange(7)[::-1].copy() * 2
        tap = np.full((13, CHANNELS), np.nan, core.REAL)
        tap[rows] = problem.tap
    elif form == "sink_rows":
        tap, sink_rows = problem.tap, np.array([1, 0])
    else:
        tap = problem.tap.astype(form)
    problem.program.forward(samples, offsets, [(tap, rows)], [(found, sink_rows)])
    assert np.array_equal(found if sink_rows is None else found[::-1], expected)


def test_gradients(core):
    problem = Classification(core, loss=False)
    samples, offsets, inputs = problem.batch()
    cotangent = np.random.default_rng(1).standard_normal((samples, CLASSES))
    tap_gradient = np.zeros_like(problem.tap)
    arguments = {"cotangents": [(cotangent, None)], "input_gradients": [(tap_gradient, None)]}
    assert problem.program.gradient(samples, offsets, inputs[:1], **arguments) is None
    weights = problem.states()
    hidden = problem.tap @ weights["down.weight"].T + weights["down.bias"]
    lengths = np.diff(offsets[1])
    pooled_gradient = cotangent @ weights["head.weight"]
    hidden_gradient = np.repeat(pooled_gradient / lengths[:, None], lengths, axis=0) * (hidden > 0)
    assert np.allclose(tap_gradient, hidden_gradient @ weights["down.weight"], rtol=1e-4, atol=1e-6)
    once = problem.program.parameter_gradient("down.weight")
    assert np.allclose(once, hidden_gradient.T @ problem.tap, rtol=1e-4, atol=1e-5)
    problem.program.gradient(samples, offsets, inputs[:1], add=True, **arguments)
    assert np.allclose(problem.program.parameter_gradient("down.weight"), 2 * once, rtol=1e-5)
    problem.program.gradient(samples, offsets, inputs[:1], **arguments)
    assert np.array_equal(problem.program.parameter_gradient("down.weight"), once)


def test_looking_at_a_program(core):
    problem = Classification(core)
    samples, offsets, _ = problem.batch()
    report = problem.program.memory(samples, offsets)
    assert report["parameters"] == sum(array.nbytes for array in problem.states().values())
    assert report["arenas"] > 0 and report["frozen_weights"] == 0
    problem.program.set_tile_rows(1)
    assert problem.program.memory(samples, offsets)["tiles"] == samples
    assert "cross_entropy" in problem.program.describe()


def test_trainer(core):
    problem = Classification(core)
    trainer = core.Trainer(problem.program, optimizer="sgd", learning_rate=0.5, schedule="step", step_every=1)
    assert [trainer.learning_rate(step) for step in range(2)] == pytest.approx([0.5, 0.05])
    assert trainer.moment(0, "down.weight") is None
    before = problem.states()
    loss = trainer.accumulate(*problem.batch())
    gradient = problem.program.parameter_gradient("down.weight")
    norm = np.sqrt(sum(np.sum(problem.program.parameter_gradient(name) ** 2) for name in before))
    assert trainer.update() == pytest.approx(norm, rel=1e-5)
    assert np.allclose(problem.states()["down.weight"], before["down.weight"] - 0.5 * gradient, rtol=1e-5, atol=1e-7)
    assert problem.program.forward(*problem.batch()) < loss
    assert trainer.steps == 1
    trainer.steps = 2**40
    assert trainer.steps == 2**40
    with pytest.raises(ValueError, match="accumulate must come first"):
        trainer.update()
    trainer.accumulate(*problem.batch())
    trainer.discard()
    with pytest.raises(ValueError, match="accumulate must come first"):
        trainer.update()


def test_no_decay_and_moments(core):
    problem = Classification(core)
    problem.parameters.array("down.bias")[:] = 1
    trainer = core.Trainer(problem.program, weight_decay=0.5, learning_rate=0.1, no_decay=["down.bias"])
    decayed = core.Trainer(problem.program, weight_decay=0.5, learning_rate=0.1)
    assert trainer.moment(0, "head.bias").shape == (CLASSES,)
    assert trainer.nbytes >= 2 * sum(array.nbytes for array in problem.states().values())
    steps = []
    for each in (trainer, decayed):
        start = problem.states()
        each.accumulate(*problem.batch())
        each.update()
        steps.append({name: after - start[name] for name, after in problem.states().items()})
        for name, array in start.items():
            problem.parameters.array(name)[:] = array
    assert np.array_equal(steps[0]["down.weight"], steps[1]["down.weight"])
    assert np.allclose(steps[0]["down.bias"] - steps[1]["down.bias"], 0.1 * 0.5, atol=1e-6)
    assert np.any(trainer.moment(1, "down.weight") > 0)


@pytest.mark.parametrize("frozen", [True, False])
def test_transformer_layer_names_and_memory(core, frozen):
    weights = layer_weights(core)
    parameters = core.Parameters()
    graph = core.Graph(parameters, False)
    x = graph.input("x", graph.space("tokens"), 4)
    graph.output(graph.transformer_layer("late.0.", x, weights if frozen else None, heads=2, intermediate=6))
    graph.compile(False)
    assert set(parameters.names("frozen" if frozen else "trainable")) == {
        f"late.0.{'.'.join(name.rsplit('_', 1))}" for name in weights
    }
    for key, array in weights.items():
        name = f"late.0.{'.'.join(key.rsplit('_', 1))}"
        assert parameters.shape(name) == array.shape
        assert np.shares_memory(parameters.array(name), array) == frozen


def test_mtsa_takes_its_settings(core):
    parameters = core.Parameters()
    graph = core.Graph(parameters, True)
    space = graph.space("tokens")
    taps = [graph.input(f"tap.{i}", space, 6) for i in range(3)]
    settings = {"hidden": 2, "out_features": 6, "down": "gated", "guidance": "residual_mlp", "up_norm": "layernorm"}
    graph.output(graph.mtsa("early.", taps, taps[-1], **settings, dropout=0.25, gate_temperature=0.5))
    graph.compile(True)
    names = parameters.names()
    assert all(name.startswith("early.") for name in names)
    assert {"early.up.weight", "early.up.norm.weight", "early.gate", "early.down.2.gate.weight"} <= set(names)
    assert parameters.shape("early.up.weight") == (6, 2)


# ---- Life ------------------------------------------------------------------------------------------------------------


def test_calls_keep_no_references(core):
    problem = Classification(core)
    samples, offsets, inputs = problem.batch()
    rows = np.arange(6)
    sink, cotangent = np.zeros((2, 3, CLASSES), core.REAL)
    tap_gradient = np.zeros((6, CHANNELS), core.REAL)
    inputs[0] = (problem.tap, rows)
    outputs, cotangents, gradients = [(sink, None)], [(cotangent, None)], [(tap_gradient, None), None, None]
    trainer = core.Trainer(problem.program)
    watched = [rows, sink, cotangent, tap_gradient, problem.tap, problem.targets, problem.weights, offsets, offsets[1]]
    watched += [inputs, *inputs, outputs, *outputs, cotangents, gradients, problem.program, problem.parameters, trainer]
    bad_inputs = [inputs[0], (problem.tap, None), inputs[2]]

    def call():
        problem.program.forward(samples, offsets, inputs, outputs)
        problem.program.gradient(samples, offsets, inputs, outputs, input_gradients=gradients)
        trainer.accumulate(samples, offsets, inputs)
        trainer.update()
        problem.program.memory(samples, offsets)
        problem.program.parameter_gradient("down.bias")
        with pytest.raises(ValueError, match=r"inputs\[1\]"):
            problem.program.forward(samples, offsets, bad_inputs, outputs)
        with pytest.raises(TypeError, match="needs the argument"):
            trainer.accumulate(samples, offsets)

    call()
    before = [sys.getrefcount(item) for item in watched]
    live = settled(core)
    for _ in range(500):
        call()
    assert [sys.getrefcount(item) for item in watched] == before
    assert settled(core) == live


def test_views_keep_their_owners_alive(core):
    baseline = settled(core)
    problem = Classification(core)
    trainer = core.Trainer(problem.program)
    trainer.accumulate(*problem.batch())
    trainer.update()
    weight, moment = problem.parameters.array("down.weight"), trainer.moment(0, "down.weight")
    expected = weight.copy(), moment.copy()
    del problem, trainer
    assert settled(core) > baseline
    assert np.array_equal(weight, expected[0]) and np.array_equal(moment, expected[1])
    del moment
    assert settled(core) > baseline
    del weight
    assert settled(core) == baseline


def test_a_program_keeps_its_store_and_a_trainer_its_program(core):
    baseline = settled(core)
    trainer = core.Trainer(Classification(core).program)
    assert settled(core) > baseline
    problem = Classification(core, parameters=core.Parameters())
    trainer.accumulate(*problem.batch())
    assert trainer.update() > 0
    del trainer, problem
    assert settled(core) == baseline


def test_frozen_arrays_live_as_long_as_the_store(core):
    parameters = core.Parameters()
    graph = core.Graph(parameters, False)
    array = np.ones((2, 3), core.REAL)
    reference = weakref.ref(array)
    graph.parameter("a", (2, 3), "frozen", data=array)
    with pytest.raises(ValueError, match="a"):
        core.Graph(parameters, False).parameter("a", (2, 3), "frozen", data=array.copy())
    del array, graph
    gc.collect()
    assert reference() is not None
    assert np.array_equal(parameters.array("a"), np.ones((2, 3)))
    del parameters
    gc.collect()
    assert reference() is None


def test_the_same_frozen_array_is_held_once(core):
    weights = layer_weights(core)
    parameters = core.Parameters()
    counts = []
    for _ in range(3):
        graph = core.Graph(parameters, False)
        x = graph.input("x", graph.space("tokens"), 4)
        graph.transformer_layer("layer.", x, weights, heads=2, intermediate=6)
        counts.append(sys.getrefcount(weights["query_weight"]))
    assert len(set(counts)) == 1


def test_cycles_are_collected(core):
    class Tagged(np.ndarray):
        pass

    baseline = settled(core)
    array = np.ones((2, 3), core.REAL).view(Tagged)
    problem = Classification(core)
    core.Graph(problem.parameters, False).parameter("a", (2, 3), "frozen", data=array)
    array.owner = core.Trainer(problem.program)
    reference = weakref.ref(array)
    del array, problem
    assert reference() is not None
    assert settled(core) == baseline
    assert reference() is None


def test_a_module_can_be_loaded_twice_and_dropped(core):
    specification = core.__spec__
    fresh = specification.loader.create_module(specification)
    specification.loader.exec_module(fresh)
    assert fresh.Parameters is not core.Parameters
    parameters = fresh.Parameters()
    with pytest.raises(TypeError, match="of this module"):
        core.Graph(parameters, False)
    fresh.Graph(parameters, False).parameter("a", (2,))
    fresh.itself = parameters
    del fresh
    gc.collect()
    assert np.array_equal(parameters.array("a"), np.zeros(2))
