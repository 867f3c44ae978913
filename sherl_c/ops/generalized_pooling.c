/* Generalized pooling: one row a sample, each channel the weighted sum of its values sorted over the sample's rows; and
 * the encoding of ranks that the weights are computed from. */
#include <math.h>
#include <string.h>

#include "op.h"

/* ---- Rank encoding: row k of a sample of n rows tells the rank k from above and n - 1 - k from below -------------- */

/* y[k] = {sin(k w_f), cos(k w_f), sin((n - 1 - k) w_f), cos((n - 1 - k) w_f)} for f = 0 … channels / 4 - 1,
 * w_f = 10000^(-4 f / channels); the input gives the row space alone; y: (rows, channels) */
static sherl_status rank_encoding_forward(const sherl_op *op, const sherl_tile *tile) {
    const sherl_space space = tile->value_spaces[op->output];
    const size_t channels = sherl_tile_channels(tile, op->output);
    sherl_real *y = sherl_tile_write(tile, op->output);
    for (size_t sample = 0; sample < tile->samples; sample++) {
        const size_t rows = sherl_tile_segment(tile, space, sample + 1) - sherl_tile_segment(tile, space, sample);
        for (size_t k = 0; k < rows; k++)
            for (size_t c = 0; c < channels; c += 4, y += 4) {
                const double frequency = pow(10000, -(double)c / (double)channels);
                const double above = (double)k * frequency, below = (double)(rows - 1 - k) * frequency;
                y[0] = (sherl_real)sin(above);
                y[1] = (sherl_real)cos(above);
                y[2] = (sherl_real)sin(below);
                y[3] = (sherl_real)cos(below);
            }
    }
    return SHERL_OK;
}

const sherl_op_type sherl_rank_encoding_type = {.name = "rank_encoding",
                                                .rows = SHERL_MIXES_ROWS,
                                                .forward = rank_encoding_forward};

/* ---- Sorted pooling ------------------------------------------------------------------------------------------------ */

/* What one sample needs: its rows, the weights by rank, one channel of its rows, and room to sort. */
typedef struct sorting {
    const sherl_real *x; /* (rows, channels) */
    size_t rows, channels;
    sherl_real *shares;      /* softmax of the scores: (rows) */
    sherl_real *column;      /* (rows) */
    int32_t *order, *merged; /* (rows) each */
} sorting;

static sorting begin_sample(const sherl_op *op, const sherl_tile *tile, size_t longest, size_t sample) {
    const sherl_space space = tile->value_spaces[op->inputs[0]];
    const size_t first = sherl_tile_segment(tile, space, sample), channels = sherl_tile_channels(tile, op->inputs[0]);
    const size_t rows = sherl_tile_segment(tile, space, sample + 1) - first;
    sherl_real *scratch = tile->scratch;
    sorting s = {.x = sherl_tile_read(tile, op->inputs[0]) + first * channels,
                 .rows = rows,
                 .channels = channels,
                 .shares = scratch,
                 .column = scratch + longest,
                 .order = (int32_t *)(scratch + 2 * longest)};
    s.merged = s.order + longest;
    memcpy(s.shares, sherl_tile_read(tile, op->inputs[1]) + first, rows * sizeof *s.shares);
    tile->kernels->softmax_forward(s.shares, 1, 1, rows, 0, NULL, 0);
    return s;
}

static size_t longest_segment(const sherl_op *op, const sherl_tile *tile) {
    size_t longest = 0;
    for (size_t sample = 0; sample < tile->samples; sample++) {
        const sherl_space space = tile->value_spaces[op->inputs[0]];
        const size_t rows = sherl_tile_segment(tile, space, sample + 1) - sherl_tile_segment(tile, space, sample);
        if (rows > longest) longest = rows;
    }
    return longest;
}

/* Does a row with value a stand before an earlier one with value b: only if it is larger. A NaN is larger than numbers. */
static bool precedes(sherl_real a, sherl_real b) { return a > b || (a != a && b == b); }

