/* Exponential, sigmoid, hyperbolic tangent and the normal distribution, branch-free so that loops over them vectorise.
 *
 * In float32 they are approximations of this project: minimax fits, within about two units in the last place,
 * right at zeros, infinities and overflow, and a NaN stays one. In float64 they are the C library's. */
#ifndef SHERL_OPS_KERNELS_VECTOR_MATH_H
#define SHERL_OPS_KERNELS_VECTOR_MATH_H

#include <math.h>
#include <stdint.h>

#include "../../include/sherl.h"

#define SHERL_SQRT_HALF 0.70710678118654752440
#define SHERL_NORMAL_PEAK 0.39894228040143267794 /* 1 / sqrt(2 pi) */

#ifdef SHERL_DOUBLE

/* Loops that call the C library stay scalar, of which clang would warn. */
#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed"
#endif

#define SHERL_NORMAL_BOUND 39.0 /* the cumulative distribution of minus this is zero */
#define SHERL_EXP_BOUND 746.0   /* exp of minus this is zero */

static inline double sherl_exp(double x) { return exp(x); }
static inline double sherl_tanh(double x) { return tanh(x); }
static inline double sherl_normal_cdf(double x, double *density) {
    *density = SHERL_NORMAL_PEAK * exp(-0.5 * x * x);
    return 0.5 * erfc(-x * SHERL_SQRT_HALF);
}

#else

#define SHERL_NORMAL_BOUND 15.0f
#define SHERL_EXP_BOUND 105.0f

typedef union sherl_float_bits {
    float value;
    uint32_t bits;
    int32_t integer;
} sherl_float_bits;

/* 2^n for -126 <= n <= 127 */
static inline float sherl_power_of_two(int32_t n) {
    return (sherl_float_bits){.bits = (uint32_t)(n + 127) << 23}.value;
}

/* exp(x) = 2^n exp(r) with n = round(x / ln 2), |r| <= ln(2) / 2 */
static inline float sherl_exp(float x) {
    const float rounder = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    x = x > 89.0f ? 89.0f : x;
    x = x < -SHERL_EXP_BOUND ? -SHERL_EXP_BOUND : x;
    sherl_float_bits shifted = {.value = x * 1.44269504f + rounder};
    float n = shifted.value - rounder;
    float r = x - n * 0.693145752f; /* ln 2 in two parts, the first with few bits, so that n times it is exact */
    r = r - n * 1.42860677e-6f;
    float p = 0.00138145978f;
    p = p * r + 0.00836871695f;
    p = p * r + 0.0416683881f;
    p = p * r + 0.166665206f;
    p = p * r + 0.499999934f;
    p = p * (r * r) + r + 1.0f;
    int32_t power = shifted.integer - 0x4b400000;
    int32_t half = power >> 1; /* two factors reach the subnormal numbers, and infinity */
    return p * sherl_power_of_two(half) * sherl_power_of_two(power - half);
}

/* tanh(x): a polynomial near zero, where (1 - e) / (1 + e) with e = exp(-2 |x|) would cancel */
static inline float sherl_tanh(float x) {
    float z = x * x;
    float p = -0.0057049902f;
    p = p * z + 0.0206390904f;
    p = p * z - 0.0537397162f;
    p = p * z + 0.133314422f;
    p = p * z - 0.333332819f;
    float near = x + x * (z * p);
    float e = sherl_exp(-2.0f * fabsf(x));
    float far = copysignf((1.0f - e) / (1.0f + e), x);
    return fabsf(x) < 0.625f ? near : far;
}

/* The cumulative distribution of the standard normal and its density.
 * cdf(-z) = exp(-z^2 / 2) R(z) / 2, and R(z) = exp(z^2 / 2) erfc(z / sqrt(2)) is smooth: a ratio of polynomials. */
static inline float sherl_normal_cdf(float x, float *density) {
    float z = fabsf(x);
    z = z > SHERL_NORMAL_BOUND ? SHERL_NORMAL_BOUND : z;
    float e = sherl_exp(-0.5f * z * z);
    float p = 0.00824397124f;
    p = p * z + 0.0813742904f;
    p = p * z + 0.366836126f;
    p = p * z + 0.877155301f;
    p = p * z + 1.0f;
    float q = 0.0103321714f;
    q = q * z + 0.101993791f;
    q = q * z + 0.469946514f;
    q = q * z + 1.20332067f;
    q = q * z + 1.67504016f;
    q = q * z + 1.0f;
    float tail = 0.5f * e * (p / q);
    *density = (float)SHERL_NORMAL_PEAK * e;
    return x < 0.0f ? tail : 1.0f - tail;
}

#endif

/* 1 / (1 + exp(-x)) and its derivative, neither of which cancels */
static inline sherl_real sherl_sigmoid(sherl_real x, sherl_real *slope) {
    sherl_real e = sherl_exp(x < 0 ? x : -x);
    sherl_real inverse = 1 / (1 + e);
    *slope = e * inverse * inverse;
    return x < 0 ? e * inverse : inverse;
}

/* x at least `least`, or within +-most; NaN kept. With x * f(x), where f(x) vanishes at an infinity, the bound makes the
 * product zero there; the plain one would be NaN. */
static inline sherl_real sherl_bounded_below(sherl_real x, sherl_real least) { return x < least ? least : x; }
static inline sherl_real sherl_bounded(sherl_real x, sherl_real most) {
    return sherl_bounded_below(x > most ? most : x, -most);
}

#endif
