"""Memory as a contract: what training takes is what was planned, and a budget is kept or refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
from small import mask_of, network, problem, same_bits

import sherl
from sherl.checks import byte_count

MIB = 2**20
# Code pages that the first steps touch, Python's own objects and what the C library keeps: 0.5 to 1.5 MiB were seen.
SLACK = 2 * MIB

# Prints, in a fresh process, what the resident memory grew by over some steps, and what was planned.
_MEASURE = """
import ctypes, json, sys
import numpy as np
import sherl

given = json.loads(sys.argv[1])
sherl.set_num_threads(given["threads"])
features, inner, tokens = given["features"], given["features"] * 4, given["tokens"]
rng = np.random.default_rng(0)

def draw(*shape):
    return rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))

weights = {}
for name, rows, columns in (("attention.self.query", features, features), ("attention.self.key", features, features),
                            ("attention.self.value", features, features),
                            ("attention.output.dense", features, features),
                            ("intermediate.dense", inner, features), ("output.dense", features, inner)):
    weights[name + ".weight"], weights[name + ".bias"] = draw(rows, columns), draw(rows)
for name in ("attention.output.LayerNorm", "output.LayerNorm"):
    weights[name + ".weight"], weights[name + ".bias"] = 1 + draw(features), draw(features)
net = sherl.SideNetwork(sherl.MTSA(3, features, 48), [sherl.TransformerLayer.from_bert(weights, 8)],
                        sherl.Classifier(features, 2, pool="mean"))

def resident():
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

batches = [([draw(size, tokens, features) for _ in range(3)], rng.integers(0, 2, size)) for size in given["batches"]]
budget = given.get("budget")
plan = net.memory_plan(batch_size=max(given["batches"]), tokens=tokens, memory_budget=budget)
before = resident()
step = net.stepper(memory_budget=budget)
grown = []
for _ in range(given.get("rounds", 1)):
    for taps, labels in batches:
        step(taps, labels)
        grown.append(resident() - before)
