// The rates that the head comment of Sources/CKernels/BlockProduct.h quotes: our block product and libtorch's, one thread, operands in cache.
//
//     T=.libtorch; clang++ -std=c++20 -O3 -Wno-psabi -mprefer-vector-width=512 -ISources/CKernels -isystem $T/include Benchmarks/block_product.cpp \
//       -L$T/lib -ltorch_cpu -lc10 -Wl,-rpath,$PWD/$T/lib -o block_product && ./block_product
//
// Shapes and both products in turn, the fastest of 400 rounds each: neighbours on the machine slow whole rounds down.

#include "BlockProduct.h"

#include <chrono>
#include <cstdio>
#include <vector>

int main() {
  struct Case {
    int64_t m, n, k;
    bool add;
    double ours = 1e9, libtorchs = 1e9;
  };
  std::vector<Case> cases = {{16, 64, 64, false}, {16, 16, 64, false}, {64, 64, 16, true}, {80, 16, 64, false}};
  alignas(4096) static float memory[3 << 14];
  for (float& x : memory) x = 0.01f;
  const float *a = memory, *b = memory + (1 << 14) + 16;
  float* c = memory + (2 << 14) + 32;
  const auto seconds = [](const Case& one, const auto& call) {
    const int64_t calls = 600000 / (one.m * one.n * one.k) + 1;
    const auto start = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < calls; ++i) call();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / static_cast<double>(calls);
  };
  for (int round = 0; round < 400; ++round)
    for (Case& one : cases) {
      const auto [m, n, k, add, ours, theirs] = one;
      one.ours = std::min(ours, seconds(one, [&, m = m, n = n, k = k, add = add] {
        martlet::blocks::portableProduct(m, n, k, k, n, n, add, a, b, c);
      }));
      one.libtorchs = std::min(theirs, seconds(one, [&, m = m, n = n, k = k, add = add] {
        at::native::cpublas::brgemm(m, n, k, k, n, n, add, a, b, c, false);
      }));
    }
  for (const Case& one : cases) {
    const double flops = 2e-9 * static_cast<double>(one.m * one.n * one.k);
    std::printf("%ldx%ldx%ld  ours %.0f GFLOP/s  libtorch's %.0f\n", static_cast<long>(one.m), static_cast<long>(one.n),
                static_cast<long>(one.k), flops / one.ours, flops / one.libtorchs);
  }
}
