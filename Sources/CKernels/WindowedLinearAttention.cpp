// Softmax attention inside a window, linear attention to everything before it, one common normalisation (LoLCATs, Zhang et al. 2024,
// arXiv 2410.10254, §3.3):
//
//   o_i = [ g Σ_{j in W_i} e^{s_ij - μ_i} v_j + Σ_{j in R_i} φ(q_i)·φ(k_j) v_j ] / [ the same with v_j = 1 ],   s_ij = scale q_i·k_j,
//
// W_i = {i-w+1..i} (or i's block of w and the one before), R_i all before W_i, μ_i the maximum of s over the window only. μ is part
// of the function: it sets the balance of the two sums, so backward differentiates through it.
//
// 64 queries are taken together. The keys from the first one's window on, n = w + 63 of them, are one tile of weights: a row is
// linear up to its window, then softmax, then 0. All older keys are in the sums S = Σ φ(k)ᵀ v and z = Σ φ(k), so that no product is
// masked but that of the first 63 keys. Forward costs 64 (2 n (d + dv) + 126 F + 4 F dv) flops a block and head, backward 2.4 times
// as many; the state of every block is kept for it (F dv / 64 floats a token).
//
// Measured with Benchmarks/family_kernels.py on one core (Zen 3 with AVX2, CPU time; d = dv = F = w = 64, L = 4096): forward 1.0 us a token
// and head, forward + backward 3.7. Block products take three quarters of the time, transposes, rows of weights and their sums the rest.
// One token's step takes 18 to 28 us for four heads of 64 (w = 64, F = 64) after 1k as after 131k tokens.
//
// Beside it: the Hedgehog feature map φ(x) = [softmax(xA); softmax(-xA)] in one pass, and one token's whole step.

#include "ChunkScan.h"
#include "Lanes.h"
#include "Product.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <limits>
#include <optional>
#include <tuple>
#include <vector>

