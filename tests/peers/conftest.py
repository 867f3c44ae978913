"""Lets the tests of this folder import the benchmarks, which are not installed, and torchvision beside any PyTorch."""

import pathlib
import sys

from image_models import import_torchvision

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
import_torchvision()  # before transformers, which imports it where it is installed
