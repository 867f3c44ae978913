/* The convolution op over images. A pass gathers some pixels of the windows of many output rows into a matrix, which a
 * product maps; the passes over all pixels of the window add up. So the library packs the weights once for many rows. */
#include <string.h>

#include "../base/memory.h"
#include "../blas/blas.h"
#include "op.h"

enum {
    CHUNK_ROWS = 512, /* output rows of a pass, */
    PASS_DEPTH = 1024 /* and channels of its pixels, unless one pixel has more */
};

/* The operands of one call. x: (pixels, in), W: (out, depth) with depth = size * size * in, b: (1, out), y: (rows, out). */
typedef struct convolution {
    const sherl_tile *tile;
    sherl_space from, to;
    sherl_window window;
    size_t rows, in, out, depth;
    const sherl_real *x, *weight;
    size_t pixels;        /* of the window, in a pass */
    sherl_real *gathered; /* (CHUNK_ROWS, pixels * in) */
} convolution;

static size_t pixels_of_pass(sherl_window window, size_t in) {
    size_t pixels = in < PASS_DEPTH ? PASS_DEPTH / in : 1;
    return pixels < window.size * window.size ? pixels : window.size * window.size;
}

static convolution find_operands(const sherl_op *op, const sherl_tile *tile) {
    sherl_window window = op->settings.convolution.window;
    size_t in = sherl_tile_channels(tile, op->inputs[0]);
    return (convolution){.tile = tile,
                         .from = tile->value_spaces[op->inputs[0]],
                         .to = tile->value_spaces[op->output],
                         .window = window,
                         .rows = sherl_tile_rows(tile, op->output),
                         .in = in,
                         .out = sherl_tile_channels(tile, op->output),
                         .depth = window.size * window.size * in,
                         .x = sherl_tile_read(tile, op->inputs[0]),
                         .weight = sherl_op_parameter(op, tile, 0),
                         .pixels = pixels_of_pass(window, in),
                         .gathered = tile->scratch};
}

static bool convolution_scratch(const sherl_op *op, const sherl_limits *limits, size_t *bytes) {
    size_t in = limits->value_channels[op->inputs[0]];
    return sherl_multiply_sizes(in, pixels_of_pass(op->settings.convolution.window, in), bytes) &&
           sherl_multiply_sizes(*bytes, CHUNK_ROWS * sizeof(sherl_real), bytes);
}

/* The place of an output row in its image. */
typedef struct place { size_t sample, y, x; } place;

static place next_place(const convolution *c, place at) {
    const size_t *grid = sherl_tile_grid(c->tile, c->to, at.sample);
    if (++at.x < grid[1]) return at;
    at.x = 0;
    if (++at.y < grid[0]) return at;
    return (place){.sample = at.sample + 1};
}

/* The row of x that pixel (dy, dx) of the window covers, or SIZE_MAX in the padding. */
static size_t covered_row(const convolution *c, place at, size_t dy, size_t dx) {
    const size_t *grid = sherl_tile_grid(c->tile, c->from, at.sample);
    size_t y = at.y * c->window.stride + dy, x = at.x * c->window.stride + dx, padding = c->window.padding;
    if (y < padding || x < padding || y - padding >= grid[0] || x - padding >= grid[1]) return SIZE_MAX;
    return sherl_tile_segment(c->tile, c->from, at.sample) + (y - padding) * grid[1] + x - padding;
}

/* One pass: output rows first … first + rows - 1, which begin at `at`, and pixels pixel … pixel + pixels - 1 of their
 * windows. */
typedef struct pass {
    place at;
    size_t first, rows, pixel, pixels;
} pass;

/* gathered[r] = the pixels of the pass under the window of its r-th output row; returns the place after the rows */
static place gather(const convolution *c, const pass *pass) {
    sherl_real *pixel = c->gathered;
    place at = pass->at;
    for (size_t r = 0; r < pass->rows; r++, at = next_place(c, at))
        for (size_t d = pass->pixel; d < pass->pixel + pass->pixels; d++, pixel += c->in) {
            size_t row = covered_row(c, at, d / c->window.size, d % c->window.size);
            if (row == SIZE_MAX)
                memset(pixel, 0, c->in * sizeof *pixel);
            else
                memcpy(pixel, c->x + row * c->in, c->in * sizeof *pixel);
        }
    return at;
}

/* The reverse: dx += the gradients of those pixels */
static place scatter(const convolution *c, const pass *pass, sherl_real *dx) {
    const sherl_real *pixel = c->gathered;
    place at = pass->at;
    for (size_t r = 0; r < pass->rows; r++, at = next_place(c, at))
        for (size_t d = pass->pixel; d < pass->pixel + pass->pixels; d++, pixel += c->in) {
            size_t row = covered_row(c, at, d / c->window.size, d % c->window.size);
            if (row != SIZE_MAX) c->tile->kernels->accumulate(pixel, dx + row * c->in, c->in);
        }
    return at;
}

