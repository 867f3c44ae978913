/* The type Program: runs a compiled graph on batches. */
#include "arguments.h"
#include "arrays.h"
#include "batch.h"

/* ---- Runs -------------------------------------------------------------------------------------------------------- */

/* Runs the program, forward alone or with its backward part, and returns its loss as Python sees it. */
static PyObject *run(ProgramObject *self, const batch_arguments *given, bool gradient, bool add) {
    module_state *state = self->parameters->state;
    bound_batch batch;
    double loss = 0;
    sherl_status status = SHERL_OK;
    bool bound = batch_bind(&batch, self, given);
    if (bound) {
        double *wanted = self->declared.has_loss ? &loss : NULL;
        PyThreadState *thread = core_enter(state);
        status = gradient ? sherl_program_gradient(self->program, &batch.core, add, wanted)
                          : sherl_program_forward(self->program, &batch.core, wanted);
        core_leave(state, thread);
    }
    batch_release(&batch);
    if (!bound) return NULL;
    if (status) return raise_status(status, gradient ? "gradient" : "forward");
    if (gradient) self->has_gradients = true;
    if (self->declared.has_loss) return PyFloat_FromDouble(loss);
    Py_RETURN_NONE;
}

static PyObject *program_forward(ProgramObject *self, PyObject *args, PyObject *keywords) {
    batch_arguments given = {0};
    argument arguments[] = {count_argument("samples", 1, &given.samples),
                            object_argument("offsets", &given.offsets),
                            object_argument("inputs", &given.inputs),
                            or_none(object_argument("outputs", &given.outputs)),
                            optional(counter_argument("seed", &given.seed)),
                            optional(counter_argument("step", &given.step))};
    if (!parse_arguments("forward", args, keywords, arguments, LENGTH(arguments), 4)) return NULL;
    return run(self, &given, false, false);
}

static PyObject *program_gradient(ProgramObject *self, PyObject *args, PyObject *keywords) {
    batch_arguments given = {0};
    bool add = false;
    argument arguments[] = {count_argument("samples", 1, &given.samples),
                            object_argument("offsets", &given.offsets),
                            object_argument("inputs", &given.inputs),
                            or_none(object_argument("outputs", &given.outputs)),
                            or_none(object_argument("cotangents", &given.cotangents)),
                            or_none(object_argument("input_gradients", &given.input_gradients)),
                            optional(flag_argument("add", &add)),
                            optional(counter_argument("seed", &given.seed)),
                            optional(counter_argument("step", &given.step))};
    if (!parse_arguments("gradient", args, keywords, arguments, LENGTH(arguments), 4)) return NULL;
    if (!self->gradient) {
        PyErr_SetString(PyExc_ValueError, "the program was compiled with gradient=False and has no backward part");
        return NULL;
    }
    if (!self->declared.has_loss && !given.cotangents) {
        PyErr_SetString(PyExc_ValueError, "cotangents must be given, not None: the graph has no loss");
        return NULL;
    }
    return run(self, &given, true, add);
}

/* ---- Looking at a program ---------------------------------------------------------------------------------------- */

static PyObject *program_parameter_gradient(ProgramObject *self, PyObject *args, PyObject *keywords) {
    const char *name;
    argument arguments[] = {text_argument("name", &name)};
    if (!parse_arguments("parameter_gradient", args, keywords, arguments, LENGTH(arguments), 1)) return NULL;
    sherl_parameter parameter = parameters_find(self->parameters, name);
    if (parameter == SHERL_NONE) return NULL;
    if (!self->has_gradients)
        return PyErr_Format(PyExc_ValueError, "the program has no gradients yet: a backward part must run first");
    size_t rows = parameters_rows(self->parameters, parameter);
    size_t columns = sherl_parameters_columns(self->parameters->parameters, parameter);
    PyObject *copy = array_empty(rows, columns);
    if (!copy) return NULL;
    core_lock(self->parameters->state);
    const sherl_real *gradient = sherl_program_parameter_gradient(self->program, parameter);
    if (gradient) array_fill(copy, gradient);
    core_unlock(self->parameters->state);
    if (gradient) return copy;
    Py_DECREF(copy);
    return PyErr_Format(PyExc_ValueError, "the program has no gradient of the parameter \"%s\"", name);
}

