/* What every op is: a node of a program with a type that knows its forward and its backward, and the tile it runs on. */
#ifndef SHERL_OPS_OP_H
#define SHERL_OPS_OP_H

#include "../base/context.h"
#include "../base/random.h"
#include "kernels/kernels.h"

#define SHERL_MAX_INPUTS 128   /* values that one op reads */
#define SHERL_MAX_PARAMETERS 4 /* parameters that one op reads */

typedef struct sherl_op sherl_op;
typedef struct sherl_tile sherl_tile;

/* How the rows of an op's output depend on the rows of its inputs. */
typedef enum sherl_row_behaviour {
    SHERL_ROW_WISE,   /* row r of the output reads row r of each input */
    SHERL_MIXES_ROWS, /* rows of one segment read other rows of that segment */
    SHERL_COUPLED     /* rows read rows of other samples: the tile is the whole batch */
} sherl_row_behaviour;

/* Lengths that bound a tile. */
typedef struct sherl_limits {
    const size_t *rows;            /* by row space: rows of the tile */
    const size_t *longest_segment; /* by row space: rows of one sample */
    size_t samples;
    const sherl_space *value_spaces; /* by value */
    const size_t *value_channels;    /* by value */
} sherl_limits;

/* Which forward values an op's backward reads. Bit i of `inputs`: input i. */
typedef struct sherl_backward_reads {
    bool inputs[SHERL_MAX_INPUTS];
    bool output;
} sherl_backward_reads;

typedef struct sherl_op_type {
    const char *name;
    sherl_row_behaviour rows;
    /* MIXES_ROWS: the first `aligned_inputs` inputs lie in the row space of the output and are read row by row (the
     * queries of attention), so a demand for few output rows passes on to them. ROW_WISE: all inputs. */
    uint32_t aligned_inputs;
    /* The output may be written over input 0 (same shape), the gradient of input 0 over that of the output. */
    bool forward_in_place, backward_in_place;
    sherl_status (*forward)(const sherl_op *op, const sherl_tile *tile);
    /* Writes (accumulate[i] false) or adds to (true) the gradients of the inputs that have one, input by input in
     * order, and adds to those of the trainable parameters. NULL: the op has no gradient. */
    sherl_status (*backward)(const sherl_op *op, const sherl_tile *tile);
    /* The output is cheaper to compute again for the backward part than to keep; forward may run twice. */
    bool recomputes;
    /* NULL: backward reads no forward value. `trainable[p]`: parameter slot p gets a gradient. */
    void (*backward_reads)(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads);
    /* Bytes of scratch that forward or backward needs on a tile of these limits; NULL: none. */
    bool (*scratch_bytes)(const sherl_op *op, const sherl_limits *limits, size_t *bytes);
    /* Can share its work on a whole block between the threads of tile->pool (sherl_tile_spread). */
    bool spreads;
    /* COUPLED ops in training: stores what a whole forward and backward learned of the batch (running statistics). */
    void (*commit)(const sherl_op *op, const sherl_tile *tile);
} sherl_op_type;

