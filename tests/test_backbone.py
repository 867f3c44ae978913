"""Backbones from folders: hidden states, tokenization, dtypes, shared layers, and folders that are wrong."""

import builtins
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small import same_bits
from tiny_bert import write_tiny_bert

import sherl

pytestmark = pytest.mark.core

TEXTS = [
    "a great film , and a clever plot",
    "dull",
    "the cast is good but the story is not very good",
    "",
    "it is a sad , cold film .",
]
PAIRS = [("a film", "a movie"), ("great cast", "the plot is weak and the film is dull")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="module")
def backbone(folder):
    return sherl.load_backbone(folder)


def layer_norm(x, weight, bias):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12) * weight + bias


def embedded(weights, ids, types):
    """Return the embeddings of one text, in NumPy."""
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = x + weights["embeddings.token_type_embeddings.weight"][types]
    return layer_norm(x, weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"])


def test_states_are_embeddings_and_layers_in_a_row(folder, backbone):
    weights = load_file(folder / "model.safetensors")
    features = backbone.extract(TEXTS, taps="all+last", batch_size=2)
    ids = backbone.tokenize(TEXTS)
    assert features.lengths.tolist() == [len(tokens) for tokens in ids]
    for number, tokens in enumerate(ids):
        states = features[number].taps
        assert len(states) == backbone.num_layers + 1
        x = embedded(weights, tokens, [0] * len(tokens)).astype(np.float32)
        assert np.allclose(states[0], x, atol=1e-5)
        for layer, state in zip(backbone.layers, states[1:]):
            x = layer(x[None])[0]
            assert np.allclose(state, x, atol=1e-4)


def test_pairs_have_token_types(folder, backbone):
    weights = load_file(folder / "model.safetensors")
    features = backbone.extract(PAIRS, taps=[0])
    for number, (first, second) in enumerate(PAIRS):
        one, other = backbone.tokenize([first])[0], backbone.tokenize([second])[0][1:]
        expected = embedded(weights, one + other, [0] * len(one) + [1] * len(other))
        assert np.allclose(features[number].taps[0], expected, atol=1e-5)


def test_which_states(backbone):
    every = backbone.extract(TEXTS, taps="all+last")
    usual = backbone.extract(TEXTS)
    assert usual.source == {"backbone": backbone.fingerprint, "states": [0, 1, 2]}
    assert all(np.array_equal(one, other) for one, other in zip(usual.taps, every.taps))
    some = backbone.extract(TEXTS, taps=[3, 1])
    assert np.array_equal(some.taps[0], every.taps[3])
    assert np.array_equal(some.taps[1], every.taps[1])
    assert every.select(range(3)).source == usual.source


def test_token_ids_are_texts_too(backbone):
    ids = backbone.tokenize(TEXTS)
    expected = backbone.extract(TEXTS)
    for given in (ids, [np.array(tokens) for tokens in ids], [tuple(tokens) for tokens in ids]):
        assert backbone.extract(given).fingerprint == expected.fingerprint


def test_batch_size_does_not_matter(backbone):
    expected = backbone.extract(TEXTS * 9)
    for size in (1, 7, 100):
        found = backbone.extract(TEXTS * 9, batch_size=size)
        assert all(np.allclose(one, other, atol=1e-5) for one, other in zip(found.taps, expected.taps))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(backbone, dtype):
    expected = backbone.extract(TEXTS)
    found = backbone.extract(TEXTS, dtype=dtype)
    assert found.dtypes == [dtype] * 3
    assert found.nbytes == expected.nbytes / 2
    assert np.allclose(found.pooled(), expected.pooled(), atol=0.02)
    if dtype == "float16":
        assert all(same_bits(one, other.astype(np.float16)) for one, other in zip(found.taps, expected.taps))


def test_max_length(backbone):
    long = " ".join(["film"] * 100)
    assert backbone.max_length == 64
    assert backbone.extract([long]).lengths.tolist() == [64]
    assert backbone.extract([long, "a film"], max_length=10).lengths.tolist() == [10, 4]
    assert backbone.tokenize([long], max_length=10)[0][-1] == backbone.tokenize(["a"])[0][-1]


def test_encode(backbone):
    vectors = backbone.encode(TEXTS)
    assert np.allclose(vectors, backbone.extract(TEXTS, [3]).pooled(how="mean"))
    assert np.allclose(np.linalg.norm(backbone.encode(TEXTS, normalize=True), axis=1), 1, atol=1e-6)


def test_progress(backbone, capsys, monkeypatch):
    monkeypatch.setattr("sherl.backbones.backbone.PATIENCE", 0)
    backbone.extract(TEXTS, progress=True)
    assert "5/5" in capsys.readouterr().err


def test_prefix_and_half_precision_weights(folder, backbone, tmp_path):
    other = write_tiny_bert(tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    renamed = {f"bert.{name}": value for name, value in weights.items()}
    save_file({**renamed, "cls.predictions.bias": np.zeros(3, np.float32)}, other / "model.safetensors")
    assert sherl.load_backbone(other).fingerprint == backbone.fingerprint
    save_file({name: value.astype(np.float16) for name, value in weights.items()}, other / "model.safetensors")
    assert np.allclose(sherl.load_backbone(other).encode(TEXTS), backbone.encode(TEXTS), atol=0.02)


def test_fingerprint_tells_backbones_apart(backbone, tmp_path):
    other = sherl.load_backbone(write_tiny_bert(tmp_path / "seed", seed=1))
    shallow = sherl.load_backbone(write_tiny_bert(tmp_path / "layers", layers=2))
    assert len({backbone.fingerprint, other.fingerprint, shallow.fingerprint}) == 3


def test_a_network_on_a_backbone(backbone):
    train = backbone.extract(TEXTS * 4)
    labels = np.array([1, 0, 0, 0, 0] * 4)
    net = sherl.SideNetwork(
        sherl.MTSA(3, backbone.hidden_size, 8), [backbone.layers[-1]], sherl.Classifier(backbone.hidden_size, 2)
    )
    history = net.fit(train, labels, epochs=40, learning_rate=1e-2, progress=False)
    assert history.epochs[-1]["loss"] < 0.2 * history.epochs[0]["loss"]
    assert net.late[0] is backbone.layers[-1]
    assert net.features_source == train.source


def test_a_network_refuses_features_of_another_backbone(backbone, tmp_path):
    other = sherl.load_backbone(write_tiny_bert(tmp_path / "other", seed=1))
    net = sherl.SideNetwork(sherl.MTSA(3, 32, 8), [], sherl.Classifier(32, 2))
    net.fit(backbone.extract(TEXTS), [0, 1, 0, 1, 0], epochs=1, progress=False)
    with pytest.raises(ValueError, match="taps come from another backbone"):
        net.predict(other.extract(TEXTS))
    with pytest.raises(ValueError, match="taps come from another backbone or other states"):
        net.predict(backbone.extract(TEXTS, taps=[1, 2, 3]))


def edited(folder, target, **changes):
    """Copy a folder with changes in its config.json; None takes an entry out."""
    write_tiny_bert(target)
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (target / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )
    return target


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "rwkv"}, "model_type must be one of bert, .*, got 'rwkv'"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": "32"}, "hidden_size must be a whole number"),
        ({"num_attention_heads": 5}, "num_attention_heads must divide hidden_size"),
        ({"hidden_act": "mish"}, "hidden_act must be one of"),
        ({"position_embedding_type": "relative_key"}, "absolute position embeddings"),
        ({"vocab_size": 7}, r"embeddings.word_embeddings.weight must have shape \(7, 32\), as config.json says"),
        ({"num_hidden_layers": 4}, "lacks the tensor encoder.layer.3.attention.self.query.weight"),
        ({"intermediate_size": 65}, r"encoder.layer.0.intermediate.dense.weight must have shape \(65, 32\)"),
    ],
)
def test_wrong_configurations(folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        sherl.load_backbone(edited(folder, tmp_path / "edited", **changes))


@pytest.mark.parametrize(
    "spoil, error, message",
    [
        (lambda folder: (folder / "config.json").unlink(), FileNotFoundError, "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), ValueError, "is not a JSON file"),
        (lambda folder: (folder / "config.json").write_text("[]"), ValueError, "must hold a JSON object, got list"),
        (lambda folder: (folder / "model.safetensors").unlink(), FileNotFoundError, "has no model.safetensors"),
        (lambda folder: cut(folder / "model.safetensors"), ValueError, "is not a whole safetensors file"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"text"),
            ValueError,
            "is not a whole safetensors file",
        ),
        (
            lambda folder: replace(folder, "embeddings.LayerNorm.bias", None),
            ValueError,
            "lacks the tensor embeddings.LayerNorm.bias",
        ),
        (
            lambda folder: replace(folder, "embeddings.LayerNorm.bias", np.zeros(31, np.float32)),
            ValueError,
            r"embeddings.LayerNorm.bias must have shape \(32,\)",
        ),
        (
            lambda folder: replace(folder, "embeddings.LayerNorm.bias", np.zeros(32, np.int32)),
            ValueError,
            "must hold F32, F16, BF16 or F64, got I32",
        ),
        (
            lambda folder: replace(folder, "embeddings.LayerNorm.bias", np.full(32, np.nan, np.float32)),
            ValueError,
            "must hold finite",
        ),
    ],
)
def test_wrong_folders(tmp_path, spoil, error, message):
    folder = write_tiny_bert(tmp_path / "spoilt")
    spoil(folder)
    with pytest.raises(error, match=message):
        sherl.load_backbone(folder)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def replace(folder, name, value):
    weights = load_file(folder / "model.safetensors")
    weights.pop(name)
    save_file(weights if value is None else {**weights, name: value}, folder / "model.safetensors")


@pytest.mark.parametrize(
    "texts, error, message",
    [
        ("one text", TypeError, "texts must be a sequence of texts, got str"),
        ([], ValueError, "texts must hold at least one text"),
        ([None], TypeError, "text 0 is None"),
        (["a", ("a", "b")], TypeError, "text 0 is a text and text 1 a pair"),
        ([[]], TypeError, r"text 0 is \[\]"),
        ([[1, 2.5]], TypeError, "texts must be str, pairs of str, or lists of token ids"),
        ([[1, 10**6]], ValueError, "text 0 must have token ids from 0 to .*, got 1000000"),
        ([[1, -1]], ValueError, "text 0 must have token ids from 0 to .*, got -1"),
        ([[1], [1] * 65], ValueError, "text 1 must have 1 to 64 tokens, got 65"),
    ],
)
def test_wrong_texts(backbone, texts, error, message):
    with pytest.raises(error, match=message):
        backbone.extract(texts)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"taps": "last"}, "taps must be one of 'all', 'all\\+last'"),
        ({"taps": [4]}, "taps must be 3 or less, got 4"),
        ({"taps": []}, "at least one"),
        ({"taps": [1, 1]}, "different state numbers"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"dtype": "int16"}, "dtype must be one of"),
        ({"max_length": 65}, "max_length must be 64 or less"),
        ({"max_length": 2}, "max_length must be more than the 2 special tokens"),
    ],
)
def test_wrong_settings(backbone, settings, message):
    with pytest.raises(ValueError, match=message):
        backbone.extract(TEXTS, **settings)


