"""Whole fine-tuning, backbone included: MiniLM with a side network on sentences of two classes, in sherl and PyTorch.

Both sides get the same token ids, batches, first weights and settings, so that they follow the same course and
differ in speed alone. Hidden states of the frozen backbone are either kept from the first epoch on, or computed anew
for every batch.
"""

import dataclasses
import time

import numpy as np

from benchmarks import lengths

TAPS, FEATURES, HIDDEN, HEADS = 6, 384, 48, 12
BATCH = 32
LEARNING_RATE = 2e-3
POOL = 16  # batches within which texts are sorted by length, so that a batch needs little padding
EVALUATION_BATCH = 128
MOST_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Task:
    """Token ids and labels, and where the backbone lies."""

    name: str
    backbone: str
    train: tuple
    labels: tuple
    dev: tuple
    dev_labels: tuple


def load_task(folder, train_rows, dev_rows):
    """SST-2 from a folder, or without one the movie review sentences of sherl's demo."""
    from sherl.backbones.tokenization import Tokenizer
    from sherl.data.assets import fetch_demo_assets, load_movie_reviews
    from sherl.data.tables import read_table

    assets = fetch_demo_assets(progress=False)
    tokenizer = Tokenizer(assets.backbone_folder)
    if folder is None:
        name = "movie reviews"
        _, ratings, texts = load_movie_reviews(assets.reviews_file)
        order = np.random.default_rng(0).permutation(len(texts))
        train, dev = order[:train_rows], order[train_rows : train_rows + dev_rows]
        parts = [([texts[i] for i in rows], [int(ratings[i] > 0) for i in rows]) for rows in (train, dev)]
    else:
        name, parts = "SST-2", []
        for file, rows in (("train.tsv", train_rows), ("dev.tsv", dev_rows)):
            table = read_table(lengths.find(folder, "SST-2", file), ["sentence", "label"])
            parts.append((list(table["sentence"])[:rows], [int(label) for label in table["label"]][:rows]))
    (train, labels), (dev, dev_labels) = parts
    ids = [tuple(map(tuple, tokenizer.encode(texts, MOST_TOKENS)[0])) for texts in (train, dev)]
    return Task(name, str(assets.backbone_folder), ids[0], tuple(labels), ids[1], tuple(dev_labels))


def batches(task, epoch):
    """Numbers of the samples of each batch of an epoch."""
    rng = np.random.default_rng([7, epoch])
    order, sizes = rng.permutation(len(task.train)), np.array([len(ids) for ids in task.train])
    pools = [order[start : start + POOL * BATCH] for start in range(0, len(order), POOL * BATCH)]
    ordered = np.concatenate([pool[np.argsort(sizes[pool], kind="stable")] for pool in pools])
    made = [ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH)]
    return [made[number] for number in rng.permutation(len(made))]


def chunks(count):
    """Numbers of the samples of each batch of an evaluation."""
    return [np.arange(start, min(start + EVALUATION_BATCH, count)) for start in range(0, count, EVALUATION_BATCH)]


def make_network(layer):
    import sherl

    return sherl.SideNetwork(
        early=sherl.MTSA(taps=TAPS, features=FEATURES, hidden=HIDDEN, down="layernorm", guidance="token",
                         up_norm="layernorm"),
        late=[layer], head=sherl.Classifier(features=FEATURES, classes=2, pool="mean"), seed=0)


class Sherl:
    """Fine-tuning in sherl."""

    def __init__(self, task, keep, threads):
        import sherl

        sherl.set_num_threads(threads)
        self.task, self.keep = task, keep
        self.backbone = sherl.load_backbone(task.backbone)
        self.network = make_network(self.backbone.layers[-1])

    def features(self, texts):
        return self.backbone.extract(texts, taps="all")

    def run(self, epochs):
        """Seconds since the start and accuracy on the dev set, after each epoch."""
        task, course, start = self.task, [], time.perf_counter()
        if self.keep:
            kept, dev_kept = self.features(task.train), self.features(task.dev)
        labels, dev_labels = np.array(task.labels), np.array(task.dev_labels)
        step = self.network.stepper(learning_rate=LEARNING_RATE)
        for epoch in range(epochs):
            for index in batches(task, epoch):
                step(kept[index] if self.keep else self.features([task.train[i] for i in index]), labels[index])
            right = 0
            for index in chunks(len(task.dev)):
                taps = dev_kept[index] if self.keep else self.features([task.dev[i] for i in index])
                right += int((self.network.predict(taps) == dev_labels[index]).sum())
            course.append((time.perf_counter() - start, right / len(dev_labels)))
        return course


