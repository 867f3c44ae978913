"""What networks share: their blocks' weights in one store, counting, tables, saving."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import _core
from .._typing import ArrayLike, LateType, PathLike, Record, Source, StateDict, Uint16As
from ..blocks.block import count_owned
from ..blocks.weights import LoadReport, load_state, read_state, trainable_names
from ..checks import flag, one_of
from ..features.layout import Layout
from ..html import html_table
from . import memory, saving

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone
    from ..blocks.heads import Head
    from ..training.chain import Program
    from .programs import Programs


class Network:
    """A network of blocks; `_programs` has their parameters, `_lock` guards them."""

    head: Head
    seed: int
    features_source: Record | None
    _programs: Programs
    _lock: threading.RLock

    def _features(self, taps: Any, mask: ArrayLike | None = None, positions: ArrayLike | None = None,
                  dtype: Uint16As = None) -> Any:
        """Return a network's input as features that fit it."""
        raise NotImplementedError

    def _sources(self, features: Any, batch: Any) -> list[Source]:
        """Return what programs of the network take of a batch of features."""
        raise NotImplementedError

    def _blocks(self) -> list[tuple[str, Any]]:
        """Return (name, block) of every block."""
        raise NotImplementedError

    def _described(self) -> Record:
        """Return what makes an equal network, but for the trained weights, as JSON can hold it."""
        raise NotImplementedError

    def _gather(self) -> None:
        """Draw the weights, take over those of blocks that have some, and let the blocks share the store."""
        store = self._programs.store
        store.initialize(self.seed)
        for prefix, block in self._programs.parts():
            if block._is_frozen:
                continue
            if block._used():
                load_state(store, prefix, block.state_dict(), strict=True)
            block._move(store, prefix)

    # What a step gives.

    def _output_rows(self, lengths: Any) -> Any:
        """Return how many output rows each of the samples with so many rows has."""
        return self.head._rows_of(lengths)

    def _layout(self, taps: Any, features: Any) -> Layout:
        """Return how output rows are laid out for a user who gave such taps, read as features."""
        return Layout(taps, features)

    # Where the features come from.

    def _check_source(self, features: Any) -> None:
        known, found = self.features_source, features.source
        if known is not None and found is not None and known != found:
            raise ValueError(
                f"taps come from another backbone or other states ({_named(found)}) than the network was trained on "
                f"({_named(known)})"
            )

    def _note_source(self, features: Any) -> None:
        if features.source is not None:
            self.features_source = features.source

    def _fingerprint_of(self, backbone: Backbone) -> str:
        """Return that by which features name the backbone they were taken from."""
        return backbone.fingerprint

    def _check_backbone(self, backbone: Backbone) -> None:
        fingerprint = self._fingerprint_of(backbone)
        known = (self.features_source or {}).get("backbone", fingerprint)
        if known != fingerprint:
            raise ValueError(
                f"backbone {fingerprint[:12]}… is not the one that the network was trained on, {known[:12]}…"
            )

    def _read_gradients(self, program: Program) -> StateDict:
        return {name: program.parameter_gradient(name) for name in trainable_names(self._programs.store)}

    # Weights.

    def state_dict(self) -> StateDict:
        """Return copies of the trained parameters by name, with prefixes by block: early., late.0. …, head.

        Returns
        -------
        dict of str to numpy.ndarray of float32
        """
        with self._lock:
            return read_state(self._programs.store)

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike], strict: bool = True) -> LoadReport:
        """Set the trained parameters.

        Parameters
        ----------
        state_dict : mapping of str to array_like
            Arrays by parameter name. Nothing is changed where an error is raised.
        strict : bool
            Whether all names and shapes must fit. Otherwise those that do are loaded.

        Returns
        -------
        LoadReport
            Names that are missing, unexpected, or of another shape.

        Raises
        ------
        ValueError
            Where `strict` and something does not fit; the message lists all of it.
        """
        with self._lock:
            return load_state(self._programs.store, "", state_dict, flag(strict, "strict"))

    def num_parameters(self, trainable_only: bool = True) -> int:
        """Count parameters.

        Parameters
        ----------
        trainable_only : bool
            Whether to leave out those of frozen blocks.

        Returns
        -------
        int
        """
        owned = count_owned(self._programs.store)
        if flag(trainable_only, "trainable_only"):
            return owned
        return owned + sum(int(block._frozen_count()) for _, block in self._blocks())

    def print_trainable_parameters(self) -> None:
        """Print how many parameters are trained, out of how many with the frozen ones."""
        trained, total = self.num_parameters(), self.num_parameters(trainable_only=False)
        print(f"trained parameters: {trained:,} of {total:,} ({100 * trained / total:.2f} %)")

    def summary(self) -> str:
        """Describe the blocks in a table.

        Returns
        -------
        str
        """
        return memory.summary(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}\n{self.summary()}"

    def _repr_html_(self) -> str:
        title = f"{type(self).__name__}: {memory.counted(self)}"
        return html_table(title, memory.SUMMARY_HEADER, memory.summary_rows(self))

    # Disk.

    def save_pretrained(self, folder: PathLike) -> None:
        """Save the trained weights (model.safetensors) and what else makes the network (config.json).

        Frozen layers are not saved, only their fingerprints. An earlier save in the folder is replaced whole.

        Parameters
        ----------
        folder : str or path-like
            Made where it does not exist.

        Raises
        ------
        ImportError
            Without the safetensors package.
        """
        saving.save(self, folder)


def read_late_dtype(late_dtype: LateType) -> LateType:
    """Return a `late_dtype` argument, checked."""
    one_of(late_dtype, "late_dtype", ("float32", "bfloat16"))
    if late_dtype == "bfloat16" and not _core.config()["bfloat16"]:
        raise ValueError("late_dtype \"bfloat16\" is not available on this processor, which lacks the AVX512-BF16 "
                         "instructions: use \"float32\"")
    return late_dtype


def _named(source: Record) -> str:
    backbone = str(source.get("backbone", "unknown"))
    return f"backbone {backbone[:12]}…, states {source.get('states', 'unknown')}"
