import MartletCatalog

/// The tensors that `probe` reads and writes, in words: those of the method's kind, or its own where the kind has no common ones.
struct ProbeContract {
  let reads: String
  let writes: String

  /// Of procedures, tasks and analyses, by id.
  private static let own: [String: (reads: String, writes: String)] = [
    "spt": (
      "x [batch, length, channels]; hidden [batch, length] bool, true at the positions to restore; weight.<key> for each parameter given",
      "loss, the mean absolute error over hidden positions; grad.<key>"
    )
  ]

  init(_ entry: MethodEntry) {
    let kind = entry.kind
    switch kind {
    case .mixer, .feedForward, .model:
      reads = """
        x (or tokens); optional mask; weight.<key> for each parameter given, the others keep their seeded initial value; optional grad_y
        """
      writes =
        "y; with grad_y also grad_x and grad.<key>"
        + (kind == .mixer ? ". Recurrent mixers run step by step with {\"mode\": \"recurrent\"}" : "")
    case .adapter:
      reads = "weight; optional bias; x; param.<key>"
      writes = "y, merged_weight, param.<key>"
    case .compressor:
      reads = "weight; optional bias; activations [n, in]"
      writes = "weight_hat, y_hat, the stored parts part.<key>, bytes"
    case .optimizer:
      reads = "param; grads [steps, …]"
      writes = "params [steps, …], state_bytes"
    case .procedure, .task, .analysis:
      reads = Self.own[entry.id]?.reads ?? "depends on the method"
      writes = Self.own[entry.id]?.writes ?? "depends on the method"
    }
  }
}
