// Attention of a ragged batch's rows as ragged_attention.cu has it, for segments of many queries: products on tensor cores, in
// half precision with sums in f32, without materialised scores (FlashAttention-2, arXiv:2307.08691). CPU twin:
// src/models/attention; equal within the rounding of weights and results.
//
// A query is one head of a row. A block takes up to 64 queries of a segment (32 of heads of 512) whose heads share keys and
// values, the heads of a row side by side, and a warp 16 of them. The block goes through the keys by tiles, whose keys and
// values come through a ring in shared memory by asynchronous copies: while one is multiplied the next are on their way. A
// warp has its queries, its scores and its results in registers. Scores of a product lie as the next product wants its
// left side, so weights never leave them.
//
// Of heads of 256 and 512 two and four warps share queries: each has 128 numbers of them and of their results. The
// products of its numbers with those of the keys are parts of scores, which they exchange through shared memory and add.
//
// Where a segment has few queries, its keys are cut into splits, and a block takes one: what the blocks of the same queries
// have is merged by attention_merge.cu.
//
// The order in which a row's products are added depends on the places of keys counted from the first one, context before
// own rows, on the splits, and on nothing else: its result does not depend on what else is in the batch, nor on how many of
// its keys are cached. Tiles that no query of a warp sees are skipped, which changes no result.
#include "attention/ring.cuh"
#include "attention/sight.cuh"
#include "attention/split.cuh"

