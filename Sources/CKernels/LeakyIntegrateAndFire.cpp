// Leaky integrate-and-fire neurons over a sequence (as in spiking LMUFormer, 2402.04882, eqs. 3-5): with decay 1/tau, threshold theta and a hard reset,
//     h_t = V_{t-1} + (x_t - V_{t-1}) / tau,    s_t = [h_t >= theta],    V_t = h_t (1 - s_t).
// Backward puts the surrogate a sigma(a z)(1 - sigma(a z)), z = h_t - theta, in place of the step's derivative and takes no gradient
// through the reset:
//     dh_t = s'_t ds_t + (1 - s_t) dV_t,    dx_t = dh_t / tau,    dV_{t-1} = (1 - 1/tau) dh_t.
//
// Time is sequential, channels are lanes. Forward reads x and writes the spikes and, for backward, h: three passes over memory where
// operators would make some ten a token. float32 and float64.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "Parallel.h"
#include "Vector.h"

namespace martlet {
namespace {

using at::Tensor;

/// Channels of a task: a kilobyte of membranes in float32.
constexpr int64_t kColumns = 256;

MARTLET_INLINE float logistic(float x) { return fastSigmoid(x); }
MARTLET_INLINE double logistic(double x) { return 1.0 / (1.0 + std::exp(-x)); }

/// One token of `columns` neurons; `membranes` (h) may be null. s and V are exact: a comparison and a choice.
#define MARTLET_FIRE(Scalar, VECTORISED)                                                                                                  \
  MARTLET_VECTOR static void fire(int64_t columns, const Scalar* x, Scalar rate, Scalar threshold, Scalar* v, Scalar* spikes,  \
                                  Scalar* membranes) {                                                                         \
    if (membranes) {                                                                                                           \
      MARTLET_SIMD                                                                                                             \
      for (int64_t c = 0; c < columns; ++c) {                                                                                  \
        const Scalar h = v[c] + (x[c] - v[c]) * rate;                                                                          \
        membranes[c] = h;                                                                                                      \
        spikes[c] = h >= threshold ? Scalar(1) : Scalar(0);                                                                    \
        v[c] = h >= threshold ? Scalar(0) : h;                                                                                 \
      }                                                                                                                        \
    } else {                                                                                                                   \
      MARTLET_SIMD                                                                                                             \
      for (int64_t c = 0; c < columns; ++c) {                                                                                  \
        const Scalar h = v[c] + (x[c] - v[c]) * rate;                                                                          \
        spikes[c] = h >= threshold ? Scalar(1) : Scalar(0);                                                                    \
        v[c] = h >= threshold ? Scalar(0) : h;                                                                                 \
      }                                                                                                                        \
    }                                                                                                                          \
  }                                                                                                                            \
  /* dv: in, the gradient of V_t; out, that of V_{t-1}. */                                                                     \
  MARTLET_VECTOR static void fireBackward(int64_t columns, const Scalar* membranes, const Scalar* ds, Scalar rate,             \
                                          Scalar threshold, Scalar steepness, Scalar* dv, Scalar* dx) {                        \
    VECTORISED                                                                                                                 \
    for (int64_t c = 0; c < columns; ++c) {                                                                                    \
      const Scalar z = membranes[c] - threshold;                                                                               \
      const Scalar sigma = logistic(steepness * z);                                                                            \
      const Scalar kept = z >= Scalar(0) ? Scalar(0) : dv[c];                                                                  \
      const Scalar dh = steepness * sigma * (Scalar(1) - sigma) * ds[c] + kept;                                                \
      dx[c] = dh * rate;                                                                                                       \
      dv[c] = dh - dh * rate;                                                                                                  \
    }                                                                                                                          \
  }
MARTLET_FIRE(float, MARTLET_SIMD)
MARTLET_FIRE(double, )
#undef MARTLET_FIRE

void check(const Tensor& x, const Tensor& start, double tau) {
  TORCH_CHECK(x.dim() == 3 && x.device().is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble),
              "lif: x must be float32 or float64 [batch, length, channels] on the CPU, not ", x.scalar_type(), " ", x.sizes(), " on ", x.device());
  TORCH_CHECK(!start.defined() || (start.scalar_type() == x.scalar_type() && start.device().is_cpu() &&
                                   start.sizes() == at::IntArrayRef({x.size(0), x.size(2)})),
              "lif: initial_membrane must be ", x.scalar_type(), " [batch, channels] = [", x.size(0), ", ", x.size(2), "]");
  TORCH_CHECK(tau >= 1, "lif: tau must be at least 1, not ", tau);
}

/// Spikes, last membrane after reset, and h when it is to be kept.
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& input, const Tensor& start, double tau, double threshold, bool keep) {
  check(input, start, tau);
  const Tensor x = input.contiguous(), spikes = at::empty_like(x), membranes = keep ? at::empty_like(x) : Tensor();
  const Tensor last = start.defined() ? start.clone(at::MemoryFormat::Contiguous) : at::zeros({x.size(0), x.size(2)}, x.options());
  const int64_t length = x.size(1), width = x.size(2), blocks = (width + kColumns - 1) / kColumns;
  const auto run = [&](auto zero) {
    using Scalar = decltype(zero);
    const Scalar* from = x.const_data_ptr<Scalar>();
    Scalar *to = spikes.data_ptr<Scalar>(), *v = last.data_ptr<Scalar>(), *h = keep ? membranes.data_ptr<Scalar>() : nullptr;
    parallelTasks(x.size(0) * blocks, [&](int64_t task, int64_t) {
      const int64_t batch = task / blocks, column = task % blocks * kColumns, columns = std::min(kColumns, width - column);
      for (int64_t t = 0; t < length; ++t) {
        const int64_t at = (batch * length + t) * width + column;
        fire(columns, from + at, Scalar(1 / tau), Scalar(threshold), v + batch * width + column, to + at, h ? h + at : nullptr);
      }
    });
  };
  if (x.scalar_type() == at::kFloat) run(0.0f);
  else run(0.0);
  return {spikes, last, membranes};
}