struct sherl_op {
    const sherl_op_type *type;
    uint32_t input_count, parameter_count;
    sherl_value inputs[SHERL_MAX_INPUTS];
    sherl_parameter parameters[SHERL_MAX_PARAMETERS]; /* SHERL_NONE where an optional one is absent */
    sherl_value output;
    sherl_value saved;  /* an extra value that lives from forward to backward (statistics, say), or SHERL_NONE */
    uint32_t stream;    /* of random numbers: fixed when the graph is built, so no pass changes a draw */
    uint32_t selection; /* where the demand pass left one row of each segment: which; see sherl_tile_position */
    bool training;      /* built into a training graph */
    bool wide;          /* runs once for a whole block of tiles; set by the stages pass */
    bool accumulate[SHERL_MAX_INPUTS]; /* set by the needs-gradient pass */
    bool bfloat16; /* linear, vocabulary loss: products with the weight in bfloat16; then, packed when compiled: */
    const uint16_t *packed_weight, *packed_transpose; /* for x W^T and for dz W, as the kernels read them */
    union {                                           /* what the type needs to know beyond its operands */
        sherl_activation activation;                  /* linear, activation, gated */
        struct { double eps, momentum; } norm;
        struct { double rate; } dropout;
        struct {
            size_t heads, key_heads;
            double scale, dropout;
            bool causal;
            sherl_position_buckets positions;
        } attention;
        struct {
            size_t heads, dimensions;
            double theta;
            sherl_rotary_scaling scaling;
        } rotary;
        struct {
            double eps;
            bool add_guide;
        } guidance;
        struct { double temperature; } gate;
        struct { double initial; } amplify;
        struct {
            sherl_window window;
            sherl_activation activation;
        } convolution;
        sherl_window window;
        sherl_spatial_settings spatial;
        struct { double label_smoothing; } cross_entropy;
        struct {
            double label_smoothing;
            size_t vocabulary;
        } vocabulary_loss;
    } settings;
};

/* Whole samples that one call of an op works on. Everything is addressed through the functions below. */
struct sherl_tile {
    const sherl_kernels *kernels;
    size_t first_sample, samples;    /* samples [first_sample, first_sample + samples) of the batch */
    const size_t *const *offsets;    /* by space: row offset of each sample of the batch, samples + 1 of them */
    const size_t *const *positions;  /* by selection: a row number within the segment for each sample of the batch */
    const size_t *const *grids;      /* by space: height and width of each sample of the batch, NULL without images */
    const sherl_space *value_spaces; /* by value */
    const size_t *value_channels;    /* by value */
    void *const *values;             /* by value: its rows of this tile */
    sherl_real *const *gradients;    /* by value: the same for gradients; NULL where none is wanted */
    const sherl_real *const *parameters;    /* by parameter of the store */
    const size_t *parameter_rows;           /* by parameter of the store */
    sherl_real *const *parameter_gradients; /* by parameter: this lane's; NULL for frozen ones */
    sherl_real *const *mutable_parameters;  /* for commit only: SHERL_STATE parameters, NULL for the others */
    void *scratch;
    sherl_thread_pool *pool;     /* for wide ops; NULL on ordinary tiles */
    sherl_random_key random_key; /* of seed and step */
};

/* Rows of a value on this tile, its channels, its data. */
static inline size_t sherl_tile_space_rows(const sherl_tile *tile, sherl_space space) {
    const size_t *offsets = tile->offsets[space];
    return offsets[tile->first_sample + tile->samples] - offsets[tile->first_sample];
}
static inline size_t sherl_tile_rows(const sherl_tile *tile, sherl_value value) {
    return sherl_tile_space_rows(tile, tile->value_spaces[value]);
}
static inline size_t sherl_tile_channels(const sherl_tile *tile, sherl_value value) {
    return tile->value_channels[value];
}
static inline const sherl_real *sherl_tile_read(const sherl_tile *tile, sherl_value value) {
    return tile->values[value];
}
static inline sherl_real *sherl_tile_write(const sherl_tile *tile, sherl_value value) { return tile->values[value]; }
static inline int32_t *sherl_tile_integers(const sherl_tile *tile, sherl_value value) { return tile->values[value]; }

/* First row, within this tile, of local sample `sample` (0 … samples; samples gives the end). */
static inline size_t sherl_tile_segment(const sherl_tile *tile, sherl_space space, size_t sample) {
    const size_t *offsets = tile->offsets[space] + tile->first_sample;
    return offsets[sample] - offsets[0];
}

/* The position within its segment of the first row that an op has of local sample `sample`: 0, but for an op that the
 * demand pass left with one row a sample. What an op makes of positions (random draws, masks) must count from here. */
static inline size_t sherl_tile_position(const sherl_op *op, const sherl_tile *tile, size_t sample) {
    return tile->positions[op->selection][tile->first_sample + sample];
}