namespace long_attention {

/// Scores of a warp's 16 queries and the keys of a tile: of each eight keys what `multiply_add` leaves in a lane, queries
/// lane / 4 and 8 further on.
template <int DIM> using Scores = float[Cut<DIM>::KEYS / 8][4];

/// A query of the lane, whose row exists, and what it sees of the block's keys.
struct Query {
  bool exists;
  /// Its head among those of all rows.
  uint32_t head;
  Sight sight;
};

/// What the online soft-max knows of a query's scores so far, of which the lane adds up its own.
struct SoftMax {
  float largest = -INFINITY, sum = 0;
};

__device__ __forceinline__ uint32_t least_of_warp(uint32_t number) {
#pragma unroll
  for (int mask = 1; mask < 32; mask *= 2)
    number = min(number, __shfl_xor_sync(FULL_WARP, number, mask));
  return number;
}

__device__ __forceinline__ uint32_t most_of_warp(uint32_t number) { return ~least_of_warp(~number); }

/// A product of 16 queries and the keys of a tile, over the warp's DIMS numbers.
template <class T, int DIM>
__device__ __forceinline__ void multiply_keys(Scores<DIM> &scores, const uint32_t (&query)[Cut<DIM>::DIMS / 16][4],
                                              const T *keys, uint32_t first_chunk) {
  using Cut = long_attention::Cut<DIM>;
  uint32_t lane = threadIdx.x % 32;
  // Keys 0..8, 8..16 of 16, each at two chunks.
  const T *row = keys + (lane / 16 * 8 + lane % 8) * DIM;
  uint32_t swap = lane / 8 % 2 ^ lane % 8;
#pragma unroll
  for (int j = 0; j < Cut::KEYS / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      scores[j][i] = 0;
#pragma unroll
  for (int step = 0; step < Cut::DIMS / 16; ++step) {
    uint32_t chunk = first_chunk + step * 2 / 8 * 8 + (step * 2 % 8 ^ swap);
#pragma unroll
    for (int j = 0; j < Cut::KEYS / 16; ++j) {
      uint32_t key[4];
      load_matrices(key, row + j * 16 * DIM + chunk * 8);
      multiply_add<T>(scores[2 * j], query[step], key[0], key[1]);
      multiply_add<T>(scores[2 * j + 1], query[step], key[2], key[3]);
    }
  }
}

/// Adds weights times the values of a tile, of the warp's DIMS numbers.
template <class T, int DIM>
__device__ __forceinline__ void multiply_values(float (&result)[Cut<DIM>::DIMS / 8][4], const Scores<DIM> &weights,
                                                const T *values, uint32_t first_chunk) {
  using Cut = long_attention::Cut<DIM>;
  uint32_t lane = threadIdx.x % 32;
  // Values 0..8, 8..16 of 16, each at two chunks.
  const T *row = values + (lane / 8 % 2 * 8 + lane % 8) * DIM;
  uint32_t swap = lane / 16 ^ lane % 8;
#pragma unroll
  for (int j = 0; j < Cut::KEYS / 16; ++j) {
    uint32_t weight[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      weight[i] = pack<T>(weights[2 * j + i / 2][i % 2 * 2], weights[2 * j + i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int d = 0; d < Cut::DIMS / 16; ++d) {
      uint32_t value[4], chunk = first_chunk + d * 2 / 8 * 8 + (d * 2 % 8 ^ swap);
      load_transposed(value, row + j * 16 * DIM + chunk * 8);
      multiply_add<T>(result[2 * d], weight, value[0], value[1]);
      multiply_add<T>(result[2 * d + 1], weight, value[2], value[3]);
    }
  }
}

struct alignas(8) Two {
  float numbers[2];
};

struct alignas(16) Four {
  float numbers[4];
};

/// The parts of scores that the block's warps have.
template <int DIM> using Parts = Four[Cut<DIM>::WARPS][Cut<DIM>::KEYS / 8][32];

/// In shared memory, one for the block.
template <int DIM> __device__ __forceinline__ Parts<DIM> &parts_of_block() {
  __shared__ Parts<DIM> parts;
  return parts;
}

template <int DIM> __device__ __forceinline__ void give_part(const Scores<DIM> &scores) {
  auto &parts = parts_of_block<DIM>();
#pragma unroll
  for (int j = 0; j < Cut<DIM>::KEYS / 8; ++j)
    parts[threadIdx.x / 32][j][threadIdx.x % 32] = {{scores[j][0], scores[j][1], scores[j][2], scores[j][3]}};
}

/// Adds the parts of the warps that share queries: of neighbours, and then of pairs. All get the same sums.
template <int DIM> __device__ __forceinline__ void add_parts(Scores<DIM> &scores) {
  auto &parts = parts_of_block<DIM>();
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < Cut<DIM>::KEYS / 8; ++j) {
    Four neighbour = parts[warp ^ 1][j][lane];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      scores[j][i] += neighbour.numbers[i];
    if constexpr (Cut<DIM>::SHARERS == 4) {
      Four third = parts[warp ^ 2][j][lane], fourth = parts[warp ^ 3][j][lane];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        scores[j][i] += third.numbers[i] + fourth.numbers[i];
    }
  }
}

/// −∞ for the scores of keys that a query does not see; `seen` has a bit for each key.
template <int DIM> __device__ __forceinline__ void hide(Scores<DIM> &scores, const uint64_t (&seen)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    uint64_t of_lane = seen[r] >> threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < Cut<DIM>::KEYS / 8; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (!(of_lane >> (8 * j + i) & 1))
          scores[j][2 * r + i] = -INFINITY;
  }
}

/// Turns scores into weights, 2 to the power of `scale` times what they are below the largest so far, and shrinks what was
/// added up before to it.
template <int DIM>
__device__ __forceinline__ void weigh(Scores<DIM> &scores, SoftMax (&soft_maxes)[2],
                                      float (&result)[Cut<DIM>::DIMS / 8][4], float scale) {
  float shrinks[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    SoftMax &soft_max = soft_maxes[r];
    float top = soft_max.largest;
#pragma unroll
    for (int j = 0; j < Cut<DIM>::KEYS / 8; ++j)
      top = fmaxf(top, fmaxf(scores[j][2 * r], scores[j][2 * r + 1]));
    top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 1));
    top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 2));
    // Where nothing was seen yet, or only −∞, weights are 0, and there is nothing to shrink.
    bool is_seen = top > -INFINITY;
    float shrink = is_seen ? power_of_two((soft_max.largest - top) * scale) : 1.0f;
    float above = is_seen ? -top * scale : 0.0f;
    soft_max.largest = top;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < Cut<DIM>::KEYS / 8; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // The maximum passes over NaN; the sum does not.
        float weight = power_of_two(fmaf(scores[j][2 * r + i], scale, above));
        scores[j][2 * r + i] = weight;
        sum += weight;
      }
    soft_max.sum = soft_max.sum * shrink + sum;
    shrinks[r] = shrink;
  }
  // Mostly the largest scores are those of the first tiles, and 1 changes nothing.
  if (__ballot_sync(FULL_WARP, shrinks[0] != 1 || shrinks[1] != 1) == 0)
    return;
