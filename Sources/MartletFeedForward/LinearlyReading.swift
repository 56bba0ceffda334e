extension MLP: LinearlyReading {
  public var inputLayers: [any LinearLayer] { [up] }
}

extension GatedMLP: LinearlyReading {
  public var inputLayers: [any LinearLayer] { [gate, up] }
}
