// The states of a linear time-invariant system with one input, chunk by chunk, in the few functions of time that its powers span:
//
//     m_t = A m_{t-1} + B u_t,   A^l = sum_i c_i(l) M_i   for the lags l = 0 ..< C of a chunk
//
// so that the C states of a chunk are one product of 2r terms a number, whatever the system's width d:
//
//     m_t = sum_i v_{t,i} (M_i B) + sum_i c_i(t) (M_i A m_before),   v_{t,i} = sum_{s <= t} c_i(t-s) u_s
//
// with t and s counted in the chunk. The r functions c_i are the leading singular vectors of lag against matrix entry; a window that is
// long beside d needs few of them (a Legendre memory of 256 coefficients over 65,536 positions: 16 for 128 lags, to 1e-7, as
// Tests/Fixtures/check_system_states.py prints). The states before the chunks come from the caller, in whose hands a scan over chunks is
// short.
//
// Operations a position and state: 4 r for the product, 2 r d / C for M_i A m_before, r (C+1) / d for v; backward as many. The matrices of
// the last two, and of their gradients, come in strips of sixteen columns one after another, which the block product reads as they lie.
// Measured with Benchmarks/family_kernels.py on one core (Zen 3 with AVX2), that memory: 2.0 ns a position and state forward and 3.9 with
// backward, where in the same run the transforms of FilterBank.cpp took 2.9 and 5.9. Two thirds of the forward pass
// are products, most of the rest first touches of the result.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cstring>

#include "BlockProduct.h"
#include "Memory.h"
#include "Parallel.h"
#include "RightAngle.h"

namespace martlet {
namespace {

constexpr int64_t strip = 16;
int64_t strips(int64_t columns) { return (columns + strip - 1) / strip; }

void checkOperand(const at::Tensor& tensor, const char* op, const char* name, at::IntArrayRef shape) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat && tensor.is_contiguous() && tensor.sizes() == shape,
              "martlet::", op, ": ", name, " must be a contiguous float32 tensor ", shape, " on the CPU, got ", tensor.scalar_type(), " ",
              tensor.sizes(), " on ", tensor.device());
}

/// Sizes of a system: `rank` functions of `chunk` lags, `width` states.
struct System {
  int64_t rank, chunk, width;

  System(const at::Tensor& basis, const at::Tensor& writes, const char* op) {
    TORCH_CHECK(basis.dim() == 2 && basis.size(0) > 0 && basis.size(1) > 0 && basis.size(1) % strip == 0, "martlet::", op,
                ": basis must be [rank, chunk], the chunk a multiple of ", strip, ", got ", basis.sizes());
    TORCH_CHECK(writes.dim() == 2 && writes.size(1) > 0, "martlet::", op, ": writes must be [rank, width], got ", writes.sizes());
    rank = basis.size(0), chunk = basis.size(1), width = writes.size(1);
    checkOperand(basis, op, "basis", {rank, chunk});
    checkOperand(writes, op, "writes", {rank, width});
  }
  int64_t chunks(int64_t length) const { return (length + chunk - 1) / chunk; }
  /// Positions of a chunk, counted through the batch, and its first one among all sequences' positions.
  int64_t extent(int64_t index, int64_t length) const { return std::min(chunk, length - index % chunks(length) * chunk); }
  int64_t position(int64_t index, int64_t length) const { return index / chunks(length) * length + index % chunks(length) * chunk; }
  /// Chunks of a task: some 4,096 positions, for which the matrices in strips are read once, but two tasks a worker if there are so many.
  int64_t together(int64_t count) const {
    return std::clamp<int64_t>(std::min(4096 / chunk, count / (2 * workerCount())), 1, 64);
  }
};

/// Rows of `from` times a matrix in strips, to rows of whole strips.
void timesStrips(int64_t rows, int64_t depth, int64_t columns, const float* from, int64_t pitch, const float* matrix, float* to) {
  const int64_t count = strips(columns);
  for (int64_t s = 0; s < count; ++s)
    blocks::portableProduct(rows, strip, depth, pitch, strip, count * strip, false, from, matrix + s * depth * strip, to + s * strip);
}

