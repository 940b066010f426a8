// What stands between a block's matrix products, each in one pass. CPU twins: src/models/layers (norms,
// rotary.rs, elementwise.rs); equal within rounding.
#include "activation.cuh"
#include "packed.cuh"
#include "reduce.cuh"

/// N numbers, eight of which are aligned to 16 bytes.
template <uint32_t N, class T> __device__ __forceinline__ void load(const T *from, float (&to)[N]) {
  if constexpr (N == 8)
    widen(load_packed(from), to);
  else
    to[0] = widen(*from);
}

template <uint32_t N, class T> __device__ __forceinline__ void store(T *to, const float (&numbers)[N]) {
  if constexpr (N == 8)
    store8_aligned(to, numbers);
  else
    *to = narrow<T>(numbers[0]);
}

/// sum = x + residual and normed = sum / rms(sum) · weight, rows of `width`, a block each, N numbers of a row a thread
/// at once. Unless it ADDS, sum is x and is not written.
template <uint32_t N, bool ADDS, class T>
__device__ __forceinline__ void rms_norm_by(const T *x, const T *residual, const T *weight, uint32_t width,
                                            float epsilon, T *sum, T *normed, float *scratch) {
  uint64_t first = uint64_t(blockIdx.x) * width;
  float squares = 0;
  for (uint32_t i = N * threadIdx.x; i < width; i += N * blockDim.x) {
    float value[N], added[N];
    load<N>(x + first + i, value);
    if constexpr (ADDS) {
      load<N>(residual + first + i, added);
      // Rounded before it is normed, as it is when the addition is an operation of its own.
#pragma unroll
      for (uint32_t j = 0; j < N; ++j)
        value[j] = widen(narrow<T>(value[j] + added[j]));
      store<N>(sum + first + i, value);
    }
#pragma unroll
    for (uint32_t j = 0; j < N; ++j)
      squares += value[j] * value[j];
  }
  float by_rms = rsqrtf(block_sum(squares, scratch) / width + epsilon);
  const T *from = ADDS ? sum : x;
  for (uint32_t i = N * threadIdx.x; i < width; i += N * blockDim.x) {
    float value[N], by[N];
    load<N>(from + first + i, value);
    load<N>(weight + i, by);
#pragma unroll
    for (uint32_t j = 0; j < N; ++j)
      value[j] = value[j] * by_rms * by[j];
    store<N>(normed + first + i, value);
  }
}

template <bool ADDS, class T>
__device__ void rms_norm(const T *x, const T *residual, const T *weight, uint32_t width, float epsilon, T *sum,
                         T *normed) {
  __shared__ float scratch[32];
  bool by_eight = width % 8 == 0 && is_aligned(x) && is_aligned(residual) && is_aligned(weight) && is_aligned(sum) &&
                  is_aligned(normed);
  if (by_eight)
    rms_norm_by<8, ADDS>(x, residual, weight, width, epsilon, sum, normed, scratch);
  else
    rms_norm_by<1, ADDS>(x, residual, weight, width, epsilon, sum, normed, scratch);
}

/// Heads [rows, heads, dim], normed by `weight` [dim] unless it is nullptr, then the first 2 · `half` dimensions
/// rotated by cos and sin [rows, half], half-split. A warp a head; `dim` ≤ 512. `out` may be `x`.
template <class T, class Angle>
__device__ void rotate(const T *x, const T *weight, const Angle *cosines, const Angle *sines, uint32_t heads,
                       uint32_t row_heads, uint32_t dim, uint32_t half, float epsilon, T *out) {
  uint32_t lane = threadIdx.x & 31;
  uint32_t head = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (head >= heads) // the whole warp
    return;
  const T *from = x + uint64_t(head) * dim;
  uint64_t first_angle = uint64_t(head / row_heads) * half;
  const Angle *cosine = cosines + first_angle, *sine = sines + first_angle;
  T *to = out + uint64_t(head) * dim;
  float by_rms = 1;
  if (weight != nullptr) {
    float squares = 0;
    for (uint32_t i = lane; i < dim; i += 32) {
      float value = widen(from[i]);
      squares += value * value;
    }
    squares = warp_reduce(squares, [](float a, float b) { return a + b; });
    by_rms = rsqrtf(squares / dim + epsilon);
  }
  auto normed = [&](uint32_t i) {
    float value = widen(from[i]);
    return weight == nullptr ? value : widen(narrow<T>(value * by_rms * widen(weight[i])));
  };
  for (uint32_t i = lane; i < half; i += 32) {
    float a = normed(i), b = normed(i + half), c = widen(cosine[i]), s = widen(sine[i]);
    to[i] = narrow<T>(a * c - b * s);
    to[i + half] = narrow<T>(a * s + b * c);
  }
  for (uint32_t i = 2 * half + lane; i < dim; i += 32)
    to[i] = narrow<T>(normed(i));
}

