/* A C program that trains a side network on images of different sizes: taps of two stages, a frozen bottleneck, batch
 * norms. It checks what it learns, its bits on threads, refusals, and every allocation that may fail. */
#include "sherl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TAPS = 2, CHANNELS = 6, WIDTH = 3, HIDDEN = 4, CLASSES = 2, SAMPLES = 10, STEPS = 60 };
enum { LONGEST = 3, WINDOW = 2, MOST_ROWS = SAMPLES * WINDOW * WINDOW * LONGEST * LONGEST };
enum { STATES = 2 * (TAPS * HIDDEN + CHANNELS) }; /* running means and variances */

static int failures;

static void check(bool holds, const char *what) {
    if (holds) return;
    failures++;
    fprintf(stderr, "failed: %s\n", what);
}

/* ---- An allocator whose n-th allocation fails ---- */

typedef struct meter { size_t made, live, failing; } meter;

static void *metered_allocate(void *state, size_t bytes) {
    meter *self = state;
    if (++self->made == self->failing) return NULL;
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (memory) self->live++;
    return memory;
}

static void metered_release(void *state, void *memory) {
    ((meter *)state)->live--;
    free(memory);
}

/* ---- Data: the class of an image shows in the mean of a channel ---- */

typedef struct data {
    sherl_real taps[TAPS][MOST_ROWS * CHANNELS];
    int32_t labels[SAMPLES];
    sherl_real weights[SAMPLES];
    size_t grids[TAPS][2 * SAMPLES];
    const size_t *offsets_by_space[1 + TAPS], *grids_by_space[1 + TAPS];
    sherl_source inputs[TAPS + 2];
    sherl_batch batch;
} data;

/* Uniform in [-1, 1). */
static sherl_real next_number(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return (sherl_real)(*state >> 8) / 8388608 - 1;
}

static void make_data(data *made) {
    sherl_element real = sizeof(sherl_real) == 4 ? SHERL_FLOAT32 : SHERL_FLOAT64;
    uint32_t state = 1;
    memset(made, 0, sizeof *made);
    for (size_t i = 0; i < SAMPLES; i++) {
        made->labels[i] = (int32_t)(i % CLASSES);
        made->weights[i] = 1 / (sherl_real)SAMPLES;
        made->grids[1][2 * i] = 1 + i % LONGEST;
        made->grids[1][2 * i + 1] = 1 + i / 2 % LONGEST;
        for (int k = 0; k < 2; k++) made->grids[0][2 * i + k] = WINDOW * made->grids[1][2 * i + k] + (i == 3);
    }
    for (size_t tap = 0; tap < TAPS; tap++) {
        sherl_real *pixel = made->taps[tap];
        for (size_t i = 0; i < SAMPLES; i++)
            for (size_t n = made->grids[tap][2 * i] * made->grids[tap][2 * i + 1]; n > 0; n--, pixel += CHANNELS) {
                for (size_t c = 0; c < CHANNELS; c++) pixel[c] = next_number(&state);
                pixel[tap] += made->labels[i] ? 1 : -1;
            }
        made->inputs[tap] =
            (sherl_source){.data = made->taps[tap], .element = real, .row_stride = CHANNELS * sizeof(sherl_real)};
        made->grids_by_space[1 + tap] = made->grids[tap];
    }
    made->inputs[TAPS] = (sherl_source){.data = made->labels, .element = SHERL_INT32, .row_stride = sizeof(int32_t)};
    made->inputs[TAPS + 1] = (sherl_source){.data = made->weights, .element = real, .row_stride = sizeof(sherl_real)};
    made->batch = (sherl_batch){.samples = SAMPLES,
                                .offsets = made->offsets_by_space,
                                .grids = made->grids_by_space,
                                .inputs = made->inputs};
}

/* ---- The network ---- */

typedef struct bottleneck {
    sherl_real reduce[WIDTH * CHANNELS], window[WIDTH * 9 * WIDTH], expand[2 * CHANNELS * WIDTH];
    sherl_real shortcut[2 * CHANNELS * CHANNELS], zeros[2 * CHANNELS];
} bottleneck;

static void fill(sherl_real *weights, size_t count, uint32_t *state) {
    for (size_t i = 0; i < count; i++) weights[i] = next_number(state) / 2;
}

