"""Weights of backbones from ONNX files: initializers by name, and those without one by the node that reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from .._typing import Array, PathLike, Record
from ..blocks.weights import read_weight

_PATCHES = "embeddings.patch_embeddings.projection.weight"


class OnnxGraph:
    """The nodes and constants of an ONNX file.

    Parameters
    ----------
    path : str or path-like

    Attributes
    ----------
    nodes : list
        In the order of the file.
    """

    def __init__(self, path: PathLike) -> None:
        try:
            import onnx
        except ImportError:
            raise ImportError("reading an ONNX file needs the onnx package: pip install 'sherl[onnx]'") from None
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist")
        try:
            graph = onnx.load(str(path)).graph
        except Exception as error:  # protobuf's errors, and those of files that hold the tensors
            raise ValueError(f"{path} is not a whole ONNX file: {error}") from error
        self.path = path
        self.nodes = list(graph.node)
        self._onnx = onnx
        self._initializers = {initializer.name: initializer for initializer in graph.initializer}
        constants = [node for node in self.nodes if node.op_type == "Constant"]
        self._constants = {node.output[0]: self.attributes(node).get("value") for node in constants}
        self._makers = {output: node for node in self.nodes for output in node.output}

    def __contains__(self, name: object) -> bool:
        return name in self._initializers

    def names(self) -> list[str]:
        """Return the names of the initializers."""
        return list(self._initializers)

    def array(self, name: str) -> Array | None:
        """Return an initializer or constant as an array, or None where the name is that of a computed value."""
        tensor = self._initializers.get(name, self._constants.get(name))
        return None if tensor is None else self._onnx.numpy_helper.to_array(tensor)

    def initializer(self, name: str) -> Array:
        """Return an initializer as an array."""
        array = self.array(name)
        if array is None:
            raise ValueError(f"{self.path} lacks the tensor {name}")
        return array

    def maker(self, name: str) -> Any:
        """Return the node that computes a value, or None."""
        return self._makers.get(name)

    def attributes(self, node: Any) -> dict[str, Any]:
        """Return a node's attributes by name."""
        return {attribute.name: self._onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}

    def within(self, place: str, *kinds: str) -> list[Any]:
        """Return the nodes of some kinds that an exported module has, itself or in its parts."""
        return [node for node in self.nodes if node.name.startswith(place) and node.op_type in kinds]


class OnnxTensors:
    """Tensors of an exported DINOv2 by their names in a checkpoint, as `files.Tensors` gives them.

    An export keeps the names of most parameters. Matrices become nameless, transposed inputs of products, whose nodes
    carry the module's path; the positions are cut into those of the class token and of the patches.

    Parameters
    ----------
    graph : OnnxGraph

    Attributes
    ----------
    config : dict
        What config.json would say.
    """

    def __init__(self, graph: OnnxGraph) -> None:
        self._graph = graph
        self._prefix = next(name[: -len(_PATCHES)] for name in graph.names() if name.endswith(_PATCHES))
        self._arrays: dict[str, Array] = {}
        place = "/" + self._prefix.replace(".", "/")
        for node in graph.within(place, "MatMul"):
            name = node.name.rpartition("/")[0][len(place) :].replace("/", ".") + ".weight"
            array = graph.array(node.input[1])
            if array is not None:
                self._arrays[name] = array.T
        self._arrays["embeddings.position_embeddings"] = self._positions(place)
        self.config = self._read_config(place)

    @classmethod
    def fit(cls, graph: OnnxGraph) -> bool:
        """Tell whether a graph holds a DINOv2."""
        return any(name.endswith(_PATCHES) for name in graph.names())

    def __contains__(self, name: str) -> bool:
        return name in self._arrays or self._prefix + name in self._graph

    def read(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return a tensor as an array of the core's type, which must be of a shape."""
        array = self._arrays.get(name)
        array = self._graph.array(self._prefix + name) if array is None else array
        if array is None:
            raise ValueError(f"{self._graph.path} lacks the tensor {self._prefix}{name}, of shape {shape}")
        if array.shape != shape:
            raise ValueError(f"{self._graph.path}: {self._prefix}{name} must have shape {shape}, got {array.shape}")
        return read_weight(array, f"{self._graph.path}: {self._prefix}{name}")

    def _positions(self, place: str) -> Array:
        """Return the positions: one array, or those of the class token before those of the patches."""
        whole = self._prefix + "embeddings.position_embeddings"
        if whole in self._graph:
            return self._graph.initializer(whole)
        parts = [
            array
            for node in self._graph.within(f"{place}embeddings/", "Concat", "Reshape")
            for name in node.input
            if name in self._graph and (array := self._graph.initializer(name)).ndim == 3
        ]
        parts.sort(key=lambda array: array.shape[1])
        if len(parts) != 2 or parts[0].shape[1] != 1:
            raise ValueError(f"{self._graph.path}: no position embeddings can be told among the initializers")
        return np.concatenate(parts, axis=1)

    def _read_config(self, place: str) -> Record:
        width, channels, patch, _ = self._graph.initializer(self._prefix + _PATCHES).shape
        numbers = [int(match[1]) for name in self._graph.names()
                   if (match := re.match(re.escape(self._prefix) + r"encoder\.layer\.(\d+)\.", name))]
        side = round((self._arrays["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
        inner = self._graph.array(f"{self._prefix}encoder.layer.0.mlp.fc1.bias")
        if not numbers or inner is None:
            raise ValueError(f"{self._graph.path} holds no layers that can be read, those of DINOv2 with mlp.fc1")
        return {
            "model_type": "dinov2",
            "hidden_size": width,
            "num_channels": channels,
            "patch_size": patch,
            "image_size": side * patch,
            "num_hidden_layers": max(numbers) + 1,
            "num_attention_heads": self._heads(f"{place}encoder/layer.0/attention/", width),
            "mlp_ratio": (len(inner) + 0.5) / width,  # which is rounded down
            "layer_norm_eps": self._eps(f"{place}encoder/layer.0/norm1/"),
        }

    def _heads(self, place: str, width: int) -> int:
        """Return the heads, which the shapes tell that queries, keys and values get."""
        for node in self._graph.within(place, "Reshape"):
            shape = self._shape(node.input[1])
            heads, size = shape[2:] if len(shape) == 4 else (None, None)
            if heads is not None and size is not None and heads * size == width:
                return heads
        raise ValueError(f"{self._graph.path}: no attention tells its heads")

    def _shape(self, name: str) -> list[int | None]:
        """Return a shape as far as it is constant, with None for numbers that are computed."""
        array = self._graph.array(name)
        if array is not None:
            return [int(number) for number in array.reshape(-1)]
        maker = self._graph.maker(name)
        if maker is None or maker.op_type != "Concat":
            return [None]
        return [number for part in maker.input for number in self._shape(part)]

    def _eps(self, place: str) -> float:
        """Return the eps of a layer norm: the number in the file, which has float32, as it was written in decimals."""
        for node in self._graph.within(place, "LayerNormalization"):
            return float(str(np.float32(self._graph.attributes(node).get("epsilon", 1e-5))))
        for node in self._graph.within(place, "Sqrt"):
            for name in self._graph.maker(node.input[0]).input:
                array = self._graph.array(name)
                if array is not None and array.size == 1:
                    return float(str(np.float32(array.reshape(-1)[0])))
        raise ValueError(f"{self._graph.path}: no layer norm tells its eps")