namespace martlet {
namespace {

using at::Tensor;
using lanes::Floats;
using lanes::Ints;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kQueries = 64;
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLeast = 1e-12f;  // features are at least this

constexpr Ints laneNumbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// --- Row loops ------------------------------------------------------------------------------------------------------

MARTLET_INLINE float horizontalMaximum(const Floats& x) {
  float high = x[0];
  for (int i = 1; i < 16; ++i) high = x[i] > high ? x[i] : high;
  return high;
}

MARTLET_INLINE float horizontalSum(const Floats& x) {
  float sum = 0;
  for (int i = 0; i < 16; ++i) sum += x[i];
  return sum;
}

/// The largest of s[first..last] times factor. Rows are whole vectors long.
MARTLET_INLINE float rowMaximum(const float* s, int64_t first, int64_t last, float factor) {
  Floats high = Floats{} - kInfinity;
  for (int64_t c = first / 16 * 16; c <= last; c += 16) {
    Floats x;
    lanes::load(x, s + c);
    x *= factor;
    const Ints column = laneNumbers + static_cast<int32_t>(c);
    const Ints inside = (column >= static_cast<int32_t>(first)) & (column <= static_cast<int32_t>(last));
    x = inside ? x : Floats{} - kInfinity;
    high = x > high ? x : high;
  }
  return horizontalMaximum(high);
}

/// Scores s (columns 0..<padded) become weights: linear[c] for c < first, 2^(factor s - maximum + gate) for first <= c <= last, then
/// 0. Returns their sum.
MARTLET_VECTOR static float rowWeights(
    float* s, const float* linear, int64_t first, int64_t last, int64_t padded, float factor, float gate) {
  const float shift = gate - rowMaximum(s, first, last, factor);
  Floats total = {};
  int64_t c = 0;
  for (; c + 16 <= first; c += 16) {
    Floats x;
    lanes::load(x, linear + c);
    total += x;
    lanes::store(s + c, x);
  }
  for (; c <= last; c += 16) {
    Floats x, y = {};
    lanes::load(x, s + c);
    x = x * factor + shift;
    lanes::exp2InPlace(x);
    const Ints column = laneNumbers + static_cast<int32_t>(c);
    x = column <= static_cast<int32_t>(last) ? x : Floats{};
    if (c < first) {
      lanes::load(y, linear + c);
      x = column < static_cast<int32_t>(first) ? y : x;
    }
    total += x;
    lanes::store(s + c, x);
  }
  for (; c < padded; c += 16) lanes::store(s + c, Floats{});
  return horizontalSum(total);
}

/// Backward's element work for a row. In: scores s and d = dN·v. Out: s the weights, d the gradient of scale-free scores times
/// `scale` (0 outside the window), linearGradient that of the linear weights (columns below `paddedLinear`, 0 from `first` on).
/// Returns Σ over the window of weight times its gradient: that of log g, and minus that of the maximum; 0 where the window is `alone`,
/// all the past there is.
MARTLET_VECTOR static float rowGradients(
    float* s, const float* linear, float* d, float* linearGradient, int64_t first, int64_t last, int64_t padded, int64_t paddedLinear,
    float factor, float gate, float scale, float denominatorGradient, bool alone) {
  const float maximum = rowMaximum(s, first, last, factor);
  const float shift = gate - maximum;
  Floats total = {}, ties = {};
  int64_t c = 0;
  for (; c < paddedLinear; c += 16) {
    Floats y;
    lanes::load(y, d + c);
    y += denominatorGradient;
    y = laneNumbers + static_cast<int32_t>(c) < static_cast<int32_t>(first) ? y : Floats{};
    lanes::store(linearGradient + c, y);
  }
  c = 0;
  for (; c + 16 <= first; c += 16) {
    Floats x;
    lanes::load(x, linear + c);
    lanes::store(s + c, x);
    lanes::store(d + c, Floats{});
  }
  const int64_t start = c;
  for (; c <= last; c += 16) {
    Floats x, y, one = Floats{} + 1.0f;
    lanes::load(x, s + c);
    lanes::load(y, d + c);
    const Ints column = laneNumbers + static_cast<int32_t>(c);
    const Ints inside = (column >= static_cast<int32_t>(first)) & (column <= static_cast<int32_t>(last));
    const Floats scaled = x * factor;
    ties += (inside & (scaled >= maximum)) ? one : Floats{};
    x = scaled + shift;
    lanes::exp2InPlace(x);
    x = inside ? x : Floats{};
    y = inside ? x * (y + denominatorGradient) : Floats{};
    total += y;
    lanes::store(d + c, y);
  }
  // A softmax alone doesn't depend on what is added to all its scores.
  const float sum = alone ? 0.0f : horizontalSum(total);
  // The maximum takes its gradient in equal parts where several keys share it, as amax does.
  const float each = sum / horizontalSum(ties);
  for (c = start; c <= last; c += 16) {
    Floats x, y, z = {};
    lanes::load(x, s + c);
    lanes::load(y, d + c);
    const Ints column = laneNumbers + static_cast<int32_t>(c);
    const Ints inside = (column >= static_cast<int32_t>(first)) & (column <= static_cast<int32_t>(last));
    const Floats scaled = x * factor;
    y -= (inside & (scaled >= maximum)) ? Floats{} + each : Floats{};
    y *= scale;
    x = scaled + shift;
    lanes::exp2InPlace(x);
    x = inside ? x : Floats{};
    if (c < first) {
      lanes::load(z, linear + c);
      x = column < static_cast<int32_t>(first) ? z : x;
    }
    lanes::store(d + c, y);
    lanes::store(s + c, x);
  }
  for (; c < padded; c += 16) {
    lanes::store(s + c, Floats{});
    lanes::store(d + c, Floats{});
  }
  return sum;
}

MARTLET_VECTOR static float dot(const float* a, const float* b, int64_t n) {
  MARTLET_FAST_SUMS
  float sum = 0;
  MARTLET_SIMD
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

/// to = (add ? to : 0) + factor x.
MARTLET_VECTOR static void addScaled(const float* x, float factor, int64_t n, float* to, bool add) {
  if (add) {
    MARTLET_SIMD
    for (int64_t i = 0; i < n; ++i) to[i] += factor * x[i];
  } else {
    MARTLET_SIMD
    for (int64_t i = 0; i < n; ++i) to[i] = factor * x[i];
  }
}

// --- Geometry -------------------------------------------------------------------------------------------------------

/// Where windows begin. Keys count from 0; the first of them stands at position `base` of its sequence.
struct Windows {
  int64_t size;
  bool blocks;
  int64_t base;

  /// The first key in the window of the query that stands at a key.
  int64_t first(int64_t key) const {
    const int64_t low = blocks ? ((key + base) / size - 1) * size - base : key - size + 1;
    return std::max<int64_t>(low, 0);
  }
};

/// A [B, H, L, d] tensor whose last dimension has stride 1.
struct Heads {
  float* data = nullptr;
  int64_t heads = 1, batchStride = 0, headStride = 0, stride = 0;
  Heads() = default;
  explicit Heads(const Tensor& t)
      : data(t.data_ptr<float>()), heads(t.size(1)), batchStride(t.stride(0)), headStride(t.stride(1)), stride(t.stride(2)) {}
  float* row(int64_t head, int64_t i) const { return data + head / heads * batchStride + head % heads * headStride + i * stride; }
};

struct Problem {
  int64_t batch, heads, queries, keys, d, dv, features;
  Heads query, key, value, queryFeatures, keyFeatures;
  const float* gate;  // [H]
  Windows windows;
  float scale;
  const float *state = nullptr, *normalizer = nullptr;  // [B, H, F, dv], [B, H, F]

  int64_t count() const { return batch * heads; }
  int64_t offset() const { return keys - queries; }
  int64_t blocks() const { return (queries + kQueries - 1) / kQueries; }
  /// The most keys in a tile.
  int64_t tile() const { return std::min(keys, (windows.blocks ? 2 : 1) * windows.size + kQueries); }
};

/// A block of queries: rows of them, keys low..<low + n in the tile, the first `linear` of which some row sees as linear.
struct Block {
  int64_t begin, rows, low, n, linear, next;  // next: keys that join the sums before the next block

  Block(const Problem& p, int64_t begin) : begin(begin), rows(std::min(kQueries, p.queries - begin)) {
    const int64_t at = begin + p.offset();
    low = p.windows.first(at);
    n = at + rows - low;
    linear = p.windows.first(at + rows - 1) - low;
    next = begin + rows < p.queries ? p.windows.first(at + rows) - low : linear;
  }
};

/// One worker's tiles.
class Worker {
  const Problem& p_;
  const int64_t tile_, padded_;
  scan::Arena arena_;
  float *weights_, *linear_, *keys_, *keyFeatures_, *out_, *values_, *gradients_, *linearGradients_, *weightsT_, *gradientsT_, *linearT_;
  float *dn_, *dnT_, *other_, *dd_;

 public:
  float *state, *normalizer, *stateGradient, *normalizerGradient;  // S [F, dv], z [F]; Eᵀ [dv, F]
  double gateGradient = 0;

  Worker(const Problem& p, bool backward)
      : p_(p), tile_(p.tile()), padded_(scan::roundedUp(tile_) + 16),
        arena_(
            kQueries * (2 * padded_ + p.dv) + padded_ * (p.d + p.features) + 2 * p.features * (p.dv + 1) +
            (backward ? kQueries * 5 * padded_ + padded_ * p.dv + kQueries * (2 * p.dv + 1) + p.features * p.dv : 0) + 1024) {
    weights_ = arena_.take(kQueries * padded_), linear_ = arena_.take(kQueries * padded_), out_ = arena_.take(kQueries * p.dv);
    keys_ = arena_.take(padded_ * p.d), keyFeatures_ = arena_.take(padded_ * p.features);
    state = arena_.take(p.features * p.dv), normalizer = arena_.take(p.features);
    stateGradient = arena_.take(p.features * p.dv), normalizerGradient = arena_.take(p.features);
    if (!backward) return;
    gradients_ = arena_.take(kQueries * padded_), linearGradients_ = arena_.take(kQueries * padded_);
    weightsT_ = arena_.take(kQueries * padded_), gradientsT_ = arena_.take(kQueries * padded_), linearT_ = arena_.take(kQueries * padded_);
    values_ = arena_.take(padded_ * p.dv);
    dn_ = arena_.take(kQueries * p.dv), dnT_ = arena_.take(kQueries * p.dv), dd_ = arena_.take(kQueries);
    other_ = arena_.take(p.features * p.dv);
  }

  void startState(int64_t head) {
    const size_t size = static_cast<size_t>(p_.features * p_.dv);
    if (p_.state) std::memcpy(state, p_.state + head * size, size * sizeof(float));
    else std::memset(state, 0, size * sizeof(float));
    if (p_.normalizer) std::memcpy(normalizer, p_.normalizer + head * p_.features, static_cast<size_t>(p_.features) * sizeof(float));
    else std::memset(normalizer, 0, static_cast<size_t>(p_.features) * sizeof(float));
  }

  /// Keys begin..<end into the sums.
  void add(int64_t head, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kQueries) {
      const int64_t rows = std::min(kQueries, end - i);
      transposeBlock(p_.keyFeatures.row(head, i), p_.keyFeatures.stride, rows, p_.features, keyFeatures_, padded_);
      sum(head, i, rows);
    }
  }

 private:
  /// Keys i..<i + rows, whose features stand in `keyFeatures_` in columns, into the sums.
  void sum(int64_t head, int64_t i, int64_t rows) {
    scan::product(
        p_.features, p_.dv, rows, keyFeatures_, padded_, p_.value.row(head, i), p_.value.stride, state, p_.dv, true);
    for (int64_t r = 0; r < rows; ++r) addScaled(p_.keyFeatures.row(head, i + r), 1, p_.features, normalizer, true);
  }

  /// Scores of a block and its linear weights.
  void scores(int64_t head, const Block& b) {
    transposeBlock(p_.key.row(head, b.low), p_.key.stride, b.n, p_.d, keys_, padded_);
    scan::product(
        b.rows, b.n, p_.d, p_.query.row(head, b.begin), p_.query.stride, keys_, padded_, weights_, padded_, false);
    const int64_t taken = std::min(std::max(b.linear, b.next), b.n);
    if (taken > 0) transposeBlock(p_.keyFeatures.row(head, b.low), p_.keyFeatures.stride, taken, p_.features, keyFeatures_, padded_);
    if (b.linear > 0) {
      scan::product(
          b.rows, b.linear, p_.features, p_.queryFeatures.row(head, b.begin), p_.queryFeatures.stride, keyFeatures_, padded_, linear_,
          padded_, false);
    }
  }

  int64_t firstColumn(const Block& b, int64_t row) const { return p_.windows.first(b.begin + p_.offset() + row) - b.low; }
  int64_t lastColumn(const Block& b, int64_t row) const { return b.begin + p_.offset() + row - b.low; }
  float log2Gate(int64_t head) const { return std::log2(p_.gate[head % p_.heads]); }

 public:
  /// Outputs of a block, and its keys that no later window holds into the sums.
  void forward(int64_t head, int64_t begin, const Heads& out, float* denominators) {
    const Block b(p_, begin);
    scores(head, b);
    const float gate = log2Gate(head);
    const int64_t padded = scan::roundedUp(b.n);
    float sums[kQueries];
    for (int64_t i = 0; i < b.rows; ++i) {
      sums[i] = rowWeights(
          weights_ + i * padded_, linear_ + i * padded_, firstColumn(b, i), lastColumn(b, i), padded, p_.scale * kLog2E, gate);
      sums[i] += dot(p_.queryFeatures.row(head, begin + i), normalizer, p_.features);
    }
    scan::product(b.rows, p_.dv, b.n, weights_, padded_, p_.value.row(head, b.low), p_.value.stride, out_, p_.dv, false);
    scan::product(
        b.rows, p_.dv, p_.features, p_.queryFeatures.row(head, begin), p_.queryFeatures.stride, state, p_.dv, out_, p_.dv, true);
    for (int64_t i = 0; i < b.rows; ++i) {
      addScaled(out_ + i * p_.dv, 1 / sums[i], p_.dv, out.row(head, begin + i), false);
      denominators[begin + i] = sums[i];
    }
    if (begin + b.rows < p_.queries && b.next > 0) {
      if (b.next <= kQueries && b.next <= b.n) sum(head, b.low, b.next);
      else add(head, b.low, b.low + b.next);
    }
  }

  struct Gradients {
    Heads query, key, value, queryFeatures, keyFeatures;
  };

  /// Gradients of a block's queries, and what they add to those of the keys in its tile and to that of the sums; then the sums'
  /// gradient goes to the keys that joined them before this block. `state` and `normalizer`: the sums that this block sees.
  void backward(int64_t head, int64_t begin, const Heads& out, const Heads& outGradient, const float* denominators, const Gradients& g) {
    const Block b(p_, begin);
    scores(head, b);
    for (int64_t i = 0; i < b.rows; ++i) {
      const float* dy = outGradient.row(head, begin + i);
      const float inverse = 1 / denominators[begin + i];
      addScaled(dy, inverse, p_.dv, dn_ + i * p_.dv, false);
      dd_[i] = -dot(dy, out.row(head, begin + i), p_.dv) * inverse;
    }
    transposeBlock(p_.value.row(head, b.low), p_.value.stride, b.n, p_.dv, values_, padded_);
    scan::product(b.rows, b.n, p_.dv, dn_, p_.dv, values_, padded_, gradients_, padded_, false);
    const float gate = log2Gate(head);
    const int64_t padded = scan::roundedUp(b.n), paddedLinear = scan::roundedUp(b.linear);
    for (int64_t i = 0; i < b.rows; ++i) {
      gateGradient += rowGradients(
          weights_ + i * padded_, linear_ + i * padded_, gradients_ + i * padded_, linearGradients_ + i * padded_, firstColumn(b, i),
          lastColumn(b, i), padded, paddedLinear, p_.scale * kLog2E, gate, p_.scale, dd_[i],
          b.low == 0 && firstColumn(b, i) == 0 && !p_.state);
    }
    // Queries.
    scan::product(
        b.rows, p_.d, b.n, gradients_, padded_, p_.key.row(head, b.low), p_.key.stride, g.query.row(head, begin), g.query.stride, false);
    transposeBlock(state, p_.dv, p_.features, p_.dv, other_, p_.features);
    float* dq = g.queryFeatures.row(head, begin);
    for (int64_t i = 0; i < b.rows; ++i) addScaled(normalizer, dd_[i], p_.features, dq + i * g.queryFeatures.stride, false);
    scan::product(b.rows, p_.features, p_.dv, dn_, p_.dv, other_, p_.features, dq, g.queryFeatures.stride, true);
    if (b.linear > 0) {
      scan::product(
          b.rows, p_.features, b.linear, linearGradients_, padded_, p_.keyFeatures.row(head, b.low), p_.keyFeatures.stride, dq,
          g.queryFeatures.stride, true);
    }
    // Keys of the tile.
    transposeBlock(weights_, padded_, b.rows, b.n, weightsT_, kQueries);
    transposeBlock(gradients_, padded_, b.rows, b.n, gradientsT_, kQueries);
    scan::product(b.n, p_.dv, b.rows, weightsT_, kQueries, dn_, p_.dv, g.value.row(head, b.low), g.value.stride, true);
    scan::product(
        b.n, p_.d, b.rows, gradientsT_, kQueries, p_.query.row(head, begin), p_.query.stride, g.key.row(head, b.low), g.key.stride, true);
    if (b.linear > 0) {
      transposeBlock(linearGradients_, padded_, b.rows, b.linear, linearT_, kQueries);
      scan::product(
          b.linear, p_.features, b.rows, linearT_, kQueries, p_.queryFeatures.row(head, begin), p_.queryFeatures.stride,
          g.keyFeatures.row(head, b.low), g.keyFeatures.stride, true);
    }
    // The sums.
    transposeBlock(dn_, p_.dv, b.rows, p_.dv, dnT_, kQueries);
    scan::product(
        p_.dv, p_.features, b.rows, dnT_, kQueries, p_.queryFeatures.row(head, begin), p_.queryFeatures.stride, stateGradient, p_.features,
        true);
    for (int64_t i = 0; i < b.rows; ++i) addScaled(p_.queryFeatures.row(head, begin + i), dd_[i], p_.features, normalizerGradient, true);
    const int64_t from = begin == 0 ? 0 : Block(p_, begin - kQueries).low;
    if (from == b.low) return;
    transposeBlock(stateGradient, p_.features, p_.dv, p_.features, other_, p_.dv);
    for (int64_t i = from; i < b.low; i += kQueries) {
      const int64_t rows = std::min(kQueries, b.low - i);
      scan::product(
          rows, p_.dv, p_.features, p_.keyFeatures.row(head, i), p_.keyFeatures.stride, other_, p_.dv, g.value.row(head, i), g.value.stride,
          true);
      float* dk = g.keyFeatures.row(head, i);
      scan::product(
          rows, p_.features, p_.dv, p_.value.row(head, i), p_.value.stride, stateGradient, p_.features, dk, g.keyFeatures.stride, true);
      for (int64_t r = 0; r < rows; ++r) addScaled(normalizerGradient, 1, p_.features, dk + r * g.keyFeatures.stride, true);
    }
  }
};

// --- The operator ---------------------------------------------------------------------------------------------------

Tensor ready(const Tensor& x) { return x.size(-1) <= 1 || x.stride(-1) == 1 ? x : x.contiguous(); }

struct Options {
  int64_t window;
  bool blocks;
  double scale;
  int64_t position;
};

/// Tensors as the kernel reads them, checked.
struct Inputs {
  Tensor query, key, value, queryFeatures, keyFeatures, gate, state, normalizer;

