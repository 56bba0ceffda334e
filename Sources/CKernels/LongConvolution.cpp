// Causal and two-sided convolution of a sequence with one long kernel a channel, as S4, SGConv and LMU use it.
//
//     y_l = sum_{m=0..l} k_m u_{l-m} + skip u_l            (causal)
//     y_l += sum_{m>=0} k'_m u_{l+m}                       (two-sided: a second kernel run on the reversed sequence)
//
// The transform is our own (RightAngle.h), because the data have a shape that a general library cannot use: many channels of one
// length, channel-last in memory. Up to 8k steps sixteen channels are transformed together, beyond that the sixteen phases of one.
//
// Limits met, one Zen 5 core (peak 235 GFLOP/s of multiply-adds), counting 5 n log2 n operations a transform: 127 GFLOP/s
// at 4k steps, sixteen channels in the second-level cache, which is what butterflies of half-fused additions can reach. Beyond, those sixteen
// streamed through the shared cache four times, and scratch and results of more than 32 MiB cost a page fault every 4 KiB at every call
// (half of the time at 256k steps on a virtual machine): hence phases, scratch that is kept, and large pages. Forward, and with backward,
// ns a step and channel on one Zen 3 core with AVX2 (Benchmarks/family_kernels.py, the least of three runs): 4.1 and 13 at 4k, 6.0 and 18 at
// 16k, 6.9 and 20 at 64k, 7.4 and 23 at 256k (without these, in medians: 10 and 58 at 64k, 27 and 69 at 256k).

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <vector>

#include "Memory.h"
#include "Parallel.h"
#include "RightAngle.h"

namespace martlet {
namespace {

/// Taps (of both sides) up to which the direct sum beats the transforms. Measured, forward and backward of 32 channels:
/// the times cross at 80 taps for 512 and 4k steps, and at 190 for 64k, where the transforms leave the second-level cache.
constexpr int64_t directLimit(int64_t length) { return length <= 16384 ? 80 : 192; }

// MARK: The direct sum, for short kernels

/// y_l = sum_i w_i u_{l - i}, `input` readable from taps - 1 steps before its start. All packed, sixteen channels a step.
/// Eight outputs at once: one multiply-add a loaded vector, two a cycle.
MARTLET_VECTOR static void directForward(const float* input, const float* taps, int64_t tapCount, int64_t length, float* output) {
#pragma clang fp contract(fast)
  for (int64_t l = 0; l < length; l += 8) {
    Lanes sums[8] = {};
    for (int64_t i = 0; i < tapCount; ++i) {
      Lanes w;
      load(w, taps + i * lanes);
      const float* u = input + (l - i) * lanes;
#pragma clang loop unroll(full)
      for (int j = 0; j < 8; ++j) {
        Lanes value;
        load(value, u + j * lanes);
        sums[j] += w * value;
      }
    }
#pragma clang loop unroll(full)
    for (int j = 0; j < 8; ++j) store(output + (l + j) * lanes, sums[j]);
  }
}

/// sums_i += sum_l g_l u_{l - i}; eight taps at once. `tapCount` is a multiple of eight.
MARTLET_VECTOR static void directTaps(const float* input, const float* gradient, int64_t tapCount, int64_t length, float* sums) {
#pragma clang fp contract(fast)
  for (int64_t i = 0; i < tapCount; i += 8) {
    Lanes partial[8] = {};
    for (int64_t l = 0; l < length; ++l) {
      Lanes g;
      load(g, gradient + l * lanes);
      const float* u = input + (l - i) * lanes;
#pragma clang loop unroll(full)
      for (int j = 0; j < 8; ++j) {
        Lanes value;
        load(value, u - j * lanes);
        partial[j] += g * value;
      }
    }
#pragma clang loop unroll(full)
    for (int j = 0; j < 8; ++j) {
      Lanes before;
      load(before, sums + (i + j) * lanes);
      store(sums + (i + j) * lanes, before + partial[j]);
    }
  }
}


/// sums[c] += sum_l a[l][c] b[l][c], short runs in single precision, their sums in double.
MARTLET_VECTOR static void addProducts(const float* a, int64_t aPitch, const float* b, int64_t bPitch, int64_t length, double* sums) {
#pragma clang fp contract(fast)
  for (int64_t begin = 0; begin < length; begin += 64) {
    Lanes run{};
    for (int64_t l = begin; l < lesser(begin + 64, length); ++l) {
      Lanes x, y;
      load(x, a + l * aPitch);
      load(y, b + l * bPitch);
      run += x * y;
    }
    for (int c = 0; c < lanes; ++c) sums[c] += static_cast<double>(run[c]);
  }
}

/// target[l][c] += skip[c] base[l][c], packed target.
MARTLET_VECTOR static void addSkip(float* target, const float* base, int64_t basePitch, int64_t length, const float* skip) {
#pragma clang fp contract(fast)
  Lanes factors;
  load(factors, skip);
  for (int64_t l = 0; l < length; ++l) {
    Lanes sum, value;
    load(sum, target + l * lanes);
    load(value, base + l * basePitch);
    store(target + l * lanes, sum + factors * value);
  }
}

/// Sixteen channels (or fewer, the last) of one sequence of a batch, wherever its strides put them.
struct Tile {
  float* data;
  int64_t channelStride, timeStride, channels, length;

