// Kernelised attention with a relative position bias: features weighted by a Toeplitz matrix (Luo et al. 2021).
//
//     N_i = sum_j c_{j-i} (q_i . k_j) v_j,    D_i = sum_j c_{j-i} (q_i . k_j)
//
// For each pair of a feature a and a value column e (the denominator's is a column of ones) one Toeplitz product
// S = T (k_a v_e) is a convolution, and q_a S is added to column e. Forward: two transforms a pair. Backward four:
//
//     S  = T (k_a v_e)          dq_a += g_e S
//     R  = T' (q_a g_e)         dv_e += k_a R,  dk_a += v_e R
//     dc = the correlation of q_a g_e with k_a v_e, summed over the pairs as a spectrum and transformed back once.
//
// Written with a general transform library the products k_a v_e of all pairs (m (dv + 1) numbers a token, and their
// spectra) are stored; here a pair lives in the cache from its product to its sum, so that memory is O(L (m + dv)). The sixteen
// lanes are phases of one sequence (RightAngle.h): the spectrum of a pair takes 8 bytes a step, 32 KiB at 4k steps, and the
// bias's spectrum, shared by all pairs of a head, is used as it was transformed once.
//
// Six transforms of 5 n/16 log2(n/16) operations by sixteen phases and four products of 8 times 16 a step, for each pair: about 900
// operations a step and pair at 4k, at some 30 GFLOP/s a core with AVX2. Four heads of 64 channels and 16 features, forward and backward
// on one core (Benchmarks/family_kernels.py, Zen 3, CPU time): 29 ms at 512 steps, 55 at 1k, 253 at 4k, where PyTorch's transforms of the
// stored products take 213, 746 and 3738.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <optional>

#include "Parallel.h"
#include "RightAngle.h"

namespace martlet {
namespace {

using Pair = std::tuple<at::Tensor, at::Tensor>;
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

MARTLET_VECTOR static void multiplyRows(float* product, const float* a, const float* b, int64_t count) {
  MARTLET_SIMD
  for (int64_t i = 0; i < count; ++i) product[i] = a[i] * b[i];
}

MARTLET_VECTOR static void addProduct(float* sum, const float* a, const float* b, int64_t count) {
#pragma clang fp contract(fast)
  MARTLET_SIMD
  for (int64_t i = 0; i < count; ++i) sum[i] += a[i] * b[i];
}

/// x <- the rows of F^-1(F(x) kernel) or of F^-1(F(x) conj(kernel)); kernel is a spectrum.
MARTLET_VECTOR static void applyRows(float* x, const float* kernel, const RightAngle& plan) {
  for (int64_t p = 0; p < plan.column.size; ++p) {
    transformForward(x + p * plan.pitch, plan.row);
    multiplyRow(x + p * plan.pitch, kernel + p * plan.pitch, plan.row.size, true, plan.nodes + 2 * p * plan.row.size);
    transformBackward(x + p * plan.pitch, plan.row);
  }
}

/// sum += F(g) conj(F(x)); then x <- rows of F^-1(F(x) kernel) unless not needed, g <- rows of F^-1(F(g) conj(kernel)).
MARTLET_VECTOR static void applyRowsBackward(float* x, float* g, const float* kernel, float* sum, bool needsSum, const RightAngle& plan) {
  const int64_t count = plan.row.size;
  for (int64_t p = 0; p < plan.column.size; ++p) {
    const float* nodes = plan.nodes + 2 * p * count;
    const int64_t at = p * plan.pitch;
    transformForward(x + at, plan.row);
    transformForward(g + at, plan.row);
    if (needsSum) correlateRow(sum + at, g + at, x + at, count, true, true, nodes);
    multiplyRow(x + at, kernel + at, count, true, nodes);
    transformBackward(x + at, plan.row);
    correlateRow(g + at, g + at, kernel + at, count, false, true, nodes);
    transformBackward(g + at, plan.row);
  }
}

MARTLET_VECTOR static void forwardRows(float* kernel, const RightAngle& plan) {
  for (int64_t p = 0; p < plan.column.size; ++p) transformForward(kernel + p * plan.pitch, plan.row);
}

MARTLET_VECTOR static void backwardRows(float* kernel, const RightAngle& plan) {
  for (int64_t p = 0; p < plan.column.size; ++p) transformBackward(kernel + p * plan.pitch, plan.row);
}

/// [length, columns] of one head of one sequence.
struct Matrix {
  float* data;
  int64_t timeStride, columnStride, columns, length;