static void make_bottleneck(bottleneck *made) {
    uint32_t state = 2;
    memset(made, 0, sizeof *made);
    fill(made->reduce, WIDTH * CHANNELS, &state);
    fill(made->window, WIDTH * 9 * WIDTH, &state);
    fill(made->expand, 2 * CHANNELS * WIDTH, &state);
    fill(made->shortcut, 2 * CHANNELS * CHANNELS, &state);
}

/* Taps -> MTSA -> a bottleneck of stride 2 -> the mean over its pixels -> cross-entropy. */
static void build_graph(sherl_graph *graph, const bottleneck *frozen) {
    static const size_t windows[TAPS] = {WINDOW, 1};
    sherl_value taps[TAPS];
    for (int i = 0; i < TAPS; i++)
        taps[i] = sherl_graph_input(graph, "tap", sherl_graph_grid(graph, "pixels"), CHANNELS, false);
    sherl_value labels = sherl_graph_indices(graph, "labels", SHERL_SAMPLES);
    sherl_value weights = sherl_graph_input(graph, "weights", SHERL_SAMPLES, 1, false);
    sherl_mtsa_settings mtsa = {.hidden = HIDDEN,
                                .out_features = CHANNELS,
                                .down = SHERL_DOWN_BATCH_NORM,
                                .up_norm = SHERL_NORM_BATCH,
                                .eps = 1e-8,
                                .down_norm_eps = 1e-5,
                                .up_norm_eps = 1e-5,
                                .momentum = 0.1,
                                .gate_temperature = 0.1,
                                .windows = windows,
                                .position = SHERL_NONE};
    sherl_value x = sherl_mtsa(graph, "early.", taps, TAPS, taps[TAPS - 1], &mtsa);
    const sherl_real *zeros = frozen->zeros;
    sherl_bottleneck_weights block = {frozen->reduce, zeros, frozen->window,   zeros,
                                      frozen->expand, zeros, frozen->shortcut, zeros};
    sherl_bottleneck_settings settings = {.width = WIDTH, .out_features = 2 * CHANNELS, .stride = 2};
    x = sherl_bottleneck(graph, "late.0.", x, &block, &settings);
    sherl_head_settings head = {.outputs = CLASSES, .pooling = SHERL_POOL_MEAN};
    sherl_value logits = sherl_head(graph, "head.", x, &head);
    sherl_graph_loss(graph, sherl_cross_entropy(graph, logits, labels, weights, SHERL_NONE, 0));
}

typedef struct model {
    sherl_context *context;
    sherl_parameters *parameters;
    sherl_program *program;
    sherl_trainer *trainer;
} model;

