// How the work of long_attention.cu is cut.
#pragma once

#include "../common.cuh"

namespace long_attention {

/// For heads of DIM numbers in half precision.
template <int DIM> struct Cut {
  /// Numbers of a query, and of its result, that a warp has: 32 and 64 registers of a lane.
  static constexpr int DIMS = DIM < 128 ? DIM : 128;
  /// Warps that share queries.
  static constexpr int SHARERS = DIM / DIMS;
  static constexpr int WARPS = SHARERS == 1 ? 4 : 8;
  /// Queries of a block, 16 of a warp.
  static constexpr int QUERIES = 16 * WARPS / SHARERS;
  /// Keys of a tile.
  static constexpr int KEYS = DIM <= 128 ? 64 : DIM == 256 ? 32 : 16;
  /// Tiles of keys or values that shared memory holds: with what sharers exchange no more than 48 KiB.
  static constexpr int STAGES = DIM == 64 ? 4 : DIM == 128 ? 3 : 2;
  /// Threads that copy a key, 16 bytes each at a time, side by side.
  static constexpr int COPIERS = DIM == 512 ? 16 : 8;
  /// Keys that are copied side by side, and those of a tile that a thread copies one after the other.
  static constexpr int BESIDE = 32 * WARPS / COPIERS;
  static constexpr int COPIED = KEYS / BESIDE;
};

} // namespace long_attention
