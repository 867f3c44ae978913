/* The activation op, and the product of an activation and a second value. */
#include "op.h"

/* Activations whose derivative the output tells. */
static bool reads_output(sherl_activation activation) {
    return activation == SHERL_RELU || activation == SHERL_SIGMOID || activation == SHERL_TANH;
}

/* y = activation(x); x, y: (rows, channels) */
static sherl_status activation_forward(const sherl_op *op, const sherl_tile *tile) {
    size_t count = sherl_tile_rows(tile, op->output) * sherl_tile_channels(tile, op->output);
    tile->kernels->activation_forward(op->settings.activation, sherl_tile_read(tile, op->inputs[0]),
                                      sherl_tile_write(tile, op->output), count);
    return SHERL_OK;
}

/* dx (+)= dy * activation'(x) */
static sherl_status activation_backward(const sherl_op *op, const sherl_tile *tile) {
    size_t count = sherl_tile_rows(tile, op->output) * sherl_tile_channels(tile, op->output);
    sherl_real *dx = sherl_input_gradient(op, tile, 0);
    if (dx == NULL) return SHERL_OK;
    tile->kernels->activation_backward(op->settings.activation, sherl_tile_read(tile, op->inputs[0]),
                                       sherl_tile_read(tile, op->output), sherl_output_gradient(op, tile), dx, count,
                                       op->accumulate[0]);
    return SHERL_OK;
}

static void activation_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)trainable;
    reads->output = reads_output(op->settings.activation);
    reads->inputs[0] = !reads->output && op->settings.activation != SHERL_IDENTITY;
}

const sherl_op_type sherl_activation_type = {
    .name = "activation",
    .rows = SHERL_ROW_WISE,
    .forward_in_place = true,
    .backward_in_place = true,
    .forward = activation_forward,
    .backward = activation_backward,
    .backward_reads = activation_reads,
};

/* ---- Gated ---------------------------------------------------------------------------------------------------------- */

/* y = activation(z) * x; z, x, y: (rows, channels) */
static sherl_status gated_forward(const sherl_op *op, const sherl_tile *tile) {
    size_t count = sherl_tile_rows(tile, op->output) * sherl_tile_channels(tile, op->output);
    tile->kernels->gate(op->settings.activation, sherl_tile_read(tile, op->inputs[0]),
                        sherl_tile_read(tile, op->inputs[1]), sherl_tile_write(tile, op->output), count, false);
    return SHERL_OK;
}

/* dx (+)= dy * activation(z); dz (+)= dy * x * activation'(z), maybe over dy, and hence last: z and x are two values. */
static sherl_status gated_backward(const sherl_op *op, const sherl_tile *tile) {
    size_t count = sherl_tile_rows(tile, op->output) * sherl_tile_channels(tile, op->output);
    const sherl_real *z = sherl_tile_read(tile, op->inputs[0]), *dy = sherl_output_gradient(op, tile);
    sherl_real *dz = sherl_input_gradient(op, tile, 0), *dx = sherl_input_gradient(op, tile, 1);
    if (dx) tile->kernels->gate(op->settings.activation, z, dy, dx, count, op->accumulate[1]);
    if (dz)
        tile->kernels->gate_slope(op->settings.activation, z, sherl_tile_read(tile, op->inputs[1]), dy, dz, count,
                                  op->accumulate[0]);
    return SHERL_OK;
}

static void gated_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)op, (void)trainable;
    reads->inputs[0] = reads->inputs[1] = true;
}

const sherl_op_type sherl_gated_type = {
    .name = "gated",
    .rows = SHERL_ROW_WISE,
    .forward_in_place = true,
    .backward_in_place = true,
    .forward = gated_forward,
    .backward = gated_backward,
    .backward_reads = gated_reads,
};
