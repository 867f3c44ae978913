/* The associate pass: where demand left an attention with one query a sample, and frozen linear maps of one matrix make
 * its keys and values, the attention takes that matrix instead, and the two maps over all its rows vanish. */
#include "program.h"

/* The op that computes a value, or NULL for an input. */
static const sherl_op *producer(const sherl_network *network, sherl_value value) {
    for (size_t i = 0; i < network->op_count; i++)
        if (network->ops[i].output == value) return &network->ops[i];
    return NULL;
}

static size_t count_readers(const sherl_network *network, sherl_value value) {
    size_t readers = network->loss == value;
    for (size_t i = 0; i < network->output_count; i++) readers += network->outputs[i] == value;
    for (size_t i = 0; i < network->op_count; i++)
        for (uint32_t k = 0; k < network->ops[i].input_count; k++) readers += network->ops[i].inputs[k] == value;
    return readers;
}

/* A linear map without activation, of weights that are not trained, whose output only the attention reads. */
static bool is_frozen_map(const sherl_program *program, const sherl_op *op) {
    if (!op || op->type != &sherl_linear_type || op->settings.activation != SHERL_IDENTITY) return false;
    for (uint32_t slot = 0; slot < op->parameter_count; slot++)
        if (op->parameters[slot] != SHERL_NONE &&
            sherl_parameters_role(program->parameters, op->parameters[slot]) == SHERL_TRAINABLE)
            return false;
    return count_readers(&program->network, op->output) == 1;
}

/* The op that takes the attention's place has no gradient for the biases of relative positions. */
static bool trains_positions(const sherl_program *program, const sherl_op *attention) {
    return attention->parameter_count > 0 &&
           sherl_parameters_role(program->parameters, attention->parameters[0]) == SHERL_TRAINABLE;
}

static bool fits(const sherl_program *program, const sherl_op *attention) {
    const sherl_network *network = &program->network;
    if (attention->type != &sherl_attention_type || network->values[attention->inputs[0]].space != SHERL_SAMPLES ||
        network->values[attention->inputs[1]].space == SHERL_SAMPLES || trains_positions(program, attention))
        return false;
    const sherl_op *key = producer(network, attention->inputs[1]), *value = producer(network, attention->inputs[2]);
    return is_frozen_map(program, key) && is_frozen_map(program, value) && key->inputs[0] == value->inputs[0];
}

static void remove_op(sherl_network *network, sherl_value output) {
    size_t kept = 0;
    for (size_t i = 0; i < network->op_count; i++)
        if (network->ops[i].output != output) network->ops[kept++] = network->ops[i];
    network->op_count = kept;
}

static void associate(sherl_network *network, size_t position) {
    sherl_op *attention = &network->ops[position];
    sherl_value keys = attention->inputs[1], values = attention->inputs[2];
    const sherl_op *key = producer(network, keys), *value = producer(network, values);
    attention->type = &sherl_single_query_attention_type;
    attention->input_count = 2;
    attention->inputs[1] = key->inputs[0];
    attention->parameter_count = 4;
    attention->parameters[3] = attention->parameters[0]; /* biases of relative positions, or SHERL_NONE */
    attention->parameters[0] = key->parameters[0];
    attention->parameters[1] = value->parameters[0];
    attention->parameters[2] = value->parameters[1];
    size_t heads = attention->settings.attention.heads;
    network->values[attention->saved].channels = heads * network->values[key->inputs[0]].channels + heads;
    remove_op(network, keys);
    remove_op(network, values);
}

void sherl_pass_associate(sherl_program *program) {
    sherl_network *network = &program->network;
    for (size_t i = 0; i < network->op_count; i++)
        if (fits(program, &network->ops[i])) {
            associate(network, i);
            i = 0; /* ops moved: look again from the start, where nothing fits twice */
        }
}
