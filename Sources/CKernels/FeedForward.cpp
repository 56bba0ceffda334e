// martlet::mlp:        y = act(x W1^T + b1) W2^T + b2
// martlet::gated_mlp:  y = (act(x Wg^T) * (x Wu^T)) Wd^T      (SwiGLU, GeGLU: Shazeer 2020)
// martlet::quantized_mlp, martlet::quantized_gated_mlp: the same with weights of 8 or 4 bits (QuantizedLinear.cpp).
//
// One pass over tiles of 128 tokens: a tile's hidden units go from the first product through the activation into the
// second while they are in L2. Saved for backward: x and what went into the activation; its value is recomputed there,
// together with the slope, which shares the exponential. Bound by FLOPs: 4096 tokens, width 256, 1024 hidden units, GELU
// run at 224 GFLOP/s forward and 209 backward on one Zen 5 core (peak 235), activation included.
// Without gradients, up to 512 tokens and any form of weights: two parallel regions; 512 tokens of 768 x 2048 gated run at
// 474-487 GFLOP/s on two cores in every form (ATen's operators: 202), one token in 335 us with f32 weights (18.9 MB: 56 GB/s),
// 221 with bf16, 120 with int8, 63 with int4, where ATen's f32 operators take 790.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "Activation.h"
#include "Fallback.h"
#include "Linear.h"
#include "Parallel.h"
#include "Product.h"
#include "QuantizedLinear.h"
#include "Vector.h"

namespace martlet {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Hidden units of a tile in scratch at a time: 128 x 1024 floats are 512 KB, half of L2.
constexpr int64_t kHiddenChunk = 1024;

/// A tile [rows, columns] inside a matrix of `stride` columns.
struct Tile {
  float* data;
  int64_t stride;
  float* row(int64_t r) const { return data + r * stride; }
};

template <typename Act>
MARTLET_INLINE void activateWith(int64_t rows, int64_t columns, Tile pre, const float* bias, const Tile* up, Tile out) {
  for (int64_t r = 0; r < rows; ++r) {
    float* __restrict from = pre.row(r);
    float* __restrict to = out.row(r);
    if (up) {
      const float* __restrict factor = up->row(r);
      MARTLET_SIMD for (int64_t c = 0; c < columns; ++c) to[c] = Act::value(from[c]) * factor[c];
    } else if (bias) {
      MARTLET_SIMD for (int64_t c = 0; c < columns; ++c) {
        from[c] += bias[c];
        to[c] = Act::value(from[c]);
      }
    } else {
      MARTLET_SIMD for (int64_t c = 0; c < columns; ++c) to[c] = Act::value(from[c]);
    }
  }
}

/// out = act(pre + bias) [* up], pre += bias.
MARTLET_VECTOR void activate(Activation activation, int64_t rows, int64_t columns, Tile pre, const float* bias, const Tile* up,
                             Tile out) {
  switch (activation) {
    case Activation::gelu: return activateWith<Gelu>(rows, columns, pre, bias, up, out);
    case Activation::geluTanh: return activateWith<GeluTanh>(rows, columns, pre, bias, up, out);
    case Activation::relu: return activateWith<Relu>(rows, columns, pre, bias, up, out);
    case Activation::silu: return activateWith<Silu>(rows, columns, pre, bias, up, out);
    case Activation::quickGelu: return activateWith<QuickGelu>(rows, columns, pre, bias, up, out);
  }
}

template <typename Act>
MARTLET_INLINE void activateBackwardWith(int64_t rows, int64_t columns, Tile pre, const Tile* up, Tile gradient,
                                         const Tile* upGradient, const Tile* out) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* __restrict from = pre.row(r);
    float* __restrict d = gradient.row(r);
    if (up) {
      const float* __restrict factor = up->row(r);
      float* __restrict dup = upGradient->row(r);
      float* __restrict to = out->row(r);
      MARTLET_SIMD for (int64_t c = 0; c < columns; ++c) {
        const ValueAndSlope a = Act::at(from[c]);
        to[c] = a.value * factor[c];
        dup[c] = d[c] * a.value;
        d[c] = d[c] * factor[c] * a.slope;
      }
    } else {
      float* __restrict to = out->row(r);
      MARTLET_SIMD for (int64_t c = 0; c < columns; ++c) {
        const ValueAndSlope a = Act::at(from[c]);
        to[c] = a.value;
        d[c] *= a.slope;
      }
    }
  }
}

