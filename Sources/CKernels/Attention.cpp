// Softmax attention without the score matrix (Dao et al. 2022, "FlashAttention"; the blocks' order is ours).
//
// Everything is computed transposed: a block of scores is Sᵀ = K Qᵀ, keys down, 64 queries across the vector lanes. So the
// softmax's maxima and sums go down columns and need no horizontal operation, Pᵀ is the second factor of both Oᵀ += Vᵀ Pᵀ and
// dQᵀ += Kᵀ dSᵀ, and the first one of dV += Pᵀ dO and dK += dSᵀ Q: nothing of size keys × queries is ever transposed.
// The scale and log2(e) go into the packed queries, so that a weight costs a subtraction and a 2^x.

#include <ATen/ATen.h>
#include <ATen/native/CPUBlas.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "Lanes.h"
#include "Parallel.h"

namespace martlet {
namespace {

using lanes::Floats;
using lanes::Ints;

constexpr int64_t queryBlock = 64;       // queries across the lanes: four vectors
constexpr int64_t keyBlock = 64;         // keys down; both blocks end early at a whole vector where the sequence ends
constexpr int64_t queryGroup = 8;        // query blocks that share a packed key block (forward)
constexpr int64_t keyGroup = 4;          // key blocks that share a packed query block (backward)
constexpr float log2E = 1.44269504088896341f;
constexpr float ln2 = 0.693147180559945309f;
constexpr float infinity = std::numeric_limits<float>::infinity();

int64_t wholeVectors(int64_t n) { return (n + lanes::width - 1) / lanes::width * lanes::width; }

/// c [m, n] = (add ? c : 0) + a [m, k] b [k, n]; each with its own row stride.
void blockProduct(int64_t m, int64_t n, int64_t k, const float* a, int64_t strideA, const float* b, int64_t strideB, float* c, int64_t strideC,
                  bool add) {
  at::native::cpublas::brgemm(m, n, k, strideA, strideB, strideC, add, a, b, c, false);
}

/// A [B, heads, length, width] tensor whose last dimension has stride 1.
template <typename T>
struct Heads {
  T* data;
  int64_t batchStride, headStride, stride;
  explicit Heads(const at::Tensor& t)
      : data(t.numel() ? static_cast<T*>(t.data_ptr()) : nullptr), batchStride(t.stride(0)), headStride(t.stride(1)), stride(t.stride(2)) {}
  T* row(int64_t b, int64_t h, int64_t i) const { return data + b * batchStride + h * headStride + i * stride; }
};

// MARK: Row loops

/// to[c][r] = from[r][c] · scale for r < rows, c < columns; `to` has rows of 64, of which the last vector begun is filled with 0.
MARTLET_VECTOR static void packTransposed(const float* from, int64_t stride, int64_t rows, int64_t columns, float scale, float* to) {
  for (int64_t r = 0; r < rows; r += 16)
    for (int64_t c = 0; c < columns; c += 16) {
      const int64_t inRows = rows - r < 16 ? rows - r : 16, inColumns = columns - c < 16 ? columns - c : 16;
      Floats tile[16];
      if (inRows == 16 && inColumns == 16) {
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; ++i) { lanes::load(tile[i], from + (r + i) * stride + c); tile[i] *= scale; }
        lanes::transpose(tile);
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; ++i) lanes::store(to + (c + i) * 64 + r, tile[i]);
      } else {
        alignas(64) float edge[16][16] = {};
        for (int64_t i = 0; i < inRows; ++i) std::memcpy(edge[i], from + (r + i) * stride + c, static_cast<size_t>(inColumns) * sizeof(float));
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; ++i) { lanes::load(tile[i], edge[i]); tile[i] *= scale; }
        lanes::transpose(tile);
        std::memcpy(edge, tile, sizeof edge);
        for (int64_t j = 0; j < inColumns; ++j) std::memcpy(to + (c + j) * 64 + r, edge[j], sizeof edge[j]);
      }
    }
}

/// to[r][c] = from[c][r] · scale[r] for r < rows, c < columns, where `from` has rows of 64.
MARTLET_VECTOR static void unpackTransposed(const float* from, int64_t rows, int64_t columns, const float* scale, float* to, int64_t stride) {
  for (int64_t r = 0; r < rows; r += 16)
    for (int64_t c = 0; c < columns; c += 16) {
      const int64_t inRows = rows - r < 16 ? rows - r : 16, inColumns = columns - c < 16 ? columns - c : 16;
      Floats tile[16], factor;
      lanes::load(factor, scale + r);
      if (inColumns == 16) {
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; ++i) { lanes::load(tile[i], from + (c + i) * 64 + r); tile[i] *= factor; }
      } else {
        for (int64_t i = 0; i < 16; ++i) {
          tile[i] = Floats{};
          if (i < inColumns) lanes::load(tile[i], from + (c + i) * 64 + r);
          tile[i] *= factor;
        }
      }
      lanes::transpose(tile);
      if (inRows == 16 && inColumns == 16) {
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; ++i) lanes::store(to + (r + i) * stride + c, tile[i]);
      } else {
        alignas(64) float edge[16][16];
        std::memcpy(edge, tile, sizeof edge);
        for (int64_t i = 0; i < inRows; ++i) std::memcpy(to + (r + i) * stride + c, edge[i], static_cast<size_t>(inColumns) * sizeof(float));
      }
    }
}

