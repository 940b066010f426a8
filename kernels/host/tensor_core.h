// Instructions of tensor cores for the host shim, lane by lane as the PTX ISA defines them: mma.m16n8k16, ldmatrix,
// cp.async. What is asked to be copied is copied when its thread waits for it: who reads it before, or without a barrier
// after, gets what was there. Stricter than a GPU, which takes longer: the rows of a matrix have to be in different banks.
#pragma once

#include <cstdint>

#include "cuda.h"

/// As the device's functions of these names, of which tensor_core.cuh says what they do.
template <class T> void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  // The lane's numbers of a at [register][half], and of b.
  struct Fragments {
    float a[4][2], b[2][2];
  } mine;
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 4; ++i)
      mine.a[i][half] = widen(T{uint16_t(a[i] >> 16 * half)});
    mine.b[0][half] = widen(T{uint16_t(b0 >> 16 * half)});
    mine.b[1][half] = widen(T{uint16_t(b1 >> 16 * half)});
  }
  // Each lane reads what the others hold while they wait for the exchange after it.
  const uint64_t *given = host::exchange(host::to_word(static_cast<const Fragments *>(&mine)));
  unsigned lane = host::thread->lane;
  for (unsigned i = 0; i < 4; ++i) {
    unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    float sum = 0;
    for (unsigned k = 0; k < 16; ++k) {
      const auto *of_a = host::from_word<const Fragments *>(given[row % 8 * 4 + k % 8 / 2]);
      const auto *of_b = host::from_word<const Fragments *>(given[column * 4 + k % 8 / 2]);
      sum += of_a->a[k / 8 * 2 + row / 8][k % 2] * of_b->b[k / 8][k % 2];
    }
    d[i] += sum;
  }
  __syncwarp();
}

namespace host {

/// Words of four matrices, of which `given` has the places of the rows: at row and column of each, and at the column after
/// it or, transposed, the row after it.
inline void load_four_matrices(uint32_t (&matrices)[4], const void *row, bool transposed) {
  const uint64_t *given = exchange(to_word(row));
  for (unsigned i = 0; thread->lane == 0 && i < 32; ++i)
    for (unsigned j = i / 8 * 8; j < i; ++j)
      if ((given[i] / 16 - given[j] / 16) % 8 == 0)
        fail("two rows of a matrix are in the same banks");
  unsigned first = thread->lane / 4, second = thread->lane % 4 * 2;
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    matrices[matrix] = 0;
    for (unsigned half = 0; half < 2; ++half) {
      unsigned of_row = transposed ? second + half : first, of_column = transposed ? first : second + half;
      const auto *numbers = from_word<const uint16_t *>(given[matrix * 8 + of_row]);
      if (reinterpret_cast<uintptr_t>(numbers) % 16 != 0)
        fail("a row of a matrix begins elsewhere than at 16 bytes");
      matrices[matrix] |= uint32_t(numbers[of_column]) << 16 * half;
    }
  }
  // No lane goes on, and writes there, before all have read.
  exchange(0);
}

} // namespace host

inline void load_matrices(uint32_t (&matrices)[4], const void *row) {
  host::load_four_matrices(matrices, row, false);
}

inline void load_transposed(uint32_t (&matrices)[4], const void *row) {
  host::load_four_matrices(matrices, row, true);
}

inline void copy_16_bytes(void *shared, const void *global, bool is_there) {
  host::ask_for_copy({shared, is_there ? global : nullptr});
}

inline void end_copy_group() { host::end_copy_group(); }

template <int LEFT> void wait_for_copies() { host::wait_for_copies(LEFT); }

template <class T> uint32_t pack(float first, float second) {
  return uint32_t(narrow<T>(first).bits) | uint32_t(narrow<T>(second).bits) << 16;
}

inline float power_of_two(float x) {
  float power = exp2f(x);
  return power < 0x1p-126f ? 0.0f : power;
}