  Inputs(
      const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& fq, const Tensor& fk, const Tensor& g, const OptionalTensor& s,
      const OptionalTensor& z, const Options& o) {
    const char* name = "windowed_linear_attention";
    for (const auto& [tensor, argument] : {std::pair<const Tensor&, const char*>{q, "query"}, {k, "key"}, {v, "value"},
                                           {fq, "query_features"}, {fk, "key_features"}}) {
      TORCH_CHECK(tensor.dim() == 4, name, ": ", argument, " must be [batch, heads, length, width], not ", tensor.sizes());
      TORCH_CHECK(
          tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat, name, ": ", argument, " must be float32 on the CPU, not ",
          tensor.scalar_type(), " on ", tensor.device());
      TORCH_CHECK(
          tensor.size(0) == q.size(0) && tensor.size(1) == q.size(1), name, ": ", argument, " has shape ", tensor.sizes(),
          ", expected the batch and heads of query's ", q.sizes());
      TORCH_CHECK(tensor.size(3) > 0, name, ": ", argument, " needs at least one channel");
    }
    TORCH_CHECK(k.size(3) == q.size(3), name, ": key has shape ", k.sizes(), ", query ", q.sizes());
    TORCH_CHECK(k.size(2) >= q.size(2), name, ": there are ", k.size(2), " keys for ", q.size(2), " queries, which are the last of them");
    TORCH_CHECK(v.size(2) == k.size(2) && fk.size(2) == k.size(2), name, ": value and key_features must be as long as key");
    TORCH_CHECK(fq.size(2) == q.size(2) && fk.size(3) == fq.size(3), name, ": query_features has shape ", fq.sizes(), ", key_features ", fk.sizes());
    TORCH_CHECK(
        g.dim() == 1 && g.size(0) == q.size(1) && g.scalar_type() == at::kFloat && g.device().is_cpu(), name,
        ": window_factor must be float32 [heads], not ", g.scalar_type(), " ", g.sizes());
    TORCH_CHECK(o.window > 0, name, ": window must be positive, not ", o.window);
    TORCH_CHECK(o.position >= 0, name, ": position must not be negative, it is ", o.position);
    query = ready(q), key = ready(k), value = ready(v), queryFeatures = ready(fq), keyFeatures = ready(fk), gate = g.contiguous();
    const bool hasState = s && s->defined(), hasNormalizer = z && z->defined();
    TORCH_CHECK(hasState == hasNormalizer, name, ": state and normalizer go together");
    if (!hasState) return;
    TORCH_CHECK(
        s->sizes() == at::IntArrayRef({q.size(0), q.size(1), fq.size(3), v.size(3)}) &&
            z->sizes() == at::IntArrayRef({q.size(0), q.size(1), fq.size(3)}) && s->scalar_type() == at::kFloat &&
            z->scalar_type() == at::kFloat,
        name, ": state has shape ", s->sizes(), " and normalizer ", z->sizes(), ", expected float32 [batch, heads, features, value width] and "
        "[batch, heads, features]");
    state = s->contiguous(), normalizer = z->contiguous();
  }

