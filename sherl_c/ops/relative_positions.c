/* Buckets of relative positions: one for each short distance, then ever wider ones up to a furthest distance. */
#include "relative_positions.h"

#include <math.h>

/* In float32 and in the order of the reference's terms: at a bucket's edge the rounding decides, and weights were
 * trained with its choice. */
static size_t far_bucket(size_t distance, size_t exact, size_t buckets, size_t max_distance) {
    const float octaves = logf((float)distance / (float)exact) / (float)log((double)max_distance / (double)exact);
    const size_t bucket = exact + (size_t)(octaves * (float)(buckets - exact));
    return bucket < buckets ? bucket : buckets - 1;
}

size_t sherl_position_bucket(const sherl_position_buckets *positions, ptrdiff_t distance) {
    size_t buckets = positions->bidirectional ? positions->buckets / 2 : positions->buckets, exact = buckets / 2;
    const size_t first = positions->bidirectional && distance > 0 ? buckets : 0;
    if (distance > 0 && !positions->bidirectional) distance = 0;
    const size_t steps = (size_t)(distance < 0 ? -distance : distance);
    return first + (steps < exact ? steps : far_bucket(steps, exact, buckets, positions->max_distance));
}

void sherl_spread_positions(const sherl_op *op, const sherl_real *table, size_t queries, size_t keys,
                            sherl_real *by_distance) {
    const size_t heads = op->settings.attention.heads, distances = sherl_position_distances(queries, keys);
    for (size_t i = 0; i < distances; i++) {
        const ptrdiff_t distance = (ptrdiff_t)i - (ptrdiff_t)(queries - 1);
        const sherl_real *biases = table + sherl_position_bucket(&op->settings.attention.positions, distance) * heads;
        for (size_t head = 0; head < heads; head++) by_distance[head * distances + i] = biases[head];
    }
}

void sherl_gather_positions(const sherl_op *op, const sherl_real *dby_distance, size_t queries, size_t keys,
                            sherl_real *dtable) {
    const size_t heads = op->settings.attention.heads, distances = sherl_position_distances(queries, keys);
    for (size_t i = 0; i < distances; i++) {
        const ptrdiff_t distance = (ptrdiff_t)i - (ptrdiff_t)(queries - 1);
        sherl_real *dbiases = dtable + sherl_position_bucket(&op->settings.attention.positions, distance) * heads;
        for (size_t head = 0; head < heads; head++) dbiases[head] += dby_distance[head * distances + i];
    }
}
