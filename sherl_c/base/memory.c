/* Aligned allocation through a context's allocator, and the C library's memory as an allocator. */
#include "context.h"

#include <stdlib.h>
#include <string.h>

static void *allocate_aligned(void *state, size_t bytes) {
    (void)state;
    void *memory;
    return posix_memalign(&memory, SHERL_ALIGNMENT, bytes) == 0 ? memory : NULL;
}

static void release_aligned(void *state, void *memory) {
    (void)state;
    free(memory);
}

const sherl_allocator sherl_default_allocator = {allocate_aligned, release_aligned, NULL};

sherl_status sherl_allocate_raw(const sherl_context *context, size_t count, size_t element_size,
                                void *pointer_to_pointer) {
    size_t bytes;
    if (!sherl_multiply_sizes(count, element_size, &bytes)) return SHERL_SIZE_OVERFLOW;
    /* An allocator may answer a request for nothing with NULL, which would look like a failure. */
    void *memory = context->allocator.allocate(context->allocator.state, bytes ? bytes : 1);
    if (!memory) return SHERL_OUT_OF_MEMORY;
    /* The caller's pointer has a type of its own, so it is written as bytes. */
    memcpy(pointer_to_pointer, &memory, sizeof memory);
    return SHERL_OK;
}

sherl_status sherl_allocate(const sherl_context *context, size_t count, size_t element_size, void *pointer_to_pointer) {
    void *memory;
    sherl_status status = sherl_allocate_raw(context, count, element_size, &memory);
    if (status != SHERL_OK) return status;
    memset(memory, 0, count * element_size);
    memcpy(pointer_to_pointer, &memory, sizeof memory);
    return SHERL_OK;
}

void sherl_release(const sherl_context *context, void *memory) {
    if (memory) context->allocator.release(context->allocator.state, memory);
}

sherl_status sherl_copy_string(const sherl_context *context, const char *text, char **copy) {
    size_t bytes = strlen(text) + 1;
    sherl_status status = sherl_allocate_raw(context, bytes, 1, copy);
    if (status == SHERL_OK) memcpy(*copy, text, bytes);
    return status;
}

sherl_status sherl_grow(const sherl_context *context, void *pointer_to_array, size_t *capacity, size_t needed,
                        size_t element_size) {
    if (needed <= *capacity) return SHERL_OK;
    size_t grown = *capacity < 8 ? 8 : *capacity;
    while (grown < needed) {
        if (!sherl_multiply_sizes(grown, 2, &grown)) return SHERL_SIZE_OVERFLOW;
    }
    void *old, *memory;
    sherl_status status = sherl_allocate(context, grown, element_size, &memory);
    if (status != SHERL_OK) return status;
    memcpy(&old, pointer_to_array, sizeof old);
    if (*capacity) memcpy(memory, old, *capacity * element_size);
    sherl_release(context, old);
    memcpy(pointer_to_array, &memory, sizeof memory);
    *capacity = grown;
    return SHERL_OK;
}
