// The selective scan (Gu & Dao 2023, arXiv 2312.00752, algorithm 2): per channel a diagonal state space of N states whose step,
// input and output depend on the token,
//     h_t = e^{D_t A} h_{t-1} + D_t x_t B_t,    y_t = (C_t . h_t + skip x_t) SiLU(z_t),    D_t = softplus(delta_t + bias).
//
// Sixteen channels are the lanes of a vector, their N states N vectors in the first-level cache, and time is walked through once:
// what B_t and C_t give is a broadcast, no sum goes across lanes, and softplus, skip and gate cost nothing beside the N exponentials
// of a token and channel (some 17 vector operations a state, 13 of them the exponential). Backward keeps the state before every 32nd
// token, walks each stretch again storing decays and states in 64 KB of scratch, and runs it in reverse: another 15 operations a
// state. Gradients of B and C are sums over channels: kept per lane for 64 channels, folded once, and added up over blocks in a
// fixed order, so that the result doesn't depend on which thread took which block.
//
// Measured with Benchmarks/family_kernels.py on one core (Zen 3 with AVX2, CPU time; D = 512, N = 16, L = 4096): forward 11 ns a token and
// channel, 23 cycles a state of sixteen channels where their 34 AVX2 operations need 17; forward + backward 36 ns. With the 2.6
// MFLOP of a layer's projections forward and backward at that core's 94 GFLOP/s, the scan is a third of the layer.

#include "ChunkScan.h"
#include "Lanes.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#pragma clang diagnostic ignored "-Wpsabi"

