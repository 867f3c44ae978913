"""Heads that read one chosen row a sample: positions with features and arrays, in every call that takes them."""

import copy
import pickle

import numpy as np
import pytest
from small import FEATURES, mask_of, network, problem, same_bits, taps_of

import sherl

pytestmark = pytest.mark.core

TAPS, LABELS, MASK = problem()
MASK[:, 0] = np.arange(len(MASK)) % 3 > 0  # rows that are left out before those that are meant, too
MASK[:, -1] = True
LENGTHS = MASK.sum(axis=1)
POSITIONS = (5 * np.arange(len(LENGTHS)) + 2) % LENGTHS
FEATURES_OF_TAPS = sherl.Features.from_arrays(TAPS, MASK, POSITIONS)


def classifier(pool="position", **settings):
    return sherl.Classifier(FEATURES, 2, pool=pool, **settings)


def quick(net, **arguments):
    return net.fit(**{"epochs": 2, "batch_size": 8, "progress": False, "learning_rate": 1e-2} | arguments)


def moved_to_front(position):
    """The taps with the row of each sample that is read in place of the first that is meant, and that in its place."""
    moved = [tap.copy() for tap in TAPS]
    for sample, kept in enumerate(MASK):
        rows = np.flatnonzero(kept)
        swapped = rows.copy()
        swapped[[0, position[sample]]] = rows[[position[sample], 0]]
        for tap in moved:
            tap[sample, rows] = tap[sample, swapped]
    return moved


@pytest.mark.parametrize("pool", ["last", "position"])
@pytest.mark.parametrize("late", [0, 2])
def test_a_chosen_row_is_what_the_first_would_be_in_its_place(pool, late):
    """Attention without a mask does not know the order of the rows."""
    positions = POSITIONS if pool == "position" else LENGTHS - 1
    chosen, first = network(late=late, head=classifier(pool)), network(late=late, head=classifier("first"))
    given = {"positions": positions} if pool == "position" else {}
    moved = moved_to_front(positions)
    assert np.allclose(chosen.forward(TAPS, MASK, **given), first.forward(moved, MASK), atol=1e-5)
    loss, gradients = chosen.loss_and_gradients(TAPS, LABELS, MASK, **given)
    expected, expected_gradients = first.loss_and_gradients(moved, LABELS, MASK)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in expected_gradients.items():
        assert np.allclose(gradients[name], gradient, atol=1e-4 * max(1, np.abs(gradient).max())), name
    assert not np.allclose(chosen.forward(TAPS, MASK, **given), first.forward(TAPS, MASK), atol=1e-3)


def test_the_last_row_is_the_one_at_the_last_position():
    last, position = network(late=1, head=classifier("last")), network(late=1, head=classifier())
    assert same_bits(last.forward(TAPS, MASK), position.forward(TAPS, MASK, positions=LENGTHS - 1))


@pytest.mark.parametrize("positions",
                         [POSITIONS, POSITIONS.tolist(), POSITIONS.astype(np.uint8), POSITIONS[::-1][::-1]])
def test_arrays_and_features_give_the_same(positions):
    net = network(head=classifier())
    with_features = sherl.Features.from_arrays(TAPS, MASK).with_positions(positions)
    given = {"mask": MASK, "positions": positions}
    assert same_bits(net.forward(TAPS, **given), net.forward(with_features))
    assert same_bits(net.predict(TAPS, **given), net.predict(with_features))
    assert same_bits(net.predict_proba(TAPS, **given), net.predict_proba(with_features))
    assert net.evaluate(TAPS, LABELS, **given) == net.evaluate(with_features, LABELS)
    assert net.score(TAPS, LABELS, **given) == net.score(with_features, LABELS)
    loss, gradients = net.loss_and_gradients(TAPS, LABELS, **given)
    again, same_gradients = net.loss_and_gradients(with_features, LABELS)
    assert loss == again and same_bits(gradients, same_gradients)
    output, gradients = net.vjp(TAPS, np.ones((40, 2), np.float32), taps_gradient=True, **given)
    again, same_gradients = net.vjp(with_features, np.ones((40, 2), np.float32), taps_gradient=True)
    assert same_bits(output, again) and same_bits(output, net.forward(with_features))
    for tap in ("tap0", "tap1", "tap2"):
        assert same_bits(gradients[tap][MASK], same_gradients[tap].taps[0])
        assert not gradients[tap][~MASK].any()


