// The convolution kernels of structured state spaces, and one step of the diagonal one.
//
// S4D (2206.11893): K_l = 2 Re sum_n c_n e^{l a_n}, a Vandermonde product. With l = T a + b the power splits,
//     K[a, b] = sum_n 2 Re(c_n e^{T a a_n}) Re e^{b a_n} - 2 Im(c_n e^{T a a_n}) Im e^{b a_n},
// a small real matrix product [L/T, 2N] x [2N, T] for each channel, whose factors need only (L/T + T) N powers. The powers
// are made by products in double precision: a phase of 64k steps of pi keeps an error below 1e-10, where single
// precision would have lost it all. Both gradients are the transposed product.
//
// S4 (2111.00396): r_j = sum_n v_n / (g_j - h_j p_n) + conj(v_n) / (g_j - h_j conj(p_n)), Cauchy sums over a set of poles
// closed under conjugation; sixteen nodes (eight in double precision) are the lanes of a vector and the two reciprocals
// serve four numerators. Double precision is for training: v and p are both multiples of the step size, and the two parts of
// a sum's derivative by it nearly cancel, which costs single precision one to two of its digits.
//
// Limits met, one Zen 5 core (peak 235 GFLOP/s), 32 pairs a channel: the Vandermonde kernel 85 / 142 / 159 GFLOP/s at 4k /
// 16k / 64k steps, its gradient 122 / 146 / 116 (making the powers is the rest); Cauchy sums 120 and their gradient 125
// GFLOP/s (two divisions a node and pole are the rest), in double precision 0.36 and 0.49 of these; the step streams the
// state at 53 GB/s.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <complex>
#include <type_traits>
#include <vector>

#include "BlockProduct.h"
#include "Parallel.h"
#include "Vector.h"

#pragma clang diagnostic ignored "-Wpsabi"

namespace martlet {
namespace {

void checkComplex(const at::Tensor& tensor, const char* name, at::ScalarType type = at::kComplexFloat) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.scalar_type() == type, "martlet: ", name, " must be a ",
              type == at::kComplexFloat ? "complex64" : "complex128", " tensor on the CPU, got ", tensor.scalar_type(), " on ",
              tensor.device());
}

void checkFirstDerivative(const char* name) {
  TORCH_CHECK(!at::GradMode::is_enabled(), "martlet::", name,
              " has no second derivative; use the reference form where create_graph is needed");
}

template <typename Real = float>
std::complex<Real>* complexData(const at::Tensor& tensor) {
  return reinterpret_cast<std::complex<Real>*>(tensor.data_ptr<c10::complex<Real>>());
}

// MARK: Powers of the transitions

/// Complex numbers of one channel in double precision, real and imaginary parts apart.
struct Pairs {
  std::vector<double> re, im;
  explicit Pairs(int64_t count) : re(static_cast<size_t>(count)), im(static_cast<size_t>(count)) {}
  void set(int64_t n, std::complex<double> value) {
    re[static_cast<size_t>(n)] = value.real();
    im[static_cast<size_t>(n)] = value.imag();
  }
  void setPowers(const std::complex<float>* logarithms, int64_t count, double exponent) {
    // The product is exact (24 + 24 bits at most), so the argument is reduced once, inside exp, sine and cosine.
    for (int64_t n = 0; n < count; ++n) set(n, std::exp(std::complex<double>(logarithms[n]) * exponent));
  }
};

/// A single-precision value; what would be close to a denormal is zero, since those are slow and add nothing.
MARTLET_INLINE float narrowed(double value) {
  const float single = static_cast<float>(value);
  return __builtin_fabsf(single) < 1e-30f ? 0.0f : single;
}

/// power <- power * base
MARTLET_VECTOR static void advance(double* __restrict re, double* __restrict im, const double* __restrict baseRe,
                                   const double* __restrict baseIm, int64_t count) {
  MARTLET_FAST_SUMS
  MARTLET_SIMD
  for (int64_t n = 0; n < count; ++n) {
    const double r = re[n] * baseRe[n] - im[n] * baseIm[n];
    im[n] = re[n] * baseIm[n] + im[n] * baseRe[n];
    re[n] = r;
  }
}

/// row <- [2 Re(c power), -2 Im(c power)]
MARTLET_VECTOR static void coefficientRow(float* __restrict row, const double* __restrict cRe, const double* __restrict cIm,
                                          const double* __restrict re, const double* __restrict im, int64_t count) {
  MARTLET_FAST_SUMS
  MARTLET_SIMD
  for (int64_t n = 0; n < count; ++n) {
    row[n] = narrowed(2 * (cRe[n] * re[n] - cIm[n] * im[n]));
    row[count + n] = narrowed(-2 * (cRe[n] * im[n] + cIm[n] * re[n]));
  }
}

/// row <- [Re power, Im power, step Re power, step Im power]
MARTLET_VECTOR static void momentRow(float* __restrict row, const double* __restrict re, const double* __restrict im, double step,
                                     int64_t count) {
  MARTLET_FAST_SUMS
  MARTLET_SIMD
  for (int64_t n = 0; n < count; ++n) {
    row[n] = narrowed(re[n]);
    row[count + n] = narrowed(im[n]);
    row[2 * count + n] = narrowed(step * re[n]);
    row[3 * count + n] = narrowed(step * im[n]);
  }
}

constexpr int64_t smallPowers = 16;

