"""Ops over images, and spatial guidance, against NumPy twins and finite differences."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from op_harness import SAMPLES, OpCase, check_forward, check_gradients, ragged

from sherl import _core, _core_double

pytestmark = pytest.mark.core
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=30, deadline=None)


def images_of(rows, sizes):
    """Split pixel rows into images (height, width, channels)."""
    ends = np.cumsum([height * width for height, width in sizes])[:-1]
    return [part.reshape(*size, -1) for part, size in zip(np.split(rows, ends), sizes, strict=True)]


def rows_of(images):
    return np.concatenate([image.reshape(-1, image.shape[-1]) for image in images])


def convolve(image, weight, size, stride, padding):
    """The twin: weight (out, size * size * in), window pixels before channels."""
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    height, width = ((length - size) // stride + 1 for length in padded.shape[:2])
    return np.stack([
        np.stack([
            weight @ padded[y * stride : y * stride + size, x * stride : x * stride + size].reshape(-1)
            for x in range(width)
        ])
        for y in range(height)
    ])  # fmt: skip


def pool(image, size):
    height, width = image.shape[0] // size, image.shape[1] // size
    windows = image[: height * size, : width * size].reshape(height, size, width, size, -1)
    return windows.max(axis=(1, 3)) + windows.mean(axis=(1, 3))


def random_sizes(generator, least, samples=3):
    return [tuple(int(n) for n in generator.integers(least, least + 4, 2)) for _ in range(samples)]


def convolution_case(generator, size, stride, padding, role="frozen", bias=True, activation="identity"):
    sizes = random_sizes(generator, max(1, size - padding))
    x = generator.standard_normal((sum(h * w for h, w in sizes), 3))
    parameters = {"weight": (role, generator.standard_normal((4, size * size * 3)))}
    if bias:
        parameters["bias"] = (role, generator.standard_normal(4))
    images = [
        convolve(image, parameters["weight"][1], size, stride, padding) + (parameters["bias"][1] if bias else 0)
        for image in images_of(x, sizes)
    ]
    expected = rows_of(images)

    def build(graph, values, known):
        return graph.convolution(values["x"], known["weight"], known.get("bias"), size=size, stride=stride,
                                 padding=padding, activation=activation)

    arguments = {
        "lengths": {"pixels": sizes}, "inputs": {"x": ("pixels", x)}, "output": (len(expected), 4),
        "parameters": parameters,
    }  # fmt: skip
    return build, expected, arguments


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(3, 1, 1), (3, 2, 1), (1, 2, 0), (1, 1, 0), (2, 2, 0), (3, 1, 0), (3, 3, 2), (5, 2, 2)],
)
@pytest.mark.parametrize("role", ["frozen", "trainable"])
def test_convolution(size, stride, padding, role):
    generator = np.random.default_rng([size, stride, padding])
    build, expected, arguments = convolution_case(generator, size, stride, padding, role, bias=stride < 3)
    check_forward(build, expected, **arguments)
    check_gradients(build, generator, **arguments)


def test_convolution_with_relu():
    generator = np.random.default_rng(5)
    build, expected, arguments = convolution_case(generator, 3, 1, 1, activation="relu")
    assert np.abs(expected).min() > 1e-4
    check_forward(build, np.maximum(expected, 0), **arguments)
    check_gradients(build, generator, **arguments)


@quick
@given(seeds)
def test_convolution_of_any_window(seed):
    generator = np.random.default_rng(seed)
    size, stride = (int(n) for n in generator.integers(1, 4, 2))
    build, expected, arguments = convolution_case(generator, size, stride, int(generator.integers(0, size)))
    check_forward(build, expected, **arguments)


@pytest.mark.parametrize(
    ("sizes", "channels", "size"), [([(25, 17), (5, 5), (11, 19)], 1, 3), ([(2, 3), (3, 2)], 300, 2)],
    ids=["rows", "deep"]
)
def test_convolution_in_several_passes(sizes, channels, size):
    """More output rows, over several images of a tile, or deeper windows than are gathered at a time."""
    generator = np.random.default_rng(2)
    x = generator.standard_normal((sum(h * w for h, w in sizes), channels))
    weight = generator.standard_normal((2, size * size * channels))
    expected = rows_of([convolve(image, weight, size, 1, 1) for image in images_of(x, sizes)])

    def build(graph, values, known):
        return graph.convolution(values["x"], known["weight"], size=size, padding=1)

    arguments = {
        "lengths": {"pixels": sizes}, "inputs": {"x": ("pixels", x)}, "output": (len(expected), 2),
        "parameters": {"weight": ("trainable", weight)}, "tile_rows": 1000,
    }  # fmt: skip
    check_forward(build, expected, **arguments)
    check_gradients(build, generator, **arguments)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_window_pooling(size):
    generator = np.random.default_rng(size)
    sizes = random_sizes(generator, size)
    x = generator.permuted(np.arange(3.0 * sum(h * w for h, w in sizes))).reshape(-1, 3) / 7
    expected = rows_of([pool(image, size) for image in images_of(x, sizes)])
    arguments = {
        "lengths": {"pixels": sizes}, "inputs": {"x": ("pixels", x)}, "output": (len(expected), 3)
    }  # fmt: skip
    build = lambda graph, values, known: graph.window_pool(values["x"], size)
    check_forward(build, expected, **arguments)
    check_gradients(build, generator, **arguments)


def test_window_pooling_gives_the_maximum_to_the_first_of_equals_and_passes_on_what_is_not_a_number():
    build = lambda graph, values, known: graph.window_pool(values["x"], 2)
    x = np.array([[1, 5], [2, 5], [2, 4], [0, np.nan]])
    case = OpCase(build, lengths={"pixels": [(2, 2)]}, inputs={"x": ("pixels", x)}, output=(1, 2))
    assert np.array_equal(case.forward(), [[3.25, np.nan]], equal_nan=True)
    inputs, _ = case.gradient([[4, 8]])
    assert np.array_equal(inputs["x"], [[1, 2], [5, 2], [1, 2], [1, 10]])


def test_ops_over_images_add_to_gradients_and_share_row_spaces():
    """Two windows that give one row space, whose gradients meet in x."""
    generator = np.random.default_rng(8)
    sizes = [(4, 6), (2, 2)]
    x = generator.permuted(np.arange(2.0 * 28)).reshape(-1, 2) / 9
    weight = generator.standard_normal((2, 8))

    def build(graph, values, known):
        pooled = graph.window_pool(values["x"], 2)
        convolved = graph.convolution(values["x"], known["weight"], size=2, stride=2, output=graph.value_space(pooled))
        return graph.multiply(pooled, convolved)

    expected = rows_of([pool(image, 2) * convolve(image, weight, 2, 2, 0) for image in images_of(x, sizes)])
    arguments = {
        "lengths": {"pixels": sizes}, "inputs": {"x": ("pixels", x)}, "output": (7, 2),
        "parameters": {"weight": ("trainable", weight)},
    }  # fmt: skip
    check_forward(build, expected, **arguments)
    check_gradients(build, generator, **arguments)


def test_several_images_pool_to_the_size_of_one():
    generator = np.random.default_rng(4)
    small = [(2, 1), (1, 3)]
    large = [(2 * h + 1, 2 * w) for h, w in small]
    x, y = (generator.standard_normal((sum(h * w for h, w in sizes), 2)) for sizes in (large, small))

    def build(graph, values, known):
        return graph.add(graph.window_pool(values["x"], 2, graph.value_space(values["y"])), values["y"])

    arguments = {
        "lengths": {"large": large, "small": small}, "inputs": {"x": ("large", x), "y": ("small", y)},
        "output": ("small", 2),
    }  # fmt: skip
    check_forward(build, rows_of([pool(image, 2) for image in images_of(x, large)]) + y, **arguments)
    case = OpCase(build, **arguments)
    case.offsets[1] = np.array([[5, 2], [4, 6]])
    with pytest.raises(ValueError, match="heights and widths that do not fit"):
        case.forward()


def test_images_that_do_not_fit_are_refused():
    build = lambda graph, values, known: graph.window_pool(values["x"], 3)
    with pytest.raises(ValueError, match="do not fit"):
        OpCase(build, lengths={"p": [(3, 2)]}, inputs={"x": ("p", np.zeros((6, 1)))}, output=(1, 1)).forward()
    case = OpCase(build, lengths={"p": [(3, 3)]}, inputs={"x": ("p", np.zeros((9, 1)))}, output=(1, 1))
    for sizes, message in [
        ([[3, 0]], "heights and widths of at least 1, not 0"),
        ([[3, 3], [3, 3]], "must have 1 elements, not 2"),
        ([[3, 3, 1]], "must have 2 columns, not 3"),
        ([9], "must have 2 dimensions, not 1"),
        ([[2**40, 2**40]], "larger than its type can hold"),
    ]:
        case.offsets[1] = np.array(sizes, np.int64)
        with pytest.raises((ValueError, OverflowError), match=message):
            case.forward()


@pytest.mark.parametrize("core", [_core, _core_double])
def test_bad_windows_are_refused(core):
    def attempt(build, images=True):
        graph = core.Graph(core.Parameters(), False)
        space = graph.grid("pixels") if images else graph.space("rows")
        weight = graph.parameter("weight", (2, 9))
        return build(graph, graph.input("x", space, 1), weight)

    for build, message in [
        (lambda g, x, w: g.convolution(x, w, size=3, padding=3), "padding 3"),
        (lambda g, x, w: g.convolution(x, w, size=2), "must be 2 x 4, not 2 x 9"),
        (lambda g, x, w: g.convolution(x, w, size=3, activation="gelu"), "none or relu"),
        (lambda g, x, w: g.convolution(x, w, size=3, output=0), "output must be a row space of images"),
        (lambda g, x, w: g.convolution(x, w, size=3, output=9), "output must be a row space of images"),
        (lambda g, x, w: g.convolution(x, 7, size=3), "not a parameter"),
        (lambda g, x, w: g.window_pool(x, 2000), "size 2000"),
        (lambda g, x, w: g.window_pool(7, 2), "not a value"),
        (lambda g, x, w: g.value_space(7), "not one of this graph"),
    ]:
        with pytest.raises(ValueError, match=message):
            attempt(build)
    with pytest.raises(ValueError, match="must lie in a row space of images"):
        attempt(lambda g, x, w: g.window_pool(x, 1), images=False)


# ---- Spatial guidance -----------------------------------------------------------------------------------------------


def spatial_twin(x, guide, weight, bias, base, scale, eps):
    u = np.maximum(x @ (weight * guide) + bias, 0)
    return (u / (u.sum() + eps)) @ x + scale * x[base]


@quick
@given(seeds, st.sampled_from(["first", "last", "position"]), st.booleans())
def test_spatial_guidance(seed, base, gated):
    generator = np.random.default_rng(seed)
    lengths, channels = ragged(generator), 3
    x = generator.standard_normal((sum(lengths), channels))
    guide = generator.standard_normal((len(lengths), channels))
    weight, bias, gate = generator.standard_normal((1, channels)), generator.standard_normal(1), [1.5, 0.2, -0.1]
    position = np.array([generator.integers(rows) for rows in lengths])
    places = {"first": 0 * position, "last": np.array(lengths) - 1, "position": position}[base]
    segments = np.split(x, np.cumsum(lengths)[:-1])
    scores = np.concatenate([rows @ (weight[0] * e) + bias for rows, e in zip(segments, guide)])
    assume(np.abs(scores).min() > 1e-2)  # a step of the differences must not cross the bend
    assume(all((np.maximum(rows @ (weight[0] * e) + bias, 0)).sum() == 0 or
               (np.maximum(rows @ (weight[0] * e) + bias, 0)).sum() > 0.05 for rows, e in zip(segments, guide)))
    scale = 1 / (1 + np.exp(-gate[1] / 0.5)) if gated else 1
    expected = np.stack([
        spatial_twin(rows, e, weight[0], bias[0], place, scale, 1e-3)
        for rows, e, place in zip(segments, guide, places)
    ])  # fmt: skip

    def build(graph, values, known):
        return graph.spatial_guidance(
            values["x"], values["guide"], known["weight"], known["bias"], known.get("gate"), values.get("position"),
            base=base, eps=1e-3, temperature=0.5, index=1 if gated else 0,
        )  # fmt: skip

    inputs = {"x": ("rows", x), "guide": (SAMPLES, guide)}
    if base == "position":
        inputs["position"] = (SAMPLES, position)
    parameters = {"weight": ("trainable", weight), "bias": ("trainable", bias)}
    if gated:
        parameters["gate"] = ("trainable", gate)
    arguments = {
        "lengths": {"rows": lengths}, "inputs": inputs, "output": (SAMPLES, channels), "parameters": parameters
    }  # fmt: skip
    check_forward(build, expected, tolerance=1e-4, **arguments)
    check_gradients(build, generator, tolerance=1e-5, **arguments)


def test_a_position_outside_its_sample_is_refused():
    def build(graph, values, known):
        return graph.spatial_guidance(values["x"], values["guide"], known["weight"], known["bias"],
                                      position=values["position"], base="position")

    case = OpCase(
        build, lengths={"rows": [2, 3]}, output=(SAMPLES, 2),
        inputs={"x": ("rows", np.ones((5, 2))), "guide": (SAMPLES, np.ones((2, 2))), "position": (SAMPLES, [1, 2])},
        parameters={"weight": ("frozen", [[1, 1]]), "bias": ("frozen", [0])},
    )  # fmt: skip
    assert np.isfinite(case.forward()).all()
    for number in (2, -1):
        case.inputs["position"][0] = number
        with pytest.raises(ValueError, match="outside|range"):
            case.forward()


def test_spatial_guidance_over_images_is_allowed_and_its_operands_are_checked():
    def attempt(build):
        graph = _core.Graph(_core.Parameters(), False)
        x, guide = graph.input("x", graph.grid("pixels"), 2), graph.input("guide", _core.SAMPLES, 2)
        weight, bias = graph.parameter("weight", (1, 2)), graph.parameter("bias", (1,))
        return build(graph, x, guide, weight, bias)

    assert attempt(lambda g, x, e, w, b: g.spatial_guidance(x, e, w, b)) is not None
    for build, message in [
        (lambda g, x, e, w, b: g.spatial_guidance(x, x, w, b), "one row a sample"),
        (lambda g, x, e, w, b: g.spatial_guidance(x, e, b, b), "must be 1 x 2"),
        (lambda g, x, e, w, b: g.spatial_guidance(x, e, w, b, b, index=1), "more than 1"),
        (lambda g, x, e, w, b: g.spatial_guidance(x, e, w, b, eps=0), "eps must be at least"),
        (lambda g, x, e, w, b: g.spatial_guidance(x, e, w, b, base="position"), "position is not a value"),
    ]:
        with pytest.raises(ValueError, match=message):
            attempt(build)


# ---- Whole programs --------------------------------------------------------------------------------------------------


def test_bits_do_not_depend_on_threads(keep_threads):
    generator = np.random.default_rng(6)
    sizes = [tuple(int(n) for n in generator.integers(4, 12, 2)) for _ in range(9)]
    x = generator.standard_normal((sum(h * w for h, w in sizes), 8)).astype(np.float32)
    weight = generator.standard_normal((8, 72)).astype(np.float32)

    def build(graph, values, known):
        y = graph.convolution(values["x"], known["weight"], size=3, stride=2, padding=1, activation="relu")
        y = graph.batch_norm(y, known["scale"], known["shift"], known["mean"], known["variance"], 1e-5, 0.1)
        return graph.pool(graph.window_pool(y, 2), "mean")

    parameters = {
        "weight": ("trainable", weight), "scale": ("trainable", np.ones(8)), "shift": ("trainable", np.zeros(8)),
        "mean": ("state", np.zeros(8)), "variance": ("state", np.ones(8)),
    }  # fmt: skip
    found = []
    for threads in (1, 2, 5):
        _core.set_threads(threads)
        case = OpCase(build, core=_core, lengths={"pixels": sizes}, inputs={"x": ("pixels", x)}, output=(SAMPLES, 8),
                      parameters=parameters, training=True, tile_rows=100)
        inputs, trained = case.gradient(np.ones((9, 8)))
        found.append([inputs["x"].tobytes(), *(array.tobytes() for array in trained.values()),
                      *(case.parameters[name].tobytes() for name in ("mean", "variance"))])
    assert found[0] == found[1] == found[2]


def test_memory_of_images_grows_with_one_image_and_not_with_the_batch(keep_threads):
    _core.set_threads(2)
    store = _core.Parameters()
    graph = _core.Graph(store, False)
    x = graph.input("x", graph.grid("pixels"), 4)
    graph.output(graph.convolution(x, graph.parameter("weight", (4, 36)), size=3, stride=2, padding=1))
    program = graph.compile(False)
    arenas = lambda samples, side: program.memory(samples, [None, np.full((samples, 2), side)])["arenas"]
    assert arenas(16, 32) == arenas(64, 32) < arenas(64, 64)
    assert program.least_memory(3, [None, np.full((3, 2), 16)]) > 0
