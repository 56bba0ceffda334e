// Linear attention among all tokens of an image or another set, on projections as they lie in memory, [B, L, H d]:
//
//     y_i = R_i φ(q_i) Σ_j (R_j α_j φ(k_j + p_j))ᵀ v_j / (φ(q_i) · Σ_j α_j φ(k_j + p_j) + ε)
//
// with φ = elu + 1 or relu, learned positions p or none, a rotation R by row and column or none, and the weights of
// rank-augmented linear attention (Fan et al. 2024, arXiv 2411.07635), α = N softmax_j(mean_i φ(q_i) · φ(k_j) / √d), or α = 1
// (simplified linear attention, Guo et al. 2024, arXiv 2405.11582). The denominator is not rotated, so that it stays positive.
//
// Tasks are pieces of 256 to 1024 tokens with all their heads, so that a row of the projections is read once a pass; sums over tokens
// are first taken within a piece and then over pieces, in an order that doesn't depend on the number of threads. Passes without
// sums share out fewer tokens at a time, as one core may be slower. Products run 64 tokens at a time. Channels are kept as (all first
// members of pairs, all second ones) inside, so that rotations are whole-vector operations; scores don't depend on the order of
// channels.
//
// Arithmetic a token and head: forward 4 d², backward 8 d² + O(d); passes over the projections: forward 2 (of q: 2, of k: 2
// with α, else 1), backward 2, or 3 with α. The outputs aren't kept: what the gradient of the denominator needs of them is the product of
// the gradient of φ(q) with φ(q).
//
// Measured with Benchmarks/family_kernels.py on one core (Zen 3 with AVX2, 4096 tokens, four heads of 64, CPU time): forward 8.1 ms with α
// and the rotation, forward + backward 22; 4.3 and 14 with relu alone, of which products are two thirds.

#include "ChunkScan.h"
#include "Lanes.h"
#include "Product.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <memory>
#include <optional>
#include <vector>

namespace martlet {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using scan::product;
using scan::roundedUp;

constexpr int64_t kTile = 64;

enum Feature : int64_t { eluPlusOne = 0, relu = 1 };

MARTLET_INLINE float featureOf(float x, bool isRelu) {
  if (isRelu) return x > 0 ? x : 0.0f;
  return x > 0 ? x + 1.0f : fastExp(x);
}

MARTLET_INLINE void featureInPlace(lanes::Floats& x, bool isRelu) {
  const lanes::Floats zero{};
  if (isRelu) {
    x = x > zero ? x : zero;
    return;
  }
  lanes::Floats e = x * 1.44269504f;
  e = e > zero ? zero : e;
  lanes::exp2InPlace(e);
  x = x > zero ? x + 1.0f : e;
}

/// φ(x + p)·factor for one row of a head, zero up to `padded`; with Split the first members of pairs before the second ones.
template <bool IsRelu, bool Split>
MARTLET_INLINE void loadFeaturesAs(const float* x, const float* position, float factor, int64_t width, int64_t padded, float* to) {
  const int64_t half = width / 2;
  int64_t c = 0;
  if (Split) {
    for (; c + lanes::width <= half; c += lanes::width) {
      lanes::Floats a, b, p, q;
      lanes::load(a, x + 2 * c), lanes::load(b, x + 2 * c + lanes::width);
      if (position) {
        lanes::load(p, position + 2 * c), lanes::load(q, position + 2 * c + lanes::width);
        a += p, b += q;
      }
      featureInPlace(a, IsRelu), featureInPlace(b, IsRelu);
      a *= factor, b *= factor;
      lanes::store(to + c, __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30));
      lanes::store(to + half + c, __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31));
    }
    for (; c < half; ++c) {
      to[c] = featureOf(x[2 * c] + (position ? position[2 * c] : 0.0f), IsRelu) * factor;
      to[half + c] = featureOf(x[2 * c + 1] + (position ? position[2 * c + 1] : 0.0f), IsRelu) * factor;
    }
  } else {
    for (; c + lanes::width <= width; c += lanes::width) {
      lanes::Floats a, p;
      lanes::load(a, x + c);
      if (position) lanes::load(p, position + c), a += p;
      featureInPlace(a, IsRelu);
      a *= factor;
      lanes::store(to + c, a);
    }
    for (; c < width; ++c) to[c] = featureOf(x[c] + (position ? position[c] : 0.0f), IsRelu) * factor;
  }
  for (c = width; c < padded; ++c) to[c] = 0;
}

MARTLET_VECTOR static void loadFeatures(
    const float* x, const float* position, float factor, int64_t width, bool isRelu, bool split, int64_t padded, float* to) {
  if (isRelu && split) loadFeaturesAs<true, true>(x, position, factor, width, padded, to);
  else if (isRelu) loadFeaturesAs<true, false>(x, position, factor, width, padded, to);
  else if (split) loadFeaturesAs<false, true>(x, position, factor, width, padded, to);
  else loadFeaturesAs<false, false>(x, position, factor, width, padded, to);
}

/// Loops that may run in place: an element is read before it is written, and no other iteration touches it.
#define MARTLET_SIMD_IN_PLACE _Pragma("clang loop vectorize(assume_safety) interleave(enable)")

/// Turns the pairs (x[c], x[half + c]) by angles whose cosines and sines are given for the first and second quarter.
MARTLET_VECTOR static void turn(
    const float* from, const float* rowCosine, const float* rowSine, const float* columnCosine, const float* columnSine, int64_t quarter,
    float direction, float* to) {
  const int64_t half = 2 * quarter;
  MARTLET_SIMD_IN_PLACE
  for (int64_t c = 0; c < quarter; ++c) {
    const float a = from[c], b = from[half + c], cosine = rowCosine[c], sine = rowSine[c] * direction;
    to[c] = a * cosine - b * sine;
    to[half + c] = b * cosine + a * sine;
  }
  MARTLET_SIMD_IN_PLACE
  for (int64_t c = 0; c < quarter; ++c) {
    const float a = from[quarter + c], b = from[half + quarter + c], cosine = columnCosine[c], sine = columnSine[c] * direction;
    to[quarter + c] = a * cosine - b * sine;
    to[half + quarter + c] = b * cosine + a * sine;
  }
}

