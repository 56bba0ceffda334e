#include "Product.h"

#include <cstdlib>
#include <new>

#include "BlockProduct.h"
#include "Transpose.h"
#include "Vector.h"

namespace martlet {

namespace {

// Depth given to one block call: 64 columns x 256 rows of a panel are 64 KB, read from L2 once per six rows of a.
constexpr int64_t kDepth = 256;

struct Scratch {
  float* data[kScratchSlots] = {};
  int64_t capacity[kScratchSlots] = {};
  ~Scratch() {
    for (float* memory : data) std::free(memory);
  }
};

MARTLET_VECTOR void transposeSquares(const float* source, int64_t sourceStride, int64_t rows, int64_t columns,
                                     float* destination, int64_t destinationStride) {
  const int64_t wholeRows = rows / 8 * 8, wholeColumns = columns / 8 * 8;
  for (int64_t r = 0; r < wholeRows; r += 8)
    for (int64_t c = 0; c < wholeColumns; c += 8) {
      Octet column[8];
      transposeTile(source + r * sourceStride + c, sourceStride, column);
#pragma clang loop unroll(full)
      for (int i = 0; i < 8; ++i) octet(destination + (c + i) * destinationStride + r) = column[i];
    }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = r < wholeRows ? wholeColumns : 0; c < columns; ++c)
      destination[c * destinationStride + r] = source[r * sourceStride + c];
}

MARTLET_VECTOR void addColumns(const float* rows, int64_t count, int64_t stride, int64_t columns, float* sums) {
  // Sixteen rows at a time: thousands of tokens added one after the other would lose two digits.
  constexpr int64_t taken = 256;
  for (int64_t column = 0; column < columns; column += taken) {
    const int64_t width = columns - column < taken ? columns - column : taken;
    for (int64_t first = 0; first < count; first += 16) {
      float partial[taken] = {};
      for (int64_t r = first; r < count && r < first + 16; ++r) {
        const float* row = rows + r * stride + column;
        MARTLET_SIMD for (int64_t c = 0; c < width; ++c) partial[c] += row[c];
      }
      MARTLET_SIMD for (int64_t c = 0; c < width; ++c) sums[column + c] += partial[c];
    }
  }
}

MARTLET_VECTOR void addRows(const float* rows, int64_t count, int64_t stride, int64_t columns, float* sums) {
  MARTLET_FAST_SUMS
  for (int64_t r = 0; r < count; ++r) {
    float sum = 0;
    MARTLET_SIMD for (int64_t c = 0; c < columns; ++c) sum += rows[r * stride + c];
    sums[r] += sum;
  }
}

void block(int64_t rows, int64_t width, int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
           int64_t ldc, bool add) {
  for (int64_t k = 0; k < depth; k += kDepth)
    blocks::product(rows, width, std::min(kDepth, depth - k), a + k, lda, b + k * ldb, ldb, c, ldc, add || k > 0);
}

}  // namespace

float* threadScratch(int slot, int64_t floats) {
  thread_local Scratch scratch;
  if (floats > scratch.capacity[slot]) {
    std::free(scratch.data[slot]);
    scratch.capacity[slot] = 0;
    const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
    scratch.data[slot] = static_cast<float*>(std::aligned_alloc(64, bytes));
    if (!scratch.data[slot]) throw std::bad_alloc();
    scratch.capacity[slot] = floats;
  }
  return scratch.data[slot];
}

void transposeBlock(const float* source, int64_t sourceStride, int64_t rows, int64_t columns, float* destination,
                    int64_t destinationStride) {
  transposeSquares(source, sourceStride, rows, columns, destination, destinationStride);
}

void packPanel(const at::Tensor& factor, bool transposed, int64_t panel, float* packed) {
  const float* source = factor.const_data_ptr<float>();
  const int64_t depth = factor.size(transposed ? 1 : 0), columns = factor.size(transposed ? 0 : 1);
  const int64_t column = panel * kPanelColumns, width = std::min(kPanelColumns, columns - column);
  if (transposed)
    transposeBlock(source + column * depth, depth, width, depth, packed, width);
  else
    for (int64_t k = 0; k < depth; ++k) std::memcpy(packed + k * width, source + k * columns + column, width * sizeof(float));
}

Panels panels(const at::Tensor& matrix) {
  // One panel already has the layout; a matrix of 128 KB has no more pages than the TLB's first level.
  if (matrix.size(1) <= kPanelColumns || matrix.numel() <= (1 << 15)) return {matrix, matrix.size(0), matrix.size(1), true};
  Panels result{at::empty({matrix.numel()}, matrix.options()), matrix.size(0), matrix.size(1), false};
  float* packed = result.storage.mutable_data_ptr<float>();
  parallelTasks(result.count(), [&](int64_t panel, int64_t) {
    packPanel(matrix, false, panel, packed + panel * kPanelColumns * result.depth);
  });
  return result;
}

Panels transposedPanels(const at::Tensor& matrix) {
  Panels result{at::empty({matrix.numel()}, matrix.options()), matrix.size(1), matrix.size(0), false};
  float* packed = result.storage.mutable_data_ptr<float>();
  const auto pack = [&](int64_t panel, int64_t) { packPanel(matrix, true, panel, packed + panel * kPanelColumns * result.depth); };
  // Below 64 KB starting the team costs more than the copy.
  if (matrix.numel() < (1 << 14))
    for (int64_t panel = 0; panel < result.count(); ++panel) pack(panel, 0);
  else
    parallelTasks(result.count(), pack);
  return result;
}

