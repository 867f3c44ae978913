/* Graphs: creation, row spaces, inputs, outputs, and the checks that op builders share. */
#include "graph.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "../blas/blas.h"

uint32_t sherl_graph_fail(sherl_graph *graph, sherl_status status, const char *format, ...) {
    if (graph->status != SHERL_OK) return SHERL_NONE;
    graph->status = status;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(graph->message, sizeof graph->message, format, arguments);
    va_end(arguments);
    return SHERL_NONE;
}

static uint32_t fail_plainly(sherl_graph *graph, sherl_status status) {
    return sherl_graph_fail(graph, status, "%s", sherl_status_text(status));
}

sherl_status sherl_graph_create(sherl_context *context, sherl_parameters *parameters, bool training,
                                sherl_graph **graph) {
    sherl_graph *created;
    sherl_status status = sherl_allocate(context, 1, sizeof *created, &created);
    if (status) return status;
    created->context = context;
    created->parameters = parameters;
    created->training = training;
    created->network.context = context;
    created->network.loss = SHERL_NONE;
    sherl_space samples; /* the first one: SHERL_SAMPLES */
    status = sherl_network_add_space(&created->network, (sherl_space_info){.kind = SHERL_SPACE_SEGMENTS}, &samples);
    uint32_t number;
    if (!status) status = sherl_network_add_selection(&created->network, sherl_first_rows, &number);
    if (status) {
        sherl_graph_destroy(created);
        return status;
    }
    *graph = created;
    return SHERL_OK;
}

void sherl_graph_destroy(sherl_graph *graph) {
    if (!graph) return;
    sherl_network_release(&graph->network);
    sherl_release(graph->context, graph);
}

sherl_status sherl_graph_status(const sherl_graph *graph) { return graph->status; }
const char *sherl_graph_message(const sherl_graph *graph) { return graph->message; }

size_t sherl_graph_channels(const sherl_graph *graph, sherl_value value) {
    return value < graph->network.value_count ? graph->network.values[value].channels : 0;
}

sherl_space sherl_graph_value_space(const sherl_graph *graph, sherl_value value) {
    return value < graph->network.value_count ? graph->network.values[value].space : SHERL_NONE;
}

uint32_t sherl_graph_stream(const sherl_graph *graph) { return graph->next_stream; }
void sherl_graph_set_stream(sherl_graph *graph, uint32_t stream) { graph->next_stream = stream; }

void sherl_graph_set_staged(sherl_graph *graph, bool staged) {
    graph->staging_given = true;
    graph->staged = staged;
}

static sherl_space declare_space(sherl_graph *graph, const char *name, sherl_space_info info) {
    sherl_space space;
    if (graph->status != SHERL_OK) return SHERL_NONE;
    sherl_status status = sherl_network_add_space(&graph->network, info, &space);
    if (!status) return space;
    return sherl_graph_fail(graph, status, "row space %s: %s", name, sherl_status_text(status));
}

sherl_space sherl_graph_space(sherl_graph *graph, const char *name) {
    return declare_space(graph, name, (sherl_space_info){.kind = SHERL_SPACE_SEGMENTS});
}

sherl_space sherl_graph_fixed_space(sherl_graph *graph, const char *name, size_t rows) {
    if (rows == 0) return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "row space %s: it must have a row", name);
    return declare_space(graph, name, (sherl_space_info){.kind = SHERL_SPACE_FIXED, .rows = rows});
}

sherl_space sherl_graph_grid(sherl_graph *graph, const char *name) {
    return declare_space(graph, name, (sherl_space_info){.kind = SHERL_SPACE_GRID});
}

static sherl_value declare_input(sherl_graph *graph, const char *name, sherl_space space, size_t channels, bool integer,
                                 bool needs_gradient) {
    if (graph->status != SHERL_OK) return SHERL_NONE;
    sherl_network *network = &graph->network;
    if (space >= network->space_count)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "input %s: there is no row space %u", name, space);
    if (channels == 0 || !sherl_blas_size_fits(channels))
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "input %s: %zu channels are not possible", name,
                                channels);
    uint32_t number = (uint32_t)network->input_count;
    sherl_value value;
    sherl_status status = sherl_network_add_input(network, (sherl_input_info){.space = space,
                                                                              .channels = channels,
                                                                              .integer = integer,
                                                                              .needs_gradient = needs_gradient});
    if (!status)
        status = sherl_network_add_value(
            network, (sherl_value_info){.space = space, .channels = channels, .integer = integer, .input = number},
            &value);
    return status ? fail_plainly(graph, status) : value;
}

sherl_value sherl_graph_input(sherl_graph *graph, const char *name, sherl_space space, size_t channels,
                              bool needs_gradient) {
    return declare_input(graph, name, space, channels, false, needs_gradient);
}

sherl_value sherl_graph_indices(sherl_graph *graph, const char *name, sherl_space space) {
    return declare_input(graph, name, space, 1, true, false);
}

