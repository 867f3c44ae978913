/* A C program that needs sherl.h alone: it builds a side network, trains it, checks what it learned, and then takes a
 * training step once for each allocation that may fail. */
#include "sherl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TAPS = 3, CHANNELS = 8, HIDDEN = 4, CLASSES = 2, SAMPLES = 20, LONGEST = 6, STEPS = 60 };
enum { INTERMEDIATE = 12, MOST_ROWS = SAMPLES * LONGEST };

static int failures;

static void check(bool holds, const char *what) {
    if (holds) return;
    failures++;
    fprintf(stderr, "failed: %s\n", what);
}

/* ---- An allocator whose n-th allocation fails ---- */

typedef struct meter {
    size_t made, live;
    size_t failing; /* number of the allocation that fails; 0: none */
    bool for_good;  /* and all after it */
} meter;

static void *metered_allocate(void *state, size_t bytes) {
    meter *self = state;
    self->made++;
    if (self->failing && (self->made == self->failing || (self->for_good && self->made > self->failing))) return NULL;
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (memory) self->live++;
    return memory;
}

static void metered_release(void *state, void *memory) {
    ((meter *)state)->live--;
    free(memory);
}

/* ---- Data: the class of a sample shows in its first token ---- */

typedef struct data {
    float taps[TAPS][MOST_ROWS * CHANNELS];
    int32_t labels[SAMPLES];
    float weights[SAMPLES];
    size_t offsets[SAMPLES + 1];
    const size_t *offsets_by_space[2];
    sherl_source inputs[TAPS + 2];
    sherl_batch batch;
} data;

/* Uniform in [-1, 1). */
static float next_number(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / 8388608.0f - 1;
}

static void make_data(data *made) {
    uint32_t state = 1;
    made->offsets[0] = 0;
    for (size_t i = 0; i < SAMPLES; i++) {
        made->offsets[i + 1] = made->offsets[i] + 1 + i % LONGEST;
        made->labels[i] = (int32_t)(i / 2 % CLASSES);
        made->weights[i] = 1.0f / SAMPLES;
    }
    for (size_t tap = 0; tap < TAPS; tap++) {
        for (size_t i = 0; i < MOST_ROWS * CHANNELS; i++) made->taps[tap][i] = next_number(&state);
        for (size_t i = 0; i < SAMPLES; i++) {
            made->taps[tap][made->offsets[i] * CHANNELS + tap] += made->labels[i] ? 1.5f : -1.5f;
        }
        made->inputs[tap] =
            (sherl_source){.data = made->taps[tap], .element = SHERL_FLOAT32, .row_stride = CHANNELS * sizeof(float)};
    }
    made->inputs[TAPS] = (sherl_source){.data = made->labels, .element = SHERL_INT32, .row_stride = sizeof(int32_t)};
    made->inputs[TAPS + 1] =
        (sherl_source){.data = made->weights, .element = SHERL_FLOAT32, .row_stride = sizeof(float)};
    made->offsets_by_space[0] = NULL;
    made->offsets_by_space[1] = made->offsets;
    made->batch = (sherl_batch){.samples = SAMPLES, .offsets = made->offsets_by_space, .inputs = made->inputs};
}

/* ---- The network ---- */

typedef struct backbone {
    sherl_real square[4][CHANNELS * CHANNELS], up[INTERMEDIATE * CHANNELS], down[CHANNELS * INTERMEDIATE];
    sherl_real zeros[INTERMEDIATE], ones[CHANNELS];
} backbone;

static void make_backbone(backbone *made) {
    uint32_t state = 2;
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < CHANNELS * CHANNELS; j++) made->square[i][j] = next_number(&state) / 2;
    }
    for (int i = 0; i < INTERMEDIATE * CHANNELS; i++) {
        made->up[i] = next_number(&state) / 2;
        made->down[i] = next_number(&state) / 2;
    }
    for (int i = 0; i < INTERMEDIATE; i++) made->zeros[i] = 0;
    for (int i = 0; i < CHANNELS; i++) made->ones[i] = 1;
}

typedef struct model {
    sherl_context *context;
    sherl_parameters *parameters;
    sherl_program *program;
    sherl_trainer *trainer;
} model;

