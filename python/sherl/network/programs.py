"""The compiled graphs of a network, by purpose."""

from .. import _core

_TOKENS = "tokens"


class Programs:
    """Programs over a network's parameters, compiled when first asked for and kept.

    Parameters
    ----------
    early, late, head
        The blocks.
    """

    def __init__(self, early, late, head):
        self._early, self._late, self._head = early, late, head
        self.store = _core.Parameters()
        self._graph(False, loss=True, output=True, taps_gradient=False)  # its parameters are now in the store
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

    def _program(self, *, training, gradient, loss, output, taps_gradient=False):
        key = training, gradient, loss, output, taps_gradient
        if key not in self._compiled:
            graph = self._graph(training, loss=loss, output=output, taps_gradient=taps_gradient)
            self._compiled[key] = graph.compile(gradient)
        return self._compiled[key]

    def _graph(self, training, *, loss, output, taps_gradient):
        graph = _core.Graph(self.store, training)
        tokens = graph.space(_TOKENS)
        taps = [graph.input(f"tap{number}", tokens, channels, taps_gradient)
                for number, channels in enumerate(self._early.features)]
        # The early block stands in for what the first late layer would have received: the last tap.
        x = [*taps, taps[-1]]
        for prefix, block in self.parts():
            x = [block._build(graph, prefix, x)]
        if output:
            graph.output(x[0])
        if loss:
            graph.loss(self._head._build_loss(graph, "head.", x[0]))
        return graph
