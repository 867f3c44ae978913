/* NumPy arrays in and out of the core, with every property checked that the core relies on. */
#include "arrays.h"

#ifndef NPY_NO_DEPRECATED_API
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#endif
#include <numpy/arrayobject.h>

#include <string.h>

#ifdef SHERL_DOUBLE
#define NPY_REAL NPY_FLOAT64
#define REAL_NAME "float64"
#else
#define NPY_REAL NPY_FLOAT32
#define REAL_NAME "float32"
#endif

_Static_assert(sizeof(size_t) == sizeof(int64_t), "row offsets are handed on as they are");

bool arrays_import(void) { return PyArray_ImportNumPyAPI() == 0; }

/* ---- The core's numbers as arrays -------------------------------------------------------------------------------- */

/* The dimensions of a parameter; returns how many there are. */
static int dimensions(size_t rows, size_t columns, npy_intp *lengths) {
    bool vector = rows == SHERL_VECTOR;
    lengths[0] = (npy_intp)(vector ? columns : rows);
    lengths[1] = (npy_intp)columns;
    return vector ? 1 : 2;
}

PyObject *array_view(size_t rows, size_t columns, const sherl_real *data, bool writeable, PyObject *owner) {
    npy_intp lengths[2];
    int count = dimensions(rows, columns, lengths);
    PyObject *view = PyArray_SimpleNewFromData(count, lengths, NPY_REAL, (void *)data);
    if (!view) return NULL;
    if (!writeable) PyArray_CLEARFLAGS((PyArrayObject *)view, NPY_ARRAY_WRITEABLE);
    Py_INCREF(owner);
    if (PyArray_SetBaseObject((PyArrayObject *)view, owner) == 0) return view; /* takes over the reference */
    Py_DECREF(view);
    return NULL;
}

PyObject *array_empty(size_t rows, size_t columns) {
    npy_intp lengths[2];
    int count = dimensions(rows, columns, lengths);
    return PyArray_SimpleNew(count, lengths, NPY_REAL);
}

void array_fill(PyObject *array, const sherl_real *data) {
    memcpy(PyArray_DATA((PyArrayObject *)array), data, (size_t)PyArray_NBYTES((PyArrayObject *)array));
}

/* ---- Checks ------------------------------------------------------------------------------------------------------ */

/* The object as an array, or NULL with a TypeError set. */
static PyArrayObject *as_array(const char *name, PyObject *object) {
    if (PyArray_Check(object)) return (PyArrayObject *)object;
    PyErr_Format(PyExc_TypeError, "%s must be a NumPy array, not %.100s", name, Py_TYPE(object)->tp_name);
    return NULL;
}

static bool check_dimensions(const char *name, PyArrayObject *array, int count) {
    if (PyArray_NDIM(array) == count) return true;
    PyErr_Format(PyExc_ValueError, "%s must have %d dimension%s, not %d", name, count, count == 1 ? "" : "s",
                 PyArray_NDIM(array));
    return false;
}

static bool refuse_dtype(const char *name, PyArrayObject *array, const char *expected) {
    PyErr_Format(PyExc_ValueError, "%s must have the dtype %s, not %S", name, expected,
                 (PyObject *)PyArray_DESCR(array));
    return false;
}

static bool has_dtype(PyArrayObject *array, char kind, int item_size) {
    return PyArray_DESCR(array)->kind == kind && PyArray_ITEMSIZE(array) == item_size;
}

static bool check_layout(const char *name, PyArrayObject *array) {
    const char *expected = NULL;
    if (!PyArray_ISNOTSWAPPED(array)) expected = "in native byte order";
    if (!PyArray_ISALIGNED(array)) expected = "aligned";
    if (expected) PyErr_Format(PyExc_ValueError, "%s must be %s, which the array is not", name, expected);
    return !expected;
}

const sherl_real *array_frozen(const char *name, PyObject *object, size_t rows, size_t columns) {
    npy_intp lengths[2];
    int count = dimensions(rows, columns, lengths);
    PyArrayObject *array = as_array(name, object);
    if (!array || !check_dimensions(name, array, count)) return NULL;
    if (!has_dtype(array, 'f', sizeof(sherl_real))) {
        refuse_dtype(name, array, REAL_NAME);
        return NULL;
    }
    for (int i = 0; i < count; i++) {
        if (PyArray_DIM(array, i) == lengths[i]) continue;
        PyErr_Format(PyExc_ValueError, "%s must have the length %zd in dimension %d, not %zd", name,
                     (Py_ssize_t)lengths[i], i, (Py_ssize_t)PyArray_DIM(array, i));
        return NULL;
    }
    if (!check_layout(name, array)) return NULL;
    if (!PyArray_IS_C_CONTIGUOUS(array)) {
        PyErr_Format(PyExc_ValueError, "%s must be C-contiguous, which the array is not", name);
        return NULL;
    }
    return PyArray_DATA(array);
}

