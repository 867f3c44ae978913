/* Residence: which matrices a tile keeps in its arena, and from which step to which. */
#include "program.h"

static sherl_status add_buffer(sherl_program *program, sherl_value value, size_t element_size, size_t step,
                               uint32_t *buffer) {
    sherl_residence *residence = &program->residence;
    sherl_status status = sherl_grow(program->context, &residence->buffers, &residence->buffer_capacity,
                                     residence->buffer_count + 1, sizeof *residence->buffers);
    if (status) return status;
    const sherl_value_info *info = &program->network.values[value];
    *buffer = (uint32_t)residence->buffer_count;
    residence->buffers[residence->buffer_count++] = (sherl_buffer){.space = info->space,
                                                                   .channels = info->channels,
                                                                   .element_size = element_size,
                                                                   .first_step = (uint32_t)step,
                                                                   .last_step = (uint32_t)step};
    return SHERL_OK;
}

static sherl_status add_value_buffer(sherl_program *program, sherl_value value, size_t step, uint32_t *buffer) {
    bool integer = program->network.values[value].integer;
    return add_buffer(program, value, integer ? sizeof(int32_t) : sizeof(sherl_real), step, buffer);
}

/* Extends a buffer's life to a step; nothing when there is no buffer. */
static void touch(sherl_residence *residence, uint32_t buffer, size_t step) {
    if (buffer != SHERL_NONE && residence->buffers[buffer].last_step < step)
        residence->buffers[buffer].last_step = (uint32_t)step;
}

/* The last forward step that reads each value, and whether backward reads it. */
typedef struct last_reads {
    size_t *step;
    bool *backward;
} last_reads;

static void find_last_reads(const sherl_program *program, last_reads last) {
    const sherl_network *network = &program->network;
    for (size_t s = 0; s < program->step_count; s++) {
        const sherl_step *step = &program->steps[s];
        if (step->kind == SHERL_STEP_FORWARD) {
            const sherl_op *op = &network->ops[step->index];
            for (uint32_t k = 0; k < op->input_count; k++) last.step[op->inputs[k]] = s;
        } else if (step->kind == SHERL_STEP_STORE) {
            last.step[network->outputs[step->index]] = s;
        } else if (step->kind == SHERL_STEP_LOSS) {
            last.step[network->loss] = s;
        } else if (step->kind == SHERL_STEP_BACKWARD) {
            const sherl_op *op = &network->ops[step->index];
            sherl_backward_reads reads;
            sherl_op_backward_reads(program, op, &reads);
            for (uint32_t k = 0; k < op->input_count; k++)
                if (reads.inputs[k]) last.backward[op->inputs[k]] = true;
            if (reads.output) last.backward[op->output] = true;
        }
    }
}

/* May the output take over the buffer of input 0: nothing reads that one after this step. */
static bool output_replaces_input(const sherl_program *program, const sherl_op *op, size_t step, last_reads last) {
    if (!op->type->forward_in_place || op->input_count == 0) return false;
    sherl_value input = op->inputs[0];
    const sherl_value_info *from = &program->network.values[input], *to = &program->network.values[op->output];
    for (uint32_t k = 1; k < op->input_count; k++)
        if (op->inputs[k] == input) return false;
    return from->input == SHERL_NONE && last.step[input] == step && !last.backward[input] && from->space == to->space &&
           from->channels == to->channels && from->integer == to->integer;
}

static sherl_status reside_forward(sherl_program *program, size_t s, last_reads last) {
    sherl_residence *residence = &program->residence;
    const sherl_op *op = &program->network.ops[program->steps[s].index];
    for (uint32_t k = 0; k < op->input_count; k++) touch(residence, residence->forward[op->inputs[k]], s);
    if (s >= program->forward_steps) { /* once more, for the backward part */
        if (op->saved != SHERL_NONE) touch(residence, residence->forward[op->saved], s);
        return add_value_buffer(program, op->output, s, &residence->reload[op->output]);
    }
    sherl_status status = SHERL_OK;
    if (op->saved != SHERL_NONE) status = add_value_buffer(program, op->saved, s, &residence->forward[op->saved]);
    if (status) return status;
    if (output_replaces_input(program, op, s, last)) {
        residence->forward[op->output] = residence->forward[op->inputs[0]];
        return SHERL_OK;
    }
    return add_value_buffer(program, op->output, s, &residence->forward[op->output]);
}

/* The gradient of a value begins to exist here unless it does already. */
static sherl_status reside_gradient(sherl_program *program, sherl_value value, size_t s) {
    sherl_residence *residence = &program->residence;
    if (residence->gradient[value] == SHERL_NONE)
        return add_buffer(program, value, sizeof(sherl_real), s, &residence->gradient[value]);
    touch(residence, residence->gradient[value], s);
    return SHERL_OK;
}

