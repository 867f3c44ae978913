/* The public C API of sherl: build a program of SHERL blocks, run it forward and backward
 * on ragged batches, train it, and read the numbers back.
 *
 * Conventions
 *   - A function that can fail returns a sherl_status; SHERL_OK is zero. On failure no output argument is written.
 *   - Graph-building functions return the new value instead. The graph remembers the first error, further calls on
 *     it do nothing and return SHERL_NONE, and sherl_graph_status / sherl_graph_message tell what went wrong.
 *   - Destroy functions accept NULL.
 *   - Matrices are row major. Weights have one row per output channel, as checkpoints store them.
 *   - sherl_real is float, or double when everything is compiled with SHERL_DOUBLE.
 */
#ifndef SHERL_H
#define SHERL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifdef SHERL_DOUBLE
typedef double sherl_real;
#else
typedef float sherl_real;
#endif

/* ---- Status ---------------------------------------------------------------------------------------------------- */

typedef enum sherl_status {
    SHERL_OK = 0,
    SHERL_OUT_OF_MEMORY,      /* an allocation failed */
    SHERL_SIZE_OVERFLOW,      /* a size does not fit its type */
    SHERL_INVALID_ARGUMENT,   /* an argument is outside what the function accepts */
    SHERL_SHAPE_MISMATCH,     /* two shapes that must agree do not */
    SHERL_INDEX_OUT_OF_RANGE, /* a token id or label is outside its table, a position outside its sample */
    SHERL_NOT_FINITE,         /* a loss or a gradient is infinite or not a number */
    SHERL_OVER_BUDGET,        /* the memory budget is smaller than the least possible plan */
    SHERL_STATUS_COUNT
} sherl_status;

/* A short sentence for a status; never NULL. */
const char *sherl_status_text(sherl_status status);

/* ---- Context: allocator, threads, kernels ------------------------------------------------------------------------ */

/* Where all memory of a context comes from. `allocate` returns memory aligned to 64 bytes or NULL. */
typedef struct sherl_allocator {
    void *(*allocate)(void *state, size_t bytes);
    void (*release)(void *state, void *memory);
    void *state;
} sherl_allocator;

typedef struct sherl_context sherl_context;

/* threads = 0 takes the number of processors that the process may use; there are never more threads than the BLAS
 * library lets call it at once. allocator = NULL takes the C library's. The instruction set of the vector kernels is the best that the processor has, or SHERL_INSTRUCTION_SET of the environment when it names
 * one that it has. A context must outlive everything made from it. */
sherl_status sherl_context_create(const sherl_allocator *allocator, size_t threads, sherl_context **context);
void sherl_context_destroy(sherl_context *context);
/* Not while a program of the context runs. */
sherl_status sherl_context_set_threads(sherl_context *context, size_t threads);
size_t sherl_context_threads(const sherl_context *context);
const char *sherl_context_instruction_set(const sherl_context *context);
/* Whether the kernels can multiply in bfloat16: AVX512-BF16, float32 core. */
bool sherl_context_has_bfloat16(const sherl_context *context);
/* Writes version, kernel and threading of the BLAS library, cut to `size` bytes with the closing zero. */
void sherl_blas_description(char *buffer, size_t size);
/* Sets one thread inside each product, and tells how many threads may call the library at once: 1 for builds that are
 * not safe. A context never uses more. */
size_t sherl_blas_callers(void);
const char *sherl_version(void);

/* ---- Parameters: the weights that programs share ------------------------------------------------------------------- */

typedef struct sherl_parameters sherl_parameters;
typedef uint32_t sherl_parameter; /* an index into a sherl_parameters */
typedef uint32_t sherl_value;     /* an index into a sherl_graph */
typedef uint32_t sherl_space;     /* an index into a sherl_graph */
#define SHERL_NONE UINT32_MAX     /* no parameter, no value, no space */

typedef enum sherl_role {
    SHERL_TRAINABLE, /* owned; gets a gradient and optimizer state */
    SHERL_FROZEN,    /* the caller's memory, read only, which must outlive the store */
    SHERL_STATE      /* owned; not trained but saved (running statistics) */
} sherl_role;

typedef enum sherl_initializer {
    SHERL_INIT_ZEROS,
    SHERL_INIT_ONES,
    SHERL_INIT_XAVIER_UNIFORM, /* U(-a, a), a = sqrt(6 / (rows + columns)) */
    SHERL_INIT_NORMAL,         /* N(0, 0.02^2) */
    SHERL_INIT_STANDARD_NORMAL /* N(0, 1) */
} sherl_initializer;

sherl_status sherl_parameters_create(sherl_context *context, sherl_parameters **parameters);
void sherl_parameters_destroy(sherl_parameters *parameters);

#define SHERL_VECTOR ((size_t)0) /* as `rows` of a new parameter: a vector of `columns`, held as one row */

/* Adds a parameter of rows x columns, or finds the one of that name: then shape, role and data must agree, else
 * SHERL_SHAPE_MISMATCH. A name has 1 to 255 bytes. `frozen` is the caller's data for SHERL_FROZEN and NULL otherwise; a
 * state starts as zeros or ones, a trainable parameter as drawn with seed 0. */