/* What a pass computes out of y, or of the gradient z of the output before its activation; returns as gather does. */
typedef place (*pass_task)(const convolution *c, const pass *pass, sherl_real *y, sherl_real *gradient);

/* y (+)= gathered W_p^T over the pixels p of the pass, whose weights are columns of W */
static place forward_pass(const convolution *c, const pass *pass, sherl_real *y, sherl_real *gradient) {
    (void)gradient;
    size_t depth = pass->pixels * c->in;
    place after = gather(c, pass);
    sherl_gemm(false, true, pass->rows, c->out, depth, 1, c->gathered, depth, c->weight + pass->pixel * c->in, c->depth,
               pass->pixel > 0, y + pass->first * c->out, c->out);
    return after;
}

/* dW_p += dz^T gathered */
static place weight_pass(const convolution *c, const pass *pass, sherl_real *dz, sherl_real *dweight) {
    size_t depth = pass->pixels * c->in;
    place after = gather(c, pass);
    sherl_gemm(true, false, c->out, depth, pass->rows, 1, dz + pass->first * c->out, c->out, c->gathered, depth, 1,
               dweight + pass->pixel * c->in, c->depth);
    return after;
}

/* dgathered = dz W_p, added to the pixels that it was gathered from */
static place input_pass(const convolution *c, const pass *pass, sherl_real *dz, sherl_real *dx) {
    size_t depth = pass->pixels * c->in;
    sherl_gemm(false, false, pass->rows, depth, c->out, 1, dz + pass->first * c->out, c->out,
               c->weight + pass->pixel * c->in, c->depth, 0, c->gathered, depth);
    return scatter(c, pass, dx);
}

static void run_passes(const convolution *c, pass_task task, sherl_real *y, sherl_real *gradient) {
    size_t pixels = c->window.size * c->window.size;
    place at = {0};
    for (size_t first = 0; first < c->rows; first += CHUNK_ROWS) {
        place after = at;
        for (size_t pixel = 0; pixel < pixels; pixel += c->pixels) {
            pass pass = {.at = at, .first = first, .pixel = pixel};
            pass.rows = c->rows - first < CHUNK_ROWS ? c->rows - first : CHUNK_ROWS;
            pass.pixels = pixels - pixel < c->pixels ? pixels - pixel : c->pixels;
            after = task(c, &pass, y, gradient);
        }
        at = after;
    }
}

/* y = activation(sum_p x_p W_p^T + b) over the pixels p of the window */
static sherl_status convolution_forward(const sherl_op *op, const sherl_tile *tile) {
    convolution c = find_operands(op, tile);
    sherl_real *y = sherl_tile_write(tile, op->output);
    const sherl_real *bias = sherl_op_parameter(op, tile, 1);
    run_passes(&c, forward_pass, y, NULL);
    if (bias || op->settings.convolution.activation != SHERL_IDENTITY)
        tile->kernels->bias_activation(op->settings.convolution.activation, y, bias, c.rows, c.out);
    return SHERL_OK;
}

/* dz = dy activation'(z); db += column sums of dz; dW_p += dz^T x_p; dx_p += dz W_p */
static sherl_status convolution_backward(const sherl_op *op, const sherl_tile *tile) {
    convolution c = find_operands(op, tile);
    sherl_activation activation = op->settings.convolution.activation;
    sherl_real *dz = tile->gradients[op->output]; /* rewritten in place: nothing reads dy after this op */
    sherl_real *dx = sherl_input_gradient(op, tile, 0), *dweight = sherl_op_parameter_gradient(op, tile, 0);
    sherl_real *dbias = sherl_op_parameter_gradient(op, tile, 1);
    if (activation != SHERL_IDENTITY)
        tile->kernels->activation_backward(activation, NULL, sherl_tile_read(tile, op->output), dz, dz, c.rows * c.out,
                                           false);
    if (dbias) tile->kernels->add_column_sums(dz, dbias, c.rows, c.out);
    if (dweight) run_passes(&c, weight_pass, dz, dweight);
    if (!dx) return SHERL_OK;
    if (!op->accumulate[0]) memset(dx, 0, sherl_tile_rows(tile, op->inputs[0]) * c.in * sizeof *dx);
    run_passes(&c, input_pass, dz, dx);
    return SHERL_OK;
}

static void convolution_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    reads->inputs[0] = trainable[0];
    reads->output = op->settings.convolution.activation != SHERL_IDENTITY;
}

const sherl_op_type sherl_convolution_type = {
    .name = "convolution",
    .rows = SHERL_MIXES_ROWS,
    .forward = convolution_forward,
    .backward = convolution_backward,
    .backward_reads = convolution_reads,
    .scratch_bytes = convolution_scratch,
};
