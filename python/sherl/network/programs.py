"""The compiled graphs of a network, by purpose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .. import _core
from ..blocks.foreign import ForeignLayer
from ..blocks.queries import Stream
from ..blocks.residual import ResidualBlock
from ..training.chain import Chain
from .late_route import given_positions

if TYPE_CHECKING:
    from ..blocks.block import Block
    from ..blocks.heads import Head
    from ..blocks.language_head import LanguageHead
    from ..blocks.late import LateLayer
    from ..blocks.mtsa import MTSA
    from ..blocks.norm import RMSNorm
    from ..training.budget import Budget
    from ..training.chain import Program


class Programs:
    """Programs over a network's parameters, compiled when first asked for and kept.

    Parameters
    ----------
    early, late, head
        The blocks.
    bfloat16 : bool
        Whether frozen late layers multiply in bfloat16.
    """

    def __init__(self, early: MTSA, late: Sequence[LateLayer], head: Head, bfloat16: bool = False) -> None:
        self._early, self._late, self._head = early, late, head
        self._bfloat16 = bfloat16
        self._begin()

    def _begin(self) -> None:
        self.store = _core.Parameters()
        self.foreign = [layer for layer in self._late if isinstance(layer, ForeignLayer)]
        # Their parameters are now in the store.
        self._graphs(False, gradient=False, loss=self._head._has_loss, output=True, taps_gradient=False)
        self._compiled: dict[Any, Any] = {}

    def parts(self) -> list[tuple[str, Any]]:
        """Return (prefix, block) of every block."""
        late = [(f"late.{number}.", layer) for number, layer in enumerate(self._late)]
        return [("early.", self._early), *late, ("head.", self._head)]

    def output(self) -> Program:
        """Return the program from taps to outputs."""
        return self._program(training=False, gradient=False, loss=False, output=True)

    def output_gradient(self, training: bool, taps_gradient: bool) -> Program:
        """Return the program from taps to outputs with the gradient for a cotangent."""
        return self._program(training=training, gradient=True, loss=False, output=True, taps_gradient=taps_gradient)

    def evaluation(self) -> Program:
        """Return the program from taps, labels and weights to outputs and loss."""
        return self._program(training=False, gradient=False, loss=True, output=True)

    def loss_gradient(self, training: bool) -> Program:
        """Return the program from taps, labels and weights to the loss and its gradient."""
        return self._program(training=training, gradient=True, loss=True, output=False)

    def consolidation(self) -> _core.Program:
        """Return the program from taps to the features that the early block's guidance weighs, and their guide."""
        if "consolidation" not in self._compiled:
            graph = _core.Graph(self.store, False)
            for value in self._early._build_features(graph, "early.", self._early._declare_in_network(graph, False)):
                graph.output(value)
            self._compiled["consolidation"] = graph.compile(False)
        program: _core.Program = self._compiled["consolidation"]
        return program

    @contextmanager
    def bounded(self, program: Program, budget: Budget | None, features: Any) -> Iterator[None]:
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
        room = budget.room(program, features.largest)
        assert not isinstance(program, Chain)  # which no budget bounds
        program.set_memory_budget(room)
        try:
            yield
        finally:
            program.set_memory_budget(0)

    def _program(self, *, training: bool, gradient: bool, loss: bool, output: bool,
                 taps_gradient: bool = False) -> Program:
        key = training, gradient, loss, output, taps_gradient
        if key not in self._compiled:
            graphs = self._graphs(training, gradient=gradient, loss=loss, output=output, taps_gradient=taps_gradient)
            programs = [graph.compile(gradient) for graph in graphs]
            self._compiled[key] = self._chained(*programs) if self.foreign else programs[0]
        program: Program = self._compiled[key]
        return program

    def _chained(self, first: _core.Program, second: _core.Program) -> Chain:
        ahead = self._late[: self._late.index(self.foreign[0])]
        prefixes = tuple(prefix for prefix, _ in self.parts()[: 1 + len(ahead)])
        return Chain(
            first, self.foreign, second, taps=self._early.taps,
            names={name for name in self.store.names() if name.startswith(prefixes)},
            lasting=[layer for layer in ahead if isinstance(layer, ResidualBlock)], row_outputs=not self._head._pooled,
            row_labels=self._head._loss_each_row, sample_inputs=int(self._head._takes_positions),
        )

    def _graphs(self, training: bool, *, gradient: bool, loss: bool, output: bool,
                taps_gradient: bool) -> list[_core.Graph]:
        """Return the graph, or that before and that behind the foreign layers."""
        graphs, passed = [_core.Graph(self.store, training)], 0
        taps, given = self.declare_rows(graphs[0], taps_gradient)
        positions = [] if self.foreign else self._head._declare_positions(graphs[0])
        (prefix, early), *late, (head_prefix, head) = self.parts()
        stream = Stream(self._build(graphs[0], prefix, early, taps), given=given)
        for prefix, block in late:
            if isinstance(block, ForeignLayer):
                passed += 1
                if passed == 1:
                    graphs[0].output(stream.x)
                    graphs.append(_core.Graph(self.store, training))
                    graphs[1].stream = graphs[0].stream  # so that dropout behind draws other numbers than before
                if passed == len(self.foreign):
                    stream = Stream(self._declare_behind(graphs[1], block, gradient))
                    positions = self._head._declare_positions(graphs[1])
                continue
            stream = self.advance(graphs[-1], prefix, block, stream)
        outputs = self._build(graphs[-1], head_prefix, head, [stream.x, *positions])
        if output:
            graphs[-1].output(outputs)
        if loss:
            graphs[-1].loss(head._build_loss(graphs[-1], head_prefix, outputs))
        return graphs

    def declare_rows(self, graph: _core.Graph, gradient: bool) -> tuple[list[int], int | None]:
        """Declare the taps, return the early block's inputs, and the rows of positions with them, or None."""
        taps, channels = self._early._declare_in_network(graph, gradient), given_positions(self._late)
        space = graph.value_space(taps[-1])
        return taps, None if channels is None else graph.input("positions", space, channels, gradient)

    def advance(self, graph: _core.Graph, prefix: str, block: Any, stream: Any) -> Any:
        """Add a late block to a graph, and return the stream behind it."""
        return block._advance(graph, prefix, stream, **self._options(block))

    def _declare_behind(self, graph: _core.Graph, layer: ForeignLayer, gradient: bool) -> int:
        """Declare what the last foreign layer gives."""
        space = graph.grid("pixels") if self._early.images else graph.space("tokens")
        return graph.input("x", space, layer.out_features, gradient)

    def _build(self, graph: _core.Graph, prefix: str, block: Block, inputs: Sequence[int]) -> int:
        """Add a block to a graph, and return its output."""
        return block._build(graph, prefix, inputs, **self._options(block))

    def _options(self, block: Any) -> dict[str, Any]:
        return {"bfloat16": self._bfloat16} if block._is_frozen else {}


