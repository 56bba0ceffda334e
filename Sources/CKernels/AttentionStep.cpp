// Softmax attention of one new token against a cache of keys and values: every byte of the cache is read once, for all the
// query heads that share it, so that the memory's bandwidth is the limit. A cache row is split over its length where batch and
// heads alone don't give the cores enough to do ("flash decoding").

#include <ATen/ATen.h>
#include <torch/library.h>

#include <limits>
#include <optional>

#include "Lanes.h"
#include "Parallel.h"

namespace martlet {
namespace {

using lanes::Floats;
using lanes::Ints;

constexpr int64_t block = 128;     // keys between two updates of the running maximum
constexpr int64_t leastPart = 512;  // keys worth a task of their own
constexpr float log2E = 1.44269504088896341f;
constexpr float infinity = std::numeric_limits<float>::infinity();

int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

template <typename T>
MARTLET_INLINE void loadUpTo(Floats& v, const T* p, int64_t count) {
  if (count >= 16) lanes::load(v, p); else lanes::loadSome(v, p, count);
}

/// scores[h][r] = query[h] · keys[r]; sixteen keys at a time, so that a horizontal sum costs a key three operations.
template <typename T>
MARTLET_INLINE void scoresOf(const T* keys, int64_t stride, int64_t rows, int64_t width, const float* query, int64_t heads, float* scores) {
#pragma clang fp contract(fast)
  const int64_t queryStride = (width + 15) / 16 * 16;
  for (int64_t r = 0; r < rows; r += 16) {
    const T* row[16];
    for (int64_t i = 0; i < 16; ++i) row[i] = keys + (r + i < rows ? r + i : rows - 1) * stride;
    for (int64_t h = 0; h < heads; ++h) {
      Floats sum[16] = {};
      for (int64_t c = 0; c < width; c += 16) {
        Floats q;
        lanes::load(q, query + h * queryStride + c);
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; ++i) {
          Floats x;
          loadUpTo(x, row[i] + c, width - c);
          sum[i] += x * q;
        }
      }
      lanes::sumRows(sum);
      lanes::store(scores + h * block + r, sum[0]);
    }
  }
}

/// out[h] += Σ_r weights[h][r] values[r].
template <typename T>
MARTLET_INLINE void addValuesOf(const T* values, int64_t stride, int64_t rows, int64_t width, const float* weights, int64_t heads, float* out, int64_t outStride) {
#pragma clang fp contract(fast)
  int64_t c = 0;
  for (; c + 64 <= width; c += 64)
    for (int64_t h = 0; h < heads; ++h) {
      float* const to = out + h * outStride + c;
      Floats sum[4], odd[4] = {};
      std::memcpy(sum, to, sizeof sum);
      int64_t r = 0;
      for (; r + 2 <= rows; r += 2)
#pragma clang loop unroll(full)
        for (int j = 0; j < 4; ++j) {
          Floats x, y;
          lanes::load(x, values + r * stride + c + j * 16);
          lanes::load(y, values + (r + 1) * stride + c + j * 16);
          sum[j] += x * weights[h * block + r];
          odd[j] += y * weights[h * block + r + 1];
        }
      if (r < rows)
#pragma clang loop unroll(full)
        for (int j = 0; j < 4; ++j) {
          Floats x;
          lanes::load(x, values + r * stride + c + j * 16);
          sum[j] += x * weights[h * block + r];
        }
#pragma clang loop unroll(full)
      for (int j = 0; j < 4; ++j) sum[j] += odd[j];
      std::memcpy(to, sum, sizeof sum);
    }
  for (; c < width; c += 16)
    for (int64_t h = 0; h < heads; ++h) {
      Floats sum;
      lanes::load(sum, out + h * outStride + c);
      for (int64_t r = 0; r < rows; ++r) {
        Floats x;
        loadUpTo(x, values + r * stride + c, width - c);
        sum += x * weights[h * block + r];
      }
      lanes::store(out + h * outStride + c, sum);
    }
}

MARTLET_VECTOR static void scoreKeys(const float* keys, int64_t stride, int64_t rows, int64_t width, const float* query, int64_t heads, float* scores) {
  scoresOf(keys, stride, rows, width, query, heads, scores);
}
MARTLET_VECTOR static void scoreKeysHalf(const uint16_t* keys, int64_t stride, int64_t rows, int64_t width, const float* query, int64_t heads, float* scores) {
  scoresOf(keys, stride, rows, width, query, heads, scores);
}
MARTLET_VECTOR static void addValues(const float* values, int64_t stride, int64_t rows, int64_t width, const float* weights, int64_t heads, float* out, int64_t outStride) {
  addValuesOf(values, stride, rows, width, weights, heads, out, outStride);
}
MARTLET_VECTOR static void addValuesHalf(const uint16_t* values, int64_t stride, int64_t rows, int64_t width, const float* weights, int64_t heads, float* out, int64_t outStride) {
  addValuesOf(values, stride, rows, width, weights, heads, out, outStride);
}

/// Scores [rows] (log2 units) become weights against the running maximum; brings `maximum`, `sum` and out [width, padded] up to date.
MARTLET_VECTOR static void weigh(float* scores, int64_t rows, float& maximum, float& sum, float* out, int64_t outStride) {
  MARTLET_FAST_SUMS
  for (int64_t r = rows; r < (rows + 15) / 16 * 16; ++r) scores[r] = -infinity;
  Floats high = Floats{} + maximum, x, total = {};
  for (int64_t r = 0; r < rows; r += 16) {
    lanes::load(x, scores + r);
    high = x > high ? x : high;
  }
  float top = high[0];
  for (int lane = 1; lane < 16; ++lane) top = high[lane] > top ? high[lane] : top;
  if (top > maximum) {
    Floats shrink = Floats{} + (maximum - top);
    lanes::exp2InPlace(shrink);
    if (maximum != -infinity) {
      for (int64_t c = 0; c < outStride; c += 16) {
        lanes::load(x, out + c);
        lanes::store(out + c, x * shrink);
      }
      sum *= shrink[0];
    }
    maximum = top;
  }
  for (int64_t r = 0; r < rows; r += 16) {
    lanes::load(x, scores + r);
    const Ints closed = x == Floats{} - infinity;
    x -= top;
    lanes::exp2InPlace(x);
    x = closed ? Floats{} : x;
    total += x;
    lanes::store(scores + r, x);
  }
  for (int lane = 0; lane < 16; ++lane) sum += total[lane];
}

std::string shape(const at::Tensor& t) { return c10::str(t.scalar_type(), " ", t.sizes()); }

at::Tensor unitStride(const at::Tensor& t) { return t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous(); }

/// query [B, H, d], caches [B, Hk, S, d] and [B, Hk, S, dv] of which row b has lengths[b] entries, the newest last; the query
/// stands at the newest. Returns [B, H, dv].
at::Tensor attentionStep(const at::Tensor& query, const at::Tensor& keyCache, const at::Tensor& valueCache, const at::Tensor& lengths,
                         int64_t windowLeft, std::optional<double> givenScale) {
  TORCH_CHECK(query.dim() == 3 && query.size(2) > 0, "attention_step: query must be [B, H, d] with d at least 1, got ", shape(query));
  const auto type = query.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "attention_step: query must be float32 or bfloat16, got ", shape(query));
  TORCH_CHECK(keyCache.dim() == 4 && valueCache.dim() == 4, "attention_step: the caches must be [B, Hk, S, d], got ", shape(keyCache), " and ",
              shape(valueCache));
  TORCH_CHECK(keyCache.scalar_type() == type && valueCache.scalar_type() == type,
              "attention_step: query and caches must have one type, got ", shape(query), ", ", shape(keyCache), " and ", shape(valueCache));
  TORCH_CHECK(query.is_cpu() && keyCache.is_cpu() && valueCache.is_cpu() && lengths.is_cpu(), "attention_step: all tensors must be on the CPU");
  const int64_t batch = query.size(0), heads = query.size(1), width = query.size(2);
  const int64_t keyHeads = keyCache.size(1), capacity = keyCache.size(2), valueWidth = valueCache.size(3);
  TORCH_CHECK(keyCache.size(0) == batch && keyCache.size(3) == width, "attention_step: key_cache must have the query's batch and width, got query ",
              shape(query), " and key_cache ", shape(keyCache));
  TORCH_CHECK(heads == keyHeads || (keyHeads > 0 && heads % keyHeads == 0), "attention_step: the query's heads must be a multiple of the cache's, got ",
              shape(query), " and ", shape(keyCache));
  TORCH_CHECK(valueCache.size(0) == batch && valueCache.size(1) == keyHeads && valueCache.size(2) == capacity && valueWidth > 0,
              "attention_step: value_cache must have the key_cache's batch, heads and length, got ", shape(keyCache), " and ", shape(valueCache));
  TORCH_CHECK(lengths.scalar_type() == at::kLong && lengths.sizes() == at::IntArrayRef({batch}), "attention_step: lengths must be int64 [B] = [", batch,
              "], got ", shape(lengths));
  const at::Tensor counts = lengths.contiguous();
  const int64_t* const count = counts.const_data_ptr<int64_t>();
  int64_t longest = 0;
  for (int64_t b = 0; b < batch; ++b) {
    TORCH_CHECK(count[b] >= 0 && count[b] <= capacity, "attention_step: lengths[", b, "] = ", count[b], " is not in 0...", capacity,
                ", the cache's length");
    longest = std::max(longest, windowLeft < 0 ? count[b] : std::min(count[b], windowLeft + 1));
  }
  at::Tensor result = at::empty({batch, heads, valueWidth}, query.options().requires_grad(false));
  if (result.numel() == 0) return result;
  if (longest == 0) return result.zero_();

