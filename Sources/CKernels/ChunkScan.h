#pragma once
// The machinery of linear recurrences S_t = Diag(e^{g_t}) S_{t-1} + k_tᵀ v_t, o_t = q_t S_t, computed block by block:
// what gated linear attention, plain and normalised linear attention need, and the delta rule builds on.
//
// A block is 16 tokens. On a CPU there is no gain in a larger one: the block product reaches 256 GFLOP/s a core at
// 16x64x64 and 243 at 64x64x16, against 264 at 64x64x64, and the work inside a block (quadratic in its length) shrinks.
// Inside a block, with A_i = prod_{s<=i} e^{g_s} and T = A_16, per channel:
//   ordinary block (T >= e^-20): kw_j = k_j / A_j, qw_i = scale q_i A_i, P = lower(qw kwᵀ), O = qw S + P V,
//     S <- T (S + kwᵀ V): three products, no exponential but the gate's own, all factors within e^±20;
//   strongly decaying block: kw_j = k_j T / A_j (a product of gates, so <= 1 and exactly 0 across a gate of 0), P channel
//     by channel from running products of gates, S <- T S + kwᵀ V. Nothing is divided, so g = -inf is an ordinary value.

#include "BlockProduct.h"
#include "Parallel.h"
#include "Transpose.h"
#include "Vector.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace martlet::scan {

using blocks::Lanes;
using blocks::lanes;
using blocks::portableTransposedProduct;
using blocks::product;
using blocks::usesBlockKernel;

inline constexpr int64_t kBlock = 16;

inline int64_t roundedUp(int64_t n) { return (n + kBlock - 1) / kBlock * kBlock; }

/// Long decays end in denormal numbers, which cost up to a hundred times a normal one and carry nothing here.
class FlushDenormals {
#if defined(__x86_64__)
  unsigned saved_ = _mm_getcsr();

