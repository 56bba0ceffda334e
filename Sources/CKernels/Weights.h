#pragma once
// A matrix of weights in the form it is stored in: f32, bf16, or integers of 8 or 4 bits with a scale for every group of
// a row. Two things are done with one: products with a few vectors, which stream it once from memory and widen it in registers,
// and unpacking into f32 tiles for the block product.
//
// int8: q [rows, columns], weight = q · scale.
// int4: rows of ⌈columns / 128⌉ blocks of 64 bytes, each sixteen little-endian words: the four bits k of word i are column
// 16 k + i of the block, so that shifting the words by 4 k leaves sixteen neighbours in their lanes.
// weight = q · scale + minimum; where no minima are stored, the minimum is -8 scale.
// Scales and minima are bf16, [rows, groups], a group being `group` neighbouring columns.

#include <cstdint>

namespace martlet {

enum class WeightFormat { f32, bf16, int8, int4 };

struct Weights {
  WeightFormat format;
  int64_t rows, columns;
  const void* data;
  int64_t rowBytes;
  const uint16_t* scales = nullptr;
  const uint16_t* minima = nullptr;
  int64_t group = 0, groups = 0;
};

constexpr int64_t kInt4Block = 128;

/// Columns of an int4 row with its last block filled up.
constexpr int64_t paddedDepth(int64_t columns) { return (columns + kInt4Block - 1) / kInt4Block * kInt4Block; }

/// What a row of x must be padded to with zeros for `dotRows`.
inline int64_t inputDepth(const Weights& weights) {
  return weights.format == WeightFormat::int4 ? paddedDepth(weights.columns) : (weights.columns + 15) / 16 * 16;
}

/// y[t][o] = x[t] · row o + bias[o] for rows first ..< last and t < tokens. x: rows of `stride` floats, at least
/// inputDepth(weights), zero beyond the columns. Every byte of a row is read from memory once for each eight tokens.
void dotRows(const Weights& weights, const float* x, int64_t stride, int64_t tokens, int64_t first, int64_t last, const float* bias,
             float* y, int64_t yStride);

/// Rows first ..< first + count as f32, to[r * stride + c].
void unpackRows(const Weights& weights, int64_t first, int64_t count, float* to, int64_t stride);

/// Rounds a row to the nearest representable weight; every error is at most half the stored scale.
void quantizeRowInt8(const float* row, int64_t columns, int64_t group, int8_t* packed, uint16_t* scales);
/// `minima` null: symmetric.
void quantizeRowInt4(const float* row, int64_t columns, int64_t group, uint8_t* packed, uint16_t* scales, uint16_t* minima);

}  // namespace martlet
