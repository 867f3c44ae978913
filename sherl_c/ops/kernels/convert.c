/* Rows of the caller's element types to reals and back, rounding to the nearest even. */
#include "names.h"

typedef union float_bits {
    float value;
    uint32_t bits;
} float_bits;

/* ---- float16: 1 sign, 5 exponent, 10 fraction bits --------------------------------------------------------------- */

static inline float widen_float16(uint16_t half) {
    uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13;
    uint32_t normal = magnitude + (112u << 23);
    /* A subnormal number is the fraction of 2^-14: put it there and take 2^-14 away. */
    float_bits subnormal = {.bits = magnitude | 0x38800000u};
    subnormal.value -= 6.103515625e-05f;
    uint32_t bits = magnitude < 0x00800000u ? subnormal.bits : normal;
    bits = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : bits; /* infinity, NaN */
    return (float_bits){.bits = bits | (uint32_t)(half & 0x8000) << 16}.value;
}

static inline uint16_t narrow_float16(float value) {
    float_bits source = {.value = value};
    uint32_t sign = source.bits >> 16 & 0x8000u, magnitude = source.bits & 0x7fffffffu;
    uint32_t normal = ((magnitude + 0x0fffu + (magnitude >> 13 & 1)) >> 13) - (112u << 10);
    /* Half the spacing of float32 at 0.5 is that of subnormal float16: the sum rounds as it should. */
    float_bits subnormal = {.bits = magnitude};
    subnormal.value += 0.5f;
    uint32_t half = magnitude < 0x38800000u ? subnormal.bits - 0x3f000000u : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half; /* rounds to 65536 or more */
    half = magnitude > 0x7f800000u ? 0x7e00u | (magnitude >> 13 & 0x3ffu) : half;
    return (uint16_t)(sign | half);
}

/* ---- bfloat16: the upper half of a float32 ----------------------------------------------------------------------- */

static inline float widen_bfloat16(uint16_t half) { return (float_bits){.bits = (uint32_t)half << 16}.value; }

static inline uint16_t narrow_bfloat16(float value) {
    uint32_t bits = (float_bits){.value = value}.bits;
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : rounded);
}

/* ---- Rows --------------------------------------------------------------------------------------------------------- */

/* The float32 that rounds to 16 bits as the real itself does: a float64 is cut, and its last bit tells that it was. */
static inline float before_narrowing(sherl_real real) {
#ifdef SHERL_DOUBLE
    float_bits cut = {.value = (float)real};
    double back = cut.value;
    cut.bits -= (back < 0 ? -back : back) > (real < 0 ? -real : real) ? 1u : 0u;
    cut.bits |= back != real ? 1u : 0u;
    return cut.value;
#else
    return real;
#endif
}

void SHERL_KERNEL(widen)(sherl_element element, const void *source, sherl_real *destination, size_t channels) {
    if (element == SHERL_FLOAT16) {
        const uint16_t *halves = source;
#pragma omp simd
        for (size_t c = 0; c < channels; c++) destination[c] = widen_float16(halves[c]);
    } else if (element == SHERL_BFLOAT16) {
        const uint16_t *halves = source;
#pragma omp simd
        for (size_t c = 0; c < channels; c++) destination[c] = widen_bfloat16(halves[c]);
    } else if (element == SHERL_FLOAT64) {
        const double *doubles = source;
#pragma omp simd
        for (size_t c = 0; c < channels; c++) destination[c] = (sherl_real)doubles[c];
    } else {
        const float *floats = source;
#pragma omp simd
        for (size_t c = 0; c < channels; c++) destination[c] = floats[c];
    }
}

void SHERL_KERNEL(widen_int8)(const int8_t *source, float scale, sherl_real *destination, size_t channels) {
#pragma omp simd
    for (size_t c = 0; c < channels; c++) destination[c] = (sherl_real)scale * (sherl_real)source[c];
}

void SHERL_KERNEL(narrow)(sherl_element element, const sherl_real *source, void *destination, size_t channels) {
    if (element == SHERL_FLOAT16) {
        uint16_t *halves = destination;
#pragma omp simd
        for (size_t c = 0; c < channels; c++) halves[c] = narrow_float16(before_narrowing(source[c]));
    } else if (element == SHERL_BFLOAT16) {
        uint16_t *halves = destination;
#pragma omp simd
        for (size_t c = 0; c < channels; c++) halves[c] = narrow_bfloat16(before_narrowing(source[c]));
    } else if (element == SHERL_FLOAT64) {
        double *doubles = destination;
#pragma omp simd
        for (size_t c = 0; c < channels; c++) doubles[c] = source[c];
    } else {
        float *floats = destination;
#pragma omp simd
        for (size_t c = 0; c < channels; c++) floats[c] = (float)source[c];
    }
}
