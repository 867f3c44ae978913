"""Wrong arguments: each raises a sentence that names the argument, and nothing is changed."""

import numpy as np
import pytest
from small import FEATURES, HEADS, bert_weights, frozen_layer, mask_of, network, problem, same_bits, taps_of

import sherl

pytestmark = pytest.mark.core

TAPS, LABELS, MASK = problem()


def changed(arrays, number, change):
    arrays = list(arrays)
    arrays[number] = change(arrays[number])
    return arrays


WRONG_TAPS = {
    "too few": (TAPS[:2], None, ValueError, "taps must be 3 arrays, got 2"),
    "too many": ([*TAPS, TAPS[0]], None, ValueError, "taps must be 3 arrays, got 4"),
    "none": ([], None, ValueError, "taps must hold at least one array|taps must be 3 arrays"),
    "not a sequence": (5, None, TypeError, "taps must be a sequence of arrays"),
    "text": ("taps", None, TypeError, "taps must be a sequence of arrays"),
    "two dimensions": (
        changed(TAPS, 1, lambda tap: tap[:, 0]),
        None,
        ValueError,
        r"taps\[1\] must have shape \(batch, tokens, channels\), got \(40, 32\)",
    ),
    "other batch": (
        changed(TAPS, 2, lambda tap: tap[:5]),
        None,
        ValueError,
        r"taps\[2\] must have the same batch and tokens as taps\[0\]",
    ),
    "other channels": (
        changed(TAPS, 0, lambda tap: tap[..., :31]),
        None,
        ValueError,
        r"taps\[0\] must have 32 channels, got 31",
    ),
    "integers": (
        changed(TAPS, 1, lambda tap: tap.astype(int)),
        None,
        TypeError,
        r"taps\[1\] must hold .*, got dtype int64",
    ),
    "complex": (changed(TAPS, 1, lambda tap: tap.astype(complex)), None, TypeError, r"taps\[1\] must hold"),
    "objects": (
        changed(TAPS, 1, lambda tap: tap.astype(object)),
        None,
        TypeError,
        r"taps\[1\] must hold .*, got dtype object",
    ),
    "uneven lists": (
        changed(TAPS, 1, lambda tap: [[1.0], [1.0, 2.0]]),
        None,
        TypeError,
        r"taps\[1\] cannot be read as an array",
    ),
    "long double": (changed(TAPS, 1, lambda tap: tap.astype(np.longdouble)), None, TypeError, r"taps\[1\] must hold"),
    "empty": ([tap[:0] for tap in TAPS], None, ValueError, r"taps\[0\] is empty: its shape is \(0, 7, 32\)"),
    "no tokens": ([tap[:, :0] for tap in TAPS], None, ValueError, r"taps\[0\] is empty"),
    "mask shape": (TAPS, MASK[:, :3], ValueError, r"mask must have shape \(batch, tokens\) = \(40, 7\), got \(40, 3\)"),
    "mask values": (TAPS, 2 * MASK, ValueError, "mask must hold 0 and 1 only"),
    "mask nan": (TAPS, np.where(MASK, 1.0, np.nan), ValueError, "mask must hold 0 and 1 only"),
    "mask text": (TAPS, np.full((40, 7), "a"), TypeError, "mask must hold bool, int or float"),
    "mask of features": (sherl.Features.from_arrays(TAPS), MASK, ValueError, "mask goes with padded arrays"),
}


@pytest.mark.parametrize("case", WRONG_TAPS)
def test_wrong_taps(case):
    taps, mask, error, message = WRONG_TAPS[case]
    net = network()
    before = net.state_dict()
    calls = [
        lambda: net.forward(taps, mask),
        lambda: net.predict(taps, mask),
        lambda: net.evaluate(taps, LABELS, mask),
        lambda: net.loss_and_gradients(taps, LABELS, mask),
        lambda: net.fit(taps, LABELS, mask, progress=False),
        lambda: net.vjp(taps, np.zeros((40, 2), np.float32), mask),
        lambda: net.stepper()(taps, LABELS, mask),
        lambda: sherl.MTSA(3, FEATURES, 8)(taps, mask=mask),
        lambda: sherl.MTSA(3, FEATURES, 8).vjp(taps, TAPS[0], mask=mask),
    ]
    for call in calls:
        with pytest.raises(error, match=message):
            call()
    assert same_bits(net.state_dict(), before)


