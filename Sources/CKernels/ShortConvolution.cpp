// The causal depthwise convolution before recurrent mixers, with its bias and SiLU, on tokens as they lie:
//     s_t = sum_k w_k x_{t-K+1+k} + b,    y_t = s_t or SiLU(s_t).
// A general convolution wants channels first: two transposes, and a depthwise backward pass that libtorch leaves to slow loops. Here
// rows of channels are lanes and a row is read once from memory (its K - 1 predecessors are in the first-level cache): forward
// streams x and y; backward streams x, dy and dx, computing s again rather than keeping it. Sums of a weight's gradient are made for
// each stretch of 64 tokens and added up in order: the result is the same for every number of threads. Sequences packed end to end
// don't see each other: a stretch lies in one of them.
//
// Measured with Benchmarks/family_kernels.py on one core (Zen 3 with AVX2, CPU time; 512 channels, kernel 4, L = 4096, x a half of wider
// rows): forward 1.0 us a token, forward + backward 5.6; libtorch's conv1d with its transposes, padding and SiLU 4.4 and 8.5.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "Parallel.h"
#include "Vector.h"

namespace martlet {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kTokens = 64;
constexpr int64_t kColumns = 256;
constexpr int64_t kMostTaps = 16;

/// sums[c] = bias[c] + sum_k weight[k][c] rows[k][c]; `weight` rows are `step` apart.
MARTLET_VECTOR static void taps(int64_t columns, int64_t kernel, const float* const* rows, const float* weight, int64_t step,
                                const float* bias, float* sums) {
#pragma clang fp contract(fast)
  if (kernel == 4) {
    const float *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
    const float *p = weight, *q = weight + step, *r = weight + 2 * step, *s = weight + 3 * step;
    MARTLET_SIMD
    for (int64_t i = 0; i < columns; ++i) sums[i] = bias[i] + (p[i] * a[i] + q[i] * b[i]) + (r[i] * c[i] + s[i] * d[i]);
    return;
  }
  std::memcpy(sums, bias, sizeof(float) * static_cast<size_t>(columns));
  for (int64_t k = 0; k < kernel; ++k) {
    const float *row = rows[k], *factor = weight + k * step;
    MARTLET_SIMD
    for (int64_t i = 0; i < columns; ++i) sums[i] += factor[i] * row[i];
  }
}

MARTLET_VECTOR static void activate(int64_t columns, float* sums) {
  MARTLET_SIMD
  for (int64_t i = 0; i < columns; ++i) sums[i] = sums[i] * fastSigmoid(sums[i]);
}

/// gradient <- upstream times the derivative of SiLU at sums.
MARTLET_VECTOR static void deactivate(int64_t columns, const float* sums, const float* upstream, float* gradient) {
  MARTLET_SIMD
  for (int64_t i = 0; i < columns; ++i) {
    const float sigmoid = fastSigmoid(sums[i]);
    gradient[i] = upstream[i] * sigmoid * (1.0f + sums[i] * (1.0f - sigmoid));
  }
}

/// total[k][c] += gradient[c] rows[k][c], and the bias' total += gradient.
MARTLET_VECTOR static void collect(int64_t columns, int64_t kernel, const float* const* rows, const float* gradient, float* total,
                                   int64_t step, float* bias) {
#pragma clang fp contract(fast)
  for (int64_t k = 0; k < kernel; ++k) {
    const float* row = rows[k];
    float* sum = total + k * step;
    MARTLET_SIMD
    for (int64_t i = 0; i < columns; ++i) sum[i] += gradient[i] * row[i];
  }
  MARTLET_SIMD
  for (int64_t i = 0; i < columns; ++i) bias[i] += gradient[i];
}

/// Tokens first..<last of a sequence that takes the tokens begin..<end of a row of the batch.
struct Stretch {
  int64_t batch, begin, end, first, last;
};

/// The operator's arguments, checked. `weight` is [kernel, channels] here.
struct Problem {
  Tensor x, weight, bias, past;
  int64_t batch, length, width, kernel;
  bool activated;
  std::vector<float> zeros;
  std::vector<Stretch> stretches;

