/* The graph-building function of each op: checks its operands, then appends it. */
#include "graph.h"

static const char *const pooling_names[SHERL_POOLING_COUNT] = {"first", "mean", "max", "last", "position"};

/* Appends a row-wise op of the shape of its input 0. */
static sherl_value append_like_input(sherl_graph *graph, sherl_op *op) {
    const sherl_value_info *input = sherl_graph_value(graph, op->inputs[0]);
    return sherl_graph_append(graph, op, input->space, input->channels, SHERL_SAMPLES, 0, false);
}

static bool check_activation(sherl_graph *graph, const char *op, sherl_activation activation) {
    if (graph->status != SHERL_OK) return false;
    if ((unsigned)activation < SHERL_ACTIVATION_COUNT) return true;
    sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: there is no activation %d", op, (int)activation);
    return false;
}

/* An activation whose derivative the output tells needs no extra value, so it rides on the linear op. */
static bool output_tells_derivative(sherl_activation activation) {
    return activation == SHERL_IDENTITY || activation == SHERL_RELU || activation == SHERL_SIGMOID ||
           activation == SHERL_TANH;
}

static bool check_bfloat16(sherl_graph *graph, sherl_parameter weight) {
    if (!sherl_context_has_bfloat16(graph->context))
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT,
                         "bfloat16 products are not available on this processor: they need the AVX512-BF16 "
                         "instructions, and the float32 core");
    else if (sherl_parameters_role(graph->parameters, weight) != SHERL_FROZEN)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "bfloat16 products need a frozen weight, not a trained one");
    return graph->status == SHERL_OK;
}

static sherl_value append_linear(sherl_graph *graph, sherl_value x, sherl_parameter weight, sherl_parameter bias,
                                 sherl_activation activation, bool bfloat16) {
    if (!check_activation(graph, "linear", activation)) return SHERL_NONE;
    if (!sherl_check_value(graph, "linear", "x", x, false)) return SHERL_NONE;
    const sherl_value_info *input = sherl_graph_value(graph, x);
    if (weight >= sherl_parameters_count(graph->parameters))
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "linear: weight is not a parameter of this graph");
    size_t outputs = sherl_parameters_rows(graph->parameters, weight);
    if (!sherl_check_parameter(graph, "linear", "weight", weight, outputs, input->channels)) return SHERL_NONE;
    if (bias != SHERL_NONE && !sherl_check_parameter(graph, "linear", "bias", bias, 1, outputs)) return SHERL_NONE;
    if (bfloat16 && !check_bfloat16(graph, weight)) return SHERL_NONE;
    bool fused = output_tells_derivative(activation);
    sherl_op op = {.type = &sherl_linear_type,
                   .input_count = 1,
                   .inputs = {x},
                   .parameter_count = 2,
                   .parameters = {weight, bias},
                   .bfloat16 = bfloat16,
                   .settings.activation = fused ? activation : SHERL_IDENTITY};
    sherl_value y = sherl_graph_append(graph, &op, input->space, outputs, SHERL_SAMPLES, 0, false);
    return fused ? y : sherl_activate(graph, y, activation);
}

sherl_value sherl_linear(sherl_graph *graph, sherl_value x, sherl_parameter weight, sherl_parameter bias,
                         sherl_activation activation) {
    return append_linear(graph, x, weight, bias, activation, false);
}

sherl_value sherl_bfloat16_linear(sherl_graph *graph, sherl_value x, sherl_parameter weight, sherl_parameter bias,
                                  sherl_activation activation) {
    return append_linear(graph, x, weight, bias, activation, true);
}

sherl_value sherl_activate(sherl_graph *graph, sherl_value x, sherl_activation activation) {
    if (!check_activation(graph, "activate", activation)) return SHERL_NONE;
    if (!sherl_check_value(graph, "activate", "x", x, false)) return SHERL_NONE;
    if (activation == SHERL_IDENTITY) return x;
    sherl_op op = {.type = &sherl_activation_type, .input_count = 1, .inputs = {x}, .settings.activation = activation};
    return append_like_input(graph, &op);
}

