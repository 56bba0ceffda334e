// martlet::prefix_attention: softmax attention of one fixed query over every prefix of a sequence (Feng et al. 2024, "Attention
// as an RNN"), o_t = Σ_{j<=t} e^{s_j} v_j / Σ_{j<=t} e^{s_j}, and martlet::prefix_attention_step, one token of it.
//
// With m_t the running maximum and c_t = c_{t-1} e^{m_{t-1}-m_t} + e^{s_t-m_t}, the output is a running weighted mean,
//     o_t = r_t o_{t-1} + p_t v_t,    p_t = e^{s_t-m_t} / c_t,    r_t = e^{m_{t-1}-m_t} c_{t-1} / c_t = 1 - p_t,
// and its gradients one scan from the end, with G_t the gradient of o_t and l_t that of the logarithm of the sum of weights:
//     G_t = do_t + r_{t+1} G_{t+1},    dv_t = p_t G_t,
//     h_t = p_t r_t (v_t - o_{t-1})·G_t,    ds_t = h_t + p_t l_t,    l_{t-1} = r_t l_t - h_t.
// All factors are in [0, 1] and come from sums of positive numbers: nothing overflows, and where one token has all the weight its
// small gradient is a product with a small r, not a difference of large terms. p and r (two floats a token and head) are all that is
// saved besides v and o. A scan by rounds (Hillis & Steele) would read and write the L x d numbers log2 L times.
//
// Measured with Benchmarks/family_kernels.py on one core (Zen 3 with AVX2, d = 64, L = 4096, CPU time): forward 17 ns a token and head,
// forward + backward 86, with the tensors in the shared cache.
// Limit: bytes. Forward reads v and writes o, 8 bytes an element; backward reads v, o, do and writes dv, 16. Two exponentials a token
// and head, sixteen at a time, are a twentieth of it. Where there are fewer heads than threads the sequence is cut in segments: their
// triples (m, c, mean) are combined by the associative ⊕ and a second pass starts each segment from its own.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <limits>
#include <optional>
#include <vector>

#include "Lanes.h"
#include "Parallel.h"
#include "Vector.h"

