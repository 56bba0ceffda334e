// Gated linear attention (Yang et al. 2023, arXiv 2312.06635), with its special cases: plain linear attention
// (no gate), retention (one constant gate a head), a scalar gate a token; and linear attention normalised by the sum of
// its weights (Katharopoulos et al. 2020, arXiv 2006.16236): the same scan with a column of ones beside the values, kept
// apart from the products, as it would cost them a fifth beside 64 values.
//
// Forward is one pass over the sequence and backward two, 16 tokens at a time, all products by ChunkScan's block product.
// Arithmetic a token and head: forward 4 dk dv + 32 (dk + dv) flops, backward 10 dk dv + 96 dk + 64 dv. Backward keeps one
// state every 256 tokens (dk dv / 256 floats a token: a quarter of one input at dk = dv = 64) and recomputes the rest; the
// gate's gradient is the paper's closed form, a reverse running sum.
//
// Measured on one core (Zen 5, dk = dv = 64, L = 4096, CPU time in the machine's quieter moments): forward 145 ns a token and
// head without a gate and 180 with one a channel, 140 and 115 GFLOP/s; forward + backward 600 and 770 ns, 110 and 90 GFLOP/s;
// these block products alone reach 240. On a Zen 3 with AVX2 (Benchmarks/family_kernels.py) 0.32 and 0.40 us, and 1.24 and 1.5 with
// backward; with one gate for all channels 0.35 and 1.32. Without a gate seven tenths of the samples are products and two tenths the copies of rows (some 2.3 KB a token and head). The rest is
// transposes, sums and the gates' factors.

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

enum class Gate { none, head, token, channel };

/// Tokens between two saved states.
constexpr int64_t kSpacing = 256;

/// Blocks from one product of a state and its gradient to the next, from which one gate's running sum starts afresh.
constexpr int64_t kAnchor = 2;

/// Tokens of a head that a worker takes at a time.
constexpr int64_t kStep = 4 * kSpacing;

/// denominators[i] = rows[i] · sums + eps over `count` columns (a multiple of 16).
MARTLET_VECTOR static void rowSums(
    const float* rows, int64_t ld, const float* sums, int64_t count, float eps, float* denominators) {
  MARTLET_FAST_SUMS
  for (int i = 0; i < kBlock; ++i) {
    float sum = 0;
    MARTLET_SIMD
    for (int64_t c = 0; c < count; ++c) sum += rows[i * ld + c] * sums[c];
    denominators[i] = sum + eps;
  }
}

/// rows[i] /= denominators[i] over `count` columns (a multiple of 16).
MARTLET_VECTOR static void divideRows(float* rows, int64_t ld, int64_t count, const float* denominators) {
  for (int i = 0; i < kBlock; ++i) {
    const float inverse = 1.0f / denominators[i];
    for (int64_t c = 0; c < count; c += 16) lanes(rows + i * ld + c) *= inverse;
  }
}

/// Gradients of the numerators, in place, and of the denominators (16 of them) from those of their quotients.
MARTLET_VECTOR static void quotientGradient(
    float* gradient, const float* quotient, int64_t width, int64_t padded, int64_t rows, const float* denominators,
    float* denominatorGradients) {
  MARTLET_FAST_SUMS
  for (int64_t i = 0; i < rows; ++i) {
    float* row = gradient + i * padded;
    const float inverse = 1.0f / denominators[i];
    float sum = 0;
    MARTLET_SIMD
    for (int64_t c = 0; c < width; ++c) {
      row[c] *= inverse;
      sum += row[c] * quotient[i * padded + c];
    }
    denominatorGradients[i] = -sum;
  }
  for (int64_t i = rows; i < kBlock; ++i) denominatorGradients[i] = 0;
}

/// tile[r, i] += factor[r] * row[i], `tile` of rows of 16.
MARTLET_VECTOR static void addOuter(const float* factor, int64_t rows, const float* row, float* tile) {
  const Lanes given = lanes(row);
  for (int64_t r = 0; r < rows; ++r) lanes(tile + r * kBlock) += factor[r] * given;
}

/// sums += Σ_i weights[i] rows[i] over 16 rows of `width` columns (a multiple of 16).
MARTLET_VECTOR static void addWeightedSum(const float* rows, int64_t ld, const float* weights, int64_t width, float* sums) {
  for (int64_t c = 0; c < width; c += 16) {
    Lanes sum = lanes(sums + c);
    for (int i = 0; i < kBlock; ++i) sum += weights[i] * lanes(rows + i * ld + c);
    lanes(sums + c) = sum;
  }
}

/// `gateGradient` of one gate for all channels: what the channels' running sums add up to, in double. q and k with leading dimension
/// `ld`, their rows to be multiplied by `queryFactor` and `keyFactor`; the block's 16 gates.
MARTLET_VECTOR static void tokenGateGradient(
    const float* q, const float* queryFactor, const float* dq, const float* k, const float* keyFactor, const float* dk, int64_t ld, int64_t width,
    const float* gate, double* carry, float* dg) {
  MARTLET_FAST_SUMS
  double running = *carry;
  for (int i = 15; i >= 0; --i) {
    double sum = 0;
    MARTLET_SIMD
    for (int64_t c = 0; c < width; ++c)
      sum += queryFactor[i] * q[i * ld + c] * dq[i * width + c] - keyFactor[i] * k[i * ld + c] * dk[i * width + c];
    running += sum;
    dg[i] = gate[i] > 0 ? static_cast<float>(running) : 0.0f;
  }
  *carry = running;
}

/// The products a_1 ... a_i of a block's gates; returns the last of them, and whether it is within e^±20.
MARTLET_INLINE bool runningProducts(const float* gate, float* products) {
  float running = 1;
  for (int i = 0; i < kBlock; ++i) products[i] = running *= gate[i];
  return isOrdinary(running);
}

MARTLET_VECTOR static void fillRows(const float* values, int64_t width, float* to) {
  for (int64_t i = 0; i < kBlock; ++i)
    for (int64_t c = 0; c < width; ++c) to[i * width + c] = values[i];
}

MARTLET_VECTOR static void multiplyInto(float* x, const float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] *= y[i];
}

/// to = decay ⊙ to + from, by rows.
MARTLET_VECTOR static void decayAndAdd(
    const float* decay, const float* from, int64_t rows, int64_t width, const float* base, float* to) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < width; ++c) to[r * width + c] = decay[r] * base[r * width + c] + from[r * width + c];
}

/// What is scanned. `dv` counts the values' columns, `columns` those of a state in memory (one more with a denominator, the sums of keys).
struct Problem {
  int64_t batch, heads, length, dk, dv, columns, paddedKey, paddedValue;
  Rows query, key, value, gate;
  Gate mode = Gate::none;
  const float* headGate = nullptr;  // [H], natural logarithms
  float scale = 1;
  bool normalised = false;
  float eps = 0;
  const bool* keep = nullptr;  // [B, L], false: the key is not there
  Sequences sequences;

  Problem(const Tensor& q, const Tensor& k, const Tensor& v, bool normalised, const Tensor& offsets = {})
      : batch(q.size(0)), heads(q.size(1)), length(q.size(2)), dk(q.size(3)), dv(v.size(3)), columns(dv + normalised),
        paddedKey(roundedUp(dk)), paddedValue(roundedUp(dv)), query(q), key(k), value(v), normalised(normalised),
        sequences(batch, heads, length, offsets.defined() ? offsets.const_data_ptr<int64_t>() : nullptr,
                  offsets.defined() ? offsets.size(0) - 1 : 0, kSpacing) {}

  int64_t count() const { return batch * heads; }
  int64_t stateSize() const { return dk * columns; }
  bool gated() const { return mode != Gate::none; }
};