sherl_parameter sherl_graph_parameter(sherl_graph *graph, const char *name, size_t rows, size_t columns,
                                      sherl_role role, sherl_initializer initializer, const sherl_real *frozen) {
    if (graph->status != SHERL_OK) return SHERL_NONE;
    if (columns == 0 || !sherl_blas_size_fits(columns) || !sherl_blas_size_fits(rows))
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "parameter %s: a shape of %zu x %zu is not possible",
                                name, rows, columns);
    sherl_parameter parameter;
    sherl_status status =
        sherl_parameters_add(graph->parameters, name, rows, columns, role, initializer, frozen, &parameter);
    if (status == SHERL_SHAPE_MISMATCH)
        return sherl_graph_fail(graph, status, "parameter %s exists with another shape, role or data than %zu x %zu",
                                name, rows, columns);
    if (status) return sherl_graph_fail(graph, status, "parameter %s: %s", name, sherl_status_text(status));
    return parameter;
}

void sherl_graph_output(sherl_graph *graph, sherl_value value) {
    if (!sherl_check_value(graph, "output", "value", value, false)) return;
    sherl_status status = sherl_network_add_output(&graph->network, value);
    if (status) fail_plainly(graph, status);
}

void sherl_graph_loss(sherl_graph *graph, sherl_value value) {
    if (!sherl_check_value(graph, "loss", "value", value, false)) return;
    if (!sherl_check_channels(graph, "loss", "value", value, 1)) return;
    if (graph->network.loss != SHERL_NONE)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "loss: the graph has one already");
    else
        graph->network.loss = value;
}

bool sherl_check_value(sherl_graph *graph, const char *op, const char *what, sherl_value value, bool integer) {
    if (graph->status != SHERL_OK) return false;
    const sherl_network *network = &graph->network;
    if (value >= network->value_count || network->values[value].saved)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: %s is not a value of this graph", op, what);
    else if (network->values[value].integer != integer)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: %s must hold %s", op, what,
                         integer ? "integers" : "reals");
    return graph->status == SHERL_OK;
}

bool sherl_check_same_rows(sherl_graph *graph, const char *op, sherl_value a, sherl_value b) {
    if (graph->status != SHERL_OK) return false;
    if (graph->network.values[a].space != graph->network.values[b].space)
        sherl_graph_fail(graph, SHERL_SHAPE_MISMATCH, "%s: the operands must lie in one row space", op);
    return graph->status == SHERL_OK;
}

bool sherl_check_channels(sherl_graph *graph, const char *op, const char *what, sherl_value value, size_t channels) {
    if (graph->status != SHERL_OK) return false;
    if (graph->network.values[value].channels != channels)
        sherl_graph_fail(graph, SHERL_SHAPE_MISMATCH, "%s: %s must have %zu channels, not %zu", op, what, channels,
                         graph->network.values[value].channels);
    return graph->status == SHERL_OK;
}

bool sherl_check_parameter(sherl_graph *graph, const char *op, const char *what, sherl_parameter parameter, size_t rows,
                           size_t columns) {
    if (graph->status != SHERL_OK) return false;
    if (parameter >= sherl_parameters_count(graph->parameters)) {
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: %s is not a parameter of this graph", op, what);
        return false;
    }
    size_t has_rows = sherl_parameters_rows(graph->parameters, parameter);
    size_t has_columns = sherl_parameters_columns(graph->parameters, parameter);
    if (has_rows != rows || has_columns != columns)
        sherl_graph_fail(graph, SHERL_SHAPE_MISMATCH, "%s: %s (%s) must be %zu x %zu, not %zu x %zu", op, what,
                         sherl_parameters_name(graph->parameters, parameter), rows, columns, has_rows, has_columns);
    return graph->status == SHERL_OK;
}

bool sherl_check_number(sherl_graph *graph, const char *op, const char *what, double number, double least,
                        double below) {
    if (graph->status != SHERL_OK) return false;
    if (!(number >= least && number < below))
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: %s must be at least %g and below %g, not %g", op, what,
                         least, below, number);
    return graph->status == SHERL_OK;
}

sherl_value sherl_graph_append(sherl_graph *graph, sherl_op *op, sherl_space space, size_t channels,
                               sherl_space saved_space, size_t saved_channels, bool saved_integer) {
    sherl_network *network = &graph->network;
    op->training = graph->training;
    op->saved = SHERL_NONE;
    for (uint32_t slot = op->parameter_count; slot < SHERL_MAX_PARAMETERS; slot++) op->parameters[slot] = SHERL_NONE;
    sherl_status status = SHERL_OK;
    if (saved_channels > 0)
        status = sherl_network_add_value(network,
                                         (sherl_value_info){.space = saved_space,
                                                            .channels = saved_channels,
                                                            .integer = saved_integer,
                                                            .input = SHERL_NONE,
                                                            .saved = true},
                                         &op->saved);
    if (!status)
        status = sherl_network_add_value(network,
                                         (sherl_value_info){.space = space, .channels = channels, .input = SHERL_NONE},
                                         &op->output);
    if (!status) status = sherl_network_add_op(network, op);
    return status ? fail_plainly(graph, status) : op->output;
}
