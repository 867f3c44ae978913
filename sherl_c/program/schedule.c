/* The schedule: the steps that one tile goes through, forward and backward.
 *
 * An input is loaded right before its first reader. When backward needs it, it is loaded a second time then, so that it
 * does not occupy the arena in between: taps are read twice rather than kept. In the same way, an output that is cheap to
 * compute from a value which backward needs anyway is computed again. */
#include "program.h"

static sherl_status add_step(sherl_program *program, sherl_step_kind kind, uint32_t index) {
    sherl_status status = sherl_grow(program->context, &program->steps, &program->step_capacity,
                                     program->step_count + 1, sizeof *program->steps);
    if (status) return status;
    program->steps[program->step_count++] = (sherl_step){.kind = kind, .index = index};
    return SHERL_OK;
}

/* Loads a value, once for each part, if it is a declared input. */
static sherl_status load(sherl_program *program, bool *loaded, sherl_value value) {
    if (program->network.values[value].input == SHERL_NONE || loaded[value]) return SHERL_OK;
    loaded[value] = true;
    return add_step(program, SHERL_STEP_LOAD, value);
}

static sherl_status store_outputs(sherl_program *program, sherl_value value) {
    sherl_status status = SHERL_OK;
    for (size_t i = 0; i < program->network.output_count && !status; i++)
        if (program->network.outputs[i] == value) status = add_step(program, SHERL_STEP_STORE, (uint32_t)i);
    return status;
}

static sherl_status schedule_forward(sherl_program *program, bool *loaded) {
    const sherl_network *network = &program->network;
    sherl_status status = SHERL_OK;
    for (size_t i = 0; i < network->output_count && !status; i++) {
        sherl_value value = network->outputs[i]; /* an input may be an output too */
        if (network->values[value].input == SHERL_NONE) continue;
        status = load(program, loaded, value);
        if (!status) status = add_step(program, SHERL_STEP_STORE, (uint32_t)i);
    }
    for (size_t i = 0; i < network->op_count && !status; i++) {
        const sherl_op *op = &network->ops[i];
        for (uint32_t k = 0; k < op->input_count && !status; k++) status = load(program, loaded, op->inputs[k]);
        if (!status) status = add_step(program, SHERL_STEP_FORWARD, (uint32_t)i);
        if (!status) status = store_outputs(program, op->output);
    }
    if (network->loss != SHERL_NONE) {
        if (!status) status = load(program, loaded, network->loss);
        if (!status) status = add_step(program, SHERL_STEP_LOSS, 0);
    }
    program->forward_steps = program->step_count;
    return status;
}

static sherl_status schedule_seeds(sherl_program *program) {
    const sherl_network *network = &program->network;
    if (network->loss != SHERL_NONE)
        return network->values[network->loss].has_gradient ? add_step(program, SHERL_STEP_SEED_LOSS, 0) : SHERL_OK;
    for (size_t i = 0; i < network->output_count; i++) {
        if (!network->values[network->outputs[i]].has_gradient) continue;
        sherl_status status = add_step(program, SHERL_STEP_SEED_OUTPUT, (uint32_t)i);
        if (status) return status;
        for (size_t k = 0; k < i; k++)
            if (network->outputs[k] == network->outputs[i]) program->steps[program->step_count - 1].accumulate = true;
    }
    return SHERL_OK;
}

void sherl_op_backward_reads(const sherl_program *program, const sherl_op *op, sherl_backward_reads *reads) {
    *reads = (sherl_backward_reads){0};
    bool trainable[SHERL_MAX_PARAMETERS] = {false};
    for (uint32_t slot = 0; slot < op->parameter_count; slot++)
        trainable[slot] = op->parameters[slot] != SHERL_NONE &&
                          sherl_parameters_role(program->parameters, op->parameters[slot]) == SHERL_TRAINABLE;
    if (op->type->backward_reads) op->type->backward_reads(op, trainable, reads);
}

enum { WIDENING = 8 /* outputs for each input from which a linear map is cheaper to run again than to keep */ };

/* A linear map of few channels to many, an adapter's up map say, has much to keep and little to compute. */
static bool is_cheap(const sherl_network *network, const sherl_op *op) {
    if (op->type->recomputes) return true;
    size_t inputs = network->values[op->inputs[0]].channels, outputs = network->values[op->output].channels;
    return op->type == &sherl_linear_type && !op->wide && outputs / WIDENING >= inputs;
}

/* The op that computes a value cheaply out of one that stays for the op's own backward; SHERL_NONE otherwise. */
static uint32_t cheap_producer(const sherl_program *program, sherl_value value) {
    const sherl_network *network = &program->network;
    for (size_t i = 0; i < network->op_count; i++) {
        const sherl_op *op = &network->ops[i];
        if (op->output != value || !is_cheap(network, op)) continue;
        sherl_backward_reads reads;
        sherl_op_backward_reads(program, op, &reads);
        bool stays = op->input_count == 1 && reads.inputs[0] && network->values[op->inputs[0]].input == SHERL_NONE &&
                     cheap_producer(program, op->inputs[0]) == SHERL_NONE;
        return stays && network->values[value].has_gradient ? (uint32_t)i : SHERL_NONE;
    }
    return SHERL_NONE;
}

/* Makes a forward value available to the backward part, if it does not simply stay. */
static sherl_status bring_back(sherl_program *program, bool *brought, sherl_value value) {
    uint32_t producer = cheap_producer(program, value);
    if (producer == SHERL_NONE || brought[value]) return load(program, brought, value);
    brought[value] = true;
    return add_step(program, SHERL_STEP_FORWARD, producer);
}

static sherl_status schedule_backward(sherl_program *program, bool *brought) {
    const sherl_network *network = &program->network;
    sherl_status status = schedule_seeds(program);
    for (size_t i = network->op_count; i-- > 0 && !status;) {
        const sherl_op *op = &network->ops[i];
        if (!network->values[op->output].has_gradient) continue;
        sherl_backward_reads reads;
        sherl_op_backward_reads(program, op, &reads);
        for (uint32_t k = 0; k < op->input_count && !status; k++)
            if (reads.inputs[k]) status = bring_back(program, brought, op->inputs[k]);
        if (!status) status = add_step(program, SHERL_STEP_BACKWARD, (uint32_t)i);
    }
    for (size_t v = 0; v < network->value_count && !status; v++)
        if (network->values[v].input != SHERL_NONE && network->values[v].has_gradient)
            status = add_step(program, SHERL_STEP_STORE_GRADIENT, (uint32_t)v);
    return status;
}

sherl_status sherl_pass_schedule(sherl_program *program) {
    size_t values = program->network.value_count;
    bool *loaded;
    sherl_status status = sherl_allocate(program->context, values, 2 * sizeof(bool), &loaded);
    if (status) return status;
    status = schedule_forward(program, loaded);
    if (!status && program->gradient) status = schedule_backward(program, loaded + values);
    sherl_release(program->context, loaded);
    return status;
}
