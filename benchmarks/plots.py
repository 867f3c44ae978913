"""The results of a run as pictures, one message each."""

import statistics

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot, ticker

from benchmarks import sweeps as sweep_jobs
from benchmarks.compare import SHERL
from benchmarks.report import MEBIBYTE, fastest, target_score
from benchmarks.sides import BFLOAT16, FIRST_ROW

# Colours that stay apart for colour-blind readers; a peer has the same one in every picture.
COLOURS = {SHERL: "#D55E00", BFLOAT16: "#E69F00", "PyTorch": "#0072B2", "PyTorch, first row": "#56B4E9",
           "PyTorch compiled": "#009E73", "PyTorch bfloat16": "#CC79A7", "JAX jit": "#555555"}
AXIS_LABELS = {"batch": "samples in a batch", "tokens": "tokens of a sample", "taps": "taps",
               "hidden": "hidden channels", "threads": "threads"}


def colour(name):
    """Colour of a side; versions that compute only the first row share that of their peer where they have none."""
    return COLOURS.get(name) or COLOURS[name.removesuffix(FIRST_ROW)]


def finish(figure, axes, path):
    axes.spines[["top", "right"]].set_visible(False)
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def legend(axes, columns):
    """A legend below, where it hides no line."""
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns)


def steps(cases, path):
    """Time of each peer as multiples of sherl's."""
    names = list(dict.fromkeys(name for case in cases for name in case.outcome.timings if name != SHERL))
    labels, values, colours, places, place = [], [], [], [], 0
    middles = []
    for case in cases:
        timings, start = case.outcome.timings, place
        for name in (name for name in names if name in timings):
            labels.append(name)
            values.append(timings[name].ratio(timings[SHERL]))
            colours.append((colour(name), 0.55 if name.endswith(FIRST_ROW) else 1))
            places.append(place)
            place += 1
        middles.append((start + place - 1) / 2)
        place += 1
    figure, axes = pyplot.subplots(figsize=(8, 1.3 + 0.22 * place))
    axes.barh(places, values, height=0.85, color=colours)
    axes.axvline(1, color=COLOURS[SHERL], linewidth=1.5)
    for label, value, where in zip(labels, values, places):
        axes.text(max(value, 1), where, f" {value:.1f}  {label}", va="center", fontsize=8)
    axes.margins(y=0.01)
    axes.set_yticks(middles, [case.title for case in cases])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(values))
    axes.set_xlabel("time of a step as multiples of sherl's (line: sherl)")
    axes.set_title("One training step: how much longer the peers take")
    finish(figure, axes, path)


def rate(cases, path):
    """Share of the rate of bare matrix products."""
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.35 * len(cases)))
    shares = [100 * case.outcome.share for case in cases]
    most = max(100, *shares)
    axes.barh([case.title for case in cases], shares, color=COLOURS[SHERL])
    for place, (share, case) in enumerate(zip(shares, cases)):
        axes.text(most, place, f"  {share:.0f} %, {case.outcome.roofline:.2f} times the roofline", va="center")
    axes.axvline(100, color="#555555", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.7 * most)
    axes.set_xlabel("needed operations done per second, % of the rate of bare matrix products")
    axes.set_title("sherl's step beside what the machine can do")
    finish(figure, axes, path)


def time_against(axis, cases, path):
    """Time of a step of each side against one size."""
    figure, axes = pyplot.subplots(figsize=(6, 4))
    values = [getattr(case.problem, axis) for case in cases]
    for name in dict.fromkeys(name for case in cases for name in case.outcome.timings):
        points = [(value, case.outcome.timings[name]) for value, case in zip(values, cases)
                  if name in case.outcome.timings]
        axes.plot([value for value, _ in points], [1e3 * timing.median for _, timing in points], marker="o",
                  color=colour(name), label=name)
    logarithmic(axes, values, "linear" if axis == "threads" else "log")
    axes.set_xlabel(AXIS_LABELS[axis])
    axes.set_ylabel("time of a step, ms")
    axes.set_title(f"One training step against {AXIS_LABELS[axis]}")
    legend(axes, 3)
    finish(figure, axes, path)