/* May the gradient of input 0 be written over that of the output, which nothing reads after this step. */
static bool gradient_replaces_output(const sherl_program *program, const sherl_op *op) {
    const sherl_value_info *from = &program->network.values[op->output];
    const sherl_value_info *to = &program->network.values[op->inputs[0]];
    return op->type->backward_in_place && to->has_gradient && !op->accumulate[0] && from->space == to->space &&
           from->channels == to->channels;
}

static sherl_status reside_backward(sherl_program *program, size_t s) {
    sherl_residence *residence = &program->residence;
    const sherl_op *op = &program->network.ops[program->steps[s].index];
    sherl_backward_reads reads;
    sherl_op_backward_reads(program, op, &reads);
    for (uint32_t k = 0; k < op->input_count; k++) {
        sherl_value input = op->inputs[k];
        bool reloaded = residence->reload[input] != SHERL_NONE;
        if (reads.inputs[k]) touch(residence, reloaded ? residence->reload[input] : residence->forward[input], s);
    }
    if (reads.output) touch(residence, residence->forward[op->output], s);
    if (op->saved != SHERL_NONE) /* what is committed must last to the end */
        touch(residence, residence->forward[op->saved], op->type->commit ? program->step_count - 1 : s);
    touch(residence, residence->gradient[op->output], s);
    if (gradient_replaces_output(program, op)) residence->gradient[op->inputs[0]] = residence->gradient[op->output];
    sherl_status status = SHERL_OK;
    for (uint32_t k = 0; k < op->input_count && !status; k++)
        if (program->network.values[op->inputs[k]].has_gradient) status = reside_gradient(program, op->inputs[k], s);
    return status;
}

static sherl_status reside_step(sherl_program *program, size_t s, last_reads last) {
    sherl_residence *residence = &program->residence;
    const sherl_network *network = &program->network;
    const sherl_step *step = &program->steps[s];
    switch (step->kind) {
    case SHERL_STEP_LOAD:
        return add_value_buffer(program, step->index, s,
                                s < program->forward_steps ? &residence->forward[step->index]
                                                           : &residence->reload[step->index]);
    case SHERL_STEP_FORWARD: return reside_forward(program, s, last);
    case SHERL_STEP_STORE: touch(residence, residence->forward[network->outputs[step->index]], s); return SHERL_OK;
    case SHERL_STEP_LOSS: touch(residence, residence->forward[network->loss], s); return SHERL_OK;
    case SHERL_STEP_SEED_LOSS: return reside_gradient(program, network->loss, s);
    case SHERL_STEP_SEED_OUTPUT: return reside_gradient(program, network->outputs[step->index], s);
    case SHERL_STEP_BACKWARD: return reside_backward(program, s);
    case SHERL_STEP_STORE_GRADIENT: touch(residence, residence->gradient[step->index], s); return SHERL_OK;
    }
    return SHERL_INVALID_ARGUMENT;
}

static const sherl_stage *stage_of(const sherl_program *program, size_t step) {
    const sherl_stage *stage = program->stages;
    while (step >= stage->end_step) stage++;
    return stage;
}

/* A buffer that only one stage of tiles knows may lie in the arena of a worker. A shared one lives through all of its
 * first and last stage: while one tile is at the last step of a stage, another may be at its first. */
static void mark_shared(sherl_program *program) {
    for (size_t b = 0; b < program->residence.buffer_count; b++) {
        sherl_buffer *buffer = &program->residence.buffers[b];
        const sherl_stage *first = stage_of(program, buffer->first_step);
        const sherl_stage *last = stage_of(program, buffer->last_step);
        buffer->shared = first->wide || first != last;
        if (buffer->shared && !first->wide) buffer->first_step = (uint32_t)first->first_step;
        if (buffer->shared && !last->wide) buffer->last_step = (uint32_t)last->end_step - 1;
    }
}

sherl_status sherl_pass_residence(sherl_program *program) {
    const sherl_context *context = program->context;
    size_t values = program->network.value_count;
    sherl_residence *residence = &program->residence;
    last_reads last = {0};
    sherl_status status = sherl_allocate(context, values, sizeof(uint32_t), &residence->forward);
    if (!status) status = sherl_allocate(context, values, sizeof(uint32_t), &residence->reload);
    if (!status) status = sherl_allocate(context, values, sizeof(uint32_t), &residence->gradient);
    if (!status) status = sherl_allocate(context, values, sizeof(size_t), &last.step);
    if (!status) status = sherl_allocate(context, values, sizeof(bool), &last.backward);
    if (!status) {
        for (size_t v = 0; v < values; v++)
            residence->forward[v] = residence->reload[v] = residence->gradient[v] = SHERL_NONE;
        find_last_reads(program, last);
    }
    for (size_t s = 0; s < program->step_count && !status; s++) status = reside_step(program, s, last);
    if (!status) mark_shared(program);
    sherl_release(context, last.step);
    sherl_release(context, last.backward);
    return status;
}