  /// Whether whole vectors can be read and written in place.
  bool direct() const { return channelStride == 1 && channels == lanes; }
  /// A view of packed steps: in place where possible, else in `scratch` ([length][16]).
  Steps view(float* scratch) const {
    return direct() ? Steps{data, timeStride, length} : Steps{scratch, lanes, length};
  }
  /// The same, filled.
  Steps steps(float* scratch) const {
    if (!direct()) packTile(data, channelStride, timeStride, channels, length, scratch);
    return view(scratch);
  }
};

Tile tileOf(const at::Tensor& sequence, int64_t batch, int64_t group) {
  const int64_t first = group * lanes;
  return {sequence.data_ptr<float>() + batch * sequence.stride(0) + first * sequence.stride(1), sequence.stride(1),
          sequence.stride(2), std::min(lanes, sequence.size(1) - first), sequence.size(2)};
}
Tile kernelTileOf(const at::Tensor& kernel, int64_t group, int64_t length) {
  const int64_t first = group * lanes;
  return {kernel.data_ptr<float>() + first * kernel.stride(0), kernel.stride(0), kernel.stride(1),
          std::min(lanes, kernel.size(0) - first), length};
}

/// Channel groups and, where those are fewer than the workers, pieces of the batch.
struct Division {
  int64_t groups, pieces, batch;
  Division(int64_t batch, int64_t channels)
      : groups((channels + lanes - 1) / lanes),
        pieces(std::max<int64_t>(1, std::min(batch, (workerCount() + groups - 1) / std::max<int64_t>(groups, 1)))),
        batch(batch) {}
  int64_t tasks() const { return groups * pieces; }
  int64_t begin(int64_t piece) const { return batch * piece / pieces; }
};

// MARK: Operators

void checkArguments(const at::Tensor& input, const at::Tensor& kernel, const std::optional<at::Tensor>& reversed,
                    const std::optional<at::Tensor>& skip) {
  TORCH_CHECK(input.dim() == 3, "martlet::fft_convolution: input must be [batch, channels, length], got ", input.sizes());
  TORCH_CHECK(kernel.dim() == 2 && kernel.size(0) == input.size(1), "martlet::fft_convolution: kernel must be [",
              input.size(1), " (channels), taps], got ", kernel.sizes());
  TORCH_CHECK(!reversed || reversed->sizes() == kernel.sizes(),
              "martlet::fft_convolution_bidirectional: backward_kernel must have the forward kernel's shape ", kernel.sizes(),
              ", got ", reversed->sizes());
  TORCH_CHECK(!skip || (skip->dim() == 1 && skip->size(0) == input.size(1)), "martlet::fft_convolution: skip must be [",
              input.size(1), " (channels)], got ", skip->sizes());
  const auto check = [](const at::Tensor& tensor, const char* name) {
    TORCH_CHECK(tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat, "martlet::fft_convolution: ", name,
                " must be a float32 tensor on the CPU, got ", tensor.scalar_type(), " on ", tensor.device());
  };
  check(input, "input");
  check(kernel, "kernel");
  if (reversed) check(*reversed, "backward_kernel");
  if (skip) check(*skip, "skip");
}

/// The taps of a short two-sided kernel in the order of `directForward`: [k'_{M-1} .. k'_1, k_0 + k'_0, k_1 .. k_{M-1}].
void twoSidedTaps(const float* kernel, const float* reversed, int64_t taps, float* out) {
  const int64_t ahead = reversed ? taps - 1 : 0;
  std::memcpy(out + ahead * lanes, kernel, static_cast<size_t>(taps * lanes) * sizeof(float));
  if (!reversed) return;
  for (int64_t m = 0; m < taps; ++m)
    for (int64_t c = 0; c < lanes; ++c)
      m ? out[(ahead - m) * lanes + c] = reversed[m * lanes + c] : out[ahead * lanes + c] += reversed[c];
}

constexpr int64_t directSegment = 512;  // outputs of the direct sum that stay in the second-level cache

/// Copies steps begin..<begin+count of a tile to `packed`, zero outside 0..<length.
void packSegment(const Tile& tile, int64_t begin, int64_t count, float* packed) {
  const int64_t first = std::clamp<int64_t>(begin, 0, tile.length), last = std::clamp<int64_t>(begin + count, 0, tile.length);
  if (first >= last) return std::fill_n(packed, count * lanes, 0.0f), void();
  std::fill_n(packed, (first - begin) * lanes, 0.0f);
  packTile(tile.data + first * tile.timeStride, tile.channelStride, tile.timeStride, tile.channels, last - first,
           packed + (first - begin) * lanes);
  std::fill_n(packed + (last - begin) * lanes, (begin + count - last) * lanes, 0.0f);
}

// MARK: Long sequences, one channel at a time

/// Steps beyond which the spectra of sixteen channels leave the second-level cache, and those of sixteen phases of one pay.
constexpr int64_t phaseLimit = 8192;

/// What the phases of one channel need. Rows have sixteen steps more than the sequence, so that they don't meet in one cache set.
struct PhasePlan {
  std::shared_ptr<const RightAngle> transform;
  int64_t steps, pitch, ahead, work, column;  // steps of sixteen; floats of a row, of a row of a reversed kernel, of a spectrum, of a column

