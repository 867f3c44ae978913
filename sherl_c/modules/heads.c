/* Task heads: linear maps of each sample's pooled rows or of every row; embeddings; boxes. */
#include "block.h"

#include <stdio.h>

sherl_value sherl_head(sherl_graph *graph, const char *prefix, sherl_value x, const sherl_head_settings *settings) {
    if (!sherl_check_value(graph, "head", "x", x, false)) return SHERL_NONE;
    if (settings->outputs == 0)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "head: outputs must be at least 1");
    sherl_block block = {.graph = graph, .prefix = prefix};
    bool rows_to_pool = !settings->each_row && sherl_graph_value_space(graph, x) != SHERL_SAMPLES;
    sherl_value pooled = x;
    if (rows_to_pool)
        pooled = settings->pooling == SHERL_POOL_POSITION ? sherl_select(graph, x, settings->positions)
                                                          : sherl_pool(graph, x, settings->pooling);
    if (settings->pooler)
        pooled =
            sherl_block_linear(&block, "pooler", SHERL_NONE, "", pooled, sherl_graph_channels(graph, x), SHERL_TANH);
    pooled = sherl_dropout(graph, pooled, settings->dropout);
    return sherl_block_linear(&block, "", SHERL_NONE, "", pooled, settings->outputs, SHERL_IDENTITY);
}

enum { RANK_CHANNELS = 32, RANK_HIDDEN = 16 };

static sherl_value pool_by_rank(const sherl_block *block, const char *part, sherl_value x) {
    sherl_graph *graph = block->graph;
    sherl_value ranks = sherl_rank_encoding(graph, x, RANK_CHANNELS);
    char hidden[64], score[64];
    snprintf(hidden, sizeof hidden, "%s%shidden", part, *part ? "." : "");
    snprintf(score, sizeof score, "%s%sscore", part, *part ? "." : "");
    ranks = sherl_block_linear(block, hidden, SHERL_NONE, "", ranks, RANK_HIDDEN, SHERL_RELU);
    sherl_parameter weight =
        sherl_block_parameter(block, score, SHERL_NONE, "weight", 1, RANK_HIDDEN, SHERL_INIT_ZEROS);
    /* A bias would leave the softmax over the ranks as it is. */
    sherl_value scores = sherl_linear(graph, ranks, weight, SHERL_NONE, SHERL_IDENTITY);
    return sherl_sorted_pool(graph, x, scores);
}

sherl_value sherl_generalized_pool(sherl_graph *graph, const char *prefix, sherl_value x) {
    if (!sherl_check_value(graph, "generalized pool", "x", x, false)) return SHERL_NONE;
    return pool_by_rank(&(sherl_block){.graph = graph, .prefix = prefix}, "", x);
}

sherl_value sherl_embedder(sherl_graph *graph, const char *prefix, sherl_value x,
                           const sherl_embedder_settings *settings) {
    if (!sherl_check_value(graph, "embedder", "x", x, false)) return SHERL_NONE;
    if (settings->outputs == 0)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "embedder: outputs must be at least 1");
    sherl_block block = {.graph = graph, .prefix = prefix};
    bool rows_to_pool = sherl_graph_value_space(graph, x) != SHERL_SAMPLES;
    /* The mean and a single row commute with the linear map, which then has one row a sample. */
    bool pool_later = rows_to_pool && (settings->generalized || settings->pooling == SHERL_POOL_MAX);
    if (rows_to_pool && !pool_later)
        x = settings->pooling == SHERL_POOL_POSITION ? sherl_select(graph, x, settings->positions)
                                                     : sherl_pool(graph, x, settings->pooling);
    x = sherl_dropout(graph, x, settings->dropout);
    x = sherl_block_linear(&block, "", SHERL_NONE, "", x, settings->outputs, SHERL_IDENTITY);
    if (pool_later)
        x = settings->generalized ? pool_by_rank(&block, "pool", x) : sherl_pool(graph, x, settings->pooling);
    if (settings->normalize) x = sherl_l2_normalize(graph, x, settings->eps);
    if (settings->temperature == 0) return x;
    sherl_parameter logarithm =
        sherl_block_parameter(&block, "", SHERL_NONE, "log_scale", SHERL_VECTOR, 1, SHERL_INIT_ZEROS);
    return sherl_amplify(graph, x, logarithm, 1 / settings->temperature);
}

sherl_value sherl_detector(sherl_graph *graph, const char *prefix, sherl_value x,
                           const sherl_detector_settings *settings) {
    if (!sherl_check_value(graph, "detector", "x", x, false)) return SHERL_NONE;
    if (settings->classes < 2 || settings->hidden == 0)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT,
                                "detector: needs 2 classes and 1 hidden channel or more");
    sherl_block block = {.graph = graph, .prefix = prefix};
    x = sherl_dropout(graph, x, settings->dropout);
    sherl_value parts[3], box = x;
    parts[0] = sherl_block_linear(&block, "classes", SHERL_NONE, "", x, settings->classes, SHERL_IDENTITY);
    for (uint32_t i = 0; i < 2; i++) box = sherl_block_linear(&block, "box", i, "", box, settings->hidden, SHERL_RELU);
    parts[1] = sherl_block_linear(&block, "box", 2, "", box, 4, SHERL_SIGMOID);
    if (settings->align == 0) return sherl_concatenate(graph, parts, 2);
    parts[2] = sherl_block_linear(&block, "align", SHERL_NONE, "", x, settings->align, SHERL_IDENTITY);
    parts[2] = sherl_l2_normalize(graph, parts[2], 0);
    return sherl_concatenate(graph, parts, 3);
}
