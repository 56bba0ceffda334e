// One signal through many fixed filters, as the Legendre memory needs it: every coefficient is the same signal, convolved with an
// impulse response as long as the sequence.
//
//     y_{t,c} = sum_{s=0..t} k_{c,s} u_{t-s}
//
// The filters are fixed, so their right-angle transforms (RightAngle.h) are made once and kept; what is left is one transform of the
// signal and, for every sixteen filters, a product and one transform back, written in place as sixteen neighbouring channels. The
// gradient of the signal is a sum over all filters, which is taken of the spectra: one transform for every sixteen channels of the
// gradient, and one back for up to sixteen signals.
//
// A step and filter cost 5 log2 n operations and 8 bytes of the kept spectrum in either direction; carrying a state of d numbers
// instead costs 2 d, or what SystemStates.cpp makes of it where the filters change slowly. Measured with Benchmarks/family_kernels.py on
// one core (Zen 3 with AVX2, 256 filters, the least of three runs): 1.5 ns a step and filter forward and 3.5 with backward at 4k steps, 2.0 and
// 4.2 at 16k, 2.9 and 5.7 at 64k, where a row leaves the first-level cache and a spectrum the second. The kept spectra are asked for while the row
// before them is transformed.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <vector>

#include "Memory.h"
#include "Parallel.h"
#include "RightAngle.h"

namespace martlet {
namespace {

/// Sums over the lanes of a spectrum: four of the real parts, four of the imaginary ones.
typedef float Folded __attribute__((vector_size(32)));
typedef float Octet __attribute__((vector_size(32)));
typedef float Quartet __attribute__((vector_size(16)));
constexpr int64_t folded = 8;

MARTLET_INLINE void fold(Quartet& sum, const Lanes& x) {
  const Octet half = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  sum = __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
}

/// Rows of F^-1(spectrum of filters times that of the signal, [points, 2]).
MARTLET_VECTOR static void filterRows(const float* signal, const float* filters, float* work, const RightAngle& plan) {
#pragma clang fp contract(fast)
  const int64_t count = plan.row.size;
  for (int64_t p = 0; p < plan.column.size; ++p) {
    const float* const u = signal + 2 * p * count;
    const float* const k = filters + p * count * point;
    float* const y = work + p * plan.pitch;
    for (int64_t i = 0; i < count; ++i) {
      Complex value;
      load(value, k + i * point);
      rotate(value, u + 2 * i, 1.0f);
      store(y + i * point, value);
    }
    // The filters don't fit the second-level cache.
    transformBackward(y, plan.row, asManyPoints(k + count * point, plan.row));
  }
}

/// sum += sum over the lanes of F(gradient) conj(filters), F's columns already done in `work`.
MARTLET_VECTOR static void correlateFilters(float* work, const float* filters, float* sum, const RightAngle& plan) {
#pragma clang fp contract(fast)
  const int64_t count = plan.row.size;
  for (int64_t p = 0; p < plan.column.size; ++p) {
    float* const g = work + p * plan.pitch;
    const float* const k = filters + p * count * point;
    float* const row = sum + p * count * folded;
    transformForward(g, plan.row, asManyPoints(k, plan.row));
    for (int64_t i = 0; i < count; ++i) {
      Complex a, b;
      load(a, g + i * point);
      load(b, k + i * point);
      multiplyConjugate(a, a, b);
      Quartet re, im;
      fold(re, a.re);
      fold(im, a.im);
      Folded before;
      std::memcpy(&before, row + i * folded, sizeof before);
      before += __builtin_shufflevector(re, im, 0, 1, 2, 3, 4, 5, 6, 7);
      std::memcpy(row + i * folded, &before, sizeof before);
    }
  }
}

/// The rows of filters' spectra, to rows without a gap.
MARTLET_VECTOR static void forwardRows(float* work, float* packed, const RightAngle& plan) {
  for (int64_t p = 0; p < plan.column.size; ++p) {
    float* const row = work + p * plan.pitch;
    transformForward(row, plan.row);
    std::memcpy(packed + p * plan.row.size * point, row, static_cast<size_t>(plan.row.size * point) * sizeof(float));
  }
}

/// Rows begin..<end of signals' spectra, each of the first `count` lanes to its own [points, 2].
MARTLET_VECTOR static void separateRows(float* work, int64_t count, float* spectra, const RightAngle& plan, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p) {
    float* const row = work + p * plan.pitch;
    transformForward(row, plan.row);
    for (int64_t lane = 0; lane < count; ++lane) {
      float* const to = spectra + 2 * (lane * plan.size + p * plan.row.size);
      for (int64_t i = 0; i < plan.row.size; ++i) {
        to[2 * i] = row[i * point + lane];
        to[2 * i + 1] = row[i * point + lanes + lane];
      }
    }
  }
}

/// Rows begin..<end of a spectrum: the sums of each signal's pieces, `pieces` tasks a signal, into its lane, and transformed back.
MARTLET_VECTOR static void sumRows(const float* sums, int64_t tasks, int64_t pieces, float* work, const RightAngle& plan, int64_t begin, int64_t end) {
  const int64_t count = plan.row.size, sumFloats = plan.size * folded;
  for (int64_t p = begin; p < end; ++p) {
    float* const row = work + p * plan.pitch;
    std::memset(row, 0, static_cast<size_t>(count * point) * sizeof(float));
    for (int64_t task = 0; task < tasks; ++task) {
      const float* part = sums + task * sumFloats + p * count * folded;
      float* to = row + task / pieces;
      for (int64_t i = 0; i < count; ++i, part += folded, to += point) {
        to[0] += (part[0] + part[1]) + (part[2] + part[3]);
        to[lanes] += (part[4] + part[5]) + (part[6] + part[7]);
      }
    }
    transformBackward(row, plan.row);
  }
}

/// Ranges of a transform's rows, or of its columns in fours; no task of less than some 4,000 points.
template <typename Body>
void overRows(const RightAngle& plan, const Body& body) {
  parallelRanges(plan.column.size, std::max<int64_t>(1, 4096 / plan.row.size), body);
}
template <typename Body>
void overColumns(const RightAngle& plan, const Body& body) {
  parallelRanges((plan.row.size + 3) / 4, std::max<int64_t>(1, 1024 / plan.column.size), [&](int64_t begin, int64_t end, int64_t worker) {
    body(4 * begin, std::min(4 * end, plan.row.size), worker);
  });
}

int64_t columnFloats(const RightAngle& plan) { return 4 * plan.column.size * point; }

void checkPlain(const at::Tensor& tensor, const char* op, const char* name) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat, "martlet::", op, ": ", name,
              " must be a float32 tensor on the CPU, got ", tensor.scalar_type(), " on ", tensor.device());
}