MARTLET_VECTOR static float dot(const float* a, const float* b, int64_t count) {
  MARTLET_FAST_SUMS
  float sum = 0;
  MARTLET_SIMD
  for (int64_t c = 0; c < count; ++c) sum += a[c] * b[c];
  return sum;
}

/// to += factor · x
MARTLET_VECTOR static void addScaled(const float* x, float factor, int64_t count, float* to) {
  MARTLET_SIMD
  for (int64_t c = 0; c < count; ++c) to[c] += factor * x[c];
}

MARTLET_VECTOR static void scaleInto(const float* x, float factor, int64_t count, float* to) {
  MARTLET_SIMD
  for (int64_t c = 0; c < count; ++c) to[c] = factor * x[c];
}

/// to = φ'(x + p) ⊙ (from + add · factor); `from` may be `to`. Gradients in the order of the projections.
template <bool IsRelu>
MARTLET_INLINE void finishRow(
    const float* x, const float* position, const float* from, const float* add, float factor, int64_t width, float* to) {
  int64_t c = 0;
  const lanes::Floats zero{};
  for (; c + lanes::width <= width; c += lanes::width) {
    lanes::Floats value, gradient, other;
    lanes::load(value, x + c), lanes::load(gradient, from + c);
    if (position) lanes::load(other, position + c), value += other;
    if (add) lanes::load(other, add + c), gradient += other * factor;
    if (IsRelu) {
      gradient = value > zero ? gradient : zero;
    } else {
      lanes::Floats slope = value * 1.44269504f;
      slope = slope > zero ? zero : slope;
      lanes::exp2InPlace(slope);
      gradient *= slope;
    }
    lanes::store(to + c, gradient);
  }
  for (; c < width; ++c) {
    const float value = x[c] + (position ? position[c] : 0.0f);
    const float slope = IsRelu ? (value > 0 ? 1.0f : 0.0f) : (value > 0 ? 1.0f : fastExp(value));
    to[c] = slope * (from[c] + (add ? add[c] * factor : 0.0f));
  }
}

MARTLET_VECTOR static void finishGradient(
    const float* x, const float* position, const float* from, const float* add, float factor, int64_t width, bool isRelu, float* to) {
  if (isRelu) finishRow<true>(x, position, from, add, factor, width, to);
  else finishRow<false>(x, position, from, add, factor, width, to);
}

/// Members of pairs side by side again.
MARTLET_VECTOR static void joinPairs(const float* from, int64_t width, float* to) {
  const int64_t half = width / 2;
  MARTLET_SIMD
  for (int64_t c = 0; c < half; ++c) {
    to[2 * c] = from[c];
    to[2 * c + 1] = from[half + c];
  }
}

// MARK: Tiles

/// Rows of all heads of some tokens: head h of row i at data + i step + h width. A row is gone through with all its heads, so that memory
/// is read in order: a head alone is short rows a long way apart, which the hardware's own prefetch doesn't follow.
struct TokenRows {
  const float* data;
  int64_t step, count, heads, width;

  const float* at(int64_t i, int64_t h) const { return data + i * step + h * width; }
};

/// Tokens that are asked for ahead.
constexpr int64_t kAhead = 8;

MARTLET_INLINE void askAhead(const TokenRows& rows, int64_t i, int64_t h) {
  const uintptr_t ahead = reinterpret_cast<uintptr_t>(rows.data) + static_cast<uintptr_t>(((i + kAhead) * rows.step + h * rows.width) * 4);
  for (int64_t c = 0; c < rows.width; c += 16) __builtin_prefetch(reinterpret_cast<const void*>(ahead + static_cast<uintptr_t>(4 * c)), 0, 2);
}

/// Factors of a row and head: one of `data` a token and head, `step` apart from head to head, or 1.
struct Factors {
  const float* data = nullptr;
  int64_t step = 0;
  float at(int64_t i, int64_t h) const { return data ? data[h * step + i] : 1.0f; }
};

template <bool IsRelu, bool Split>
MARTLET_INLINE void featureRows(
    const TokenRows& x, const float* positions, const bool* keeps, const Factors& factors, int64_t padded, int64_t tile, float* to) {
  for (int64_t i = 0; i < x.count; ++i)
    for (int64_t h = 0; h < x.heads; ++h) {
      float* const row = to + h * tile + i * padded;
      if (keeps && !keeps[i]) {
        std::memset(row, 0, sizeof(float) * static_cast<size_t>(padded));
        continue;
      }
      askAhead(x, i, h);
      const float* position = positions ? positions + (i * x.heads + h) * x.width : nullptr;
      loadFeaturesAs<IsRelu, Split>(x.at(i, h), position, factors.at(i, h), x.width, padded, row);
    }
}

/// Rows φ(x + p)·factor, head h's in the h-th tile of `to`, zero where a token isn't there; positions [count, heads width].
MARTLET_VECTOR static void loadFeatureRows(
    const TokenRows& x, const float* positions, const bool* keeps, const Factors& factors, bool isRelu, bool split, int64_t padded,
    int64_t tile, float* to) {
  if (isRelu && split) featureRows<true, true>(x, positions, keeps, factors, padded, tile, to);
  else if (isRelu) featureRows<true, false>(x, positions, keeps, factors, padded, tile, to);
  else if (split) featureRows<false, true>(x, positions, keeps, factors, padded, tile, to);
  else featureRows<false, false>(x, positions, keeps, factors, padded, tile, to);
}

/// Rows as they are, zero where a token isn't there; with divisors, the rows divided by them.
MARTLET_VECTOR static void loadRows(
    const TokenRows& x, const bool* keeps, const Factors& divisors, int64_t padded, int64_t tile, float* to) {
  for (int64_t i = 0; i < x.count; ++i)
    for (int64_t h = 0; h < x.heads; ++h) {
      const float* from = x.at(i, h);
      float* const row = to + h * tile + i * padded;
      const bool keep = !keeps || keeps[i];
      const float factor = 1 / divisors.at(i, h);
      askAhead(x, i, h);
      MARTLET_SIMD
      for (int64_t c = 0; c < x.width; ++c) row[c] = keep ? from[c] * factor : 0.0f;
      for (int64_t c = x.width; c < padded; ++c) row[c] = 0;
    }
}

