/* Choosing between the kernels for small products and the BLAS library. */
#include "product.h"

#include "../base/context.h"
#include "../blas/blas.h"

enum {
    FLAT = 192, /* rows, columns or depth up to which a product is small */
    FEW_ROWS = 64,
    VECTOR_BYTES = 64 /* whole vectors of columns, on every instruction set */
};

static bool fills_vectors(size_t columns) { return columns % (VECTOR_BYTES / sizeof(sherl_real)) == 0; }

static bool is_flat(size_t n, size_t k) { return n <= FLAT || k <= FLAT; }

bool sherl_product_scratch(size_t n, size_t k, size_t *reals) {
    *reals = 0;
    return !is_flat(n, k) || sherl_multiply_sizes(k, n < SHERL_PRODUCT_PANEL ? n : SHERL_PRODUCT_PANEL, reals);
}

void sherl_product(const sherl_kernels *kernels, sherl_matrix a, sherl_matrix b, sherl_product_sizes sizes,
                   sherl_real *c, size_t c_stride, bool accumulate) {
    if (kernels->product && fills_vectors(sizes.n) && (sizes.m <= FEW_ROWS || is_flat(sizes.n, sizes.k)))
        kernels->product(&a, &b, &sizes, c, c_stride, accumulate);
    else
        sherl_gemm(false, false, sizes.m, sizes.n, sizes.k, 1, a.data, a.stride, b.data, b.stride, accumulate ? 1 : 0,
                   c, c_stride);
}

void sherl_product_transposed_b(const sherl_kernels *kernels, sherl_matrix a, sherl_matrix b, sherl_product_sizes sizes,
                                sherl_real *c, size_t c_stride, bool accumulate, sherl_real *scratch) {
    if (kernels->product_transposed_b && fills_vectors(sizes.k) && (sizes.m <= FEW_ROWS || is_flat(sizes.n, sizes.k)))
        kernels->product_transposed_b(&a, &b, &sizes, c, c_stride, accumulate,
                                      is_flat(sizes.n, sizes.k) ? scratch : NULL);
    else
        sherl_gemm(false, true, sizes.m, sizes.n, sizes.k, 1, a.data, a.stride, b.data, b.stride, accumulate ? 1 : 0, c,
                   c_stride);
}

void sherl_add_product_transposed_a(const sherl_kernels *kernels, sherl_matrix a, sherl_matrix b,
                                    sherl_product_sizes sizes, sherl_real *c, size_t c_stride) {
    bool small = sizes.m <= FLAT || is_flat(sizes.n, sizes.k);
    if (kernels->add_product_transposed_a && fills_vectors(sizes.n) && small)
        kernels->add_product_transposed_a(&a, &b, &sizes, c, c_stride);
    else
        sherl_gemm(true, false, sizes.m, sizes.n, sizes.k, 1, a.data, a.stride, b.data, b.stride, 1, c, c_stride);
}
