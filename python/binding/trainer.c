/* The type Trainer: optimizer state over a program's trainable parameters, and steps that change them. */
#include "arguments.h"
#include "arrays.h"
#include "batch.h"

#include <math.h>

static const char *const optimizer_names[] = {"sgd", "adam", "adamw", NULL};                /* by sherl_optimizer */
static const char *const schedule_names[] = {"constant", "linear", "cosine", "step", NULL}; /* by sherl_schedule */

static module_state *state_of(const TrainerObject *self) { return self->program->parameters->state; }

/* ---- Steps ------------------------------------------------------------------------------------------------------- */

static PyObject *trainer_accumulate(TrainerObject *self, PyObject *args, PyObject *keywords) {
    batch_arguments given = {0};
    argument arguments[] = {count_argument("samples", 1, &given.samples),
                            object_argument("offsets", &given.offsets),
                            object_argument("inputs", &given.inputs),
                            or_none(object_argument("cotangents", &given.cotangents)),
                            optional(counter_argument("seed", &given.seed)),
                            optional(counter_argument("step", &given.step))};
    if (!parse_arguments("accumulate", args, keywords, arguments, LENGTH(arguments), 3)) return NULL;
    bool has_loss = self->program->declared.has_loss;
    if (has_loss == (given.cotangents != NULL))
        return PyErr_Format(PyExc_ValueError, "cotangents must be %s: the graph has %s loss",
                            has_loss ? "None" : "given, not None", has_loss ? "a" : "no");
    bound_batch batch;
    double loss;
    sherl_status status = SHERL_OK;
    bool bound = batch_bind(&batch, self->program, &given);
    if (bound) {
        PyThreadState *thread = core_enter(state_of(self));
        status = sherl_trainer_accumulate(self->trainer, &batch.core, &loss);
        core_leave(state_of(self), thread);
    }
    batch_release(&batch);
    if (!bound) return NULL;
    if (status) return raise_status(status, "accumulate");
    self->program->has_gradients = true;
    if (has_loss) return PyFloat_FromDouble(loss);
    Py_RETURN_NONE;
}

enum { MOST_TOGETHER = 8 }; /* trainers of one step */

static PyObject *trainer_update(TrainerObject *self, PyObject *others) {
    sherl_trainer *trainers[MOST_TOGETHER] = {self->trainer};
    Py_ssize_t count = PyTuple_GET_SIZE(others);
    if (count >= MOST_TOGETHER)
        return PyErr_Format(PyExc_ValueError, "update: at most %d trainers take a step together", MOST_TOGETHER);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyTuple_GET_ITEM(others, i);
        if (!Py_IS_TYPE(item, Py_TYPE(self)))
            return PyErr_Format(PyExc_TypeError, "other must be a Trainer of this module, not %.100s",
                                Py_TYPE(item)->tp_name);
        const TrainerObject *other = (TrainerObject *)item;
        bool apart = other->program != self->program;
        for (Py_ssize_t j = 0; j < i; j++)
            apart = apart && ((TrainerObject *)PyTuple_GET_ITEM(others, j))->program != other->program;
        if (!apart) return PyErr_Format(PyExc_ValueError, "other must train another program");
        if (other->settings.clip_norm != self->settings.clip_norm)
            return PyErr_Format(PyExc_ValueError, "other must have the same clip_norm");
        trainers[i + 1] = other->trainer;
    }
    double norm;
    PyThreadState *thread = core_enter(state_of(self));
    sherl_status status = sherl_trainer_update_together(trainers, (size_t)count + 1, &norm);
    core_leave(state_of(self), thread);
    if (status == SHERL_INVALID_ARGUMENT)
        return PyErr_Format(PyExc_ValueError, "update: no gradient is waiting; accumulate must come first");
    return status ? raise_status(status, "update") : PyFloat_FromDouble(norm);
}

