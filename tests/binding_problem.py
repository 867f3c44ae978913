"""A small problem for the tests of the binding, and what they share."""

import gc

import numpy as np

CHANNELS, CLASSES = 8, 3


def settled(core):
    """Live allocations once everything unreachable is gone."""
    gc.collect()
    return core.live_allocations()


class Classification:
    """A small classification problem: tap -> linear -> relu -> mean -> linear -> cross-entropy."""

    def __init__(self, core, *, training=True, gradient=True, loss=True, hidden=5, parameters=None):
        self.core = core
        self.parameters = core.Parameters() if parameters is None else parameters
        graph = core.Graph(self.parameters, training)
        tokens = graph.space("tokens")
        tap = graph.input("tap", tokens, CHANNELS, needs_gradient=gradient)
        weight = graph.parameter("down.weight", (hidden, CHANNELS), initializer="xavier_uniform")
        bias = graph.parameter("down.bias", (hidden,), "trainable", "zeros")
        pooled = graph.pool(graph.linear(tap, weight, bias, "relu"), "mean")
        logits = graph.head("head.", pooled, outputs=CLASSES)
        graph.output(logits)
        if loss:
            targets = graph.indices("targets", core.SAMPLES)
            weights = graph.input("weights", core.SAMPLES, 1)
            graph.loss(graph.cross_entropy(logits, targets, weights))
        self.program = graph.compile(gradient)

    def batch(self, lengths=(2, 3, 1), seed=0):
        generator = np.random.default_rng(seed)
        samples = len(lengths)
        self.offsets = [None, np.cumsum([0, *lengths])]
        self.tap = generator.standard_normal((sum(lengths), CHANNELS)).astype(self.core.REAL)
        self.targets = generator.integers(0, CLASSES, (samples, 1))
        self.weights = np.full((samples, 1), 1 / samples, self.core.REAL)
        inputs = [(self.tap, None), (self.targets, None), (self.weights, None)]
        return samples, self.offsets, inputs

    def states(self):
        return {name: self.parameters.array(name).copy() for name in self.parameters.names()}


def layer_weights(core, hidden=4, intermediate=6):
    shapes = {f"{name}_weight": (hidden, hidden) for name in ("query", "key", "value", "output")}
    shapes |= {f"{name}_bias": (hidden,) for name in ("query", "key", "value", "output", "down")}
    shapes |= {f"{n}_norm_{leaf}": (hidden,) for n in ("attention", "feed_forward") for leaf in ("weight", "bias")}
    shapes |= {"up_weight": (intermediate, hidden), "up_bias": (intermediate,), "down_weight": (hidden, intermediate)}
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(shape).astype(core.REAL) for name, shape in shapes.items()}
