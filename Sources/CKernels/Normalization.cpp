// martlet::layer_norm and martlet::rms_norm over the last dimension, one pass over memory each way.
// martlet::simple_rms_norm: x / (root mean square + eps), epsilon outside the root and no weight (TransNormer's SRMSNorm).
// martlet::add_layer_norm and martlet::add_rms_norm: x + residual and its normalisation, (sum, y). 6190 x 384 on one core: 0.84-0.91
// ms, where a sum and a normalisation take 3.0-3.2 (most of it new memory) and PyTorch's two operators 1.13; one row of 768: 2.6 us
// instead of 3.3.
//
// Bound by bytes: forward reads x and writes y; backward reads x and dy and writes dx, 12 bytes an element. The row is
// in L1 when it is read for the second time (mean, then squares, then output), so only the first reading costs.
// Saved for backward: x, and two (one) floats a row. 4096 x 256 on one core, both ways together: 1.6-1.8 times as fast as
// F.layer_norm, 8 times as fast as F.rms_norm.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "Fallback.h"
#include "Parallel.h"
#include "Vector.h"

namespace martlet {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Elements a task handles at least: below, waking a thread costs more than the work.
constexpr int64_t kGrain = 1 << 14;

/// y = (x - mean) / sqrt(variance + eps) * weight + bias; `centred` false: y = x / sqrt(mean of squares + eps) * weight.
/// means and inverses (1/sqrt(...)) receive one float a row. `outside`: 1/(sqrt(mean of squares) + eps).
MARTLET_VECTOR void normalizeRows(const float* x, int64_t rows, int64_t width, const float* weight, const float* bias,
                                  double epsilon, bool centred, float* y, float* means, float* inverses, bool outside = false) {
  MARTLET_FAST_SUMS
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = x + r * width;
    float* to = y + r * width;
    float mean = 0;
    if (centred) {
      MARTLET_SIMD for (int64_t i = 0; i < width; ++i) mean += from[i];
      mean /= static_cast<float>(width);
    }
    float squares = 0;
    MARTLET_SIMD for (int64_t i = 0; i < width; ++i) squares += (from[i] - mean) * (from[i] - mean);
    const double mean2 = static_cast<double>(squares) / static_cast<double>(width);
    const float inverse = static_cast<float>(outside ? 1.0 / (std::sqrt(mean2) + epsilon) : 1.0 / std::sqrt(mean2 + epsilon));
    if (weight && bias) {
      MARTLET_SIMD for (int64_t i = 0; i < width; ++i) to[i] = (from[i] - mean) * inverse * weight[i] + bias[i];
    } else if (weight) {
      MARTLET_SIMD for (int64_t i = 0; i < width; ++i) to[i] = (from[i] - mean) * inverse * weight[i];
    } else {
      MARTLET_SIMD for (int64_t i = 0; i < width; ++i) to[i] = (from[i] - mean) * inverse;
      if (bias) {
        MARTLET_SIMD for (int64_t i = 0; i < width; ++i) to[i] += bias[i];
      }
    }
    if (means) means[r] = mean;
    inverses[r] = inverse;
  }
}

/// With h = (x - mean) inverse and g = dy weight: dx = inverse (g - mean(g) - h mean(g h)), mean(g) dropped when not
/// centred; dweight += dy h, dbias += dy. weight, dx, dweight and dbias may be null. `outside`: an epsilon that was added to the root.
MARTLET_VECTOR void normalizeRowsBackward(const float* x, const float* dy, int64_t rows, int64_t width, const float* weight,
                                          const float* means, const float* inverses, bool centred, float* dx, float* dweight,
                                          float* dbias, double outside = 0) {
  MARTLET_FAST_SUMS
  const float share = 1.0f / static_cast<float>(width);
  for (int64_t r = 0; r < rows; ++r) {
    const float *from = x + r * width, *gradient = dy + r * width;
    const float inverse = inverses[r], mean = means ? means[r] : 0.0f;
    if (dweight) {
      MARTLET_SIMD for (int64_t i = 0; i < width; ++i) dweight[i] += gradient[i] * ((from[i] - mean) * inverse);
    }
    if (dbias) {
      MARTLET_SIMD for (int64_t i = 0; i < width; ++i) dbias[i] += gradient[i];
    }
    if (!dx) continue;
    float* to = dx + r * width;
    float sum = 0, product = 0;
    if (weight) {
      MARTLET_SIMD for (int64_t i = 0; i < width; ++i) {
        const float g = gradient[i] * weight[i];
        sum += g;
        product += g * (from[i] - mean);
      }
    } else {
      MARTLET_SIMD for (int64_t i = 0; i < width; ++i) {
        sum += gradient[i];
        product += gradient[i] * (from[i] - mean);
      }
    }
    // dx = inverse g - offset - slope (x - mean)
    // The derivative of 1/(root + eps) has 1/root where that of the usual form has a third inverse; a row of zeros has none.
    const double root = outside > 0 ? 1.0 / inverse - outside : 0;
    const float third = outside > 0 ? (root > 0 ? static_cast<float>(1 / root) : 0.0f) : inverse;
    const float slope = product * share * inverse * inverse * third, offset = centred ? sum * share * inverse : 0.0f;
    if (weight) {
      MARTLET_SIMD for (int64_t i = 0; i < width; ++i) to[i] = gradient[i] * weight[i] * inverse - offset - slope * (from[i] - mean);
    } else {
      MARTLET_SIMD for (int64_t i = 0; i < width; ++i) to[i] = gradient[i] * inverse - offset - slope * (from[i] - mean);
    }
  }
}