static PyObject *trainer_set_factors(TrainerObject *self, PyObject *args, PyObject *keywords) {
    const char *name;
    double learning_rate = 1, weight_decay = 1;
    argument arguments[] = {text_argument("name", &name), optional(real_argument("learning_rate", &learning_rate)),
                            optional(real_argument("weight_decay", &weight_decay))};
    if (!parse_arguments("set_factors", args, keywords, arguments, LENGTH(arguments), 3)) return NULL;
    sherl_parameter parameter = parameters_find(self->program->parameters, name);
    if (parameter == SHERL_NONE) return NULL;
    core_lock(state_of(self));
    sherl_status status = sherl_trainer_set_factors(self->trainer, parameter, learning_rate, weight_decay);
    core_unlock(state_of(self));
    if (!status) Py_RETURN_NONE;
    return PyErr_Format(PyExc_ValueError, "set_factors: %s must be trained here, and its factors 0 or more", name);
}

static PyObject *trainer_discard(TrainerObject *self, PyObject *Py_UNUSED(ignored)) {
    core_lock(state_of(self));
    sherl_trainer_discard(self->trainer);
    core_unlock(state_of(self));
    Py_RETURN_NONE;
}

static PyObject *trainer_adopt(TrainerObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!self->program->has_gradients)
        return PyErr_Format(PyExc_ValueError,
                            "adopt: the program has no gradients yet: a backward part must run first");
    core_lock(state_of(self));
    sherl_trainer_adopt(self->trainer);
    core_unlock(state_of(self));
    Py_RETURN_NONE;
}

/* ---- Looking at a trainer ---------------------------------------------------------------------------------------- */

static PyObject *trainer_learning_rate(TrainerObject *self, PyObject *args, PyObject *keywords) {
    uint64_t step;
    argument arguments[] = {counter_argument("step", &step)};
    if (!parse_arguments("learning_rate", args, keywords, arguments, LENGTH(arguments), 1)) return NULL;
    return PyFloat_FromDouble(sherl_learning_rate(&self->settings, step));
}

