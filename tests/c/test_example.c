/* The example of docs/c-api.md: a side network on made-up hidden states, built, trained and asked for its predictions
 * through sherl.h alone. It ends with an error where the network did not learn. */
#include "sherl.h"

#include <stdio.h>
#include <stdlib.h>

enum { TAPS = 3, CHANNELS = 16, HIDDEN = 8, CLASSES = 2, SAMPLES = 40, LONGEST = 7, STEPS = 120 };

/* [data] */
typedef struct texts {
    size_t offsets[SAMPLES + 1];                    /* sample i has the rows offsets[i] … offsets[i + 1] - 1 */
    float taps[TAPS][SAMPLES * LONGEST * CHANNELS]; /* the hidden states, one row a token; no padding */
    int32_t labels[SAMPLES];
    float weights[SAMPLES]; /* by what each sample's loss counts: the mean over all */
} texts;

/* Noise, but for the first row of each sample, in which the second tap tells the label. */
static void make_texts(texts *made) {
    srand(1);
    for (size_t i = 0; i < SAMPLES; i++) {
        made->offsets[i + 1] = made->offsets[i] + 1 + i % LONGEST;
        made->labels[i] = rand() % CLASSES;
        made->weights[i] = 1.0f / SAMPLES;
    }
    for (size_t tap = 0; tap < TAPS; tap++) {
        for (size_t i = 0; i < made->offsets[SAMPLES] * CHANNELS; i++) {
            made->taps[tap][i] = (float)rand() / (float)RAND_MAX - 0.5f;
        }
    }
    for (size_t i = 0; i < SAMPLES; i++) {
        made->taps[1][made->offsets[i] * CHANNELS] = made->labels[i] ? 3.0f : -3.0f;
    }
}
/* [graph] */
/* Inputs and outputs are bound by the order in which they are declared here. The graph remembers the first error. */
static void build(sherl_graph *graph) {
    sherl_space tokens = sherl_graph_space(graph, "tokens");
    sherl_value taps[TAPS];
    for (int i = 0; i < TAPS; i++) taps[i] = sherl_graph_input(graph, "tap", tokens, CHANNELS, false);
    sherl_value labels = sherl_graph_indices(graph, "labels", SHERL_SAMPLES);
    sherl_value weights = sherl_graph_input(graph, "weights", SHERL_SAMPLES, 1, false);

    sherl_mtsa_settings adapter = {.hidden = HIDDEN,
                                   .out_features = CHANNELS,
                                   .down = SHERL_DOWN_LAYER_NORM,
                                   .guidance = SHERL_GUIDANCE_TOKEN,
                                   .up_norm = SHERL_NORM_LAYER,
                                   .eps = 1e-8,
                                   .down_norm_eps = 1e-5,
                                   .up_norm_eps = 1e-12,
                                   .gate_temperature = 0.1};
    sherl_value x = sherl_mtsa(graph, "early.", taps, TAPS, taps[TAPS - 1], &adapter);
    /* Frozen late layers would come here: sherl_transformer_layer(graph, "late.0.", …). */
    sherl_head_settings head = {.outputs = CLASSES, .pooling = SHERL_POOL_FIRST};
    sherl_value logits = sherl_head(graph, "head.", x, &head);

    sherl_graph_output(graph, logits);
    sherl_graph_loss(graph, sherl_cross_entropy(graph, logits, labels, weights, SHERL_NONE, 0));
}
/* [train] */
typedef struct network {
    sherl_context *context;
    sherl_parameters *parameters;
    sherl_program *program;
    sherl_trainer *trainer;
} network;

static sherl_status make_network(network *made) {
    sherl_graph *graph = NULL;
    sherl_training_settings settings = {.optimizer = SHERL_ADAMW,
                                        .learning_rate = 0.01,
                                        .beta1 = 0.9,
                                        .beta2 = 0.999,
                                        .eps = 1e-8,
                                        .clip_norm = 1,
                                        .schedule = SHERL_SCHEDULE_LINEAR,
                                        .warmup_steps = 5,
                                        .total_steps = STEPS};
    sherl_status status = sherl_context_create(NULL, 0, &made->context); /* malloc, all processors */
    if (!status) status = sherl_parameters_create(made->context, &made->parameters);
    if (!status) status = sherl_graph_create(made->context, made->parameters, true, &graph);
    if (!status) {
        build(graph);
        status = sherl_graph_status(graph);
        if (status) fprintf(stderr, "%s\n", sherl_graph_message(graph));
    }
    if (!status) status = sherl_program_compile(graph, true, &made->program);
    if (!status) status = sherl_trainer_create(made->program, &settings, NULL, NULL, &made->trainer);
    if (!status) sherl_parameters_initialize(made->parameters, 0);
    sherl_graph_destroy(graph); /* the program has what it needs */
    return status;
}

static sherl_status train(network *trained, const sherl_batch *batch) {
    sherl_status status = SHERL_OK;
    for (int step = 0; step < STEPS && !status; step++) {
        double loss, norm;
        status = sherl_trainer_accumulate(trained->trainer, batch, &loss);
        if (!status) status = sherl_trainer_update(trained->trainer, &norm);
        if (!status && step % 20 == 0) printf("step %3d: loss %.4f\n", step, loss);
    }
    return status;
}
/* [main] */
int main(void) {
    static texts data;
    static float logits[SAMPLES * CLASSES];
    network made = {0};
    make_texts(&data);

    sherl_source inputs[TAPS + 2];
    for (int i = 0; i < TAPS; i++) {
        inputs[i] =
            (sherl_source){.data = data.taps[i], .element = SHERL_FLOAT32, .row_stride = CHANNELS * sizeof(float)};
    }
    inputs[TAPS] = (sherl_source){.data = data.labels, .element = SHERL_INT32, .row_stride = sizeof(int32_t)};
    inputs[TAPS + 1] = (sherl_source){.data = data.weights, .element = SHERL_FLOAT32, .row_stride = sizeof(float)};
    const size_t *offsets[] = {NULL, data.offsets}; /* by row space: SHERL_SAMPLES needs none, then the tokens */
    sherl_sink output = {.data = logits, .element = SHERL_FLOAT32, .row_stride = CLASSES * sizeof(float)};
    sherl_batch batch = {.samples = SAMPLES, .offsets = offsets, .inputs = inputs, .outputs = &output};

    sherl_status status = make_network(&made);
    if (!status) status = train(&made, &batch);
    if (!status) status = sherl_program_forward(made.program, &batch, NULL);
    int right = 0;
    for (int i = 0; i < SAMPLES; i++) right += (logits[2 * i] < logits[2 * i + 1]) == (data.labels[i] == 1);
    if (status)
        fprintf(stderr, "%s\n", sherl_status_text(status));
    else
        printf("%d of %d right\n", right, SAMPLES);

    sherl_trainer_destroy(made.trainer);
    sherl_program_destroy(made.program);
    sherl_parameters_destroy(made.parameters);
    sherl_context_destroy(made.context);
    return !status && right == SAMPLES ? EXIT_SUCCESS : EXIT_FAILURE;
}