def test_wrong_tokenizer_files(tmp_path):
    folder = write_tiny_bert(tmp_path / "spoilt")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer file"):
        sherl.load_backbone(folder).extract(TEXTS)
    (folder / "tokenizer.json").unlink()
    backbone = sherl.load_backbone(folder)
    with pytest.raises(FileNotFoundError, match="pass token ids instead"):
        backbone.extract(TEXTS)
    assert len(backbone.extract([[1, 2, 3]])) == 1


def test_a_missing_package_is_named(folder, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] in ("tokenizers", "safetensors"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    backbone = sherl.load_backbone(folder)  # needs none
    with pytest.raises(ImportError, match="tokenizing needs the tokenizers package: pip install 'sherl\\[text\\]'"):
        backbone.extract(TEXTS)


def test_int8_states_are_the_rounded_float32_ones(backbone):
    texts = [[1, 5, 6, 2], [1, 9, 2], [1, 7, 2]]
    wide = backbone.extract(texts, batch_size=2)
    narrow = backbone.extract(texts, batch_size=2, dtype="int8")
    expected = wide.astype("int8")
    assert narrow.dtypes == ["int8"] * 3 and narrow.source == wide.source
    for number in range(3):
        np.testing.assert_array_equal(narrow.taps[number], expected.taps[number])
        np.testing.assert_array_equal(narrow.scales[number], expected.scales[number])
