// Causal and two-sided convolution of a sequence with one long kernel a channel, as S4, SGConv and LMU use it.
//
//     y_l = sum_{m=0..l} k_m u_{l-m} + skip u_l            (causal)
//     y_l += sum_{m>=0} k'_m u_{l+m}                       (two-sided: a second kernel run on the reversed sequence)
//
// The transform is our own, because the data have a shape that a general library cannot use: many channels of one
// length, channel-last in memory. Sixteen channels are the sixteen lanes of a vector; every butterfly is then plain vector
// arithmetic with broadcast twiddles, without shuffles and without packing.
//
// Zero-padding is avoided by the *right-angle* transform: with z = exp(-2 pi i (j + 1/4) / n) the products of the
// spectra are products of polynomials modulo z^n = -i, so what wraps around lands in the imaginary part and the real
// part is exactly the first n terms of the unwrapped convolution. A real sequence of length n therefore costs one
// complex transform of n points, where the usual real transform needs 2n padded points. As z^-1 is the conjugate of z:
// * correlation (both gradients) multiplies by the conjugate spectrum;
// * a two-sided kernel is the spectrum K + conj(K'), that is the transform of the complex sequence k_l + i k'_{n-l}.
//
// Long transforms take two passes over memory (n = columns x rows, each fitting the first-level cache); the digit-
// reversed order that decimation in frequency leaves is never undone, since decimation in time starts from it.
//
// Limits met, one Zen 5 core (peak 235 GFLOP/s of multiply-adds), counting 5 n log2 n operations a transform: 127 GFLOP/s
// at 4k steps, in the second-level cache, which is what butterflies of half-fused additions can reach; 45 GFLOP/s at 64k,
// where a tile of sixteen channels (8 MiB a spectrum) streams through the shared cache four times.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "Parallel.h"
#include "Vector.h"

#pragma clang diagnostic ignored "-Wpsabi"

namespace martlet {
namespace {

constexpr int64_t lanes = 16;
constexpr int64_t point = 2 * lanes;  // floats a complex point of sixteen channels: real parts, then imaginary parts

/// Taps (of both sides) up to which the direct sum beats the transforms. Measured, forward and backward of 32 channels:
/// the times cross at 80 taps for 512 and 4k steps, and at 190 for 64k, where the transforms leave the second-level cache.
constexpr int64_t directLimit(int64_t length) { return length <= 16384 ? 80 : 192; }

/// Functions of the standard library are not emitted for the clones of MARTLET_VECTOR; hence this one.
MARTLET_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

typedef float Lanes __attribute__((vector_size(64)));
struct Complex {
  Lanes re, im;
};

MARTLET_INLINE void load(Lanes& value, const float* from) { std::memcpy(&value, from, sizeof value); }
MARTLET_INLINE void store(float* to, const Lanes& value) { std::memcpy(to, &value, sizeof value); }
MARTLET_INLINE void load(Complex& value, const float* from) {
  load(value.re, from);
  load(value.im, from + lanes);
}
MARTLET_INLINE void store(float* to, const Complex& value) {
  store(to, value.re);
  store(to + lanes, value.im);
}
MARTLET_INLINE void add(Complex& sum, const Complex& a, const Complex& b) {
  sum.re = a.re + b.re;
  sum.im = a.im + b.im;
}
MARTLET_INLINE void subtract(Complex& difference, const Complex& a, const Complex& b) {
  difference.re = a.re - b.re;
  difference.im = a.im - b.im;
}
/// a += (0, sign) * b
MARTLET_INLINE void addRotated(Complex& sum, const Complex& a, const Complex& b, float sign) {
  sum.re = a.re - sign * b.im;
  sum.im = a.im + sign * b.re;
}
/// x *= (re + i sign im), the factor shared by the sixteen lanes.
MARTLET_INLINE void rotate(Complex& x, const float* factor, float sign) {
#pragma clang fp contract(fast)
  const float c = factor[0], s = sign * factor[1];
  const Lanes re = x.re * c - x.im * s;
  x.im = x.re * s + x.im * c;
  x.re = re;
}
MARTLET_INLINE void multiply(Complex& product, const Complex& a, const Complex& b) {
#pragma clang fp contract(fast)
  const Lanes re = a.re * b.re - a.im * b.im;
  product.im = a.re * b.im + a.im * b.re;
  product.re = re;
}
MARTLET_INLINE void multiplyConjugate(Complex& product, const Complex& a, const Complex& b) {
#pragma clang fp contract(fast)
  const Lanes re = a.re * b.re + a.im * b.im;
  product.im = a.im * b.re - a.re * b.im;
  product.re = re;
}

// MARK: Transforms of one dimension

struct Stage {
  int64_t radix, sub;      // butterflies over points that are `sub` apart, in blocks of radix * sub
  const float* twiddles;   // [sub][radix - 1] pairs (cos, -sin)
};

/// A complex transform of size 2^a times 1, 3 or 5: radix 4 throughout, one odd (or 2) stage at the end.
struct Transform {
  int64_t size = 1, stageCount = 0;
  Stage stage[32];
  std::vector<float> twiddles;
  std::vector<int64_t> frequency;  // of the value that decimation in frequency leaves at each position

