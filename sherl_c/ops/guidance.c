/* The anti-redundancy consolidation of MTSA as an op; kernels/guidance.c has the equations. */
#include "op.h"

/* y = sum_i a_i x_i (+ e); the features x_0 … x_{count-2} and the guide e: (rows, hidden) each;
 * parameter slots: weight (1, hidden), bias (1, 1) */
static sherl_status guidance_forward(const sherl_op *op, const sherl_tile *tile) {
    const sherl_real *features[SHERL_MAX_INPUTS];
    for (uint32_t i = 0; i < op->input_count; i++) features[i] = sherl_tile_read(tile, op->inputs[i]);
    tile->kernels->guidance_forward(features, op->input_count, sherl_op_parameter(op, tile, 0),
                                    sherl_op_parameter(op, tile, 1), op->settings.guidance.eps,
                                    op->settings.guidance.add_guide, sherl_tile_write(tile, op->output),
                                    sherl_tile_rows(tile, op->output), sherl_tile_channels(tile, op->output),
                                    tile->scratch);
    return SHERL_OK;
}

static sherl_status guidance_backward(const sherl_op *op, const sherl_tile *tile) {
    const sherl_real *features[SHERL_MAX_INPUTS];
    sherl_real *dfeatures[SHERL_MAX_INPUTS];
    for (uint32_t i = 0; i < op->input_count; i++) {
        features[i] = sherl_tile_read(tile, op->inputs[i]);
        dfeatures[i] = sherl_input_gradient(op, tile, i);
    }
    tile->kernels->guidance_backward(features, op->input_count, sherl_op_parameter(op, tile, 0),
                                     sherl_op_parameter(op, tile, 1), op->settings.guidance.eps,
                                     op->settings.guidance.add_guide, sherl_output_gradient(op, tile), dfeatures,
                                     op->accumulate, sherl_op_parameter_gradient(op, tile, 0),
                                     sherl_op_parameter_gradient(op, tile, 1), sherl_tile_rows(tile, op->output),
                                     sherl_tile_channels(tile, op->output), tile->scratch);
    return SHERL_OK;
}

static void guidance_backward_reads(const sherl_op *op, const bool *trainable, sherl_backward_reads *reads) {
    (void)trainable;
    for (uint32_t i = 0; i < op->input_count; i++) reads->inputs[i] = true;
}

static bool guidance_scratch_bytes(const sherl_op *op, const sherl_limits *limits, size_t *bytes) {
    (void)limits;
    *bytes = sherl_guidance_scratch(op->input_count) * sizeof(sherl_real);
    return true;
}

const sherl_op_type sherl_guidance_type = {.name = "guidance",
                                           .rows = SHERL_ROW_WISE,
                                           .forward = guidance_forward,
                                           .backward = guidance_backward,
                                           .backward_reads = guidance_backward_reads,
                                           .scratch_bytes = guidance_scratch_bytes};