sherl_status sherl_parameters_add(sherl_parameters *parameters, const char *name, size_t rows, size_t columns,
                                  sherl_role role, sherl_initializer initializer, const sherl_real *frozen,
                                  sherl_parameter *parameter);
/* Draws every trainable parameter anew from its initializer; the draw depends on the seed and the parameter's name. */
void sherl_parameters_initialize(sherl_parameters *parameters, uint64_t seed);
size_t sherl_parameters_count(const sherl_parameters *parameters);
sherl_parameter sherl_parameters_find(const sherl_parameters *parameters, const char *name); /* or SHERL_NONE */
const char *sherl_parameters_name(const sherl_parameters *parameters, sherl_parameter parameter);
size_t sherl_parameters_rows(const sherl_parameters *parameters, sherl_parameter parameter);
size_t sherl_parameters_columns(const sherl_parameters *parameters, sherl_parameter parameter);
bool sherl_parameters_is_vector(const sherl_parameters *parameters, sherl_parameter parameter);
sherl_role sherl_parameters_role(const sherl_parameters *parameters, sherl_parameter parameter);
const sherl_real *sherl_parameters_data(const sherl_parameters *parameters, sherl_parameter parameter);
/* Writable data of an owned parameter; NULL for a frozen one. */
sherl_real *sherl_parameters_mutable_data(sherl_parameters *parameters, sherl_parameter parameter);

/* ---- Graph: row spaces, values, ops ---------------------------------------------------------------------------------- */

typedef struct sherl_graph sherl_graph;

#define SHERL_SAMPLES ((sherl_space)0) /* the row space with one row a sample; every graph has it */

/* A square window of size x size pixels that moves by `stride` over an image with `padding` rows and columns of zeros
 * around it: height and width become floor((length + 2 padding - size) / stride) + 1. */
typedef struct sherl_window { size_t size, stride, padding; } sherl_window;

typedef enum sherl_activation {
    SHERL_IDENTITY,
    SHERL_RELU,
    SHERL_GELU_ERF,
    SHERL_GELU_TANH,
    SHERL_GELU_QUICK, /* x sigmoid(1.702 x) */
    SHERL_SILU,
    SHERL_SIGMOID,
    SHERL_TANH,
    SHERL_ACTIVATION_COUNT
} sherl_activation;

typedef enum sherl_pooling {
    SHERL_POOL_FIRST,
    SHERL_POOL_MEAN,
    SHERL_POOL_MAX,
    SHERL_POOL_LAST,
    SHERL_POOL_POSITION, /* the row whose number is given with each sample: sherl_select */
    SHERL_POOLING_COUNT
} sherl_pooling;

/* `training` turns dropout and batch statistics on. */
sherl_status sherl_graph_create(sherl_context *context, sherl_parameters *parameters, bool training,
                                sherl_graph **graph);
void sherl_graph_destroy(sherl_graph *graph);
sherl_status sherl_graph_status(const sherl_graph *graph);
const char *sherl_graph_message(const sherl_graph *graph); /* the first error as a sentence, or "" */

/* Channels and row space of a value; 0 and SHERL_NONE when it is not one of this graph. */
size_t sherl_graph_channels(const sherl_graph *graph, sherl_value value);
sherl_space sherl_graph_value_space(const sherl_graph *graph, sherl_value value);
/* A row space whose segment lengths are given with each batch. */
sherl_space sherl_graph_space(sherl_graph *graph, const char *name);
/* A row space with `rows` rows in every sample. */
sherl_space sherl_graph_fixed_space(sherl_graph *graph, const char *name, size_t rows);
/* A row space of images: their heights and widths are given with each batch, and row y * width + x is a pixel. Ops that
 * change the size make row spaces of their own, whose heights and widths follow. */
sherl_space sherl_graph_grid(sherl_graph *graph, const char *name);
/* Rows of reals, of integers, bound at run time by order of declaration. */
sherl_value sherl_graph_input(sherl_graph *graph, const char *name, sherl_space space, size_t channels,
                              bool needs_gradient);
sherl_value sherl_graph_indices(sherl_graph *graph, const char *name, sherl_space space);
/* Adds a parameter to the store behind the graph; as sherl_parameters_add. */
sherl_parameter sherl_graph_parameter(sherl_graph *graph, const char *name, size_t rows, size_t columns,
                                      sherl_role role, sherl_initializer initializer, const sherl_real *frozen);
void sherl_graph_output(sherl_graph *graph, sherl_value value); /* bound at run time by order */
void sherl_graph_loss(sherl_graph *graph, sherl_value value);   /* the loss is the sum over this value's rows */

/* The stream of random numbers that the next op with dropout takes; each takes the next ones. Networks that share a
 * graph draw the same numbers as in graphs of their own when each of them starts at 0. */
uint32_t sherl_graph_stream(const sherl_graph *graph);
/* Whether ops with one row a sample run once for a whole block of tiles; by default the sizes of the weights decide. */
void sherl_graph_set_staged(sherl_graph *graph, bool staged);
void sherl_graph_set_stream(sherl_graph *graph, uint32_t stream);

