#pragma once
// Vector code without -march: every hot row loop is a small free function marked MARTLET_VECTOR, which the
// compiler clones for AVX-512, AVX2+FMA and the baseline and the loader picks at start-up. Inside, plain loops with
// MARTLET_SIMD are vectorised by the compiler; helpers called in them are MARTLET_INLINE and branch-free.

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#define MARTLET_VECTOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MARTLET_VECTOR
#endif
#define MARTLET_INLINE static inline __attribute__((always_inline))
#define MARTLET_SIMD _Pragma("clang loop vectorize(enable) interleave(enable)")
/// At the start of a function body: lets sums be reordered and products be fused, which vectorised reductions need.
#define MARTLET_FAST_SUMS _Pragma("clang fp reassociate(on) contract(fast)")

namespace martlet {

/// e^x with a relative error of at most 2 ulp over the finite range (Cephes' minimax polynomial of degree 7 on
/// |r| <= ln2/2); 0 below -87.3 and saturated above 88.3. Branch-free, so loops over it vectorise.
MARTLET_INLINE float fastExp(float x) {
#pragma clang fp contract(fast)
  const float clamped = x < -87.33654f ? -87.33654f : (x > 88.3762f ? 88.3762f : x);
  const float n = __builtin_rintf(clamped * 1.44269504088896341f);
  float r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return x < -87.33654f ? 0.0f : p * scale;
}

MARTLET_INLINE float fastSigmoid(float x) { return 1.0f / (1.0f + fastExp(-x)); }

/// tanh(x) = 1 - 2/(1 + e^{2x}); absolute error below 2e-7.
MARTLET_INLINE float fastTanh(float x) { return 1.0f - 2.0f / (1.0f + fastExp(2.0f * x)); }

}  // namespace martlet
