/* The bottleneck block of a ResNet, frozen, as SHERL's late route (He et al., 2016). */
#include <stdio.h>

#include "block.h"

enum { NAME_BYTES = 256 };

/* Where a map of the block stands and what it is. */
typedef struct map {
    const char *name;
    const sherl_real *weight, *bias;
    size_t outputs;
    sherl_window window;
    sherl_activation activation;
} map;

static sherl_parameter map_parameter(const sherl_block *block, const char *name, const char *leaf, size_t rows,
                                     size_t columns, const sherl_real *data) {
    char full[NAME_BYTES];
    int written = snprintf(full, sizeof full, "%s%s.%s", block->prefix, name, leaf);
    if (written < 0 || written >= NAME_BYTES)
        return sherl_graph_fail(block->graph, SHERL_INVALID_ARGUMENT, "bottleneck: the prefix is too long");
    return sherl_graph_parameter(block->graph, full, rows, columns, SHERL_FROZEN, SHERL_INIT_ZEROS, data);
}

/* activation(W x + b) at each place of the window; a window of one pixel is a linear map */
static sherl_value apply(const sherl_block *block, sherl_value x, const map *map, sherl_space output, bool bfloat16) {
    size_t size = map->window.size, depth = size * size * sherl_graph_channels(block->graph, x);
    sherl_parameter weight = map_parameter(block, map->name, "weight", map->outputs, depth, map->weight);
    sherl_parameter bias = map_parameter(block, map->name, "bias", SHERL_VECTOR, map->outputs, map->bias);
    if (size > 1 || map->window.stride > 1)
        return sherl_convolution(block->graph, x, weight, bias, map->window, map->activation, output);
    return (bfloat16 ? sherl_bfloat16_linear : sherl_linear)(block->graph, x, weight, bias, map->activation);
}

static bool check_settings(sherl_graph *graph, sherl_value x, const sherl_bottleneck_weights *w,
                           const sherl_bottleneck_settings *settings) {
    if (!sherl_check_value(graph, "bottleneck", "x", x, false)) return false;
    bool shortcut = w->shortcut_weight && w->shortcut_bias;
    if (!w->reduce_weight || !w->reduce_bias || !w->window_weight || !w->window_bias || !w->expand_weight ||
        !w->expand_bias || (!w->shortcut_weight != !w->shortcut_bias))
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "bottleneck: it needs all its weights");
    else if (settings->width == 0 || settings->out_features == 0 || settings->stride == 0)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT,
                         "bottleneck: width, out_features and stride must be at least 1");
    else if (!shortcut && (settings->stride > 1 || settings->out_features != sherl_graph_channels(graph, x)))
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT,
                         "bottleneck: without a shortcut map the stride is 1 and out_features those of x");
    return graph->status == SHERL_OK;
}

/* z = relu(W1 x + b1); z = relu(W2 z + b2), over 3x3 pixels; out = relu(W3 z + b3 + shortcut), where the shortcut is x
 * or W4 x + b4 */
sherl_value sherl_bottleneck(sherl_graph *graph, const char *prefix, sherl_value x,
                             const sherl_bottleneck_weights *w, const sherl_bottleneck_settings *settings) {
    if (!check_settings(graph, x, w, settings)) return SHERL_NONE;
    sherl_block block = {.graph = graph, .prefix = prefix};
    sherl_window pixel = {.size = 1, .stride = 1}, strided = {.size = 1, .stride = settings->stride};
    sherl_window first = settings->stride_first ? strided : pixel;
    sherl_window around = {.size = 3, .stride = settings->stride_first ? 1 : settings->stride, .padding = 1};
    map reduce = {"reduce", w->reduce_weight, w->reduce_bias, settings->width, first, SHERL_RELU};
    map window = {"window", w->window_weight, w->window_bias, settings->width, around, SHERL_RELU};
    map expand = {"expand", w->expand_weight, w->expand_bias, settings->out_features, pixel, SHERL_IDENTITY};
    map shortcut = {"shortcut", w->shortcut_weight, w->shortcut_bias, settings->out_features, strided, SHERL_IDENTITY};
    sherl_value z = apply(&block, x, &reduce, SHERL_NONE, settings->bfloat16);
    z = apply(&block, z, &window, SHERL_NONE, false);
    sherl_space output = sherl_graph_value_space(graph, z);
    z = apply(&block, z, &expand, SHERL_NONE, settings->bfloat16);
    sherl_value beside = w->shortcut_weight ? apply(&block, x, &shortcut, output, settings->bfloat16) : x;
    return sherl_activate(graph, sherl_add(graph, z, beside), SHERL_RELU);
}
