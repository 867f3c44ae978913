"""Builds programs of one or a few ops over ragged segments, and compares their gradients with finite differences."""

import numpy as np

from sherl import _core, _core_double

SAMPLES = "samples"  # the row space with one row a sample


class OpCase:
    """A compiled program of the values that ``build`` makes, with the arrays that it runs on.

    Parameters
    ----------
    build : callable
        ``build(graph, values, parameters)`` returns the output value. ``values`` and ``parameters`` map the names of
        ``inputs`` and ``parameters`` to what the graph knows them as.
    lengths : dict of str to list of int or of (int, int)
        Segment lengths, one a sample, by row space; or heights and widths of images. Every row space has as many
        samples.
    inputs : dict of str to (str, array)
        Row space and rows of each input. Integer arrays are indices; the others get a gradient.
    output : (str or int, int)
        Row space, or number of rows where the ops make the row space, and channels of the output.
    parameters : dict of str to (str, array)
        Role ("trainable", "frozen" or "state") and data of each parameter.
    training : bool
        Whether dropout and batch statistics are on.
    core : module
        ``_core_double`` (float64) or ``_core`` (float32).
    tile_rows : int
        Most rows of a tile; few, so that a batch has several tiles.

    Attributes
    ----------
    inputs, parameters : dict of str to array
        What the next run uses; may be changed in place.
    """

    def __init__(self, build, *, lengths, inputs, output, parameters=None, training=False, core=_core_double,
                 tile_rows=5):
        self.real = np.dtype(core.REAL)
        self.samples = len(next(iter(lengths.values())))
        rows_of = lambda space: [int(np.prod(rows)) for rows in space]
        self.lengths = {SAMPLES: [1] * self.samples, **{name: rows_of(space) for name, space in lengths.items()}}
        self.store = core.Parameters()
        graph = core.Graph(self.store, training)
        spaces, self.offsets = {SAMPLES: core.SAMPLES}, [None]
        for name, rows in lengths.items():
            images = np.ndim(rows) == 2
            spaces[name] = graph.grid(name) if images else graph.space(name)
            self.offsets.append(np.array(rows if images else np.cumsum([0, *rows]), np.int64))
        self.inputs = {name: self._own(rows) for name, (_, rows) in inputs.items()}
        values = {name: self._declare(graph, name, spaces[inputs[name][0]]) for name in inputs}
        known = {name: self._parameter(graph, name, *given) for name, given in (parameters or {}).items()}
        self.parameters = {name: self.store.array(name) for name in known}
        value = build(graph, values, known)
        graph.output(value)
        self.output_shape = (output[0] if isinstance(output[0], int) else sum(self.lengths[output[0]]), output[1])
        self.has_gradient = bool(self.store.names("trainable")) or any(map(is_real, self.inputs.values()))
        self.program = graph.compile(self.has_gradient)
        self.program.set_tile_rows(tile_rows)

    def forward(self, seed=1, step=0):
        """The output."""
        output = np.full(self.output_shape, np.nan, self.real)
        self.program.forward(self.samples, self.offsets, self._sources(), [(output, None)], seed=seed, step=step)
        return output

    def gradient(self, cotangent, seed=1, step=0):
        """The gradients of ``sum(cotangent * output)``: two dicts, of the inputs and of the trainable parameters."""
        cotangent = np.asarray(cotangent, self.real)
        gradients = {name: np.full(rows.shape, np.nan, self.real) for name, rows in self.inputs.items()
                     if is_real(rows)}
        sinks = [(gradients[name], None) if name in gradients else None for name in self.inputs]
        self.program.gradient(
            self.samples, self.offsets, self._sources(), cotangents=[(cotangent, None)], input_gradients=sinks,
            seed=seed, step=step,
        )  # fmt: skip
        return gradients, {name: self.program.parameter_gradient(name) for name in self.store.names("trainable")}

    def finite_differences(self, cotangent, seed=1, step=0, width=1e-5):
        """The same gradients by central differences, entry by entry."""
        change = lambda array: central_differences(lambda: np.sum(cotangent * self.forward(seed, step)), array, width)
        by_input = {name: change(rows) for name, rows in self.inputs.items() if is_real(rows)}
        return by_input, {name: change(self.parameters[name]) for name in self.store.names("trainable")}

    def _own(self, rows):
        rows = np.asarray(rows)
        return rows.astype(self.real) if is_real(rows) else rows.astype(np.int32).reshape(-1, 1)

    def _declare(self, graph, name, space):
        rows = self.inputs[name]
        if is_real(rows):
            return graph.input(name, space, rows.shape[1], needs_gradient=True)
        return graph.indices(name, space)

    def _parameter(self, graph, name, role, data):
        data = np.array(data, self.real, order="C")
        parameter = graph.parameter(name, data.shape, role, data=data if role == "frozen" else None)
        if role != "frozen":
            self.store.array(name)[...] = data
        return parameter

    def _sources(self):
        return [(rows, None) for rows in self.inputs.values()]


def is_real(array):
    return array.dtype.kind == "f"


def central_differences(function, array, width):
    """The derivative of ``function()`` with respect to each entry of ``array``, which it reads."""
    gradient = np.empty(array.shape, array.dtype)
    for index in np.ndindex(array.shape):
        kept = array[index]
        step = width * max(1.0, abs(kept))
        array[index] = kept + step
        above = function()
        array[index] = kept - step
        below = function()
        array[index] = kept
        gradient[index] = (above - below) / (2 * step)
    return gradient


def assert_close(actual, expected, tolerance, what=""):
    """Both agree to ``tolerance`` times the greatest magnitude of ``expected`` (or one, when that is more)."""
    assert np.shape(actual) == np.shape(expected), what
    if np.size(expected):
        scale = max(1.0, np.max(np.abs(expected)))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=what)


def check_gradients(build, generator, tolerance=1e-6, width=1e-5, **arguments):
    """Compare every gradient of an `OpCase` with finite differences, in float64, for a random cotangent."""
    case = OpCase(build, core=_core_double, **arguments)
    cotangent = generator.standard_normal(case.output_shape)
    got, wanted = case.gradient(cotangent), case.finite_differences(cotangent, width=width)
    for kind, actual, expected in zip(("input", "parameter"), got, wanted, strict=True):
        assert actual.keys() == expected.keys()
        for name in actual:
            assert_close(actual[name], expected[name], tolerance, f"gradient of {kind} {name}")


def check_forward(build, expected, tolerance=1e-5, **arguments):
    """Compare the output of an `OpCase` with a NumPy twin's, in float64 closely and in float32 to ``tolerance``."""
    assert_close(OpCase(build, core=_core_double, **arguments).forward(), expected, 1e-12, "float64")
    assert_close(OpCase(build, core=_core, **arguments).forward(), expected, tolerance, "float32")


def ragged(generator, samples=None, longest=4):
    """Segment lengths of a few samples, each of at least one row."""
    samples = samples or int(generator.integers(1, 5))
    return [int(rows) for rows in generator.integers(1, longest + 1, samples)]
