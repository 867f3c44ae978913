/* Matrix products. The only place that names OpenBLAS is blas.c. */
#ifndef SHERL_BLAS_H
#define SHERL_BLAS_H

#include "../include/sherl.h"

/* C = alpha op(A) op(B) + beta C, row major; op(A) is m x k, op(B) is k x n. Sizes that the library's integers cannot
 * hold are refused when a graph is built (sherl_blas_size_fits). */
void sherl_gemm(bool transpose_a, bool transpose_b, size_t m, size_t n, size_t k, double alpha, const sherl_real *a,
                size_t a_stride, const sherl_real *b, size_t b_stride, double beta, sherl_real *c, size_t c_stride);
bool sherl_blas_size_fits(size_t size);

#endif