#pragma unroll
  for (int d = 0; d < Cut<DIM>::DIMS / 8; ++d)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      result[d][i] *= shrinks[i / 2];
}

template <class T, int DIM>
__device__ __forceinline__ void attend(const T *q, const T *k, const T *v, const T *pool_keys, const T *pool_values,
                                       const Segment *segments, const QueryTile *tiles, const uint32_t *context,
                                       const uint32_t *first_seen, const uint32_t *visible, const uint32_t *allowed,
                                       uint32_t heads, uint32_t kv_heads, float scale, T *out, float *partials) {
  using Cut = long_attention::Cut<DIM>;
  alignas(16) __shared__ T stages[Cut::STAGES * Cut::KEYS * DIM];

  uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, kv_head = blockIdx.y, group = heads / kv_heads;
  QueryTile tile = tiles[blockIdx.x];
  Segment segment = segments[tile.segment];
  uint32_t queries = min(uint32_t(Cut::QUERIES), segment.rows * group - tile.first);
  uint32_t words = (segment.rows + 31) / 32;
  auto query_at = [&](uint32_t place) {
    bool exists = place < queries;
    uint32_t query = tile.first + place, of_segment = query / group, row = segment.first_row + of_segment;
    Sight sight = {};
    if (exists)
      sight = {max(first_seen[row], tile.first_key), min(segment.context + visible[row], tile.end_key),
               segment.allowed == ALL ? nullptr : allowed + segment.allowed + of_segment * words, words};
    return Query{exists, row * heads + kv_head * group + query % group, sight};
  };

  // What any query of the block sees.
  uint32_t first_key = 0xffffffffu, keys = 0;
#pragma unroll
  for (int place = 0; place < Cut::QUERIES; place += 32) {
    Query other = query_at(place + lane);
    if (other.exists) {
      first_key = min(first_key, other.sight.from);
      keys = max(keys, other.sight.until);
    }
  }
  first_key = least_of_warp(first_key) / Cut::KEYS * Cut::KEYS;
  keys = most_of_warp(keys);
  uint32_t offset = kv_head * DIM;
  Ring<T, DIM> ring(stages, segment, context,
                    {k + offset, v + offset, pool_keys + offset, pool_values + offset, kv_heads * DIM}, first_key, keys);

  // What the warp's queries see: any of them from `least_from` to `most_until`, all from `most_from` to `least_until`.
  Query own[2];
  uint32_t least_from = 0xffffffffu, most_from = 0, least_until = 0xffffffffu, most_until = 0;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    own[r] = query_at(warp / Cut::SHARERS * 16 + r * 8 + lane / 4);
    if (own[r].exists) {
      Sight sight = own[r].sight;
      least_from = min(least_from, sight.from);
      most_from = max(most_from, sight.from);
      least_until = min(least_until, sight.until);
      most_until = max(most_until, sight.until);
    }
  }
  least_from = least_of_warp(least_from);
  most_from = most_of_warp(most_from);
  least_until = least_of_warp(least_until);
  most_until = most_of_warp(most_until);

  uint32_t first_dim = warp % Cut::SHARERS * Cut::DIMS, first_chunk = first_dim / 8;
  uint32_t query[Cut::DIMS / 16][4];
#pragma unroll
  for (int step = 0; step < Cut::DIMS / 16; ++step)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const T *from = q + uint64_t(own[i % 2].head) * DIM + first_dim + step * 16 + i / 2 * 8 + lane % 4 * 2;
      query[step][i] = own[i % 2].exists ? *reinterpret_cast<const uint32_t *>(from) : 0;
    }
  float result[Cut::DIMS / 8][4];
#pragma unroll
  for (int d = 0; d < Cut::DIMS / 8; ++d)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      result[d][i] = 0;
  SoftMax soft_maxes[2];
  // Weights are powers of two.
  float binary_scale = scale * 1.44269504f;

