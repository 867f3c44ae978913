/* Running a program on a batch: block after block, stage after stage; a stage of tiles deals the lanes of its tiles to
 * the threads, a wide one runs once for the block with the threads inside its ops. */
#include <string.h>

#include "program.h"

typedef struct run {
    sherl_program *program;
    const sherl_batch *batch;
    bool gradient;
    size_t steps; /* how many steps of the schedule to run */
    sherl_random_key key;
    size_t block; /* the current one */
    const sherl_stage *stage;
} run;

static size_t first_sample_of_block(const run *run) {
    const sherl_tiling *tiling = &run->program->tiling;
    return tiling->bounds[tiling->blocks[run->block]];
}

/* Where a tile's rows of a buffer begin: in the arena of its worker, or, if shared, in that of the block. */
static void *buffer_at(const run *run, const sherl_worker *worker, uint32_t buffer, size_t first_sample) {
    if (buffer == SHERL_NONE) return NULL;
    const sherl_program *program = run->program;
    const sherl_buffer *info = &program->residence.buffers[buffer];
    if (!info->shared) return worker->arena + program->plan.offsets[buffer];
    const size_t *offsets = program->shapes.offsets[info->space];
    return program->block_arena + program->plan.offsets[buffer] +
           (offsets[first_sample] - offsets[first_sample_of_block(run)]) * info->channels * info->element_size;
}

/* Is a value that came again for the backward part meant, rather than what the forward part had? */
static uint32_t value_buffer(const sherl_program *program, size_t step, sherl_value value) {
    uint32_t reload = program->residence.reload[value];
    return step >= program->forward_steps && reload != SHERL_NONE ? reload : program->residence.forward[value];
}

/* Points a worker's tables at some samples of the block as the current stage begins. */
static sherl_tile place_tile(const run *run, size_t worker_number, size_t first_sample, size_t samples) {
    sherl_program *program = run->program;
    sherl_worker *worker = &program->workers[worker_number];
    const sherl_residence *residence = &program->residence;
    for (size_t v = 0; v < program->network.value_count; v++) {
        uint32_t buffer = value_buffer(program, run->stage->first_step, (sherl_value)v);
        worker->values[v] = buffer_at(run, worker, buffer, first_sample);
        worker->gradients[v] = buffer_at(run, worker, residence->gradient[v], first_sample);
    }
    return (sherl_tile){.kernels = program->context->kernels,
                        .first_sample = first_sample,
                        .samples = samples,
                        .offsets = program->shapes.offsets,
                        .grids = program->shapes.grids,
                        .positions = program->positions,
                        .value_spaces = program->value_spaces,
                        .value_channels = program->value_channels,
                        .values = worker->values,
                        .gradients = worker->gradients,
                        .parameters = program->parameter_data,
                        .parameter_rows = program->parameter_rows,
                        .parameter_gradients = worker->parameter_gradients,
                        .mutable_parameters = program->mutable_parameters,
                        .scratch = run->stage->wide ? program->block_arena + program->plan.block.scratch_offset
                                                    : worker->arena + program->plan.tile.scratch_offset,
                        .pool = run->stage->wide ? program->context->pool : NULL,
                        .random_key = run->key};
}

static void enter_lane(const run *run, size_t worker, size_t lane) {
    sherl_program *program = run->program;
    for (size_t p = 0; p < program->parameter_count; p++) {
        bool has = run->gradient && program->gradient_offsets[p] != SIZE_MAX;
        program->workers[worker].parameter_gradients[p] =
            has ? program->lanes[lane] + program->gradient_offsets[p] : NULL;
    }
}

/* The row of the batch where a tile starts in a row space. */
static size_t first_row(const run *run, const sherl_tile *tile, sherl_space space) {
    return run->program->shapes.offsets[space][tile->first_sample];
}

static sherl_status load_selected_rows(const run *run, const sherl_tile *tile, const sherl_source *source,
                                       sherl_value value) {
    const sherl_program *program = run->program;
    const sherl_value_info *info = &program->network.values[value];
    const size_t *offsets = program->shapes.offsets[program->network.inputs[info->input].space] + tile->first_sample;
    const size_t *positions = program->positions[info->selection] + tile->first_sample;
    size_t row_bytes = info->channels * (info->integer ? sizeof(int32_t) : sizeof(sherl_real));
    for (size_t i = 0; i < tile->samples; i++) {
        sherl_status status = sherl_stage_load(tile->kernels, source, offsets[i] + positions[i], 1, info->channels,
                                               info->integer, (char *)tile->values[value] + i * row_bytes);
        if (status) return status;
    }
    return SHERL_OK;
}

/* Rows that lie in the caller's memory as the core wants them are used where they are, unless later stages, which place
 * their tiles anew, read them too. */