/// to[r][c] = from[r][c] for r < rows, zero in the rows up to `padded`; `to` is contiguous.
void packRows(const float* from, int64_t stride, int64_t rows, int64_t columns, float* to, int64_t padded) {
  for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * columns, from + r * stride, static_cast<size_t>(columns) * sizeof(float));
  std::memset(to + rows * columns, 0, static_cast<size_t>((padded - rows) * columns) * sizeof(float));
}

/// Which keys each query of a block may attend to: rows first + lane <= r < last + lane for which keys[r] is true.
struct BlockMask {
  int32_t first, last;
  bool keys[keyBlock];
};

constexpr Ints laneNumbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/// The lanes first[g] <= r < last[g] where `open`.
MARTLET_INLINE void allow(Ints& allowed, bool open, int r, const Ints& first, const Ints& last) {
  allowed = open ? (Ints)((first <= (Ints{} + r)) & (last > (Ints{} + r))) : Ints{};
}

/// Turns a block of scores s [rows][64] (in log2 units; the first 16 · groups columns) into weights 2^(s - maximum), with `maximum` and `sum` of the
/// rows so far brought up to date and `shrink` = 2^(old maximum - new). False where no lane needs shrinking.
template <int groups>
MARTLET_INLINE bool softmaxColumns(float* s, int rows, float* maximum, float* sum, float* shrink, const BlockMask* mask) {
  MARTLET_FAST_SUMS
  Floats high[groups], total[groups];
  Ints first[groups], last[groups];
#pragma clang loop unroll(full)
  for (int g = 0; g < groups; ++g) high[g] = Floats{} - infinity;
  if (mask) {
#pragma clang loop unroll(full)
    for (int g = 0; g < groups; ++g) {
      first[g] = laneNumbers + (g * 16 + mask->first);
      last[g] = laneNumbers + (g * 16 + mask->last);
    }
    for (int r = 0; r < rows; ++r) {
      const bool open = mask->keys[r];
#pragma clang loop unroll(full)
      for (int g = 0; g < groups; ++g) {
        Floats x;
        lanes::load(x, s + r * queryBlock + g * 16);
        Ints allowed;
        allow(allowed, open, r, first[g], last[g]);
        x = allowed ? x : Floats{} - infinity;
        high[g] = x > high[g] ? x : high[g];
        lanes::store(s + r * queryBlock + g * 16, x);
      }
    }
  } else {
    for (int r = 0; r < rows; ++r)
#pragma clang loop unroll(full)
      for (int g = 0; g < groups; ++g) {
        Floats x;
        lanes::load(x, s + r * queryBlock + g * 16);
        high[g] = x > high[g] ? x : high[g];
      }
  }
  Ints changed = {};
#pragma clang loop unroll(full)
  for (int g = 0; g < groups; ++g) {
    Floats before, factor;
    lanes::load(before, maximum + g * 16);
    high[g] = before > high[g] ? before : high[g];
    const Ints shrinks = (before != high[g]) & (before != Floats{} - infinity);
    changed |= shrinks;
    factor = before - high[g];
    lanes::exp2InPlace(factor);
    factor = shrinks ? factor : Floats{} + 1.0f;
    lanes::store(shrink + g * 16, factor);
    lanes::store(maximum + g * 16, high[g]);
    high[g] = high[g] == Floats{} - infinity ? Floats{} : high[g];
    total[g] = Floats{};
  }
  if (mask) {
    for (int r = 0; r < rows; ++r)
#pragma clang loop unroll(full)
      for (int g = 0; g < groups; ++g) {
        Floats x;
        lanes::load(x, s + r * queryBlock + g * 16);
        const Ints closed = x == Floats{} - infinity;
        x -= high[g];
        lanes::exp2InPlace(x);
        x = closed ? Floats{} : x;
        total[g] += x;
        lanes::store(s + r * queryBlock + g * 16, x);
      }
  } else {
    for (int r = 0; r < rows; ++r)
#pragma clang loop unroll(full)
      for (int g = 0; g < groups; ++g) {
        Floats x;
        lanes::load(x, s + r * queryBlock + g * 16);
        x -= high[g];
        lanes::exp2InPlace(x);
        total[g] += x;
        lanes::store(s + r * queryBlock + g * 16, x);
      }
  }
#pragma clang loop unroll(full)
  for (int g = 0; g < groups; ++g) {
    Floats before, factor;
    lanes::load(before, sum + g * 16);
    lanes::load(factor, shrink + g * 16);
    lanes::store(sum + g * 16, before * factor + total[g]);
  }
  int any = 0;
  for (int lane = 0; lane < 16; ++lane) any |= changed[lane];
  return any != 0;
}

