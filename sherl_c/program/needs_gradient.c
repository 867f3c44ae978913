/* The needs-gradient pass: which values get a gradient, and whether an op writes it or adds to it.
 *
 * A value gets a gradient when a trainable parameter, or an input whose gradient is asked for, lies upstream, and a
 * seed (the loss, or an output that is given a cotangent) lies downstream. Everything else has no backward. */
#include "program.h"

static bool has_trainable_parameter(const sherl_program *program, const sherl_op *op) {
    for (uint32_t slot = 0; slot < op->parameter_count; slot++)
        if (op->parameters[slot] != SHERL_NONE &&
            sherl_parameters_role(program->parameters, op->parameters[slot]) == SHERL_TRAINABLE)
            return true;
    return false;
}

/* upstream[v]: something that wants a gradient lies at or above v. */
static void mark_upstream(const sherl_program *program, bool *upstream) {
    const sherl_network *network = &program->network;
    for (size_t v = 0; v < network->value_count; v++) {
        uint32_t input = network->values[v].input;
        upstream[v] = input != SHERL_NONE && network->inputs[input].needs_gradient;
    }
    for (size_t i = 0; i < network->op_count; i++) {
        const sherl_op *op = &network->ops[i];
        if (!op->type->backward) continue;
        bool wanted = has_trainable_parameter(program, op);
        for (uint32_t k = 0; k < op->input_count; k++) wanted = wanted || upstream[op->inputs[k]];
        upstream[op->output] = wanted;
    }
}

/* Seeds first, then down the ops in reverse: a gradient that exists already is added to. */
static void mark_gradients(sherl_network *network, const bool *upstream) {
    if (network->loss != SHERL_NONE)
        network->values[network->loss].has_gradient = upstream[network->loss];
    else
        for (size_t i = 0; i < network->output_count; i++)
            network->values[network->outputs[i]].has_gradient = upstream[network->outputs[i]];
    for (size_t i = network->op_count; i-- > 0;) {
        sherl_op *op = &network->ops[i];
        if (!network->values[op->output].has_gradient) continue;
        for (uint32_t k = 0; k < op->input_count; k++) {
            sherl_value_info *input = &network->values[op->inputs[k]];
            if (!upstream[op->inputs[k]]) continue;
            op->accumulate[k] = input->has_gradient;
            input->has_gradient = true;
        }
    }
}

sherl_status sherl_pass_needs_gradient(sherl_program *program) {
    bool *upstream;
    sherl_status status = sherl_allocate(program->context, program->network.value_count, sizeof(bool), &upstream);
    if (status) return status;
    mark_upstream(program, upstream);
    mark_gradients(&program->network, upstream);
    sherl_release(program->context, upstream);
    return SHERL_OK;
}
