/* Parsing of call arguments: numbers, choices, strings and sequences, with errors that name the argument. */
#include "arguments.h"

#include <math.h>
#include <string.h>

/* ---- Numbers ----------------------------------------------------------------------------------------------------- */

/* The integer's value, or false when it lies outside 0 … 2^64 - 1; *below tells on which side. */
static bool fits_unsigned(PyObject *integer, uint64_t *number, bool *below) {
    int overflow;
    long long small = PyLong_AsLongLongAndOverflow(integer, &overflow);
    *below = overflow < 0 || (overflow == 0 && small < 0);
    if (*below) return false;
    *number = (uint64_t)small;
    if (overflow == 0) return true;
    *number = PyLong_AsUnsignedLongLong(integer);
    if (!PyErr_Occurred()) return true;
    PyErr_Clear();
    return false;
}

bool parse_integer(const char *name, PyObject *object, uint64_t least, uint64_t most, uint64_t *number) {
    PyObject *integer = PyIndex_Check(object) ? PyNumber_Index(object) : NULL;
    if (!integer) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "%s must be an integer, not %.100s", name, Py_TYPE(object)->tp_name);
        return false;
    }
    bool below;
    bool fits = fits_unsigned(integer, number, &below);
    below = below || (fits && *number < least);
    bool accepted = fits && !below && *number <= most;
    if (!accepted) {
        unsigned long long limit = below ? least : most;
        PyErr_Format(PyExc_ValueError, "%s must be at %s %llu, not %R", name, below ? "least" : "most", limit, integer);
    }
    Py_DECREF(integer);
    return accepted;
}

static bool parse_real(const argument *given, double *number) {
    if (!PyFloat_Check(given->given) && !PyIndex_Check(given->given) &&
        !(Py_TYPE(given->given)->tp_as_number && Py_TYPE(given->given)->tp_as_number->nb_float)) {
        PyErr_Format(PyExc_TypeError, "%s must be a real number, not %.100s", given->name,
                     Py_TYPE(given->given)->tp_name);
        return false;
    }
    double parsed = PyFloat_AsDouble(given->given);
    bool too_large = PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_OverflowError);
    if (too_large) PyErr_Clear();
    if (PyErr_Occurred()) return false;
    if (too_large || !isfinite(parsed)) {
        PyErr_Format(PyExc_ValueError, "%s must be finite, not %R", given->name, given->given);
        return false;
    }
    *number = parsed;
    return true;
}

/* ---- Strings and choices ----------------------------------------------------------------------------------------- */

bool parse_string(const char *name, PyObject *object, const char **text) {
    if (!PyUnicode_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s must be a string, not %.100s", name, Py_TYPE(object)->tp_name);
        return false;
    }
    Py_ssize_t size;
    const char *bytes = PyUnicode_AsUTF8AndSize(object, &size);
    if (!bytes) return false;
    if (strlen(bytes) != (size_t)size) {
        PyErr_Format(PyExc_ValueError, "%s must not contain a zero character: %R", name, object);
        return false;
    }
    *text = bytes;
    return true;
}

static PyObject *list_of_choices(const char *const *choices) {
    PyObject *text = PyUnicode_FromFormat("\"%s\"", choices[0]);
    for (size_t i = 1; text && choices[i]; i++) {
        PyObject *longer = PyUnicode_FromFormat("%U, \"%s\"", text, choices[i]);
        Py_SETREF(text, longer);
    }
    return text;
}

static bool parse_choice(const argument *given, int *number) {
    for (int i = 0; PyUnicode_Check(given->given) && given->choices[i]; i++) {
        if (PyUnicode_CompareWithASCIIString(given->given, given->choices[i]) == 0) {
            *number = i;
            return true;
        }
    }
    PyObject *text = list_of_choices(given->choices);
    if (!text) return false;
    PyErr_Format(PyExc_ValueError, "%s must be one of %U, not %R", given->name, text, given->given);
    Py_DECREF(text);
    return false;
}

/* ---- Calls ------------------------------------------------------------------------------------------------------- */

static bool convert(const argument *given) {
    uint64_t number;
    int truth;
    if (given->none_allowed && given->given == Py_None) return true;
    switch (given->kind) {
    case ARGUMENT_OBJECT: *(PyObject **)given->target = given->given; return true;
    case ARGUMENT_HANDLE:
        if (!parse_integer(given->name, given->given, 0, SHERL_NONE - 1, &number)) return false;
        *(uint32_t *)given->target = (uint32_t)number;
        return true;
    case ARGUMENT_COUNT:
        if (!parse_integer(given->name, given->given, given->least, PTRDIFF_MAX, &number)) return false;
        *(size_t *)given->target = (size_t)number;
        return true;
    case ARGUMENT_COUNTER: return parse_integer(given->name, given->given, 0, UINT64_MAX, given->target);
    case ARGUMENT_REAL: return parse_real(given, given->target);
    case ARGUMENT_FLAG:
        truth = PyObject_IsTrue(given->given);
        *(bool *)given->target = truth > 0;
        return truth >= 0;
    case ARGUMENT_TEXT: return parse_string(given->name, given->given, given->target);
    case ARGUMENT_CHOICE: return parse_choice(given, given->target);
    }
    return false;
}

static bool match_keywords(const char *function, PyObject *keywords, argument *arguments, size_t count) {
    PyObject *key, *value;
    Py_ssize_t place = 0;
    while (keywords && PyDict_Next(keywords, &place, &key, &value)) {
        size_t i = 0;
        while (i < count && PyUnicode_CompareWithASCIIString(key, arguments[i].name) != 0) i++;
        if (i == count || arguments[i].given) {
            PyErr_Format(PyExc_TypeError,
                         i == count ? "%s() has no argument \"%U\"" : "%s() was given the argument \"%U\" twice",
                         function, key);
            return false;
        }
        arguments[i].given = value;
    }
    return true;
}

bool parse_arguments(const char *function, PyObject *positions, PyObject *keywords, argument *arguments, size_t count,
                     size_t positional) {
    size_t given = (size_t)PyTuple_GET_SIZE(positions);
    if (given > positional) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %zu positional arguments, but %zu were given", function,
                     positional, given);
        return false;
    }
    for (size_t i = 0; i < given; i++) arguments[i].given = PyTuple_GET_ITEM(positions, (Py_ssize_t)i);
    if (!match_keywords(function, keywords, arguments, count)) return false;
    for (size_t i = 0; i < count; i++) {
        if (!arguments[i].given && !arguments[i].optional) {
            PyErr_Format(PyExc_TypeError, "%s() needs the argument \"%s\"", function, arguments[i].name);
            return false;
        }
        if (arguments[i].given && !convert(&arguments[i])) return false;
    }
    return true;
}

PyObject *parse_sequence(const char *name, PyObject *object, size_t count, const char *meaning) {
    if (!PySequence_Check(object) || PyUnicode_Check(object) || PyBytes_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s must be a sequence, not %.100s", name, Py_TYPE(object)->tp_name);
        return NULL;
    }
    PyObject *items = PySequence_Tuple(object);
    if (items && count != ANY_LENGTH && (size_t)PyTuple_GET_SIZE(items) != count) {
        PyErr_Format(PyExc_ValueError, "%s must have one entry for each %s, %zu in all, not %zd", name, meaning, count,
                     PyTuple_GET_SIZE(items));
        Py_CLEAR(items);
    }
    return items;
}
