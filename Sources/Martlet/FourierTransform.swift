private enum FFT {
  static let fft = Operator("aten::fft_fft")
  static let ifft = Operator("aten::fft_ifft")
  static let rfft = Operator("aten::fft_rfft")
  static let irfft = Operator("aten::fft_irfft")
  static let fft2 = Operator("aten::fft_fft2")
  static let ifft2 = Operator("aten::fft_ifft2")
}

/// Discrete Fourier transforms along one axis; `length` pads with zeros or truncates first. The inverse divides by n.
extension Tensor {
  public func fft(length: Int? = nil, axis: Int = -1) -> Tensor { FFT.fft(.tensor(self), length.map { .int($0) } ?? .none, .int(axis)) }
  public func ifft(length: Int? = nil, axis: Int = -1) -> Tensor { FFT.ifft(.tensor(self), length.map { .int($0) } ?? .none, .int(axis)) }
  /// Of a real tensor: the n/2 + 1 non-negative frequencies.
  public func rfft(length: Int? = nil, axis: Int = -1) -> Tensor { FFT.rfft(.tensor(self), length.map { .int($0) } ?? .none, .int(axis)) }
  /// The real tensor of `length` whose `rfft` this is.
  public func irfft(length: Int? = nil, axis: Int = -1) -> Tensor {
    FFT.irfft(.tensor(self), length.map { .int($0) } ?? .none, .int(axis))
  }
  /// Over the last two axes.
  public func fft2() -> Tensor { FFT.fft2(.tensor(self)) }
  public func ifft2() -> Tensor { FFT.ifft2(.tensor(self)) }
}