/// `gradient` goes from that of the hidden units to that of `pre`; out: the hidden units; upGradient: gradient of up.
MARTLET_VECTOR void activateBackward(Activation activation, int64_t rows, int64_t columns, Tile pre, const Tile* up,
                                     Tile gradient, const Tile* upGradient, const Tile* out) {
  switch (activation) {
    case Activation::gelu: return activateBackwardWith<Gelu>(rows, columns, pre, up, gradient, upGradient, out);
    case Activation::geluTanh: return activateBackwardWith<GeluTanh>(rows, columns, pre, up, gradient, upGradient, out);
    case Activation::relu: return activateBackwardWith<Relu>(rows, columns, pre, up, gradient, upGradient, out);
    case Activation::silu: return activateBackwardWith<Silu>(rows, columns, pre, up, gradient, upGradient, out);
    case Activation::quickGelu: return activateBackwardWith<QuickGelu>(rows, columns, pre, up, gradient, upGradient, out);
  }
}

MARTLET_VECTOR void addBias(float* rows, int64_t count, int64_t stride, int64_t columns, const float* bias) {
  for (int64_t r = 0; r < count; ++r) {
    float* row = rows + r * stride;
    MARTLET_SIMD for (int64_t c = 0; c < columns; ++c) row[c] += bias[c];
  }
}

/// x [..., in]; first [hidden, in]; up [hidden, in] when gated, else undefined; down [out, hidden].
struct Block {
  Tensor x, first, firstBias, up, down, downBias;
  Activation activation;

  int64_t in() const { return first.size(1); }
  int64_t hidden() const { return first.size(0); }
  int64_t out() const { return down.size(0); }
  int64_t tokens() const { return c10::multiply_integers(x.sizes().slice(0, x.dim() - 1)); }

  Block contiguous() const {
    const auto whole = [](const Tensor& tensor) { return tensor.defined() ? tensor.contiguous() : tensor; };
    return {whole(x), whole(first), whole(firstBias), whole(up), whole(down), whole(downBias), activation};
  }

  void check(const char* name) const {
    TORCH_CHECK(first.dim() == 2, name, ": ", up.defined() ? "w_gate" : "w1", " must be [hidden, in], got ", first.sizes());
    TORCH_CHECK(x.dim() >= 1 && x.size(-1) == in(), name, ": x ", x.sizes(), " must end in ", in(),
                ", the columns of the first weight ", first.sizes());
    TORCH_CHECK(!up.defined() || up.sizes() == first.sizes(), name, ": w_up ", up.defined() ? up.sizes() : at::IntArrayRef{},
                " must have the shape of w_gate ", first.sizes());
    TORCH_CHECK(down.dim() == 2 && down.size(1) == hidden(), name, ": ", up.defined() ? "w_down " : "w2 ", down.sizes(),
                " must be [out, ", hidden(), "]");
    TORCH_CHECK(!firstBias.defined() || (firstBias.dim() == 1 && firstBias.size(0) == hidden()), name, ": b1 must be [", hidden(),
                "], got ", firstBias.defined() ? firstBias.sizes() : at::IntArrayRef{});
    TORCH_CHECK(!downBias.defined() || (downBias.dim() == 1 && downBias.size(0) == out()), name, ": b2 must be [", out(), "], got ",
                downBias.defined() ? downBias.sizes() : at::IntArrayRef{});
  }

  bool isFused() const { return areFusable({x, first, firstBias, up, down, downBias}); }

  Tensor activated(const Tensor& pre) const {
    switch (activation) {
      case Activation::gelu: return at::gelu(pre);
      case Activation::geluTanh: return at::gelu(pre, "tanh");
      case Activation::relu: return at::relu(pre);
      case Activation::silu: return at::silu(pre);
      case Activation::quickGelu: return pre * at::sigmoid(1.702 * pre);
    }
    return {};
  }

