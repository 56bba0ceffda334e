// martlet::adamw_step and martlet::grad_norm: one pass over memory for a whole list of parameters.
//
// Bound by bytes: a step reads four floats and writes three a parameter (28 bytes), nothing else can be saved. 5.2 million
// parameters in 20 tensors take 1.45 ms on 2 Zen 5 cores; torch.optim.AdamW 5.15 ms, its fused form 1.61 ms.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "Parallel.h"
#include "Vector.h"

namespace martlet {
namespace {

using at::Tensor;

// Floats a task handles: four arrays of 16 KB are in L1/L2 anyway, small enough to share the list evenly.
constexpr int64_t kPiece = 1 << 14;

struct Step {
  float decay, beta1, oneMinusBeta1, beta2, oneMinusBeta2, stepSize, rootCorrection, epsilon, gradScale;
};

MARTLET_VECTOR void updatePiece(float* __restrict parameter, const float* __restrict gradient, float* __restrict mean,
                                float* __restrict square, int64_t count, const Step& given) {
  const Step step = given;
  MARTLET_SIMD for (int64_t i = 0; i < count; ++i) {
    const float g = gradient[i] * step.gradScale;
    const float m = mean[i] + step.oneMinusBeta1 * (g - mean[i]);
    const float v = square[i] * step.beta2 + step.oneMinusBeta2 * g * g;
    mean[i] = m;
    square[i] = v;
    parameter[i] = parameter[i] * step.decay - step.stepSize * (m / (__builtin_elementwise_sqrt(v) * step.rootCorrection + step.epsilon));
  }
}

MARTLET_VECTOR double sumOfSquares(const float* values, int64_t count) {
  MARTLET_FAST_SUMS
  double total = 0;
  for (int64_t first = 0; first < count; first += 1024) {
    const int64_t last = first + 1024 < count ? first + 1024 : count;
    float sum = 0;
    MARTLET_SIMD for (int64_t i = first; i < last; ++i) sum += values[i] * values[i];
    total += sum;
  }
  return total;
}

/// Pieces of a list of arrays: `piece` -> array and range, by walking the prefix counts.
struct Pieces {
  std::vector<int64_t> firstPiece{0};
  void add(int64_t count) { firstPiece.push_back(firstPiece.back() + (count + kPiece - 1) / kPiece); }
  int64_t count() const { return firstPiece.back(); }
  size_t array(int64_t piece) const {
    return std::upper_bound(firstPiece.begin(), firstPiece.end(), piece) - firstPiece.begin() - 1;
  }
};

/// Runs body(array, begin, end) over all pieces; a list that is small as a whole stays on the calling thread.
template <typename Body>
void overPieces(const Pieces& pieces, const std::vector<int64_t>& counts, int64_t total, const Body& body) {
  const auto run = [&](int64_t piece, int64_t) {
    const size_t array = pieces.array(piece);
    const int64_t begin = (piece - pieces.firstPiece[array]) * kPiece;
    body(array, begin, std::min(begin + kPiece, counts[array]), piece);
  };
  if (total < kPiece)
    for (int64_t piece = 0; piece < pieces.count(); ++piece) run(piece, 0);
  else
    parallelTasks(pieces.count(), run);
}

void checkState(const Tensor& tensor, const Tensor& parameter, const char* name, size_t index) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.device().is_cpu() && tensor.is_contiguous() &&
                  tensor.sizes() == parameter.sizes(),
              "adamw_step: ", name, "[", index, "] must be contiguous f32 in CPU memory of the parameter's shape ",
              parameter.sizes(), ", got ", tensor.scalar_type(), " ", tensor.sizes(), " on ", tensor.device());
}