/* y = activation(x W^T + b); x: (rows, in), W: (out, in), b: (1, out) or SHERL_NONE. */
sherl_value sherl_linear(sherl_graph *graph, sherl_value x, sherl_parameter weight, sherl_parameter bias,
                         sherl_activation activation);
/* The same with a frozen W, where sherl_context_has_bfloat16: the factors of x W^T, and of the gradient of x, are rounded
 * to bfloat16 and their products summed in float32. The store keeps W packed in bfloat16 beside the caller's. */
sherl_value sherl_bfloat16_linear(sherl_graph *graph, sherl_value x, sherl_parameter weight, sherl_parameter bias,
                                  sherl_activation activation);
/* y = activation(x) */
sherl_value sherl_activate(sherl_graph *graph, sherl_value x, sherl_activation activation);
/* y = activation(gate) * x; gate and x are two values */
sherl_value sherl_gated(sherl_graph *graph, sherl_value gate, sherl_value x, sherl_activation activation);
/* y = (x - mean) / sqrt(variance + eps) * weight + bias, over the channels of each row; bias may be SHERL_NONE */
sherl_value sherl_layer_norm(sherl_graph *graph, sherl_value x, sherl_parameter weight, sherl_parameter bias,
                             double eps);
/* y = x / sqrt(mean of x^2 + eps) * weight, over the channels of each row */
sherl_value sherl_rms_norm(sherl_graph *graph, sherl_value x, sherl_parameter weight, double eps);
/* As layer norm, but over the rows of the batch, channel by channel. In a training graph with batch statistics, which then move
 * the running ones by `momentum` (variance unbiased); otherwise with the running ones. */
sherl_value sherl_batch_norm(sherl_graph *graph, sherl_value x, sherl_parameter weight, sherl_parameter bias,
                             sherl_parameter running_mean, sherl_parameter running_variance, double eps,
                             double momentum);
/* y = x * keep / (1 - rate) in a training graph, x itself otherwise */
sherl_value sherl_dropout(sherl_graph *graph, sherl_value x, double rate);
sherl_value sherl_add(sherl_graph *graph, sherl_value a, sherl_value b);
sherl_value sherl_multiply(sherl_graph *graph, sherl_value a, sherl_value b);
/* y = x * scale, channel by channel; scale: (1, channels) */
sherl_value sherl_scale_channels(sherl_graph *graph, sherl_value x, sherl_parameter scale);
/* y = table[indices]; table: (entries, channels) */
sherl_value sherl_embedding(sherl_graph *graph, sherl_value indices, sherl_parameter table);
/* The rows of a table for every sample of a row space: row r of a sample is table[r]. A run in which a sample has not as
 * many rows as the table ends with SHERL_SHAPE_MISMATCH. */
sherl_value sherl_table(sherl_graph *graph, sherl_parameter table, sherl_space space);
/* Slower rotary positions for longer texts. A pair that makes n = original * speed / (2 pi) turns over the `original`
 * positions gets the speed s speed + (1 - s) speed / factor, where s = (n - low) / (high - low) within 0 and 1; where
 * original is 0, s is 0 for every pair. */
typedef struct sherl_rotary_scaling {
    double factor; /* 0: speeds stay as they are */
    double original, low, high;
} sherl_rotary_scaling;
/* Turns, in each of the `heads` heads of x, channel i and channel i + dimensions / 2 (i < dimensions / 2) as a pair by
 * the angle position * speed, speed = theta^(-2 i / dimensions) unless it is scaled, where position counts a segment's
 * rows from 0; an even number of `dimensions`, of which a head may have more. */
sherl_value sherl_rotary(sherl_graph *graph, sherl_value x, size_t heads, size_t dimensions, double theta,
                         const sherl_rotary_scaling *scaling);

/* Buckets of the distance of a key from a query, its position minus the query's: one for each distance below half of
 * the buckets, then ever wider ones, the last of which ends beyond max_distance. Bidirectional: half of the buckets are
 * for keys before the query or at it, half for those after it; otherwise those after it share the bucket of distance 0. */
typedef struct sherl_position_buckets {
    size_t buckets, max_distance; /* 0 buckets: positions do not tell */
    bool bidirectional;
} sherl_position_buckets;

typedef struct sherl_attention_settings {
    size_t heads;
    size_t
        key_heads; /* heads of keys and values, each shared by heads / key_heads heads of queries; 0: as many as heads */
    double scale;
    bool causal;    /* a query sees keys up to its own position */
    double dropout; /* of the probabilities, in a training graph */
    sherl_position_buckets positions;
    sherl_parameter position_bias; /* (buckets, heads): added to the scores; not read when positions do not tell */
} sherl_attention_settings;

/* softmax(scale q k^T + bias) v head by head, inside each segment; q may live in another row space than k and v. */
sherl_value sherl_attention(sherl_graph *graph, sherl_value query, sherl_value key, sherl_value value,
                            const sherl_attention_settings *settings);
/* y = activation(sum over the window of W_dy,dx x_dy,dx + b) at each place of the window; x lies in a row space of
 * images; W: (out, size * size * in), the window's rows first and the channels of x last; b: (1, out) or SHERL_NONE.
 * `output` is the row space of y, which must get the same sizes in every batch, or SHERL_NONE: that of x where the
 * window keeps all sizes, else a new one. */
