"""Transformer layers as blocks: their families, a memory beside x, what they refuse, and networks that have them."""

import copy
import pickle

import numpy as np
import pytest
from small import FEATURES, HEADS, INTERMEDIATE, bert_weights, mask_of, same_bits, taps_of

import sherl
from sherl import _core
from sherl.blocks import families
from sherl.blocks.families import layer_roles

pytestmark = pytest.mark.core

SIZES = {"f": FEATURES, "i": INTERMEDIATE, "q": FEATURES, "k": FEATURES, "m": FEATURES, "b": 8, "h": HEADS}


def weights_of(family, naming=0, seed=0, sizes=None, **flags):
    """Return random weights of a family's layer, by the names of its checkpoint."""
    naming, sizes = family.namings[naming], {**SIZES, **(sizes or {})}
    rng, weights = np.random.default_rng(seed), {}
    for role, letters in layer_roles(**flags).items():
        shape = [sizes[letter] for letter in letters]
        shape[0] *= naming.share(role)[1]
        name = naming.name(role)
        if name in weights:
            continue
        array = rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1] if len(shape) > 1 else 10))
        array = array + np.float32(role.endswith("norm_weight"))
        weights[name] = np.ascontiguousarray(array.T if naming.transposed else array)
    return weights


RMS = {"placement": "pre", "norm": "rmsnorm", "output_bias": False, "feed_forward_bias": False}
T5 = {**RMS, "query_bias": False, "position_buckets": True}
layers = sherl.TransformerLayer
MAKERS = {
    "bert": lambda **given: layers.from_bert(weights_of(families.BERT), HEADS, **given),
    "mpnet": lambda **given: layers.from_mpnet(weights_of(families.MPNET, position_buckets=True), HEADS, **given),
    "vit": lambda **given: layers.from_vit(weights_of(families.VIT, placement="pre"), HEADS, **given),
    "clip": lambda **given: layers.from_clip(weights_of(families.CLIP, placement="pre"), HEADS, **given),
    "gpt2": lambda **given: layers.from_gpt2(weights_of(families.GPT2, placement="pre"), HEADS, **given),
    "llama": lambda **given: layers.from_llama(
        weights_of(families.LLAMA, sizes={"k": FEATURES // 2}, **RMS, query_bias=False, gated=True), HEADS, **given
    ),
    "qwen2": lambda **given: layers.from_llama(
        weights_of(families.LLAMA, sizes={"k": FEATURES // 4}, **RMS, gated=True), HEADS, theta=1e6, **given
    ),
    "t5": lambda **given: sherl.T5Block.from_t5(weights_of(families.T5_ENCODER, **T5), HEADS, **given),
    "t5 gated": lambda **given: sherl.T5Block.from_t5(
        weights_of(families.T5_ENCODER, 1, **T5, gated=True, sizes={"q": 20, "k": 20}), HEADS, **given
    ),
    "sandwich": lambda **given: layers.from_weights(
        own_weights(placement="sandwich", layer_scale=True), HEADS, placement="sandwich", layer_scale=True, **given
    ),
}  # fmt: skip
MORE = {
    "t5 decoder": lambda **given: sherl.T5Block.from_t5(
        weights_of(families.T5_DECODER, **T5, memory=True), HEADS, decoder=True, **given
    ),
    "detr encoder": lambda **given: layers.from_detr(weights_of(families.DETR_ENCODER), HEADS, **given),
    "detr decoder": lambda **given: layers.from_detr(
        weights_of(families.DETR_DECODER, memory=True), HEADS, decoder=True, **given
    ),
    "torch decoder": lambda **given: layers.from_detr(
        weights_of(families.DETR_DECODER, 2, memory=True), HEADS, decoder=True, **given
    ),
}  # fmt: skip
EVERY = MAKERS | MORE


def own_weights(**flags):
    parts = {role.rpartition("_")[0] for role in layer_roles(**flags)}
    return weights_of(families.Family("own", (families.Naming({part: part for part in parts}),)), **flags)


def inputs_of(layer, samples=5, tokens=7, memory_tokens=4):
    """Return random inputs of a layer beside x, and x."""
    rng = np.random.default_rng(1)
    rows = {name: memory_tokens if name.startswith("memory") else tokens for name, _ in layer._inputs()}
    return {name: rng.standard_normal((samples, rows[name], FEATURES), dtype=np.float32) for name in rows}


@pytest.mark.parametrize("name", EVERY)
def test_trainable_layer_computes_the_same_and_has_gradients(name):
    frozen, trainable = EVERY[name](), EVERY[name](trainable=True)
    given = inputs_of(frozen)
    cotangent = np.random.default_rng(2).standard_normal(given["x"].shape, dtype=np.float32)
    out, gradients = trainable.vjp(cotangent=cotangent, **given)
    expected, of_inputs = frozen.vjp(cotangent=cotangent, **given)
    assert np.allclose(out, expected, atol=1e-5)
    for part, gradient in of_inputs.items():
        assert np.allclose(gradients[part], gradient, atol=1e-4)
    assert of_inputs.keys() == given.keys()
    assert gradients.keys() == trainable.state_dict().keys() | given.keys()
    assert all(np.abs(value).max() > 0 for part, value in gradients.items() if not part.endswith("key.bias"))
    assert trainable.num_parameters() == frozen.num_parameters(trainable_only=False)
    matrices = [value.size for value in trainable.state_dict().values() if value.ndim == 2]
    assert trainable._least_parameters() == sum(matrices)


@pytest.mark.parametrize("name", EVERY)
def test_weights_under_own_names_make_the_same_layer(name):
    layer, state = EVERY[name](), EVERY[name](trainable=True).state_dict()
    settings = {setting: getattr(layer, setting) for setting in sherl.TransformerLayer._SETTINGS}
    for setting in ("features", "heads", "intermediate", "head_size"):
        del settings[setting]
    again = sherl.TransformerLayer.from_weights(state, HEADS, **settings)
    assert again.fingerprint == layer.fingerprint
    given = inputs_of(layer)
    assert same_bits(again(**given), layer(**given))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_copies_are_equal(name, trainable, copied):
    layer = EVERY[name](trainable=trainable)
    other, given = copied(layer), inputs_of(layer)
    assert other.settings == layer.settings
    assert repr(other) == repr(layer)
    assert other.fingerprint == layer.fingerprint
    assert same_bits(other(**given), layer(**given))


def test_fingerprint_tells_settings_apart():
    weights, given = weights_of(families.CLIP, placement="pre"), {"heads": HEADS}
    causal, open_ended = (layers.from_clip(weights, causal=causal, **given) for causal in (True, False))
    assert causal.fingerprint != open_ended.fingerprint
    assert layers.from_clip(weights, dropout=0.5, **given).fingerprint == causal.fingerprint
    rotary = weights_of(families.LLAMA, **RMS, gated=True)
    assert len({layers.from_llama(rotary, HEADS, theta=theta).fingerprint for theta in (1e4, 1e6)}) == 2


@pytest.mark.parametrize("name", MORE)
def test_masked_rows_are_left_out_of_x_and_memory(name):
    layer = EVERY[name]()
    given = inputs_of(layer)
    cotangent = np.random.default_rng(2).standard_normal(given["x"].shape, dtype=np.float32)
    masks = {"mask": mask_of(5, 7), "memory_mask": mask_of(5, 4, seed=1)}
    masks["mask"][3] = False  # a sample without a row, whose memory is not read either
    if "memory" not in given:
        del masks["memory_mask"]
    of = {part: masks["memory_mask" if part.startswith("memory") else "mask"] for part in given}
    out, gradients = layer.vjp(cotangent=cotangent, **given, **masks)
    poisoned = {part: np.where(of[part][..., None], rows, np.nan) for part, rows in given.items()}
    for part in poisoned:
        poisoned[part][3] = np.nan
    again, same = layer.vjp(cotangent=cotangent, **poisoned, **masks)
    assert same_bits(again, out)
    assert same_bits(same, gradients)
    for part, gradient in gradients.items():
        assert not gradient[~of[part]].any()
        assert not gradient[3].any()
    for sample in (0, 1, 2, 4):
        alone = {part: rows[sample : sample + 1, of[part][sample]] for part, rows in given.items()}
        kept = masks["mask"][sample]
        one, parts = layer.vjp(cotangent=cotangent[sample : sample + 1, kept], **alone)
        assert np.allclose(out[sample, kept], one[0], atol=1e-5)
        for part, gradient in parts.items():
            assert np.allclose(gradients[part][sample, of[part][sample]], gradient[0], atol=1e-5)


def test_features_go_in_and_come_out():
    layer = EVERY["detr decoder"]()
    given = inputs_of(layer)
    masks = {"x": mask_of(5, 7), "memory": mask_of(5, 4, seed=1)}
    of = {part: masks["memory" if part.startswith("memory") else "x"] for part in given}
    cotangent = np.ones_like(given["x"])
    expected, gradients = layer.vjp(cotangent=cotangent, mask=masks["x"], memory_mask=masks["memory"], **given)
    ragged = {part: sherl.Features.from_arrays([rows], of[part]) for part, rows in given.items()}
    out, found = layer.vjp(cotangent=sherl.Features.from_arrays([cotangent], masks["x"]), **ragged)
    for part, value in {"x": out, **found}.items():
        whole = expected if value is out else gradients[part]
        for sample in range(5):
            assert np.allclose(value[sample].taps[0], whole[sample, of[part][sample]], atol=1e-6)
    mixed, _ = layer.vjp(cotangent=cotangent, mask=masks["x"],
                         **{part: rows if of[part] is masks["x"] else ragged[part] for part, rows in given.items()})
    assert np.allclose(mixed, expected, atol=1e-6)
    dropped = masks["x"].copy()
    dropped[2] = False
    _, parts = layer.vjp(cotangent=cotangent, mask=dropped,
                         **{part: rows if of[part] is masks["x"] else ragged[part] for part, rows in given.items()})
    assert not parts["memory"][2].taps[0].any()
    assert np.allclose(parts["memory"][1].taps[0], gradients["memory"][1, masks["memory"][1]], atol=1e-6)


# ---- Networks ----


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("pool", ["first", "mean"])
def test_network_learns_through_a_frozen_layer(name, pool, tmp_path):
    taps, mask = taps_of(), mask_of()
    labels = np.arange(12) % 2
    layer = MAKERS[name]()
    make = lambda: sherl.SideNetwork(
        sherl.MTSA(3, FEATURES, 8), [layer], sherl.Classifier(FEATURES, 2, pool=pool), seed=3
    )
    net = make()
    before = net.evaluate(taps, labels, mask)["loss"]
    net.fit(taps, labels, mask, epochs=8, batch_size=4, learning_rate=1e-2, progress=False)
    assert net.evaluate(taps, labels, mask)["loss"] < before
    net.save_pretrained(tmp_path)
    again = sherl.SideNetwork.from_pretrained(tmp_path, backbone=[MAKERS[name]()])
    assert same_bits(again.forward(taps, mask), net.forward(taps, mask))


@pytest.mark.parametrize("name", MAKERS)
def test_first_token_of_a_network_is_that_of_its_parts(name):
    taps, mask = taps_of(), mask_of()
    layer, head = MAKERS[name](), sherl.Classifier(FEATURES, 2)
    net = sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), [layer], head)
    early = sherl.MTSA(**net.early.settings)
    early.load_state_dict(net.early.state_dict())
    y = layer(early(taps, mask=mask), mask)
    state = head.state_dict()
    assert np.allclose(net.forward(taps, mask), y[:, 0] @ state["weight"].T + state["bias"], atol=1e-4)


@pytest.mark.skipif(not _core.config()["bfloat16"], reason="the processor has no bfloat16 products")
@pytest.mark.parametrize("name", MAKERS)
def test_bfloat16_late_layers_are_close(name):
    taps, mask, labels = taps_of(), mask_of(), np.arange(12) % 2
    losses, gradients = [], []
    for late_dtype in ("float32", "bfloat16"):
        net = sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), [MAKERS[name]()],
                                sherl.Classifier(FEATURES, 2, pool="mean"), late_dtype=late_dtype)
        loss, parts = net.loss_and_gradients(taps, labels, mask)
        losses.append(loss)
        gradients.append(np.concatenate([value.ravel() for value in parts.values()]))
    assert 0 < abs(losses[0] - losses[1]) < 2e-2 * losses[0]
    assert np.linalg.norm(gradients[0] - gradients[1]) < 3e-2 * np.linalg.norm(gradients[0])


