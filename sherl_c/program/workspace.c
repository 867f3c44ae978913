/* The workspace of a program: arenas, gradient lanes and tables, all allocated before the first step of a run. */
#include "program.h"

static void release_worker(const sherl_context *context, sherl_worker *worker) {
    sherl_release(context, worker->arena);
    sherl_release(context, worker->values);
    sherl_release(context, worker->gradients);
    sherl_release(context, worker->parameter_gradients);
    *worker = (sherl_worker){0};
}

void sherl_workspace_release(sherl_program *program) {
    const sherl_context *context = program->context;
    for (size_t w = 0; w < program->worker_count; w++) release_worker(context, &program->workers[w]);
    for (size_t l = 0; l < program->lane_count; l++) sherl_release(context, program->lanes[l]);
    sherl_release(context, program->workers);
    sherl_release(context, program->lanes);
    sherl_release(context, program->block_arena);
    sherl_tiling_release(context, &program->tiling);
    sherl_release(context, program->tile_losses);
    sherl_release(context, program->tile_status);
    sherl_shapes_release(context, &program->shapes);
    sherl_release(context, program->positions);
    sherl_release(context, program->position_table);
    sherl_plan_release(context, &program->plan);
}

/* Which row of each sample a selection means; SHERL_INDEX_OUT_OF_RANGE where a sample does not have the row given. */
static sherl_status find_positions(const sherl_program *program, const sherl_batch *batch,
                                   const sherl_selection *selection, size_t *positions) {
    const size_t *offsets = program->shapes.offsets[selection->space];
    for (size_t i = 0; i < batch->samples; i++) {
        size_t rows = offsets[i + 1] - offsets[i];
        int32_t given = 0;
        sherl_status status = SHERL_OK;
        if (selection->row == SHERL_POOL_POSITION)
            status = sherl_stage_load(program->context->kernels, &batch->inputs[selection->positions], i, 1, 1, true,
                                      &given);
        positions[i] = selection->row == SHERL_POOL_LAST ? rows - 1 : (size_t)given;
        if (status || positions[i] >= rows) return SHERL_INDEX_OUT_OF_RANGE;
    }
    return SHERL_OK;
}

static sherl_status prepare_positions(sherl_program *program, const sherl_batch *batch) {
    const sherl_context *context = program->context;
    size_t selections = program->network.selection_count, needed;
    if (!sherl_multiply_sizes(selections, batch->samples, &needed)) return SHERL_SIZE_OVERFLOW;
    sherl_status status = sherl_grow(context, &program->position_table, &program->position_capacity, needed,
                                     sizeof *program->position_table);
    if (!status && !program->positions)
        status = sherl_allocate(context, selections, sizeof *program->positions, &program->positions);
    for (size_t s = 0; s < selections && !status; s++) {
        size_t *positions = program->position_table + s * batch->samples;
        status = find_positions(program, batch, &program->network.selections[s], positions);
        program->positions[s] = positions;
    }
    return status;
}

static sherl_status prepare_tiles(sherl_program *program, const sherl_batch *batch) {
    const sherl_context *context = program->context;
    sherl_cut cut;
    sherl_status status = sherl_budget_cut(program, batch->samples, program->shapes.offsets, &cut);
    if (!status) status = sherl_tiling_cut(program, &cut, batch->samples, program->shapes.offsets, &program->tiling);
    if (status || program->tiling.tiles <= program->tile_capacity) return status;
    sherl_release(context, program->tile_losses);
    sherl_release(context, program->tile_status);
    program->tile_losses = NULL;
    program->tile_status = NULL;
    program->tile_capacity = 0;
    status = sherl_allocate(context, program->tiling.tiles, sizeof(double), &program->tile_losses);
    if (!status) status = sherl_allocate(context, program->tiling.tiles, sizeof(sherl_status), &program->tile_status);
    if (!status) program->tile_capacity = program->tiling.tiles;
    return status;
}

/* Frees the arenas, and the gradients of all but the first `lanes` lanes; the next run makes what it needs. */
static void shrink(sherl_program *program, size_t lanes) {
    const sherl_context *context = program->context;
    for (size_t w = 0; w < program->worker_count; w++) {
        sherl_release(context, program->workers[w].arena);
        program->workers[w].arena = NULL;
        program->workers[w].arena_bytes = 0;
    }
    sherl_release(context, program->block_arena);
    program->block_arena = NULL;
    program->block_arena_bytes = 0;
    for (size_t l = lanes; l < program->lane_count; l++) {
        sherl_release(context, program->lanes[l]);
        program->lanes[l] = NULL;
    }
    sherl_plan_release(context, &program->plan);
}

