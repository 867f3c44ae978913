"""Seq2SeqSideNetwork: an MTSA on a frozen encoder and one on a frozen decoder, the last decoder block, the LM head."""

import threading

import numpy as np

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
from ..training.fit import Fit
from ..training.labelled import Labelled
from ..training.optimizers import NO_DECAY, OptimizerSettings
from ..training.stepper import Stepper
from . import memory, saving
from .generation import generate
from .network import Network, read_late_dtype
from .programs import Seq2SeqPrograms

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

    def __init__(self, encoder, decoder, late, lm_head, scale=1.0, *, label_smoothing=0.0, eps=1e-6,
                 encoder_norm=None, decoder_norm=None, seed=0, late_dtype="float32", backbone=None):
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
        self.features_source = None
        self.backbone = backbone
        self._generation = None  # compiled when first asked for
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
    def from_backbone(cls, backbone, hidden=None, *, encoder_taps=None, decoder_taps=None, label_smoothing=0.0, seed=0,
                      late_dtype="float32"):
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
        network = cls(encoder, decoder, backbone.decoder_layers[-1:], language.lm_head, language.scale,
                      label_smoothing=label_smoothing, eps=backbone.layers[0].eps,
                      encoder_norm=backbone._norm["weight"], decoder_norm=language.norm, seed=seed,
                      late_dtype=late_dtype, backbone=backbone)
        network.features_source = pair_source(backbone, encoder_taps, decoder_taps)
        return network

    @property
    def taps(self):
        """The states that the network reads, {"encoder_taps": …, "decoder_taps": …}, for `extract_pairs`; or None."""
        source = self.features_source
        if source is None:
            return None
        return {"encoder_taps": source.get("states"), "decoder_taps": source.get("decoder_states")}

    def _check_blocks(self):
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

    def _blocks(self):
        late = [(f"late[{number}]", layer) for number, layer in enumerate(self.late)]
        return [("encoder", self.encoder), ("encoder_norm", self.encoder_norm), ("decoder", self.decoder), *late,
                ("norm", self.norm), ("head", self.head)]

    # Features and labels.

    def _features(self, features, mask=None, positions=None, dtype=None):
        if not isinstance(features, Seq2SeqFeatures):
            raise TypeError(f"features must be Seq2SeqFeatures, got {type(features).__name__}")
        for name, part, block in (("encoder", features.encoder, self.encoder),
                                  ("decoder", features.decoder, self.decoder)):
            if list(part.channels) != list(block.features):
                raise ValueError(f"features must have {name} taps of {list(block.features)} channels, got "
                                 f"{part.channels}")
        self._check_source(features)
        return features

    def _fingerprint_of(self, backbone):
        return pair_fingerprint(backbone)

    def _sources(self, features, batch):
        return features.sources(batch)

    def _labelled(self, features, labels=None, sample_weight=None, name="labels", own_loss=False):
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

    def fit(self, features, labels=None, *, epochs=3, batch_size=32, learning_rate=1e-3, optimizer="adamw",
            weight_decay=0.01, no_decay=NO_DECAY, schedule="linear", warmup=0.06, clip_norm=1.0, accumulate=1,
            betas=(0.9, 0.999), momentum=0.0, step_every=None, step_factor=0.1, validation=None, metrics=None,
            monitor=None, patience=None, restore_best=None, callbacks=(), progress=True, sample_weight=None, seed=0,
            bucket_by_length=False, checkpoint=None, checkpoint_every=None, resume_from=None, memory_budget=None,
            loss=None, learning_rate_factors=None, weight_decay_factors=None, ema=None):
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

    def _read_validation(self, validation, own_loss):
        if validation is None:
            return None
        given = validation if isinstance(validation, (tuple, list)) else (validation,)
        if len(given) not in (1, 2):
            raise TypeError("validation must be features, or (features, labels)")
        try:
            return self._labelled(*given, name="validation labels", own_loss=own_loss)
        except (TypeError, ValueError) as error:
            raise type(error)(f"validation: {error}") from error

    def stepper(self, *, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01, no_decay=(), betas=(0.9, 0.999),
                eps=1e-8, momentum=0.0, clip_norm=None, schedule="constant", warmup=0, total_steps=0, step_every=None,
                step_factor=0.1, seed=0, memory_budget=None, loss=None, learning_rate_factors=None,
                weight_decay_factors=None, ema=None):
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

    def forward(self, features, *, batch_size=scoring.BATCH_SIZE, memory_budget=None):
        """Compute the logits.

        Parameters
        ----------
        features : Seq2SeqFeatures
        batch_size, memory_budget
            As for `SideNetwork.forward`.

        Returns
        -------
        list of numpy.ndarray of float32, each of shape (decoder rows, words)
        """
        features = self._features(features)
        with self._lock:
            outputs = scoring.outputs_of(self, features, batch_size, read_budget(memory_budget))
        return Layout(features.decoder, features.decoder).given(outputs)

    def evaluate(self, features, labels=None, *, metrics=None, sample_weight=None, batch_size=scoring.BATCH_SIZE,
                 memory_budget=None):
        """Compute the mean loss and metrics over the tokens that count.

        Parameters
        ----------
        features, labels
            As for `fit`.
        metrics, sample_weight, batch_size, memory_budget
            As for `SideNetwork.evaluate`; the accuracy when None.

        Returns
        -------
        dict of str to float
            ``"loss"`` and the metrics by name.
        """
        functions = scoring.metric_functions(metrics, self.head.task)
        labelled = self._labelled(features, labels, sample_weight)
        with self._lock:
            return scoring.scores_of(self, labelled, functions, batch_size, read_budget(memory_budget))

    def loss_and_gradients(self, features, labels=None, *, training=False, sample_weight=None, seed=0):
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
            return loss, self._read_gradients(program)

    def generate(self, inputs, max_new_tokens=32, num_beams=1, *, length_penalty=1.0, max_length=None, batch_size=16):
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

        Returns
        -------
        list of str, or list of list of int
            As the inputs are; without the end token.

        Raises
        ------
        ValueError
            Where the network has no backbone.
        """
        return generate(self, inputs, max_new_tokens, num_beams, length_penalty, max_length, batch_size)

    def memory_plan(self, *, batch_size=32, tokens=128, target_tokens=32, optimizer="adamw", memory_budget=None):
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

    def _described(self):
        return saving.describe_seq2seq(self)

    def __reduce__(self):
        given = self.encoder, self.decoder, self.late, self.head
        norms = self.encoder_norm.state_dict()["weight"], self.norm.state_dict()["weight"]
        return _restored, (type(self), given, norms, self.norm.eps, self.seed, self.features_source, self.late_dtype)

    @classmethod
    def from_pretrained(cls, folder, backbone=None, late_dtype=None):
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
        return saving.load(cls, folder, backbone, late_dtype)


class Seq2SeqStepper(Stepper):
    """Takes optimizer steps: ``loss = step(features, labels=None)``. Made by `Seq2SeqSideNetwork.stepper`."""

    def __call__(self, features, labels=None, *, sample_weight=None):
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


def _read_factors(values, features, name):
    array = np.asarray(values)
    if array.shape != (features,):
        raise ValueError(f"{name} must have shape ({features},), got {array.shape}")
    return array


def _restored(kind, given, norms, eps, seed, source, late_dtype):
    network = kind(*given, eps=eps, encoder_norm=norms[0], decoder_norm=norms[1], seed=seed, late_dtype=late_dtype)
    network.features_source = source
    return network