/* Height and width of local sample `sample` in a space of images. */
static inline const size_t *sherl_tile_grid(const sherl_tile *tile, sherl_space space, size_t sample) {
    return tile->grids[space] + 2 * (tile->first_sample + sample);
}

/* Gradient of the output; of input i, or NULL when it has none. */
static inline const sherl_real *sherl_output_gradient(const sherl_op *op, const sherl_tile *tile) {
    return tile->gradients[op->output];
}
static inline sherl_real *sherl_input_gradient(const sherl_op *op, const sherl_tile *tile, uint32_t i) {
    return tile->gradients[op->inputs[i]];
}
/* Data of parameter slot p (NULL when absent); its gradient in this lane (NULL when absent or frozen). */
static inline const sherl_real *sherl_op_parameter(const sherl_op *op, const sherl_tile *tile, uint32_t slot) {
    return op->parameters[slot] == SHERL_NONE ? NULL : tile->parameters[op->parameters[slot]];
}
static inline sherl_real *sherl_op_parameter_gradient(const sherl_op *op, const sherl_tile *tile, uint32_t slot) {
    return op->parameters[slot] == SHERL_NONE ? NULL : tile->parameter_gradients[op->parameters[slot]];
}

/* Runs tasks 0 … count-1: over the threads where the op has them to itself, else here one after the other. */
static inline void sherl_tile_spread(const sherl_tile *tile, size_t count, sherl_task task, void *state) {
    if (tile->pool) {
        sherl_pool_run(tile->pool, count, task, state);
        return;
    }
    for (size_t i = 0; i < count; i++) task(state, i, 0);
}

/* Every op type, by family. */
extern const sherl_op_type sherl_linear_type;                          /* linear.c */
extern const sherl_op_type sherl_activation_type, sherl_gated_type;    /* activation.c */
extern const sherl_op_type sherl_layer_norm_type, sherl_rms_norm_type; /* normalization.c */
/* With the statistics of the batch (training), with the running ones. */
extern const sherl_op_type sherl_batch_norm_type, sherl_fixed_batch_norm_type; /* batch_norm.c */
extern const sherl_op_type sherl_dropout_type;                                 /* dropout.c */
extern const sherl_op_type sherl_add_type, sherl_multiply_type, sherl_scale_channels_type,
    sherl_gate_type;                                                               /* elementwise.c */
extern const sherl_op_type sherl_embedding_type, sherl_table_type;                 /* embedding.c */
extern const sherl_op_type sherl_rotary_type;                                      /* rotary.c */
extern const sherl_op_type sherl_attention_type;                                   /* attention.c */
extern const sherl_op_type sherl_single_query_attention_type;                      /* single_query_attention.c */
extern const sherl_op_type sherl_select_type, sherl_mean_type, sherl_max_type;     /* pooling.c */
extern const sherl_op_type sherl_rank_encoding_type, sherl_sorted_pool_type;       /* generalized_pooling.c */
extern const sherl_op_type sherl_l2_normalize_type;                                /* normalization.c */
extern const sherl_op_type sherl_amplify_type, sherl_concatenate_type;             /* elementwise.c */
extern const sherl_op_type sherl_row_cross_entropy_type;                           /* loss.c */
extern const sherl_op_type sherl_vocabulary_loss_type, sherl_vocabulary_best_type; /* vocabulary_loss.c */
extern const sherl_op_type sherl_guidance_type;                                    /* guidance.c */
extern const sherl_op_type sherl_spatial_guidance_type;                            /* spatial_guidance.c */
extern const sherl_op_type sherl_convolution_type;                                 /* convolution.c */
extern const sherl_op_type sherl_window_pool_type;                                 /* window_pooling.c */
extern const sherl_op_type sherl_cross_entropy_type, sherl_binary_cross_entropy_type,
    sherl_squared_error_type; /* loss.c */

#endif