static sherl_status load(const run *run, const sherl_tile *tile, size_t worker_number, sherl_value value, size_t step) {
    const sherl_program *program = run->program;
    const sherl_value_info *info = &program->network.values[value];
    const sherl_source *source = &run->batch->inputs[info->input];
    sherl_worker *worker = &program->workers[worker_number];
    size_t row = first_row(run, tile, info->space), rows = sherl_tile_space_rows(tile, info->space);
    uint32_t buffer = value_buffer(program, step, value);
    bool may_stay = !info->integer && !info->selected && !program->residence.buffers[buffer].shared;
    void *direct = may_stay ? sherl_stage_direct(source, row, rows, info->channels) : NULL;
    worker->values[value] = direct ? direct : buffer_at(run, worker, buffer, tile->first_sample);
    if (direct) return SHERL_OK;
    if (info->selected) return load_selected_rows(run, tile, source, value);
    return sherl_stage_load(tile->kernels, source, row, rows, info->channels, info->integer, tile->values[value]);
}

static void store(const run *run, const sherl_tile *tile, const sherl_sink *sink, sherl_value value,
                  const sherl_real *rows) {
    const sherl_value_info *info = &run->program->network.values[value];
    if (sink->data)
        sherl_stage_store(tile->kernels, sink, first_row(run, tile, info->space),
                          sherl_tile_space_rows(tile, info->space), info->channels, rows);
}

static double sum_rows(const sherl_real *rows, size_t count) {
    double sum = 0;
    for (size_t r = 0; r < count; r++) sum += rows[r];
    return sum;
}

static sherl_status seed_output(const run *run, const sherl_tile *tile, uint32_t output, bool accumulate) {
    const sherl_network *network = &run->program->network;
    sherl_value value = network->outputs[output];
    const sherl_source *source = &run->batch->cotangents[output];
    size_t channels = network->values[value].channels, row = first_row(run, tile, network->values[value].space);
    size_t rows = sherl_tile_rows(tile, value);
    sherl_real *gradient = tile->gradients[value];
    if (!accumulate) return sherl_stage_load(tile->kernels, source, row, rows, channels, false, gradient);
    for (size_t r = 0; r < rows; r++) {
        sherl_status status = sherl_stage_load(tile->kernels, source, row + r, 1, channels, false, tile->scratch);
        if (status) return status;
        tile->kernels->accumulate(tile->scratch, gradient + r * channels, channels);
    }
    return SHERL_OK;
}

static sherl_status forward(const run *run, const sherl_tile *tile, size_t worker, const sherl_op *op, size_t step) {
    if (step >= run->program->forward_steps) /* once more: not where the first result was */
        run->program->workers[worker].values[op->output] =
            buffer_at(run, &run->program->workers[worker], value_buffer(run->program, step, op->output),
                      tile->first_sample);
    return op->type->forward(op, tile);
}

/* One step on one tile; `tile_number` is where its part of the loss goes. */
static sherl_status run_step(const run *run, const sherl_tile *tile, size_t worker, size_t tile_number, size_t s) {
    sherl_program *program = run->program;
    const sherl_network *network = &program->network;
    const sherl_step *step = &program->steps[s];
    switch (step->kind) {
    case SHERL_STEP_LOAD: return load(run, tile, worker, step->index, s);
    case SHERL_STEP_FORWARD: return forward(run, tile, worker, &network->ops[step->index], s);
    case SHERL_STEP_BACKWARD: return network->ops[step->index].type->backward(&network->ops[step->index], tile);
    case SHERL_STEP_STORE: {
        sherl_value value = network->outputs[step->index];
        if (run->batch->outputs)
            store(run, tile, &run->batch->outputs[step->index], value, sherl_tile_read(tile, value));
        return SHERL_OK;
    }
    case SHERL_STEP_LOSS:
        program->tile_losses[tile_number] =
            sum_rows(sherl_tile_read(tile, network->loss), sherl_tile_rows(tile, network->loss));
        return SHERL_OK;
    case SHERL_STEP_SEED_LOSS:
        for (size_t r = 0; r < sherl_tile_rows(tile, network->loss); r++) tile->gradients[network->loss][r] = 1;
        return SHERL_OK;
    case SHERL_STEP_SEED_OUTPUT: return seed_output(run, tile, step->index, step->accumulate);
    case SHERL_STEP_STORE_GRADIENT:
        if (run->batch->input_gradients)
            store(run, tile, &run->batch->input_gradients[network->values[step->index].input], step->index,
                  tile->gradients[step->index]);
        return SHERL_OK;
    }
    return SHERL_INVALID_ARGUMENT;
}

/* The current stage on the tiles of a lane in the current block, one after the other. */
static void run_lane(void *state, size_t lane, size_t worker) {
    const run *run = state;
    const sherl_tiling *tiling = &run->program->tiling;
    size_t end = run->stage->end_step < run->steps ? run->stage->end_step : run->steps;
    enter_lane(run, worker, lane);
    for (size_t t = tiling->blocks[run->block]; t < tiling->blocks[run->block + 1]; t++) {
        if (t % tiling->lanes != lane) continue;
        sherl_tile tile = place_tile(run, worker, tiling->bounds[t], tiling->bounds[t + 1] - tiling->bounds[t]);
        sherl_status status = SHERL_OK;
        for (size_t s = run->stage->first_step; s < end && !status; s++) status = run_step(run, &tile, worker, t, s);
        run->program->tile_status[t] = status;
    }
}

