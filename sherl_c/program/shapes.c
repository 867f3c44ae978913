/* The shapes of a batch: row offsets by row space. Those of images follow from heights and widths, and heights and widths
 * themselves where a window moves over other images; those of a fixed space are the same for every sample. */
#include "program.h"

void sherl_shapes_release(const sherl_context *context, sherl_shapes *shapes) {
    sherl_release(context, shapes->offsets);
    sherl_release(context, shapes->grids);
    sherl_release(context, shapes->computed);
    *shapes = (sherl_shapes){0};
}

static sherl_status check_offsets(const size_t *offsets, size_t samples) {
    if (!offsets || offsets[0] != 0) return SHERL_INVALID_ARGUMENT;
    for (size_t i = 0; i < samples; i++)
        if (offsets[i + 1] <= offsets[i]) return SHERL_INVALID_ARGUMENT;
    return SHERL_OK;
}

/* How often the window fits into a length; false where it does not. */
static bool slide(sherl_window window, size_t length, size_t *places) {
    size_t padded;
    if (!sherl_add_sizes(length, 2 * window.padding, &padded) || padded < window.size) return false;
    *places = (padded - window.size) / window.stride + 1;
    return true;
}

/* The grids of `to` are what the window makes of those of `from`: written where they are derived here, else compared. */
static sherl_status fit_grids(sherl_window window, size_t samples, const size_t *from, const size_t *to,
                              size_t *derived) {
    for (size_t i = 0; i < 2 * samples; i++) {
        size_t places;
        if (!slide(window, from[i], &places)) return SHERL_SHAPE_MISMATCH;
        if (derived)
            derived[i] = places;
        else if (to[i] != places)
            return SHERL_SHAPE_MISMATCH;
    }
    return SHERL_OK;
}

static sherl_status offset_fixed(size_t rows, size_t samples, size_t *offsets) {
    size_t total;
    if (!sherl_multiply_sizes(rows, samples, &total)) return SHERL_SIZE_OVERFLOW;
    for (size_t i = 0; i <= samples; i++) offsets[i] = i * rows;
    return SHERL_OK;
}

static sherl_status offset_grids(const size_t *grids, size_t samples, size_t *offsets) {
    offsets[0] = 0;
    for (size_t i = 0; i < samples; i++) {
        size_t rows;
        if (grids[2 * i] == 0 || grids[2 * i + 1] == 0) return SHERL_INVALID_ARGUMENT;
        if (!sherl_multiply_sizes(grids[2 * i], grids[2 * i + 1], &rows) ||
            !sherl_add_sizes(offsets[i], rows, &offsets[i + 1]))
            return SHERL_SIZE_OVERFLOW;
    }
    return SHERL_OK;
}

/* Tables by row space, and room for an offset array and grids of every space. */
static sherl_status allocate(const sherl_program *program, size_t samples, sherl_shapes *shapes) {
    const sherl_context *context = program->context;
    size_t spaces = program->network.space_count, each, total;
    if (!sherl_multiply_sizes(samples, 3, &each) || !sherl_add_sizes(each, 1, &each) ||
        !sherl_multiply_sizes(each, spaces, &total))
        return SHERL_SIZE_OVERFLOW;
    sherl_status status = SHERL_OK;
    if (!shapes->offsets) status = sherl_allocate(context, spaces, sizeof *shapes->offsets, &shapes->offsets);
    if (!status && !shapes->grids) status = sherl_allocate(context, spaces, sizeof *shapes->grids, &shapes->grids);
    if (!status) status = sherl_grow(context, &shapes->computed, &shapes->capacity, total, sizeof(size_t));
    return status;
}

sherl_status sherl_shapes_prepare(const sherl_program *program, size_t samples, const size_t *const *offsets,
                                  const size_t *const *grids, sherl_shapes *shapes) {
    const sherl_network *network = &program->network;
    if (samples == 0) return SHERL_INVALID_ARGUMENT;
    sherl_status status = allocate(program, samples, shapes);
    if (status) return status;
    size_t *computed = shapes->computed, each = 3 * samples + 1;
    for (size_t i = 0; i <= samples; i++) computed[i] = i;
    shapes->offsets[SHERL_SAMPLES] = computed;
    for (size_t s = 1; s < network->space_count && !status; s++) {
        bool given = network->spaces[s].kind == SHERL_SPACE_SEGMENTS;
        shapes->offsets[s] = given && offsets ? offsets[s] : NULL;
        shapes->grids[s] = network->spaces[s].kind == SHERL_SPACE_GRID && grids ? grids[s] : NULL;
        if (given)
            status = check_offsets(shapes->offsets[s], samples);
        else if (network->spaces[s].kind == SHERL_SPACE_GRID && !shapes->grids[s])
            status = SHERL_INVALID_ARGUMENT;
    }
    for (size_t i = 0; i < network->fit_count && !status; i++) {
        sherl_fit fit = network->fits[i];
        size_t *derived = shapes->grids[fit.to] ? NULL : computed + fit.to * each + samples + 1;
        status = fit_grids(fit.window, samples, shapes->grids[fit.from], shapes->grids[fit.to], derived);
        if (derived) shapes->grids[fit.to] = derived;
    }
    for (size_t s = 1; s < network->space_count && !status; s++) {
        if (network->spaces[s].kind == SHERL_SPACE_SEGMENTS) continue;
        status = network->spaces[s].kind == SHERL_SPACE_FIXED
                     ? offset_fixed(network->spaces[s].rows, samples, computed + s * each)
                     : offset_grids(shapes->grids[s], samples, computed + s * each);
        shapes->offsets[s] = computed + s * each;
    }
    return status;
}

size_t sherl_program_spaces(const sherl_program *program) { return program->network.space_count; }

sherl_status sherl_program_rows(const sherl_program *program, size_t samples, const size_t *const *offsets,
                                const size_t *const *grids, size_t *rows) {
    sherl_shapes shapes = {0};
    sherl_status status = sherl_shapes_prepare(program, samples, offsets, grids, &shapes);
    for (size_t s = 0; s < program->network.space_count && !status; s++) rows[s] = shapes.offsets[s][samples];
    sherl_shapes_release(program->context, &shapes);
    return status;
}
