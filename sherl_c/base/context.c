/* Contexts: allocator, thread pool and vector kernels. */
#include "context.h"

#include "../blas/blas.h"
#include "../ops/kernels/kernels.h"

#include <stdlib.h>
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#endif

/* Processors that this process may use. */
static size_t count_processors(void) {
#ifdef __linux__
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return (size_t)CPU_COUNT(&allowed);
#endif
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (size_t)online : 1;
}

/* All products of a program run on its context's pool, so the pool is no wider than the BLAS library allows. */
static sherl_status make_pool(const sherl_allocator *allocator, size_t threads, sherl_thread_pool **pool) {
    size_t callers = sherl_blas_callers();
    if (threads == 0) threads = count_processors();
    return sherl_pool_create(allocator, threads < callers ? threads : callers, pool);
}

sherl_status sherl_context_create(const sherl_allocator *allocator, size_t threads, sherl_context **context) {
    if (!context) return SHERL_INVALID_ARGUMENT;
    sherl_allocator from = allocator ? *allocator : sherl_default_allocator;
    sherl_context *made = from.allocate(from.state, sizeof *made);
    if (!made) return SHERL_OUT_OF_MEMORY;
    made->allocator = from;
    made->kernels = sherl_kernels_pick(getenv("SHERL_INSTRUCTION_SET"));
    sherl_status status = make_pool(&from, threads, &made->pool);
    if (status != SHERL_OK) {
        from.release(from.state, made);
        return status;
    }
    *context = made;
    return SHERL_OK;
}

void sherl_context_destroy(sherl_context *context) {
    if (!context) return;
    sherl_allocator allocator = context->allocator;
    sherl_pool_destroy(context->pool);
    allocator.release(allocator.state, context);
}

sherl_status sherl_context_set_threads(sherl_context *context, size_t threads) {
    sherl_thread_pool *pool;
    sherl_status status = make_pool(&context->allocator, threads, &pool);
    if (status != SHERL_OK) return status;
    sherl_pool_destroy(context->pool);
    context->pool = pool;
    return SHERL_OK;
}

size_t sherl_context_threads(const sherl_context *context) { return sherl_pool_workers(context->pool); }

bool sherl_context_has_bfloat16(const sherl_context *context) { return context->kernels->bfloat16_product != NULL; }

const char *sherl_context_instruction_set(const sherl_context *context) { return context->kernels->instruction_set; }
