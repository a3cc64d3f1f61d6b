// The two row operations on the CPU: see kernels/ttrl_kernels/rows/reference.py, which says the
// same in PyTorch and is what this file is tested against.
//
// A row of logits is read once for its statistics, and read and written once for its gradient,
// where PyTorch makes a dozen passes. Rows are independent, each is summed in a fixed order by one
// thread, so results are the same bits on every run, whatever the number of threads.
//
// Only LibTorch's stable ABI is used: a library built against one version loads in later ones,
// and no Python is linked.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The compiler vectorizes the loops below. A distribution must run on any processor of its kind,
// so nothing is built with -march=native; instead the hot functions exist once per instruction
// set, and the loader picks the best for the machine (CMakeLists.txt tests that the compiler can).
// On aarch64 vectors and FMA are part of the baseline.
#ifdef TTRL_TARGET_CLONES
#define MULTIVERSION \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MULTIVERSION
#endif
// A helper that is inlined is compiled for the instruction set of its caller.
#define INLINE inline __attribute__((always_inline))

namespace {

// Block of a row that stays in the first-level cache between the search for its maximum and the
// sums of its exponentials.
constexpr int64_t BLOCK = 2048;

// --- numbers

struct BFloat16 {
  uint16_t bits;
};

template <class To, class From>
INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

INLINE float load(float x) { return x; }
INLINE float load(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

INLINE void store(float* to, float x) { *to = x; }
INLINE void store(BFloat16* to, float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  to->bits = uint16_t(x != x ? 0x7fc0 : rounded);  // rounding could carry a NaN into infinity
}

// exp(x) = 2^n · (1 + m) with n an integer and |log(1 + m)| <= log(2)/2.
struct Exp {
  float scale;  // 2^n
  float m;      // to full relative precision, also where exp(x) is close to 1
};

// For x <= 88, without a branch. Below -87.7 the exponent field of 2^n is empty, so that exp is
// exactly 0; NaN gives NaN. The polynomial is the Taylor series to the seventh power: its next term
// is below 6e-9 at log(2)/2.
INLINE Exp exp_parts(float x) {
  x = x < -88.0f ? -88.0f : x;
  const float shift = 12582912.0f;  // 1.5·2^23: adding it leaves the rounded integer in the low bits
  const float t = x * 1.44269504f + shift;
  const float n = t - shift;
  float r = x - n * 0.693359375f;  // log 2 in two parts; the product with the first is exact
  r = r + n * 2.12194440e-4f;
  float q = 1.0f / 5040;
  q = q * r + 1.0f / 720;
  q = q * r + 1.0f / 120;
  q = q * r + 1.0f / 24;
  q = q * r + 1.0f / 6;
  q = q * r + 0.5f;
  const float scale = bit_cast<float>((bit_cast<uint32_t>(t) << 23) + 0x3f800000u);
  return {scale, r + r * r * q};
}

INLINE float exp_(float x) {
  const Exp e = exp_parts(x);
  return e.scale + e.scale * e.m;
}

INLINE float tanh_(float x) {  // -expm1(-2|x|) / (2 + expm1(-2|x|)), with the sign of x
  const Exp e = exp_parts(-2 * std::fabs(x));
  const float expm1 = e.scale * e.m + (e.scale - 1);
  return std::copysign(-expm1 / (2 + expm1), x);
}

// --- one row

// z = softcap(u) / τ.
struct Scaling {
  float temperature;
  float cap;  // 0 for none
};

template <bool CAPPED>
INLINE float scaled(float u, Scaling s) {
  return (CAPPED ? s.cap * tanh_(u / s.cap) : u) / s.temperature;
}

struct Stats {
  float row_max, log_sum, logp, entropy;
};

// Sums of a block are taken in float and added up in double: a vocabulary has a hundred thousand
// terms.
template <bool CAPPED, class Logit>
INLINE Stats stats_of_row(const Logit* u, int64_t size, int64_t target, Scaling scaling) {
  const float infinity = std::numeric_limits<float>::infinity();
  float max = -infinity;
  double sum = 0, weighted = 0;  // Σ e^s and Σ s·e^s with s = z - max
  float z[BLOCK];
  for (int64_t start = 0; start < size; start += BLOCK) {
    const int64_t length = size - start < BLOCK ? size - start : BLOCK;
    float block_max = -infinity;
#pragma omp simd reduction(max : block_max)
    for (int64_t i = 0; i < length; ++i) {
      z[i] = scaled<CAPPED>(load(u[start + i]), scaling);
      block_max = z[i] > block_max ? z[i] : block_max;
    }
    if (block_max > max) {
      if (max > -infinity) {  // move the sums so far to the new maximum
        const double down = double(max) - double(block_max);
        const double factor = std::exp(down);
        weighted = factor * (weighted + down * sum);
        sum *= factor;
      }
      max = block_max;
    }
    const float base = max > -infinity ? max : 0.0f;  // -inf - -inf would be NaN
    float block_sum = 0, block_weighted = 0;
#pragma omp simd reduction(+ : block_sum, block_weighted)
    for (int64_t i = 0; i < length; ++i) {
      const float s = z[i] - base;
      const float e = exp_(s);
      block_sum += e;
      block_weighted += e == 0 ? 0.0f : e * s;  // 0·(-inf) would be NaN
    }
    sum += block_sum;
    weighted += block_weighted;
  }
  // No distribution without a finite maximum; a NaN is in the sum already.
  const double log_sum = sum > 0 ? std::log(sum) : std::numeric_limits<double>::quiet_NaN();
  const double shifted = double(scaled<CAPPED>(load(u[target]), scaling)) - double(max);
  return {max, float(log_sum), float(shifted - log_sum), float(log_sum - weighted / sum)};
}

struct Wanted {
  float logp;     // dL/dlogp
  float entropy;  // dL/dentropy
};

template <bool CAPPED, bool ENTROPY>
INLINE float gradient(float u, Scaling scaling, Stats stats, Wanted wanted, float at_target) {
  const float tanh = CAPPED ? tanh_(u / scaling.cap) : 0.0f;
  const float z = (CAPPED ? scaling.cap * tanh : u) / scaling.temperature;
  const float log_p = z - stats.row_max - stats.log_sum;
  const float p = exp_(log_p);
  float factor = wanted.logp;
  if (ENTROPY) {
    const float finite = p == 0 ? 0.0f : log_p;  // 0·(-inf) would be NaN
    factor += wanted.entropy * (finite + stats.entropy);
  }
  const float slope = CAPPED ? 1 - tanh * tanh : 1.0f;
  return (at_target - p * factor) * slope / scaling.temperature;
}

// `from` and `to` are the same row or rows that do not overlap. The numbers of a row are passed by
// value here and below: behind a reference, a store to the row might change them for all the
// compiler knows, and the loop would stay scalar.
template <bool CAPPED, bool ENTROPY, class Logit>
INLINE void gradient_of_row(
    const Logit* from, Logit* to, int64_t size, int64_t target, Scaling scaling, Stats stats,
    Wanted wanted) {
  // p - 1 of the target is formed before anything is rounded to the dtype of the logits.
  const float at_target =
      gradient<CAPPED, ENTROPY>(load(from[target]), scaling, stats, wanted, wanted.logp);
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    store(&to[i], gradient<CAPPED, ENTROPY>(load(from[i]), scaling, stats, wanted, 0.0f));
  }
  store(&to[target], at_target);
}

template <class Logit>
INLINE Stats any_stats_of_row(const Logit* u, int64_t size, int64_t target, Scaling scaling) {
  return scaling.cap == 0 ? stats_of_row<false>(u, size, target, scaling)
                          : stats_of_row<true>(u, size, target, scaling);
}

template <class Logit>
INLINE void any_gradient_of_row(
    const Logit* from, Logit* to, int64_t size, int64_t target, Scaling scaling, Stats stats,
    Wanted wanted) {
  if (scaling.cap == 0 && wanted.entropy == 0) {
    gradient_of_row<false, false>(from, to, size, target, scaling, stats, wanted);
  } else if (scaling.cap == 0) {
    gradient_of_row<false, true>(from, to, size, target, scaling, stats, wanted);
  } else {
    gradient_of_row<true, true>(from, to, size, target, scaling, stats, wanted);
  }
}

// What a template is made into has no versions of its own, hence each by name.
#define ROW_OPERATIONS(Logit)                                                                    \
  MULTIVERSION Stats row_stats(const Logit* u, int64_t size, int64_t target, Scaling scaling) {  \
    return any_stats_of_row(u, size, target, scaling);                                           \
  }                                                                                              \
  MULTIVERSION void row_gradient(                                                                \
      const Logit* from, Logit* to, int64_t size, int64_t target, Scaling scaling, Stats stats,  \
      Wanted wanted) {                                                                           \
    any_gradient_of_row(from, to, size, target, scaling, stats, wanted);                         \
  }
ROW_OPERATIONS(float)
ROW_OPERATIONS(BFloat16)

// --- all rows

template <class T>
T* data(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_contiguous(), "ttrl rows: every tensor must be contiguous");
  return static_cast<T*>(tensor.data_ptr());
}