sherl_value sherl_convolution(sherl_graph *graph, sherl_value x, sherl_parameter weight, sherl_parameter bias,
                              sherl_window window, sherl_activation activation, sherl_space output);
/* y = maximum + mean over windows of size x size pixels side by side; what is left at the edges is not read. `output`
 * as for a convolution. */
sherl_value sherl_window_pool(sherl_graph *graph, sherl_value x, size_t size, sherl_space output);
/* One row a sample: the first, the last, the mean or the maximum of its rows. */
sherl_value sherl_pool(sherl_graph *graph, sherl_value x, sherl_pooling pooling);
/* y[sample] = x[positions[sample]], counted from the sample's first row; positions: indices in SHERL_SAMPLES. A run with
 * a position that a sample does not have ends with SHERL_INDEX_OUT_OF_RANGE before its first step. */
sherl_value sherl_select(sherl_graph *graph, sherl_value x, sherl_value positions);
/* Rows that tell their rank k in a sample of n rows: sines and cosines of k w and (n - 1 - k) w at channels / 4
 * frequencies w = 10000^(-4 f / channels); x gives the row space alone, and gets no gradient. */
sherl_value sherl_rank_encoding(sherl_graph *graph, sherl_value x, size_t channels);
/* One row a sample: sum_k softmax(scores)_k of the k-th largest value of each channel; scores: (rows, 1). */
sherl_value sherl_sorted_pool(sherl_graph *graph, sherl_value x, sherl_value scores);
/* y = x / (||x||_2 + eps), over the channels of each row; 0, without a gradient, where x is 0 */
sherl_value sherl_l2_normalize(sherl_graph *graph, sherl_value x, double eps);
/* y = initial exp(logarithm) x; logarithm: (1, 1) */
sherl_value sherl_amplify(sherl_graph *graph, sherl_value x, sherl_parameter logarithm, double initial);
/* The channels of values of one row space side by side. */
sherl_value sherl_concatenate(sherl_graph *graph, const sherl_value *values, size_t count);
/* The anti-redundancy consolidation of MTSA: sum_i a_i x_i over the shallow features x_0 … x_{count-2} with the guide
 * e = x_{count-1}, plus e itself when `add_guide`; weight: (1, hidden), bias: (1, 1). */
sherl_value sherl_guidance(sherl_graph *graph, const sherl_value *features, size_t count, sherl_parameter weight,
                           sherl_parameter bias, double eps, bool add_guide);
/* One row a sample out of its rows x_t and its guide e (in SHERL_SAMPLES): u_t = relu(w . (e * x_t) + b);
 * y = sum_t u_t x_t / (sum_t u_t + eps) + s x_base, where s = sigmoid(gate[index] / temperature), or 1 without a gate.
 * weight: (1, channels), bias: (1, 1), gate: (1, more than index) or SHERL_NONE. The base is the sample's first row,
 * its last, or the one whose number `position` (indices in SHERL_SAMPLES) holds. */
typedef enum sherl_base { SHERL_BASE_FIRST, SHERL_BASE_LAST, SHERL_BASE_POSITION, SHERL_BASE_COUNT } sherl_base;
typedef struct sherl_spatial_settings {
    sherl_base base;
    double eps, temperature;
    size_t index;
} sherl_spatial_settings;
sherl_value sherl_spatial_guidance(sherl_graph *graph, sherl_value x, sherl_value guide, sherl_value position,
                                   sherl_parameter weight, sherl_parameter bias, sherl_parameter gate,
                                   const sherl_spatial_settings *settings);
/* y = x + tanh(gate / temperature) last; gate: (1, 1) */
sherl_value sherl_gated_residual(sherl_graph *graph, sherl_value x, sherl_value last, sherl_parameter gate,
                                 double temperature);
/* Losses, one a row: weights[row] * loss(row); the caller's weights make the mean (1 / samples each, say).
 * Cross-entropy: -sum_c q_c class_weights_c log softmax(logits)_c with q = (1 - smoothing) onehot + smoothing / classes;
 * class_weights: (1, classes) or SHERL_NONE. Binary cross-entropy and squared error: the mean over the channels. */
sherl_value sherl_cross_entropy(sherl_graph *graph, sherl_value logits, sherl_value target_indices, sherl_value weights,
                                sherl_parameter class_weights, double label_smoothing);
sherl_value sherl_binary_cross_entropy(sherl_graph *graph, sherl_value logits, sherl_value targets,
                                       sherl_value weights);
sherl_value sherl_squared_error(sherl_graph *graph, sherl_value predictions, sherl_value targets, sherl_value weights);
/* Cross-entropy of the logits x table^T without ever holding those of all rows; table: frozen, (words, channels). With
 * `best` a second channel has the number of the largest logit, and there is no gradient. `bfloat16` as of
 * sherl_bfloat16_linear. */
typedef struct sherl_vocabulary_settings {
    double label_smoothing;
    bool best, bfloat16;
} sherl_vocabulary_settings;
sherl_value sherl_vocabulary_cross_entropy(sherl_graph *graph, sherl_value x, sherl_value target_indices,
                                           sherl_value weights, sherl_parameter table,
                                           const sherl_vocabulary_settings *settings);
