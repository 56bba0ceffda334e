// The Omega rule of a matrix memory (Behrouz et al. 2025, arXiv 2505.23735): at every token a gradient step, with or without
// momentum, on the errors of the last c pairs, all gradients taken at the state W' at the start of the token's chunk of b:
//
//   S_t = θ_t S_{t-1} + Σ_{i=t-c+1}^{t} γ_{t,t-i} k_iᵀ (v_i - k_i W'),   W_t = α_t W_{t-1} + η_t S_t,   o_t = q_t W_t
//
// (without momentum θ = 0). Within a chunk W_t is W', S' and the chunk's own m = b + c - 1 errors E = V - K W' under coefficients
// that depend on the gates alone: with Γ the band of γ,
//
//   R_t = θ_t R_{t-1} + Γ_t,   C_t = α_t C_{t-1} + η_t R_t,   A_t = α_t A_{t-1},   Θ_t = θ_t Θ_{t-1},   B_t = α_t B_{t-1} + η_t Θ_t
//   O = A ⊙ (Q W') + B ⊙ (Q S') + (Q Kᵀ ⊙ C) E,   W <- A_b W' + B_b S' + Kᵀ (C_b ⊙ E),   S <- Θ_b S' + Kᵀ (R_b ⊙ E)
//
// so a chunk is a handful of products, as for the delta rule but without its solve. Backward keeps a state every 128 tokens or so,
// runs forwards again between two of them and then backwards; states are never transposed, gradients of Q and K come as columns.
// Arithmetic a token and head without momentum, with m/b = 1 + (c - 1)/b: forward 2 (1 + 2 m/b) F dv flops beside the chunk's own
// 2 m (F + dv), backward 2 (2 + 6 m/b) F dv; momentum adds 2 (1 + m/b) and 2 (2 + 3 m/b) F dv.
//
// Measured with Benchmarks/family_kernels.py on one core (Zen 3 with AVX2, CPU time; F = 91, dv = 64, c = 4, L = 4096), us a token and
// head, forward, and with backward: b = 4 1.2 and 6.1; b = 8 1.0 and 4.5; b = 16 0.9 and 4.0; b = 32 0.9 and 3.8. Backward's columns are padded to 16 (2 b + c - 1 and b + c - 1 of them), of which b = 8 uses 19 of 32.

#include "ChunkScan.h"
#include "Product.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

namespace martlet {
namespace {

using namespace scan;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

/// Tokens between two saved states, at least.
constexpr int64_t kSpacing = 128;

// --- Leaves ---------------------------------------------------------------------------------------------------------

/// to = x ⊙ y.
MARTLET_VECTOR static void multiply(const float* x, const float* y, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += 16) lanes(to + i) = lanes(x + i) * lanes(y + i);
}

/// to = x - y.
MARTLET_VECTOR static void subtract(const float* x, const float* y, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += 16) lanes(to + i) = lanes(x + i) - lanes(y + i);
}

/// x *= factor.
MARTLET_VECTOR static void scale(float factor, int64_t count, float* x) {
  for (int64_t i = 0; i < count; i += 16) lanes(x + i) *= factor;
}

/// y = factor x + scale y.
MARTLET_VECTOR static void combine(float factor, const float* x, float scale, int64_t count, float* y) {
  for (int64_t i = 0; i < count; i += 16) lanes(y + i) = factor * lanes(x + i) + scale * lanes(y + i);
}

/// Row i of `to` (+)= factor[i] times row i of `from`.
MARTLET_VECTOR static void weigh(const float* factor, const float* from, int64_t rows, int64_t width, bool add, float* to) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < width; c += 16) {
      Lanes& target = lanes(to + i * width + c);
      if (add) target += factor[i] * lanes(from + i * width + c);
      else target = factor[i] * lanes(from + i * width + c);
    }
}

/// Column j of `to` = factor[j] times column j of `from`.
MARTLET_VECTOR static void weighColumns(const float* factor, const float* from, int64_t rows, int64_t width, float* to) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < width; c += 16) lanes(to + i * width + c) = lanes(factor + c) * lanes(from + i * width + c);
}

MARTLET_VECTOR static float inner(const float* x, const float* y, int64_t count) {
  Lanes sums = {};
  for (int64_t i = 0; i < count; i += 16) sums += lanes(x + i) * lanes(y + i);
  float sum = 0;
  for (int i = 0; i < 16; ++i) sum += sums[i];
  return sum;
}