static PyObject *memory_dictionary(const sherl_memory_report *report) {
    const struct {
        const char *name;
        size_t size;
    } entries[] = {
        {"frozen_weights", report->frozen_weights},
        {"parameters", report->parameters},
        {"gradients", report->gradients},
        {"arenas", report->arenas},
        {"staging", report->staging},
        {"tile_rows", report->tile_rows},
        {"tiles", report->tiles},
        {"lanes", report->lanes},
        {"workers", report->workers},
    };
    PyObject *dictionary = PyDict_New();
    for (size_t i = 0; dictionary && i < LENGTH(entries); i++) {
        PyObject *number = PyLong_FromSize_t(entries[i].size);
        if (!number || PyDict_SetItemString(dictionary, entries[i].name, number) < 0) Py_CLEAR(dictionary);
        Py_XDECREF(number);
    }
    return dictionary;
}

static PyObject *program_memory(ProgramObject *self, PyObject *args, PyObject *keywords) {
    batch_arguments given = {0};
    argument arguments[] = {count_argument("samples", 1, &given.samples), object_argument("offsets", &given.offsets)};
    if (!parse_arguments("memory", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    bound_batch batch;
    sherl_memory_report report;
    sherl_status status = SHERL_OK;
    bool bound = batch_bind_offsets(&batch, self, &given);
    if (bound) {
        core_lock(self->parameters->state);
        status = sherl_program_memory(self->program, given.samples, batch.core.offsets, batch.core.grids, &report);
        core_unlock(self->parameters->state);
    }
    batch_release(&batch);
    if (!bound) return NULL;
    return status ? raise_status(status, "memory") : memory_dictionary(&report);
}

static PyObject *program_least_memory(ProgramObject *self, PyObject *args, PyObject *keywords) {
    batch_arguments given = {0};
    argument arguments[] = {count_argument("samples", 1, &given.samples), object_argument("offsets", &given.offsets)};
    if (!parse_arguments("least_memory", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    bound_batch batch;
    size_t bytes = 0;
    sherl_status status = SHERL_OK;
    bool bound = batch_bind_offsets(&batch, self, &given);
    if (bound) {
        core_lock(self->parameters->state);
        status = sherl_program_least_memory(self->program, given.samples, batch.core.offsets, batch.core.grids, &bytes);
        core_unlock(self->parameters->state);
    }
    batch_release(&batch);
    if (!bound) return NULL;
    return status ? raise_status(status, "least_memory") : PyLong_FromSize_t(bytes);
}

static PyObject *program_set_memory_budget(ProgramObject *self, PyObject *args, PyObject *keywords) {
    size_t bytes;
    argument arguments[] = {count_argument("bytes", 0, &bytes)};
    if (!parse_arguments("set_memory_budget", args, keywords, arguments, LENGTH(arguments), 1)) return NULL;
    core_lock(self->parameters->state);
    sherl_status status = sherl_program_set_memory_budget(self->program, bytes);
    core_unlock(self->parameters->state);
    if (status) return raise_status(status, "set_memory_budget");
    Py_RETURN_NONE;
}

static PyObject *program_release_workspace(ProgramObject *self, PyObject *Py_UNUSED(ignored)) {
    core_lock(self->parameters->state);
    sherl_program_release_workspace(self->program);
    self->has_gradients = false;
    core_unlock(self->parameters->state);
    Py_RETURN_NONE;
}

static PyObject *program_nbytes(ProgramObject *self, void *Py_UNUSED(closure)) {
    core_lock(self->parameters->state);
    size_t bytes = sherl_program_bytes(self->program);
    core_unlock(self->parameters->state);
    return PyLong_FromSize_t(bytes);
}

static PyObject *set_rows(ProgramObject *self, PyObject *args, PyObject *keywords, const char *method,
                          sherl_status (*set)(sherl_program *program, size_t rows)) {
    size_t rows;
    argument arguments[] = {count_argument("rows", 1, &rows)};
    if (!parse_arguments(method, args, keywords, arguments, LENGTH(arguments), 1)) return NULL;
    core_lock(self->parameters->state);
    sherl_status status = set(self->program, rows);
    core_unlock(self->parameters->state);
    if (status) return raise_status(status, method);
    Py_RETURN_NONE;
}

static PyObject *program_set_tile_rows(ProgramObject *self, PyObject *args, PyObject *keywords) {
    return set_rows(self, args, keywords, "set_tile_rows", sherl_program_set_tile_rows);
}

static PyObject *program_set_block_rows(ProgramObject *self, PyObject *args, PyObject *keywords) {
    return set_rows(self, args, keywords, "set_block_rows", sherl_program_set_block_rows);
}

static PyObject *program_get_lanes(ProgramObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromSize_t(sherl_program_lanes(self->program));
}

static int program_set_lanes(ProgramObject *self, PyObject *number, void *Py_UNUSED(closure)) {
    uint64_t lanes;
    if (!number) {
        PyErr_SetString(PyExc_TypeError, "lanes cannot be deleted");
        return -1;
    }
    if (!parse_integer("lanes", number, 1, 64, &lanes)) return -1;
    core_lock(self->parameters->state);
    sherl_program_set_lanes(self->program, (size_t)lanes);
    core_unlock(self->parameters->state);
    return 0;
}

static PyObject *program_get_staged(ProgramObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(sherl_program_is_staged(self->program));
}

static PyObject *program_get_coupled(ProgramObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(sherl_program_is_coupled(self->program));
}

static PyObject *program_describe(ProgramObject *self, PyObject *Py_UNUSED(ignored)) {
    char *text;
    core_lock(self->parameters->state);
    sherl_status status = sherl_program_describe(self->program, &text);
    core_unlock(self->parameters->state);
    if (status) return raise_status(status, "describe");
    PyObject *description = PyUnicode_FromString(text);
    sherl_text_destroy(self->program, text);
    return description;
}

/* ---- Life -------------------------------------------------------------------------------------------------------- */

PyObject *program_wrap(ParametersObject *parameters, sherl_program *program, declarations declared, bool gradient) {
    PyTypeObject *type = parameters->state->program_type;
    ProgramObject *self = (ProgramObject *)type->tp_alloc(type, 0);
    if (!self) {
        sherl_program_destroy(program);
        declarations_release(&declared);
        return NULL;
    }
    Py_INCREF(parameters);
    self->parameters = parameters;
    self->program = program;
    self->declared = declared;
    self->gradient = gradient;
    return (PyObject *)self;
}

static int program_traverse(ProgramObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->parameters);
    return 0;
}

static void program_dealloc(ProgramObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    sherl_program_destroy(self->program);
    declarations_release(&self->declared);
    Py_XDECREF(self->parameters);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef program_methods[] = {
    METHOD("forward", program_forward,
           "forward($self, samples, offsets, inputs, outputs=None, *, seed=0, step=0)\n--\n\n"
           "Write the outputs; return the loss, or None when the graph has none."),
    METHOD("gradient", program_gradient,
           "gradient($self, samples, offsets, inputs, outputs=None, *, cotangents=None, input_gradients=None, "
           "add=False, seed=0, step=0)\n--\n\n"
           "Forward and backward; the parameters' gradients replace those of the last call, or add to them."),
    METHOD("parameter_gradient", program_parameter_gradient,
           "parameter_gradient($self, name)\n--\n\nA copy of the gradient of a trainable parameter."),
    METHOD("memory", program_memory,
           "memory($self, samples, offsets)\n--\n\nWhat a batch of these segment lengths takes, in bytes and counts."),
    METHOD("set_tile_rows", program_set_tile_rows, "set_tile_rows($self, rows)\n--\n\nMost rows that a tile aims at."),
    METHOD("set_block_rows", program_set_block_rows,
           "set_block_rows($self, rows)\n--\n\nMost rows of a block, where ops run once for several tiles."),
    METHOD("least_memory", program_least_memory,
           "least_memory($self, samples, offsets)\n--\n\nThe least budget with which such a batch runs, in bytes."),
    METHOD("set_memory_budget", program_set_memory_budget,
           "set_memory_budget($self, bytes)\n--\n\nBound arenas and gradients of the runs that follow; 0: no bound."),
    {"release_workspace", (PyCFunction)program_release_workspace, METH_NOARGS,
     "release_workspace($self)\n--\n\nFree arenas and gradients; the next run makes its own."},
    {"describe", (PyCFunction)program_describe, METH_NOARGS,
     "describe($self)\n--\n\nA listing of the compiled ops, for people."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef program_properties[] = {
    {"lanes", (getter)program_get_lanes, (setter)program_set_lanes, "Most gradient lanes of a batch.", NULL},
    {"staged", (getter)program_get_staged, NULL, "Whether some ops run once for a block of tiles.", NULL},
    {"coupled", (getter)program_get_coupled, NULL, "Whether some ops read the whole batch.", NULL},
    {"nbytes", (getter)program_nbytes, NULL, "Bytes of the arenas and gradients held between runs.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot program_slots[] = {
    {Py_tp_doc, "A compiled graph, made by Graph.compile."},
    {Py_tp_traverse, program_traverse},
    {Py_tp_dealloc, program_dealloc},
    {Py_tp_methods, program_methods},
    {Py_tp_getset, program_properties},
    {0, NULL},
};

PyType_Spec program_spec = {
    .name = MODULE_NAME ".Program",
    .basicsize = sizeof(ProgramObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = program_slots,
};
