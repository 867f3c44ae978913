/* Task heads: pool each sample's rows, then map them linearly. */
#include "block.h"

sherl_value sherl_head(sherl_graph *graph, const char *prefix, sherl_value x, const sherl_head_settings *settings) {
    if (!sherl_check_value(graph, "head", "x", x, false)) return SHERL_NONE;
    if (settings->outputs == 0)
        return sherl_graph_fail(graph, SHERL_INVALID_ARGUMENT, "head: outputs must be at least 1");
    sherl_block block = {.graph = graph, .prefix = prefix};
    bool rows_to_pool = sherl_graph_value_space(graph, x) != SHERL_SAMPLES;
    sherl_value pooled = x;
    if (rows_to_pool)
        pooled = settings->pooling == SHERL_POOL_POSITION ? sherl_select(graph, x, settings->positions)
                                                          : sherl_pool(graph, x, settings->pooling);
    if (settings->pooler)
        pooled = sherl_block_linear(&block, "pooler", SHERL_NONE, "", pooled, sherl_graph_channels(graph, x),
                                    SHERL_TANH);
    pooled = sherl_dropout(graph, pooled, settings->dropout);
    return sherl_block_linear(&block, "", SHERL_NONE, "", pooled, settings->outputs, SHERL_IDENTITY);
}
