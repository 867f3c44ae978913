/* What graph.c and graph_blocks.c share. */
#ifndef SHERL_BINDING_GRAPH_H
#define SHERL_BINDING_GRAPH_H

#include "arguments.h"

extern const char *const activation_names[]; /* by sherl_activation */
extern const char *const pooling_names[];    /* by sherl_pooling */

/* A handle that a builder returned as a Python integer, or the graph's error raised. */
PyObject *graph_result(GraphObject *self, uint32_t handle);

/* Handles out of a sequence of integers; release them with PyMem_Free. */
bool parse_handles(const char *name, PyObject *object, uint32_t **handles, size_t *count);

/* Methods of graph_images.c. */
PyObject *graph_convolution(GraphObject *self, PyObject *args, PyObject *keywords);
PyObject *graph_window_pool(GraphObject *self, PyObject *args, PyObject *keywords);
PyObject *graph_spatial_guidance(GraphObject *self, PyObject *args, PyObject *keywords);
PyObject *graph_bottleneck(GraphObject *self, PyObject *args, PyObject *keywords);
PyObject *graph_basic_block(GraphObject *self, PyObject *args, PyObject *keywords);

extern const char *const base_names[]; /* by sherl_base */

/* Methods that add whole blocks. */
PyObject *graph_mtsa(GraphObject *self, PyObject *args, PyObject *keywords);
PyObject *graph_mtsa_features(GraphObject *self, PyObject *args, PyObject *keywords);
PyObject *graph_transformer_layer(GraphObject *self, PyObject *args, PyObject *keywords);
PyObject *graph_head(GraphObject *self, PyObject *args, PyObject *keywords);
PyObject *graph_embedder(GraphObject *self, PyObject *args, PyObject *keywords);
PyObject *graph_detector(GraphObject *self, PyObject *args, PyObject *keywords);

#endif