/// One worker's tiles and its steps through a block. Only rows gated by channels stand in q_ and k_ beside their weighted forms qw_ and kw_.
///
/// One gate for all channels is a factor a row. The state's own decay then stays a number beside it, its level: S = level Ŝ, which the
/// rows' factors make up for, until it leaves e^±20.
class Scan {
  const Problem& p_;
  const int64_t dk_, dv_, weights_;  // padded widths; leading dimension of a [16, dk | 16] tile
  Arena arena_;
  float *q_, *k_, *gate_, *qFactor_, *kFactor_, *total_, *slots_, *qw_, *kw_, *keyColumns_, *valueColumns_, *out_, *tile_;
  float *products_, *rowGradient_, *keyGradient_, *dg_, *work_, *carry_, *chunkQueryGradient_, *blockStates_;
  float* gradients_;  // with denominators: kSpacing rows of the numerators' gradients, then the denominators'
  float diagonal_[kBlock];
  float level_ = 1, gradientLevel_ = 1;  // of the state, of its gradient
  // Of one gate: the block's gates, what q and k are multiplied by in qw_ and kw_, the inverse of that, and the gates' product.
  float rowGate_[kBlock], rowQuery_[kBlock], rowKey_[kBlock], inverseQuery_[kBlock], inverseKey_[kBlock], rowTotal_ = 1;
  float blockLevels_[kSpacing / kBlock];
  double crossing_ = 0;  // S ⊙ dS, summed over channels too
  bool ordinary_ = true, byRow_ = false, ordinaryIn_[kSpacing / kBlock];

 public:
  float *state, *stateGradient;  // [dk + 16, dv], the last 16 rows the block's values (output gradients)
  /// With denominators, a further column of the two: sums of keys and then 16 ones, and the gradients of both.
  float *keySums, *keySumGradients;
  float denominators[kBlock];
  double headGateGradient = 0;

  explicit Scan(const Problem& p)
      : p_(p), dk_(p.paddedKey), dv_(p.paddedValue), weights_(dk_ + kBlock),
        arena_(slotCount(p) * slotFloats() + 16 * (7 * dk_ + 2 * weights_ + 4 * dv_ + 2 * weights_) + 2 * weights_ * (dv_ + 1) + 4 * dk_ + kSpacing * dk_ +
               (oneGate(p) ? kSpacing / kBlock / kAnchor * dk_ * dv_ : 0) + (p.normalised ? kSpacing * (dv_ + 1) : 0) + 4096) {
    const auto tile = [&](int64_t width) { return arena_.take(kBlock * width); };
    q_ = tile(dk_), k_ = tile(dk_), slots_ = arena_.take(slotCount(p) * slotFloats());
    rowGradient_ = tile(dk_), keyGradient_ = tile(dk_), dg_ = tile(dk_), keyColumns_ = tile(dk_);
    qw_ = tile(weights_), kw_ = tile(weights_), products_ = tile(weights_);
    valueColumns_ = tile(dv_), out_ = tile(dv_), tile_ = tile(dv_);
    state = arena_.take(weights_ * dv_), stateGradient = arena_.take(weights_ * dv_);
    keySums = arena_.take(weights_), keySumGradients = arena_.take(weights_);
    for (int64_t i = 0; i < weights_; ++i) keySums[i] = i < dk_ ? 0 : 1;
    work_ = arena_.take(dk_), carry_ = arena_.take(dk_);
    chunkQueryGradient_ = arena_.take(kSpacing * dk_);
    blockStates_ = arena_.take(oneGate(p) ? kSpacing / kBlock / kAnchor * dk_ * dv_ : 0);
    gradients_ = arena_.take(p.normalised ? kSpacing * (dv_ + 1) : 0);
    use(0);
  }

  /// Room for 16 rows of values.
  float* tile() { return out_; }

  /// [dk, columns] contiguous floats, or nothing for zeros, into a padded state.
  void loadState(const float* from, float* to) {
    levelOf(to) = 1;
    std::memset(to, 0, sizeof(float) * dk_ * dv_);
    float* sums = sumsBeside(to);
    std::memset(sums, 0, sizeof(float) * dk_);
    if (!from) return;
    for (int64_t r = 0; r < p_.dk; ++r) {
      std::memcpy(to + r * dv_, from + r * p_.columns, sizeof(float) * p_.dv);
      if (p_.normalised) sums[r] = from[r * p_.columns + p_.dv];
    }
  }
  void storeState(const float* from, float* to) const {
    const float* sums = sumsBeside(from);
    copyRows(from, dv_, p_.dk, p_.dv, to, p_.columns, 0, from == state ? level_ : gradientLevel_);
    if (p_.normalised)
      for (int64_t r = 0; r < p_.dk; ++r) to[r * p_.columns + p_.dv] = sums[r];
  }
  /// Where gradients of the block's denominators are expected beside those of its outputs.
  float* denominatorGradients() const { return keySumGradients + dk_; }

  /// Sums of k_tᵀ v_t over tokens begin..<end onto `state`, decayed; `decay` [dk] takes the product of the gates.
  void accumulate(int64_t head, int64_t begin, int64_t end, float* decay) {
    for (int64_t c = 0; c < p_.dk; ++c) decay[c] = 1;
    for (int64_t t = begin; t < end; t += kBlock) {
      const int64_t rows = std::min(kBlock, end - t);
      loadGate(head, t, rows);
      loadKey(head, t, rows);
      loadValue(head, t, rows, valuesOfState());
      advance();
      multiplyByTotal(decay);
    }
  }

  /// The same of q_tᵀ dO_t onto `stateGradient`, from the last token to the first.
  template <typename LoadGradient>
  void accumulateGradient(int64_t head, int64_t begin, int64_t end, const LoadGradient& loadGradient, float* decay) {
    for (int64_t c = 0; c < p_.dk; ++c) decay[c] = 1;
    for (int64_t t = begin + (end - begin - 1) / kBlock * kBlock; t >= begin; t -= kBlock) {
      const int64_t rows = std::min(kBlock, end - t);
      loadGate(head, t, rows, true);
      loadQuery(head, t, rows);
      loadGradient(t, rows, gradientsOfState());
      transposeToColumns(qw_, weights_, dk_, keyColumns_);
      if (scalesState()) scaleRows(stateGradient, dk_, dv_, total_);
      updateGradient();
      multiplyByTotal(decay);
    }
  }

  /// Outputs of tokens begin..<end: `emit(t, rows, make)`, where `make(to, leading dimension)` writes 16 rows; `save(t)` is called before
  /// every block.
  template <typename Save, typename Emit>
  void forward(int64_t head, int64_t begin, int64_t end, const Save& save, const Emit& emit) {
    for (int64_t t = begin; t < end; t += kBlock) {
      const int64_t rows = std::min(kBlock, end - t);
      save(t);
      loadGate(head, t, rows);
      loadQuery(head, t, rows);
      loadKey(head, t, rows);
      loadValue(head, t, rows, valuesOfState());
      transposeToColumns(kw_, weights_, dk_, keyColumns_);
      if (ordinary_) {
        product(kBlock, kBlock, dk_, qw_, weights_, keyColumns_, kBlock, qw_ + dk_, weights_, false);
        keepTriangle(qw_ + dk_, weights_, true);
      } else {
        decayingWeights(q_, k_, gate_, dk_, p_.scale, qw_ + dk_, weights_, 1, work_);
      }
      if (p_.normalised) {
        rowSums(qw_, weights_, keySums, weights_, p_.eps, denominators);
        divideRows(qw_, weights_, weights_, denominators);
      }
      emit(t, rows, [&](float* to, int64_t ld) { product(kBlock, dv_, weights_, qw_, weights_, state, dv_, to, ld, false); });
      update();
    }
  }

