/* A compiled program as text, one op a line, for people and for tests of the passes. */
#include <stdio.h>

#include "program.h"

enum { LINE = 160 };

static int describe_op(const sherl_program *program, const sherl_op *op, char *line) {
    const sherl_network *network = &program->network;
    const sherl_value_info *output = &network->values[op->output];
    char first_parameter[64] = "";
    if (op->parameter_count > 0 && op->parameters[0] != SHERL_NONE)
        snprintf(first_parameter, sizeof first_parameter, " %s",
                 sherl_parameters_name(program->parameters, op->parameters[0]));
    return snprintf(line, LINE, "%s: space %u, %zu channels%s%s\n", op->type->name, output->space, output->channels,
                    first_parameter, output->has_gradient ? ", gradient" : "");
}

sherl_status sherl_program_describe(const sherl_program *program, char **text) {
    size_t bytes;
    char *listing;
    if (!sherl_multiply_sizes(program->network.op_count + 1, LINE, &bytes)) return SHERL_SIZE_OVERFLOW;
    sherl_status status = sherl_allocate(program->context, bytes, 1, &listing);
    if (status) return status;
    char *end = listing;
    for (size_t i = 0; i < program->network.op_count; i++) {
        int written = describe_op(program, &program->network.ops[i], end);
        if (written > 0) end += written < LINE ? written : LINE - 1;
    }
    *text = listing;
    return SHERL_OK;
}

void sherl_text_destroy(sherl_program *program, char *text) { sherl_release(program->context, text); }
