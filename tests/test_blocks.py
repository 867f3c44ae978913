"""Blocks alone on NumPy arrays: forms and types of input, masks, gradients, weights, copies."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from small import FEATURES, HEADS, bert_weights, frozen_layer, mask_of, same_bits, taps_of

import sherl

pytestmark = pytest.mark.core


def mtsa(**settings):
    block = sherl.MTSA(3, FEATURES, 8, **settings)
    rng = np.random.default_rng(5)
    block.load_state_dict(
        {name: value + 0.1 * rng.standard_normal(value.shape) for name, value in block.state_dict().items()}
    )
    return block


def variants_of(array):
    """Return the same values in every form that a caller may have them in."""
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    unaligned = buffer[1:].view(array.dtype).reshape(array.shape)
    unaligned[...] = array
    read_only = array.copy()
    read_only.flags.writeable = False
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    long = np.zeros((array.shape[0], array.shape[1] + 3, array.shape[2]), array.dtype)
    long[:, :-3] = array
    return {
        "read-only": read_only,
        "swapped": array.astype(array.dtype.newbyteorder()),
        "Fortran": np.asfortranarray(array),
        "every second channel": wide[..., ::2],
        "fewer tokens": long[:, :-3],
        "reversed": array[::-1].copy()[::-1],
        "unaligned": unaligned,
        "a list": array.tolist(),
        "float64": array.astype(np.float64),
    }


@pytest.mark.parametrize("form", variants_of(taps_of()[0]))
def test_forms_of_input(form):
    taps, cotangent, mask = taps_of(), taps_of(seed=9)[0], mask_of()
    given = [variants_of(tap)[form] for tap in taps]
    block = mtsa()
    expected = block.vjp(taps, cotangent, mask=mask, taps_gradient=True)
    found = block.vjp(given, variants_of(cotangent)[form], mask=mask, taps_gradient=True)
    assert same_bits(found[0], expected[0])
    assert same_bits(found[1], expected[1])
    assert same_bits(block(given, mask=mask), expected[0])


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_input(half):
    kind = np.float16 if half == "float16" else ml_dtypes.bfloat16
    taps = [tap.astype(kind) for tap in taps_of()]
    block = mtsa()
    expected = block([tap.astype(np.float32) for tap in taps])
    assert same_bits(block(taps), expected)
    if half == "bfloat16":
        assert same_bits(block([tap.view(np.uint16) for tap in taps], dtype="bfloat16"), expected)


@pytest.mark.parametrize("kind", [bool, np.int64, np.float32, np.uint8])
def test_mask_leaves_rows_out(kind):
    mask = np.random.default_rng(0).random((12, 7)) < 0.6
    mask[3] = False
    mask[4] = True
    taps = taps_of()
    block, layer = mtsa(), frozen_layer()
    out = block(taps, mask=mask.astype(kind))
    assert np.allclose(out[mask], block(taps)[mask], atol=1e-6)
    assert not out[~mask].any()
    attended = layer(taps[0], mask.astype(kind))
    assert not attended[~mask].any()
    for sample in np.flatnonzero(mask.any(axis=1)):
        alone = layer(taps[0][sample][mask[sample]][None])
        assert np.allclose(attended[sample][mask[sample]], alone[0], atol=1e-5)


def test_what_is_masked_does_not_matter():
    taps, mask = taps_of(), mask_of()
    spoilt = [np.where(mask[..., None], tap, np.float32(np.nan)) for tap in taps]
    cotangent = np.where(mask[..., None], taps_of(seed=8)[0], np.float32(np.inf))
    block = mtsa()
    expected = block.vjp(taps, np.nan_to_num(cotangent, posinf=0), mask=mask)
    found = block.vjp(spoilt, cotangent, mask=mask)
    assert same_bits(found[0], expected[0])
    assert same_bits(found[1], expected[1])


def test_features_in_features_out():
    taps, mask, cotangent = taps_of(), mask_of(), taps_of(seed=9)[0]
    features = sherl.Features.from_arrays(taps, mask)
    block, layer = mtsa(), frozen_layer()
    out = block(features)
    assert np.array_equal(out.lengths, features.lengths)
    assert same_bits(out.taps[0], block(taps, mask=mask)[mask])
    assert same_bits(layer(out).taps[0], layer(block(taps, mask=mask), mask)[mask])
    ragged, gradients = block.vjp(features, sherl.Features.from_arrays([cotangent], mask), taps_gradient=True)
    padded, expected = block.vjp(taps, cotangent, mask=mask, taps_gradient=True)
    assert same_bits(ragged.taps[0], padded[mask])
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        found = gradients[name]
        assert same_bits(found.taps[0], value[mask]) if isinstance(found, sherl.Features) else same_bits(found, value)


def test_selected_features_are_read_in_place():
    features = sherl.Features.from_arrays(taps_of(), mask_of())
    chosen = features[[5, 2, 2, 11]]
    whole = mtsa()(features)
    part = mtsa()(chosen, chosen.select([-1]))
    assert np.allclose(part.taps[0], whole[[5, 2, 2, 11]].taps[0], atol=1e-6)


def test_last_defaults_to_the_last_tap():
    taps, cotangent = taps_of(), taps_of(seed=9)[0]
    block = mtsa()
    assert same_bits(block(taps), block(taps, taps[-1]))
    assert same_bits(block.vjp(taps, cotangent)[1], block.vjp(taps, cotangent, taps[-1])[1])


@pytest.mark.parametrize(
    "settings",
    [
        {"down": "gated"},
        {"guidance": "residual_mlp", "up_norm": "layernorm"},
        {"out_features": 16},
    ],
)
def test_gradient_is_that_of_the_output(settings, double_core):
    block = mtsa(**settings)
    width = block.out_features
    taps, last = taps_of(4, 3), taps_of(4, 3, seed=7, features=width)[0]
    cotangent = taps_of(4, 3, seed=9, features=width)[0]
    _, gradients = block.vjp(taps, cotangent, last, taps_gradient=True)
    state, rng, step = block.state_dict(), np.random.default_rng(0), 1e-7
    for name, value in state.items():
        direction = rng.standard_normal(value.shape)
        products = []
        for sign in (1, -1):
            block.load_state_dict({name: value + sign * step * direction}, strict=False)
            products.append(np.vdot(block(taps, last), cotangent))
        slope = (products[0] - products[1]) / (2 * step)
        block.load_state_dict({name: value}, strict=False)
        assert slope == pytest.approx(np.vdot(gradients[name], direction), rel=1e-5, abs=1e-5)


def test_taps_of_different_widths():
    block = sherl.MTSA(3, [16, 24, 32], 8)
    taps = [taps_of(features=width)[0] for width in (16, 24, 32)]
    assert block(taps).shape == (12, 7, 32)
    assert sherl.MTSA(**block.settings).settings == block.settings


def test_frozen_layer_holds_the_callers_arrays():
    weights = bert_weights()
    layer = sherl.TransformerLayer.from_bert(weights, HEADS)
    held = {id(array) for array in layer._frozen.values()}
    assert held == {id(array) for array in weights.values()}
    read_only = {name: value.copy() for name, value in weights.items()}
    for value in read_only.values():
        value.flags.writeable = False
    x = taps_of()[0]
    expected = layer(x)
    assert same_bits(sherl.TransformerLayer.from_bert(read_only, HEADS)(x), expected)
    swapped = {name: value.astype(">f4") for name, value in weights.items()}
    assert same_bits(sherl.TransformerLayer.from_bert(swapped, HEADS)(x), expected)
    assert layer.num_parameters() == 0
    assert layer.num_parameters(trainable_only=False) == sum(value.size for value in weights.values())
    assert layer.state_dict() == {}


def test_trainable_layer_computes_the_same_and_has_gradients():
    weights, x, cotangent = bert_weights(), taps_of()[0], taps_of(seed=9)[0]
    frozen = sherl.TransformerLayer.from_bert(weights, HEADS)
    trainable = sherl.TransformerLayer.from_bert(weights, HEADS, trainable=True)
    out, gradients = trainable.vjp(x, cotangent)
    assert np.allclose(out, frozen(x), atol=1e-5)
    assert np.allclose(gradients["x"], frozen.vjp(x, cotangent)[1]["x"], atol=1e-4)
    assert gradients.keys() == trainable.state_dict().keys() | {"x"}
    assert all(np.abs(value).max() > 0 for name, value in gradients.items() if name != "key.bias")


def test_dropout_acts_in_training_only():
    block = mtsa(dropout=0.5)
    taps, cotangent = taps_of(), taps_of(seed=9)[0]
    still = block.vjp(taps, cotangent)[0]
    assert same_bits(still, mtsa()(taps))
    first, again, other = (block.vjp(taps, cotangent, training=True, seed=seed)[0] for seed in (1, 1, 2))
    assert same_bits(first, again)
    assert not np.allclose(first, still)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("pool", ["first", "mean", "max", "last"])
@pytest.mark.parametrize("pooler", [False, True])
def test_head_is_pool_and_linear(pool, pooler):
    head = sherl.Classifier(FEATURES, 3, pool=pool, pooler=pooler)
    x, mask = taps_of()[0], mask_of()
    rows = [row[kept] for row, kept in zip(x, mask)]
    reduce = {"first": lambda r: r[0], "mean": lambda r: r.mean(axis=0), "max": lambda r: r.max(axis=0),
              "last": lambda r: r[-1]}[pool]
    pooled = np.stack([reduce(r) for r in rows]).astype(np.float64)
    state = head.state_dict()
    if pooler:
        pooled = np.tanh(pooled @ state["pooler.weight"].T + state["pooler.bias"])
    assert np.allclose(head(x, mask), pooled @ state["weight"].T + state["bias"], atol=1e-5)
    _, gradients = head.vjp(x, np.ones((12, 3), np.float32), mask)
    assert np.allclose(gradients["weight"], np.tile(pooled.sum(axis=0), (3, 1)), atol=1e-4)
    assert not gradients["x"][~mask].any()


@pytest.mark.parametrize(
    "block",
    [
        mtsa(),
        mtsa(down="gated"),
        mtsa(guidance="residual_mlp"),
        sherl.TransformerLayer(FEATURES, HEADS),
        frozen_layer(),
        sherl.Classifier(FEATURES, 3),
        sherl.Regressor(FEATURES, 2, pooler=True),
    ],
)
def test_least_parameters_are_those_of_the_matrices(block):
    matrices = [value.size for value in block.state_dict().values() if value.ndim == 2 and len(value) > 1]
    assert block._least_parameters() == sum(matrices)


def test_seed_decides_the_weights():
    assert same_bits(sherl.MTSA(3, 32, 8, seed=1).state_dict(), sherl.MTSA(3, 32, 8, seed=1).state_dict())
    first, second = (sherl.MTSA(3, 32, 8, seed=seed).state_dict() for seed in (1, 2))
    assert not np.array_equal(first["up.weight"], second["up.weight"])
    assert not first["gate"].any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: mtsa(down="gated"),
        frozen_layer,
        lambda: sherl.TransformerLayer(FEATURES, HEADS, seed=3),
        lambda: sherl.Classifier(FEATURES, 3, class_weights=[1, 2, 3]),
        lambda: sherl.Regressor(FEATURES, 2),
    ],
)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_copies_are_equal_and_apart(make, copied):
    block = make()
    other = copied(block)
    assert other.settings == block.settings
    assert same_bits(other.state_dict(), block.state_dict())
    if block.trainable:
        other.load_state_dict({name: value + 1 for name, value in other.state_dict().items()})
        assert not any(np.array_equal(value, block.state_dict()[name]) for name, value in other.state_dict().items())
    elif isinstance(block, sherl.TransformerLayer):
        assert other.fingerprint == block.fingerprint
