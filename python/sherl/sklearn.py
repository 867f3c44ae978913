"""Estimators for scikit-learn: a classifier, a regressor, and a transformer of samples to frozen features."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from ._typing import (
    Array,
    ArrayLike,
    ByteCount,
    Down,
    Element,
    Guidance,
    Optimizer,
    PathLike,
    Pooling,
    Schedule,
    UpNorm,
)
from .blocks.late import OwnLayer

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin, clone
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_consistent_length, check_random_state, check_X_y, column_or_1d, compute_class_weight
    from sklearn.utils.multiclass import check_classification_targets, type_of_target
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    raise ImportError(
        "sherl.sklearn needs the scikit-learn package, 1.6 or later: pip install 'sherl[sklearn]'"
    ) from None

from .backbones import load_backbone
from .blocks import MTSA, Classifier, Regressor
from .features import Features
from .features.writer import BeingWritten
from .network import SideNetwork

if TYPE_CHECKING:
    pass

__all__ = ["FrozenFeatures", "SherlClassifier", "SherlRegressor"]

_LARGEST_SEED = 2**31 - 1


class _Shared(BaseEstimator):
    """Estimators whose clones share frozen layers and backbones, which are large and never change."""

    def __sklearn_clone__(self) -> Any:
        settings = self.get_params(deep=False).items()
        return type(self)(**{name: value if name in ("late", "backbone") else clone(value, safe=False)
                             for name, value in settings})


class _SherlEstimator(_Shared):
    """What classifier and regressor share: reading of samples, the network, the training."""

    def __init__(self, hidden: int | None = None, late: Sequence[OwnLayer] | str = (), pool: Pooling = "mean", *,
                 down: Down = "layernorm", guidance: Guidance = "token", up_norm: UpNorm | None = "layernorm",
                 pooler: bool = False, dropout: float = 0.1, epochs: int = 20, batch_size: int = 32,
                 learning_rate: float = 3e-3, optimizer: Optimizer = "adamw", weight_decay: float = 0.01,
                 schedule: Schedule = "linear", warmup: float = 0.06, clip_norm: float | None = 1.0,
                 validation_fraction: float | None = None, patience: int | None = None,
                 memory_budget: ByteCount | None = None, random_state: int | np.random.RandomState | None = None,
                 progress: bool = False) -> None:
        self.hidden = hidden
        self.late = late
        self.pool = pool
        self.down = down
        self.guidance = guidance
        self.up_norm = up_norm
        self.pooler = pooler
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.warmup = warmup
        self.clip_norm = clip_norm
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.memory_budget = memory_budget
        self.random_state = random_state
        self.progress = progress

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _read(self, X: Any, fitting: bool = False) -> Features:
        """Return samples as features of two taps or more."""
        if not isinstance(X, Features):
            X = np.asarray(X) if isinstance(X, (list, tuple)) else X
            X = _features_of(validate_data(self, X, dtype=[np.float32, np.float64], allow_nd=True, reset=fitting,
                                           ensure_2d=len(getattr(X, "shape", ())) < 3))
        return X.select([0, 0]) if len(X.channels) == 1 else X

    def _read_targets(self, features: Features, y: ArrayLike, numbers: bool) -> Array:
        _, y = check_X_y(np.empty((len(features), 0)), y, multi_output=True, y_numeric=numbers, estimator=self,
                         ensure_min_features=0)
        return y

    def _train(self, features: Features, targets: Array, head: Classifier | Regressor, sample_weight: ArrayLike | None,
               strata: Array | None = None) -> Any:
        """Make the network and train it."""
        random = check_random_state(self.random_state)
        seed = int(random.randint(_LARGEST_SEED))
        hidden = max(8, max(features.channels) // 8) if self.hidden is None else self.hidden
        early = MTSA(len(features.channels), features.channels, hidden, down=self.down, guidance=self.guidance,
                     up_norm=self.up_norm, dropout=self.dropout)
        late = features.layers if isinstance(self.late, str) and self.late == "features" else self.late
        if isinstance(late, str) or not hasattr(late, "__iter__"):
            raise TypeError(f"late must be a sequence of layers or \"features\", got {late!r:.80}")
        late = [copy.deepcopy(layer) if getattr(layer, "trainable", False) else layer for layer in late]
        weights = None if sample_weight is None else column_or_1d(sample_weight, dtype=np.float64)
        check_consistent_length(features, weights)
        held_out, kept = None, slice(None)
        if self.validation_fraction is not None:
            kept, held_out = train_test_split(np.arange(len(features)), test_size=self.validation_fraction,
                                              random_state=random, stratify=strata)
        self.network_ = SideNetwork(early, late, head, seed=seed)
        self.history_ = self.network_.fit(
            features[kept], targets[kept], sample_weight=None if weights is None else weights[kept], epochs=self.epochs,
            batch_size=self.batch_size, learning_rate=self.learning_rate, optimizer=self.optimizer,
            weight_decay=self.weight_decay, schedule=self.schedule, warmup=self.warmup, clip_norm=self.clip_norm,
            validation=None if held_out is None else (features[held_out], targets[held_out]),
            restore_best=held_out is not None, patience=self.patience, seed=seed, memory_budget=self.memory_budget,
            progress=self.progress,
        )
        return self

    def _computed(self, name: str, X: Any) -> Array:
        """Return what a method of the network gives for samples."""
        check_is_fitted(self)
        method = getattr(self.network_, name)
        computed: Array = method(self._read(X), memory_budget=self.memory_budget, progress=self.progress)
        return computed


class SherlClassifier(ClassifierMixin, _SherlEstimator):
    """Side network that classifies, as an estimator of scikit-learn.

    Samples are `Features`, which are ragged and hold any number of taps, or an array. An array has the axes samples,
    taps, rows and channels, of which inner ones may be left out: (samples, channels) is one row a sample, (samples,
    taps, channels) one row a sample from several taps, (samples, taps, rows, channels) everything, without padding.
    Where there is one tap, it is both the feature that is weighed and its own guide.

    Parameters
    ----------
    hidden : int, optional
        Channels after the down maps; an eighth of those of the widest tap, and 8 at least, when None.
    late : sequence of TransformerLayer, Bottleneck or BasicBlock, or "features"
        Late layers, such as ``backbone.layers[-1:]``; or those that came with the features, `Features.layers`. Clones
        of the estimator share them; those that are trained are copied by `fit`.
    pool : {"mean", "first", "last", "max", "position"}
        How a sample's rows become one, as for `sherl.Classifier`.
    down, guidance, up_norm, dropout
        Of the adapter, as for `sherl.MTSA`; `guidance` is "token" or "residual_mlp".
    pooler : bool
        Whether a linear map to as many features and tanh come before the output map.
    class_weight : dict, "balanced" or None
        By what the loss of each class counts, by label; "balanced" is one over its frequency.
    label_smoothing : float
        Share of each target that is spread over all classes.
    epochs, batch_size, learning_rate, optimizer, weight_decay, schedule, warmup, clip_norm, memory_budget
        As for `sherl.SideNetwork.fit`.
    validation_fraction : float, optional
        Share of the samples that is held out; the network gets the weights of the epoch that is best on them.
    patience : int, optional
        With `validation_fraction`: epochs without a better one after which the training ends.
    random_state : int, numpy.random.RandomState or None
        Of the first weights, the order of the samples, dropout and what is held out.
    progress : bool
        Whether to show progress bars, where tqdm is installed.

    Attributes
    ----------
    classes_ : numpy.ndarray of shape (classes,)
        The labels; where samples have several, the numbers of their columns.
    network_ : SideNetwork
    history_ : History
    """

    def __init__(self, hidden: int | None = None, late: Sequence[OwnLayer] | str = (), pool: Pooling = "mean", *,
                 down: Down = "layernorm", guidance: Guidance = "token", up_norm: UpNorm | None = "layernorm",
                 pooler: bool = False, dropout: float = 0.1, class_weight: Mapping[Any, float] | str | None = None,
                 label_smoothing: float = 0.0, epochs: int = 20, batch_size: int = 32, learning_rate: float = 3e-3,
                 optimizer: Optimizer = "adamw", weight_decay: float = 0.01, schedule: Schedule = "linear",
                 warmup: float = 0.06, clip_norm: float | None = 1.0, validation_fraction: float | None = None,
                 patience: int | None = None, memory_budget: ByteCount | None = None,
                 random_state: int | np.random.RandomState | None = None, progress: bool = False) -> None:
        super().__init__(
            hidden, late, pool, down=down, guidance=guidance, up_norm=up_norm, pooler=pooler, dropout=dropout,
            epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, optimizer=optimizer,
            weight_decay=weight_decay, schedule=schedule, warmup=warmup, clip_norm=clip_norm,
            validation_fraction=validation_fraction, patience=patience, memory_budget=memory_budget,
            random_state=random_state, progress=progress,
        )
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> SherlClassifier:
        """Train on samples.

        Parameters
        ----------
        X : Features, or array_like of shape (samples, channels), (samples, taps, channels) or \
        (samples, taps, rows, channels)
        y : array_like of shape (samples,), or (samples, labels) of 0 and 1
            Labels of any kind, or of several labels which ones a sample has.
        sample_weight : array_like of float, shape (samples,), optional
            By what each sample's loss counts.

        Returns
        -------
        SherlClassifier
            Itself.
        """
        features = self._read(X, fitting=True)
        y = self._read_targets(features, y, numbers=False)
        check_classification_targets(y)
        several = type_of_target(y) == "multilabel-indicator"
        y = y if several else column_or_1d(y, warn=True)
        self.classes_, targets = (np.arange(y.shape[1]), y) if several else np.unique(y, return_inverse=True)
        if len(self.classes_) < 2 and not several:
            raise ValueError(f"y must hold at least two classes, got one class: {self.classes_[0]!r}")
        if several and self.class_weight is not None:
            raise ValueError("class_weight must be None where samples have several labels")
        weights = self.class_weight
        if weights is not None:
            weights = compute_class_weight(weights, classes=self.classes_, y=y)
        head = Classifier(features.channels[-1], len(self.classes_), pool=self.pool, pooler=self.pooler,
                          label_smoothing=self.label_smoothing, class_weights=weights, multi_label=several)
        return self._train(features, targets, head, sample_weight, None if several else targets)

    def predict(self, X: Any) -> Array:
        """Predict labels.

        Parameters
        ----------
        X
            As for `fit`.

        Returns
        -------
        numpy.ndarray of shape (samples,), or (samples, labels) of 0 and 1
        """
        numbers = self._computed("predict", X)
        several = cast(Classifier, self.network_.head).multi_label
        return numbers if several else self.classes_[numbers]

    def predict_proba(self, X: Any) -> Array:
        """Compute probabilities of the classes.

        Parameters
        ----------
        X
            As for `fit`.

        Returns
        -------
        numpy.ndarray of float32, shape (samples, classes)
            In the order of `classes_`.
        """
        return self._computed("predict_proba", X)

    def decision_function(self, X: Any) -> Array:
        """Compute the outputs of the network.

        Parameters
        ----------
        X
            As for `fit`.

        Returns
        -------
        numpy.ndarray of float32, shape (samples, classes)
            Logits in the order of `classes_`; of two classes what the second has more than the first, (samples,).
        """
        logits = self._computed("forward", X)
        two = len(self.classes_) == 2 and not cast(Classifier, self.network_.head).multi_label
        return logits[:, 1] - logits[:, 0] if two else logits


class SherlRegressor(RegressorMixin, _SherlEstimator):
    """Side network that predicts numbers, as an estimator of scikit-learn.

    Targets are shifted and scaled to mean 0 and deviation 1 for the training. Samples are as for `SherlClassifier`.

    Parameters
    ----------
    hidden, late, pool, down, guidance, up_norm, pooler, dropout, epochs, batch_size, learning_rate, optimizer, \
    weight_decay, schedule, warmup, clip_norm, validation_fraction, patience, memory_budget, random_state, progress
        As for `SherlClassifier`.

    Attributes
    ----------
    target_mean_, target_scale_ : numpy.ndarray of float64, shape () or (outputs,)
    network_ : SideNetwork
    history_ : History
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> SherlRegressor:
        """Train on samples.

        Parameters
        ----------
        X
            As for `SherlClassifier.fit`.
        y : array_like of float, shape (samples,) or (samples, outputs)
        sample_weight : array_like of float, shape (samples,), optional
            By what each sample's loss counts.

        Returns
        -------
        SherlRegressor
            Itself.
        """
        features = self._read(X, fitting=True)
        y = self._read_targets(features, y, numbers=True).astype(np.float64)
        self.target_mean_, scale = y.mean(axis=0), y.std(axis=0)
        self.target_scale_ = np.where(scale > 0, scale, 1.0)
        self._flat = y.ndim == 1
        head = Regressor(features.channels[-1], 1 if self._flat else y.shape[1], pool=self.pool, pooler=self.pooler)
        return self._train(features, (y - self.target_mean_) / self.target_scale_, head, sample_weight)

    def predict(self, X: Any) -> Array:
        """Predict numbers.

        Parameters
        ----------
        X
            As for `SherlClassifier.fit`.

        Returns
        -------
        numpy.ndarray of float64, shape (samples,) or (samples, outputs)
        """
        predicted = self._computed("predict", X)
        predicted = predicted if self._flat else predicted.reshape(len(predicted), -1)
        return predicted * self.target_scale_ + self.target_mean_