MARTLET_VECTOR void addTo(float* sums, const float* part, int64_t count) {
  MARTLET_SIMD for (int64_t i = 0; i < count; ++i) sums[i] += part[i];
}

const float* dataOrNull(const Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr; }

void checkShapes(const char* name, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  TORCH_CHECK(x.dim() >= 1, name, ": x must have a last dimension to normalise over, got a scalar");
  for (const auto& [label, tensor] : {std::pair<const char*, const Tensor&>{"weight", weight}, {"bias", bias}})
    TORCH_CHECK(!tensor.defined() || (tensor.dim() == 1 && tensor.size(0) == x.size(-1)), name, ": ", label, " ", tensor.sizes(),
                " must be [", x.size(-1), "], the last dimension of x ", x.sizes());
}

struct Normalized {
  Tensor y, means, inverses;
};

Normalized normalize(const Tensor& x, const Tensor& weight_, const Tensor& bias_, double epsilon, bool centred, bool outside = false) {
  const Tensor weight = weight_.defined() ? weight_.contiguous() : weight_, bias = bias_.defined() ? bias_.contiguous() : bias_;
  const int64_t width = x.size(-1), rows = width == 0 ? 0 : x.numel() / width;
  Normalized result{at::empty_like(x, at::MemoryFormat::Contiguous), centred ? at::empty({rows}, x.options()) : Tensor(),
                    at::empty({rows}, x.options())};
  const float *from = x.const_data_ptr<float>(), *w = dataOrNull(weight), *b = dataOrNull(bias);
  float* y = result.y.mutable_data_ptr<float>();
  float* means = centred ? result.means.mutable_data_ptr<float>() : nullptr;
  float* inverses = result.inverses.mutable_data_ptr<float>();
  parallelRanges(rows, kGrain / std::max<int64_t>(width, 1) + 1, [&](int64_t first, int64_t last, int64_t) {
    normalizeRows(from + first * width, last - first, width, w, b, epsilon, centred, y + first * width,
                  means ? means + first : nullptr, inverses + first, outside);
  });
  return result;
}