namespace martlet {
namespace {

using at::Tensor;
using lanes::Floats;
using OptionalTensor = std::optional<Tensor>;

/// Lanes of a vector, and tokens between two saved states.
constexpr int64_t kLanes = lanes::width;
constexpr int64_t kSpacing = 32;
/// Channels of a task.
constexpr int64_t kChannels = 64;
constexpr float kLog2E = 1.44269504088896341f;

// --- Leaves: rows of sixteen channels -------------------------------------------------------------------------------

/// log(1 + e) for 0 <= e <= 1 by the series of 2 artanh(e / (2 + e)), whose argument is at most 1/3: relative error 1.5e-7.
MARTLET_INLINE void log1pInPlace(Floats& e) {
#pragma clang fp contract(fast)
  const Floats s = e / (e + 2.0f), q = s * s;
  Floats p = q * (1.0f / 13) + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  e = 2.0f * s + 2.0f * s * (q * p);
}

/// delta <- softplus(delta + bias) and slope <- its derivative; or the sum itself and 1.
MARTLET_VECTOR static void steps(int64_t rows, const float* bias, bool softplus, float* delta, float* slope) {
  Floats add;
  lanes::load(add, bias);
  for (int64_t t = 0; t < rows; ++t) {
    Floats v, one = Floats{} + 1.0f;
    lanes::load(v, delta + t * kLanes);
    v += add;
    if (softplus) {
      const Floats zero = {};
      Floats e = (v < 0.0f ? v : -v) * kLog2E;
      lanes::exp2InPlace(e);
      const Floats inverse = 1.0f / (1.0f + e);
      one = v < 0.0f ? e * inverse : inverse;
      log1pInPlace(e);
      v = (v > 0.0f ? v : zero) + e;
    }
    lanes::store(delta + t * kLanes, v);
    lanes::store(slope + t * kLanes, one);
  }
}

/// gate <- SiLU(z) and slope <- its derivative, in place of z.
MARTLET_VECTOR static void gates(int64_t rows, float* z, float* slope) {
  for (int64_t t = 0; t < rows; ++t) {
    Floats v;
    lanes::load(v, z + t * kLanes);
    Floats e = (v < 0.0f ? v : -v) * kLog2E;
    lanes::exp2InPlace(e);
    const Floats inverse = 1.0f / (1.0f + e);
    const Floats sigmoid = v < 0.0f ? e * inverse : inverse;
    lanes::store(z + t * kLanes, v * sigmoid);
    lanes::store(slope + t * kLanes, sigmoid * (1.0f + v * (1.0f - sigmoid)));
  }
}

/// `rows` tokens of the recurrence; a2 = A log2(e) and h are [N][16]. y_t = C_t . h_t. B and C: one row a token.
MARTLET_VECTOR static void forwardRows(int64_t rows, int64_t states, const float* x, const float* delta, const float* a2, const float* b,
                                       int64_t bStep, const float* c, int64_t cStep, float* h, float* y) {
#pragma clang fp contract(fast)
  for (int64_t t = 0; t < rows; ++t, b += bStep, c += cStep) {
    Floats step, input, sum = {};
    lanes::load(step, delta + t * kLanes);
    lanes::load(input, x + t * kLanes);
    input *= step;
    for (int64_t n = 0; n < states; ++n) {
      Floats e, state;
      lanes::load(e, a2 + n * kLanes);
      lanes::load(state, h + n * kLanes);
      e *= step;
      lanes::exp2InPlace(e);
      state = e * state + input * b[n];
      sum += state * c[n];
      lanes::store(h + n * kLanes, state);
    }
    lanes::store(y + t * kLanes, sum);
  }
}

/// The same, keeping the decays and the state before each token, [rows][N][16]; history has one more entry: the last state.
MARTLET_VECTOR static void replayRows(int64_t rows, int64_t states, const float* x, const float* delta, const float* a2, const float* b,
                                      int64_t bStep, const float* c, int64_t cStep, float* decays, float* history, float* y) {
#pragma clang fp contract(fast)
  const int64_t row = states * kLanes;
  for (int64_t t = 0; t < rows; ++t, b += bStep, c += cStep) {
    Floats step, input, sum = {};
    lanes::load(step, delta + t * kLanes);
    lanes::load(input, x + t * kLanes);
    input *= step;
    for (int64_t n = 0; n < states; ++n) {
      Floats e, state;
      lanes::load(e, a2 + n * kLanes);
      lanes::load(state, history + t * row + n * kLanes);
      e *= step;
      lanes::exp2InPlace(e);
      lanes::store(decays + t * row + n * kLanes, e);
      state = e * state + input * b[n];
      sum += state * c[n];
      lanes::store(history + (t + 1) * row + n * kLanes, state);
    }
    lanes::store(y + t * kLanes, sum);
  }
}

/// In reverse over `rows` tokens: dh [N][16] carries the gradient of the state; dy is that of C_t . h_t. Adds to dA [N][16] and to the
/// lane sums db, dc [rows][N][16]; writes the gradients of x (without the skip) and of the step.
MARTLET_VECTOR static void reverseRows(int64_t rows, int64_t states, const float* x, const float* delta, const float* a, const float* b,
                                       int64_t bStep, const float* c, int64_t cStep, const float* decays, const float* history,
                                       const float* dy, float* dh, float* da, float* db, float* dc, float* dx, float* ddelta) {
#pragma clang fp contract(fast)
  const int64_t row = states * kLanes;
  for (int64_t t = rows - 1; t >= 0; --t) {
    const float *bt = b + t * bStep, *ct = c + t * cStep;
    Floats step, value, g, written = {}, ofStep = {};
    lanes::load(step, delta + t * kLanes);
    lanes::load(value, x + t * kLanes);
    lanes::load(g, dy + t * kLanes);
    const Floats input = step * value;
    for (int64_t n = 0; n < states; ++n) {
      const int64_t at = t * row + n * kLanes;
      Floats state, before, decay, carry, coefficient, sum;
      lanes::load(carry, dh + n * kLanes);
      carry += g * ct[n];
      lanes::load(state, history + at + row);
      lanes::load(sum, dc + at);
      sum += g * state;
      lanes::store(dc + at, sum);
      lanes::load(sum, db + at);
      sum += carry * input;
      lanes::store(db + at, sum);
      written += carry * bt[n];
      lanes::load(decay, decays + at);
      carry *= decay;
      lanes::store(dh + n * kLanes, carry);
      lanes::load(before, history + at);
      carry *= before;
      lanes::load(coefficient, a + n * kLanes);
      ofStep += carry * coefficient;
      lanes::load(sum, da + n * kLanes);
      sum += carry * step;
      lanes::store(da + n * kLanes, sum);
    }
    lanes::store(dx + t * kLanes, written * step);
    lanes::store(ddelta + t * kLanes, ofStep + written * value);
  }
}

/// sums[t, n] = the sum over lanes of parts[t][n][16].
MARTLET_VECTOR static void foldLanes(int64_t rows, int64_t states, const float* parts, float* sums) {
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t first = 0; first < states; first += kLanes) {
      const int64_t count = states - first < kLanes ? states - first : kLanes;
      Floats v[16];
      for (int64_t i = 0; i < kLanes; ++i) {
        v[i] = Floats{};
        if (i < count) lanes::load(v[i], parts + (t * states + first + i) * kLanes);
      }
      lanes::sumRows(v);
      std::memcpy(sums + t * states + first, &v[0], sizeof(float) * static_cast<size_t>(count));
    }
  }
}

