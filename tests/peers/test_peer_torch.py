"""The PyTorch peer against the reference outputs, and sherl against the peer on random ragged batches."""

import json
import pathlib

import numpy as np
import pytest
import torch
from benchmarks import peer_torch
from benchmarks.problem import HEAD_CHANNELS, Problem, draw

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
PRECISIONS = pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)],
                                     ids=["float64", "float32"])


def relative_error(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


class Golden:
    """One file of reference outputs, its inputs and weights as tensors of one precision."""

    def __init__(self, name, dtype):
        with np.load(GOLDEN / f"{name}.npz") as data:
            self.arrays = {key: data[key] for key in data.files}
        self.meta = json.loads(str(self.arrays["meta"]))
        self.dtype = dtype

    def group(self, prefix):
        """Arrays under a prefix, floating-point ones in the chosen precision."""
        tensors = {}
        for key, array in self.arrays.items():
            if key.startswith(prefix + "/"):
                tensor = torch.from_numpy(array)
                tensors[key[len(prefix) + 1:]] = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        return tensors

    def parameters(self):
        """Trainable parameters; the gate is a short decimal that the file holds rounded to float32."""
        parameters = self.group("param")
        parameters["gate"] = torch.tensor([round(float(parameters["gate"]), 6)], dtype=self.dtype)
        return parameters

    def taps(self):
        inputs = self.group("in")
        return [inputs[f"tap{index}"] for index in range(sum(name.startswith("tap") for name in inputs))]

    def mtsa(self):
        """The peer's adapter with the settings of this file."""
        taps, meta = self.taps(), self.meta
        hidden = self.arrays["param/up.weight"].shape[1]
        return peer_torch.MTSA(
            len(taps), taps[0].shape[-1], hidden, down=meta["variant"], guidance=meta.get("guidance", "token"),
            up_norm=meta.get("up_norm", "layernorm"), eps=meta["eps"],
            down_norm_eps=meta.get("down_norm_eps", 1e-5), up_norm_eps=meta.get("up_norm_eps", 1e-12)).to(self.dtype)

    def network(self):
        """The peer's network with the parameters of this file."""
        layer = peer_torch.TransformerLayer(self.group("frozen"), self.meta["heads"], self.meta["layer_norm_eps"])
        classes, features = self.arrays["param/head.weight"].shape
        network = peer_torch.SideNetwork(self.mtsa(), [layer], peer_torch.Classifier(features, classes))
        network.to(self.dtype).load_trainable(network_names(self.parameters()))
        return network


def network_names(parameters):
    """Parameters of a path file by their names in a network."""
    return {name if name.startswith("head.") else f"early.{name}": value for name, value in parameters.items()}


def assert_all_close(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert relative_error(actual[name].detach(), value) < tolerance, name


@PRECISIONS
@pytest.mark.parametrize("name", ["mtsa_layernorm", "mtsa_gated", "mtsa_residual_mlp"])
def test_adapter_matches_reference(name, dtype, tolerance):
    golden = Golden(name, dtype)
    mtsa = golden.mtsa()
    mtsa.load_state_dict(golden.parameters(), strict=True)
    inputs = golden.group("in")
    leaves = dict(mtsa.named_parameters()) | {key: value.requires_grad_() for key, value in inputs.items()}
    taps = [inputs[f"tap{index}"] for index in range(len(inputs) - 1)]

    out = mtsa(taps, last=inputs["last"])
    out.backward(torch.from_numpy(golden.arrays["cotangent"]).to(dtype))

    assert relative_error(out.detach(), golden.arrays["out"]) < tolerance
    gradients = {key: value.grad for key, value in leaves.items()}
    assert_all_close(gradients, {key[5:]: value for key, value in golden.arrays.items() if key.startswith("grad/")},
                     tolerance)


@PRECISIONS
def test_layer_matches_reference(dtype, tolerance):
    golden = Golden("late_bert", dtype)
    layer = peer_torch.TransformerLayer(golden.group("frozen"), golden.meta["heads"], golden.meta["eps"])
    inputs = golden.group("in")
    x, mask = inputs["x"].requires_grad_(), inputs["mask"]

    out = layer(x, mask)
    out.backward(torch.from_numpy(golden.arrays["cotangent"]).to(dtype))

    kept = mask.numpy()
    assert relative_error(out.detach().numpy()[kept], golden.arrays["out"][kept]) < tolerance
    assert relative_error(x.grad, golden.arrays["grad/x"]) < tolerance
    assert all(parameter.grad is None for parameter in layer.parameters())


@PRECISIONS
def test_path_matches_reference(dtype, tolerance):
    golden = Golden("path_bert", dtype)
    network, inputs, taps = golden.network(), golden.group("in"), golden.taps()

    assert relative_error(network(taps, inputs["mask"]).detach(), golden.arrays["out"]) < tolerance
    loss, gradients = network.loss_and_gradients(taps, inputs["labels"], inputs["mask"])

    assert relative_error(loss, golden.arrays["loss"]) < tolerance
    expected = {key[5:]: value for key, value in golden.arrays.items() if key.startswith("grad/")}
    assert_all_close(gradients, network_names(expected), tolerance)
    assert all(tap.grad is None and not tap.requires_grad for tap in taps)


@PRECISIONS
def test_ten_steps_match_reference(dtype, tolerance):
    golden = Golden("path_bert", dtype)
    network, inputs, taps = golden.network(), golden.group("in"), golden.taps()
    assert golden.meta["optimizer"] == "adamw"
    step = network.stepper(golden.meta["lr"], golden.meta["weight_decay"])

    losses = [step(taps, inputs["labels"], inputs["mask"]) for _ in range(10)]

    assert relative_error(losses, golden.arrays["losses"]) < tolerance
    expected = {key[8:]: value for key, value in golden.arrays.items() if key.startswith("after10/")}
    assert_all_close(network.trainable(), network_names(expected), tolerance)


VARIANTS = {
    "layernorm": {"down": "layernorm", "guidance": "token", "up_norm": "layernorm", "eps": 1e-8},
    "gated": {"down": "gated", "guidance": "token", "up_norm": None, "eps": 1e-6},
    "residual_mlp": {"down": "layernorm", "guidance": "residual_mlp", "up_norm": "layernorm", "eps": 1e-6},
}


class RaggedCase:
    """One random batch of uneven lengths, and the same network for sherl (float32) and the peer (float64)."""

    def __init__(self, variant, pool, pooler, seed):
        rng = np.random.default_rng([seed, 7])
        self.problem = Problem(
            batch=int(rng.integers(1, 7)), tokens=int(rng.integers(2, 40)), taps=int(rng.integers(2, 8)),
            features=HEAD_CHANNELS * int(rng.integers(1, 4)), hidden=int(rng.integers(2, 33)),
            classes=int(rng.integers(2, 6)), seed=seed)
        self.variant, self.pool, self.pooler = VARIANTS[variant], pool, pooler
        self.taps, self.labels, _ = self.problem.inputs()
        lengths = rng.integers(1, self.problem.tokens + 1, self.problem.batch)
        self.mask = np.arange(self.problem.tokens) < lengths[:, None]
        self.weights = self.problem.layer_weights()
        self.peer = self.build_peer()
        self.state = {name: draw(name, tuple(value.shape), seed) for name, value in self.peer.trainable().items()}
        self.peer.load_trainable(self.state)

    def build_peer(self):
        problem = self.problem
        layer = peer_torch.TransformerLayer({name: torch.from_numpy(value) for name, value in self.weights.items()},
                                            problem.heads)
        head = peer_torch.Classifier(problem.features, problem.classes, pool=self.pool, pooler=self.pooler)
        mtsa = peer_torch.MTSA(problem.taps, problem.features, problem.hidden, **self.variant)
        return peer_torch.SideNetwork(mtsa, [layer], head).double()

    def build_sherl(self):
        import sherl

        problem = self.problem
        network = sherl.SideNetwork(
            early=sherl.MTSA(taps=problem.taps, features=problem.features, hidden=problem.hidden, **self.variant),
            late=[sherl.TransformerLayer.from_bert(self.weights, heads=problem.heads)],
            head=sherl.Classifier(features=problem.features, classes=problem.classes, pool=self.pool,
                                  pooler=self.pooler),
            seed=0)
        network.load_state_dict(self.state)
        return network

    def peer_loss_and_gradients(self, peer=None):
        taps = [torch.from_numpy(tap).double() for tap in self.taps]
        return (peer or self.peer).loss_and_gradients(taps, torch.from_numpy(self.labels), torch.from_numpy(self.mask))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pool, pooler", [("first", False), ("first", True), ("mean", False), ("max", True)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_sherl_matches_peer(variant, pool, pooler, seed):
    case = RaggedCase(variant, pool, pooler, seed)
    loss, gradients = case.build_sherl().loss_and_gradients(case.taps, case.labels, mask=case.mask)
    expected_loss, expected = case.peer_loss_and_gradients()

    assert relative_error(loss, expected_loss) < 1e-4
    assert gradients.keys() == expected.keys()
    overall = np.linalg.norm([np.linalg.norm(value) for value in expected.values()])
    for name, value in expected.items():
        # With two taps the guidance weight is 1 or 0 whatever its parameters are, and their gradient is rounding:
        # what is next to nothing beside the other gradients is held against their scale.
        scale = max(np.linalg.norm(value), 1e-2 * overall)
        assert np.linalg.norm(gradients[name] - value.numpy()) < 1e-4 * scale, name


@pytest.mark.parametrize("pool", ["first", "mean", "max"])
def test_padding_of_peer_changes_nothing(pool):
    case = RaggedCase("layernorm", pool, False, seed=11)
    loss, gradients = case.peer_loss_and_gradients()
    case.taps = [np.where(case.mask[:, :, None], tap, np.float32(3)) for tap in case.taps]
    changed_loss, changed = case.peer_loss_and_gradients()

    assert not case.mask.all()
    assert relative_error(changed_loss, loss) < 1e-12
    assert_all_close(changed, gradients, 1e-9)


def test_peer_gives_the_same_from_needed_rows():
    case = RaggedCase("layernorm", "first", True, seed=5)
    reduced = case.build_peer()
    reduced.load_trainable(case.state)
    reduced.last_rows = 1
    loss, gradients = case.peer_loss_and_gradients()
    reduced_loss, reduced_gradients = case.peer_loss_and_gradients(reduced)

    assert case.problem.tokens > 1
    assert relative_error(reduced_loss, loss) < 1e-12
    assert_all_close(reduced_gradients, gradients, 1e-9)