sherl_value sherl_layer_norm(sherl_graph *graph, sherl_value x, sherl_parameter weight, sherl_parameter bias,
                             double eps) {
    if (!sherl_check_value(graph, "layer norm", "x", x, false)) return SHERL_NONE;
    sherl_value_info input = *sherl_graph_value(graph, x);
    if (!sherl_check_parameter(graph, "layer norm", "weight", weight, 1, input.channels) ||
        (bias != SHERL_NONE && !sherl_check_parameter(graph, "layer norm", "bias", bias, 1, input.channels)) ||
        !sherl_check_number(graph, "layer norm", "eps", eps, 0, 1))
        return SHERL_NONE;
    sherl_op op = {.type = &sherl_layer_norm_type,
                   .input_count = 1,
                   .inputs = {x},
                   .parameter_count = 2,
                   .parameters = {weight, bias},
                   .settings.norm = {.eps = eps}};
    return sherl_graph_append(graph, &op, input.space, input.channels, input.space, 2, false);
}

sherl_value sherl_rms_norm(sherl_graph *graph, sherl_value x, sherl_parameter weight, double eps) {
    if (!sherl_check_value(graph, "RMS norm", "x", x, false)) return SHERL_NONE;
    sherl_value_info input = *sherl_graph_value(graph, x);
    if (!sherl_check_parameter(graph, "RMS norm", "weight", weight, 1, input.channels) ||
        !sherl_check_number(graph, "RMS norm", "eps", eps, 0, 1))
        return SHERL_NONE;
    sherl_op op = {.type = &sherl_rms_norm_type,
                   .input_count = 1,
                   .inputs = {x},
                   .parameter_count = 1,
                   .parameters = {weight},
                   .settings.norm = {.eps = eps}};
    return sherl_graph_append(graph, &op, input.space, input.channels, input.space, 1, false);
}

sherl_value sherl_batch_norm(sherl_graph *graph, sherl_value x, sherl_parameter weight, sherl_parameter bias,
                             sherl_parameter running_mean, sherl_parameter running_variance, double eps,
                             double momentum) {
    if (!sherl_check_value(graph, "batch norm", "x", x, false)) return SHERL_NONE;
    sherl_value_info input = *sherl_graph_value(graph, x);
    if (!sherl_check_parameter(graph, "batch norm", "weight", weight, 1, input.channels) ||
        !sherl_check_parameter(graph, "batch norm", "bias", bias, 1, input.channels) ||
        !sherl_check_parameter(graph, "batch norm", "running mean", running_mean, 1, input.channels) ||
        !sherl_check_parameter(graph, "batch norm", "running variance", running_variance, 1, input.channels) ||
        !sherl_check_number(graph, "batch norm", "eps", eps, 0, 1) ||
        !sherl_check_number(graph, "batch norm", "momentum", momentum, 0, 1.0000001))
        return SHERL_NONE;
    sherl_op op = {.type = graph->training ? &sherl_batch_norm_type : &sherl_fixed_batch_norm_type,
                   .input_count = 1,
                   .inputs = {x},
                   .parameter_count = 4,
                   .parameters = {weight, bias, running_mean, running_variance},
                   .settings.norm = {.eps = eps, .momentum = momentum}};
    return sherl_graph_append(graph, &op, input.space, input.channels, SHERL_SAMPLES,
                              graph->training ? 2 * input.channels : 0, false);
}

sherl_value sherl_dropout(sherl_graph *graph, sherl_value x, double rate) {
    if (!sherl_check_value(graph, "dropout", "x", x, false) ||
        !sherl_check_number(graph, "dropout", "rate", rate, 0, 1))
        return SHERL_NONE;
    uint32_t stream = graph->next_stream++; /* taken even when unused: the draws of later ops do not depend on rates */
    if (!graph->training || rate == 0) return x;
    sherl_op op = {.type = &sherl_dropout_type,
                   .input_count = 1,
                   .inputs = {x},
                   .stream = stream,
                   .settings.dropout = {.rate = rate}};
    return append_like_input(graph, &op);
}

