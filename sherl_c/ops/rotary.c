/* Rotary positions (Su et al., 2021): queries and keys turned by angles that grow with the position of their row. */
#include <math.h>

#include "op.h"

/* Of a head's first `dimensions` channels, channel i and channel i + dimensions / 2 are a pair. */
static size_t pairs(const sherl_op *op) { return op->settings.rotary.dimensions / 2; }

static size_t longest_segment(const sherl_tile *tile, sherl_space space) {
    size_t longest = 0;
    for (size_t sample = 0; sample < tile->samples; sample++) {
        size_t rows = sherl_tile_segment(tile, space, sample + 1) - sherl_tile_segment(tile, space, sample);
        if (rows > longest) longest = rows;
    }
    return longest;
}

/* theta^(-2 i / dimensions), or what scaling makes of it */
static double speed_of_pair(const sherl_op *op, size_t i) {
    const sherl_rotary_scaling *scaling = &op->settings.rotary.scaling;
    const double speed = pow(op->settings.rotary.theta, -2.0 * (double)i / (double)op->settings.rotary.dimensions);
    if (scaling->factor == 0) return speed;
    double kept = 0;
    if (scaling->original > 0) {
        const double turns = scaling->original * speed / 6.283185307179586477;
        kept = fmin(fmax((turns - scaling->low) / (scaling->high - scaling->low), 0), 1);
    }
    return kept * speed + (1 - kept) * speed / scaling->factor;
}

/* Cosines and, times `sign`, sines of the angles position * speed: (positions, 2, pairs) */
static void tabulate(const sherl_op *op, size_t first_position, size_t positions, double sign, sherl_real *table) {
    const size_t half = pairs(op);
    for (size_t i = 0; i < half; i++) {
        const double speed = speed_of_pair(op, i);
        for (size_t position = 0; position < positions; position++) {
            const double angle = (double)(first_position + position) * speed;
            table[2 * position * half + i] = (sherl_real)cos(angle);
            table[(2 * position + 1) * half + i] = (sherl_real)(sign * sin(angle));
        }
    }
}

/* to (+)= each row of `from`, turned by the angles of its position, or back where sign is -1 */
static void turn(const sherl_op *op, const sherl_tile *tile, const sherl_real *from, sherl_real *to, double sign,
                 bool accumulate) {
    const sherl_space space = tile->value_spaces[op->output];
    const size_t channels = sherl_tile_channels(tile, op->output), heads = op->settings.rotary.heads;
    const size_t half = pairs(op), longest = longest_segment(tile, space);
    sherl_real *table = tile->scratch, *own_table = table + 2 * longest * half;
    tabulate(op, 0, longest, sign, table);
    for (size_t sample = 0; sample < tile->samples; sample++) {
        const size_t first = sherl_tile_segment(tile, space, sample), end = sherl_tile_segment(tile, space, sample + 1);
        const size_t position = sherl_tile_position(op, tile, sample);
        if (position > 0) tabulate(op, position, 1, sign, own_table); /* demand left this row alone of its segment */
        for (size_t row = first; row < end; row++) {
            const sherl_real *cosines = position > 0 ? own_table : table + 2 * (row - first) * half;
            tile->kernels->rotate_row(from + row * channels, cosines, cosines + half, to + row * channels, heads,
                                      channels / heads, half, accumulate);
        }
    }
}

/* With a, b a pair of row t and u = t speed: (a, b) becomes (a cos u - b sin u, b cos u + a sin u) */
static sherl_status rotary_forward(const sherl_op *op, const sherl_tile *tile) {
    turn(op, tile, sherl_tile_read(tile, op->inputs[0]), sherl_tile_write(tile, op->output), 1, false);
    return SHERL_OK;
}

/* dx (+)= dy turned back */
static sherl_status rotary_backward(const sherl_op *op, const sherl_tile *tile) {
    sherl_real *dx = sherl_input_gradient(op, tile, 0);
    if (dx) turn(op, tile, sherl_output_gradient(op, tile), dx, -1, op->accumulate[0]);
    return SHERL_OK;
}

/* A cosine and a sine for each pair, at each position of the longest segment and at one more. */
static bool rotary_scratch(const sherl_op *op, const sherl_limits *limits, size_t *bytes) {
    size_t positions;
    return sherl_add_sizes(limits->longest_segment[limits->value_spaces[op->output]], 1, &positions) &&
           sherl_multiply_sizes(positions, op->settings.rotary.dimensions, bytes) &&
           sherl_multiply_sizes(*bytes, sizeof(sherl_real), bytes);
}

const sherl_op_type sherl_rotary_type = {
    .name = "rotary",
    .rows = SHERL_ROW_WISE,
    .forward_in_place = true,
    .backward_in_place = true,
    .forward = rotary_forward,
    .backward = rotary_backward,
    .scratch_bytes = rotary_scratch,
};