  Problem problem(const Options& o) const {
    Problem p;
    p.batch = query.size(0), p.heads = query.size(1), p.queries = query.size(2), p.keys = key.size(2);
    p.d = query.size(3), p.dv = value.size(3), p.features = queryFeatures.size(3);
    p.query = Heads(query), p.key = Heads(key), p.value = Heads(value);
    p.queryFeatures = Heads(queryFeatures), p.keyFeatures = Heads(keyFeatures);
    p.gate = gate.data_ptr<float>();
    p.windows = {std::min(o.window, key.size(2) + o.position + 1), o.blocks, o.position};
    p.scale = static_cast<float>(o.scale);
    if (state.defined()) p.state = state.data_ptr<float>(), p.normalizer = normalizer.data_ptr<float>();
    return p;
  }
};

template <typename Body>
void forEachHead(const Problem& p, bool backward, const Body& body) {
  scan::Workers<Worker, const Problem&, bool> workers(p, backward);
  parallelTasks(p.count(), [&](int64_t head, int64_t worker) {
    scan::FlushDenormals flush;
    body(head, workers[worker]);
  });
}

/// Output, denominators [BH, L] and, where wanted, the sums that every block sees, [BH, blocks, F (dv + 1)].
std::tuple<Tensor, Tensor, Tensor> hybridForward(const Inputs& in, const Options& o, bool save) {
  const Problem p = in.problem(o);
  Tensor out = scan::emptyHeads(p.batch, p.heads, p.queries, p.dv, in.query.options());
  Tensor denominators = at::empty({p.count(), p.queries}, at::kFloat);
  const int64_t size = p.features * (p.dv + 1);
  Tensor saved = at::empty({save ? p.count() : 0, p.blocks(), size}, at::kFloat);
  if (out.numel() == 0) return {out, denominators, saved};
  const Heads rows(out);
  float *bottom = denominators.data_ptr<float>(), *states = saved.data_ptr<float>();
  forEachHead(p, false, [&](int64_t head, Worker& worker) {
    worker.startState(head);
    worker.add(head, 0, p.windows.first(p.offset()));
    for (int64_t t = 0; t < p.queries; t += kQueries) {
      if (save) {
        float* to = states + (head * p.blocks() + t / kQueries) * size;
        std::memcpy(to, worker.state, static_cast<size_t>(p.features * p.dv) * sizeof(float));
        std::memcpy(to + p.features * p.dv, worker.normalizer, static_cast<size_t>(p.features) * sizeof(float));
      }
      worker.forward(head, t, rows, bottom + head * p.queries);
    }
  });
  return {out, denominators, saved};
}

Tensor windowedLinearAttention(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& queryFeatures, const Tensor& keyFeatures,
    const Tensor& windowFactor, int64_t window, bool blocks, std::optional<double> scale, const OptionalTensor& state,
    const OptionalTensor& normalizer, int64_t position) {
  const Options o{window, blocks, scale.value_or(1 / std::sqrt(static_cast<double>(std::max<int64_t>(1, query.size(-1))))), position};
  return std::get<0>(hybridForward(Inputs(query, key, value, queryFeatures, keyFeatures, windowFactor, state, normalizer, o), o, false));
}

class HybridFunction : public torch::autograd::Function<HybridFunction> {
 public:
  static Tensor forward(
      torch::autograd::AutogradContext* context, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& queryFeatures,
      const Tensor& keyFeatures, const Tensor& windowFactor, int64_t window, bool blocks, double scale, const OptionalTensor& state,
      const OptionalTensor& normalizer, int64_t position) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Options o{window, blocks, scale, position};
    auto [out, denominators, saved] =
        hybridForward(Inputs(query, key, value, queryFeatures, keyFeatures, windowFactor, state, normalizer, o), o, true);
    context->save_for_backward({query, key, value, queryFeatures, keyFeatures, windowFactor, out, denominators, saved});
    context->saved_data["window"] = window;
    context->saved_data["blocks"] = blocks;
    context->saved_data["scale"] = scale;
    context->saved_data["position"] = position;
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    TORCH_CHECK(
        !at::GradMode::is_enabled(),
        "windowed_linear_attention: has no second derivative; call backward without create_graph, or use the reference form");
    const auto kept = context->get_saved_variables();
    const Options o{
        context->saved_data["window"].toInt(), context->saved_data["blocks"].toBool(), context->saved_data["scale"].toDouble(),
        context->saved_data["position"].toInt()};
    const Inputs in(kept[0], kept[1], kept[2], kept[3], kept[4], kept[5], std::nullopt, std::nullopt, o);
    const Problem p = in.problem(o);
    const Tensor &out = kept[6], &denominators = kept[7], &saved = kept[8];
    const auto options = in.query.options();
    const auto zeros = [&](int64_t length, int64_t width) {
      return at::zeros({p.batch, length, p.heads, width}, options).transpose(1, 2);
    };
    Tensor queryGradient = scan::emptyHeads(p.batch, p.heads, p.queries, p.d, options);
    Tensor queryFeatureGradient = at::empty({p.batch, p.heads, p.queries, p.features}, options);
    Tensor keyGradient = zeros(p.keys, p.d), valueGradient = zeros(p.keys, p.dv);
    Tensor keyFeatureGradient = at::zeros({p.batch, p.heads, p.keys, p.features}, options);
    Tensor gateGradient = at::zeros({p.heads}, at::kFloat);
    if (out.numel() > 0) {
      const Tensor outGradient = ready(gradients[0].to(at::kFloat));
      const Heads outRows(out), outGradientRows(outGradient);
      const Worker::Gradients g{
          Heads(queryGradient), Heads(keyGradient), Heads(valueGradient), Heads(queryFeatureGradient), Heads(keyFeatureGradient)};
      const int64_t size = p.features * (p.dv + 1);
      float *bottom = denominators.data_ptr<float>(), *states = saved.data_ptr<float>();
      std::vector<double> gates(p.count());
      forEachHead(p, true, [&](int64_t head, Worker& worker) {
        worker.gateGradient = 0;
        std::memset(worker.stateGradient, 0, static_cast<size_t>(p.features * p.dv) * sizeof(float));
        std::memset(worker.normalizerGradient, 0, static_cast<size_t>(p.features) * sizeof(float));
        for (int64_t t = (p.blocks() - 1) * kQueries; t >= 0; t -= kQueries) {
          const float* from = states + (head * p.blocks() + t / kQueries) * size;
          std::memcpy(worker.state, from, static_cast<size_t>(p.features * p.dv) * sizeof(float));
          std::memcpy(worker.normalizer, from + p.features * p.dv, static_cast<size_t>(p.features) * sizeof(float));
          worker.backward(head, t, outRows, outGradientRows, bottom + head * p.queries, g);
        }
        gates[head] = worker.gateGradient;
      });
      // g = e^{log g}.
      std::vector<double> sums(p.heads);
      for (int64_t i = 0; i < p.count(); ++i) sums[i % p.heads] += gates[i];
      for (int64_t h = 0; h < p.heads; ++h) gateGradient.data_ptr<float>()[h] = static_cast<float>(sums[h] / p.gate[h]);
    }
    return {queryGradient, keyGradient, valueGradient, queryFeatureGradient, keyFeatureGradient, gateGradient,
            Tensor(),      Tensor(),    Tensor(),      Tensor(),             Tensor(),           Tensor()};
  }
};

Tensor windowedLinearAttentionAutograd(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& queryFeatures, const Tensor& keyFeatures,
    const Tensor& windowFactor, int64_t window, bool blocks, std::optional<double> scale, const OptionalTensor& state,
    const OptionalTensor& normalizer, int64_t position) {
  bool wanted = false;
  for (const Tensor& x : {query, key, value, queryFeatures, keyFeatures, windowFactor}) wanted |= x.requires_grad();
  if (!at::GradMode::is_enabled() || !wanted) {
    at::AutoDispatchBelowADInplaceOrView below;
    return windowedLinearAttention(
        query, key, value, queryFeatures, keyFeatures, windowFactor, window, blocks, scale, state, normalizer, position);
  }
  for (const OptionalTensor& x : {state, normalizer})
    TORCH_CHECK(!x || !x->defined() || !x->requires_grad(), "windowed_linear_attention: the sums before the keys have no gradient here");
  return HybridFunction::apply(
      query, key, value, queryFeatures, keyFeatures, windowFactor, window, blocks,
      scale.value_or(1 / std::sqrt(static_cast<double>(std::max<int64_t>(1, query.size(-1))))), state, normalizer, position);
}

// --- Features -------------------------------------------------------------------------------------------------------

/// From y [f]: softmax(y), softmax(-y), each at least kLeast.
MARTLET_VECTOR static void hedgehogRow(const float* y, int64_t f, float* to) {
  MARTLET_FAST_SUMS
  Floats highs = Floats{} - kInfinity, lows = Floats{} + kInfinity, x;
  int64_t whole = 0;
  for (; whole + 16 <= f; whole += 16) {
    lanes::load(x, y + whole);
    highs = x > highs ? x : highs;
    lows = x < lows ? x : lows;
  }
  lows = -lows;
  float high = horizontalMaximum(highs), low = -horizontalMaximum(lows);
  for (int64_t i = whole; i < f; ++i) {
    high = y[i] > high ? y[i] : high;
    low = y[i] < low ? y[i] : low;
  }
  float above = 0, below = 0;
  MARTLET_SIMD
  for (int64_t i = 0; i < f; ++i) {
    const float e = fastExp(y[i] - high);
    to[i] = e;
    above += e;
  }
  MARTLET_SIMD
  for (int64_t i = 0; i < f; ++i) {
    const float e = fastExp(low - y[i]);
    to[f + i] = e;
    below += e;
  }
  above = 1 / above, below = 1 / below;
  MARTLET_SIMD
  for (int64_t i = 0; i < f; ++i) {
    const float p = to[i] * above;
    to[i] = p < kLeast ? kLeast : p;
  }
  MARTLET_SIMD
  for (int64_t i = 0; i < f; ++i) {
    const float p = to[f + i] * below;
    to[f + i] = p < kLeast ? kLeast : p;
  }
}

/// dy from φ and dφ.
MARTLET_VECTOR static void hedgehogGradientRow(const float* phi, const float* dphi, int64_t f, float* dy) {
  MARTLET_FAST_SUMS
  float above = 0, below = 0;
  MARTLET_SIMD
  for (int64_t i = 0; i < f; ++i) above += phi[i] * dphi[i];
  MARTLET_SIMD
  for (int64_t i = 0; i < f; ++i) below += phi[f + i] * dphi[f + i];
  MARTLET_SIMD
  for (int64_t i = 0; i < f; ++i) dy[i] = phi[i] * (dphi[i] - above) - phi[f + i] * (dphi[f + i] - below);
}

void checkFeatures(const Tensor& x, const Tensor& weight) {
  TORCH_CHECK(
      x.dim() == 4 && weight.dim() == 3 && weight.size(0) == x.size(1) && weight.size(1) == x.size(3) && weight.size(2) > 0,
      "hedgehog_features: x must be [batch, heads, length, width] and weight [heads, width, features], not ", x.sizes(), " and ",
      weight.sizes());
  TORCH_CHECK(
      x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat && x.device().is_cpu() && weight.device().is_cpu(),
      "hedgehog_features: x and weight must be float32 on the CPU");
}

Tensor hedgehogFeatures(const Tensor& input, const Tensor& matrix) {
  checkFeatures(input, matrix);
  const Tensor x = ready(input), weight = matrix.contiguous();
  const int64_t batch = x.size(0), heads = x.size(1), length = x.size(2), d = x.size(3), f = weight.size(2);
  Tensor out = at::empty({batch, heads, length, 2 * f}, x.options());
  if (out.numel() == 0) return out;
  const Heads from(x), to(out);
  const int64_t pieces = (length + 1023) / 1024;
  parallelTasks(batch * heads * pieces, [&](int64_t task, int64_t) {
    const int64_t head = task / pieces, begin = task % pieces * 1024, end = std::min(length, begin + 1024);
    const float* a = weight.data_ptr<float>() + head % heads * d * f;
    std::vector<float> y(kQueries * f);
    for (int64_t t = begin; t < end; t += kQueries) {
      const int64_t rows = std::min(kQueries, end - t);
      scan::product(rows, f, d, from.row(head, t), from.stride, a, f, y.data(), f, false);
      for (int64_t i = 0; i < rows; ++i) hedgehogRow(y.data() + i * f, f, to.row(head, t + i));
    }
  });
  return out;
}

class FeatureFunction : public torch::autograd::Function<FeatureFunction> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& weight) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor out = hedgehogFeatures(x, weight);
    context->save_for_backward({x, weight, out});
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "hedgehog_features: has no second derivative; use the reference form");
    const auto kept = context->get_saved_variables();
    const Tensor x = ready(kept[0]), weight = kept[1].contiguous(), phi = kept[2], dphi = ready(gradients[0]);
    const int64_t batch = x.size(0), heads = x.size(1), length = x.size(2), d = x.size(3), f = weight.size(2);
    const bool wantInput = context->needs_input_grad(0), wantWeight = context->needs_input_grad(1);
    Tensor inputGradient = wantInput ? scan::emptyHeads(batch, heads, length, d, x.options()) : Tensor();
    Tensor weightGradient = wantWeight ? at::zeros({batch, heads, d, f}, x.options()) : Tensor();
    if (phi.numel() == 0) return {inputGradient, wantWeight ? weightGradient.sum(0) : Tensor()};
    const Tensor turned = weight.transpose(1, 2).contiguous();  // [H, f, d]
    const Heads from(x), features(phi), featureGradients(dphi);
    const Heads to = wantInput ? Heads(inputGradient) : Heads();
    parallelTasks(batch * heads, [&](int64_t head, int64_t) {
      std::vector<float> dy(kQueries * f), columns(kQueries * d);
      for (int64_t t = 0; t < length; t += kQueries) {
        const int64_t rows = std::min(kQueries, length - t);
        for (int64_t i = 0; i < rows; ++i)
          hedgehogGradientRow(features.row(head, t + i), featureGradients.row(head, t + i), f, dy.data() + i * f);
        if (wantInput) {
          scan::product(
              rows, d, f, dy.data(), f, turned.data_ptr<float>() + head % heads * f * d, d, to.row(head, t), to.stride, false);
        }
        if (wantWeight) {
          transposeBlock(from.row(head, t), from.stride, rows, d, columns.data(), kQueries);
          scan::product(d, f, rows, columns.data(), kQueries, dy.data(), f, weightGradient.data_ptr<float>() + head * d * f, f, true);
        }
      }
    });
    return {inputGradient, wantWeight ? weightGradient.sum(0) : Tensor()};
  }
};

