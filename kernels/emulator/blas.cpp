// libcublas.so.13 for a machine without a GPU: the products that candle asks for, summed in f32 in the order of the inner
// dimension, or in f64.
#include <vector>

#include "../common.cuh"

namespace {

// Of cublasStatus_t.
enum Status : int { success = 0, invalid_value = 7, not_supported = 15 };

// Of cudaDataType_t.
enum Type : int { f32 = 0, f64 = 1, f16 = 2, bf16 = 14 };

// Of cublasComputeType_t.
enum Compute : int { in_f16 = 64, in_f32 = 68, in_f32_as_f16 = 74, in_f32_as_bf16 = 75, in_f32_as_tf32 = 77 };

float read(const void *numbers, int type, size_t index) {
  switch (type) {
  case f32:
    return static_cast<const float *>(numbers)[index];
  case f16:
    return widen(static_cast<const F16 *>(numbers)[index]);
  default:
    return widen(static_cast<const Bf16 *>(numbers)[index]);
  }
}

void write(void *numbers, int type, size_t index, float number) {
  switch (type) {
  case f32:
    static_cast<float *>(numbers)[index] = number;
    break;
  case f16:
    static_cast<F16 *>(numbers)[index] = narrow<F16>(number);
    break;
  default:
    static_cast<Bf16 *>(numbers)[index] = narrow<Bf16>(number);
  }
}

bool is_float(int type) { return type == f32 || type == f16 || type == bf16; }

/// A matrix in columns, one of a batch.
struct Matrix {
  const void *numbers;
  int type;
  size_t first, leading;
  bool transposed;

  float at(size_t row, size_t column) const {
    return read(numbers, type, first + (transposed ? column + row * leading : row + column * leading));
  }
};

} // namespace

extern "C" {

void unmask_emulator_product();

int cublasCreate_v2(void **handle) {
  static int only;
  *handle = &only;
  return success;
}
int cublasDestroy_v2(void *) { return success; }
int cublasSetStream_v2(void *, void *) { return success; }

int cublasGemmStridedBatchedEx(void *, int transpose_a, int transpose_b, int m, int n, int k, const void *alpha,
                               const void *a, int a_type, int a_leading, long long a_stride, const void *b, int b_type,
                               int b_leading, long long b_stride, const void *beta, void *c, int c_type, int c_leading,
                               long long c_stride, int batches, int compute, int) {
  if (!is_float(a_type) || !is_float(b_type) || !is_float(c_type))
    return not_supported;
  switch (compute) {
  case in_f16:
  case in_f32:
  case in_f32_as_f16:
  case in_f32_as_bf16:
  case in_f32_as_tf32:
    break;
  default:
    return not_supported;
  }
  if (m <= 0 || n <= 0 || k <= 0 || batches <= 0 || c_leading < m || a_leading < (transpose_a ? k : m) ||
      b_leading < (transpose_b ? n : k))
    return invalid_value;
  unmask_emulator_product();
  int scalar = compute == in_f16 ? f16 : f32;
  float by = read(alpha, scalar, 0), keep = read(beta, scalar, 0);
  // Columns of a side by side, whatever its layout.
  std::vector<float> columns(size_t(m) * k), sums(m);
  for (int batch = 0; batch < batches; ++batch) {
    Matrix left{a, a_type, size_t(batch * a_stride), size_t(a_leading), transpose_a != 0};
    Matrix right{b, b_type, size_t(batch * b_stride), size_t(b_leading), transpose_b != 0};
    if (batch == 0 || a_stride != 0)
      for (int i = 0; i < k; ++i)
        for (int row = 0; row < m; ++row)
          columns[size_t(i) * m + row] = left.at(row, i);
    for (int column = 0; column < n; ++column) {
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int i = 0; i < k; ++i) {
        float factor = right.at(i, column);
        const float *of_a = &columns[size_t(i) * m];
        for (int row = 0; row < m; ++row)
          sums[row] += of_a[row] * factor;
      }
      for (int row = 0; row < m; ++row) {
        size_t place = size_t(batch * c_stride) + row + size_t(column) * c_leading;
        // With β = 0, c is not read.
        float before = keep == 0.0f ? 0.0f : keep * read(c, c_type, place);
        write(c, c_type, place, by * sums[row] + before);
      }
    }
  }
  return success;
}

int cublasDgemmStridedBatched(void *, int transpose_a, int transpose_b, int m, int n, int k, const double *alpha,
                              const double *a, int a_leading, long long a_stride, const double *b, int b_leading,
                              long long b_stride, const double *beta, double *c, int c_leading, long long c_stride,
                              int batches) {
  unmask_emulator_product();
  for (int batch = 0; batch < batches; ++batch, a += a_stride, b += b_stride, c += c_stride)
    for (int column = 0; column < n; ++column)
      for (int row = 0; row < m; ++row) {
        double sum = 0;
        for (int i = 0; i < k; ++i)
          sum += a[transpose_a ? i + size_t(row) * a_leading : row + size_t(i) * a_leading] *
                 b[transpose_b ? column + size_t(i) * b_leading : i + size_t(column) * b_leading];
        double &to = c[row + size_t(column) * c_leading];
        to = *alpha * sum + (*beta == 0 ? 0 : *beta * to);
      }
  return success;
}
}
