"""Backbones of all families on tiny models: what they share, shards and half precision, images, and wrong folders."""

import json
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from small import same_bits
from tiny_models import CONFIGS, samples_of, weights_of, write_tensors, write_tiny_model

import sherl
from sherl.backbones.families import TOWERS
from sherl.backbones.image import interpolated

pytestmark = pytest.mark.core

FAMILIES = [(kind, tower) for kind in CONFIGS for tower in TOWERS.get(kind, [None])]


@pytest.fixture
def tiny(tmp_path):
    """Return a function that loads a tiny model of a kind."""

    def load(kind, tower=None, **changes):
        return sherl.load_backbone(write_tiny_model(tmp_path / "tiny", kind, **changes), tower)

    return load


@pytest.mark.parametrize("kind, tower", FAMILIES)
def test_states_follow_from_each_other(tiny, kind, tower):
    backbone = tiny(kind, tower)
    features = backbone.extract(samples_of(backbone), taps="all+last", batch_size=2)
    assert len(features.taps) == 3 and features.channels == [16] * 3
    for number in range(3):
        states = features[number].taps
        assert np.allclose(states[1], backbone.layers[0](states[0][None])[0], atol=1e-5)
        last = backbone.layers[1](states[1][None])[0]
        assert np.isfinite(last).all()
        assert np.allclose(states[2], normed(backbone, last), atol=1e-5)
        if backbone.final_norm is not None:
            assert np.allclose(states[2], backbone.final_norm(last[None])[0], atol=1e-6)
    assert (backbone.final_norm is None) == (not backbone._norm)
    assert len(backbone.encode(samples_of(backbone), "last")) == 3
    assert backbone.fingerprint in str(features.source)


@pytest.mark.parametrize("kind, tower", [pair for pair in FAMILIES if pair[0] not in TOWERS or pair[1] == "text"])
def test_a_network_may_end_with_the_final_norm(tiny, tmp_path, kind, tower):
    backbone = tiny(kind, tower)
    if backbone.final_norm is None:
        return
    features = backbone.extract(samples_of(backbone))

    def network(pool="first", head=sherl.Classifier):
        early = sherl.MTSA(backbone.num_layers, backbone.hidden_size, 4)
        return sherl.SideNetwork(early, [backbone.layers[-1], backbone.final_norm], head(16, 3, pool=pool))

    net = network()
    assert not any(name.startswith("late") for name in net.state_dict())
    x = normed(backbone, backbone.layers[-1](net.early(features)).taps[0])
    first = np.concatenate([[0], np.cumsum(features.lengths)[:-1]])
    head = net.head.state_dict()
    np.testing.assert_allclose(net.forward(features), x[first] @ head["weight"].T + head["bias"], atol=2e-5)
    net.save_pretrained(tmp_path / "net")
    again = sherl.SideNetwork.from_pretrained(tmp_path / "net", backbone)
    assert again.late[1] is backbone.final_norm
    assert same_bits(again.forward(features), net.forward(features))
    with pytest.raises(ValueError, match="no layer of backbone has the weights that late layer 1 was trained with"):
        sherl.SideNetwork.from_pretrained(tmp_path / "net", backbone.layers)
    labels, settings = np.arange(len(features)) % 3, {"epochs": 2, "batch_size": 2, "progress": False}
    swept, alone = ({"first": network(), "mean": network("mean")} for _ in range(2))
    sherl.sweep(features, labels, swept, **settings)
    for name, each in alone.items():
        each.fit(features, labels, **settings)
        assert same_bits(each.state_dict(), swept[name].state_dict())


def normed(backbone, x):
    """Return rows after the final norm of a backbone, in NumPy."""
    if not backbone._norm:
        return x
    weight, bias = backbone._norm["weight"], backbone._norm.get("bias", 0)
    x = x - x.mean(axis=-1, keepdims=True) if "bias" in backbone._norm else x
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + backbone._eps) * weight + bias