/// out[b] = base^b for b in 0..<length (a multiple of 16), real and imaginary parts: sixteen powers times base^16's.
MARTLET_VECTOR static void powerRow(float* __restrict outRe, float* __restrict outIm, double baseRe, double baseIm, int64_t length) {
  MARTLET_FAST_SUMS
  double smallRe[smallPowers], smallIm[smallPowers];
  double r = 1, i = 0;
  for (int64_t k = 0; k < smallPowers; ++k) {
    smallRe[k] = r;
    smallIm[k] = i;
    const double next = r * baseRe - i * baseIm;
    i = r * baseIm + i * baseRe;
    r = next;
  }
  const double strideRe = r, strideIm = i;
  double re = 1, im = 0;
  for (int64_t b = 0; b < length; b += smallPowers) {
    MARTLET_SIMD
    for (int64_t k = 0; k < smallPowers; ++k) {
      outRe[b + k] = narrowed(re * smallRe[k] - im * smallIm[k]);
      outIm[b + k] = narrowed(re * smallIm[k] + im * smallRe[k]);
    }
    const double next = re * strideRe - im * strideIm;
    im = re * strideIm + im * strideRe;
    re = next;
  }
}

/// sum0 += power (h0 + i h0'), sum1 += power (offset h0 + h1 ...) with row = [h0, h0', h1, h1'].
MARTLET_VECTOR static void addMoments(const float* __restrict row, const double* __restrict re, const double* __restrict im,
                                      double offset, double* __restrict sums, int64_t count) {
  MARTLET_FAST_SUMS
  double* __restrict sum0Re = sums;
  double* __restrict sum0Im = sums + count;
  double* __restrict sum1Re = sums + 2 * count;
  double* __restrict sum1Im = sums + 3 * count;
  MARTLET_SIMD
  for (int64_t n = 0; n < count; ++n) {
    const double h0Re = row[n], h0Im = row[count + n];
    const double h1Re = offset * h0Re + row[2 * count + n], h1Im = offset * h0Im + row[3 * count + n];
    sum0Re[n] += re[n] * h0Re - im[n] * h0Im;
    sum0Im[n] += re[n] * h0Im + im[n] * h0Re;
    sum1Re[n] += re[n] * h1Re - im[n] * h1Im;
    sum1Im[n] += re[n] * h1Im + im[n] * h1Re;
  }
}

// MARK: Vandermonde kernel

constexpr int64_t blockRows = 32;  // rows of a block product

/// T: near the square root of the length, where the powers to make are fewest, within what a block product likes.
int64_t blockSteps(int64_t length) {
  int64_t steps = 16;
  while (steps < 128 && steps * steps < length) steps *= 2;
  return steps;
}

struct VandermondeShape {
  int64_t sets, channels, states;
  VandermondeShape(const at::Tensor& coefficient, const at::Tensor& transition) {
    checkComplex(coefficient, "coefficient");
    checkComplex(transition, "log_transition");
    TORCH_CHECK(transition.dim() == 2, "martlet::vandermonde_kernel: log_transition must be [channels, states], got ",
                transition.sizes());
    TORCH_CHECK((coefficient.dim() == 2 || coefficient.dim() == 3) && coefficient.size(-2) == transition.size(0) &&
                    coefficient.size(-1) == transition.size(1),
                "martlet::vandermonde_kernel: coefficient must be [", transition.size(0), ", ", transition.size(1),
                "] or [sets, ", transition.size(0), ", ", transition.size(1), "], got ", coefficient.sizes());
    sets = coefficient.dim() == 3 ? coefficient.size(0) : 1;
    channels = transition.size(0);
    states = transition.size(1);
  }
};

at::Tensor vandermonde(const at::Tensor& coefficient, const at::Tensor& transition, int64_t length) {
  const VandermondeShape shape(coefficient, transition);
  TORCH_CHECK(length >= 0, "martlet::vandermonde_kernel: length must not be negative, got ", length);
  auto sizes = coefficient.sizes().vec();
  sizes.back() = length;
  at::Tensor kernel = at::empty(sizes, coefficient.options().dtype(at::kFloat));
  const int64_t states = shape.states, width = 2 * states;
  if (kernel.numel() == 0 || states == 0) return kernel.zero_();
  const at::Tensor c = coefficient.contiguous(), logarithms = transition.contiguous();
  const int64_t steps = blockSteps(length), rows = (length + steps - 1) / steps;
  const int64_t padded = (rows + blockRows - 1) / blockRows * blockRows;
  const int64_t scratchSize = width * steps + padded * width + blockRows * steps;
  const int64_t workers = std::min(workerCount(), shape.channels);
  const at::Tensor scratch = at::empty({workers, (scratchSize + 15) / 16 * 16}, kernel.options());
  parallelTasks(shape.channels, [&](int64_t channel, int64_t worker) {
    float* within = scratch.data_ptr<float>() + worker * scratch.size(1);  // [2N, T]: Re, Im of e^{b a_n}
    float* starts = within + width * steps;                                // [L/T, 2N]: 2 Re, -2 Im of c_n e^{T a a_n}
    float* edge = starts + padded * width;
    const auto* logarithm = complexData(logarithms) + channel * states;
    Pairs base(states), power(states), factor(states);
    for (int64_t n = 0; n < states; ++n) {
      const auto one = std::exp(std::complex<double>(logarithm[n]));
      powerRow(within + n * steps, within + (states + n) * steps, one.real(), one.imag(), steps);
    }
    base.setPowers(logarithm, states, static_cast<double>(steps));
    for (int64_t set = 0; set < shape.sets; ++set) {
      const auto* values = complexData(c) + (set * shape.channels + channel) * states;
      for (int64_t n = 0; n < states; ++n) factor.set(n, std::complex<double>(values[n])), power.set(n, 1);
      for (int64_t a = 0; a < rows; ++a) {
        coefficientRow(starts + a * width, factor.re.data(), factor.im.data(), power.re.data(), power.im.data(), states);
        advance(power.re.data(), power.im.data(), base.re.data(), base.im.data(), states);
      }
      std::fill(starts + rows * width, starts + padded * width, 0.0f);
      float* out = kernel.data_ptr<float>() + (set * shape.channels + channel) * length;
      for (int64_t a = 0; a < rows; a += blockRows) {
        const int64_t begin = a * steps, count = std::min(blockRows * steps, length - begin);
        const bool whole = count == blockRows * steps;
        blocks::product(blockRows, steps, width, starts + a * width, width, within, steps, whole ? out + begin : edge, steps, false);
        if (!whole) std::copy_n(edge, count, out + begin);
      }
    }
  });
  return kernel;
}

