// A draw of x_s from the reverse step p_θ(x_s | x_t) of the absorbing or the uniform process, from the
// logits of x̂_0, one block a row. CPU twin: src/sampling/posterior.rs, which derives the coefficients; the
// same states.
#include "categorical/mass.cuh"
#include "categorical/row.cuh"
#include "philox.cuh"

struct ReverseRow {
  uint64_t seed;
  uint32_t step, slot;
  /// The state that is unlike the others: the mask, or x_t.
  uint32_t special;
  /// An x̂_0 of no probability, or NONE.
  uint32_t impossible;
  /// With p = e / S and C · S = (S − e_special) · others + e_special · own, the weight of a state is
  /// slope · e + offset · C · S.
  float others, own;
  float slope, offset;
  float special_slope, special_offset;
};

struct ReverseFound {
  uint32_t status, state;
};

struct Best {
  float value;
  uint32_t state;
};

__device__ __forceinline__ Best better(const Best &a, const Best &b) {
  return a.value > b.value || (a.value == b.value && a.state < b.state) ? a : b;
}

struct Largest {
  float logit;
  uint32_t has_nan;
};

union ReverseScratch {
  Largest largest[32];
  unsigned long long masses[32];
  Best best[32];
};

template <class T>
__device__ void posterior(const T *logits, uint64_t stride, uint32_t vocab, const ReverseRow *rows,
                          ReverseFound *found) {
  __shared__ ReverseScratch scratch;
  ReverseRow params = rows[blockIdx.x];
  Row<T> row = {};
  row.conditional = logits + blockIdx.x * stride;
  row.vocab = vocab;
  row.impossible = params.impossible;

  Largest mine = {-INFINITY, 0};
  for (uint32_t group = threadIdx.x; group < row.groups(); group += blockDim.x) {
    float l[GROUP];
    row.load(group, l);
#pragma unroll
    for (int i = 0; i < GROUP; ++i) {
      mine.logit = fmaxf(mine.logit, l[i]);
      mine.has_nan |= l[i] != l[i];
    }
  }
  Largest all = block_reduce(mine, {-INFINITY, 0}, scratch.largest, [](const Largest &a, const Largest &b) {
    return Largest{fmaxf(a.logit, b.logit), a.has_nan | b.has_nan};
  });
  uint32_t status = all.has_nan                  ? STATUS_NAN
                    : all.logit == INFINITY      ? STATUS_INFINITE
                    : !(all.logit > -INFINITY)   ? STATUS_NOTHING
                                                 : STATUS_OK;
  if (status != STATUS_OK) {
    if (threadIdx.x == 0)
      found[blockIdx.x] = {status, NONE};
    return;
  }

  Scale scale = {all.logit, 1.0f};
  unsigned long long mass = 0;
  for (uint32_t group = threadIdx.x; group < row.groups(); group += blockDim.x) {
    float l[GROUP];
    row.load(group, l);
#pragma unroll
    for (int i = 0; i < GROUP; ++i)
      mass += mass_of(scale.exponent(l[i]));
  }
  float sum = __fmul_rn(__ull2float_rn(block_sum(mass, scratch.masses)), 0x1p-40f);
  float special = exact::exp(fminf(__fsub_rn(row.at(params.special), all.logit), 0.0f));
  float total = __fadd_rn(__fmul_rn(fmaxf(__fsub_rn(sum, special), 0.0f), params.others),
                          __fmul_rn(special, params.own));

  Draws draws = {params.seed, params.step, params.slot, STREAM_GUMBEL};
  Best best = {-INFINITY, NONE};
  float reach = INFINITY; // e^-best.value, and some more
  for (uint32_t group = threadIdx.x; group < row.groups(); group += blockDim.x) {
    float l[GROUP];
    row.load(group, l);
#pragma unroll
    for (uint32_t half = 0; half < GROUP / 4; ++half) {
      Words words = draws.quad(group * (GROUP / 4) + half);
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        uint32_t state = group * GROUP + half * 4 + i;
        if (state >= vocab)
          continue;
        bool is_special = state == params.special;
        float e = exact::exp(fminf(__fsub_rn(l[half * 4 + i], all.logit), 0.0f));
        float weight = __fadd_rn(__fmul_rn(is_special ? params.special_slope : params.slope, e),
                                 __fmul_rn(is_special ? params.special_offset : params.offset, total));
        // Of a state that is more probable than 2^-126, or whose noise may win.
        if (!(weight >= 0x1p-126f) || float(words.word[i]) * 0x1p-32f > weight * reach)
          continue;
        float value = __fadd_rn(exact::ln(weight), exact::gumbel(words.word[i]));
        if (value > best.value) {
          best = {value, state};
          reach = __expf(1e-3f - value);
        }
      }
    }
  }
  best = block_reduce(best, {-INFINITY, NONE}, scratch.best, better);
  if (threadIdx.x == 0)
    found[blockIdx.x] = {best.state == NONE ? STATUS_NOTHING : STATUS_OK, best.state};
}

#define POSTERIOR(name, type)                                                                                      \
  extern "C" __global__ void __launch_bounds__(512)                                                                \
      name(const type *logits, uint64_t stride, uint32_t vocab, const ReverseRow *rows, ReverseFound *found) {     \
    posterior(logits, stride, vocab, rows, found);                                                                 \
  }

POSTERIOR(posterior_f32, float)
POSTERIOR(posterior_bf16, Bf16)
POSTERIOR(posterior_f16, F16)