at::Tensor systemStates(const at::Tensor& signal, const at::Tensor& starts, const at::Tensor& basis, const at::Tensor& writes,
                        const at::Tensor& inputs, const at::Tensor& carries, const at::Tensor&, const at::Tensor&) {
  const System system(basis, writes, "system_states");
  TORCH_CHECK(signal.dim() == 2, "martlet::system_states: signal must be [batch, length], got ", signal.sizes());
  const int64_t batch = signal.size(0), length = signal.size(1), chunks = system.chunks(length);
  const int64_t rank = system.rank, chunk = system.chunk, width = system.width;
  checkOperand(signal, "system_states", "signal", {batch, length});
  checkOperand(starts, "system_states", "starts", {batch, chunks, width});
  checkOperand(inputs, "system_states", "inputs", {strips(rank * chunk), chunk, strip});
  checkOperand(carries, "system_states", "carries", {strips(rank * width), width, strip});
  at::Tensor output = inLargePages(at::empty({batch, length, width}, signal.options()));
  if (output.numel() == 0) return output;
  const int64_t count = batch * chunks, together = system.together(count), tasks = (count + together - 1) / together;
  const int64_t carried = strips(rank * width) * strip;
  // Pieces: 0 inputs of the chunks, 1 v of the chunks, 2 M A m of the chunks, 3 a chunk's [v; c], 4 its [M B; M A m].
  Scratch scratch({together * chunk, together * rank * chunk, together * carried, 2 * rank * chunk, 2 * rank * width});
  scratch.allocate(workerCount());
  parallelTasks(tasks, [&](int64_t task, int64_t worker) {
    const auto at = [&](size_t index) { return scratch.piece(worker, index); };
    float *const u = at(0), *const v = at(1), *const n = at(2), *const left = at(3), *const right = at(4);
    const int64_t first = task * together, here = std::min(together, count - first);
    const auto extent = [&](int64_t index) { return system.extent(first + index, length); };
    const auto position = [&](int64_t index) { return system.position(first + index, length); };
    for (int64_t i = 0; i < here; ++i) {
      const int64_t taken = extent(i);
      std::copy_n(signal.data_ptr<float>() + position(i), taken, u + i * chunk);
      std::fill_n(u + i * chunk + taken, chunk - taken, 0.0f);
    }
    // Inputs after a strip's last position don't reach it.
    for (int64_t s = 0; s < strips(rank * chunk); ++s)
      blocks::portableProduct(here, strip, s * strip % chunk + strip, chunk, strip, rank * chunk, false, u,
                              inputs.data_ptr<float>() + s * chunk * strip, v + s * strip);
    timesStrips(here, width, rank * width, starts.data_ptr<float>() + first * width, width, carries.data_ptr<float>(), n);
    std::copy_n(basis.data_ptr<float>(), rank * chunk, left + rank * chunk);
    std::copy_n(writes.data_ptr<float>(), rank * width, right);
    for (int64_t i = 0; i < here; ++i) {
      std::copy_n(v + i * rank * chunk, rank * chunk, left);
      std::copy_n(n + i * carried, rank * width, right + rank * width);
      blocks::portableTransposedProduct(extent(i), width, 2 * rank, chunk, width, width, false, left, right,
                                        output.data_ptr<float>() + position(i) * width);
    }
  });
  return output;
}

