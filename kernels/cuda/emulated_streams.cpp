#include "kernels/cuda/emulated_streams.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "kernels/base/check.h"

namespace gantry {
namespace {

double now_ms() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double, std::milli>(Clock::now().time_since_epoch()).count();
}

}  // namespace

EmulatedStreams::Stream* EmulatedStreams::create() {
  const std::lock_guard lock(mutex_);
  streams_.push_back(std::make_unique<Stream>());
  return streams_.back().get();
}

void EmulatedStreams::destroy(Stream* stream) {
  const std::lock_guard lock(mutex_);
  synchronize(stream);
  std::erase_if(streams_, [stream](const auto& s) { return s.get() == stream; });
}

// While one stream is captured, the streams that wait for it join in, as on a GPU; others are not
// expected to be used.
void EmulatedStreams::put(Stream* stream, Op op) {
  const std::lock_guard lock(mutex_);
  if (capturing_) {
    const bool joins = op.wait_for != nullptr && !op.wait_for->reached;
    GANTRY_CHECK(stream->captured || joins, ErrorCode::kInternal,
                 "emulated stream: used during a capture that it is no part of");
    stream->captured = true;
  }
  stream->ends_with_kernel = op.kind == Kind::kKernel;
  stream->ops.push_back(std::move(op));
}

void EmulatedStreams::kernel(Stream* stream, bool after_kernel, std::function<void()> run) {
  const std::lock_guard lock(mutex_);
  GANTRY_CHECK(!after_kernel || of(stream)->ends_with_kernel, ErrorCode::kInternal,
               "emulated stream: a launch that may overlap with the kernel before it, but there is "
               "none");
  put(of(stream), {Kind::kKernel, std::move(run), nullptr, nullptr});
}

void EmulatedStreams::enqueue(Stream* stream, std::function<void()> run) {
  put(of(stream), {Kind::kOther, std::move(run), nullptr, nullptr});
}

void EmulatedStreams::record(Stream* stream, const std::shared_ptr<Event>& event) {
  event->reached = false;
  put(of(stream), {Kind::kOther, nullptr, nullptr, event});
}

void EmulatedStreams::wait_for(Stream* stream, const std::shared_ptr<Event>& event) {
  put(of(stream), {Kind::kOther, nullptr, event, nullptr});
}

bool EmulatedStreams::step(const std::vector<std::deque<Op>*>& queues) {
  std::vector<std::deque<Op>*> able;
  for (std::deque<Op>* queue : queues) {
    if (!queue->empty() && ready(queue->front())) able.push_back(queue);
  }
  if (able.empty()) return false;
  std::deque<Op>& chosen = *able[engine_() % able.size()];
  const Op op = std::move(chosen.front());
  chosen.pop_front();
  if (op.run) op.run();
  if (op.reaches != nullptr) {
    op.reaches->reached = true;
    op.reaches->ms = now_ms();
  }
  return true;
}

void EmulatedStreams::synchronize(Stream* stream) {
  const std::lock_guard lock(mutex_);
  run_until_empty(of(stream));
  of(stream)->ends_with_kernel = false;
}

void EmulatedStreams::run_until_empty(Stream* stream) {
  GANTRY_CHECK(!capturing_, ErrorCode::kInternal, "emulated stream: synchronised in a capture");
  std::vector<std::deque<Op>*> queues = {&null_stream_.ops};
  for (const auto& s : streams_)
    queues.push_back(&s->ops);
  while (!stream->ops.empty()) {
    GANTRY_CHECK(step(queues), ErrorCode::kInternal,
                 "emulated streams: all wait for events that are never reached");
  }
}

// What the streams end with stays: their owners have not synchronised.
void EmulatedStreams::drain() {
  const std::lock_guard lock(mutex_);
  run_until_empty(&null_stream_);
  for (const auto& stream : streams_)
    run_until_empty(stream.get());
}

std::unique_ptr<EmulatedStreams::Graph> EmulatedStreams::capture(
    Stream* stream, const std::function<void()>& enqueue) {
  const std::lock_guard lock(mutex_);
  drain();
  capturing_ = true;
  stream->captured = true;
  const auto end = [this] {
    auto graph = std::make_unique<Graph>();
    for (const auto& s : streams_) {
      if (s->captured) {
        graph->emplace_back(std::make_move_iterator(s->ops.begin()),
                            std::make_move_iterator(s->ops.end()));
      }
      s->ops.clear();
      s->captured = false;
      s->ends_with_kernel = false;
    }
    capturing_ = false;
    return graph;
  };
  try {
    enqueue();
  } catch (...) {
    end();
    throw;
  }
  return end();
}

void EmulatedStreams::launch(Stream* stream, const Graph& graph) {
  enqueue(stream, [this, &graph] {
    std::vector<std::deque<Op>> queues;
    std::vector<std::deque<Op>*> pointers;
    for (const std::vector<Op>& ops : graph) {
      for (const Op& op : ops)
        if (op.reaches != nullptr) op.reaches->reached = false;
      queues.emplace_back(ops.begin(), ops.end());
    }
    for (std::deque<Op>& queue : queues)
      pointers.push_back(&queue);
    while (step(pointers)) {
    }
    const bool done = std::all_of(queues.begin(), queues.end(),
                                  [](const std::deque<Op>& queue) { return queue.empty(); });
    GANTRY_CHECK(done, ErrorCode::kInternal,
                 "emulated graph: streams wait for events that are never reached");
  });
}

}  // namespace gantry
