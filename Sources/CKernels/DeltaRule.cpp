// The delta rule (Schlag et al. 2021; DeltaNet, Yang et al. 2024, arXiv 2406.06484), with an optional scalar decay a head and
// token (Gated DeltaNet, Yang et al. 2024, arXiv 2412.06464):
//
//   S_t = e^{g_t} S_{t-1} + k_tᵀ Δ_t,   Δ_t = β_t (v_t - e^{g_t} k_t S_{t-1}),   o_t = scale q_t S_t
//
// in the WY form, 16 tokens at a time. With b the running sum of g in the block and D_ij = e^{b_i - b_j} for j <= i (products of
// gates: never above 1, and exactly 0 across a gate of 0):
//
//   E = (I + L Diag(β))⁻¹ (V - e^b K S),   L = lower(K Kᵀ ⊙ D, strictly),   Δ = Diag(β) E
//   O = e^b Q S + P Δ,   P = lower(Q Kᵀ ⊙ D),   S <- e^{b_16} S + (e^{b_16 - b} K)ᵀ Δ
//
// The paper makes U and W for all chunks at once because a GPU's loop over chunks must be short. On a CPU each core walks
// through a head's sequence anyway, and solving for E (the errors e_t) when S is there saves the solve's dk columns and the
// product W S. The triangular solve is 120 multiplications of a row, in registers sixteen columns at a time, together with P Δ:
// no inverse is formed. In backward the solve is with the transpose, from the last token of a block to the first:
//
//   Y = (I + Lᵀ Diag(β))⁻¹ (Pᵀ dO + e^{b_16 - b} K dS),   Z = Diag(β) Y = dV,   dβ_i = Y_i · E_i
//   dP = lower(dO Δᵀ),   dL = -lower(Z Δᵀ, strictly),   dS <- e^{b_16} dS + (e^b Q)ᵀ dO - (e^b K)ᵀ Z
//
// A gate's gradient is the sum of what passes over it: P ⊙ dP and L ⊙ dL over the pairs j < t <= i, the reads of the old state
// at i >= t, the writes at j < t, and S ⊙ dS for what crosses the whole block: sums without the cancellation of the difference
// form Σ (q dq - k dk).
//
// Keys and queries may be brought to length one on the way (`unit_epsilon`), forward and backward: as operators of their own
// the normalisations move more memory than the whole scan.
//
// Arithmetic a token and head: forward 6 dk dv + 64 dk + 32 dv flops, backward 16 dk dv + 160 dk + 110 dv, of which 4 dk dv
// recompute what forward had: it keeps one state every 128 tokens (dk dv / 128 floats a token, half of one input at
// dk = dv = 64). Measured with Benchmarks/family_kernels.py on one core (Zen 3 with AVX2, dk = dv = 64, L = 4096, CPU time): forward 0.49
// us a token and head, forward + backward 1.9, 1.5 and 1.4 times ungated linear attention (GatedLinearAttention.cpp). Block products
// take three fifths of the time, waiting for rows a fifth; the solves, a twentieth. Sequences and heads are shared out whole: with fewer of them
// than workers some workers idle.

#include "ChunkScan.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