/// y <- (y + skip x) gate.
MARTLET_VECTOR static void finishRows(int64_t rows, const float* x, const float* skip, const float* gate, float* y) {
#pragma clang fp contract(fast)
  Floats factor;
  lanes::load(factor, skip);
  for (int64_t t = 0; t < rows; ++t) {
    Floats sum, value;
    lanes::load(sum, y + t * kLanes);
    lanes::load(value, x + t * kLanes);
    sum += factor * value;
    if (gate) {
      lanes::load(value, gate + t * kLanes);
      sum *= value;
    }
    lanes::store(y + t * kLanes, sum);
  }
}

/// From y (before skip and gate) and dout: dy in place of dout, dz in place of slope; adds to dskip.
MARTLET_VECTOR static void unfinishRows(int64_t rows, const float* x, const float* skip, const float* gate, const float* y, float* dout,
                                        float* slope, float* dskip) {
#pragma clang fp contract(fast)
  Floats factor, total;
  lanes::load(factor, skip);
  lanes::load(total, dskip);
  for (int64_t t = 0; t < rows; ++t) {
    Floats g, value, sum;
    lanes::load(g, dout + t * kLanes);
    lanes::load(value, x + t * kLanes);
    if (gate) {
      Floats bend, open;
      lanes::load(bend, slope + t * kLanes);
      lanes::load(open, gate + t * kLanes);
      lanes::load(sum, y + t * kLanes);
      sum += factor * value;
      lanes::store(slope + t * kLanes, bend * g * sum);
      g *= open;
      lanes::store(dout + t * kLanes, g);
    }
    total += g * value;
  }
  lanes::store(dskip, total);
}

/// dx += skip dy, ddelta *= slope; adds ddelta to the bias' gradient.
MARTLET_VECTOR static void finishGradients(int64_t rows, const float* skip, const float* dy, const float* slope, float* dx, float* ddelta,
                                           float* dbias) {
#pragma clang fp contract(fast)
  Floats factor, total;
  lanes::load(factor, skip);
  lanes::load(total, dbias);
  for (int64_t t = 0; t < rows; ++t) {
    Floats g, sum;
    lanes::load(g, dy + t * kLanes);
    lanes::load(sum, dx + t * kLanes);
    sum += factor * g;
    lanes::store(dx + t * kLanes, sum);
    lanes::load(sum, ddelta + t * kLanes);
    lanes::load(g, slope + t * kLanes);
    sum *= g;
    lanes::store(ddelta + t * kLanes, sum);
    total += sum;
  }
  lanes::store(dbias, total);
}