/// sums += Σ_i weight_i row_i, of width a multiple of 16; weights of 1 where none are given.
MARTLET_VECTOR static void addRows(const float* rows, const float* weights, int64_t count, int64_t width, float* sums) {
  MARTLET_FAST_SUMS
  for (int64_t c = 0; c < width; c += lanes::width) {
    lanes::Floats even{}, odd{}, x, y;
    int64_t i = 0;
    for (; i + 2 <= count; i += 2) {
      lanes::load(x, rows + i * width + c), lanes::load(y, rows + (i + 1) * width + c);
      if (weights) x *= weights[i], y *= weights[i + 1];
      even += x, odd += y;
    }
    if (i < count) {
      lanes::load(x, rows + i * width + c);
      if (weights) x *= weights[i];
      even += x;
    }
    lanes::load(x, sums + c);
    x += even + odd;
    lanes::store(sums + c, x);
  }
}

/// to_i = weight_i row_i
MARTLET_VECTOR static void weighRows(const float* rows, const float* weights, int64_t count, int64_t width, float* to) {
  for (int64_t i = 0; i < count; ++i, rows += width, to += width) {
    const float weight = weights[i];
    MARTLET_SIMD
    for (int64_t c = 0; c < width; ++c) to[c] = weight * rows[c];
  }
}

/// denominators_i = row_i · sums + ε, and rows divided by them.
MARTLET_VECTOR static void divideRows(float* rows, const float* sums, float epsilon, int64_t count, int64_t width, float* denominators) {
  MARTLET_FAST_SUMS
  for (int64_t i = 0; i < count; ++i) {
    float* row = rows + i * width;
    float sum = epsilon;
    MARTLET_SIMD
    for (int64_t c = 0; c < width; ++c) sum += row[c] * sums[c];
    denominators[i] = sum;
    const float inverse = 1 / sum;
    MARTLET_SIMD_IN_PLACE
    for (int64_t c = 0; c < width; ++c) row[c] *= inverse;
  }
}

/// The gradients of the denominators: with y = q M / z and t = dy / z, -t · y = -(t Mᵀ) · q / z.
MARTLET_VECTOR static void bottomGradients(
    const float* tops, const float* queries, const float* denominators, int64_t count, int64_t width, float* bottoms) {
  MARTLET_FAST_SUMS
  for (int64_t i = 0; i < count; ++i) {
    float sum = 0;
    MARTLET_SIMD
    for (int64_t c = 0; c < width; ++c) sum += tops[i * width + c] * queries[i * width + c];
    bottoms[i] = -sum / denominators[i];
  }
}

/// rows_i = φ' ⊙ (rows_i + factor_i · add), from features: φ' is φ > 0 of relu and min(φ, 1) of elu + 1.
template <bool IsRelu>
MARTLET_INLINE void finishRowsAs(const float* features, const float* add, const float* factors, int64_t count, int64_t width, float* rows) {
  const lanes::Floats zero{}, one = zero + 1.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float factor = factors ? factors[i] : 1.0f;
    for (int64_t c = 0; c < width; c += lanes::width) {
      lanes::Floats gradient, sums, feature;
      lanes::load(gradient, rows + i * width + c), lanes::load(sums, add + c), lanes::load(feature, features + i * width + c);
      gradient += sums * factor;
      if (IsRelu)
        gradient = feature > zero ? gradient : zero;
      else
        gradient *= feature < one ? feature : one;
      lanes::store(rows + i * width + c, gradient);
    }
  }
}

MARTLET_VECTOR static void finishRows(
    const float* features, const float* add, const float* factors, int64_t count, int64_t width, bool isRelu, float* rows) {
  if (isRelu) finishRowsAs<true>(features, add, factors, count, width, rows);
  else finishRowsAs<false>(features, add, factors, count, width, rows);
}

/// rows_i += factor_i · add
MARTLET_VECTOR static void addToRows(const float* add, const float* factors, int64_t count, int64_t width, float* rows) {
  for (int64_t i = 0; i < count; ++i) {
    const float factor = factors[i];
    MARTLET_SIMD_IN_PLACE
    for (int64_t c = 0; c < width; ++c) rows[i * width + c] += factor * add[c];
  }
}

/// The first `width` columns of the rows of all heads' tiles, zero where a token isn't there, as rows of tokens `step` apart.
MARTLET_VECTOR static void storeRows(
    const float* tiles, const bool* keeps, int64_t count, int64_t heads, int64_t padded, int64_t tile, int64_t width, bool split, float* to,
    int64_t step) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t h = 0; h < heads; ++h) {
      const float* row = tiles + h * tile + i * padded;
      float* const target = to + i * step + h * width;
      if (keeps && !keeps[i]) {
        std::memset(target, 0, sizeof(float) * static_cast<size_t>(width));
      } else if (split) {
        MARTLET_SIMD
        for (int64_t c = 0; c < half; ++c) target[2 * c] = row[c], target[2 * c + 1] = row[half + c];
      } else {
        MARTLET_SIMD
        for (int64_t c = 0; c < width; ++c) target[c] = row[c];
      }
    }
}

const float* floats(const Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }

/// The last axis contiguous, whatever the strides of the others.
Tensor ready(const Tensor& x) { return x.stride(-1) == 1 || x.size(-1) == 1 ? x : x.contiguous(); }

struct Options {
  int64_t heads, feature, columns, prefix;
  bool reweighted;
  double eps;
};

/// Where a tensor [B, L, D] has its tokens.
struct Tokens {
  const float* base = nullptr;
  int64_t sequence = 0, token = 0;
  Tokens() = default;
  explicit Tokens(const Tensor& x) : base(x.const_data_ptr<float>()), sequence(x.stride(0)), token(x.stride(1)) {}
  const float* at(int64_t b, int64_t t) const { return base + b * sequence + t * token; }
  TokenRows rows(int64_t b, int64_t t, int64_t count, int64_t heads, int64_t width) const { return {at(b, t), token, count, heads, width}; }
};