  explicit PhasePlan(int64_t length)
      : transform(rightAngle((length + lanes - 1) / lanes)), steps((length + lanes - 1) / lanes), pitch((steps + 1) * lanes),
        ahead((steps + 1) * lanes), work(transform->floats()), column(4 * transform->column.size * point) {}
};

/// The kernel of a channel. Step 0 belongs to both directions.
Steps kernelSteps(const at::Tensor& kernel, const std::optional<at::Tensor>& reversed, int64_t channel, int64_t taps, float* row, float* back) {
  const float* ahead = kernel.data_ptr<float>() + channel * kernel.stride(0);
  if (!reversed) return kernelSteps(ahead, kernel.stride(1), nullptr, 0, taps, row, back);
  const float* behind = reversed->data_ptr<float>() + channel * reversed->stride(0);
  const Steps steps = kernelSteps(ahead, kernel.stride(1), behind, reversed->stride(1), taps, row, back);
  row[0] += behind[0];
  return steps;
}

/// The sixteen channels of a tile as rows of steps that are contiguous in time.
struct Rows {
  float* data;
  int64_t pitch;

  /// In place where the tile has them, else in `scratch` (sixteen rows of `pitch`).
  Rows(const Tile& tile, float* scratch, int64_t pitch) : data(scratch), pitch(pitch) {
    if (tile.timeStride == 1 && tile.length % lanes == 0) data = tile.data, this->pitch = tile.channelStride;
  }
  static Rows filled(const Tile& tile, float* scratch, int64_t pitch) {
    const Rows rows(tile, scratch, pitch);
    if (rows.data == scratch) packRows(tile.data, tile.channelStride, tile.timeStride, tile.channels, tile.length, scratch, pitch);
    return rows;
  }
  Steps steps(int64_t channel, int64_t count) const { return {data + channel * pitch, lanes, count}; }
};

at::Tensor convolvePhases(at::Tensor output, const at::Tensor& input, const at::Tensor& kernel, const std::optional<at::Tensor>& reversed,
                          const at::Tensor& skips) {
  const int64_t length = input.size(2), taps = std::min(kernel.size(1), length);
  const Division division(input.size(0), input.size(1));
  const PhasePlan plan(length);
  const RightAngle& transform = *plan.transform;
  // The kernels' spectra are kept for the sequences of a piece.
  const bool several = division.batch > division.pieces;
  // Pieces: 0 kernel, 1 reversed kernel, 2 rows in, 3 rows out, 4 kernel spectra, 5 spectrum, 6 columns.
  Scratch scratch({plan.pitch, reversed ? plan.ahead : 0, lanes * plan.pitch, lanes * plan.pitch, (several ? lanes : 1) * plan.work, plan.work,
                   plan.column});
  scratch.allocate(std::min(workerCount(), division.tasks()));
  parallelTasks(division.tasks(), [&](int64_t task, int64_t worker) {
    const int64_t group = task / division.pieces, piece = task % division.pieces;
    const auto at = [&](size_t index) { return scratch.piece(worker, index); };
    const int64_t begin = division.begin(piece);
    for (int64_t b = begin; b < division.begin(piece + 1); ++b) {
      const Tile u = tileOf(input, b, group), y = tileOf(output, b, group);
      const Rows in = Rows::filled(u, at(2), plan.pitch), out(y, at(3), plan.pitch);
      for (int64_t c = 0; c < u.channels; ++c) {
        const int64_t channel = group * lanes + c;
        float* spectrum = at(4) + (several ? c : 0) * plan.work;
        if (b == begin)
          forwardColumns(kernelSteps(kernel, reversed, channel, taps, at(0), at(1)), transform, spectrum, at(6));
        const Steps steps = in.steps(c, plan.steps);
        forwardColumns(steps, transform, at(5), at(6));
        convolveRows(at(5), spectrum, b == begin, true, transform);
        float factors[lanes] = {};
        if (skips.defined()) std::fill_n(factors, lanes, skips.data_ptr<float>()[channel]);
        backwardColumns(at(5), at(6), transform, out.steps(c, plan.steps), skips.defined() ? steps : Steps{}, factors);
      }
      if (out.data == at(3)) unpackRows(out.data, out.pitch, y.channels, length, y.data, y.channelStride, y.timeStride);
    }
  });
  return output;
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Gradients convolvePhasesBackward(const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& kernel,
                                 const std::optional<at::Tensor>& reversed, const at::Tensor& skips, std::array<bool, 3> needs) {
  const auto [needsInput, needsKernel, needsSkip] = needs;
  const int64_t channels = input.size(1), length = input.size(2), taps = std::min(kernel.size(1), length);
  const Division division(input.size(0), channels);
  const int64_t pieces = division.pieces;
  at::Tensor inputGradient, skipGradient, kernelGradient, reversedGradient;
  if (needsInput) inputGradient = inLargePages(at::empty_like(input));
  // One slice a piece of the batch, summed at the end; taps beyond the length have none.
  const auto slices = [&] {
    const std::array<int64_t, 3> shape = {pieces, channels, kernel.size(1)};
    return taps < kernel.size(1) ? at::zeros(shape, kernel.options()) : inLargePages(at::empty(shape, kernel.options()));
  };
  if (needsKernel) kernelGradient = slices();
  if (needsKernel && reversed) reversedGradient = slices();
  if (needsSkip) skipGradient = at::zeros({pieces, channels}, kernel.options());
  const PhasePlan plan(length);
  const RightAngle& transform = *plan.transform;
  const bool several = division.batch > division.pieces;
  const int64_t kept = (several ? lanes : 1) * plan.work;
  // Pieces: 0 kernel, 1 reversed kernel, 2 input rows, 3 gradient rows, 4 rows out, 5 kernel spectra, 6 input spectrum, 7 gradient
  // spectrum, 8 sums of products, 9 columns.
  Scratch scratch({plan.pitch, reversed ? plan.ahead : 0, needsKernel || needsSkip ? lanes * plan.pitch : 0, lanes * plan.pitch,
                   needsInput ? lanes * plan.pitch : 0, needsInput ? kept : 0, needsKernel ? plan.work : 0, plan.work,
                   needsKernel && several ? kept : 0, plan.column});
  scratch.allocate(std::min(workerCount(), division.tasks()));
  parallelTasks(division.tasks(), [&](int64_t task, int64_t worker) {
    const int64_t group = task / pieces, piece = task % pieces;
    const auto at = [&](size_t index) { return scratch.piece(worker, index); };
    const int64_t begin = division.begin(piece), end = division.begin(piece + 1);
    double skipSums[lanes] = {};
    for (int64_t b = begin; b < end; ++b) {
      const Tile g = tileOf(gradient, b, group);
      const Rows slopes = Rows::filled(g, at(3), plan.pitch);
      const Rows in = needsKernel || needsSkip ? Rows::filled(tileOf(input, b, group), at(2), plan.pitch) : slopes;
      const Tile target = needsInput ? tileOf(inputGradient, b, group) : g;
      const Rows out(target, at(4), plan.pitch);
      for (int64_t c = 0; c < g.channels; ++c) {
        const int64_t channel = group * lanes + c;
        const Steps slope = slopes.steps(c, plan.steps), steps = in.steps(c, plan.steps);
        if (needsSkip) {
          double phases[lanes] = {};
          addProducts(steps.data, lanes, slope.data, lanes, plan.steps, phases);
          for (double sum : phases) skipSums[c] += sum;
        }
        float* spectrum = at(5) + (several ? c : 0) * plan.work;
        if (needsInput && b == begin)
          forwardColumns(kernelSteps(kernel, reversed, channel, taps, at(0), at(1)), transform, spectrum, at(9));
        if (needsKernel) forwardColumns(steps, transform, at(6), at(9));
        forwardColumns(slope, transform, at(7), at(9));
        float* product = several ? at(8) + c * plan.work : at(6);
        correlateRows(at(6), at(7), spectrum, product, b == begin, b > begin, b + 1 == end, needsInput, needsKernel, true, transform);
        if (needsInput) {
          float factors[lanes] = {};
          if (skips.defined()) std::fill_n(factors, lanes, skips.data_ptr<float>()[channel]);
          backwardColumns(at(7), at(9), transform, out.steps(c, plan.steps), skips.defined() ? slope : Steps{}, factors);
        }
        if (needsKernel && b + 1 == end) {
          backwardColumns(product, at(9), transform, kernelTarget(taps, at(0), reversed ? at(1) : nullptr), Steps{}, nullptr);
          const int64_t place = (piece * channels + channel) * kernel.size(1);
          float* back = reversed ? reversedGradient.data_ptr<float>() + place : nullptr;
          copyTaps(taps, at(0), at(1), kernelGradient.data_ptr<float>() + place, back);
          if (back) back[0] = at(0)[0];
        }
      }
      if (needsInput && out.data == at(4))
        unpackRows(out.data, out.pitch, g.channels, length, target.data, target.channelStride, target.timeStride);
    }
    if (needsSkip)
      for (int64_t c = 0; c < std::min(lanes, channels - group * lanes); ++c)
        skipGradient.data_ptr<float>()[piece * channels + group * lanes + c] = static_cast<float>(skipSums[c]);
  });
  const auto total = [&](at::Tensor& tensor) {
    if (tensor.defined()) tensor = pieces == 1 ? tensor.squeeze(0) : tensor.sum(0);
  };
  total(kernelGradient);
  total(reversedGradient);
  total(skipGradient);
  return {inputGradient, kernelGradient, reversedGradient, skipGradient};
}

at::Tensor convolve(const at::Tensor& input, const at::Tensor& kernel, const std::optional<at::Tensor>& reversed,
                    const std::optional<at::Tensor>& skip) {
  checkArguments(input, kernel, reversed, skip);
  at::Tensor output = inLargePages(at::empty_like(input));
  if (output.numel() == 0) return output;
  const int64_t batch = input.size(0), channels = input.size(1), length = input.size(2);
  const int64_t taps = std::min(kernel.size(1), length);
  const at::Tensor skips = skip ? skip->contiguous() : at::Tensor();
  if (taps == 0) return skip ? output.copy_(input * skips.unsqueeze(1)) : output.zero_();
  const Division division(batch, channels);
  const int64_t ahead = reversed ? taps - 1 : 0, window = taps + ahead;
  const bool direct = window <= directLimit(length);
  if (!direct && length > phaseLimit) return convolvePhases(output, input, kernel, reversed, skips);
  const auto plan = direct ? nullptr : rightAngle(length);
  const int64_t sequence = direct ? (directSegment + window) * lanes : length * lanes;
  const int64_t work = direct ? 0 : plan->floats();
  // Pieces: 0 kernel steps, 1 reversed kernel steps (direct: two-sided taps), 2 sequence in, 3 sequence out,
  // 4 kernel spectrum, 5 sequence spectrum, 6 one column, 7 skip.
  Scratch scratch({taps * lanes, (reversed || direct ? 2 * taps : 0) * lanes, sequence, sequence, work, work,
                   direct ? 0 : 4 * plan->column.size * point, lanes, direct ? taps * lanes : 0});
  scratch.allocate(std::min(workerCount(), division.tasks()));

  parallelTasks(division.tasks(), [&](int64_t task, int64_t worker) {
    const int64_t group = task / division.pieces, piece = task % division.pieces;
    const auto at = [&](size_t index) { return scratch.piece(worker, index); };
    const Tile kernelTile = kernelTileOf(kernel, group, taps);
    float* factors = at(7);
    std::fill_n(factors, lanes, 0.0f);
    if (skip) std::copy_n(skips.data_ptr<float>() + group * lanes, kernelTile.channels, factors);
    packTile(kernelTile.data, kernelTile.channelStride, kernelTile.timeStride, kernelTile.channels, taps, at(0));
    float* back = nullptr;
    if (reversed) {
      const Tile tile = kernelTileOf(*reversed, group, taps);
      back = direct ? at(8) : at(1);
      packTile(tile.data, tile.channelStride, tile.timeStride, tile.channels, taps, back);
    }
    if (direct) {
      twoSidedTaps(at(0), back, taps, at(1));
      for (int64_t b = division.begin(piece); b < division.begin(piece + 1); ++b) {
        const Tile u = tileOf(input, b, group), y = tileOf(output, b, group);
        for (int64_t begin = 0; begin < length; begin += directSegment) {
          const int64_t count = std::min(directSegment, length - begin), rounded = (count + 7) / 8 * 8;
          // Output l reads u_{l + ahead} .. u_{l - taps + 1}.
          packSegment(u, begin - taps + 1, rounded + window - 1, at(2));
          directForward(at(2) + (window - 1) * lanes, at(1), window, rounded, at(3));
          if (skip) addSkip(at(3), at(2) + (taps - 1) * lanes, lanes, count, factors);
          unpackTile(at(3), y.channels, count, y.data + begin * y.timeStride, y.channelStride, y.timeStride);
        }
      }
      return;
    }
    if (reversed)  // step 0 belongs to both kernels
      for (int64_t c = 0; c < lanes; ++c) at(0)[c] += back[c];
    forwardColumns(Steps{at(0), lanes, taps, back, back ? taps : 0}, *plan, at(4), at(6));
    bool fresh = true;
    for (int64_t b = division.begin(piece); b < division.begin(piece + 1); ++b, fresh = false) {
      const Tile u = tileOf(input, b, group), y = tileOf(output, b, group);
      const Steps steps = u.steps(at(2)), target = y.view(at(3));
      forwardColumns(steps, *plan, at(5), at(6));
      convolveRows(at(5), at(4), fresh, false, *plan);
      backwardColumns(at(5), at(6), *plan, target, skip ? steps : Steps{}, factors);
      if (!y.direct()) unpackTile(target.data, y.channels, length, y.data, y.channelStride, y.timeStride);
    }
  });
  return output;
}

/// Gradients for input, kernel, reversed kernel and skip; undefined where not asked for.
Gradients convolveBackward(const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& kernel,
                           const std::optional<at::Tensor>& reversed, const std::optional<at::Tensor>& skip,
                           std::array<bool, 3> needs) {
  checkArguments(input, kernel, reversed, skip);
  TORCH_CHECK(gradient.sizes() == input.sizes() && gradient.scalar_type() == at::kFloat,
              "martlet::fft_convolution_backward: gradient must be float32 of the input's shape ", input.sizes(), ", got ",
              gradient.sizes());
  const bool needsInput = needs[0], needsKernel = needs[1], needsSkip = needs[2] && skip.has_value();
  const int64_t batch = input.size(0), channels = input.size(1), length = input.size(2);
  const int64_t taps = std::min(kernel.size(1), length);
  const bool empty = batch * channels * taps == 0;
  const at::Tensor skips = skip ? skip->contiguous() : at::Tensor();
  at::Tensor inputGradient, skipGradient, kernelGradient, reversedGradient;
  if (needsInput) inputGradient = inLargePages(at::empty_like(input));
  if (empty) {
    if (needsInput) skip ? inputGradient.copy_(gradient * skips.unsqueeze(1)) : inputGradient.zero_();
    if (needsSkip) skipGradient = (gradient * input).sum({0, 2});
    if (needsKernel) kernelGradient = at::zeros_like(kernel, at::MemoryFormat::Contiguous);
    if (needsKernel && reversed) reversedGradient = at::zeros_like(kernel, at::MemoryFormat::Contiguous);
    return {inputGradient, kernelGradient, reversedGradient, skipGradient};
  }
  const Division division(batch, channels);
  const int64_t pieces = division.pieces;
  // One slice a piece of the batch, summed at the end.
  if (needsKernel) kernelGradient = at::zeros({pieces, channels, kernel.size(1)}, kernel.options());
  if (needsKernel && reversed) reversedGradient = at::zeros({pieces, channels, kernel.size(1)}, kernel.options());
  if (needsSkip) skipGradient = at::zeros({pieces, channels}, kernel.options());
  const int64_t ahead = reversed ? taps - 1 : 0, window = taps + ahead, rounded = (window + 7) / 8 * 8;
  const bool direct = window <= directLimit(length);
  if (!direct && length > phaseLimit)
    return convolvePhasesBackward(gradient, input, kernel, reversed, skips, {needsInput, needsKernel, needsSkip});
  const auto plan = direct ? nullptr : rightAngle(length);
  const int64_t sequence = direct ? (directSegment + rounded + window) * lanes : length * lanes;
  const int64_t work = direct ? 0 : plan->floats();
  const bool separate = division.batch > division.pieces;  // some piece holds more than one sequence
  // Pieces: 0 kernel, 1 reversed kernel, 2 input, 3 gradient, 4 kernel spectrum, 5 input spectrum, 6 gradient spectrum,
  // 7 sum of products, 8 one column, 9 skip, 10 direct: taps, 11 direct: sums of the taps, 12 direct: output.
  Scratch scratch({taps * lanes, taps * lanes, sequence, sequence, needsInput ? work : 0, needsKernel ? work : 0, work,
                   needsKernel && separate ? work : 0, direct ? 0 : 4 * plan->column.size * point, lanes,
                   direct ? window * lanes : 0, direct ? rounded * lanes : 0, direct ? sequence : 0});
  scratch.allocate(std::min(workerCount(), division.tasks()));

  parallelTasks(division.tasks(), [&](int64_t task, int64_t worker) {
    const int64_t group = task / pieces, piece = task % pieces;
    const auto at = [&](size_t index) { return scratch.piece(worker, index); };
    const Tile kernelTile = kernelTileOf(kernel, group, taps);
    const int64_t groupChannels = kernelTile.channels;
    float* factors = at(9);
    std::fill_n(factors, lanes, 0.0f);
    if (skip) std::copy_n(skips.data_ptr<float>() + group * lanes, groupChannels, factors);
    double skipSums[lanes] = {};
    packTile(kernelTile.data, kernelTile.channelStride, kernelTile.timeStride, groupChannels, taps, at(0));
    float* back = nullptr;
    if (reversed) {
      const Tile tile = kernelTileOf(*reversed, group, taps);
      back = at(1);
      packTile(tile.data, tile.channelStride, tile.timeStride, tile.channels, taps, back);
    }
    const int64_t beginBatch = division.begin(piece), endBatch = division.begin(piece + 1);
    if (direct) {
      twoSidedTaps(at(0), back, taps, at(10));
      // Correlation is the convolution with the taps in reverse order.
      for (int64_t i = 0; i < window / 2; ++i)
        for (int64_t c = 0; c < lanes; ++c) std::swap(at(10)[i * lanes + c], at(10)[(window - 1 - i) * lanes + c]);
      std::fill_n(at(11), rounded * lanes, 0.0f);
      for (int64_t b = beginBatch; b < endBatch; ++b) {
        const Tile u = tileOf(input, b, group), g = tileOf(gradient, b, group);
        for (int64_t begin = 0; begin < length; begin += directSegment) {
          const int64_t count = std::min(directSegment, length - begin), outputs = (count + 7) / 8 * 8;
          // Gradient of u_l reads g_{l - ahead} .. g_{l + taps - 1}.
          packSegment(g, begin - ahead, outputs + window - 1, at(3));
          if (needsKernel || needsSkip) {
            // Tap i pairs g_l with u_{l + ahead - i}.
            packSegment(u, begin + ahead - rounded + 1, count + rounded - 1, at(2));
            if (needsKernel) directTaps(at(2) + (rounded - 1) * lanes, at(3) + ahead * lanes, rounded, count, at(11));
            if (needsSkip) addProducts(at(2) + (rounded - 1 - ahead) * lanes, lanes, at(3) + ahead * lanes, lanes, count, skipSums);
          }
          if (!needsInput) continue;
          const Tile out = tileOf(inputGradient, b, group);
          directForward(at(3) + (window - 1) * lanes, at(10), window, outputs, at(12));
          if (skip) addSkip(at(12), at(3) + ahead * lanes, lanes, count, factors);
          unpackTile(at(12), groupChannels, count, out.data + begin * out.timeStride, out.channelStride, out.timeStride);
        }
      }
      if (needsKernel) {
        std::memcpy(at(0), at(11) + ahead * lanes, static_cast<size_t>(taps * lanes) * sizeof(float));
        if (reversed)
          for (int64_t m = 0; m < taps; ++m) std::copy_n(at(11) + (ahead - m) * lanes, lanes, at(1) + m * lanes);
      }
    } else {
      if (needsInput) {
        if (reversed)
          for (int64_t c = 0; c < lanes; ++c) at(0)[c] += back[c];
        forwardColumns(Steps{at(0), lanes, taps, back, back ? taps : 0}, *plan, at(4), at(8));
      }
      float* product = endBatch - beginBatch > 1 ? at(7) : at(5);
      for (int64_t b = beginBatch; b < endBatch; ++b) {
        const Tile g = tileOf(gradient, b, group);
        const Steps slopes = g.steps(at(3));
        forwardColumns(slopes, *plan, at(6), at(8));
        if (needsKernel || needsSkip) {
          const Steps steps = tileOf(input, b, group).steps(at(2));
          if (needsSkip) addProducts(steps.data, steps.pitch, slopes.data, slopes.pitch, length, skipSums);
          if (needsKernel) forwardColumns(steps, *plan, at(5), at(8));
        }
        correlateRows(at(5), at(6), at(4), product, b == beginBatch, b > beginBatch, b + 1 == endBatch, needsInput,
                      needsKernel, false, *plan);
        if (!needsInput) continue;
        const Tile out = tileOf(inputGradient, b, group);
        const Steps target = out.view(at(2));
        backwardColumns(at(6), at(8), *plan, target, skip ? slopes : Steps{}, factors);
        if (!out.direct()) unpackTile(target.data, groupChannels, length, out.data, out.channelStride, out.timeStride);
      }
      if (needsKernel) {
        backwardColumns(product, at(8), *plan, Steps{at(0), lanes, taps, at(1), reversed ? taps : 0}, Steps{}, nullptr);
        if (reversed) std::copy_n(at(0), lanes, at(1));
      }
    }
    if (needsKernel) {
      const Tile out = kernelTileOf(kernelGradient[piece], group, taps);
      unpackTile(at(0), groupChannels, taps, out.data, out.channelStride, out.timeStride);
      if (reversed) {
        const Tile other = kernelTileOf(reversedGradient[piece], group, taps);
        unpackTile(at(1), groupChannels, taps, other.data, other.channelStride, other.timeStride);
      }
    }
    if (needsSkip)
      for (int64_t c = 0; c < groupChannels; ++c)
        skipGradient.data_ptr<float>()[piece * channels + group * lanes + c] = static_cast<float>(skipSums[c]);
  });
  const auto total = [&](at::Tensor& slices) {
    if (slices.defined()) slices = pieces == 1 ? slices.squeeze(0) : slices.sum(0);
  };
  total(kernelGradient);
  total(reversedGradient);
  total(skipGradient);
  return {inputGradient, kernelGradient, reversedGradient, skipGradient};
}

// MARK: Registration

/// Half-precision sequences are computed in single precision and returned in their own type.
at::Tensor convolveAnyPrecision(const at::Tensor& input, const at::Tensor& kernel, const std::optional<at::Tensor>& reversed,
                                const std::optional<at::Tensor>& skip) {
  const auto type = input.scalar_type();
  if (type != at::kBFloat16 && type != at::kHalf) return convolve(input, kernel, reversed, skip);
  const auto widened = [](const std::optional<at::Tensor>& tensor) {
    return tensor ? std::optional<at::Tensor>(tensor->to(at::kFloat)) : std::nullopt;
  };
  return convolve(input.to(at::kFloat), kernel.to(at::kFloat), widened(reversed), widened(skip)).to(type);
}

Gradients convolveBackwardAnyPrecision(const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& kernel,
                                       const std::optional<at::Tensor>& reversed, const std::optional<at::Tensor>& skip,
                                       std::array<bool, 3> needs) {
  const auto widened = [](const std::optional<at::Tensor>& tensor) {
    return tensor ? std::optional<at::Tensor>(tensor->to(at::kFloat)) : std::nullopt;
  };
  auto [input32, kernel32, reversed32, skip32] = convolveBackward(gradient.to(at::kFloat), input.to(at::kFloat),
                                                                  kernel.to(at::kFloat), widened(reversed), widened(skip), needs);
  if (input32.defined()) input32 = input32.to(input.scalar_type());
  if (kernel32.defined()) kernel32 = kernel32.to(kernel.scalar_type());
  if (reversed32.defined()) reversed32 = reversed32.to(reversed->scalar_type());
  if (skip32.defined()) skip32 = skip32.to(skip->scalar_type());
  return {input32, kernel32, reversed32, skip32};
}

at::Tensor fftConvolution(const at::Tensor& input, const at::Tensor& kernel, const std::optional<at::Tensor>& skip) {
  return convolveAnyPrecision(input, kernel, std::nullopt, skip);
}
at::Tensor fftConvolutionBidirectional(const at::Tensor& input, const at::Tensor& forward, const at::Tensor& backward,
                                       const std::optional<at::Tensor>& skip) {
  return convolveAnyPrecision(input, forward, backward, skip);
}

struct Convolution : torch::autograd::Function<Convolution> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input, const at::Tensor& kernel,
                            const std::optional<at::Tensor>& reversed, const std::optional<at::Tensor>& skip) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({input, kernel, reversed.value_or(at::Tensor()), skip.value_or(at::Tensor())});
    static const auto oneSided =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("martlet::fft_convolution", "")
            .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&)>();
    static const auto twoSided =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("martlet::fft_convolution_bidirectional", "")
            .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&)>();
    return reversed ? twoSided.call(input, kernel, *reversed, skip) : oneSided.call(input, kernel, skip);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "martlet::fft_convolution has no second derivative; use the reference form where create_graph is needed");
    const auto saved = context->get_saved_variables();
    const auto optional = [](const at::Tensor& tensor) {
      return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
    };
    if (!gradients[0].defined()) return {{}, {}, {}, {}};
    const bool needsKernel = context->needs_input_grad(1) || (saved[2].defined() && context->needs_input_grad(2));
    // Inputs that are absent don't count among the edges: skip is the last of those present.
    const bool needsSkip = saved[3].defined() && context->needs_input_grad(saved[2].defined() ? 3 : 2);
    static const auto convolutionBackward =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("martlet::fft_convolution_backward", "")
            .typed<Gradients(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                             const std::optional<at::Tensor>&, std::array<bool, 3>)>();
    auto [input, kernel, reversed, skip] =
        convolutionBackward.call(gradients[0], saved[0], saved[1], optional(saved[2]), optional(saved[3]),
                                 {context->needs_input_grad(0), needsKernel, needsSkip});
    return {input, kernel, reversed, skip};
  }
};

