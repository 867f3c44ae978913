/* The anti-redundancy consolidation of MTSA, one row at a time. With the shallow features x_0 … x_{n-1}, n = count - 1,
 * and the guide e = x_n:
 *
 *     s_i = x_i / (|x_i| + eps)                 r_i = sum_j relu(s_i . s_j)
 *     m_i = relu(w . (x_i * e) + b)             t_i = m_i / r_i
 *     a_i = t_i / (sum_j |t_j| + eps)           y = sum_i a_i x_i (+ e)
 *
 * A feature whose norm is zero has r_i = 0; its t_i is defined as zero, and no gradient flows through its norm, its
 * redundancy or its score. relu'(0) = 0. Nothing is kept for the backward pass, which computes these terms again. */
#include <math.h>

#include "kernels.h"
#include "names.h"

#define CHUNK ((size_t)256) /* channels worked on at a time: sums over the features stay in L1 */

/* The terms of one row; each vector has `count` entries and lies in the caller's scratch. */
typedef struct row_terms {
    sherl_real *cosines;            /* s_i . s_j: (n, n) */
    sherl_real *norms;              /* |x_i| */
    sherl_real *inverse_lengths;    /* 1 / (|x_i| + eps), or 0 where |x_i| = 0 */
    sherl_real *inverse_redundancy; /* 1 / r_i, or 0 where r_i = 0 */
    sherl_real *scores;             /* w . (x_i * e) + b */
    sherl_real *shares;             /* a_i; for the guide, its coefficient in y */
    sherl_real *dshares, *dscores, *dredundancy;
    sherl_real inverse_total; /* 1 / (sum_j |t_j| + eps) */
} row_terms;

static row_terms lay_out(sherl_real *scratch, size_t count) {
    sherl_real *vectors = scratch + count * count;
    return (row_terms){.cosines = scratch,
                       .norms = vectors,
                       .inverse_lengths = vectors + count,
                       .inverse_redundancy = vectors + 2 * count,
                       .scores = vectors + 3 * count,
                       .shares = vectors + 4 * count,
                       .dshares = vectors + 5 * count,
                       .dscores = vectors + 6 * count,
                       .dredundancy = vectors + 7 * count};
}

static inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* dots[j] += x . features[j] over `width` channels that start at `at` of each feature */
static void add_dots(const sherl_real *restrict x, const sherl_real *const *features, size_t count, size_t at,
                     size_t width, sherl_real *dots) {
    size_t j = 0;
    for (; j + 4 <= count; j += 4) { /* four sums at once: x is read once for them, and their chains overlap */
        const sherl_real *x0 = features[j] + at, *x1 = features[j + 1] + at;
        const sherl_real *x2 = features[j + 2] + at, *x3 = features[j + 3] + at;
        sherl_real sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
        for (size_t c = 0; c < width; c++) {
            sum0 += x[c] * x0[c];
            sum1 += x[c] * x1[c];
            sum2 += x[c] * x2[c];
            sum3 += x[c] * x3[c];
        }
        dots[j] += sum0, dots[j + 1] += sum1, dots[j + 2] += sum2, dots[j + 3] += sum3;
    }
    for (; j < count; j++) {
        const sherl_real *xj = features[j] + at;
        sherl_real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t c = 0; c < width; c++) sum += x[c] * xj[c];
        dots[j] += sum;
    }
}

/* sum[c] = sum_j coefficients[j] features[j][c] over `width` channels that start at `at` of each feature */
static void weighted_sum(const sherl_real *const *features, const sherl_real *coefficients, size_t count, size_t at,
                         size_t width, sherl_real *restrict sum) {
    for (size_t c = 0; c < width; c++) sum[c] = 0;
    size_t j = 0;
    for (; j + 4 <= count; j += 4) {
        const sherl_real *x0 = features[j] + at, *x1 = features[j + 1] + at;
        const sherl_real *x2 = features[j + 2] + at, *x3 = features[j + 3] + at;
        const sherl_real a0 = coefficients[j], a1 = coefficients[j + 1];
        const sherl_real a2 = coefficients[j + 2], a3 = coefficients[j + 3];
#pragma omp simd
        for (size_t c = 0; c < width; c++) sum[c] += a0 * x0[c] + a1 * x1[c] + a2 * x2[c] + a3 * x3[c];
    }
    for (; j < count; j++) {
        const sherl_real *xj = features[j] + at;
        const sherl_real a = coefficients[j];
#pragma omp simd
        for (size_t c = 0; c < width; c++) sum[c] += a * xj[c];
    }
}

