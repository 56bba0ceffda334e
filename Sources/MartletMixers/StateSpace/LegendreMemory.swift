import Foundation
import MartletNN

private let product = Operator("martlet::linear")
private let filterBank = Operator("martlet::filter_bank")
private let filterSpectra = Operator("martlet::filter_spectra")
private let systemStates = Operator("martlet::system_states")

/// m_t = Ā m_{t−1} + B̄ u_t for every t. A and B receive no gradients.
///
/// It is made in one of two forms.
///
/// **In chunks** of C positions. For the lags l < C, Ā^l = Σ_i c_i(l) M_i with r functions c_i: a window that is long beside d changes
/// little within a chunk, so that r is small. With the state m before the chunk and positions counted in it,
///
///     m_t = Σ_i v_{t,i} M_i B̄ + Σ_i c_i(t) M_i Ā m,    v_{t,i} = Σ_{s≤t} c_i(t − s) u_s
///
/// 4 r operations a number for the product and 2 r d/C for the M_i Ā m. The states before the chunks are a scan, in log₂ of their number of
/// rounds. In float32 the c_i are singular vectors that leave out 3e-8 of the greatest, else all C = 16 of them.
///
/// **By Fourier transforms**, from a state of zeros: the convolution of u with the d impulse responses Ā^l B̄, whose transforms are kept
/// (Chilkuri & Eliasmith 2021, eqs. 23–26), with 5 log₂ L operations a number whatever the window. In float32 on the CPU it is taken where it is
/// estimated to be faster, which is where the window is short beside d.
///
/// - Parameters:
///   - u: [B, L]; A: [d, d]; B: [d].
///   - from: the state before the first position, [B, d]; `nil` for zeros.
/// - Returns: [B, L, d].
public func legendreMemory(_ u: Tensor, A: Tensor, B: Tensor, from start: Tensor? = nil) -> Tensor {
  LegendreMemory(A: A, B: B)(u, from: start)
}

/// ``legendreMemory(_:A:B:from:)`` of one Ā and B̄ for many signals: what is made of them is kept.
public struct LegendreMemory: Sendable {
  public enum Form: Sendable {
    case chunks
    /// In float32 on the CPU and from a state of zeros only.
    case transforms
  }

  private let forms: LegendreForms

  /// - Parameters:
  ///   - A: [d, d]; B: [d].
  public init(A: Tensor, B: Tensor) { self.init(LegendreForms(), A, B) }

  init(_ forms: LegendreForms, _ A: Tensor, _ B: Tensor) {
    forms.set(A, B)
    self.forms = forms
  }

  /// - Parameters:
  ///   - u: [B, L].
  ///   - from: the state before the first position, [B, d]; `nil` for zeros.
  ///   - form: `nil` for the one that is estimated to be faster.
  /// - Returns: [B, L, d].
  public func callAsFunction(_ u: Tensor, from start: Tensor? = nil, by form: Form? = nil) -> Tensor {
    let isTransformable = start == nil && u.dim(1) > 0 && fusedKernelsServe(u)
    require(isTransformable || form != .transforms, "transforms need a float32 signal on the CPU and no state before it")
    if isTransformable, form == .transforms || form == nil && forms.transformIsFaster(length: u.dim(1)) {
      let (spectra, capacity) = forms.spectra(length: u.dim(1))
      return filterBank(.tensor(u), .tensor(spectra), .int(forms.width), .int(capacity))
    }
    return inChunks(u, forms, from: start ?? .zeros([u.dim(0), forms.width], dtype: u.dtype, device: u.device))
  }
}

private func multiply(_ x: Tensor, _ transposed: Tensor) -> Tensor { product(.tensor(x), .tensor(transposed), .none) }