/// Gradients of x, weight and bias; each undefined unless wanted.
std::array<Tensor, 3> normalizeBackward(const Tensor& x, const Tensor& dy, const Tensor& weight_, const Tensor& means,
                                        const Tensor& inverses, bool wantsX, bool wantsWeight, bool wantsBias, double outside = 0) {
  const Tensor weight = weight_.defined() ? weight_.contiguous() : weight_;
  const int64_t width = x.size(-1), rows = width == 0 ? 0 : x.numel() / width;
  std::array<Tensor, 3> result;
  if (wantsX) result[0] = at::empty_like(x, at::MemoryFormat::Contiguous);
  const int64_t sums = (wantsWeight + wantsBias) * width, grain = kGrain / std::max<int64_t>(width, 1) + 1;
  // Every range has its own row of sums, added in order at the end: independent of which thread took it.
  const int64_t ranges = std::clamp<int64_t>(rows / grain, 1, 4 * workerCount());
  const Tensor partial = at::zeros({ranges, sums}, x.options());
  const float *from = x.const_data_ptr<float>(), *gradient = dy.const_data_ptr<float>(), *w = dataOrNull(weight);
  const float *mean = dataOrNull(means), *inverse = inverses.const_data_ptr<float>();
  float* dx = wantsX ? result[0].mutable_data_ptr<float>() : nullptr;
  float* parts = partial.mutable_data_ptr<float>();
  parallelTasks(ranges, [&](int64_t range, int64_t) {
    const int64_t first = rows * range / ranges, last = rows * (range + 1) / ranges;
    float* sum = parts + range * sums;
    normalizeRowsBackward(from + first * width, gradient + first * width, last - first, width, w, mean ? mean + first : nullptr,
                          inverse + first, mean != nullptr, dx ? dx + first * width : nullptr, wantsWeight ? sum : nullptr,
                          wantsBias ? sum + wantsWeight * width : nullptr, outside);
  });
  for (int64_t range = 1; range < ranges; ++range) addTo(parts, parts + range * sums, sums);
  // Copied out, not viewed: a gradient that is kept must not keep all the partial sums.
  const auto copied = [&](int64_t offset) {
    Tensor gradient = at::empty({width}, x.options());
    std::copy_n(parts + offset, width, gradient.mutable_data_ptr<float>());
    return gradient;
  };
  if (wantsWeight) result[1] = copied(0);
  if (wantsBias) result[2] = copied(wantsWeight * width);
  return result;
}

Tensor layerNormReference(const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double epsilon) {
  // ATen's second derivative loses the bias where there is no weight (2.13), hence the separate sum.
  if (bias && bias->defined() && !(weight && weight->defined()))
    return at::layer_norm(x, x.sizes().slice(x.dim() - 1), {}, {}, epsilon) + *bias;
  return at::layer_norm(x, x.sizes().slice(x.dim() - 1), weight, bias, epsilon);
}

Tensor rmsNormReference(const Tensor& x, const std::optional<Tensor>& weight, double epsilon) {
  const Tensor normalized = x * at::rsqrt(x.square().mean(-1, /*keepdim=*/true) + epsilon);
  return weight && weight->defined() ? normalized * *weight : normalized;
}

struct LayerNorm : torch::autograd::Function<LayerNorm> {
  static Tensor forward(AutogradContext* context, const Tensor& x_, const std::optional<Tensor>& weight,
                        const std::optional<Tensor>& bias, double epsilon) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor x = x_.contiguous();
    const auto result = normalize(x, weight.value_or(Tensor()), bias.value_or(Tensor()), epsilon, true);
    context->save_for_backward({x_, weight.value_or(Tensor()), bias.value_or(Tensor()), result.means, result.inverses});
    context->saved_data["epsilon"] = epsilon;
    return result.y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2];
    if (!gradients[0].defined()) return variable_list(4);
    if (at::GradMode::is_enabled()) {
      const double epsilon = context->saved_data["epsilon"].toDouble();
      auto found = differentiableGradients({x, weight, bias}, gradients[0], [&](const std::vector<Tensor>& inputs) {
        return layerNormReference(inputs[0], inputs[1], inputs[2], epsilon);
      });
      return {found[0], found[1], found[2], Tensor()};
    }
    const bool wantsBias = bias.defined() && context->needs_input_grad(1 + weight.defined());
    const auto [dx, dweight, dbias] = normalizeBackward(x.contiguous(), gradients[0].contiguous(), weight, saved[3], saved[4],
                                                        context->needs_input_grad(0),
                                                        weight.defined() && context->needs_input_grad(1), wantsBias);
    return {dx, dweight, dbias, Tensor()};
  }
};

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static Tensor forward(AutogradContext* context, const Tensor& x_, const std::optional<Tensor>& weight, double epsilon) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor x = x_.contiguous();
    const auto result = normalize(x, weight.value_or(Tensor()), Tensor(), epsilon, false);
    context->save_for_backward({x_, weight.value_or(Tensor()), result.inverses});
    context->saved_data["epsilon"] = epsilon;
    return result.y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1];
    if (!gradients[0].defined()) return variable_list(3);
    if (at::GradMode::is_enabled()) {
      const double epsilon = context->saved_data["epsilon"].toDouble();
      auto found = differentiableGradients({x, weight}, gradients[0], [&](const std::vector<Tensor>& inputs) {
        return rmsNormReference(inputs[0], inputs[1], epsilon);
      });
      return {found[0], found[1], Tensor()};
    }
    const auto [dx, dweight, dbias] = normalizeBackward(x.contiguous(), gradients[0].contiguous(), weight, Tensor(), saved[2],
                                                        context->needs_input_grad(0),
                                                        weight.defined() && context->needs_input_grad(1), false);
    return {dx, dweight, Tensor()};
  }
};

