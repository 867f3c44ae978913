/* The demand pass: rewrites a graph so that only the rows which somebody reads are computed.
 *
 * "This row of each sample" is asked for by pooling that selects one: the first, the last, or one given with the data.
 * Walking up from the outputs, a value that is asked for one selection alone is computed on those rows alone (in
 * SHERL_SAMPLES, one row a sample) if its op reads some inputs row by row: a row-wise op passes the demand on to all its
 * inputs; an attention passes it on to its queries while keys and values keep all rows. Where a value is asked for in full
 * as well, or for two selections, it is computed in full and the rows are picked from it. */
#include "program.h"

/* Who reads a value, and how: SELECTED + s stands for the rows of selection s alone. */
enum { NOT_ASKED, ALL_ROWS, SELECTED };

typedef struct demand {
    const sherl_network *from;
    sherl_network *to;
    uint32_t *asked;          /* by value of `from` */
    sherl_value *full, *rows; /* by value of `from`: what computes it in `to`; all of it, the rows asked for alone */
} demand;

/* Can this op compute just one row a sample of its output? */
static bool can_shrink(const sherl_network *network, const sherl_op *op) {
    return op->type->rows != SHERL_COUPLED && sherl_aligned_inputs(op) > 0 &&
           network->values[op->output].space != SHERL_SAMPLES;
}

static bool shrinks(const demand *demand, const sherl_op *op) {
    return demand->asked[op->output] >= SELECTED && can_shrink(demand->from, op);
}

static void ask_value(const demand *demand, sherl_value value, uint32_t rows) {
    uint32_t *asked = &demand->asked[value];
    *asked = *asked == NOT_ASKED || *asked == rows ? rows : ALL_ROWS;
}

static void ask(const demand *demand) {
    const sherl_network *network = demand->from;
    for (size_t i = 0; i < network->output_count; i++) ask_value(demand, network->outputs[i], ALL_ROWS);
    if (network->loss != SHERL_NONE) ask_value(demand, network->loss, ALL_ROWS);
    for (size_t i = network->op_count; i-- > 0;) {
        const sherl_op *op = &network->ops[i];
        uint32_t rows = demand->asked[op->output], aligned = 0;
        if (rows == NOT_ASKED) continue;
        if (op->type == &sherl_select_type) {
            rows = SELECTED + op->selection;
            aligned = 1;
        } else if (shrinks(demand, op)) {
            aligned = sherl_aligned_inputs(op);
        }
        for (uint32_t k = 0; k < op->input_count; k++) ask_value(demand, op->inputs[k], k < aligned ? rows : ALL_ROWS);
    }
}

/* An op of `to` that picks a selection of a value; the one that does so already, if there is one. */
static sherl_status pick_rows(const demand *demand, sherl_value full, uint32_t selection, sherl_value *rows) {
    sherl_network *to = demand->to;
    for (size_t i = 0; i < to->op_count; i++) {
        const sherl_op *op = &to->ops[i];
        if (op->type != &sherl_select_type || op->inputs[0] != full || op->selection != selection) continue;
        *rows = op->output;
        return SHERL_OK;
    }
    sherl_value_info info = to->values[full];
    info.space = SHERL_SAMPLES;
    info.input = SHERL_NONE;
    sherl_status status = sherl_network_add_value(to, info, rows);
    if (status) return status;
    sherl_op op = {.type = &sherl_select_type,
                   .input_count = 1,
                   .inputs = {full},
                   .output = *rows,
                   .saved = SHERL_NONE,
                   .selection = selection};
    for (uint32_t slot = 0; slot < SHERL_MAX_PARAMETERS; slot++) op.parameters[slot] = SHERL_NONE;
    return sherl_network_add_op(to, &op);
}

/* A selection of a declared input as a value of `to` that is loaded so; the one there is, if there is one. */
static sherl_status load_rows(const demand *demand, sherl_value_info info, uint32_t selection, sherl_value *rows) {
    sherl_network *to = demand->to;
    for (size_t v = 0; v < to->value_count; v++) {
        const sherl_value_info *known = &to->values[v];
        if (known->input != info.input || !known->selected || known->selection != selection) continue;
        *rows = (sherl_value)v;
        return SHERL_OK;
    }
    info.selected = true;
    info.selection = selection;
    info.space = SHERL_SAMPLES;
    return sherl_network_add_value(to, info, rows);
}