def test_a_sample_without_a_row():
    mask = MASK.copy()
    mask[3] = False
    for call in (
        lambda: network().predict(TAPS, mask),
        lambda: network().fit(TAPS, LABELS, mask),
        lambda: sherl.Classifier(FEATURES, 2)(TAPS[0], mask),
    ):
        with pytest.raises(ValueError, match="mask leaves no row of sample 3"):
            call()
    with pytest.raises(ValueError, match="mask leaves no row of any sample"):
        frozen_layer()(TAPS[0], np.zeros((40, 7)))


WRONG_LABELS = {
    "too few": (
        sherl.Classifier(FEATURES, 2),
        LABELS[:5],
        ValueError,
        r"labels must have shape \(samples,\) = \(40,\), got \(5,\)",
    ),
    "two dimensions": (
        sherl.Classifier(FEATURES, 2),
        LABELS[:, None],
        ValueError,
        r"labels must have shape \(samples,\)",
    ),
    "reals": (
        sherl.Classifier(FEATURES, 2),
        LABELS + 0.5,
        TypeError,
        "labels must be whole class numbers, got dtype float64",
    ),
    "nan": (
        sherl.Classifier(FEATURES, 2),
        np.where(LABELS, np.nan, 0),
        TypeError,
        "labels must be whole class numbers",
    ),
    "text": (sherl.Classifier(FEATURES, 2), LABELS.astype(str), TypeError, "labels must be whole class numbers"),
    "too large": (
        sherl.Classifier(FEATURES, 2),
        LABELS + 1,
        ValueError,
        "labels must be class numbers from 0 to 1, got 2",
    ),
    "negative": (
        sherl.Classifier(FEATURES, 2),
        LABELS - 1,
        ValueError,
        "labels must be class numbers from 0 to 1, got -1",
    ),
    "regression nan": (
        sherl.Regressor(FEATURES),
        np.where(LABELS, np.nan, 0),
        ValueError,
        "labels must be finite, got nan",
    ),
    "regression inf": (
        sherl.Regressor(FEATURES),
        np.where(LABELS, np.inf, 0),
        ValueError,
        "labels must be finite, got inf",
    ),
    "regression too large": (sherl.Regressor(FEATURES), np.full(40, 1e300), ValueError, "labels must be finite"),
    "regression shape": (
        sherl.Regressor(FEATURES, 2),
        LABELS,
        ValueError,
        r"labels must have shape \(40, 2\), got \(40,\)",
    ),
    "regression text": (sherl.Regressor(FEATURES), ["a"] * 40, TypeError, "labels must be numbers"),
    "multi-label shape": (
        sherl.Classifier(FEATURES, 3, multi_label=True),
        LABELS,
        ValueError,
        r"labels must have shape \(40, 3\)",
    ),
    "multi-label range": (
        sherl.Classifier(FEATURES, 1, multi_label=True),
        2 * LABELS[:, None],
        ValueError,
        "labels must be from 0 to 1",
    ),
    "multi-label nan": (
        sherl.Classifier(FEATURES, 1, multi_label=True),
        np.full((40, 1), np.nan),
        ValueError,
        "labels must be finite",
    ),
}


@pytest.mark.parametrize("case", WRONG_LABELS)
def test_wrong_labels(case):
    head, labels, error, message = WRONG_LABELS[case]
    net = network(head=type(head)(**head.settings))
    for call in (
        lambda: net.fit(TAPS, labels, MASK, progress=False),
        lambda: net.evaluate(TAPS, labels, MASK),
        lambda: net.loss_and_gradients(TAPS, labels, MASK),
        lambda: net.stepper()(TAPS, labels, MASK),
    ):
        with pytest.raises(error, match=message):
            call()
    good = (
        np.zeros((40, net.head.out_features))
        if net.head.task == "regression" or getattr(net.head, "multi_label", False)
        else LABELS
    )
    with pytest.raises(error, match="validation"):
        net.fit(TAPS, good, MASK, validation=(TAPS, labels, MASK), progress=False)