@pytest.mark.parametrize("kind, tower", FAMILIES)
def test_missing_and_misshapen_tensors_are_named(tmp_path, kind, tower):
    folder = write_tiny_model(tmp_path / "tiny", kind)
    weights = load_file(folder / "model.safetensors")
    wanted = {"text": "text_model.", "image": "vision_model."}.get(tower, "")
    for name in sorted(weights):
        if not name.startswith(wanted) or ".1." in name or optional(name):
            continue
        shape = weights[name].shape
        write_tensors(folder / "model.safetensors", {**weights, name: np.zeros((*shape, 2), np.float32)})
        with pytest.raises(ValueError) as error:
            sherl.load_backbone(folder, tower)
        assert f"{name} must have shape {shape}, as config.json says, got {(*shape, 2)}" in str(error.value)
        write_tensors(folder / "model.safetensors", {key: value for key, value in weights.items() if key != name})
        if (kind, name) == ("marian", "encoder.embed_positions.weight"):
            continue  # sines are meant where there are none
        with pytest.raises(ValueError) as error:
            sherl.load_backbone(folder, tower)
        assert f"lacks the tensor {name}, of shape {shape}" in str(error.value)


def optional(name):
    """Tell whether a model can do without a tensor: one that tells how its layers are made, or of a decoder."""
    bias = name.endswith(".bias") and any(part in name for part in ("query", "q_proj", "o_proj", "up_proj", "c_attn"))
    return bias or name.startswith(("decoder", "lm_head")) or name.endswith("_projection.weight")


def test_projections_are_read_where_there_are_some(tmp_path):
    folder = write_tiny_model(tmp_path / "tiny", "clip")
    weights = load_file(folder / "model.safetensors")
    for tower, name in (("text", "text_projection.weight"), ("image", "visual_projection.weight")):
        backbone = sherl.load_backbone(folder, tower)
        np.testing.assert_array_equal(backbone.projection, weights[name])
        without = {key: value for key, value in weights.items() if key != name}
        write_tensors(folder / "model.safetensors", without)
        again = sherl.load_backbone(folder, tower)
        assert again.projection is None and again.fingerprint == backbone.fingerprint
        write_tensors(folder / "model.safetensors", {**without, name: np.zeros((10, 3), np.float32)})
        with pytest.raises(ValueError, match=rf"{name} must have shape \(10, 16\).* got \(10, 3\)"):
            sherl.load_backbone(folder, tower)
        write_tensors(folder / "model.safetensors", weights)
        head = sherl.Embedding.from_projection(backbone.projection, "first", normalize=False, temperature=0.1)
        x = np.random.default_rng(0).standard_normal((2, 3, 16), dtype=np.float32)
        np.testing.assert_allclose(head(x), 10 * x[:, 0] @ weights[name].T, atol=1e-4)
    with pytest.raises(ValueError, match=r"projection must have shape \(rows, features\), got \(3,\)"):
        sherl.Embedding.from_projection(np.ones(3, np.float32))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "dinov2", "whisper"])
def test_shards_and_half_precision(tmp_path, kind):
    folder = write_tiny_model(tmp_path / "tiny", kind)
    weights = load_file(folder / "model.safetensors")
    whole = sherl.load_backbone(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for path, part in parts.items():
        write_tensors(folder / path, {name: weights[name] for name in part})
    index = {"metadata": {}, "weight_map": {name: path for path, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert sherl.load_backbone(folder).fingerprint == whole.fingerprint

    narrow = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in weights.items()}
    wide = {name: (array.astype(np.uint32) << 16).view(np.float32) for name, array in narrow.items()}
    write_tensors(folder / "model.safetensors", wide)
    expected = sherl.load_backbone(folder)
    write_tensors(folder / "model.safetensors", narrow)
    assert sherl.load_backbone(folder).fingerprint == expected.fingerprint != whole.fingerprint
    write_tensors(folder / "model.safetensors", {name: array.astype(np.float16) for name, array in weights.items()})
    samples = samples_of(whole)
    assert np.allclose(sherl.load_backbone(folder).encode(samples), whole.encode(samples), atol=0.05)

    (folder / "model.safetensors").unlink()
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks model-2.safetensors, which model.safetensors.index.json names"):
        sherl.load_backbone(folder)


def spoilt_header(change):
    def spoil(path):
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    return spoil


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), r"it must have [\d,]+ bytes, got"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "its header does not end"),
        (lambda path: path.write_bytes(b""), "its header does not end"),
        (lambda path: path.write_bytes(b"\xff" * 100), "its header does not end"),
        (lambda path: path.write_bytes((8).to_bytes(8, "little") + b"[1,2,3] "), "its header cannot be read"),
        (lambda path: path.write_bytes((8).to_bytes(8, "little") + b"nonsense"), "its header cannot be read"),
        (spoilt_header(lambda header: header["wte.weight"].update(shape=[20, -16])), "its header cannot be read"),
        (spoilt_header(lambda header: header["wte.weight"].update(shape=[20, 17])), "its header cannot be read"),
        (spoilt_header(lambda header: header["wte.weight"].pop("dtype")), "its header cannot be read"),
        (spoilt_header(lambda header: header["wte.weight"].update(data_offsets=[2**70, 2**70 + 1280])),
         "it must have"),
        (spoilt_header(lambda header: header["wte.weight"].update(shape=[[20], 16])), "its header cannot be read"),
    ],
)  # fmt: skip
def test_spoilt_files(tmp_path, spoil, message):
    folder = write_tiny_model(tmp_path / "tiny", "gpt2")
    spoil(folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"is not a whole safetensors file: {message}"):
        sherl.load_backbone(folder)


