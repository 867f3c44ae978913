"""Single optimizer steps on a network: for training loops of the user's own, and for fit."""

import math

import numpy as np

from .. import _core
from ..blocks.weights import trainable_names
from ..checks import seed_number, whole_number
from .average import WeightAverage, averaged_weights
from .budget import read_budget
from .labelled import Labelled
from .own_loss import check_finite, loss_and_gradient, read_loss


class Stepper:
    """Takes optimizer steps: ``loss = step(taps, labels, mask=mask)``.

    Made by `SideNetwork.stepper`.

    Attributes
    ----------
    gradient_norm : float or None
        Norm of the last step's gradient before clipping.
    average : WeightAverage or None
        Moving average of the weights, with `ema`; ``step.average.values`` has them by parameter name.
    """

    def __init__(self, network, settings, total_steps=0, accumulate=1, seed=0, memory_budget=None, loss=None):
        self.network, self.settings = network, settings
        self.loss = read_loss(loss)
        self.accumulate = whole_number(accumulate, "accumulate", 1)
        self.seed = seed_number(seed)
        self.gradient_norm = None
        with network._lock:
            programs = network._programs
            program = programs.loss_gradient(True) if loss is None else programs.output_gradient(True, False)
            self.names = trainable_names(network._programs.store)
            self.trainer = settings.trainer(program, self.names, whole_number(total_steps, "total_steps"))
            settings.check_patterns(self.names)
            self.average = None
            if settings.ema is not None:
                self.average = WeightAverage(averaged_weights(network._programs.store), settings.ema)
        self.program, self.budget = program, read_budget(memory_budget, self.trainer.nbytes)

    @property
    def steps(self):
        """Whole steps taken."""
        return self.trainer.steps

    @property
    def learning_rate(self):
        """Learning rate of the next step."""
        return self.trainer.learning_rate(self.steps)

    def __call__(self, taps, labels, mask=None, *, positions=None, sample_weight=None, dtype=None):
        """Take one step on a batch.

        Parameters
        ----------
        taps, labels, mask, positions, sample_weight, dtype
            As for `SideNetwork.loss_and_gradients`.

        Returns
        -------
        float
            The batch's mean loss, before the step.

        Raises
        ------
        FloatingPointError
            Where the loss or the gradient is not finite; the network is as it was.
        """
        own = self.loss is not None
        labelled = Labelled(self.network, taps, labels, mask, positions, sample_weight, dtype, own_loss=own)
        self.network._note_source(labelled.features)
        return self.step(labelled, [None])

    def step(self, labelled, parts):
        """Take one step over samples whose gradients are computed part by part.

        Parameters
        ----------
        labelled : Labelled
        parts : list of numpy.ndarray of int64, or [None] for all samples
            Numbers of the samples of each part.

        Returns
        -------
        float
            The mean loss over all parts.
        """
        total = math.fsum(labelled.share(part) for part in parts)
        accumulate = self._accumulate if self.loss is None else self._accumulate_in_two_phases
        with self.network._lock, self.network._programs.bounded(self.program, self.budget, labelled.features):
            first = self.steps * self.accumulate
            draws = [{"seed": self.seed, "step": first + number} for number in range(len(parts))]
            try:
                losses = accumulate(labelled, parts, total, draws)
                self.gradient_norm = self.trainer.update()
            except BaseException:
                self.trainer.discard()
                raise
            if self.average is not None:
                self.average.update()
        return math.fsum(losses)

    def _accumulate(self, labelled, parts, total, draws):
        return [self.trainer.accumulate(*labelled.batch(part, total), **draw) for part, draw in zip(parts, draws)]

    def _accumulate_in_two_phases(self, labelled, parts, total, draws):
        """All outputs and losses first, then all backward parts: an error in the loss finds nothing begun."""
        losses, backwards = [], []
        for part, draw in zip(parts, draws):
            batch = labelled.features.batch(part)
            arguments = batch.samples, batch.spaces, labelled.sources(batch)
            head, rows = self.network.head, self.network._output_rows(np.diff(batch.offsets))
            outputs = np.empty((rows.sum(), head.out_features), _core.REAL)
            self.program.forward(*arguments, [(outputs, None)], **draw)
            targets = labelled.labels if part is None else labelled.labels[part]
            loss, gradient = loss_and_gradient(self.loss, outputs, targets, None if head._pooled else rows)
            check_finite(loss, gradient)
            share = labelled.share(part) / total
            losses.append(share * loss)
            backwards.append((arguments, share * gradient, draw))
        for arguments, cotangent, draw in backwards:
            self.trainer.accumulate(*arguments, cotangents=[(cotangent, None)], **draw)
        return losses

    def moments(self):
        """Return copies of the optimizer's state by number and parameter name."""
        state = {(number, name): self.trainer.moment(number, name) for number in (0, 1) for name in self.names}
        return {key: array.copy() for key, array in state.items() if array is not None}

    def restore(self, steps, moments):
        """Go on from a state of `steps` and `moments`."""
        for (number, name), array in moments.items():
            self.trainer.moment(number, name)[...] = array
        self.trainer.steps = steps
