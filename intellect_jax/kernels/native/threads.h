// Work shared among XLA's threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace native {

namespace ffi = xla::ffi;

// Tasks that several threads take one after the other, and who waits for the last of them.
class Tasks {
 public:
  explicit Tasks(int64_t count) : count_(count) {}

  // Runs tasks as long as there are any; refers to body only then, when the one who waits is there. Never throws.
  template <typename Body>
  void run(const Body& body) {
    for (int64_t i; (i = next_++) < count_;) {
      try {
        body(i);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex_);
        failure_ = std::current_exception();
      }
      if (++done_ < count_) continue;
      const std::lock_guard<std::mutex> lock(mutex_);
      last_.notify_one();
    }
  }

  // Looks a while, as most tasks are short; then sleeps, for whoever has the last task may have lost its core. Throws
  // what a task threw: out of memory.
  void wait() {
    for (int look = 0; look < kLooks && done_ < count_; ++look) continue;
    std::unique_lock<std::mutex> lock(mutex_);
    last_.wait(lock, [this] { return done_ == count_; });
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  static constexpr int kLooks = 10000;  // some 10 microseconds

  const int64_t count_;
  std::atomic<int64_t> next_{0}, done_{0};
  std::mutex mutex_;
  std::condition_variable last_;
  std::exception_ptr failure_;
};

// Runs body(0) to body(count - 1), on this thread and on those of the pool that are free; returns after the last one.
// Never waits for a thread to become free: whoever is late finds no task left.
template <typename Body>
void parallel(ffi::ThreadPool& pool, int64_t count, const Body& body) {
  const auto tasks = std::make_shared<Tasks>(count);
  const std::function<void()> work = [tasks, &body] { tasks->run(body); };
  for (int64_t i = std::min<int64_t>(pool.num_threads(), count) - 1; i > 0; --i) pool.Schedule(std::function<void()>(work));
  work();
  tasks->wait();
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
