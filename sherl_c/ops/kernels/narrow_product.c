/* Products of many rows with the weights of a narrow map (few output channels), as the down maps of an adapter are: x is
 * read where it lies, without being packed, and sums stay in registers. */
#include <string.h>

#include "kernels.h"
#include "names.h"

#ifdef __AVX2__ /* elsewhere the matrix products of the BLAS library serve */

#ifdef __AVX512F__
enum { VECTOR_BYTES = 64, SUMS = 24 /* that the registers hold */, WIDEST = 6 /* vectors of a panel of outputs */ };
#else
enum { VECTOR_BYTES = 32, SUMS = 12, WIDEST = 3 };
#endif
enum {
    LANES = VECTOR_BYTES / sizeof(sherl_real),
    DEPTH = 192,       /* input channels of a packed panel */
    ROW_BLOCK = 64,    /* rows whose piece of x stays in the first-level cache */
    COLUMN_VECTORS = 4 /* vectors of that piece */
};

typedef sherl_real vector __attribute__((vector_size(VECTOR_BYTES)));
typedef sherl_real unaligned_vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(sherl_real)), may_alias));

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE vector load(const sherl_real *from) { return *(const unaligned_vector *)from; }
ALWAYS_INLINE void store(sherl_real *to, vector value) { *(unaligned_vector *)to = value; }

/* ---- y = x W^T ------------------------------------------------------------------------------------------------------ */

/* sums[r][v] (+)= sum over k of x[r][k] panel[k][v]; y: rows of `stride`, the panel's vectors of them */
ALWAYS_INLINE void multiply_block(const sherl_real *x, size_t x_stride, const vector *panel, size_t depth,
                                  sherl_real *y, size_t y_stride, bool add, const int rows, const int vectors) {
    vector sums[SUMS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r * vectors + v] = add ? load(y + r * y_stride + v * LANES) : (vector){0};
    for (size_t k = 0; k < depth; k++) {
        for (int r = 0; r < rows; r++) {
            const sherl_real scalar = x[r * x_stride + k];
            for (int v = 0; v < vectors; v++) sums[r * vectors + v] += scalar * panel[k * vectors + v];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store(y + r * y_stride + v * LANES, sums[r * vectors + v]);
}

ALWAYS_INLINE void multiply_rows(const sherl_real *x, size_t x_stride, const vector *panel, size_t depth, size_t rows,
                                 sherl_real *y, size_t y_stride, bool add, const int vectors) {
    const int at_once = SUMS / vectors;
    size_t row = 0;
    for (; row + at_once <= rows; row += at_once)
        multiply_block(x + row * x_stride, x_stride, panel, depth, y + row * y_stride, y_stride, add, at_once, vectors);
    for (; row < rows; row++)
        multiply_block(x + row * x_stride, x_stride, panel, depth, y + row * y_stride, y_stride, add, 1, vectors);
}

static void multiply_panel(const sherl_real *x, size_t x_stride, const vector *panel, size_t depth, size_t rows,
                           sherl_real *y, size_t y_stride, bool add, size_t vectors) {
    switch (vectors) { /* a constant for the compiler, which keeps the sums in registers only then */
    case 1: multiply_rows(x, x_stride, panel, depth, rows, y, y_stride, add, 1); break;
    case 2: multiply_rows(x, x_stride, panel, depth, rows, y, y_stride, add, 2); break;
    case 3: multiply_rows(x, x_stride, panel, depth, rows, y, y_stride, add, 3); break;
#if defined(__AVX512F__)
    case 4: multiply_rows(x, x_stride, panel, depth, rows, y, y_stride, add, 4); break;
    case 5: multiply_rows(x, x_stride, panel, depth, rows, y, y_stride, add, 5); break;
    default: multiply_rows(x, x_stride, panel, depth, rows, y, y_stride, add, 6); break;
#endif
    }
}

/* y = x W^T; x: (rows, in), W: (out, in), y: (rows, out) */
void SHERL_KERNEL(narrow_product)(const sherl_real *x, const sherl_real *weight, size_t rows, size_t in, size_t out,
                                  sherl_real *y) {
    vector panel[DEPTH * WIDEST];
    for (size_t first = 0; first < out; first += WIDEST * LANES) {
        size_t vectors = (out - first) / LANES < WIDEST ? (out - first) / LANES : WIDEST;
        for (size_t k0 = 0; k0 < in; k0 += DEPTH) {
            size_t depth = in - k0 < DEPTH ? in - k0 : DEPTH;
            sherl_real *packed = (sherl_real *)panel;
            for (size_t c = 0; c < vectors * LANES; c++)
                for (size_t k = 0; k < depth; k++)
                    packed[k * vectors * LANES + c] = weight[(first + c) * in + k0 + k];
            multiply_panel(x + k0, in, panel, depth, rows, y + first, out, k0 > 0, vectors);
        }
    }
}

/* ---- dW += dz^T x --------------------------------------------------------------------------------------------------- */

/* dW[i][v] += sum over rows of dz[row][i] x[row][v] */
ALWAYS_INLINE void add_outer_block(const sherl_real *dz, size_t dz_stride, const sherl_real *x, size_t x_stride,
                                   size_t rows, sherl_real *dweight, const int outputs, const int vectors) {
    vector sums[SUMS];
    for (int i = 0; i < outputs; i++)
        for (int v = 0; v < vectors; v++) sums[i * vectors + v] = load(dweight + i * x_stride + v * LANES);
    for (size_t row = 0; row < rows; row++) {
        vector piece[COLUMN_VECTORS];
        for (int v = 0; v < vectors; v++) piece[v] = load(x + row * x_stride + v * LANES);
        for (int i = 0; i < outputs; i++) {
            const sherl_real scalar = dz[row * dz_stride + i];
            for (int v = 0; v < vectors; v++) sums[i * vectors + v] += scalar * piece[v];
        }
    }
    for (int i = 0; i < outputs; i++)
        for (int v = 0; v < vectors; v++) store(dweight + i * x_stride + v * LANES, sums[i * vectors + v]);
}

ALWAYS_INLINE void add_outer_outputs(const sherl_real *dz, const sherl_real *x, size_t rows, size_t in, size_t out,
                                     sherl_real *dweight, const int vectors) {
    const int at_once = SUMS / COLUMN_VECTORS;
    size_t i = 0;
    for (; i + at_once <= out; i += at_once)
        add_outer_block(dz + i, out, x, in, rows, dweight + i * in, at_once, vectors);
    for (; i < out; i++) add_outer_block(dz + i, out, x, in, rows, dweight + i * in, 1, vectors);
}

/* dW += dz^T x; dz: (rows, out), x: (rows, in), dW: (out, in) */
void SHERL_KERNEL(add_narrow_outer)(const sherl_real *dz, const sherl_real *x, size_t rows, size_t in, size_t out,
                                    sherl_real *dweight) {
    for (size_t row = 0; row < rows; row += ROW_BLOCK) {
        size_t block = rows - row < ROW_BLOCK ? rows - row : ROW_BLOCK;
        size_t c = 0;
        for (; c + COLUMN_VECTORS * LANES <= in; c += COLUMN_VECTORS * LANES)
            add_outer_outputs(dz + row * out, x + row * in + c, block, in, out, dweight + c, COLUMN_VECTORS);
        for (; c < in; c += LANES) add_outer_outputs(dz + row * out, x + row * in + c, block, in, out, dweight + c, 1);
    }
}

#endif
