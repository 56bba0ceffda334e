#include "Weights.h"

#include <algorithm>
#include <bit>

#include "Lanes.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define MARTLET_WIDE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"), always_inline)) static inline
#endif

// Limit: the bytes of the weights. Rows are read four at a time, or two against eight tokens, so that a load of x serves
// several of them, and later rows are prefetched, because the hardware's prefetcher starts anew at every page and every row.
// Measured figures stand with the operators.

namespace martlet {
namespace {

using lanes::Floats;
using lanes::Words;

MARTLET_INLINE float widen(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

using lanes::load;
using lanes::loadSome;

/// Lane r · T + t of sum[0] is the product of row first + r and vector t.
template <int T>
MARTLET_INLINE void finish(Floats (&sum)[16], int64_t first, const float* bias, float* y, int64_t yStride) {
  lanes::sumRows(sum);
#pragma clang loop unroll(full)
  for (int i = 0; i < 16; ++i) y[i % T * yStride + first + i / T] = sum[0][i] + (bias ? bias[first + i / T] : 0.0f);
}

template <typename T>
MARTLET_INLINE void prefetch(const T* p, int64_t bytes) {
  const void* at = reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes));
  __builtin_prefetch(at, 0, sizeof(T) == sizeof(float) ? 2 : 3);
}

/// sum[r · T + t] += columns from ..< to of row r of w · x[t], of f32, bf16 or int8 (times scale[r]); `ahead`: bytes to what is
/// wanted next.
template <int R, int T, typename W>
MARTLET_INLINE void addProducts(const W* w, int64_t stride, int64_t from, int64_t to, const float* x, int64_t xStride, const float* scale,
                                int64_t ahead, Floats* sum) {
#pragma clang fp contract(fast)
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(W));
  Floats total[R * T];
#pragma clang loop unroll(full)
  for (int i = 0; i < R * T; ++i) total[i] = sum[i];
  const auto addSixteen = [&](int64_t c) __attribute__((always_inline)) {
    Floats v[T];
#pragma clang loop unroll(full)
    for (int t = 0; t < T; ++t) lanes::load(v[t], x + t * xStride + c);
#pragma clang loop unroll(full)
    for (int r = 0; r < R; ++r) {
      Floats a;
      load(a, w + r * stride + c);
      if (sizeof(W) == 1) a *= scale[r];
#pragma clang loop unroll(full)
      for (int t = 0; t < T; ++t) total[r * T + t] += a * v[t];
    }
  };
  int64_t c = from;
  for (; c + line <= to; c += line) {
#pragma clang loop unroll(full)
    for (int r = 0; r < R; ++r) prefetch(w + r * stride + c, ahead);
#pragma clang loop unroll(full)
    for (int64_t i = 0; i < line; i += 16) addSixteen(c + i);
  }
  for (; c + 16 <= to; c += 16) addSixteen(c);
  if (c < to) {
    for (int r = 0; r < R; ++r) {
      Floats a, v;
      loadSome(a, w + r * stride + c, to - c);
      if (sizeof(W) == 1) a *= scale[r];
      for (int t = 0; t < T; ++t) {
        lanes::load(v, x + t * xStride + c);
        total[r * T + t] += a * v;
      }
    }
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < R * T; ++i) sum[i] = total[i];
}

/// Where to prefetch: as far ahead as a line takes to arrive, at the same place of a later row. Measured: integers, which take
/// longer to widen than to read, want 4 KB into L1; f32 wants 32 KB, which is no longer L1's.
MARTLET_INLINE int64_t prefetchDistance(const Weights& weights) {
  const int64_t step = 4 * weights.rowBytes, wanted = weights.format == WeightFormat::f32 ? 1 << 15 : 1 << 12;
  return (wanted / step + 1) * step;
}

