/* The type Parameters: named weights that graphs share. */
#include "arguments.h"
#include "arrays.h"

const char *const role_names[] = {"trainable", "frozen", "state", NULL};

/* ---- For the other files ----------------------------------------------------------------------------------------- */

sherl_parameter parameters_find(const ParametersObject *self, const char *name) {
    sherl_parameter parameter = sherl_parameters_find(self->parameters, name);
    if (parameter == SHERL_NONE) PyErr_Format(PyExc_ValueError, "there is no parameter named \"%s\"", name);
    return parameter;
}

size_t parameters_rows(const ParametersObject *self, sherl_parameter parameter) {
    bool vector = sherl_parameters_is_vector(self->parameters, parameter);
    return vector ? SHERL_VECTOR : sherl_parameters_rows(self->parameters, parameter);
}

bool parameters_hold(ParametersObject *self, const char *name, PyObject *array, const sherl_real *data) {
    sherl_parameter present = sherl_parameters_find(self->parameters, name);
    if (present != SHERL_NONE && sherl_parameters_data(self->parameters, present) == data) return true;
    return PyList_Append(self->frozen, array) == 0;
}

/* ---- Methods ----------------------------------------------------------------------------------------------------- */

/* The parameter named by the only argument of a call, or SHERL_NONE with an exception set. */
static sherl_parameter parse_name(ParametersObject *self, const char *function, PyObject *args, PyObject *keywords) {
    const char *name;
    argument arguments[] = {text_argument("name", &name)};
    if (!parse_arguments(function, args, keywords, arguments, LENGTH(arguments), 1)) return SHERL_NONE;
    return parameters_find(self, name);
}

static PyObject *parameters_names(ParametersObject *self, PyObject *args, PyObject *keywords) {
    int role = -1;
    argument arguments[] = {or_none(choice_argument("role", role_names, &role))};
    if (!parse_arguments("names", args, keywords, arguments, LENGTH(arguments), 1)) return NULL;
    PyObject *names = PyList_New(0);
    for (size_t i = 0; names && i < sherl_parameters_count(self->parameters); i++) {
        if (role >= 0 && (int)sherl_parameters_role(self->parameters, (sherl_parameter)i) != role) continue;
        PyObject *name = PyUnicode_FromString(sherl_parameters_name(self->parameters, (sherl_parameter)i));
        if (!name || PyList_Append(names, name) < 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

static PyObject *parameters_shape(ParametersObject *self, PyObject *args, PyObject *keywords) {
    sherl_parameter parameter = parse_name(self, "shape", args, keywords);
    if (parameter == SHERL_NONE) return NULL;
    size_t rows = parameters_rows(self, parameter), columns = sherl_parameters_columns(self->parameters, parameter);
    if (rows == SHERL_VECTOR) return Py_BuildValue("(n)", (Py_ssize_t)columns);
    return Py_BuildValue("(nn)", (Py_ssize_t)rows, (Py_ssize_t)columns);
}

static PyObject *parameters_role(ParametersObject *self, PyObject *args, PyObject *keywords) {
    sherl_parameter parameter = parse_name(self, "role", args, keywords);
    if (parameter == SHERL_NONE) return NULL;
    return PyUnicode_FromString(role_names[sherl_parameters_role(self->parameters, parameter)]);
}

static PyObject *parameters_array(ParametersObject *self, PyObject *args, PyObject *keywords) {
    sherl_parameter parameter = parse_name(self, "array", args, keywords);
    if (parameter == SHERL_NONE) return NULL;
    bool writeable = sherl_parameters_role(self->parameters, parameter) != SHERL_FROZEN;
    return array_view(parameters_rows(self, parameter), sherl_parameters_columns(self->parameters, parameter),
                      sherl_parameters_data(self->parameters, parameter), writeable, (PyObject *)self);
}

static PyObject *parameters_initialize(ParametersObject *self, PyObject *args, PyObject *keywords) {
    uint64_t seed;
    argument arguments[] = {counter_argument("seed", &seed)};
    if (!parse_arguments("initialize", args, keywords, arguments, LENGTH(arguments), 1)) return NULL;
    PyThreadState *thread = core_enter(self->state);
    sherl_parameters_initialize(self->parameters, seed);
    core_leave(self->state, thread);
    Py_RETURN_NONE;
}

static Py_ssize_t parameters_length(ParametersObject *self) {
    return (Py_ssize_t)sherl_parameters_count(self->parameters);
}

/* ---- Life -------------------------------------------------------------------------------------------------------- */

static PyObject *parameters_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    if (!parse_arguments("Parameters", args, keywords, NULL, 0, 0)) return NULL;
    PyObject *module = PyType_GetModule(type);
    ParametersObject *self = module ? (ParametersObject *)type->tp_alloc(type, 0) : NULL;
    if (!self) return NULL;
    Py_INCREF(module);
    self->module = module;
    self->state = PyModule_GetState(module);
    self->frozen = PyList_New(0);
    sherl_status status = self->frozen ? sherl_parameters_create(self->state->context, &self->parameters) : SHERL_OK;
    if (self->frozen && !status) return (PyObject *)self;
    Py_DECREF(self);
    return status ? raise_status(status, "Parameters") : NULL;
}

static int parameters_traverse(ParametersObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->module);
    Py_VISIT(self->frozen);
    return 0;
}

static void parameters_dealloc(ParametersObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    sherl_parameters_destroy(self->parameters);
    Py_XDECREF(self->frozen);
    Py_XDECREF(self->module);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef parameters_methods[] = {
    METHOD("names", parameters_names, "names($self, role=None)\n--\n\nNames in order of creation, all or of one role."),
    METHOD("shape", parameters_shape, "shape($self, name)\n--\n\nShape of a parameter; one-dimensional for vectors."),
    METHOD("role", parameters_role, "role($self, name)\n--\n\n\"trainable\", \"frozen\" or \"state\"."),
    METHOD("array", parameters_array,
           "array($self, name)\n--\n\nA view of a parameter that keeps the store alive; read-only when frozen."),
    METHOD("initialize", parameters_initialize,
           "initialize($self, seed)\n--\n\nDraw every trainable parameter anew; the draw depends on seed and name."),
    {NULL, NULL, 0, NULL},
};

static PyType_Slot parameters_slots[] = {
    {Py_tp_doc, "Parameters()\n--\n\nNamed weights that graphs share."},
    {Py_tp_new, parameters_new},
    {Py_tp_traverse, parameters_traverse},
    {Py_tp_dealloc, parameters_dealloc},
    {Py_tp_methods, parameters_methods},
    {Py_sq_length, parameters_length},
    {0, NULL},
};

PyType_Spec parameters_spec = {
    .name = MODULE_NAME ".Parameters",
    .basicsize = sizeof(ParametersObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = parameters_slots,
};
