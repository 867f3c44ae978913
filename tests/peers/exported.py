"""Small side networks of all kinds, for tests that write them down elsewhere."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from small import basic_block_weights, bottleneck_weights

import sherl

WIDTH, HEADS = 16, 4
LAYER = {"intermediate": 24, "eps": 1e-5}


def layer(**settings):
    return sherl.TransformerLayer(WIDTH, HEADS, **{**LAYER, **settings})


def frozen(block, seed=0):
    """The same layer with random weights that stay."""
    rng = np.random.default_rng([seed, 9])
    made, block_core = type(block)(**block.settings), sherl.blocks.block._core
    made._frozen = {role: 0.4 * rng.standard_normal(shape) + role.endswith("weight") * (len(shape) == 1)
                    for role, shape in block._shapes().items()}
    made._frozen = {role: array.astype(block_core.REAL) for role, array in made._frozen.items()}
    return made


def t5_block(**settings):
    return sherl.T5Block(WIDTH, HEADS, intermediate=24, decoder=False, position_buckets=8, max_distance=12, **settings)


def resnet(head):
    late = [sherl.Bottleneck.from_resnet(bottleneck_weights(12, 6)),
            sherl.Bottleneck.from_resnet(bottleneck_weights(12, 6, 14, shortcut=True), stride=2)]
    return sherl.MTSA.resnet([6, 8, 12], 3, 5), late, head


NETWORKS = {
    "bert": lambda: (sherl.MTSA.bert(WIDTH, 3, 5), [frozen(layer())], sherl.Classifier(WIDTH, 3, pooler=True)),
    "t5": lambda: (sherl.MTSA.t5(WIDTH, 3, 5), [frozen(t5_block()), t5_block(gated=True, activation="gelu_tanh")],
                   sherl.Regressor(WIDTH, 2, pool="mean")),
    "buckets behind": lambda: (
        sherl.MTSA(4, WIDTH, 5),
        [layer(position_buckets=6, max_distance=7, bidirectional=False, causal=True, scale=0.4)],
        sherl.Classifier(WIDTH, 3, pool="last")),
    "llama": lambda: (
        sherl.MTSA(2, WIDTH, 5, down="gated"),
        [layer(placement="pre", norm="rmsnorm", rotary_theta=100.0, key_heads=2, head_size=6, causal=True, gated=True,
               activation="silu", query_bias=False, output_bias=False, feed_forward_bias=False)],
        sherl.Classifier(WIDTH, 3, pool="position")),
    "llama 3": lambda: (
        sherl.MTSA(2, WIDTH, 5),
        [layer(placement="pre", norm="rmsnorm", rotary_theta=100.0, head_size=8, causal=True,
               rotary_scaling={"factor": 4.0, "original": 16, "low": 1.0, "high": 2.0})],
        sherl.Classifier(WIDTH, 3, pool="last")),
    "vit": lambda: (sherl.MTSA(3, WIDTH, 5), [frozen(layer(placement="pre", layer_scale=True))],
                    sherl.Classifier(WIDTH, 4, pool="max", multi_label=True)),
    "vit, final norm": lambda: (
        sherl.MTSA(3, WIDTH, 5), [frozen(layer(placement="pre")), frozen(sherl.LayerNorm(WIDTH))],
        sherl.Classifier(WIDTH, 4)),
    "rms norms": lambda: (
        sherl.MTSA(3, WIDTH, 5), [frozen(sherl.RMSNorm(WIDTH)), layer(placement="pre"), sherl.RMSNorm(WIDTH)],
        sherl.Classifier(WIDTH, 4, pool="mean")),
    "a norm without bias": lambda: (
        sherl.MTSA(3, WIDTH, 5), [sherl.LayerNorm(WIDTH, bias=False)], sherl.Classifier(WIDTH, 4, pool="mean")),
    "sandwich": lambda: (
        sherl.MTSA(3, WIDTH, 5),
        [layer(placement="sandwich", activation="quick_gelu", rotary_theta=50.0, rotary_dimensions=2, norm_bias=False)],
        sherl.Embedding(WIDTH, 6, temperature=0.1)),
    "detr": lambda: (sherl.MTSA.detr(WIDTH, 3, 5), [], sherl.Detector(WIDTH, 3, align=4)),
    "decoder": lambda: (
        sherl.MTSA.detr(WIDTH, 3, 5),
        [sherl.Positions(WIDTH), frozen(layer(positions=True)), sherl.Queries(WIDTH, 4),
         frozen(layer(positions=True, memory_features=WIDTH, memory_positions=True)),
         layer(positions=True, memory_features=WIDTH, memory_positions=True, key_heads=2, placement="pre"),
         frozen(sherl.LayerNorm(WIDTH))],
        sherl.Detector(WIDTH, 3, align=4)),
    "decoder of T5": lambda: (
        sherl.MTSA.t5(WIDTH, 3, 5),
        [frozen(t5_block()), frozen(sherl.Queries(WIDTH, 3, positions=False, start=True)),
         frozen(sherl.T5Block(WIDTH, HEADS, intermediate=24, decoder=True, position_buckets=8, max_distance=12)),
         frozen(sherl.RMSNorm(WIDTH))],
        sherl.Classifier(WIDTH, 3)),
    "table of positions": lambda: (
        sherl.MTSA(3, WIDTH, 5),
        [sherl.Positions(WIDTH, 9), layer(positions=True), sherl.Queries(WIDTH, 2, positions=False, start=True),
         layer(memory_features=WIDTH)], sherl.Classifier(WIDTH, 3, pool="mean")),
    "relu": lambda: (sherl.MTSA(3, WIDTH, 5, down="relu"), [layer(activation="tanh", dropout=0.1)],
                     sherl.TokenClassifier(WIDTH, 3)),
    "batch norms": lambda: (sherl.MTSA(3, WIDTH, 5, down="batchnorm", up_norm="batchnorm"), [layer(activation="relu")],
                            sherl.SpanPredictor(WIDTH)),
    "gpo": lambda: (sherl.MTSA(3, WIDTH, 5), [], sherl.Embedding(WIDTH, 6, pool="gpo")),
    "max": lambda: (sherl.MTSA(3, WIDTH, 5), [], sherl.Embedding(WIDTH, 6, pool="max", normalize=False)),
    "resnet": lambda: resnet(sherl.Classifier(14, 3, pool="mean")),
    "resnet, stride first": lambda: (
        sherl.MTSA.resnet([6, 8, 12], 3, 5),
        [sherl.Bottleneck.from_resnet(bottleneck_weights(12, 6, 14, shortcut=True), stride=2, stride_first=True)],
        sherl.Classifier(14, 3, pool="mean")),
    "resnet of basic blocks": lambda: (
        sherl.MTSA.resnet([6, 8, 12], 3, 5),
        [sherl.BasicBlock.from_resnet(basic_block_weights(12)),
         sherl.BasicBlock.from_resnet(basic_block_weights(12, 14, shortcut=True), stride=2)],
        sherl.Classifier(14, 3, pool="mean")),
    "resnet, gpo": lambda: resnet(sherl.Embedding(14, 4, pool="gpo")),
    "resnet, max": lambda: resnet(sherl.Embedding(14, 4, pool="max")),
    "clip": lambda: (sherl.MTSA.clip(WIDTH, 3, 5, 6), [], sherl.Embedding(6, 4)),
    "clip, text": lambda: (sherl.MTSA.clip(WIDTH, 3, 5, 6, tower="text", gated_base=True), [], sherl.Classifier(6, 3)),
}  # fmt: skip


def make(name, seed=0):
    """Return a network with random weights in every place."""
    net = sherl.SideNetwork(*NETWORKS[name]())
    rng = np.random.default_rng([seed, 10])
    state = {}
    for key, value in net.state_dict().items():
        state[key] = value + (0.2 * rng.standard_normal(value.shape)).astype(value.dtype)
        if key.endswith("running_var"):
            state[key] = np.abs(state[key]) + np.float32(0.3)
    net.load_state_dict(state)
    return net


def samples_of(net, samples=5, tokens=9, mask=None, seed=0):
    """Return taps of a network, and what else `forward` takes: a mask that pads ("padded") or has holes, positions."""
    rng, early = np.random.default_rng([seed, 11]), net.early
    if early.images:
        sides = [(4 * window, 3 * window) for window in early.pool]
        return [rng.standard_normal((samples, *side, width), dtype=np.float32)
                for side, width in zip(sides, early.features)], {}
    tables = [block.rows for block in net.late if isinstance(block, sherl.Positions) and block.rows]
    tokens = max(tables, default=tokens)
    taps = [rng.standard_normal((samples, tokens, width), dtype=np.float32) for width in early.features]
    for block in net.late:
        if isinstance(block, sherl.Positions) and block.rows is None:
            taps.append(rng.standard_normal((samples, tokens, WIDTH), dtype=np.float32))
    if early._pooled:
        taps.append(rng.standard_normal((samples, early.out_features), dtype=np.float32))
    others, kept = {}, np.ones((samples, tokens), bool)
    if mask is not None:
        kept = np.arange(tokens) < rng.integers(1, tokens + 1, samples)[:, None]
        if mask == "holes":
            kept = rng.random((samples, tokens)) < 0.5
            kept[:, tokens // 2] = True
        kept |= bool(tables)  # every sample has as many rows as the table
        others["mask"] = kept
    if net.head._takes_positions:
        others["positions"] = rng.integers(0, kept.sum(axis=1))
    return taps, others