  const int64_t group = heads / keyHeads, pairs = batch * keyHeads, queryStride = padded(width), outStride = padded(valueWidth);
  const int64_t wanted = (4 * workerCount() + pairs - 1) / pairs;
  const int64_t parts = std::clamp<int64_t>(longest / leastPart, 1, wanted);
  const float scale = log2E * static_cast<float>(givenScale.value_or(1.0 / std::sqrt(static_cast<double>(width))));

  // queries in float, scaled, padded with zeros to whole vectors: [B, H, queryStride]
  at::Tensor scaled = at::zeros({batch, heads, queryStride}, at::kFloat);
  scaled.narrow(2, 0, width).copy_(query).mul_(scale);
  const float* const queries = scaled.const_data_ptr<float>();
  // of every part and head: the weighted values (outStride), then the maximum and the sum of the weights
  const int64_t record = outStride + 16;
  const at::Tensor records = at::zeros({pairs, parts, group, record}, at::kFloat);
  float* const found = records.data_ptr<float>();
  const int64_t workers = workerCount();
  const at::Tensor buffer = at::empty({workers * group * block}, at::kFloat);
  const at::Tensor keys = unitStride(keyCache), values = unitStride(valueCache);
  const bool half = type == at::kBFloat16;

  parallelTasks(pairs * parts, [&](int64_t task, int64_t worker) {
    const int64_t pair = task / parts, part = task % parts, b = pair / keyHeads, keyHead = pair % keyHeads;
    const int64_t earliest = windowLeft < 0 ? 0 : std::max<int64_t>(0, count[b] - 1 - windowLeft), span = count[b] - earliest;
    const int64_t begin = earliest + span * part / parts, end = earliest + span * (part + 1) / parts;
    const float* const query = queries + (b * heads + keyHead * group) * queryStride;
    float* const out = found + task * group * record;
    float* const scores = buffer.data_ptr<float>() + worker * group * block;
    for (int64_t h = 0; h < group; ++h) out[h * record + outStride] = -infinity;
    const int64_t keyAt = b * keys.stride(0) + keyHead * keys.stride(1), valueAt = b * values.stride(0) + keyHead * values.stride(1);
    for (int64_t i = begin; i < end; i += block) {
      const int64_t rows = std::min(block, end - i), key = keyAt + i * keys.stride(2), value = valueAt + i * values.stride(2);
      if (half) {
        scoreKeysHalf(static_cast<const uint16_t*>(keys.const_data_ptr()) + key, keys.stride(2), rows, width, query, group, scores);
      } else {
        scoreKeys(keys.const_data_ptr<float>() + key, keys.stride(2), rows, width, query, group, scores);
      }
      for (int64_t h = 0; h < group; ++h)
        weigh(scores + h * block, rows, out[h * record + outStride], out[h * record + outStride + 1], out + h * record, outStride);
      if (half) {
        addValuesHalf(static_cast<const uint16_t*>(values.const_data_ptr()) + value, values.stride(2), rows, valueWidth, scores, group, out, record);
      } else {
        addValues(values.const_data_ptr<float>() + value, values.stride(2), rows, valueWidth, scores, group, out, record);
      }
    }
  });

