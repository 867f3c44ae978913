"""Side networks in plain PyTorch, padded, as `to_torch` makes them. This file needs PyTorch alone.

Weights have the names that sherl gives them; `mask` is bool of shape (batch, tokens), True where a row is meant, or
None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEFT_OUT = -1e30  # score of a key that is left out: finite, so that a row that sees no key does not become NaN

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "tanh": torch.tanh,
}  # fmt: skip


class Part(nn.Module):
    """A part of a network: settings, and weights by dotted names.

    Parameters
    ----------
    settings : dict
        Those of sherl's block.
    tensors : dict of str to torch.Tensor
    trained : collection of str
        Names of those that are parameters which ask for gradients; the others are buffers.
    """

    def __init__(self, settings: dict[str, Any], tensors: dict[str, Tensor], trained: Collection[str] = ()) -> None:
        super().__init__()
        self.settings = settings
        for name, tensor in tensors.items():
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for place in path:
                if place not in owner._modules:
                    owner.add_module(place, nn.Module())
                owner = cast(nn.Module, owner._modules[place])
            if name in trained:
                owner.register_parameter(leaf, nn.Parameter(tensor))
            else:
                owner.register_buffer(leaf, tensor)

    def tensor(self, name: str) -> Any:
        """Return a weight, or None where there is none of the name."""
        *path, leaf = name.split(".")
        owner: nn.Module = self
        for place in path:
            part = owner._modules.get(place)
            if part is None:
                return None
            owner = part
        return owner._parameters.get(leaf, owner._buffers.get(leaf))

    def linear(self, place: str, x: Tensor) -> Tensor:
        prefix = f"{place}." if place else ""
        return F.linear(x, self.tensor(f"{prefix}weight"), self.tensor(f"{prefix}bias"))

    def layer_norm(self, place: str, x: Tensor, eps: float) -> Tensor:
        prefix = f"{place}." if place else ""
        weight = self.tensor(f"{prefix}weight")
        return F.layer_norm(x, weight.shape, weight, self.tensor(f"{prefix}bias"), eps)

    def rms_norm(self, place: str, x: Tensor, eps: float) -> Tensor:
        scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
        return x * scale * self.tensor(f"{place}.weight" if place else "weight")

    def batch_norm(self, place: str, x: Tensor, eps: float) -> Tensor:
        mean, variance, weight, bias = (
            self.tensor(f"{place}.{leaf}") for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        rows = F.batch_norm(x.reshape(-1, x.shape[-1]), mean, variance, weight, bias, self.training,
                            self.settings["momentum"], eps)
        return rows.reshape(x.shape)

    def dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.settings["dropout"], self.training)


class Adapter(Part):
    """The Multi-Tiered Sensing Adapter (Diao et al., ECCV 2024) on tokens, images (channels last) or a tower."""

    gate: Tensor
    spatial_gate: Tensor

    def forward(self, taps: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        settings = self.settings
        spatial = settings["guidance"] == "spatial"
        last = taps[-1]
        features = taps[: settings["taps"]]
        if settings["pool"] is not None:
            features = [window_pool(tap, size) for tap, size in zip(features, settings["pool"])]
        x = [self.down_map(number, tap) for number, tap in enumerate(features)]
        if spatial:
            guide = self.linear("guide_down", F.relu(last))
            x = [*(self.over_tokens(number, each, guide, mask) for number, each in enumerate(x)), guide]
        g = self.guidance(torch.stack(x[:-1], dim=-2), x[-1])
        y = self.up_map(g)
        return y + last if spatial else y + torch.tanh(self.gate / settings["gate_temperature"]) * last

    def down_map(self, number: int, x: Tensor) -> Tensor:
        settings, place = self.settings, f"down.{number}"
        if settings["down"] == "gated":
            z = F.relu(self.linear(f"{place}.proj", x))
            return (self.linear(f"{place}.value", z) + z) * torch.sigmoid(self.linear(f"{place}.gate", z))
        if settings["down"] == "relu":
            return self.linear(place, F.relu(x))
        norm = self.layer_norm if settings["down"] == "layernorm" else self.batch_norm
        return norm(f"{place}.norm", self.linear(place, x), settings["down_norm_eps"])

    def over_tokens(self, number: int, x: Tensor, guide: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens of one tap weighted by how they agree with the guide, plus a base row: (batch, hidden)."""
        settings = self.settings
        u = F.relu(self.linear(f"spatial.{number}", x * guide.unsqueeze(1))).squeeze(-1)
        u = u if mask is None else u * mask
        mixed = (u.unsqueeze(1) @ x).squeeze(1) / (u.sum(dim=1, keepdim=True) + settings["eps"])
        base = chosen_row(x, mask, "first" if settings["base"] == "first" else "last")
        if settings["gated_base"]:
            base = torch.sigmoid(self.spatial_gate[number] / settings["gate_temperature"]) * base
        return mixed + base

    def guidance(self, x: Tensor, guide: Tensor) -> Tensor:
        """x: (…, shallow features, hidden), guide: (…, hidden)."""
        eps = self.settings["eps"]
        unit = x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + eps)
        redundancy = F.relu(unit @ unit.transpose(-1, -2)).sum(dim=-1)
        relevance = F.relu(self.linear("guide", x * guide.unsqueeze(-2))).squeeze(-1)
        zero = redundancy == 0  # a feature that is zero has no direction and takes no part
        weights = torch.where(zero, 0.0, relevance / torch.where(zero, 1.0, redundancy))
        weights = weights / (weights.abs().sum(dim=-1, keepdim=True) + eps)
        mixed = (weights.unsqueeze(-2) @ x).squeeze(-2)
        if self.settings["guidance"] == "residual_mlp":
            mixed = self.linear("guide.mlp.1", F.relu(self.linear("guide.mlp.0", mixed)))
            mixed = self.layer_norm("guide.mlp.norm", mixed, self.settings["down_norm_eps"])
        return mixed + guide

    def up_map(self, g: Tensor) -> Tensor:
        norm, eps = self.settings["up_norm"], self.settings["up_norm_eps"]
        y = self.linear("up", g if norm == "batchnorm" else F.relu(g))
        if norm == "batchnorm":
            y = F.relu(self.batch_norm("up.norm", y, eps))
        elif norm == "layernorm":
            y = self.layer_norm("up.norm", y, eps)
        return self.dropout(y)


