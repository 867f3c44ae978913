"""The blocks of a network in nodes of ONNX, padded: `mask` is bool of shape (batch, tokens), or None."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .._typing import Record
from .writer import Weights, Writer

LEFT_OUT = -1e30  # score of a key that is left out: finite, so that a row that sees no key does not become NaN


def adapter(w: Weights, settings: Record, taps: Sequence[str], mask: str | None) -> str:
    """The Multi-Tiered Sensing Adapter; w: Weights."""
    writer, spatial = w.writer, settings["guidance"] == "spatial"
    features = taps[: settings["taps"]]
    if settings["pool"] is not None:
        features = [_window_pool(writer, tap, size) for tap, size in zip(features, settings["pool"])]
    x = [_down(w, settings, number, tap) for number, tap in enumerate(features)]
    dimensions = 2 if spatial else 3 if settings["pool"] is None else 4
    if spatial:
        guide = w.linear("guide_down", writer.relu(taps[-1]))
        x = [*(_over_tokens(w, settings, number, each, guide, mask) for number, each in enumerate(x)), guide]
    stacked = writer.node("Concat", *(writer.unsqueeze(each, -2) for each in x[:-1]), axis=-2)
    y = _up(w, settings, _guidance(w, settings, stacked, x[-1], dimensions))
    if spatial:
        return writer.add(y, taps[-1])
    gate = math.tanh(float(w.array("gate")[0]) / settings["gate_temperature"])
    return writer.add(y, writer.multiply(taps[-1], gate))


def _down(w: Weights, settings: Record, number: int, x: str) -> str:
    writer, place = w.writer, f"down.{number}"
    if settings["down"] == "gated":
        z = writer.relu(w.linear(f"{place}.proj", x))
        value = writer.add(w.linear(f"{place}.value", z), z)
        return writer.multiply(value, writer.node("Sigmoid", w.linear(f"{place}.gate", z)))
    if settings["down"] == "relu":
        return w.linear(place, writer.relu(x))
    norm = w.layer_norm if settings["down"] == "layernorm" else w.batch_norm
    return norm(f"{place}.norm", w.linear(place, x), settings["down_norm_eps"])


def _over_tokens(w: Weights, settings: Record, number: int, x: str, guide: str, mask: str | None) -> str:
    writer = w.writer
    u = writer.relu(w.linear(f"spatial.{number}", writer.multiply(x, writer.unsqueeze(guide, 1))))
    u = writer.squeeze(u, -1)
    if mask is not None:
        u = writer.multiply(u, writer.cast(mask, "float32"))
    mixed = writer.squeeze(writer.node("MatMul", writer.unsqueeze(u, 1), x), 1)
    mixed = writer.divide(mixed, writer.add(writer.sum(u, 1, keep=True), settings["eps"]))
    base = _chosen_row(writer, x, mask, "first" if settings["base"] == "first" else "last")
    if settings["gated_base"]:
        gate = float(w.array("spatial_gate")[number]) / settings["gate_temperature"]
        base = writer.multiply(base, 1 / (1 + math.exp(-gate)))
    return writer.add(mixed, base)


def _guidance(w: Weights, settings: Record, x: str, guide: str, dimensions: int) -> str:
    """x: (…, shallow features, hidden), guide: (…, hidden), which has so many dimensions."""
    writer, eps = w.writer, settings["eps"]
    length = writer.node("ReduceL2", x, writer.whole(-1), keepdims=1)
    unit = writer.divide(x, writer.add(length, eps))
    swapped = writer.transpose(unit, *range(dimensions - 1), dimensions, dimensions - 1)
    redundancy = writer.sum(writer.relu(writer.node("MatMul", unit, swapped)), -1)
    relevance = writer.relu(w.linear("guide", writer.multiply(x, writer.unsqueeze(guide, -2))))
    relevance = writer.squeeze(relevance, -1)
    # A feature that is zero has no direction and takes no part.
    zero = writer.node("Equal", redundancy, writer.constant(0.0))
    weights = writer.where(zero, 0.0, writer.divide(relevance, writer.where(zero, 1.0, redundancy)))
    total = writer.add(writer.node("ReduceL1", weights, writer.whole(-1), keepdims=1), eps)
    weights = writer.unsqueeze(writer.divide(weights, total), -2)
    mixed = writer.squeeze(writer.node("MatMul", weights, x), -2)
    if settings["guidance"] == "residual_mlp":
        mixed = w.linear("guide.mlp.1", writer.relu(w.linear("guide.mlp.0", mixed)))
        mixed = w.layer_norm("guide.mlp.norm", mixed, settings["down_norm_eps"])
    return writer.add(mixed, guide)


def _up(w: Weights, settings: Record, g: str) -> str:
    writer, norm = w.writer, settings["up_norm"]
    y = w.linear("up", g if norm == "batchnorm" else writer.relu(g))
    if norm == "batchnorm":
        return writer.relu(w.batch_norm("up.norm", y, settings["up_norm_eps"]))
    return w.layer_norm("up.norm", y, settings["up_norm_eps"]) if norm == "layernorm" else y


def transformer_layer(w: Weights, settings: Record, x: str, mask: str | None, positions: str | None = None,
                      memory: str | None = None, memory_positions: str | None = None,
                      memory_mask: str | None = None) -> str:
    """A transformer layer, with the options of all families."""
    positions = positions if settings["positions"] else None
    memory_positions = memory_positions if settings["memory_positions"] else None
    x = _sublayer(w, settings, "attention", x, lambda n: _attend(w, settings, n, mask, positions))
    if settings["memory_features"] is not None:
        assert memory is not None  # a network gives it to layers that read it
        x = _sublayer(w, settings, "cross", x,
                      lambda n: _attend_to(w, settings, n, positions, memory, memory_positions, memory_mask))
    return _sublayer(w, settings, "feed_forward", x, lambda n: _feed_forward(w, settings, n))


def _sublayer(w: Weights, settings: Record, name: str, x: str, function: Callable[[str], str]) -> str:
    norm = w.layer_norm if settings["norm"] == "layernorm" else w.rms_norm
    post = settings["placement"] == "post"
    f = function(x if post else norm(f"{name}_norm", x, settings["eps"]))
    if settings["placement"] == "sandwich":
        f = norm(f"{name}_after_norm", f, settings["eps"])
    if settings["layer_scale"]:
        f = w.writer.multiply(f, w[f"{name}_scale.weight"])
    y = w.writer.add(x, f)
    return norm(f"{name}_norm", y, settings["eps"]) if post else y


def _feed_forward(w: Weights, settings: Record, n: str) -> str:
    if not settings["gated"]:
        return w.linear("down", w.writer.activate(w.linear("up", n), settings["activation"]))
    gate = w.writer.activate(w.linear("gate", n), settings["activation"])
    return w.linear("down", w.writer.multiply(gate, w.linear("up", n)))


def _heads(w: Weights, settings: Record, prefix: str, asking: str, asked: str, told: str) -> Iterable[str]:
    """Queries, keys and values, (batch, heads, rows, channels of a head)."""
    writer, key_heads = w.writer, settings["key_heads"]
    parts = (("query", asking, settings["heads"]), ("key", asked, key_heads), ("value", told, key_heads))
    return (
        writer.transpose(writer.reshape(w.linear(prefix + part, x), 0, 0, count, settings["head_size"]), 0, 2, 1, 3)
        for part, x, count in parts
    )


def _shared(writer: Writer, settings: Record, key: str, value: str) -> Iterable[str]:
    """Keys and values, one head for each of the queries'."""
    heads, key_heads = settings["heads"], settings["key_heads"]
    if key_heads == heads:
        return key, value
    shared = writer.whole(*np.repeat(np.arange(key_heads), heads // key_heads))
    return (writer.node("Gather", each, shared, axis=1) for each in (key, value))


def _scores(writer: Writer, settings: Record, query: str, key: str) -> str:
    return writer.multiply(writer.node("MatMul", query, writer.transpose(key, 0, 1, 3, 2)), settings["scale"])


def _mixed(w: Weights, settings: Record, prefix: str, scores: str, value: str) -> str:
    writer = w.writer
    mixed = writer.node("MatMul", writer.node("Softmax", scores, axis=-1), value)
    rows = writer.reshape(writer.transpose(mixed, 0, 2, 1, 3), 0, 0, settings["heads"] * settings["head_size"])
    return w.linear(prefix + "output", rows)


def _added(writer: Writer, x: str, positions: str | None) -> str:
    return x if positions is None else writer.add(x, positions)


def _attend_to(w: Weights, settings: Record, n: str, positions: str | None, memory: str, memory_positions: str | None,
               mask: str | None) -> str:
    writer = w.writer
    query, key, value = _heads(w, settings, "cross_", _added(writer, n, positions),
                               _added(writer, memory, memory_positions), memory)
    key, value = _shared(writer, settings, key, value)
    scores = _scores(writer, settings, query, key)
    if mask is not None:
        scores = writer.where(writer.unsqueeze(writer.unsqueeze(mask, 1), 1), scores, LEFT_OUT)
    return _mixed(w, settings, "cross_", scores, value)


def _attend(w: Weights, settings: Record, n: str, mask: str | None, positions: str | None) -> str:
    writer = w.writer
    placed = _added(writer, n, positions)
    query, key, value = _heads(w, settings, "", placed, placed, n)
    place = _positions_of(writer, n, mask)
    if settings["rotary_theta"] is not None:
        query, key = (_turn(writer, settings, each, place) for each in (query, key))
    key, value = _shared(writer, settings, key, value)
    scores = _scores(writer, settings, query, key)
    distance = writer.subtract(writer.unsqueeze(place, 1), writer.unsqueeze(place, 2))  # of the key from the query
    if settings["position_buckets"]:
        bias = writer.node("Gather", w["position_bias.weight"], _bucket(writer, settings, distance), axis=0)
        scores = writer.add(scores, writer.transpose(bias, 0, 3, 1, 2))
    if mask is not None:
        scores = writer.where(writer.unsqueeze(writer.unsqueeze(mask, 1), 1), scores, LEFT_OUT)
    if settings["causal"]:
        later = writer.node("Greater", distance, writer.constant(0, np.int64))
        scores = writer.where(writer.unsqueeze(later, 1), LEFT_OUT, scores)
    return _mixed(w, settings, "", scores, value)


def queries(w: Weights, settings: Record, x: str) -> tuple[str, str | None]:
    """The rows that enter a decoder, for every sample of x, and their positions or None."""
    writer = w.writer
    places = w["positions"] if settings["positions"] else None
    start = w.array("start") if settings["start"] else np.zeros((settings["count"], settings["features"]), np.float32)
    shape = writer.node("Concat", writer.length(x, 0), writer.whole(*start.shape), axis=0)
    return writer.node("Expand", writer.constant(start), shape), places


def _turn(writer: Writer, settings: Record, x: str, place: str) -> str:
    """Rotary positions: x (batch, heads, tokens, channels of a head)."""
    half, size = settings["rotary_dimensions"] // 2, settings["head_size"]
    speed = np.array(settings["rotary_speeds"])
    angle = writer.node("Mul", writer.unsqueeze(writer.cast(place, "float64"), -1), writer.constant(speed, np.float64))
    turns = writer.unsqueeze(angle, 1)
    cosine, sine = (writer.cast(writer.node(kind, turns), "float32") for kind in ("Cos", "Sin"))
    lengths = writer.whole(half, half, size - 2 * half) if size > 2 * half else writer.whole(half, half)
    a, b, *rest = writer.split("Split", x, lengths, outputs=3 if size > 2 * half else 2, axis=-1)
    first = writer.subtract(writer.multiply(a, cosine), writer.multiply(b, sine))
    second = writer.add(writer.multiply(b, cosine), writer.multiply(a, sine))
    return writer.node("Concat", first, second, *rest, axis=-1)


def _bucket(writer: Writer, settings: Record, distance: str) -> str:
    """Bucket of a relative position; in float32, as the published weights were trained."""
    count, zero = settings["position_buckets"], writer.constant(0, np.int64)
    first = None
    if settings["bidirectional"]:
        count //= 2
        later = writer.cast(writer.node("Greater", distance, zero), "int64")
        first = writer.node("Mul", later, writer.constant(count, np.int64))
        steps = writer.node("Abs", distance)
    else:
        steps = writer.node("Max", writer.node("Neg", distance), zero)
    exact = count // 2
    share = writer.divide(writer.cast(writer.node("Max", steps, writer.constant(1, np.int64)), "float32"), float(exact))
    octaves = writer.divide(writer.node("Log", share), math.log(settings["max_distance"] / exact))
    far = writer.cast(writer.multiply(octaves, float(count - exact)), "int64")
    far = writer.node("Min", writer.node("Add", far, writer.constant(exact, np.int64)),
                      writer.constant(count - 1, np.int64))
    bucket = writer.node("Where", writer.node("Less", steps, writer.constant(exact, np.int64)), steps, far)
    return bucket if first is None else writer.node("Add", bucket, first)


def norm(w: Weights, settings: Record, x: str, mask: str | None) -> str:
    """A norm of every row."""
    return (w.layer_norm if settings["kind"] == "LayerNorm" else w.rms_norm)("", x, settings["eps"])


def bottleneck(w: Weights, settings: Record, x: str, mask: str | None) -> str:
    """A bottleneck block of a ResNet, its batch norms folded in, channels last."""
    writer, stride, first = w.writer, settings["stride"], settings.get("stride_first", False)
    x = writer.transpose(x, 0, 3, 1, 2)
    z = writer.relu(w.convolution("reduce", x, stride=stride if first else 1))
    z = writer.relu(w.convolution("window", z, stride=1 if first else stride, padding=1))
    short = w.convolution("shortcut", x, stride=stride) if settings["shortcut"] else x
    return writer.transpose(writer.relu(writer.add(w.convolution("expand", z), short)), 0, 2, 3, 1)


def basic_block(w: Weights, settings: Record, x: str, mask: str | None) -> str:
    """A basic block of a ResNet, its batch norms folded in, channels last."""
    writer, stride = w.writer, settings["stride"]
    x = writer.transpose(x, 0, 3, 1, 2)
    z = writer.relu(w.convolution("first", x, stride=stride, padding=1))
    short = w.convolution("shortcut", x, stride=stride) if settings["shortcut"] else x
    z = writer.add(w.convolution("second", z, padding=1), short)
    return writer.transpose(writer.relu(z), 0, 2, 3, 1)


def pooled_head(w: Weights, settings: Record, x: str, dimensions: int, mask: str | None, positions: str | None) -> str:
    """A head with one row a sample; x has so many dimensions."""
    writer = w.writer
    if settings["kind"] == "Embedding":
        return _embed(w, settings, x, dimensions, mask, positions)
    x = _pooled(writer, x, dimensions, mask, settings["pool"], positions)
    if settings["pooler"]:
        x = writer.node("Tanh", w.linear("pooler", x))
    return w.linear("", x)


def _embed(w: Weights, settings: Record, x: str, dimensions: int, mask: str | None, positions: str | None) -> str:
    writer = w.writer
    if dimensions > 2 and settings["pool"] == "gpo":
        x = _by_rank(w, _rows(writer, w.linear("", x), dimensions), mask)
    elif dimensions > 2 and settings["pool"] == "max":
        x = _pooled(writer, w.linear("", x), dimensions, mask, "max", positions)
    else:
        x = w.linear("", _pooled(writer, x, dimensions, mask, settings["pool"], positions))
    if settings["normalize"]:
        x = _unit_rows(writer, x)
    if settings["temperature"] is None:
        return x
    return writer.multiply(x, math.exp(float(w.array("log_scale")[0])) / settings["temperature"])


def _by_rank(w: Weights, x: str, mask: str | None) -> str:
    """Generalized pooling: each channel's values, sorted, with weights learned for every rank."""
    writer = w.writer
    rank = _positions_of(writer, x, None)  # (1, rows)
    if mask is None:
        rows = writer.unsqueeze(writer.length(x, 1), 0)
        inside = writer.node("Less", rank, rows)
    else:
        rows = writer.sum(writer.cast(mask, "int64"), 1, keep=True)
        inside = writer.node("Less", rank, rows)
        x = writer.where(writer.unsqueeze(mask, -1), x, -np.inf)
    inside = writer.unsqueeze(inside, -1)
    ordered, _ = writer.split("TopK", x, writer.length(x, 1), outputs=2, axis=1, largest=1, sorted=1)
    ordered = writer.where(inside, ordered, 0.0)
    speed = writer.constant(10000.0 ** (-np.arange(8) / 8), np.float64)
    below = writer.node("Sub", writer.node("Sub", rows, writer.constant(1, np.int64)), rank)
    above = writer.node("Add", rank, writer.node("Mul", rows, writer.constant(0, np.int64)))  # a row a sample
    turns = [writer.node("Mul", writer.unsqueeze(writer.cast(place, "float64"), -1), speed) for place in (above, below)]
    code = [writer.cast(writer.node(kind, each), "float32") for each in turns for kind in ("Sin", "Cos")]
    code = writer.node("Concat", *(writer.unsqueeze(each, -1) for each in code), axis=-1)
    code = writer.reshape(code, 0, 0, 32)
    scores = w.linear("pool.score", writer.relu(w.linear("pool.hidden", code)))
    shares = writer.node("Softmax", writer.where(inside, scores, -np.inf), axis=1)
    return writer.sum(writer.multiply(shares, ordered), 1)


def row_head(w: Weights, settings: Record, x: str, mask: str | None) -> str:
    """A head with an output for every row."""
    writer = w.writer
    if settings["kind"] == "Detector":
        box = writer.relu(w.linear("box.1", writer.relu(w.linear("box.0", x))))
        parts = [w.linear("classes", x), writer.node("Sigmoid", w.linear("box.2", box))]
        if settings["align"]:
            parts.append(_unit_rows(writer, w.linear("align", x)))
        outputs = writer.node("Concat", *parts, axis=-1)
    else:
        outputs = w.linear("", x)
    return outputs if mask is None else writer.where(writer.unsqueeze(mask, -1), outputs, 0.0)


def _window_pool(writer: Writer, x: str, size: int) -> str:
    """Maximum plus mean of windows side by side, channels last."""
    x = writer.transpose(x, 0, 3, 1, 2)
    window: dict[str, Any] = {"kernel_shape": [size] * 2, "strides": [size] * 2}
    pooled = writer.add(writer.node("MaxPool", x, **window), writer.node("AveragePool", x, **window))
    return writer.transpose(pooled, 0, 2, 3, 1)


def _unit_rows(writer: Writer, x: str) -> str:
    length = writer.node("ReduceL2", x, writer.whole(-1), keepdims=1)
    return writer.divide(x, writer.node("Max", length, writer.constant(np.finfo(np.float32).tiny)))


def _rows(writer: Writer, x: str, dimensions: int) -> str:
    """Pixels of images as rows."""
    if dimensions == 3:
        return x
    shape = writer.node("Concat", writer.length(x, 0), writer.whole(-1), writer.length(x, 3), axis=0)
    return writer.node("Reshape", x, shape)


def _positions_of(writer: Writer, x: str, mask: str | None) -> str:
    """Number of each row among those that are meant, int64 of shape (batch or 1, tokens)."""
    one = writer.constant(1, np.int64)
    if mask is not None:
        counted = writer.node("CumSum", writer.cast(mask, "int64"), writer.constant(1, np.int64))
        return writer.node("Sub", counted, one)
    tokens = writer.node("Squeeze", writer.length(x, 1))
    return writer.unsqueeze(writer.node("Range", writer.constant(0, np.int64), tokens, one), 0)


def _chosen_row(writer: Writer, x: str, mask: str | None, which: str, positions: str | None = None) -> str:
    """The first row that is meant, the last, or that of a number: (batch, channels)."""
    place = _positions_of(writer, x, mask)
    if which == "first":
        wanted = writer.constant([[0]], np.int64)
    elif which == "last":
        wanted = writer.node("ReduceMax", place, writer.whole(1), keepdims=1)
    else:
        wanted = writer.unsqueeze(str(positions), 1)
    found = writer.node("Equal", place, wanted)
    if mask is not None:
        found = writer.node("And", found, mask)
    # (batch or 1, 1, rows) @ (batch, rows, channels)
    return writer.squeeze(writer.node("MatMul", writer.unsqueeze(writer.cast(found, "float32"), 1), x), 1)


def _pooled(writer: Writer, x: str, dimensions: int, mask: str | None, how: str, positions: str | None) -> str:
    """One row a sample of tokens, of the pixels of images, or of what has one row already."""
    if dimensions == 2:
        return x
    x = _rows(writer, x, dimensions)
    if how == "mean":
        if mask is None:
            return writer.node("ReduceMean", x, writer.whole(1), keepdims=0)
        kept = writer.cast(mask, "float32")
        total = writer.squeeze(writer.node("MatMul", writer.unsqueeze(kept, 1), x), 1)
        return writer.divide(total, writer.sum(kept, 1, keep=True))
    if how == "max":
        x = x if mask is None else writer.where(writer.unsqueeze(mask, -1), x, -np.inf)
        return writer.node("ReduceMax", x, writer.whole(1), keepdims=0)
    return _chosen_row(writer, x, mask, how, positions)
