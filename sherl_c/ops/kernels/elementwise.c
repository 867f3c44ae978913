/* Kernels over the elements of contiguous rows: activations, sums, products, dropout. */
#include "names.h"
#include "vector_math.h"

#define SHERL_INLINE static inline __attribute__((always_inline))

/* ---- Activations ------------------------------------------------------------------------------------------------- */

#define SHERL_QUICK_SLOPE ((sherl_real)1.702)
/* tanh-GELU: x (1 + tanh(u)) / 2 = x sigmoid(2 u), 2 u = 2 sqrt(2 / pi) (x + 0.044715 x^3) */
#define SHERL_GELU_SLOPE ((sherl_real)1.5957691216057307118)
#define SHERL_GELU_CUBIC ((sherl_real)0.044715)

/* x sigmoid(slope x), which is zero at minus infinity */
SHERL_INLINE sherl_real swish(sherl_real x, sherl_real slope) {
    sherl_real unused;
    return sherl_bounded_below(x, -SHERL_EXP_BOUND / slope) * sherl_sigmoid(slope * x, &unused);
}
/* d/dx x s(slope x) = s + slope x s' */
SHERL_INLINE sherl_real swish_slope(sherl_real x, sherl_real slope) {
    sherl_real ds;
    sherl_real s = sherl_sigmoid(slope * x, &ds);
    return s + slope * sherl_bounded(x, SHERL_EXP_BOUND / slope) * ds;
}

/* x cdf(x) */
SHERL_INLINE sherl_real gelu(sherl_real x) {
    sherl_real density;
    sherl_real cdf = sherl_normal_cdf(x, &density);
    return sherl_bounded_below(x, -SHERL_NORMAL_BOUND) * cdf;
}
/* cdf + x density */
SHERL_INLINE sherl_real gelu_slope(sherl_real x) {
    sherl_real density;
    sherl_real cdf = sherl_normal_cdf(x, &density);
    return cdf + sherl_bounded(x, SHERL_NORMAL_BOUND) * density;
}

/* x sigmoid(v), v = slope (x + cubic x^3) */
SHERL_INLINE sherl_real gelu_tanh(sherl_real x) {
    sherl_real unused, z = sherl_bounded(x, SHERL_NORMAL_BOUND); /* beyond it the sigmoid is 0 or 1 */
    return sherl_bounded_below(x, -SHERL_NORMAL_BOUND) *
           sherl_sigmoid(SHERL_GELU_SLOPE * (z + SHERL_GELU_CUBIC * z * z * z), &unused);
}
/* s + x s' v', v' = slope (1 + 3 cubic x^2) */
SHERL_INLINE sherl_real gelu_tanh_slope(sherl_real x) {
    x = sherl_bounded(x, SHERL_NORMAL_BOUND);
    sherl_real ds;
    sherl_real s = sherl_sigmoid(SHERL_GELU_SLOPE * (x + SHERL_GELU_CUBIC * x * x * x), &ds);
    return s + x * ds * SHERL_GELU_SLOPE * (1 + 3 * SHERL_GELU_CUBIC * x * x);
}

/* `activation` is a constant wherever these and the loops below are inlined, so no branch is left in a loop. */
SHERL_INLINE sherl_real activate(sherl_activation activation, sherl_real x) {
    sherl_real unused;
    switch (activation) {
    case SHERL_RELU: return x < 0 ? 0 : x;
    case SHERL_GELU_ERF: return gelu(x);
    case SHERL_GELU_TANH: return gelu_tanh(x);
    case SHERL_GELU_QUICK: return swish(x, SHERL_QUICK_SLOPE);
    case SHERL_SILU: return swish(x, 1);
    case SHERL_SIGMOID: return sherl_sigmoid(x, &unused);
    case SHERL_TANH: return sherl_tanh(x);
    default: return x;
    }
}
/* Of the input, or of the output for RELU, SIGMOID and TANH. */
SHERL_INLINE sherl_real activation_slope(sherl_activation activation, sherl_real value) {
    switch (activation) {
    case SHERL_RELU: return value > 0 ? 1 : 0;
    case SHERL_GELU_ERF: return gelu_slope(value);
    case SHERL_GELU_TANH: return gelu_tanh_slope(value);
    case SHERL_GELU_QUICK: return swish_slope(value, SHERL_QUICK_SLOPE);
    case SHERL_SILU: return swish_slope(value, 1);
    case SHERL_SIGMOID: return value * (1 - value);
    case SHERL_TANH: return 1 - value * value;
    default: return 1;
    }
}

