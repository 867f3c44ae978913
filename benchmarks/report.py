"""The results of a run as a page of Markdown."""

import statistics

from benchmarks import fine_tune, flops, measure, suite, sweeps
from benchmarks.aims import aims
from benchmarks.compare import SHERL

PACKAGES = ("numpy", "torch", "jax", "transformers", "sherl")
MEBIBYTE = 2**20
TARGET_SLACK = 0.01  # by how much less than the least final dev accuracy of all sides the target lies


def table(header, rows):
    """Lines of a Markdown table; columns after the first are aligned to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def milliseconds(seconds):
    return f"{1e3 * seconds:.1f}"


def aim_table(made):
    rows = []
    for aim in made:
        limit = f"{'≥' if aim.at_least else '≤'} {aim.limit:g}"
        if aim.measured is None:
            rows.append([aim.what, limit, "-", "not measured"])
        else:
            note = f" ({aim.note})" if aim.note else ""
            rows.append([aim.what, limit, f"{aim.measured:.3g}{note}", "met" if aim.met else "not met"])
    return table(["what", "aim", "measured", ""], rows)


def step_table(cases):
    """A line for each side of each case."""
    rows = []
    for case in cases:
        mine = case.outcome.timings[SHERL]
        for name, timing in case.outcome.timings.items():
            agreement = case.outcome.agreements.get(name)
            rows.append([case.title if name == SHERL else "", name, *map(milliseconds, (
                timing.minimum, timing.median, timing.spread)),
                "" if name == SHERL else f"{timing.ratio(mine):.2f}",
                "" if name == SHERL else f"{timing.minimum / mine.minimum:.2f}",
                "" if name == SHERL else f"{agreement[1]:.0e}"])
    return table(["case", "side", "minimum, ms", "median, ms", "spread, ms", "ratio to sherl", "of minima",
                  "gradients differ by"], rows)


def rate_table(cases):
    """Operations needed, and how fast they were done beside bare matrix products."""
    rows = [[case.title, f"{flops.step(case.problem) / 1e9:.1f}",
             f"{flops.step(case.problem) / case.outcome.timings[SHERL].median / 1e9:.0f}",
             f"{100 * case.outcome.share:.0f} %", f"{case.outcome.roofline:.2f}"] for case in cases]
    return table(["case", "needed, GFLOP", "done, GFLOP/s", "share of the rate of matrix products",
                  "times the roofline"], rows)


def axis_table(axis, cases):
    names = list(dict.fromkeys(name for case in cases for name in case.outcome.timings))
    rows = []
    for case in cases:
        timings = case.outcome.timings
        rows.append([str(getattr(case.problem, axis)),
                     *(milliseconds(timings[name].median) if name in timings else "" for name in names),
                     *(f"{timings[name].ratio(timings[SHERL]):.2f}" if name in timings else "" for name in names[1:])])
    return table([axis, *(f"{name}, ms" for name in names), *(f"{name} / sherl" for name in names[1:])], rows)


def memory_table(cases):
    names = list(dict.fromkeys(name for case in cases for name in case.growths))
    rows = [[str(case.problem.batch),
             *(f"{case.growths[name] / MEBIBYTE:.1f}" if name in case.growths else "" for name in names),
             f"{case.planned / MEBIBYTE:.1f}"] for case in cases]
    return table(["batch", *(f"{name}, MiB" for name in names), "sherl's plan, MiB"], rows)


def ratios(values):
    return [f"{statistics.median(values):.2f}", f"{min(values):.2f}", f"{measure.spread(values):.2f}"]


def sweep_table(cases):
    """Seconds of each job, and its ratios: median, least and spread of the rounds."""
    rows = []
    for case in cases:
        timings, title = case.timings, case.title
        for kind, count in timings:
            if kind != sweeps.SWEEP:
                continue
            rows.append([title, str(count), f"{timings[sweeps.EXTRACTION, 0].median:.2f}",
                         f"{timings[sweeps.FITS, count].median:.2f}", f"{timings[kind, count].median:.2f}",
                         *ratios(sweeps.beside_fits(timings, count)), *ratios(sweeps.from_features(timings, count)),
                         *ratios(sweeps.from_text(timings, count))])
            title = ""
    measures = [f"{what}{part}" for what in ("sweep / fits", "sweep / one fit", "from text / one from text")
                for part in ("", ", least", ", spread")]
    return table(["lengths, head", "networks", "extraction, s", "fits, s", "sweep, s", *measures], rows)


def sweep_limit(cases):
    """What a sweep can save, with the figures of the most networks."""
    parts = []
    for case in cases:
        count = max(count for _, count in case.timings)
        parts.append(f"{case.title}: {statistics.median(sweeps.from_features(case.timings, count)):.1f} and "
                     f"{statistics.median(sweeps.from_text(case.timings, count)):.1f} for {count}")
    return ("The products of down maps and late layer are each network's own, so from stored features a sweep of K "
            "networks takes about K times one fit. What is shared is reading the texts: from text K networks take "
            "(E + K F) / (E + F) times one, with extraction E and one fit F, which nears K where a fit is long beside "
            "extraction. Times one, from features and from text: " + "; ".join(parts) + ".")


def memory_summary(cases):
    """What the first and the last batch say."""
    least, most = cases[0], cases[-1]
    change = 100 * (most.growths[SHERL] / least.growths[SHERL] - 1)
    parts = [f"From batch {least.problem.batch} to {most.problem.batch} sherl's peak changes by {change:+.1f} %."]
    parts += [f"At batch {least.problem.batch} {name} takes {taken / least.growths[SHERL]:.1f} times as much."
              for name, taken in least.growths.items() if name != SHERL]
    return " ".join(parts)


def target_score(tuning):
    """Dev accuracy that every side reached, a little below the least of their best."""
    least = min(max(score for _, score in course) for courses in tuning.courses.values() for course in courses)
    return least - TARGET_SLACK


def fastest(courses, score):
    """The course that reached a score first."""
    return min(courses, key=lambda course: fine_tune.seconds_to(course, score))


def fine_tuning_table(tuning):
    """Seconds to the score that every side reached, and the same relative to sherl with states treated alike."""
    score = target_score(tuning)
    seconds = {name: [fine_tune.seconds_to(course, score) for course in courses]
               for name, courses in tuning.courses.items()}
    rows = []
    for name, values in seconds.items():
        twin = seconds[name.replace("PyTorch", SHERL)]
        last = max(course[-1][1] for course in tuning.courses[name])
        rows.append([name, f"{min(values):.1f}", f"{max(values):.1f}", f"{min(values) / min(twin):.2f}",
                     f"{100 * last:.1f} %"])
    return table(["side", "least, s", "most, s", "ratio to sherl", "accuracy at the end"], rows)


def reasons(cases):
    """Lines that name every peer of some cases which could not be measured, and why."""
    titles = {}
    for case in cases:
        for name, reason in case.outcome.unmeasured.items():
            titles.setdefault((name, reason), []).append(case.title)
    return [f"- {name}: {reason} ({', '.join(where)})" for (name, reason), where in titles.items()]


def unmeasured(results):
    """The same of a whole run."""
    lines = reasons([*results.models, *results.texts, *(case for cases in results.axes.values() for case in cases),
                     *results.architectures])
    lines += [f"- {name}, fine-tuning: {reason}" for name, reason in results.fine_tuning.unmeasured.items()]
    return lines or ["Every peer was measured."]


def installed(packages):
    """Those of some packages that can be described."""
    found = []
    for name in packages:
        try:
            measure.machine([name])
        except ModuleNotFoundError:
            continue
        found.append(name)
    return found


def growth_table(cases):
    """Memory of each side of the networks of other kinds."""
    rows = []
    for case in cases:
        for name, bytes_taken in case.growths.items():
            times = "" if name == SHERL else f"{bytes_taken / max(case.growths[SHERL], 1):.1f}"
            rows.append([case.title if name == SHERL else "", name, f"{bytes_taken / MEBIBYTE:.1f}", times])
    return table(["case", "side", "peak above inputs and weights, MiB", "ratio to sherl"], rows)


def architecture_lines(cases):
    """The networks of other kinds: sizes, times, memory."""
    return [*(f"- {case.title}: {case.problem.described}." for case in cases), "",
            "*Channels last*: images in memory as sherl takes them. *First row*: the late layer computes only the row "
            "that is read.", "", *step_table(cases), *growth_table(cases)]


def measured_line(day, seconds):
    from sherl import _core

    return (f"Measured on {day} in {seconds / 60:.1f} minutes on this machine: {measure.machine(installed(PACKAGES))}; "
            f"sherl's kernels are those for {_core.config()['instruction_set']}.")


def architecture_page(cases, seconds, day):
    """A page of these alone."""
    return "\n".join([
        "# Results: other architectures", "", measured_line(day, seconds), "",
        "Made by `python -m benchmarks --only architectures`; [README.md](README.md) says how everything is measured.",
        "", *architecture_lines(cases), *reasons(cases)])


def page(results, plan, day):
    """The whole page."""
    base, tuning = plan.base, results.fine_tuning
    sizes = (f"{base.batch} samples of {base.tokens} tokens, {base.taps} taps of {base.features} channels, "
             f"{base.hidden} hidden channels, {base.threads} threads")
    first, swept = results.models[0].problem, results.sweeps[0].problem
    lines = [
        "# Results", "",
        measured_line(day, results.seconds), "",
        "Absolute times hold for that machine alone; ratios are medians over rounds in which the sides took turns, "
        "above 1 where sherl is faster. [README.md](README.md) says how everything is measured.", "",
        "## Aims", "", "The roofline is the time of the needed operations at the rate of bare matrix products; peers "
        "may be in bfloat16, sherl is in float32 unless named otherwise.", "",
        *aim_table(aims(results, suite.model_of(base))),
        "## Not measured", "", *unmeasured(results), "",
        "## One training step", "",
        f"{first.batch} samples of {first.tokens} tokens, {first.threads} threads. A head reads the first token of a "
        "sample or the mean of all. *First row*: the late layer computes only the row that is read; other peers "
        "compute all rows. *Bfloat16* is sherl's late route, or PyTorch's autocast.", "",
        "![Ratios to sherl](plots/steps.png)", "", *step_table(results.models),
        "## Batches with the lengths of real texts", "",
        f"{base.batch} samples with lengths drawn from those of the task's training texts; the peers pad them to the "
        "longest.", "", *step_table(results.texts),
        "## Other architectures", "", *architecture_lines(results.architectures),
        "## Work done beside what the machine can do", "",
        "Operations that the step needs ([flops.py](flops.py)) over its time, as a share of the rate of bare "
        "matrix products of a tile's size, one a thread, timed in turn with it, by the same OpenBLAS kernels. Times "
        "the roofline: the step's time over that of the needed operations at this rate.", "",
        "![Share of the rate of matrix products](plots/rate.png)", "", *rate_table([*results.models, *results.texts]),
        "## Time against sizes", "", f"From {sizes}, head on the first token, one size changed at a time.", "",
    ]
    for axis, cases in results.axes.items():
        lines += [f"### {axis.capitalize()}", "", f"![Time against {axis}](plots/time_{axis}.png)", "",
                  *axis_table(axis, cases)]
    sample = plan.memory
    lines += [
        "## Peak memory", "",
        f"Growth above inputs and weights during the first steps; {sample.tokens} tokens, {sample.taps} taps of "
        f"{sample.features} channels.", "", "![Memory against batch](plots/memory.png)", "",
        *memory_table(results.memory), memory_summary(results.memory), "",
        "## Sweeps", "",
        f"{swept.batch} samples with the lengths of a task, {swept.taps} taps of {swept.features} channels as float16, "
        f"{swept.hidden} hidden channels, {sweeps.EPOCHS} epochs: `sherl.sweep` of networks that differ in seed and "
        "learning rate, as many fits, and the extraction of the features by MiniLM from token ids, all timed in turn. "
        "*From text*: extraction and sweep, as multiples of extraction and one fit.", "",
        sweep_limit(results.sweeps), "", "![Time against networks](plots/sweeps.png)", "",
        *sweep_table(results.sweeps),
        "## Whole fine-tuning", "",
        f"MiniLM on {len(tuning.task.train)} sentences of {tuning.task.name}, {plan.epochs} epochs, backbone included: "
        f"seconds to {100 * target_score(tuning):.1f} % dev accuracy, which every side reached.", "",
        "![Accuracy against time](plots/fine_tuning.png)", "", *fine_tuning_table(tuning),
    ]
    return "\n".join(lines)