MARTLET_VECTOR static bool softmaxBlock(float* s, int rows, int vectors, float* maximum, float* sum, float* shrink, const BlockMask* mask) {
  switch (vectors) {
    case 1: return softmaxColumns<1>(s, rows, maximum, sum, shrink, mask);
    case 2: return softmaxColumns<2>(s, rows, maximum, sum, shrink, mask);
    case 3: return softmaxColumns<3>(s, rows, maximum, sum, shrink, mask);
    default: return softmaxColumns<4>(s, rows, maximum, sum, shrink, mask);
  }
}

/// o [rows][64] times factor, in the first 16 · vectors columns.
MARTLET_VECTOR static void scaleColumns(float* o, int64_t rows, int vectors, const float* factor) {
  Floats f[4];
  for (int g = 0; g < vectors; ++g) lanes::load(f[g], factor + g * 16);
  for (int64_t r = 0; r < rows; ++r)
    for (int g = 0; g < vectors; ++g) {
      Floats x;
      lanes::load(x, o + r * queryBlock + g * 16);
      lanes::store(o + r * queryBlock + g * 16, x * f[g]);
    }
}

/// The backward pass's element work: s becomes the weights P = 2^(s - lse), dp becomes dS = P (dP - delta).
template <int groups>
MARTLET_INLINE void columnGradients(float* s, float* dp, int rows, const float* lse, const float* delta, const BlockMask* mask) {
  Floats l[groups], d[groups];
  Ints first[groups] = {}, last[groups] = {};
  std::memcpy(l, lse, sizeof l);
  std::memcpy(d, delta, sizeof d);
  if (mask) {
#pragma clang loop unroll(full)
    for (int g = 0; g < groups; ++g) {
      first[g] = laneNumbers + (g * 16 + mask->first);
      last[g] = laneNumbers + (g * 16 + mask->last);
    }
    for (int r = 0; r < rows; ++r) {
      const bool open = mask->keys[r];
#pragma clang loop unroll(full)
      for (int g = 0; g < groups; ++g) {
        Floats x, y;
        lanes::load(x, s + r * queryBlock + g * 16);
        lanes::load(y, dp + r * queryBlock + g * 16);
        Ints allowed;
        allow(allowed, open, r, first[g], last[g]);
        x -= l[g];
        lanes::exp2InPlace(x);
        x = allowed ? x : Floats{};
        y = allowed ? x * (y - d[g]) : Floats{};
        lanes::store(s + r * queryBlock + g * 16, x);
        lanes::store(dp + r * queryBlock + g * 16, y);
      }
    }
    return;
  }
  for (int r = 0; r < rows; ++r)
#pragma clang loop unroll(full)
    for (int g = 0; g < groups; ++g) {
      Floats x, y;
      lanes::load(x, s + r * queryBlock + g * 16);
      lanes::load(y, dp + r * queryBlock + g * 16);
      x -= l[g];
      lanes::exp2InPlace(x);
      y = x * (y - d[g]);
      lanes::store(s + r * queryBlock + g * 16, x);
      lanes::store(dp + r * queryBlock + g * 16, y);
    }
}

MARTLET_VECTOR static void weightGradients(float* s, float* dp, int rows, int vectors, const float* lse, const float* delta, const BlockMask* mask) {
  switch (vectors) {
    case 1: return columnGradients<1>(s, dp, rows, lse, delta, mask);
    case 2: return columnGradients<2>(s, dp, rows, lse, delta, mask);
    case 3: return columnGradients<3>(s, dp, rows, lse, delta, mask);
    default: return columnGradients<4>(s, dp, rows, lse, delta, mask);
  }
}

