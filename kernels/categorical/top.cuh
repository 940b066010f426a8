// The most probable tokens of a row; of equal ones the smaller.
#pragma once

#include "select.cuh"
#include "summary.cuh"

struct TopScratch {
  uint32_t count;
  Scored list[MOST_TOP];
};

/// Writes the `count` ≤ MOST_TOP best tokens of a row, best first; `log_sum` is ln Σ e^(logit − largest).
template <class T>
__device__ void write_top(const Row<T> &row, uint32_t count, float largest, float log_sum, Selector &selector,
                          TopScratch &scratch, uint32_t *minima, TopToken *to) {
  count = min(min(count, uint32_t(MOST_TOP)), row.vocab);
  Ranked last = select(row, NONE, count, selector);
  if (threadIdx.x == 0)
    scratch.count = 0;
  __syncthreads();
  for (uint32_t group = threadIdx.x; group < row.groups(); group += blockDim.x) {
    float logits[GROUP];
    row.load(group, logits);
#pragma unroll
    for (uint32_t i = 0; i < GROUP; ++i) {
      uint32_t token = group * GROUP + i;
      if (token < row.vocab && key_of(logits[i]) > last.key)
        scratch.list[atomicAdd(&scratch.count, 1u)] = {logits[i], token};
    }
  }
  __syncthreads();
  // Of the tokens at the boundary those that are still missing, one pass each: ties are rare.
  uint32_t next = 0;
  for (uint32_t place = last.above; place < count; ++place) {
    uint32_t mine = NONE;
    for (uint32_t group = threadIdx.x; group < row.groups() && mine == NONE; group += blockDim.x) {
      float logits[GROUP];
      row.load(group, logits);
#pragma unroll
      for (uint32_t i = 0; i < GROUP; ++i) {
        uint32_t token = group * GROUP + i;
        if (token >= next && token < row.vocab && key_of(logits[i]) == last.key)
          mine = min(mine, token);
      }
    }
    uint32_t token = block_reduce(mine, NONE, minima, [](uint32_t a, uint32_t b) { return min(a, b); });
    next = token + 1;
    if (threadIdx.x == 0)
      scratch.list[place] = {logit_of(last.key), token};
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
    Scored mine = scratch.list[i];
    uint32_t rank = 0;
    for (uint32_t j = 0; j < count; ++j)
      rank += scratch.list[j].is_better_than(mine);
    to[rank] = {mine.token, mine.logit - largest - log_sum};
  }
  __syncthreads();
}
