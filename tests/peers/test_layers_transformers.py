"""Layers made of checkpoints against the layer classes of the transformers library: outputs and input gradients."""

import numpy as np
import pytest
import torch
import transformers
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.detr.modeling_detr import DetrDecoderLayer, DetrEncoderLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding
from transformers.models.t5.modeling_t5 import T5Block
from transformers.models.vit.modeling_vit import ViTLayer

import sherl

LIMIT = 1e-4
FEATURES, HEADS, INNER = 48, 6, 80
LENGTHS, MEMORY_LENGTHS = [300, 7, 1, 40], [5, 30, 3, 1]  # far enough for every bucket of relative positions
EAGER = {"attn_implementation": "eager"}


def causal_mask(rows):
    """What is added to the scores of one text, (1, 1, rows, rows)."""
    return torch.triu(torch.full((1, 1, rows, rows), torch.finfo(torch.float32).min), diagonal=1)


def randomized(module, seed=0):
    """Give a module weights that tell every part of it."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            norm = parameter.dim() == 1 and name.endswith("weight")
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 and "relative" not in name else 0.3
            parameter.copy_(scale * torch.randn_like(parameter) + (1.0 if norm else 0.0))
    return module.eval().requires_grad_(False)


def weights_of(module):
    return {name: value.numpy() for name, value in module.state_dict().items()}


class Peer:
    """A layer of transformers as a function of one sample's rows, and sherl's layer of the same weights."""

    def __init__(self, layer, function, inputs=("x",)):
        self.layer, self.function, self.inputs = layer, function, inputs


def bert():
    config = transformers.BertConfig(hidden_size=FEATURES, num_attention_heads=HEADS, intermediate_size=INNER, **EAGER)
    module = randomized(BertLayer(config))
    return Peer(sherl.TransformerLayer.from_bert(weights_of(module), HEADS), lambda x: first(module(x)))


def mpnet():
    config = transformers.MPNetConfig(
        hidden_size=FEATURES, num_attention_heads=HEADS, intermediate_size=INNER, num_hidden_layers=1, **EAGER
    )
    module = randomized(MPNetEncoder(config))
    weights = {name.removeprefix("layer.0."): value for name, value in weights_of(module).items()}
    layer = sherl.TransformerLayer.from_mpnet(weights, HEADS, eps=config.layer_norm_eps)
    return Peer(layer, lambda x: module(x)[0])


def vit():
    config = transformers.ViTConfig(hidden_size=FEATURES, num_attention_heads=HEADS, intermediate_size=INNER, **EAGER)
    module = randomized(ViTLayer(config))
    return Peer(sherl.TransformerLayer.from_vit(weights_of(module), HEADS), lambda x: first(module(x)))


def clip(causal):
    config = transformers.CLIPTextConfig(
        hidden_size=FEATURES, num_attention_heads=HEADS, intermediate_size=INNER, **EAGER
    )
    module = randomized(CLIPEncoderLayer(config))
    layer = sherl.TransformerLayer.from_clip(weights_of(module), HEADS, causal=causal)
    return Peer(layer, lambda x: first(module(x, causal_mask(x.shape[1]) if causal else None)))


def gpt2():
    module = randomized(GPT2Block(transformers.GPT2Config(n_embd=FEATURES, n_head=HEADS, n_inner=INNER, **EAGER), 0))
    layer = sherl.TransformerLayer.from_gpt2(weights_of(module), HEADS)
    return Peer(layer, lambda x: first(module(x, attention_mask=causal_mask(x.shape[1]))))


def llama(kind, configuration, rotary, **settings):
    config = configuration(
        hidden_size=FEATURES, num_attention_heads=HEADS, num_key_value_heads=2, intermediate_size=INNER,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, **EAGER, **settings,
    )  # fmt: skip
    module, turns = randomized(kind(config, 0)), rotary(config)
    layer = sherl.TransformerLayer.from_llama(weights_of(module), HEADS, theta=5000.0, eps=config.rms_norm_eps)

    def function(x):
        positions = turns(x, torch.arange(x.shape[1])[None])
        return first(module(x, attention_mask=causal_mask(x.shape[1]), position_embeddings=positions))

    return Peer(layer, function)


def t5(decoder, feed_forward):
    config = transformers.T5Config(
        d_model=FEATURES, d_kv=10, num_heads=HEADS, d_ff=INNER, is_decoder=decoder, feed_forward_proj=feed_forward,
        dropout_rate=0.0, **EAGER,
    )  # fmt: skip
    module = randomized(T5Block(config, has_relative_attention_bias=True, layer_idx=0))
    layer = sherl.T5Block.from_t5(weights_of(module), HEADS, eps=config.layer_norm_epsilon, decoder=decoder)
    if decoder:
        function = lambda x, memory: first(
            module(x, attention_mask=causal_mask(x.shape[1]), encoder_hidden_states=memory)
        )
        return Peer(layer, function, ("x", "memory"))
    return Peer(layer, lambda x: first(module(x)))


def detr(decoder):
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone_config=transformers.ResNetConfig(), d_model=FEATURES,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=INNER, decoder_ffn_dim=INNER,
        **EAGER,
    )  # fmt: skip
    module = randomized((DetrDecoderLayer if decoder else DetrEncoderLayer)(config))
    layer = sherl.TransformerLayer.from_detr(weights_of(module), HEADS, decoder=decoder)
    if not decoder:
        function = lambda x, positions: first(module(x, None, spatial_position_embeddings=positions))
        return Peer(layer, function, ("x", "positions"))
    function = lambda x, positions, memory, memory_positions: first(
        module(x, object_queries_position_embeddings=positions, encoder_hidden_states=memory,
               spatial_position_embeddings=memory_positions)
    )  # fmt: skip
    return Peer(layer, function, ("x", "positions", "memory", "memory_positions"))


def torch_detr(decoder):
    """The layers of torch.nn, which the original DETR follows; without positions, which theirs do not take."""
    kind = torch.nn.TransformerDecoderLayer if decoder else torch.nn.TransformerEncoderLayer
    module = randomized(kind(FEATURES, HEADS, INNER, dropout=0.0, batch_first=True))
    layer = sherl.TransformerLayer.from_detr(weights_of(module), HEADS, decoder=decoder)
    if decoder:
        return Peer(layer, lambda x, memory: module(x, memory), ("x", "memory"))
    return Peer(layer, lambda x: module(x))


def first(output):
    return output[0] if isinstance(output, tuple) else output


PEERS = {
    "bert": bert,
    "mpnet": mpnet,
    "vit": vit,
    "clip text": lambda: clip(True),
    "clip image": lambda: clip(False),
    "gpt2": gpt2,
    "llama": lambda: llama(LlamaDecoderLayer, transformers.LlamaConfig, LlamaRotaryEmbedding),
    "llama with biases": lambda: llama(
        LlamaDecoderLayer, transformers.LlamaConfig, LlamaRotaryEmbedding, attention_bias=True, mlp_bias=True
    ),
    "qwen2": lambda: llama(Qwen2DecoderLayer, transformers.Qwen2Config, Qwen2RotaryEmbedding),
    "t5 encoder": lambda: t5(False, "relu"),
    "t5 encoder gated": lambda: t5(False, "gated-gelu"),
    "t5 decoder": lambda: t5(True, "relu"),
    "t5 decoder gated": lambda: t5(True, "gated-gelu"),
    "detr encoder": lambda: detr(False),
    "detr decoder": lambda: detr(True),
    "torch encoder": lambda: torch_detr(False),
    "torch decoder": lambda: torch_detr(True),
}


def lengths_of(part):
    return MEMORY_LENGTHS if part.startswith("memory") else LENGTHS


def padded(generator, lengths):
    return generator.standard_normal((len(lengths), max(lengths), FEATURES), dtype=np.float32)


def mask_of(lengths):
    return np.arange(max(lengths)) < np.array(lengths)[:, None]


def expected_of(peer, given, cotangent):
    """The output and the gradients of the inputs, sample by sample, so that nothing is padded."""
    out, gradients = np.zeros_like(cotangent), {part: np.zeros_like(given[part]) for part in peer.inputs}
    for sample, rows in enumerate(LENGTHS):
        parts = {part: torch.tensor(given[part][sample : sample + 1, : lengths_of(part)[sample]], requires_grad=True)
                 for part in peer.inputs}
        y = peer.function(*parts.values())
        y.backward(torch.tensor(cotangent[sample : sample + 1, :rows]))
        out[sample, :rows] = y[0].detach().numpy()
        for part, value in parts.items():
            gradients[part][sample, : lengths_of(part)[sample]] = value.grad[0].numpy()
    return out, gradients


@pytest.mark.parametrize("name", PEERS)
def test_layer(name):
    peer, generator = PEERS[name](), np.random.default_rng(0)
    given = {part: padded(generator, lengths_of(part)) for part, _ in peer.layer._inputs()}
    for part in given.keys() - set(peer.inputs):
        given[part][...] = 0
    cotangent = padded(generator, LENGTHS)
    masks = {"mask": mask_of(LENGTHS)} | ({"memory_mask": mask_of(MEMORY_LENGTHS)} if "memory" in given else {})
    out, gradients = peer.layer.vjp(cotangent=cotangent, **given, **masks)
    expected, expected_gradients = expected_of(peer, given, cotangent)
    assert distance(out, expected) < LIMIT
    for part, gradient in expected_gradients.items():
        assert distance(gradients[part], gradient) < LIMIT, part


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_fused_and_renamed_weights_are_those_of_the_checkpoint():
    """The hub's names of ViT and DETR layers, which newer versions of transformers rename when they load them."""
    module = vit()
    names = {"attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key",
             "attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense",
             "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    config = transformers.ViTConfig(hidden_size=FEATURES, num_attention_heads=HEADS, intermediate_size=INNER)
    weights = {}
    for name, value in weights_of(randomized(ViTLayer(config))).items():
        part, kind = name.rsplit(".", 1)
        weights[f"{names.get(part, part)}.{kind}"] = value
    assert sherl.TransformerLayer.from_vit(weights, HEADS).fingerprint == module.layer.fingerprint


# ---- ReLU near zero ----


def switched(double, x, cotangent, units):
    """Return the gradient of x in float64 with some units of the feed-forward part, (row, unit), on instead of off.

    Or off instead of on: the hook negates what the activation gets, by less than rounding, and passes gradients on.
    """

    def negate(module, inputs, output):
        mask = torch.zeros_like(output)
        for row, unit in units:
            mask[0, row, unit] = 1
        return output - 2 * (output * mask).detach()

    hook = double.layer[-1].DenseReluDense.wi.register_forward_hook(negate)
    given = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    first(double(given)).backward(torch.tensor(cotangent, dtype=torch.float64))
    hook.remove()
    return given.grad.numpy()


@pytest.mark.parametrize("seed", [0, 7])
def test_relu_differs_where_a_unit_is_within_rounding_of_zero(seed):
    """The derivative of ReLU jumps at zero: of a quarter of a million units one or two may fall on the other side.

    What then differs is that unit's part of the gradient, and nothing else.
    """
    config = transformers.T5Config(d_model=512, d_kv=64, num_heads=8, d_ff=2048, dropout_rate=0.0, **EAGER)
    module = randomized(T5Block(config, has_relative_attention_bias=True, layer_idx=0), seed)
    layer = sherl.T5Block.from_t5({name: value.copy() for name, value in weights_of(module).items()}, 8)
    random, double, inner = np.random.default_rng(seed), module.double(), []
    x, cotangent = (random.standard_normal((1, 128, 512), dtype=np.float32) for _ in range(2))
    hook = double.layer[-1].DenseReluDense.wi.register_forward_hook(lambda *given: inner.append(given[-1][0]))
    switched(double, x, cotangent, [])
    hook.remove()
    found = layer.vjp(x, cotangent)[1]["x"]
    scale = inner[0].abs().mean()
    near = torch.nonzero(inner[0].abs() < 1e-5 * scale).tolist()
    assert len(near) < 20
    sides = []
    for unit in near:
        other = switched(double, x, cotangent, [*sides, unit])
        if distance(found, other) < distance(found, switched(double, x, cotangent, sides)):
            sides.append(unit)
    assert distance(found, switched(double, x, cotangent, sides)) < 1e-5
