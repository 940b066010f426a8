// A second pass over a row whose largest logit is known: the draw with the twin's very roundings, and the
// soft-max sums of the tokens that a filter keeps.
#pragma once

#include "summary.cuh"

struct Drawn {
  Sums sums;
  float value;
  Scored winner;
};

template <class T>
__device__ Drawn draw(const Row<T> &row, const RowParams &params, float largest, float floor, Drawn *scratch) {
  Drawn mine = {{0, 0}, -INFINITY, {-INFINITY, NONE}};
  bool noisy = params.temperature > 0;
  float temperature = noisy ? params.temperature : 1.0f, ahead = -INFINITY;
  Draws draws = {params.seed, params.step, params.slot, STREAM_GUMBEL};
  uint32_t round = 0;
  visit_groups(row, [&](uint32_t group, const float (&logits)[GROUP]) {
#pragma unroll
    for (uint32_t half = 0; half < GROUP / 4; ++half) {
      bool any = false;
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        any |= logits[half * 4 + i] >= floor && logits[half * 4 + i] > -INFINITY;
      if (!any)
        continue;
      Words words = {};
      if (noisy)
        words = draws.quad(group * (GROUP / 4) + half);
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        uint32_t token = group * GROUP + half * 4 + i;
        float logit = logits[half * 4 + i];
        if (!(logit >= floor && logit > -INFINITY))
          continue;
        float x = __fdiv_rn(__fsub_rn(logit, largest), temperature);
        mine.sums.add(x);
        if (!noisy || token == params.excluded || !may_reach(x, words.word[i], fmaxf(ahead, mine.value)))
          continue;
        float value = __fadd_rn(x, exact::gumbel(words.word[i]));
        if (value > mine.value) {
          mine.value = value;
          mine.winner = {logit, token};
        }
      }
    }
    if (noisy && round++ % 8 == 0) {
      ahead = warp_reduce(mine.value, [](float a, float b) { return fmaxf(a, b); });
    }
  });
  Drawn identity = {{0, 0}, -INFINITY, {-INFINITY, NONE}};
  return block_reduce(mine, identity, scratch, [](const Drawn &a, const Drawn &b) {
    bool first = a.value > b.value || (a.value == b.value && a.winner.token < b.winner.token);
    Drawn both = first ? a : b;
    both.sums.exponentials = a.sums.exponentials + b.sums.exponentials;
    both.sums.weighted = a.sums.weighted + b.sums.weighted;
    return both;
  });
}