/// The inputs with everything a pass asks for. Channels of keys: d, padded to 16: dk; of values dv.
struct Problem {
  Tensor query, key, value, positions, mask, angles;
  Options o;
  int64_t batch, length, width, d, dk, vd, dv, piece, pieces, quarter = 0;
  bool isRelu, rotated;
  Tokens queries, keys, values;
  const float* offsets = nullptr;
  const bool* keeps = nullptr;
  std::vector<float> rowCosine, rowSine, columnCosine, columnSine;
  std::vector<double> counts;  // tokens of a sequence

  Problem(
      const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& p, const OptionalTensor& frequencies, const OptionalTensor& keep,
      const Options& options)
      : o(options) {
    const char* name = "token_linear_attention";
    for (const Tensor* x : {&q, &k, &v})
      TORCH_CHECK(
          x->dim() == 3 && x->scalar_type() == at::kFloat && x->device().is_cpu() && x->layout() == at::kStrided, name,
          ": query, key and value must be float32 [batch, length, width] on the CPU, not ", x->scalar_type(), " ", x->sizes());
    TORCH_CHECK(k.sizes() == q.sizes(), name, ": key has shape ", k.sizes(), ", expected query's ", q.sizes());
    TORCH_CHECK(
        v.size(0) == q.size(0) && v.size(1) == q.size(1), name, ": value has shape ", v.sizes(), ", expected ", q.sizes().slice(0, 2),
        " and a width");
    TORCH_CHECK(
        o.heads > 0 && q.size(2) % o.heads == 0 && v.size(2) % o.heads == 0 && q.size(2) > 0 && v.size(2) > 0, name, ": widths ", q.size(2),
        " and ", v.size(2), " are not multiples of ", o.heads, " heads");
    TORCH_CHECK(o.feature == eluPlusOne || o.feature == relu, name, ": feature must be 0 (elu + 1) or 1 (relu), not ", o.feature);
    TORCH_CHECK(o.columns > 0 && o.prefix >= 0, name, ": columns must be positive and prefix not negative");
    query = ready(q), key = ready(k), value = ready(v);
    queries = Tokens(query), keys = Tokens(key), values = Tokens(value);
    batch = q.size(0), length = q.size(1), width = q.size(2);
    d = width / o.heads, vd = v.size(2) / o.heads, dk = roundedUp(d), dv = roundedUp(vd);
    piece = std::clamp<int64_t>(length / 32 / kTile * kTile, 256, 1024);
    pieces = (length + piece - 1) / piece;
    isRelu = o.feature == relu;
    if (p && p->defined()) {
      TORCH_CHECK(
          p->dim() == 2 && p->size(0) == length && p->size(1) == width && p->scalar_type() == at::kFloat && p->device().is_cpu(), name,
          ": positions must be float32 [length, width] = [", length, ", ", width, "], not ", p->scalar_type(), " ", p->sizes());
      positions = p->contiguous();
      offsets = floats(positions);
    }
    rotated = frequencies && frequencies->defined();
    if (rotated) {
      TORCH_CHECK(
          d % 4 == 0 && frequencies->dim() == 1 && frequencies->size(0) == d / 4, name, ": angles must be [head width / 4], not ",
          frequencies->sizes(), " beside heads of ", d);
      quarter = d / 4;
      angles = frequencies->to(at::kDouble).cpu().contiguous();
      const int64_t rows = std::max<int64_t>(1, (length - o.prefix + o.columns - 1) / o.columns);
      tables(rows, rowCosine, rowSine);
      tables(std::min(o.columns, std::max<int64_t>(length, 1)), columnCosine, columnSine);
    }
    if (keep && keep->defined()) {
      TORCH_CHECK(
          keep->scalar_type() == at::kBool && keep->device().is_cpu() && keep->sizes() == at::IntArrayRef({batch, length}), name,
          ": mask must be bool [batch, length] on the CPU, not ", keep->scalar_type(), " ", keep->sizes());
      mask = keep->contiguous();
      keeps = mask.const_data_ptr<bool>();
    }
    for (int64_t b = 0; b < batch; ++b) {
      int64_t count = length;
      if (keeps) count = std::count(keeps + b * length, keeps + (b + 1) * length, true);
      counts.push_back(static_cast<double>(std::max<int64_t>(count, 1)));
    }
  }

