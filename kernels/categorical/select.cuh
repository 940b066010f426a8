// The largest key such that it and the larger ones are as many, or weigh as much, as is asked for, by radix
// select: up to three passes over the row with histograms of 11, 11 and 10 bits in shared memory; no sort, no
// copy of the row.
#pragma once

#include "mass.cuh"
#include "row.cuh"

#define BINS 2048

/// Larger for a larger logit; the same for −0 and +0.
__device__ __forceinline__ uint32_t key_of(float logit) {
  uint32_t bits = __float_as_uint(logit == 0 ? 0.0f : logit);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float logit_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/// Tokens, or masses as two words each: shared memory adds words natively, 64 bits by compare and swap alone.
struct Histogram {
  uint32_t low[BINS], high[BINS];

  __device__ __forceinline__ void clear() {
    for (uint32_t i = threadIdx.x; i < BINS; i += blockDim.x)
      low[i] = high[i] = 0;
  }

  __device__ __forceinline__ uint64_t at(uint32_t bin) const { return uint64_t(high[bin]) << 32 | low[bin]; }

  __device__ __forceinline__ void count(uint32_t bin) { atomicAdd(&low[bin], 1u); }

  /// Exact in any order: whoever makes the lower word wrap around carries.
  __device__ __forceinline__ void add(uint32_t bin, uint64_t mass) {
    uint32_t by_low = uint32_t(mass), by_high = uint32_t(mass >> 32);
    uint32_t before = atomicAdd(&low[bin], by_low);
    by_high += before + by_low < before;
    if (by_high != 0)
      atomicAdd(&high[bin], by_high);
  }
};

/// The masses of a thread's successive tokens of one bin, which are added at once: where all tokens are of one
/// bin, a thread adds once a pass.
struct Run {
  uint32_t bin = 0;
  uint64_t mass = 0;

  __device__ __forceinline__ void add(Histogram &histogram, uint32_t to, uint64_t added) {
    if (to != bin) {
      flush(histogram);
      bin = to;
    }
    mass += added;
  }

  __device__ __forceinline__ void flush(Histogram &histogram) {
    if (mass != 0)
      histogram.add(bin, mass);
    mass = 0;
  }
};

/// Where a goal is reached, and what the bins above hold.
struct Reached {
  uint32_t bin;
  uint64_t above;
};

struct Selector {
  Histogram histogram;
  Reached reached;
  uint64_t sums[32];
};

/// The largest bin such that it and those above hold `goal` ≥ 1, which all bins together do. For a whole warp.
///
/// The lanes sum a part of the bins each, lane 0 the largest; then parts of the part in which the goal is reached.
__device__ inline Reached walk(const Histogram &histogram, uint64_t goal) {
  uint32_t lane = threadIdx.x & 31, top = BINS, width = BINS;
  uint64_t above = 0;
  for (uint32_t part = BINS / 32;; part = part > 32 ? part / 32 : 1) {
    uint64_t own = 0;
    // Each lane begins elsewhere in its part: all read different banks.
    for (uint32_t i = 0; i < part && lane * part < width; ++i)
      own += histogram.at(top - 1 - lane * part - ((i + lane) & (part - 1)));
    uint64_t sum = own;
    for (unsigned delta = 1; delta < 32; delta *= 2) {
      uint64_t other = __shfl_up_sync(FULL_WARP, sum, delta);
      if (lane >= delta)
        sum += other;
    }
    // The last lane has seen all.
    unsigned reaching = __ballot_sync(FULL_WARP, above + sum >= goal) | 1u << 31;
    uint32_t first = __ffs(reaching) - 1;
    above += __shfl_sync(FULL_WARP, sum - own, first);
    top -= first * part;
    if (part == 1)
      return {top - 1, above};
    width = part;
  }
}

/// `walk` when all threads have filled the histogram; for every thread.
__device__ inline Reached reach(Selector &selector, uint64_t goal) {
  __syncthreads();
  if (threadIdx.x < 32) {
    Reached reached = walk(selector.histogram, goal);
    if (threadIdx.x == 0)
      selector.reached = reached;
  }
  __syncthreads();
  return selector.reached;
}

/// The key at which the tokens with keys of at least that hold `goal`, which is lessened by what those above hold.
/// The key is known to be from `low` to `high`. `fill(low, high, bin)` fills the cleared histogram with the tokens
/// whose keys are in that range, that of key k in the bin `bin(k)`.
template <class T, class Fill>
__device__ uint32_t descend(const Row<T> &row, uint32_t low, uint32_t high, uint64_t &goal, Selector &selector,
                            Fill fill) {
  const int shifts[] = {21, 10, 0};
#pragma unroll 1 // three times the code for the same passes
  for (int shift : shifts) {
    if (shift == 0 && row.is_half()) // the last bits are those of the sign
      return low & 0x80000000u ? low & ~0x3ffu : low | 0x3ffu;
    if (low >> shift == high >> shift)
      continue;
    uint32_t bins = shift == 0 ? 1024 : 2048;
    __syncthreads();
    selector.histogram.clear();
    __syncthreads();
    fill(low, high, [=](uint32_t key) { return key >> shift & (bins - 1); });
    Reached reached = reach(selector, goal);
    goal -= reached.above;
    low = ((low >> shift & ~(bins - 1)) | reached.bin) << shift;
    high = low | ((1u << shift) - 1);
  }
  return low;
}

/// Calls `visit(logit)` for every token of a row; the logit of `excluded` counts as −∞.
template <class T, class Visit>
__device__ __forceinline__ void visit_tokens(const Row<T> &row, uint32_t excluded, Visit visit) {
  visit_groups(row, [&](uint32_t group, const float (&logits)[GROUP]) {
#pragma unroll
    for (uint32_t i = 0; i < GROUP; ++i) {
      uint32_t token = group * GROUP + i;
      if (token < row.vocab)
        visit(token == excluded ? -INFINITY : logits[i]);
    }
  });
}

/// The key of the `count`-th largest logit, of 1 ≤ `count` ≤ `row.vocab`, and how many are larger.
struct Ranked {
  uint32_t key, above;
};

template <class T>
__device__ Ranked select(const Row<T> &row, uint32_t excluded, uint32_t count, Selector &selector) {
  uint64_t goal = count;
  uint32_t key = descend(row, 0, ~0u, goal, selector, [&](uint32_t low, uint32_t high, auto bin) {
    visit_tokens(row, excluded, [&](float logit) {
      uint32_t key = key_of(logit);
      if (key >= low && key <= high)
        selector.histogram.count(bin(key));
    });
  });
  return {key, count - uint32_t(goal)};
}
