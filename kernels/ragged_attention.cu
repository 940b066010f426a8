// Attention of a ragged batch's rows to their segment's cached slots and to the rows of the segment itself,
// without materialised scores. CPU twin: src/models/attention; equal within rounding.
//
// A query is one head of a row. A block takes a few queries of one segment whose heads share keys and values, the
// heads of a row side by side. The keys are dealt to its warps in a fixed order, and each warp goes through its own
// for all of the block's queries, without a barrier; at the end the warps' results are merged.
//
// Nothing is staged in shared memory. 8 numbers of a key are in a lane (16 of a head of 512), so a key is in 8, 16 or
// 32 lanes, and a warp reads 4, 2 or 1 keys at once, 16 bytes a load. The lane has the same dimensions of all queries
// in registers, and of all results. Keys, then values, come through a ring of registers: a lane has 64 bytes on their
// way while it multiplies, and those of the next round follow without a gap.
//
//   A pass    is 32 scores, one a lane: 4 keys and 8 queries (8 and 4 for heads of 512). Each lane multiplies its
//             dimensions of one key after another, in turns; then `sum_of_lane` adds them up over the lanes.
//   A round   is as many passes as queries, 32 keys a warp: their scores, the online soft-max, their values.
//
// Where a segment has few queries, its keys are cut into splits, and a block takes one: what the blocks of the same queries
// have is merged by attention_merge.cu.
//
// The order in which a row's products are added depends on the places of keys counted from the first one, context
// before own rows, on the splits, and on nothing else: its result does not depend on what else is in the batch, nor on how
// many of its keys are cached.
#include "attention/split.cuh"
#include "packed.cuh"
#include "reduce.cuh"

#define WARPS 8
#define NO_QUERY 0xffffffffu

/// How the work is cut.
template <class T, int DIM> struct Cut {
  /// Dimensions of a lane.
  static constexpr int DIMS = DIM > 256 ? 16 : 8;
  /// Lanes of a key.
  static constexpr int LANES = DIM / DIMS;
  /// Queries of a block. Of a lane they are 64 numbers, and so are its results.
  static constexpr int QUERIES = 64 / DIMS;
  /// Keys of a pass.
  static constexpr int KEYS = 32 / QUERIES;
  /// Keys that a lane multiplies in a pass: the warp's 32 / LANES at a time.
  static constexpr int TURNS = LANES / QUERIES;
  /// Keys or values of a lane that are on their way: 64 bytes, for which registers suffice.
  static constexpr int AHEAD = 64 / int(DIMS * sizeof(T));
  /// Turns after which the ring and the passes are where they were.
  static constexpr int PERIOD = AHEAD > TURNS ? AHEAD : TURNS;
  /// Distance of a warp's keys of one pass from those of the next.
  static constexpr uint32_t STRIDE = WARPS * KEYS;
  /// Queries whose results are merged at a time: what 32 KiB have room for.
  static constexpr int MERGED = 8192 / (WARPS * DIM) < QUERIES ? 8192 / (WARPS * DIM) : QUERIES;
};

/// A lane's dimensions of a key or value.
template <class T, int DIMS> struct Part {
  Packed<T> packed[DIMS / 8];

  __device__ __forceinline__ void load(const T *from) {
#pragma unroll
    for (int i = 0; i < DIMS / 8; ++i)
      packed[i] = load_packed(from + 8 * i);
  }

  __device__ __forceinline__ void widened(float (&to)[DIMS]) const {
#pragma unroll
    for (int i = 0; i < DIMS / 8; ++i) {
      float eight[8];
      widen(packed[i], eight);
#pragma unroll
      for (int j = 0; j < 8; ++j)
        to[8 * i + j] = eight[j];
    }
  }
};

/// The keys, or the values, of a round: a lane's dimensions of where they are, and each lane the place of one.
template <class T> struct Round {
  const T *own, *pool;
  uint32_t places;
};

template <class T> __device__ __forceinline__ Round<T> either(bool first, Round<T> a, Round<T> b) {
  return {first ? a.own : b.own, first ? a.pool : b.pool, first ? a.places : b.places};
}

/// What the online soft-max knows of a query's scores so far.
struct SoftMax {
  float largest, sum;
  uint32_t seen;
};

/// A number that is the same in the whole warp, which the compiler is to know.
__device__ __forceinline__ uint32_t uniform(uint32_t number) { return __shfl_sync(FULL_WARP, number, 0); }

struct alignas(16) Four {
  float numbers[4];
};

/// Four dimensions of a query's result, which the sum does not divide yet, and its soft-max.
struct Merged {
  SoftMax soft_max;
  Four numbers;
};

