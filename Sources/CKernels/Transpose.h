#pragma once
// Transposition in registers, eight rows and columns at a time, for functions marked MARTLET_VECTOR.

#include "Vector.h"

namespace martlet {

typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));
typedef float Octet __attribute__((vector_size(32), aligned(4), may_alias));

MARTLET_INLINE Octet& octet(float* p) { return *reinterpret_cast<Octet*>(p); }
MARTLET_INLINE const Octet& octet(const float* p) { return *reinterpret_cast<const Octet*>(p); }

/// column[c] = rows 0..<8 of column c of an 8×8 tile in memory: rows i and i + 4 are loaded into the halves of one register, so that two
/// rounds of shuffles inside the halves do. As many shuffles as a 16×16 tile takes in AVX-512 registers, and it fits those of AVX2
/// (measured there: three times faster).
MARTLET_INLINE void transposeTile(const float* from, int64_t ld, Octet (&column)[8]) {
#pragma clang loop unroll(full)
  for (int half = 0; half < 8; half += 4) {
    Octet row[4];
#pragma clang loop unroll(full)
    for (int i = 0; i < 4; ++i) {
      const Quad upper = *reinterpret_cast<const Quad*>(from + i * ld + half);
      const Quad lower = *reinterpret_cast<const Quad*>(from + (i + 4) * ld + half);
      row[i] = __builtin_shufflevector(upper, lower, 0, 1, 2, 3, 4, 5, 6, 7);
    }
    const Octet a = __builtin_shufflevector(row[0], row[1], 0, 8, 1, 9, 4, 12, 5, 13);
    const Octet b = __builtin_shufflevector(row[0], row[1], 2, 10, 3, 11, 6, 14, 7, 15);
    const Octet c = __builtin_shufflevector(row[2], row[3], 0, 8, 1, 9, 4, 12, 5, 13);
    const Octet d = __builtin_shufflevector(row[2], row[3], 2, 10, 3, 11, 6, 14, 7, 15);
    column[half] = __builtin_shufflevector(a, c, 0, 1, 8, 9, 4, 5, 12, 13);
    column[half + 1] = __builtin_shufflevector(a, c, 2, 3, 10, 11, 6, 7, 14, 15);
    column[half + 2] = __builtin_shufflevector(b, d, 0, 1, 8, 9, 4, 5, 12, 13);
    column[half + 3] = __builtin_shufflevector(b, d, 2, 3, 10, 11, 6, 7, 14, 15);
  }
}

}  // namespace martlet
