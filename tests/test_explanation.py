"""What `explain` tells: weights and redundancies against the block's own output, for every kind of adapter."""

import numpy as np
import pytest
from small import FEATURES, image_network, image_taps, mask_of, network, problem, same_bits, taps_of

import sherl
from sherl.network.explanation import consolidate

pytestmark = pytest.mark.core

EPS = 1e-8


def plain(features, weight, bias, eps):
    """Return a_i and r_i of one row, by the equations of docs/method.md."""
    *shallow, guide = features.astype(np.float64)
    s = [x / (np.sqrt(x @ x) + eps) if x.any() else 0 * x for x in shallow]
    r = [sum(max(one @ other, 0) for other in s) for one in s]
    m = [max(weight @ (x * guide) + bias, 0) for x in shallow]
    t = [own / alike if alike else 0.0 for own, alike in zip(m, r)]
    return [own / (sum(t) + eps) for own in t], r


def test_consolidation_is_that_of_the_equations():
    rng = np.random.default_rng(0)
    features, weight = rng.standard_normal((5, 40, 6)).astype(np.float32), rng.standard_normal(6)
    features[1, 3] = 0  # a feature without a direction
    features[:4, 4] = 0
    weights, redundancy = consolidate(features, weight, np.array([0.3]), EPS)
    for row in range(40):
        a, r = plain(features[:, row], weight, 0.3, EPS)
        np.testing.assert_allclose(weights[row], a, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(redundancy[row], r, rtol=1e-10)
    assert weights[3, 1] == redundancy[3, 1] == 0
    assert not weights[4].any()


def rebuilt(net, taps, weights):
    """Return the output of an adapter, computed with these weights from its parameters."""

    def normed(z, name, eps):
        z = (z - z.mean(axis=1, keepdims=True)) / np.sqrt(z.var(axis=1, keepdims=True) + eps)
        return z * state[f"{name}.norm.weight"] + state[f"{name}.norm.bias"]

    state = {name.removeprefix("early."): value.astype(np.float64) for name, value in net.state_dict().items()}
    rows = [tap.reshape(-1, FEATURES).astype(np.float64) for tap in taps]
    x = []
    for number, row in enumerate(rows):
        name = f"down.{number}"
        x.append(normed(row @ state[f"{name}.weight"].T + state[f"{name}.bias"], name, 1e-5))
    g = sum(weights[:, [number]] * x[number] for number in range(len(x) - 1)) + x[-1]
    y = normed(np.maximum(g, 0) @ state["up.weight"].T + state["up.bias"], "up", 1e-12)
    return y + np.tanh(state["gate"] / 0.1) * rows[-1]


def test_the_blocks_output_follows_from_the_weights():
    net, taps = network(taps=4, late=0), taps_of(taps=4)
    told = net.explain(taps)
    assert told.weights.shape == told.redundancy.shape == (12 * 7, 3)
    assert told.names == ["tap 0", "tap 1", "tap 2"]
    np.testing.assert_allclose(rebuilt(net, taps, told.weights), net.early(taps).reshape(-1, FEATURES), atol=2e-5)


def test_weights_sum_to_one_or_are_zero_and_redundancy_is_bounded():
    net = network(taps=4)
    told = net.explain(taps_of(taps=4))
    sums = told.weights.sum(axis=1)
    assert np.all(np.isclose(sums, 1, atol=1e-4) | (sums == 0))
    assert told.unguided == np.mean(sums == 0)
    assert told.redundancy.min() > 1 - 1e-6 and told.redundancy.max() < 3 + 1e-6


def test_taps_that_are_alike_are_fully_redundant():
    net, tap = network(taps=3, late=0), taps_of(taps=1)[0]
    state = net.state_dict()
    for name in list(state):
        if name.startswith("early.down.1."):
            state[name] = state[name.replace("down.1", "down.0")]
    net.load_state_dict(state)
    told = net.explain([tap, tap, taps_of(taps=1, seed=1)[0]])
    np.testing.assert_allclose(told.redundancy, 2, rtol=1e-6)
    used = told.weights.any(axis=1)
    np.testing.assert_allclose(told.weights[used], 0.5, rtol=1e-4)


def test_ragged_rows_are_those_that_the_mask_leaves():
    net, taps, mask = network(), taps_of(), mask_of()
    told, whole = net.explain(taps, mask), net.explain(taps)
    np.testing.assert_array_equal(told.lengths, mask.sum(axis=1))
    np.testing.assert_allclose(told.weights, whole.weights.reshape(12, 7, 2)[mask], rtol=1e-5, atol=1e-7)
    mean = [rows.mean(axis=0) for rows in np.split(told.weights, np.cumsum(told.lengths)[:-1])]
    np.testing.assert_allclose(told.by_sample(), mean, rtol=1e-12)


def test_batches_and_threads_change_no_bit(keep_threads):
    net, (taps, _, mask) = network(), problem()
    features = sherl.Features.from_arrays(taps, mask)
    first = net.explain(features)
    sherl.set_num_threads(1)
    for batch_size in (1, 7, 1000):
        other = net.explain(features, batch_size=batch_size)
        np.testing.assert_allclose(other.weights, first.weights, rtol=1e-5, atol=1e-7)
    assert same_bits(net.explain(features).weights, first.weights)


@pytest.mark.parametrize("settings", [{"down": "gated"}, {"guidance": "residual_mlp"}, {"down": "relu"}])
def test_other_adapters(settings):
    told = network(late=0, **settings).explain(taps_of())
    sums = told.weights.sum(axis=1)
    assert told.weights.shape == (84, 2)
    assert np.all(np.isclose(sums, 1, atol=1e-4) | (sums == 0)) and sums.any()


def test_images_have_a_row_for_each_pixel_of_the_last_tap():
    told = image_network().explain(image_taps())
    assert told.weights.shape == (6 * 2 * 1, 3)
    np.testing.assert_array_equal(told.lengths, [2] * 6)
    assert told.by_sample().shape == (6, 3)


def test_spatial_guidance_has_one_row_a_sample_and_weighs_all_taps():
    net = sherl.SideNetwork(sherl.MTSA.clip(FEATURES, 3, 8, 16), [], sherl.Classifier(16, 2, pool="first"))
    tower = np.random.default_rng(3).standard_normal((12, 16)).astype(np.float32)
    told = net.explain([*taps_of(), tower], mask_of())
    assert told.weights.shape == (12, 3)
    np.testing.assert_array_equal(told.lengths, np.ones(12))


def test_names_are_the_states_that_the_features_tell():
    rows = [tap.reshape(-1, FEATURES) for tap in taps_of(taps=3)]
    for states, names in (([0, 2, 5], ["embedding", "layer 2"]), (["stem", "block", "last"], ["stem", "block"])):
        features = sherl.Features(rows, [7] * 12, source={"backbone": "b", "states": states})
        assert network().explain(features).names == names


def test_table_and_quantiles():
    told = network().explain(taps_of())
    assert [row["tap"] for row in told.table] == told.names
    assert told.table[0]["weight"] == pytest.approx(told.weights[:, 0].mean())
    quantiles = told.quantiles([0, 0.5, 1])
    np.testing.assert_array_equal(quantiles["redundancy"][[0, 2]],
                                  [told.redundancy.min(axis=0), told.redundancy.max(axis=0)])
    assert quantiles["weights"].shape == (3, 2)
    assert "tap 1" in repr(told) and "12 samples, 84 rows" in repr(told)
    assert "<td" in told._repr_html_()


def test_the_network_stays_as_it_is():
    net, (taps, labels, mask) = network(), problem()
    before = net.evaluate(taps, labels, mask)
    net.explain(taps, mask)
    assert net.evaluate(taps, labels, mask) == before


def test_bad_arguments_are_named():
    net = network()
    with pytest.raises(ValueError, match="taps must be 3 arrays, got 2"):
        net.explain(taps_of(taps=2))
    with pytest.raises(ValueError, match="batch_size must be"):
        net.explain(taps_of(), batch_size=0)
    with pytest.raises(TypeError, match="progress must be"):
        net.explain(taps_of(), progress=2)