  /// Gradients of tokens begin..<end, at most kSpacing of them: `state` holds the state before `begin`, `stateGradient` the
  /// gradient of the state after `end`; on return the one before `begin`.
  template <typename LoadGradient>
  void backward(
      int64_t head, int64_t begin, int64_t end, const LoadGradient& loadGradient, const Rows& queryGradient,
      const Rows& keyGradient, const Rows& valueGradient, const Rows* gateGradients) {
    // Forwards again: dQ = dO Sᵀ and, inside the block, lower(dO Vᵀ) K. Transposed, [S; V] dOᵀ gives both first factors.
    // The gate's running sum starts afresh from S ⊙ dS at the end of these tokens. One gate for all channels sums what is left
    // over channels (and, a head's one gate, over tokens) with much cancellation, so for it at the end of every other block.
    const bool anchors = gateGradients && oneGate(p_);
    const auto isAnchor = [&](int64_t block, int64_t t) { return anchors && (block % kAnchor == kAnchor - 1 || t + kBlock >= end); };
    const auto anchorState = [&](int64_t block) { return blockStates_ + block / kAnchor * dk_ * dv_; };
    for (int64_t t = begin; t < end; t += kBlock) {
      const int64_t rows = std::min(kBlock, end - t);
      float* dq = chunkQueryGradient_ + (t - begin) * dk_;
      const int64_t block = (t - begin) / kBlock;
      if (p_.mode == Gate::channel) use(block);
      loadGate(head, t, rows);
      ordinaryIn_[block] = ordinary_;
      loadKey(head, t, rows);
      loadValue(head, t, rows, valuesOfState());
      float* gradients = p_.normalised ? gradients_ + (t - begin) * dv_ : tile_;
      loadGradient(t, rows, gradients);
      if (p_.normalised) std::memcpy(gradients_ + kSpacing * dv_ + t - begin, denominatorGradients(), sizeof(float) * kBlock);
      transposeToColumns(gradients, dv_, dv_, valueColumns_);
      transposeToColumns(kw_, weights_, dk_, keyColumns_);
      float* weightGradient = products_ + dk_ * kBlock;  // [j, i]
      product(weights_, kBlock, dv_, state, dv_, valueColumns_, kBlock, products_, kBlock, false);
      if (p_.normalised) addOuter(keySums, weights_, denominatorGradients(), products_);
      keepTriangle(weightGradient, kBlock, false);
      if (p_.gated()) takeDiagonal(weightGradient, p_.scale, diagonal_);
      if (ordinary_) product(dk_, kBlock, kBlock, keyColumns_, kBlock, weightGradient, kBlock, products_, kBlock, true);
      if (p_.gated()) {
        if (byRow_) transposeToWeightedRows(products_, kBlock, dk_, rowQuery_, dq);
        else transposeToRows(products_, dk_, qFactor_, dq, dk_);
        if (!ordinary_) decayingQueryGradient(weightGradient, 1, kBlock, k_, gate_, dk_, p_.scale, dq, work_);
        writeWithDiagonal(queryGradient, head, t, rows, dq, k_, kw_, inverseKey_);
      } else {
        writeTransposed(queryGradient, head, t, rows, p_.scale);
      }
      update();
      if (isAnchor(block, t)) {
        std::memcpy(anchorState(block), state, sizeof(float) * dk_ * dv_);
        blockLevels_[block] = level_;
      }
    }
    if (gateGradients && !anchors) rowProducts(state, stateGradient, dk_, dv_, carry_);
    // Backwards: with E the gradient of the state, dK = V Eᵀ + Q lower(dO Vᵀ), dV = [K | Pᵀ] [E; dO], E += Qᵀ dO.
    for (int64_t t = begin + (end - begin - 1) / kBlock * kBlock; t >= begin; t -= kBlock) {
      const int64_t rows = std::min(kBlock, end - t), block = (t - begin) / kBlock;
      if (isAnchor(block, t)) {
        rowProducts(anchorState(block), stateGradient, dk_, dv_, carry_);
        crossing_ = 0;
        for (int64_t c = 0; c < dk_; ++c) crossing_ += carry_[c];
        crossing_ *= static_cast<double>(blockLevels_[block]) * gradientLevel_;
      }
      if (p_.mode == Gate::channel) {
        use(block);
        ordinary_ = ordinaryIn_[block];
      } else {
        loadGate(head, t, rows, true);
      }
      loadQuery(head, t, rows, -kBlock);
      loadKey(head, t, rows, -kBlock);
      loadValue(head, t, rows, tile_, -kBlock);
      if (p_.normalised) {
        std::memcpy(gradientsOfState(), gradients_ + (t - begin) * dv_, sizeof(float) * kBlock * dv_);
        std::memcpy(denominatorGradients(), gradients_ + kSpacing * dv_ + t - begin, sizeof(float) * kBlock);
      } else {
        loadGradient(t, rows, gradientsOfState());
      }
      transposeToColumns(qw_, weights_, dk_, keyColumns_);
      transposeToColumns(tile_, dv_, dv_, valueColumns_);
      if (scalesState() && ordinary_) scaleRows(stateGradient, dk_, dv_, total_);
      float* weightGradient = products_ + dk_ * kBlock;  // [i, j]
      product(weights_, kBlock, dv_, stateGradient, dv_, valueColumns_, kBlock, products_, kBlock, false);
      if (p_.normalised) addOuter(keySumGradients, weights_, keySums + dk_, products_);
      keepTriangle(weightGradient, kBlock, true);
      if (p_.gated()) takeDiagonal(weightGradient, p_.scale, diagonal_);
      if (ordinary_) {
        product(kBlock, kBlock, dk_, kw_, weights_, keyColumns_, kBlock, kw_ + dk_, weights_, false);
        keepTriangle(kw_ + dk_, weights_, false);
        product(dk_, kBlock, kBlock, keyColumns_, kBlock, weightGradient, kBlock, products_, kBlock, true);
      } else {
        decayingWeights(q_, k_, gate_, dk_, p_.scale, kw_ + dk_, 1, weights_, work_);
      }
      valueGradient.write(head, t, rows, out_, dv_, [&](float* to, int64_t ld) {
        product(kBlock, dv_, weights_, kw_, weights_, stateGradient, dv_, to, ld, false);
        maskRows(head, t, rows, to, ld, dv_);
      });
      if (p_.gated()) {
        if (byRow_) transposeToWeightedRows(products_, kBlock, dk_, rowKey_, keyGradient_);
        else transposeToRows(products_, dk_, kFactor_, keyGradient_, dk_);
        if (!ordinary_) decayingKeyGradient(weightGradient, kBlock, 1, q_, gate_, dk_, p_.scale, keyGradient_, work_);
        writeWithDiagonal(keyGradient, head, t, rows, keyGradient_, q_, qw_, inverseQuery_);
      } else {
        writeTransposed(keyGradient, head, t, rows, 1, true);
      }
      if (gateGradients) storeGateGradient(head, t, rows, chunkQueryGradient_ + (t - begin) * dk_, *gateGradients);
      if (scalesState() && !ordinary_) scaleRows(stateGradient, dk_, dv_, total_);
      updateGradient();
    }
  }

  /// Every token sees the whole sum in `state`.
  template <typename Emit>
  void readAll(int64_t head, int64_t begin, int64_t end, const Emit& emit) {
    for (int64_t t = begin; t < end; t += kBlock) {
      const int64_t rows = std::min(kBlock, end - t);
      loadGate(head, t, rows);
      loadQuery(head, t, rows);
      if (p_.normalised) {
        rowSums(qw_, weights_, keySums, dk_, p_.eps, denominators);
        divideRows(qw_, weights_, dk_, denominators);
      }
      emit(t, rows, [&](float* to, int64_t ld) { product(kBlock, dv_, dk_, qw_, weights_, state, dv_, to, ld, false); });
    }
  }

