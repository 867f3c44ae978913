/* The parameter store: named weights, owned or the caller's, each in memory of its own that never moves. */
#ifndef SHERL_PROGRAM_PARAMETERS_H
#define SHERL_PROGRAM_PARAMETERS_H

#include "../base/memory.h"

typedef struct sherl_parameter_entry {
    char *name;
    uint64_t name_hash;
    size_t rows, columns; /* a vector has one row */
    bool is_vector;
    sherl_role role;
    sherl_initializer initializer;
    const sherl_real *data;
    sherl_real *owned; /* the same memory; NULL for a frozen parameter */
} sherl_parameter_entry;

struct sherl_parameters {
    const sherl_context *context;
    sherl_parameter_entry *entries;
    size_t count, capacity;
};

#endif