MARTLET_VECTOR static float dotRow(const float* a, const float* b, int64_t n) {
  MARTLET_FAST_SUMS
  float sum = 0;
  MARTLET_SIMD
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

MARTLET_VECTOR static void scaleRow(const float* from, float scale, float* to, int64_t n) {
  MARTLET_SIMD
  for (int64_t i = 0; i < n; ++i) to[i] = from[i] * scale;
}

MARTLET_VECTOR static void addRow(const float* from, float* to, int64_t n) {
  MARTLET_SIMD
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

// MARK: Geometry

enum class Cover { none, part, full };

/// Sizes of one call and which blocks of scores are visible.
struct Geometry {
  int64_t batch, heads, keyHeads, queries, keys, width, valueWidth;
  int64_t left, right;  // query i sees the keys from i + keys - queries - left to i + keys - queries + right
  float scale;
  const bool* keyMask = nullptr;  // [batch, keys] contiguous
  std::vector<Cover> maskCover;   // [batch, key blocks]: how much of a key block the mask leaves

  int64_t group() const { return heads / keyHeads; }
  int64_t queryBlocks() const { return (queries + queryBlock - 1) / queryBlock; }
  int64_t keyBlocks() const { return (keys + keyBlock - 1) / keyBlock; }
  int64_t queriesIn(int64_t block) const { return std::min(queryBlock, queries - block * queryBlock); }
  int64_t keysIn(int64_t block) const { return std::min(keyBlock, keys - block * keyBlock); }

  /// Key blocks [first, last) that the window leaves to the query blocks [from, to).
  std::pair<int64_t, int64_t> visibleKeys(int64_t from, int64_t to) const {
    const int64_t earliest = from * queryBlock + keys - queries, latest = std::min(queries, to * queryBlock) - 1 + keys - queries;
    const int64_t first = std::max<int64_t>(0, earliest - left), last = std::min(keys, latest + right + 1);
    if (first >= last) return {0, 0};
    return {first / keyBlock, (last + keyBlock - 1) / keyBlock};
  }

  Cover cover(int64_t b, int64_t queryIndex, int64_t keyIndex) const {
    const int64_t earliest = queryIndex * queryBlock + keys - queries, latest = earliest + queriesIn(queryIndex) - 1;
    const int64_t firstKey = keyIndex * keyBlock, lastKey = firstKey + keysIn(keyIndex) - 1;
    if (lastKey < earliest - left || firstKey > latest + right) return Cover::none;
    const Cover masked = keyMask ? maskCover[b * keyBlocks() + keyIndex] : Cover::full;
    if (masked == Cover::none) return Cover::none;
    const bool inside = firstKey >= latest - left && lastKey <= earliest + right && keysIn(keyIndex) % lanes::width == 0;
    return inside ? masked : Cover::part;
  }

  void fill(BlockMask& mask, int64_t b, int64_t queryIndex, int64_t keyIndex) const {
    const int64_t firstKey = keyIndex * keyBlock, count = keysIn(keyIndex);
    const int64_t at = queryIndex * queryBlock + keys - queries - firstKey;
    constexpr int64_t outside = queryBlock + keyBlock;
    mask.first = static_cast<int32_t>(std::clamp(at - left, -outside, outside));
    mask.last = static_cast<int32_t>(std::clamp(at + right + 1, -outside, outside));
    if (keyMask) std::copy_n(keyMask + b * keys + firstKey, count, mask.keys); else std::fill_n(mask.keys, count, true);
    std::fill(mask.keys + count, mask.keys + keyBlock, false);
  }
};

/// One worker's buffers, cut from one allocation; each starts on a cache line.
struct Scratch {
  float* next;
  float* take(int64_t count) {
    float* taken = next;
    next += (count + 15) / 16 * 16;
    return taken;
  }
};

at::Tensor floats(int64_t count) { return at::empty({std::max<int64_t>(count, 1)}, at::kFloat); }

// MARK: Forward

void forward(const Geometry& g, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor& out, at::Tensor& logsumexp) {
  const Heads<const float> q(query), k(key), v(value);
  const Heads<float> o(out);
  float* const lse = logsumexp.data_ptr<float>();
  const int64_t d = g.width, dv = g.valueWidth, group = g.group();
  const int64_t units = g.queryBlocks() * group, pairs = g.batch * g.keyHeads;  // a unit: one query block of one head
  const int64_t workers = workerCount();
  const int64_t chunk = std::clamp<int64_t>(units * pairs / (4 * workers), 1, std::min(queryGroup, units));
  const int64_t chunks = (units + chunk - 1) / chunk;
  const int64_t perWorker = chunk * queryBlock * (d + dv + 2 + 2) + keyBlock * (d + dv + queryBlock) + queryBlock + 64 * 16;
  const at::Tensor buffer = floats(workers * perWorker);

  parallelTasks(chunks * pairs, [&](int64_t task, int64_t worker) {
    const int64_t pair = task % pairs, b = pair / g.keyHeads, keyHead = pair % g.keyHeads;
    const int64_t index = chunks - 1 - task / pairs;  // the longest rows of a causal mask first
    const int64_t begin = index * chunk, end = std::min(units, begin + chunk), count = end - begin;
    Scratch scratch{buffer.data_ptr<float>() + worker * perWorker};
    float* const queriesT = scratch.take(chunk * d * queryBlock);
    float* const outT = scratch.take(chunk * dv * queryBlock);
    float* const maximum = scratch.take(chunk * queryBlock);
    float* const sum = scratch.take(chunk * queryBlock);
    float* const keyTile = scratch.take(keyBlock * d);
    float* const valueT = scratch.take(dv * keyBlock);
    float* const s = scratch.take(keyBlock * queryBlock);
    float* const shrink = scratch.take(queryBlock);

    for (int64_t u = 0; u < count; ++u) {
      const int64_t block = (begin + u) / group, head = keyHead * group + (begin + u) % group;
      packTransposed(q.row(b, head, block * queryBlock), q.stride, g.queriesIn(block), d, g.scale * log2E,
                     queriesT + u * d * queryBlock);
    }
    std::fill_n(outT, count * dv * queryBlock, 0.0f);
    std::fill_n(maximum, count * queryBlock, -infinity);
    std::fill_n(sum, count * queryBlock, 0.0f);

    BlockMask mask;
    const auto [firstKeys, lastKeys] = g.visibleKeys(begin / group, (end - 1) / group + 1);
    for (int64_t keyIndex = firstKeys; keyIndex < lastKeys; ++keyIndex) {
      bool packed = false;
      for (int64_t u = 0; u < count; ++u) {
        const int64_t block = (begin + u) / group;
        const Cover cover = g.cover(b, block, keyIndex);
        if (cover == Cover::none) continue;
        const int64_t rows = wholeVectors(g.keysIn(keyIndex)), columns = wholeVectors(g.queriesIn(block));
        const int vectors = static_cast<int>(columns / lanes::width);
        if (!packed) {
          packRows(k.row(b, keyHead, keyIndex * keyBlock), k.stride, g.keysIn(keyIndex), d, keyTile, rows);
          packTransposed(v.row(b, keyHead, keyIndex * keyBlock), v.stride, g.keysIn(keyIndex), dv, 1.0f, valueT);
          packed = true;
        }
        blockProduct(rows, columns, d, keyTile, d, queriesT + u * d * queryBlock, queryBlock, s, queryBlock, false);
        if (cover == Cover::part) g.fill(mask, b, block, keyIndex);
        if (softmaxBlock(s, static_cast<int>(rows), vectors, maximum + u * queryBlock, sum + u * queryBlock, shrink,
                         cover == Cover::part ? &mask : nullptr))
          scaleColumns(outT + u * dv * queryBlock, dv, vectors, shrink);
        blockProduct(dv, columns, rows, valueT, keyBlock, s, queryBlock, outT + u * dv * queryBlock, queryBlock, true);
      }
    }

    for (int64_t u = 0; u < count; ++u) {
      const int64_t block = (begin + u) / group, head = keyHead * group + (begin + u) % group, rows = g.queriesIn(block);
      const float* const total = sum + u * queryBlock;
      for (int64_t lane = 0; lane < wholeVectors(rows); ++lane) shrink[lane] = total[lane] == 0 ? 0.0f : 1.0f / total[lane];
      unpackTransposed(outT + u * dv * queryBlock, rows, dv, shrink, o.row(b, head, block * queryBlock), o.stride);
      float* const to = lse + (b * g.heads + head) * g.queries + block * queryBlock;
      for (int64_t lane = 0; lane < rows; ++lane)
        to[lane] = total[lane] == 0 ? -infinity : (maximum[u * queryBlock + lane] + std::log2(total[lane])) * ln2;
    }
  });
}

// MARK: Backward

/// A task owns some groups of key blocks of one key head, so dK and dV need no sharing; dQ is summed in a buffer of the task's
/// own, and the buffers of a head's tasks are added in a fixed order.
void backward(const Geometry& g, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& out,
              const at::Tensor& logsumexp, const at::Tensor& outGradient, at::Tensor& queryGradient, at::Tensor& keyGradient,
              at::Tensor& valueGradient) {
  const Heads<const float> q(query), k(key), v(value), o(out), dO(outGradient);
  const Heads<float> dQ(queryGradient), dK(keyGradient), dV(valueGradient);
  const float* const lse = logsumexp.data_ptr<float>();
  const int64_t d = g.width, dv = g.valueWidth, group = g.group();
  const int64_t units = g.queryBlocks() * group, pairs = g.batch * g.keyHeads;
  const int64_t workers = workerCount();
  const int64_t wanted = std::clamp<int64_t>((4 * workers + pairs - 1) / pairs, 1, g.keyBlocks());
  const int64_t grouped = std::clamp<int64_t>(g.keyBlocks() / (2 * wanted), 1, keyGroup);
  const int64_t keyGroups = (g.keyBlocks() + grouped - 1) / grouped;
  const int64_t parts = std::min(wanted, keyGroups);

  const int64_t accumulator = units * d * queryBlock;
  const int64_t accumulators = parts == 1 ? std::min(workers, pairs) : pairs * parts;
  const at::Tensor sums = floats(accumulators * accumulator);
  const int64_t perWorker = 2 * units * queryBlock + grouped * keyBlock * (3 * d + 2 * dv) + 2 * queryBlock * (d + dv) +
                            2 * keyBlock * queryBlock + queryBlock + (5 * grouped + 16) * 16;
  const at::Tensor buffer = floats(workers * perWorker);
  const size_t tile = static_cast<size_t>(keyBlock) * sizeof(float);
  alignas(64) float scales[queryBlock];
  std::fill_n(scales, queryBlock, g.scale);

  const auto storeQueryGradient = [&](const float* from, int64_t pair, int64_t unit) {
    const int64_t block = unit / group, head = pair % g.keyHeads * group + unit % group;
    unpackTransposed(from, g.queriesIn(block), d, scales, dQ.row(pair / g.keyHeads, head, block * queryBlock), dQ.stride);
  };

  parallelTasks(pairs * parts, [&](int64_t task, int64_t worker) {
    const int64_t pair = task / parts, part = task % parts, b = pair / g.keyHeads, keyHead = pair % g.keyHeads;
    float* const queryGradientsT = sums.data_ptr<float>() + (parts == 1 ? worker : task) * accumulator;
    Scratch scratch{buffer.data_ptr<float>() + worker * perWorker};
    float* const normalisers = scratch.take(units * queryBlock);
    float* const deltas = scratch.take(units * queryBlock);
    float* const keyTiles = scratch.take(grouped * keyBlock * d);
    float* const keysT = scratch.take(grouped * keyBlock * d);
    float* const keyGradients = scratch.take(grouped * keyBlock * d);
    float* const valueTiles = scratch.take(grouped * keyBlock * dv);
    float* const valueGradients = scratch.take(grouped * keyBlock * dv);
    float* const queryTile = scratch.take(queryBlock * d);
    float* const queryT = scratch.take(queryBlock * d);
    float* const outGradientTile = scratch.take(queryBlock * dv);
    float* const outGradientT = scratch.take(queryBlock * dv);
    float* const s = scratch.take(keyBlock * queryBlock);
    float* const dS = scratch.take(keyBlock * queryBlock);

    std::memset(queryGradientsT, 0, static_cast<size_t>(accumulator) * sizeof(float));
    for (int64_t unit = 0; unit < units; ++unit) {
      const int64_t block = unit / group, head = keyHead * group + unit % group, rows = g.queriesIn(block);
      const float* const from = lse + (b * g.heads + head) * g.queries + block * queryBlock;
      for (int64_t lane = 0; lane < queryBlock; ++lane) {
        const int64_t i = block * queryBlock + lane;
        normalisers[unit * queryBlock + lane] = lane < rows ? from[lane] * log2E : 0.0f;
        deltas[unit * queryBlock + lane] = lane < rows ? dotRow(o.row(b, head, i), dO.row(b, head, i), dv) : 0.0f;
      }
    }

    BlockMask mask;
    for (int64_t keyGroupIndex = part; keyGroupIndex < keyGroups; keyGroupIndex += parts) {
      const int64_t firstKeys = keyGroupIndex * grouped, count = std::min(grouped, g.keyBlocks() - firstKeys);
      for (int64_t n = 0; n < count; ++n) {
        const int64_t rows = g.keysIn(firstKeys + n), at = (firstKeys + n) * keyBlock;
        packRows(k.row(b, keyHead, at), k.stride, rows, d, keyTiles + n * keyBlock * d, wholeVectors(rows));
        packTransposed(k.row(b, keyHead, at), k.stride, rows, d, 1.0f, keysT + n * keyBlock * d);
        packRows(v.row(b, keyHead, at), v.stride, rows, dv, valueTiles + n * keyBlock * dv, wholeVectors(rows));
      }
      std::memset(keyGradients, 0, static_cast<size_t>(count * d) * tile);
      std::memset(valueGradients, 0, static_cast<size_t>(count * dv) * tile);

      for (int64_t unit = 0; unit < units; ++unit) {
        const int64_t block = unit / group, head = keyHead * group + unit % group, columns = wholeVectors(g.queriesIn(block));
        bool packed = false;
        for (int64_t n = 0; n < count; ++n) {
          const Cover cover = g.cover(b, block, firstKeys + n);
          if (cover == Cover::none) continue;
          if (!packed) {
            const int64_t rows = g.queriesIn(block), at = block * queryBlock;
            packRows(q.row(b, head, at), q.stride, rows, d, queryTile, columns);
            packTransposed(q.row(b, head, at), q.stride, rows, d, g.scale * log2E, queryT);
            packRows(dO.row(b, head, at), dO.stride, rows, dv, outGradientTile, columns);
            packTransposed(dO.row(b, head, at), dO.stride, rows, dv, 1.0f, outGradientT);
            packed = true;
          }
          const int64_t rows = wholeVectors(g.keysIn(firstKeys + n));
          const float* const keyTile = keyTiles + n * keyBlock * d;
          blockProduct(rows, columns, d, keyTile, d, queryT, queryBlock, s, queryBlock, false);
          blockProduct(rows, columns, dv, valueTiles + n * keyBlock * dv, dv, outGradientT, queryBlock, dS, queryBlock, false);
          if (cover == Cover::part) g.fill(mask, b, block, firstKeys + n);
          weightGradients(s, dS, static_cast<int>(rows), static_cast<int>(columns / lanes::width), normalisers + unit * queryBlock,
                          deltas + unit * queryBlock, cover == Cover::part ? &mask : nullptr);
          blockProduct(rows, dv, columns, s, queryBlock, outGradientTile, dv, valueGradients + n * keyBlock * dv, dv, true);
          blockProduct(rows, d, columns, dS, queryBlock, queryTile, d, keyGradients + n * keyBlock * d, d, true);
          blockProduct(d, columns, rows, keysT + n * keyBlock * d, keyBlock, dS, queryBlock, queryGradientsT + unit * d * queryBlock, queryBlock, true);
        }
      }

      for (int64_t n = 0; n < count; ++n)
        for (int64_t r = 0; r < g.keysIn(firstKeys + n); ++r) {
          const int64_t at = (firstKeys + n) * keyBlock + r;
          scaleRow(keyGradients + (n * keyBlock + r) * d, g.scale, dK.row(b, keyHead, at), d);
          std::memcpy(dV.row(b, keyHead, at), valueGradients + (n * keyBlock + r) * dv, static_cast<size_t>(dv) * sizeof(float));
        }
    }
    if (parts == 1)
      for (int64_t unit = 0; unit < units; ++unit) storeQueryGradient(queryGradientsT + unit * d * queryBlock, pair, unit);
  });

  if (parts > 1)
    parallelRanges(pairs * units, 1, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t index = begin; index < end; ++index) {
        const int64_t pair = index / units, unit = index % units, size = d * queryBlock;
        float* const first = sums.data_ptr<float>() + pair * parts * accumulator + unit * size;
        for (int64_t part = 1; part < parts; ++part) addRow(first + part * accumulator, first, size);
        storeQueryGradient(first, pair, unit);
      }
    });
}

