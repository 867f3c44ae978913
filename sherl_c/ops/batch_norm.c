/* Batch norm: with the statistics of the batch in training, with the running ones otherwise. Parameter slots of both
 * types: weight, bias, running mean, running variance, each (1, channels). */
#include <math.h>
#include <string.h>

#include "../base/memory.h"
#include "op.h"

/* ---- Passes over all rows ---------------------------------------------------------------------------------------- */

/* The rows are cut into this many blocks whatever the number of threads, so that every sum has one order. */
#define SHERL_NORM_BLOCKS ((size_t)32)

/* What a pass does with one block of rows, and its operands. */
typedef struct row_pass row_pass;
typedef void (*row_task)(const row_pass *pass, size_t block, size_t first, size_t rows);
struct row_pass {
    row_task task;
    const sherl_tile *tile;
    size_t rows, channels;
    const sherl_real *x, *other;                             /* (rows, channels) */
    const sherl_real *center, *other_center, *scale, *shift; /* (1, channels) */
    sherl_real *y; /* (rows, channels), or sums: (SHERL_NORM_BLOCKS, channels) */
    bool accumulate;
};

/* y (+)= (x - center) * scale + shift */
static void affine_block(const row_pass *pass, size_t block, size_t first, size_t rows) {
    (void)block;
    size_t at = first * pass->channels;
    pass->tile->kernels->affine_columns(pass->x + at, pass->center, pass->scale, pass->shift, pass->y + at, rows,
                                        pass->channels, pass->accumulate);
}
/* y[block] = column sums of x */
static void sum_block(const row_pass *pass, size_t block, size_t first, size_t rows) {
    pass->tile->kernels->add_column_sums(pass->x + first * pass->channels, pass->y + block * pass->channels, rows,
                                         pass->channels);
}
/* y[block] = column sums of (x - center) * (other - other_center) */
static void product_block(const row_pass *pass, size_t block, size_t first, size_t rows) {
    size_t at = first * pass->channels;
    pass->tile->kernels->add_column_products(pass->x + at, pass->center, pass->other + at, pass->other_center,
                                             pass->y + block * pass->channels, rows, pass->channels);
}

static void run_block(void *state, size_t block, size_t worker) {
    (void)worker;
    const row_pass *pass = state;
    size_t first = pass->rows * block / SHERL_NORM_BLOCKS, end = pass->rows * (block + 1) / SHERL_NORM_BLOCKS;
    pass->task(pass, block, first, end - first);
}
static void run_pass(row_pass pass) {
    if (pass.tile->pool != NULL) {
        sherl_pool_run(pass.tile->pool, SHERL_NORM_BLOCKS, run_block, &pass);
        return;
    }
    for (size_t block = 0; block < SHERL_NORM_BLOCKS; block++) run_block(&pass, block, 0);
}

/* sums = factor * what the pass sums over all rows; partial: (SHERL_NORM_BLOCKS, channels), sums: (1, channels) */
static void run_sums(row_pass pass, sherl_real *partial, sherl_real factor, sherl_real *sums) {
    memset(partial, 0, SHERL_NORM_BLOCKS * pass.channels * sizeof *partial);
    memset(sums, 0, pass.channels * sizeof *sums);
    pass.y = partial;
    run_pass(pass);
    pass.tile->kernels->add_column_sums(partial, sums, SHERL_NORM_BLOCKS, pass.channels);
    for (size_t c = 0; c < pass.channels; c++) sums[c] *= factor;
}

/* ---- Scratch ------------------------------------------------------------------------------------------------------ */

typedef struct norm_scratch {
    sherl_real *partial;                       /* (SHERL_NORM_BLOCKS, channels) */
    sherl_real *zeros, *scale, *sums, *slopes; /* (1, channels) */
} norm_scratch;

static bool batch_norm_scratch(const sherl_op *op, const sherl_limits *limits, size_t *bytes) {
    return sherl_multiply_sizes(limits->value_channels[op->output], (SHERL_NORM_BLOCKS + 4) * sizeof(sherl_real),
                                bytes);
}

/* The parts of the scratch; scale = weight / sqrt(variance + eps). */
static norm_scratch prepare_scratch(const sherl_op *op, const sherl_tile *tile, const sherl_real *variance) {
    size_t channels = sherl_tile_channels(tile, op->output);
    const sherl_real *weight = sherl_op_parameter(op, tile, 0);
    norm_scratch scratch = {.partial = tile->scratch};
    scratch.zeros = scratch.partial + SHERL_NORM_BLOCKS * channels;
    scratch.scale = scratch.zeros + channels;
    scratch.sums = scratch.scale + channels;
    scratch.slopes = scratch.sums + channels;
    memset(scratch.zeros, 0, channels * sizeof(sherl_real));
    for (size_t c = 0; c < channels; c++)
        scratch.scale[c] = (sherl_real)((double)weight[c] / sqrt((double)variance[c] + op->settings.norm.eps));
    return scratch;
}

