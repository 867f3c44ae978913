/* The demand pass: rewrites a graph so that only the rows which somebody reads are computed.
 *
 * "The first row of each sample" is asked for by first-token pooling. Walking up from the outputs, a value that is only
 * asked for its first rows is computed on those alone (in SHERL_SAMPLES, one row a sample) if its op reads some inputs
 * row by row: a row-wise op passes the demand on to all its inputs; an attention passes it on to its queries while keys
 * and values keep all rows. Where a value is asked for in full as well, its first rows are picked from it. */
#include "program.h"

enum { ASKED_FULL = 1, ASKED_FIRST = 2 };

typedef struct demand {
    const sherl_network *from;
    sherl_network *to;
    unsigned char *asked;  /* by value of `from`: who reads it, and how */
    sherl_value *full, *first; /* by value of `from`: what computes it in `to` */
} demand;

/* Can this op compute just the first rows of its output? */
static bool can_shrink(const sherl_network *network, const sherl_op *op) {
    return op->type->rows != SHERL_COUPLED && sherl_aligned_inputs(op) > 0 &&
           network->values[op->output].space != SHERL_SAMPLES;
}

static bool shrinks(const demand *demand, const sherl_op *op) {
    return demand->asked[op->output] == ASKED_FIRST && can_shrink(demand->from, op);
}

static void ask(const demand *demand) {
    const sherl_network *network = demand->from;
    for (size_t i = 0; i < network->output_count; i++) demand->asked[network->outputs[i]] |= ASKED_FULL;
    if (network->loss != SHERL_NONE) demand->asked[network->loss] |= ASKED_FULL;
    for (size_t i = network->op_count; i-- > 0;) {
        const sherl_op *op = &network->ops[i];
        if (!demand->asked[op->output]) continue;
        bool first_only = op->type == &sherl_first_type || shrinks(demand, op);
        uint32_t aligned = op->type == &sherl_first_type ? 1 : sherl_aligned_inputs(op);
        for (uint32_t k = 0; k < op->input_count; k++)
            demand->asked[op->inputs[k]] |= first_only && k < aligned ? ASKED_FIRST : ASKED_FULL;
    }
}

/* Appends an op that picks the first rows of a value of `to`. */
static sherl_status emit_first(const demand *demand, sherl_value full, sherl_value *first) {
    sherl_value_info info = demand->to->values[full];
    info.space = SHERL_SAMPLES;
    info.input = SHERL_NONE;
    sherl_status status = sherl_network_add_value(demand->to, info, first);
    if (status) return status;
    sherl_op op = {.type = &sherl_first_type, .input_count = 1, .inputs = {full}, .output = *first,
                   .saved = SHERL_NONE, .settings.pooling = SHERL_POOL_FIRST};
    for (uint32_t slot = 0; slot < SHERL_MAX_PARAMETERS; slot++) op.parameters[slot] = SHERL_NONE;
    return sherl_network_add_op(demand->to, &op);
}

/* A declared input that is asked for its first rows alone is loaded so; one that needs a gradient is loaded once. */
static sherl_status emit_input(const demand *demand, sherl_value value) {
    sherl_value_info info = demand->from->values[value];
    bool needs_gradient = demand->from->inputs[info.input].needs_gradient;
    unsigned asked = demand->asked[value];
    sherl_status status = SHERL_OK;
    if ((asked & ASKED_FULL) || needs_gradient)
        status = sherl_network_add_value(demand->to, info, &demand->full[value]);
    if (!status && (asked & ASKED_FIRST)) {
        if (needs_gradient) return emit_first(demand, demand->full[value], &demand->first[value]);
        info.first_rows = true;
        info.space = SHERL_SAMPLES;
        status = sherl_network_add_value(demand->to, info, &demand->first[value]);
    }
    return status;
}

/* A copy of an op in `to`; when it shrinks, its output and its row-by-row inputs are first rows. */
static sherl_status emit_op(const demand *demand, const sherl_op *source) {
    sherl_op op = *source;
    bool shrunk = shrinks(demand, source);
    uint32_t aligned = sherl_aligned_inputs(source);
    for (uint32_t k = 0; k < op.input_count; k++)
        op.inputs[k] = shrunk && k < aligned ? demand->first[source->inputs[k]] : demand->full[source->inputs[k]];
    sherl_value_info output = demand->from->values[source->output];
    sherl_space space = output.space;
    if (shrunk) output.space = SHERL_SAMPLES;
    sherl_status status = sherl_network_add_value(demand->to, output, &op.output);
    if (!status && source->saved != SHERL_NONE) {
        sherl_value_info saved = demand->from->values[source->saved];
        if (shrunk && saved.space == space) saved.space = SHERL_SAMPLES;
        status = sherl_network_add_value(demand->to, saved, &op.saved);
    }
    if (!status) status = sherl_network_add_op(demand->to, &op);
    if (status) return status;
    if (shrunk) {
        demand->first[source->output] = op.output;
        return SHERL_OK;
    }
    demand->full[source->output] = op.output;
    if (demand->asked[source->output] & ASKED_FIRST)
        return emit_first(demand, op.output, &demand->first[source->output]);
    return SHERL_OK;
}

static sherl_status emit(const demand *demand) {
    const sherl_network *from = demand->from;
    sherl_status status = SHERL_OK;
    for (size_t i = 0; i < from->input_count && !status; i++)
        status = sherl_network_add_input(demand->to, from->inputs[i]);
    for (size_t v = 0; v < from->value_count && !status; v++)
        if (from->values[v].input != SHERL_NONE && demand->asked[v]) status = emit_input(demand, (sherl_value)v);
    for (size_t i = 0; i < from->op_count && !status; i++) {
        const sherl_op *op = &from->ops[i];
        if (!demand->asked[op->output]) continue;
        if (op->type == &sherl_first_type)
            demand->full[op->output] = demand->first[op->inputs[0]];
        else
            status = emit_op(demand, op);
    }
    for (size_t i = 0; i < from->output_count && !status; i++)
        status = sherl_network_add_output(demand->to, demand->full[from->outputs[i]]);
    if (from->loss != SHERL_NONE && !status) demand->to->loss = demand->full[from->loss];
    return status;
}

sherl_status sherl_pass_demand(const sherl_graph *graph, sherl_network *network) {
    const sherl_context *context = graph->context;
    const sherl_network *from = &graph->network;
    demand demand = {.from = from, .to = network};
    network->space_count = from->space_count;
    sherl_status status = sherl_allocate(context, from->value_count, 1, &demand.asked);
    if (!status) status = sherl_allocate(context, from->value_count, sizeof(sherl_value), &demand.full);
    if (!status) status = sherl_allocate(context, from->value_count, sizeof(sherl_value), &demand.first);
    if (!status) {
        ask(&demand);
        status = emit(&demand);
    }
    sherl_release(context, demand.asked);
    sherl_release(context, demand.full);
    sherl_release(context, demand.first);
    return status;
}
