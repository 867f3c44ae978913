"""Rows of float16, bfloat16, float32 and float64 as the core reads and writes them, against NumPy's conversions."""

import numpy as np
import pytest

from sherl import _core, _core_double

pytestmark = pytest.mark.core

CORES = {"float32": _core, "float64": _core_double}
EVERY_16_BITS = np.arange(2**16, dtype=np.uint16)


def copy(core, source, target):
    """Send one column of elements through a program that does nothing."""
    graph = core.Graph(core.Parameters(), False)
    graph.output(graph.activate(graph.input("x", core.SAMPLES, 1), "identity"))
    target = np.full((len(source), 1), 0, target)
    graph.compile(False).forward(len(source), [None], [(source[:, None], None)], [(target, None)])
    return target[:, 0]


def reals():
    """Numbers between, at and beyond those of 16 bits, and random bits."""
    generator = np.random.default_rng(0)
    halves = np.arange(2**15 - 2**10, dtype=np.uint16).view(np.float16).astype(np.float64)
    ties = (halves[1:] + halves[:-1]) / 2
    random = generator.integers(0, 2**32, 100000, dtype=np.uint32).view(np.float32).astype(np.float64)
    edges = [65504, 65519.99, 65520, 65536, 3.3895314e38, 3.3961776e38, 3.4e38, 2.0**-25, 2.0**-24, 1e-45, np.inf,
             np.nan, 0]
    values = np.concatenate([halves, ties, ties * (1 - 1e-7), ties * (1 + 1e-7), edges])
    return np.concatenate([values, -values, random])


def to_bfloat16(values):
    """The nearest bfloat16, ties to even, as its bits; `values` are float64 and hold no NaN."""
    exponent = np.frexp(values)[1]
    unit = np.ldexp(1.0, np.maximum(exponent - 8, -133))
    rounded = np.where(np.isfinite(values), np.rint(values / unit) * unit, values)
    with np.errstate(over="ignore"):
        return (rounded.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("real", CORES)
def test_every_float16_is_read(real):
    source = EVERY_16_BITS.view(np.float16)
    np.testing.assert_array_equal(copy(CORES[real], source, real), source.astype(real))


@pytest.mark.parametrize("real", CORES)
def test_every_bfloat16_is_read(real):
    with np.errstate(invalid="ignore"):  # some of the NaN are signalling
        expected = (EVERY_16_BITS.astype(np.uint32) << 16).view(np.float32).astype(real)
    np.testing.assert_array_equal(copy(CORES[real], EVERY_16_BITS, real), expected)


@pytest.mark.parametrize("real", CORES)
def test_float16_is_written_rounded_to_nearest_even(real):
    with np.errstate(over="ignore", invalid="ignore"):
        source = reals().astype(real)
        expected = source.astype(np.float16)
    written = copy(CORES[real], source, np.float16)
    np.testing.assert_array_equal(written, expected)
    number = ~np.isnan(source)
    np.testing.assert_array_equal(written[number].view(np.uint16), expected[number].view(np.uint16))


@pytest.mark.parametrize("real", CORES)
def test_bfloat16_is_written_rounded_to_nearest_even(real):
    with np.errstate(over="ignore", invalid="ignore"):
        source = reals().astype(real)
    written = copy(CORES[real], source, np.uint16)
    number = ~np.isnan(source)
    np.testing.assert_array_equal(written[number], to_bfloat16(source[number].astype(np.float64)))
    assert np.all((written[~number] & 0x7FFF) > 0x7F80)


@pytest.mark.parametrize("target", ["float32", "float64"])
@pytest.mark.parametrize("real", CORES)
def test_float32_and_float64_pass_unchanged_or_rounded(real, target):
    with np.errstate(over="ignore", invalid="ignore"):
        source = np.concatenate([reals(), [1 + 2.0**-30, 1e300]])
        expected = source.astype(real).astype(target)
    np.testing.assert_array_equal(copy(CORES[real], source, target), expected)
