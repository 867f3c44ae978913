"""The linear probe against scikit-learn's own models and on degenerate input."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from sherl.training.probe import fit_linear_probe


def problem(classes, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((300, 6)).astype(np.float32)
    scores = features @ rng.standard_normal((6, classes))
    return features, scores


@pytest.mark.parametrize("classes, parameters", [(2, 7), (4, 28)])
def test_classification(classes, parameters):
    features, scores = problem(classes)
    targets = scores.argmax(axis=1)
    probe = fit_linear_probe(features, targets, "classification")
    predictions = probe.predict(features)
    assert predictions.shape == (300,) and np.mean(predictions == targets) > 0.95
    assert probe.num_parameters == parameters
    scale = features.std(axis=0, dtype=float) if probe.standardised else 1.0
    shift = features.mean(axis=0, dtype=float) if probe.standardised else 0.0
    inputs = (features.astype(float) - shift) / scale
    again = LogisticRegression(C=1 / probe.penalty, max_iter=1000).fit(inputs, targets)
    assert np.array_equal(again.predict(inputs), predictions)


def test_regression():
    features, scores = problem(1)
    probe = fit_linear_probe(features, 3 * scores[:, 0] + 2, "regression")
    assert np.allclose(probe.predict(features), 3 * scores[:, 0] + 2, atol=0.1)
    assert probe.num_parameters == 7


def test_channels_of_unlike_scale_are_standardised():
    features, scores = problem(2)
    targets = scores.argmax(axis=1)
    scale = 10.0 ** np.array([-4, 4, -3, 3, 0, -4])
    probe = fit_linear_probe(features * scale, targets, "classification")
    assert probe.standardised and np.mean(probe.predict(features * scale) == targets) > 0.95


def test_the_seed_alone_decides():
    features, scores = problem(2)
    targets = (scores[:, 0] + np.random.default_rng(1).standard_normal(300) > 0).astype(int)
    one, two = (fit_linear_probe(features, targets, "classification", seed=3) for _ in range(2))
    assert (one.standardised, one.penalty) == (two.standardised, two.penalty)
    assert np.array_equal(one.predict(features), two.predict(features))


@pytest.mark.parametrize("only", range(0, 300, 60))
def test_a_class_with_one_sample(only):
    features, _ = problem(2)
    targets = (np.arange(300) == only).astype(int)
    assert fit_linear_probe(features, targets, "classification").predict(features).shape == (300,)


def test_two_samples():
    predictions = fit_linear_probe([[0.0], [1.0]], [0, 1], "classification").predict([[-1.0], [2.0]])
    assert predictions.tolist() == [0, 1]


def test_bad_input_is_named():
    features, scores = problem(2)
    with pytest.raises(ValueError, match="features and targets must have shapes"):
        fit_linear_probe(features, np.zeros(299, dtype=int), "classification")
    with pytest.raises(ValueError, match="targets must hold at least two classes, got 1"):
        fit_linear_probe(features, np.zeros(300, dtype=int), "classification")
    with pytest.raises(ValueError, match="task must be"):
        fit_linear_probe(features, np.zeros(300, dtype=int), "ranking")
