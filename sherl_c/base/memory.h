/* Overflow-checked sizes and aligned allocation through a context's allocator. */
#ifndef SHERL_BASE_MEMORY_H
#define SHERL_BASE_MEMORY_H

#include "../include/sherl.h"

#define SHERL_ALIGNMENT ((size_t)64)

/* *out = a * b, or a + b; false when it does not fit. */
static inline bool sherl_multiply_sizes(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline bool sherl_add_sizes(size_t a, size_t b, size_t *out) { return !__builtin_add_overflow(a, b, out); }
/* *out = bytes rounded up to SHERL_ALIGNMENT. */
static inline bool sherl_align_size(size_t bytes, size_t *out) {
    if (!sherl_add_sizes(bytes, SHERL_ALIGNMENT - 1, out)) return false;
    *out &= ~(SHERL_ALIGNMENT - 1);
    return true;
}

/* Memory of count elements of the given size, zeroed; SHERL_SIZE_OVERFLOW or SHERL_OUT_OF_MEMORY. Zero elements give a
 * valid pointer too. */
sherl_status sherl_allocate(const sherl_context *context, size_t count, size_t element_size, void *pointer_to_pointer);
/* As sherl_allocate, contents left as they come: for arenas, where zeroing would touch pages that nobody needs. */
sherl_status sherl_allocate_raw(const sherl_context *context, size_t count, size_t element_size,
                                void *pointer_to_pointer);
/* NULL is accepted. */
void sherl_release(const sherl_context *context, void *memory);
/* A copy of a string. */
sherl_status sherl_copy_string(const sherl_context *context, const char *text, char **copy);
/* Grows *array (of *capacity elements) to hold at least `needed`; contents are kept. */
sherl_status sherl_grow(const sherl_context *context, void *pointer_to_array, size_t *capacity, size_t needed,
                        size_t element_size);

/* The C library's memory as an allocator. */
extern const sherl_allocator sherl_default_allocator;

#endif