def test_batches_and_selections_keep_the_positions():
    net = network(late=1, head=classifier())
    whole = net.forward(FEATURES_OF_TAPS)
    assert np.allclose(net.forward(FEATURES_OF_TAPS, batch_size=7), whole, atol=1e-5)
    index = np.array([31, 4, 4, 17])
    part = FEATURES_OF_TAPS[index]
    assert np.array_equal(part.positions, POSITIONS[index])
    assert np.array_equal(part[1:].positions, POSITIONS[index[1:]])
    assert np.allclose(net.forward(part), whole[index], atol=1e-5)
    assert np.allclose(net.forward(FEATURES_OF_TAPS[::-3]), whole[::-3], atol=1e-5)
    assert np.allclose(net.forward(FEATURES_OF_TAPS[POSITIONS > 1]), whole[POSITIONS > 1], atol=1e-5)
    assert np.allclose(net.forward(FEATURES_OF_TAPS[7]), whole[7:8], atol=1e-5)
    assert np.array_equal(FEATURES_OF_TAPS.select([0]).positions, POSITIONS)
    assert np.array_equal(part.astype("float16").positions, POSITIONS[index])
    for copied in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert np.array_equal(copied.positions, POSITIONS[index])
    other = part.with_positions(LENGTHS[index] - [1, 1, LENGTHS[4], 1])  # sample 4 twice, each with a row of its own
    assert np.array_equal(other.positions, LENGTHS[index] - [1, 1, LENGTHS[4], 1])
    assert np.array_equal(other[[2]].pooled(how="position"), FEATURES_OF_TAPS[4].pooled(how="first"))
    assert np.array_equal(other[[1]].pooled(how="position"), FEATURES_OF_TAPS[4].pooled(how="last"))
    assert np.array_equal(part.positions, POSITIONS[index])
    assert sherl.Features.from_arrays(TAPS, MASK).positions is None


def test_the_array_given_may_change_afterwards():
    positions = POSITIONS.copy()
    features = sherl.Features.from_arrays(TAPS, MASK, positions)
    positions[...] = 99
    assert np.array_equal(features.positions, POSITIONS)


def test_positions_are_part_of_the_fingerprint():
    bare = sherl.Features.from_arrays(TAPS, MASK)
    same = sherl.Features.from_arrays(TAPS, MASK, POSITIONS)
    assert same.fingerprint == FEATURES_OF_TAPS.fingerprint
    assert len({bare.fingerprint, same.fingerprint, same.with_positions(0 * POSITIONS).fingerprint}) == 3
    assert FEATURES_OF_TAPS[3:9:2].fingerprint == bare[3:9:2].with_positions(POSITIONS[3:9:2]).fingerprint


def test_heads_alone():
    x, mask = taps_of()[0], mask_of()
    lengths = mask.sum(axis=1)
    positions = lengths // 2
    head = classifier(pooler=True)
    reference = classifier("first", pooler=True)
    reference.load_state_dict(head.state_dict())
    rows = np.stack([row[kept][position] for row, kept, position in zip(x, mask, positions, strict=True)])[:, None]
    assert same_bits(head(x, mask, positions=positions), reference(rows))
    features = sherl.Features.from_arrays([x], mask, positions)
    assert same_bits(head(features), reference(rows))
    cotangent = np.random.default_rng(0).standard_normal((12, 2), np.float32)
    output, gradients = head.vjp(x, cotangent, mask, positions=positions)
    expected, expected_gradients = reference.vjp(rows, cotangent)
    assert same_bits(output, expected)
    spread = np.zeros_like(x)
    for sample, kept in enumerate(mask):
        spread[sample, np.flatnonzero(kept)[positions[sample]]] = expected_gradients["x"][sample, 0]
    assert same_bits(gradients.pop("x"), spread)
    del expected_gradients["x"]
    assert same_bits(gradients, expected_gradients)
    last = classifier("last", pooler=True)
    last.load_state_dict(head.state_dict())
    assert same_bits(last(x, mask), head(x, mask, positions=lengths - 1))


