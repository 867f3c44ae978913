/* Multi-head attention inside each segment: o = softmax(scale q k^T) v, head by head. */
#include <string.h>

#include "../blas/blas.h"
#include "op.h"

#define BLOCK_ROWS ((size_t)128) /* queries worked on at once: bounds the scratch of long segments */

/* Some queries of one sample and one head, and the keys that they may see. */
typedef struct attention_block {
    size_t sample;                /* within the tile */
    size_t head, first_channel;   /* of this head */
    size_t query_row, query_rows; /* within the tile */
    size_t position;              /* of the first query within its segment */
    size_t key_row, keys;         /* within the tile */
    size_t first_visible;         /* keys that the first query sees when causal, else 0 */
} attention_block;

typedef void (*block_work)(const sherl_op *op, const sherl_tile *tile, const attention_block *block);

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static void run_blocks(const sherl_op *op, const sherl_tile *tile, block_work work) {
    const sherl_space query_space = tile->value_spaces[op->inputs[0]], key_space = tile->value_spaces[op->inputs[1]];
    const size_t heads = op->settings.attention.heads;
    const size_t head_size = sherl_tile_channels(tile, op->output) / heads;
    for (size_t sample = 0; sample < tile->samples; sample++) {
        const size_t query_row = sherl_tile_segment(tile, query_space, sample);
        const size_t queries = sherl_tile_segment(tile, query_space, sample + 1) - query_row;
        const size_t key_row = sherl_tile_segment(tile, key_space, sample);
        const size_t keys = sherl_tile_segment(tile, key_space, sample + 1) - key_row;
        const size_t first_position = sherl_tile_position(op, tile, sample);
        for (size_t head = 0; head < heads; head++) {
            for (size_t row = 0; row < queries; row += BLOCK_ROWS) {
                attention_block block = {.sample = sample, .head = head, .first_channel = head * head_size};
                block.query_row = query_row + row;
                block.query_rows = smaller(BLOCK_ROWS, queries - row);
                block.position = first_position + row;
                block.key_row = key_row;
                block.keys = op->settings.attention.causal ? smaller(keys, block.position + block.query_rows) : keys;
                block.first_visible = op->settings.attention.causal ? block.position + 1 : 0;
                work(op, tile, &block);
            }
        }
    }
}

/* The builder sets the rate in training graphs alone. */
static bool has_dropout(const sherl_op *op) { return op->settings.attention.dropout > 0; }

/* dropped = dropout(x), both (queries, keys), may be one buffer. The draw depends on step, head, sample, query and key
 * position: the builder gives the op one stream of random numbers a head. */
static void drop(const sherl_op *op, const sherl_tile *tile, const attention_block *block, const sherl_real *x,
                 sherl_real *dropped) {
    const uint32_t stream = op->stream + (uint32_t)block->head;
    sherl_row_key key = {.sample = (uint32_t)(tile->first_sample + block->sample)};
    for (size_t row = 0; row < block->query_rows; row++) {
        key.position = (uint32_t)(block->position + row);
        tile->kernels->dropout_row(tile->random_key, stream, key, op->settings.attention.dropout, x + row * block->keys,
                                   dropped + row * block->keys, block->keys, false);
    }
}

/* Scores q k^T: (queries, keys). */
static void multiply_queries_keys(const sherl_op *op, const sherl_tile *tile, const attention_block *block,
                                  sherl_real *scores) {
    const size_t channels = sherl_tile_channels(tile, op->output);
    const size_t head_size = channels / op->settings.attention.heads;
    const sherl_real *query = sherl_tile_read(tile, op->inputs[0]) + block->query_row * channels;
    const sherl_real *key = sherl_tile_read(tile, op->inputs[1]) + block->key_row * channels;
    sherl_gemm(false, true, block->query_rows, block->keys, head_size, 1, query + block->first_channel, channels,
               key + block->first_channel, channels, 0, scores, block->keys);
}

static void forward_block(const sherl_op *op, const sherl_tile *tile, const attention_block *block) {
    const size_t heads = op->settings.attention.heads, channels = sherl_tile_channels(tile, op->output);
    const size_t head_size = channels / heads;
    const sherl_real *value = sherl_tile_read(tile, op->inputs[2]) + block->key_row * channels + block->first_channel;
    sherl_real *output = sherl_tile_write(tile, op->output) + block->query_row * channels + block->first_channel;
    sherl_real *logsumexp = NULL;
    if (op->saved != SHERL_NONE)
        logsumexp = sherl_tile_write(tile, op->saved) + block->query_row * heads + block->head;
    sherl_real *p = tile->scratch;

    multiply_queries_keys(op, tile, block, p);
    /* p = dropout(softmax(scale q k^T)) */
    tile->kernels->softmax_forward(p, op->settings.attention.scale, block->query_rows, block->keys,
                                   block->first_visible, logsumexp, heads);
    if (has_dropout(op)) drop(op, tile, block, p, p);
    /* o = p v; o: (queries, head_size), v: (keys, head_size) */
    sherl_gemm(false, false, block->query_rows, head_size, block->keys, 1, p, block->keys, value, channels, 0, output,
               channels);
}