class Seq2SeqPrograms(Programs):
    """The same of a network with an encoder's taps and a decoder's.

    Parameters
    ----------
    encoder, encoder_norm, decoder, late, norm, head
        The blocks.
    bfloat16 : bool
        Whether frozen blocks multiply in bfloat16.
    """

    _head: LanguageHead

    def __init__(self, encoder: MTSA, encoder_norm: RMSNorm, decoder: MTSA, late: Sequence[LateLayer], norm: RMSNorm,
                 head: LanguageHead, bfloat16: bool = False) -> None:
        self._encoder, self._encoder_norm = encoder, encoder_norm
        self._decoder, self._late, self._norm, self._head = decoder, late, norm, head
        self._bfloat16 = bfloat16
        self._begin()

    def parts(self) -> list[tuple[str, Any]]:
        late = [(f"late.{number}.", layer) for number, layer in enumerate(self._late)]
        return [("encoder.", self._encoder), ("encoder_norm.", self._encoder_norm), ("decoder.", self._decoder), *late,
                ("norm.", self._norm), ("head.", self._head)]

    def _graphs(self, training: bool, *, gradient: bool, loss: bool, output: bool,
                taps_gradient: bool) -> list[_core.Graph]:
        graph = _core.Graph(self.store, training)
        spaces = {"encoder": graph.space("encoder"), "decoder": graph.space("decoder")}
        taps = {name: [graph.input(f"{name}_tap{number}", spaces[name], channels, taps_gradient)
                       for number, channels in enumerate(block.features)]
                for name, block in (("encoder", self._encoder), ("decoder", self._decoder))}
        (_, encoder), (_, encoder_norm), (_, decoder), *late, norm, head = self.parts()
        memory = self._build(graph, "encoder.", encoder, [*taps["encoder"], taps["encoder"][-1]])
        memory = self._build(graph, "encoder_norm.", encoder_norm, [memory])
        x = self._build(graph, "decoder.", decoder, [*taps["decoder"], taps["decoder"][-1]])
        for prefix, layer in late:
            x = self._build(graph, prefix, layer, [x, memory])
        x = self._build(graph, *norm, [x])
        if loss:
            # The evaluation program gives the loss of each row and its best word, and never the logits.
            value = self._head._build_loss(graph, "head.", x, best=output, bfloat16=self._bfloat16)
            (graph.output if output else graph.loss)(value)
        else:
            graph.output(self._build(graph, *head, [x]))
        return [graph]
