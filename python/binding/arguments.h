/* Arguments of a Python call, parsed and range-checked from a table with one line for each. */
#ifndef SHERL_BINDING_ARGUMENTS_H
#define SHERL_BINDING_ARGUMENTS_H

#include "module.h"

typedef enum argument_kind {
    ARGUMENT_OBJECT,
    ARGUMENT_HANDLE,
    ARGUMENT_COUNT,
    ARGUMENT_COUNTER,
    ARGUMENT_REAL,
    ARGUMENT_FLAG,
    ARGUMENT_TEXT,
    ARGUMENT_CHOICE
} argument_kind;

typedef struct argument {
    const char *name;
    argument_kind kind;
    void *target;               /* written when the argument is given */
    const char *const *choices; /* names by number, NULL at the end */
    size_t least;               /* of a count */
    bool optional, none_allowed;
    PyObject *given;
} argument;

static inline argument argument_of(const char *name, argument_kind kind, void *target) {
    argument made = {.name = name, .kind = kind, .target = target};
    return made;
}

/* Any object, borrowed from the call. */
static inline argument object_argument(const char *name, PyObject **target) {
    return argument_of(name, ARGUMENT_OBJECT, target);
}

/* A value, row space or parameter; the core tells whether it exists. */
static inline argument handle_argument(const char *name, uint32_t *target) {
    return argument_of(name, ARGUMENT_HANDLE, target);
}

static inline argument count_argument(const char *name, size_t least, size_t *target) {
    argument made = argument_of(name, ARGUMENT_COUNT, target);
    made.least = least;
    return made;
}

/* Any unsigned integer of 64 bits: a seed, a step. */
static inline argument counter_argument(const char *name, uint64_t *target) {
    return argument_of(name, ARGUMENT_COUNTER, target);
}

/* A finite number. */
static inline argument real_argument(const char *name, double *target) {
    return argument_of(name, ARGUMENT_REAL, target);
}

static inline argument flag_argument(const char *name, bool *target) {
    return argument_of(name, ARGUMENT_FLAG, target);
}

/* A string in UTF-8, borrowed from the call. */
static inline argument text_argument(const char *name, const char **target) {
    return argument_of(name, ARGUMENT_TEXT, target);
}

/* The number of one of the names. */
static inline argument choice_argument(const char *name, const char *const *choices, int *target) {
    argument made = argument_of(name, ARGUMENT_CHOICE, target);
    made.choices = choices;
    return made;
}

static inline argument optional(argument made) {
    made.optional = true;
    return made;
}

/* Optional, and None stands for absent. */
static inline argument or_none(argument made) {
    made.optional = made.none_allowed = true;
    return made;
}

/* Fills the targets from a call; the first `positional` may be given by position. False with an exception set. */
bool parse_arguments(const char *function, PyObject *positions, PyObject *keywords, argument *arguments, size_t count,
                     size_t positional);

/* A Python integer within limits; errors call it `name`. */
bool parse_integer(const char *name, PyObject *object, uint64_t least, uint64_t most, uint64_t *number);

/* A string in UTF-8 without a zero character, borrowed from the object. */
bool parse_string(const char *name, PyObject *object, const char **text);

/* A tuple of a sequence's items, which no other thread can change; NULL with an exception set. A length other than
 * `count` is refused unless count is ANY_LENGTH; `meaning` says what there is one entry for. */
#define ANY_LENGTH ((size_t)-1)
PyObject *parse_sequence(const char *name, PyObject *object, size_t count, const char *meaning);

#endif
