/* Layer norm and RMS norm over contiguous rows. */
#include <math.h>

#include "names.h"

/* Four running sums, each over its own quarter, keep the adders busy. */
static sherl_real sum(const sherl_real *x, size_t count) {
    size_t quarter = count / 4;
    sherl_real sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
    for (size_t i = 0; i < quarter; i++) {
        sum0 += x[i];
        sum1 += x[quarter + i];
        sum2 += x[2 * quarter + i];
        sum3 += x[3 * quarter + i];
    }
    for (size_t i = 4 * quarter; i < count; i++) sum0 += x[i];
    return (sum0 + sum1) + (sum2 + sum3);
}

static inline sherl_real square(sherl_real x) { return x * x; }

static sherl_real sum_of_squared_deviations(const sherl_real *x, sherl_real mean, size_t count) {
    size_t quarter = count / 4;
    sherl_real sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
    for (size_t i = 0; i < quarter; i++) {
        sum0 += square(x[i] - mean);
        sum1 += square(x[quarter + i] - mean);
        sum2 += square(x[2 * quarter + i] - mean);
        sum3 += square(x[3 * quarter + i] - mean);
    }
    for (size_t i = 4 * quarter; i < count; i++) sum0 += square(x[i] - mean);
    return (sum0 + sum1) + (sum2 + sum3);
}

/* y = (x - mean) * inverse_deviation * weight + bias, or without bias; x, y: (rows, channels) */
void SHERL_KERNEL(layer_norm_forward)(const sherl_real *x, const sherl_real *weight, const sherl_real *bias, double eps,
                                      sherl_real *y, sherl_real *statistics, size_t rows, size_t channels) {
    for (size_t row = 0; row < rows; row++, x += channels, y += channels) {
        sherl_real mean = sum(x, channels) / (sherl_real)channels;
        sherl_real variance = sum_of_squared_deviations(x, mean, channels) / (sherl_real)channels;
        sherl_real inverse_deviation = (sherl_real)(1.0 / sqrt((double)variance + eps));
        if (statistics != NULL) {
            statistics[2 * row] = mean;
            statistics[2 * row + 1] = inverse_deviation;
        }
        if (bias == NULL) {
#pragma omp simd
            for (size_t c = 0; c < channels; c++) y[c] = (x[c] - mean) * inverse_deviation * weight[c];
        } else {
#pragma omp simd
            for (size_t c = 0; c < channels; c++) y[c] = (x[c] - mean) * inverse_deviation * weight[c] + bias[c];
        }
    }
}

/* With n = (x - mean) * inverse_deviation and g = dy * weight:
 * dx (+)= inverse_deviation * (g - mean(g) - n * mean(g n)) */
static void layer_norm_row_backward(const sherl_real *x, const sherl_real *weight, const sherl_real *statistics,
                                    const sherl_real *dy, sherl_real *dx, size_t channels, bool accumulate) {
    sherl_real mean = statistics[0], inverse_deviation = statistics[1];
    size_t half = channels / 2;
    sherl_real sum0 = 0, sum1 = 0, product0 = 0, product1 = 0;
#pragma omp simd reduction(+ : sum0, sum1, product0, product1)
    for (size_t c = 0; c < half; c++) {
        sherl_real g0 = dy[c] * weight[c], g1 = dy[half + c] * weight[half + c];
        sum0 += g0;
        sum1 += g1;
        product0 += g0 * (x[c] - mean);
        product1 += g1 * (x[half + c] - mean);
    }
    for (size_t c = 2 * half; c < channels; c++) {
        sum0 += dy[c] * weight[c];
        product0 += dy[c] * weight[c] * (x[c] - mean);
    }
    sherl_real mean_g = (sum0 + sum1) / (sherl_real)channels;
    sherl_real slope = inverse_deviation * inverse_deviation * (product0 + product1) / (sherl_real)channels;
    if (accumulate) {
#pragma omp simd
        for (size_t c = 0; c < channels; c++)
            dx[c] += inverse_deviation * (dy[c] * weight[c] - mean_g - (x[c] - mean) * slope);
    } else {
#pragma omp simd
        for (size_t c = 0; c < channels; c++)
            dx[c] = inverse_deviation * (dy[c] * weight[c] - mean_g - (x[c] - mean) * slope);
    }
}

