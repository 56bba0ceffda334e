// swift-tools-version: 6.2
import Foundation
import PackageDescription

// libtorch: $LIBTORCH, or the `.libtorch` folder that Scripts/setup makes. Both hold include/ and lib/.
let libtorch = Context.environment["LIBTORCH"] ?? Context.packageDirectory + "/.libtorch"
let libraries = (try? FileManager.default.contentsOfDirectory(atPath: libtorch + "/lib")) ?? []
guard libraries.contains(where: { $0.hasPrefix("libtorch_cpu.") }) else {
  fatalError(
    "libtorch was not found in \(libtorch). Run Scripts/setup, or set LIBTORCH to the `torch` folder of an unpacked PyTorch 2.13+.")
}

let headers = [
  "-isystem", libtorch + "/include", "-isystem", libtorch + "/include/torch/csrc/api/include", "-Wno-deprecated-declarations",
]
#if arch(x86_64)
  // Lets the AVX-512 clones of the row kernels use whole registers; raises no requirement on the machine.
  let vectorWidth = ["-mprefer-vector-width=512"]
#else
  let vectorWidth: [String] = []
#endif

var linkerFlags = ["-L\(libtorch)/lib", "-Xlinker", "-rpath", "-Xlinker", libtorch + "/lib"]
// libtorch's own OpenMP runtime, whose thread team the kernels share; CUDA registers itself when its library is loaded.
if let openMP = libraries.first(where: { $0.hasPrefix("libgomp") }) { linkerFlags += ["-Xlinker", "\(libtorch)/lib/\(openMP)"] }
if libraries.contains("libtorch_cuda.so") && Context.environment["MARTLET_CUDA"] == "1" {
  linkerFlags += ["-Xlinker", "--no-as-needed", "-ltorch_cuda", "-Xlinker", "--as-needed"]
}

let strict: [SwiftSetting] = [.swiftLanguageMode(.v6), .treatAllWarnings(as: .error)]

func room(_ name: String, _ dependencies: [Target.Dependency], exclude: [String] = []) -> Target {
  .target(name: name, dependencies: dependencies, exclude: exclude, swiftSettings: strict)
}

func tests(_ name: String, _ dependencies: [Target.Dependency] = [], resources: [Resource]? = nil) -> Target {
  .testTarget(
    name: name + "Tests", dependencies: [.byName(name: name)] + dependencies, resources: resources, swiftSettings: strict)
}

let allTests: [Target] = [
  tests("MartletFormats"),
  tests("MartletTokenizers", resources: [.copy("Fixtures")]),
  tests("Martlet", resources: [.copy("Fixtures")]),
  tests("MartletNN", resources: [.copy("Fixtures")]),
  tests("MartletMixers", ["MartletFeedForward"], resources: [.copy("Fixtures")]),
  tests("MartletModels", resources: [.copy("Fixtures")]),
  tests("MartletAdapters"),
  tests("MartletOptimizers", resources: [.copy("Fixtures")]),
  tests("MartletData"),
  tests("MartletTraining"),
  tests("MartletInference", resources: [.copy("Fixtures")]),
  tests("MartletCatalog", resources: [.copy("Fixtures")]),
  tests("MartletCommand", ["MartletCatalog"]),
]

// Rooms whose tests are built, separated by commas (`make test ONLY=MartletMixers,MartletNN`); all unless given.
let tested: Set<String>? = Context.environment["MARTLET_TESTS"].map { names in
  Set(names.components(separatedBy: ",").map { $0 + "Tests" })
}

let package = Package(
  name: "Martlet",
  platforms: [.macOS(.v15)],
  products: [
    .executable(name: "martlet", targets: ["MartletCommand"]),
    .library(name: "MartletKernels", type: .dynamic, targets: ["CKernels"]),
    .library(name: "MartletTokenizers", targets: ["MartletTokenizers"]),
    .library(name: "Martlet", targets: ["Martlet", "MartletNN"]),
    .library(name: "MartletModels", targets: ["MartletMixers", "MartletFeedForward", "MartletModels"]),
    .library(name: "MartletTraining", targets: ["MartletAdapters", "MartletOptimizers", "MartletData", "MartletTraining"]),
    .library(name: "MartletInference", targets: ["MartletInference"]),
    .library(name: "MartletCatalog", targets: ["MartletCatalog"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/groue/GRDB.swift", from: "7.10.0"),
    .package(url: "https://github.com/jpsim/Yams", from: "6.2.2"),
    .package(url: "https://github.com/apple/swift-protobuf", from: "1.39.0"),
  ],
  targets: [
    .systemLibrary(name: "CZlib", pkgConfig: "zlib", providers: [.apt(["zlib1g-dev"]), .brew(["zlib"])]),
    .systemLibrary(name: "CPCRE2", pkgConfig: "libpcre2-8", providers: [.apt(["libpcre2-dev"]), .brew(["pcre2"])]),
    .systemLibrary(name: "CPNG", pkgConfig: "libpng", providers: [.apt(["libpng-dev"]), .brew(["libpng"])]),
    .systemLibrary(name: "CJPEG", pkgConfig: "libjpeg", providers: [.apt(["libjpeg-dev"]), .brew(["jpeg-turbo"])]),
    .target(name: "CImages", dependencies: ["CPNG", "CJPEG"], linkerSettings: [.linkedLibrary("png"), .linkedLibrary("jpeg")]),
    .target(
      name: "CTorch", cxxSettings: [.unsafeFlags(["-O3"] + headers)],
      linkerSettings: [.unsafeFlags(linkerFlags), .linkedLibrary("torch_cpu"), .linkedLibrary("c10")]),
    .target(
      name: "CKernels", cxxSettings: [.headerSearchPath("."), .unsafeFlags(["-O3"] + headers + vectorWidth + ["-Wno-unused-parameter"])],
      linkerSettings: [.unsafeFlags(linkerFlags), .linkedLibrary("torch_cpu"), .linkedLibrary("c10")]),
    room("MartletFormats", []),
    room(
      "MartletTokenizers", ["MartletFormats", "CPCRE2", .product(name: "SwiftProtobuf", package: "swift-protobuf")],
      exclude: ["SentencePiece/sentencepiece_model.proto"]),
    room("Martlet", ["CTorch", "CKernels", "MartletFormats"]),
    room("MartletNN", ["Martlet"]),
    room("MartletMixers", ["MartletNN"]),
    room("MartletFeedForward", ["MartletNN"]),
    room("MartletModels", ["MartletMixers", "MartletFeedForward", "CImages"]),
    room("MartletAdapters", ["MartletNN"]),
    room("MartletOptimizers", ["MartletNN"]),
    room("MartletData", ["Martlet", "MartletTokenizers", "CZlib"]),
    room(
      "MartletTraining",
      [
        "MartletModels", "MartletAdapters", "MartletOptimizers", "MartletData", .product(name: "GRDB", package: "GRDB.swift"),
        .product(name: "SwiftProtobuf", package: "swift-protobuf"),
      ], exclude: ["Logging/event.proto"]),
    room("MartletInference", ["MartletModels", "MartletTokenizers"]),
    room("MartletCatalog", ["MartletTraining", "MartletInference"]),
    .executableTarget(
      name: "MartletCommand",
      dependencies: [
        "MartletCatalog", .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "Yams", package: "Yams"),
      ],
      swiftSettings: strict),
  ],
  cxxLanguageStandard: .cxx20
)

package.targets += allTests.filter { target in tested?.contains(target.name) ?? true }