/// The products of R rows with T vectors before their lanes are summed, sum[r · T + t].
template <int R, int T, typename W>
MARTLET_INLINE void multiplyRows(const Weights& weights, const float* x, int64_t xStride, int64_t first, Floats* sum) {
  const W* w = static_cast<const W*>(weights.data) + first * weights.columns;
  const int64_t ahead = prefetchDistance(weights);
#pragma clang loop unroll(full)
  for (int i = 0; i < R * T; ++i) sum[i] = Floats{};
  if (sizeof(W) > 1) return addProducts<R, T, W>(w, weights.columns, 0, weights.columns, x, xStride, nullptr, ahead, sum);
  for (int64_t g = 0; g < weights.groups; ++g) {
    float scale[R];
#pragma clang loop unroll(full)
    for (int r = 0; r < R; ++r) scale[r] = widen(weights.scales[(first + r) * weights.groups + g]);
    const int64_t from = g * weights.group, to = from + weights.group < weights.columns ? from + weights.group : weights.columns;
    addProducts<R, T, W>(w, weights.columns, from, to, x, xStride, scale, ahead, sum);
  }
}

// 16 / T rows against T tokens fill one set of sums; the rows stay in cache while the other tokens meet them. PRODUCT(R, T) is a
// function with the arguments of multiplyRows.
#define MARTLET_SIXTEEN(R, T, PRODUCT)                                                                                    \
  for (; t + T <= tokens; t += T)                                                                                         \
    for (int64_t some = o; some < o + 16; some += 16 / T) {                                                               \
      Floats sum[16];                                                                                                     \
      for (int r = 0; r < 16 / T; r += R) PRODUCT(R, T)(weights, x + t * xStride, xStride, some + r, sum + r * T);        \
      finish<T>(sum, some, bias, y + t * yStride, yStride);                                                               \
    }
#define MARTLET_ALL_ROWS(PRODUCT)                                                                        \
  int64_t o = first;                                                                                     \
  for (; o + 16 <= last; o += 16) {                                                                      \
    int64_t t = 0;                                                                                       \
    MARTLET_SIXTEEN(2, 8, PRODUCT)                                                                       \
    MARTLET_SIXTEEN(4, 4, PRODUCT)                                                                       \
    MARTLET_SIXTEEN(4, 2, PRODUCT)                                                                       \
    MARTLET_SIXTEEN(4, 1, PRODUCT)                                                                       \
  }                                                                                                      \
  for (; o < last; ++o)                                                                                  \
    for (int64_t t = 0; t < tokens; ++t) {                                                               \
      Floats sum[16] = {};                                                                               \
      PRODUCT(1, 1)(weights, x + t * xStride, xStride, o, sum);                                          \
      lanes::sumRows(sum);                                                                               \
      y[t * yStride + o] = sum[0][0] + (bias ? bias[o] : 0.0f);                                          \
    }

MARTLET_VECTOR static void dotRowsFloat(const Weights& weights, const float* x, int64_t xStride, int64_t tokens, int64_t first,
                                        int64_t last, const float* bias, float* y, int64_t yStride) {
#define MARTLET_SOME(R, T) multiplyRows<R, T, float>
  MARTLET_ALL_ROWS(MARTLET_SOME)
#undef MARTLET_SOME
}
MARTLET_VECTOR static void dotRowsHalf(const Weights& weights, const float* x, int64_t xStride, int64_t tokens, int64_t first,
                                       int64_t last, const float* bias, float* y, int64_t yStride) {
#define MARTLET_SOME(R, T) multiplyRows<R, T, uint16_t>
  MARTLET_ALL_ROWS(MARTLET_SOME)
#undef MARTLET_SOME
}
MARTLET_VECTOR static void dotRowsInt8(const Weights& weights, const float* x, int64_t xStride, int64_t tokens, int64_t first,
                                       int64_t last, const float* bias, float* y, int64_t yStride) {
#define MARTLET_SOME(R, T) multiplyRows<R, T, int8_t>
  MARTLET_ALL_ROWS(MARTLET_SOME)
#undef MARTLET_SOME
}