new = plan.total - plan.frozen_weights - plan.parameters
print(json.dumps({"grown": grown, "planned": new, "held": new - plan.blas + plan.parameters, "blas": plan.blas}))
"""


def measure(**given):
    run = subprocess.run([sys.executable, "-c", _MEASURE, json.dumps(given)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize(("features", "batch", "threads"), [(256, 64, 1), (256, 64, 2), (768, 32, 2)])
def test_growth_is_within_the_plan(features, batch, threads):
    seen = measure(features=features, tokens=64, batches=[batch], threads=threads, rounds=2)
    assert max(seen["grown"]) < 1.05 * seen["planned"] + SLACK
    assert max(seen["grown"]) > 0.8 * (seen["planned"] - seen["blas"])


def test_no_growth_over_many_steps():
    seen = measure(features=32, tokens=8, batches=[16], threads=2, rounds=1000)
    assert seen["grown"][-1] - seen["grown"][20] < MIB / 2


def test_growth_does_not_depend_on_the_batch():
    small, large = (
        max(measure(features=64, tokens=128, batches=[batch], threads=2)["grown"]) for batch in (32, 1024)
    )
    assert large < 1.05 * small + MIB / 2


def test_growth_is_within_a_budget():
    budget = 5 * MIB
    seen = measure(features=384, tokens=64, batches=[8, 32, 4], threads=2, rounds=2, budget=budget)
    assert seen["held"] <= budget
    assert max(seen["grown"]) < 1.05 * (budget + seen["blas"]) + SLACK
    assert seen["planned"] < 0.6 * measure(features=384, tokens=64, batches=[32], threads=2)["planned"]


def least_of(act):
    """Return the least budget that the refusal of one byte names."""
    with pytest.raises(ValueError, match="memory_budget must be at least [0-9]+ bytes") as refusal:
        act(1)
    return int(str(refusal.value).split("at least ")[1].split(" bytes")[0])


def test_budget_is_kept_or_the_least_is_named():
    taps, labels, mask = problem(samples=300)
    net = network()
    acts = {
        "plan": lambda budget: net.memory_plan(batch_size=64, tokens=7, memory_budget=budget),
        "fit": lambda budget: net.fit(taps, labels, mask, epochs=1, batch_size=64, progress=False,
                                      validation=(taps, labels), memory_budget=budget),
        "stepper": lambda budget: net.stepper(memory_budget=budget)(taps, labels, mask),
        "forward": lambda budget: net.forward(taps, memory_budget=budget),
        "score": lambda budget: net.score(taps, labels, memory_budget=budget),
    }
    for name, act in acts.items():
        before = net.state_dict()
        least = least_of(act)
        with pytest.raises(ValueError, match=f"at least {least} bytes"):
            act(least - 1)
        assert all(same_bits(before[key], value) for key, value in net.state_dict().items()), name
        act(least)
        held = [program.nbytes for program in net._programs._compiled.values()]
        parameters = 4 * net.num_parameters()
        assert parameters + sum(held) <= least, name
        for budget in (least + 4096, 2 * least, 100 * least):
            plan = acts["plan"](max(budget, least_of(acts["plan"])))
            assert plan.total - plan.frozen_weights - plan.blas <= max(budget, least_of(acts["plan"]))


def test_a_plan_that_grew_does_not_pass_the_budget():
    taps, labels, _ = problem(samples=400)
    net = network()
    net.stepper()(taps, labels)
    step = net.stepper(memory_budget=least_of(lambda budget: net.stepper(memory_budget=budget)(taps, labels)) + 60_000)
    for count in (3, 400, 50, 400, 1):
        step([tap[:count] for tap in taps], labels[:count])
        held = sum(program.nbytes for program in net._programs._compiled.values())
        assert 4 * net.num_parameters() + step.trainer.nbytes + held <= step.budget.size
    net.stepper()(taps, labels)
    assert sum(program.nbytes for program in net._programs._compiled.values()) > step.budget.size


def test_same_bits_on_any_number_of_threads_under_a_budget(keep_threads):
    taps, labels, mask = problem(samples=300)
    weights = []
    for threads in (1, 2):
        sherl.set_num_threads(threads)
        net = network(dropout=0.1)
        net.fit(taps, labels, mask, epochs=2, batch_size=128, progress=False, memory_budget="300 KB")
        weights.append(net.state_dict())
    assert all(same_bits(weights[0][name], weights[1][name]) for name in weights[0])


def test_results_under_a_budget_are_equal_to_rounding():
    taps, labels, mask = problem(samples=100)
    least = least_of(lambda budget: network().stepper(memory_budget=budget)(taps, labels, mask))
    free, bounded = network(), network()
    assert free.stepper()(taps, labels, mask) == pytest.approx(
        bounded.stepper(memory_budget=least)(taps, labels, mask), rel=1e-5
    )
    np.testing.assert_allclose(bounded.forward(taps, mask, memory_budget=least), free.forward(taps, mask), atol=5e-3)


def test_samples_of_other_lengths_in_one_budget():
    taps, labels, _ = problem(samples=60, tokens=9)
    mask = mask_of(60, 9, seed=4)
    lengths = mask.sum(axis=1)
    net = network()
    history = net.fit(taps, labels, mask, epochs=1, batch_size=7, progress=False, memory_budget="150 KiB")
    assert len(history.step_losses) == 9 and lengths.max() > lengths.min()


@pytest.mark.parametrize(("text", "size"), [
    ("256 MiB", 256 * 2**20), ("1.5 GB", 1_500_000_000), ("1.5gib", 3 * 2**29), (" 7 b ", 7), ("2TB", 2 * 10**12),
    (12345, 12345), (np.int64(9), 9), (None, None),
])
def test_byte_counts(text, size):
    assert byte_count(text, "memory_budget") == size


@pytest.mark.parametrize(("value", "error", "sentence"), [
    ("much", ValueError, "memory_budget must be like '256 MiB' or '1.5 GB'"),
    ("-1 MiB", ValueError, "memory_budget must be like"),
    ("5", ValueError, "memory_budget must be like"),
    ("1 iB", ValueError, "memory_budget must be like"),
    ("0.2 B", ValueError, "memory_budget must be 1 or more, got 0"),
    (0, ValueError, "memory_budget must be 1 or more, got 0"),
    (True, TypeError, "memory_budget must be a number of bytes or text"),
    (1.5, TypeError, "memory_budget must be a number of bytes or text"),
])
def test_bad_byte_counts(value, error, sentence):
    with pytest.raises(error, match=sentence):
        network().memory_plan(memory_budget=value)


def test_core_refuses_a_run_over_its_budget():
    taps, labels, _ = problem(samples=5)
    net = network()
    program = net._programs.output()
    features = sherl.Features.from_arrays(taps)
    batch = features.batch()
    least = program.least_memory(batch.samples, batch.spaces)
    sink = np.zeros((5, 2), np.float32)
    program.set_memory_budget(least - 1)
    with pytest.raises(ValueError, match="the memory budget is smaller than the least"):
        program.forward(batch.samples, batch.spaces, features.sources(batch), [(sink, None)])
    assert not sink.any() and program.nbytes == 0
    program.set_memory_budget(least)
    program.forward(batch.samples, batch.spaces, features.sources(batch), [(sink, None)])
    assert sink.any() and 0 < program.nbytes <= least
    program.release_workspace()
    assert program.nbytes == 0


def test_gradients_that_were_released_make_no_step():
    taps, labels, _ = problem(samples=5)
    net = network()
    step = net.stepper()
    step(taps, labels)
    features = sherl.Features.from_arrays(taps)
    inputs = [*features.sources(features.batch()), (labels.reshape(-1, 1), None), (np.ones((5, 1), np.float32), None)]
    step.trainer.accumulate(5, features.batch().spaces, inputs)
    step.program.release_workspace()
    with pytest.raises(ValueError, match="accumulate must come first"):
        step.trainer.update()
