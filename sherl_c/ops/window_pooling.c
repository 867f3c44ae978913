/* Pooling of images by windows that lie side by side: the maximum plus the mean. */
#include <string.h>

#include "../base/memory.h"
#include "op.h"

/* The windows of one image. x: (height * width, channels), y: (windows, channels) */
typedef struct image {
    const sherl_real *x;
    sherl_real *dx; /* or NULL */
    size_t y_row;   /* its first row in y */
    size_t width, across, down, channels, size;
} image;

static image find_image(const sherl_op *op, const sherl_tile *tile, size_t sample) {
    sherl_space from = tile->value_spaces[op->inputs[0]], to = tile->value_spaces[op->output];
    const size_t *grid = sherl_tile_grid(tile, to, sample);
    size_t channels = sherl_tile_channels(tile, op->output), first = sherl_tile_segment(tile, from, sample);
    sherl_real *dx = sherl_input_gradient(op, tile, 0);
    return (image){.x = sherl_tile_read(tile, op->inputs[0]) + first * channels,
                   .dx = dx ? dx + first * channels : NULL,
                   .y_row = sherl_tile_segment(tile, to, sample),
                   .width = sherl_tile_grid(tile, from, sample)[1],
                   .down = grid[0],
                   .across = grid[1],
                   .channels = channels,
                   .size = op->settings.window.size};
}

/* Where pixel `pixel` of window `window` starts in x. */
static size_t pixel_at(const image *image, size_t window, size_t pixel) {
    size_t y = window / image->across * image->size + pixel / image->size;
    size_t x = window % image->across * image->size + pixel % image->size;
    return (y * image->width + x) * image->channels;
}

/* Is a value the new maximum: larger, or not a number where the former one is? */
static inline bool exceeds(sherl_real value, sherl_real maximum) {
    return value > maximum || (value != value && maximum == maximum);
}

/* y = max_p x_p + sum_p x_p / size^2 over the pixels p of each window; a NaN wins over numbers */
static sherl_status window_pool_forward(const sherl_op *op, const sherl_tile *tile) {
    size_t channels = sherl_tile_channels(tile, op->output);
    sherl_real *sum = tile->scratch; /* (1, channels) */
    for (size_t sample = 0; sample < tile->samples; sample++) {
        image image = find_image(op, tile, sample);
        size_t pixels = image.size * image.size;
        sherl_real *y = sherl_tile_write(tile, op->output) + image.y_row * channels;
        for (size_t window = 0; window < image.down * image.across; window++, y += channels) {
            memcpy(y, image.x + pixel_at(&image, window, 0), channels * sizeof *y);
            memcpy(sum, y, channels * sizeof *y);
            for (size_t pixel = 1; pixel < pixels; pixel++) {
                const sherl_real *x = image.x + pixel_at(&image, window, pixel);
                for (size_t c = 0; c < channels; c++) y[c] = exceeds(x[c], y[c]) ? x[c] : y[c];
                tile->kernels->accumulate(x, sum, channels);
            }
            tile->kernels->add_scaled(y, 1 / (sherl_real)pixels, sum, y, channels);
        }
    }
    return SHERL_OK;
}

/* dx_p (+)= dy / size^2, and + dy for the first of the largest pixels, which is found again */
static sherl_status window_pool_backward(const sherl_op *op, const sherl_tile *tile) {
    size_t channels = sherl_tile_channels(tile, op->output), *largest = tile->scratch; /* (1, channels) */
    sherl_real *dx = sherl_input_gradient(op, tile, 0);
    if (!dx) return SHERL_OK;
    if (!op->accumulate[0]) memset(dx, 0, sherl_tile_rows(tile, op->inputs[0]) * channels * sizeof *dx);
    for (size_t sample = 0; sample < tile->samples; sample++) {
        image image = find_image(op, tile, sample);
        size_t pixels = image.size * image.size;
        const sherl_real *dy = sherl_output_gradient(op, tile) + image.y_row * channels;
        for (size_t window = 0; window < image.down * image.across; window++, dy += channels) {
            for (size_t c = 0; c < channels; c++) largest[c] = pixel_at(&image, window, 0) + c;
            for (size_t pixel = 0; pixel < pixels; pixel++) {
                size_t at = pixel_at(&image, window, pixel);
                for (size_t c = 0; c < channels; c++)
                    largest[c] = exceeds(image.x[at + c], image.x[largest[c]]) ? at + c : largest[c];
                tile->kernels->add_scaled(image.dx + at, 1 / (sherl_real)pixels, dy, image.dx + at, channels);
            }
            for (size_t c = 0; c < channels; c++) image.dx[largest[c]] += dy[c];
        }
    }
    return SHERL_OK;
}

static void window_pool_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)op;
    (void)trainable;
    reads->inputs[0] = true;
}

static bool window_pool_scratch(const sherl_op *op, const sherl_limits *limits, size_t *bytes) {
    size_t element = sizeof(size_t) > sizeof(sherl_real) ? sizeof(size_t) : sizeof(sherl_real);
    return sherl_multiply_sizes(limits->value_channels[op->output], element, bytes);
}

const sherl_op_type sherl_window_pool_type = {
    .name = "window_pool",
    .rows = SHERL_MIXES_ROWS,
    .forward = window_pool_forward,
    .backward = window_pool_backward,
    .backward_reads = window_pool_reads,
    .scratch_bytes = window_pool_scratch,
};
