/* A network of ops over values: what a graph builds and what the passes of a program rewrite. */
#ifndef SHERL_PROGRAM_NETWORK_H
#define SHERL_PROGRAM_NETWORK_H

#include "../ops/op.h"

typedef struct sherl_value_info {
    sherl_space space;
    size_t channels;
    bool integer;         /* int32 elements instead of reals */
    uint32_t input;       /* number of the declared input that it is, or SHERL_NONE for the output of an op */
    bool first_rows;      /* of an input: only the first row of each sample is loaded (space SHERL_SAMPLES) */
    bool saved;           /* belongs to an op (statistics) and is no operand */
    bool has_gradient;    /* set by the needs-gradient pass */
} sherl_value_info;

typedef struct sherl_input_info {
    sherl_space space;
    size_t channels;
    bool integer, needs_gradient;
} sherl_input_info;

typedef struct sherl_network {
    const sherl_context *context;
    sherl_value_info *values;
    sherl_input_info *inputs; /* declared inputs, bound at run time in this order */
    sherl_op *ops;            /* in an order in which they can run */
    sherl_value *outputs;
    size_t space_count, value_count, input_count, op_count, output_count;
    size_t value_capacity, input_capacity, op_capacity, output_capacity;
    sherl_value loss;         /* or SHERL_NONE */
} sherl_network;

void sherl_network_release(sherl_network *network);
/* Each appends a copy. */
sherl_status sherl_network_add_value(sherl_network *network, sherl_value_info info, sherl_value *value);
sherl_status sherl_network_add_input(sherl_network *network, sherl_input_info info);
sherl_status sherl_network_add_op(sherl_network *network, const sherl_op *op);
sherl_status sherl_network_add_output(sherl_network *network, sherl_value value);

/* How many inputs of an op are read row by row, in the row space of the output. */
static inline uint32_t sherl_aligned_inputs(const sherl_op *op) {
    return op->type->rows == SHERL_ROW_WISE ? op->input_count : op->type->aligned_inputs;
}

#endif
