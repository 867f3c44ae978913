/* Transformer layers of a backbone, frozen or trained, as SHERL's late route or as part of a whole encoder. */
#include <math.h>
#include <stdio.h>

#include "block.h"

enum { NAME_BYTES = 256 };

/* A layer under construction. */
typedef struct layer {
    sherl_graph *graph;
    const char *prefix;
    const sherl_transformer_inputs *inputs;
    const sherl_transformer_weights *weights; /* all NULL where they are trained */
    const sherl_transformer_settings *settings;
    size_t channels;
} layer;

/* The weights of a sublayer's norms, and of its factors. */
typedef struct sublayer {
    const char *name;
    const sherl_map_weights *norm, *after_norm, *scale;
} sublayer;

/* ---- Parameters and the maps made of them ------------------------------------------------------------------------- */

/* The parameter prefix + part + suffix + leaf: a weight matrix (rows > 0) or a vector (rows = SHERL_VECTOR) of the layer,
 * frozen at `data` or trained. */
static sherl_parameter layer_parameter(const layer *l, const char *part, const char *suffix, const char *leaf,
                                       size_t rows, size_t columns, sherl_initializer initializer,
                                       const sherl_real *data) {
    char name[NAME_BYTES];
    int written = snprintf(name, sizeof name, "%s%s%s.%s", l->prefix, part, suffix, leaf);
    if (written < 0 || written >= NAME_BYTES)
        return sherl_graph_fail(l->graph, SHERL_INVALID_ARGUMENT, "transformer layer: the prefix is too long");
    bool frozen = l->settings->frozen;
    if (frozen && !data)
        return sherl_graph_fail(l->graph, SHERL_INVALID_ARGUMENT,
                                "transformer layer: a frozen layer needs all its weights, and %s is missing", name);
    return sherl_graph_parameter(l->graph, name, rows, columns, frozen ? SHERL_FROZEN : SHERL_TRAINABLE, initializer,
                                 frozen ? data : NULL);
}

/* activation(W x + b) */
static sherl_value map(const layer *l, const char *part, const sherl_map_weights *weights, bool has_bias, sherl_value x,
                       size_t outputs, sherl_activation activation) {
    size_t inputs = sherl_graph_channels(l->graph, x);
    sherl_parameter w = layer_parameter(l, part, "", "weight", outputs, inputs, SHERL_INIT_NORMAL, weights->weight);
    sherl_parameter b = SHERL_NONE;
    if (has_bias) b = layer_parameter(l, part, "", "bias", SHERL_VECTOR, outputs, SHERL_INIT_ZEROS, weights->bias);
    return (l->settings->bfloat16 ? sherl_bfloat16_linear : sherl_linear)(l->graph, x, w, b, activation);
}

static sherl_value normalize(const layer *l, const char *part, const char *suffix, const sherl_map_weights *weights,
                             sherl_value x) {
    const sherl_transformer_settings *settings = l->settings;
    sherl_parameter w =
        layer_parameter(l, part, suffix, "weight", SHERL_VECTOR, l->channels, SHERL_INIT_ONES, weights->weight);
    if (settings->norm == SHERL_RMS_NORM) return sherl_rms_norm(l->graph, x, w, settings->eps);
    sherl_parameter b = SHERL_NONE;
    if (settings->norm_bias)
        b = layer_parameter(l, part, suffix, "bias", SHERL_VECTOR, l->channels, SHERL_INIT_ZEROS, weights->bias);
    return sherl_layer_norm(l->graph, x, w, b, settings->eps);
}

/* ---- What all sublayers have: norms, factors, the residual sum ----------------------------------------------------- */

/* What the sublayer reads: N(x), or x itself where the norm comes after the sum. */
static sherl_value enter(const layer *l, const sublayer *s, sherl_value x) {
    return l->settings->placement == SHERL_NORM_POST ? x : normalize(l, s->name, "_norm", s->norm, x);
}

/* post N(x + f), pre x + f, sandwich x + M(f), where f may first be scaled channel by channel */
static sherl_value leave(const layer *l, const sublayer *s, sherl_value x, sherl_value f) {
    f = sherl_dropout(l->graph, f, l->settings->dropout);
    if (l->settings->placement == SHERL_NORM_SANDWICH) f = normalize(l, s->name, "_after_norm", s->after_norm, f);
    if (l->settings->layer_scale)
        f = sherl_scale_channels(l->graph, f,
                                 layer_parameter(l, s->name, "_scale", "weight", SHERL_VECTOR, l->channels,
                                                 SHERL_INIT_ONES, s->scale->weight));
    sherl_value sum = sherl_add(l->graph, f, x);
    return l->settings->placement == SHERL_NORM_POST ? normalize(l, s->name, "_norm", s->norm, sum) : sum;
}

