"""Features: construction, selection without copies, pooling, fingerprints."""

import ml_dtypes
import numpy as np
import pytest
from small import mask_of, same_bits, taps_of

import sherl

LENGTHS = [3, 1, 4, 2]


def ragged(dtype=np.float32, channels=(5, 6)):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((10, width)).astype(dtype) for width in channels]


def rows_of(array, sample):
    start = sum(LENGTHS[:sample])
    return array[start : start + LENGTHS[sample]]


def test_arrays_are_kept_not_copied():
    taps = ragged()
    features = sherl.Features(taps, LENGTHS)
    assert len(features) == 4
    assert all(np.shares_memory(kept, given) for kept, given in zip(features.taps, taps))
    assert features.channels == [5, 6]
    assert features.dtypes == ["float32", "float32"]
    assert features.lengths.tolist() == LENGTHS
    assert features.offsets.tolist() == [0, 3, 4, 8, 10]
    assert features.nbytes == 10 * 11 * 4
    assert repr(features) == "Features(4 samples of 1 to 4 rows, 2 taps of 5 6 channels, float32, 0.0 MiB)"


@pytest.mark.parametrize(
    "index", [2, -1, slice(1, 3), slice(None, None, -1), [3, 0, 0], np.array([True, False, True, True])]
)
def test_selection(index):
    taps = ragged()
    features = sherl.Features(taps, LENGTHS)
    chosen = np.atleast_1d(np.arange(4)[index])
    part = features[index]
    assert len(part) == len(chosen)
    assert part.lengths.tolist() == [LENGTHS[sample] for sample in chosen]
    for found, array in zip(part.taps, taps):
        assert np.array_equal(found, np.concatenate([rows_of(array, sample) for sample in chosen]))
    assert all(kept is given for kept, given in zip(part._arrays, features._arrays))
    assert part.nbytes == part.offsets[-1] * 11 * 4
    last = part[[len(part) - 1]]
    assert np.array_equal(last.taps[1], rows_of(taps[1], chosen[-1]))


def test_iteration_gives_each_sample():
    taps = ragged()
    samples = list(sherl.Features(taps, LENGTHS))
    assert [len(sample.taps[0]) for sample in samples] == LENGTHS


def test_from_padded_arrays():
    taps, mask = taps_of(), mask_of()
    features = sherl.Features.from_arrays(taps, mask)
    assert all(np.shares_memory(kept, given) for kept, given in zip(features._arrays, taps))
    assert features.lengths.tolist() == mask.sum(axis=1).tolist()
    assert all(np.array_equal(found, tap[mask]) for found, tap in zip(features.taps, taps))
    part = features[[4, 1]]
    assert np.array_equal(part.taps[2], np.concatenate([taps[2][4][mask[4]], taps[2][1][mask[1]]]))
    assert sherl.Features.from_arrays(taps).lengths.tolist() == [7] * 12


def test_select_taps():
    features = sherl.Features(ragged(), LENGTHS, source={"backbone": "b", "states": [0, 4]})
    part = features.select([1])
    assert part.channels == [6]
    assert part.source == {"backbone": "b", "states": [4]}
    assert features.select([-1, 0]).channels == [6, 5]
    assert features[1:].source == features.source