/// The transforms of [filters, taps] for signals of at most `length`, [groups of sixteen filters, points, 32]. Taps beyond the length
/// are not seen.
at::Tensor filterSpectra(const at::Tensor& responses, int64_t length) {
  TORCH_CHECK(responses.dim() == 2, "martlet::filter_spectra: responses must be [filters, taps], got ", responses.sizes());
  TORCH_CHECK(length > 0, "martlet::filter_spectra: length must be positive, got ", length);
  checkPlain(responses, "filter_spectra", "responses");
  const int64_t filters = responses.size(0), taps = std::min(responses.size(1), length), groups = (filters + lanes - 1) / lanes;
  const auto plan = rightAngle(length);
  at::Tensor spectra = inLargePages(at::empty({groups, plan->size, point}, responses.options()));
  Scratch scratch({taps * lanes, plan->floats(), columnFloats(*plan)});
  scratch.allocate(std::min(workerCount(), groups));
  parallelTasks(groups, [&](int64_t group, int64_t worker) {
    const auto at = [&](size_t index) { return scratch.piece(worker, index); };
    const int64_t first = group * lanes, count = std::min(lanes, filters - first);
    std::fill_n(at(0), taps * lanes, 0.0f);
    packTile(responses.data_ptr<float>() + first * responses.stride(0), responses.stride(0), responses.stride(1), count, taps, at(0));
    forwardColumns(Steps{at(0), lanes, taps}, *plan, at(1), at(2));
    forwardRows(at(1), spectra.data_ptr<float>() + group * plan->size * point, *plan);
  });
  return spectra;
}

/// What the operators check and read off their arguments.
struct Bank {
  std::shared_ptr<const RightAngle> plan;
  int64_t filters, groups;
  const float* spectra;

