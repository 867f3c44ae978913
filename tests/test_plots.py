"""Pictures: what is drawn is what the objects hold, they come out as PNG, and notebooks get tables."""

import subprocess
import sys

import numpy as np
import pytest
from small import FEATURES, network, problem, taps_of

import sherl
from sherl import plots
from sherl.html import html_table

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def trained():
    taps, labels, mask = problem(samples=64)
    net = network(taps=3)
    history = net.fit(taps, labels, mask, epochs=6, batch_size=8, validation=(taps, labels, mask), progress=False)
    return net, history, (taps, labels, mask)


@pytest.fixture(scope="module")
def swept():
    taps, labels, mask = problem(samples=40)
    configurations = sherl.grid(lambda hidden: sherl.SideNetwork(sherl.MTSA(3, FEATURES, hidden), [],
                                                                 sherl.Classifier(FEATURES, 2)), hidden=[2, 8, 24])
    return sherl.sweep(taps, labels, configurations, mask=mask, epochs=2, validation=(taps, labels, mask),
                       progress=False)


def drawn(figure, label, panel=0):
    """Return the data of the line with a label."""
    return next(line for line in figure.axes[panel].lines if line.get_label() == label).get_ydata()


def checked(figure):
    """Return a figure whose picture is a PNG of more than one color."""
    content = figure._repr_png_()
    assert content.startswith(PNG) and len(content) > 5000
    return figure


def test_history(trained):
    _, history, _ = trained
    figure = checked(history.plot())
    assert len(figure.axes) == 3
    assert list(drawn(figure, "of a step")) == history.step_losses
    assert list(drawn(figure, "training", 1)) == [entry["loss"] for entry in history.epochs]
    assert list(drawn(figure, "validation", 1)) == [entry["validation_loss"] for entry in history.epochs]
    assert list(drawn(figure, "accuracy", 2)) == [entry["validation_accuracy"] for entry in history.epochs]
    assert drawn(figure, f"best: epoch {history.best_epoch}", 2) is not None


def test_running_mean_of_step_losses():
    history = sherl.History()
    history.step_losses = list(np.random.default_rng(0).random(100))
    mean = drawn(history.plot(), "mean of 4")
    np.testing.assert_allclose(mean, [np.mean(history.step_losses[i : i + 4]) for i in range(97)])


@pytest.mark.parametrize("validated", [False, True])
def test_history_without_epochs_or_validation(validated):
    history = sherl.History()
    assert len(checked(history.plot()).axes) == 1
    history.step_losses = [1.0, 0.5]
    history.epochs = [{"epoch": 1, "loss": 0.7, **({"validation_loss": 0.6} if validated else {})}]
    assert len(checked(history.plot()).axes) == 2


def test_explanation(trained):
    net, _, (taps, _, mask) = trained
    told = net.explain(taps, mask)
    figure = checked(told.plot())
    for axis, values in zip(figure.axes, (told.weights, told.redundancy)):
        np.testing.assert_allclose([bar.get_width() for bar in axis.patches], values.mean(axis=0))
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == told.names


def test_memory_plan(trained):
    plan = trained[0].memory_plan()
    figure = checked(plan.plot())
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert sum(widths) == pytest.approx(plan.total / 2**20)
    assert f"{plan.total / 2**20:,.1f} MiB" in figure.axes[0].get_title()


def points_of(figure):
    return np.concatenate([group.get_offsets() for group in figure.axes[0].collections])


@pytest.mark.parametrize("cost", ["parameters", "memory"])
def test_frontier_of_a_sweep(swept, cost):
    figure = checked(plots.frontier(swept, cost))
    costs, gains = points_of(figure).T
    assert sorted(gains) == sorted(row["validation_accuracy"] for row in swept.table)
    if cost == "parameters":
        assert sorted(costs) == sorted(row["parameters"] for row in swept.table)
    else:
        plan = swept.networks["hidden=2"].memory_plan()
        assert min(costs) == pytest.approx((plan.total - plan.frozen_weights) / 2**20)
    assert figure.axes[0].get_ylabel() == "validation accuracy"


