/* Running a program on a batch: lanes of tiles over the threads, or, for coupled programs, step by step over the whole
 * batch with the threads inside each step. */
#include <string.h>

#include "program.h"

typedef struct run {
    sherl_program *program;
    const sherl_batch *batch;
    bool gradient;
    size_t steps;            /* how many steps of the schedule to run */
    sherl_random_key key;
    size_t step;             /* the current one, of a coupled run */
} run;

/* Where a buffer's rows of a tile begin, the arena holding the batch from sample `origin` on. */
static void *buffer_at(const run *run, char *arena, uint32_t buffer, size_t origin, size_t first_sample) {
    if (buffer == SHERL_NONE) return NULL;
    const sherl_buffer *info = &run->program->residence.buffers[buffer];
    const size_t *offsets = run->program->offsets[info->space];
    return arena + run->program->plan.offsets[buffer] +
           (offsets[first_sample] - offsets[origin]) * info->channels * info->element_size;
}

/* Points a worker's tables at a tile. `backward`: inputs that were loaded again are meant. */
static sherl_tile place_tile(const run *run, size_t worker_number, size_t origin, size_t first_sample, size_t samples,
                             bool backward) {
    sherl_program *program = run->program;
    sherl_worker *worker = &program->workers[worker_number];
    char *arena = program->workers[program->coupled ? 0 : worker_number].arena;
    const sherl_residence *residence = &program->residence;
    for (size_t v = 0; v < program->network.value_count; v++) {
        bool reloaded = backward && residence->reload[v] != SHERL_NONE;
        worker->values[v] = buffer_at(run, arena, reloaded ? residence->reload[v] : residence->forward[v], origin,
                                      first_sample);
        worker->gradients[v] = buffer_at(run, arena, residence->gradient[v], origin, first_sample);
    }
    bool own_scratch = program->coupled && worker_number > 0;
    return (sherl_tile){
        .kernels = program->context->kernels, .first_sample = first_sample, .samples = samples,
        .offsets = program->offsets, .value_spaces = program->value_spaces, .value_channels = program->value_channels,
        .values = worker->values, .gradients = worker->gradients, .parameters = program->parameter_data,
        .parameter_rows = program->parameter_rows, .parameter_gradients = worker->parameter_gradients,
        .mutable_parameters = program->mutable_parameters,
        .scratch = own_scratch ? worker->arena : arena + program->plan.scratch_offset, .random_key = run->key};
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
    return run->program->offsets[space][tile->first_sample];
}

static sherl_status load_first_rows(const run *run, const sherl_tile *tile, const sherl_source *source,
                                    sherl_space space, sherl_value value) {
    size_t channels = run->program->network.values[value].channels;
    for (size_t i = 0; i < tile->samples; i++) {
        sherl_status status = sherl_stage_load(tile->kernels, source,
                                               run->program->offsets[space][tile->first_sample + i], 1, channels,
                                               false, (sherl_real *)tile->values[value] + i * channels);
        if (status) return status;
    }
    return SHERL_OK;
}

/* Rows that lie in the caller's memory as the core wants them are used where they are. A coupled run places its tiles
 * anew for each step, so there they are copied. */
