/* Cross-entropy over a vocabulary whose frozen map is part of the op: the logits of few rows exist at a time, and those
 * of a whole tile never do. */
#include <math.h>
#include <string.h>

#include "op.h"
#include "product.h"

enum { CHUNK = 64 }; /* rows whose logits exist at one time */

/* The operands of one call. x: (rows, channels), W: (vocabulary, channels), y: (rows, 1), or (rows, 2) with the best
 * word; gradient: (rows, channels), NULL where none is wanted. */
typedef struct vocabulary_loss {
    const sherl_op *op;
    const sherl_tile *tile;
    size_t rows, channels, vocabulary, columns;
    const sherl_real *x, *table, *weights;
    const int32_t *targets;
    sherl_real *y, *gradient, *logits;
    void *scratch;
} vocabulary_loss;

/* Bytes of what the products need, before the logits. */
static bool product_bytes(const sherl_op *op, size_t channels, size_t *bytes) {
    *bytes = SHERL_BFLOAT16_SCRATCH * sizeof(uint16_t);
    return op->bfloat16 || (sherl_product_scratch(op->settings.vocabulary_loss.vocabulary, channels, bytes) &&
                            sherl_multiply_sizes(*bytes, sizeof(sherl_real), bytes));
}

static bool vocabulary_loss_scratch(const sherl_op *op, const sherl_limits *limits, size_t *bytes) {
    const size_t rows = limits->rows[limits->value_spaces[op->output]];
    size_t logits;
    return product_bytes(op, limits->value_channels[op->inputs[0]], bytes) &&
           sherl_multiply_sizes(op->settings.vocabulary_loss.vocabulary, rows < CHUNK ? rows : CHUNK, &logits) &&
           sherl_multiply_sizes(logits, sizeof(sherl_real), &logits) && sherl_add_sizes(*bytes, logits, bytes);
}

static vocabulary_loss find_operands(const sherl_op *op, const sherl_tile *tile) {
    vocabulary_loss l = {.op = op,
                         .tile = tile,
                         .rows = sherl_tile_rows(tile, op->output),
                         .channels = sherl_tile_channels(tile, op->inputs[0]),
                         .vocabulary = op->settings.vocabulary_loss.vocabulary,
                         .columns = sherl_tile_channels(tile, op->output),
                         .x = sherl_tile_read(tile, op->inputs[0]),
                         .table = sherl_op_parameter(op, tile, 0),
                         .weights = sherl_tile_read(tile, op->inputs[2]),
                         .targets = sherl_tile_integers(tile, op->inputs[1]),
                         .y = sherl_tile_write(tile, op->output),
                         .scratch = tile->scratch};
    size_t bytes = 0;
    product_bytes(op, l.channels, &bytes); /* did not overflow when the scratch was planned */
    l.logits = (sherl_real *)((char *)tile->scratch + bytes);
    if (op->saved != SHERL_NONE && sherl_input_gradient(op, tile, 0)) l.gradient = sherl_tile_write(tile, op->saved);
    return l;
}

/* logits = x W^T of some rows */
static void find_logits(const vocabulary_loss *l, size_t from, size_t rows) {
    const sherl_real *x = l->x + from * l->channels;
    if (l->op->bfloat16)
        l->tile->kernels->bfloat16_product(x, rows, l->channels, l->op->packed_weight, l->vocabulary, l->logits,
                                           l->vocabulary, false, l->scratch);
    else
        sherl_product_transposed_b(l->tile->kernels, (sherl_matrix){x, l->channels},
                                   (sherl_matrix){l->table, l->channels},
                                   (sherl_product_sizes){.m = rows, .n = l->vocabulary, .k = l->channels}, l->logits,
                                   l->vocabulary, false, l->scratch);
}

/* gradient = dlogits W of some rows; dlogits lie where the logits did */
static void find_gradient(const vocabulary_loss *l, size_t from, size_t rows) {
    sherl_real *gradient = l->gradient + from * l->channels;
    if (l->op->bfloat16)
        l->tile->kernels->bfloat16_product(l->logits, rows, l->vocabulary, l->op->packed_transpose, l->channels,
                                           gradient, l->channels, false, l->scratch);
    else
        sherl_product(l->tile->kernels, (sherl_matrix){l->logits, l->vocabulary}, (sherl_matrix){l->table, l->channels},
                      (sherl_product_sizes){.m = rows, .n = l->channels, .k = l->vocabulary}, gradient, l->channels,
                      false);
}

