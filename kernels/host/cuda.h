// The part of CUDA C++ that the kernels use, for a host compiler: a block's threads are fibers that take
// turns at barriers and shuffles. Blocks run one after the other, so plain operations serve as atomics.
//
// Stricter than a GPU: a barrier that some thread of the block or warp does not reach ends the process with
// a message, and the order in which threads run can be reversed, so that a missing barrier shows.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <algorithm>

#ifndef __global__ // as a mark by which kernels are found
#define __global__
#endif
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
// One block at a time on each thread of the host.
#define __shared__ static thread_local

namespace host {

struct Dim3 {
  unsigned x, y, z;
};

struct Thread {
  Dim3 index;
  unsigned lane, warp;
};

extern thread_local Dim3 grid, block, block_index;
extern thread_local const Thread *thread;

void block_barrier();
/// Gives every lane of the warp every lane's word, in lane order.
const uint64_t *exchange(uint64_t word);
/// Ends the process, which says what is wrong.
[[noreturn]] void fail(const char *what);

/// An asynchronous copy of 16 bytes, of zeros from nowhere.
struct Copy {
  void *to;
  const void *from;
};

/// To be done when the thread waits for it.
void ask_for_copy(Copy copy);
/// What the thread has asked for since the last group is one.
void end_copy_group();
/// Does what the thread has asked for, but for its last `left` groups.
void wait_for_copies(unsigned left);

template <class T> uint64_t to_word(T value) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 64 bits");
  uint64_t word = 0;
  memcpy(&word, &value, sizeof(T));
  return word;
}

template <class T> T from_word(uint64_t word) {
  T value;
  memcpy(&value, &word, sizeof(T));
  return value;
}

} // namespace host

#define threadIdx (host::thread->index)
#define blockIdx (host::block_index)
#define blockDim (host::block)
#define gridDim (host::grid)

inline void __syncthreads() { host::block_barrier(); }
inline void __syncwarp(unsigned = ~0u) { host::exchange(0); }

template <class T> T __shfl_sync(unsigned, T value, int lane) {
  return host::from_word<T>(host::exchange(host::to_word(value))[lane & 31]);
}
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) {
  return host::from_word<T>(host::exchange(host::to_word(value))[(host::thread->lane ^ mask) & 31]);
}
template <class T> T __shfl_up_sync(unsigned, T value, unsigned delta) {
  const uint64_t *words = host::exchange(host::to_word(value));
  unsigned lane = host::thread->lane;
  return host::from_word<T>(words[lane >= delta ? lane - delta : lane]);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  const uint64_t *words = host::exchange(predicate != 0);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane)
    ballot |= unsigned(words[lane] != 0) << lane;
  return ballot;
}

template <class T> T atomicAdd(T *target, T value) {
  T old = *target;
  *target = old + value;
  return old;
}
template <class T> T atomicMax(T *target, T value) {
  T old = *target;
  *target = old > value ? old : value;
  return old;
}
template <class T> T atomicOr(T *target, T value) {
  T old = *target;
  *target = old | value;
  return old;
}

// Rounded operations that no compiler may fuse; the host library is built with -ffp-contract=off.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __ull2float_rn(unsigned long long x) { return float(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(int(x)); }
/// The lower word of `high`:`low` shifted right by `shift` modulo 32.
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline int __float_as_int(float x) { return host::from_word<int>(host::to_word(x)); }
inline unsigned __float_as_uint(float x) { return host::from_word<unsigned>(host::to_word(x)); }
inline float __int_as_float(int x) { return host::from_word<float>(host::to_word(x)); }
inline float __uint_as_float(unsigned x) { return host::from_word<float>(host::to_word(x)); }
using std::max;
using std::min;

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
