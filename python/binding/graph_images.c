/* The methods of Graph for images, and spatial guidance. */
#include "graph.h"

#include "arrays.h"

#include <stddef.h>
#include <string.h>

const char *const base_names[] = {"first", "last", "position", NULL};

/* ---- Ops --------------------------------------------------------------------------------------------------------- */

PyObject *graph_convolution(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x;
    sherl_parameter weight, bias = SHERL_NONE;
    sherl_window window = {.size = 1, .stride = 1};
    int activation = SHERL_IDENTITY;
    sherl_space output = SHERL_NONE;
    argument arguments[] = {handle_argument("x", &x),
                            handle_argument("weight", &weight),
                            or_none(handle_argument("bias", &bias)),
                            optional(count_argument("size", 1, &window.size)),
                            optional(count_argument("stride", 1, &window.stride)),
                            optional(count_argument("padding", 0, &window.padding)),
                            optional(choice_argument("activation", activation_names, &activation)),
                            or_none(handle_argument("output", &output))};
    if (!parse_arguments("convolution", args, keywords, arguments, LENGTH(arguments), 8)) return NULL;
    return graph_result(self,
                        sherl_convolution(self->graph, x, weight, bias, window, (sherl_activation)activation, output));
}

PyObject *graph_window_pool(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x;
    size_t size;
    sherl_space output = SHERL_NONE;
    argument arguments[] = {handle_argument("x", &x), count_argument("size", 1, &size),
                            or_none(handle_argument("output", &output))};
    if (!parse_arguments("window_pool", args, keywords, arguments, LENGTH(arguments), 3)) return NULL;
    return graph_result(self, sherl_window_pool(self->graph, x, size, output));
}

PyObject *graph_spatial_guidance(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x, guide, position = SHERL_NONE;
    sherl_parameter weight, bias, gate = SHERL_NONE;
    int base = SHERL_BASE_FIRST;
    sherl_spatial_settings settings = {.eps = 1e-6, .temperature = 0.1};
    argument arguments[] = {handle_argument("x", &x),
                            handle_argument("guide", &guide),
                            handle_argument("weight", &weight),
                            handle_argument("bias", &bias),
                            or_none(handle_argument("gate", &gate)),
                            or_none(handle_argument("position", &position)),
                            optional(choice_argument("base", base_names, &base)),
                            optional(real_argument("eps", &settings.eps)),
                            optional(real_argument("temperature", &settings.temperature)),
                            optional(count_argument("index", 0, &settings.index))};
    if (!parse_arguments("spatial_guidance", args, keywords, arguments, LENGTH(arguments), 10)) return NULL;
    settings.base = (sherl_base)base;
    return graph_result(self, sherl_spatial_guidance(self->graph, x, guide, position, weight, bias, gate, &settings));
}

/* ---- Blocks of a ResNet ---------------------------------------------------------------------------------------- */

typedef enum map_size { ONE_ROW, INPUTS, WIDTH, WINDOW, OUTPUTS, WIDE_INPUTS, WIDE_OUTPUTS } map_size;
enum { SHORTCUT_ARRAYS = 2 }; /* the last of a block, which may be left out together */

/* A weight of a block: its key, its place, its shape. */
typedef struct map_weight {
    const char *key;
    size_t place;
    map_size rows, columns;
} map_weight;

static const map_weight bottleneck_weights[] = {
#define WEIGHT(name, rows, columns) {#name, offsetof(sherl_bottleneck_weights, name), rows, columns}
    WEIGHT(reduce_weight, WIDTH, INPUTS),     WEIGHT(reduce_bias, ONE_ROW, WIDTH),
    WEIGHT(window_weight, WIDTH, WINDOW),     WEIGHT(window_bias, ONE_ROW, WIDTH),
    WEIGHT(expand_weight, OUTPUTS, WIDTH),    WEIGHT(expand_bias, ONE_ROW, OUTPUTS),
    WEIGHT(shortcut_weight, OUTPUTS, INPUTS), WEIGHT(shortcut_bias, ONE_ROW, OUTPUTS),
#undef WEIGHT
};

static const map_weight basic_block_weights[] = {
#define WEIGHT(name, rows, columns) {#name, offsetof(sherl_basic_block_weights, name), rows, columns}
    WEIGHT(first_weight, OUTPUTS, WIDE_INPUTS),   WEIGHT(first_bias, ONE_ROW, OUTPUTS),
    WEIGHT(second_weight, OUTPUTS, WIDE_OUTPUTS), WEIGHT(second_bias, ONE_ROW, OUTPUTS),
    WEIGHT(shortcut_weight, OUTPUTS, INPUTS),     WEIGHT(shortcut_bias, ONE_ROW, OUTPUTS),
#undef WEIGHT
};

/* Numbers under a window of 3x3 pixels of so many channels; more than there can be where that overflows. */
static size_t under_window(size_t channels) {
    size_t window;
    return __builtin_mul_overflow(channels, (size_t)9, &window) ? SIZE_MAX : window;
}

/* The data of an array of the block, held under the name that its parameter will have: "reduce_weight" is prefix +
 * "reduce.weight". False with an exception set. */