  explicit Transform(int64_t size) : size(size), frequency(static_cast<size_t>(size), 0) {
    std::vector<int64_t> radices;
    int64_t rest = size;
    while (rest % 4 == 0 && rest > 1) radices.push_back(4), rest /= 4;
    for (int64_t radix : {2, 3, 5})
      while (rest % radix == 0 && rest > 1) radices.push_back(radix), rest /= radix;
    TORCH_INTERNAL_ASSERT(rest == 1);
    std::vector<size_t> offsets;
    int64_t block = size;
    for (int64_t radix : radices) {
      const int64_t sub = block / radix;
      offsets.push_back(twiddles.size());
      for (int64_t j = 0; j < sub; ++j)
        for (int64_t q = 1; q < radix; ++q) {
          const double angle = -2 * M_PI * static_cast<double>(j * q) / static_cast<double>(block);
          twiddles.push_back(static_cast<float>(std::cos(angle)));
          twiddles.push_back(static_cast<float>(std::sin(angle)));
        }
      // The digit that this stage makes is worth `size / block` in the frequency and `sub` in the position.
      for (int64_t p = 0; p < size; ++p) frequency[static_cast<size_t>(p)] += (p % block) / sub * (size / block);
      stage[stageCount++] = {radix, sub, nullptr};
      block = sub;
    }
    for (size_t i = 0; i < offsets.size(); ++i) stage[i].twiddles = twiddles.data() + offsets[i];
  }
  Transform(const Transform&) = delete;
};

/// The discrete transform of `radix` points at x, x + step, ...; sign -1 forward (e^{-i...}), +1 backward.
template <int radix>
MARTLET_INLINE void butterfly(Complex (&v)[radix], float sign) {
#pragma clang fp contract(fast)
  if constexpr (radix == 2) {
    const Complex a = v[0];
    add(v[0], a, v[1]);
    subtract(v[1], a, v[1]);
  } else if constexpr (radix == 3) {
    Complex sum, difference, middle;
    add(sum, v[1], v[2]);
    subtract(difference, v[1], v[2]);
    middle.re = v[0].re - 0.5f * sum.re;
    middle.im = v[0].im - 0.5f * sum.im;
    add(v[0], v[0], sum);
    const float s = 0.866025403784438647f;
    addRotated(v[1], middle, difference, sign * s);
    addRotated(v[2], middle, difference, -sign * s);
  } else if constexpr (radix == 4) {
    Complex t0, t1, t2, t3;
    add(t0, v[0], v[2]);
    subtract(t1, v[0], v[2]);
    add(t2, v[1], v[3]);
    subtract(t3, v[1], v[3]);
    add(v[0], t0, t2);
    subtract(v[2], t0, t2);
    addRotated(v[1], t1, t3, sign);
    addRotated(v[3], t1, t3, -sign);
  } else {
    static_assert(radix == 5);
    const float c1 = 0.309016994374947424f, c2 = -0.809016994374947424f;
    const float s1 = 0.951056516295153572f, s2 = 0.587785252292473129f;
    Complex a, b, p, q, m1, m2, r1, r2;
    add(a, v[1], v[4]);
    subtract(p, v[1], v[4]);
    add(b, v[2], v[3]);
    subtract(q, v[2], v[3]);
    m1.re = v[0].re + c1 * a.re + c2 * b.re;
    m1.im = v[0].im + c1 * a.im + c2 * b.im;
    m2.re = v[0].re + c2 * a.re + c1 * b.re;
    m2.im = v[0].im + c2 * a.im + c1 * b.im;
    r1.re = s1 * p.re + s2 * q.re;
    r1.im = s1 * p.im + s2 * q.im;
    r2.re = s2 * p.re - s1 * q.re;
    r2.im = s2 * p.im - s1 * q.im;
    v[0].re += a.re + b.re;
    v[0].im += a.im + b.im;
    addRotated(v[1], m1, r1, sign);
    addRotated(v[4], m1, r1, -sign);
    addRotated(v[2], m2, r2, sign);
    addRotated(v[3], m2, r2, -sign);
  }
}

/// One stage over `size` elements of `width` neighbouring points each, which share their twiddles.
template <int radix, bool forward, int width>
MARTLET_INLINE void runStage(float* x, int64_t size, const Stage& stage) {
  const int64_t sub = stage.sub, step = sub * width * point;
  const float* const twiddles = stage.twiddles;
  for (float* block = x; block < x + size * width * point; block += radix * step) {
    const float* twiddle = twiddles;
    for (int64_t j = 0; j < sub; ++j, twiddle += 2 * (radix - 1)) {
      for (int64_t r = 0; r < width; ++r) {
        float* at = block + (j * width + r) * point;
        Complex v[radix];
#pragma clang loop unroll(full)
        for (int q = 0; q < radix; ++q) load(v[q], at + q * step);
        if constexpr (forward) butterfly<radix>(v, -1.0f);
        if (sub > 1) {
#pragma clang loop unroll(full)
          for (int q = 1; q < radix; ++q) rotate(v[q], twiddle + 2 * (q - 1), forward ? 1.0f : -1.0f);
        }
        if constexpr (!forward) butterfly<radix>(v, 1.0f);
#pragma clang loop unroll(full)
        for (int q = 0; q < radix; ++q) store(at + q * step, v[q]);
      }
    }
  }
}

template <bool forward, int width>
MARTLET_INLINE void runStage(float* x, int64_t size, const Stage& stage) {
  switch (stage.radix) {
    case 2: return runStage<2, forward, width>(x, size, stage);
    case 3: return runStage<3, forward, width>(x, size, stage);
    case 4: return runStage<4, forward, width>(x, size, stage);
    default: return runStage<5, forward, width>(x, size, stage);
  }
}

/// In place, natural order to digit-reversed order.
template <int width = 1>
MARTLET_INLINE void transformForward(float* x, const Transform& transform) {
  for (int64_t i = 0; i < transform.stageCount; ++i) runStage<true, width>(x, transform.size, transform.stage[i]);
}
/// In place, digit-reversed order to natural order, without the factor 1/size.
template <int width = 1>
MARTLET_INLINE void transformBackward(float* x, const Transform& transform) {
  for (int64_t i = transform.stageCount; i-- > 0;) runStage<false, width>(x, transform.size, transform.stage[i]);
}

// MARK: The right-angle transform in two passes

/// l = l1 * rows.size + l2. Columns run over l1, rows over l2.
struct RightAngle {
  int64_t size;
  Transform column, row;
  int64_t pitch;              // floats between rows; one point more than the row, so that columns miss no cache sets
  const float* twist;    // [column.size] e^{-i pi l1 / (2 column.size)}
  const float* between;  // [row.size][column.size] e^{-2 pi i l2 (frequency(p) + 1/4) / size}

  RightAngle(const RightAngle&) = delete;
  RightAngle(int64_t columns, int64_t rows) : size(columns * rows), column(columns), row(rows), pitch((rows + 1) * point) {
    tables_.reserve(static_cast<size_t>(2 * (columns + size)));
    for (int64_t l1 = 0; l1 < columns; ++l1) push(static_cast<double>(l1) / static_cast<double>(4 * columns));
    for (int64_t l2 = 0; l2 < rows; ++l2)
      for (int64_t p = 0; p < columns; ++p) {
        const int64_t quarters = l2 * (4 * column.frequency[static_cast<size_t>(p)] + 1) % (4 * size);
        push(static_cast<double>(quarters) / static_cast<double>(4 * size));
      }
    twist = tables_.data();
    between = twist + 2 * columns;
  }
  int64_t floats() const { return column.size * pitch; }

