/* Attention of one query a sample over keys and values that frozen linear maps make of one matrix x, by associativity:
 * q . (W_k x_t + b_k) = (W_k^T q) . x_t + q . b_k, where the last term is the same for all t and drops out of the softmax,
 * and sum_t p_t (W_v x_t + b_v) = W_v (sum_t p_t x_t) + b_v sum_t p_t. So no key and no value is ever computed.
 * Parameters: W_k, W_v, b_v, and the biases by bucket where relative positions tell. */
#include <string.h>

#include "op.h"
#include "product.h"
#include "relative_positions.h"

/* Sizes of the op on a tile. */
typedef struct sizes {
    size_t samples, heads, head_size;
    size_t inner;    /* heads * head_size: channels of query and output */
    size_t channels; /* of x */
    size_t wide;     /* heads * channels: what one sample's mapped query or context takes */
    size_t saved;    /* channels of the saved value: the mapped queries, then heads logsumexps */
} sizes;

static sizes find_sizes(const sherl_op *op, const sherl_tile *tile) {
    sizes s = {.samples = tile->samples, .heads = op->settings.attention.heads};
    s.inner = sherl_tile_channels(tile, op->output);
    s.head_size = s.inner / s.heads;
    s.channels = sherl_tile_channels(tile, op->inputs[1]);
    s.wide = s.heads * s.channels;
    s.saved = s.wide + s.heads;
    return s;
}

/* One sample's rows of x, and how many of them its query sees. */
typedef struct segment { size_t first_row, rows, visible; } segment;

static segment find_segment(const sherl_op *op, const sherl_tile *tile, size_t sample) {
    sherl_space space = tile->value_spaces[op->inputs[1]];
    size_t first = sherl_tile_segment(tile, space, sample), rows = sherl_tile_segment(tile, space, sample + 1) - first;
    /* With a causal mask a query sees up to its own position, which in cross-attention may lie behind the last row. */
    size_t seen = sherl_tile_position(op, tile, sample) + 1;
    return (segment){.first_row = first,
                     .rows = rows,
                     .visible = op->settings.attention.causal && seen < rows ? seen : rows};
}

/* The first row of W_k and W_v, and entry of b_v, of the head of keys and values that a head of queries shares. */
static size_t key_row(const sherl_op *op, const sizes *s, size_t head) {
    return head / (s->heads / op->settings.attention.key_heads) * s->head_size;
}

static bool has_dropout(const sherl_op *op) { return op->settings.attention.dropout > 0; }

/* dropped = dropout(x), (heads, visible); the same draw as that of the plain attention op. */
static void drop(const sherl_op *op, const sherl_tile *tile, size_t sample, size_t visible, const sherl_real *x,
                 sherl_real *dropped) {
    sherl_row_key key = {.sample = (uint32_t)(tile->first_sample + sample),
                         .position = (uint32_t)sherl_tile_position(op, tile, sample)};
    for (size_t head = 0; head < op->settings.attention.heads; head++)
        tile->kernels->dropout_row(tile->random_key, op->stream + (uint32_t)head, key, op->settings.attention.dropout,
                                   x + head * visible, dropped + head * visible, visible, false);
}

/* One call of the op, whose heads, and then whose samples, are dealt to the threads where it has them to itself. */
typedef struct call {
    const sherl_op *op;
    const sherl_tile *tile;
    sizes s;
    sherl_real *context; /* (samples, heads, channels): sum_t p_t x_t, or its gradient */
    sherl_real *scratch; /* two matrices (heads, longest segment) for each part of the samples */
    size_t part_scratch; /* reals of it */
} call;

enum { PARTS = 8 /* of the samples: fixed, so that scratch and bits do not depend on the threads */ };

static call begin(const sherl_op *op, const sherl_tile *tile) {
    call c = {.op = op, .tile = tile, .s = find_sizes(op, tile), .context = tile->scratch};
    c.scratch = c.context + c.s.samples * c.s.wide;
    size_t longest = 0;
    for (size_t sample = 0; sample < c.s.samples; sample++) {
        size_t visible = find_segment(op, tile, sample).visible;
        if (visible > longest) longest = visible;
    }
    c.part_scratch = 2 * c.s.heads * longest;
    return c;
}