static sherl_value append_pairwise(sherl_graph *graph, const char *name, sherl_op op, sherl_value a, sherl_value b) {
    if (!sherl_check_value(graph, name, "a", a, false) || !sherl_check_value(graph, name, "b", b, false) ||
        !sherl_check_same_rows(graph, name, a, b) ||
        !sherl_check_channels(graph, name, "b", b, sherl_graph_value(graph, a)->channels))
        return SHERL_NONE;
    op.input_count = 2;
    op.inputs[0] = a;
    op.inputs[1] = b;
    return append_like_input(graph, &op);
}

sherl_value sherl_add(sherl_graph *graph, sherl_value a, sherl_value b) {
    return append_pairwise(graph, "add", (sherl_op){.type = &sherl_add_type}, a, b);
}

sherl_value sherl_multiply(sherl_graph *graph, sherl_value a, sherl_value b) {
    return append_pairwise(graph, "multiply", (sherl_op){.type = &sherl_multiply_type}, a, b);
}

sherl_value sherl_gated(sherl_graph *graph, sherl_value gate, sherl_value x, sherl_activation activation) {
    if (!check_activation(graph, "gated", activation)) return SHERL_NONE;
    if (gate == x) return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "gated: gate and x must be two values");
    return append_pairwise(graph, "gated", (sherl_op){.type = &sherl_gated_type, .settings.activation = activation},
                           gate, x);
}

sherl_value sherl_scale_channels(sherl_graph *graph, sherl_value x, sherl_parameter scale) {
    if (!sherl_check_value(graph, "scale", "x", x, false) ||
        !sherl_check_parameter(graph, "scale", "scale", scale, 1, sherl_graph_value(graph, x)->channels))
        return SHERL_NONE;
    sherl_op op = {.type = &sherl_scale_channels_type,
                   .input_count = 1,
                   .inputs = {x},
                   .parameter_count = 1,
                   .parameters = {scale}};
    return append_like_input(graph, &op);
}

sherl_value sherl_embedding(sherl_graph *graph, sherl_value indices, sherl_parameter table) {
    if (!sherl_check_value(graph, "embedding", "indices", indices, true)) return SHERL_NONE;
    if (table >= sherl_parameters_count(graph->parameters))
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "embedding: table is not a parameter of this graph");
    sherl_op op = {.type = &sherl_embedding_type,
                   .input_count = 1,
                   .inputs = {indices},
                   .parameter_count = 1,
                   .parameters = {table}};
    return sherl_graph_append(graph, &op, sherl_graph_value(graph, indices)->space,
                              sherl_parameters_columns(graph->parameters, table), SHERL_SAMPLES, 0, false);
}

sherl_value sherl_table(sherl_graph *graph, sherl_parameter table, sherl_space space) {
    if (graph->status != SHERL_OK) return SHERL_NONE;
    if (table >= sherl_parameters_count(graph->parameters))
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "table: it is not a parameter of this graph");
    if (space == SHERL_SAMPLES || space >= graph->network.space_count)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "table: there is no row space %u of segments", space);
    sherl_op op = {.type = &sherl_table_type, .parameter_count = 1, .parameters = {table}};
    return sherl_graph_append(graph, &op, space, sherl_parameters_columns(graph->parameters, table), SHERL_SAMPLES, 0,
                              false);
}

static bool check_rotary_scaling(sherl_graph *graph, const sherl_rotary_scaling *scaling) {
    if (scaling->factor == 0) return true;
    if (!sherl_check_number(graph, "rotary", "factor", scaling->factor, 1, 1e6) ||
        !sherl_check_number(graph, "rotary", "original", scaling->original, 0, 1e12) ||
        !sherl_check_number(graph, "rotary", "low", scaling->low, 0, 1e6) ||
        !sherl_check_number(graph, "rotary", "high", scaling->high, 0, 1e6))
        return false;
    if (scaling->original > 0 && scaling->low >= scaling->high)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "rotary: low must be less than high, not %g and %g",
                         scaling->low, scaling->high);
    return graph->status == SHERL_OK;
}