// MARK: Operators

std::string shape(const at::Tensor& t) { return c10::str(t.scalar_type(), " ", t.sizes()); }

bool fused(at::ScalarType type) { return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf; }

at::Tensor unitStride(const at::Tensor& t) { return t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous(); }

at::Tensor asType(const at::Tensor& t, at::ScalarType type) { return t.scalar_type() == type ? t : t.to(type); }

at::Tensor asFloat(const at::Tensor& t) { return unitStride(asType(t, at::kFloat)); }

/// [B, heads, length, width] whose transposition of heads and length is contiguous.
at::Tensor lengthMajor(int64_t batch, int64_t heads, int64_t length, int64_t width) {
  return at::empty({batch, length, heads, width}, at::kFloat).transpose(1, 2);
}

Geometry geometry(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& mask, bool causal, int64_t left,
                  int64_t right, std::optional<double> scale) {
  Geometry g;
  g.batch = query.size(0), g.heads = query.size(1), g.queries = query.size(2), g.width = query.size(3);
  g.keyHeads = key.size(1), g.keys = key.size(2), g.valueWidth = value.size(3);
  const int64_t unlimited = g.queries + g.keys;
  g.left = left < 0 ? unlimited : std::min(left, unlimited);
  g.right = causal ? 0 : right < 0 ? unlimited : std::min(right, unlimited);
  g.scale = static_cast<float>(scale.value_or(1.0 / std::sqrt(static_cast<double>(g.width))));
  if (mask.defined() && mask.numel()) {
    g.keyMask = mask.const_data_ptr<bool>();
    g.maskCover.resize(static_cast<size_t>(g.batch * g.keyBlocks()));
    for (int64_t b = 0; b < g.batch; ++b)
      for (int64_t block = 0; block < g.keyBlocks(); ++block) {
        const bool* const from = g.keyMask + b * g.keys + block * keyBlock;
        const int64_t open = std::count(from, from + g.keysIn(block), true);
        g.maskCover[b * g.keyBlocks() + block] = open == 0 ? Cover::none : open == g.keysIn(block) ? Cover::full : Cover::part;
      }
  }
  return g;
}

