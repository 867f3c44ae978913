/* A compiled program: the network after its passes, its schedule, its memory plan and the workspace of its runs. */
#ifndef SHERL_PROGRAM_PROGRAM_H
#define SHERL_PROGRAM_PROGRAM_H

#include "graph.h"

typedef enum sherl_step_kind {
    SHERL_STEP_LOAD,           /* value `index`: rows of a declared input come into reach */
    SHERL_STEP_FORWARD,        /* op `index` */
    SHERL_STEP_STORE,          /* output `index` goes to its sink */
    SHERL_STEP_LOSS,           /* the rows of the loss are summed */
    SHERL_STEP_SEED_LOSS,      /* the gradient of the loss is 1 */
    SHERL_STEP_SEED_OUTPUT,    /* the gradient of output `index` comes from its cotangent */
    SHERL_STEP_BACKWARD,       /* op `index` */
    SHERL_STEP_STORE_GRADIENT  /* the gradient of value `index`, an input, goes to its sink */
} sherl_step_kind;

typedef struct sherl_step {
    sherl_step_kind kind;
    uint32_t index;
    bool accumulate; /* of SEED_OUTPUT: the same value was seeded before */
} sherl_step;

/* A region of the arena that holds one matrix from its first to its last step. */
typedef struct sherl_buffer {
    sherl_space space;
    size_t channels, element_size;
    uint32_t first_step, last_step;
} sherl_buffer;

/* Which buffer holds what, by value; SHERL_NONE where nothing is held. */
typedef struct sherl_residence {
    uint32_t *forward;  /* the value itself */
    uint32_t *reload;   /* an input loaded again for the backward part */
    uint32_t *gradient;
    sherl_buffer *buffers;
    size_t buffer_count, buffer_capacity;
} sherl_residence;

/* Offsets of all buffers in an arena for tiles within some limits. */
typedef struct sherl_plan {
    size_t *rows, *longest_segment; /* limits by row space */
    size_t samples;
    size_t *offsets;                /* by buffer, in bytes */
    size_t scratch_offset, scratch_bytes, arena_bytes;
} sherl_plan;

typedef struct sherl_worker {
    char *arena;
    size_t arena_bytes;
    void **values;                  /* by value */
    sherl_real **gradients;         /* by value */
    sherl_real **parameter_gradients; /* by parameter */
} sherl_worker;

/* A batch cut into tiles: tile t holds samples [bounds[t], bounds[t + 1]) and belongs to lane t % lanes. */
typedef struct sherl_tiling {
    size_t *bounds;
    size_t capacity, tiles, lanes;
} sherl_tiling;

struct sherl_program {
    sherl_context *context;
    sherl_parameters *parameters;
    sherl_network network;
    bool gradient;  /* has a backward part */
    bool coupled;   /* has an op that reads the whole batch */
    sherl_step *steps;
    size_t step_count, step_capacity, forward_steps;
    sherl_residence residence;
    /* by parameter of the store, as it was when the program was compiled */
    size_t parameter_count;
    const sherl_real **parameter_data;
    sherl_real **mutable_parameters; /* SHERL_STATE ones */
    size_t *parameter_rows;
    size_t *gradient_offsets;        /* into a lane, in reals; SIZE_MAX: no gradient */
    size_t lane_size;                /* reals */
    sherl_space *value_spaces;
    size_t *value_channels;
    /* workspace, kept from run to run */
    size_t tile_rows;
    sherl_plan plan;
    sherl_tiling tiling;
    sherl_worker *workers;
    size_t worker_count;
    sherl_real **lanes;              /* gradients; lane 0 ends up with the sum */
    size_t lane_count;
    double *tile_losses;
    sherl_status *tile_status;
    size_t tile_capacity;
    size_t *sample_offsets;          /* 0, 1, 2 …: offsets of SHERL_SAMPLES */
    size_t sample_capacity;
    const size_t **offsets;          /* by row space, during a run */
};

/* The passes, in the order in which sherl_program_compile runs them. */
sherl_status sherl_pass_demand(const sherl_graph *graph, sherl_network *network);   /* demand.c */
sherl_status sherl_pass_needs_gradient(sherl_program *program);                      /* needs_gradient.c */
sherl_status sherl_pass_schedule(sherl_program *program);                            /* schedule.c */
sherl_status sherl_pass_residence(sherl_program *program);                           /* residence.c */

/* What the backward of an op reads, given which of its parameters are trained. */
void sherl_op_backward_reads(const sherl_program *program, const sherl_op *op, sherl_backward_reads *reads);

/* plan.c: grows the plan of the program to cover these limits. */
sherl_status sherl_plan_cover(const sherl_program *program, const sherl_limits *limits, sherl_plan *plan);
void sherl_plan_release(const sherl_context *context, sherl_plan *plan);

/* tiles.c: cuts a batch by its sizes alone, and the limits of the tiles. */
sherl_status sherl_tiling_cut(const sherl_program *program, size_t samples, const size_t *const *offsets,
                              sherl_tiling *tiling);
/* rows and longest_segment have one entry a row space. */
void sherl_tiling_limits(const sherl_program *program, const sherl_tiling *tiling, const size_t *const *offsets,
                         size_t *rows, size_t *longest_segment, size_t *samples);

/* stage.c: rows between the caller's memory and a tile. `first_row` is the row of the batch where the tile starts. */
sherl_status sherl_stage_load(const sherl_kernels *kernels, const sherl_source *source, size_t first_row, size_t rows,
                              size_t channels, bool integer, void *destination);
/* The rows in place when they already lie as the core wants them, else NULL. */
void *sherl_stage_direct(const sherl_source *source, size_t first_row, size_t rows, size_t channels);
void sherl_stage_store(const sherl_kernels *kernels, const sherl_sink *sink, size_t first_row, size_t rows,
                       size_t channels, const sherl_real *values);

/* workspace.c: everything that a run of this batch needs, allocated before its first step. */
sherl_status sherl_workspace_prepare(sherl_program *program, const sherl_batch *batch, bool gradient);
void sherl_workspace_release(sherl_program *program);

/* For the trainer. */
sherl_context *sherl_program_context(const sherl_program *program);
sherl_parameters *sherl_program_parameters(const sherl_program *program);

#endif
