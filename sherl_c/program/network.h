/* A network of ops over values: what a graph builds and what the passes of a program rewrite. */
#ifndef SHERL_PROGRAM_NETWORK_H
#define SHERL_PROGRAM_NETWORK_H

#include "../ops/op.h"

/* Where the rows of a row space come from. */
typedef enum sherl_space_kind {
    SHERL_SPACE_SEGMENTS, /* a batch brings their numbers */
    SHERL_SPACE_FIXED,    /* every sample has as many */
    SHERL_SPACE_GRID,     /* pixels: a batch brings heights and widths */
    SHERL_SPACE_DERIVED   /* pixels: heights and widths follow from those of another space */
} sherl_space_kind;

typedef struct sherl_space_info {
    sherl_space_kind kind;
    size_t rows; /* of a sample, where they are fixed */
} sherl_space_info;

/* A window over the images of one space gives the images of another. */
typedef struct sherl_fit {
    sherl_space from, to;
    sherl_window window;
} sherl_fit;

typedef struct sherl_value_info {
    sherl_space space;
    size_t channels;
    bool integer;   /* int32 elements instead of reals */
    uint32_t input; /* number of the declared input that it is, or SHERL_NONE for the output of an op */
    bool selected;  /* of an input: one row of each sample is loaded (space SHERL_SAMPLES), that of `selection` */
    uint32_t selection;
    bool saved;        /* belongs to an op (statistics) and is no operand */
    bool has_gradient; /* set by the needs-gradient pass */
} sherl_value_info;

typedef struct sherl_input_info {
    sherl_space space;
    size_t channels;
    bool integer, needs_gradient;
} sherl_input_info;

/* Which row of each sample's segment. */
typedef struct sherl_selection {
    sherl_pooling row;  /* SHERL_POOL_FIRST, SHERL_POOL_LAST or SHERL_POOL_POSITION */
    sherl_space space;  /* whose segments */
    uint32_t positions; /* of SHERL_POOL_POSITION: number of the declared input, else SHERL_NONE */
} sherl_selection;

typedef struct sherl_network {
    const sherl_context *context;
    sherl_value_info *values;
    sherl_input_info *inputs; /* declared inputs, bound at run time in this order */
    sherl_op *ops;            /* in an order in which they can run */
    sherl_value *outputs;
    sherl_selection *selections; /* number 0 is the first row of any space; a graph begins with it */
    sherl_space_info *spaces;
    sherl_fit *fits; /* in an order in which heights and widths can be derived */
    size_t space_count, fit_count, value_count, input_count, op_count, output_count, selection_count;
    size_t space_capacity, fit_capacity, value_capacity, input_capacity, op_capacity, output_capacity;
    size_t selection_capacity;
    sherl_value loss; /* or SHERL_NONE */
} sherl_network;

void sherl_network_release(sherl_network *network);
/* Each appends a copy. */
sherl_status sherl_network_add_space(sherl_network *network, sherl_space_info info, sherl_space *space);
sherl_status sherl_network_add_fit(sherl_network *network, sherl_fit fit);
sherl_status sherl_network_add_value(sherl_network *network, sherl_value_info info, sherl_value *value);
sherl_status sherl_network_add_input(sherl_network *network, sherl_input_info info);
sherl_status sherl_network_add_op(sherl_network *network, const sherl_op *op);
sherl_status sherl_network_add_output(sherl_network *network, sherl_value value);
/* Appends a selection, or finds the number of an equal one. */
sherl_status sherl_network_add_selection(sherl_network *network, sherl_selection selection, uint32_t *number);

extern const sherl_selection sherl_first_rows; /* selection 0 of every network */
/* Gives an empty network the row spaces of another. */
sherl_status sherl_network_copy_spaces(sherl_network *network, const sherl_network *from);

/* Are the rows of a space pixels? */
static inline bool sherl_space_is_images(const sherl_network *network, sherl_space space) {
    return network->spaces[space].kind == SHERL_SPACE_GRID || network->spaces[space].kind == SHERL_SPACE_DERIVED;
}

/* How many inputs of an op are read row by row, in the row space of the output. */
static inline uint32_t sherl_aligned_inputs(const sherl_op *op) {
    return op->type->rows == SHERL_ROW_WISE ? op->input_count : op->type->aligned_inputs;
}

#endif