/* One a sample: weights[sample] times the mean over the channels c of -log softmax(logits[., c])[target_rows[c]], the
 * softmax over the rows of the sample. target_rows: for each channel of the logits indices of one a sample, counted from
 * the sample's first row. */
sherl_value sherl_row_cross_entropy(sherl_graph *graph, sherl_value logits, const sherl_value *target_rows,
                                    sherl_value weights);

/* ---- Blocks -------------------------------------------------------------------------------------------------------------
 * Each adds its parameters under `prefix` ("early.", "late.0.", "head.") and returns its output. */

typedef enum sherl_down {
    SHERL_DOWN_LAYER_NORM,
    SHERL_DOWN_GATED,
    SHERL_DOWN_RELU,
    SHERL_DOWN_BATCH_NORM,
    SHERL_DOWN_COUNT
} sherl_down;
typedef enum sherl_guidance_kind {
    SHERL_GUIDANCE_TOKEN,
    SHERL_GUIDANCE_RESIDUAL_MLP,
    SHERL_GUIDANCE_SPATIAL,
    SHERL_GUIDANCE_KIND_COUNT
} sherl_guidance_kind;
typedef enum sherl_norm { SHERL_NORM_NONE, SHERL_NORM_LAYER, SHERL_NORM_BATCH, SHERL_NORM_COUNT } sherl_norm;

typedef struct sherl_mtsa_settings {
    size_t hidden;       /* channels after the down maps */
    size_t out_features; /* channels of the output and of `last` */
    sherl_down down;
    sherl_guidance_kind guidance;
    sherl_norm up_norm; /* after the up map; with a batch norm the relu comes last, not before the up map */
    double eps;         /* of the l1 and l2 norms, outside the root */
    double down_norm_eps, up_norm_eps;
    double momentum; /* of batch norms */
    double dropout;  /* after the up map */
    double gate_temperature;
    const size_t *windows; /* taps in row spaces of images: window of each tap's pooling; NULL: none is pooled */
    sherl_base base;       /* of spatial guidance, */
    bool gated_base;       /* which may be scaled, */
    sherl_value position;  /* and where it lies for SHERL_BASE_POSITION */
} sherl_mtsa_settings;

/* taps: `count` values, the guide last, of one row space that is also that of the output, or with `windows` pooled to
 * that of the last tap's; last: what the late layer would have received, in the row space of the output. With spatial
 * guidance `last` has one row a sample, is the guide of all taps, and so is the row space of the output. */
sherl_value sherl_mtsa(sherl_graph *graph, const char *prefix, const sherl_value *taps, size_t count, sherl_value last,
                       const sherl_mtsa_settings *settings);

/* The first part of the same: the features that the guidance weighs, and their guide as the last of them. `features` has
 * room for count + 1; returns how many there are, or 0. */
size_t sherl_mtsa_features(sherl_graph *graph, const char *prefix, const sherl_value *taps, size_t count,
                           sherl_value last, const sherl_mtsa_settings *settings, sherl_value *features);

/* Weight and bias of a linear map or of a norm. */
typedef struct sherl_map_weights { const sherl_real *weight, *bias; } sherl_map_weights;

/* Weights of a transformer layer by role; with frozen = true the caller's memory, NULL where the settings ask for none,
 * else all NULL, and the layer's own trainable parameters are made under the same names ("query.weight"). */
typedef struct sherl_transformer_weights {
    sherl_map_weights query, key, value, output, attention_norm;
    sherl_map_weights cross_query, cross_key, cross_value, cross_output, cross_norm;   /* with a memory */
    sherl_map_weights gate, up, down, feed_forward_norm;                               /* gate: gated */
    sherl_map_weights attention_after_norm, cross_after_norm, feed_forward_after_norm; /* sandwich */
    sherl_map_weights attention_scale, cross_scale, feed_forward_scale;                /* layer scale; without bias */
    sherl_map_weights position_bias; /* (buckets, heads); without bias */
} sherl_transformer_weights;

/* A sublayer f with norms N and M: post N(x + f(x)), pre x + f(N(x)), sandwich x + M(f(N(x))). */
typedef enum sherl_norm_placement {
    SHERL_NORM_POST,
    SHERL_NORM_PRE,
    SHERL_NORM_SANDWICH,
    SHERL_NORM_PLACEMENT_COUNT
} sherl_norm_placement;
typedef enum sherl_norm_kind { SHERL_LAYER_NORM, SHERL_RMS_NORM, SHERL_NORM_KIND_COUNT } sherl_norm_kind;