 public:
  FlushDenormals() { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }
#else
 public:
  FlushDenormals() {}
#endif
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

// --- Leaves ---------------------------------------------------------------------------------------------------------

/// to[c, i] = from[i, c] for 16 rows of `columns`, a multiple of 16.
MARTLET_VECTOR static inline void transposeToColumns(
    const float* from, int64_t ld, int64_t columns, float* to, int64_t ldTo = 16) {
  for (int64_t c = 0; c < columns; c += 8)
    for (int64_t i = 0; i < 16; i += 8) {
      Octet column[8];
      transposeTile(from + i * ld + c, ld, column);
      for (int j = 0; j < 8; ++j) octet(to + (c + j) * ldTo + i) = column[j];
    }
}

/// to[c, i] = factor[i] * from[i, c]
MARTLET_VECTOR static inline void transposeToWeightedColumns(
    const float* from, int64_t ld, int64_t columns, const float* factor, float* to, int64_t ldTo = 16) {
  for (int64_t c = 0; c < columns; c += 8)
    for (int64_t i = 0; i < 16; i += 8) {
      Octet column[8];
      transposeTile(from + i * ld + c, ld, column);
      for (int j = 0; j < 8; ++j) octet(to + (c + j) * ldTo + i) = column[j] * octet(factor + i);
    }
}

/// to[i, c] = from[c, i] * factor[i, c] for `columns` (a multiple of 16) rows of 16.
MARTLET_VECTOR static inline void transposeToRows(
    const float* from, int64_t columns, const float* factor, float* to, int64_t ld) {
  for (int64_t c = 0; c < columns; c += 8)
    for (int64_t i = 0; i < 16; i += 8) {
      Octet row[8];
      transposeTile(from + c * 16 + i, 16, row);
      for (int j = 0; j < 8; ++j) octet(to + (i + j) * ld + c) = row[j] * octet(factor + (i + j) * columns + c);
    }
}

/// to[i, c] = factor * from[c, i] for `columns` (a multiple of 16) rows of 16.
MARTLET_VECTOR static inline void transposeToScaledRows(
    const float* from, int64_t columns, float factor, float* to, int64_t ld) {
  for (int64_t c = 0; c < columns; c += 8)
    for (int64_t i = 0; i < 16; i += 8) {
      Octet row[8];
      transposeTile(from + c * 16 + i, 16, row);
      for (int j = 0; j < 8; ++j) octet(to + (i + j) * ld + c) = row[j] * factor;
    }
}

/// to[i, c] = factor[i] * from[c, i], `from` with leading dimension `ld`, `to` with `columns` (a multiple of 16).
MARTLET_VECTOR static inline void transposeToWeightedRows(
    const float* from, int64_t ld, int64_t columns, const float* factor, float* to) {
  for (int64_t c = 0; c < columns; c += 8)
    for (int64_t i = 0; i < 16; i += 8) {
      Octet row[8];
      transposeTile(from + c * ld + i, ld, row);
      for (int j = 0; j < 8; ++j) octet(to + (i + j) * columns + c) = row[j] * factor[i + j];
    }
}

MARTLET_VECTOR static inline void exponentials(float* x, int64_t count) {
  MARTLET_SIMD
  for (int64_t i = 0; i < count; ++i) x[i] = fastExp(x[i]);
}

/// Whether a block that decays by `total` in all is an ordinary one: within e^±20.
MARTLET_INLINE bool isOrdinary(float total) { return total >= 2.06e-9f && total <= 4.85e8f; }

/// From the gates a[16, width] of a block: qFactor = scale A_i, kFactor = 1/A_j (ordinary block) or T/A_j, total = T.
/// Returns whether the block is ordinary.
MARTLET_VECTOR static inline bool decayFactors(
    const float* gate, int64_t width, float scale, float* qFactor, float* kFactor, float* total) {
  for (int64_t c = 0; c < width; c += 16) {
    Lanes running = {};
    running += scale;
    for (int i = 0; i < 16; ++i) {
      running *= lanes(gate + i * width + c);
      lanes(qFactor + i * width + c) = running;
    }
    Lanes after = {};
    after += 1.0f;
    for (int i = 15; i >= 0; --i) {
      lanes(kFactor + i * width + c) = after;
      after *= lanes(gate + i * width + c);
    }
    lanes(total + c) = after;
  }
  bool ordinary = true;
  for (int64_t c = 0; c < width; ++c) ordinary &= isOrdinary(total[c]);
  if (ordinary) {
    for (int64_t c = 0; c < width; c += 16) {
      const Lanes inverse = 1.0f / lanes(total + c);
      for (int i = 0; i < 16; ++i) lanes(kFactor + i * width + c) *= inverse;
    }
  }
  return ordinary;
}

/// to[i, c] = from[i, c] * factor[i, c] over 16 rows.
MARTLET_VECTOR static inline void weighRows(
    const float* from, const float* factor, int64_t width, float* to, int64_t ld) {
  for (int i = 0; i < 16; ++i)
    for (int64_t c = 0; c < width; c += 16)
      lanes(to + i * ld + c) = lanes(from + i * width + c) * lanes(factor + i * width + c);
}

/// Row c of `state` times total[c].
MARTLET_VECTOR static inline void scaleRows(float* state, int64_t rows, int64_t width, const float* total) {
  for (int64_t r = 0; r < rows; ++r) {
    const float factor = total[r];
    for (int64_t c = 0; c < width; c += 16) lanes(state + r * width + c) *= factor;
  }
}

/// to[i, c] = from[i, c] + weight[i] * other[i, c] over 16 rows, `from` without gaps.
MARTLET_VECTOR static inline void addDiagonal(
    const float* from, const float* weight, const float* other, int64_t ldOther, int64_t width, float* to, int64_t ld) {
  for (int i = 0; i < 16; ++i)
    for (int64_t c = 0; c < width; c += 16)
      lanes(to + i * ld + c) = lanes(from + i * width + c) + weight[i] * lanes(other + i * ldOther + c);
}

/// Takes the diagonal, times `scale`, out of a 16x16 tile with leading dimension 16.
MARTLET_VECTOR static inline void takeDiagonal(float* tile, float scale, float* diagonal) {
  for (int i = 0; i < 16; ++i) {
    diagonal[i] = scale * tile[i * 17];
    tile[i * 17] = 0;
  }
}

/// Keeps column <= row of a 16x16 tile (`lower`), or column >= row.
MARTLET_VECTOR static inline void keepTriangle(float* tile, int64_t ld, bool lower) {
  typedef int32_t Integers __attribute__((vector_size(64)));
  const Integers column = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Lanes zero = {};
  if (lower) {
    for (int i = 0; i < 16; ++i) lanes(tile + i * ld) = column <= i ? lanes(tile + i * ld) : zero;
  } else {
    for (int i = 0; i < 16; ++i) lanes(tile + i * ld) = column >= i ? lanes(tile + i * ld) : zero;
  }
}

/// P_ij = scale Σ_c q_ic k_jc prod_{j<s<=i} a_sc for j <= i, 0 above; element (i, j) at weights[i*rowStep + j*columnStep].
MARTLET_VECTOR static inline void decayingWeights(
    const float* q, const float* k, const float* gate, int64_t width, float scale, float* weights, int64_t rowStep,
    int64_t columnStep, float* work) {
  MARTLET_FAST_SUMS
  for (int j = 0; j < 16; ++j) {
    for (int i = 0; i < j; ++i) weights[i * rowStep + j * columnStep] = 0;
    for (int64_t c = 0; c < width; ++c) work[c] = k[j * width + c];
    for (int i = j; i < 16; ++i) {
      float sum = 0;
      MARTLET_SIMD
      for (int64_t c = 0; c < width; ++c) {
        if (i > j) work[c] *= gate[i * width + c];
        sum += q[i * width + c] * work[c];
      }
      weights[i * rowStep + j * columnStep] = scale * sum;
    }
  }
}

/// dq_ic += scale Σ_{j<=i} dP_ij k_jc prod_{j<s<=i} a_sc.
MARTLET_VECTOR static inline void decayingQueryGradient(
    const float* weightGradient, int64_t rowStep, int64_t columnStep, const float* k, const float* gate, int64_t width,
    float scale, float* dq, float* work) {
  for (int j = 0; j < 16; ++j) {
    for (int64_t c = 0; c < width; ++c) work[c] = k[j * width + c] * scale;
    for (int i = j; i < 16; ++i) {
      const float weight = weightGradient[i * rowStep + j * columnStep];
      for (int64_t c = 0; c < width; ++c) {
        if (i > j) work[c] *= gate[i * width + c];
        dq[i * width + c] += weight * work[c];
      }
    }
  }
}

/// dk_jc += scale Σ_{i>=j} dP_ij q_ic prod_{j<s<=i} a_sc.
MARTLET_VECTOR static inline void decayingKeyGradient(
    const float* weightGradient, int64_t rowStep, int64_t columnStep, const float* q, const float* gate, int64_t width,
    float scale, float* dk, float* work) {
  for (int i = 0; i < 16; ++i) {
    for (int64_t c = 0; c < width; ++c) work[c] = q[i * width + c] * scale;
    for (int j = i; j >= 0; --j) {
      const float weight = weightGradient[i * rowStep + j * columnStep];
      for (int64_t c = 0; c < width; ++c) {
        dk[j * width + c] += weight * work[c];
        work[c] *= gate[j * width + c];
      }
    }
  }
}

/// carry[c] = Σ_v state[c, v] stateGradient[c, v]: the part of d/db (b the summed log-gate) due to all later tokens.
MARTLET_VECTOR static inline void rowProducts(
    const float* state, const float* stateGradient, int64_t rows, int64_t width, float* carry) {
  MARTLET_FAST_SUMS
  for (int64_t r = 0; r < rows; ++r) {
    float sum = 0;
    MARTLET_SIMD
    for (int64_t c = 0; c < width; ++c) sum += state[r * width + c] * stateGradient[r * width + c];
    carry[r] = sum;
  }
}

/// The reverse running sum dg_t = Σ_{s>=t} (q_s dq_s - k_s dk_s), continued from `carry`; 0 where the gate is closed.
/// A token's own weight (j = i) adds equally to both products: dq and dk come without it, or under strong decay the
/// difference of two large numbers would be all that is left.
MARTLET_VECTOR static inline void gateGradient(
    const float* q, const float* dq, const float* k, const float* dk, const float* gate, int64_t width, float* carry,
    float* dg) {
  for (int64_t c = 0; c < width; c += 16) {
    Lanes running = lanes(carry + c);
    for (int i = 15; i >= 0; --i) {
      const int64_t at = i * width + c;
      running += lanes(q + at) * lanes(dq + at) - lanes(k + at) * lanes(dk + at);
      const Lanes open = lanes(gate + at);
      Lanes zero = {};
      lanes(dg + at) = open > zero ? running : zero;
    }
    lanes(carry + c) = running;
  }
}

// --- Rows of a [B, H, L, d] tensor ----------------------------------------------------------------------------------

MARTLET_VECTOR static inline void widenBFloat16(const uint16_t* from, int64_t count, float* to) {
  MARTLET_SIMD
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
    std::memcpy(to + i, &bits, sizeof bits);
  }
}

