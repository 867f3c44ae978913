/* The learning rate over the steps of a training: a linear warm-up, then one of four schedules. */
#include "../include/sherl.h"

#include <math.h>

/* What is left of the rate between the end of the warm-up and the last step. */
static double remaining(const sherl_training_settings *settings, uint64_t step) {
    if (step >= settings->total_steps) return 0;
    uint64_t whole = settings->total_steps - settings->warmup_steps;
    double progress = (double)(step - settings->warmup_steps) / (double)whole;
    return settings->schedule == SHERL_SCHEDULE_LINEAR ? 1 - progress : (1 + cos(3.141592653589793 * progress)) / 2;
}

double sherl_learning_rate(const sherl_training_settings *settings, uint64_t step) {
    double rate = settings->learning_rate;
    /* The first step already moves, and the last of the warm-up has the whole rate. */
    if (step < settings->warmup_steps) return rate * ((double)(step + 1) / (double)settings->warmup_steps);
    switch (settings->schedule) {
    case SHERL_SCHEDULE_LINEAR:
    case SHERL_SCHEDULE_COSINE: return rate * remaining(settings, step);
    case SHERL_SCHEDULE_STEP:
        return settings->step_every ? rate * pow(settings->step_factor, (double)(step / settings->step_every)) : rate;
    case SHERL_SCHEDULE_CONSTANT:
    case SHERL_SCHEDULE_COUNT: break;
    }
    return rate;
}