@pytest.mark.parametrize("how", ["mean", "first", "max", "last", "position"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_pooled(how, dtype):
    taps = ragged(dtype)
    positions = np.array(LENGTHS) // 2
    features = sherl.Features(taps, LENGTHS, positions=positions)
    reduce = {
        "first": lambda rows, position: rows[0],
        "last": lambda rows, position: rows[-1],
        "position": lambda rows, position: rows[position],
        "mean": lambda rows, position: rows.mean(axis=0),
        "max": lambda rows, position: rows.max(axis=0),
    }[how]
    rows = [rows_of(taps[1], sample).astype(np.float64) for sample in range(4)]
    expected = np.stack([reduce(*pair) for pair in zip(rows, positions, strict=True)])
    found = features.pooled(how=how)
    assert found.dtype == (np.float64 if dtype is np.float64 else np.float32)
    assert np.allclose(found, expected, rtol=1e-6)
    assert np.array_equal(features[[2, 0]].pooled(1, how), found[[2, 0]])
    assert np.array_equal(features.pooled(tap=0, how=how), features.select([0]).pooled(how=how))


def test_pooled_over_many_samples():
    lengths = np.random.default_rng(0).integers(1, 4, 1300)
    values = np.random.default_rng(1).standard_normal((lengths.sum(), 3)).astype(np.float32)
    found = sherl.Features([values], lengths).pooled(how="mean")
    expected = [rows.mean(axis=0) for rows in np.split(values, np.cumsum(lengths)[:-1])]
    assert np.allclose(found, expected, atol=1e-6)


def test_fingerprint_tells_contents_apart():
    taps = ragged()
    features = sherl.Features(taps, LENGTHS)
    same = sherl.Features([tap.copy() for tap in taps], LENGTHS)
    assert features.fingerprint == same.fingerprint
    assert len(features.fingerprint) == 64
    changed = [taps[0], taps[1].copy()]
    changed[1][9, 5] = np.nextafter(changed[1][9, 5], np.float32(np.inf))
    others = [
        sherl.Features(changed, LENGTHS),
        sherl.Features(taps, [1, 3, 4, 2]),
        features[[1, 0, 2, 3]],
        features.select([1, 0]),
        features[:3],
        sherl.Features([tap.astype(np.float64) for tap in taps], LENGTHS),
    ]
    assert len({features.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)
    assert features[[0, 1, 2, 3]].fingerprint == features.fingerprint


def test_fingerprint_of_padded_arrays_is_that_of_their_rows():
    taps, mask = taps_of(), mask_of()
    padded = sherl.Features.from_arrays(taps, mask)
    assert padded.fingerprint == sherl.Features([tap[mask] for tap in taps], mask.sum(axis=1)).fingerprint


def test_bfloat16():
    taps = ragged(ml_dtypes.bfloat16)
    features = sherl.Features(taps, LENGTHS)
    assert features.dtypes == ["bfloat16", "bfloat16"]
    stored = sherl.Features([tap.view(np.uint16) for tap in taps], LENGTHS, dtype="bfloat16")
    assert stored.fingerprint == features.fingerprint
    assert same_bits(features.taps[0], taps[0].view(np.uint16))


@pytest.mark.parametrize(
    "index, error",
    [
        (4, IndexError),
        ([0, 9], IndexError),
        ([], (IndexError, TypeError)),
        (1.5, TypeError),
        ("a", TypeError),
        (np.array([True, False]), IndexError),
        (slice(2, 2), IndexError),
    ],
)
def test_wrong_selections(index, error):
    with pytest.raises(error):
        sherl.Features(ragged(), LENGTHS)[index]


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: sherl.Features(ragged(), [3, 1, 4]), ValueError, r"taps\[0\] must have shape .* with 8 rows"),
        (lambda: sherl.Features(ragged(), [3, 0, 5, 2]), ValueError, "lengths must be 1 or more, got 0 for sample 1"),
        (lambda: sherl.Features(ragged(), [3.0, 1, 4, 2]), ValueError, "lengths must be whole numbers"),
        (lambda: sherl.Features([], LENGTHS), ValueError, "taps must hold at least one array"),
        (lambda: sherl.Features(3, LENGTHS), TypeError, "taps must be a sequence of arrays, got int"),
        (
            lambda: sherl.Features([np.arange(10).reshape(10, 1)], LENGTHS),
            TypeError,
            r"taps\[0\] must hold .*, got dtype int64",
        ),
        (lambda: sherl.Features([np.zeros((10, 2), np.uint16)], LENGTHS), TypeError, "pass dtype='bfloat16'"),
        (lambda: sherl.Features(ragged(), LENGTHS, dtype="int8"), ValueError, "dtype must be None or one of"),
        (lambda: sherl.Features(ragged(), LENGTHS, dtype="bfloat16"), TypeError, r"taps\[0\] must hold bfloat16"),
        (lambda: sherl.Features(ragged(), LENGTHS).select([2]), ValueError, "taps must be 1 or less, got 2"),
        (
            lambda: sherl.Features(ragged(), LENGTHS).pooled(how="sum"),
            ValueError,
            "how must be one of 'mean', 'max', 'first', 'last', 'position', got 'sum'",
        ),
        (
            lambda: sherl.Features.from_arrays(taps_of(), np.zeros((12, 7))),
            ValueError,
            "mask leaves no row of sample 0",
        ),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---- Joined ----


def two_parts(dtype="float32"):
    """Texts of four samples and pictures of three, as selections in which some come again."""
    rng = np.random.default_rng(5)
    texts = sherl.Features(ragged(), LENGTHS, source={"backbone": "a", "states": [0, 1]}).astype(dtype)
    pictures = [rng.standard_normal((9, width), dtype=np.float32) for width in (5, 6)]
    pictures = sherl.Features(pictures, [4, 2, 3], source={"backbone": "b", "states": [3, 5]}).astype(dtype)
    return texts[[2, 0, 0, 3, 1]], pictures[[1, 1, 0, 2, 1]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_joined_samples_have_the_rows_of_one_and_then_of_the_other(dtype):
    texts, pictures = two_parts(dtype)
    joined = sherl.Features.joined(texts, pictures)
    assert joined.lengths.tolist() == [6, 5, 7, 5, 3] and joined.dtypes == [dtype] * 2
    for number in range(5):
        for tap in range(2):
            for what in ("taps", "scales"):
                found, parts = getattr(joined[number], what)[tap], [getattr(part[number], what)[tap] for part in
                                                                    (texts, pictures)]
                if dtype == "int8" or what == "taps":
                    np.testing.assert_array_equal(found, np.concatenate(parts))
    assert len(joined._arrays[0]) == 10 + 9  # samples that come again are held once
    assert len(sherl.Features.joined(texts[:2], pictures[:2])._arrays[0]) == 4 + 3 + 2
    three = sherl.Features.joined(pictures, texts, pictures)
    assert three.lengths.tolist() == [8, 7, 11, 8, 5]


def test_joined_features_train_as_copies_do(tmp_path):
    texts, pictures = two_parts()
    joined = sherl.Features.joined(texts.select([0]), pictures.select([0])).select([0, 0])
    copied = sherl.Features(joined.taps, joined.lengths)
    assert joined.fingerprint == copied.fingerprint
    labels, found = [0, 1, 1, 0, 1], []
    joined.save(tmp_path / "joined")
    for features in (joined, copied, sherl.Features.open(tmp_path / "joined")):
        net = sherl.SideNetwork(sherl.MTSA(2, 5, 3), [], sherl.Classifier(5, 2, pool="mean"))
        net.fit(features, labels, epochs=2, batch_size=2, progress=False)
        found.append(net.state_dict())
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])


def test_joined_features_remember_where_they_come_from():
    texts, pictures = two_parts()
    texts = texts.with_positions([3, 2, 0, 1, 0])
    joined = sherl.Features.joined(texts, pictures)
    assert joined.source == {"joined": [texts.source, pictures.source]}
    assert joined.select([1]).source == {"joined": [{"backbone": "a", "states": [1]}, {"backbone": "b", "states": [5]}]}
    assert joined.positions.tolist() == [3, 2, 0, 1, 0]
    np.testing.assert_array_equal(joined.pooled(how="position"), texts.pooled(how="position"))
    assert sherl.Features.joined(texts, sherl.Features(pictures.taps, pictures.lengths)).source is None


def test_what_cannot_be_joined():
    texts, pictures = two_parts()
    for parts, kind, message in (
        ((texts, 3), TypeError, r"features\[1\] must be Features, got int"),
        ((texts,), ValueError, "two sets of features or more, got 1"),
        ((texts, pictures[:2]), ValueError, r"features\[1\] must have the 5 samples of features\[0\], got 2"),
        ((texts, pictures.select([0])), ValueError, r"taps of the channels of features\[0\], \[5, 6\], got \[5\]"),
        ((texts, pictures.astype("float16")), ValueError, r"taps of the dtypes of .*; astype gives another type"),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            sherl.Features.joined(*parts)
    image = sherl.Features.from_arrays([np.zeros((2, 3, 3, 4), np.float32)])
    with pytest.raises(ValueError, match=r"features\[0\] must have rows of tokens"):
        sherl.Features.joined(image, image)