namespace martlet {
namespace {

using namespace scan;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

/// Tokens between two saved states: backward recomputes that many and keeps what their blocks need (280 KB at dk = dv = 64).
constexpr int64_t kSpacing = 128;
constexpr int64_t kTile = kBlock * kBlock;

// --- Leaves ---------------------------------------------------------------------------------------------------------

/// Rows brought to the length `scale`; inverse[i] = 1 / sqrt(|x_i|² + eps).
MARTLET_VECTOR static void unitRows(float* x, int64_t width, int64_t rows, float eps, float scale, float* inverse) {
  MARTLET_FAST_SUMS
  for (int64_t i = 0; i < rows; ++i) {
    float* row = x + i * width;
    Lanes sums = {};
    for (int64_t c = 0; c < width; c += 16) sums += lanes(row + c) * lanes(row + c);
    float sum = eps;
    for (int j = 0; j < 16; ++j) sum += sums[j];
    inverse[i] = 1.0f / __builtin_sqrtf(sum);
    const float factor = scale * inverse[i];
    for (int64_t c = 0; c < width; c += 16) lanes(row + c) *= factor;
  }
}

/// The gradient of `unitRows`' input in place of that of its output; x: the output.
MARTLET_VECTOR static void unitRowsGradient(
    const float* x, float* gradient, int64_t width, int64_t rows, float scale, const float* inverse) {
  MARTLET_FAST_SUMS
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = x + i * width;
    float* change = gradient + i * width;
    Lanes sums = {};
    for (int64_t c = 0; c < width; c += 16) sums += lanes(row + c) * lanes(change + c);
    float along = 0;
    for (int j = 0; j < 16; ++j) along += sums[j];
    const float factor = scale * inverse[i], other = along * inverse[i] / scale;
    for (int64_t c = 0; c < width; c += 16) lanes(change + c) = factor * lanes(change + c) - other * lanes(row + c);
  }
}

MARTLET_VECTOR static void scaleAll(float* x, int64_t count, float factor) {
  for (int64_t i = 0; i < count; i += 16) lanes(x + i) *= factor;
}

/// D, with zeros above the diagonal, e^b and e^{b_16 - b} from the gates of a block.
MARTLET_VECTOR static void decays(const float* gate, float* between, float* fromStart, float* toEnd) {
  typedef int32_t Integers __attribute__((vector_size(64)));
  const Integers column = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Lanes row = {}, one = {};
  one += 1.0f;
  float running = 1;
  for (int i = 0; i < 16; ++i) {
    row *= gate[i];
    row = column == i ? one : row;
    lanes(between + i * 16) = row;
    running *= gate[i];
    fromStart[i] = running;
  }
  lanes(toEnd) = row;
}

/// P and L from the products Q Kᵀ (first 16 rows) and K Kᵀ (last 16).
MARTLET_VECTOR static void innerWeights(const float* products, const float* between, float* reads, float* inner) {
  typedef int32_t Integers __attribute__((vector_size(64)));
  const Integers column = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Lanes zero = {};
  for (int i = 0; i < 16; ++i) {
    const Lanes decay = lanes(between + i * 16);
    const Lanes read = lanes(products + i * 16) * decay, write = lanes(products + kTile + i * 16) * decay;
    lanes(reads + i * 16) = column <= i ? read : zero;
    lanes(inner + i * 16) = column < i ? write : zero;
  }
}

/// The solve and the block's outputs. fromState: [Q S; K S], its first 16 rows become O; error, change: E and Δ.
MARTLET_VECTOR static void solveAndRead(
    const float* value, float* fromState, const float* fromStart, const float* reads, const float* inner, const float* rate,
    int64_t width, float* error, float* change) {
  MARTLET_FAST_SUMS
  for (int64_t c = 0; c < width; c += 16) {
    Lanes delta[16];
#pragma clang loop unroll(full)
    for (int i = 0; i < 16; ++i) {
      Lanes e = lanes(value + i * width + c) - fromStart[i] * lanes(fromState + (16 + i) * width + c);
#pragma clang loop unroll(full)
      for (int j = 0; j < i; ++j) e -= inner[i * 16 + j] * delta[j];
      lanes(error + i * width + c) = e;
      delta[i] = rate[i] * e;
      lanes(change + i * width + c) = delta[i];
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < 16; ++i) {
      Lanes o = fromStart[i] * lanes(fromState + i * width + c);
#pragma clang loop unroll(full)
      for (int j = 0; j <= i; ++j) o += reads[i * 16 + j] * delta[j];
      lanes(fromState + i * width + c) = o;
    }
  }
}

/// The same without outputs. fromState: K S.
MARTLET_VECTOR static void solve(
    const float* value, const float* fromState, const float* fromStart, const float* inner, const float* rate, int64_t width,
    float* error, float* change) {
  MARTLET_FAST_SUMS
  for (int64_t c = 0; c < width; c += 16) {
    Lanes delta[16];
#pragma clang loop unroll(full)
    for (int i = 0; i < 16; ++i) {
      Lanes e = lanes(value + i * width + c) - fromStart[i] * lanes(fromState + i * width + c);
#pragma clang loop unroll(full)
      for (int j = 0; j < i; ++j) e -= inner[i * 16 + j] * delta[j];
      lanes(error + i * width + c) = e;
      delta[i] = rate[i] * e;
      lanes(change + i * width + c) = delta[i];
    }
  }
}

/// The solve with the transpose. gradients: [dO; ·], its last 16 rows become Z; fromEnd: K dS, overwritten; rateGradient: Y · E.
MARTLET_VECTOR static void solveTransposed(
    float* gradients, float* fromEnd, const float* toEnd, const float* reads, const float* inner, const float* rate,
    const float* error, int64_t width, float* rateGradient) {
  MARTLET_FAST_SUMS
  Lanes sums[16] = {};
  for (int64_t c = 0; c < width; c += 16) {
    {
      Lanes out[16];
      for (int i = 0; i < 16; ++i) out[i] = lanes(gradients + i * width + c);
#pragma clang loop unroll(full)
      for (int j = 0; j < 16; ++j) {
        Lanes y = toEnd[j] * lanes(fromEnd + j * width + c);
#pragma clang loop unroll(full)
        for (int i = j; i < 16; ++i) y += reads[i * 16 + j] * out[i];
        lanes(fromEnd + j * width + c) = y;
      }
    }
    Lanes z[16];
#pragma clang loop unroll(full)
    for (int j = 15; j >= 0; --j) {
      Lanes y = lanes(fromEnd + j * width + c);
#pragma clang loop unroll(full)
      for (int i = 15; i > j; --i) y -= inner[i * 16 + j] * z[i];
      sums[j] += y * lanes(error + j * width + c);
      z[j] = rate[j] * y;
      lanes(gradients + (16 + j) * width + c) = z[j];
    }
  }
  for (int i = 0; i < 16; ++i) {
    float sum = 0;
    for (int j = 0; j < 16; ++j) sum += sums[i][j];
    rateGradient[i] = sum;
  }
}

/// From dO Δᵀ and Z Δᵀ [32, 16]: the factors of dQ (dP ⊙ D) and of dK ((dP ⊙ D)ᵀ beside dG + dGᵀ, dG = dL ⊙ D), and, where
/// `pairs` is given, what each pair contributes to the decay between them.
MARTLET_VECTOR static void weightGradients(
    const float* products, const float* between, const float* reads, const float* inner, float* ofQuery, float* ofKey, float* work,
    float* pairs) {
  typedef int32_t Integers __attribute__((vector_size(64)));
  const Integers column = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Lanes zero = {};
  for (int i = 0; i < 16; ++i) {
    const Lanes decay = lanes(between + i * 16), read = lanes(products + i * 16), write = lanes(products + kTile + i * 16);
    if (pairs)
      lanes(pairs + i * 16) = column < i ? read * lanes(reads + i * 16) - write * lanes(inner + i * 16) : zero;
    lanes(ofQuery + i * 16) = column <= i ? read * decay : zero;
    lanes(work + i * 16) = column < i ? -(write * decay) : zero;
  }
  transposeToColumns(ofQuery, 16, 16, ofKey, 32);
  transposeToColumns(work, 16, 16, ofKey + 16, 32);
  for (int i = 0; i < 16; ++i) lanes(ofKey + i * 32 + 16) += lanes(work + i * 16);
}

/// sums[i] = x_i · y_i over 16 rows.
MARTLET_VECTOR static void rowDots(const float* x, const float* y, int64_t width, float* sums) {
  MARTLET_FAST_SUMS
  for (int i = 0; i < 16; ++i) {
    Lanes sum = {};
    for (int64_t c = 0; c < width; c += 16) sum += lanes(x + i * width + c) * lanes(y + i * width + c);
    sums[i] = 0;
    for (int j = 0; j < 16; ++j) sums[i] += sum[j];
  }
}

MARTLET_VECTOR static float dot(const float* x, const float* y, int64_t count) {
  MARTLET_FAST_SUMS
  Lanes sum[4] = {};
  int64_t i = 0;
  for (; i + 64 <= count; i += 64)
    for (int j = 0; j < 4; ++j) sum[j] += lanes(x + i + 16 * j) * lanes(y + i + 16 * j);
  for (; i < count; i += 16) sum[0] += lanes(x + i) * lanes(y + i);
  const Lanes all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  float total = 0;
  for (int j = 0; j < 16; ++j) total += all[j];
  return total;
}

MARTLET_VECTOR static void add(const float* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += 16) lanes(to + i) += lanes(from + i);
}

