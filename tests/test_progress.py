"""Everything that may take long shows a bar, which comes to its end; and none where none is wanted."""

import contextlib

import pytest
import tqdm.auto
from small import FEATURES, network, problem, taps_of
from tiny_bert import write_tiny_bert
from tiny_models import write_tiny_model

import sherl
from sherl.command_line.main import main


class Bar(contextlib.nullcontext):
    made = []

    def __init__(self, *, total, desc, initial, delay, leave):
        super().__init__(self)
        self.total, self.description, self.count, self.delay, self.leave = total, desc, initial, delay, leave
        Bar.made.append(self)

    def update(self, count=1):
        self.count += count

    def set_postfix_str(self, text, refresh=True):
        self.text = text


@pytest.fixture
def bars(monkeypatch):
    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    return lambda: {bar.description: (bar.count, bar.total) for bar in Bar.made}


def encoder():
    return sherl.DualEncoder(*(sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), [], sherl.Embedding(FEATURES, 8))
                               for _ in range(2)))


def test_training(bars):
    taps, labels, mask = problem()
    network().fit(taps, labels, mask, epochs=2, batch_size=8, validation=(taps, labels, mask))
    assert bars() == {"fit": (10, 10), "validation": (40, 40)}
    assert [bar.description for bar in Bar.made] == ["fit", "validation", "validation"]
    assert Bar.made[0].delay == 0 and Bar.made[1].delay > 1 and not Bar.made[1].leave


def test_inference(bars):
    (taps, labels, mask), net = problem(), network()
    for method in (net.forward, net.predict, net.predict_proba):
        method(taps, mask, batch_size=7)
        assert bars() == {"predict": (40, 40)}
        Bar.made.clear()
    net.evaluate(taps, labels, mask)
    net.score(taps, labels, mask)
    net.explain(taps, mask)
    assert bars() == {"evaluate": (40, 40), "explain": (40, 40)}
    assert all(bar.delay > 1 for bar in Bar.made)  # seldom seen: most calls are short


def test_extraction(bars, tmp_path):
    backbone = sherl.load_backbone(write_tiny_bert(tmp_path))
    backbone.extract(["a film"] * 5, batch_size=2)
    backbone.encode(["a film"] * 5, batch_size=2)
    backbone.extract(["a film"], progress=False)
    assert [(bar.description, bar.count, bar.total) for bar in Bar.made] == [("extract", 5, 5)] * 2


def test_sweep(bars):
    taps, labels, mask = problem()
    sherl.sweep(taps, labels, {"a": network()}, mask=mask, epochs=2, batch_size=8, validation=(taps, labels, mask))
    assert bars() == {"sweep": (10, 10), "validation of a": (40, 40)}


def test_pairs(bars):
    both, pair = encoder(), (taps_of(), taps_of(seed=1))
    both.fit(*pair, epochs=1, batch_size=6, validation=pair)
    both.evaluate(*pair)
    both.embed_a(pair[0])
    assert bars() == {"fit": (2, 2), "validation": (12, 12), "evaluate": (12, 12), "predict": (12, 12)}


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return sherl.load_backbone(write_tiny_model(tmp_path_factory.mktemp("t5") / "model", "t5", num_layers=3))


def test_sequence_to_sequence(bars, t5):
    ids = [[2, 3, 1], [4, 1], [5, 6, 7, 1]]
    features = t5.extract_pairs(ids, ids, batch_size=2)
    net = sherl.Seq2SeqSideNetwork.from_backbone(t5, hidden=4)
    net.fit(features, epochs=1, batch_size=2, validation=features)
    net.evaluate(features, batch_size=2)
    net.forward(features, batch_size=2)
    net.generate(ids, 3, batch_size=2)
    assert bars() == {"extract": (3, 3), "fit": (2, 2), **dict.fromkeys(
        ("validation", "evaluate", "predict", "generate"), (3, 3))}
    assert all(bar.delay > 1 for bar in Bar.made if bar.description != "fit")
    Bar.made.clear()
    t5.extract_pairs(ids, ids, progress=False)
    net.fit(features, epochs=1, validation=features, progress=False)
    for method in (net.evaluate, net.forward):
        method(features, progress=False)
    net.generate(ids, 3, progress=False)
    assert bars() == {}


def test_features_on_disk(bars, tmp_path, capsys):
    for name in ("first", "second"):
        sherl.Features([tap[0] for tap in taps_of(1)], [1] * 3 + [4]).save(tmp_path / name)
    folders = [str(tmp_path / name) for name in ("first", "second")]
    assert main(["features", "verify", folders[0]]) == 0
    size = sum(path.stat().st_size for path in (tmp_path / "first").glob("*.npy"))
    assert bars() == {"verify": (size, size)}
    assert main(["features", "merge", *folders, "--out", str(tmp_path / "both")]) == 0
    assert main(["features", "convert", folders[0], "--dtype", "int8", "--out", str(tmp_path / "narrow")]) == 0
    assert bars() == {"verify": (size, size), "merge": (8, 8), "convert": (4, 4)}
    Bar.made.clear()
    assert main(["features", "verify", folders[0], "--quiet"]) == 0
    assert bars() == {}


def test_a_loss_of_ones_own(bars):
    taps, _, mask = problem()
    network().fit(taps, taps[0][:, 0, :2], mask, epochs=1, validation=(taps, taps[0][:, 0, :2], mask),
                  loss=lambda outputs, targets: (0.0, outputs * 0))
    assert bars()["validation"] == (40, 40)


def test_none_where_none_is_wanted(bars):
    (taps, labels, mask), net = problem(), network()
    net.fit(taps, labels, mask, epochs=1, validation=(taps, labels, mask), progress=False)
    sherl.sweep(taps, labels, {"a": network()}, mask=mask, epochs=1, validation=(taps, labels, mask), progress=False)
    for method in (net.forward, net.predict, net.predict_proba, net.explain):
        method(taps, mask, progress=False)
    net.evaluate(taps, labels, mask, progress=False)
    net.score(taps, labels, mask, progress=False)
    pair = taps_of(), taps_of(seed=1)
    encoder().evaluate(*pair, progress=False)
    encoder().embed_b(pair[1], progress=False)
    assert bars() == {}


def test_short_work_shows_nothing(capfd):
    (taps, labels, mask), net = problem(), network()
    net.evaluate(taps, labels, mask)
    assert capfd.readouterr() == ("", "")