@pytest.mark.parametrize(
    "kind, tower, changes, message",
    [
        ("llama", None, {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rotary positions must be plain .* 'yarn'"),
        ("llama", None, {"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor must be 1.0 or more, got 0.5"),
        ("llama", None, {"rope_scaling": {"type": "linear"}}, "positions of type 'linear' need factor"),
        ("llama", None, {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
         "positions of type 'llama3' need low_freq_factor, high_freq_factor"),
        ("llama", None, {"partial_rotary_factor": 0.5}, "only rotary positions that turn all channels of a head"),
        ("llama", None, {"num_key_value_heads": 3}, "key_heads must divide the 2 heads, got 3"),
        ("llama", None, {"hidden_act": "mish"}, "hidden_act must be one of gelu"),
        ("gpt2", None, {"scale_attn_by_inverse_layer_idx": True}, "scores scaled by the layer's number cannot be run"),
        ("gpt2", None, {"n_head": 3}, "n_head must divide n_embd"),
        ("gpt2", None, {"n_embd": 0}, "n_embd must be 1 or more, got 0"),
        ("marian", None, {"normalize_before": True}, "only layers with their norms after the sums can be run"),
        ("bart", None, {"normalize_embedding": False}, "only embeddings with a norm can be run"),
        ("t5", None, {"feed_forward_proj": "gated-mish"}, "feed_forward_proj must be an activation, or"),
        ("t5", None, {"d_model": None}, "d_model must be a whole number, got None"),
        ("vit", None, {"image_size": 10}, "patch_size must divide the image_size 10, got 4"),
        ("vit", None, {"image_size": [8, 8]}, "image_size must be a whole number"),
        ("vit", "text", {}, "tower must be one of None, 'image', got 'text'"),
        ("clip", None, {}, "tower must be one of 'text', 'image', got None"),
        ("clip", "image", {"vision_config": None}, "the configuration of the tower must be an object, got None"),
        ("dinov2", None, {"use_swiglu_ffn": "yes"}, "use_swiglu_ffn must be True or False"),
        ("roberta", None, {"pad_token_id": "one"}, "pad_token_id must be a whole number"),
        ("mpnet", None, {"relative_attention_num_buckets": 7}, "position_buckets must be even"),
    ],
)  # fmt: skip
def test_wrong_configurations(tmp_path, kind, tower, changes, message):
    folder = write_tiny_model(tmp_path / "tiny", kind)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises((ValueError, TypeError), match=message):
        sherl.load_backbone(folder, tower)


def test_rescaled_rotary_positions(tmp_path):
    folder = write_tiny_model(tmp_path / "tiny", "llama")
    config = json.loads((folder / "config.json").read_text())

    def scaling(rope):
        (folder / "config.json").write_text(json.dumps({**config, "rope_scaling": rope}))
        backbone = sherl.load_backbone(folder)
        return backbone.layers[0].rotary_scaling, backbone.fingerprint

    plain, dynamic = scaling(None), scaling({"rope_type": "dynamic", "factor": 4.0})
    linear = scaling({"type": "linear", "factor": 4})
    rules = {"rope_type": "llama3", "factor": 4, "low_freq_factor": 1, "high_freq_factor": 4}
    llama = scaling({**rules, "original_max_position_embeddings": 8})
    assert plain == dynamic and plain[0] is None and linear[0] == {"factor": 4.0}
    assert llama[0] == {"factor": 4.0, "original": 8.0, "low": 1.0, "high": 4.0}
    assert scaling(rules)[0]["original"] == 12  # the longest text, where nothing else is said
    assert len({plain[1], linear[1], llama[1]}) == 3


def test_lengths(tiny):
    assert tiny("bert").max_length == 12
    assert tiny("roberta").max_length == 10  # positions count from the one after the padding token
    assert tiny("gpt2").max_length == 12
    assert tiny("t5").max_length == tiny("bart").max_length == tiny("marian").max_length == 12
    assert tiny("mistral", sliding_window=5).max_length == 5
    assert tiny("qwen2", sliding_window=5, use_sliding_window=False).max_length == 12
    assert tiny("vit").max_length is None
    with pytest.raises(ValueError, match="text 0 must have 1 to 10 tokens, got 11"):
        tiny("roberta").extract([[2] * 11])


def test_roberta_takes_positions_after_the_padding_token(tmp_path):
    folder = write_tiny_model(tmp_path / "tiny", "roberta")
    weights = load_file(folder / "model.safetensors")
    state = sherl.load_backbone(folder).extract([[5, 6]], taps=[0]).taps[0]
    x = weights["embeddings.word_embeddings.weight"][[5, 6]] + weights["embeddings.token_type_embeddings.weight"][0]
    x = x + weights["embeddings.position_embeddings.weight"][2:4]
    x = x - x.mean(axis=1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)
    x = x * weights["embeddings.LayerNorm.weight"] + weights["embeddings.LayerNorm.bias"]
    assert np.allclose(state, x, atol=1e-5)


def test_embeddings_of_marian(tmp_path):
    """Words are scaled where the configuration says so, and positions are sines and cosines where there are none."""
    folder = write_tiny_model(tmp_path / "tiny", "marian", scale_embedding=True)
    weights = load_file(folder / "model.safetensors")
    words, positions = weights["shared.weight"][[5, 6, 7]], weights.pop("encoder.embed_positions.weight")
    assert np.allclose(sherl.load_backbone(folder).extract([[5, 6, 7]], [0]).taps[0], 4 * words + positions[:3],
                       atol=1e-6)
    write_tensors(folder / "model.safetensors", {f"model.{name}": array for name, array in weights.items()})
    state = sherl.load_backbone(folder).extract([[5, 6, 7]], [0]).taps[0]
    angles = np.arange(3)[:, None] * 10000.0 ** (-np.arange(8) / 8)
    assert np.allclose(state - 4 * words, np.concatenate([np.sin(angles), np.cos(angles)], axis=1), atol=1e-6)


@pytest.mark.parametrize("kind", ["bart", "marian", "t5", "whisper"])
def test_decoder_layers(tiny, tmp_path, kind):
    backbone = tiny(kind)
    assert len(backbone.decoder_layers) == (2 if kind == "t5" else 1)
    memory = backbone.extract(samples_of(backbone)[:1], [2]).taps[0][None]
    x = np.random.default_rng(0).standard_normal((1, 4, 16), np.float32)
    out, gradients = backbone.decoder_layers[-1].vjp(x, np.ones_like(x), memory=memory)
    assert out.shape == x.shape and set(gradients) == {"x", "memory"}
    weights = load_file(tmp_path / "tiny/model.safetensors")
    write_tensors(tmp_path / "tiny/model.safetensors",
                  {name: array for name, array in weights.items() if not name.startswith("decoder")})
    alone = sherl.load_backbone(tmp_path / "tiny")
    assert alone.decoder_layers == [] and alone.fingerprint == backbone.fingerprint


def test_a_network_on_images(tiny):
    backbone = tiny("vit")
    images = np.random.default_rng(0).random((12, 8, 8, 3))
    features = backbone.extract(images)
    net = sherl.SideNetwork(sherl.MTSA(2, 16, 4), [backbone.layers[-1]], sherl.Classifier(16, 2))
    history = net.fit(features, np.arange(12) % 2, epochs=30, learning_rate=1e-2, progress=False)
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]


# ---- Images ----


def test_images_in_every_form_are_the_same(tiny):
    backbone = tiny("vit")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    expected = backbone.extract(images, "all+last")
    assert expected.lengths.tolist() == [5] * 3
    mean, deviation = np.array([0.5, 0.4, 0.3], np.float32), np.array([0.5, 0.6, 0.7], np.float32)
    done = (images * np.float32(1 / 255) - mean) / deviation
    forms = [images.transpose(0, 3, 1, 2), list(images), images / 255, (images / 255).astype(np.float32), images[::1]]
    for form in forms:
        found = backbone.extract(form, "all+last", batch_size=2)
        assert all(np.allclose(one, other, atol=1e-5) for one, other in zip(found.taps, expected.taps))
    found = backbone.extract(done.transpose(0, 3, 1, 2), "all+last", preprocessed=True)
    assert all(same_bits(one, other) for one, other in zip(found.taps, expected.taps))


def test_patches_are_rows_of_the_convolution(tiny, tmp_path):
    backbone = tiny("vit")
    weights = load_file(tmp_path / "tiny/model.safetensors")
    image = np.random.default_rng(0).standard_normal((3, 8, 8), np.float32)
    state = backbone.extract(image[None], [0], preprocessed=True).taps[0]
    table = weights["embeddings.position_embeddings"][0]
    assert np.allclose(state[0], weights["embeddings.cls_token"][0, 0] + table[0], atol=1e-6)
    kernel = weights["embeddings.patch_embeddings.projection.weight"]
    bias = weights["embeddings.patch_embeddings.projection.bias"]
    for number, (top, left) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)], 1):
        patch = np.einsum("fcyx,cyx->f", kernel, image[:, top : top + 4, left : left + 4])
        assert np.allclose(state[number], patch + bias + table[number], atol=1e-5)


