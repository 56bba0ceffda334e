// Softmax attention of one new token against a cache of keys and values: every byte of the cache is read once, for all the
// query heads that share it, so that the memory's bandwidth is the limit. A cache row is split over its length where batch and
// heads alone don't give the cores enough to do ("flash decoding").
//
// Limit: bytes. From memory one Zen 5 core reads 22–31 GB/s of f32 cache here (a plain sum of a tensor beside it: 30–40), and 57 GB/s
// from its own cache memory; with 8 heads to a key head, which make it 16 operations a number, 17–23 GB/s.

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

constexpr int64_t block = 128;      // keys between two updates of the running maximum
constexpr int64_t leastPart = 512;  // keys worth a task of their own
constexpr float log2E = 1.44269504088896341f;
constexpr float infinity = std::numeric_limits<float>::infinity();

int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

/// The hardware's prefetcher stops at every page, which holds few rows: ask for what comes `ahead` rows later.
constexpr int64_t ahead = 64;
template <typename T>
MARTLET_INLINE void prefetchRow(const T* row, int64_t stride, int64_t width) {
  const uintptr_t from = reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(ahead * stride) * sizeof(T);
  for (uintptr_t line = 0; line < static_cast<uintptr_t>(width) * sizeof(T); line += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(from + line));
}

/// The dot products of 16 / H keys with H queries, in lanes [head][key]: sixteen sums at a time, so that a horizontal sum costs
/// three operations, and H heads share a key's loads.
template <int H, typename T>
MARTLET_INLINE void dots(const T* keys, int64_t stride, int64_t width, const float* query, int64_t queryStride, Floats& result) {
#pragma clang fp contract(fast)
  constexpr int rows = 16 / H;
  Floats sum[16] = {};
  int64_t c = 0;
  for (; c + 16 <= width; c += 16) {
    Floats q[H], x;
#pragma clang loop unroll(full)
    for (int h = 0; h < H; ++h) lanes::load(q[h], query + h * queryStride + c);
#pragma clang loop unroll(full)
    for (int i = 0; i < rows; ++i) {
      lanes::load(x, keys + i * stride + c);
#pragma clang loop unroll(full)
      for (int h = 0; h < H; ++h) sum[h * rows + i] += x * q[h];
    }
  }
  if (c < width) {
    Floats q, x;
#pragma clang loop unroll(full)
    for (int i = 0; i < rows; ++i) {
      lanes::loadSome(x, keys + i * stride + c, width - c);
#pragma clang loop unroll(full)
      for (int h = 0; h < H; ++h) {
        lanes::load(q, query + h * queryStride + c);
        sum[h * rows + i] += x * q;
      }
    }
  }
  lanes::sumRows(sum);
  result = sum[0];
}

template <int H, typename T>
MARTLET_INLINE void scoresOfHeads(const T* keys, int64_t stride, int64_t rows, int64_t width, const float* query, int64_t queryStride,
                                  float* scores) {
  constexpr int64_t some = 16 / H;
  Floats sums;
  float found[16];
  int64_t r = 0;
  for (; r + some <= rows; r += some) {
    for (int64_t i = 0; i < some; ++i) prefetchRow(keys + (r + i) * stride, stride, width);
    dots<H>(keys + r * stride, stride, width, query, queryStride, sums);
    lanes::store(found, sums);
    for (int h = 0; h < H; ++h) std::memcpy(scores + h * block + r, found + h * some, sizeof(float) * some);
  }
  for (; r < rows; ++r) {  // the last few: one key in every place
    dots<H>(keys + r * stride, 0, width, query, queryStride, sums);
    lanes::store(found, sums);
    for (int h = 0; h < H; ++h) scores[h * block + r] = found[h * some];
  }
}

/// scores[h][r] = query[h] · keys[r].
template <typename T>
MARTLET_INLINE void scoresOf(const T* keys, int64_t stride, int64_t rows, int64_t width, const float* query, int64_t heads, float* scores) {
  const int64_t queryStride = (width + 15) / 16 * 16;
  int64_t h = 0;
  for (; h + 4 <= heads; h += 4) scoresOfHeads<4>(keys, stride, rows, width, query + h * queryStride, queryStride, scores + h * block);
  for (; h + 2 <= heads; h += 2) scoresOfHeads<2>(keys, stride, rows, width, query + h * queryStride, queryStride, scores + h * block);
  for (; h < heads; ++h) scoresOfHeads<1>(keys, stride, rows, width, query + h * queryStride, queryStride, scores + h * block);
}