/* ---- What both types share ---------------------------------------------------------------------------------------- */

/* y = (x - mean) / sqrt(variance + eps) * weight + bias; x, y: (rows, channels) */
static void normalize(const sherl_op *op, const sherl_tile *tile, const sherl_real *mean, const sherl_real *variance) {
    norm_scratch scratch = prepare_scratch(op, tile, variance);
    run_pass((row_pass){.task = affine_block,
                        .tile = tile,
                        .rows = sherl_tile_rows(tile, op->output),
                        .channels = sherl_tile_channels(tile, op->output),
                        .x = sherl_tile_read(tile, op->inputs[0]),
                        .center = mean,
                        .scale = scratch.scale,
                        .shift = sherl_op_parameter(op, tile, 1),
                        .y = sherl_tile_write(tile, op->output)});
}

/* sums = column sums of dy; slopes = column sums of dy * (x - mean);
 * dbias += sums; dweight += slopes / sqrt(variance + eps) */
static void sum_gradients(const sherl_op *op, const sherl_tile *tile, const sherl_real *mean,
                          const sherl_real *variance, const norm_scratch *scratch) {
    size_t rows = sherl_tile_rows(tile, op->output), channels = sherl_tile_channels(tile, op->output);
    const sherl_real *dy = sherl_output_gradient(op, tile);
    run_sums((row_pass){.task = sum_block, .tile = tile, .rows = rows, .channels = channels, .x = dy}, scratch->partial,
             1, scratch->sums);
    run_sums((row_pass){.task = product_block,
                        .tile = tile,
                        .rows = rows,
                        .channels = channels,
                        .x = dy,
                        .center = scratch->zeros,
                        .other = sherl_tile_read(tile, op->inputs[0]),
                        .other_center = mean},
             scratch->partial, 1, scratch->slopes);
    sherl_real *dweight = sherl_op_parameter_gradient(op, tile, 0), *dbias = sherl_op_parameter_gradient(op, tile, 1);
    for (size_t c = 0; dweight != NULL && c < channels; c++)
        dweight[c] += (sherl_real)((double)scratch->slopes[c] / sqrt((double)variance[c] + op->settings.norm.eps));
    if (dbias != NULL) tile->kernels->accumulate(scratch->sums, dbias, channels);
}

/* ---- With the statistics of the batch ------------------------------------------------------------------------------ */

/* mean, variance = those of each column; y = (x - mean) / sqrt(variance + eps) * weight + bias.
 * saved: (samples, 2 channels), whose first row keeps the mean and the variance */
static sherl_status batch_norm_forward(const sherl_op *op, const sherl_tile *tile) {
    size_t rows = sherl_tile_rows(tile, op->output), channels = sherl_tile_channels(tile, op->output);
    if (rows < 2) return SHERL_INVALID_ARGUMENT; /* one row has no variance */
    const sherl_real *x = sherl_tile_read(tile, op->inputs[0]);
    sherl_real *mean = sherl_tile_write(tile, op->saved), *variance = mean + channels, *partial = tile->scratch;
    row_pass pass = {.task = sum_block, .tile = tile, .rows = rows, .channels = channels, .x = x};
    run_sums(pass, partial, 1 / (sherl_real)rows, mean);
    pass.task = product_block;
    pass.other = x;
    pass.center = pass.other_center = mean;
    run_sums(pass, partial, 1 / (sherl_real)rows, variance);
    normalize(op, tile, mean, variance);
    return SHERL_OK;
}

/* With d = sqrt(variance + eps):
 * dx (+)= weight / d * (dy - mean(dy) - (x - mean) / d^2 * mean(dy * (x - mean))), the means over the rows */