/// With s0_n = sum_l g_l e^{l a_n} and s1_n = sum_l l g_l e^{l a_n}: the gradients 2 conj(s0) and 2 conj(c s1).
std::tuple<at::Tensor, at::Tensor> vandermondeBackward(const at::Tensor& gradient, const at::Tensor& coefficient,
                                                       const at::Tensor& transition) {
  const VandermondeShape shape(coefficient, transition);
  auto sizes = coefficient.sizes().vec();
  sizes.back() = gradient.dim() == coefficient.dim() ? gradient.size(-1) : -1;
  TORCH_CHECK(gradient.sizes() == at::IntArrayRef(sizes) && gradient.scalar_type() == at::kFloat,
              "martlet::vandermonde_kernel_backward: gradient must be float32 of the kernel's shape, got ", gradient.sizes());
  const int64_t length = sizes.back(), states = shape.states, width = 4 * states;
  at::Tensor coefficientGradient = at::zeros(coefficient.sizes(), coefficient.options());
  at::Tensor transitionGradient = at::zeros(transition.sizes(), transition.options());
  if (coefficientGradient.numel() == 0 || length == 0) return {coefficientGradient, transitionGradient};
  const at::Tensor c = coefficient.contiguous(), logarithms = transition.contiguous(), g = gradient.contiguous();
  const int64_t steps = blockSteps(length), rows = (length + steps - 1) / steps;
  const int64_t scratchSize = steps * width + blockRows * width + blockRows * steps;
  const int64_t workers = std::min(workerCount(), shape.channels);
  const at::Tensor scratch = at::empty({workers, (scratchSize + 15) / 16 * 16}, g.options());
  parallelTasks(shape.channels, [&](int64_t channel, int64_t worker) {
    float* within = scratch.data_ptr<float>() + worker * scratch.size(1);  // [T, 4N]
    float* moments = within + steps * width;                               // [32, 4N]
    float* edge = moments + blockRows * width;
    const auto* logarithm = complexData(logarithms) + channel * states;
    Pairs base(states), power(states);
    base.setPowers(logarithm, states, 1);
    for (int64_t n = 0; n < states; ++n) power.set(n, 1);
    for (int64_t b = 0; b < steps; ++b) {
      momentRow(within + b * width, power.re.data(), power.im.data(), static_cast<double>(b), states);
      advance(power.re.data(), power.im.data(), base.re.data(), base.im.data(), states);
    }
    base.setPowers(logarithm, states, static_cast<double>(steps));
    std::vector<double> sums(static_cast<size_t>(width));
    auto* slope = complexData(transitionGradient) + channel * states;
    std::vector<std::complex<double>> slopes(static_cast<size_t>(states));
    for (int64_t set = 0; set < shape.sets; ++set) {
      const float* upstream = g.data_ptr<float>() + (set * shape.channels + channel) * length;
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int64_t n = 0; n < states; ++n) power.set(n, 1);
      for (int64_t a = 0; a < rows; a += blockRows) {
        const int64_t begin = a * steps, count = std::min(blockRows * steps, length - begin);
        const float* block = upstream + begin;
        if (count < blockRows * steps) {
          std::copy_n(block, count, edge);
          std::fill(edge + count, edge + blockRows * steps, 0.0f);
          block = edge;
        }
        blocks::product(blockRows, width, steps, block, steps, within, width, moments, width, false);
        for (int64_t row = 0; row < std::min(blockRows, rows - a); ++row) {
          addMoments(moments + row * width, power.re.data(), power.im.data(), static_cast<double>((a + row) * steps), sums.data(),
                     states);
          advance(power.re.data(), power.im.data(), base.re.data(), base.im.data(), states);
        }
      }
      const auto* values = complexData(c) + (set * shape.channels + channel) * states;
      auto* out = complexData(coefficientGradient) + (set * shape.channels + channel) * states;
      for (int64_t n = 0; n < states; ++n) {
        const auto at = [&](int64_t i) { return sums[static_cast<size_t>(i * states + n)]; };
        out[n] = std::complex<float>(static_cast<float>(2 * at(0)), static_cast<float>(-2 * at(1)));
        slopes[static_cast<size_t>(n)] += 2.0 * std::conj(std::complex<double>(values[n]) * std::complex<double>(at(2), at(3)));
      }
    }
    for (int64_t n = 0; n < states; ++n) slope[n] = std::complex<float>(slopes[static_cast<size_t>(n)]);
  });
  return {coefficientGradient, transitionGradient};
}

// MARK: Cauchy sums

