/* The methods of Graph that add whole blocks: MTSA, a transformer layer, a head. */
#include "graph.h"

#include "arrays.h"

#include <stddef.h>
#include <string.h>

/* ---- MTSA and heads ---------------------------------------------------------------------------------------------- */

static const char *const down_names[] = {"layernorm", "gated", "relu", "batchnorm", NULL}; /* by sherl_down */
static const char *const guidance_names[] = {"token", "residual_mlp", "spatial", NULL};    /* by sherl_guidance_kind */
static const char *const up_norm_names[] = {"none", "layernorm", "batchnorm", NULL};       /* by sherl_norm */

/* The window of each tap as an array of its own; NULL with an exception set. */
static size_t *parse_windows(PyObject *sequence, size_t count) {
    PyObject *items = parse_sequence("windows", sequence, count, "tap");
    size_t *windows = items ? PyMem_Calloc(count, sizeof *windows) : NULL;
    if (items && !windows) PyErr_NoMemory();
    for (size_t i = 0; windows && i < count; i++) {
        char name[40];
        uint64_t size;
        PyOS_snprintf(name, sizeof name, "windows[%zu]", i);
        if (parse_integer(name, PyTuple_GET_ITEM(items, (Py_ssize_t)i), 1, PTRDIFF_MAX, &size)) {
            windows[i] = (size_t)size;
        } else {
            PyMem_Free(windows);
            windows = NULL;
        }
    }
    Py_XDECREF(items);
    return windows;
}

/* What `mtsa` and `mtsa_features` take. */
typedef struct mtsa_arguments {
    const char *prefix;
    sherl_value last, *taps;
    size_t count, *windows;
    sherl_mtsa_settings settings;
} mtsa_arguments;

static void free_mtsa_arguments(mtsa_arguments *given) {
    PyMem_Free(given->taps);
    PyMem_Free(given->windows);
}

/* False with an exception set; otherwise to be freed. */
static bool parse_mtsa_arguments(const char *function, PyObject *args, PyObject *keywords, mtsa_arguments *given) {
    PyObject *sequence, *window_sequence = NULL;
    int down = SHERL_DOWN_LAYER_NORM, guidance = SHERL_GUIDANCE_TOKEN, up_norm = SHERL_NORM_NONE;
    int base = SHERL_BASE_FIRST;
    *given = (mtsa_arguments){.settings = {.eps = 1e-8,
                                           .down_norm_eps = 1e-5,
                                           .up_norm_eps = 1e-12,
                                           .momentum = 0.1,
                                           .gate_temperature = 0.1,
                                           .position = SHERL_NONE}};
    sherl_mtsa_settings *settings = &given->settings;
    argument arguments[] = {text_argument("prefix", &given->prefix),
                            object_argument("taps", &sequence),
                            handle_argument("last", &given->last),
                            count_argument("hidden", 1, &settings->hidden),
                            count_argument("out_features", 1, &settings->out_features),
                            optional(choice_argument("down", down_names, &down)),
                            optional(choice_argument("guidance", guidance_names, &guidance)),
                            optional(choice_argument("up_norm", up_norm_names, &up_norm)),
                            optional(real_argument("eps", &settings->eps)),
                            optional(real_argument("down_norm_eps", &settings->down_norm_eps)),
                            optional(real_argument("up_norm_eps", &settings->up_norm_eps)),
                            optional(real_argument("momentum", &settings->momentum)),
                            optional(real_argument("dropout", &settings->dropout)),
                            optional(real_argument("gate_temperature", &settings->gate_temperature)),
                            or_none(object_argument("windows", &window_sequence)),
                            optional(choice_argument("base", base_names, &base)),
                            optional(flag_argument("gated_base", &settings->gated_base)),
                            or_none(handle_argument("position", &settings->position))};
    if (!parse_arguments(function, args, keywords, arguments, LENGTH(arguments), 3)) return false;
    settings->down = (sherl_down)down;
    settings->guidance = (sherl_guidance_kind)guidance;
    settings->up_norm = (sherl_norm)up_norm;
    settings->base = (sherl_base)base;
    if (!parse_handles("taps", sequence, &given->taps, &given->count)) return false;
    if (window_sequence && !(given->windows = parse_windows(window_sequence, given->count))) {
        PyMem_Free(given->taps);
        return false;
    }
    settings->windows = given->windows;
    return true;
}