private func inChunks(_ u: Tensor, _ forms: LegendreForms, from start: Tensor) -> Tensor {
  let (batch, length, d) = (u.dim(0), u.dim(1), start.dim(1))
  let chunks = forms.chunks(like: u)
  let size = chunks.size
  let count = (length + size - 1) / size
  guard count > 0 else { return .zeros([batch, 0, d], dtype: u.dtype, device: u.device) }
  var starts = start.expandedDimension(1)  // [B, n, d]: the states before the chunks
  if count > 1 {
    let whole = u.narrowed(axis: 1, start: 0, length: (count - 1) * size).reshaped(batch, count - 1, size)
    starts = scan(multiply(whole, chunks.last), from: start) { forms.jump(chunks, doubled: $0) }
  }
  if fusedKernelsServe(u) {
    return systemStates(
      .tensor(u.contiguous()), .tensor(starts.contiguous()), .tensor(chunks.basis), .tensor(chunks.writes), .tensor(chunks.inputStrips),
      .tensor(chunks.carryStrips), .tensor(chunks.inputStripsBack), .tensor(chunks.carryStripsBack))
  }
  let padded = count * size == length ? u : u.padded([0, count * size - length])
  let v = padded.reshaped(batch, count, size).matmul(chunks.inputs).reshaped(batch, count, size, chunks.rank)
  let carried = starts.matmul(chunks.carries).reshaped(batch, count, chunks.rank, d)
  let left = concatenated([v, chunks.basis.T.broadcast(to: [batch, count, size, chunks.rank])], axis: -1)
  let right = concatenated([chunks.writes.broadcast(to: [batch, count, chunks.rank, d]), carried], axis: -2)
  return left.matmul(right).reshaped(batch, count * size, d).narrowed(axis: 1, start: 0, length: length)
}

/// The states s_0 … s_n of s_{j+1} = P s_j + w_j, [B, n + 1, d], from s_0 and w [B, n, d], in log₂ n rounds: those at even places from the pairs
/// P w_{2j} + w_{2j+1} with P², those at odd places one step on from these.
///
/// - Parameter power: P^{2^k}, [d, d].
private func scan(_ w: Tensor, from start: Tensor, round: Int = 0, _ power: (Int) -> Tensor) -> Tensor {
  let (batch, count, d) = (w.dim(0), w.dim(1), w.dim(2))
  let pairs = count / 2
  let jump = power(round)
  func every(_ first: Int, _ taken: Int) -> Tensor {  // w_first, w_{first + 2}, …
    let rows = w.narrowed(axis: 1, start: 0, length: 2 * taken).reshaped(batch, taken, 2, d)
    return rows.selected(axis: 2, first)
  }
  var even = start.expandedDimension(1)
  if pairs > 0 { even = scan(multiply(every(0, pairs), jump) + every(1, pairs), from: start, round: round + 1, power) }
  // s_{2j} for 2j ≤ n are known; s_{2j+1} for 2j < n follow.
  let odd = (count + 1) / 2
  let first = count % 2 == 0 ? every(0, pairs) : concatenated([every(0, pairs), w.narrowed(axis: 1, start: count - 1, length: 1)], axis: 1)
  let next = multiply(even.narrowed(axis: 1, start: 0, length: odd), jump) + first
  let both = stacked([even.narrowed(axis: 1, start: 0, length: odd), next], axis: 2).reshaped(batch, 2 * odd, d)
  return count % 2 == 0 ? concatenated([both, even.narrowed(axis: 1, start: pairs, length: 1)], axis: 1) : both
}

/// The recurrence, position by position: the oracle. Arguments and result as ``legendreMemory(_:A:B:from:)``.
public func legendreMemoryReference(_ u: Tensor, A: Tensor, B: Tensor, from start: Tensor? = nil) -> Tensor {
  var m = start ?? .zeros([u.dim(0), A.dim(0)], dtype: u.dtype, device: u.device)
  let states = (0..<u.dim(1)).map { t in
    m = m.matmul(A.T) + u.narrowed(axis: 1, start: t, length: 1) * B
    return m
  }
  return stacked(states, axis: 1)
}

/// The convolution of u with the d impulse responses Ā^l B̄ by Fourier transforms: one of u, d of the responses and d back
/// (Chilkuri & Eliasmith 2021, eqs. 23–26). From a memory of zeros; arguments and result as ``legendreMemory(_:A:B:from:)``.
public func legendreMemoryConvolution(_ u: Tensor, A: Tensor, B: Tensor) -> Tensor {
  let length = u.dim(1)
  let responses = legendreResponses(A.to(.float64), B.to(.float64), length: length).to(u.dtype)
  let transformed = u.rfft(length: 2 * length).expandedDimension(1) * responses.rfft(length: 2 * length)
  return transformed.irfft(length: 2 * length)[.ellipsis, ..<length].swappedAxes(1, 2)
}

/// Ā^l B̄ for l = 0..<length, [d, length].
func legendreResponses(_ A: Tensor, _ B: Tensor, length: Int) -> Tensor {
  powers(A, of: B.expandedDimension(1), count: length).selected(axis: 2, 0)
}