/* s_i . s_j with the norms, and 1 / r_i, of the row that starts at `at` of each feature */
static void compute_redundancy(const sherl_real *const *features, size_t shallow, size_t at, size_t hidden,
                               sherl_real eps, row_terms *terms) {
    sherl_real *cosines = terms->cosines, *inverse_lengths = terms->inverse_lengths;
    for (size_t i = 0; i < shallow; i++) {
        sherl_real *row = cosines + i * shallow;
        for (size_t j = i; j < shallow; j++) row[j] = 0;
        add_dots(features[i] + at, features + i, shallow - i, at, hidden, row + i); /* x_i . x_j, j >= i */
        terms->norms[i] = (sherl_real)sqrt((double)row[i]);
        inverse_lengths[i] = terms->norms[i] > 0 ? 1 / (terms->norms[i] + eps) : 0;
    }
    for (size_t i = 0; i < shallow; i++) {
        for (size_t j = i; j < shallow; j++) {
            cosines[i * shallow + j] *= inverse_lengths[i] * inverse_lengths[j];
            cosines[j * shallow + i] = cosines[i * shallow + j];
        }
    }
    for (size_t i = 0; i < shallow; i++) {
        sherl_real redundancy = 0;
        for (size_t j = 0; j < shallow; j++) {
            const sherl_real cosine = cosines[i * shallow + j];
            redundancy += cosine > 0 ? cosine : 0;
        }
        terms->inverse_redundancy[i] = redundancy == 0 ? 0 : 1 / redundancy;
    }
}

/* w . (x_i * e) + b, and a_i out of it and 1 / r_i */
static void compute_shares(const sherl_real *const *features, size_t shallow, const sherl_real *weight, sherl_real bias,
                           size_t at, size_t hidden, sherl_real eps, bool add_guide, row_terms *terms) {
    sherl_real weighted_guide[CHUNK], total = eps;
    for (size_t i = 0; i < shallow; i++) terms->scores[i] = bias;
    for (size_t from = 0; from < hidden; from += CHUNK) {
        const size_t width = smaller(CHUNK, hidden - from);
        const sherl_real *guide = features[shallow] + at + from;
        for (size_t c = 0; c < width; c++) weighted_guide[c] = weight[from + c] * guide[c];
        add_dots(weighted_guide, features, shallow, at + from, width, terms->scores);
    }
    for (size_t i = 0; i < shallow; i++) {
        const sherl_real score = terms->scores[i];
        terms->shares[i] = score <= 0 ? 0 : score * terms->inverse_redundancy[i]; /* t_i = |t_i| */
        total += terms->shares[i];
    }
    terms->inverse_total = total == 0 ? 0 : 1 / total;
    for (size_t i = 0; i < shallow; i++) terms->shares[i] *= terms->inverse_total;
    terms->shares[shallow] = add_guide ? 1 : 0;
}

/* y: (rows, hidden), each feature too; weight: (1, hidden), bias: (1, 1) */
void SHERL_KERNEL(guidance_forward)(const sherl_real *const *features, size_t count, const sherl_real *weight,
                                    const sherl_real *bias, double eps, bool add_guide, sherl_real *y, size_t rows,
                                    size_t hidden, sherl_real *scratch) {
    row_terms terms = lay_out(scratch, count);
    for (size_t row = 0; row < rows; row++) {
        const size_t at = row * hidden;
        compute_redundancy(features, count - 1, at, hidden, (sherl_real)eps, &terms);
        compute_shares(features, count - 1, weight, bias[0], at, hidden, (sherl_real)eps, add_guide, &terms);
        weighted_sum(features, terms.shares, add_guide ? count : count - 1, at, hidden, y + at);
    }
}

/* What flows into the scores and the redundancies, from dy at the same row: (hidden) */
static void differentiate_shares(const sherl_real *const *features, size_t shallow, const sherl_real *dy, size_t at,
                                 size_t hidden, sherl_real eps, row_terms *terms) {
    sherl_real *shares = terms->shares, *dshares = terms->dshares;
    /* y = sum_i a_i x_i: da_i = dy . x_i */
    for (size_t i = 0; i < shallow; i++) dshares[i] = 0;
    add_dots(dy, features, shallow, at, hidden, dshares);
    for (size_t i = 0; i < shallow; i++) {
        /* a_i = t_i / total, total = sum_j t_j + eps: dt_i = (da_i - sum_j a_j da_j) / total; as sum_j a_j is
         * 1 - eps / total, the bracket is sum_j a_j (da_i - da_j) + da_i eps / total, which does not cancel */
        sherl_real slope = eps * terms->inverse_total * dshares[i];
        for (size_t j = 0; j < shallow; j++) slope += shares[j] * (dshares[i] - dshares[j]);
        /* t_i = m_i / r_i, m_i = relu(score_i): dscore_i = dt_i / r_i where score_i > 0, dr_i = -dt_i t_i / r_i,
         * and t_i / total = a_i */
        slope *= terms->inverse_redundancy[i];
        terms->dscores[i] = terms->scores[i] > 0 ? slope * terms->inverse_total : 0;
        terms->dredundancy[i] = -slope * shares[i];
    }
}

