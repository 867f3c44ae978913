/* What all blocks use: parameters under a prefix, and the linear and norm maps made of them. */
#ifndef SHERL_MODULES_BLOCK_H
#define SHERL_MODULES_BLOCK_H

#include "../program/graph.h"

/* A block under construction: where its parameters go. `number` below distinguishes repeated parts ("down.3.weight");
 * SHERL_NONE leaves it out. */
typedef struct sherl_block {
    sherl_graph *graph;
    const char *prefix;
} sherl_block;

/* A trainable parameter named prefix + part[.number] + "." + suffix. */
sherl_parameter sherl_block_parameter(const sherl_block *block, const char *part, uint32_t number, const char *suffix,
                                      size_t rows, size_t columns, sherl_initializer initializer);
/* activation(x W^T + b) with W drawn (Xavier) and b zero: "….weight", "….bias". An empty part names them directly. */
sherl_value sherl_block_linear(const sherl_block *block, const char *part, uint32_t number, const char *suffix,
                               sherl_value x, size_t outputs, sherl_activation activation);
/* Layer norm with weight one and bias zero. */
sherl_value sherl_block_layer_norm(const sherl_block *block, const char *part, uint32_t number, const char *suffix,
                                   sherl_value x, double eps);
/* Batch norm with weight one, bias zero, and running statistics as ever at the start: "….running_mean" zero,
 * "….running_var" one. */
sherl_value sherl_block_batch_norm(const sherl_block *block, const char *part, uint32_t number, const char *suffix,
                                   sherl_value x, double eps, double momentum);

#endif
