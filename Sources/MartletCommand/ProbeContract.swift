import MartletCatalog

/// The tensors that `probe` reads and writes for a kind of method, in words.
struct ProbeContract {
  let reads: String
  let writes: String

  init(_ kind: MethodEntry.Kind) {
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
      reads = "depends on the method"
      writes = "depends on the method"
    }
  }
}
