#pragma once
// Dense f32 products made of block products (BlockProduct.h), the building brick of the linear layer and of the feed-forward
// blocks. On AMD the BLAS that libtorch links (MKL) reaches less than half of the machine's peak; these blocks reach 85-95 % of
// it (measured figures stand with the operators).
//
// The right factor of a product is first copied into panels of 64 columns, so that the block kernel reads it
// contiguously (no TLB misses or cache-set conflicts from rows one page apart); the copy is 1/rows of the work.
// brgemm compiles one kernel per shape, therefore the only dimension that varies from call to call, the number of
// tokens, is cut into tiles of 128 rows, a multiple of 16 and a padded tail of 16.

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>

#include "Parallel.h"

namespace martlet {

constexpr int64_t kPanelColumns = 64;
constexpr int64_t kRowTile = 128;

/// Scratch of the calling thread that lives as long as the thread and only grows; 64-byte aligned. Two slots never
/// overlap; asking for a slot again gives the same memory.
float* threadScratch(int slot, int64_t floats);
enum ScratchSlot { kTailRows, kTailResult, kTile, kTransposed, kTailDepth, kHidden, kHiddenOther, kPanel, kUnpacked, kPaddedInput, kScratchSlots };

/// A right factor [depth, columns] cut into panels of 64 columns, each stored [depth, width] (the last one narrower);
/// or, `inPlace`, row-major as it was.
struct Panels {
  at::Tensor storage;
  int64_t depth = 0, columns = 0;
  bool inPlace = false;
  int64_t count() const { return (columns + kPanelColumns - 1) / kPanelColumns; }
  int64_t width(int64_t panel) const { return std::min(kPanelColumns, columns - panel * kPanelColumns); }
  int64_t stride(int64_t panel) const { return inPlace ? columns : width(panel); }
  /// The panel from row `row` of the factor on.
  const float* at(int64_t panel, int64_t row = 0) const {
    return storage.const_data_ptr<float>() + panel * kPanelColumns * (inPlace ? 1 : depth) + row * stride(panel);
  }
};

/// parallelTasks, on the calling thread alone when the multiply-adds of all tasks together take less than some 4 us,
/// about what it costs to start the team and wait for it.
template <typename Body>
void productTasks(int64_t count, int64_t multiplyAdds, const Body& body) {
  if (multiplyAdds < (1 << 19))
    for (int64_t task = 0; task < count; ++task) body(task, int64_t{0});
  else
    parallelTasks(count, body);
}

/// Panels of `matrix` [depth, columns]; a narrow or small one is used in place.
Panels panels(const at::Tensor& matrix);
/// Panels of the transpose of `matrix` [columns, depth].
Panels transposedPanels(const at::Tensor& matrix);

/// Copies one panel [depth, width] of `factor` [depth, columns], or of its transpose when it is [columns, depth].
void packPanel(const at::Tensor& factor, bool transposed, int64_t panel, float* packed);

/// c[rows, width] (+)= a[rows, depth] b[depth, width] for one panel or a part of its depth.
void multiplyBlock(int64_t rows, int64_t width, int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb,
                   float* c, int64_t ldc, bool add);

/// Rows a task takes: 128, fewer when that would leave workers idle.
int64_t rowTile(int64_t rows, int64_t columns);

/// c = a b for a [rows, depth] (stride lda) and packed b; `finish(row, rows, column, columns)` runs on each finished
/// tile while it is in cache. Runs in parallel over tiles.
template <typename Finish>
void multiply(const float* a, int64_t lda, int64_t rows, const Panels& b, float* c, int64_t ldc, const Finish& finish) {
  const int64_t tile = rowTile(rows, b.columns), rowTiles = (rows + tile - 1) / tile;
  // Few tokens: several tasks share a row tile, each taking a run of panels.
  const int64_t wanted = 2 * workerCount();
  const int64_t groups = std::clamp<int64_t>(wanted / std::max<int64_t>(rowTiles, 1), 1, std::max<int64_t>(b.count(), 1));
  productTasks(rowTiles * groups, rows * b.depth * b.columns, [&](int64_t task, int64_t) {
    const int64_t row = task / groups * tile, taken = std::min(tile, rows - row), group = task % groups;
    for (int64_t panel = b.count() * group / groups; panel < b.count() * (group + 1) / groups; ++panel) {
      const int64_t column = panel * kPanelColumns, width = b.width(panel);
      multiplyBlock(taken, width, b.depth, a + row * lda, lda, b.at(panel), b.stride(panel), c + row * ldc + column, ldc, false);
      finish(row, taken, column, width);
    }
  });
}

/// c = a B, each panel of B made by `pack(panel, packed)` in scratch, which stays in L2, for up to 512 rows of `a` at a time: a
/// packed copy of the whole factor would cost more in page faults than the product of few tokens.
template <typename Pack, typename Finish>
void multiplyPacked(const float* a, int64_t lda, int64_t rows, int64_t depth, int64_t columns, const Pack& pack, float* c, int64_t ldc,
                    const Finish& finish) {
  const int64_t count = (columns + kPanelColumns - 1) / kPanelColumns;
  int64_t most = 4 * kRowTile;
  while (most > kRowTile && count * ((rows + most - 1) / most) < 4 * workerCount()) most /= 2;
  const int64_t parts = (rows + most - 1) / most;
  productTasks(count * parts, rows * depth * columns, [&](int64_t task, int64_t) {
    const int64_t panel = task % count, column = panel * kPanelColumns, width = std::min(kPanelColumns, columns - column);
    const int64_t last = std::min(rows, (task / count + 1) * most);
    float* packed = threadScratch(kPanel, depth * kPanelColumns);
    pack(panel, packed);
    for (int64_t row = task / count * most; row < last; row += kRowTile) {
      const int64_t taken = std::min(kRowTile, last - row);
      multiplyBlock(taken, width, depth, a + row * lda, lda, packed, width, c + row * ldc + column, ldc, false);
      finish(row, taken, column, width);
    }
  });
}

/// c = a B, or a B^T when `transposed`: panels packed by the tasks with few tokens and many columns, else beforehand.
template <typename Finish>
void multiply(const float* a, int64_t lda, int64_t rows, const at::Tensor& factor, bool transposed, float* c, int64_t ldc,
              const Finish& finish) {
  const int64_t depth = factor.size(transposed ? 1 : 0), columns = factor.size(transposed ? 0 : 1);
  const int64_t count = (columns + kPanelColumns - 1) / kPanelColumns;
  if (rows > 4 * kRowTile || count < 2 * workerCount())
    return multiply(a, lda, rows, transposed ? transposedPanels(factor) : panels(factor), c, ldc, finish);
  multiplyPacked(a, lda, rows, depth, columns, [&](int64_t panel, float* packed) { packPanel(factor, transposed, panel, packed); }, c, ldc,
                 finish);
}

/// left^T right: the gradient of a weight. left [tokens, m], right [tokens, n] contiguous; result [m, n]. `leftSums`
/// (length m, may be null) receives the column sums of left: the gradient of the bias.
void multiplyTransposed(const float* left, const float* right, int64_t tokens, int64_t m, int64_t n, float* result,
                        float* leftSums);

/// destination[c, r] = source[r, c] for a block [rows, columns].
void transposeBlock(const float* source, int64_t sourceStride, int64_t rows, int64_t columns, float* destination,
                    int64_t destinationStride);

}  // namespace martlet
