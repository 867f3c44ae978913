"""A step of two towers on pairs, sherl against PyTorch, and the memory of both: ``python -m benchmarks.two_towers``."""

import dataclasses

import numpy as np

from benchmarks.architecture import Architecture, command
from benchmarks.problem import HEAD_CHANNELS, bert_layer_weights, leaning
from benchmarks.sides import EPS, FIRST_ROW, Peer, SherlSide, TorchSide

TEMPERATURE = 0.05
GRADIENT_RATE = 1024.0  # of the step of plain SGD that tells a gradient; a power of two, far above the weights
VIT_NAMES = {"attention.output.LayerNorm.": "layernorm_before.", "output.LayerNorm.": "layernorm_after.",
             "attention.self.": "attention.attention."}  # in place of BERT's


@dataclasses.dataclass(frozen=True)
class TwoTowerProblem:
    """Sizes of one training step; the defaults are those of ViT-S/16 and MiniLM.

    The head of the image tower reads the class token, that of the text tower the mean of all tokens.
    """

    batch: int = 64
    image_tokens: int = 197
    image_features: int = 384
    image_taps: int = 12
    text_tokens: int = 32
    text_features: int = 384
    text_taps: int = 6
    narrowing: int = 8
    channels: int = 256
    threads: int = 2
    seed: int = 0

    @property
    def towers(self):
        """Of each tower name, tokens, channels, taps, the rows that its head reads, whether its norms come first."""
        return (("a", self.image_tokens, self.image_features, self.image_taps, "first", True),
                ("b", self.text_tokens, self.text_features, self.text_taps, "mean", False))

    @property
    def described(self):
        return (f"{self.batch} pairs: {self.image_tokens} tokens of an image, {self.image_taps} taps of "
                f"{self.image_features} channels, class token; {self.text_tokens} tokens of a text, {self.text_taps} "
                f"taps of {self.text_features} channels, mean; hidden channels an {self.narrowing}th, one frozen "
                f"layer each, embeddings of {self.channels} channels, contrastive loss over all pairs")

    def inputs(self):
        """Taps of images and of texts, float32 (batch, tokens, features)."""
        rng = np.random.default_rng([self.seed, 2])
        return [[rng.standard_normal((self.batch, tokens, features), dtype=np.float32) for _ in range(taps)]
                for _, tokens, features, taps, _, _ in self.towers]

    def trained(self, name, shape):
        """A trained weight."""
        return leaning(name, shape, self.seed)


class Sherl(SherlSide):
    """Both networks in sherl."""

    def __init__(self, problem):
        import sherl

        networks = []
        for name, _, features, taps, pool, norm_first in problem.towers:
            weights = bert_layer_weights(features, problem.seed, name)
            make = sherl.TransformerLayer.from_vit if norm_first else sherl.TransformerLayer.from_bert
            late = make(renamed(weights) if norm_first else weights, features // HEAD_CHANNELS)
            early = sherl.MTSA(taps, features, features // problem.narrowing, up_norm="layernorm", eps=EPS)
            networks.append(sherl.SideNetwork(early, [late], sherl.Embedding(features, problem.channels, pool=pool)))
        network = sherl.DualEncoder(*networks, loss=sherl.losses.contrastive(TEMPERATURE))
        super().__init__(problem, network, *problem.inputs())

    def loss_and_gradients(self):
        """The loss of a step of plain SGD, and by how much it moved the weights over its rate; they are set back."""
        before = self.network.state_dict()
        loss = self.network.stepper(optimizer="sgd", learning_rate=GRADIENT_RATE, weight_decay=0.0)(*self.batch)
        after = self.network.state_dict()
        self.network.load_state_dict(before)
        return loss, {name: (value - after[name]) / np.float32(GRADIENT_RATE) for name, value in before.items()}


def renamed(weights):
    """Weights of a layer under ViT's names instead of BERT's."""
    made = {}
    for name, value in weights.items():
        part = next((part for part in VIT_NAMES if name.startswith(part)), "")
        made[VIT_NAMES.get(part, "") + name.removeprefix(part)] = value
    return made


class Torch(TorchSide):
    """Both networks in PyTorch, with ``needed_rows`` as for `sides.Torch`."""

    def __init__(self, problem, needed_rows=False):
        import torch

        from benchmarks import peer_torch, two_towers_torch

        networks = []
        for name, _, features, taps, pool, norm_first in problem.towers:
            weights = bert_layer_weights(features, problem.seed, name)
            late = peer_torch.TransformerLayer({key: torch.from_numpy(value) for key, value in weights.items()},
                                               features // HEAD_CHANNELS, norm_first=norm_first)
            early = peer_torch.MTSA(taps, features, features // problem.narrowing, up_norm="layernorm", eps=EPS)
            head = two_towers_torch.Embedding(features, problem.channels, pool=pool)
            networks.append(peer_torch.SideNetwork(early, [late], head, needed_rows=needed_rows))
        super().__init__(problem, two_towers_torch.DualEncoder(*networks, TEMPERATURE),
                         *([torch.from_numpy(tap) for tap in taps] for taps in problem.inputs()))


VIT_AND_MINILM = Architecture("ViT-S and MiniLM, two towers", TwoTowerProblem(), Sherl,
                              {"PyTorch": Peer(Torch), "PyTorch" + FIRST_ROW: Peer(Torch, (True,))})

if __name__ == "__main__":
    command(VIT_AND_MINILM, "two_towers")