sherl_value sherl_rotary(sherl_graph *graph, sherl_value x, size_t heads, size_t dimensions, double theta,
                         const sherl_rotary_scaling *scaling) {
    if (!sherl_check_value(graph, "rotary", "x", x, false) ||
        !sherl_check_number(graph, "rotary", "theta", theta, 1, 1e12) || !check_rotary_scaling(graph, scaling))
        return SHERL_NONE;
    size_t channels = sherl_graph_value(graph, x)->channels;
    if (heads == 0 || channels % heads != 0)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "rotary: %zu heads do not divide %zu channels", heads,
                                channels);
    if (dimensions == 0 || dimensions % 2 != 0 || dimensions > channels / heads)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT,
                                "rotary: dimensions must be even and 2 to the %zu of a head, not %zu", channels / heads,
                                dimensions);
    sherl_op op = {.type = &sherl_rotary_type,
                   .input_count = 1,
                   .inputs = {x},
                   .settings.rotary = {.heads = heads, .dimensions = dimensions, .theta = theta, .scaling = *scaling}};
    return append_like_input(graph, &op);
}

/* At least one exact distance and one wide bucket on each side, and a furthest distance beyond the exact ones. */
static bool check_positions(sherl_graph *graph, const sherl_attention_settings *settings) {
    const sherl_position_buckets *positions = &settings->positions;
    if (positions->buckets == 0) return graph->status == SHERL_OK;
    size_t sides = positions->bidirectional ? 2 : 1, exact = positions->buckets / sides / 2;
    if (exact == 0 || positions->buckets % sides != 0)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "attention: position buckets must be %s, not %zu",
                         sides == 2 ? "even, and 4 or more" : "2 or more", positions->buckets);
    else if (positions->max_distance <= exact)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT,
                         "attention: with %zu position buckets the max distance must be more than %zu, not %zu",
                         positions->buckets, exact, positions->max_distance);
    return sherl_check_parameter(graph, "attention", "position bias", settings->position_bias, positions->buckets,
                                 settings->heads);
}

static bool check_heads(sherl_graph *graph, size_t channels, size_t heads, size_t key_heads) {
    if (graph->status != SHERL_OK) return false;
    if (heads == 0 || channels % heads != 0)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "attention: %zu heads do not divide %zu channels", heads,
                         channels);
    else if (key_heads == 0 || heads % key_heads != 0)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "attention: %zu key heads do not divide %zu heads", key_heads,
                         heads);
    return graph->status == SHERL_OK;
}

sherl_value sherl_attention(sherl_graph *graph, sherl_value query, sherl_value key, sherl_value value,
                            const sherl_attention_settings *settings) {
    if (!sherl_check_value(graph, "attention", "query", query, false) ||
        !sherl_check_value(graph, "attention", "key", key, false) ||
        !sherl_check_value(graph, "attention", "value", value, false) ||
        !sherl_check_same_rows(graph, "attention", key, value) ||
        !sherl_check_number(graph, "attention", "dropout", settings->dropout, 0, 1) ||
        !sherl_check_number(graph, "attention", "scale", settings->scale, 0, 1e6))
        return SHERL_NONE;
    sherl_value_info queries = *sherl_graph_value(graph, query);
    size_t heads = settings->heads, key_heads = settings->key_heads == 0 ? heads : settings->key_heads;
    if (!check_heads(graph, queries.channels, heads, key_heads) || !check_positions(graph, settings)) return SHERL_NONE;
    size_t key_channels = queries.channels / heads * key_heads;
    if (!sherl_check_channels(graph, "attention", "key", key, key_channels) ||
        !sherl_check_channels(graph, "attention", "value", value, key_channels))
        return SHERL_NONE;
    sherl_op op = {.type = &sherl_attention_type,
                   .input_count = 3,
                   .inputs = {query, key, value},
                   .parameter_count = settings->positions.buckets ? 1 : 0,
                   .parameters = {settings->position_bias},
                   .stream = graph->next_stream,
                   .settings.attention = {.heads = heads,
                                          .key_heads = key_heads,
                                          .scale = settings->scale,
                                          .causal = settings->causal,
                                          .positions = settings->positions,
                                          .dropout = graph->training ? settings->dropout : 0}};
    graph->next_stream += (uint32_t)heads; /* one stream a head */
    return sherl_graph_append(graph, &op, queries.space, queries.channels, queries.space, heads, false);
}

