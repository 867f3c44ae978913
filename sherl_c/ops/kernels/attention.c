/* Softmax over the keys of attention: forward, recomputation from the logsumexp, backward; rotary positions. */
#include <math.h>

#include "kernels.h"
#include "names.h"
#include "vector_math.h"

/* Keys that row `row` sees of `keys`; first_visible = 0 stands for no mask. */
static inline size_t visible_keys(size_t row, size_t keys, size_t first_visible) {
    return first_visible == 0 || first_visible + row > keys ? keys : first_visible + row;
}

#define LANES ((size_t)16)

/* Multiplies x by factor and returns the maximum, kept by lanes: a maximum over one row at a time does not vectorise
 * where NaNs count. */
static inline sherl_real scale_and_find_maximum(sherl_real *x, sherl_real factor, size_t count) {
    sherl_real maxima[LANES], maximum = factor * x[0];
    size_t j = 0;
    for (size_t lane = 0; lane < LANES; lane++) maxima[lane] = maximum;
    for (; j + LANES <= count; j += LANES) {
#pragma omp simd
        for (size_t lane = 0; lane < LANES; lane++) {
            const sherl_real scaled = factor * x[j + lane];
            x[j + lane] = scaled;
            maxima[lane] = scaled > maxima[lane] ? scaled : maxima[lane];
        }
    }
    for (size_t lane = 0; lane < LANES; lane++) maximum = maxima[lane] > maximum ? maxima[lane] : maximum;
    for (; j < count; j++) {
        x[j] *= factor;
        maximum = x[j] > maximum ? x[j] : maximum;
    }
    return maximum;
}

/* p = exp(scale s - logsumexp), logsumexp = log sum_j exp(scale s_j); scores: (rows, keys) */
void SHERL_KERNEL(softmax_forward)(sherl_real *scores, double scale, size_t rows, size_t keys, size_t first_visible,
                                   sherl_real *logsumexp, size_t logsumexp_stride) {
    const sherl_real factor = (sherl_real)scale;
    for (size_t row = 0; row < rows; row++) {
        sherl_real *p = scores + row * keys;
        const size_t visible = visible_keys(row, keys, first_visible);
        const sherl_real peak = scale_and_find_maximum(p, factor, visible);
        sherl_real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t j = 0; j < visible; j++) {
            p[j] = sherl_exp(p[j] - peak);
            sum += p[j];
        }
        const sherl_real inverse = 1 / sum;
        for (size_t j = 0; j < visible; j++) p[j] *= inverse;
        for (size_t j = visible; j < keys; j++) p[j] = 0;
        if (logsumexp != NULL) logsumexp[row * logsumexp_stride] = peak + (sherl_real)log((double)sum);
    }
}

void SHERL_KERNEL(softmax_recompute)(sherl_real *scores, double scale, size_t rows, size_t keys, size_t first_visible,
                                     const sherl_real *logsumexp, size_t logsumexp_stride) {
    const sherl_real factor = (sherl_real)scale;
    for (size_t row = 0; row < rows; row++) {
        sherl_real *p = scores + row * keys;
        const size_t visible = visible_keys(row, keys, first_visible);
        const sherl_real shift = logsumexp[row * logsumexp_stride];
#pragma omp simd
        for (size_t j = 0; j < visible; j++) p[j] = sherl_exp(factor * p[j] - shift);
        for (size_t j = visible; j < keys; j++) p[j] = 0;
    }
}

/* p = softmax(scale s): ds = scale p (dp - sum_j p_j dp_j); both (rows, keys) */
void SHERL_KERNEL(softmax_backward)(const sherl_real *probabilities, sherl_real *dprobabilities, double scale,
                                    size_t rows, size_t keys) {
    const sherl_real factor = (sherl_real)scale;
    for (size_t row = 0; row < rows; row++) {
        const sherl_real *restrict p = probabilities + row * keys;
        sherl_real *restrict dp = dprobabilities + row * keys;
        sherl_real mean = 0;
#pragma omp simd reduction(+ : mean)
        for (size_t j = 0; j < keys; j++) mean += p[j] * dp[j];
#pragma omp simd
        for (size_t j = 0; j < keys; j++) dp[j] = factor * p[j] * (dp[j] - mean);
    }
}

void SHERL_KERNEL(rotate_row)(const sherl_real *x, const sherl_real *cosines, const sherl_real *sines, sherl_real *y,
                              size_t heads, size_t head_size, size_t half, bool accumulate) {
    for (size_t head = 0; head < heads; head++, x += head_size, y += head_size) {
#pragma omp simd
        for (size_t i = 0; i < half; i++) {
            const sherl_real first = x[i], second = x[half + i];
            const sherl_real first_turned = first * cosines[i] - second * sines[i];
            const sherl_real second_turned = second * cosines[i] + first * sines[i];
            y[i] = accumulate ? y[i] + first_turned : first_turned;
            y[half + i] = accumulate ? y[half + i] + second_turned : second_turned;
        }
        for (size_t i = 2 * half; i < head_size; i++) y[i] = accumulate ? y[i] + x[i] : x[i];
    }
}
