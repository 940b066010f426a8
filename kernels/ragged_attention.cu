// Attention of a ragged batch's rows to their segment's cached slots and to the rows of the segment itself,
// without materialised scores. CPU twin: src/models/attention; equal within rounding.
//
// A block takes a few query rows of one segment and one query head, a warp a quarter of them. Keys come in
// tiles of 32, a lane each; the soft-max is kept online. A row's keys are added in the order context, own
// rows, in tiles counted from the first key: its result does not depend on what else is in the batch, nor on
// how many of its keys are cached.
#include "common.cuh"

#define WARPS 4
#define TILE 32
#define ALL 0xffffffffu

struct Segment {
  /// Its rows in the batch.
  uint32_t first_row, rows;
  /// Its range of the list of pool slots.
  uint32_t first_context, context;
  /// First word of its bits [rows, ⌈rows / 32⌉], which row may attend to which; ALL if `visible` says all.
  uint32_t allowed;
};

/// Rows of a block: as many as shared memory has room for.
#define ROWS_OF_BLOCK(dim) ((dim) > 128 ? 8 : 16)

/// Dimensions of a tile of keys or values that are in shared memory at a time: as many as it has room for.
#define DIMS_OF_TILE(dim) ((dim) > 256 ? 128 : (dim))

/// ROWS_OF_BLOCK rows of a segment, or fewer at its end.
struct QueryTile {
  uint32_t segment, first;
};

/// The dimensions from `first_dim` on of the keys, or values, from `first_key` on.
template <class T, int DIM>
__device__ void load_tile(float (*to)[DIMS_OF_TILE(DIM) + 1], const T *own, const T *pool, const uint32_t *context,
                          Segment segment, uint32_t first_key, uint32_t keys, uint32_t kv_heads, uint32_t kv_head,
                          uint32_t first_dim) {
  constexpr int WIDTH = DIMS_OF_TILE(DIM);
  for (uint32_t i = threadIdx.x; i < TILE * WIDTH; i += blockDim.x) {
    uint32_t key = first_key + i / WIDTH, dim = first_dim + i % WIDTH;
    float value = 0;
    if (key < keys) {
      bool cached = key < segment.context;
      const T *from = cached ? pool : own;
      uint64_t place = cached ? context[segment.first_context + key] : segment.first_row + key - segment.context;
      value = widen(from[(place * kv_heads + kv_head) * DIM + dim]);
    }
    to[i / WIDTH][i % WIDTH] = value;
  }
}