/* ---- Integers that steer the core -------------------------------------------------------------------------------- */

/* A private copy of int64, so that nobody can change it after it was checked. Kept on the list `held`. `columns` is 0
 * for a vector. */
static const int64_t *hold_integers(const char *name, PyObject *object, size_t length, size_t columns, PyObject *held) {
    PyArrayObject *array = as_array(name, object);
    if (!array || !check_dimensions(name, array, columns ? 2 : 1)) return NULL;
    if (!has_dtype(array, 'i', 8) || !PyArray_ISNOTSWAPPED(array)) {
        refuse_dtype(name, array, "int64 in native byte order");
        return NULL;
    }
    if ((size_t)PyArray_DIM(array, 0) != length) {
        PyErr_Format(PyExc_ValueError, "%s must have %zu elements, not %zd", name, length,
                     (Py_ssize_t)PyArray_DIM(array, 0));
        return NULL;
    }
    if (columns && (size_t)PyArray_DIM(array, 1) != columns) {
        PyErr_Format(PyExc_ValueError, "%s must have %zu columns, not %zd", name, columns,
                     (Py_ssize_t)PyArray_DIM(array, 1));
        return NULL;
    }
    PyObject *copy = PyArray_FromArray(array, PyArray_DescrFromType(NPY_INT64),
                                       NPY_ARRAY_DEFAULT | NPY_ARRAY_ENSURECOPY | NPY_ARRAY_ENSUREARRAY);
    if (!copy) return NULL;
    int failed = PyList_Append(held, copy);
    Py_DECREF(copy);
    return failed ? NULL : PyArray_DATA((PyArrayObject *)copy);
}

const size_t *array_offsets(const char *name, PyObject *object, size_t samples, PyObject *held) {
    const int64_t *offsets = hold_integers(name, object, samples + 1, 0, held);
    if (!offsets) return NULL;
    if (offsets[0] != 0) {
        PyErr_Format(PyExc_ValueError, "%s must start at 0, not %lld", name, (long long)offsets[0]);
        return NULL;
    }
    for (size_t i = 0; i < samples; i++) {
        if (offsets[i] < offsets[i + 1]) continue;
        PyErr_Format(PyExc_ValueError,
                     "%s must increase, so that every sample has a row; sample %zu goes from %lld to %lld", name, i,
                     (long long)offsets[i], (long long)offsets[i + 1]);
        return NULL;
    }
    return (const size_t *)offsets;
}

const size_t *array_grids(const char *name, PyObject *object, size_t samples, PyObject *held) {
    const int64_t *grids = hold_integers(name, object, samples, 2, held);
    for (size_t i = 0; grids && i < 2 * samples; i++) {
        if (grids[i] >= 1) continue;
        PyErr_Format(PyExc_ValueError, "%s must hold heights and widths of at least 1, not %lld for sample %zu", name,
                     (long long)grids[i], i / 2);
        return NULL;
    }
    return (const size_t *)grids;
}

static const int64_t *hold_rows(const char *name, PyObject *object, size_t count, size_t available, PyObject *held) {
    const int64_t *rows = hold_integers(name, object, count, 0, held);
    for (size_t i = 0; rows && i < count; i++) {
        if (rows[i] >= 0 && (size_t)rows[i] < available) continue;
        PyErr_Format(PyExc_ValueError, "%s must lie between 0 and %zd, but element %zu is %lld", name,
                     (Py_ssize_t)available - 1, i, (long long)rows[i]);
        return NULL;
    }
    return rows;
}

/* ---- Rows of the caller's arrays --------------------------------------------------------------------------------- */

static bool find_element(const char *name, PyArrayObject *array, const row_request *request, sherl_element *element) {
    static const struct {
        char kind;
        int size;
        sherl_element element;
    } elements[] = {{'f', 4, SHERL_FLOAT32},  {'f', 8, SHERL_FLOAT64}, {'f', 2, SHERL_FLOAT16},
                    {'u', 2, SHERL_BFLOAT16}, {'i', 4, SHERL_INT32},   {'i', 8, SHERL_INT64}};
    for (size_t i = 0; i < LENGTH(elements); i++) {
        if ((elements[i].kind == 'i') != request->integers) continue;
        if (!has_dtype(array, elements[i].kind, elements[i].size)) continue;
        *element = elements[i].element;
        return true;
    }
    return refuse_dtype(name, array,
                        request->integers ? "int32 or int64"
                                          : "float32, float64, float16 or uint16 (holding bfloat16)");
}