template <int R, int T>
MARTLET_INLINE void multiplyInt4(const Weights& weights, const float* x, int64_t xStride, int64_t first, Floats* sum) {
#pragma clang fp contract(fast)
  const uint8_t* w = static_cast<const uint8_t*>(weights.data) + first * weights.rowBytes;
  const int64_t perGroup = weights.group / 16, ahead = prefetchDistance(weights);
#pragma clang loop unroll(full)
  for (int i = 0; i < R * T; ++i) sum[i] = Floats{};
  for (int64_t block = 0; block * kInt4Block < weights.columns; ++block) {
    Words words[R];
#pragma clang loop unroll(full)
    for (int r = 0; r < R; ++r) {
      std::memcpy(&words[r], w + r * weights.rowBytes + block * 64, 64);
      prefetch(w + r * weights.rowBytes + block * 64, ahead);
    }
    float scale[R] = {}, minimum[R] = {};
    for (int64_t k = 0; k < 8; ++k) {
      // Sixteens beyond the last group meet zeros of x; they keep that group's scale.
      const int64_t g = (block * 8 + k) / perGroup;
      if (k % perGroup == 0 && g < weights.groups)
        for (int r = 0; r < R; ++r) {
          scale[r] = widen(weights.scales[(first + r) * weights.groups + g]);
          minimum[r] = weights.minima ? widen(weights.minima[(first + r) * weights.groups + g]) : -8.0f * scale[r];
        }
#pragma clang loop unroll(full)
      for (int r = 0; r < R; ++r) {
        Floats a = __builtin_convertvector(words[r] & 15u, Floats);
        words[r] >>= 4;
        a = a * scale[r] + minimum[r];
#pragma clang loop unroll(full)
        for (int t = 0; t < T; ++t) {
          Floats v;
          lanes::load(v, x + t * xStride + block * kInt4Block + k * 16);
          sum[r * T + t] += a * v;
        }
      }
    }
  }
}

MARTLET_VECTOR static void dotRowsInt4(const Weights& weights, const float* x, int64_t xStride, int64_t tokens, int64_t first,
                                       int64_t last, const float* bias, float* y, int64_t yStride) {
#define MARTLET_SOME(R, T) multiplyInt4<R, T>
  MARTLET_ALL_ROWS(MARTLET_SOME)
#undef MARTLET_SOME
}

#if defined(__x86_64__)
// With AVX-512 the sixteen values a group can take stand in one register, and a permutation by the words' low four bits turns
// them into weights: two operations a sixteen instead of four, which is what keeps int4 at the memory's speed.
template <int R, int T, int K>
MARTLET_WIDE void multiplyInt4Wide(const Weights& weights, const float* x, int64_t xStride, int64_t first, Floats* sum) {
  const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512 centred = _mm512_sub_ps(numbers, _mm512_set1_ps(8.0f));
  const int64_t groups = weights.groups, ahead = prefetchDistance(weights);
  const uint8_t* w = static_cast<const uint8_t*>(weights.data) + first * weights.rowBytes;
  const uint16_t* scales = weights.scales + first * groups;
  const uint16_t* minima = weights.minima ? weights.minima + first * groups : nullptr;
  __m512 total[R * T];
#pragma clang loop unroll(full)
  for (int i = 0; i < R * T; ++i) total[i] = _mm512_setzero_ps();
  for (int64_t block = 0; block * kInt4Block < weights.columns; ++block) {
    __m512i words[R];
    __m512 values[R];
#pragma clang loop unroll(full)
    for (int r = 0; r < R; ++r) {
      const uint8_t* at = w + r * weights.rowBytes + block * 64;
      words[r] = _mm512_loadu_si512(at);
      _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(at) + static_cast<uintptr_t>(ahead)), _MM_HINT_T0);
    }
#pragma clang loop unroll(full)
    for (int k = 0; k < 8; ++k) {
      if (k % K == 0) {
        // Sixteens beyond the last group meet zeros of x.
        const int64_t g = block * (8 / K) + k / K, group = g < groups ? g : groups - 1;
#pragma clang loop unroll(full)
        for (int r = 0; r < R; ++r) {
          const __m512 scale = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(static_cast<uint32_t>(scales[r * groups + group]) << 16)));
          values[r] = minima ? _mm512_fmadd_ps(numbers, scale,
                                               _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(
                                                   static_cast<uint32_t>(minima[r * groups + group]) << 16))))
                             : _mm512_mul_ps(centred, scale);
        }
      }
      __m512 v[T];
#pragma clang loop unroll(full)
      for (int t = 0; t < T; ++t) v[t] = _mm512_loadu_ps(x + t * xStride + block * kInt4Block + k * 16);
#pragma clang loop unroll(full)
      for (int r = 0; r < R; ++r) {
        const __m512 a = _mm512_permutexvar_ps(k == 0 ? words[r] : _mm512_srli_epi32(words[r], 4 * k), values[r]);
#pragma clang loop unroll(full)
        for (int t = 0; t < T; ++t) total[r * T + t] = _mm512_fmadd_ps(a, v[t], total[r * T + t]);
      }
    }
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < R * T; ++i) std::memcpy(&sum[i], &total[i], sizeof sum[i]);
}

