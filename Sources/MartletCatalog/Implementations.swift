extension Catalog {
  /// The registered implementations by id: add a line here when a method can be probed and reproduced.
  static let registered: [String: any MethodImplementation] = [:]
}