/* Runs `work` on every sample, with scratch of its own. */
typedef struct sample_run {
    const call *c;
    void (*work)(const call *c, size_t sample, sherl_real *scratch);
} sample_run;

static void run_samples(void *state, size_t part, size_t worker) {
    const sample_run *run = state;
    const call *c = run->c;
    (void)worker;
    for (size_t sample = part; sample < c->s.samples; sample += PARTS)
        run->work(c, sample, c->scratch + part * c->part_scratch);
}

static void for_each_sample(const call *c, void (*work)(const call *c, size_t sample, sherl_real *scratch)) {
    sample_run run = {.c = c, .work = work};
    sherl_tile_spread(c->tile, PARTS, run_samples, &run);
}

/* s_ht = u_h . x_t; u: (heads, channels), x: (visible, channels), scores: (heads, visible) */
static void multiply_rows(const call *c, const sherl_real *u, const sherl_real *x, size_t visible, sherl_real *scores) {
    const sizes *s = &c->s;
    sherl_product_transposed_b(c->tile->kernels, (sherl_matrix){u, s->channels}, (sherl_matrix){x, s->channels},
                               (sherl_product_sizes){.m = s->heads, .n = visible, .k = s->channels}, scores, visible,
                               false, NULL);
}

/* s_ht = u_h . x_t, to be multiplied by the number that is returned; where positions tell, scale u_h . x_t + bias_ht and
 * 1. `biases` is room for a matrix like scores. */
static double score(const call *c, size_t sample, const sherl_real *u, const sherl_real *x, size_t visible,
                    sherl_real *scores, sherl_real *biases) {
    const double scale = c->op->settings.attention.scale;
    const sherl_real *table = sherl_op_parameter(c->op, c->tile, 3);
    multiply_rows(c, u, x, visible, scores);
    if (!table) return scale;
    const ptrdiff_t least_distance = -(ptrdiff_t)sherl_tile_position(c->op, c->tile, sample);
    sherl_spread_positions(c->op, table, least_distance, visible, biases);
    c->tile->kernels->add_scaled(biases, (sherl_real)scale, scores, scores, c->s.heads * visible);
    return 1;
}

/* u_h = W_k,h^T q_h for all samples; q: (samples, inner), W_k: (inner, channels), u: (samples, heads, channels) */
static void map_query(void *state, size_t head, size_t worker) {
    const call *c = state;
    const sizes *s = &c->s;
    (void)worker;
    const sherl_real *query = sherl_tile_read(c->tile, c->op->inputs[0]),
                     *weight = sherl_op_parameter(c->op, c->tile, 0);
    sherl_product(c->tile->kernels, (sherl_matrix){query + head * s->head_size, s->inner},
                  (sherl_matrix){weight + key_row(c->op, s, head) * s->channels, s->channels},
                  (sherl_product_sizes){.m = s->samples, .n = s->channels, .k = s->head_size},
                  sherl_tile_write(c->tile, c->op->saved) + head * s->channels, s->saved, false);
}

/* p = dropout(softmax(scale u x^T + bias)); c_h = sum_t p_ht x_t; o_h starts as b_v,h sum_t p_ht */
static void attend(const call *c, size_t sample, sherl_real *p) {
    const sizes *s = &c->s;
    segment segment = find_segment(c->op, c->tile, sample);
    const sherl_real *x = sherl_tile_read(c->tile, c->op->inputs[1]) + segment.first_row * s->channels;
    const sherl_real *bias = sherl_op_parameter(c->op, c->tile, 2);
    sherl_real *u = sherl_tile_write(c->tile, c->op->saved) + sample * s->saved;
    sherl_real *output = sherl_tile_write(c->tile, c->op->output) + sample * s->inner;
    double scale = score(c, sample, u, x, segment.visible, p, p + s->heads * segment.visible);
    c->tile->kernels->softmax_forward(p, scale, s->heads, segment.visible, 0, u + s->wide, 1);
    if (has_dropout(c->op)) drop(c->op, c->tile, sample, segment.visible, p, p);
    sherl_product(c->tile->kernels, (sherl_matrix){p, segment.visible}, (sherl_matrix){x, s->channels},
                  (sherl_product_sizes){.m = s->heads, .n = s->channels, .k = segment.visible},
                  c->context + sample * s->wide, s->channels, false);
    for (size_t head = 0; head < s->heads; head++) {
        sherl_real total = 0; /* 1 without dropout */
        for (size_t t = 0; t < segment.visible; t++) total += p[head * segment.visible + t];
        for (size_t i = 0; i < s->head_size; i++)
            output[head * s->head_size + i] = bias ? total * bias[key_row(c->op, s, head) + i] : 0;
    }
}

