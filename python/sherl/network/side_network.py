"""SideNetwork: an MTSA on the taps of a frozen backbone, its last layers, and a head; what users train."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._typing import ArrayLike, ByteCount, LateType, Loss, Optimizer, PathLike, Record, Schedule, Uint16As
from ..blocks.foreign import ForeignLayer
from ..blocks.heads import Head
from ..blocks.mtsa import MTSA
from ..checks import seed_number
from ..features.features import Features, as_features
from ..features.layout import Layout
from ..training.callbacks import Callback
from ..training.fit import Fit, read_validation
from ..training.history import History
from ..training.labelled import Labelled
from ..training.optimizers import NO_DECAY, OptimizerSettings
from ..training.scoring import Metrics
from ..training.stepper import Stepper
from . import memory, saving
from .inference import Inference
from .late_route import LATE, check_late, check_rows, queries_of
from .network import Network, read_late_dtype
from .programs import Programs

if TYPE_CHECKING:
    from ..blocks.late import LateLayer

__all__ = ["SideNetwork"]


class SideNetwork(Inference, Network):
    """Side network on a frozen backbone's hidden states.

    The early block consolidates the taps, the late layers refine the result, the head reads it out. Only the early
    block, the head and late layers that are not frozen are trained; the gradient passes through frozen ones.

    Parameters
    ----------
    early : MTSA
        Its last tap is what the first late layer would have received in the backbone.
    late : sequence of TransformerLayer, Bottleneck, BasicBlock, LayerNorm, RMSNorm, Positions, Queries or
    sherl.torch.Late
        Any number of layers. Those of PyTorch stand side by side. Layers behind `Positions` may read positions; those
        behind `Queries` are a decoder, whose memory are the rows before.
    head : Classifier, Regressor, TokenClassifier, SpanPredictor, Embedding or Detector
    seed : int
        Of the first weights. Blocks that were used or loaded before keep their weights.
    late_dtype : {"float32", "bfloat16"}
        In which the linear maps of frozen late layers multiply. With "bfloat16" their factors are rounded to eight
        bits, sums stay in float32, and the weights are kept in both types; it is about twice as fast where the
        processor has the AVX512-BF16 instructions (`show_config` tells), and not available elsewhere.

    Attributes
    ----------
    early, late, head
        The blocks. They share their parameters with the network.
    features_source : dict or None
        What the features that the network was trained on were taken from.
    """

    def __init__(self, early: MTSA, late: Iterable[LateLayer] = (), head: Head | None = None, seed: int = 0,
                 late_dtype: LateType = "float32") -> None:
        if not isinstance(early, MTSA):
            raise TypeError(f"early must be an MTSA, got {type(early).__name__}")
        if not isinstance(head, Head):
            raise TypeError(f"head must be a Classifier or a Regressor, or another head, got {type(head).__name__}")
        if isinstance(late, LATE) or not hasattr(late, "__iter__"):
            raise TypeError(f"late must be a sequence of layers, got {type(late).__name__}")
        self.early, self.late, self.head = early, list(late), head
        self.seed = seed_number(seed)
        self.late_dtype = read_late_dtype(late_dtype)
        self.features_source: Record | None = None
        self._lock = threading.RLock()
        self._check_blocks()
        self._programs = Programs(early, self.late, head, bfloat16=late_dtype == "bfloat16")
        self._gather()

    def _check_blocks(self) -> None:
        width, queries = self.early.out_features, queries_of(self.late)
        if width != self.early.features[-1] and not self.early._pooled:
            raise ValueError(f"early must have the {self.early.features[-1]} out_features of its last tap, got {width}")
        if self.late and self.early._pooled:
            raise ValueError("late must be empty after spatial guidance, which gives one row a sample, "
                             f"got {len(self.late)}")
        pool = getattr(self.head, "pool", None)
        if queries is None and not self.head._pooled and (self.early.images or self.early._pooled):
            raise ValueError(f"head must give one row a sample for images and towers, got {type(self.head).__name__}")
        if queries is not None and pool == "position":
            raise ValueError("head must not read rows by position behind Queries: positions count the rows of the taps")
        if queries is None and self.early.images and pool in ("first", "last"):
            raise ValueError(f"head must have pool=\"mean\" or \"max\" over the pixels of images, got \"{pool}\"")
        foreign = [number for number, layer in enumerate(self.late) if isinstance(layer, ForeignLayer)]
        if foreign and foreign[-1] - foreign[0] >= len(foreign):
            raise ValueError("late must have the layers that sherl does not compute side by side, got them at "
                             f"{', '.join(map(str, foreign))}")
        check_late(self.early, self.late, self.head)
        trained = [(name, block) for name, block in self._blocks() if not block._is_frozen]
        for name, block in trained:
            if block._network:
                raise ValueError(f"{name} already belongs to another network: make a new block, or copy.deepcopy it")
        if len({id(block) for _, block in trained}) < len(trained):
            raise ValueError("late must not hold a trainable layer twice")

    def _blocks(self) -> list[tuple[str, Any]]:
        late = [(f"late[{number}]", layer) for number, layer in enumerate(self.late)]
        return [("early", self.early), *late, ("head", self.head)]

    # Rows.

    def _features(self, taps: Features | Sequence[ArrayLike], mask: ArrayLike | None = None,
                  positions: ArrayLike | None = None, dtype: Uint16As = None) -> Features:
        features = as_features(taps, mask, positions, dtype=dtype)
        check_rows(self.early, self.late, features)
        self._check_source(features)
        self.head._positions_read(features.positions)
        return features

    def _output_rows(self, lengths: Any) -> Any:
        queries = queries_of(self.late)
        return self.head._rows_of(lengths if queries is None else np.full_like(lengths, queries))

    def _layout(self, taps: Features | Sequence[ArrayLike], features: Features) -> Layout:
        return Layout(taps, features, queries_of(self.late))

    # Training.

    def fit(self, taps: Features | Sequence[ArrayLike], labels: ArrayLike, mask: ArrayLike | None = None, *,
            positions: ArrayLike | None = None, epochs: int = 3, batch_size: int = 32, learning_rate: float = 1e-3,
            optimizer: Optimizer = "adamw", weight_decay: float = 0.01, no_decay: Sequence[str] = NO_DECAY,
            schedule: Schedule = "linear", warmup: float = 0.06, clip_norm: float | None = 1.0, accumulate: int = 1,
            betas: Sequence[float] = (0.9, 0.999), momentum: float = 0.0, step_every: int | None = None,
            step_factor: float = 0.1, validation: Sequence[Any] | None = None, metrics: Metrics = None,
            monitor: str | None = None, patience: int | None = None, restore_best: bool | None = None,
            callbacks: Callback | Iterable[Callback] = (), progress: bool = True,
            sample_weight: ArrayLike | None = None, seed: int = 0, bucket_by_length: bool = False,
            checkpoint: PathLike | None = None, checkpoint_every: int | None = None,
            resume_from: PathLike | None = None, memory_budget: ByteCount | None = None, loss: Loss | None = None,
            dtype: Uint16As = None, learning_rate_factors: Mapping[str, float] | None = None,
            weight_decay_factors: Mapping[str, float] | None = None, ema: float | None = None) -> History:
        """Train the network.

        The same arguments give the same bits, whatever the number of threads. An interrupt (Ctrl-C) ends the training
        after the step under way, and the history is returned; a second one raises KeyboardInterrupt. Where an error is
        raised, the network keeps its weights after the last whole step.

        Parameters
        ----------
        taps : Features, or sequence of array_like, each of shape (batch, tokens, channels)
            Hidden states of the backbone. float32, float64, float16 or bfloat16. Images (batch, height, width,
            channels) where the early block has `pool`; with spatial guidance one more, the tower's output
            (batch, channels); with `Positions` without a table one more, the rows of positions.
        labels : array_like
            Of a classifier class numbers (samples,), or with `multi_label` 0 and 1 of shape (samples, classes); of a
            regressor numbers (samples,), or (samples, outputs). Token classifiers and span predictors say themselves
            what they take. With `loss` any array with one entry a sample.
        mask : array_like of bool, int or float, shape (batch, tokens), optional
            With padded arrays: 1 where a row is meant; others are left out.
        positions : array_like of int, shape (batch,), optional
            With padded arrays and a head with ``pool="position"``: which of its rows that are meant each sample is read
            from, counted from 0. `Features` have their own.
        epochs : int
            Times that all samples are gone through, each time in another order.
        batch_size : int
            Samples of a batch; the last batch of an epoch may have fewer.
        learning_rate : float
            Its largest value.
        optimizer : {"adamw", "adam", "sgd"}
        weight_decay : float
            Decoupled for AdamW; added to the gradient otherwise.
        no_decay : sequence of str
            Patterns of the names of parameters that do not decay.
        schedule : {"linear", "constant", "cosine", "step"}
            How the learning rate falls after the warm-up; linear and cosine reach 0 at the end.
        warmup : float or int
            Steps over which the learning rate rises; below 1 as a share of all steps.
        clip_norm : float or None
            Largest norm of the gradient of all parameters.
        accumulate : int
            Batches whose gradients make one step.
        betas : tuple of float
            Of Adam and AdamW.
        momentum : float
            Of SGD.
        step_every, step_factor : int, float
            With schedule "step" the learning rate is multiplied by `step_factor` every so many steps.
        validation : tuple, optional
            (taps, labels), (taps, labels, mask) or (taps, labels, mask, positions), evaluated after every epoch.
        metrics : str, callable, or a sequence or dictionary of them, optional
            As for `evaluate`; the task's usual when None.
        monitor : str, optional
            "loss" or the name of a metric, by which the best epoch is told: the one with the least validation loss, or
            with the largest value. The first metric when None.
        patience : int, optional
            Epochs without a better one after which the training ends.
        restore_best : bool, optional
            Whether the network gets the weights of the best epoch at the end; as a rule where `patience` is given.
        callbacks : sequence of Callback
        progress : bool
            Whether to show a progress bar, where tqdm is installed.
        sample_weight : array_like of float, shape (samples,), optional
            By what each sample's loss counts.
        seed : int
            Of the order of the samples and of dropout.
        bucket_by_length : bool
            Whether a batch holds samples of about one length. Nothing is gained in time, as there is no padding to
            save, and less mixed batches may learn less well.
        checkpoint : str or path-like, optional
            Folder for the state of the training, from which it can be resumed.
        checkpoint_every : int, optional
            Steps between checkpoints; one an epoch when None.
        resume_from : str or path-like, optional
            Folder of a checkpoint of the same training, to go on from there; the outcome has the same bits as without
            the break.
        memory_budget : int or str, optional
            Bytes, or text like "256 MiB" or "1.5 GB", that trained weights, their gradients, the optimizer's state and
            the workspace stay within, those of validation included. The taps, frozen weights and copies of the weights
            that Python holds do not count. Smaller tiles and fewer gradient lanes make it fit; they depend on the
            batches and the budget but not on the number of threads, so the last bits do too.
        loss : callable, optional
            A loss of one's own in place of the head's (class weights and label smoothing included), which may compare
            the samples of a batch: ``loss(outputs, targets) -> (value, gradient)``. It gets the head's outputs, float32
            of shape (samples, outputs), and the labels of these samples as they were given; `gradient` is that of the
            value with respect to the outputs. Where the head has an output for every row, `outputs` holds the rows of
            the samples one after the other, and a third argument, `lengths`, how many each has. `sherl.losses` has
            some. Each batch is computed twice, to its outputs and then again with the backward part, and takes no more
            memory. With `accumulate` a step takes the mean over its batches, weighted by their samples; so does the
            validation loss, over batches of `batch_size` in order. Metrics are none unless asked for, and then read the
            labels as the head does. `sample_weight` is refused.
        dtype : {None, "bfloat16"}
            How to take uint16 taps.
        learning_rate_factors, weight_decay_factors : dict of str to float, optional
            By what learning rate and weight decay of some parameters are multiplied, by pattern of their names:
            ``{"head.*": 0.1}``. The first pattern that fits counts; 0 keeps parameters as they are.
        ema : float, optional
            Decay of a moving average of the weights, 0.9998 say: after each step it becomes ``ema`` times itself and
            ``1 - ema`` times the weights. It is what is evaluated, and what the network has at the end; steps go on
            from the weights themselves. One copy of the weights more.

        Returns
        -------
        History

        Raises
        ------
        FloatingPointError
            Where a loss or a gradient is not finite.
        ValueError
            Where an argument does not fit, the checkpoint is not of this training, or `memory_budget` is less than
            the least possible, which is then named.
        """
        settings = OptimizerSettings(
            optimizer=optimizer, learning_rate=learning_rate, weight_decay=weight_decay, no_decay=no_decay, betas=betas,
            momentum=momentum, clip_norm=clip_norm, schedule=schedule, warmup=warmup, step_every=step_every,
            step_factor=step_factor, learning_rate_factors=learning_rate_factors,
            weight_decay_factors=weight_decay_factors, ema=ema,
        )
        own = loss is not None
        labelled = Labelled(self, taps, labels, mask, positions, sample_weight, dtype, own_loss=own)
        return Fit(
            self, labelled, read_validation(self, validation, dtype, own), settings, epochs=epochs,
            batch_size=batch_size,
            accumulate=accumulate, metrics=metrics, monitor=monitor, patience=patience, restore_best=restore_best,
            callbacks=callbacks, progress=progress, seed=seed, bucket_by_length=bucket_by_length, checkpoint=checkpoint,
            checkpoint_every=checkpoint_every, resume_from=resume_from, memory_budget=memory_budget,
            loss=loss,
        ).run()

    def stepper(self, *, optimizer: Optimizer = "adamw", learning_rate: float = 1e-3, weight_decay: float = 0.01,
                no_decay: Sequence[str] = (), betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8,
                momentum: float = 0.0, clip_norm: float | None = None, schedule: Schedule = "constant",
                warmup: float = 0, total_steps: int = 0, step_every: int | None = None, step_factor: float = 0.1,
                seed: int = 0, memory_budget: ByteCount | None = None, loss: Loss | None = None,
                learning_rate_factors: Mapping[str, float] | None = None,
                weight_decay_factors: Mapping[str, float] | None = None, ema: float | None = None) -> Stepper:
        """Make an object that takes one optimizer step at each call, for training loops of one's own.

        Parameters
        ----------
        optimizer, learning_rate, weight_decay, no_decay, betas, momentum, clip_norm, schedule, warmup, step_every, \
        step_factor, learning_rate_factors, weight_decay_factors
            As for `fit`; by default the learning rate is constant and every parameter decays.
        eps : float
            Of Adam and AdamW.
        total_steps : int
            Length of the whole training, for schedules that need it.
        seed : int
            Of dropout.
        memory_budget : int or str, optional
            As for `fit`.
        loss : callable, optional
            As for `fit`.
        ema : float, optional
            Decay of a moving average of the weights, ``step.average.values``; the network itself keeps the weights.

        Returns
        -------
        Stepper
            ``loss = step(taps, labels, mask=None, positions=None)``
        """
        settings = OptimizerSettings(
            optimizer=optimizer, learning_rate=learning_rate, weight_decay=weight_decay, no_decay=no_decay, betas=betas,
            eps=eps, momentum=momentum, clip_norm=clip_norm, schedule=schedule, warmup=warmup, step_every=step_every,
            step_factor=step_factor, learning_rate_factors=learning_rate_factors,
            weight_decay_factors=weight_decay_factors, ema=ema,
        )
        return Stepper(self, settings, total_steps=total_steps, seed=seed, memory_budget=memory_budget, loss=loss)

    def memory_plan(self, *, batch_size: int = 32, tokens: int | tuple[int, int] = 128, optimizer: Optimizer = "adamw",
                    memory_budget: ByteCount | None = None) -> memory.MemoryPlan:
        """Tell what memory training will take, above that of the taps.

        Parameters
        ----------
        batch_size : int
            Samples of a batch.
        tokens : int, or (int, int)
            Rows of a sample; of images height and width of the last tap.
        optimizer : {"adamw", "adam", "sgd"}
        memory_budget : int or str, optional
            As for `fit`.

        Returns
        -------
        MemoryPlan
            Bytes by kind, with `total`.

        Raises
        ------
        ValueError
            Where `memory_budget` is less than the least possible, which is then named.
        """
        with self._lock:
            return memory.plan(self, batch_size, memory.sample_of(self.early, tokens), optimizer, memory_budget)

    def _described(self) -> Record:
        return saving.describe(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.early, self.late, self.head, self.seed, self.features_source,
                           self.late_dtype)

    # Disk.

    @classmethod
    def from_pretrained(cls, folder: PathLike, backbone: Any = None, late_dtype: LateType | None = None) -> SideNetwork:
        """Load a network that `save_pretrained` wrote.

        Parameters
        ----------
        folder : str or path-like
        backbone : backbone of `load_backbone`, Features, or sequence of blocks, optional
            Where the frozen late layers, norms and tables are; needed when the network has some. Of features it is
            their `layers`.
        late_dtype : {None, "float32", "bfloat16"}
            As for the network itself; that of the saved network when None.

        Returns
        -------
        SideNetwork

        Raises
        ------
        ValueError
            Where a file is not whole, not of this form, or does not fit; or where the backbone is not the one that the
            network was trained on.
        ImportError
            Without the safetensors package.
        """
        network: SideNetwork = saving.load(cls, folder, backbone, late_dtype)
        return network


def _restored(kind: type[SideNetwork], early: MTSA, late: list[LateLayer], head: Head, seed: int, source: Record | None,
              late_dtype: LateType) -> SideNetwork:
    network = kind(early, late, head, seed, late_dtype)
    network.features_source = source
    return network
