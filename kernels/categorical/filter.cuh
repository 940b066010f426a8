// Top-k, top-p and min-p as one floor: the tokens of at least this logit are kept.
#pragma once

#include "select.cuh"

__device__ __forceinline__ bool has_filter(const RowParams &params) {
  return params.top_k != 0 || params.top_p < 1 || params.log_min_p > -INFINITY;
}

/// `reference` is the largest logit that may be drawn.
template <class T>
__device__ float floor_of(const Row<T> &row, const RowParams &params, float reference, Selector &selector) {
  float temperature = params.temperature > 0 ? params.temperature : 1.0f;
  float floor = -INFINITY;
  bool top_k = params.top_k != 0 && params.top_k < row.vocab, top_p = params.top_p < 1;
  Goal share = {Goal::SHARE, 0, 0, params.top_p};
  if (top_k) {
    Goal goal = {Goal::COUNT, params.top_k, 0, 0};
    Descent found = select(row, params.excluded, reference, temperature, goal, selector);
    floor = logit_of(found.prefix);
    uint64_t of_ties = (params.top_k - found.count_above) * mass_of(floor, reference, temperature);
    if (!(params.flags & TOP_P_FIRST))
      share = {Goal::MASS, 0, share_of(params.top_p, found.mass_above + of_ties), 0};
  }
  if (top_p) {
    Descent found = select(row, params.excluded, reference, temperature, share, selector);
    floor = fmaxf(floor, logit_of(found.prefix));
  }
  // Never above the best token, whatever the rounding.
  float by_min_p = fminf(__fadd_rn(reference, __fmul_rn(temperature, params.log_min_p)), reference);
  return fmaxf(floor, by_min_p);
}
