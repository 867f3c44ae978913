/* A compiled program: the network after its passes, its schedule, its memory plan and the workspace of its runs. */
#ifndef SHERL_PROGRAM_PROGRAM_H
#define SHERL_PROGRAM_PROGRAM_H

#include "graph.h"

typedef enum sherl_step_kind {
    SHERL_STEP_LOAD,          /* value `index`: rows of a declared input come into reach */
    SHERL_STEP_FORWARD,       /* op `index` */
    SHERL_STEP_STORE,         /* output `index` goes to its sink */
    SHERL_STEP_LOSS,          /* the rows of the loss are summed */
    SHERL_STEP_SEED_LOSS,     /* the gradient of the loss is 1 */
    SHERL_STEP_SEED_OUTPUT,   /* the gradient of output `index` comes from its cotangent */
    SHERL_STEP_BACKWARD,      /* op `index` */
    SHERL_STEP_STORE_GRADIENT /* the gradient of value `index`, an input, goes to its sink */
} sherl_step_kind;

typedef struct sherl_step {
    sherl_step_kind kind;
    uint32_t index;
    bool accumulate; /* of SEED_OUTPUT: the same value was seeded before */
} sherl_step;

/* Consecutive steps that run tile by tile, or wide: once for a whole block of tiles. */
typedef struct sherl_stage {
    size_t first_step, end_step;
    bool wide;
} sherl_stage;

/* A region of an arena that holds one matrix from its first to its last step. */
typedef struct sherl_buffer {
    sherl_space space;
    size_t channels, element_size;
    uint32_t first_step, last_step;
    bool shared; /* between stages: lies in the block's arena and not in that of a worker */
} sherl_buffer;

/* Which buffer holds what, by value; SHERL_NONE where nothing is held. */
typedef struct sherl_residence {
    uint32_t *forward; /* the value itself */
    uint32_t *reload;  /* the value loaded or computed again for the backward part */
    uint32_t *gradient;
    sherl_buffer *buffers;
    size_t buffer_count, buffer_capacity;
} sherl_residence;

/* An arena for tiles, or for blocks, within some limits. */
typedef struct sherl_arena_plan {
    size_t *rows; /* limits by row space */
    size_t samples;
    size_t scratch_offset, scratch_bytes, bytes;
} sherl_arena_plan;

/* Offsets of all buffers. */
typedef struct sherl_plan {
    sherl_arena_plan tile, block;
    size_t *longest_segment; /* by row space */
    size_t *offsets;         /* by buffer, in bytes, into the arena that it lies in */
} sherl_plan;

typedef struct sherl_worker {
    char *arena;
    size_t arena_bytes;
    void **values;                    /* by value */
    sherl_real **gradients;           /* by value */
    sherl_real **parameter_gradients; /* by parameter */
} sherl_worker;

/* What a batch is cut by: most rows of a tile and of a block, most gradient lanes. */
typedef struct sherl_cut { size_t tile_rows, block_rows, lanes; } sherl_cut;

/* A batch cut into tiles, and those into blocks: tile t holds samples [bounds[t], bounds[t + 1]) and belongs to lane
 * t % lanes; block b holds tiles [blocks[b], blocks[b + 1]). By row space, `shares` rows weigh as one in the cut. */
typedef struct sherl_tiling {
    size_t *bounds, *blocks, *shares;
    size_t bound_capacity, block_capacity, share_capacity, tiles, block_count, lanes;
} sherl_tiling;

/* The rows of a batch: those that the caller gives, and those that follow. */
typedef struct sherl_shapes {
    const size_t **offsets; /* by row space: samples + 1 row offsets */
    const size_t **grids;   /* by row space: height and width of each sample, NULL where it has no images */
    size_t *computed;       /* what of them is not the caller's */
    size_t capacity;
} sherl_shapes;

