"""Small random problems for tests: taps, masks, labels, BERT layers and networks."""

import numpy as np

import sherl

FEATURES, HEADS, INTERMEDIATE = 32, 4, 64


def bert_weights(seed=0, features=FEATURES, intermediate=INTERMEDIATE):
    """Return random weights of a BERT layer by checkpoint name."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in {
        "attention.self.query": (features, features),
        "attention.self.key": (features, features),
        "attention.self.value": (features, features),
        "attention.output.dense": (features, features),
        "intermediate.dense": (intermediate, features),
        "output.dense": (features, intermediate),
    }.items():
        weights[f"{name}.weight"] = rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[1]))
        weights[f"{name}.bias"] = 0.1 * rng.standard_normal(shape[0], dtype=np.float32)
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        weights[f"{name}.weight"] = 1 + 0.1 * rng.standard_normal(features, dtype=np.float32)
        weights[f"{name}.bias"] = 0.1 * rng.standard_normal(features, dtype=np.float32)
    return weights


def frozen_layer(seed=0, **settings):
    return sherl.TransformerLayer.from_bert(bert_weights(seed), HEADS, **settings)


def taps_of(samples=12, tokens=7, taps=3, seed=0, features=FEATURES):
    """Return random taps (samples, tokens, features)."""
    rng = np.random.default_rng([seed, 1])
    return [rng.standard_normal((samples, tokens, features), dtype=np.float32) for _ in range(taps)]


def mask_of(samples=12, tokens=7, seed=0):
    """Return a random mask, padded at the end, without an empty sample."""
    lengths = np.random.default_rng([seed, 2]).integers(1, tokens + 1, samples)
    return np.arange(tokens) < lengths[:, None]


def problem(samples=40, tokens=7, taps=3, seed=0):
    """Return taps, labels of two classes that the first tap decides, and a mask."""
    arrays = taps_of(samples, tokens, taps, seed)
    labels = np.random.default_rng([seed, 3]).integers(0, 2, samples)
    arrays[-1][:, 0, :4] += 3 * (2 * labels - 1)[:, None]
    return arrays, labels, mask_of(samples, tokens, seed)


def network(taps=3, late=1, head=None, seed=0, dropout=0.0, **settings):
    """Return a small side network with random weights in every place, so that no gradient is zero."""
    made = sherl.SideNetwork(
        early=sherl.MTSA(taps, FEATURES, 8, up_norm="layernorm", dropout=dropout, **settings),
        late=[frozen_layer(number) for number in range(late)],
        head=head or sherl.Classifier(FEATURES, 2),
        seed=seed,
    )
    rng = np.random.default_rng([seed, 4])
    made.load_state_dict(
        {
            name: value + 0.1 * rng.standard_normal(value.shape, dtype=np.float32)
            for name, value in made.state_dict().items()
        }
    )
    return made


def same_bits(first, second):
    """Tell whether two dictionaries of arrays, or two arrays, are equal bit by bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_bits(first[name], second[name]) for name in first)
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


RESNET = {"features": [8, 12, 16, 24], "sides": [(16, 8), (8, 4), (4, 2), (2, 1)], "pool": [8, 4, 2, 1]}


def bottleneck_weights(features=24, width=6, outputs=None, shortcut=False, seed=0):
    """Return random weights of a ResNet bottleneck by checkpoint name."""
    outputs = outputs or features
    shapes = {"conv1": (width, features, 1, 1), "conv2": (width, width, 3, 3), "conv3": (outputs, width, 1, 1)}
    return _residual_weights(shapes, features, outputs, shortcut, np.random.default_rng([seed, 5]))


def basic_block_weights(features=24, outputs=None, shortcut=False, seed=0):
    """Return random weights of a ResNet's basic block by checkpoint name."""
    outputs = outputs or features
    shapes = {"conv1": (outputs, features, 3, 3), "conv2": (outputs, outputs, 3, 3)}
    return _residual_weights(shapes, features, outputs, shortcut, np.random.default_rng([seed, 12]))


def _residual_weights(shapes, features, outputs, shortcut, rng):
    norms = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3"}
    if shortcut:
        shapes["downsample.0"], norms["downsample.0"] = (outputs, features, 1, 1), "downsample.1"
    weights = {}
    for name, shape in shapes.items():
        scale = np.float32(np.sqrt(np.prod(shape[1:])))
        weights[f"{name}.weight"] = rng.standard_normal(shape, dtype=np.float32) / scale
        norm = norms[name]
        weights[f"{norm}.weight"] = 1 + 0.1 * rng.standard_normal(shape[0], dtype=np.float32)
        weights[f"{norm}.bias"] = 0.1 * rng.standard_normal(shape[0], dtype=np.float32)
        weights[f"{norm}.running_mean"] = 0.1 * rng.standard_normal(shape[0], dtype=np.float32)
        weights[f"{norm}.running_var"] = rng.uniform(0.5, 1.5, shape[0]).astype(np.float32)
    return weights


def image_taps(samples=6, seed=0):
    """Return random taps of the stages of a small ResNet, (samples, height, width, channels)."""
    rng = np.random.default_rng([seed, 6])
    return [
        rng.standard_normal((samples, *side, width), dtype=np.float32)
        for side, width in zip(RESNET["sides"], RESNET["features"])
    ]


def image_problem(samples=24, seed=0):
    """Return image taps, and labels of two classes that the last tap decides."""
    taps = image_taps(samples, seed)
    labels = np.random.default_rng([seed, 7]).integers(0, 2, samples)
    taps[-1][..., :4] += 2 * (2 * labels - 1)[:, None, None, None]
    return taps, labels


def image_network(late=1, classes=2, seed=0, **settings):
    """Return a small side network on images with random weights in every place."""
    made = sherl.SideNetwork(
        early=sherl.MTSA.resnet(RESNET["features"], hidden=8, **settings),
        late=[sherl.Bottleneck.from_resnet(bottleneck_weights(seed=number)) for number in range(late)],
        head=sherl.Classifier(RESNET["features"][-1], classes, pool="mean"),
        seed=seed,
    )
    rng = np.random.default_rng([seed, 8])
    made.load_state_dict(
        {
            name: np.abs(value + 0.1 * rng.standard_normal(value.shape, dtype=np.float32)) + 0.2
            if name.endswith("running_var")
            else value + 0.1 * rng.standard_normal(value.shape, dtype=np.float32)
            for name, value in made.state_dict().items()
        }
    )
    return made
