"""Networks with late layers that are not the core's: a program before them, a program behind, and one trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from .. import _core
from .._typing import Array, Source
from ..features.rows import Segments, pixels_of

if TYPE_CHECKING:
    from ..blocks.foreign import ForeignLayer
    from ..blocks.residual import ResidualBlock

BLOCK_ROWS = 2048  # of the foreign layers' input that are computed at a time, unless one sample has more
BLOCKS = 2**24  # more than a batch is cut into: numbers of draws between one step and the next

Program: TypeAlias = "_core.Program | Chain"
Trainer: TypeAlias = "_core.Trainer | ChainTrainer"
Pull: TypeAlias = Callable[[Array], Array]
Known = TypeVar("Known")


class Chain:
    """Two programs with foreign layers in between, as one program.

    A batch is cut into blocks of whole samples. For each, the first program gives the input of the foreign layers; they
    give that of the second, which computes outputs, loss and, where asked, the gradient of its input; that goes back
    through the foreign layers, and is the cotangent with which the first program runs again, forward and backward.

    Parameters
    ----------
    first, second : _core.Program
    foreign : list of ForeignLayer
    taps : int
        Inputs of the first program.
    lasting : list of Bottleneck or BasicBlock
        Layers of the first program that may change the size of images.
    row_outputs, row_labels : bool
        Whether the second program has an output, and labels, for every row, and not one a sample.
    sample_inputs : int
        Inputs of the second program, between x and the labels, that have a row a sample in any case.
    names : collection of str
        Parameters of the first program.
    """

    def __init__(self, first: _core.Program, foreign: Sequence[ForeignLayer], second: _core.Program, *, taps: int,
                 lasting: Sequence[ResidualBlock], row_outputs: bool, row_labels: bool, sample_inputs: int,
                 names: Collection[str]) -> None:
        self.first, self.second, self._foreign = first, second, foreign
        self._taps, self._lasting = taps, lasting
        self._row_outputs, self._row_labels, self._sample_inputs = row_outputs, row_labels, sample_inputs
        self.names = names
        self.coupled = first.coupled or second.coupled

    def forward(self, samples: int, offsets: Sequence[Array | None], inputs: Sequence[Source],
                outputs: Sequence[Source | None] | None = None, *, seed: int = 0, step: int = 0) -> float | None:
        """Compute outputs and loss; as `_core.Program.forward`."""
        losses: list[float | None] = []
        for block in self._blocks(samples, offsets, step):
            x, spaces, _ = self._between(block, offsets, inputs, seed, False)
            losses.append(self.second.forward(
                block.samples, spaces, [(x, None), *self._behind(block, offsets, inputs)],
                outputs and [self._output(block, offsets, sink) for sink in outputs], seed=seed, step=block.step,
            ))
        return _sum_of(losses)

    def gradient(self, samples: int, offsets: Sequence[Array | None], inputs: Sequence[Source],
                 outputs: Sequence[Source | None] | None = None, *, cotangents: Sequence[Source] | None = None,
                 input_gradients: Sequence[Source | None] | None = None, add: bool = False, seed: int = 0,
                 step: int = 0) -> float | None:
        """Compute outputs, loss and gradients; as `_core.Program.gradient`."""
        def first(block: _Block, *arguments: Any, cotangents: Sequence[Source], **draw: Any) -> None:
            sinks = input_gradients and [block.cut(sink, space)
                                         for sink, space in zip(input_gradients, self._spaces(offsets))]
            self.first.gradient(*arguments, cotangents=cotangents, input_gradients=sinks, add=add or block.number > 0,
                                **draw)

        return self.run(first, samples, offsets, inputs, outputs, cotangents, add, seed, step)

    def run(self, first: Callable[..., object], samples: int, offsets: Sequence[Array | None], inputs: Sequence[Source],
            outputs: Sequence[Source | None] | None, cotangents: Sequence[Source] | None, add: bool, seed: int,
            step: int) -> float | None:
        """Compute gradients, with `first` for the backward part of the first program; return the loss."""
        losses: list[float | None] = []
        for block in self._blocks(samples, offsets, step):
            x, spaces, pulls = self._between(block, offsets, inputs, seed, True)
            sources = [(x, None), *self._behind(block, offsets, inputs)]
            gradient = np.empty_like(x)
            losses.append(self.second.gradient(
                block.samples, spaces, sources, outputs and [self._output(block, offsets, sink) for sink in outputs],
                cotangents=cotangents and [block.part(source, self._output_space(offsets)) for source in cotangents],
                input_gradients=[(gradient, None), *[None] * (len(sources) - 1)], add=add or block.number > 0,
                seed=seed, step=block.step,
            ))
            for pull in filter(None, reversed(pulls)):
                gradient = pull(gradient)
            first(block, block.samples, block.spaces(offsets), self._ahead(block, offsets, inputs),
                  cotangents=[(gradient, None)], seed=seed, step=block.step)
        return _sum_of(losses)

    def trainer(self, *, parameters: Sequence[str], no_decay: Sequence[str], **settings: Any) -> ChainTrainer:
        """Return a trainer of the parameters of both programs."""
        return ChainTrainer(self, parameters, no_decay, settings)

    def parameter_gradient(self, name: str) -> Array:
        """Return a copy of a parameter's gradient."""
        return (self.first if name in self.names else self.second).parameter_gradient(name)

    # Memory: of the core; what the foreign layers take is not known.

    @property
    def nbytes(self) -> int:
        return self.first.nbytes + self.second.nbytes

    def release_workspace(self) -> None:
        self.first.release_workspace()
        self.second.release_workspace()

    def memory(self, samples: int, offsets: Sequence[Array | None]) -> dict[str, int]:
        """Tell the memory of both programs for one block of a batch; as `_core.Program.memory`."""
        block = next(self._blocks(samples, offsets, 0))
        segments = block.segments(self._entering(offsets))
        for layer in self._foreign:
            segments = layer._segments(segments)
        reports = [self.first.memory(block.samples, block.spaces(offsets)),
                   self.second.memory(block.samples, _spaces_of(segments))]
        # Of the store that both share, and of one program at a time.
        once = ("parameters", "frozen_weights", "lanes", "workers", "tile_rows")
        whole = {key: max(report[key] for report in reports) if key in once else sum(report[key] for report in reports)
                 for key in reports[0]}
        lane = sum(report["gradients"] // report["lanes"] for report in reports)
        return {**whole, "gradients": whole["lanes"] * lane}

    def least_memory(self, samples: int, offsets: Sequence[Array | None]) -> int:
        raise ValueError("memory_budget must be None with late layers that are computed outside sherl, whose memory it "
                         "does not know")

    # Blocks.

    def _blocks(self, samples: int, offsets: Sequence[Array | None], step: int) -> Iterator[_Block]:
        rows = self._entering(offsets).offsets
        start, number = 0, 0
        while start < samples:
            stop = samples
            if not self.coupled:
                stop = max(start + 1, int(np.searchsorted(rows, rows[start] + BLOCK_ROWS, side="right")) - 1)
            yield _Block(number, start, stop, step * BLOCKS + number)
            start, number = stop, number + 1

    def _entering(self, offsets: Sequence[Array | None]) -> Segments:
        """Return the segments of what the foreign layers get of a batch."""
        segments = _segments_of(_known(self._spaces(offsets)[-1]))
        for layer in self._lasting:
            segments = pixels_of(layer.output_sizes(_known(segments.sizes)))
        return segments

    def _spaces(self, offsets: Sequence[Array | None]) -> Sequence[Array | None]:
        """Return offsets or sizes of each tap."""
        return offsets[1:] if len(offsets) > 2 else [offsets[1]] * self._taps

    def _ahead(self, block: _Block, offsets: Sequence[Array | None], inputs: Sequence[Source]) -> list[Source]:
        return [block.part(source, space) for source, space in zip(inputs, self._spaces(offsets))]

    def _behind(self, block: _Block, offsets: Sequence[Array | None], inputs: Sequence[Source]) -> list[Source]:
        """Return the inputs of the second program but for x."""
        labels = offsets[1] if self._row_labels else None
        return [block.part(source, None if number < self._sample_inputs else labels)
                for number, source in enumerate(inputs[self._taps :])]

    def _output(self, block: _Block, offsets: Sequence[Array | None], source: Source | None) -> Source | None:
        return block.cut(source, self._output_space(offsets))

    def _output_space(self, offsets: Sequence[Array | None]) -> Array | None:
        return offsets[1] if self._row_outputs else None

    def _between(self, block: _Block, offsets: Sequence[Array | None], inputs: Sequence[Source], seed: int,
                 gradient: bool) -> tuple[Array, list[Array | None], list[Pull | None]]:
        """Return what the second program gets, its row spaces, and functions that take gradients back."""
        segments = block.segments(self._entering(offsets))
        x = np.empty((int(segments.offsets[-1]), self._foreign[0].features), _core.REAL)
        self.first.forward(block.samples, block.spaces(offsets), self._ahead(block, offsets, inputs), [(x, None)],
                           seed=seed, step=block.step)
        pulls = []
        for layer in self._foreign:
            x, segments, pull = layer._run(x, segments, gradient)
            pulls.append(pull)
        return x, _spaces_of(segments), pulls


class ChainTrainer:
    """Trainers of both programs of a chain, as one; as `_core.Trainer`."""

    def __init__(self, chain: Chain, parameters: Sequence[str], no_decay: Sequence[str],
                 settings: dict[str, Any]) -> None:
        self._chain = chain
        self._waiting = False
        self.parts = [
            _core.Trainer(program, parameters=[name for name in parameters if (name in chain.names) == early],
                          no_decay=[name for name in no_decay if (name in chain.names) == early], **settings)
            for program, early in ((chain.first, True), (chain.second, False))
        ]

    @property
    def steps(self) -> int:
        return self.parts[0].steps

    @steps.setter
    def steps(self, steps: int) -> None:
        for part in self.parts:
            part.steps = steps

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def accumulate(self, samples: int, offsets: Sequence[Array | None], inputs: Sequence[Source], *,
                   cotangents: Sequence[Source] | None = None, seed: int = 0, step: int = 0) -> float | None:
        first, second = self.parts
        try:
            loss = self._chain.run(lambda block, *arguments, **draw: first.accumulate(*arguments, **draw), samples,
                                   offsets, inputs, None, cotangents, self._waiting, seed, step)
            if loss is not None and not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss}, which is not finite")
        except BaseException:
            self.discard()
            raise
        second.adopt()
        self._waiting = True
        return loss

    def update(self) -> float:
        return update_together(self)

    def discard(self) -> None:
        self._waiting = False
        for part in self.parts:
            part.discard()

    def set_factors(self, name: str, learning_rate: float = 1.0, weight_decay: float = 1.0) -> None:
        self._part(name).set_factors(name, learning_rate, weight_decay)

    def learning_rate(self, step: int) -> float:
        return self.parts[0].learning_rate(step)

    def moment(self, number: int, name: str) -> Array | None:
        return self._part(name).moment(number, name)

    def _part(self, name: str) -> _core.Trainer:
        return self.parts[0 if name in self._chain.names else 1]


