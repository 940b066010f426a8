// Candle's kernels for weights in Q8_0, for the host: products of up to eight rows (MMVQ), of more (mmq_gguf), and what
// rounds the input of the latter (MMQ_QUANTIZE). MMVQ and MMQ_QUANTIZE name candle's files without the code that launches
// them, which is linked into the binary.
//
// Everything is candle's but two instructions of tensor cores, which a host has not: loads of matrices from shared
// memory and products of 8-bit integers. They are written out here as the PTX ISA defines which thread holds what.
#include "../host/launch.h"

// An array of dynamic size is declared `extern`, where `static` may not stand.
#undef __shared__
#define __shared__ thread_local

#include "device.h"

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include <climits>
#include <cstdio>

namespace {

namespace vectors {
#include MMVQ
}
#undef WARP_SIZE
#undef MATRIX_ROW_PADDING
#undef QK_K
#undef K_SCALE_SIZE

namespace matrices {

/// As much as a block of an A100 may have. Indices of the columns stand at its beginning.
alignas(16) thread_local int data_mul_mat_q[host::largest_shared_bytes / sizeof(int)];
#define ids_dst_shared data_mul_mat_q

#include "mmq_gguf/mmq_common.cuh"

// Without them the file has none of PTX.
#undef TURING_MMA_AVAILABLE
#undef AMPERE_MMA_AVAILABLE
#define load_ldmatrix load_without_tensor_cores
#define mma mma_without_tensor_cores
#include "mmq_gguf/mmq_mma.cuh"
#undef load_ldmatrix
#undef mma
#define TURING_MMA_AVAILABLE
#define AMPERE_MMA_AVAILABLE

namespace ggml_cuda_mma {

/// ldmatrix.sync.aligned.m8n8.x4.b16: lane l gives the address of row l % 8 of matrix l / 8, and gets word l % 4 of row
/// l / 4 of each matrix. Lanes and their addresses are those of candle's function.
inline void load_ldmatrix(tile<16, 8, int> &to, const int *from, int stride) {
  const int *row = from + (threadIdx.x % 16) * stride + (threadIdx.x / 16) * 4;
  assert(reinterpret_cast<uintptr_t>(row) % 16 == 0);
  const uint64_t *rows = host::exchange(host::to_word(row));
  unsigned lane = host::thread->lane;
  for (int matrix = 0; matrix < 4; ++matrix)
    to.x[matrix] = host::from_word<const int *>(rows[matrix * 8 + lane / 4])[lane % 4];
}

/// mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32, d += a b. With g = lane / 4 and t = lane % 4 a lane holds of a
/// `[16, 32]` rows g, g + 8, g, g + 8 at columns 4t + 0..4, of which the latter two 16 further on; of b `[32, 8]` column
/// g at rows 4t + 0..4 and 16 further on; of d `[16, 8]` rows g, g, g + 8, g + 8 at columns 2t, 2t + 1, 2t, 2t + 1.
inline void mma(tile<16, 8, int> &d, const tile<16, 8, int> &a, const tile<8, 8, int> &b) {
  struct Words {
    int of_a[4], of_b[2];
  } words = {{a.x[0], a.x[1], a.x[2], a.x[3]}, {b.x[0], b.x[1]}};
  // Each lane reads what the others hold while they wait for the exchange after it.
  const uint64_t *given = host::exchange(host::to_word(static_cast<const Words *>(&words)));
  unsigned lane = host::thread->lane;
  for (int i = 0; i < 4; ++i) {
    unsigned row = lane / 4, column = lane % 4 * 2 + i % 2;
    for (unsigned quad = 0; quad < 4; ++quad) {
      const auto *at_row = host::from_word<const Words *>(given[row * 4 + quad]);
      const auto *at_column = host::from_word<const Words *>(given[column * 4 + quad]);
      for (int half = 0; half < 2; ++half)
        d.x[i] = __dp4a(at_row->of_a[half * 2 + i / 2], at_column->of_b[half], d.x[i]);
    }
  }
  __syncwarp();
}

// Named by products of other blocks.
void load_ldmatrix(tile<16, 4, int> &, const int *, int);
void mma(tile<16, 8, int> &, const tile<16, 4, int> &, const tile<8, 4, int> &);

} // namespace ggml_cuda_mma

#include "mmq_gguf/mmq_gguf.cuh"

#include MMQ_QUANTIZE

} // namespace matrices
} // namespace

using vectors::mmvq_gguf_quantize_q8_1_f32;
EXPORT(mmvq_gguf_quantize_q8_1_f32)
#define EXPORT_ROWS(rows)                                                                                          \
  using vectors::mmvq_gguf_q8_0_f32_plain_cuda##rows;                                                              \
  EXPORT(mmvq_gguf_q8_0_f32_plain_cuda##rows)
EXPORT_ROWS(1)
EXPORT_ROWS(2)
EXPORT_ROWS(3)
EXPORT_ROWS(4)
EXPORT_ROWS(5)
EXPORT_ROWS(6)
EXPORT_ROWS(7)
EXPORT_ROWS(8)

// Templates by what the runtime calls them, with underscores for what is no letter or digit.
EXPORT_AS(quantize_mmq_q8_1_mmq_q8_1_ds_layout_0, matrices::quantize_mmq_q8_1<matrices::MMQ_Q8_1_DS_LAYOUT_D4>)
#define EXPORT_COLUMNS_CHECKED(columns, checked)                                                                   \
  EXPORT_AS(mul_mat_q_ggml_type_8_##columns##_##checked,                                                           \
            matrices::mul_mat_q<matrices::GGML_TYPE_Q8_0, columns, checked>)                                       \
  EXPORT_AS(mul_mat_q_stream_k_fixup_ggml_type_8_##columns##_##checked,                                            \
            matrices::mul_mat_q_stream_k_fixup<matrices::GGML_TYPE_Q8_0, columns, checked>)
#define EXPORT_COLUMNS(columns)                                                                                    \
  EXPORT_COLUMNS_CHECKED(columns, false)                                                                           \
  EXPORT_COLUMNS_CHECKED(columns, true)
EXPORT_COLUMNS(8)
EXPORT_COLUMNS(16)
EXPORT_COLUMNS(24)
EXPORT_COLUMNS(32)
EXPORT_COLUMNS(40)
EXPORT_COLUMNS(48)
EXPORT_COLUMNS(64)
EXPORT_COLUMNS(80)
EXPORT_COLUMNS(96)
EXPORT_COLUMNS(112)
EXPORT_COLUMNS(128)
