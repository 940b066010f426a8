// Results over a split of a segment's keys, where its keys are given to several blocks, and where they lie.
#pragma once

#include "segment.cuh"

/// The tile is of all keys of its segment, and its results are not merged with others.
#define WHOLE 0xffffffffu

/// Queries of a segment, as many as a block takes or fewer at its end, from the `first` of rows · heads per key/value
/// head on; and a split of the segment's keys, those from `first_key` on and before `end_key`.
struct QueryTile {
  uint32_t segment, first, first_key, end_key;
  /// Place of its first query's partial result, or WHOLE.
  uint32_t partial;
};

/// What a partial result knows of its scores. Exponents are natural ones.
struct alignas(16) PartialSoftMax {
  float largest, sum;
  uint32_t seen, unused;
};

/// The result over a split of a query, of one key/value head, at a place among partial results `[places, kv_heads]`: `dim`
/// numbers that the sum of weights does not divide yet, then a PartialSoftMax. So it begins at 16 bytes, and so do its parts.
template <class Number>
__device__ __forceinline__ Number *partial_at(Number *partials, uint32_t place, uint32_t kv_heads, uint32_t kv_head,
                                              uint32_t dim) {
  return partials + (uint64_t(place) * kv_heads + kv_head) * (dim + sizeof(PartialSoftMax) / sizeof(float));
}