def test_frontier_joins_what_none_beats():
    values = [("a", 1, 0.5), ("b", 2, 0.4), ("c", 3, 0.9), ("d", 3, 0.8), ("e", 4, None), ("f", 5, 0.9)]
    points = [{"name": name, "cost": cost, "f1": f1} for name, cost, f1 in values]
    line = plots.frontier(points, "cost", "f1").axes[0].lines[0]
    assert list(line.get_xdata()) == [1, 3] and list(line.get_ydata()) == [0.5, 0.9]
    losses = [{"name": name, "cost": cost, "loss": loss} for name, cost, loss in [("a", 1, 0.5), ("b", 2, 0.4),
                                                                                  ("c", 3, 1)]]
    assert list(plots.frontier(losses, "cost", "loss").axes[0].lines[0].get_xdata()) == [1, 2]


def test_frontier_names_what_is_wrong():
    points = [{"name": "a", "cost": 1, "f1": 0.5}]
    with pytest.raises(ValueError, match="x must be.*'cost', 'f1'"):
        plots.frontier(points, "memory", "f1")
    with pytest.raises(ValueError, match="y must name"):
        plots.frontier(points, "cost")
    with pytest.raises(ValueError, match="at least one with finite"):
        plots.frontier([{"name": "a", "cost": 1, "f1": float("nan")}], "cost", "f1")


def test_confusion_matrix():
    labels, predicted = [0, 0, 0, 1, 2, 2], [0, 0, 1, 1, 0, 2]
    figure = checked(plots.confusion_matrix(labels, predicted, ["cat", "dog", "horse"]))
    axis = figure.axes[0]
    cells = {text.get_position(): text.get_text() for text in axis.texts}
    assert cells[0, 0] == "2" and cells[1, 0] == "1" and cells[0, 2] == "1" and cells[2, 1] == "0"
    assert [text.get_text() for text in axis.get_yticklabels()] == ["cat", "dog", "horse"]
    assert "4 of 6 right (66.7 %)" in axis.get_title()
    shares = plots.confusion_matrix(labels, predicted, normalize=True).axes[0]
    assert {text.get_text() for text in shares.texts} == {"0.67", "0.33", "0.00", "1.00", "0.50"}
    with pytest.raises(ValueError, match="names must have one for each class number up to 2, got 2"):
        plots.confusion_matrix(labels, predicted, ["a", "b"])


def test_figures_save_and_leave_pyplot_alone(trained, tmp_path):
    from matplotlib import pyplot

    trained[1].plot().savefig(tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(PNG)
    assert pyplot.get_fignums() == []


def test_without_matplotlib_a_sentence_says_so():
    code = "import sys; sys.modules['matplotlib'] = None; import sherl; sherl.History().plot()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: plots need the matplotlib package: pip install 'sherl[plots]'" in run.stderr


def test_importing_sherl_imports_neither_matplotlib_nor_scikit_learn():
    code = "import sys, sherl; print([name for name in ('matplotlib', 'sklearn', 'tqdm') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# Tables in notebooks.


def test_html_of_objects(trained, swept):
    net, history, (taps, _, mask) = trained
    features = sherl.Features.from_arrays(taps, mask)
    for thing, text in {
        net: "TransformerLayer", history: "validation_accuracy", features: "64 samples of 1 to 7 rows",
        net.memory_plan(): "optimizer", swept: "hidden=24", net.explain(features): "redundancy",
    }.items():
        content = thing._repr_html_()
        assert text in content and content.count("<table>") == content.count("</table>") == 1
    assert history._repr_html_().count("font-weight: bold") == 1


def test_html_escapes_and_aligns():
    content = html_table("a < b", ["name", "value"], [("<script>", 0.123456), ("x", None)], marked=0)
    assert "a &lt; b" in content and "&lt;script&gt;" in content and "<script>" not in content
    assert '<td style="text-align: right">0.1235</td>' in content
    assert content.index("font-weight: bold") < content.index("script")


def test_features_of_images_and_towers_have_tables():
    features = sherl.Features.from_arrays([*taps_of(taps=2), np.zeros((12, 16), np.float32)])
    assert features._repr_html_().count("<tr>") == 4