std::tuple<Tensor, Tensor> lif(const Tensor& x, const std::optional<Tensor>& start, double tau, double threshold, double) {
  auto [spikes, last, membranes] = forward(x, start.value_or(Tensor()), tau, threshold, false);
  return {spikes, last};
}

class FireFunction : public torch::autograd::Function<FireFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const Tensor& x, const std::optional<Tensor>& start,
                                                double tau, double threshold, double steepness) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->set_materialize_grads(false);
    auto [spikes, last, membranes] = martlet::forward(x, start.value_or(Tensor()), tau, threshold, true);
    context->save_for_backward({membranes});
    context->saved_data["started"] = start && start->defined();
    context->saved_data["tau"] = tau;
    context->saved_data["threshold"] = threshold;
    context->saved_data["steepness"] = steepness;
    return {spikes, last};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "lif: has no second derivative; call backward without create_graph, or use the reference form");
    const Tensor membranes = context->get_saved_variables()[0];
    const double tau = context->saved_data["tau"].toDouble(), threshold = context->saved_data["threshold"].toDouble();
    const double steepness = context->saved_data["steepness"].toDouble();
    const Tensor ds = gradients[0].defined() ? gradients[0].contiguous() : at::zeros_like(membranes);
    const Tensor dx = at::empty_like(membranes);
    const int64_t length = dx.size(1), width = dx.size(2), blocks = (width + kColumns - 1) / kColumns;
    const Tensor dv = gradients[1].defined() ? gradients[1].clone(at::MemoryFormat::Contiguous) : at::zeros({dx.size(0), width}, dx.options());
    const auto run = [&](auto zero) {
      using Scalar = decltype(zero);
      const Scalar *h = membranes.const_data_ptr<Scalar>(), *from = ds.const_data_ptr<Scalar>();
      Scalar *to = dx.data_ptr<Scalar>(), *carry = dv.data_ptr<Scalar>();
      parallelTasks(dx.size(0) * blocks, [&](int64_t task, int64_t) {
        const int64_t batch = task / blocks, column = task % blocks * kColumns, columns = std::min(kColumns, width - column);
        for (int64_t t = length - 1; t >= 0; --t) {
          const int64_t at = (batch * length + t) * width + column;
          fireBackward(columns, h + at, from + at, Scalar(1 / tau), Scalar(threshold), Scalar(steepness), carry + batch * width + column, to + at);
        }
      });
    };
    if (dx.scalar_type() == at::kFloat) run(0.0f);
    else run(0.0);
    return {dx, context->saved_data["started"].toBool() ? dv : Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> lifAutograd(const Tensor& x, const std::optional<Tensor>& start, double tau, double threshold, double steepness) {
  if (!at::GradMode::is_enabled() || !(x.requires_grad() || (start && start->defined() && start->requires_grad()))) {
    at::AutoDispatchBelowADInplaceOrView below;
    return lif(x, start, tau, threshold, steepness);
  }
  auto results = FireFunction::apply(x, start, tau, threshold, steepness);
  return {results[0], results[1]};
}

}  // namespace
}  // namespace martlet

TORCH_LIBRARY_FRAGMENT(martlet, m) {
  // x [B, L, D] and initial_membrane [B, D] (zeros by default), float32 or float64. Returns the spikes [B, L, D], 0 or 1, and the last membrane
  // potential [B, D] after its reset.
  m.def(
      "lif(Tensor x, Tensor? initial_membrane=None, float tau=2.0, float threshold=1.0, float steepness=4.0) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(martlet, CPU, m) { m.impl("lif", martlet::lif); }

TORCH_LIBRARY_IMPL(martlet, Autograd, m) { m.impl("lif", martlet::lifAutograd); }
