// Softmax attention without the score matrix (Dao et al. 2022, "FlashAttention"; the blocks' order is ours).
//
// Everything is computed transposed: a block of scores is Sᵀ = K Qᵀ, keys down, 64 queries across the vector lanes. So the
// softmax's maxima and sums go down columns and need no horizontal operation, Pᵀ is the second factor of both Oᵀ += Vᵀ Pᵀ and
// dQᵀ += Kᵀ dSᵀ, and the first one of dV += Pᵀ dO and dK += dSᵀ Q: nothing of size keys × queries is ever transposed.
// The scale and log2(e) go into the packed queries, so that a weight costs a subtraction and a 2^x.
//
// Limit: floating-point operations. Counting only what a causal mask leaves (2 L² d forward, 5 L² d backward), one Zen 5 core does
// 190–204 GFLOP/s at d = 64 and 180–190 at d = 32 (L = 2048), of a peak of 235 (470 for two cores); the rest goes to the masked
// halves of the blocks on the diagonal (3 % of them) and to the row passes, which cost the same at every d. A head of L = 64 and
// d = 16, all diagonal, takes 2.2 µs forward and 6 µs backward.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "BlockProduct.h"
#include "Lanes.h"
#include "Parallel.h"

namespace martlet {
namespace {

using lanes::Floats;
using lanes::Ints;

constexpr int64_t queryBlock = 64;  // queries across the lanes: four vectors
constexpr int64_t keyBlock = 64;    // keys down; both blocks end early at a whole vector where the sequence ends
constexpr int64_t queryGroup = 8;   // query blocks that share a packed key block (forward)
constexpr int64_t keyGroup = 4;     // key blocks that share a packed query block (backward)
constexpr float log2E = 1.44269504088896341f;
constexpr float ln2 = 0.693147180559945309f;
constexpr float infinity = std::numeric_limits<float>::infinity();

int64_t wholeVectors(int64_t n) { return (n + lanes::width - 1) / lanes::width * lanes::width; }

/// c [m, n] = (add ? c : 0) + a [m, k] b [k, n]; each with its own row stride.
void blockProduct(int64_t m, int64_t n, int64_t k, const float* a, int64_t strideA, const float* b, int64_t strideB, float* c,
                  int64_t strideC, bool add) {
  blocks::product(m, n, k, a, strideA, b, strideB, c, strideC, add);
}

/// A [B, heads, length, width] tensor whose last dimension has stride 1.
template <typename T>
struct Heads {
  T* data;
  int64_t batchStride, headStride, stride;
  explicit Heads(const at::Tensor& t)
      : data(t.numel() ? static_cast<T*>(t.data_ptr()) : nullptr), batchStride(t.stride(0)), headStride(t.stride(1)), stride(t.stride(2)) {}
  /// The same from row `first` of every length on.
  Heads from(int64_t first) const {
    Heads later = *this;
    later.data += first * stride;
    return later;
  }
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
        for (int i = 0; i < 16; ++i) {
          lanes::load(tile[i], from + (r + i) * stride + c);
          tile[i] *= scale;
        }
        lanes::transpose(tile);
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; ++i) lanes::store(to + (c + i) * 64 + r, tile[i]);
      } else {
        alignas(64) float edge[16][16] = {};
        for (int64_t i = 0; i < inRows; ++i)
          std::memcpy(edge[i], from + (r + i) * stride + c, static_cast<size_t>(inColumns) * sizeof(float));
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; ++i) {
          lanes::load(tile[i], edge[i]);
          tile[i] *= scale;
        }
        lanes::transpose(tile);
        std::memcpy(edge, tile, sizeof edge);
        for (int64_t j = 0; j < inColumns; ++j) std::memcpy(to + (c + j) * 64 + r, edge[j], sizeof edge[j]);
      }
    }
}