/// activation(gate) ⊙ up of the numbers from `first` to `end`, N a thread at once.
template <uint32_t N, class T>
__device__ __forceinline__ void gated_by(const T *gate, const T *up, uint64_t first, uint64_t end,
                                         uint32_t activation, T *out) {
  uint64_t step = uint64_t(gridDim.x) * blockDim.x * N;
  for (uint64_t i = first + (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < end; i += step) {
    float gates[N], ups[N];
    load<N>(gate + i, gates);
    load<N>(up + i, ups);
#pragma unroll
    for (uint32_t j = 0; j < N; ++j)
      ups[j] *= activated(activation, gates[j]);
    store<N>(out + i, ups);
  }
}

template <class T>
__device__ void gated(const T *gate, const T *up, uint64_t count, uint32_t activation, T *out) {
  uint64_t by_eight = is_aligned(gate) && is_aligned(up) && is_aligned(out) ? count / 8 * 8 : 0;
  gated_by<8>(gate, up, 0, by_eight, activation, out);
  gated_by<1>(gate, up, by_eight, count, activation, out);
}

#define LAYERS(suffix, type)                                                                                       \
  extern "C" __global__ void __launch_bounds__(512)                                                                \
      rms_norm_##suffix(const type *x, const type *weight, uint32_t width, float epsilon, type *normed) {          \
    rms_norm<false, type>(x, nullptr, weight, width, epsilon, nullptr, normed);                                    \
  }                                                                                                                \
  extern "C" __global__ void __launch_bounds__(512)                                                                \
      add_rms_norm_##suffix(const type *x, const type *residual, const type *weight, uint32_t width,               \
                            float epsilon, type *sum, type *normed) {                                              \
    rms_norm<true, type>(x, residual, weight, width, epsilon, sum, normed);                                        \
  }                                                                                                                \
  extern "C" __global__ void __launch_bounds__(512)                                                                \
      rotate_##suffix(const type *x, const type *cosines, const type *sines, uint32_t heads, uint32_t row_heads,   \
                      uint32_t dim, uint32_t half, type *out) {                                                    \
    rotate<type, type>(x, nullptr, cosines, sines, heads, row_heads, dim, half, 0, out);                           \
  }                                                                                                                \
  extern "C" __global__ void __launch_bounds__(512)                                                                \
      norm_rotate_##suffix(const type *x, const type *weight, const type *cosines, const type *sines,              \
                           uint32_t heads, uint32_t row_heads, uint32_t dim, uint32_t half, float epsilon,         \
                           type *out) {                                                                            \
    rotate<type, type>(x, weight, cosines, sines, heads, row_heads, dim, half, epsilon, out);                      \
  }                                                                                                                \
  extern "C" __global__ void __launch_bounds__(512)                                                                \
      gated_##suffix(const type *gate, const type *up, uint64_t count, uint32_t activation, type *out) {           \
    gated<type>(gate, up, count, activation, out);                                                                 \
  }

LAYERS(f32, float)
LAYERS(bf16, Bf16)
LAYERS(f16, F16)

// Where a network rotates in f32 what it holds in half precision.
#define ROTATE_BY_F32(suffix, type)                                                                                \
  extern "C" __global__ void __launch_bounds__(512)                                                                \
      rotate_by_f32_##suffix(const type *x, const float *cosines, const float *sines, uint32_t heads,              \
                             uint32_t row_heads, uint32_t dim, uint32_t half, type *out) {                         \
    rotate<type, float>(x, nullptr, cosines, sines, heads, row_heads, dim, half, 0, out);                          \
  }

ROTATE_BY_F32(bf16, Bf16)
ROTATE_BY_F32(f16, F16)

/// sum = x + bias, rows of `width`, a block each.
template <class T>
__device__ void add_bias(const T *x, const T *bias, uint32_t width, T *sum) {
  uint64_t first = uint64_t(blockIdx.x) * width;
  for (uint32_t i = threadIdx.x; i < width; i += blockDim.x)
    sum[first + i] = narrow<T>(widen(x[first + i]) + widen(bias[i]));
}

#define ADD_BIAS(suffix, type)                                                                                     \
  extern "C" __global__ void __launch_bounds__(512)                                                                \
      add_bias_##suffix(const type *x, const type *bias, uint32_t width, type *sum) {                              \
    add_bias<type>(x, bias, width, sum);                                                                           \
  }

ADD_BIAS(f32, float)
ADD_BIAS(bf16, Bf16)
ADD_BIAS(f16, F16)
