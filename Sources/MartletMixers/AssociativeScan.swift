import MartletNN

/// The inclusive scan of an associative operation along an axis, y_t = x_0 ∘ x_1 ∘ … ∘ x_t, in ⌈log₂ L⌉ rounds of operations on whole
/// tensors (Hillis & Steele 1986): round r joins each element with the one 2^r before it.
///
/// - Parameters:
///   - elements: the parts of an element, tensors of equal length along `axis`.
///   - combine: the elements joined: the earlier one is the left operand. Must be associative; it need not commute.
/// - Returns: the parts of y, of the same shapes.
public func associativeScan(
  _ elements: [Tensor], axis: Int, _ combine: (_ earlier: [Tensor], _ later: [Tensor]) -> [Tensor]
) -> [Tensor] {
  guard let length = elements.first?.dim(axis) else { return [] }
  var scanned = elements
  var reach = 1
  while reach < length {
    let joined = combine(
      scanned.map { $0.narrowed(axis: axis, start: 0, length: length - reach) },
      scanned.map { $0.narrowed(axis: axis, start: reach, length: length - reach) })
    scanned = zip(scanned, joined).map { concatenated([$0.narrowed(axis: axis, start: 0, length: reach), $1], axis: axis) }
    reach *= 2
  }
  return scanned
}