std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                             const std::optional<at::Tensor>& keyMask, bool causal, int64_t left, int64_t right,
                                             std::optional<double> scale) {
  TORCH_CHECK(query.dim() == 4, "attention: query must be [B, H, L, d], got ", shape(query));
  TORCH_CHECK(key.dim() == 4, "attention: key must be [B, Hk, S, d], got ", shape(key));
  TORCH_CHECK(value.dim() == 4, "attention: value must be [B, Hk, S, dv], got ", shape(value));
  TORCH_CHECK(fused(query.scalar_type()), "attention: query must be float32, bfloat16 or float16, got ", shape(query));
  TORCH_CHECK(key.scalar_type() == query.scalar_type() && value.scalar_type() == query.scalar_type(),
              "attention: query, key and value must have one type, got ", shape(query), ", ", shape(key), " and ", shape(value));
  TORCH_CHECK(query.is_cpu() && key.is_cpu() && value.is_cpu(), "attention: query, key and value must be on the CPU");
  TORCH_CHECK(key.size(0) == query.size(0) && key.size(3) == query.size(3) && query.size(3) > 0,
              "attention: key must have the query's batch and width (at least 1), got query ", shape(query), " and key ", shape(key));
  TORCH_CHECK(query.size(1) == key.size(1) || (key.size(1) > 0 && query.size(1) % key.size(1) == 0),
              "attention: the query's heads must be a multiple of the key's, got query ", shape(query), " and key ", shape(key));
  TORCH_CHECK(value.size(0) == key.size(0) && value.size(1) == key.size(1) && value.size(2) == key.size(2) && value.size(3) > 0,
              "attention: value must have the key's batch, heads and length and a width of at least 1, got key ", shape(key), " and value ",
              shape(value));
  at::Tensor mask;
  if (keyMask && keyMask->defined()) {
    TORCH_CHECK(keyMask->scalar_type() == at::kBool && keyMask->is_cpu() && keyMask->sizes() == at::IntArrayRef({key.size(0), key.size(2)}),
                "attention: key_mask must be a CPU bool tensor [B, S] = [", key.size(0), ", ", key.size(2), "], got ", shape(*keyMask));
    mask = keyMask->contiguous();
  }
  const Geometry g = geometry(query, key, value, mask, causal, left, right, scale);
  at::Tensor out = lengthMajor(g.batch, g.heads, g.queries, g.valueWidth);
  at::Tensor logsumexp = at::empty({g.batch, g.heads, g.queries}, at::kFloat);
  if (logsumexp.numel()) forward(g, asFloat(query), asFloat(key), asFloat(value), out, logsumexp);
  return {asType(out, query.scalar_type()), logsumexp};
}