Tensor simpleRmsNormReference(const Tensor& x, double epsilon) {
  return x / (at::linalg_vector_norm(x, 2, at::IntArrayRef({-1}), /*keepdim=*/true) * std::pow(static_cast<double>(x.size(-1)), -0.5) + epsilon);
}

struct SimpleRmsNorm : torch::autograd::Function<SimpleRmsNorm> {
  static Tensor forward(AutogradContext* context, const Tensor& x_, double epsilon) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor x = x_.contiguous();
    const auto result = normalize(x, Tensor(), Tensor(), epsilon, false, true);
    context->save_for_backward({x, result.inverses});
    context->saved_data["epsilon"] = epsilon;
    return result.y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const double epsilon = context->saved_data["epsilon"].toDouble();
    if (at::GradMode::is_enabled()) {
      const auto found = differentiableGradients({saved[0]}, gradients[0], [epsilon](const std::vector<Tensor>& inputs) {
        return simpleRmsNormReference(inputs[0], epsilon);
      });
      return {found[0], Tensor()};
    }
    return {normalizeBackward(saved[0], gradients[0].contiguous(), Tensor(), Tensor(), saved[1], true, false, false, epsilon)[0], Tensor()};
  }
};

void checkSimple(const Tensor& x, double epsilon) {
  TORCH_CHECK(x.dim() >= 1, "simple_rms_norm: x must have a last dimension to normalise over, got a scalar");
  TORCH_CHECK(epsilon > 0, "simple_rms_norm: epsilon must be positive, not ", epsilon);
}

Tensor simpleRmsNorm(const Tensor& x, double epsilon) {
  checkSimple(x, epsilon);
  if (!areFusable({x})) return simpleRmsNormReference(x, epsilon);
  if (needsGradient({x})) return SimpleRmsNorm::apply(x, epsilon);
  at::AutoDispatchBelowADInplaceOrView below;
  return normalize(x.contiguous(), Tensor(), Tensor(), epsilon, false, true).y;
}

Tensor simpleRmsNormPlain(const Tensor& x, double epsilon) {
  checkSimple(x, epsilon);
  if (!areFusable({x})) return simpleRmsNormReference(x, epsilon);
  return normalize(x.contiguous(), Tensor(), Tensor(), epsilon, false, true).y;
}

Tensor layerNorm(const Tensor& x, const std::optional<Tensor>& weight_, const std::optional<Tensor>& bias_, double epsilon) {
  const Tensor weight = weight_.value_or(Tensor()), bias = bias_.value_or(Tensor());
  checkShapes("layer_norm", x, weight, bias);
  if (!areFusable({x, weight, bias})) return layerNormReference(x, weight_, bias_, epsilon);
  if (needsGradient({x, weight, bias})) return LayerNorm::apply(x, weight_, bias_, epsilon);
  at::AutoDispatchBelowADInplaceOrView below;
  return normalize(x.contiguous(), weight, bias, epsilon, true).y;
}

Tensor rmsNorm(const Tensor& x, const std::optional<Tensor>& weight_, double epsilon) {
  const Tensor weight = weight_.value_or(Tensor());
  checkShapes("rms_norm", x, weight, Tensor());
  if (!areFusable({x, weight})) return rmsNormReference(x, weight_, epsilon);
  if (needsGradient({x, weight})) return RmsNorm::apply(x, weight_, epsilon);
  at::AutoDispatchBelowADInplaceOrView below;
  return normalize(x.contiguous(), weight, Tensor(), epsilon, false).y;
}

// Under inference mode the autograd entry is skipped; the other entry then meets tensors that ask for no gradient.
Tensor layerNormPlain(const Tensor& x, const std::optional<Tensor>& weight_, const std::optional<Tensor>& bias_, double epsilon) {
  const Tensor weight = weight_.value_or(Tensor()), bias = bias_.value_or(Tensor());
  checkShapes("layer_norm", x, weight, bias);
  if (!areFusable({x, weight, bias})) return layerNormReference(x, weight_, bias_, epsilon);
  return normalize(x.contiguous(), weight, bias, epsilon, true).y;
}

