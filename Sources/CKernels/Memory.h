#pragma once
// Large pages for large blocks. A fresh block of memory costs a page fault every 4 KiB, some 1-4 us each on virtual machines: more
// than a linear-time kernel spends on the numbers in the page. glibc returns blocks beyond 32 MiB to the system at each release,
// so a long sequence pays that at every call. With the advice a fault brings 2 MiB (measured: 7000 faults became 100).

#include <ATen/ATen.h>

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace martlet {

/// Asks for large pages where a tensor is large enough to have some; without effect elsewhere. Returns the tensor.
inline at::Tensor inLargePages(at::Tensor tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096;
  if (tensor.nbytes() >= (4u << 20) && tensor.device().is_cpu()) {
    const auto begin = (reinterpret_cast<uintptr_t>(tensor.storage().data()) + page - 1) / page * page;
    const auto end = (reinterpret_cast<uintptr_t>(tensor.storage().data()) + tensor.storage().nbytes()) / page * page;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#endif
  return tensor;
}

}  // namespace martlet
