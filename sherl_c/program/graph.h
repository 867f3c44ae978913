/* A graph under construction: a network, the store behind it, and the first error. */
#ifndef SHERL_PROGRAM_GRAPH_H
#define SHERL_PROGRAM_GRAPH_H

#include "network.h"

struct sherl_graph {
    sherl_context *context;
    sherl_parameters *parameters;
    sherl_network network;
    bool training;
    uint32_t next_stream;       /* of random numbers */
    bool staging_given, staged; /* the caller's decision, if there is one */
    sherl_status status;
    char message[320];
};

/* Remembers the first error; always returns SHERL_NONE. */
__attribute__((format(printf, 3, 4))) uint32_t sherl_graph_fail(sherl_graph *graph, sherl_status status,
                                                                const char *format, ...);

/* Checks used by the builders: each returns false, with the error remembered, when the graph has failed before or the
 * operand is not what the op `op` takes as `what`. */
bool sherl_check_value(sherl_graph *graph, const char *op, const char *what, sherl_value value, bool integer);
bool sherl_check_same_rows(sherl_graph *graph, const char *op, sherl_value a, sherl_value b);
bool sherl_check_channels(sherl_graph *graph, const char *op, const char *what, sherl_value value, size_t channels);
bool sherl_check_parameter(sherl_graph *graph, const char *op, const char *what, sherl_parameter parameter, size_t rows,
                           size_t columns);
bool sherl_check_number(sherl_graph *graph, const char *op, const char *what, double number, double least,
                        double below);

/* Appends an op whose type, operands and settings are filled in; its output is a new value of the given row space and
 * channels, and saved_channels > 0 gives it a saved value in `saved_space`. */
sherl_value sherl_graph_append(sherl_graph *graph, sherl_op *op, sherl_space space, size_t channels,
                               sherl_space saved_space, size_t saved_channels, bool saved_integer);

static inline const sherl_value_info *sherl_graph_value(const sherl_graph *graph, sherl_value value) {
    return &graph->network.values[value];
}

#endif
