"""The SHERL path for BERT written in PyTorch: the peer that sherl is tested and timed against.

It is written as a PyTorch user with some experience would write it: fused attention, fused normalization and
optimizer kernels, frozen weights without gradients, taps as constants, padding up to the longest sample of a batch.
Trainable parameters carry the names that sherl gives them, so state dictionaries and gradients compare by name.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATE_TEMPERATURE = 0.1


class LayerNormDown(nn.Linear):
    """Projection of one tap to the hidden channels, then layer normalization."""

    def __init__(self, features, hidden, norm_eps):
        super().__init__(features, hidden)
        self.norm = nn.LayerNorm(hidden, eps=norm_eps)

    def forward(self, tap):
        return self.norm(super().forward(tap))


class GatedDown(nn.Module):
    """Projection of one tap to the hidden channels, then a residual linear map scaled by a sigmoid gate."""

    def __init__(self, features, hidden):
        super().__init__()
        self.proj = nn.Linear(features, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.gate = nn.Linear(hidden, hidden)

    def forward(self, tap):
        projected = F.relu(self.proj(tap))
        return (self.value(projected) + projected) * torch.sigmoid(self.gate(projected))


class Guide(nn.Linear):
    """Anti-redundancy weights of the shallow features, and their weighted sum under the guide feature.

    The base class holds the one linear map of the weights; with ``residual_mlp`` the sum also goes through two linear
    maps and a normalization before the guide feature is added.
    """

    def __init__(self, features, hidden, eps, residual_mlp, norm_eps):
        super().__init__(hidden, 1)
        self.eps = eps
        self.mlp = None
        if residual_mlp:
            self.mlp = nn.ModuleDict({
                "0": nn.Linear(hidden, features),
                "1": nn.Linear(features, hidden),
                "norm": nn.LayerNorm(hidden, eps=norm_eps),
            })

    def forward(self, shallow, guide):
        # shallow: (batch, tokens, taps - 1, hidden); guide: (batch, tokens, hidden)
        lengths = torch.linalg.vector_norm(shallow, dim=-1, keepdim=True)
        directions = shallow / (lengths + self.eps)
        redundancy = F.relu(directions @ directions.transpose(-1, -2)).sum(dim=-1)
        relevance = F.relu(super().forward(shallow * guide.unsqueeze(-2))).squeeze(-1)
        weights = relevance / redundancy
        weights = weights / (weights.abs().sum(dim=-1, keepdim=True) + self.eps)
        aggregate = (weights.unsqueeze(-2) @ shallow).squeeze(-2)
        if self.mlp is not None:
            aggregate = self.mlp["norm"](self.mlp["1"](F.relu(self.mlp["0"](aggregate))))
        return aggregate + guide


class Up(nn.Linear):
    """Projection back to the channels of the taps, with an optional layer normalization and dropout."""

    def __init__(self, hidden, features, norm, norm_eps, dropout):
        super().__init__(hidden, features)
        self.norm = nn.LayerNorm(features, eps=norm_eps) if norm == "layernorm" else None
        self.dropout = dropout

    def forward(self, hidden):
        out = super().forward(F.relu(hidden))
        if self.norm is not None:
            out = self.norm(out)
        return F.dropout(out, self.dropout, self.training) if self.dropout else out


class MTSA(nn.Module):
    """Token-wise Multi-Tiered Sensing Adapter; the arguments are those of ``sherl.MTSA``."""

    def __init__(self, taps, features, hidden, *, down="layernorm", guidance="token", up_norm=None,
                 eps=1e-8, down_norm_eps=1e-5, up_norm_eps=1e-12, dropout=0.0):
        super().__init__()
        if down == "layernorm":
            maps = [LayerNormDown(features, hidden, down_norm_eps) for _ in range(taps)]
        elif down == "gated":
            maps = [GatedDown(features, hidden) for _ in range(taps)]
        else:
            raise ValueError(f"down must be 'layernorm' or 'gated', got {down!r}")
        if guidance not in ("token", "residual_mlp"):
            raise ValueError(f"guidance must be 'token' or 'residual_mlp', got {guidance!r}")
        self.down = nn.ModuleList(maps)
        self.guide = Guide(features, hidden, eps, guidance == "residual_mlp", down_norm_eps)
        self.up = Up(hidden, features, up_norm, up_norm_eps, dropout)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, taps, last=None):
        last = taps[-1] if last is None else last
        reduced = [down(tap) for down, tap in zip(self.down, taps)]
        fused = self.guide(torch.stack(reduced[:-1], dim=-2), reduced[-1])
        return self.up(fused) + torch.tanh(self.gate / GATE_TEMPERATURE) * last


def frozen(tensor):
    """A parameter that moves with its module but never takes a gradient."""
    return nn.Parameter(tensor, requires_grad=False)


class FrozenLinear(nn.Module):
    """Linear map whose weights are fixed."""

    def __init__(self, weights, name):
        super().__init__()
        self.weight = frozen(weights[f"{name}.weight"])
        self.bias = frozen(weights[f"{name}.bias"])

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class FrozenLayerNorm(nn.Module):
    """Layer normalization whose weights are fixed."""

    def __init__(self, weights, name, eps):
        super().__init__()
        self.weight = frozen(weights[f"{name}.weight"])
        self.bias = frozen(weights[f"{name}.bias"])
        self.eps = eps

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class TransformerLayer(nn.Module):
    """Frozen transformer layer; ``weights`` are tensors by BERT's names relative to the layer.

    Its norms stand behind the two parts, as in BERT, or with ``norm_first`` before them, as in ViT.
    """

    def __init__(self, weights, heads, eps=1e-12, norm_first=False):
        super().__init__()
        self.heads, self.norm_first = heads, norm_first
        self.query = FrozenLinear(weights, "attention.self.query")
        self.key = FrozenLinear(weights, "attention.self.key")
        self.value = FrozenLinear(weights, "attention.self.value")
        self.output = FrozenLinear(weights, "attention.output.dense")
        self.attention_norm = FrozenLayerNorm(weights, "attention.output.LayerNorm", eps)
        self.expand = FrozenLinear(weights, "intermediate.dense")
        self.contract = FrozenLinear(weights, "output.dense")
        self.output_norm = FrozenLayerNorm(weights, "output.LayerNorm", eps)

    def split(self, x):
        """(batch, tokens, features) to (batch, heads, tokens, features per head)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x, mask=None, rows=None):
        """Output of the first ``rows`` tokens of each sample, or of all."""
        asked = x if rows is None else x[:, :rows]
        if self.norm_first:
            n = self.attention_norm(x)
            asked = asked + self.attend(n if rows is None else n[:, :rows], n, mask)
            return asked + self.feed_forward(self.output_norm(asked))
        attended = self.attention_norm(asked + self.attend(asked, x, mask))
        return self.output_norm(attended + self.feed_forward(attended))

    def attend(self, asked, x, mask):
        context = F.scaled_dot_product_attention(
            self.split(self.query(asked)), self.split(self.key(x)), self.split(self.value(x)),
            attn_mask=None if mask is None else mask[:, None, None, :])
        return self.output(context.transpose(1, 2).flatten(-2))

    def feed_forward(self, x):
        return self.contract(F.gelu(self.expand(x)))


