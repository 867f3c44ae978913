"""The binding under threads, in forked children and when allocations fail."""

import os
import signal
import threading
import time

import numpy as np
import pytest
from binding_problem import CLASSES, Classification, layer_weights, settled

from sherl import _core, _core_double

pytestmark = pytest.mark.core


@pytest.fixture(params=[_core, _core_double], ids=["float32", "float64"])
def core(request):
    yield request.param
    request.param.fail_allocation(None)


# ---- Threads and processes -------------------------------------------------------------------------------------------


def deep_program(core, layers=12, channels=256):
    graph = core.Graph(core.Parameters(), False)
    x = graph.input("x", core.SAMPLES, channels)
    for i in range(layers):
        x = graph.linear(x, graph.parameter(f"{i}.weight", (channels, channels), initializer="xavier_uniform"))
    graph.output(x)
    return graph.compile(False)


def test_other_threads_run_during_a_call(core):
    program = deep_program(core)
    rows = np.ones((6000, 256), core.REAL)
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        start = time.perf_counter()
        program.forward(len(rows), [None], [(rows, None)])
        end = time.perf_counter()
    finally:
        stop.set()
        thread.join()
    # Were the GIL held, the other thread could tick at the two edges only.
    assert sum(start < tick < end for tick in ticks) >= 5


def in_threads(*functions):
    errors = []

    def guard(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guard, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_threads_share_a_program(core):
    problem = Classification(core)
    batches = [problem.batch(lengths, seed) for seed, lengths in enumerate([(2, 3, 1), (40, 7), (1,) * 30])]
    expected = [problem.program.forward(*batch) for batch in batches]
    gradients = []
    for batch in batches:
        problem.program.gradient(*batch)
        gradients.append(problem.program.parameter_gradient("down.weight"))
    assert not np.array_equal(gradients[0], gradients[1])

    def run(number):
        sink = np.zeros((batches[number][0], CLASSES), core.REAL)
        for _ in range(100):
            assert problem.program.gradient(*batches[number], [(sink, None)]) == expected[number]
            found = problem.program.parameter_gradient("down.weight")
            # Another thread may have run in between; a mixture of two runs would be an error.
            assert any(np.array_equal(found, gradient) for gradient in gradients)

    in_threads(*(lambda number=number: run(number) for number in range(3)))


def test_stores_grow_and_threads_change_during_runs(core):
    problem = Classification(core)
    batch = problem.batch((400, 70, 1000))
    expected = problem.program.forward(*batch)
    started, done = threading.Event(), threading.Event()

    def run():
        while not done.is_set():
            assert problem.program.forward(*batch) == expected
            started.set()

    def disturb():
        try:
            assert started.wait(60)
            for number in range(100):
                core.set_threads(1 + number % 2)
                core.Graph(problem.parameters, True).parameter(f"more.{number}", (3, 3))
        finally:
            done.set()

    before = core.threads()
    try:
        in_threads(run, disturb)
    finally:
        core.set_threads(before)
    assert len(problem.parameters) == 104


def run_in_child(function):
    """What a function of a forked child returns as bytes; empty when it failed or took a minute."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)
            os.close(reader)
            os.write(writer, function())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("busy", [False, True])
def test_a_forked_child_computes_the_same(core, busy):
    problem = Classification(core)
    trainer = core.Trainer(problem.program)
    batch = problem.batch((300, 500, 400, 200), seed=3)
    program, rows = deep_program(core), np.ones((4000, 256), core.REAL)

    def step():
        loss = trainer.accumulate(*batch)
        trainer.update()
        return repr((loss, problem.program.parameter_gradient("down.weight").tobytes())).encode()

    problem.program.gradient(*batch)  # the parent's worker threads exist by now
    thread = threading.Thread(target=lambda: program.forward(len(rows), [None], [(rows, None)]))
    if busy:
        thread.start()
        time.sleep(0.02)
    answer = run_in_child(step)
    if busy:
        thread.join()
    assert answer == step()


# ---- Failing allocations ---------------------------------------------------------------------------------------------


def build_and_step(core):
    problem = Classification(core)
    graph = core.Graph(problem.parameters, True)
    taps = [graph.input(f"tap.{i}", core.SAMPLES, 4) for i in range(3)]
    early = graph.mtsa("early.", taps, taps[-1], hidden=2, out_features=4)
    late = graph.transformer_layer("late.", early, layer_weights(core), heads=2, intermediate=6)
    graph.output(late)
    graph.compile(True).describe()
    trainer = core.Trainer(problem.program)
    samples, offsets, inputs = problem.batch()
    problem.program.memory(samples, offsets)
    trainer.accumulate(samples, offsets, inputs)
    trainer.update()
    return problem.states()


def fails(core, number, once, function):
    """Whether the function runs out of memory when this allocation fails; it must not raise anything else."""
    core.fail_allocation(number, once)
    try:
        function()
    except MemoryError:
        return True
    finally:
        core.fail_allocation(None)
    return False


@pytest.mark.parametrize("once", [True, False])
def test_every_allocation_may_fail(core, once):
    core.fail_allocation(None)
    expected = build_and_step(core)
    count = core.allocations()
    assert count > 50
    live = settled(core)
    for number in range(1, count + 1):
        assert fails(core, number, once, lambda: build_and_step(core)), number
        assert core.live_allocations() == live, number
    found = build_and_step(core)
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


@pytest.mark.parametrize("once", [True, False])
def test_a_step_that_runs_out_of_memory_changes_no_weight(core, once):
    reference = build_and_step(core)
    problem = Classification(core)
    trainer = core.Trainer(problem.program)
    before = problem.states()
    live = None

    def step():
        trainer.accumulate(*problem.batch())
        trainer.update()

    number = 1
    while fails(core, number, once, step):
        assert all(np.array_equal(array, before[name]) for name, array in problem.states().items())
        assert trainer.steps == 0
        problem.program.describe()
        with pytest.raises(ValueError, match="no gradients yet"):
            problem.program.parameter_gradient("head.bias")
        number += 1
    assert number > 5
    assert trainer.steps == 1
    assert all(np.array_equal(array, reference[name]) for name, array in problem.states().items())
    live = settled(core)
    step()
    assert settled(core) == live


def test_counts_of_allocations(core):
    core.fail_allocation(None)
    live = settled(core)
    parameters = core.Parameters()
    assert core.allocations() == 1
    assert core.live_allocations() == live + 1
    del parameters
    assert settled(core) == live
    core.fail_allocation(2)
    core.Parameters()
    with pytest.raises(MemoryError, match="Parameters: "):
        core.Parameters()
    core.Parameters()
    core.fail_allocation(1, once=False)
    for _ in range(2):
        with pytest.raises(MemoryError):
            core.Parameters()
