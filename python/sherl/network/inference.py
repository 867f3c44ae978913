"""What a network computes: outputs, predictions, scores, losses, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .. import _core
from .._typing import Array, ArrayLike, ByteCount, Source, StateDict, Uint16As
from ..blocks.block import QueryRows, Rows, read_sample_rows
from ..blocks.forms import tap_sinks, taps_given
from ..blocks.mtsa import MTSA
from ..checks import flag, seed_number
from ..features.features import Features, read_sequence
from ..features.layout import Layout
from ..training import scoring
from ..training.budget import read_budget
from ..training.labelled import Labelled
from ..training.metrics import default_metrics
from .explanation import BATCH_SIZE, Explanation, explain
from .late_route import given_positions, queries_of
from .network import Network

if TYPE_CHECKING:
    from ..blocks.late import LateLayer
    from ..features.rows import Batch


class Inference(Network):
    """The part of a network that leaves its weights as they are."""

    early: MTSA
    late: list[LateLayer]

    def forward(self, taps: Features | Sequence[ArrayLike], mask: ArrayLike | None = None, *,
                positions: ArrayLike | None = None, batch_size: int = scoring.BATCH_SIZE,
                memory_budget: ByteCount | None = None, dtype: Uint16As = None, progress: bool = True) -> Any:
        """Compute the outputs of the head.

        Parameters
        ----------
        taps : Features, or sequence of array_like, each of shape (batch, tokens, channels)
            Hidden states of the backbone. float32, float64, float16 or bfloat16. Images (batch, height, width,
            channels) where the early block has `pool`; with spatial guidance one more, the tower's output
            (batch, channels); with `Positions` without a table one more, the rows of positions.
        mask : array_like of bool, int or float, shape (batch, tokens), optional
            With padded arrays: 1 where a row is meant; others are left out.
        positions : array_like of int, shape (batch,), optional
            With padded arrays and a head with ``pool="position"``: which of its rows that are meant each sample is read
            from, counted from 0. `Features` have their own.
        batch_size : int
            Samples that are computed at a time; the results do not depend on it.
        memory_budget : int or str, optional
            Bound on trained weights and workspace, as for `fit`.
        dtype : {None, "bfloat16"}
            How to take uint16.
        progress : bool
            Whether to show a progress bar where it takes more than two seconds and tqdm is installed.

        Returns
        -------
        numpy.ndarray of float32, shape (samples, classes or outputs)
            Of a head with an output for every row (batch, tokens, outputs), or Features where `taps` are; behind
            `Queries` always (batch, queries, outputs).
        """
        return self.head._arranged(*self._outputs(taps, mask, positions, batch_size, memory_budget, dtype, progress))

    def _outputs(self, taps: Features | Sequence[ArrayLike], mask: ArrayLike | None, positions: ArrayLike | None,
                 batch_size: int, memory_budget: ByteCount | None, dtype: Uint16As,
                 progress: bool) -> tuple[Array, Layout]:
        """Return the outputs in the order of the rows, and the layout of these."""
        features = self._features(taps, mask, positions, dtype)
        with self._lock:
            outputs = scoring.outputs_of(self, features, batch_size, read_budget(memory_budget),
                                         _description(progress, "predict"))
        return outputs, self._layout(taps, features)

    def predict(self, taps: Features | Sequence[ArrayLike], mask: ArrayLike | None = None, *,
                positions: ArrayLike | None = None, batch_size: int = scoring.BATCH_SIZE,
                memory_budget: ByteCount | None = None, dtype: Uint16As = None, progress: bool = True) -> Any:
        """Predict class numbers, or numbers.

        Parameters
        ----------
        taps, mask, positions, batch_size, memory_budget, dtype, progress
            As for `forward`.

        Returns
        -------
        numpy.ndarray
            Of a classifier int64 (samples,), or with `multi_label` 0 and 1 of shape (samples, classes); of a
            regressor float32 (samples,), or (samples, outputs) with several; of a token classifier int64 (batch,
            tokens) with -100 where the mask is 0, or of Features a list of one array a sample; of a span predictor
            int64 (samples, 2).
        """
        return self.head._predict(*self._outputs(taps, mask, positions, batch_size, memory_budget, dtype, progress))

    def predict_proba(self, taps: Features | Sequence[ArrayLike], mask: ArrayLike | None = None, *,
                      positions: ArrayLike | None = None, batch_size: int = scoring.BATCH_SIZE,
                      memory_budget: ByteCount | None = None, dtype: Uint16As = None, progress: bool = True) -> Any:
        """Compute class probabilities.

        Parameters
        ----------
        taps, mask, positions, batch_size, memory_budget, dtype, progress
            As for `forward`.

        Returns
        -------
        numpy.ndarray of float32, shape (samples, classes)
            Rows sum to 1, or with `multi_label` every class has its own probability.

        Raises
        ------
        TypeError
            Where the head is not a classifier.
        """
        return self.head._chances(*self._outputs(taps, mask, positions, batch_size, memory_budget, dtype, progress))

    def evaluate(self, taps: Features | Sequence[ArrayLike], labels: ArrayLike, mask: ArrayLike | None = None, *,
                 positions: ArrayLike | None = None, metrics: scoring.Metrics = None,
                 sample_weight: ArrayLike | None = None, batch_size: int = scoring.BATCH_SIZE,
                 memory_budget: ByteCount | None = None, dtype: Uint16As = None,
                 progress: bool = True) -> dict[str, float]:
        """Compute the mean loss and metrics.

        Parameters
        ----------
        taps, mask, positions, batch_size, memory_budget, dtype, progress
            As for `forward`.
        labels : array_like
            As for `fit`.
        metrics : str, callable, or a sequence or dictionary of them, optional
            Names (accuracy, f1, matthews_correlation, pearson, spearman), or functions (predictions, targets) -> float.
            With `multi_label` they see every pair of sample and class; with several outputs their mean is taken.
        sample_weight : array_like of float, shape (samples,), optional
            By what each sample's loss counts.

        Returns
        -------
        dict of str to float
            ``"loss"`` and the metrics by name.
        """
        labelled = Labelled(self, taps, labels, mask, positions, sample_weight, dtype)
        functions = scoring.metric_functions(metrics, self.head.task)
        with self._lock:
            return scoring.scores_of(self, labelled, functions, batch_size, read_budget(memory_budget),
                                     _description(progress, "evaluate"))

    def score(self, taps: Features | Sequence[ArrayLike], labels: ArrayLike, mask: ArrayLike | None = None, *,
              positions: ArrayLike | None = None, batch_size: int = scoring.BATCH_SIZE,
              memory_budget: ByteCount | None = None, dtype: Uint16As = None, progress: bool = True) -> float:
        """Compute the first of the task's metrics: accuracy, or Pearson's correlation.

        Parameters
        ----------
        taps, labels, mask, positions, batch_size, memory_budget, dtype, progress
            As for `evaluate`.

        Returns
        -------
        float
        """
        name = default_metrics(str(self.head.task))[0]
        return self.evaluate(taps, labels, mask, positions=positions, metrics=name, batch_size=batch_size,
                             memory_budget=memory_budget, dtype=dtype, progress=progress)[name]

    def explain(self, taps: Features | Sequence[ArrayLike], mask: ArrayLike | None = None, *,
                positions: ArrayLike | None = None, batch_size: int = BATCH_SIZE, dtype: Uint16As = None,
                progress: bool = True) -> Explanation:
        """Tell which taps the network uses: how its adapter weighs them row by row, and how redundant they are.

        Parameters
        ----------
        taps, mask, positions, dtype, progress
            As for `forward`.
        batch_size : int
            Samples that are computed at a time; the results do not depend on it.

        Returns
        -------
        Explanation
            Of every row that the mask leaves; of images of every pixel of the last tap; with spatial guidance of every
            sample.
        """
        features = self._features(taps, mask, positions, dtype)
        with self._lock:
            return explain(self, features, batch_size, flag(progress, "progress"))

    def loss_and_gradients(self, taps: Features | Sequence[ArrayLike], labels: ArrayLike, mask: ArrayLike | None = None,
                           *, positions: ArrayLike | None = None, training: bool = False,
                           sample_weight: ArrayLike | None = None, seed: int = 0,
                           dtype: Uint16As = None) -> tuple[float, StateDict]:
        """Compute the mean loss of a batch and its gradient.

        Parameters
        ----------
        taps, mask, positions, dtype
            As for `forward`.
        labels : array_like
            As for `fit`.
        training : bool
            Whether dropout acts.
        sample_weight : array_like of float, shape (samples,), optional
            By what each sample's loss counts.
        seed : int
            Of dropout.

        Returns
        -------
        float
            The loss.
        dict of str to numpy.ndarray of float32
            Gradients by parameter name.
        """
        labelled = Labelled(self, taps, labels, mask, positions, sample_weight, dtype)
        with self._lock:
            program = self._programs.loss_gradient(flag(training, "training"))
            loss = program.gradient(*labelled.batch(), seed=seed_number(seed))
            assert loss is not None, "the program has a loss"
            return loss, self._read_gradients(program)

    def vjp(self, taps: Features | Sequence[ArrayLike], cotangent: ArrayLike | Features, mask: ArrayLike | None = None,
            *, positions: ArrayLike | None = None, taps_gradient: bool = False, training: bool = False, seed: int = 0,
            dtype: Uint16As = None) -> tuple[Array | Features, dict[str, Array | Features]]:
        """Compute the outputs of the head, and the gradient of their product with a cotangent.

        Parameters
        ----------
        taps, mask, positions, dtype
            As for `forward`.
        cotangent : array_like, shape (samples, classes or outputs)
            Gradient of a scalar with respect to the outputs.
        taps_gradient : bool
            Whether to compute gradients of the taps too.
        training : bool
            Whether dropout acts.
        seed : int
            Of dropout.

        Returns
        -------
        numpy.ndarray of float32, shape (samples, classes or outputs)
            The outputs.
        dict of str to numpy.ndarray of float32, or Features
            Gradients by parameter name, and where asked for ``"tap0"``, ``"tap1"`` … in the form of the taps.
        """
        taps = taps if isinstance(taps, Features) else read_sequence(taps)
        features = self._features(taps, mask, positions, dtype)
        batch = features.batch()
        sinks = tap_sinks(features, taps) if flag(taps_gradient, "taps_gradient") else []
        input_gradients: list[Source | None] = [sink for _, sink in sinks]
        if sinks and self.head._positions_read(features.positions) is not None:
            input_gradients.append(None)
        rows, output, sink = self._sink(taps, mask, batch, dtype)
        if rows is None:
            source: Source = read_sample_rows(cast(ArrayLike, cotangent), batch.samples, self.head.out_features), None
        else:
            source = rows.cotangent(cotangent, self.head.out_features, dtype)
        with self._lock:
            program = self._programs.output_gradient(flag(training, "training"), bool(taps_gradient))
            program.gradient(
                batch.samples, batch.spaces, self._sources(features, batch), [sink], cotangents=[source],
                input_gradients=input_gradients or None, seed=seed_number(seed),
            )
            gradients: dict[str, Array | Features] = {**self._read_gradients(program)}
        gradients.update(taps_given(features, taps, sinks))
        return output if rows is None else rows.given(output), gradients

    def _run_forward(self, taps: Features | Sequence[ArrayLike], mask: ArrayLike | None = None, *,
                     positions: ArrayLike | None = None, taps_gradient: bool = False, training: bool = False,
                     seed: int = 0, dtype: Uint16As = None) -> Array | Features:
        """Compute the outputs that `vjp` with the same arguments gives."""
        taps = taps if isinstance(taps, Features) else read_sequence(taps)
        features = self._features(taps, mask, positions, dtype)
        batch = features.batch()
        rows, output, sink = self._sink(taps, mask, batch, dtype)
        with self._lock:
            program = self._programs.output_gradient(True, taps_gradient) if training else self._programs.output()
            program.forward(batch.samples, batch.spaces, self._sources(features, batch), [sink], seed=seed)
        return output if rows is None else rows.given(output)

    def _sink(self, taps: Features | Sequence[ArrayLike], mask: ArrayLike | None, batch: Batch,
              dtype: Uint16As) -> tuple[Rows | QueryRows | None, Array, Source]:
        """Return the rows of outputs for every row, or None; a matrix for the outputs, and the source of it."""
        if self.head._pooled:
            output = np.empty((batch.samples, self.head.out_features), _core.REAL)
            return None, output, (output, None)
        queries = queries_of(self.late)
        if queries is not None:
            decoded = QueryRows(batch.samples, queries)
            return decoded, *decoded.sink(self.head.out_features)
        names = [f"taps[{number}]" for number in range(self.early.taps)]
        channels = [*self.early.features]
        given = given_positions(self.late)
        if given is not None:
            names.append(f"taps[{self.early.taps}]")
            channels.append(given)
        rows = Rows([taps] if isinstance(taps, Features) else taps, names, mask, channels, dtype)
        return rows, *rows.sink(self.head.out_features)

    def _sources(self, features: Features, batch: Batch) -> list[Source]:
        """Return what programs of the network take of a batch of features."""
        positions = self.head._positions_read(batch.positions)
        return features.sources(batch) if positions is None else [*features.sources(batch), (positions, None)]


def _description(progress: bool, text: str) -> str | None:
    return text if flag(progress, "progress") else None
