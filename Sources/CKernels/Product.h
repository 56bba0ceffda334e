#pragma once
// Dense f32 products made of oneDNN's block kernel (at::native::cpublas::brgemm), the building brick of the linear
// layer and of the feed-forward blocks. On AMD the BLAS that libtorch links (MKL) reaches less than half of the
// machine's peak; these blocks reach 85-95 % of it (measured figures stand with the operators).
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
enum ScratchSlot { kTailRows, kTailResult, kTile, kTransposed, kTailDepth, kHidden, kHiddenOther, kScratchSlots };

/// A right factor [depth, columns] cut into panels of 64 columns, each stored [depth, width] (the last one narrower).
struct Panels {
  at::Tensor storage;
  int64_t depth = 0, columns = 0;
  int64_t count() const { return (columns + kPanelColumns - 1) / kPanelColumns; }
  int64_t width(int64_t panel) const { return std::min(kPanelColumns, columns - panel * kPanelColumns); }
  const float* at(int64_t panel) const { return storage.const_data_ptr<float>() + panel * kPanelColumns * depth; }
};

/// Panels of `matrix` [depth, columns].
Panels panels(const at::Tensor& matrix);
/// Panels of the transpose of `matrix` [columns, depth].
Panels transposedPanels(const at::Tensor& matrix);

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
  parallelTasks(rowTiles * groups, [&](int64_t task, int64_t) {
    const int64_t row = task / groups * tile, taken = std::min(tile, rows - row), group = task % groups;
    for (int64_t panel = b.count() * group / groups; panel < b.count() * (group + 1) / groups; ++panel) {
      const int64_t column = panel * kPanelColumns, width = b.width(panel);
      multiplyBlock(taken, width, b.depth, a + row * lda, lda, b.at(panel), width, c + row * ldc + column, ldc, false);
      finish(row, taken, column, width);
    }
  });
}

/// left^T right: the gradient of a weight. left [tokens, m], right [tokens, n] contiguous; result [m, n]. `leftSums`
/// (length m, may be null) receives the column sums of left: the gradient of the bias.
void multiplyTransposed(const float* left, const float* right, int64_t tokens, int64_t m, int64_t n, float* result,
                        float* leftSums);

/// destination[c, r] = source[r, c] for a block [rows, columns].
void transposeBlock(const float* source, int64_t sourceStride, int64_t rows, int64_t columns, float* destination,
                    int64_t destinationStride);

}  // namespace martlet
