/* Philox4x32-10, a counter-based random number generator (Salmon et al., SC 2011). */
#ifndef SHERL_BASE_RANDOM_H
#define SHERL_BASE_RANDOM_H

#include <stdint.h>

typedef struct sherl_random_key { uint32_t word[2]; } sherl_random_key;
typedef struct sherl_random_block { uint32_t word[4]; } sherl_random_block;

static inline sherl_random_block sherl_philox(sherl_random_block counter, sherl_random_key key) {
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * counter.word[0];
        uint64_t product1 = (uint64_t)0xCD9E8D57u * counter.word[2];
        counter =
            (sherl_random_block){{(uint32_t)(product1 >> 32) ^ counter.word[1] ^ key.word[0], (uint32_t)product1,
                                  (uint32_t)(product0 >> 32) ^ counter.word[3] ^ key.word[1], (uint32_t)product0}};
        key.word[0] += 0x9E3779B9u;
        key.word[1] += 0xBB67AE85u;
    }
    return counter;
}

/* One key out of a seed and a step number. */
static inline sherl_random_key sherl_mix_key(uint64_t seed, uint64_t step) {
    sherl_random_block counter = {{(uint32_t)step, (uint32_t)(step >> 32), 0, 0}};
    sherl_random_key key = {{(uint32_t)seed, (uint32_t)(seed >> 32)}};
    sherl_random_block mixed = sherl_philox(counter, key);
    return (sherl_random_key){{mixed.word[0], mixed.word[1]}};
}

#endif