static sherl_status batch_norm_backward(const sherl_op *op, const sherl_tile *tile) {
    size_t rows = sherl_tile_rows(tile, op->output), channels = sherl_tile_channels(tile, op->output);
    const sherl_real *mean = sherl_tile_read(tile, op->saved), *variance = mean + channels;
    norm_scratch scratch = prepare_scratch(op, tile, variance);
    sum_gradients(op, tile, mean, variance, &scratch);
    sherl_real *dx = sherl_input_gradient(op, tile, 0);
    if (dx == NULL) return SHERL_OK;
    for (size_t c = 0; c < channels; c++) {
        scratch.sums[c] /= (sherl_real)rows;
        scratch.slopes[c] *= -scratch.scale[c] / ((variance[c] + (sherl_real)op->settings.norm.eps) * (sherl_real)rows);
    }
    row_pass pass = {.task = affine_block,
                     .tile = tile,
                     .rows = rows,
                     .channels = channels,
                     .x = sherl_output_gradient(op, tile),
                     .center = scratch.sums,
                     .scale = scratch.scale,
                     .shift = scratch.zeros,
                     .y = dx,
                     .accumulate = op->accumulate[0]};
    run_pass(pass);
    pass.x = sherl_tile_read(tile, op->inputs[0]);
    pass.center = mean;
    pass.scale = scratch.slopes;
    pass.accumulate = true;
    run_pass(pass);
    return SHERL_OK;
}

/* running = (1 - momentum) * running + momentum * that of the batch, the variance unbiased */
static void batch_norm_commit(const sherl_op *op, const sherl_tile *tile) {
    size_t rows = sherl_tile_rows(tile, op->output), channels = sherl_tile_channels(tile, op->output);
    const sherl_real *mean = sherl_tile_read(tile, op->saved), *variance = mean + channels;
    sherl_real *running_mean = tile->mutable_parameters[op->parameters[2]];
    sherl_real *running_variance = tile->mutable_parameters[op->parameters[3]];
    sherl_real momentum = (sherl_real)op->settings.norm.momentum;
    sherl_real unbiased = (sherl_real)rows / (sherl_real)(rows - 1);
    for (size_t c = 0; c < channels; c++) {
        running_mean[c] += momentum * (mean[c] - running_mean[c]);
        running_variance[c] += momentum * (variance[c] * unbiased - running_variance[c]);
    }
}

static void batch_norm_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)op;
    (void)trainable;
    reads->inputs[0] = true;
}

const sherl_op_type sherl_batch_norm_type = {
    .name = "batch_norm",
    .rows = SHERL_COUPLED,
    .forward_in_place = true,
    .backward_in_place = true,
    .forward = batch_norm_forward,
    .backward = batch_norm_backward,
    .backward_reads = batch_norm_reads,
    .scratch_bytes = batch_norm_scratch,
    .commit = batch_norm_commit,
};

/* ---- With the running statistics ------------------------------------------------------------------------------------ */

/* y = (x - running_mean) / sqrt(running_variance + eps) * weight + bias */
static sherl_status fixed_batch_norm_forward(const sherl_op *op, const sherl_tile *tile) {
    normalize(op, tile, sherl_op_parameter(op, tile, 2), sherl_op_parameter(op, tile, 3));
    return SHERL_OK;
}

/* dx (+)= dy * weight / sqrt(running_variance + eps) */
static sherl_status fixed_batch_norm_backward(const sherl_op *op, const sherl_tile *tile) {
    const sherl_real *mean = sherl_op_parameter(op, tile, 2), *variance = sherl_op_parameter(op, tile, 3);
    norm_scratch scratch = prepare_scratch(op, tile, variance);
    if (sherl_op_parameter_gradient(op, tile, 0) != NULL) {
        sum_gradients(op, tile, mean, variance, &scratch);
    } else if (sherl_op_parameter_gradient(op, tile, 1) != NULL) {
        tile->kernels->add_column_sums(sherl_output_gradient(op, tile), sherl_op_parameter_gradient(op, tile, 1),
                                       sherl_tile_rows(tile, op->output), sherl_tile_channels(tile, op->output));
    }
    sherl_real *dx = sherl_input_gradient(op, tile, 0);
    if (dx != NULL)
        run_pass((row_pass){.task = affine_block,
                            .tile = tile,
                            .rows = sherl_tile_rows(tile, op->output),
                            .channels = sherl_tile_channels(tile, op->output),
                            .x = sherl_output_gradient(op, tile),
                            .center = scratch.zeros,
                            .scale = scratch.scale,
                            .shift = scratch.zeros,
                            .y = dx,
                            .accumulate = op->accumulate[0]});
    return SHERL_OK;
}

static void fixed_batch_norm_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)op;
    reads->inputs[0] = trainable[0];
}

const sherl_op_type sherl_fixed_batch_norm_type = {
    .name = "fixed_batch_norm",
    .rows = SHERL_ROW_WISE,
    .forward_in_place = true,
    .backward_in_place = true,
    .forward = fixed_batch_norm_forward,
    .backward = fixed_batch_norm_backward,
    .backward_reads = fixed_batch_norm_reads,
    .scratch_bytes = batch_norm_scratch,
};
