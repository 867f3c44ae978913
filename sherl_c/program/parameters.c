/* The parameter store: adding, finding, drawing initial weights. */
#include "parameters.h"

#include "../base/context.h"
#include "../base/random.h"
#include "../ops/kernels/kernels.h"

#include <math.h>
#include <string.h>

#define LONGEST_NAME 255

sherl_status sherl_parameters_create(sherl_context *context, sherl_parameters **parameters) {
    if (!context || !parameters) return SHERL_INVALID_ARGUMENT;
    sherl_parameters *made;
    sherl_status status = sherl_allocate(context, 1, sizeof *made, &made);
    if (status != SHERL_OK) return status;
    made->context = context;
    *parameters = made;
    return SHERL_OK;
}

void sherl_parameters_destroy(sherl_parameters *parameters) {
    if (!parameters) return;
    for (size_t i = 0; i < parameters->count; i++) {
        sherl_release(parameters->context, parameters->entries[i].name);
        sherl_release(parameters->context, parameters->entries[i].owned);
        for (int way = 0; way < 2; way++) sherl_release(parameters->context, parameters->entries[i].packed[way]);
    }
    sherl_release(parameters->context, parameters->entries);
    sherl_release(parameters->context, parameters);
}

/* FNV-1a. */
static uint64_t hash_name(const char *name) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *name; name++) hash = (hash ^ (unsigned char)*name) * 0x100000001b3u;
    return hash;
}

/* A number in (0, 1). */
static double uniform(uint32_t word) { return ((double)word + 0.5) / 4294967296.0; }

/* Four draws from the standard uniform or, by Box and Muller's method, from the standard normal distribution. */
static void draw_four(bool normal, sherl_random_key key, uint64_t block, double *draws) {
    sherl_random_block counter = {{(uint32_t)block, (uint32_t)(block >> 32), 0, 0}};
    sherl_random_block words = sherl_philox(counter, key);
    for (int i = 0; i < 4; i++) draws[i] = uniform(words.word[i]);
    for (int i = 0; normal && i < 4; i += 2) {
        double radius = sqrt(-2 * log(draws[i])), angle = 6.283185307179586 * draws[i + 1];
        draws[i] = radius * cos(angle);
        draws[i + 1] = radius * sin(angle);
    }
}

static void draw(sherl_parameter_entry *entry, uint64_t seed) {
    size_t elements = entry->rows * entry->columns;
    bool standard = entry->initializer == SHERL_INIT_STANDARD_NORMAL;
    bool normal = standard || entry->initializer == SHERL_INIT_NORMAL;
    if (!normal && entry->initializer != SHERL_INIT_XAVIER_UNIFORM) {
        sherl_real constant = entry->initializer == SHERL_INIT_ONES;
        for (size_t i = 0; i < elements; i++) entry->owned[i] = constant;
        return;
    }
    double bound = sqrt(6 / ((double)entry->rows + (double)entry->columns));
    double scale = standard ? 1 : normal ? 0.02 : 2 * bound, shift = normal ? 0 : -bound;
    sherl_random_key key = sherl_mix_key(seed, entry->name_hash);
    double draws[4];
    for (size_t i = 0; i < elements; i++) {
        if (i % 4 == 0) draw_four(normal, key, i / 4, draws);
        entry->owned[i] = (sherl_real)(scale * draws[i % 4] + shift);
    }
}

void sherl_parameters_initialize(sherl_parameters *parameters, uint64_t seed) {
    for (size_t i = 0; i < parameters->count; i++) {
        if (parameters->entries[i].role == SHERL_TRAINABLE) draw(&parameters->entries[i], seed);
    }
}

static bool may_be_added(const char *name, const sherl_parameter_entry *entry) {
    if (!name || !*name || strlen(name) > LONGEST_NAME || entry->columns == 0) return false;
    switch (entry->role) {
    case SHERL_FROZEN: return entry->data != NULL;
    case SHERL_STATE: return !entry->data && entry->initializer <= SHERL_INIT_ONES;
    case SHERL_TRAINABLE: return !entry->data && entry->initializer <= SHERL_INIT_STANDARD_NORMAL;
    }
    return false;
}

static bool agree(const sherl_parameter_entry *present, const sherl_parameter_entry *wanted) {
    return present->rows == wanted->rows && present->columns == wanted->columns &&
           present->is_vector == wanted->is_vector && present->role == wanted->role &&
           (present->role != SHERL_FROZEN || present->data == wanted->data);
}

