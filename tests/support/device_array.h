#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "kernels/cuda/device.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/test_device.h"

namespace gantry::test {

/// A test on test_device(); skipped with the reason where that is not here.
class DeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    device = test_device();
    if (device == nullptr) GTEST_SKIP() << no_device_reason();
  }

  std::shared_ptr<Device> device;
  SeededRng rng;
};

/// Values in device memory, which starts as 0xff bytes where nothing is given.
template <typename T>
class DeviceArray {
 public:
  DeviceArray(const std::shared_ptr<Device>& device, const std::vector<T>& values)
      : device_(device), count_(values.size()), buffer_(device, values.size() * sizeof(T)) {
    device_->copy_in(buffer_.data(), values.data(), buffer_.size(), nullptr);
    device_->synchronize(nullptr);
  }
  DeviceArray(const std::shared_ptr<Device>& device, size_t count)
      : device_(device), count_(count), buffer_(device, count * sizeof(T)) {
    const std::vector<unsigned char> bytes(buffer_.size(), 0xff);
    device_->copy_in(buffer_.data(), bytes.data(), bytes.size(), nullptr);
    device_->synchronize(nullptr);
  }

  [[nodiscard]] T* data() const { return buffer_.as<T>(); }
  [[nodiscard]] std::vector<T> read() const {
    std::vector<T> values(count_);
    device_->copy_out(values.data(), buffer_.data(), buffer_.size(), nullptr);
    device_->synchronize(nullptr);
    return values;
  }

 private:
  std::shared_ptr<Device> device_;
  size_t count_;
  DeviceBuffer buffer_;
};

}  // namespace gantry::test
