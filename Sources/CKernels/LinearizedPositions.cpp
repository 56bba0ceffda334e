// martlet::linearized_positions: LRPE (Qin et al. 2022, arXiv 2210.10340) of queries or keys in one pass over memory,
//     y_t = R(t θ) (I - 2 u uᵀ) φ(x_t),
// with a fixed unit vector u, pairs of neighbouring channels (2i, 2i+1) turned by t θ_i with learned θ, and φ = identity, elu or 1 + elu.
//
// Both orthogonal maps act on one head of one token, so that nothing but x is read and y written: 8 bytes an element, and 16 backward
// (x, y, dy, dx); the operators' form makes some fifteen passes. The cosines and sines of a token serve all its heads and rows:
// angles are reduced in double, so that far positions keep their phase, and d/2 of them cost as much as two heads.
// dθ_i = Σ_t t Σ (dy_{2i+1} y_{2i} - dy_{2i} y_{2i+1}) is summed in double: its terms grow with the position.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <vector>

#include "Lanes.h"
#include "Parallel.h"
#include "Vector.h"

namespace martlet {
namespace {

using at::Tensor;
using lanes::Floats;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

enum class Feature { identity, elu, onePlusElu };

constexpr int64_t kGrain = 1 << 14;  // elements of a task

/// cos and sin of t θ_i, each twice, the first sine of a pair negative: y = x C + swapped(x) S.
MARTLET_VECTOR static void angles(const double* theta, double t, int64_t pairs, float* cosine, float* sine) {
  MARTLET_SIMD
  for (int64_t i = 0; i < pairs; ++i) {
    const double angle = t * theta[i];
    const double quarters = __builtin_rint(angle * 0.63661977236758134308);
    const float r = static_cast<float>(angle - quarters * 1.57079632679489661923);
    const int32_t quadrant = static_cast<int32_t>(quarters);
    const float z = r * r;
    // Cephes' minimax polynomials on |r| <= pi/4.
    const float s = r + r * z * (-1.6666654611e-1f + z * (8.3321608736e-3f - z * 1.9515295891e-4f));
    const float c = 1.0f - 0.5f * z + z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
    const float first = (quadrant & 1) ? s : c, second = (quadrant & 1) ? c : s;
    const float cosineHere = ((quadrant + 1) & 2) ? -first : first, sineHere = (quadrant & 2) ? -second : second;
    cosine[2 * i] = cosineHere;
    cosine[2 * i + 1] = cosineHere;
    sine[2 * i] = -sineHere;
    sine[2 * i + 1] = sineHere;
  }
}

template <Feature feature>
MARTLET_INLINE float featureOf(float x) {
  if constexpr (feature == Feature::identity) return x;
  const float negative = fastExp(x < 0 ? x : 0) - 1.0f;
  const float y = x > 0 ? x : negative;
  return feature == Feature::onePlusElu ? y + 1.0f : y;
}

template <Feature feature>
MARTLET_INLINE float slopeOf(float x) {
  if constexpr (feature == Feature::identity) return 1.0f;
  return x > 0 ? 1.0f : fastExp(x < 0 ? x : 0);
}

/// to = from C + swapped(from) S (sign 1), or turned back (sign -1). `from` and `to` may be the same.
MARTLET_INLINE void turn(const float* from, const float* cosine, const float* sine, float sign, int64_t width, float* to) {
  int64_t c = 0;
  for (; c + 16 <= width; c += 16) {
    Floats x, cosines, sines;
    lanes::load(x, from + c);
    lanes::load(cosines, cosine + c);
    lanes::load(sines, sine + c);
    const Floats swapped = __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    x = x * cosines + swapped * sines * sign;
    lanes::store(to + c, x);
  }
  for (; c < width; c += 2) {
    const float a = from[c], b = from[c + 1];
    to[c] = a * cosine[c] + b * sine[c] * sign;
    to[c + 1] = b * cosine[c + 1] + a * sine[c + 1] * sign;
  }
}

template <Feature feature>
MARTLET_INLINE void forwardHeads(const float* x, int64_t step, int64_t heads, int64_t width, const float* u, const float* cosine,
                                 const float* sine, float* y, int64_t outStep) {
  MARTLET_FAST_SUMS
  for (int64_t h = 0; h < heads; ++h, x += step, y += outStep) {
    float along = 0;
    MARTLET_SIMD
    for (int64_t c = 0; c < width; ++c) {
      y[c] = featureOf<feature>(x[c]);
      along += u[c] * y[c];
    }
    along *= 2;
    MARTLET_SIMD
    for (int64_t c = 0; c < width; ++c) y[c] -= along * u[c];
    turn(y, cosine, sine, 1, width, y);
  }
}

MARTLET_VECTOR static void forwardToken(Feature feature, const float* x, int64_t step, int64_t heads, int64_t width, const float* u,
                                        const float* cosine, const float* sine, float* y, int64_t outStep) {
  switch (feature) {
    case Feature::identity: return forwardHeads<Feature::identity>(x, step, heads, width, u, cosine, sine, y, outStep);
    case Feature::elu: return forwardHeads<Feature::elu>(x, step, heads, width, u, cosine, sine, y, outStep);
    case Feature::onePlusElu: return forwardHeads<Feature::onePlusElu>(x, step, heads, width, u, cosine, sine, y, outStep);
  }
}

/// dx of the heads of a token; `turns` [width] += dy swapped(y), of which dα_i is a difference of neighbours.
template <Feature feature>
MARTLET_INLINE void backwardHeads(const float* x, int64_t step, const float* y, int64_t outStep, const float* dy, int64_t gradientStep,
                                  int64_t heads, int64_t width, const float* u, const float* cosine, const float* sine, float* turns,
                                  float* dx, int64_t inputGradientStep) {
  MARTLET_FAST_SUMS
  for (int64_t h = 0; h < heads; ++h, x += step, y += outStep, dy += gradientStep, dx += inputGradientStep) {
    int64_t c = 0;
    for (; c + 16 <= width; c += 16) {
      Floats g, other, sum;
      lanes::load(g, dy + c);
      lanes::load(other, y + c);
      lanes::load(sum, turns + c);
      sum += g * __builtin_shufflevector(other, other, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
      lanes::store(turns + c, sum);
    }
    for (; c < width; c += 2) {
      turns[c] += dy[c] * y[c + 1];
      turns[c + 1] += dy[c + 1] * y[c];
    }
    turn(dy, cosine, sine, -1, width, dx);
    float along = 0;
    MARTLET_SIMD
    for (int64_t i = 0; i < width; ++i) along += u[i] * dx[i];
    along *= 2;
    MARTLET_SIMD
    for (int64_t i = 0; i < width; ++i) dx[i] = (dx[i] - along * u[i]) * slopeOf<feature>(x[i]);
  }
}

MARTLET_VECTOR static void backwardToken(Feature feature, const float* x, int64_t step, const float* y, int64_t outStep, const float* dy,
                                         int64_t gradientStep, int64_t heads, int64_t width, const float* u, const float* cosine,
                                         const float* sine, float* turns, float* dx, int64_t inputGradientStep) {
#define MARTLET_CASE(F) \
  case F: return backwardHeads<F>(x, step, y, outStep, dy, gradientStep, heads, width, u, cosine, sine, turns, dx, inputGradientStep)
  switch (feature) {
    MARTLET_CASE(Feature::identity);
    MARTLET_CASE(Feature::elu);
    MARTLET_CASE(Feature::onePlusElu);
  }
#undef MARTLET_CASE
}

/// [B, H, L, d] with a last stride of 1.
struct View {
  float* data;
  int64_t batchStep, headStep, tokenStep;
  explicit View(const Tensor& x)
      : data(const_cast<float*>(x.const_data_ptr<float>())), batchStep(x.stride(0)), headStep(x.stride(1)), tokenStep(x.stride(2)) {}
  float* at(int64_t row, int64_t token) const { return data + row * batchStep + token * tokenStep; }
};

Tensor withUnitStride(const Tensor& x) { return x.size(3) <= 1 || x.stride(3) == 1 ? x : x.contiguous(); }

Tensor emptyHeads(const Tensor& like) {
  return at::empty({like.size(0), like.size(2), like.size(1), like.size(3)}, like.options()).transpose(1, 2);
}

Feature featureNamed(c10::string_view name) {
  if (name == "identity") return Feature::identity;
  if (name == "elu") return Feature::elu;
  TORCH_CHECK(name == "one_plus_elu", "linearized_positions: feature must be identity, elu or one_plus_elu, not ", name);
  return Feature::onePlusElu;
}

void check(const Tensor& x, const Tensor& direction, const Tensor& theta, at::IntArrayRef starts) {
  const char* name = "linearized_positions: ";
  TORCH_CHECK(x.dim() == 4 && x.size(3) % 2 == 0, name, "x must be [batch, heads, length, an even width], not ", x.sizes());
  TORCH_CHECK(direction.dim() == 1 && direction.size(0) == x.size(3), name, "direction must be [", x.size(3), "], not ", direction.sizes());
  TORCH_CHECK(theta.dim() == 1 && theta.size(0) == x.size(3) / 2, name, "theta must be [", x.size(3) / 2, "], not ", theta.sizes());
  TORCH_CHECK(starts.size() == 1 || static_cast<int64_t>(starts.size()) == x.size(0), name, "one first position, or one for each of ", x.size(0),
              " rows, not ", starts.size());
  for (const Tensor& t : {x, direction, theta})
    TORCH_CHECK(t.scalar_type() == at::kFloat && t.device().is_cpu(), name, "tensors must be float32 on the CPU, not ", t.scalar_type(), " on ",
                t.device());
}

std::vector<double> doubles(const Tensor& theta) {
  const Tensor plain = theta.contiguous();
  const float* values = plain.const_data_ptr<float>();
  return std::vector<double>(values, values + plain.numel());
}

/// Calls `body(row, token, position)` for the tokens of a range, after making the angles of that position.
template <typename Body>
void forTokens(int64_t begin, int64_t end, int64_t batch, at::IntArrayRef starts, const std::vector<double>& theta, float* cosine, float* sine,
               const Body& body) {
  const int64_t pairs = static_cast<int64_t>(theta.size());
  for (int64_t t = begin; t < end; ++t) {
    if (starts.size() == 1) angles(theta.data(), static_cast<double>(starts[0] + t), pairs, cosine, sine);
    for (int64_t row = 0; row < batch; ++row) {
      if (starts.size() > 1) angles(theta.data(), static_cast<double>(starts[row] + t), pairs, cosine, sine);
      body(row, t, starts[starts.size() > 1 ? row : 0] + t);
    }
  }
}

int64_t pieces(const Tensor& x) { return std::clamp<int64_t>(x.numel() / kGrain, 1, 4 * workerCount()); }

Tensor run(const Tensor& x_, c10::string_view name, const Tensor& direction_, const Tensor& theta, at::IntArrayRef starts) {
  check(x_, direction_, theta, starts);
  const Feature feature = featureNamed(name);
  const Tensor x = withUnitStride(x_), direction = direction_.contiguous();
  const int64_t batch = x.size(0), heads = x.size(1), length = x.size(2), width = x.size(3), count = std::min(pieces(x), length);
  Tensor y = emptyHeads(x);
  const View from(x), to(y);
  const auto frequencies = doubles(theta);
  const float* u = direction.const_data_ptr<float>();
  parallelTasks(count, [&](int64_t piece, int64_t) {
    std::vector<float> table(2 * width);
    forTokens(length * piece / count, length * (piece + 1) / count, batch, starts, frequencies, table.data(), table.data() + width,
              [&](int64_t row, int64_t t, int64_t) {
                forwardToken(feature, from.at(row, t), from.headStep, heads, width, u, table.data(), table.data() + width, to.at(row, t),
                             to.headStep);
              });
  });
  return y;
}

std::tuple<Tensor, Tensor> runBackward(const Tensor& x_, const Tensor& y, const Tensor& gradient_, c10::string_view name,
                                       const Tensor& direction_, const Tensor& theta, at::IntArrayRef starts) {
  const Feature feature = featureNamed(name);
  const Tensor x = withUnitStride(x_), gradient = withUnitStride(gradient_), direction = direction_.contiguous();
  const int64_t batch = x.size(0), heads = x.size(1), length = x.size(2), width = x.size(3), count = std::min(pieces(x), length);
  Tensor inputGradient = emptyHeads(x), angleGradient = at::zeros_like(theta, at::MemoryFormat::Contiguous);
  const View from(x), out(y), upstream(gradient), to(inputGradient);
  const auto frequencies = doubles(theta);
  const float* u = direction.const_data_ptr<float>();
  std::vector<double> sums(count * width / 2, 0.0);
  parallelTasks(count, [&](int64_t piece, int64_t) {
    std::vector<float> table(2 * width), turns(width);
    double* sum = sums.data() + piece * width / 2;
    forTokens(length * piece / count, length * (piece + 1) / count, batch, starts, frequencies, table.data(), table.data() + width,
              [&](int64_t row, int64_t t, int64_t position) {
                std::fill(turns.begin(), turns.end(), 0.0f);
                backwardToken(feature, from.at(row, t), from.headStep, out.at(row, t), out.headStep, upstream.at(row, t), upstream.headStep,
                              heads, width, u, table.data(), table.data() + width, turns.data(), to.at(row, t), to.headStep);
                for (int64_t i = 0; i < width / 2; ++i)
                  sum[i] += static_cast<double>(position) * (static_cast<double>(turns[2 * i + 1]) - turns[2 * i]);
              });
  });
  float* total = angleGradient.mutable_data_ptr<float>();
  for (int64_t i = 0; i < width / 2; ++i) {
    double sum = 0;
    for (int64_t piece = 0; piece < count; ++piece) sum += sums[piece * width / 2 + i];
    total[i] = static_cast<float>(sum);
  }
  return {inputGradient, angleGradient};
}

struct PositionsFunction : torch::autograd::Function<PositionsFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, std::string feature, const Tensor& direction, const Tensor& theta,
                        std::vector<int64_t> starts) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor y = run(x, feature, direction, theta, starts);
    context->save_for_backward({x, y, direction, theta});
    context->saved_data["feature"] = feature;
    context->saved_data["starts"] = starts;
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "linearized_positions: has no second derivative; call backward without create_graph, or use the reference form");
    const auto saved = context->get_saved_variables();
    const auto starts = context->saved_data["starts"].toIntVector();
    const auto [dx, dtheta] =
        runBackward(saved[0], saved[1], gradients[0], context->saved_data["feature"].toStringRef(), saved[2], saved[3], starts);
    return {dx, Tensor(), Tensor(), dtheta, Tensor()};
  }
};