def update_together(*trainers: Trainer) -> float:
    """Apply the gradients that wait in several trainers as one step; return their norm before clipping."""
    parts = []
    for trainer in trainers:
        if isinstance(trainer, ChainTrainer):
            trainer._waiting = False
            parts += trainer.parts
        else:
            parts.append(trainer)
    return parts[0].update(*parts[1:])


class _Block:
    """Samples `start` to `stop` of a batch."""

    def __init__(self, number: int, start: int, stop: int, step: int) -> None:
        self.number, self.start, self.stop, self.step = number, start, stop, step
        self.samples = stop - start

    def space(self, space: Array | None) -> Array | None:
        if space is None or space.ndim == 2:
            return space if space is None else space[self.start : self.stop]
        offsets: Array = space[self.start : self.stop + 1] - space[self.start]
        return offsets

    def spaces(self, offsets: Sequence[Array | None]) -> list[Array | None]:
        return [self.space(space) for space in offsets]

    def segments(self, whole: Segments) -> Segments:
        return _segments_of(_known(self.space(whole.offsets if whole.sizes is None else whole.sizes)))

    def cut(self, source: Source | None, space: Array | None) -> Source | None:
        """Return the part of a source of the whole batch, whose rows are in `space` (None: one a sample)."""
        return None if source is None else self.part(source, space)

    def part(self, source: Source, space: Array | None) -> Source:
        offsets = None if space is None else _segments_of(space).offsets
        part = slice(self.start, self.stop) if offsets is None else slice(offsets[self.start], offsets[self.stop])
        array, rows = source[:2]
        if rows is not None:
            return (array, rows[part], source[2]) if len(source) == 3 else (array, rows[part])
        return (array[part], None, source[2][part]) if len(source) == 3 else (array[part], None)


def _known(value: Known | None) -> Known:
    """Return what is there, as a type checker cannot tell."""
    assert value is not None
    return value


def _sum_of(losses: Sequence[float | None]) -> float | None:
    return None if losses[0] is None else math.fsum(map(_known, losses))


def _segments_of(space: Array) -> Segments:
    return pixels_of(space) if space.ndim == 2 else Segments(space, None)


def _spaces_of(segments: Segments) -> list[Array | None]:
    return [None, segments.offsets if segments.sizes is None else segments.sizes]
