private enum Operators {
  static let conv1d = Operator("aten::conv1d")
  static let conv2d = Operator("aten::conv2d")
  static let shortConvolution = Operator("martlet::short_convolution")
}

/// Cross-correlation along one axis. x: [batch, inChannels, length]; weight [outChannels, inChannels/groups, kernel].
/// `groups == inChannels` is the depthwise form.
public final class Conv1d: Module {
  @Parameter public var weight: Tensor
  @Parameter public var bias: Tensor?
  public let stride, padding, dilation, groups: Int

  public init(
    _ inChannels: Int, _ outChannels: Int, kernel: Int, stride: Int = 1, padding: Int = 0, dilation: Int = 1, groups: Int = 1,
    bias: Bool = true, generator: RandomGenerator
  ) {
    require(
      inChannels % groups == 0 && outChannels % groups == 0,
      "\(groups) groups don't divide \(inChannels) and \(outChannels) channels")
    (self.stride, self.padding, self.dilation, self.groups) = (stride, padding, dilation, groups)
    super.init()
    let bound = 1 / Double(inChannels / groups * kernel).squareRoot()
    weight = Initializer.uniform(bound)([outChannels, inChannels / groups, kernel], generator)
    self.bias = bias ? Initializer.uniform(bound)([outChannels], generator) : nil
  }

  public func callAsFunction(_ x: Tensor) -> Tensor {
    Operators.conv1d(
      .tensor(x), .tensor(weight), .tensor(bias), .ints([stride]), .ints([padding]), .ints([dilation]), .int(groups))
  }
}

/// Cross-correlation over images. x: [batch, inChannels, height, width]; weight [outChannels, inChannels/groups, kh, kw].
public final class Conv2d: Module {
  @Parameter public var weight: Tensor
  @Parameter public var bias: Tensor?
  public let stride, padding, dilation, groups: Int

  public init(
    _ inChannels: Int, _ outChannels: Int, kernel: Int, stride: Int = 1, padding: Int = 0, dilation: Int = 1, groups: Int = 1,
    bias: Bool = true, generator: RandomGenerator
  ) {
    require(
      inChannels % groups == 0 && outChannels % groups == 0,
      "\(groups) groups don't divide \(inChannels) and \(outChannels) channels")
    (self.stride, self.padding, self.dilation, self.groups) = (stride, padding, dilation, groups)
    super.init()
    let bound = 1 / Double(inChannels / groups * kernel * kernel).squareRoot()
    weight = Initializer.uniform(bound)([outChannels, inChannels / groups, kernel, kernel], generator)
    self.bias = bias ? Initializer.uniform(bound)([outChannels], generator) : nil
  }

  public func callAsFunction(_ x: Tensor) -> Tensor {
    Operators.conv2d(
      .tensor(x), .tensor(weight), .tensor(bias), .ints([stride, stride]), .ints([padding, padding]),
      .ints([dilation, dilation]), .int(groups))
  }
}

/// A causal depthwise convolution with a short kernel and an optional SiLU after it, as used before recurrent mixers.
/// x: [batch, length, width] → the same shape; the streaming state is the last kernel − 1 inputs. On CPU in float32 it runs on the
/// kernel `martlet::short_convolution`.
public final class ShortConvolution: Module {
  /// [width, kernel]; the last column weighs the current position.
  @Parameter public var weight: Tensor
  public let kernel: Int
  public let activated: Bool

  public init(_ width: Int, kernel: Int = 4, activated: Bool = true, generator: RandomGenerator) {
    self.kernel = kernel
    self.activated = activated
    super.init()
    weight = Initializer.uniform(1 / Double(kernel).squareRoot())([width, kernel], generator)
  }

  /// offsets: where sequences begin and end that x [1, total, width] holds end to end, [sequences + 1] int64.
  public func callAsFunction(_ x: Tensor, offsets: Tensor? = nil) -> Tensor {
    causalConvolution(x, weight: weight, activated: activated, offsets: offsets)
  }

  /// [batch, kernel − 1, width] of zeros.
  public func initialState(batch: Int) -> Tensor {
    Tensor.zeros([batch, kernel - 1, weight.dim(0)], dtype: weight.dtype, device: weight.device)
  }

  /// One position. x: [batch, width].
  public func step(_ x: Tensor, _ state: inout Tensor) -> Tensor {
    let window = concatenated([state, x.expandedDimension(1)], axis: 1)  // [B, k, D]
    state = window[.all, 1...]
    let y = (window * weight.T).sum(axis: 1)
    return activated ? y.silu() : y
  }

  /// Several positions from a state. x: [batch, length, width].
  public func advance(_ x: Tensor, _ state: inout Tensor) -> Tensor {
    let y = causalConvolution(x, weight: weight, past: state, activated: activated)
    let window = concatenated([state, x], axis: 1)
    state = window.narrowed(axis: 1, start: window.dim(1) - kernel + 1, length: kernel - 1)
    return y
  }
}

/// y_t = Σ_k w_k x_{t−K+1+k} + b for every channel alone, with SiLU when `activated`.
///
/// - Parameters:
///   - x: [batch, length, width]; weight: [width, K], whose last column weighs the current position; bias: [width].
///   - past: the K − 1 positions before the first, [batch, K − 1, width]; `nil` for zeros.
///   - offsets: where sequences begin and end that x [1, total, width] holds end to end, [sequences + 1] int64; without `past`.
public func causalConvolution(
  _ x: Tensor, weight: Tensor, bias: Tensor? = nil, past: Tensor? = nil, activated: Bool = true, offsets: Tensor? = nil
) -> Tensor {
  let fits = x.device == .cpu && weight.dim(1) <= 16 && [x, weight, bias, past].allSatisfy { $0 == nil || $0?.dtype == .float32 }
  guard fits else { return causalConvolutionReference(x, weight: weight, bias: bias, past: past, activated: activated, offsets: offsets) }
  return Operators.shortConvolution(.tensor(x), .tensor(weight), .tensor(bias), .tensor(past), .bool(activated), .tensor(offsets))
}

/// The same by a general convolution, on every device and dtype: the oracle.
public func causalConvolutionReference(
  _ x: Tensor, weight: Tensor, bias: Tensor? = nil, past: Tensor? = nil, activated: Bool = true, offsets: Tensor? = nil
) -> Tensor {
  if let ends = offsets?.toArray(Int.self) {
    return concatenated(
      zip(ends, ends.dropFirst()).map { start, end in
        causalConvolutionReference(
          x.narrowed(axis: 1, start: start, length: end - start), weight: weight, bias: bias, activated: activated)
      }, axis: 1)
  }
  if x.dim(1) == 0 { return x }
  let (width, kernel) = (weight.dim(0), weight.dim(1))
  let channelsFirst = past.map { concatenated([$0, x], axis: 1).swappedAxes(1, 2) } ?? x.swappedAxes(1, 2).padded([kernel - 1, 0])
  let y = Operators.conv1d(
    .tensor(channelsFirst), .tensor(weight.expandedDimension(1)), .tensor(bias), .ints([1]), .ints([0]), .ints([1]), .int(width)
  ).swappedAxes(1, 2)
  return activated ? y.silu() : y
}
