// Depthwise cross-correlation of tokens that stand on a grid, row by row, as they lie in memory, [B, L, D]:
//
//     y[r, c, m] = b_m + Σ_ij w[m mod C, i, j] x[r + i − k/2, c + j − k/2, m],
//
// zero outside the grid, k odd; with C < D channels of weights, D/C heads share them. What attention adds to its output where
// it knows no positions, and what vision transformers put between their linear maps.
//
// A task packs a strip of the grid, 32 channels wide and with its border, into a buffer that stays in L2: rows of a projection
// lie 4 KB apart and would share the cache's sets, and the border's zeros spare every comparison. It then holds eight outputs of
// sixteen channels in registers (forward, and the input's gradient with the kernel turned around) or all k² sums of a channel
// group (the weights' gradient). Arithmetic: 2 k² flops a token and channel forward, 4 k² backward; memory 8 bytes forward and
// 16 backward plus the border.
//
// Measured with Benchmarks/family_kernels.py on one core (Zen 3 with AVX2, 4096 tokens of 256 channels in rows of 1024, 5×5, CPU time):
// forward 2.6 ms, forward + backward 9.5, where PyTorch's conv2d takes 8.0 and 44 on [B, D, H, W].

#include "Lanes.h"
#include "Parallel.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <vector>

namespace martlet {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using lanes::Floats;

constexpr int64_t kChannels = 32, kLanes = lanes::width, kRun = 8;
constexpr int64_t kColumns = 128;

/// outputs[c, 0..<16] for a run of `count` columns: bias + Σ_ij weight[i, j] packed[i, c + j].
MARTLET_VECTOR static void correlate(
    const float* packed, int64_t rowStride, const float* weight, const float* bias, int64_t kernel, int64_t count, float* out) {
#pragma clang fp contract(fast)
  int64_t c = 0;
  for (; c + kRun <= count; c += kRun) {
    Floats sum[kRun], first, w, x;
    lanes::load(first, bias);
#pragma clang loop unroll(full)
    for (int u = 0; u < kRun; ++u) sum[u] = first;
    for (int64_t i = 0; i < kernel; ++i)
      for (int64_t j = 0; j < kernel; ++j) {
        lanes::load(w, weight + (i * kernel + j) * kChannels);
        const float* from = packed + i * rowStride + (c + j) * kChannels;
#pragma clang loop unroll(full)
        for (int u = 0; u < kRun; ++u) {
          lanes::load(x, from + u * kChannels);
          sum[u] += w * x;
        }
      }
#pragma clang loop unroll(full)
    for (int u = 0; u < kRun; ++u) lanes::store(out + (c + u) * kChannels, sum[u]);
  }
  for (; c < count; ++c) {
    Floats sum, w, x;
    lanes::load(sum, bias);
    for (int64_t i = 0; i < kernel; ++i)
      for (int64_t j = 0; j < kernel; ++j) {
        lanes::load(w, weight + (i * kernel + j) * kChannels);
        lanes::load(x, packed + i * rowStride + (c + j) * kChannels);
        sum += w * x;
      }
    lanes::store(out + c * kChannels, sum);
  }
}

/// gradient[i, j] += Σ_c upstream[c] packed[i, c + j] for all i and j, sixteen channels.
template <int K>
MARTLET_INLINE void weightGradientOf(const float* packed, int64_t rowStride, const float* upstream, int64_t count, float* gradient) {
#pragma clang fp contract(fast)
  Floats sum[K * K], up, x;
#pragma clang loop unroll(full)
  for (int i = 0; i < K * K; ++i) lanes::load(sum[i], gradient + i * kChannels);
  for (int64_t c = 0; c < count; ++c) {
    lanes::load(up, upstream + c * kChannels);
#pragma clang loop unroll(full)
    for (int i = 0; i < K; ++i)
#pragma clang loop unroll(full)
      for (int j = 0; j < K; ++j) {
        lanes::load(x, packed + i * rowStride + (c + j) * kChannels);
        sum[i * K + j] += up * x;
      }
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < K * K; ++i) lanes::store(gradient + i * kChannels, sum[i]);
}

MARTLET_VECTOR static void weightGradient3(const float* packed, int64_t rowStride, const float* upstream, int64_t count, float* gradient) {
  weightGradientOf<3>(packed, rowStride, upstream, count, gradient);
}
MARTLET_VECTOR static void weightGradient5(const float* packed, int64_t rowStride, const float* upstream, int64_t count, float* gradient) {
  weightGradientOf<5>(packed, rowStride, upstream, count, gradient);
}
MARTLET_VECTOR static void weightGradient(
    const float* packed, int64_t rowStride, const float* upstream, int64_t kernel, int64_t count, float* gradient) {
#pragma clang fp contract(fast)
  for (int64_t i = 0; i < kernel; ++i)
    for (int64_t j = 0; j < kernel; ++j) {
      Floats sum, up, x;
      lanes::load(sum, gradient + (i * kernel + j) * kChannels);
      for (int64_t c = 0; c < count; ++c) {
        lanes::load(up, upstream + c * kChannels);
        lanes::load(x, packed + i * rowStride + (c + j) * kChannels);
        sum += up * x;
      }
      lanes::store(gradient + (i * kernel + j) * kChannels, sum);
    }
}

/// How a grid is cut into strips.
struct Grid {
  int64_t batch, length, width, columns, kernel, rows, reach, groups, tileColumns, tilesAcross, stripRows, strips;