def test_fit_stepper_and_validation(tmp_path):
    validation = TAPS, LABELS, MASK, POSITIONS
    net = network(late=1, head=classifier(dropout=0.1), dropout=0.1)
    history = quick(net, taps=TAPS, labels=LABELS, mask=MASK, positions=POSITIONS, validation=validation)
    same = network(late=1, head=classifier(dropout=0.1), dropout=0.1)
    again = quick(same, taps=FEATURES_OF_TAPS, labels=LABELS, validation=(FEATURES_OF_TAPS, LABELS),
                  checkpoint=tmp_path / "state")
    assert same_bits(net.state_dict(), same.state_dict())
    assert history.epochs[-1]["validation_loss"] == again.epochs[-1]["validation_loss"]
    assert history.step_losses[-1] < history.step_losses[0]
    with pytest.raises(ValueError, match="data"):  # of other positions
        quick(network(late=1, head=classifier(dropout=0.1), dropout=0.1), labels=LABELS,
              taps=FEATURES_OF_TAPS.with_positions(0 * POSITIONS), validation=(FEATURES_OF_TAPS, LABELS),
              resume_from=tmp_path / "state")
    steps = [network(late=1, head=classifier()).stepper(learning_rate=1e-2) for _ in range(2)]
    losses = [steps[0](TAPS, LABELS, mask=MASK, positions=POSITIONS), steps[1](FEATURES_OF_TAPS, LABELS)]
    assert losses[0] == losses[1]
    assert same_bits(steps[0].network.state_dict(), steps[1].network.state_dict())


@pytest.mark.parametrize("budget", [None, "1 MiB"])
def test_a_loss_of_ones_own(budget):
    """The mean squared error in two phases is that of the regressor in one."""
    targets = np.random.default_rng(2).standard_normal((40, 2)).astype(np.float32)

    def squared_error(outputs, targets):
        return np.mean((outputs - targets) ** 2), 2 * (outputs - targets) / outputs.size

    own, usual = (network(late=1, head=sherl.Regressor(FEATURES, 2, pool="position", dropout=0.1)) for _ in range(2))
    for net, loss in ((own, squared_error), (usual, None)):
        quick(net, taps=TAPS, labels=targets, mask=MASK, positions=POSITIONS, loss=loss, memory_budget=budget,
              validation=(TAPS, targets, MASK, POSITIONS), metrics=[])
    for name, weight in usual.state_dict().items():
        assert np.allclose(own.state_dict()[name], weight, atol=2e-4), name


@pytest.mark.parametrize("pools", [("position", "first", "last"), ("mean", "position"), ("last", "mean")])
def test_sweep_gives_the_bits_of_fit(pools):
    settings = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2, "progress": False, "seed": 3}
    configurations = {pool: network(late=1, head=classifier(pool, dropout=0.1), dropout=0.1) for pool in pools}
    sherl.sweep(TAPS, LABELS, configurations, mask=MASK, positions=POSITIONS,
                validation=(TAPS, LABELS, MASK, POSITIONS), **settings)
    for pool, swept in configurations.items():
        alone = network(late=1, head=classifier(pool, dropout=0.1), dropout=0.1)
        alone.fit(FEATURES_OF_TAPS, LABELS, validation=(FEATURES_OF_TAPS, LABELS), **settings)
        assert same_bits(swept.state_dict(), alone.state_dict()), pool