template <class T, int DIM>
__device__ void ragged_attention(const T *q, const T *k, const T *v, const T *pool_keys, const T *pool_values,
                                 const Segment *segments, const QueryTile *tiles, const uint32_t *context,
                                 const uint32_t *visible, const uint32_t *allowed, uint32_t heads, uint32_t kv_heads,
                                 float scale, T *out) {
  constexpr int ROWS = ROWS_OF_BLOCK(DIM), OWN = ROWS / WARPS, PART = DIM / 32, WIDTH = DIMS_OF_TILE(DIM);
  __shared__ float queries[ROWS][DIM];
  // Padded, so that the lanes read a column of keys without conflicts.
  __shared__ float tile[TILE][WIDTH + 1];
  uint32_t lane = threadIdx.x & 31, warp = threadIdx.x / 32, head = blockIdx.y;
  uint32_t kv_head = head / (heads / kv_heads);
  QueryTile query_tile = tiles[blockIdx.x];
  Segment segment = segments[query_tile.segment];
  uint32_t rows = min(uint32_t(ROWS), segment.rows - query_tile.first);
  uint32_t first_row = segment.first_row + query_tile.first;

  for (uint32_t i = threadIdx.x; i < ROWS * DIM; i += blockDim.x) {
    uint32_t row = i / DIM;
    queries[row][i % DIM] =
        row < rows ? widen(q[(uint64_t(first_row + row) * heads + head) * DIM + i % DIM]) * scale : 0.0f;
  }
  uint32_t sees[OWN], most = 0;
  for (uint32_t row = 0; row < rows; ++row)
    most = max(most, visible[first_row + row]);
  float largest[OWN], sum[OWN], result[OWN][PART];
  bool seen[OWN];
#pragma unroll
  for (int r = 0; r < OWN; ++r) {
    uint32_t row = warp * OWN + r;
    sees[r] = row < rows ? segment.context + visible[first_row + row] : 0;
    largest[r] = -INFINITY;
    sum[r] = 0;
    seen[r] = false;
#pragma unroll
    for (int i = 0; i < PART; ++i)
      result[r][i] = 0;
  }
  uint32_t keys = segment.context + most;
  uint32_t words = (segment.rows + 31) / 32;
  __syncthreads();

  for (uint32_t first_key = 0; first_key < keys; first_key += TILE) {
    float score[OWN];
#pragma unroll
    for (int r = 0; r < OWN; ++r)
      score[r] = 0;
    for (int first_dim = 0; first_dim < DIM; first_dim += WIDTH) {
      load_tile<T, DIM>(tile, k, pool_keys, context, segment, first_key, keys, kv_heads, kv_head, first_dim);
      __syncthreads();
      for (int d = 0; d < WIDTH; ++d) {
        float key = tile[lane][d];
#pragma unroll
        for (int r = 0; r < OWN; ++r)
          score[r] += queries[warp * OWN + r][first_dim + d] * key;
      }
      __syncthreads();
    }
    uint32_t key = first_key + lane;
#pragma unroll
    for (int r = 0; r < OWN; ++r) {
      bool may = key < sees[r];
      if (may && segment.allowed != ALL && key >= segment.context) {
        uint32_t row = query_tile.first + warp * OWN + r, other = key - segment.context;
        may = allowed[segment.allowed + row * words + other / 32] >> other % 32 & 1;
      }
      seen[r] |= may;
      float masked = may ? score[r] : -INFINITY, top = masked;
      for (int mask = 16; mask > 0; mask /= 2)
        top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, mask));
      float next = fmaxf(largest[r], top);
      // Where nothing was seen yet, there is nothing to scale.
      float shrink = next > -INFINITY ? __expf(largest[r] - next) : 1.0f;
      // The maximum passes over NaN; the sum does not.
      score[r] = next > -INFINITY || masked != masked ? __expf(masked - next) : 0.0f;
      float of_tile = score[r];
      for (int mask = 16; mask > 0; mask /= 2)
        of_tile += __shfl_xor_sync(FULL_WARP, of_tile, mask);
      sum[r] = sum[r] * shrink + of_tile;
      largest[r] = next;
#pragma unroll
      for (int i = 0; i < PART; ++i)
        result[r][i] *= shrink;
    }
#pragma unroll
    for (int first_dim = 0; first_dim < DIM; first_dim += WIDTH) {
      load_tile<T, DIM>(tile, v, pool_values, context, segment, first_key, keys, kv_heads, kv_head, first_dim);
      __syncthreads();
      for (int j = 0; j < TILE; ++j) {
#pragma unroll
        for (int r = 0; r < OWN; ++r) {
          float weight = __shfl_sync(FULL_WARP, score[r], j);
#pragma unroll
          for (int i = 0; i < WIDTH / 32; ++i)
            result[r][first_dim / 32 + i] += weight * tile[j][i * 32 + lane];
        }
      }
      __syncthreads();
    }
  }
#pragma unroll
  for (int r = 0; r < OWN; ++r) {
    uint32_t row = warp * OWN + r;
    for (int mask = 16; mask > 0; mask /= 2)
      seen[r] |= __shfl_xor_sync(FULL_WARP, int(seen[r]), mask) != 0;
    // A row that sees nothing gets zeros; one whose scores are all -infinity, or one of them NaN, gets NaN.
    float by_sum = seen[r] ? 1.0f / sum[r] : 0.0f;
    if (row < rows) {
#pragma unroll
      for (int i = 0; i < PART; ++i)
        out[(uint64_t(first_row + row) * heads + head) * DIM + i * 32 + lane] = narrow<T>(result[r][i] * by_sum);
    }
  }
}

#define RAGGED_ATTENTION(name, type, dim)                                                                          \
  extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                         \
      name(const type *q, const type *k, const type *v, const type *pool_keys, const type *pool_values,            \
           const Segment *segments, const QueryTile *tiles, const uint32_t *context, const uint32_t *visible,      \
           const uint32_t *allowed, uint32_t heads, uint32_t kv_heads, float scale, type *out) {                   \
    ragged_attention<type, dim>(q, k, v, pool_keys, pool_values, segments, tiles, context, visible, allowed,       \
                                heads, kv_heads, scale, out);                                                      \
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