Tensor linearizedPositions(const Tensor& x, c10::string_view feature, const Tensor& direction, const Tensor& theta, at::IntArrayRef starts) {
  return run(x, feature, direction, theta, starts);
}

Tensor linearizedPositionsAutograd(const Tensor& x, c10::string_view feature, const Tensor& direction, const Tensor& theta,
                                   at::IntArrayRef starts) {
  if (!at::GradMode::is_enabled() || !(x.requires_grad() || theta.requires_grad())) {
    at::AutoDispatchBelowADInplaceOrView below;
    return run(x, feature, direction, theta, starts);
  }
  TORCH_CHECK(!direction.requires_grad(), "linearized_positions: the direction is fixed and has no gradient; use the reference form");
  return PositionsFunction::apply(x, std::string(feature), direction, theta, starts.vec());
}

}  // namespace
}  // namespace martlet

TORCH_LIBRARY_FRAGMENT(martlet, m) {
  // x [B, H, L, d], d even, any strides but a last one of 1 (otherwise copied); feature: identity, elu or one_plus_elu; direction [d] of
  // length 1; theta [d/2], radians a position; starts: the first position, one for all rows or one each. Returns [B, H, L, d] with
  // y.transpose(1, 2) contiguous. Float32 on the CPU; gradients for x and theta.
  m.def("linearized_positions(Tensor x, str feature, Tensor direction, Tensor theta, int[] starts) -> Tensor");
}

TORCH_LIBRARY_IMPL(martlet, CPU, m) { m.impl("linearized_positions", martlet::linearizedPositions); }
TORCH_LIBRARY_IMPL(martlet, Autograd, m) { m.impl("linearized_positions", martlet::linearizedPositionsAutograd); }
