// The smallest logit that a filter keeps, by radix select: three passes over the row with histograms of
// 11, 11 and 10 bits in shared memory; no sort, no copy of the row.
#pragma once

#include "../exact.cuh"
#include "row.cuh"
#include "summary.cuh"

#define BINS 2048

/// Larger for a larger logit; the same for −0 and +0.
__device__ __forceinline__ uint32_t key_of(float logit) {
  uint32_t bits = __float_as_uint(logit == 0 ? 0.0f : logit);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float logit_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/// e^((logit − reference) / temperature) in units of 2^-40: sums of integers are the same in any order, so
/// every device agrees on the last token that top-p keeps. `reference` is the largest logit, so that 2^18
/// tokens cannot overflow.
__device__ __forceinline__ uint64_t mass_of(float logit, float reference, float temperature) {
  float x = __fdiv_rn(__fsub_rn(logit, reference), temperature);
  return uint64_t(exact::exp(fminf(x, 0.0f)) * 0x1p40f);
}

struct Histogram {
  uint32_t count[BINS];
  unsigned long long mass[BINS];
};

/// How far a descent has come: the bits of the key that are known, and what lies above.
struct Descent {
  uint32_t prefix, count_above;
  uint64_t mass_above;
};

/// What a descent looks for: the largest key such that it and the larger ones are `count` tokens, or have
/// the mass `mass`, or the share `share` of the mass of all.
struct Goal {
  enum Kind : uint32_t { COUNT, MASS, SHARE } kind;
  uint32_t count;
  uint64_t mass;
  float share;
};

struct Selector {
  Histogram histogram;
  Descent found;
  Goal goal;
};

/// The share `share` of `mass`, as the twin rounds it.
__device__ __forceinline__ uint64_t share_of(float share, uint64_t mass) { return uint64_t(double(share) * double(mass)); }

/// Finds the bin where the goal is reached, from the largest down; by the first warp, whose lanes take an
/// equal part of the bins each, lane 0 the largest.
__device__ inline void walk(Selector &selector, uint32_t bins, int shift) {
  Descent &found = selector.found;
  Goal goal = selector.goal;
  const Histogram &histogram = selector.histogram;
  uint32_t lane = threadIdx.x & 31, part = bins / 32, top = bins - lane * part;
  uint32_t count = 0;
  uint64_t mass = 0;
  for (uint32_t i = 1; i <= part; ++i) {
    count += histogram.count[top - i];
    mass += histogram.mass[top - i];
  }
  uint32_t own_count = count;
  uint64_t own_mass = mass;
  for (unsigned delta = 1; delta < 32; delta *= 2) {
    uint32_t other_count = __shfl_up_sync(FULL_WARP, count, delta);
    uint64_t other_mass = __shfl_up_sync(FULL_WARP, mass, delta);
    if (lane >= delta) {
      count += other_count;
      mass += other_mass;
    }
  }
  // The first histogram holds all tokens: what the share is of.
  uint64_t all = __shfl_sync(FULL_WARP, mass, 31);
  if (goal.kind == Goal::SHARE)
    goal = {Goal::MASS, 0, share_of(goal.share, all), 0};
  bool by_count = goal.kind == Goal::COUNT;
  auto reached = [&](uint32_t counted, uint64_t massed) {
    return by_count ? found.count_above + counted >= goal.count
                    : found.count_above + counted > 0 && found.mass_above + massed >= goal.mass;
  };
  unsigned reaching = __ballot_sync(FULL_WARP, reached(count, mass));
  // The last lane reaches every goal: it has seen all tokens.
  uint32_t first = 0;
  while (first < 31 && !(reaching >> first & 1))
    ++first;
  __syncwarp();
  if (lane == first) {
    selector.goal = goal;
    count -= own_count;
    mass -= own_mass;
    uint32_t bin = top;
    while (bin > top - part + 1 && !reached(count + histogram.count[bin - 1], mass + histogram.mass[bin - 1])) {
      --bin;
      count += histogram.count[bin];
      mass += histogram.mass[bin];
    }
    found = {found.prefix | (bin - 1) << shift, found.count_above + count, found.mass_above + mass};
  }
}

/// Descends to the goal among all tokens but `params.excluded`, which counts as one of logit −∞. The key of
/// the logit where the goal is reached, and count and mass of the larger ones, in every thread.
template <class T>
__device__ Descent select(const Row<T> &row, uint32_t excluded, float reference, float temperature, Goal goal,
                          Selector &selector) {
  if (threadIdx.x == 0) {
    selector.found = {0, 0, 0};
    selector.goal = goal;
  }
  const int shifts[] = {21, 10, 0};
  uint32_t known = 0;
  for (int shift : shifts) {
    uint32_t bins = shift == 0 ? 1024 : 2048;
    for (uint32_t i = threadIdx.x; i < bins; i += blockDim.x) {
      selector.histogram.count[i] = 0;
      selector.histogram.mass[i] = 0;
    }
    __syncthreads();
    uint32_t prefix = selector.found.prefix;
    for (uint32_t group = threadIdx.x; group < row.groups(); group += blockDim.x) {
      float logits[GROUP];
      row.load(group, logits);
#pragma unroll
      for (uint32_t i = 0; i < GROUP; ++i) {
        uint32_t token = group * GROUP + i;
        float logit = token == excluded ? -INFINITY : logits[i];
        uint32_t key = key_of(logit);
        if (token >= row.vocab || (key & known) != prefix)
          continue;
        uint32_t bin = key >> shift & (bins - 1);
        atomicAdd(&selector.histogram.count[bin], 1u);
        unsigned long long mass = mass_of(logit, reference, temperature);
        if (mass != 0)
          atomicAdd(&selector.histogram.mass[bin], mass);
      }
    }
    __syncthreads();
    if (threadIdx.x < 32)
      walk(selector, bins, shift);
    __syncthreads();
    known |= (bins - 1) << shift;
  }
  Descent found = selector.found;
  __syncthreads();
  return found;
}