WRONG_FIT = {
    "epochs": ({"epochs": 0}, ValueError, "epochs must be 1 or more, got 0"),
    "epochs real": ({"epochs": 1.5}, TypeError, "epochs must be a whole number, got 1.5"),
    "batch_size": ({"batch_size": 0}, ValueError, "batch_size must be 1 or more"),
    "batch_size bool": ({"batch_size": True}, TypeError, "batch_size must be a whole number"),
    "learning_rate": ({"learning_rate": -1}, ValueError, "learning_rate must be 0.0 or more"),
    "learning_rate nan": ({"learning_rate": float("nan")}, ValueError, "learning_rate must be finite"),
    "learning_rate text": ({"learning_rate": "1e-3"}, TypeError, "learning_rate must be a number"),
    "optimizer": ({"optimizer": "lion"}, ValueError, "optimizer must be one of 'adamw', 'adam', 'sgd', got 'lion'"),
    "schedule": ({"schedule": "exp"}, ValueError, "schedule must be one of"),
    "step schedule": ({"schedule": "step"}, ValueError, "needs step_every"),
    "warmup": ({"warmup": 1000}, ValueError, "warmup must be fewer than the 6 steps of the training, got 1000"),
    "warmup share": ({"warmup": 1.5}, ValueError, "warmup must be a share below 1 or a whole number"),
    "weight_decay": ({"weight_decay": -0.1}, ValueError, "weight_decay must be 0.0 or more"),
    "no_decay": ({"no_decay": [1]}, TypeError, "no_decay must be patterns"),
    "betas": ({"betas": (0.9,)}, ValueError, "betas must be two numbers, got 1"),
    "betas range": ({"betas": (0.9, 1.0)}, ValueError, "betas must be less than 1.0"),
    "momentum": ({"momentum": 1.0}, ValueError, "momentum must be less than 1.0"),
    "clip_norm": ({"clip_norm": 0}, ValueError, "clip_norm must be more than 0.0"),
    "accumulate": ({"accumulate": 0}, ValueError, "accumulate must be 1 or more"),
    "seed": ({"seed": -1}, ValueError, "seed must be 0 or more"),
    "validation": ({"validation": TAPS[0]}, TypeError, "validation must be"),
    "validation taps": ({"validation": (TAPS[:2], LABELS)}, ValueError, "validation: taps must be 3 arrays, got 2"),
    "metrics": ({"metrics": "bleu"}, ValueError, "metrics must be among accuracy"),
    "metrics number": ({"metrics": {"a": 3}}, TypeError, "metrics must be functions"),
    "monitor alone": ({"monitor": "loss"}, ValueError, "need validation"),
    "patience alone": ({"patience": 2}, ValueError, "need validation"),
    "monitor": (
        {"monitor": "f2", "validation": (TAPS, LABELS)},
        ValueError,
        "monitor must be one of loss, accuracy, f1, got 'f2'",
    ),
    "callbacks": ({"callbacks": [print]}, TypeError, "callbacks must be instances of sherl.Callback"),
    "progress": ({"progress": 1}, TypeError, "progress must be True or False"),
    "sample_weight": ({"sample_weight": [1.0]}, ValueError, r"sample_weight must have shape \(samples,\) = \(40,\)"),
    "sample_weight negative": ({"sample_weight": -np.ones(40)}, ValueError,
                               "sample_weight must be finite, zero or more"),
    "sample_weight nan": ({"sample_weight": np.full(40, np.nan)}, ValueError, "sample_weight must be finite"),
    "sample_weight nought": ({"sample_weight": np.zeros(40)}, ValueError, "sample_weight must be .* not all zero"),
    "sample_weight text": ({"sample_weight": ["a"] * 40}, TypeError, "sample_weight must be numbers"),
    "checkpoint_every alone": ({"checkpoint_every": 2}, ValueError, "checkpoint_every needs checkpoint"),
    "dtype": ({"dtype": "float8"}, ValueError, "dtype must be None or one of"),
}