  Grid(int64_t batch, int64_t length, int64_t width, int64_t columns, int64_t kernel)
      : batch(batch), length(length), width(width), columns(std::min(columns, std::max<int64_t>(length, 1))), kernel(kernel) {
    rows = (length + this->columns - 1) / this->columns;
    reach = kernel / 2;
    groups = (width + kChannels - 1) / kChannels;
    tilesAcross = (this->columns + kColumns - 1) / kColumns;
    tileColumns = (this->columns + tilesAcross - 1) / tilesAcross;
    stripRows = std::clamp<int64_t>(65536 / ((tileColumns + 2 * reach) * kChannels) - 2 * reach, 4, 32);
    strips = (rows + stripRows - 1) / stripRows;
  }

  int64_t tasks() const { return batch * groups * strips * tilesAcross; }
  int64_t rowStride() const { return (tileColumns + 2 * reach) * kChannels; }
  int64_t packedFloats() const { return (stripRows + 2 * reach) * rowStride(); }

  struct Task {
    int64_t b, channel, channels, row, rows, column, columns;
  };
  /// Neighbouring tasks are channel groups of one strip, whose rows share pages.
  Task task(int64_t index) const {
    const int64_t group = index % groups, place = index / groups;
    const int64_t across = place % tilesAcross, strip = place / tilesAcross % strips;
    Task t;
    t.b = place / tilesAcross / strips;
    t.channel = group * kChannels, t.channels = std::min(kChannels, width - t.channel);
    t.row = strip * stripRows, t.rows = std::min(stripRows, rows - t.row);
    t.column = across * tileColumns, t.columns = std::min(tileColumns, columns - t.column);
    return t;
  }
  /// Cells of a row from `column` on that exist.
  int64_t cells(int64_t row, int64_t column, int64_t wanted) const {
    return std::clamp<int64_t>(std::min(columns - column, length - row * columns - column), 0, wanted);
  }
};

/// Where a tensor [B, L, D] has its tokens.
struct Tokens {
  const float* base;
  int64_t sequence, token;
  explicit Tokens(const Tensor& x) : base(x.const_data_ptr<float>()), sequence(x.stride(0)), token(x.stride(1)) {}
  const float* at(int64_t b, int64_t t) const { return base + b * sequence + t * token; }
};

/// The task's rows with `reach` cells around them.
void pack(const Grid& g, const Grid::Task& t, const Tokens& x, int64_t reach, float* to) {
  const int64_t width = t.columns + 2 * reach;
  for (int64_t r = -reach; r < t.rows + reach; ++r) {
    const int64_t row = t.row + r;
    float* line = to + (r + reach) * (g.tileColumns + 2 * reach) * kChannels;
    for (int64_t c = 0; c < width; ++c, line += kChannels) {
      const int64_t column = t.column + c - reach, token = row * g.columns + column;
      if (row < 0 || column < 0 || column >= g.columns || token >= g.length) {
        std::memset(line, 0, sizeof(float) * kChannels);
        continue;
      }
      std::memcpy(line, x.at(t.b, token) + t.channel, sizeof(float) * t.channels);
      if (t.channels < kChannels) std::memset(line + t.channels, 0, sizeof(float) * (kChannels - t.channels));
    }
  }
}

/// The weights of a channel group, [k², 32]; turned around for the input's gradient.
void packWeights(const Grid& g, const Grid::Task& t, const Tensor& weight, bool turned, float* to) {
  const int64_t square = g.kernel * g.kernel, shared = weight.size(0);
  const float* from = weight.const_data_ptr<float>();
  for (int64_t i = 0; i < square; ++i)
    for (int64_t m = 0; m < kChannels; ++m)
      to[i * kChannels + m] = m < t.channels ? from[(t.channel + m) % shared * square + (turned ? square - 1 - i : i)] : 0.0f;
}

Tensor ready(const Tensor& x) { return x.stride(-1) == 1 || x.size(-1) == 1 ? x : x.contiguous(); }

Grid checked(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t columns) {
  const char* name = "depthwise_grid_convolution";
  TORCH_CHECK(
      x.dim() == 3 && x.scalar_type() == at::kFloat && x.device().is_cpu() && x.layout() == at::kStrided, name,
      ": x must be float32 [batch, length, width] on the CPU, not ", x.scalar_type(), " ", x.sizes());
  TORCH_CHECK(
      weight.scalar_type() == at::kFloat && weight.device().is_cpu() && weight.dim() == 4 && weight.size(1) == 1 && weight.size(2) == weight.size(3) &&
          weight.size(2) % 2 == 1 && weight.size(0) > 0 && x.size(2) % weight.size(0) == 0,
      name, ": weight must be float32 [channels, 1, k, k] with odd k and channels that divide the width ", x.size(2), ", not ",
      weight.scalar_type(), " ", weight.sizes());
  if (bias && bias->defined())
    TORCH_CHECK(
        bias->scalar_type() == at::kFloat && bias->device().is_cpu() && bias->dim() == 1 && bias->size(0) == weight.size(0), name,
        ": bias must be float32 [channels], not ", bias->scalar_type(), " ", bias->sizes());
  TORCH_CHECK(columns > 0, name, ": columns must be positive, not ", columns);
  return Grid(x.size(0), x.size(1), x.size(2), columns, weight.size(2));
}

/// Correlation with the weights, or with the turned ones and no bias.
Tensor correlation(const Grid& g, const Tensor& given, const Tensor& weight, const Tensor& bias, bool turned) {
  Tensor out = at::empty({g.batch, g.length, g.width}, at::kFloat);
  if (out.numel() == 0) return out;
  const Tensor x = ready(given);
  const Tokens tokens(x);
  float* to = out.mutable_data_ptr<float>();
  const float* offsets = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  const int64_t square = g.kernel * g.kernel, shared = weight.size(0);
  std::vector<std::vector<float>> buffers(workerCount());
  parallelTasks(g.tasks(), [&](int64_t index, int64_t worker) {
    auto& buffer = buffers[worker];
    if (buffer.empty()) buffer.resize(g.packedFloats() + (square + 1) * kChannels + g.tileColumns * kChannels);
    float *packed = buffer.data(), *weights = packed + g.packedFloats(), *first = weights + square * kChannels, *line = first + kChannels;
    const auto t = g.task(index);
    pack(g, t, tokens, g.reach, packed);
    packWeights(g, t, weight, turned, weights);
    for (int64_t m = 0; m < kChannels; ++m) first[m] = offsets && m < t.channels ? offsets[(t.channel + m) % shared] : 0.0f;
    for (int64_t r = 0; r < t.rows; ++r) {
      const int64_t count = g.cells(t.row + r, t.column, t.columns);
      for (int64_t lane = 0; lane < t.channels; lane += kLanes)
        correlate(packed + r * g.rowStride() + lane, g.rowStride(), weights + lane, first + lane, g.kernel, count, line + lane);
      float* row = to + (t.b * g.length + (t.row + r) * g.columns + t.column) * g.width + t.channel;
      for (int64_t c = 0; c < count; ++c) std::memcpy(row + c * g.width, line + c * kChannels, sizeof(float) * t.channels);
    }
  });
  return out;
}

/// Gradients of the weights and of the bias: sums over tasks in an order that doesn't depend on the threads.
std::pair<Tensor, Tensor> weightGradients(const Grid& g, const Tensor& given, const Tensor& gradient, const Tensor& weight) {
  const int64_t square = g.kernel * g.kernel, shared = weight.size(0), size = (square + 1) * kChannels;
  Tensor ofWeight = at::zeros(weight.sizes(), at::kFloat), ofBias = at::zeros({shared}, at::kFloat);
  if (given.numel() == 0) return {ofWeight, ofBias};
  const Tensor x = ready(given), upstream = ready(gradient);
  const Tokens tokens(x), ups(upstream);
  std::vector<float> partial(g.tasks() * size);
  std::vector<std::vector<float>> buffers(workerCount());
  parallelTasks(g.tasks(), [&](int64_t index, int64_t worker) {
    auto& buffer = buffers[worker];
    if (buffer.empty()) buffer.resize(g.packedFloats() + g.stripRows * g.tileColumns * kChannels);
    float *packed = buffer.data(), *lines = packed + g.packedFloats(), *sums = partial.data() + index * size;
    const auto t = g.task(index);
    pack(g, t, tokens, g.reach, packed);
    pack(g, t, ups, 0, lines);
    for (int64_t r = 0; r < t.rows; ++r) {
      const int64_t count = g.cells(t.row + r, t.column, t.columns);
      const float* line = lines + r * g.tileColumns * kChannels;
      for (int64_t lane = 0; lane < t.channels; lane += kLanes) {
        const float* from = packed + r * g.rowStride() + lane;
        if (g.kernel == 5) weightGradient5(from, g.rowStride(), line + lane, count, sums + lane);
        else if (g.kernel == 3) weightGradient3(from, g.rowStride(), line + lane, count, sums + lane);
        else weightGradient(from, g.rowStride(), line + lane, g.kernel, count, sums + lane);
      }
      float* total = sums + square * kChannels;
      for (int64_t c = 0; c < count; ++c)
        for (int64_t m = 0; m < kChannels; ++m) total[m] += line[c * kChannels + m];
    }
  });
  std::vector<double> sums(shared * (square + 1));
  for (int64_t index = 0; index < g.tasks(); ++index) {
    const auto t = g.task(index);
    const float* from = partial.data() + index * size;
    for (int64_t i = 0; i <= square; ++i)
      for (int64_t m = 0; m < t.channels; ++m) sums[(t.channel + m) % shared * (square + 1) + i] += from[i * kChannels + m];
  }
  float *weights = ofWeight.mutable_data_ptr<float>(), *offsets = ofBias.mutable_data_ptr<float>();
  for (int64_t m = 0; m < shared; ++m) {
    for (int64_t i = 0; i < square; ++i) weights[m * square + i] = static_cast<float>(sums[m * (square + 1) + i]);
    offsets[m] = static_cast<float>(sums[m * (square + 1) + square]);
  }
  return {ofWeight, ofBias};
}

Tensor gridConvolution(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t columns) {
  const Grid g = checked(x, weight, bias, columns);
  return correlation(g, x, weight.contiguous(), bias && bias->defined() ? bias->contiguous() : Tensor(), false);
}

class GridFunction : public torch::autograd::Function<GridFunction> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t columns) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x, weight});
    context->saved_data["columns"] = columns;
    context->saved_data["biased"] = bias && bias->defined() && bias->requires_grad();
    return gridConvolution(x, weight, bias, columns);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    TORCH_CHECK(
        !at::GradMode::is_enabled(),
        "depthwise_grid_convolution: has no second derivative; call backward without create_graph, or use the reference form");
    const auto kept = context->get_saved_variables();
    const Tensor &x = kept[0], weight = kept[1].contiguous();
    const Grid g = checked(x, weight, std::nullopt, context->saved_data["columns"].toInt());
    Tensor ofInput, ofWeight, ofBias;
    if (context->needs_input_grad(0)) ofInput = correlation(g, gradients[0], weight, Tensor(), true);
    const bool biased = context->saved_data["biased"].toBool();
    if (context->needs_input_grad(1) || biased) std::tie(ofWeight, ofBias) = weightGradients(g, x, gradients[0], weight);
    return {ofInput, ofWeight, biased ? ofBias : Tensor(), Tensor()};
  }
};

