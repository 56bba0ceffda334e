// martlet::quantize_weight, martlet::dequantize_weight and martlet::quantized_linear: weights of 8 or 4 bits, activations f32.
//
// Rounding to nearest with one scale (and, asymmetric, one minimum) for each group of neighbouring inputs of a row, or one for the
// row. Up to 8 tokens the packed weight is streamed once and widened in registers: bound by its bytes. More tokens unpack it into
// the panels of the block product, which costs one pass of each weight for every 512 tokens. One token, 24 weights of 2048 x 768 in
// turn, one core: int4 in groups of 64 (4.25 bits a weight) takes 32 us where F.linear in f32 takes 280-330 and reading the f32
// weight alone 150-180: at 26 GB/s it is bound by the widening (2 operations and a multiply-add a sixteen); int8 50-65 us.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "QuantizedLinear.h"

#include "Fallback.h"
#include "Linear.h"
#include "Parallel.h"

namespace martlet {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Weights quantizedWeights(const char* name, const Tensor& packed, const Tensor& scales, const Tensor& minima, int64_t columns, int64_t bits,
                         int64_t group) {
  TORCH_CHECK(bits == 8 || bits == 4, name, ": bits must be 8 or 4, got ", bits);
  const auto expected = bits == 8 ? at::kChar : at::kByte;
  const int64_t rowBytes = bits == 8 ? columns : paddedDepth(columns) / 2;
  TORCH_CHECK(packed.dim() == 2 && packed.scalar_type() == expected && packed.is_cpu() && packed.is_contiguous() &&
                  packed.size(1) == rowBytes,
              name, ": the packed weight for ", columns, " inputs of ", bits, " bits must be a contiguous CPU ",
              expected == at::kChar ? "int8" : "uint8", " tensor [out, ", rowBytes, "], got ", packed.scalar_type(), " ", packed.sizes());
  const int64_t span = quantizationGroup(name, columns, bits, group), groups = (columns + span - 1) / span;
  const auto check = [&](const Tensor& part, const char* what) {
    TORCH_CHECK(part.dim() == 2 && part.scalar_type() == at::kBFloat16 && part.is_cpu() && part.is_contiguous() &&
                    part.size(0) == packed.size(0) && part.size(1) == groups,
                name, ": ", what, " must be a contiguous CPU bfloat16 tensor [", packed.size(0), ", ", groups, "] (groups of ", span,
                "), got ", part.scalar_type(), " ", part.sizes());
  };
  check(scales, "scales");
  if (minima.defined()) {
    TORCH_CHECK(bits == 4, name, ": 8-bit weights are symmetric and take no minima");
    check(minima, "minima");
  }
  return {bits == 8 ? WeightFormat::int8 : WeightFormat::int4,
          packed.size(0),
          columns,
          packed.const_data_ptr(),
          rowBytes,
          static_cast<const uint16_t*>(scales.const_data_ptr()),
          minima.defined() ? static_cast<const uint16_t*>(minima.const_data_ptr()) : nullptr,
          span,
          groups};
}

int64_t quantizationGroup(const char* name, int64_t columns, int64_t bits, int64_t group) {
  const bool whole = bits == 8 && group == 0;
  TORCH_CHECK(whole || group == 32 || group == 64 || group == 128, name, ": group must be 32, 64 or 128",
              bits == 8 ? ", or 0 for one scale a row" : "", ", got ", group);
  return whole ? std::max<int64_t>(columns, 1) : group;
}

namespace {

/// W [out, in] -> (packed, scales, minima): int8 [out, in] or uint8 [out, ceil(in / 128) 64], bf16 [out, groups] twice; the minima are
/// empty unless `asymmetric`.
std::tuple<Tensor, Tensor, Tensor> quantizeWeight(const Tensor& weight_, int64_t bits, int64_t group, bool asymmetric) {
  TORCH_CHECK(weight_.dim() == 2, "quantize_weight: weight must be [out, in], got ", weight_.sizes());
  TORCH_CHECK(weight_.is_cpu() && weight_.is_floating_point(), "quantize_weight: weight must be a floating-point tensor on the CPU, got ",
              weight_.scalar_type());
  TORCH_CHECK(bits == 8 || bits == 4, "quantize_weight: bits must be 8 or 4, got ", bits);
  TORCH_CHECK(bits == 4 || !asymmetric, "quantize_weight: 8-bit weights are symmetric");
  const int64_t rows = weight_.size(0), columns = weight_.size(1), span = quantizationGroup("quantize_weight", columns, bits, group);
  const int64_t groups = (columns + span - 1) / span, rowBytes = bits == 8 ? columns : paddedDepth(columns) / 2;
  Tensor packed = at::empty({rows, rowBytes}, bits == 8 ? at::kChar : at::kByte), scales = at::empty({rows, groups}, at::kBFloat16);
  Tensor minima = at::empty(asymmetric ? at::IntArrayRef({rows, groups}) : at::IntArrayRef({0}), at::kBFloat16);
  if (rows == 0 || columns == 0) return {packed, scales, minima};
  // A slice of rows at a time, so that converting bf16 or f16 weights needs no second copy of the matrix.
  constexpr int64_t slice = 256;
  for (int64_t first = 0; first < rows; first += slice) {
    const Tensor some = weight_.narrow(0, first, std::min(slice, rows - first)).to(at::kFloat).contiguous();
    TORCH_CHECK(some.isfinite().all().item<bool>(), "quantize_weight: weight has values that are not finite among rows ", first, "..<",
                first + some.size(0));
    const float* from = some.const_data_ptr<float>();
    parallelRanges(some.size(0), 16, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t o = first + r;
        uint16_t* scale = static_cast<uint16_t*>(scales.data_ptr()) + o * groups;
        if (bits == 8)
          quantizeRowInt8(from + r * columns, columns, span, packed.data_ptr<int8_t>() + o * rowBytes, scale);
        else
          quantizeRowInt4(from + r * columns, columns, span, packed.data_ptr<uint8_t>() + o * rowBytes, scale,
                          asymmetric ? static_cast<uint16_t*>(minima.data_ptr()) + o * groups : nullptr);
      }
    });
  }
  return {packed, scales, minima};
}

