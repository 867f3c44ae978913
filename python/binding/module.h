/* What the binding's files share: the module's state, its types, the lock around the core, and errors. */
#ifndef SHERL_BINDING_MODULE_H
#define SHERL_BINDING_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>
#include <stdatomic.h>

#include "sherl.h"

#ifdef SHERL_DOUBLE
#define MODULE_NAME "sherl._core_double"
#else
#define MODULE_NAME "sherl._core"
#endif

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

/* An entry of a method table for a function that takes positional and named arguments. */
#define METHOD(name, function, text) {name, (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS, text}

/* ---- State ------------------------------------------------------------------------------------------------------- */

/* Counters behind the allocator of the context; its workers may allocate, hence the atomics. */
typedef struct allocation_counters {
    atomic_size_t asked;   /* since fail_allocation was last called */
    atomic_size_t live;    /* not yet released */
    atomic_size_t failing; /* number of the allocation that fails; 0: none */
    atomic_bool once;      /* whether those after it succeed */
} allocation_counters;

typedef struct module_state {
    sherl_context *context;
    allocation_counters allocations;
    /* The core does one thing at a time: its thread pool is shared, programs keep workspace between runs, and stores
     * grow. The GIL alone does not see to that, since it is dropped during a run. */
    pthread_mutex_t mutex;
    pid_t process; /* that the mutex belongs to */
    PyTypeObject *parameters_type, *graph_type, *program_type, *trainer_type;
} module_state;

/* Take and release the core with the GIL held before and after. In between only the core may be called: Python code
 * could want the core too. */
void core_lock(module_state *state);
void core_unlock(module_state *state);
/* Take the core and drop the GIL for a long call; take the GIL again and release the core. */
PyThreadState *core_enter(module_state *state);
void core_leave(module_state *state, PyThreadState *thread);

/* ---- Objects --------------------------------------------------------------------------------------------------------
 * Each holds what it needs for life: a trainer its program, a program and a graph their store, a store the module with
 * the context. None can be made to refer to a later one, so none needs a tp_clear: a cycle always passes through a
 * list or a dictionary, which has one. And so nothing is let go before the C object that needs it is destroyed. */

typedef struct ParametersObject {
    PyObject_HEAD PyObject *module;
    module_state *state; /* of that module */
    sherl_parameters *parameters;
    PyObject *frozen; /* list of the arrays behind frozen parameters; it only grows */
} ParametersObject;

/* The rows that an input or output takes. */
typedef struct declared_rows {
    sherl_space space;
    size_t channels;
    bool integers;
    bool has_sink; /* of outputs, and of the gradient of inputs declared with needs_gradient */
} declared_rows;

typedef struct declared_list {
    declared_rows *items;
    size_t count, capacity;
} declared_list;

/* A row space that a batch brings: offsets, or heights and widths of images. */
typedef struct declared_space {
    sherl_space space;
    bool images;
} declared_space;

/* What a batch has to bring. */
typedef struct declarations {
    declared_list inputs, outputs;
    declared_space *spaces; /* in order, without SHERL_SAMPLES */
    size_t space_count, space_capacity;
    bool counts_rows, has_loss;
} declarations;

typedef struct GraphObject {
    PyObject_HEAD ParametersObject *parameters;
    sherl_graph *graph;
    declarations declared;
} GraphObject;

typedef struct ProgramObject {
    PyObject_HEAD ParametersObject *parameters;
    sherl_program *program;
    declarations declared;
    bool gradient;      /* compiled with a backward part */
    bool has_gradients; /* which has run */
} ProgramObject;

typedef struct TrainerObject {
    PyObject_HEAD ProgramObject *program;
    sherl_trainer *trainer;
    sherl_training_settings settings;
} TrainerObject;

extern PyType_Spec parameters_spec, graph_spec, program_spec, trainer_spec;

/* ---- Parameters, programs ---------------------------------------------------------------------------------------- */

extern const char *const role_names[]; /* by sherl_role */

/* The parameter of that name; SHERL_NONE with ValueError set when there is none. */
sherl_parameter parameters_find(const ParametersObject *parameters, const char *name);
/* Rows of a parameter, or SHERL_VECTOR: what array_view takes. */
size_t parameters_rows(const ParametersObject *parameters, sherl_parameter parameter);
/* Sees to it that the array of this data, the frozen parameter of that name, outlives the store. */
bool parameters_hold(ParametersObject *parameters, const char *name, PyObject *array, const sherl_real *data);

/* A new program from a graph; takes over the C program and the declarations whether or not it succeeds. */
PyObject *program_wrap(ParametersObject *parameters, sherl_program *program, declarations declared, bool gradient);
void declarations_release(declarations *declared);

/* ---- Errors ------------------------------------------------------------------------------------------------------ */

PyObject *status_exception(sherl_status status);
/* Raises the status's exception with its sentence; returns NULL. */
void *raise_status(sherl_status status, const char *doing);

#endif