def test_resampled_positions():
    table = np.random.default_rng(0).standard_normal((16, 3))
    assert interpolated(table, (4, 4)) is table
    assert np.allclose(interpolated(np.ones((16, 3)), (3, 7)), 1)
    line = np.repeat(np.arange(64.0), 64)[:, None]  # a ramp from top to bottom stays one, away from the borders
    found = interpolated(line, (32, 64)).reshape(32, 64)
    assert np.allclose(found[4:-4], np.arange(0.5, 64, 2)[4:-4, None])


def test_sizes_of_dinov2_may_differ(tiny):
    backbone = tiny("dinov2")
    random = np.random.default_rng(0)
    images = [random.random((height, width, 3)) for height, width in [(8, 8), (12, 4), (8, 8), (4, 16)]]
    features = backbone.extract(images, "all+last")
    assert features.lengths.tolist() == [5, 4, 5, 5]
    for number, image in enumerate(images):
        alone = backbone.extract([image], "all+last")
        assert all(np.allclose(one, other, atol=1e-5) for one, other in zip(features[number].taps, alone.taps))


@pytest.mark.parametrize(
    "images, options, error, message",
    [
        ("image.png", {}, TypeError, "images must be an array or a sequence of arrays, got str"),
        (3, {}, TypeError, "images must be an array or a sequence"),
        ([], {}, ValueError, "images must hold at least one image"),
        (np.zeros((8, 8, 3)), {}, ValueError, r"image 0 must have shape \(height, width, 3\) or .* got \(8, 3\)"),
        (np.zeros((2, 8, 8, 4)), {}, ValueError, r"image 0 must have shape"),
        (np.zeros((2, 8, 8, 3), np.int64), {}, TypeError, "image 0 has dtype int64"),
        (np.full((2, 8, 8, 3), 1.5), {}, ValueError, "image 0 has values from 1.5 to 1.5; pass what the model takes"),
        (np.full((2, 8, 8, 3), np.nan), {}, ValueError, "image 0 must hold finite numbers"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"preprocessed": True}, TypeError, "must be float where they are preproc"),
        ([np.zeros((8, 8, 3)), np.zeros((8, 8, 3), np.uint8)], {}, TypeError, "all uint8 or all float"),
        (np.zeros((2, 12, 8, 3)), {}, ValueError, "images must have 8 x 8 pixels, got 12 x 8"),
        (np.zeros((2, 8, 8, 3)), {"max_length": 5}, ValueError, "max_length goes with texts"),
    ],
)
def test_wrong_images(tiny, images, options, error, message):
    with pytest.raises(error, match=message):
        tiny("vit").extract(images, **options)


