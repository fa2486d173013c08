#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

/// A thread beside the caller's: the way an engine lends its own threads to Gantry.
class WorkerPool {
 public:
  WorkerPool();
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  /// A gantry::Executor: runs body(0) .. body(num_tasks - 1) on both threads, without allocating.
  void run(int64_t num_tasks, const std::function<void(int64_t)>& body);

 private:
  void work();
  bool take_and_run(std::unique_lock<std::mutex>& lock);

  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void(int64_t)>* body_ = nullptr;
  int64_t next_ = 0;
  int64_t end_ = 0;
  int64_t running_ = 0;
  bool stop_ = false;
  std::thread thread_;
};