  Problem(const Tensor& x_, const Tensor& weight_, const Tensor& bias_, const Tensor& past_, bool activated_, const Tensor& offsets)
      : activated(activated_) {
    const char* name = "short_convolution";
    for (const Tensor& tensor : {x_, weight_, bias_, past_})
      TORCH_CHECK(!tensor.defined() || (tensor.scalar_type() == at::kFloat && tensor.device().is_cpu()), name,
                  ": tensors must be float32 on the CPU, not ", tensor.scalar_type(), " on ", tensor.device());
    TORCH_CHECK(x_.dim() == 3, name, ": x must be [batch, length, channels], not ", x_.sizes());
    batch = x_.size(0), length = x_.size(1), width = x_.size(2);
    TORCH_CHECK(weight_.dim() == 2 && weight_.size(0) == width && weight_.size(1) >= 1 && weight_.size(1) <= kMostTaps, name,
                ": weight must be [", width, ", 1...", kMostTaps, "], not ", weight_.sizes());
    kernel = weight_.size(1);
    TORCH_CHECK(!bias_.defined() || bias_.sizes() == at::IntArrayRef({width}), name, ": bias must be [", width, "], not ", bias_.sizes());
    TORCH_CHECK(!past_.defined() || past_.sizes() == at::IntArrayRef({batch, kernel - 1, width}), name, ": past must be [", batch, ", ",
                kernel - 1, ", ", width, "], not ", past_.sizes());
    x = x_.stride(2) != 1 && width > 1 ? x_.contiguous() : x_;
    weight = weight_.t().contiguous();
    bias = bias_.defined() ? bias_.contiguous() : at::zeros({width}, at::kFloat);
    if (past_.defined()) past = past_.contiguous();
    zeros.assign(static_cast<size_t>(width), 0.0f);
    if (!offsets.defined()) {
      for (int64_t b = 0; b < batch; ++b) divide(b, 0, length);
      return;
    }
    TORCH_CHECK(batch == 1 && !past_.defined(), name, ": packed sequences need a batch of 1 and no past");
    const Tensor ends = offsets.to(at::kCPU, at::kLong).contiguous();
    const int64_t* at = ends.const_data_ptr<int64_t>();
    const int64_t count = ends.numel();
    TORCH_CHECK(ends.dim() == 1 && count >= 1 && at[0] == 0 && at[count - 1] == length && std::is_sorted(at, at + count), name,
                ": offsets must grow from 0 to the length ", length);
    for (int64_t i = 0; i + 1 < count; ++i) divide(0, at[i], at[i + 1]);
  }

  void divide(int64_t row, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t += kTokens) stretches.push_back({row, begin, end, t, std::min(end, t + kTokens)});
  }

  /// The channels from `column` on of a token, which may lie before the first of its sequence.
  const float* row(const Stretch& s, int64_t token, int64_t column) const {
    if (token >= s.begin) return x.const_data_ptr<float>() + s.batch * x.stride(0) + token * x.stride(1) + column;
    if (!past.defined()) return zeros.data() + column;
    return past.const_data_ptr<float>() + (s.batch * (kernel - 1) + kernel - 1 + token) * width + column;
  }
  void rows(const Stretch& s, int64_t token, int64_t column, const float** to) const {
    for (int64_t k = 0; k < kernel; ++k) to[k] = row(s, token - kernel + 1 + k, column);
  }
  int64_t tasks() const { return static_cast<int64_t>(stretches.size()); }
};

Tensor forward(const Problem& p) {
  const Tensor y = at::empty({p.batch, p.length, p.width}, at::kFloat);
  const float *weight = p.weight.const_data_ptr<float>(), *bias = p.bias.const_data_ptr<float>();
  float* out = y.data_ptr<float>();
  parallelTasks(p.tasks(), [&](int64_t task, int64_t) {
    const Stretch& s = p.stretches[static_cast<size_t>(task)];
    const float* rows[kMostTaps];
    for (int64_t column = 0; column < p.width; column += kColumns) {
      const int64_t columns = std::min(kColumns, p.width - column);
      for (int64_t t = s.first; t < s.last; ++t) {
        float* to = out + (s.batch * p.length + t) * p.width + column;
        p.rows(s, t, column, rows);
        taps(columns, p.kernel, rows, weight + column, p.width, bias + column, to);
        if (p.activated) activate(columns, to);
      }
    }
  });
  return y;
}

struct Gradients {
  Tensor x, weight, bias, past;
};