PyObject *graph_mtsa(GraphObject *self, PyObject *args, PyObject *keywords) {
    mtsa_arguments given;
    if (!parse_mtsa_arguments("mtsa", args, keywords, &given)) return NULL;
    core_lock(self->parameters->state);
    sherl_value value = sherl_mtsa(self->graph, given.prefix, given.taps, given.count, given.last, &given.settings);
    core_unlock(self->parameters->state);
    free_mtsa_arguments(&given);
    return graph_result(self, value);
}

PyObject *graph_mtsa_features(GraphObject *self, PyObject *args, PyObject *keywords) {
    mtsa_arguments given;
    if (!parse_mtsa_arguments("mtsa_features", args, keywords, &given)) return NULL;
    sherl_value *features = PyMem_Calloc(given.count + 1, sizeof *features);
    if (!features) {
        free_mtsa_arguments(&given);
        return PyErr_NoMemory();
    }
    core_lock(self->parameters->state);
    size_t count =
        sherl_mtsa_features(self->graph, given.prefix, given.taps, given.count, given.last, &given.settings, features);
    core_unlock(self->parameters->state);
    free_mtsa_arguments(&given);
    PyObject *list = count ? PyList_New((Py_ssize_t)count) : graph_result(self, SHERL_NONE);
    for (size_t i = 0; list && i < count; i++) {
        PyObject *handle = graph_result(self, features[i]);
        if (handle)
            PyList_SET_ITEM(list, (Py_ssize_t)i, handle);
        else
            Py_CLEAR(list);
    }
    PyMem_Free(features);
    return list;
}