class Torch:
    """The same in PyTorch with the backbone of the transformers library."""

    def __init__(self, task, keep, threads):
        import torch
        import transformers

        import sherl
        from benchmarks import peer_torch

        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.torch, self.task, self.keep = torch, task, keep
        self.backbone = transformers.BertModel.from_pretrained(task.backbone, add_pooling_layer=False).eval()
        self.depth = self.backbone.config.num_hidden_layers
        last = {name: value.detach() for name, value in self.backbone.encoder.layer[-1].state_dict().items()}
        self.network = peer_torch.SideNetwork(
            peer_torch.MTSA(TAPS, FEATURES, HIDDEN, up_norm="layernorm"), [peer_torch.TransformerLayer(last, HEADS)],
            peer_torch.Classifier(FEATURES, 2, pool="mean"))
        # The first weights are drawn by sherl, so that both sides start alike.
        self.network.load_trainable(make_network(sherl.load_backbone(task.backbone).layers[-1]).state_dict())
        # The last layer belongs to the side network: no tap reads its output.
        self.backbone.encoder.layer = self.backbone.encoder.layer[:-1]

    def states(self, texts):
        """Taps of padded texts, (batch, longest, features) each, and the mask."""
        torch = self.torch
        sizes = torch.tensor([len(ids) for ids in texts])
        mask = torch.arange(int(sizes.max())) < sizes[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.int64)
        ids[mask] = torch.tensor([number for text in texts for number in text])
        with torch.no_grad():
            states = self.backbone(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states
        return list(states), mask

    def kept(self, texts):
        """Taps of all texts, sorted by length for little padding: by text (taps, tokens, features)."""
        torch, made = self.torch, [None] * len(texts)
        order = np.argsort([len(ids) for ids in texts], kind="stable")
        for rows in chunks(len(texts)):
            index = order[rows]
            states, _ = self.states([texts[i] for i in index])
            stacked = torch.stack(states, dim=1)
            for place, i in enumerate(index):
                made[i] = stacked[place, :, : len(texts[i])].clone()
        return made

    def gathered(self, kept, index):
        """Taps and mask of a batch of kept texts, padded to the longest by repeating the last token.

        Zeros would not do: guidance divides by the redundancy of a row, which is 0 where its features are, and a mask
        does not undo what is not a number.
        """
        torch = self.torch
        chosen = [kept[i] for i in index]
        sizes = torch.tensor([taps.shape[1] for taps in chosen])
        batch = chosen[0].new_empty(TAPS, len(chosen), int(sizes.max()), FEATURES)
        for place, taps in enumerate(chosen):
            batch[:, place, : taps.shape[1]] = taps
            batch[:, place, taps.shape[1] :] = taps[:, -1:]
        return list(batch), torch.arange(int(sizes.max())) < sizes[:, None]

    def run(self, epochs):
        """Seconds since the start and accuracy on the dev set, after each epoch."""
        torch, task, course, start = self.torch, self.task, [], time.perf_counter()
        if self.keep:
            kept, dev_kept = self.kept(task.train), self.kept(task.dev)
        labels, dev_labels = torch.tensor(task.labels), torch.tensor(task.dev_labels)
        step = self.network.stepper(LEARNING_RATE)
        for epoch in range(epochs):
            for index in batches(task, epoch):
                taps, mask = self.gathered(kept, index) if self.keep else self.states([task.train[i] for i in index])
                step(taps, labels[index], mask)
            right = 0
            for index in chunks(len(task.dev)):
                taps, mask = self.gathered(dev_kept, index) if self.keep else \
                    self.states([task.dev[i] for i in index])
                with torch.no_grad():
                    right += int((self.network(taps, mask).argmax(-1) == dev_labels[index]).sum())
            course.append((time.perf_counter() - start, right / len(task.dev)))
        return course


# Label, side, and whether hidden states are kept.
SIDES = {
    "sherl, states kept": (Sherl, True),
    "PyTorch, states kept": (Torch, True),
    "sherl, states not kept": (Sherl, False),
    "PyTorch, states not kept": (Torch, False),
}


def seconds_to(course, score):
    """Seconds until a score was reached for the first time, or None."""
    return next((seconds for seconds, reached in course if reached >= score), None)
