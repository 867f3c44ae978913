/* Losses, one a row: y = weights * loss(x, target). Inputs: x (rows, channels), targets, weights (rows, 1);
 * y: (rows, 1). Targets and weights get no gradient. */
#include <math.h>
#include <string.h>

#include "op.h"

static void loss_backward_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)op, (void)trainable;
    reads->inputs[0] = reads->inputs[1] = reads->inputs[2] = true;
}

/* ---- Cross-entropy: loss = -sum_c q_c w_c log softmax(x)_c, q = (1 - smoothing) onehot(target) + smoothing / classes.
 * Class weights w: parameter slot 0, (1, classes), all ones when absent. */

static sherl_real class_weight(const sherl_real *class_weights, size_t c) {
    return class_weights == NULL ? 1 : class_weights[c];
}

/* sum_c q_c w_c without the part of the target: smoothing / classes sum_c w_c */
static double smoothed_weight(const sherl_real *class_weights, size_t classes, double smoothing) {
    double sum = 0;
    for (size_t c = 0; c < classes; c++) sum += (double)class_weight(class_weights, c);
    return smoothing * sum / (double)classes;
}

/* softmax(x) into p: (classes); returns log sum_c exp(x_c) */
static sherl_real softmax(const sherl_tile *tile, const sherl_real *x, size_t classes, sherl_real *p) {
    sherl_real logsumexp;
    memcpy(p, x, classes * sizeof *p);
    tile->kernels->softmax_forward(p, 1, 1, classes, 0, &logsumexp, 1);
    return logsumexp;
}

static sherl_status cross_entropy_forward(const sherl_op *op, const sherl_tile *tile) {
    const size_t rows = sherl_tile_rows(tile, op->output), classes = sherl_tile_channels(tile, op->inputs[0]);
    const sherl_real *x = sherl_tile_read(tile, op->inputs[0]), *weights = sherl_tile_read(tile, op->inputs[2]);
    const int32_t *targets = sherl_tile_integers(tile, op->inputs[1]);
    const sherl_real *class_weights = sherl_op_parameter(op, tile, 0);
    const double smoothing = op->settings.cross_entropy.label_smoothing;
    sherl_real *y = sherl_tile_write(tile, op->output);
    for (size_t row = 0; row < rows; row++, x += classes) {
        if (targets[row] < 0 || (size_t)targets[row] >= classes) return SHERL_INDEX_OUT_OF_RANGE;
        const size_t target = (size_t)targets[row];
        const double logsumexp = (double)softmax(tile, x, classes, tile->scratch);
        /* -log softmax(x)_c = logsumexp - x_c */
        double loss = (1 - smoothing) * (double)class_weight(class_weights, target) * (logsumexp - (double)x[target]);
        if (smoothing > 0) {
            double sum = 0;
            for (size_t c = 0; c < classes; c++)
                sum += (double)class_weight(class_weights, c) * (logsumexp - (double)x[c]);
            loss += smoothing / (double)classes * sum;
        }
        y[row] = weights[row] * (sherl_real)loss;
    }
    return SHERL_OK;
}

static sherl_status cross_entropy_backward(const sherl_op *op, const sherl_tile *tile) {
    const size_t rows = sherl_tile_rows(tile, op->output), classes = sherl_tile_channels(tile, op->inputs[0]);
    const sherl_real *x = sherl_tile_read(tile, op->inputs[0]), *weights = sherl_tile_read(tile, op->inputs[2]);
    const int32_t *targets = sherl_tile_integers(tile, op->inputs[1]);
    const sherl_real *class_weights = sherl_op_parameter(op, tile, 0), *dy = sherl_output_gradient(op, tile);
    const double smoothing = op->settings.cross_entropy.label_smoothing;
    const double spread = smoothed_weight(class_weights, classes, smoothing);
    sherl_real *dx = sherl_input_gradient(op, tile, 0), *p = tile->scratch;
    if (dx == NULL) return SHERL_OK;
    for (size_t row = 0; row < rows; row++, x += classes, dx += classes) {
        const size_t target = (size_t)targets[row];
        const sherl_real scale = dy[row] * weights[row];
        const sherl_real on_target = (sherl_real)((1 - smoothing) * (double)class_weight(class_weights, target));
        const sherl_real on_each = (sherl_real)(smoothing / (double)classes), total = on_target + (sherl_real)spread;
        /* y = weight sum_c q_c w_c (logsumexp - x_c): dx_c = dy weight (softmax(x)_c sum_k q_k w_k - q_c w_c) */
        softmax(tile, x, classes, p);
        for (size_t c = 0; c < classes; c++) p[c] = total * p[c] - on_each * class_weight(class_weights, c);
        p[target] -= on_target;
        if (!op->accumulate[0]) memset(dx, 0, classes * sizeof *dx);
        tile->kernels->add_scaled(dx, scale, p, dx, classes);
    }
    return SHERL_OK;
}

