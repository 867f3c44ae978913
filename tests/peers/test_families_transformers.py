"""Backbones of every family against the transformers library, on small random models: states, and input gradients."""

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

import sherl

LIMIT = 1e-4
SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 80}
TEXT = {**SMALL, "vocab_size": 50, "max_position_embeddings": 60, "pad_token_id": 1, "bos_token_id": 0,
        "eos_token_id": 2}
T5 = {"d_model": 48, "d_kv": 10, "num_heads": 6, "d_ff": 80, "num_layers": 3, "vocab_size": 50}
GPT2 = {"n_embd": 48, "n_layer": 3, "n_head": 6, "vocab_size": 50, "n_positions": 60, "bos_token_id": 0,
        "eos_token_id": 0}


class Peer:
    """A small model of transformers: how it is made, and its samples.

    Parameters
    ----------
    make : callable
        Returns the model.
    layer : str
        Path to the last layer, in the part.
    samples : callable
        Takes the part's configuration and returns samples as sherl takes them.
    feed : callable
        Turns one sample into the part's keywords.
    part : str
        Path to the part of the model whose states are compared.
    norm : str
        Path to a norm, in the part, that sherl's last state has and the part's last state has not.
    tower : str, optional
        Of `load_backbone`.
    options : dict
        Of `extract`.
    """

    def __init__(self, make, layer, samples=None, feed=None, *, part="", norm=None, tower=None, **options):
        self.make, self.layer, self.part, self.norm = make, layer, part, norm
        self.samples, self.feed = samples or token_ids, feed or as_ids
        self.tower, self.options = tower, options


def token_ids(config):
    generator = np.random.default_rng(0)
    return [generator.integers(3, 50, length).tolist() for length in (40, 7, 1, 58)]


def as_ids(sample):
    return {"input_ids": torch.tensor([sample])}


def model_of(name, part="", **settings):
    def make():
        model = getattr(transformers, f"{name}{part}Model")(getattr(transformers, f"{name}Config")(**settings))
        model.set_attn_implementation("eager")
        return model

    return make


def llama(name, **settings):
    return Peer(model_of(name, **{**TEXT, "num_key_value_heads": 2, **settings}), "layers.2")