constexpr int64_t numeratorGroup = 4;   // numerators that share the reciprocals
constexpr int64_t poleParts = 2 + 2 * numeratorGroup;  // of a pole: re, im, then re, im of its four numerators

/// A vector of 64 bytes.
template <typename Real>
struct Row;
template <>
struct Row<float> {
  typedef float Lanes __attribute__((vector_size(64)));
};
template <>
struct Row<double> {
  typedef double Lanes __attribute__((vector_size(64)));
};
template <typename Real>
constexpr int64_t lanes = 64 / sizeof(Real);
/// Nodes whose parts and gradients stay in the first-level cache.
template <typename Real>
constexpr int64_t nodeTile = 4096 / sizeof(Real);
template <typename Real>
constexpr at::ScalarType realType = std::is_same_v<Real, double> ? at::kDouble : at::kFloat;

template <typename Lanes, typename Real>
MARTLET_INLINE void load(Lanes& value, const Real* from) {
  std::memcpy(&value, from, sizeof value);
}
template <typename Lanes, typename Real>
MARTLET_INLINE void store(Real* to, const Lanes& value) {
  std::memcpy(to, &value, sizeof value);
}

/// 1 / (g - h p) and 1 / (g - h conj p). The large terms are taken from each other first, by a multiply-add whose product
/// is exact: near a resonance the difference is then right to its last bits. (Asked for by name, since a product used
/// twice would be rounded for sharing; processors without the instruction compute it slowly.)
template <typename Real, typename Lanes>
MARTLET_INLINE void reciprocals(const Lanes& gRe, const Lanes& gIm, const Lanes& hRe, const Lanes& hIm, Real pRe, Real pIm,
                                Lanes& aRe, Lanes& aIm, Lanes& bRe, Lanes& bIm) {
#pragma clang fp contract(fast)
  const Lanes zero = {}, rotation = zero + pIm, damping = zero - pRe;
  const Lanes uRe = __builtin_elementwise_fma(hRe, damping, __builtin_elementwise_fma(hIm, rotation, gRe));
  const Lanes uIm = __builtin_elementwise_fma(hIm, damping, __builtin_elementwise_fma(-hRe, rotation, gIm));
  const Lanes wRe = __builtin_elementwise_fma(hRe, damping, __builtin_elementwise_fma(-hIm, rotation, gRe));
  const Lanes wIm = __builtin_elementwise_fma(hIm, damping, __builtin_elementwise_fma(hRe, rotation, gIm));
  const Lanes u = Real(1) / (uRe * uRe + uIm * uIm), w = Real(1) / (wRe * wRe + wIm * wIm);
  aRe = uRe * u;
  aIm = -uIm * u;
  bRe = wRe * w;
  bIm = -wIm * w;
}

/// nodes: [4][pitch] g and h, real and imaginary; poles: [count][poleParts]; sums: [4][2][pitch] over the poles.
/// v A + conj(v) B = Re v (A + B) + Im v i (A - B).
template <typename Real>
MARTLET_INLINE void cauchySums(const Real* nodes, int64_t pitch, int64_t length, const Real* poles, int64_t count, Real* sums) {
#pragma clang fp contract(fast)
  typedef typename Row<Real>::Lanes Lanes;
  for (int64_t j = 0; j < length; j += lanes<Real>) {
    Lanes gRe, gIm, hRe, hIm;
    load(gRe, nodes + j);
    load(gIm, nodes + pitch + j);
    load(hRe, nodes + 2 * pitch + j);
    load(hIm, nodes + 3 * pitch + j);
    Lanes re[numeratorGroup] = {}, im[numeratorGroup] = {};
    for (int64_t n = 0; n < count; ++n) {
      const Real* pole = poles + n * poleParts;
      Lanes aRe, aIm, bRe, bIm;
      reciprocals(gRe, gIm, hRe, hIm, pole[0], pole[1], aRe, aIm, bRe, bIm);
      const Lanes sumRe = aRe + bRe, sumIm = aIm + bIm, oddRe = bIm - aIm, oddIm = aRe - bRe;
#pragma clang loop unroll(full)
      for (int m = 0; m < numeratorGroup; ++m) {
        re[m] += pole[2 + 2 * m] * sumRe;
        re[m] += pole[3 + 2 * m] * oddRe;
        im[m] += pole[2 + 2 * m] * sumIm;
        im[m] += pole[3 + 2 * m] * oddIm;
      }
    }
#pragma clang loop unroll(full)
    for (int m = 0; m < numeratorGroup; ++m) {
      store(sums + 2 * m * pitch + j, re[m]);
      store(sums + (2 * m + 1) * pitch + j, im[m]);
    }
  }
}