  void tables(int64_t count, std::vector<float>& cosine, std::vector<float>& sine) const {
    const double* frequency = angles.const_data_ptr<double>();
    cosine.resize(count * quarter), sine.resize(count * quarter);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t c = 0; c < quarter; ++c) {
        cosine[i * quarter + c] = static_cast<float>(std::cos(static_cast<double>(i) * frequency[c]));
        sine[i * quarter + c] = static_cast<float>(std::sin(static_cast<double>(i) * frequency[c]));
      }
  }

  bool isReal(int64_t b, int64_t t) const { return !keeps || keeps[b * length + t]; }
  const float* q(int64_t b, int64_t t, int64_t h) const { return queries.at(b, t) + h * d; }
  const float* k(int64_t b, int64_t t, int64_t h) const { return keys.at(b, t) + h * d; }
  const float* position(int64_t t, int64_t h) const { return offsets ? offsets + t * width + h * d : nullptr; }
  const bool* keepsFrom(int64_t b, int64_t t) const { return keeps ? keeps + b * length + t : nullptr; }
  int64_t keyTile() const { return kTile * dk; }
  int64_t valueTile() const { return kTile * dv; }
  void loadQueries(int64_t b, int64_t t, int64_t count, float* to) const {
    loadFeatureRows(queries.rows(b, t, count, o.heads, d), nullptr, nullptr, {}, isRelu, rotated, dk, keyTile(), to);
  }
  void loadKeys(int64_t b, int64_t t, int64_t count, const Factors& factors, float* to) const {
    loadFeatureRows(keys.rows(b, t, count, o.heads, d), position(t, 0), keepsFrom(b, t), factors, isRelu, rotated, dk, keyTile(), to);
  }
  void loadValues(int64_t b, int64_t t, int64_t count, float* to) const {
    loadRows(values.rows(b, t, count, o.heads, vd), keepsFrom(b, t), {}, dv, valueTile(), to);
  }
  /// Of one number a token and head, [B, H, L], those from token t on.
  Factors perHead(const float* numbers, int64_t b, int64_t t) const {
    if (!numbers) return {};
    return {numbers + b * o.heads * length + t, length};
  }
  void rotateRows(float* rows, int64_t t, int64_t count, float direction) const {
    for (int64_t i = 0; rotated && i < count; ++i) rotate(rows + i * dk, t + i, direction, rows + i * dk);
  }
  /// ε beside sums over tokens; with α the equation has means.
  float epsilon(int64_t b) const { return static_cast<float>(o.reweighted ? o.eps * counts[b] : o.eps); }

  void rotate(const float* from, int64_t t, float direction, float* to) const {
    const int64_t cell = std::max<int64_t>(0, t - o.prefix), row = cell / o.columns * quarter, column = cell % o.columns * quarter;
    turn(
        from, rowCosine.data() + row, rowSine.data() + row, columnCosine.data() + column, columnSine.data() + column, quarter, direction, to);
  }

  /// Rows turned, in `to`, or as they are.
  const float* turnedRows(const float* rows, int64_t t, int64_t count, float* to) const {
    if (!rotated) return rows;
    for (int64_t i = 0; i < count; ++i) {
      rotate(rows + i * dk, t + i, 1, to + i * dk);
      for (int64_t c = d; c < dk; ++c) to[i * dk + c] = 0;
    }
    return to;
  }

  template <typename Body>
  void overPieces(const Body& body) const {
    parallelTasks(batch * pieces, [&](int64_t task, int64_t worker) {
      const int64_t b = task / pieces, begin = task % pieces * piece;
      body(worker, b, task, begin, std::min(length, begin + piece));
    });
  }
  /// Pieces of two tiles, for passes that leave no sums.
  template <typename Body>
  void overTiles(const Body& body) const {
    const int64_t few = 2 * kTile, count = (length + few - 1) / few;
    parallelTasks(batch * count, [&](int64_t task, int64_t worker) {
      const int64_t begin = task % count * few;
      body(worker, task / count, begin, std::min(length, begin + few));
    });
  }

  /// Sums [batch, size] of partial sums [batch, pieces, size], pair by pair.
  std::vector<float> overAll(std::vector<float>& partial, int64_t size) const {
    std::vector<float> total(batch * size);
    parallelTasks(batch * ((size + 4095) / 4096), [&](int64_t task, int64_t) {
      const int64_t blocks = (size + 4095) / 4096, b = task / blocks, first = task % blocks * 4096, count = std::min<int64_t>(4096, size - first);
      float* base = partial.data() + b * pieces * size + first;
      for (int64_t step = 1; step < pieces; step *= 2)
        for (int64_t i = 0; i + step < pieces; i += 2 * step) addScaled(base + (i + step) * size, 1, count, base + i * size);
      std::memcpy(total.data() + b * size + first, base, sizeof(float) * count);
    });
    return total;
  }
};

/// One worker's tiles, 64 tokens each; `plain`, `values` and `other` of all heads.
struct Tiles {
  std::unique_ptr<float[]> storage;
  float *plain, *turned, *columns, *values, *other;
  explicit Tiles(const Problem& p) {
    const int64_t key = p.keyTile(), heads = p.o.heads;
    storage.reset(new float[2 * heads * key + 2 * key + heads * p.valueTile() + 16]);
    float* next = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(storage.get()) + 63) / 64 * 64);
    const auto take = [&](int64_t count) {
      float* taken = next;
      next += count;
      return taken;
    };
    plain = take(heads * key), other = take(heads * key), turned = take(key), columns = take(key), values = take(heads * p.valueTile());
  }
};

/// sums += keysᵀ values over `rows` tokens of a tile.
void addOuterProducts(const Problem& p, Tiles& tiles, const float* keys, const float* values, int64_t rows, float* sums) {
  if (!scan::usesBlockKernel()) return scan::portableTransposedProduct(p.dk, p.dv, rows, p.dk, p.dv, p.dv, true, keys, values, sums);
  transposeBlock(keys, p.dk, kTile, p.dk, tiles.columns, kTile);
  product(p.dk, p.dv, rows, tiles.columns, kTile, values, p.dv, sums, p.dv, true);
}

struct Saved {
  Tensor out, alpha, denominators, memory, sums, meanQuery;
};

