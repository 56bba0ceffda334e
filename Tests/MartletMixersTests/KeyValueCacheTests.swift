import MartletMixers
import Testing

@Suite struct KeyValueCacheTests {
  private func normal(_ shape: [Int], seed: UInt64 = 3) -> Tensor { .randomNormal(shape, generator: RandomGenerator(seed: seed)) }

  private func attention(window: Int? = nil, softcap: Double? = nil, scale: Double? = nil) -> SoftmaxAttention {
    SoftmaxAttention(
      .init(
        width: 24, heads: 4, keyValueHeads: 2, headWidth: 8, window: window, rotaryScaling: .linear(factor: 2), rotaryWidth: 4,
        bias: true, outputBias: false, queryKeyNorm: true, scale: scale, softcap: softcap), generator: RandomGenerator(seed: 1))
  }

  /// Pieces of many sizes, also larger than a window's ring, continue one another as the parallel form does.
  @Test(arguments: [nil, 5] as [Int?], [nil, 0.7] as [Double?]) func piecesContinueOneAnother(window: Int?, softcap: Double?) {
    let layer = attention(window: window, softcap: softcap, scale: 0.3)
    let x = normal([2, 40, 24])
    withoutGradient {
      let whole = layer(x)
      for pieces in [[40], [1, 1, 38], [3, 9, 1, 1, 1, 20, 5], [17, 1, 22]] {
        for capacity in [1, 64] {
          var state = layer.initialState(batch: 2, cache: CacheOptions(capacity: capacity))
          let parts = x.split(sizes: pieces, axis: 1).map { layer.advance($0, &state) }
          let error = relativeError(concatenated(parts, axis: 1), whole)
          #expect(error <= 1e-5, "window \(window ?? -1), pieces \(pieces), capacity \(capacity): \(error), allowed 1e-5")
          if let window { #expect(state.capacity <= window + 1, "a ring keeps the window only, not \(state.capacity)") }
        }
      }
    }
  }

  /// Sequences that were read alone go on together, each as if it were alone; rows can be dropped, repeated and shortened.
  @Test(arguments: [nil, 5] as [Int?]) func rowsOfDifferentLengthsGoOnTogether(window: Int?) {
    let layer = attention(window: window)
    let lengths = [3, 11, 7]
    let x = normal([3, 16, 24])
    withoutGradient {
      let whole = layer(x)
      var states = lengths.enumerated().map { row, length in
        var state = layer.initialState(batch: 1)
        _ = layer.advance(x[row..<(row + 1), ..<length], &state)
        return state
      }
      states.swapAt(0, 2)
      var state = KeyValueCache.joined(states).selecting([2, 1, 0])
      #expect(state.lengths == lengths)
      for step in 0..<4 {
        let rows = lengths.enumerated().map { row, length in x[row, length + step] }
        let y = layer.step(stacked(rows), &state)
        let expected = stacked(lengths.enumerated().map { row, length in whole[row, length + step] })
        let error = relativeError(y, expected)
        #expect(error <= 1e-5, "step \(step): \(error), allowed 1e-5")
      }
      // Two positions at once for rows of different lengths.
      let more = stacked(lengths.enumerated().map { row, length in x[row, (length + 4)..<(length + 5)] })
      let y = layer.advance(concatenated([more, more], axis: 1), &state)
      #expect(state.lengths == lengths.map { $0 + 6 })
      #expect(relativeError(y[.all, 0], stacked(lengths.enumerated().map { row, length in whole[row, length + 4] })) <= 1e-5)
    }
  }

  @Test func shorteningGoesBack() {
    let layer = attention()
    let x = normal([1, 20, 24])
    withoutGradient {
      let whole = layer(x)
      var state = layer.initialState(batch: 1)
      _ = layer.advance(x[.all, ..<9], &state)
      _ = layer.advance(normal([1, 5, 24], seed: 9), &state)
      let wentBack = state.truncate(to: 9)
      #expect(wentBack)
      let y = layer.advance(x[.all, 9...], &state)
      #expect(relativeError(y, whole[.all, 9...]) <= 1e-5)
      var ring = attention(window: 4).initialState(batch: 1)
      _ = attention(window: 4).advance(x, &ring)
      let ringWentBack = ring.truncate(to: 9)
      #expect(!ringWentBack, "a ring that has turned has lost what a shorter sequence needs")
    }
  }

  /// Fewer bits: bfloat16 within 2^-8, int8 within 1/254 of a row's largest number, and a quarter of the bytes.
  @Test func smallerStorageIsNear() {
    let layer = attention()
    let x = normal([2, 100, 24])
    withoutGradient {
      let whole = layer(x)
      var bytes: [Int] = []
      for (storage, tolerance) in [(CacheOptions.Storage.full, 1e-5), (.bfloat16, 0.01), (.int8, 0.01)] {
        var state = layer.initialState(batch: 2, cache: CacheOptions(capacity: 128, storage: storage))
        var parts = [layer.advance(x[.all, ..<60], &state)]
        for t in 60..<100 { parts.append(layer.step(x[.all, t], &state).expandedDimension(1)) }
        let error = relativeError(concatenated(parts, axis: 1), whole)
        #expect(error <= tolerance, "\(storage): \(error), allowed \(tolerance)")
        bytes.append(layer.stateBytes(state))
      }
      #expect(bytes[1] * 2 == bytes[0] && bytes[2] * 2 < bytes[0], "\(bytes)")
    }
  }

  @Test func packedSequencesDoNotSeeOneAnother() {
    for causal in [true, false] {
      let layer = SoftmaxAttention(.init(width: 32, heads: 4, isCausal: causal, bias: true), generator: RandomGenerator(seed: 1))
      let lengths = [5, 1, 12, 3]
      let parts = lengths.enumerated().map { normal([1, $1, 32], seed: UInt64($0)) }
      withoutGradient {
        let packed = layer(concatenated(parts, axis: 1), MixingContext(packing: SequencePacking(lengths: lengths)))
        let alone = concatenated(parts.map { layer($0) }, axis: 1)
        #expect(relativeError(packed, alone) <= 1e-5)
      }
    }
  }
}
