// exp, ln and Gumbel noise from single rounded operations, none of them fused, so that every device gets
// the same bits. CPU twin: src/sampling/exact.rs, which says where the polynomials are from.
#pragma once

#include "common.cuh"

namespace exact {

/// a · b + c, rounded twice.
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return __fadd_rn(__fmul_rn(a, b), c); }

/// e^x for x ≤ 0, within 2 units in the last place; 0 below −87.
__device__ __forceinline__ float exp(float x) {
  if (!(x >= -87.0f))
    return 0.0f;
  float n = floorf(multiply_add(x, 1.44269504f, 0.5f));
  float r = multiply_add(n, -0.693359375f, x);
  r = multiply_add(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = multiply_add(p, r, 1.3981999507e-3f);
  p = multiply_add(p, r, 8.3334519073e-3f);
  p = multiply_add(p, r, 4.1665795894e-2f);
  p = multiply_add(p, r, 1.6666665459e-1f);
  p = multiply_add(p, r, 5.0000001201e-1f);
  p = __fadd_rn(multiply_add(__fmul_rn(p, r), r, r), 1.0f);
  return __uint_as_float(__float_as_uint(p) + (uint32_t(int(n)) << 23));
}

/// ln x for a positive normal x, within 2 units in the last place.
__device__ __forceinline__ float ln(float x) {
  int bits = __float_as_int(x);
  // x = m · 2^n with m in [√½, √2).
  int n = (bits - 0x3f3504f3) >> 23;
  float m = __fsub_rn(__uint_as_float(uint32_t(bits) - (uint32_t(n) << 23)), 1.0f);
  float square = __fmul_rn(m, m);
  float p = 7.0376836292e-2f;
  p = multiply_add(p, m, -1.1514610310e-1f);
  p = multiply_add(p, m, 1.1676998740e-1f);
  p = multiply_add(p, m, -1.2420140846e-1f);
  p = multiply_add(p, m, 1.4249322787e-1f);
  p = multiply_add(p, m, -1.6668057665e-1f);
  p = multiply_add(p, m, 2.0000714765e-1f);
  p = multiply_add(p, m, -2.4999993993e-1f);
  p = multiply_add(p, m, 3.3333331174e-1f);
  float exponent = float(n);
  float tail = multiply_add(__fmul_rn(p, m), square, __fmul_rn(exponent, -2.12194440e-4f));
  tail = multiply_add(square, -0.5f, tail);
  return multiply_add(exponent, 0.693359375f, __fadd_rn(m, tail));
}

/// The uniform number v in (0, 1) of one random word, with full precision near 0.
__device__ __forceinline__ float unit(uint32_t word) {
  return __fmul_rn(__ull2float_rn(2ull * word + 1ull), 0x1p-33f);
}

/// Standard Gumbel noise −ln E, with E = −ln(1 − v).
__device__ __forceinline__ float gumbel(uint32_t word) {
  float v = unit(word);
  v = v < 1.0f - 0x1p-24f ? v : 1.0f - 0x1p-24f;
  float rest = __fsub_rn(1.0f, v);
  // ln(1 − v) as Kahan computes it: the rounding of 1 − v cancels.
  float exponential = rest == 1.0f ? v : __fdiv_rn(__fmul_rn(ln(rest), v), __fsub_rn(rest, 1.0f));
  return -ln(exponential);
}

} // namespace exact
