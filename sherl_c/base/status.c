/* The text of each status and the version of the library. */
#include "../include/sherl.h"

#ifndef SHERL_VERSION
#define SHERL_VERSION "unknown"
#endif

static const char *const status_texts[SHERL_STATUS_COUNT] = {
    [SHERL_OK] = "no error",
    [SHERL_OUT_OF_MEMORY] = "not enough memory",
    [SHERL_SIZE_OVERFLOW] = "a size is larger than its type can hold",
    [SHERL_INVALID_ARGUMENT] = "an argument is outside what the function accepts",
    [SHERL_SHAPE_MISMATCH] = "two shapes that must agree do not",
    [SHERL_INDEX_OUT_OF_RANGE] = "a token id or a label is outside its table, or a position outside its sample",
    [SHERL_NOT_FINITE] = "a loss or a gradient is infinite or not a number",
    [SHERL_OVER_BUDGET] = "the memory budget is smaller than the least that the program needs",
};

const char *sherl_status_text(sherl_status status) {
    if ((unsigned)status >= SHERL_STATUS_COUNT) return "an unknown status";
    return status_texts[status];
}

const char *sherl_version(void) { return SHERL_VERSION; }