/* Sorts the rows of a column by value, the largest first and equals by row: merges runs of 1, 2, 4 … rows. */
static void sort_column(sorting *s) {
    for (size_t i = 0; i < s->rows; i++) s->order[i] = (int32_t)i;
    for (size_t width = 1; width < s->rows; width *= 2) {
        for (size_t start = 0; start < s->rows; start += 2 * width) {
            const size_t middle = start + width < s->rows ? start + width : s->rows;
            const size_t end = start + 2 * width < s->rows ? start + 2 * width : s->rows;
            size_t left = start, right = middle;
            for (size_t i = start; i < end; i++) {
                const bool from_right =
                    right < end && (left == middle || precedes(s->column[s->order[right]], s->column[s->order[left]]));
                s->merged[i] = s->order[from_right ? right++ : left++];
            }
        }
        int32_t *swapped = s->order;
        s->order = s->merged;
        s->merged = swapped;
    }
}

/* y[c] = sum_k p_k x[order[k][c]][c], p = softmax(scores) over the rows of the sample, order[.][c] the rows by falling
 * x[.][c]; x: (rows, channels), scores: (rows, 1), saved: order (rows, channels), y: (samples, channels) */
static sherl_status sorted_pool_forward(const sherl_op *op, const sherl_tile *tile) {
    const size_t channels = sherl_tile_channels(tile, op->output), longest = longest_segment(op, tile);
    sherl_real *y = sherl_tile_write(tile, op->output);
    int32_t *order = sherl_tile_integers(tile, op->saved);
    for (size_t sample = 0; sample < tile->samples; sample++, y += channels) {
        sorting s = begin_sample(op, tile, longest, sample);
        for (size_t c = 0; c < channels; c++) {
            for (size_t k = 0; k < s.rows; k++) s.column[k] = s.x[k * channels + c];
            sort_column(&s);
            double sum = 0;
            for (size_t k = 0; k < s.rows; k++) {
                order[k * channels + c] = s.order[k];
                sum += (double)s.shares[k] * (double)s.column[s.order[k]];
            }
            y[c] = (sherl_real)sum;
        }
        order += s.rows * channels;
    }
    return SHERL_OK;
}

/* dx[order[k][c]][c] += p_k dy[c]; with g_k = sum_c dy[c] x[order[k][c]][c]: dscores[k] += p_k (g_k - sum_j p_j g_j) */
static sherl_status sorted_pool_backward(const sherl_op *op, const sherl_tile *tile) {
    const size_t channels = sherl_tile_channels(tile, op->output), longest = longest_segment(op, tile);
    const sherl_real *dy = sherl_output_gradient(op, tile);
    const int32_t *order = sherl_tile_integers(tile, op->saved);
    sherl_real *dx = sherl_input_gradient(op, tile, 0), *dscores = sherl_input_gradient(op, tile, 1);
    for (size_t sample = 0; sample < tile->samples; sample++, dy += channels) {
        sorting s = begin_sample(op, tile, longest, sample);
        sherl_real *of_shares = s.column;
        if (dx != NULL && !op->accumulate[0]) memset(dx, 0, s.rows * channels * sizeof *dx);
        for (size_t k = 0; k < s.rows; k++, order += channels) {
            double sum = 0;
            for (size_t c = 0; c < channels; c++) {
                const size_t place = (size_t)order[c] * channels + c;
                sum += (double)dy[c] * (double)s.x[place];
                if (dx != NULL) dx[place] += s.shares[k] * dy[c];
            }
            of_shares[k] = (sherl_real)sum;
        }
        if (dx != NULL) dx += s.rows * channels;
        if (dscores == NULL) continue;
        if (!op->accumulate[1]) memset(dscores, 0, s.rows * sizeof *dscores);
        tile->kernels->softmax_backward(s.shares, of_shares, 1, 1, s.rows);
        tile->kernels->accumulate(of_shares, dscores, s.rows);
        dscores += s.rows;
    }
    return SHERL_OK;
}

static void sorted_pool_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)op, (void)trainable;
    reads->inputs[0] = reads->inputs[1] = true;
}

/* Two reals and two integers for each row of the longest sample. */
static bool sorted_pool_scratch_bytes(const sherl_op *op, const sherl_limits *limits, size_t *bytes) {
    return sherl_multiply_sizes(limits->longest_segment[limits->value_spaces[op->inputs[0]]],
                                2 * (sizeof(sherl_real) + sizeof(int32_t)), bytes);
}

const sherl_op_type sherl_sorted_pool_type = {.name = "sorted_pool",
                                              .rows = SHERL_MIXES_ROWS,
                                              .forward = sorted_pool_forward,
                                              .backward = sorted_pool_backward,
                                              .backward_reads = sorted_pool_reads,
                                              .scratch_bytes = sorted_pool_scratch_bytes};
