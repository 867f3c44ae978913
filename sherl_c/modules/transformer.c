/* Transformer layers of a backbone, frozen or trained, as SHERL's late route or as part of a whole encoder. */
#include <math.h>
#include <stdio.h>

#include "block.h"

enum { NAME_BYTES = 256 };

/* A weight matrix (rows > 0) or a vector (rows = SHERL_VECTOR) of the layer, frozen at `data` or trained. */
static sherl_parameter layer_parameter(const sherl_block *block, const char *name, size_t rows, size_t columns,
                                       sherl_initializer initializer, const sherl_real *data) {
    char full[NAME_BYTES];
    int written = snprintf(full, sizeof full, "%s%s", block->prefix, name);
    if (written < 0 || written >= NAME_BYTES)
        return sherl_graph_fail(block->graph, SHERL_INVALID_ARGUMENT, "transformer layer: the prefix is too long");
    return sherl_graph_parameter(block->graph, full, rows, columns, data ? SHERL_FROZEN : SHERL_TRAINABLE, initializer,
                                 data);
}

static sherl_value layer_linear(const sherl_block *block, const char *weight_name, const char *bias_name,
                                sherl_value x, size_t outputs, const sherl_real *weight, const sherl_real *bias,
                                sherl_activation activation, bool bfloat16) {
    size_t inputs = sherl_graph_channels(block->graph, x);
    sherl_parameter w = layer_parameter(block, weight_name, outputs, inputs, SHERL_INIT_NORMAL, weight);
    sherl_parameter b = layer_parameter(block, bias_name, SHERL_VECTOR, outputs, SHERL_INIT_ZEROS, bias);
    return (bfloat16 ? sherl_bfloat16_linear : sherl_linear)(block->graph, x, w, b, activation);
}

static sherl_value layer_norm(const sherl_block *block, const char *weight_name, const char *bias_name, sherl_value x,
                              const sherl_real *weight, const sherl_real *bias, double eps) {
    size_t channels = sherl_graph_channels(block->graph, x);
    sherl_parameter w = layer_parameter(block, weight_name, SHERL_VECTOR, channels, SHERL_INIT_ONES, weight);
    sherl_parameter b = layer_parameter(block, bias_name, SHERL_VECTOR, channels, SHERL_INIT_ZEROS, bias);
    return sherl_layer_norm(block->graph, x, w, b, eps);
}

static bool all_given(const sherl_transformer_weights *w) {
    return w && w->query_weight && w->query_bias && w->key_weight && w->key_bias && w->value_weight && w->value_bias &&
           w->output_weight && w->output_bias && w->attention_norm_weight && w->attention_norm_bias && w->up_weight &&
           w->up_bias && w->down_weight && w->down_bias && w->feed_forward_norm_weight && w->feed_forward_norm_bias;
}

static bool check_settings(sherl_graph *graph, sherl_value x, const sherl_transformer_weights *weights,
                           const sherl_transformer_settings *settings) {
    if (!sherl_check_value(graph, "transformer layer", "x", x, false)) return false;
    size_t hidden = sherl_graph_channels(graph, x);
    if (settings->heads == 0 || hidden % settings->heads != 0)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "transformer layer: %zu heads do not divide %zu channels",
                         settings->heads, hidden);
    else if (settings->intermediate == 0)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "transformer layer: intermediate must be at least 1");
    else if (settings->frozen && !all_given(weights))
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "transformer layer: a frozen layer needs all its weights");
    return graph->status == SHERL_OK;
}

/* a = W_o attention(W_q x, W_k x, W_v x) + b_o, with dropout */
static sherl_value self_attention(const sherl_block *block, sherl_value x, const sherl_transformer_weights *w,
                                  const sherl_transformer_settings *settings) {
    size_t hidden = sherl_graph_channels(block->graph, x);
    double scale = 1 / sqrt((double)(hidden / settings->heads));
    sherl_value query = layer_linear(block, "query.weight", "query.bias", x, hidden, w->query_weight, w->query_bias,
                                     SHERL_IDENTITY, settings->bfloat16);
    sherl_value key = layer_linear(block, "key.weight", "key.bias", x, hidden, w->key_weight, w->key_bias,
                                   SHERL_IDENTITY, settings->bfloat16);
    sherl_value value = layer_linear(block, "value.weight", "value.bias", x, hidden, w->value_weight, w->value_bias,
                                     SHERL_IDENTITY, settings->bfloat16);
    sherl_value mixed = sherl_attention(block->graph, query, key, value, settings->heads, scale, false,
                                        settings->attention_dropout);
    sherl_value output = layer_linear(block, "output.weight", "output.bias", mixed, hidden, w->output_weight,
                                      w->output_bias, SHERL_IDENTITY, settings->bfloat16);
    return sherl_dropout(block->graph, output, settings->dropout);
}

/* f = W_down activation(W_up x + b_up) + b_down, with dropout */
static sherl_value feed_forward(const sherl_block *block, sherl_value x, const sherl_transformer_weights *w,
                                const sherl_transformer_settings *settings) {
    size_t hidden = sherl_graph_channels(block->graph, x);
    sherl_value inner = layer_linear(block, "up.weight", "up.bias", x, settings->intermediate, w->up_weight,
                                     w->up_bias, settings->activation, settings->bfloat16);
    sherl_value output = layer_linear(block, "down.weight", "down.bias", inner, hidden, w->down_weight, w->down_bias,
                                      SHERL_IDENTITY, settings->bfloat16);
    return sherl_dropout(block->graph, output, settings->dropout);
}

/* y = LayerNorm(x + a(x)); out = LayerNorm(y + f(y))   (Devlin et al., 2019) */
sherl_value sherl_transformer_layer(sherl_graph *graph, const char *prefix, sherl_value x,
                                    const sherl_transformer_weights *weights,
                                    const sherl_transformer_settings *settings) {
    static const sherl_transformer_weights none = {0};
    if (!check_settings(graph, x, weights, settings)) return SHERL_NONE;
    sherl_block block = {.graph = graph, .prefix = prefix};
    const sherl_transformer_weights *w = settings->frozen ? weights : &none;
    sherl_value y = sherl_add(graph, self_attention(&block, x, w, settings), x);
    y = layer_norm(&block, "attention_norm.weight", "attention_norm.bias", y, w->attention_norm_weight,
                   w->attention_norm_bias, settings->eps);
    sherl_value out = sherl_add(graph, feed_forward(&block, y, w, settings), y);
    return layer_norm(&block, "feed_forward_norm.weight", "feed_forward_norm.bias", out, w->feed_forward_norm_weight,
                      w->feed_forward_norm_bias, settings->eps);
}
