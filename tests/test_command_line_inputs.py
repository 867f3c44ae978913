"""Commands on everything that they read: tables, folders of images, features on disk, and arrays."""

import json
import shutil

import numpy as np
import pytest
from command_line_place import call, record, write_images, write_pairs, write_sentences
from small import problem
from tiny_bert import write_tiny_bert
from tiny_models import write_tensors, write_tiny_model

import sherl
from sherl.command_line.inputs import read_inputs, read_labels
from sherl.data.tables import read_table

pytest.importorskip("PIL")
SMALL = ["--hidden", 8, "--epochs", 8, "--batch-size", 8, "--learning-rate", 0.01, "--threads", 2]
COLUMNS = ["--text", "sentence", "--label", "label"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a backbone of texts, one of images, and data of each kind in train and dev."""
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_bert(folder / "bert")
    write_tiny_model(folder / "vit", "dinov2")
    for name, count, seed in (("train", 96, 1), ("dev", 32, 2)):
        write_sentences(folder / f"{name}.tsv", count, seed)
        write_pairs(folder / f"{name}.jsonl", count, seed)
        write_images(folder / "images" / name, count, seed)
        taps, labels, mask = problem(samples=count, seed=seed)
        np.savez(folder / f"{name}.npz", **{f"tap_{number}": tap for number, tap in enumerate(taps)}, mask=mask,
                 labels=labels)
    return folder


def train(capsys, place, data, out, *more):
    return record(capsys, "train", "--train", place / data.format("train"), "--dev", place / data.format("dev"),
                  "--out", out, *SMALL, *more)


def score(made):
    return made["results"][-1]["accuracy"]


def same_folders(first, second, but=()):
    """Assert that two folders hold the same files."""
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}
    for path in first.iterdir():
        if path.name not in but:
            assert path.read_bytes() == (second / path.name).read_bytes(), path.name


# ---- Features on disk ----


def test_extracted_features_train_the_network_that_the_table_does(place, tmp_path, capsys):
    backbone = ["--backbone", place / "bert"]
    made = train(capsys, place, "{}.tsv", tmp_path / "direct", *backbone, *COLUMNS)
    for name in ("train", "dev"):
        told = record(capsys, "extract", *backbone, "--input", place / f"{name}.tsv", *COLUMNS,
                      "--out", tmp_path / name)
        assert told["states"] == [0, 1, 2, 3] and told["labels"] and told["dtype"] == "float16"
        assert told["samples"] == {"train": 96, "dev": 32}[name]
    again = record(capsys, "train", "--train", tmp_path / "train", "--dev", tmp_path / "dev", "--out", tmp_path / "net",
                   *SMALL)
    assert score(again) == score(made) > 0.8
    assert [one["accuracy"] for one in again["results"]] == [one["accuracy"] for one in made["results"]]
    same_folders(tmp_path / "direct", tmp_path / "net", but=["task.json"])

    # The saved network reads features and tables alike.
    told = record(capsys, "evaluate", tmp_path / "net", "--input", tmp_path / "dev")
    assert told["scores"]["accuracy"] == score(made) and told["rows"] == 32
    counts = np.array(told["confusion"]["counts"])
    assert counts.sum() == 32 and np.trace(counts) / 32 == score(made)
    assert told["confusion"]["classes"] == ["negative", "positive"]
    assert told == record(capsys, "evaluate", tmp_path / "net", *backbone, "--input", place / "dev.tsv", *COLUMNS)
    call(capsys, "predict", tmp_path / "net", "--input", tmp_path / "dev", "--out", tmp_path / "one.tsv")
    call(capsys, "predict", tmp_path / "direct", *backbone, "--input", place / "dev.tsv", "--out", tmp_path / "two.tsv")
    assert (tmp_path / "one.tsv").read_text() == (tmp_path / "two.tsv").read_text()


def test_extract_takes_states_and_a_type(place, tmp_path, capsys):
    told = record(capsys, "extract", "--backbone", place / "bert", "--input", place / "dev.tsv", "--text", "sentence",
                  "--taps", "0,2", "--dtype", "int8", "--max-length", 5, "--out", tmp_path / "dev")
    features = sherl.Features.open(tmp_path / "dev")
    assert told["states"] == [0, 2] and not told["labels"] and features.dtypes == ["int8", "int8"]
    assert features.lengths.max() == 5 and features.nbytes == told["bytes"]
    out, error = call(capsys, "train", "--train", tmp_path / "dev", "--dev", tmp_path / "dev",
                      "--out", tmp_path / "net", code=1)
    assert out == "" and "there are no labels beside the features" in error


def test_labels_stay_with_features(place, tmp_path, capsys):
    call(capsys, "extract", "--backbone", place / "bert", "--input", place / "dev.tsv", *COLUMNS,
         "--out", tmp_path / "one")
    call(capsys, "features", "merge", tmp_path / "one", tmp_path / "one", "--out", tmp_path / "two", "--quiet")
    call(capsys, "features", "convert", tmp_path / "two", "--dtype", "int8", "--out", tmp_path / "narrow", "--quiet")
    labels = read_table(place / "dev.tsv", ["label"])["label"]
    assert read_table(tmp_path / "narrow" / "labels.jsonl", ["label"])["label"] == labels * 2
    assert record(capsys, "features", "info", tmp_path / "narrow")["labels"] is True
    assert record(capsys, "features", "verify", tmp_path / "narrow")["intact"] is True


def test_a_flipped_byte_of_the_labels_is_refused_or_an_edit_of_one(place, tmp_path, capsys):
    call(capsys, "extract", "--backbone", place / "bert", "--input", place / "dev.tsv", *COLUMNS,
         "--out", tmp_path / "one")
    path = tmp_path / "one" / "labels.jsonl"
    content, labels = path.read_bytes(), read_labels(tmp_path / "one")
    refused = 0
    for bit in np.random.default_rng(0).choice(8 * len(content), 300, replace=False):
        spoilt = bytearray(content)
        spoilt[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        try:
            found = read_inputs([tmp_path / "one"]).labels
        except ValueError as error:
            assert str(tmp_path / "one") in str(error)
            refused += 1
        else:
            assert len(found) == len(labels) and sum(a != b for a, b in zip(found, labels)) <= 1
    assert refused > 150


def test_features_without_their_last_layer_need_the_backbone(place, tmp_path, capsys):
    backbone = sherl.load_backbone(place / "bert")
    for name in ("train", "dev"):
        table = read_table(place / f"{name}.tsv", ["sentence", "label"])
        backbone.extract(table["sentence"], out=tmp_path / name, late=0)
        shutil.copy(place / f"{name}.tsv", tmp_path / f"{name}.tsv")
        (tmp_path / name / "labels.jsonl").write_text("".join(json.dumps({"label": text}) + "\n"
                                                             for text in table["label"]))
    assert "lacks the frozen last layer" in call(
        capsys, "train", "--train", tmp_path / "train", "--dev", tmp_path / "dev", "--out", tmp_path / "n", code=1)[1]
    assert score(train(capsys, tmp_path, "{}", tmp_path / "net", "--backbone", place / "bert")) > 0.8
    write_tiny_bert(tmp_path / "other", seed=1)
    assert "the states of another backbone" in call(
        capsys, "train", "--train", tmp_path / "train", "--dev", tmp_path / "dev", "--out", tmp_path / "n",
        "--backbone", tmp_path / "other", code=1)[1]


# ---- Images ----


def test_images_are_trained_on_scored_and_predicted(place, tmp_path, capsys):
    backbone = ["--backbone", place / "vit"]
    made = train(capsys, place, "images/{}", tmp_path / "net", *backbone)
    assert made["classes"] == ["blue", "red"] and made["train_rows"] == 96 and score(made) > 0.9
    told = record(capsys, "evaluate", tmp_path / "net", *backbone, "--input", place / "images" / "dev",
                  "--plot", tmp_path / "confusion.png")
    assert told["scores"]["accuracy"] == score(made)
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    call(capsys, "predict", tmp_path / "net", *backbone, "--input", place / "images" / "dev",
         "--out", tmp_path / "p.csv")
    table = read_table(tmp_path / "p.csv", ["file", "prediction"])
    right = [name.startswith(prediction + "/") for name, prediction in zip(table["file"], table["prediction"])]
    assert np.mean(right) == score(made) and table["file"][0] == "blue/001.png"

    call(capsys, "extract", *backbone, "--input", place / "images" / "dev", "--out", tmp_path / "dev")
    assert record(capsys, "evaluate", tmp_path / "net", "--input", tmp_path / "dev") == told
    assert "max_length" not in record(capsys, "info", tmp_path / "net")


def test_states_of_images_are_kept_on_disk(place, tmp_path, capsys):
    states = ["--features", tmp_path / "f"]
    made = train(capsys, place, "images/{}", tmp_path / "one", "--backbone", place / "vit", *states)
    assert score(train(capsys, place, "images/{}", tmp_path / "two", *states)) == score(made)
    same_folders(tmp_path / "one", tmp_path / "two")
    (place / "images" / "dev" / "red" / "998.png").write_bytes((place / "images/dev/red/000.png").read_bytes())
    try:
        assert "the images of" in call(
            capsys, "train", "--train", place / "images/train", "--dev", place / "images/dev", "--out", tmp_path / "n",
            *states, code=1)[1]
    finally:
        (place / "images" / "dev" / "red" / "998.png").unlink()


def test_images_without_classes_are_predicted_but_not_trained_on(place, tmp_path, capsys):
    train(capsys, place, "images/{}", tmp_path / "net", "--backbone", place / "vit", "--no-probe", "--epochs", 1)
    (tmp_path / "loose").mkdir()
    for number in range(3):
        shutil.copy(place / f"images/dev/{'red' if number % 2 == 0 else 'blue'}/00{number}.png", tmp_path / "loose")
    told = record(capsys, "predict", tmp_path / "net", "--backbone", place / "vit", "--input", tmp_path / "loose",
                  "--out", tmp_path / "p.tsv")
    assert told["rows"] == 3 and read_table(tmp_path / "p.tsv", ["file"])["file"] == [f"00{n}.png" for n in range(3)]
    told = record(capsys, "extract", "--backbone", place / "vit", "--input", tmp_path / "loose",
                  "--out", tmp_path / "f")
    assert told["labels"] is False
    assert "expected images in a folder for each class" in call(
        capsys, "evaluate", tmp_path / "net", "--backbone", place / "vit", "--input", tmp_path / "loose", code=1)[1]
    (tmp_path / "loose" / "000.png").write_bytes(b"no picture")
    assert "000.png: the image cannot be read" in call(
        capsys, "predict", tmp_path / "net", "--backbone", place / "vit", "--input", tmp_path / "loose", "--out",
        tmp_path / "p.tsv", code=1)[1]


def test_a_resnet_is_tapped_at_the_ends_of_its_stages(tmp_path, capsys):
    write_tiny_resnet(tmp_path / "resnet")
    for name, count, seed in (("train", 32, 1), ("dev", 16, 2)):
        write_images(tmp_path / name, count, seed)
    made = train(capsys, tmp_path, "{}", tmp_path / "net", "--backbone", tmp_path / "resnet", "--epochs", 2)
    assert score(made) >= 0.5
    assert record(capsys, "info", tmp_path / "net")["taps"] == [2, 4, 6, 7]
    told = record(capsys, "evaluate", tmp_path / "net", "--backbone", tmp_path / "resnet", "--input", tmp_path / "dev")
    assert told["scores"]["accuracy"] == score(made)
    told = record(capsys, "extract", "--backbone", tmp_path / "resnet", "--input", tmp_path / "dev", "--out",
                  tmp_path / "features")
    assert told["states"] == [2, 4, 6, 7, 8]
    told = record(capsys, "evaluate", tmp_path / "net", "--input", tmp_path / "features")
    assert told["scores"]["accuracy"] == score(made)


def write_tiny_resnet(folder, seed=0):
    """Write a ResNet of two bottlenecks a stage with random weights, by torchvision's names."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    weights = {}

    def convolution(name, outputs, inputs, size):
        weights[f"{name}.weight"] = rng.standard_normal((outputs, inputs, size, size)) / np.sqrt(inputs * size * size)

    def norm(name, channels):
        for part, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            weights[f"{name}.{part}"] = np.full(channels, value)

    convolution("conv1", 4, 3, 7)
    norm("bn1", 4)
    inputs = 4
    for stage, width in enumerate((2, 4, 6, 8), 1):
        for block in range(2):
            place = f"layer{stage}.{block}"
            for number, sizes in enumerate([(width, inputs, 1), (width, width, 3), (4 * width, width, 1)], 1):
                convolution(f"{place}.conv{number}", *sizes)
                norm(f"{place}.bn{number}", sizes[0])
            if block == 0:
                convolution(f"{place}.downsample.0", 4 * width, inputs, 1)
                norm(f"{place}.downsample.1", 4 * width)
            inputs = 4 * width
    write_tensors(folder / "model.safetensors", {name: array.astype(np.float32) for name, array in weights.items()})
    settings = {"do_resize": True, "size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


# ---- Arrays ----


def test_arrays_are_trained_on_scored_and_predicted(place, tmp_path, capsys):
    made = train(capsys, place, "{}.npz", tmp_path / "net")
    assert made["classes"] == ["0", "1"] and score(made) > 0.8
    told = record(capsys, "evaluate", tmp_path / "net", "--input", place / "dev.npz")
    assert told["scores"]["accuracy"] == score(made)
    assert set(told["scores"]) == {"accuracy", "f1"}

    # The same arrays as files of their own, in a folder and one by one, give the same network.
    for name in ("train", "dev"):
        (tmp_path / name).mkdir()
        with np.load(place / f"{name}.npz") as archive:
            for key in archive.files:
                np.save(tmp_path / name / f"{key}.npy", archive[key])
    assert score(train(capsys, tmp_path, "{}", tmp_path / "second")) == score(made)
    files = sorted((tmp_path / "train").iterdir())
    record(capsys, "train", "--train", *files, "--dev", tmp_path / "dev", "--out", tmp_path / "third", *SMALL)
    for name in ("second", "third"):
        same_folders(tmp_path / "net", tmp_path / name)
    call(capsys, "predict", tmp_path / "net", "--input", tmp_path / "dev", "--out", tmp_path / "p.jsonl")
    labels = np.load(tmp_path / "dev" / "labels.npy")
    found = np.array(read_table(tmp_path / "p.jsonl", ["prediction"])["prediction"], int)
    assert np.mean(found == labels) == score(made)


def test_some_taps_of_arrays(place, tmp_path, capsys):
    made = train(capsys, place, "{}.npz", tmp_path / "net", "--taps", "0,2")
    told = record(capsys, "evaluate", tmp_path / "net", "--input", place / "dev.npz")
    assert told["scores"]["accuracy"] == score(made) and record(capsys, "info", tmp_path / "net")["taps"] == [0, 2]


def test_values_of_arrays(tmp_path, capsys):
    for name, count, seed in (("train", 96, 1), ("dev", 32, 2)):
        taps, labels, mask = problem(samples=count, seed=seed)
        noise = np.random.default_rng(seed).standard_normal(count)
        np.savez(tmp_path / f"{name}.npz", tap_0=taps[0], tap_1=taps[-1], mask=mask, y=50 + 10 * labels + noise)
    made = train(capsys, tmp_path, "{}.npz", tmp_path / "net", "--task", "regression", "--label", "y")
    told = record(capsys, "evaluate", tmp_path / "net", "--input", tmp_path / "dev.npz")
    assert told["scores"]["pearson"] == pytest.approx(made["results"][-1]["pearson"]) and "confusion" not in told
    assert made["results"][-1]["pearson"] > 0.5
    assert "the labels are numbers that are not whole; pass --task regression" in call(
        capsys, "train", "--train", tmp_path / "train.npz", "--dev", tmp_path / "dev.npz", "--label", "y", "--out",
        tmp_path / "n", code=2)[1]
    assert "--plot draws the confusion of classes" in call(
        capsys, "evaluate", tmp_path / "net", "--input", tmp_path / "dev.npz", "--plot", "a.png", code=2)[1]


@pytest.mark.parametrize("change, sentence", [
    ({"tap_1": None}, "expected the arrays tap_0, tap_1 … without gaps"),
    ({"labels": None}, "there is no array 'labels'; the arrays are tap_0"),
    ({"labels": np.zeros(3, int)}, "expected 32 labels, one for each sample, got 3"),
    ({"labels": np.zeros((32, 2))}, "labels must be numbers or text of shape (samples,), got float64 of shape (32, 2)"),
    ({"odd": np.zeros(3)}, "expected the arrays tap_0, tap_1 …, mask and labels, got odd too"),
    ({"tap_1": np.zeros((32, 7), int)}, "taps[1] must"),
    ({"mask": np.zeros((2, 2))}, "mask must have shape"),
])
def test_arrays_that_do_not_fit(place, tmp_path, capsys, change, sentence):
    with np.load(place / "dev.npz") as archive:
        arrays = {**archive, **change}
    np.savez(tmp_path / "bad.npz", **{name: array for name, array in arrays.items() if array is not None})
    out, error = call(capsys, "train", "--train", tmp_path / "bad.npz", "--dev", place / "dev.npz", "--out",
                      tmp_path / "net", code=1)
    assert out == "" and sentence in error


# ---- What is refused ----


def test_inputs_that_are_refused(place, tmp_path, capsys):
    bert, vit = ["--backbone", place / "bert"], ["--backbone", place / "vit"]
    train(capsys, place, "{}.npz", tmp_path / "net", "--epochs", 1, "--no-probe")
    train(capsys, place, "{}.tsv", tmp_path / "text", *bert, *COLUMNS, "--epochs", 1, "--no-probe")
    (tmp_path / "a.npz").write_bytes(b"PK no archive")
    (tmp_path / "a.npy").write_bytes(b"no array")
    (tmp_path / "empty").mkdir()

    def training(path, *more):
        return ["train", "--train", path, "--dev", path, "--out", tmp_path / "n", *more]

    for code, sentence, arguments in [
        (2, "--text and --label must name columns of the table", training(place / "train.tsv", *bert)),
        (2, "--backbone is needed, or --features with", training(place / "images/train")),
        (2, "a.txt: expected a file named *.tsv", training(tmp_path / "a.txt")),
        (2, "expected a .npy file, as the others are", [*training(place / "train.npz"), "--train", "a.tsv", "a.npy"]),
        (2, "--features keeps the states of texts or images", training(place / "train.npz", "--features", "f")),
        (1, "the file is not an archive of arrays", training(tmp_path / "a.npz")),
        (1, "the file is not an array of numbers", [*training(place / "train.npz"), "--dev", tmp_path / "a.npy"]),
        (1, "expected images, features or .npy files in the folder", training(tmp_path / "empty", *vit)),
        (1, "holds images, but the BERT backbone takes text", training(place / "images/train", *bert)),
        (1, "holds texts, but the DINOv2 backbone takes image", training(place / "train.tsv", *COLUMNS, *vit)),
        (1, "holds states already", ["extract", "--input", place / "dev.npz", "--out", tmp_path / "n", *bert]),
        (1, "--taps must end with 2, which the last layer receives, got 1",
         training(place / "train.tsv", *bert, *COLUMNS, "--taps", "0,1")),
        (1, "--taps: there is no state 7 to tap; there are 0, 1, 2", training(place / "train.npz", "--taps", "0,7")),
        (2, "--backbone is needed for the texts of",
         ["predict", tmp_path / "text", "--input", place / "dev.tsv", "--out", tmp_path / "p.tsv"]),
        (1, "late layer 0 is frozen", ["predict", tmp_path / "text", "--input", place / "dev.npz", "--out",
                                       tmp_path / "p.tsv"]),
        (1, "none of the classes '0', '1'", ["evaluate", tmp_path / "net", "--input", relabelled(place, tmp_path)]),
    ]:
        out, error = call(capsys, *arguments, code=code)
        assert out == "" or "Read" in out
        assert sentence in error.splitlines()[-1], (sentence, error)
        assert not (tmp_path / "p.tsv").exists() and not list(tmp_path.glob("n/*"))


def relabelled(place, tmp_path):
    with np.load(place / "dev.npz") as archive:
        arrays = {**archive, "labels": np.full(32, 2)}
    np.savez(tmp_path / "relabelled.npz", **arrays)
    return tmp_path / "relabelled.npz"