MARTLET_VECTOR static void addTo(const float* from, int64_t count, float* to) {
  MARTLET_SIMD
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

// --- One head -------------------------------------------------------------------------------------------------------

struct Problem {
  int64_t batch, heads, length, features, dv, window, chunk;
  /// Rows of a chunk's keys: c - 1 from before it and its own b.
  int64_t keys;
  /// Padded to 16: F, dv, m, b, m + b.
  int64_t f, v, m, b, both;
  bool momentum, squared;
  Rows query, key, value;
  /// Rows that stand before the first position in key and value: 0 or c - 1.
  int64_t before;
  const float *retention, *rate, *persistence, *gates;  // [BH, L] and, the last, [BH, L, c]; persistence may be missing

  int64_t count() const { return batch * heads; }
  int64_t stateFloats() const { return features * dv; }
  int64_t chunks() const { return (length + chunk - 1) / chunk; }
  /// Chunks between two saved states.
  int64_t spacing() const { return std::max<int64_t>(1, kSpacing / chunk); }
  int64_t saved() const { return (chunks() + spacing() - 1) / spacing(); }
};

struct Gradients {
  Rows query, key, value;
  float *retention, *rate, *persistence, *gates;
};

class Scan {
  const Problem& p_;
  Arena arena_;
  // Rows: keys, then queries, of a chunk; columns: the same transposed.
  float *rows_, *columns_, *values_, *base_, *error_, *weighted_, *fromMomentum_, *scores_, *weights_, *out_;
  float *band_, *r_, *c_, *a_, *b_, *theta_;
  float *alpha_, *eta_, *persist_;
  // Backward.
  float *dout_, *errorColumns_, *weightedColumns_, *keyState_, *keyMomentum_, *turned_, *dscores_, *dscoresTurned_, *dweights_, *dC_;
  float *x_, *xColumns_, *y_, *z_, *gradientRows_, *gR_, *gC_, *dA_, *dB_, *starts_;
  const int64_t size_;

  static int64_t floatsFor(const Problem& p) {
    const int64_t states = p.f * p.v;
    return 2 * p.both * p.f + 12 * p.both * p.v + 12 * (p.b + 16) * p.m + 6 * p.both * std::max(p.f, p.v) + 4 * p.m * p.b + 16 * p.both +
           5 * p.f * p.both + 5 * p.v * p.both + 4 * states + 2 * (p.spacing() + 1) * states + 16384;
  }

 public:
  float *state, *momentum, *stateGradient, *momentumGradient;

  explicit Scan(const Problem& p) : p_(p), arena_(floatsFor(p)), size_(p.f * p.v) {
    const auto take = [&](int64_t floats) {
      float* piece = arena_.take(floats);
      std::memset(piece, 0, sizeof(float) * floats);
      return piece;
    };
    rows_ = take(p.both * p.f), columns_ = take(p.f * p.both), values_ = take(p.m * p.v), base_ = take(p.both * p.v);
    error_ = take(p.m * p.v), weighted_ = take(p.m * p.v), fromMomentum_ = take(p.b * p.v), out_ = take(p.b * p.v);
    scores_ = take(p.b * p.m), weights_ = take(p.b * p.m), band_ = take(p.b * p.m);
    r_ = take((p.b + 1) * p.m), c_ = take((p.b + 1) * p.m);
    a_ = take(p.b + 1), b_ = take(p.b + 1), theta_ = take(p.b + 1);
    alpha_ = take(p.b), eta_ = take(p.b), persist_ = take(p.b);
    dout_ = take(p.b * p.v), errorColumns_ = take(p.v * p.m), weightedColumns_ = take(p.v * p.m);
    keyState_ = take(p.m * p.v), keyMomentum_ = take(p.m * p.v), turned_ = take(p.m * p.b), dscores_ = take(p.b * p.m);
    dscoresTurned_ = take(p.m * p.b), dweights_ = take(p.b * p.m), dC_ = take(p.b * p.m);
    x_ = take(p.both * p.v), xColumns_ = take(p.v * p.both), y_ = take(p.f * p.both), z_ = take(p.f * p.m);
    gradientRows_ = take(p.both * p.f), gR_ = take(p.m), gC_ = take(p.m), dA_ = take(p.b), dB_ = take(p.b);
    starts_ = take((p.momentum ? 2 : 1) * p.spacing() * size_);
    state = take(size_), momentum = take(p.momentum ? size_ : 16);
    stateGradient = take(size_), momentumGradient = take(p.momentum ? size_ : 16);
  }

  /// [F, dv] contiguous, or nothing for zeros, into padded rows; and back.
  void load(const float* from, float* to) const {
    std::memset(to, 0, sizeof(float) * size_);
    if (!from) return;
    for (int64_t r = 0; r < p_.features; ++r) std::memcpy(to + r * p_.v, from + r * p_.dv, sizeof(float) * p_.dv);
  }
  void store(const float* from, float* to) const {
    for (int64_t r = 0; r < p_.features; ++r) std::memcpy(to + r * p_.dv, from + r * p_.v, sizeof(float) * p_.dv);
  }

  /// Outputs of a chunk to `out`; the states move to its end.
  void forward(int64_t head, int64_t chunk, const Rows& out) {
    const int64_t n = enter(head, chunk);
    loadQueries(head, chunk, n);
    const int64_t keys = p_.keys, rows = keys + p_.chunk;
    product(rows, p_.v, p_.f, rows_, p_.f, state, p_.v, base_, p_.v, false);
    findErrors();
    makeWeights();
    weigh(a_ + 1, base_ + keys * p_.v, p_.chunk, p_.v, false, out_);
    if (p_.momentum) {
      product(p_.chunk, p_.v, p_.f, rows_ + keys * p_.f, p_.f, momentum, p_.v, fromMomentum_, p_.v, false);
      weigh(b_ + 1, fromMomentum_, p_.chunk, p_.v, true, out_);
    }
    product(p_.chunk, p_.v, keys, weights_, p_.m, error_, p_.v, out_, p_.v, true);
    out.store(head, chunk * p_.chunk, n, out_, p_.v);
    leave();
  }

  /// The gradients of the chunks first..<last: `state` and `momentum` hold what entered `first`, `stateGradient` and
  /// `momentumGradient` those of what left `last`; on return those of what entered `first`.
  template <typename LoadGradient>
  void backward(int64_t head, int64_t first, int64_t last, const LoadGradient& loadGradient, const Gradients& to) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      float* start = starts_ + (chunk - first) * (p_.momentum ? 2 : 1) * size_;
      std::memcpy(start, state, sizeof(float) * size_);
      if (p_.momentum) std::memcpy(start + size_, momentum, sizeof(float) * size_);
      if (chunk + 1 == last) break;
      enter(head, chunk);
      product(p_.keys, p_.v, p_.f, rows_, p_.f, state, p_.v, base_, p_.v, false);
      findErrors();
      transposeBlock(rows_, p_.f, p_.both, p_.f, columns_, p_.both);
      leave();
    }
    for (int64_t chunk = last - 1; chunk >= first; --chunk) {
      const float* start = starts_ + (chunk - first) * (p_.momentum ? 2 : 1) * size_;
      backward(head, chunk, start, start + size_, loadGradient, to);
    }
  }

 private:
  /// Loads a chunk's keys, values and gates, and makes the coefficients. Returns its number of tokens.
  int64_t enter(int64_t head, int64_t chunk) {
    const int64_t t = chunk * p_.chunk, n = std::min(p_.chunk, p_.length - t), reach = p_.window - 1;
    // The first of the chunk's keys that exists.
    const int64_t missing = std::clamp<int64_t>(reach - p_.before - t, 0, reach), rows = reach + n - missing;
    if (missing) {
      std::memset(rows_, 0, sizeof(float) * missing * p_.f);
      std::memset(values_, 0, sizeof(float) * missing * p_.v);
    }
    const int64_t from = t + p_.before - reach + missing;
    load(p_.key, head, from, rows, rows_ + missing * p_.f, p_.f);
    load(p_.value, head, from, rows, values_ + missing * p_.v, p_.v);
    if (n < p_.chunk) {
      std::memset(rows_ + (reach + n) * p_.f, 0, sizeof(float) * (p_.chunk - n) * p_.f);
      std::memset(values_ + (reach + n) * p_.v, 0, sizeof(float) * (p_.chunk - n) * p_.v);
    }
    const int64_t at = head * p_.length + t;
    std::memset(band_, 0, sizeof(float) * p_.b * p_.m);
    for (int64_t i = 0; i < p_.chunk; ++i) {
      const bool real = i < n;  // what only fills the last chunk writes nothing and forgets nothing
      alpha_[i] = real ? p_.retention[at + i] : 1;
      eta_[i] = real ? p_.rate[at + i] : 0;
      persist_[i] = !p_.momentum ? 0 : real ? p_.persistence[at + i] : 1;
      if (!real) continue;
      // γ_{t, age} weighs the key `age` before t, which stands in column i + c - 1 - age.
      const float* gate = p_.gates + (at + i) * p_.window;
      for (int64_t age = 0; age < p_.window; ++age) band_[i * p_.m + i + reach - age] = gate[age];
    }
    coefficients();
    return n;
  }

  static void load(const Rows& rows, int64_t head, int64_t from, int64_t count, float* to, int64_t padded) {
    const char* source = rows.row(head, from);
    for (int64_t i = 0; i < count; ++i, source += rows.rowBytes())
      std::memcpy(to + i * padded, source, sizeof(float) * rows.width);
  }

  void loadQueries(int64_t head, int64_t chunk, int64_t n) {
    float* to = rows_ + p_.keys * p_.f;
    load(p_.query, head, chunk * p_.chunk, n, to, p_.f);
    if (n < p_.chunk) std::memset(to + n * p_.f, 0, sizeof(float) * (p_.chunk - n) * p_.f);
  }

  /// Row t + 1 of r_, c_, a_, b_, theta_ is that of token t; row 0 stands before the chunk.
  void coefficients() {
    a_[0] = 1, b_[0] = 0, theta_[0] = 1;
    for (int64_t t = 0; t < p_.chunk; ++t) {
      float *r = r_ + (t + 1) * p_.m, *c = c_ + (t + 1) * p_.m;
      std::memcpy(r, r - p_.m, sizeof(float) * p_.m);
      combine(1, band_ + t * p_.m, persist_[t], p_.m, r);
      std::memcpy(c, c - p_.m, sizeof(float) * p_.m);
      combine(eta_[t], r, alpha_[t], p_.m, c);
      a_[t + 1] = alpha_[t] * a_[t];
      theta_[t + 1] = persist_[t] * theta_[t];
      b_[t + 1] = alpha_[t] * b_[t] + eta_[t] * theta_[t + 1];
    }
  }

  float lastA() const { return a_[p_.chunk]; }
  float lastB() const { return b_[p_.chunk]; }
  float lastTheta() const { return theta_[p_.chunk]; }
  const float* lastC() const { return c_ + p_.chunk * p_.m; }
  const float* lastR() const { return r_ + p_.chunk * p_.m; }

  /// E = V - K W', or V alone for an objective that is linear in what the memory returns.
  void findErrors() {
    if (p_.squared) subtract(values_, base_, p_.keys * p_.v, error_);
    else std::memcpy(error_, values_, sizeof(float) * p_.keys * p_.v);
  }

  void makeWeights() {
    transposeBlock(rows_, p_.f, p_.both, p_.f, columns_, p_.both);
    product(p_.chunk, p_.m, p_.f, rows_ + p_.keys * p_.f, p_.f, columns_, p_.both, scores_, p_.m, false);
    multiply(scores_, c_ + p_.m, p_.chunk * p_.m, weights_);
  }

  /// The states at the chunk's end; the errors and the keys' columns are in place.
  void leave() {
    if (p_.momentum) combine(lastB(), momentum, lastA(), size_, state);
    else scale(lastA(), size_, state);
    weigh(lastC(), error_, p_.keys, p_.v, false, weighted_);
    product(p_.f, p_.v, p_.keys, columns_, p_.both, weighted_, p_.v, state, p_.v, true);
    if (!p_.momentum) return;
    scale(lastTheta(), size_, momentum);
    weigh(lastR(), error_, p_.keys, p_.v, false, weighted_);
    product(p_.f, p_.v, p_.keys, columns_, p_.both, weighted_, p_.v, momentum, p_.v, true);
  }

  template <typename LoadGradient>
  void backward(int64_t head, int64_t chunk, const float* state, const float* momentum, const LoadGradient& loadGradient, const Gradients& to) {
    const int64_t keys = p_.keys, t = chunk * p_.chunk;
    const int64_t n = enter(head, chunk);
    loadQueries(head, chunk, n);
    loadGradient(t, n, dout_, p_.v);
    if (n < p_.chunk) std::memset(dout_ + n * p_.v, 0, sizeof(float) * (p_.chunk - n) * p_.v);
    product(keys, p_.v, p_.f, rows_, p_.f, state, p_.v, base_, p_.v, false);
    findErrors();
    makeWeights();
    // dE = (Q Kᵀ ⊙ C)ᵀ dO + C_b ⊙ K dW + R_b ⊙ K dS
    transposeBlock(weights_, p_.m, p_.b, p_.m, turned_, p_.b);
    product(keys, p_.v, p_.chunk, turned_, p_.b, dout_, p_.v, x_, p_.v, false);
    product(keys, p_.v, p_.f, rows_, p_.f, stateGradient, p_.v, keyState_, p_.v, false);
    weigh(lastC(), keyState_, keys, p_.v, true, x_);
    if (p_.momentum) {
      product(keys, p_.v, p_.f, rows_, p_.f, momentumGradient, p_.v, keyMomentum_, p_.v, false);
      weigh(lastR(), keyMomentum_, keys, p_.v, true, x_);
    }
    std::memcpy(x_ + keys * p_.v, dout_, sizeof(float) * p_.chunk * p_.v);
    addRowsTo(to.value, head, t, n, x_, p_.v);
    // d(Q Kᵀ ⊙ C) = dO Eᵀ
    transposeBlock(error_, p_.v, p_.m, p_.v, errorColumns_, p_.m);
    product(p_.chunk, p_.m, p_.v, dout_, p_.v, errorColumns_, p_.m, dweights_, p_.m, false);
    multiply(dweights_, c_ + p_.m, p_.chunk * p_.m, dscores_);
    multiply(dweights_, scores_, p_.chunk * p_.m, dC_);
    // Columns of dE W'ᵀ and dO W'ᵀ, of E dWᵀ (weighed) and of the scores' part.
    transposeBlock(x_, p_.v, p_.both, p_.v, xColumns_, p_.both);
    product(p_.f, p_.both, p_.v, state, p_.v, xColumns_, p_.both, y_, p_.both, false);
    gradientsOfReads(y_, dA_);
    scaleReads(a_, false);
    if (p_.momentum) {
      // The same of S', queries only.
      product(p_.f, p_.both, p_.v, momentum, p_.v, xColumns_, p_.both, y_, p_.both, false);
      gradientsOfReads(y_, dB_);
      scaleReads(b_, true);
    }
    weighColumns(lastC(), errorColumns_, p_.v, p_.m, weightedColumns_);
    product(p_.f, p_.m, p_.v, stateGradient, p_.v, weightedColumns_, p_.m, z_, p_.m, false);
    if (p_.momentum) {
      weighColumns(lastR(), errorColumns_, p_.v, p_.m, weightedColumns_);
      product(p_.f, p_.m, p_.v, momentumGradient, p_.v, weightedColumns_, p_.m, z_, p_.m, true);
    }
    product(p_.f, p_.m, p_.chunk, columns_ + keys, p_.both, dscores_, p_.m, z_, p_.m, true);
    addTransposed(z_, p_.m, keys, gradientRows_);
    addRowsTo(to.key, head, t, n, gradientRows_, p_.f);
    product(p_.chunk, p_.f, keys, dscores_, p_.m, rows_, p_.f, gradientRows_ + keys * p_.f, p_.f, true);
    to.query.store(head, t, n, gradientRows_ + keys * p_.f, p_.f);
    gateGradients(head, t, n, state, momentum, to);
    // dW' = A_b dW + Qᵀ (A ⊙ dO) - Kᵀ dE;  dS' = B_b dW + Θ_b dS + Qᵀ (B ⊙ dO)
    if (p_.momentum) {
      combine(lastB(), stateGradient, lastTheta(), size_, momentumGradient);
      weigh(b_ + 1, dout_, p_.chunk, p_.v, false, x_ + keys * p_.v);
      product(p_.f, p_.v, p_.chunk, columns_ + keys, p_.both, x_ + keys * p_.v, p_.v, momentumGradient, p_.v, true);
    }
    scale(lastA(), size_, stateGradient);
    weigh(a_ + 1, dout_, p_.chunk, p_.v, false, x_ + keys * p_.v);
    if (p_.squared) {
      scale(-1, keys * p_.v, x_);
      product(p_.f, p_.v, keys + p_.chunk, columns_, p_.both, x_, p_.v, stateGradient, p_.v, true);
    } else {
      product(p_.f, p_.v, p_.chunk, columns_ + keys, p_.both, x_ + keys * p_.v, p_.v, stateGradient, p_.v, true);
    }
  }

  /// Rows of y_'s columns: those of keys, negative, and those of queries times `factor`, into (or onto) gradientRows_.
  void scaleReads(const float* factor, bool add) {
    const int64_t keys = p_.keys;
    float* queries = gradientRows_ + keys * p_.f;
    if (!add) {
      transposeBlock(y_, p_.both, p_.f, p_.both, turnedRows(), p_.f);
      if (p_.squared) {
        std::memcpy(gradientRows_, turnedRows(), sizeof(float) * keys * p_.f);
        scale(-1, keys * p_.f, gradientRows_);
      } else {
        std::memset(gradientRows_, 0, sizeof(float) * keys * p_.f);
      }
    }
    weigh(factor + 1, turnedRows() + keys * p_.f, p_.chunk, p_.f, add, queries);
  }

  /// d factor_t = q_t · (dO_t W'ᵀ); leaves the rows of y in turnedRows().
  void gradientsOfReads(const float* y, float* to) {
    transposeBlock(y, p_.both, p_.f, p_.both, turnedRows(), p_.f);
    for (int64_t i = 0; i < p_.chunk; ++i)
      to[i] = inner(turnedRows() + (p_.keys + i) * p_.f, rows_ + (p_.keys + i) * p_.f, p_.f);
  }

  float* turnedRows() { return threadScratch(kTransposed, p_.both * p_.f); }

  /// gradientRows_[i] += column i of z.
  void addTransposed(const float* z, int64_t width, int64_t count, float* to) {
    float* rows = turnedRows();
    transposeBlock(z, width, p_.f, width, rows, p_.f);
    addTo(rows, count * p_.f, to);
  }

  /// Adds the gradients of the chunk's keys (or values), c - 1 rows of which belong to chunks before.
  void addRowsTo(const Rows& to, int64_t head, int64_t t, int64_t n, const float* from, int64_t padded) const {
    const int64_t reach = p_.window - 1, missing = std::clamp<int64_t>(reach - p_.before - t, 0, reach);
    for (int64_t i = missing; i < reach + n; ++i)
      addTo(from + i * padded, to.width, reinterpret_cast<float*>(to.row(head, t + p_.before - reach + i)));
  }

  /// Backwards through the coefficients' recurrences.
  void gateGradients(int64_t head, int64_t t, int64_t n, const float* state, const float* momentum, const Gradients& to) {
    const int64_t last = p_.chunk - 1, reach = p_.window - 1;
    for (int64_t j = 0; j < p_.keys; ++j) dC_[last * p_.m + j] += inner(keyState_ + j * p_.v, error_ + j * p_.v, p_.v);
    float gA = inner(state, stateGradient, size_), gB = 0, gTheta = 0;
    std::memset(gC_, 0, sizeof(float) * p_.m);
    std::memset(gR_, 0, sizeof(float) * p_.m);
    if (p_.momentum) {
      gB = inner(momentum, stateGradient, size_);
      gTheta = inner(momentum, momentumGradient, size_);
      for (int64_t j = 0; j < p_.keys; ++j) gR_[j] = inner(keyMomentum_ + j * p_.v, error_ + j * p_.v, p_.v);
    }
    for (int64_t i = last; i >= 0; --i) {
      const float *r = r_ + (i + 1) * p_.m, *c = c_ + (i + 1) * p_.m;
      addTo(dC_ + i * p_.m, p_.m, gC_);
      gA += dA_[i];
      if (p_.momentum) gB += dB_[i];
      combine(eta_[i], gC_, 1, p_.m, gR_);
      gTheta += eta_[i] * gB;
      if (i < n) {
        const int64_t at = head * p_.length + t + i;
        to.retention[at] = inner(gC_, c - p_.m, p_.m) + gA * a_[i] + gB * b_[i];
        to.rate[at] = inner(gC_, r, p_.m) + gB * theta_[i + 1];
        if (p_.momentum) to.persistence[at] = inner(gR_, r - p_.m, p_.m) + gTheta * theta_[i];
        for (int64_t age = 0; age < p_.window; ++age) to.gates[at * p_.window + age] = gR_[i + reach - age];
      }
      scale(alpha_[i], p_.m, gC_);
      gA *= alpha_[i];
      gB *= alpha_[i];
      scale(persist_[i], p_.m, gR_);
      gTheta *= persist_[i];
    }
  }
};

