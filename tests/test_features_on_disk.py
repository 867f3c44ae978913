"""Features in a folder: the same bits back after any interruption, and nothing altered is taken for whole."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from small import bottleneck_weights, same_bits
from tiny_bert import write_tiny_bert

import sherl
from sherl.features import disk
from sherl.features import manifest as manifests
from sherl.features import writer as writers
from sherl.features.manifest import Manifest
from sherl.features.writer import StoreWriter

pytestmark = pytest.mark.core

TESTS = Path(__file__).parent
TEXTS = [f"{first} {second} film {'and a clever plot ' * number}"
         for first in ("a", "the") for second in ("good", "bad", "dull", "great", "weak") for number in range(4)]
LABELS = np.arange(len(TEXTS)) // 4 % 5 % 2  # the second word tells
LENGTHS = [3, 1, 4, 2]
DTYPES = ["float32", "float64", "float16", "bfloat16", "int8"]


def ragged(dtype="float32", positions=None, **more):
    rng = np.random.default_rng(0)
    taps = [rng.standard_normal((10, width)) for width in (5, 6)]
    given = {"bfloat16": ml_dtypes.bfloat16, "int8": np.float32}.get(dtype, dtype)
    features = sherl.Features([tap.astype(given) for tap in taps], LENGTHS, positions=positions, **more)
    return features.astype(dtype) if dtype == "int8" else features


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="module")
def backbone(folder):
    return sherl.load_backbone(folder)


@pytest.fixture(scope="module")
def store(folder, backbone, tmp_path_factory):
    """A folder of features, which no test changes."""
    place = tmp_path_factory.mktemp("store") / "features"
    backbone.extract(TEXTS, out=place, batch_size=3)
    return place


def contents(place):
    """Return what the files of a folder hold, by name, but for the lock and the stamp."""
    return {path.name: path.read_bytes() for path in place.iterdir()
            if path.name not in (writers.LOCK, manifests.STAMP)}


def run_python(script, *arguments, check=True):
    """Run a script in a process of its own, with the package and the helpers of the tests."""
    path = os.pathsep.join([str(Path(sherl.__file__).parents[1]), str(TESTS)])
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path}, timeout=600)
    assert not check or done.returncode == 0, done.stderr
    return done


# The same features back.


@pytest.mark.parametrize("positions", [None, [2, 0, 1, 1]])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_saved_comes_back(tmp_path, dtype, positions):
    features = ragged(dtype, positions, source={"backbone": "b", "states": [0, 4]})
    features.save(tmp_path / "store")
    found = sherl.Features.open(tmp_path / "store")
    assert found.fingerprint == features.fingerprint
    assert found.dtypes == features.dtypes and found.source == features.source and found.channels == features.channels
    assert found.lengths.tolist() == LENGTHS
    for one, other in zip(found.taps, features.taps):
        assert same_bits(one, other)
        assert not one.flags.writeable
    for one, other in zip(found.scales, features.scales):
        assert one is other is None or same_bits(one, other)
    assert positions is None or found.positions.tolist() == positions


def test_taps_of_several_types(tmp_path):
    rng = np.random.default_rng(0)
    taps = [rng.standard_normal((10, 3)).astype(dtype) for dtype in (np.float32, ml_dtypes.bfloat16, np.float16)]
    taps.append(rng.integers(-127, 128, (10, 2)).astype(np.int8))
    features = sherl.Features(taps, LENGTHS, scales=[None, None, None, np.ones(10, np.float32)])
    features.save(tmp_path)
    assert sherl.Features.open(tmp_path).fingerprint == features.fingerprint


@pytest.mark.parametrize(
    "index", [2, -1, slice(1, 3), slice(None, None, -1), [3, 0, 0], np.array([True, False, True, True])]
)
def test_rows_are_those_of_numpy_indexing(tmp_path, index):
    features = ragged("float16")
    features.save(tmp_path)
    found = sherl.Features.open(tmp_path)[index]
    pieces = [np.split(tap, np.cumsum(LENGTHS)[:-1]) for tap in features.taps]
    for tap, rows in zip(found.taps, pieces):
        assert same_bits(tap, np.concatenate([rows[number] for number in np.atleast_1d(np.arange(4)[index])]))


def test_selections_and_padded_arrays_are_saved_as_what_they_are(tmp_path):
    features = ragged("int8", [2, 0, 1, 1])
    part = features.select([1])[[3, 0]]
    part.save(tmp_path / "part")
    assert sherl.Features.open(tmp_path / "part").fingerprint == part.fingerprint
    rng = np.random.default_rng(0)
    padded = sherl.Features.from_arrays([rng.standard_normal((3, 4, 5))], [[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1]])
    padded.save(tmp_path / "padded")
    assert sherl.Features.open(tmp_path / "padded").fingerprint == padded.fingerprint


def images():
    rng = np.random.default_rng(0)
    sizes = [np.array([[8, 6], [4, 4], [2, 6]]), np.array([[4, 3], [2, 2], [1, 3]])]
    taps = [rng.standard_normal((size.prod(axis=1).sum(), width)) for size, width in zip(sizes, (3, 5))]
    return sherl.Features(taps, sizes=sizes)


def with_a_row_of_each():
    rng = np.random.default_rng(0)
    return sherl.Features([rng.standard_normal((rows, 4)) for rows in (10, 10, 4)], LENGTHS)


@pytest.mark.parametrize("make", [images, with_a_row_of_each])
@pytest.mark.parametrize("dtype", [None, "int8"])
def test_taps_with_rows_of_their_own(tmp_path, monkeypatch, make, dtype):
    monkeypatch.setattr(disk, "_PIECE_BYTES", 1)
    features = make() if dtype is None else make().astype(dtype)
    features.save(tmp_path / "whole")
    found = sherl.Features.open(tmp_path / "whole")
    assert found.fingerprint == features.fingerprint
    assert repr(found.sizes) == repr(features.sizes) and found.lengths.tolist() == features.lengths.tolist()
    found[[2, 0]].save(tmp_path / "part")
    part = sherl.Features.open(tmp_path / "part")
    assert part.fingerprint == features[[2, 0]].fingerprint
    disk.write([found, part], tmp_path / "both")
    both = sherl.Features.open(tmp_path / "both")
    assert both[: len(found)].fingerprint == features.fingerprint and both[len(found) :].fingerprint == part.fingerprint


def test_pieces_do_not_matter(tmp_path, monkeypatch):
    features = ragged("int8", [2, 0, 1, 1])
    monkeypatch.setattr(disk, "_PIECE_BYTES", 1)
    monkeypatch.setattr(writers, "PART_BYTES", 1)
    features.save(tmp_path)
    assert [len(parts) for parts in disk.read_manifest(tmp_path).files.values()] == [4, 4, 4, 4, 1, 1]
    assert sherl.Features.open(tmp_path).fingerprint == features.fingerprint


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_extraction_to_disk_is_that_to_memory(backbone, tmp_path, dtype):
    expected = backbone.extract(TEXTS, dtype=dtype, batch_size=7, late=2)
    found = backbone.extract(TEXTS, dtype=dtype, batch_size=7, late=2, out=tmp_path)
    assert found.fingerprint == expected.fingerprint == sherl.Features.open(tmp_path).fingerprint
    assert found.source == expected.source and found.preprocessing == expected.preprocessing
    assert [layer.fingerprint for layer in found.layers] == [layer.fingerprint for layer in backbone.layers[-2:]]
    assert expected.layers == backbone.layers[-2:]
    assert sorted(contents(tmp_path)) == sorted(disk.read_manifest(tmp_path).files.keys() | {"manifest.json"})


def test_layers_of_a_folder_compute_what_those_of_the_backbone_do(backbone, store):
    layer = sherl.Features.open(store).layers[0]
    x = np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32)
    assert same_bits(layer(x), backbone.layers[-1](x))
    assert sherl.Features.open(store)[3:5].select([0]).layers[0].fingerprint == layer.fingerprint


def test_layers_are_saved_where_given(backbone, tmp_path):
    features = ragged()
    features.save(tmp_path / "none")
    assert sherl.Features.open(tmp_path / "none").layers == []
    features.save(tmp_path / "two", layers=backbone.layers[:2])
    assert [layer.fingerprint for layer in sherl.Features.open(tmp_path / "two").layers] == [
        layer.fingerprint for layer in backbone.layers[:2]
    ]
    with pytest.raises(ValueError, match="layers must be frozen TransformerLayer or .*, got TransformerLayer"):
        features.save(tmp_path / "trainable", layers=[sherl.TransformerLayer(8, 2)])


def t5_block():
    rng = np.random.default_rng(0)
    shapes = {f"layer.0.SelfAttention.{name}": (16, 16) for name in "qkvo"}
    shapes |= {"layer.0.SelfAttention.relative_attention_bias": (32, 4), "layer.0.layer_norm": (16,)}
    shapes |= {"layer.1.DenseReluDense.wi": (24, 16), "layer.1.DenseReluDense.wo": (16, 24),
               "layer.1.layer_norm": (16,)}
    return sherl.T5Block.from_t5({f"{name}.weight": rng.standard_normal(shape) for name, shape in shapes.items()}, 4)


@pytest.mark.parametrize("make, shape", [
    (t5_block, (2, 5, 16)),
    (lambda: sherl.Bottleneck.from_resnet(bottleneck_weights(24, 6, 10, shortcut=True), stride=2), (2, 4, 6, 24)),
])
def test_layers_of_every_kind_come_back(tmp_path, make, shape):
    block, x = make(), np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    ragged().save(tmp_path, layers=[block])
    found, = sherl.Features.open(tmp_path).layers
    assert type(found) is type(block) and found.fingerprint == block.fingerprint
    assert same_bits(found(x), block(x))


def test_training_from_disk_has_the_bits_of_training_from_memory(backbone, store):
    def trained(features):
        net = sherl.SideNetwork(sherl.MTSA(3, 32, 8, dropout=0.1), features.layers, sherl.Classifier(32, 2))
        net.fit(features[:30], LABELS[:30], epochs=3, validation=(features[30:], LABELS[30:]), progress=False)
        return net.state_dict()

    assert same_bits(trained(sherl.Features.open(store)), trained(backbone.extract(TEXTS, batch_size=3)))


# Interruptions.

KILLED_EXTRACTION = """
import os, signal, sys
import sherl
from sherl.features import writer
from test_features_on_disk import TEXTS