static bool check_rows_to_pool(sherl_graph *graph, sherl_value x, sherl_pooling pooling) {
    if (!sherl_check_value(graph, "pool", "x", x, false)) return false;
    if (sherl_graph_value(graph, x)->space == SHERL_SAMPLES)
        sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "pool (%s): x has one row a sample already",
                         pooling_names[pooling]);
    return graph->status == SHERL_OK;
}

static sherl_value append_select(sherl_graph *graph, sherl_value x, sherl_selection selection) {
    sherl_op op = {.type = &sherl_select_type, .input_count = 1, .inputs = {x}};
    sherl_status status = sherl_network_add_selection(&graph->network, selection, &op.selection);
    if (status) return sherl_graph_fail(graph, status, "%s", sherl_status_text(status));
    return sherl_graph_append(graph, &op, SHERL_SAMPLES, sherl_graph_value(graph, x)->channels, SHERL_SAMPLES, 0,
                              false);
}

sherl_value sherl_pool(sherl_graph *graph, sherl_value x, sherl_pooling pooling) {
    if (graph->status != SHERL_OK) return SHERL_NONE;
    if ((unsigned)pooling >= SHERL_POOLING_COUNT)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "pool: there is no pooling %d", (int)pooling);
    if (pooling == SHERL_POOL_POSITION)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "pool (position): needs positions, which select takes");
    if (!check_rows_to_pool(graph, x, pooling)) return SHERL_NONE;
    sherl_value_info input = *sherl_graph_value(graph, x);
    if (pooling == SHERL_POOL_FIRST) return append_select(graph, x, sherl_first_rows);
    if (pooling == SHERL_POOL_LAST)
        return append_select(graph, x,
                             (sherl_selection){.row = SHERL_POOL_LAST, .space = input.space, .positions = SHERL_NONE});
    bool maximum = pooling == SHERL_POOL_MAX;
    sherl_op op = {.type = maximum ? &sherl_max_type : &sherl_mean_type, .input_count = 1, .inputs = {x}};
    return sherl_graph_append(graph, &op, SHERL_SAMPLES, input.channels, SHERL_SAMPLES, maximum ? input.channels : 0,
                              true);
}

sherl_value sherl_select(sherl_graph *graph, sherl_value x, sherl_value positions) {
    if (!check_rows_to_pool(graph, x, SHERL_POOL_POSITION) ||
        !sherl_check_value(graph, "select", "positions", positions, true))
        return SHERL_NONE;
    const sherl_value_info *given = sherl_graph_value(graph, positions);
    if (given->space != SHERL_SAMPLES)
        return sherl_graph_fail(graph, SHERL_SHAPE_MISMATCH, "select: positions must have one row a sample");
    return append_select(graph, x,
                         (sherl_selection){.row = SHERL_POOL_POSITION,
                                           .space = sherl_graph_value(graph, x)->space,
                                           .positions = given->input});
}

sherl_value sherl_rank_encoding(sherl_graph *graph, sherl_value x, size_t channels) {
    if (!sherl_check_value(graph, "rank encoding", "x", x, false)) return SHERL_NONE;
    if (channels == 0 || channels % 4 != 0)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT,
                                "rank encoding: channels must be a multiple of 4, not %zu", channels);
    sherl_op op = {.type = &sherl_rank_encoding_type, .input_count = 1, .inputs = {x}};
    return sherl_graph_append(graph, &op, sherl_graph_value(graph, x)->space, channels, SHERL_SAMPLES, 0, false);
}

