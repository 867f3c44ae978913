/* Trainers: gradients wait in the program until an update clips them and moves the weights. */
#include "../program/program.h"

#include <math.h>
#include <string.h>

/* Parameters are worked on in pieces of this many reals. The cut depends on sizes alone, so sums over the pieces have
 * the same bits on any number of threads. */
#define CHUNK_REALS ((size_t)8192)

typedef struct chunk {
    sherl_parameter parameter;
    size_t start, count;
    double weight_decay, learning_rate_factor, weight_decay_factor;
    double squares; /* sum over the gradient */
} chunk;

struct sherl_trainer {
    sherl_program *program;
    sherl_training_settings settings;
    size_t *offsets; /* by parameter, into the moments; SIZE_MAX: not trained */
    size_t moment_reals;
    sherl_real *moments[2]; /* flat; NULL where the optimizer has none */
    chunk *chunks;
    size_t chunk_count;
    uint64_t steps;
    bool waiting;       /* gradients */
    sherl_real *states; /* SHERL_STATE parameters as they were before those gradients, one after the other */
    size_t state_reals;
    bool states_kept;
};

static bool is_rate(double number) { return isfinite(number) && number >= 0; }

static bool is_decay_rate(double number) { return number >= 0 && number < 1; }

static bool are_valid(const sherl_training_settings *settings) {
    bool valid = is_rate(settings->learning_rate) && is_rate(settings->weight_decay) && is_rate(settings->clip_norm);
    switch (settings->optimizer) {
    case SHERL_SGD: valid = valid && is_decay_rate(settings->momentum); break;
    case SHERL_ADAM:
    case SHERL_ADAMW: /* without eps, a weight whose gradient is zero would become 0 / 0 */
        valid = valid && is_decay_rate(settings->beta1) && is_decay_rate(settings->beta2) && is_rate(settings->eps) &&
                (sherl_real)settings->eps > 0;
        break;
    default: return false;
    }
    switch (settings->schedule) {
    case SHERL_SCHEDULE_CONSTANT: return valid;
    case SHERL_SCHEDULE_LINEAR:
    case SHERL_SCHEDULE_COSINE: return valid && settings->total_steps > settings->warmup_steps;
    case SHERL_SCHEDULE_STEP: return valid && settings->step_every > 0 && is_rate(settings->step_factor);
    default: return false;
    }
}

static size_t moment_count(const sherl_training_settings *settings) {
    if (settings->optimizer == SHERL_SGD) return settings->momentum > 0 ? 1 : 0;
    return 2;
}

static bool is_trained(const sherl_trainer *trainer, sherl_parameter parameter) {
    return parameter < trainer->program->parameter_count && trainer->offsets[parameter] != SIZE_MAX;
}

static size_t parameter_size(const sherl_program *program, sherl_parameter parameter) {
    const sherl_parameters *store = sherl_program_parameters(program);
    return sherl_parameters_rows(store, parameter) * sherl_parameters_columns(store, parameter);
}

/* A place in the moments for each parameter that is trained; what the gradients hold is addressable for sure. */
static sherl_status place_moments(sherl_trainer *trainer, const bool *trained) {
    const sherl_program *program = trainer->program;
    sherl_status status = sherl_allocate(sherl_program_context(program), program->parameter_count,
                                         sizeof *trainer->offsets, &trainer->offsets);
    if (status != SHERL_OK) return status;
    for (sherl_parameter p = 0; p < program->parameter_count; p++) {
        bool moves = program->gradient_offsets[p] != SIZE_MAX && (!trained || trained[p]);
        trainer->offsets[p] = moves ? trainer->moment_reals : SIZE_MAX;
        if (moves) trainer->moment_reals += parameter_size(program, p);
    }
    return SHERL_OK;
}

/* Copies the SHERL_STATE parameters to trainer->states, or back. */
static void move_states(const sherl_trainer *trainer, bool back) {
    sherl_real *kept = trainer->states;
    for (sherl_parameter p = 0; p < trainer->program->parameter_count; p++) {
        sherl_real *state = trainer->program->mutable_parameters[p];
        if (!state) continue;
        size_t size = parameter_size(trainer->program, p);
        memcpy(back ? state : kept, back ? kept : state, size * sizeof *state);
        kept += size;
    }
}

/* The gradients that wait are given up: what their batches taught the running statistics goes with them. */
static void give_up(sherl_trainer *trainer) {
    if (trainer->states_kept) move_states(trainer, true);
    trainer->states_kept = trainer->waiting = false;
}

static sherl_status make_states(sherl_trainer *trainer) {
    const sherl_program *program = trainer->program;
    for (sherl_parameter p = 0; p < program->parameter_count; p++)
        if (program->mutable_parameters[p]) trainer->state_reals += parameter_size(program, p);
    return sherl_allocate(sherl_program_context(program), trainer->state_reals, sizeof *trainer->states,
                          &trainer->states);
}

