/* The extension module: state, constants, functions, the lock around the core, and its statuses as exceptions. */
#include "module.h"

#include "arguments.h"
#include "arrays.h"

#include <stdlib.h>
#include <unistd.h>

#ifdef SHERL_DOUBLE
#define INIT_FUNCTION PyInit__core_double
#define REAL_NAME "float64"
#else
#define INIT_FUNCTION PyInit__core
#define REAL_NAME "float32"
#endif

/* ---- Errors ------------------------------------------------------------------------------------------------------ */

PyObject *status_exception(sherl_status status) {
    switch (status) {
    case SHERL_OUT_OF_MEMORY: return PyExc_MemoryError;
    case SHERL_NOT_FINITE: return PyExc_FloatingPointError;
    default: return PyExc_ValueError;
    }
}

void *raise_status(sherl_status status, const char *doing) {
    PyErr_Format(status_exception(status), "%s: %s", doing, sherl_status_text(status));
    return NULL;
}

/* ---- The lock around the core ------------------------------------------------------------------------------------ */

/* In a forked child the mutex may be held by a thread that was not copied; a new one takes its place. */
static void renew_after_fork(module_state *state) {
    if (state->process == getpid()) return;
    pthread_mutex_init(&state->mutex, NULL);
    state->process = getpid();
}

void core_lock(module_state *state) {
    renew_after_fork(state);
    if (pthread_mutex_trylock(&state->mutex) == 0) return;
    Py_BEGIN_ALLOW_THREADS pthread_mutex_lock(&state->mutex);
    Py_END_ALLOW_THREADS
}

void core_unlock(module_state *state) { pthread_mutex_unlock(&state->mutex); }

PyThreadState *core_enter(module_state *state) {
    renew_after_fork(state);
    PyThreadState *thread = PyEval_SaveThread();
    pthread_mutex_lock(&state->mutex);
    return thread;
}

void core_leave(module_state *state, PyThreadState *thread) {
    pthread_mutex_unlock(&state->mutex);
    PyEval_RestoreThread(thread);
}

/* ---- The allocator, which counts and can be told to fail --------------------------------------------------------- */

static void *allocate(void *memory, size_t bytes) {
    allocation_counters *counters = memory;
    size_t number = atomic_fetch_add(&counters->asked, 1) + 1;
    size_t failing = atomic_load(&counters->failing);
    if (failing && (atomic_load(&counters->once) ? number == failing : number >= failing)) return NULL;
    void *allocated;
    if (posix_memalign(&allocated, 64, bytes ? bytes : 1) != 0) return NULL;
    atomic_fetch_add(&counters->live, 1);
    return allocated;
}

static void release(void *memory, void *allocated) {
    allocation_counters *counters = memory;
    if (!allocated) return;
    atomic_fetch_sub(&counters->live, 1);
    free(allocated);
}

static PyObject *module_fail_allocation(PyObject *module, PyObject *args, PyObject *keywords) {
    PyObject *object;
    bool once = true;
    uint64_t number = 0;
    argument arguments[] = {object_argument("number", &object), optional(flag_argument("once", &once))};
    if (!parse_arguments("fail_allocation", args, keywords, arguments, LENGTH(arguments), 2)) return NULL;
    if (object != Py_None && !parse_integer("number", object, 1, PTRDIFF_MAX, &number)) return NULL;
    allocation_counters *counters = &((module_state *)PyModule_GetState(module))->allocations;
    atomic_store(&counters->asked, 0);
    atomic_store(&counters->once, once);
    atomic_store(&counters->failing, (size_t)number);
    Py_RETURN_NONE;
}

static PyObject *module_allocations(PyObject *module, PyObject *Py_UNUSED(ignored)) {
    return PyLong_FromSize_t(atomic_load(&((module_state *)PyModule_GetState(module))->allocations.asked));
}

static PyObject *module_live_allocations(PyObject *module, PyObject *Py_UNUSED(ignored)) {
    return PyLong_FromSize_t(atomic_load(&((module_state *)PyModule_GetState(module))->allocations.live));
}

/* ---- Configuration ----------------------------------------------------------------------------------------------- */

static size_t count_threads(module_state *state) {
    core_lock(state);
    size_t threads = sherl_context_threads(state->context);
    core_unlock(state);
    return threads;
}

