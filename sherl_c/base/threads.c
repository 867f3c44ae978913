/* A persistent pool of POSIX threads that deals the tasks of a run by an atomic counter. */
#include "threads.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Waking a sleeping thread takes some 50 microseconds, so a thread looks about for as long before it sleeps. */
#define SPIN_NANOSECONDS 50000

struct sherl_thread_pool {
    sherl_allocator allocator;
    size_t workers;
    pthread_t *helpers; /* workers - 1 of them */

    /* The process that the threads and the state of the mutexes belong to; minus that while they are being made. */
    _Atomic long owner;

    pthread_mutex_t run_mutex; /* held for a whole run; guards `started` and `start_tried` */
    size_t started;            /* helpers there are */
    bool start_tried;

    pthread_mutex_t mutex; /* guards what follows, but for the atomics' quick looks */
    pthread_cond_t wake, idle;
    atomic_ulong run;     /* number of the latest run */
    atomic_size_t active; /* helpers at work on it */
    size_t sleeping;      /* helpers that wait for `wake` */
    size_t places;        /* for helpers that may still join the run */
    size_t joined;        /* threads that have, the caller counted */
    bool stop;

    sherl_task task;
    void *state;
    size_t count;
    atomic_size_t next;
};

static void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void make_synchronization(sherl_thread_pool *pool) {
    pthread_mutex_init(&pool->run_mutex, NULL);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->idle, NULL);
    atomic_init(&pool->run, 0);
    atomic_init(&pool->active, 0);
    atomic_init(&pool->next, 0);
    pool->started = pool->sleeping = pool->places = 0;
    pool->start_tried = pool->stop = false;
}

sherl_status sherl_pool_create(const sherl_allocator *allocator, size_t workers, sherl_thread_pool **pool) {
    size_t bytes;
    if (workers == 0) return SHERL_INVALID_ARGUMENT;
    if (!sherl_multiply_sizes(workers, sizeof(pthread_t), &bytes)) return SHERL_SIZE_OVERFLOW;
    sherl_thread_pool *made = allocator->allocate(allocator->state, sizeof *made);
    if (!made) return SHERL_OUT_OF_MEMORY;
    memset(made, 0, sizeof *made);
    made->helpers = allocator->allocate(allocator->state, bytes);
    if (!made->helpers) {
        allocator->release(allocator->state, made);
        return SHERL_OUT_OF_MEMORY;
    }
    made->allocator = *allocator;
    made->workers = workers;
    make_synchronization(made);
    atomic_init(&made->owner, (long)getpid());
    *pool = made;
    return SHERL_OK;
}

size_t sherl_pool_workers(const sherl_thread_pool *pool) { return pool->workers; }

/* After a fork the child has this memory but none of the threads, and a mutex may have been locked by one of them:
 * the first run in the child begins afresh. */
static void adopt_after_fork(sherl_thread_pool *pool) {
    long process = (long)getpid(), owner = atomic_load(&pool->owner);
    while (owner != process) {
        if (owner == -process) { /* another thread of this process is at it */
            pause_briefly();
            owner = atomic_load(&pool->owner);
        } else if (atomic_compare_exchange_weak(&pool->owner, &owner, -process)) {
            make_synchronization(pool);
            atomic_store(&pool->owner, process);
            return;
        }
    }
}

static void take_tasks(sherl_thread_pool *pool, size_t worker) {
    size_t task;
    while ((task = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed)) < pool->count) {
        pool->task(pool->state, task, worker);
    }
}

static bool spin_for_run(sherl_thread_pool *pool, unsigned long seen) {
    int64_t deadline = nanoseconds() + SPIN_NANOSECONDS;
    while (atomic_load_explicit(&pool->run, memory_order_relaxed) == seen) {
        if (nanoseconds() > deadline) return false;
        pause_briefly();
    }
    return true;
}

