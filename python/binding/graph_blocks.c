/* The methods of Graph that add whole blocks: MTSA, a transformer layer, a head. */
#include "graph.h"

#include "arrays.h"

#include <stddef.h>
#include <string.h>

/* ---- MTSA and heads ---------------------------------------------------------------------------------------------- */

static const char *const down_names[] = {"layernorm", "gated", NULL};        /* by sherl_down */
static const char *const guidance_names[] = {"token", "residual_mlp", NULL}; /* by sherl_guidance_kind */

PyObject *graph_mtsa(GraphObject *self, PyObject *args, PyObject *keywords) {
    const char *prefix;
    PyObject *sequence;
    sherl_value last;
    int down = SHERL_DOWN_LAYER_NORM, guidance = SHERL_GUIDANCE_TOKEN;
    sherl_mtsa_settings settings = {.eps = 1e-8, .down_norm_eps = 1e-5, .up_norm_eps = 1e-12, .gate_temperature = 0.1};
    argument arguments[] = {text_argument("prefix", &prefix),
                            object_argument("taps", &sequence),
                            handle_argument("last", &last),
                            count_argument("hidden", 1, &settings.hidden),
                            count_argument("out_features", 1, &settings.out_features),
                            optional(choice_argument("down", down_names, &down)),
                            optional(choice_argument("guidance", guidance_names, &guidance)),
                            optional(flag_argument("up_norm", &settings.up_norm)),
                            optional(real_argument("eps", &settings.eps)),
                            optional(real_argument("down_norm_eps", &settings.down_norm_eps)),
                            optional(real_argument("up_norm_eps", &settings.up_norm_eps)),
                            optional(real_argument("dropout", &settings.dropout)),
                            optional(real_argument("gate_temperature", &settings.gate_temperature))};
    if (!parse_arguments("mtsa", args, keywords, arguments, LENGTH(arguments), 3)) return NULL;
    settings.down = (sherl_down)down;
    settings.guidance = (sherl_guidance_kind)guidance;
    sherl_value *taps;
    size_t count;
    if (!parse_handles("taps", sequence, &taps, &count)) return NULL;
    core_lock(self->parameters->state);
    sherl_value value = sherl_mtsa(self->graph, prefix, taps, count, last, &settings);
    core_unlock(self->parameters->state);
    PyMem_Free(taps);
    return graph_result(self, value);
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
                            or_none(handle_argument("positions", &settings.positions))};
    if (!parse_arguments("head", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    settings.pooling = (sherl_pooling)pooling;
    core_lock(self->parameters->state);
    sherl_value value = sherl_head(self->graph, prefix, x, &settings);
    core_unlock(self->parameters->state);
    return graph_result(self, value);
}

/* ---- The transformer layer --------------------------------------------------------------------------------------- */

typedef enum layer_size { ONE_ROW, HIDDEN, INTERMEDIATE } layer_size;

/* Each weight of a layer: its key, its place and its shape. */
static const struct layer_weight {
    const char *key;
    size_t place;
    layer_size rows, columns;
} layer_weights[] = {
#define WEIGHT(name, rows, columns) {#name, offsetof(sherl_transformer_weights, name), rows, columns}
    WEIGHT(query_weight, HIDDEN, HIDDEN),
    WEIGHT(query_bias, ONE_ROW, HIDDEN),
    WEIGHT(key_weight, HIDDEN, HIDDEN),
    WEIGHT(key_bias, ONE_ROW, HIDDEN),
    WEIGHT(value_weight, HIDDEN, HIDDEN),
    WEIGHT(value_bias, ONE_ROW, HIDDEN),
    WEIGHT(output_weight, HIDDEN, HIDDEN),
    WEIGHT(output_bias, ONE_ROW, HIDDEN),
    WEIGHT(attention_norm_weight, ONE_ROW, HIDDEN),
    WEIGHT(attention_norm_bias, ONE_ROW, HIDDEN),
    WEIGHT(up_weight, INTERMEDIATE, HIDDEN),
    WEIGHT(up_bias, ONE_ROW, INTERMEDIATE),
    WEIGHT(down_weight, HIDDEN, INTERMEDIATE),
    WEIGHT(down_bias, ONE_ROW, HIDDEN),
    WEIGHT(feed_forward_norm_weight, ONE_ROW, HIDDEN),
    WEIGHT(feed_forward_norm_bias, ONE_ROW, HIDDEN),
#undef WEIGHT
};

/* The caller's mapping as a dictionary of its own with exactly the keys of the layer; NULL with an exception set. */
static PyObject *copy_weights(PyObject *mapping) {
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
        while (i < LENGTH(layer_weights) &&
               !(PyUnicode_Check(key) && PyUnicode_CompareWithASCIIString(key, layer_weights[i].key) == 0))
            i++;
        if (i < LENGTH(layer_weights)) continue;
        PyErr_Format(PyExc_ValueError, "weights has the key %R, which a transformer layer does not have", key);
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

/* The core gets bare pointers, so the shapes must be those that it will make of the channels of x. */
static bool parse_weights(GraphObject *self, const char *prefix, PyObject *dictionary, size_t channels,
                          size_t intermediate, sherl_transformer_weights *weights) {
    size_t sizes[] = {[ONE_ROW] = SHERL_VECTOR, [HIDDEN] = channels, [INTERMEDIATE] = intermediate};
    for (size_t i = 0; i < LENGTH(layer_weights); i++) {
        const struct layer_weight *weight = &layer_weights[i];
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

PyObject *graph_transformer_layer(GraphObject *self, PyObject *args, PyObject *keywords) {
    const char *prefix;
    sherl_value x;
    PyObject *mapping;
    int activation = SHERL_GELU_ERF;
    sherl_transformer_settings settings = {.eps = 1e-12};
    argument arguments[] = {text_argument("prefix", &prefix),
                            handle_argument("x", &x),
                            object_argument("weights", &mapping),
                            count_argument("heads", 1, &settings.heads),
                            count_argument("intermediate", 1, &settings.intermediate),
                            optional(choice_argument("activation", activation_names, &activation)),
                            optional(real_argument("eps", &settings.eps)),
                            optional(real_argument("dropout", &settings.dropout)),
                            optional(real_argument("attention_dropout", &settings.attention_dropout)),
                            optional(flag_argument("bfloat16", &settings.bfloat16))};
    if (!parse_arguments("transformer_layer", args, keywords, arguments, LENGTH(arguments), 3)) return NULL;
    settings.activation = (sherl_activation)activation;
    settings.frozen = mapping != Py_None;
    sherl_transformer_weights weights = {0};
    PyObject *dictionary = settings.frozen ? copy_weights(mapping) : NULL;
    if (settings.frozen && !dictionary) return NULL;
    size_t channels = sherl_graph_channels(self->graph, x); /* 0: no such value, which the core will say */
    bool good = !dictionary || channels == 0 ||
                parse_weights(self, prefix, dictionary, channels, settings.intermediate, &weights);
    Py_XDECREF(dictionary);
    if (!good) return NULL;
    core_lock(self->parameters->state);
    sherl_value value = sherl_transformer_layer(self->graph, prefix, x, &weights, &settings);
    core_unlock(self->parameters->state);
    return graph_result(self, value);
}
