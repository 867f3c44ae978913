"""Generation: the frozen decoder, the side network on its taps and the late blocks, one position at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from .. import _core
from .._typing import Array, Integers, Source, Spaces
from ..backbones.pairs import build_embedding, build_encoder, build_output
from ..backbones.tokenization import read_texts
from ..checks import flag, real_number, whole_number
from ..features.rows import offsets_of, select_rows
from ..training.progress import PATIENCE, progress_bar
from .decoding import Cache, add_block, add_keys, add_memory_keys

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone
    from ..backbones.pairs import LanguageDecoder
    from ..blocks.transformer import TransformerLayer
    from .seq2seq_network import Seq2SeqSideNetwork


def generate(network: Seq2SeqSideNetwork, inputs: Sequence[Any], max_new_tokens: int, num_beams: int,
             length_penalty: float, max_length: int | None, batch_size: int, progress: bool) -> list[Any]:
    """Return outputs for inputs; the arguments are those of `Seq2SeqSideNetwork.generate`."""
    backbone = network.backbone
    if backbone is None or network.taps is None:
        raise ValueError("generate needs the frozen model: the network must have been made by from_backbone, or loaded "
                         "with backbone=")
    max_new_tokens = whole_number(max_new_tokens, "max_new_tokens", 1)
    num_beams = whole_number(num_beams, "num_beams", 1, network.head.classes - 1)
    length_penalty = real_number(length_penalty, "length_penalty")
    batch_size = whole_number(batch_size, "batch_size", 1)
    inputs, kind = read_texts(inputs)
    read = backbone._stem.read(inputs, backbone._length(max_length))
    count, offsets = len(read.sizes), offsets_of(read.sizes)
    made = []
    with (network._lock, backbone._lock,
          progress_bar(flag(progress, "progress"), count, "generate", delay=PATIENCE) as bar):
        for start in range(0, count, batch_size):
            stop = min(start + batch_size, count)
            decoder = StepDecoder(network, offsets[start : stop + 1] - offsets[start], read.inputs(start, stop))
            made += search(decoder, stop - start, cast("LanguageDecoder", backbone.language), max_new_tokens, num_beams,
                           length_penalty)
            bar.update(stop - start)
    return made if kind == "ids" else backbone.detokenize(made)


# ---- The search ----

Hypothesis: TypeAlias = tuple[float, list[int]]  # log probability and tokens


def search(decoder: Callable[[Array, Array, Array], Array], samples: int, language: LanguageDecoder,
           max_new_tokens: int, num_beams: int, length_penalty: float) -> list[list[int]]:
    """Return the best hypothesis of each sample, without its end token.

    Parameters
    ----------
    decoder : callable
        Takes for each hypothesis its sample, its last token and which hypothesis of the last call it continues, and
        returns the logits of the next token, (hypotheses, words).
    """
    beams: list[list[Hypothesis]] = [[(0.0, [])] for _ in range(samples)]  # of each sample: log probability and tokens
    finished: list[list[Hypothesis]] = [[] for _ in range(samples)]  # rank and tokens
    owners: Any = np.arange(samples)
    parents: Any = owners
    for step in range(1, max_new_tokens + 1):
        last = [tokens[-1] if tokens else language.start for sample in beams for _, tokens in sample]
        logits = decoder(owners, np.array(last), parents).astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        scores = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        parents, owners, first = [], [], 0
        for sample, live in enumerate(beams):
            totals = scores[first : first + len(live)] + np.array([[total] for total, _ in live]).reshape(-1, 1)
            kept, origins = _extend(live, totals, finished[sample], language.end, step, num_beams, length_penalty)
            if _is_done(kept, finished[sample], step, max_new_tokens, num_beams, length_penalty):
                kept, origins = [], []
            beams[sample] = kept
            parents += [first + origin for origin in origins]
            owners += [sample] * len(kept)
            first += len(live)
        if not owners:
            break
        parents, owners = np.array(parents), np.array(owners)
    return [max(done, key=lambda ranked: ranked[0])[1] for done in finished]


def _extend(live: list[Hypothesis], totals: Array, finished: list[tuple[float, list[int]]], end: int, step: int,
            num_beams: int, length_penalty: float) -> tuple[list[Hypothesis], list[int]]:
    """Return the best hypotheses that go on, and which each continues; those that end join the finished ones."""
    words = totals.shape[1]
    flat = totals.ravel()
    count = min(2 * num_beams, len(flat))
    best = np.argpartition(-flat, count - 1)[:count] if count < len(flat) else np.arange(count)
    best = best[np.lexsort((best, -flat[best]))]
    kept: list[Hypothesis] = []
    origins: list[int] = []
    for place, number in enumerate(best):
        origin, token = divmod(int(number), words)
        if token == end:
            if place < num_beams:
                _finish(finished, flat[number] / step**length_penalty, live[origin][1], num_beams)
        elif len(kept) < num_beams:
            kept.append((float(flat[number]), [*live[origin][1], token]))
            origins.append(origin)
    return kept, origins


def _finish(finished: list[tuple[float, list[int]]], rank: float, tokens: list[int], num_beams: int) -> None:
    """Add a hypothesis to the finished ones, of which the best are kept."""
    finished.append((float(rank), tokens))
    if len(finished) > num_beams:
        finished.remove(min(finished, key=lambda ranked: ranked[0]))


def _is_done(kept: list[Hypothesis], finished: list[tuple[float, list[int]]], step: int, max_new_tokens: int,
             num_beams: int, length_penalty: float) -> bool:
    """Whether none that goes on is better, at this length, than those finished; at the last step all are finished."""
    if not kept:
        return True
    if step == max_new_tokens:
        for total, tokens in kept:
            _finish(finished, total / step**length_penalty, tokens, num_beams)
        return True
    worst = min((rank for rank, _ in finished), default=-np.inf)
    return len(finished) >= num_beams and worst >= kept[0][0] / step**length_penalty


# ---- The decoder ----


class StepDecoder:
    """Logits of the next token for hypotheses over some inputs, position by position.

    Parameters
    ----------
    network : Seq2SeqSideNetwork
    offsets : numpy.ndarray of int64, shape (inputs + 1,)
        Where each input's tokens begin.
    inputs : list
        What the backbone's stem reads.
    """

    def __init__(self, network: Seq2SeqSideNetwork, offsets: Integers, inputs: list[Source]) -> None:
        self._network, self._backbone = network, cast("Backbone", network.backbone)
        self._programs = _programs_of(network)
        self._offsets = offsets
        taps = network.taps or {}
        self._taps = taps["decoder_taps"]
        self._layers = self._backbone.decoder_layers[: max(self._taps)]
        self._caches = [Cache(_inner(block)) for block in [*self._layers, *network.late]]
        self._memory = self._run_encoder(taps["encoder_taps"], inputs)
        self._rows = np.empty((len(offsets) - 1, 0), np.int64)  # of the caches, by hypothesis and position
        self._steps = self._taken = 0

    def _run_encoder(self, taps: Sequence[int], inputs: list[Source]) -> list[list[Array]]:
        """Return the keys and values of the memory, block by block."""
        rows, samples = int(self._offsets[-1]), len(self._offsets) - 1

        def sinks(blocks: Sequence[TransformerLayer]) -> list[list[Array]]:
            return [[np.empty((rows, _inner(block)), _core.REAL) for _ in range(2)] for block in blocks]

        states = [np.empty((rows, self._backbone.hidden_size), _core.REAL) for _ in taps]
        frozen, late = sinks(self._layers), sinks(self._network.late)
        spaces = [None, self._offsets]
        outputs = [(array, None) for array in [*states, *(array for pair in frozen for array in pair)]]
        self._programs.encoder().forward(samples, spaces, inputs, outputs)
        outputs = [(array, None) for pair in late for array in pair]
        self._programs.memory().forward(samples, spaces, [(state, None) for state in states], outputs)
        return frozen + late

    def __call__(self, owners: Array, tokens: Array, parents: Array) -> Array:
        """Return the logits of the next token; the arguments are as of `search`."""
        count = len(owners)
        self._rows = np.column_stack([self._rows[parents], self._taken + np.arange(count)])
        self._taken += count
        self._steps += 1
        memory = select_rows(self._offsets, None, np.asarray(owners, np.int64))
        offsets = np.arange(count + 1, dtype=np.int64) * self._steps
        context = _Context(count, [None, offsets, memory.offsets], self._rows.ravel(), cast("Integers", memory.rows),
                           np.repeat(np.arange(count), self._steps))
        width = self._backbone.hidden_size
        states = [np.empty((count, width), _core.REAL)]
        ids = np.ascontiguousarray(tokens, np.int32).reshape(-1, 1)
        self._programs.enter().forward(count, [None], [(ids, None)], [(states[0], None), *self._caches[0].take(count)])
        for number in range(len(self._layers)):
            states.append(self._step(number, states[-1], context, number + 1 < len(self._layers)))
        x = np.empty((count, width), _core.REAL)
        first_late, late = len(self._layers), len(self._network.late)
        taps = [(states[tap], None) for tap in self._taps]
        self._programs.side().forward(count, [None], taps, [(x, None), *self._caches[first_late].take(count)])
        for number in range(late):
            x = self._step(first_late + number, x, context, number + 1 < late)
        logits = np.empty((count, self._network.head.classes), _core.REAL)
        self._programs.words().forward(count, [None], [(x, None)], [(logits, None)])
        return logits

    def _step(self, number: int, x: Array, context: _Context, more: bool) -> Array:
        """Return the output of a block for the new position; the next one's keys and values go to its cache."""
        out = np.empty_like(x)
        sources = [(x, context.repeated), *self._caches[number].sources(context.rows),
                   *((array, context.memory_rows) for array in self._memory[number])]
        sinks = [(out, None), *(self._caches[number + 1].take(context.count) if more else [])]
        self._programs.block(number).forward(context.count, context.spaces, sources, sinks)
        return out


