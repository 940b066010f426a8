// One pass over a row: its two best tokens, soft-max sums, and the winner of the Gumbel race.
#pragma once

#include "../exact.cuh"
#include "../philox.cuh"
#include "row.cuh"

/// A logit and its token; a larger logit is better, of equal ones the smaller token.
struct Scored {
  float logit;
  uint32_t token;

  __device__ __forceinline__ bool is_better_than(const Scored &other) const {
    return logit > other.logit || (logit == other.logit && token < other.token);
  }
};

/// Σ e^x and Σ x e^x, with x = (logit − reference) / temperature.
struct Sums {
  float exponentials, weighted;

  __device__ __forceinline__ void add(float x) {
    float e = __expf(x);
    exponentials += e;
    weighted += e > 0 ? x * e : 0.0f;
  }

  /// The sums as they are with a reference that is larger by `step` · temperature.
  __device__ __forceinline__ void lower(float step) {
    if (exponentials == 0)
      return;
    float e = __expf(-step);
    weighted = e > 0 ? e * (weighted - step * exponentials) : 0.0f;
    exponentials *= e;
  }

  __device__ __forceinline__ float entropy() const {
    return fmaxf(logf(exponentials) - weighted / exponentials, 0.0f);
  }
};

/// The arg-max of value = logit / temperature + Gumbel noise so far, and the best of the rest.
struct Race {
  float value, runner_up;
  Scored winner;

  __device__ __forceinline__ static Race empty() { return {-INFINITY, -INFINITY, {-INFINITY, NONE}}; }

  __device__ __forceinline__ void offer(float offered, Scored candidate) {
    bool wins = offered > value || (offered == value && candidate.token < winner.token);
    runner_up = fmaxf(runner_up, wins ? value : offered);
    if (wins) {
      value = offered;
      winner = candidate;
    }
  }

  __device__ __forceinline__ void merge(const Race &other) {
    runner_up = fmaxf(runner_up, other.runner_up);
    if (other.winner.token != NONE)
      offer(other.value, other.winner);
  }

  /// How far apart two values that are equal without rounding may be.
  __device__ __forceinline__ static float rounding(float value) { return 0x1p-20f * (fabsf(value) + 64); }
};

/// Cheap to compute: false only if a token whose logit / temperature is `x` cannot come near `value`.
///
/// v ≤ E, so noise of at least g needs v ≤ e^−g. Most tokens fail and are spared two logarithms.
__device__ __forceinline__ bool may_reach(float x, uint32_t word, float value) {
  return !(float(word) * 0x1p-32f > __expf(x - value + Race::rounding(value) + 1e-3f));
}

struct Summary {
  Scored best, second;
  Sums model, tempered;
  Race race;
  uint32_t has_nan;

  __device__ __forceinline__ static Summary empty() {
    Scored none = {-INFINITY, NONE};
    return {none, none, {0, 0}, {0, 0}, Race::empty(), 0};
  }

  __device__ __forceinline__ void rank(Scored candidate) {
    if (candidate.is_better_than(best)) {
      second = best;
      best = candidate;
    } else if (candidate.is_better_than(second)) {
      second = candidate;
    }
  }
};

/// `tempered` as in `summarise`.
__device__ inline Summary merge(const Summary &a, const Summary &b, float inverse_temperature) {
  Summary both = a.best.is_better_than(b.best) ? a : b;
  Summary other = a.best.is_better_than(b.best) ? b : a;
  if (other.best.token != NONE) {
    float step = both.best.logit - other.best.logit;
    other.model.lower(step);
    other.tempered.lower(step * inverse_temperature);
    both.model.exponentials += other.model.exponentials;
    both.model.weighted += other.model.weighted;
    both.tempered.exponentials += other.tempered.exponentials;
    both.tempered.weighted += other.tempered.weighted;
    both.rank(other.best);
    both.rank(other.second);
    both.race.merge(other.race);
  }
  both.has_nan |= other.has_nan;
  return both;
}

/// The summary of a row, the same in every thread. `tempered` asks for the sums at that temperature,
/// `race` for the race, whose values are rounded otherwise than the twin's: it stands if its winner is
/// ahead by more than the rounding.
template <class T>
__device__ Summary summarise(const Row<T> &row, const RowParams &params, bool tempered, bool race, Summary *scratch) {
  Summary mine = Summary::empty();
  float inverse = params.temperature > 0 ? 1.0f / params.temperature : 1.0f;
  Draws draws = {params.seed, params.step, params.slot, STREAM_GUMBEL};
  float ahead = -INFINITY; // of the whole warp
  uint32_t round = 0;
  auto visit = [&](uint32_t group, const float (&logits)[GROUP]) {
    float largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < GROUP; ++i) {
      largest = fmaxf(largest, logits[i]);
      mine.has_nan |= logits[i] != logits[i];
    }
    if (largest > -INFINITY) {
      if (largest > mine.best.logit) {
        float step = largest - mine.best.logit;
        mine.model.lower(step);
        mine.tempered.lower(step * inverse);
      }
      float reference = fmaxf(largest, mine.best.logit);
#pragma unroll
      for (uint32_t i = 0; i < GROUP; ++i) {
        if (logits[i] > mine.second.logit)
          mine.rank({logits[i], group * GROUP + i});
        mine.model.add(logits[i] - reference);
      }
      if (tempered) {
#pragma unroll
        for (int i = 0; i < GROUP; ++i)
          mine.tempered.add((logits[i] - reference) * inverse);
      }
      if (race) {
#pragma unroll
        for (uint32_t half = 0; half < GROUP / 4; ++half) {
          Words words = draws.quad(group * (GROUP / 4) + half);
#pragma unroll
          for (uint32_t i = 0; i < 4; ++i) {
            uint32_t token = group * GROUP + half * 4 + i;
            float logit = logits[half * 4 + i];
            if (logit > -INFINITY && may_reach(logit * inverse, words.word[i], fmaxf(ahead, mine.race.value)) &&
                token != params.excluded)
              mine.race.offer(logit * inverse + exact::gumbel(words.word[i]), {logit, token});
          }
        }
      }
    }
    if (race && round++ % 8 == 0) {
      ahead = warp_reduce(mine.race.value, [](float a, float b) { return fmaxf(a, b); });
    }
  };
  // In f32 a group is two loads already, and no registers are left for those of another.
  if constexpr (sizeof(T) == 2)
    visit_groups_ahead<2>(row, visit);
  else
    visit_groups(row, visit);
  return block_reduce(mine, Summary::empty(), scratch,
                      [inverse](const Summary &a, const Summary &b) { return merge(a, b, inverse); });
}