Tensor hedgehogFeaturesAutograd(const Tensor& x, const Tensor& weight) {
  if (!at::GradMode::is_enabled() || !(x.requires_grad() || weight.requires_grad())) {
    at::AutoDispatchBelowADInplaceOrView below;
    return hedgehogFeatures(x, weight);
  }
  checkFeatures(x, weight);
  return FeatureFunction::apply(x, weight);
}

// --- One token ------------------------------------------------------------------------------------------------------

/// y = x A (+ bias), A [d, f].
MARTLET_VECTOR static void rowTimesMatrix(const float* x, const float* a, const float* bias, int64_t d, int64_t f, float* y) {
  for (int64_t j = 0; j < f; ++j) y[j] = bias ? bias[j] : 0.0f;
  for (int64_t c = 0; c < d; ++c) {
    const float value = x[c];
    const float* row = a + c * f;
    MARTLET_SIMD
    for (int64_t j = 0; j < f; ++j) y[j] += value * row[j];
  }
}

MARTLET_VECTOR static void rectifiedRow(const float* y, int64_t f, float* to) {
  MARTLET_SIMD
  for (int64_t i = 0; i < f; ++i) to[i] = y[i] < kLeast ? kLeast : y[i];
}

/// S += kᵀ v.
MARTLET_VECTOR static void addOuter(const float* k, const float* v, int64_t features, int64_t dv, float* state) {
  for (int64_t r = 0; r < features; ++r) {
    const float weight = k[r];
    float* row = state + r * dv;
    MARTLET_SIMD
    for (int64_t c = 0; c < dv; ++c) row[c] += weight * v[c];
  }
}

