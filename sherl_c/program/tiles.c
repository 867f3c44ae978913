/* Tiles and blocks: a batch is cut into runs of whole samples by their sizes alone, so that results do not depend on
 * threads. */
#include "program.h"

enum {
    LEAST_TILE_ROWS = 64, /* below this, products lose more than a further thread gains */
    TILES = 8,       /* of a block, at least, where it has the rows: for balance, and so that a tile stays in cache */
    READ_PIXELS = 64 /* pixels of a stage that is read and pooled at once, for one that is computed */
};

static size_t share(size_t total, size_t parts) { return total / parts + (total % parts != 0); }

/* Rows of a space that count as one. Where nothing couples the images of a batch, those of large ones have tiles of their
 * own, so that their bits are those of each alone. */
static sherl_status find_shares(const sherl_program *program, sherl_tiling *tiling) {
    const sherl_network *network = &program->network;
    sherl_status status = sherl_grow(program->context, &tiling->shares, &tiling->share_capacity, network->space_count,
                                     sizeof *tiling->shares);
    for (size_t s = 0; s < network->space_count && !status; s++)
        tiling->shares[s] = program->whole_batch && network->spaces[s].kind >= SHERL_SPACE_GRID ? READ_PIXELS : 1;
    for (size_t i = 0; i < network->op_count && !status; i++)
        tiling->shares[network->values[network->ops[i].output].space] = 1;
    return status;
}

/* Rows of a sample in the largest row space, as they count. */
static size_t sample_rows(const sherl_program *program, const sherl_tiling *tiling, const size_t *const *offsets,
                          size_t sample) {
    size_t rows = 1;
    for (size_t s = 1; s < program->network.space_count; s++) {
        size_t length = share(offsets[s][sample + 1] - offsets[s][sample], tiling->shares[s]);
        if (length > rows) rows = length;
    }
    return rows;
}

/* Rows that a block and a tile aim at: even shares of the batch, within bounds. */
typedef struct targets { size_t block, tile; } targets;

static targets find_targets(const sherl_program *program, const sherl_cut *cut, const sherl_tiling *tiling,
                            size_t samples, const size_t *const *offsets) {
    size_t total = 0;
    for (size_t sample = 0; sample < samples; sample++) total += sample_rows(program, tiling, offsets, sample);
    bool one_block = program->whole_batch || !program->staged;
    size_t block = one_block ? total : share(total, share(total, cut->block_rows));
    size_t tile = share(block, TILES);
    if (tile < LEAST_TILE_ROWS) tile = LEAST_TILE_ROWS;
    return (targets){.block = block, .tile = tile < cut->tile_rows ? tile : cut->tile_rows};
}

sherl_status sherl_tiling_cut(const sherl_program *program, const sherl_cut *cut, size_t samples,
                              const size_t *const *offsets, sherl_tiling *tiling) {
    const sherl_context *context = program->context;
    sherl_status status =
        sherl_grow(context, &tiling->bounds, &tiling->bound_capacity, samples + 1, sizeof *tiling->bounds);
    if (!status)
        status = sherl_grow(context, &tiling->blocks, &tiling->block_capacity, samples + 1, sizeof *tiling->blocks);
    if (!status) status = find_shares(program, tiling);
    if (status) return status;
    targets target = find_targets(program, cut, tiling, samples, offsets);
    size_t tiles = 0, blocks = 0, tile_rows = 0, block_rows = 0;
    tiling->bounds[0] = tiling->blocks[0] = 0;
    for (size_t sample = 0; sample < samples; sample++) {
        size_t length = sample_rows(program, tiling, offsets, sample);
        bool block_ends = block_rows > 0 && block_rows + length > target.block;
        if (block_ends || (tile_rows > 0 && tile_rows + length > target.tile)) {
            tiling->bounds[++tiles] = sample;
            tile_rows = 0;
        }
        if (block_ends) {
            tiling->blocks[++blocks] = tiles;
            block_rows = 0;
        }
        tile_rows += length;
        block_rows += length;
    }
    tiling->bounds[++tiles] = samples;
    tiling->blocks[++blocks] = tiles;
    tiling->tiles = tiles;
    tiling->block_count = blocks;
    tiling->lanes = tiles < cut->lanes ? tiles : cut->lanes;
    return SHERL_OK;
}

void sherl_tiling_release(const sherl_context *context, sherl_tiling *tiling) {
    sherl_release(context, tiling->bounds);
    sherl_release(context, tiling->blocks);
    sherl_release(context, tiling->shares);
    *tiling = (sherl_tiling){0};
}

/* Widens `rows` and `samples` to those of the samples [first, end). */
static void widen(const sherl_program *program, const size_t *const *offsets, size_t first, size_t end, size_t *rows,
                  size_t *samples) {
    if (end - first > *samples) *samples = end - first;
    for (size_t s = 0; s < program->network.space_count; s++) {
        size_t here = s == SHERL_SAMPLES ? end - first : offsets[s][end] - offsets[s][first];
        if (here > rows[s]) rows[s] = here;
    }
}

sherl_status sherl_tiling_extent(const sherl_program *program, const sherl_tiling *tiling, const size_t *const *offsets,
                                 sherl_extent *extent) {
    size_t spaces = program->network.space_count, *arrays;
    sherl_status status = sherl_allocate(program->context, spaces, 3 * sizeof(size_t), &arrays);
    if (status) return status;
    *extent =
        (sherl_extent){.tile_rows = arrays, .block_rows = arrays + spaces, .longest_segment = arrays + 2 * spaces};
    for (size_t t = 0; t < tiling->tiles; t++)
        widen(program, offsets, tiling->bounds[t], tiling->bounds[t + 1], extent->tile_rows, &extent->tile_samples);
    for (size_t b = 0; b < tiling->block_count && program->staged; b++)
        widen(program, offsets, tiling->bounds[tiling->blocks[b]], tiling->bounds[tiling->blocks[b + 1]],
              extent->block_rows, &extent->block_samples);
    extent->longest_segment[SHERL_SAMPLES] = 1;
    for (size_t s = 1; s < spaces; s++)
        for (size_t sample = 0; sample < tiling->bounds[tiling->tiles]; sample++) {
            size_t length = offsets[s][sample + 1] - offsets[s][sample];
            if (length > extent->longest_segment[s]) extent->longest_segment[s] = length;
        }
    return SHERL_OK;
}

/* The three arrays are one allocation. */
void sherl_extent_release(const sherl_context *context, sherl_extent *extent) {
    sherl_release(context, extent->tile_rows);
    *extent = (sherl_extent){0};
}