using Gradients = std::array<at::Tensor, 3>;

Gradients attentionGradients(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& mask, const at::Tensor& out,
                             const at::Tensor& logsumexp, const at::Tensor& outGradient, bool causal, int64_t left, int64_t right,
                             std::optional<double> scale) {
  const Geometry g = geometry(query, key, value, mask, causal, left, right, scale);
  at::Tensor dQ = lengthMajor(g.batch, g.heads, g.queries, g.width);
  at::Tensor dK = lengthMajor(g.batch, g.keyHeads, g.keys, g.width), dV = lengthMajor(g.batch, g.keyHeads, g.keys, g.valueWidth);
  if (logsumexp.numel() == 0 || key.numel() == 0) {
    dQ.zero_(), dK.zero_(), dV.zero_();
  } else {
    backward(g, asFloat(query), asFloat(key), asFloat(value), asFloat(out), logsumexp, asFloat(outGradient), dQ, dK, dV);
  }
  const auto type = query.scalar_type();
  return {asType(dQ, type), asType(dK, type), asType(dV, type)};
}

/// The gradient as a function of its own, so that asking for the gradient's gradient fails with a reason.
struct AttentionGradient : torch::autograd::Function<AttentionGradient> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext*, const at::Tensor& query, const at::Tensor& key,
                                                const at::Tensor& value, const at::Tensor& outGradient, const std::optional<at::Tensor>& mask,
                                                const at::Tensor& out, const at::Tensor& logsumexp, bool causal, int64_t left, int64_t right,
                                                std::optional<double> scale) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Gradients gradients = attentionGradients(query, key, value, mask.value_or(at::Tensor()), out, logsumexp, outGradient, causal, left, right, scale);
    return {gradients[0], gradients[1], gradients[2]};
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*, torch::autograd::variable_list) {
    TORCH_CHECK(false, "attention: second derivatives are not available from the fused kernel; use the reference form");
  }
};

