/* What a context holds: allocator, thread pool, kernel table. */
#ifndef SHERL_BASE_CONTEXT_H
#define SHERL_BASE_CONTEXT_H

#include "memory.h"
#include "threads.h"

struct sherl_kernels;

struct sherl_context {
    sherl_allocator allocator;
    sherl_thread_pool *pool;
    const struct sherl_kernels *kernels; /* for the instruction set picked */
};

#endif