  Bank(const at::Tensor& tensor, int64_t filters, int64_t capacity, int64_t length, const char* op)
      : filters(filters), groups((filters + lanes - 1) / lanes) {
    checkPlain(tensor, op, "spectra");
    TORCH_CHECK(length <= capacity, "martlet::", op, ": the spectra were made for signals of at most ", capacity, " steps, got ", length);
    plan = rightAngle(std::max<int64_t>(capacity, 1));
    TORCH_CHECK(tensor.is_contiguous() && tensor.dim() == 3 && tensor.size(0) == groups && tensor.size(1) == plan->size &&
                    tensor.size(2) == point,
                "martlet::", op, ": spectra of ", filters, " filters and length ", capacity, " must be filter_spectra's [", groups, ", ",
                plan->size, ", ", point, "], got ", tensor.sizes());
    spectra = tensor.data_ptr<float>();
  }
  const float* group(int64_t index) const { return spectra + index * plan->size * point; }
};

at::Tensor filterBank(const at::Tensor& signal, const at::Tensor& spectra, int64_t filters, int64_t capacity) {
  TORCH_CHECK(signal.dim() == 2, "martlet::filter_bank: signal must be [batch, length], got ", signal.sizes());
  checkPlain(signal, "filter_bank", "signal");
  const int64_t batch = signal.size(0), length = signal.size(1);
  const Bank bank(spectra, filters, capacity, length, "filter_bank");
  const RightAngle& plan = *bank.plan;
  at::Tensor output = inLargePages(at::empty({batch, length, filters}, signal.options()));
  if (output.numel() == 0) return output;
  // Pieces: 0 a spectrum, 1 columns, 2 the channels of the last group.
  Scratch scratch({plan.floats(), columnFloats(plan), filters % lanes ? length * lanes : 0});
  scratch.allocate(workerCount());
  const at::Tensor ofSignals = at::empty({std::min(batch, lanes), plan.size, 2}, signal.options());
  const at::Tensor packed = at::zeros({length, lanes}, signal.options());
  for (int64_t first = 0; first < batch; first += lanes) {
    // Sixteen signals of the batch are transformed at once.
    const int64_t count = std::min(lanes, batch - first);
    packTile(signal.data_ptr<float>() + first * signal.stride(0), signal.stride(0), signal.stride(1), count, length, packed.data_ptr<float>());
    float* const work = scratch.piece(0, 0);
    overColumns(plan, [&](int64_t begin, int64_t end, int64_t worker) {
      forwardColumns(Steps{packed.data_ptr<float>(), lanes, length}, plan, work, scratch.piece(worker, 1), begin, end);
    });
    overRows(plan, [&](int64_t begin, int64_t end, int64_t) {
      separateRows(work, count, ofSignals.data_ptr<float>(), plan, begin, end);
    });
    parallelTasks(bank.groups * count, [&](int64_t task, int64_t worker) {
      const int64_t group = task / count, lane = task % count, channels = std::min(lanes, filters - group * lanes);
      const auto at = [&](size_t index) { return scratch.piece(worker, index); };
      filterRows(ofSignals.data_ptr<float>() + 2 * lane * plan.size, bank.group(group), at(0), plan);
      float* const to = output.data_ptr<float>() + (first + lane) * length * filters + group * lanes;
      const Steps target = channels == lanes ? Steps{to, filters, length} : Steps{at(2), lanes, length};
      backwardColumns(at(0), at(1), plan, target, Steps{}, nullptr);
      if (channels < lanes) unpackTile(at(2), channels, length, to, 1, filters);
    });
  }
  return output;
}

