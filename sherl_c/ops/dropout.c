/* The dropout op of a training graph. */
#include "op.h"

/* Drops each row of the tile: y (+)= keep * x / (1 - rate); keep is drawn anew from the key, stream and row each time. */
static void drop_rows(const sherl_op *op, const sherl_tile *tile, const sherl_real *x, sherl_real *y, bool accumulate) {
    size_t channels = sherl_tile_channels(tile, op->output);
    sherl_space space = tile->value_spaces[op->output];
    for (size_t sample = 0; sample < tile->samples; sample++) {
        size_t first = sherl_tile_segment(tile, space, sample), end = sherl_tile_segment(tile, space, sample + 1);
        size_t position = sherl_tile_position(op, tile, sample);
        for (size_t row = first; row < end; row++) {
            sherl_row_key key = {(uint32_t)(tile->first_sample + sample), (uint32_t)(position + row - first)};
            tile->kernels->dropout_row(tile->random_key, op->stream, key, op->settings.dropout.rate, x + row * channels,
                                       y + row * channels, channels, accumulate);
        }
    }
}

/* y = keep * x / (1 - rate); x, y: (rows, channels) */
static sherl_status dropout_forward(const sherl_op *op, const sherl_tile *tile) {
    drop_rows(op, tile, sherl_tile_read(tile, op->inputs[0]), sherl_tile_write(tile, op->output), false);
    return SHERL_OK;
}

/* dx (+)= keep * dy / (1 - rate) */
static sherl_status dropout_backward(const sherl_op *op, const sherl_tile *tile) {
    sherl_real *dx = sherl_input_gradient(op, tile, 0);
    if (dx != NULL) drop_rows(op, tile, sherl_output_gradient(op, tile), dx, op->accumulate[0]);
    return SHERL_OK;
}

const sherl_op_type sherl_dropout_type = {
    .name = "dropout",
    .rows = SHERL_ROW_WISE,
    .forward_in_place = true,
    .backward_in_place = true,
    .forward = dropout_forward,
    .backward = dropout_backward,
};