// --- Tensors --------------------------------------------------------------------------------------------------------

/// [B, L, d] with any strides but a last one of 1.
struct Rows {
  float* data = nullptr;
  int64_t batchStep = 0, tokenStep = 0;

  Rows() = default;
  explicit Rows(const Tensor& x)
      : data(const_cast<float*>(x.const_data_ptr<float>())), batchStep(x.stride(0)), tokenStep(x.stride(1)) {}

  float* at(int64_t batch, int64_t token, int64_t channel) const { return data + batch * batchStep + token * tokenStep + channel; }

  /// `count` <= 16 channels of some rows, zeros in the other lanes; asks for the rows after them.
  void load(int64_t batch, int64_t token, int64_t rows, int64_t channel, int64_t count, float* to) const {
    const float* from = at(batch, token, channel);
    for (int64_t t = 0; t < rows; ++t, from += tokenStep, to += kLanes) {
      __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + sizeof(float) * static_cast<uintptr_t>(rows * tokenStep)));
      if (count == kLanes) {
        std::memcpy(to, from, sizeof(float) * kLanes);
      } else {
        std::memset(to, 0, sizeof(float) * kLanes);
        std::memcpy(to, from, sizeof(float) * static_cast<size_t>(count));
      }
    }
  }
  void store(int64_t batch, int64_t token, int64_t rows, int64_t channel, int64_t count, const float* from) const {
    float* to = at(batch, token, channel);
    for (int64_t t = 0; t < rows; ++t, to += tokenStep, from += kLanes) std::memcpy(to, from, sizeof(float) * static_cast<size_t>(count));
  }
};

Tensor defined(const OptionalTensor& x) { return x ? *x : Tensor(); }

Tensor ready(const Tensor& x) { return x.defined() && x.stride(-1) != 1 && x.size(-1) != 1 ? x.contiguous() : x; }

/// The operator's arguments, checked.
struct Problem {
  Tensor x, delta, a, b, c, skip, z, bias, start;
  int64_t batch, length, width, states;
  bool softplus;

  Problem(const Tensor& x_, const Tensor& delta_, const Tensor& a_, const Tensor& b_, const Tensor& c_, const Tensor& skip_,
          const Tensor& z_, const Tensor& bias_, const Tensor& start_, bool softplus_)
      : softplus(softplus_) {
    const char* name = "selective_scan";
    const auto check = [&](const Tensor& tensor, const char* argument, at::IntArrayRef shape) {
      TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.device().is_cpu(), name, ": ", argument,
                  " must be float32 on the CPU, not ", tensor.scalar_type(), " on ", tensor.device());
      TORCH_CHECK(tensor.sizes() == shape, name, ": ", argument, " has the shape ", tensor.sizes(), ", expected ", shape);
    };
    TORCH_CHECK(x_.dim() == 3, name, ": x must be [batch, length, channels], not ", x_.sizes());
    TORCH_CHECK(a_.dim() == 2, name, ": A must be [channels, states], not ", a_.sizes());
    batch = x_.size(0), length = x_.size(1), width = x_.size(2), states = a_.size(1);
    check(x_, "x", {batch, length, width});
    check(delta_, "delta", {batch, length, width});
    check(a_, "A", {width, states});
    check(b_, "B", {batch, length, states});
    check(c_, "C", {batch, length, states});
    if (skip_.defined()) check(skip_, "D", {width});
    if (z_.defined()) check(z_, "z", {batch, length, width});
    if (bias_.defined()) check(bias_, "delta_bias", {width});
    if (start_.defined()) check(start_, "initial_state", {batch, width, states});
    x = ready(x_), delta = ready(delta_), b = ready(b_), c = ready(c_), z = ready(z_);
    a = a_.contiguous();
    const auto whole = [](const Tensor& t) { return t.defined() ? t.contiguous() : t; };
    skip = whole(skip_), bias = whole(bias_), start = whole(start_);
  }

  int64_t blocks() const { return (width + kChannels - 1) / kChannels; }
  int64_t entries() const { return (length + kSpacing - 1) / kSpacing; }
};

