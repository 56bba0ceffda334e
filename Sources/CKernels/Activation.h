#pragma once
// The activations of feed-forward blocks, and their slopes, as branch-free scalar functions that vectorise.

#include <string_view>

#include "Vector.h"

namespace martlet {

enum class Activation : int64_t { gelu, geluTanh, relu, silu, quickGelu };

struct ValueAndSlope {
  float value, slope;
};

/// x Phi(x), Phi the normal distribution function. The tail is Hastings' rational form (Abramowitz and Stegun 7.1.26,
/// absolute error 7.5e-8), which shares its exponential with the density that the slope needs.
struct Gelu {
  MARTLET_INLINE ValueAndSlope at(float x) {
#pragma clang fp contract(fast)
    const float magnitude = __builtin_fabsf(x), e = fastExp(-0.5f * x * x);
    const float t = 1.0f / (1.0f + 0.231641888f * magnitude);
    float tail = 1.061405429f;
    tail = tail * t - 1.453152027f;
    tail = tail * t + 1.421413741f;
    tail = tail * t - 0.284496736f;
    tail = tail * t + 0.254829592f;
    tail = 0.5f * tail * t * e;
    const float probability = x < 0 ? tail : 1.0f - tail;
    return {x * probability, probability + x * (0.398942280f * e)};
  }

  /// The value alone needs no exponential: Phi(x) - 1/2 is x times a rational function of x^2 (ours, by iterated weighted least squares on
  /// |x| <= 5.3, 4e-9 before rounding), seventeen operations instead of 35.
  MARTLET_INLINE float value(float x) {
#pragma clang fp contract(fast)
    const float left = x < -5.3f ? -5.3f : x, y = left > 5.3f ? 5.3f : left, s = y * y;
    float above = 2.4050326175e-8f;
    above = above * s + 6.3790612330e-6f;
    above = above * s + 1.6033420980e-4f;
    above = above * s + 4.6279919334e-3f;
    above = above * s + 3.2935753465e-2f;
    above = above * s + 3.9894226193e-1f;
    float below = 1.2371690445e-6f;
    below = below * s + 7.1352238592e-5f;
    below = below * s + 1.8365698634e-3f;
    below = below * s + 2.8138807043e-2f;
    below = below * s + 2.4922391772e-1f;
    below = below * s + 1.0f;
    return left * (0.5f + y * (above / below));
  }
};

/// 0.5 x (1 + tanh u) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
struct GeluTanh {
  MARTLET_INLINE ValueAndSlope at(float x) {
#pragma clang fp contract(fast)
    const float square = x * x, share = fastSigmoid(x * (1.595769122f + 0.071354816f * square));
    return {x * share, share + x * share * (1.0f - share) * (1.595769122f + 0.214064448f * square)};
  }
  MARTLET_INLINE float value(float x) { return at(x).value; }
};

struct Relu {
  MARTLET_INLINE ValueAndSlope at(float x) { return {x > 0 ? x : 0.0f, x > 0 ? 1.0f : 0.0f}; }
  MARTLET_INLINE float value(float x) { return at(x).value; }
};

struct Silu {
  MARTLET_INLINE ValueAndSlope at(float x) {
#pragma clang fp contract(fast)
    const float share = fastSigmoid(x);
    return {x * share, share + x * share * (1.0f - share)};
  }
  MARTLET_INLINE float value(float x) { return at(x).value; }
};

/// x sigmoid(1.702 x).
struct QuickGelu {
  MARTLET_INLINE ValueAndSlope at(float x) {
#pragma clang fp contract(fast)
    const float share = fastSigmoid(1.702f * x);
    return {x * share, share + 1.702f * x * share * (1.0f - share)};
  }
  MARTLET_INLINE float value(float x) { return at(x).value; }
};

}  // namespace martlet