def test_what_does_not_go_with_a_backbone(tiny):
    with pytest.raises(TypeError, match="the ViT backbone takes no texts"):
        tiny("vit").tokenize(["a"])
    with pytest.raises(ValueError, match="images must have height and width in multiples of 4, got 10 x 8"):
        tiny("dinov2").extract(np.zeros((1, 10, 8, 3)))
    with pytest.raises(ValueError, match="preprocessed goes with images"):
        tiny("bert").extract([[1]], preprocessed=True)
    with pytest.raises(ValueError, match=r"samples must be log-mel features of shape \(recordings, 3, 12\), got"):
        tiny("whisper").extract(np.zeros((2, 3, 13)))
    with pytest.raises(ValueError, match="samples must hold finite numbers"):
        tiny("whisper").extract(np.full((2, 3, 12), np.inf))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"do_rescale": False}, "do_rescale must be true"),
        ({"image_mean": [0.5]}, r"image_mean must be a list of 3 numbers, got \[0.5\]"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std must be more than 0.0"),
        ({"do_resize": True, "size": {"longest_edge": 8}}, "size must have height and width, or shortest_edge"),
        ({"do_resize": True, "size": 8, "resample": 9}, "resample must be one of"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 8}}, "crop_size must tell height and width"),
        ({"do_center_crop": True, "crop_size": 12}, "images must have 12 x 12 pixels or more to be cropped"),
        ({"do_resize": "no"}, "do_resize must be True or False"),
    ],
)
def test_wrong_preprocessing(tmp_path, changes, message):
    folder = write_tiny_model(tmp_path / "tiny", "dinov2")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises((ValueError, TypeError), match=message):
        sherl.load_backbone(folder).extract(np.zeros((1, 8, 8, 3), np.uint8))