 private:
  std::vector<float> tables_;
  void push(double turns) {
    tables_.push_back(static_cast<float>(std::cos(2 * M_PI * turns)));
    tables_.push_back(static_cast<float>(-std::sin(2 * M_PI * turns)));
  }
};

constexpr int64_t columnLimit = 64;  // four columns of 64 points are 32 KiB

/// The smallest size of the form 2^a times 1, 3 or 5 (at most 4/3 of what is needed), cut in two near its root when it
/// would leave the first-level cache. Columns are short, so that four neighbours fit; rows may fill the second level.
std::shared_ptr<const RightAngle> rightAngle(int64_t length) {
  int64_t best = 1;
  while (best < length) best *= 2;
  int64_t odd = 1;
  for (int64_t factor : {3, 5}) {
    int64_t size = factor;
    while (size < length) size *= 2;
    if (size < best) best = size, odd = factor;
  }
  const int64_t power = best / odd;
  int64_t columns = 1;
  if (best > 512)
    while (columns * columns * 2 <= best && columns < columnLimit && columns < power) columns *= 2;
  static std::mutex lock;
  static std::map<int64_t, std::shared_ptr<const RightAngle>> plans;
  std::lock_guard<std::mutex> hold(lock);
  auto& plan = plans[best];
  if (!plan) plan = std::make_shared<const RightAngle>(columns, best / columns);
  return plan;
}

/// A sequence of packed steps, `pitch` floats apart, and, for two-sided kernels, a second one ([length][16], may be null)
/// whose step m >= 1 is the imaginary part at size - m.
struct Steps {
  float* data;
  int64_t pitch, length;
  float* wrapped = nullptr;
};

/// `width` neighbouring columns from l2 on: gathered, twisted, transformed, twisted again, spread over the rows of `work`.
template <int width>
MARTLET_INLINE void forwardColumn(const Steps& source, const RightAngle& plan, int64_t l2, float* work, float* column) {
#pragma clang fp contract(fast)
  const int64_t columns = plan.column.size, rows = plan.row.size, length = source.length;
  const float* const twist = plan.twist;
  for (int64_t l1 = 0; l1 < columns; ++l1) {
    const float c = twist[2 * l1], s = twist[2 * l1 + 1];
    for (int64_t r = 0; r < width; ++r) {
      const int64_t l = l1 * rows + l2 + r, mirrored = plan.size - l;
      Complex v{};
      Lanes value;
      if (l < length) {
        load(value, source.data + l * source.pitch);
        v.re = value * c;
        v.im = value * s;
      }
      if (source.wrapped && mirrored < length) {
        load(value, source.wrapped + mirrored * lanes);
        v.re -= value * s;
        v.im += value * c;
      }
      store(column + (l1 * width + r) * point, v);
    }
  }
  transformForward<width>(column, plan.column);
  const float* const between = plan.between + 2 * l2 * columns;
  for (int64_t p = 0; p < columns; ++p)
    for (int64_t r = 0; r < width; ++r) {
      Complex v;
      load(v, column + (p * width + r) * point);
      rotate(v, between + 2 * (r * columns + p), 1.0f);
      store(work + p * plan.pitch + (l2 + r) * point, v);
    }
}

/// The column half of the forward transform; zero beyond the length.
MARTLET_VECTOR static void forwardColumns(const Steps& source, const RightAngle& plan, float* work, float* column) {
  const int64_t rows = plan.row.size;
  int64_t l2 = 0;
  for (; l2 + 4 <= rows; l2 += 4) forwardColumn<4>(source, plan, l2, work, column);
  for (; l2 < rows; ++l2) forwardColumn<1>(source, plan, l2, work, column);
}

template <int width>
MARTLET_INLINE void backwardColumn(const float* work, float* column, const RightAngle& plan, int64_t l2, const Steps& target,
                                   const Steps& base, const Lanes& skips) {
#pragma clang fp contract(fast)
  const int64_t columns = plan.column.size, rows = plan.row.size, length = target.length;
  const float scale = static_cast<float>(1.0 / static_cast<double>(plan.size));
  const float* const twist = plan.twist;
  const float* const between = plan.between + 2 * l2 * columns;
  for (int64_t p = 0; p < columns; ++p)
    for (int64_t r = 0; r < width; ++r) {
      Complex v;
      load(v, work + p * plan.pitch + (l2 + r) * point);
      rotate(v, between + 2 * (r * columns + p), -1.0f);
      store(column + (p * width + r) * point, v);
    }
  transformBackward<width>(column, plan.column);
  for (int64_t l1 = 0; l1 < columns; ++l1) {
    const float c = twist[2 * l1] * scale, s = twist[2 * l1 + 1] * scale;
    for (int64_t r = 0; r < width; ++r) {
      const int64_t l = l1 * rows + l2 + r, mirrored = plan.size - l;
      Complex v;
      load(v, column + (l1 * width + r) * point);
      if (l < length) {
        Lanes value = v.re * c + v.im * s;
        if (base.data) {
          Lanes input;
          load(input, base.data + l * base.pitch);
          value += skips * input;
        }
        store(target.data + l * target.pitch, value);
      }
      if (target.wrapped && mirrored < length) store(target.wrapped + mirrored * lanes, v.im * c - v.re * s);
    }
  }
}

/// The column half of the backward transform, with the factor 1/size; skip times `base` is added unless its data is null.
MARTLET_VECTOR static void backwardColumns(const float* work, float* column, const RightAngle& plan, const Steps& target,
                                           const Steps& base, const float* skip) {
  Lanes skips{};
  if (base.data) load(skips, skip);
  const int64_t rows = plan.row.size;
  int64_t l2 = 0;
  for (; l2 + 4 <= rows; l2 += 4) backwardColumn<4>(work, column, plan, l2, target, base, skips);
  for (; l2 < rows; ++l2) backwardColumn<1>(work, column, plan, l2, target, base, skips);
}

/// input <- the rows of F^-1(F(input) kernel), `kernel` already a spectrum unless `fresh`.
MARTLET_VECTOR static void convolveRows(float* input, float* kernel, bool fresh, const RightAngle& plan) {
  for (int64_t p = 0; p < plan.column.size; ++p) {
    float* u = input + p * plan.pitch;
    float* k = kernel + p * plan.pitch;
    transformForward(u, plan.row);
    if (fresh) transformForward(k, plan.row);
    for (int64_t i = 0; i < plan.row.size * point; i += point) {
      Complex a, b;
      load(a, u + i);
      load(b, k + i);
      multiply(a, a, b);
      store(u + i, a);
    }
    transformBackward(u, plan.row);
  }
}

/// gradient <- rows of F^-1(F(gradient) conj(kernel)); product (+)= F(gradient) conj(F(input)). With `last` the product
/// is transformed back too. `product` may be `input`.
MARTLET_VECTOR static void correlateRows(float* input, float* gradient, float* kernel, float* product, bool fresh,
                                         bool accumulate, bool last, bool needsInput, bool needsKernel,
                                         const RightAngle& plan) {
  for (int64_t p = 0; p < plan.column.size; ++p) {
    float* u = needsKernel ? input + p * plan.pitch : nullptr;
    float* g = gradient + p * plan.pitch;
    float* k = needsInput ? kernel + p * plan.pitch : nullptr;
    float* sum = needsKernel ? product + p * plan.pitch : nullptr;
    transformForward(g, plan.row);
    if (needsKernel) {
      transformForward(u, plan.row);
      for (int64_t i = 0; i < plan.row.size * point; i += point) {
        Complex a, b;
        load(a, g + i);
        load(b, u + i);
        multiplyConjugate(b, a, b);
        if (accumulate) {
          Complex before;
          load(before, sum + i);
          add(b, b, before);
        }
        store(sum + i, b);
      }
      if (last) transformBackward(sum, plan.row);
    }
    if (needsInput) {
      if (fresh) transformForward(k, plan.row);
      for (int64_t i = 0; i < plan.row.size * point; i += point) {
        Complex a, b;
        load(a, g + i);
        load(b, k + i);
        multiplyConjugate(a, a, b);
        store(g + i, a);
      }
      transformBackward(g, plan.row);
    }
  }
}

// MARK: The direct sum, for short kernels

/// y_l = sum_i w_i u_{l - i}, `input` readable from taps - 1 steps before its start. All packed, sixteen channels a step.
/// Eight outputs at once: one multiply-add a loaded vector, two a cycle.
MARTLET_VECTOR static void directForward(const float* input, const float* taps, int64_t tapCount, int64_t length, float* output) {
#pragma clang fp contract(fast)
  for (int64_t l = 0; l < length; l += 8) {
    Lanes sums[8] = {};
    for (int64_t i = 0; i < tapCount; ++i) {
      Lanes w;
      load(w, taps + i * lanes);
      const float* u = input + (l - i) * lanes;
#pragma clang loop unroll(full)
      for (int j = 0; j < 8; ++j) {
        Lanes value;
        load(value, u + j * lanes);
        sums[j] += w * value;
      }
    }
#pragma clang loop unroll(full)
    for (int j = 0; j < 8; ++j) store(output + (l + j) * lanes, sums[j]);
  }
}

/// sums_i += sum_l g_l u_{l - i}; eight taps at once. `tapCount` is a multiple of eight.
MARTLET_VECTOR static void directTaps(const float* input, const float* gradient, int64_t tapCount, int64_t length, float* sums) {
#pragma clang fp contract(fast)
  for (int64_t i = 0; i < tapCount; i += 8) {
    Lanes partial[8] = {};
    for (int64_t l = 0; l < length; ++l) {
      Lanes g;
      load(g, gradient + l * lanes);
      const float* u = input + (l - i) * lanes;
#pragma clang loop unroll(full)
      for (int j = 0; j < 8; ++j) {
        Lanes value;
        load(value, u - j * lanes);
        partial[j] += g * value;
      }
    }
#pragma clang loop unroll(full)
    for (int j = 0; j < 8; ++j) {
      Lanes before;
      load(before, sums + (i + j) * lanes);
      store(sums + (i + j) * lanes, before + partial[j]);
    }
  }
}

// MARK: Tiles of sixteen channels

template <int half>
MARTLET_INLINE void interleave(Lanes& result, const Lanes& a, const Lanes& b) {
  if constexpr (half == 0)
    result = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  else
    result = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

/// Four rounds of perfect shuffles transpose sixteen rows.
MARTLET_INLINE void transpose(Lanes (&rows)[16]) {
#pragma clang loop unroll(full)
  for (int round = 0; round < 4; ++round) {
    Lanes next[16];
#pragma clang loop unroll(full)
    for (int i = 0; i < 8; ++i) {
      interleave<0>(next[2 * i], rows[i], rows[i + 8]);
      interleave<1>(next[2 * i + 1], rows[i], rows[i + 8]);
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < 16; ++i) rows[i] = next[i];
  }
}

/// packed[l][c] = from[c * channelStride + l * timeStride], zero for c >= channels.
MARTLET_VECTOR static void packTile(const float* from, int64_t channelStride, int64_t timeStride, int64_t channels,
                                    int64_t length, float* packed) {
  int64_t l = 0;
  if (timeStride == 1) {
    for (; l + 16 <= length; l += 16) {
      Lanes rows[16] = {};
      if (channels == lanes) {
#pragma clang loop unroll(full)
        for (int c = 0; c < 16; ++c) load(rows[c], from + c * channelStride + l);
      } else {
        for (int64_t c = 0; c < channels; ++c) load(rows[c], from + c * channelStride + l);
      }
      transpose(rows);
#pragma clang loop unroll(full)
      for (int i = 0; i < 16; ++i) store(packed + (l + i) * lanes, rows[i]);
    }
  }
  for (; l < length; ++l)
    for (int64_t c = 0; c < lanes; ++c) packed[l * lanes + c] = c < channels ? from[c * channelStride + l * timeStride] : 0.0f;
}

MARTLET_VECTOR static void unpackTile(const float* packed, int64_t channels, int64_t length, float* to, int64_t channelStride,
                                      int64_t timeStride) {
  int64_t l = 0;
  if (timeStride == 1) {
    for (; l + 16 <= length; l += 16) {
      Lanes rows[16];
#pragma clang loop unroll(full)
      for (int i = 0; i < 16; ++i) load(rows[i], packed + (l + i) * lanes);
      transpose(rows);
      if (channels == lanes) {
#pragma clang loop unroll(full)
        for (int c = 0; c < 16; ++c) store(to + c * channelStride + l, rows[c]);
      } else {
        for (int64_t c = 0; c < channels; ++c) store(to + c * channelStride + l, rows[c]);
      }
    }
  }
  for (; l < length; ++l)
    for (int64_t c = 0; c < channels; ++c) to[c * channelStride + l * timeStride] = packed[l * lanes + c];
}

/// sums[c] += sum_l a[l][c] b[l][c], short runs in single precision, their sums in double.
MARTLET_VECTOR static void addProducts(const float* a, int64_t aPitch, const float* b, int64_t bPitch, int64_t length, double* sums) {
#pragma clang fp contract(fast)
  for (int64_t begin = 0; begin < length; begin += 64) {
    Lanes run{};
    for (int64_t l = begin; l < lesser(begin + 64, length); ++l) {
      Lanes x, y;
      load(x, a + l * aPitch);
      load(y, b + l * bPitch);
      run += x * y;
    }
    for (int c = 0; c < lanes; ++c) sums[c] += static_cast<double>(run[c]);
  }
}

/// target[l][c] += skip[c] base[l][c], packed target.
MARTLET_VECTOR static void addSkip(float* target, const float* base, int64_t basePitch, int64_t length, const float* skip) {
#pragma clang fp contract(fast)
  Lanes factors;
  load(factors, skip);
  for (int64_t l = 0; l < length; ++l) {
    Lanes sum, value;
    load(sum, target + l * lanes);
    load(value, base + l * basePitch);
    store(target + l * lanes, sum + factors * value);
  }
}

/// Sixteen channels (or fewer, the last) of one sequence of a batch, wherever its strides put them.
struct Tile {
  float* data;
  int64_t channelStride, timeStride, channels, length;

  /// Whether whole vectors can be read and written in place.
  bool direct() const { return channelStride == 1 && channels == lanes; }
  /// A view of packed steps: in place where possible, else in `scratch` ([length][16]).
  Steps view(float* scratch) const {
    return direct() ? Steps{data, timeStride, length} : Steps{scratch, lanes, length};
  }
  /// The same, filled.
  Steps steps(float* scratch) const {
    if (!direct()) packTile(data, channelStride, timeStride, channels, length, scratch);
    return view(scratch);
  }
};

Tile tileOf(const at::Tensor& sequence, int64_t batch, int64_t group) {
  const int64_t first = group * lanes;
  return {sequence.data_ptr<float>() + batch * sequence.stride(0) + first * sequence.stride(1), sequence.stride(1),
          sequence.stride(2), std::min(lanes, sequence.size(1) - first), sequence.size(2)};
}
Tile kernelTileOf(const at::Tensor& kernel, int64_t group, int64_t length) {
  const int64_t first = group * lanes;
  return {kernel.data_ptr<float>() + first * kernel.stride(0), kernel.stride(0), kernel.stride(1),
          std::min(lanes, kernel.size(0) - first), length};
}

/// Scratch of one worker: named pieces of one allocation.
class Scratch {
 public:
  explicit Scratch(std::initializer_list<int64_t> sizes) {
    for (int64_t size : sizes) offsets_.push_back(total_), total_ += (size + 15) / 16 * 16;
  }
  void allocate(int64_t workers) { storage_ = at::empty({workers * total_}, at::kFloat); }
  float* piece(int64_t worker, size_t index) const { return storage_.data_ptr<float>() + worker * total_ + offsets_[index]; }

 private:
  int64_t total_ = 0;
  std::vector<int64_t> offsets_;
  at::Tensor storage_;
};

/// Channel groups and, where those are fewer than the workers, pieces of the batch.
struct Division {
  int64_t groups, pieces, batch;
  Division(int64_t batch, int64_t channels)
      : groups((channels + lanes - 1) / lanes),
        pieces(std::max<int64_t>(1, std::min(batch, (workerCount() + groups - 1) / std::max<int64_t>(groups, 1)))),
        batch(batch) {}
  int64_t tasks() const { return groups * pieces; }
  int64_t begin(int64_t piece) const { return batch * piece / pieces; }
};

// MARK: Operators

void checkArguments(const at::Tensor& input, const at::Tensor& kernel, const std::optional<at::Tensor>& reversed,
                    const std::optional<at::Tensor>& skip) {
  TORCH_CHECK(input.dim() == 3, "martlet::fft_convolution: input must be [batch, channels, length], got ", input.sizes());
  TORCH_CHECK(kernel.dim() == 2 && kernel.size(0) == input.size(1), "martlet::fft_convolution: kernel must be [",
              input.size(1), " (channels), taps], got ", kernel.sizes());
  TORCH_CHECK(!reversed || reversed->sizes() == kernel.sizes(),
              "martlet::fft_convolution_bidirectional: backward_kernel must have the forward kernel's shape ", kernel.sizes(),
              ", got ", reversed->sizes());
  TORCH_CHECK(!skip || (skip->dim() == 1 && skip->size(0) == input.size(1)), "martlet::fft_convolution: skip must be [",
              input.size(1), " (channels)], got ", skip->sizes());
  const auto check = [](const at::Tensor& tensor, const char* name) {
    TORCH_CHECK(tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat, "martlet::fft_convolution: ", name,
                " must be a float32 tensor on the CPU, got ", tensor.scalar_type(), " on ", tensor.device());
  };
  check(input, "input");
  check(kernel, "kernel");
  if (reversed) check(*reversed, "backward_kernel");
  if (skip) check(*skip, "skip");
}

/// The taps of a short two-sided kernel in the order of `directForward`: [k'_{M-1} .. k'_1, k_0 + k'_0, k_1 .. k_{M-1}].
void twoSidedTaps(const float* kernel, const float* reversed, int64_t taps, float* out) {
  const int64_t ahead = reversed ? taps - 1 : 0;
  std::memcpy(out + ahead * lanes, kernel, static_cast<size_t>(taps * lanes) * sizeof(float));
  if (!reversed) return;
  for (int64_t m = 0; m < taps; ++m)
    for (int64_t c = 0; c < lanes; ++c)
      m ? out[(ahead - m) * lanes + c] = reversed[m * lanes + c] : out[ahead * lanes + c] += reversed[c];
}

constexpr int64_t directSegment = 512;  // outputs of the direct sum that stay in the second-level cache

/// Copies steps begin..<begin+count of a tile to `packed`, zero outside 0..<length.
void packSegment(const Tile& tile, int64_t begin, int64_t count, float* packed) {
  const int64_t first = std::clamp<int64_t>(begin, 0, tile.length), last = std::clamp<int64_t>(begin + count, 0, tile.length);
  if (first >= last) return std::fill_n(packed, count * lanes, 0.0f), void();
  std::fill_n(packed, (first - begin) * lanes, 0.0f);
  packTile(tile.data + first * tile.timeStride, tile.channelStride, tile.timeStride, tile.channels, last - first,
           packed + (first - begin) * lanes);
  std::fill_n(packed + (last - begin) * lanes, (begin + count - last) * lanes, 0.0f);
}

at::Tensor convolve(const at::Tensor& input, const at::Tensor& kernel, const std::optional<at::Tensor>& reversed,
                    const std::optional<at::Tensor>& skip) {
  checkArguments(input, kernel, reversed, skip);
  at::Tensor output = at::empty_like(input);
  if (output.numel() == 0) return output;
  const int64_t batch = input.size(0), channels = input.size(1), length = input.size(2);
  const int64_t taps = std::min(kernel.size(1), length);
  const at::Tensor skips = skip ? skip->contiguous() : at::Tensor();
  if (taps == 0) return skip ? output.copy_(input * skips.unsqueeze(1)) : output.zero_();
  const Division division(batch, channels);
  const int64_t ahead = reversed ? taps - 1 : 0, window = taps + ahead;
  const bool direct = window <= directLimit(length);
  const auto plan = direct ? nullptr : rightAngle(length);
  const int64_t sequence = direct ? (directSegment + window) * lanes : length * lanes;
  const int64_t work = direct ? 0 : plan->floats();
  // Pieces: 0 kernel steps, 1 reversed kernel steps (direct: two-sided taps), 2 sequence in, 3 sequence out,
  // 4 kernel spectrum, 5 sequence spectrum, 6 one column, 7 skip.
  Scratch scratch({taps * lanes, (reversed || direct ? 2 * taps : 0) * lanes, sequence, sequence, work, work,
                   direct ? 0 : 4 * plan->column.size * point, lanes, direct ? taps * lanes : 0});
  scratch.allocate(std::min(workerCount(), division.tasks()));

  parallelTasks(division.tasks(), [&](int64_t task, int64_t worker) {
    const int64_t group = task / division.pieces, piece = task % division.pieces;
    const auto at = [&](size_t index) { return scratch.piece(worker, index); };
    const Tile kernelTile = kernelTileOf(kernel, group, taps);
    float* factors = at(7);
    std::fill_n(factors, lanes, 0.0f);
    if (skip) std::copy_n(skips.data_ptr<float>() + group * lanes, kernelTile.channels, factors);
    packTile(kernelTile.data, kernelTile.channelStride, kernelTile.timeStride, kernelTile.channels, taps, at(0));
    float* back = nullptr;
    if (reversed) {
      const Tile tile = kernelTileOf(*reversed, group, taps);
      back = direct ? at(8) : at(1);
      packTile(tile.data, tile.channelStride, tile.timeStride, tile.channels, taps, back);
    }
    if (direct) {
      twoSidedTaps(at(0), back, taps, at(1));
      for (int64_t b = division.begin(piece); b < division.begin(piece + 1); ++b) {
        const Tile u = tileOf(input, b, group), y = tileOf(output, b, group);
        for (int64_t begin = 0; begin < length; begin += directSegment) {
          const int64_t count = std::min(directSegment, length - begin), rounded = (count + 7) / 8 * 8;
          // Output l reads u_{l + ahead} .. u_{l - taps + 1}.
          packSegment(u, begin - taps + 1, rounded + window - 1, at(2));
          directForward(at(2) + (window - 1) * lanes, at(1), window, rounded, at(3));
          if (skip) addSkip(at(3), at(2) + (taps - 1) * lanes, lanes, count, factors);
          unpackTile(at(3), y.channels, count, y.data + begin * y.timeStride, y.channelStride, y.timeStride);
        }
      }
      return;
    }
    if (reversed)  // step 0 belongs to both kernels
      for (int64_t c = 0; c < lanes; ++c) at(0)[c] += back[c];
    forwardColumns(Steps{at(0), lanes, taps, back}, *plan, at(4), at(6));
    bool fresh = true;
    for (int64_t b = division.begin(piece); b < division.begin(piece + 1); ++b, fresh = false) {
      const Tile u = tileOf(input, b, group), y = tileOf(output, b, group);
      const Steps steps = u.steps(at(2)), target = y.view(at(3));
      forwardColumns(steps, *plan, at(5), at(6));
      convolveRows(at(5), at(4), fresh, *plan);
      backwardColumns(at(5), at(6), *plan, target, skip ? steps : Steps{}, factors);
      if (!y.direct()) unpackTile(target.data, y.channels, length, y.data, y.channelStride, y.timeStride);
    }
  });
  return output;
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

/// Gradients for input, kernel, reversed kernel and skip; undefined where not asked for.
Gradients convolveBackward(const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& kernel,
                           const std::optional<at::Tensor>& reversed, const std::optional<at::Tensor>& skip,
                           std::array<bool, 3> needs) {
  checkArguments(input, kernel, reversed, skip);
  TORCH_CHECK(gradient.sizes() == input.sizes() && gradient.scalar_type() == at::kFloat,
              "martlet::fft_convolution_backward: gradient must be float32 of the input's shape ", input.sizes(), ", got ",
              gradient.sizes());
  const bool needsInput = needs[0], needsKernel = needs[1], needsSkip = needs[2] && skip.has_value();
  const int64_t batch = input.size(0), channels = input.size(1), length = input.size(2);
  const int64_t taps = std::min(kernel.size(1), length);
  const bool empty = batch * channels * taps == 0;
  const at::Tensor skips = skip ? skip->contiguous() : at::Tensor();
  at::Tensor inputGradient, skipGradient, kernelGradient, reversedGradient;
  if (needsInput) inputGradient = at::empty_like(input);
  if (empty) {
    if (needsInput) skip ? inputGradient.copy_(gradient * skips.unsqueeze(1)) : inputGradient.zero_();
    if (needsSkip) skipGradient = (gradient * input).sum({0, 2});
    if (needsKernel) kernelGradient = at::zeros_like(kernel, at::MemoryFormat::Contiguous);
    if (needsKernel && reversed) reversedGradient = at::zeros_like(kernel, at::MemoryFormat::Contiguous);
    return {inputGradient, kernelGradient, reversedGradient, skipGradient};
  }
  const Division division(batch, channels);
  const int64_t pieces = division.pieces;
  // One slice a piece of the batch, summed at the end.
  if (needsKernel) kernelGradient = at::zeros({pieces, channels, kernel.size(1)}, kernel.options());
  if (needsKernel && reversed) reversedGradient = at::zeros({pieces, channels, kernel.size(1)}, kernel.options());
  if (needsSkip) skipGradient = at::zeros({pieces, channels}, kernel.options());
  const int64_t ahead = reversed ? taps - 1 : 0, window = taps + ahead, rounded = (window + 7) / 8 * 8;
  const bool direct = window <= directLimit(length);
  const auto plan = direct ? nullptr : rightAngle(length);
  const int64_t sequence = direct ? (directSegment + rounded + window) * lanes : length * lanes;
  const int64_t work = direct ? 0 : plan->floats();
  const bool separate = division.batch > division.pieces;  // some piece holds more than one sequence
  // Pieces: 0 kernel, 1 reversed kernel, 2 input, 3 gradient, 4 kernel spectrum, 5 input spectrum, 6 gradient spectrum,
  // 7 sum of products, 8 one column, 9 skip, 10 direct: taps, 11 direct: sums of the taps, 12 direct: output.
  Scratch scratch({taps * lanes, taps * lanes, sequence, sequence, needsInput ? work : 0, needsKernel ? work : 0, work,
                   needsKernel && separate ? work : 0, direct ? 0 : 4 * plan->column.size * point, lanes,
                   direct ? window * lanes : 0, direct ? rounded * lanes : 0, direct ? sequence : 0});
  scratch.allocate(std::min(workerCount(), division.tasks()));

  parallelTasks(division.tasks(), [&](int64_t task, int64_t worker) {
    const int64_t group = task / pieces, piece = task % pieces;
    const auto at = [&](size_t index) { return scratch.piece(worker, index); };
    const Tile kernelTile = kernelTileOf(kernel, group, taps);
    const int64_t groupChannels = kernelTile.channels;
    float* factors = at(9);
    std::fill_n(factors, lanes, 0.0f);
    if (skip) std::copy_n(skips.data_ptr<float>() + group * lanes, groupChannels, factors);
    double skipSums[lanes] = {};
    packTile(kernelTile.data, kernelTile.channelStride, kernelTile.timeStride, groupChannels, taps, at(0));
    float* back = nullptr;
    if (reversed) {
      const Tile tile = kernelTileOf(*reversed, group, taps);
      back = at(1);
      packTile(tile.data, tile.channelStride, tile.timeStride, tile.channels, taps, back);
    }
    const int64_t beginBatch = division.begin(piece), endBatch = division.begin(piece + 1);
    if (direct) {
      twoSidedTaps(at(0), back, taps, at(10));
      // Correlation is the convolution with the taps in reverse order.
      for (int64_t i = 0; i < window / 2; ++i)
        for (int64_t c = 0; c < lanes; ++c) std::swap(at(10)[i * lanes + c], at(10)[(window - 1 - i) * lanes + c]);
      std::fill_n(at(11), rounded * lanes, 0.0f);
      for (int64_t b = beginBatch; b < endBatch; ++b) {
        const Tile u = tileOf(input, b, group), g = tileOf(gradient, b, group);
        for (int64_t begin = 0; begin < length; begin += directSegment) {
          const int64_t count = std::min(directSegment, length - begin), outputs = (count + 7) / 8 * 8;
          // Gradient of u_l reads g_{l - ahead} .. g_{l + taps - 1}.
          packSegment(g, begin - ahead, outputs + window - 1, at(3));
          if (needsKernel || needsSkip) {
            // Tap i pairs g_l with u_{l + ahead - i}.
            packSegment(u, begin + ahead - rounded + 1, count + rounded - 1, at(2));
            if (needsKernel) directTaps(at(2) + (rounded - 1) * lanes, at(3) + ahead * lanes, rounded, count, at(11));
            if (needsSkip) addProducts(at(2) + (rounded - 1 - ahead) * lanes, lanes, at(3) + ahead * lanes, lanes, count, skipSums);
          }
          if (!needsInput) continue;
          const Tile out = tileOf(inputGradient, b, group);
          directForward(at(3) + (window - 1) * lanes, at(10), window, outputs, at(12));
          if (skip) addSkip(at(12), at(3) + ahead * lanes, lanes, count, factors);
          unpackTile(at(12), groupChannels, count, out.data + begin * out.timeStride, out.channelStride, out.timeStride);
        }
      }
      if (needsKernel) {
        std::memcpy(at(0), at(11) + ahead * lanes, static_cast<size_t>(taps * lanes) * sizeof(float));
        if (reversed)
          for (int64_t m = 0; m < taps; ++m) std::copy_n(at(11) + (ahead - m) * lanes, lanes, at(1) + m * lanes);
      }
    } else {
      if (needsInput) {
        if (reversed)
          for (int64_t c = 0; c < lanes; ++c) at(0)[c] += back[c];
        forwardColumns(Steps{at(0), lanes, taps, back}, *plan, at(4), at(8));
      }
      float* product = endBatch - beginBatch > 1 ? at(7) : at(5);
      for (int64_t b = beginBatch; b < endBatch; ++b) {
        const Tile g = tileOf(gradient, b, group);
        const Steps slopes = g.steps(at(3));
        forwardColumns(slopes, *plan, at(6), at(8));
        if (needsKernel || needsSkip) {
          const Steps steps = tileOf(input, b, group).steps(at(2));
          if (needsSkip) addProducts(steps.data, steps.pitch, slopes.data, slopes.pitch, length, skipSums);
          if (needsKernel) forwardColumns(steps, *plan, at(5), at(8));
        }
        correlateRows(at(5), at(6), at(4), product, b == beginBatch, b > beginBatch, b + 1 == endBatch, needsInput,
                      needsKernel, *plan);
        if (!needsInput) continue;
        const Tile out = tileOf(inputGradient, b, group);
        const Steps target = out.view(at(2));
        backwardColumns(at(6), at(8), *plan, target, skip ? slopes : Steps{}, factors);
        if (!out.direct()) unpackTile(target.data, groupChannels, length, out.data, out.channelStride, out.timeStride);
      }
      if (needsKernel) {
        backwardColumns(product, at(8), *plan, Steps{at(0), lanes, taps, reversed ? at(1) : nullptr}, Steps{}, nullptr);
        if (reversed) std::copy_n(at(0), lanes, at(1));
      }
    }
    if (needsKernel) {
      const Tile out = kernelTileOf(kernelGradient[piece], group, taps);
      unpackTile(at(0), groupChannels, taps, out.data, out.channelStride, out.timeStride);
      if (reversed) {
        const Tile other = kernelTileOf(reversedGradient[piece], group, taps);
        unpackTile(at(1), groupChannels, taps, other.data, other.channelStride, other.timeStride);
      }
    }
    if (needsSkip)
      for (int64_t c = 0; c < groupChannels; ++c)
        skipGradient.data_ptr<float>()[piece * channels + group * lanes + c] = static_cast<float>(skipSums[c]);
  });
  const auto total = [&](at::Tensor& slices) {
    if (slices.defined()) slices = pieces == 1 ? slices.squeeze(0) : slices.sum(0);
  };
  total(kernelGradient);
  total(reversedGradient);
  total(skipGradient);
  return {inputGradient, kernelGradient, reversedGradient, skipGradient};
}

// MARK: Registration

/// Half-precision sequences are computed in single precision and returned in their own type.
at::Tensor convolveAnyPrecision(const at::Tensor& input, const at::Tensor& kernel, const std::optional<at::Tensor>& reversed,
                                const std::optional<at::Tensor>& skip) {
  const auto type = input.scalar_type();
  if (type != at::kBFloat16 && type != at::kHalf) return convolve(input, kernel, reversed, skip);
  const auto widened = [](const std::optional<at::Tensor>& tensor) {
    return tensor ? std::optional<at::Tensor>(tensor->to(at::kFloat)) : std::nullopt;
  };
  return convolve(input.to(at::kFloat), kernel.to(at::kFloat), widened(reversed), widened(skip)).to(type);
}

Gradients convolveBackwardAnyPrecision(const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& kernel,
                                       const std::optional<at::Tensor>& reversed, const std::optional<at::Tensor>& skip,
                                       std::array<bool, 3> needs) {
  const auto widened = [](const std::optional<at::Tensor>& tensor) {
    return tensor ? std::optional<at::Tensor>(tensor->to(at::kFloat)) : std::nullopt;
  };
  auto [input32, kernel32, reversed32, skip32] = convolveBackward(gradient.to(at::kFloat), input.to(at::kFloat),
                                                                  kernel.to(at::kFloat), widened(reversed), widened(skip), needs);
  if (input32.defined()) input32 = input32.to(input.scalar_type());
  if (kernel32.defined()) kernel32 = kernel32.to(kernel.scalar_type());
  if (reversed32.defined()) reversed32 = reversed32.to(reversed->scalar_type());
  if (skip32.defined()) skip32 = skip32.to(skip->scalar_type());
  return {input32, kernel32, reversed32, skip32};
}

at::Tensor fftConvolution(const at::Tensor& input, const at::Tensor& kernel, const std::optional<at::Tensor>& skip) {
  return convolveAnyPrecision(input, kernel, std::nullopt, skip);
}
at::Tensor fftConvolutionBidirectional(const at::Tensor& input, const at::Tensor& forward, const at::Tensor& backward,
                                       const std::optional<at::Tensor>& skip) {
  return convolveAnyPrecision(input, forward, backward, skip);
}

struct Convolution : torch::autograd::Function<Convolution> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input, const at::Tensor& kernel,
                            const std::optional<at::Tensor>& reversed, const std::optional<at::Tensor>& skip) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({input, kernel, reversed.value_or(at::Tensor()), skip.value_or(at::Tensor())});
    static const auto oneSided =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("martlet::fft_convolution", "")
            .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&)>();
    static const auto twoSided =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("martlet::fft_convolution_bidirectional", "")
            .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&)>();
    return reversed ? twoSided.call(input, kernel, *reversed, skip) : oneSided.call(input, kernel, skip);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "martlet::fft_convolution has no second derivative; use the reference form where create_graph is needed");
    const auto saved = context->get_saved_variables();
    const auto optional = [](const at::Tensor& tensor) {
      return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
    };
    if (!gradients[0].defined()) return {{}, {}, {}, {}};
    const bool needsKernel = context->needs_input_grad(1) || (saved[2].defined() && context->needs_input_grad(2));
    // Inputs that are absent don't count among the edges: skip is the last of those present.
    const bool needsSkip = saved[3].defined() && context->needs_input_grad(saved[2].defined() ? 3 : 2);
    static const auto convolutionBackward =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("martlet::fft_convolution_backward", "")
            .typed<Gradients(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                             const std::optional<at::Tensor>&, std::array<bool, 3>)>();
    auto [input, kernel, reversed, skip] =
        convolutionBackward.call(gradients[0], saved[0], saved[1], optional(saved[2]), optional(saved[3]),
                                 {context->needs_input_grad(0), needsKernel, needsSkip});
    return {input, kernel, reversed, skip};
  }
};

