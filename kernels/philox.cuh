// Philox4x32-10. CPU twin: src/sampling/philox.rs, which names the paper; equal bit for bit.
#pragma once

#include "common.cuh"

/// What a draw is for; as `Stream` of the twin.
enum Stream : uint32_t { STREAM_GUMBEL = 0, STREAM_SCORE = 1, STREAM_CORRUPT = 9 };

struct Words {
  uint32_t word[4];
};

/// The draws of one (seed, step, slot) in one stream.
struct Draws {
  uint64_t seed;
  uint32_t step, slot, stream;

  /// The four words with indices 4·`quad` to 4·`quad` + 3.
  __device__ __forceinline__ Words quad(uint32_t quad) const {
    uint32_t counter[4] = {quad, slot, step, stream};
    uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
#pragma unroll
    for (int round = 0; round < 10; ++round) {
      uint32_t low[2] = {0xD2511F53u * counter[0], 0xCD9E8D57u * counter[2]};
      uint32_t high[2] = {__umulhi(0xD2511F53u, counter[0]), __umulhi(0xCD9E8D57u, counter[2])};
      counter[0] = high[1] ^ counter[1] ^ key[0];
      counter[1] = low[1];
      counter[2] = high[0] ^ counter[3] ^ key[1];
      counter[3] = low[0];
      key[0] += 0x9E3779B9u;
      key[1] += 0xBB67AE85u;
    }
    return {{counter[0], counter[1], counter[2], counter[3]}};
  }

  /// A uniform number in [0, 1).
  __device__ __forceinline__ float uniform() const { return float(quad(0).word[0] >> 8) * 0x1p-24f; }
};
