/* Multi-head attention inside each segment: o = softmax(scale q k^T + bias) v, head by head. */
#include <string.h>

#include "../blas/blas.h"
#include "op.h"
#include "relative_positions.h"

#define BLOCK_ROWS ((size_t)128) /* queries worked on at once: bounds the scratch of long segments */

/* One call of the op. Several heads of queries may share one of keys and values. */
typedef struct call {
    const sherl_op *op;
    const sherl_tile *tile;
    size_t heads, head_size;
    size_t channels, key_channels;       /* of queries and output; of keys and values */
    size_t longest_query, longest_key;   /* segment of the tile */
    sherl_real *probabilities, *scores;  /* (queries, keys) of a block */
    sherl_real *biases, *dbiases;        /* (heads, distances), where positions tell; dbiases where they are trained */
} call;

/* Some queries of one sample and one head, and the keys that they may see. */
typedef struct attention_block {
    size_t sample;                /* within the tile */
    size_t head;
    size_t first_channel, first_key_channel; /* of this head */
    size_t query_row, query_rows; /* within the tile */
    size_t position;              /* of the first query within its segment */
    size_t key_row, keys;         /* within the tile */
    size_t first_visible;         /* keys that the first query sees when causal, else 0 */
} attention_block;

typedef void (*block_work)(const call *c, const attention_block *block);

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static bool has_positions(const sherl_op *op) { return op->settings.attention.positions.buckets > 0; }

static size_t longest_segment(const sherl_tile *tile, sherl_space space) {
    size_t longest = 0;
    for (size_t sample = 0; sample < tile->samples; sample++) {
        const size_t rows = sherl_tile_segment(tile, space, sample + 1) - sherl_tile_segment(tile, space, sample);
        if (rows > longest) longest = rows;
    }
    return longest;
}

static call begin(const sherl_op *op, const sherl_tile *tile) {
    call c = {.op = op, .tile = tile, .heads = op->settings.attention.heads};
    c.channels = sherl_tile_channels(tile, op->output);
    c.key_channels = sherl_tile_channels(tile, op->inputs[1]);
    c.head_size = c.channels / c.heads;
    c.longest_query = longest_segment(tile, tile->value_spaces[op->inputs[0]]);
    c.longest_key = longest_segment(tile, tile->value_spaces[op->inputs[1]]);
    const size_t block = smaller(BLOCK_ROWS, c.longest_query) * c.longest_key;
    c.probabilities = tile->scratch;
    c.scores = c.probabilities + block;
    if (!has_positions(op)) return c;
    const size_t biases = c.heads * sherl_position_distances(c.longest_query, c.longest_key);
    c.biases = c.scores + block;
    sherl_spread_positions(op, sherl_op_parameter(op, tile, 0), c.longest_query, c.longest_key, c.biases);
    if (!sherl_op_parameter_gradient(op, tile, 0)) return c;
    c.dbiases = c.biases + biases;
    memset(c.dbiases, 0, biases * sizeof *c.dbiases);
    return c;
}

