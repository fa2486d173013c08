#include "loader/expert_stack.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <vector>

#include "tests/support/expect_error.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

struct Layout {
  Orientation orientation;
  GateUp gate_up;
  int64_t element_bytes;
};

std::vector<Layout> layouts() {
  std::vector<Layout> list;
  for (const Orientation orientation : {Orientation::kOutIn, Orientation::kInOut}) {
    for (const GateUp gate_up : {GateUp::kSeparate, GateUp::kConcatenated, GateUp::kInterleaved}) {
      for (const int64_t bytes : {1, 2, 4, 8})
        list.push_back({orientation, gate_up, bytes});
    }
  }
  return list;
}

/// Index of element (o, i) of a projection, from the definition of the layouts alone.
int64_t index_of(const ExpertStack& stack, int expert, Part part, int64_t o, int64_t i) {
  const bool both = stack.gate_up != GateUp::kSeparate;
  const int64_t whole = both ? 2 * stack.out : stack.out;
  int64_t row = o;
  if (stack.gate_up == GateUp::kConcatenated && part == Part::kW3) row += stack.out;
  if (stack.gate_up == GateUp::kInterleaved) row = 2 * o + (part == Part::kW3 ? 1 : 0);
  const int64_t inside =
      stack.orientation == Orientation::kOutIn ? row * stack.in + i : i * whole + row;
  return expert * whole * stack.in + inside;
}

class ExpertStackTest : public testing::TestWithParam<Layout> {
 protected:
  ExpertStack make(int experts, int64_t out, int64_t in) {
    ExpertStack stack{.data = nullptr,
                      .element_bytes = GetParam().element_bytes,
                      .num_experts = experts,
                      .out = out,
                      .in = in,
                      .orientation = GetParam().orientation,
                      .gate_up = GetParam().gate_up};
    bytes.resize(static_cast<size_t>(stack.num_bytes()));
    for (std::byte& b : bytes)
      b = static_cast<std::byte>(rng.integer(0, 255));
    stack.data = bytes.data();
    return stack;
  }
  static std::vector<Part> parts() {
    return GetParam().gate_up == GateUp::kSeparate ? std::vector{Part::kW2}
                                                   : std::vector{Part::kW1, Part::kW3};
  }
  /// Element (o, i), by the definition.
  std::vector<std::byte> expected(const ExpertStack& stack, int expert, Part part) const {
    std::vector<std::byte> dense;
    dense.reserve(static_cast<size_t>(stack.out * stack.in * stack.element_bytes));
    for (int64_t o = 0; o < stack.out; ++o) {
      for (int64_t i = 0; i < stack.in; ++i) {
        const auto at = bytes.begin() + index_of(stack, expert, part, o, i) * stack.element_bytes;
        dense.insert(dense.end(), at, at + stack.element_bytes);
      }
    }
    return dense;
  }

  SeededRng rng;
  std::vector<std::byte> bytes;
};

TEST_P(ExpertStackTest, ViewsPointAtTheirElements) {
  const ExpertStack stack = make(3, 5, 7);
  for (const Part part : parts()) {
    const StridedTarget view = expert_view(stack, 2, part);
    EXPECT_EQ(view.data + (4 * view.row_stride + 3 * view.col_stride) * stack.element_bytes,
              stack.data + index_of(stack, 2, part, 4, 3) * stack.element_bytes);
  }
}

TEST_P(ExpertStackTest, UnfusedCopiesHaveEveryElementAndFuseBack) {
  // Sizes around the 8 x 8 and 32 x 32 blocks of transposes, and rows shared out among threads.
  constexpr std::array<std::array<int64_t, 2>, 6> kSizes = {
      {{1, 1}, {8, 8}, {7, 33}, {40, 9}, {33, 65}, {70, 3}}};
  for (const auto& [out, in] : kSizes) {
    const ExpertStack stack = make(3, out, in);
    std::vector<std::byte> again(bytes.size());
    ExpertStack target = stack;
    target.data = again.data();
    for (const Part part : parts()) {
      std::vector<std::vector<std::byte>> dense(
          3, std::vector<std::byte>(static_cast<size_t>(out * in * stack.element_bytes)));
      const std::vector<std::byte*> pointers = {dense[0].data(), dense[1].data(), dense[2].data()};
      unfuse_experts(stack, part, pointers, {.count = 2, .executor = {}});
      for (int e = 0; e < 3; ++e)
        ASSERT_EQ(dense[static_cast<size_t>(e)], expected(stack, e, part)) << out << " x " << in;
      const std::vector<const std::byte*> sources(pointers.begin(), pointers.end());
      fuse_experts(sources, target, part, {.count = 2, .executor = {}});
    }
    ASSERT_EQ(again, bytes) << out << " x " << in;
  }
}

