"""Whisper tiny.en with its trained weights against the transformers library, on sound that is made here."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file
from whisper_weights import CONFIG, tiny_en

import sherl

LIMIT = 1e-4
RATE, WINDOW, STEP, BINS, SECONDS = 16000, 400, 160, 80, 30


def sound():
    """Return 30 seconds: a voice of sliding pitch with a few overtones that comes and goes, over faint noise."""
    random, time = np.random.default_rng(0), np.arange(SECONDS * RATE) / RATE
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.4 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = sum(np.sin(tone * phase) / tone for tone in range(1, 12))
    loudness = np.maximum(np.sin(2 * np.pi * 0.7 * time), 0) * (time < 20)
    return 0.2 * voice * loudness + 1e-3 * random.standard_normal(len(time))


def log_mel(samples):
    """Return log-mel features (bins, frames) as Whisper was trained on: power in windows of 25 ms every 10 ms."""
    padded = np.pad(samples, WINDOW // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::STEP][:-1]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(windows * hann)) ** 2
    logs = np.log10(np.maximum(filters() @ power.T, 1e-10))
    return ((np.maximum(logs, logs.max() - 8) + 4) / 4).astype(np.float32)


def filters():
    """Return triangles on Slaney's mel scale, linear up to 1 kHz and logarithmic above, each of area one in Hz."""
    knee, slope = 15.0, np.log(6.4) / 27
    mel = np.linspace(0, knee + np.log(RATE / 2000) / slope, BINS + 2)
    edges = np.where(mel < knee, 200 * mel / 3, 1000 * np.exp(slope * (mel - knee)))
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(np.minimum(rising, falling), 0) * (2 / (edges[2:] - edges[:-2]))[:, None]


@pytest.fixture(scope="module")
def weights():
    return tiny_en()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp("whisper")
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def distance(found, expected):
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def model(weights):
    config = transformers.WhisperConfig(**CONFIG, attn_implementation="eager")
    model = transformers.WhisperModel(config)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def features():
    features = log_mel(sound())[None]
    expected = transformers.WhisperFeatureExtractor()(sound(), sampling_rate=RATE)
    assert np.allclose(features, expected["input_features"], atol=1e-4)
    return features


def test_hidden_states(folder, model, features):
    backbone = sherl.load_backbone(folder)
    found = backbone.extract(features, "all+last")
    assert found.lengths.tolist() == [1500]
    states = model.encoder(torch.from_numpy(features), output_hidden_states=True)
    expected = [*states.hidden_states[:-1], states.last_hidden_state]
    distances = [distance(tap, state[0].numpy()) for tap, state in zip(found.taps, expected, strict=True)]
    print(f"\nWhisper tiny.en, 4 layers: largest distance of a state {max(distances):.1e}")
    assert max(distances) <= LIMIT


def test_decoder_layers(folder, model, features):
    backbone = sherl.load_backbone(folder)
    tokens = torch.tensor([[50257, 50362, 440, 2068, 7586, 21831, 50256]])
    output = model(torch.from_numpy(features), decoder_input_ids=tokens, output_hidden_states=True, use_cache=False)
    x, memory = output.decoder_hidden_states[0].numpy(), output.encoder_last_hidden_state.numpy()
    for layer, expected in zip(backbone.decoder_layers[:-1], output.decoder_hidden_states[1:]):
        x = layer(x, memory=memory)
        assert distance(x, expected.numpy()) <= LIMIT
    x = backbone.decoder_layers[-1](x, memory=memory)
    normed = model.decoder.layer_norm(torch.from_numpy(x)).numpy()
    assert distance(normed, output.last_hidden_state.numpy()) <= LIMIT
