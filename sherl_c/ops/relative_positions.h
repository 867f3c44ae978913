/* Relative-position bias of attention: a number for each head and each bucket of distances (Raffel et al., 2020). */
#ifndef SHERL_OPS_RELATIVE_POSITIONS_H
#define SHERL_OPS_RELATIVE_POSITIONS_H

#include "op.h"

/* by_distance[h][i] = table[bucket of least_distance + i][h]; table: (buckets, heads), by_distance: (heads, distances) */
void sherl_spread_positions(const sherl_op *op, const sherl_real *table, ptrdiff_t least_distance, size_t distances,
                            sherl_real *by_distance);
/* dtable += what comes from the gradient of by_distance */
void sherl_gather_positions(const sherl_op *op, const sherl_real *dby_distance, ptrdiff_t least_distance,
                            size_t distances, sherl_real *dtable);

#endif