/// Copies rows `step` apart, times a factor a row (`factors[i * perRow]`), and asks for those `ahead` rows further on: heads inside tokens
/// are short rows a long way apart, which the hardware's own prefetch doesn't follow.
MARTLET_VECTOR static inline void copyWeightedRows(
    const float* from, int64_t step, int64_t rows, int64_t width, float* to, int64_t ld, int64_t ahead, const float* factors, int64_t perRow) {
  const int64_t whole = width / 16 * 16;
  for (int64_t i = 0; i < rows; ++i, from += step, to += ld) {
    const uintptr_t next = reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(ahead * step) * sizeof(float);
    const float factor = factors[i * perRow];
    for (int64_t c = 0; c < whole; c += 16) {
      __builtin_prefetch(reinterpret_cast<const void*>(next + sizeof(float) * c));
      lanes(to + c) = lanes(from + c) * factor;
    }
    for (int64_t c = whole; c < width; ++c) to[c] = from[c] * factor;
  }
}

static inline void copyRows(
    const float* from, int64_t step, int64_t rows, int64_t width, float* to, int64_t ld, int64_t ahead, float factor = 1) {
  copyWeightedRows(from, step, rows, width, to, ld, ahead, &factor, 0);
}

/// A view of [B, H, L, d] (or [B, H, L]: d = 1) with any strides but a last one of 1, read and written 16 rows at a time.
struct Rows {
  char* data = nullptr;
  int64_t heads = 1, batchStep = 0, headStep = 0, tokenStep = 0, width = 1;
  at::ScalarType type = at::kFloat;