static sherl_tile place_block(const run *run) {
    const sherl_tiling *tiling = &run->program->tiling;
    size_t first = first_sample_of_block(run), end = tiling->bounds[tiling->blocks[run->block + 1]];
    enter_lane(run, 0, 0);
    return place_tile(run, 0, first, end - first);
}

static sherl_status run_wide_stage(const run *run) {
    sherl_tile tile = place_block(run);
    sherl_status status = SHERL_OK;
    for (size_t s = run->stage->first_step; s < run->stage->end_step && s < run->steps && !status; s++)
        status = run_step(run, &tile, 0, run->program->tiling.blocks[run->block], s);
    return status;
}

static sherl_status first_failure(const run *run) {
    const sherl_tiling *tiling = &run->program->tiling;
    for (size_t t = tiling->blocks[run->block]; t < tiling->blocks[run->block + 1]; t++)
        if (run->program->tile_status[t]) return run->program->tile_status[t];
    return SHERL_OK;
}

static sherl_status run_block(run *run) {
    sherl_program *program = run->program;
    for (size_t i = 0; i < program->stage_count && program->stages[i].first_step < run->steps; i++) {
        run->stage = &program->stages[i];
        sherl_status status;
        if (run->stage->wide) {
            status = run_wide_stage(run);
        } else {
            sherl_pool_run(program->context->pool, program->tiling.lanes, run_lane, run);
            status = first_failure(run);
        }
        if (status) return status;
    }
    return SHERL_OK;
}

/* Lets coupled ops, for which the batch is one block, keep what they learned of it, once all of it went well. */
static void commit(run *run) {
    const sherl_program *program = run->program;
    for (size_t i = 0; i < program->stage_count; i++) {
        run->stage = &program->stages[i];
        for (size_t s = run->stage->first_step; s < run->stage->end_step && run->stage->wide; s++) {
            const sherl_op *op = &program->network.ops[program->steps[s].index];
            if (program->steps[s].kind != SHERL_STEP_FORWARD || !op->type->commit) continue;
            sherl_tile tile = place_block(run);
            op->type->commit(op, &tile);
        }
    }
}

/* Adds the other lanes to lane 0, in order; a task takes one parameter. */
static void reduce_parameter(void *state, size_t parameter, size_t worker) {
    const sherl_program *program = state;
    (void)worker;
    size_t offset = program->gradient_offsets[parameter];
    if (offset == SIZE_MAX) return;
    size_t count =
        program->parameter_rows[parameter] * sherl_parameters_columns(program->parameters, (sherl_parameter)parameter);
    for (size_t l = 1; l < program->tiling.lanes; l++)
        program->context->kernels->accumulate(program->lanes[l] + offset, program->lanes[0] + offset, count);
}

static sherl_status check_batch(const sherl_program *program, const sherl_batch *batch, bool gradient) {
    if (!batch || batch->samples == 0 || (program->network.input_count > 0 && !batch->inputs))
        return SHERL_INVALID_ARGUMENT;
    if (gradient && !program->gradient) return SHERL_INVALID_ARGUMENT;
    if (gradient && program->network.loss == SHERL_NONE && !batch->cotangents) return SHERL_INVALID_ARGUMENT;
    return SHERL_OK;
}

static sherl_status run_batch(sherl_program *program, const sherl_batch *batch, bool gradient, bool add, double *loss) {
    sherl_status status = check_batch(program, batch, gradient);
    if (!status) status = sherl_workspace_prepare(program, batch, gradient);
    if (status) return status;
    run run = {.program = program,
               .batch = batch,
               .gradient = gradient,
               .steps = gradient ? program->step_count : program->forward_steps,
               .key = sherl_mix_key(batch->seed, batch->step)};
    size_t lanes = program->tiling.lanes;
    for (size_t t = 0; t < program->tiling.tiles; t++) {
        program->tile_status[t] = SHERL_OK;
        program->tile_losses[t] = 0;
    }
    for (size_t l = add ? 1 : 0; l < lanes && gradient; l++)
        memset(program->lanes[l], 0, program->lane_size * sizeof(sherl_real));
    for (run.block = 0; run.block < program->tiling.block_count && !status; run.block++) status = run_block(&run);
    if (status) return status;
    run.block = 0;
    if (gradient) {
        sherl_pool_run(program->context->pool, program->parameter_count, reduce_parameter, program);
        commit(&run);
    }
    if (loss) {
        *loss = 0;
        for (size_t t = 0; t < program->tiling.tiles; t++) *loss += program->tile_losses[t];
    }
    return SHERL_OK;
}

sherl_status sherl_program_forward(sherl_program *program, const sherl_batch *batch, double *loss) {
    return run_batch(program, batch, false, false, loss);
}

sherl_status sherl_program_gradient(sherl_program *program, const sherl_batch *batch, bool add, double *loss) {
    return run_batch(program, batch, true, add, loss);
}
