/* Spatial guidance of MTSA: one row a sample of its rows, weighted by how they agree with a guide, and a base row. */
#include <math.h>
#include <string.h>

#include "../base/memory.h"
#include "op.h"

/* One sample. x: (rows, channels), e: (1, channels) */
typedef struct sample_view {
    const sherl_real *x, *guide;
    size_t rows, channels, base; /* the number of the base row */
} sample_view;

static sherl_status view_sample(const sherl_op *op, const sherl_tile *tile, size_t sample, sample_view *view) {
    sherl_space space = tile->value_spaces[op->inputs[0]];
    size_t first = sherl_tile_segment(tile, space, sample), channels = sherl_tile_channels(tile, op->output);
    *view = (sample_view){.x = sherl_tile_read(tile, op->inputs[0]) + first * channels,
                          .guide = sherl_tile_read(tile, op->inputs[1]) + sample * channels,
                          .rows = sherl_tile_segment(tile, space, sample + 1) - first,
                          .channels = channels};
    if (op->settings.spatial.base == SHERL_BASE_LAST) view->base = view->rows - 1;
    if (op->settings.spatial.base != SHERL_BASE_POSITION) return SHERL_OK;
    int32_t position = sherl_tile_integers(tile, op->inputs[2])[sample];
    if (position < 0 || (size_t)position >= view->rows) return SHERL_INDEX_OUT_OF_RANGE;
    view->base = (size_t)position;
    return SHERL_OK;
}

/* Scratch: u or du by row of the longest sample, dot products with dy likewise, and w * e. */
static bool spatial_scratch(const sherl_op *op, const sherl_limits *limits, size_t *bytes) {
    size_t rows = limits->longest_segment[limits->value_spaces[op->inputs[0]]];
    return sherl_multiply_sizes(rows, 2, bytes) && sherl_add_sizes(*bytes, limits->value_channels[op->output], bytes) &&
           sherl_multiply_sizes(*bytes, sizeof(sherl_real), bytes);
}

static double base_scale(const sherl_op *op, const sherl_tile *tile) {
    const sherl_real *gate = sherl_op_parameter(op, tile, 2);
    const sherl_spatial_settings *settings = &op->settings.spatial;
    return gate ? 1 / (1 + exp(-(double)gate[settings->index] / settings->temperature)) : 1;
}

/* u_t = relu((w * e) . x_t + b); returns sum_t u_t + eps. we: (1, channels), u: (rows) */
static double weigh(const sherl_op *op, const sherl_tile *tile, const sample_view *view, sherl_real *we,
                    sherl_real *u) {
    const sherl_real bias = *sherl_op_parameter(op, tile, 1);
    double sum = op->settings.spatial.eps;
    tile->kernels->multiply(sherl_op_parameter(op, tile, 0), view->guide, we, view->channels, false);
    for (size_t t = 0; t < view->rows; t++) {
        sherl_real m = tile->kernels->dot(we, view->x + t * view->channels, view->channels) + bias;
        u[t] = m < 0 ? 0 : m; /* so that a NaN stays one */
        sum += (double)u[t];
    }
    return sum;
}

/* y = sum_t u_t x_t / (sum_t u_t + eps) + s x_base; y: (samples, channels) */
static sherl_status spatial_forward(const sherl_op *op, const sherl_tile *tile) {
    sherl_real scale = (sherl_real)base_scale(op, tile), *y = sherl_tile_write(tile, op->output);
    for (size_t sample = 0; sample < tile->samples; sample++) {
        sample_view view;
        sherl_status status = view_sample(op, tile, sample, &view);
        if (status) return status;
        sherl_real *we = tile->scratch, *u = we + view.channels, *out = y + sample * view.channels;
        double sum = weigh(op, tile, &view, we, u);
        memset(out, 0, view.channels * sizeof *out);
        for (size_t t = 0; t < view.rows; t++)
            if (u[t] != 0)
                tile->kernels->add_scaled(out, (sherl_real)((double)u[t] / sum), view.x + t * view.channels, out,
                                          view.channels);
        tile->kernels->add_scaled(out, scale, view.x + view.base * view.channels, out, view.channels);
    }
    return SHERL_OK;
}

