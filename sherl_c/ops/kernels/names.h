/* Names of the kernels for the instruction set that a file is being compiled for, and their declarations. */
#ifndef SHERL_OPS_KERNELS_NAMES_H
#define SHERL_OPS_KERNELS_NAMES_H

#include "kernels.h"

#ifndef SHERL_ISA
#error "kernels are compiled once per instruction set, with SHERL_ISA set to its name"
#endif

/* SHERL_KERNEL(add) is sherl_add_avx2 when SHERL_ISA is avx2. */
#define SHERL_PASTE_KERNEL_NAME(name, isa) sherl_##name##_##isa
#define SHERL_EXPAND_KERNEL_NAME(name, isa) SHERL_PASTE_KERNEL_NAME(name, isa)
#define SHERL_KERNEL(name) SHERL_EXPAND_KERNEL_NAME(name, SHERL_ISA)

/* Each kernel has the type that the table gives it. */
#define SHERL_DECLARE_KERNEL(name) extern __typeof__(*((const sherl_kernels *)0)->name) SHERL_KERNEL(name)

SHERL_DECLARE_KERNEL(bias_activation);
SHERL_DECLARE_KERNEL(activation_forward);
SHERL_DECLARE_KERNEL(activation_backward);
SHERL_DECLARE_KERNEL(gate);
SHERL_DECLARE_KERNEL(gate_slope);
SHERL_DECLARE_KERNEL(add);
SHERL_DECLARE_KERNEL(multiply);
SHERL_DECLARE_KERNEL(accumulate);
SHERL_DECLARE_KERNEL(add_scaled);
SHERL_DECLARE_KERNEL(dot);
SHERL_DECLARE_KERNEL(add_column_sums);
SHERL_DECLARE_KERNEL(add_column_products);
SHERL_DECLARE_KERNEL(affine_columns);
SHERL_DECLARE_KERNEL(scale_columns);
SHERL_DECLARE_KERNEL(dropout_row);
SHERL_DECLARE_KERNEL(layer_norm_forward);
SHERL_DECLARE_KERNEL(layer_norm_backward);
SHERL_DECLARE_KERNEL(rms_norm_forward);
SHERL_DECLARE_KERNEL(rms_norm_backward);
SHERL_DECLARE_KERNEL(softmax_forward);
SHERL_DECLARE_KERNEL(softmax_recompute);
SHERL_DECLARE_KERNEL(softmax_backward);
SHERL_DECLARE_KERNEL(rotate_row);
SHERL_DECLARE_KERNEL(guidance_forward);
SHERL_DECLARE_KERNEL(guidance_backward);
SHERL_DECLARE_KERNEL(product);
SHERL_DECLARE_KERNEL(product_transposed_b);
SHERL_DECLARE_KERNEL(add_product_transposed_a);
SHERL_DECLARE_KERNEL(bfloat16_pack);
SHERL_DECLARE_KERNEL(bfloat16_product);
SHERL_DECLARE_KERNEL(widen);
SHERL_DECLARE_KERNEL(widen_int8);
SHERL_DECLARE_KERNEL(narrow);
SHERL_DECLARE_KERNEL(sum_of_squares);
SHERL_DECLARE_KERNEL(sgd);
SHERL_DECLARE_KERNEL(adam);

#endif
