#pragma once
// Quantised weights as operators take them, for the kernels that contain such a product.

#include <ATen/ATen.h>

#include "Weights.h"

namespace martlet {

/// The weights in packed [out, bytes], scales and minima (undefined: symmetric), checked against `columns` inputs; `name` is the
/// operator's for errors. The tensors must outlive it.
Weights quantizedWeights(const char* name, const at::Tensor& packed, const at::Tensor& scales, const at::Tensor& minima, int64_t columns,
                         int64_t bits, int64_t group);

/// The columns that share a scale: `group`, checked, or all where it is 0.
int64_t quantizationGroup(const char* name, int64_t columns, int64_t bits, int64_t group);

}  // namespace martlet