Tensor given(const std::optional<Tensor>& tensor) { return tensor && tensor->defined() && tensor->numel() ? *tensor : Tensor(); }

Tensor unpacked(const Weights& weights) {
  Tensor result = at::empty({weights.rows, weights.columns}, at::kFloat);
  float* to = result.mutable_data_ptr<float>();
  if (result.numel())
    parallelRanges(weights.rows, 16, [&](int64_t first, int64_t last, int64_t) {
      unpackRows(weights, first, last - first, to + first * weights.columns, weights.columns);
    });
  return result;
}

/// The weight [out, in] in f32 that quantized_linear multiplies by.
Tensor dequantizeWeight(const Tensor& packed, const Tensor& scales, const std::optional<Tensor>& minima, int64_t in, int64_t bits,
                        int64_t group) {
  TORCH_CHECK(in >= 0, "dequantize_weight: in_features must not be negative, got ", in);
  return unpacked(quantizedWeights("dequantize_weight", packed, scales, given(minima), in, bits, group));
}

Tensor forward(const Tensor& x_, const Tensor& packed, const Tensor& scales, const Tensor& minima, const Tensor& bias_, int64_t bits,
               int64_t group) {
  TORCH_CHECK(x_.dim() >= 1 && isFusable(x_), "quantized_linear: x must be a float32 CPU tensor [..., in], got ", x_.scalar_type(), " ",
              x_.sizes());
  const Weights weights = quantizedWeights("quantized_linear", packed, scales, minima, x_.size(-1), bits, group);
  TORCH_CHECK(!bias_.defined() || (bias_.dim() == 1 && bias_.size(0) == weights.rows && bias_.is_cpu() && bias_.is_floating_point()),
              "quantized_linear: bias must be a floating-point CPU tensor [", weights.rows, "], got ",
              bias_.defined() ? bias_.sizes() : at::IntArrayRef{});
  const Tensor x = x_.contiguous(), bias = bias_.defined() ? bias_.to(at::kFloat).contiguous() : bias_;
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = weights.rows;
  Tensor y = at::empty(sizes, x.options());
  multiplyWeights(weights, x.const_data_ptr<float>(), c10::multiply_integers(x.sizes().slice(0, x.dim() - 1)),
                  bias.defined() ? bias.const_data_ptr<float>() : nullptr, y.mutable_data_ptr<float>());
  return y;
}

Tensor quantizedLinear(const Tensor& x, const Tensor& packed, const Tensor& scales, const std::optional<Tensor>& minima,
                       const std::optional<Tensor>& bias, int64_t bits, int64_t group) {
  return forward(x, packed, scales, given(minima), bias.value_or(Tensor()), bits, group);
}

/// Gradients towards x and the bias; the packed weight is constant.
struct QuantizedLinear : torch::autograd::Function<QuantizedLinear> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& packed, const Tensor& scales,
                        const std::optional<Tensor>& minima, const std::optional<Tensor>& bias, int64_t bits, int64_t group) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({packed, scales, given(minima), bias.value_or(Tensor())});
    context->saved_data["bits"] = bits;
    context->saved_data["group"] = group;
    context->saved_data["in"] = x.size(-1);
    return quantizedLinear(x, packed, scales, minima, bias, bits, group);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    variable_list result(7);
    if (!gradients[0].defined()) return result;
    const auto saved = context->get_saved_variables();
    auto& data = context->saved_data;
    const Tensor& dy = gradients[0];
    if (context->needs_input_grad(0)) {
      const Tensor dense = unpacked(quantizedWeights("quantized_linear", saved[0], saved[1], saved[2], data["in"].toInt(),
                                                     data["bits"].toInt(), data["group"].toInt()));
      result[0] = at::GradMode::is_enabled() ? at::matmul(dy, dense) : linearInputGradient(dy.contiguous(), dense);
    }
    const Tensor& bias = saved[3];
    if (bias.defined() && bias.requires_grad()) result[4] = dy.reshape({-1, dy.size(-1)}).sum(0).to(bias.scalar_type());
    return result;
  }
};

