"""The C core as the binding gives it: parameters, graphs, programs, trainers.

``sherl._core`` computes in float32; ``sherl._core_double`` is the same source compiled in float64, for tests.
Every function checks its arguments and raises ValueError, TypeError, MemoryError or FloatingPointError with a sentence.
All may be called from any thread; long calls drop the GIL, and the core works on one at a time.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict, final

from ._typing import (
    Activation,
    Array,
    Down,
    Guidance,
    Initializer,
    Norm,
    Optimizer,
    Placement,
    Pooling,
    Role,
    Schedule,
    Source,
    UpNorm,
)

class _Config(TypedDict):
    version: str
    blas: str
    instruction_set: str
    bfloat16: bool
    threads: int

SAMPLES: int  # the row space with one row a sample
REAL: str  # "float32" or "float64": the dtype of everything owned by the core

def config() -> _Config: ...
def threads() -> int: ...
def set_threads(threads: int) -> None: ...  # 0: as many as there are processors

# For tests: the allocation with this number (counted from now, first is 1) fails, and, unless once, all after it.
# None ends it. allocations() counts allocations made since the last call of fail_allocation; live_allocations() those
# not yet released.
def fail_allocation(number: int | None, once: bool = True) -> None: ...
def allocations() -> int: ...
def live_allocations() -> int: ...

@final
class Parameters:
    """Named weights that graphs share. Trainable and state arrays are owned; frozen ones are the caller's."""

    def __len__(self) -> int: ...
    def names(self, role: Role | None = None) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...  # one-dimensional for vectors
    def role(self, name: str) -> Role: ...
    def array(self, name: str) -> Array: ...  # a view that keeps the store alive; read-only when frozen
    def initialize(self, seed: int) -> None: ...