typedef struct sherl_transformer_settings {
    size_t heads, intermediate;
    size_t key_heads; /* heads of keys and values; 0: as many as heads */
    size_t head_size; /* 0: the channels of x, shared by the heads */
    sherl_activation activation;
    bool gated; /* feed-forward W_down (activation(W_gate x) * W_up x) in place of W_down activation(W_up x) */
    sherl_norm_placement placement;
    sherl_norm_kind norm;
    double eps;
    bool query_bias, output_bias, feed_forward_bias, norm_bias; /* query: keys and values, too; norm: of layer norms */
    bool layer_scale;                                           /* a factor for each channel of what a sublayer adds */
    bool causal;
    double scale;             /* of the scores; 0: 1 / sqrt(head_size) */
    double rotary_theta;      /* 0: no rotary positions */
    size_t rotary_dimensions; /* 0: all of a head */
    sherl_rotary_scaling rotary_scaling;
    sherl_position_buckets positions; /* of the self-attention */
    double dropout, attention_dropout;
    bool frozen;
    bool
        bfloat16; /* frozen layers: linear maps as sherl_bfloat16_linear; all else, and single-query attention, in full */
} sherl_transformer_settings;

/* What a layer reads; SHERL_NONE for what it does not. */
typedef struct sherl_transformer_inputs {
    sherl_value x;
    sherl_value positions;        /* like x: added to what makes queries, and keys of the self-attention */
    sherl_value memory;           /* keys and values of a cross-attention between self-attention and feed-forward */
    sherl_value memory_positions; /* like memory: added to what makes its keys */
} sherl_transformer_inputs;

/* A transformer layer: encoder (BERT, ViT, T5), decoder without memory (GPT-2, Llama) or with one (T5, DETR). */
sherl_value sherl_transformer_layer(sherl_graph *graph, const char *prefix, const sherl_transformer_inputs *inputs,
                                    const sherl_transformer_weights *weights,
                                    const sherl_transformer_settings *settings);

/* Weights of a ResNet bottleneck with their batch norms folded in, in the caller's memory: 1x1, 3x3 (in the order of
 * sherl_convolution), 1x1, and, unless NULL, the 1x1 shortcut. */
typedef struct sherl_bottleneck_weights {
    const sherl_real *reduce_weight, *reduce_bias, *window_weight, *window_bias, *expand_weight, *expand_bias;
    const sherl_real *shortcut_weight, *shortcut_bias;
} sherl_bottleneck_weights;

typedef struct sherl_bottleneck_settings {
    size_t width, out_features; /* channels of the 3x3 map, of the output */
    size_t stride;
    bool stride_first; /* the stride stands at the first map rather than the 3x3 one */
    bool bfloat16;     /* 1x1 maps of stride 1 as sherl_bfloat16_linear */
} sherl_bottleneck_settings;

/* A frozen bottleneck block (He et al., 2016) over a row space of images. */
sherl_value sherl_bottleneck(sherl_graph *graph, const char *prefix, sherl_value x,
                             const sherl_bottleneck_weights *weights, const sherl_bottleneck_settings *settings);

/* Weights of a basic block of a ResNet, likewise: 3x3, 3x3, and, unless NULL, the 1x1 shortcut. */
typedef struct sherl_basic_block_weights {
    const sherl_real *first_weight, *first_bias, *second_weight, *second_bias, *shortcut_weight, *shortcut_bias;
} sherl_basic_block_weights;

typedef struct sherl_basic_block_settings {
    size_t out_features; /* channels of both 3x3 maps */
    size_t stride;       /* of the first, and of the shortcut */
    bool bfloat16;       /* a 1x1 map of stride 1 as sherl_bfloat16_linear */
} sherl_basic_block_settings;

/* A frozen basic block, that of ResNet-18 and ResNet-34, over a row space of images. */
sherl_value sherl_basic_block(sherl_graph *graph, const char *prefix, sherl_value x,
                              const sherl_basic_block_weights *weights, const sherl_basic_block_settings *settings);

typedef struct sherl_head_settings {
    size_t outputs; /* classes, or regression targets */
    sherl_pooling pooling;
    bool pooler; /* tanh(W x + b) before the output map */
    double dropout;
    sherl_value positions; /* of SHERL_POOL_POSITION, which alone reads it: as for sherl_select */
    bool each_row;         /* no pooling: outputs for every row */
} sherl_head_settings;

/* Pools each sample's rows and maps them linearly to `outputs` channels. */
sherl_value sherl_head(sherl_graph *graph, const char *prefix, sherl_value x, const sherl_head_settings *settings);

/* One row a sample: the values of each channel sorted over the sample's rows and weighted by rank. The weights are the
 * softmax over the ranks of "score" relu("hidden" rank encoding): (16, 32) and (1, 16), the second zero at first, which
 * is the mean. */
sherl_value sherl_generalized_pool(sherl_graph *graph, const char *prefix, sherl_value x);

typedef struct sherl_embedder_settings {
    size_t outputs;
    sherl_pooling pooling;
    bool generalized; /* sherl_generalized_pool under "pool." instead of `pooling` */
    double dropout;   /* before the linear map */
    bool normalize;   /* divide by the l2 norm plus eps */
    double eps;
    double temperature;    /* 0: none; else the output is multiplied by exp("log_scale") / temperature */
    sherl_value positions; /* of SHERL_POOL_POSITION, which alone reads it: as for sherl_select */
} sherl_embedder_settings;

/* A linear map and pooling, then the norm and the scale. */
sherl_value sherl_embedder(sherl_graph *graph, const char *prefix, sherl_value x,
                           const sherl_embedder_settings *settings);

