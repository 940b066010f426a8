// The fused reduction over the vocabulary: logits [rows, vocab] to a few numbers and a drawn token a row,
// one block a row. CPU twin: src/sampling/cpu.rs; the same tokens for the same input.
//
// Without a filter one pass over the row: soft-max sums, the two best tokens, Gumbel-max. The race runs on
// values that are rounded before the largest logit is known; in the rare row where two values are as close
// as that rounding, and wherever a filter is set, a second pass draws with the twin's very roundings.
#include "categorical/draw.cuh"
#include "categorical/filter.cuh"
#include "categorical/top.cuh"

/// Below it logit / temperature may overflow, and the second pass divides differences.
#define LEAST_TEMPERATURE 1e-20f

union Scratch {
  Summary summaries[32];
  Drawn draws[32];
  uint32_t minima[32];
};

/// Σ e^(logit − largest) of the tokens that may be drawn, or less.
__device__ __forceinline__ float least_sum_of_drawable(const Summary &summary, const RowParams &params) {
  bool is_of_drawable = params.excluded == NONE || params.flags & EXCLUDED_IS_IMPOSSIBLE;
  return is_of_drawable ? summary.model.exponentials : 1.0f;
}

template <class T>
__device__ __forceinline__ void categorical(const T *logits, uint64_t stride, const T *unconditional, uint64_t unconditional_stride,
                            uint32_t vocab, const RowParams *all_params, const Adjustment *adjustments,
                            const uint32_t *allowed, const uint32_t *of, RowFound *found, TopToken *top,
                            float *of_found) {
  __shared__ Scratch scratch;
  __shared__ Summary summary; // the same in all threads, and needed again after passes that have no registers for it
  __shared__ Selector selector;
  __shared__ TopScratch top_scratch;
  __shared__ uint32_t touched[TOUCHED_WORDS];

  const RowParams &params = all_params[blockIdx.x];
  bool guided = params.unconditional != NONE;
  Row<T> row = {logits + blockIdx.x * stride,
                guided ? unconditional + params.unconditional * unconditional_stride : nullptr,
                params.guidance,
                vocab,
                params.flags & EXCLUDED_IS_IMPOSSIBLE ? params.excluded : NONE,
                params.allowed == NONE ? nullptr : allowed + params.allowed,
                adjustments + params.first_adjustment,
                params.adjustments,
                touched};
  if (params.adjustments != 0)
    mark_touched(touched, row.adjustments, row.adjustment_count);

  bool noisy = params.temperature > 0, filtered = has_filter(params);
  bool extreme = noisy && params.temperature < LEAST_TEMPERATURE;
  bool race = noisy && !filtered && !extreme, tempered = race && params.temperature != 1;
  Summary reduced = summarise(row, params, tempered, race, scratch.summaries);
  if (threadIdx.x == 0)
    summary = reduced;
  __syncthreads();

  Scored drawable = summary.best.token == params.excluded ? summary.second : summary.best;
  uint32_t status = summary.has_nan                  ? STATUS_NAN
                    : summary.best.logit == INFINITY ? STATUS_INFINITE
                    : drawable.token == NONE         ? STATUS_NOTHING
                                                     : STATUS_OK;
  if (status != STATUS_OK) {
    if (threadIdx.x == 0)
      found[blockIdx.x] = {status, NONE, 0, 0, 0, 0, 0, 0, 0, summary.best.token, 0};
    return;
  }

  float largest = summary.best.logit, floor = -INFINITY;
  if (filtered)
    floor = floor_of(row, params, drawable.logit, least_sum_of_drawable(summary, params), selector);
  Scored chosen = noisy ? summary.race.winner : drawable;
  Sums sampled = tempered ? summary.tempered : summary.model;
  bool is_ahead = summary.race.value - summary.race.runner_up > Race::rounding(summary.race.value);
  if (filtered || extreme || (race && !is_ahead)) {
    Drawn drawn = draw(row, params, largest, floor, scratch.draws);
    sampled = drawn.sums;
    if (noisy)
      chosen = drawn.winner.token == NONE ? drawable : drawn.winner;
  }

  if (threadIdx.x == 0) {
    float temperature = noisy ? params.temperature : 1.0f;
    bool by_sampling = params.flags & BASIS_SAMPLING;
    Sums sums = by_sampling ? sampled : summary.model;
    float basis_floor = by_sampling ? floor : -INFINITY, basis_temperature = by_sampling ? temperature : 1.0f;
    auto probability = [&](float logit) {
      return logit < basis_floor ? 0.0f : expf((logit - largest) / basis_temperature) / sums.exponentials;
    };
    Draws score = {params.seed, params.step, params.slot, STREAM_SCORE};
    RowFound result = {STATUS_OK, chosen.token, 0, 0, 0, 0, score.uniform(), 0, 0, summary.best.token, 0};
    result.probability = probability(chosen.logit);
    result.best = probability(summary.best.logit);
    result.second = summary.second.token == NONE ? 0.0f : probability(summary.second.logit);
    result.entropy = sums.entropy();
    result.log_probability_sampled = (chosen.logit - largest) / temperature - logf(sampled.exponentials);
    found[blockIdx.x] = result;
  }
  if (!(params.flags & LOG_PROBABILITIES))
    return;

  Row<T> plain = row.plain();
  float sum = summary.model.exponentials;
  if (params.adjustments != 0 || params.allowed != NONE) {
    reduced = summarise(plain, params, false, false, scratch.summaries);
    largest = reduced.best.logit;
    sum = reduced.model.exponentials;
  }
  float log_sum = logf(sum);
  if (threadIdx.x == 0) {
    RowFound &result = found[blockIdx.x];
    result.log_probability = plain.at(result.token) - largest - log_sum;
    result.best_log_probability = plain.at(result.best_token) - largest - log_sum;
  }
  for (uint32_t i = threadIdx.x; i < params.of; i += blockDim.x)
    of_found[params.first_of + i] = plain.at(of[params.first_of + i]) - largest - log_sum;
  if (params.top != 0)
    write_top(plain, params.top, largest, log_sum, selector, top_scratch, scratch.minima, top + blockIdx.x * MOST_TOP);
}

#define CATEGORICAL(name, type)                                                                                    \
  extern "C" __global__ void __launch_bounds__(512, 2)                                                               \
      name(const type *logits, uint64_t stride, const type *unconditional, uint64_t unconditional_stride,          \
           uint32_t vocab, const RowParams *params, const Adjustment *adjustments, const uint32_t *allowed,        \
           const uint32_t *of, RowFound *found, TopToken *top, float *of_found) {                                  \
    categorical(logits, stride, unconditional, unconditional_stride, vocab, params, adjustments, allowed, of,      \
                found, top, of_found);                                                                             \
  }

CATEGORICAL(categorical_f32, float)
CATEGORICAL(categorical_bf16, Bf16)
CATEGORICAL(categorical_f16, F16)
