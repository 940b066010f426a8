// Reductions over a block in a fixed order: the same numbers whatever the schedule.
#pragma once

#include "common.cuh"

/// A struct of 32-bit words from another lane.
template <class S> __device__ __forceinline__ S shuffle_xor(S mine, int mask) {
  static_assert(sizeof(S) % 4 == 0, "whole words");
  uint32_t words[sizeof(S) / 4];
  memcpy(words, &mine, sizeof(S));
#pragma unroll
  for (unsigned i = 0; i < sizeof(S) / 4; ++i)
    words[i] = __shfl_xor_sync(FULL_WARP, words[i], mask);
  S other;
  memcpy(&other, words, sizeof(S));
  return other;
}

/// `merge(earlier, later)` over the lanes of a warp; every lane gets the result.
template <class S, class Merge> __device__ __forceinline__ S warp_reduce(S mine, Merge merge) {
  unsigned lane = threadIdx.x & 31;
#pragma unroll
  for (int mask = 1; mask < 32; mask *= 2) {
    S other = shuffle_xor(mine, mask);
    mine = lane & mask ? merge(other, mine) : merge(mine, other);
  }
  return mine;
}

/// `sum_of_lane` from the step between lanes that are HALF apart on: of the first 2 · HALF sums a lane keeps those
/// whose numbers have its bit.
template <int HALF, int LANES> __device__ __forceinline__ void halve(float (&numbers)[LANES]) {
  bool keeps_upper = threadIdx.x & HALF;
#pragma unroll
  for (int i = 0; i < HALF; ++i) {
    float lower = numbers[i], upper = numbers[i + HALF];
    float other = __shfl_xor_sync(FULL_WARP, keeps_upper ? lower : upper, HALF);
    numbers[i] = (keeps_upper ? upper : lower) + other;
  }
  if constexpr (HALF > 1)
    halve<HALF / 2>(numbers);
}

/// Adds each of LANES numbers, a power of two, over LANES neighbouring lanes, of whom the i-th gets the i-th sum. By
/// LANES − 1 shuffles, where a sum at a time would take LANES · log2(LANES).
template <int LANES> __device__ __forceinline__ float sum_of_lane(float (&numbers)[LANES]) {
  halve<LANES / 2>(numbers);
  return numbers[0];
}

/// `merge` over the threads of a block, with `identity` for absent ones; every thread gets the result.
/// `scratch` is shared memory of 32 entries that nothing else uses before the next barrier.
template <class S, class Merge> __device__ S block_reduce(S mine, S identity, S *scratch, Merge merge) {
  unsigned lane = threadIdx.x & 31, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  mine = warp_reduce(mine, merge);
  if (lane == 0)
    scratch[warp] = mine;
  __syncthreads();
  if (warp == 0) {
    mine = warp_reduce(lane < warps ? scratch[lane] : identity, merge);
    if (lane == 0)
      scratch[0] = mine;
  }
  __syncthreads();
  mine = scratch[0];
  __syncthreads();
  return mine;
}

template <class S> __device__ S block_sum(S mine, S *scratch) {
  return block_reduce(mine, S(0), scratch, [](S a, S b) { return a + b; });
}