/// From what each warp has of them, in `part` of `parts`.
template <int QUERIES, int MERGED, int DIM>
__device__ __forceinline__ Merged merged(const SoftMax (&soft_maxes)[WARPS][QUERIES],
                                         const float (&parts)[WARPS][MERGED][DIM], uint32_t query, uint32_t part,
                                         uint32_t dim) {
  Merged all = {{-INFINITY, 0, 0}, {}};
#pragma unroll
  for (int warp = 0; warp < WARPS; ++warp)
    all.soft_max.largest = fmaxf(all.soft_max.largest, soft_maxes[warp][query].largest);
#pragma unroll
  for (int warp = 0; warp < WARPS; ++warp) {
    SoftMax soft_max = soft_maxes[warp][query];
    Four of_warp = *reinterpret_cast<const Four *>(&parts[warp][part][dim]);
    float shrink = all.soft_max.largest > -INFINITY ? __expf(soft_max.largest - all.soft_max.largest) : 1.0f;
    all.soft_max.sum += shrink * soft_max.sum;
    all.soft_max.seen |= soft_max.seen;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      all.numbers.numbers[i] += shrink * of_warp.numbers[i];
  }
  return all;
}

template <class T, int DIM>
__device__ void ragged_attention(const T *q, const T *k, const T *v, const T *pool_keys, const T *pool_values,
                                 const Segment *segments, const QueryTile *tiles, const uint32_t *context,
                                 const uint32_t *first_seen, const uint32_t *visible, const uint32_t *allowed,
                                 uint32_t heads, uint32_t kv_heads, float scale, T *out, float *partials) {
  using Cut = Cut<T, DIM>;
  constexpr int DIMS = Cut::DIMS, LANES = Cut::LANES, QUERIES = Cut::QUERIES, KEYS = Cut::KEYS, TURNS = Cut::TURNS;
  constexpr int AHEAD = Cut::AHEAD, PERIOD = Cut::PERIOD, MERGED = Cut::MERGED;
  /// Scores, then weights: of the i-th key of a warp's round and query r at i · QUERIES + r.
  alignas(16) __shared__ float weights_of_warps[WARPS][32 * QUERIES];
  __shared__ SoftMax soft_maxes[WARPS][QUERIES];
  alignas(16) __shared__ float parts[WARPS][MERGED][DIM];
  /// Of each query, its head among those of all rows.
  __shared__ uint32_t query_heads[QUERIES];
  /// Of each lane's own query the first key that it sees, for which there is no register.
  __shared__ uint32_t first_keys[32 * WARPS];

  uint32_t lane = threadIdx.x & 31, warp = uniform(threadIdx.x / 32), kv_head = blockIdx.y, group = heads / kv_heads;
  uint32_t first_dim = lane % LANES * DIMS;
  float *weights = weights_of_warps[warp];
  QueryTile tile = tiles[blockIdx.x];
  Segment segment = segments[tile.segment];
  uint32_t queries = min(uint32_t(QUERIES), segment.rows * group - tile.first);
  // The lane's own query, for which it has scores.
  bool has_query = lane % QUERIES < queries;
  uint32_t own_query = tile.first + lane % QUERIES, own_row = own_query / group;
  uint32_t own_head = (segment.first_row + own_row) * heads + kv_head * group + own_query % group;
  first_keys[threadIdx.x] = has_query ? first_seen[segment.first_row + own_row] : 0;
  uint32_t sees = has_query ? min(segment.context + visible[segment.first_row + own_row], tile.end_key) : 0;
  if (threadIdx.x < QUERIES)
    query_heads[threadIdx.x] = has_query ? own_head : NO_QUERY;
  // Where no query sees any, the first one is read, and not used.
  uint32_t keys = max(sees, 1u);
#pragma unroll
  for (int mask = 1; mask < QUERIES; mask *= 2)
    keys = max(keys, __shfl_xor_sync(FULL_WARP, keys, mask));
  keys = uniform(keys);

  // Behind the last key it is read again, and not used.
  auto place_of = [&](uint32_t key) {
    return place_of_key(segment, context, min(key, keys - 1));
  };
  // Of the i-th key of the warp's round that begins at `first_key`.
  auto key_at = [&](uint32_t first_key, uint32_t i) { return first_key + i / KEYS * Cut::STRIDE + i % KEYS; };
  // Of what a lane has in a turn, the key's number in the round.
  auto of_turn = [&](uint32_t turn) { return turn / TURNS * KEYS + lane / LANES * TURNS + turn % TURNS; };
  uint32_t offset = kv_head * DIM + first_dim;
  auto load = [&](Round<T> round, uint32_t turn) {
    Part<T, DIMS> part;
    uint32_t place = __shfl_sync(FULL_WARP, round.places, of_turn(turn));
    part.load((place & OWN ? round.own : round.pool) + uint64_t(place & ~OWN) * (kv_heads * DIM));
    return part;
  };

  uint32_t first_key = tile.first_key + warp * KEYS;
  uint32_t places = place_of(key_at(first_key, lane));
  Round<T> keys_of_round = {k + offset, pool_keys + offset, places};
  Round<T> values_of_round = {v + offset, pool_values + offset, places};
  Part<T, DIMS> ring[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; ++i)
    ring[i] = load(keys_of_round, i);
  // The i-th part of a period, in whose place the one AHEAD of it is asked for: of `now`, or after its end of `then`.
  auto take = [&](int i, uint32_t first, uint32_t turns, Round<T> now, Round<T> then) {
    Part<T, DIMS> part = ring[i % AHEAD];
    bool last = first + PERIOD == turns;
    if (i + AHEAD < PERIOD)
      ring[i % AHEAD] = load(now, first + i + AHEAD);
    else
      ring[i % AHEAD] = load(either(last, then, now), (last ? 0 : first + PERIOD) + i + AHEAD - PERIOD);
    return part;
  };

  float query[QUERIES][DIMS], result[QUERIES][DIMS];
#pragma unroll
  for (int r = 0; r < QUERIES; ++r) {
    Part<T, DIMS> part = {};
    uint32_t head = __shfl_sync(FULL_WARP, own_head, r);
    if (uint32_t(r) < queries)
      part.load(q + uint64_t(head) * DIM + first_dim);
    part.widened(query[r]);
#pragma unroll
    for (int d = 0; d < DIMS; ++d) {
      query[r][d] *= scale;
      result[r][d] = 0;
    }
  }
  SoftMax soft_max = {-INFINITY, 0, 0};
  uint32_t words = (segment.rows + 31) / 32;

  for (; first_key < keys; first_key += QUERIES * Cut::STRIDE) {
    uint32_t passes = min(uint32_t(QUERIES), (keys - first_key + Cut::STRIDE - 1) / Cut::STRIDE);
    // Whole periods: what is behind the last key is read again, and not used.
    uint32_t turns = (passes * TURNS + PERIOD - 1) / PERIOD * PERIOD;
    uint32_t next_places = place_of(key_at(first_key + QUERIES * Cut::STRIDE, lane));

#pragma unroll 1
    for (uint32_t first = 0; first < turns; first += PERIOD) {
#pragma unroll
      for (int i = 0; i < PERIOD; i += TURNS) {
        float products[LANES];
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) {
          float key[DIMS];
          take(i + turn, first, turns, keys_of_round, values_of_round).widened(key);
#pragma unroll
          for (int r = 0; r < QUERIES; ++r) {
            float sum = 0;
#pragma unroll
            for (int d = 0; d < DIMS; ++d)
              sum += query[r][d] * key[d];
            products[turn * QUERIES + r] = sum;
          }
        }
        weights[(first + i) / TURNS * 32 + lane] = sum_of_lane(products);
      }
    }

    float score[QUERIES], top = -INFINITY;
    uint32_t sees_from = first_keys[threadIdx.x];
#pragma unroll
    for (int pass = 0; pass < QUERIES; ++pass) {
      uint32_t key = first_key + pass * Cut::STRIDE + lane / QUERIES;
      bool may = key >= sees_from && key < sees;
      if (may && segment.allowed != ALL && key >= segment.context) {
        uint32_t other = key - segment.context;
        may = allowed[segment.allowed + own_row * words + other / 32] >> other % 32 & 1;
      }
      soft_max.seen |= may;
      score[pass] = may ? weights[pass * 32 + lane] : -INFINITY;
      top = fmaxf(top, score[pass]);
    }
#pragma unroll
    for (int mask = QUERIES; mask < 32; mask *= 2)
      top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, mask));
    float next = fmaxf(soft_max.largest, top);
    // Where nothing was seen yet, there is nothing to scale.
    float shrink = next > -INFINITY ? __expf(soft_max.largest - next) : 1.0f;
    soft_max.largest = next;
    soft_max.sum *= shrink;
