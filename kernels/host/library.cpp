// All kernels for the host, in one translation unit. Build with -std=c++17 -ffp-contract=off -fPIC -shared.
#include "fiber.cpp"
#include "launch.cpp"

#include "../attention_merge.cu"
#include "../categorical.cu"
#include "../corrupt.cu"
#include "../experts.cu"
#include "../layers.cu"
#include "../long_attention.cu"
#include "../posterior.cu"
#include "../ragged_attention.cu"

#define EXPORT_TYPES(name) EXPORT(name##_f32) EXPORT(name##_bf16) EXPORT(name##_f16)

EXPORT_TYPES(categorical)
EXPORT_TYPES(posterior)
EXPORT_TYPES(rms_norm)
EXPORT_TYPES(add_rms_norm)
EXPORT_TYPES(rotate)
EXPORT_TYPES(norm_rotate)
EXPORT(rotate_by_f32_bf16)
EXPORT(rotate_by_f32_f16)
EXPORT_TYPES(gated)
EXPORT_TYPES(add_bias)
EXPORT_TYPES(experts_gate_up)
EXPORT_TYPES(experts_down)
EXPORT_TYPES(experts_sum)
EXPORT(experts_route_softmax)
EXPORT(experts_route_grouped)
EXPORT(experts_group)
EXPORT(corrupt)
EXPORT_TYPES(attention_merge)
EXPORT(long_attention_bf16_64)
EXPORT(long_attention_bf16_128)
EXPORT(long_attention_bf16_256)
EXPORT(long_attention_bf16_512)
EXPORT(long_attention_f16_64)
EXPORT(long_attention_f16_128)
EXPORT(long_attention_f16_256)
EXPORT(long_attention_f16_512)
EXPORT(ragged_attention_f32_64)
EXPORT(ragged_attention_f32_128)
EXPORT(ragged_attention_f32_256)
EXPORT(ragged_attention_f32_512)
EXPORT(ragged_attention_bf16_64)
EXPORT(ragged_attention_bf16_128)
EXPORT(ragged_attention_bf16_256)
EXPORT(ragged_attention_bf16_512)
EXPORT(ragged_attention_f16_64)
EXPORT(ragged_attention_f16_128)
EXPORT(ragged_attention_f16_256)
EXPORT(ragged_attention_f16_512)
