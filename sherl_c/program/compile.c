/* Compiling a graph into a program: the passes in order, and what may be asked of the result. */
#include <stdio.h>
#include <string.h>

#include "parameters.h"
#include "program.h"

enum {
    DEFAULT_TILE_ROWS = 512,
    DEFAULT_BLOCK_ROWS = 2048,
    MOST_LANES = 8, /* gradient lanes: the most threads that can share a batch */
    FEW_LANES = 4,  /* of a network whose gradients are large */
    LANES_ALLOWED = 64,
    LANE_BYTES = 16 << 20 /* what gradient lanes may take before they become few */
};

/* Tables by parameter: data, and where its gradient lies in a lane. */
static sherl_status tabulate_parameters(sherl_program *program) {
    const sherl_context *context = program->context;
    size_t count = sherl_parameters_count(program->parameters);
    program->parameter_count = count;
    sherl_status status = sherl_allocate(context, count, sizeof *program->parameter_data, &program->parameter_data);
    if (!status)
        status = sherl_allocate(context, count, sizeof *program->mutable_parameters, &program->mutable_parameters);
    if (!status) status = sherl_allocate(context, count, sizeof(size_t), &program->parameter_rows);
    if (!status) status = sherl_allocate(context, count, sizeof(size_t), &program->gradient_offsets);
    for (size_t p = 0; p < count && !status; p++) {
        sherl_parameter parameter = (sherl_parameter)p;
        sherl_role role = sherl_parameters_role(program->parameters, parameter);
        program->parameter_data[p] = sherl_parameters_data(program->parameters, parameter);
        program->parameter_rows[p] = sherl_parameters_rows(program->parameters, parameter);
        if (role == SHERL_STATE)
            program->mutable_parameters[p] = sherl_parameters_mutable_data(program->parameters, parameter);
        program->gradient_offsets[p] = SIZE_MAX;
    }
    return status;
}

/* A place in the lanes for each trainable parameter that an op with a gradient reads. */
static sherl_status place_gradients(sherl_program *program) {
    const sherl_network *network = &program->network;
    for (size_t i = 0; i < network->op_count; i++) {
        const sherl_op *op = &network->ops[i];
        if (!network->values[op->output].has_gradient) continue;
        for (uint32_t slot = 0; slot < op->parameter_count; slot++) {
            sherl_parameter p = op->parameters[slot];
            if (p == SHERL_NONE || sherl_parameters_role(program->parameters, p) != SHERL_TRAINABLE ||
                program->gradient_offsets[p] != SIZE_MAX)
                continue;
            size_t bytes, columns = sherl_parameters_columns(program->parameters, p);
            if (!sherl_multiply_sizes(program->parameter_rows[p] * columns, sizeof(sherl_real), &bytes) ||
                !sherl_align_size(bytes, &bytes))
                return SHERL_SIZE_OVERFLOW;
            program->gradient_offsets[p] = program->lane_size;
            if (!sherl_add_sizes(program->lane_size, bytes / sizeof(sherl_real), &program->lane_size))
                return SHERL_SIZE_OVERFLOW;
        }
    }
    size_t most = LANE_BYTES / sizeof(sherl_real) / MOST_LANES;
    program->lane_limit = program->lane_size <= most ? MOST_LANES : FEW_LANES;
    return SHERL_OK;
}

/* The frozen weights of bfloat16 products, in the forms that this program reads. */
static sherl_status pack_weights(sherl_program *program) {
    for (size_t i = 0; i < program->network.op_count; i++) {
        sherl_op *op = &program->network.ops[i];
        if (!op->bfloat16) continue;
        sherl_status status = sherl_parameters_pack(program->parameters, op->parameters[0], false, &op->packed_weight);
        if (!status && program->network.values[op->inputs[0]].has_gradient)
            status = sherl_parameters_pack(program->parameters, op->parameters[0], true, &op->packed_transpose);
        if (status) return status;
    }
    return SHERL_OK;
}

static sherl_status tabulate_values(sherl_program *program) {
    const sherl_network *network = &program->network;
    sherl_status status =
        sherl_allocate(program->context, network->value_count, sizeof(sherl_space), &program->value_spaces);
    if (!status)
        status = sherl_allocate(program->context, network->value_count, sizeof(size_t), &program->value_channels);
    for (size_t v = 0; v < network->value_count && !status; v++) {
        program->value_spaces[v] = network->values[v].space;
        program->value_channels[v] = network->values[v].channels;
    }
    return status;
}

sherl_status sherl_program_compile(sherl_graph *graph, bool gradient, sherl_program **program) {
    if (graph->status) return graph->status;
    sherl_program *compiled;
    sherl_status status = sherl_allocate(graph->context, 1, sizeof *compiled, &compiled);
    if (status) return status;
    compiled->context = graph->context;
    compiled->parameters = graph->parameters;
    compiled->network = (sherl_network){.context = graph->context, .loss = SHERL_NONE};
    compiled->gradient = gradient;
    compiled->tile_rows = DEFAULT_TILE_ROWS;
    compiled->block_rows = DEFAULT_BLOCK_ROWS;
    status = sherl_network_copy_spaces(&compiled->network, &graph->network);
    if (!status) status = sherl_pass_demand(graph, &compiled->network);
    if (!status) status = tabulate_parameters(compiled);
    if (!status) sherl_pass_associate(compiled);
    if (!status) sherl_pass_wide(graph, compiled);
    if (!status && gradient) status = sherl_pass_needs_gradient(compiled);
    if (!status) status = pack_weights(compiled);
    if (!status) status = place_gradients(compiled);
    if (!status) status = sherl_pass_schedule(compiled);
    if (!status) status = sherl_pass_stages(compiled);
    if (!status) status = sherl_pass_residence(compiled);
    if (!status) status = tabulate_values(compiled);
    if (status) {
        sherl_program_destroy(compiled);
        return status;
    }
    *program = compiled;
    return SHERL_OK;
}

