#pragma once
// Parallel loops on libtorch's own OpenMP team. ATen's parallel_for is a template whose body is an OpenMP pragma:
// compiled by clang without its own runtime it would run on one thread, and clang's runtime beside libtorch's libgomp
// would mean two thread pools. Calling libgomp's entry point directly uses the one pool that is there.

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <utility>

extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags) __attribute__((weak));
int omp_get_thread_num(void) __attribute__((weak));
}

namespace martlet {

/// Runs `body(task, worker)` for every task in 0..<count, handed out one at a time in order, so that a slow core does
/// not hold the others up. `worker` is in 0..<workerCount() and never shared by two running bodies: index scratch by it.
inline int64_t workerCount() { return GOMP_parallel ? at::get_num_threads() : 1; }

template <typename Body>
void parallelTasks(int64_t count, const Body& body) {
  if (count <= 0) return;
  const int64_t workers = std::min<int64_t>(workerCount(), count);
  if (workers == 1 || at::in_parallel_region()) {
    for (int64_t task = 0; task < count; ++task) body(task, int64_t{0});
    return;
  }
  struct Shared {
    const Body& body;
    int64_t count;
    std::atomic<int64_t> next{0};
    std::mutex lock;
    std::exception_ptr error;
  } shared{body, count, {}, {}, {}};
  GOMP_parallel(
      [](void* data) {
        auto& shared = *static_cast<Shared*>(data);
        const int64_t worker = omp_get_thread_num();
        try {
          for (int64_t task; (task = shared.next.fetch_add(1, std::memory_order_relaxed)) < shared.count;)
            shared.body(task, worker);
        } catch (...) {
          std::lock_guard<std::mutex> hold(shared.lock);
          if (!shared.error) shared.error = std::current_exception();
          shared.next = shared.count;
        }
      },
      &shared, static_cast<unsigned>(workers), 0);
  if (shared.error) std::rethrow_exception(shared.error);
}

/// Runs `body(chain, step, worker)` for the steps 0..<steps(chain) of every chain, at least one, those of a chain in order and never two
/// at once. A free worker takes the next step of the chain that has waited longest, so that a few long chains keep all workers
/// busy to the end although one core may be slower; what a step leaves to the next must lie outside the worker.
template <typename Steps, typename Body>
void parallelChains(int64_t chains, const Steps& steps, const Body& body) {
  if (chains <= 0) return;
  std::mutex lock;
  std::deque<std::pair<int64_t, int64_t>> waiting;
  for (int64_t chain = 0; chain < chains; ++chain) waiting.emplace_back(chain, 0);
  // A worker that finds nothing waiting is done: the chains left are in other workers' hands.
  parallelTasks(std::min(workerCount(), chains), [&](int64_t, int64_t worker) {
    std::unique_lock<std::mutex> hold(lock);
    while (!waiting.empty()) {
      const auto [chain, step] = waiting.front();
      waiting.pop_front();
      hold.unlock();
      body(chain, step, worker);
      hold.lock();
      if (step + 1 < steps(chain)) waiting.emplace_back(chain, step + 1);
    }
  });
}

/// Runs `body(begin, end, worker)` over consecutive ranges of at least `grain` items.
template <typename Body>
void parallelRanges(int64_t count, int64_t grain, const Body& body) {
  const int64_t pieces = std::max<int64_t>(1, std::min(count / std::max<int64_t>(grain, 1), 4 * workerCount()));
  if (pieces == 1) return count > 0 ? body(int64_t{0}, count, int64_t{0}) : void();
  parallelTasks(pieces, [&](int64_t piece, int64_t worker) {
    body(count * piece / pieces, count * (piece + 1) / pieces, worker);
  });
}

}  // namespace martlet
