// Every transpose of the list against its definition, on sizes around lines and tiles, with targets
// at every place of a cache line, with rows of two matrices in turn, and without a byte outside.

#include "kernels/transpose/transpose.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <ostream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/support/expect_error.h"
#include "tests/support/seeded_rng.h"

namespace gantry {
void PrintTo(const TransposeKernel& kernel, std::ostream* out) { *out << kernel.name; }
}  // namespace gantry

namespace gantry::test {
namespace {

using Param = std::tuple<TransposeKernel, int>;

class TransposeTest : public testing::TestWithParam<Param> {
 protected:
  void SetUp() override {
    if (!host_isas().contains(kernel.isa)) GTEST_SKIP() << "needs " << to_string(kernel.isa);
  }

  std::vector<std::byte> random(int64_t count) {
    std::vector<std::byte> bytes(static_cast<size_t>(count));
    for (std::byte& byte : bytes)
      byte = static_cast<std::byte>(rng.integer(0, 255));
    return bytes;
  }

  const TransposeKernel& kernel = std::get<0>(GetParam());
  const int size = std::get<1>(GetParam());
  SeededRng rng;
};

/// Where rows of two matrices (or one and the same) stand in a buffer.
struct Rows {
  int64_t base[2];
  int64_t stride;
  [[nodiscard]] int64_t at(int64_t r) const { return base[r % 2] + r / 2 * stride; }
};

/// `count` rows of `row_bytes`, `gap` bytes between them; in turn from two halves if `split`.
Rows lay_out(int64_t count, int64_t row_bytes, int64_t gap, bool split) {
  const int64_t pitch = row_bytes + gap;
  if (split) return {{0, (count + 1) / 2 * pitch}, pitch};
  return {{0, pitch}, 2 * pitch};
}

TEST_P(TransposeTest, PutsEveryElementInItsPlaceAndTouchesNothingElse) {
  const std::vector<std::pair<int64_t, int64_t>> sizes = {
      {1, 1},   {1, 70},  {70, 1},  {2, 3},    {15, 17},   {16, 16},  {31, 33},
      {32, 64}, {64, 32}, {65, 63}, {64, 128}, {129, 130}, {200, 600}};
  for (const auto& [rows, cols] : sizes) {
    for (const bool split_source : {false, true}) {
      for (const bool split_target : {false, true}) {
        const int64_t shift = rng.integer(0, 63) / size * size;
        const int64_t gap = rng.integer(0, 1) * size * 3;
        const Rows from = lay_out(rows, cols * size, gap, split_source);
        // A target pitch of whole lines is what lets lines be written as such.
        const int64_t line_gap = (64 - rows * size % 64) % 64;
        const Rows to =
            lay_out(cols, rows * size, rng.integer(0, 2) > 0 ? line_gap : gap, split_target);
        const int64_t end = std::max(from.at(rows - 1), from.at(std::max<int64_t>(0, rows - 2)));
        const std::vector<std::byte> source = random(end + cols * size);
        const int64_t last = std::max(to.at(cols - 1), to.at(std::max<int64_t>(0, cols - 2)));
        const int64_t target_bytes = shift + last + rows * size + 64;
        std::vector<std::byte> target = random(target_bytes);
        std::vector<std::byte> expected = target;
        const bool skip_odd = rng.integer(0, 3) == 0;
        for (int64_t c = 0; c < cols; ++c) {
          if (skip_odd && c % 2 == 1) continue;
          for (int64_t r = 0; r < rows; ++r) {
            std::copy_n(source.begin() + from.at(r) + c * size, size,
                        expected.begin() + shift + to.at(c) + r * size);
          }
        }
        TransposeCall call;
        call.source = {
            {source.data() + from.base[0], source.data() + (rows > 1 ? from.base[1] : 0)},
            from.stride};
        call.target = {{target.data() + shift + to.base[0],
                        skip_odd ? nullptr : target.data() + shift + (cols > 1 ? to.base[1] : 0)},
                       to.stride};
        call.rows = rows;
        call.cols = cols;
        call.element_bytes = size;
        call.stream = rng.integer(0, 1) == 1;
        kernel.run(call);
        ASSERT_EQ(target, expected) << rows << " x " << cols << ", shift " << shift;
      }
    }
  }
}

TEST_P(TransposeTest, TwiceIsTheIdentity) {
  const int64_t rows = 96;
  const int64_t cols = 160;
  const std::vector<std::byte> source = random(rows * cols * size);
  std::vector<std::byte> once(source.size());
  std::vector<std::byte> twice(source.size());
  TransposeCall call;
  call.element_bytes = size;
  const auto run = [&](const std::vector<std::byte>& from, std::vector<std::byte>& to, int64_t r,
                       int64_t c) {
    call.source = {{from.data(), from.data() + c * size}, 2 * c * size};
    call.target = {{to.data(), to.data() + r * size}, 2 * r * size};
    call.rows = r;
    call.cols = c;
    kernel.run(call);
  };
  run(source, once, rows, cols);
  run(once, twice, cols, rows);
  EXPECT_NE(once, source);
  EXPECT_EQ(twice, source);
}

INSTANTIATE_TEST_SUITE_P(AllKernels, TransposeTest,
                         testing::Combine(testing::ValuesIn(transpose_kernels().begin(),
                                                            transpose_kernels().end()),
                                          testing::Values(1, 2, 4)),
                         [](const auto& param) {
                           return std::string(std::get<0>(param.param).name) + "_" +
                                  std::to_string(std::get<1>(param.param));
                         });

TEST(TransposeSelectTest, TakesTheBestThatTheMachineHas) {
  IsaSet isas;
  EXPECT_EQ(select_transpose(isas).name, "scalar");
  isas.insert(Isa::kAvx2);
  EXPECT_EQ(select_transpose(isas).name, "avx2");
  isas.insert(Isa::kAvx512);
  EXPECT_EQ(select_transpose(isas).name, "avx512");
}

TEST(TransposeSelectTest, RefusesOtherSizes) {
  TransposeCall call;
  call.rows = -1;
  expect_error([&] { transpose(call); }, ErrorCode::kInvalidArgument, {"found -1 x 0"});
  call.rows = 0;
  call.element_bytes = 8;
  expect_error([&] { transpose(call); }, ErrorCode::kInvalidArgument, {"1, 2 or 4", "found 8"});
}

}  // namespace
}  // namespace gantry::test
