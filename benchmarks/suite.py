"""The cases of the suite, and running them: what is measured, at which sizes, how often."""

import dataclasses
import time

from benchmarks import fine_tune, lengths, measure, resnet, seq2seq, sweeps, two_towers
from benchmarks.compare import SHERL, compare, memory
from benchmarks.problem import Problem
from benchmarks.sides import Sherl, eager, everyone

MINILM = Problem(features=384, taps=6, hidden=48)
BERT_BASE = Problem(features=768, taps=12, hidden=96)
BERT_LARGE = Problem(features=1024, taps=24, hidden=128)
MODELS = {"MiniLM": MINILM, "BERT-base": BERT_BASE, "BERT-large": BERT_LARGE}
TASK_TITLES = {"mrpc": "MRPC", "sst-2": "SST-2"}
HEAD_TITLES = {"first": "first token", "mean": "mean"}
MEMORY_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much a run measures.

    Attributes
    ----------
    models : dict of str to int
        Whose steps are compared with all peers, and in how many rounds.
    heads, tasks : tuple of str
        Rows that the head reads, and texts whose lengths are taken, each with each.
    tokens : int
        Of each sample there.
    text_repeats, axis_repeats : int
        Rounds of each comparison on real lengths, and of each on an axis.
    base : Problem
        From which one size at a time is changed.
    axes : dict of str to tuple of int
        The sizes tried.
    memory : Problem
        Whose batch is changed for peak memory.
    memory_batches : tuple of int
    peer_batch : int
        Up to which the peers' memory is measured too: theirs grows with it.
    sweep : Problem
        Of which networks are trained in sweeps, its batch being all samples; with the lengths of each task.
    sweep_counts : dict of str to tuple of int
        By head the networks of a sweep, 1 among them.
    sweep_repeats : int
    train_rows, dev_rows, epochs, fine_tunings : int
        Of fine-tuning, and how often it is done.
    architectures : tuple of architecture.Architecture
        Networks of other kinds.
    architecture_repeats : int
    """

    models: dict
    heads: tuple
    tasks: tuple
    tokens: int
    text_repeats: int
    axis_repeats: int
    base: Problem
    axes: dict
    memory: Problem
    memory_batches: tuple
    peer_batch: int
    sweep: Problem
    sweep_counts: dict
    sweep_repeats: int
    train_rows: int
    dev_rows: int
    epochs: int
    fine_tunings: int
    architectures: tuple
    architecture_repeats: int


FULL = Plan(
    models={"MiniLM": 9, "BERT-base": 7, "BERT-large": 3}, heads=tuple(HEAD_TITLES), tasks=tuple(TASK_TITLES),
    tokens=128, text_repeats=9, axis_repeats=3, base=BERT_BASE,
    axes={"batch": (8, 32, 64), "tokens": (32, 128, 256), "taps": (3, 12, 24), "hidden": (24, 96, 192),
          "threads": (1, 2)},
    memory=BERT_BASE, memory_batches=(32, 64, 128, 1024), peer_batch=128,
    sweep=dataclasses.replace(MINILM, batch=128), sweep_counts={"first": (1, 5, 10), "mean": (1, 10)},
    sweep_repeats=3,
    train_rows=2000, dev_rows=872, epochs=4, fine_tunings=1,
    architectures=(seq2seq.T5_BASE, resnet.RESNET_50, two_towers.VIT_AND_MINILM), architecture_repeats=5)

QUICK = Plan(
    models={"MiniLM": 5}, heads=("first",), tasks=("mrpc",), tokens=32, text_repeats=5, axis_repeats=3,
    base=dataclasses.replace(MINILM, tokens=64), axes={"batch": (8, 32)},
    memory=dataclasses.replace(MINILM, tokens=32), memory_batches=(32, 128), peer_batch=32,
    sweep=dataclasses.replace(MINILM, batch=64), sweep_counts={"first": (1, 3)}, sweep_repeats=2,
    train_rows=160, dev_rows=100, epochs=2, fine_tunings=1,
    architectures=(
        seq2seq.T5_BASE.resized(batch=4, tokens=24, target_tokens=8, features=128, taps=3, decoder_taps=3, hidden=16,
                                words=1000),
        resnet.RESNET_50.resized(batch=8, pixels=64, features=256, hidden=64, classes=10),
        two_towers.VIT_AND_MINILM.resized(batch=8, image_tokens=17, image_features=128, image_taps=3, text_tokens=8,
                                          text_features=64, text_taps=3, channels=32)),
    architecture_repeats=3)


@dataclasses.dataclass(frozen=True)
class StepCase:
    """One comparison of a step: what it is called, its sizes, its outcome."""

    title: str
    problem: Problem
    outcome: object


@dataclasses.dataclass(frozen=True)
class MemoryCase:
    """Bytes by side at one batch, and those that sherl's memory plan named."""

    problem: Problem
    growths: dict
    planned: int


@dataclasses.dataclass(frozen=True)
class SweepCase:
    """Jobs of `sweeps` at one head and the lengths of one task: a timing by what they do and their networks."""

    title: str
    problem: Problem
    timings: dict


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """Courses by side, one a repetition: for each epoch seconds since the start and dev accuracy."""

    task: object
    courses: dict
    unmeasured: dict


