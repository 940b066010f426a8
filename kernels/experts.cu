// A mixture of experts without a word from the host: which experts a row goes to, rows by expert, the experts' gated
// MLPs, and their weighted sum. CPU twins: src/models/layers/moe/router.rs, the same experts and weights;
// src/models/layers/moe/mod.rs, equal within rounding.
#include "experts/group.cuh"
#include "experts/mlp.cuh"
#include "experts/route.cuh"

extern "C" __global__ void __launch_bounds__(MOST_EXPERTS)
    experts_route_softmax(const float *logits, uint64_t stride, const float *bias, uint32_t experts, uint32_t per_row,
                          uint32_t normalized, const float *scales, uint32_t *chosen, float *weights) {
  route_softmax({logits + blockIdx.x * stride, bias, experts, per_row}, normalized != 0, scales, chosen, weights);
}

extern "C" __global__ void __launch_bounds__(MOST_EXPERTS)
    experts_route_grouped(const float *logits, uint64_t stride, const float *bias, uint32_t experts, uint32_t per_row,
                          uint32_t groups, uint32_t kept_groups, float scale, uint32_t *chosen, float *weights) {
  route_grouped({logits + blockIdx.x * stride, bias, experts, per_row}, groups, kept_groups, scale, chosen, weights);
}

extern "C" __global__ void __launch_bounds__(256)
    experts_group(const uint32_t *chosen, uint32_t entries, uint32_t experts, uint32_t tile_count, uint32_t *order,
                  ExpertTile *tiles) {
  group(chosen, entries, experts, tile_count, order, tiles);
}

/// Weighted outputs of a row's experts, best first, added in f32. A block a row and a part of its columns.
template <class T>
__device__ void weighted_sum(const float *outputs, const float *weights, uint32_t per_row, uint32_t hidden, T *out) {
  uint32_t column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column >= hidden)
    return;
  uint64_t first = uint64_t(blockIdx.x) * per_row;
  float sum = 0;
  for (uint32_t rank = 0; rank < per_row; ++rank)
    sum += weights[first + rank] * outputs[(first + rank) * hidden + column];
  out[uint64_t(blockIdx.x) * hidden + column] = narrow<T>(sum);
}

/// `blocks` of a multiprocessor at a time: f32 needs more registers, and has twice the bytes on their way.
#define EXPERTS(suffix, type, blocks)                                                                              \
  extern "C" __global__ void __launch_bounds__(256, blocks)                                                        \
      experts_gate_up_##suffix(const type *x, const ExpertWeights<type> *experts, const ExpertTile *tiles,         \
                               const uint32_t *order, uint32_t per_row, uint32_t hidden, uint32_t intermediate,    \
                               uint32_t activation, type *activations) {                                           \
    gate_up<type>(x, experts, tiles, order, per_row, hidden, intermediate, activation, activations);               \
  }                                                                                                                \
  extern "C" __global__ void __launch_bounds__(256, blocks)                                                        \
      experts_down_##suffix(const type *activations, const ExpertWeights<type> *experts, const ExpertTile *tiles,  \
                            const uint32_t *order, uint32_t hidden, uint32_t intermediate, float *outputs) {       \
    down<type>(activations, experts, tiles, order, hidden, intermediate, outputs);                                 \
  }                                                                                                                \
  extern "C" __global__ void __launch_bounds__(256)                                                                \
      experts_sum_##suffix(const float *outputs, const float *weights, uint32_t per_row, uint32_t hidden,          \
                           type *out) {                                                                            \
    weighted_sum<type>(outputs, weights, per_row, hidden, out);                                                    \
  }

EXPERTS(f32, float, 1)
EXPERTS(bf16, Bf16, 2)
EXPERTS(f16, F16, 2)