/* o_h += W_v,h c_h; c: (samples, heads, channels), W_v: (inner, channels), o: (samples, inner) */
static void map_context(void *state, size_t head, size_t worker) {
    const call *c = state;
    const sizes *s = &c->s;
    (void)worker;
    const sherl_real *weight = sherl_op_parameter(c->op, c->tile, 1) + key_row(c->op, s, head) * s->channels;
    sherl_product_transposed_b(c->tile->kernels, (sherl_matrix){c->context + head * s->channels, s->wide},
                               (sherl_matrix){weight, s->channels},
                               (sherl_product_sizes){.m = s->samples, .n = s->head_size, .k = s->channels},
                               sherl_tile_write(c->tile, c->op->output) + head * s->head_size, s->inner, true, NULL);
}

static sherl_status single_query_forward(const sherl_op *op, const sherl_tile *tile) {
    call c = begin(op, tile);
    sherl_tile_spread(tile, c.s.heads, map_query, &c);
    for_each_sample(&c, attend);
    sherl_tile_spread(tile, c.s.heads, map_context, &c);
    return SHERL_OK;
}

/* dc_h = W_v,h^T do_h for all samples */
static void unmap_context(void *state, size_t head, size_t worker) {
    const call *c = state;
    const sizes *s = &c->s;
    (void)worker;
    const sherl_real *weight = sherl_op_parameter(c->op, c->tile, 1) + key_row(c->op, s, head) * s->channels;
    const sherl_real *doutput = sherl_output_gradient(c->op, c->tile) + head * s->head_size;
    sherl_product(c->tile->kernels, (sherl_matrix){doutput, s->inner}, (sherl_matrix){weight, s->channels},
                  (sherl_product_sizes){.m = s->samples, .n = s->channels, .k = s->head_size},
                  c->context + head * s->channels, s->wide, false);
}

/* dp_ht = dropout(dc_h . x_t + b_v,h . do_h). Without dropout the term of the bias is the same for all t, and the softmax
 * takes it out again. */
static void differentiate_probabilities(const call *c, size_t sample, const sherl_real *x, size_t visible,
                                        const sherl_real *dcontext, sherl_real *dp) {
    const sizes *s = &c->s;
    const sherl_real *bias = sherl_op_parameter(c->op, c->tile, 2);
    const sherl_real *doutput = sherl_output_gradient(c->op, c->tile) + sample * s->inner;
    multiply_rows(c, dcontext, x, visible, dp);
    if (!has_dropout(c->op)) return;
    for (size_t head = 0; head < s->heads && bias; head++) {
        sherl_real through_bias =
            c->tile->kernels->dot(bias + key_row(c->op, s, head), doutput + head * s->head_size, s->head_size);
        for (size_t t = 0; t < visible; t++) dp[head * visible + t] += through_bias;
    }
    drop(c->op, c->tile, sample, visible, dp, dp);
}