@dataclasses.dataclass(frozen=True)
class ArchitectureCase:
    """One network of another kind: what it is called, its sizes, its outcome, and bytes by side."""

    title: str
    problem: object
    outcome: object
    growths: dict


@dataclasses.dataclass(frozen=True)
class Results:
    """All that a run measured."""

    models: list
    texts: list
    axes: dict
    memory: list
    sweeps: list
    fine_tuning: FineTuning
    architectures: list
    seconds: float


def run(plan, glue=None, say=print):
    """Measure everything that a plan names.

    Parameters
    ----------
    plan : Plan
    glue : str or None
        Folder of the GLUE benchmark. Without it the shipped table of lengths is used, and fine-tuning takes the
        sentences of sherl's demo.
    say : callable
        Told what is measured next.

    Returns
    -------
    Results
    """
    start = time.perf_counter()
    counts = lengths.shipped() if glue is None else lengths.counted(glue)
    models, texts = [], []
    for name, repeats in plan.models.items():
        for head in plan.heads:
            problem = dataclasses.replace(MODELS[name], head=head, tokens=plan.tokens)
            models.append(step_case(f"{name}, {HEAD_TITLES[head]}", problem, everyone, repeats, say, rate=True))
    model = model_of(plan.base)
    for task in plan.tasks:
        for head in plan.heads:
            problem = dataclasses.replace(plan.base, head=head, lengths=lengths.drawn(counts[task], plan.base.batch))
            texts.append(step_case(f"{TASK_TITLES[task]}, {model}, {HEAD_TITLES[head]}", problem, eager,
                                   plan.text_repeats, say, rate=True))
    axes, done = {}, {}  # the sizes that are changed from lie on every axis, and are measured once
    for axis, values in plan.axes.items():
        problems = [dataclasses.replace(plan.base, **{axis: value}) for value in values]
        for problem, value in zip(problems, values):
            if problem not in done:
                done[problem] = step_case(f"{axis} {value}", problem, eager, plan.axis_repeats, say)
        axes[axis] = [done[problem] for problem in problems]
    peaks = [memory_case(dataclasses.replace(plan.memory, batch=batch), batch <= plan.peer_batch, say)
             for batch in plan.memory_batches]
    swept = [sweep_case(plan, head, task, counts[task], say) for head in plan.sweep_counts for task in plan.tasks]
    tuned = fine_tunings(plan, glue, say)
    others = architectures(plan, say)
    return Results(models, texts, axes, peaks, swept, tuned, others, time.perf_counter() - start)


def model_of(problem):
    """Name of the model whose sizes a problem has."""
    return next(name for name, sizes in MODELS.items() if sizes.features == problem.features)


def step_case(title, problem, peers, repeats, say, rate=False):
    say(f"step: {title}")
    return StepCase(title, problem, compare(problem, peers(problem), repeats, rate))


def memory_case(problem, with_peers, say):
    say(f"memory: batch {problem.batch}")
    with measure.Side(Sherl, problem) as side:
        growths, planned = {SHERL: side.growth(MEMORY_STEPS)}, side.call("planned_growth")
    for name, peer in (eager(problem) if with_peers else {}).items():
        try:
            growths[name] = memory(peer.build, problem, peer.arguments, MEMORY_STEPS)
        except measure.SideError:  # the steps above name the reason
            continue
    return MemoryCase(problem, growths, planned)


def sweep_case(plan, head, task, counts, say):
    title = f"{TASK_TITLES[task]}, {HEAD_TITLES[head]}"
    say(f"sweeps: {title}")
    problem = dataclasses.replace(plan.sweep, head=head, lengths=lengths.drawn(counts, plan.sweep.batch))
    return SweepCase(title, problem, sweeps.run(problem, plan.sweep_counts[head], plan.sweep_repeats))


def fine_tunings(plan, glue, say):
    """Fine-tune with every side in turn, each time from a new process."""
    task = fine_tune.load_task(glue, plan.train_rows, plan.dev_rows)
    courses, unmeasured = {name: [] for name in fine_tune.SIDES}, {}
    for _ in range(plan.fine_tunings):
        for name, (build, keep) in fine_tune.SIDES.items():
            if name in unmeasured:
                continue
            say(f"fine-tuning: {name}")
            try:
                with measure.Side(build, task, keep, plan.base.threads) as side:
                    courses[name].append(side.call("run", plan.epochs))
            except measure.SideError as error:
                if build is fine_tune.Sherl:
                    raise
                unmeasured[name] = str(error).strip().splitlines()[-1]
    return FineTuning(task, {name: runs for name, runs in courses.items() if name not in unmeasured}, unmeasured)


def architectures(plan, say=print):
    """Measure the networks of other kinds."""
    cases = []
    for made in plan.architectures:
        say(f"architecture: {made.title}")
        outcome, growths = made.measured(plan.architecture_repeats, MEMORY_STEPS)
        cases.append(ArchitectureCase(made.title, made.problem, outcome, growths))
    return cases
