#pragma once
// The linear layer's products without autograd, for kernels that contain one.

#include <ATen/ATen.h>

#include "Parallel.h"
#include "Weights.h"

namespace martlet {

/// Up to so many tokens, reading the weight row by row for dot products beats packing it.
constexpr int64_t kFewTokens = 8;

/// x W^T + bias for f32 tensors in CPU memory: x [..., in], weight [out, in], bias [out] or undefined.
at::Tensor linearForward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);
/// The rows of a contiguous f32 or bf16 matrix; the tensor must outlive it.
Weights denseWeights(const at::Tensor& weight);
/// One product of several with the same x; bias f32 or null, y its first column.
struct Factor {
  Weights weights;
  const float* bias;
  float* y;
};
/// y = x W^T + bias for x [tokens, columns] of W stored in any form, y [tokens, rows] with rows `stride` apart. Up to kFewTokens stream
/// all W once from memory, in one parallel region; more unpack them panel by panel for the block product.
void multiplyWeights(const Factor* factors, size_t count, const float* x, int64_t tokens, int64_t stride);
inline void multiplyWeights(const Weights& weights, const float* x, int64_t tokens, const float* bias, float* y) {
  const Factor factor{weights, bias, y};
  multiplyWeights(&factor, 1, x, tokens, weights.rows);
}
/// `tokens` rows of x as `dotRows` wants them: x itself where the padding allows, else a copy in the calling thread's scratch.
const float* paddedInput(const Weights& weights, const float* x, int64_t tokens);
/// Runs `body(first, last)` over ranges of rows of weights, each some 32 KB at least, at multiples of sixteen rows.
template <typename Body>
void forRowRanges(int64_t rows, int64_t rowBytes, const Body& body) {
  parallelRanges((rows + 15) / 16, (1 << 15) / std::max<int64_t>(16 * rowBytes, 1) + 1,
                 [&](int64_t first, int64_t last, int64_t) { body(16 * first, std::min(rows, 16 * last)); });
}
/// Copies one panel of the transposed weights, [columns, width], for the block product.
void packWeights(const Weights& weights, int64_t panel, float* packed);
/// dy W for contiguous dy [..., out].
at::Tensor linearInputGradient(const at::Tensor& dy, const at::Tensor& weight);

}  // namespace martlet
