/* The graph-building functions of ops that move windows over images, and of spatial guidance. */
#include "graph.h"

enum { LARGEST_WINDOW = 1024 };

/* Are the rows of this value the pixels of images? */
static bool check_images(sherl_graph *graph, const char *op, sherl_value x) {
    if (!sherl_check_value(graph, op, "x", x, false)) return false;
    if (!sherl_space_is_images(&graph->network, sherl_graph_value(graph, x)->space))
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: x must lie in a row space of images", op);
    return graph->status == SHERL_OK;
}

/* The row space that a window gives: `output` if it is one, which is then held to it, else one that follows. */
static sherl_space fit_space(sherl_graph *graph, const char *op, sherl_space from, sherl_window window,
                             sherl_space output) {
    sherl_network *network = &graph->network;
    if (output == SHERL_NONE && window.stride == 1 && window.size == 2 * window.padding + 1) return from;
    if (output != SHERL_NONE && (output >= network->space_count || !sherl_space_is_images(network, output)))
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: output must be a row space of images", op);
    sherl_status status = SHERL_OK;
    if (output == SHERL_NONE)
        status = sherl_network_add_space(network, (sherl_space_info){.kind = SHERL_SPACE_DERIVED}, &output);
    if (!status) status = sherl_network_add_fit(network, (sherl_fit){.from = from, .to = output, .window = window});
    return status ? sherl_graph_fail(graph, status, "%s: %s", op, sherl_status_text(status)) : output;
}

static bool check_window(sherl_graph *graph, const char *op, sherl_window window) {
    if (window.size == 0 || window.size > LARGEST_WINDOW || window.stride == 0 || window.padding >= window.size)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT,
                         "%s: a window of size %zu (1 to %d), stride %zu (at least 1) and padding %zu (below the size) "
                         "is not possible",
                         op, window.size, LARGEST_WINDOW, window.stride, window.padding);
    return graph->status == SHERL_OK;
}

sherl_value sherl_convolution(sherl_graph *graph, sherl_value x, sherl_parameter weight, sherl_parameter bias,
                              sherl_window window, sherl_activation activation, sherl_space output) {
    if (!check_images(graph, "convolution", x) || !check_window(graph, "convolution", window)) return SHERL_NONE;
    if (weight >= sherl_parameters_count(graph->parameters))
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "convolution: weight is not a parameter of this graph");
    size_t outputs = sherl_parameters_rows(graph->parameters, weight), channels = sherl_graph_channels(graph, x);
    sherl_space from = sherl_graph_value(graph, x)->space;
    if (!sherl_check_parameter(graph, "convolution", "weight", weight, outputs, window.size * window.size * channels) ||
        (bias != SHERL_NONE && !sherl_check_parameter(graph, "convolution", "bias", bias, 1, outputs)))
        return SHERL_NONE;
    if (activation != SHERL_IDENTITY && activation != SHERL_RELU)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "convolution: activation must be none or relu");
    sherl_space to = fit_space(graph, "convolution", from, window, output);
    if (graph->status) return SHERL_NONE;
    sherl_op op = {.type = &sherl_convolution_type,
                   .input_count = 1,
                   .inputs = {x},
                   .parameter_count = 2,
                   .parameters = {weight, bias},
                   .settings.convolution = {.window = window, .activation = activation}};
    return sherl_graph_append(graph, &op, to, outputs, SHERL_SAMPLES, 0, false);
}

sherl_value sherl_window_pool(sherl_graph *graph, sherl_value x, size_t size, sherl_space output) {
    sherl_window window = {.size = size, .stride = size};
    if (!check_images(graph, "window pool", x) || !check_window(graph, "window pool", window)) return SHERL_NONE;
    sherl_space to = fit_space(graph, "window pool", sherl_graph_value(graph, x)->space, window, output);
    if (graph->status) return SHERL_NONE;
    sherl_op op = {.type = &sherl_window_pool_type, .input_count = 1, .inputs = {x}, .settings.window = window};
    return sherl_graph_append(graph, &op, to, sherl_graph_channels(graph, x), SHERL_SAMPLES, 0, false);
}

static bool check_spatial(sherl_graph *graph, sherl_value x, sherl_value guide, sherl_parameter weight,
                          sherl_parameter bias, const sherl_spatial_settings *settings) {
    static const char name[] = "spatial guidance";
    if (!sherl_check_value(graph, name, "x", x, false) || !sherl_check_value(graph, name, "guide", guide, false))
        return false;
    size_t channels = sherl_graph_channels(graph, x);
    if (!sherl_check_channels(graph, name, "guide", guide, channels) ||
        !sherl_check_parameter(graph, name, "weight", weight, 1, channels) ||
        !sherl_check_parameter(graph, name, "bias", bias, 1, 1) ||
        !sherl_check_number(graph, name, "eps", settings->eps, 1e-30, 1) ||
        !sherl_check_number(graph, name, "temperature", settings->temperature, 1e-6, 1e6))
        return false;
    if (sherl_graph_value(graph, guide)->space != SHERL_SAMPLES)
        sherl_graph_fail(graph, SHERL_SHAPE_MISMATCH, "%s: guide must have one row a sample", name);
    else if ((unsigned)settings->base >= SHERL_BASE_COUNT)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: there is no base %d", name, (int)settings->base);
    return graph->status == SHERL_OK;
}

sherl_value sherl_spatial_guidance(sherl_graph *graph, sherl_value x, sherl_value guide, sherl_value position,
                                   sherl_parameter weight, sherl_parameter bias, sherl_parameter gate,
                                   const sherl_spatial_settings *settings) {
    if (!check_spatial(graph, x, guide, weight, bias, settings)) return SHERL_NONE;
    sherl_op op = {.type = &sherl_spatial_guidance_type,
                   .input_count = 2,
                   .inputs = {x, guide},
                   .parameter_count = 3,
                   .parameters = {weight, bias, gate},
                   .settings.spatial = *settings};
    if (settings->base == SHERL_BASE_POSITION) {
        if (!sherl_check_value(graph, "spatial guidance", "position", position, true) ||
            !sherl_check_same_rows(graph, "spatial guidance", guide, position))
            return SHERL_NONE;
        op.inputs[op.input_count++] = position;
    }
    if (gate != SHERL_NONE) {
        size_t gates =
            gate < sherl_parameters_count(graph->parameters) ? sherl_parameters_columns(graph->parameters, gate) : 0;
        if (settings->index >= gates || sherl_parameters_rows(graph->parameters, gate) != 1)
            return sherl_graph_fail(graph, SHERL_SHAPE_MISMATCH, "spatial guidance: gate must be 1 x more than %zu",
                                    settings->index);
    }
    return sherl_graph_append(graph, &op, SHERL_SAMPLES, sherl_graph_channels(graph, x), SHERL_SAMPLES, 0, false);
}
