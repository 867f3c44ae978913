/* The vector kernels: plain loops over contiguous rows, compiled once per instruction set and picked at run time. */
#ifndef SHERL_OPS_KERNELS_H
#define SHERL_OPS_KERNELS_H

#include "../../base/random.h"
#include "../../include/sherl.h"

/* Where a row sits in a batch; keys its random numbers. */
typedef struct sherl_row_key { uint32_t sample, position; } sherl_row_key;

/* A factor of a product: rows lie `stride` reals apart. */
typedef struct sherl_matrix {
    const sherl_real *data;
    size_t stride;
} sherl_matrix;

typedef struct sherl_product_sizes { size_t m, n, k; } sherl_product_sizes;

#define SHERL_PRODUCT_PANEL 96 /* rows of b that a product with its transpose packs at once, at most */

typedef struct sherl_kernels {
    const char *instruction_set;

    /* --- elementwise.c --- */
    /* y = activation(y + bias), row by row; bias may be NULL */
    void (*bias_activation)(sherl_activation activation, sherl_real *y, const sherl_real *bias, size_t rows,
                            size_t channels);
    /* y = activation(x); may be in place */
    void (*activation_forward)(sherl_activation activation, const sherl_real *x, sherl_real *y, size_t count);
    /* dx (+)= dy * activation'(x); x is the input, or, for RELU, SIGMOID and TANH, the output will do as well: those
     * read `y`. dx may be dy when accumulate is false. */
    void (*activation_backward)(sherl_activation activation, const sherl_real *x, const sherl_real *y,
                                const sherl_real *dy, sherl_real *dx, size_t count, bool accumulate);
    /* y (+)= activation(z) * x */
    void (*gate)(sherl_activation activation, const sherl_real *z, const sherl_real *x, sherl_real *y, size_t count,
                 bool accumulate);
    /* dz (+)= dy * x * activation'(z); dz may be dy when accumulate is false */
    void (*gate_slope)(sherl_activation activation, const sherl_real *z, const sherl_real *x, const sherl_real *dy,
                       sherl_real *dz, size_t count, bool accumulate);
    /* y = a + b; y = a * b; y (+)= a * b; y += a; y += scale * a; y = a + scale * b */
    void (*add)(const sherl_real *a, const sherl_real *b, sherl_real *y, size_t count);
    void (*multiply)(const sherl_real *a, const sherl_real *b, sherl_real *y, size_t count, bool accumulate);
    void (*accumulate)(const sherl_real *a, sherl_real *y, size_t count);
    void (*add_scaled)(const sherl_real *a, sherl_real scale, const sherl_real *b, sherl_real *y, size_t count);
    sherl_real (*dot)(const sherl_real *a, const sherl_real *b, size_t count);
    /* y[c] += sum over rows of x[r][c] */
    void (*add_column_sums)(const sherl_real *x, sherl_real *y, size_t rows, size_t channels);
    /* y[c] += sum over rows of (a[r][c] - a_center[c]) * (b[r][c] - b_center[c]) */
    void (*add_column_products)(const sherl_real *a, const sherl_real *a_center, const sherl_real *b,
                                const sherl_real *b_center, sherl_real *y, size_t rows, size_t channels);
    /* y[r][c] (+)= (x[r][c] - center[c]) * scale[c] + shift[c]; may be in place when accumulate is false */
    void (*affine_columns)(const sherl_real *x, const sherl_real *center, const sherl_real *scale,
                           const sherl_real *shift, sherl_real *y, size_t rows, size_t channels, bool accumulate);
    /* y[r][c] (+)= x[r][c] * scale[c]; may be in place when accumulate is false */
    void (*scale_columns)(const sherl_real *x, const sherl_real *scale, sherl_real *y, size_t rows, size_t channels,
                          bool accumulate);
    /* y (+)= keep(row, channel) ? x / (1 - rate) : 0, keyed by (stream, row key, channel); may be in place */
    void (*dropout_row)(sherl_random_key key, uint32_t stream, sherl_row_key row, double rate, const sherl_real *x,
                        sherl_real *y, size_t channels, bool accumulate);

    /* --- normalization.c --- */
    /* statistics[r] = {mean, 1 / sqrt(variance + eps)}; statistics and bias may be NULL; may be in place */
    void (*layer_norm_forward)(const sherl_real *x, const sherl_real *weight, const sherl_real *bias, double eps,
                               sherl_real *y, sherl_real *statistics, size_t rows, size_t channels);
    /* dx may be NULL, or dy when accumulate is false; dweight, dbias may be NULL, else they are added to */
    void (*layer_norm_backward)(const sherl_real *x, const sherl_real *weight, const sherl_real *statistics,
                                const sherl_real *dy, sherl_real *dx, sherl_real *dweight, sherl_real *dbias,
                                size_t rows, size_t channels, bool accumulate);

    /* inverse_roots[r] = 1 / sqrt(mean of x[r]^2 + eps), may be NULL; may be in place */
    void (*rms_norm_forward)(const sherl_real *x, const sherl_real *weight, double eps, sherl_real *y,
                             sherl_real *inverse_roots, size_t rows, size_t channels);
    /* dx may be NULL, or dy when accumulate is false; dweight may be NULL, else it is added to */
    void (*rms_norm_backward)(const sherl_real *x, const sherl_real *weight, const sherl_real *inverse_roots,
                              const sherl_real *dy, sherl_real *dx, sherl_real *dweight, size_t rows, size_t channels,
                              bool accumulate);

    /* --- attention.c --- */
    /* scores (rows x keys, row stride keys) become softmax probabilities of scale * scores, in place; row r may see the
     * first `visible` = min(keys, first_visible + r) keys when causal (first_visible >= 1), all keys when
     * first_visible = 0; logsumexp[r * logsumexp_stride] is written when not NULL. */
    void (*softmax_forward)(sherl_real *scores, double scale, size_t rows, size_t keys, size_t first_visible,
                            sherl_real *logsumexp, size_t logsumexp_stride);
    /* probabilities = exp(scale * scores - logsumexp), with the same masking */
    void (*softmax_recompute)(sherl_real *scores, double scale, size_t rows, size_t keys, size_t first_visible,
                              const sherl_real *logsumexp, size_t logsumexp_stride);
    /* dscores = scale * p * (dp - sum_j p_j dp_j), over dp */
    void (*softmax_backward)(const sherl_real *probabilities, sherl_real *dprobabilities, double scale, size_t rows,
                             size_t keys);

    /* Turns channels i and half + i of each head by the angle i, given as cosine and sine; the channels of a head from
     * 2 half on stay. One row, may be in place when accumulate is false. */
    void (*rotate_row)(const sherl_real *x, const sherl_real *cosines, const sherl_real *sines, sherl_real *y,
                       size_t heads, size_t head_size, size_t half, bool accumulate);

    /* --- guidance.c --- one tile of the consolidation; scratch holds sherl_guidance_scratch(count) reals */
    void (*guidance_forward)(const sherl_real *const *features, size_t count, const sherl_real *weight,
                             const sherl_real *bias, double eps, bool add_guide, sherl_real *y, size_t rows,
                             size_t hidden, sherl_real *scratch);
    /* dfeatures[i] may be NULL; accumulate[i] says whether it is added to */
    void (*guidance_backward)(const sherl_real *const *features, size_t count, const sherl_real *weight,
                              const sherl_real *bias, double eps, bool add_guide, const sherl_real *dy,
                              sherl_real *const *dfeatures, const bool *accumulate, sherl_real *dweight,
                              sherl_real *dbias, size_t rows, size_t hidden, sherl_real *scratch);

    /* --- product.c --- NULL where the BLAS library serves. n, and of a b^T k, are multiples of 64 bytes of reals. */
    /* c (+)= a b; a: (m, k), b: (k, n), c: (m, n) with rows c_stride apart */
    void (*product)(const sherl_matrix *a, const sherl_matrix *b, const sherl_product_sizes *sizes, sherl_real *c,
                    size_t c_stride, bool accumulate);
    /* c (+)= a b^T; b: (n, k); scratch: k times SHERL_PRODUCT_PANEL, or n if less, reals, or NULL: only AVX-512 takes it */
    void (*product_transposed_b)(const sherl_matrix *a, const sherl_matrix *b, const sherl_product_sizes *sizes,
                                 sherl_real *c, size_t c_stride, bool accumulate, sherl_real *scratch);
    /* c += a^T b; a: (k, m), b: (k, n) */
    void (*add_product_transposed_a)(const sherl_matrix *a, const sherl_matrix *b, const sherl_product_sizes *sizes,
                                     sherl_real *c, size_t c_stride);

    /* --- bfloat16_product.c --- NULL where the processor has no such instructions, and in float64 */
    /* packed = the matrix of depth x columns whose element (k, c) is at matrix[k * depth_stride + c * column_stride], in
     * panels of columns rounded to bfloat16; sherl_bfloat16_packed_size says how many elements that takes */
    void (*bfloat16_pack)(const sherl_real *matrix, size_t depth, size_t columns, size_t depth_stride,
                          size_t column_stride, uint16_t *packed);
    /* c (+)= x matrix, x rounded to bfloat16, sums in float32; x: (rows, depth), c: (rows, columns) with rows `stride`
     * apart. `packed` may start at any panel. scratch holds SHERL_BFLOAT16_SCRATCH elements. */
    void (*bfloat16_product)(const sherl_real *x, size_t rows, size_t depth, const uint16_t *packed, size_t columns,
                             sherl_real *c, size_t stride, bool accumulate, uint16_t *scratch);

    /* --- convert.c --- one row of `channels` elements */
    void (*widen)(sherl_element element, const void *source, sherl_real *destination, size_t channels);
    /* destination = scale * source */
    void (*widen_int8)(const int8_t *source, float scale, sherl_real *destination, size_t channels);
    void (*narrow)(sherl_element element, const sherl_real *source, void *destination, size_t channels);

    /* --- optimize.c --- over one parameter */
    double (*sum_of_squares)(const sherl_real *x, size_t count);
    void (*sgd)(sherl_real *weights, const sherl_real *gradient, sherl_real *momentum_buffer, size_t count,
                double gradient_scale, double learning_rate, double weight_decay, double momentum);
    /* decoupled: AdamW; otherwise weight decay joins the gradient. Corrections are 1 - beta^t. */
    void (*adam)(sherl_real *weights, const sherl_real *gradient, sherl_real *first_moment, sherl_real *second_moment,
                 size_t count, double gradient_scale, double learning_rate, double weight_decay, double beta1,
                 double beta2, double eps, double correction1, double correction2, bool decoupled);
} sherl_kernels;

/* Of the bfloat16 product: columns of a panel; the rows and the depth that it takes at once, which its scratch holds. */
enum {
    SHERL_BFLOAT16_PANEL = 64,
    SHERL_BFLOAT16_ROWS = 252,
    SHERL_BFLOAT16_DEPTH = 192,
    SHERL_BFLOAT16_SCRATCH = SHERL_BFLOAT16_ROWS * SHERL_BFLOAT16_DEPTH
};

/* Elements from the start of a packed matrix to its column `column`, a multiple of a panel's; and of all of it, where it
 * has `column` columns. */
static inline size_t sherl_bfloat16_packed_size(size_t depth, size_t column) {
    size_t panels = (column + SHERL_BFLOAT16_PANEL - 1) / SHERL_BFLOAT16_PANEL;
    return panels * SHERL_BFLOAT16_PANEL * (depth + depth % 2);
}

/* Reals of scratch for the guidance kernels. */
static inline size_t sherl_guidance_scratch(size_t count) { return count * count + 8 * count; }

/* The best table that this processor runs, or the one that `name` asks for when the processor runs it. */
const sherl_kernels *sherl_kernels_pick(const char *name);

#endif
