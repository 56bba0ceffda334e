#pragma once
// The right-angle Fourier transform of many real sequences at once, for convolutions that never wrap.
//
// Sixteen lanes of a vector hold sixteen sequences (channels), or sixteen phases of one: every butterfly is plain vector
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
// *Phases.* Sixteen channels of 64k steps are 8 MiB a spectrum. A single sequence x(z) = sum_r z^r x_r(z^16) has sixteen
// phases x_r, each of n/16 steps, whose right-angle transforms are those of the n/16-th roots y = z^16 of the same -i: the same
// code transforms them as if they were channels, in 512 KiB. What the transform lacks, the last four halvings, is made up for in
// the product: at each y two polynomials of sixteen coefficients are multiplied modulo z^16 = y (`phaseSum`), 64 multiply-adds
// of whole vectors, about what those halvings would cost in three transforms.

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include <ATen/ATen.h>

#include "Memory.h"
#include "Vector.h"

#pragma clang diagnostic ignored "-Wpsabi"
#pragma clang diagnostic ignored "-Wunused-function"  // not every kernel needs all of it

namespace martlet {
namespace {

constexpr int64_t lanes = 16;
constexpr int64_t point = 2 * lanes;  // floats a complex point of sixteen channels: real parts, then imaginary parts

/// Functions of the standard library are not emitted for the clones of MARTLET_VECTOR; hence this one.
MARTLET_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

typedef float Lanes __attribute__((vector_size(64)));
typedef float HalfLanes __attribute__((vector_size(32)));
/// Complex numbers of sixteen lanes, or of eight of them.
template <typename Vector>
struct Complexes {
  Vector re, im;
  static constexpr int64_t count = sizeof(Vector) / sizeof(float);
};
using Complex = Complexes<Lanes>;

MARTLET_INLINE void load(Lanes& value, const float* from) { std::memcpy(&value, from, sizeof value); }
MARTLET_INLINE void store(float* to, const Lanes& value) { std::memcpy(to, &value, sizeof value); }
template <typename Vector>
MARTLET_INLINE void load(Complexes<Vector>& value, const float* from) {
  std::memcpy(&value.re, from, sizeof value.re);
  std::memcpy(&value.im, from + lanes, sizeof value.im);
}
template <typename Vector>
MARTLET_INLINE void store(float* to, const Complexes<Vector>& value) {
  std::memcpy(to, &value.re, sizeof value.re);
  std::memcpy(to + lanes, &value.im, sizeof value.im);
}
template <typename Vector>
MARTLET_INLINE void add(Complexes<Vector>& sum, const Complexes<Vector>& a, const Complexes<Vector>& b) {
  sum.re = a.re + b.re;
  sum.im = a.im + b.im;
}
template <typename Vector>
MARTLET_INLINE void subtract(Complexes<Vector>& difference, const Complexes<Vector>& a, const Complexes<Vector>& b) {
  difference.re = a.re - b.re;
  difference.im = a.im - b.im;
}
/// a += (0, sign) * b
template <typename Vector>
MARTLET_INLINE void addRotated(Complexes<Vector>& sum, const Complexes<Vector>& a, const Complexes<Vector>& b, float sign) {
  sum.re = a.re - sign * b.im;
  sum.im = a.im + sign * b.re;
}
/// x *= (re + i sign im), the factor shared by the lanes.
template <typename Vector>
MARTLET_INLINE void rotate(Complexes<Vector>& x, const float* factor, float sign) {
#pragma clang fp contract(fast)
  const float c = factor[0], s = sign * factor[1];
  const Vector re = x.re * c - x.im * s;
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

/// Whether a butterfly of sixteen lanes, eight vectors or more, has to take each in pieces.
inline bool hasShortVectors() {
#if defined(__x86_64__)
  return !__builtin_cpu_supports("avx512f");
#else
  return true;
#endif
}

/// A complex transform of size 2^a times 1, 3 or 5: radix 4 throughout, one odd (or 2) stage at the end.
struct Transform {
  int64_t size = 1, stageCount = 0, butterflies = 0;
  bool halves = hasShortVectors();  // eight lanes at a time: a butterfly of sixteen needs more registers than there are
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
      butterflies += size / radix;
      block = sub;
    }
    for (size_t i = 0; i < offsets.size(); ++i) stage[i].twiddles = twiddles.data() + offsets[i];
  }
  Transform(const Transform&) = delete;
};

/// The discrete transform of `radix` points at x, x + step, ...; sign -1 forward (e^{-i...}), +1 backward.
template <int radix, typename Vector>
MARTLET_INLINE void butterfly(Complexes<Vector> (&v)[radix], float sign) {
#pragma clang fp contract(fast)
  if constexpr (radix == 2) {
    const Complexes<Vector> a = v[0];
    add(v[0], a, v[1]);
    subtract(v[1], a, v[1]);
  } else if constexpr (radix == 3) {
    Complexes<Vector> sum, difference, middle;
    add(sum, v[1], v[2]);
    subtract(difference, v[1], v[2]);
    middle.re = v[0].re - 0.5f * sum.re;
    middle.im = v[0].im - 0.5f * sum.im;
    add(v[0], v[0], sum);
    const float s = 0.866025403784438647f;
    addRotated(v[1], middle, difference, sign * s);
    addRotated(v[2], middle, difference, -sign * s);
  } else if constexpr (radix == 4) {
    Complexes<Vector> t0, t1, t2, t3;
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
    Complexes<Vector> a, b, p, q, m1, m2, r1, r2;
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

/// Memory that is read next, of which a transform asks for three lines at every butterfly, so that it comes while the core computes.
struct Ahead {
  const float* at;
  int64_t floats;  // a butterfly
};
/// As many points as the transform has; all of their lines where it is of radix 4.
MARTLET_INLINE Ahead asManyPoints(const float* from, const Transform& transform) {
  return {from, transform.butterflies ? (transform.size * point + transform.butterflies - 1) / transform.butterflies : 0};
}
struct NothingAhead {};
MARTLET_INLINE void askFor(NothingAhead&) {}
MARTLET_INLINE void askFor(Ahead& ahead) {
#pragma clang loop unroll(full)
  for (int64_t i = 0; i < 3; ++i) __builtin_prefetch(ahead.at + i * ahead.floats / 3, 0, 2);
  ahead.at += ahead.floats;
}

/// One stage over `size` elements of `width` neighbouring points each, which share their twiddles.
template <typename Vector, int radix, bool forward, int width, typename Next>
MARTLET_INLINE void runStage(float* x, int64_t size, const Stage& stage, Next& ahead) {
  const int64_t sub = stage.sub, step = sub * width * point;
  const float* const twiddles = stage.twiddles;
  for (float* block = x; block < x + size * width * point; block += radix * step) {
    const float* twiddle = twiddles;
    for (int64_t j = 0; j < sub; ++j, twiddle += 2 * (radix - 1)) {
      for (int64_t r = 0; r < width; ++r) {
        askFor(ahead);
        for (int64_t lane = 0; lane < lanes; lane += Complexes<Vector>::count) {
          float* at = block + (j * width + r) * point + lane;
          Complexes<Vector> v[radix];
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
}

template <typename Vector, bool forward, int width, typename Next>
MARTLET_INLINE void runStage(float* x, int64_t size, const Stage& stage, Next& ahead) {
  switch (stage.radix) {
    case 2: return runStage<Vector, 2, forward, width>(x, size, stage, ahead);
    case 3: return runStage<Vector, 3, forward, width>(x, size, stage, ahead);
    case 4: return runStage<Vector, 4, forward, width>(x, size, stage, ahead);
    default: return runStage<Vector, 5, forward, width>(x, size, stage, ahead);
  }
}

template <bool forward, int width, typename Next>
MARTLET_INLINE void runStages(float* x, const Transform& transform, Next ahead) {
  for (int64_t i = 0; i < transform.stageCount; ++i) {
    const Stage& stage = transform.stage[forward ? i : transform.stageCount - 1 - i];
    if (transform.halves)
      runStage<HalfLanes, forward, width>(x, transform.size, stage, ahead);
    else
      runStage<Lanes, forward, width>(x, transform.size, stage, ahead);
  }
}
/// In place, natural order to digit-reversed order.
template <int width = 1, typename Next = NothingAhead>
MARTLET_INLINE void transformForward(float* x, const Transform& transform, const Next& ahead = {}) {
  runStages<true, width>(x, transform, ahead);
}
/// In place, digit-reversed order to natural order, without the factor 1/size.
template <int width = 1, typename Next = NothingAhead>
MARTLET_INLINE void transformBackward(float* x, const Transform& transform, const Next& ahead = {}) {
  runStages<false, width>(x, transform, ahead);
}

// MARK: The right-angle transform in two passes

/// l = l1 * rows.size + l2. Columns run over l1, rows over l2.
struct RightAngle {
  int64_t size;
  Transform column, row;
  int64_t pitch;              // floats between rows; one point more than the row, so that columns miss no cache sets
  const float* twist;    // [column.size] e^{-i pi l1 / (2 column.size)}
  const float* between;  // [row.size][column.size] e^{-2 pi i l2 (frequency(p) + 1/4) / size}
  const float* nodes;    // [column.size][row.size] the points e^{-2 pi i (j + 1/4) / size} where the transform is evaluated

  RightAngle(const RightAngle&) = delete;
  RightAngle(int64_t columns, int64_t rows) : size(columns * rows), column(columns), row(rows), pitch((rows + 1) * point) {
    tables_.reserve(static_cast<size_t>(2 * (columns + 2 * size)));
    for (int64_t l1 = 0; l1 < columns; ++l1) push(static_cast<double>(l1) / static_cast<double>(4 * columns));
    for (int64_t l2 = 0; l2 < rows; ++l2)
      for (int64_t p = 0; p < columns; ++p) {
        const int64_t quarters = l2 * (4 * column.frequency[static_cast<size_t>(p)] + 1) % (4 * size);
        push(static_cast<double>(quarters) / static_cast<double>(4 * size));
      }
    for (int64_t p = 0; p < columns; ++p)
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t j = column.frequency[static_cast<size_t>(p)] + columns * row.frequency[static_cast<size_t>(i)];
        push(static_cast<double>(4 * j + 1) / static_cast<double>(4 * size));
      }
    twist = tables_.data();
    between = twist + 2 * columns;
    nodes = between + 2 * size;
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

/// A sequence of packed steps, `pitch` floats apart, and, for two-sided kernels, a second one ([wrappedLength][16]; none where
/// that is 0) whose step m >= 1 is the imaginary part at size - m.
struct Steps {
  float* data;
  int64_t pitch, length;
  float* wrapped = nullptr;
  int64_t wrappedLength = 0;
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
      if (mirrored < source.wrappedLength) {
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

constexpr int64_t allColumns = INT64_MAX;

/// The column half of the forward transform, or its columns first..<last; zero beyond the length.
MARTLET_VECTOR static void forwardColumns(const Steps& source, const RightAngle& plan, float* work, float* column, int64_t first = 0,
                                          int64_t last = allColumns) {
  const int64_t end = lesser(last, plan.row.size);
  int64_t l2 = first;
  for (; l2 + 4 <= end; l2 += 4) forwardColumn<4>(source, plan, l2, work, column);
  for (; l2 < end; ++l2) forwardColumn<1>(source, plan, l2, work, column);
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
      if (mirrored < target.wrappedLength) store(target.wrapped + mirrored * lanes, v.im * c - v.re * s);
    }
  }
}

/// The column half of the backward transform, or its columns first..<last, with the factor 1/size; skip times `base` is added unless its
/// data is null.
MARTLET_VECTOR static void backwardColumns(const float* work, float* column, const RightAngle& plan, const Steps& target, const Steps& base,
                                           const float* skip, int64_t first = 0, int64_t last = allColumns) {
  Lanes skips{};
  if (base.data) load(skips, skip);
  const int64_t end = lesser(last, plan.row.size);
  int64_t l2 = first;
  for (; l2 + 4 <= end; l2 += 4) backwardColumn<4>(work, column, plan, l2, target, base, skips);
  for (; l2 < end; ++l2) backwardColumn<1>(work, column, plan, l2, target, base, skips);
}

// MARK: Products of spectra

/// Sixteen phases and, before (or, for a correlation, behind) them, the same times the node: what a product modulo z^16 = y reads.
struct Extended {
  float re[2 * lanes], im[2 * lanes];
};

template <bool correlates>
MARTLET_INLINE void extend(Extended& to, const float* from, const float* node) {
  Complex v;
  load(v, from);
  store(to.re + (correlates ? 0 : lanes), v.re);
  store(to.im + (correlates ? 0 : lanes), v.im);
  rotate(v, node, correlates ? -1.0f : 1.0f);
  store(to.re + (correlates ? lanes : 0), v.re);
  store(to.im + (correlates ? lanes : 0), v.im);
}

/// sum_r c_r x_{s-r} modulo z^16 = y or, with `correlates`, sum_r conj(c_r) x_{s+r}.
template <bool correlates>
MARTLET_INLINE void phaseSum(Complex& sum, const float* coefficients, const Extended& x) {
#pragma clang fp contract(fast)
  Lanes a{}, b{}, c{}, d{};
#pragma clang loop unroll(full)
  for (int r = 0; r < lanes; ++r) {
    const float re = coefficients[r], im = coefficients[lanes + r];
    Lanes xr, xi;
    load(xr, x.re + (correlates ? r : lanes - r));
    load(xi, x.im + (correlates ? r : lanes - r));
    a += re * xr;
    b += im * xi;
    c += re * xi;
    d += im * xr;
  }
  sum.re = correlates ? a + b : a - b;
  sum.im = correlates ? c - d : c + d;
}

/// Points whose extensions are written before the first is read, so that no load waits for a store it only partly covers.
constexpr int64_t phaseBlock = 8;

/// One row of spectra: input <- input times kernel. With `phased` the lanes are the phases of one sequence.
MARTLET_INLINE void multiplyRow(float* input, const float* kernel, int64_t count, bool phased, const float* nodes) {
  if (!phased) {
    for (int64_t i = 0; i < count * point; i += point) {
      Complex a, b;
      load(a, input + i);
      load(b, kernel + i);
      multiply(a, a, b);
      store(input + i, a);
    }
    return;
  }
  Extended extended[phaseBlock];
  for (int64_t begin = 0; begin < count; begin += phaseBlock) {
    const int64_t end = lesser(begin + phaseBlock, count);
    for (int64_t i = begin; i < end; ++i) extend<false>(extended[i - begin], input + i * point, nodes + 2 * i);
    for (int64_t i = begin; i < end; ++i) {
      Complex sum;
      phaseSum<false>(sum, kernel + i * point, extended[i - begin]);
      store(input + i * point, sum);
    }
  }
}

/// product (+)= gradient conj(other); `product` may be any of the two.
MARTLET_INLINE void correlateRow(float* product, const float* gradient, const float* other, int64_t count, bool accumulate, bool phased,
                                 const float* nodes) {
  if (!phased) {
    for (int64_t i = 0; i < count * point; i += point) {
      Complex a, b;
      load(a, gradient + i);
      load(b, other + i);
      multiplyConjugate(b, a, b);
      if (accumulate) {
        Complex before;
        load(before, product + i);
        add(b, b, before);
      }
      store(product + i, b);
    }
    return;
  }
  Extended extended[phaseBlock];
  for (int64_t begin = 0; begin < count; begin += phaseBlock) {
    const int64_t end = lesser(begin + phaseBlock, count);
    for (int64_t i = begin; i < end; ++i) extend<true>(extended[i - begin], gradient + i * point, nodes + 2 * i);
    for (int64_t i = begin; i < end; ++i) {
      Complex sum;
      phaseSum<true>(sum, other + i * point, extended[i - begin]);
      if (accumulate) {
        Complex before;
        load(before, product + i * point);
        add(sum, sum, before);
      }
      store(product + i * point, sum);
    }
  }
}

/// input <- the rows of F^-1(F(input) kernel), `kernel` already a spectrum unless `fresh`.
MARTLET_VECTOR static void convolveRows(float* input, float* kernel, bool fresh, bool phased, const RightAngle& plan) {
  const int64_t count = plan.row.size;
  for (int64_t p = 0; p < plan.column.size; ++p) {
    float* u = input + p * plan.pitch;
    float* k = kernel + p * plan.pitch;
    transformForward(u, plan.row);
    if (fresh) transformForward(k, plan.row);
    multiplyRow(u, k, count, phased, plan.nodes + 2 * p * count);
    transformBackward(u, plan.row);
  }
}

/// gradient <- rows of F^-1(F(gradient) conj(kernel)); product (+)= F(gradient) conj(F(input)). With `last` the product
/// is transformed back too. `product` may be `input`.
MARTLET_VECTOR static void correlateRows(float* input, float* gradient, float* kernel, float* product, bool fresh,
                                         bool accumulate, bool last, bool needsInput, bool needsKernel, bool phased,
                                         const RightAngle& plan) {
  const int64_t count = plan.row.size;
  for (int64_t p = 0; p < plan.column.size; ++p) {
    float* g = gradient + p * plan.pitch;
    const float* nodes = plan.nodes + 2 * p * count;
    transformForward(g, plan.row);
    if (needsKernel) {
      float* u = input + p * plan.pitch;
      float* sum = product + p * plan.pitch;
      transformForward(u, plan.row);
      correlateRow(sum, g, u, count, accumulate, phased, nodes);
      if (last) transformBackward(sum, plan.row);
    }
    if (needsInput) {
      float* k = kernel + p * plan.pitch;
      if (fresh) transformForward(k, plan.row);
      correlateRow(g, g, k, count, false, phased, nodes);
      transformBackward(g, plan.row);
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

/// Steps that are asked for before they are packed or unpacked: where sixteen channels are some of many, a step is a line of memory whose
/// neighbour is far away.
constexpr int64_t stepsAhead = 32;

/// rows[c][l] = from[c * channelStride + l * timeStride], each row padded with zeros to a multiple of sixteen steps.
MARTLET_VECTOR static void packRows(const float* from, int64_t channelStride, int64_t timeStride, int64_t channels, int64_t length,
                                    float* rows, int64_t pitch) {
  int64_t l = 0;
  if (channelStride == 1 && channels == lanes)
    for (; l + 16 <= length; l += 16) {
      Lanes v[16];
#pragma clang loop unroll(full)
      for (int i = 0; i < 16; ++i) __builtin_prefetch(from + (l + stepsAhead + i) * timeStride, 0, 2);
#pragma clang loop unroll(full)
      for (int i = 0; i < 16; ++i) load(v[i], from + (l + i) * timeStride);
      transpose(v);
#pragma clang loop unroll(full)
      for (int c = 0; c < 16; ++c) store(rows + c * pitch + l, v[c]);
    }
  const int64_t begin = l;
  for (int64_t c = 0; c < channels; ++c) {
    for (l = begin; l < length; ++l) rows[c * pitch + l] = from[c * channelStride + l * timeStride];
    for (; l % 16; ++l) rows[c * pitch + l] = 0.0f;
  }
}

MARTLET_VECTOR static void unpackRows(const float* rows, int64_t pitch, int64_t channels, int64_t length, float* to, int64_t channelStride,
                                      int64_t timeStride) {
  int64_t l = 0;
  if (channelStride == 1 && channels == lanes)
    for (; l + 16 <= length; l += 16) {
      Lanes v[16];
#pragma clang loop unroll(full)
      for (int i = 0; i < 16; ++i) __builtin_prefetch(to + (l + stepsAhead + i) * timeStride, 1, 2);
#pragma clang loop unroll(full)
      for (int c = 0; c < 16; ++c) load(v[c], rows + c * pitch + l);
      transpose(v);
#pragma clang loop unroll(full)
      for (int i = 0; i < 16; ++i) store(to + (l + i) * timeStride, v[i]);
    }
  const int64_t begin = l;
  for (int64_t c = 0; c < channels; ++c)
    for (l = begin; l < length; ++l) to[c * channelStride + l * timeStride] = rows[c * pitch + l];
}

// MARK: Kernels of one sequence in phases

/// A kernel of `taps` taps as steps of sixteen in `row` and, where `behind` is given, its taps 1, 2, … of the reversed direction in
/// `back`, whose step j holds taps 16 j, 16 j - 1, …; rows have room for a multiple of sixteen, `back` for sixteen more.
Steps kernelSteps(const float* ahead, int64_t stride, const float* behind, int64_t backStride, int64_t taps, float* row, float* back) {
  const int64_t steps = (taps + lanes - 1) / lanes;
  for (int64_t m = 0; m < steps * lanes; ++m) row[m] = m < taps ? ahead[m * stride] : 0.0f;
  if (!behind) return {row, lanes, steps};
  for (int64_t j = 0; j <= steps; ++j)
    for (int64_t r = 0; r < lanes; ++r) {
      const int64_t m = j * lanes - r;
      back[j * lanes + r] = m > 0 && m < taps ? behind[m * backStride] : 0.0f;
    }
  return {row, lanes, steps, back, steps + 1};
}

/// Where the backward transform puts a kernel of that form.
Steps kernelTarget(int64_t taps, float* row, float* back) {
  const int64_t steps = (taps + lanes - 1) / lanes;
  return {row, lanes, steps, back, back ? steps + 1 : 0};
}

/// The taps of that form, contiguous; of the reversed direction all but tap 0.
void copyTaps(int64_t taps, const float* row, const float* back, float* ahead, float* behind) {
  std::memcpy(ahead, row, static_cast<size_t>(taps) * sizeof(float));
  if (!behind) return;
  for (int64_t m = 1; m < taps; ++m) {
    const int64_t j = (m + lanes - 1) / lanes;
    behind[m] = back[j * lanes + j * lanes - m];
  }
}

/// Scratch of the workers: named pieces of one allocation, which the calling thread keeps for its next call when it is at most 64 MiB.
class Scratch {
 public:
  explicit Scratch(std::initializer_list<int64_t> sizes) {
    for (int64_t size : sizes) offsets_.push_back(total_), total_ += (size + 15) / 16 * 16;
  }
  Scratch(const Scratch&) = delete;
  ~Scratch() {
    if (storage_.defined() && storage_.numel() <= limit && (!kept().defined() || kept().numel() < storage_.numel())) kept() = storage_;
  }
  void allocate(int64_t workers) {
    const int64_t floats = workers * total_;
    if (kept().defined() && kept().numel() >= floats) storage_ = std::move(kept()), kept() = at::Tensor();
    if (!storage_.defined()) storage_ = inLargePages(at::empty({floats}, at::kFloat));
  }
  float* piece(int64_t worker, size_t index) const { return storage_.data_ptr<float>() + worker * total_ + offsets_[index]; }

 private:
  static constexpr int64_t limit = 16 << 20;  // floats
  static at::Tensor& kept() {
    static thread_local at::Tensor tensor;
    return tensor;
  }
  int64_t total_ = 0;
  std::vector<int64_t> offsets_;
  at::Tensor storage_;
};

}  // namespace
}  // namespace martlet