namespace martlet {
namespace {

using at::Tensor;
using lanes::Floats;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kTile = 256;          // tokens whose weights are computed together
constexpr int64_t kAhead = 16;          // rows asked for before they are needed
constexpr int64_t kLeastSegment = 1024;  // tokens worth a second pass
constexpr int64_t kSmall = 1 << 15;     // elements below which waking a thread costs more than the work
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

/// Rows of one head: `step` floats from one token to the next.
struct Rows {
  float* data;
  int64_t step;
  float* row(int64_t token) const { return data + token * step; }
};

/// [B, H, L, d] with any strides but a last one of 1.
struct Heads {
  float* data = nullptr;
  int64_t heads = 1, batchStep = 0, headStep = 0, tokenStep = 0;
  Heads() = default;
  explicit Heads(const Tensor& x)
      : data(const_cast<float*>(x.const_data_ptr<float>())), heads(x.size(1)), batchStep(x.stride(0)), headStep(x.stride(1)), tokenStep(x.stride(2)) {}
  Rows operator[](int64_t head) const { return {data + head / heads * batchStep + head % heads * headStep, tokenStep}; }
};

// --- Leaves ---------------------------------------------------------------------------------------------------------

/// The weights p and r of `count` tokens, continuing from the maximum m and the sum c. A score of -inf has weight 0.
MARTLET_VECTOR static void weigh(const float* scores, int64_t count, float& maximum, double& sum, float* p, float* r) {
  float m = maximum;
  for (int64_t t = 0; t < count; ++t) {
    const float s = scores[t], next = s > m ? s : m;
    const bool absent = s == -kInfinity;
    r[t] = absent ? 0.0f : m - next;
    p[t] = absent ? -kInfinity : s - next;
    m = next;
  }
  MARTLET_SIMD
  for (int64_t t = 0; t < count; ++t) {
    r[t] = fastExp(r[t]);
    p[t] = fastExp(p[t]);
  }
  double c = sum;
  for (int64_t t = 0; t < count; ++t) {
    const double kept = c * r[t], next = kept + p[t], inverse = next > 0 ? 1 / next : 0;
    r[t] = static_cast<float>(kept * inverse);
    p[t] = static_cast<float>(p[t] * inverse);
    c = next;
  }
  maximum = m;
  sum = c;
}

template <bool Some>
MARTLET_INLINE void loadColumns(Floats& x, const float* from, int64_t some) {
  if constexpr (Some) {
    lanes::loadSome(x, from, some);
  } else {
    lanes::load(x, from);
  }
}

template <bool Some>
MARTLET_INLINE void storeColumns(float* to, const Floats& x, int64_t some) {
  if constexpr (Some) {
    std::memcpy(to, &x, static_cast<size_t>(some) * sizeof(float));
  } else {
    lanes::store(to, x);
  }
}

MARTLET_INLINE void prefetchColumns(const float* row, int64_t ahead, int64_t vectors) {
  const uintptr_t from = reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(ahead) * sizeof(float);
  for (int64_t i = 0; i < vectors; ++i) __builtin_prefetch(reinterpret_cast<const void*>(from + 64 * static_cast<uintptr_t>(i)));
}

/// mean <- r_t mean + p_t v_t over `count` tokens for V vectors of columns (the last `some` columns, when Some), written to `out`.
template <int V, bool Some>
MARTLET_INLINE void meanColumns(const float* v, int64_t valueStep, int64_t count, const float* p, const float* r, float* mean, float* out,
                                int64_t outStep, int64_t some) {
  Floats state[V];
#pragma clang loop unroll(full)
  for (int i = 0; i < V; ++i) lanes::load(state[i], mean + 16 * i);
  for (int64_t t = 0; t < count; ++t, v += valueStep) {
    prefetchColumns(v, kAhead * valueStep, V);
    const float weight = p[t], keep = r[t];
#pragma clang loop unroll(full)
    for (int i = 0; i < V; ++i) {
      Floats x;
      loadColumns<Some>(x, v + 16 * i, some);
      state[i] = state[i] * keep + x * weight;
    }
    if (out) {
#pragma clang loop unroll(full)
      for (int i = 0; i < V; ++i) storeColumns<Some>(out + 16 * i, state[i], some);
      out += outStep;
    }
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < V; ++i) lanes::store(mean + 16 * i, state[i]);
}

MARTLET_VECTOR static void meanRows(const float* v, int64_t valueStep, int64_t count, int64_t width, const float* p, const float* r, float* mean,
                                    float* out, int64_t outStep) {
#pragma clang fp contract(fast)
  int64_t c = 0;
  const auto at = [&](int64_t column) { return out ? out + column : nullptr; };
  for (; c + 64 <= width; c += 64) meanColumns<4, false>(v + c, valueStep, count, p, r, mean + c, at(c), outStep, 0);
  for (; c + 16 <= width; c += 16) meanColumns<1, false>(v + c, valueStep, count, p, r, mean + c, at(c), outStep, 0);
  if (c < width) meanColumns<1, true>(v + c, valueStep, count, p, r, mean + c, at(c), outStep, width - c);
}

/// One tile of the backward scan for V vectors of columns: from its last token to its first, carry = r_{t+1} G_{t+1} and
/// `level` = l_t, which is the sum of its lanes; ds, spread over lanes, is added to `parts` [count, 16]. `before` is the output that
/// precedes the tile.
template <int V, bool Some>
MARTLET_INLINE void reverseColumns(const float* v, int64_t valueStep, const float* o, int64_t outStep, const float* before,
                                   const float* gradient, int64_t gradientStep, int64_t count, const float* p, const float* r, float* carry,
                                   float* level, float* parts, float* dv, int64_t valueGradientStep, int64_t some) {
  Floats state[V], l;
#pragma clang loop unroll(full)
  for (int i = 0; i < V; ++i) lanes::load(state[i], carry + 16 * i);
  lanes::load(l, level);
  for (int64_t t = count - 1; t >= 0; --t) {
    const float *vt = v + t * valueStep, *ot = t > 0 ? o + (t - 1) * outStep : before, *gt = gradient + t * gradientStep;
    prefetchColumns(vt, -kAhead * valueStep, V);
    prefetchColumns(ot, -kAhead * outStep, V);
    prefetchColumns(gt, -kAhead * gradientStep, V);
    const float weight = p[t], keep = r[t];
    Floats h = {};
#pragma clang loop unroll(full)
    for (int i = 0; i < V; ++i) {
      Floats g, x, y;
      loadColumns<Some>(g, gt + 16 * i, some);
      loadColumns<Some>(x, vt + 16 * i, some);
      loadColumns<Some>(y, ot + 16 * i, some);
      g += state[i];
      h += (x - y) * g;
      state[i] = g * keep;
      if (dv) {
        x = g * weight;
        storeColumns<Some>(dv + t * valueGradientStep + 16 * i, x, some);
      }
    }
    h *= weight * keep;
    Floats part;
    lanes::load(part, parts + 16 * t);
    part += h + l * weight;
    lanes::store(parts + 16 * t, part);
    l = l * keep - h;
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < V; ++i) lanes::store(carry + 16 * i, state[i]);
  lanes::store(level, l);
}

/// A tile of at most kTile tokens; `level` has 16 floats for every group of columns. `ds` and `dv` may be null.
MARTLET_VECTOR static void reverseRows(const float* v, int64_t valueStep, const float* o, int64_t outStep, const float* before,
                                       const float* gradient, int64_t gradientStep, int64_t count, int64_t width, const float* p,
                                       const float* r, float* carry, float* level, float* parts, float* dv, int64_t valueGradientStep,
                                       float* ds) {
#pragma clang fp contract(fast)
  std::memset(parts, 0, static_cast<size_t>(padded(count)) * 16 * sizeof(float));
  int64_t c = 0;
  const auto at = [&](int64_t column) { return dv ? dv + column : nullptr; };
  for (; c + 64 <= width; c += 64, level += 16)
    reverseColumns<4, false>(v + c, valueStep, o + c, outStep, before + c, gradient + c, gradientStep, count, p, r, carry + c, level, parts,
                             at(c), valueGradientStep, 0);
  for (; c + 16 <= width; c += 16, level += 16)
    reverseColumns<1, false>(v + c, valueStep, o + c, outStep, before + c, gradient + c, gradientStep, count, p, r, carry + c, level, parts,
                             at(c), valueGradientStep, 0);
  if (c < width)
    reverseColumns<1, true>(v + c, valueStep, o + c, outStep, before + c, gradient + c, gradientStep, count, p, r, carry + c, level, parts,
                            at(c), valueGradientStep, width - c);
  if (!ds) return;
  for (int64_t t = 0; t < count; t += 16) {
    Floats sums[16];
#pragma clang loop unroll(full)
    for (int i = 0; i < 16; ++i) lanes::load(sums[i], parts + 16 * (t + i));
    lanes::sumRows(sums);
    std::memcpy(ds + t, &sums[0], static_cast<size_t>(std::min<int64_t>(16, count - t)) * sizeof(float));
  }
}

/// to <- to * keep + from * weight.
MARTLET_VECTOR static void mix(float* to, float keep, const float* from, float weight, int64_t count) {
  MARTLET_SIMD
  for (int64_t i = 0; i < count; ++i) to[i] = to[i] * keep + from[i] * weight;
}

MARTLET_VECTOR static void scaled(const float* from, float factor, int64_t count, float* to) {
  MARTLET_SIMD
  for (int64_t i = 0; i < count; ++i) to[i] = from[i] * factor;
}

// --- Passes ---------------------------------------------------------------------------------------------------------

/// What precedes a place of a sequence: maximum, sum and weighted mean of the values.
struct Prefix {
  float maximum = -kInfinity;
  double sum = 0;
  std::vector<float> mean;
  explicit Prefix(int64_t width) : mean(padded(width), 0.0f) {}