class Layer(Part):
    """A transformer layer, with the options of all families."""

    def forward(self, x: Tensor, mask: Tensor | None = None, positions: Tensor | None = None,
                memory: Tensor | None = None, memory_positions: Tensor | None = None,
                memory_mask: Tensor | None = None) -> Tensor:
        positions = positions if self.settings["positions"] else None
        memory_positions = memory_positions if self.settings["memory_positions"] else None
        x = self.sublayer("attention", x, lambda n: self.attend(n, mask, positions))
        if self.settings["memory_features"] is not None:
            assert memory is not None  # a network gives it to layers that read it
            x = self.sublayer("cross", x, lambda n: self.attend_to(n, positions, memory, memory_positions, memory_mask))
        return self.sublayer("feed_forward", x, self.feed_forward)

    def sublayer(self, name: str, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        settings = self.settings
        post = settings["placement"] == "post"
        f = self.dropout(function(x if post else self.norm(f"{name}_norm", x)))
        if settings["placement"] == "sandwich":
            f = self.norm(f"{name}_after_norm", f)
        if settings["layer_scale"]:
            f = f * self.tensor(f"{name}_scale.weight")
        return self.norm(f"{name}_norm", x + f) if post else x + f

    def norm(self, place: str, x: Tensor) -> Tensor:
        norm = self.layer_norm if self.settings["norm"] == "layernorm" else self.rms_norm
        return norm(place, x, self.settings["eps"])

    def feed_forward(self, n: Tensor) -> Tensor:
        activation = ACTIVATIONS[self.settings["activation"]]
        if self.settings["gated"]:
            return self.linear("down", activation(self.linear("gate", n)) * self.linear("up", n))
        return self.linear("down", activation(self.linear("up", n)))

    def heads_of(self, prefix: str, asking: Tensor, asked: Tensor, told: Tensor) -> Iterator[Tensor]:
        settings = self.settings
        heads, key_heads, size = settings["heads"], settings["key_heads"], settings["head_size"]
        parts = (("query", asking, heads), ("key", asked, key_heads), ("value", told, key_heads))
        return (self.linear(prefix + part, x).unflatten(-1, (count, size)).transpose(1, 2) for part, x, count in parts)

    def scores_of(self, query: Tensor, key: Tensor) -> Tensor:
        shared = self.settings["heads"] // self.settings["key_heads"]
        return self.settings["scale"] * query @ key.repeat_interleave(shared, dim=1).transpose(-1, -2)

    def mixed(self, prefix: str, scores: Tensor, value: Tensor) -> Tensor:
        settings = self.settings
        value = value.repeat_interleave(settings["heads"] // settings["key_heads"], dim=1)
        shares = F.dropout(torch.softmax(scores, dim=-1), settings["attention_dropout"], self.training)
        return self.linear(prefix + "output", (shares @ value).transpose(1, 2).flatten(-2))

    def attend_to(self, n: Tensor, positions: Tensor | None, memory: Tensor, memory_positions: Tensor | None,
                  mask: Tensor | None) -> Tensor:
        query, key, value = self.heads_of("cross_", added(n, positions), added(memory, memory_positions), memory)
        scores = self.scores_of(query, key)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], LEFT_OUT)
        return self.mixed("cross_", scores, value)

    def attend(self, n: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        settings, placed = self.settings, added(n, positions)
        query, key, value = self.heads_of("", placed, placed, n)
        place = positions_of(n, mask)  # (batch or 1, tokens)
        if settings["rotary_theta"] is not None:
            query, key = self.turn(query, place), self.turn(key, place)
        scores = self.scores_of(query, key)
        distance = place.unsqueeze(1) - place.unsqueeze(2)  # of the key from the query
        if settings["position_buckets"]:
            scores = scores + self.tensor("position_bias.weight")[self.bucket(distance)].permute(0, 3, 1, 2)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], LEFT_OUT)
        if settings["causal"]:
            scores = scores.masked_fill((distance > 0).unsqueeze(1), LEFT_OUT)
        return self.mixed("", scores, value)

    def turn(self, x: Tensor, place: Tensor) -> Tensor:
        """Rotary positions: x (batch, heads, tokens, channels of a head)."""
        speed = torch.tensor(self.settings["rotary_speeds"], dtype=torch.float64, device=x.device)
        half = len(speed)
        angle = (place.unsqueeze(-1) * speed).unsqueeze(1)
        cosine, sine = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([a * cosine - b * sine, b * cosine + a * sine, rest], dim=-1)

    def bucket(self, distance: Tensor) -> Tensor:
        """Bucket of a relative position; in float32, as the published weights were trained."""
        count, furthest = self.settings["position_buckets"], self.settings["max_distance"]
        first = torch.zeros_like(distance)
        if self.settings["bidirectional"]:
            count //= 2
            first = (distance > 0) * count
            steps = distance.abs()
        else:
            steps = (-distance).clamp_min(0)
        exact = count // 2
        octaves = torch.log(steps.clamp_min(1).float() / exact) / math.log(furthest / exact)
        far = (exact + (octaves * (count - exact)).long()).clamp_max(count - 1)
        return first + torch.where(steps < exact, steps, far)