/* ---- Attention ------------------------------------------------------------------------------------------------------ */

static size_t key_heads(const sherl_transformer_settings *settings) {
    return settings->key_heads == 0 ? settings->heads : settings->key_heads;
}
static size_t head_size(const layer *l) {
    return l->settings->head_size == 0 ? l->channels / l->settings->heads : l->settings->head_size;
}

static sherl_value add_positions(const layer *l, sherl_value x, sherl_value positions) {
    return positions == SHERL_NONE ? x : sherl_add(l->graph, x, positions);
}

static sherl_value turn(const layer *l, sherl_value x, size_t heads) {
    const sherl_transformer_settings *settings = l->settings;
    if (settings->rotary_theta == 0) return x;
    size_t dimensions = settings->rotary_dimensions == 0 ? head_size(l) : settings->rotary_dimensions;
    return sherl_rotary(l->graph, x, heads, dimensions, settings->rotary_theta, &settings->rotary_scaling);
}

static sherl_attention_settings attention_settings(const layer *l) {
    const sherl_transformer_settings *settings = l->settings;
    return (sherl_attention_settings){.heads = settings->heads,
                                      .key_heads = key_heads(settings),
                                      .dropout = settings->attention_dropout,
                                      .scale = settings->scale == 0 ? 1 / sqrt((double)head_size(l)) : settings->scale};
}

/* a(n) = W_o attention(W_q (n + p), W_k (n + p), W_v n) + b_o, the queries and keys turned where positions are rotary */
static sherl_value attend_to_self(const layer *l, sherl_value n) {
    const sherl_transformer_settings *settings = l->settings;
    const sherl_transformer_weights *w = l->weights;
    size_t inner = settings->heads * head_size(l), key_inner = key_heads(settings) * head_size(l);
    sherl_value placed = add_positions(l, n, l->inputs->positions);
    sherl_value query = map(l, "query", &w->query, settings->query_bias, placed, inner, SHERL_IDENTITY);
    sherl_value key = map(l, "key", &w->key, settings->query_bias, placed, key_inner, SHERL_IDENTITY);
    sherl_value value = map(l, "value", &w->value, settings->query_bias, n, key_inner, SHERL_IDENTITY);
    sherl_attention_settings attention = attention_settings(l);
    attention.causal = settings->causal;
    attention.positions = settings->positions;
    if (settings->positions.buckets > 0)
        attention.position_bias = layer_parameter(l, "position_bias", "", "weight", settings->positions.buckets,
                                                  settings->heads, SHERL_INIT_ZEROS, w->position_bias.weight);
    sherl_value mixed = sherl_attention(l->graph, turn(l, query, settings->heads), turn(l, key, key_heads(settings)),
                                        value, &attention);
    return map(l, "output", &w->output, settings->output_bias, mixed, l->channels, SHERL_IDENTITY);
}

/* c(n) = W_o attention(W_q (n + p), W_k (m + r), W_v m) + b_o over a memory m with positions r */
static sherl_value attend_to_memory(const layer *l, sherl_value n) {
    const sherl_transformer_settings *settings = l->settings;
    const sherl_transformer_weights *w = l->weights;
    size_t inner = settings->heads * head_size(l), key_inner = key_heads(settings) * head_size(l);
    sherl_value memory = l->inputs->memory;
    sherl_value placed = add_positions(l, n, l->inputs->positions);
    sherl_value placed_memory = add_positions(l, memory, l->inputs->memory_positions);
    sherl_value query = map(l, "cross_query", &w->cross_query, settings->query_bias, placed, inner, SHERL_IDENTITY);
    sherl_value key =
        map(l, "cross_key", &w->cross_key, settings->query_bias, placed_memory, key_inner, SHERL_IDENTITY);
    sherl_value value = map(l, "cross_value", &w->cross_value, settings->query_bias, memory, key_inner, SHERL_IDENTITY);
    sherl_attention_settings attention = attention_settings(l);
    sherl_value mixed = sherl_attention(l->graph, query, key, value, &attention);
    return map(l, "cross_output", &w->cross_output, settings->output_bias, mixed, l->channels, SHERL_IDENTITY);
}

/* ---- Feed-forward --------------------------------------------------------------------------------------------------- */

