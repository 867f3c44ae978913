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

static bool check_settings(sherl_graph *graph, size_t count, const sherl_mtsa_settings *settings) {
    if (graph->status) return false;
    if (count < 2 || count > SHERL_MAX_INPUTS)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "MTSA: needs 2 to %d taps, not %zu", SHERL_MAX_INPUTS, count);
    else if (settings->hidden == 0 || settings->out_features == 0)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "MTSA: hidden and out_features must be at least 1");
    return graph->status == SHERL_OK;
}

/* out = up(relu(g)) + tanh(gate / T) last */
sherl_value sherl_mtsa(sherl_graph *graph, const char *prefix, const sherl_value *taps, size_t count,
                       sherl_value last, const sherl_mtsa_settings *settings) {
    if (!check_settings(graph, count, settings)) return SHERL_NONE;
    sherl_block block = {.graph = graph, .prefix = prefix};
    sherl_value features[SHERL_MAX_INPUTS];
    for (size_t i = 0; i < count; i++)
        features[i] = settings->down == SHERL_DOWN_GATED ? down_gated(&block, (uint32_t)i, taps[i], settings)
                                                         : down_layer_norm(&block, (uint32_t)i, taps[i], settings);
    sherl_value g = sherl_activate(graph, guide(&block, features, count, settings), SHERL_RELU);
    sherl_value up = sherl_block_linear(&block, "up", SHERL_NONE, "", g, settings->out_features, SHERL_IDENTITY);
    if (settings->up_norm) up = sherl_block_layer_norm(&block, "up", SHERL_NONE, "norm", up, settings->up_norm_eps);
    up = sherl_dropout(graph, up, settings->dropout);
    sherl_parameter gate = sherl_block_parameter(&block, "", SHERL_NONE, "gate", SHERL_VECTOR, 1, SHERL_INIT_ZEROS);
    return sherl_gated_residual(graph, up, last, gate, settings->gate_temperature);
}