class Positions(Part):
    """Rows of positions that layers add to what makes queries and keys: a table, or those that samples bring along."""

    def forward(self, given: Tensor | None) -> Tensor | None:
        return given if self.settings["rows"] is None else self.tensor("table").unsqueeze(0)


class Queries(Part):
    """The queries of a decoder: the rows that enter it, and their positions or None."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        places, start = self.rows("positions"), self.rows("start")
        start = torch.zeros_like(places) if start is None else start
        return start.expand(len(x), -1, -1), places

    def rows(self, name: str) -> Any:
        table = self.tensor(name)
        return None if table is None else table.unsqueeze(0)


class Norm(Part):
    """A norm of every row."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        norm = self.layer_norm if self.settings["kind"] == "LayerNorm" else self.rms_norm
        return norm("", x, self.settings["eps"])


class Convolutions(Part):
    """A part that has convolutions, on images with the channels first."""

    def convolve(self, place: str, x: Tensor, **window: int) -> Tensor:
        return F.conv2d(x, self.tensor(f"{place}.weight"), self.tensor(f"{place}.bias"), **window)


class Bottleneck(Convolutions):
    """A bottleneck block of a ResNet, its batch norms folded in, on images with the channels last."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        stride, first = self.settings["stride"], self.settings.get("stride_first", False)
        x = x.permute(0, 3, 1, 2)
        z = F.relu(self.convolve("reduce", x, stride=stride if first else 1))
        z = F.relu(self.convolve("window", z, stride=1 if first else stride, padding=1))
        short = self.convolve("shortcut", x, stride=stride) if self.settings["shortcut"] else x
        return F.relu(self.convolve("expand", z) + short).permute(0, 2, 3, 1)


class BasicBlock(Convolutions):
    """A basic block of a ResNet, likewise."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        stride = self.settings["stride"]
        x = x.permute(0, 3, 1, 2)
        z = F.relu(self.convolve("first", x, stride=stride, padding=1))
        short = self.convolve("shortcut", x, stride=stride) if self.settings["shortcut"] else x
        return F.relu(self.convolve("second", z, padding=1) + short).permute(0, 2, 3, 1)