def logarithmic(axes, values, scale):
    """Axes with a tick at each value, and plain numbers."""
    axes.set_xscale(scale)
    axes.set_xticks(values, map(str, values))
    axes.minorticks_off()
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(axis="y", color="#DDDDDD")


def memory(cases, path):
    """Peak memory of each side against the batch."""
    figure, axes = pyplot.subplots(figsize=(6, 4))
    batches = [case.problem.batch for case in cases]
    for name in dict.fromkeys(name for case in cases for name in case.growths):
        points = [(batch, case.growths[name] / MEBIBYTE) for batch, case in zip(batches, cases)
                  if name in case.growths]
        axes.plot(*zip(*points), marker="o", color=colour(name), label=name)
    logarithmic(axes, batches, "log")
    axes.set_xlabel(AXIS_LABELS["batch"])
    axes.set_ylabel("peak above inputs and weights, MiB")
    axes.set_title("Memory that training takes against the batch")
    legend(axes, 3)
    finish(figure, axes, path)


def sweeps(cases, path):
    """Time of several networks as multiples of one, one panel a case."""
    figure, panels = pyplot.subplots(1, len(cases), figsize=(1 + 3.6 * len(cases), 4), sharey=True, squeeze=False)
    for case, axes in zip(cases, panels[0]):
        counts = [count for kind, count in case.timings if kind == sweep_jobs.SWEEP]
        lines = {
            "fits, from features": ("#0072B2", "-", lambda count: sweep_jobs.from_features(
                case.timings, count, sweep_jobs.FITS)),
            "sweep, from features": (COLOURS[SHERL], "-", lambda count: sweep_jobs.from_features(case.timings, count)),
            "sweep, from text": (COLOURS[SHERL], "--", lambda count: sweep_jobs.from_text(case.timings, count)),
        }
        for name, (hue, style, values) in lines.items():
            axes.plot(counts, [statistics.median(values(count)) for count in counts], marker="o", color=hue,
                      linestyle=style, label=name)
        axes.set_xticks(counts, map(str, counts))
        axes.set_xlabel("networks")
        axes.set_title(f"lengths of {case.title}", fontsize=10)
        axes.grid(axis="y", color="#DDDDDD")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("time as multiples of one network's")
    panels[0][0].set_ylim(bottom=0)
    figure.legend(*panels[0][0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    figure.set_layout_engine("constrained")
    finish(figure, panels[0][0], path)


def fine_tuning(tuning, path):
    """Dev accuracy against time since the start, one point an epoch; of each side the fastest repetition."""
    figure, axes = pyplot.subplots(figsize=(7, 4))
    target = target_score(tuning)
    for name, courses in tuning.courses.items():
        course = fastest(courses, target)
        axes.plot([seconds for seconds, _ in course], [100 * score for _, score in course], marker="o",
                  color=colour(name.split(",")[0]), linestyle="--" if "not kept" in name else "-", label=name)
    axes.axhline(100 * target, color="#999999", linewidth=1)
    axes.set_xlim(left=0)
    axes.set_xlabel("time since the start, backbone included, s")
    axes.set_ylabel("dev accuracy, %")
    axes.set_title(f"Fine-tuning MiniLM on {tuning.task.name} (a point an epoch)")
    legend(axes, 2)
    axes.grid(axis="y", color="#DDDDDD")
    finish(figure, axes, path)


def draw(results, folder):
    """Write all pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    steps(results.models, folder / "steps.png")
    rate([*results.models, *results.texts], folder / "rate.png")
    for axis, cases in results.axes.items():
        time_against(axis, cases, folder / f"time_{axis}.png")
    memory(results.memory, folder / "memory.png")
    sweeps(results.sweeps, folder / "sweeps.png")
    fine_tuning(results.fine_tuning, folder / "fine_tuning.png")