/// to[r][c] = from[c][r] · scale[r] for r < rows, c < columns, where `from` has rows of 64.
MARTLET_VECTOR static void unpackTransposed(const float* from, int64_t rows, int64_t columns, const float* scale, float* to,
                                            int64_t stride) {
  for (int64_t r = 0; r < rows; r += 16)
    for (int64_t c = 0; c < columns; c += 16) {
      const int64_t inRows = rows - r < 16 ? rows - r : 16, inColumns = columns - c < 16 ? columns - c : 16;
      Floats tile[16], factor;
      lanes::load(factor, scale + r);
      if (inColumns == 16) {
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; ++i) {
          lanes::load(tile[i], from + (c + i) * 64 + r);
          tile[i] *= factor;
        }
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
        for (int64_t i = 0; i < inRows; ++i)
          std::memcpy(to + (r + i) * stride + c, edge[i], static_cast<size_t>(inColumns) * sizeof(float));
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

/// Turns a block of scores s [rows][64] (in log2 units; the first 16 · groups columns) into weights 2^(s - maximum), with
/// `maximum` and `sum` of the rows so far brought up to date and `shrink` = 2^(old maximum - new). False where no lane needs shrinking.
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
    case 1:
      return softmaxColumns<1>(s, rows, maximum, sum, shrink, mask);
    case 2:
      return softmaxColumns<2>(s, rows, maximum, sum, shrink, mask);
    case 3:
      return softmaxColumns<3>(s, rows, maximum, sum, shrink, mask);
    default:
      return softmaxColumns<4>(s, rows, maximum, sum, shrink, mask);
  }
}

/// Scores s [rows][64], which come as s / softcap, become cap · tanh(s) where cap is not 0 (softcap in log2 units), plus a tile of
/// bias [rows][64] in log2 units or null.
MARTLET_VECTOR static void adjustScores(float* s, int64_t rows, int vectors, float cap, const float* bias) {
  for (int64_t r = 0; r < rows; ++r)
    for (int g = 0; g < vectors; ++g) {
      Floats x, y;
      lanes::load(x, s + r * queryBlock + g * 16);
      if (cap != 0) {
        lanes::tanhInPlace(x);
        x *= cap;
      }
      if (bias) {
        lanes::load(y, bias + r * queryBlock + g * 16);
        x += y;
      }
      lanes::store(s + r * queryBlock + g * 16, x);
    }
}

/// R rows of c (+)= a b for V vectors of columns of b and c, whose rows are 64 long.
template <int R, int V>
MARTLET_INLINE void smallRows(int64_t depth, const float* a, int64_t strideA, const float* b, float* c, bool add) {
#pragma clang fp contract(fast)
  Floats sum[R][V], x[V];
#pragma clang loop unroll(full)
  for (int r = 0; r < R; ++r)
#pragma clang loop unroll(full)
    for (int g = 0; g < V; ++g) {
      sum[r][g] = Floats{};
      if (add) lanes::load(sum[r][g], c + r * 64 + g * 16);
    }
  for (int64_t k = 0; k < depth; ++k) {
#pragma clang loop unroll(full)
    for (int g = 0; g < V; ++g) lanes::load(x[g], b + k * 64 + g * 16);
#pragma clang loop unroll(full)
    for (int r = 0; r < R; ++r)
#pragma clang loop unroll(full)
      for (int g = 0; g < V; ++g) sum[r][g] += x[g] * a[r * strideA + k];
  }
#pragma clang loop unroll(full)
  for (int r = 0; r < R; ++r)
#pragma clang loop unroll(full)
    for (int g = 0; g < V; ++g) lanes::store(c + r * 64 + g * 16, sum[r][g]);
}

template <int V>
MARTLET_INLINE void smallColumns(int64_t m, int64_t depth, const float* a, int64_t strideA, const float* b, float* c, bool add) {
  constexpr int R = V == 1 ? 16 : (V == 2 ? 8 : 6);
  int64_t r = 0;
  for (; r + R <= m; r += R) smallRows<R, V>(depth, a + r * strideA, strideA, b, c + r * 64, add);
  for (; r + 2 <= m; r += 2) smallRows<2, V>(depth, a + r * strideA, strideA, b, c + r * 64, add);
  for (; r < m; ++r) smallRows<1, V>(depth, a + r * strideA, strideA, b, c + r * 64, add);
}

