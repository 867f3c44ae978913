"""ResNets of either block: weights by the names of torchvision, timm and Hugging Face, or of an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _core
from .._typing import Array, Integers, PathLike, Record, Source, StateDict
from ..blocks.residual import BasicBlock, Bottleneck, folded
from ..blocks.weights import read_weight
from ..checks import flag
from .files import Tensors
from .image import read_preprocessed
from .onnx_weights import OnnxGraph
from .preprocessing import Preprocessor
from .samples import Samples, arrays_fingerprint

EPS = 1e-5  # of the batch norms, which no configuration tells

_NORM = ("weight", "bias", "running_mean", "running_var")
_STAGES, _MOST_BLOCKS = 4, 100
_POOL = 3  # pixels and their distance of the pooling after the first convolution
_POOL_STRIDE = 2
_IMAGES_AT_A_TIME = 8


@dataclass(frozen=True)
class Naming:
    """How checkpoints name the convolutions and norms of a ResNet.

    Attributes
    ----------
    prefixes : tuple of str
    stem : tuple of str
        Places of the first convolution and its norm.
    block : str
        What comes before the names of a block, with {stage} and {block} for its numbers, or {layer} for stage + 1.
    places : dict of str to str
        By torchvision's place in a block, this naming's.
    """

    prefixes: tuple[str, ...]
    stem: tuple[str, str]
    block: str
    places: dict[str, str]


_PLACES = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample.0", "downsample.1")
TORCH = Naming(("",), ("conv1", "bn1"), "layer{layer}.{block}.", {place: place for place in _PLACES})
HUGGING_FACE = Naming(
    ("", "resnet."), ("embedder.embedder.convolution", "embedder.embedder.normalization"),
    "encoder.stages.{stage}.layers.{block}.",
    dict(zip(_PLACES, [f"layer.{number}.{kind}" for number in range(3) for kind in ("convolution", "normalization")]
             + ["shortcut.convolution", "shortcut.normalization"])),
)  # fmt: skip

# Relatives have tensors of these names too, and others that change what is computed: by the name of one, what to say.
_RELATIVES = {
    "conv1.0.weight": "a first part of three convolutions (ResNet-C, ResNet-D)",
    "layer1.0.downsample.2.weight": "shortcuts that average pixels (ResNet-D)",
    "layer2.0.downsample.2.weight": "shortcuts that average pixels (ResNet-D)",
    "layer1.0.se.fc1.weight": "squeeze-and-excitation",
    "layer1.0.se.conv.weight": "channel attention",
}


class ResNetStem:
    """The first convolution with its norm folded in, ReLU, and the largest of each 3x3 pixels at every second one.

    Parameters
    ----------
    folder : path-like
        Of the preprocessing.
    arrays : dict of str to numpy.ndarray
        "weight", of shape (channels, size * size * channels of an image), and "bias".
    size, stride, padding : int
        Of the convolution.
    edges : tuple of (int, int)
        Rows and columns that the pooling adds before and after.
    channels : int
        Of the images.
    """

    max_length = None

    def __init__(self, folder: PathLike, arrays: StateDict, *, size: int, stride: int, padding: int,
                 edges: tuple[int, int], channels: int) -> None:
        self.arrays = arrays
        self._window = {"size": size, "stride": stride, "padding": padding}
        self._edges, self._channels = edges, channels
        self._preprocess = Preprocessor(folder, channels)
        self._store = _core.Parameters()
        self._program: _core.Program | None = None

    @property
    def facts(self) -> Record:
        """What the states depend on beside the arrays."""
        return {**self._window, "edges": list(self._edges), "channels": self._channels}

    @property
    def out_features(self) -> int:
        """Channels of state 0."""
        return len(self.arrays["bias"])

    def read(self, images: Any, preprocessed: bool) -> Samples:
        """Return images, checked, as `Samples`."""
        images, sizes, preprocess, facts = read_preprocessed(images, self._channels, preprocessed, self._preprocess)
        pooled = self._pooled_size(self._convolved_size(np.array(sizes, np.int64)))
        if pooled.min() < 1:
            raise ValueError(f"images must have more pixels, got {min(sizes)[0]} x {min(sizes)[1]}")

        def inputs(start: int, stop: int) -> list[Source]:
            rows = []
            for first in range(start, stop, _IMAGES_AT_A_TIME):
                last = min(first + _IMAGES_AT_A_TIME, stop)
                chosen = [preprocess(image) for image in images[first:last]]
                rows += self._pooled(chosen)
            return [(np.concatenate(rows), None)]

        return Samples(pooled, inputs, lambda: arrays_fingerprint(images), facts)

    def build(self, graph: _core.Graph) -> int:
        """Add state 0 to a graph, as an input."""
        return graph.input("pixels", graph.grid("pixels"), self.out_features)

    def _convolved_size(self, sizes: Integers) -> Integers:
        window = self._window
        return (sizes + 2 * window["padding"] - window["size"]) // window["stride"] + 1

    def _pooled_size(self, sizes: Integers) -> Integers:
        return (sizes + sum(self._edges) - _POOL) // _POOL_STRIDE + 1

    def _pooled(self, images: Sequence[Array]) -> list[Array]:
        """Return the rows of state 0 of some images."""
        sizes = np.array([image.shape[:2] for image in images], np.int64)
        pixels = np.ascontiguousarray(np.concatenate([image.reshape(-1, self._channels) for image in images]))
        convolved = self._convolved_size(sizes)
        out = np.empty((int(convolved.prod(axis=1).sum()), self.out_features), np.float32)
        self._convolution().forward(len(images), [None, sizes], [(pixels, None)], [(out, None)])
        parts = np.split(out, np.cumsum(convolved.prod(axis=1))[:-1])
        return [self._largest(part.reshape(*size, -1)) for part, size in zip(parts, convolved)]

    def _convolution(self) -> _core.Program:
        if self._program is None:
            graph = _core.Graph(self._store, False)
            x = graph.input("pixels", graph.grid("pixels"), self._channels)
            weight, bias = (graph.parameter(name, self.arrays[name].shape, "frozen", data=self.arrays[name])
                            for name in ("weight", "bias"))
            graph.output(graph.convolution(x, weight, bias, **self._window, activation="relu"))
            self._program = graph.compile(False)
        return self._program

    def _largest(self, image: Array) -> Array:
        """Return the largest of each window of an image, which has no negative numbers, as rows."""
        padded = np.pad(image, (self._edges, self._edges, (0, 0)))
        height, width = self._pooled_size(np.array(image.shape[:2]))
        largest = np.zeros((height, width, image.shape[2]), np.float32)
        for y in range(_POOL):
            for x in range(_POOL):
                rows = padded[y : y + _POOL_STRIDE * height : _POOL_STRIDE, x : x + _POOL_STRIDE * width : _POOL_STRIDE]
                np.maximum(largest, rows[:height, :width], out=largest)
        return largest.reshape(height * width, -1)


# ---- Folders ----


def read_resnet(folder: PathLike, tensors: Tensors, naming: Naming,
                config: Record) -> tuple[ResNetStem, list[Bottleneck]]:
    """Return stem and blocks of a ResNet with a checkpoint's tensors.

    Parameters
    ----------
    folder : path-like
    tensors : files.Tensors
    naming : Naming
    config : dict
        Of Hugging Face; empty with names of torchvision, where the tensors tell the sizes.
    """
    layer_type = config.get("layer_type")
    if layer_type not in (None, "bottleneck", "basic") or config.get("hidden_act", "relu") != "relu":
        raise ValueError("only ResNets of bottlenecks or basic blocks with ReLU can be run")
    tensors.choose_prefix(naming.prefixes, naming.stem[0] + ".weight")
    _refuse_relatives(tensors)
    stem = _read_stem(folder, tensors, naming)
    first_stride = 2 if flag(config.get("downsample_in_first_stage", False), "downsample_in_first_stage") else 1
    stride_first = flag(config.get("downsample_in_bottleneck", False), "downsample_in_bottleneck")
    basic = _are_basic(layer_type, config, naming, tensors)
    if not basic:
        _refuse_groups(tensors, _place(naming, 0, 0) + naming.places["conv2"] + ".weight")
    blocks, features = [], stem.out_features
    for stage, depth in enumerate(_depths(config, naming, tensors)):
        for number in range(depth):
            stride = (first_stride if stage == 0 else 2) if number == 0 else 1
            weights = _read_block(tensors, naming, _place(naming, stage, number), features, basic)
            blocks.append(_block_of(weights, stride, stride_first))
            features = blocks[-1].out_features
    return stem, blocks


def _are_basic(layer_type: Any, config: Record, naming: Naming, tensors: Tensors) -> bool:
    """Tell whether the blocks are basic ones: as the configuration says, else as they have no third convolution."""
    if config:
        return bool(layer_type == "basic")
    return _place(naming, 0, 0) + naming.places["conv3"] + ".weight" not in tensors and (
        tensors.shape(_place(naming, 0, 0) + naming.places["conv1"] + ".weight", 4)[2:] == (3, 3)
    )


def _block_of(weights: StateDict, stride: int, stride_first: bool) -> Any:
    if "conv3.weight" in weights:
        return Bottleneck.from_resnet(weights, stride, EPS, stride_first)
    return BasicBlock.from_resnet(weights, stride, EPS)


def _refuse_relatives(tensors: Tensors) -> None:
    for name, what in _RELATIVES.items():
        if name in tensors:
            raise ValueError(f"only plain ResNets can be run, and not those with {what}, which has the tensor {name}")


def _depths(config: Record, naming: Naming, tensors: Tensors) -> list[int]:
    """Return how many blocks each stage has: as the configuration says, else as many as there are, and one at least."""
    if "depths" in config:
        depths = config["depths"]
        if not isinstance(depths, list) or not depths or not all(type(depth) is int and depth > 0 for depth in depths):
            raise ValueError(f"depths must be a list of whole numbers, got {depths!r}")
        return depths
    first = f"{naming.places['conv1']}.weight"
    present = [[number for number in range(_MOST_BLOCKS) if _place(naming, stage, number) + first in tensors]
               for stage in range(_STAGES)]
    return [max(numbers, default=0) + 1 for numbers in present]


def _place(naming: Naming, stage: int, number: int) -> str:
    return naming.block.format(stage=stage, layer=stage + 1, block=number)


def _read_stem(folder: PathLike, tensors: Tensors, naming: Naming) -> ResNetStem:
    convolution, norm = naming.stem
    outputs, channels = tensors.shape(f"{convolution}.weight", 4)[:2]
    arrays = {"conv1.weight": tensors.read(f"{convolution}.weight", (outputs, channels, 7, 7))}
    arrays |= {f"bn1.{leaf}": tensors.read(f"{norm}.{leaf}", (outputs,)) for leaf in _NORM}
    weight, bias = folded(arrays, "conv1", "bn1", EPS)
    return ResNetStem(folder, {"weight": weight, "bias": bias}, size=7, stride=2, padding=3, edges=(1, 1),
                      channels=channels)


def _read_block(tensors: Tensors, naming: Naming, place: str, features: int, basic: bool) -> StateDict:
    """Return a block's tensors by torchvision's names."""
    named = {ours: place + theirs for ours, theirs in naming.places.items()}
    width = tensors.shape(named["conv1"] + ".weight", 4)[0]
    if basic:
        outputs = width
        shapes = {"conv1": (width, features, 3, 3), "conv2": (width, width, 3, 3)}
    else:
        outputs = tensors.shape(named["conv3"] + ".weight", 4)[0]
        shapes = {"conv1": (width, features, 1, 1), "conv2": (width, width, 3, 3), "conv3": (outputs, width, 1, 1)}
    norms = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3"}
    if named["downsample.0"] + ".weight" in tensors:
        shapes["downsample.0"], norms["downsample.0"] = (outputs, features, 1, 1), "downsample.1"
    weights = {}
    for convolution, shape in shapes.items():
        weights[f"{convolution}.weight"] = tensors.read(f"{named[convolution]}.weight", shape)
        norm = norms[convolution]
        weights |= {f"{norm}.{leaf}": tensors.read(f"{named[norm]}.{leaf}", shape[:1]) for leaf in _NORM}
    return weights


def _refuse_groups(tensors: Tensors, name: str) -> None:
    outputs, inputs = tensors.shape(name, 4)[:2]
    if inputs < outputs and outputs % inputs == 0:
        raise ValueError("only ResNets without groups of channels can be run, and not those of ResNeXt: "
                         f"{name} has {outputs // inputs} groups")


# ---- ONNX graphs ----


def read_onnx_resnet(graph: OnnxGraph, folder: PathLike) -> tuple[ResNetStem, list[Bottleneck]]:
    """Return stem and blocks of a ResNet whose batch norms an export has folded into the convolutions.

    Names tell nothing: each block is found from the sum that ends it.
    """
    sums = [node for node in graph.nodes if node.op_type == "Add" and any(_ends_convolution(graph, node))]
    pools = [node for node in graph.nodes if node.op_type == "MaxPool"]
    if not sums or len(pools) != 1 or any(node.op_type == "BatchNormalization" for node in graph.nodes):
        raise ValueError(f"{graph.path} holds no backbone that can be read, neither a DINOv2 nor a ResNet with its "
                         "batch norms folded in")
    stem = _read_onnx_stem(graph, pools[0], folder)
    blocks, source = [], pools[0].output[0]
    for node in sums:
        weights, stride, stride_first, begin = _read_onnx_block(graph, node)
        if begin != source:
            raise ValueError(f"{graph.path}: the block that ends with {node.name} does not read the one before it")
        blocks.append(_block_of(weights, stride, stride_first))
        source = _only_reader(graph, node.output[0], "Relu").output[0]
    return stem, blocks


def _read_onnx_stem(graph: OnnxGraph, pool: Any, folder: PathLike) -> ResNetStem:
    convolution = graph.maker(_before(graph, pool.input[0], "Relu"))
    weight, bias, window = _read_convolution(graph, convolution, "the first convolution")
    attributes = graph.attributes(pool)
    pads = tuple(attributes.get("pads", [0] * 4))
    fits = attributes.get("kernel_shape") == [_POOL] * 2 and attributes.get("strides") == [_POOL_STRIDE] * 2
    if not fits or pads[:2] != pads[:1] * 2 or pads[2:] != pads[2:3] * 2 or attributes.get("ceil_mode", 0):
        raise ValueError(f"{graph.path}: {pool.name} must pool 3x3 pixels with stride 2")
    matrix = np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).reshape(len(weight), -1)
    return ResNetStem(folder, {"weight": matrix, "bias": bias}, **window, edges=(pads[0], pads[2]),
                      channels=weight.shape[1])


def _read_onnx_block(graph: OnnxGraph, node: Any) -> tuple[StateDict, int, bool, str]:
    """Return weights by torchvision's names, the stride, whether it stands first, and what value the block reads."""
    makers = [graph.maker(name) for name in node.input]
    chains = [_chain(graph, maker) for maker in makers]
    long = max(range(2), key=lambda number: len(chains[number]))
    if len(chains[long]) not in (2, 3):
        raise ValueError(f"{graph.path}: the block that ends with {node.name} is neither a bottleneck of three "
                         "convolutions nor a basic block of two")
    short, weights, strides = chains[1 - long], {}, []
    for place, convolution in [*zip(("conv1", "conv2", "conv3"), reversed(chains[long])),
                               *zip(("downsample.0",), short)]:
        weight, bias, window = _read_convolution(graph, convolution, node.name)
        if window["padding"] != window["size"] // 2:
            raise ValueError(f"{graph.path}: {convolution.name} must keep heights and widths but for its stride")
        weights[f"{place}.weight"], weights[f"{place}.bias"] = weight, bias
        strides.append(window["stride"])
    begin = chains[long][-1].input[0]
    if (short[0].input[0] if short else node.input[1 - long]) != begin:
        raise ValueError(f"{graph.path}: the shortcut to {node.name} does not begin where its block does")
    own, beside = strides[: len(chains[long])], strides[len(chains[long]) :]
    stride, stride_first = own[0] * own[1], own[0] > 1
    strided = own[1:] if len(own) == 2 else [own[2], min(own[:2])]  # of a basic block the first map alone has a stride
    if max(strided) > 1 or beside not in ([], [stride]):
        raise ValueError(f"{graph.path}: the strides before {node.name} are not those of a ResNet's block")
    return weights, stride, stride_first, begin


