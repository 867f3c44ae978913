/* The linear op: a matrix product, a bias, and an activation whose derivative the output tells. */
#include "op.h"

#include "../blas/blas.h"

/* y = activation(x W^T + b); x: (rows, in), W: (out, in), b: (1, out), y: (rows, out) */
static sherl_status linear_forward(const sherl_op *op, const sherl_tile *tile) {
    size_t rows = sherl_tile_rows(tile, op->output);
    size_t in = sherl_tile_channels(tile, op->inputs[0]), out = sherl_tile_channels(tile, op->output);
    sherl_real *y = sherl_tile_write(tile, op->output);
    sherl_gemm(false, true, rows, out, in, 1, sherl_tile_read(tile, op->inputs[0]), in,
               sherl_op_parameter(op, tile, 0), in, 0, y, out);
    const sherl_real *bias = sherl_op_parameter(op, tile, 1);
    if (bias || op->settings.activation != SHERL_IDENTITY)
        tile->kernels->bias_activation(op->settings.activation, y, bias, rows, out);
    return SHERL_OK;
}

/* dz = dy activation'(z); dx = dz W; dW += dz^T x; db += column sums of dz */
static sherl_status linear_backward(const sherl_op *op, const sherl_tile *tile) {
    size_t rows = sherl_tile_rows(tile, op->output);
    size_t in = sherl_tile_channels(tile, op->inputs[0]), out = sherl_tile_channels(tile, op->output);
    sherl_real *dz = tile->gradients[op->output]; /* rewritten in place: nothing reads dy after this op */
    if (op->settings.activation != SHERL_IDENTITY)
        tile->kernels->activation_backward(op->settings.activation, NULL, sherl_tile_read(tile, op->output), dz, dz,
                                           rows * out, false);
    sherl_real *dx = sherl_input_gradient(op, tile, 0);
    if (dx)
        sherl_gemm(false, false, rows, in, out, 1, dz, out, sherl_op_parameter(op, tile, 0), in,
                   op->accumulate[0] ? 1 : 0, dx, in);
    sherl_real *dweight = sherl_op_parameter_gradient(op, tile, 0);
    if (dweight)
        sherl_gemm(true, false, out, in, rows, 1, dz, out, sherl_tile_read(tile, op->inputs[0]), in, 1, dweight, in);
    sherl_real *dbias = sherl_op_parameter_gradient(op, tile, 1);
    if (dbias) tile->kernels->add_column_sums(dz, dbias, rows, out);
    return SHERL_OK;
}

static void linear_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    reads->inputs[0] = trainable[0];
    reads->output = op->settings.activation != SHERL_IDENTITY;
}

const sherl_op_type sherl_linear_type = {
    .name = "linear", .rows = SHERL_ROW_WISE, .forward = linear_forward, .backward = linear_backward,
    .backward_reads = linear_reads,
};