class _Context:
    """What all blocks of a step share: row spaces, and which rows of the caches and of the memory are whose."""

    def __init__(self, count: int, spaces: Spaces, rows: Integers, memory_rows: Integers, repeated: Integers) -> None:
        self.count, self.spaces, self.rows, self.memory_rows, self.repeated = count, spaces, rows, memory_rows, repeated


def _inner(block: TransformerLayer) -> int:
    return block.heads * block._head_channels


def _programs_of(network: Seq2SeqSideNetwork) -> StepPrograms:
    programs = network._generation
    if programs is None or programs.backbone is not network.backbone or programs.taps != network.taps:
        programs = network._generation = StepPrograms(network)
    return programs


class StepPrograms:
    """The compiled graphs of generation; those of frozen blocks live in the backbone's store."""

    def __init__(self, network: Seq2SeqSideNetwork) -> None:
        self._network, self.backbone, self.taps = network, cast("Backbone", network.backbone), network.taps or {}
        self._layers = self.backbone.decoder_layers[: max(self.taps["decoder_taps"])]
        self._compiled: dict[Any, _core.Program] = {}

    def _program(self, key: Any, store: _core.Parameters,
                 build: Callable[[_core.Graph], Sequence[int]]) -> _core.Program:
        if key not in self._compiled:
            graph = _core.Graph(store, False)
            for output in build(graph):
                graph.output(output)
            self._compiled[key] = graph.compile(False)
        return self._compiled[key]

    def _frozen(self, key: Any, build: Callable[[_core.Graph], Sequence[int]]) -> _core.Program:
        return self._program(key, self.backbone._store, build)

    def _side(self, key: Any, build: Callable[[_core.Graph], Sequence[int]]) -> _core.Program:
        return self._program(key, self._network._programs.store, build)

    def _late(self, number: int) -> tuple[str, TransformerLayer, bool]:
        block = self._network.late[number]
        return f"late.{number}.", block, self._network._programs._bfloat16 and block._is_frozen

    def encoder(self) -> _core.Program:
        """Return the program from token ids to the encoder's taps, and to keys and values for each frozen block."""

        def build(graph: _core.Graph) -> list[int]:
            states = build_encoder(self.backbone, graph, self.backbone.num_layers)
            memory = build_output(self.backbone, graph, states[-1])
            keys = [add_memory_keys(graph, f"decoder.{number}.", block, memory)
                    for number, block in enumerate(self._layers)]
            return [*(states[tap] for tap in self.taps["encoder_taps"]), *(value for pair in keys for value in pair)]

        return self._frozen("encoder", build)

    def memory(self) -> _core.Program:
        """Return the program from the encoder's taps to keys and values for each late block."""

        def build(graph: _core.Graph) -> list[int]:
            network, tokens = self._network, graph.space("tokens")
            taps = [graph.input(f"tap{number}", tokens, channels)
                    for number, channels in enumerate(network.encoder.features)]
            memory = network.encoder._build(graph, "encoder.", [*taps, taps[-1]])
            memory = network.encoder_norm._build(graph, "encoder_norm.", [memory])
            return [value for number in range(len(network.late))
                    for value in self._late_keys(graph, number, memory, add_memory_keys)]

        return self._side("memory", build)

    def _late_keys(self, graph: _core.Graph, number: int, x: int, add: Callable[..., list[int]]) -> list[int]:
        prefix, block, bfloat16 = self._late(number)
        return add(graph, prefix, block, x, bfloat16)

    def enter(self) -> _core.Program:
        """Return the program from a token to its embedding and the first block's keys and values."""

        def build(graph: _core.Graph) -> list[int]:
            x = build_embedding(self.backbone, graph, graph.indices("tokens", _core.SAMPLES))
            return [x, *add_keys(graph, "decoder.0.", self._layers[0], x)]

        return self._frozen("enter", build)

    def block(self, number: int) -> _core.Program:
        """Return the program of a block, with the next one's keys and values where it is not the last of its kind."""
        frozen = number < len(self._layers)
        if frozen:
            parts = [(f"decoder.{place}.", block, False) for place, block in enumerate(self._layers)]
            parts = parts[number : number + 2]
        else:
            late = number - len(self._layers)
            parts = [self._late(place) for place in range(len(self._network.late))][late : late + 2]

        def build(graph: _core.Graph) -> list[int]:
            (prefix, block, bfloat16), *following = parts
            positions, memory = graph.space("positions"), graph.space("memory")
            x = graph.input("x", positions, block.features)
            keys, memory_keys = ([graph.input(f"{name}_{part}", space, _inner(block)) for part in ("keys", "values")]
                                 for name, space in (("own", positions), ("memory", memory)))
            x = add_block(graph, prefix, block, x, keys, memory_keys, bfloat16)
            outputs = [x] + [value for other, after, narrow in following
                             for value in add_keys(graph, other, after, x, narrow)]
            return [graph.pool(value, "last") for value in outputs]

        return (self._frozen if frozen else self._side)(number, build)

    def side(self) -> _core.Program:
        """Return the program from the decoder's taps to what enters the first late block, and its keys and values."""

        def build(graph: _core.Graph) -> list[int]:
            network = self._network
            taps = [graph.input(f"tap{number}", _core.SAMPLES, channels)
                    for number, channels in enumerate(network.decoder.features)]
            x = network.decoder._build(graph, "decoder.", [*taps, taps[-1]])
            return [x, *self._late_keys(graph, 0, x, add_keys)]

        return self._side("side", build)

    def words(self) -> _core.Program:
        """Return the program from the last block's output to logits."""

        def build(graph: _core.Graph) -> list[int]:
            network = self._network
            x = graph.input("x", _core.SAMPLES, network.decoder.out_features)
            x = network.norm._build(graph, "norm.", [x])
            return [network._programs._build(graph, "head.", network.head, [x])]

        return self._side("words", build)
