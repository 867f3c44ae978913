/* The foundations: sizes, allocation, random numbers, the thread pool, matrix products and the parameter store. */
#include "base/context.h"
#include "base/random.h"
#include "blas/blas.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int failures;

static void check(bool holds, const char *what) {
    if (holds) return;
    failures++;
    fprintf(stderr, "failed: %s\n", what);
}

/* An allocator that counts what is live and refuses once its allowance is used up. */
typedef struct meter { size_t allowance, live; } meter;

static void *metered_allocate(void *state, size_t bytes) {
    meter *self = state;
    if (self->allowance == 0) return NULL;
    self->allowance--;
    void *memory = sherl_default_allocator.allocate(NULL, bytes);
    if (memory) self->live++;
    return memory;
}

static void metered_release(void *state, void *memory) {
    ((meter *)state)->live--;
    sherl_default_allocator.release(NULL, memory);
}

static sherl_allocator metered(meter *state) { return (sherl_allocator){metered_allocate, metered_release, state}; }

static void test_statuses(void) {
    for (int status = 0; status < SHERL_STATUS_COUNT; status++) {
        for (int other = 0; other < status; other++) {
            check(strcmp(sherl_status_text(status), sherl_status_text(other)) != 0, "each status has its own text");
        }
        check(strlen(sherl_status_text(status)) > 5, "each status has a text");
    }
    check(strcmp(sherl_status_text(SHERL_STATUS_COUNT), "an unknown status") == 0, "an unknown status has a text");
    check(strlen(sherl_version()) > 0, "the version is known");
}

static void test_sizes(void) {
    size_t out = 7;
    check(sherl_multiply_sizes(SIZE_MAX / 2, 2, &out) && out == SIZE_MAX - 1, "a product that fits");
    check(!sherl_multiply_sizes(SIZE_MAX / 2 + 1, 2, &out), "a product that does not fit");
    check(!sherl_add_sizes(SIZE_MAX, 1, &out), "a sum that does not fit");
    check(sherl_align_size(65, &out) && out == 128, "65 bytes take two lines");
    check(sherl_align_size(0, &out) && out == 0, "no bytes take no line");
    check(!sherl_align_size(SIZE_MAX - 3, &out), "rounding up does not wrap");
    check(!sherl_blas_size_fits((size_t)INT32_MAX + 1) && sherl_blas_size_fits(INT32_MAX), "BLAS sizes have 32 bits");
}

static void test_memory(const sherl_context *context) {
    double *numbers = NULL;
    check(sherl_allocate(context, 1000, sizeof *numbers, &numbers) == SHERL_OK, "an allocation");
    check((uintptr_t)numbers % SHERL_ALIGNMENT == 0, "memory is aligned");
    double sum = 0;
    for (size_t i = 0; i < 1000; i++) sum += fabs(numbers[i]);
    check(sum == 0, "memory is zeroed");
    sherl_release(context, numbers);
    sherl_release(context, NULL);

    void *untouched = &sum;
    check(sherl_allocate(context, SIZE_MAX / 4, 8, &untouched) == SHERL_SIZE_OVERFLOW, "an overflowing size");
    check(untouched == &sum, "a failure leaves the pointer");
    void *nothing = NULL;
    check(sherl_allocate(context, 0, 8, &nothing) == SHERL_OK && nothing, "nothing has an address");
    sherl_release(context, nothing);

    int *array = NULL;
    size_t capacity = 0;
    for (int i = 0; i < 100; i++) {
        check(sherl_grow(context, &array, &capacity, (size_t)i + 1, sizeof *array) == SHERL_OK, "an array grows");
        array[i] = i;
    }
    bool kept = true;
    for (int i = 0; i < 100; i++) kept = kept && array[i] == i;
    check(kept && capacity >= 100, "a grown array keeps its contents");
    check(sherl_grow(context, &array, &capacity, SIZE_MAX, sizeof *array) == SHERL_SIZE_OVERFLOW, "growth overflows");
    sherl_release(context, array);

    char *copy = NULL;
    check(sherl_copy_string(context, "down.0.weight", &copy) == SHERL_OK, "a string is copied");
    check(copy && strcmp(copy, "down.0.weight") == 0, "a copied string is the same");
    sherl_release(context, copy);
}

