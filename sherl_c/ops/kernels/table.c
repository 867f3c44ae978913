/* The table of all kernels of one instruction set. */
#include "names.h"

#define SHERL_TEXT(name) #name
#define SHERL_EXPAND_TEXT(name) SHERL_TEXT(name)

extern const sherl_kernels SHERL_KERNEL(kernels);

const sherl_kernels SHERL_KERNEL(kernels) = {
    .instruction_set = SHERL_EXPAND_TEXT(SHERL_ISA),
    .bias_activation = SHERL_KERNEL(bias_activation),
    .activation_forward = SHERL_KERNEL(activation_forward),
    .activation_backward = SHERL_KERNEL(activation_backward),
    .gate = SHERL_KERNEL(gate),
    .gate_slope = SHERL_KERNEL(gate_slope),
    .add = SHERL_KERNEL(add),
    .multiply = SHERL_KERNEL(multiply),
    .accumulate = SHERL_KERNEL(accumulate),
    .add_scaled = SHERL_KERNEL(add_scaled),
    .dot = SHERL_KERNEL(dot),
    .add_column_sums = SHERL_KERNEL(add_column_sums),
    .add_column_products = SHERL_KERNEL(add_column_products),
    .affine_columns = SHERL_KERNEL(affine_columns),
    .scale_columns = SHERL_KERNEL(scale_columns),
    .dropout_row = SHERL_KERNEL(dropout_row),
    .layer_norm_forward = SHERL_KERNEL(layer_norm_forward),
    .layer_norm_backward = SHERL_KERNEL(layer_norm_backward),
    .rms_norm_forward = SHERL_KERNEL(rms_norm_forward),
    .rms_norm_backward = SHERL_KERNEL(rms_norm_backward),
    .softmax_forward = SHERL_KERNEL(softmax_forward),
    .softmax_recompute = SHERL_KERNEL(softmax_recompute),
    .softmax_backward = SHERL_KERNEL(softmax_backward),
    .rotate_row = SHERL_KERNEL(rotate_row),
    .guidance_forward = SHERL_KERNEL(guidance_forward),
    .guidance_backward = SHERL_KERNEL(guidance_backward),
#ifdef __AVX2__
    .product = SHERL_KERNEL(product),
    .product_transposed_b = SHERL_KERNEL(product_transposed_b),
#endif
#ifdef __AVX512F__
    .add_product_transposed_a = SHERL_KERNEL(add_product_transposed_a),
#endif
#if defined __AVX512BF16__ && !defined SHERL_DOUBLE
    .bfloat16_pack = SHERL_KERNEL(bfloat16_pack),
    .bfloat16_product = SHERL_KERNEL(bfloat16_product),
#endif
    .widen = SHERL_KERNEL(widen),
    .widen_int8 = SHERL_KERNEL(widen_int8),
    .narrow = SHERL_KERNEL(narrow),
    .sum_of_squares = SHERL_KERNEL(sum_of_squares),
    .sgd = SHERL_KERNEL(sgd),
    .adam = SHERL_KERNEL(adam),
};