/// slopes: [count][poleParts], the gradients of `poles` in its layout, are added to. gradient: [4][2][pitch].
///   dv = sum_j G conj(A) + conj(G) B,    dp = sum_j conj(h A^2) sum_m G conj(v) + h B^2 sum_m conj(G v).
template <typename Real>
MARTLET_INLINE void cauchyGradients(const Real* nodes, int64_t pitch, int64_t length, const Real* poles, int64_t count,
                                       const Real* gradient, double* slopes) {
#pragma clang fp contract(fast)
  typedef typename Row<Real>::Lanes Lanes;
  for (int64_t n = 0; n < count; ++n) {
    const Real* pole = poles + n * poleParts;
    Lanes sums[poleParts] = {};
    for (int64_t j = 0; j < length; j += lanes<Real>) {
      Lanes gRe, gIm, hRe, hIm, aRe, aIm, bRe, bIm;
      load(gRe, nodes + j);
      load(gIm, nodes + pitch + j);
      load(hRe, nodes + 2 * pitch + j);
      load(hIm, nodes + 3 * pitch + j);
      reciprocals(gRe, gIm, hRe, hIm, pole[0], pole[1], aRe, aIm, bRe, bIm);
      const Lanes sumRe = aRe + bRe, sumIm = aIm + bIm, oddRe = bIm - aIm, oddIm = aRe - bRe;
      Lanes xa{}, yb{}, ya{}, xb{};
#pragma clang loop unroll(full)
      for (int m = 0; m < numeratorGroup; ++m) {
        Lanes x, y;
        load(x, gradient + 2 * m * pitch + j);
        load(y, gradient + (2 * m + 1) * pitch + j);
        sums[2 + 2 * m] += x * sumRe;
        sums[2 + 2 * m] += y * sumIm;
        sums[3 + 2 * m] += x * oddRe;
        sums[3 + 2 * m] += y * oddIm;
        xa += x * pole[2 + 2 * m];
        yb += y * pole[3 + 2 * m];
        ya += y * pole[2 + 2 * m];
        xb += x * pole[3 + 2 * m];
      }
      const Lanes leftRe = xa + yb, leftIm = ya - xb, rightRe = xa - yb, rightIm = -ya - xb;
      // h A^2 and h B^2
      const Lanes a2Re = aRe * aRe - aIm * aIm, a2Im = Real(2) * aRe * aIm, b2Re = bRe * bRe - bIm * bIm, b2Im = Real(2) * bRe * bIm;
      const Lanes haRe = hRe * a2Re - hIm * a2Im, haIm = hRe * a2Im + hIm * a2Re;
      const Lanes hbRe = hRe * b2Re - hIm * b2Im, hbIm = hRe * b2Im + hIm * b2Re;
      sums[0] += haRe * leftRe + haIm * leftIm + hbRe * rightRe - hbIm * rightIm;
      sums[1] += haRe * leftIm - haIm * leftRe + hbRe * rightIm + hbIm * rightRe;
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < poleParts; ++i) {
      double total = 0;
      for (int lane = 0; lane < lanes<Real>; ++lane) total += static_cast<double>(sums[i][lane]);
      slopes[n * poleParts + i] += total;
    }
  }
}

// Templates can't be cloned for processors, so that each precision has its own clones of the two.
MARTLET_VECTOR static void cauchyTile(const float* nodes, int64_t pitch, int64_t length, const float* poles, int64_t count,
                                      float* sums) {
  cauchySums(nodes, pitch, length, poles, count, sums);
}
MARTLET_VECTOR static void cauchyTile(const double* nodes, int64_t pitch, int64_t length, const double* poles, int64_t count,
                                      double* sums) {
  cauchySums(nodes, pitch, length, poles, count, sums);
}
MARTLET_VECTOR static void cauchyGradientTile(const float* nodes, int64_t pitch, int64_t length, const float* poles,
                                              int64_t count, const float* gradient, double* slopes) {
  cauchyGradients(nodes, pitch, length, poles, count, gradient, slopes);
}
MARTLET_VECTOR static void cauchyGradientTile(const double* nodes, int64_t pitch, int64_t length, const double* poles,
                                              int64_t count, const double* gradient, double* slopes) {
  cauchyGradients(nodes, pitch, length, poles, count, gradient, slopes);
}

struct CauchyShape {
  int64_t numerators, channels, states, nodes;
  CauchyShape(const at::Tensor& v, const at::Tensor& poles, const at::Tensor& g, const at::Tensor& h) {
    const auto type = v.scalar_type() == at::kComplexDouble ? at::kComplexDouble : at::kComplexFloat;
    checkComplex(v, "numerators", type);
    checkComplex(poles, "poles (of the numerators' type)", type);
    checkComplex(g, "nodes_g (of the numerators' type)", type);
    checkComplex(h, "nodes_h (of the numerators' type)", type);
    TORCH_CHECK(poles.dim() == 2, "martlet::cauchy_kernel: poles must be [channels, states], got ", poles.sizes());
    TORCH_CHECK(v.dim() == 3 && v.size(1) == poles.size(0) && v.size(2) == poles.size(1),
                "martlet::cauchy_kernel: numerators must be [count, ", poles.size(0), ", ", poles.size(1), "], got ", v.sizes());
    TORCH_CHECK(g.dim() == 1 && h.sizes() == g.sizes(), "martlet::cauchy_kernel: nodes_g and nodes_h must be [nodes], got ",
                g.sizes(), " and ", h.sizes());
    numerators = v.size(0);
    channels = poles.size(0);
    states = poles.size(1);
    nodes = g.size(0);
  }
  int64_t groups() const { return (numerators + numeratorGroup - 1) / numeratorGroup; }
};

/// [tiles][4][nodeTile]: real and imaginary parts of g and h; beyond the last node g = 1, h = 0, which harms nothing.
template <typename Real>
at::Tensor splitNodes(const at::Tensor& g, const at::Tensor& h) {
  const int64_t count = g.size(0), tiles = (count + nodeTile<Real> - 1) / nodeTile<Real>;
  at::Tensor split = at::zeros({tiles, 4, nodeTile<Real>}, realType<Real>);
  const at::Tensor from[2] = {g.contiguous(), h.contiguous()};
  Real* out = split.data_ptr<Real>();
  for (int64_t j = 0; j < tiles * nodeTile<Real>; ++j) {
    Real* column = out + j / nodeTile<Real> * 4 * nodeTile<Real> + j % nodeTile<Real>;
    for (int64_t part = 0; part < 2; ++part) {
      const std::complex<Real> value = j < count ? complexData<Real>(from[part])[j] : std::complex<Real>(part == 0 ? 1 : 0);
      column[2 * part * nodeTile<Real>] = value.real();
      column[(2 * part + 1) * nodeTile<Real>] = value.imag();
    }
  }
  return split;
}