sherl_value sherl_sorted_pool(sherl_graph *graph, sherl_value x, sherl_value scores) {
    if (!sherl_check_value(graph, "sorted pool", "x", x, false) ||
        !sherl_check_value(graph, "sorted pool", "scores", scores, false) ||
        !sherl_check_same_rows(graph, "sorted pool", x, scores) ||
        !sherl_check_channels(graph, "sorted pool", "scores", scores, 1))
        return SHERL_NONE;
    sherl_value_info input = *sherl_graph_value(graph, x);
    if (input.space == SHERL_SAMPLES)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "sorted pool: x has one row a sample already");
    sherl_op op = {.type = &sherl_sorted_pool_type, .input_count = 2, .inputs = {x, scores}};
    return sherl_graph_append(graph, &op, SHERL_SAMPLES, input.channels, input.space, input.channels, true);
}

sherl_value sherl_l2_normalize(sherl_graph *graph, sherl_value x, double eps) {
    if (!sherl_check_value(graph, "l2 normalize", "x", x, false) ||
        !sherl_check_number(graph, "l2 normalize", "eps", eps, 0, 1))
        return SHERL_NONE;
    sherl_op op = {.type = &sherl_l2_normalize_type, .input_count = 1, .inputs = {x}, .settings.norm = {.eps = eps}};
    return append_like_input(graph, &op);
}

sherl_value sherl_amplify(sherl_graph *graph, sherl_value x, sherl_parameter logarithm, double initial) {
    if (!sherl_check_value(graph, "amplify", "x", x, false) ||
        !sherl_check_parameter(graph, "amplify", "logarithm", logarithm, 1, 1) ||
        !sherl_check_number(graph, "amplify", "initial", initial, 1e-6, 1e6))
        return SHERL_NONE;
    sherl_op op = {.type = &sherl_amplify_type,
                   .input_count = 1,
                   .inputs = {x},
                   .parameter_count = 1,
                   .parameters = {logarithm},
                   .settings.amplify = {.initial = initial}};
    return append_like_input(graph, &op);
}

sherl_value sherl_concatenate(sherl_graph *graph, const sherl_value *values, size_t count) {
    if (graph->status != SHERL_OK) return SHERL_NONE;
    if (count < 1 || count > SHERL_MAX_INPUTS)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "concatenate: needs 1 to %d values, not %zu",
                                SHERL_MAX_INPUTS, count);
    sherl_op op = {.type = &sherl_concatenate_type, .input_count = (uint32_t)count};
    size_t channels = 0;
    for (size_t i = 0; i < count; i++) {
        if (!sherl_check_value(graph, "concatenate", "a value", values[i], false) ||
            !sherl_check_same_rows(graph, "concatenate", values[0], values[i]))
            return SHERL_NONE;
        if (!sherl_add_sizes(channels, sherl_graph_value(graph, values[i])->channels, &channels))
            return sherl_graph_fail(graph, SHERL_SIZE_OVERFLOW, "concatenate: too many channels");
        op.inputs[i] = values[i];
    }
    return sherl_graph_append(graph, &op, sherl_graph_value(graph, values[0])->space, channels, SHERL_SAMPLES, 0,
                              false);
}

sherl_value sherl_guidance(sherl_graph *graph, const sherl_value *features, size_t count, sherl_parameter weight,
                           sherl_parameter bias, double eps, bool add_guide) {
    if (graph->status != SHERL_OK) return SHERL_NONE;
    if (count < 2 || count > SHERL_MAX_INPUTS)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "guidance: needs 2 to %d features, not %zu",
                                SHERL_MAX_INPUTS, count);
    sherl_op op = {.type = &sherl_guidance_type,
                   .input_count = (uint32_t)count,
                   .parameter_count = 2,
                   .parameters = {weight, bias},
                   .settings.guidance = {.eps = eps, .add_guide = add_guide}};
    for (size_t i = 0; i < count; i++) {
        if (!sherl_check_value(graph, "guidance", "a feature", features[i], false) ||
            !sherl_check_same_rows(graph, "guidance", features[0], features[i]) ||
            !sherl_check_channels(graph, "guidance", "a feature", features[i],
                                  sherl_graph_value(graph, features[0])->channels))
            return SHERL_NONE;
        op.inputs[i] = features[i];
    }
    size_t hidden = sherl_graph_value(graph, features[0])->channels;
    if (!sherl_check_parameter(graph, "guidance", "weight", weight, 1, hidden) ||
        !sherl_check_parameter(graph, "guidance", "bias", bias, 1, 1) ||
        !sherl_check_number(graph, "guidance", "eps", eps, 0, 1))
        return SHERL_NONE;
    return append_like_input(graph, &op);
}