/// What forward keeps: α [B, H, L] (with weights), denominators [B, H, L], Σ kᵀv [B, H, dk, dv], Σ k [B, H, dk], mean φ(q) [B, H, dk].
Saved forward(const Problem& p) {
  const int64_t heads = p.o.heads, keys = heads * p.dk, states = heads * p.dk * p.dv;
  const float scale = 1 / std::sqrt(static_cast<float>(p.d));
  Saved s;
  s.out = at::empty({p.batch, p.length, heads * p.vd}, at::kFloat);
  s.denominators = at::empty({p.batch, heads, p.length}, at::kFloat);
  s.memory = at::empty({p.batch, heads, p.dk, p.dv}, at::kFloat);
  s.sums = at::empty({p.batch, heads, p.dk}, at::kFloat);
  if (p.batch * p.length == 0) return s;
  scan::Workers<Tiles, const Problem&> workers(p);
  if (p.o.reweighted) {
    s.alpha = at::empty({p.batch, heads, p.length}, at::kFloat);
    s.meanQuery = at::empty({p.batch, heads, p.dk}, at::kFloat);
    std::vector<float> partial(p.batch * p.pieces * keys);
    p.overPieces([&](int64_t, int64_t b, int64_t task, int64_t begin, int64_t end) {
      std::vector<float> row(p.dk);
      float* sums = partial.data() + task * keys;
      for (int64_t t = begin; t < end; ++t) {
        if (!p.isReal(b, t)) continue;
        for (int64_t h = 0; h < heads; ++h) {
          loadFeatures(p.q(b, t, h), nullptr, 1, p.d, p.isRelu, p.rotated, p.dk, row.data());
          addScaled(row.data(), 1, p.dk, sums + h * p.dk);
        }
      }
    });
    const auto total = p.overAll(partial, keys);
    float* mean = s.meanQuery.mutable_data_ptr<float>();
    for (int64_t b = 0; b < p.batch; ++b) scaleInto(total.data() + b * keys, static_cast<float>(1 / p.counts[b]), keys, mean + b * keys);
    float* alpha = s.alpha.mutable_data_ptr<float>();
    p.overTiles([&](int64_t, int64_t b, int64_t begin, int64_t end) {
      std::vector<float> row(p.dk);
      for (int64_t t = begin; t < end; ++t)
        for (int64_t h = 0; h < heads; ++h) {
          float& score = alpha[(b * heads + h) * p.length + t];
          score = -INFINITY;
          if (!p.isReal(b, t)) continue;
          loadFeatures(p.k(b, t, h), p.position(t, h), 1, p.d, p.isRelu, p.rotated, p.dk, row.data());
          score = scale * dot(row.data(), mean + (b * heads + h) * p.dk, p.dk);
        }
    });
    parallelTasks(p.batch * heads, [&](int64_t head, int64_t) {
      float* scores = alpha + head * p.length;
      const float most = *std::max_element(scores, scores + p.length);
      if (most == -INFINITY) {
        std::fill_n(scores, p.length, 0.0f);
        return;
      }
      double sum = 0;
      for (int64_t first = 0; first < p.length; first += p.piece) {
        const int64_t count = std::min(p.piece, p.length - first);
        for (int64_t t = 0; t < count; ++t) scores[first + t] -= most;
        scan::exponentials(scores + first, count);
        float part = 0;
        for (int64_t t = 0; t < count; ++t) part += scores[first + t];
        sum += part;
      }
      const float factor = static_cast<float>(p.counts[head / heads] / sum);
      for (int64_t t = 0; t < p.length; ++t) scores[t] *= factor;
    });
  }
  const float* alpha = floats(s.alpha);
  std::vector<float> partial(p.batch * p.pieces * (states + keys));
  p.overPieces([&](int64_t worker, int64_t b, int64_t task, int64_t begin, int64_t end) {
    Tiles& tiles = workers[worker];
    float* sums = partial.data() + task * (states + keys);
    for (int64_t t = begin; t < end; t += kTile) {
      const int64_t rows = std::min(kTile, end - t);
      p.loadKeys(b, t, rows, p.perHead(alpha, b, t), tiles.plain);
      p.loadValues(b, t, rows, tiles.values);
      for (int64_t h = 0; h < heads; ++h) {
        float* const plain = tiles.plain + h * p.keyTile();
        addRows(plain, nullptr, rows, p.dk, sums + states + h * p.dk);
        p.rotateRows(plain, t, rows, 1);
        addOuterProducts(p, tiles, plain, tiles.values + h * p.valueTile(), rows, sums + h * p.dk * p.dv);
      }
    }
  });
  const auto total = p.overAll(partial, states + keys);
  for (int64_t b = 0; b < p.batch; ++b) {
    std::memcpy(s.memory.mutable_data_ptr<float>() + b * states, total.data() + b * (states + keys), sizeof(float) * states);
    std::memcpy(s.sums.mutable_data_ptr<float>() + b * keys, total.data() + b * (states + keys) + states, sizeof(float) * keys);
  }
  const float *memory = floats(s.memory), *sums = floats(s.sums);
  float *out = s.out.mutable_data_ptr<float>(), *denominators = s.denominators.mutable_data_ptr<float>();
  p.overTiles([&](int64_t worker, int64_t b, int64_t begin, int64_t end) {
    Tiles& tiles = workers[worker];
    for (int64_t t = begin; t < end; t += kTile) {
      const int64_t rows = std::min(kTile, end - t);
      p.loadQueries(b, t, rows, tiles.plain);
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t head = b * heads + h;
        float* const plain = tiles.plain + h * p.keyTile();
        divideRows(plain, sums + head * p.dk, p.epsilon(b), rows, p.dk, denominators + head * p.length + t);
        p.rotateRows(plain, t, rows, 1);
        float* to = out + ((b * p.length + t) * heads + h) * p.vd;
        product(rows, p.vd, p.dk, plain, p.dk, memory + head * p.dk * p.dv, p.dv, to, heads * p.vd, false);
      }
    }
  });
  return s;
}

struct Gradients {
  Tensor query, key, value;
};