SHERL_INLINE void bias_loop(sherl_activation activation, sherl_real *y, const sherl_real *bias, size_t rows,
                            size_t channels) {
    for (size_t row = 0; row < rows; row++, y += channels) {
#pragma omp simd
        for (size_t c = 0; c < channels; c++) y[c] = activate(activation, y[c] + bias[c]);
    }
}
SHERL_INLINE void forward_loop(sherl_activation activation, const sherl_real *x, sherl_real *y, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) y[i] = activate(activation, x[i]);
}
SHERL_INLINE void backward_loop(sherl_activation activation, const sherl_real *value, const sherl_real *dy,
                                sherl_real *dx, size_t count, bool accumulate) {
    if (accumulate) {
#pragma omp simd
        for (size_t i = 0; i < count; i++) dx[i] += dy[i] * activation_slope(activation, value[i]);
    } else {
#pragma omp simd
        for (size_t i = 0; i < count; i++) dx[i] = dy[i] * activation_slope(activation, value[i]);
    }
}

void SHERL_KERNEL(activation_forward)(sherl_activation activation, const sherl_real *x, sherl_real *y, size_t count) {
    switch (activation) {
    case SHERL_RELU: forward_loop(SHERL_RELU, x, y, count); break;
    case SHERL_GELU_ERF: forward_loop(SHERL_GELU_ERF, x, y, count); break;
    case SHERL_GELU_TANH: forward_loop(SHERL_GELU_TANH, x, y, count); break;
    case SHERL_GELU_QUICK: forward_loop(SHERL_GELU_QUICK, x, y, count); break;
    case SHERL_SILU: forward_loop(SHERL_SILU, x, y, count); break;
    case SHERL_SIGMOID: forward_loop(SHERL_SIGMOID, x, y, count); break;
    case SHERL_TANH: forward_loop(SHERL_TANH, x, y, count); break;
    default: forward_loop(SHERL_IDENTITY, x, y, count); break;
    }
}

void SHERL_KERNEL(activation_backward)(sherl_activation activation, const sherl_real *x, const sherl_real *y,
                                       const sherl_real *dy, sherl_real *dx, size_t count, bool accumulate) {
    bool by_output = activation == SHERL_RELU || activation == SHERL_SIGMOID || activation == SHERL_TANH;
    const sherl_real *value = activation == SHERL_IDENTITY ? dy : by_output ? y : x;
    switch (activation) {
    case SHERL_RELU: backward_loop(SHERL_RELU, value, dy, dx, count, accumulate); break;
    case SHERL_GELU_ERF: backward_loop(SHERL_GELU_ERF, value, dy, dx, count, accumulate); break;
    case SHERL_GELU_TANH: backward_loop(SHERL_GELU_TANH, value, dy, dx, count, accumulate); break;
    case SHERL_GELU_QUICK: backward_loop(SHERL_GELU_QUICK, value, dy, dx, count, accumulate); break;
    case SHERL_SILU: backward_loop(SHERL_SILU, value, dy, dx, count, accumulate); break;
    case SHERL_SIGMOID: backward_loop(SHERL_SIGMOID, value, dy, dx, count, accumulate); break;
    case SHERL_TANH: backward_loop(SHERL_TANH, value, dy, dx, count, accumulate); break;
    default: backward_loop(SHERL_IDENTITY, value, dy, dx, count, accumulate); break;
    }
}

void SHERL_KERNEL(bias_activation)(sherl_activation activation, sherl_real *y, const sherl_real *bias, size_t rows,
                                   size_t channels) {
    if (bias == NULL) {
        if (activation != SHERL_IDENTITY) SHERL_KERNEL(activation_forward)(activation, y, y, rows * channels);
        return;
    }
    switch (activation) {
    case SHERL_RELU: bias_loop(SHERL_RELU, y, bias, rows, channels); break;
    case SHERL_GELU_ERF: bias_loop(SHERL_GELU_ERF, y, bias, rows, channels); break;
    case SHERL_GELU_TANH: bias_loop(SHERL_GELU_TANH, y, bias, rows, channels); break;
    case SHERL_GELU_QUICK: bias_loop(SHERL_GELU_QUICK, y, bias, rows, channels); break;
    case SHERL_SILU: bias_loop(SHERL_SILU, y, bias, rows, channels); break;
    case SHERL_SIGMOID: bias_loop(SHERL_SIGMOID, y, bias, rows, channels); break;
    case SHERL_TANH: bias_loop(SHERL_TANH, y, bias, rows, channels); break;
    default: bias_loop(SHERL_IDENTITY, y, bias, rows, channels); break;
    }
}

