// Merges what blocks of ragged_attention.cu or long_attention.cu have of the same queries over different splits of keys. CPU
// twin: src/models/attention, as theirs.
//
// A block takes up to 8 queries of a key/value head, and a thread 8 numbers of one. Splits are added in their order, which
// depends on the segment alone.
#include "attention/split.cuh"
#include "packed.cuh"

/// Queries of a segment from the `first` of rows · heads per key/value head on, at most 8, and their partial results: of the
/// i-th over the j-th split at place `partial` + i + j · `stride`.
struct MergeTile {
  uint32_t segment, first, queries, partial, stride, splits;
};

template <class T>
__device__ __forceinline__ void attention_merge(const float *partials, const Segment *segments, const MergeTile *tiles,
                                                uint32_t heads, uint32_t kv_heads, uint32_t dim, T *out) {
  MergeTile tile = tiles[blockIdx.x];
  uint32_t kv_head = blockIdx.y, group = heads / kv_heads;
  uint32_t own = threadIdx.x / (dim / 8), first_dim = threadIdx.x % (dim / 8) * 8;
  if (own >= tile.queries)
    return;
  auto partial = [&](uint32_t split) {
    return partial_at(partials, tile.partial + own + split * tile.stride, kv_heads, kv_head, dim);
  };
  auto known = [&](uint32_t split) { return *reinterpret_cast<const PartialSoftMax *>(partial(split) + dim); };

  float largest = -INFINITY;
#pragma unroll 4
  for (uint32_t split = 0; split < tile.splits; ++split)
    largest = fmaxf(largest, known(split).largest);
  float sum = 0, result[8] = {};
  uint32_t seen = 0;
#pragma unroll 4
  for (uint32_t split = 0; split < tile.splits; ++split) {
    PartialSoftMax soft_max = known(split);
    float numbers[8];
    widen(load_packed(partial(split) + first_dim), numbers);
    // Where no split has seen anything, or only -infinity, there is nothing to shrink.
    float shrink = largest > -INFINITY ? __expf(soft_max.largest - largest) : 1.0f;
    sum += shrink * soft_max.sum;
    seen |= soft_max.seen;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      result[i] += shrink * numbers[i];
  }
  // A query that sees nothing gets zeros; one whose scores are all -infinity, or one of them NaN, gets NaN.
  float share = 1.0f / sum;
#pragma unroll
  for (int i = 0; i < 8; ++i)
    result[i] = seen ? result[i] * share : 0.0f;
  uint32_t query = tile.first + own, row = segments[tile.segment].first_row + query / group;
  uint32_t head = row * heads + kv_head * group + query % group;
  store8_aligned(out + uint64_t(head) * dim + first_dim, result);
}

#define ATTENTION_MERGE(name, type)                                                                                \
  extern "C" __global__ void __launch_bounds__(512)                                                                \
      name(const float *partials, const Segment *segments, const MergeTile *tiles, uint32_t heads,                 \
           uint32_t kv_heads, uint32_t dim, type *out) {                                                           \
    attention_merge(partials, segments, tiles, heads, kv_heads, dim, out);                                         \
  }

ATTENTION_MERGE(attention_merge_f32, float)
ATTENTION_MERGE(attention_merge_bf16, Bf16)
ATTENTION_MERGE(attention_merge_f16, F16)