Tensor gridConvolutionAutograd(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t columns) {
  const auto wants = [](const OptionalTensor& x) { return x && x->defined() && x->requires_grad(); };
  if (!at::GradMode::is_enabled() || !(wants(x) || wants(weight) || wants(bias))) {
    at::AutoDispatchBelowADInplaceOrView below;
    return gridConvolution(x, weight, bias, columns);
  }
  return GridFunction::apply(x, weight, bias, columns);
}

}  // namespace
}  // namespace martlet

TORCH_LIBRARY_FRAGMENT(martlet, m) {
  // x [B, L, D] float32, any strides but a last one of 1 (otherwise copied), tokens row by row on a grid of `columns`, whose last row
  // may be short; weight [C, 1, k, k], k odd, C a divisor of D; bias [C]. Returns [B, L, D]. The result doesn't depend on the
  // number of threads.
  m.def("depthwise_grid_convolution(Tensor x, Tensor weight, Tensor? bias, int columns) -> Tensor");
}

TORCH_LIBRARY_IMPL(martlet, CPU, m) { m.impl("depthwise_grid_convolution", martlet::gridConvolution); }
TORCH_LIBRARY_IMPL(martlet, Autograd, m) { m.impl("depthwise_grid_convolution", martlet::gridConvolutionAutograd); }