  Rows() = default;
  explicit Rows(const at::Tensor& x)
      : data(static_cast<char*>(x.data_ptr())), heads(x.size(1)), batchStep(x.stride(0)), headStep(x.stride(1)),
        tokenStep(x.stride(2)), width(x.dim() == 4 ? x.size(3) : 1), type(x.scalar_type()) {}

  char* row(int64_t head, int64_t token) const {
    const int64_t offset = head / heads * batchStep + head % heads * headStep + token * tokenStep;
    return data + offset * static_cast<int64_t>(c10::elementSize(type));
  }
  int64_t rowBytes() const { return tokenStep * static_cast<int64_t>(c10::elementSize(type)); }

  /// Fills 16 rows of `padded` columns, zeros where the tensor has none, and asks for the rows `ahead` tokens further on.
  void load(int64_t head, int64_t token, int64_t rows, float* to, int64_t padded, int64_t ahead = kBlock) const {
    loadScaled(head, token, rows, 1, to, padded, padded, ahead);
  }
  /// The same times `factor`, rows `ld` apart.
  void loadScaled(
      int64_t head, int64_t token, int64_t rows, float factor, float* to, int64_t ld, int64_t padded, int64_t ahead = kBlock) const {
    loadWeighted(head, token, rows, &factor, to, ld, padded, ahead, 0);
  }
  /// The same times a factor a row.
  void loadWeighted(
      int64_t head, int64_t token, int64_t rows, const float* factors, float* to, int64_t ld, int64_t padded, int64_t ahead = kBlock,
      int64_t perRow = 1) const {
    const char* from = row(head, token);
    if (type == at::kFloat) {
      copyWeightedRows(reinterpret_cast<const float*>(from), tokenStep, rows, width, to, ld, ahead, factors, perRow);
    } else {
      const int64_t step = rowBytes();
      for (int64_t i = 0; i < rows; ++i, from += step) {
        float* line = to + i * ld;
        if (type == at::kBFloat16) {
          widenBFloat16(reinterpret_cast<const uint16_t*>(from), width, line);
        } else {
          for (int64_t c = 0; c < width; ++c) line[c] = reinterpret_cast<const at::Half*>(from)[c];
        }
        for (int64_t c = 0; c < width; ++c) line[c] *= factors[i * perRow];
      }
    }
    if (padded > width)
      for (int64_t i = 0; i < rows; ++i) std::memset(to + i * ld + width, 0, sizeof(float) * (padded - width));
    for (int64_t i = rows; i < kBlock; ++i) std::memset(to + i * ld, 0, sizeof(float) * padded);
  }

  void store(int64_t head, int64_t token, int64_t rows, const float* from, int64_t padded) const {
    char* to = row(head, token);
    if (type == at::kFloat) return copyRows(from, padded, rows, width, reinterpret_cast<float*>(to), tokenStep, 0);
    const int64_t step = rowBytes();
    for (int64_t i = 0; i < rows; ++i, to += step) {
      const float* line = from + i * padded;
      if (type == at::kBFloat16) {
        for (int64_t c = 0; c < width; ++c) reinterpret_cast<at::BFloat16*>(to)[c] = line[c];
      } else {
        for (int64_t c = 0; c < width; ++c) reinterpret_cast<at::Half*>(to)[c] = line[c];
      }
    }
  }