  /// f32 activations and weights of which some are bf16, on the CPU: these are widened as they are read.
  bool isMixed() const {
    bool some = false;
    for (const Tensor& tensor : {first, firstBias, up, down, downBias}) {
      if (!tensor.defined() || isFusable(tensor)) continue;
      if (tensor.scalar_type() != at::kBFloat16 || !tensor.is_cpu() || tensor.layout() != at::kStrided || tensor.is_neg()) return false;
      some = true;
    }
    return some && isFusable(x);
  }

  Tensor reference() const {
    const auto fitting = [&](const Tensor& tensor) {
      return tensor.defined() && tensor.scalar_type() == at::kBFloat16 && x.scalar_type() == at::kFloat ? tensor.to(at::kFloat) : tensor;
    };
    Tensor units = activated(at::linear(x, fitting(first), fitting(firstBias)));
    if (up.defined()) units = units * at::linear(x, fitting(up));
    return at::linear(units, fitting(down), fitting(downBias));
  }
};

std::vector<int64_t> withLast(at::IntArrayRef sizes, int64_t last) {
  std::vector<int64_t> result(sizes.begin(), sizes.end());
  result.back() = last;
  return result;
}

float* dataOrNull(const Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr<float>() : nullptr; }

/// A block whose weights may be stored in any form; biases f32 or null, `up` null unless gated.
struct StoredBlock {
  Weights first;
  const float* firstBias;
  const Weights* up;
  Weights down;
  const float* downBias;
  Activation activation;
};

/// y [tokens, out] without anything saved. Few tokens: one pass over the weights of the first layer, which applies the activation
/// too, and one over the second's, each in one parallel region. More: the first layer's panels are unpacked by the tasks.
void forwardStored(const StoredBlock& block, const float* x, int64_t tokens, const at::TensorOptions& options, float* y) {
  const int64_t in = block.first.columns, hidden = block.first.rows, out = block.down.rows;
  const Weights* const up = block.up;
  if (tokens <= kFewTokens) {
    const int64_t inDepth = inputDepth(block.first), depth = inputDepth(block.down);
    const float* input = paddedInput(block.first, x, tokens);
    float *units = threadScratch(kHidden, 3 * tokens * depth), *pre = units + tokens * depth, *factor = pre + tokens * depth;
    for (int64_t t = 0; t < tokens; ++t) std::fill_n(units + t * depth + hidden, depth - hidden, 0.0f);
    forRowRanges(hidden, block.first.rowBytes * (up ? 2 : 1), [&](int64_t begin, int64_t end) {
      dotRows(block.first, input, inDepth, tokens, begin, end, block.firstBias, pre, depth);
      if (up) dotRows(*up, input, inDepth, tokens, begin, end, nullptr, factor, depth);
      const Tile upTile{factor + begin, depth};
      activate(block.activation, tokens, end - begin, {pre + begin, depth}, nullptr, up ? &upTile : nullptr, {units + begin, depth});
    });
    return forRowRanges(out, block.down.rowBytes, [&](int64_t begin, int64_t end) {
      dotRows(block.down, units, depth, tokens, begin, end, block.downBias, y, out);
    });
  }
  const Tensor hiddenUnits = at::empty({tokens, hidden}, options);
  float* const units = hiddenUnits.mutable_data_ptr<float>();
  const int64_t panels = (hidden + kPanelColumns - 1) / kPanelColumns;
  int64_t most = 4 * kRowTile;
  while (most > kRowTile && panels * ((tokens + most - 1) / most) < 4 * workerCount()) most /= 2;
  productTasks(panels * ((tokens + most - 1) / most), tokens * hidden * in, [&](int64_t task, int64_t) {
    const int64_t panel = task % panels, column = panel * kPanelColumns, width = std::min(kPanelColumns, hidden - column);
    const int64_t last = std::min(tokens, (task / panels + 1) * most);
    float* const packed = threadScratch(kPanel, 2 * in * kPanelColumns);
    float* const packedUp = packed + in * kPanelColumns;
    packWeights(block.first, panel, packed);
    if (up) packWeights(*up, panel, packedUp);
    const Tile pre{threadScratch(kHiddenOther, 2 * kRowTile * kPanelColumns), kPanelColumns};
    const Tile factor{pre.data + kRowTile * kPanelColumns, kPanelColumns};
    for (int64_t row = task / panels * most; row < last; row += kRowTile) {
      const int64_t rows = std::min(kRowTile, last - row);
      multiplyBlock(rows, width, in, x + row * in, in, packed, width, pre.data, pre.stride, false);
      if (up) multiplyBlock(rows, width, in, x + row * in, in, packedUp, width, factor.data, factor.stride, false);
      activate(block.activation, rows, width, pre, block.firstBias ? block.firstBias + column : nullptr, up ? &factor : nullptr,
               {units + row * hidden + column, hidden});
    }
  });
  multiplyWeights(block.down, units, tokens, block.downBias, y);
}