/// c [m][64] = (add ? c : 0) + a [m, depth] b [depth][64] in the first 16 · vectors columns. For sequences of one block: the block
/// kernel, a switch between whose shapes costs some microseconds, would need two shapes a head.
MARTLET_VECTOR static void smallProduct(int64_t m, int vectors, int64_t depth, const float* a, int64_t strideA, const float* b, float* c,
                                        bool add) {
  switch (vectors) {
    case 1:
      return smallColumns<1>(m, depth, a, strideA, b, c, add);
    case 2:
      return smallColumns<2>(m, depth, a, strideA, b, c, add);
    case 3:
      return smallColumns<3>(m, depth, a, strideA, b, c, add);
    default:
      return smallColumns<4>(m, depth, a, strideA, b, c, add);
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

MARTLET_VECTOR static void weightGradients(float* s, float* dp, int rows, int vectors, const float* lse, const float* delta,
                                           const BlockMask* mask) {
  switch (vectors) {
    case 1:
      return columnGradients<1>(s, dp, rows, lse, delta, mask);
    case 2:
      return columnGradients<2>(s, dp, rows, lse, delta, mask);
    case 3:
      return columnGradients<3>(s, dp, rows, lse, delta, mask);
    default:
      return columnGradients<4>(s, dp, rows, lse, delta, mask);
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
  float softcap = 0;              // scores s become softcap tanh(s / softcap); 0: they don't
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
    if (keyMask)
      std::copy_n(keyMask + b * keys + firstKey, count, mask.keys);
    else
      std::fill_n(mask.keys, count, true);
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

struct Forward {
  Heads<const float> query, key, value;
  Heads<float> out;
  float* logsumexp;          // [batch, heads, stride]
  int64_t logsumexpStride;
  const at::Tensor& bias;     // undefined, or float [batch, heads, queries, keys] of which the last has stride 1

  /// Query blocks times heads of a group that share a packed key block.
  static int64_t chunk(const Geometry& g, int64_t tasks) {
    const int64_t units = g.queryBlocks() * g.group();
    return std::clamp<int64_t>(units * tasks / (4 * workerCount()), 1, std::min(queryGroup, units));
  }

  static int64_t scratchFloats(const Geometry& g, int64_t chunk) {
    return chunk * queryBlock * (g.width + g.valueWidth + 2 + 2) + keyBlock * (g.width + g.valueWidth + 2 * queryBlock) + queryBlock +
           64 * 16;
  }

  /// Units begin ..< end (a unit: one query block of one head) of the heads that share one key head of one sequence.
  void run(const Geometry& g, int64_t b, int64_t keyHead, int64_t begin, int64_t end, float* buffer) const {
    const int64_t d = g.width, dv = g.valueWidth, group = g.group(), count = end - begin;
    Scratch scratch{buffer};
    float* const queriesT = scratch.take(count * d * queryBlock);
    float* const outT = scratch.take(count * dv * queryBlock);
    float* const maximum = scratch.take(count * queryBlock);
    float* const sum = scratch.take(count * queryBlock);
    float* const keyTile = scratch.take(keyBlock * d);
    float* const valueT = scratch.take(dv * keyBlock);
    float* const s = scratch.take(keyBlock * queryBlock);
    float* const biasT = scratch.take(keyBlock * queryBlock);
    float* const shrink = scratch.take(queryBlock);
    const bool small = g.queryBlocks() == 1 && g.keyBlocks() == 1 && blocks::usesBlockKernel();
    const float queryScale = g.softcap > 0 ? g.scale / g.softcap : g.scale * log2E;

    for (int64_t u = 0; u < count; ++u) {
      const int64_t block = (begin + u) / group, head = keyHead * group + (begin + u) % group;
      packTransposed(query.row(b, head, block * queryBlock), query.stride, g.queriesIn(block), d, queryScale, queriesT + u * d * queryBlock);
    }
    std::fill_n(outT, count * dv * queryBlock, 0.0f);
    std::fill_n(maximum, count * queryBlock, -infinity);
    std::fill_n(sum, count * queryBlock, 0.0f);

    BlockMask mask;
    const auto [firstKeys, lastKeys] = g.visibleKeys(begin / group, (end - 1) / group + 1);
    for (int64_t keyIndex = firstKeys; keyIndex < lastKeys; ++keyIndex) {
      bool packed = false;
      for (int64_t u = 0; u < count; ++u) {
        const int64_t block = (begin + u) / group, head = keyHead * group + (begin + u) % group;
        const Cover cover = g.cover(b, block, keyIndex);
        if (cover == Cover::none) continue;
        const int64_t rows = wholeVectors(g.keysIn(keyIndex)), columns = wholeVectors(g.queriesIn(block));
        const int vectors = static_cast<int>(columns / lanes::width);
        if (!packed) {
          packRows(key.row(b, keyHead, keyIndex * keyBlock), key.stride, g.keysIn(keyIndex), d, keyTile, rows);
          packTransposed(value.row(b, keyHead, keyIndex * keyBlock), value.stride, g.keysIn(keyIndex), dv, 1.0f, valueT);
          packed = true;
        }
        if (small)
          smallProduct(rows, vectors, d, keyTile, d, queriesT + u * d * queryBlock, s, false);
        else
          blockProduct(rows, columns, d, keyTile, d, queriesT + u * d * queryBlock, queryBlock, s, queryBlock, false);
        if (bias.defined())
          packTransposed(bias.const_data_ptr<float>() + b * bias.stride(0) + head * bias.stride(1) + block * queryBlock * bias.stride(2) +
                             keyIndex * keyBlock,
                         bias.stride(2), g.queriesIn(block), g.keysIn(keyIndex), log2E, biasT);
        if (g.softcap > 0 || bias.defined())
          adjustScores(s, g.keysIn(keyIndex), vectors, g.softcap * log2E, bias.defined() ? biasT : nullptr);
        // A bias may close positions by -infinity, which only the masked form turns into weights of zero.
        const bool masked = cover == Cover::part || bias.defined();
        if (masked) g.fill(mask, b, block, keyIndex);
        if (softmaxBlock(s, static_cast<int>(rows), vectors, maximum + u * queryBlock, sum + u * queryBlock, shrink,
                         masked ? &mask : nullptr))
          scaleColumns(outT + u * dv * queryBlock, dv, vectors, shrink);
        if (small)
          smallProduct(dv, vectors, g.keysIn(keyIndex), valueT, keyBlock, s, outT + u * dv * queryBlock, true);
        else
          blockProduct(dv, columns, rows, valueT, keyBlock, s, queryBlock, outT + u * dv * queryBlock, queryBlock, true);
      }
    }

    for (int64_t u = 0; u < count; ++u) {
      const int64_t block = (begin + u) / group, head = keyHead * group + (begin + u) % group, rows = g.queriesIn(block);
      const float* const total = sum + u * queryBlock;
      for (int64_t lane = 0; lane < wholeVectors(rows); ++lane) shrink[lane] = total[lane] == 0 ? 0.0f : 1.0f / total[lane];
      unpackTransposed(outT + u * dv * queryBlock, rows, dv, shrink, out.row(b, head, block * queryBlock), out.stride);
      float* const to = logsumexp + (b * g.heads + head) * logsumexpStride + block * queryBlock;
      for (int64_t lane = 0; lane < rows; ++lane)
        to[lane] = total[lane] == 0 ? -infinity : (maximum[u * queryBlock + lane] + std::log2(total[lane])) * ln2;
    }
  }
};

void forward(const Geometry& g, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& bias,
             at::Tensor& out, at::Tensor& logsumexp) {
  const Forward pass{Heads<const float>(query), Heads<const float>(key), Heads<const float>(value), Heads<float>(out),
                     logsumexp.data_ptr<float>(), g.queries, bias};
  const int64_t units = g.queryBlocks() * g.group(), pairs = g.batch * g.keyHeads;
  const int64_t chunk = Forward::chunk(g, pairs), chunks = (units + chunk - 1) / chunk;
  const int64_t perWorker = Forward::scratchFloats(g, chunk);
  const at::Tensor buffer = floats(workerCount() * perWorker);
  parallelTasks(chunks * pairs, [&](int64_t task, int64_t worker) {
    const int64_t pair = task % pairs, index = chunks - 1 - task / pairs;  // the longest rows of a causal mask first
    pass.run(g, pair / g.keyHeads, pair % g.keyHeads, index * chunk, std::min(units, (index + 1) * chunk),
             buffer.data_ptr<float>() + worker * perWorker);
  });
}

/// Sequences end to end: rows offsets[i] ..< offsets[i + 1] of [1, H, T, d] tensors attend to each other. The geometry's sizes other than
/// the lengths hold for all.
void forwardPacked(const Geometry& common, const int64_t* offsets, int64_t sequences, const at::Tensor& query, const at::Tensor& key,
                   const at::Tensor& value, at::Tensor& out, at::Tensor& logsumexp) {
  const at::Tensor none;
  const Heads<const float> q(query), k(key), v(value);
  const Heads<float> o(out);
  const int64_t total = query.size(2);
  struct Task {
    int64_t sequence, keyHead, begin, end;
  };
  std::vector<Task> tasks;
  int64_t largest = 1;
  const auto geometry = [&](int64_t i) {
    Geometry g = common;
    g.queries = g.keys = offsets[i + 1] - offsets[i];
    g.left = std::min(common.left, 2 * g.keys), g.right = std::min(common.right, 2 * g.keys);
    return g;
  };
  // Whole heads of short sequences, chunks of query blocks of long ones.
  for (int64_t i = 0; i < sequences; ++i) {
    const Geometry g = geometry(i);
    const int64_t units = g.queryBlocks() * g.group(), chunk = std::min(queryGroup, units);
    largest = std::max(largest, chunk);
    for (int64_t head = 0; head < g.keyHeads; ++head)
      for (int64_t begin = 0; begin < units; begin += chunk) tasks.push_back({i, head, begin, std::min(units, begin + chunk)});
  }
  const int64_t perWorker = Forward::scratchFloats(common, largest), count = static_cast<int64_t>(tasks.size());
  const at::Tensor buffer = floats(workerCount() * perWorker);
  // A range takes neighbouring heads of one sequence, whose rows share cache lines.
  const int64_t pieces = std::min(count, 64 * workerCount());
  parallelTasks(pieces, [&](int64_t piece, int64_t worker) {
    for (int64_t at = count * piece / pieces; at < count * (piece + 1) / pieces; ++at) {
      const Task& task = tasks[static_cast<size_t>(at)];
      const int64_t first = offsets[task.sequence];
      const Forward pass{q.from(first), k.from(first), v.from(first), o.from(first), logsumexp.data_ptr<float>() + first, total, none};
      pass.run(geometry(task.sequence), 0, task.keyHead, task.begin, task.end, buffer.data_ptr<float>() + worker * perWorker);
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
          blockProduct(d, columns, rows, keysT + n * keyBlock * d, keyBlock, dS, queryBlock, queryGradientsT + unit * d * queryBlock,
                       queryBlock, true);
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

Geometry geometry(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& mask, bool causal,
                  int64_t left, int64_t right, std::optional<double> scale) {
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

/// softmax(scale · Q Kᵀ) V over the keys that key_mask [B, S] (true: attend), the causal mask and the window leave.
/// query [B, H, L, d], key [B, Hk, S, d], value [B, Hk, S, dv]; query heads h · H / Hk and following share key head h. Positions are
/// aligned at the end: query i stands at i + S - L; causal lets it see keys up to there, the window from window_left before to
/// window_right after (-1: no limit). Any strides; only a last one other than 1 costs a copy. bfloat16 and float16 are converted
/// whole, computed in float and rounded once.
/// softcap: scores s become softcap · tanh(s / softcap). bias: float32, added after it, that broadcasts to [B, H, L, S] and has its last
/// size; -∞ closes a position.
/// Returns out [B, H, L, dv], whose transposition to [B, L, H, dv] is contiguous, and the rows' log Σ exp, float [B, H, L]. A row
/// without keys gives 0, -∞ and no gradient.
std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                             const std::optional<at::Tensor>& keyMask, bool causal, int64_t left, int64_t right,
                                             std::optional<double> scale, const std::optional<at::Tensor>& bias_,
                                             std::optional<double> softcap) {
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
  Geometry g = geometry(query, key, value, mask, causal, left, right, scale);
  TORCH_CHECK(!softcap || *softcap > 0, "attention: softcap must be positive, got ", softcap.value_or(0));
  g.softcap = static_cast<float>(softcap.value_or(0));
  at::Tensor bias;
  if (bias_ && bias_->defined()) {
    const auto fits = [&](int64_t axis, int64_t size) {
      return bias_->dim() < axis || bias_->size(-axis) == 1 || bias_->size(-axis) == size;
    };
    TORCH_CHECK(bias_->scalar_type() == at::kFloat && bias_->is_cpu() && bias_->dim() >= 1 && bias_->dim() <= 4 &&
                    bias_->size(-1) == g.keys && fits(2, g.queries) && fits(3, g.heads) && fits(4, g.batch),
                "attention: bias must be a float32 CPU tensor that broadcasts to [B, H, L, S] = [", g.batch, ", ", g.heads, ", ", g.queries,
                ", ", g.keys, "] and has its last size, got ", shape(*bias_));
    bias = unitStride(*bias_).expand({g.batch, g.heads, g.queries, g.keys});
  }
  at::Tensor out = lengthMajor(g.batch, g.heads, g.queries, g.valueWidth);
  at::Tensor logsumexp = at::empty({g.batch, g.heads, g.queries}, at::kFloat);
  if (logsumexp.numel()) forward(g, asFloat(query), asFloat(key), asFloat(value), bias, out, logsumexp);
  return {asType(out, query.scalar_type()), logsumexp};
}

using Gradients = std::array<at::Tensor, 3>;

Gradients attentionGradients(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& mask,
                             const at::Tensor& out, const at::Tensor& logsumexp, const at::Tensor& outGradient, bool causal, int64_t left,
                             int64_t right, std::optional<double> scale) {
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
                                                const at::Tensor& value, const at::Tensor& outGradient,
                                                const std::optional<at::Tensor>& mask, const at::Tensor& out, const at::Tensor& logsumexp,
                                                bool causal, int64_t left, int64_t right, std::optional<double> scale) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Gradients gradients =
        attentionGradients(query, key, value, mask.value_or(at::Tensor()), out, logsumexp, outGradient, causal, left, right, scale);
    return {gradients[0], gradients[1], gradients[2]};
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*, torch::autograd::variable_list) {
    TORCH_CHECK(false, "attention: second derivatives are not available from the fused kernel; use the reference form");
  }
};

struct Attention : torch::autograd::Function<Attention> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const at::Tensor& query, const at::Tensor& key,
                                                const at::Tensor& value, const std::optional<at::Tensor>& keyMask, bool causal,
                                                int64_t left, int64_t right, std::optional<double> scale) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [out, logsumexp] = attention(query, key, value, keyMask, causal, left, right, scale, std::nullopt, std::nullopt);
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
      const auto through = AttentionGradient::apply(saved[0], saved[1], saved[2], gradients[0], mask, saved[4].detach(), saved[5], causal,
                                                    left, right, scale);
      std::copy(through.begin(), through.end(), results.begin());
    } else {
      at::AutoDispatchBelowADInplaceOrView below;
      const Gradients direct =
          attentionGradients(saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], gradients[0], causal, left, right, scale);
      std::copy(direct.begin(), direct.end(), results.begin());
    }
    return results;
  }
};

std::tuple<at::Tensor, at::Tensor> attentionWithGradient(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                                         const std::optional<at::Tensor>& keyMask, bool causal, int64_t left, int64_t right,
                                                         std::optional<double> scale, const std::optional<at::Tensor>& bias,
                                                         std::optional<double> softcap) {
  const bool biasGradient = bias && bias->defined() && bias->requires_grad();
  if (!at::GradMode::is_enabled() || !(query.requires_grad() || key.requires_grad() || value.requires_grad() || biasGradient)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return attention(query, key, value, keyMask, causal, left, right, scale, bias, softcap);
  }
  TORCH_CHECK(!softcap && !(bias && bias->defined()),
              "attention: the fused kernel has no gradient with a score bias or soft-capping; use the reference form");
  const auto results = Attention::apply(query, key, value, keyMask, causal, left, right, scale);
  return {results[0], results[1]};
}

// MARK: Sequences end to end

/// [T, heads, d] as [1, heads, T, d].
at::Tensor asBatch(const at::Tensor& t) { return t.transpose(0, 1).unsqueeze(0); }

Geometry packedGeometry(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, bool causal, int64_t left, int64_t right,
                        std::optional<double> scale) {
  return geometry(asBatch(query), asBatch(key), asBatch(value), {}, causal, left, right, scale);
}

/// Attention inside each of several sequences that stand end to end: query [T, H, d], key [T, Hk, d], value [T, Hk, dv], float32,
/// bfloat16 or float16, any strides; offsets int64 [n + 1], not decreasing, from 0 to T: sequence i has the rows offsets[i] ..<
/// offsets[i + 1]. The rest as in `attention`. No row is padded: sequences of some 25 tokens fill blocks of 32. 250 sentences (25 tokens
/// on average, 12 heads of 32 channels) take a sixth of what PyTorch's attention takes on batches of 32 padded ones, and half of what it takes
/// where these are sorted by length.
/// Returns out [T, H, dv], contiguous, and the rows' log Σ exp, float [H, T].
std::tuple<at::Tensor, at::Tensor> attentionPacked(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                                   const at::Tensor& offsets_, bool causal, int64_t left, int64_t right,
                                                   std::optional<double> scale, std::optional<double> softcap) {
  TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && value.dim() == 3,
              "attention_packed: query must be [T, H, d], key [T, Hk, d] and value [T, Hk, dv], got ", shape(query), ", ", shape(key), " and ",
              shape(value));
  const auto type = query.scalar_type();
  TORCH_CHECK(fused(type) && key.scalar_type() == type && value.scalar_type() == type && query.is_cpu() && key.is_cpu() && value.is_cpu(),
              "attention_packed: query, key and value must be CPU tensors of one type, float32, bfloat16 or float16, got ", shape(query),
              ", ", shape(key), " and ", shape(value));
  const int64_t total = query.size(0), heads = query.size(1), keyHeads = key.size(1);
  TORCH_CHECK(key.size(0) == total && value.size(0) == total && key.size(2) == query.size(2) && query.size(2) > 0 &&
                  value.size(1) == keyHeads && value.size(2) > 0,
              "attention_packed: key must have the query's length and width, value the key's length and heads, widths at least 1; got ",
              shape(query), ", ", shape(key), " and ", shape(value));
  TORCH_CHECK(heads == keyHeads || (keyHeads > 0 && heads % keyHeads == 0),
              "attention_packed: the query's heads must be a multiple of the key's, got ", shape(query), " and ", shape(key));
  TORCH_CHECK(offsets_.scalar_type() == at::kLong && offsets_.is_cpu() && offsets_.dim() == 1 && offsets_.size(0) >= 1,
              "attention_packed: offsets must be a CPU int64 tensor [n + 1], got ", shape(offsets_));
  TORCH_CHECK(!softcap || *softcap > 0, "attention_packed: softcap must be positive, got ", softcap.value_or(0));
  const at::Tensor offsets = offsets_.contiguous();
  const int64_t* const starts = offsets.const_data_ptr<int64_t>();
  const int64_t sequences = offsets.size(0) - 1;
  TORCH_CHECK(starts[0] == 0 && starts[sequences] == total, "attention_packed: offsets must go from 0 to ", total, ", the rows, got ", starts[0], " to ",
              starts[sequences]);
  for (int64_t i = 0; i < sequences; ++i)
    TORCH_CHECK(starts[i] <= starts[i + 1], "attention_packed: offsets must not decrease, but offsets[", i, "] = ", starts[i], " and offsets[", i + 1,
                "] = ", starts[i + 1]);
  at::Tensor out = at::empty({total, heads, value.size(2)}, at::kFloat), logsumexp = at::empty({heads, total}, at::kFloat);
  if (logsumexp.numel()) {
    Geometry g = packedGeometry(query, key, value, causal, left, right, scale);
    g.softcap = static_cast<float>(softcap.value_or(0));
    at::Tensor target = asBatch(out);
    forwardPacked(g, starts, sequences, asBatch(asFloat(query)), asBatch(asFloat(key)), asBatch(asFloat(value)), target, logsumexp);
  }
  return {asType(out, type), logsumexp};
}