/// dg of a block. pairs: of j < i; queryReads, keyReads: of the old state by token i; writes: by token j to the block's end;
/// across: S ⊙ dS of the whole block.
MARTLET_VECTOR static void decayGradient(
    const float* gate, const float* pairs, const float* queryReads, const float* keyReads, const float* writes, float across, float* dg) {
  float before[16], sum = across;
  for (int t = 0; t < 16; ++t) {
    before[t] = sum;
    sum += writes[t];
  }
  Lanes over = {};
  float later = 0;
  for (int t = 15; t >= 0; --t) {
    over += lanes(pairs + t * 16);
    later += queryReads[t] + keyReads[t];
    float crossing = 0;
    for (int j = 0; j < t; ++j) crossing += over[j];
    dg[t] = gate[t] > 0 ? before[t] + later + crossing : 0;
  }
}

// --- The scan -------------------------------------------------------------------------------------------------------

struct Problem {
  int64_t batch, heads, length, dk, dv, paddedKey, paddedValue;
  Rows query, key, value, rate, decay;
  bool gated = false, unit = false;
  float scale = 1, eps = 0;
  Sequences sequences;

  Problem(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta, const Tensor& g, const Tensor& offsets)
      : batch(q.size(0)), heads(q.size(1)), length(q.size(2)), dk(q.size(3)), dv(v.size(3)), paddedKey(roundedUp(dk)),
        paddedValue(roundedUp(dv)), query(q), key(k), value(v), rate(beta), gated(g.defined()),
        sequences(batch, heads, length, offsets.defined() ? offsets.const_data_ptr<int64_t>() : nullptr,
                  offsets.defined() ? offsets.size(0) - 1 : 0, kSpacing) {
    if (gated) decay = Rows(g);
  }
  int64_t stateSize() const { return dk * dv; }
};

/// What a block's tokens give without the state, and what backward keeps of it.
struct Block {
  float *rows;     // [Q; K], [32, dk]
  float *columns;  // its transpose [dk, 32]
  float *reads, *inner, *between;  // P, L, D
  float *gate, *rate, *fromStart, *toEnd, *inverse;
  float *state, *error;  // the state before the block, E
};

class Scan {
  const Problem& p_;
  const int64_t dk_, dv_;
  Arena arena_;
  std::vector<Block> blocks_;
  float *value_, *fromState_, *change_, *products_, *endColumns_, *gradients_, *gradientColumns_, *changeColumns_;
  float *stateColumns_, *keyColumns_, *rowGradients_, *endRows_, *ofQuery_, *ofKey_, *work_, *pairs_;