/* f(n) = W_down activation(W_up n + b_up) + b_down, or gated, with activation(W_gate n + b_gate) * (W_up n + b_up) */
static sherl_value feed_forward(const layer *l, sherl_value n) {
    const sherl_transformer_settings *settings = l->settings;
    const sherl_transformer_weights *w = l->weights;
    bool bias = settings->feed_forward_bias;
    sherl_value inner;
    if (settings->gated) {
        sherl_value gate = map(l, "gate", &w->gate, bias, n, settings->intermediate, SHERL_IDENTITY);
        sherl_value up = map(l, "up", &w->up, bias, n, settings->intermediate, SHERL_IDENTITY);
        inner = sherl_gated(l->graph, gate, up, settings->activation);
    } else {
        inner = map(l, "up", &w->up, bias, n, settings->intermediate, settings->activation);
    }
    return map(l, "down", &w->down, bias, inner, l->channels, SHERL_IDENTITY);
}

/* ---- The layer ------------------------------------------------------------------------------------------------------ */

static bool check_inputs(sherl_graph *graph, const sherl_transformer_inputs *inputs) {
    const char *op = "transformer layer";
    if (!sherl_check_value(graph, op, "x", inputs->x, false)) return false;
    if (inputs->positions != SHERL_NONE && !sherl_check_value(graph, op, "positions", inputs->positions, false))
        return false;
    if (inputs->memory == SHERL_NONE) {
        if (inputs->memory_positions != SHERL_NONE)
            sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: memory positions go with a memory", op);
        return graph->status == SHERL_OK;
    }
    if (!sherl_check_value(graph, op, "memory", inputs->memory, false)) return false;
    return inputs->memory_positions == SHERL_NONE ||
           sherl_check_value(graph, op, "memory positions", inputs->memory_positions, false);
}

static bool check_settings(sherl_graph *graph, size_t channels, const sherl_transformer_settings *settings) {
    const char *op = "transformer layer";
    size_t inner;
    if (settings->heads == 0 || (settings->head_size == 0 && channels % settings->heads != 0))
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: %zu heads do not divide %zu channels", op, settings->heads,
                         channels);
    else if (!sherl_multiply_sizes(settings->heads, settings->head_size, &inner) ||
             !sherl_multiply_sizes(settings->key_heads, settings->head_size, &inner))
        sherl_graph_fail(graph, SHERL_SIZE_OVERFLOW, "%s: heads of %zu channels are too large", op,
                         settings->head_size);
    else if (settings->intermediate == 0)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: intermediate must be at least 1", op);
    else if ((unsigned)settings->placement >= SHERL_NORM_PLACEMENT_COUNT)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: there is no norm placement %d", op,
                         (int)settings->placement);
    else if ((unsigned)settings->norm >= SHERL_NORM_KIND_COUNT)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: there is no norm %d", op, (int)settings->norm);
    return graph->status == SHERL_OK;
}

/* y = x + a(x); with a memory y = y + c(y); out = y + f(y); each with its norms and factors   (Vaswani et al., 2017) */
sherl_value sherl_transformer_layer(sherl_graph *graph, const char *prefix, const sherl_transformer_inputs *inputs,
                                    const sherl_transformer_weights *weights,
                                    const sherl_transformer_settings *settings) {
    static const sherl_transformer_weights none = {0};
    if (!check_inputs(graph, inputs) || !check_settings(graph, sherl_graph_channels(graph, inputs->x), settings))
        return SHERL_NONE;
    const sherl_transformer_weights *w = settings->frozen && weights ? weights : &none;
    layer l = {.graph = graph,
               .prefix = prefix,
               .inputs = inputs,
               .weights = w,
               .settings = settings,
               .channels = sherl_graph_channels(graph, inputs->x)};
    const sublayer attention = {"attention", &w->attention_norm, &w->attention_after_norm, &w->attention_scale};
    const sublayer cross = {"cross", &w->cross_norm, &w->cross_after_norm, &w->cross_scale};
    const sublayer last = {"feed_forward", &w->feed_forward_norm, &w->feed_forward_after_norm, &w->feed_forward_scale};
    sherl_value y = leave(&l, &attention, inputs->x, attend_to_self(&l, enter(&l, &attention, inputs->x)));
    if (inputs->memory != SHERL_NONE) y = leave(&l, &cross, y, attend_to_memory(&l, enter(&l, &cross, y)));
    return leave(&l, &last, y, feed_forward(&l, enter(&l, &last, y)));
}