/// Sixteen of a vector's elements, or `otherwise` where there is none.
void loadVector(const Tensor& v, int64_t channel, int64_t count, float* to) {
  std::memset(to, 0, sizeof(float) * kLanes);
  if (v.defined()) std::memcpy(to, v.const_data_ptr<float>() + channel, sizeof(float) * static_cast<size_t>(count));
}

/// states[n][lane] = from[lane, n] factor.
void loadStates(const float* from, int64_t states, int64_t count, float factor, float* to) {
  for (int64_t n = 0; n < states; ++n)
    for (int64_t i = 0; i < kLanes; ++i) to[n * kLanes + i] = from && i < count ? from[i * states + n] * factor : 0.0f;
}

void storeStates(const float* from, int64_t states, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t n = 0; n < states; ++n) to[i * states + n] = from[n * kLanes + i];
}

constexpr int64_t kTile = kSpacing * kLanes;

/// y, the last state, and the state before every 32nd token [B, entries, blocks of 16, N, 16] if backward will want them.
std::tuple<Tensor, Tensor, Tensor> forwardScan(const Problem& p, bool save) {
  const Tensor y = at::empty({p.batch, p.length, p.width}, at::kFloat), last = at::empty({p.batch, p.width, p.states}, at::kFloat);
  const int64_t groups = (p.width + kLanes - 1) / kLanes, stateSize = p.states * kLanes;
  const Tensor saved = at::empty({save ? p.batch : 0, p.entries(), groups, stateSize}, at::kFloat);
  const Rows xs(p.x), deltas(p.delta), bs(p.b), cs(p.c), zs = p.z.defined() ? Rows(p.z) : Rows(), ys(y);
  const float* starts = p.start.defined() ? p.start.const_data_ptr<float>() : nullptr;
  const float* as = p.a.const_data_ptr<float>();
  float *lasts = last.data_ptr<float>(), *kept = save ? saved.data_ptr<float>() : nullptr;
  std::vector<scan::Arena> arenas;
  for (int64_t i = 0; i < workerCount(); ++i) arenas.emplace_back(2 * stateSize + 5 * kTile + 2 * kLanes);
  parallelTasks(p.batch * groups, [&](int64_t task, int64_t worker) {
    scan::FlushDenormals flush;
    scan::Arena& arena = arenas[static_cast<size_t>(worker)].rewound();
    const int64_t batch = task / groups, group = task % groups, channel = group * kLanes, count = std::min(kLanes, p.width - channel);
    float *a2 = arena.take(stateSize), *h = arena.take(stateSize), *x = arena.take(kTile), *delta = arena.take(kTile);
    float *gate = arena.take(kTile), *slope = arena.take(kTile), *out = arena.take(kTile), *skip = arena.take(kLanes), *bias = arena.take(kLanes);
    loadStates(as + channel * p.states, p.states, count, kLog2E, a2);
    loadStates(starts ? starts + (batch * p.width + channel) * p.states : nullptr, p.states, count, 1, h);
    loadVector(p.skip, channel, count, skip);
    loadVector(p.bias, channel, count, bias);
    for (int64_t t = 0; t < p.length; t += kSpacing) {
      const int64_t rows = std::min(kSpacing, p.length - t);
      if (kept) std::memcpy(kept + ((batch * p.entries() + t / kSpacing) * groups + group) * stateSize, h, sizeof(float) * static_cast<size_t>(stateSize));
      xs.load(batch, t, rows, channel, count, x);
      deltas.load(batch, t, rows, channel, count, delta);
      steps(rows, bias, p.softplus, delta, slope);
      forwardRows(rows, p.states, x, delta, a2, bs.at(batch, t, 0), bs.tokenStep, cs.at(batch, t, 0), cs.tokenStep, h, out);
      if (p.z.defined()) {
        zs.load(batch, t, rows, channel, count, gate);
        gates(rows, gate, slope);
      }
      finishRows(rows, x, skip, p.z.defined() ? gate : nullptr, out);
      ys.store(batch, t, rows, channel, count, out);
    }
    storeStates(h, p.states, count, lasts + (batch * p.width + channel) * p.states);
  });
  return {y, last, saved};
}