struct Hidden {
  Tensor pre, up;  // [tokens, hidden]
};

/// `block` is contiguous; its weights are f32 or bf16.
Tensor forwardWithoutSaving(const Block& block) {
  const auto floats = [](const Tensor& bias) { return bias.defined() ? bias.to(at::kFloat) : bias; };
  const Tensor firstBias = floats(block.firstBias), downBias = floats(block.downBias);
  Tensor y = at::empty(withLast(block.x.sizes(), block.out()), block.x.options());
  Weights up;
  if (block.up.defined()) up = denseWeights(block.up);
  forwardStored({denseWeights(block.first), dataOrNull(firstBias), block.up.defined() ? &up : nullptr, denseWeights(block.down),
                 dataOrNull(downBias), block.activation},
                block.x.const_data_ptr<float>(), block.tokens(), block.x.options(), y.mutable_data_ptr<float>());
  return y;
}

/// Up to so many tokens, panels packed by the tasks that use them beat packed copies of whole weights (page faults).
constexpr int64_t kStoredTokens = 4 * kRowTile;

/// y; `saved` (may be null) receives what went into the activation. `block` is contiguous.
Tensor forward(const Block& block, Hidden* saved) {
  const int64_t tokens = block.tokens(), in = block.in(), hidden = block.hidden(), out = block.out();
  const bool gated = block.up.defined();
  if (saved && tokens <= kFewTokens) {
    // Bound by the bytes of the weights, which are used in place.
    const Tensor pre = linearForward(block.x, block.first, block.firstBias);
    const Tensor up = gated ? linearForward(block.x, block.up, {}) : Tensor();
    Tensor units = at::empty_like(pre);
    const Tile upTile{dataOrNull(up), hidden};
    activate(block.activation, tokens, hidden, {dataOrNull(pre), hidden}, nullptr, gated ? &upTile : nullptr,
             {dataOrNull(units), hidden});
    *saved = {pre, up};
    return linearForward(units, block.down, block.downBias);
  }
  if (!saved && tokens <= kStoredTokens) return forwardWithoutSaving(block);
  Tensor y = at::empty(withLast(block.x.sizes(), out), block.x.options());
  if (saved) {
    saved->pre = at::empty({tokens, hidden}, block.x.options());
    if (gated) saved->up = at::empty({tokens, hidden}, block.x.options());
  }
  const Panels first = transposedPanels(block.first), up = gated ? transposedPanels(block.up) : Panels{};
  const Panels down = transposedPanels(block.down);
  const float *x = block.x.const_data_ptr<float>(), *firstBias = dataOrNull(block.firstBias), *downBias = dataOrNull(block.downBias);
  float *result = y.mutable_data_ptr<float>(), *keptPre = saved ? dataOrNull(saved->pre) : nullptr;
  float* keptUp = saved ? dataOrNull(saved->up) : nullptr;
  const int64_t tile = rowTile(tokens, out), tiles = (tokens + tile - 1) / tile;
  productTasks(tiles, tokens * hidden * (in + out), [&](int64_t task, int64_t) {
    const int64_t row = task * tile, rows = std::min(tile, tokens - row);
    const int64_t chunkLimit = std::min(hidden, kHiddenChunk);
    float* units = threadScratch(kHidden, tile * chunkLimit);
    float* panel64 = threadScratch(kHiddenOther, 2 * tile * kPanelColumns);
    for (int64_t chunk = 0; chunk < std::max<int64_t>(hidden, 1); chunk += kHiddenChunk) {
      const int64_t count = std::min(kHiddenChunk, hidden - chunk);
      for (int64_t column = chunk; column < chunk + count; column += kPanelColumns) {
        const int64_t panel = column / kPanelColumns, width = first.width(panel);
        const Tile pre = saved ? Tile{keptPre + row * hidden + column, hidden} : Tile{panel64, kPanelColumns};
        multiplyBlock(rows, width, in, x + row * in, in, first.at(panel), first.stride(panel), pre.data, pre.stride, false);
        Tile factor{};
        if (gated) {
          factor = saved ? Tile{keptUp + row * hidden + column, hidden} : Tile{panel64 + tile * kPanelColumns, kPanelColumns};
          multiplyBlock(rows, width, in, x + row * in, in, up.at(panel), up.stride(panel), factor.data, factor.stride, false);
        }
        activate(block.activation, rows, width, pre, firstBias ? firstBias + column : nullptr, gated ? &factor : nullptr,
                 {units + column - chunk, count});
      }
      for (int64_t panel = 0; panel < down.count(); ++panel) {
        const int64_t width = down.width(panel);
        float* to = result + row * out + panel * kPanelColumns;
        multiplyBlock(rows, width, count, units, count, down.at(panel, chunk), down.stride(panel), to, out, chunk > 0);
        if (downBias && chunk + count >= hidden) addBias(to, rows, out, width, downBias + panel * kPanelColumns);
      }
    }
  });
  return y;
}