@final
class Graph:
    """Builds a program. Values and row spaces are integers that belong to this graph."""

    def __new__(cls, parameters: Parameters, training: bool) -> Graph: ...
    def space(self, name: str) -> int: ...
    def grid(self, name: str) -> int: ...  # of images, whose rows are pixels, row of pixels after row
    def fixed_space(self, name: str, rows: int) -> int: ...  # with `rows` rows in every sample
    def value_space(self, value: int) -> int: ...
    def input(self, name: str, space: int, channels: int, needs_gradient: bool = False) -> int: ...
    def indices(self, name: str, space: int) -> int: ...
    # data: C-contiguous, native byte order, dtype REAL, of this shape; only and always for frozen parameters
    def parameter(self, name: str, shape: tuple[int, ...], role: Role = "trainable",
                  initializer: Initializer = "zeros", data: Array | None = None) -> int: ...
    def output(self, value: int) -> None: ...
    def loss(self, value: int) -> None: ...
    stream: int  # of random numbers, that the next op with dropout takes; may be set, for networks that share a graph

    # bfloat16: the weight must be frozen, and config() have "bfloat16"
    def linear(self, x: int, weight: int, bias: int | None = None, activation: Activation = "identity",
               bfloat16: bool = False) -> int: ...
    def activate(self, x: int, activation: Activation) -> int: ...
    def gated(self, gate: int, x: int, activation: Activation) -> int: ...
    def layer_norm(self, x: int, weight: int, bias: int | None, eps: float) -> int: ...
    def rms_norm(self, x: int, weight: int, eps: float) -> int: ...
    def batch_norm(self, x: int, weight: int, bias: int, running_mean: int, running_variance: int, eps: float,
                   momentum: float) -> int: ...
    def dropout(self, x: int, rate: float) -> int: ...
    def add(self, a: int, b: int) -> int: ...
    def multiply(self, a: int, b: int) -> int: ...
    def scale_channels(self, x: int, scale: int) -> int: ...
    def embedding(self, indices: int, table: int) -> int: ...
    def table(self, table: int, space: int) -> int: ...  # row r of each sample is row r of the parameter
    def rotary(self, x: int, heads: int, dimensions: int, theta: float, *, factor: float = 0.0, original: float = 0.0,
               low: float = 0.0, high: float = 0.0) -> int: ...
    # position_bias: of shape (position_buckets, heads), read where position_buckets is not 0
    def attention(self, query: int, key: int, value: int, heads: int, scale: float, causal: bool = False,
                  dropout: float = 0.0, *, key_heads: int | None = None, position_bias: int | None = None,
                  position_buckets: int = 0, max_distance: int = 128, bidirectional: bool = True) -> int: ...
    def pool(self, x: int, pooling: Pooling) -> int: ...  # "position" is select
    def select(self, x: int, positions: int) -> int: ...  # positions: indices in SAMPLES, rows counted in each sample
    def rank_encoding(self, x: int, channels: int) -> int: ...  # a multiple of 4; x gives the row space alone
    def sorted_pool(self, x: int, scores: int) -> int: ...
    def l2_normalize(self, x: int, eps: float = 0.0) -> int: ...
    def amplify(self, x: int, logarithm: int, initial: float = 1.0) -> int: ...
    def concatenate(self, values: Sequence[int]) -> int: ...
    # over images; weight: (out, size * size * in), the channels of a pixel side by side. output: the row space of the
    # result, which must get the same heights and widths; None: x's own where they stay, else a new one
    def convolution(self, x: int, weight: int, bias: int | None = None, size: int = 1, stride: int = 1,
                    padding: int = 0, activation: Activation = "identity", output: int | None = None) -> int: ...
    def window_pool(self, x: int, size: int, output: int | None = None) -> int: ...  # maximum + mean
    def spatial_guidance(self, x: int, guide: int, weight: int, bias: int, gate: int | None = None,
                         position: int | None = None, base: Literal["first", "last", "position"] = "first",
                         eps: float = 1e-6, temperature: float = 0.1, index: int = 0) -> int: ...
    def guidance(self, features: Sequence[int], weight: int, bias: int, eps: float, add_guide: bool = True) -> int: ...
    def gated_residual(self, x: int, last: int, gate: int, temperature: float) -> int: ...
    def cross_entropy(self, logits: int, target_indices: int, weights: int, class_weights: int | None = None,
                      label_smoothing: float = 0.0) -> int: ...
    # table: frozen, (words, channels); best: a second channel has the number of the largest logit, and no gradient
    def vocabulary_cross_entropy(self, x: int, target_indices: int, weights: int, table: int, *,
                                 label_smoothing: float = 0.0, best: bool = False, bfloat16: bool = False) -> int: ...
    def binary_cross_entropy(self, logits: int, targets: int, weights: int) -> int: ...
    def squared_error(self, predictions: int, targets: int, weights: int) -> int: ...
    def row_cross_entropy(self, logits: int, target_rows: Sequence[int], weights: int) -> int: ...

    def mtsa(self, prefix: str, taps: Sequence[int], last: int, *, hidden: int, out_features: int,
             down: Down = "layernorm",
             guidance: Guidance = "token",
             up_norm: UpNorm = "none", eps: float = 1e-8,
             down_norm_eps: float = 1e-5, up_norm_eps: float = 1e-12, momentum: float = 0.1, dropout: float = 0.0,
             gate_temperature: float = 0.1, windows: Sequence[int] | None = None,
             base: Literal["first", "last", "position"] = "first", gated_base: bool = False,
             position: int | None = None) -> int: ...
    # of the same block: the features that its guidance weighs, and their guide as the last of them
    def mtsa_features(self, prefix: str, taps: Sequence[int], last: int, *, hidden: int, out_features: int,
                      down: Down = "layernorm",
                      guidance: Guidance = "token",
                      up_norm: UpNorm = "none", eps: float = 1e-8,
                      down_norm_eps: float = 1e-5, up_norm_eps: float = 1e-12, momentum: float = 0.1,
                      dropout: float = 0.0, gate_temperature: float = 0.1, windows: Sequence[int] | None = None,
                      base: Literal["first", "last", "position"] = "first", gated_base: bool = False,
                      position: int | None = None) -> list[int]: ...
    # weights, norms folded in: reduce_weight, reduce_bias, window_weight (width, 9 * width), window_bias,
    # expand_weight, expand_bias, and with a shortcut map shortcut_weight, shortcut_bias
    def bottleneck(self, prefix: str, x: int, weights: dict[str, Array], *, width: int, out_features: int,
                   stride: int = 1, stride_first: bool = False, bfloat16: bool = False) -> int: ...
    # weights likewise: first_weight (out_features, 9 * channels of x), first_bias, second_weight (out_features,
    # 9 * out_features), second_bias, and with a shortcut map shortcut_weight, shortcut_bias
    def basic_block(self, prefix: str, x: int, weights: dict[str, Array], *, out_features: int, stride: int = 1,
                    bfloat16: bool = False) -> int: ...
    # weights: arrays by role name make a frozen layer; None makes a trainable one, whose parameters are named prefix +
    # "query.weight" … by the same roles with a dot before weight/bias. Roles, each with _weight and, where the settings
    # ask for it, _bias: query, key, value, output, attention_norm, up, down, feed_forward_norm; gated: gate; with a
    # memory: cross_query, cross_key, cross_value, cross_output, cross_norm; sandwich: attention_after_norm,
    # cross_after_norm, feed_forward_after_norm. With _weight alone: position_bias; layer_scale: attention_scale,
    # cross_scale, feed_forward_scale.
    def transformer_layer(self, prefix: str, x: int, weights: Mapping[str, Array] | None, *,
                          positions: int | None = None, memory: int | None = None,
                          memory_positions: int | None = None, heads: int, intermediate: int,
                          key_heads: int | None = None, head_size: int | None = None,
                          activation: Activation = "gelu", gated: bool = False,
                          placement: Placement = "post",
                          norm: Norm = "layernorm", eps: float = 1e-12,
                          query_bias: bool = True, output_bias: bool = True, feed_forward_bias: bool = True,
                          norm_bias: bool = True, layer_scale: bool = False, causal: bool = False,
                          scale: float | None = None, rotary_theta: float | None = None,
                          rotary_dimensions: int | None = None, rotary_factor: float = 0.0,
                          rotary_original: float = 0.0, rotary_low: float = 0.0, rotary_high: float = 0.0,
                          position_buckets: int = 0, max_distance: int = 128,
                          bidirectional: bool = True, dropout: float = 0.0, attention_dropout: float = 0.0,
                          bfloat16: bool = False) -> int: ...
    # parameters: prefix + "weight", "bias", and with pooler "pooler.weight", "pooler.bias"
    # positions: as for select, with pooling "position"
    def head(self, prefix: str, x: int, *, outputs: int, pooling: Pooling = "first", pooler: bool = False,
             dropout: float = 0.0, positions: int | None = None, each_row: bool = False) -> int: ...
    # parameters: prefix + "weight", "bias"; generalized "pool.hidden.weight", "pool.hidden.bias", "pool.score.weight";
    # with a temperature "log_scale"
    def embedder(self, prefix: str, x: int, *, outputs: int, pooling: Pooling = "mean", generalized: bool = False,
                 dropout: float = 0.0, normalize: bool = True, eps: float = 0.0, temperature: float = 0.0,
                 positions: int | None = None) -> int: ...
    # parameters: prefix + "classes.*", "box.0.*" to "box.2.*", and with align "align.*"
    def detector(self, prefix: str, x: int, *, classes: int, hidden: int, align: int = 0,
                 dropout: float = 0.0) -> int: ...

    def set_staged(self, staged: bool) -> None: ...  # ops with one row a sample run once a block; by default by size
    def compile(self, gradient: bool) -> Program: ...

