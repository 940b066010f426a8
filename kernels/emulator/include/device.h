// What candle's kernels use of CUDA C++ beyond what the project's own do.
#pragma once

#include <cassert>
#include <cstdlib>

#include "../../host/cuda.h"

inline unsigned long long atomicMax(unsigned long long *target, long long value) {
  return atomicMax(target, static_cast<unsigned long long>(value));
}
template <class T> T atomicMin(T *target, T value) {
  T old = *target;
  *target = old < value ? old : value;
  return old;
}
inline unsigned long long atomicMin(unsigned long long *target, long long value) {
  return atomicMin(target, static_cast<unsigned long long>(value));
}
template <class T> T atomicCAS(T *target, T compared, T value) {
  T old = *target;
  if (old == compared)
    *target = value;
  return old;
}

template <class T> T __shfl_xor_sync(unsigned warp, T value, int mask, int width) {
  static_assert(sizeof(T) <= 8);
  return width == 32 ? __shfl_xor_sync(warp, value, mask) : throw "only whole warps shuffle";
}

inline long long __double_as_longlong(double x) { return host::from_word<long long>(host::to_word(x)); }
inline double __longlong_as_double(long long x) { return host::from_word<double>(host::to_word(x)); }
inline double normcdf(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }
inline float normcdff(float x) { return float(normcdf(x)); }

/// c and the products of the four signed bytes of a and b.
inline int __dp4a(int a, int b, int c) {
  for (int byte = 0; byte < 4; ++byte)
    c += int8_t(a >> 8 * byte) * int8_t(b >> 8 * byte);
  return c;
}
/// Differences of four signed bytes, saturated.
inline unsigned __vsubss4(unsigned a, unsigned b) {
  unsigned differences = 0;
  for (int byte = 0; byte < 4; ++byte) {
    int difference = int8_t(a >> 8 * byte) - int8_t(b >> 8 * byte);
    differences |= unsigned(uint8_t(min(max(difference, -128), 127))) << 8 * byte;
  }
  return differences;
}
[[noreturn]] inline void __trap() { abort(); }

// Named by kernels for weights in other blocks than Q8_0's, none of which is launched.
unsigned __vsub4(unsigned, unsigned);
unsigned __vcmpne4(unsigned, unsigned);
unsigned __byte_perm(unsigned, unsigned, unsigned);
template <class T> T __shfl_sync(unsigned, T, int, int);
template <class T> T __reduce_add_sync(unsigned, T);
template <class T> T __reduce_max_sync(unsigned, T);

struct char4 {
  signed char x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