// --- The operator ---------------------------------------------------------------------------------------------------

Tensor ready(const Tensor& x) { return x.size(-1) <= 1 || x.stride(-1) == 1 ? x : x.contiguous(); }

const float* floats(const Tensor& x) { return x.defined() ? x.data_ptr<float>() : nullptr; }

struct Inputs {
  Tensor query, key, value, retention, rate, gates, persistence, state, momentum;
  int64_t chunk;
  bool squared;

  Inputs(
      const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha, const Tensor& eta, const Tensor& gamma, const OptionalTensor& theta,
      const OptionalTensor& w, const OptionalTensor& s, int64_t chunk, bool squared)
      : chunk(chunk), squared(squared) {
    for (const auto& [tensor, name] : {std::pair<const Tensor&, const char*>{q, "query"}, {k, "key"}, {v, "value"}, {gamma, "window_gates"}})
      TORCH_CHECK(tensor.dim() == 4, "omega_rule: ", name, " must be [batch, heads, length, width], not ", tensor.sizes());
    const auto check = [](const Tensor& x, const char* name) {
      TORCH_CHECK(
          x.scalar_type() == at::kFloat && x.device().is_cpu() && x.layout() == at::kStrided, "omega_rule: ", name,
          " must be a dense float32 CPU tensor, not ", x.scalar_type(), " on ", x.device());
    };
    check(q, "query"), check(k, "key"), check(v, "value"), check(alpha, "retention"), check(eta, "rate"), check(gamma, "window_gates");
    TORCH_CHECK(chunk > 0, "omega_rule: chunk must be positive, not ", chunk);
    const auto places = q.sizes().slice(0, 3);
    TORCH_CHECK(gamma.sizes().slice(0, 3) == places && gamma.size(3) > 0, "omega_rule: window_gates have shape ", gamma.sizes(), ", expected ", places, " and a window");
    TORCH_CHECK(alpha.sizes() == places && eta.sizes() == places, "omega_rule: retention and rate have shapes ", alpha.sizes(), " and ", eta.sizes(), ", expected ", places);
    const int64_t extra = k.size(2) - q.size(2);
    TORCH_CHECK(
        k.sizes().slice(0, 2) == q.sizes().slice(0, 2) && k.size(3) == q.size(3) && (extra == 0 || extra == gamma.size(3) - 1),
        "omega_rule: key has shape ", k.sizes(), ", expected query's ", q.sizes(), ", or ", gamma.size(3) - 1, " more tokens before it");
    TORCH_CHECK(v.sizes().slice(0, 3) == k.sizes().slice(0, 3), "omega_rule: value has shape ", v.sizes(), ", expected key's ", k.sizes(), " but for the width");
    TORCH_CHECK(q.size(3) > 0 && v.size(3) > 0, "omega_rule: widths must be positive");
    query = ready(q), key = ready(k), value = ready(v);
    retention = alpha.contiguous(), rate = eta.contiguous(), gates = gamma.contiguous();
    if (theta && theta->defined()) {
      check(*theta, "persistence");
      TORCH_CHECK(theta->sizes() == places, "omega_rule: persistence has shape ", theta->sizes(), ", expected ", places);
      persistence = theta->contiguous();
    }
    for (const auto& [given, to, name] : {std::tuple<const OptionalTensor&, Tensor&, const char*>{w, state, "state"}, {s, momentum, "momentum"}}) {
      if (!given || !given->defined()) continue;
      check(*given, name);
      TORCH_CHECK(given->sizes() == at::IntArrayRef({q.size(0), q.size(1), q.size(3), v.size(3)}), "omega_rule: ", name, " has shape ", given->sizes(), ", expected [batch, heads, features, value width]");
      to = given->contiguous();
    }
  }

