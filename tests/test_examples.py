"""The examples run from end to end on made-up data and tiny backbones, and their parts do what they say."""

import gzip
import hashlib
import io
import json
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiny_bert import write_tiny_bert
from tiny_models import write_tiny_model

import sherl

pytest.importorskip("PIL")
pytest.importorskip("scipy")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import caption_retrieval
import common
import detection_shapes
import fashion_mnist
import visual_questions

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def vit(tmp_path):
    return sherl.load_backbone(write_tiny_model(tmp_path / "vit", "dinov2"))


@pytest.fixture
def language_model(tmp_path):
    return sherl.load_backbone(write_tiny_bert(tmp_path / "bert", layers=2, hidden=16, heads=2))


def table_of(capsys, first):
    """Return the cells of the printed row that begins so."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(first + "  ")]
    assert len(lines) == 1
    return re.split(" {3,}", lines[0])


# ---- Files ----


def debian_package(path, files):
    """Write a package that holds some files, as Debian's do."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo("./" + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with open(path, "wb") as stream:
        stream.write(b"!<arch>\n")
        for name, content in {"debian-binary": b"2.0\n", "control.tar.xz": b"odd",
                              "data.tar.xz": data.getvalue()}.items():
            stream.write(f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content)
            stream.write(b"\n" * (len(content) % 2))
    return path


def test_packages_are_read(tmp_path):
    package = debian_package(tmp_path / "some.deb", {"usr/a.txt": b"one", "usr/b.png": b"two"})
    assert dict(common.read_debian_package(package, lambda name: name.endswith(".txt"))) == {"usr/a.txt": b"one"}
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        wheel.writestr("a.json", "1")
        wheel.writestr("b.py", "2")
    assert dict(common.read_wheel(tmp_path / "some.whl", lambda name: name == "a.json")) == {"a.json": b"1"}


def test_a_file_in_the_cache_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("SHERL_CACHE", str(tmp_path))
    wanted = hashlib.sha256(b"data").hexdigest()

    def command(content):
        return lambda folder: [sys.executable, "-c", f"open('x.whl', 'wb').write({content!r})"]

    with pytest.raises(SystemExit, match="another data.whl"):
        common._fetched("data.whl", wanted, command(b"other"), "address")
    path = common._fetched("data.whl", wanted, command(b"data"), "address")
    assert path.read_bytes() == b"data"
    failing = lambda folder: [sys.executable, "-c", "raise SystemExit(1)"]
    assert common._fetched("data.whl", wanted, failing, "address") == path
    path.write_bytes(b"spoilt")
    with pytest.raises(SystemExit, match="put the file from address at"):
        common._fetched("data.whl", wanted, failing, "address")
    assert [file.name for file in path.parent.iterdir()] == ["data.whl"]


def test_images_are_padded_with_white():
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGBA", (4, 8), (255, 0, 0, 255)).save(content, "png")
    image = common.read_image(content.getvalue(), 8)
    assert image.shape == (8, 8, 3)
    assert (image[:, 0] == 255).all() and (image[:, 3:5] == (255, 0, 0)).all()


def test_idx_files(tmp_path, monkeypatch):
    arrays = {"train": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "t10k": np.zeros((1, 3, 4), np.uint8)}
    files = {}
    for part, images in arrays.items():
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(len(images), dtype=np.uint8))):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            files[f"usr/{part}-{kind}-ubyte.gz"] = gzip.compress(header + array.tobytes())
    package = debian_package(tmp_path / "some.deb", files)
    monkeypatch.setattr(fashion_mnist, "fetch_debian_package", lambda *_: package)
    (images, labels), (test_images, _) = fashion_mnist.load_fashion_mnist()
    assert (images == arrays["train"]).all() and labels.tolist() == [0, 1] and len(test_images) == 1


# ---- Runs ----


def test_fashion_mnist(vit, monkeypatch, capsys):
    random = np.random.default_rng(1)
    labels = np.arange(60) % 10
    images = (25 * labels[:, None, None] + random.integers(0, 3, (60, 28, 28))).astype(np.uint8)
    monkeypatch.setattr(fashion_mnist, "load_fashion_mnist", lambda: [(images, labels), (images, labels)])
    monkeypatch.setattr(fashion_mnist, "load_backbone", lambda name: (vit, [0, 1]))
    fashion_mnist.main(["--train", "50", "--test", "20", "--size", "8", "--hidden", "8", "--epochs", "20",
                        "--batch-size", "10", "--learning-rate", "0.01", "--seeds", "0", "1"])  # fmt: skip
    assert float(table_of(capsys, "SHERL")[1].split()[0]) > 0.3


