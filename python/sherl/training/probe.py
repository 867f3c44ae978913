"""A linear probe: scikit-learn's linear model on pooled frozen features, the baseline for a side network."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from .._typing import Array, ArrayLike
from .metrics import METRICS, default_metrics

__all__ = ["LinearProbe", "fit_linear_probe"]

# From the strongest, which takes the fewest iterations.
_PENALTIES = (1000.0, 100.0, 10.0, 1.0, 0.1)
_PATIENCE = 2
_HELD_IN = 0.1


class LinearProbe:
    """A fitted linear model on pooled features.

    Attributes
    ----------
    standardised : bool
        Whether each channel is shifted and scaled to mean 0 and deviation 1 over the training samples first.
    penalty : float
        Weight of the squared norm of the coefficients beside the sum of the samples' losses.
    num_parameters : int
        Trained coefficients and intercepts.
    """

    def __init__(self, model: Any, standardised: bool, penalty: float) -> None:
        self._model = model
        self.standardised = standardised
        self.penalty = penalty
        last = model[-1]
        self.num_parameters = int(np.size(last.coef_) + np.size(last.intercept_))

    def predict(self, features: ArrayLike) -> Array:
        """Predict the targets of samples.

        Parameters
        ----------
        features : numpy.ndarray of shape (samples, channels)

        Returns
        -------
        numpy.ndarray of shape (samples,)
            Class ids (int64) or values (float64).
        """
        predicted: Array = self._model.predict(features)
        return predicted


def fit_linear_probe(features: ArrayLike, targets: ArrayLike, task: str, seed: int = 0) -> LinearProbe:
    """Fit scikit-learn's LogisticRegression or Ridge on pooled features.

    Whether to standardise the features, and the penalty (1000 to 0.1), are chosen by the first default metric of the
    task on a tenth of the samples held in for it; then the model is fitted on all of them. Penalties are tried from the
    strongest on until two in a row score no better than the best before.

    Parameters
    ----------
    features : array_like of float, shape (samples, channels)
        Pooled features.
    targets : array_like, shape (samples,)
        Class ids for classification, values for regression.
    task : {"classification", "regression"}
    seed : int
        Which samples are held in.

    Returns
    -------
    LinearProbe

    Raises
    ------
    ImportError
        Where scikit-learn is not installed.
    ValueError
        Where the arguments do not fit together, or there is only one class.
    """
    features, targets = np.asarray(features, dtype=np.float64), np.asarray(targets)
    metric = METRICS[default_metrics(task)[0]]
    if features.ndim != 2 or targets.shape != features.shape[:1]:
        raise ValueError(
            f"features and targets must have shapes (samples, channels) and (samples,), got {features.shape} and "
            f"{targets.shape}"
        )
    if task == "classification" and len(np.unique(targets)) < 2:
        raise ValueError(f"targets must hold at least two classes, got {len(np.unique(targets))}")
    order = np.random.default_rng(seed).permutation(len(targets))
    held_in, rest = np.split(order, [max(1, int(_HELD_IN * len(order)))])

    scores = {}
    for standardised in (True, False) if len(np.unique(targets[rest])) > 1 else ():
        path = []
        for penalty in _PENALTIES:
            model = _fitted(features[rest], targets[rest], task, standardised, penalty)
            score = np.nan_to_num(metric(model.predict(features[held_in]), targets[held_in]), nan=-np.inf)
            scores[standardised, penalty] = score
            path.append(score)
            if len(path) - 1 - int(np.argmax(path)) >= _PATIENCE:
                break
    best = max(scores, key=lambda candidate: scores[candidate]) if scores else (True, 1.0)
    return LinearProbe(_fitted(features, targets, task, *best), *best)


def _fitted(features: Array, targets: Array, task: str, standardised: bool, penalty: float) -> Any:
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise ImportError("a linear probe needs the scikit-learn package: pip install scikit-learn") from None
    if task == "classification":
        model = LogisticRegression(C=1.0 / penalty, max_iter=1000)
    else:
        model = Ridge(alpha=penalty)
    model = make_pipeline(StandardScaler(), model) if standardised else make_pipeline(model)
    with warnings.catch_warnings():
        # Held-in validation judges the model as it is after the last iteration.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(features, targets)