  /// Stores the 16 rows of `padded` columns that `make(to, leading dimension)` writes: in place where the tensor has such rows, else by
  /// way of `tile`.
  template <typename Make>
  void write(int64_t head, int64_t token, int64_t rows, float* tile, int64_t padded, const Make& make) const {
    if (type == at::kFloat && padded == width && rows == kBlock) return make(reinterpret_cast<float*>(row(head, token)), tokenStep);
    make(tile, padded);
    store(head, token, rows, tile, padded);
  }
};

/// An uninitialised [B, H, L, d] tensor whose transpose(1, 2) is contiguous, so that heads concatenate without a copy.
inline at::Tensor emptyHeads(int64_t batch, int64_t heads, int64_t length, int64_t width, const at::TensorOptions& options) {
  return at::empty({batch, length, heads, width}, options).transpose(1, 2);
}

/// One worker's memory, cut into 64-byte aligned pieces.
class Arena {
  struct Free {
    void operator()(float* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t used_ = 0;

 public:
  explicit Arena(int64_t floats)
      : memory_(static_cast<float*>(::operator new[](sizeof(float) * floats, std::align_val_t{64}))) {}
  float* take(int64_t floats) {
    float* piece = memory_.get() + used_;
    used_ += roundedUp(floats);
    return piece;
  }
  /// Hands out the same memory again.
  Arena& rewound() {
    used_ = 0;
    return *this;
  }
};

/// What each worker of a parallel loop has for itself, made from the same arguments when it takes its first task.
template <typename Worker, typename... Arguments>
class Workers {
  std::vector<std::unique_ptr<Worker>> made_;
  std::tuple<Arguments...> arguments_;

 public:
  explicit Workers(Arguments... arguments) : made_(static_cast<size_t>(workerCount())), arguments_(arguments...) {}
  Worker& operator[](int64_t worker) {
    auto& own = made_[static_cast<size_t>(worker)];
    if (!own) own = std::apply([](const auto&... arguments) { return std::make_unique<Worker>(arguments...); }, arguments_);
    return *own;
  }
};

/// The sequences that are scanned: the rows of a batch or, packed, runs of tokens of its only row (`offsets` [sequences + 1]).
/// Each has its own first and last state, and saves a state every `spacing` tokens.
class Sequences {
  std::vector<int64_t> begin_, end_, firstSaved_, order_;
  bool packed_;

 public:
  int64_t heads;

  Sequences(int64_t batch, int64_t heads, int64_t length, const int64_t* offsets, int64_t sequences, int64_t spacing)
      : packed_(offsets), heads(heads) {
    const int64_t count = offsets ? sequences : batch;
    int64_t saved = 0;
    for (int64_t i = 0; i < count; ++i) {
      begin_.push_back(offsets ? offsets[i] : 0);
      end_.push_back(offsets ? offsets[i + 1] : length);
      firstSaved_.push_back(saved);
      saved += (end_[i] - begin_[i] + spacing - 1) / spacing;
      order_.push_back(i);
    }
    firstSaved_.push_back(saved);
    // The longest first, so that the shorter ones even out the workers' ends.
    if (offsets)
      std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) { return end_[a] - begin_[a] > end_[b] - begin_[b]; });
  }

  int64_t count() const { return static_cast<int64_t>(begin_.size()); }
  bool packed() const { return packed_; }
  int64_t tasks() const { return count() * heads; }
  int64_t savedStates() const { return firstSaved_.back() * heads; }

  /// One head of one sequence.
  struct Task {
    int64_t begin, end;  // its tokens
    int64_t row;         // its row of [batch · heads] in the tensors
    int64_t state;       // its row of [sequences · heads] in first and last states
    int64_t saved;       // its first saved state
    int64_t length() const { return end - begin; }
  };
  Task task(int64_t index) const {
    const int64_t sequence = order_[index / heads], head = index % heads;
    return {begin_[sequence], end_[sequence], packed_ ? head : sequence * heads + head, sequence * heads + head,
            firstSaved_[sequence] * heads + head * (firstSaved_[sequence + 1] - firstSaved_[sequence])};
  }
};