class Foreign(nn.Module):
    """A late layer that was a module of PyTorch before; samples are given to it as they are in training."""

    def __init__(self, module: nn.Module, call: Callable[[nn.Module, Tensor, Tensor | None], Any] | None,
                 images: str) -> None:
        super().__init__()
        self.module, self.call, self.images = module, call, images

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if x.ndim == 4:
            if self.images == "nhwc":
                return self.run(x, None)
            return self.run(x.permute(0, 3, 1, 2), None).permute(0, 2, 3, 1)
        if mask is None:
            return self.run(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
        order = torch.argsort((~mask).int(), dim=1, stable=True).unsqueeze(-1)  # rows that are meant come first
        lengths = mask.sum(dim=1)
        packed = x.gather(1, order.expand_as(x))
        if self.call is not None:
            meant = torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1)
            made = self.run(packed * meant.unsqueeze(-1), meant)
        else:
            made = x.new_zeros(0)
            for number, length in enumerate(lengths.unique().tolist()):
                alike = lengths == length
                part = self.run(packed[alike, :length], None)
                made = made if number else x.new_zeros(*x.shape[:2], part.shape[-1])
                made = made.index_put((alike,), F.pad(part, (0, 0, 0, x.shape[1] - length)))
        return torch.zeros_like(made).scatter(1, order.expand_as(made), made)

    def run(self, x: Tensor, mask: Tensor | None) -> Tensor:
        output = self.module(x) if self.call is None else self.call(self.module, x, mask)
        output = getattr(output, "last_hidden_state", output)
        return output[0] if isinstance(output, (tuple, list)) else output