/// out += q S.
MARTLET_VECTOR static void readState(const float* q, const float* state, int64_t features, int64_t dv, float* out) {
  for (int64_t r = 0; r < features; ++r) {
    const float weight = q[r];
    const float* row = state + r * dv;
    MARTLET_SIMD
    for (int64_t c = 0; c < dv; ++c) out[c] += weight * row[c];
  }
}

MARTLET_VECTOR static void exponentialsBelow(float* x, int64_t n, float high) {
  MARTLET_SIMD
  for (int64_t i = 0; i < n; ++i) x[i] = fastExp(x[i] - high);
}

Tensor windowedLinearAttentionStep(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& queryMap, const Tensor& keyMap,
    const OptionalTensor& queryBias, const OptionalTensor& keyBias, const Tensor& windowFactor, const OptionalTensor& linearFactor,
    const Tensor& keys, const Tensor& values, const Tensor& memory, const Tensor& normalizer, const Tensor& positions, int64_t window,
    bool blocks, double scale) {
  const char* name = "windowed_linear_attention_step";
  TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && value.dim() == 3, name, ": query, key and value must be [batch, heads, width]");
  const int64_t batch = query.size(0), heads = query.size(1), d = query.size(2), shared = key.size(1), dv = value.size(2);
  TORCH_CHECK(shared > 0 && heads % shared == 0, name, ": ", heads, " heads are not a multiple of ", shared, " key/value heads");
  const int64_t group = heads / shared, f = queryMap.size(-1), capacity = keys.size(2), features = normalizer.size(-1);
  // Rectified features have a bias and are f, Hedgehog's are 2 f.
  const bool rectified = queryBias && queryBias->defined();
  TORCH_CHECK(
      queryMap.sizes() == at::IntArrayRef({heads, d, f}) && keyMap.sizes() == queryMap.sizes(), name, ": the maps must be [heads, width, "
      "features], not ", queryMap.sizes(), " and ", keyMap.sizes());
  TORCH_CHECK(
      keys.sizes() == at::IntArrayRef({batch, shared, capacity, d}) && values.sizes() == at::IntArrayRef({batch, shared, capacity, dv}) &&
          memory.sizes() == at::IntArrayRef({batch, heads, features, dv}) && normalizer.sizes() == at::IntArrayRef({batch, heads, features}) &&
          features == (rectified ? f : 2 * f) && positions.sizes() == at::IntArrayRef({batch}) && positions.scalar_type() == at::kLong,
      name, ": the state's tensors don't fit together");
  TORCH_CHECK(window > 0 && capacity == (blocks ? 2 : 1) * window, name, ": the ring has ", capacity, " places for a window of ", window);
  for (const Tensor& x : {keys, values, memory, normalizer})
    TORCH_CHECK(x.scalar_type() == at::kFloat && x.is_contiguous() && x.device().is_cpu(), name, ": the state must be contiguous float32");
  const auto plain = [](const Tensor& x) { return x.to(at::kFloat).contiguous(); };
  const auto optional = [&](const OptionalTensor& x) { return x && x->defined() ? plain(*x) : Tensor(); };
  const Tensor q = plain(query), k = plain(key), v = plain(value), aq = plain(queryMap), ak = plain(keyMap), g = plain(windowFactor);
  const Tensor bq = optional(queryBias), bk = optional(keyBias), lf = optional(linearFactor), at = positions.contiguous();
  Tensor out = at::empty({batch, heads, dv}, at::kFloat);
  float *ks = keys.data_ptr<float>(), *vs = values.data_ptr<float>(), *ms = memory.data_ptr<float>(), *zs = normalizer.data_ptr<float>();
  parallelRanges(batch * shared, std::max<int64_t>(1, 65536 / (group * features * dv + capacity * (d + dv))), [&](int64_t begin, int64_t end, int64_t) {
    scan::FlushDenormals flush;
    std::vector<float> y(f), phi(features), scores(capacity);
    const auto map = [&](const float* x, const Tensor& matrix, const Tensor& bias, int64_t head) {
      rowTimesMatrix(x, matrix.data_ptr<float>() + head * d * f, bias.defined() ? bias.data_ptr<float>() + head * f : nullptr, d, f, y.data());
      if (rectified) rectifiedRow(y.data(), f, phi.data());
      else hedgehogRow(y.data(), f, phi.data());
    };
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / shared, position = at.data_ptr<int64_t>()[b], slot = position % capacity;
      float *ring = ks + task * capacity * d, *ringValues = vs + task * capacity * dv;
      // What leaves the window goes into the sums before its place is taken.
      const int64_t leaving = position < capacity ? 0 : blocks ? (position % window == 0 ? window : 0) : 1;
      for (int64_t i = slot; i < slot + leaving; ++i)
        for (int64_t h = 0; h < group; ++h) {
          const int64_t head = task % shared * group + h, row = b * heads + head;
          map(ring + i * d, ak, bk, head);
          addOuter(phi.data(), ringValues + i * dv, features, dv, ms + row * features * dv);
          addScaled(phi.data(), 1, features, zs + row * features, true);
        }
      std::memcpy(ring + slot * d, k.data_ptr<float>() + task * d, static_cast<size_t>(d) * sizeof(float));
      std::memcpy(ringValues + slot * dv, v.data_ptr<float>() + task * dv, static_cast<size_t>(dv) * sizeof(float));
      // Blocks: after a turn, the places behind the newest one hold the block that has left.
      const int64_t seen = blocks ? (position < window ? position + 1 : window + position % window + 1) : std::min(position + 1, capacity);
      for (int64_t h = 0; h < group; ++h) {
        const int64_t head = task % shared * group + h, row = b * heads + head;
        const float* qh = q.data_ptr<float>() + row * d;
        float* to = out.data_ptr<float>() + row * dv;
        float high = -kInfinity;
        const auto place = [&](int64_t i) { return blocks ? (position - i) % capacity : i; };
        for (int64_t i = 0; i < seen; ++i) {
          scores[i] = static_cast<float>(scale) * dot(qh, ring + place(i) * d, d);
          high = std::max(high, scores[i]);
        }
        exponentialsBelow(scores.data(), seen, high);
        std::memset(to, 0, static_cast<size_t>(dv) * sizeof(float));
        float sum = 0;
        const float factor = g.data_ptr<float>()[head];
        for (int64_t i = 0; i < seen; ++i) {
          const float weight = factor * scores[i];
          sum += weight;
          addScaled(ringValues + place(i) * dv, weight, dv, to, true);
        }
        if (position >= (blocks ? capacity : window)) {
          map(qh, aq, bq, head);
          if (lf.defined()) addScaled(phi.data(), lf.data_ptr<float>()[head], features, phi.data(), false);
          readState(phi.data(), ms + row * features * dv, features, dv, to);
          sum += dot(phi.data(), zs + row * features, features);
        }
        addScaled(to, 1 / sum, dv, to, false);
      }
    }
  });
  return out;
}

}  // namespace
}  // namespace martlet

