"""A small BERT with random weights, written as a Hugging Face folder, for tests that need a backbone."""

import json

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = """a an and the this that film movie story cast scene plot is was are it of to in with good great fine lovely
bright warm clever bad dull poor weak sad cold stupid very quite not never one two three . , ! ? ' s""".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_tiny_bert(folder, layers=3, hidden=32, heads=4, intermediate=64, positions=64, seed=0):
    """Write config.json, model.safetensors and tokenizer.json of a BERT with random weights; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = [*SPECIAL, *WORDS, *(chr(code) for code in range(ord("b"), ord("z") + 1) if chr(code) != "s")]
    vocabulary += ["##" + chr(code) for code in range(ord("a"), ord("z") + 1)]
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": positions,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "vocab_size": len(vocabulary),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(_weights(config, np.random.default_rng(seed)), folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    return folder


def _weights(config, rng):
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    weights = {}

    def linear(name, outputs, inputs):
        weights[name + ".weight"] = rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)
        weights[name + ".bias"] = 0.1 * rng.standard_normal(outputs)

    def layer_norm(name):
        weights[name + ".weight"] = 1 + 0.1 * rng.standard_normal(hidden)
        weights[name + ".bias"] = 0.1 * rng.standard_normal(hidden)

    rows = {
        "word": config["vocab_size"],
        "position": config["max_position_embeddings"],
        "token_type": config["type_vocab_size"],
    }
    for name, count in rows.items():
        weights[f"embeddings.{name}_embeddings.weight"] = rng.standard_normal((count, hidden))
    layer_norm("embeddings.LayerNorm")
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", hidden, hidden)
        linear(f"{layer}.attention.output.dense", hidden, hidden)
        layer_norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", intermediate, hidden)
        linear(f"{layer}.output.dense", hidden, intermediate)
        layer_norm(f"{layer}.output.LayerNorm")
    linear("pooler.dense", hidden, hidden)
    return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in weights.items()}


def _tokenizer(vocabulary):
    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return tokenizer