struct Wanted {
  bool x, first, firstBias, up, down, downBias;
};

struct Gradients {
  Tensor x, first, firstBias, up, down, downBias;
};

Gradients backward(const Block& block, const Hidden& saved, const Tensor& dy, const Wanted& wanted) {
  const int64_t tokens = block.tokens(), in = block.in(), hidden = block.hidden(), out = block.out();
  const bool gated = block.up.defined();
  const auto options = dy.options();
  Gradients result;
  // The hidden units and the gradients before the activation, needed whole for the gradients of the weights.
  Tensor units = at::empty({tokens, hidden}, options), dpre = at::empty({tokens, hidden}, options);
  Tensor dup = gated ? at::empty({tokens, hidden}, options) : Tensor();
  if (wanted.x) result.x = at::empty(block.x.sizes(), options);
  const Panels down = panels(block.down), first = wanted.x ? panels(block.first) : Panels{};
  const Panels up = wanted.x && gated ? panels(block.up) : Panels{};
  const float* gradient = dy.const_data_ptr<float>();
  float *pre = dataOrNull(saved.pre), *factor = dataOrNull(saved.up), *dx = dataOrNull(result.x);
  float *value = units.mutable_data_ptr<float>(), *dvalue = dpre.mutable_data_ptr<float>(), *dfactor = dataOrNull(dup);
  const int64_t tile = rowTile(tokens, in), tiles = (tokens + tile - 1) / tile;
  productTasks(tiles, tokens * hidden * (in + out), [&](int64_t task, int64_t) {
    const int64_t row = task * tile, rows = std::min(tile, tokens - row), start = row * hidden;
    for (int64_t chunk = 0; chunk < std::max<int64_t>(hidden, 1); chunk += kHiddenChunk) {
      const int64_t count = std::min(kHiddenChunk, hidden - chunk);
      for (int64_t column = chunk; column < chunk + count; column += kPanelColumns) {
        const int64_t panel = column / kPanelColumns, width = down.width(panel), place = start + column;
        multiplyBlock(rows, width, out, gradient + row * out, out, down.at(panel), down.stride(panel), dvalue + place, hidden, false);
        const Tile upTile{factor + place, hidden}, dupTile{dfactor + place, hidden}, valueTile{value + place, hidden};
        activateBackward(block.activation, rows, width, {pre + place, hidden}, gated ? &upTile : nullptr, {dvalue + place, hidden},
                         gated ? &dupTile : nullptr, &valueTile);
      }
      if (!dx) continue;
      for (int64_t panel = 0; panel < first.count(); ++panel) {
        const int64_t width = first.width(panel);
        float* to = dx + row * in + panel * kPanelColumns;
        multiplyBlock(rows, width, count, dvalue + start + chunk, hidden, first.at(panel, chunk), first.stride(panel), to, in, chunk > 0);
        if (gated) multiplyBlock(rows, width, count, dfactor + start + chunk, hidden, up.at(panel, chunk), up.stride(panel), to, in, true);
      }
    }
  });
  const float* x = block.x.const_data_ptr<float>();
  if (wanted.first || wanted.firstBias) {
    result.first = at::empty({hidden, in}, options);
    if (wanted.firstBias) result.firstBias = in > 0 ? at::empty({hidden}, options) : dpre.sum(0);
    multiplyTransposed(dvalue, x, tokens, hidden, in, result.first.mutable_data_ptr<float>(), dataOrNull(result.firstBias));
    if (!wanted.first) result.first = Tensor();
  }
  if (wanted.up) {
    result.up = at::empty({hidden, in}, options);
    multiplyTransposed(dfactor, x, tokens, hidden, in, result.up.mutable_data_ptr<float>(), nullptr);
  }
  if (wanted.down || wanted.downBias) {
    result.down = at::empty({out, hidden}, options);
    if (wanted.downBias) result.downBias = hidden > 0 ? at::empty({out}, options) : dy.reshape({-1, out}).sum(0);
    multiplyTransposed(gradient, value, tokens, out, hidden, result.down.mutable_data_ptr<float>(), dataOrNull(result.downBias));
    if (!wanted.down) result.down = Tensor();
  }
  return result;
}