  /// The gradients of `readAll` and of the sum: of the queries from `state`, of keys and values from `stateGradient`.
  template <typename LoadGradient>
  void backwardAll(
      int64_t head, int64_t begin, int64_t end, const LoadGradient& loadGradient, const Rows& queryGradient,
      const Rows& keyGradient, const Rows& valueGradient) {
    for (int64_t t = begin; t < end; t += kBlock) {
      const int64_t rows = std::min(kBlock, end - t);
      loadGate(head, t, rows);
      loadKey(head, t, rows);
      loadGradient(t, rows, tile_);
      transposeToColumns(tile_, dv_, dv_, valueColumns_);
      product(dk_, kBlock, dv_, state, dv_, valueColumns_, kBlock, products_, kBlock, false);
      if (p_.normalised) addOuter(keySums, dk_, denominatorGradients(), products_);
      writeTransposed(queryGradient, head, t, rows, p_.scale);
      loadValue(head, t, rows, tile_);
      transposeToColumns(tile_, dv_, dv_, valueColumns_);
      product(dk_, kBlock, dv_, stateGradient, dv_, valueColumns_, kBlock, products_, kBlock, false);
      if (p_.normalised) addOuter(keySumGradients, dk_, keySums + dk_, products_);
      writeTransposed(keyGradient, head, t, rows, 1, true);
      valueGradient.write(head, t, rows, out_, dv_, [&](float* to, int64_t ld) {
        product(kBlock, dv_, dk_, kw_, weights_, stateGradient, dv_, to, ld, false);
        maskRows(head, t, rows, to, ld, dv_);
      });
    }
  }

 private:
  // A block's gates and the factors made of them. Backward keeps those of the channels' for the way back.
  static bool oneGate(const Problem& p) { return p.mode == Gate::head || p.mode == Gate::token; }
  static int64_t slotCount(const Problem& p) { return p.mode == Gate::channel ? kSpacing / kBlock : 1; }
  int64_t slotFloats() const { return (3 * kBlock + 1) * dk_; }
  void use(int64_t slot) {
    gate_ = slots_ + slot * slotFloats();
    qFactor_ = gate_ + kBlock * dk_, kFactor_ = qFactor_ + kBlock * dk_, total_ = kFactor_ + kBlock * dk_;
  }

  float* sumsBeside(const float* states) const { return states == state ? keySums : keySumGradients; }
  float* valuesOfState() const { return state + dk_ * dv_; }
  float* gradientsOfState() const { return stateGradient + dk_ * dv_; }

  float& levelOf(const float* states) { return states == state ? level_ : gradientLevel_; }
  bool scalesState() const { return p_.gated() && !byRow_; }

  /// `ofGradient`: for a step of the state's gradient, back in time, and not of the state.
  void loadGate(int64_t head, int64_t t, int64_t rows, bool ofGradient = false) {
    if (!p_.gated()) return;
    if (p_.mode == Gate::channel) {
      p_.gate.load(head, t, rows, gate_, dk_);
      exponentials(gate_, kBlock * dk_);
      ordinary_ = decayFactors(gate_, dk_, p_.scale, qFactor_, kFactor_, total_);
      return;
    }
    for (int64_t i = 0; i < kBlock; ++i)
      rowGate_[i] = i >= rows                ? 0
                    : p_.mode == Gate::head ? p_.headGate[head % p_.heads]
                                             : *reinterpret_cast<const float*>(p_.gate.row(head, t + i));
    exponentials(rowGate_, kBlock);
    float running[kBlock];
    byRow_ = ordinary_ = runningProducts(rowGate_, running);
    rowTotal_ = running[kBlock - 1];
    float& level = ofGradient ? gradientLevel_ : level_;
    if (!byRow_ || !isOrdinary(level * rowTotal_)) settle(ofGradient ? stateGradient : state);
    if (!byRow_) {
      fillRows(rowGate_, dk_, gate_);
      decayFactors(gate_, dk_, p_.scale, qFactor_, kFactor_, total_);
      for (int64_t i = 0; i < kBlock; ++i) inverseQuery_[i] = inverseKey_[i] = 1;
      return;
    }
    const float before = level;
    level *= rowTotal_;
    for (int64_t i = 0; i < kBlock; ++i) {
      const float decay = ofGradient ? running[i] / level : running[i] * before;
      rowQuery_[i] = p_.scale * decay;
      rowKey_[i] = 1 / decay;
      inverseQuery_[i] = p_.scale == 0 ? 0 : 1 / rowQuery_[i];
      inverseKey_[i] = decay;
    }
  }

  /// Multiplies a state, or its gradient, by its level.
  void settle(float* states) {
    float& level = levelOf(states);
    if (level == 1) return;
    for (int64_t i = 0; i < dk_ * dv_; i += 16) lanes(states + i) *= level;
    level = 1;
  }

  void multiplyByTotal(float* decay) const {
    if (byRow_)
      for (int64_t c = 0; c < p_.dk; ++c) decay[c] *= rowTotal_;
    else if (p_.gated()) multiplyInto(decay, total_, p_.dk);
  }

  void loadQuery(int64_t head, int64_t t, int64_t rows, int64_t ahead = kBlock) {
    if (byRow_) return p_.query.loadWeighted(head, t, rows, rowQuery_, qw_, weights_, dk_, ahead);
    if (!p_.gated()) return p_.query.loadScaled(head, t, rows, p_.scale, qw_, weights_, dk_, ahead);
    p_.query.load(head, t, rows, q_, dk_, ahead);
    weighRows(q_, qFactor_, dk_, qw_, weights_);
  }

  void loadKey(int64_t head, int64_t t, int64_t rows, int64_t ahead = kBlock) {
    if (byRow_) return p_.key.loadWeighted(head, t, rows, rowKey_, kw_, weights_, dk_, ahead);
    if (!p_.gated()) {
      p_.key.loadScaled(head, t, rows, 1, kw_, weights_, dk_, ahead);
      return maskRows(head, t, rows, kw_, weights_, dk_);
    }
    p_.key.load(head, t, rows, k_, dk_, ahead);
    weighRows(k_, kFactor_, dk_, kw_, weights_);
  }

  void loadValue(int64_t head, int64_t t, int64_t rows, float* to, int64_t ahead = kBlock) const {
    p_.value.load(head, t, rows, to, dv_, ahead);
  }

  /// `products_` [dk, 16], turned and scaled, as rows of a gradient: without gates, which alone need a token's own part apart.
  void writeTransposed(const Rows& gradient, int64_t head, int64_t t, int64_t rows, float factor, bool ofKeys = false) {
    gradient.write(head, t, rows, rowGradient_, dk_, [&](float* to, int64_t ld) {
      transposeToScaledRows(products_, dk_, factor, to, ld);
      if (ofKeys) maskRows(head, t, rows, to, ld, dk_);
    });
  }

  /// `from` with the tokens' own part, which the gates' gradient goes without: `diagonal_` times `other`, which by rows stands only in
  /// `weighted`, times what `inverse` undoes.
  void writeWithDiagonal(
      const Rows& gradient, int64_t head, int64_t t, int64_t rows, const float* from, const float* other, const float* weighted, const float* inverse) {
    if (byRow_)
      for (int64_t i = 0; i < kBlock; ++i) diagonal_[i] *= inverse[i];
    gradient.write(head, t, rows, rowGradient_, dk_, [&](float* to, int64_t ld) {
      addDiagonal(from, diagonal_, byRow_ ? weighted : other, byRow_ ? weights_ : dk_, dk_, to, ld);
    });
  }

  void maskRows(int64_t head, int64_t t, int64_t rows, float* tile, int64_t ld, int64_t width) const {
    if (!p_.keep) return;
    const bool* keep = p_.keep + head / p_.heads * p_.length + t;
    for (int64_t i = 0; i < rows; ++i)
      if (!keep[i]) std::memset(tile + i * ld, 0, sizeof(float) * width);
  }