  /// this ⊕ later.
  void append(const Prefix& later) {
    if (later.sum == 0) return;
    const float m = std::max(maximum, later.maximum);
    const double kept = sum == 0 ? 0 : sum * std::exp(static_cast<double>(maximum) - m);
    const double added = later.sum * std::exp(static_cast<double>(later.maximum) - m);
    mix(mean.data(), static_cast<float>(kept / (kept + added)), later.mean.data(), static_cast<float>(added / (kept + added)),
        static_cast<int64_t>(mean.size()));
    maximum = m;
    sum = kept + added;
  }
};

/// Consecutive parts of the sequences, for when there are fewer heads than threads.
struct Segments {
  int64_t count = 1, size = 0;
  Segments(int64_t heads, int64_t length) : size(length) {
    const int64_t wanted = heads > 0 ? (workerCount() + heads - 1) / heads : 1;
    count = std::clamp<int64_t>(length / kLeastSegment, 1, wanted);
    size = (length + count - 1) / count;
    if (size > 0) count = std::max<int64_t>(1, (length + size - 1) / size);
  }
  int64_t begin(int64_t segment) const { return segment * size; }
  int64_t end(int64_t segment, int64_t length) const { return std::min(length, (segment + 1) * size); }
};

template <typename Body>
void tasks(int64_t count, int64_t elements, const Body& body) {
  if (elements < kSmall) {
    for (int64_t task = 0; task < count; ++task) body(task);
  } else {
    parallelTasks(count, [&](int64_t task, int64_t) { body(task); });
  }
}

/// Tokens begin ..< end of one head. Outputs and weights are kept where a place for them is given.
void forwardPass(const float* scores, Rows v, int64_t begin, int64_t end, int64_t width, Prefix& prefix, Rows out, float* p, float* r) {
  float localP[kTile], localR[kTile];
  for (int64_t t = begin; t < end; t += kTile) {
    const int64_t count = std::min(kTile, end - t);
    float *tileP = p ? p + t : localP, *tileR = r ? r + t : localR;
    weigh(scores + t, count, prefix.maximum, prefix.sum, tileP, tileR);
    meanRows(v.row(t), v.step, count, width, tileP, tileR, prefix.mean.data(), out.data ? out.row(t) : nullptr, out.step);
  }
}

struct Results {
  Tensor output, maximum, sum, accumulated, p, r;
};

Tensor withUnitStride(const Tensor& x) { return x.size(3) <= 1 || x.stride(3) == 1 ? x : x.contiguous(); }

/// Empty [B, H, L, d] in the order of a layer's channels, [B, L, H, d].
Tensor emptyHeads(const Tensor& like) {
  return at::empty({like.size(0), like.size(2), like.size(1), like.size(3)}, like.options()).transpose(1, 2);
}

void check(const Tensor& scores, const Tensor& value, const OptionalTensor& maximum, const OptionalTensor& sum, const OptionalTensor& accumulated) {
  const char* name = "prefix_attention: ";
  TORCH_CHECK(value.dim() == 4, name, "value must be [batch, heads, length, width], not ", value.sizes());
  TORCH_CHECK(scores.dim() == 3 && scores.sizes() == value.sizes().slice(0, 3), name, "scores must be [batch, heads, length] = ",
              value.sizes().slice(0, 3), ", not ", scores.sizes());
  const bool given = maximum.has_value() && maximum->defined();
  TORCH_CHECK(given == (sum.has_value() && sum->defined()) && given == (accumulated.has_value() && accumulated->defined()), name,
              "maximum, normalizer and accumulated are given together or not at all");
  if (given) {
    const auto heads = value.sizes().slice(0, 2);
    TORCH_CHECK(maximum->sizes() == heads && sum->sizes() == heads, name, "maximum and normalizer must be [batch, heads] = ", heads, ", not ",
                maximum->sizes(), " and ", sum->sizes());
    TORCH_CHECK(accumulated->sizes() == at::IntArrayRef({heads[0], heads[1], value.size(3)}), name,
                "accumulated must be [batch, heads, width], not ", accumulated->sizes());
  }
  for (const Tensor& x : {scores, value, given ? *maximum : scores, given ? *sum : scores, given ? *accumulated : scores})
    TORCH_CHECK(x.scalar_type() == at::kFloat && x.device().is_cpu(), name, "tensors must be float32 on the CPU, not ", x.scalar_type(), " on ",
                x.device());
}

Results run(const Tensor& scores_, const Tensor& value_, const OptionalTensor& maximum, const OptionalTensor& sum,
            const OptionalTensor& accumulated, bool keepsWeights) {
  check(scores_, value_, maximum, sum, accumulated);
  const Tensor scores = scores_.contiguous(), value = withUnitStride(value_);
  const int64_t batch = value.size(0), heads = value.size(1), length = value.size(2), width = value.size(3), rows = batch * heads;
  const auto options = value.options();
  Results results{emptyHeads(value), at::empty({batch, heads}, options), at::empty({batch, heads}, options),
                  at::empty({batch, heads, width}, options), {}, {}};
  if (keepsWeights) {
    results.p = at::empty({batch, heads, length}, options);
    results.r = at::empty({batch, heads, length}, options);
  }
  const bool continues = maximum.has_value() && maximum->defined();
  Tensor m, c, a;
  if (continues) std::tie(m, c, a) = std::tuple(maximum->contiguous(), sum->contiguous(), accumulated->contiguous());
  const auto start = [&](int64_t head) {
    Prefix prefix(width);
    if (continues) {
      prefix.maximum = m.const_data_ptr<float>()[head];
      prefix.sum = c.const_data_ptr<float>()[head];
      if (prefix.sum > 0)
        scaled(a.const_data_ptr<float>() + head * width, static_cast<float>(1 / prefix.sum), width, prefix.mean.data());
    }
    return prefix;
  };
  const Heads values(value), outputs(results.output);
  const float* s = scores.const_data_ptr<float>();
  const auto weightsOf = [&](const Tensor& x, int64_t head) { return keepsWeights ? x.mutable_data_ptr<float>() + head * length : nullptr; };
  const Segments segments(rows, length);
  std::vector<Prefix> entering;
  if (segments.count > 1) {
    std::vector<Prefix> own(rows * segments.count, Prefix(width));
    tasks(rows * segments.count, rows * length * width, [&](int64_t task) {
      const int64_t head = task / segments.count, segment = task % segments.count;
      if (segment + 1 == segments.count) return;
      forwardPass(s + head * length, values[head], segments.begin(segment), segments.end(segment, length), width, own[task], {nullptr, 0},
                  nullptr, nullptr);
    });
    entering.reserve(own.size());
    for (int64_t head = 0; head < rows; ++head) {
      Prefix prefix = start(head);
      for (int64_t segment = 0; segment < segments.count; ++segment) {
        entering.push_back(prefix);
        prefix.append(own[head * segments.count + segment]);
      }
    }
  }
  tasks(rows * segments.count, rows * length * width, [&](int64_t task) {
    const int64_t head = task / segments.count, segment = task % segments.count;
    Prefix prefix = segments.count > 1 ? entering[task] : start(head);
    forwardPass(s + head * length, values[head], segments.begin(segment), segments.end(segment, length), width, prefix, outputs[head],
                weightsOf(results.p, head), weightsOf(results.r, head));
    if (segment + 1 < segments.count) return;
    results.maximum.mutable_data_ptr<float>()[head] = prefix.maximum;
    results.sum.mutable_data_ptr<float>()[head] = static_cast<float>(prefix.sum);
    scaled(prefix.mean.data(), static_cast<float>(prefix.sum), width, results.accumulated.mutable_data_ptr<float>() + head * width);
  });
  return results;
}

/// What a place of a sequence receives from behind it: r G of the next token, and l in lanes for every group of columns.
struct Suffix {
  std::vector<float> carry, level;
  explicit Suffix(int64_t width) : carry(padded(width), 0.0f), level((width / 64 + 5) * 16, 0.0f) {}
};

/// `start` [B, H, d]: the output before the first token, undefined for none.
std::tuple<Tensor, Tensor> runBackward(const Tensor& value_, const Tensor& output_, const Tensor& gradient_, const Tensor& p, const Tensor& r,
                                       const Tensor& start, bool wantsScores, bool wantsValue) {
  const Tensor value = withUnitStride(value_), output = withUnitStride(output_), gradient = withUnitStride(gradient_);
  const int64_t batch = value.size(0), heads = value.size(1), length = value.size(2), width = value.size(3), rows = batch * heads;
  Tensor scoreGradient, valueGradient;
  if (wantsScores) scoreGradient = at::empty({batch, heads, length}, value.options());
  if (wantsValue) valueGradient = emptyHeads(value);
  const Heads values(value), outputs(output), gradients(gradient), valueGradients = wantsValue ? Heads(valueGradient) : Heads();
  const float *ps = p.const_data_ptr<float>(), *rs = r.const_data_ptr<float>();
  const auto pass = [&](int64_t head, int64_t begin, int64_t end, Suffix& suffix, bool writes) {
    std::vector<float> parts(kTile * 16);
    const std::vector<float> none(start.defined() ? 0 : width, 0.0f);
    const float* first = start.defined() ? start.const_data_ptr<float>() + head * width : none.data();
    const Rows v = values[head], o = outputs[head], g = gradients[head], dv = wantsValue && writes ? valueGradients[head] : Rows{nullptr, 0};
    float* ds = wantsScores && writes ? scoreGradient.mutable_data_ptr<float>() + head * length : nullptr;
    for (int64_t t = begin + (end - begin - 1) / kTile * kTile; t >= begin; t -= kTile) {
      reverseRows(v.row(t), v.step, o.row(t), o.step, t > 0 ? o.row(t - 1) : first, g.row(t), g.step, std::min(kTile, end - t), width,
                  ps + head * length + t, rs + head * length + t, suffix.carry.data(), suffix.level.data(), parts.data(),
                  dv.data ? dv.row(t) : nullptr, dv.step, ds ? ds + t : nullptr);
    }
  };
  const Segments segments(rows, length);
  std::vector<Suffix> entering;
  if (segments.count > 1) {
    std::vector<Suffix> own(rows * segments.count, Suffix(width));
    std::vector<float> kept(rows * segments.count, 1.0f);
    tasks(rows * segments.count, rows * length * width, [&](int64_t task) {
      const int64_t head = task / segments.count, segment = task % segments.count;
      if (segment == 0) return;
      const int64_t begin = segments.begin(segment), end = segments.end(segment, length);
      pass(head, begin, end, own[task], false);
      double product = 1;
      for (int64_t t = begin; t < end; ++t) product *= rs[head * length + t];
      kept[task] = static_cast<float>(product);
    });
    entering.assign(rows * segments.count, Suffix(width));
    for (int64_t head = 0; head < rows; ++head) {
      for (int64_t segment = segments.count - 2; segment >= 0; --segment) {
        const int64_t behind = head * segments.count + segment + 1;
        Suffix suffix = own[behind];
        mix(suffix.carry.data(), 1, entering[behind].carry.data(), kept[behind], static_cast<int64_t>(suffix.carry.size()));
        mix(suffix.level.data(), 1, entering[behind].level.data(), kept[behind], static_cast<int64_t>(suffix.level.size()));
        // What enters changes G inside too: Σ_t p_t (v_t - o_{t-1})·(what enters) telescopes to a difference of outputs.
        const float *last = outputs[head].row(segments.end(segment + 1, length) - 1), *before = outputs[head].row(segments.begin(segment + 1) - 1);
        double moved = 0;
        for (int64_t c = 0; c < width; ++c) moved += static_cast<double>(entering[behind].carry[c]) * (last[c] - before[c]);
        suffix.level[0] -= static_cast<float>(kept[behind] * moved);
        entering[behind - 1] = std::move(suffix);
      }
    }
  }
  if (length > 0) {
    tasks(rows * segments.count, rows * length * width, [&](int64_t task) {
      const int64_t head = task / segments.count, segment = task % segments.count;
      Suffix suffix = segments.count > 1 ? entering[task] : Suffix(width);
      pass(head, segments.begin(segment), segments.end(segment, length), suffix, true);
    });
  }
  return {scoreGradient, valueGradient};
}

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Outputs prefixAttention(const Tensor& scores, const Tensor& value, const OptionalTensor& maximum, const OptionalTensor& sum,
                        const OptionalTensor& accumulated) {
  Results results = run(scores, value, maximum, sum, accumulated, false);
  return {results.output, results.maximum, results.sum, results.accumulated};
}

struct PrefixFunction : torch::autograd::Function<PrefixFunction> {
  static variable_list forward(AutogradContext* context, const Tensor& scores, const Tensor& value, const OptionalTensor& maximum,
                               const OptionalTensor& sum, const OptionalTensor& accumulated) {
    at::AutoDispatchBelowADInplaceOrView below;
    Results results = run(scores, value, maximum, sum, accumulated, true);
    Tensor start;
    if (accumulated && accumulated->defined()) start = (*accumulated / sum->unsqueeze(-1).clamp_min(1e-30)).contiguous();
    context->save_for_backward({value, results.output, results.p, results.r, start});
    context->mark_non_differentiable({results.maximum, results.sum, results.accumulated});
    return {results.output, results.maximum, results.sum, results.accumulated};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "prefix_attention: has no second derivative; call backward without create_graph, or use the reference form");
    const auto saved = context->get_saved_variables();
    if (!gradients[0].defined()) return {Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
    const auto [ds, dv] =
        runBackward(saved[0], saved[1], gradients[0], saved[2], saved[3], saved[4], context->needs_input_grad(0), context->needs_input_grad(1));
    return {ds, dv, Tensor(), Tensor(), Tensor()};
  }
};

Outputs prefixAttentionAutograd(const Tensor& scores, const Tensor& value, const OptionalTensor& maximum, const OptionalTensor& sum,
                                const OptionalTensor& accumulated) {
  const auto wants = [](const OptionalTensor& x) { return x && x->defined() && x->requires_grad(); };
  if (!at::GradMode::is_enabled() || !(scores.requires_grad() || value.requires_grad() || wants(maximum) || wants(sum) || wants(accumulated))) {
    at::AutoDispatchBelowADInplaceOrView below;
    return prefixAttention(scores, value, maximum, sum, accumulated);
  }
  TORCH_CHECK(!(wants(maximum) || wants(sum) || wants(accumulated)),
              "prefix_attention: the state it starts from has no gradient; use the reference form");
  auto results = PrefixFunction::apply(scores, value, maximum, sum, accumulated);
  return {results[0], results[1], results[2], results[3]};
}

// --- One token ------------------------------------------------------------------------------------------------------

/// a <- a kept + v added, out = a inverse.
MARTLET_VECTOR static void stepMean(float* a, const float* v, float kept, float added, float inverse, int64_t width, float* out) {
  MARTLET_SIMD
  for (int64_t i = 0; i < width; ++i) {
    a[i] = a[i] * kept + v[i] * added;
    out[i] = a[i] * inverse;
  }
}

Tensor prefixAttentionStep(const Tensor& scores, const Tensor& value, const Tensor& maximum, const Tensor& sum, const Tensor& accumulated) {
  const char* name = "prefix_attention_step: ";
  TORCH_CHECK(value.dim() == 3 && scores.sizes() == value.sizes().slice(0, 2), name, "scores must be [batch, heads] and value [batch, heads, width], not ",
              scores.sizes(), " and ", value.sizes());
  TORCH_CHECK(maximum.sizes() == scores.sizes() && sum.sizes() == scores.sizes() && accumulated.sizes() == value.sizes(), name,
              "maximum and normalizer must be [batch, heads], accumulated [batch, heads, width], not ", maximum.sizes(), ", ", sum.sizes(), " and ",
              accumulated.sizes());
  for (const Tensor& x : {scores, value, maximum, sum, accumulated})
    TORCH_CHECK(x.scalar_type() == at::kFloat && x.device().is_cpu(), name, "tensors must be float32 on the CPU, not ", x.scalar_type(), " on ",
                x.device());
  TORCH_CHECK(maximum.is_contiguous() && sum.is_contiguous() && accumulated.is_contiguous(), name, "the state must be contiguous");
  const Tensor s = scores.contiguous(), v = value.contiguous();
  Tensor out = at::empty(value.sizes(), value.options());
  const int64_t rows = scores.numel(), width = value.size(2);
  const float *ss = s.const_data_ptr<float>(), *vs = v.const_data_ptr<float>();
  float *m = maximum.mutable_data_ptr<float>(), *c = sum.mutable_data_ptr<float>(), *a = accumulated.mutable_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  for (int64_t i = 0; i < rows; ++i) {
    const float next = std::max(m[i], ss[i]);
    const float kept = c[i] > 0 ? std::exp(m[i] - next) : 0, added = ss[i] == -kInfinity ? 0 : std::exp(ss[i] - next);
    c[i] = c[i] * kept + added;
    m[i] = next;
    stepMean(a + i * width, vs + i * width, kept, added, c[i] > 0 ? 1 / c[i] : 0, width, to + i * width);
  }
  return out;
}

}  // namespace
}  // namespace martlet

