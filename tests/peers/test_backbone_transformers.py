"""Hidden states of sherl's backbones against those of the transformers library, on random and on real weights."""

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import sherl
from sherl.data.assets import fetch_demo_assets, load_movie_reviews

LIMIT = 1e-4
WORDS = "[PAD] [UNK] [CLS] [SEP] the a film plot is good bad and not very . , !".split()
TEXTS = ["the film is good .", "a bad plot , and not a very good film !", "", "unknown words only ?", "very " * 60]
PAIRS = [("the film", "is good"), ("a plot , not very good", "bad !")]


def write_random_bert(folder, activation, prefixed):
    """Write a small random BERT with transformers, and a tokenizer."""
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=6,
        intermediate_size=80,
        max_position_embeddings=40,
        hidden_act=activation,
        layer_norm_eps=1e-7,
        initializer_range=0.4,
    )
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config) if prefixed else transformers.BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    ids = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def reference(folder, texts, max_length):
    """Return for each text the hidden states of transformers, text by text, so that nothing is padded."""
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    states = []
    for text in texts:
        text = text if isinstance(text, tuple) else (text,)
        encoded = tokenizer(
            *text,
            return_tensors="pt",
            truncation=True,
            max_length=max_length,
            padding=False,
            return_token_type_ids=True,
        )
        with torch.no_grad():
            inputs = {name: encoded[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
            states.append([state[0].numpy() for state in model(**inputs, output_hidden_states=True).hidden_states])
    return states


def require_agreement(folder, texts, max_length):
    features = sherl.load_backbone(folder).extract(texts, taps="all+last", max_length=max_length)
    for number, states in enumerate(reference(folder, texts, max_length)):
        found = features[number].taps
        assert len(found) == len(states)
        for one, other in zip(found, states):
            assert one.shape == other.shape
            assert np.linalg.norm(one - other) <= LIMIT * np.linalg.norm(other)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
@pytest.mark.parametrize("prefixed", [False, True])
def test_random_weights(tmp_path, activation, prefixed):
    folder = write_random_bert(tmp_path, activation, prefixed)
    require_agreement(folder, TEXTS, 40)
    require_agreement(folder, PAIRS, 40)


def test_real_weights():
    assets = fetch_demo_assets(progress=False)
    _, _, texts = load_movie_reviews(assets.reviews_file)
    require_agreement(assets.backbone_folder, [*texts[:20], "", "word " * 300], 256)
    require_agreement(assets.backbone_folder, list(zip(texts[:5], texts[5:10])), 256)