Scaling make_scaling(float temperature, std::optional<double> softcap) {
  return {temperature, float(softcap.value_or(0))};
}

template <class Logit>
void stats_of_rows(
    const Tensor& logits, const Tensor& targets, const Tensor& temperature,
    std::optional<double> softcap, const Tensor& out) {
  const int64_t rows = logits.size(0), size = logits.size(1);
  const Logit* u = data<Logit>(logits);
  const int64_t* target = data<int64_t>(targets);
  const float* tau = data<float>(temperature);
  float* result = data<float>(out);
  torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const auto stats = row_stats(u + c * size, size, target[c], make_scaling(tau[c], softcap));
      result[c] = stats.row_max;
      result[rows + c] = stats.log_sum;
      result[2 * rows + c] = stats.logp;
      result[3 * rows + c] = stats.entropy;
    }
  });
}

template <class Logit>
void gradients_of_rows(
    const Tensor& logits, const Tensor& rows, const Tensor& targets, const Tensor& temperature,
    std::optional<double> softcap, const Tensor& stats, const Tensor& wanted) {
  const int64_t kept = rows.size(0), size = logits.size(1);
  Logit* u = data<Logit>(logits);
  const int64_t *row = data<int64_t>(rows), *target = data<int64_t>(targets);
  const float *tau = data<float>(temperature), *s = data<float>(stats), *g = data<float>(wanted);
  torch::stable::parallel_for(0, kept, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      row_gradient(u + row[k] * size, u + k * size, size, target[k], make_scaling(tau[k], softcap),
                   {s[k], s[kept + k], s[2 * kept + k], s[3 * kept + k]}, {g[k], g[kept + k]});
    }
  });
}

