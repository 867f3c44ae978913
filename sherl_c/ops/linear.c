/* The linear op: a matrix product, a bias, and an activation whose derivative the output tells. */
#include "op.h"
#include "product.h"

enum {
    UNIT = 16,             /* of channels: parts begin at whole vectors */
    PARTS = 8,             /* of a wide op's weights, dealt to the threads */
    LEAST_SPREAD = 1 << 15 /* weights below which spreading costs more than it gains */
};

/* The operands of one call. x: (rows, in), W: (out, in), b: (1, out), y: (rows, out); gradients are NULL where none is
 * wanted. */
typedef struct linear {
    const sherl_op *op;
    const sherl_tile *tile;
    size_t rows, in, out;
    const sherl_real *weight, *bias, *x;
    sherl_real *y, *dz, *dx, *dweight, *dbias;
    void *scratch; /* of the bfloat16 product, or to pack weights in */
} linear;

static linear find_operands(const sherl_op *op, const sherl_tile *tile) {
    return (linear){.op = op,
                    .tile = tile,
                    .rows = sherl_tile_rows(tile, op->output),
                    .in = sherl_tile_channels(tile, op->inputs[0]),
                    .out = sherl_tile_channels(tile, op->output),
                    .weight = sherl_op_parameter(op, tile, 0),
                    .bias = sherl_op_parameter(op, tile, 1),
                    .x = sherl_tile_read(tile, op->inputs[0]),
                    .y = sherl_tile_write(tile, op->output),
                    .scratch = tile->scratch};
}

/* Of a wide op every part has its own, and its products, of few rows, need none. */
static bool linear_scratch(const sherl_op *op, const sherl_limits *limits, size_t *bytes) {
    *bytes = op->bfloat16 ? (op->wide ? PARTS : 1) * SHERL_BFLOAT16_SCRATCH * sizeof(uint16_t) : 0;
    if (op->bfloat16 || op->wide) return true;
    return sherl_product_scratch(limits->value_channels[op->output], limits->value_channels[op->inputs[0]], bytes) &&
           sherl_multiply_sizes(*bytes, sizeof(sherl_real), bytes);
}

/* Runs `part` over 0 … size-1 at once, or, on a wide op with much weight, in parts over the threads. The parts are fixed,
 * so that bits do not depend on how many threads there are. */
typedef void (*linear_part)(const linear *l, size_t from, size_t count);
typedef struct spread {
    const linear *l;
    linear_part part;
    size_t size;
} spread;

static void run_part(void *state, size_t number, size_t worker) {
    const spread *spread = state;
    (void)worker;
    linear l = *spread->l;
    size_t unit = l.op->bfloat16 ? SHERL_BFLOAT16_PANEL : UNIT, units = (spread->size + unit - 1) / unit;
    size_t from = units * number / PARTS * unit, end = units * (number + 1) / PARTS * unit;
    if (end > spread->size) end = spread->size;
    if (l.op->bfloat16) l.scratch = (uint16_t *)l.scratch + number * SHERL_BFLOAT16_SCRATCH;
    if (end > from) spread->part(&l, from, end - from);
}

static void run_parts(const linear *l, linear_part part, size_t size) {
    spread spread = {.l = l, .part = part, .size = size};
    if (l->op->wide && l->in * l->out >= LEAST_SPREAD)
        sherl_tile_spread(l->tile, PARTS, run_part, &spread);
    else
        part(l, 0, size);
}

/* y = x W^T, some of the output channels */
static void multiply(const linear *l, size_t from, size_t count) {
    if (l->op->bfloat16)
        l->tile->kernels->bfloat16_product(l->x, l->rows, l->in,
                                           l->op->packed_weight + sherl_bfloat16_packed_size(l->in, from), count,
                                           l->y + from, l->out, false, l->scratch);
    else
        sherl_product_transposed_b(l->tile->kernels, (sherl_matrix){l->x, l->in},
                                   (sherl_matrix){l->weight + from * l->in, l->in},
                                   (sherl_product_sizes){.m = l->rows, .n = count, .k = l->in}, l->y + from, l->out,
                                   false, l->op->wide ? NULL : l->scratch);
}

/* y = activation(x W^T + b), some of the output channels */
static void forward_outputs(const linear *l, size_t from, size_t count) {
    multiply(l, from, count);
    if (!l->bias && l->op->settings.activation == SHERL_IDENTITY) return;
    const sherl_real *bias = l->bias ? l->bias + from : NULL;
    size_t calls = count == l->out ? 1 : l->rows; /* rows that lie apart go one by one */
    for (size_t row = 0; row < calls; row++)
        l->tile->kernels->bias_activation(l->op->settings.activation, l->y + row * l->out + from, bias, l->rows / calls,
                                          count);
}

static sherl_status linear_forward(const sherl_op *op, const sherl_tile *tile) {
    linear l = find_operands(op, tile);
    run_parts(&l, forward_outputs, l.out);
    return SHERL_OK;
}

/* dx (+)= dz W, some of the input channels */
static void backward_inputs(const linear *l, size_t from, size_t count) {
    if (l->op->bfloat16) {
        l->tile->kernels->bfloat16_product(l->dz, l->rows, l->out,
                                           l->op->packed_transpose + sherl_bfloat16_packed_size(l->out, from), count,
                                           l->dx + from, l->in, l->op->accumulate[0], l->scratch);
        return;
    }
    sherl_product(l->tile->kernels, (sherl_matrix){l->dz, l->out}, (sherl_matrix){l->weight + from, l->in},
                  (sherl_product_sizes){.m = l->rows, .n = count, .k = l->out}, l->dx + from, l->in,
                  l->op->accumulate[0]);
}

/* dW += dz^T x, some of the output channels */
static void backward_weights(const linear *l, size_t from, size_t count) {
    sherl_add_product_transposed_a(l->tile->kernels, (sherl_matrix){l->dz + from, l->out}, (sherl_matrix){l->x, l->in},
                                   (sherl_product_sizes){.m = count, .n = l->in, .k = l->rows},
                                   l->dweight + from * l->in, l->in);
}

/* dz = dy activation'(z); dx = dz W; dW += dz^T x; db += column sums of dz */
static sherl_status linear_backward(const sherl_op *op, const sherl_tile *tile) {
    linear l = find_operands(op, tile);
    l.dz = tile->gradients[op->output]; /* rewritten in place: nothing reads dy after this op */
    l.dx = sherl_input_gradient(op, tile, 0);
    l.dweight = sherl_op_parameter_gradient(op, tile, 0);
    l.dbias = sherl_op_parameter_gradient(op, tile, 1);
    if (op->settings.activation != SHERL_IDENTITY)
        tile->kernels->activation_backward(op->settings.activation, NULL, l.y, l.dz, l.dz, l.rows * l.out, false);
    if (l.dx) run_parts(&l, backward_inputs, l.in);
    if (l.dweight) run_parts(&l, backward_weights, l.out);
    if (l.dbias) tile->kernels->add_column_sums(l.dz, l.dbias, l.rows, l.out);
    return SHERL_OK;
}

static void linear_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    reads->inputs[0] = trainable[0];
    reads->output = op->settings.activation != SHERL_IDENTITY;
}

const sherl_op_type sherl_linear_type = {
    .name = "linear",
    .rows = SHERL_ROW_WISE,
    .forward = linear_forward,
    .backward = linear_backward,
    .backward_reads = linear_reads,
    .scratch_bytes = linear_scratch,
};
