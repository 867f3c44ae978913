/* Growing a network. */
#include "network.h"

const sherl_selection sherl_first_rows = {SHERL_POOL_FIRST, SHERL_SAMPLES, SHERL_NONE};

void sherl_network_release(sherl_network *network) {
    sherl_release(network->context, network->spaces);
    sherl_release(network->context, network->fits);
    sherl_release(network->context, network->values);
    sherl_release(network->context, network->inputs);
    sherl_release(network->context, network->ops);
    sherl_release(network->context, network->outputs);
    sherl_release(network->context, network->selections);
    *network = (sherl_network){.context = network->context, .loss = SHERL_NONE};
}

sherl_status sherl_network_add_space(sherl_network *network, sherl_space_info info, sherl_space *space) {
    if (network->space_count >= SHERL_NONE) return SHERL_SIZE_OVERFLOW;
    sherl_status status = sherl_grow(network->context, &network->spaces, &network->space_capacity,
                                     network->space_count + 1, sizeof *network->spaces);
    if (status) return status;
    *space = (sherl_space)network->space_count;
    network->spaces[network->space_count++] = info;
    return SHERL_OK;
}

sherl_status sherl_network_add_fit(sherl_network *network, sherl_fit fit) {
    sherl_status status = sherl_grow(network->context, &network->fits, &network->fit_capacity, network->fit_count + 1,
                                     sizeof *network->fits);
    if (status) return status;
    network->fits[network->fit_count++] = fit;
    return SHERL_OK;
}

sherl_status sherl_network_copy_spaces(sherl_network *network, const sherl_network *from) {
    sherl_status status = SHERL_OK;
    sherl_space space;
    for (size_t s = 0; s < from->space_count && !status; s++)
        status = sherl_network_add_space(network, from->spaces[s], &space);
    for (size_t i = 0; i < from->fit_count && !status; i++) status = sherl_network_add_fit(network, from->fits[i]);
    return status;
}

sherl_status sherl_network_add_value(sherl_network *network, sherl_value_info info, sherl_value *value) {
    if (network->value_count >= SHERL_NONE) return SHERL_SIZE_OVERFLOW;
    sherl_status status = sherl_grow(network->context, &network->values, &network->value_capacity,
                                     network->value_count + 1, sizeof *network->values);
    if (status) return status;
    *value = (sherl_value)network->value_count;
    network->values[network->value_count++] = info;
    return SHERL_OK;
}

sherl_status sherl_network_add_input(sherl_network *network, sherl_input_info info) {
    sherl_status status = sherl_grow(network->context, &network->inputs, &network->input_capacity,
                                     network->input_count + 1, sizeof *network->inputs);
    if (status) return status;
    network->inputs[network->input_count++] = info;
    return SHERL_OK;
}

sherl_status sherl_network_add_op(sherl_network *network, const sherl_op *op) {
    sherl_status status =
        sherl_grow(network->context, &network->ops, &network->op_capacity, network->op_count + 1, sizeof *network->ops);
    if (status) return status;
    network->ops[network->op_count++] = *op;
    return SHERL_OK;
}

sherl_status sherl_network_add_output(sherl_network *network, sherl_value value) {
    sherl_status status = sherl_grow(network->context, &network->outputs, &network->output_capacity,
                                     network->output_count + 1, sizeof *network->outputs);
    if (status) return status;
    network->outputs[network->output_count++] = value;
    return SHERL_OK;
}

sherl_status sherl_network_add_selection(sherl_network *network, sherl_selection selection, uint32_t *number) {
    for (size_t i = 0; i < network->selection_count; i++) {
        const sherl_selection *known = &network->selections[i];
        if (known->row != selection.row || known->space != selection.space || known->positions != selection.positions)
            continue;
        *number = (uint32_t)i;
        return SHERL_OK;
    }
    sherl_status status = sherl_grow(network->context, &network->selections, &network->selection_capacity,
                                     network->selection_count + 1, sizeof *network->selections);
    if (status) return status;
    *number = (uint32_t)network->selection_count;
    network->selections[network->selection_count++] = selection;
    return SHERL_OK;
}