Gradients backward(const Problem& p, const Saved& s, const Tensor& upstream) {
  const int64_t heads = p.o.heads, keys = heads * p.dk, states = heads * p.dk * p.dv;
  const float scale = 1 / std::sqrt(static_cast<float>(p.d));
  Gradients g{at::empty({p.batch, p.length, p.width}, at::kFloat), at::empty({p.batch, p.length, p.width}, at::kFloat),
              at::empty({p.batch, p.length, heads * p.vd}, at::kFloat)};
  if (p.batch * p.length == 0) return g;
  scan::Workers<Tiles, const Problem&> workers(p);
  const Tensor given = ready(upstream);
  const Tokens upstreams(given);
  const float *denominators = floats(s.denominators), *memory = floats(s.memory), *sums = floats(s.sums);
  const float *alpha = floats(s.alpha), *meanQuery = floats(s.meanQuery);
  float *dq = g.query.mutable_data_ptr<float>(), *dk = g.key.mutable_data_ptr<float>(), *dv = g.value.mutable_data_ptr<float>();
  const auto place = [&](int64_t b, int64_t t, int64_t h) { return (b * p.length + t) * p.width + h * p.d; };
  const auto valuePlace = [&](int64_t b, int64_t t, int64_t h) { return ((b * p.length + t) * heads + h) * p.vd; };
  const auto turnedStates = [&](const float* from) {
    std::vector<float> to(p.batch * states);
    for (int64_t at = 0; at < p.batch * states; at += p.dk * p.dv) transposeBlock(from + at, p.dv, p.dk, p.dv, to.data() + at, p.dk);
    return to;
  };

  // Queries: gradients of the numerators and denominators, and the sums over queries that keys and values need.
  const auto memoryColumns = turnedStates(memory);
  std::vector<float> partial(p.batch * p.pieces * (states + keys));
  p.overPieces([&](int64_t worker, int64_t b, int64_t task, int64_t begin, int64_t end) {
    Tiles& tiles = workers[worker];
    float bottom[kTile];
    float* totals = partial.data() + task * (states + keys);
    for (int64_t t = begin; t < end; t += kTile) {
      const int64_t rows = std::min(kTile, end - t);
      p.loadQueries(b, t, rows, tiles.plain);
      loadRows(upstreams.rows(b, t, rows, heads, p.vd), nullptr, p.perHead(denominators, b, t), p.dv, p.valueTile(), tiles.values);
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t head = b * heads + h;
        const float *plain = tiles.plain + h * p.keyTile(), *tops = tiles.values + h * p.valueTile();
        float* const other = tiles.other + h * p.keyTile();
        const float* turned = p.turnedRows(plain, t, rows, tiles.turned);
        addOuterProducts(p, tiles, turned, tops, rows, totals + h * p.dk * p.dv);
        product(rows, p.dk, p.dv, tops, p.dv, memoryColumns.data() + head * p.dk * p.dv, p.dk, other, p.dk, false);
        p.rotateRows(other, t, rows, -1);
        bottomGradients(other, plain, denominators + head * p.length + t, rows, p.dk, bottom);
        addRows(plain, bottom, rows, p.dk, totals + states + h * p.dk);
        if (p.o.reweighted) addToRows(sums + head * p.dk, bottom, rows, p.dk, other);
        else finishRows(plain, sums + head * p.dk, bottom, rows, p.dk, p.isRelu, other);
      }
      storeRows(tiles.other, nullptr, rows, heads, p.dk, p.keyTile(), p.d, p.rotated, dq + place(b, t, 0), p.width);
    }
  });
  const auto total = p.overAll(partial, states + keys);
  std::vector<float> memoryGradient(p.batch * states), sumGradient(p.batch * keys);
  for (int64_t b = 0; b < p.batch; ++b) {
    std::memcpy(memoryGradient.data() + b * states, total.data() + b * (states + keys), sizeof(float) * states);
    std::memcpy(sumGradient.data() + b * keys, total.data() + b * (states + keys) + states, sizeof(float) * keys);
  }

  // Keys and values.
  const auto gradientColumns = turnedStates(memoryGradient.data());
  std::vector<float> weightGradient(alpha ? p.batch * heads * p.length : 0);
  const int64_t extra = alpha ? keys + heads : 0;  // Σ α dα k and Σ α dα
  std::vector<float> meanParts(p.batch * p.pieces * extra);
  const auto keysAndValues = [&](int64_t worker, int64_t b, int64_t task, int64_t begin, int64_t end) {
    Tiles& tiles = workers[worker];
    std::vector<float> joined(p.dk);
    float* totals = meanParts.data() + task * extra;
    for (int64_t t = begin; t < end; t += kTile) {
      const int64_t rows = std::min(kTile, end - t);
      p.loadKeys(b, t, rows, {}, tiles.plain);
      p.loadValues(b, t, rows, tiles.values);
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t head = b * heads + h;
        const float* weights = alpha ? alpha + head * p.length + t : nullptr;
        const float *keyRows = tiles.plain + h * p.keyTile(), *valueRows = tiles.values + h * p.valueTile();
        float* const other = tiles.other + h * p.keyTile();
        const float* turned = keyRows;
        if (alpha) {
          weighRows(keyRows, weights, rows, p.dk, tiles.turned);
          p.rotateRows(tiles.turned, t, rows, 1);
          turned = tiles.turned;
        } else {
          turned = p.turnedRows(keyRows, t, rows, tiles.turned);
        }
        // Tokens that aren't there have keys of zero, hence values without gradient.
        product(
            rows, p.vd, p.dk, turned, p.dk, memoryGradient.data() + head * p.dk * p.dv, p.dv, dv + valuePlace(b, t, h), heads * p.vd, false);
        product(rows, p.dk, p.dv, valueRows, p.dv, gradientColumns.data() + head * p.dk * p.dv, p.dk, other, p.dk, false);
        p.rotateRows(other, t, rows, -1);
        if (!alpha) {
          finishRows(keyRows, sumGradient.data() + head * p.dk, nullptr, rows, p.dk, p.isRelu, other);
          continue;
        }
        float* to = dk + place(b, t, h);
        for (int64_t i = 0; i < rows; ++i, to += p.width) {
          float& slope = weightGradient[head * p.length + t + i];
          if (!p.isReal(b, t + i)) {
            std::memset(to, 0, sizeof(float) * p.d);
            slope = 0;
            continue;
          }
          float* row = other + i * p.dk;
          const float* plain = keyRows + i * p.dk;
          addScaled(sumGradient.data() + head * p.dk, 1, p.d, row);
          slope = dot(row, plain, p.d);
          totals[keys + h] += weights[i] * slope;
          addScaled(plain, weights[i] * slope, p.dk, totals + h * p.dk);
          if (p.rotated) joinPairs(row, p.d, joined.data()), row = joined.data();
          scaleInto(row, weights[i], p.d, to);
        }
      }
      if (!alpha)
        storeRows(tiles.other, p.keepsFrom(b, t), rows, heads, p.dk, p.keyTile(), p.d, p.rotated, dk + place(b, t, 0), p.width);
    }
  };
  if (!alpha) {
    p.overTiles([&](int64_t worker, int64_t b, int64_t begin, int64_t end) { keysAndValues(worker, b, 0, begin, end); });
    return g;
  }
  p.overPieces(keysAndValues);

  // Through α: ds_j = α_j (dα_j − mean α dα), and from the scores to keys and to the mean query.
  const auto means = p.overAll(meanParts, extra);
  std::vector<float> query(p.batch * keys), queryGradient(p.batch * keys), centre(p.batch * heads);
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t head = b * heads + h;
      const float count = static_cast<float>(p.counts[b]);
      centre[head] = means[b * extra + keys + h] / count;
      std::vector<float> row(p.dk);
      for (int64_t c = 0; c < p.d; ++c)
        row[c] = scale * (means[b * extra + h * p.dk + c] - centre[head] * sums[head * p.dk + c]) / count;
      if (p.rotated) {
        joinPairs(row.data(), p.d, queryGradient.data() + head * p.dk);
        joinPairs(meanQuery + head * p.dk, p.d, query.data() + head * p.dk);
      } else {
        std::memcpy(queryGradient.data() + head * p.dk, row.data(), sizeof(float) * p.d);
        std::memcpy(query.data() + head * p.dk, meanQuery + head * p.dk, sizeof(float) * p.d);
      }
    }
  p.overTiles([&](int64_t, int64_t b, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t head = b * heads + h, at = head * p.length + t;
        float *ofQuery = dq + place(b, t, h), *ofKey = dk + place(b, t, h);
        finishGradient(
            p.q(b, t, h), nullptr, ofQuery, p.isReal(b, t) ? queryGradient.data() + head * p.dk : nullptr, 1, p.d, p.isRelu, ofQuery);
        if (!p.isReal(b, t)) continue;
        const float slope = scale * alpha[at] * (weightGradient[at] - centre[head]);
        finishGradient(p.k(b, t, h), p.position(t, h), ofKey, query.data() + head * p.dk, slope, p.d, p.isRelu, ofKey);
      }
  });
  return g;
}

