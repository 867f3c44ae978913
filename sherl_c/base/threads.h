/* A persistent pool of worker threads that runs numbered tasks. */
#ifndef SHERL_BASE_THREADS_H
#define SHERL_BASE_THREADS_H

#include "memory.h"

typedef struct sherl_thread_pool sherl_thread_pool;

/* Task `task` of a run, on worker `worker`: 0 is the calling thread, and all are below both the number of workers and
 * the number of tasks. */
typedef void (*sherl_task)(void *state, size_t task, size_t worker);

/* A pool of `workers` threads, the caller counted; threads start at the first run that can use them. */
sherl_status sherl_pool_create(const sherl_allocator *allocator, size_t workers, sherl_thread_pool **pool);
void sherl_pool_destroy(sherl_thread_pool *pool);
size_t sherl_pool_workers(const sherl_thread_pool *pool);
/* Runs tasks 0 … count-1, each once, in any order, and waits for all. Runs of one pool are serialized. In a forked
 * child the pool starts threads of its own. When the system refuses a thread, fewer threads do the work. A task must
 * not run its own pool. */
void sherl_pool_run(sherl_thread_pool *pool, size_t count, sherl_task task, void *state);

#endif