void sherl_program_destroy(sherl_program *program) {
    if (!program) return;
    const sherl_context *context = program->context;
    sherl_workspace_release(program);
    sherl_network_release(&program->network);
    sherl_release(context, program->steps);
    sherl_release(context, program->stages);
    sherl_release(context, program->residence.forward);
    sherl_release(context, program->residence.reload);
    sherl_release(context, program->residence.gradient);
    sherl_release(context, program->residence.buffers);
    sherl_release(context, program->parameter_data);
    sherl_release(context, program->mutable_parameters);
    sherl_release(context, program->parameter_rows);
    sherl_release(context, program->gradient_offsets);
    sherl_release(context, program->value_spaces);
    sherl_release(context, program->value_channels);
    sherl_release(context, program);
}

sherl_context *sherl_program_context(const sherl_program *program) { return program->context; }
sherl_parameters *sherl_program_parameters(const sherl_program *program) { return program->parameters; }

const sherl_real *sherl_program_parameter_gradient(const sherl_program *program, sherl_parameter parameter) {
    if (parameter >= program->parameter_count || program->gradient_offsets[parameter] == SIZE_MAX ||
        program->lane_count == 0 || !program->lanes[0])
        return NULL;
    return program->lanes[0] + program->gradient_offsets[parameter];
}

sherl_status sherl_program_set_tile_rows(sherl_program *program, size_t rows) {
    if (rows == 0) return SHERL_INVALID_ARGUMENT;
    program->tile_rows = rows;
    return SHERL_OK;
}

sherl_status sherl_program_set_block_rows(sherl_program *program, size_t rows) {
    if (rows == 0) return SHERL_INVALID_ARGUMENT;
    program->block_rows = rows;
    return SHERL_OK;
}

size_t sherl_program_lanes(const sherl_program *program) { return program->lane_limit; }

sherl_status sherl_program_set_lanes(sherl_program *program, size_t lanes) {
    if (lanes == 0 || lanes > LANES_ALLOWED) return SHERL_INVALID_ARGUMENT;
    program->lane_limit = lanes;
    return SHERL_OK;
}

bool sherl_program_is_staged(const sherl_program *program) { return program->staged; }
bool sherl_program_is_coupled(const sherl_program *program) { return program->whole_batch; }

/* Bytes of all parameters of the store, owned or frozen. */
static void count_parameter_bytes(const sherl_program *program, sherl_memory_report *report) {
    for (size_t p = 0; p < program->parameter_count; p++) {
        size_t bytes = program->parameter_rows[p] * sherl_parameters_columns(program->parameters, (sherl_parameter)p) *
                       sizeof(sherl_real);
        bool frozen = sherl_parameters_role(program->parameters, (sherl_parameter)p) == SHERL_FROZEN;
        *(frozen ? &report->frozen_weights : &report->parameters) +=
            bytes + sherl_parameters_packed_bytes(program->parameters, (sherl_parameter)p);
    }
}

/* Bytes of one buffer in all arenas where it lies; 0 where there is none. */
static size_t held_bytes(const sherl_program *program, const sherl_plan *plan, uint32_t buffer, size_t workers) {
    if (buffer == SHERL_NONE) return 0;
    const sherl_buffer *info = &program->residence.buffers[buffer];
    size_t rows = info->shared ? plan->block.rows[info->space] : workers * plan->tile.rows[info->space];
    return rows * info->channels * info->element_size;
}

/* The part of the arenas where rows of the inputs are laid out. */
static size_t staging_bytes(const sherl_program *program, const sherl_plan *plan, size_t workers) {
    size_t bytes = 0;
    for (size_t v = 0; v < program->network.value_count; v++) {
        if (program->network.values[v].input == SHERL_NONE) continue;
        bytes += held_bytes(program, plan, program->residence.forward[v], workers) +
                 held_bytes(program, plan, program->residence.reload[v], workers);
    }
    return bytes;
}

sherl_status sherl_program_memory(const sherl_program *program, size_t samples, const size_t *const *offsets,
                                  const size_t *const *grids, sherl_memory_report *report) {
    const sherl_context *context = program->context;
    sherl_shapes shapes = {0};
    sherl_tiling tiling = {0};
    sherl_extent extent = {0};
    sherl_plan plan = {0};
    sherl_cut cut;
    sherl_status status = sherl_shapes_prepare(program, samples, offsets, grids, &shapes);
    if (!status) status = sherl_budget_cut(program, samples, shapes.offsets, &cut);
    if (!status) status = sherl_tiling_cut(program, &cut, samples, shapes.offsets, &tiling);
    if (!status) status = sherl_tiling_extent(program, &tiling, shapes.offsets, &extent);
    if (!status) status = sherl_plan_cover(program, &extent, &plan);
    if (!status) {
        size_t threads = sherl_context_threads(context);
        *report = (sherl_memory_report){.tile_rows = cut.tile_rows, .tiles = tiling.tiles, .lanes = tiling.lanes};
        report->workers = threads < tiling.lanes ? threads : tiling.lanes;
        report->gradients = tiling.lanes * sherl_lane_bytes(program);
        report->staging = staging_bytes(program, &plan, report->workers);
        report->arenas = plan.block.bytes + report->workers * plan.tile.bytes;
        count_parameter_bytes(program, report);
    }
    sherl_shapes_release(context, &shapes);
    sherl_tiling_release(context, &tiling);
    sherl_extent_release(context, &extent);
    sherl_plan_release(context, &plan);
    return status;
}