static PyObject *trainer_moment(TrainerObject *self, PyObject *args, PyObject *keywords) {
    PyObject *number;
    const char *name;
    uint64_t moment;
    argument arguments[] = {object_argument("number", &number), text_argument("name", &name)};
    if (!parse_arguments("moment", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    if (!parse_integer("number", number, 0, 1, &moment)) return NULL;
    ParametersObject *parameters = self->program->parameters;
    sherl_parameter parameter = parameters_find(parameters, name);
    if (parameter == SHERL_NONE) return NULL;
    sherl_real *data = sherl_trainer_moment(self->trainer, (int)moment, parameter);
    if (!data) Py_RETURN_NONE;
    return array_view(parameters_rows(parameters, parameter),
                      sherl_parameters_columns(parameters->parameters, parameter), data, true, (PyObject *)self);
}

static PyObject *trainer_get_steps(TrainerObject *self, void *Py_UNUSED(closure)) {
    core_lock(state_of(self));
    uint64_t steps = sherl_trainer_steps(self->trainer);
    core_unlock(state_of(self));
    return PyLong_FromUnsignedLongLong(steps);
}

static int trainer_set_steps(TrainerObject *self, PyObject *number, void *Py_UNUSED(closure)) {
    uint64_t steps;
    if (!number) {
        PyErr_SetString(PyExc_TypeError, "steps cannot be deleted");
        return -1;
    }
    if (!parse_integer("steps", number, 0, UINT64_MAX, &steps)) return -1;
    core_lock(state_of(self));
    sherl_trainer_set_steps(self->trainer, steps);
    core_unlock(state_of(self));
    return 0;
}

static PyObject *trainer_get_nbytes(TrainerObject *self, void *Py_UNUSED(closure)) {
    core_lock(state_of(self));
    size_t bytes = sherl_trainer_bytes(self->trainer);
    core_unlock(state_of(self));
    return PyLong_FromSize_t(bytes);
}

/* ---- Life -------------------------------------------------------------------------------------------------------- */

/* One flag a parameter of the store, set for the names of the sequence; release it with PyMem_Free. */
static bool *parse_names(const char *argument_name, const ParametersObject *parameters, PyObject *sequence) {
    PyObject *names = parse_sequence(argument_name, sequence, ANY_LENGTH, "parameter");
    if (!names) return NULL;
    bool *flags = PyMem_Calloc(sherl_parameters_count(parameters->parameters), sizeof *flags);
    bool good = flags != NULL;
    if (!good) PyErr_NoMemory();
    for (Py_ssize_t i = 0; good && i < PyTuple_GET_SIZE(names); i++) {
        char item[40];
        PyOS_snprintf(item, sizeof item, "%s[%zd]", argument_name, i);
        const char *name;
        sherl_parameter parameter = SHERL_NONE;
        if (parse_string(item, PyTuple_GET_ITEM(names, i), &name)) parameter = parameters_find(parameters, name);
        good = parameter != SHERL_NONE;
        if (good) flags[parameter] = true;
    }
    Py_DECREF(names);
    if (good) return flags;
    PyMem_Free(flags);
    return NULL;
}

/* A setting in [0, below). */
static bool check_setting(const char *name, double number, double below) {
    if (number >= 0 && number < below) return true;
    PyObject *came = PyFloat_FromDouble(number);
    if (came)
        PyErr_Format(PyExc_ValueError, "%s must be at least 0%s, not %R", name, below < HUGE_VAL ? " and below 1" : "",
                     came);
    Py_XDECREF(came);
    return false;
}

static bool check_settings(const sherl_training_settings *settings) {
    if (!check_setting("learning_rate", settings->learning_rate, HUGE_VAL) ||
        !check_setting("weight_decay", settings->weight_decay, HUGE_VAL) ||
        !check_setting("momentum", settings->momentum, 1) || !check_setting("beta1", settings->beta1, 1) ||
        !check_setting("beta2", settings->beta2, 1) || !check_setting("eps", settings->eps, HUGE_VAL) ||
        !check_setting("clip_norm", settings->clip_norm, HUGE_VAL) ||
        !check_setting("step_factor", settings->step_factor, HUGE_VAL))
        return false;
    bool falls = settings->schedule == SHERL_SCHEDULE_LINEAR || settings->schedule == SHERL_SCHEDULE_COSINE;
    if (falls && settings->total_steps <= settings->warmup_steps)
        PyErr_Format(PyExc_ValueError, "total_steps must be more than warmup_steps (%llu) in this schedule, not %llu",
                     (unsigned long long)settings->warmup_steps, (unsigned long long)settings->total_steps);
    else if (settings->schedule == SHERL_SCHEDULE_STEP && settings->step_every == 0)
        PyErr_SetString(PyExc_ValueError, "step_every must be at least 1 in the step schedule, not 0");
    else if (settings->optimizer != SHERL_SGD && !((sherl_real)settings->eps > 0))
        PyErr_SetString(PyExc_ValueError, "eps must be more than 0 for Adam, as a number of the core's own type");
    return !PyErr_Occurred();
}

/* The program of a new trainer: one of this module, with a backward part. */
static bool check_program(const module_state *state, PyObject *object) {
    if (!Py_IS_TYPE(object, state->program_type)) {
        PyErr_Format(PyExc_TypeError, "program must be a Program of this module, not %.100s", Py_TYPE(object)->tp_name);
        return false;
    }
    bool trains = ((const ProgramObject *)object)->gradient;
    if (!trains) PyErr_SetString(PyExc_ValueError, "program must be compiled with gradient=True");
    return trains;
}

static PyObject *make_trainer(PyTypeObject *type, ProgramObject *program, const sherl_training_settings *settings,
                              PyObject *parameters, PyObject *no_decay) {
    bool *trained = parameters ? parse_names("parameters", program->parameters, parameters) : NULL;
    if (parameters && !trained) return NULL;
    bool *flags = no_decay ? parse_names("no_decay", program->parameters, no_decay) : NULL;
    bool good = flags || !no_decay;
    TrainerObject *self = good ? (TrainerObject *)type->tp_alloc(type, 0) : NULL;
    sherl_status status = SHERL_OK;
    if (self) {
        Py_INCREF(program);
        self->program = program;
        self->settings = *settings;
        status = sherl_trainer_create(program->program, settings, trained, flags, &self->trainer);
    }
    PyMem_Free(trained);
    PyMem_Free(flags);
    if (!status) return (PyObject *)self;
    Py_DECREF(self);
    return raise_status(status, "Trainer");
}

static PyObject *trainer_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    PyObject *program, *parameters = NULL, *no_decay = NULL;
    int optimizer = SHERL_ADAMW, schedule = SHERL_SCHEDULE_CONSTANT;
    sherl_training_settings settings = {
        .learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .step_factor = 0.1};
    argument arguments[] = {object_argument("program", &program),
                            optional(choice_argument("optimizer", optimizer_names, &optimizer)),
                            optional(real_argument("learning_rate", &settings.learning_rate)),
                            optional(real_argument("weight_decay", &settings.weight_decay)),
                            optional(real_argument("momentum", &settings.momentum)),
                            optional(real_argument("beta1", &settings.beta1)),
                            optional(real_argument("beta2", &settings.beta2)),
                            optional(real_argument("eps", &settings.eps)),
                            optional(real_argument("clip_norm", &settings.clip_norm)),
                            optional(choice_argument("schedule", schedule_names, &schedule)),
                            optional(counter_argument("warmup_steps", &settings.warmup_steps)),
                            optional(counter_argument("total_steps", &settings.total_steps)),
                            optional(counter_argument("step_every", &settings.step_every)),
                            optional(real_argument("step_factor", &settings.step_factor)),
                            optional(object_argument("parameters", &parameters)),
                            optional(object_argument("no_decay", &no_decay))};
    if (!parse_arguments("Trainer", args, keywords, arguments, LENGTH(arguments), 1)) return NULL;
    if (parameters == Py_None) parameters = NULL;
    settings.optimizer = (sherl_optimizer)optimizer;
    settings.schedule = (sherl_schedule)schedule;
    if (!check_program(PyType_GetModuleState(type), program) || !check_settings(&settings)) return NULL;
    return make_trainer(type, (ProgramObject *)program, &settings, parameters, no_decay);
}

static int trainer_traverse(TrainerObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->program);
    return 0;
}

