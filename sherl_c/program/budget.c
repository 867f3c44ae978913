/* The memory budget of a program: the cut of a batch whose arenas and gradients fit. A cut depends on the sizes of the
 * batch and the budget alone: it counts one arena for each lane, as if every lane had a thread of its own. */
#include "program.h"

enum { GOOD_TILE_ROWS = 64 /* smaller tiles come only after a single lane */ };

static bool add_product(size_t *sum, size_t a, size_t b) {
    size_t product;
    return sherl_multiply_sizes(a, b, &product) && sherl_add_sizes(*sum, product, sum);
}

size_t sherl_lane_bytes(const sherl_program *program) {
    return program->gradient ? program->lane_size * sizeof(sherl_real) : 0;
}

/* Bytes that a cut takes with a plan of its own. */
static sherl_status measure(const sherl_program *program, const sherl_cut *cut, size_t samples,
                            const size_t *const *offsets, size_t *bytes) {
    const sherl_context *context = program->context;
    sherl_tiling tiling = {0};
    sherl_extent extent = {0};
    sherl_plan plan = {0};
    sherl_status status = sherl_tiling_cut(program, cut, samples, offsets, &tiling);
    if (!status) status = sherl_tiling_extent(program, &tiling, offsets, &extent);
    if (!status) status = sherl_plan_cover(program, &extent, &plan);
    if (!status) {
        size_t sum = plan.block.bytes;
        bool counted = add_product(&sum, tiling.lanes, plan.tile.bytes) &&
                       add_product(&sum, tiling.lanes, sherl_lane_bytes(program));
        if (counted)
            *bytes = sum;
        else
            status = SHERL_SIZE_OVERFLOW;
    }
    sherl_tiling_release(context, &tiling);
    sherl_extent_release(context, &extent);
    sherl_plan_release(context, &plan);
    return status;
}

/* SHERL_OK, SHERL_OVER_BUDGET, or what went wrong. */
static sherl_status try_cut(const sherl_program *program, const sherl_cut *cut, size_t samples,
                            const size_t *const *offsets) {
    size_t bytes;
    sherl_status status = measure(program, cut, samples, offsets, &bytes);
    return status ? status : bytes <= program->memory_budget ? SHERL_OK : SHERL_OVER_BUDGET;
}

/* The first of *size = from, from / 2 … above its present value that fits; else *size stays. */
static sherl_status enlarge(const sherl_program *program, sherl_cut *cut, size_t *size, size_t from, size_t samples,
                            const size_t *const *offsets) {
    size_t least = *size;
    for (*size = from; *size > least; *size /= 2) {
        sherl_status status = try_cut(program, cut, samples, offsets);
        if (status != SHERL_OVER_BUDGET) return status;
    }
    *size = least;
    return SHERL_OK;
}

/* The most lanes at the smallest good tiles and blocks; then the largest blocks; then the largest tiles. */
sherl_status sherl_budget_cut(const sherl_program *program, size_t samples, const size_t *const *offsets,
                              sherl_cut *cut) {
    *cut = (sherl_cut){program->tile_rows, program->block_rows, program->lane_limit};
    if (!program->memory_budget) return SHERL_OK;
    sherl_status status = try_cut(program, cut, samples, offsets);
    if (status != SHERL_OVER_BUDGET) return status;
    if (cut->tile_rows > GOOD_TILE_ROWS) cut->tile_rows = GOOD_TILE_ROWS;
    if (cut->block_rows > GOOD_TILE_ROWS) cut->block_rows = GOOD_TILE_ROWS;
    while ((status = try_cut(program, cut, samples, offsets)) == SHERL_OVER_BUDGET && cut->lanes > 1) cut->lanes /= 2;
    while (status == SHERL_OVER_BUDGET && (cut->tile_rows > 1 || cut->block_rows > 1)) {
        if (cut->tile_rows > 1) cut->tile_rows /= 2;
        if (cut->block_rows > 1) cut->block_rows /= 2;
        status = try_cut(program, cut, samples, offsets);
    }
    if (!status && program->staged && !program->whole_batch)
        status = enlarge(program, cut, &cut->block_rows, program->block_rows, samples, offsets);
    if (!status) status = enlarge(program, cut, &cut->tile_rows, program->tile_rows, samples, offsets);
    return status;
}

sherl_status sherl_program_least_memory(const sherl_program *program, size_t samples, const size_t *const *offsets,
                                        const size_t *const *grids, size_t *bytes) {
    sherl_shapes shapes = {0};
    sherl_status status = sherl_shapes_prepare(program, samples, offsets, grids, &shapes);
    if (!status) status = measure(program, &(sherl_cut){1, 1, 1}, samples, shapes.offsets, bytes);
    sherl_shapes_release(program->context, &shapes);
    return status;
}

sherl_status sherl_program_set_memory_budget(sherl_program *program, size_t bytes) {
    program->memory_budget = bytes;
    return SHERL_OK;
}