  static int64_t blockFloats(const Problem& p, bool backward) {
    return 64 * p.paddedKey + 3 * kTile + 6 * kBlock + 16 * p.paddedValue + (backward ? p.paddedKey * p.paddedValue : 0);
  }

 public:
  float *state, *stateGradient;

  Scan(const Problem& p, bool backward)
      : p_(p), dk_(p.paddedKey), dv_(p.paddedValue),
        arena_((backward ? kSpacing / kBlock : 1) * blockFloats(p, backward) + 256 * dk_ + 256 * dv_ + 2 * dk_ * dv_ + 4096) {
    const auto take = [&](int64_t floats) { return arena_.take(floats); };
    for (int64_t i = 0; i < (backward ? kSpacing / kBlock : 1); ++i) {
      Block b;
      b.rows = take(32 * dk_), b.columns = take(32 * dk_);
      b.reads = take(kTile), b.inner = take(kTile), b.between = take(kTile);
      b.gate = take(kBlock), b.rate = take(kBlock), b.fromStart = take(kBlock), b.toEnd = take(kBlock), b.inverse = take(2 * kBlock);
      b.error = take(16 * dv_);
      b.state = backward ? take(dk_ * dv_) : nullptr;
      for (int j = 0; j < 16; ++j) b.gate[j] = 1;
      decays(b.gate, b.between, b.fromStart, b.toEnd);
      blocks_.push_back(b);
    }
    value_ = take(16 * dv_), fromState_ = take(32 * dv_), change_ = take(16 * dv_), products_ = take(2 * kTile);
    endColumns_ = take(16 * dk_), gradients_ = take(32 * dv_), gradientColumns_ = take(32 * dv_), changeColumns_ = take(16 * dv_);
    stateColumns_ = take(32 * dk_), keyColumns_ = take(16 * dk_), rowGradients_ = take(32 * dk_), endRows_ = take(16 * dk_);
    ofQuery_ = take(kTile), ofKey_ = take(2 * kTile), work_ = take(kTile), pairs_ = take(kTile);
    state = take(dk_ * dv_), stateGradient = take(dk_ * dv_);
  }

  /// [dk, dv] contiguous floats, or nothing for zeros, into a padded state.
  void loadState(const float* from, float* to) const {
    if (!from || dk_ != p_.dk || dv_ != p_.dv) std::memset(to, 0, sizeof(float) * dk_ * dv_);
    if (!from) return;
    for (int64_t r = 0; r < p_.dk; ++r) std::memcpy(to + r * dv_, from + r * p_.dv, sizeof(float) * p_.dv);
  }
  void storeState(const float* from, float* to) const {
    for (int64_t r = 0; r < p_.dk; ++r) std::memcpy(to + r * p_.dv, from + r * dv_, sizeof(float) * p_.dv);
  }

  /// Outputs of a task's tokens, given to `emit(t, rows, tile)`; `save(t)` is called before every block.
  template <typename Save, typename Emit>
  void forward(const Sequences::Task& task, const Save& save, const Emit& emit) {
    const Block& b = blocks_[0];
    for (int64_t t = task.begin; t < task.end; t += kBlock) {
      const int64_t rows = std::min(kBlock, task.end - t);
      save(t);
      prepare(task.row, t, rows, b);
      product(32, dv_, dk_, b.rows, dk_, state, dv_, fromState_, dv_, false);
      solveAndRead(value_, fromState_, b.fromStart, b.reads, b.inner, b.rate, dv_, b.error, change_);
      emit(t, rows, fromState_);
      write(b);
    }
  }

