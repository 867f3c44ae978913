"""The Python examples of the documentation run as printed, all of them, and do what the pages say."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from command_line_place import write_images, write_sentences
from small import problem
from test_resnet_backbone import resnet_weights, write_resnet
from tiny_bert import write_tiny_bert
from tiny_models import write_tiny_model, write_tokenizer

import sherl
from sherl.command_line.main import main

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
TEXTS = ["a good film", "a very good , warm story", "the plot is dull", "a weak and stupid cast"]
LABELS = np.array([1, 1, 0, 0])


def blocks_of(path):
    """Return the Python examples of a page, each with the number of its first line."""
    text = path.read_text(encoding="utf-8")
    examples = re.finditer(r"```python\n(.*?)```", text, re.DOTALL)
    return [(text.count("\n", 0, found.start(1)), found[1]) for found in examples]


def run(name, names=None, first=0, last=None):
    """Run the examples of a page of docs/ one after the other, all or some; return all names."""
    path, names = DOCS / name, {} if names is None else names
    for line, block in blocks_of(path)[first:last]:
        exec(compile("\n" * line + block, str(path), "exec"), names)
    return names


def test_every_example_is_run():
    """By this file, or where it needs PyTorch or ONNX Runtime by the one for these."""
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if blocks_of(path)}
    files = ("test_guides.py", "peers/test_guides_of_doors.py")
    tests = "".join((TESTS / name).read_text(encoding="utf-8") for name in files)
    # A page that is run with first= or last= is run in full as well.
    assert pages == set(re.findall(r'\brun\("([^"]+)"(?!.*(?:first|last)=)', tests))


def test_everything_public_is_in_the_reference():
    pages = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.rst"))
    named = set(re.findall(r"auto(?:class|function):: (?:[a-z_]+\.)*(\w+)", pages))
    assert named >= set(sherl.__all__) - {"losses", "plots"}
    for module in ("losses", "plots", "sklearn", "hub", "onnx", "torch", "data.assets", "data.tables"):
        source = (Path(sherl.__file__).parent / module.replace(".", "/")).with_suffix(".py")
        text = (source if source.exists() else source.with_suffix("") / "__init__.py").read_text(encoding="utf-8")
        public = re.search(r"__all__ = \[(.*?)\]", text, re.DOTALL)[1]
        assert named >= set(re.findall(r'"(\w+)"', public)), module


@pytest.fixture
def language_model(tmp_path):
    """A model of the size that pages speak of, with random weights."""
    return write_tiny_bert(tmp_path / "all-MiniLM-L6-v2", layers=6, hidden=384, heads=12)


@pytest.fixture
def on_texts(language_model, tmp_path, monkeypatch):
    """What examples on texts take for granted."""
    monkeypatch.chdir(tmp_path)
    backbone = sherl.load_backbone(language_model)
    features = backbone.extract(TEXTS)
    return {"np": np, "sherl": sherl, "backbone": backbone, "texts": TEXTS, "train": features, "labels": LABELS,
            "dev": features, "dev_labels": LABELS}  # fmt: skip


def test_heads():
    names = run("how-to-heads.md")
    counted = (names["labels"] != -100) & names["mask"]
    assert np.mean(names["tagged"][counted] == names["labels"][counted]) > 0.6  # by chance a third
    assert (names["tagged"][~names["mask"]] == -100).all()
    assert np.mean(names["found"] == names["spans"]) > 0.5


def test_a_loss_of_ones_own():
    names = run("how-to-custom-loss.md")
    assert names["history"].epochs[-1]["validation_pearson"] > 0.5
    assert names["embeddings"].shape == (96, 16)


def test_retrieval():
    names = run("how-to-retrieval.md")
    assert names["scores"]["a_to_b_r1"] == pytest.approx(100 * np.mean(names["nearest"] == np.arange(120)))
    assert names["scores"]["rsum"] > 300


def test_detection():
    pytest.importorskip("scipy")
    names = run("how-to-detection.md", last=1)
    assert names["outputs"].shape == (32, 5, 7)
    assert names["history"].epochs[-1]["loss"] < 0.5 * names["history"].epochs[0]["loss"]
    names = run("how-to-detection.md")
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
    draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
    sides = [(1, 2), (2, 1)]
    taps = [
        [draw(height * window, width * window, channels) for height, width in sides]
        for window, channels in zip((8, 4, 2, 1), (256, 512, 1024, 2048))
    ]
    mask = np.arange(5) < np.array([[2], [5], [3]])
    names = {
        "np": np, "sherl": sherl, "taps": taps, "image_states": [draw(3, 4, 768) for _ in range(13)],
        "image_output": draw(3, 512), "text_states": [draw(3, 5, 512) for _ in range(13)],
        "text_output": draw(3, 512), "attention_mask": mask, "end_of_text": np.array([1, 4, 2]),
        "cotangent": draw(3, 512),
    }  # fmt: skip
    run("how-to-images.md", names, first=1)
    assert names["features"].sizes[3].tolist() == [[1, 2], [2, 1]]
    assert sherl.MTSA.resnet()(names["features"]).channels == [2048]
    assert names["out"].shape == (3, 512)


def test_scikit_learn(language_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("how-to-scikit-learn.md", {"texts": 45 * ["a good film", "a weak and stupid cast"]})
    assert names["model"].classes_.tolist() == ["down", "up"]
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


def test_the_tutorial(language_model, tmp_path, monkeypatch):
    from sherl.data import assets

    monkeypatch.chdir(tmp_path)
    sentences = [f"a {'good' if number % 2 else 'bad'} film {'.' * (number % 3)}" for number in range(1300)]
    ratings = np.where(np.arange(1300) % 2, 1.5, -1.5)
    monkeypatch.setattr(assets, "fetch_demo_assets", lambda: assets.DemoAssets(language_model, "reviews"))
    monkeypatch.setattr(assets, "load_movie_reviews", lambda path: (np.arange(1300), ratings, sentences))
    names = run("tutorial.md")
    assert names["net"].evaluate(names["dev"], names["labels"][1000:])["accuracy"] > 0.9
    assert len(names["told"].weights) == names["dev"].offsets[-1]


def test_concepts_and_questions():
    assert run("concepts.md")["features"].lengths.tolist() == [4, 2, 5]
    before = sherl.get_num_threads()
    try:
        assert run("faq.md")["sherl"].get_num_threads() == 1
    finally:
        sherl.set_num_threads(before)


def test_backbones(language_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["<s>", "<pad>", "<unk>", "</s>", "a", "fine", "film", "dull", "one"]
    write_tokenizer(write_tiny_model(tmp_path / "roberta-base", "roberta"), words)
    write_tiny_model(tmp_path / "dinov2-small", "dinov2")
    write_resnet(tmp_path / "resnet50", resnet_weights(depths=(3, 4, 6, 3)))
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    tokens, patches = (sherl.Features([np.ones((rows, 384), np.float32)] * 6, lengths=[rows // 2] * 2)
                       for rows in (4, 6))
    names = {"images": images, "text_features": tokens, "image_features": patches, "answers": 3,
             "language_model": sherl.load_backbone(language_model), "text_of_sample": [0, 0], "image_of_sample": [0, 1]}
    names = run("how-to-backbones.md", names)
    assert names["net"].predict(names["joined"]).shape == (2,)
    assert names["vectors"].shape == (1, 16)
    assert names["features"].sizes[3].tolist() == [[2, 2], [2, 2]]


def test_features_on_disk(on_texts):
    names = run("features-on-disk.md", on_texts)
    assert names["net"].predict(names["train"]).shape == (4,)


def test_sweep(on_texts):
    names = run("sweep.md", on_texts)
    assert len(names["result"].networks) == 4


def test_the_readme_on_texts(on_texts):
    path = DOCS.parent / "README.md"
    (_, _), (line, block) = blocks_of(path)  # test_readme.py runs the first
    exec(compile("\n" * line + block, str(path), "exec"), on_texts)
    assert on_texts["net"].predict(on_texts["dev"]).shape == (4,)
