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