  /// Gradients of tokens begin..<end, at most kSpacing of them: `state` holds the state before `begin`, `stateGradient` the
  /// gradient of the state after `end`; on return the one before `begin`.
  void backward(
      int64_t row, int64_t begin, int64_t end, const Rows& outGradient, const Rows& queryGradient, const Rows& keyGradient,
      const Rows& valueGradient, const Rows& rateGradient, const Rows* decayGradients) {
    for (int64_t t = begin; t < end; t += kBlock) {
      const Block& b = blocks_[(t - begin) / kBlock];
      prepare(row, t, std::min(kBlock, end - t), b);
      std::memcpy(b.state, state, sizeof(float) * dk_ * dv_);
      product(16, dv_, dk_, b.rows + 16 * dk_, dk_, state, dv_, fromState_, dv_, false);
      solve(value_, fromState_, b.fromStart, b.inner, b.rate, dv_, b.error, change_);
      if (t + kBlock < end) write(b);
    }
    for (int64_t t = begin + (end - begin - 1) / kBlock * kBlock; t >= begin; t -= kBlock) {
      const Block& b = blocks_[(t - begin) / kBlock];
      const int64_t rows = std::min(kBlock, end - t);
      float* keyGradients = rowGradients_ + 16 * dk_;
      const float *queries = b.rows, *keys = b.rows + 16 * dk_;
      float betaGradient[16], starts[32];
      outGradient.load(row, t, rows, gradients_, dv_, -kBlock);
      product(16, dv_, dk_, keys, dk_, stateGradient, dv_, fromState_, dv_, false);
      solveTransposed(gradients_, fromState_, b.toEnd, b.reads, b.inner, b.rate, b.error, dv_, betaGradient);
      valueGradient.store(row, t, rows, gradients_ + 16 * dv_, dv_);
      rateGradient.store(row, t, rows, betaGradient, 1);
      transposeToColumns(gradients_, dv_, dv_, gradientColumns_, 32);
      transposeToColumns(gradients_ + 16 * dv_, dv_, dv_, gradientColumns_ + 16, 32);
      transposeToWeightedColumns(b.error, dv_, dv_, b.rate, changeColumns_);
      product(32, 16, dv_, gradients_, dv_, changeColumns_, 16, products_, 16, false);
      product(dk_, 32, dv_, b.state, dv_, gradientColumns_, 32, stateColumns_, 32, false);
      product(dk_, 16, dv_, stateGradient, dv_, changeColumns_, 16, keyColumns_, 16, false);
      for (int i = 0; i < 16; ++i) starts[i] = b.fromStart[i], starts[16 + i] = -b.fromStart[i];
      transposeToWeightedRows(stateColumns_, 32, dk_, starts, rowGradients_);
      transposeToWeightedRows(stateColumns_ + 16, 32, dk_, starts + 16, keyGradients);
      transposeToWeightedRows(keyColumns_, 16, dk_, b.toEnd, endRows_);
      weightGradients(products_, b.between, b.reads, b.inner, ofQuery_, ofKey_, work_, decayGradients ? pairs_ : nullptr);
      if (decayGradients) {
        float queryReads[16], keyReads[16], writes[16], dg[16];
        rowDots(queries, rowGradients_, dk_, queryReads);
        rowDots(keys, keyGradients, dk_, keyReads);
        rowDots(keys, endRows_, dk_, writes);
        decayGradient(b.gate, pairs_, queryReads, keyReads, writes, b.fromStart[15] * dot(b.state, stateGradient, dk_ * dv_), dg);
        decayGradients->store(row, t, rows, dg, 1);
      }
      add(endRows_, 16 * dk_, keyGradients);
      product(16, dk_, 16, ofQuery_, 16, keys, dk_, rowGradients_, dk_, true);
      product(16, dk_, 32, ofKey_, 32, queries, dk_, keyGradients, dk_, true);
      if (p_.unit) {
        unitRowsGradient(queries, rowGradients_, dk_, rows, p_.scale, b.inverse);
        unitRowsGradient(keys, keyGradients, dk_, rows, 1, b.inverse + 16);
      } else {
        scaleAll(rowGradients_, 16 * dk_, p_.scale);
      }
      queryGradient.store(row, t, rows, rowGradients_, dk_);
      keyGradient.store(row, t, rows, keyGradients, dk_);
      for (int64_t c = 0; c < dk_; ++c) {
        lanes(b.columns + c * 32) *= lanes(starts);
        lanes(b.columns + c * 32 + 16) *= lanes(starts + 16);
      }
      if (p_.gated) scaleAll(stateGradient, dk_ * dv_, b.fromStart[15]);
      product(dk_, dv_, 32, b.columns, 32, gradients_, dv_, stateGradient, dv_, true);
    }
  }

 private:
  void prepare(int64_t row, int64_t t, int64_t rows, const Block& b) {
    float* keys = b.rows + 16 * dk_;
    p_.query.load(row, t, rows, b.rows, dk_);
    p_.key.load(row, t, rows, keys, dk_);
    p_.value.load(row, t, rows, value_, dv_);
    for (int64_t i = 0; i < 16; ++i) b.rate[i] = i < rows ? *reinterpret_cast<const float*>(p_.rate.row(row, t + i)) : 0;
    if (p_.gated) {
      for (int64_t i = 0; i < 16; ++i) b.gate[i] = i < rows ? *reinterpret_cast<const float*>(p_.decay.row(row, t + i)) : 0;
      exponentials(b.gate, 16);
      decays(b.gate, b.between, b.fromStart, b.toEnd);
    }
    if (p_.unit) {
      unitRows(b.rows, dk_, rows, p_.eps, p_.scale, b.inverse);
      unitRows(keys, dk_, rows, p_.eps, 1, b.inverse + 16);
    } else {
      scaleAll(b.rows, 16 * dk_, p_.scale);
    }
    transposeToColumns(b.rows, dk_, dk_, b.columns, 32);
    transposeToColumns(keys, dk_, dk_, b.columns + 16, 32);
    product(32, 16, dk_, b.rows, dk_, b.columns + 16, 32, products_, 16, false);
    innerWeights(products_, b.between, b.reads, b.inner);
  }

  /// The block's changes into the state.
  void write(const Block& b) {
    const float* columns = b.columns + 16;
    int64_t ld = 32;
    if (p_.gated) {
      transposeToWeightedColumns(b.rows + 16 * dk_, dk_, dk_, b.toEnd, endColumns_);
      columns = endColumns_, ld = 16;
      scaleAll(state, dk_ * dv_, b.fromStart[15]);
    }
    product(dk_, dv_, 16, columns, ld, change_, dv_, state, dv_, true);
  }
};

