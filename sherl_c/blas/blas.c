/* Matrix products by OpenBLAS, whose public symbols may carry the prefix BLAS_SYMBOL_PREFIX. */
#include "blas.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef BLAS_SYMBOL_PREFIX
#define JOIN_EXPANDED(prefix, name) prefix##name
#define JOIN(prefix, name) JOIN_EXPANDED(prefix, name)
#define BLAS_SYMBOL(name) JOIN(BLAS_SYMBOL_PREFIX, name)
#else
#define BLAS_SYMBOL(name) name
#endif

/* Values of the CBLAS interface and of openblas_get_parallel. */
enum { ROW_MAJOR = 101, NO_TRANSPOSE = 111, TRANSPOSE = 112 };
enum { SERIAL_BUILD, PTHREAD_BUILD, OPENMP_BUILD, BUILD_COUNT };

#ifdef SHERL_DOUBLE
#define blas_gemm BLAS_SYMBOL(cblas_dgemm)
#else
#define blas_gemm BLAS_SYMBOL(cblas_sgemm)
#endif
#define blas_set_threads BLAS_SYMBOL(openblas_set_num_threads)
#define blas_parallel BLAS_SYMBOL(openblas_get_parallel)
#define blas_config BLAS_SYMBOL(openblas_get_config)
#define blas_core_name BLAS_SYMBOL(openblas_get_corename)

/* Declared here because the header's name, its prefix and its integers differ between distributions. */
void blas_gemm(int order, int transpose_a, int transpose_b, int m, int n, int k, sherl_real alpha, const sherl_real *a,
               int a_stride, const sherl_real *b, int b_stride, sherl_real beta, sherl_real *c, int c_stride);
void blas_set_threads(int threads);
int blas_parallel(void);
char *blas_config(void);
char *blas_core_name(void);

void sherl_gemm(bool transpose_a, bool transpose_b, size_t m, size_t n, size_t k, double alpha, const sherl_real *a,
                size_t a_stride, const sherl_real *b, size_t b_stride, double beta, sherl_real *c, size_t c_stride) {
    if (m == 0 || n == 0) return;
    /* A stride says nothing of a single row, but the library wants it no smaller than that row, nor than one; with
     * k = 0 it reads neither factor, and C becomes beta C. */
    size_t a_row = transpose_a ? m : k, b_row = transpose_b ? k : n;
    if (a_stride < a_row) a_stride = a_row;
    if (b_stride < b_row) b_stride = b_row;
    if (c_stride < n) c_stride = n;
    if (a_stride == 0) a_stride = 1;
    if (b_stride == 0) b_stride = 1;
    blas_gemm(ROW_MAJOR, transpose_a ? TRANSPOSE : NO_TRANSPOSE, transpose_b ? TRANSPOSE : NO_TRANSPOSE, (int)m, (int)n,
              (int)k, (sherl_real)alpha, a, (int)a_stride, b, (int)b_stride, (sherl_real)beta, c, (int)c_stride);
}

bool sherl_blas_size_fits(size_t size) { return size <= INT_MAX; }

size_t sherl_blas_callers(void) {
    blas_set_threads(1);
    /* A serial build has buffers without a lock. An OpenMP build takes its number of threads from each caller, so one
     * thread cannot be set for all of them. A pthread build ends the process when more threads call than its table
     * has places for. */
    if (blas_parallel() != PTHREAD_BUILD) return 1;
    const char *label = "MAX_THREADS=", *found = strstr(blas_config(), label);
    long most = found ? strtol(found + strlen(label), NULL, 10) : 1;
    return most > 1 ? (size_t)most : 1;
}

void sherl_blas_description(char *buffer, size_t size) {
    static const char *const builds[BUILD_COUNT] = {"serial", "pthreads", "OpenMP"};
    int build = blas_parallel();
    const char *config = blas_config(), *end = strchr(config, ' ');
    /* The first two words are the name and the version. */
    if (end) end = strchr(end + 1, ' ');
    int length = end ? (int)(end - config) : (int)strlen(config);
    snprintf(buffer, size, "%.*s %s %s", length, config, blas_core_name(),
             build >= 0 && build < BUILD_COUNT ? builds[build] : "unknown threading");
}