TEST_P(ExpertStackTest, GateAndUpInOnePassAreTheSame) {
  if (GetParam().gate_up == GateUp::kSeparate) GTEST_SKIP() << "one projection";
  constexpr std::array<std::array<int64_t, 2>, 4> kSizes = {{{1, 1}, {7, 33}, {70, 9}, {65, 130}}};
  for (const auto& [out, in] : kSizes) {
    const ExpertStack stack = make(2, out, in);
    const auto size = static_cast<size_t>(out * in * stack.element_bytes);
    std::vector<std::vector<std::byte>> dense(4, std::vector<std::byte>(size));
    const std::vector<std::byte*> gates = {dense[0].data(), dense[1].data()};
    const std::vector<std::byte*> ups = {dense[2].data(), dense[3].data()};
    unfuse_gate_up(stack, gates, ups, {.count = 2, .executor = {}});
    for (size_t e = 0; e < 2; ++e) {
      ASSERT_EQ(dense[e], expected(stack, static_cast<int>(e), Part::kW1)) << out << " x " << in;
      ASSERT_EQ(dense[2 + e], expected(stack, static_cast<int>(e), Part::kW3))
          << out << " x " << in;
    }
    std::vector<std::byte> again(bytes.size());
    ExpertStack target = stack;
    target.data = again.data();
    const std::vector<const std::byte*> gate_sources(gates.begin(), gates.end());
    const std::vector<const std::byte*> up_sources(ups.begin(), ups.end());
    fuse_gate_up(gate_sources, up_sources, target, {.count = 2, .executor = {}});
    ASSERT_EQ(again, bytes) << out << " x " << in;
  }
}

TEST(ExpertStackLargeTest, WritesPastTheCachesGiveTheSame) {
  // 64 MiB and more are written with streaming stores.
  std::vector<std::byte> bytes(int64_t{64} << 20);
  SeededRng rng;
  for (size_t at = 0; at < bytes.size(); at += 8) {
    const auto word = static_cast<uint64_t>(rng.integer(0, 1 << 30)) * 0x9e3779b97f4a7c15u;
    std::memcpy(bytes.data() + at, &word, 8);
  }
  const ExpertStack stack{.data = bytes.data(),
                          .element_bytes = 2,
                          .num_experts = 4,
                          .out = 1024,
                          .in = 4096,
                          .orientation = Orientation::kInOut,
                          .gate_up = GateUp::kInterleaved};
  std::vector<std::byte> dense(bytes.size());
  const int64_t size = stack.out * stack.in * 2;
  std::vector<std::byte*> gates;
  std::vector<std::byte*> ups;
  for (int64_t e = 0; e < 4; ++e) {
    gates.push_back(dense.data() + 2 * e * size);
    ups.push_back(dense.data() + (2 * e + 1) * size);
  }
  unfuse_gate_up(stack, gates, ups, {.count = 2, .executor = {}});
  const auto at = [&](const std::byte* matrix, int64_t index) {
    uint16_t value = 0;
    std::memcpy(&value, matrix + 2 * index, 2);
    return value;
  };
  for (int trial = 0; trial < 10000; ++trial) {
    const int e = static_cast<int>(rng.integer(0, 3));
    const int64_t o = rng.integer(0, stack.out - 1);
    const int64_t i = rng.integer(0, stack.in - 1);
    ASSERT_EQ(at(gates[static_cast<size_t>(e)], o * stack.in + i),
              at(stack.data, index_of(stack, e, Part::kW1, o, i)));
    ASSERT_EQ(at(ups[static_cast<size_t>(e)], o * stack.in + i),
              at(stack.data, index_of(stack, e, Part::kW3, o, i)));
  }
  std::vector<std::byte> again(bytes.size());
  ExpertStack target = stack;
  target.data = again.data();
  fuse_gate_up(std::vector<const std::byte*>(gates.begin(), gates.end()),
               std::vector<const std::byte*>(ups.begin(), ups.end()), target,
               {.count = 2, .executor = {}});
  EXPECT_TRUE(again == bytes);
}

INSTANTIATE_TEST_SUITE_P(AllLayouts, ExpertStackTest, testing::ValuesIn(layouts()));

TEST(ExpertStackErrorTest, RefusesExpertsAndPartsThatAreNotThere) {
  std::vector<std::byte> bytes(2 * 2 * 3 * 4 * 2);
  const ExpertStack stack{.data = bytes.data(),
                          .element_bytes = 2,
                          .num_experts = 2,
                          .out = 3,
                          .in = 4,
                          .orientation = Orientation::kOutIn,
                          .gate_up = GateUp::kConcatenated};
  expect_error([&] { (void)expert_view(stack, 2, Part::kW1); }, ErrorCode::kInvalidArgument,
               {"below 2", "found 2"});
  expect_error([&] { (void)expert_view(stack, 0, Part::kW2); }, ErrorCode::kInvalidArgument,
               {"w1 or w3", "w2"});
  const std::vector<std::byte*> one(1, bytes.data());
  expect_error([&] { unfuse_experts(stack, Part::kW1, one, {}); }, ErrorCode::kInvalidArgument,
               {"2 experts", "found 1"});
  const std::vector<std::byte*> two(2, bytes.data());
  expect_error([&] { unfuse_gate_up(stack, two, one, {}); }, ErrorCode::kInvalidArgument,
               {"2 and 1"});
  ExpertStack single = stack;
  single.gate_up = GateUp::kSeparate;
  expect_error([&] { unfuse_gate_up(single, two, two, {}); }, ErrorCode::kInvalidArgument,
               {"single projection"});
}

}  // namespace
}  // namespace gantry::test
