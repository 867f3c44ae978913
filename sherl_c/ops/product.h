/* Matrix products, by the kernels for small shapes where they fit and by the BLAS library otherwise. Shapes alone decide. */
#ifndef SHERL_OPS_PRODUCT_H
#define SHERL_OPS_PRODUCT_H

#include "kernels/kernels.h"

/* Reals of scratch that let sherl_product_transposed_b pack panels of b; 0 where it would not, whatever m is. */
bool sherl_product_scratch(size_t n, size_t k, size_t *reals);

/* c (+)= a b; a: (m, k), b: (k, n), c: (m, n) */
void sherl_product(const sherl_kernels *kernels, sherl_matrix a, sherl_matrix b, sherl_product_sizes sizes,
                   sherl_real *c, size_t c_stride, bool accumulate);
/* c (+)= a b^T; a: (m, k), b: (n, k); scratch as above, or NULL: then small products are dot products */
void sherl_product_transposed_b(const sherl_kernels *kernels, sherl_matrix a, sherl_matrix b, sherl_product_sizes sizes,
                                sherl_real *c, size_t c_stride, bool accumulate, sherl_real *scratch);
/* c += a^T b; a: (k, m), b: (k, n) */
void sherl_add_product_transposed_a(const sherl_kernels *kernels, sherl_matrix a, sherl_matrix b,
                                    sherl_product_sizes sizes, sherl_real *c, size_t c_stride);

#endif
