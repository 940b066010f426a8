// Eight-bit floating-point numbers, which nothing here computes with: a kernel of theirs ends the process.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "cuda_fp16.h"

namespace host {
[[noreturn]] inline void no_fp8() {
  fprintf(stderr, "emulated device: 8-bit floating-point numbers are not emulated\n");
  abort();
}
} // namespace host

enum __nv_fp8_interpretation_t { __NV_E4M3 };

struct __nv_fp8_e4m3 {
  unsigned char __x;

  __nv_fp8_e4m3() = default;
  template <class T> explicit __nv_fp8_e4m3(T) { host::no_fp8(); }
  explicit operator float() const { host::no_fp8(); }
};

inline __half __nv_cvt_fp8_to_halfraw(unsigned char, __nv_fp8_interpretation_t) { host::no_fp8(); }
