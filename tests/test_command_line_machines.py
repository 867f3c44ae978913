"""What scripts rely on: sweeps, config files, JSON, exit codes, completion, and times and memory of `sherl bench`."""

import json
import os
import pty
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
from command_line_place import call, record
from small import problem

import sherl
from sherl.command_line import config_file
from sherl.command_line.completion import script
from sherl.command_line.main import main, make_parser

SMALL = ["--epochs", 4, "--batch-size", 8, "--threads", 2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with arrays of taps in train.npz and dev.npz."""
    folder = tmp_path_factory.mktemp("machines")
    for name, count, seed in (("train", 64, 1), ("dev", 32, 2)):
        taps, labels, mask = problem(samples=count, seed=seed)
        np.savez(folder / f"{name}.npz", **{f"tap_{number}": tap for number, tap in enumerate(taps)}, mask=mask,
                 labels=labels)
    return folder


def on_arrays(place, command, out, *more):
    return [command, "--train", place / "train.npz", "--dev", place / "dev.npz", "--out", out, *SMALL, *more]


# ---- Sweeps ----


def test_a_sweep_saves_the_best_of_the_networks_that_train_makes(place, tmp_path, capsys):
    made = record(capsys, *on_arrays(place, "sweep", tmp_path / "best", "--hidden", 4, 8, "--learning-rate", 1e-2, 1e-4,
                                     "--taps", "all", "0,2", "--plot", tmp_path / "sweep.png"))
    names = [result["name"] for result in made["results"]]
    assert names[:2] == ["majority class", "linear probe"] and len(names) == 10
    assert "hidden=8, learning-rate=0.01, taps=0,2" in names and "hidden=4, learning-rate=0.0001, taps=all" in names
    networks = {result["name"]: result for result in made["results"][2:]}
    assert networks[made["best"]]["accuracy"] == max(result["accuracy"] for result in networks.values())
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")

    told = record(capsys, "evaluate", tmp_path / "best", "--input", place / "dev.npz")
    assert told["scores"]["accuracy"] == networks[made["best"]]["accuracy"]
    options = [f"--{setting}" for setting in made["best"].split(", ")]
    alone = record(capsys, *on_arrays(place, "train", tmp_path / "alone", *options))
    assert alone["results"][-1]["accuracy"] == told["scores"]["accuracy"]
    for path in (tmp_path / "best").iterdir():
        assert path.read_bytes() == (tmp_path / "alone" / path.name).read_bytes()


def test_a_sweep_prints_a_table_with_the_best_marked(place, tmp_path, capsys):
    out, _ = call(capsys, *on_arrays(place, "sweep", tmp_path / "best", "--pool", "mean", "first", "--no-probe"))
    table = out.split("\n\n")[-1].splitlines()
    assert [line.split("  ")[0] for line in table] == ["", "majority class", "pool=mean", "pool=first"]
    assert sum(line.endswith("best") for line in table) == 1
    assert f"Saved to {tmp_path / 'best'}. Next: sherl predict {tmp_path / 'best'} --input PATH" in out


def test_a_sweep_of_values(tmp_path, capsys):
    for name, count, seed in (("train", 64, 1), ("dev", 32, 2)):
        taps, labels, _ = problem(samples=count, seed=seed)
        noise = np.random.default_rng(seed).standard_normal(count)
        np.savez(tmp_path / f"{name}.npz", tap_0=taps[0], tap_1=taps[-1], labels=50 + 10 * labels + noise)
    made = record(capsys, *on_arrays(tmp_path, "sweep", tmp_path / "net", "--task", "regression", "--hidden", 4, 8,
                                     "--learning-rate", 0.01))
    best = next(result for result in made["results"] if result["name"] == made["best"])
    told = record(capsys, "evaluate", tmp_path / "net", "--input", tmp_path / "dev.npz")
    assert told["scores"]["spearman"] == pytest.approx(best["spearman"], abs=1e-6)
    call(capsys, "predict", tmp_path / "net", "--input", tmp_path / "dev.npz", "--out", tmp_path / "p.tsv")
    values = np.loadtxt(tmp_path / "p.tsv", skiprows=1)
    assert 45 < values.mean() < 65  # in the unit of the targets


def test_networks_that_diverge_are_not_saved(place, tmp_path, capsys):
    options = ["--learning-rate", 1e30, "--schedule", "constant"]
    made = record(capsys, *on_arrays(place, "sweep", tmp_path / "net", *options), code=1)
    assert made["best"] is None and made["results"][-1]["accuracy"] is None and not list((tmp_path / "net").iterdir())


def test_an_interrupted_sweep_keeps_what_it_has(place, tmp_path, monkeypatch, capsys):
    update, steps = sherl.training.sweep._Entry.step, []

    def interrupted(entry, *arguments):
        steps.append(entry)
        if len(steps) == 20:  # of two networks with eight steps an epoch
            signal.raise_signal(signal.SIGINT)
        return update(entry, *arguments)

    monkeypatch.setattr(sherl.training.sweep._Entry, "step", interrupted)
    made = record(capsys, *on_arrays(place, "sweep", tmp_path / "net", "--hidden", 4, 8), code=130)
    assert made["interrupted"] is True and made["best"]
    monkeypatch.undo()
    best = next(result for result in made["results"] if result["name"] == made["best"])
    assert best["accuracy"] is not None
    call(capsys, "evaluate", tmp_path / "net", "--input", place / "dev.npz")


# ---- Config files ----


def test_a_config_file_is_the_same_as_its_options(place, tmp_path, capsys):
    (tmp_path / "run.toml").write_text(f"""
        train = "{place}/train.npz"
        dev = ["{place}/dev.npz"]
        epochs = 4
        batch-size = 8
        learning-rate = 1e-2
        hidden = 4
        metric = ["f1", "accuracy"]
        learning-rate-factor = "head.*=0.5"
        probe = false
        threads = 2
        json = true
    """)
    config = ["--config", tmp_path / "run.toml"]
    made = json.loads(call(capsys, "train", *config, "--out", tmp_path / "one")[0])
    more = ["--learning-rate", 0.01, "--hidden", 4, "--metric", "f1", "--metric", "accuracy", "--no-probe",
            "--learning-rate-factor", "head.*=0.5"]
    told = record(capsys, *on_arrays(place, "train", tmp_path / "two", *more))
    assert [list(result)[:3] for result in made["results"]] == [["name", "f1", "accuracy"]] * 2
    assert made["results"][-1]["f1"] == told["results"][-1]["f1"]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()

    # The command line wins, for lists and switches too; order does not matter.
    made = json.loads(call(capsys, "train", "--metric=accuracy", "--probe", *config, "--hidden=2", "--out",
                           tmp_path / "three")[0])
    assert [list(result)[:3] for result in made["results"]] == [["name", "accuracy", "trainable_parameters"]] * 3
    assert record(capsys, "info", tmp_path / "three")["early"].startswith("MTSA(taps=3, features=32, hidden=2")
    made = json.loads(call(capsys, "sweep", "--hidden", 2, 4, *config, "--out", tmp_path / "four")[0])
    assert [result["name"] for result in made["results"]] == ["majority class", "hidden=2", "hidden=4"]


@pytest.mark.parametrize("text, sentence", [
    ("learning_rate = 1", "the command has no option 'learning_rate'; did you mean 'learning-rate'?"),
    ("colour = 1", "the command has no option 'colour'; there are backbone, batch-size, clip-norm, "),
    ("help = true", "the command has no option 'help'"),
    ("config = 'a'", "the command has no option 'config'"),
    ("quiet = 1", "quiet must be true or false, got 1"),
    ("epochs = true", "epochs must be a value, got True"),
    ("epochs = [1, 2]", "epochs must be one value, got [1, 2]"),
    ("[train]\nepochs = 2", "train must be text, a number, or a list of these, got {'epochs': 2}"),
    ("dev = []", "dev must be text, a number, or a list of these, got []"),
    ("epochs =", "the file is not TOML"),
])
def test_config_files_that_are_refused(tmp_path, capsys, text, sentence):
    (tmp_path / "run.toml").write_text(text)
    out, error = call(capsys, "train", "--config", tmp_path / "run.toml", code=2)
    assert out == "" and f"{tmp_path / 'run.toml'}: {sentence}" in error and error.startswith("sherl train: error: ")


def test_values_of_a_config_file_are_checked_as_options_are(tmp_path, capsys):
    (tmp_path / "run.toml").write_text("epochs = 0")
    with pytest.raises(SystemExit) as caught:
        main(["demo", f"--config={tmp_path / 'run.toml'}"])
    assert caught.value.code == 2 and "argument --epochs: expected an integer of at least 1" in capsys.readouterr().err
    assert "nothing.toml: No such file" in call(capsys, "demo", "--config", tmp_path / "nothing.toml", code=1)[1]


def test_config_files_of_commands_below_commands(tmp_path):
    (tmp_path / "run.toml").write_text('dtype = "int8"\nquiet = true\nout = "-x y"')
    tokens = ["features", "convert", "in", "--config", str(tmp_path / "run.toml")]
    arguments = make_parser().parse_args(config_file.with_config(make_parser(), tokens))
    assert (arguments.folder, arguments.dtype, arguments.quiet, arguments.out) == ("in", "int8", True, "-x y")


def test_a_config_file_without_a_reader_of_toml(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", None)
    (tmp_path / "run.toml").write_text("")
    assert "pip install 'sherl[config]'" in call(capsys, "demo", "--config", tmp_path / "run.toml", code=1)[1]


# ---- JSON and exit codes ----


def test_json_is_all_that_goes_to_standard_output(place, tmp_path, capsys):
    for arguments in (on_arrays(place, "train", tmp_path / "net"), on_arrays(place, "sweep", tmp_path / "sweep"),
                      ["evaluate", tmp_path / "net", "--input", place / "dev.npz"],
                      ["predict", tmp_path / "net", "--input", place / "dev.npz", "--out", tmp_path / "p.tsv"],
                      ["info", tmp_path / "net"], ["info"], ["bench", "--channels", 8, "--tokens", 4, "--steps", 2]):
        out, error = call(capsys, *arguments, "--json")
        assert isinstance(json.loads(out), dict)
        assert bool(error.strip()) == (arguments[0] != "info")
        out, error = call(capsys, *arguments, "--json", "--quiet")
        assert isinstance(json.loads(out), dict) and error == ""
    out, error = call(capsys, "info", tmp_path / "nothing", "--json", code=1)
    assert out == "" and "expected a folder" in error


def test_exit_codes_of_the_process(tmp_path):
    program = "import sys; from sherl.command_line.main import main; sys.exit(main())"
    for code, arguments in [(0, ["--version"]), (0, ["train", "--help"]), (1, ["info", str(tmp_path / "nothing")]),
                            (2, ["bench", "--layers", "1"]), (2, ["train"]), (2, [])]:
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr and bool(done.stderr) == (code > 0)
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True)
    assert "exit codes: 0 done, 1 failed or refused what it was to read, 2 wrong usage, 130 interrupted" in done.stdout


# ---- Bench ----


def test_bench_tells_times_and_the_memory_plan(capsys):
    told = record(capsys, "bench", "--channels", 16, "--layers", 3, "--tokens", 4, "--batch-size", 8, "--steps", 3)
    assert told["steps"] == 3 and 0 < told["seconds_least"] <= told["seconds_median"]
    network = sherl.SideNetwork(
        sherl.MTSA.bert(16, 3, 48),
        [sherl.TransformerLayer(16, 1)],
        sherl.Classifier(16, 2, pool="mean"),
    )
    assert told["parameters"] == network.num_parameters() - network.late[0].num_parameters()
    assert told["memory_plan"]["total"] == sum(size for name, size in told["memory_plan"].items() if name != "total")
    out, _ = call(capsys, "bench", "--channels", 16, "--layers", 3, "--steps", 1, "--pool", "first")
    assert "time of a step, median" in out and "planned workspace" in out


def test_bench_ends_soon(monkeypatch, capsys):
    monkeypatch.setattr("sherl.command_line.bench._LONGEST", 0.0)
    assert record(capsys, "bench", "--channels", 16, "--layers", 2, "--steps", 10_000)["steps"] == 1


# ---- Completion ----


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "sherl.bash"
    path.write_text(script(make_parser(), "bash"))
    return path


def completed(bash_script, line, folder):
    """Return what bash's own completion calls offer for a line whose last word is being typed."""
    words = line.split(" ")
    program = f"""
        source {shlex.quote(str(bash_script))}
        [[ $(complete -p sherl) == 'complete -F _sherl sherl' ]] || exit 9
        COMP_WORDS=({shlex.join(words[:-1])} {shlex.quote(words[-1])}) COMP_CWORD={len(words) - 1}
        _sherl sherl {shlex.quote(words[-1])} {shlex.quote(words[-2])}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "--norc", "-c", program], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\n")[:-1] if done.stdout != "\n" else []


def test_bash_completes_commands_options_and_values(bash_script, tmp_path):
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a.tsv").write_text("")

    def offered(line):
        return completed(bash_script, line, tmp_path)

    assert offered("sherl ") == "demo extract train sweep evaluate predict features info bench completion".split()
    assert offered("sherl pre") == ["predict"]
    assert offered("sherl train --ta") == ["--taps", "--task"] or offered("sherl train --ta") == ["--task", "--taps"]
    assert offered("sherl train --task ") == ["classification", "regression"]
    assert offered("sherl features ") == ["verify", "info", "merge", "convert"]
    assert offered("sherl features convert --dtype f") == ["float32", "float16"]
    assert offered("sherl train --backbone a") == ["a folder"]
    assert sorted(offered("sherl train --train a")) == ["a folder", "a.tsv"]
    assert sorted(offered("sherl train --train a.tsv a")) == ["a folder", "a.tsv"]
    assert offered("sherl train --epochs ") == []
    assert offered("sherl completion ") == ["bash", "zsh", "fish"]
    assert offered("sherl info --j") == ["--json"]


def test_bash_completes_as_if_typed(bash_script, tmp_path):
    """An interactive bash, asked by a key for the completion of what stands on its line."""
    program = f"""
        source {shlex.quote(str(bash_script))}
        bind 'set bell-style none' 2>/dev/null
    """
    (tmp_path / "rc").write_text(program)
    master, slave = pty.openpty()
    with subprocess.Popen(["bash", "--rcfile", str(tmp_path / "rc"), "-i"], stdin=slave, stdout=slave, stderr=slave,
                          start_new_session=True, env={"PATH": "/usr/bin:/bin", "TERM": "dumb"}) as shell:
        os.close(slave)
        os.write(master, b"PS1='> '; sherl() { echo \"<$*>\"; }\n")
        os.write(master, b"sherl tra\t--tas\treg\t\n")
        os.write(master, b"exit\n")
        shell.wait(20)
        shown = b""
        try:
            while part := os.read(master, 4096):
                shown += part
        except OSError:  # the other side is closed
            pass
        os.close(master)
    assert b"sherl train --task reg" in shown and b"<train --task regression>" in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_hold_all_commands_and_options(shell, capsys):
    printed, error = call(capsys, "completion", shell)
    assert error == "" and printed == script(make_parser(), shell) + "\n"
    for word in ("extract", "sweep", "merge", "learning-rate-factor", "no-probe", "matthews_correlation", "bfloat16"):
        assert word in printed
