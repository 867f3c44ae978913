"""The examples of the how-to pages run as printed, and do what the pages say."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from command_line_place import write_images, write_sentences
from small import problem
from tiny_bert import write_tiny_bert
from tiny_models import write_tiny_model, write_tokenizer

import sherl
from sherl.command_line.main import main

DOCS = Path(__file__).parents[1] / "docs"


def run(name, blocks=1):
    """Run the first blocks of code of a page, one after the other, and return what they named."""
    path, names = DOCS / name, {}
    for block in path.read_text(encoding="utf-8").split("```python\n")[1 : 1 + blocks]:
        exec(compile(block.split("```")[0], str(path), "exec"), names)
    return names


def test_heads():
    names = run("how-to-heads.md")
    counted = (names["labels"] != -100) & names["mask"]
    assert np.mean(names["tagged"][counted] == names["labels"][counted]) > 0.6  # by chance a third
    assert (names["tagged"][~names["mask"]] == -100).all()
    assert np.mean(names["found"] == names["spans"]) > 0.5


def test_retrieval():
    names = run("how-to-retrieval.md")
    assert names["scores"]["a_to_b_r1"] == pytest.approx(100 * np.mean(names["nearest"] == np.arange(120)))
    assert names["scores"]["rsum"] > 300


def test_detection():
    pytest.importorskip("scipy")
    names = run("how-to-detection.md")
    assert names["outputs"].shape == (32, 5, 7)
    assert names["history"].epochs[-1]["loss"] < 0.5 * names["history"].epochs[0]["loss"]
    names = run("how-to-detection.md", 2)
    assert names["net"].forward([*names["states"], names["places"]]).shape == (32, 5, 7)
    assert names["history"].epochs[-1]["loss"] < 0.7 * names["history"].epochs[0]["loss"]


def test_seq2seq(tmp_path, monkeypatch):
    words = ["<pad>", "</s>", "<unk>", "Das", "Haus", "ist", "klein", "Guten", "Morgen", ".", "The", "house", "Good"]
    write_tokenizer(write_tiny_model(tmp_path / "t5-base", "t5", num_layers=12), words)
    monkeypatch.chdir(tmp_path)
    names = run("how-to-seq2seq.md")
    assert names["net"].taps["encoder_taps"] == [0, 2, 3, 4, 6, 7, 8, 10, 11, 12]
    assert names["net"].taps["decoder_taps"] == [0, 2, 3, 4, 6, 7, 8, 10, 11]
    assert set(names["net"].evaluate(names["features"])) == {"loss", "accuracy"}


def test_training_options():
    names = run("how-to-training-options.md")
    assert not names["net"].state_dict()["head.bias"].any()
    assert names["history"].epochs[-1]["learning_rate"] == pytest.approx(1e-3)


def test_images_and_towers():
    """What needs no torchvision, on small arrays."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    sides = [(1, 2), (2, 1)]
    taps = [
        [draw(height * window, width * window, channels) for height, width in sides]
        for window, channels in zip((8, 4, 2, 1), (256, 512, 1024, 2048))
    ]
    mask = np.arange(5) < np.array([[2], [5], [3]])
    names = {
        "np": np, "sherl": sherl, "taps": taps, "image_states": [draw(3, 4, 768) for _ in range(13)],
        "image_output": draw(3, 512), "text_states": [draw(3, 5, 512) for _ in range(13)],
        "text_output": draw(3, 512), "attention_mask": mask, "end_of_text": np.array([1, 4, 2]), "cotangent": draw(3, 512),
    }  # fmt: skip
    for block in (DOCS / "how-to-images.md").read_text(encoding="utf-8").split("```python\n")[2:]:
        exec(block.split("```")[0], names)
    assert names["features"].sizes[3].tolist() == [[1, 2], [2, 1]]
    assert sherl.MTSA.resnet()(names["features"]).channels == [2048]
    assert names["out"].shape == (3, 512)


def test_scikit_learn():
    names = run("how-to-scikit-learn.md")
    assert names["search"].best_score_ > 0.7  # by chance a half
    assert names["network"].early.hidden == names["search"].best_params_["hidden"]


def test_looking_inside():
    names = run("how-to-look-inside.md")
    told = names["told"]
    assert told.weights[:, 1:3].mean() > told.weights[:, [0, 3]].mean()  # the labels are made of taps 1 and 2
    assert names["per_text"].shape == (100, 4)
    for figure in ("course", "layers", "errors", "memory", "front"):
        assert names[figure]._repr_png_().startswith(b"\x89PNG")


def test_command_line(tmp_path, monkeypatch, capsys):
    """Every command of the page runs, in its order, in one folder."""
    pytest.importorskip("PIL")
    write_tiny_bert(tmp_path / "bert")
    write_tiny_model(tmp_path / "vit", "dinov2")
    for name, count, seed in (("train", 48, 1), ("dev", 24, 2), ("test", 16, 3)):
        write_sentences(tmp_path / f"{name}.tsv", count, seed)
        write_images(tmp_path / "images" / name, count, seed)
        taps, labels, mask = problem(samples=count, seed=seed)
        arrays = {f"tap_{number}": tap for number, tap in enumerate(taps)}
        np.savez(tmp_path / f"{name}.npz", **arrays, mask=mask, labels=labels)
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    (tmp_path / "run.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    lines = [line for block in page.split("```sh\n")[1:] for line in block.split("```")[0].splitlines()]
    assert len(lines) > 15 and all(line.startswith("sherl ") for line in lines)
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr().err)
        assert capsys.readouterr().out, line
    assert (tmp_path / "sweep.png").exists() and (tmp_path / "predictions.tsv").read_text().count("\n") == 17