#pragma unroll
    for (int pass = 0; pass < QUERIES; ++pass) {
      // The maximum passes over NaN; the sum does not.
      float weight = next > -INFINITY || score[pass] != score[pass] ? __expf(score[pass] - next) : 0.0f;
      soft_max.sum += weight;
      weights[pass * 32 + lane] = weight;
    }
#pragma unroll
    for (int r = 0; r < QUERIES; ++r) {
      float of_query = __shfl_sync(FULL_WARP, shrink, r);
#pragma unroll
      for (int d = 0; d < DIMS; ++d)
        result[r][d] *= of_query;
    }
    __syncwarp();

    keys_of_round.places = next_places;
#pragma unroll 1
    for (uint32_t first = 0; first < turns; first += PERIOD) {
#pragma unroll
      for (int i = 0; i < PERIOD; ++i) {
        float value[DIMS], weight[QUERIES];
        take(i, first, turns, values_of_round, keys_of_round).widened(value);
        auto of_key = reinterpret_cast<const Four *>(weights + of_turn(first + i) * QUERIES);
#pragma unroll
        for (int r = 0; r < QUERIES; ++r)
          weight[r] = of_key[r / 4].numbers[r % 4];
#pragma unroll
        for (int r = 0; r < QUERIES; ++r) {
#pragma unroll
          for (int d = 0; d < DIMS; ++d)
            result[r][d] += weight[r] * value[d];
        }
      }
    }
    values_of_round.places = next_places;
    __syncwarp();
  }