static sherl_status build(model *built, const sherl_allocator *allocator, size_t threads, const bottleneck *frozen) {
    sherl_graph *graph = NULL;
    sherl_training_settings settings = {
        .optimizer = SHERL_ADAMW, .learning_rate = 0.03, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    *built = (model){0};
    sherl_status status = sherl_context_create(allocator, threads, &built->context);
    if (!status) status = sherl_parameters_create(built->context, &built->parameters);
    if (!status) status = sherl_graph_create(built->context, built->parameters, true, &graph);
    if (!status) {
        build_graph(graph, frozen);
        status = sherl_graph_status(graph);
        if (status && status != SHERL_OUT_OF_MEMORY) fprintf(stderr, "%s\n", sherl_graph_message(graph));
    }
    if (!status) status = sherl_program_compile(graph, true, &built->program);
    sherl_graph_destroy(graph);
    if (!status) status = sherl_program_set_tile_rows(built->program, WINDOW * WINDOW * LONGEST * LONGEST);
    if (!status) status = sherl_trainer_create(built->program, &settings, NULL, NULL, &built->trainer);
    if (!status) sherl_parameters_initialize(built->parameters, 3);
    return status;
}

static void destroy(model *built) {
    sherl_trainer_destroy(built->trainer);
    sherl_program_destroy(built->program);
    sherl_parameters_destroy(built->parameters);
    sherl_context_destroy(built->context);
}

static sherl_status train_step(model *trained, const data *made, double *loss) {
    double norm;
    sherl_status status = sherl_trainer_accumulate(trained->trainer, &made->batch, loss);
    return status ? status : sherl_trainer_update(trained->trainer, &norm);
}

/* The running statistics, one after the other. */
static void read_states(const sherl_parameters *parameters, sherl_real *states) {
    size_t count = 0;
    for (sherl_parameter p = 0; p < sherl_parameters_count(parameters); p++) {
        if (sherl_parameters_role(parameters, p) != SHERL_STATE) continue;
        size_t size = sherl_parameters_columns(parameters, p);
        if (count + size <= STATES)
            memcpy(states + count, sherl_parameters_data(parameters, p), size * sizeof(sherl_real));
        count += size;
    }
    check(count == STATES, "all running statistics are there");
}

/* ---- Training ---- */

static double train(size_t threads, const data *made, const bottleneck *frozen, sherl_real *states) {
    model trained;
    double first = NAN, last = NAN;
    check(build(&trained, NULL, threads, frozen) == SHERL_OK, "a model is built");
    for (int step = 0; step < STEPS && trained.trainer; step++) {
        sherl_status status = train_step(&trained, made, step == 0 ? &first : &last);
        check(status == SHERL_OK, sherl_status_text(status));
    }
    if (trained.trainer) read_states(trained.parameters, states);
    check(last < 0.25 * first, "the loss falls to a quarter");
    printf("images: loss %.3f -> %.3f\n", first, last);
    destroy(&trained);
    return last;
}

static void test_refusals(data *made, const bottleneck *frozen) {
    model refused;
    sherl_real before[STATES], after[STATES];
    size_t rows[16];
    double loss = 7;
    check(build(&refused, NULL, 1, frozen) == SHERL_OK, "a model is built");
    check(train_step(&refused, made, &loss) == SHERL_OK, "a step");
    read_states(refused.parameters, before);

    made->grids[0][0] += WINDOW;
    check(sherl_trainer_accumulate(refused.trainer, &made->batch, &loss) == SHERL_SHAPE_MISMATCH,
          "images that are not pooled to one size are refused");
    check(sherl_program_rows(refused.program, SAMPLES, NULL, made->grids_by_space, rows) == SHERL_SHAPE_MISMATCH,
          "and have no rows");
    made->grids[0][0] -= WINDOW;
    made->batch.grids = NULL;
    check(sherl_trainer_accumulate(refused.trainer, &made->batch, &loss) == SHERL_INVALID_ARGUMENT,
          "heights and widths must be given");
    made->batch.grids = made->grids_by_space;
    check(sherl_program_spaces(refused.program) <= 16 &&
              sherl_program_rows(refused.program, 1, NULL, made->grids_by_space, rows) == SHERL_OK &&
              rows[SHERL_SAMPLES] == 1 && rows[1] == WINDOW * WINDOW && rows[2] == 1,
          "rows are counted");

    sherl_real kept = made->taps[0][0];
    made->taps[0][0] = (sherl_real)NAN;
    check(sherl_trainer_accumulate(refused.trainer, &made->batch, &loss) == SHERL_NOT_FINITE, "NaN is refused");
    made->taps[0][0] = kept;
    read_states(refused.parameters, after);
    check(memcmp(before, after, sizeof before) == 0, "a failed step leaves running statistics alone");
    check(sherl_trainer_accumulate(refused.trainer, &made->batch, &loss) == SHERL_OK, "a batch is accumulated");
    sherl_trainer_discard(refused.trainer);
    read_states(refused.parameters, after);
    check(memcmp(before, after, sizeof before) == 0, "so does a discarded one");
    destroy(&refused);
}

/* ---- Every allocation made to fail in turn ---- */

static void test_memory(const data *made, const bottleneck *frozen) {
    bool failed = true;
    size_t failing = 0;
    while (failed && failing < 10000) {
        meter state = {.failing = ++failing};
        sherl_allocator allocator = {metered_allocate, metered_release, &state};
        model built;
        double loss = 7;
        sherl_status status = build(&built, &allocator, 2, frozen);
        bool whole = status == SHERL_OK;
        if (whole) status = train_step(&built, made, &loss);
        failed = status != SHERL_OK;
        check(!failed || status == SHERL_OUT_OF_MEMORY, "a failed allocation is told as such");
        check(failed == (state.made >= failing), "an allocation that fails is noticed");
        if (whole && failed) check(train_step(&built, made, &loss) == SHERL_OK, "a step succeeds once there is memory");
        destroy(&built);
        check(state.live == 0, "everything is released");
    }
    printf("images: %zu allocations\n", failing - 1);
}

int main(void) {
    static data made;
    static bottleneck frozen;
    sherl_real one[STATES], three[STATES];
    make_data(&made);
    make_bottleneck(&frozen);
    double loss = train(1, &made, &frozen, one);
    check(train(3, &made, &frozen, three) == loss && memcmp(one, three, sizeof one) == 0, "threads change no bit");
    test_refusals(&made, &frozen);
    test_memory(&made, &frozen);
    return failures != 0;
}
