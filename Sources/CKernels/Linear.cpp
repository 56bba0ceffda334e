// martlet::linear: y = x W^T + b, forward and backward, on block products instead of the BLAS. The weight may be bf16 where x is
// f32: it is widened as it is read and y is f32.
//
// Bound by FLOPs from some 64 tokens on, by the bytes of W below. Measured on 2 Zen 5 cores (peak 470 GFLOP/s at the
// nominal clock), 4096 tokens and widths of 256 to 1024: y 439-486, dx 462-484, dW with db 413-447 GFLOP/s, where
// libtorch's F.linear and mm reach 181-219; 256 tokens at width 64: 242-306, 197-236, 176-209 (mm: 144-167). Up to
// 8 tokens the weight is streamed from memory (Weights.cpp): 24 weights of 2048 x 768 one after the other, one token, one core
// beside other work: 33 GB/s in f32 (F.linear 19-21, the sum of a tensor 36-40) and 28-31 in bf16, which is three times F.linear in f32.

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "Linear.h"

#include "Fallback.h"
#include "Parallel.h"
#include "Product.h"
#include "Vector.h"

namespace martlet {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

MARTLET_VECTOR void addBias(float* rows, int64_t count, int64_t stride, int64_t columns, const float* bias) {
  for (int64_t r = 0; r < count; ++r) {
    float* row = rows + r * stride;
    MARTLET_SIMD for (int64_t c = 0; c < columns; ++c) row[c] += bias[c];
  }
}

/// dx[t, first..<last] = dy[t, :] w[:, first..<last]: rows of w added up, four at a time, each read once from memory.
MARTLET_VECTOR void addScaledRows(const float* dy, int64_t tokens, int64_t out, const float* w, int64_t in, int64_t first,
                                  int64_t last, float* dx) {
  MARTLET_FAST_SUMS
  for (int64_t t = 0; t < tokens; ++t) {
    MARTLET_SIMD for (int64_t i = first; i < last; ++i) dx[t * in + i] = 0;
  }
  int64_t o = 0;
  for (; o + 4 <= out; o += 4) {
    const float *w0 = w + o * in, *w1 = w0 + in, *w2 = w1 + in, *w3 = w2 + in;
    for (int64_t t = 0; t < tokens; ++t) {
      const float *scale = dy + t * out + o, s0 = scale[0], s1 = scale[1], s2 = scale[2], s3 = scale[3];
      float* __restrict to = dx + t * in;
      MARTLET_SIMD for (int64_t i = first; i < last; ++i) to[i] += s0 * w0[i] + s1 * w1[i] + s2 * w2[i] + s3 * w3[i];
    }
  }
  for (; o < out; ++o)
    for (int64_t t = 0; t < tokens; ++t) {
      const float scale = dy[t * out + o];
      float* __restrict to = dx + t * in;
      MARTLET_SIMD for (int64_t i = first; i < last; ++i) to[i] += scale * w[o * in + i];
    }
}

void checkShapes(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  TORCH_CHECK(weight.dim() == 2, "linear: weight must be [out, in], got ", weight.sizes());
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) == weight.size(1), "linear: x ", x.sizes(), " must end in ", weight.size(1),
              ", the columns of weight ", weight.sizes());
  TORCH_CHECK(!bias.defined() || (bias.dim() == 1 && bias.size(0) == weight.size(0)), "linear: bias ",
              bias.defined() ? bias.sizes() : at::IntArrayRef{}, " must be [", weight.size(0), "], the rows of weight");
}

std::vector<int64_t> withLast(at::IntArrayRef sizes, int64_t last) {
  std::vector<int64_t> result(sizes.begin(), sizes.end());
  result.back() = last;
  return result;
}

}  // namespace

Weights denseWeights(const Tensor& weight) {
  const bool half = weight.scalar_type() == at::kBFloat16;
  return {half ? WeightFormat::bf16 : WeightFormat::f32, weight.size(0), weight.size(1), weight.const_data_ptr(),
          weight.size(1) * static_cast<int64_t>(weight.element_size())};
}

const float* paddedInput(const Weights& weights, const float* x, int64_t tokens) {
  const int64_t depth = inputDepth(weights), columns = weights.columns;
  if (depth == columns) return x;
  float* padded = threadScratch(kPaddedInput, tokens * depth);
  for (int64_t t = 0; t < tokens; ++t) {
    std::memcpy(padded + t * depth, x + t * columns, columns * sizeof(float));
    std::fill_n(padded + t * depth + columns, depth - columns, 0.0f);
  }
  return padded;
}

void packWeights(const Weights& weights, int64_t panel, float* packed) {
  const int64_t first = panel * kPanelColumns, width = std::min(kPanelColumns, weights.rows - first), depth = weights.columns;
  if (weights.format == WeightFormat::f32)
    return transposeBlock(static_cast<const float*>(weights.data) + first * depth, depth, width, depth, packed, width);
  float* unpacked = threadScratch(kUnpacked, 16 * depth);
  for (int64_t r = 0; r < width; r += 16) {
    const int64_t count = std::min<int64_t>(16, width - r);
    unpackRows(weights, first + r, count, unpacked, depth);
    transposeBlock(unpacked, depth, count, depth, packed + r, width);
  }
}