static sherl_status make_chunks(sherl_trainer *trainer, const bool *no_decay) {
    const sherl_program *program = trainer->program;
    size_t count = 0;
    for (sherl_parameter p = 0; p < program->parameter_count; p++) {
        if (is_trained(trainer, p)) count += (parameter_size(program, p) - 1) / CHUNK_REALS + 1;
    }
    sherl_status status =
        sherl_allocate(sherl_program_context(program), count, sizeof *trainer->chunks, &trainer->chunks);
    if (status != SHERL_OK) return status;
    trainer->chunk_count = count;
    chunk *next = trainer->chunks;
    for (sherl_parameter p = 0; p < program->parameter_count; p++) {
        size_t size = is_trained(trainer, p) ? parameter_size(program, p) : 0;
        double decay = no_decay && no_decay[p] ? 0 : trainer->settings.weight_decay;
        for (size_t start = 0; start < size; start += CHUNK_REALS) {
            size_t length = size - start < CHUNK_REALS ? size - start : CHUNK_REALS;
            *next++ = (chunk){.parameter = p,
                              .start = start,
                              .count = length,
                              .weight_decay = decay,
                              .learning_rate_factor = 1,
                              .weight_decay_factor = 1};
        }
    }
    return SHERL_OK;
}

sherl_status sherl_trainer_create(sherl_program *program, const sherl_training_settings *settings, const bool *trained,
                                  const bool *no_decay, sherl_trainer **trainer) {
    if (!program || !settings || !trainer || !program->gradient || !are_valid(settings)) return SHERL_INVALID_ARGUMENT;
    const sherl_context *context = sherl_program_context(program);
    sherl_trainer *made;
    sherl_status status = sherl_allocate(context, 1, sizeof *made, &made);
    if (status != SHERL_OK) return status;
    made->program = program;
    made->settings = *settings;
    status = place_moments(made, trained);
    if (status == SHERL_OK) status = make_chunks(made, no_decay);
    if (status == SHERL_OK) status = make_states(made);
    for (size_t i = 0; status == SHERL_OK && i < moment_count(settings); i++) {
        status = sherl_allocate(context, made->moment_reals, sizeof(sherl_real), &made->moments[i]);
    }
    if (status != SHERL_OK) {
        sherl_trainer_destroy(made);
        return status;
    }
    *trainer = made;
    return SHERL_OK;
}

void sherl_trainer_destroy(sherl_trainer *trainer) {
    if (!trainer) return;
    const sherl_context *context = sherl_program_context(trainer->program);
    sherl_release(context, trainer->moments[0]);
    sherl_release(context, trainer->moments[1]);
    sherl_release(context, trainer->chunks);
    sherl_release(context, trainer->states);
    sherl_release(context, trainer->offsets);
    sherl_release(context, trainer);
}

sherl_status sherl_trainer_accumulate(sherl_trainer *trainer, const sherl_batch *batch, double *loss) {
    double batch_loss = 0;
    if (!trainer->waiting) {
        move_states(trainer, false);
        trainer->states_kept = true;
    }
    sherl_status status = sherl_program_gradient(trainer->program, batch, trainer->waiting, &batch_loss);
    if (status == SHERL_OK && !isfinite(batch_loss)) status = SHERL_NOT_FINITE;
    /* A run that failed may have added a part of its gradient to what waited. */
    if (status != SHERL_OK) give_up(trainer);
    trainer->waiting = status == SHERL_OK;
    if (status == SHERL_OK && loss) *loss = batch_loss;
    return status;
}

void sherl_trainer_discard(sherl_trainer *trainer) { give_up(trainer); }

void sherl_trainer_adopt(sherl_trainer *trainer) {
    trainer->waiting = trainer->program->lane_count > 0;
    trainer->states_kept = false;
}

static const sherl_real *chunk_gradient(const sherl_trainer *trainer, const chunk *piece) {
    return sherl_program_parameter_gradient(trainer->program, piece->parameter) + piece->start;
}

static void sum_squares(void *state, size_t task, size_t worker) {
    (void)worker;
    sherl_trainer *trainer = state;
    chunk *piece = &trainer->chunks[task];
    const sherl_kernels *kernels = sherl_program_context(trainer->program)->kernels;
    piece->squares = kernels->sum_of_squares(chunk_gradient(trainer, piece), piece->count);
}

typedef struct weight_update {
    sherl_trainer *trainer;
    double gradient_scale, learning_rate, correction1, correction2;
} weight_update;