#pragma unroll 1
  for (; first_key < keys; first_key += Cut::KEYS) {
    uint32_t end = first_key + Cut::KEYS;
    bool is_seen = first_key < most_until && end > least_from;
    bool has_bits = segment.allowed != ALL && end > segment.context;
    bool is_hidden_in_part = first_key < most_from || end > least_until || has_bits;
    uint64_t seen[2] = {};
    if (is_seen && is_hidden_in_part) {
#pragma unroll
      for (int r = 0; r < 2; ++r)
        seen[r] = seen_of(own[r].sight, segment.context, first_key) & first_bits(Cut::KEYS);
      is_seen = __ballot_sync(FULL_WARP, (seen[0] | seen[1]) != 0) != 0;
    }
    Scores<DIM> scores;
    auto soft_max = [&] {
      if (is_hidden_in_part)
        hide<DIM>(scores, seen);
      weigh<DIM>(scores, soft_maxes, result, binary_scale);
    };
    const T *tile_keys = ring.template next<true>();
    if (is_seen) {
      multiply_keys<T, DIM>(scores, query, tile_keys, first_chunk);
      if constexpr (Cut::SHARERS > 1)
        give_part<DIM>(scores);
      else
        soft_max();
    }
    const T *tile_values = ring.template next<false>();
    if (is_seen) {
      if constexpr (Cut::SHARERS > 1) {
        add_parts<DIM>(scores);
        soft_max();
      }
      multiply_values<T, DIM>(result, scores, tile_values, first_chunk);
    }
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = soft_maxes[r].sum;
    sum += __shfl_xor_sync(FULL_WARP, sum, 1);
    sum += __shfl_xor_sync(FULL_WARP, sum, 2);
    if (!own[r].exists)
      continue;
    bool seen = sum != 0 || sees_any(own[r].sight, segment.context);
    // Read again, so that it is in no register before.
    uint32_t place = tiles[blockIdx.x].partial;
    if (place != WHOLE) {
      uint32_t query_of_block = warp / Cut::SHARERS * 16 + r * 8 + lane / 4;
      float *partial = partial_at(partials, place + query_of_block, kv_heads, kv_head, DIM);
      // Four lanes fill 32 bytes.
#pragma unroll
      for (int d = 0; d < Cut::DIMS / 8; ++d)
        *reinterpret_cast<Two *>(partial + first_dim + d * 8 + lane % 4 * 2) = {{result[d][2 * r], result[d][2 * r + 1]}};
      if (first_dim == 0 && lane % 4 == 0)
        *reinterpret_cast<PartialSoftMax *>(partial + DIM) = {soft_maxes[r].largest * scale, sum, seen, 0};
      continue;
    }
    // A query that sees nothing gets zeros; one whose scores are all -infinity, or one of them NaN, gets NaN.
    float share = 1.0f / sum;
#pragma unroll
    for (int d = 0; d < Cut::DIMS / 8; ++d) {
      T *to = out + uint64_t(own[r].head) * DIM + first_dim + d * 8 + lane % 4 * 2;
      *reinterpret_cast<uint32_t *>(to) =
          pack<T>(seen ? result[d][2 * r] * share : 0.0f, seen ? result[d][2 * r + 1] * share : 0.0f);
    }
  }
}

} // namespace long_attention

#define LONG_ATTENTION(name, type, dim)                                                                            \
  extern "C" __global__ void __launch_bounds__(32 * long_attention::Cut<dim>::WARPS)                               \
      name(const type *q, const type *k, const type *v, const type *pool_keys, const type *pool_values,            \
           const Segment *segments, const QueryTile *tiles, const uint32_t *context,                               \
           const uint32_t *first_seen, const uint32_t *visible, const uint32_t *allowed, uint32_t heads,         \
           uint32_t kv_heads, float scale, type *out, float *partials) {                                           \
    long_attention::attend<type, dim>(q, k, v, pool_keys, pool_values, segments, tiles, context, first_seen,     \
                                      visible, allowed, heads, kv_heads, scale, out, partials);                    \
  }

LONG_ATTENTION(long_attention_bf16_64, Bf16, 64)
LONG_ATTENTION(long_attention_bf16_128, Bf16, 128)
LONG_ATTENTION(long_attention_bf16_256, Bf16, 256)
LONG_ATTENTION(long_attention_bf16_512, Bf16, 512)
LONG_ATTENTION(long_attention_f16_64, F16, 64)
LONG_ATTENTION(long_attention_f16_128, F16, 128)
LONG_ATTENTION(long_attention_f16_256, F16, 256)
LONG_ATTENTION(long_attention_f16_512, F16, 512)