/// The poles of one channel with the numerators of one group, zero for those that are missing.
template <typename Real>
void packPoles(const CauchyShape& shape, const std::complex<Real>* v, const std::complex<Real>* poles, int64_t channel,
               int64_t group, Real* packed) {
  for (int64_t n = 0; n < shape.states; ++n) {
    Real* out = packed + n * poleParts;
    out[0] = poles[channel * shape.states + n].real();
    out[1] = poles[channel * shape.states + n].imag();
    for (int64_t i = 0; i < numeratorGroup; ++i) {
      const int64_t m = group * numeratorGroup + i;
      const std::complex<Real> value = m < shape.numerators ? v[(m * shape.channels + channel) * shape.states + n] : Real(0);
      out[2 + 2 * i] = value.real();
      out[3 + 2 * i] = value.imag();
    }
  }
}

template <typename Real>
void interleave(const Real* __restrict re, const Real* __restrict im, Real* __restrict out, int64_t count) {
  for (int64_t j = 0; j < count; ++j) {
    out[2 * j] = re[j];
    out[2 * j + 1] = im[j];
  }
}

template <typename Real>
void separate(const Real* __restrict from, Real* __restrict re, Real* __restrict im, int64_t count) {
  for (int64_t j = 0; j < count; ++j) {
    re[j] = from[2 * j];
    im[j] = from[2 * j + 1];
  }
}

template <typename Real>
at::Tensor cauchyOf(const CauchyShape& shape, const at::Tensor& numerators, const at::Tensor& poles, const at::Tensor& nodesG,
                    const at::Tensor& nodesH) {
  at::Tensor out = at::empty({shape.numerators, shape.channels, shape.nodes}, numerators.options());
  if (out.numel() == 0) return out;
  const at::Tensor v = numerators.contiguous(), p = poles.contiguous(), split = splitNodes<Real>(nodesG, nodesH);
  const int64_t poleSize = (shape.states * poleParts + 15) / 16 * 16;
  const int64_t tasks = shape.channels * shape.groups();
  const at::Tensor scratch =
      at::empty({std::min(workerCount(), tasks), poleSize + 2 * numeratorGroup * nodeTile<Real>}, split.options());
  parallelTasks(tasks, [&](int64_t task, int64_t worker) {
    const int64_t channel = task / shape.groups(), group = task % shape.groups();
    Real* packed = scratch.data_ptr<Real>() + worker * scratch.size(1);
    Real* sums = packed + poleSize;
    packPoles(shape, complexData<Real>(v), complexData<Real>(p), channel, group, packed);
    for (int64_t begin = 0; begin < shape.nodes; begin += nodeTile<Real>) {
      const int64_t count = std::min(nodeTile<Real>, shape.nodes - begin);
      cauchyTile(split.data_ptr<Real>() + begin * 4, nodeTile<Real>, count, packed, shape.states, sums);
      for (int64_t i = 0; i < std::min(numeratorGroup, shape.numerators - group * numeratorGroup); ++i) {
        const int64_t m = group * numeratorGroup + i;
        interleave(sums + 2 * i * nodeTile<Real>, sums + (2 * i + 1) * nodeTile<Real>,
                   reinterpret_cast<Real*>(complexData<Real>(out) + (m * shape.channels + channel) * shape.nodes + begin), count);
      }
    }
  });
  return out;
}

