// What attention over a ragged batch is told of it: segments, and where their keys are.
#pragma once

#include "../common.cuh"

/// No bits: `visible` says all.
#define ALL 0xffffffffu

struct Segment {
  /// Its rows in the batch.
  uint32_t first_row, rows;
  /// Its range of the list of pool slots.
  uint32_t first_context, context;
  /// First word of its bits [rows, ⌈rows / 32⌉], which row may attend to which; ALL if `visible` says all.
  uint32_t allowed;
};

/// Where a key is: a slot of the pool, or with this bit a row of the batch.
#define OWN 0x80000000u

/// Of a key of a segment, counted from the first one: its context, then its own rows.
__device__ __forceinline__ uint32_t place_of_key(const Segment &segment, const uint32_t *context, uint32_t key) {
  return key < segment.context ? context[segment.first_context + key]
                               : OWN | (segment.first_row + key - segment.context);
}