// --- operators; rows/native.py prepares the arguments and documents them

void row_stats_op(
    Tensor logits, Tensor targets, Tensor temperature, std::optional<double> softcap, Tensor out) {
  const bool wide = logits.scalar_type() == ScalarType::Float;
  const auto run = wide ? stats_of_rows<float> : stats_of_rows<BFloat16>;
  run(logits, targets, temperature, softcap, out);
}

void row_grad_op(
    Tensor logits, Tensor rows, Tensor targets, Tensor temperature, std::optional<double> softcap,
    Tensor stats, Tensor wanted) {
  const bool wide = logits.scalar_type() == ScalarType::Float;
  const auto run = wide ? gradients_of_rows<float> : gradients_of_rows<BFloat16>;
  run(logits, rows, targets, temperature, softcap, stats, wanted);
}

}  // namespace

STABLE_TORCH_LIBRARY(ttrl_rows, m) {
  m.def(
      "row_stats(Tensor logits, Tensor targets, Tensor temperature, float? softcap, "
      "Tensor(a!) out) -> ()");
  m.def(
      "row_grad_(Tensor(a!) logits, Tensor rows, Tensor targets, Tensor temperature, "
      "float? softcap, Tensor stats, Tensor wanted) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ttrl_rows, CPU, m) {
  m.impl("row_stats", TORCH_BOX(&row_stats_op));
  m.impl("row_grad_", TORCH_BOX(&row_grad_op));
}