left = int(sys.argv[3])

def mortal(function):
    def called(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return called

writer.PART_BYTES = 2000
backbone = sherl.load_backbone(sys.argv[1])
for name in ("fsync", "replace", "unlink", "chmod"):
    setattr(os, name, mortal(getattr(os, name)))
writer._PartFile.write = mortal(writer._PartFile.write)
backbone.extract(TEXTS, out=sys.argv[2], batch_size=3)
print("calls", -left)
"""


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
    """What an extraction in many parts writes, and how many calls it makes after each of which it may be killed."""
    place = tmp_path_factory.mktemp("uninterrupted")
    done = run_python(KILLED_EXTRACTION, folder, place, 0)
    return contents(place), int(done.stdout.split()[-1])


@pytest.mark.parametrize("moment", [*(number / 11 for number in range(12)), "end-1", "end-3", "end-6", "end-9"])
def test_a_killed_extraction_is_gone_on_from(folder, uninterrupted, tmp_path, moment):
    expected, calls = uninterrupted
    call = calls + int(moment[3:]) if isinstance(moment, str) else 1 + int(moment * (calls - 1))
    killed = run_python(KILLED_EXTRACTION, folder, tmp_path, call, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if not (tmp_path / "manifest.json").exists():
        with pytest.raises((ValueError, FileNotFoundError), match="not complete|has no manifest"):
            sherl.Features.open(tmp_path)
    run_python(KILLED_EXTRACTION, folder, tmp_path, 0)
    assert contents(tmp_path) == expected


def test_an_extraction_that_is_killed_again_and_again_gets_done(folder, uninterrupted, tmp_path):
    expected, calls = uninterrupted
    for attempt in range(30):  # noqa: B007  # which one it was is what counts
        if run_python(KILLED_EXTRACTION, folder, tmp_path, calls // 6, check=False).returncode == 0:
            break
    assert 3 < attempt < 29
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_parts_that_were_altered_meanwhile_are_computed_again(folder, uninterrupted, tmp_path, harm):
    expected, calls = uninterrupted
    run_python(KILLED_EXTRACTION, folder, tmp_path, calls // 2, check=False)
    path = tmp_path / "tap.1.npy.part"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content if harm == "flip" else content[: len(content) // 3])
    run_python(KILLED_EXTRACTION, folder, tmp_path, 0)
    assert contents(tmp_path) == expected


def test_an_altered_record_of_progress_is_never_silently_wrong(backbone, folder, uninterrupted, tmp_path, monkeypatch):
    expected, calls = uninterrupted
    monkeypatch.setattr(writers, "PART_BYTES", 2000)
    run_python(KILLED_EXTRACTION, folder, tmp_path / "killed", calls // 2, check=False)
    content = (tmp_path / "killed" / "progress.json").read_bytes()
    rng = np.random.default_rng(0)
    for number in range(60):
        shutil.copytree(tmp_path / "killed", place := tmp_path / f"copy{number}")
        spoilt = bytearray(content)
        spoilt[rng.integers(len(content))] ^= 1 << rng.integers(8)
        (place / "progress.json").write_bytes(spoilt)
        try:
            backbone.extract(TEXTS, out=place, batch_size=3)
        except ValueError as error:
            assert str(place) in str(error)
        else:
            assert contents(place) == expected


def test_an_error_leaves_what_can_be_gone_on_from(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "PART_BYTES", 2000)
    real, calls = backbone._run, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(backbone, "_run", failing)
    with pytest.raises(KeyboardInterrupt):
        backbone.extract(TEXTS, out=tmp_path, batch_size=3)
    with pytest.raises(ValueError, match="not complete: write them again, to go on"):
        sherl.Features.open(tmp_path)
    for settings, fault in [({"batch_size": 4}, "recipe.batch_size was 3 and is 4"),
                            ({"max_length": 9}, "plan.preprocessing.max_length was 64 and is 9"),
                            ({"dtype": "float16"}, 'plan.taps.0.element was "float32" and is "float16"')]:
        with pytest.raises(ValueError, match=f"holds other features, not complete: .*{fault}"):
            backbone.extract(TEXTS, out=tmp_path, **{"batch_size": 3, **settings})
    with pytest.raises(ValueError, match="holds other features, not complete"):
        ragged().save(tmp_path)
    calls[:] = [1] * 10
    found = backbone.extract(TEXTS, out=tmp_path, batch_size=3)
    assert len(calls) < 10 + 14  # some batches were there
    assert found.fingerprint == backbone.extract(TEXTS, batch_size=3).fingerprint


def test_an_interrupted_save_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "PART_BYTES", 1)
    monkeypatch.setattr(disk, "_PIECE_BYTES", 1)
    real, calls = StoreWriter.append, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(StoreWriter, "append", failing)
    with pytest.raises(OSError, match="No space left"):
        ragged().save(tmp_path)
    features = ragged("float16")[[2, 0]]
    features.save(tmp_path)
    assert sherl.Features.open(tmp_path).fingerprint == features.fingerprint


KILLED_FIT = """
import os, signal, sys
import numpy as np
import sherl
from test_features_on_disk import LABELS, side_network

class Kill(sherl.Callback):
    def on_step_end(self, state):
        if state.step == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

features = sherl.Features.open(sys.argv[1])
side_network(features).fit(features, LABELS, epochs=3, batch_size=8, progress=False, checkpoint=sys.argv[2],
                           checkpoint_every=2, callbacks=[Kill()])
"""


def side_network(features):
    return sherl.SideNetwork(sherl.MTSA(3, 32, 8, dropout=0.1), features.layers, sherl.Classifier(32, 2))


@pytest.mark.parametrize("step", [3, 8, 14])
def test_a_killed_training_from_disk_is_gone_on_from(backbone, store, tmp_path, step):
    killed = run_python(KILLED_FIT, store, tmp_path, step, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    features = sherl.Features.open(store)
    resumed, whole = side_network(features), side_network(features)
    settings = {"epochs": 3, "batch_size": 8, "progress": False}
    resumed.fit(features, LABELS, resume_from=tmp_path, **settings)
    whole.fit(backbone.extract(TEXTS, batch_size=3), LABELS, **settings)
    assert same_bits(resumed.state_dict(), whole.state_dict())


# Alterations.


def whole_or_refused(place, expected):
    """Open a folder, and tell whether it was refused; where it was not, it must hold what it should."""
    try:
        found = sherl.Features.open(place)
        assert [layer.fingerprint for layer in found.layers] == [layer.fingerprint for layer in expected.layers]
    except (ValueError, FileNotFoundError) as error:
        assert str(place) in str(error)
        return True
    assert found.fingerprint == expected.fingerprint
    assert found.source == expected.source and found.preprocessing == expected.preprocessing
    return False


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_flipped_bytes_are_refused(backbone, tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(writers, "PART_BYTES", 2000)
    monkeypatch.setattr(manifests, "_SETTLED", -(1 << 62))  # a stamp is left at once
    monkeypatch.setattr(disk, "_PIECE_BYTES", 1000)
    backbone.extract(TEXTS[:9], dtype=dtype).with_positions([1] * 9).save(tmp_path)
    expected = sherl.Features.open(tmp_path)
    rng = np.random.default_rng(0)
    scales = [f"tap.{number}.scales.npy" for number in range(3)] if dtype == "int8" else []
    assert set(contents(tmp_path)) == {
        "manifest.json", "layers.safetensors", "samples.lengths.npy", "samples.positions.npy", *scales,
        *(f"tap.{number}.npy" for number in range(3))}
    for path in sorted(tmp_path.iterdir()):
        if path.name in (writers.LOCK, manifests.STAMP):
            continue
        content = path.read_bytes()
        size = len(content)
        places = {0, 7, 9, size - 1, *rng.integers(size, size=40), *rng.integers(min(128, size), size=20)}
        for place in places:
            spoilt = bytearray(content)
            spoilt[place] ^= 1 << rng.integers(8)
            path.write_bytes(spoilt)
            assert whole_or_refused(tmp_path, expected), (path.name, place)
        path.write_bytes(content)
        assert not whole_or_refused(tmp_path, expected)


def test_flipped_bytes_of_the_manifest_are_refused(store, tmp_path):
    place = tmp_path / "copy"
    shutil.copytree(store, place)
    expected = sherl.Features.open(place)
    path = place / "manifest.json"
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for number in range(0, len(content), 7):
        spoilt = bytearray(content)
        spoilt[number] ^= 1 << rng.integers(8)
        path.write_bytes(spoilt)
        refused = whole_or_refused(place, expected)
        assert refused or content[number] in b" \n"


@pytest.mark.parametrize("harm, message", [
    (lambda path: path.unlink(), "is missing; the manifest lists it"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), "must have .* bytes, as the manifest says, got"),
    (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "must have .* bytes, as the manifest says, got"),
])
@pytest.mark.parametrize("name", ["tap.1.npy", "samples.lengths.npy", "layers.safetensors"])
def test_sizes_are_always_checked(store, tmp_path, name, harm, message):
    shutil.copytree(store, tmp_path / "copy")
    harm(tmp_path / "copy" / name)
    with pytest.raises((ValueError, FileNotFoundError), match=f"{name} {message}"):
        sherl.Features.open(tmp_path / "copy", verify=False)


def test_files_are_verified_once_and_whenever_they_changed(store, tmp_path, monkeypatch):
    place = tmp_path / "copy"
    shutil.copytree(store, place, ignore=shutil.ignore_patterns(manifests.STAMP))
    verified = []
    real = manifests.verify_files
    monkeypatch.setattr(manifests, "verify_files", lambda *arguments: verified.append(1) or real(*arguments))
    sherl.Features.open(place)
    sherl.Features.open(place)
    assert len(verified) == 2 and not (place / manifests.STAMP).exists()  # too new to be sure of
    monkeypatch.setattr(manifests, "_SETTLED", -(1 << 62))
    sherl.Features.open(place)
    sherl.Features.open(place)
    assert len(verified) == 3
    path = place / "tap.0.npy"
    state = path.stat()
    with open(path, "r+b") as stream:
        stream.seek(200)
        byte = stream.read(1)[0]
        stream.seek(200)
        stream.write(bytes([byte ^ 1]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(ValueError, match=r"tap.0.npy was altered: bytes 0 to \d+ are not those that were written"):
        sherl.Features.open(place)
    assert len(sherl.Features.open(place, verify=False)) == len(TEXTS)
    with pytest.raises(ValueError, match="was altered"):
        sherl.Features.open(place, verify=True)
    (place / manifests.STAMP).write_text("nonsense")
    with pytest.raises(ValueError, match="was altered"):
        sherl.Features.open(place)


def rewritten(place, **changes):
    """Change entries of a manifest, with a checksum that fits."""
    path = place / "manifest.json"
    record = {**json.loads(path.read_text()), **changes}
    record["checksum"] = manifests.checksum_of(record)
    path.write_bytes(manifests.encoded(record))


@pytest.mark.parametrize("changes, message", [
    ({"format": "other"}, "does not describe features"),
    ({"format_version": 2, "sherl_version": "9.0"}, "has format version 2 .written by sherl 9.0.; .* reads version 1"),
    ({"samples": 41}, "the numbers of rows of the samples do not fit tap 0"),
    ({"taps": []}, "its files are not those that it describes"),
    ({"taps": 3}, "does not describe features"),
    ({"fields": {}}, "its files are not those that it describes"),
])
def test_manifests_that_do_not_fit(store, tmp_path, changes, message):
    shutil.copytree(store, tmp_path / "copy")
    rewritten(tmp_path / "copy", **changes)
    with pytest.raises(ValueError, match=message):
        sherl.Features.open(tmp_path / "copy")


def test_layers_with_another_fingerprint_are_refused(store, tmp_path):
    shutil.copytree(store, tmp_path / "copy")
    layers = json.loads((store / "manifest.json").read_text())["layers"]
    layers[0]["settings"]["eps"] = 1e-5
    rewritten(tmp_path / "copy", layers=layers)
    with pytest.raises(ValueError, match="layer 0 does not have the fingerprint that the manifest tells"):
        list(sherl.Features.open(tmp_path / "copy").layers)


def test_a_manifest_carries_any_numbers_of_samples(tmp_path):
    fields = {"lengths": np.array([2, 1]), "boxes": np.array([[4, 5], [6, 7]])}
    plan = Manifest(2, [{"element": "float32", "rows": 3, "channels": 2}], {"lengths": [2], "boxes": [2, 2]})
    with StoreWriter(tmp_path, plan, fields) as store:
        store.append(2, [np.zeros((3, 2), np.float32)], [None])
        store.finish()
    found = disk.read_manifest(tmp_path)
    assert found.fields == {"lengths": [2], "boxes": [2, 2]}
    assert np.load(tmp_path / "samples.boxes.npy").tolist() == [[4, 5], [6, 7]]
    with pytest.raises(ValueError, match="has numbers of samples that this sherl does not know: boxes"):
        sherl.Features.open(tmp_path)


# Mismatches.


def test_a_finished_folder_is_opened_and_others_are_refused(backbone, store, tmp_path):
    before = contents(store)
    assert backbone.extract(TEXTS, out=store, batch_size=9).fingerprint == sherl.Features.open(store).fingerprint
    other = sherl.load_backbone(write_tiny_bert(tmp_path / "other", seed=1))
    for model, texts, settings, fault in [
        (other, TEXTS, {}, "source.backbone was"),
        (backbone, TEXTS, {"taps": [0, 1]}, "source.states.2 was 2 and is null"),
        (backbone, TEXTS, {"max_length": 8}, "preprocessing.max_length was 64 and is 8"),
        (backbone, TEXTS[:-1], {}, "samples was 40 and is 39"),
        (backbone, [*TEXTS[:-1], "another"], {}, "inputs was"),
        (backbone, TEXTS, {"dtype": "int8"}, 'taps.0.element was "float32" and is "int8"'),
        (backbone, TEXTS, {"late": 2}, "layers.0.fingerprint was"),
    ]:
        with pytest.raises(ValueError, match=f"holds other features: .*{fault}"):
            model.extract(texts, out=store, **settings)
    with pytest.raises(ValueError, match="must not hold features already, but it does: 40 samples, 3 taps"):
        ragged().save(store)
    assert contents(store) == before


def test_folders_without_features(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder of features: it has no manifest.json"):
        sherl.Features.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="manifest.json is not a JSON file"):
        sherl.Features.open(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "tap.0.npy").write_text("something of somebody's")
    with pytest.raises(ValueError, match="must not hold other files called tap.0.npy"):
        ragged().save(tmp_path)
    assert (tmp_path / "tap.0.npy").read_text() == "something of somebody's"


def test_a_network_refuses_features_of_another_backbone_from_disk(store, tmp_path):
    features = sherl.Features.open(store)
    net = side_network(features)
    net.fit(features, LABELS, epochs=1, progress=False)
    other = sherl.load_backbone(write_tiny_bert(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match="taps come from another backbone"):
        net.predict(other.extract(TEXTS, out=tmp_path / "features"))
    net.save_pretrained(tmp_path / "net")
    with pytest.raises(ValueError, match="taps come from another backbone|no layer of backbone has the weights"):
        sherl.SideNetwork.from_pretrained(tmp_path / "net", backbone=sherl.Features.open(tmp_path / "features"))


# Several processes.


def test_a_folder_has_one_writer(backbone, tmp_path, monkeypatch):
    features = ragged()
    with disk.writer(tmp_path, [("float32", 5), ("float32", 6)], {"lengths": features.lengths}, source=None) as store:
        with pytest.raises(RuntimeError, match="is being written by another process"):
            backbone.extract(TEXTS, out=tmp_path)
        with pytest.raises(RuntimeError, match="is being written by another process"):
            features.save(tmp_path)
        store.append(4, features.taps, [None, None])
        store.finish()
    assert sherl.Features.open(tmp_path).fingerprint == features.fingerprint


def test_writers_at_once_leave_what_one_would(folder, uninterrupted, tmp_path):
    path = os.pathsep.join([str(Path(sherl.__file__).parents[1]), str(TESTS)])
    started = [
        subprocess.Popen([sys.executable, "-c", KILLED_EXTRACTION, folder, tmp_path, "0"], stderr=subprocess.PIPE,
                         text=True, env={**os.environ, "PYTHONPATH": path})
        for _ in range(4)
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    codes = [process.returncode for process in started]
    assert 0 in codes
    assert all(code == 0 or "is being written by another process" in error for code, error in zip(codes, errors))
    assert contents(tmp_path) == uninterrupted[0]


TRAINING = """
import sys
sys.modules["tokenizers"] = None
import numpy as np
import sherl

features = sherl.Features.open(sys.argv[1])
net = sherl.SideNetwork(sherl.MTSA(3, 32, 8), features.layers, sherl.Classifier(32, 2, pool="mean"))
net.fit(features, np.arange(len(features)) // 4 % 5 % 2, epochs=20, batch_size=8, learning_rate=1e-2, progress=False)
net.save_pretrained(sys.argv[2])
print(net.predict(features).tolist())
"""

PREDICTING = """
import sys
sys.modules["tokenizers"] = None
import sherl

features = sherl.Features.open(sys.argv[1])
print(sherl.SideNetwork.from_pretrained(sys.argv[2], backbone=features).predict(features).tolist())
"""


def test_training_and_predicting_need_no_backbone(tmp_path):
    folder = write_tiny_bert(tmp_path / "tiny")
    sherl.load_backbone(folder).extract(TEXTS, out=tmp_path / "store", dtype="float16")
    shutil.rmtree(folder)
    shutil.move(tmp_path / "store", tmp_path / "elsewhere")
    trained = run_python(TRAINING, tmp_path / "elsewhere", tmp_path / "net").stdout
    predicted = run_python(PREDICTING, tmp_path / "elsewhere", tmp_path / "net").stdout
    assert predicted == trained
    assert np.mean(np.array(json.loads(predicted)) == LABELS) > 0.9


# Memory.

BOUNDED_TRAINING = """
import resource, sys
import numpy as np
import sherl

def anonymous(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(name))

sherl.set_num_threads(1)
features = sherl.Features.open(sys.argv[1])
net = sherl.SideNetwork(sherl.MTSA(3, 256, 4), [], sherl.Classifier(256, 2))
labels = np.arange(len(features)) % 2
net.fit(features[:64], labels[:64], epochs=1, progress=False)
before = anonymous("RssAnon:")
allowed = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (anonymous("VmData:") + allowed,) * 2)
net.fit(features, labels, epochs=1, progress=False)
net.predict(features)
print(anonymous("RssAnon:") - before)
try:
    np.ones(features.nbytes, np.uint8)
except MemoryError:
    print("refused")
"""


@pytest.mark.skipif(bool(os.environ.get("ASAN_OPTIONS")), reason="the sanitizer's own memory counts")
def test_training_never_loads_the_whole_store(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1 << 17, 256), dtype=np.float32)
    features = sherl.Features([rows] * 3, [64] * (1 << 11))
    assert features.nbytes == 384 << 20
    features.save(tmp_path)
    allowed = 96 << 20
    grown, refused = run_python(BOUNDED_TRAINING, tmp_path, allowed).stdout.split()
    assert refused == "refused"
    assert int(grown) < allowed


BOUNDED_EXTRACTION = """
import resource, sys
import sherl

def anonymous(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(name))

sherl.set_num_threads(1)
backbone = sherl.load_backbone(sys.argv[1])
ids = [[1, *range(5, 45), 2]] * 12000
backbone.extract(ids[:300], out=sys.argv[2] + ".first", batch_size=32)
resource.setrlimit(resource.RLIMIT_DATA, (anonymous("VmData:") + (64 << 20),) * 2)
features = backbone.extract(ids, out=sys.argv[2], batch_size=32)
assert features.nbytes > 180 << 20
"""


@pytest.mark.skipif(bool(os.environ.get("ASAN_OPTIONS")), reason="the sanitizer's own memory counts")
def test_extraction_holds_one_batch(folder, tmp_path):
    run_python(BOUNDED_EXTRACTION, folder, tmp_path / "store")
