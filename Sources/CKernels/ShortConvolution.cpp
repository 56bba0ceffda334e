// The short causal depthwise convolution before recurrent mixers: y_tc = f(Σ_i w_ci x_{t-K+1+i,c}), f the identity or SiLU, over
// [B, L, D] as it lies, where a library's convolution wants channels first (two transposed copies each way) and SiLU a pass of its
// own. One read of x and one write of y; backward reads x and dy and writes dx, computing y's argument again. Sequences packed end
// to end don't see each other.

#include "ChunkScan.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <vector>

namespace martlet {
namespace {

using namespace scan;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

/// Tokens of a task: its sum of the weight's gradient is K D floats beside 256 D of the input.
constexpr int64_t kTokens = 256;

/// z_c = Σ_i w_ic rows[i]_c
MARTLET_VECTOR static void weigh(const float* const* rows, const float* weights, int64_t taps, int64_t width, float* z) {
  MARTLET_FAST_SUMS
  int64_t c = 0;
  for (; c + 16 <= width; c += 16) {
    Lanes sum = {};
    for (int64_t i = 0; i < taps; ++i) sum += lanes(weights + i * width + c) * lanes(rows[i] + c);
    lanes(z + c) = sum;
  }
  for (; c < width; ++c) {
    float sum = 0;
    for (int64_t i = 0; i < taps; ++i) sum += weights[i * width + c] * rows[i][c];
    z[c] = sum;
  }
}

MARTLET_VECTOR static void silu(float* z, int64_t width) {
  MARTLET_SIMD
  for (int64_t c = 0; c < width; ++c) z[c] *= fastSigmoid(z[c]);
}

/// z <- dy silu'(z)
MARTLET_VECTOR static void siluGradient(const float* gradient, int64_t width, float* z) {
  MARTLET_SIMD
  for (int64_t c = 0; c < width; ++c) {
    const float s = fastSigmoid(z[c]);
    z[c] = gradient[c] * s * (1.0f + z[c] * (1.0f - s));
  }
}

/// sums_ic += rows[i]_c z_c
MARTLET_VECTOR static void addProducts(const float* const* rows, const float* z, int64_t taps, int64_t width, float* sums) {
  for (int64_t i = 0; i < taps; ++i)
    for (int64_t c = 0; c < width; ++c) sums[i * width + c] += rows[i][c] * z[c];
}

/// A run of tokens of one sequence.
struct Piece {
  int64_t row, begin, end, from, to;
};

struct Problem {
  int64_t batch, length, width, taps;
  Tensor x, weights;  // weights [K, D]
  std::vector<Piece> pieces;
  std::vector<int64_t> tasks;  // first piece of each, and the end

