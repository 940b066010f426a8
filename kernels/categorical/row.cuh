// Reads one row of logits in groups of eight tokens, guided, adjusted and masked.
#pragma once

#include "../reduce.cuh"
#include "params.cuh"

#define GROUP 8
#define TOUCHED_WORDS 1024

/// Marks the groups of tokens that have an adjustment; `touched` is shared memory of TOUCHED_WORDS words.
/// Groups beyond its bits share those of others, which costs a search but no error.
__device__ inline void mark_touched(uint32_t *touched, const Adjustment *adjustments, uint32_t count) {
  for (uint32_t i = threadIdx.x; i < TOUCHED_WORDS; i += blockDim.x)
    touched[i] = 0;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
    uint32_t group = adjustments[i].token / GROUP % (32 * TOUCHED_WORDS);
    atomicOr(&touched[group / 32], 1u << group % 32);
  }
  __syncthreads();
}

template <class T> struct Row {
  const T *conditional;
  /// nullptr without guidance.
  const T *unconditional;
  float guidance;
  uint32_t vocab;
  /// A token of no probability, or NONE.
  uint32_t impossible;
  /// nullptr if every token is.
  const uint32_t *allowed;
  const Adjustment *adjustments;
  uint32_t adjustment_count;
  const uint32_t *touched;

  __device__ __forceinline__ uint32_t groups() const { return (vocab + GROUP - 1) / GROUP; }

  __device__ __forceinline__ static bool is_aligned(const T *row) {
    return (reinterpret_cast<uintptr_t>(row) & 15) == 0;
  }

  __device__ __forceinline__ void load_from(const T *row, uint32_t group, float (&to)[GROUP]) const {
    uint32_t first = group * GROUP;
    if (is_aligned(row) && first + GROUP <= vocab) {
      load8_aligned(row + first, to);
      return;
    }
#pragma unroll
    for (uint32_t i = 0; i < GROUP; ++i)
      to[i] = first + i < vocab ? widen(row[first + i]) : -INFINITY;
  }

  /// The row without adjustments and without the mask of allowed tokens.
  __device__ __forceinline__ Row plain() const {
    Row row = *this;
    row.allowed = nullptr;
    row.adjustment_count = 0;
    return row;
  }

  /// The logit of a token; −∞ beyond the vocabulary.
  __device__ float at(uint32_t token) const {
    if (token >= vocab)
      return -INFINITY;
    float logits[GROUP], found = -INFINITY;
    load(token / GROUP, logits);
#pragma unroll
    for (uint32_t i = 0; i < GROUP; ++i)
      found = token % GROUP == i ? logits[i] : found;
    return found;
  }

  /// The logits of a group; −∞ for tokens beyond the vocabulary.
  __device__ __forceinline__ void load(uint32_t group, float (&logits)[GROUP]) const {
    load_from(conditional, group, logits);
    if (unconditional != nullptr)
      guide(group, logits);
    if (adjustment_count != 0 && touched[group % (32 * TOUCHED_WORDS) / 32] >> group % 32 & 1)
      adjust(group, logits);
    if (allowed != nullptr) {
      uint32_t bits = allowed[group / 4] >> group % 4 * GROUP;
#pragma unroll
      for (uint32_t i = 0; i < GROUP; ++i)
        logits[i] = bits >> i & 1 ? logits[i] : -INFINITY;
    }
    if (impossible / GROUP == group) {
#pragma unroll
      for (uint32_t i = 0; i < GROUP; ++i)
        logits[i] = impossible % GROUP == i ? -INFINITY : logits[i];
    }
  }

private:
  __device__ void guide(uint32_t group, float (&logits)[GROUP]) const {
    float other[GROUP];
    load_from(unconditional, group, other);
    uint32_t first = group * GROUP;
#pragma unroll
    for (uint32_t i = 0; i < GROUP; ++i)
      if (first + i < vocab)
        logits[i] = __fadd_rn(other[i], __fmul_rn(guidance, __fsub_rn(logits[i], other[i])));
  }

  __device__ void adjust(uint32_t group, float (&logits)[GROUP]) const {
    uint32_t first = group * GROUP, low = 0, high = adjustment_count;
    while (low < high) {
      uint32_t middle = (low + high) / 2;
      if (adjustments[middle].token < first)
        low = middle + 1;
      else
        high = middle;
    }
    for (; low < adjustment_count && adjustments[low].token < first + GROUP; ++low) {
      Adjustment change = adjustments[low];
#pragma unroll
      for (uint32_t i = 0; i < GROUP; ++i)
        if (change.token - first == i) {
          float l = logits[i];
          l = l > 0 ? __fdiv_rn(l, change.penalty) : __fmul_rn(l, change.penalty);
          logits[i] = __fadd_rn(l, change.bias);
        }
    }
  }
};