#define MARTLET_WIDE_ROWS(NAME, K)                                                                                                    \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))) void NAME(const Weights& weights, const float* x, int64_t xStride,   \
                                                                          int64_t tokens, int64_t first, int64_t last,               \
                                                                          const float* bias, float* y, int64_t yStride) {            \
    MARTLET_ALL_ROWS(MARTLET_SOME##K)                                                                                                 \
  }
#define MARTLET_SOME2(R, T) multiplyInt4Wide<R, T, 2>
#define MARTLET_SOME4(R, T) multiplyInt4Wide<R, T, 4>
#define MARTLET_SOME8(R, T) multiplyInt4Wide<R, T, 8>
MARTLET_WIDE_ROWS(dotRowsInt4By32, 2)
MARTLET_WIDE_ROWS(dotRowsInt4By64, 4)
MARTLET_WIDE_ROWS(dotRowsInt4By128, 8)

bool hasWideVectors() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq");
  return has;
}
#endif

template <typename W>
MARTLET_INLINE void unpackRow(const Weights& weights, int64_t row, float* to) {
  const W* from = static_cast<const W*>(weights.data) + row * weights.columns;
  int64_t c = 0;
  Floats v;
  for (; c + 16 <= weights.columns; c += 16) {
    load(v, from + c);
    lanes::store(to + c, v);
  }
  if (c == weights.columns) return;
  loadSome(v, from + c, weights.columns - c);
  std::memcpy(to + c, &v, static_cast<size_t>(weights.columns - c) * sizeof(float));
}

MARTLET_VECTOR static void unpackRowFloat(const Weights& weights, int64_t row, float* to) { unpackRow<float>(weights, row, to); }
MARTLET_VECTOR static void unpackRowHalf(const Weights& weights, int64_t row, float* to) { unpackRow<uint16_t>(weights, row, to); }
MARTLET_VECTOR static void unpackRowInt8(const Weights& weights, int64_t row, float* to) {
  unpackRow<int8_t>(weights, row, to);
  for (int64_t g = 0; g < weights.groups; ++g) {
    const float scale = widen(weights.scales[row * weights.groups + g]);
    const int64_t first = g * weights.group, last = first + weights.group < weights.columns ? first + weights.group : weights.columns;
    MARTLET_SIMD
    for (int64_t c = first; c < last; ++c) to[c] *= scale;
  }
}
MARTLET_VECTOR static void unpackRowInt4(const Weights& weights, int64_t row, float* to) {
#pragma clang fp contract(fast)
  const uint8_t* from = static_cast<const uint8_t*>(weights.data) + row * weights.rowBytes;
  for (int64_t first = 0; first < weights.columns; first += kInt4Block) {
    Words words;
    std::memcpy(&words, from + first / 2, sizeof words);
    for (int64_t k = 0; k < 8 && first + k * 16 < weights.columns; ++k) {
      const int64_t c = first + k * 16, g = row * weights.groups + c / weights.group;
      const float scale = widen(weights.scales[g]), minimum = weights.minima ? widen(weights.minima[g]) : -8.0f * scale;
      const Floats v = __builtin_convertvector(words & 15u, Floats) * scale + minimum;
      words >>= 4;
      if (c + 16 <= weights.columns)
        lanes::store(to + c, v);
      else
        std::memcpy(to + c, &v, static_cast<size_t>(weights.columns - c) * sizeof(float));
    }
  }
}

uint16_t roundedUp(float x) {
  // Towards larger magnitude; x is finite and not negative.
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits >> 16) + ((bits & 0xffff) != 0));
}
/// The stored form of a step: at least it, and with a finite inverse unless it is zero.
uint16_t storedStep(float step) { return roundedUp(step > 0 ? std::max(step, 1.17549435e-38f) : 0.0f); }
uint16_t rounded(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

MARTLET_VECTOR static void levels(const float* from, int64_t count, float minimum, float inverse, float lowest, float highest,
                                  int32_t* to) {
  MARTLET_SIMD
  for (int64_t i = 0; i < count; ++i) {
    const float q = __builtin_rintf((from[i] - minimum) * inverse);
    to[i] = static_cast<int32_t>(q < lowest ? lowest : (q > highest ? highest : q));
  }
}

}  // namespace