static bool parse_weight(GraphObject *self, const char *prefix, const char *key, PyObject *array, size_t rows,
                         size_t columns, const sherl_real **data) {
    char label[64], name[256];
    PyOS_snprintf(label, sizeof label, "weights[\"%s\"]", key);
    *data = array_frozen(label, array, rows, columns);
    if (!*data) return false;
    if (PyOS_snprintf(name, sizeof name, "%s%s", prefix, key) >= (int)sizeof name) {
        PyErr_SetString(PyExc_ValueError, "prefix is too long");
        return false;
    }
    *strrchr(name, '_') = '.';
    return parameters_hold(self->parameters, name, array, *data);
}

static bool parse_weights(GraphObject *self, const char *prefix, PyObject *mapping, const map_weight *table,
                          size_t length, const size_t *sizes, void *weights) {
    if (!PyDict_Check(mapping)) {
        PyErr_Format(PyExc_TypeError, "weights must be a dictionary, not %.100s", Py_TYPE(mapping)->tp_name);
        return false;
    }
    size_t given = (size_t)PyDict_Size(mapping), count = given == length - SHORTCUT_ARRAYS ? given : length;
    if (given != count) {
        PyErr_Format(PyExc_ValueError, "weights must have %zu keys, or %zu with a shortcut map, not %zu",
                     length - SHORTCUT_ARRAYS, length, given);
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        const map_weight *weight = &table[i];
        PyObject *array = PyDict_GetItemString(mapping, weight->key);
        if (!array) {
            PyErr_Format(PyExc_ValueError, "weights must have the key \"%s\", which is missing", weight->key);
            return false;
        }
        Py_INCREF(array);
        const sherl_real *data = NULL;
        bool good = parse_weight(self, prefix, weight->key, array, sizes[weight->rows], sizes[weight->columns], &data);
        Py_DECREF(array); /* the store holds it */
        if (!good) return false;
        *(const sherl_real **)((char *)weights + weight->place) = data;
    }
    return true;
}

PyObject *graph_bottleneck(GraphObject *self, PyObject *args, PyObject *keywords) {
    const char *prefix;
    sherl_value x;
    PyObject *mapping;
    sherl_bottleneck_settings settings = {.stride = 1};
    argument arguments[] = {text_argument("prefix", &prefix),
                            handle_argument("x", &x),
                            object_argument("weights", &mapping),
                            count_argument("width", 1, &settings.width),
                            count_argument("out_features", 1, &settings.out_features),
                            optional(count_argument("stride", 1, &settings.stride)),
                            optional(flag_argument("stride_first", &settings.stride_first)),
                            optional(flag_argument("bfloat16", &settings.bfloat16))};
    if (!parse_arguments("bottleneck", args, keywords, arguments, LENGTH(arguments), 3)) return NULL;
    size_t channels = sherl_graph_channels(self->graph, x); /* 0: no such value, which the core will say */
    size_t sizes[] = {[ONE_ROW] = SHERL_VECTOR,
                      [INPUTS] = channels,
                      [WIDTH] = settings.width,
                      [WINDOW] = under_window(settings.width),
                      [OUTPUTS] = settings.out_features};
    sherl_bottleneck_weights weights = {0};
    if (channels &&
        !parse_weights(self, prefix, mapping, bottleneck_weights, LENGTH(bottleneck_weights), sizes, &weights))
        return NULL;
    core_lock(self->parameters->state);
    sherl_value value = sherl_bottleneck(self->graph, prefix, x, &weights, &settings);
    core_unlock(self->parameters->state);
    return graph_result(self, value);
}

PyObject *graph_basic_block(GraphObject *self, PyObject *args, PyObject *keywords) {
    const char *prefix;
    sherl_value x;
    PyObject *mapping;
    sherl_basic_block_settings settings = {.stride = 1};
    argument arguments[] = {text_argument("prefix", &prefix),
                            handle_argument("x", &x),
                            object_argument("weights", &mapping),
                            count_argument("out_features", 1, &settings.out_features),
                            optional(count_argument("stride", 1, &settings.stride)),
                            optional(flag_argument("bfloat16", &settings.bfloat16))};
    if (!parse_arguments("basic_block", args, keywords, arguments, LENGTH(arguments), 3)) return NULL;
    size_t channels = sherl_graph_channels(self->graph, x); /* as above */
    size_t sizes[] = {[ONE_ROW] = SHERL_VECTOR,
                      [INPUTS] = channels,
                      [OUTPUTS] = settings.out_features,
                      [WIDE_INPUTS] = under_window(channels),
                      [WIDE_OUTPUTS] = under_window(settings.out_features)};
    sherl_basic_block_weights weights = {0};
    if (channels &&
        !parse_weights(self, prefix, mapping, basic_block_weights, LENGTH(basic_block_weights), sizes, &weights))
        return NULL;
    core_lock(self->parameters->state);
    sherl_value value = sherl_basic_block(self->graph, prefix, x, &weights, &settings);
    core_unlock(self->parameters->state);
    return graph_result(self, value);
}