  /// The block's keys and values into the state; the keys' columns are in place.
  void update() {
    if (scalesState() && !ordinary_) scaleRows(state, dk_, dv_, total_);
    product(dk_, dv_, kBlock, keyColumns_, kBlock, valuesOfState(), dv_, state, dv_, true);
    if (p_.normalised) addWeightedSum(kw_, weights_, keySums + dk_, dk_, keySums);
    if (scalesState() && ordinary_) scaleRows(state, dk_, dv_, total_);
  }
  /// The block's queries, whose columns are in place, and output gradients into the state's gradient.
  void updateGradient() {
    product(dk_, dv_, kBlock, keyColumns_, kBlock, gradientsOfState(), dv_, stateGradient, dv_, true);
    if (p_.normalised) addWeightedSum(qw_, weights_, denominatorGradients(), dk_, keySumGradients);
  }
  void advance() {
    transposeToColumns(kw_, weights_, dk_, keyColumns_);
    update();
  }

  void storeGateGradient(int64_t head, int64_t t, int64_t rows, const float* dq, const Rows& gradients) {
    if (p_.mode == Gate::channel) {
      gateGradient(q_, dq, k_, keyGradient_, gate_, dk_, carry_, dg_);
      gradients.store(head, t, rows, dg_, dk_);
      return;
    }
    float sums[kBlock];
    tokenGateGradient(
        byRow_ ? qw_ : q_, inverseQuery_, dq, byRow_ ? kw_ : k_, inverseKey_, keyGradient_, byRow_ ? weights_ : dk_, dk_, rowGate_, &crossing_, sums);
    if (p_.mode == Gate::token) {
      gradients.store(head, t, rows, sums, 1);
    } else {
      for (int64_t i = 0; i < rows; ++i) headGateGradient += sums[i];
    }
  }
};

/// How the sequence is shared out: whole heads, step by step, or, where there are fewer heads than workers, also segments of each,
/// whose entering states come from a first pass over the sums alone (a third of the work again, so only then). Packed sequences
/// are shared out whole.
struct Segments {
  int64_t count, length;

  Segments(int64_t heads, int64_t tokens, bool packed = false) {
    const int64_t workers = workerCount();
    int64_t wanted = packed || heads >= workers || heads == 0 ? 1 : (2 * workers + heads - 1) / heads;
    wanted = std::max<int64_t>(1, std::min(wanted, tokens / 1024));
    length = std::max((tokens + wanted - 1) / wanted + kSpacing - 1, kSpacing) / kSpacing * kSpacing;
    count = std::max<int64_t>(1, (tokens + length - 1) / length);
  }
  int64_t begin(int64_t i) const { return i * length; }
  int64_t end(int64_t i, int64_t tokens) const { return std::min(tokens, (i + 1) * length); }
  /// Segments start anywhere; a whole sequence of `tokens` is gone through in steps.
  int64_t steps(int64_t tokens) const { return count > 1 ? 1 : std::max<int64_t>(1, (tokens + kStep - 1) / kStep); }
  /// The tokens of a step of segment i.
  std::pair<int64_t, int64_t> range(int64_t i, int64_t step, int64_t tokens) const {
    if (count > 1) return {begin(i), end(i, tokens)};
    return {std::min(tokens, step * kStep), std::min(tokens, (step + 1) * kStep)};
  }
};

using ScanWorkers = Workers<Scan, const Problem&>;

/// The state entering every segment [BH, segments + 1, dk, columns] (the last one leaving), from `first` ([BH, dk, columns]
/// or nothing), by sums inside segments in parallel and then one pass over segments. `reverse`: of the state's gradient,
/// from the last segment to the first; entry i is then the gradient at the end of segment i - 1.
template <typename Accumulate>
Tensor enteringStates(
    const Problem& p, const Segments& segments, const float* first, bool reverse, bool everySegment, ScanWorkers& workers,
    const Accumulate& accumulate) {
  const int64_t heads = p.count(), size = p.stateSize(), entries = segments.count + 1;
  Tensor states = at::empty({heads, entries, p.dk, p.columns}, at::kFloat);
  float* data = states.data_ptr<float>();
  Tensor decays = at::empty({heads, segments.count, p.dk}, at::kFloat);
  float* decay = decays.data_ptr<float>();
  const auto needed = [&](int64_t s) { return everySegment || s != (reverse ? 0 : segments.count - 1); };
  parallelTasks(heads * segments.count, [&](int64_t task, int64_t worker) {
    const int64_t head = task / segments.count, segment = task % segments.count;
    if (!needed(segment)) return;
    FlushDenormals flush;
    Scan& scan = workers[worker];
    float* entry = data + (head * entries + (reverse ? segment : segment + 1)) * size;
    scan.loadState(nullptr, reverse ? scan.stateGradient : scan.state);
    accumulate(scan, head, segments.begin(segment), segments.end(segment, p.length), decay + task * p.dk);
    scan.storeState(reverse ? scan.stateGradient : scan.state, entry);
  });
  for (int64_t head = 0; head < heads; ++head) {
    float* entry = data + head * entries * size;
    float* start = entry + (reverse ? segments.count * size : 0);
    if (first) std::memcpy(start, first + head * size, sizeof(float) * size);
    else std::memset(start, 0, sizeof(float) * size);
    for (int64_t i = 0; i < segments.count; ++i) {
      const int64_t segment = reverse ? segments.count - 1 - i : i;
      if (!needed(segment)) continue;
      float* from = entry + (reverse ? segment + 1 : segment) * size;
      float* to = entry + (reverse ? segment : segment + 1) * size;
      decayAndAdd(decay + (head * segments.count + segment) * p.dk, to, p.dk, p.columns, from, to);
    }
  }
  return states;
}

// --- Gated ----------------------------------------------------------------------------------------------------------

Gate gateMode(const Tensor& query, const OptionalTensor& gate) {
  if (!gate || !gate->defined()) return Gate::none;
  const auto sizes = gate->sizes();
  if (sizes == query.sizes().slice(1, 1)) return Gate::head;
  if (sizes == query.sizes().slice(0, 3)) return Gate::token;
  TORCH_CHECK(
      sizes == query.sizes(), "gated_linear_attention: log_gate has shape ", sizes, ", expected [heads], [batch, heads, length] or query's ",
      query.sizes());
  return Gate::channel;
}

/// Tensors as the scan reads them: last dimension dense, gate and state in float32.
struct GatedInputs {
  Tensor query, key, value, gate, state, offsets;
  Gate mode;

  GatedInputs(
      const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& g, const OptionalTensor& s, const OptionalTensor& packing) {
    checkInputs("gated_linear_attention", q, k, v);
    mode = gateMode(q, g);
    query = ready(q), key = ready(k), value = ready(v);
    if (mode != Gate::none) {
      TORCH_CHECK(g->device().is_cpu(), "gated_linear_attention: log_gate must be on the CPU, not on ", g->device());
      gate = g->to(at::kFloat);
      gate = mode == Gate::head ? gate.contiguous() : mode == Gate::channel ? ready(gate) : gate;
    }
    offsets = checkedOffsets("gated_linear_attention", q, packing);
    state = checkedState("gated_linear_attention", q, v, s, offsets.defined() ? offsets.size(0) - 1 : q.size(0));
  }

  Problem problem(double scale) const {
    Problem p(query, key, value, false, offsets);
    p.mode = mode, p.scale = static_cast<float>(scale);
    if (mode == Gate::head) p.headGate = gate.data_ptr<float>();
    else if (mode != Gate::none) p.gate = Rows(gate);
    return p;
  }
};