typedef struct sherl_detector_settings {
    size_t classes; /* logits, one for "nothing" included */
    size_t hidden;  /* channels between the three maps of the box */
    size_t align;   /* channels of a normalized projection for contrastive alignment, or 0 */
    double dropout;
} sherl_detector_settings;

/* For every row logits ("classes"), a box (center x, center y, width, height: the sigmoid of three maps "box.0" to "box.2"
 * with relu in between), and the projection ("align"), side by side. */
sherl_value sherl_detector(sherl_graph *graph, const char *prefix, sherl_value x,
                           const sherl_detector_settings *settings);

/* ---- Program ------------------------------------------------------------------------------------------------------------- */

typedef struct sherl_program sherl_program;

/* Compiles a graph: demand, needs-gradient, schedule. The graph may be destroyed afterwards; the parameters may not. */
sherl_status sherl_program_compile(sherl_graph *graph, bool gradient, sherl_program **program);
void sherl_program_destroy(sherl_program *program);

typedef enum sherl_element {
    SHERL_FLOAT32,
    SHERL_FLOAT64,
    SHERL_FLOAT16,
    SHERL_BFLOAT16,
    SHERL_INT32,
    SHERL_INT64,
    SHERL_INT8, /* a real is the integer times the scale of its row */
    SHERL_ELEMENT_COUNT
} sherl_element;

/* Rows in the caller's memory: row r of the batch is at data + rows[r] * row_stride; rows = NULL stands for 0, 1, 2 … */
typedef struct sherl_source {
    const void *data;
    sherl_element element;
    size_t row_stride; /* bytes */
    const int64_t *rows;
    const float *scales; /* of SHERL_INT8, by row of `data`; NULL otherwise */
} sherl_source;

typedef struct sherl_sink {
    void *data;            /* NULL: not wanted */
    sherl_element element; /* float32, float64, float16 or bfloat16 */
    size_t row_stride;     /* bytes */
    const int64_t *rows;
} sherl_sink;

typedef struct sherl_batch {
    size_t samples;
    /* By space: samples + 1 row offsets, starting at 0. NULL for SHERL_SAMPLES and spaces of images. */
    const size_t *const *offsets;
    /* By space: height and width of each sample, for the declared spaces of images; NULL for the others. NULL where the
     * graph has none. */
    const size_t *const *grids;
    const sherl_source *inputs;        /* by order of declaration */
    const sherl_sink *outputs;         /* by order of declaration, or NULL */
    const sherl_source *cotangents;    /* gradient given for each output, or NULL when the graph has a loss */
    const sherl_sink *input_gradients; /* by input order, or NULL */
    uint64_t seed, step;               /* of dropout */
} sherl_batch;

/* Forward only: writes the outputs, and the loss when the graph has one and `loss` is not NULL. */
sherl_status sherl_program_forward(sherl_program *program, const sherl_batch *batch, double *loss);
/* Forward and backward. The gradients of the trainable parameters replace those of the last call, or add to them. */
sherl_status sherl_program_gradient(sherl_program *program, const sherl_batch *batch, bool add, double *loss);
/* The gradient of a trainable parameter after sherl_program_gradient; NULL for any other parameter. */
const sherl_real *sherl_program_parameter_gradient(const sherl_program *program, sherl_parameter parameter);

/* Most rows that a tile aims at (a single longer sample makes a longer tile). Default 512. */
sherl_status sherl_program_set_tile_rows(sherl_program *program, size_t rows);
/* Most rows of a block, in programs that have wide ops. Default 2048. */
sherl_status sherl_program_set_block_rows(sherl_program *program, size_t rows);

/* Bounds the arenas and gradients of the runs that follow; 0, the default, for no bound. A batch is then cut into tiles
 * and blocks that fit, with an arena counted for each gradient lane: the cut, and with it the last bits, depend on the
 * batch and the budget but not on the number of threads. A run for which no cut fits ends with SHERL_OVER_BUDGET before
 * its first step. */
sherl_status sherl_program_set_memory_budget(sherl_program *program, size_t bytes);
/* The least budget with which a batch of these segment lengths runs; offsets and grids as in sherl_batch. */
sherl_status sherl_program_least_memory(const sherl_program *program, size_t samples, const size_t *const *offsets,
                                        const size_t *const *grids, size_t *bytes);
/* Bytes of the arenas and gradients that the program holds between runs. */
size_t sherl_program_bytes(const sherl_program *program);
/* Frees them; gradients are forgotten, those that wait in a trainer too. The next run makes its own. */
void sherl_program_release_workspace(sherl_program *program);

/* Most gradient lanes: into as many even shares a batch is cut, at least. The default depends on the size of the
 * gradients; more than 64 is SHERL_INVALID_ARGUMENT. */
size_t sherl_program_lanes(const sherl_program *program);
sherl_status sherl_program_set_lanes(sherl_program *program, size_t lanes);
/* Whether the program has ops that run once for a whole block of tiles. */
bool sherl_program_is_staged(const sherl_program *program);
/* Whether it has ops that read the whole batch, so that its arenas grow with the batch. */
bool sherl_program_is_coupled(const sherl_program *program);

