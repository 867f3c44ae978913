/* Picks the kernel table for the processor that the program runs on. */
#include <string.h>

#include "kernels/kernels.h"

extern const sherl_kernels sherl_kernels_baseline;

#ifdef SHERL_HAVE_X86_LEVELS

extern const sherl_kernels sherl_kernels_avx512bf16, sherl_kernels_avx512, sherl_kernels_avx2;

/* What the x86-64-v3 and -v4 levels may use, as far as compilers know names for it. The runtime also checks that the
 * operating system saves the wide registers. */
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
}
static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

const sherl_kernels *sherl_kernels_pick(const char *name) {
    __builtin_cpu_init();
    const sherl_kernels *tables[] = {&sherl_kernels_avx512bf16, &sherl_kernels_avx512, &sherl_kernels_avx2,
                                     &sherl_kernels_baseline};
    bool runs[] = {has_avx512() && __builtin_cpu_supports("avx512bf16"), has_avx512(), has_avx2(), true};
    size_t best = 0;
    while (!runs[best]) best++;
    for (size_t i = best; name != NULL && i < sizeof tables / sizeof *tables; i++)
        if (runs[i] && strcmp(tables[i]->instruction_set, name) == 0) return tables[i];
    return tables[best];
}

#else

const sherl_kernels *sherl_kernels_pick(const char *name) {
    (void)name;
    return &sherl_kernels_baseline;
}

#endif
