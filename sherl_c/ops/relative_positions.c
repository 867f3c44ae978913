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

/* The bucket of a distance, which is the position of the key minus that of the query. */
static size_t find_bucket(const sherl_position_buckets *positions, ptrdiff_t distance) {
    size_t buckets = positions->bidirectional ? positions->buckets / 2 : positions->buckets, exact = buckets / 2;
    const size_t first = positions->bidirectional && distance > 0 ? buckets : 0;
    if (distance > 0 && !positions->bidirectional) distance = 0;
    const size_t steps = (size_t)(distance < 0 ? -distance : distance);
    return first + (steps < exact ? steps : far_bucket(steps, exact, buckets, positions->max_distance));
}

void sherl_spread_positions(const sherl_op *op, const sherl_real *table, ptrdiff_t least_distance, size_t distances,
                            sherl_real *by_distance) {
    const size_t heads = op->settings.attention.heads;
    for (size_t i = 0; i < distances; i++) {
        const size_t bucket = find_bucket(&op->settings.attention.positions, least_distance + (ptrdiff_t)i);
        for (size_t head = 0; head < heads; head++) by_distance[head * distances + i] = table[bucket * heads + head];
    }
}

void sherl_gather_positions(const sherl_op *op, const sherl_real *dby_distance, ptrdiff_t least_distance,
                            size_t distances, sherl_real *dtable) {
    const size_t heads = op->settings.attention.heads;
    for (size_t i = 0; i < distances; i++) {
        const size_t bucket = find_bucket(&op->settings.attention.positions, least_distance + (ptrdiff_t)i);
        for (size_t head = 0; head < heads; head++) dtable[bucket * heads + head] += dby_distance[head * distances + i];
    }
}