def test_caption_retrieval(vit, language_model, monkeypatch, capsys):
    names = [f"animals/{number}" for number in range(24)]
    captions = [f"a {'good' if number % 2 else 'bad'} film {number // 4}" for number in range(24)]
    monkeypatch.setattr(caption_retrieval, "load_stamps", lambda size: (names, IMAGES, captions))
    monkeypatch.setattr(caption_retrieval, "load_vit", lambda: vit)
    monkeypatch.setattr(caption_retrieval, "load_language_model", lambda: language_model)
    monkeypatch.setattr(caption_retrieval, "IMAGE_STATES", [0, 1])
    caption_retrieval.main(["--size", "8", "--hidden", "8", "--epochs", "1", "--batch-size", "8", "--seeds", "0"])
    assert 0 <= float(table_of(capsys, "SHERL")[1]) <= 100


def test_stamps_are_split_by_name():
    names = [f"stamp {number}" for number in range(200)]
    train, test = caption_retrieval.split(names, False)
    chosen, held_out = caption_retrieval.split(names, True)
    assert sorted([*train, *test]) == list(range(200)) and len(test) > 20
    assert sorted([*chosen, *held_out]) == sorted(train) and len(held_out) > 5


def test_states_pass_an_adapter_that_lets_them_through(vit, language_model, monkeypatch):
    monkeypatch.setattr(caption_retrieval, "IMAGE_STATES", [0, 1])
    encoder = caption_retrieval.make_encoder(vit, language_model, 8, "mean", 0.05, 0)
    caption_retrieval.let_states_through(encoder)
    texts = ["a good film", "bad"]
    last = language_model.extract(texts, [2])
    embedded = encoder.b.head(last)
    np.testing.assert_allclose(encoder.embed_b(language_model.extract(texts)), embedded, atol=1e-5)


def test_scenes_and_their_scores():
    image, boxes, labels = detection_shapes.draw_scene(np.random.default_rng(0), 64)
    assert image.shape == (64, 64, 3) and len(boxes) == len(labels) >= 1
    assert (boxes[:, :2] - boxes[:, 2:] / 2 > -1e-9).all() and (boxes[:, :2] + boxes[:, 2:] / 2 < 1 + 1e-9).all()
    classes = len(detection_shapes.KINDS)
    rows = np.full((6, classes + 5), -5.0)
    rows[:, classes], rows[:, classes + 1 :] = 5, 0.1
    rows[: len(boxes), classes + 1 :] = boxes
    rows[np.arange(len(boxes)), labels] = 10
    assert detection_shapes.score([rows], [boxes], [labels]) == {"matched_iou": pytest.approx(1), "f1": 1}
    rows[len(boxes)] = rows[0]  # the same box again does not count
    assert detection_shapes.score([rows], [boxes], [labels])["f1"] == 1
    rows[:, :classes] = -5
    assert detection_shapes.score([rows], [boxes], [labels])["f1"] == 0
    assert detection_shapes.overlap(np.array([0.5, 0.5, 0.2, 0.2]),
                                    np.array([0.6, 0.5, 0.2, 0.2])) == pytest.approx(1 / 3)


def test_detection_shapes(vit, monkeypatch, capsys):
    monkeypatch.setattr(detection_shapes, "load_vit", lambda: vit)
    monkeypatch.setattr(detection_shapes, "STATES", [0, 1])
    detection_shapes.main(["--train", "8", "--test", "4", "--size", "32", "--hidden", "8", "--epochs", "1", "--seeds",
                           "0"])
    assert 0 < float(table_of(capsys, "SHERL")[1].split()[0]) < 1


def test_visual_questions(vit, language_model, monkeypatch, capsys):
    questions = [[text, answer, number] for number in range(24)
                 for text, answer in (("is it a good film?", "yes" if number % 2 else "no"),
                                      ("what plot is it?", "dull"))]
    images = dict(enumerate(IMAGES))
    monkeypatch.setattr(visual_questions, "load_easy_vqa", lambda size: [(images, questions), (images, questions)])
    monkeypatch.setattr(visual_questions, "load_vit", lambda: vit)
    monkeypatch.setattr(visual_questions, "load_language_model", lambda: language_model)
    monkeypatch.setattr(visual_questions, "IMAGE_STATES", [0, 1])
    visual_questions.main(["--train", "48", "--test", "20", "--size", "8", "--hidden", "8", "--epochs", "2",
                           "--batch-size", "8", "--seeds", "0"])  # fmt: skip
    assert float(table_of(capsys, "SHERL")[1].split()[0]) >= 0.5


def test_notebooks_are_kept_with_their_outputs_and_small():
    folder = Path(__file__).parents[1] / "examples"
    notebooks = sorted(folder.glob("*.ipynb"))
    listed = re.findall(r"examples/(\w+\.ipynb)\)",
                        (folder.parent / "docs" / "examples.md").read_text(encoding="utf-8"))
    assert sorted(listed) == [path.name for path in notebooks]
    for path in notebooks:
        outputs = [output for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
                   for output in cell.get("outputs", [])]  # fmt: skip
        assert outputs and all(output["output_type"] != "error" for output in outputs), path.name
        pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
        assert all(len(picture) < 137_000 for picture in pictures), path.name  # base64 of 100 kB
    assert sum(path.stat().st_size for path in notebooks) < 1_000_000