static size_t largest(const sherl_real *x, size_t count) {
    size_t best = 0;
    for (size_t i = 1; i < count; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* With z = W x and q = (1 - smoothing) onehot(target) + smoothing / vocabulary:
 * y = weight (log sum_v exp z_v - q . z); dz = weight (softmax(z) - q), over the logits */
static void finish_row(const vocabulary_loss *l, size_t row, sherl_real *z) {
    const double smoothing = l->op->settings.vocabulary_loss.label_smoothing;
    const size_t target = (size_t)l->targets[row];
    const sherl_real weight = l->weights[row];
    sherl_real *y = l->y + row * l->columns, logsumexp;
    double on_target = (double)z[target], on_each = 0;
    if (smoothing > 0)
        for (size_t v = 0; v < l->vocabulary; v++) on_each += (double)z[v];
    if (l->columns > 1) y[1] = (sherl_real)largest(z, l->vocabulary);
    l->tile->kernels->softmax_forward(z, 1, 1, l->vocabulary, 0, &logsumexp, 1);
    y[0] = weight *
           (sherl_real)((double)logsumexp - (1 - smoothing) * on_target - smoothing * on_each / (double)l->vocabulary);
    if (!l->gradient) return;
    const sherl_real spread = (sherl_real)(smoothing / (double)l->vocabulary);
    for (size_t v = 0; v < l->vocabulary; v++) z[v] = weight * (z[v] - spread);
    z[target] -= weight * (sherl_real)(1 - smoothing);
}

/* The gradient is found here too, while the logits are at hand. */
static sherl_status vocabulary_loss_forward(const sherl_op *op, const sherl_tile *tile) {
    const vocabulary_loss l = find_operands(op, tile);
    for (size_t row = 0; row < l.rows; row++)
        if (l.targets[row] < 0 || (size_t)l.targets[row] >= l.vocabulary) return SHERL_INDEX_OUT_OF_RANGE;
    for (size_t from = 0; from < l.rows; from += CHUNK) {
        const size_t rows = l.rows - from < CHUNK ? l.rows - from : CHUNK;
        find_logits(&l, from, rows);
        for (size_t row = 0; row < rows; row++) finish_row(&l, from + row, l.logits + row * l.vocabulary);
        if (l.gradient) find_gradient(&l, from, rows);
    }
    return SHERL_OK;
}

/* dx (+)= dy gradient */
static sherl_status vocabulary_loss_backward(const sherl_op *op, const sherl_tile *tile) {
    const size_t rows = sherl_tile_rows(tile, op->output), channels = sherl_tile_channels(tile, op->inputs[0]);
    const sherl_real *dy = sherl_output_gradient(op, tile), *gradient = sherl_tile_read(tile, op->saved);
    sherl_real *dx = sherl_input_gradient(op, tile, 0);
    if (dx == NULL) return SHERL_OK;
    for (size_t row = 0; row < rows; row++, dx += channels, gradient += channels) {
        if (!op->accumulate[0]) memset(dx, 0, channels * sizeof *dx);
        tile->kernels->add_scaled(dx, dy[row], gradient, dx, channels);
    }
    return SHERL_OK;
}

const sherl_op_type sherl_vocabulary_loss_type = {.name = "vocabulary_cross_entropy",
                                                  .rows = SHERL_ROW_WISE,
                                                  .forward = vocabulary_loss_forward,
                                                  .backward = vocabulary_loss_backward,
                                                  .scratch_bytes = vocabulary_loss_scratch};

/* With the best word beside the loss, for evaluation: no gradient. */
const sherl_op_type sherl_vocabulary_best_type = {.name = "vocabulary_cross_entropy",
                                                  .rows = SHERL_ROW_WISE,
                                                  .forward = vocabulary_loss_forward,
                                                  .scratch_bytes = vocabulary_loss_scratch};
