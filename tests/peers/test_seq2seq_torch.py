"""The SHERL path for T5 against PyTorch on small random models: states, loss, gradients, steps, generation."""

import numpy as np
import pytest
import torch
import transformers
from benchmarks import seq2seq_torch

import sherl

LIMIT = 1e-4
WORDS, END = 60, 1
LENGTHS, TARGET_LENGTHS = (5, 19, 1, 33, 8), (4, 7, 1, 21, 3)
CASES = {
    "v1.0": {"num_layers": 4},
    "v1.1": {"num_layers": 3, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}  # fmt: skip


class Model:
    """A frozen T5 of transformers, sherl's backbone of the same folder, and pairs of token ids."""

    def __init__(self, folder, **settings):
        torch.manual_seed(0)
        config = transformers.T5Config(d_model=48, d_kv=10, num_heads=6, d_ff=80, vocab_size=WORDS, dropout_rate=0.0,
                                       decoder_start_token_id=0, **settings)
        model = transformers.T5ForConditionalGeneration(config).eval().requires_grad_(False)
        model.set_attn_implementation("eager")
        with torch.no_grad():
            if settings.get("tie_word_embeddings") is False:
                model.lm_head.weight = torch.nn.Parameter(torch.empty(WORDS, 48), requires_grad=False)
            for name, parameter in model.named_parameters():
                norm = parameter.dim() == 1
                scale = 1.0 if "shared" in name or "lm_head" in name else 0.15
                parameter.copy_(scale * torch.randn_like(parameter) + (1.0 if norm else 0.0))
        model.config.tie_word_embeddings = settings.get("tie_word_embeddings", True)
        model.save_pretrained(folder)
        self.model, self.backbone = model, sherl.load_backbone(folder)
        generator = np.random.default_rng(3)
        self.inputs = [[*generator.integers(2, WORDS, length - 1).tolist(), END] for length in LENGTHS]
        self.targets = [[*generator.integers(2, WORDS, length - 1).tolist(), END] for length in TARGET_LENGTHS]

    def states(self, inputs, shifted):
        """Raw states of encoder and decoder for one pair: what enters each block, and what leaves the last."""
        seen = {"encoder": [], "decoder": []}
        hooks = [
            block.register_forward_hook(
                lambda _, given, out, name=name: seen[name].extend([given[0][0], first(out)[0]]))
            for name in seen for block in getattr(self.model, name).block
        ]  # fmt: skip
        self.model(input_ids=torch.tensor([inputs]), decoder_input_ids=torch.tensor([shifted]))
        for hook in hooks:
            hook.remove()
        return [[*states[::2], states[-1]] for states in seen.values()]

    def peer(self, network, label_smoothing=0.0):
        """The side network in PyTorch, with the weights of sherl's."""
        state = self.model.state_dict()
        place = f"decoder.block.{len(self.model.decoder.block) - 1}."
        weights = {name.removeprefix(place): value for name, value in state.items() if name.startswith(place)}
        table = "layer.0.SelfAttention.relative_attention_bias.weight"
        weights[table] = state[f"decoder.block.0.{table}"]
        v11 = "layer.2.DenseReluDense.wi_0.weight" in weights
        late = seq2seq_torch.T5Block(weights, 6)
        peer = seq2seq_torch.Seq2SeqSideNetwork(
            network.encoder.taps, network.decoder.taps, 48, network.encoder.hidden, [late],
            state["lm_head.weight" if v11 else "shared.weight"], 1.0 if v11 else 48**-0.5, label_smoothing)
        peer.load_trainable(network.state_dict())
        return peer

    def taps(self, network, inputs, shifted):
        """Taps of one pair for the peer."""
        chosen = network.taps["encoder_taps"], network.taps["decoder_taps"]
        return [[states[tap][None] for tap in taps] for states, taps in zip(self.states(inputs, shifted), chosen)]

    def batch(self, features):
        """All pairs for the peer: padded taps, labels, and which encoder rows are meant."""
        padded = [
            [torch.nn.utils.rnn.pad_sequence(torch.tensor(tap).split(part.lengths.tolist()), batch_first=True)
             for tap in part.taps]
            for part in (features.encoder, features.decoder)
        ]  # fmt: skip
        labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(target) for target in self.targets], batch_first=True,
                                                 padding_value=-100)
        return *padded, labels, torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


