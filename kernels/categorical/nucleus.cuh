// Top-p: the smallest logit of the most probable tokens that have a share of all masses. The first pass sums
// masses by intervals of the exponent, of which a row's tokens fill many; then radix select among the tokens of
// the interval in which the share is reached. CPU twin: src/sampling/filter.rs, `least_of_share`; the same logit.
#pragma once

#include "select.cuh"

/// Intervals of the exponent for each 1.
#define INTERVALS_OF_ONE 64
static_assert(int(-NO_MASS) * INTERVALS_OF_ONE <= BINS, "a bin for each interval");

/// Of an exponent in (NO_MASS, 0], the first of which begins at 0. Larger for a smaller logit.
__device__ __forceinline__ uint32_t interval_of(float exponent) { return uint32_t(-exponent * INTERVALS_OF_ONE); }

/// The share `share` of `mass`, as the twin rounds it.
__device__ __forceinline__ uint64_t share_of(float share, uint64_t mass) { return uint64_t(double(share) * double(mass)); }

/// Tokens with smaller exponents are not in the nucleus of `share`: all `vocab` of them together would have less than
/// what lies outside. `sum` is at most Σ e^x of all tokens, and at least 1, the best token's.
__device__ __forceinline__ float least_exponent(float share, float sum, uint32_t vocab) {
  // The margin is for all roundings, of which 2^-20 is the largest.
  return fmaxf(logf((1 - share) * (sum / vocab)) - 0.01f, NO_MASS);
}

/// What the share is of: all tokens with larger logits than `floor`, and the mass `ties` of those of that logit.
/// No token below the floor is in the nucleus.
struct Whole {
  float floor;
  uint64_t ties;
};

/// `share` < 1 of what `whole` says; tokens whose exponent is below `least` are not in the nucleus.
template <class T>
__device__ float nucleus(const Row<T> &row, uint32_t excluded, Scale scale, float share, Whole whole, float least,
                         Selector &selector) {
  __syncthreads();
  selector.histogram.clear();
  __syncthreads();
  Run run;
  uint64_t mine = 0;
  visit_tokens(row, excluded, [&](float logit) {
    float x = scale.exponent(logit);
    if (!(x > NO_MASS && logit >= whole.floor))
      return;
    uint64_t mass = mass_of(x);
    if (logit > whole.floor)
      mine += mass;
    if (x >= least)
      run.add(selector.histogram, BINS - 1 - interval_of(x), mass);
  });
  run.flush(selector.histogram);
  uint64_t goal = share_of(share, whole.ties + block_sum(mine, selector.sums));
  goal = max(goal, uint64_t(1)); // the best token is always kept
  Reached reached = reach(selector, goal);
  goal -= reached.above;

  // Logits of the interval lie between these, with room for the rounding of exponents and of the bounds.
  uint32_t interval = BINS - 1 - reached.bin;
  float width = scale.temperature / INTERVALS_OF_ONE;
  float above = width * interval, below = width * (interval + 1);
  float rounding = 0x1p-20f * (fabsf(scale.reference) + below) + 0x1p-126f;
  uint32_t high = key_of(fminf(scale.reference - above + rounding, scale.reference));
  uint32_t low = key_of(fmaxf(scale.reference - below - rounding, -INFINITY));
  uint32_t key = descend(row, low, high, goal, selector, [&](uint32_t low, uint32_t high, auto bin) {
    Run run;
    visit_tokens(row, excluded, [&](float logit) {
      uint32_t key = key_of(logit);
      if (key < low || key > high)
        return;
      float x = scale.exponent(logit);
      if (x > NO_MASS && interval_of(x) == interval)
        run.add(selector.histogram, bin(key), mass_of(x));
    });
    run.flush(selector.histogram);
  });
  return logit_of(key);
}
