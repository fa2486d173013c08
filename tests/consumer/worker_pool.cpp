#include "worker_pool.h"

WorkerPool::WorkerPool() : thread_([this] { work(); }) {}

WorkerPool::~WorkerPool() {
  {
    const std::scoped_lock lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

bool WorkerPool::take_and_run(std::unique_lock<std::mutex>& lock) {
  if (next_ >= end_) return false;
  const int64_t task = next_++;
  ++running_;
  lock.unlock();
  (*body_)(task);
  lock.lock();
  --running_;
  if (next_ >= end_ && running_ == 0) changed_.notify_all();
  return true;
}

void WorkerPool::work() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (!take_and_run(lock)) changed_.wait(lock, [&] { return stop_ || next_ < end_; });
  }
}

void WorkerPool::run(int64_t num_tasks, const std::function<void(int64_t)>& body) {
  std::unique_lock lock(mutex_);
  body_ = &body;
  next_ = 0;
  end_ = num_tasks;
  changed_.notify_all();
  while (take_and_run(lock)) {
  }
  changed_.wait(lock, [&] { return next_ >= end_ && running_ == 0; });
}