@final
class Program:
    """A compiled graph. offsets: None for SAMPLES, then for each declared row space, in order, an int64 array of
    samples + 1 row offsets, or of images heights and widths, (samples, 2).

    inputs: one Source for each declared input, by order; outputs, input_gradients: one Source (a writeable array) or
    None each, by order; cotangents: one Source an output.
    """

    def forward(self, samples: int, offsets: Sequence[Array | None], inputs: Sequence[Source],
                outputs: Sequence[Source | None] | None = None, *, seed: int = 0, step: int = 0) -> float | None: ...
    def gradient(self, samples: int, offsets: Sequence[Array | None], inputs: Sequence[Source],
                 outputs: Sequence[Source | None] | None = None, *, cotangents: Sequence[Source] | None = None,
                 input_gradients: Sequence[Source | None] | None = None, add: bool = False, seed: int = 0,
                 step: int = 0) -> float | None: ...
    def parameter_gradient(self, name: str) -> Array: ...  # a copy; after gradient or accumulate
    def memory(self, samples: int, offsets: Sequence[Array | None]) -> dict[str, int]: ...
    nbytes: int  # read-only: arenas and gradients held between runs
    def least_memory(self, samples: int, offsets: Sequence[Array | None]) -> int: ...
    def set_memory_budget(self, bytes: int) -> None: ...  # of arenas and gradients; 0: none
    def release_workspace(self) -> None: ...  # gradients are forgotten
    def set_tile_rows(self, rows: int) -> None: ...
    def set_block_rows(self, rows: int) -> None: ...
    lanes: int  # most gradient lanes; may be set
    staged: bool  # whether some ops run once for a block of tiles; read-only
    coupled: bool  # whether some ops read the whole batch, so that arenas grow with it; read-only
    def describe(self) -> str: ...

@final
class Trainer:
    """Optimizer state over a program's trainable parameters."""

    def __new__(cls, program: Program, *, optimizer: Optimizer = "adamw",
                learning_rate: float = 1e-3, weight_decay: float = 0.0, momentum: float = 0.0, beta1: float = 0.9,
                beta2: float = 0.999, eps: float = 1e-8, clip_norm: float = 0.0,
                schedule: Schedule = "constant", warmup_steps: int = 0,
                total_steps: int = 0, step_every: int = 0, step_factor: float = 0.1,
                parameters: Sequence[str] | None = None,  # None: all trainable ones
                no_decay: Sequence[str] = ()) -> Trainer: ...
    steps: int  # whole steps taken; may be set
    nbytes: int  # read-only
    # cotangents: where the graph has no loss, and only there; the batch's loss, or None
    def accumulate(self, samples: int, offsets: Sequence[Array | None], inputs: Sequence[Source], *,
                   cotangents: Sequence[Source] | None = None, seed: int = 0, step: int = 0) -> float | None: ...
    # the global gradient norm before clipping; with other trainers one step of all, clipped by their common norm
    def update(self, *others: Trainer) -> float: ...
    def set_factors(self, name: str, learning_rate: float = 1.0, weight_decay: float = 1.0) -> None: ...
    def discard(self) -> None: ...
    def adopt(self) -> None: ...  # the gradients of the program's last run are those that wait
    def learning_rate(self, step: int) -> float: ...
    def moment(self, number: int, name: str) -> Array | None: ...  # a view that keeps the trainer alive