static sherl_status load(const run *run, const sherl_tile *tile, size_t worker_number, sherl_value value,
                         bool backward) {
    const sherl_program *program = run->program;
    const sherl_value_info *info = &program->network.values[value];
    const sherl_source *source = &run->batch->inputs[info->input];
    size_t row = first_row(run, tile, info->space), rows = sherl_tile_space_rows(tile, info->space);
    if (!program->coupled) {
        sherl_worker *worker = &program->workers[worker_number];
        uint32_t buffer = backward ? program->residence.reload[value] : program->residence.forward[value];
        void *direct = info->integer || info->first_rows
                           ? NULL : sherl_stage_direct(source, row, rows, info->channels);
        worker->values[value] =
            direct ? direct : buffer_at(run, worker->arena, buffer, tile->first_sample, tile->first_sample);
        if (direct) return SHERL_OK;
    }
    if (info->first_rows)
        return load_first_rows(run, tile, source, program->network.inputs[info->input].space, value);
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

/* One step on one tile; `tile_number` is where its part of the loss goes. */
static sherl_status run_step(const run *run, const sherl_tile *tile, size_t worker, size_t tile_number, size_t s) {
    sherl_program *program = run->program;
    const sherl_network *network = &program->network;
    const sherl_step *step = &program->steps[s];
    switch (step->kind) {
    case SHERL_STEP_LOAD: return load(run, tile, worker, step->index, s >= program->forward_steps);
    case SHERL_STEP_FORWARD: return network->ops[step->index].type->forward(&network->ops[step->index], tile);
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

/* All tiles of a lane, one after the other, each through the whole schedule. */
static void run_lane(void *state, size_t lane, size_t worker) {
    const run *run = state;
    const sherl_tiling *tiling = &run->program->tiling;
    enter_lane(run, worker, lane);
    for (size_t t = lane; t < tiling->tiles; t += tiling->lanes) {
        size_t first = tiling->bounds[t];
        sherl_tile tile = place_tile(run, worker, first, first, tiling->bounds[t + 1] - first, false);
        sherl_status status = SHERL_OK;
        for (size_t s = 0; s < run->steps && !status; s++) status = run_step(run, &tile, worker, t, s);
        run->program->tile_status[t] = status;
    }
}

/* The current step on the tiles of a lane, in one arena that holds the whole batch. */
static void run_lane_step(void *state, size_t lane, size_t worker) {
    const run *run = state;
    const sherl_tiling *tiling = &run->program->tiling;
    bool backward = run->step >= run->program->forward_steps;
    enter_lane(run, worker, lane);
    for (size_t t = lane; t < tiling->tiles; t += tiling->lanes) {
        if (run->program->tile_status[t]) continue;
        sherl_tile tile = place_tile(run, worker, 0, tiling->bounds[t], tiling->bounds[t + 1] - tiling->bounds[t],
                                     backward);
        run->program->tile_status[t] = run_step(run, &tile, worker, t, run->step);
    }
}

static sherl_tile place_batch(const run *run, bool backward) {
    enter_lane(run, 0, 0);
    sherl_tile tile = place_tile(run, 0, 0, 0, run->batch->samples, backward);
    tile.pool = run->program->context->pool;
    return tile;
}

static bool step_is_coupled(const sherl_program *program, const sherl_step *step) {
    return (step->kind == SHERL_STEP_FORWARD || step->kind == SHERL_STEP_BACKWARD) &&
           program->network.ops[step->index].type->rows == SHERL_COUPLED;
}

static sherl_status first_failure(const sherl_program *program) {
    for (size_t t = 0; t < program->tiling.tiles; t++)
        if (program->tile_status[t]) return program->tile_status[t];
    return SHERL_OK;
}

static sherl_status run_coupled(run *run) {
    sherl_program *program = run->program;
    for (run->step = 0; run->step < run->steps; run->step++) {
        sherl_status status;
        if (step_is_coupled(program, &program->steps[run->step])) {
            sherl_tile tile = place_batch(run, run->step >= program->forward_steps);
            status = run_step(run, &tile, 0, 0, run->step);
        } else {
            sherl_pool_run(program->context->pool, program->tiling.lanes, run_lane_step, run);
            status = first_failure(program);
        }
        if (status) return status;
    }
    return SHERL_OK;
}

/* Lets coupled ops keep what they learned of the batch, once all of it went well. */
static void commit(const run *run) {
    const sherl_network *network = &run->program->network;
    for (size_t i = 0; i < network->op_count; i++)
        if (network->ops[i].type->commit) {
            sherl_tile tile = place_batch(run, false);
            network->ops[i].type->commit(&network->ops[i], &tile);
        }
}

/* Adds the other lanes to lane 0, in order; a task takes one parameter. */
static void reduce_parameter(void *state, size_t parameter, size_t worker) {
    const sherl_program *program = state;
    (void)worker;
    size_t offset = program->gradient_offsets[parameter];
    if (offset == SIZE_MAX) return;
    size_t count = program->parameter_rows[parameter] *
                   sherl_parameters_columns(program->parameters, (sherl_parameter)parameter);
    for (size_t l = 1; l < program->tiling.lanes; l++)
        program->context->kernels->accumulate(program->lanes[l] + offset, program->lanes[0] + offset, count);
}

static sherl_status check_batch(const sherl_program *program, const sherl_batch *batch, bool gradient) {
    if (!batch || batch->samples == 0 || (program->network.input_count > 0 && !batch->inputs))
        return SHERL_INVALID_ARGUMENT;
    for (size_t s = 1; s < program->network.space_count; s++) {
        const size_t *offsets = batch->offsets ? batch->offsets[s] : NULL;
        if (!offsets || offsets[0] != 0) return SHERL_INVALID_ARGUMENT;
        for (size_t i = 0; i < batch->samples; i++)
            if (offsets[i + 1] <= offsets[i]) return SHERL_INVALID_ARGUMENT;
    }
    if (gradient && !program->gradient) return SHERL_INVALID_ARGUMENT;
    if (gradient && program->network.loss == SHERL_NONE && !batch->cotangents) return SHERL_INVALID_ARGUMENT;
    return SHERL_OK;
}

static sherl_status run_batch(sherl_program *program, const sherl_batch *batch, bool gradient, bool add,
                              double *loss) {
    sherl_status status = check_batch(program, batch, gradient);
    if (!status) status = sherl_workspace_prepare(program, batch, gradient);
    if (status) return status;
    run run = {.program = program, .batch = batch, .gradient = gradient,
               .steps = gradient ? program->step_count : program->forward_steps,
               .key = sherl_mix_key(batch->seed, batch->step)};
    size_t lanes = program->tiling.lanes;
    for (size_t t = 0; t < program->tiling.tiles; t++) {
        program->tile_status[t] = SHERL_OK;
        program->tile_losses[t] = 0;
    }
    for (size_t l = add ? 1 : 0; l < lanes && gradient; l++)
        memset(program->lanes[l], 0, program->lane_size * sizeof(sherl_real));
    if (program->coupled) {
        status = run_coupled(&run);
    } else {
        sherl_pool_run(program->context->pool, lanes, run_lane, &run);
        status = first_failure(program);
    }
    if (status) return status;
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