def test_networks_are_saved_with_their_pooling(tmp_path):
    net = network(late=0, head=classifier())
    net.save_pretrained(tmp_path)
    assert same_bits(sherl.SideNetwork.from_pretrained(tmp_path).forward(FEATURES_OF_TAPS),
                     net.forward(FEATURES_OF_TAPS))


MISSING = 'positions must be given for "position" pooling, the number of a row for each sample'
WRONG = {
    "missing": (None, ValueError, MISSING),
    "reals": (POSITIONS.astype(float), TypeError, "positions must hold whole numbers, got dtype float64"),
    "bool": (POSITIONS > 0, TypeError, "positions must hold whole numbers, got dtype bool"),
    "too few": (POSITIONS[1:], ValueError, r"positions must have shape \(samples,\) = \(40,\), got \(39,\)"),
    "column": (POSITIONS[:, None], ValueError, r"positions must have shape \(samples,\) = \(40,\), got \(40, 1\)"),
    "behind the last row": (LENGTHS, ValueError, f"got {LENGTHS[0]} for sample 0, which has {LENGTHS[0]} row"),
    "negative": (POSITIONS - 9, ValueError, "positions must be from 0 to below the rows of their sample, got -"),
    "huge": (POSITIONS + 2**62, ValueError, "positions must be from 0 to below the rows"),
    "uneven": ([[0], [1, 2]], TypeError, "positions cannot be read as an array"),
}


@pytest.mark.parametrize("positions, error, message", WRONG.values(), ids=WRONG)
def test_wrong_positions(positions, error, message):
    net = network(late=1, head=classifier())
    before, bare = net.state_dict(), sherl.Features.from_arrays(TAPS, MASK)
    step = net.stepper()
    calls = [
        lambda: net.forward(TAPS, MASK, positions=positions),
        lambda: net.evaluate(TAPS, LABELS, MASK, positions=positions),
        lambda: net.loss_and_gradients(TAPS, LABELS, MASK, positions=positions),
        lambda: net.vjp(TAPS, np.ones((40, 2), np.float32), MASK, positions=positions),
        lambda: quick(net, taps=TAPS, labels=LABELS, mask=MASK, positions=positions),
        lambda: quick(net, taps=FEATURES_OF_TAPS, labels=LABELS, validation=(TAPS, LABELS, MASK, positions)),
        lambda: step(TAPS, LABELS, MASK, positions=positions),
        lambda: sherl.sweep(TAPS, LABELS, {"a": net}, mask=MASK, positions=positions, progress=False),
        lambda: net.head(TAPS[0], MASK, positions=positions),
        lambda: net.head.vjp(TAPS[0], np.ones((40, 2), np.float32), MASK, positions=positions),
    ]
    if positions is None:
        calls += [lambda: net.forward(bare), lambda: net.head(bare.select([0])), lambda: bare.pooled(how="position")]
    else:
        calls += [lambda: bare.with_positions(positions),
                  lambda: sherl.Features(bare.taps, LENGTHS, positions=positions)]
    for call in calls:
        with pytest.raises(error, match=message):
            call()
    assert same_bits(before, net.state_dict())


def test_positions_go_with_arrays():
    net = network(head=classifier())
    for call in (
        lambda: net.forward(FEATURES_OF_TAPS, positions=POSITIONS),
        lambda: net.fit(FEATURES_OF_TAPS, LABELS, positions=POSITIONS),
        lambda: net.head(FEATURES_OF_TAPS.select([0]), positions=POSITIONS),
    ):
        with pytest.raises(ValueError, match="positions goes with padded arrays; Features have their own"):
            call()
    with pytest.raises(TypeError, match=r"\(taps, labels, mask\) or \(taps, labels, mask, positions\)"):
        net.fit(FEATURES_OF_TAPS, LABELS, validation=(TAPS, LABELS, MASK, POSITIONS, None))


def test_other_heads_leave_positions_unread():
    net = network(head=classifier("mean"))
    assert same_bits(net.forward(FEATURES_OF_TAPS), net.forward(sherl.Features.from_arrays(TAPS, MASK)))
