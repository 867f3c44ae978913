/* Multi-head attention inside each segment: o = softmax(scale q k^T + bias) v, head by head. */
#include <string.h>

#include "../blas/blas.h"
#include "op.h"
#include "relative_positions.h"

#define BLOCK_ROWS ((size_t)128) /* queries worked on at once: bounds the scratch of long segments */

/* One sample of one call of the op. Several heads of queries may share one of keys and values. */
typedef struct attention_sample {
    const sherl_op *op;
    const sherl_tile *tile;
    size_t number; /* within the tile */
    size_t heads, head_size;
    size_t channels, key_channels; /* of queries and output; of keys and values */
    size_t query_row, queries;     /* row: within the tile */
    size_t position;               /* of the first query within its segment */
    size_t key_row, keys;
    sherl_real *probabilities, *scores; /* (queries, keys) of a block */
    sherl_real *biases, *dbiases;       /* (heads, distances), where positions tell; else NULL */
} attention_sample;

/* Some queries of one sample and one head, and the keys that they may see. */
typedef struct attention_block {
    size_t head;
    size_t first_channel, first_key_channel; /* of this head */
    size_t first_query, query_rows;          /* within the sample's */
    size_t query_row;                        /* within the tile */
    size_t position;                         /* of the first query within its segment */
    size_t keys;
    size_t first_visible; /* keys that the first query sees when causal, else 0 */
} attention_block;

typedef void (*block_work)(const attention_sample *s, const attention_block *block);

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static bool has_positions(const sherl_op *op) { return op->settings.attention.positions.buckets > 0; }

/* A key's distance from a query runs from -(position of the last query) to keys - 1 - (position of the first). */
static size_t distances(const attention_sample *s) { return s->queries + s->keys - 1; }
static ptrdiff_t least_distance(const attention_sample *s) { return -(ptrdiff_t)(s->position + s->queries - 1); }

static attention_sample find_sample(const sherl_op *op, const sherl_tile *tile, size_t number) {
    const sherl_space query_space = tile->value_spaces[op->inputs[0]], key_space = tile->value_spaces[op->inputs[1]];
    attention_sample s = {.op = op, .tile = tile, .number = number, .heads = op->settings.attention.heads};
    s.channels = sherl_tile_channels(tile, op->output);
    s.key_channels = sherl_tile_channels(tile, op->inputs[1]);
    s.head_size = s.channels / s.heads;
    s.query_row = sherl_tile_segment(tile, query_space, number);
    s.queries = sherl_tile_segment(tile, query_space, number + 1) - s.query_row;
    s.position = sherl_tile_position(op, tile, number);
    s.key_row = sherl_tile_segment(tile, key_space, number);
    s.keys = sherl_tile_segment(tile, key_space, number + 1) - s.key_row;
    const size_t block = smaller(BLOCK_ROWS, s.queries) * s.keys;
    s.probabilities = tile->scratch;
    s.scores = s.probabilities + block;
    if (!has_positions(op)) return s;
    s.biases = s.scores + block;
    s.dbiases = s.biases + s.heads * distances(&s);
    sherl_spread_positions(op, sherl_op_parameter(op, tile, 0), least_distance(&s), distances(&s), s.biases);
    return s;
}

static void run_blocks(const attention_sample *s, block_work work) {
    const bool causal = s->op->settings.attention.causal;
    const size_t sharing = s->heads / s->op->settings.attention.key_heads;
    for (size_t head = 0; head < s->heads; head++) {
        for (size_t query = 0; query < s->queries; query += BLOCK_ROWS) {
            attention_block block = {.head = head, .first_channel = head * s->head_size};
            block.first_key_channel = head / sharing * s->head_size;
            block.first_query = query;
            block.query_rows = smaller(BLOCK_ROWS, s->queries - query);
            block.query_row = s->query_row + query;
            block.position = s->position + query;
            block.keys = causal ? smaller(s->keys, block.position + block.query_rows) : s->keys;
            block.first_visible = causal ? block.position + 1 : 0;
            work(s, &block);
        }
    }
}

/* The builder sets the rate in training graphs alone. */
static bool has_dropout(const sherl_op *op) { return op->settings.attention.dropout > 0; }

/* dropped = dropout(x), both (queries, keys), may be one buffer. The draw depends on step, head, sample, query and key
 * position: the builder gives the op one stream of random numbers a head. */
static void drop(const attention_sample *s, const attention_block *block, const sherl_real *x, sherl_real *dropped) {
    const uint32_t stream = s->op->stream + (uint32_t)block->head;
    sherl_row_key key = {.sample = (uint32_t)(s->tile->first_sample + s->number)};
    for (size_t row = 0; row < block->query_rows; row++) {
        key.position = (uint32_t)(block->position + row);
        s->tile->kernels->dropout_row(s->tile->random_key, stream, key, s->op->settings.attention.dropout,
                                      x + row * block->keys, dropped + row * block->keys, block->keys, false);
    }
}

/* Where in s->biases or s->dbiases those of a block's query `row` and key 0 are; the ones of the next keys follow. */
static size_t bias_at(const attention_sample *s, const attention_block *block, size_t row) {
    return block->head * distances(s) + s->queries - 1 - (block->first_query + row);
}

