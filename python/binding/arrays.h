/* NumPy arrays in and out: checked views of the caller's rows, and views and copies of the core's numbers. The only
 * place that uses NumPy's C API, so that its function table stays private to arrays.c. */
#ifndef SHERL_BINDING_ARRAYS_H
#define SHERL_BINDING_ARRAYS_H

#include "module.h"

bool arrays_import(void);

/* An array over the core's memory that keeps `owner` alive; rows may be SHERL_VECTOR. */
PyObject *array_view(size_t rows, size_t columns, const sherl_real *data, bool writeable, PyObject *owner);
/* A new array that owns its memory, and a copy of the core's numbers into it, which cannot fail. */
PyObject *array_empty(size_t rows, size_t columns);
void array_fill(PyObject *array, const sherl_real *data);

/* The data of an array that the core may keep as a frozen parameter: exactly of this shape, C-contiguous, aligned, in
 * native byte order, of the core's own type. NULL with an exception set. */
const sherl_real *array_frozen(const char *name, PyObject *array, size_t rows, size_t columns);

/* What the rows of one input or output must be. */
typedef struct row_request {
    size_t rows, channels;
    bool integers, writeable;
} row_request;

/* A source or a sink before it is told which. */
typedef struct row_view {
    void *data;
    sherl_element element;
    size_t row_stride;
    const int64_t *rows;
    const float *scales; /* of int8 */
} row_view;

/* Reads a tuple (array, rows or None), or of a source (int8 array, rows or None, scales). A copy of the rows goes to the list `held`; the pair itself holds the array. */
bool array_rows(const char *name, PyObject *pair, const row_request *request, PyObject *held, row_view *view);

/* A checked private copy, put on the list `held`, of the row offsets of one row space; NULL with an exception set. */
const size_t *array_offsets(const char *name, PyObject *array, size_t samples, PyObject *held);
/* The same of the heights and widths, (samples, 2), of a row space of images. */
const size_t *array_grids(const char *name, PyObject *array, size_t samples, PyObject *held);

#endif