static void *help(void *argument) {
    sherl_thread_pool *pool = argument;
    unsigned long seen = 0;
    pthread_mutex_lock(&pool->mutex);
    while (!pool->stop) {
        if (pool->run == seen) {
            pthread_mutex_unlock(&pool->mutex);
            bool ready = spin_for_run(pool, seen);
            pthread_mutex_lock(&pool->mutex);
            while (!ready && pool->run == seen && !pool->stop) {
                pool->sleeping++;
                pthread_cond_wait(&pool->wake, &pool->mutex);
                pool->sleeping--;
            }
            continue;
        }
        seen = pool->run;
        if (!pool->places) continue; /* too few tasks, or they are done already */
        pool->places--;
        pool->active++;
        size_t worker = pool->joined++;
        pthread_mutex_unlock(&pool->mutex);
        take_tasks(pool, worker);
        pthread_mutex_lock(&pool->mutex);
        if (--pool->active == 0) pthread_cond_signal(&pool->idle);
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

/* Starts the helpers, as many as the system gives. They take no signals but those of their own faults, so that the
 * program's handlers run where the program expects them. */
static void start_helpers(sherl_thread_pool *pool) {
    sigset_t blocked, before;
    pool->start_tried = true;
    sigfillset(&blocked);
    const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP};
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(&blocked, faults[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    while (pool->started + 1 < pool->workers) {
        if (pthread_create(&pool->helpers[pool->started], NULL, help, pool) != 0) break;
        pool->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void open_run(sherl_thread_pool *pool, size_t count, sherl_task task, void *state) {
    pthread_mutex_lock(&pool->mutex);
    pool->task = task;
    pool->state = state;
    pool->count = count;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    pool->places = count - 1 < pool->started ? count - 1 : pool->started;
    pool->joined = 1;
    pool->run++;
    size_t wanted = pool->places < pool->sleeping ? pool->places : pool->sleeping;
    for (size_t i = 0; i < wanted; i++) pthread_cond_signal(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

/* All tasks are dealt: nobody may join any more, and those who did finish theirs. */
static void close_run(sherl_thread_pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    pool->places = 0;
    if (pool->active) {
        pthread_mutex_unlock(&pool->mutex);
        int64_t deadline = nanoseconds() + SPIN_NANOSECONDS;
        while (atomic_load_explicit(&pool->active, memory_order_relaxed) && nanoseconds() < deadline) pause_briefly();
        pthread_mutex_lock(&pool->mutex);
        while (pool->active) pthread_cond_wait(&pool->idle, &pool->mutex);
    }
    pthread_mutex_unlock(&pool->mutex);
}

void sherl_pool_run(sherl_thread_pool *pool, size_t count, sherl_task task, void *state) {
    adopt_after_fork(pool);
    pthread_mutex_lock(&pool->run_mutex);
    if (count > 1 && !pool->start_tried) start_helpers(pool);
    if (count > 1 && pool->started) {
        open_run(pool, count, task, state);
        take_tasks(pool, 0);
        close_run(pool);
    } else {
        for (size_t i = 0; i < count; i++) task(state, i, 0);
    }
    pthread_mutex_unlock(&pool->run_mutex);
}

void sherl_pool_destroy(sherl_thread_pool *pool) {
    if (!pool) return;
    if (atomic_load(&pool->owner) == (long)getpid()) { /* else the threads are the parent's */
        pthread_mutex_lock(&pool->mutex);
        pool->stop = true;
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
        for (size_t i = 0; i < pool->started; i++) pthread_join(pool->helpers[i], NULL);
        pthread_cond_destroy(&pool->idle);
        pthread_cond_destroy(&pool->wake);
        pthread_mutex_destroy(&pool->mutex);
        pthread_mutex_destroy(&pool->run_mutex);
    }
    sherl_allocator allocator = pool->allocator;
    allocator.release(allocator.state, pool->helpers);
    allocator.release(allocator.state, pool);
}