def images(config):
    shape = (4, config.image_size, config.image_size, 3)
    return list(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def as_pixels(sample):
    return {"pixel_values": torch.tensor(sample.transpose(2, 0, 1)[None])}


IMAGE = {**SMALL, "image_size": 24, "patch_size": 8}


def image_model(name, layer, images=images, **settings):
    return Peer(model_of(name, **{**IMAGE, **settings}), layer, images, as_pixels, preprocessed=True)


def tower(name, kind):
    make = model_of(name, text_config={**TEXT, "projection_size": 48}, vision_config=IMAGE)
    if kind == "text":
        return Peer(make, "encoder.layers.2", part="text_model", tower="text")
    norm = "post_layernorm" if name == "CLIP" else None
    return Peer(make, "encoder.layers.2", images, as_pixels, part="vision_model", norm=norm, tower="image",
                preprocessed=True)


def images_of_sizes(config):
    return [np.random.default_rng(number).standard_normal((*size, 3)).astype(np.float32)
            for number, size in enumerate([(32, 16), (24, 24), (48, 40), (32, 16)])]


def recordings(config):
    shape = (4, config.num_mel_bins, 2 * config.max_source_positions)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def as_features(sample):
    return {"input_features": torch.tensor(sample[None])}


BART = {
    "d_model": 48, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 6, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80, "decoder_ffn_dim": 64, "vocab_size": 50, "max_position_embeddings": 60, "pad_token_id": 1,
    "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
DINOV2 = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6}
WHISPER = {
    "d_model": 48, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 6, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80, "decoder_ffn_dim": 64, "vocab_size": 50, "num_mel_bins": 10, "max_source_positions": 30,
    "max_target_positions": 20, "pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip

PEERS = {
    "bert": Peer(model_of("Bert", **TEXT), "encoder.layer.2"),
    "roberta": Peer(model_of("Roberta", **TEXT, type_vocab_size=1), "encoder.layer.2"),
    "xlm-roberta": Peer(model_of("XLMRoberta", **TEXT, type_vocab_size=1), "encoder.layer.2"),
    "camembert": Peer(model_of("Camembert", **TEXT, type_vocab_size=1), "encoder.layer.2"),
    "distilbert": Peer(
        model_of("DistilBert", dim=48, n_layers=3, n_heads=6, hidden_dim=80, vocab_size=50, max_position_embeddings=60),
        "transformer.layer.2",
    ),
    "mpnet": Peer(model_of("MPNet", **TEXT), "encoder.layer.2"),
    "electra": Peer(model_of("Electra", **TEXT, embedding_size=20), "encoder.layer.2"),
    "electra, no projection": Peer(model_of("Electra", **TEXT, embedding_size=48), "encoder.layer.2"),
    "t5 v1.0": Peer(model_of("T5", "Encoder", **T5), "encoder.block.2"),
    "t5 v1.1": Peer(model_of("T5", "Encoder", **T5, feed_forward_proj="gated-gelu"), "encoder.block.2"),
    "marian": Peer(model_of("Marian", **BART, scale_embedding=True, activation_function="swish"), "layers.2",
                   part="encoder"),
    "bart": Peer(model_of("Bart", **BART), "layers.2", part="encoder"),
    "gpt2": Peer(model_of("GPT2", **GPT2), "h.2"),
    "llama": llama("Llama", rope_parameters={"rope_type": "default", "rope_theta": 5000.0}),
    "llama, head size": llama("Llama", head_dim=12, attention_bias=True, mlp_bias=True),
    "llama, linear": llama("Llama", rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}),
    "llama, dynamic": llama("Llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 5000.0, "factor": 4.0}),
    "llama 3": llama("Llama", rope_parameters={
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}),
    "mistral": llama("Mistral", head_dim=8, sliding_window=None),
    "qwen2": llama("Qwen2"),
    "vit": image_model("ViT", "layers.2"),
    "vit, no biases": image_model("ViT", "layers.2", qkv_bias=False),
    "dinov2": image_model("Dinov2", "encoder.layer.2", **DINOV2),
    "dinov2, other sizes": image_model("Dinov2", "encoder.layer.2", images_of_sizes, **DINOV2),
    "dinov2, gated": image_model("Dinov2", "encoder.layer.2", use_swiglu_ffn=True, **DINOV2),
    "dinov2, registers": image_model("Dinov2WithRegisters", "encoder.layer.2", **DINOV2),
    "clip text": tower("CLIP", "text"),
    "clip image": tower("CLIP", "image"),
    "siglip text": tower("Siglip", "text"),
    "siglip image": tower("Siglip", "image"),
    "whisper": Peer(model_of("Whisper", **WHISPER), "layers.2", recordings, as_features, part="encoder"),
}  # fmt: skip


def randomized(model):
    """Give a model weights that tell every part of it."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = parameter.dim() == 1 and name.endswith("weight")
            scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 and "embed" not in name else 0.3
            parameter.copy_(scale * torch.randn_like(parameter) + (1.0 if norm else 0.0))
    return model.eval().requires_grad_(False)


def test_marian_without_positions(tmp_path):
    """What is published has the fixed positions left out, and "model." before all names."""
    config = transformers.MarianConfig(**BART)
    model = randomized(transformers.MarianMTModel(config))
    model.model.encoder.embed_positions.weight.copy_(model.model.encoder.embed_positions.create_weight())
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert not any("embed_positions" in name for name in file.keys())  # noqa: SIM118  # no dictionary
    ids = token_ids(config)[0]
    expected = model.model.encoder(torch.tensor([ids])).last_hidden_state[0].numpy()
    backbone = sherl.load_backbone(tmp_path)
    assert distance(backbone.extract([ids], [3]).taps[0], expected) <= LIMIT


def expected_of(peer, part, samples, cotangents):
    """Return for each sample its states, the output of the last layer, and the gradient of that layer's input."""
    layer = part.get_submodule(peer.layer)
    norm = part.get_submodule(peer.norm) if peer.norm else lambda state: state
    found = []
    for sample, cotangent in zip(samples, cotangents):
        calls = []
        hook = layer.register_forward_hook(
            lambda module, arguments, keywords, output: calls.append((arguments, keywords)), with_kwargs=True
        )
        output = part(**peer.feed(sample), output_hidden_states=True)
        hook.remove()
        arguments, keywords = calls[0]
        x = arguments[0] if arguments else keywords.pop("hidden_states")
        x = x.detach().requires_grad_(True)
        y = layer(x, *arguments[1:], **keywords)
        y = y[0] if isinstance(y, tuple) else y
        y.backward(torch.tensor(cotangent[None]))
        states = [*output.hidden_states[:-1], norm(output.last_hidden_state)]
        states = [state[0].numpy() for state in states]
        found.append((states, y[0].detach().numpy(), x.grad[0].numpy()))
    return found


def distance(found, expected):
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def table():
    rows = []
    yield rows
    print("\n\nlargest distance over four samples\n" + f"{'family':34}{'states':>10}{'output':>10}{'gradient':>10}")
    for row in rows:
        print(f"{row[0]:34}" + "".join(f"{value:10.1e}" for value in row[1:]))


@pytest.mark.parametrize("name", PEERS)
def test_family(name, tmp_path, table):
    peer = PEERS[name]
    model = randomized(peer.make())
    model.save_pretrained(tmp_path)
    part = model.get_submodule(peer.part)
    part.config.use_cache = False
    backbone = sherl.load_backbone(tmp_path, peer.tower)
    samples = peer.samples(part.config)
    features = backbone.extract(samples, taps="all+last", batch_size=3, **peer.options)
    assert backbone.num_layers == len(backbone.layers) == 3
    generator = np.random.default_rng(1)
    cotangents = [generator.standard_normal((length, backbone.hidden_size), np.float32) for length in features.lengths]
    expected = expected_of(peer, part, samples, cotangents)
    worst = np.zeros(3)
    for number, (states, output, gradient) in enumerate(expected):
        found = features[number].taps
        assert len(found) == len(states)
        y, gradients = backbone.layers[-1].vjp(found[-2][None], cotangents[number][None])
        distances = (
            max(map(distance, found, states)), distance(y[0], output), distance(gradients["x"][0], gradient)
        )  # fmt: skip
        worst = np.maximum(worst, distances)
    table.append((name, *worst))
    assert worst.max() <= LIMIT


# ---- Decoders ----


@pytest.mark.parametrize("name", ["T5", "T5 gated", "Marian", "Bart", "Whisper"])
def test_decoder_layers(name, tmp_path):
    settings = {"Whisper": WHISPER, "Marian": BART, "Bart": BART}.get(name, {**T5, "decoder_start_token_id": 0})
    settings |= {"feed_forward_proj": "gated-gelu"} if name == "T5 gated" else {}
    model = randomized(model_of(name.split()[0], **settings)())
    model.save_pretrained(tmp_path)
    backbone = sherl.load_backbone(tmp_path)
    feed = as_features(recordings(model.config)[0]) if name == "Whisper" else as_ids(token_ids(model.config)[0])
    decoder_ids = torch.tensor([[3, 9, 4, 40, 22, 7]])
    output = model(**feed, decoder_input_ids=decoder_ids, output_hidden_states=True, use_cache=False)
    memory = output.encoder_last_hidden_state.numpy()
    x = output.decoder_hidden_states[0].numpy()
    norms = {"Whisper": "layer_norm", "Marian": None, "Bart": None}  # after the last layer
    norm = norms.get(name, "final_layer_norm")
    norm = torch.nn.Identity() if norm is None else getattr(model.decoder, norm)
    for number, layer in enumerate(backbone.decoder_layers, 1):
        x = layer(x, memory=memory)
        last = number == len(backbone.decoder_layers)
        expected = output.decoder_hidden_states[number].numpy()
        assert distance(norm(torch.tensor(x)).numpy() if last else x, expected) < LIMIT


# ---- ResNets ----


@pytest.mark.parametrize("kind", ["bottleneck", "bottleneck, stride first", "basic"])
def test_resnet(kind, tmp_path, table):
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64, 96, 128], depths=[2, 3, 2, 2], layer_type=kind.partition(",")[0],
        downsample_in_bottleneck="first" in kind,
    )  # fmt: skip
    model = randomized(transformers.ResNetModel(config))
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path)
    backbone = sherl.load_backbone(tmp_path)
    images = np.random.default_rng(0).standard_normal((2, 3, 70, 65), np.float32)
    states = model(torch.tensor(images), output_hidden_states=True).hidden_states
    features = backbone.extract(images, [0, 2, 5, 7, 9], preprocessed=True)
    expected = [state.permute(0, 2, 3, 1).reshape(-1, state.shape[1]).numpy() for state in states]
    found = max(map(distance, features.taps, expected))
    layer = model.encoder.stages[-1].layers[-1]
    x = torch.rand((2, 128, 3, 3)).requires_grad_(True)
    y = layer(x)
    y.sum().backward()
    out, gradients = backbone.layers[-1].vjp(channels_last(x), np.ones((2, 3, 3, 128), np.float32))
    worst = found, distance(out, channels_last(y)), distance(gradients["x"], channels_last(x.grad))
    table.append((f"resnet, {kind}", *worst))
    assert max(worst) <= LIMIT


