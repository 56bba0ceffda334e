#pragma once
// Sixteen-lane vectors for leaf functions marked MARTLET_VECTOR: one AVX-512 register, two AVX2 ones or four of SSE/NEON,
// as the clone has. Every helper takes and returns vectors by reference, because a vector passed by value would change its
// calling convention between clones.

#include "Vector.h"

namespace martlet::lanes {

constexpr int64_t width = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Shorts __attribute__((vector_size(32)));

MARTLET_INLINE void load(Floats& v, const float* p) { std::memcpy(&v, p, sizeof v); }
MARTLET_INLINE void store(float* p, const Floats& v) { std::memcpy(p, &v, sizeof v); }

/// bfloat16 given by its bits: the upper half of a float.
MARTLET_INLINE void load(Floats& v, const uint16_t* p) {
  Shorts bits;
  std::memcpy(&bits, p, sizeof bits);
  const Words wide = __builtin_convertvector(bits, Words) << 16;
  std::memcpy(&v, &wide, sizeof v);
}

typedef int8_t Bytes __attribute__((vector_size(16)));

/// Small integers as floats.
MARTLET_INLINE void load(Floats& v, const int8_t* p) {
  Bytes bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  v = __builtin_convertvector(__builtin_convertvector(bytes, Ints), Floats);
}

/// The first `count` < 16 lanes from memory, zero in the others; touches no byte after them.
template <typename T>
MARTLET_INLINE void loadSome(Floats& v, const T* p, int64_t count) {
  T some[width] = {};
  std::memcpy(some, p, static_cast<size_t>(count) * sizeof(T));
  load(v, some);
}

/// 2^x in place for x <= 126, relative error at most 2.2e-7: round to an integer by adding 1.5·2^23, whose low mantissa bits
/// then are that integer, and a minimax polynomial of degree 5 on [-1/2, 1/2] (ours, by iterated weighted least squares;
/// 7.5e-8 before rounding). x below -126 counts as -126; NaN stays NaN. Thirteen vector operations.
MARTLET_INLINE void exp2InPlace(Floats& x) {
#pragma clang fp contract(fast)
  const Floats lowest = Floats{} - 126.0f;
  const Floats clamped = x < lowest ? lowest : x;
  const Floats shifted = clamped + 12582912.0f;
  const Floats r = clamped - (shifted - 12582912.0f);
  Floats p = r * 1.3276472028e-3f + 9.6755414799e-3f;
  p = p * r + 5.5507132747e-2f;
  p = p * r + 2.4022119721e-1f;
  p = p * r + 6.9314696706e-1f;
  p = p * r + 1.0000000717f;
  x = (Floats)((Words)p + ((Words)shifted << 23));
}

/// tanh in place, relative error some 2e-7 near zero too: 1 - 2 / (1 + e^2|x|) loses digits there, so a polynomial takes its place
/// below 0.4.
MARTLET_INLINE void tanhInPlace(Floats& x) {
#pragma clang fp contract(fast)
  const Floats magnitude = x < 0.0f ? -x : x, square = x * x;
  Floats e = magnitude * 2.88539008f;
  const Floats highest = Floats{} + 60.0f;
  e = e > highest ? highest : e;
  exp2InPlace(e);
  Floats large = 1.0f - 2.0f / (1.0f + e);
  large = x < 0.0f ? -large : large;
  Floats p = square * -8.8632355e-3f + 2.1869489e-2f;
  p = p * square - 5.3968254e-2f;
  p = p * square + 1.3333333e-1f;
  p = p * square - 3.3333333e-1f;
  const Floats small = x + x * (square * p);
  x = magnitude < 0.4f ? small : large;
}

// One butterfly of a 16×16 transposition: lanes whose bit S is clear stay with `a`, the others go to `b`.
#define MARTLET_BUTTERFLY(NAME, L0, L1, L2, L3, L4, L5, L6, L7, L8, L9, L10, L11, L12, L13, L14, L15, S)                                \
  MARTLET_INLINE void NAME(Floats& a, Floats& b) {                                                                                      \
    const Floats low = __builtin_shufflevector(a, b, L0, L1, L2, L3, L4, L5, L6, L7, L8, L9, L10, L11, L12, L13, L14, L15);             \
    b = __builtin_shufflevector(a, b, L0 + S, L1 + S, L2 + S, L3 + S, L4 + S, L5 + S, L6 + S, L7 + S, L8 + S, L9 + S, L10 + S, L11 + S, \
                                L12 + S, L13 + S, L14 + S, L15 + S);                                                                    \
    a = low;                                                                                                                            \
  }
MARTLET_BUTTERFLY(swap8, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23, 8)
MARTLET_BUTTERFLY(swap4, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27, 4)
MARTLET_BUTTERFLY(swap2, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29, 2)
MARTLET_BUTTERFLY(swap1, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30, 1)
#undef MARTLET_BUTTERFLY

/// v[i][j] becomes v[j][i].
MARTLET_INLINE void transpose(Floats (&v)[16]) {
#pragma clang loop unroll(full)
  for (int i = 0; i < 8; ++i) swap8(v[i], v[i + 8]);
#pragma clang loop unroll(full)
  for (int i = 0; i < 8; ++i) swap4(v[i / 4 * 8 + i % 4], v[i / 4 * 8 + i % 4 + 4]);
#pragma clang loop unroll(full)
  for (int i = 0; i < 8; ++i) swap2(v[i / 2 * 4 + i % 2], v[i / 2 * 4 + i % 2 + 2]);
#pragma clang loop unroll(full)
  for (int i = 0; i < 8; ++i) swap1(v[2 * i], v[2 * i + 1]);
}

/// Lane i of v[0] becomes the sum of the lanes of v[i]: sixteen horizontal sums for the price of two.
MARTLET_INLINE void sumRows(Floats (&v)[16]) {
#pragma clang loop unroll(full)
  for (int i = 0; i < 8; ++i) {
    swap8(v[i], v[i + 8]);
    v[i] += v[i + 8];
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < 4; ++i) {
    swap4(v[i], v[i + 4]);
    v[i] += v[i + 4];
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < 2; ++i) {
    swap2(v[i], v[i + 2]);
    v[i] += v[i + 2];
  }
  swap1(v[0], v[1]);
  v[0] += v[1];
}

}  // namespace martlet::lanes