struct Attention : torch::autograd::Function<Attention> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const at::Tensor& query, const at::Tensor& key,
                                                const at::Tensor& value, const std::optional<at::Tensor>& keyMask, bool causal, int64_t left,
                                                int64_t right, std::optional<double> scale) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [out, logsumexp] = attention(query, key, value, keyMask, causal, left, right, scale);
    context->mark_non_differentiable({logsumexp});
    context->set_materialize_grads(false);
    const at::Tensor mask = keyMask && keyMask->defined() ? keyMask->contiguous() : at::Tensor();
    context->save_for_backward({query, key, value, mask, out, logsumexp});
    context->saved_data["causal"] = causal;
    context->saved_data["left"] = left;
    context->saved_data["right"] = right;
    context->saved_data["scale"] = scale;
    return {out, logsumexp};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    if (!gradients[0].defined()) return torch::autograd::variable_list(8);
    const auto saved = context->get_saved_variables();
    auto& data = context->saved_data;
    const bool causal = data["causal"].toBool();
    const int64_t left = data["left"].toInt(), right = data["right"].toInt();
    const auto scale = data["scale"].toOptional<double>();
    torch::autograd::variable_list results(8);
    if (at::GradMode::is_enabled()) {
      const auto mask = saved[3].defined() ? std::optional<at::Tensor>(saved[3]) : std::nullopt;
      const auto through = AttentionGradient::apply(saved[0], saved[1], saved[2], gradients[0], mask, saved[4].detach(), saved[5], causal, left, right, scale);
      std::copy(through.begin(), through.end(), results.begin());
    } else {
      at::AutoDispatchBelowADInplaceOrView below;
      const Gradients direct = attentionGradients(saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], gradients[0], causal, left, right, scale);
      std::copy(direct.begin(), direct.end(), results.begin());
    }
    return results;
  }
};

std::tuple<at::Tensor, at::Tensor> attentionWithGradient(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                                         const std::optional<at::Tensor>& keyMask, bool causal, int64_t left, int64_t right,
                                                         std::optional<double> scale) {
  if (!at::GradMode::is_enabled() || !(query.requires_grad() || key.requires_grad() || value.requires_grad())) {
    at::AutoDispatchBelowADInplaceOrView below;
    return attention(query, key, value, keyMask, causal, left, right, scale);
  }
  const auto results = Attention::apply(query, key, value, keyMask, causal, left, right, scale);
  return {results[0], results[1]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(martlet, library) {
  library.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor? key_mask=None, bool causal=False, int window_left=-1, int window_right=-1, "
      "float? scale=None) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(martlet, CPU, library) { library.impl("attention", attention); }
TORCH_LIBRARY_IMPL(martlet, Autograd, library) { library.impl("attention", attentionWithGradient); }

}  // namespace martlet
