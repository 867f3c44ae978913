"""The page and the pictures of the benchmarks, from made-up results."""

import dataclasses
import random

import pytest
from benchmarks import aims, compare, plots, report, suite, sweeps
from benchmarks.measure import Timing
from benchmarks.problem import Problem

PROBLEM = Problem(batch=2, tokens=5, features=64, taps=3, hidden=8)


def outcome(names, seed=0):
    rng = random.Random(seed)
    timings = {name: Timing(tuple((1 + 2 * place) * rng.uniform(0.01, 0.011) for _ in range(4)))
               for place, name in enumerate(["sherl", *names])}
    agreements = dict.fromkeys(names, (1e-06, 1e-06, "early.gate", 1e-05))
    return compare.Outcome(timings, agreements, {"JAX jit, first row": "ModuleNotFoundError: jax"}, share=0.7)


def results():
    peers = ["sherl bfloat16", "PyTorch", "PyTorch, first row", "PyTorch compiled, first row",
             "PyTorch bfloat16, first row"]
    axis = [suite.StepCase(f"batch {batch}", dataclasses.replace(PROBLEM, batch=batch), outcome(peers[1:3], batch))
            for batch in (2, 4)]
    memory = [suite.MemoryCase(case.problem, {"sherl": 2**20, "PyTorch": case.problem.batch * 2**22}, 2**20)
              for case in axis]
    task = type("Task", (), {"name": "SST-2", "train": range(7)})
    tuning = suite.FineTuning(task, {"sherl, states kept": [[(1.0, 0.6), (2.0, 0.8)]],
                                     "PyTorch, states kept": [[(3.0, 0.6), (6.0, 0.8)]]},
                              {"PyTorch, states not kept": "ModuleNotFoundError: transformers"})
    case = suite.StepCase("MiniLM, first token", PROBLEM, outcome(peers))
    real = suite.StepCase("MRPC, MiniLM, first token", PROBLEM, outcome(peers[1:3]))
    timings = {(sweeps.EXTRACTION, 0): Timing((2.0, 2.0)), (sweeps.FITS, 1): Timing((1.0, 1.0)),
               (sweeps.SWEEP, 1): Timing((1.0, 1.0)), (sweeps.FITS, 10): Timing((10.0, 11.0)),
               (sweeps.SWEEP, 10): Timing((10.0, 10.0))}
    swept = suite.SweepCase("SST-2, first token", PROBLEM, timings)
    return suite.Results([case], [real], {"batch": axis}, memory, [swept], tuning, architectures(), 90.0)


def architectures():
    return [suite.ArchitectureCase(made.title, made.problem, outcome(list(made.peers)),
                                   {"sherl": 2**20} | dict.fromkeys(made.peers, 3 * 2**20))
            for made in suite.QUICK.architectures]


def test_page_names_what_was_not_measured():
    page = report.page(results(), suite.QUICK, "2026-01-01")
    assert "JAX jit, first row: ModuleNotFoundError: jax (MiniLM, first token" in page
    assert "PyTorch, states not kept, fine-tuning: ModuleNotFoundError: transformers" in page
    assert "not measured" in page and "| SST-2, first token | 1 | 2.00 | 1.00 | 1.00 |" in page
    assert "| PyTorch, states kept | 6.0 | 6.0 | 3.00 | 80.0 % |" in page


def test_other_architectures_have_a_section_and_a_page_of_their_own():
    cases = architectures()
    whole = report.page(results(), suite.QUICK, "2026-01-01")
    alone = report.architecture_page(cases, 90, "2026-01-01")
    section = "\n".join(report.architecture_lines(cases))
    assert "## Other architectures\n\n" + section in whole and section in alone
    assert "- ResNet-50: 8 pictures of 64 pixels a side" in section
    assert "|  | PyTorch, channels last | 3.0 | 3.0 |" in section
    assert {case.title for case in cases} == {made.title for made in suite.FULL.architectures}


def test_pictures_are_those_of_the_page(tmp_path):
    made = results()
    plots.draw(made, tmp_path / "plots")
    page = report.page(made, suite.QUICK, "2026-01-01")
    files = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert files and all(f"(plots/{name})" in page for name in files) and page.count("![") == len(files)


def test_aims_say_what_was_measured_and_whether_they_are_met():
    made = {aim.what: aim for aim in aims.aims(results(), "MiniLM")}
    eager = made["step of MiniLM size, first token: PyTorch eager / sherl"]
    assert eager.measured == pytest.approx(5, rel=0.1) and not eager.met
    assert "| step of MiniLM size, mean: PyTorch eager / sherl | ≥ 1.25 | - | not measured |" in report.aim_table(
        made.values())
    fastest = made["step of MiniLM size, first token: fastest peer that computes the first row alone / sherl"]
    assert fastest.note == "PyTorch, first row" and fastest.measured == pytest.approx(7, rel=0.1) and fastest.met
    assert made["step of MiniLM size, first token: sherl / roofline"].measured == pytest.approx(1 / 0.7)
    memory = made["peak memory, batch 2: sherl / PyTorch eager"]
    assert memory.measured == 1 / 8 and not memory.met
    swept = made["10 networks from text / one, lengths of SST-2, first token"]
    assert swept.measured == 4 and swept.met


def test_ratios_of_sweeps_by_hand():
    timings = results().sweeps[0].timings
    assert sweeps.from_features(timings, 10) == (10, 10) and sweeps.from_features(timings, 10, sweeps.FITS) == (10, 11)
    assert sweeps.beside_fits(timings, 10) == (1, 10 / 11) and sweeps.from_text(timings, 10) == (4, 4)
