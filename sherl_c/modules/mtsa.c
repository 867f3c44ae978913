/* The Multi-Tiered Sensing Adapter: SHERL's early route (Diao et al., ECCV 2024, section 3.2). */
#include "block.h"

/* x_i = LayerNorm(W x + b) */
static sherl_value down_layer_norm(const sherl_block *block, uint32_t tap, sherl_value x,
                                   const sherl_mtsa_settings *settings) {
    x = sherl_block_linear(block, "down", tap, "", x, settings->hidden, SHERL_IDENTITY);
    return sherl_block_layer_norm(block, "down", tap, "norm", x, settings->down_norm_eps);
}

/* z = relu(W1 x + b1); x_i = (W2 z + b2 + z) sigmoid(W3 z + b3) */
static sherl_value down_gated(const sherl_block *block, uint32_t tap, sherl_value x,
                              const sherl_mtsa_settings *settings) {
    size_t hidden = settings->hidden;
    sherl_value z = sherl_block_linear(block, "down", tap, "proj", x, hidden, SHERL_RELU);
    sherl_value value = sherl_block_linear(block, "down", tap, "value", z, hidden, SHERL_IDENTITY);
    sherl_value gate = sherl_block_linear(block, "down", tap, "gate", z, hidden, SHERL_SIGMOID);
    return sherl_multiply(block->graph, sherl_add(block->graph, value, z), gate);
}

/* x_i = W relu(x) + b */
static sherl_value down_relu(const sherl_block *block, uint32_t tap, sherl_value x,
                             const sherl_mtsa_settings *settings) {
    x = sherl_activate(block->graph, x, SHERL_RELU);
    return sherl_block_linear(block, "down", tap, "", x, settings->hidden, SHERL_IDENTITY);
}

/* x_i = BatchNorm(W x + b) */
static sherl_value down_batch_norm(const sherl_block *block, uint32_t tap, sherl_value x,
                                   const sherl_mtsa_settings *settings) {
    x = sherl_block_linear(block, "down", tap, "", x, settings->hidden, SHERL_IDENTITY);
    return sherl_block_batch_norm(block, "down", tap, "norm", x, settings->down_norm_eps, settings->momentum);
}

/* Taps that are images, pooled to the images of the last one's pooling. */
static void pool_all(const sherl_block *block, const sherl_value *taps, size_t count, sherl_value *pooled,
                     const sherl_mtsa_settings *settings) {
    size_t guide = count - 1;
    pooled[guide] = sherl_window_pool(block->graph, taps[guide], settings->windows[guide], SHERL_NONE);
    sherl_space output = sherl_graph_value_space(block->graph, pooled[guide]);
    for (size_t i = 0; i < guide; i++)
        pooled[i] = sherl_window_pool(block->graph, taps[i], settings->windows[i], output);
}

/* x_i = down_i(F_i), or down_i(pooled F_i) */
static void down_all(const sherl_block *block, const sherl_value *taps, size_t count, sherl_value *features,
                     const sherl_mtsa_settings *settings) {
    static sherl_value (*const maps[SHERL_DOWN_COUNT])(const sherl_block *, uint32_t, sherl_value,
                                                       const sherl_mtsa_settings *) = {[SHERL_DOWN_LAYER_NORM] =
                                                                                           down_layer_norm,
                                                                                       [SHERL_DOWN_GATED] = down_gated,
                                                                                       [SHERL_DOWN_RELU] = down_relu,
                                                                                       [SHERL_DOWN_BATCH_NORM] =
                                                                                           down_batch_norm};
    sherl_value pooled[SHERL_MAX_INPUTS];
    if (settings->windows) pool_all(block, taps, count, pooled, settings);
    for (size_t i = 0; i < count; i++)
        features[i] = maps[settings->down](block, (uint32_t)i, settings->windows ? pooled[i] : taps[i], settings);
}

/* g = sum_i a_i x_i + e, or, with the residual MLP, LayerNorm(W4 relu(W3 sum_i a_i x_i + b3) + b4) + e */
static sherl_value guide(const sherl_block *block, const sherl_value *features, size_t count,
                         const sherl_mtsa_settings *settings) {
    bool residual_mlp = settings->guidance == SHERL_GUIDANCE_RESIDUAL_MLP;
    sherl_parameter weight =
        sherl_block_parameter(block, "guide", SHERL_NONE, "weight", 1, settings->hidden, SHERL_INIT_XAVIER_UNIFORM);
    sherl_parameter bias = sherl_block_parameter(block, "guide", SHERL_NONE, "bias", SHERL_VECTOR, 1, SHERL_INIT_ZEROS);
    sherl_value g = sherl_guidance(block->graph, features, count, weight, bias, settings->eps, !residual_mlp);
    if (!residual_mlp) return g;
    g = sherl_block_linear(block, "guide.mlp", 0, "", g, settings->out_features, SHERL_RELU);
    g = sherl_block_linear(block, "guide.mlp", 1, "", g, settings->hidden, SHERL_IDENTITY);
    g = sherl_block_layer_norm(block, "guide.mlp", SHERL_NONE, "norm", g, settings->down_norm_eps);
    return sherl_add(block->graph, g, features[count - 1]);
}

