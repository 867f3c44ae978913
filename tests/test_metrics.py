"""Metrics held against scikit-learn and SciPy over drawn inputs, with their answers for degenerate ones."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import assume, given
from hypothesis import strategies as st

from sherl.training.metrics import (
    METRICS,
    TASK_METRICS,
    accuracy,
    default_metrics,
    exact_match,
    f1,
    matthews_correlation,
    pearson,
    retrieval,
    span_f1,
    spearman,
)


@st.composite
def class_pairs(draw):
    ids = draw(st.sampled_from([[0, 1], [0, 1, 2], [-3, 5], [1], list(range(7)), [-(2**62), 2**62]]))
    size = draw(st.integers(1, 40))
    column = st.lists(st.sampled_from(ids), min_size=size, max_size=size)
    dtype = draw(st.sampled_from([np.int64, ">i8"]))
    return np.array(draw(column), dtype=dtype), np.array(draw(column), dtype=np.int64)


@st.composite
def value_pairs(draw):
    size = draw(st.integers(2, 40))
    exponent = draw(st.integers(-30, 30))
    # Few distinct values, so that ties are common.
    number = st.one_of(st.integers(-4, 4), st.floats(-8, 8).map(lambda x: round(x, 3)))
    column = st.lists(number, min_size=size, max_size=size)
    return np.array(draw(column)) * 10.0**exponent, np.array(draw(column), dtype=float)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def same(value, expected, tolerance=1e-12):
    assert isinstance(value, float)
    assert value == pytest.approx(float(expected), abs=tolerance, nan_ok=True)


@given(class_pairs())
def test_accuracy_agrees_with_scikit_learn(pair):
    same(accuracy(*pair), sklearn.metrics.accuracy_score(pair[1], pair[0]))


@given(class_pairs())
def test_f1_agrees_with_scikit_learn(pair):
    predictions, targets = pair
    binary = set(predictions) | set(targets) <= {0, 1}
    if binary and 1 not in predictions and 1 not in targets:
        assert math.isnan(f1(predictions, targets))
        return
    average = "binary" if binary else "macro"
    same(f1(predictions, targets), sklearn.metrics.f1_score(targets, predictions, average=average))


@given(class_pairs())
def test_matthews_agrees_with_scikit_learn(pair):
    predictions, targets = pair
    if len(set(predictions)) == 1 or len(set(targets)) == 1:
        assert math.isnan(matthews_correlation(predictions, targets))
        return
    same(matthews_correlation(predictions, targets), sklearn.metrics.matthews_corrcoef(targets, predictions))


@given(value_pairs())
def test_pearson_agrees_with_scipy(pair):
    assume(all(np.ptp(values) > 0 for values in pair))
    same(pearson(*pair), scipy.stats.pearsonr(*pair).statistic, 1e-9)


@given(value_pairs())
def test_spearman_agrees_with_scipy(pair):
    assume(all(np.ptp(values) > 0 for values in pair))
    same(spearman(*pair), scipy.stats.spearmanr(*pair).statistic, 1e-12)


@given(value_pairs())
def test_spearman_reads_the_order_alone(pair):
    predictions, targets = pair
    assert spearman(np.arcsinh(predictions), targets) == pytest.approx(spearman(predictions, targets), nan_ok=True)


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_correlations_of_degenerate_input_are_nan(correlation):
    ramp = [1.0, 2.0, 3.0]
    for values in ([0.1] * 3, [1.0, np.nan, 2.0], [1e308] * 3, [5e-324] * 3):
        assert math.isnan(correlation(values, ramp)) and math.isnan(correlation(ramp, values))
    assert math.isnan(correlation([2.0], [3.0]))


def test_infinity_has_a_rank_but_no_size():
    assert math.isnan(pearson([1.0, np.inf, 2.0], [1.0, 3.0, 2.0]))
    same(spearman([1.0, np.inf, -np.inf], [1.0, 3.0, -2.0]), 1.0)


@pytest.mark.parametrize("scale", [1e308, 1e-300, 5e-324, 1e160])
def test_correlations_at_the_ends_of_the_range(scale):
    values = np.array([-1.0, 1.0, 0.0, 1.0]) * scale
    for correlation in (pearson, spearman):
        same(correlation(values, values), 1.0)
        same(correlation(values, -values), -1.0)


def test_correlation_never_leaves_its_bounds():
    rng = np.random.default_rng(0)
    for _ in range(300):
        values = rng.standard_normal(7)
        assert pearson(values, values * 3 + 1) <= 1.0 and pearson(values, -values / 7) >= -1.0


def test_integer_and_float32_values_are_widened():
    large = np.array([16777216, 16777217, 16777219], dtype=np.int64)
    same(pearson(large, np.array([0, 1, 3], dtype=np.float32)), 1.0)


@pytest.mark.parametrize("name", sorted(set(METRICS) - set(TASK_METRICS["spans"])))
def test_bad_input_is_named(name):
    with pytest.raises(ValueError, match=r"predictions must have shape \(samples,\) .* got \(0,\)"):
        METRICS[name]([], [])
    with pytest.raises(ValueError, match=r"targets must have shape \(samples,\) .* got \(1, 2\)"):
        METRICS[name]([0, 1], [[0, 1]])
    with pytest.raises(ValueError, match="predictions and targets must be equally many, got 2 and 3"):
        METRICS[name]([0, 1], [0, 1, 1])
    with pytest.raises(TypeError, match="targets must hold .*, got dtype <U1"):
        METRICS[name]([0, 1], ["0", "1"])


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews_correlation"])
def test_class_metrics_refuse_values(name):
    with pytest.raises(TypeError, match="predictions must hold integer class ids, got dtype float64"):
        METRICS[name]([0.2, 0.8], [0, 1])


def test_default_metrics():
    assert default_metrics("classification") == ("accuracy", "f1")
    assert default_metrics("regression") == ("pearson", "spearman")
    for task, suitable in TASK_METRICS.items():
        assert set(default_metrics(task)) <= set(suitable) <= set(METRICS)
    message = "task must be 'classification', 'regression', 'spans' or 'language', got 'ranking'"
    with pytest.raises(ValueError, match=message):
        default_metrics("ranking")


SPANS = [[0, 3], [2, 2], [5, 6], [1, 1]], [[0, 3], [2, 5], [0, 4], [0, 9]]


def test_spans():
    assert exact_match(*SPANS) == 0.25
    assert span_f1(*SPANS) == pytest.approx((1 + 2 / 5 + 0 + 2 / 11) / 4)


@pytest.mark.parametrize("name", TASK_METRICS["spans"])
def test_bad_spans_are_named(name):
    with pytest.raises(ValueError, match=r"predictions must have shape \(samples, 2\) .* got \(2,\)"):
        METRICS[name]([0, 1], [[0, 1]])
    with pytest.raises(TypeError, match="targets must hold integer row numbers, got dtype float64"):
        METRICS[name]([[0, 1]], [[0, 1.5]])
    with pytest.raises(ValueError, match="targets must not end before they begin"):
        METRICS[name]([[0, 1]], [[1, 0]])
    with pytest.raises(ValueError, match="equally many, got 1 and 2"):
        METRICS[name]([[0, 1]], [[0, 1], [1, 1]])


def ranks(similarity, pairs):
    """For each row the place of its best match when others that are equally near come first."""
    found = []
    for row, values in enumerate(similarity):
        matches = [b for a, b in pairs if a == row]
        if matches:
            order = sorted(range(len(values)), key=lambda b: (-values[b], b in matches))
            found.append(1 + min(order.index(b) for b in matches))
    return np.array(found)


@pytest.mark.parametrize("seed", range(5))
def test_retrieval(seed):
    generator = np.random.default_rng(seed)
    similarity = generator.integers(0, 12, (14, 30)).astype(np.float32)
    pairs = np.unique(np.stack([generator.integers(0, 13, 25), generator.integers(0, 30, 25)], axis=1), axis=0)
    scores = retrieval(similarity, pairs)
    expected = {"a_to_b": ranks(similarity, pairs), "b_to_a": ranks(similarity.T, pairs[:, ::-1])}
    for name, found in expected.items():
        for count in (1, 5, 10):
            assert scores[f"{name}_r{count}"] == pytest.approx(100 * np.mean(found <= count))
        assert scores[f"{name}_median_rank"] == np.median(found)
    assert scores["rsum"] == pytest.approx(sum(scores[f"{name}_r{count}"] for name in expected for count in (1, 5, 10)))


def test_retrieval_of_aligned_rows_and_bad_input():
    scores = retrieval(np.array([[3, 1, 2], [5, 4, 0], [0, 0, 9]]))
    assert scores["a_to_b_r1"] == pytest.approx(200 / 3)
    assert scores["a_to_b_r5"] == 100
    assert scores["b_to_a_r1"] == pytest.approx(200 / 3)
    assert scores["a_to_b_median_rank"] == 1
    with pytest.raises(ValueError, match="pairs must be given where the two kinds are not equally many, got 2 and 3"):
        retrieval(np.ones((2, 3)))
    with pytest.raises(ValueError, match="pairs must be numbers below 2 and 3"):
        retrieval(np.ones((2, 3)), [[0, 3]])
    with pytest.raises(ValueError, match="must not hold nan"):
        retrieval([[np.nan]])
