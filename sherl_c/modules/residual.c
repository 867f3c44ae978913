/* The two blocks of a ResNet, frozen, as SHERL's late route: bottlenecks and basic blocks (He et al., 2016). */
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
        return sherl_graph_fail(block->graph, SHERL_INVALID_ARGUMENT, "residual block: the prefix is too long");
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

/* Whether x can be the block's input, and without a shortcut map its shortcut. `what` is the block's name. */
static bool check_block(sherl_graph *graph, const char *what, sherl_value x, bool complete, bool shortcut,
                        size_t out_features, size_t stride) {
    if (!sherl_check_value(graph, what, "x", x, false)) return false;
    if (!complete)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: it needs all its weights", what);
    else if (out_features == 0 || stride == 0)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: its channels and stride must be at least 1", what);
    else if (!shortcut && (stride > 1 || out_features != sherl_graph_channels(graph, x)))
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT,
                         "%s: without a shortcut map the stride is 1 and out_features those of x", what);
    return graph->status == SHERL_OK;
}

/* relu(z + shortcut), where the shortcut is x or what a map makes of it */
static sherl_value leave(const sherl_block *block, sherl_value x, sherl_value z, const map *shortcut, bool bfloat16) {
    sherl_space output = sherl_graph_value_space(block->graph, z);
    sherl_value beside = shortcut->weight ? apply(block, x, shortcut, output, bfloat16) : x;
    return sherl_activate(block->graph, sherl_add(block->graph, z, beside), SHERL_RELU);
}

/* z = relu(W1 x + b1); z = relu(W2 z + b2), over 3x3 pixels; out = relu(W3 z + b3 + shortcut), where the shortcut is x
 * or W4 x + b4 */
sherl_value sherl_bottleneck(sherl_graph *graph, const char *prefix, sherl_value x, const sherl_bottleneck_weights *w,
                             const sherl_bottleneck_settings *settings) {
    bool complete = w->reduce_weight && w->reduce_bias && w->window_weight && w->window_bias && w->expand_weight &&
                    w->expand_bias && !w->shortcut_weight == !w->shortcut_bias;
    size_t outputs = settings->width == 0 ? 0 : settings->out_features;
    if (!check_block(graph, "bottleneck", x, complete, w->shortcut_weight, outputs, settings->stride))
        return SHERL_NONE;
    sherl_block block = {.graph = graph, .prefix = prefix};
    sherl_window pixel = {.size = 1, .stride = 1}, strided = {.size = 1, .stride = settings->stride};
    sherl_window first = settings->stride_first ? strided : pixel;
    sherl_window around = {.size = 3, .stride = settings->stride_first ? 1 : settings->stride, .padding = 1};
    map reduce = {"reduce", w->reduce_weight, w->reduce_bias, settings->width, first, SHERL_RELU};
    map window = {"window", w->window_weight, w->window_bias, settings->width, around, SHERL_RELU};
    map expand = {"expand", w->expand_weight, w->expand_bias, outputs, pixel, SHERL_IDENTITY};
    map shortcut = {"shortcut", w->shortcut_weight, w->shortcut_bias, outputs, strided, SHERL_IDENTITY};
    sherl_value z = apply(&block, x, &reduce, SHERL_NONE, settings->bfloat16);
    z = apply(&block, z, &window, SHERL_NONE, false);
    z = apply(&block, z, &expand, SHERL_NONE, settings->bfloat16);
    return leave(&block, x, z, &shortcut, settings->bfloat16);
}

/* z = relu(W1 x + b1); out = relu(W2 z + b2 + shortcut), W1 and W2 over 3x3 pixels, the shortcut x or W3 x + b3 */
sherl_value sherl_basic_block(sherl_graph *graph, const char *prefix, sherl_value x, const sherl_basic_block_weights *w,
                              const sherl_basic_block_settings *settings) {
    bool complete = w->first_weight && w->first_bias && w->second_weight && w->second_bias &&
                    !w->shortcut_weight == !w->shortcut_bias;
    size_t outputs = settings->out_features;
    if (!check_block(graph, "basic block", x, complete, w->shortcut_weight, outputs, settings->stride))
        return SHERL_NONE;
    sherl_block block = {.graph = graph, .prefix = prefix};
    sherl_window around = {.size = 3, .stride = 1, .padding = 1}, strided = {.size = 1, .stride = settings->stride};
    sherl_window moved = {.size = 3, .stride = settings->stride, .padding = 1};
    map first = {"first", w->first_weight, w->first_bias, outputs, moved, SHERL_RELU};
    map second = {"second", w->second_weight, w->second_bias, outputs, around, SHERL_IDENTITY};
    map shortcut = {"shortcut", w->shortcut_weight, w->shortcut_bias, outputs, strided, SHERL_IDENTITY};
    sherl_value z = apply(&block, x, &first, SHERL_NONE, false);
    z = apply(&block, z, &second, SHERL_NONE, false);
    return leave(&block, x, z, &shortcut, settings->bfloat16);
}
