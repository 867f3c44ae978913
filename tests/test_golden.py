"""Agreement with the reference outputs in tests/golden: outputs, every gradient, and ten optimizer steps."""

import json
from pathlib import Path

import numpy as np
import pytest

import sherl

pytestmark = pytest.mark.core

FOLDER = Path(__file__).parent / "golden"
LIMITS = {"float32": 1e-4, "float64": 5e-7}  # the files hold their inputs rounded to float32
OUTPUTS = ("out", "loss", "losses")
ZERO = 1e-6  # below this share of the largest gradient a reference is rounding noise


@pytest.fixture(params=LIMITS)
def require(request, agreement):
    """Note the worst of some errors, and require that it is within the limit of the core's precision."""
    if request.param == "float64":
        request.getfixturevalue("double_core")

    def check(reference, *groups):
        found = [(error, what) for group in groups for what, error in group.items()]
        kinds = agreement.setdefault(f"{reference.name} ({request.param})", {})
        for error, what in found:
            kind = "output" if what in OUTPUTS else "other"
            kinds[kind] = max(kinds.get(kind, (0.0, what)), (error, what))
        worst = max(found)
        assert worst[0] <= LIMITS[request.param], f"{worst[1]} differs by {worst[0]:.1e}"

    return check


class Reference:
    """One file of reference outputs."""

    def __init__(self, name):
        with np.load(FOLDER / f"{name}.npz") as file:
            self.arrays = {key: file[key] for key in file.files}
        self.name = name
        self.meta = json.loads(str(self.arrays["meta"]))
        if self.meta.get("layout") == "NCHW":
            self.arrays = {
                key: value.transpose(0, 2, 3, 1) if value.ndim == 4 and not key.startswith("frozen/") else value
                for key, value in self.arrays.items()
            }

    def __getitem__(self, key):
        return self.arrays[key]

    def group(self, prefix):
        return {key[len(prefix) :]: value for key, value in self.arrays.items() if key.startswith(prefix)}

    def taps(self):
        return [value for key, value in sorted(self.group("in/tap").items())]


def errors(found, expected):
    """Return relative errors by name; where a reference is zero by algebra, against the largest one."""
    assert found.keys() == expected.keys()
    norms = {name: np.linalg.norm(value) for name, value in expected.items()}
    largest = max(norms.values())
    scale = {name: norm if norm > ZERO * largest else largest for name, norm in norms.items()}
    return {name: np.linalg.norm(found[name] - expected[name]) / scale[name] for name in expected}


def mtsa_of(reference):
    meta = reference.meta
    shape = reference["param/up.weight"].shape
    taps = reference.taps()
    mtsa = sherl.MTSA(
        taps=len(taps),
        features=[tap.shape[-1] for tap in taps],
        hidden=shape[1],
        out_features=shape[0],
        down=meta["variant"],
        guidance=meta.get("guidance", "token"),
        up_norm=meta["up_norm"],
        pool=meta.get("pool_rates"),
        base=meta.get("base", "first"),
        gated_base=meta.get("gated_base", False),
    )
    names = ("eps", "down_norm_eps", "up_norm_eps", "gate_temperature", "momentum")
    wanted = {name: meta[name] for name in names if name in meta}
    wanted |= {name: meta["norm_eps"] for name in ("down_norm_eps", "up_norm_eps") if "norm_eps" in meta}
    assert {name: getattr(mtsa, name) for name in wanted} == wanted  # the defaults are those of the method
    mtsa.load_state_dict(reference.group("param/") | reference.group("frozen/before/"))
    return mtsa


@pytest.mark.parametrize("variant", ["layernorm", "gated", "residual_mlp"])
def test_mtsa(variant, require):
    reference = Reference(f"mtsa_{variant}")
    mtsa = mtsa_of(reference)
    taps, last = reference.taps(), reference["in/last"]
    out, gradients = mtsa.vjp(taps, reference["cotangent"], last, taps_gradient=True)
    require(
        reference,
        errors({"out": out}, {"out": reference["out"]}),
        errors({"out": mtsa(taps, last)}, {"out": reference["out"]}),
        errors(gradients, reference.group("grad/")),
    )


def test_mtsa_of_images(require):
    reference = Reference("mtsa_batchnorm")
    mtsa = mtsa_of(reference)
    taps, last = reference.taps(), reference["in/last"]
    out, gradients = mtsa.vjp(taps, reference["cotangent"], last, taps_gradient=True, training=True)
    after = reference.group("after/")
    state = mtsa.state_dict()
    require(
        reference,
        errors({"out": out}, {"out": reference["out"]}),
        errors(gradients, reference.group("grad/")),
        errors({name: state[name] for name in after}, after),
        errors({"out": mtsa(taps, last)}, {"out": reference["out_eval_after"]}),
    )


@pytest.mark.parametrize("name", ["mtsa_spatial_cls", "mtsa_spatial_masked"])
def test_mtsa_with_spatial_guidance(name, require):
    reference = Reference(name)
    mtsa = mtsa_of(reference)
    arguments = {key: reference.arrays[f"in/{key}"] for key in ("mask", "position") if f"in/{key}" in reference.arrays}
    taps, last = reference.taps(), reference["in/last"]
    out, gradients = mtsa.vjp(taps, reference["cotangent"], last, taps_gradient=True, **arguments)
    require(
        reference,
        errors({"out": out}, {"out": reference["out"]}),
        errors({"out": mtsa(taps, last, **arguments)}, {"out": reference["out"]}),
        errors(gradients, reference.group("grad/")),
    )
    if "position" in arguments:  # here they are the last rows
        del arguments["position"]
        assert np.array_equal(mtsa(taps, last, **arguments), out)


