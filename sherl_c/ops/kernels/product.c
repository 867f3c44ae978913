/* Matrix products of the shapes that a BLAS library is slow at: few rows, few columns, or little depth. Factors are read
 * where they lie, or packed a panel at a time, and sums stay in registers. */
#include "kernels.h"
#include "names.h"

#ifdef __AVX2__ /* elsewhere the products of the BLAS library serve */

/* With AVX-512 panels are read where they lie. Half the registers, of half the width, read each so often that a copy pays
 * from few rows on, and leave gradients of weights to the BLAS library, which copies both factors. */
#ifdef __AVX512F__
enum { VECTOR_BYTES = 64, SUMS = 24 /* that the registers hold */, WIDEST = 6 /* vectors of a panel */ };
enum { PACK_ROWS = 48 /* rows from which packing a transposed panel pays */ };
#else
enum { VECTOR_BYTES = 32, SUMS = 12, WIDEST = 3 };
enum {
    PACK_ROWS = 12,
    COPY_ROWS = 16,   /* rows from which copying panels pays: */
    COPY_DEPTH = 256, /* of this depth each, so that one stays in the first-level cache, */
    COPIED_PANELS = 4 /* and so many at once */
};
#endif
enum {
    LANES = VECTOR_BYTES / sizeof(sherl_real),
    DEPTH = 768, /* of a panel that is read where it lies: it stays in the second-level cache */
    DOT_ROWS = 4,
    DOT_COLUMNS = LANES / DOT_ROWS /* whose dot products are taken at once: as many as a vector has lanes */
};

typedef sherl_real vector __attribute__((vector_size(VECTOR_BYTES)));
#ifdef SHERL_DOUBLE
typedef int64_t lane_numbers __attribute__((vector_size(VECTOR_BYTES)));
#else
typedef int32_t lane_numbers __attribute__((vector_size(VECTOR_BYTES)));
#endif
typedef sherl_real unaligned_vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(sherl_real)), may_alias));

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE vector load(const sherl_real *from) { return *(const unaligned_vector *)from; }
ALWAYS_INLINE void store(sherl_real *to, vector value) { *(unaligned_vector *)to = value; }

/* ---- Exchanging lanes ------------------------------------------------------------------------------------------------ */

/* Lane l of a, or, where l has the bit `half`, lane l - half of b. */
ALWAYS_INLINE vector take_low(vector a, vector b, const int half) {
#ifdef __clang__
    vector low = a;
    for (int l = 0; l < LANES; l++) low[l] = l & half ? b[l ^ half] : a[l];
    return low;
#else
    lane_numbers from;
    for (int l = 0; l < LANES; l++) from[l] = l & half ? LANES + (l ^ half) : l;
    return __builtin_shuffle(a, b, from);
#endif
}

/* Lane l + half of a, or, where l has the bit `half`, lane l of b. */
ALWAYS_INLINE vector take_high(vector a, vector b, const int half) {
#ifdef __clang__
    vector high = a;
    for (int l = 0; l < LANES; l++) high[l] = l & half ? b[l] : a[l ^ half];
    return high;
#else
    lane_numbers from;
    for (int l = 0; l < LANES; l++) from[l] = l & half ? LANES + l : l ^ half;
    return __builtin_shuffle(a, b, from);
#endif
}

/* Exchanges what lies above and below the diagonal of a square of LANES rows, as far as the bit `half` goes. */
ALWAYS_INLINE void exchange(vector *square, const int half) {
    for (int i = 0; i < LANES; i++) {
        if (i & half) continue;
        vector a = square[i], b = square[i | half];
        square[i] = take_low(a, b, half);
        square[i | half] = take_high(a, b, half);
    }
}

ALWAYS_INLINE void transpose(vector *square) {
    exchange(square, 1);
    exchange(square, 2);
    if (LANES > 4) exchange(square, 4);
    if (LANES > 8) exchange(square, 8);
}

/* Halves the number of vectors: lane l then belongs to the first or second of a pair as its bit `half` says. */
ALWAYS_INLINE void add_pairs(vector *sums, const int half) {
    for (int i = 0; i < LANES / (2 * half); i++) {
        vector a = sums[2 * i], b = sums[2 * i + 1];
        sums[i] = take_low(a, b, half) + take_high(a, b, half);
    }
}

/* Lane l is the sum over the lanes of vector l. */
ALWAYS_INLINE vector add_lanes(vector *sums) {
    add_pairs(sums, 1);
    add_pairs(sums, 2);
    if (LANES > 4) add_pairs(sums, 4);
    if (LANES > 8) add_pairs(sums, 8);
    return sums[0];
}