at::Tensor fftConvolutionAutograd(const at::Tensor& input, const at::Tensor& kernel, const std::optional<at::Tensor>& skip) {
  return Convolution::apply(input, kernel, std::nullopt, skip);
}
at::Tensor fftConvolutionBidirectionalAutograd(const at::Tensor& input, const at::Tensor& forward, const at::Tensor& backward,
                                               const std::optional<at::Tensor>& skip) {
  return Convolution::apply(input, forward, backward, skip);
}

TORCH_LIBRARY_FRAGMENT(martlet, library) {
  library.def("fft_convolution(Tensor input, Tensor kernel, Tensor? skip=None) -> Tensor");
  library.def(
      "fft_convolution_bidirectional(Tensor input, Tensor forward_kernel, Tensor backward_kernel, Tensor? skip=None) -> Tensor");
  library.def(
      "fft_convolution_backward(Tensor gradient, Tensor input, Tensor kernel, Tensor? backward_kernel, Tensor? skip, "
      "bool[3] needs) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(martlet, CPU, library) {
  library.impl("fft_convolution", &fftConvolution);
  library.impl("fft_convolution_bidirectional", &fftConvolutionBidirectional);
  library.impl("fft_convolution_backward", &convolveBackwardAnyPrecision);
}

TORCH_LIBRARY_IMPL(martlet, Autograd, library) {
  library.impl("fft_convolution", &fftConvolutionAutograd);
  library.impl("fft_convolution_bidirectional", &fftConvolutionBidirectionalAutograd);
}

}  // namespace
}  // namespace martlet