def _ends_convolution(graph: OnnxGraph, node: Any) -> list[bool]:
    makers = [graph.maker(name) for name in node.input]
    return [maker is not None and maker.op_type == "Conv" for maker in makers]


def _chain(graph: OnnxGraph, node: Any) -> list[Any]:
    """Return the convolutions that end in a node, with ReLU in between, the last one first."""
    chain = []
    while node is not None and node.op_type == "Conv":
        chain.append(node)
        before = graph.maker(node.input[0])
        node = graph.maker(before.input[0]) if before is not None and before.op_type == "Relu" else None
    return chain


def _read_convolution(graph: OnnxGraph, node: Any, what: str) -> tuple[Array, Array, dict[str, int]]:
    if node is None or node.op_type != "Conv" or len(node.input) != 3:
        raise ValueError(f"{graph.path}: a convolution with bias was expected before {what}")
    weight, bias = (graph.array(name) for name in node.input[1:])
    attributes = graph.attributes(node)
    pads, strides = attributes.get("pads", [0] * 4), attributes.get("strides", [1] * 2)
    plain = attributes.get("group", 1) == 1 and set(attributes.get("dilations", [1])) == {1}
    if weight is None or bias is None or weight.ndim != 4 or len({*weight.shape[2:]}) > 1 or not plain:
        raise ValueError(f"{graph.path}: {node.name} must be a plain square convolution of constant weights")
    if len(set(pads)) > 1 or len(set(strides)) > 1 or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise ValueError(f"{graph.path}: {node.name} must have one stride, and the same padding on all sides")
    window = {"size": weight.shape[2], "stride": strides[0], "padding": pads[0]}
    names = [f"{graph.path}: {name}" for name in node.input[1:]]
    return read_weight(weight, names[0]), read_weight(bias, names[1]), window


def _before(graph: OnnxGraph, name: str, kind: str) -> str:
    """Return what a node of a kind reads that makes a value, or the value where another node makes it."""
    maker = graph.maker(name)
    return maker.input[0] if maker is not None and maker.op_type == kind else name


def _only_reader(graph: OnnxGraph, name: str, kind: str) -> Any:
    readers = [node for node in graph.nodes if name in node.input]
    if len(readers) != 1 or readers[0].op_type != kind:
        raise ValueError(f"{graph.path}: {name} must be read by one {kind} alone")
    return readers[0]