/// A^l X for l = 0..<count and X [d, k], [d, count, k], doubling the known ones.
private func powers(_ A: Tensor, of X: Tensor, count: Int) -> Tensor {
  let (d, k) = (X.dim(0), X.dim(1))
  var (known, power) = (X, A)
  while known.dim(1) < count * k {
    known = concatenated([known, power.matmul(known)], axis: 1)
    if known.dim(1) < count * k { power = power.matmul(power) }
  }
  return known.narrowed(axis: 1, start: 0, length: count * k).reshaped(d, count, k)
}

/// What is made of Ā and B̄, in float64, when it is first asked for, and kept as long as they are the same.
final class LegendreForms: @unchecked Sendable {
  /// The chunk with as many functions as lags.
  static let shortChunk = 16
  /// Spectra of so many lengths are kept, 8 d bytes a position.
  private static let keptSpectra = 4

  /// The matrices of the form in chunks: `basis` holds the r functions c_i of C lags.
  struct Chunks {
    let basis: Tensor  // c, [r, C]
    let writes: Tensor  // M_i B̄, [r, d]
    let inputs: Tensor  // c_i(t − s) for s ≤ t, [C of s, C of t · r]
    let carries: Tensor  // M_i Ā, [d of the state before, r · d]
    let last: Tensor  // Ā^{C − 1 − s} B̄, [d, C]: the chunk's last state of its inputs
    /// Sixteen columns one after another, as martlet::system_states takes them: of the inputs with t and i exchanged, of the carries, and
    /// of both transposed.
    let inputStrips, carryStrips, inputStripsBack, carryStripsBack: Tensor
    var rank: Int { basis.dim(0) }
    var size: Int { basis.dim(1) }
  }

  private let lock = NSLock()
  private var system: (A: Tensor, B: Tensor)?
  private var planned: Plan?
  private var chunks: Chunks?
  private var jumps: [Tensor] = []  // Ā^C, Ā^2C, Ā^4C, …, of `chunks`
  private var spectra: [(capacity: Int, spectra: Tensor)] = []  // last used last

  var width: Int { lock.withLock { system?.B.dim(0) ?? 0 } }

  func set(_ A: Tensor, _ B: Tensor) {
    lock.withLock {
      if let system, system.A.dtype == A.dtype, system.A.device == A.device, system.A.isEqual(to: A), system.B.isEqual(to: B) { return }
      withoutGradient { system = (A.detached().copy(), B.detached().copy()) }
      (planned, chunks, jumps, spectra) = (nil, nil, [], [])
    }
  }

  private var exact: (A: Tensor, B: Tensor) {
    guard let system else { preconditionFailure("Ā and B̄ have not been set") }
    return (system.A.to(.cpu).to(.float64), system.B.to(.cpu).to(.float64))
  }

  // MARK: Chunks

  /// The chunk of least cost in float32, and its functions.
  private struct Plan {
    let basis: Tensor  // [r, C]
    /// Nanoseconds a number of the states, by operations at 75 a nanosecond: the block product's rate less its copies and first touches.
    let cost: Double

    /// Functions of the lag that all entries of Ā^l are made of to 3e-8 of the greatest: the singular vectors of Ā^l Z against the lag, where
    /// Z are 16 random columns, which see every function that the d columns of Ā^l see.
    init(_ A: Tensor) {
      let d = A.dim(0)
      let sketch = Tensor.randomNormal([d, min(d, 16)], dtype: .float64, generator: RandomGenerator(seed: 0))
      // Ā^l for all lags takes C d² numbers and C d³ operations, once.
      let sizes = [16, 32, 64, 128].filter { $0 == 16 || $0 * d * d <= 1 << 24 }
      let trajectories = powers(A, of: sketch, count: sizes[sizes.count - 1]).swappedAxes(0, 1).reshaped(sizes[sizes.count - 1], -1)
      var best: (basis: Tensor, cost: Double)?
      for size in sizes {
        let (u, s, _) = trajectories.narrowed(axis: 0, start: 0, length: size).svd()
        let values = s.toArray(Double.self)
        var (rank, tail) = (values.count, 0.0)
        while rank > 1 {
          tail += values[rank - 1] * values[rank - 1]
          if tail.squareRoot() > 3e-8 * values[0] { break }
          rank -= 1
        }
        let (r, n) = (Double(rank), Double(size))
        let cost = (4 * r + 2 * r * Double(d) / n + r * (n + 1) / Double(d)) / 75
        if cost < best?.cost ?? .infinity { best = (u.narrowed(axis: 1, start: 0, length: rank).T.contiguous(), cost) }
      }
      (basis, cost) = best ?? (.eye(16, dtype: .float64), .infinity)
    }
  }