void adamwStep(at::TensorList parameters, at::TensorList gradients, at::TensorList means, at::TensorList squares, double lr,
               double beta1, double beta2, double epsilon, double weightDecay, int64_t stepNumber, double gradScale) {
  TORCH_CHECK(gradients.size() == parameters.size() && means.size() == parameters.size() && squares.size() == parameters.size(),
              "adamw_step: lists differ in length: ", parameters.size(), " params, ", gradients.size(), " grads, ", means.size(),
              " exp_avg, ", squares.size(), " exp_avg_sq");
  TORCH_CHECK(stepNumber >= 1, "adamw_step: step counts from 1, got ", stepNumber);
  at::AutoDispatchBelowADInplaceOrView below;
  struct Arrays {
    float *parameter, *mean, *square;
    const float* gradient;
  };
  std::vector<Arrays> arrays(parameters.size());
  std::vector<int64_t> counts(parameters.size());
  std::vector<Tensor> kept;
  Pieces pieces;
  int64_t total = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor& parameter = parameters[i];
    checkState(parameter, parameter, "params", i);
    checkState(means[i], parameter, "exp_avg", i);
    checkState(squares[i], parameter, "exp_avg_sq", i);
    Tensor gradient = gradients[i];
    TORCH_CHECK(gradient.scalar_type() == at::kFloat && gradient.device().is_cpu() && gradient.sizes() == parameter.sizes(),
                "adamw_step: grads[", i, "] must be f32 in CPU memory of the parameter's shape ", parameter.sizes(), ", got ",
                gradient.scalar_type(), " ", gradient.sizes());
    if (!gradient.is_contiguous()) kept.push_back(gradient = gradient.contiguous());
    arrays[i] = {parameter.mutable_data_ptr<float>(), means[i].mutable_data_ptr<float>(), squares[i].mutable_data_ptr<float>(),
                 gradient.const_data_ptr<float>()};
    counts[i] = parameter.numel();
    pieces.add(counts[i]);
    total += counts[i];
  }
  const double correction1 = 1 - std::pow(beta1, static_cast<double>(stepNumber));
  const double correction2 = 1 - std::pow(beta2, static_cast<double>(stepNumber));
  const Step step{static_cast<float>(1 - lr * weightDecay),
                  static_cast<float>(beta1),
                  static_cast<float>(1 - beta1),
                  static_cast<float>(beta2),
                  static_cast<float>(1 - beta2),
                  static_cast<float>(lr / correction1),
                  static_cast<float>(1 / std::sqrt(correction2)),
                  static_cast<float>(epsilon),
                  static_cast<float>(gradScale)};
  overPieces(pieces, counts, total, [&](size_t array, int64_t begin, int64_t end, int64_t) {
    const Arrays& at = arrays[array];
    updatePiece(at.parameter + begin, at.gradient + begin, at.mean + begin, at.square + begin, end - begin, step);
  });
  for (at::TensorList list : {parameters, means, squares})
    for (const Tensor& tensor : list)
      if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

Tensor gradNorm(at::TensorList gradients) {
  at::AutoDispatchBelowADInplaceOrView below;
  std::vector<Tensor> arrays;
  std::vector<int64_t> counts;
  Pieces pieces;
  int64_t total = 0;
  for (size_t i = 0; i < gradients.size(); ++i) {
    TORCH_CHECK(gradients[i].scalar_type() == at::kFloat && gradients[i].device().is_cpu(), "grad_norm: grads[", i,
                "] must be f32 in CPU memory, got ", gradients[i].scalar_type(), " on ", gradients[i].device());
    arrays.push_back(gradients[i].contiguous());
    counts.push_back(arrays.back().numel());
    pieces.add(counts.back());
    total += counts.back();
  }
  // One sum a piece, added in order: the norm does not depend on the number of threads.
  std::vector<double> sums(pieces.count());
  overPieces(pieces, counts, total, [&](size_t array, int64_t begin, int64_t end, int64_t piece) {
    sums[piece] = sumOfSquares(arrays[array].const_data_ptr<float>() + begin, end - begin);
  });
  double sum = 0;
  for (double part : sums) sum += part;
  return at::full({}, std::sqrt(sum), at::TensorOptions().dtype(at::kFloat));
}

TORCH_LIBRARY_FRAGMENT(martlet, library) {
  library.def(
      "adamw_step(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avg, Tensor(c!)[] exp_avg_sq, float lr, float beta1, "
      "float beta2, float eps, float weight_decay, int step, float grad_scale=1.0) -> ()");
  library.def("grad_norm(Tensor[] grads) -> Tensor");
}
// Not under CPU: a call with empty lists has no device to dispatch on. The kernels check where the tensors are.
TORCH_LIBRARY_IMPL(martlet, CompositeExplicitAutograd, library) {
  library.impl("adamw_step", adamwStep);
  library.impl("grad_norm", gradNorm);
}
// Parameters are leaves that want gradients; neither the update nor the norm is ever recorded.
TORCH_LIBRARY_IMPL(martlet, Autograd, library) {
  library.impl("adamw_step", adamwStep);
  library.impl("grad_norm", gradNorm);
}

}  // namespace
}  // namespace martlet