class Pooled(Part):
    """A head with one row a sample: classes, numbers, or an embedding."""

    log_scale: Tensor

    def forward(self, x: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        settings = self.settings
        if settings["kind"] == "Embedding":
            return self.embed(x, mask, positions)
        x = pooled(x, mask, settings["pool"], positions)
        if settings["pooler"]:
            x = torch.tanh(self.linear("pooler", x))
        return self.linear("", self.dropout(x))

    def embed(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        settings = self.settings
        if x.ndim > 2 and settings["pool"] in ("max", "gpo"):
            x = self.linear("", self.dropout(x))
            x = self.by_rank(x, mask) if settings["pool"] == "gpo" else pooled(x, mask, "max", positions)
        else:
            x = self.linear("", self.dropout(pooled(x, mask, settings["pool"], positions)))
        if settings["normalize"]:
            x = unit_rows(x)
        return x if settings["temperature"] is None else x * (self.log_scale.exp() / settings["temperature"])

    def by_rank(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Generalized pooling: each channel's values, sorted, with weights learned for every rank."""
        x = x.flatten(1, -2)
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        rank = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        rows = mask.sum(dim=1, keepdim=True)
        inside = (rank < rows).unsqueeze(-1)
        ordered = x.masked_fill(~mask.unsqueeze(-1), -torch.inf).sort(dim=1, descending=True).values
        ordered = ordered.masked_fill(~inside, 0)
        speed = 10000 ** (-torch.arange(8, dtype=torch.float64, device=x.device) / 8)
        above, below = (place.unsqueeze(-1) * speed for place in (rank, rows - 1 - rank))
        code = torch.stack([above.sin(), above.cos(), below.sin(), below.cos()], dim=-1).flatten(-2).to(x.dtype)
        scores = self.linear("pool.score", F.relu(self.linear("pool.hidden", code)))
        shares = torch.softmax(scores.masked_fill(~inside, -torch.inf), dim=1)
        return (shares * ordered).sum(dim=1)


class EachRow(Part):
    """A head with an output for every row: classes of tokens, spans, or boxes."""

    def forward(self, x: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        x = self.dropout(x)
        outputs = self.detect(x) if self.settings["kind"] == "Detector" else self.linear("", x)
        return outputs if mask is None else outputs.masked_fill(~mask.unsqueeze(-1), 0)

    def detect(self, x: Tensor) -> Tensor:
        box = F.relu(self.linear("box.1", F.relu(self.linear("box.0", x))))
        parts = [self.linear("classes", x), torch.sigmoid(self.linear("box.2", box))]
        if self.settings["align"]:
            parts.append(unit_rows(self.linear("align", x)))
        return torch.cat(parts, dim=-1)


class Network(nn.Module):
    """A side network: outputs of the head from the taps of the frozen backbone."""

    def __init__(self, early: nn.Module, late: Iterable[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.early, self.late, self.head = early, nn.ModuleList(late), head

    def forward(self, taps: Sequence[Tensor], mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Compute the outputs of the head.

        Parameters
        ----------
        taps : list of torch.Tensor, each of shape (batch, tokens, channels)
            Or images (batch, height, width, channels); of a tower one more, its output (batch, channels); rows of
            positions (batch, tokens, channels), where the network reads them.
        mask : torch.Tensor of bool, shape (batch, tokens), optional
            True where a row is meant.
        positions : torch.Tensor of int, shape (batch,), optional
            With a head whose pool is "position": a row of each sample, counted among those that are meant.

        Returns
        -------
        torch.Tensor, shape (batch, outputs), or (batch, tokens, outputs) of a head with outputs for every row
        """
        brings = any(isinstance(layer, Positions) and layer.settings["rows"] is None for layer in self.late)
        taps, given = (taps[:-1], taps[-1]) if brings else (taps, None)
        x, beside = self.early(taps, mask), {}
        for layer in self.late:
            if isinstance(layer, Positions):
                beside["positions"] = layer(given)
            elif isinstance(layer, Queries):
                beside = {"memory": x, "memory_positions": beside.get("positions"), "memory_mask": mask}
                (x, beside["positions"]), mask = layer(x), None
            else:
                x = layer(x, mask, **beside) if isinstance(layer, Layer) else layer(x, mask)
        return self.head(x, mask if x.ndim == 3 else None, positions)


def added(x: Tensor, positions: Tensor | None) -> Tensor:
    return x if positions is None else x + positions


def window_pool(x: Tensor, size: int) -> Tensor:
    """Maximum plus mean of windows side by side, channels last."""
    x = x.permute(0, 3, 1, 2)
    return (F.max_pool2d(x, size) + F.avg_pool2d(x, size)).permute(0, 2, 3, 1)


def unit_rows(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def positions_of(x: Tensor, mask: Tensor | None) -> Tensor:
    """Number of each row among those that are meant, (batch or 1, tokens)."""
    if mask is None:
        return torch.arange(x.shape[1], device=x.device).unsqueeze(0)
    return mask.cumsum(dim=1) - 1


def chosen_row(x: Tensor, mask: Tensor | None, which: str, positions: Tensor | None = None) -> Tensor:
    """The first row that is meant, the last, or that of a number: (batch, channels)."""
    place = positions_of(x, mask)
    wanted = {"first": torch.zeros_like(place[:, :1]), "last": place[:, -1:]}.get(which)
    wanted = cast(Tensor, positions).reshape(-1, 1) if wanted is None else wanted
    found = place == wanted if mask is None else (place == wanted) & mask
    return x[torch.arange(len(x), device=x.device), found.int().argmax(dim=1)]


def pooled(x: Tensor, mask: Tensor | None, how: str, positions: Tensor | None) -> Tensor:
    """One row a sample of tokens, of the pixels of images, or of what has one row already."""
    if x.ndim == 2:
        return x
    x = x.flatten(1, -2)
    if how == "mean":
        if mask is None:
            return x.mean(dim=1)
        kept = mask.to(x.dtype).unsqueeze(1)
        return (kept @ x).squeeze(1) / kept.sum(dim=-1)
    if how == "max":
        return (x if mask is None else x.masked_fill(~mask.unsqueeze(-1), -torch.inf)).amax(dim=1)
    return chosen_row(x, mask, how, positions)