using ScanWorkers = Workers<Scan, const Problem&, bool>;

constexpr const char* kName = "delta_rule";

/// Tensors as the scan reads them: last dimension dense; rates, decays and state in float32.
struct Inputs {
  Tensor query, key, value, rate, decay, state, offsets;
  double scale;
  std::optional<double> eps;

  Inputs(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta, const OptionalTensor& g, const OptionalTensor& s, double scale,
         std::optional<double> eps, const OptionalTensor& packing)
      : scale(scale), eps(eps) {
    checkInputs(kName, q, k, v);
    query = ready(q), key = ready(k), value = ready(v);
    const auto perToken = [&](const Tensor& x, const char* argument) {
      TORCH_CHECK(
          x.sizes() == q.sizes().slice(0, 3) && x.device().is_cpu(), kName, ": ", argument, " must be [batch, heads, length] = ",
          q.sizes().slice(0, 3), " on the CPU, not ", x.sizes());
      return x.to(at::kFloat);
    };
    rate = perToken(beta, "rate");
    if (g && g->defined()) decay = perToken(*g, "log_decay");
    TORCH_CHECK(!eps || (*eps >= 0 && scale != 0), kName, ": unit_epsilon must not be negative, nor scale 0 beside it");
    offsets = checkedOffsets(kName, q, packing);
    state = checkedState(kName, q, v, s, offsets.defined() ? offsets.size(0) - 1 : q.size(0));
  }

  Problem problem() const {
    Problem p(query, key, value, rate, decay, offsets);
    p.scale = static_cast<float>(scale), p.unit = eps.has_value(), p.eps = static_cast<float>(eps.value_or(0));
    return p;
  }
};

/// Output, final states and, where wanted, the states every kSpacing tokens.
std::tuple<Tensor, Tensor, Tensor> forwardPass(const Inputs& in, bool save) {
  const Problem p = in.problem();
  Tensor out = emptyHeads(p.batch, p.heads, p.length, p.dv, in.query.options());
  Tensor last = at::empty({p.sequences.count(), p.heads, p.dk, p.dv}, at::kFloat);
  Tensor saved = save ? at::empty({p.sequences.savedStates(), p.dk, p.dv}, at::kFloat) : Tensor();
  const Rows outRows(out);
  ScanWorkers workers(p, false);
  float *ends = last.data_ptr<float>(), *states = save ? saved.data_ptr<float>() : nullptr;
  parallelTasks(p.sequences.tasks(), [&](int64_t index, int64_t worker) {
    FlushDenormals flush;
    const auto task = p.sequences.task(index);
    Scan& scan = workers[worker];
    scan.loadState(in.state.defined() ? floats(in.state) + task.state * p.stateSize() : nullptr, scan.state);
    scan.forward(
        task,
        [&](int64_t t) {
          const int64_t done = t - task.begin;
          if (save && done % kSpacing == 0) scan.storeState(scan.state, states + (task.saved + done / kSpacing) * p.stateSize());
        },
        [&](int64_t t, int64_t rows, const float* tile) { outRows.store(task.row, t, rows, tile, p.paddedValue); });
    scan.storeState(scan.state, ends + task.state * p.stateSize());
  });
  return {out, last, saved};
}

struct Gradients {
  Tensor query, key, value, rate, decay, state;
};

Gradients backwardPass(const Inputs& in, const Tensor& saved, const Tensor& outGradient, const Tensor& lastGradient, bool wantDecay) {
  const Problem p = in.problem();
  const auto options = in.query.options();
  Gradients g;
  g.query = emptyHeads(p.batch, p.heads, p.length, p.dk, options);
  g.key = emptyHeads(p.batch, p.heads, p.length, p.dk, options);
  g.value = emptyHeads(p.batch, p.heads, p.length, p.dv, options);
  g.rate = at::empty({p.batch, p.heads, p.length}, at::kFloat);
  wantDecay &= p.gated;
  if (wantDecay) g.decay = at::empty({p.batch, p.heads, p.length}, at::kFloat);
  g.state = at::empty({p.sequences.count(), p.heads, p.dk, p.dv}, at::kFloat);
  const Tensor ends = lastGradient.defined() ? lastGradient.to(at::kFloat).contiguous() : Tensor();
  const Tensor dout = outGradient.defined() ? ready(outGradient.to(in.query.scalar_type()))
                                            : at::zeros({1}, options).expand({p.batch, p.heads, p.length, p.dv}).contiguous();
  const Rows out(dout), dq(g.query), dk(g.key), dv(g.value), rates(g.rate);
  const Rows decays = wantDecay ? Rows(g.decay) : Rows();
  ScanWorkers workers(p, true);
  float* starts = g.state.data_ptr<float>();
  parallelTasks(p.sequences.tasks(), [&](int64_t index, int64_t worker) {
    FlushDenormals flush;
    const auto task = p.sequences.task(index);
    Scan& scan = workers[worker];
    scan.loadState(ends.defined() ? floats(ends) + task.state * p.stateSize() : nullptr, scan.stateGradient);
    if (task.end > task.begin) {
      for (int64_t t = task.begin + (task.end - task.begin - 1) / kSpacing * kSpacing; t >= task.begin; t -= kSpacing) {
        scan.loadState(floats(saved) + (task.saved + (t - task.begin) / kSpacing) * p.stateSize(), scan.state);
        scan.backward(task.row, t, std::min(task.end, t + kSpacing), out, dq, dk, dv, rates, wantDecay ? &decays : nullptr);
      }
    }
    scan.storeState(scan.stateGradient, starts + task.state * p.stateSize());
  });
  return g;
}

