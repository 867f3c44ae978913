"""Seq2SeqSideNetwork: an MTSA on a frozen encoder and one on a frozen decoder, the last decoder block, the LM head."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .._typing import (
    Array,
    ArrayLike,
    ByteCount,
    LateType,
    Loss,
    Optimizer,
    PathLike,
    Record,
    Schedule,
    Source,
    StateDict,
    Uint16As,
)
from ..backbones.pairs import pair_fingerprint, pair_source, read_pair_taps
from ..blocks.language_head import LanguageHead
from ..blocks.mtsa import MTSA
from ..blocks.norm import RMSNorm
from ..blocks.row_heads import IGNORED
from ..blocks.transformer import T5Block
from ..checks import flag, seed_number
from ..features.layout import Layout
from ..features.seq2seq import Seq2SeqFeatures
from ..training import scoring
from ..training.budget import read_budget
from ..training.callbacks import Callback
from ..training.fit import Fit
from ..training.history import History
from ..training.labelled import Labelled
from ..training.optimizers import NO_DECAY, OptimizerSettings
from ..training.scoring import Metrics
from ..training.stepper import Stepper
from . import memory, saving
from .generation import generate
from .network import Network, read_late_dtype
from .programs import Seq2SeqPrograms

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone
    from .generation import StepPrograms

__all__ = ["Seq2SeqSideNetwork"]


class Seq2SeqSideNetwork(Network):
    """Side network on a frozen encoder-decoder model of T5's kind.

    The encoder's MTSA consolidates its taps; with a norm of its own the result is the memory. The decoder's MTSA
    consolidates those of the frozen decoder, which ran on the frozen encoder's output; the late blocks refine the
    result and attend to the memory; after a norm of its own the frozen language-model head reads it out. The
    gradient passes through frozen blocks and never enters the backbone's other layers.

    Parameters
    ----------
    encoder, decoder : MTSA
    late : sequence of T5Block
        Decoder blocks, one or more, frozen (`T5Block.from_t5`) or trainable.
    lm_head : array_like, shape (words, features)
        The frozen map to the vocabulary: of T5 1.0 the table of embeddings, of T5 1.1 ``lm_head.weight``.
    scale : float
        What the decoder's output is multiplied by before it: of T5 1.0 ``features ** -0.5``, of T5 1.1 1.
    label_smoothing : float
        Share of each target that is spread over all words.
    eps : float
        Of the two norms.
    encoder_norm, decoder_norm : array_like, shape (features,), optional
        Where the factors of the two norms begin, those of the backbone's final norms, say; 1 when None.
    seed : int
        Of the first weights. Blocks that were used or loaded before keep their weights.
    late_dtype : {"float32", "bfloat16"}
        In which the linear maps of frozen late blocks and of the head multiply, as for `SideNetwork`.
    backbone : backbone of `load_backbone`, optional
        The frozen model, which `generate` runs. It can be set later, and is not pickled.

    Attributes
    ----------
    encoder, encoder_norm, decoder, late, norm, head
        The blocks. They share their parameters with the network.
    features_source : dict or None
        What the features that the network was trained on were taken from.
    """

    head: LanguageHead

    def __init__(self, encoder: MTSA, decoder: MTSA, late: Iterable[T5Block], lm_head: ArrayLike | LanguageHead,
                 scale: float = 1.0, *, label_smoothing: float = 0.0, eps: float = 1e-6,
                 encoder_norm: ArrayLike | None = None, decoder_norm: ArrayLike | None = None, seed: int = 0,
                 late_dtype: LateType = "float32", backbone: Backbone | None = None) -> None:
        for name, block in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(block, MTSA):
                raise TypeError(f"{name} must be an MTSA, got {type(block).__name__}")
        if isinstance(late, T5Block) or not hasattr(late, "__iter__"):
            raise TypeError(f"late must be a sequence of T5Block, got {type(late).__name__}")
        self.encoder, self.decoder, self.late = encoder, decoder, list(late)
        self.head = lm_head if isinstance(lm_head, LanguageHead) else LanguageHead(lm_head, scale, label_smoothing)
        self.encoder_norm = RMSNorm(encoder.out_features, eps)
        self.norm = RMSNorm(decoder.out_features, eps)
        self.seed = seed_number(seed)
        self.late_dtype = read_late_dtype(late_dtype)
        self.features_source: Record | None = None
        self.backbone = backbone
        self._generation: StepPrograms | None = None  # compiled when first asked for
        self._lock = threading.RLock()
        self._check_blocks()
        for name, norm, values in (("encoder_norm", self.encoder_norm, encoder_norm),
                                   ("decoder_norm", self.norm, decoder_norm)):
            if values is not None:
                norm.load_state_dict({"weight": _read_factors(values, norm.features, name)})
        self._programs = Seq2SeqPrograms(encoder, self.encoder_norm, decoder, self.late, self.norm, self.head,
                                         bfloat16=late_dtype == "bfloat16")
        self._gather()

    @classmethod
    def from_backbone(cls, backbone: Backbone, hidden: int | None = None, *, encoder_taps: Sequence[int] | None = None,
                      decoder_taps: Sequence[int] | None = None, label_smoothing: float = 0.0, seed: int = 0,
                      late_dtype: LateType = "float32") -> Seq2SeqSideNetwork:
        """Make the network of a T5 backbone as the method's authors do, with the last decoder block as the late one.

        Parameters
        ----------
        backbone : backbone of `load_backbone`
            Of a T5 model with a decoder.
        hidden : int, optional
            Channels after the down maps; an eighth of the backbone's when None.
        encoder_taps, decoder_taps : sequence of int, optional
            Which states: 0 is the embeddings, i the output of layer i, counted from 1 and before the final norm. When
            None those published for 12 and 24 layers; otherwise the embeddings and up to 12 layers, evenly.
        label_smoothing, seed, late_dtype
            As for the network itself.

        Returns
        -------
        Seq2SeqSideNetwork
        """
        language = getattr(backbone, "language", None)
        if language is None:
            raise TypeError(f"backbone must be a T5 model of load_backbone with a decoder, got {backbone!r:.60}")
        encoder_taps, decoder_taps = read_pair_taps(backbone, encoder_taps, decoder_taps)
        if decoder_taps[-1] == len(backbone.decoder_layers):
            raise ValueError(f"decoder_taps must not end with the output of the last layer, which is the late one, got "
                             f"{decoder_taps}")
        features = backbone.hidden_size
        hidden = max(features // 8, 1) if hidden is None else hidden
        encoder, decoder = (MTSA(len(taps), features, hidden, down="gated", eps=1e-6)
                            for taps in (encoder_taps, decoder_taps))
        late = cast("Sequence[T5Block]", backbone.decoder_layers[-1:])
        network = cls(encoder, decoder, late, language.lm_head, language.scale,
                      label_smoothing=label_smoothing, eps=cast(T5Block, backbone.layers[0]).eps,
                      encoder_norm=backbone._norm["weight"], decoder_norm=language.norm, seed=seed,
                      late_dtype=late_dtype, backbone=backbone)
        network.features_source = pair_source(backbone, encoder_taps, decoder_taps)
        return network

    @property
    def taps(self) -> dict[str, Any] | None:
        """The states that the network reads, {"encoder_taps": …, "decoder_taps": …}, for `extract_pairs`; or None."""
        source = self.features_source
        if source is None:
            return None
        return {"encoder_taps": source.get("states"), "decoder_taps": source.get("decoder_states")}

    def _check_blocks(self) -> None:
        for name, block in (("encoder", self.encoder), ("decoder", self.decoder)):
            if block.images or block._pooled:
                raise ValueError(f"{name} must take tokens and give one row for each, not images or towers")
            if block.out_features != block.features[-1]:
                raise ValueError(f"{name} must have the {block.features[-1]} out_features of its last tap, got "
                                 f"{block.out_features}")
        if not self.late:
            raise ValueError("late must hold at least one block, which attends to what the encoder gives")
        width = self.decoder.out_features
        for name, block in self._blocks()[3:-2]:
            if not isinstance(block, T5Block) or not block.decoder:
                raise TypeError(f"{name} must be a T5Block of a decoder, got {block!r:.60}")
            if block.features != width:
                raise ValueError(f"{name} must have the {width} features that decoder gives, got {block.features}")
            if block.memory_features != self.encoder.out_features:
                raise ValueError(f"{name} must attend to the {self.encoder.out_features} channels that encoder gives, "
                                 f"got {block.memory_features}")
        if self.head.features != width:
            raise ValueError(f"lm_head must have the {width} features that decoder gives, got {self.head.features}")
        trained = [(name, block) for name, block in self._blocks() if not block._is_frozen]
        for name, block in trained:
            if block._network:
                raise ValueError(f"{name} already belongs to another network: make a new block, or copy.deepcopy it")
        if len({id(block) for _, block in trained}) < len(trained):
            raise ValueError("encoder, decoder and trainable layers of late must be different blocks")

    def _blocks(self) -> list[tuple[str, Any]]:
        late = [(f"late[{number}]", layer) for number, layer in enumerate(self.late)]
        return [("encoder", self.encoder), ("encoder_norm", self.encoder_norm), ("decoder", self.decoder), *late,
                ("norm", self.norm), ("head", self.head)]

    # Features and labels.

    def _features(self, features: Any, mask: ArrayLike | None = None, positions: ArrayLike | None = None,
                  dtype: Uint16As = None) -> Any:
        if not isinstance(features, Seq2SeqFeatures):
            raise TypeError(f"features must be Seq2SeqFeatures, got {type(features).__name__}")
        for name, part, block in (("encoder", features.encoder, self.encoder),
                                  ("decoder", features.decoder, self.decoder)):
            if list(part.channels) != list(block.features):
                raise ValueError(f"features must have {name} taps of {list(block.features)} channels, got "
                                 f"{part.channels}")
        self._check_source(features)
        return features

    def _fingerprint_of(self, backbone: Backbone) -> str:
        return pair_fingerprint(backbone)

    def _sources(self, features: Seq2SeqFeatures, batch: Any) -> list[Source]:
        return features.sources(batch)

    def _labelled(self, features: Seq2SeqFeatures, labels: Any = None, sample_weight: ArrayLike | None = None,
                  name: str = "labels", own_loss: bool = False) -> Labelled:
        """Return features with labels, their own where None are given, as the training takes them."""
        features = self._features(features)
        if labels is None:
            labels = features.labels
            if labels is None:
                raise ValueError(f"{name} must be given, since the features have none")
            if own_loss:
                padded = np.full((len(labels), features.lengths.max()), IGNORED, np.int64)
                for row, label in zip(padded, labels):
                    row[: len(label)] = label
                labels = padded
        layout = Layout(features.decoder, features.decoder)
        return Labelled(self, features, labels, sample_weight=sample_weight, name=name, own_loss=own_loss,
                        layout=layout)

    # Training.

    def fit(self, features: Seq2SeqFeatures, labels: Sequence[ArrayLike] | None = None, *, epochs: int = 3,
            batch_size: int = 32, learning_rate: float = 1e-3, optimizer: Optimizer = "adamw",
            weight_decay: float = 0.01, no_decay: Sequence[str] = NO_DECAY, schedule: Schedule = "linear",
            warmup: float = 0.06, clip_norm: float | None = 1.0, accumulate: int = 1,
            betas: Sequence[float] = (0.9, 0.999), momentum: float = 0.0, step_every: int | None = None,
            step_factor: float = 0.1, validation: Any = None, metrics: Metrics = None, monitor: str | None = None,
            patience: int | None = None, restore_best: bool | None = None,
            callbacks: Callback | Iterable[Callback] = (), progress: bool = True,
            sample_weight: ArrayLike | None = None, seed: int = 0, bucket_by_length: bool = False,
            checkpoint: PathLike | None = None, checkpoint_every: int | None = None,
            resume_from: PathLike | None = None, memory_budget: ByteCount | None = None, loss: Loss | None = None,
            learning_rate_factors: Mapping[str, float] | None = None,
            weight_decay_factors: Mapping[str, float] | None = None, ema: float | None = None) -> History:
        """Train the network.

        Parameters
        ----------
        features : Seq2SeqFeatures
        labels : sequence of array_like of int, optional
            For each sample the token ids of its decoder rows, -100 where one does not count; those of the features when
            None. The loss is the mean over all that count in a batch.
        validation : Seq2SeqFeatures, or tuple of them and labels, optional
            Evaluated after every epoch.
        metrics : str, callable, or a sequence or dictionary of them, optional
            Over the tokens, as for `SideNetwork.evaluate`; the accuracy when None.
        loss : callable, optional
            As for `SideNetwork.fit`, in place of the cross-entropy: ``loss(logits, labels, lengths)``, the rows of all
            samples of a batch one after the other, and labels padded with -100 where they come from the features. The
            logits of a whole batch then exist.
        epochs, batch_size, learning_rate, optimizer, weight_decay, no_decay, schedule, warmup, clip_norm, accumulate, \
        betas, momentum, step_every, step_factor, monitor, patience, restore_best, callbacks, progress, sample_weight, \
        seed, bucket_by_length, checkpoint, checkpoint_every, resume_from, memory_budget, learning_rate_factors, \
        weight_decay_factors, ema
            As for `SideNetwork.fit`.

        Returns
        -------
        History
        """
        settings = OptimizerSettings(
            optimizer=optimizer, learning_rate=learning_rate, weight_decay=weight_decay, no_decay=no_decay, betas=betas,
            momentum=momentum, clip_norm=clip_norm, schedule=schedule, warmup=warmup, step_every=step_every,
            step_factor=step_factor, learning_rate_factors=learning_rate_factors,
            weight_decay_factors=weight_decay_factors, ema=ema,
        )
        own = loss is not None
        labelled = self._labelled(features, labels, sample_weight, own_loss=own)
        return Fit(
            self, labelled, self._read_validation(validation, own), settings, epochs=epochs, batch_size=batch_size,
            accumulate=accumulate, metrics=metrics, monitor=monitor, patience=patience, restore_best=restore_best,
            callbacks=callbacks, progress=progress, seed=seed, bucket_by_length=bucket_by_length, checkpoint=checkpoint,
            checkpoint_every=checkpoint_every, resume_from=resume_from, memory_budget=memory_budget, loss=loss,
        ).run()

    def _read_validation(self, validation: Any, own_loss: bool) -> Labelled | None:
        if validation is None:
            return None
        given = validation if isinstance(validation, (tuple, list)) else (validation, None)
        if len(given) not in (1, 2):
            raise TypeError("validation must be features, or (features, labels)")
        try:
            labels = given[1] if len(given) == 2 else None
            return self._labelled(given[0], labels, name="validation labels", own_loss=own_loss)
        except (TypeError, ValueError) as error:
            raise type(error)(f"validation: {error}") from error

    def stepper(self, *, optimizer: Optimizer = "adamw", learning_rate: float = 1e-3, weight_decay: float = 0.01,
                no_decay: Sequence[str] = (), betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8,
                momentum: float = 0.0, clip_norm: float | None = None, schedule: Schedule = "constant",
                warmup: float = 0, total_steps: int = 0, step_every: int | None = None, step_factor: float = 0.1,
                seed: int = 0, memory_budget: ByteCount | None = None, loss: Loss | None = None,
                learning_rate_factors: Mapping[str, float] | None = None,
                weight_decay_factors: Mapping[str, float] | None = None, ema: float | None = None) -> Seq2SeqStepper:
        """Make an object that takes one optimizer step at each call, for training loops of one's own.

        Parameters
        ----------
        optimizer, learning_rate, weight_decay, no_decay, betas, eps, momentum, clip_norm, schedule, warmup, \
        total_steps, step_every, step_factor, seed, memory_budget, loss, learning_rate_factors, weight_decay_factors, \
        ema
            As for `SideNetwork.stepper`.

        Returns
        -------
        Seq2SeqStepper
            ``loss = step(features, labels=None)``
        """
        settings = OptimizerSettings(
            optimizer=optimizer, learning_rate=learning_rate, weight_decay=weight_decay, no_decay=no_decay, betas=betas,
            eps=eps, momentum=momentum, clip_norm=clip_norm, schedule=schedule, warmup=warmup, step_every=step_every,
            step_factor=step_factor, learning_rate_factors=learning_rate_factors,
            weight_decay_factors=weight_decay_factors, ema=ema,
        )
        return Seq2SeqStepper(self, settings, total_steps=total_steps, seed=seed, memory_budget=memory_budget,
                              loss=loss)

    # Outputs, scores, gradients.

    def forward(self, features: Seq2SeqFeatures, *, batch_size: int = scoring.BATCH_SIZE,
                memory_budget: ByteCount | None = None, progress: bool = True) -> list[Array]:
        """Compute the logits.

        Parameters
        ----------
        features : Seq2SeqFeatures
        batch_size, memory_budget, progress
            As for `SideNetwork.forward`.

        Returns
        -------
        list of numpy.ndarray of float32, each of shape (decoder rows, words)
        """
        features = self._features(features)
        shown = "predict" if flag(progress, "progress") else None
        with self._lock:
            outputs = scoring.outputs_of(self, features, batch_size, read_budget(memory_budget), shown)
        return cast("list[Array]", Layout(features.decoder, features.decoder).given(outputs))

    def evaluate(self, features: Seq2SeqFeatures, labels: Sequence[ArrayLike] | None = None, *, metrics: Metrics = None,
                 sample_weight: ArrayLike | None = None, batch_size: int = scoring.BATCH_SIZE,
                 memory_budget: ByteCount | None = None, progress: bool = True) -> dict[str, float]:
        """Compute the mean loss and metrics over the tokens that count.

        Parameters
        ----------
        features, labels
            As for `fit`.
        metrics, sample_weight, batch_size, memory_budget, progress
            As for `SideNetwork.evaluate`; of metrics the accuracy when None.

        Returns
        -------
        dict of str to float
            ``"loss"`` and the metrics by name.
        """
        functions = scoring.metric_functions(metrics, self.head.task)
        labelled = self._labelled(features, labels, sample_weight)
        shown = "evaluate" if flag(progress, "progress") else None
        with self._lock:
            return scoring.scores_of(self, labelled, functions, batch_size, read_budget(memory_budget), shown)

    def loss_and_gradients(self, features: Seq2SeqFeatures, labels: Sequence[ArrayLike] | None = None, *,
                           training: bool = False, sample_weight: ArrayLike | None = None,
                           seed: int = 0) -> tuple[float, StateDict]:
        """Compute the mean loss of a batch and its gradient.

        Parameters
        ----------
        features, labels
            As for `fit`.
        training : bool
            Whether dropout acts.
        sample_weight, seed
            As for `SideNetwork.loss_and_gradients`.

        Returns
        -------
        float
            The loss.
        dict of str to numpy.ndarray of float32
            Gradients by parameter name.
        """
        labelled = self._labelled(features, labels, sample_weight)
        with self._lock:
            program = self._programs.loss_gradient(flag(training, "training"))
            loss = program.gradient(*labelled.batch(), seed=seed_number(seed))
            assert loss is not None, "the program has a loss"
            return loss, self._read_gradients(program)

    def generate(self, inputs: Sequence[Any], max_new_tokens: int = 32, num_beams: int = 1, *,
                 length_penalty: float = 1.0, max_length: int | None = None, batch_size: int = 16,
                 progress: bool = True) -> list[Any]:
        """Continue from the start token until the end token: the best word at each step, or beam search.

        The frozen decoder runs step by step and computes each position once: the keys and values of those before are
        kept.

        Parameters
        ----------
        inputs : sequence of str, or of sequences of int
            Texts, or token ids with the end token.
        max_new_tokens : int
            Most tokens of an output, the end token included.
        num_beams : int
            Hypotheses that are followed for an input; with 1 the best word at each step is taken.
        length_penalty : float
            A hypothesis is ranked by its log probability divided by its tokens to this power.
        max_length : int, optional
            Tokens that are kept of an input; the model's limit when None.
        batch_size : int
            Inputs that are computed at a time; the results do not depend on it.
        progress : bool
            Whether to show a progress bar where it takes more than two seconds and tqdm is installed.

        Returns
        -------
        list of str, or list of list of int
            As the inputs are; without the end token.

        Raises
        ------
        ValueError
            Where the network has no backbone.
        """
        return generate(self, inputs, max_new_tokens, num_beams, length_penalty, max_length, batch_size, progress)

    def memory_plan(self, *, batch_size: int = 32, tokens: int = 128, target_tokens: int = 32,
                    optimizer: Optimizer = "adamw", memory_budget: ByteCount | None = None) -> memory.MemoryPlan:
        """Tell what memory training will take, above that of the taps.

        Parameters
        ----------
        batch_size : int
            Samples of a batch.
        tokens, target_tokens : int
            Rows of a sample in the encoder and in the decoder.
        optimizer, memory_budget
            As for `SideNetwork.memory_plan`.

        Returns
        -------
        MemoryPlan
        """
        with self._lock:
            return memory.plan(self, batch_size, memory.pair_sample(tokens, target_tokens), optimizer, memory_budget)

    # Disk.

    def _described(self) -> Record:
        return saving.describe_seq2seq(self)

    def __reduce__(self) -> tuple[Any, ...]:
        given = self.encoder, self.decoder, self.late, self.head
        norms = self.encoder_norm.state_dict()["weight"], self.norm.state_dict()["weight"]
        return _restored, (type(self), given, norms, self.norm.eps, self.seed, self.features_source, self.late_dtype)

    @classmethod
    def from_pretrained(cls, folder: PathLike, backbone: Backbone | None = None,
                        late_dtype: LateType | None = None) -> Seq2SeqSideNetwork:
        """Load a network that `save_pretrained` wrote.

        Parameters
        ----------
        folder : str or path-like
        backbone : backbone of `load_backbone`
            Where the frozen late blocks and the head are.
        late_dtype : {None, "float32", "bfloat16"}
            As for the network itself; that of the saved network when None.

        Returns
        -------
        Seq2SeqSideNetwork

        Raises
        ------
        ValueError
            Where a file is not whole, not of this form, or does not fit; or where the backbone is not the one that the
            network was trained on.
        ImportError
            Without the safetensors package.
        """
        network: Seq2SeqSideNetwork = saving.load(cls, folder, backbone, late_dtype)
        return network


class Seq2SeqStepper(Stepper):
    """Takes optimizer steps: ``loss = step(features, labels=None)``. Made by `Seq2SeqSideNetwork.stepper`."""

    network: Seq2SeqSideNetwork

    def __call__(  # type: ignore[override]  # features may come with their labels, and have no mask
            self, features: Seq2SeqFeatures, labels: Sequence[ArrayLike] | None = None, *,
                 sample_weight: ArrayLike | None = None) -> float:
        """Take one step on a batch.

        Parameters
        ----------
        features, labels, sample_weight
            As for `Seq2SeqSideNetwork.loss_and_gradients`.

        Returns
        -------
        float
            The batch's mean loss, before the step.
        """
        labelled = self.network._labelled(features, labels, sample_weight, own_loss=self.loss is not None)
        self.network._note_source(labelled.features)
        return self.step(labelled, [None])


def _read_factors(values: ArrayLike, features: int, name: str) -> Array:
    array = np.asarray(values)
    if array.shape != (features,):
        raise ValueError(f"{name} must have shape ({features},), got {array.shape}")
    return array


def _restored(kind: type[Seq2SeqSideNetwork], given: tuple[Any, ...], norms: tuple[Array, Array], eps: float, seed: int,
              source: Record | None, late_dtype: LateType) -> Seq2SeqSideNetwork:
    network = kind(*given, eps=eps, encoder_norm=norms[0], decoder_norm=norms[1], seed=seed, late_dtype=late_dtype)
    network.features_source = source
    return network