def channels_last(x):
    return x.detach().permute(0, 2, 3, 1).contiguous().numpy()


# ---- Preprocessing ----

PROCESSORS = {
    "ViT": {"size": {"height": 24, "width": 24}},
    "CLIP": {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
    "Siglip": {"size": {"height": 24, "width": 24}},
    "Bit": {"size": {"shortest_edge": 30}, "crop_size": {"height": 24, "width": 24}, "do_center_crop": True},
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_preprocessing(name, tmp_path):
    randomized(model_of("ViT", **IMAGE)()).save_pretrained(tmp_path)
    processor = getattr(transformers, f"{name}ImageProcessorPil")(**PROCESSORS[name])
    processor.save_pretrained(tmp_path)
    backbone, random = sherl.load_backbone(tmp_path), np.random.default_rng(0)
    sizes = [(24, 24), (40, 57), (57, 40), (25, 31)]
    pictures = [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    pixels = processor(images=pictures, return_tensors="np")["pixel_values"]
    expected = backbone.extract(pixels, [0], preprocessed=True).taps[0]
    assert distance(backbone.extract(pictures, [0]).taps[0], expected) < LIMIT


def test_a_dual_encoder_begins_with_the_embeddings_of_clip(tmp_path):
    """The adapters let the frozen states through; layers, norms and projections make of them what CLIP does."""
    peer = PEERS["clip image"]
    model = randomized(peer.make())
    model.save_pretrained(tmp_path)
    # The largest id, which is where CLIP reads a text, ends it.
    texts = [[*(min(token, 48) for token in text), 49] for text in token_ids(model.config.text_config)]
    pixels = images(model.config.vision_config)
    with torch.no_grad():
        found = [model(**as_ids(text), **as_pixels(image)) for text, image in zip(texts, pixels)]
    nets, given = [], []
    for tower, samples, pool in (("image", pixels, "first"), ("text", texts, "last")):
        backbone = sherl.load_backbone(tmp_path, tower)
        given.append(backbone.extract(samples, **(peer.options if tower == "image" else {})))
        nets.append(sherl.SideNetwork(sherl.MTSA(3, 48, 6), [backbone.layers[-1], backbone.final_norm],
                                      sherl.Embedding.from_projection(backbone.projection, pool)))
        state = nets[-1].state_dict()
        nets[-1].load_state_dict({**state, "early.gate": np.full(1, 9, np.float32),
                                  "early.up.weight": 0 * state["early.up.weight"]})
    dual = sherl.DualEncoder(*nets, loss=sherl.losses.contrastive(0.1))
    for rows, name in ((dual.embed_a(given[0]), "image_embeds"), (dual.embed_b(given[1]), "text_embeds")):
        expected = np.concatenate([getattr(output, name).numpy() for output in found])
        assert distance(rows, expected) < LIMIT
