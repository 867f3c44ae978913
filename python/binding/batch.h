/* A batch as the core takes it, bound from the arguments of a Python call. */
#ifndef SHERL_BINDING_BATCH_H
#define SHERL_BINDING_BATCH_H

#include "module.h"

typedef struct bound_batch {
    sherl_batch core;
    PyObject *held;                  /* list that keeps every array of the call alive */
    const size_t **offsets, **grids; /* by row space */
    size_t *rows;                    /* by row space */
    sherl_source *inputs, *cotangents;
    sherl_sink *outputs, *input_gradients;
} bound_batch;

/* The arguments that bring a batch; NULL or None where one was left out. */
typedef struct batch_arguments {
    size_t samples;
    PyObject *offsets, *inputs, *outputs, *cotangents, *input_gradients;
    uint64_t seed, step;
} batch_arguments;

/* Checks the arguments against what the program takes. False with an exception set; release the batch in any case. */
bool batch_bind(bound_batch *batch, const ProgramObject *program, const batch_arguments *given);
/* The same for the samples and offsets alone. */
bool batch_bind_offsets(bound_batch *batch, const ProgramObject *program, const batch_arguments *given);
void batch_release(bound_batch *batch);

#endif
