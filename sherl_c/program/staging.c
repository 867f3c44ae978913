/* Staging: rows between the caller's memory, of any element type and order, and a tile. */
#include <string.h>

#include "program.h"

static const sherl_element native = sizeof(sherl_real) == sizeof(float) ? SHERL_FLOAT32 : SHERL_FLOAT64;

static size_t source_index(const sherl_source *source, size_t row) {
    return source->rows ? (size_t)source->rows[row] : row;
}

static const char *source_row(const sherl_source *source, size_t row) {
    return (const char *)source->data + source_index(source, row) * source->row_stride;
}

/* Tokens and labels become int32; what does not fit is out of range anyway. */
static sherl_status load_integer(const sherl_source *source, size_t row, int32_t *destination) {
    int64_t index;
    if (source->element == SHERL_INT64) {
        memcpy(&index, source_row(source, row), sizeof index);
    } else {
        int32_t narrow;
        memcpy(&narrow, source_row(source, row), sizeof narrow);
        index = narrow;
    }
    if (index < 0 || index > INT32_MAX) return SHERL_INDEX_OUT_OF_RANGE;
    *destination = (int32_t)index;
    return SHERL_OK;
}

void *sherl_stage_direct(const sherl_source *source, size_t first_row, size_t rows, size_t channels) {
    if (source->element != native || source->row_stride != channels * sizeof(sherl_real)) return NULL;
    if (source->rows)
        for (size_t r = 1; r < rows; r++)
            if (source->rows[first_row + r] != source->rows[first_row] + (int64_t)r) return NULL;
    return (void *)(uintptr_t)source_row(source, first_row);
}

sherl_status sherl_stage_load(const sherl_kernels *kernels, const sherl_source *source, size_t first_row, size_t rows,
                              size_t channels, bool integer, void *destination) {
    for (size_t r = 0; r < rows; r++) {
        if (integer) {
            sherl_status status = load_integer(source, first_row + r, (int32_t *)destination + r);
            if (status) return status;
        } else if (source->element == SHERL_INT8) {
            kernels->widen_int8((const int8_t *)source_row(source, first_row + r),
                                source->scales[source_index(source, first_row + r)],
                                (sherl_real *)destination + r * channels, channels);
        } else {
            kernels->widen(source->element, source_row(source, first_row + r), (sherl_real *)destination + r * channels,
                           channels);
        }
    }
    return SHERL_OK;
}

void sherl_stage_store(const sherl_kernels *kernels, const sherl_sink *sink, size_t first_row, size_t rows,
                       size_t channels, const sherl_real *values) {
    for (size_t r = 0; r < rows; r++) {
        size_t index = sink->rows ? (size_t)sink->rows[first_row + r] : first_row + r;
        kernels->narrow(sink->element, values + r * channels, (char *)sink->data + index * sink->row_stride, channels);
    }
}
