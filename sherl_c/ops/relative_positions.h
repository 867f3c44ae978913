/* Relative-position bias of attention: a number for each head and each bucket of distances (Raffel et al., 2020). */
#ifndef SHERL_OPS_RELATIVE_POSITIONS_H
#define SHERL_OPS_RELATIVE_POSITIONS_H

#include "op.h"

/* The bucket of a distance, which is the position of the key minus that of the query. */
size_t sherl_position_bucket(const sherl_position_buckets *positions, ptrdiff_t distance);

/* Distances of a key from a query, where neither is further than so many rows into its segment. */
static inline size_t sherl_position_distances(size_t queries, size_t keys) { return queries + keys - 1; }

/* Where, in the row of a head, the biases of query `position` and key 0 … keys - 1 begin. */
static inline size_t sherl_position_offset(size_t queries, size_t position) { return queries - 1 - position; }

/* by_distance[h][queries - 1 + d] = table[bucket of d][h]; table: (buckets, heads), by_distance: (heads, distances) */
void sherl_spread_positions(const sherl_op *op, const sherl_real *table, size_t queries, size_t keys,
                            sherl_real *by_distance);
/* dtable += what comes from the gradient of by_distance */
void sherl_gather_positions(const sherl_op *op, const sherl_real *dby_distance, size_t queries, size_t keys,
                            sherl_real *dtable);

#endif
