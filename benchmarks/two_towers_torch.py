"""Two side networks with embeddings, and the contrastive loss over pairs, written in PyTorch as `peer_torch` is."""

import torch
from torch.nn import functional as F

from benchmarks.peer_torch import Classifier, Trained


class Embedding(Classifier):
    """Pooling, a linear map, and division by the l2 norm."""

    def forward(self, x, mask=None):
        return F.normalize(super().forward(x, mask), dim=-1)


class DualEncoder(Trained):
    """Two networks; row i of one goes with row i of the other."""

    def __init__(self, a, b, temperature):
        super().__init__()
        self.a, self.b, self.temperature = a, b, temperature

    def loss(self, taps_a, taps_b):
        """Mean of the cross-entropies of both directions."""
        scores = self.a(taps_a) @ self.b(taps_b).T / self.temperature
        own = torch.arange(len(scores))
        return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