static void move_weights(void *state, size_t task, size_t worker) {
    (void)worker;
    const weight_update *update = state;
    const sherl_trainer *trainer = update->trainer;
    const sherl_training_settings *settings = &trainer->settings;
    const sherl_kernels *kernels = sherl_program_context(trainer->program)->kernels;
    const chunk *piece = &trainer->chunks[task];
    size_t offset = trainer->offsets[piece->parameter] + piece->start;
    double learning_rate = update->learning_rate * piece->learning_rate_factor;
    double weight_decay = piece->weight_decay * piece->weight_decay_factor;
    sherl_real *weights =
        sherl_parameters_mutable_data(sherl_program_parameters(trainer->program), piece->parameter) + piece->start;
    sherl_real *moments[2];
    for (int i = 0; i < 2; i++) moments[i] = trainer->moments[i] ? trainer->moments[i] + offset : NULL;
    if (settings->optimizer == SHERL_SGD) {
        kernels->sgd(weights, chunk_gradient(trainer, piece), moments[0], piece->count, update->gradient_scale,
                     learning_rate, weight_decay, settings->momentum);
    } else {
        kernels->adam(weights, chunk_gradient(trainer, piece), moments[0], moments[1], piece->count,
                      update->gradient_scale, learning_rate, weight_decay, settings->beta1, settings->beta2,
                      settings->eps, update->correction1, update->correction2, settings->optimizer == SHERL_ADAMW);
    }
}

/* The sum of the squares of the waiting gradients. */
static double waiting_squares(sherl_trainer *trainer) {
    sherl_pool_run(sherl_program_context(trainer->program)->pool, trainer->chunk_count, sum_squares, trainer);
    double squares = 0;
    for (size_t i = 0; i < trainer->chunk_count; i++) squares += trainer->chunks[i].squares;
    return squares;
}

/* Applies the waiting gradients times `scale`. */
static void take_step(sherl_trainer *trainer, double scale) {
    const sherl_training_settings *settings = &trainer->settings;
    double step = (double)trainer->steps + 1;
    weight_update update = {trainer, scale, sherl_learning_rate(settings, trainer->steps),
                            1 - pow(settings->beta1, step), 1 - pow(settings->beta2, step)};
    sherl_pool_run(sherl_program_context(trainer->program)->pool, trainer->chunk_count, move_weights, &update);
    trainer->steps++;
}

sherl_status sherl_trainer_update_together(sherl_trainer *const *trainers, size_t count, double *gradient_norm) {
    double squares = 0;
    bool held = count > 0;
    for (size_t i = 0; i < count && held; i++) /* a released workspace takes gradients with it */
        held = trainers[i]->waiting && trainers[i]->program->lanes[0] &&
               trainers[i]->settings.clip_norm == trainers[0]->settings.clip_norm;
    if (!held) return SHERL_INVALID_ARGUMENT;
    for (size_t i = 0; i < count; i++) squares += waiting_squares(trainers[i]);
    double norm = sqrt(squares), most = trainers[0]->settings.clip_norm;
    if (!isfinite(norm)) {
        for (size_t i = 0; i < count; i++) give_up(trainers[i]);
        return SHERL_NOT_FINITE;
    }
    for (size_t i = 0; i < count; i++) trainers[i]->states_kept = trainers[i]->waiting = false;
    for (size_t i = 0; i < count; i++) take_step(trainers[i], most > 0 ? fmin(1, most / (norm + 1e-6)) : 1);
    if (gradient_norm) *gradient_norm = norm;
    return SHERL_OK;
}

sherl_status sherl_trainer_update(sherl_trainer *trainer, double *gradient_norm) {
    return sherl_trainer_update_together(&trainer, 1, gradient_norm);
}

sherl_status sherl_trainer_set_factors(sherl_trainer *trainer, sherl_parameter parameter, double learning_rate,
                                       double weight_decay) {
    if (!is_trained(trainer, parameter) || !is_rate(learning_rate) || !is_rate(weight_decay))
        return SHERL_INVALID_ARGUMENT;
    for (size_t i = 0; i < trainer->chunk_count; i++) {
        if (trainer->chunks[i].parameter != parameter) continue;
        trainer->chunks[i].learning_rate_factor = learning_rate;
        trainer->chunks[i].weight_decay_factor = weight_decay;
    }
    return SHERL_OK;
}

uint64_t sherl_trainer_steps(const sherl_trainer *trainer) { return trainer->steps; }

void sherl_trainer_set_steps(sherl_trainer *trainer, uint64_t steps) { trainer->steps = steps; }

sherl_real *sherl_trainer_moment(sherl_trainer *trainer, int moment, sherl_parameter parameter) {
    if (moment < 0 || moment > 1 || !trainer->moments[moment] || !is_trained(trainer, parameter)) return NULL;
    return trainer->moments[moment] + trainer->offsets[parameter];
}

size_t sherl_trainer_bytes(const sherl_trainer *trainer) {
    size_t reals = moment_count(&trainer->settings) * trainer->moment_reals + trainer->state_reals;
    return sizeof *trainer + trainer->chunk_count * sizeof *trainer->chunks + reals * sizeof(sherl_real) +
           trainer->program->parameter_count * sizeof *trainer->offsets;
}