/* With v_t = u_t / n, n = sum_t u_t + eps, and dv_t = dy . x_t:
 * dm_t = (dv_t - sum_j dv_j v_j) / n where u_t > 0, else 0;
 * dx_t (+)= v_t dy + dm_t w * e;  dx_base += s dy;  de (+)= w * sum_t dm_t x_t;
 * dw += e * sum_t dm_t x_t;  db += sum_t dm_t;  dgate += s (1 - s) / temperature * dy . x_base */
static void sample_backward(const sherl_op *op, const sherl_tile *tile, const sample_view *view, size_t sample,
                            double scale) {
    size_t channels = view->channels, first = sherl_tile_segment(tile, tile->value_spaces[op->inputs[0]], sample);
    const sherl_real *dy = sherl_output_gradient(op, tile) + sample * channels;
    sherl_real *we = tile->scratch, *u = we + channels, *dm = u + view->rows;
    double n = weigh(op, tile, view, we, u), mean = 0, dbias = 0;
    for (size_t t = 0; t < view->rows; t++) {
        dm[t] = tile->kernels->dot(dy, view->x + t * channels, channels);
        mean += (double)dm[t] * (double)u[t] / n;
    }
    for (size_t t = 0; t < view->rows; t++) {
        dm[t] = u[t] > 0 ? (sherl_real)(((double)dm[t] - mean) / n) : 0;
        dbias += (double)dm[t];
    }
    sherl_real *dx = sherl_input_gradient(op, tile, 0), *dguide = sherl_input_gradient(op, tile, 1);
    for (size_t t = 0; dx && t < view->rows; t++) {
        sherl_real *row = dx + (first + t) * channels;
        if (!op->accumulate[0]) memset(row, 0, channels * sizeof *row);
        tile->kernels->add_scaled(row, (sherl_real)((double)u[t] / n), dy, row, channels);
        tile->kernels->add_scaled(row, dm[t], we, row, channels);
        if (t == view->base) tile->kernels->add_scaled(row, (sherl_real)scale, dy, row, channels);
    }
    sherl_real *mixed = we; /* w * e is not needed any more */
    memset(mixed, 0, channels * sizeof *mixed);
    for (size_t t = 0; t < view->rows; t++)
        tile->kernels->add_scaled(mixed, dm[t], view->x + t * channels, mixed, channels);
    if (dguide)
        tile->kernels->multiply(sherl_op_parameter(op, tile, 0), mixed, dguide + sample * channels, channels,
                                op->accumulate[1]);
    sherl_real *dweight = sherl_op_parameter_gradient(op, tile, 0), *db = sherl_op_parameter_gradient(op, tile, 1);
    sherl_real *dgate = sherl_op_parameter_gradient(op, tile, 2);
    if (dweight) tile->kernels->multiply(view->guide, mixed, dweight, channels, true);
    if (db) *db += (sherl_real)dbias;
    if (dgate)
        dgate[op->settings.spatial.index] +=
            (sherl_real)(scale * (1 - scale) / op->settings.spatial.temperature *
                         (double)tile->kernels->dot(dy, view->x + view->base * channels, channels));
}

static sherl_status spatial_backward(const sherl_op *op, const sherl_tile *tile) {
    double scale = base_scale(op, tile);
    for (size_t sample = 0; sample < tile->samples; sample++) {
        sample_view view;
        sherl_status status = view_sample(op, tile, sample, &view);
        if (status) return status;
        sample_backward(op, tile, &view, sample, scale);
    }
    return SHERL_OK;
}

static void spatial_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)trainable;
    for (uint32_t i = 0; i < op->input_count; i++) reads->inputs[i] = true;
}

const sherl_op_type sherl_spatial_guidance_type = {
    .name = "spatial_guidance",
    .rows = SHERL_MIXES_ROWS,
    .forward = spatial_forward,
    .backward = spatial_backward,
    .backward_reads = spatial_reads,
    .scratch_bytes = spatial_scratch,
};