PyObject *graph_head(GraphObject *self, PyObject *args, PyObject *keywords) {
    const char *prefix;
    sherl_value x;
    int pooling = SHERL_POOL_FIRST;
    sherl_head_settings settings = {.positions = SHERL_NONE};
    argument arguments[] = {text_argument("prefix", &prefix),
                            handle_argument("x", &x),
                            count_argument("outputs", 1, &settings.outputs),
                            optional(choice_argument("pooling", pooling_names, &pooling)),
                            optional(flag_argument("pooler", &settings.pooler)),
                            optional(real_argument("dropout", &settings.dropout)),
                            or_none(handle_argument("positions", &settings.positions)),
                            optional(flag_argument("each_row", &settings.each_row))};
    if (!parse_arguments("head", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    settings.pooling = (sherl_pooling)pooling;
    core_lock(self->parameters->state);
    sherl_value value = sherl_head(self->graph, prefix, x, &settings);
    core_unlock(self->parameters->state);
    return graph_result(self, value);
}

PyObject *graph_embedder(GraphObject *self, PyObject *args, PyObject *keywords) {
    const char *prefix;
    sherl_value x;
    int pooling = SHERL_POOL_MEAN;
    sherl_embedder_settings settings = {.normalize = true, .positions = SHERL_NONE};
    argument arguments[] = {text_argument("prefix", &prefix),
                            handle_argument("x", &x),
                            count_argument("outputs", 1, &settings.outputs),
                            optional(choice_argument("pooling", pooling_names, &pooling)),
                            optional(flag_argument("generalized", &settings.generalized)),
                            optional(real_argument("dropout", &settings.dropout)),
                            optional(flag_argument("normalize", &settings.normalize)),
                            optional(real_argument("eps", &settings.eps)),
                            optional(real_argument("temperature", &settings.temperature)),
                            or_none(handle_argument("positions", &settings.positions))};
    if (!parse_arguments("embedder", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    settings.pooling = (sherl_pooling)pooling;
    core_lock(self->parameters->state);
    sherl_value value = sherl_embedder(self->graph, prefix, x, &settings);
    core_unlock(self->parameters->state);
    return graph_result(self, value);
}

PyObject *graph_detector(GraphObject *self, PyObject *args, PyObject *keywords) {
    const char *prefix;
    sherl_value x;
    sherl_detector_settings settings = {0};
    uint64_t align = 0;
    argument arguments[] = {text_argument("prefix", &prefix),
                            handle_argument("x", &x),
                            count_argument("classes", 2, &settings.classes),
                            count_argument("hidden", 1, &settings.hidden),
                            optional(counter_argument("align", &align)),
                            optional(real_argument("dropout", &settings.dropout))};
    if (!parse_arguments("detector", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    settings.align = (size_t)align;
    core_lock(self->parameters->state);
    sherl_value value = sherl_detector(self->graph, prefix, x, &settings);
    core_unlock(self->parameters->state);
    return graph_result(self, value);
}

/* ---- The transformer layer --------------------------------------------------------------------------------------- */

typedef enum layer_size {
    ONE_ROW,
    HIDDEN,
    INNER,
    KEY_INNER,
    INTERMEDIATE,
    MEMORY,
    BUCKETS,
    HEADS,
    LAYER_SIZES
} layer_size;

/* What a weight is there for; a layer has those whose conditions all hold. */
enum {
    QUERY_BIAS = 1,
    OUTPUT_BIAS = 2,
    FEED_FORWARD_BIAS = 4,
    NORM_BIAS = 8,
    GATED = 16,
    SANDWICH = 32,
    LAYER_SCALE = 64,
    POSITIONS = 128,
    CROSS = 256
};

/* Each weight of a layer: its key, its place, its shape and its conditions. */
static const struct layer_weight {
    const char *key;
    size_t place;
    layer_size rows, columns;
    unsigned conditions;
} layer_weights[] = {
#define WEIGHT(name, rows, columns, conditions)                                                                        \
    {#name "_weight", offsetof(sherl_transformer_weights, name.weight), rows, columns, conditions}
#define BIAS(name, columns, conditions)                                                                                \
    {#name "_bias", offsetof(sherl_transformer_weights, name.bias), ONE_ROW, columns, conditions}
    WEIGHT(query, INNER, HIDDEN, 0),
    BIAS(query, INNER, QUERY_BIAS),
    WEIGHT(key, KEY_INNER, HIDDEN, 0),
    BIAS(key, KEY_INNER, QUERY_BIAS),
    WEIGHT(value, KEY_INNER, HIDDEN, 0),
    BIAS(value, KEY_INNER, QUERY_BIAS),
    WEIGHT(output, HIDDEN, INNER, 0),
    BIAS(output, HIDDEN, OUTPUT_BIAS),
    WEIGHT(position_bias, BUCKETS, HEADS, POSITIONS),
    WEIGHT(attention_norm, ONE_ROW, HIDDEN, 0),
    BIAS(attention_norm, HIDDEN, NORM_BIAS),
    WEIGHT(attention_after_norm, ONE_ROW, HIDDEN, SANDWICH),
    BIAS(attention_after_norm, HIDDEN, SANDWICH | NORM_BIAS),
    WEIGHT(attention_scale, ONE_ROW, HIDDEN, LAYER_SCALE),
    WEIGHT(cross_query, INNER, HIDDEN, CROSS),
    BIAS(cross_query, INNER, CROSS | QUERY_BIAS),
    WEIGHT(cross_key, KEY_INNER, MEMORY, CROSS),
    BIAS(cross_key, KEY_INNER, CROSS | QUERY_BIAS),
    WEIGHT(cross_value, KEY_INNER, MEMORY, CROSS),
    BIAS(cross_value, KEY_INNER, CROSS | QUERY_BIAS),
    WEIGHT(cross_output, HIDDEN, INNER, CROSS),
    BIAS(cross_output, HIDDEN, CROSS | OUTPUT_BIAS),
    WEIGHT(cross_norm, ONE_ROW, HIDDEN, CROSS),
    BIAS(cross_norm, HIDDEN, CROSS | NORM_BIAS),
    WEIGHT(cross_after_norm, ONE_ROW, HIDDEN, CROSS | SANDWICH),
    BIAS(cross_after_norm, HIDDEN, CROSS | SANDWICH | NORM_BIAS),
    WEIGHT(cross_scale, ONE_ROW, HIDDEN, CROSS | LAYER_SCALE),
    WEIGHT(gate, INTERMEDIATE, HIDDEN, GATED),
    BIAS(gate, INTERMEDIATE, GATED | FEED_FORWARD_BIAS),
    WEIGHT(up, INTERMEDIATE, HIDDEN, 0),
    BIAS(up, INTERMEDIATE, FEED_FORWARD_BIAS),
    WEIGHT(down, HIDDEN, INTERMEDIATE, 0),
    BIAS(down, HIDDEN, FEED_FORWARD_BIAS),
    WEIGHT(feed_forward_norm, ONE_ROW, HIDDEN, 0),
    BIAS(feed_forward_norm, HIDDEN, NORM_BIAS),
    WEIGHT(feed_forward_after_norm, ONE_ROW, HIDDEN, SANDWICH),
    BIAS(feed_forward_after_norm, HIDDEN, SANDWICH | NORM_BIAS),
    WEIGHT(feed_forward_scale, ONE_ROW, HIDDEN, LAYER_SCALE),
#undef WEIGHT
#undef BIAS
};

static unsigned conditions_of(const sherl_transformer_settings *settings, bool cross) {
    return (settings->query_bias ? QUERY_BIAS : 0u) | (settings->output_bias ? OUTPUT_BIAS : 0u) |
           (settings->feed_forward_bias ? FEED_FORWARD_BIAS : 0u) |
           (settings->norm_bias && settings->norm == SHERL_LAYER_NORM ? NORM_BIAS : 0u) |
           (settings->gated ? GATED : 0u) | (settings->placement == SHERL_NORM_SANDWICH ? SANDWICH : 0u) |
           (settings->layer_scale ? LAYER_SCALE : 0u) | (settings->positions.buckets > 0 ? POSITIONS : 0u) |
           (cross ? CROSS : 0u);
}

static bool layer_has(const struct layer_weight *weight, unsigned conditions) {
    return (weight->conditions & ~conditions) == 0;
}

/* The caller's mapping as a dictionary of its own with no keys but the layer's; NULL with an exception set. */
static PyObject *copy_weights(PyObject *mapping, unsigned conditions) {
    PyObject *weights = PyDict_New();
    if (!weights || PyDict_Update(weights, mapping) < 0) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError))
            PyErr_Format(PyExc_TypeError, "weights must be a mapping or None, not %.100s", Py_TYPE(mapping)->tp_name);
        Py_XDECREF(weights);
        return NULL;
    }
    PyObject *key, *value;
    for (Py_ssize_t place = 0; PyDict_Next(weights, &place, &key, &value);) {
        size_t i = 0;
        while (i < LENGTH(layer_weights) && !(layer_has(&layer_weights[i], conditions) && PyUnicode_Check(key) &&
                                              PyUnicode_CompareWithASCIIString(key, layer_weights[i].key) == 0))
            i++;
        if (i < LENGTH(layer_weights)) continue;
        PyErr_Format(PyExc_ValueError,
                     "weights has the key %R, which a transformer layer of these settings does not have", key);
        Py_DECREF(weights);
        return NULL;
    }
    return weights;
}

/* The array of a key, borrowed from the dictionary; NULL with an exception set. */
static PyObject *weight_of(PyObject *weights, const char *key) {
    PyObject *array = PyMapping_GetItemString(weights, key);
    if (array) {
        Py_DECREF(array); /* the dictionary has it */
        return array;
    }
    if (PyErr_ExceptionMatches(PyExc_KeyError))
        PyErr_Format(PyExc_ValueError, "weights must have the key \"%s\", which is missing", key);
    return NULL;
}

/* Holds an array under the name that the layer's parameter will have: "query_weight" is prefix + "query.weight". */
static bool hold_weight(ParametersObject *parameters, const char *prefix, const char *key, PyObject *array,
                        const sherl_real *data) {
    size_t length = strlen(prefix) + strlen(key) + 1;
    char *name = PyMem_Malloc(length);
    if (!name) {
        PyErr_NoMemory();
        return false;
    }
    PyOS_snprintf(name, length, "%s%s", prefix, key);
    *strrchr(name, '_') = '.';
    bool held = parameters_hold(parameters, name, array, data);
    PyMem_Free(name);
    return held;
}

/* Whether a * b is within what a dimension of an array can be; the product. */
static bool multiply_sizes(size_t a, size_t b, size_t *product) {
    if (b != 0 && a > (size_t)PY_SSIZE_T_MAX / b) {
        PyErr_SetString(PyExc_ValueError, "heads and head_size must have a smaller product");
        return false;
    }
    *product = a * b;
    return true;
}

/* The core gets bare pointers, so the shapes must be those that it will make of the channels of its inputs. */
static bool find_sizes(size_t channels, size_t memory, const sherl_transformer_settings *settings,
                       size_t sizes[LAYER_SIZES]) {
    size_t head_size = settings->head_size == 0 ? channels / settings->heads : settings->head_size;
    sizes[ONE_ROW] = SHERL_VECTOR;
    sizes[HIDDEN] = channels;
    sizes[INTERMEDIATE] = settings->intermediate;
    sizes[MEMORY] = memory;
    sizes[BUCKETS] = settings->positions.buckets;
    sizes[HEADS] = settings->heads;
    return multiply_sizes(settings->heads, head_size, &sizes[INNER]) &&
           multiply_sizes(settings->key_heads == 0 ? settings->heads : settings->key_heads, head_size,
                          &sizes[KEY_INNER]);
}

static bool parse_weights(GraphObject *self, const char *prefix, PyObject *dictionary, unsigned conditions,
                          const size_t sizes[LAYER_SIZES], sherl_transformer_weights *weights) {
    for (size_t i = 0; i < LENGTH(layer_weights); i++) {
        const struct layer_weight *weight = &layer_weights[i];
        if (!layer_has(weight, conditions)) continue;
        char name[64];
        PyOS_snprintf(name, sizeof name, "weights[\"%s\"]", weight->key);
        PyObject *array = weight_of(dictionary, weight->key);
        const sherl_real *data = array ? array_frozen(name, array, sizes[weight->rows], sizes[weight->columns]) : NULL;
        if (!data) return false;
        if (!hold_weight(self->parameters, prefix, weight->key, array, data)) return false;
        *(const sherl_real **)((char *)weights + weight->place) = data;
    }
    return true;
}

static const char *const placement_names[] = {"post", "pre", "sandwich", NULL}; /* by sherl_norm_placement */
static const char *const norm_names[] = {"layernorm", "rmsnorm", NULL};         /* by sherl_norm_kind */

PyObject *graph_transformer_layer(GraphObject *self, PyObject *args, PyObject *keywords) {
    const char *prefix;
    PyObject *mapping;
    int activation = SHERL_GELU_ERF, placement = SHERL_NORM_POST, norm = SHERL_LAYER_NORM;
    sherl_transformer_inputs inputs = {SHERL_NONE, SHERL_NONE, SHERL_NONE, SHERL_NONE};
    sherl_transformer_settings settings = {.eps = 1e-12,
                                           .query_bias = true,
                                           .output_bias = true,
                                           .feed_forward_bias = true,
                                           .norm_bias = true,
                                           .positions = {.max_distance = 128, .bidirectional = true}};
    argument arguments[] = {text_argument("prefix", &prefix),
                            handle_argument("x", &inputs.x),
                            object_argument("weights", &mapping),
                            or_none(handle_argument("positions", &inputs.positions)),
                            or_none(handle_argument("memory", &inputs.memory)),
                            or_none(handle_argument("memory_positions", &inputs.memory_positions)),
                            count_argument("heads", 1, &settings.heads),
                            count_argument("intermediate", 1, &settings.intermediate),
                            or_none(count_argument("key_heads", 1, &settings.key_heads)),
                            or_none(count_argument("head_size", 1, &settings.head_size)),
                            optional(choice_argument("activation", activation_names, &activation)),
                            optional(flag_argument("gated", &settings.gated)),
                            optional(choice_argument("placement", placement_names, &placement)),
                            optional(choice_argument("norm", norm_names, &norm)),
                            optional(real_argument("eps", &settings.eps)),
                            optional(flag_argument("query_bias", &settings.query_bias)),
                            optional(flag_argument("output_bias", &settings.output_bias)),
                            optional(flag_argument("feed_forward_bias", &settings.feed_forward_bias)),
                            optional(flag_argument("norm_bias", &settings.norm_bias)),
                            optional(flag_argument("layer_scale", &settings.layer_scale)),
                            optional(flag_argument("causal", &settings.causal)),
                            or_none(real_argument("scale", &settings.scale)),
                            or_none(real_argument("rotary_theta", &settings.rotary_theta)),
                            or_none(count_argument("rotary_dimensions", 1, &settings.rotary_dimensions)),
                            optional(real_argument("rotary_factor", &settings.rotary_scaling.factor)),
                            optional(real_argument("rotary_original", &settings.rotary_scaling.original)),
                            optional(real_argument("rotary_low", &settings.rotary_scaling.low)),
                            optional(real_argument("rotary_high", &settings.rotary_scaling.high)),
                            optional(count_argument("position_buckets", 0, &settings.positions.buckets)),
                            optional(count_argument("max_distance", 1, &settings.positions.max_distance)),
                            optional(flag_argument("bidirectional", &settings.positions.bidirectional)),
                            optional(real_argument("dropout", &settings.dropout)),
                            optional(real_argument("attention_dropout", &settings.attention_dropout)),
                            optional(flag_argument("bfloat16", &settings.bfloat16))};
    if (!parse_arguments("transformer_layer", args, keywords, arguments, LENGTH(arguments), 3)) return NULL;
    settings.activation = (sherl_activation)activation;
    settings.placement = (sherl_norm_placement)placement;
    settings.norm = (sherl_norm_kind)norm;
    settings.frozen = mapping != Py_None;
    sherl_transformer_weights weights = {0};
    unsigned conditions = conditions_of(&settings, inputs.memory != SHERL_NONE);
    PyObject *dictionary = settings.frozen ? copy_weights(mapping, conditions) : NULL;
    if (settings.frozen && !dictionary) return NULL;
    /* No shapes are known for values that do not exist or heads that do not fit, which the core will say. */
    size_t channels = sherl_graph_channels(self->graph, inputs.x), sizes[LAYER_SIZES];
    size_t memory = sherl_graph_channels(self->graph, inputs.memory);
    bool known = channels > 0 && (inputs.memory == SHERL_NONE || memory > 0) &&
                 (settings.head_size > 0 || channels % settings.heads == 0);
    bool good = !dictionary || !known ||
                (find_sizes(channels, memory, &settings, sizes) &&
                 parse_weights(self, prefix, dictionary, conditions, sizes, &weights));
    Py_XDECREF(dictionary);
    if (!good) return NULL;
    core_lock(self->parameters->state);
    sherl_value value = sherl_transformer_layer(self->graph, prefix, &inputs, &weights, &settings);
    core_unlock(self->parameters->state);
    return graph_result(self, value);
}