int64_t rowTile(int64_t rows, int64_t columns) {
  int64_t tile = kRowTile;
  while (tile > 32 && (rows + tile - 1) / tile < 2 * workerCount()) tile /= 2;
  return tile;
}

void multiplyBlock(int64_t rows, int64_t width, int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb,
                   float* c, int64_t ldc, bool add) {
  if (rows == 0 || width == 0) return;
  if (depth == 0) {
    if (!add)
      for (int64_t r = 0; r < rows; ++r) std::fill_n(c + r * ldc, width, 0.0f);
    return;
  }
  const int64_t whole = rows / 16 * 16, tail = rows - whole;
  if (whole) block(whole, width, depth, a, lda, b, ldb, c, ldc, add);
  if (!tail) return;
  float* padded = threadScratch(kTailRows, 16 * depth);
  float* result = threadScratch(kTailResult, 16 * kPanelColumns);
  for (int64_t r = 0; r < tail; ++r) std::memcpy(padded + r * depth, a + (whole + r) * lda, depth * sizeof(float));
  std::fill_n(padded + tail * depth, (16 - tail) * depth, 0.0f);
  for (int64_t first = 0; first < width; first += kPanelColumns) {
    const int64_t columns = std::min(kPanelColumns, width - first);
    block(16, columns, depth, padded, depth, b + first, ldb, result, kPanelColumns, false);
    for (int64_t r = 0; r < tail; ++r) {
      float* row = c + (whole + r) * ldc + first;
      if (add)
        for (int64_t n = 0; n < columns; ++n) row[n] += result[r * kPanelColumns + n];
      else
        std::memcpy(row, result + r * kPanelColumns, columns * sizeof(float));
    }
  }
}

void multiplyTransposed(const float* left, const float* right, int64_t tokens, int64_t m, int64_t n, float* result,
                        float* leftSums) {
  // The wider factor is transposed tile by tile (each element once when the other fits one task), the narrower is
  // read in place; when that is the right one, the finished tile is transposed into the result.
  const bool swapped = n > m;
  const float *wide = swapped ? right : left, *narrow = swapped ? left : right;
  const int64_t rows = swapped ? n : m, columns = swapped ? m : n;
  if (rows == 0 || columns == 0) return;
  int64_t tile = kRowTile, group = std::min<int64_t>(columns, 256);
  const auto tasks = [&] { return ((rows + tile - 1) / tile) * ((columns + group - 1) / group); };
  while (tile > 32 && tasks() < 2 * workerCount()) tile /= 2;
  while (group > kPanelColumns && tasks() < 2 * workerCount()) group /= 2;
  const int64_t groups = (columns + group - 1) / group;
  productTasks(tasks(), tokens * m * n, [&](int64_t task, int64_t) {
    const int64_t row = task / groups * tile, taken = std::min(tile, rows - row);
    const int64_t column = task % groups * group, width = std::min(group, columns - column);
    const int64_t taken16 = (taken + 15) / 16 * 16;
    float* sum = threadScratch(kTile, kRowTile * 256);
    float* turned = threadScratch(kTransposed, kRowTile * kDepth);
    float *sums = nullptr;
    if (leftSums && !swapped && column == 0) std::fill_n(sums = leftSums + row, taken, 0.0f);
    if (leftSums && swapped && row == 0) std::fill_n(sums = leftSums + column, width, 0.0f);
    for (int64_t t = 0; t < tokens; t += kDepth) {
      const int64_t depth = std::min(kDepth, tokens - t), depth16 = (depth + 15) / 16 * 16, whole = depth / 16 * 16;
      transposeBlock(wide + t * rows + row, rows, depth, taken, turned, depth16);
      for (int64_t r = 0; r < taken; ++r) std::fill(turned + r * depth16 + depth, turned + (r + 1) * depth16, 0.0f);
      // Rows that only pad the tile to a multiple of 16 produce rows that nobody reads; zero keeps them finite.
      std::fill(turned + taken * depth16, turned + taken16 * depth16, 0.0f);
      if (sums && !swapped) addRows(turned, taken, depth16, depth, sums);
      if (sums && swapped) addColumns(narrow + t * columns + column, depth, columns, width, sums);
      const float* tailRows = nullptr;
      if (depth > whole) {
        float* padded = threadScratch(kTailDepth, 16 * 256);
        for (int64_t k = 0; k < depth - whole; ++k)
          std::memcpy(padded + k * width, narrow + (t + whole + k) * columns + column, width * sizeof(float));
        std::fill(padded + (depth - whole) * width, padded + 16 * width, 0.0f);
        tailRows = padded;
      }
      for (int64_t first = 0; first < width; first += kPanelColumns) {
        const int64_t taking = std::min(kPanelColumns, width - first);
        if (whole)
          blocks::product(taken16, taking, whole, turned, depth16, narrow + t * columns + column + first, columns, sum + first, width, t > 0);
        if (tailRows)
          blocks::product(taken16, taking, 16, turned + whole, depth16, tailRows + first, width, sum + first, width, t > 0 || whole > 0);
      }
    }
    if (tokens == 0) std::fill_n(sum, taken16 * width, 0.0f);
    if (swapped)
      transposeBlock(sum, width, taken, width, result + column * rows + row, rows);
    else
      for (int64_t r = 0; r < taken; ++r) std::memcpy(result + (row + r) * n + column, sum + r * width, width * sizeof(float));
  });
}

}  // namespace martlet
