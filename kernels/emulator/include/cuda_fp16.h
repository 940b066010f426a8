// CUDA's half-precision numbers for a host compiler: what candle's kernels use of them. Every operation is the f32 one,
// rounded.
#pragma once

#include "device.h"
#include "number.h"

using __half = host::Number<F16>;
using half = __half;

inline __half __float2half(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline unsigned short __half_as_ushort(__half x) { return x.held.bits; }
inline __half __ushort_as_half(unsigned short bits) { return __half::of(F16{bits}); }

/// Two at once.
struct half2 {
  half x, y;
};
inline half2 make_half2(half x, half y) { return {x, y}; }
inline float2 __half22float2(half2 x) { return {x.x, x.y}; }
inline half2 __hmul2(half2 a, half2 b) { return {a.x * b.x, a.y * b.y}; }
inline half2 operator*(half2 a, half2 b) { return __hmul2(a, b); }
inline half __low2half(half2 x) { return x.x; }
inline float __low2float(half2 x) { return x.x; }