void sherl_program_release_workspace(sherl_program *program) { shrink(program, 0); }

size_t sherl_program_bytes(const sherl_program *program) {
    size_t bytes = program->block_arena_bytes;
    for (size_t w = 0; w < program->worker_count; w++) bytes += program->workers[w].arena_bytes;
    for (size_t l = 0; l < program->lane_count; l++) bytes += program->lanes[l] ? sherl_lane_bytes(program) : 0;
    return bytes;
}

/* What earlier batches grew counts too: the plan covers them, and arenas and lanes are kept. */
static bool over_budget(const sherl_program *program) {
    if (!program->memory_budget) return false;
    size_t lanes = program->tiling.lanes, tile = program->plan.tile.bytes, block = program->plan.block.bytes;
    for (size_t l = lanes; l < program->lane_count; l++)
        if (program->lanes[l]) lanes = l + 1;
    for (size_t w = 0; w < program->worker_count; w++) {
        if (program->workers[w].arena_bytes > tile) tile = program->workers[w].arena_bytes;
        if (program->workers[w].arena && w >= lanes) lanes = w + 1;
    }
    if (program->block_arena_bytes > block) block = program->block_arena_bytes;
    size_t each, bytes;
    return !sherl_add_sizes(tile, sherl_lane_bytes(program), &each) || !sherl_multiply_sizes(each, lanes, &bytes) ||
           !sherl_add_sizes(bytes, block, &bytes) || bytes > program->memory_budget;
}

static sherl_status prepare_plan(sherl_program *program) {
    sherl_extent extent;
    sherl_status status = sherl_tiling_extent(program, &program->tiling, program->shapes.offsets, &extent);
    if (status) return status;
    status = sherl_plan_cover(program, &extent, &program->plan);
    if (!status && over_budget(program)) {
        shrink(program, program->tiling.lanes);
        status = sherl_plan_cover(program, &extent, &program->plan);
    }
    sherl_extent_release(program->context, &extent);
    return status;
}

/* An arena of at least `needed` bytes; its contents are not kept. */
static sherl_status prepare_arena(const sherl_program *program, size_t needed, char **arena, size_t *bytes) {
    if (*bytes >= needed) return SHERL_OK;
    sherl_release(program->context, *arena);
    *arena = NULL;
    *bytes = 0;
    sherl_status status = sherl_allocate_raw(program->context, needed, 1, arena);
    if (!status) *bytes = needed;
    return status;
}

static sherl_status prepare_worker(const sherl_program *program, sherl_worker *worker) {
    const sherl_context *context = program->context;
    size_t values = program->network.value_count;
    sherl_status status = SHERL_OK;
    if (!worker->values) status = sherl_allocate(context, values, sizeof(void *), &worker->values);
    if (!status && !worker->gradients)
        status = sherl_allocate(context, values, sizeof(sherl_real *), &worker->gradients);
    if (!status && !worker->parameter_gradients)
        status = sherl_allocate(context, program->parameter_count, sizeof(sherl_real *), &worker->parameter_gradients);
    if (!status) status = prepare_arena(program, program->plan.tile.bytes, &worker->arena, &worker->arena_bytes);
    return status;
}

static sherl_status prepare_workers(sherl_program *program) {
    size_t threads = sherl_context_threads(program->context);
    size_t needed = threads < program->tiling.lanes ? threads : program->tiling.lanes;
    sherl_status status =
        sherl_grow(program->context, &program->workers, &program->worker_count, needed, sizeof *program->workers);
    for (size_t w = 0; w < needed && !status; w++) status = prepare_worker(program, &program->workers[w]);
    if (!status)
        status = prepare_arena(program, program->plan.block.bytes, &program->block_arena, &program->block_arena_bytes);
    return status;
}

static sherl_status prepare_lanes(sherl_program *program) {
    size_t needed = program->tiling.lanes;
    sherl_status status =
        sherl_grow(program->context, &program->lanes, &program->lane_count, needed, sizeof *program->lanes);
    for (size_t l = 0; l < needed && !status; l++)
        if (!program->lanes[l])
            status = sherl_allocate(program->context, program->lane_size, sizeof(sherl_real), &program->lanes[l]);
    return status;
}

sherl_status sherl_workspace_prepare(sherl_program *program, const sherl_batch *batch, bool gradient) {
    sherl_status status = sherl_shapes_prepare(program, batch->samples, batch->offsets, batch->grids, &program->shapes);
    if (!status) status = prepare_positions(program, batch);
    if (!status) status = prepare_tiles(program, batch);
    if (!status) status = prepare_plan(program);
    if (!status) status = prepare_workers(program);
    if (!status && gradient) status = prepare_lanes(program);
    return status;
}