TORCH_LIBRARY_FRAGMENT(martlet, m) {
  // query [B, H, L, d], key [B, H, S, d], value [B, H, S, dv], S >= L: the queries are those of the last L keys; features [B, H, L, F] and
  // [B, H, S, F], not negative; float32, any strides but a last one of 1 (otherwise copied). window_factor [H] is g > 0. blocks: the
  // window is the query's block of `window` positions and the one before, counted from `position`, that of the first key. state
  // [B, H, F, dv] and normalizer [B, H, F]: the sums over what stands before the first key (no gradient). scale d^-1/2 by default.
  // Returns o [B, H, L, dv], o.transpose(1, 2) contiguous. Heads are shared out among the threads.
  m.def(
      "windowed_linear_attention(Tensor query, Tensor key, Tensor value, Tensor query_features, Tensor key_features, Tensor window_factor, "
      "int window, bool blocks=False, float? scale=None, Tensor? state=None, Tensor? normalizer=None, int position=0) -> Tensor");
  // [softmax(xA); softmax(-xA)], each element at least 1e-12: x [B, H, L, d], weight A [H, d, f] -> [B, H, L, 2 f].
  m.def("hedgehog_features(Tensor x, Tensor weight) -> Tensor");
  // One token at `positions` [B] of its sequence, with its feature maps: query [B, H, d], key and value [B, Hk, d | dv] turned to their
  // positions, maps [H, d, f], biases [H, f] (rectified features relu(xA + b)) or none (Hedgehog's). keys and values [B, Hk, R, d | dv] are a
  // ring of R = window places (two windows with blocks), memory [B, H, F, dv] and normalizer [B, H, F] the sums over what left it; all
  // updated in place. No gradient.
  m.def(
      "windowed_linear_attention_step(Tensor query, Tensor key, Tensor value, Tensor query_map, Tensor key_map, Tensor? query_bias, "
      "Tensor? key_bias, Tensor window_factor, Tensor? linear_factor, Tensor(a!) keys, Tensor(b!) values, Tensor(c!) memory, "
      "Tensor(d!) normalizer, Tensor positions, int window, bool blocks, float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(martlet, CPU, m) {
  m.impl("windowed_linear_attention", martlet::windowedLinearAttention);
  m.impl("hedgehog_features", martlet::hedgehogFeatures);
  m.impl("windowed_linear_attention_step", martlet::windowedLinearAttentionStep);
}

TORCH_LIBRARY_IMPL(martlet, Autograd, m) {
  m.impl("windowed_linear_attention", martlet::windowedLinearAttentionAutograd);
  m.impl("hedgehog_features", martlet::hedgehogFeaturesAutograd);
}