/* One row of classes: the softmax. */
static bool cross_entropy_scratch_bytes(const sherl_op *op, const sherl_limits *limits, size_t *bytes) {
    return sherl_multiply_sizes(limits->value_channels[op->inputs[0]], sizeof(sherl_real), bytes);
}

const sherl_op_type sherl_cross_entropy_type = {.name = "cross_entropy",
                                                .rows = SHERL_ROW_WISE,
                                                .forward = cross_entropy_forward,
                                                .backward = cross_entropy_backward,
                                                .backward_reads = loss_backward_reads,
                                                .scratch_bytes = cross_entropy_scratch_bytes};

/* ---- Losses that are a mean over the channels of one term a channel ---- */

/* y = weights sum_c term(x_c, t_c) / channels */
static sherl_status mean_forward(const sherl_op *op, const sherl_tile *tile, double (*term)(double x, double t)) {
    const size_t rows = sherl_tile_rows(tile, op->output), channels = sherl_tile_channels(tile, op->inputs[0]);
    const sherl_real *x = sherl_tile_read(tile, op->inputs[0]), *targets = sherl_tile_read(tile, op->inputs[1]);
    const sherl_real *weights = sherl_tile_read(tile, op->inputs[2]);
    sherl_real *y = sherl_tile_write(tile, op->output);
    for (size_t row = 0; row < rows; row++, x += channels, targets += channels) {
        double sum = 0;
        for (size_t c = 0; c < channels; c++) sum += term((double)x[c], (double)targets[c]);
        y[row] = weights[row] * (sherl_real)(sum / (double)channels);
    }
    return SHERL_OK;
}

/* dx_c = dy weights slope(x_c, t_c) / channels, slope = dterm/dx */
static sherl_status mean_backward(const sherl_op *op, const sherl_tile *tile, double (*slope)(double x, double t)) {
    const size_t rows = sherl_tile_rows(tile, op->output), channels = sherl_tile_channels(tile, op->inputs[0]);
    const sherl_real *x = sherl_tile_read(tile, op->inputs[0]), *targets = sherl_tile_read(tile, op->inputs[1]);
    const sherl_real *weights = sherl_tile_read(tile, op->inputs[2]), *dy = sherl_output_gradient(op, tile);
    sherl_real *dx = sherl_input_gradient(op, tile, 0);
    if (dx == NULL) return SHERL_OK;
    for (size_t row = 0; row < rows; row++, x += channels, targets += channels, dx += channels) {
        const double scale = (double)dy[row] * (double)weights[row] / (double)channels;
        for (size_t c = 0; c < channels; c++) {
            const sherl_real gradient = (sherl_real)(scale * slope((double)x[c], (double)targets[c]));
            dx[c] = op->accumulate[0] ? dx[c] + gradient : gradient;
        }
    }
    return SHERL_OK;
}

/* -t log sigmoid(x) - (1 - t) log(1 - sigmoid(x)), in a form that no x overflows */
static double binary_term(double x, double t) { return (x > 0 ? x : 0) - x * t + log1p(exp(-fabs(x))); }

static sherl_status binary_forward(const sherl_op *op, const sherl_tile *tile) {
    return mean_forward(op, tile, binary_term);
}

/* dterm/dx = sigmoid(x) - t */
static double binary_slope(double x, double t) {
    const double small = exp(-fabs(x));
    return (x > 0 ? 1 : small) / (1 + small) - t;
}

static sherl_status binary_backward(const sherl_op *op, const sherl_tile *tile) {
    return mean_backward(op, tile, binary_slope);
}

const sherl_op_type sherl_binary_cross_entropy_type = {.name = "binary_cross_entropy",
                                                       .rows = SHERL_ROW_WISE,
                                                       .forward = binary_forward,
                                                       .backward = binary_backward,
                                                       .backward_reads = loss_backward_reads};

/* (x - t)^2 */
static double squared_term(double x, double t) { return (x - t) * (x - t); }

static sherl_status squared_forward(const sherl_op *op, const sherl_tile *tile) {
    return mean_forward(op, tile, squared_term);
}

/* dterm/dx = 2 (x - t) */
static double squared_slope(double x, double t) { return 2 * (x - t); }

