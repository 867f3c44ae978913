"""Pictures of trainings, networks and results.

Each function returns a matplotlib figure that belongs to no window: the last line of a notebook cell shows it, and
``figure.savefig("picture.png")`` writes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ._typing import Array, ArrayLike, Float64s, Integers, Record
from .checks import flag, one_of
from .training.metrics import count_confusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .network.explanation import Explanation
    from .network.memory import MemoryPlan
    from .training.history import History
    from .training.sweep import SweepResult

__all__ = ["confusion_matrix", "explanation", "frontier", "history", "memory_plan"]

MIB = 2**20
_SPREAD = (0.05, 0.25, 0.75, 0.95)
_MOST_WRITTEN = 24  # classes up to which the cells of a confusion matrix hold their numbers


def history(history: History) -> Figure:
    """Draw the course of a training; as `History.plot`.

    Parameters
    ----------
    history : History

    Returns
    -------
    matplotlib.figure.Figure
        Losses by step (with their running mean), losses by epoch, and the metrics of the validation, if any.
    """
    epochs = [entry["epoch"] for entry in history.epochs]
    entries = list(dict.fromkeys(name for entry in history.epochs for name in entry))
    metrics = [name for name in entries if name.startswith("validation_") and name != "validation_loss"]
    panels = 1 + bool(epochs) + bool(metrics)
    figure, axes = _figure(panels, 4.2 * panels + 0.4, 3.4)
    _draw_steps(axes[0], history.step_losses)
    if epochs:
        _draw_epochs(axes[1], history, [name for name in ("loss", "validation_loss") if name in entries])
        axes[1].set_title("Loss by epoch")
    if metrics:
        _draw_epochs(axes[2], history, metrics)
        axes[2].set_title("Validation by epoch")
    return figure


def explanation(explanation: Explanation) -> Figure:
    """Draw which taps a network uses; as `Explanation.plot`.

    Parameters
    ----------
    explanation : Explanation

    Returns
    -------
    matplotlib.figure.Figure
        By tap the mean weight and the mean redundancy, as bars; thick lines hold the middle half of the rows, thin ones
        the middle nine tenths.
    """
    figure, axes = _figure(2, 9.5, 1.5 + 0.32 * max(3, len(explanation.names)))
    quantiles = explanation.quantiles(_SPREAD)
    places = np.arange(len(explanation.names))
    titles = {"weights": "Which layers does the task use?\nweight of the tap",
              "redundancy": "How alike are they?\nredundancy: 1 where unlike all others"}
    for number, (axis, (name, title)) in enumerate(zip(axes, titles.items())):
        values = getattr(explanation, name)
        axis.barh(places, values.mean(axis=0), height=0.66, color=f"C{number}", alpha=0.55)
        low, first, third, high = quantiles[name]
        axis.hlines(places, low, high, color="0.2", linewidth=1)
        axis.hlines(places, first, third, color="0.2", linewidth=3.5)
        axis.set_yticks(places, explanation.names)
        axis.invert_yaxis()  # the first tap on top
        axis.set_xlim(left=0)
        axis.set_title(title)
        axis.grid(axis="x", alpha=0.3)
    axes[1].tick_params(labelleft=False)
    figure.supxlabel("bar: mean; thick line: middle 50 % of the rows; thin line: middle 90 %", fontsize=9)
    return figure


def frontier(results: SweepResult | Sequence[Record], x: str = "parameters", y: str | None = None, *,
             batch_size: int = 32, tokens: int = 128) -> Figure:
    """Draw results against what they cost, and join those that none beats in both.

    Parameters
    ----------
    results : SweepResult, or sequence of dict
        Each with ``"name"`` and the entries that `x` and `y` name.
    x : str
        What it costs: an entry such as ``"parameters"``. ``"memory"`` of a sweep is the bytes that training takes
        beside frozen weights and taps, by the networks' `memory_plan`.
    y : str, optional
        What it gives: an entry. More is better, unless its name ends in "loss". When None, what the sweep monitored.
    batch_size, tokens : int
        For the memory of a sweep, as for `SideNetwork.memory_plan`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    results, y = _points(results, x, y, batch_size, tokens)
    sign = -1 if y.endswith("loss") else 1
    costs = np.array([point[x] for point in results], np.float64)
    gains = np.array([point[y] for point in results], np.float64)
    if x == "memory":
        costs /= MIB
    best = _front(costs, sign * gains)
    others = np.setdiff1d(np.arange(len(results)), best)
    figure, (axis,) = _figure(1, 6.8, 4.2)
    axis.step(costs[best], gains[best], where="post", color="C0", linewidth=1.5, zorder=1)
    axis.scatter(costs[others], gains[others], color="0.65", zorder=2, label="beaten by another")
    axis.scatter(costs[best], gains[best], color="C0", zorder=3, label="best for its cost")
    _scale_costs(axis, costs)
    axis.set_xlabel("memory of training (MiB)" if x == "memory" else x.replace("_", " "))
    axis.set_ylabel(y.replace("_", " "))
    axis.grid(alpha=0.3)
    if len(others):
        axis.legend(loc="lower right" if sign > 0 else "upper right", fontsize=9)
    for points, color in ((best, "black"), (others, "0.45")):
        for number in points:
            axis.annotate(str(results[number]["name"]), (costs[number], gains[number]), (0, 0), fontsize=8,
                          color=color, textcoords="offset points")
    _place_names(figure, axis, np.column_stack([costs, gains]), rising=sign > 0, needed=len(best))
    return figure


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, names: Sequence[str] | None = None, *,
                     normalize: bool = False) -> Figure:
    """Draw how often each class was taken for each.

    Parameters
    ----------
    labels, predictions : array_like of int, shape (samples,)
        Class numbers.
    names : sequence of str, optional
        Of the classes, by number.
    normalize : bool
        Whether cells are shares of their row, the samples of one class.

    Returns
    -------
    matplotlib.figure.Figure
    """
    counts, ids = count_confusion(predictions, labels)
    if names is not None and len(names) <= max(ids):
        raise ValueError(f"names must have one for each class number up to {max(ids)}, got {len(names)}")
    cells = counts.astype(np.float64)  # a row for each true class
    totals = cells.sum(axis=1, keepdims=True)
    shares = np.divide(cells, totals, out=np.zeros_like(cells), where=totals > 0)
    side = 2.4 + 0.55 * min(len(ids), 16)
    figure, (axis,) = _figure(1, side + 0.8, side)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="share of the class", shrink=0.8)
    texts = [str(number) if names is None else str(names[number]) for number in ids]
    long = max(map(len, texts)) > 3
    axis.set_xticks(range(len(ids)), texts, rotation=45 if long else 0, ha="right" if long else "center")
    axis.set_yticks(range(len(ids)), texts)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    shown = shares if flag(normalize, "normalize") else counts
    if len(ids) <= _MOST_WRITTEN:
        for row, column in np.ndindex(shares.shape):
            value = shown[row, column]
            axis.text(column, row, f"{value:.2f}" if normalize else f"{value:,}", ha="center", va="center", fontsize=9,
                      color="white" if shares[row, column] > 0.5 else "black")
    axis.set_title(f"{np.trace(counts):,} of {counts.sum():,} right ({100 * np.trace(counts) / counts.sum():.1f} %)")
    return figure


