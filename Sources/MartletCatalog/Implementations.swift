import MartletMixers

extension Catalog {
  /// The registered implementations by id: add a line here when a method can be probed and reproduced.
  static let registered: [String: any MethodImplementation] = [
    "softmax": MixerImplementation(
      id: "softmax", kind: .softmax, source: "Vaswani et al. 2017, §3.2, equation 1; grouped queries: Ainslie et al. 2023"),
    "linear": MixerImplementation(id: "linear", kind: .linear, source: "Katharopoulos et al. 2020, §3.2–3.4, equations 4–20"),
    "gla": MixerImplementation(id: "gla", kind: .gla, source: "Yang et al. 2023, §4, equations 3–7", experiment: reproduceGLA),
    "deltanet": MixerImplementation(
      id: "deltanet", kind: .deltaNet, source: "Yang et al. 2024, §2.2, §3.1–3.3; decay: Gated DeltaNet, Yang et al. 2024 (2412.06464), §3",
      experiment: reproduceDeltaNet),
    "s4": MixerImplementation(
      id: "s4", kind: .s4, source: "Gu et al. 2021, §2–3, theorems 1–3, algorithm 1; appendix C for kernel and recurrence",
      experiment: reproduceS4),
    "atlas": MixerImplementation(
      id: "atlas", kind: .atlas, source: "Behrouz et al. 2025: polynomial features, Omega rule, its form in chunks, Atlas with Muon",
      experiment: reproduceAtlas),
    "spt": SelfPretrainingImplementation(),
    "lmuformer": LMUFormerImplementation(),
    "lmu": MixerImplementation(
      id: "lmu", kind: .lmu,
      source: "Chilkuri & Eliasmith 2021, §2–3, equations 5–8 and 18–26; the window: Voelker et al. 2019, equations 1–2"),
    "mamba": MixerImplementation(id: "mamba", kind: .mamba, source: "Gu & Dao 2023, §3, algorithm 2 and figure 3"),
    "lolcats": LolcatsImplementation(),
    "selective-s4": MixerImplementation(
      id: "selective-s4", kind: .selectiveS4,
      source: "Wang et al. 2023, arXiv 2303.14526, §3.2: mask generator, Gumbel top-K, momentum S4; scores after Rao et al. 2021, §3.2",
      experiment: reproduceSelectiveS4),
    "s4d": MixerImplementation(id: "s4d", kind: .s4d, source: "Gu et al. 2022, §3–4, equations 2–4 for the kernel"),
    "sgconv": MixerImplementation(
      id: "sgconv", kind: .sgconv, source: "Li et al. 2022, §4, and the authors' gconv_standalone.py", experiment: reproduceSGConv),
    "nprf": MixerImplementation(
      id: "nprf", kind: .nprf, source: "Luo et al. 2021, §3, equations 5–10 and algorithm 1", experiment: reproduceNPRF),
    "rala": MixerImplementation(
      id: "rala", kind: .rala, source: "Fan et al. 2024, arXiv 2411.07635, §3; scales and the denominator as in the authors' code",
      experiment: reproduceRALA),
    "slab": MixerImplementation(
      id: "slab", kind: .slab, source: "Guo et al. 2024, arXiv 2405.11582, §3.1–3.2; positions of keys as in the authors' code",
      experiment: reproduceSLAB),
    "aaren": MixerImplementation(
      id: "aaren", kind: .aaren, source: "Feng et al. 2024, §3: the recurrence, the prefix scan, Aaren", experiment: reproduceAaren),
    "transnormer": MixerImplementation(
      id: "transnormer", kind: .transNormerLayer, source: "Qin et al. 2022: NormAttention, DiagAttention, LRPE",
      experiment: reproduceTransNormer),
  ]
}