  Problem(const Tensor& input, const Tensor& weight, const Tensor& offsets)
      : batch(input.size(0)), length(input.size(1)), width(input.size(2)), taps(weight.size(1)), x(ready(input)),
        weights(weight.t().contiguous()) {
    int64_t tokens = kTokens;
    const auto add = [&](int64_t row, int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t += kTokens) {
        const int64_t to = std::min(end, t + kTokens);
        if (tokens >= kTokens) tasks.push_back(static_cast<int64_t>(pieces.size())), tokens = 0;
        pieces.push_back({row, begin, end, t, to});
        tokens += to - t;
      }
    };
    if (offsets.defined()) {
      const int64_t* at = offsets.const_data_ptr<int64_t>();
      for (int64_t i = 0; i + 1 < offsets.size(0); ++i) add(0, at[i], at[i + 1]);
    } else {
      for (int64_t i = 0; i < batch; ++i) add(i, 0, length);
    }
    tasks.push_back(static_cast<int64_t>(pieces.size()));
  }
  int64_t taskCount() const { return static_cast<int64_t>(tasks.size()) - 1; }
};

struct Lines {
  float* data;
  int64_t batchStep, tokenStep;
  explicit Lines(const Tensor& x) : data(x.data_ptr<float>()), batchStep(x.stride(0)), tokenStep(x.stride(1)) {}
  float* at(int64_t row, int64_t token) const { return data + row * batchStep + token * tokenStep; }
};

struct Scratch {
  std::vector<float> zeros, ring;
  std::vector<const float*> rows;
  explicit Scratch(const Problem& p) : zeros(p.width), ring(p.taps * p.width), rows(p.taps) {}
  /// The inputs that output `t` is made of.
  void inputs(const Problem& p, const Lines& x, const Piece& piece, int64_t t) {
    for (int64_t i = 0; i < p.taps; ++i) {
      const int64_t at = t - p.taps + 1 + i;
      rows[i] = at < piece.begin ? zeros.data() : x.at(piece.row, at);
    }
  }
};

void check(const Tensor& x, const Tensor& weight) {
  const char* name = "short_convolution";
  for (const auto& [tensor, argument] : {std::pair<const Tensor&, const char*>{x, "x"}, {weight, "weight"}})
    TORCH_CHECK(
        tensor.scalar_type() == at::kFloat && tensor.device().is_cpu(), name, ": ", argument, " must be float32 on the CPU, not ",
        tensor.scalar_type(), " on ", tensor.device());
  TORCH_CHECK(x.dim() == 3, name, ": x must be [batch, length, width], not ", x.sizes());
  TORCH_CHECK(
      weight.dim() == 2 && weight.size(0) == x.size(2) && weight.size(1) > 0, name, ": weight must be [width, kernel], not ", weight.sizes());
}

Tensor packed(const Tensor& x, const OptionalTensor& offsets) {
  return checkedOffsets("short_convolution", x.unsqueeze(1), offsets);
}

Tensor shortConvolution(const Tensor& x, const Tensor& weight, bool activated, const OptionalTensor& offsets) {
  check(x, weight);
  const Problem p(x, weight, packed(x, offsets));
  Tensor out = at::empty(x.sizes(), x.options());
  const Lines from(p.x), to(out);
  const float* weights = floats(p.weights);
  parallelTasks(p.taskCount(), [&](int64_t task, int64_t) {
    Scratch scratch(p);
    for (int64_t i = p.tasks[task]; i < p.tasks[task + 1]; ++i) {
      const Piece& piece = p.pieces[i];
      for (int64_t t = piece.from; t < piece.to; ++t) {
        scratch.inputs(p, from, piece, t);
        float* z = to.at(piece.row, t);
        weigh(scratch.rows.data(), weights, p.taps, p.width, z);
        if (activated) silu(z, p.width);
      }
    }
  });
  return out;
}

std::pair<Tensor, Tensor> gradients(const Tensor& x, const Tensor& weight, const Tensor& offsets, bool activated, const Tensor& outGradient) {
  const Problem p(x, weight, offsets);
  Tensor inputGradient = at::empty(x.sizes(), x.options());
  Tensor sums = at::zeros({p.taskCount(), p.taps, p.width}, at::kFloat);
  const Tensor dense = ready(outGradient);
  const Lines from(p.x), upstream(dense), to(inputGradient);
  // dx_u = Σ_i w_i dz_{u+K-1-i}: the same sum as forward's, with the taps turned round.
  const Tensor turned = p.weights.flip(0).contiguous();
  const float *weights = floats(p.weights), *back = floats(turned);
  float* partial = sums.data_ptr<float>();
  parallelTasks(p.taskCount(), [&](int64_t task, int64_t) {
    Scratch scratch(p);
    std::vector<const float*> changes(p.taps);
    float* own = partial + task * p.taps * p.width;
    for (int64_t i = p.tasks[task]; i < p.tasks[task + 1]; ++i) {
      const Piece& piece = p.pieces[i];
      for (int64_t t = piece.from; t < piece.to + p.taps - 1; ++t) {
        float* z = scratch.ring.data() + t % p.taps * p.width;
        if (t < piece.end) {
          scratch.inputs(p, from, piece, t);
          if (activated) {
            weigh(scratch.rows.data(), weights, p.taps, p.width, z);
            siluGradient(upstream.at(piece.row, t), p.width, z);
          } else {
            std::memcpy(z, upstream.at(piece.row, t), sizeof(float) * p.width);
          }
          if (t < piece.to) addProducts(scratch.rows.data(), z, p.taps, p.width, own);
        } else {
          std::memset(z, 0, sizeof(float) * p.width);
        }
        const int64_t u = t - p.taps + 1;
        if (u < piece.from) continue;
        for (int64_t j = 0; j < p.taps; ++j) changes[j] = scratch.ring.data() + (u + j) % p.taps * p.width;
        weigh(changes.data(), back, p.taps, p.width, to.at(piece.row, u));
      }
    }
  });
  return {inputGradient, sums.sum(0).t().contiguous()};
}

class ConvolutionFunction : public torch::autograd::Function<ConvolutionFunction> {
 public:
  static Tensor forward(
      torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& weight, bool activated, const OptionalTensor& offsets) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x, weight, offsets.value_or(Tensor())});
    context->saved_data["activated"] = activated;
    return shortConvolution(x, weight, activated, offsets);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list upstream) {
    checkOnce("short_convolution");
    const auto kept = context->get_saved_variables();
    auto [dx, dw] = gradients(kept[0], kept[1], packed(kept[0], kept[2]), context->saved_data["activated"].toBool(), upstream[0]);
    return {dx, dw, Tensor(), Tensor()};
  }
};

Tensor shortConvolutionAutograd(const Tensor& x, const Tensor& weight, bool activated, const OptionalTensor& offsets) {
  if (!at::GradMode::is_enabled() || !(x.requires_grad() || weight.requires_grad())) {
    at::AutoDispatchBelowADInplaceOrView below;
    return shortConvolution(x, weight, activated, offsets);
  }
  return ConvolutionFunction::apply(x, weight, activated, offsets);
}

}  // namespace
}  // namespace martlet

TORCH_LIBRARY_FRAGMENT(martlet, m) {
  // y_t = f(Σ_i weight[:, i] x_{t-K+1+i}) over x [B, L, D] with weight [D, K], zeros before the first token; f SiLU where
  // `activated`. offsets (int64 [sequences + 1], B = 1): several sequences end to end. float32.
  m.def("short_convolution(Tensor x, Tensor weight, bool activated=True, Tensor? offsets=None) -> Tensor");
}

TORCH_LIBRARY_IMPL(martlet, CPU, m) { m.impl("short_convolution", martlet::shortConvolution); }
TORCH_LIBRARY_IMPL(martlet, Autograd, m) { m.impl("short_convolution", martlet::shortConvolutionAutograd); }
