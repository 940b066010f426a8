// Rows by expert, in tiles that the MLPs take. A row's i-th expert is entry row · per_row + i.
//
// A warp an expert. Each block counts for itself, so that no block waits for another; what is added atomically are
// integers, whose sum does not depend on the order, and places come from the order of the entries.
#pragma once

#include "../reduce.cuh"
#include "route.cuh"

/// Rows of a tile, for each of which the MLPs keep sums in registers.
#define ROWS_OF_TILE 8

/// Entries order[first..first + rows] of an expert; no work if `rows` is 0.
struct ExpertTile {
  uint32_t expert, first, rows;
};

/// `order` becomes the entries by expert, those of one expert ascending, and `tiles` each expert's entries by
/// ROWS_OF_TILE, in its first places. There may be up to E + (entries − E) / ROWS_OF_TILE tiles, with E the lesser of
/// `experts` and `entries`; the rest of the `tile_count` places becomes tiles without work.
__device__ __forceinline__ void group(const uint32_t *chosen, uint32_t entries, uint32_t experts, uint32_t tile_count,
                                      uint32_t *order, ExpertTile *tiles) {
  __shared__ uint32_t counts[MOST_EXPERTS];
  for (uint32_t i = threadIdx.x; i < experts; i += blockDim.x)
    counts[i] = 0;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < entries; i += blockDim.x)
    atomicAdd(&counts[chosen[i]], 1u);
  __syncthreads();
  uint32_t lane = threadIdx.x & 31, expert = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (expert >= experts) // the whole warp
    return;
  auto tiles_of = [](uint32_t count) { return (count + ROWS_OF_TILE - 1) / ROWS_OF_TILE; };
  auto add = [](uint32_t a, uint32_t b) { return a + b; };
  uint32_t first = 0, tile = 0;
  for (uint32_t other = lane; other < expert; other += 32) {
    first += counts[other];
    tile += tiles_of(counts[other]);
  }
  first = warp_reduce(first, add);
  tile = warp_reduce(tile, add);
  uint32_t count = counts[expert], own = tiles_of(count);
  for (uint32_t i = lane; i < own; i += 32) {
    uint32_t before = i * ROWS_OF_TILE;
    tiles[tile + i] = {expert, first + before, min(uint32_t(ROWS_OF_TILE), count - before)};
  }
  if (expert + 1 == experts) {
    for (uint32_t i = tile + own + lane; i < tile_count; i += 32)
      tiles[i] = {0, 0, 0};
  }
  for (uint32_t begin = 0; begin < entries; begin += 32) {
    uint32_t entry = begin + lane;
    bool is_own = entry < entries && chosen[entry] == expert;
    uint32_t which = __ballot_sync(FULL_WARP, is_own);
    if (is_own)
      order[first + __popc(which & ((1u << lane) - 1))] = entry;
    first += __popc(which);
  }
}
