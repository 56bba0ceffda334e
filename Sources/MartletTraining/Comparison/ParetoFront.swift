/// The points that no other beats in both respects: cheaper and better. Whoever chooses sensibly chooses one of them.
public enum ParetoFront {
  /// Indices of the front's points, cheapest first.
  ///
  /// A point is beaten by another that costs no more and is no worse, and is strictly ahead in one of the two; of equal points all
  /// stay. Points with a coordinate that is not finite are never on the front.
  public static func indices(cost: [Double], quality: [Double], higherIsBetter: Bool) -> [Int] {
    precondition(cost.count == quality.count, "\(cost.count) costs, but \(quality.count) qualities")
    let sign = higherIsBetter ? 1.0 : -1.0
    let order = cost.indices.filter { cost[$0].isFinite && quality[$0].isFinite }
      .sorted { (cost[$0], -sign * quality[$0], $0) < (cost[$1], -sign * quality[$1], $1) }
    var front: [Int] = []
    for index in order {
      guard let last = front.last else {
        front.append(index)
        continue
      }
      let isBetter = sign * quality[index] > sign * quality[last]
      let isEqual = quality[index] == quality[last] && cost[index] == cost[last]
      if isBetter || isEqual { front.append(index) }
    }
    return front
  }
}