sherl_value sherl_gated_residual(sherl_graph *graph, sherl_value x, sherl_value last, sherl_parameter gate,
                                 double temperature) {
    if (!sherl_check_number(graph, "gated residual", "temperature", temperature, 1e-6, 1e6) ||
        !sherl_check_parameter(graph, "gated residual", "gate", gate, 1, 1) ||
        !sherl_check_value(graph, "gated residual", "x", x, false) ||
        !sherl_check_value(graph, "gated residual", "last", last, false) ||
        !sherl_check_same_rows(graph, "gated residual", x, last) ||
        !sherl_check_channels(graph, "gated residual", "last", last, sherl_graph_value(graph, x)->channels))
        return SHERL_NONE;
    sherl_op op = {.type = &sherl_gate_type,
                   .input_count = 2,
                   .inputs = {x, last},
                   .parameter_count = 1,
                   .parameters = {gate},
                   .settings.gate = {.temperature = temperature}};
    return append_like_input(graph, &op);
}

/* Targets and weights come from outside: a gradient never enters them. */
static bool check_given(sherl_graph *graph, const char *op, const char *what, sherl_value value) {
    if (graph->status != SHERL_OK) return false;
    uint32_t input = sherl_graph_value(graph, value)->input;
    if (input != SHERL_NONE && !graph->network.inputs[input].needs_gradient) return true;
    sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: %s must be an input without gradient", op, what);
    return false;
}

static bool check_loss(sherl_graph *graph, const char *name, const sherl_op *op, bool integer_targets) {
    sherl_value predictions = op->inputs[0], targets = op->inputs[1], weights = op->inputs[2];
    return sherl_check_value(graph, name, "predictions", predictions, false) &&
           sherl_check_value(graph, name, "targets", targets, integer_targets) &&
           sherl_check_value(graph, name, "weights", weights, false) &&
           sherl_check_same_rows(graph, name, predictions, targets) &&
           sherl_check_same_rows(graph, name, predictions, weights) &&
           sherl_check_channels(graph, name, "targets", targets,
                                integer_targets ? 1 : sherl_graph_value(graph, predictions)->channels) &&
           sherl_check_channels(graph, name, "weights", weights, 1) && check_given(graph, name, "targets", targets) &&
           check_given(graph, name, "weights", weights);
}

static sherl_value append_loss(sherl_graph *graph, const char *name, sherl_op *op, bool integer_targets) {
    sherl_value predictions = op->inputs[0];
    if (!check_loss(graph, name, op, integer_targets)) return SHERL_NONE;
    return sherl_graph_append(graph, op, sherl_graph_value(graph, predictions)->space, 1, SHERL_SAMPLES, 0, false);
}

sherl_value sherl_cross_entropy(sherl_graph *graph, sherl_value logits, sherl_value target_indices, sherl_value weights,
                                sherl_parameter class_weights, double label_smoothing) {
    if (!sherl_check_value(graph, "cross-entropy", "logits", logits, false) ||
        !sherl_check_number(graph, "cross-entropy", "label smoothing", label_smoothing, 0, 1))
        return SHERL_NONE;
    if (class_weights != SHERL_NONE) {
        size_t classes = sherl_graph_value(graph, logits)->channels;
        if (!sherl_check_parameter(graph, "cross-entropy", "class weights", class_weights, 1, classes))
            return SHERL_NONE;
        if (sherl_parameters_role(graph->parameters, class_weights) == SHERL_TRAINABLE)
            return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "cross-entropy: class weights cannot be trained");
    }
    sherl_op op = {.type = &sherl_cross_entropy_type,
                   .input_count = 3,
                   .inputs = {logits, target_indices, weights},
                   .parameter_count = 1,
                   .parameters = {class_weights},
                   .settings.cross_entropy = {.label_smoothing = label_smoothing}};
    return append_loss(graph, "cross-entropy", &op, true);
}