struct FeedForward : torch::autograd::Function<FeedForward> {
  using Optional = const std::optional<Tensor>&;

  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& first, Optional firstBias, Optional up,
                        const Tensor& down, Optional downBias, int64_t activation) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Block block{x, first, firstBias.value_or(Tensor()), up.value_or(Tensor()), down, downBias.value_or(Tensor()),
                      static_cast<Activation>(activation)};
    Hidden hidden;
    const Tensor y = martlet::forward(block.contiguous(), &hidden);
    context->save_for_backward({x, first, block.firstBias, block.up, down, block.downBias, hidden.pre, hidden.up});
    context->saved_data["activation"] = activation;
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    if (!gradients[0].defined()) return variable_list(7);
    const auto activation = static_cast<Activation>(context->saved_data["activation"].toInt());
    if (at::GradMode::is_enabled()) {
      auto found = differentiableGradients({saved.begin(), saved.begin() + 6}, gradients[0], [&](const std::vector<Tensor>& inputs) {
        return Block{inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], inputs[5], activation}.reference();
      });
      found.emplace_back();
      return found;
    }
    // Inputs are counted without those that are undefined.
    bool wanted[6];
    for (size_t i = 0, place = 0; i < 6; ++i) wanted[i] = saved[i].defined() && context->needs_input_grad(place++);
    const Block block{saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], activation};
    const auto result = martlet::backward(block.contiguous(), {saved[6], saved[7]}, gradients[0].contiguous(),
                                          {wanted[0], wanted[1], wanted[2], wanted[3], wanted[4], wanted[5]});
    return {result.x, result.first, result.firstBias, result.up, result.down, result.downBias, Tensor()};
  }
};

Activation activationNamed(const char* name, c10::string_view activation) {
  if (activation == "gelu") return Activation::gelu;
  if (activation == "gelu_tanh") return Activation::geluTanh;
  if (activation == "relu") return Activation::relu;
  if (activation == "silu") return Activation::silu;
  if (activation == "quick_gelu") return Activation::quickGelu;
  TORCH_CHECK(false, name, ": activation must be gelu, gelu_tanh, relu, silu or quick_gelu, got '", std::string(activation), "'");
}