static void run_blocks(const call *c, block_work work) {
    const sherl_op *op = c->op;
    const sherl_tile *tile = c->tile;
    const sherl_space query_space = tile->value_spaces[op->inputs[0]], key_space = tile->value_spaces[op->inputs[1]];
    const size_t sharing = c->heads / op->settings.attention.key_heads;
    for (size_t sample = 0; sample < tile->samples; sample++) {
        const size_t query_row = sherl_tile_segment(tile, query_space, sample);
        const size_t queries = sherl_tile_segment(tile, query_space, sample + 1) - query_row;
        const size_t key_row = sherl_tile_segment(tile, key_space, sample);
        const size_t keys = sherl_tile_segment(tile, key_space, sample + 1) - key_row;
        const size_t first_position = sherl_tile_position(op, tile, sample);
        for (size_t head = 0; head < c->heads; head++) {
            for (size_t row = 0; row < queries; row += BLOCK_ROWS) {
                attention_block block = {.sample = sample, .head = head, .first_channel = head * c->head_size};
                block.first_key_channel = head / sharing * c->head_size;
                block.query_row = query_row + row;
                block.query_rows = smaller(BLOCK_ROWS, queries - row);
                block.position = first_position + row;
                block.key_row = key_row;
                block.keys = op->settings.attention.causal ? smaller(keys, block.position + block.query_rows) : keys;
                block.first_visible = op->settings.attention.causal ? block.position + 1 : 0;
                work(c, &block);
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

/* The biases of a block's query `row` and its keys 0 … keys - 1, out of c->biases or c->dbiases. */
static sherl_real *biases_of(const call *c, const attention_block *block, size_t row, sherl_real *biases) {
    return biases + block->head * sherl_position_distances(c->longest_query, c->longest_key) +
           sherl_position_offset(c->longest_query, block->position + row);
}

/* s = scale q k^T + bias: (queries, keys) */
static void score(const call *c, const attention_block *block, sherl_real *scores) {
    const sherl_real *query = sherl_tile_read(c->tile, c->op->inputs[0]) + block->query_row * c->channels;
    const sherl_real *key = sherl_tile_read(c->tile, c->op->inputs[1]) + block->key_row * c->key_channels;
    for (size_t row = 0; c->biases && row < block->query_rows; row++)
        memcpy(scores + row * block->keys, biases_of(c, block, row, c->biases), block->keys * sizeof *scores);
    sherl_gemm(false, true, block->query_rows, block->keys, c->head_size, c->op->settings.attention.scale,
               query + block->first_channel, c->channels, key + block->first_key_channel, c->key_channels,
               c->biases ? 1 : 0, scores, block->keys);
}

static void forward_block(const call *c, const attention_block *block) {
    const sherl_op *op = c->op;
    const sherl_tile *tile = c->tile;
    const sherl_real *value =
        sherl_tile_read(tile, op->inputs[2]) + block->key_row * c->key_channels + block->first_key_channel;
    sherl_real *output = sherl_tile_write(tile, op->output) + block->query_row * c->channels + block->first_channel;
    sherl_real *logsumexp = NULL;
    if (op->saved != SHERL_NONE)
        logsumexp = sherl_tile_write(tile, op->saved) + block->query_row * c->heads + block->head;
    sherl_real *p = c->probabilities;

    score(c, block, p);
    /* p = dropout(softmax(s)) */
    tile->kernels->softmax_forward(p, 1, block->query_rows, block->keys, block->first_visible, logsumexp, c->heads);
    if (has_dropout(op)) drop(op, tile, block, p, p);
    /* o = p v; o: (queries, head_size), v: (keys, head_size) */
    sherl_gemm(false, false, block->query_rows, c->head_size, block->keys, 1, p, block->keys, value, c->key_channels, 0,
               output, c->channels);
}

static sherl_status attention_forward(const sherl_op *op, const sherl_tile *tile) {
    const call c = begin(op, tile);
    run_blocks(&c, forward_block);
    return SHERL_OK;
}

/* dbias += ds, distance by distance */
static void add_to_dbiases(const call *c, const attention_block *block, const sherl_real *ds) {
    for (size_t row = 0; row < block->query_rows; row++)
        c->tile->kernels->accumulate(ds + row * block->keys, biases_of(c, block, row, c->dbiases), block->keys);
}

/* Adds to the gradients of the block's head channels; every gradient holds numbers already. */
static void backward_block(const call *c, const attention_block *block) {
    const sherl_op *op = c->op;
    const sherl_tile *tile = c->tile;
    const size_t rows = block->query_rows, keys = block->keys, head_size = c->head_size;
    const size_t query_at = block->query_row * c->channels + block->first_channel;
    const size_t key_at = block->key_row * c->key_channels + block->first_key_channel;
    const double scale = op->settings.attention.scale;
    const sherl_real *query = sherl_tile_read(tile, op->inputs[0]) + query_at;
    const sherl_real *key = sherl_tile_read(tile, op->inputs[1]) + key_at;
    const sherl_real *value = sherl_tile_read(tile, op->inputs[2]) + key_at;
    const sherl_real *logsumexp = sherl_tile_read(tile, op->saved) + block->query_row * c->heads + block->head;
    const sherl_real *doutput = sherl_output_gradient(op, tile) + query_at;
    sherl_real *dquery = sherl_input_gradient(op, tile, 0), *dkey = sherl_input_gradient(op, tile, 1);
    sherl_real *dvalue = sherl_input_gradient(op, tile, 2);
    sherl_real *p = c->probabilities, *ds = c->scores;

    score(c, block, p);
    tile->kernels->softmax_recompute(p, 1, rows, keys, block->first_visible, logsumexp, c->heads);
    if (dquery != NULL || dkey != NULL || c->dbiases != NULL) {
        /* o = dropout(p) v: dp = dropout(do v^T) */
        sherl_gemm(false, true, rows, keys, head_size, 1, doutput, c->channels, value, c->key_channels, 0, ds, keys);
        if (has_dropout(op)) drop(op, tile, block, ds, ds);
        /* p = softmax(s): ds = p (dp - sum_j p_j dp_j) */
        tile->kernels->softmax_backward(p, ds, 1, rows, keys);
    }
    /* s = scale q k^T + bias: dbias += ds, dq += scale ds k, dk += scale ds^T q */
    if (c->dbiases != NULL) add_to_dbiases(c, block, ds);
    if (dquery != NULL)
        sherl_gemm(false, false, rows, head_size, keys, scale, ds, keys, key, c->key_channels, 1, dquery + query_at,
                   c->channels);
    if (dkey != NULL)
        sherl_gemm(true, false, keys, head_size, rows, scale, ds, keys, query, c->channels, 1, dkey + key_at,
                   c->key_channels);
    /* o = dropout(p) v: dv += dropout(p)^T do */
    if (dvalue != NULL) {
        if (has_dropout(op)) drop(op, tile, block, p, p);
        sherl_gemm(true, false, keys, head_size, rows, 1, p, keys, doutput, c->channels, 1, dvalue + key_at,
                   c->key_channels);
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
    const call c = begin(op, tile);
    run_blocks(&c, backward_block);
    if (c.dbiases)
        sherl_gather_positions(op, c.dbiases, c.longest_query, c.longest_key, sherl_op_parameter_gradient(op, tile, 0));
    return SHERL_OK;
}

static void attention_backward_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)op, (void)trainable;
    reads->inputs[0] = reads->inputs[1] = reads->inputs[2] = true;
}

/* Two blocks of (queries, keys): probabilities and their gradient; biases by distance, and their gradient. */
static bool attention_scratch_bytes(const sherl_op *op, const sherl_limits *limits, size_t *bytes) {
    const size_t queries = limits->longest_segment[limits->value_spaces[op->inputs[0]]];
    const size_t keys = limits->longest_segment[limits->value_spaces[op->inputs[1]]];
    size_t biases = 0;
    if (has_positions(op) && !(sherl_add_sizes(queries, keys, &biases) &&
                               sherl_multiply_sizes(biases, op->settings.attention.heads, &biases)))
        return false;
    return sherl_multiply_sizes(smaller(BLOCK_ROWS, queries), keys, bytes) && sherl_add_sizes(*bytes, biases, bytes) &&
           sherl_multiply_sizes(*bytes, 2 * sizeof(sherl_real), bytes);
}

const sherl_op_type sherl_attention_type = {.name = "attention",
                                            .rows = SHERL_MIXES_ROWS,
                                            .aligned_inputs = 1,
                                            .forward = attention_forward,
                                            .backward = attention_backward,
                                            .backward_reads = attention_backward_reads,
                                            .scratch_bytes = attention_scratch_bytes};
