/* The type Graph: builds a program out of row spaces, inputs, parameters and ops. */
#include "graph.h"

#include "arrays.h"

const char *const activation_names[] = {"identity", "relu",    "gelu", "gelu_tanh", "quick_gelu",
                                        "silu",     "sigmoid", "tanh", NULL};
const char *const pooling_names[] = {"first", "mean", "max", "last", "position", NULL};
static const char *const initializer_names[] = {"zeros", "ones", "xavier_uniform", "normal", "standard_normal", NULL};

/* ---- Results and sequences --------------------------------------------------------------------------------------- */

static void raise_graph_error(GraphObject *self) {
    sherl_status status = sherl_graph_status(self->graph);
    PyErr_SetString(status_exception(status), sherl_graph_message(self->graph));
}

PyObject *graph_result(GraphObject *self, uint32_t handle) {
    if (handle != SHERL_NONE) return PyLong_FromUnsignedLong(handle);
    raise_graph_error(self);
    return NULL;
}

bool parse_handles(const char *name, PyObject *object, uint32_t **handles, size_t *count) {
    PyObject *items = parse_sequence(name, object, ANY_LENGTH, "value");
    if (!items) return false;
    *count = (size_t)PyTuple_GET_SIZE(items);
    *handles = PyMem_Calloc(*count, sizeof **handles);
    if (!*handles) PyErr_NoMemory();
    for (size_t i = 0; *handles && i < *count; i++) {
        char item_name[40];
        uint64_t number;
        PyOS_snprintf(item_name, sizeof item_name, "%s[%zu]", name, i);
        if (parse_integer(item_name, PyTuple_GET_ITEM(items, (Py_ssize_t)i), 0, SHERL_NONE - 1, &number)) {
            (*handles)[i] = (uint32_t)number;
        } else {
            PyMem_Free(*handles);
            *handles = NULL;
        }
    }
    Py_DECREF(items);
    return *handles != NULL;
}

/* ---- Declarations ------------------------------------------------------------------------------------------------ */

void declarations_release(declarations *declared) {
    PyMem_Free(declared->inputs.items);
    PyMem_Free(declared->outputs.items);
    PyMem_Free(declared->spaces);
    *declared = (declarations){0};
}

/* Room for one more of `count` items. What the core has declared must be recorded, so room is made first. */
static bool make_room(void **items, size_t count, size_t *capacity, size_t size) {
    if (count < *capacity) return true;
    size_t larger = *capacity ? 2 * *capacity : 8;
    void *grown = PyMem_Realloc(*items, larger * size);
    if (!grown) {
        PyErr_NoMemory();
        return false;
    }
    *items = grown;
    *capacity = larger;
    return true;
}

static bool reserve(declared_list *list) {
    return make_room((void **)&list->items, list->count, &list->capacity, sizeof *list->items);
}

static bool copy_list(declared_list *copy, const declared_list *list) {
    copy->items = PyMem_Calloc(list->count, sizeof *copy->items);
    if (!copy->items) {
        PyErr_NoMemory();
        return false;
    }
    for (size_t i = 0; i < list->count; i++) copy->items[i] = list->items[i];
    copy->count = copy->capacity = list->count;
    return true;
}

static bool copy_declarations(declarations *copy, const declarations *declared) {
    *copy = (declarations){.counts_rows = declared->counts_rows, .has_loss = declared->has_loss};
    copy->spaces = PyMem_Calloc(declared->space_count, sizeof *copy->spaces);
    if (!copy->spaces) PyErr_NoMemory();
    for (size_t i = 0; copy->spaces && i < declared->space_count; i++) copy->spaces[i] = declared->spaces[i];
    copy->space_count = copy->space_capacity = declared->space_count;
    if (copy->spaces && copy_list(&copy->inputs, &declared->inputs) && copy_list(&copy->outputs, &declared->outputs))
        return true;
    declarations_release(copy);
    return false;
}

static PyObject *declare_space(GraphObject *self, PyObject *args, PyObject *keywords, const char *method, bool images) {
    const char *name;
    argument arguments[] = {text_argument("name", &name)};
    if (!parse_arguments(method, args, keywords, arguments, LENGTH(arguments), 1)) return NULL;
    declarations *declared = &self->declared;
    if (!make_room((void **)&declared->spaces, declared->space_count, &declared->space_capacity,
                   sizeof *declared->spaces))
        return NULL;
    sherl_space space = (images ? sherl_graph_grid : sherl_graph_space)(self->graph, name);
    if (space != SHERL_NONE) {
        declared->spaces[declared->space_count++] = (declared_space){.space = space, .images = images};
        declared->counts_rows = declared->counts_rows || images;
    }
    return graph_result(self, space);
}

static PyObject *graph_space(GraphObject *self, PyObject *args, PyObject *keywords) {
    return declare_space(self, args, keywords, "space", false);
}

