// martlet::rotary:              channel pairs of x turned by given angles (rotary position embedding, Su et al. 2021)
// martlet::cache_append_rotary: one new position a row: query and key turned, key and value written to their cache
//
// Bound by bytes: x is read and y written once, where the operators' form makes six passes; the second does in one call what takes
// some ten in a decoding step, where each call costs as much as the work.
// Pairs are (i, i + r/2) of the first r channels: y[i] = x[i] cos[i] - x[i + r/2] sin[i], y[i + r/2] = x[i + r/2] cos[i] + x[i] sin[i].

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <bit>
#include <optional>

#include "Fallback.h"
#include "Parallel.h"
#include "Vector.h"

namespace martlet {
namespace {

using at::Tensor;

/// One vector [width] of which the first 2 · pairs channels are turned; `sign` -1 turns back.
MARTLET_VECTOR static void turn(const float* __restrict from, const float* __restrict cosine, const float* __restrict sine, int64_t pairs,
                                int64_t width, float sign, float* __restrict to) {
#pragma clang fp contract(fast)
  const float* __restrict second = from + pairs;
  float* __restrict toSecond = to + pairs;
  MARTLET_SIMD
  for (int64_t i = 0; i < pairs; ++i) to[i] = from[i] * cosine[i] - second[i] * (sign * sine[i]);
  MARTLET_SIMD
  for (int64_t i = 0; i < pairs; ++i) toSecond[i] = second[i] * cosine[i] + from[i] * (sign * sine[i]);
  std::memcpy(to + 2 * pairs, from + 2 * pairs, static_cast<size_t>(width - 2 * pairs) * sizeof(float));
}

/// bf16 bits of the nearest value, ties to even; NaN stays NaN.
MARTLET_VECTOR static void storeHalf(const float* from, int64_t count, uint16_t* to) {
  MARTLET_SIMD
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    to[i] = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : rounded);
  }
}

/// Steps of 1/127 of the largest magnitude; returns the step.
MARTLET_VECTOR static float storeInt8(const float* from, int64_t count, int8_t* to) {
  // Magnitudes compare like their bits.
  uint32_t bits = 0;
  MARTLET_SIMD
  for (int64_t i = 0; i < count; ++i) {
    uint32_t some;
    std::memcpy(&some, from + i, sizeof some);
    some &= 0x7fffffffu;
    bits = some > bits ? some : bits;
  }
  const float largest = std::bit_cast<float>(bits);
  const float step = largest / 127.0f > 1e-30f ? largest / 127.0f : 1e-30f, inverse = 1.0f / step;
  MARTLET_SIMD
  for (int64_t i = 0; i < count; ++i) {
    const float q = __builtin_rintf(from[i] * inverse);
    to[i] = static_cast<int8_t>(q > 127.0f ? 127.0f : (q < -127.0f ? -127.0f : q));
  }
  return step;
}

std::string shape(const Tensor& t) { return c10::str(t.scalar_type(), " ", t.sizes()); }

// MARK: Whole sequences

/// x [B, H, L, d], any strides; cosine and sine [L, pairs] or [1 or B, 1, L, pairs].
void turnAll(const Tensor& x_, const Tensor& cosine, const Tensor& sine, float sign, Tensor& y) {
  const Tensor x = x_.stride(-1) == 1 || x_.size(-1) == 1 ? x_ : x_.contiguous();
  const int64_t batch = x.size(0), heads = x.size(1), length = x.size(2), width = x.size(3), pairs = cosine.size(-1);
  const int64_t angleStride = cosine.dim() == 4 && cosine.size(0) > 1 ? length * pairs : 0;
  const float *from = x.const_data_ptr<float>(), *c = cosine.const_data_ptr<float>(), *s = sine.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  const int64_t rows = batch * length;
  parallelRanges(rows, (1 << 14) / std::max<int64_t>(heads * width, 1) + 1, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t b = row / length, t = row % length, angle = b * angleStride + t * pairs;
      for (int64_t h = 0; h < heads; ++h)
        turn(from + b * x.stride(0) + h * x.stride(1) + t * x.stride(2), c + angle, s + angle, pairs, width, sign,
             to + b * y.stride(0) + h * y.stride(1) + t * y.stride(2));
    }
  });
}

/// The result's transposition to [B, L, H, d] is contiguous, as a product's that makes all heads is.
Tensor turned(const Tensor& x, const Tensor& cosine, const Tensor& sine, float sign) {
  Tensor y = at::empty({x.size(0), x.size(2), x.size(1), x.size(3)}, x.options().requires_grad(false)).transpose(1, 2);
  if (y.numel()) turnAll(x, cosine, sine, sign, y);
  return y;
}