struct Gradients {
  Tensor x, delta, a, b, c, skip, z, bias, start;
};

Gradients backwardScan(const Problem& p, const Tensor& saved, const Tensor& yGradient, const Tensor& lastGradient) {
  const int64_t groups = (p.width + kLanes - 1) / kLanes, stateSize = p.states * kLanes, blocks = p.blocks();
  const auto like = [&] { return at::empty({p.batch, p.length, p.width}, at::kFloat); };
  Gradients g;
  g.x = like(), g.delta = like();
  if (p.z.defined()) g.z = like();
  const Tensor dout = yGradient.defined() ? ready(yGradient) : at::zeros({p.batch, p.length, p.width}, at::kFloat);
  const Tensor dlast = lastGradient.defined() ? lastGradient.contiguous() : Tensor();
  // Sums over channels, a part for each block; sums over tokens, a part for each sequence.
  const Tensor db = at::empty({blocks, p.batch, p.length, p.states}, at::kFloat), dc = at::empty_like(db);
  const Tensor da = at::empty({p.batch, p.width, p.states}, at::kFloat), dskip = at::empty({p.batch, p.width}, at::kFloat);
  const Tensor dbias = at::empty_like(dskip), dstart = at::empty_like(da);
  const Rows xs(p.x), deltas(p.delta), bs(p.b), cs(p.c), zs = p.z.defined() ? Rows(p.z) : Rows(), douts(dout);
  const Rows dxs(g.x), ddeltas(g.delta), dzs = p.z.defined() ? Rows(g.z) : Rows();
  const float *as = p.a.const_data_ptr<float>(), *kept = saved.const_data_ptr<float>();
  std::vector<scan::Arena> arenas;
  const int64_t perGroup = 4 * stateSize + 3 * kLanes + kLanes;
  const int64_t floats = (kChannels / kLanes) * perGroup + (4 * kSpacing + 1) * stateSize + 9 * kTile;
  for (int64_t i = 0; i < workerCount(); ++i) arenas.emplace_back(floats);
  parallelTasks(p.batch * blocks, [&](int64_t task, int64_t worker) {
    scan::FlushDenormals flush;
    scan::Arena& arena = arenas[static_cast<size_t>(worker)].rewound();
    const int64_t batch = task / blocks, block = task % blocks;
    const int64_t firstGroup = block * (kChannels / kLanes), lastGroup = std::min(groups, firstGroup + kChannels / kLanes);
    float *decays = arena.take(kSpacing * stateSize), *history = arena.take((kSpacing + 1) * stateSize);
    float *bParts = arena.take(kSpacing * stateSize), *cParts = arena.take(kSpacing * stateSize);
    float *x = arena.take(kTile), *delta = arena.take(kTile), *slope = arena.take(kTile), *gate = arena.take(kTile), *bend = arena.take(kTile);
    float *y = arena.take(kTile), *dy = arena.take(kTile), *dx = arena.take(kTile), *ddelta = arena.take(kTile);
    struct Group {
      float *a, *a2, *dh, *da, *skip, *bias, *dskip, *dbias;
    } group[kChannels / kLanes];
    for (int64_t i = 0; i < lastGroup - firstGroup; ++i) {
      const int64_t channel = (firstGroup + i) * kLanes, count = std::min(kLanes, p.width - channel);
      const int64_t place = (batch * p.width + channel) * p.states;
      group[i] = {arena.take(stateSize), arena.take(stateSize), arena.take(stateSize), arena.take(stateSize),
                  arena.take(kLanes),    arena.take(kLanes),    arena.take(kLanes),    arena.take(kLanes)};
      loadStates(as + channel * p.states, p.states, count, 1, group[i].a);
      loadStates(as + channel * p.states, p.states, count, kLog2E, group[i].a2);
      loadStates(dlast.defined() ? dlast.const_data_ptr<float>() + place : nullptr, p.states, count, 1, group[i].dh);
      std::memset(group[i].da, 0, sizeof(float) * static_cast<size_t>(stateSize));
      loadVector(p.skip, channel, count, group[i].skip);
      loadVector(p.bias, channel, count, group[i].bias);
      loadVector(Tensor(), channel, count, group[i].dskip);
      loadVector(Tensor(), channel, count, group[i].dbias);
    }
    for (int64_t entry = p.entries() - 1; entry >= 0; --entry) {
      const int64_t t = entry * kSpacing, rows = std::min(kSpacing, p.length - t);
      const float *b = bs.at(batch, t, 0), *c = cs.at(batch, t, 0);
      std::memset(bParts, 0, sizeof(float) * static_cast<size_t>(rows * stateSize));
      std::memset(cParts, 0, sizeof(float) * static_cast<size_t>(rows * stateSize));
      for (int64_t i = 0; i < lastGroup - firstGroup; ++i) {
        const int64_t channel = (firstGroup + i) * kLanes, count = std::min(kLanes, p.width - channel);
        const Group& own = group[i];
        xs.load(batch, t, rows, channel, count, x);
        deltas.load(batch, t, rows, channel, count, delta);
        douts.load(batch, t, rows, channel, count, dy);
        steps(rows, own.bias, p.softplus, delta, slope);
        std::memcpy(history, kept + ((batch * p.entries() + entry) * groups + firstGroup + i) * stateSize, sizeof(float) * static_cast<size_t>(stateSize));
        replayRows(rows, p.states, x, delta, own.a2, b, bs.tokenStep, c, cs.tokenStep, decays, history, y);
        if (p.z.defined()) {
          zs.load(batch, t, rows, channel, count, gate);
          gates(rows, gate, bend);
        }
        unfinishRows(rows, x, own.skip, p.z.defined() ? gate : nullptr, y, dy, bend, own.dskip);
        if (p.z.defined()) dzs.store(batch, t, rows, channel, count, bend);
        reverseRows(rows, p.states, x, delta, own.a, b, bs.tokenStep, c, cs.tokenStep, decays, history, dy, own.dh, own.da, bParts, cParts, dx, ddelta);
        finishGradients(rows, own.skip, dy, slope, dx, ddelta, own.dbias);
        dxs.store(batch, t, rows, channel, count, dx);
        ddeltas.store(batch, t, rows, channel, count, ddelta);
      }
      const int64_t place = ((block * p.batch + batch) * p.length + t) * p.states;
      foldLanes(rows, p.states, bParts, db.data_ptr<float>() + place);
      foldLanes(rows, p.states, cParts, dc.data_ptr<float>() + place);
    }
    for (int64_t i = 0; i < lastGroup - firstGroup; ++i) {
      const int64_t channel = (firstGroup + i) * kLanes, count = std::min(kLanes, p.width - channel);
      const int64_t place = batch * p.width + channel;
      storeStates(group[i].da, p.states, count, da.data_ptr<float>() + place * p.states);
      storeStates(group[i].dh, p.states, count, dstart.data_ptr<float>() + place * p.states);
      std::memcpy(dskip.data_ptr<float>() + place, group[i].dskip, sizeof(float) * static_cast<size_t>(count));
      std::memcpy(dbias.data_ptr<float>() + place, group[i].dbias, sizeof(float) * static_cast<size_t>(count));
    }
  });
  const auto folded = [](const Tensor& parts) { return parts.size(0) == 1 ? parts.squeeze(0) : parts.sum(0); };
  g.b = folded(db), g.c = folded(dc), g.a = folded(da);
  if (p.skip.defined()) g.skip = folded(dskip);
  if (p.bias.defined()) g.bias = folded(dbias);
  if (p.start.defined()) g.start = dstart;
  return g;
}