// --- Arguments ------------------------------------------------------------------------------------------------------

inline at::Tensor ready(const at::Tensor& x) { return x.dim() == 0 || x.size(-1) <= 1 || x.stride(-1) == 1 ? x : x.contiguous(); }

inline bool isFast(at::ScalarType type) { return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf; }

inline const float* floats(const at::Tensor& x) { return x.defined() ? x.data_ptr<float>() : nullptr; }

inline at::Tensor as(const at::Tensor& gradient, at::ScalarType type) { return gradient.defined() ? gradient.to(type) : gradient; }

inline double scaleOf(const at::Tensor& query, std::optional<double> scale) {
  return scale.value_or(1.0 / std::sqrt(static_cast<double>(query.size(-1))));
}

inline void checkChunk(const char* name, int64_t chunk) { TORCH_CHECK(chunk > 0, name, ": chunk must be positive, not ", chunk); }

inline void checkOnce(const char* name) {
  TORCH_CHECK(!at::GradMode::is_enabled(), name, ": has no second derivative; call backward without create_graph, or use the reference form");
}

inline void checkInputs(const char* name, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  for (const auto& [tensor, argument] : {std::pair<const at::Tensor&, const char*>{query, "query"}, {key, "key"}, {value, "value"}}) {
    TORCH_CHECK(tensor.dim() == 4, name, ": ", argument, " must be [batch, heads, length, width], not ", tensor.sizes());
    TORCH_CHECK(
        tensor.device().is_cpu() && tensor.layout() == at::kStrided, name, ": ", argument, " must be a dense CPU tensor, not one on ",
        tensor.device());
    TORCH_CHECK(isFast(tensor.scalar_type()), name, ": ", argument, " must be float32, bfloat16 or float16, not ", tensor.scalar_type());
    TORCH_CHECK(tensor.scalar_type() == value.scalar_type(), name, ": query, key and value must have one type");
  }
  TORCH_CHECK(key.sizes() == query.sizes(), name, ": key has shape ", key.sizes(), ", expected query's ", query.sizes());
  TORCH_CHECK(
      value.sizes().slice(0, 3) == query.sizes().slice(0, 3), name, ": value has shape ", value.sizes(), ", expected ",
      query.sizes().slice(0, 3), " and a width");
  TORCH_CHECK(query.size(3) > 0 && value.size(3) > 0, name, ": widths must be positive");
}

/// The offsets of packed sequences, int64 and contiguous, or an undefined tensor where there are none.
inline at::Tensor checkedOffsets(const char* name, const at::Tensor& query, const std::optional<at::Tensor>& offsets) {
  if (!offsets || !offsets->defined()) return {};
  TORCH_CHECK(
      offsets->dim() == 1 && offsets->size(0) > 0 && offsets->scalar_type() == at::kLong && offsets->device().is_cpu(), name,
      ": offsets must be int64 [sequences + 1] on the CPU, not ", offsets->scalar_type(), " ", offsets->sizes());
  TORCH_CHECK(query.size(0) == 1, name, ": packed sequences need a batch of 1, not ", query.size(0));
  const at::Tensor checked = offsets->contiguous();
  const int64_t* at = checked.const_data_ptr<int64_t>();
  const int64_t last = checked.size(0) - 1;
  TORCH_CHECK(at[0] == 0 && at[last] == query.size(2), name, ": offsets must begin with 0 and end with the length ", query.size(2));
  for (int64_t i = 0; i < last; ++i) TORCH_CHECK(at[i] <= at[i + 1], name, ": offsets must not decrease, as after number ", i);
  return checked;
}

/// A first state [sequences, H, dk, dv] in contiguous float32, or an undefined tensor where there is none.
inline at::Tensor checkedState(
    const char* name, const at::Tensor& query, const at::Tensor& value, const std::optional<at::Tensor>& state, int64_t sequences) {
  if (!state || !state->defined()) return {};
  TORCH_CHECK(
      state->sizes() == at::IntArrayRef({sequences, query.size(1), query.size(3), value.size(3)}), name, ": initial_state has shape ",
      state->sizes(), ", expected [batch or sequences, heads, key width, value width] = ",
      at::IntArrayRef({sequences, query.size(1), query.size(3), value.size(3)}));
  TORCH_CHECK(state->device().is_cpu(), name, ": initial_state must be on the CPU, not on ", state->device());
  return state->to(at::kFloat).contiguous();
}

}  // namespace martlet::scan