/// The signal's gradient, [batch, length].
at::Tensor filterBankBackward(const at::Tensor& gradient, const at::Tensor& spectra, int64_t capacity) {
  TORCH_CHECK(gradient.dim() == 3, "martlet::filter_bank_backward: gradient must be [batch, length, filters], got ", gradient.sizes());
  checkPlain(gradient, "filter_bank_backward", "gradient");
  const int64_t batch = gradient.size(0), length = gradient.size(1), filters = gradient.size(2);
  const Bank bank(spectra, filters, capacity, length, "filter_bank_backward");
  const RightAngle& plan = *bank.plan;
  at::Tensor output = at::empty({batch, length}, gradient.options());
  if (output.numel() == 0) return output;
  if (filters == 0) return output.zero_();
  // Pieces of the filters: two a worker, as one core may be slower; more would cost their sums more than they even out.
  const int64_t pieces = std::clamp<int64_t>((2 * workerCount() + batch - 1) / batch, 1, bank.groups);
  const int64_t sumFloats = plan.size * folded;
  // Pieces: 0 a spectrum, 1 columns, 2 channels where they can't be read in place.
  const bool direct = gradient.stride(2) == 1;
  Scratch scratch({plan.floats(), columnFloats(plan), direct && filters % lanes == 0 ? 0 : length * lanes});
  const int64_t together = std::min(batch, lanes);
  scratch.allocate(workerCount());
  const at::Tensor sums = at::empty({together * pieces * sumFloats}, gradient.options());
  for (int64_t first = 0; first < batch; first += lanes) {
    const int64_t count = std::min(lanes, batch - first);
    sums.zero_();
    const auto begin = [&](int64_t piece) { return bank.groups * piece / pieces; };
    const auto steps = [&](int64_t chain) { return begin(chain % pieces + 1) - begin(chain % pieces); };
    parallelChains(count * pieces, steps, [&](int64_t chain, int64_t step, int64_t worker) {
      const int64_t lane = chain / pieces, group = begin(chain % pieces) + step, channels = std::min(lanes, filters - group * lanes);
      const auto at = [&](size_t index) { return scratch.piece(worker, index); };
      float* const from = gradient.data_ptr<float>() + (first + lane) * gradient.stride(0) + group * lanes * gradient.stride(2);
      Steps source{from, gradient.stride(1), length};
      if (!direct || channels < lanes) {
        std::fill_n(at(2), length * lanes, 0.0f);
        packTile(from, gradient.stride(2), gradient.stride(1), channels, length, at(2));
        source = {at(2), lanes, length};
      }
      forwardColumns(source, plan, at(0), at(1));
      correlateFilters(at(0), bank.group(group), sums.data_ptr<float>() + chain * sumFloats, plan);
    });
    // The sums of the batch's signals, one a lane, go back together.
    float* const work = scratch.piece(0, 0);
    overRows(plan, [&](int64_t begin, int64_t end, int64_t) {
      sumRows(sums.data_ptr<float>(), count * pieces, pieces, work, plan, begin, end);
    });
    const at::Tensor packed = at::empty({length, lanes}, gradient.options());
    overColumns(plan, [&](int64_t begin, int64_t end, int64_t worker) {
      backwardColumns(work, scratch.piece(worker, 1), plan, Steps{packed.data_ptr<float>(), lanes, length}, Steps{}, nullptr, begin, end);
    });
    unpackTile(packed.data_ptr<float>(), count, length, output.data_ptr<float>() + first * length, length, 1);
  }
  return output;
}

struct FilterBank : torch::autograd::Function<FilterBank> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& signal, const at::Tensor& spectra,
                            int64_t filters, int64_t capacity) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({spectra});
    context->saved_data["capacity"] = capacity;
    static const auto operation = c10::Dispatcher::singleton()
                                      .findSchemaOrThrow("martlet::filter_bank", "")
                                      .typed<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, int64_t)>();
    return operation.call(signal, spectra, filters, capacity);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "martlet::filter_bank has no second derivative; use the reference form where create_graph is needed");
    if (!gradients[0].defined()) return {{}, {}, {}, {}};
    const at::Tensor spectra = context->get_saved_variables()[0];
    static const auto operation = c10::Dispatcher::singleton()
                                      .findSchemaOrThrow("martlet::filter_bank_backward", "")
                                      .typed<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t)>();
    return {operation.call(gradients[0], spectra, context->saved_data["capacity"].toInt()), {}, {}, {}};
  }
};

at::Tensor filterBankAutograd(const at::Tensor& signal, const at::Tensor& spectra, int64_t filters, int64_t capacity) {
  return FilterBank::apply(signal, spectra, filters, capacity);
}

TORCH_LIBRARY_FRAGMENT(martlet, library) {
  library.def("filter_spectra(Tensor responses, int length) -> Tensor");
  library.def("filter_bank(Tensor signal, Tensor spectra, int filters, int length) -> Tensor");
  library.def("filter_bank_backward(Tensor gradient, Tensor spectra, int length) -> Tensor");
}

TORCH_LIBRARY_IMPL(martlet, CPU, library) {
  library.impl("filter_spectra", &filterSpectra);
  library.impl("filter_bank", &filterBank);
  library.impl("filter_bank_backward", &filterBankBackward);
}

TORCH_LIBRARY_IMPL(martlet, Autograd, library) { library.impl("filter_bank", &filterBankAutograd); }

}  // namespace
}  // namespace martlet