/// Output, final state and, where wanted, the states every kSpacing tokens.
std::tuple<Tensor, Tensor, Tensor> gatedForward(const GatedInputs& in, double scale, bool save) {
  const Problem p = in.problem(scale);
  Tensor out = emptyHeads(p.batch, p.heads, p.length, p.dv, in.query.options());
  Tensor last = in.state.defined() ? in.state.clone() : at::zeros({p.sequences.count(), p.heads, p.dk, p.dv}, at::kFloat);
  Tensor saved = save ? at::empty({p.sequences.savedStates(), p.dk, p.dv}, at::kFloat) : Tensor();
  if (out.numel() == 0) return {out, last, saved};
  const Segments segments(p.count(), p.length, p.sequences.packed());
  ScanWorkers workers(p);
  Tensor entering;
  if (segments.count > 1) {
    entering = enteringStates(p, segments, floats(in.state), false, false, workers, [](Scan& scan, auto... rest) { scan.accumulate(rest...); });
  }
  const Rows outRows(out);
  const auto steps = [&](int64_t index) { return segments.steps(p.sequences.task(index / segments.count).length()); };
  parallelChains(p.sequences.tasks() * segments.count, steps, [&](int64_t index, int64_t step, int64_t worker) {
    FlushDenormals flush;
    const auto task = p.sequences.task(index / segments.count);
    const int64_t segment = index % segments.count;
    Scan& scan = workers[worker];
    float* leaving = last.data_ptr<float>() + task.state * p.stateSize();
    const float* first = segments.count > 1 ? floats(entering) + (task.state * (segments.count + 1) + segment) * p.stateSize()
                         : step > 0         ? leaving
                         : in.state.defined() ? floats(in.state) + task.state * p.stateSize()
                                              : nullptr;
    scan.loadState(first, scan.state);
    const auto [begin, end] = segments.range(segment, step, task.length());
    scan.forward(
        task.row, task.begin + begin, task.begin + end,
        [&](int64_t t) {
          const int64_t done = t - task.begin;
          if (save && done % kSpacing == 0)
            scan.storeState(scan.state, saved.data_ptr<float>() + (task.saved + done / kSpacing) * p.stateSize());
        },
        [&](int64_t t, int64_t rows, const auto& make) { outRows.write(task.row, t, rows, scan.tile(), p.paddedValue, make); });
    if (segment == segments.count - 1) scan.storeState(scan.state, leaving);
  });
  return {out, last, saved};
}

struct GatedGradients {
  Tensor query, key, value, gate, state;
};

GatedGradients gatedBackward(
    const GatedInputs& in, double scale, const Tensor& saved, const Tensor& outGradient, const Tensor& lastGradient, bool wantGate) {
  const Problem p = in.problem(scale);
  const auto options = in.query.options();
  GatedGradients g;
  g.query = emptyHeads(p.batch, p.heads, p.length, p.dk, options);
  g.key = emptyHeads(p.batch, p.heads, p.length, p.dk, options);
  g.value = emptyHeads(p.batch, p.heads, p.length, p.dv, options);
  g.state = lastGradient.defined() ? lastGradient.to(at::kFloat).contiguous().clone() : at::zeros({p.sequences.count(), p.heads, p.dk, p.dv}, at::kFloat);
  wantGate &= in.mode != Gate::none;
  if (wantGate) {
    g.gate = in.mode == Gate::channel ? emptyHeads(p.batch, p.heads, p.length, p.dk, at::kFloat)
             : in.mode == Gate::token ? at::empty({p.batch, p.heads, p.length}, at::kFloat)
                                      : at::zeros({p.heads}, at::kFloat);
  }
  if (g.value.numel() == 0) return g;
  Tensor dout = outGradient.defined() ? ready(outGradient.to(in.query.scalar_type()))
                                      : at::zeros({1}, options).expand({p.batch, p.heads, p.length, p.dv}).contiguous();
  const Rows outRows(dout), dq(g.query), dk(g.key), dv(g.value);
  Rows dg;
  if (wantGate && in.mode != Gate::head) dg = Rows(g.gate);
  const Segments segments(p.count(), p.length, p.sequences.packed());
  ScanWorkers workers(p);
  Tensor entering;
  const auto loader = [&](int64_t head) {
    return [&, head](int64_t t, int64_t rows, float* to) { outRows.load(head, t, rows, to, p.paddedValue); };
  };
  if (segments.count > 1) {
    entering = enteringStates(
        p, segments, floats(g.state), true, false, workers, [&](Scan& scan, int64_t head, int64_t begin, int64_t end, float* decay) {
          scan.accumulateGradient(head, begin, end, loader(head), decay);
        });
  }
  const int64_t tasks = p.sequences.tasks() * segments.count;
  std::vector<double> gateSums(tasks);
  Tensor first = at::empty_like(g.state);
  const auto steps = [&](int64_t index) { return segments.steps(p.sequences.task(index / segments.count).length()); };
  parallelChains(tasks, steps, [&](int64_t index, int64_t step, int64_t worker) {
    FlushDenormals flush;
    const auto task = p.sequences.task(index / segments.count);
    const int64_t segment = index % segments.count;
    Scan& scan = workers[worker];
    float* entry = first.data_ptr<float>() + task.state * p.stateSize();
    const float* end = segments.count > 1 ? floats(entering) + (task.state * (segments.count + 1) + segment + 1) * p.stateSize()
                       : step > 0         ? entry
                                          : floats(g.state) + task.state * p.stateSize();
    scan.loadState(end, scan.stateGradient);
    scan.headGateGradient = 0;
    const auto [begin, stop] = segments.range(segment, steps(index) - 1 - step, task.length());
    if (stop > begin) {
      for (int64_t t = begin + (stop - begin - 1) / kSpacing * kSpacing; t >= begin; t -= kSpacing) {
        scan.loadState(floats(saved) + (task.saved + t / kSpacing) * p.stateSize(), scan.state);
        scan.backward(
            task.row, task.begin + t, task.begin + std::min(stop, t + kSpacing), loader(task.row), dq, dk, dv, wantGate ? &dg : nullptr);
      }
    }
    gateSums[task.state * segments.count + segment] += scan.headGateGradient;
    if (segment == 0) scan.storeState(scan.stateGradient, entry);
  });
  g.state = first;
  if (wantGate && in.mode == Gate::head) {
    std::vector<double> sums(p.heads);
    for (int64_t i = 0; i < tasks; ++i) sums[i / segments.count % p.heads] += gateSums[i];
    for (int64_t h = 0; h < p.heads; ++h) g.gate.data_ptr<float>()[h] = static_cast<float>(sums[h]);
  }
  return g;
}

std::tuple<Tensor, Tensor> gatedLinearAttention(
    const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& logGate, const OptionalTensor& initialState,
    std::optional<double> scale, int64_t chunk, const OptionalTensor& offsets) {
  checkChunk("gated_linear_attention", chunk);
  const GatedInputs in(query, key, value, logGate, initialState, offsets);
  auto [out, last, saved] = gatedForward(in, scaleOf(query, scale), false);
  return {out, last};
}

