"""Draws the pictures of docs/concepts.md and docs/design.md as SVG files beside it: python docs/pictures/draw.py"""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle  # noqa: E402

FOLDER = Path(__file__).parent
FROZEN, TRAINED, PLAIN, LEFT_OUT, INK, GRADIENT = "#d5dce6", "#bfe3c5", "#f4f1e6", "#ffffff", "#222222", "#c0392b"
SAMPLE_COLORS = ["#8fb8de", "#f2c27b", "#a9d6a4", "#d9a3c7", "#c5c1a9"]
# Letters stay letters, and a drawing that did not change stays the same file.
plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sherl", "font.family": "sans-serif", "font.size": 10})


def canvas(width, height):
    """Return axes without frame, one unit a tenth of an inch."""
    figure = plt.figure(figsize=(width / 10, height / 10))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    axes.add_patch(Rectangle((0, 0), width, height, color="white", zorder=-1))
    return axes


def box(axes, x, y, width, height, text, color=PLAIN, size=10):
    shape = "round,pad=0,rounding_size=0.6"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, fc=color, ec=INK, lw=0.9))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", size=size, color=INK)


def arrow(axes, start, end, color=INK, bend=0.0, style="-"):
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=color, lw=1.1, linestyle=style,
                                   connectionstyle=f"arc3,rad={bend}", shrinkA=0, shrinkB=0))  # fmt: skip


def rows(axes, x, y, colors, width=6, height=2):
    """Draw rows from the top down; a row without a color is outlined only. Returns the y below them."""
    for color in colors:
        y -= height
        axes.add_patch(Rectangle((x, y), width, height, fc=color or LEFT_OUT, ec="#777777", lw=0.7,
                                 hatch=None if color else "////", alpha=None if color else 0.35))  # fmt: skip
    return y


def note(axes, x, y, text, size=9, **options):
    axes.text(x, y, text, **{"ha": "center", "va": "center", "size": size, "color": INK, **options})


def save(name):
    plt.savefig(FOLDER / name, metadata={"Date": None, "Creator": None})
    plt.close()


def draw_routes():
    """The backbone, its taps, the adapter on them, and the late route, with the way of the gradient."""
    axes = canvas(76, 37)
    names = ["embeddings", "layer 1", "layer 2", "layer 3", "layer 4"]
    for i, name in enumerate(names):
        box(axes, 2, 3 + 6 * i, 14, 4, name, FROZEN)
        arrow(axes, (16, 5 + 6 * i), (27, 11 + 3 * i))
        if i:
            arrow(axes, (9, 1 + 6 * i), (9, 3 + 6 * i))
        note(axes, 18.6, (3.6 if i < 2 else 7.4) + 6 * i, f"tap {i}", size=8)
    note(axes, 9, 35, "frozen backbone, run once", size=9)
    box(axes, 27, 9, 11, 16, "MTSA\n\nnarrows,\nweighs, sums\nthe taps", TRAINED)
    box(axes, 43, 12, 12, 10, "layer 5\nthe last,\nfrozen", FROZEN)
    box(axes, 60, 14, 8, 6, "head", TRAINED)
    for start, end in ((38, 43), (55, 60), (68, 73)):
        arrow(axes, (start, 18), (end, 18))
        arrow(axes, (end, 16), (start, 16), GRADIENT, style="--")
    note(axes, 74.4, 17, "loss", rotation=90)
    note(axes, 32.5, 27, "early route", size=9)
    note(axes, 49, 24, "late route", size=9)
    note(axes, 57, 6.5, "dashed: the gradient. It passes through the late layer,\n"
         "whose weights stay, and ends at the adapter.", size=8.5, color=GRADIENT)  # fmt: skip
    for x, color, text in ((45, FROZEN, "frozen"), (56, TRAINED, "trained")):
        box(axes, x, 31, 3, 2.4, "", color)
        note(axes, x + 4, 32.2, text, ha="left")
    save("routes.svg")


def draw_row_spaces():
    """A padded array beside the row spaces that hold the same."""
    axes = canvas(76, 35)
    lengths, cell = [4, 2, 5], 3.2
    note(axes, 15, 32.5, "a padded array with its mask")
    for sample, length in enumerate(lengths):
        for token in range(max(lengths)):
            meant = token < length
            axes.add_patch(Rectangle((6 + cell * token, 24 - 4.2 * sample), cell, cell, ec="#777777", lw=0.7,
                                     fc=SAMPLE_COLORS[sample] if meant else LEFT_OUT, hatch=None if meant else "////",
                                     alpha=None if meant else 0.35))  # fmt: skip
        note(axes, 3, 25.6 - 4.2 * sample, f"text {sample}", size=8)
    note(axes, 14, 11.5, "hatched: padding", size=8)
    arrow(axes, (25, 21), (32, 21))
    note(axes, 41, 32.5, "row space of tokens")
    y, tops = 30, []
    for sample, length in enumerate(lengths):
        tops.append(y)
        y = rows(axes, 37, y, [SAMPLE_COLORS[sample]] * length, width=8)
    for offset, top in zip((0, 4, 6, 11), [*tops, y]):
        note(axes, 35.4, top, str(offset), size=8, ha="right")
    note(axes, 41, 4.6, "11 rows of d channels;\noffsets tell the segments", size=8)
    note(axes, 65, 32.5, "row space SAMPLES")
    for sample, top in enumerate(tops):
        rows(axes, 61, top, [SAMPLE_COLORS[sample]], width=8)
        arrow(axes, (46, top - lengths[sample]), (60.5, top - 1))
    note(axes, 53.5, 29, "pooling", size=8)
    note(axes, 65, 11.5, "3 rows: logits,\nlabels, losses", size=8)
    save("row_spaces.svg")


