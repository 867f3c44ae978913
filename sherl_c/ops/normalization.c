/* The norms over the channels of a row: layer norm, RMS norm, and division by the l2 norm. */
#include <math.h>

#include "op.h"

/* ---- Layer norm ---------------------------------------------------------------------------------------------------- */

/* y = (x - mean) / sqrt(variance + eps) * weight + bias, over the channels of each row; x, y: (rows, channels),
 * weight, bias (which may be absent): (1, channels), saved: (rows, 2) */
static sherl_status layer_norm_forward(const sherl_op *op, const sherl_tile *tile) {
    sherl_real *statistics = op->saved == SHERL_NONE ? NULL : sherl_tile_write(tile, op->saved);
    tile->kernels->layer_norm_forward(sherl_tile_read(tile, op->inputs[0]), sherl_op_parameter(op, tile, 0),
                                      sherl_op_parameter(op, tile, 1), op->settings.norm.eps,
                                      sherl_tile_write(tile, op->output), statistics, sherl_tile_rows(tile, op->output),
                                      sherl_tile_channels(tile, op->output));
    return SHERL_OK;
}

/* With n the normalized row and g = dy * weight: dx (+)= (g - mean(g) - n * mean(g n)) / sqrt(variance + eps);
 * dweight += column sums of dy * n; dbias += column sums of dy */
static sherl_status layer_norm_backward(const sherl_op *op, const sherl_tile *tile) {
    tile->kernels->layer_norm_backward(sherl_tile_read(tile, op->inputs[0]), sherl_op_parameter(op, tile, 0),
                                       sherl_tile_read(tile, op->saved), sherl_output_gradient(op, tile),
                                       sherl_input_gradient(op, tile, 0), sherl_op_parameter_gradient(op, tile, 0),
                                       sherl_op_parameter_gradient(op, tile, 1), sherl_tile_rows(tile, op->output),
                                       sherl_tile_channels(tile, op->output), op->accumulate[0]);
    return SHERL_OK;
}

static void norm_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)op;
    (void)trainable;
    reads->inputs[0] = true;
}

const sherl_op_type sherl_layer_norm_type = {
    .name = "layer_norm",
    .rows = SHERL_ROW_WISE,
    .forward_in_place = true,
    .backward_in_place = true,
    .recomputes = true,
    .forward = layer_norm_forward,
    .backward = layer_norm_backward,
    .backward_reads = norm_reads,
};

/* ---- RMS norm ------------------------------------------------------------------------------------------------------ */

/* y = x / sqrt(mean(x^2) + eps) * weight, over the channels of each row; x, y: (rows, channels), weight: (1, channels),
 * saved: (rows, 1) */
static sherl_status rms_norm_forward(const sherl_op *op, const sherl_tile *tile) {
    sherl_real *inverse_roots = op->saved == SHERL_NONE ? NULL : sherl_tile_write(tile, op->saved);
    tile->kernels->rms_norm_forward(sherl_tile_read(tile, op->inputs[0]), sherl_op_parameter(op, tile, 0),
                                    op->settings.norm.eps, sherl_tile_write(tile, op->output), inverse_roots,
                                    sherl_tile_rows(tile, op->output), sherl_tile_channels(tile, op->output));
    return SHERL_OK;
}

/* With r = 1 / sqrt(mean(x^2) + eps) and g = dy * weight: dx (+)= r g - r^3 x mean(g x); dweight += column sums of
 * dy * x r */
static sherl_status rms_norm_backward(const sherl_op *op, const sherl_tile *tile) {
    tile->kernels->rms_norm_backward(sherl_tile_read(tile, op->inputs[0]), sherl_op_parameter(op, tile, 0),
                                     sherl_tile_read(tile, op->saved), sherl_output_gradient(op, tile),
                                     sherl_input_gradient(op, tile, 0), sherl_op_parameter_gradient(op, tile, 0),
                                     sherl_tile_rows(tile, op->output), sherl_tile_channels(tile, op->output),
                                     op->accumulate[0]);
    return SHERL_OK;
}

const sherl_op_type sherl_rms_norm_type = {
    .name = "rms_norm",
    .rows = SHERL_ROW_WISE,
    .forward_in_place = true,
    .backward_in_place = true,
    .recomputes = true,
    .forward = rms_norm_forward,
    .backward = rms_norm_backward,
    .backward_reads = norm_reads,
};

/* ---- Division by the l2 norm --------------------------------------------------------------------------------------- */

/* y = x / (||x||_2 + eps) row by row, 0 where x is; x, y: (rows, channels) */
static sherl_status l2_normalize_forward(const sherl_op *op, const sherl_tile *tile) {
    const size_t rows = sherl_tile_rows(tile, op->output), channels = sherl_tile_channels(tile, op->output);
    const sherl_real *x = sherl_tile_read(tile, op->inputs[0]);
    sherl_real *y = sherl_tile_write(tile, op->output);
    for (size_t row = 0; row < rows; row++, x += channels, y += channels) {
        const double norm = sqrt(tile->kernels->sum_of_squares(x, channels));
        const sherl_real scale = norm == 0 ? 0 : (sherl_real)(1 / (norm + op->settings.norm.eps));
        for (size_t c = 0; c < channels; c++) y[c] = x[c] * scale;
    }
    return SHERL_OK;
}

/* With s = 1 / (||x|| + eps): dx (+)= s dy - (s^2 / ||x||) (x . dy) x; 0 where x is */
static sherl_status l2_normalize_backward(const sherl_op *op, const sherl_tile *tile) {
    const size_t rows = sherl_tile_rows(tile, op->output), channels = sherl_tile_channels(tile, op->output);
    const sherl_real *x = sherl_tile_read(tile, op->inputs[0]), *dy = sherl_output_gradient(op, tile);
    sherl_real *dx = sherl_input_gradient(op, tile, 0);
    if (dx == NULL) return SHERL_OK;
    for (size_t row = 0; row < rows; row++, x += channels, dy += channels, dx += channels) {
        const double norm = sqrt(tile->kernels->sum_of_squares(x, channels));
        const double scale = norm == 0 ? 0 : 1 / (norm + op->settings.norm.eps);
        const double along = norm == 0 ? 0 : scale * scale / norm * (double)tile->kernels->dot(x, dy, channels);
        for (size_t c = 0; c < channels; c++) {
            const sherl_real gradient = (sherl_real)(scale * (double)dy[c] - along * (double)x[c]);
            dx[c] = op->accumulate[0] ? dx[c] + gradient : gradient;
        }
    }
    return SHERL_OK;
}

const sherl_op_type sherl_l2_normalize_type = {
    .name = "l2_normalize",
    .rows = SHERL_ROW_WISE,
    .forward_in_place = true,
    .backward_in_place = true,
    .forward = l2_normalize_forward,
    .backward = l2_normalize_backward,
    .backward_reads = norm_reads,
};