struct AttentionPacked : torch::autograd::Function<AttentionPacked> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const at::Tensor& query, const at::Tensor& key,
                                                const at::Tensor& value, const at::Tensor& offsets, bool causal, int64_t left,
                                                int64_t right, std::optional<double> scale) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [out, logsumexp] = attentionPacked(query, key, value, offsets, causal, left, right, scale, std::nullopt);
    context->mark_non_differentiable({logsumexp});
    context->set_materialize_grads(false);
    context->save_for_backward({query, key, value, offsets.contiguous(), out, logsumexp});
    context->saved_data["causal"] = causal;
    context->saved_data["left"] = left;
    context->saved_data["right"] = right;
    context->saved_data["scale"] = scale;
    return {out, logsumexp};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    torch::autograd::variable_list results(8);
    if (!gradients[0].defined()) return results;
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "attention_packed: second derivatives are not available from the fused kernel; use the reference form");
    at::AutoDispatchBelowADInplaceOrView below;
    const auto saved = context->get_saved_variables();
    auto& data = context->saved_data;
    const at::Tensor &query = saved[0], &key = saved[1], &value = saved[2], &logsumexp = saved[5];
    const Geometry common = packedGeometry(query, key, value, data["causal"].toBool(), data["left"].toInt(), data["right"].toInt(),
                                           data["scale"].toOptional<double>());
    const at::Tensor q = asBatch(asFloat(query)), k = asBatch(asFloat(key)), v = asBatch(asFloat(value)), o = asBatch(asFloat(saved[4]));
    const at::Tensor dO = asBatch(asFloat(gradients[0]));
    for (int i = 0; i < 3; ++i) results[i] = at::zeros(saved[i].sizes(), at::kFloat);
    const at::Tensor dQ = asBatch(results[0]), dK = asBatch(results[1]), dV = asBatch(results[2]);
    const int64_t* const offsets = saved[3].const_data_ptr<int64_t>();
    for (int64_t i = 0; i + 1 < saved[3].size(0); ++i) {
      const int64_t first = offsets[i], length = offsets[i + 1] - first;
      if (length == 0 || logsumexp.numel() == 0) continue;
      const auto part = [&](const at::Tensor& t) { return t.narrow(2, first, length); };
      Geometry g = common;
      g.queries = g.keys = length;
      g.left = std::min(common.left, 2 * length), g.right = std::min(common.right, 2 * length);
      at::Tensor dq = part(dQ), dk = part(dK), dv = part(dV);
      martlet::backward(g, part(q), part(k), part(v), part(o), logsumexp.narrow(1, first, length).contiguous().unsqueeze(0), part(dO), dq,
                        dk, dv);
    }
    for (int i = 0; i < 3; ++i) results[i] = asType(results[i], query.scalar_type());
    return results;
  }
};

