// The streams of the emulated device: who forgets to wait gets other results.

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "kernels/cuda/device_kernels.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

// y = x by a 1 x 1 matrix of one.
LinearRows copy_one(const float* x, const float* one, float* y) {
  return {.x = x,
          .w = one,
          .bias = nullptr,
          .y = y,
          .num_tokens = 1,
          .n = 1,
          .k = 1,
          .epilogue = LinearEpilogue::kNone,
          .softcap = 0.0F};
}

class EmulatedStreamsTest : public testing::TestWithParam<uint64_t> {
 protected:
  EmulatedStreamsTest() : device(open_emulated_device(GetParam(), 90)), memory(device, 16) {
    const std::vector<float> values = {1.0F, 7.0F, 0.0F, 0.0F};
    device->copy_in(memory.data(), values.data(), 16, nullptr);
  }
  void copy(int from, int to, const StreamPlace& place) {
    auto* values = memory.as<float>();
    device->kernels().linear(copy_one(values + from, values, values + to), device->attributes(),
                             place);
  }
  float read(int index) {
    float value = 0.0F;
    device->copy_out(&value, memory.as<float>() + index, 4, nullptr);
    device->synchronize(nullptr);
    return value;
  }

  std::shared_ptr<Device> device;
  DeviceBuffer memory;
};

TEST_P(EmulatedStreamsTest, NothingRunsBeforeItIsWaitedFor) {
  const OwnedStream stream(device);
  copy(1, 2, stream.handle());
  EXPECT_EQ(memory.as<float>()[2], 0.0F);
  device->synchronize(stream.handle());
  EXPECT_EQ(read(2), 7.0F);
}

TEST_P(EmulatedStreamsTest, AnEventOrdersTwoStreams) {
  const OwnedStream first(device);
  const OwnedStream second(device);
  const OwnedEvent event(device);
  copy(1, 2, first.handle());
  device->record(event.handle(), first.handle());
  device->wait_for(event.handle(), second.handle());
  copy(2, 3, second.handle());
  device->synchronize(second.handle());
  EXPECT_EQ(read(3), 7.0F);
}

TEST_P(EmulatedStreamsTest, AGraphHasTheStreamsThatJoinIt) {
  const OwnedStream first(device);
  const OwnedStream second(device);
  const OwnedEvent fork(device);
  const OwnedEvent join(device);
  const OwnedGraph graph(device, first.handle(), [&] {
    device->record(fork.handle(), first.handle());
    device->wait_for(fork.handle(), second.handle());
    copy(1, 2, second.handle());
    device->record(join.handle(), second.handle());
    device->wait_for(join.handle(), first.handle());
    copy(2, 3, first.handle());
  });
  EXPECT_EQ(read(3), 0.0F);
  for (int i = 0; i < 2; ++i) {
    graph.launch(first.handle());
    device->synchronize(first.handle());
    EXPECT_EQ(read(3), 7.0F);
    const std::vector<float> zeros(2);
    device->copy_in(memory.as<float>() + 2, zeros.data(), 8, nullptr);
  }
}

TEST_P(EmulatedStreamsTest, ALaunchMayOverlapWithAKernelOnly) {
  const OwnedStream stream(device);
  expect_error(
      [&] {
        copy(1, 2, {stream.handle(), true});
      },
      ErrorCode::kInternal, {"but there is none"});
  copy(1, 2, stream.handle());
  copy(2, 3, {stream.handle(), true});
  device->synchronize(stream.handle());
  EXPECT_EQ(read(3), 7.0F);
}

TEST_P(EmulatedStreamsTest, TimesAreThoseOfEventsThatWereReached) {
  const OwnedStream stream(device);
  const OwnedEvent start(device);
  const OwnedEvent end(device);
  device->record(start.handle(), stream.handle());
  copy(1, 2, stream.handle());
  device->record(end.handle(), stream.handle());
  expect_error([&] { (void)device->elapsed_ms(start.handle(), end.handle()); },
               ErrorCode::kInternal, {"not reached"});
  device->synchronize(stream.handle());
  EXPECT_GE(device->elapsed_ms(start.handle(), end.handle()), 0.0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, EmulatedStreamsTest, testing::Values(1, 2, 3));

TEST(EmulatedStreamsOrderTest, WithoutAnEventResultsDependOnChance) {
  std::set<float> seen;
  for (uint64_t seed = 1; seed < 20; ++seed) {
    const auto device = open_emulated_device(seed);
    const DeviceBuffer memory(device, 16);
    const std::vector<float> values = {1.0F, 7.0F, 0.0F, 0.0F};
    device->copy_in(memory.data(), values.data(), 16, nullptr);
    const OwnedStream first(device);
    const OwnedStream second(device);
    auto* at = memory.as<float>();
    device->kernels().linear(copy_one(at + 1, at, at + 2), device->attributes(), first.handle());
    device->kernels().linear(copy_one(at + 2, at, at + 3), device->attributes(), second.handle());
    device->synchronize(second.handle());
    float value = 0.0F;
    device->copy_out(&value, at + 3, 4, nullptr);
    device->synchronize(nullptr);
    seen.insert(value);
  }
  EXPECT_EQ(seen, (std::set<float>{0.0F, 7.0F}));
}

}  // namespace
}  // namespace gantry::test
