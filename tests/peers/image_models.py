"""torchvision beside any PyTorch, so that it, timm and what of transformers looks for it can be imported."""

import importlib.util

import torch

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_torchvision():
    """Import torchvision where it is installed.

    PyPI's torchvision is built for the PyTorch with CUDA. Beside one for CPUs its compiled operators do not load, and
    its import fails at the two whose shapes it registers in any case. Once these are declared all that is Python works.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", _NMS)
        import torchvision  # noqa: F401