def test_resizing_needs_pillow(tmp_path, monkeypatch):
    folder = write_tiny_model(tmp_path / "tiny", "vit")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_resize": True, "size": 8}))
    backbone = sherl.load_backbone(folder)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert len(backbone.extract(np.zeros((1, 8, 8, 3), np.uint8))) == 1  # as it is
    with pytest.raises(ImportError, match=r"from 8 x 9 pixels to 8 x 8, needs the pillow package: pip install 'sherl"):
        backbone.extract(np.zeros((1, 8, 9, 3), np.uint8))


def test_preprocessing_that_is_not_told(tmp_path):
    folder = write_tiny_model(tmp_path / "tiny", "vit")
    (folder / "preprocessor_config.json").unlink()
    backbone = sherl.load_backbone(folder)
    with pytest.raises(FileNotFoundError, match="pass what the model takes, as float with preprocessed=True"):
        backbone.extract(np.zeros((1, 8, 8, 3), np.uint8))
    assert len(backbone.extract(np.zeros((1, 8, 8, 3)), preprocessed=True)) == 1


def test_weights_are_shared_with_the_layers(tmp_path):
    folder = write_tiny_model(tmp_path / "tiny", "vit")
    backbone = sherl.load_backbone(folder)
    expected = sum(array.size for array in weights_of(json.loads((folder / "config.json").read_text())).values())
    assert backbone.num_parameters() == expected
    assert "Backbone(ViT, 2 layers of 16 channels" in repr(backbone)


# ---- Folders of features ----


@pytest.mark.parametrize("kind", ["vit", "whisper", "gpt2"])
def test_an_extraction_goes_on_where_it_was_broken_off(tiny, tmp_path, monkeypatch, kind):
    backbone = tiny(kind)
    samples = samples_of(backbone)
    expected = backbone.extract(samples, batch_size=1)
    run, done = sherl.backbones.Backbone._run, []

    def broken(self, *arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(run(self, *arguments))

    monkeypatch.setattr(sherl.backbones.Backbone, "_run", broken)
    with pytest.raises(KeyboardInterrupt):
        backbone.extract(samples, batch_size=1, out=tmp_path / "out")
    monkeypatch.setattr(sherl.backbones.Backbone, "_run", run)
    written = backbone.extract(samples, batch_size=1, out=tmp_path / "out")
    assert written.fingerprint == expected.fingerprint and written.source == expected.source
    assert written.preprocessing == expected.preprocessing and "inputs" in written.preprocessing
    other = [sample[::-1] for sample in samples] if kind == "gpt2" else samples[::-1]
    with pytest.raises(ValueError, match="inputs"):
        backbone.extract(other, batch_size=1, out=tmp_path / "out")


def test_how_images_became_rows_is_told(tiny, tmp_path):
    backbone = tiny("vit")
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    told = backbone.extract(images).preprocessing
    assert told["inputs"] == "images" and len(told["preprocessor"]) == 64
    path = tmp_path / "tiny/preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [0.4] * 3}))
    assert sherl.load_backbone(tmp_path / "tiny").extract(images).preprocessing != told
    assert backbone.extract(images / 255, preprocessed=True).preprocessing["inputs"] == "pixels"
