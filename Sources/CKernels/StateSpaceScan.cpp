// The recurrence of diagonal-plus-rank-one state spaces (S4, 2111.00396), token by token in O(N): generation, and reading a prompt
// from a state. With E = 2/delta + Lambda and F = 1/(2/delta - Lambda), inner products over the conjugate-closed set,
//
//     f = FE x - FP (P* x) + 2 FB u,    x <- f - FP (P* f) / (1 + P* FP),    y = 2 Re(C x) + skip u.
//
// Sixteen channels are the lanes of a vector, so the inner products need no sums across lanes. The five vectors of a group of channels
// lie in memory as they are read and stay in the first-level cache, with its state, for all tokens of a call; the last pass over the
// states of a token makes the first inner product of the next.

#include <ATen/ATen.h>
#include <torch/library.h>

#include "Lanes.h"
#include "Parallel.h"

namespace martlet {
namespace {

using lanes::Floats;
constexpr int64_t termRows = 10;  // of a state and sixteen channels: FE, FP, FB, P, C, real parts and imaginary ones

/// Puts the states of up to sixteen channels, rows of `size` floats, in columns, or back.
MARTLET_VECTOR static void toColumns(const float* rows, int64_t channels, int64_t size, float* columns) {
  for (int64_t first = 0; first < size; first += 16) {
    Floats v[16];
    const int64_t count = std::min<int64_t>(16, size - first);
    for (int64_t i = 0; i < 16; ++i) {
      v[i] = Floats{};
      if (i >= channels) continue;
      if (count == 16) {
        lanes::load(v[i], rows + i * size + first);
      } else {
        lanes::loadSome(v[i], rows + i * size + first, count);
      }
    }
    lanes::transpose(v);
    for (int64_t i = 0; i < 16; ++i) lanes::store(columns + (first + i) * 16, v[i]);
  }
}
MARTLET_VECTOR static void toRows(const float* columns, int64_t channels, int64_t size, float* rows) {
  for (int64_t first = 0; first < size; first += 16) {
    Floats v[16];
    const int64_t count = std::min<int64_t>(16, size - first);
    for (int64_t i = 0; i < 16; ++i) lanes::load(v[i], columns + (first + i) * 16);
    lanes::transpose(v);
    for (int64_t i = 0; i < channels; ++i) std::memcpy(rows + i * size + first, &v[i], static_cast<size_t>(count) * sizeof(float));
  }
}

/// All tokens of sixteen channels (of fewer, the others are not touched). terms: [states, 10, 16]; x: [states, 2, 16]; u and y: rows
/// of `stride` floats.
MARTLET_VECTOR static void scanGroup(const float* terms, float* x, const float* gains, const float* skips, const float* u, float* y,
                                     int64_t channels, int64_t length, int64_t stride, int64_t states) {
  MARTLET_FAST_SUMS
  const bool whole = channels == 16;
  Floats gain, skip, before{};
  lanes::loadSome(gain, gains, channels);
  lanes::loadSome(skip, skips, channels);
  gain *= 2.0f;
  for (int64_t n = 0; n < states; ++n) {
    Floats pRe, pIm, re, im;
    lanes::load(pRe, terms + (n * termRows + 6) * 16), lanes::load(pIm, terms + (n * termRows + 7) * 16);
    lanes::load(re, x + 2 * n * 16), lanes::load(im, x + (2 * n + 1) * 16);
    before += pRe * re + pIm * im;
  }
  for (int64_t t = 0; t < length; ++t) {
    Floats input, after{}, output{};
    if (whole) {
      lanes::load(input, u + t * stride);
    } else {
      lanes::loadSome(input, u + t * stride, channels);
    }
    before *= 2.0f;
    for (int64_t n = 0; n < states; ++n) {
      const float* term = terms + n * termRows * 16;
      Floats feRe, feIm, fpRe, fpIm, fbRe, fbIm, pRe, pIm, re, im;
      lanes::load(feRe, term), lanes::load(feIm, term + 16), lanes::load(fpRe, term + 32), lanes::load(fpIm, term + 48);
      lanes::load(fbRe, term + 64), lanes::load(fbIm, term + 80), lanes::load(pRe, term + 96), lanes::load(pIm, term + 112);
      lanes::load(re, x + 2 * n * 16), lanes::load(im, x + (2 * n + 1) * 16);
      const Floats nextRe = feRe * re - feIm * im - fpRe * before + fbRe * input;
      const Floats nextIm = feRe * im + feIm * re - fpIm * before + fbIm * input;
      after += pRe * nextRe + pIm * nextIm;
      lanes::store(x + 2 * n * 16, nextRe), lanes::store(x + (2 * n + 1) * 16, nextIm);
    }
    after *= gain;
    before = Floats{};
    for (int64_t n = 0; n < states; ++n) {
      const float* term = terms + n * termRows * 16;
      Floats fpRe, fpIm, pRe, pIm, cRe, cIm, re, im;
      lanes::load(fpRe, term + 32), lanes::load(fpIm, term + 48), lanes::load(pRe, term + 96), lanes::load(pIm, term + 112);
      lanes::load(cRe, term + 128), lanes::load(cIm, term + 144);
      lanes::load(re, x + 2 * n * 16), lanes::load(im, x + (2 * n + 1) * 16);
      re -= fpRe * after;
      im -= fpIm * after;
      output += cRe * re - cIm * im;
      before += pRe * re + pIm * im;
      lanes::store(x + 2 * n * 16, re), lanes::store(x + (2 * n + 1) * 16, im);
    }
    output = output * 2.0f + skip * input;
    std::memcpy(y + t * stride, &output, static_cast<size_t>(whole ? 16 : channels) * sizeof(float));
  }
}

at::Tensor lowRankScan(const at::Tensor& input, const at::Tensor& terms, const at::Tensor& gain, const at::Tensor& skip,
                       at::Tensor& state) {
  TORCH_CHECK(input.dim() == 3 && input.scalar_type() == at::kFloat && input.device().is_cpu(),
              "martlet::dplr_ssm_scan: input must be float32 [batch, length, channels] on the CPU, got ", input.scalar_type(), " ",
              input.sizes());
  const int64_t batch = input.size(0), length = input.size(1), channels = input.size(2), groups = (channels + 15) / 16;
  TORCH_CHECK(terms.dim() == 5 && terms.scalar_type() == at::kFloat && terms.device().is_cpu() &&
                  terms.sizes() == at::IntArrayRef({groups, terms.size(1), 5, 2, 16}),
              "martlet::dplr_ssm_scan: terms must be float32 [", groups, ", states, 5, 2, 16] on the CPU, got ", terms.scalar_type(), " ",
              terms.sizes());
  const int64_t states = terms.size(1);
  TORCH_CHECK(gain.scalar_type() == at::kFloat && gain.numel() == channels && skip.scalar_type() == at::kFloat && skip.numel() == channels,
              "martlet::dplr_ssm_scan: gain and skip must be float32 of ", channels, " elements, got ", gain.sizes(), " and ", skip.sizes());
  TORCH_CHECK(state.scalar_type() == at::kComplexFloat && state.sizes() == at::IntArrayRef({batch, channels, states}) &&
                  state.is_contiguous() && !state.is_conj(),
              "martlet::dplr_ssm_scan: state must be contiguous complex64 [", batch, ", ", channels, ", ", states, "], got ",
              state.scalar_type(), " ", state.sizes());
  const at::Tensor u = input.contiguous(), packed = terms.contiguous(), gains = gain.contiguous(), skips = skip.contiguous();
  at::Tensor output = at::empty({batch, length, channels}, input.options());
  if (output.numel() == 0) return output;
  const int64_t size = 2 * states, columns = (size + 15) / 16 * 16 * 16;
  const at::Tensor scratch = at::empty({workerCount(), columns}, input.options());
  auto* stateData = reinterpret_cast<float*>(state.data_ptr<c10::complex<float>>());
  // A token of a group takes about a tenth of a microsecond: a second core is woken for some hundred of them.
  parallelRanges(batch * groups, std::max<int64_t>(1, 64 / length), [&](int64_t begin, int64_t end, int64_t worker) {
    float* x = scratch.data_ptr<float>() + worker * columns;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / groups, first = task % groups * 16, count = std::min<int64_t>(16, channels - first);
      float* own = stateData + (row * channels + first) * size;
      const int64_t offset = row * length * channels + first;
      toColumns(own, count, size, x);
      scanGroup(packed.data_ptr<float>() + task % groups * states * termRows * 16, x, gains.data_ptr<float>() + first,
                skips.data_ptr<float>() + first, u.data_ptr<float>() + offset, output.data_ptr<float>() + offset, count, length, channels,
                states);
      toRows(x, count, size, own);
    }
  });
  return output;
}

TORCH_LIBRARY_FRAGMENT(martlet, library) {
  library.def("dplr_ssm_scan(Tensor input, Tensor terms, Tensor gain, Tensor skip, Tensor(a!) state) -> Tensor");
}

TORCH_LIBRARY_IMPL(martlet, CPU, library) { library.impl("dplr_ssm_scan", &lowRankScan); }

}  // namespace
}  // namespace martlet