std::tuple<Tensor, Tensor> deltaRule(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& rate, const OptionalTensor& logDecay, const OptionalTensor& initialState,
    std::optional<double> scale, int64_t chunk, std::optional<double> unitEpsilon, const OptionalTensor& offsets) {
  checkChunk(kName, chunk);
  auto [out, last, saved] =
      forwardPass(Inputs(query, key, value, rate, logDecay, initialState, scaleOf(query, scale), unitEpsilon, offsets), false);
  return {out, last};
}

class DeltaFunction : public torch::autograd::Function<DeltaFunction> {
 public:
  static torch::autograd::variable_list forward(
      torch::autograd::AutogradContext* context, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& rate,
      const OptionalTensor& logDecay, const OptionalTensor& initialState, double scale, std::optional<double> unitEpsilon,
      const OptionalTensor& offsets) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->set_materialize_grads(false);
    auto [out, last, saved] = forwardPass(Inputs(query, key, value, rate, logDecay, initialState, scale, unitEpsilon, offsets), true);
    context->save_for_backward(
        {query, key, value, rate, logDecay.value_or(Tensor()), initialState.value_or(Tensor()), offsets.value_or(Tensor()), saved});
    context->saved_data["scale"] = scale;
    context->saved_data["unit"] = unitEpsilon.has_value();
    context->saved_data["eps"] = unitEpsilon.value_or(0);
    return {out, last};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    checkOnce(kName);
    const auto kept = context->get_saved_variables();
    const Tensor &rate = kept[3], &decay = kept[4], &state = kept[5];
    const auto eps = context->saved_data["unit"].toBool() ? std::optional<double>(context->saved_data["eps"].toDouble()) : std::nullopt;
    const Inputs in(kept[0], kept[1], kept[2], rate, decay, state, context->saved_data["scale"].toDouble(), eps, kept[6]);
    auto g = backwardPass(in, kept[7], gradients[0], gradients[1], decay.defined() && context->needs_input_grad(4));
    return {g.query, g.key, g.value, as(g.rate, rate.scalar_type()), decay.defined() ? as(g.decay, decay.scalar_type()) : Tensor(),
            state.defined() ? as(g.state, state.scalar_type()) : Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> deltaRuleAutograd(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& rate, const OptionalTensor& logDecay, const OptionalTensor& initialState,
    std::optional<double> scale, int64_t chunk, std::optional<double> unitEpsilon, const OptionalTensor& offsets) {
  const auto wants = [](const OptionalTensor& x) { return x && x->defined() && x->requires_grad(); };
  if (!at::GradMode::is_enabled() ||
      !(wants(query) || wants(key) || wants(value) || wants(rate) || wants(logDecay) || wants(initialState))) {
    at::AutoDispatchBelowADInplaceOrView below;
    return deltaRule(query, key, value, rate, logDecay, initialState, scale, chunk, unitEpsilon, offsets);
  }
  checkChunk(kName, chunk);
  auto results = DeltaFunction::apply(query, key, value, rate, logDecay, initialState, scaleOf(query, scale), unitEpsilon, offsets);
  return {results[0], results[1]};
}

// --- One token ------------------------------------------------------------------------------------------------------

/// state <- a (state - β kᵀ (k state)) + β kᵀ v, out = q state: one read of the state for k S and q S together, one to change it.
MARTLET_VECTOR static void stepState(
    float* state, int64_t dk, int64_t dv, const float* q, const float* k, const float* v, float rate, float decay, float* change, float* out) {
  MARTLET_FAST_SUMS
  for (int64_t c = 0; c < dv; ++c) change[c] = out[c] = 0;
  float overlap = 0;
  for (int64_t r = 0; r < dk; ++r) {
    const float* row = state + r * dv;
    const float key = k[r], query = q[r];
    overlap += key * query;
    MARTLET_SIMD
    for (int64_t c = 0; c < dv; ++c) {
      change[c] += key * row[c];
      out[c] += query * row[c];
    }
  }
  MARTLET_SIMD
  for (int64_t c = 0; c < dv; ++c) {
    change[c] = rate * (v[c] - decay * change[c]);
    out[c] = decay * out[c] + overlap * change[c];
  }
  for (int64_t r = 0; r < dk; ++r) {
    float* row = state + r * dv;
    const float key = k[r];
    MARTLET_SIMD
    for (int64_t c = 0; c < dv; ++c) row[c] = decay * row[c] + key * change[c];
  }
}

Tensor deltaRuleStep(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& rate, const OptionalTensor& logDecay, const Tensor& state,
    std::optional<double> scale, std::optional<double> unitEpsilon) {
  const char* name = "delta_rule_step";
  for (const auto& [tensor, argument] : {std::pair<const Tensor&, const char*>{query, "query"}, {key, "key"}, {value, "value"}})
    TORCH_CHECK(tensor.dim() == 3, name, ": ", argument, " must be [batch, heads, width], not ", tensor.sizes());
  checkInputs(name, query.unsqueeze(2), key.unsqueeze(2), value.unsqueeze(2));
  const int64_t batch = query.size(0), heads = query.size(1), dk = query.size(2), dv = value.size(2);
  TORCH_CHECK(
      state.scalar_type() == at::kFloat && state.device().is_cpu() && state.sizes() == at::IntArrayRef({batch, heads, dk, dv}) && state.is_contiguous(), name,
      ": state must be contiguous float32 [batch, heads, key width, value width] = ", at::IntArrayRef({batch, heads, dk, dv}), ", not ", state.scalar_type(),
      " ", state.sizes(), " with strides ", state.strides());
  const auto perHead = [&](const Tensor& x, const char* argument) {
    TORCH_CHECK(x.sizes() == query.sizes().slice(0, 2), name, ": ", argument, " must be [batch, heads], not ", x.sizes());
    return x.to(at::kFloat).contiguous();
  };
  const Tensor q = query.to(at::kFloat).contiguous(), k = key.to(at::kFloat).contiguous(), v = value.to(at::kFloat).contiguous();
  const Tensor beta = perHead(rate, "rate"), decay = logDecay && logDecay->defined() ? perHead(*logDecay, "log_decay") : Tensor();
  Tensor out = at::empty({batch, heads, dv}, at::kFloat);
  const float factor = static_cast<float>(scaleOf(query, scale)), eps = static_cast<float>(unitEpsilon.value_or(0));
  const float *qs = floats(q), *ks = floats(k), *vs = floats(v), *rates = floats(beta), *decays = floats(decay);
  float *states = state.data_ptr<float>(), *outs = out.data_ptr<float>();
  parallelRanges(batch * heads, std::max<int64_t>(1, 32768 / (dk * dv)), [&](int64_t begin, int64_t end, int64_t) {
    FlushDenormals flush;
    const int64_t padded = roundedUp(dk);
    std::vector<float> rows(2 * padded), change(dv);
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(rows.data(), qs + i * dk, sizeof(float) * dk);
      std::memcpy(rows.data() + padded, ks + i * dk, sizeof(float) * dk);
      float inverse;
      if (unitEpsilon) {
        unitRows(rows.data(), padded, 1, eps, factor, &inverse);
        unitRows(rows.data() + padded, padded, 1, eps, 1, &inverse);
      } else {
        scaleAll(rows.data(), padded, factor);
      }
      const float open = decays ? std::exp(decays[i]) : 1.0f;
      stepState(states + i * dk * dv, dk, dv, rows.data(), rows.data() + padded, vs + i * dv, rates[i], open, change.data(), outs + i * dv);
    }
  });
  return out.to(query.scalar_type());
}

}  // namespace
}  // namespace martlet