void dotRows(const Weights& weights, const float* x, int64_t stride, int64_t tokens, int64_t first, int64_t last, const float* bias,
             float* y, int64_t yStride) {
  switch (weights.format) {
    case WeightFormat::f32: return dotRowsFloat(weights, x, stride, tokens, first, last, bias, y, yStride);
    case WeightFormat::bf16: return dotRowsHalf(weights, x, stride, tokens, first, last, bias, y, yStride);
    case WeightFormat::int8: return dotRowsInt8(weights, x, stride, tokens, first, last, bias, y, yStride);
    case WeightFormat::int4:
#if defined(__x86_64__)
      if (hasWideVectors()) {
        if (weights.group == 32) return dotRowsInt4By32(weights, x, stride, tokens, first, last, bias, y, yStride);
        if (weights.group == 64) return dotRowsInt4By64(weights, x, stride, tokens, first, last, bias, y, yStride);
        return dotRowsInt4By128(weights, x, stride, tokens, first, last, bias, y, yStride);
      }
#endif
      return dotRowsInt4(weights, x, stride, tokens, first, last, bias, y, yStride);
  }
}

void unpackRows(const Weights& weights, int64_t first, int64_t count, float* to, int64_t stride) {
  for (int64_t r = 0; r < count; ++r) {
    float* row = to + r * stride;
    switch (weights.format) {
      case WeightFormat::f32: unpackRowFloat(weights, first + r, row); break;
      case WeightFormat::bf16: unpackRowHalf(weights, first + r, row); break;
      case WeightFormat::int8: unpackRowInt8(weights, first + r, row); break;
      case WeightFormat::int4: unpackRowInt4(weights, first + r, row); break;
    }
  }
}

// The outermost values may lie half a step beyond the outermost levels, so that 2^bits - 1 steps and two halves cover the range.

void quantizeRowInt8(const float* row, int64_t columns, int64_t group, int8_t* packed, uint16_t* scales) {
  for (int64_t first = 0; first < columns; first += group) {
    const int64_t count = std::min(group, columns - first);
    float largest = 0;
    for (int64_t c = first; c < first + count; ++c) largest = std::max(largest, std::abs(row[c]));
    const uint16_t scale = scales[first / group] = storedStep(largest / 127.5f);
    const float inverse = scale ? 1.0f / widen(scale) : 0.0f;
    for (int64_t c = first; c < first + count; c += 64) {
      int32_t q[64];
      const int64_t some = std::min<int64_t>(64, first + count - c);
      levels(row + c, some, 0.0f, inverse, -128.0f, 127.0f, q);
      for (int64_t i = 0; i < some; ++i) packed[c + i] = static_cast<int8_t>(q[i]);
    }
  }
}

void quantizeRowInt4(const float* row, int64_t columns, int64_t group, uint8_t* packed, uint16_t* scales, uint16_t* minima) {
  std::fill_n(packed, paddedDepth(columns) / 2, uint8_t{0});
  for (int64_t first = 0; first < columns; first += group) {
    const int64_t count = std::min(group, columns - first);
    const auto [least, greatest] = std::minmax_element(row + first, row + first + count);
    float minimum, step;
    if (minima) {
      // The minimum's own rounding moves the levels; the step grows until both ends are within half of it again.
      const uint16_t bits = minima[first / group] = rounded(*least + (*greatest - *least) / 32.0f);
      minimum = widen(bits);
      step = std::max({0.0f, 2.0f * (minimum - *least), (*greatest - minimum) / 15.5f});
    } else {
      step = std::max(std::abs(*least), std::abs(*greatest)) / 7.5f;
      minimum = 0;
    }
    const uint16_t scale = scales[first / group] = storedStep(step);
    const float inverse = scale ? 1.0f / widen(scale) : 0.0f;
    int32_t q[kInt4Block];
    levels(row + first, count, minimum, inverse, minima ? 0.0f : -8.0f, minima ? 15.0f : 7.0f, q);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t c = first + i, k = c % kInt4Block / 16, lane = c % 16;
      packed[c / kInt4Block * 64 + lane * 4 + k / 2] |= static_cast<uint8_t>((q[i] + (minima ? 0 : 8)) << (k % 2 * 4));
    }
  }
}

}  // namespace martlet