/* y (+)= activation(z) * x */
SHERL_INLINE void gate_loop(sherl_activation activation, const sherl_real *z, const sherl_real *x, sherl_real *y,
                            size_t count, bool accumulate) {
    if (accumulate) {
#pragma omp simd
        for (size_t i = 0; i < count; i++) y[i] += activate(activation, z[i]) * x[i];
    } else {
#pragma omp simd
        for (size_t i = 0; i < count; i++) y[i] = activate(activation, z[i]) * x[i];
    }
}
/* dz (+)= dy * x * activation'(z) */
SHERL_INLINE void gate_slope_loop(sherl_activation activation, const sherl_real *z, const sherl_real *x,
                                  const sherl_real *dy, sherl_real *dz, size_t count, bool accumulate) {
    const bool by_output = activation == SHERL_RELU || activation == SHERL_SIGMOID || activation == SHERL_TANH;
    if (accumulate) {
#pragma omp simd
        for (size_t i = 0; i < count; i++)
            dz[i] += dy[i] * x[i] * activation_slope(activation, by_output ? activate(activation, z[i]) : z[i]);
    } else {
#pragma omp simd
        for (size_t i = 0; i < count; i++)
            dz[i] = dy[i] * x[i] * activation_slope(activation, by_output ? activate(activation, z[i]) : z[i]);
    }
}

void SHERL_KERNEL(gate)(sherl_activation activation, const sherl_real *z, const sherl_real *x, sherl_real *y,
                        size_t count, bool accumulate) {
    switch (activation) {
    case SHERL_RELU: gate_loop(SHERL_RELU, z, x, y, count, accumulate); break;
    case SHERL_GELU_ERF: gate_loop(SHERL_GELU_ERF, z, x, y, count, accumulate); break;
    case SHERL_GELU_TANH: gate_loop(SHERL_GELU_TANH, z, x, y, count, accumulate); break;
    case SHERL_GELU_QUICK: gate_loop(SHERL_GELU_QUICK, z, x, y, count, accumulate); break;
    case SHERL_SILU: gate_loop(SHERL_SILU, z, x, y, count, accumulate); break;
    case SHERL_SIGMOID: gate_loop(SHERL_SIGMOID, z, x, y, count, accumulate); break;
    case SHERL_TANH: gate_loop(SHERL_TANH, z, x, y, count, accumulate); break;
    default: gate_loop(SHERL_IDENTITY, z, x, y, count, accumulate); break;
    }
}

void SHERL_KERNEL(gate_slope)(sherl_activation activation, const sherl_real *z, const sherl_real *x,
                              const sherl_real *dy, sherl_real *dz, size_t count, bool accumulate) {
    switch (activation) {
    case SHERL_RELU: gate_slope_loop(SHERL_RELU, z, x, dy, dz, count, accumulate); break;
    case SHERL_GELU_ERF: gate_slope_loop(SHERL_GELU_ERF, z, x, dy, dz, count, accumulate); break;
    case SHERL_GELU_TANH: gate_slope_loop(SHERL_GELU_TANH, z, x, dy, dz, count, accumulate); break;
    case SHERL_GELU_QUICK: gate_slope_loop(SHERL_GELU_QUICK, z, x, dy, dz, count, accumulate); break;
    case SHERL_SILU: gate_slope_loop(SHERL_SILU, z, x, dy, dz, count, accumulate); break;
    case SHERL_SIGMOID: gate_slope_loop(SHERL_SIGMOID, z, x, dy, dz, count, accumulate); break;
    case SHERL_TANH: gate_slope_loop(SHERL_TANH, z, x, dy, dz, count, accumulate); break;
    default: gate_slope_loop(SHERL_IDENTITY, z, x, dy, dz, count, accumulate); break;
    }
}

/* ---- Sums and products ------------------------------------------------------------------------------------------- */

void SHERL_KERNEL(add)(const sherl_real *a, const sherl_real *b, sherl_real *y, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) y[i] = a[i] + b[i];
}

void SHERL_KERNEL(multiply)(const sherl_real *a, const sherl_real *b, sherl_real *y, size_t count, bool accumulate) {
    if (accumulate) {
#pragma omp simd
        for (size_t i = 0; i < count; i++) y[i] += a[i] * b[i];
    } else {
#pragma omp simd
        for (size_t i = 0; i < count; i++) y[i] = a[i] * b[i];
    }
}

void SHERL_KERNEL(accumulate)(const sherl_real *a, sherl_real *y, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) y[i] += a[i];
}

void SHERL_KERNEL(add_scaled)(const sherl_real *a, sherl_real scale, const sherl_real *b, sherl_real *y, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) y[i] = a[i] + scale * b[i];
}

/* Four running sums, each over its own quarter, keep the adders busy. */
sherl_real SHERL_KERNEL(dot)(const sherl_real *a, const sherl_real *b, size_t count) {
    size_t quarter = count / 4;
    sherl_real sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
    for (size_t i = 0; i < quarter; i++) {
        sum0 += a[i] * b[i];
        sum1 += a[quarter + i] * b[quarter + i];
        sum2 += a[2 * quarter + i] * b[2 * quarter + i];
        sum3 += a[3 * quarter + i] * b[3 * quarter + i];
    }
    for (size_t i = 4 * quarter; i < count; i++) sum0 += a[i] * b[i];
    return (sum0 + sum1) + (sum2 + sum3);
}