@pytest.mark.parametrize("case", WRONG_FIT)
def test_wrong_fit_settings(case):
    settings, error, message = WRONG_FIT[case]
    net = network()
    before = net.state_dict()
    with pytest.raises(error, match=message):
        net.fit(TAPS, LABELS, MASK, **{"progress": False, **settings})
    assert same_bits(net.state_dict(), before)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: sherl.MTSA(1, 32, 8), ValueError, "taps must be 2 or more, got 1"),
        (lambda: sherl.MTSA(3, 0, 8), ValueError, "features must be 1 or more"),
        (lambda: sherl.MTSA(3, [32, 32], 8), ValueError, "one for each of the 3 taps, got 2"),
        (lambda: sherl.MTSA(3, 32, "8"), TypeError, "hidden must be a whole number, got '8'"),
        (
            lambda: sherl.MTSA(3, 32, 8, down="linear"),
            ValueError,
            "down must be one of 'layernorm', 'gated', 'relu', 'batchnorm', got 'linear'",
        ),
        (lambda: sherl.MTSA(3, 32, 8, guidance="none"), ValueError, "guidance must be one of"),
        (
            lambda: sherl.MTSA(3, 32, 8, up_norm="rms"),
            ValueError,
            "up_norm must be one of None, 'layernorm', 'batchnorm', got 'rms'",
        ),
        (lambda: sherl.MTSA(3, 32, 8, eps=0), ValueError, "eps must be more than 0.0"),
        (lambda: sherl.MTSA(3, 32, 8, dropout=1.0), ValueError, "dropout must be less than 1.0"),
        (lambda: sherl.MTSA(3, 32, 8, gate_temperature=0), ValueError, "gate_temperature must be more than 0.0"),
        (lambda: sherl.MTSA(3, 32, 8, seed=2**64), ValueError, "seed must be"),
        (lambda: sherl.TransformerLayer(32, 5), ValueError, "heads must divide the 32 features, got 5"),
        (lambda: sherl.TransformerLayer(32, 4, activation="mish"), ValueError, "activation must be one of"),
        (
            lambda: sherl.TransformerLayer.from_bert({}, 4),
            ValueError,
            "weights must be those of a BERT layer: missing attention.output",
        ),
        (lambda: sherl.TransformerLayer.from_bert({**bert_weights(), "extra": 1}, 4), ValueError, "unexpected extra"),
        (lambda: sherl.TransformerLayer.from_bert([1], 4), TypeError, "weights must be a dictionary"),
        (lambda: sherl.TransformerLayer.from_bert(bert_weights(), 5), ValueError, "heads must divide"),
        (
            lambda: sherl.TransformerLayer.from_bert(
                {**bert_weights(), "output.dense.bias": np.zeros(5, np.float32)}, 4
            ),
            ValueError,
            r"weights\['output.dense.bias'\] must have shape \(32,\), got \(5,\)",
        ),
        (
            lambda: sherl.TransformerLayer.from_bert({**bert_weights(), "output.dense.bias": np.full(32, np.nan)}, 4),
            ValueError,
            r"weights\['output.dense.bias'\] must hold finite",
        ),
        (
            lambda: sherl.TransformerLayer.from_bert({**bert_weights(), "intermediate.dense.weight": np.zeros(5)}, 4),
            ValueError,
            r"weights\['intermediate.dense.weight'\] must have two dimensions",
        ),
        (lambda: sherl.Classifier(32, 1), ValueError, "classes must be 2 or more, got 1"),
        (
            lambda: sherl.Classifier(32, 2, pool="median"),
            ValueError,
            "pool must be one of 'first', 'last', 'mean', 'max', 'position', got 'median'",
        ),
        (lambda: sherl.Classifier(32, 2, class_weights=[1]), ValueError, r"class_weights must have shape \(2,\)"),
        (lambda: sherl.Classifier(32, 2, class_weights=[1, -1]), ValueError, "class_weights must be 0 or more"),
        (lambda: sherl.Classifier(32, 2, label_smoothing=1), ValueError, "label_smoothing must be less than 1.0"),
        (
            lambda: sherl.Classifier(32, 2, multi_label=True, label_smoothing=0.1),
            ValueError,
            "must be left out with multi_label",
        ),
        (lambda: sherl.Classifier(32, 2, pooler="yes"), TypeError, "pooler must be True or False"),
        (lambda: sherl.Regressor(32, 0), ValueError, "outputs must be 1 or more"),
        (
            lambda: sherl.SideNetwork(None, [], sherl.Classifier(32, 2)),
            TypeError,
            "early must be an MTSA, got NoneType",
        ),
        (
            lambda: sherl.SideNetwork(sherl.MTSA(3, 32, 8), [], None),
            TypeError,
            "head must be a Classifier or a Regressor",
        ),
        (
            lambda: sherl.SideNetwork(sherl.MTSA(3, 32, 8), frozen_layer(), sherl.Classifier(32, 2)),
            TypeError,
            "late must be a sequence",
        ),
        (
            lambda: sherl.SideNetwork(sherl.MTSA(3, 32, 8), [3], sherl.Classifier(32, 2)),
            TypeError,
            r"late\[0\] must be a TransformerLayer or a Bottleneck, got int",
        ),
        (
            lambda: sherl.SideNetwork(sherl.MTSA(3, 16, 8), [frozen_layer()], sherl.Classifier(32, 2)),
            ValueError,
            r"late\[0\] must have the 16 features that early gives, got 32",
        ),
        (
            lambda: sherl.SideNetwork(sherl.MTSA(3, 32, 8), [frozen_layer()], sherl.Classifier(16, 2)),
            ValueError,
            r"head must have the 32 features that late\[0\] gives, got 16",
        ),
        (
            lambda: sherl.SideNetwork(sherl.MTSA(3, 32, 8, out_features=16), [], sherl.Classifier(16, 2)),
            ValueError,
            "early must have the 32 out_features of its last tap, got 16",
        ),
        (
            lambda: sherl.SideNetwork(
                sherl.MTSA(3, 32, 8), 2 * [sherl.TransformerLayer(32, 4)], sherl.Classifier(32, 2)
            ),
            ValueError,
            "late must not hold a trainable layer twice",
        ),
        (lambda: sherl.set_num_threads(0), ValueError, "threads must be 1 or more, got 0"),
        (lambda: sherl.set_num_threads("2"), TypeError, "threads must be a whole number"),
        (lambda: network().memory_plan(batch_size=0), ValueError, "batch_size must be 1 or more"),
        (lambda: network().memory_plan(optimizer="lion"), ValueError, "optimizer must be one of"),
        (lambda: network().predict(TAPS, batch_size=0), ValueError, "batch_size must be 1 or more"),
        (
            lambda: network().evaluate(TAPS, LABELS, metrics={"loss": max}),
            ValueError,
            "metrics must not be called 'loss'",
        ),
        (lambda: network().stepper(schedule="linear"), ValueError, "schedule 'linear' needs total_steps"),
        (lambda: network().load_state_dict([1]), TypeError, "state_dict must be a dictionary"),
        (lambda: network().load_state_dict({}), ValueError, "does not fit: missing early.down.0.weight"),
        (lambda: network().load_state_dict({"head.bias": ["a", "b"]}), TypeError, "head.bias must hold"),
        (
            lambda: network().vjp(TAPS, np.zeros((40, 3), np.float32)),
            ValueError,
            r"cotangent must have shape \(40, 2\), got \(40, 3\)",
        ),
        (lambda: frozen_layer()(TAPS[0][..., :31]), ValueError, "x must have 32 channels, got 31"),
        (lambda: frozen_layer()(TAPS[0][0]), ValueError, r"x must have shape \(batch, tokens, channels\)"),
        (
            lambda: frozen_layer().vjp(TAPS[0], TAPS[0][:3]),
            ValueError,
            r"cotangent must have the output's shape \(40, 7, 32\)",
        ),
        (
            lambda: frozen_layer().vjp(sherl.Features.from_arrays(TAPS[:1]), TAPS[0]),
            TypeError,
            "cotangent must be Features",
        ),
        (
            lambda: frozen_layer().vjp(
                sherl.Features.from_arrays(TAPS[:1]), sherl.Features.from_arrays(TAPS[:1], MASK)
            ),
            ValueError,
            "cotangent must have the lengths of the output",
        ),
        (lambda: sherl.MTSA(3, 32, 8)(TAPS, TAPS[0][..., :3]), ValueError, "last must have 32 channels, got 3"),
        (
            lambda: sherl.MTSA(3, 32, 8)(sherl.Features.from_arrays(TAPS), TAPS[0]),
            TypeError,
            "must be all padded arrays or all Features",
        ),
        (
            lambda: sherl.MTSA(3, 32, 8)(sherl.Features.from_arrays(TAPS), sherl.Features.from_arrays(TAPS[:1], MASK)),
            ValueError,
            "last must have as many rows in each sample",
        ),
        (
            lambda: sherl.Classifier(32, 2).vjp(taps_of()[0], np.zeros((12, 3), np.float32), mask_of()),
            ValueError,
            r"cotangent must have shape \(12, 2\)",
        ),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_weights_of_many_heads_are_checked_against_the_features():
    assert sherl.TransformerLayer.from_bert(bert_weights(), HEADS).features == FEATURES