std::tuple<at::Tensor, at::Tensor> attentionPackedWithGradient(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                                               const at::Tensor& offsets, bool causal, int64_t left, int64_t right,
                                                               std::optional<double> scale, std::optional<double> softcap) {
  if (!at::GradMode::is_enabled() || !(query.requires_grad() || key.requires_grad() || value.requires_grad())) {
    at::AutoDispatchBelowADInplaceOrView below;
    return attentionPacked(query, key, value, offsets, causal, left, right, scale, softcap);
  }
  TORCH_CHECK(!softcap, "attention_packed: the fused kernel has no gradient with soft-capping; use the reference form");
  const auto results = AttentionPacked::apply(query, key, value, offsets, causal, left, right, scale);
  return {results[0], results[1]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(martlet, library) {
  library.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor? key_mask=None, bool causal=False, int window_left=-1, int "
      "window_right=-1, float? scale=None, Tensor? bias=None, float? softcap=None) -> (Tensor, Tensor)");
  library.def(
      "attention_packed(Tensor query, Tensor key, Tensor value, Tensor offsets, bool causal=False, int window_left=-1, int "
      "window_right=-1, float? scale=None, float? softcap=None) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(martlet, CPU, library) {
  library.impl("attention", attention);
  library.impl("attention_packed", attentionPacked);
}
TORCH_LIBRARY_IMPL(martlet, Autograd, library) {
  library.impl("attention", attentionWithGradient);
  library.impl("attention_packed", attentionPackedWithGradient);
}

}  // namespace martlet
