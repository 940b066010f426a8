// Eight numbers as they lie in memory, loaded 16 bytes at a time wherever they begin.
#pragma once

#include "common.cuh"

/// Not widened yet: loads of several are under way until one of them is used.
template <class T> struct Packed {
  static constexpr uint32_t WORDS = 8 * sizeof(T) / 4;
  uint32_t words[WORDS];
};

__device__ __forceinline__ uint32_t bits_of(float x) { return __float_as_uint(x); }
template <class T> __device__ __forceinline__ uint32_t bits_of(T x) { return x.bits; }

/// Whether 16 bytes can be loaded from there at once.
__device__ __forceinline__ bool is_aligned(const void *memory) {
  return (reinterpret_cast<uintptr_t>(memory) & 15) == 0;
}

/// From memory aligned to 16 bytes.
template <class T> __device__ __forceinline__ Packed<T> load_packed(const T *from) {
  Packed<T> packed;
#pragma unroll
  for (uint32_t i = 0; i < Packed<T>::WORDS / 4; ++i) {
    uint4 words = reinterpret_cast<const uint4 *>(from)[i];
    packed.words[4 * i] = words.x;
    packed.words[4 * i + 1] = words.y;
    packed.words[4 * i + 2] = words.z;
    packed.words[4 * i + 3] = words.w;
  }
  return packed;
}

/// From memory aligned to a number. Loads the aligned 16 bytes that the numbers begin in and those that they end in,
/// up to seven numbers before them and eight after their first eight: those have to be the caller's too.
template <class T> __device__ __forceinline__ Packed<T> load_packed_shifted(const T *from) {
  constexpr uint32_t WORDS = Packed<T>::WORDS;
  uint32_t offset = uint32_t(reinterpret_cast<uintptr_t>(from) & 15);
  const uint4 *aligned = reinterpret_cast<const uint4 *>(reinterpret_cast<uintptr_t>(from) - offset);
  uint32_t words[WORDS + 4];
#pragma unroll
  for (uint32_t i = 0; i < WORDS / 4 + 1; ++i) {
    uint4 loaded = aligned[i];
    words[4 * i] = loaded.x;
    words[4 * i + 1] = loaded.y;
    words[4 * i + 2] = loaded.z;
    words[4 * i + 3] = loaded.w;
  }
  // By two words, one word, and half a word: indices are constants, so that all stays in registers.
#pragma unroll
  for (uint32_t i = 0; i < WORDS + 2; ++i)
    words[i] = offset & 8 ? words[i + 2] : words[i];
#pragma unroll
  for (uint32_t i = 0; i < WORDS + 1; ++i)
    words[i] = offset & 4 ? words[i + 1] : words[i];
  Packed<T> packed;
#pragma unroll
  for (uint32_t i = 0; i < WORDS; ++i)
    packed.words[i] = sizeof(T) == 4 ? words[i] : __funnelshift_r(words[i], words[i + 1], 8 * (offset & 3));
  return packed;
}

/// The first `count` of eight numbers one by one, and −∞ for the others.
template <class T> __device__ __forceinline__ Packed<T> load_packed_part(const T *from, uint32_t count) {
  constexpr uint32_t OF_WORD = 4 / sizeof(T);
  Packed<T> packed = {};
#pragma unroll
  for (uint32_t i = 0; i < 8; ++i) {
    T number = i < count ? from[i] : narrow<T>(-INFINITY);
    packed.words[i / OF_WORD] |= bits_of(number) << i % OF_WORD * 16;
  }
  return packed;
}

__device__ __forceinline__ void widen(const Packed<float> &packed, float (&to)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
    to[i] = __uint_as_float(packed.words[i]);
}

template <class T> __device__ __forceinline__ void widen(const Packed<T> &packed, float (&to)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = widen(T{uint16_t(packed.words[i])});
    to[2 * i + 1] = widen(T{uint16_t(packed.words[i] >> 16)});
  }
}

/// Rounds eight numbers to memory aligned to 16 bytes.
__device__ __forceinline__ void store8_aligned(float *to, const float (&numbers)[8]) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
    reinterpret_cast<uint4 *>(to)[half] = {
        __float_as_uint(numbers[4 * half]), __float_as_uint(numbers[4 * half + 1]),
        __float_as_uint(numbers[4 * half + 2]), __float_as_uint(numbers[4 * half + 3])};
}

template <class T> __device__ __forceinline__ void store8_aligned(T *to, const float (&numbers)[8]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    words[i] = bits_of(narrow<T>(numbers[2 * i])) | bits_of(narrow<T>(numbers[2 * i + 1])) << 16;
  *reinterpret_cast<uint4 *>(to) = {words[0], words[1], words[2], words[3]};
}

/// Rounds four numbers to memory aligned to as many bytes as they take.
__device__ __forceinline__ void store4_aligned(float *to, const float (&numbers)[4]) {
  *reinterpret_cast<uint4 *>(to) = {__float_as_uint(numbers[0]), __float_as_uint(numbers[1]),
                                    __float_as_uint(numbers[2]), __float_as_uint(numbers[3])};
}

template <class T> __device__ __forceinline__ void store4_aligned(T *to, const float (&numbers)[4]) {
  uint32_t words[2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    words[i] = bits_of(narrow<T>(numbers[2 * i])) | bits_of(narrow<T>(numbers[2 * i + 1])) << 16;
  *reinterpret_cast<uint2 *>(to) = {words[0], words[1]};
}