/* Known answers of Philox4x32-10, from the test vectors of Random123. */
static void test_philox(void) {
    static const struct {
        sherl_random_block counter;
        sherl_random_key key;
        sherl_random_block answer;
    } known[] = {
        {{{0, 0, 0, 0}}, {{0, 0}}, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
        {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
         {{0xffffffff, 0xffffffff}},
         {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
        {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
         {{0xa4093822, 0x299f31d0}},
         {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        sherl_random_block answer = sherl_philox(known[i].counter, known[i].key);
        check(memcmp(&answer, &known[i].answer, sizeof answer) == 0, "Philox gives a known answer");
    }
}

enum { TASKS = 200 };

typedef struct tally {
    atomic_int done[TASKS];
    atomic_int wrong_worker;
    size_t workers;
} tally;

static void count_task(void *state, size_t task, size_t worker) {
    tally *self = state;
    atomic_fetch_add(&self->done[task], 1);
    if (worker >= self->workers) atomic_fetch_add(&self->wrong_worker, 1);
}

static bool runs_each_task_once(sherl_thread_pool *pool, size_t tasks, size_t workers) {
    tally state = {.workers = workers < tasks ? workers : tasks};
    sherl_pool_run(pool, tasks, count_task, &state);
    for (size_t i = 0; i < TASKS; i++) {
        if (atomic_load(&state.done[i]) != (i < tasks)) return false;
    }
    return atomic_load(&state.wrong_worker) == 0;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void empty_task(void *state, size_t task, size_t worker) { (void)state, (void)task, (void)worker; }

static void *run_many(void *state) {
    bool right = true;
    size_t workers = sherl_pool_workers(state);
    for (int i = 0; i < 200; i++) right = runs_each_task_once(state, 1 + (size_t)i % 40, workers) && right;
    return right ? state : NULL;
}

static void test_pool(void) {
    for (size_t workers = 1; workers <= 5; workers++) {
        sherl_thread_pool *pool = NULL;
        check(sherl_pool_create(&sherl_default_allocator, workers, &pool) == SHERL_OK, "a pool is made");
        check(sherl_pool_workers(pool) == workers, "a pool has the workers asked for");
        bool right = true;
        for (size_t tasks = 0; tasks <= TASKS; tasks += 1 + tasks / 2) {
            right = runs_each_task_once(pool, tasks, workers) && right;
        }
        check(right, "each task runs once, on a worker below the number of workers and of tasks");

        pthread_t other;
        check(pthread_create(&other, NULL, run_many, pool) == 0, "a second caller starts");
        void *result = NULL;
        check(run_many(pool) != NULL, "two callers share a pool");
        pthread_join(other, &result);
        check(result != NULL, "the second caller's tasks run once too");
        sherl_pool_destroy(pool);
    }
    sherl_pool_destroy(NULL);
    sherl_thread_pool *pool = NULL;
    check(sherl_pool_create(&sherl_default_allocator, 0, &pool) == SHERL_INVALID_ARGUMENT, "a pool has a worker");
}

/* Two tasks that wait for each other: both run at once, the second on a helper. */
typedef struct meeting {
    atomic_int arrived;
    atomic_bool met, interruptible, faults_blocked;
} meeting;

static void meet(void *state, size_t task, size_t worker) {
    (void)task;
    meeting *self = state;
    atomic_fetch_add(&self->arrived, 1);
    double deadline = seconds() + 10;
    while (atomic_load(&self->arrived) < 2 && seconds() < deadline) {}
    if (atomic_load(&self->arrived) == 2) atomic_store(&self->met, true);
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    if (worker == 0) return;
    if (!sigismember(&blocked, SIGINT)) atomic_store(&self->interruptible, true);
    if (sigismember(&blocked, SIGSEGV)) atomic_store(&self->faults_blocked, true);
}

static void test_helpers(void) {
    sherl_thread_pool *pool = NULL;
    meeting state = {0};
    sigset_t before, after;
    pthread_sigmask(SIG_BLOCK, NULL, &before);
    check(sherl_pool_create(&sherl_default_allocator, 2, &pool) == SHERL_OK, "a pool is made");
    sherl_pool_run(pool, 2, meet, &state);
    check(atomic_load(&state.met), "two tasks run at once");
    check(!atomic_load(&state.interruptible), "an interrupt reaches no helper");
    check(!atomic_load(&state.faults_blocked), "a helper's own faults do");
    pthread_sigmask(SIG_BLOCK, NULL, &after);
    check(sigismember(&before, SIGINT) == sigismember(&after, SIGINT), "the caller's signals are as before");
    sherl_pool_destroy(pool);
}

/* A default stack larger than the address space makes the system refuse every thread. */
static void test_refused_threads(void) {
    pthread_attr_t before, huge;
    pthread_getattr_default_np(&before);
    pthread_attr_init(&huge);
    pthread_attr_setstacksize(&huge, (size_t)1 << 50);
    check(pthread_setattr_default_np(&huge) == 0, "the default stack size is set");
    sherl_thread_pool *pool = NULL;
    check(sherl_pool_create(&sherl_default_allocator, 3, &pool) == SHERL_OK, "a pool is made");
    check(runs_each_task_once(pool, TASKS, 1), "the caller does the work alone when threads are refused");
    check(pthread_setattr_default_np(&before) == 0, "the default stack size is restored");
    sherl_pool_destroy(pool);
    pthread_attr_destroy(&huge);
    pthread_attr_destroy(&before);
}

static void report_pool_latency(void) {
    sherl_thread_pool *pool = NULL;
    enum { RUNS = 2000 };
    if (sherl_pool_create(&sherl_default_allocator, 2, &pool) != SHERL_OK) return;
    sherl_pool_run(pool, 8, empty_task, NULL);
    double start = seconds();
    for (int i = 0; i < RUNS; i++) sherl_pool_run(pool, 8, empty_task, NULL);
    printf("a run of 8 empty tasks on 2 threads: %.1f us\n", 1e6 * (seconds() - start) / RUNS);
    fflush(stdout); /* forked children must not write it again */
    sherl_pool_destroy(pool);
}

static void *fork_while_busy(void *state) {
    pid_t child = fork();
    if (child == 0) {
        alarm(20); /* a deadlock in the child must not outlive the test */
        bool right = run_many(state) != NULL;
        sherl_pool_destroy(state);
        _exit(right ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? state : NULL;
}

/* The children find the pool in whatever state the busy parent had it, and have none of its threads. */
static void test_fork(void) {
    sherl_thread_pool *pool = NULL;
    check(sherl_pool_create(&sherl_default_allocator, 3, &pool) == SHERL_OK, "a pool is made");
    for (int i = 0; i < 10; i++) {
        pthread_t forker;
        check(pthread_create(&forker, NULL, fork_while_busy, pool) == 0, "a forking thread starts");
        check(run_many(pool) != NULL, "the parent's pool works on while it forks");
        void *result = NULL;
        pthread_join(forker, &result);
        check(result != NULL, "a forked child has a working pool");
    }
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        sherl_pool_destroy(pool); /* waits for no thread of the parent */
        _exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a child destroys a pool that it never ran");
    check(runs_each_task_once(pool, TASKS, 3), "the parent's pool survives its children");
    sherl_pool_destroy(pool);
}

static void test_context(void) {
    for (size_t allowance = 0; allowance < 3; allowance++) {
        meter state = {allowance, 0};
        sherl_allocator allocator = metered(&state);
        sherl_context *context = NULL;
        check(sherl_context_create(&allocator, 2, &context) == SHERL_OUT_OF_MEMORY, "a context needs memory");
        check(context == NULL && state.live == 0, "a context that fails leaves nothing behind");
    }
    meter state = {4, 0};
    sherl_allocator allocator = metered(&state);
    sherl_context *context = NULL;
    check(sherl_context_create(&allocator, 2, &context) == SHERL_OK, "a context is made");
    size_t threads = sherl_context_threads(context);
    check(threads == 2 || threads == 1, "a context has two threads where the BLAS allows them");
    check(sherl_context_set_threads(context, 1) == SHERL_OUT_OF_MEMORY, "a new pool needs memory");
    check(sherl_context_threads(context) == threads, "the old pool stays when there is no memory for a new one");
    state.allowance = 2;
    check(sherl_context_set_threads(context, 1) == SHERL_OK, "threads are set");
    check(sherl_context_threads(context) == 1, "the threads set are the threads had");
    state.allowance = 2;
    check(sherl_context_set_threads(context, SIZE_MAX) == SHERL_OK, "too many threads become as many as possible");
    sherl_context_destroy(context);
    sherl_context_destroy(NULL);
    check(state.live == 0, "a destroyed context leaves nothing behind");
}

/* C = alpha op(A) op(B) + beta C against plain loops, over all transpositions and sizes from zero on. */
static void test_gemm(void) {
    enum { MOST = 5 };
    sherl_real a[MOST * MOST], b[MOST * MOST];
    for (int i = 0; i < MOST * MOST; i++) {
        a[i] = (sherl_real)(i % 7 - 3);
        b[i] = (sherl_real)(i % 5 - 2);
    }
    const size_t sizes[] = {0, 1, 3, MOST};
    double largest = 0;
    for (int choice = 0; choice < 4 * 4 * 4 * 4; choice++) {
        bool transpose_a = choice & 1, transpose_b = choice & 2;
        size_t m = sizes[choice / 4 % 4], n = sizes[choice / 16 % 4], k = sizes[choice / 64];
        sherl_real c[MOST * MOST];
        for (int i = 0; i < MOST * MOST; i++) c[i] = 1;
        sherl_gemm(transpose_a, transpose_b, m, n, k, 2, a, MOST, b, MOST, 0.5, c, MOST);
        for (size_t row = 0; row < MOST; row++) {
            for (size_t column = 0; column < MOST; column++) {
                double expected = row < m && column < n ? 0.5 : 1;
                for (size_t i = 0; row < m && column < n && i < k; i++) {
                    expected += 2 * (transpose_a ? a[i * MOST + row] : a[row * MOST + i]) *
                                (transpose_b ? b[column * MOST + i] : b[i * MOST + column]);
                }
                largest = fmax(largest, fabs(expected - c[row * MOST + column]));
            }
        }
    }
    check(largest == 0, "products of small integers are exact, and nothing else is written");
    char text[128], cut[5];
    sherl_blas_description(text, sizeof text);
    sherl_blas_description(cut, sizeof cut);
    check(strncmp(text, "OpenBLAS ", 9) == 0, "the BLAS is described");
    check(strcmp(cut, "Open") == 0, "a description fits its buffer");
    printf("%s\n", text);
}

static void test_parameter_draws(sherl_context *context) {
    sherl_parameters *one = NULL, *other = NULL;
    check(sherl_parameters_create(context, &one) == SHERL_OK, "a store is made");
    check(sherl_parameters_create(context, &other) == SHERL_OK, "a second store is made");
    sherl_parameter uniform, normal, again;
    sherl_parameters_add(one, "up.weight", 64, 192, SHERL_TRAINABLE, SHERL_INIT_XAVIER_UNIFORM, NULL, &uniform);
    sherl_parameters_add(one, "down.weight", 64, 192, SHERL_TRAINABLE, SHERL_INIT_NORMAL, NULL, &normal);
    sherl_parameters_add(other, "down.weight", 64, 192, SHERL_TRAINABLE, SHERL_INIT_NORMAL, NULL, &again);
    const sherl_real *x = sherl_parameters_data(one, uniform), *y = sherl_parameters_data(one, normal);
    size_t bytes = 64 * 192 * sizeof(sherl_real);
    check(memcmp(y, sherl_parameters_data(other, again), bytes) == 0, "a draw does not depend on other parameters");

    double bound = sqrt(6.0 / 256), largest = 0, mean = 0, square = 0, y_mean = 0, y_square = 0;
    for (int i = 0; i < 64 * 192; i++) {
        largest = fmax(largest, fabs((double)x[i]));
        mean += x[i] / (64 * 192.0), square += (double)x[i] * x[i] / (64 * 192.0);
        y_mean += y[i] / (64 * 192.0), y_square += (double)y[i] * y[i] / (64 * 192.0);
    }
    /* Tolerances are five standard errors of 12,288 draws. */
    check(largest <= bound && largest > 0.99 * bound, "Xavier's draws fill their range");
    check(fabs(mean) < 0.027 * bound && fabs(square - bound * bound / 3) < 0.014 * bound * bound, "they are uniform");
    check(fabs(y_mean) < 0.05 * 0.02 && fabs(y_square - 0.0004) < 0.07 * 0.0004, "normal draws have their moments");

    sherl_real first = x[0];
    sherl_parameters_initialize(one, 5);
    sherl_parameters_initialize(other, 5);
    check(x[0] != first, "another seed draws other weights");
    check(memcmp(y, sherl_parameters_data(other, again), bytes) == 0, "the same seed draws the same weights");
    sherl_parameters_initialize(one, 0);
    check(x[0] == first, "a new parameter is drawn with seed 0");
    sherl_parameters_destroy(one);
    sherl_parameters_destroy(other);
}

static void test_parameters(sherl_context *context) {
    sherl_parameters *store = NULL;
    check(sherl_parameters_create(context, &store) == SHERL_OK, "a store is made");
    const sherl_real frozen[6] = {1, 2, 3, 4, 5, 6};
    sherl_parameter bias, weight, state, found;
    check(sherl_parameters_add(store, "bias", SHERL_VECTOR, 3, SHERL_TRAINABLE, SHERL_INIT_ONES, NULL, &bias) ==
              SHERL_OK,
          "a vector is added");
    const sherl_real *bias_data = sherl_parameters_data(store, bias);
    check(sherl_parameters_add(store, "weight", 2, 3, SHERL_FROZEN, SHERL_INIT_ZEROS, frozen, &weight) == SHERL_OK,
          "a frozen matrix is added");
    check(sherl_parameters_add(store, "running", SHERL_VECTOR, 2, SHERL_STATE, SHERL_INIT_ONES, NULL, &state) ==
              SHERL_OK,
          "a state is added");
    for (int i = 0; i < 50; i++) {
        char name[24];
        snprintf(name, sizeof name, "more.%d", i);
        check(sherl_parameters_add(store, name, 1, 2, SHERL_TRAINABLE, SHERL_INIT_NORMAL, NULL, &found) == SHERL_OK,
              "many parameters are added");
    }
    check(sherl_parameters_data(store, bias) == bias_data, "data never moves");
    check(bias_data[2] == 1 && sherl_parameters_data(store, state)[1] == 1, "ones are ones");
    check(sherl_parameters_data(store, weight) == frozen, "frozen data is the caller's");
    check(!sherl_parameters_mutable_data(store, weight), "frozen data is not writable");
    check(sherl_parameters_mutable_data(store, bias) == bias_data, "owned data is writable");
    check(sherl_parameters_is_vector(store, bias) && !sherl_parameters_is_vector(store, weight), "vectors are known");
    check(sherl_parameters_rows(store, bias) == 1 && sherl_parameters_columns(store, weight) == 3, "shapes are known");
    check(sherl_parameters_find(store, "running") == state && sherl_parameters_find(store, "walking") == SHERL_NONE,
          "names are found");
    check(strcmp(sherl_parameters_name(store, weight), "weight") == 0, "names are kept");
    check(sherl_parameters_role(store, state) == SHERL_STATE, "roles are kept");
    check(sherl_parameters_count(store) == 53, "parameters are counted");

    found = SHERL_NONE;
    check(sherl_parameters_add(store, "weight", 2, 3, SHERL_FROZEN, SHERL_INIT_ZEROS, frozen, &found) == SHERL_OK &&
              found == weight,
          "the same parameter is found again");
    check(sherl_parameters_add(store, "weight", 3, 2, SHERL_FROZEN, SHERL_INIT_ZEROS, frozen, &found) ==
              SHERL_SHAPE_MISMATCH,
          "another shape is refused");
    check(sherl_parameters_add(store, "weight", 2, 3, SHERL_FROZEN, SHERL_INIT_ZEROS, frozen + 1, &found) ==
              SHERL_SHAPE_MISMATCH,
          "other data is refused");
    check(sherl_parameters_add(store, "bias", 1, 3, SHERL_TRAINABLE, SHERL_INIT_ONES, NULL, &found) ==
              SHERL_SHAPE_MISMATCH,
          "a matrix of one row is no vector");

    char name[257];
    memset(name, 'n', 256);
    name[256] = 0;
    const sherl_status invalid = SHERL_INVALID_ARGUMENT;
    check(sherl_parameters_add(store, name, 1, 1, SHERL_TRAINABLE, SHERL_INIT_ZEROS, NULL, &found) == invalid,
          "a long name is refused");
    check(sherl_parameters_add(store, name + 1, 1, 1, SHERL_TRAINABLE, SHERL_INIT_ZEROS, NULL, &found) == SHERL_OK,
          "a name of 255 bytes is taken");
    check(sherl_parameters_add(store, "", 1, 1, SHERL_TRAINABLE, SHERL_INIT_ZEROS, NULL, &found) == invalid,
          "no name is refused");
    check(sherl_parameters_add(store, "a", 1, 0, SHERL_TRAINABLE, SHERL_INIT_ZEROS, NULL, &found) == invalid,
          "no columns are refused");
    check(sherl_parameters_add(store, "a", 1, 1, SHERL_FROZEN, SHERL_INIT_ZEROS, NULL, &found) == invalid,
          "frozen data must be given");
    check(sherl_parameters_add(store, "a", 1, 1, SHERL_STATE, SHERL_INIT_NORMAL, NULL, &found) == invalid,
          "a state is not drawn");
    check(sherl_parameters_add(store, "a", SIZE_MAX / 2, 3, SHERL_TRAINABLE, SHERL_INIT_ZEROS, NULL, &found) ==
              SHERL_SIZE_OVERFLOW,
          "a size that overflows is refused");
    check(sherl_parameters_find(store, "a") == SHERL_NONE, "what was refused is not there");
    sherl_parameters_destroy(store);
    sherl_parameters_destroy(NULL);
}

static void test_parameters_without_memory(void) {
    bool added = false;
    for (size_t allowance = 3; !added; allowance++) {
        meter state = {allowance, 0};
        sherl_allocator allocator = metered(&state);
        sherl_context *context = NULL;
        sherl_parameters *store = NULL;
        check(sherl_context_create(&allocator, 1, &context) == SHERL_OK, "a context is made");
        sherl_status status = sherl_parameters_create(context, &store);
        sherl_parameter parameter = 77;
        if (status == SHERL_OK) {
            status = sherl_parameters_add(store, "weight", 4, 4, SHERL_TRAINABLE, SHERL_INIT_NORMAL, NULL, &parameter);
            added = status == SHERL_OK;
            check(sherl_parameters_count(store) == (added ? 1 : 0), "a parameter is there or not");
        }
        check(added || (status == SHERL_OUT_OF_MEMORY && parameter == 77), "a failure is told and writes nothing");
        sherl_parameters_destroy(store);
        sherl_context_destroy(context);
        check(state.live == 0, "nothing leaks");
    }
}

int main(void) {
    sherl_context *context = NULL;
    check(sherl_context_create(NULL, 0, &context) == SHERL_OK, "a context is made");
    test_statuses();
    test_sizes();
    test_memory(context);
    test_philox();
    test_pool();
    test_helpers();
    test_refused_threads();
    report_pool_latency();
    test_fork();
    test_context();
    test_gemm();
    test_parameters(context);
    test_parameter_draws(context);
    test_parameters_without_memory();
    sherl_context_destroy(context);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