Tensor quantizedLinearAutograd(const Tensor& x, const Tensor& packed, const Tensor& scales, const std::optional<Tensor>& minima,
                               const std::optional<Tensor>& bias, int64_t bits, int64_t group) {
  const Tensor offset = bias.value_or(Tensor());
  if (needsGradient({x, offset})) return QuantizedLinear::apply(x, packed, scales, minima, bias, bits, group);
  at::AutoDispatchBelowADInplaceOrView below;
  return quantizedLinear(x, packed, scales, minima, bias, bits, group);
}

/// The same with quantised weights of one form.
Tensor joinedQuantizedLinear(const Tensor& x_, at::TensorList packed, at::TensorList scales, const c10::List<std::optional<Tensor>>& minima,
                             const c10::List<std::optional<Tensor>>& biases, int64_t bits, int64_t group) {
  const size_t count = packed.size();
  TORCH_CHECK(count > 0 && scales.size() == count && minima.size() == count && biases.size() == count,
              "joined_quantized_linear: as many scales, minima and biases as packed weights, at least one; got ", count, ", ",
              scales.size(), ", ", minima.size(), " and ", biases.size());
  TORCH_CHECK(x_.dim() >= 1 && isFusable(x_), "joined_quantized_linear: x must be a float32 CPU tensor [..., in], got ", x_.scalar_type(),
              " ", x_.sizes());
  std::vector<Tensor> offsets;
  bool gradient = needsGradient({x_});
  for (size_t i = 0; i < count; ++i) {
    offsets.push_back(biases.get(i).value_or(Tensor()));
    gradient = gradient || needsGradient({offsets[i]});
  }
  if (gradient) {
    std::vector<Tensor> parts;
    for (size_t i = 0; i < count; ++i)
      parts.push_back(quantizedLinearAutograd(x_, packed[i], scales[i], minima.get(i), biases.get(i), bits, group));
    return at::cat(parts, -1);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  const Tensor x = x_.contiguous();
  std::vector<Factor> factors;
  int64_t total = 0;
  for (size_t i = 0; i < count; ++i) {
    const Weights weights =
        quantizedWeights("joined_quantized_linear", packed[i], scales[i], given(minima.get(i)), x.size(-1), bits, group);
    Tensor& offset = offsets[i];
    TORCH_CHECK(!offset.defined() || (offset.dim() == 1 && offset.size(0) == weights.rows && offset.is_cpu() && offset.is_floating_point()),
                "joined_quantized_linear: bias ", i, " must be a floating-point CPU tensor [", weights.rows, "], got ",
                offset.defined() ? offset.sizes() : at::IntArrayRef{});
    if (offset.defined()) offset = offset.to(at::kFloat).contiguous();
    factors.push_back({weights, offset.defined() ? offset.const_data_ptr<float>() : nullptr, nullptr});
    total += weights.rows;
  }
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = total;
  Tensor y = at::empty(sizes, x.options());
  float* to = y.mutable_data_ptr<float>();
  for (Factor& factor : factors) {
    factor.y = to;
    to += factor.weights.rows;
  }
  if (y.numel()) multiplyWeights(factors.data(), count, x.const_data_ptr<float>(), y.numel() / total, total);
  return y;
}

TORCH_LIBRARY_FRAGMENT(martlet, library) {
  library.def("quantize_weight(Tensor weight, int bits, int group, bool asymmetric=False) -> (Tensor, Tensor, Tensor)");
  library.def("dequantize_weight(Tensor packed, Tensor scales, Tensor? minima, int in_features, int bits, int group) -> Tensor");
  library.def(
      "quantized_linear(Tensor x, Tensor packed, Tensor scales, Tensor? minima, Tensor? bias, int bits, int group) -> Tensor");
  library.def(
      "joined_quantized_linear(Tensor x, Tensor[] packed, Tensor[] scales, Tensor?[] minima, Tensor?[] biases, int bits, int group) -> "
      "Tensor");
}
TORCH_LIBRARY_IMPL(martlet, CompositeImplicitAutograd, library) { library.impl("joined_quantized_linear", joinedQuantizedLinear); }
TORCH_LIBRARY_IMPL(martlet, CPU, library) {
  library.impl("quantize_weight", quantizeWeight);
  library.impl("dequantize_weight", dequantizeWeight);
  library.impl("quantized_linear", quantizedLinear);
}
TORCH_LIBRARY_IMPL(martlet, Autograd, library) { library.impl("quantized_linear", quantizedLinearAutograd); }

}  // namespace
}  // namespace martlet
