/* Ops that combine two values of one shape, or a value and a row: sum, product, scale, gated residual; a learned factor;
 * channels side by side. */
#include <math.h>
#include <string.h>

#include "op.h"

static size_t output_size(const sherl_op *op, const sherl_tile *tile) {
    return sherl_tile_rows(tile, op->output) * sherl_tile_channels(tile, op->output);
}

/* d(input i) (+)= dy, where the input has a gradient */
static void pass_gradient(const sherl_op *op, const sherl_tile *tile, uint32_t i) {
    const sherl_real *dy = sherl_output_gradient(op, tile);
    sherl_real *dx = sherl_input_gradient(op, tile, i);
    if (dx == NULL) return;
    if (op->accumulate[i])
        tile->kernels->accumulate(dy, dx, output_size(op, tile));
    else if (dx != dy)
        memcpy(dx, dy, output_size(op, tile) * sizeof *dx);
}

/* ---- Sum ---------------------------------------------------------------------------------------------------------- */

/* y = a + b; a, b, y: (rows, channels) */
static sherl_status add_forward(const sherl_op *op, const sherl_tile *tile) {
    tile->kernels->add(sherl_tile_read(tile, op->inputs[0]), sherl_tile_read(tile, op->inputs[1]),
                       sherl_tile_write(tile, op->output), output_size(op, tile));
    return SHERL_OK;
}

/* da (+)= dy; db (+)= dy */
static sherl_status add_backward(const sherl_op *op, const sherl_tile *tile) {
    pass_gradient(op, tile, 0);
    pass_gradient(op, tile, 1);
    return SHERL_OK;
}

const sherl_op_type sherl_add_type = {
    .name = "add",
    .rows = SHERL_ROW_WISE,
    .forward_in_place = true,
    .backward_in_place = true,
    .forward = add_forward,
    .backward = add_backward,
};

/* ---- Product ------------------------------------------------------------------------------------------------------ */

/* y = a * b; a, b, y: (rows, channels) */
static sherl_status multiply_forward(const sherl_op *op, const sherl_tile *tile) {
    tile->kernels->multiply(sherl_tile_read(tile, op->inputs[0]), sherl_tile_read(tile, op->inputs[1]),
                            sherl_tile_write(tile, op->output), output_size(op, tile), false);
    return SHERL_OK;
}

/* da (+)= dy * b; db (+)= dy * a. Not in place: the second needs dy as it was. */
static sherl_status multiply_backward(const sherl_op *op, const sherl_tile *tile) {
    for (uint32_t i = 0; i < 2; i++) {
        sherl_real *dx = sherl_input_gradient(op, tile, i);
        if (dx == NULL) continue;
        tile->kernels->multiply(sherl_output_gradient(op, tile), sherl_tile_read(tile, op->inputs[1 - i]), dx,
                                output_size(op, tile), op->accumulate[i]);
    }
    return SHERL_OK;
}

static void multiply_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)op;
    (void)trainable;
    reads->inputs[0] = reads->inputs[1] = true;
}

const sherl_op_type sherl_multiply_type = {
    .name = "multiply",
    .rows = SHERL_ROW_WISE,
    .forward_in_place = true,
    .forward = multiply_forward,
    .backward = multiply_backward,
    .backward_reads = multiply_reads,
};

/* ---- Scale --------------------------------------------------------------------------------------------------------- */

/* y = x * scale, channel by channel; x, y: (rows, channels), scale: (1, channels) */
static sherl_status scale_channels_forward(const sherl_op *op, const sherl_tile *tile) {
    tile->kernels->scale_columns(sherl_tile_read(tile, op->inputs[0]), sherl_op_parameter(op, tile, 0),
                                 sherl_tile_write(tile, op->output), sherl_tile_rows(tile, op->output),
                                 sherl_tile_channels(tile, op->output), false);
    return SHERL_OK;
}

/* dscale += column sums of dy * x; dx (+)= dy * scale */
static sherl_status scale_channels_backward(const sherl_op *op, const sherl_tile *tile) {
    size_t rows = sherl_tile_rows(tile, op->output), channels = sherl_tile_channels(tile, op->output);
    const sherl_real *dy = sherl_output_gradient(op, tile), *x = sherl_tile_read(tile, op->inputs[0]);
    sherl_real *dscale = sherl_op_parameter_gradient(op, tile, 0), *dx = sherl_input_gradient(op, tile, 0);
    for (size_t row = 0; dscale && row < rows; row++)
        tile->kernels->multiply(dy + row * channels, x + row * channels, dscale, channels, true);
    if (dx) tile->kernels->scale_columns(dy, sherl_op_parameter(op, tile, 0), dx, rows, channels, op->accumulate[0]);
    return SHERL_OK;
}

static void scale_channels_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)op;
    reads->inputs[0] = trainable[0];
}

const sherl_op_type sherl_scale_channels_type = {
    .name = "scale_channels",
    .rows = SHERL_ROW_WISE,
    .forward_in_place = true,
    .backward_in_place = true,
    .forward = scale_channels_forward,
    .backward = scale_channels_backward,
    .backward_reads = scale_channels_reads,
};

/* ---- Gated residual ------------------------------------------------------------------------------------------------ */

/* tanh(gate / temperature) */
static double gate_opening(const sherl_op *op, const sherl_tile *tile) {
    return tanh((double)*sherl_op_parameter(op, tile, 0) / op->settings.gate.temperature);
}

/* y = x + tanh(gate / temperature) * last; x, last, y: (rows, channels); gate: (1, 1) */
static sherl_status gate_forward(const sherl_op *op, const sherl_tile *tile) {
    tile->kernels->add_scaled(sherl_tile_read(tile, op->inputs[0]), (sherl_real)gate_opening(op, tile),
                              sherl_tile_read(tile, op->inputs[1]), sherl_tile_write(tile, op->output),
                              output_size(op, tile));
    return SHERL_OK;
}

