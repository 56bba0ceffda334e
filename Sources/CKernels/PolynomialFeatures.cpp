// All monomials of degree at most p of d variables, weighted so that φ(x)·φ(y) = Σ_i a_i (x·y)^i: F = C(d + p, p) features
// (Behrouz et al. 2025, arXiv 2505.23735). A monomial of degree n is one of degree n - 1 times a variable that is not
// after its first, and in lexicographic order those are the end of the list of degree n - 1: one multiplication a feature, and
// two in backward, with sixteen tokens side by side in a vector.

#include "ChunkScan.h"
#include "Product.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <vector>

namespace martlet {
namespace {

using namespace scan;
using at::Tensor;

/// For every monomial but the constant: its first variable and the monomial left without it; and √(n!/Π m_j!) of its exponents.
struct Monomials {
  int64_t width, degree, count;
  std::vector<int32_t> variable, parent;
  std::vector<int64_t> begin;  // of each degree, and the end
  std::vector<float> weight;

  Monomials(int64_t width, int64_t degree) : width(width), degree(degree), variable{-1}, parent{-1}, begin{0, 1}, weight{1} {
    std::vector<int64_t> run{1};           // how often the first variable stands in the monomial
    std::vector<double> multiplicity{1};  // n!/Π m_j!
    for (int64_t n = 1; n <= degree; ++n) {
      const int64_t first = begin[n - 1], last = begin[n];
      for (int64_t i = 0; i < width; ++i)
        for (int64_t m = first; m < last; ++m) {
          if (n > 1 && variable[m] < i) continue;
          const int64_t times = n > 1 && variable[m] == i ? run[m] + 1 : 1;
          variable.push_back(static_cast<int32_t>(i));
          parent.push_back(static_cast<int32_t>(m));
          run.push_back(times);
          multiplicity.push_back(multiplicity[m] * static_cast<double>(n) / static_cast<double>(times));
          weight.push_back(static_cast<float>(std::sqrt(multiplicity.back())));
        }
      begin.push_back(static_cast<int64_t>(variable.size()));
    }
    count = begin.back();
  }
};

/// x [width, 16] to monomials [count, 16], and these times scale into features.
MARTLET_VECTOR static void expand(const float* x, int64_t count, const int32_t* variable, const int32_t* parent, const float* scale, float* monomials, float* features) {
  for (int i = 0; i < 16; ++i) {
    monomials[i] = 1;
    features[i] = scale[0];
  }
  for (int64_t f = 1; f < count; ++f) {
    lanes(monomials + f * 16) = lanes(x + variable[f] * 16) * lanes(monomials + parent[f] * 16);
    lanes(features + f * 16) = scale[f] * lanes(monomials + f * 16);
  }
}

/// From the features' gradient [count, 16]: that of x [width, 16], added; sums [count] takes Σ gradient · monomial · scale.
MARTLET_VECTOR static void contract(
    const float* x, int64_t count, const int32_t* variable, const int32_t* parent, const float* scale, const float* monomials,
    float* gradient, float* dx, float* sums) {
  for (int64_t f = 0; f < count; ++f) {
    Lanes& slope = lanes(gradient + f * 16);
    slope *= scale[f];
    const Lanes product = slope * lanes(monomials + f * 16);
    float sum = 0;
    for (int i = 0; i < 16; ++i) sum += product[i];
    sums[f] = sum;
  }
  for (int64_t f = count - 1; f > 0; --f) {
    const int64_t at = variable[f] * 16, rest = parent[f] * 16;
    lanes(dx + at) += lanes(gradient + f * 16) * lanes(monomials + rest);
    lanes(gradient + rest) += lanes(gradient + f * 16) * lanes(x + at);
  }
}

struct Problem {
  Tensor x;
  Rows rows;
  int64_t heads, length;
  Monomials monomials;
  std::vector<float> scale, coefficients;

  static Tensor four(const Tensor& x) {
    Tensor y = x.size(-1) <= 1 || x.stride(-1) == 1 ? x : x.contiguous();
    while (y.dim() < 4) y = y.unsqueeze(0);
    return y.dim() > 4 ? y.reshape({-1, y.size(-3), y.size(-2), y.size(-1)}) : y;
  }

  Problem(const Tensor& given, const Tensor& a) : x(four(given)), rows(x), heads(x.size(0) * x.size(1)), length(x.size(2)), monomials(x.size(3), a.size(0) - 1) {
    const Tensor values = a.contiguous();
    coefficients.assign(values.const_data_ptr<float>(), values.const_data_ptr<float>() + values.numel());
    scale.resize(monomials.count);
    for (int64_t n = 0; n <= monomials.degree; ++n)
      for (int64_t f = monomials.begin[n]; f < monomials.begin[n + 1]; ++f) scale[f] = std::sqrt(coefficients[n]) * monomials.weight[f];
  }

  /// Runs `body(head, token, rows, worker)` over blocks of 16 tokens.
  template <typename Body>
  void forBlocks(const Body& body) const {
    const int64_t blocks = (length + kBlock - 1) / kBlock;
    parallelRanges(heads * blocks, 16, [&](int64_t begin, int64_t end, int64_t worker) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t token = i % blocks * kBlock;
        body(i / blocks, token, std::min(kBlock, length - token), worker);
      }
    });
  }
};

void check(const Tensor& x, const Tensor& a) {
  TORCH_CHECK(
      x.dim() > 0 && x.scalar_type() == at::kFloat && x.device().is_cpu() && x.layout() == at::kStrided,
      "polynomial_features: x must be a dense float32 CPU tensor of rows, not ", x.scalar_type(), " ", x.sizes(), " on ", x.device());
  TORCH_CHECK(
      a.dim() == 1 && a.size(0) > 0 && a.scalar_type() == at::kFloat && a.device().is_cpu(),
      "polynomial_features: coefficients must be float32 [degree + 1], not ", a.scalar_type(), " ", a.sizes());
}