/* Taps -> MTSA -> a transformer layer, frozen when there is a backbone -> head -> cross-entropy. */
static void build_graph(sherl_graph *graph, const backbone *frozen) {
    sherl_space tokens = sherl_graph_space(graph, "tokens");
    sherl_value taps[TAPS];
    for (int i = 0; i < TAPS; i++) taps[i] = sherl_graph_input(graph, "tap", tokens, CHANNELS, false);
    sherl_value labels = sherl_graph_indices(graph, "labels", SHERL_SAMPLES);
    sherl_value weights = sherl_graph_input(graph, "weights", SHERL_SAMPLES, 1, false);

    sherl_mtsa_settings mtsa = {.hidden = HIDDEN,
                                .out_features = CHANNELS,
                                .down = SHERL_DOWN_LAYER_NORM,
                                .guidance = SHERL_GUIDANCE_TOKEN,
                                .up_norm = SHERL_NORM_LAYER,
                                .eps = 1e-8,
                                .down_norm_eps = 1e-5,
                                .up_norm_eps = 1e-12,
                                .gate_temperature = 0.1};
    sherl_value x = sherl_mtsa(graph, "early.", taps, TAPS, taps[TAPS - 1], &mtsa);

    sherl_transformer_weights layer = {0};
    if (frozen) {
        const sherl_real *zeros = frozen->zeros, *ones = frozen->ones;
        layer = (sherl_transformer_weights){.query = {frozen->square[0], zeros},
                                            .key = {frozen->square[1], zeros},
                                            .value = {frozen->square[2], zeros},
                                            .output = {frozen->square[3], zeros},
                                            .attention_norm = {ones, zeros},
                                            .up = {frozen->up, zeros},
                                            .down = {frozen->down, zeros},
                                            .feed_forward_norm = {ones, zeros}};
    }
    sherl_transformer_settings transformer = {.heads = 2,
                                              .intermediate = INTERMEDIATE,
                                              .activation = SHERL_GELU_ERF,
                                              .eps = 1e-12,
                                              .query_bias = true,
                                              .output_bias = true,
                                              .feed_forward_bias = true,
                                              .norm_bias = true,
                                              .frozen = frozen != NULL};
    sherl_transformer_inputs inputs = {x, SHERL_NONE, SHERL_NONE, SHERL_NONE};
    x = sherl_transformer_layer(graph, "late.0.", &inputs, &layer, &transformer);

    sherl_head_settings head = {.outputs = CLASSES, .pooling = SHERL_POOL_FIRST, .pooler = true};
    sherl_value logits = sherl_head(graph, "head.", x, &head);
    sherl_graph_output(graph, logits);
    sherl_graph_loss(graph, sherl_cross_entropy(graph, logits, labels, weights, SHERL_NONE, 0));
}