TORCH_LIBRARY_FRAGMENT(martlet, m) {
  // query, key [B, H, L, dk], value [B, H, L, dv], any strides but a last one of 1 (otherwise copied); float32, or bfloat16
  // or float16 computed in float32. rate (β, in [0, 2]) and log_decay (natural logarithm, <= 0, -inf allowed) [B, H, L];
  // initial_state [B, H, dk, dv]; scale dk^-1/2 by default. Keys must not be longer than one: with `unit_epsilon` keys and
  // queries are multiplied by 1 / sqrt(|x|² + unit_epsilon) first. offsets (int64 [sequences + 1], B = 1): the tokens are those
  // of several sequences end to end, each with its own initial and final state. Returns o [B, H, L, dv] in value's type,
  // o.transpose(1, 2) contiguous, and the final states [B or sequences, H, dk, dv], float32. `chunk` is for the callers'
  // reference form: the kernel's own block is 16 tokens, and its result doesn't depend on threads or on later tokens, bit for bit.
  m.def(
      "delta_rule(Tensor query, Tensor key, Tensor value, Tensor rate, Tensor? log_decay=None, Tensor? initial_state=None, float? scale=None, "
      "int chunk=64, float? unit_epsilon=None, Tensor? offsets=None) -> (Tensor, Tensor)");
  // One token: query, key [B, H, dk], value [B, H, dv], rate and log_decay [B, H]; state float32, contiguous, updated in place.
  // No gradient.
  m.def(
      "delta_rule_step(Tensor query, Tensor key, Tensor value, Tensor rate, Tensor? log_decay, Tensor(a!) state, float? scale=None, "
      "float? unit_epsilon=None) -> Tensor");
}

TORCH_LIBRARY_IMPL(martlet, CPU, m) {
  m.impl("delta_rule", martlet::deltaRule);
  m.impl("delta_rule_step", martlet::deltaRuleStep);
}

TORCH_LIBRARY_IMPL(martlet, Autograd, m) { m.impl("delta_rule", martlet::deltaRuleAutograd); }