Tensor polynomialFeatures(const Tensor& x, const Tensor& a) {
  check(x, a);
  const Problem p(x, a);
  const int64_t count = p.monomials.count, width = p.monomials.width;
  auto shape = x.sizes().vec();
  shape.back() = count;
  Tensor out = at::empty(shape, x.options());
  float* to = out.data_ptr<float>();
  std::vector<std::vector<float>> scratch(workerCount());
  p.forBlocks([&](int64_t head, int64_t token, int64_t rows, int64_t worker) {
    auto& memory = scratch[worker];
    if (memory.empty()) memory.resize(16 * (2 * roundedUp(width) + 3 * roundedUp(count)));
    float *tile = memory.data(), *columns = tile + 16 * roundedUp(width), *monomials = columns + 16 * roundedUp(width);
    float *features = monomials + 16 * roundedUp(count), *out = features + 16 * roundedUp(count);
    p.rows.load(head, token, rows, tile, roundedUp(width));
    transposeBlock(tile, roundedUp(width), 16, roundedUp(width), columns, 16);
    expand(columns, count, p.monomials.variable.data(), p.monomials.parent.data(), p.scale.data(), monomials, features);
    float* target = to + (head * p.length + token) * count;
    if (rows == kBlock) return transposeBlock(features, 16, count, 16, target, count);
    transposeBlock(features, 16, count, 16, out, count);
    std::memcpy(target, out, sizeof(float) * rows * count);
  });
  return out;
}

class FeaturesFunction : public torch::autograd::Function<FeaturesFunction> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& a) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x, a});
    return polynomialFeatures(x, a);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    TORCH_CHECK(
        !at::GradMode::is_enabled(),
        "polynomial_features: has no second derivative; call backward without create_graph, or use the reference form");
    const auto kept = context->get_saved_variables();
    const Problem p(kept[0], kept[1]);
    const int64_t count = p.monomials.count, width = p.monomials.width, wide = roundedUp(width);
    const Tensor slopes = gradients[0].contiguous();
    const float* from = slopes.const_data_ptr<float>();
    Tensor dx = emptyHeads(p.x.size(0), p.x.size(1), p.length, width, p.x.options());
    const Rows dxRows(dx);
    std::vector<std::vector<float>> scratch(workerCount());
    std::vector<std::vector<double>> totals(workerCount(), std::vector<double>(p.monomials.degree + 1));
    p.forBlocks([&](int64_t head, int64_t token, int64_t rows, int64_t worker) {
      auto& memory = scratch[worker];
      const int64_t features = roundedUp(count);
      if (memory.empty()) memory.resize(16 * (4 * wide + 4 * features));
      float *tile = memory.data(), *columns = tile + 16 * wide, *slopeColumns = columns + 16 * wide, *back = slopeColumns + 16 * wide;
      float *monomials = back + 16 * wide, *values = monomials + 16 * features, *gradient = values + 16 * features, *sums = gradient + 16 * features;
      p.rows.load(head, token, rows, tile, wide);
      transposeBlock(tile, wide, 16, wide, columns, 16);
      expand(columns, count, p.monomials.variable.data(), p.monomials.parent.data(), p.scale.data(), monomials, values);
      const float* slope = from + (head * p.length + token) * count;
      if (rows < kBlock) {
        std::memset(values, 0, sizeof(float) * 16 * count);
        std::memcpy(values, slope, sizeof(float) * rows * count);
        slope = values;
      }
      transposeBlock(slope, count, 16, count, gradient, 16);
      std::memset(slopeColumns, 0, sizeof(float) * 16 * wide);
      contract(columns, count, p.monomials.variable.data(), p.monomials.parent.data(), p.scale.data(), monomials, gradient, slopeColumns, sums);
      transposeBlock(slopeColumns, 16, wide, 16, back, wide);
      dxRows.store(head, token, rows, back, wide);
      for (int64_t n = 0; n <= p.monomials.degree; ++n)
        for (int64_t f = p.monomials.begin[n]; f < p.monomials.begin[n + 1]; ++f) totals[worker][n] += sums[f];
    });
    Tensor da = at::zeros_like(kept[1]);
    for (int64_t n = 0; n <= p.monomials.degree; ++n) {
      double sum = 0;
      for (const auto& total : totals) sum += total[n];
      // d√a/da = √a / 2a.
      da[n] = sum / (2.0 * p.coefficients[n]);
    }
    return {dx.reshape(kept[0].sizes()), da};
  }
};

Tensor polynomialFeaturesAutograd(const Tensor& x, const Tensor& a) {
  if (at::GradMode::is_enabled() && (x.requires_grad() || a.requires_grad())) return FeaturesFunction::apply(x, a);
  at::AutoDispatchBelowADInplaceOrView below;
  return polynomialFeatures(x, a);
}

}  // namespace
}  // namespace martlet

TORCH_LIBRARY_FRAGMENT(martlet, m) {
  // x [..., d] float32 on the CPU; coefficients [p + 1], positive: a_0 … a_p. Returns [..., C(d + p, p)], contiguous, by degree and
  // lexicographic inside one.
  m.def("polynomial_features(Tensor x, Tensor coefficients) -> Tensor");
}

TORCH_LIBRARY_IMPL(martlet, CPU, m) { m.impl("polynomial_features", martlet::polynomialFeatures); }

TORCH_LIBRARY_IMPL(martlet, Autograd, m) { m.impl("polynomial_features", martlet::polynomialFeaturesAutograd); }
