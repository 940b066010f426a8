// Probabilities as integers: sums of them are the same in any order, so that every device agrees on the last
// token that top-p keeps. CPU twin: src/sampling/filter.rs.
#pragma once

#include "../exact.cuh"

/// Up to here e^x rounds to no mass: e^−28 is 0.76 · 2^-40.
#define NO_MASS -28.0f

/// A row's temperature, and the largest logit, whose mass is 1.
struct Scale {
  float reference, temperature;

  /// ln of the mass of a token, at most 0.
  __device__ __forceinline__ float exponent(float logit) const {
    float x = __fsub_rn(logit, reference);
    return fminf(temperature == 1 ? x : __fdiv_rn(x, temperature), 0.0f);
  }
};

/// e^x in units of 2^-40, rounded down, of x ≤ 0: 2^18 tokens cannot overflow.
__device__ __forceinline__ uint64_t mass_of(float x) {
  // The mantissa shifted by the exponent: many cards convert to 64 bits at a sixty-fourth of their rate.
  uint32_t bits = __float_as_uint(exact::exp(x)), mantissa = (bits & 0x7fffffu) | 0x800000u;
  int shift = int(bits >> 23) - (127 + 23 - 40);
  return shift >= 0 ? uint64_t(mantissa) << shift : uint64_t(mantissa >> min(-shift, 31));
}