/// The gradients of the signal, [batch, length], and of the states before the chunks.
std::tuple<at::Tensor, at::Tensor> systemStatesBackward(const at::Tensor& gradient, const at::Tensor& basis, const at::Tensor& writes,
                                                        const at::Tensor& inputsBack, const at::Tensor& carriesBack) {
  const System system(basis, writes, "system_states_backward");
  TORCH_CHECK(gradient.dim() == 3, "martlet::system_states_backward: gradient must be [batch, length, width], got ", gradient.sizes());
  const int64_t batch = gradient.size(0), length = gradient.size(1), chunks = system.chunks(length);
  const int64_t rank = system.rank, chunk = system.chunk, width = system.width;
  const at::Tensor rows = gradient.contiguous();
  checkOperand(rows, "system_states_backward", "gradient", {batch, length, width});
  checkOperand(inputsBack, "system_states_backward", "inputs_back", {strips(chunk), chunk * rank, strip});
  checkOperand(carriesBack, "system_states_backward", "carries_back", {strips(width), rank * width, strip});
  at::Tensor ofSignal = at::empty({batch, length}, gradient.options());
  at::Tensor ofStarts = at::empty({batch, chunks, width}, gradient.options());
  if (rows.numel() == 0) return {ofSignal.zero_(), ofStarts.zero_()};
  const at::Tensor turned = writes.t().contiguous();
  const int64_t count = batch * chunks, together = system.together(count), tasks = (count + together - 1) / together;
  const int64_t widened = strips(width) * strip;
  // Pieces: 0 the gradient of v, 1 of M A m, 2 of the states before the chunks, 3 of the inputs.
  Scratch scratch({together * chunk * rank, together * rank * width, together * widened, together * chunk});
  scratch.allocate(workerCount());
  parallelTasks(tasks, [&](int64_t task, int64_t worker) {
    const auto at = [&](size_t index) { return scratch.piece(worker, index); };
    float *const v = at(0), *const n = at(1), *const m = at(2), *const u = at(3);
    const int64_t first = task * together, here = std::min(together, count - first);
    const auto extent = [&](int64_t index) { return system.extent(first + index, length); };
    const auto position = [&](int64_t index) { return system.position(first + index, length); };
    for (int64_t i = 0; i < here; ++i) {
      const int64_t taken = extent(i);
      const float* const g = rows.data_ptr<float>() + position(i) * width;
      float* const ofV = v + i * chunk * rank;
      blocks::portableProduct(rank, width, taken, chunk, width, width, false, basis.data_ptr<float>(), g, n + i * rank * width);
      blocks::portableProduct(taken, rank, width, width, rank, rank, false, g, turned.data_ptr<float>(), ofV);
      std::fill_n(ofV + taken * rank, (chunk - taken) * rank, 0.0f);
    }
    timesStrips(here, rank * width, width, n, rank * width, carriesBack.data_ptr<float>(), m);
    // Positions before a strip's first are not reached by its inputs.
    for (int64_t s = 0; s < strips(chunk); ++s) {
      const int64_t before = s * strip * rank;
      blocks::portableProduct(here, strip, chunk * rank - before, chunk * rank, strip, chunk, false, v + before,
                              inputsBack.data_ptr<float>() + (s * chunk * rank + before) * strip, u + s * strip);
    }
    for (int64_t i = 0; i < here; ++i) {
      std::copy_n(u + i * chunk, extent(i), ofSignal.data_ptr<float>() + position(i));
      std::copy_n(m + i * widened, width, ofStarts.data_ptr<float>() + (first + i) * width);
    }
  });
  return {ofSignal, ofStarts};
}

using Forward = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                           const at::Tensor&, const at::Tensor&, const at::Tensor&);
using Backward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                    const at::Tensor&);

struct SystemStates : torch::autograd::Function<SystemStates> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& signal, const at::Tensor& starts,
                            const at::Tensor& basis, const at::Tensor& writes, const at::Tensor& inputs, const at::Tensor& carries,
                            const at::Tensor& inputsBack, const at::Tensor& carriesBack) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({basis, writes, inputsBack, carriesBack});
    static const auto operation = c10::Dispatcher::singleton().findSchemaOrThrow("martlet::system_states", "").typed<Forward>();
    return operation.call(signal, starts, basis, writes, inputs, carries, inputsBack, carriesBack);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "martlet::system_states has no second derivative; use the reference form where create_graph is needed");
    torch::autograd::variable_list results(8);
    if (!gradients[0].defined()) return results;
    const auto saved = context->get_saved_variables();
    static const auto operation = c10::Dispatcher::singleton().findSchemaOrThrow("martlet::system_states_backward", "").typed<Backward>();
    std::tie(results[0], results[1]) = operation.call(gradients[0], saved[0], saved[1], saved[2], saved[3]);
    return results;
  }
};

at::Tensor systemStatesAutograd(const at::Tensor& signal, const at::Tensor& starts, const at::Tensor& basis, const at::Tensor& writes,
                                const at::Tensor& inputs, const at::Tensor& carries, const at::Tensor& inputsBack,
                                const at::Tensor& carriesBack) {
  return SystemStates::apply(signal, starts, basis, writes, inputs, carries, inputsBack, carriesBack);
}

TORCH_LIBRARY_FRAGMENT(martlet, library) {
  library.def(
      "system_states(Tensor signal, Tensor starts, Tensor basis, Tensor writes, Tensor inputs, Tensor carries, Tensor inputs_back, "
      "Tensor carries_back) -> Tensor");
  library.def(
      "system_states_backward(Tensor gradient, Tensor basis, Tensor writes, Tensor inputs_back, Tensor carries_back) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(martlet, CPU, library) {
  library.impl("system_states", &systemStates);
  library.impl("system_states_backward", &systemStatesBackward);
}

TORCH_LIBRARY_IMPL(martlet, Autograd, library) { library.impl("system_states", &systemStatesAutograd); }

}  // namespace
}  // namespace martlet