@pytest.mark.parametrize("name", MAKERS)
def test_bits_do_not_depend_on_threads(name, keep_threads):
    taps, mask, labels = taps_of(60, 9), mask_of(60, 9), np.arange(60) % 2
    net = sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), [MAKERS[name](trainable=True)],
                            sherl.Classifier(FEATURES, 2, pool="mean"))
    found = []
    for threads in (1, 2, 3):
        sherl.set_num_threads(threads)
        found.append(net.loss_and_gradients(taps, labels, mask))
    assert all(loss == found[0][0] and same_bits(gradients, found[0][1]) for loss, gradients in found)


def test_networks_refuse_layers_that_read_more_than_x():
    for name in MORE:
        with pytest.raises(ValueError, match=r"late\[0\] must read x alone.* but it reads (positions|memory)"):
            sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), [EVERY[name]()], sherl.Classifier(FEATURES, 2))


# ---- Refusals ----


def changed(weights, **changes):
    weights = {**weights, **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in weights.items() if value is not None}


LLAMA = weights_of(families.LLAMA, **RMS, gated=True)
GPT2 = weights_of(families.GPT2, placement="pre")
T5_WEIGHTS = weights_of(families.T5_DECODER, **T5, memory=True)
WRONG = {
    "a missing weight": (
        lambda: layers.from_llama(changed(LLAMA, mlp__gate_proj__weight=None), HEADS),
        ValueError, "a Llama layer: missing mlp.gate_proj.weight$",
    ),
    "a bias of some": (
        lambda: layers.from_llama(changed(LLAMA, self_attn__k_proj__bias=None), HEADS),
        ValueError, "missing self_attn.k_proj.bias$",
    ),
    "no queries' bias": (
        lambda: layers.from_llama(changed(LLAMA, self_attn__q_proj__bias=None), HEADS),
        ValueError, "unexpected self_attn.k_proj.bias, self_attn.v_proj.bias$",
    ),
    "an unexpected weight": (
        lambda: layers.from_clip({**weights_of(families.CLIP, placement="pre"), "extra": np.ones(3)}, HEADS),
        ValueError, "a CLIP layer: unexpected extra$",
    ),
    "names of another family": (
        lambda: layers.from_vit(bert_weights(), HEADS), ValueError,
        "a ViT layer: missing attention.attention.key.weight",
    ),
    "a fused map of another shape": (
        lambda: layers.from_gpt2(changed(GPT2, attn__c_attn__weight=np.ones((FEATURES, 2 * FEATURES))), HEADS),
        ValueError, r"weights\['attn.c_attn.weight'\] must have outputs for 3 maps, got 64",
    ),
    "a fused bias of another shape": (
        lambda: layers.from_gpt2(changed(GPT2, attn__c_attn__bias=np.ones(5)), HEADS),
        ValueError, r"weights\['attn.c_attn.bias'\] must have shape \(96,\), got \(5,\)",
    ),
    "a matrix that is none": (
        lambda: layers.from_gpt2(changed(GPT2, mlp__c_fc__weight=np.ones(5)), HEADS),
        ValueError, r"weights\['mlp.c_fc.weight'\] must have two dimensions, got shape \(5,\)",
    ),
    "not finite": (
        lambda: layers.from_gpt2(changed(GPT2, ln_1__bias=np.full(FEATURES, np.inf)), HEADS),
        ValueError, r"weights\['ln_1.bias'\] must hold finite numbers",
    ),
    "heads that keys do not have": (
        lambda: layers.from_llama(weights_of(families.LLAMA, sizes={"k": 24}, **RMS, gated=True), HEADS),
        ValueError, "the 24 channels of the keys must be heads of 8 that 4 heads can share",
    ),
    "keys without a whole head": (
        lambda: layers.from_llama(weights_of(families.LLAMA, sizes={"k": 4}, **RMS, gated=True), HEADS),
        ValueError, "the 4 channels of the keys must be heads of 8",
    ),
    "fewer keys in BERT": (
        lambda: layers.from_bert(weights_of(families.BERT, sizes={"k": 16}), HEADS),
        ValueError, r"weights\['attention.self.key.weight'\] must have shape \(32, 32\), got \(16, 32\)",
    ),
    "heads of T5": (lambda: sherl.T5Block.from_t5(T5_WEIGHTS, 5, decoder=True), ValueError, "heads must divide the 32"),
    "no table": (
        lambda: sherl.T5Block.from_t5(
            changed(T5_WEIGHTS, layer__0__SelfAttention__relative_attention_bias__weight=None), HEADS, decoder=True
        ),
        ValueError, "a T5 decoder layer: missing layer.0.SelfAttention.relative_attention_bias.weight$",
    ),
    "a decoder as an encoder": (
        lambda: sherl.T5Block.from_t5(T5_WEIGHTS, HEADS), ValueError,
        "a T5 encoder layer: missing layer.1.DenseReluDense",
    ),
    "a short distance": (
        lambda: sherl.T5Block.from_t5(T5_WEIGHTS, HEADS, decoder=True, max_distance=4),
        ValueError, "max_distance must be more than 4 with 8 buckets, got 4",
    ),
    "another family": (
        lambda: sherl.T5Block.from_bert(bert_weights(), HEADS), TypeError, "a T5Block is made by from_t5",
    ),
    "a list": (lambda: sherl.T5Block.from_t5([1], HEADS), TypeError, "weights must be a dictionary"),
    "few buckets": (lambda: layers(32, 4, position_buckets=2), ValueError,
                    "position_buckets must be even, and 4 or more"),
    "key heads": (lambda: layers(32, 4, key_heads=3), ValueError, "key_heads must divide the 4 heads, got 3"),
    "odd turns": (
        lambda: layers(32, 4, rotary_theta=10.0, rotary_dimensions=3), ValueError,
        "rotary_dimensions must be even.*got 3",
    ),
    "many turns": (
        lambda: layers(32, 4, rotary_theta=10.0, rotary_dimensions=10), ValueError, "at most the 8 channels of a head",
    ),
    "theta": (lambda: layers(32, 4, rotary_theta=0.5), ValueError, "rotary_theta must be 1.0 or more"),
    "scaling of no turns": (
        lambda: layers(32, 4, rotary_scaling={"factor": 2.0}), ValueError, "rotary_scaling goes with rotary_theta",
    ),
    "half a scaling": (
        lambda: layers(32, 4, rotary_theta=10.0, rotary_scaling={"factor": 2.0, "low": 1.0}),
        ValueError, "rotary_scaling must have the key factor alone, or factor, original, low, high, got factor, low",
    ),
    "scaling": (
        lambda: layers(32, 4, rotary_theta=10.0, rotary_scaling=2.0), TypeError,
        "must be a dictionary or None, got float",
    ),
    "scaling upside down": (
        lambda: layers(32, 4, rotary_theta=10.0, rotary_scaling={"factor": 2, "original": 8, "low": 4, "high": 1}),
        ValueError, "high must be more than 4.0, got 1.0",
    ),
    "placement": (lambda: layers(32, 4, placement="before"), ValueError, "placement must be one of 'post', 'pre'"),
    "norm": (lambda: layers(32, 4, norm="none"), ValueError, "norm must be one of 'layernorm', 'rmsnorm'"),
    "a flag": (lambda: layers(32, 4, causal=1), TypeError, "causal must be True or False, got 1"),
    "positions of no memory": (lambda: layers(32, 4, memory_positions=True), ValueError, "goes with memory_features"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_refuses(case):
    make, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"memory": None}, "memory must be given to this layer"),
        ({"positions": None}, "positions must be given to this layer"),
        ({"memory": taps_of(4, 4)[0]}, "memory_positions must have the same batch and tokens as memory"),
        ({"memory": taps_of(4, 4)[0], "memory_positions": taps_of(4, 4)[0]},
         "memory must have the 5 samples of x, got 4"),
        ({"memory": taps_of(5, 4, features=31)[0]}, "memory must have 32 channels, got 31"),
        ({"positions": taps_of(5, 6)[0]}, "positions must have the same batch and tokens as x"),
        ({"memory_mask": np.ones((5, 5))}, r"memory_mask must have shape \(batch, tokens\) = \(5, 4\), got \(5, 5\)"),
        ({"memory_mask": np.zeros((5, 4))}, "memory_mask leaves no row of any sample"),
        ({"memory_mask": np.eye(5, 4)}, "memory_mask leaves no row of sample 4"),
    ],
)
def test_refuses_inputs(change, message):
    layer = EVERY["detr decoder"]()
    with pytest.raises(ValueError, match=message):
        layer(**{**inputs_of(layer), **change})


@pytest.mark.parametrize("part", ["positions", "memory", "memory_positions", "memory_mask"])
def test_refuses_what_it_does_not_read(part):
    layer = EVERY["bert"]()
    with pytest.raises(ValueError, match=f"{part} must be None with this layer"):
        layer(**inputs_of(layer), **{part: taps_of(5)[0]})
