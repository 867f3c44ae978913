/* The activation op. */
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
    .name = "activation", .rows = SHERL_ROW_WISE, .forward_in_place = true, .backward_in_place = true,
    .forward = activation_forward, .backward = activation_backward, .backward_reads = activation_reads,
};
