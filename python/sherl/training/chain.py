"""Networks with late layers that are not the core's: a program before them, a program behind, and one trainer."""

import math

import numpy as np

from .. import _core
from ..features.rows import Segments, pixels_of

BLOCK_ROWS = 2048  # of the foreign layers' input that are computed at a time, unless one sample has more
BLOCKS = 2**24  # more than a batch is cut into: numbers of draws between one step and the next


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

    def __init__(self, first, foreign, second, *, taps, lasting, row_outputs, row_labels, sample_inputs, names):
        self.first, self.second, self._foreign = first, second, foreign
        self._taps, self._lasting = taps, lasting
        self._row_outputs, self._row_labels, self._sample_inputs = row_outputs, row_labels, sample_inputs
        self.names = names
        self.coupled = first.coupled or second.coupled

    def forward(self, samples, offsets, inputs, outputs=None, *, seed=0, step=0):
        """Compute outputs and loss; as `_core.Program.forward`."""
        losses = []
        for block in self._blocks(samples, offsets, step):
            x, spaces, _ = self._between(block, offsets, inputs, seed, False)
            losses.append(self.second.forward(
                block.samples, spaces, [(x, None), *self._behind(block, offsets, inputs)],
                outputs and [self._output(block, offsets, sink) for sink in outputs], seed=seed, step=block.step,
            ))
        return None if losses[0] is None else math.fsum(losses)

    def gradient(self, samples, offsets, inputs, outputs=None, *, cotangents=None, input_gradients=None, add=False,
                 seed=0, step=0):
        """Compute outputs, loss and gradients; as `_core.Program.gradient`."""
        def first(block, *arguments, cotangents, **draw):
            sinks = input_gradients and [block.cut(sink, space)
                                         for sink, space in zip(input_gradients, self._spaces(offsets))]
            self.first.gradient(*arguments, cotangents=cotangents, input_gradients=sinks, add=add or block.number > 0,
                                **draw)

        return self.run(first, samples, offsets, inputs, outputs, cotangents, add, seed, step)

    def run(self, first, samples, offsets, inputs, outputs, cotangents, add, seed, step):
        """Compute gradients, with `first` for the backward part of the first program; return the loss."""
        losses = []
        for block in self._blocks(samples, offsets, step):
            x, spaces, pulls = self._between(block, offsets, inputs, seed, True)
            sources = [(x, None), *self._behind(block, offsets, inputs)]
            gradient = np.empty_like(x)
            losses.append(self.second.gradient(
                block.samples, spaces, sources, outputs and [self._output(block, offsets, sink) for sink in outputs],
                cotangents=cotangents and [self._output(block, offsets, source) for source in cotangents],
                input_gradients=[(gradient, None), *[None] * (len(sources) - 1)], add=add or block.number > 0,
                seed=seed, step=block.step,
            ))
            for pull in reversed(pulls):
                gradient = pull(gradient)
            first(block, block.samples, block.spaces(offsets), self._ahead(block, offsets, inputs),
                  cotangents=[(gradient, None)], seed=seed, step=block.step)
        return None if losses[0] is None else math.fsum(losses)

    def trainer(self, *, parameters, no_decay, **settings):
        """Return a trainer of the parameters of both programs."""
        return ChainTrainer(self, parameters, no_decay, settings)

    def parameter_gradient(self, name):
        """Return a copy of a parameter's gradient."""
        return (self.first if name in self.names else self.second).parameter_gradient(name)

    # Memory: of the core; what the foreign layers take is not known.

    @property
    def nbytes(self):
        return self.first.nbytes + self.second.nbytes

    def release_workspace(self):
        self.first.release_workspace()
        self.second.release_workspace()

    def memory(self, samples, offsets):
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

    def least_memory(self, samples, offsets):
        raise ValueError("memory_budget must be None with late layers that are computed outside sherl, whose memory it "
                         "does not know")

    # Blocks.

    def _blocks(self, samples, offsets, step):
        rows = self._entering(offsets).offsets
        start, number = 0, 0
        while start < samples:
            stop = samples
            if not self.coupled:
                stop = max(start + 1, int(np.searchsorted(rows, rows[start] + BLOCK_ROWS, side="right")) - 1)
            yield _Block(number, start, stop, step * BLOCKS + number)
            start, number = stop, number + 1

    def _entering(self, offsets):
        """Return the segments of what the foreign layers get of a batch."""
        segments = _segments_of(self._spaces(offsets)[-1])
        for layer in self._lasting:
            segments = pixels_of(layer.output_sizes(segments.sizes))
        return segments

    def _spaces(self, offsets):
        """Return offsets or sizes of each tap."""
        return offsets[1:] if len(offsets) > 2 else [offsets[1]] * self._taps

    def _ahead(self, block, offsets, inputs):
        return [block.cut(source, space) for source, space in zip(inputs, self._spaces(offsets))]

    def _behind(self, block, offsets, inputs):
        """Return the inputs of the second program but for x."""
        labels = offsets[1] if self._row_labels else None
        return [block.cut(source, None if number < self._sample_inputs else labels)
                for number, source in enumerate(inputs[self._taps :])]

    def _output(self, block, offsets, source):
        return block.cut(source, offsets[1] if self._row_outputs else None)

    def _between(self, block, offsets, inputs, seed, gradient):
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

    def __init__(self, chain, parameters, no_decay, settings):
        self._chain = chain
        self._waiting = False
        self.parts = [
            _core.Trainer(program, parameters=[name for name in parameters if (name in chain.names) == early],
                          no_decay=[name for name in no_decay if (name in chain.names) == early], **settings)
            for program, early in ((chain.first, True), (chain.second, False))
        ]

    @property
    def steps(self):
        return self.parts[0].steps

    @steps.setter
    def steps(self, steps):
        for part in self.parts:
            part.steps = steps

    @property
    def nbytes(self):
        return sum(part.nbytes for part in self.parts)

    def accumulate(self, samples, offsets, inputs, *, cotangents=None, seed=0, step=0):
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

    def update(self):
        return update_together(self)

    def discard(self):
        self._waiting = False
        for part in self.parts:
            part.discard()

    def set_factors(self, name, learning_rate=1.0, weight_decay=1.0):
        self._part(name).set_factors(name, learning_rate, weight_decay)

    def learning_rate(self, step):
        return self.parts[0].learning_rate(step)

    def moment(self, number, name):
        return self._part(name).moment(number, name)

    def _part(self, name):
        return self.parts[0 if name in self._chain.names else 1]


def update_together(*trainers):
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

    def __init__(self, number, start, stop, step):
        self.number, self.start, self.stop, self.step = number, start, stop, step
        self.samples = stop - start

    def space(self, space):
        if space is None or space.ndim == 2:
            return space if space is None else space[self.start : self.stop]
        return space[self.start : self.stop + 1] - space[self.start]

    def spaces(self, offsets):
        return [self.space(space) for space in offsets]

    def segments(self, whole):
        return _segments_of(self.space(whole.offsets if whole.sizes is None else whole.sizes))

    def cut(self, source, space):
        """Return the part of a source of the whole batch, whose rows are in `space` (None: one a sample)."""
        if source is None:
            return None
        offsets = None if space is None else _segments_of(space).offsets
        part = slice(self.start, self.stop) if offsets is None else slice(offsets[self.start], offsets[self.stop])
        array, rows, *scales = source
        if rows is not None:
            return array, rows[part], *scales
        return array[part], None, *(scale[part] for scale in scales)


def _segments_of(space):
    return pixels_of(space) if space.ndim == 2 else Segments(space, None)


def _spaces_of(segments):
    return [None, segments.offsets if segments.sizes is None else segments.sizes]