/// out[h] += Σ_r weights[h][r] values[r] for H heads and 16 · V columns.
template <int H, int V, typename T>
MARTLET_INLINE void addColumns(const T* values, int64_t stride, int64_t rows, const float* weights, float* out, int64_t outStride,
                               bool prefetch) {
#pragma clang fp contract(fast)
  Floats sum[H][V], x[V];
#pragma clang loop unroll(full)
  for (int h = 0; h < H; ++h) std::memcpy(sum[h], out + h * outStride, sizeof sum[h]);
  for (int64_t r = 0; r < rows; ++r) {
    if (prefetch) prefetchRow(values + r * stride, stride, V * 16);
#pragma clang loop unroll(full)
    for (int j = 0; j < V; ++j) lanes::load(x[j], values + r * stride + j * 16);
#pragma clang loop unroll(full)
    for (int h = 0; h < H; ++h)
#pragma clang loop unroll(full)
      for (int j = 0; j < V; ++j) sum[h][j] += x[j] * weights[h * block + r];
  }
#pragma clang loop unroll(full)
  for (int h = 0; h < H; ++h) std::memcpy(out + h * outStride, sum[h], sizeof sum[h]);
}

template <int V, typename T>
MARTLET_INLINE void addColumnsOf(const T* values, int64_t stride, int64_t rows, const float* weights, int64_t heads, float* out,
                                 int64_t outStride) {
  int64_t h = 0;
  for (; h + 4 <= heads; h += 4) addColumns<4, V>(values, stride, rows, weights + h * block, out + h * outStride, outStride, h == 0);
  for (; h < heads; ++h) addColumns<1, V>(values, stride, rows, weights + h * block, out + h * outStride, outStride, h == 0);
}

/// out[h] += Σ_r weights[h][r] values[r].
template <typename T>
MARTLET_INLINE void addValuesOf(const T* values, int64_t stride, int64_t rows, int64_t width, const float* weights, int64_t heads,
                                float* out, int64_t outStride) {
#pragma clang fp contract(fast)
  int64_t c = 0;
  for (; c + 64 <= width; c += 64) addColumnsOf<4>(values + c, stride, rows, weights, heads, out + c, outStride);
  for (; c + 16 <= width; c += 16) addColumnsOf<1>(values + c, stride, rows, weights, heads, out + c, outStride);
  if (c == width) return;
  for (int64_t h = 0; h < heads; ++h) {
    Floats sum, x;
    lanes::load(sum, out + h * outStride + c);
    for (int64_t r = 0; r < rows; ++r) {
      lanes::loadSome(x, values + r * stride + c, width - c);
      sum += x * weights[h * block + r];
    }
    lanes::store(out + h * outStride + c, sum);
  }
}

MARTLET_VECTOR static void scoreKeys(const float* keys, int64_t stride, int64_t rows, int64_t width, const float* query, int64_t heads,
                                     float* scores) {
  scoresOf(keys, stride, rows, width, query, heads, scores);
}
MARTLET_VECTOR static void scoreKeysHalf(const uint16_t* keys, int64_t stride, int64_t rows, int64_t width, const float* query,
                                         int64_t heads, float* scores) {
  scoresOf(keys, stride, rows, width, query, heads, scores);
}
MARTLET_VECTOR static void scoreKeysInt8(const int8_t* keys, int64_t stride, int64_t rows, int64_t width, const float* query, int64_t heads,
                                         float* scores) {
  scoresOf(keys, stride, rows, width, query, heads, scores);
}
MARTLET_VECTOR static void addValuesInt8(const int8_t* values, int64_t stride, int64_t rows, int64_t width, const float* weights,
                                         int64_t heads, float* out, int64_t outStride) {
  addValuesOf(values, stride, rows, width, weights, heads, out, outStride);
}
MARTLET_VECTOR static void addValues(const float* values, int64_t stride, int64_t rows, int64_t width, const float* weights, int64_t heads,
                                     float* out, int64_t outStride) {
  addValuesOf(values, stride, rows, width, weights, heads, out, outStride);
}
MARTLET_VECTOR static void addValuesHalf(const uint16_t* values, int64_t stride, int64_t rows, int64_t width, const float* weights,
                                         int64_t heads, float* out, int64_t outStride) {
  addValuesOf(values, stride, rows, width, weights, heads, out, outStride);
}