/* dweight += dy * n */
static void layer_norm_weight_backward(const sherl_real *x, const sherl_real *statistics, const sherl_real *dy,
                                       sherl_real *dweight, size_t rows, size_t channels) {
    for (size_t row = 0; row < rows; row++, x += channels, dy += channels) {
        sherl_real mean = statistics[2 * row], inverse_deviation = statistics[2 * row + 1];
#pragma omp simd
        for (size_t c = 0; c < channels; c++) dweight[c] += dy[c] * ((x[c] - mean) * inverse_deviation);
    }
}

void SHERL_KERNEL(layer_norm_backward)(const sherl_real *x, const sherl_real *weight, const sherl_real *statistics,
                                       const sherl_real *dy, sherl_real *dx, sherl_real *dweight, sherl_real *dbias,
                                       size_t rows, size_t channels, bool accumulate) {
    for (size_t row = 0; row < rows; row += 4) { /* a few rows, which then are in the nearest cache for all three */
        size_t block = rows - row < 4 ? rows - row : 4, at = row * channels;
        if (dweight != NULL)
            layer_norm_weight_backward(x + at, statistics + 2 * row, dy + at, dweight, block, channels);
        if (dbias != NULL) SHERL_KERNEL(add_column_sums)(dy + at, dbias, block, channels);
        for (size_t r = row; dx != NULL && r < row + block; r++)
            layer_norm_row_backward(x + r * channels, weight, statistics + 2 * r, dy + r * channels, dx + r * channels,
                                    channels, accumulate);
    }
}

/* ---- RMS norm ---------------------------------------------------------------------------------------------------- */

/* y = x * inverse_root * weight; x, y: (rows, channels) */
void SHERL_KERNEL(rms_norm_forward)(const sherl_real *x, const sherl_real *weight, double eps, sherl_real *y,
                                    sherl_real *inverse_roots, size_t rows, size_t channels) {
    for (size_t row = 0; row < rows; row++, x += channels, y += channels) {
        sherl_real mean_square = sum_of_squared_deviations(x, 0, channels) / (sherl_real)channels;
        sherl_real inverse_root = (sherl_real)(1.0 / sqrt((double)mean_square + eps));
        if (inverse_roots != NULL) inverse_roots[row] = inverse_root;
#pragma omp simd
        for (size_t c = 0; c < channels; c++) y[c] = x[c] * inverse_root * weight[c];
    }
}

/* With g = dy * weight: dx (+)= inverse_root * (g - x * inverse_root^2 * mean(g x)) */
static void rms_norm_row_backward(const sherl_real *x, const sherl_real *weight, sherl_real inverse_root,
                                  const sherl_real *dy, sherl_real *dx, size_t channels, bool accumulate) {
    size_t half = channels / 2;
    sherl_real product0 = 0, product1 = 0;
#pragma omp simd reduction(+ : product0, product1)
    for (size_t c = 0; c < half; c++) {
        product0 += dy[c] * weight[c] * x[c];
        product1 += dy[half + c] * weight[half + c] * x[half + c];
    }
    for (size_t c = 2 * half; c < channels; c++) product0 += dy[c] * weight[c] * x[c];
    sherl_real slope = inverse_root * inverse_root * (product0 + product1) / (sherl_real)channels;
    if (accumulate) {
#pragma omp simd
        for (size_t c = 0; c < channels; c++) dx[c] += inverse_root * (dy[c] * weight[c] - x[c] * slope);
    } else {
#pragma omp simd
        for (size_t c = 0; c < channels; c++) dx[c] = inverse_root * (dy[c] * weight[c] - x[c] * slope);
    }
}

void SHERL_KERNEL(rms_norm_backward)(const sherl_real *x, const sherl_real *weight, const sherl_real *inverse_roots,
                                     const sherl_real *dy, sherl_real *dx, sherl_real *dweight, size_t rows,
                                     size_t channels, bool accumulate) {
    for (size_t row = 0; row < rows; row++, x += channels, dy += channels) {
        if (dweight != NULL) {
#pragma omp simd
            for (size_t c = 0; c < channels; c++) dweight[c] += dy[c] * (x[c] * inverse_roots[row]);
        }
        if (dx == NULL) continue;
        rms_norm_row_backward(x, weight, inverse_roots[row], dy, dx, channels, accumulate);
        dx += channels;
    }
}