class FrozenFeatures(TransformerMixin, _Shared):
    """Transformer of samples (texts, images, …) to `Features`, by a frozen backbone.

    It learns nothing, so that it may be used without `fit`.

    Parameters
    ----------
    backbone : str, path-like, or backbone of `load_backbone`
        What `load_backbone` loads; each process loads it once. A loaded one is shared by clones, but does not go to
        other processes.
    taps, dtype, batch_size, max_length, preprocessed, progress
        As for the backbone's `extract`.
    tower : {"text", "image"}, optional
        As for `load_backbone`.
    cache : str or path-like, optional
        Folder in which the states of each set of samples are kept, on disk, for the next time that they are asked for:
        by another candidate of a search, in another process, or tomorrow. What another process computes is waited for.
        Nothing is ever removed from it.
    """

    def __init__(self, backbone: Any, taps: str | Sequence[int] = "all", *, dtype: Element = "float32",
                 batch_size: int = 128, max_length: int | None = None, preprocessed: bool = False,
                 tower: Literal["text", "image"] | None = None, cache: PathLike | None = None,
                 progress: bool = False) -> None:
        self.backbone = backbone
        self.taps = taps
        self.dtype = dtype
        self.batch_size = batch_size
        self.max_length = max_length
        self.preprocessed = preprocessed
        self.tower = tower
        self.cache = cache
        self.progress = progress

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: Any = None, y: Any = None) -> FrozenFeatures:
        """Return the transformer itself.

        Parameters
        ----------
        X, y
            Not used.
        """
        return self

    def transform(self, X: Any) -> Features:
        """Compute hidden states.

        Parameters
        ----------
        X : sequence, numpy.ndarray, or a series or frame of pandas
            Samples as the backbone's `extract` takes them; of text in two columns each row is a pair.

        Returns
        -------
        Features
        """
        backbone = self.backbone
        if not hasattr(backbone, "extract"):
            backbone = _loaded(str(backbone), self.tower, _stamp(backbone))
        samples = X.to_numpy() if hasattr(X, "to_numpy") else X
        out = None
        if self.cache is not None:
            settings = [backbone.fingerprint, self.taps, self.dtype, self.max_length, self.preprocessed,
                        self.batch_size]
            out = Path(self.cache) / _fingerprint(settings, samples)
        while True:
            try:
                return backbone.extract(samples, self.taps, batch_size=self.batch_size, max_length=self.max_length,
                                        dtype=self.dtype, preprocessed=self.preprocessed, progress=self.progress,
                                        out=out)
            except BeingWritten:
                time.sleep(0.1)


def _features_of(X: Array) -> Features:
    """Return an array as features."""
    if X.ndim == 4:
        return Features.from_arrays(list(X.swapaxes(0, 1)))
    if X.ndim > 4:
        raise ValueError("X must have shape (samples, channels), (samples, taps, channels) or "
                         f"(samples, taps, rows, channels), got {X.shape}")
    return Features([X] if X.ndim == 2 else list(X.swapaxes(0, 1)), np.ones(len(X), np.int64))


def _fingerprint(settings: list[Any], samples: Iterable[Any]) -> str:
    """Return the SHA-256 of settings and samples, in hexadecimal."""
    digest = hashlib.sha256(repr([list(value) if isinstance(value, tuple) else value for value in settings]).encode())
    for sample in samples:
        array = np.asarray(sample)
        if array.dtype.kind in "OU":
            digest.update(json.dumps(array.tolist()).encode())
        else:
            digest.update(repr((array.dtype.str, array.shape)).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=2)
def _loaded(path: str, tower: Literal["text", "image"] | None, stamp: tuple[Any, ...]) -> Any:
    return load_backbone(path, tower)


def _stamp(path: PathLike) -> tuple[Any, ...]:
    """Return what changes when the files of a backbone do."""
    path = Path(path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