void checkRotary(const Tensor& x, const Tensor& cosine, const Tensor& sine) {
  TORCH_CHECK(x.dim() == 4 && isFusable(x), "rotary: x must be a float32 CPU tensor [B, H, L, d], got ", shape(x));
  TORCH_CHECK(isFusable(cosine) && isFusable(sine) && cosine.sizes() == sine.sizes(),
              "rotary: cos and sin must be float32 CPU tensors of one shape, got ", shape(cosine), " and ", shape(sine));
  const bool flat = cosine.dim() == 2 && cosine.size(0) == x.size(2);
  const bool rows = cosine.dim() == 4 && (cosine.size(0) == 1 || cosine.size(0) == x.size(0)) && cosine.size(1) == 1 &&
                    cosine.size(2) == x.size(2);
  TORCH_CHECK((flat || rows) && 2 * cosine.size(-1) <= x.size(3), "rotary: cos and sin must be [L, r/2] or [1 or B, 1, L, r/2] with r at most d, got ",
              shape(cosine), " for x ", shape(x));
}

Tensor rotary(const Tensor& x, const Tensor& cosine, const Tensor& sine) {
  checkRotary(x, cosine, sine);
  return turned(x, cosine.contiguous(), sine.contiguous(), 1.0f);
}

struct Rotary : torch::autograd::Function<Rotary> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& cosine, const Tensor& sine) {
    at::AutoDispatchBelowADInplaceOrView below;
    checkRotary(x, cosine, sine);
    const Tensor c = cosine.contiguous(), s = sine.contiguous();
    context->save_for_backward({c, s});
    return turned(x, c, s, 1.0f);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    if (!gradients[0].defined()) return torch::autograd::variable_list(3);
    const auto saved = context->get_saved_variables();
    // Linear in x: the gradient's gradient is the rotation itself.
    return {at::GradMode::is_enabled() ? Rotary::apply(gradients[0], saved[0], -saved[1])
                                       : turned(gradients[0], saved[0], saved[1], -1.0f),
            Tensor(), Tensor()};
  }
};

Tensor rotaryWithGradient(const Tensor& x, const Tensor& cosine, const Tensor& sine) {
  if (needsGradient({cosine, sine})) TORCH_CHECK(false, "rotary: cos and sin get no gradient; detach them");
  if (needsGradient({x})) return Rotary::apply(x, cosine, sine);
  at::AutoDispatchBelowADInplaceOrView below;
  return rotary(x, cosine, sine);
}

// MARK: A decoding step

