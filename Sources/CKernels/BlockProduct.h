#pragma once
// C (+)= A B of a few dozen rows and columns, as kernels need it between their other steps: libtorch's f32 block kernel (oneDNN's
// brgemm) where there is AVX-512, else our own. On AVX2 ours is faster, knows no shapes to be compiled, looked up or switched between
// (a look-up a call, and some microseconds where the shape is another one than the last), and reads A transposed as well.

#include "Vector.h"

#include <ATen/ATen.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cstdint>

namespace martlet::blocks {

/// Sixteen floats wherever they lie. Only ever used through references and locals, never passed by value: the clones
/// of a function for different instruction sets would disagree on how.
typedef float Lanes __attribute__((vector_size(64), aligned(4), may_alias));

MARTLET_INLINE Lanes& lanes(float* p) { return *reinterpret_cast<Lanes*>(p); }
MARTLET_INLINE const Lanes& lanes(const float* p) { return *reinterpret_cast<const Lanes*>(p); }

/// A tile of ROWS x 16 of C (+)= A B, or AᵀB, summed in registers: with AVX2 six rows are twelve of the sixteen, and four are the
/// least that keep both its multipliers busy. Two steps a round: with one, counting takes a twentieth; from five on, clang reads
/// several steps of A ahead into registers that aren't there.
template <int ROWS, bool TRANSPOSED>
MARTLET_INLINE void productTile(
    int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add, const float* a, const float* b, float* c) {
  MARTLET_FAST_SUMS
  Lanes sums[ROWS] = {};
#pragma clang loop unroll_count(2)
  for (int64_t p = 0; p < k; ++p) {
    const Lanes row = lanes(b + p * ldb);
    for (int i = 0; i < ROWS; ++i) sums[i] += (TRANSPOSED ? a[p * lda + i] : a[i * lda + p]) * row;
  }
  for (int i = 0; i < ROWS; ++i) {
    if (add) sums[i] += lanes(c + i * ldc);
    lanes(c + i * ldc) = sums[i];
  }
}

/// Fewer than sixteen floats, four at a time.
template <bool ADD>
MARTLET_INLINE void addSome(const float* from, int64_t count, float* to) {
  typedef float Quartet __attribute__((vector_size(16), aligned(4), may_alias));
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    Quartet& sum = *reinterpret_cast<Quartet*>(to + i);
    const Quartet& x = *reinterpret_cast<const Quartet*>(from + i);
    sum = ADD ? sum + x : x;
  }
  for (; i < count; ++i) to[i] = ADD ? to[i] + from[i] : from[i];
}

/// Of at most `productDepth` terms a sum. A strip of 16 columns of B whose rows lie further apart than a few lines is packed for the
/// row tiles that read it: rows one or several KB apart share a few sets of the first-level cache.
inline constexpr int64_t productDepth = 256;
template <bool TRANSPOSED>
MARTLET_INLINE void productOfStrips(
    int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add, const float* a, const float* b,
    float* c) {
  alignas(64) float packed[productDepth * 16], tile[6 * 16];
  for (int64_t j = 0; j < n; j += 16) {
    const int64_t width = n - j < 16 ? n - j : 16;
    const bool packs = width < 16 || (ldb > 80 && k > 16 && m > 8);
    if (packs) {
      for (int64_t p = 0; p < k; ++p) {
        Lanes& row = lanes(packed + p * 16);
        if (width == 16) {
          row = lanes(b + p * ldb + j);
        } else {
          row = Lanes{};
          addSome<false>(b + p * ldb + j, width, packed + p * 16);
        }
      }
    }
    const float* strip = packs ? packed : b + j;
    const int64_t ld = packs ? 16 : ldb;
    for (int64_t i = 0, rows; i < m; i += rows) {
      const int64_t left = m - i;
      rows = left > 8 ? 6 : left > 6 ? 4 : left;
      const float* from = a + (TRANSPOSED ? i : i * lda);
      float* to = width == 16 ? c + i * ldc + j : tile;
      const int64_t ldTo = width == 16 ? ldc : 16;
      const bool adds = add && width == 16;
      switch (rows) {
        case 6: productTile<6, TRANSPOSED>(k, lda, ld, ldTo, adds, from, strip, to); break;
        case 5: productTile<5, TRANSPOSED>(k, lda, ld, ldTo, adds, from, strip, to); break;
        case 4: productTile<4, TRANSPOSED>(k, lda, ld, ldTo, adds, from, strip, to); break;
        case 3: productTile<3, TRANSPOSED>(k, lda, ld, ldTo, adds, from, strip, to); break;
        case 2: productTile<2, TRANSPOSED>(k, lda, ld, ldTo, adds, from, strip, to); break;
        default: productTile<1, TRANSPOSED>(k, lda, ld, ldTo, adds, from, strip, to);
      }
      if (width == 16) continue;
      for (int64_t r = 0; r < rows; ++r) {
        float* of = c + (i + r) * ldc + j;
        if (add) addSome<true>(tile + r * 16, width, of);
        else addSome<false>(tile + r * 16, width, of);
      }
    }
  }
}

/// Measured with Benchmarks/block_product.cpp on one core with AVX2 (Zen 3): 16x64x64 97 GFLOP/s, 16x16x64 96, 64x64x16 82, 80x16x64 98;
/// libtorch's block kernel there 89, 85, 84 and 93 and a look-up a call.
MARTLET_VECTOR static inline void portableProduct(
    int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add, const float* a, const float* b,
    float* c) {
  MARTLET_FAST_SUMS
  for (; k > productDepth; k -= productDepth, a += productDepth, b += productDepth * ldb, add = true)
    productOfStrips<false>(m, n, productDepth, lda, ldb, ldc, add, a, b, c);
  productOfStrips<false>(m, n, k, lda, ldb, ldc, add, a, b, c);
}

/// C (+)= AᵀB, A with k rows.
MARTLET_VECTOR static inline void portableTransposedProduct(
    int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add, const float* a, const float* b,
    float* c) {
  MARTLET_FAST_SUMS
  for (; k > productDepth; k -= productDepth, a += productDepth * lda, b += productDepth * ldb, add = true)
    productOfStrips<true>(m, n, productDepth, lda, ldb, ldc, add, a, b, c);
  productOfStrips<true>(m, n, k, lda, ldb, ldc, add, a, b, c);
}

/// Whether products go to libtorch's f32 block kernel: where it exists (it needs oneDNN) and has the registers of AVX-512.
inline bool usesBlockKernel() {
  static const bool available = [] {
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("avx512f")) return false;
#endif
    float a[256] = {}, b[256] = {}, c[256];
    try {
      at::native::cpublas::brgemm(16, 16, 16, 16, 16, 16, false, a, b, c, false);
      return true;
    } catch (const c10::Error&) {
      return false;
    }
  }();
  return available;
}

/// C[m, n] (+)= A[m, k] B[k, n], all row-major with leading dimensions.
inline void product(
    int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
    bool add) {
  if (usesBlockKernel()) {
    at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, false);
  } else {
    portableProduct(m, n, k, lda, ldb, ldc, add, a, b, c);
  }
}

}  // namespace martlet::blocks
