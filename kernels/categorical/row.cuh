// Reads one row of logits in groups of eight tokens, guided, adjusted and masked.
#pragma once

#include "../packed.cuh"
#include "../reduce.cuh"
#include "params.cuh"

#define GROUP 8
#define TOUCHED_WORDS 1024

/// Marks the groups of tokens that have an adjustment; `touched` is shared memory of TOUCHED_WORDS words.
/// Groups beyond its bits share those of others, which costs a search but no error.
__device__ inline void mark_touched(uint32_t *touched, const Adjustment *adjustments, uint32_t count) {
  for (uint32_t i = threadIdx.x; i < TOUCHED_WORDS; i += blockDim.x)
    touched[i] = 0;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
    uint32_t group = adjustments[i].token / GROUP % (32 * TOUCHED_WORDS);
    atomicOr(&touched[group / 32], 1u << group % 32);
  }
  __syncthreads();
}

template <class T> struct Row {
  const T *conditional;
  /// nullptr without guidance.
  const T *unconditional;
  float guidance;
  uint32_t vocab;
  /// A token of no probability, or NONE.
  uint32_t impossible;
  /// nullptr if every token is.
  const uint32_t *allowed;
  const Adjustment *adjustments;
  uint32_t adjustment_count;
  const uint32_t *touched;

  __device__ __forceinline__ uint32_t groups() const { return (vocab + GROUP - 1) / GROUP; }

  /// Whether its logits are numbers of half precision: no bit of theirs below the thirteenth is set.
  __device__ __forceinline__ bool is_half() const {
    return sizeof(T) == 2 && unconditional == nullptr && adjustment_count == 0;
  }

  /// A group of `logits` as it lies there; −∞ for tokens beyond the vocabulary.
  __device__ __forceinline__ Packed<T> fetch_from(const T *logits, uint32_t group) const {
    const T *from = logits + uint64_t(group) * GROUP;
    uint32_t rest = group < groups() ? vocab - group * GROUP : 0;
    if (rest >= GROUP && is_aligned(logits))
      return load_packed(from);
    // What lies around such a group is of the row too.
    if (group > 0 && rest >= 2 * GROUP)
      return load_packed_shifted(from);
    return load_packed_part(from, rest);
  }

  __device__ __forceinline__ Packed<T> fetch(uint32_t group) const { return fetch_from(conditional, group); }

  /// The row without adjustments and without the mask of allowed tokens.
  __device__ __forceinline__ Row plain() const {
    Row row = *this;
    row.allowed = nullptr;
    row.adjustment_count = 0;
    return row;
  }

  /// The logit of a token; −∞ beyond the vocabulary.
  __device__ float at(uint32_t token) const {
    if (token >= vocab)
      return -INFINITY;
    float logits[GROUP];
    load(token / GROUP, logits);
    return element(logits, token % GROUP);
  }

  /// The logits of a group; −∞ for tokens beyond the vocabulary.
  __device__ __forceinline__ void load(uint32_t group, float (&logits)[GROUP]) const {
    shape(group, fetch(group), logits);
  }

  /// The logits of a group that was fetched, guided, adjusted and masked.
  __device__ __forceinline__ void shape(uint32_t group, const Packed<T> &fetched, float (&logits)[GROUP]) const {
    widen(fetched, logits);
    if (group >= groups())
      return;
    if (unconditional != nullptr)
      guide(group, logits);
    if (adjustment_count != 0 && touched[group % (32 * TOUCHED_WORDS) / 32] >> group % 32 & 1)
      adjust(group, logits);
    if (allowed != nullptr) {
      uint32_t bits = allowed[group / 4] >> group % 4 * GROUP;
#pragma unroll
      for (uint32_t i = 0; i < GROUP; ++i)
        logits[i] = bits >> i & 1 ? logits[i] : -INFINITY;
    }
    if (impossible / GROUP == group) {
#pragma unroll
      for (uint32_t i = 0; i < GROUP; ++i)
        logits[i] = impossible % GROUP == i ? -INFINITY : logits[i];
    }
  }

private:
  __device__ __forceinline__ void guide(uint32_t group, float (&logits)[GROUP]) const {
    float other[GROUP];
    widen(fetch_from(unconditional, group), other);
    uint32_t first = group * GROUP;
#pragma unroll
    for (uint32_t i = 0; i < GROUP; ++i)
      if (first + i < vocab)
        logits[i] = __fadd_rn(other[i], __fmul_rn(guidance, __fsub_rn(logits[i], other[i])));
  }

  /// The first adjustment of a token of at least this number.
  __device__ uint32_t adjustment_from(uint32_t token) const {
    uint32_t low = 0, high = adjustment_count;
    while (low < high) {
      uint32_t middle = (low + high) / 2;
      if (adjustments[middle].token < token)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  __device__ __forceinline__ void adjust(uint32_t group, float (&logits)[GROUP]) const {
    uint32_t first = group * GROUP;
#pragma unroll 1
    for (uint32_t at = adjustment_from(first); at < adjustment_count; ++at) {
      Adjustment change = adjustments[at];
      uint32_t place = change.token - first;
      if (place >= GROUP)
        return;
      float l = element(logits, place);
      l = l > 0 ? __fdiv_rn(l, change.penalty) : __fmul_rn(l, change.penalty);
      l = __fadd_rn(l, change.bias);
#pragma unroll
      for (uint32_t i = 0; i < GROUP; ++i)
        logits[i] = place == i ? l : logits[i];
    }
  }

  /// logits[place]; with that for an index they would not stay in registers.
  __device__ __forceinline__ static float element(const float (&logits)[GROUP], uint32_t place) {
    float found = logits[0];
#pragma unroll
    for (uint32_t i = 1; i < GROUP; ++i)
      found = place == i ? logits[i] : found;
    return found;
  }
};

/// Calls `visit(group, logits)` for every group of a row, group g by thread g modulo the block's. All threads call it
/// equally often, with −∞ beyond the row, so that warps can shuffle in it.
template <class T, class Visit> __device__ __forceinline__ void visit_groups(const Row<T> &row, Visit visit) {
  for (uint32_t start = 0; start < row.groups(); start += blockDim.x) {
    uint32_t group = start + threadIdx.x;
    float logits[GROUP];
    row.load(group, logits);
    visit(group, logits);
  }
}

/// As `visit_groups`, with the loads of the next `AHEAD` groups of a thread on their way meanwhile.
template <int AHEAD, class T, class Visit>
__device__ __forceinline__ void visit_groups_ahead(const Row<T> &row, Visit visit) {
  Packed<T> coming[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; ++i)
    coming[i] = row.fetch(threadIdx.x + i * blockDim.x);
  for (uint32_t start = 0; start < row.groups(); start += AHEAD * blockDim.x) {
    // Unrolled, so that each load has registers of its own: moving them would wait for it.
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      uint32_t group = start + i * blockDim.x + threadIdx.x;
      float logits[GROUP];
      row.shape(group, coming[i], logits);
      coming[i] = row.fetch(group + AHEAD * blockDim.x);
      visit(group, logits);
    }
  }
}