class GatedFunction : public torch::autograd::Function<GatedFunction> {
 public:
  static torch::autograd::variable_list forward(
      torch::autograd::AutogradContext* context, const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& logGate,
      const OptionalTensor& initialState, std::optional<double> scale, const OptionalTensor& offsets) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->set_materialize_grads(false);
    const GatedInputs in(query, key, value, logGate, initialState, offsets);
    const double factor = scaleOf(query, scale);
    auto [out, last, saved] = gatedForward(in, factor, true);
    const Tensor gate = logGate.value_or(Tensor()), state = initialState.value_or(Tensor());
    context->save_for_backward({query, key, value, gate, state, offsets.value_or(Tensor()), saved});
    context->saved_data["scale"] = factor;
    return {out, last};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    checkOnce("gated_linear_attention");
    const auto kept = context->get_saved_variables();
    const auto& gate = kept[3];
    const auto& state = kept[4];
    const GatedInputs in(kept[0], kept[1], kept[2], gate, state, kept[5]);
    auto g = gatedBackward(in, context->saved_data["scale"].toDouble(), kept[6], gradients[0], gradients[1], gate.defined() && context->needs_input_grad(3));
    return {g.query, g.key, g.value, gate.defined() ? as(g.gate, gate.scalar_type()) : Tensor(),
            state.defined() ? as(g.state, state.scalar_type()) : Tensor(), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> gatedLinearAttentionAutograd(
    const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& logGate, const OptionalTensor& initialState,
    std::optional<double> scale, int64_t chunk, const OptionalTensor& offsets) {
  const auto wants = [](const OptionalTensor& x) { return x && x->defined() && x->requires_grad(); };
  if (!at::GradMode::is_enabled() || !(wants(query) || wants(key) || wants(value) || wants(logGate) || wants(initialState))) {
    at::AutoDispatchBelowADInplaceOrView below;
    return gatedLinearAttention(query, key, value, logGate, initialState, scale, chunk, offsets);
  }
  checkChunk("gated_linear_attention", chunk);
  auto results = GatedFunction::apply(query, key, value, logGate, initialState, scale, offsets);
  return {results[0], results[1]};
}

// --- Normalised -----------------------------------------------------------------------------------------------------

struct NormalisedInputs {
  Tensor query, key, value, mask;
  NormalisedInputs(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& keep) {
    checkInputs("normalized_linear_attention", q, k, v);
    query = ready(q), key = ready(k), value = ready(v);
    if (keep && keep->defined()) {
      TORCH_CHECK(
          keep->scalar_type() == at::kBool && keep->device().is_cpu() && keep->sizes() == at::IntArrayRef({q.size(0), q.size(2)}),
          "normalized_linear_attention: key_mask must be bool [batch, length] on the CPU, not ", keep->scalar_type(), " ", keep->sizes());
      mask = keep->contiguous();
    }
  }
  Problem problem(double eps) const {
    Problem p(query, key, value, true);
    p.eps = static_cast<float>(eps);
    if (mask.defined()) p.keep = mask.data_ptr<bool>();
    return p;
  }
};

/// Output, denominators [BH, L] (eps included) and the states backward wants: every kSpacing tokens, or the one sum.
std::tuple<Tensor, Tensor, Tensor> normalisedForward(const NormalisedInputs& in, bool causal, double eps, bool save) {
  const Problem p = in.problem(eps);
  Tensor out = emptyHeads(p.batch, p.heads, p.length, p.dv, in.query.options());
  Tensor denominators = at::empty({p.count(), p.length}, at::kFloat);
  const int64_t entries = causal ? (p.length + kSpacing - 1) / kSpacing : 1;
  Tensor saved = at::empty({save || !causal ? p.count() : 0, entries, p.dk, p.columns}, at::kFloat);
  if (out.numel() == 0) return {out, denominators, saved};
  const Segments segments(p.count(), p.length);
  ScanWorkers workers(p);
  Tensor entering;
  if (!causal || segments.count > 1) {
    entering = enteringStates(p, segments, nullptr, false, !causal, workers, [](Scan& scan, auto... rest) { scan.accumulate(rest...); });
    if (!causal) saved.copy_(entering.slice(1, segments.count));
  }
  const Rows outRows(out);
  float* bottom = denominators.data_ptr<float>();
  const auto steps = [&](int64_t) { return segments.steps(p.length); };
  const Tensor carried = causal && steps(0) > 1 ? at::empty({p.count(), p.dk, p.columns}, at::kFloat) : Tensor();
  parallelChains(p.count() * segments.count, steps, [&](int64_t chain, int64_t step, int64_t worker) {
    FlushDenormals flush;
    const int64_t head = chain / segments.count, segment = chain % segments.count;
    Scan& scan = workers[worker];
    const auto emit = [&](int64_t t, int64_t rows, const auto& make) {
      std::memcpy(bottom + head * p.length + t, scan.denominators, sizeof(float) * rows);
      outRows.write(head, t, rows, scan.tile(), p.paddedValue, make);
    };
    const auto [begin, end] = segments.range(segment, step, p.length);
    if (!causal) {
      scan.loadState(floats(saved) + head * p.stateSize(), scan.state);
      scan.readAll(head, begin, end, emit);
      return;
    }
    float* leaving = carried.defined() ? carried.data_ptr<float>() + head * p.stateSize() : nullptr;
    scan.loadState(
        segments.count > 1 ? floats(entering) + (head * (segments.count + 1) + segment) * p.stateSize()
        : step > 0         ? leaving
                           : nullptr,
        scan.state);
    scan.forward(
        head, begin, end,
        [&](int64_t t) {
          if (save && t % kSpacing == 0) scan.storeState(scan.state, saved.data_ptr<float>() + (head * entries + t / kSpacing) * p.stateSize());
        },
        emit);
    if (leaving) scan.storeState(scan.state, leaving);
  });
  return {out, denominators, saved};
}

Tensor normalizedLinearAttention(
    const Tensor& query, const Tensor& key, const Tensor& value, bool causal, double eps, const OptionalTensor& mask) {
  return std::get<0>(normalisedForward(NormalisedInputs(query, key, value, mask), causal, eps, false));
}

class NormalisedFunction : public torch::autograd::Function<NormalisedFunction> {
 public:
  static Tensor forward(
      torch::autograd::AutogradContext* context, const Tensor& query, const Tensor& key, const Tensor& value, bool causal, double eps,
      const OptionalTensor& mask) {
    at::AutoDispatchBelowADInplaceOrView below;
    const NormalisedInputs in(query, key, value, mask);
    auto [out, denominators, saved] = normalisedForward(in, causal, eps, true);
    context->save_for_backward({query, key, value, mask.value_or(Tensor()), out, denominators, saved});
    context->saved_data["causal"] = causal;
    context->saved_data["eps"] = eps;
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    checkOnce("normalized_linear_attention");
    const auto kept = context->get_saved_variables();
    const bool causal = context->saved_data["causal"].toBool();
    const NormalisedInputs in(kept[0], kept[1], kept[2], kept[3]);
    const Problem p = in.problem(context->saved_data["eps"].toDouble());
    const Tensor &out = kept[4], &denominators = kept[5], &saved = kept[6];
    const auto options = in.query.options();
    Tensor queryGradient = emptyHeads(p.batch, p.heads, p.length, p.dk, options);
    Tensor keyGradient = emptyHeads(p.batch, p.heads, p.length, p.dk, options);
    Tensor valueGradient = emptyHeads(p.batch, p.heads, p.length, p.dv, options);
    if (valueGradient.numel() == 0) return {queryGradient, keyGradient, valueGradient, Tensor(), Tensor(), Tensor()};
    const Tensor outGradient = ready(gradients[0].to(in.query.scalar_type()));
    const Rows dout(outGradient), quotient(out), dq(queryGradient), dk(keyGradient), dv(valueGradient);
    const float* bottom = floats(denominators);
    const Segments segments(p.count(), p.length);
    ScanWorkers workers(p);
    std::vector<std::vector<float>> tiles(workerCount(), std::vector<float>(kBlock * p.paddedValue));
    const auto loader = [&](const Scan& scan, int64_t head, float* quotients) {
      return [&, head, quotients](int64_t t, int64_t rows, float* to) {
        dout.load(head, t, rows, to, p.paddedValue);
        quotient.load(head, t, rows, quotients, p.paddedValue);
        quotientGradient(to, quotients, p.dv, p.paddedValue, rows, bottom + head * p.length + t, scan.denominatorGradients());
      };
    };
    // The scans hand out no worker number: each segment's pass brings its own tile.
    Tensor entering;
    if (!causal || segments.count > 1) {
      entering = enteringStates(
          p, segments, nullptr, true, !causal, workers, [&](Scan& scan, int64_t head, int64_t begin, int64_t end, float* decay) {
            std::vector<float> quotients(kBlock * p.paddedValue);
            scan.accumulateGradient(head, begin, end, loader(scan, head, quotients.data()), decay);
          });
    }
    const int64_t entries = saved.size(1);
    const auto steps = [&](int64_t) { return segments.steps(p.length); };
    const Tensor carried = causal && steps(0) > 1 ? at::empty({p.count(), p.dk, p.columns}, at::kFloat) : Tensor();
    parallelChains(p.count() * segments.count, steps, [&](int64_t chain, int64_t step, int64_t worker) {
      FlushDenormals flush;
      const int64_t head = chain / segments.count, segment = chain % segments.count;
      Scan& scan = workers[worker];
      const auto load = loader(scan, head, tiles[worker].data());
      const auto [begin, end] = segments.range(segment, steps(chain) - 1 - step, p.length);
      if (!causal) {
        scan.loadState(floats(saved) + head * p.stateSize(), scan.state);
        scan.loadState(floats(entering) + head * (segments.count + 1) * p.stateSize(), scan.stateGradient);
        scan.backwardAll(head, begin, end, load, dq, dk, dv);
        return;
      }
      float* entry = carried.defined() ? carried.data_ptr<float>() + head * p.stateSize() : nullptr;
      scan.loadState(
          segments.count > 1 ? floats(entering) + (head * (segments.count + 1) + segment + 1) * p.stateSize()
          : step > 0         ? entry
                             : nullptr,
          scan.stateGradient);
      for (int64_t t = begin + (end - begin - 1) / kSpacing * kSpacing; t >= begin; t -= kSpacing) {
        scan.loadState(floats(saved) + (head * entries + t / kSpacing) * p.stateSize(), scan.state);
        scan.backward(head, t, std::min(end, t + kSpacing), load, dq, dk, dv, nullptr);
      }
      if (entry) scan.storeState(scan.stateGradient, entry);
    });
    return {queryGradient, keyGradient, valueGradient, Tensor(), Tensor(), Tensor()};
  }
};

Tensor normalizedLinearAttentionAutograd(
    const Tensor& query, const Tensor& key, const Tensor& value, bool causal, double eps, const OptionalTensor& mask) {
  if (!at::GradMode::is_enabled() || !(query.requires_grad() || key.requires_grad() || value.requires_grad())) {
    at::AutoDispatchBelowADInplaceOrView below;
    return normalizedLinearAttention(query, key, value, causal, eps, mask);
  }
  return NormalisedFunction::apply(query, key, value, causal, eps, mask);
}

// --- One token ------------------------------------------------------------------------------------------------------

/// state <- a ⊙ state + kᵀ v, out = scale q state, reading and writing the state once.
MARTLET_VECTOR static void stepState(
    float* state, int64_t dk, int64_t dv, const float* q, const float* k, const float* v, const float* gate, float scale, float* out) {
  std::memset(out, 0, sizeof(float) * dv);
  for (int64_t r = 0; r < dk; ++r) {
    float* row = state + r * dv;
    const float decay = gate[r], key = k[r], query = q[r] * scale;
    for (int64_t c = 0; c < dv; ++c) {
      row[c] = decay * row[c] + key * v[c];
      out[c] += query * row[c];
    }
  }
}

Tensor gatedLinearAttentionStep(
    const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& logGate, const Tensor& state, std::optional<double> scale) {
  const char* name = "gated_linear_attention_step";
  for (const auto& [tensor, argument] : {std::pair<const Tensor&, const char*>{query, "query"}, {key, "key"}, {value, "value"}})
    TORCH_CHECK(tensor.dim() == 3, name, ": ", argument, " must be [batch, heads, width], not ", tensor.sizes());
  const auto token = [](const Tensor& x) { return x.unsqueeze(2); };
  checkInputs(name, token(query), token(key), token(value));
  const int64_t batch = query.size(0), heads = query.size(1), dk = query.size(2), dv = value.size(2);
  TORCH_CHECK(
      state.scalar_type() == at::kFloat && state.device().is_cpu() && state.sizes() == at::IntArrayRef({batch, heads, dk, dv}) && state.is_contiguous(), name,
      ": state must be contiguous float32 [batch, heads, key width, value width] = ", at::IntArrayRef({batch, heads, dk, dv}), ", not ", state.scalar_type(),
      " ", state.sizes(), " with strides ", state.strides());
  const Tensor q = query.to(at::kFloat).contiguous(), k = key.to(at::kFloat).contiguous(), v = value.to(at::kFloat).contiguous();
  Tensor gate;
  if (logGate && logGate->defined()) {
    const auto sizes = logGate->sizes();
    Tensor g = logGate->to(at::kFloat);
    if (sizes == at::IntArrayRef({heads})) g = g.view({1, heads, 1});
    else if (sizes == at::IntArrayRef({batch, heads})) g = g.unsqueeze(2);
    else TORCH_CHECK(sizes == query.sizes(), name, ": log_gate has shape ", sizes, ", expected [heads], [batch, heads] or query's ", query.sizes());
    gate = g.expand({batch, heads, dk}).contiguous();
  }
  Tensor out = at::empty({batch, heads, dv}, at::kFloat);
  const float factor = static_cast<float>(scaleOf(query, scale));
  const float *qs = floats(q), *ks = floats(k), *vs = floats(v), *gs = floats(gate);
  float *states = state.data_ptr<float>(), *outs = out.data_ptr<float>();
  parallelRanges(batch * heads, std::max<int64_t>(1, 32768 / (dk * dv)), [&](int64_t begin, int64_t end, int64_t) {
    FlushDenormals flush;
    std::vector<float> open(dk, 1.0f);
    for (int64_t i = begin; i < end; ++i) {
      if (gs) {
        std::memcpy(open.data(), gs + i * dk, sizeof(float) * dk);
        exponentials(open.data(), dk);
      }
      stepState(states + i * dk * dv, dk, dv, qs + i * dk, ks + i * dk, vs + i * dv, open.data(), factor, outs + i * dv);
    }
  });
  return out.to(query.scalar_type());
}

}  // namespace
}  // namespace martlet