/* Times scale, ds = p (dp - sum_t p_t dp_t); dx_t (+)= sum_h dropout(p)_ht dc_h + ds_ht u_h; du_h = sum_t ds_ht x_t, over dc */
static void attend_backward(const call *c, size_t sample, sherl_real *scratch) {
    const sizes *s = &c->s;
    const sherl_op *op = c->op;
    const sherl_tile *tile = c->tile;
    segment segment = find_segment(op, tile, sample);
    size_t visible = segment.visible, at = segment.first_row * s->channels;
    const sherl_real *x = sherl_tile_read(tile, op->inputs[1]) + at;
    const sherl_real *u = sherl_tile_read(tile, op->saved) + sample * s->saved;
    sherl_real *dcontext = c->context + sample * s->wide, *p = scratch, *ds = p + s->heads * visible;
    double scale = score(c, sample, u, x, visible, p, ds);
    tile->kernels->softmax_recompute(p, scale, s->heads, visible, 0, u + s->wide, 1);
    differentiate_probabilities(c, sample, x, visible, dcontext, ds);
    tile->kernels->softmax_backward(p, ds, op->settings.attention.scale, s->heads, visible);
    sherl_real *dx = sherl_input_gradient(op, tile, 1);
    if (dx) {
        if (has_dropout(op)) drop(op, tile, sample, visible, p, p);
        if (!op->accumulate[1]) memset(dx + at, 0, segment.rows * s->channels * sizeof *dx);
        sherl_product_sizes sizes = {.m = visible, .n = s->channels, .k = s->heads};
        sherl_add_product_transposed_a(tile->kernels, (sherl_matrix){p, visible}, (sherl_matrix){dcontext, s->channels},
                                       sizes, dx + at, s->channels);
        sherl_add_product_transposed_a(tile->kernels, (sherl_matrix){ds, visible}, (sherl_matrix){u, s->channels},
                                       sizes, dx + at, s->channels);
    }
    sherl_product(tile->kernels, (sherl_matrix){ds, visible}, (sherl_matrix){x, s->channels},
                  (sherl_product_sizes){.m = s->heads, .n = s->channels, .k = visible}, dcontext, s->channels, false);
}

/* dq_h (+)= W_k,h du_h */
static void unmap_query(void *state, size_t head, size_t worker) {
    const call *c = state;
    const sizes *s = &c->s;
    (void)worker;
    const sherl_real *weight = sherl_op_parameter(c->op, c->tile, 0) + key_row(c->op, s, head) * s->channels;
    sherl_product_transposed_b(c->tile->kernels, (sherl_matrix){c->context + head * s->channels, s->wide},
                               (sherl_matrix){weight, s->channels},
                               (sherl_product_sizes){.m = s->samples, .n = s->head_size, .k = s->channels},
                               sherl_input_gradient(c->op, c->tile, 0) + head * s->head_size, s->inner,
                               c->op->accumulate[0], NULL);
}

static sherl_status single_query_backward(const sherl_op *op, const sherl_tile *tile) {
    call c = begin(op, tile);
    sherl_tile_spread(tile, c.s.heads, unmap_context, &c);
    for_each_sample(&c, attend_backward);
    if (sherl_input_gradient(op, tile, 0)) sherl_tile_spread(tile, c.s.heads, unmap_query, &c);
    return SHERL_OK;
}

static void single_query_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)op, (void)trainable;
    reads->inputs[1] = true;
}

/* A context for each sample, and for each part two matrices (heads, longest segment). */
static bool single_query_scratch(const sherl_op *op, const sherl_limits *limits, size_t *bytes) {
    size_t heads = op->settings.attention.heads, rows;
    size_t channels = limits->value_channels[op->inputs[1]];
    size_t longest = limits->longest_segment[limits->value_spaces[op->inputs[1]]];
    return sherl_multiply_sizes(limits->samples, channels, bytes) && sherl_multiply_sizes(longest, 2 * PARTS, &rows) &&
           sherl_add_sizes(*bytes, rows, bytes) && sherl_multiply_sizes(*bytes, heads, bytes) &&
           sherl_multiply_sizes(*bytes, sizeof(sherl_real), bytes);
}

const sherl_op_type sherl_single_query_attention_type = {
    .name = "single_query_attention",
    .rows = SHERL_MIXES_ROWS,
    .aligned_inputs = 1,
    .spreads = true,
    .forward = single_query_forward,
    .backward = single_query_backward,
    .backward_reads = single_query_reads,
    .scratch_bytes = single_query_scratch,
};
