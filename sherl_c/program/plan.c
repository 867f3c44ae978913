/* The memory plan: buffers whose lives do not overlap share the bytes of an arena. */
#include "program.h"

void sherl_plan_release(const sherl_context *context, sherl_plan *plan) {
    sherl_release(context, plan->rows);
    sherl_release(context, plan->longest_segment);
    sherl_release(context, plan->offsets);
    *plan = (sherl_plan){0};
}

static bool buffer_bytes(const sherl_plan *plan, const sherl_buffer *buffer, size_t *bytes) {
    return sherl_multiply_sizes(plan->rows[buffer->space], buffer->channels, bytes) &&
           sherl_multiply_sizes(*bytes, buffer->element_size, bytes) && sherl_align_size(*bytes, bytes);
}

static bool lives_overlap(const sherl_buffer *a, const sherl_buffer *b) {
    return a->first_step <= b->last_step && b->first_step <= a->last_step;
}

/* The lowest offset at which `bytes` fit beside every placed buffer that lives at the same time. `order` lists the
 * buffers by falling size; the first `placed` of them have offsets. */
static size_t lowest_offset(const sherl_program *program, const sherl_plan *plan, const size_t *sizes,
                            const uint32_t *order, size_t placed, uint32_t buffer) {
    const sherl_buffer *buffers = program->residence.buffers;
    size_t offset = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (size_t i = 0; i < placed; i++) {
            uint32_t other = order[i];
            if (!lives_overlap(&buffers[buffer], &buffers[other])) continue;
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

static bool scratch_bytes(const sherl_program *program, const sherl_limits *limits, size_t *bytes) {
    *bytes = 0;
    for (size_t i = 0; i < program->network.op_count; i++) {
        const sherl_op *op = &program->network.ops[i];
        size_t needed = 0;
        if (op->type->scratch_bytes && !op->type->scratch_bytes(op, limits, &needed)) return false;
        if (needed > *bytes) *bytes = needed;
    }
    for (size_t i = 0; i < program->network.output_count; i++) { /* one row of a cotangent */
        size_t needed;
        const sherl_value_info *output = &program->network.values[program->network.outputs[i]];
        if (!sherl_multiply_sizes(output->channels, sizeof(sherl_real), &needed)) return false;
        if (needed > *bytes) *bytes = needed;
    }
    return sherl_align_size(*bytes, bytes);
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
    if (!status) {
        sort_by_size(sizes, order, count);
        plan->scratch_offset = 0;
        for (size_t i = 0; i < count; i++) {
            plan->offsets[order[i]] = lowest_offset(program, plan, sizes, order, i, order[i]);
            size_t end = plan->offsets[order[i]] + sizes[order[i]];
            if (end > plan->scratch_offset) plan->scratch_offset = end;
        }
        if (!sherl_add_sizes(plan->scratch_offset, plan->scratch_bytes, &plan->arena_bytes))
            status = SHERL_SIZE_OVERFLOW;
    }
    sherl_release(program->context, sizes);
    sherl_release(program->context, order);
    return status;
}

static bool covers(const sherl_plan *plan, const sherl_limits *limits, size_t spaces) {
    if (!plan->offsets || plan->samples < limits->samples) return false;
    for (size_t s = 0; s < spaces; s++)
        if (plan->rows[s] < limits->rows[s] || plan->longest_segment[s] < limits->longest_segment[s]) return false;
    return true;
}

/* New limits cover the old ones too, so a plan settles after a few batches. */
static sherl_status widen(const sherl_program *program, const sherl_limits *limits, const sherl_plan *old,
                          sherl_plan *plan) {
    size_t spaces = program->network.space_count;
    sherl_status status = sherl_allocate(program->context, spaces, sizeof(size_t), &plan->rows);
    if (!status) status = sherl_allocate(program->context, spaces, sizeof(size_t), &plan->longest_segment);
    if (!status)
        status = sherl_allocate(program->context, program->residence.buffer_count, sizeof(size_t), &plan->offsets);
    if (status) return status;
    bool had = old->offsets != NULL;
    for (size_t s = 0; s < spaces; s++) {
        plan->rows[s] = had && old->rows[s] > limits->rows[s] ? old->rows[s] : limits->rows[s];
        plan->longest_segment[s] = had && old->longest_segment[s] > limits->longest_segment[s]
                                       ? old->longest_segment[s] : limits->longest_segment[s];
    }
    plan->samples = had && old->samples > limits->samples ? old->samples : limits->samples;
    return SHERL_OK;
}

sherl_status sherl_plan_cover(const sherl_program *program, const sherl_limits *limits, sherl_plan *plan) {
    if (covers(plan, limits, program->network.space_count)) return SHERL_OK;
    sherl_plan grown = {0};
    sherl_status status = widen(program, limits, plan, &grown);
    sherl_limits covered = {.rows = grown.rows, .longest_segment = grown.longest_segment, .samples = grown.samples,
                            .value_spaces = program->value_spaces, .value_channels = program->value_channels};
    if (!status && !scratch_bytes(program, &covered, &grown.scratch_bytes)) status = SHERL_SIZE_OVERFLOW;
    if (!status) status = place_buffers(program, &grown);
    if (status) {
        sherl_plan_release(program->context, &grown);
        return status;
    }
    sherl_plan_release(program->context, plan);
    *plan = grown;
    return SHERL_OK;
}