class Classifier(nn.Linear):
    """Pooling over the tokens of a sample, an optional tanh layer, and a linear map to class scores."""

    def __init__(self, features, classes, *, pool="first", pooler=False):
        super().__init__(features, classes)
        if pool not in ("first", "mean", "max"):
            raise ValueError(f"pool must be 'first', 'mean' or 'max', got {pool!r}")
        self.pool = pool
        self.pooler = nn.Linear(features, features) if pooler else None

    def forward(self, x, mask=None):
        pooled = self.pooled(x, mask)
        if self.pooler is not None:
            pooled = torch.tanh(self.pooler(pooled))
        return super().forward(pooled)

    def pooled(self, x, mask):
        if self.pool == "first":
            return x[:, 0]
        if self.pool == "mean":
            if mask is None:
                return x.mean(dim=1)
            kept = mask.to(x.dtype).unsqueeze(1)
            return (kept @ x).squeeze(1) / kept.sum(dim=-1)
        return (x if mask is None else x.masked_fill(~mask[:, :, None], float("-inf"))).amax(dim=1)


class Trained(nn.Module):
    """A network with ``loss(*batch)``: its trainable parameters by name, their gradients, and steps of AdamW."""

    def trainable(self):
        """Trainable parameters by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def load_trainable(self, state):
        """Copy arrays by name into the trainable parameters; both sides must have the same names."""
        parameters = self.trainable()
        if parameters.keys() != state.keys():
            raise ValueError(f"state must hold exactly {sorted(parameters)}, got {sorted(state)}")
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(torch.as_tensor(state[name]).reshape(value.shape))

    def loss_and_gradients(self, *batch):
        """The loss and its gradients by parameter name."""
        parameters = self.trainable()
        loss = self.loss(*batch)
        return loss.detach(), dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()))))

    def stepper(self, learning_rate=1e-4, weight_decay=0.01):
        """Function that takes one AdamW step on a batch and returns its loss as a float."""
        optimizer = torch.optim.AdamW(self.trainable().values(), lr=learning_rate, weight_decay=weight_decay,
                                      fused=True)

        def step(*batch):
            optimizer.zero_grad(set_to_none=True)
            loss = self.loss(*batch)
            loss.backward()
            optimizer.step()
            return loss.item()

        return step


class SideNetwork(Trained):
    """Taps through the MTSA, the frozen late layers and the head to class scores.

    With ``needed_rows`` and a head that reads the first token, the last layer computes that one row alone. With
    ``autocast``, products run in bfloat16 and what needs more range in float32, as PyTorch decides.
    """

    def __init__(self, early, late, head, *, needed_rows=False, autocast=False):
        super().__init__()
        self.autocast = autocast
        self.last_rows = 1 if needed_rows and head.pool == "first" else None
        self.early = early
        self.late = nn.ModuleList(late)
        self.head = head

    def forward(self, taps, mask=None):
        if mask is not None and mask.all():
            mask = None  # without padding, attention and pooling take their shorter way
        if not self.autocast:
            return self.scores(taps, mask)
        with torch.autocast("cpu", torch.bfloat16):
            return self.scores(taps, mask).float()

    def scores(self, taps, mask):
        x = self.early(taps)
        for index, layer in enumerate(self.late, 1):
            x = layer(x, mask, self.last_rows if index == len(self.late) else None)
        return self.head(x, mask)

    def loss(self, taps, labels, mask=None):
        """Mean cross-entropy."""
        return F.cross_entropy(self(taps, mask), labels)