std::tuple<Tensor, Tensor> selectiveScan(const Tensor& x, const Tensor& delta, const Tensor& a, const Tensor& b, const Tensor& c,
                                         const OptionalTensor& skip, const OptionalTensor& z, const OptionalTensor& bias,
                                         const OptionalTensor& start, bool softplus) {
  const Problem p(x, delta, a, b, c, defined(skip), defined(z), defined(bias), defined(start), softplus);
  auto [y, last, saved] = forwardScan(p, false);
  return {y, last};
}

class ScanFunction : public torch::autograd::Function<ScanFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& delta,
                                                const Tensor& a, const Tensor& b, const Tensor& c, const OptionalTensor& skip,
                                                const OptionalTensor& z, const OptionalTensor& bias, const OptionalTensor& start, bool softplus) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->set_materialize_grads(false);
    const Problem p(x, delta, a, b, c, defined(skip), defined(z), defined(bias), defined(start), softplus);
    auto [y, last, saved] = forwardScan(p, true);
    context->save_for_backward({x, delta, a, b, c, p.skip, p.z, p.bias, p.start, saved});
    context->saved_data["softplus"] = softplus;
    return {y, last};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "selective_scan: has no second derivative; call backward without create_graph, or use the reference form");
    const auto kept = context->get_saved_variables();
    const Problem p(kept[0], kept[1], kept[2], kept[3], kept[4], kept[5], kept[6], kept[7], kept[8], context->saved_data["softplus"].toBool());
    const Gradients g = backwardScan(p, kept[9], gradients[0], gradients[1]);
    return {g.x, g.delta, g.a, g.b, g.c, g.skip, g.z, g.bias, g.start, Tensor()};
  }
};

