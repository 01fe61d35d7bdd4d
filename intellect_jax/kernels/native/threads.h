// Work shared among XLA's threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace native {

namespace ffi = xla::ffi;

// Runs body(0) to body(tasks - 1), on this thread and on those of the pool that are free; returns after the last one.
// Never waits for a thread to become free: whoever is late finds no task left.
template <typename Body>
void parallel(ffi::ThreadPool& pool, int64_t tasks, const Body& body) {
  struct Counts {
    std::atomic<int64_t> next{0}, done{0};
  };
  const auto counts = std::make_shared<Counts>();
  const auto work = [counts, tasks, &body] {  // refers to body only while tasks are left, when the caller is here
    for (int64_t i; (i = counts->next++) < tasks;) {
      body(i);
      ++counts->done;
    }
  };
  for (int64_t i = std::min<int64_t>(pool.num_threads(), tasks) - 1; i > 0; --i) pool.Schedule(std::function<void()>(work));
  work();
  while (counts->done < tasks) std::this_thread::yield();
}

// Uninitialised memory of this thread, kept from call to call, since fresh pages cost more than most of what is done here:
// for what is small, as every thread keeps its own.
template <int kSlot>
float* scratch(size_t floats) {
  thread_local std::vector<float> kept;
  if (kept.size() < floats) kept.resize(floats);
  return kept.data();
}

// Uninitialised memory of one call.
inline std::unique_ptr<float[]> fresh(size_t floats) { return std::unique_ptr<float[]>(new float[floats]); }

}  // namespace native