static sherl_status squared_backward(const sherl_op *op, const sherl_tile *tile) {
    return mean_backward(op, tile, squared_slope);
}

const sherl_op_type sherl_squared_error_type = {.name = "squared_error",
                                                .rows = SHERL_ROW_WISE,
                                                .forward = squared_forward,
                                                .backward = squared_backward,
                                                .backward_reads = loss_backward_reads};

/* ---- Cross-entropy over the rows of a sample: which of its rows is meant, for each channel of the logits. Inputs:
 * x (rows, channels), the target row within the sample for each channel, (samples, 1) each, weights (samples, 1);
 * y: (samples, 1). */

/* log sum_r exp(x[r]) over the rows of one channel; x has a stride of `channels` */
static double log_sum_rows(const sherl_real *x, size_t rows, size_t channels) {
    double largest = (double)x[0], sum = 0;
    for (size_t r = 1; r < rows; r++) largest = fmax(largest, (double)x[r * channels]);
    for (size_t r = 0; r < rows; r++) sum += exp((double)x[r * channels] - largest);
    return largest + log(sum);
}

/* y = weight sum_c (log sum_r exp(x[r][c]) - x[target_c][c]) / channels */
static sherl_status row_cross_entropy_forward(const sherl_op *op, const sherl_tile *tile) {
    const sherl_space space = tile->value_spaces[op->inputs[0]];
    const size_t channels = sherl_tile_channels(tile, op->inputs[0]);
    const sherl_real *x = sherl_tile_read(tile, op->inputs[0]);
    const sherl_real *weights = sherl_tile_read(tile, op->inputs[channels + 1]);
    sherl_real *y = sherl_tile_write(tile, op->output);
    for (size_t sample = 0; sample < tile->samples; sample++) {
        const size_t rows = sherl_tile_segment(tile, space, sample + 1) - sherl_tile_segment(tile, space, sample);
        double loss = 0;
        for (size_t c = 0; c < channels; c++) {
            const int32_t target = sherl_tile_integers(tile, op->inputs[c + 1])[sample];
            if (target < 0 || (size_t)target >= rows) return SHERL_INDEX_OUT_OF_RANGE;
            loss += log_sum_rows(x + c, rows, channels) - (double)x[(size_t)target * channels + c];
        }
        y[sample] = weights[sample] * (sherl_real)(loss / (double)channels);
        x += rows * channels;
    }
    return SHERL_OK;
}

/* dx[r][c] (+)= dy weight (softmax over rows(x)[r][c] - (r is target_c)) / channels */
static sherl_status row_cross_entropy_backward(const sherl_op *op, const sherl_tile *tile) {
    const sherl_space space = tile->value_spaces[op->inputs[0]];
    const size_t channels = sherl_tile_channels(tile, op->inputs[0]);
    const sherl_real *x = sherl_tile_read(tile, op->inputs[0]), *dy = sherl_output_gradient(op, tile);
    const sherl_real *weights = sherl_tile_read(tile, op->inputs[channels + 1]);
    sherl_real *dx = sherl_input_gradient(op, tile, 0);
    if (dx == NULL) return SHERL_OK;
    for (size_t sample = 0; sample < tile->samples; sample++) {
        const size_t rows = sherl_tile_segment(tile, space, sample + 1) - sherl_tile_segment(tile, space, sample);
        const double scale = (double)dy[sample] * (double)weights[sample] / (double)channels;
        for (size_t c = 0; c < channels; c++) {
            const size_t target = (size_t)sherl_tile_integers(tile, op->inputs[c + 1])[sample];
            const double logsumexp = log_sum_rows(x + c, rows, channels);
            for (size_t r = 0; r < rows; r++) {
                const double share = exp((double)x[r * channels + c] - logsumexp);
                const sherl_real gradient = (sherl_real)(scale * (share - (r == target ? 1 : 0)));
                dx[r * channels + c] = op->accumulate[0] ? dx[r * channels + c] + gradient : gradient;
            }
        }
        x += rows * channels;
        dx += rows * channels;
    }
    return SHERL_OK;
}

static void row_cross_entropy_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)trainable;
    for (uint32_t i = 0; i < op->input_count; i++) reads->inputs[i] = true;
}

const sherl_op_type sherl_row_cross_entropy_type = {.name = "row_cross_entropy",
                                                    .rows = SHERL_MIXES_ROWS,
                                                    .forward = row_cross_entropy_forward,
                                                    .backward = row_cross_entropy_backward,
                                                    .backward_reads = row_cross_entropy_reads};
