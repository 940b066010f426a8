// Which experts a row goes to, and with what weights: a block a row.
//
// An expert's rank is the number of experts before it. There is nothing to sort, and as ranks are a permutation
// whatever the scores are, each of the first `per_row` places is written once.
#pragma once

#include "../exact.cuh"
#include "../reduce.cuh"

/// As many as shared memory is set aside for.
#define MOST_EXPERTS 512

/// A row of logits, and what is added to its scores.
struct RouterRow {
  const float *logits, *bias;
  uint32_t experts, per_row;
};

/// What decides the order of experts and what becomes their weights.
struct RouterScratch {
  uint32_t keys[MOST_EXPERTS];
  float scores[MOST_EXPERTS];
  uint32_t chosen[MOST_EXPERTS];
  uint32_t group_keys[MOST_EXPERTS];
};

/// Integers in the order of numbers: −0 below 0, NaN of either sign above all.
__device__ __forceinline__ uint32_t ordered(float x) {
  uint32_t bits = __float_as_uint(x);
  return x != x ? ~0u : bits >> 31 ? ~bits : bits | 0x80000000u;
}

/// How many of the keys come before one: those that are higher, and of equal ones the first.
__device__ __forceinline__ uint32_t rank(const uint32_t *keys, uint32_t count, uint32_t index) {
  uint32_t own = keys[index], before = 0;
  for (uint32_t i = 0; i < count; ++i)
    before += keys[i] > own || (keys[i] == own && i < index);
  return before;
}

/// e^x for x ≤ 0, and NaN for NaN.
__device__ __forceinline__ float exponential(float x) { return x != x ? x : exact::exp(x); }

/// Chooses by the keys, once they are all written; `weigh(expert, sum of the chosen scores)` is a weight.
template <class Weigh>
__device__ void choose(RouterRow row, RouterScratch &scratch, Weigh weigh, uint32_t *chosen, float *weights) {
  __syncthreads();
  for (uint32_t expert = threadIdx.x; expert < row.experts; expert += blockDim.x) {
    uint32_t place = rank(scratch.keys, row.experts, expert);
    if (place < row.per_row)
      scratch.chosen[place] = expert;
  }
  __syncthreads();
  float sum = 0;
  for (uint32_t i = 0; i < row.per_row; ++i)
    sum = __fadd_rn(sum, scratch.scores[scratch.chosen[i]]);
  uint64_t first = uint64_t(blockIdx.x) * row.per_row;
  for (uint32_t i = threadIdx.x; i < row.per_row; i += blockDim.x) {
    chosen[first + i] = scratch.chosen[i];
    weights[first + i] = weigh(scratch.chosen[i], sum);
  }
}

/// By probability, plus the bias, which stays in the weights; divided by their sum if they are normalised, then each
/// times its expert's scale.
__device__ __forceinline__ void route_softmax(RouterRow row, bool normalized, const float *scales, uint32_t *chosen,
                                              float *weights) {
  __shared__ RouterScratch scratch;
  // Each warp for itself: what they compute is the same, and they need not wait for each other.
  uint32_t lane = threadIdx.x & 31;
  float largest = -INFINITY, sum = 0;
  for (uint32_t expert = lane; expert < row.experts; expert += 32)
    largest = fmaxf(largest, row.logits[expert]);
  largest = warp_reduce(largest, [](float a, float b) { return fmaxf(a, b); });
  for (uint32_t expert = lane; expert < row.experts; expert += 32)
    sum = __fadd_rn(sum, exponential(__fsub_rn(row.logits[expert], largest)));
  sum = warp_reduce(sum, [](float a, float b) { return __fadd_rn(a, b); });
  for (uint32_t expert = threadIdx.x; expert < row.experts; expert += blockDim.x) {
    float probability = __fdiv_rn(exponential(__fsub_rn(row.logits[expert], largest)), sum);
    scratch.scores[expert] = __fadd_rn(probability, row.bias[expert]);
    scratch.keys[expert] = ordered(scratch.scores[expert]);
  }
  auto weigh = [&](uint32_t expert, float sum) {
    float score = scratch.scores[expert];
    return __fmul_rn(normalized ? __fdiv_rn(score, sum) : score, scales[expert]);
  };
  choose(row, scratch, weigh, chosen, weights);
}

__device__ __forceinline__ float sigmoid(float x) {
  float power = exponential(-fabsf(x));
  return __fdiv_rn(x < 0 ? power : 1.0f, __fadd_rn(1.0f, power));
}

/// By sigmoid score plus bias, within the groups with the largest sum of their two best. Weights are scores without
/// bias, divided by their sum if there are several, times `scale`.
__device__ __forceinline__ void route_grouped(RouterRow row, uint32_t groups, uint32_t kept_groups, float scale,
                                              uint32_t *chosen, float *weights) {
  __shared__ RouterScratch scratch;
  for (uint32_t expert = threadIdx.x; expert < row.experts; expert += blockDim.x) {
    scratch.scores[expert] = sigmoid(row.logits[expert]);
    scratch.keys[expert] = ordered(__fadd_rn(scratch.scores[expert], row.bias[expert]));
  }
  __syncthreads();
  uint32_t size = row.experts / groups;
  for (uint32_t group = threadIdx.x; group < groups; group += blockDim.x) {
    uint32_t best = group * size, second = best;
    for (uint32_t expert = best + 1; expert < (group + 1) * size; ++expert) {
      if (scratch.keys[expert] > scratch.keys[best]) {
        second = best;
        best = expert;
      } else if (second == best || scratch.keys[expert] > scratch.keys[second]) {
        second = expert;
      }
    }
    auto biased = [&](uint32_t expert) { return __fadd_rn(scratch.scores[expert], row.bias[expert]); };
    float score = second == best ? biased(best) : __fadd_rn(biased(best), biased(second));
    scratch.group_keys[group] = ordered(score);
  }
  __syncthreads();
  for (uint32_t expert = threadIdx.x; expert < row.experts; expert += blockDim.x) {
    if (rank(scratch.group_keys, groups, expert / size) >= kept_groups)
      scratch.keys[expert] = ordered(-INFINITY);
  }
  auto weigh = [&](uint32_t expert, float sum) {
    float score = scratch.scores[expert];
    float share = row.per_row > 1 ? __fdiv_rn(score, __fadd_rn(sum, 1e-20f)) : score;
    return __fmul_rn(share, scale);
  };
  choose(row, scratch, weigh, chosen, weights);
}