  private func plan() -> Plan {
    if let planned { return planned }
    let made = withoutGradient { Plan(exact.A) }
    planned = made
    return made
  }

  func chunks(like x: Tensor) -> Chunks {
    lock.withLock {
      if let chunks, chunks.basis.dtype == x.dtype, chunks.basis.device == x.device { return chunks }
      let made = withoutGradient { makeChunks(x.dtype == .float32 ? plan().basis : .eye(Self.shortChunk, dtype: .float64), like: x) }
      (chunks, jumps) = (made, [])
      return made
    }
  }

  private func makeChunks(_ basis: Tensor, like x: Tensor) -> Chunks {
    let (a, b) = exact
    let (rank, size, d) = (basis.dim(0), basis.dim(1), a.dim(0))
    let ofLags = powers(a, of: .eye(d, dtype: .float64), count: size).swappedAxes(0, 1)  // [C, d, d]
    let spanned = basis.matmul(ofLags.reshaped(size, d * d)).reshaped(rank, d, d)  // M, [r, d, d]
    let c = basis.toArray(Double.self)
    var lagged = [Double](repeating: 0, count: rank * size * size)  // [r, s, t]
    for i in 0..<rank {
      for s in 0..<size {
        for t in s..<size { lagged[(i * size + s) * size + t] = c[i * size + t - s] }
      }
    }
    let inputs = Tensor(lagged, [rank, size, size])
    let carries = spanned.matmul(a).transposed(2, 0, 1)  // [d of before, r, d]
    func ready(_ m: Tensor) -> Tensor { m.to(x.dtype).to(x.device).contiguous() }
    func strips(_ m: Tensor) -> Tensor {
      let (rows, columns) = (m.dim(0), m.dim(1))
      return ready(m.padded([0, (16 - columns % 16) % 16]).reshaped(rows, -1, 16).swappedAxes(0, 1))
    }
    let byPosition = inputs.transposed(1, 2, 0).reshaped(size, size * rank)  // s against (t, i)
    return Chunks(
      basis: ready(basis), writes: ready(spanned.matmul(b)), inputs: ready(byPosition), carries: ready(carries.reshaped(d, rank * d)),
      last: ready(ofLags.flipped(axis: 0).matmul(b).T), inputStrips: strips(inputs.swappedAxes(0, 1).reshaped(size, rank * size)),
      carryStrips: strips(carries.reshaped(d, rank * d)), inputStripsBack: strips(byPosition.T),
      carryStripsBack: strips(carries.reshaped(d, rank * d).T))
  }

  /// Ā^{C 2^k}.
  func jump(_ chunks: Chunks, doubled k: Int) -> Tensor {
    lock.withLock {
      withoutGradient {
        while jumps.count <= k {
          let power = exact.A.matrixPower(chunks.size << jumps.count)
          jumps.append(power.to(chunks.basis.dtype).to(chunks.basis.device))
        }
        return jumps[k]
      }
    }
  }

  // MARK: Transforms

  /// By the times of either form on a core with AVX2: the transforms do some 36 operations a nanosecond, and wait for memory where a spectrum
  /// is larger than the second-level cache. They transform sixteen responses at once.
  func transformIsFaster(length: Int) -> Bool {
    let d = width
    let capacity = Double(Self.capacity(length))
    let transforms = Double((d + 15) / 16 * 16) / Double(d) * (5 * log2(max(capacity, 2)) / 36 + (capacity > 16384 ? 0.8 : 0))
    return lock.withLock { transforms < plan().cost }
  }

  /// The transforms' sizes: a power of two times 1, 3 or 5.
  private static func capacity(_ length: Int) -> Int {
    [1, 3, 5].map { odd in sequence(first: odd) { $0 * 2 }.first { $0 >= length } ?? length }.min() ?? length
  }

  /// The transforms of the impulse responses for signals of at least so many positions.
  func spectra(length: Int) -> (spectra: Tensor, capacity: Int) {
    let capacity = Self.capacity(length)
    return lock.withLock {
      if let i = spectra.firstIndex(where: { $0.capacity == capacity }) {
        let known = spectra.remove(at: i)
        spectra.append(known)
      } else {
        let made = withoutGradient {
          let (a, b) = exact
          return filterSpectra(.tensor(legendreResponses(a, b, length: capacity).to(.float32)), .int(capacity))
        }
        spectra.append((capacity, made))
        if spectra.count > Self.keptSpectra { spectra.removeFirst() }
      }
      return (spectra[spectra.count - 1].spectra, capacity)
    }
  }
}
