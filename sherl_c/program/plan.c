/* The memory plan: buffers whose lives do not overlap share the bytes of an arena. Those that live within one stage lie in
 * the arena of a worker, sized for a tile; those that pass from stage to stage in the arena of a block. */
#include "program.h"

void sherl_plan_release(const sherl_context *context, sherl_plan *plan) {
    sherl_release(context, plan->tile.rows);
    sherl_release(context, plan->block.rows);
    sherl_release(context, plan->longest_segment);
    sherl_release(context, plan->offsets);
    *plan = (sherl_plan){0};
}

static bool buffer_bytes(const sherl_plan *plan, const sherl_buffer *buffer, size_t *bytes) {
    size_t rows = (buffer->shared ? &plan->block : &plan->tile)->rows[buffer->space];
    return sherl_multiply_sizes(rows, buffer->channels, bytes) &&
           sherl_multiply_sizes(*bytes, buffer->element_size, bytes) && sherl_align_size(*bytes, bytes);
}

/* Two buffers that need bytes of their own. */
static bool conflict(const sherl_buffer *a, const sherl_buffer *b) {
    return a->shared == b->shared && a->first_step <= b->last_step && b->first_step <= a->last_step;
}

/* The lowest offset at which a buffer fits beside every placed one that it conflicts with. `order` lists the buffers by
 * falling size; the first `placed` of them have offsets. */
static size_t lowest_offset(const sherl_program *program, const sherl_plan *plan, const size_t *sizes,
                            const uint32_t *order, size_t placed, uint32_t buffer) {
    const sherl_buffer *buffers = program->residence.buffers;
    size_t offset = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (size_t i = 0; i < placed; i++) {
            uint32_t other = order[i];
            if (!conflict(&buffers[buffer], &buffers[other])) continue;
            size_t end = plan->offsets[other] + sizes[other];
            if (offset < end && plan->offsets[other] < offset + sizes[buffer]) {
                offset = end;
                moved = true;
            }
        }
    }
    return offset;
}

/* Falling sizes; equal ones by number. Insertion sort: some hundred buffers, once for each growth of the limits. */
static void sort_by_size(const size_t *sizes, uint32_t *order, size_t count) {
    for (size_t i = 0; i < count; i++) {
        size_t k = i;
        for (; k > 0 && sizes[order[k - 1]] < sizes[i]; k--) order[k] = order[k - 1];
        order[k] = (uint32_t)i;
    }
}

/* The most scratch of any op that runs in an arena: wide ones in that of the block. */
static bool scratch_bytes(const sherl_program *program, const sherl_plan *plan, bool wide, sherl_arena_plan *arena) {
    sherl_limits limits = {.rows = arena->rows,
                           .longest_segment = plan->longest_segment,
                           .samples = arena->samples,
                           .value_spaces = program->value_spaces,
                           .value_channels = program->value_channels};
    size_t most = 0, needed;
    for (size_t i = 0; i < program->network.op_count; i++) {
        const sherl_op *op = &program->network.ops[i];
        if (op->wide != wide || !op->type->scratch_bytes) continue;
        if (!op->type->scratch_bytes(op, &limits, &needed)) return false;
        if (needed > most) most = needed;
    }
    for (size_t i = 0; i < program->network.output_count && !wide; i++) { /* one row of a cotangent */
        needed = program->value_channels[program->network.outputs[i]] * sizeof(sherl_real);
        if (needed > most) most = needed;
    }
    return sherl_align_size(most, &arena->scratch_bytes) &&
           sherl_add_sizes(arena->scratch_offset, arena->scratch_bytes, &arena->bytes);
}

static sherl_status place_buffers(const sherl_program *program, sherl_plan *plan) {
    size_t count = program->residence.buffer_count;
    size_t *sizes = NULL;
    uint32_t *order = NULL;
    sherl_status status = sherl_allocate(program->context, count, sizeof *sizes, &sizes);
    if (!status) status = sherl_allocate(program->context, count, sizeof *order, &order);
    size_t total = 0;
    for (size_t b = 0; b < count && !status; b++)
        if (!buffer_bytes(plan, &program->residence.buffers[b], &sizes[b]) ||
            !sherl_add_sizes(total, sizes[b], &total)) /* so that no sum below can overflow */
            status = SHERL_SIZE_OVERFLOW;
    if (!status) sort_by_size(sizes, order, count);
    for (size_t i = 0; i < count && !status; i++) {
        uint32_t buffer = order[i];
        plan->offsets[buffer] = lowest_offset(program, plan, sizes, order, i, buffer);
        size_t end = plan->offsets[buffer] + sizes[buffer];
        sherl_arena_plan *arena = program->residence.buffers[buffer].shared ? &plan->block : &plan->tile;
        if (end > arena->scratch_offset) arena->scratch_offset = end;
    }
    sherl_release(program->context, sizes);
    sherl_release(program->context, order);
    return status;
}

static bool covers(const sherl_plan *plan, const sherl_extent *extent, size_t spaces) {
    if (!plan->offsets || plan->tile.samples < extent->tile_samples || plan->block.samples < extent->block_samples)
        return false;
    for (size_t s = 0; s < spaces; s++)
        if (plan->tile.rows[s] < extent->tile_rows[s] || plan->block.rows[s] < extent->block_rows[s] ||
            plan->longest_segment[s] < extent->longest_segment[s])
            return false;
    return true;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* New limits cover the old ones too, so a plan settles after a few batches. */
static sherl_status widen(const sherl_program *program, const sherl_extent *extent, const sherl_plan *old,
                          sherl_plan *plan) {
    const sherl_context *context = program->context;
    size_t spaces = program->network.space_count;
    sherl_status status = sherl_allocate(context, spaces, sizeof(size_t), &plan->tile.rows);
    if (!status) status = sherl_allocate(context, spaces, sizeof(size_t), &plan->block.rows);
    if (!status) status = sherl_allocate(context, spaces, sizeof(size_t), &plan->longest_segment);
    if (!status) status = sherl_allocate(context, program->residence.buffer_count, sizeof(size_t), &plan->offsets);
    if (status) return status;
    bool had = old->offsets != NULL;
    for (size_t s = 0; s < spaces; s++) {
        plan->tile.rows[s] = larger(had ? old->tile.rows[s] : 0, extent->tile_rows[s]);
        plan->block.rows[s] = larger(had ? old->block.rows[s] : 0, extent->block_rows[s]);
        plan->longest_segment[s] = larger(had ? old->longest_segment[s] : 0, extent->longest_segment[s]);
    }
    plan->tile.samples = larger(had ? old->tile.samples : 0, extent->tile_samples);
    plan->block.samples = larger(had ? old->block.samples : 0, extent->block_samples);
    return SHERL_OK;
}

sherl_status sherl_plan_cover(const sherl_program *program, const sherl_extent *extent, sherl_plan *plan) {
    if (covers(plan, extent, program->network.space_count)) return SHERL_OK;
    sherl_plan grown = {0};
    sherl_status status = widen(program, extent, plan, &grown);
    if (!status) status = place_buffers(program, &grown);
    if (!status &&
        (!scratch_bytes(program, &grown, false, &grown.tile) || !scratch_bytes(program, &grown, true, &grown.block)))
        status = SHERL_SIZE_OVERFLOW;
    if (status) {
        sherl_plan_release(program->context, &grown);
        return status;
    }
    sherl_plan_release(program->context, plan);
    *plan = grown;
    return SHERL_OK;
}