Tensor apply(const char* name, const Block& block, bool differentiable) {
  block.check(name);
  const bool gradient = differentiable && needsGradient({block.x, block.first, block.firstBias, block.up, block.down, block.downBias});
  if (!gradient && block.isMixed()) {
    at::AutoDispatchBelowADInplaceOrView below;
    return forwardWithoutSaving(block.contiguous());
  }
  if (!block.isFused()) return block.reference();
  if (gradient) {
    const auto optional = [](const Tensor& tensor) { return tensor.defined() ? std::optional<Tensor>(tensor) : std::nullopt; };
    return FeedForward::apply(block.x, block.first, optional(block.firstBias), optional(block.up), block.down,
                              optional(block.downBias), static_cast<int64_t>(block.activation));
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return forward(block.contiguous(), nullptr);
}

template <bool differentiable>
Tensor mlp(const Tensor& x, const Tensor& w1, const std::optional<Tensor>& b1, const Tensor& w2, const std::optional<Tensor>& b2,
           c10::string_view activation) {
  return apply("mlp", {x, w1, b1.value_or(Tensor()), Tensor(), w2, b2.value_or(Tensor()), activationNamed("mlp", activation)},
               differentiable);
}

template <bool differentiable>
Tensor gatedMlp(const Tensor& x, const Tensor& gate, const Tensor& up, const Tensor& down, c10::string_view activation) {
  return apply("gated_mlp", {x, gate, Tensor(), up, down, Tensor(), activationNamed("gated_mlp", activation)}, differentiable);
}

Tensor given(const std::optional<Tensor>& tensor) { return tensor && tensor->defined() && tensor->numel() ? *tensor : Tensor(); }

/// A quantised weight as the operators take it.
struct Quantized {
  Tensor packed, scales;
  std::optional<Tensor> minima;

  Weights weights(const char* name, int64_t columns, int64_t bits, int64_t group) const {
    return quantizedWeights(name, packed, scales, given(minima), columns, bits, group);
  }
  /// The differentiable operator.
  Tensor multiply(const Tensor& x, const std::optional<Tensor>& bias, int64_t bits, int64_t group) const {
    static const auto linear = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("martlet::quantized_linear", "")
                                   .typed<Tensor(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&,
                                                 const std::optional<Tensor>&, int64_t, int64_t)>();
    return linear.call(x, packed, scales, minima, bias, bits, group);
  }
};

Tensor quantizedBlock(const char* name, bool differentiable, const Tensor& x_, const Quantized& first, const std::optional<Tensor>& b1,
                      const Quantized* up, const Quantized& down, const std::optional<Tensor>& b2, int64_t bits, int64_t group,
                      c10::string_view activationName) {
  const Activation activation = activationNamed(name, activationName);
  TORCH_CHECK(x_.dim() >= 1 && isFusable(x_), name, ": x must be a float32 CPU tensor [..., in], got ", x_.scalar_type(), " ", x_.sizes());
  const Tensor firstBias = b1.value_or(Tensor()), downBias = b2.value_or(Tensor());
  if (differentiable && needsGradient({x_, firstBias, downBias})) {
    Block names;
    names.activation = activation;
    Tensor units = names.activated(first.multiply(x_, b1, bits, group));
    if (up) units = units * up->multiply(x_, std::nullopt, bits, group);
    return down.multiply(units, b2, bits, group);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  const Weights firstWeights = first.weights(name, x_.size(-1), bits, group);
  Weights upWeights;
  if (up) {
    upWeights = up->weights(name, x_.size(-1), bits, group);
    TORCH_CHECK(upWeights.rows == firstWeights.rows, name, ": w_up ", up->packed.sizes(), " must have the rows of w_gate ",
                first.packed.sizes());
  }
  const Weights downWeights = down.weights(name, firstWeights.rows, bits, group);
  const auto floats = [&](const Tensor& bias, int64_t count, const char* what) {
    TORCH_CHECK(!bias.defined() || (bias.dim() == 1 && bias.size(0) == count && bias.is_cpu() && bias.is_floating_point()), name, ": ",
                what, " must be a floating-point CPU tensor [", count, "], got ", bias.defined() ? bias.sizes() : at::IntArrayRef{});
    return bias.defined() ? bias.to(at::kFloat).contiguous() : bias;
  };
  const Tensor offset = floats(firstBias, firstWeights.rows, "b1"), outOffset = floats(downBias, downWeights.rows, "b2");
  const Tensor x = x_.contiguous();
  Tensor y = at::empty(withLast(x.sizes(), downWeights.rows), x.options());
  forwardStored({firstWeights, dataOrNull(offset), up ? &upWeights : nullptr, downWeights, dataOrNull(outOffset), activation},
                x.const_data_ptr<float>(), c10::multiply_integers(x.sizes().slice(0, x.dim() - 1)), x.options(),
                y.mutable_data_ptr<float>());
  return y;
}

template <bool differentiable>
Tensor quantizedMlp(const Tensor& x, const Tensor& w1, const Tensor& s1, const std::optional<Tensor>& m1, const std::optional<Tensor>& b1,
                    const Tensor& w2, const Tensor& s2, const std::optional<Tensor>& m2, const std::optional<Tensor>& b2, int64_t bits,
                    int64_t group, c10::string_view activation) {
  return quantizedBlock("quantized_mlp", differentiable, x, {w1, s1, m1}, b1, nullptr, {w2, s2, m2}, b2, bits, group, activation);
}

template <bool differentiable>
Tensor quantizedGatedMlp(const Tensor& x, const Tensor& gate, const Tensor& gateScales, const std::optional<Tensor>& gateMinima,
                         const Tensor& up, const Tensor& upScales, const std::optional<Tensor>& upMinima, const Tensor& down,
                         const Tensor& downScales, const std::optional<Tensor>& downMinima, int64_t bits, int64_t group,
                         c10::string_view activation) {
  const Quantized factor{up, upScales, upMinima};
  return quantizedBlock("quantized_gated_mlp", differentiable, x, {gate, gateScales, gateMinima}, std::nullopt, &factor,
                        {down, downScales, downMinima}, std::nullopt, bits, group, activation);
}

TORCH_LIBRARY_FRAGMENT(martlet, library) {
  library.def("mlp(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str activation) -> Tensor");
  library.def("gated_mlp(Tensor x, Tensor w_gate, Tensor w_up, Tensor w_down, str activation) -> Tensor");
  library.def(
      "quantized_mlp(Tensor x, Tensor w1, Tensor scales1, Tensor? minima1, Tensor? b1, Tensor w2, Tensor scales2, Tensor? minima2, "
      "Tensor? b2, int bits, int group, str activation) -> Tensor");
  library.def(
      "quantized_gated_mlp(Tensor x, Tensor w_gate, Tensor gate_scales, Tensor? gate_minima, Tensor w_up, Tensor up_scales, "
      "Tensor? up_minima, Tensor w_down, Tensor down_scales, Tensor? down_minima, int bits, int group, str activation) -> Tensor");
}
TORCH_LIBRARY_IMPL(martlet, CompositeExplicitAutograd, library) {
  library.impl("mlp", mlp<false>);
  library.impl("gated_mlp", gatedMlp<false>);
}
TORCH_LIBRARY_IMPL(martlet, CPU, library) {
  library.impl("quantized_mlp", quantizedMlp<false>);
  library.impl("quantized_gated_mlp", quantizedGatedMlp<false>);
}
TORCH_LIBRARY_IMPL(martlet, Autograd, library) {
  library.impl("mlp", mlp<true>);
  library.impl("gated_mlp", gatedMlp<true>);
  library.impl("quantized_mlp", quantizedMlp<true>);
  library.impl("quantized_gated_mlp", quantizedGatedMlp<true>);
}

}  // namespace
}  // namespace martlet