Gradients backward(const Problem& p, const Tensor& upstream) {
  const Tensor dy = upstream.contiguous();
  const int64_t before = p.kernel - 1;
  Gradients g;
  g.x = at::empty({p.batch, p.length, p.width}, at::kFloat);
  if (p.past.defined()) g.past = at::empty_like(p.past);
  const Tensor parts = at::zeros({p.tasks(), p.kernel + 1, p.width}, at::kFloat);
  const float *weight = p.weight.const_data_ptr<float>(), *bias = p.bias.const_data_ptr<float>(), *dys = dy.const_data_ptr<float>();
  float *dx = g.x.data_ptr<float>(), *dpast = g.past.defined() ? g.past.data_ptr<float>() : nullptr;
  // The gradient of s_t belongs to the weights of the reversed taps: dx_t = sum_k w_k ds_{t+K-1-k}.
  const Tensor reversed = p.weight.flip(0).contiguous();
  const float* turned = reversed.const_data_ptr<float>();
  std::vector<std::vector<float>> scratch(static_cast<size_t>(workerCount()));
  parallelTasks(p.tasks(), [&](int64_t task, int64_t worker) {
    auto& ds = scratch[static_cast<size_t>(worker)];
    ds.resize(static_cast<size_t>((kTokens + 2 * before) * kColumns));
    const Stretch& s = p.stretches[static_cast<size_t>(task)];
    // dx of tokens first..<last, and of the past with the first stretch: ds is wanted up to K - 1 tokens further.
    const int64_t from = s.first == s.begin && dpast ? -before : s.first;
    const float* rows[kMostTaps];
    for (int64_t column = 0; column < p.width; column += kColumns) {
      const int64_t columns = std::min(kColumns, p.width - column);
      float* total = parts.data_ptr<float>() + task * (p.kernel + 1) * p.width + column;
      const auto slot = [&](int64_t t) { return ds.data() + (t - from) * kColumns; };
      for (int64_t t = from; t < s.last + before; ++t) {
        float* to = slot(t);
        if (t < s.begin || t >= s.end) {
          std::memset(to, 0, sizeof(float) * static_cast<size_t>(columns));
          continue;
        }
        const float* given = dys + (s.batch * p.length + t) * p.width + column;
        p.rows(s, t, column, rows);
        if (p.activated) {
          taps(columns, p.kernel, rows, weight + column, p.width, bias + column, to);
          deactivate(columns, to, given, to);
        } else {
          std::memcpy(to, given, sizeof(float) * static_cast<size_t>(columns));
        }
        if (t < s.last) collect(columns, p.kernel, rows, to, total, p.width, total + p.kernel * p.width);
      }
      for (int64_t t = from; t < s.last; ++t) {
        for (int64_t k = 0; k < p.kernel; ++k) rows[k] = slot(t + k);
        float* to = t >= s.begin ? dx + (s.batch * p.length + t) * p.width + column : dpast + (s.batch * before + before + t) * p.width + column;
        taps(columns, p.kernel, rows, turned + column, p.width, p.zeros.data(), to);
      }
    }
  });
  const Tensor sums = parts.sum(0);
  g.weight = sums.slice(0, 0, p.kernel).t();
  g.bias = sums.select(0, p.kernel);
  return g;
}

Tensor shortConvolution(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& past, bool activated,
                        const OptionalTensor& offsets) {
  return forward(Problem(x, weight, bias.value_or(Tensor()), past.value_or(Tensor()), activated, offsets.value_or(Tensor())));
}

class ConvolutionFunction : public torch::autograd::Function<ConvolutionFunction> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& past, bool activated, const OptionalTensor& offsets) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x, weight, bias.value_or(Tensor()), past.value_or(Tensor()), offsets.value_or(Tensor())});
    context->saved_data["activated"] = activated;
    return shortConvolution(x, weight, bias, past, activated, offsets);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "short_convolution: has no second derivative; call backward without create_graph, or use plain operators");
    const auto kept = context->get_saved_variables();
    const Problem problem(kept[0], kept[1], kept[2], kept[3], context->saved_data["activated"].toBool(), kept[4]);
    const Gradients g = martlet::backward(problem, gradients[0]);
    return {g.x, g.weight, kept[2].defined() ? g.bias : Tensor(), g.past, Tensor(), Tensor()};
  }
};

Tensor shortConvolutionAutograd(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& past, bool activated,
                                const OptionalTensor& offsets) {
  const auto wants = [](const OptionalTensor& tensor) { return tensor && tensor->defined() && tensor->requires_grad(); };
  if (!at::GradMode::is_enabled() || !(wants(x) || wants(weight) || wants(bias) || wants(past))) {
    at::AutoDispatchBelowADInplaceOrView below;
    return shortConvolution(x, weight, bias, past, activated, offsets);
  }
  return ConvolutionFunction::apply(x, weight, bias, past, activated, offsets);
}

}  // namespace
}  // namespace martlet

TORCH_LIBRARY_FRAGMENT(martlet, m) {
  // x [B, L, D] (any strides but a last one of 1), weight [D, K] whose last column weighs the current token, bias [D], past [B, K - 1, D]:
  // the tokens before the first, zeros by default; offsets [sequences + 1]: with B = 1, where sequences begin and end. float32.
  m.def("short_convolution(Tensor x, Tensor weight, Tensor? bias=None, Tensor? past=None, bool activated=True, "
        "Tensor? offsets=None) -> Tensor");
}

TORCH_LIBRARY_IMPL(martlet, CPU, m) { m.impl("short_convolution", martlet::shortConvolution); }

TORCH_LIBRARY_IMPL(martlet, Autograd, m) { m.impl("short_convolution", martlet::shortConvolutionAutograd); }