static sherl_status attention_forward(const sherl_op *op, const sherl_tile *tile) {
    run_blocks(op, tile, forward_block);
    return SHERL_OK;
}

/* Adds to the gradients of the block's head channels; every gradient holds numbers already. */
static void backward_block(const sherl_op *op, const sherl_tile *tile, const attention_block *block) {
    const size_t heads = op->settings.attention.heads, channels = sherl_tile_channels(tile, op->output);
    const size_t head_size = channels / heads, rows = block->query_rows, keys = block->keys;
    const size_t query_at = block->query_row * channels + block->first_channel;
    const size_t key_at = block->key_row * channels + block->first_channel;
    const sherl_real *query = sherl_tile_read(tile, op->inputs[0]) + query_at;
    const sherl_real *key = sherl_tile_read(tile, op->inputs[1]) + key_at;
    const sherl_real *value = sherl_tile_read(tile, op->inputs[2]) + key_at;
    const sherl_real *logsumexp = sherl_tile_read(tile, op->saved) + block->query_row * heads + block->head;
    const sherl_real *doutput = sherl_output_gradient(op, tile) + query_at;
    sherl_real *dquery = sherl_input_gradient(op, tile, 0), *dkey = sherl_input_gradient(op, tile, 1);
    sherl_real *dvalue = sherl_input_gradient(op, tile, 2);
    sherl_real *p = tile->scratch, *ds = p + rows * keys;

    multiply_queries_keys(op, tile, block, p);
    tile->kernels->softmax_recompute(p, op->settings.attention.scale, rows, keys, block->first_visible, logsumexp,
                                     heads);
    if (dquery != NULL || dkey != NULL) {
        /* o = dropout(p) v: dp = dropout(do v^T) */
        sherl_gemm(false, true, rows, keys, head_size, 1, doutput, channels, value, channels, 0, ds, keys);
        if (has_dropout(op)) drop(op, tile, block, ds, ds);
        /* p = softmax(scale s): ds = scale p (dp - sum_j p_j dp_j) */
        tile->kernels->softmax_backward(p, ds, op->settings.attention.scale, rows, keys);
    }
    /* s = q k^T: dq += ds k, dk += ds^T q */
    if (dquery != NULL)
        sherl_gemm(false, false, rows, head_size, keys, 1, ds, keys, key, channels, 1, dquery + query_at, channels);
    if (dkey != NULL)
        sherl_gemm(true, false, keys, head_size, rows, 1, ds, keys, query, channels, 1, dkey + key_at, channels);
    /* o = dropout(p) v: dv += dropout(p)^T do */
    if (dvalue != NULL) {
        if (has_dropout(op)) drop(op, tile, block, p, p);
        sherl_gemm(true, false, keys, head_size, rows, 1, p, keys, doutput, channels, 1, dvalue + key_at, channels);
    }
}

static sherl_status attention_backward(const sherl_op *op, const sherl_tile *tile) {
    /* All blocks add, as several of them may reach a row, and as two inputs may be one value. */
    for (uint32_t i = 0; i < 3; i++) {
        sherl_real *gradient = sherl_input_gradient(op, tile, i);
        if (gradient == NULL || op->accumulate[i]) continue;
        const sherl_value input = op->inputs[i];
        memset(gradient, 0, sherl_tile_rows(tile, input) * sherl_tile_channels(tile, input) * sizeof *gradient);
    }
    run_blocks(op, tile, backward_block);
    return SHERL_OK;
}

static void attention_backward_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)op, (void)trainable;
    reads->inputs[0] = reads->inputs[1] = reads->inputs[2] = true;
}

/* Two blocks of (queries, keys): probabilities and their gradient. */
static bool attention_scratch_bytes(const sherl_op *op, const sherl_limits *limits, size_t *bytes) {
    const size_t queries = limits->longest_segment[limits->value_spaces[op->inputs[0]]];
    const size_t keys = limits->longest_segment[limits->value_spaces[op->inputs[1]]];
    return sherl_multiply_sizes(smaller(BLOCK_ROWS, queries), keys, bytes) &&
           sherl_multiply_sizes(*bytes, 2 * sizeof(sherl_real), bytes);
}

const sherl_op_type sherl_attention_type = {.name = "attention",
                                            .rows = SHERL_MIXES_ROWS,
                                            .aligned_inputs = 1,
                                            .forward = attention_forward,
                                            .backward = attention_backward,
                                            .backward_reads = attention_backward_reads,
                                            .scratch_bytes = attention_scratch_bytes};
