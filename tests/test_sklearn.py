"""Estimators in scikit-learn: its own checks, pipelines, searches over processes, clones, pickles; what they learn."""

import fcntl
import os
import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score, train_test_split
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from small import FEATURES, frozen_layer, problem, same_bits, taps_of
from tiny_bert import write_tiny_bert
from tiny_models import write_tiny_model

import sherl
from sherl.sklearn import FrozenFeatures, SherlClassifier, SherlRegressor

FAST = {"hidden": 8, "epochs": 20, "batch_size": 8, "learning_rate": 1e-2, "random_state": 0}
CHECKED = {"hidden": 16, "epochs": 60, "learning_rate": 1e-2, "dropout": 0.0, "random_state": 0}
EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data":
        "a sample of weight 0 still takes a place in its batch, and a repeated one two, so steps differ",
}


@parametrize_with_checks([SherlClassifier(**CHECKED), SherlRegressor(**CHECKED)],
                         expected_failed_checks=lambda estimator: EXPECTED)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_scikit_learns_check_of_array_namespaces():
    """SciPy must be told before it is imported, so this check, which is skipped above, runs in another process."""
    code = f"""if True:
        from sklearn.utils.estimator_checks import check_array_api_input
        from sherl.sklearn import SherlClassifier, SherlRegressor
        for kind in (SherlClassifier, SherlRegressor):
            check_array_api_input(kind.__name__, kind(**{CHECKED}), array_namespace="numpy")
        print("done")"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                         env={**os.environ, "SCIPY_ARRAY_API": "1"})
    assert run.stdout == "done\n", run.stderr


# What samples may be.


def features_and_labels(samples=60):
    taps, labels, mask = problem(samples=samples)
    return sherl.Features.from_arrays(taps, mask), np.array(["bad", "good"])[labels]


def test_ragged_features():
    features, labels = features_and_labels()
    model = SherlClassifier(pool="first", late=[frozen_layer()], **FAST).fit(features, labels)
    assert model.score(features, labels) > 0.9
    assert list(model.classes_) == ["bad", "good"]
    chances = model.predict_proba(features)
    np.testing.assert_array_equal(model.classes_[chances.argmax(axis=1)], model.predict(features))
    np.testing.assert_allclose(1 / (1 + np.exp(-model.decision_function(features))), chances[:, 1], rtol=1e-5)
    assert model.network_.early.taps == 3 and len(model.history_.epochs) == 20


def test_it_trains_as_the_network_does():
    features, labels = features_and_labels()
    model = SherlClassifier(pool="first", **FAST).fit(features, labels)
    seed = model.network_.seed
    alone = sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8, up_norm="layernorm", dropout=0.1), [],
                              sherl.Classifier(FEATURES, 2, pool="first"), seed=seed)
    alone.fit(features, (labels == "good").astype(int), epochs=20, batch_size=8, learning_rate=1e-2, seed=seed,
              progress=False)
    assert same_bits(alone.state_dict(), model.network_.state_dict())


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_arrays(axes):
    taps = taps_of(samples=40, tokens=5, taps=2)
    array = {2: taps[0][:, 0], 3: np.stack(taps, axis=1)[:, :, 0], 4: np.stack(taps, axis=1)}[axes]
    labels = np.arange(40) % 2
    array[labels == 1, ..., :3] += 2
    model = SherlClassifier(**FAST).fit(array, labels)
    assert model.score(array, labels) > 0.9
    rows = {2: [array[:, None]] * 2, 3: [array[:, [0]], array[:, [1]]], 4: list(array.swapaxes(0, 1))}[axes]
    np.testing.assert_array_equal(model.network_.predict(rows), model.predict(array))


def test_several_labels_a_sample():
    features, labels = features_and_labels()
    both = np.stack([labels == "good", labels == "bad", np.zeros(60)], axis=1).astype(int)
    model = SherlClassifier(**{**FAST, "epochs": 40}, pool="first").fit(features, both)
    assert model.predict(features).shape == model.predict_proba(features).shape == (60, 3)
    np.testing.assert_array_equal(model.decision_function(features) > 0, model.predict(features))
    assert model.score(features, both) > 0.8
    with pytest.raises(ValueError, match="class_weight must be None"):
        SherlClassifier(class_weight="balanced").fit(features, both)


def test_regression_does_not_depend_on_the_scale_of_the_targets():
    features, labels = features_and_labels()
    values = (labels == "good") + 0.1 * np.arange(60) / 60
    model = SherlRegressor(pool="first", **FAST).fit(features, values)
    assert model.score(features, values) > 0.8
    scaled = SherlRegressor(pool="first", **FAST).fit(features, 1e6 * values - 5e7)
    np.testing.assert_allclose(scaled.predict(features), 1e6 * model.predict(features) - 5e7, rtol=1e-3, atol=1e3)
    assert SherlRegressor(**FAST).fit(features, np.stack([values, -values], 1)).predict(features).shape == (60, 2)
    assert SherlRegressor(**FAST).fit(features, values[:, None]).predict(features).shape == (60, 1)


def test_class_weights_by_label():
    features, labels = features_and_labels()
    rare = np.flatnonzero(labels == "good")[:4]
    few = np.r_[rare, np.flatnonzero(labels == "bad")]
    counts = [np.sum(SherlClassifier(class_weight=weight, **{**FAST, "epochs": 1}).fit(features[few], labels[few])
                     .predict(features) == "good") for weight in ({"good": 1e-3, "bad": 1}, {"good": 1e3, "bad": 1})]
    assert counts[0] < counts[1]


def test_sample_weights_reach_the_training():
    features, labels = features_and_labels()
    weights = np.random.default_rng(0).random(60)
    plain, weighted = (SherlClassifier(**FAST).fit(features, labels, values) for values in (None, weights))
    assert not same_bits(plain.network_.state_dict(), weighted.network_.state_dict())


def test_held_out_samples_choose_the_epoch():
    features, labels = features_and_labels()
    model = SherlClassifier(validation_fraction=0.25, patience=2, pool="first", **FAST).fit(features, labels)
    assert model.history_.best_epoch is not None
    assert len(model.history_.step_losses) == 6 * len(model.history_.epochs)  # of 45 samples
    again = SherlClassifier(validation_fraction=0.25, patience=2, pool="first", **FAST).fit(features, labels)
    assert same_bits(model.network_.state_dict(), again.network_.state_dict())


def test_random_state():
    features, labels = features_and_labels()

    def weights(state):
        model = SherlClassifier(**{**FAST, "epochs": 1, "random_state": state})
        return model.fit(features, labels).network_.state_dict()

    assert same_bits(weights(3), weights(3)) and not same_bits(weights(3), weights(4))
    assert same_bits(weights(np.random.RandomState(3)), weights(3))


def test_late_layers_are_shared_when_frozen_and_copied_when_trained():
    features, labels = features_and_labels()
    frozen, trained = frozen_layer(), sherl.TransformerLayer(FEATURES, 4, intermediate=64)
    before = trained.state_dict()
    model = SherlClassifier(late=[frozen, trained], **FAST)
    first, second = model.fit(features, labels), clone(model).fit(features, labels)
    assert first.network_.late[0] is second.network_.late[0] is frozen
    assert first.network_.late[1] is not second.network_.late[1]
    assert same_bits(trained.state_dict(), before)
    assert same_bits(first.network_.state_dict(), second.network_.state_dict())


def test_bad_arguments_are_named():
    features, labels = features_and_labels()
    with pytest.raises(NotFittedError):
        SherlClassifier().predict(features)
    with pytest.raises(ValueError, match="one class"):
        SherlClassifier().fit(features, ["same"] * 60)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        SherlClassifier().fit(features, labels[:5])
    with pytest.raises(ValueError, match="hidden must be"):
        SherlClassifier(hidden=0).fit(features, labels)
    with pytest.raises(ValueError, match="epochs must be"):
        SherlRegressor(epochs=0).fit(features, np.arange(60.0))
    with pytest.raises(ValueError, match=r"X must have shape \(samples, channels\)"):
        SherlClassifier().fit(np.zeros((4, 2, 2, 2, 2)), labels[:4])
    with pytest.raises(ValueError, match="patience"):
        SherlClassifier(patience=2).fit(features, labels)
    model = SherlClassifier(**FAST).fit(features, labels)
    with pytest.raises(TypeError, match="late must be"):
        SherlClassifier(late=frozen_layer()).fit(features, labels)
    with pytest.raises(ValueError, match="taps must be 3 arrays, got 2"):
        model.predict(features.select([0, 1]))


# In scikit-learn's tools.


def test_splits_of_features_copy_nothing():
    features, labels = features_and_labels()
    first, second, _, _ = train_test_split(features, labels, random_state=0)
    assert first._arrays is features._arrays and len(first) + len(second) == len(features)
    assert features.shape == (60,)


def test_cross_validation_of_features():
    features, labels = features_and_labels()
    model = SherlClassifier(pool="first", **FAST)
    assert cross_val_score(model, features, labels, cv=3).min() > 0.7
    assert cross_val_predict(model, features, labels, cv=3, method="predict_proba").shape == (60, 2)
    assert get_scorer("roc_auc")(model.fit(features, labels), features, labels) > 0.9


def test_a_search_over_two_processes_finds_what_one_does():
    features, labels = features_and_labels()
    choices = {"hidden": [2, 8], "learning_rate": [1e-4, 1e-2]}
    searches = [GridSearchCV(SherlClassifier(pool="first", late=[frozen_layer()], **FAST), choices, cv=2,
                             n_jobs=jobs).fit(features, labels) for jobs in (1, 2)]
    for name in ("mean_test_score", "std_test_score"):
        np.testing.assert_array_equal(searches[0].cv_results_[name], searches[1].cv_results_[name])
    assert searches[1].best_params_["learning_rate"] == 1e-2
    assert same_bits(*(search.best_estimator_.network_.state_dict() for search in searches))


def test_a_pipeline_on_an_array():
    taps, labels, _ = problem(samples=60)
    model = make_pipeline(StandardScaler(), SherlClassifier(**FAST))
    assert cross_val_score(model, taps[-1][:, 0], labels, cv=3, n_jobs=2).min() > 0.7


def test_pickles_and_joblib_files(tmp_path):
    features, labels = features_and_labels()
    model = SherlClassifier(late=[frozen_layer()], **FAST).fit(features, labels)
    joblib.dump(model, tmp_path / "model.joblib")
    for other in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model.joblib")):
        np.testing.assert_array_equal(other.predict_proba(features), model.predict_proba(features))
        assert other.get_params().keys() == model.get_params().keys()


def test_processes_of_joblib():
    features, labels = features_and_labels()
    model = SherlClassifier(**FAST).fit(features, labels)
    halves = features[:30], features[30:]
    parts = joblib.Parallel(n_jobs=2)(joblib.delayed(model.predict)(half) for half in halves)
    np.testing.assert_array_equal(np.concatenate(parts), model.predict(features))


def test_estimators_of_scikit_learn_around_it():
    taps, labels, _ = problem(samples=40)
    values = np.stack([labels, 1 - labels], axis=1).astype(float)
    model = MultiOutputRegressor(SherlRegressor(**FAST)).fit(taps[-1][:, 0], values)
    assert model.predict(taps[-1][:, 0]).shape == (40, 2)


# Texts.

TEXTS = ["a great film", "a bad film", "the story was lovely and warm", "the plot is dull , very dull"] * 10
LABELS = np.array([1, 0, 1, 0] * 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


def test_frozen_features_are_what_the_backbone_extracts(folder):
    backbone = sherl.load_backbone(folder)
    wanted = backbone.extract(TEXTS, [0, 2], dtype="float16")
    for given in (backbone, folder, str(folder)):
        found = FrozenFeatures(given, [0, 2], dtype="float16").fit_transform(TEXTS)
        assert found.fingerprint == wanted.fingerprint and found.source == wanted.source
    shorter = FrozenFeatures(folder, max_length=4, batch_size=3).transform(TEXTS)
    assert shorter.longest == 4


@pytest.mark.parametrize("tower", [None, "image"])
def test_images(tmp_path, tower):
    folder = write_tiny_model(tmp_path / "model", "clip" if tower else "vit")
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    wanted = sherl.load_backbone(folder, tower).extract(images, [0, 1])
    transformer = FrozenFeatures(folder, [0, 1], tower=tower, cache=tmp_path / "cache")
    assert transformer.transform(images).fingerprint == wanted.fingerprint
    assert transformer.transform(list(images)).fingerprint == wanted.fingerprint
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_texts_in_arrays(folder):
    transformer = FrozenFeatures(folder)
    wanted = transformer.transform(TEXTS[:4]).fingerprint
    for array in (np.array(TEXTS[:4]), np.array(TEXTS[:4], object)):
        assert transformer.transform(array).fingerprint == wanted
    pairs = list(zip(TEXTS[:4], TEXTS[1:5]))
    assert transformer.transform(np.array(pairs, object)).fingerprint == transformer.transform(pairs).fingerprint


def test_frozen_features_pass_the_checks_that_apply():
    with pytest.warns(UserWarning, match="Can't test estimator FrozenFeatures which requires input"):
        check_estimator(FrozenFeatures("folder"))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_search_over_a_pipeline_of_texts(folder, jobs):
    late = sherl.load_backbone(folder).layers[-1:]
    model = make_pipeline(FrozenFeatures(folder), SherlClassifier(late=late, pool="first", **FAST))
    search = GridSearchCV(model, {"sherlclassifier__hidden": [8, 12]}, cv=2, n_jobs=jobs).fit(TEXTS, LABELS)
    assert search.score(TEXTS, LABELS) == 1
    assert pickle.loads(pickle.dumps(search.best_estimator_)).predict(["a bad film"]) == [0]


def test_a_cache_keeps_each_set_of_samples_once(folder, tmp_path, monkeypatch):
    transformer = FrozenFeatures(folder, dtype="int8", cache=tmp_path / "cache")
    plain = FrozenFeatures(folder, dtype="int8").transform(TEXTS)
    first = transformer.transform(TEXTS)
    assert first.fingerprint == plain.fingerprint
    ran = []
    monkeypatch.setattr(type(sherl.load_backbone(folder)), "_run", lambda *given: ran.append(given))
    assert transformer.transform(np.array(TEXTS)).fingerprint == plain.fingerprint and not ran
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.undo()
    for other in ({"taps": [0]}, {"dtype": "float16"}, {"max_length": 4}):
        clone(transformer).set_params(**other).transform(TEXTS)
    transformer.transform(TEXTS[::-1])
    assert len(list((tmp_path / "cache").iterdir())) == 5


def test_a_cache_shared_by_processes(folder, tmp_path):
    scores = []
    for cache, jobs in ((tmp_path, 2), (None, 1)):
        model = make_pipeline(FrozenFeatures(folder, cache=cache),
                              SherlClassifier(late="features", pool="first", **FAST))
        search = GridSearchCV(model, {"sherlclassifier__hidden": [2, 4, 8, 16]}, cv=2, n_jobs=jobs).fit(TEXTS, LABELS)
        scores.append(search.cv_results_["split1_test_score"])
    np.testing.assert_array_equal(*scores)
    assert len(list(tmp_path.iterdir())) == 2  # the folds, which hold the same texts, and the whole


def test_a_cache_waits_for_another_writer(folder, tmp_path, monkeypatch):
    import sherl.sklearn as module

    transformer = FrozenFeatures(folder, cache=tmp_path)
    wanted = transformer.transform(TEXTS).fingerprint
    (entry,) = tmp_path.iterdir()
    for file in entry.iterdir():
        file.unlink()
    with (entry / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waits = []
        monkeypatch.setattr(module.time, "sleep", lambda seconds: waits.append(seconds) or (
            fcntl.flock(lock, fcntl.LOCK_UN) if len(waits) == 2 else None))
        assert transformer.transform(TEXTS).fingerprint == wanted
    assert len(waits) == 2


def test_late_layers_that_came_with_the_features(folder):
    features = FrozenFeatures(folder).transform(TEXTS)
    layers = sherl.load_backbone(folder).layers[-1:]
    models = [SherlClassifier(late=late, **FAST).fit(features, LABELS) for late in ("features", layers)]
    assert same_bits(*(model.network_.state_dict() for model in models))
    assert len(models[0].network_.late) == 1


def test_a_loaded_backbone_is_shared_by_clones(folder):
    transformer = FrozenFeatures(sherl.load_backbone(folder))
    assert clone(transformer).backbone is transformer.backbone
    assert clone(make_pipeline(transformer))[0].backbone is transformer.backbone


def test_a_backbone_is_loaded_once_and_again_when_its_files_change(folder, tmp_path, monkeypatch):
    import sherl.sklearn as module

    loads = []
    monkeypatch.setattr(module, "load_backbone", lambda path, tower: loads.append(path) or sherl.load_backbone(path))
    copied = write_tiny_bert(tmp_path / "other", seed=1)
    first = FrozenFeatures(copied).transform(TEXTS[:2])
    FrozenFeatures(copied, [0]).transform(TEXTS[:2])
    assert len(loads) == 1
    write_tiny_bert(copied, seed=2)
    assert FrozenFeatures(copied).transform(TEXTS[:2]).source != first.source
    assert len(loads) == 2


def test_without_scikit_learn_a_sentence_says_so():
    code = "import sys; sys.modules['sklearn'] = None; import sherl.sklearn"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: sherl.sklearn needs the scikit-learn package" in run.stderr
    assert "pip install 'sherl[sklearn]'" in run.stderr
