// What the reduction over the vocabulary is given and what it finds. Laid out as the structs of
// src/sampling/layout.rs.
#pragma once

#include "../common.cuh"

#define NONE 0xffffffffu
#define MOST_TOP 20

enum Flags : uint32_t {
  EXCLUDED_IS_IMPOSSIBLE = 1,
  TOP_P_FIRST = 2,
  BASIS_SAMPLING = 4,
  /// Report log-probabilities by the model: without adjustments and without the mask of allowed tokens.
  LOG_PROBABILITIES = 8,
};

enum Status : uint32_t { STATUS_OK = 0, STATUS_NAN = 1, STATUS_INFINITE = 2, STATUS_NOTHING = 3 };

/// How to draw from one row of logits.
struct RowParams {
  uint64_t seed;
  uint32_t step, slot;
  /// 0 takes the most probable token.
  float temperature;
  /// 0 is off.
  uint32_t top_k;
  /// 1 and more is off.
  float top_p;
  /// ln of the least probability, relative to the best token's; −∞ is off.
  float log_min_p;
  /// Never drawn; NONE if every token may be.
  uint32_t excluded;
  uint32_t flags;
  /// w + 1 of classifier-free guidance u + (w + 1)(c − u).
  float guidance;
  /// u: a row of the unconditional logits, NONE without guidance.
  uint32_t unconditional;
  /// Its range of the adjustments.
  uint32_t first_adjustment, adjustments;
  /// First word of its bits of allowed tokens, NONE if all are.
  uint32_t allowed;
  /// How many of the most probable tokens to report, at most MOST_TOP.
  uint32_t top;
  /// Its range of the tokens whose log-probabilities are asked for.
  uint32_t first_of, of;
};

/// A change to one token's logit: a repetition penalty divides a positive logit and multiplies a negative
/// one, then `bias` is added. Sorted by token within a row, each token once.
struct Adjustment {
  uint32_t token;
  float penalty, bias;
};

/// What is found for one row.
struct RowFound {
  uint32_t status;
  uint32_t token;
  /// By the basis asked for, as are `best`, `second` and `entropy`.
  float probability;
  float best, second, entropy;
  /// Uniform in [0, 1), independent of `token`.
  float uniform;
  /// ln p of `token` under the distribution that it is drawn from.
  float log_probability_sampled;
  /// ln p of `token` under the model, if asked for; 0 otherwise.
  float log_probability;
  uint32_t best_token;
  /// As `log_probability`, of `best_token`.
  float best_log_probability;
};

struct TopToken {
  uint32_t token;
  float log_probability;
};