/* A selection of a value, in `to`: computed so, or loaded so, or picked. An input that needs a gradient is loaded once. */
static sherl_status selected_rows(const demand *demand, sherl_value value, uint32_t selection, sherl_value *rows) {
    const sherl_value_info *info = &demand->from->values[value];
    if (demand->rows[value] != SHERL_NONE) {
        *rows = demand->rows[value];
        return SHERL_OK;
    }
    if (info->input != SHERL_NONE && !demand->from->inputs[info->input].needs_gradient)
        return load_rows(demand, *info, selection, rows);
    return pick_rows(demand, demand->full[value], selection, rows);
}

static sherl_status emit_input(const demand *demand, sherl_value value) {
    sherl_value_info info = demand->from->values[value];
    if (demand->asked[value] != ALL_ROWS && !demand->from->inputs[info.input].needs_gradient) return SHERL_OK;
    return sherl_network_add_value(demand->to, info, &demand->full[value]);
}

/* A copy of an op in `to`; when it shrinks, its output and its row-by-row inputs are the rows asked for. */
static sherl_status emit_op(const demand *demand, const sherl_op *source) {
    sherl_op op = *source;
    bool shrunk = shrinks(demand, source);
    uint32_t aligned = shrunk ? sherl_aligned_inputs(source) : 0;
    if (shrunk) op.selection = demand->asked[source->output] - SELECTED;
    sherl_status status = SHERL_OK;
    for (uint32_t k = 0; k < op.input_count && !status; k++) {
        op.inputs[k] = demand->full[source->inputs[k]];
        if (k < aligned) status = selected_rows(demand, source->inputs[k], op.selection, &op.inputs[k]);
    }
    if (status) return status;
    sherl_value_info output = demand->from->values[source->output];
    sherl_space space = output.space;
    if (shrunk) output.space = SHERL_SAMPLES;
    status = sherl_network_add_value(demand->to, output, &op.output);
    if (!status && source->saved != SHERL_NONE) {
        sherl_value_info saved = demand->from->values[source->saved];
        if (shrunk && saved.space == space) saved.space = SHERL_SAMPLES;
        status = sherl_network_add_value(demand->to, saved, &op.saved);
    }
    if (!status) status = sherl_network_add_op(demand->to, &op);
    if (!status) (shrunk ? demand->rows : demand->full)[source->output] = op.output;
    return status;
}

static sherl_status emit(const demand *demand) {
    const sherl_network *from = demand->from;
    sherl_status status = SHERL_OK;
    uint32_t number;
    for (size_t i = 0; i < from->selection_count && !status; i++)
        status = sherl_network_add_selection(demand->to, from->selections[i], &number);
    for (size_t i = 0; i < from->input_count && !status; i++)
        status = sherl_network_add_input(demand->to, from->inputs[i]);
    for (size_t v = 0; v < from->value_count && !status; v++)
        if (from->values[v].input != SHERL_NONE && demand->asked[v]) status = emit_input(demand, (sherl_value)v);
    for (size_t i = 0; i < from->op_count && !status; i++) {
        const sherl_op *op = &from->ops[i];
        if (!demand->asked[op->output]) continue;
        if (op->type == &sherl_select_type)
            status = selected_rows(demand, op->inputs[0], op->selection, &demand->full[op->output]);
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
    sherl_status status = sherl_allocate(context, from->value_count, sizeof(uint32_t), &demand.asked);
    if (!status) status = sherl_allocate(context, from->value_count, sizeof(sherl_value), &demand.full);
    if (!status) status = sherl_allocate(context, from->value_count, sizeof(sherl_value), &demand.rows);
    if (!status) {
        for (size_t v = 0; v < from->value_count; v++) demand.rows[v] = SHERL_NONE;
        ask(&demand);
        status = emit(&demand);
    }
    sherl_release(context, demand.asked);
    sherl_release(context, demand.full);
    sherl_release(context, demand.rows);
    return status;
}