template <typename Real>
std::tuple<at::Tensor, at::Tensor> cauchyBackwardOf(const CauchyShape& shape, const at::Tensor& gradient,
                                                    const at::Tensor& numerators, const at::Tensor& poles,
                                                    const at::Tensor& nodesG, const at::Tensor& nodesH) {
  at::Tensor numeratorGradient = at::zeros(numerators.sizes(), numerators.options());
  at::Tensor poleGradient = at::zeros(poles.sizes(), poles.options());
  if (numeratorGradient.numel() == 0 || shape.nodes == 0) return {numeratorGradient, poleGradient};
  const at::Tensor v = numerators.contiguous(), p = poles.contiguous(), g = gradient.contiguous();
  const at::Tensor split = splitNodes<Real>(nodesG, nodesH);
  const int64_t poleSize = (shape.states * poleParts + 15) / 16 * 16;
  const at::Tensor scratch =
      at::empty({std::min(workerCount(), shape.channels), poleSize + 2 * numeratorGroup * nodeTile<Real>}, split.options());
  parallelTasks(shape.channels, [&](int64_t channel, int64_t worker) {
    Real* packed = scratch.data_ptr<Real>() + worker * scratch.size(1);
    Real* upstream = packed + poleSize;
    std::vector<double> slopes(static_cast<size_t>(shape.states * poleParts));
    std::vector<std::complex<double>> poleSlopes(static_cast<size_t>(shape.states));
    for (int64_t group = 0; group < shape.groups(); ++group) {
      packPoles(shape, complexData<Real>(v), complexData<Real>(p), channel, group, packed);
      std::fill(slopes.begin(), slopes.end(), 0.0);
      const int64_t present = std::min(numeratorGroup, shape.numerators - group * numeratorGroup);
      for (int64_t begin = 0; begin < shape.nodes; begin += nodeTile<Real>) {
        const int64_t count = std::min(nodeTile<Real>, shape.nodes - begin);
        // Zero where nodes or numerators are missing: they must add nothing.
        std::fill_n(upstream, 2 * numeratorGroup * nodeTile<Real>, Real(0));
        for (int64_t i = 0; i < present; ++i) {
          const int64_t m = group * numeratorGroup + i;
          separate(reinterpret_cast<const Real*>(complexData<Real>(g) + (m * shape.channels + channel) * shape.nodes + begin),
                   upstream + 2 * i * nodeTile<Real>, upstream + (2 * i + 1) * nodeTile<Real>, count);
        }
        cauchyGradientTile(split.data_ptr<Real>() + begin * 4, nodeTile<Real>, count, packed, shape.states, upstream, slopes.data());
      }
      for (int64_t n = 0; n < shape.states; ++n) {
        const double* from = slopes.data() + n * poleParts;
        poleSlopes[static_cast<size_t>(n)] += std::complex<double>(from[0], from[1]);
        for (int64_t i = 0; i < present; ++i) {
          const int64_t m = group * numeratorGroup + i;
          complexData<Real>(numeratorGradient)[(m * shape.channels + channel) * shape.states + n] =
              std::complex<Real>(static_cast<Real>(from[2 + 2 * i]), static_cast<Real>(from[3 + 2 * i]));
        }
      }
    }
    for (int64_t n = 0; n < shape.states; ++n)
      complexData<Real>(poleGradient)[channel * shape.states + n] = std::complex<Real>(poleSlopes[static_cast<size_t>(n)]);
  });
  return {numeratorGradient, poleGradient};
}

at::Tensor cauchy(const at::Tensor& numerators, const at::Tensor& poles, const at::Tensor& nodesG, const at::Tensor& nodesH) {
  const CauchyShape shape(numerators, poles, nodesG, nodesH);
  return numerators.scalar_type() == at::kComplexDouble ? cauchyOf<double>(shape, numerators, poles, nodesG, nodesH)
                                                        : cauchyOf<float>(shape, numerators, poles, nodesG, nodesH);
}

std::tuple<at::Tensor, at::Tensor> cauchyBackward(const at::Tensor& gradient, const at::Tensor& numerators, const at::Tensor& poles,
                                                  const at::Tensor& nodesG, const at::Tensor& nodesH) {
  const CauchyShape shape(numerators, poles, nodesG, nodesH);
  checkComplex(gradient, "gradient", numerators.scalar_type());
  TORCH_CHECK(gradient.sizes() == at::IntArrayRef({shape.numerators, shape.channels, shape.nodes}),
              "martlet::cauchy_kernel_backward: gradient must be [", shape.numerators, ", ", shape.channels, ", ", shape.nodes,
              "], got ", gradient.sizes());
  return numerators.scalar_type() == at::kComplexDouble
             ? cauchyBackwardOf<double>(shape, gradient, numerators, poles, nodesG, nodesH)
             : cauchyBackwardOf<float>(shape, gradient, numerators, poles, nodesG, nodesH);
}

// MARK: One step

/// x <- transition x + b u; returns 2 Re sum c x. All interleaved complex, `states` of them.
MARTLET_VECTOR static float stepChannel(const float* __restrict c, const float* __restrict b, const float* __restrict transition,
                                        float u, float* __restrict x, int64_t states) {
  MARTLET_FAST_SUMS
  float sum = 0;
  MARTLET_SIMD
  for (int64_t n = 0; n < states; ++n) {
    const float re = transition[2 * n] * x[2 * n] - transition[2 * n + 1] * x[2 * n + 1] + b[2 * n] * u;
    const float im = transition[2 * n] * x[2 * n + 1] + transition[2 * n + 1] * x[2 * n] + b[2 * n + 1] * u;
    x[2 * n] = re;
    x[2 * n + 1] = im;
    sum += c[2 * n] * re - c[2 * n + 1] * im;
  }
  return 2 * sum;
}