void multiplyWeights(const Factor* factors, size_t count, const float* x, int64_t tokens, int64_t stride) {
  if (tokens == 0 || count == 0) return;
  if (tokens > kFewTokens) {
    for (const Factor* factor = factors; factor != factors + count; ++factor) {
      const Weights& weights = factor->weights;
      if (weights.rows == 0) continue;
      multiplyPacked(
          x, weights.columns, tokens, weights.columns, weights.rows,
          [&](int64_t panel, float* packed) { packWeights(weights, panel, packed); }, factor->y, stride,
          [&](int64_t row, int64_t rows, int64_t column, int64_t width) {
            if (factor->bias) addBias(factor->y + row * stride + column, rows, stride, width, factor->bias + column);
          });
    }
    return;
  }
  // One padding serves all: their columns and form are the same.
  const float* padded = paddedInput(factors->weights, x, tokens);
  const int64_t depth = inputDepth(factors->weights);
  const auto sixteens = [](const Factor& factor) { return (factor.weights.rows + 15) / 16; };
  int64_t total = 0;
  for (size_t i = 0; i < count; ++i) total += sixteens(factors[i]);
  forRowRanges(16 * total, factors->weights.rowBytes, [&](int64_t begin, int64_t end) {
    int64_t before = 0;
    for (size_t i = 0; i < count; ++i) {
      const Factor& factor = factors[i];
      const int64_t first = std::max<int64_t>(0, begin - before), last = std::min(factor.weights.rows, end - before);
      if (first < last) dotRows(factor.weights, padded, depth, tokens, first, last, factor.bias, factor.y, stride);
      before += 16 * sixteens(factor);
    }
  });
}

at::Tensor linearForward(const Tensor& x_, const Tensor& weight_, const Tensor& bias_) {
  checkShapes(x_, weight_, bias_);
  const Tensor x = x_.contiguous(), weight = weight_.contiguous();
  const Tensor bias = bias_.defined() ? bias_.to(at::kFloat).contiguous() : bias_;
  const int64_t in = weight.size(1), out = weight.size(0), tokens = c10::multiply_integers(x.sizes().slice(0, x.dim() - 1));
  Tensor y = at::empty(withLast(x.sizes(), out), x.options());
  const float* b = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  const float* from = x.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  if (tokens <= kFewTokens || weight.scalar_type() == at::kBFloat16) {
    multiplyWeights(denseWeights(weight), from, tokens, b, to);
    return y;
  }
  multiply(from, in, tokens, weight, true, to, out, [&](int64_t row, int64_t rows, int64_t column, int64_t width) {
    if (b) addBias(to + row * out + column, rows, out, width, b + column);
  });
  return y;
}

at::Tensor linearInputGradient(const Tensor& dy, const Tensor& weight_) {
  const Tensor weight = weight_.contiguous();
  const int64_t in = weight.size(1), out = weight.size(0), tokens = c10::multiply_integers(dy.sizes().slice(0, dy.dim() - 1));
  Tensor dx = at::empty(withLast(dy.sizes(), in), dy.options());
  const float* from = dy.const_data_ptr<float>();
  float* to = dx.mutable_data_ptr<float>();
  if (tokens <= kFewTokens) {
    const float* w = weight.const_data_ptr<float>();
    parallelRanges(in, std::max<int64_t>(64, (1 << 15) / std::max<int64_t>(out * tokens, 1)),
                   [&](int64_t first, int64_t last, int64_t) { addScaledRows(from, tokens, out, w, in, first, last, to); });
    return dx;
  }
  multiply(from, out, tokens, weight, false, to, in, [](int64_t, int64_t, int64_t, int64_t) {});
  return dx;
}

namespace {

struct Linear : torch::autograd::Function<Linear> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias_) {
    const Tensor bias = bias_.value_or(Tensor());
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x, weight, bias});
    return linearForward(x, weight, bias);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2];
    if (!gradients[0].defined()) return variable_list(3);
    if (at::GradMode::is_enabled())
      return differentiableGradients({x, weight, bias}, gradients[0], [](const std::vector<Tensor>& inputs) {
        return at::linear(inputs[0], inputs[1], inputs[2]);
      });
    const Tensor dy = gradients[0].contiguous();
    variable_list result(3);
    if (context->needs_input_grad(0)) result[0] = linearInputGradient(dy, weight);
    const bool wantsBias = bias.defined() && context->needs_input_grad(2);
    if (wantsBias) result[2] = at::empty(bias.sizes(), dy.options());
    if (context->needs_input_grad(1)) {
      result[1] = at::empty(weight.sizes(), dy.options());
      const Tensor from = x.contiguous();
      multiplyTransposed(dy.const_data_ptr<float>(), from.const_data_ptr<float>(), from.numel() / std::max<int64_t>(weight.size(1), 1),
                         weight.size(0), weight.size(1), result[1].mutable_data_ptr<float>(),
                         wantsBias ? result[2].mutable_data_ptr<float>() : nullptr);
      if (weight.size(1) > 0) return result;
    }
    if (wantsBias) result[2] = dy.reshape({-1, bias.size(0)}).sum(0);
    return result;
  }
};