def draw_passes():
    """From blocks to a training step."""
    axes = canvas(84, 23)
    top = ["blocks\nMTSA, late layers,\nhead", "graph\nspaces, values, ops", "demand\nonly rows that\nsomebody reads",
           "associate\nattention of one\nquery"]  # fmt: skip
    bottom = ["needs-gradient\nwho gets one, who\nwrites it first", "schedule, stages\nsteps of a tile;\nwhat runs wide",
              "residence, plan\nwhat shares bytes", "run and update\ntiles over lanes\nover threads"]  # fmt: skip
    for i, text in enumerate(top):
        box(axes, 2 + 21 * i, 14, 17, 7.5, text, PLAIN if i < 2 else TRAINED, 9)
    for i, text in enumerate(bottom):
        box(axes, 2 + 21 * i, 2, 17, 7.5, text, TRAINED if i < 1 else PLAIN, 9)
    for i in range(3):
        arrow(axes, (19 + 21 * i, 17.7), (23 + 21 * i, 17.7))
        arrow(axes, (19 + 21 * i, 5.7), (23 + 21 * i, 5.7))
    axes.plot([73.5, 73.5, 10.5], [14, 11.8, 11.8], color=INK, lw=1.1)
    arrow(axes, (10.5, 11.8), (10.5, 9.5))
    save("passes.svg")


def draw_demand():
    """Which rows of one sample are computed where the head reads the first: as written, and after two passes."""
    axes = canvas(84, 52)
    columns = ["taps", "adapter", "keys,\nvalues", "queries", "late\noutput", "head"]
    cases = [
        ("as written: every row of everything", [5, 5, 5, 5, 5, 1]),
        ("after demand: one query, one row out of the late layer", [5, 5, 5, 1, 1, 1]),
        ("after associate: no keys, no values; the query meets the adapter's rows themselves", [5, 5, 0, 1, 1, 1]),
    ]
    for case, (text, computed) in enumerate(cases):
        top = 48.5 - 15.6 * case
        note(axes, 2, top + 1.7, text, ha="left", size=9.5)
        for column, count in enumerate(computed):
            x, total = 4 + 13 * column, 1 if columns[column] == "head" else 5
            color = TRAINED if column in (1, 5) else FROZEN
            rows(axes, x, top, [color] * count + [None] * (total - count), width=9, height=1.8)
            if column not in (0, 3):  # queries, keys and values come from the adapter alike
                height = top - 4.5 if column < 5 else top - 1
                arrow(axes, (x - 3.6, height), (x - 0.4, height))
            note(axes, x + 4.5, top - (11 if "\n" in columns[column] else 10.3), columns[column], size=8)
    note(axes, 82, 1.5, "hatched: never computed", size=8, ha="right")
    save("demand.svg")


def draw_tiles():
    """A batch, cut into tiles, whose gradients are summed lane by lane."""
    axes = canvas(84, 40)
    note(axes, 8, 38, "a batch")
    lengths, colors, y, tiles = [3, 2, 4, 1, 3, 3, 2, 4], SAMPLE_COLORS, 36, []
    for sample, length in enumerate(lengths):
        start = y
        y = rows(axes, 5, y, [colors[sample % 5]] * length, width=6, height=1.3)
        if sample % 2:
            tiles.append((start_of_tile + y) / 2)
            note(axes, 14, tiles[-1], f"tile {len(tiles) - 1}", size=9, ha="left")
            above, below = start_of_tile - 0.2, y + 0.2
            axes.plot([12, 12.8, 12.8, 12], [above, above, below, below], color=INK, lw=0.9)
        else:
            start_of_tile = start
    lanes = [28, 14]
    for number, middle in enumerate(tiles):
        lane = lanes[number % 2]
        arrow(axes, (19, middle), (28, lane + (1.5 if number < 2 else -1.5)))
    for number, lane in enumerate(lanes):
        box(axes, 28, lane - 4, 22, 8,
            f"gradient lane {number}\nits tiles, one after the other:\nforward, backward, add", PLAIN, 8.5)  # fmt: skip
        arrow(axes, (50, lane), (57, 21))
    box(axes, 57, 17, 11, 8, "lanes are\nsummed,\n0 first", PLAIN, 9)
    arrow(axes, (68, 21), (72, 21))
    box(axes, 72, 18, 10, 6, "optimizer", TRAINED, 9)
    note(axes, 55, 5, "Threads only decide who computes a lane: the order of every sum is fixed,\n"
         "so the bits are the same on any number of them.", size=8.5)  # fmt: skip
    save("tiles.svg")


if __name__ == "__main__":
    for draw in (draw_routes, draw_row_spaces, draw_passes, draw_demand, draw_tiles):
        draw()
