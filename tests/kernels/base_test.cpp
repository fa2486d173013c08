#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/dtype.h"
#include "kernels/base/parallel_for.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

TEST(DTypeTest, SizesAreThoseOfTheFormats) {
  using enum DType;
  for (const DType dtype : {kBool, kU8, kI8, kF8E4M3, kF8E5M2, kF8E8M0})
    EXPECT_EQ(size_of(dtype), 1);
  for (const DType dtype : {kU16, kI16, kF16, kBF16})
    EXPECT_EQ(size_of(dtype), 2);
  for (const DType dtype : {kU32, kI32, kF32})
    EXPECT_EQ(size_of(dtype), 4);
  for (const DType dtype : {kU64, kI64, kF64})
    EXPECT_EQ(size_of(dtype), 8);
}

TEST(DTypeTest, NamesAreDistinct) {
  std::set<std::string_view> names;
  for (int i = 0; i <= static_cast<int>(DType::kF8E8M0); ++i) {
    names.insert(to_string(static_cast<DType>(i)));
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(DType::kF8E8M0) + 1);
  EXPECT_EQ(names.count("unknown"), 0U);
  EXPECT_EQ(to_string(DType::kBF16), "bf16");
}

TEST(DTypeTest, OnlyF32F16AndBf16ArePlainFloats) {
  EXPECT_TRUE(is_plain_float(DType::kF32) && is_plain_float(DType::kF16));
  EXPECT_TRUE(is_plain_float(DType::kBF16));
  EXPECT_FALSE(is_plain_float(DType::kF64) || is_plain_float(DType::kF8E4M3));
  EXPECT_FALSE(is_plain_float(DType::kU8) || is_plain_float(DType::kBool));
}

// Sizes on both sides of every change in how memory is obtained: 0, a part of the alignment, and
// the 2 MiB from where pages are mapped.
class ByteBufferTest : public testing::TestWithParam<size_t> {};

TEST_P(ByteBufferTest, IsAlignedZeroedAndWritable) {
  ByteBuffer buffer(GetParam());
  ASSERT_EQ(buffer.size(), GetParam());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kBufferAlignment, 0U);
  EXPECT_TRUE(std::all_of(buffer.data(), buffer.data() + buffer.size(),
                          [](std::byte b) { return b == std::byte{0}; }));
  std::fill_n(buffer.data(), buffer.size(), std::byte{1});
}

INSTANTIATE_TEST_SUITE_P(Sizes, ByteBufferTest,
                         testing::Values(0, 1, 255, 256, 257, (2 << 20) - 1, 2 << 20,
                                         (2 << 20) + 1));

TEST(ByteBufferMoveTest, MovesAndSwapsWithoutCopying) {
  ByteBuffer first(100);
  const std::byte* address = first.data();
  ByteBuffer second(std::move(first));
  EXPECT_EQ(second.data(), address);
  EXPECT_EQ(second.size(), 100U);
  ByteBuffer third;
  third = std::move(second);
  EXPECT_EQ(third.data(), address);
}

TEST(ByteBufferMoveTest, RefusesWhatTheMachineCannotHold) {
  expect_error([] { ByteBuffer buffer(std::numeric_limits<size_t>::max() / 2); },
               ErrorCode::kOutOfMemory, {"cannot allocate"});
}

TEST(BufferTest, CountsElements) {
  Buffer<double> buffer(5);
  EXPECT_EQ(buffer.size(), 5U);
  EXPECT_EQ(std::accumulate(buffer.span().begin(), buffer.span().end(), 0.0), 0.0);
  buffer[4] = 2.5;
  EXPECT_EQ(std::as_const(buffer).span()[4], 2.5);
}

// 1 thread runs in the caller, more go through OpenMP: the contract is the same.
class ParallelForTest : public testing::TestWithParam<int> {
 protected:
  const Threads threads{.count = GetParam(), .executor = {}};
};

TEST_P(ParallelForTest, RunsEveryTaskOnce) {
  std::vector<std::atomic<int>> calls(97);
  parallel_for(threads, 97, [&](int64_t task) { ++calls[static_cast<size_t>(task)]; });
  EXPECT_TRUE(std::all_of(calls.begin(), calls.end(), [](const auto& n) { return n == 1; }));
}

TEST_P(ParallelForTest, DoesNothingWithoutTasks) {
  parallel_for(threads, 0, [](int64_t) { FAIL() << "there is no task"; });
}

TEST_P(ParallelForTest, RethrowsTheLowestTaskAfterAllHaveRun) {
  std::atomic<int> calls = 0;
  const auto body = [&](int64_t task) {
    ++calls;
    if (task % 10 == 7) throw std::runtime_error("task " + std::to_string(task));
  };
  try {
    parallel_for(threads, 50, body);
    FAIL() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "task 7");
  }
  EXPECT_EQ(calls, 50);
}

INSTANTIATE_TEST_SUITE_P(ThreadCounts, ParallelForTest, testing::Values(1, 2, 5, 200));

TEST(ParallelForExecutorTest, HandsTheTasksToTheExecutorInsteadOfOpenMP) {
  int64_t handed = 0;
  const Threads threads{.count = 1, .executor = [&](int64_t num_tasks, const auto& body) {
                          handed = num_tasks;
                          for (int64_t task = num_tasks; task-- > 0;)
                            body(task);
                        }};
  std::vector<int64_t> order;
  parallel_for(threads, 3, [&](int64_t task) { order.push_back(task); });
  EXPECT_EQ(handed, 3);
  EXPECT_EQ(order, (std::vector<int64_t>{2, 1, 0}));
}

TEST(ParallelForExecutorTest, ExceptionsDoNotCrossTheExecutor) {
  const Threads threads{.count = 0, .executor = [](int64_t num_tasks, const auto& body) {
                          for (int64_t task = num_tasks; task-- > 0;)
                            EXPECT_NO_THROW(body(task));
                        }};
  const auto body = [](int64_t task) { throw std::runtime_error(std::to_string(task)); };
  try {
    parallel_for(threads, 4, body);
    FAIL() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "0");
  }
}

TEST(ThreadsTest, ZeroMeansEveryCpuOfTheProcess) {
  EXPECT_EQ(Threads{}.resolved_count(), available_cpus());
  EXPECT_EQ((Threads{.count = 3, .executor = {}}).resolved_count(), 3);
}

}  // namespace
}  // namespace gantry::test