/* Appends an entry with a name and, unless it is frozen, memory of its own. */
static sherl_status append(sherl_parameters *parameters, const char *name, sherl_parameter_entry entry) {
    const sherl_context *context = parameters->context;
    size_t elements;
    if (parameters->count >= SHERL_NONE) return SHERL_SIZE_OVERFLOW;
    if (!sherl_multiply_sizes(entry.rows, entry.columns, &elements)) return SHERL_SIZE_OVERFLOW;
    sherl_status status = sherl_grow(context, &parameters->entries, &parameters->capacity, parameters->count + 1,
                                     sizeof *parameters->entries);
    if (status == SHERL_OK) status = sherl_copy_string(context, name, &entry.name);
    if (status != SHERL_OK) return status;
    if (entry.role != SHERL_FROZEN) {
        status = sherl_allocate_raw(context, elements, sizeof *entry.owned, &entry.owned);
        if (status != SHERL_OK) {
            sherl_release(context, entry.name);
            return status;
        }
        entry.data = entry.owned;
        draw(&entry, 0);
    }
    parameters->entries[parameters->count++] = entry;
    return SHERL_OK;
}

sherl_status sherl_parameters_add(sherl_parameters *parameters, const char *name, size_t rows, size_t columns,
                                  sherl_role role, sherl_initializer initializer, const sherl_real *frozen,
                                  sherl_parameter *parameter) {
    bool is_vector = rows == SHERL_VECTOR;
    sherl_parameter_entry entry = {.rows = is_vector ? 1 : rows,
                                   .columns = columns,
                                   .is_vector = is_vector,
                                   .role = role,
                                   .initializer = initializer,
                                   .data = frozen};
    if (!may_be_added(name, &entry)) return SHERL_INVALID_ARGUMENT;
    entry.name_hash = hash_name(name);
    sherl_parameter present = sherl_parameters_find(parameters, name);
    if (present != SHERL_NONE) {
        if (!agree(&parameters->entries[present], &entry)) return SHERL_SHAPE_MISMATCH;
        *parameter = present;
        return SHERL_OK;
    }
    sherl_status status = append(parameters, name, entry);
    if (status == SHERL_OK) *parameter = (sherl_parameter)(parameters->count - 1);
    return status;
}

sherl_status sherl_parameters_pack(sherl_parameters *parameters, sherl_parameter parameter, bool transposed,
                                   const uint16_t **packed) {
    const sherl_context *context = parameters->context;
    sherl_parameter_entry *entry = &parameters->entries[parameter];
    uint16_t **place = &entry->packed[transposed];
    size_t depth = transposed ? entry->rows : entry->columns, columns = transposed ? entry->columns : entry->rows;
    if (!*place) { /* at most some rows and columns larger than the float32 matrix, which is there: no overflow */
        sherl_status status =
            sherl_allocate_raw(context, sherl_bfloat16_packed_size(depth, columns), sizeof **place, place);
        if (status) return status;
        context->kernels->bfloat16_pack(entry->data, depth, columns, transposed ? entry->columns : 1,
                                        transposed ? 1 : entry->columns, *place);
    }
    *packed = *place;
    return SHERL_OK;
}

size_t sherl_parameters_packed_bytes(const sherl_parameters *parameters, sherl_parameter parameter) {
    const sherl_parameter_entry *entry = &parameters->entries[parameter];
    size_t ways[] = {sherl_bfloat16_packed_size(entry->columns, entry->rows),
                     sherl_bfloat16_packed_size(entry->rows, entry->columns)};
    return ((entry->packed[0] ? ways[0] : 0) + (entry->packed[1] ? ways[1] : 0)) * sizeof(uint16_t);
}

size_t sherl_parameters_count(const sherl_parameters *parameters) { return parameters->count; }

sherl_parameter sherl_parameters_find(const sherl_parameters *parameters, const char *name) {
    uint64_t hash = hash_name(name);
    for (size_t i = 0; i < parameters->count; i++) {
        const sherl_parameter_entry *entry = &parameters->entries[i];
        if (entry->name_hash == hash && strcmp(entry->name, name) == 0) return (sherl_parameter)i;
    }
    return SHERL_NONE;
}

const char *sherl_parameters_name(const sherl_parameters *parameters, sherl_parameter parameter) {
    return parameters->entries[parameter].name;
}

size_t sherl_parameters_rows(const sherl_parameters *parameters, sherl_parameter parameter) {
    return parameters->entries[parameter].rows;
}

size_t sherl_parameters_columns(const sherl_parameters *parameters, sherl_parameter parameter) {
    return parameters->entries[parameter].columns;
}

bool sherl_parameters_is_vector(const sherl_parameters *parameters, sherl_parameter parameter) {
    return parameters->entries[parameter].is_vector;
}

sherl_role sherl_parameters_role(const sherl_parameters *parameters, sherl_parameter parameter) {
    return parameters->entries[parameter].role;
}

const sherl_real *sherl_parameters_data(const sherl_parameters *parameters, sherl_parameter parameter) {
    return parameters->entries[parameter].data;
}

sherl_real *sherl_parameters_mutable_data(sherl_parameters *parameters, sherl_parameter parameter) {
    return parameters->entries[parameter].owned;
}