def memory_plan(plan: MemoryPlan) -> Figure:
    """Draw what memory a training takes; as `MemoryPlan.plot`.

    Parameters
    ----------
    plan : MemoryPlan

    Returns
    -------
    matplotlib.figure.Figure
    """
    sizes = plan.to_dict()
    total = sizes.pop("total") / MIB
    values = np.array(list(sizes.values())) / MIB
    figure, (axis,) = _figure(1, 6.8, 3.2)
    places = np.arange(len(values))
    axis.barh(places, values, color=["0.65", *["C0"] * (len(values) - 1)], height=0.66)
    for place, value in zip(places, values):
        axis.annotate(f"{value:,.2f} MiB", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axis.set_yticks(places, [name.replace("_", " ") for name in sizes])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.22 * max(values.max(), 1e-9))
    axis.set_xlabel("MiB")
    axis.set_title(f"Memory of training: {total:,.1f} MiB, {total - values[0]:,.1f} beside the frozen weights")
    return figure


def _draw_steps(axis: Axes, losses: Sequence[float]) -> None:
    steps = np.arange(1, len(losses) + 1)
    axis.plot(steps, losses, color="C0", alpha=0.35, linewidth=1, label="of a step",
              marker="." if len(losses) < 3 else "")
    window = len(losses) // 25
    if window > 1:
        sums = np.cumsum([0.0, *losses])
        axis.plot(steps[window - 1 :], (sums[window:] - sums[:-window]) / window, color="C0", linewidth=2,
                  label=f"mean of {window}")
        axis.legend(fontsize=9)
    axis.set_xlabel("step")
    axis.set_title("Loss by step")
    axis.grid(alpha=0.3)