def first(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.fixture(params=CASES, scope="module")
def model(request, tmp_path_factory):
    return Model(tmp_path_factory.mktemp("t5"), **CASES[request.param])


def network_of(model, **settings):
    """A side network with random weights in every place."""
    network = sherl.Seq2SeqSideNetwork.from_backbone(model.backbone, hidden=12, **settings)
    generator = np.random.default_rng(5)
    network.load_state_dict({
        name: value + (0.02 if name.endswith("gate") else 0.2) * generator.standard_normal(value.shape, np.float32)
        for name, value in network.state_dict().items()
    })
    return network


def assert_close(actual, expected, limit=LIMIT, what=""):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    actual = actual.reshape(expected.shape)
    assert np.linalg.norm(actual - expected) <= limit * max(np.linalg.norm(expected), 1e-3), what


def test_states(model):
    depth, most = len(model.backbone.layers), len(model.backbone.decoder_layers)
    features = model.backbone.extract_pairs(model.inputs, model.targets, encoder_taps=range(depth + 1),
                                            decoder_taps=range(most + 1), batch_size=2)
    for number, (source, target) in enumerate(zip(model.inputs, model.targets)):
        expected = model.states(source, [0, *target[:-1]])
        for side, part in zip(expected, (features.encoder, features.decoder)):
            for state, tap in zip(side, part[number].taps, strict=True):
                assert_close(tap, state[0] if state.dim() == 3 else state)
        assert features.labels[number].tolist() == target


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_and_gradients(model, label_smoothing):
    network = network_of(model, label_smoothing=label_smoothing)
    features = model.backbone.extract_pairs(model.inputs, model.targets)
    loss, gradients = network.loss_and_gradients(features)
    expected, wanted = model.peer(network, label_smoothing).loss_and_gradients(*model.batch(features))
    assert_close(loss, expected)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, wanted[name], what=name)


def test_the_first_weights_of_the_norms_are_those_of_the_model(model):
    network = sherl.Seq2SeqSideNetwork.from_backbone(model.backbone)
    state = network.state_dict()
    assert_close(state["encoder_norm.weight"], model.model.encoder.final_layer_norm.weight, 0)
    assert_close(state["norm.weight"], model.model.decoder.final_layer_norm.weight, 0)


def test_ten_steps(model):
    network = network_of(model)
    features = model.backbone.extract_pairs(model.inputs, model.targets)
    step, peer = network.stepper(learning_rate=1e-3, weight_decay=0.01), model.peer(network)
    peer_step, batch = peer.stepper(learning_rate=1e-3, weight_decay=0.01), model.batch(features)
    for _ in range(10):
        assert_close(step(features), peer_step(*batch))
    expected = peer.trainable()
    for name, value in network.state_dict().items():
        assert_close(value, expected[name].detach(), what=name)


# ---- Generation: a plain loop that computes the whole sequence at each step ----


class Plain:
    """Log probabilities of the next token by the peer, without a cache."""

    def __init__(self, model, network):
        self.model, self.network, self.peer, self.known = model, network, model.peer(network), {}

    def scores(self, source, tokens):
        key = tuple(source), tuple(tokens)
        if key not in self.known:
            with torch.no_grad():
                logits = self.peer(*self.model.taps(self.network, source, [0, *tokens]))[0, -1]
            self.known[key] = torch.log_softmax(logits.double(), dim=-1).numpy()
        return self.known[key]

    def greedy(self, source, most):
        tokens = []
        while len(tokens) < most:
            token = int(self.scores(source, tokens).argmax())
            if token == END:
                break
            tokens.append(token)
        return tokens

    def beam(self, source, most, beams):
        """Of all continuations of the live hypotheses the best go on; those that end are ranked by their mean."""
        live, finished = [(0.0, [])], []
        for length in range(1, most + 1):
            every = [(total + score, [*tokens, token])
                     for total, tokens in live for token, score in enumerate(self.scores(source, tokens))]
            every.sort(key=lambda scored: -scored[0])
            live = []
            for place, (total, tokens) in enumerate(every[: 2 * beams]):
                if tokens[-1] != END:
                    live.append((total, tokens))
                elif place < beams:
                    finished.append((total / length, tokens[:-1]))
            live = live[:beams]
            finished = sorted(finished, key=lambda ranked: -ranked[0])[:beams]
            if len(finished) == beams and finished[-1][0] >= live[0][0] / length:
                return finished[0][1]
        return max([*finished, *((total / most, tokens) for total, tokens in live)], key=lambda ranked: ranked[0])[1]


@pytest.fixture(scope="module")
def trained(model):
    """A network that ends its outputs now and then."""
    network = network_of(model)
    features = model.backbone.extract_pairs(model.inputs, model.targets)
    network.fit(features, epochs=8, batch_size=2, learning_rate=5e-3, progress=False)
    return network


@pytest.fixture(scope="module")
def plain(model, trained):
    return Plain(model, trained)


def test_greedy(model, trained, plain):
    expected = [plain.greedy(source, 12) for source in model.inputs]
    assert trained.generate(model.inputs, 12) == expected
    assert trained.generate(model.inputs, 12, batch_size=2) == expected
    assert len({len(tokens) for tokens in expected}) > 1


@pytest.mark.parametrize("beams", [2, 3, 4])
def test_beam_search(model, trained, plain, beams):
    assert trained.generate(model.inputs, 9, beams) == [plain.beam(source, 9, beams) for source in model.inputs]
