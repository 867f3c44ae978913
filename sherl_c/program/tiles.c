/* Tiles: a batch is cut into runs of whole samples by their sizes alone, so that results do not depend on threads. */
#include "program.h"

enum {
    LANES = 8,          /* gradient lanes: the most threads that can share a batch */
    LEAST_TILE_ROWS = 64 /* below this, products lose more than a further thread gains */
};

/* Rows of a sample in the largest row space. */
static size_t sample_rows(const sherl_program *program, const size_t *const *offsets, size_t sample) {
    size_t rows = 1;
    for (size_t s = 1; s < program->network.space_count; s++) {
        size_t length = offsets[s][sample + 1] - offsets[s][sample];
        if (length > rows) rows = length;
    }
    return rows;
}

/* Rows that a tile aims at: an even share of the batch for each lane, within bounds. */
static size_t target_rows(const sherl_program *program, size_t samples, const size_t *const *offsets) {
    size_t total = 0;
    for (size_t sample = 0; sample < samples; sample++) total += sample_rows(program, offsets, sample);
    size_t share = total / LANES + (total % LANES != 0);
    if (share < LEAST_TILE_ROWS) share = LEAST_TILE_ROWS;
    return share < program->tile_rows ? share : program->tile_rows;
}

sherl_status sherl_tiling_cut(const sherl_program *program, size_t samples, const size_t *const *offsets,
                              sherl_tiling *tiling) {
    sherl_status status = sherl_grow(program->context, &tiling->bounds, &tiling->capacity, samples + 1,
                                     sizeof *tiling->bounds);
    if (status) return status;
    size_t target = target_rows(program, samples, offsets), tiles = 0, rows = 0;
    tiling->bounds[0] = 0;
    for (size_t sample = 0; sample < samples; sample++) {
        size_t length = sample_rows(program, offsets, sample);
        if (rows > 0 && rows + length > target) {
            tiling->bounds[++tiles] = sample;
            rows = 0;
        }
        rows += length;
    }
    tiling->bounds[++tiles] = samples;
    tiling->tiles = tiles;
    tiling->lanes = tiles < LANES ? tiles : LANES;
    return SHERL_OK;
}

void sherl_tiling_limits(const sherl_program *program, const sherl_tiling *tiling, const size_t *const *offsets,
                         size_t *rows, size_t *longest_segment, size_t *samples) {
    size_t batch = tiling->bounds[tiling->tiles];
    *samples = 0;
    for (size_t s = 0; s < program->network.space_count; s++) rows[s] = longest_segment[s] = 0;
    for (size_t t = 0; t < tiling->tiles; t++) {
        size_t first = program->coupled ? 0 : tiling->bounds[t];
        size_t end = program->coupled ? batch : tiling->bounds[t + 1];
        if (end - first > *samples) *samples = end - first;
        for (size_t s = 0; s < program->network.space_count; s++) {
            size_t tile = s == SHERL_SAMPLES ? end - first : offsets[s][end] - offsets[s][first];
            if (tile > rows[s]) rows[s] = tile;
        }
    }
    longest_segment[SHERL_SAMPLES] = 1;
    for (size_t s = 1; s < program->network.space_count; s++)
        for (size_t sample = 0; sample < batch; sample++) {
            size_t length = offsets[s][sample + 1] - offsets[s][sample];
            if (length > longest_segment[s]) longest_segment[s] = length;
        }
}