def _draw_epochs(axis: Axes, history: History, names: Sequence[str]) -> None:
    epochs = [entry["epoch"] for entry in history.epochs]
    for name in names:
        color = {"loss": "C0", "validation_loss": "C1"}.get(name, f"C{2 + names.index(name)}")
        text = {"loss": "training"}.get(name, name.removeprefix("validation_").replace("_", " "))
        if name == "validation_loss":
            text = "validation"
        values = [entry.get(name, math.nan) for entry in history.epochs]
        axis.plot(epochs, values, color=color, marker="o", markersize=4, label=text)
    if history.best_epoch is not None:
        axis.axvline(history.best_epoch, color="0.4", linestyle=":", label=f"best: epoch {history.best_epoch}",
                     zorder=0)
    axis.set_xlabel("epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # a MaxNLocator takes it
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)


def _points(results: SweepResult | Sequence[Record], x: str, y: str | None, batch_size: int,
            tokens: int) -> tuple[list[Record], str]:
    """Return dictionaries with "name" and the entries for both axes, and the name of the entry for y."""
    if not isinstance(results, Sequence):
        monitors = [history.monitor for history in results.histories.values()]
        y = y or monitors[0] or "loss"
        points = [dict(row) for row in results.table]
        if x == "memory":
            for point in points:
                plan = results.networks[point["name"]].memory_plan(batch_size=batch_size, tokens=tokens)
                point["memory"] = plan.total - plan.frozen_weights
    else:
        points = list(results)
        if y is None:
            raise ValueError("y must name what the results give, where they are not of a sweep")
    for name in (x, y):
        known = list(dict.fromkeys(entry for point in points for entry in point))
        one_of(name, "x" if name == x else "y", tuple(known))
    kept = [point for point in points if _is_number(point.get(x)) and _is_number(point.get(y))]
    if not kept:
        raise ValueError(f"results must hold at least one with finite {x!r} and {y!r}, got none")
    return kept, y


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _front(costs: Float64s, gains: Float64s) -> Integers:
    """Return the numbers of the points that no other beats, by rising cost."""
    best, highest = [], -math.inf
    for number in np.lexsort((-gains, costs)):
        if gains[number] > highest:
            best.append(number)
            highest = gains[number]
    return np.array(best)


def _scale_costs(axis: Axes, costs: Float64s) -> None:
    """Write costs out, on a logarithmic scale where they span more than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.margins(0.1, 0.12)
    if costs.min() > 0 and costs.max() >= 10 * costs.min():
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter("{x:,.10g}")


def _place_names(figure: Figure, axis: Axes, points: Array, rising: bool, needed: int) -> None:
    """Move the names of points to where they meet neither each other nor a point; hide those that have no room.

    The first `needed` ones are not hidden. The line is stepped, so that there is room to the right of its points on the
    side that it turns away from, and to the left on the other.
    """
    figure.draw_without_rendering()  # settles where the axes are
    renderer, frame = figure.canvas.get_renderer(), axis.get_window_extent()  # type: ignore[attr-defined]  # of Agg
    dots, taken = axis.transData.transform(points), list[Any]()
    for number, text in enumerate(axis.texts):
        for row, right in ((row, right) for row in range(3) for right in (True, False)):
            above, distance = right != rising, 5 + 11 * row
            text.set(position=(6 if right else -6, distance if above else -distance), ha="left" if right else "right",
                     va="bottom" if above else "top")
            box = text.get_window_extent(renderer).padded(1)
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
            if inside and not box.count_overlaps(taken) and not box.padded(3).count_contains(dots):
                taken.append(box)
                break
        else:
            text.set_visible(number < needed)


def _figure(panels: int, width: float, height: float) -> tuple[Figure, Array]:
    figure = _figure_type()(figsize=(width, height), layout="constrained", dpi=110)
    return figure, figure.subplots(1, panels, squeeze=False)[0]


@cache
def _figure_type() -> type[Figure]:
    """Return the class of figures that notebooks show, whether pyplot was imported or not."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need the matplotlib package: pip install 'sherl[plots]'") from None

    class Picture(Figure):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            FigureCanvasAgg(self)

        def _repr_png_(self) -> bytes:
            from io import BytesIO

            content = BytesIO()
            self.savefig(content, format="png")
            return content.getvalue()

    return Picture