  // join the parts in their order
  std::vector<float> joined(static_cast<size_t>(valueWidth));
  for (int64_t head = 0; head < batch * heads; ++head) {
    const int64_t pair = head / group, h = head % group;
    const auto recordOf = [&](int64_t part) { return found + ((pair * parts + part) * group + h) * record; };
    float top = -infinity, sum = 0;
    for (int64_t part = 0; part < parts; ++part) top = std::max(top, recordOf(part)[outStride]);
    std::fill(joined.begin(), joined.end(), 0.0f);
    for (int64_t part = 0; part < parts; ++part) {
      const float* const from = recordOf(part);
      const float share = from[outStride] == top ? 1.0f : std::exp2(from[outStride] - top);
      sum += from[outStride + 1] * share;
      for (int64_t c = 0; c < valueWidth; ++c) joined[static_cast<size_t>(c)] += from[c] * share;
    }
    const float inverse = sum == 0 ? 0.0f : 1.0f / sum;
    for (int64_t c = 0; c < valueWidth; ++c) {
      const float y = joined[static_cast<size_t>(c)] * inverse;
      if (half) {
        result.data_ptr<at::BFloat16>()[head * valueWidth + c] = y;
      } else {
        result.data_ptr<float>()[head * valueWidth + c] = y;
      }
    }
  }
  return result;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(martlet, library) {
  library.def("attention_step(Tensor query, Tensor key_cache, Tensor value_cache, Tensor lengths, int window_left=-1, float? scale=None) -> Tensor");
}
TORCH_LIBRARY_IMPL(martlet, CPU, library) { library.impl("attention_step", attentionStep); }

}  // namespace martlet