/* ---- Panels: c (+)= a panel ------------------------------------------------------------------------------------------- */

/* Step k of the panel is at data + k * stride: some vectors of columns. */
typedef struct panel {
    const sherl_real *data;
    size_t stride, depth;
} panel;

/* c[r][v] (+)= sum over k of a[r][k] panel[k][v] */
ALWAYS_INLINE void multiply_block(const sherl_real *a, size_t a_stride, const panel *panel, sherl_real *c,
                                  size_t c_stride, bool add, const int rows, const int vectors) {
    vector sums[SUMS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            sums[r * vectors + v] = add ? load(c + r * c_stride + v * LANES) : (vector){0};
    for (size_t k = 0; k < panel->depth; k++) {
        for (int r = 0; r < rows; r++) {
            const sherl_real scalar = a[r * a_stride + k];
            for (int v = 0; v < vectors; v++)
                sums[r * vectors + v] += scalar * load(panel->data + k * panel->stride + v * LANES);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store(c + r * c_stride + v * LANES, sums[r * vectors + v]);
}

/* A few rows at a time over the whole depth: a streams by once, in order, and the panel stays in cache. */
ALWAYS_INLINE void multiply_rows(const sherl_real *a, size_t a_stride, const panel *panel, size_t rows, sherl_real *c,
                                 size_t c_stride, bool add, const int vectors) {
    const int at_once = SUMS / vectors < 8 ? SUMS / vectors : 8;
    size_t row = 0;
    for (; row + at_once <= rows; row += at_once)
        multiply_block(a + row * a_stride, a_stride, panel, c + row * c_stride, c_stride, add, at_once, vectors);
    for (; row < rows; row++)
        multiply_block(a + row * a_stride, a_stride, panel, c + row * c_stride, c_stride, add, 1, vectors);
}

static void multiply_panel(const sherl_real *a, size_t a_stride, const panel *panel, size_t rows, sherl_real *c,
                           size_t c_stride, bool add, size_t vectors) {
    switch (vectors) { /* a constant for the compiler, which keeps the sums in registers only then */
    case 1: multiply_rows(a, a_stride, panel, rows, c, c_stride, add, 1); break;
    case 2: multiply_rows(a, a_stride, panel, rows, c, c_stride, add, 2); break;
    case 3: multiply_rows(a, a_stride, panel, rows, c, c_stride, add, 3); break;
#if defined(__AVX512F__)
    case 4: multiply_rows(a, a_stride, panel, rows, c, c_stride, add, 4); break;
    case 5: multiply_rows(a, a_stride, panel, rows, c, c_stride, add, 5); break;
    default: multiply_rows(a, a_stride, panel, rows, c, c_stride, add, 6); break;
#endif
    }
}

static size_t panel_vectors(size_t columns) { return columns / LANES < WIDEST ? columns / LANES : WIDEST; }

#ifndef __AVX512F__
/* Copies some columns of b into panels, one behind the other. */
static void copy_panels(const sherl_real *b, size_t b_stride, size_t depth, size_t columns, sherl_real *copies) {
    for (size_t k = 0; k < depth; k++, b += b_stride)
        for (size_t first = 0; first < columns; first += WIDEST * LANES) {
            const size_t vectors = panel_vectors(columns - first);
            sherl_real *to = copies + first * depth + k * vectors * LANES;
            for (size_t v = 0; v < vectors; v++) store(to + v * LANES, load(b + first + v * LANES));
        }
}

/* c (+)= a b by copied panels. Rows of b often lie so far apart that they fall on the same few places of a cache: what is
 * read of one is read at once. */
static void multiply_copied(const sherl_matrix *a, const sherl_matrix *b, const sherl_product_sizes *sizes,
                            sherl_real *c, size_t c_stride, bool accumulate) {
    enum { COLUMNS = COPIED_PANELS * WIDEST * LANES };
    sherl_real copies[COPY_DEPTH * COLUMNS];
    for (size_t k = 0; k < sizes->k; k += COPY_DEPTH) {
        const size_t depth = sizes->k - k < COPY_DEPTH ? sizes->k - k : COPY_DEPTH;
        for (size_t from = 0; from < sizes->n; from += COLUMNS) {
            const size_t columns = sizes->n - from < COLUMNS ? sizes->n - from : COLUMNS;
            copy_panels(b->data + k * b->stride + from, b->stride, depth, columns, copies);
            for (size_t first = 0; first < columns; first += WIDEST * LANES) {
                const size_t vectors = panel_vectors(columns - first);
                const panel panel = {.data = copies + first * depth, .stride = vectors * LANES, .depth = depth};
                multiply_panel(a->data + k, a->stride, &panel, sizes->m, c + from + first, c_stride,
                               accumulate || k > 0, vectors);
            }
        }
    }
}
#endif

/* c (+)= a b; a: (m, k), b: (k, n), c: (m, n). b lies as panels want it, and is read where it is unless copies pay. */
void SHERL_KERNEL(product)(const sherl_matrix *a, const sherl_matrix *b, const sherl_product_sizes *sizes,
                           sherl_real *c, size_t c_stride, bool accumulate) {
#ifndef __AVX512F__
    if (sizes->m >= COPY_ROWS) {
        multiply_copied(a, b, sizes, c, c_stride, accumulate);
        return;
    }
#endif
    for (size_t first = 0; first < sizes->n; first += WIDEST * LANES) {
        size_t vectors = panel_vectors(sizes->n - first);
        for (size_t k = 0; k < sizes->k; k += DEPTH) {
            panel panel = {.data = b->data + k * b->stride + first,
                           .stride = b->stride,
                           .depth = sizes->k - k < DEPTH ? sizes->k - k : DEPTH};
            multiply_panel(a->data + k, a->stride, &panel, sizes->m, c + first, c_stride, accumulate || k > 0, vectors);
        }
    }
}

/* ---- c (+)= a b^T ------------------------------------------------------------------------------------------------------- */

/* packed[k][c] = b[c][k], for `vectors` times LANES rows of b */
static void pack_panel(const sherl_real *b, size_t b_stride, size_t depth, size_t vectors, sherl_real *packed) {
    for (size_t v = 0; v < vectors; v++) {
        for (size_t k = 0; k < depth; k += LANES) {
            vector square[LANES];
            for (size_t c = 0; c < LANES; c++) square[c] = load(b + (v * LANES + c) * b_stride + k);
            transpose(square);
            for (size_t i = 0; i < LANES; i++) store(packed + ((k + i) * vectors + v) * LANES, square[i]);
        }
    }
}

/* c (+)= a b^T by panels, packed as much of the depth at a time as `packed` holds */
static void multiply_packed(const sherl_matrix *a, const sherl_matrix *b, const sherl_product_sizes *sizes,
                            sherl_real *c, size_t c_stride, bool accumulate, sherl_real *packed, size_t most) {
    for (size_t first = 0; first < sizes->n; first += WIDEST * LANES) {
        const size_t vectors = panel_vectors(sizes->n - first);
        for (size_t k = 0; k < sizes->k; k += most) {
            const panel panel = {.data = packed,
                                 .stride = vectors * LANES,
                                 .depth = sizes->k - k < most ? sizes->k - k : most};
            pack_panel(b->data + first * b->stride + k, b->stride, panel.depth, vectors, packed);
            multiply_panel(a->data + k, a->stride, &panel, sizes->m, c + first, c_stride, accumulate || k > 0, vectors);
        }
    }
}

/* c[r][j] (+)= a[r] . b[j] for DOT_ROWS by DOT_COLUMNS of them, fewer at the edges, where the last one stands in for those
 * that are not there */
static void dot_block(const sherl_matrix *a, size_t row, size_t rows, const sherl_matrix *b, size_t column,
                      size_t columns, size_t depth, sherl_real *c, size_t c_stride, bool accumulate) {
    const sherl_real *left[DOT_ROWS], *right[DOT_COLUMNS];
    for (size_t r = 0; r < DOT_ROWS; r++) left[r] = a->data + (row + (r < rows ? r : rows - 1)) * a->stride;
    for (size_t j = 0; j < DOT_COLUMNS; j++)
        right[j] = b->data + (column + (j < columns ? j : columns - 1)) * b->stride;
    vector sums[LANES];
    for (int i = 0; i < LANES; i++) sums[i] = (vector){0};
    for (size_t k = 0; k < depth; k += LANES) {
        for (int r = 0; r < DOT_ROWS; r++)
            for (int j = 0; j < DOT_COLUMNS; j++) sums[r * DOT_COLUMNS + j] += load(left[r] + k) * load(right[j] + k);
    }
    sherl_real dots[LANES];
    store(dots, add_lanes(sums));
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < columns; j++) {
            sherl_real *to = c + (row + r) * c_stride + column + j;
            *to = accumulate ? *to + dots[r * DOT_COLUMNS + j] : dots[r * DOT_COLUMNS + j];
        }
}

static void multiply_dots(const sherl_matrix *a, const sherl_matrix *b, const sherl_product_sizes *sizes, sherl_real *c,
                          size_t c_stride, bool accumulate) {
    for (size_t column = 0; column < sizes->n; column += DOT_COLUMNS) {
        size_t columns = sizes->n - column < DOT_COLUMNS ? sizes->n - column : DOT_COLUMNS;
        for (size_t row = 0; row < sizes->m; row += DOT_ROWS)
            dot_block(a, row, sizes->m - row < DOT_ROWS ? sizes->m - row : DOT_ROWS, b, column, columns, sizes->k, c,
                      c_stride, accumulate);
    }
}

/* c (+)= a b^T; a: (m, k), b: (n, k), c: (m, n). With many rows of a, b is packed; few make dot products of rows. */
void SHERL_KERNEL(product_transposed_b)(const sherl_matrix *a, const sherl_matrix *b, const sherl_product_sizes *sizes,
                                        sherl_real *c, size_t c_stride, bool accumulate, sherl_real *scratch) {
#ifdef __AVX512F__
    const size_t most = scratch ? sizes->k : 0;
#else
    sherl_real pieces[COPY_DEPTH * WIDEST * LANES];
    const size_t most = COPY_DEPTH;
    scratch = pieces;
#endif
    if (most > 0 && sizes->m >= PACK_ROWS && sizes->n % LANES == 0)
        multiply_packed(a, b, sizes, c, c_stride, accumulate, scratch, most);
    else
        multiply_dots(a, b, sizes, c, c_stride, accumulate);
}

#ifdef __AVX512F__
/* ---- c += a^T b --------------------------------------------------------------------------------------------------------- */

enum { OUTER_ROWS = 256 /* rows whose sums of outer products are taken at once */, PIECE = 4 /* vectors */ };

/* c[i][v] += sum over k of a[k][i] b[k][v] */
ALWAYS_INLINE void add_outer_block(const sherl_real *a, size_t a_stride, const sherl_real *b, size_t b_stride,
                                   size_t depth, sherl_real *c, size_t c_stride, const int rows, const int vectors) {
    vector sums[SUMS];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) sums[i * vectors + v] = load(c + i * c_stride + v * LANES);
    for (size_t k = 0; k < depth; k++) {
        vector piece[PIECE];
        for (int v = 0; v < vectors; v++) piece[v] = load(b + k * b_stride + v * LANES);
        for (int i = 0; i < rows; i++) {
            const sherl_real scalar = a[k * a_stride + i];
            for (int v = 0; v < vectors; v++) sums[i * vectors + v] += scalar * piece[v];
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) store(c + i * c_stride + v * LANES, sums[i * vectors + v]);
}

ALWAYS_INLINE void add_outer_rows(const sherl_real *a, size_t a_stride, const sherl_real *b, size_t b_stride,
                                  size_t depth, size_t rows, sherl_real *c, size_t c_stride, const int vectors) {
    const int at_once = SUMS / vectors < 12 ? SUMS / vectors : 12;
    size_t i = 0;
    for (; i + at_once <= rows; i += at_once)
        add_outer_block(a + i, a_stride, b, b_stride, depth, c + i * c_stride, c_stride, at_once, vectors);
    for (; i < rows; i++) add_outer_block(a + i, a_stride, b, b_stride, depth, c + i * c_stride, c_stride, 1, vectors);
}

/* c += a^T b; a: (k, m), b: (k, n), c: (m, n) */
void SHERL_KERNEL(add_product_transposed_a)(const sherl_matrix *a, const sherl_matrix *b,
                                            const sherl_product_sizes *sizes, sherl_real *c, size_t c_stride) {
    for (size_t k = 0; k < sizes->k; k += OUTER_ROWS) {
        size_t depth = sizes->k - k < OUTER_ROWS ? sizes->k - k : OUTER_ROWS;
        const sherl_real *left = a->data + k * a->stride, *right = b->data + k * b->stride;
        size_t j = 0;
        for (; j + PIECE * LANES <= sizes->n; j += PIECE * LANES)
            add_outer_rows(left, a->stride, right + j, b->stride, depth, sizes->m, c + j, c_stride, PIECE);
        for (; j + 2 * LANES <= sizes->n; j += 2 * LANES)
            add_outer_rows(left, a->stride, right + j, b->stride, depth, sizes->m, c + j, c_stride, 2);
        for (; j < sizes->n; j += LANES)
            add_outer_rows(left, a->stride, right + j, b->stride, depth, sizes->m, c + j, c_stride, 1);
    }
}
#endif

#endif
