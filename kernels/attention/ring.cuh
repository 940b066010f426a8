// Tiles of keys and values on their way through shared memory.
#pragma once

#include "../tensor_core.cuh"
#include "cut.cuh"
#include "segment.cuh"

namespace long_attention {

/// Where a head's keys are, and its values.
template <class T> struct Sources {
  const T *own_keys, *own_values, *pool_keys, *pool_values;
  /// Numbers from a row, or slot, to the next.
  uint32_t stride;
};

/// Tiles in their order: the keys of the first, its values, the keys of the second and so on. Shared memory holds STAGES of
/// them. All threads of a block call the same functions in the same order.
///
/// Of a row of a tile the parts of 16 bytes, chunks, are swapped within each 128 bytes: chunk c is where c ^ row % 8 would
/// be, so that eight rows have the same chunk in all banks.
template <class T, int DIM> class Ring {
  using Cut = long_attention::Cut<DIM>;
  static constexpr int TILE = Cut::KEYS * DIM;

  T *stages;
  const Segment &segment;
  const uint32_t *context;
  Sources<T> sources;
  /// Keys behind the last one that is copied.
  uint32_t keys;
  /// First key of the tile that is asked for next, and the stage for it.
  uint32_t first_key, stage = 0;
  /// Where the keys are that the thread copies, of this tile and of the one after it. Behind the last key it is there again.
  uint32_t places[Cut::COPIED] = {}, next_places[Cut::COPIED] = {};
  /// The stage that arrives next.
  uint32_t arriving = 0;

  /// The thread's first key among those of a tile, and its first chunk of a key.
  __device__ __forceinline__ uint32_t own_key() const { return threadIdx.x / Cut::COPIERS; }
  __device__ __forceinline__ uint32_t own_chunk() const { return threadIdx.x % Cut::COPIERS; }

  __device__ __forceinline__ void find(uint32_t (&places)[Cut::COPIED], uint32_t first) const {
#pragma unroll
    for (int i = 0; i < Cut::COPIED; ++i)
      places[i] = place_of_key(segment, context, min(first + own_key() + i * Cut::BESIDE, keys - 1));
  }

  __device__ __forceinline__ void copy(const T *own, const T *pool) {
    static_assert(Cut::BESIDE % 8 == 0, "the thread's keys are swapped alike");
    uint32_t swap = own_key() % 8;
    T *tile = stages + stage * TILE + own_key() * DIM + (own_chunk() ^ swap) * 8;
#pragma unroll
    for (int i = 0; i < Cut::COPIED; ++i) {
      bool is_there = first_key + own_key() + i * Cut::BESIDE < keys;
      const T *key = (places[i] & OWN ? own : pool) + uint64_t(places[i] & ~OWN) * sources.stride + own_chunk() * 8;
#pragma unroll
      for (int chunk = 0; chunk < DIM / 8; chunk += Cut::COPIERS)
        copy_16_bytes(tile + i * Cut::BESIDE * DIM + chunk * 8, key + chunk * 8, is_there);
    }
    stage = stage + 1 == Cut::STAGES ? 0 : stage + 1;
  }

  /// Asks for keys, or for the values of the keys that were asked for last.
  template <bool OF_KEYS> __device__ __forceinline__ void ask() {
    if (first_key < keys) {
      if constexpr (OF_KEYS) {
        copy(sources.own_keys, sources.pool_keys);
        find(next_places, first_key + Cut::KEYS);
      } else {
        copy(sources.own_values, sources.pool_values);
        first_key += Cut::KEYS;
#pragma unroll
        for (int i = 0; i < Cut::COPIED; ++i)
          places[i] = next_places[i];
      }
    }
    end_copy_group();
  }

  /// Asks for what comes so many tiles behind the keys of the first, and for all before it.
  template <int BEHIND> __device__ __forceinline__ void begin() {
    if constexpr (BEHIND > 0)
      begin<BEHIND - 1>();
    ask<BEHIND % 2 == 0>();
  }

public:
  /// Asks for the first tiles of the keys from `first_key` on, the beginning of a tile, to those before `keys`.
  __device__ __forceinline__ Ring(T *stages, const Segment &segment, const uint32_t *context, Sources<T> sources,
                                  uint32_t first_key, uint32_t keys)
      : stages(stages), segment(segment), context(context), sources(sources), keys(keys), first_key(first_key) {
    if (first_key < keys)
      find(places, first_key);
    begin<Cut::STAGES - 2>();
  }

  /// The next tile, keys if OF_KEYS and values otherwise, in turns. Whoever reads the one before it has done so.
  template <bool OF_KEYS> __device__ __forceinline__ const T *next() {
    wait_for_copies<Cut::STAGES - 2>();
    __syncthreads();
    ask<OF_KEYS == (Cut::STAGES % 2 == 1)>();
    const T *tile = stages + arriving * TILE;
    arriving = arriving + 1 == Cut::STAGES ? 0 : arriving + 1;
    return tile;
  }
};

} // namespace long_attention