  Problem problem() const {
    Problem p;
    p.batch = query.size(0), p.heads = query.size(1), p.length = query.size(2), p.features = query.size(3), p.dv = value.size(3);
    p.window = gates.size(3), p.chunk = std::min(chunk, std::max<int64_t>(p.length, 1)), p.keys = p.chunk + p.window - 1;
    p.f = roundedUp(p.features), p.v = roundedUp(p.dv), p.m = roundedUp(p.keys), p.b = roundedUp(p.chunk), p.both = roundedUp(p.keys + p.chunk);
    p.momentum = persistence.defined(), p.squared = squared;
    p.query = Rows(query), p.key = Rows(key), p.value = Rows(value);
    p.before = key.size(2) - query.size(2);
    p.retention = floats(retention), p.rate = floats(rate), p.persistence = floats(persistence), p.gates = floats(gates);
    return p;
  }
};

using ScanWorkers = Workers<Scan, const Problem&>;

/// Output, last state and momentum, and, where wanted, the states (and momenta) at every `spacing` chunks.
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Inputs& in, bool save) {
  const Problem p = in.problem();
  Tensor out = emptyHeads(p.batch, p.heads, p.length, p.dv, in.query.options());
  const auto shape = {p.batch, p.heads, p.features, p.dv};
  Tensor last = in.state.defined() ? in.state.clone() : at::zeros(shape, at::kFloat);
  Tensor lastMomentum = in.momentum.defined() ? in.momentum.clone() : at::zeros(shape, at::kFloat);
  const int64_t kinds = p.momentum ? 2 : 1;
  Tensor saved = save ? at::empty({p.count(), p.saved(), kinds, p.features, p.dv}, at::kFloat) : Tensor();
  if (out.numel() == 0) return {out, last, lastMomentum, saved};
  ScanWorkers workers(p);
  const Rows outRows(out);
  parallelTasks(p.count(), [&](int64_t head, int64_t worker) {
    FlushDenormals flush;
    Scan& scan = workers[worker];
    const int64_t size = p.stateFloats();
    scan.load(last.data_ptr<float>() + head * size, scan.state);
    if (p.momentum) scan.load(lastMomentum.data_ptr<float>() + head * size, scan.momentum);
    for (int64_t chunk = 0; chunk < p.chunks(); ++chunk) {
      if (save && chunk % p.spacing() == 0) {
        float* to = saved.data_ptr<float>() + (head * p.saved() + chunk / p.spacing()) * kinds * size;
        scan.store(scan.state, to);
        if (p.momentum) scan.store(scan.momentum, to + size);
      }
      scan.forward(head, chunk, outRows);
    }
    scan.store(scan.state, last.data_ptr<float>() + head * size);
    if (p.momentum) scan.store(scan.momentum, lastMomentum.data_ptr<float>() + head * size);
  });
  return {out, last, lastMomentum, saved};
}

