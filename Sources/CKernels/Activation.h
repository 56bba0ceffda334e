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
};

/// 0.5 x (1 + tanh u) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
struct GeluTanh {
  MARTLET_INLINE ValueAndSlope at(float x) {
#pragma clang fp contract(fast)
    const float square = x * x, share = fastSigmoid(x * (1.595769122f + 0.071354816f * square));
    return {x * share, share + x * share * (1.0f - share) * (1.595769122f + 0.214064448f * square)};
  }
};

struct Relu {
  MARTLET_INLINE ValueAndSlope at(float x) { return {x > 0 ? x : 0.0f, x > 0 ? 1.0f : 0.0f}; }
};

struct Silu {
  MARTLET_INLINE ValueAndSlope at(float x) {
#pragma clang fp contract(fast)
    const float share = fastSigmoid(x);
    return {x * share, share + x * share * (1.0f - share)};
  }
};

/// x sigmoid(1.702 x).
struct QuickGelu {
  MARTLET_INLINE ValueAndSlope at(float x) {
#pragma clang fp contract(fast)
    const float share = fastSigmoid(1.702f * x);
    return {x * share, share + 1.702f * x * share * (1.0f - share)};
  }
};

}  // namespace martlet