static PyObject *graph_grid(GraphObject *self, PyObject *args, PyObject *keywords) {
    return declare_space(self, args, keywords, "grid", true);
}

static PyObject *graph_fixed_space(GraphObject *self, PyObject *args, PyObject *keywords) {
    const char *name;
    size_t rows;
    argument arguments[] = {text_argument("name", &name), count_argument("rows", 1, &rows)};
    if (!parse_arguments("fixed_space", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    sherl_space space = sherl_graph_fixed_space(self->graph, name, rows);
    self->declared.counts_rows = self->declared.counts_rows || space != SHERL_NONE;
    return graph_result(self, space);
}

static PyObject *graph_value_space(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value value;
    argument arguments[] = {handle_argument("value", &value)};
    if (!parse_arguments("value_space", args, keywords, arguments, LENGTH(arguments), 1)) return NULL;
    sherl_space space = sherl_graph_value_space(self->graph, value);
    if (space != SHERL_NONE) return PyLong_FromUnsignedLong(space);
    return PyErr_Format(PyExc_ValueError, "value %u is not one of this graph", value);
}

static PyObject *graph_input(GraphObject *self, PyObject *args, PyObject *keywords) {
    const char *name;
    declared_rows rows = {0};
    argument arguments[] = {text_argument("name", &name), handle_argument("space", &rows.space),
                            count_argument("channels", 1, &rows.channels),
                            optional(flag_argument("needs_gradient", &rows.has_sink))};
    if (!parse_arguments("input", args, keywords, arguments, LENGTH(arguments), 4)) return NULL;
    declared_list *inputs = &self->declared.inputs;
    if (!reserve(inputs)) return NULL;
    sherl_value value = sherl_graph_input(self->graph, name, rows.space, rows.channels, rows.has_sink);
    if (value != SHERL_NONE) inputs->items[inputs->count++] = rows;
    return graph_result(self, value);
}

static PyObject *graph_indices(GraphObject *self, PyObject *args, PyObject *keywords) {
    const char *name;
    declared_rows rows = {.channels = 1, .integers = true};
    argument arguments[] = {text_argument("name", &name), handle_argument("space", &rows.space)};
    if (!parse_arguments("indices", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    declared_list *inputs = &self->declared.inputs;
    if (!reserve(inputs)) return NULL;
    sherl_value value = sherl_graph_indices(self->graph, name, rows.space);
    if (value != SHERL_NONE) inputs->items[inputs->count++] = rows;
    return graph_result(self, value);
}

static PyObject *graph_output(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value value;
    argument arguments[] = {handle_argument("value", &value)};
    if (!parse_arguments("output", args, keywords, arguments, LENGTH(arguments), 1)) return NULL;
    declared_list *outputs = &self->declared.outputs;
    if (!reserve(outputs)) return NULL;
    sherl_graph_output(self->graph, value);
    if (sherl_graph_status(self->graph)) return graph_result(self, SHERL_NONE);
    outputs->items[outputs->count++] = (declared_rows){.space = sherl_graph_value_space(self->graph, value),
                                                       .channels = sherl_graph_channels(self->graph, value),
                                                       .has_sink = true};
    Py_RETURN_NONE;
}

static PyObject *graph_loss(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value value;
    argument arguments[] = {handle_argument("value", &value)};
    if (!parse_arguments("loss", args, keywords, arguments, LENGTH(arguments), 1)) return NULL;
    sherl_graph_loss(self->graph, value);
    if (sherl_graph_status(self->graph)) return graph_result(self, SHERL_NONE);
    self->declared.has_loss = true;
    Py_RETURN_NONE;
}

/* ---- Parameters -------------------------------------------------------------------------------------------------- */

static bool parse_shape(PyObject *object, size_t *rows, size_t *columns) {
    PyObject *items = parse_sequence("shape", object, ANY_LENGTH, "dimension");
    if (!items) return false;
    Py_ssize_t count = PyTuple_GET_SIZE(items);
    uint64_t lengths[2] = {SHERL_VECTOR, 0};
    bool good = count == 1 || count == 2;
    if (!good) PyErr_Format(PyExc_ValueError, "shape must have one or two dimensions, not %zd", count);
    for (Py_ssize_t i = 0; good && i < count; i++) {
        char name[40];
        PyOS_snprintf(name, sizeof name, "shape[%zd]", i);
        good = parse_integer(name, PyTuple_GET_ITEM(items, i), 1, PTRDIFF_MAX, &lengths[2 - count + i]);
    }
    Py_DECREF(items);
    *rows = (size_t)lengths[0];
    *columns = (size_t)lengths[1];
    return good;
}

/* The data of a new parameter: an array for a frozen one, None for any other. False with an exception set. */
static bool parse_data(GraphObject *self, const char *name, int role, PyObject *array, size_t rows, size_t columns,
                       const sherl_real **data) {
    if ((role == SHERL_FROZEN) != (array != NULL)) {
        PyErr_SetString(PyExc_ValueError, role == SHERL_FROZEN
                                              ? "data must be an array for a frozen parameter, not None"
                                              : "data must be None for a parameter that is not frozen");
        return false;
    }
    *data = array ? array_frozen("data", array, rows, columns) : NULL;
    return !array || (*data && parameters_hold(self->parameters, name, array, *data));
}

static PyObject *graph_parameter(GraphObject *self, PyObject *args, PyObject *keywords) {
    const char *name;
    PyObject *shape, *array = NULL;
    int role = SHERL_TRAINABLE, initializer = SHERL_INIT_ZEROS;
    argument arguments[] = {text_argument("name", &name), object_argument("shape", &shape),
                            optional(choice_argument("role", role_names, &role)),
                            optional(choice_argument("initializer", initializer_names, &initializer)),
                            or_none(object_argument("data", &array))};
    if (!parse_arguments("parameter", args, keywords, arguments, LENGTH(arguments), 5)) return NULL;
    size_t rows, columns;
    const sherl_real *data;
    if (!parse_shape(shape, &rows, &columns) || !parse_data(self, name, role, array, rows, columns, &data)) return NULL;
    core_lock(self->parameters->state);
    sherl_parameter parameter =
        sherl_graph_parameter(self->graph, name, rows, columns, (sherl_role)role, (sherl_initializer)initializer, data);
    core_unlock(self->parameters->state);
    return graph_result(self, parameter);
}

/* ---- Ops: in the order of sherl.h, each as it is there ----------------------------------------------------------- */

static PyObject *graph_linear(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x;
    sherl_parameter weight, bias = SHERL_NONE;
    int activation = SHERL_IDENTITY;
    bool bfloat16 = false;
    argument arguments[] = {handle_argument("x", &x), handle_argument("weight", &weight),
                            or_none(handle_argument("bias", &bias)),
                            optional(choice_argument("activation", activation_names, &activation)),
                            optional(flag_argument("bfloat16", &bfloat16))};
    if (!parse_arguments("linear", args, keywords, arguments, LENGTH(arguments), 4)) return NULL;
    return graph_result(self, (bfloat16 ? sherl_bfloat16_linear : sherl_linear)(self->graph, x, weight, bias,
                                                                                (sherl_activation)activation));
}

static PyObject *graph_activate(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x;
    int activation;
    argument arguments[] = {handle_argument("x", &x), choice_argument("activation", activation_names, &activation)};
    if (!parse_arguments("activate", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    return graph_result(self, sherl_activate(self->graph, x, (sherl_activation)activation));
}

static PyObject *graph_gated(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value gate, x;
    int activation;
    argument arguments[] = {handle_argument("gate", &gate), handle_argument("x", &x),
                            choice_argument("activation", activation_names, &activation)};
    if (!parse_arguments("gated", args, keywords, arguments, LENGTH(arguments), 3)) return NULL;
    return graph_result(self, sherl_gated(self->graph, gate, x, (sherl_activation)activation));
}

static PyObject *graph_layer_norm(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x;
    sherl_parameter weight, bias = SHERL_NONE;
    double eps;
    argument arguments[] = {handle_argument("x", &x), handle_argument("weight", &weight),
                            or_none(handle_argument("bias", &bias)), real_argument("eps", &eps)};
    if (!parse_arguments("layer_norm", args, keywords, arguments, LENGTH(arguments), 4)) return NULL;
    return graph_result(self, sherl_layer_norm(self->graph, x, weight, bias, eps));
}

static PyObject *graph_rms_norm(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x;
    sherl_parameter weight;
    double eps;
    argument arguments[] = {handle_argument("x", &x), handle_argument("weight", &weight), real_argument("eps", &eps)};
    if (!parse_arguments("rms_norm", args, keywords, arguments, LENGTH(arguments), 3)) return NULL;
    return graph_result(self, sherl_rms_norm(self->graph, x, weight, eps));
}

static PyObject *graph_batch_norm(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x;
    sherl_parameter weight, bias, mean, variance;
    double eps, momentum;
    argument arguments[] = {handle_argument("x", &x),
                            handle_argument("weight", &weight),
                            handle_argument("bias", &bias),
                            handle_argument("running_mean", &mean),
                            handle_argument("running_variance", &variance),
                            real_argument("eps", &eps),
                            real_argument("momentum", &momentum)};
    if (!parse_arguments("batch_norm", args, keywords, arguments, LENGTH(arguments), 7)) return NULL;
    return graph_result(self, sherl_batch_norm(self->graph, x, weight, bias, mean, variance, eps, momentum));
}

static PyObject *graph_dropout(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x;
    double rate;
    argument arguments[] = {handle_argument("x", &x), real_argument("rate", &rate)};
    if (!parse_arguments("dropout", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    return graph_result(self, sherl_dropout(self->graph, x, rate));
}

static PyObject *graph_add(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value a, b;
    argument arguments[] = {handle_argument("a", &a), handle_argument("b", &b)};
    if (!parse_arguments("add", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    return graph_result(self, sherl_add(self->graph, a, b));
}

static PyObject *graph_multiply(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value a, b;
    argument arguments[] = {handle_argument("a", &a), handle_argument("b", &b)};
    if (!parse_arguments("multiply", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    return graph_result(self, sherl_multiply(self->graph, a, b));
}

static PyObject *graph_scale_channels(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x;
    sherl_parameter scale;
    argument arguments[] = {handle_argument("x", &x), handle_argument("scale", &scale)};
    if (!parse_arguments("scale_channels", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    return graph_result(self, sherl_scale_channels(self->graph, x, scale));
}

static PyObject *graph_embedding(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value indices;
    sherl_parameter table;
    argument arguments[] = {handle_argument("indices", &indices), handle_argument("table", &table)};
    if (!parse_arguments("embedding", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    return graph_result(self, sherl_embedding(self->graph, indices, table));
}

static PyObject *graph_table(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_parameter table;
    sherl_space space;
    argument arguments[] = {handle_argument("table", &table), handle_argument("space", &space)};
    if (!parse_arguments("table", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    return graph_result(self, sherl_table(self->graph, table, space));
}

static PyObject *graph_rotary(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x;
    size_t heads, dimensions;
    double theta;
    sherl_rotary_scaling scaling = {0};
    argument arguments[] = {handle_argument("x", &x),
                            count_argument("heads", 1, &heads),
                            count_argument("dimensions", 1, &dimensions),
                            real_argument("theta", &theta),
                            optional(real_argument("factor", &scaling.factor)),
                            optional(real_argument("original", &scaling.original)),
                            optional(real_argument("low", &scaling.low)),
                            optional(real_argument("high", &scaling.high))};
    if (!parse_arguments("rotary", args, keywords, arguments, LENGTH(arguments), 4)) return NULL;
    return graph_result(self, sherl_rotary(self->graph, x, heads, dimensions, theta, &scaling));
}

static PyObject *graph_attention(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value query, key, value;
    sherl_attention_settings settings = {.position_bias = SHERL_NONE,
                                         .positions = {.max_distance = 128, .bidirectional = true}};
    argument arguments[] = {handle_argument("query", &query),
                            handle_argument("key", &key),
                            handle_argument("value", &value),
                            count_argument("heads", 1, &settings.heads),
                            real_argument("scale", &settings.scale),
                            optional(flag_argument("causal", &settings.causal)),
                            optional(real_argument("dropout", &settings.dropout)),
                            or_none(count_argument("key_heads", 1, &settings.key_heads)),
                            or_none(handle_argument("position_bias", &settings.position_bias)),
                            optional(count_argument("position_buckets", 0, &settings.positions.buckets)),
                            optional(count_argument("max_distance", 1, &settings.positions.max_distance)),
                            optional(flag_argument("bidirectional", &settings.positions.bidirectional))};
    if (!parse_arguments("attention", args, keywords, arguments, LENGTH(arguments), 7)) return NULL;
    return graph_result(self, sherl_attention(self->graph, query, key, value, &settings));
}

static PyObject *graph_pool(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x;
    int pooling;
    argument arguments[] = {handle_argument("x", &x), choice_argument("pooling", pooling_names, &pooling)};
    if (!parse_arguments("pool", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    return graph_result(self, sherl_pool(self->graph, x, (sherl_pooling)pooling));
}

static PyObject *graph_select(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x, positions;
    argument arguments[] = {handle_argument("x", &x), handle_argument("positions", &positions)};
    if (!parse_arguments("select", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    return graph_result(self, sherl_select(self->graph, x, positions));
}

static PyObject *graph_rank_encoding(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x;
    size_t channels;
    argument arguments[] = {handle_argument("x", &x), count_argument("channels", 1, &channels)};
    if (!parse_arguments("rank_encoding", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    return graph_result(self, sherl_rank_encoding(self->graph, x, channels));
}

static PyObject *graph_sorted_pool(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x, scores;
    argument arguments[] = {handle_argument("x", &x), handle_argument("scores", &scores)};
    if (!parse_arguments("sorted_pool", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    return graph_result(self, sherl_sorted_pool(self->graph, x, scores));
}

static PyObject *graph_l2_normalize(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x;
    double eps = 0;
    argument arguments[] = {handle_argument("x", &x), optional(real_argument("eps", &eps))};
    if (!parse_arguments("l2_normalize", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    return graph_result(self, sherl_l2_normalize(self->graph, x, eps));
}

static PyObject *graph_amplify(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x;
    sherl_parameter logarithm;
    double initial = 1;
    argument arguments[] = {handle_argument("x", &x), handle_argument("logarithm", &logarithm),
                            optional(real_argument("initial", &initial))};
    if (!parse_arguments("amplify", args, keywords, arguments, LENGTH(arguments), 3)) return NULL;
    return graph_result(self, sherl_amplify(self->graph, x, logarithm, initial));
}

static PyObject *graph_concatenate(GraphObject *self, PyObject *args, PyObject *keywords) {
    PyObject *sequence;
    argument arguments[] = {object_argument("values", &sequence)};
    if (!parse_arguments("concatenate", args, keywords, arguments, LENGTH(arguments), 1)) return NULL;
    sherl_value *values;
    size_t count;
    if (!parse_handles("values", sequence, &values, &count)) return NULL;
    sherl_value value = sherl_concatenate(self->graph, values, count);
    PyMem_Free(values);
    return graph_result(self, value);
}

static PyObject *graph_guidance(GraphObject *self, PyObject *args, PyObject *keywords) {
    PyObject *sequence;
    sherl_parameter weight, bias;
    double eps;
    bool add_guide = true;
    argument arguments[] = {object_argument("features", &sequence), handle_argument("weight", &weight),
                            handle_argument("bias", &bias), real_argument("eps", &eps),
                            optional(flag_argument("add_guide", &add_guide))};
    if (!parse_arguments("guidance", args, keywords, arguments, LENGTH(arguments), 5)) return NULL;
    sherl_value *features;
    size_t count;
    if (!parse_handles("features", sequence, &features, &count)) return NULL;
    sherl_value value = sherl_guidance(self->graph, features, count, weight, bias, eps, add_guide);
    PyMem_Free(features);
    return graph_result(self, value);
}

static PyObject *graph_gated_residual(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x, last;
    sherl_parameter gate;
    double temperature;
    argument arguments[] = {handle_argument("x", &x), handle_argument("last", &last), handle_argument("gate", &gate),
                            real_argument("temperature", &temperature)};
    if (!parse_arguments("gated_residual", args, keywords, arguments, LENGTH(arguments), 4)) return NULL;
    return graph_result(self, sherl_gated_residual(self->graph, x, last, gate, temperature));
}

static PyObject *graph_cross_entropy(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value logits, targets, weights;
    sherl_parameter class_weights = SHERL_NONE;
    double smoothing = 0;
    argument arguments[] = {handle_argument("logits", &logits), handle_argument("target_indices", &targets),
                            handle_argument("weights", &weights),
                            or_none(handle_argument("class_weights", &class_weights)),
                            optional(real_argument("label_smoothing", &smoothing))};
    if (!parse_arguments("cross_entropy", args, keywords, arguments, LENGTH(arguments), 5)) return NULL;
    return graph_result(self, sherl_cross_entropy(self->graph, logits, targets, weights, class_weights, smoothing));
}

static PyObject *graph_vocabulary_cross_entropy(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value x, targets, weights;
    sherl_parameter table;
    sherl_vocabulary_settings settings = {0};
    argument arguments[] = {handle_argument("x", &x),
                            handle_argument("target_indices", &targets),
                            handle_argument("weights", &weights),
                            handle_argument("table", &table),
                            optional(real_argument("label_smoothing", &settings.label_smoothing)),
                            optional(flag_argument("best", &settings.best)),
                            optional(flag_argument("bfloat16", &settings.bfloat16))};
    if (!parse_arguments("vocabulary_cross_entropy", args, keywords, arguments, LENGTH(arguments), 4)) return NULL;
    return graph_result(self, sherl_vocabulary_cross_entropy(self->graph, x, targets, weights, table, &settings));
}

static PyObject *graph_binary_cross_entropy(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value logits, targets, weights;
    argument arguments[] = {handle_argument("logits", &logits), handle_argument("targets", &targets),
                            handle_argument("weights", &weights)};
    if (!parse_arguments("binary_cross_entropy", args, keywords, arguments, LENGTH(arguments), 3)) return NULL;
    return graph_result(self, sherl_binary_cross_entropy(self->graph, logits, targets, weights));
}

static PyObject *graph_squared_error(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value predictions, targets, weights;
    argument arguments[] = {handle_argument("predictions", &predictions), handle_argument("targets", &targets),
                            handle_argument("weights", &weights)};
    if (!parse_arguments("squared_error", args, keywords, arguments, LENGTH(arguments), 3)) return NULL;
    return graph_result(self, sherl_squared_error(self->graph, predictions, targets, weights));
}

static PyObject *graph_row_cross_entropy(GraphObject *self, PyObject *args, PyObject *keywords) {
    sherl_value logits, weights;
    PyObject *sequence;
    argument arguments[] = {handle_argument("logits", &logits), object_argument("target_rows", &sequence),
                            handle_argument("weights", &weights)};
    if (!parse_arguments("row_cross_entropy", args, keywords, arguments, LENGTH(arguments), 3)) return NULL;
    sherl_value *targets;
    size_t count, channels = sherl_graph_channels(self->graph, logits); /* 0: no such value, which the core will say */
    if (!parse_handles("target_rows", sequence, &targets, &count)) return NULL;
    sherl_value value = SHERL_NONE;
    bool fits = channels == 0 || count == channels;
    if (fits) value = sherl_row_cross_entropy(self->graph, logits, targets, weights);
    PyMem_Free(targets);
    if (fits) return graph_result(self, value);
    return PyErr_Format(PyExc_ValueError, "target_rows must be %zu values, one a channel of the logits, not %zu",
                        channels, count);
}

/* ---- Life -------------------------------------------------------------------------------------------------------- */

static PyObject *graph_get_stream(GraphObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(sherl_graph_stream(self->graph));
}

static int graph_set_stream(GraphObject *self, PyObject *number, void *Py_UNUSED(closure)) {
    uint64_t stream;
    if (!number) {
        PyErr_SetString(PyExc_TypeError, "stream cannot be deleted");
        return -1;
    }
    if (!parse_integer("stream", number, 0, UINT32_MAX, &stream)) return -1;
    sherl_graph_set_stream(self->graph, (uint32_t)stream);
    return 0;
}

static PyObject *graph_set_staged(GraphObject *self, PyObject *args, PyObject *keywords) {
    bool staged;
    argument arguments[] = {flag_argument("staged", &staged)};
    if (!parse_arguments("set_staged", args, keywords, arguments, LENGTH(arguments), 1)) return NULL;
    sherl_graph_set_staged(self->graph, staged);
    Py_RETURN_NONE;
}

static PyObject *graph_compile(GraphObject *self, PyObject *args, PyObject *keywords) {
    bool gradient;
    argument arguments[] = {flag_argument("gradient", &gradient)};
    if (!parse_arguments("compile", args, keywords, arguments, LENGTH(arguments), 1)) return NULL;
    declarations declared;
    sherl_program *program;
    sherl_status status = SHERL_OK;
    core_lock(self->parameters->state); /* may let another thread declare more, so the copy comes after it */
    bool copied = copy_declarations(&declared, &self->declared);
    if (copied) status = sherl_program_compile(self->graph, gradient, &program);
    core_unlock(self->parameters->state);
    if (!copied) return NULL;
    if (!status) return program_wrap(self->parameters, program, declared, gradient);
    declarations_release(&declared);
    if (sherl_graph_status(self->graph)) return graph_result(self, SHERL_NONE);
    return raise_status(status, "compile");
}

static PyObject *graph_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    PyObject *parameters;
    bool training;
    argument arguments[] = {object_argument("parameters", &parameters), flag_argument("training", &training)};
    if (!parse_arguments("Graph", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    module_state *state = PyType_GetModuleState(type);
    if (!Py_IS_TYPE(parameters, state->parameters_type)) {
        PyErr_Format(PyExc_TypeError, "parameters must be a Parameters of this module, not %.100s",
                     Py_TYPE(parameters)->tp_name);
        return NULL;
    }
    GraphObject *self = (GraphObject *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    Py_INCREF(parameters);
    self->parameters = (ParametersObject *)parameters;
    sherl_status status = sherl_graph_create(state->context, self->parameters->parameters, training, &self->graph);
    if (!status) return (PyObject *)self;
    Py_DECREF(self);
    return raise_status(status, "Graph");
}

static int graph_traverse(GraphObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->parameters);
    return 0;
}

static void graph_dealloc(GraphObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    sherl_graph_destroy(self->graph);
    declarations_release(&self->declared);
    Py_XDECREF(self->parameters);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef graph_methods[] = {
    METHOD("space", graph_space,
           "space($self, name)\n--\n\nA row space whose segment lengths are given with each batch."),
    METHOD("fixed_space", graph_fixed_space,
           "fixed_space($self, name, rows)\n--\n\nA row space with as many rows in every sample."),
    METHOD("grid", graph_grid,
           "grid($self, name)\n--\n\nA row space of images whose heights and widths are given with each batch."),
    METHOD("value_space", graph_value_space, "value_space($self, value)\n--\n\nThe row space of a value."),
    METHOD("input", graph_input,
           "input($self, name, space, channels, needs_gradient=False)\n--\n\nRows of reals, bound by order."),
    METHOD("indices", graph_indices, "indices($self, name, space)\n--\n\nRows of one integer, bound by order."),
    METHOD("parameter", graph_parameter,
           "parameter($self, name, shape, role='trainable', initializer='zeros', data=None)\n--\n\n"
           "Add a parameter to the store, or find the one of that name, which must agree."),
    METHOD("output", graph_output, "output($self, value)\n--\n\nMake a value an output, bound by order."),
    METHOD("loss", graph_loss, "loss($self, value)\n--\n\nMake the sum over a value's rows the loss."),
    METHOD("linear", graph_linear,
           "linear($self, x, weight, bias=None, activation='identity', bfloat16=False)\n--\n\n"
           "activation(x W^T + b); with bfloat16 the weight must be frozen."),
    METHOD("activate", graph_activate, "activate($self, x, activation)\n--\n\nactivation(x)"),
    METHOD("gated", graph_gated, "gated($self, gate, x, activation)\n--\n\nactivation(gate) * x"),
    METHOD("layer_norm", graph_layer_norm,
           "layer_norm($self, x, weight, bias, eps)\n--\n\nNormalize each row over its channels; bias may be None."),
    METHOD("rms_norm", graph_rms_norm,
           "rms_norm($self, x, weight, eps)\n--\n\nDivide each row by the root of its mean square."),
    METHOD("batch_norm", graph_batch_norm,
           "batch_norm($self, x, weight, bias, running_mean, running_variance, eps, momentum)\n--\n\n"
           "Normalize each channel over the rows of the batch, or by the running statistics."),
    METHOD("dropout", graph_dropout, "dropout($self, x, rate)\n--\n\nDropout in a training graph, else x."),
    METHOD("add", graph_add, "add($self, a, b)\n--\n\na + b"),
    METHOD("multiply", graph_multiply, "multiply($self, a, b)\n--\n\na * b"),
    METHOD("scale_channels", graph_scale_channels,
           "scale_channels($self, x, scale)\n--\n\nx * scale, channel by channel"),
    METHOD("embedding", graph_embedding, "embedding($self, indices, table)\n--\n\ntable[indices]"),
    METHOD("table", graph_table, "table($self, table, space)\n--\n\nThe rows of a table for every sample."),
    METHOD("rotary", graph_rotary,
           "rotary($self, x, heads, dimensions, theta, *, factor=0.0, original=0.0, low=0.0, high=0.0)\n--\n\n"
           "Turn pairs of channels by angles that grow with the row's position."),
    METHOD("attention", graph_attention,
           "attention($self, query, key, value, heads, scale, causal=False, dropout=0.0, *, key_heads=None, "
           "position_bias=None, position_buckets=0, max_distance=128, bidirectional=True)\n--\n\n"
           "softmax(scale q k^T + bias) v, head by head, inside each segment."),
    METHOD("pool", graph_pool, "pool($self, x, pooling)\n--\n\nOne row a sample: its first, last, mean or maximum."),
    METHOD("select", graph_select,
           "select($self, x, positions)\n--\n\nOne row a sample: that of the number given, counted within the sample."),
    METHOD("rank_encoding", graph_rank_encoding,
           "rank_encoding($self, x, channels)\n--\n\nRows that tell their rank in the sample, from above and below."),
    METHOD("sorted_pool", graph_sorted_pool,
           "sorted_pool($self, x, scores)\n--\n\nOne row a sample: sorted values by the softmax of the scores."),
    METHOD("l2_normalize", graph_l2_normalize, "l2_normalize($self, x, eps=0.0)\n--\n\nx / (||x|| + eps), row by row."),
    METHOD("amplify", graph_amplify, "amplify($self, x, logarithm, initial=1.0)\n--\n\ninitial exp(logarithm) x"),
    METHOD("concatenate", graph_concatenate, "concatenate($self, values)\n--\n\nChannels side by side."),
    METHOD("convolution", graph_convolution,
           "convolution($self, x, weight, bias=None, size=1, stride=1, padding=0, activation='identity', output=None)"
           "\n--\n\nactivation(W x + b) over the windows of images."),
    METHOD("window_pool", graph_window_pool,
           "window_pool($self, x, size, output=None)\n--\n\nMaximum plus mean over windows side by side."),
    METHOD("spatial_guidance", graph_spatial_guidance,
           "spatial_guidance($self, x, guide, weight, bias, gate=None, position=None, base='first', eps=1e-06, "
           "temperature=0.1, index=0)\n--\n\nOne row a sample: its rows weighted by a guide, plus a base row."),
    METHOD("guidance", graph_guidance,
           "guidance($self, features, weight, bias, eps, add_guide=True)\n--\n\n"
           "The anti-redundancy consolidation of shallow features by the last one."),
    METHOD("gated_residual", graph_gated_residual,
           "gated_residual($self, x, last, gate, temperature)\n--\n\nx + tanh(gate / temperature) last"),
    METHOD("cross_entropy", graph_cross_entropy,
           "cross_entropy($self, logits, target_indices, weights, class_weights=None, label_smoothing=0.0)\n--\n\n"
           "Cross-entropy of each row, times the row's weight."),
    METHOD("vocabulary_cross_entropy", graph_vocabulary_cross_entropy,
           "vocabulary_cross_entropy($self, x, target_indices, weights, table, *, label_smoothing=0.0, best=False, "
           "bfloat16=False)\n--\n\n"
           "Cross-entropy of the logits x table^T of each row, times the row's weight; with best the word of the "
           "largest logit beside it."),
    METHOD("binary_cross_entropy", graph_binary_cross_entropy,
           "binary_cross_entropy($self, logits, targets, weights)\n--\n\n"
           "Mean over the channels, times the row's weight."),
    METHOD("squared_error", graph_squared_error,
           "squared_error($self, predictions, targets, weights)\n--\n\n"
           "Mean over the channels, times the row's weight."),
    METHOD("row_cross_entropy", graph_row_cross_entropy,
           "row_cross_entropy($self, logits, target_rows, weights)\n--\n\n"
           "Which row of its sample is meant, for each channel; the mean over those, times the sample's weight."),
    METHOD("mtsa", graph_mtsa,
           "mtsa($self, prefix, taps, last, *, hidden, out_features, down='layernorm', guidance='token', "
           "up_norm='none', eps=1e-08, down_norm_eps=1e-05, up_norm_eps=1e-12, momentum=0.1, dropout=0.0, "
           "gate_temperature=0.1, windows=None, base='first', gated_base=False, position=None)\n--\n\n"
           "The MTSA block over taps of one row space, or pooled to one, the guide last."),
    METHOD("mtsa_features", graph_mtsa_features,
           "mtsa_features($self, prefix, taps, last, *, hidden, out_features, down='layernorm', guidance='token', "
           "up_norm='none', eps=1e-08, down_norm_eps=1e-05, up_norm_eps=1e-12, momentum=0.1, dropout=0.0, "
           "gate_temperature=0.1, windows=None, base='first', gated_base=False, position=None)\n--\n\n"
           "The features that the guidance of the same MTSA block weighs, and their guide as the last of them."),
    METHOD("bottleneck", graph_bottleneck,
           "bottleneck($self, prefix, x, weights, *, width, out_features, stride=1, "
           "stride_first=False, bfloat16=False)\n--\n\n"
           "A frozen bottleneck of a ResNet over images."),
    METHOD("basic_block", graph_basic_block,
           "basic_block($self, prefix, x, weights, *, out_features, stride=1, bfloat16=False)\n--\n\n"
           "A frozen basic block of a ResNet over images."),
    METHOD("transformer_layer", graph_transformer_layer,
           "transformer_layer($self, prefix, x, weights, *, positions=None, memory=None, memory_positions=None, heads, "
           "intermediate, key_heads=None, head_size=None, activation='gelu', gated=False, placement='post', "
           "norm='layernorm', eps=1e-12, query_bias=True, output_bias=True, feed_forward_bias=True, norm_bias=True, "
           "layer_scale=False, causal=False, scale=None, rotary_theta=None, rotary_dimensions=None, "
           "rotary_factor=0.0, rotary_original=0.0, rotary_low=0.0, rotary_high=0.0, "
           "position_buckets=0, max_distance=128, bidirectional=True, dropout=0.0, attention_dropout=0.0, "
           "bfloat16=False)\n--\n\n"
           "A transformer layer: frozen with the given weights, or trainable when they are None."),
    METHOD("head", graph_head,
           "head($self, prefix, x, *, outputs, pooling='first', pooler=False, dropout=0.0, positions=None, "
           "each_row=False)\n--\n\n"
           "Pool each sample's rows, or take every row, and map them to the outputs."),
    METHOD("embedder", graph_embedder,
           "embedder($self, prefix, x, *, outputs, pooling='mean', generalized=False, dropout=0.0, normalize=True, "
           "eps=0.0, temperature=0.0, positions=None)\n--\n\n"
           "An embedding of each sample: a linear map, pooling, the norm, and with a temperature a learned scale."),
    METHOD("detector", graph_detector,
           "detector($self, prefix, x, *, classes, hidden, align=0, dropout=0.0)\n--\n\n"
           "Class logits, a box and a normalized projection of every row, side by side."),
    METHOD("set_staged", graph_set_staged,
           "set_staged($self, staged)\n--\n\nWhether ops with one row a sample run once for a block of tiles."),
    METHOD("compile", graph_compile, "compile($self, gradient)\n--\n\nThe program, with a backward part or without."),
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef graph_attributes[] = {
    {"stream", (getter)graph_get_stream, (setter)graph_set_stream,
     "The stream of random numbers that the next op with dropout takes.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot graph_slots[] = {
    {Py_tp_doc, "Graph(parameters, training)\n--\n\nBuilds a program; values and row spaces are its integers."},
    {Py_tp_new, graph_new},
    {Py_tp_traverse, graph_traverse},
    {Py_tp_dealloc, graph_dealloc},
    {Py_tp_methods, graph_methods},
    {Py_tp_getset, graph_attributes},
    {0, NULL},
};

PyType_Spec graph_spec = {
    .name = MODULE_NAME ".Graph",
    .basicsize = sizeof(GraphObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = graph_slots,
};