  Matrix(const at::Tensor& tensor, int64_t batch, int64_t head)
      : data(tensor.data_ptr<float>() + batch * tensor.stride(0) + head * tensor.stride(1)), timeStride(tensor.stride(2)),
        columnStride(tensor.stride(3)), columns(tensor.size(3)), length(tensor.size(2)) {}

  /// Columns begin..<end to rows that are contiguous in time, zero up to a multiple of sixteen steps.
  void pack(int64_t begin, int64_t end, float* rows, int64_t pitch) const {
    for (int64_t c = begin; c < end; c += lanes)
      packRows(data + c * columnStride, columnStride, timeStride, std::min(lanes, end - c), length, rows + (c - begin) * pitch, pitch);
  }
  void unpack(int64_t begin, int64_t end, const float* rows, int64_t pitch) const {
    for (int64_t c = begin; c < end; c += lanes)
      unpackRows(rows + (c - begin) * pitch, pitch, std::min(lanes, end - c), length, data + c * columnStride, columnStride, timeStride);
  }
};

/// How the work is shared out: heads, and where those are fewer than the workers, parts of the value columns.
struct Shares {
  int64_t heads, parts, columns;  // columns: those of the values and one of ones
  Shares(const at::Tensor& value)
      : heads(value.size(0) * value.size(1)), columns(value.size(3) + 1) {
    parts = std::clamp<int64_t>((workerCount() + heads - 1) / std::max<int64_t>(heads, 1), 1, columns);
  }
  int64_t tasks() const { return heads * parts; }
  int64_t begin(int64_t part) const { return columns * part / parts; }
  int64_t most() const { return (columns + parts - 1) / parts; }
};

void checkArguments(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& past,
                    const std::optional<at::Tensor>& future) {
  const auto check = [](const at::Tensor& tensor, const char* name, int64_t dimensions) {
    TORCH_CHECK(tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat && tensor.dim() == dimensions,
                "martlet::toeplitz_attention: ", name, " must be a float32 tensor of ", dimensions, " dimensions on the CPU, got ",
                tensor.scalar_type(), " ", tensor.sizes(), " on ", tensor.device());
  };
  check(query, "query", 4);
  check(key, "key", 4);
  check(value, "value", 4);
  check(past, "past", 2);
  if (future) check(*future, "future", 2);
  TORCH_CHECK(query.sizes() == key.sizes() && query.sizes().slice(0, 3) == value.sizes().slice(0, 3),
              "martlet::toeplitz_attention: query and key must be [batch, heads, length, features] and value [batch, heads, length, "
              "width], got ", query.sizes(), ", ", key.sizes(), " and ", value.sizes());
  const auto fits = [&](const at::Tensor& weights) { return weights.size(0) == query.size(1) && weights.size(1) == query.size(2); };
  TORCH_CHECK(fits(past) && (!future || fits(*future)), "martlet::toeplitz_attention: past and future must be [", query.size(1),
              " (heads), ", query.size(2), " (length)], got ", past.sizes(), future ? " and " : "",
              future ? future->sizes() : at::IntArrayRef());
}

/// The spectrum of one head's weights.
void transformWeights(const at::Tensor& past, const std::optional<at::Tensor>& future, int64_t head, float* row, float* back,
                      float* spectrum, float* column, const RightAngle& plan) {
  const float* behind = future ? future->data_ptr<float>() + head * future->stride(0) : nullptr;
  const Steps steps = kernelSteps(past.data_ptr<float>() + head * past.stride(0), past.stride(1), behind,
                                  future ? future->stride(1) : 0, past.size(1), row, back);
  forwardColumns(steps, plan, spectrum, column);
  forwardRows(spectrum, plan);
}

Pair toeplitzAttention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& past,
                       const std::optional<at::Tensor>& future) {
  checkArguments(query, key, value, past, future);
  const int64_t heads = query.size(1), length = query.size(2), features = query.size(3), width = value.size(3);
  at::Tensor numerator = inLargePages(at::empty(value.sizes(), value.options()));
  at::Tensor denominator = at::empty(value.sizes().slice(0, 3), value.options());
  if (denominator.numel() == 0 || features == 0) return {numerator.zero_(), denominator.zero_()};
  const Shares shares(value);
  const auto plan = rightAngle((length + lanes - 1) / lanes);
  const int64_t steps = (length + lanes - 1) / lanes, padded = steps * lanes, pitch = padded + lanes;
  // Pieces: 0 query rows, 1 key rows, 2 value rows, 3 sums, 4 product and result, 5 spectrum, 6 weights' spectrum, 7 columns,
  // 8 and 9 weights.
  Scratch scratch({features * pitch, features * pitch, shares.most() * pitch, shares.most() * pitch, pitch, plan->floats(), plan->floats(),
                   4 * plan->column.size * point, pitch, pitch});
  scratch.allocate(std::min(workerCount(), shares.tasks()));
  parallelTasks(shares.tasks(), [&](int64_t task, int64_t worker) {
    const int64_t place = task / shares.parts, part = task % shares.parts, batch = place / heads, head = place % heads;
    const int64_t begin = shares.begin(part), end = shares.begin(part + 1);
    const auto at = [&](size_t index) { return scratch.piece(worker, index); };
    Matrix(query, batch, head).pack(0, features, at(0), pitch);
    Matrix(key, batch, head).pack(0, features, at(1), pitch);
    Matrix(value, batch, head).pack(begin, std::min(end, width), at(2), pitch);
    transformWeights(past, future, head, at(8), at(9), at(6), at(7), *plan);
    for (int64_t e = begin; e < end; ++e) {
      const float* v = at(2) + (e - begin) * pitch;
      float* sum = at(3) + (e - begin) * pitch;
      std::fill_n(sum, padded, 0.0f);
      for (int64_t a = 0; a < features; ++a) {
        float* k = at(1) + a * pitch;
        if (e < width) multiplyRows(at(4), k, v, padded);
        forwardColumns(Steps{e < width ? at(4) : k, lanes, steps}, *plan, at(5), at(7));
        applyRows(at(5), at(6), *plan);
        backwardColumns(at(5), at(7), *plan, Steps{at(4), lanes, steps}, Steps{}, nullptr);
        addProduct(sum, at(0) + a * pitch, at(4), padded);
      }
    }
    Matrix(numerator, batch, head).unpack(begin, std::min(end, width), at(3), pitch);
    if (end > width) std::copy_n(at(3) + (width - begin) * pitch, length, denominator.data_ptr<float>() + place * length);
  });
  return {numerator, denominator};
}

Gradients toeplitzAttentionBackward(const at::Tensor& numeratorGradient, const at::Tensor& denominatorGradient, const at::Tensor& query,
                                    const at::Tensor& key, const at::Tensor& value, const at::Tensor& past,
                                    const std::optional<at::Tensor>& future, bool needsWeights) {
  checkArguments(query, key, value, past, future);
  TORCH_CHECK(numeratorGradient.sizes() == value.sizes() && numeratorGradient.scalar_type() == at::kFloat &&
                  denominatorGradient.sizes() == value.sizes().slice(0, 3) && denominatorGradient.scalar_type() == at::kFloat,
              "martlet::toeplitz_attention_backward: gradients must be float32 of the results' shapes ", value.sizes(), " and ",
              value.sizes().slice(0, 3), ", got ", numeratorGradient.sizes(), " and ", denominatorGradient.sizes());
  const int64_t heads = query.size(1), length = query.size(2), features = query.size(3), width = value.size(3);
  const Shares shares(value);
  // A slice for each part of the value columns, summed at the end; the gradient of the weights also for each sequence.
  const auto slices = [&](const at::Tensor& like) {
    auto shape = like.sizes().vec();
    shape.insert(shape.begin(), shares.parts);
    return inLargePages(at::empty(shape, like.options()));
  };
  at::Tensor queryGradient = slices(query), keyGradient = slices(key);
  at::Tensor valueGradient = inLargePages(at::empty(value.sizes(), value.options()));
  at::Tensor pastGradient, futureGradient;
  if (needsWeights) pastGradient = at::zeros({shares.parts * query.size(0), heads, length}, past.options());
  if (needsWeights && future) futureGradient = at::zeros_like(pastGradient);
  const auto total = [&](const at::Tensor& tensor) {
    return !tensor.defined() ? tensor : tensor.size(0) == 1 ? tensor.squeeze(0) : tensor.sum(0);
  };
  if (query.numel() == 0) {
    queryGradient.zero_(), keyGradient.zero_(), valueGradient.zero_();
    return {total(queryGradient), total(keyGradient), valueGradient, total(pastGradient), total(futureGradient)};
  }
  const auto plan = rightAngle((length + lanes - 1) / lanes);
  const int64_t steps = (length + lanes - 1) / lanes, padded = steps * lanes, pitch = padded + lanes;
  const at::Tensor slopes = denominatorGradient.contiguous();
  // Pieces: 0 query, 1 key, 2 value, 3 gradient rows, 4 dq, 5 dk, 6 dv, 7 and 8 products and results, 9 and 10 spectra, 11 weights'
  // spectrum, 12 sum of products, 13 columns, 14 and 15 weights.
  Scratch scratch({features * pitch, features * pitch, pitch, pitch, features * pitch, features * pitch, shares.most() * pitch, pitch, pitch,
                   plan->floats(), plan->floats(), plan->floats(), needsWeights ? plan->floats() : 0, 4 * plan->column.size * point, pitch,
                   pitch});
  scratch.allocate(std::min(workerCount(), shares.tasks()));
  parallelTasks(shares.tasks(), [&](int64_t task, int64_t worker) {
    const int64_t place = task / shares.parts, part = task % shares.parts, batch = place / heads, head = place % heads;
    const int64_t begin = shares.begin(part), end = shares.begin(part + 1);
    const auto at = [&](size_t index) { return scratch.piece(worker, index); };
    Matrix(query, batch, head).pack(0, features, at(0), pitch);
    Matrix(key, batch, head).pack(0, features, at(1), pitch);
    transformWeights(past, future, head, at(14), at(15), at(11), at(13), *plan);
    std::fill_n(at(4), features * pitch, 0.0f);
    std::fill_n(at(5), features * pitch, 0.0f);
    if (needsWeights) std::fill_n(at(12), plan->floats(), 0.0f);
    float* g = at(3);
    for (int64_t e = begin; e < end; ++e) {
      const bool isOnes = e == width;
      float *v = at(2), *dv = at(6) + (e - begin) * pitch;
      if (isOnes) {
        std::fill_n(g, padded, 0.0f);
        std::copy_n(slopes.data_ptr<float>() + place * length, length, g);
      } else {
        Matrix(value, batch, head).pack(e, e + 1, v, pitch);
        Matrix(numeratorGradient, batch, head).pack(e, e + 1, g, pitch);
        std::fill_n(dv, padded, 0.0f);
      }
      for (int64_t a = 0; a < features; ++a) {
        float *k = at(1) + a * pitch, *q = at(0) + a * pitch;
        if (!isOnes) multiplyRows(at(7), k, v, padded);
        multiplyRows(at(8), q, g, padded);
        forwardColumns(Steps{isOnes ? k : at(7), lanes, steps}, *plan, at(9), at(13));
        forwardColumns(Steps{at(8), lanes, steps}, *plan, at(10), at(13));
        applyRowsBackward(at(9), at(10), at(11), at(12), needsWeights, *plan);
        backwardColumns(at(9), at(13), *plan, Steps{at(7), lanes, steps}, Steps{}, nullptr);
        addProduct(at(4) + a * pitch, g, at(7), padded);
        backwardColumns(at(10), at(13), *plan, Steps{at(8), lanes, steps}, Steps{}, nullptr);
        float* dk = at(5) + a * pitch;
        if (isOnes) {
          for (int64_t l = 0; l < padded; ++l) dk[l] += at(8)[l];
        } else {
          addProduct(dv, k, at(8), padded);
          addProduct(dk, v, at(8), padded);
        }
      }
    }
    Matrix(queryGradient[part], batch, head).unpack(0, features, at(4), pitch);
    Matrix(keyGradient[part], batch, head).unpack(0, features, at(5), pitch);
    Matrix(valueGradient, batch, head).unpack(begin, std::min(end, width), at(6), pitch);
    if (!needsWeights) return;
    backwardRows(at(12), *plan);
    backwardColumns(at(12), at(13), *plan, kernelTarget(length, at(14), future ? at(15) : nullptr), Steps{}, nullptr);
    const int64_t row = ((part * query.size(0) + batch) * heads + head) * length;
    copyTaps(length, at(14), at(15), pastGradient.data_ptr<float>() + row, future ? futureGradient.data_ptr<float>() + row : nullptr);
  });
  return {total(queryGradient), total(keyGradient), valueGradient, total(pastGradient), total(futureGradient)};
}

// MARK: Registration

struct Attention : torch::autograd::Function<Attention> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const at::Tensor& query, const at::Tensor& key,
                                                const at::Tensor& value, const at::Tensor& past, const std::optional<at::Tensor>& future) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({query, key, value, past, future.value_or(at::Tensor())});
    static const auto operation =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("martlet::toeplitz_attention", "")
            .typed<Pair(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&)>();
    auto [numerator, denominator] = operation.call(query, key, value, past, future);
    return {numerator, denominator};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "martlet::toeplitz_attention has no second derivative; use the reference form where create_graph is needed");
    const auto saved = context->get_saved_variables();
    if (!gradients[0].defined() && !gradients[1].defined()) return {{}, {}, {}, {}, {}};
    const at::Tensor& value = saved[2];
    const at::Tensor ofNumerator = gradients[0].defined() ? gradients[0] : at::zeros_like(value);
    const at::Tensor ofDenominator = gradients[1].defined() ? gradients[1] : at::zeros(value.sizes().slice(0, 3), value.options());
    const auto future = saved[4].defined() ? std::optional<at::Tensor>(saved[4]) : std::nullopt;
    static const auto operation =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("martlet::toeplitz_attention_backward", "")
            .typed<Gradients(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                             const at::Tensor&, const std::optional<at::Tensor>&, bool)>();
    const bool needsWeights = context->needs_input_grad(3) || (future && context->needs_input_grad(4));
    auto [query, key, ofValue, past, ahead] =
        operation.call(ofNumerator, ofDenominator, saved[0], saved[1], value, saved[3], future, needsWeights);
    return {query, key, ofValue, past, ahead};
  }
};

Pair toeplitzAttentionAutograd(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& past,
                               const std::optional<at::Tensor>& future) {
  const auto results = Attention::apply(query, key, value, past, future);
  return {results[0], results[1]};
}

TORCH_LIBRARY_FRAGMENT(martlet, library) {
  library.def(
      "toeplitz_attention(Tensor query, Tensor key, Tensor value, Tensor past, Tensor? future=None) -> (Tensor numerator, Tensor "
      "denominator)");
  library.def(
      "toeplitz_attention_backward(Tensor numerator_gradient, Tensor denominator_gradient, Tensor query, Tensor key, Tensor value, "
      "Tensor past, Tensor? future, bool needs_weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(martlet, CPU, library) {
  library.impl("toeplitz_attention", &toeplitzAttention);
  library.impl("toeplitz_attention_backward", &toeplitzAttentionBackward);
}

TORCH_LIBRARY_IMPL(martlet, Autograd, library) { library.impl("toeplitz_attention", &toeplitzAttentionAutograd); }

}  // namespace
}  // namespace martlet