/// Scores times the keys' scales, capped to cap · tanh(score) (its factor of log2 e included, as in the bias's), plus the bias; each
/// may be absent. All are read in whole vectors of which `rows` count.
MARTLET_VECTOR static void adjust(float* scores, int64_t rows, const float* keyScales, float cap, const float* bias) {
#pragma clang fp contract(fast)
  Floats x, y;
  for (int64_t r = 0; r < rows; r += 16) {
    const int64_t some = rows - r < 16 ? rows - r : 16;
    lanes::load(x, scores + r);
    if (keyScales) {
      lanes::loadSome(y, keyScales + r, some);
      x *= y;
    }
    if (cap != 0) {
      lanes::tanhInPlace(x);
      x *= cap;
    }
    if (bias) {
      lanes::loadSome(y, bias + r, some);
      x += y * log2E;
    }
    lanes::store(scores + r, x);
  }
}

MARTLET_VECTOR static void scaleWeights(float* weights, int64_t rows, const float* scales) {
  MARTLET_SIMD
  for (int64_t r = 0; r < rows; ++r) weights[r] *= scales[r];
}

/// to[c] = from[c] · scale for c < width, zero up to `padded`.
template <typename T>
MARTLET_INLINE void packQueryOf(const T* from, int64_t width, float scale, float* to, int64_t padded) {
  Floats x;
  for (int64_t c = 0; c < padded; c += 16) {
    if (c + 16 <= width)
      lanes::load(x, from + c);
    else
      lanes::loadSome(x, from + c, width - c);
    lanes::store(to + c, x * scale);
  }
}
MARTLET_VECTOR static void packQuery(const float* from, int64_t width, float scale, float* to, int64_t padded) {
  packQueryOf(from, width, scale, to, padded);
}
MARTLET_VECTOR static void packQueryHalf(const uint16_t* from, int64_t width, float scale, float* to, int64_t padded) {
  packQueryOf(from, width, scale, to, padded);
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
/// stands at the newest. Returns [B, H, dv] in the query's type.
/// A cache of float32, bfloat16 or, with key_scales and value_scales float32 [B, Hk, S], int8. Scores are scale · q · k, then
/// softcap · tanh(score / softcap), then plus bias, float32 [S], [1 or H, S] or [1 or B, 1 or H, S], given by the entries' places.
at::Tensor attentionStep(const at::Tensor& query, const at::Tensor& keyCache, const at::Tensor& valueCache, const at::Tensor& lengths,
                         int64_t windowLeft, std::optional<double> givenScale, const std::optional<at::Tensor>& bias_,
                         std::optional<double> softcap, const std::optional<at::Tensor>& keyScales_,
                         const std::optional<at::Tensor>& valueScales_) {
  TORCH_CHECK(query.dim() == 3 && query.size(2) > 0, "attention_step: query must be [B, H, d] with d at least 1, got ", shape(query));
  const auto type = query.scalar_type(), stored = keyCache.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "attention_step: query must be float32 or bfloat16, got ", shape(query));
  TORCH_CHECK(keyCache.dim() == 4 && valueCache.dim() == 4, "attention_step: the caches must be [B, Hk, S, d], got ", shape(keyCache),
              " and ", shape(valueCache));
  TORCH_CHECK((stored == at::kFloat || stored == at::kBFloat16 || stored == at::kChar) && valueCache.scalar_type() == stored,
              "attention_step: both caches must be float32, bfloat16 or int8, got ", shape(keyCache), " and ", shape(valueCache));
  const at::Tensor bias = bias_.value_or(at::Tensor());
  at::Tensor keyScales = keyScales_.value_or(at::Tensor()), valueScales = valueScales_.value_or(at::Tensor());
  TORCH_CHECK((stored == at::kChar) == keyScales.defined() && keyScales.defined() == valueScales.defined(),
              "attention_step: key_scales and value_scales come with int8 caches and only with them");
  TORCH_CHECK(query.is_cpu() && keyCache.is_cpu() && valueCache.is_cpu() && lengths.is_cpu(),
              "attention_step: all tensors must be on the CPU");
  const int64_t batch = query.size(0), heads = query.size(1), width = query.size(2);
  const int64_t keyHeads = keyCache.size(1), capacity = keyCache.size(2), valueWidth = valueCache.size(3);
  TORCH_CHECK(keyCache.size(0) == batch && keyCache.size(3) == width,
              "attention_step: key_cache must have the query's batch and width, got query ", shape(query), " and key_cache ",
              shape(keyCache));
  TORCH_CHECK(heads == keyHeads || (keyHeads > 0 && heads % keyHeads == 0),
              "attention_step: the query's heads must be a multiple of the cache's, got ", shape(query), " and ", shape(keyCache));
  TORCH_CHECK(valueCache.size(0) == batch && valueCache.size(1) == keyHeads && valueCache.size(2) == capacity && valueWidth > 0,
              "attention_step: value_cache must have the key_cache's batch, heads and length, got ", shape(keyCache), " and ",
              shape(valueCache));
  TORCH_CHECK(lengths.scalar_type() == at::kLong && lengths.sizes() == at::IntArrayRef({batch}),
              "attention_step: lengths must be int64 [B] = [", batch, "], got ", shape(lengths));
  if (keyScales.defined())
    for (at::Tensor* scales : {&keyScales, &valueScales}) {
      TORCH_CHECK(scales->scalar_type() == at::kFloat && scales->is_cpu() && scales->sizes() == at::IntArrayRef({batch, keyHeads, capacity}),
                  "attention_step: the caches' scales must be float32 CPU tensors [", batch, ", ", keyHeads, ", ", capacity, "], got ",
                  shape(*scales));
      *scales = scales->contiguous();
    }
  TORCH_CHECK(!softcap || *softcap > 0, "attention_step: softcap must be positive, got ", softcap.value_or(0));
  at::Tensor biases = bias;
  if (bias.defined()) {
    TORCH_CHECK(bias.scalar_type() == at::kFloat && bias.is_cpu() && bias.dim() >= 1 && bias.dim() <= 3 && bias.size(-1) == capacity &&
                    (bias.dim() < 2 || bias.size(-2) == 1 || bias.size(-2) == heads) &&
                    (bias.dim() < 3 || bias.size(0) == 1 || bias.size(0) == batch),
                "attention_step: bias must be a float32 CPU tensor that broadcasts to [B, H, S] = [", batch, ", ", heads, ", ", capacity,
                "] and has its last size, got ", shape(bias));
    biases = unitStride(bias).expand({batch, heads, capacity});
  }
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
  const double given = givenScale.value_or(1.0 / std::sqrt(static_cast<double>(width)));
  const float scale = static_cast<float>(softcap ? given / *softcap : given * static_cast<double>(log2E));
  const float cap = softcap ? static_cast<float>(*softcap) * log2E : 0.0f;
  const bool adjusted = keyScales.defined() || softcap || bias.defined();

  // One buffer: the queries in float, scaled, padded with zeros to whole vectors, [B, H, queryStride]; of every part and head the
  // weighted values (outStride), then the maximum and the sum of the weights; and scores, of which each worker has its own.
  const int64_t record = outStride + 16, workers = workerCount();
  const int64_t queryFloats = batch * heads * queryStride, recordFloats = pairs * parts * group * record;
  const at::Tensor buffer = at::empty({queryFloats + recordFloats + workers * group * block}, at::kFloat);
  float* const queries = buffer.data_ptr<float>();
  float* const found = queries + queryFloats;
  float* const allScores = found + recordFloats;
  std::fill_n(found, recordFloats, 0.0f);
  const at::Tensor q = unitStride(query);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t from = b * q.stride(0) + h * q.stride(1);
      float* const to = queries + (b * heads + h) * queryStride;
      if (type == at::kBFloat16)
        packQueryHalf(static_cast<const uint16_t*>(q.const_data_ptr()) + from, width, scale, to, queryStride);
      else
        packQuery(q.const_data_ptr<float>() + from, width, scale, to, queryStride);
    }
  const at::Tensor keys = unitStride(keyCache), values = unitStride(valueCache);

  const auto attend = [&](int64_t task, int64_t worker) {
    const int64_t pair = task / parts, part = task % parts, b = pair / keyHeads, keyHead = pair % keyHeads;
    const int64_t earliest = windowLeft < 0 ? 0 : std::max<int64_t>(0, count[b] - 1 - windowLeft), span = count[b] - earliest;
    const int64_t begin = earliest + span * part / parts, end = earliest + span * (part + 1) / parts;
    const float* const query = queries + (b * heads + keyHead * group) * queryStride;
    float* const out = found + task * group * record;
    float* const scores = allScores + worker * group * block;
    for (int64_t h = 0; h < group; ++h) out[h * record + outStride] = -infinity;
    const int64_t keyAt = b * keys.stride(0) + keyHead * keys.stride(1), valueAt = b * values.stride(0) + keyHead * values.stride(1);
    for (int64_t i = begin; i < end; i += block) {
      const int64_t rows = std::min(block, end - i), key = keyAt + i * keys.stride(2), value = valueAt + i * values.stride(2);
      if (stored == at::kChar) {
        scoreKeysInt8(keys.const_data_ptr<int8_t>() + key, keys.stride(2), rows, width, query, group, scores);
      } else if (stored == at::kBFloat16) {
        scoreKeysHalf(static_cast<const uint16_t*>(keys.const_data_ptr()) + key, keys.stride(2), rows, width, query, group, scores);
      } else {
        scoreKeys(keys.const_data_ptr<float>() + key, keys.stride(2), rows, width, query, group, scores);
      }
      const int64_t scaleAt = pair * capacity + i;
      if (adjusted)
        for (int64_t h = 0; h < group; ++h)
          adjust(scores + h * block, rows, keyScales.defined() ? keyScales.const_data_ptr<float>() + scaleAt : nullptr, cap,
                 bias.defined() ? biases.const_data_ptr<float>() + b * biases.stride(0) + (keyHead * group + h) * biases.stride(1) + i
                                : nullptr);
      for (int64_t h = 0; h < group; ++h)
        weigh(scores + h * block, rows, out[h * record + outStride], out[h * record + outStride + 1], out + h * record, outStride);
      if (stored == at::kChar) {
        for (int64_t h = 0; h < group; ++h) scaleWeights(scores + h * block, rows, valueScales.const_data_ptr<float>() + scaleAt);
        addValuesInt8(values.const_data_ptr<int8_t>() + value, values.stride(2), rows, valueWidth, scores, group, out, record);
      } else if (stored == at::kBFloat16) {
        addValuesHalf(static_cast<const uint16_t*>(values.const_data_ptr()) + value, values.stride(2), rows, valueWidth, scores, group, out,
                      record);
      } else {
        addValues(values.const_data_ptr<float>() + value, values.stride(2), rows, valueWidth, scores, group, out, record);
      }
    }
  };
  // Below some 64 KB of cache, starting the team costs more than it saves.
  if (longest * pairs * (width + valueWidth) < 1 << 14)
    for (int64_t task = 0; task < pairs * parts; ++task) attend(task, 0);
  else
    parallelTasks(pairs * parts, attend);

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
      if (type == at::kBFloat16) {
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
  library.def(
      "attention_step(Tensor query, Tensor key_cache, Tensor value_cache, Tensor lengths, int window_left=-1, float? scale=None, "
      "Tensor? bias=None, float? softcap=None, Tensor? key_scales=None, Tensor? value_scales=None) -> Tensor");
}
TORCH_LIBRARY_IMPL(martlet, CPU, library) { library.impl("attention_step", attentionStep); }

}  // namespace martlet
