/* The stages of a program: which ops run once for a whole block of tiles, with the threads inside them, and which steps
 * run tile by tile in between.
 *
 * After demand, the tail of a program has one row a sample. Its products have as many rows as a tile has samples, so
 * that running it tile by tile streams its weights once a tile. Where those weights are most of a program's, the tail
 * runs wide: once a block, each thread taking a part of the weights. */
#include "program.h"

/* Elements of the parameters that an op reads. */
static size_t parameter_elements(const sherl_program *program, const sherl_op *op) {
    size_t elements = 0;
    for (uint32_t slot = 0; slot < op->parameter_count; slot++)
        if (op->parameters[slot] != SHERL_NONE)
            elements += sherl_parameters_rows(program->parameters, op->parameters[slot]) *
                        sherl_parameters_columns(program->parameters, op->parameters[slot]);
    return elements;
}

/* An op of the tail: one row a sample comes out, and goes in as well unless the op can spread over a block itself. */
static bool in_tail(const sherl_network *network, const sherl_op *op) {
    if (network->values[op->output].space != SHERL_SAMPLES) return false;
    for (uint32_t k = 0; k < op->input_count && !op->type->spreads; k++)
        if (network->values[op->inputs[k]].space != SHERL_SAMPLES) return false;
    return true;
}

static bool tail_dominates(const sherl_program *program) {
    size_t tail = 0, rest = 0;
    for (size_t i = 0; i < program->network.op_count; i++) {
        const sherl_op *op = &program->network.ops[i];
        *(in_tail(&program->network, op) ? &tail : &rest) += parameter_elements(program, op);
    }
    return rest > 0 && tail > rest;
}

void sherl_pass_wide(const sherl_graph *graph, sherl_program *program) {
    sherl_network *network = &program->network;
    for (size_t i = 0; i < network->op_count; i++)
        program->whole_batch = program->whole_batch || network->ops[i].type->rows == SHERL_COUPLED;
    bool wide_tail = graph->staging_given ? graph->staged : tail_dominates(program);
    program->staged = program->whole_batch || wide_tail;
    for (size_t i = 0; i < network->op_count; i++) {
        sherl_op *op = &network->ops[i];
        op->wide = op->type->rows == SHERL_COUPLED || (wide_tail && in_tail(network, op));
    }
}

static bool step_is_wide(const sherl_program *program, const sherl_step *step) {
    return (step->kind == SHERL_STEP_FORWARD || step->kind == SHERL_STEP_BACKWARD) &&
           program->network.ops[step->index].wide;
}

sherl_status sherl_pass_stages(sherl_program *program) {
    for (size_t s = 0; s < program->step_count; s++) {
        bool wide = step_is_wide(program, &program->steps[s]);
        if (program->stage_count == 0 || program->stages[program->stage_count - 1].wide != wide) {
            sherl_status status = sherl_grow(program->context, &program->stages, &program->stage_capacity,
                                             program->stage_count + 1, sizeof *program->stages);
            if (status) return status;
            program->stages[program->stage_count++] = (sherl_stage){.first_step = s, .wide = wide};
        }
        program->stages[program->stage_count - 1].end_step = s + 1;
    }
    return SHERL_OK;
}