std::tuple<Tensor, Tensor> selectiveScanAutograd(const Tensor& x, const Tensor& delta, const Tensor& a, const Tensor& b, const Tensor& c,
                                                 const OptionalTensor& skip, const OptionalTensor& z, const OptionalTensor& bias,
                                                 const OptionalTensor& start, bool softplus) {
  const auto wants = [](const OptionalTensor& tensor) { return tensor && tensor->defined() && tensor->requires_grad(); };
  if (!at::GradMode::is_enabled() ||
      !(wants(x) || wants(delta) || wants(a) || wants(b) || wants(c) || wants(skip) || wants(z) || wants(bias) || wants(start))) {
    at::AutoDispatchBelowADInplaceOrView below;
    return selectiveScan(x, delta, a, b, c, skip, z, bias, start, softplus);
  }
  auto results = ScanFunction::apply(x, delta, a, b, c, skip, z, bias, start, softplus);
  return {results[0], results[1]};
}

}  // namespace
}  // namespace martlet

TORCH_LIBRARY_FRAGMENT(martlet, m) {
  // x, delta, z [B, L, D], B, C [B, L, N] (any strides but a last one of 1), A [D, N] negative, D and delta_bias [D], initial_state
  // [B, D, N]; all float32. Returns y [B, L, D] and the last state. The result is the same for every number of threads.
  m.def(
      "selective_scan(Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D=None, Tensor? z=None, Tensor? delta_bias=None, "
      "Tensor? initial_state=None, bool delta_softplus=True) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(martlet, CPU, m) { m.impl("selective_scan", martlet::selectiveScan); }

TORCH_LIBRARY_IMPL(martlet, Autograd, m) { m.impl("selective_scan", martlet::selectiveScanAutograd); }