at::Tensor fftConvolutionAutograd(const at::Tensor& input, const at::Tensor& kernel, const std::optional<at::Tensor>& skip) {
  return Convolution::apply(input, kernel, std::nullopt, skip);
}
at::Tensor fftConvolutionBidirectionalAutograd(const at::Tensor& input, const at::Tensor& forward, const at::Tensor& backward,
                                               const std::optional<at::Tensor>& skip) {
  return Convolution::apply(input, forward, backward, skip);
}

TORCH_LIBRARY_FRAGMENT(martlet, library) {
  library.def("fft_convolution(Tensor input, Tensor kernel, Tensor? skip=None) -> Tensor");
  library.def(
      "fft_convolution_bidirectional(Tensor input, Tensor forward_kernel, Tensor backward_kernel, Tensor? skip=None) -> Tensor");
  library.def(
      "fft_convolution_backward(Tensor gradient, Tensor input, Tensor kernel, Tensor? backward_kernel, Tensor? skip, "
      "bool[3] needs) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(martlet, CPU, library) {
  library.impl("fft_convolution", &fftConvolution);
  library.impl("fft_convolution_bidirectional", &fftConvolutionBidirectional);
  library.impl("fft_convolution_backward", &convolveBackwardAnyPrecision);
}

TORCH_LIBRARY_IMPL(martlet, Autograd, library) {
  library.impl("fft_convolution", &fftConvolutionAutograd);
  library.impl("fft_convolution_bidirectional", &fftConvolutionBidirectionalAutograd);
}

}  // namespace
}  // namespace martlet