static bool check_rows_layout(const char *name, PyArrayObject *array, const row_request *request) {
    if ((size_t)PyArray_DIM(array, 1) != request->channels) {
        PyErr_Format(PyExc_ValueError, "%s must have %zu column%s, not %zd", name, request->channels,
                     request->channels == 1 ? "" : "s", (Py_ssize_t)PyArray_DIM(array, 1));
        return false;
    }
    if (!check_layout(name, array)) return false;
    const char *expected = NULL;
    if (PyArray_DIM(array, 0) > 1 && PyArray_STRIDE(array, 0) <= 0) expected = "have a positive row stride";
    if (PyArray_DIM(array, 1) > 1 && PyArray_STRIDE(array, 1) != PyArray_ITEMSIZE(array))
        expected = "have contiguous channels";
    if (request->writeable && !PyArray_ISWRITEABLE(array)) expected = "be writeable";
    if (expected) PyErr_Format(PyExc_ValueError, "%s must %s, which the array does not", name, expected);
    return !expected;
}

/* The scales of an int8 array, one float32 a row; NULL with an exception set. */
static const float *read_scales(const char *name, PyObject *object, PyArrayObject *integers) {
    char scales_name[64];
    PyOS_snprintf(scales_name, sizeof scales_name, "%s scales", name);
    PyArrayObject *array = as_array(scales_name, object);
    if (!array || !check_dimensions(scales_name, array, 1)) return NULL;
    if (!has_dtype(array, 'f', sizeof(float))) {
        refuse_dtype(scales_name, array, "float32");
        return NULL;
    }
    if (!check_layout(scales_name, array)) return NULL;
    const char *expected = NULL;
    if (!PyArray_IS_C_CONTIGUOUS(array)) expected = "be contiguous";
    if (PyArray_DIM(array, 0) != PyArray_DIM(integers, 0)) expected = "have an element for each row of the array";
    if (expected) PyErr_Format(PyExc_ValueError, "%s must %s, which the array does not", scales_name, expected);
    return expected ? NULL : PyArray_DATA(array);
}

/* Element type, and of int8 the scales. */
static bool find_type(const char *name, PyObject *tuple, PyArrayObject *array, const row_request *request,
                      row_view *view) {
    view->scales = NULL;
    if (PyTuple_GET_SIZE(tuple) == 2) return find_element(name, array, request, &view->element);
    view->element = SHERL_INT8;
    if (!has_dtype(array, 'i', 1)) return refuse_dtype(name, array, "int8, since it comes with scales");
    view->scales = read_scales(name, PyTuple_GET_ITEM(tuple, 2), array);
    return view->scales;
}

bool array_rows(const char *name, PyObject *pair, const row_request *request, PyObject *held, row_view *view) {
    Py_ssize_t items = PyTuple_Check(pair) ? PyTuple_GET_SIZE(pair) : 0;
    bool may_have_scales = !request->integers && !request->writeable;
    if (items != 2 && !(items == 3 && may_have_scales)) {
        PyErr_Format(PyExc_TypeError, "%s must be a tuple (array, rows or None%s), not %R", name,
                     may_have_scales ? "), or (int8 array, rows or None, scales" : "", pair);
        return false;
    }
    PyArrayObject *array = as_array(name, PyTuple_GET_ITEM(pair, 0));
    PyObject *rows = PyTuple_GET_ITEM(pair, 1);
    if (!array || !check_dimensions(name, array, 2)) return false;
    if (!find_type(name, pair, array, request, view) || !check_rows_layout(name, array, request)) return false;
    size_t available = (size_t)PyArray_DIM(array, 0);
    view->data = PyArray_DATA(array);
    view->row_stride = (size_t)PyArray_STRIDE(array, 0);
    view->rows = NULL;
    if (rows != Py_None) {
        char rows_name[64];
        PyOS_snprintf(rows_name, sizeof rows_name, "%s rows", name);
        view->rows = hold_rows(rows_name, rows, request->rows, available, held);
        return view->rows != NULL;
    }
    if (available < request->rows)
        PyErr_Format(PyExc_ValueError, "%s must have at least %zu row%s, not %zu", name, request->rows,
                     request->rows == 1 ? "" : "s", available);
    return available >= request->rows;
}
