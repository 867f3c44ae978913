/* Binding a batch: offsets, sources and sinks out of the sequences of a Python call. */
#include "batch.h"

#include "arguments.h"
#include "arrays.h"

void batch_release(bound_batch *batch) {
    PyMem_Free(batch->offsets);
    PyMem_Free(batch->grids);
    PyMem_Free(batch->rows);
    PyMem_Free(batch->inputs);
    PyMem_Free(batch->cotangents);
    PyMem_Free(batch->outputs);
    PyMem_Free(batch->input_gradients);
    Py_CLEAR(batch->held);
}

/* Zeroed memory for `count` elements; sets MemoryError. */
static void *make_table(size_t count, size_t size) {
    void *table = PyMem_Calloc(count, size);
    if (!table) PyErr_NoMemory();
    return table;
}

/* The items of a sequence argument as a tuple that the batch holds, borrowed. */
static PyObject *hold_items(bound_batch *batch, const char *name, PyObject *object, size_t count, const char *meaning) {
    PyObject *items = parse_sequence(name, object, count, meaning);
    if (!items) return NULL;
    int failed = PyList_Append(batch->held, items);
    Py_DECREF(items);
    return failed ? NULL : items;
}

/* The row space of item `i` + 1 of the offsets. */
static bool bind_space(bound_batch *batch, const declared_space *declared, size_t i, PyObject *array) {
    char name[40];
    size_t samples = batch->core.samples;
    PyOS_snprintf(name, sizeof name, "offsets[%zu]", i + 1);
    if (declared->images)
        return (batch->grids[declared->space] = array_grids(name, array, samples, batch->held)) != NULL;
    batch->offsets[declared->space] = array_offsets(name, array, samples, batch->held);
    if (batch->offsets[declared->space]) batch->rows[declared->space] = batch->offsets[declared->space][samples];
    return batch->offsets[declared->space] != NULL;
}

/* Rows that no offsets tell: of images they follow from heights and widths, and fixed ones are known. */
static bool count_rows(bound_batch *batch, const ProgramObject *program) {
    core_lock(program->parameters->state);
    sherl_status status =
        sherl_program_rows(program->program, batch->core.samples, batch->core.offsets, batch->core.grids, batch->rows);
    core_unlock(program->parameters->state);
    if (status == SHERL_SHAPE_MISMATCH)
        PyErr_SetString(PyExc_ValueError, "offsets hold heights and widths that do not fit each other or a window");
    else if (status)
        raise_status(status, "offsets");
    return status == SHERL_OK;
}

bool batch_bind_offsets(bound_batch *batch, const ProgramObject *program, const batch_arguments *given) {
    const declarations *declared = &program->declared;
    size_t spaces = sherl_program_spaces(program->program);
    *batch = (bound_batch){.core = {.samples = given->samples, .seed = given->seed, .step = given->step}};
    batch->held = PyList_New(0);
    batch->offsets = make_table(spaces, sizeof *batch->offsets);
    batch->grids = make_table(spaces, sizeof *batch->grids);
    batch->rows = make_table(spaces, sizeof *batch->rows);
    if (!batch->held || !batch->offsets || !batch->grids || !batch->rows) return false;
    batch->core.offsets = batch->offsets;
    batch->core.grids = batch->grids;
    batch->rows[SHERL_SAMPLES] = given->samples;
    PyObject *items = hold_items(batch, "offsets", given->offsets, declared->space_count + 1, "row space");
    if (!items) return false;
    if (PyTuple_GET_ITEM(items, SHERL_SAMPLES) != Py_None) {
        PyErr_SetString(PyExc_ValueError, "offsets[0] must be None: the row space of the samples needs no offsets");
        return false;
    }
    for (size_t i = 0; i < declared->space_count; i++)
        if (!bind_space(batch, &declared->spaces[i], i, PyTuple_GET_ITEM(items, (Py_ssize_t)i + 1))) return false;
    return !declared->counts_rows || count_rows(batch, program);
}

/* Binds item `i` of a sequence of pairs to rows as declared. */
static bool bind_rows(bound_batch *batch, const char *sequence, PyObject *items, size_t i, const declared_rows *rows,
                      bool writeable, row_view *view) {
    char name[40];
    PyOS_snprintf(name, sizeof name, "%s[%zu]", sequence, i);
    row_request request = {.rows = batch->rows[rows->space],
                           .channels = rows->channels,
                           .integers = rows->integers,
                           .writeable = writeable};
    return array_rows(name, PyTuple_GET_ITEM(items, (Py_ssize_t)i), &request, batch->held, view);
}

static sherl_source *bind_sources(bound_batch *batch, const char *name, PyObject *object, const declared_list *declared,
                                  const char *meaning, sherl_source **sources) {
    PyObject *items = hold_items(batch, name, object, declared->count, meaning);
    *sources = items ? make_table(declared->count, sizeof **sources) : NULL;
    for (size_t i = 0; *sources && i < declared->count; i++) {
        row_view view;
        if (!bind_rows(batch, name, items, i, &declared->items[i], false, &view)) return NULL;
        (*sources)[i] = (sherl_source){view.data, view.element, view.row_stride, view.rows, view.scales};
    }
    return *sources;
}

static bool check_has_sink(const char *sequence, size_t i, const declared_rows *rows) {
    if (rows->has_sink) return true;
    PyErr_Format(PyExc_ValueError, "%s[%zu] must be None: the input was declared without needs_gradient", sequence, i);
    return false;
}

static sherl_sink *bind_sinks(bound_batch *batch, const char *name, PyObject *object, const declared_list *declared,
                              const char *meaning, sherl_sink **sinks) {
    PyObject *items = hold_items(batch, name, object, declared->count, meaning);
    *sinks = items ? make_table(declared->count, sizeof **sinks) : NULL;
    for (size_t i = 0; *sinks && i < declared->count; i++) {
        if (PyTuple_GET_ITEM(items, (Py_ssize_t)i) == Py_None) continue;
        row_view view;
        if (!check_has_sink(name, i, &declared->items[i])) return NULL;
        if (!bind_rows(batch, name, items, i, &declared->items[i], true, &view)) return NULL;
        (*sinks)[i] = (sherl_sink){view.data, view.element, view.row_stride, view.rows};
    }
    return *sinks;
}

static bool is_given(const PyObject *object) { return object && object != Py_None; }

bool batch_bind(bound_batch *batch, const ProgramObject *program, const batch_arguments *given) {
    const declarations *declared = &program->declared;
    if (!batch_bind_offsets(batch, program, given)) return false;
    if (!bind_sources(batch, "inputs", given->inputs, &declared->inputs, "input", &batch->inputs)) return false;
    batch->core.inputs = batch->inputs;
    if (is_given(given->outputs) &&
        !bind_sinks(batch, "outputs", given->outputs, &declared->outputs, "output", &batch->outputs))
        return false;
    batch->core.outputs = batch->outputs;
    if (is_given(given->cotangents) &&
        !bind_sources(batch, "cotangents", given->cotangents, &declared->outputs, "output", &batch->cotangents))
        return false;
    batch->core.cotangents = batch->cotangents;
    if (is_given(given->input_gradients) && !bind_sinks(batch, "input_gradients", given->input_gradients,
                                                        &declared->inputs, "input", &batch->input_gradients))
        return false;
    batch->core.input_gradients = batch->input_gradients;
    return true;
}
