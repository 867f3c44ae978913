/* Parameters under a prefix, and the linear and norm maps made of them. */
#include "block.h"

#include <stdio.h>

enum { NAME_BYTES = 256 };

/* prefix + part + "." + number + "." + suffix + "." + leaf, leaving out what is empty. */
static bool compose_name(const sherl_block *block, const char *part, uint32_t number, const char *suffix,
                         const char *leaf, char *name) {
    char digits[16] = "";
    if (number != SHERL_NONE) snprintf(digits, sizeof digits, "%u.", number);
    int written = snprintf(name, NAME_BYTES, "%s%s%s%s%s%s%s", block->prefix, part, *part ? "." : "", digits, suffix,
                           *suffix ? "." : "", leaf);
    if (written > 0 && written < NAME_BYTES) return true;
    sherl_graph_fail(block->graph, SHERL_INVALID_ARGUMENT, "the prefix %.40s… is too long", block->prefix);
    return false;
}

sherl_parameter sherl_block_parameter(const sherl_block *block, const char *part, uint32_t number, const char *suffix,
                                      size_t rows, size_t columns, sherl_initializer initializer) {
    char name[NAME_BYTES];
    if (block->graph->status || !compose_name(block, part, number, "", suffix, name)) return SHERL_NONE;
    return sherl_graph_parameter(block->graph, name, rows, columns, SHERL_TRAINABLE, initializer, NULL);
}

sherl_value sherl_block_linear(const sherl_block *block, const char *part, uint32_t number, const char *suffix,
                               sherl_value x, size_t outputs, sherl_activation activation) {
    char weight[NAME_BYTES], bias[NAME_BYTES];
    sherl_graph *graph = block->graph;
    if (!sherl_check_value(graph, "linear", "x", x, false) ||
        !compose_name(block, part, number, suffix, "weight", weight) ||
        !compose_name(block, part, number, suffix, "bias", bias))
        return SHERL_NONE;
    size_t inputs = sherl_graph_channels(graph, x);
    sherl_parameter w =
        sherl_graph_parameter(graph, weight, outputs, inputs, SHERL_TRAINABLE, SHERL_INIT_XAVIER_UNIFORM, NULL);
    sherl_parameter b =
        sherl_graph_parameter(graph, bias, SHERL_VECTOR, outputs, SHERL_TRAINABLE, SHERL_INIT_ZEROS, NULL);
    return sherl_linear(graph, x, w, b, activation);
}

sherl_value sherl_block_layer_norm(const sherl_block *block, const char *part, uint32_t number, const char *suffix,
                                   sherl_value x, double eps) {
    char weight[NAME_BYTES], bias[NAME_BYTES];
    sherl_graph *graph = block->graph;
    if (!sherl_check_value(graph, "layer norm", "x", x, false) ||
        !compose_name(block, part, number, suffix, "weight", weight) ||
        !compose_name(block, part, number, suffix, "bias", bias))
        return SHERL_NONE;
    size_t channels = sherl_graph_channels(graph, x);
    sherl_parameter w =
        sherl_graph_parameter(graph, weight, SHERL_VECTOR, channels, SHERL_TRAINABLE, SHERL_INIT_ONES, NULL);
    sherl_parameter b =
        sherl_graph_parameter(graph, bias, SHERL_VECTOR, channels, SHERL_TRAINABLE, SHERL_INIT_ZEROS, NULL);
    return sherl_layer_norm(graph, x, w, b, eps);
}

static sherl_parameter norm_parameter(const sherl_block *block, const char *part, uint32_t number, const char *suffix,
                                      const char *leaf, size_t channels, sherl_role role,
                                      sherl_initializer initializer) {
    char name[NAME_BYTES];
    if (!compose_name(block, part, number, suffix, leaf, name)) return SHERL_NONE;
    return sherl_graph_parameter(block->graph, name, SHERL_VECTOR, channels, role, initializer, NULL);
}

sherl_value sherl_block_batch_norm(const sherl_block *block, const char *part, uint32_t number, const char *suffix,
                                   sherl_value x, double eps, double momentum) {
    sherl_graph *graph = block->graph;
    if (!sherl_check_value(graph, "batch norm", "x", x, false)) return SHERL_NONE;
    size_t channels = sherl_graph_channels(graph, x);
    sherl_parameter weight =
        norm_parameter(block, part, number, suffix, "weight", channels, SHERL_TRAINABLE, SHERL_INIT_ONES);
    sherl_parameter bias =
        norm_parameter(block, part, number, suffix, "bias", channels, SHERL_TRAINABLE, SHERL_INIT_ZEROS);
    sherl_parameter mean =
        norm_parameter(block, part, number, suffix, "running_mean", channels, SHERL_STATE, SHERL_INIT_ZEROS);
    sherl_parameter variance =
        norm_parameter(block, part, number, suffix, "running_var", channels, SHERL_STATE, SHERL_INIT_ONES);
    return sherl_batch_norm(graph, x, weight, bias, mean, variance, eps, momentum);
}