static PyObject *module_config(PyObject *module, PyObject *Py_UNUSED(ignored)) {
    module_state *state = PyModule_GetState(module);
    char blas[256];
    sherl_blas_description(blas, sizeof blas);
    const char *instruction_set = sherl_context_instruction_set(state->context);
    PyObject *bfloat16 = sherl_context_has_bfloat16(state->context) ? Py_True : Py_False;
    return Py_BuildValue("{s:s,s:s,s:s,s:O,s:n}", "version", sherl_version(), "blas", blas, "instruction_set",
                         instruction_set, "bfloat16", bfloat16, "threads", (Py_ssize_t)count_threads(state));
}

static PyObject *module_threads(PyObject *module, PyObject *Py_UNUSED(ignored)) {
    return PyLong_FromSize_t(count_threads(PyModule_GetState(module)));
}

static PyObject *module_set_threads(PyObject *module, PyObject *args, PyObject *keywords) {
    module_state *state = PyModule_GetState(module);
    size_t threads;
    argument arguments[] = {count_argument("threads", 0, &threads)};
    if (!parse_arguments("set_threads", args, keywords, arguments, LENGTH(arguments), 1)) return NULL;
    core_lock(state);
    sherl_status status = sherl_context_set_threads(state->context, threads);
    core_unlock(state);
    if (status) return raise_status(status, "set_threads");
    Py_RETURN_NONE;
}

/* ---- The module -------------------------------------------------------------------------------------------------- */

static bool add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type) {
    *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *type && PyModule_AddType(module, *type) == 0;
}

static int module_exec(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    pthread_mutex_init(&state->mutex, NULL);
    state->process = getpid();
    if (!arrays_import()) return -1;
    sherl_allocator allocator = {.allocate = allocate, .release = release, .state = &state->allocations};
    sherl_status status = sherl_context_create(&allocator, 0, &state->context);
    if (status) {
        raise_status(status, "import of " MODULE_NAME);
        return -1;
    }
    if (sherl_blas_callers() == 1 &&
        PyErr_WarnEx(
            PyExc_RuntimeWarning,
            "this build of OpenBLAS must not be called from several threads at once, so sherl uses one thread; "
            "a pthread build lets it use all",
            1) < 0)
        return -1;
    bool added = add_type(module, &parameters_spec, &state->parameters_type) &&
                 add_type(module, &graph_spec, &state->graph_type) &&
                 add_type(module, &program_spec, &state->program_type) &&
                 add_type(module, &trainer_spec, &state->trainer_type) &&
                 PyModule_AddIntConstant(module, "SAMPLES", SHERL_SAMPLES) == 0 &&
                 PyModule_AddStringConstant(module, "REAL", REAL_NAME) == 0;
    return added ? 0 : -1;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    module_state *state = PyModule_GetState(module);
    Py_VISIT(state->parameters_type);
    Py_VISIT(state->graph_type);
    Py_VISIT(state->program_type);
    Py_VISIT(state->trainer_type);
    return 0;
}

static int module_clear(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->parameters_type);
    Py_CLEAR(state->graph_type);
    Py_CLEAR(state->program_type);
    Py_CLEAR(state->trainer_type);
    return 0;
}

/* Every store holds the module, so when it is freed the context is no longer in use. */
static void module_free(void *module) {
    module_state *state = PyModule_GetState(module);
    module_clear(module);
    sherl_context_destroy(state->context);
    pthread_mutex_destroy(&state->mutex);
}

static PyMethodDef module_methods[] = {
    {"config", module_config, METH_NOARGS,
     "config($module)\n--\n\nVersion, BLAS library, instruction set of the kernels, and threads."},
    {"threads", module_threads, METH_NOARGS, "threads($module)\n--\n\nThreads that the core works with."},
    METHOD("set_threads", module_set_threads,
           "set_threads($module, threads)\n--\n\nSet them; 0 takes the number of processors."),
    METHOD("fail_allocation", module_fail_allocation,
           "fail_allocation($module, number, once=True)\n--\n\n"
           "Let an allocation of the core fail, counted from now: for tests. None ends it."),
    {"allocations", module_allocations, METH_NOARGS,
     "allocations($module)\n--\n\nAllocations since the last call of fail_allocation."},
    {"live_allocations", module_live_allocations, METH_NOARGS,
     "live_allocations($module)\n--\n\nAllocations that are not yet released."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = MODULE_NAME,
    .m_doc = "The C core in " REAL_NAME ": parameters, graphs, programs, trainers.",
    .m_size = sizeof(module_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC INIT_FUNCTION(void) { return PyModuleDef_Init(&module_definition); }