static sherl_status build(model *built, const sherl_allocator *allocator, size_t threads, const backbone *frozen) {
    sherl_graph *graph = NULL;
    sherl_training_settings settings = {.optimizer = SHERL_ADAMW,
                                        .learning_rate = 0.02,
                                        .weight_decay = 0.01,
                                        .beta1 = 0.9,
                                        .beta2 = 0.999,
                                        .eps = 1e-8,
                                        .clip_norm = 1,
                                        .schedule = SHERL_SCHEDULE_COSINE,
                                        .warmup_steps = 3,
                                        .total_steps = STEPS};
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
    /* Small tiles: every lane has work. */
    if (!status) status = sherl_program_set_tile_rows(built->program, LONGEST);
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

/* One step of two batches, the second larger: in a first step the workspace is made and then grows. */
static sherl_status train_step(model *trained, const data *made, double *loss) {
    sherl_batch small = made->batch;
    small.samples = 3;
    double small_loss, norm;
    sherl_status status = sherl_trainer_accumulate(trained->trainer, &small, &small_loss);
    if (!status) status = sherl_trainer_accumulate(trained->trainer, &made->batch, loss);
    return status ? status : sherl_trainer_update(trained->trainer, &norm);
}

/* ---- All weights of a model, one after the other ---- */

typedef struct snapshot {
    size_t count;
    sherl_real weights[4096];
} snapshot;

static void take_snapshot(const sherl_parameters *parameters, snapshot *taken) {
    taken->count = 0;
    for (sherl_parameter p = 0; p < sherl_parameters_count(parameters); p++) {
        if (sherl_parameters_role(parameters, p) == SHERL_FROZEN) continue;
        size_t count = sherl_parameters_rows(parameters, p) * sherl_parameters_columns(parameters, p);
        if (taken->count + count > sizeof taken->weights / sizeof *taken->weights) {
            check(false, "a snapshot has room for all weights");
            return;
        }
        memcpy(taken->weights + taken->count, sherl_parameters_data(parameters, p), count * sizeof(sherl_real));
        taken->count += count;
    }
}

static bool same(const snapshot *a, const snapshot *b) {
    return a->count == b->count && memcmp(a->weights, b->weights, a->count * sizeof(sherl_real)) == 0;
}

/* ---- Training ---- */

static size_t count_right(model *trained, const data *made) {
    float logits[SAMPLES * CLASSES];
    sherl_sink sink = {logits, SHERL_FLOAT32, CLASSES * sizeof(float), NULL};
    sherl_batch batch = made->batch;
    batch.outputs = &sink;
    double loss = NAN;
    check(sherl_program_forward(trained->program, &batch, &loss) == SHERL_OK, "a forward run");
    check(loss > 0 && loss < 0.2, "a forward run gives the loss after training");
    size_t right = 0;
    for (size_t i = 0; i < SAMPLES; i++) {
        right += (logits[i * CLASSES] < logits[i * CLASSES + 1]) == (made->labels[i] == 1);
    }
    return right;
}

static void train(size_t threads, const data *made, const backbone *frozen, snapshot *after) {
    model trained;
    check(build(&trained, NULL, threads, frozen) == SHERL_OK, "a model is built");
    double first = NAN, last = NAN;
    for (int step = 0; step < STEPS && trained.trainer; step++) {
        sherl_status status = train_step(&trained, made, step == 0 ? &first : &last);
        check(status == SHERL_OK, sherl_status_text(status));
    }
    if (trained.trainer) {
        check(last < 0.25 * first, "the loss falls to a quarter");
        check(count_right(&trained, made) == SAMPLES, "the network tells the classes apart");
        check(sherl_trainer_steps(trained.trainer) == STEPS, "steps are counted");
        take_snapshot(trained.parameters, after);
        printf("%s layer: loss %.3f -> %.3f\n", frozen ? "frozen" : "trainable", first, last);
    }
    destroy(&trained);
}

/* ---- Failures that are not of memory ---- */

static void test_refusals(data *made) {
    model refused;
    snapshot before, after;
    check(build(&refused, NULL, 1, NULL) == SHERL_OK, "a model is built");
    take_snapshot(refused.parameters, &before);
    double loss = 7, norm = 7;
    check(sherl_trainer_update(refused.trainer, &norm) == SHERL_INVALID_ARGUMENT && norm == 7, "nothing waits");

    float kept = made->taps[0][0];
    made->taps[0][0] = NAN;
    check(sherl_trainer_accumulate(refused.trainer, &made->batch, &loss) == SHERL_NOT_FINITE && loss == 7,
          "a loss that is not a number is refused");
    made->taps[0][0] = kept;
    check(sherl_trainer_update(refused.trainer, &norm) == SHERL_INVALID_ARGUMENT, "and leaves nothing waiting");

    made->labels[2] = CLASSES;
    check(sherl_trainer_accumulate(refused.trainer, &made->batch, &loss) == SHERL_INDEX_OUT_OF_RANGE && loss == 7,
          "a label outside the classes is refused");
    made->labels[2] = 1;

    check(sherl_trainer_accumulate(refused.trainer, &made->batch, &loss) == SHERL_OK, "a batch is accumulated");
    sherl_trainer_discard(refused.trainer);
    check(sherl_trainer_update(refused.trainer, &norm) == SHERL_INVALID_ARGUMENT, "discarded gradients are gone");
    check(sherl_trainer_steps(refused.trainer) == 0, "no step was taken");
    take_snapshot(refused.parameters, &after);
    check(same(&before, &after), "refusals change no weight");
    destroy(&refused);
}

static void test_settings(void) {
    model built;
    check(build(&built, NULL, 1, NULL) == SHERL_OK, "a model is built");
    const sherl_training_settings good = {
        .optimizer = SHERL_ADAM, .learning_rate = 0.1, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8};
    sherl_training_settings bad[12];
    for (int i = 0; i < 12; i++) bad[i] = good;
    bad[0].learning_rate = -1;
    bad[1].learning_rate = NAN;
    bad[2].weight_decay = INFINITY;
    bad[3].beta1 = 1;
    bad[4].beta2 = -0.1;
    bad[5].eps = 0;
    bad[6].clip_norm = -1;
    bad[7].optimizer = SHERL_OPTIMIZER_COUNT;
    bad[8].schedule = SHERL_SCHEDULE_COUNT;
    bad[9].schedule = SHERL_SCHEDULE_LINEAR, bad[9].warmup_steps = 5, bad[9].total_steps = 5;
    bad[10].schedule = SHERL_SCHEDULE_STEP;
    bad[11].optimizer = SHERL_SGD, bad[11].momentum = 1;
    for (int i = 0; i < 12; i++) {
        sherl_trainer *trainer = NULL;
        check(sherl_trainer_create(built.program, &bad[i], NULL, NULL, &trainer) == SHERL_INVALID_ARGUMENT && !trainer,
              "settings outside their range are refused");
    }
    sherl_trainer *trainer = NULL;
    check(sherl_trainer_create(built.program, &good, NULL, NULL, &trainer) == SHERL_OK, "good settings are taken");
    check(sherl_trainer_moment(trainer, 1, 0) && !sherl_trainer_moment(trainer, 2, 0), "Adam has two moments");
    sherl_trainer_destroy(trainer);
    destroy(&built);
}

/* ---- Every allocation made to fail in turn ---- */

/* Builds a model and takes a step while allocation `failing` fails. After a failure within the step the weights are
 * what they were, and a failure that happened once is overcome by trying again. Returns whether none failed. */
static bool step_without_memory(size_t failing, bool for_good, const data *made, const snapshot *untrained,
                                const snapshot *stepped) {
    meter state = {.failing = failing, .for_good = for_good};
    sherl_allocator allocator = {metered_allocate, metered_release, &state};
    model built;
    snapshot after;
    double loss = 7;
    sherl_status status = build(&built, &allocator, 2, NULL);
    bool whole = status == SHERL_OK;
    if (whole) status = train_step(&built, made, &loss);
    bool failed = status != SHERL_OK;
    check(!failed || status == SHERL_OUT_OF_MEMORY, "a failed allocation is told as such");
    check(failed == (state.made >= failing), "an allocation that fails is noticed");
    if (whole) {
        take_snapshot(built.parameters, &after);
        check(same(&after, failed ? untrained : stepped), "a step is whole or has not happened");
        check(!failed || loss == 7, "a failed step writes no loss");
    }
    if (whole && failed && !for_good) {
        check(train_step(&built, made, &loss) == SHERL_OK, "a step succeeds once there is memory");
        take_snapshot(built.parameters, &after);
        check(same(&after, stepped), "a step after a failure is the step without one");
    }
    destroy(&built);
    check(state.live == 0, "nothing leaks");
    return !failed;
}

static void test_without_memory(const data *made) {
    model built;
    static snapshot untrained, stepped;
    double loss;
    check(build(&built, NULL, 1, NULL) == SHERL_OK, "a model is built");
    take_snapshot(built.parameters, &untrained);
    check(train_step(&built, made, &loss) == SHERL_OK, "a step is taken");
    take_snapshot(built.parameters, &stepped);
    check(!same(&untrained, &stepped), "a step changes the weights");
    destroy(&built);
    for (int for_good = 0; for_good < 2; for_good++) {
        size_t failing = 1;
        while (failing < 10000 && !step_without_memory(failing, for_good, made, &untrained, &stepped)) failing++;
        check(failing > 20 && failing < 10000, "a step without failure comes at the end");
        printf("%zu allocations failed %s\n", failing - 1, for_good ? "for good" : "once");
    }
}

int main(void) {
    static data made;
    static backbone frozen;
    static snapshot alone, together;
    make_data(&made);
    make_backbone(&frozen);
    for (int with_backbone = 0; with_backbone < 2; with_backbone++) {
        train(1, &made, with_backbone ? &frozen : NULL, &alone);
        train(3, &made, with_backbone ? &frozen : NULL, &together);
        check(alone.count > 0 && same(&alone, &together), "one and three threads train the same bits");
    }
    test_refusals(&made);
    test_settings();
    test_without_memory(&made);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
