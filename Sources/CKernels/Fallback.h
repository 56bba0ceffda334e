#pragma once
// What the dense operators do where the fused f32 path does not apply: other types and devices, and gradients that
// are themselves differentiated, are computed with plain ATen operators.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>

#include <array>
#include <initializer_list>
#include <vector>

namespace martlet {

inline bool isFusable(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat && tensor.device().is_cpu() && tensor.layout() == at::kStrided &&
         !tensor.is_neg();
}

/// Whether every defined tensor is plain f32 in CPU memory.
inline bool areFusable(std::initializer_list<std::reference_wrapper<const at::Tensor>> tensors) {
  for (const at::Tensor& tensor : tensors)
    if (tensor.defined() && !isFusable(tensor)) return false;
  return true;
}

/// Whether a gradient will be asked for.
inline bool needsGradient(std::initializer_list<std::reference_wrapper<const at::Tensor>> tensors) {
  if (!at::GradMode::is_enabled()) return false;
  for (const at::Tensor& tensor : tensors)
    if (tensor.defined() && tensor.requires_grad()) return true;
  return false;
}

/// The gradients of `reference(inputs)` by ATen's own formulas, as differentiable tensors, undefined where an input
/// needs none. For a backward pass that runs with gradients enabled (create_graph).
template <typename Reference>
std::vector<at::Tensor> differentiableGradients(std::vector<at::Tensor> inputs, const at::Tensor& outputGradient,
                                                const Reference& reference) {
  // One view an input: the same tensor may be given twice, and each use has its own gradient.
  std::vector<at::Tensor> wanted, gradients(inputs.size());
  std::vector<size_t> places;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].defined() || !inputs[i].requires_grad()) continue;
    inputs[i] = inputs[i].view_as(inputs[i]);
    wanted.push_back(inputs[i]);
    places.push_back(i);
  }
  if (wanted.empty()) return gradients;
  const auto found = torch::autograd::grad({reference(inputs)}, wanted, {outputGradient}, /*retain_graph=*/std::nullopt,
                                           /*create_graph=*/true, /*allow_unused=*/true);
  for (size_t i = 0; i < found.size(); ++i) gradients[places[i]] = found[i];
  return gradients;
}

}  // namespace martlet