class OmegaFunction : public torch::autograd::Function<OmegaFunction> {
 public:
  static torch::autograd::variable_list forward(
      torch::autograd::AutogradContext* context, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& retention,
      const Tensor& rate, const Tensor& gates, const OptionalTensor& persistence, const OptionalTensor& state, const OptionalTensor& momentum,
      int64_t chunk, bool squared) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->set_materialize_grads(false);
    const Inputs in(query, key, value, retention, rate, gates, persistence, state, momentum, chunk, squared);
    auto [out, last, lastMomentum, saved] = martlet::forward(in, true);
    context->save_for_backward(
        {query, key, value, retention, rate, gates, persistence.value_or(Tensor()), state.value_or(Tensor()), momentum.value_or(Tensor()), saved});
    context->saved_data["chunk"] = chunk;
    context->saved_data["squared"] = squared;
    return {out, last, lastMomentum};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    TORCH_CHECK(
        !at::GradMode::is_enabled(), "omega_rule: has no second derivative; call backward without create_graph, or use the reference form");
    const auto kept = context->get_saved_variables();
    const Inputs in(
        kept[0], kept[1], kept[2], kept[3], kept[4], kept[5], kept[6], kept[7], kept[8], context->saved_data["chunk"].toInt(),
        context->saved_data["squared"].toBool());
    const Problem p = in.problem();
    const Tensor& saved = kept[9];
    const auto options = in.query.options();
    const int64_t keyRows = p.length + p.before;
    Tensor queryGradient = emptyHeads(p.batch, p.heads, p.length, p.features, options);
    Tensor keyGradient = at::zeros({p.batch, p.heads, keyRows, p.features}, options);
    Tensor valueGradient = at::zeros({p.batch, keyRows, p.heads, p.dv}, options).transpose(1, 2);
    Tensor retention = at::empty_like(in.retention), rate = at::empty_like(in.rate), gates = at::empty_like(in.gates);
    Tensor persistence = p.momentum ? at::empty_like(in.persistence) : Tensor();
    const auto shape = {p.batch, p.heads, p.features, p.dv};
    const auto start = [&](const Tensor& given) { return given.defined() ? given.contiguous().clone() : at::zeros(shape, options); };
    Tensor state = start(gradients[1]), momentum = start(gradients[2]);
    if (p.count() * p.length > 0) {
      const Tensor outGradient =
          gradients[0].defined() ? ready(gradients[0]) : at::zeros({1}, options).expand({p.batch, p.heads, p.length, p.dv}).contiguous();
      const Rows outRows(outGradient);
      Gradients to;
      to.query = Rows(queryGradient), to.key = Rows(keyGradient), to.value = Rows(valueGradient);
      to.retention = retention.data_ptr<float>(), to.rate = rate.data_ptr<float>(), to.gates = gates.data_ptr<float>();
      to.persistence = p.momentum ? persistence.data_ptr<float>() : nullptr;
      ScanWorkers workers(p);
      parallelTasks(p.count(), [&](int64_t head, int64_t worker) {
        FlushDenormals flush;
        Scan& scan = workers[worker];
        const int64_t size = p.stateFloats(), kinds = p.momentum ? 2 : 1;
        scan.load(state.data_ptr<float>() + head * size, scan.stateGradient);
        if (p.momentum) scan.load(momentum.data_ptr<float>() + head * size, scan.momentumGradient);
        const auto loadGradient = [&](int64_t t, int64_t rows, float* into, int64_t padded) {
          const char* from = outRows.row(head, t);
          for (int64_t i = 0; i < rows; ++i, from += outRows.rowBytes()) std::memcpy(into + i * padded, from, sizeof(float) * p.dv);
        };
        for (int64_t entry = p.saved() - 1; entry >= 0; --entry) {
          const float* from = saved.data_ptr<float>() + (head * p.saved() + entry) * kinds * size;
          scan.load(from, scan.state);
          if (p.momentum) scan.load(from + size, scan.momentum);
          scan.backward(head, entry * p.spacing(), std::min(p.chunks(), (entry + 1) * p.spacing()), loadGradient, to);
        }
        scan.store(scan.stateGradient, state.data_ptr<float>() + head * size);
        if (p.momentum) scan.store(scan.momentumGradient, momentum.data_ptr<float>() + head * size);
      });
    }
    const auto ifGiven = [](const Tensor& given, const Tensor& gradient) { return given.defined() ? gradient : Tensor(); };
    return {queryGradient, keyGradient,          valueGradient,            retention, rate, gates, persistence, ifGiven(kept[7], state),
            ifGiven(kept[8], momentum), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor, Tensor> omegaRule(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& retention, const Tensor& rate, const Tensor& gates,
    const OptionalTensor& persistence, const OptionalTensor& state, const OptionalTensor& momentum, int64_t chunk, bool squared) {
  auto [out, last, lastMomentum, saved] =
      forward(Inputs(query, key, value, retention, rate, gates, persistence, state, momentum, chunk, squared), false);
  return {out, last, lastMomentum};
}

std::tuple<Tensor, Tensor, Tensor> omegaRuleAutograd(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& retention, const Tensor& rate, const Tensor& gates,
    const OptionalTensor& persistence, const OptionalTensor& state, const OptionalTensor& momentum, int64_t chunk, bool squared) {
  bool wanted = false;
  for (const Tensor* x : {&query, &key, &value, &retention, &rate, &gates}) wanted |= x->requires_grad();
  for (const OptionalTensor* x : {&persistence, &state, &momentum}) wanted |= *x && (*x)->defined() && (*x)->requires_grad();
  if (!at::GradMode::is_enabled() || !wanted) {
    at::AutoDispatchBelowADInplaceOrView below;
    return omegaRule(query, key, value, retention, rate, gates, persistence, state, momentum, chunk, squared);
  }
  auto results = OmegaFunction::apply(query, key, value, retention, rate, gates, persistence, state, momentum, chunk, squared);
  return {results[0], results[1], results[2]};
}

}  // namespace
}  // namespace martlet

TORCH_LIBRARY_FRAGMENT(martlet, m) {
  // query [B, H, L, F], key [B, H, L, F] and value [B, H, L, dv], or both with the c - 1 tokens before the first in front; float32 on
  // the CPU, any strides but a last one of 1 (otherwise copied). retention, rate and persistence (momentum's θ; none: no momentum)
  // [B, H, L]; window_gates [B, H, L, c], the gate of age j at j. state and momentum [B, H, F, dv], zeros unless given, stand at the
  // start of a chunk. `squared`: the objective is Σ γ ½|k W - v|², else -Σ γ <k W, v>. Returns o [B, H, L, dv], o.transpose(1, 2)
  // contiguous, and the last state and momentum. `chunk` is part of the function.
  m.def(
      "omega_rule(Tensor query, Tensor key, Tensor value, Tensor retention, Tensor rate, Tensor window_gates, Tensor? persistence=None, "
      "Tensor? state=None, Tensor? momentum=None, int chunk=16, bool squared=True) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(martlet, CPU, m) { m.impl("omega_rule", martlet::omegaRule); }

TORCH_LIBRARY_IMPL(martlet, Autograd, m) { m.impl("omega_rule", martlet::omegaRuleAutograd); }
