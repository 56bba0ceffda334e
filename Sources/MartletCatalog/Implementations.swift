import MartletMixers

extension Catalog {
  /// The registered implementations by id: add a line here when a method can be probed and reproduced.
  static let registered: [String: any MethodImplementation] = [
    "softmax": MixerImplementation(
      id: "softmax", kind: .softmax, source: "Vaswani et al. 2017, §3.2, equation 1; grouped queries: Ainslie et al. 2023"),
    "linear": MixerImplementation(id: "linear", kind: .linear, source: "Katharopoulos et al. 2020, §3.2–3.4, equations 4–20"),
    "gla": MixerImplementation(id: "gla", kind: .gla, source: "Yang et al. 2023, §4, equations 3–7", experiment: reproduceGLA),
    "s4": MixerImplementation(
      id: "s4", kind: .s4, source: "Gu et al. 2021, §2–3, theorems 1–3, algorithm 1; appendix C for kernel and recurrence",
      experiment: reproduceS4),
    "spt": SelfPretrainingImplementation(),
    "s4d": MixerImplementation(id: "s4d", kind: .s4d, source: "Gu et al. 2022, §3–4, equations 2–4 for the kernel"),
    "aaren": MixerImplementation(
      id: "aaren", kind: .aaren, source: "Feng et al. 2024, §3: the recurrence, the prefix scan, Aaren", experiment: reproduceAaren),
    "transnormer": MixerImplementation(
      id: "transnormer", kind: .transNormerLayer, source: "Qin et al. 2022: NormAttention, DiagAttention, LRPE",
      experiment: reproduceTransNormer),
  ]
}
