"""The page and the pictures of the benchmarks, from made-up results."""

import dataclasses
import random

from benchmarks import compare, plots, report, suite
from benchmarks.measure import Timing
from benchmarks.problem import Problem

PROBLEM = Problem(batch=2, tokens=5, features=64, taps=3, hidden=8)


def outcome(names, seed=0):
    rng = random.Random(seed)
    timings = {name: Timing(tuple((1 + 2 * place) * rng.uniform(0.01, 0.011) for _ in range(4)))
               for place, name in enumerate(["sherl", *names])}
    agreements = {name: (1e-6, 1e-6, "early.gate", 1e-5) for name in names}
    return compare.Outcome(timings, agreements, {"JAX jit, first row": "ModuleNotFoundError: jax"}, share=0.7)


def results():
    peers = ["PyTorch", "PyTorch, first row", "PyTorch compiled, first row", "PyTorch bfloat16, first row"]
    axis = [suite.StepCase(f"batch {batch}", dataclasses.replace(PROBLEM, batch=batch), outcome(peers[:2], batch))
            for batch in (2, 4)]
    memory = [suite.MemoryCase(case.problem, {"sherl": 2**20, "PyTorch": case.problem.batch * 2**22}, 2**20)
              for case in axis]
    task = type("Task", (), {"name": "SST-2", "train": range(7)})
    tuning = suite.FineTuning(task, {"sherl, states kept": [[(1.0, 0.6), (2.0, 0.8)]],
                                     "PyTorch, states kept": [[(3.0, 0.6), (6.0, 0.8)]]},
                              {"PyTorch, states not kept": "ModuleNotFoundError: transformers"})
    case = suite.StepCase("MiniLM, first token", PROBLEM, outcome(peers))
    real = suite.StepCase("MRPC, MiniLM, first token", PROBLEM, outcome(peers[:2]))
    return suite.Results([case], [real], {"batch": axis}, memory, tuning, 90.0)


def test_page_names_what_was_not_measured():
    page = report.page(results(), suite.QUICK, "2026-01-01")
    assert "JAX jit, first row: ModuleNotFoundError: jax (MiniLM, first token" in page
    assert "PyTorch, states not kept, fine-tuning: ModuleNotFoundError: transformers" in page
    assert "| PyTorch, states kept | 6.0 | 6.0 | 3.00 | 80.0 % |" in page


def test_pictures_are_those_of_the_page(tmp_path):
    made = results()
    plots.draw(made, tmp_path / "plots")
    page = report.page(made, suite.QUICK, "2026-01-01")
    files = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert files and all(f"(plots/{name})" in page for name in files) and page.count("![") == len(files)
