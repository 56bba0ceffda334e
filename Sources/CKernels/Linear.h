#pragma once
// The linear layer's products without autograd, for kernels that contain one.

#include <ATen/ATen.h>

namespace martlet {

/// Up to so many tokens, reading the weight row by row for dot products beats packing it.
constexpr int64_t kFewTokens = 8;

/// x W^T + bias for f32 tensors in CPU memory: x [..., in], weight [out, in], bias [out] or undefined.
at::Tensor linearForward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);
/// dy W for contiguous dy [..., out].
at::Tensor linearInputGradient(const at::Tensor& dy, const at::Tensor& weight);

}  // namespace martlet