typedef struct sherl_memory_report { /* bytes */
    size_t frozen_weights, parameters, gradients, arenas;
    size_t staging; /* the part of the arenas where inputs are laid out */
    size_t tile_rows, tiles, lanes, workers;
} sherl_memory_report;

/* What a batch of these segment lengths takes; offsets and grids as in sherl_batch. */
sherl_status sherl_program_memory(const sherl_program *program, size_t samples, const size_t *const *offsets,
                                  const size_t *const *grids, sherl_memory_report *report);
/* Row spaces of the graph, those included that its ops made. */
size_t sherl_program_spaces(const sherl_program *program);
/* Rows of such a batch by row space; SHERL_SHAPE_MISMATCH where the sizes of its images do not fit. */
sherl_status sherl_program_rows(const sherl_program *program, size_t samples, const size_t *const *offsets,
                                const size_t *const *grids, size_t *rows);
/* A listing of the compiled ops, one a line, for people; release it with sherl_text_destroy. */
sherl_status sherl_program_describe(const sherl_program *program, char **text);
void sherl_text_destroy(sherl_program *program, char *text);

/* ---- Training -------------------------------------------------------------------------------------------------------------- */

typedef enum sherl_optimizer { SHERL_SGD, SHERL_ADAM, SHERL_ADAMW, SHERL_OPTIMIZER_COUNT } sherl_optimizer;
typedef enum sherl_schedule {
    SHERL_SCHEDULE_CONSTANT,
    SHERL_SCHEDULE_LINEAR,
    SHERL_SCHEDULE_COSINE,
    SHERL_SCHEDULE_STEP,
    SHERL_SCHEDULE_COUNT
} sherl_schedule;

typedef struct sherl_training_settings {
    sherl_optimizer optimizer;
    double learning_rate, weight_decay;
    double momentum;          /* SGD */
    double beta1, beta2, eps; /* Adam, AdamW */
    double clip_norm;         /* 0: no clipping */
    sherl_schedule schedule;
    /* Step s < warmup_steps has the rate learning_rate * (s + 1) / warmup_steps; linear and cosine then fall to zero at
     * total_steps, which must be larger. */
    uint64_t warmup_steps, total_steps;
    uint64_t step_every; /* SHERL_SCHEDULE_STEP: learning_rate * step_factor^floor(s / step_every) */
    double step_factor;
} sherl_training_settings;

typedef struct sherl_trainer sherl_trainer;

/* The learning rate of step `step` (the first is 0) under the settings. */
double sherl_learning_rate(const sherl_training_settings *settings, uint64_t step);

/* `trained` holds one flag a parameter of the store (true: moved by this trainer), or is NULL for all trainable ones;
 * `no_decay` likewise (true: exempt from weight decay), or is NULL. The program must have been compiled with
 * gradient = true and must outlive the trainer. */
sherl_status sherl_trainer_create(sherl_program *program, const sherl_training_settings *settings, const bool *trained,
                                  const bool *no_decay, sherl_trainer **trainer);
void sherl_trainer_destroy(sherl_trainer *trainer);
/* Adds the gradient of a batch to those waiting; *loss gets the batch's loss, 0 where the program has none and the batch
 * brings cotangents. After a failure nothing waits. */
sherl_status sherl_trainer_accumulate(sherl_trainer *trainer, const sherl_batch *batch, double *loss);
/* Clips and applies the waiting gradients as one step; *gradient_norm gets their norm before clipping. With none waiting
 * SHERL_INVALID_ARGUMENT; with one that is not finite SHERL_NOT_FINITE, and they are forgotten and nothing changes. */
sherl_status sherl_trainer_update(sherl_trainer *trainer, double *gradient_norm);
/* The same for several trainers, each of a program of its own in one context, whose gradients are clipped by the norm of
 * all of them together: all take the step, or none. Their clip_norm must agree. */
sherl_status sherl_trainer_update_together(sherl_trainer *const *trainers, size_t count, double *gradient_norm);
/* Multiplies learning rate and weight decay of a parameter that the trainer moves, from the next step on; both are 1 at
 * first. SHERL_INVALID_ARGUMENT for another parameter, and for factors below 0 or not finite. */
sherl_status sherl_trainer_set_factors(sherl_trainer *trainer, sherl_parameter parameter, double learning_rate,
                                       double weight_decay);
/* Forgets the waiting gradients, and what their batches taught the running statistics of batch norms; so does every
 * failure above. */
void sherl_trainer_discard(sherl_trainer *trainer);
/* Takes the gradients of the program's last run as those that wait: one run serves several trainers, each of its own
 * parameters. */
void sherl_trainer_adopt(sherl_trainer *trainer);
uint64_t sherl_trainer_steps(const sherl_trainer *trainer);
void sherl_trainer_set_steps(sherl_trainer *trainer, uint64_t steps);
/* Optimizer state of a parameter: moment 0 (momentum or first moment) or 1 (second); NULL where there is none. */
sherl_real *sherl_trainer_moment(sherl_trainer *trainer, int moment, sherl_parameter parameter);
size_t sherl_trainer_bytes(const sherl_trainer *trainer);

#ifdef __cplusplus
}
#endif
#endif
