#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

namespace gantry {

/// The streams of an emulated device. Internal.
///
/// What is put on a stream runs when somebody synchronises, and streams take turns in an order that
/// a seed shuffles: who forgets to wait for another stream gets other results.
class EmulatedStreams {
 public:
  struct Event {
    bool reached = true;  // one that was never recorded is waited for by nobody
    double ms = 0.0;
  };
  enum class Kind : uint8_t { kKernel, kOther };
  struct Op {
    Kind kind = Kind::kOther;
    std::function<void()> run;  // null: waits for `event`, or reaches it
    std::shared_ptr<Event> wait_for;
    std::shared_ptr<Event> reaches;
  };
  struct Stream {
    std::deque<Op> ops;
    bool ends_with_kernel = false;
    bool captured = false;
  };
  /// Of one stream each: what a captured graph runs.
  using Graph = std::vector<std::vector<Op>>;

  explicit EmulatedStreams(uint64_t seed) : engine_(seed) {}

  Stream* create();
  void destroy(Stream* stream);
  /// @param after_kernel claims that the stream's last operation is a kernel; checked
  void kernel(Stream* stream, bool after_kernel, std::function<void()> run);
  void enqueue(Stream* stream, std::function<void()> run);
  void record(Stream* stream, const std::shared_ptr<Event>& event);
  void wait_for(Stream* stream, const std::shared_ptr<Event>& event);
  /// Runs until this stream is empty; others run as far as chance has it.
  void synchronize(Stream* stream);
  void drain();

  std::unique_ptr<Graph> capture(Stream* stream, const std::function<void()>& enqueue);
  void launch(Stream* stream, const Graph& graph);

 private:
  void put(Stream* stream, Op op);
  void run_until_empty(Stream* stream);
  Stream* of(Stream* stream) { return stream == nullptr ? &null_stream_ : stream; }
  static bool ready(const Op& op) { return op.wait_for == nullptr || op.wait_for->reached; }
  /// Runs one operation of one of the queues. @return false: none is ready
  bool step(const std::vector<std::deque<Op>*>& queues);

  std::recursive_mutex mutex_;
  std::mt19937_64 engine_;
  Stream null_stream_;
  std::vector<std::unique_ptr<Stream>> streams_;
  bool capturing_ = false;
};

}  // namespace gantry