Tensor tokenLinearAttention(
    const Tensor& query, const Tensor& key, const Tensor& value, int64_t heads, int64_t feature, bool reweighted, double eps,
    const OptionalTensor& positions, const OptionalTensor& angles, int64_t columns, int64_t prefix, const OptionalTensor& mask) {
  return forward(Problem(query, key, value, positions, angles, mask, {heads, feature, columns, prefix, reweighted, eps})).out;
}

class TokenFunction : public torch::autograd::Function<TokenFunction> {
 public:
  static Tensor forward(
      torch::autograd::AutogradContext* context, const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& positions,
      int64_t heads, int64_t feature, bool reweighted, double eps, const OptionalTensor& angles, int64_t columns, int64_t prefix,
      const OptionalTensor& mask) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Problem p(query, key, value, positions, angles, mask, {heads, feature, columns, prefix, reweighted, eps});
    const Saved s = martlet::forward(p);
    context->save_for_backward(
        {query, key, value, positions.value_or(Tensor()), angles.value_or(Tensor()), mask.value_or(Tensor()), s.alpha, s.denominators, s.memory,
         s.sums, s.meanQuery});
    context->saved_data["integers"] = std::vector<int64_t>{heads, feature, columns, prefix, reweighted};
    context->saved_data["eps"] = eps;
    return s.out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    TORCH_CHECK(
        !at::GradMode::is_enabled(),
        "token_linear_attention: has no second derivative; call backward without create_graph, or use the reference form");
    const auto kept = context->get_saved_variables();
    const auto integers = context->saved_data["integers"].toIntVector();
    const Problem p(
        kept[0], kept[1], kept[2], kept[3], kept[4], kept[5],
        {integers[0], integers[1], integers[2], integers[3], integers[4] != 0, context->saved_data["eps"].toDouble()});
    const auto g = martlet::backward(p, {Tensor(), kept[6], kept[7], kept[8], kept[9], kept[10]}, gradients[0]);
    const Tensor ofPositions = kept[3].defined() && context->needs_input_grad(3) ? g.key.sum(0) : Tensor();
    return {g.query, g.key, g.value, ofPositions, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor tokenLinearAttentionAutograd(
    const Tensor& query, const Tensor& key, const Tensor& value, int64_t heads, int64_t feature, bool reweighted, double eps,
    const OptionalTensor& positions, const OptionalTensor& angles, int64_t columns, int64_t prefix, const OptionalTensor& mask) {
  const auto wants = [](const OptionalTensor& x) { return x && x->defined() && x->requires_grad(); };
  if (!at::GradMode::is_enabled() || !(wants(query) || wants(key) || wants(value) || wants(positions))) {
    at::AutoDispatchBelowADInplaceOrView below;
    return tokenLinearAttention(query, key, value, heads, feature, reweighted, eps, positions, angles, columns, prefix, mask);
  }
  return TokenFunction::apply(query, key, value, positions, heads, feature, reweighted, eps, angles, columns, prefix, mask);
}

}  // namespace
}  // namespace martlet

TORCH_LIBRARY_FRAGMENT(martlet, m) {
  // query, key [B, L, H d], value [B, L, H dv], float32, any strides but a last one of 1 (otherwise copied). feature: 0 for
  // elu + 1, 1 for relu. reweighted: keys are weighted by N softmax(mean query · key / √d), and eps is added to the mean of the
  // weights rather than to their sum. positions [L, H d] are added to the keys. angles [d / 4]: pairs of channels (2i, 2i + 1)
  // are turned, the first half of them by row · angle and the second by column · angle, where token prefix + r · columns + c
  // stands in row r and column c, and the first `prefix` tokens in none (they are not turned). mask bool [B, L], false at tokens
  // that are not there. Returns y [B, L, H dv].
  m.def(
      "token_linear_attention(Tensor query, Tensor key, Tensor value, int heads, int feature=0, bool reweighted=False, float eps=1e-6, "
      "Tensor? positions=None, Tensor? angles=None, int columns=1, int prefix=0, Tensor? mask=None) -> Tensor");
}

TORCH_LIBRARY_IMPL(martlet, CPU, m) { m.impl("token_linear_attention", martlet::tokenLinearAttention); }
TORCH_LIBRARY_IMPL(martlet, Autograd, m) { m.impl("token_linear_attention", martlet::tokenLinearAttentionAutograd); }