struct sherl_program {
    sherl_context *context;
    sherl_parameters *parameters;
    sherl_network network;
    bool gradient;    /* has a backward part */
    bool staged;      /* has wide ops */
    bool whole_batch; /* has an op that reads the whole batch */
    sherl_step *steps;
    size_t step_count, step_capacity, forward_steps;
    sherl_stage *stages;
    size_t stage_count, stage_capacity;
    sherl_residence residence;
    /* by parameter of the store, as it was when the program was compiled */
    size_t parameter_count;
    const sherl_real **parameter_data;
    sherl_real **mutable_parameters; /* SHERL_STATE ones */
    size_t *parameter_rows;
    size_t *gradient_offsets; /* into a lane, in reals; SIZE_MAX: no gradient */
    size_t lane_size;         /* reals */
    sherl_space *value_spaces;
    size_t *value_channels;
    /* workspace, kept from run to run */
    size_t tile_rows, block_rows, lane_limit;
    size_t memory_budget; /* of arenas and gradients, in bytes; 0: none */
    sherl_plan plan;
    char *block_arena;
    size_t block_arena_bytes;
    sherl_tiling tiling;
    sherl_worker *workers;
    size_t worker_count;
    sherl_real **lanes; /* gradients; lane 0 ends up with the sum */
    size_t lane_count;
    double *tile_losses;
    sherl_status *tile_status;
    size_t tile_capacity;
    sherl_shapes shapes;      /* during a run */
    const size_t **positions; /* by selection, during a run: a row number for each sample */
    size_t *position_table;   /* what they point to */
    size_t position_capacity;
};

/* The passes, in the order in which sherl_program_compile runs them. */
sherl_status sherl_pass_demand(const sherl_graph *graph, sherl_network *network); /* demand.c */
void sherl_pass_associate(sherl_program *program);                                /* associate.c */
sherl_status sherl_pass_needs_gradient(sherl_program *program);                   /* needs_gradient.c */
void sherl_pass_wide(const sherl_graph *graph, sherl_program *program);           /* stages.c */
sherl_status sherl_pass_schedule(sherl_program *program);                         /* schedule.c */
sherl_status sherl_pass_stages(sherl_program *program);                           /* stages.c */
sherl_status sherl_pass_residence(sherl_program *program);                        /* residence.c */

/* What the backward of an op reads, given which of its parameters are trained. */
void sherl_op_backward_reads(const sherl_program *program, const sherl_op *op, sherl_backward_reads *reads);

/* shapes.c: the rows of a batch, kept by `shapes` for as long as the caller's arrays; SHERL_INVALID_ARGUMENT where arrays
 * are missing or hold no offsets, SHERL_SHAPE_MISMATCH where images do not fit their windows or each other. */
sherl_status sherl_shapes_prepare(const sherl_program *program, size_t samples, const size_t *const *offsets,
                                  const size_t *const *grids, sherl_shapes *shapes);
void sherl_shapes_release(const sherl_context *context, sherl_shapes *shapes);

/* Sizes that a plan must cover: rows of a tile and of a block, and the longest segment, by row space. */
typedef struct sherl_extent {
    size_t *tile_rows, *block_rows, *longest_segment;
    size_t tile_samples, block_samples;
} sherl_extent;

/* plan.c: grows the plan of the program to cover an extent. */
sherl_status sherl_plan_cover(const sherl_program *program, const sherl_extent *extent, sherl_plan *plan);
void sherl_plan_release(const sherl_context *context, sherl_plan *plan);

/* budget.c: the cut that a batch gets, by its sizes and the memory budget alone; SHERL_OVER_BUDGET where none fits. */
sherl_status sherl_budget_cut(const sherl_program *program, size_t samples, const size_t *const *offsets,
                              sherl_cut *cut);
size_t sherl_lane_bytes(const sherl_program *program); /* gradients of one lane */

/* tiles.c: cuts a batch by its sizes alone; the extent of the tiles and blocks, whose arrays are released by
 * sherl_extent_release. */
sherl_status sherl_tiling_cut(const sherl_program *program, const sherl_cut *cut, size_t samples,
                              const size_t *const *offsets, sherl_tiling *tiling);
void sherl_tiling_release(const sherl_context *context, sherl_tiling *tiling);
sherl_status sherl_tiling_extent(const sherl_program *program, const sherl_tiling *tiling, const size_t *const *offsets,
                                 sherl_extent *extent);
void sherl_extent_release(const sherl_context *context, sherl_extent *extent);

/* staging.c: rows between the caller's memory and a tile. `first_row` is the row of the batch where the tile starts. */
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