/// f32 activations against a bf16 weight, on the CPU: the weight is widened as it is read, the sums are f32.
bool isMixed(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  return weight.scalar_type() == at::kBFloat16 && weight.is_cpu() && weight.layout() == at::kStrided && !weight.is_neg() && isFusable(x) &&
         (!bias.defined() || isFusable(bias) || (bias.scalar_type() == at::kBFloat16 && bias.is_cpu()));
}

/// ATen's form; like the fused one it widens a bf16 weight to the f32 activations it meets.
Tensor plain(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  if (weight.scalar_type() != at::kBFloat16 || x.scalar_type() != at::kFloat) return at::linear(x, weight, bias);
  return at::linear(x, weight.to(at::kFloat), bias.defined() ? bias.to(at::kFloat) : bias);
}

Tensor reference(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  return plain(x, weight, bias.value_or(Tensor()));
}

Tensor linearCpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias_) {
  const Tensor bias = bias_.value_or(Tensor());
  return areFusable({x, weight, bias}) || isMixed(x, weight, bias) ? linearForward(x, weight, bias) : plain(x, weight, bias);
}

Tensor linearAutograd(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias_) {
  const Tensor bias = bias_.value_or(Tensor());
  const bool gradient = needsGradient({x, weight, bias});
  if (!areFusable({x, weight, bias}) && (gradient || !isMixed(x, weight, bias))) return plain(x, weight, bias);
  if (gradient) return Linear::apply(x, weight, bias_);
  at::AutoDispatchBelowADInplaceOrView below;
  return linearForward(x, weight, bias);
}

/// Several linear layers with one input: x [..., in], weights [out_i, in] of one type, biases [out_i] or undefined, -> [..., sum of
/// out_i]. A few tokens read all weights in one parallel region.
Tensor joinedLinear(const Tensor& x_, at::TensorList weights, const c10::List<std::optional<Tensor>>& biases) {
  TORCH_CHECK(!weights.empty() && biases.size() == weights.size(), "joined_linear: as many biases (or None) as weights, at least one; got ",
              weights.size(), " weights and ", biases.size(), " biases");
  std::vector<Tensor> offsets;
  bool fused = true, gradient = needsGradient({x_});
  int64_t total = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    offsets.push_back(biases.get(i).value_or(Tensor()));
    checkShapes(x_, weights[i], offsets[i]);
    gradient = gradient || needsGradient({weights[i], offsets[i]});
    fused = fused && weights[i].scalar_type() == weights[0].scalar_type() &&
            (areFusable({x_, weights[i], offsets[i]}) || isMixed(x_, weights[i], offsets[i]));
    total += weights[i].size(0);
  }
  if (gradient || !fused) {
    std::vector<Tensor> parts;
    for (size_t i = 0; i < weights.size(); ++i) parts.push_back(linearAutograd(x_, weights[i], biases.get(i)));
    return at::cat(parts, -1);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  const Tensor x = x_.contiguous();
  Tensor y = at::empty(withLast(x.sizes(), total), x.options());
  std::vector<Tensor> kept;
  std::vector<Factor> factors;
  float* to = y.mutable_data_ptr<float>();
  for (size_t i = 0; i < weights.size(); ++i) {
    kept.push_back(weights[i].contiguous());
    factors.push_back({denseWeights(kept.back()), nullptr, to});
    to += weights[i].size(0);
    if (!offsets[i].defined()) continue;
    offsets[i] = offsets[i].to(at::kFloat).contiguous();
    factors.back().bias = offsets[i].const_data_ptr<float>();
  }
  if (y.numel()) multiplyWeights(factors.data(), factors.size(), x.const_data_ptr<float>(), y.numel() / total, total);
  return y;
}

TORCH_LIBRARY_FRAGMENT(martlet, library) {
  library.def("linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor");
  library.def("joined_linear(Tensor x, Tensor[] weights, Tensor?[] biases) -> Tensor");
}
TORCH_LIBRARY_IMPL(martlet, CPU, library) { library.impl("linear", linearCpu); }
TORCH_LIBRARY_IMPL(martlet, CompositeExplicitAutograd, library) { library.impl("linear", reference); }
TORCH_LIBRARY_IMPL(martlet, CompositeImplicitAutograd, library) { library.impl("joined_linear", joinedLinear); }
TORCH_LIBRARY_IMPL(martlet, Autograd, library) { library.impl("linear", linearAutograd); }

}  // namespace
}  // namespace martlet
