/* Rows of a table: by index, or the whole table for every sample. */
#include <string.h>

#include "op.h"

/* y[r] = table[indices[r]]; indices: (rows), table: (entries, channels), y: (rows, channels) */
static sherl_status embedding_forward(const sherl_op *op, const sherl_tile *tile) {
    size_t rows = sherl_tile_rows(tile, op->output), channels = sherl_tile_channels(tile, op->output);
    size_t entries = tile->parameter_rows[op->parameters[0]];
    const sherl_real *table = sherl_op_parameter(op, tile, 0);
    const int32_t *indices = sherl_tile_integers(tile, op->inputs[0]);
    sherl_real *y = sherl_tile_write(tile, op->output);
    for (size_t row = 0; row < rows; row++) {
        if (indices[row] < 0 || (size_t)indices[row] >= entries) return SHERL_INDEX_OUT_OF_RANGE;
        memcpy(y + row * channels, table + (size_t)indices[row] * channels, channels * sizeof *y);
    }
    return SHERL_OK;
}

/* dtable[indices[r]] += dy[r]; forward has checked the indices */
static sherl_status embedding_backward(const sherl_op *op, const sherl_tile *tile) {
    size_t rows = sherl_tile_rows(tile, op->output), channels = sherl_tile_channels(tile, op->output);
    const int32_t *indices = sherl_tile_integers(tile, op->inputs[0]);
    const sherl_real *dy = sherl_output_gradient(op, tile);
    sherl_real *dtable = sherl_op_parameter_gradient(op, tile, 0);
    for (size_t row = 0; dtable != NULL && row < rows; row++)
        tile->kernels->accumulate(dy + row * channels, dtable + (size_t)indices[row] * channels, channels);
    return SHERL_OK;
}

static void embedding_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)op;
    reads->inputs[0] = trainable[0];
}

const sherl_op_type sherl_embedding_type = {
    .name = "embedding",
    .rows = SHERL_ROW_WISE,
    .forward = embedding_forward,
    .backward = embedding_backward,
    .backward_reads = embedding_reads,
};

/* y[r] = table[r], r counted within each sample; table: (entries, channels), y: (samples x entries, channels) */
static sherl_status table_forward(const sherl_op *op, const sherl_tile *tile) {
    size_t entries = tile->parameter_rows[op->parameters[0]], channels = sherl_tile_channels(tile, op->output);
    sherl_space space = tile->value_spaces[op->output];
    const sherl_real *table = sherl_op_parameter(op, tile, 0);
    sherl_real *y = sherl_tile_write(tile, op->output);
    for (size_t sample = 0; sample < tile->samples; sample++) {
        size_t first = sherl_tile_segment(tile, space, sample);
        if (sherl_tile_segment(tile, space, sample + 1) - first != entries) return SHERL_SHAPE_MISMATCH;
        memcpy(y + first * channels, table, entries * channels * sizeof *y);
    }
    return SHERL_OK;
}

/* dtable[r] += sum over samples of dy[r] */
static sherl_status table_backward(const sherl_op *op, const sherl_tile *tile) {
    size_t count = tile->parameter_rows[op->parameters[0]] * sherl_tile_channels(tile, op->output);
    const sherl_real *dy = sherl_output_gradient(op, tile);
    sherl_real *dtable = sherl_op_parameter_gradient(op, tile, 0);
    for (size_t sample = 0; dtable != NULL && sample < tile->samples; sample++)
        tile->kernels->accumulate(dy + sample * count, dtable, count);
    return SHERL_OK;
}

const sherl_op_type sherl_table_type = {
    .name = "table",
    .rows = SHERL_MIXES_ROWS,
    .forward = table_forward,
    .backward = table_backward,
};
