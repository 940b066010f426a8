// Which keys a query sees.
#pragma once

#include "segment.cuh"

namespace long_attention {

/// What a query sees of its segment's keys: those from the `from`-th on and before the `until`-th, and where the segment has
/// bits those among them whose bit is set.
struct Sight {
  uint32_t from, until;
  /// The first word of its bits, and words that they are.
  const uint32_t *bits;
  uint32_t words;
};

/// Bits of the first `count` of 64.
__device__ __forceinline__ uint64_t first_bits(uint32_t count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }

/// Bits from `first` on, of `words` words; zeros behind them.
__device__ __forceinline__ uint64_t bits_from(const uint32_t *bits, uint32_t words, uint32_t first) {
  uint32_t word = first / 32, shift = first % 32;
  auto at = [&](uint32_t i) { return i < words ? bits[i] : 0; };
  uint32_t middle = at(word + 1);
  return uint64_t(__funnelshift_r(middle, at(word + 2), shift)) << 32 | __funnelshift_r(at(word), middle, shift);
}

/// Which of 64 keys from `first` on it sees, of a segment with `context` keys before its own rows.
__device__ __forceinline__ uint64_t seen_of(const Sight &sight, uint32_t context, uint32_t first) {
  uint64_t before = first_bits(sight.from > first ? sight.from - first : 0);
  uint64_t seen = first_bits(sight.until > first ? sight.until - first : 0) & ~before;
  if (sight.bits == nullptr || first + 64 <= context)
    return seen;
  uint32_t of_context = context > first ? context - first : 0;
  uint64_t own = bits_from(sight.bits, sight.words, first + of_context - context);
  return seen & (own << of_context | first_bits(of_context));
}

/// Whether it sees any key.
__device__ __forceinline__ bool sees_any(const Sight &sight, uint32_t context) {
  for (uint32_t first = sight.from; first < sight.until; first += 64)
    if (seen_of(sight, context, first))
      return true;
  return false;
}

} // namespace long_attention
