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
    sherl_real *owned;   /* the same memory; NULL for a frozen parameter */
    uint16_t *packed[2]; /* of a frozen one in bfloat16, where asked for: for x W^T, for dz W */
} sherl_parameter_entry;

struct sherl_parameters {
    const sherl_context *context;
    sherl_parameter_entry *entries;
    size_t count, capacity;
};

/* Packs a frozen weight in bfloat16, once for all programs, for x W^T or (`transposed`) for dz W; kernels that can are
 * the caller's business. *packed is the store's. */
sherl_status sherl_parameters_pack(sherl_parameters *parameters, sherl_parameter parameter, bool transposed,
                                   const uint16_t **packed);
/* Bytes of what is packed of a parameter. */
size_t sherl_parameters_packed_bytes(const sherl_parameters *parameters, sherl_parameter parameter);

#endif