TORCH_LIBRARY_FRAGMENT(martlet, m) {
  // query, key [B, H, L, dk], value [B, H, L, dv], any strides but a last one of 1 (otherwise copied); float32, or bfloat16
  // or float16 computed in float32. log_gate (natural logarithm, <= 0, -inf allowed): none, [H], [B, H, L] or [B, H, L, dk];
  // initial_state [B, H, dk, dv]; scale dk^-1/2 by default. Returns o [B, H, L, dv] in value's type, o.transpose(1, 2)
  // contiguous, and the final state, float32. `chunk` is for the callers' reference form: the result doesn't depend on it, and
  // the kernel's own block is 16 tokens. One thread count gives one result, bit for bit; several differ in rounding where
  // there are fewer heads than threads. The gate's gradient is exact to rounding of the largest term of its running sum.
  // offsets (int64 [sequences + 1], B = 1): the tokens are those of several sequences end to end, each with its own initial and
  // final state [sequences, H, dk, dv].
  m.def(
      "gated_linear_attention(Tensor query, Tensor key, Tensor value, Tensor? log_gate=None, Tensor? initial_state=None, float? scale=None, "
      "int chunk=64, Tensor? offsets=None) -> (Tensor, Tensor)");
  // y_i = φq_i (Σ_j φk_j v_jᵀ) / (φq_i Σ_j φk_j + eps), over j <= i (causal) or all j; features as above and not negative;
  // key_mask bool [B, L], false where there is no key.
  m.def(
      "normalized_linear_attention(Tensor query_features, Tensor key_features, Tensor value, bool causal, float eps=1e-6, Tensor? key_mask=None) "
      "-> Tensor");
  // One token: query, key [B, H, dk], value [B, H, dv], log_gate none, [H], [B, H] or [B, H, dk]; state float32, contiguous,
  // updated in place (one read and one write of it: its bytes are the limit). No gradient.
  m.def(
      "gated_linear_attention_step(Tensor query, Tensor key, Tensor value, Tensor? log_gate, Tensor(a!) state, float? scale=None) -> Tensor");
}

TORCH_LIBRARY_IMPL(martlet, CPU, m) {
  m.impl("gated_linear_attention", martlet::gatedLinearAttention);
  m.impl("normalized_linear_attention", martlet::normalizedLinearAttention);
  m.impl("gated_linear_attention_step", martlet::gatedLinearAttentionStep);
}

TORCH_LIBRARY_IMPL(martlet, Autograd, m) {
  m.impl("gated_linear_attention", martlet::gatedLinearAttentionAutograd);
  m.impl("normalized_linear_attention", martlet::normalizedLinearAttentionAutograd);
}
