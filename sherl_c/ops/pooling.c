/* Pooling: one row a sample out of the rows of its segment; a selected one, the mean, the maximum. */
#include <string.h>

#include "op.h"

/* The rows of one sample in the input, and their gradient. */
typedef struct segment {
    const sherl_real *x; /* (rows, channels) */
    sherl_real *dx;      /* the same, or NULL */
    size_t rows, channels;
} segment;

static segment find_segment(const sherl_op *op, const sherl_tile *tile, size_t sample) {
    const sherl_value input = op->inputs[0];
    const sherl_space space = tile->value_spaces[input];
    const size_t first = sherl_tile_segment(tile, space, sample), channels = sherl_tile_channels(tile, input);
    sherl_real *dx = sherl_input_gradient(op, tile, 0);
    return (segment){.x = sherl_tile_read(tile, input) + first * channels,
                     .dx = dx == NULL ? NULL : dx + first * channels,
                     .rows = sherl_tile_segment(tile, space, sample + 1) - first,
                     .channels = channels};
}

/* y = x[position]; y: (samples, channels) */
static sherl_status select_forward(const sherl_op *op, const sherl_tile *tile) {
    sherl_real *y = sherl_tile_write(tile, op->output);
    for (size_t sample = 0; sample < tile->samples; sample++) {
        const segment s = find_segment(op, tile, sample);
        const size_t at = sherl_tile_position(op, tile, sample) * s.channels;
        memcpy(y + sample * s.channels, s.x + at, s.channels * sizeof *y);
    }
    return SHERL_OK;
}

static sherl_status select_backward(const sherl_op *op, const sherl_tile *tile) {
    const sherl_real *dy = sherl_output_gradient(op, tile);
    if (sherl_input_gradient(op, tile, 0) == NULL) return SHERL_OK;
    for (size_t sample = 0; sample < tile->samples; sample++) {
        const segment s = find_segment(op, tile, sample);
        if (!op->accumulate[0]) memset(s.dx, 0, s.rows * s.channels * sizeof *s.dx);
        /* y = x[position]: dx[position] += dy */
        tile->kernels->accumulate(dy + sample * s.channels, s.dx + sherl_tile_position(op, tile, sample) * s.channels,
                                  s.channels);
    }
    return SHERL_OK;
}

/* y = sum_r x[r] / rows */
static sherl_status mean_forward(const sherl_op *op, const sherl_tile *tile) {
    sherl_real *y = sherl_tile_write(tile, op->output);
    for (size_t sample = 0; sample < tile->samples; sample++, y += sherl_tile_channels(tile, op->output)) {
        const segment s = find_segment(op, tile, sample);
        const sherl_real share = 1 / (sherl_real)s.rows;
        memset(y, 0, s.channels * sizeof *y);
        tile->kernels->add_column_sums(s.x, y, s.rows, s.channels);
        for (size_t c = 0; c < s.channels; c++) y[c] *= share;
    }
    return SHERL_OK;
}

static sherl_status mean_backward(const sherl_op *op, const sherl_tile *tile) {
    const sherl_real *dy = sherl_output_gradient(op, tile);
    if (sherl_input_gradient(op, tile, 0) == NULL) return SHERL_OK;
    for (size_t sample = 0; sample < tile->samples; sample++, dy += sherl_tile_channels(tile, op->output)) {
        const segment s = find_segment(op, tile, sample);
        const sherl_real share = 1 / (sherl_real)s.rows;
        if (!op->accumulate[0]) memset(s.dx, 0, s.rows * s.channels * sizeof *s.dx);
        /* y = sum_r x[r] / rows: dx[r] += dy / rows */
        for (size_t r = 0; r < s.rows; r++) {
            sherl_real *dx = s.dx + r * s.channels;
            tile->kernels->add_scaled(dx, share, dy, dx, s.channels);
        }
    }
    return SHERL_OK;
}

/* y[c] = max_r x[r][c]; the saved value keeps the row, the first one of equals; a NaN wins over numbers */
static sherl_status max_forward(const sherl_op *op, const sherl_tile *tile) {
    const size_t channels = sherl_tile_channels(tile, op->output);
    sherl_real *y = sherl_tile_write(tile, op->output);
    int32_t *row_of_maximum = sherl_tile_integers(tile, op->saved);
    for (size_t sample = 0; sample < tile->samples; sample++, y += channels, row_of_maximum += channels) {
        const segment s = find_segment(op, tile, sample);
        memcpy(y, s.x, channels * sizeof *y);
        memset(row_of_maximum, 0, channels * sizeof *row_of_maximum);
        for (size_t r = 1; r < s.rows; r++) {
            const sherl_real *x = s.x + r * channels;
            for (size_t c = 0; c < channels; c++) {
                const bool larger = x[c] > y[c] || (x[c] != x[c] && y[c] == y[c]);
                row_of_maximum[c] = larger ? (int32_t)r : row_of_maximum[c];
                y[c] = larger ? x[c] : y[c];
            }
        }
    }
    return SHERL_OK;
}

static sherl_status max_backward(const sherl_op *op, const sherl_tile *tile) {
    const size_t channels = sherl_tile_channels(tile, op->output);
    const sherl_real *dy = sherl_output_gradient(op, tile);
    const int32_t *row_of_maximum = sherl_tile_integers(tile, op->saved);
    if (sherl_input_gradient(op, tile, 0) == NULL) return SHERL_OK;
    for (size_t sample = 0; sample < tile->samples; sample++, dy += channels, row_of_maximum += channels) {
        const segment s = find_segment(op, tile, sample);
        if (!op->accumulate[0]) memset(s.dx, 0, s.rows * channels * sizeof *s.dx);
        /* y[c] = x[row_of_maximum[c]][c]: dx[row_of_maximum[c]][c] += dy[c] */
        for (size_t c = 0; c < channels; c++) s.dx[(size_t)row_of_maximum[c] * channels + c] += dy[c];
    }
    return SHERL_OK;
}

const sherl_op_type sherl_select_type = {.name = "select",
                                         .rows = SHERL_MIXES_ROWS,
                                         .forward = select_forward,
                                         .backward = select_backward};
const sherl_op_type sherl_mean_type = {.name = "pool_mean",
                                       .rows = SHERL_MIXES_ROWS,
                                       .forward = mean_forward,
                                       .backward = mean_backward};
const sherl_op_type sherl_max_type = {.name = "pool_max",
                                      .rows = SHERL_MIXES_ROWS,
                                      .forward = max_forward,
                                      .backward = max_backward};
