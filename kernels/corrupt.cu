// The forward process on ragged rows of tokens: each slot is noised with a row's probability, by
// (seed, step, slot). CPU twin: src/sampling/corrupt.rs; the same tokens.
#include "philox.cuh"

#define NO_MASK 0xffffffffu

struct CorruptRow {
  uint64_t seed;
  /// 1 − α in units of 2^-32; a slot is noised if its word is smaller.
  uint64_t threshold;
  uint32_t step;
  /// Its range of the tokens, and the slot of the first one.
  uint32_t first, length, slot;
};

/// A block a row. With `mask` a noised slot holds it, without one a state drawn uniformly from `states`.
extern "C" __global__ void corrupt(const uint32_t *clean, const CorruptRow *rows, uint32_t mask, uint32_t states,
                                   uint32_t *noisy) {
  CorruptRow row = rows[blockIdx.x];
  for (uint32_t i = threadIdx.x; i < row.length; i += blockDim.x) {
    Draws draws = {row.seed, row.step, row.slot + i, STREAM_CORRUPT};
    Words words = draws.quad(0);
    uint32_t token = clean[row.first + i];
    if (words.word[0] < row.threshold)
      token = mask != NO_MASK ? mask : __umulhi(words.word[1], states);
    noisy[row.first + i] = token;
  }
}