/* Turns the cosines into coefficients: the gradient of x_i through the redundancies is sum_j coefficients[i][j] x_j. */
static void differentiate_redundancy(size_t shallow, sherl_real eps, row_terms *terms) {
    const sherl_real *dredundancy = terms->dredundancy, *inverse_lengths = terms->inverse_lengths;
    for (size_t i = 0; i < shallow; i++) {
        sherl_real *row = terms->cosines + i * shallow, along = 0;
        /* r_i = sum_j relu(s_i . s_j): ds_i = sum_j D_ij s_j, D_ij = dr_i + dr_j where s_i . s_j > 0, else 0
         * s_i = x_i / l_i, l_i = |x_i| + eps: dx_i = ds_i / l_i - (ds_i . s_i) / (|x_i| l_i) x_i */
        for (size_t j = 0; j < shallow; j++) {
            if (j == i) continue;
            const sherl_real both = row[j] > 0 ? dredundancy[i] + dredundancy[j] : 0;
            along += both * row[j];
            row[j] = both * inverse_lengths[i] * inverse_lengths[j];
        }
        /* j = i: D_ii (1 / l_i^2 - (s_i . s_i) / (|x_i| l_i)) = 2 dr_i eps / l_i^3, free of cancellation */
        const sherl_real inverse = inverse_lengths[i];
        row[i] = 2 * dredundancy[i] * eps * inverse * inverse * inverse;
        if (terms->norms[i] > 0) row[i] -= along * inverse / terms->norms[i];
    }
}

/* dx[c] = or += value[c] */
static void store(const sherl_real *value, size_t width, bool accumulate, sherl_real *dx) {
    if (accumulate) {
        for (size_t c = 0; c < width; c++) dx[c] += value[c];
    } else {
        for (size_t c = 0; c < width; c++) dx[c] = value[c];
    }
}

void SHERL_KERNEL(guidance_backward)(const sherl_real *const *features, size_t count, const sherl_real *weight,
                                     const sherl_real *bias, double eps, bool add_guide, const sherl_real *dy,
                                     sherl_real *const *dfeatures, const bool *accumulate, sherl_real *dweight,
                                     sherl_real *dbias, size_t rows, size_t hidden, sherl_real *scratch) {
    const size_t shallow = count - 1;
    row_terms terms = lay_out(scratch, count);
    for (size_t row = 0; row < rows; row++) {
        compute_redundancy(features, shallow, row * hidden, hidden, (sherl_real)eps, &terms);
        compute_shares(features, shallow, weight, bias[0], row * hidden, hidden, (sherl_real)eps, add_guide, &terms);
        differentiate_shares(features, shallow, dy + row * hidden, row * hidden, hidden, (sherl_real)eps, &terms);
        differentiate_redundancy(shallow, (sherl_real)eps, &terms);
        for (size_t from = 0; from < hidden; from += CHUNK) {
            const size_t at = row * hidden + from, width = smaller(CHUNK, hidden - from);
            const sherl_real *guide = features[shallow] + at;
            sherl_real sum[CHUNK];
            /* y = sum_i a_i x_i, score_i = w . (x_i * e) + b, and the redundancies:
             * dx_i = a_i dy + dscore_i (w * e) + sum_j coefficients[i][j] x_j */
            for (size_t i = 0; i < shallow; i++) {
                if (dfeatures[i] == NULL) continue;
                const sherl_real share = terms.shares[i], dscore = terms.dscores[i];
                weighted_sum(features, terms.cosines + i * shallow, shallow, at, width, sum);
                for (size_t c = 0; c < width; c++) sum[c] += share * dy[at + c] + dscore * weight[from + c] * guide[c];
                store(sum, width, accumulate[i], dfeatures[i] + at);
            }
            /* score_i = w . (x_i * e) + b: dw = sum_i dscore_i x_i * e, de = sum_i dscore_i x_i * w (+ dy) */
            weighted_sum(features, terms.dscores, shallow, at, width, sum);
            if (dweight != NULL)
                for (size_t c = 0; c < width; c++) dweight[from + c] += sum[c] * guide[c];
            if (dfeatures[shallow] == NULL) continue;
            for (size_t c = 0; c < width; c++) sum[c] = sum[c] * weight[from + c] + (add_guide ? dy[at + c] : 0);
            store(sum, width, accumulate[shallow], dfeatures[shallow] + at);
        }
        if (dbias != NULL) /* db = sum_i dscore_i */
            for (size_t i = 0; i < shallow; i++) dbias[0] += terms.dscores[i];
    }
}
