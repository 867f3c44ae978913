/* Products with weights packed as bfloat16: both factors rounded to bfloat16, products summed in float32, in an order that
 * only the depth decides. */
#include "kernels.h"
#include "names.h"

#if defined __AVX512BF16__ && !defined SHERL_DOUBLE

#include <immintrin.h>
#include <string.h>

enum {
    LANES = 16,                   /* floats of a vector */
    PANEL = SHERL_BFLOAT16_PANEL, /* columns of a panel of packed weights */
    VECTORS = PANEL / LANES,
    MOST_ROWS = 6,                  /* whose sums the registers hold */
    DEPTH = SHERL_BFLOAT16_DEPTH,   /* of a piece of a panel that stays in the first-level cache */
    ROW_BLOCK = SHERL_BFLOAT16_ROWS /* rows whose piece of that depth stays in the second-level cache */
};

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* To the nearest, ties to even; weights are finite. */
static uint16_t round_to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* Panel p holds columns 64 p … 64 p + 63, pairs of consecutive k side by side: [k / 2][column][k % 2], zeros beyond the
 * matrix. */
void SHERL_KERNEL(bfloat16_pack)(const sherl_real *matrix, size_t depth, size_t columns, size_t depth_stride,
                                 size_t column_stride, uint16_t *packed) {
    for (size_t first = 0; first < columns; first += PANEL) {
        for (size_t k = 0; k < depth + depth % 2; k += 2, packed += 2 * PANEL) {
            for (size_t c = 0; c < PANEL; c++) {
                const sherl_real *from = matrix + (first + c) * column_stride + k * depth_stride;
                packed[2 * c] = first + c < columns ? round_to_bfloat16(from[0]) : 0;
                packed[2 * c + 1] = first + c < columns && k + 1 < depth ? round_to_bfloat16(from[depth_stride]) : 0;
            }
        }
    }
}

/* Rows of at most DEPTH reals as rows of DEPTH bfloat16, zeros up to the next even number and beyond. */
static void round_rows(const sherl_real *x, size_t stride, size_t rows, size_t depth, uint16_t *rounded) {
    for (size_t r = 0; r < rows; r++) {
        for (size_t k = 0; k < depth; k += 2 * LANES) {
            size_t left = depth - k;
            __mmask16 low = left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
            __mmask16 high = left >= 2 * LANES ? 0xffff : left > LANES ? (__mmask16)((1u << (left - LANES)) - 1) : 0;
            __m512 a = _mm512_maskz_loadu_ps(low, x + r * stride + k);
            __m512 b = high ? _mm512_maskz_loadu_ps(high, x + r * stride + k + LANES) : _mm512_setzero_ps();
            _mm512_storeu_si512(rounded + r * DEPTH + k, (__m512i)_mm512_cvtne2ps_pbh(b, a));
        }
    }
}

ALWAYS_INLINE __m512i pair_everywhere(const uint16_t *from) {
    int pair;
    memcpy(&pair, from, sizeof pair);
    return _mm512_set1_epi32(pair);
}

/* c[r][j] (+)= sum over k of x[r][k] panel[k][j], for the columns that the masks name */
ALWAYS_INLINE void multiply_block(const uint16_t *x, const uint16_t *panel, size_t pairs, sherl_real *c, size_t stride,
                                  const __mmask16 *masks, bool add, const int rows) {
    __m512 sums[MOST_ROWS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++)
            sums[r][v] = add ? _mm512_maskz_loadu_ps(masks[v], c + r * stride + v * LANES) : _mm512_setzero_ps();
    for (size_t k = 0; k < pairs; k++) {
        __m512bh weights[VECTORS];
        for (int v = 0; v < VECTORS; v++)
            weights[v] = (__m512bh)_mm512_loadu_si512(panel + k * 2 * PANEL + v * 2 * LANES);
        for (int r = 0; r < rows; r++) {
            __m512bh pair = (__m512bh)pair_everywhere(x + r * DEPTH + 2 * k);
            for (int v = 0; v < VECTORS; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], pair, weights[v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) _mm512_mask_storeu_ps(c + r * stride + v * LANES, masks[v], sums[r][v]);
}

static void multiply_rows(const uint16_t *x, const uint16_t *panel, size_t pairs, size_t rows, sherl_real *c,
                          size_t stride, const __mmask16 *masks, bool add) {
    size_t r = 0;
    for (; r + MOST_ROWS <= rows; r += MOST_ROWS)
        multiply_block(x + r * DEPTH, panel, pairs, c + r * stride, stride, masks, add, MOST_ROWS);
    x += r * DEPTH;
    c += r * stride;
    switch (rows - r) {
    case 1: multiply_block(x, panel, pairs, c, stride, masks, add, 1); break;
    case 2: multiply_block(x, panel, pairs, c, stride, masks, add, 2); break;
    case 3: multiply_block(x, panel, pairs, c, stride, masks, add, 3); break;
    case 4: multiply_block(x, panel, pairs, c, stride, masks, add, 4); break;
    case 5: multiply_block(x, panel, pairs, c, stride, masks, add, 5); break;
    default: break;
    }
}

static void mask_columns(size_t columns, __mmask16 *masks) {
    for (size_t v = 0; v < VECTORS; v++) {
        size_t left = columns > v * LANES ? columns - v * LANES : 0;
        masks[v] = left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
    }
}

void SHERL_KERNEL(bfloat16_product)(const sherl_real *x, size_t rows, size_t depth, const uint16_t *packed,
                                    size_t columns, sherl_real *c, size_t stride, bool accumulate, uint16_t *scratch) {
    size_t panel_size = (depth + depth % 2) * PANEL;
    for (size_t row = 0; row < rows; row += ROW_BLOCK) {
        size_t block_rows = rows - row < ROW_BLOCK ? rows - row : ROW_BLOCK;
        for (size_t k = 0; k < depth; k += DEPTH) {
            size_t piece = depth - k < DEPTH ? depth - k : DEPTH;
            round_rows(x + row * depth + k, depth, block_rows, piece, scratch);
            for (size_t column = 0; column < columns; column += PANEL) {
                __mmask16 masks[VECTORS];
                mask_columns(columns - column, masks);
                multiply_rows(scratch, packed + column / PANEL * panel_size + k * PANEL, (piece + 1) / 2, block_rows,
                              c + row * stride + column, stride, masks, accumulate || k > 0);
            }
        }
    }
}

#endif
