"""The `sherl` command on a tiny backbone: training, predicting, describing, and every exit code."""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest
from command_line_place import WORDS, sentences, write_pairs, write_sentences
from tiny_bert import write_tiny_bert

import sherl
from sherl.command_line import demo
from sherl.command_line import main as entry
from sherl.command_line.console import aligned
from sherl.command_line.main import main
from sherl.command_line.measure import Measured
from sherl.data.assets import DemoAssets
from sherl.data.tables import read_table


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a backbone, tables, and a network trained on them."""
    folder = tmp_path_factory.mktemp("commands")
    write_tiny_bert(folder / "bert")
    write_sentences(folder / "train.tsv", 192, 1)
    write_sentences(folder / "dev.tsv", 64, 2)
    write_pairs(folder / "train.jsonl", 96, 3)
    write_pairs(folder / "dev.jsonl", 32, 4)
    with redirect_stdout(io.StringIO()) as printed:
        assert main(training(folder, folder / "net", "--json", "--quiet")) == 0
    (folder / "record.json").write_text(printed.getvalue())
    return folder


def scores_of(printed):
    """The results of a printed JSON object by name."""
    return {result["name"]: result for result in json.loads(printed)["results"]}


def training(folder, out, *more):
    options = {
        "--backbone": folder / "bert",
        "--train": folder / "train.tsv",
        "--dev": folder / "dev.tsv",
        "--text": "sentence",
        "--label": "label",
        "--task": "classification",
        "--out": out,
        "--hidden": 16,
        "--epochs": 8,
        "--batch-size": 8,
        "--learning-rate": 0.01,
        "--threads": 2,
    }
    return ["train", *(str(part) for pair in options.items() for part in pair), *map(str, more)]


def predicting(folder, network, table, out, *more):
    options = ["--backbone", folder / "bert", "--input", folder / table, "--out", out, "--quiet"]
    return ["predict", *map(str, [network, *options, *more])]


def test_training_prints_steps_and_a_table(place, tmp_path, capsys):
    assert main(training(place, tmp_path / "net")) == 0
    output = capsys.readouterr().out
    assert "Read 192 texts to train on and 64 to score on" in output
    table = output.split("\n\n")[-1].splitlines()
    assert [line.split("  ")[0] for line in table] == ["", "majority class", "linear probe", "SHERL"]
    assert table[0].split() == ["accuracy", "f1", "trainable", "seconds", "memory"]
    assert table[2].split()[4] == "33"


def test_training_learns_and_gives_the_same_network_again(place, tmp_path, capsys):
    assert main(training(place, tmp_path / "again", "--json", "--quiet")) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert printed.err == ""
    assert record["classes"] == ["negative", "positive"] and record["train_rows"] == 192 and record["dev_rows"] == 64
    scores = scores_of(printed.out)
    assert list(scores) == ["majority class", "linear probe", "SHERL"]
    assert scores["SHERL"]["accuracy"] > 0.9 > scores["majority class"]["accuracy"]
    for path in place.joinpath("net").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_options_of_training_reach_the_network(place, tmp_path, capsys):
    metrics = ["--metric", "matthews_correlation", "--metric", "accuracy"]
    more = ["--no-probe", "--train-rows", 40, "--pool", "first", "--patience", 2, "--json", "--schedule", "step"]
    more += ["--step-every", 2, "--clip-norm", 0.5, "--ema", 0.9, "--learning-rate-factor", "head.*=0.1"]
    assert main(training(place, tmp_path / "net", *metrics, *more)) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert record["train_rows"] == 40 and "Read 40 texts to train on" in printed.err
    assert [result["name"] for result in record["results"]] == ["majority class", "SHERL"]
    assert list(record["results"][1])[:3] == ["name", "matthews_correlation", "accuracy"]
    assert record["results"][0]["matthews_correlation"] is None


def test_training_from_features_on_disk_gives_the_same_network(place, tmp_path, capsys):
    states = tmp_path / "states"
    without = [part for part in training(place, tmp_path / "third") if part not in ("--backbone", str(place / "bert"))]
    runs = [training(place, tmp_path / "first"), training(place, tmp_path / "second"), without]
    for number, arguments in enumerate(runs):
        assert main([*arguments, "--features", str(states)]) == 0
        printed = capsys.readouterr().out
        assert ("Opening the features" in printed) == (number == 2) and "SHERL" in printed
    for path in place.joinpath("net").iterdir():
        for name in ("first", "second", "third"):
            assert path.read_bytes() == (tmp_path / name / path.name).read_bytes(), (name, path.name)
    for more, sentence in [
        (["--train-rows", "40"], "must hold the features of the texts of "),
        (["--max-length", "9"], "has --max-length 64, got 9"),
    ]:
        assert main([*without, "--features", str(states), *more]) == 1
        assert sentence in capsys.readouterr().err
    backbone = sherl.load_backbone(place / "bert")
    for name in ("train", "dev"):
        texts = read_table(place / f"{name}.tsv", ["sentence"])["sentence"]
        backbone.extract(texts, out=tmp_path / "other" / name, late=int(name == "dev"))
    assert main([*without, "--features", str(tmp_path / "other")]) == 1
    assert "must hold all states of a backbone and its last layer" in capsys.readouterr().err


def test_training_needs_a_backbone_or_features(place, tmp_path, capsys):
    without = [part for part in training(place, tmp_path / "net") if part not in ("--backbone", str(place / "bert"))]
    assert main(without) == 2
    assert "--backbone is needed, or --features with the states of one" in capsys.readouterr().err
    assert main([*without, "--features", str(tmp_path)]) == 1
    assert "is not a folder of features: it has no manifest.json" in capsys.readouterr().err


@pytest.fixture
def states(place, tmp_path):
    """Two folders of features of a few texts."""
    backbone = sherl.load_backbone(place / "bert")
    backbone.extract(["a good film", "a bad film"], out=tmp_path / "one")
    backbone.extract(["a dull film", "the cast is great", "a story"], out=tmp_path / "two")
    return tmp_path


def test_features_are_described(states, capsys):
    assert main(["features", "info", str(states / "one")]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[1].split() == ["samples", "2"] and "32 float32" in shown
    assert "TransformerLayer" in shown
    assert main(["features", "info", str(states / "one"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert main(["info", str(states / "one"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == record
    assert record["samples"] == 2 and record["rows"] == 10 and record["states"] == [0, 1, 2]
    assert record["max_length"] == 64 and record["late_layers"] == ["TransformerLayer"]


def test_features_are_verified(states, capsys):
    assert main(["features", "verify", str(states / "one")]) == 0
    assert "5 files of 0 MB are as they were written" in capsys.readouterr().out
    path = states / "one" / "tap.2.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["features", "verify", str(states / "one")]) == 1
    assert "sherl features: error" in (error := capsys.readouterr().err) and "tap.2.npy was altered" in error


def test_features_are_merged(place, states, capsys):
    one, two, whole = (str(states / name) for name in ("one", "two", "whole"))
    assert main(["features", "merge", one, two, "--out", whole]) == 0
    assert "Wrote 5 samples" in capsys.readouterr().out
    parts = [sherl.Features.open(folder) for folder in (one, two)]
    merged = sherl.Features.open(whole)
    assert merged[:2].fingerprint == parts[0].fingerprint and merged[2:].fingerprint == parts[1].fingerprint
    assert merged.source == parts[0].source and merged.layers[0].fingerprint == parts[0].layers[0].fingerprint
    backbone = sherl.load_backbone(place / "bert")
    for name, settings, fault in [("narrow", {"dtype": "float16"}, 'dtypes.0 was "float32" and is "float16"'),
                                  ("fewer", {"taps": [0, 1]}, "source.states.2 was 2 and is null"),
                                  ("short", {"max_length": 9}, "preprocessing.max_length was 64 and is 9")]:
        backbone.extract(["a film"], out=states / name, **settings)
        assert main(["features", "merge", one, str(states / name), "--out", str(states / "no")]) == 1
        assert fault in capsys.readouterr().err
        assert not (states / "no").exists()
    assert main(["features", "merge", one, two, "--out", whole]) == 1
    assert "must not hold features already" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_features_are_converted(states, capsys, dtype):
    assert main(["features", "convert", str(states / "two"), "--dtype", dtype, "--out", str(states / dtype)]) == 0
    features, narrow = sherl.Features.open(states / "two"), sherl.Features.open(states / dtype)
    assert narrow.fingerprint == features.astype(dtype).fingerprint
    assert narrow.layers[0].fingerprint == features.layers[0].fingerprint


@pytest.mark.parametrize("name", ["out.tsv", "out.csv.gz", "out.jsonl"])
def test_predictions_are_those_that_training_scored(place, tmp_path, name, capsys):
    assert main(predicting(place, place / "net", "dev.tsv", tmp_path / name)) == 0
    assert capsys.readouterr().out == ""
    labels = read_table(place / "dev.tsv", ["label"])["label"]
    table = read_table(tmp_path / name, ["prediction", "probability"])
    assert len(table["prediction"]) == len(labels) and set(table["prediction"]) <= set(WORDS)
    accuracy = np.mean([a == b for a, b in zip(table["prediction"], labels)])
    assert accuracy == scores_of((place / "record.json").read_text())["SHERL"]["accuracy"]
    assert all(0.5 <= float(probability) <= 1 for probability in table["probability"])


def test_predictions_do_not_depend_on_the_chunks(place, tmp_path, monkeypatch):
    assert main(predicting(place, place / "net", "dev.tsv", tmp_path / "whole.tsv")) == 0
    monkeypatch.setattr("sherl.command_line.trained._CHUNK", 7)
    assert main(predicting(place, place / "net", "dev.tsv", tmp_path / "chunks.tsv")) == 0
    assert (tmp_path / "whole.tsv").read_text() == (tmp_path / "chunks.tsv").read_text()


def test_regression_on_pairs(place, tmp_path, capsys):
    tables = ["--train", place / "train.jsonl", "--dev", place / "dev.jsonl"]
    more = [*tables, "--text", "a", "--text-pair", "b", "--label", "score", "--task", "regression"]
    assert main(training(place, tmp_path / "net", *more, "--json", "--quiet")) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["classes"] is None and list(record["results"][2])[:3] == ["name", "pearson", "spearman"]
    assert main(predicting(place, tmp_path / "net", "dev.jsonl", tmp_path / "out.csv")) == 0
    predictions = np.array(read_table(tmp_path / "out.csv", ["prediction"])["prediction"], dtype=float)
    targets = np.array(read_table(place / "dev.jsonl", ["score"])["score"], dtype=float)
    assert np.corrcoef(predictions, targets)[0, 1] == pytest.approx(record["results"][2]["pearson"], abs=1e-3)
    assert abs(np.mean(predictions - targets)) < 0.5 * np.std(targets)  # in the unit of the targets


def test_info_describes_both_kinds_of_folder(place, capsys):
    assert main(["info", str(place / "bert")]) == 0
    shown = capsys.readouterr().out
    assert "backbone" in shown and "outputs of layers 1 to 2; layer 3 is the late layer" in shown
    assert main(["info", str(place / "net"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["kind"] == "network" and record["task"] == "classification" and record["classes"] == sorted(WORDS)
    assert sum(int(np.prod(shape)) for shape in record["tensors"].values()) == record["trained_parameters"]
    assert record["backbone"] == sherl.load_backbone(place / "bert").fingerprint and record["late_layers"] == 1
    assert record["early"].startswith("MTSA(taps=3, features=32, hidden=16") and "pool=mean" in record["head"]
    assert record["tensors"]["early.up.weight"] == [32, 16] and not any("late." in name for name in record["tensors"])
    assert main(["info", str(place / "net")]) == 0
    assert "32 x 16" in capsys.readouterr().out


def bad_input(place, tmp_path):
    """Arguments that each must end in exit code 1, or 2 where options clash, with a part of the sentence."""
    out = tmp_path / "net"
    other = tmp_path / "other.tsv"
    other.write_text("label\tsentence\nneutral\tthe film is .\n")
    flat = tmp_path / "flat.tsv"
    flat.write_text("label\tsentence\nneutral\tthe film is .\nneutral\ta film\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    network = tmp_path / "broken"
    network.mkdir()
    (network / "task.json").write_text('{"format": "sherl task", "version": 9}')
    return [
        (training(place, out, "--text", "text"), "there is no column 'text'; the columns are 'label', 'sentence'"),
        (training(place, out, "--train", place / "no.tsv"), "no.tsv: No such file or directory"),
        (training(place, out, "--dev", other), "other.tsv, line 2, column 'label': the label 'neutral' is none of"),
        (training(place, out, "--train", flat), "flat.tsv: the column 'label' must hold at least two classes"),
        (training(place, out, "--task", "regression"), "train.tsv, line 2, column 'label': the label must be a finite"),
        (training(place, out, "--metric", "pearson"), "--metric pearson does not go with classification; choose from"),
        (training(place, out, "--backbone", tmp_path / "empty"), "empty"),
        (training(place, tmp_path / "file"), "file: File exists"),
        (predicting(place, tmp_path / "empty", "dev.tsv", tmp_path / "p.tsv"), "it has no task.json"),
        (predicting(place, network, "dev.tsv", tmp_path / "p.tsv"), "expected version 1 of the format, got 9"),
        (predicting(place, place / "net", "dev.tsv", tmp_path / "p.tsv", "--text-pair", "x"), "on single texts"),
        (predicting(place, place / "net", "dev.tsv", tmp_path / "file" / "p.tsv"), "file: File exists"),
        (["info", str(tmp_path / "empty")], "it holds no .safetensors file"),
        (["info", str(tmp_path / "nowhere")], "expected a folder, but there is none of this name"),
    ]


def test_bad_input_ends_in_a_sentence(place, tmp_path, capsys):
    for arguments, sentence in bad_input(place, tmp_path):
        assert main([*arguments]) == (2 if "--metric" in arguments else 1)
        printed = capsys.readouterr().err
        assert sentence in printed.splitlines()[-1] and "Traceback" not in printed
        assert printed.splitlines()[-1].startswith(f"sherl {arguments[0]}: error: ")
        assert not list(tmp_path.glob("net/*")) and not (tmp_path / "p.tsv").exists()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "the following arguments are required: command"),
        (["train"], "the following arguments are required: --train"),
        (["demo", "--epochs", "0"], "argument --epochs: expected an integer of at least 1, got '0'"),
        (["demo", "--learning-rate", "nan"], "argument --learning-rate: expected a number above 0, got 'nan'"),
        (["predict", "net", "--out", "out.txt"], "argument --out: out.txt: expected a file named *.tsv"),
        (["train", "--learning-rate-factor", "head"], "expected a pattern and a number, like 'head.*=0.1', got 'head'"),
        (["demo", "--epoch", "3"], "unrecognized arguments: --epoch 3"),
    ],
)
def test_bad_usage(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and sentence in capsys.readouterr().err


COMMANDS = "demo extract train sweep evaluate predict features info bench completion".split()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"example:\n  sherl {command}" in capsys.readouterr().out


def test_version_and_installation(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"sherl {sherl.__version__}\n"
    assert main(["info"]) == 0
    assert sherl.__version__ in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["threads"] == sherl.get_num_threads()


def test_an_interrupt_ends_in_130(place, tmp_path, monkeypatch, capsys):
    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(sherl, "load_backbone", interrupted)
    assert main(training(place, tmp_path / "net", "--quiet")) == 130
    assert capsys.readouterr().err == "\nsherl: interrupted\n"


def test_an_interrupted_training_is_kept(place, tmp_path, monkeypatch, capsys):
    fit = sherl.SideNetwork.fit

    def interrupted(network, *arguments, **options):
        class Impatient(sherl.Callback):
            def on_step_end(self, state):
                if state.step == 3:
                    signal.raise_signal(signal.SIGINT)

        return fit(network, *arguments, **options, callbacks=[Impatient()])

    monkeypatch.setattr(sherl.SideNetwork, "fit", interrupted)
    assert main(training(place, tmp_path / "net", "--json")) == 130
    printed = capsys.readouterr()
    assert json.loads(printed.out)["interrupted"] is True and "interrupted: what follows is from" in printed.err
    assert main(predicting(place, tmp_path / "net", "dev.tsv", tmp_path / "p.tsv")) == 0


def test_a_reader_that_goes_away_is_no_error(place):
    program = "import sys; from sherl.command_line.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "info", str(place / "net")]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.fixture
def small_reviews(place, tmp_path, monkeypatch):
    ratings = {"positive": 1.5, "negative": -1.5}
    rows = [f"{number}\t{ratings[label]}\t{text}" for number, (text, label) in enumerate(sentences(240, 5), 1)]
    (tmp_path / "reviews.txt").write_bytes("\r\n".join(rows).encode())
    monkeypatch.setattr(demo, "fetch_demo_assets", lambda: DemoAssets(place / "bert", tmp_path / "reviews.txt"))


def test_the_demo_start_to_end(small_reviews, tmp_path, capsys):
    how = ["--hidden", "16", "--learning-rate", "0.01", "--epochs", "10"]
    assert main(["demo", "--out", str(tmp_path / "out"), *how]) == 0
    shown = capsys.readouterr().out
    assert "216 sentences to train on, 24 held out (every 10th)" in shown
    table = [line.split() for line in shown.split("held-out sentences\n")[1].splitlines()[1:4]]
    assert [row[0] for row in table] == ["majority", "linear", "SHERL"]
    assert float(table[2][1]) > float(table[0][2])
    assert all(sentence in shown for sentence in demo._OWN_SENTENCES) and "What next" in shown
    assert main(["info", str(tmp_path / "out")]) == 0
    assert "negative, positive" in capsys.readouterr().out


def test_the_demo_can_be_limited(small_reviews, tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "out"), "--hidden", "8", "--limit", "60", "--epochs", "1"]) == 0
    shown = capsys.readouterr().out
    train, held_out = (int(word) for word in shown.split(" held out")[0].splitlines()[-1].split() if word.isdigit())
    assert train + held_out == 60
    assert main(["demo", "--out", str(tmp_path / "out"), "--limit", "1"]) == 1
    assert "--limit 1 leaves too few sentences" in capsys.readouterr().err


def test_columns_are_aligned():
    rows = [["", "accuracy"], ["SHERL", "1"], ["linear probe", "0.25"]]
    assert aligned(rows) == "               accuracy\nSHERL                 1\nlinear probe       0.25"


def test_memory_growth_is_measured():
    with Measured() as large:
        np.ones(16_000_000, dtype=np.float32)
    with Measured() as small:
        pass
    assert large.seconds >= 0
    if sys.platform == "linux":
        assert 60_000_000 < large.memory < 90_000_000 and small.memory < 10_000_000
    else:
        assert large.memory is None


def test_an_error_without_text_still_says_something():
    assert entry._sentence(MemoryError()) == "not enough memory"
    assert entry._sentence(FileNotFoundError(2, "No such file", "x.tsv")) == "x.tsv: No such file"