/* e = W relu(last) + b; y_i = the rows x_it of each sample weighted by how they agree with e, plus a base row. They
 * take the place of the features, with e as their guide. Returns how many there are then. */
static size_t guide_spatially(const sherl_block *block, sherl_value *features, size_t count, sherl_value last,
                              const sherl_mtsa_settings *settings) {
    sherl_value positive = sherl_activate(block->graph, last, SHERL_RELU);
    sherl_value guide =
        sherl_block_linear(block, "guide_down", SHERL_NONE, "", positive, settings->hidden, SHERL_IDENTITY);
    sherl_spatial_settings spatial = {.base = settings->base,
                                      .eps = settings->eps,
                                      .temperature = settings->gate_temperature};
    sherl_parameter gate = SHERL_NONE;
    if (settings->gated_base)
        gate = sherl_block_parameter(block, "", SHERL_NONE, "spatial_gate", SHERL_VECTOR, count, SHERL_INIT_ONES);
    for (size_t i = 0; i < count; i++) {
        sherl_parameter weight = sherl_block_parameter(block, "spatial", (uint32_t)i, "weight", 1, settings->hidden,
                                                       SHERL_INIT_XAVIER_UNIFORM);
        sherl_parameter bias =
            sherl_block_parameter(block, "spatial", (uint32_t)i, "bias", SHERL_VECTOR, 1, SHERL_INIT_ZEROS);
        spatial.index = i;
        features[i] =
            sherl_spatial_guidance(block->graph, features[i], guide, settings->position, weight, bias, gate, &spatial);
    }
    features[count] = guide;
    return count + 1;
}

static bool check_settings(sherl_graph *graph, size_t count, const sherl_mtsa_settings *settings) {
    if (graph->status) return false;
    size_t most = settings->guidance == SHERL_GUIDANCE_SPATIAL ? SHERL_MAX_INPUTS - 1 : SHERL_MAX_INPUTS;
    if (count < 2 || count > most)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "MTSA: needs 2 to %zu taps, not %zu", most, count);
    else if (settings->hidden == 0 || settings->out_features == 0)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "MTSA: hidden and out_features must be at least 1");
    else if ((unsigned)settings->down >= SHERL_DOWN_COUNT ||
             (unsigned)settings->guidance >= SHERL_GUIDANCE_KIND_COUNT ||
             (unsigned)settings->up_norm >= SHERL_NORM_COUNT)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "MTSA: there is no such down map, guidance or norm");
    return graph->status == SHERL_OK;
}

/* up(g) = W relu(g) + b, then a layer norm if there is one; or relu(BatchNorm(W g + b)) */
static sherl_value up(const sherl_block *block, sherl_value g, const sherl_mtsa_settings *settings) {
    bool batch_norm = settings->up_norm == SHERL_NORM_BATCH;
    if (!batch_norm) g = sherl_activate(block->graph, g, SHERL_RELU);
    sherl_value y = sherl_block_linear(block, "up", SHERL_NONE, "", g, settings->out_features, SHERL_IDENTITY);
    if (batch_norm) {
        y = sherl_block_batch_norm(block, "up", SHERL_NONE, "norm", y, settings->up_norm_eps, settings->momentum);
        y = sherl_activate(block->graph, y, SHERL_RELU);
    } else if (settings->up_norm == SHERL_NORM_LAYER) {
        y = sherl_block_layer_norm(block, "up", SHERL_NONE, "norm", y, settings->up_norm_eps);
    }
    return sherl_dropout(block->graph, y, settings->dropout);
}

size_t sherl_mtsa_features(sherl_graph *graph, const char *prefix, const sherl_value *taps, size_t count,
                           sherl_value last, const sherl_mtsa_settings *settings, sherl_value *features) {
    if (!check_settings(graph, count, settings)) return 0;
    sherl_block block = {.graph = graph, .prefix = prefix};
    down_all(&block, taps, count, features, settings);
    if (settings->guidance == SHERL_GUIDANCE_SPATIAL) count = guide_spatially(&block, features, count, last, settings);
    return graph->status ? 0 : count;
}

/* out = up(g) + tanh(gate / T) last; with spatial guidance up(g) + last */
sherl_value sherl_mtsa(sherl_graph *graph, const char *prefix, const sherl_value *taps, size_t count, sherl_value last,
                       const sherl_mtsa_settings *settings) {
    sherl_value features[SHERL_MAX_INPUTS];
    count = sherl_mtsa_features(graph, prefix, taps, count, last, settings, features);
    if (count == 0) return SHERL_NONE;
    sherl_block block = {.graph = graph, .prefix = prefix};
    sherl_value y = up(&block, guide(&block, features, count, settings), settings);
    if (settings->guidance == SHERL_GUIDANCE_SPATIAL) return sherl_add(graph, y, last);
    sherl_parameter gate = sherl_block_parameter(&block, "", SHERL_NONE, "gate", SHERL_VECTOR, 1, SHERL_INIT_ZEROS);
    return sherl_gated_residual(graph, y, last, gate, settings->gate_temperature);
}
