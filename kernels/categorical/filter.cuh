// Top-k, top-p and min-p as one floor: the tokens of at least this logit are kept.
#pragma once

#include "nucleus.cuh"

__device__ __forceinline__ bool has_filter(const RowParams &params) {
  return params.top_k != 0 || params.top_p < 1 || params.log_min_p > -INFINITY;
}

/// `reference` is the largest logit that may be drawn; `sum` is Σ e^(logit − reference), of these tokens or of some.
template <class T>
__device__ float floor_of(const Row<T> &row, const RowParams &params, float reference, float sum, Selector &selector) {
  float temperature = params.temperature > 0 ? params.temperature : 1.0f;
  Scale scale = {reference, temperature};
  float floor = -INFINITY;
  // A flatter distribution has the larger sum. Of a sharper one that of the best token is known.
  Whole whole = {-INFINITY, 0};
  float least_sum = temperature >= 1 ? fmaxf(sum, 1.0f) : 1.0f;
  if (params.top_k != 0 && params.top_k < row.vocab) {
    Ranked last = select(row, params.excluded, params.top_k, selector);
    floor = logit_of(last.key);
    if (!(params.flags & TOP_P_FIRST)) {
      whole = {floor, (params.top_k - last.above) * mass_of(scale.exponent(floor))};
      least_sum = 1;
    }
  }
  if (params.top_p < 1) {
    float least = least_exponent(params.top_p, least_sum, row.vocab);
    floor = fmaxf(floor, nucleus(row, params.excluded, scale, params.top_p, whole, least, selector));
  }
  // Never above the best token, whatever the rounding.
  float by_min_p = fminf(__fadd_rn(reference, __fmul_rn(temperature, params.log_min_p)), reference);
  return fmaxf(floor, by_min_p);
}