/* ---- Column by column -------------------------------------------------------------------------------------------- */

void SHERL_KERNEL(add_column_sums)(const sherl_real *x, sherl_real *y, size_t rows, size_t channels) {
    size_t row = 0;
    for (; row + 4 <= rows; row += 4, x += 4 * channels) {
        const sherl_real *x1 = x + channels, *x2 = x1 + channels, *x3 = x2 + channels;
#pragma omp simd
        for (size_t c = 0; c < channels; c++) y[c] += (x[c] + x1[c]) + (x2[c] + x3[c]);
    }
    for (; row < rows; row++, x += channels) SHERL_KERNEL(accumulate)(x, y, channels);
}

void SHERL_KERNEL(add_column_products)(const sherl_real *a, const sherl_real *a_center, const sherl_real *b,
                                       const sherl_real *b_center, sherl_real *y, size_t rows, size_t channels) {
    for (size_t row = 0; row < rows; row++, a += channels, b += channels) {
#pragma omp simd
        for (size_t c = 0; c < channels; c++) y[c] += (a[c] - a_center[c]) * (b[c] - b_center[c]);
    }
}

void SHERL_KERNEL(affine_columns)(const sherl_real *x, const sherl_real *center, const sherl_real *scale,
                                  const sherl_real *shift, sherl_real *y, size_t rows, size_t channels,
                                  bool accumulate) {
    for (size_t row = 0; row < rows; row++, x += channels, y += channels) {
        if (accumulate) {
#pragma omp simd
            for (size_t c = 0; c < channels; c++) y[c] += (x[c] - center[c]) * scale[c] + shift[c];
        } else {
#pragma omp simd
            for (size_t c = 0; c < channels; c++) y[c] = (x[c] - center[c]) * scale[c] + shift[c];
        }
    }
}

void SHERL_KERNEL(scale_columns)(const sherl_real *x, const sherl_real *scale, sherl_real *y, size_t rows,
                                 size_t channels, bool accumulate) {
    for (size_t row = 0; row < rows; row++, x += channels, y += channels)
        SHERL_KERNEL(multiply)(x, scale, y, channels, accumulate);
}

/* ---- Dropout ----------------------------------------------------------------------------------------------------- */

#define SHERL_DROPOUT_BLOCKS ((size_t)64)

/* words[4 j + i] = word i of the block of counter {first_block + j, row.position, row.sample, stream} */
static void draw_words(sherl_random_key key, uint32_t stream, sherl_row_key row, uint32_t first_block, size_t blocks,
                       uint32_t *words) {
    uint32_t word0[SHERL_DROPOUT_BLOCKS], word1[SHERL_DROPOUT_BLOCKS];
    uint32_t word2[SHERL_DROPOUT_BLOCKS], word3[SHERL_DROPOUT_BLOCKS];
#pragma omp simd
    for (size_t j = 0; j < blocks; j++) {
        sherl_random_block counter = {{first_block + (uint32_t)j, row.position, row.sample, stream}};
        sherl_random_block block = sherl_philox(counter, key);
        word0[j] = block.word[0];
        word1[j] = block.word[1];
        word2[j] = block.word[2];
        word3[j] = block.word[3];
    }
#pragma omp simd
    for (size_t j = 0; j < blocks; j++) {
        words[4 * j] = word0[j];
        words[4 * j + 1] = word1[j];
        words[4 * j + 2] = word2[j];
        words[4 * j + 3] = word3[j];
    }
}

void SHERL_KERNEL(dropout_row)(sherl_random_key key, uint32_t stream, sherl_row_key row, double rate,
                               const sherl_real *x, sherl_real *y, size_t channels, bool accumulate) {
    uint32_t words[4 * SHERL_DROPOUT_BLOCKS];
    uint32_t threshold = (uint32_t)(rate * 4294967296.0);
    sherl_real scale = (sherl_real)(1.0 / (1.0 - rate));
    for (size_t first = 0; first < channels; first += 4 * SHERL_DROPOUT_BLOCKS) {
        size_t count = channels - first < 4 * SHERL_DROPOUT_BLOCKS ? channels - first : 4 * SHERL_DROPOUT_BLOCKS;
        draw_words(key, stream, row, (uint32_t)(first / 4), (count + 3) / 4, words);
        const sherl_real *from = x + first;
        sherl_real *to = y + first;
        if (accumulate) {
#pragma omp simd
            for (size_t c = 0; c < count; c++) to[c] += words[c] >= threshold ? from[c] * scale : 0;
        } else {
#pragma omp simd
            for (size_t c = 0; c < count; c++) to[c] = words[c] >= threshold ? from[c] * scale : 0;
        }
    }
}
