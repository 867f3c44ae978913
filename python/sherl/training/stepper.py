"""Single optimizer steps on a network: for training loops of the user's own, and for fit."""

import math

from ..blocks.weights import trainable_names
from ..checks import seed_number, whole_number
from .budget import read_budget
from .labelled import Labelled


class Stepper:
    """Takes optimizer steps: ``loss = step(taps, labels, mask=mask)``.

    Made by `SideNetwork.stepper`.

    Attributes
    ----------
    gradient_norm : float or None
        Norm of the last step's gradient before clipping.
    """

    def __init__(self, network, settings, total_steps=0, accumulate=1, seed=0, memory_budget=None):
        self.network, self.settings = network, settings
        self.accumulate = whole_number(accumulate, "accumulate", 1)
        self.seed = seed_number(seed)
        self.gradient_norm = None
        with network._lock:
            program = network._programs.loss_gradient(training=True)
            self.names = trainable_names(network._programs.store)
            self.trainer = settings.trainer(program, self.names, whole_number(total_steps, "total_steps"))
        self.program, self.budget = program, read_budget(memory_budget, self.trainer.nbytes)

    @property
    def steps(self):
        """Whole steps taken."""
        return self.trainer.steps

    @property
    def learning_rate(self):
        """Learning rate of the next step."""
        return self.trainer.learning_rate(self.steps)

    def __call__(self, taps, labels, mask=None, *, sample_weight=None, dtype=None):
        """Take one step on a batch.

        Parameters
        ----------
        taps, labels, mask, sample_weight, dtype
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
        labelled = Labelled(self.network, taps, labels, mask, sample_weight, dtype)
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
        with self.network._lock, self.network._programs.bounded(self.program, self.budget, labelled.features):
            try:
                losses = [
                    self.trainer.accumulate(*labelled.batch(part, total), seed=self.seed,
                                            step=self.steps * self.accumulate + number)
                    for number, part in enumerate(parts)
                ]
                self.gradient_norm = self.trainer.update()
            except BaseException:
                self.trainer.discard()
                raise
        return math.fsum(losses)

    def moments(self):
        """Return copies of the optimizer's state by number and parameter name."""
        state = {(number, name): self.trainer.moment(number, name) for number in (0, 1) for name in self.names}
        return {key: array.copy() for key, array in state.items() if array is not None}

    def restore(self, steps, moments):
        """Go on from a state of `steps` and `moments`."""
        for (number, name), array in moments.items():
            self.trainer.moment(number, name)[...] = array
        self.trainer.steps = steps