sherl_value sherl_vocabulary_cross_entropy(sherl_graph *graph, sherl_value x, sherl_value target_indices,
                                           sherl_value weights, sherl_parameter table,
                                           const sherl_vocabulary_settings *settings) {
    static const char name[] = "vocabulary cross-entropy";
    if (!sherl_check_value(graph, name, "x", x, false) ||
        !sherl_check_number(graph, name, "label smoothing", settings->label_smoothing, 0, 1))
        return SHERL_NONE;
    if (table >= sherl_parameters_count(graph->parameters))
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: table is not a parameter of this graph", name);
    const size_t words = sherl_parameters_rows(graph->parameters, table);
    if (!sherl_check_parameter(graph, name, "table", table, words, sherl_graph_value(graph, x)->channels))
        return SHERL_NONE;
    if (sherl_parameters_role(graph->parameters, table) != SHERL_FROZEN)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: table must be frozen", name);
    if (settings->bfloat16 && !check_bfloat16(graph, table)) return SHERL_NONE;
    sherl_op op = {.type = settings->best ? &sherl_vocabulary_best_type : &sherl_vocabulary_loss_type,
                   .input_count = 3,
                   .inputs = {x, target_indices, weights},
                   .parameter_count = 1,
                   .parameters = {table},
                   .bfloat16 = settings->bfloat16,
                   .settings.vocabulary_loss = {.label_smoothing = settings->label_smoothing, .vocabulary = words}};
    if (!check_loss(graph, name, &op, true)) return SHERL_NONE;
    const sherl_value_info input = *sherl_graph_value(graph, x);
    return sherl_graph_append(graph, &op, input.space, settings->best ? 2 : 1, input.space,
                              settings->best ? 0 : input.channels, false);
}

sherl_value sherl_binary_cross_entropy(sherl_graph *graph, sherl_value logits, sherl_value targets,
                                       sherl_value weights) {
    sherl_op op = {.type = &sherl_binary_cross_entropy_type, .input_count = 3, .inputs = {logits, targets, weights}};
    return append_loss(graph, "binary cross-entropy", &op, false);
}

sherl_value sherl_squared_error(sherl_graph *graph, sherl_value predictions, sherl_value targets, sherl_value weights) {
    sherl_op op = {.type = &sherl_squared_error_type, .input_count = 3, .inputs = {predictions, targets, weights}};
    return append_loss(graph, "squared error", &op, false);
}

sherl_value sherl_row_cross_entropy(sherl_graph *graph, sherl_value logits, const sherl_value *target_rows,
                                    sherl_value weights) {
    static const char name[] = "row cross-entropy";
    if (!sherl_check_value(graph, name, "logits", logits, false) ||
        !sherl_check_value(graph, name, "weights", weights, false) ||
        !sherl_check_channels(graph, name, "weights", weights, 1) || !check_given(graph, name, "weights", weights))
        return SHERL_NONE;
    const size_t channels = sherl_graph_value(graph, logits)->channels;
    if (channels + 2 > SHERL_MAX_INPUTS)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "%s: logits must have at most %d channels, not %zu",
                                name, SHERL_MAX_INPUTS - 2, channels);
    sherl_op op = {.type = &sherl_row_cross_entropy_type, .input_count = (uint32_t)channels + 2, .inputs = {logits}};
    op.inputs[channels + 1] = weights;
    for (size_t c = 0; c < channels; c++) {
        if (!sherl_check_value(graph, name, "target rows", target_rows[c], true) ||
            !sherl_check_same_rows(graph, name, weights, target_rows[c]))
            return SHERL_NONE;
        op.inputs[c + 1] = target_rows[c];
    }
    if (sherl_graph_value(graph, weights)->space != SHERL_SAMPLES)
        return sherl_graph_fail(graph, SHERL_SHAPE_MISMATCH, "%s: weights must have one row a sample", name);
    return sherl_graph_append(graph, &op, SHERL_SAMPLES, 1, SHERL_SAMPLES, 0, false);
}
