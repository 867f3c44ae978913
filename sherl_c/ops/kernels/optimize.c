/* Steps of the optimizers, and the norm of a gradient. */
#include <math.h>

#include "names.h"

static inline double square(sherl_real x) { return (double)x * (double)x; }

/* In float64, four running sums, each over its own quarter. */
double SHERL_KERNEL(sum_of_squares)(const sherl_real *x, size_t count) {
    size_t quarter = count / 4;
    double sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
    for (size_t i = 0; i < quarter; i++) {
        sum0 += square(x[i]);
        sum1 += square(x[quarter + i]);
        sum2 += square(x[2 * quarter + i]);
        sum3 += square(x[3 * quarter + i]);
    }
    for (size_t i = 4 * quarter; i < count; i++) sum0 += square(x[i]);
    return (sum0 + sum1) + (sum2 + sum3);
}

/* g = gradient_scale * gradient + weight_decay * w;  buffer = momentum * buffer + g;  w -= learning_rate * buffer */
void SHERL_KERNEL(sgd)(sherl_real *weights, const sherl_real *gradient, sherl_real *momentum_buffer, size_t count,
                       double gradient_scale, double learning_rate, double weight_decay, double momentum) {
    sherl_real scale = (sherl_real)gradient_scale, rate = (sherl_real)learning_rate;
    sherl_real decay = (sherl_real)weight_decay, keep = (sherl_real)momentum;
    if (momentum == 0) {
#pragma omp simd
        for (size_t i = 0; i < count; i++) weights[i] -= rate * (scale * gradient[i] + decay * weights[i]);
        return;
    }
#pragma omp simd
    for (size_t i = 0; i < count; i++) {
        momentum_buffer[i] = keep * momentum_buffer[i] + (scale * gradient[i] + decay * weights[i]);
        weights[i] -= rate * momentum_buffer[i];
    }
}

/* g = gradient_scale * gradient;  decoupled: w *= 1 - learning_rate * weight_decay, else g += weight_decay * w
 * m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
 * w -= learning_rate / correction1 * m / (sqrt(v) / sqrt(correction2) + eps) */
void SHERL_KERNEL(adam)(sherl_real *weights, const sherl_real *gradient, sherl_real *first_moment,
                        sherl_real *second_moment, size_t count, double gradient_scale, double learning_rate,
                        double weight_decay, double beta1, double beta2, double eps, double correction1,
                        double correction2, bool decoupled) {
    sherl_real scale = (sherl_real)gradient_scale, rate = (sherl_real)(learning_rate / correction1);
    sherl_real keep1 = (sherl_real)beta1, take1 = (sherl_real)(1 - beta1);
    sherl_real keep2 = (sherl_real)beta2, take2 = (sherl_real)(1 - beta2);
    sherl_real root_scale = (sherl_real)(1 / sqrt(correction2)), least = (sherl_real)eps;
    sherl_real shrink = (sherl_real)(decoupled ? 1 - learning_rate * weight_decay : 1);
    sherl_real decay = (sherl_real)(decoupled ? 0 : weight_decay);
#pragma omp simd
    for (size_t i = 0; i < count; i++) {
        sherl_real w = weights[i] * shrink;
        sherl_real g = scale * gradient[i] + decay * w;
        sherl_real m = keep1 * first_moment[i] + take1 * g;
        sherl_real v = keep2 * second_moment[i] + take2 * g * g;
        first_moment[i] = m;
        second_moment[i] = v;
#ifdef SHERL_DOUBLE
        sherl_real root = sqrt(v);
#else
        sherl_real root = sqrtf(v);
#endif
        weights[i] = w - rate * m / (root * root_scale + least);
    }
}
