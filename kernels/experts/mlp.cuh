// The experts' products, for few rows an expert: bound by the weights' way from memory.
//
// A warp takes four rows of weights and a tile of rows of x. Lanes go along the width, eight numbers each; the next
// weights are on their way while the present ones are multiplied. The 32 sums of a warp end one in each lane. All of a
// row's sums are added in an order that depends neither on its place in a tile nor on the tile's other rows.
#pragma once

#include "../activation.cuh"
#include "../packed.cuh"
#include "../reduce.cuh"
#include "group.cuh"

/// Rows of weights of a warp: with ROWS_OF_TILE as many sums as lanes.
#define WEIGHT_ROWS 4
static_assert(ROWS_OF_TILE * WEIGHT_ROWS == 32, "a sum a lane");

/// Where an expert's weights are: gate and up [intermediate, hidden], down [hidden, intermediate].
template <class T> struct ExpertWeights {
  const T *gate, *up, *down;
};

/// Four rows of weights: even, odd, and those `stride` numbers after them.
template <class T> struct WeightRows {
  const T *even, *odd;
  uint32_t stride;

  __device__ __forceinline__ Packed<T> packed(int row, uint32_t at) const {
    return load_packed((row % 2 ? odd : even) + row / 2 * stride + at);
  }
};

/// x[places[r]] · weights[i] for r < rows, in lane r · WEIGHT_ROWS + i.
template <class T>
__device__ __forceinline__ float products(WeightRows<T> weights, const T *x, const uint32_t (&places)[ROWS_OF_TILE],
                                          uint32_t rows, uint32_t width) {
  float sums[32];
#pragma unroll
  for (int i = 0; i < 32; ++i)
    sums[i] = 0;
  uint32_t at = (threadIdx.x & 31) * 8;
  Packed<T> next[WEIGHT_ROWS] = {};
  if (at < width) {
#pragma unroll
    for (int i = 0; i < WEIGHT_ROWS; ++i)
      next[i] = weights.packed(i, at);
  }
  for (; at < width; at += 256) {
    float weight[WEIGHT_ROWS][8];
#pragma unroll
    for (int i = 0; i < WEIGHT_ROWS; ++i) {
      widen(next[i], weight[i]);
      if (at + 256 < width)
        next[i] = weights.packed(i, at + 256);
    }
#pragma unroll
    for (uint32_t r = 0; r < ROWS_OF_TILE; ++r) {
      if (r < rows) { // the same in the whole warp
        float number[8];
        widen(load_packed(x + uint64_t(places[r]) * width + at), number);
#pragma unroll
        for (int i = 0; i < WEIGHT_ROWS; ++i) {
#pragma unroll
          for (int j = 0; j < 8; ++j)
            sums[r * WEIGHT_ROWS + i] += weight[i][j] * number[j];
        }
      }
    }
  }
  return sum_of_lane(sums);
}

/// activations[i] = activation(gate(x)) ⊙ up(x) for the i-th entry of `order`. A block a tile and a part of the columns,
/// a warp two columns.
template <class T>
__device__ void gate_up(const T *x, const ExpertWeights<T> *experts, const ExpertTile *tiles, const uint32_t *order,
                        uint32_t per_row, uint32_t hidden, uint32_t intermediate, uint32_t activation, T *activations) {
  ExpertTile tile = tiles[blockIdx.x];
  uint32_t lane = threadIdx.x & 31;
  uint32_t column = 2 * (blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32);
  if (tile.rows == 0 || column >= intermediate) // the whole warp
    return;
  uint32_t places[ROWS_OF_TILE];
#pragma unroll
  for (uint32_t r = 0; r < ROWS_OF_TILE; ++r)
    places[r] = order[tile.first + min(r, tile.rows - 1)] / per_row;
  const T *gate = experts[tile.expert].gate + uint64_t(column) * hidden;
  const T *up = experts[tile.expert].up + uint64_t(column) * hidden;
  float mine = products<T>({gate, up, hidden}, x, places, tile.rows, hidden);
  float beside = __shfl_xor_sync(FULL_WARP, mine, 1);
  uint32_t row = lane / WEIGHT_ROWS;
  if (row < tile.rows && lane % 2 == 0)
    activations[uint64_t(tile.first + row) * intermediate + column + lane % WEIGHT_ROWS / 2] =
        narrow<T>(activated(activation, mine) * beside);
}

/// outputs[order[i]] = down(activations[i]). A block a tile and a part of the columns, a warp four columns.
template <class T>
__device__ void down(const T *activations, const ExpertWeights<T> *experts, const ExpertTile *tiles,
                     const uint32_t *order, uint32_t hidden, uint32_t intermediate, float *outputs) {
  ExpertTile tile = tiles[blockIdx.x];
  uint32_t lane = threadIdx.x & 31;
  uint32_t column = WEIGHT_ROWS * (blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32);
  if (tile.rows == 0 || column >= hidden) // the whole warp
    return;
  uint32_t places[ROWS_OF_TILE];
#pragma unroll
  for (uint32_t r = 0; r < ROWS_OF_TILE; ++r)
    places[r] = tile.first + min(r, tile.rows - 1);
  const T *first = experts[tile.expert].down + uint64_t(column) * intermediate;
  WeightRows<T> weights = {first, first + intermediate, 2 * intermediate};
  float mine = products<T>(weights, activations, places, tile.rows, intermediate);
  uint32_t row = lane / WEIGHT_ROWS;
  if (row < tile.rows)
    outputs[uint64_t(order[tile.first + row]) * hidden + column + lane % WEIGHT_ROWS] = mine;
}