/* dgate += (1 - tanh^2) / temperature * sum(dy * last); dx (+)= dy; dlast (+)= tanh(gate / temperature) * dy */
static sherl_status gate_backward(const sherl_op *op, const sherl_tile *tile) {
    size_t count = output_size(op, tile);
    const sherl_real *dy = sherl_output_gradient(op, tile);
    double opening = gate_opening(op, tile);
    sherl_real *dgate = sherl_op_parameter_gradient(op, tile, 0);
    if (dgate != NULL)
        *dgate += (sherl_real)((1 - opening * opening) / op->settings.gate.temperature *
                               (double)tile->kernels->dot(dy, sherl_tile_read(tile, op->inputs[1]), count));
    pass_gradient(op, tile, 0);
    sherl_real *dlast = sherl_input_gradient(op, tile, 1);
    if (dlast == NULL) return SHERL_OK;
    if (!op->accumulate[1]) memset(dlast, 0, count * sizeof *dlast);
    tile->kernels->add_scaled(dlast, (sherl_real)opening, dy, dlast, count);
    return SHERL_OK;
}

static void gate_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)op;
    reads->inputs[1] = trainable[0];
}

const sherl_op_type sherl_gate_type = {
    .name = "gate",
    .rows = SHERL_ROW_WISE,
    .forward_in_place = true,
    .backward_in_place = true,
    .forward = gate_forward,
    .backward = gate_backward,
    .backward_reads = gate_reads,
};

/* ---- Learned factor ------------------------------------------------------------------------------------------------- */

static double factor_of(const sherl_op *op, const sherl_tile *tile) {
    return op->settings.amplify.initial * exp((double)*sherl_op_parameter(op, tile, 0));
}

/* y = initial exp(logarithm) x; x, y: (rows, channels); logarithm: (1, 1) */
static sherl_status amplify_forward(const sherl_op *op, const sherl_tile *tile) {
    const sherl_real *x = sherl_tile_read(tile, op->inputs[0]), scale = (sherl_real)factor_of(op, tile);
    sherl_real *y = sherl_tile_write(tile, op->output);
    const size_t count = output_size(op, tile);
    for (size_t i = 0; i < count; i++) y[i] = scale * x[i];
    return SHERL_OK;
}

/* With s = initial exp(logarithm): dlogarithm += s sum(dy * x); dx (+)= s dy */
static sherl_status amplify_backward(const sherl_op *op, const sherl_tile *tile) {
    const sherl_real *dy = sherl_output_gradient(op, tile);
    const double scale = factor_of(op, tile);
    const size_t count = output_size(op, tile);
    sherl_real *dlogarithm = sherl_op_parameter_gradient(op, tile, 0), *dx = sherl_input_gradient(op, tile, 0);
    if (dlogarithm != NULL)
        *dlogarithm +=
            (sherl_real)(scale * (double)tile->kernels->dot(dy, sherl_tile_read(tile, op->inputs[0]), count));
    if (dx == NULL) return SHERL_OK;
    for (size_t i = 0; i < count; i++) {
        const sherl_real gradient = (sherl_real)scale * dy[i];
        dx[i] = op->accumulate[0] ? dx[i] + gradient : gradient;
    }
    return SHERL_OK;
}

static void amplify_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)op;
    reads->inputs[0] = trainable[0];
}

const sherl_op_type sherl_amplify_type = {
    .name = "amplify",
    .rows = SHERL_ROW_WISE,
    .forward_in_place = true,
    .backward_in_place = true,
    .forward = amplify_forward,
    .backward = amplify_backward,
    .backward_reads = amplify_reads,
};

/* ---- Channels side by side ----------------------------------------------------------------------------------------- */

/* y = [x_0, x_1, …]; x_i: (rows, channels_i), y: (rows, sum of channels_i) */
static sherl_status concatenate_forward(const sherl_op *op, const sherl_tile *tile) {
    const size_t rows = sherl_tile_rows(tile, op->output), width = sherl_tile_channels(tile, op->output);
    sherl_real *y = sherl_tile_write(tile, op->output);
    for (uint32_t i = 0; i < op->input_count; i++) {
        const size_t channels = sherl_tile_channels(tile, op->inputs[i]);
        const sherl_real *x = sherl_tile_read(tile, op->inputs[i]);
        for (size_t row = 0; row < rows; row++) memcpy(y + row * width, x + row * channels, channels * sizeof *y);
        y += channels;
    }
    return SHERL_OK;
}

/* dx_i (+)= its channels of dy */
static sherl_status concatenate_backward(const sherl_op *op, const sherl_tile *tile) {
    const size_t rows = sherl_tile_rows(tile, op->output), width = sherl_tile_channels(tile, op->output);
    const sherl_real *dy = sherl_output_gradient(op, tile);
    for (uint32_t i = 0; i < op->input_count; i++) {
        const size_t channels = sherl_tile_channels(tile, op->inputs[i]);
        sherl_real *dx = sherl_input_gradient(op, tile, i);
        for (size_t row = 0; row < rows && dx != NULL; row++) {
            if (op->accumulate[i])
                tile->kernels->accumulate(dy + row * width, dx + row * channels, channels);
            else
                memcpy(dx + row * channels, dy + row * width, channels * sizeof *dx);
        }
        dy += channels;
    }
    return SHERL_OK;
}

const sherl_op_type sherl_concatenate_type = {
    .name = "concatenate",
    .rows = SHERL_ROW_WISE,
    .forward = concatenate_forward,
    .backward = concatenate_backward,
};