static void trainer_dealloc(TrainerObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    sherl_trainer_destroy(self->trainer);
    Py_XDECREF(self->program);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef trainer_methods[] = {
    METHOD("accumulate", trainer_accumulate,
           "accumulate($self, samples, offsets, inputs, *, cotangents=None, seed=0, step=0)\n--\n\n"
           "Add the gradient of a batch to those waiting; return its loss, or None when the graph has none."),
    {"update", (PyCFunction)trainer_update, METH_VARARGS,
     "update($self, *others)\n--\n\n"
     "Apply the waiting gradients as one step, together with those of other trainers; return their norm before "
     "clipping."},
    METHOD("set_factors", trainer_set_factors,
           "set_factors($self, name, learning_rate=1.0, weight_decay=1.0)\n--\n\n"
           "Multiply learning rate and weight decay of a parameter."),
    {"discard", (PyCFunction)trainer_discard, METH_NOARGS, "discard($self)\n--\n\nForget the waiting gradients."},
    {"adopt", (PyCFunction)trainer_adopt, METH_NOARGS,
     "adopt($self)\n--\n\nTake the gradients of the program's last run as those that wait."},
    METHOD("learning_rate", trainer_learning_rate,
           "learning_rate($self, step)\n--\n\nThe learning rate of a step; the first is 0."),
    METHOD("moment", trainer_moment,
           "moment($self, number, name)\n--\n\nA view of an optimizer moment that keeps the trainer alive, or None."),
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef trainer_attributes[] = {
    {"steps", (getter)trainer_get_steps, (setter)trainer_set_steps, "Whole steps taken.", NULL},
    {"nbytes", (getter)trainer_get_nbytes, NULL, "Bytes of optimizer state.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot trainer_slots[] = {
    {Py_tp_doc,
     "Trainer(program, *, optimizer='adamw', learning_rate=0.001, weight_decay=0.0, momentum=0.0, beta1=0.9, "
     "beta2=0.999, eps=1e-08, clip_norm=0.0, schedule='constant', warmup_steps=0, total_steps=0, step_every=0, "
     "step_factor=0.1, parameters=None, no_decay=())\n--\n\nOptimizer state over a program's trainable parameters."},
    {Py_tp_new, trainer_new},
    {Py_tp_traverse, trainer_traverse},
    {Py_tp_dealloc, trainer_dealloc},
    {Py_tp_methods, trainer_methods},
    {Py_tp_getset, trainer_attributes},
    {0, NULL},
};

PyType_Spec trainer_spec = {
    .name = MODULE_NAME ".Trainer",
    .basicsize = sizeof(TrainerObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = trainer_slots,
};