/* s = scale q k^T + bias: (queries, keys) */
static void score(const attention_sample *s, const attention_block *block, sherl_real *scores) {
    const sherl_real *query = sherl_tile_read(s->tile, s->op->inputs[0]) + block->query_row * s->channels;
    const sherl_real *key = sherl_tile_read(s->tile, s->op->inputs[1]) + s->key_row * s->key_channels;
    for (size_t row = 0; s->biases && row < block->query_rows; row++)
        memcpy(scores + row * block->keys, s->biases + bias_at(s, block, row), block->keys * sizeof *scores);
    sherl_gemm(false, true, block->query_rows, block->keys, s->head_size, s->op->settings.attention.scale,
               query + block->first_channel, s->channels, key + block->first_key_channel, s->key_channels,
               s->biases ? 1 : 0, scores, block->keys);
}

static void forward_block(const attention_sample *s, const attention_block *block) {
    const sherl_op *op = s->op;
    const sherl_tile *tile = s->tile;
    const sherl_real *value =
        sherl_tile_read(tile, op->inputs[2]) + s->key_row * s->key_channels + block->first_key_channel;
    sherl_real *output = sherl_tile_write(tile, op->output) + block->query_row * s->channels + block->first_channel;
    sherl_real *logsumexp = NULL;
    if (op->saved != SHERL_NONE)
        logsumexp = sherl_tile_write(tile, op->saved) + block->query_row * s->heads + block->head;
    sherl_real *p = s->probabilities;

    score(s, block, p);
    /* p = dropout(softmax(s)) */
    tile->kernels->softmax_forward(p, 1, block->query_rows, block->keys, block->first_visible, logsumexp, s->heads);
    if (has_dropout(op)) drop(s, block, p, p);
    /* o = p v; o: (queries, head_size), v: (keys, head_size) */
    sherl_gemm(false, false, block->query_rows, s->head_size, block->keys, 1, p, block->keys, value, s->key_channels, 0,
               output, s->channels);
}

static sherl_status attention_forward(const sherl_op *op, const sherl_tile *tile) {
    for (size_t number = 0; number < tile->samples; number++) {
        const attention_sample s = find_sample(op, tile, number);
        run_blocks(&s, forward_block);
    }
    return SHERL_OK;
}

/* dbias += ds, distance by distance */
static void add_to_dbiases(const attention_sample *s, const attention_block *block, const sherl_real *ds) {
    for (size_t row = 0; row < block->query_rows; row++)
        s->tile->kernels->accumulate(ds + row * block->keys, s->dbiases + bias_at(s, block, row), block->keys);
}

/* Adds to the gradients of the block's head channels; every gradient holds numbers already. */
static void backward_block(const attention_sample *s, const attention_block *block) {
    const sherl_op *op = s->op;
    const sherl_tile *tile = s->tile;
    const size_t rows = block->query_rows, keys = block->keys, head_size = s->head_size;
    const size_t query_at = block->query_row * s->channels + block->first_channel;
    const size_t key_at = s->key_row * s->key_channels + block->first_key_channel;
    const double scale = op->settings.attention.scale;
    const bool trains_biases = s->biases && sherl_op_parameter_gradient(op, tile, 0);
    const sherl_real *query = sherl_tile_read(tile, op->inputs[0]) + query_at;
    const sherl_real *key = sherl_tile_read(tile, op->inputs[1]) + key_at;
    const sherl_real *value = sherl_tile_read(tile, op->inputs[2]) + key_at;
    const sherl_real *logsumexp = sherl_tile_read(tile, op->saved) + block->query_row * s->heads + block->head;
    const sherl_real *doutput = sherl_output_gradient(op, tile) + query_at;
    sherl_real *dquery = sherl_input_gradient(op, tile, 0), *dkey = sherl_input_gradient(op, tile, 1);
    sherl_real *dvalue = sherl_input_gradient(op, tile, 2);
    sherl_real *p = s->probabilities, *ds = s->scores;

    score(s, block, p);
    tile->kernels->softmax_recompute(p, 1, rows, keys, block->first_visible, logsumexp, s->heads);
    if (dquery != NULL || dkey != NULL || trains_biases) {
        /* o = dropout(p) v: dp = dropout(do v^T) */
        sherl_gemm(false, true, rows, keys, head_size, 1, doutput, s->channels, value, s->key_channels, 0, ds, keys);
        if (has_dropout(op)) drop(s, block, ds, ds);
        /* p = softmax(s): ds = p (dp - sum_j p_j dp_j) */
        tile->kernels->softmax_backward(p, ds, 1, rows, keys);
    }
    /* s = scale q k^T + bias: dbias += ds, dq += scale ds k, dk += scale ds^T q */
    if (trains_biases) add_to_dbiases(s, block, ds);
    if (dquery != NULL)
        sherl_gemm(false, false, rows, head_size, keys, scale, ds, keys, key, s->key_channels, 1, dquery + query_at,
                   s->channels);
    if (dkey != NULL)
        sherl_gemm(true, false, keys, head_size, rows, scale, ds, keys, query, s->channels, 1, dkey + key_at,
                   s->key_channels);
    /* o = dropout(p) v: dv += dropout(p)^T do */
    if (dvalue != NULL) {
        if (has_dropout(op)) drop(s, block, p, p);
        sherl_gemm(true, false, keys, head_size, rows, 1, p, keys, doutput, s->channels, 1, dvalue + key_at,
                   s->key_channels);
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
    for (size_t number = 0; number < tile->samples; number++) {
        const attention_sample s = find_sample(op, tile, number);
        sherl_real *dtable = s.biases ? sherl_op_parameter_gradient(op, tile, 0) : NULL;
        if (dtable) memset(s.dbiases, 0, s.heads * distances(&s) * sizeof *s.dbiases);
        run_blocks(&s, backward_block);
        if (dtable) sherl_gather_positions(op, s.dbiases, least_distance(&s), distances(&s), dtable);
    }
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