@pytest.mark.parametrize("name", ["late_bottleneck_identity", "late_bottleneck_strided"])
def test_late_bottleneck(name, require):
    reference = Reference(name)
    block = sherl.Bottleneck.from_resnet(reference.group("frozen/"), reference.meta["stride"], reference.meta["eps"])
    out, gradients = block.vjp(reference["in/x"], reference["cotangent"])
    require(
        reference,
        errors({"out": out}, {"out": reference["out"]}),
        errors({"out": block(reference["in/x"])}, {"out": reference["out"]}),
        errors(gradients, reference.group("grad/")),
    )


def late_layer_of(reference):
    meta, weights = reference.meta, reference.group("frozen/")
    if meta["family"] == "t5":
        block = sherl.T5Block.from_t5(
            weights,
            meta["heads"],
            eps=meta["eps"],
            decoder=meta["block"] == "decoder",
            max_distance=meta["max_distance"],
        )
        assert block.position_buckets == meta["buckets"]
        return block
    make = getattr(sherl.TransformerLayer, f"from_{meta['family']}")
    options = {"causal": meta["causal"]} if "causal" in meta else {}
    return make(weights, meta["heads"], activation=meta["activation"], eps=meta["eps"], **options)


@pytest.mark.parametrize(
    "name",
    ["bert", "vit", "clip_text",
     *(f"t5_{part}_{maps}" for part in ("encoder", "decoder") for maps in ("relu", "gated_gelu"))],
)
def test_late_layer(name, require):
    reference = Reference(f"late_{name}")
    layer = late_layer_of(reference)
    given = reference.group("in/")
    x, mask = given.pop("x"), given.pop("mask", None)
    out, gradients = layer.vjp(x, reference["cotangent"], mask, **given)
    require(
        reference,
        errors({"out": out}, {"out": reference["out"]}),
        errors({"out": layer(x, mask, **given)}, {"out": reference["out"]}),
        errors(gradients, reference.group("grad/")),
    )
    for masked, values in ((mask, (out, gradients["x"])), (given.get("memory_mask"), (gradients.get("memory"),))):
        assert masked is None or not any(value[~masked].any() for value in values)


def path_network(reference):
    meta = reference.meta
    layer = sherl.TransformerLayer.from_bert(reference.group("frozen/"), meta["heads"], eps=meta["layer_norm_eps"])
    head = reference["param/head.weight"]
    hidden = reference["param/up.weight"].shape[1]
    network = sherl.SideNetwork(
        early=sherl.MTSA(
            len(reference.taps()),
            head.shape[1],
            hidden,
            down=meta["variant"],
            up_norm="layernorm",
            eps=meta["eps"],
            up_norm_eps=meta["up_norm_eps"],
        ),
        late=[layer],
        head=sherl.Classifier(head.shape[1], head.shape[0]),
    )
    network.load_state_dict(in_network(reference.group("param/")))
    return network


def in_network(values):
    return {name if name.startswith("head.") else f"early.{name}": value for name, value in values.items()}


def test_path(require):
    reference = Reference("path_bert")
    network = path_network(reference)
    taps, labels, mask = reference.taps(), reference["in/labels"], reference["in/mask"]
    loss, gradients = network.loss_and_gradients(taps, labels, mask)
    require(
        reference,
        errors({"out": network.forward(taps, mask)}, {"out": reference["out"]}),
        errors({"loss": np.array(loss)}, {"loss": reference["loss"]}),
        errors(gradients, in_network(reference.group("grad/"))),
    )


def test_ten_steps(require):
    reference, meta = Reference("path_bert"), Reference("path_bert").meta
    network = path_network(reference)
    step = network.stepper(
        optimizer=meta["optimizer"],
        learning_rate=meta["lr"],
        weight_decay=meta["weight_decay"],
        betas=meta["betas"],
        eps=meta["adam_eps"],
    )
    losses = [step(reference.taps(), reference["in/labels"], mask=reference["in/mask"]) for _ in reference["losses"]]
    require(
        reference,
        errors({"losses": np.array(losses)}, {"losses": reference["losses"]}),
        errors(network.state_dict(), in_network(reference.group("after10/"))),
    )


def test_fit_takes_the_same_steps(require):
    reference, meta = Reference("path_bert"), Reference("path_bert").meta
    network = path_network(reference)
    history = network.fit(
        reference.taps(),
        reference["in/labels"],
        reference["in/mask"],
        epochs=10,
        batch_size=3,
        optimizer=meta["optimizer"],
        learning_rate=meta["lr"],
        weight_decay=meta["weight_decay"],
        no_decay=(),
        schedule="constant",
        warmup=0,
        clip_norm=None,
        progress=False,
    )
    require(
        reference,
        errors({"losses": np.array(history.step_losses)}, {"losses": reference["losses"]}),
        errors(network.state_dict(), in_network(reference.group("after10/"))),
    )