#pragma unroll
  for (int mask = QUERIES; mask < 32; mask *= 2) {
    soft_max.sum += __shfl_xor_sync(FULL_WARP, soft_max.sum, mask);
    soft_max.seen |= __shfl_xor_sync(FULL_WARP, soft_max.seen, mask);
  }
  if (lane < QUERIES)
    soft_maxes[warp][lane] = soft_max;
#pragma unroll
  for (int first = 0; first < QUERIES; first += MERGED) {
#pragma unroll
    for (int r = 0; r < MERGED; ++r) {
#pragma unroll
      for (int d = 0; d < DIMS; ++d) {
#pragma unroll
        for (int mask = LANES; mask < 32; mask *= 2)
          result[first + r][d] += __shfl_xor_sync(FULL_WARP, result[first + r][d], mask);
      }
#pragma unroll
      for (int d = 0; d < DIMS; d += 4) {
        if (lane < LANES)
          *reinterpret_cast<Four *>(&parts[warp][r][first_dim + d]) = {
              {result[first + r][d], result[first + r][d + 1], result[first + r][d + 2], result[first + r][d + 3]}};
      }
    }
    __syncthreads();
    // Read again: while keys were multiplied there was no register for it.
    uint32_t place = tiles[blockIdx.x].partial;
    for (uint32_t i = 4 * threadIdx.x; i < MERGED * DIM; i += 4 * blockDim.x) {
      uint32_t r = i / DIM, dim = i % DIM, head = query_heads[first + r];
      if (head == NO_QUERY)
        continue;
      auto [soft_max, numbers] = merged(soft_maxes, parts, first + r, r, dim);
      if (place != WHOLE) {
        float *partial = partial_at(partials, place + first + r, kv_heads, kv_head, DIM);
        *reinterpret_cast<Four *>(partial + dim) = numbers;
        if (dim == 0)
          *reinterpret_cast<PartialSoftMax *>(partial + DIM) = {soft_max.largest, soft_max.sum, soft_max.seen, 0};
        continue;
      }
      // A query that sees nothing gets zeros; one whose scores are all -infinity, or one of them NaN, gets NaN.
      float share = 1.0f / soft_max.sum;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        numbers.numbers[j] = soft_max.seen ? numbers.numbers[j] * share : 0.0f;
      store4_aligned(out + uint64_t(head) * DIM + dim, numbers.numbers);
    }
    if (first + MERGED < QUERIES)
      __syncthreads();
  }
}

#define RAGGED_ATTENTION(name, type, dim)                                                                          \
  extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                         \
      name(const type *q, const type *k, const type *v, const type *pool_keys, const type *pool_values,            \
           const Segment *segments, const QueryTile *tiles, const uint32_t *context,                               \
           const uint32_t *first_seen, const uint32_t *visible, const uint32_t *allowed, uint32_t heads,         \
           uint32_t kv_heads, float scale, type *out, float *partials) {                                           \
    ragged_attention<type, dim>(q, k, v, pool_keys, pool_values, segments, tiles, context, first_seen, visible,  \
                                allowed, heads, kv_heads, scale, out, partials);                                   \
  }

RAGGED_ATTENTION(ragged_attention_f32_64, float, 64)
RAGGED_ATTENTION(ragged_attention_f32_128, float, 128)
RAGGED_ATTENTION(ragged_attention_f32_256, float, 256)
RAGGED_ATTENTION(ragged_attention_f32_512, float, 512)
RAGGED_ATTENTION(ragged_attention_bf16_64, Bf16, 64)
RAGGED_ATTENTION(ragged_attention_bf16_128, Bf16, 128)
RAGGED_ATTENTION(ragged_attention_bf16_256, Bf16, 256)
RAGGED_ATTENTION(ragged_attention_bf16_512, Bf16, 512)
RAGGED_ATTENTION(ragged_attention_f16_64, F16, 64)
RAGGED_ATTENTION(ragged_attention_f16_128, F16, 128)
RAGGED_ATTENTION(ragged_attention_f16_256, F16, 256)
RAGGED_ATTENTION(ragged_attention_f16_512, F16, 512)
