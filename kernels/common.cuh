// What every kernel includes: CUDA's own definitions or the host shim's, element types.
#pragma once

#if defined(__CUDACC__)
#include <cstdint>
#else
#include "host/cuda.h"
#endif

#define FULL_WARP 0xffffffffu

// CUDA's headers for half precision are large and no host compiler has them: a number is held as its bits.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

__device__ __forceinline__ float widen(float x) { return x; }

__device__ __forceinline__ float widen(Bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }

__device__ __forceinline__ float widen(F16 x) {
#if defined(__CUDACC__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
#else
  uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  if (magnitude >= 0x7c00) // ±∞ and NaN
    return __uint_as_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // Shifted by 2^-112, which scales subnormal numbers too.
  float wide = __uint_as_float(magnitude << 13) * 0x1p112f;
  return __uint_as_float(sign | __float_as_uint(wide));
#endif
}

/// Rounds to nearest, ties to even.
template <class T> __device__ __forceinline__ T narrow(float x);

template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }

template <> __device__ __forceinline__ Bf16 narrow<Bf16>(float x) {
  uint32_t bits = __float_as_uint(x);
  if (x != x)
    return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <> __device__ __forceinline__ F16 narrow<F16>(float x) {
#if defined(__CUDACC__)
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return {bits};
#else
  uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000)
    return {uint16_t(sign | 0x7fff)};
  if (magnitude >= 0x477ff000) // rounds to 2^16 or more
    return {uint16_t(sign | 0x7c00)};
  if (magnitude < 0x38800000) { // subnormal in half precision: the sum's last bit is worth 2^-24
    uint32_t sum = __float_as_uint(__uint_as_float(magnitude) + 0.5f);
    return {uint16_t(sign | (sum - 0x3f000000))};
  }
  magnitude += 0xfff + (magnitude >> 13 & 1);
  return {uint16_t(sign | (magnitude - 0x38000000) >> 13)};
#endif
}