/// query [B, H, d], key [B, Hk, d], value [B, Hk, dv], float32, any strides; cos and sin of (1 or B) · r/2 numbers, or absent; caches
/// [B, Hk, S, d] and [B, Hk, S, dv] of float32, bfloat16 or int8 (then with scales [B, Hk, S]); entries int64 [B]: where in its cache
/// each row is written. Returns the turned query [B, H, d], contiguous.
Tensor cacheAppendRotary(const Tensor& query_, const Tensor& key_, const Tensor& value_, const std::optional<Tensor>& cos_,
                         const std::optional<Tensor>& sin_, Tensor keyCache, Tensor valueCache, const Tensor& entries_,
                         std::optional<Tensor> keyScales_, std::optional<Tensor> valueScales_) {
  const char* const name = "cache_append_rotary";
  TORCH_CHECK(query_.dim() == 3 && key_.dim() == 3 && value_.dim() == 3 && isFusable(query_) && isFusable(key_) && isFusable(value_), name,
              ": query, key and value must be float32 CPU tensors [B, heads, d], got ", shape(query_), ", ", shape(key_), " and ",
              shape(value_));
  const int64_t batch = query_.size(0), heads = query_.size(1), width = query_.size(2), keyHeads = key_.size(1), valueWidth = value_.size(2);
  TORCH_CHECK(key_.size(0) == batch && key_.size(2) == width && value_.size(0) == batch && value_.size(1) == keyHeads, name,
              ": key must have the query's batch and width, value the key's batch and heads; got query ", shape(query_), ", key ",
              shape(key_), ", value ", shape(value_));
  const auto type = keyCache.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kChar, name, ": the caches must be float32, bfloat16 or int8, got ",
              shape(keyCache));
  const auto checkCache = [&](const Tensor& cache, int64_t columns, const char* what) {
    TORCH_CHECK(cache.dim() == 4 && cache.scalar_type() == type && cache.is_cpu() && cache.is_contiguous() && cache.size(0) == batch &&
                    cache.size(1) == keyHeads && cache.size(2) == keyCache.size(2) && cache.size(3) == columns,
                name, ": ", what, " must be a contiguous CPU ", type, " tensor [", batch, ", ", keyHeads, ", S, ", columns, "], got ",
                shape(cache));
  };
  checkCache(keyCache, width, "key_cache");
  checkCache(valueCache, valueWidth, "value_cache");
  const int64_t capacity = keyCache.size(2);
  const Tensor keyScales = keyScales_.value_or(Tensor()), valueScales = valueScales_.value_or(Tensor());
  TORCH_CHECK((type == at::kChar) == keyScales.defined() && keyScales.defined() == valueScales.defined(), name,
              ": key_scales and value_scales come with int8 caches and only with them");
  for (const Tensor& scales : {keyScales, valueScales})
    TORCH_CHECK(!scales.defined() || (isFusable(scales) && scales.is_contiguous() && scales.sizes() == keyCache.sizes().slice(0, 3)), name,
                ": the scales must be contiguous float32 CPU tensors ", keyCache.sizes().slice(0, 3), ", got ",
                scales.defined() ? shape(scales) : "");
  TORCH_CHECK(entries_.scalar_type() == at::kLong && entries_.is_cpu() && entries_.sizes() == at::IntArrayRef({batch}), name,
              ": entries must be int64 [B] = [", batch, "], got ", shape(entries_));
  const Tensor entries = entries_.contiguous();
  const int64_t* const entry = entries.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; ++b)
    TORCH_CHECK(entry[b] >= 0 && entry[b] < capacity, name, ": entries[", b, "] = ", entry[b], " is not in 0..<", capacity,
                ", the cache's length");
  Tensor cosine = cos_.value_or(Tensor()), sine = sin_.value_or(Tensor());
  TORCH_CHECK(cosine.defined() == sine.defined(), name, ": cos and sin come together");
  int64_t pairs = 0, angleStride = 0;
  if (cosine.defined() && batch > 0) {
    TORCH_CHECK(isFusable(cosine) && isFusable(sine) && cosine.dim() >= 1 && cosine.sizes() == sine.sizes(), name,
                ": cos and sin must be float32 CPU tensors of one shape, got ", shape(cosine), " and ", shape(sine));
    pairs = cosine.size(-1);
    TORCH_CHECK(2 * pairs <= width && (cosine.numel() == pairs || cosine.numel() == batch * pairs), name,
                ": cos and sin must hold r/2 numbers (r at most ", width, ") for one or for each of ", batch, " rows, got ", shape(cosine));
    angleStride = cosine.numel() == pairs ? 0 : pairs;
    cosine = cosine.contiguous(), sine = sine.contiguous();
  }
  const float *const c = pairs ? cosine.const_data_ptr<float>() : nullptr, *const s = pairs ? sine.const_data_ptr<float>() : nullptr;
  const auto unitStride = [](const Tensor& t) { return t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous(); };
  const Tensor query = unitStride(query_), key = unitStride(key_), value = unitStride(value_);
  Tensor result = at::empty({batch, heads, width}, query.options().requires_grad(false));
  std::vector<float> row(static_cast<size_t>(std::max(width, valueWidth)));
  const auto write = [&](const float* from, int64_t columns, const Tensor& cache, const Tensor& scales, int64_t b, int64_t h) {
    const int64_t place = (b * keyHeads + h) * capacity + entry[b];
    if (type == at::kFloat)
      std::memcpy(cache.mutable_data_ptr<float>() + place * columns, from, static_cast<size_t>(columns) * sizeof(float));
    else if (type == at::kBFloat16)
      storeHalf(from, columns, static_cast<uint16_t*>(cache.mutable_data_ptr()) + place * columns);
    else
      scales.mutable_data_ptr<float>()[place] = storeInt8(from, columns, cache.mutable_data_ptr<int8_t>() + place * columns);
  };
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t angle = b * angleStride;
    for (int64_t h = 0; h < heads; ++h)
      turn(query.const_data_ptr<float>() + b * query.stride(0) + h * query.stride(1), c + angle, s + angle, pairs, width, 1.0f,
           result.mutable_data_ptr<float>() + (b * heads + h) * width);
    for (int64_t h = 0; h < keyHeads; ++h) {
      turn(key.const_data_ptr<float>() + b * key.stride(0) + h * key.stride(1), c + angle, s + angle, pairs, width, 1.0f, row.data());
      write(row.data(), width, keyCache, keyScales, b, h);
      write(value.const_data_ptr<float>() + b * value.stride(0) + h * value.stride(1), valueWidth, valueCache, valueScales, b, h);
    }
  }
  return result;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(martlet, library) {
  library.def("rotary(Tensor x, Tensor cos, Tensor sin) -> Tensor");
  library.def(
      "cache_append_rotary(Tensor query, Tensor key, Tensor value, Tensor? cos, Tensor? sin, Tensor(a!) key_cache, Tensor(b!) value_cache, "
      "Tensor entries, Tensor(c!)? key_scales=None, Tensor(d!)? value_scales=None) -> Tensor");
}
TORCH_LIBRARY_IMPL(martlet, CPU, library) {
  library.impl("rotary", rotary);
  library.impl("cache_append_rotary", cacheAppendRotary);
}
TORCH_LIBRARY_IMPL(martlet, Autograd, library) { library.impl("rotary", rotaryWithGradient); }

}  // namespace martlet