TORCH_LIBRARY_FRAGMENT(martlet, m) {
  // scores [B, H, L], -inf where there is no token; value [B, H, L, d], any strides but a last one of 1 (otherwise copied);
  // maximum and normalizer [B, H] and accumulated [B, H, d] of what precedes, or none of them. Returns o [B, H, L, d] with
  // o.transpose(1, 2) contiguous (0 before the first token) and the three sums after the last. Float32 on the CPU; o has gradients for
  // scores and value. One thread count gives one result, bit for bit.
  m.def(
      "prefix_attention(Tensor scores, Tensor value, Tensor? maximum=None, Tensor? normalizer=None, Tensor? accumulated=None) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  // One token: scores [B, H], value [B, H, d]; the sums are updated in place. No gradient.
  m.def(
      "prefix_attention_step(Tensor scores, Tensor value, Tensor(a!) maximum, Tensor(b!) normalizer, Tensor(c!) accumulated) -> Tensor");
}

TORCH_LIBRARY_IMPL(martlet, CPU, m) {
  m.impl("prefix_attention", martlet::prefixAttention);
  m.impl("prefix_attention_step", martlet::prefixAttentionStep);
}

TORCH_LIBRARY_IMPL(martlet, Autograd, m) { m.impl("prefix_attention", martlet::prefixAttentionAutograd); }
