"""The SHERL path for T5 written in PyTorch: an adapter on each side, the last decoder block, the language-model head.

Written as `peer_torch` is, with padding up to the longest sample of a batch, and with the names that sherl gives.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peer_torch import MTSA, Trained, frozen

IGNORED = -100


class RMSNorm(nn.Module):
    """Rows over the root of their mean square, times a factor a channel."""

    def __init__(self, weight, eps, trainable=False):
        super().__init__()
        self.weight = nn.Parameter(weight.clone()) if trainable else frozen(weight)
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps) * self.weight


def causal_buckets(tokens, buckets, max_distance):
    """Bucket of the distance of each key behind each query, (queries, keys); keys after it have distance 0."""
    distance = (torch.arange(tokens)[:, None] - torch.arange(tokens)).clamp(min=0)
    exact = buckets // 2
    spread = torch.log(distance.clamp(min=1) / exact) / math.log(max_distance / exact) * (buckets - exact)
    return torch.where(distance < exact, distance, (exact + spread.long()).clamp(max=buckets - 1))


class T5Block(nn.Module):
    """Frozen T5 decoder block; ``weights`` are tensors by their checkpoint name relative to the block."""

    def __init__(self, weights, heads, eps=1e-6, max_distance=128):
        super().__init__()
        self.heads, self.max_distance = heads, max_distance
        self.weights = nn.ParameterDict({name.replace(".", "/"): frozen(value) for name, value in weights.items()})
        self.norms = nn.ModuleList(RMSNorm(weights[f"layer.{number}.layer_norm.weight"], eps) for number in range(3))

    def map(self, x, name):
        return F.linear(x, self.weights[f"layer/{name}/weight"])

    def attend(self, part, x, source, mask):
        query, key, value = (self.map(rows, f"{part}/{letter}").unflatten(-1, (self.heads, -1)).transpose(1, 2)
                             for rows, letter in ((x, "q"), (source, "k"), (source, "v")))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
        return self.map(mixed.transpose(1, 2).flatten(-2), f"{part}/o")

    def forward(self, x, memory, memory_mask=None):
        tokens = x.shape[1]
        table = self.weights["layer/0/SelfAttention/relative_attention_bias/weight"]
        bias = table[causal_buckets(tokens, len(table), self.max_distance)].permute(2, 0, 1)
        bias = bias.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), -math.inf)
        n = self.norms[0](x)
        x = x + self.attend("0/SelfAttention", n, n, bias.expand(len(x), -1, -1, -1))
        mask = None if memory_mask is None else memory_mask[:, None, None, :]
        x = x + self.attend("1/EncDecAttention", self.norms[1](x), memory, mask)
        n, part = self.norms[2](x), "2/DenseReluDense"
        if f"layer/{part}/wi/weight" in self.weights:
            inner = F.relu(self.map(n, f"{part}/wi"))
        else:
            inner = F.gelu(self.map(n, f"{part}/wi_0"), approximate="tanh") * self.map(n, f"{part}/wi_1")
        return x + self.map(inner, f"{part}/wo")


class Seq2SeqSideNetwork(Trained):
    """Taps of encoder and decoder to logits of the vocabulary; the settings are those of `sherl.Seq2SeqSideNetwork`."""

    def __init__(self, taps, decoder_taps, features, hidden, late, lm_head, scale=1.0, label_smoothing=0.0, eps=1e-6):
        super().__init__()
        self.encoder, self.decoder = (MTSA(count, features, hidden, down="gated", eps=1e-6)
                                      for count in (taps, decoder_taps))
        self.encoder_norm, self.norm = (RMSNorm(torch.ones(features), eps, trainable=True) for _ in range(2))
        self.late = nn.ModuleList(late)
        self.lm_head = frozen(lm_head)
        self.scale, self.label_smoothing = scale, label_smoothing

    def forward(self, taps, decoder_taps, mask=None):
        memory = self.encoder_norm(self.encoder(taps))
        x = self.decoder(decoder_taps)
        for block in self.late:
            x = block(x, memory, mask)
        return F.linear(self.norm(x) * self.scale, self.lm_head)

    def loss(self, taps, decoder_taps, labels, mask=None):
        """Mean cross-entropy over the tokens that count."""
        logits = self(taps, decoder_taps, mask)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED,
                               label_smoothing=self.label_smoothing)
