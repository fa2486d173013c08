#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <string_view>

#include "loader/relayout.h"
#include "tests/support/mutable_checkpoint.h"

namespace gantry::test {

/// Takes the tensors of a conversion into memory; a byte that comes twice is an error.
class MemorySink : public TensorSink {
 public:
  explicit MemorySink(const RelayoutPlan& plan) {
    for (const TensorInfo& info : plan.tensors) {
      MutableCheckpoint::Tensor& tensor = checkpoint.tensors[info.name];
      tensor.dtype = info.dtype;
      tensor.shape = info.shape;
      tensor.bytes.resize(static_cast<size_t>(info.num_elements() * size_of(info.dtype)));
    }
    expected_bytes = plan.total_bytes;
  }

  void write(std::string_view name, int64_t offset, std::span<const std::byte> data) override {
    const std::scoped_lock lock(mutex_);
    auto& bytes = checkpoint.tensors.at(std::string(name)).bytes;
    ASSERT_LE(static_cast<size_t>(offset) + data.size(), bytes.size()) << name;
    std::copy(data.begin(), data.end(), bytes.begin() + offset);
    written_bytes += static_cast<int64_t>(data.size());
  }

  MutableCheckpoint checkpoint;
  int64_t expected_bytes = 0;
  int64_t written_bytes = 0;

 private:
  std::mutex mutex_;
};

}  // namespace gantry::test