Tensor rmsNormPlain(const Tensor& x, const std::optional<Tensor>& weight_, double epsilon) {
  const Tensor weight = weight_.value_or(Tensor());
  checkShapes("rms_norm", x, weight, Tensor());
  if (!areFusable({x, weight})) return rmsNormReference(x, weight_, epsilon);
  return normalize(x.contiguous(), weight, Tensor(), epsilon, false).y;
}

MARTLET_VECTOR void addRows(const float* __restrict x, const float* __restrict y, int64_t count, float* __restrict sum) {
  MARTLET_SIMD for (int64_t i = 0; i < count; ++i) sum[i] = x[i] + y[i];
}

/// x + residual and its normalisation, row by row, so that the sum is normalised while it is in L1.
std::tuple<Tensor, Tensor> addNormalize(const char* name, const Tensor& x_, const Tensor& residual_, const Tensor& weight_,
                                        const Tensor& bias_, double epsilon, bool centred) {
  TORCH_CHECK(x_.sizes() == residual_.sizes(), name, ": x ", x_.sizes(), " and residual ", residual_.sizes(), " must have one shape");
  checkShapes(name, x_, weight_, bias_);
  if (!areFusable({x_, residual_, weight_, bias_}) || needsGradient({x_, residual_, weight_, bias_})) {
    const Tensor sum = x_ + residual_;
    return {sum, centred ? layerNorm(sum, weight_, bias_, epsilon) : rmsNorm(sum, weight_, epsilon)};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  const Tensor x = x_.contiguous(), residual = residual_.contiguous();
  const Tensor weight = weight_.defined() ? weight_.contiguous() : weight_, bias = bias_.defined() ? bias_.contiguous() : bias_;
  const int64_t width = x.size(-1), rows = width == 0 ? 0 : x.numel() / width;
  Tensor sum = at::empty_like(x, at::MemoryFormat::Contiguous), y = at::empty_like(sum);
  const float *from = x.const_data_ptr<float>(), *other = residual.const_data_ptr<float>(), *w = dataOrNull(weight), *b = dataOrNull(bias);
  float *total = sum.mutable_data_ptr<float>(), *to = y.mutable_data_ptr<float>();
  parallelRanges(rows, kGrain / std::max<int64_t>(width, 1) + 1, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t r = first; r < last; ++r) {
      float inverse;
      addRows(from + r * width, other + r * width, width, total + r * width);
      normalizeRows(total + r * width, 1, width, w, b, epsilon, centred, to + r * width, nullptr, &inverse);
    }
  });
  return {sum, y};
}

std::tuple<Tensor, Tensor> addLayerNorm(const Tensor& x, const Tensor& residual, const std::optional<Tensor>& weight,
                                        const std::optional<Tensor>& bias, double epsilon) {
  return addNormalize("add_layer_norm", x, residual, weight.value_or(Tensor()), bias.value_or(Tensor()), epsilon, true);
}

std::tuple<Tensor, Tensor> addRmsNorm(const Tensor& x, const Tensor& residual, const std::optional<Tensor>& weight, double epsilon) {
  return addNormalize("add_rms_norm", x, residual, weight.value_or(Tensor()), Tensor(), epsilon, false);
}

TORCH_LIBRARY_FRAGMENT(martlet, library) {
  library.def("layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor");
  library.def("rms_norm(Tensor x, Tensor? weight, float eps) -> Tensor");
  library.def("simple_rms_norm(Tensor x, float eps) -> Tensor");
  library.def("add_layer_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor)");
  library.def("add_rms_norm(Tensor x, Tensor residual, Tensor? weight, float eps) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(martlet, CompositeImplicitAutograd, library) {
  library.impl("add_layer_norm", addLayerNorm);
  library.impl("add_rms_norm", addRmsNorm);
}
TORCH_LIBRARY_IMPL(martlet, CompositeExplicitAutograd, library) {
  library.impl("layer_norm", layerNormPlain);
  library.impl("rms_norm", rmsNormPlain);
  library.impl("simple_rms_norm", simpleRmsNormPlain);
}
TORCH_LIBRARY_IMPL(martlet, Autograd, library) {
  library.impl("layer_norm", layerNorm);
  library.impl("rms_norm", rmsNorm);
  library.impl("simple_rms_norm", simpleRmsNorm);
}

}  // namespace
}  // namespace martlet