at::Tensor diagonalStep(const at::Tensor& input, const at::Tensor& coefficient, const at::Tensor& inputB,
                        const at::Tensor& transition, const std::optional<at::Tensor>& skip, at::Tensor& state) {
  checkComplex(coefficient, "coefficient_c");
  checkComplex(inputB, "input_b");
  checkComplex(transition, "transition");
  checkComplex(state, "state");
  TORCH_CHECK(input.dim() == 2 && input.scalar_type() == at::kFloat && input.device().is_cpu(),
              "martlet::diagonal_ssm_step: input must be float32 [batch, channels] on the CPU, got ", input.scalar_type(), " ",
              input.sizes());
  const int64_t batch = input.size(0), channels = input.size(1);
  TORCH_CHECK(transition.dim() == 2 && transition.size(0) == channels && coefficient.sizes() == transition.sizes() &&
                  inputB.sizes() == transition.sizes(),
              "martlet::diagonal_ssm_step: coefficient_c, input_b and transition must be [", channels, ", states], got ",
              coefficient.sizes(), ", ", inputB.sizes(), " and ", transition.sizes());
  const int64_t states = transition.size(1);
  TORCH_CHECK(state.sizes() == at::IntArrayRef({batch, channels, states}) && state.is_contiguous() && !state.is_conj(),
              "martlet::diagonal_ssm_step: state must be contiguous [", batch, ", ", channels, ", ", states, "], got ",
              state.sizes(), " with strides ", state.strides());
  TORCH_CHECK(!skip || (skip->dim() == 1 && skip->size(0) == channels && skip->scalar_type() == at::kFloat),
              "martlet::diagonal_ssm_step: skip must be float32 [", channels, "], got ", skip->sizes());
  const at::Tensor u = input.contiguous(), c = coefficient.contiguous(), b = inputB.contiguous(), a = transition.contiguous();
  const at::Tensor skips = skip ? skip->contiguous() : at::Tensor();
  at::Tensor output = at::empty({batch, channels}, input.options());
  const auto* cData = reinterpret_cast<const float*>(complexData(c));
  const auto* bData = reinterpret_cast<const float*>(complexData(b));
  const auto* aData = reinterpret_cast<const float*>(complexData(a));
  auto* xData = reinterpret_cast<float*>(complexData(state));
  const float* uData = u.data_ptr<float>();
  const float* dData = skip ? skips.data_ptr<float>() : nullptr;
  float* yData = output.data_ptr<float>();
  // A state is read and written once: 32 KiB of states are worth waking a second core for.
  parallelRanges(batch * channels, std::max<int64_t>(1, 4096 / std::max<int64_t>(states, 1)),
                 [&](int64_t begin, int64_t end, int64_t) {
                   for (int64_t i = begin; i < end; ++i) {
                     const int64_t channel = i % channels, at = 2 * channel * states;
                     const float y = stepChannel(cData + at, bData + at, aData + at, uData[i], xData + 2 * i * states, states);
                     yData[i] = dData ? y + dData[channel] * uData[i] : y;
                   }
                 });
  return output;
}

// MARK: Registration

struct VandermondeKernel : torch::autograd::Function<VandermondeKernel> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& coefficient,
                            const at::Tensor& transition, int64_t length) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto kernel = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("martlet::vandermonde_kernel", "")
                                   .typed<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t)>();
    context->save_for_backward({coefficient, transition});
    return kernel.call(coefficient, transition, length);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    checkFirstDerivative("vandermonde_kernel");
    if (!gradients[0].defined()) return {{}, {}, {}};
    static const auto kernel =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("martlet::vandermonde_kernel_backward", "")
            .typed<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&)>();
    const auto saved = context->get_saved_variables();
    auto [coefficient, transition] = kernel.call(gradients[0], saved[0], saved[1]);
    return {coefficient, transition, {}};
  }
};

struct CauchyKernel : torch::autograd::Function<CauchyKernel> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& numerators, const at::Tensor& poles,
                            const at::Tensor& nodesG, const at::Tensor& nodesH) {
    TORCH_CHECK(!nodesG.requires_grad() && !nodesH.requires_grad(),
                "martlet::cauchy_kernel: the nodes are constants, no gradient reaches nodes_g and nodes_h");
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto kernel =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("martlet::cauchy_kernel", "")
            .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&)>();
    context->save_for_backward({numerators, poles, nodesG, nodesH});
    return kernel.call(numerators, poles, nodesG, nodesH);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    checkFirstDerivative("cauchy_kernel");
    if (!gradients[0].defined()) return {{}, {}, {}, {}};
    static const auto kernel =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("martlet::cauchy_kernel_backward", "")
            .typed<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                      const at::Tensor&, const at::Tensor&)>();
    const auto saved = context->get_saved_variables();
    auto [numerators, poles] = kernel.call(gradients[0], saved[0], saved[1], saved[2], saved[3]);
    return {numerators, poles, {}, {}};
  }
};

at::Tensor vandermondeAutograd(const at::Tensor& coefficient, const at::Tensor& transition, int64_t length) {
  return VandermondeKernel::apply(coefficient, transition, length);
}
at::Tensor cauchyAutograd(const at::Tensor& numerators, const at::Tensor& poles, const at::Tensor& nodesG,
                          const at::Tensor& nodesH) {
  return CauchyKernel::apply(numerators, poles, nodesG, nodesH);
}

TORCH_LIBRARY_FRAGMENT(martlet, library) {
  library.def("vandermonde_kernel(Tensor coefficient, Tensor log_transition, int length) -> Tensor");
  library.def(
      "vandermonde_kernel_backward(Tensor gradient, Tensor coefficient, Tensor log_transition) -> (Tensor, Tensor)");
  library.def("cauchy_kernel(Tensor numerators, Tensor poles, Tensor nodes_g, Tensor nodes_h) -> Tensor");
  library.def(
      "cauchy_kernel_backward(Tensor gradient, Tensor numerators, Tensor poles, Tensor nodes_g, Tensor nodes_h) "
      "-> (Tensor, Tensor)");
  library.def(
      "diagonal_ssm_step(Tensor input, Tensor coefficient_c, Tensor input_b, Tensor transition, Tensor? skip, "
      "Tensor(a!) state) -> Tensor");
}

TORCH_LIBRARY_IMPL(martlet, CPU, library) {
  library.impl("vandermonde_kernel", &vandermonde);
  library.impl("vandermonde_kernel_backward", &vandermondeBackward);
  library.impl("cauchy_kernel", &cauchy);
  library.impl("cauchy_kernel_backward", &cauchyBackward);
  library.impl("diagonal_ssm_step", &diagonalStep);
}

TORCH_LIBRARY_IMPL(martlet, Autograd, library) {
  library.impl("vandermonde_kernel", &vandermondeAutograd);
  library.impl("cauchy_kernel", &cauchyAutograd);
}

}  // namespace
}  // namespace martlet
