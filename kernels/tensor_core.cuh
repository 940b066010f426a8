// Products of small matrices on tensor cores, and what brings their operands there, of compute capability 8.0 and later.
// Numbers are half precision, a word has two: the first one in its lower half. The PTX ISA says which lane holds what;
// host/tensor_core.h writes it out for the host.
#pragma once

#include "common.cuh"

#if defined(__CUDACC__)

/// d += a b in f32, by the whole warp: a is [16, 16], b is [16, 8], d is [16, 8]. With g = lane / 4 and t = lane % 4 a lane
/// holds of a rows g, g + 8, g, g + 8 at columns 2t and 2t + 1, of which the latter two 8 further on; of b column g at
/// rows 2t and 2t + 1, and 8 further on; of d rows g, g, g + 8, g + 8 at columns 2t, 2t + 1, 2t, 2t + 1.
template <class T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void multiply_add<Bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply_add<F16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Four matrices [8, 8] from shared memory: lane l says where row l % 8 of matrix l / 8 is, 16 bytes, and gets of each
/// matrix row l / 4 at columns 2 (l % 4) and one further on.
__device__ __forceinline__ void load_matrices(uint32_t (&matrices)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row))));
}

/// The same, and of each matrix the lane gets column l / 4 at rows 2 (l % 4) and one further on.
__device__ __forceinline__ void load_transposed(uint32_t (&matrices)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row))));
}

/// Copies 16 bytes to shared memory, or makes them zero where there is nothing to copy; both are aligned to 16 bytes. It
/// is done when the thread has waited for its group.
__device__ __forceinline__ void copy_16_bytes(void *shared, const void *global, bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
               "l"(__cvta_generic_to_global(global)), "r"(is_there ? 16u : 0u)
               : "memory");
}

/// The copies that the thread has asked for since the last group are one.
__device__ __forceinline__ void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits for the thread's copies, but for those of its last `LEFT` groups.
template <int LEFT> __device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

/// Two numbers, rounded to nearest, in a word.
template <class T> __device__ __forceinline__ uint32_t pack(float first, float second);

template <> __device__ __forceinline__ uint32_t pack<Bf16>(float first, float second) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

template <> __device__ __forceinline__ uint32_t pack<F16>(float first, float second) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

/// 2^x, within 2^-22 of it; what is below 2^-126 is 0.
__device__ __forceinline__ float power_of_two(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

#else
#include "host/tensor_core.h"
#endif
