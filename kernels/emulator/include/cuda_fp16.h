// CUDA's half-precision numbers for a host compiler: what candle's kernels use of them. Every operation is the f32 one,
// rounded.
#pragma once

#include "number.h"

using __half = host::Number<F16>;
using half = __half;

inline __half __float2half(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline unsigned short __half_as_ushort(__half x) { return x.held.bits; }
inline __half __ushort_as_half(unsigned short bits) { return __half::of(F16{bits}); }
