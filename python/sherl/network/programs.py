"""The compiled graphs of a network, by purpose."""

from contextlib import contextmanager

from .. import _core
from ..blocks.bottleneck import Bottleneck
from ..blocks.transformer import TransformerLayer

LATE = (TransformerLayer, Bottleneck)


class Programs:
    """Programs over a network's parameters, compiled when first asked for and kept.

    Parameters
    ----------
    early, late, head
        The blocks.
    bfloat16 : bool
        Whether frozen late layers multiply in bfloat16.
    """

    def __init__(self, early, late, head, bfloat16=False):
        self._early, self._late, self._head = early, late, head
        self._bfloat16 = bfloat16
        self.store = _core.Parameters()
        self._graph(False, loss=head._has_loss, output=True, taps_gradient=False)  # its parameters are now in the store
        self._compiled = {}

    def parts(self):
        """Return (prefix, block) of every block."""
        late = [(f"late.{number}.", layer) for number, layer in enumerate(self._late)]
        return [("early.", self._early), *late, ("head.", self._head)]

    def output(self):
        """Return the program from taps to outputs."""
        return self._program(training=False, gradient=False, loss=False, output=True)

    def output_gradient(self, training, taps_gradient):
        """Return the program from taps to outputs with the gradient for a cotangent."""
        return self._program(training=training, gradient=True, loss=False, output=True, taps_gradient=taps_gradient)

    def evaluation(self):
        """Return the program from taps, labels and weights to outputs and loss."""
        return self._program(training=False, gradient=False, loss=True, output=True)

    def loss_gradient(self, training):
        """Return the program from taps, labels and weights to the loss and its gradient."""
        return self._program(training=training, gradient=True, loss=True, output=False)

    def consolidation(self):
        """Return the program from taps to the features that the early block's guidance weighs, and their guide."""
        if "consolidation" not in self._compiled:
            graph = _core.Graph(self.store, False)
            for value in self._early._build_features(graph, "early.", self._early._declare_in_network(graph, False)):
                graph.output(value)
            self._compiled["consolidation"] = graph.compile(False)
        return self._compiled["consolidation"]

    @contextmanager
    def bounded(self, program, budget, features):
        """Bound what the network holds while one of its programs runs.

        Parameters
        ----------
        program : _core.Program
        budget : Budget or None
            None for no bound.
        features : Features
            The samples of all batches to come.
        """
        if budget is None:
            yield
            return
        for other in self._compiled.values():
            if other is not program and other.nbytes:
                other.release_workspace()
        program.set_memory_budget(budget.room(program, features.largest))
        try:
            yield
        finally:
            program.set_memory_budget(0)

    def _program(self, *, training, gradient, loss, output, taps_gradient=False):
        key = training, gradient, loss, output, taps_gradient
        if key not in self._compiled:
            graph = self._graph(training, loss=loss, output=output, taps_gradient=taps_gradient)
            self._compiled[key] = graph.compile(gradient)
        return self._compiled[key]

    def _graph(self, training, *, loss, output, taps_gradient):
        graph = _core.Graph(self.store, training)
        x = self._early._declare_in_network(graph, taps_gradient)
        positions = self._head._declare_positions(graph)
        for prefix, block in self.parts():
            frozen = isinstance(block, LATE) and not block.trainable
            options = {"bfloat16": self._bfloat16} if frozen else {}
            inputs = x + positions if block is self._head else x
            x = [block._build(graph, prefix, inputs, **options)]
        if output:
            graph.output(x[0])
        if loss:
            graph.loss(self._head._build_loss(graph, "head.", x[0]))
        return graph
