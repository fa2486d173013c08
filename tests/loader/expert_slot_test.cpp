#include "loader/expert_slot.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/float_convert.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

struct SlotCase {
  DType dtype;
  bool gated;
  bool bias;
  int64_t intermediate;
  int64_t hidden;
};

class SlotLayoutTest : public testing::TestWithParam<SlotCase> {
 protected:
  const SlotCase& c = GetParam();
  const SlotLayout layout = SlotLayout::create(c.dtype, c.gated, c.bias, c.intermediate, c.hidden);
};

TEST_P(SlotLayoutTest, HasSectionsOfTheRightSize) {
  const int64_t element = size_of(c.dtype);
  const int64_t rows = (c.gated ? 2 : 1) * c.intermediate;
  EXPECT_EQ(layout.w13_rows(), rows);
  EXPECT_EQ(layout.w13.bytes, rows * c.hidden * element);
  EXPECT_EQ(layout.w2.bytes, c.hidden * c.intermediate * element);
  EXPECT_EQ(layout.b13.bytes, c.bias ? rows * 4 : 0);
  EXPECT_EQ(layout.b2.bytes, c.bias ? c.hidden * 4 : 0);
  EXPECT_EQ(layout.owned_bytes(),
            layout.w13.bytes + layout.w2.bytes + layout.b13.bytes + layout.b2.bytes);
}

TEST_P(SlotLayoutTest, AlignsSectionsAndSlotsTo256Bytes) {
  for (const int64_t offset : {layout.w13.offset, layout.w2.offset, layout.b13.offset,
                               layout.b2.offset, layout.stride_bytes}) {
    EXPECT_EQ(offset % 256, 0);
  }
}

TEST_P(SlotLayoutTest, HasNoSectionThatOverlapsTheNext) {
  const std::array<SlotSection, 4> sections = {layout.w13, layout.w2, layout.b13, layout.b2};
  for (size_t i = 0; i + 1 < sections.size(); ++i) {
    EXPECT_LE(sections[i].offset + sections[i].bytes, sections[i + 1].offset);
  }
  EXPECT_LE(layout.b2.offset + layout.b2.bytes, layout.stride_bytes);
  EXPECT_LT(layout.stride_bytes, layout.owned_bytes() + 4 * 256);
}

TEST_P(SlotLayoutTest, SplitsW13IntoGateThenUp) {
  for (const TensorKind kind : {TensorKind::kWeight, TensorKind::kBias}) {
    if (kind == TensorKind::kBias && !c.bias) continue;
    const SlotTarget w1 = slot_target(layout, Part::kW1, kind);
    const SlotSection& section = kind == TensorKind::kWeight ? layout.w13 : layout.b13;
    const int64_t row_bytes = w1.cols * size_of(w1.dtype);
    EXPECT_EQ(w1.offset, section.offset);
    EXPECT_EQ(w1.rows, c.intermediate);
    if (!c.gated) continue;
    const SlotTarget w3 = slot_target(layout, Part::kW3, kind);
    EXPECT_EQ(w3.offset, w1.offset + w1.rows * row_bytes);
    EXPECT_EQ(w3.offset + w3.rows * row_bytes, section.offset + section.bytes);
  }
}

TEST_P(SlotLayoutTest, ReadsBackWhatWasWritten) {
  const int64_t w13_count = layout.w13_rows() * c.hidden;
  const int64_t w2_count = c.hidden * c.intermediate;
  std::vector<float> w13(static_cast<size_t>(w13_count));
  std::vector<float> w2(static_cast<size_t>(w2_count));
  // Small integers are exact in every dtype.
  for (size_t i = 0; i < w13.size(); ++i)
    w13[i] = static_cast<float>(i % 251);
  for (size_t i = 0; i < w2.size(); ++i)
    w2[i] = -static_cast<float>(i % 241);
  ByteBuffer slot(static_cast<size_t>(layout.stride_bytes));
  convert_from_f32(w13.data(), w13_count, c.dtype, slot.data() + layout.w13.offset);
  convert_from_f32(w2.data(), w2_count, c.dtype, slot.data() + layout.w2.offset);
  EXPECT_EQ(read_w13(layout, slot.data()), w13);
  EXPECT_EQ(read_w2(layout, slot.data()), w2);
}

TEST_P(SlotLayoutTest, GivesTheOperandsOfTheGemms) {
  ByteBuffer slots(static_cast<size_t>(3 * layout.stride_bytes));
  const ExpertWeights w13 = layout.w13_weights(slots.data(), 3);
  EXPECT_EQ(w13.n, layout.w13_rows());
  EXPECT_EQ(w13.k, c.hidden);
  EXPECT_EQ(w13.slot_stride_bytes, layout.stride_bytes);
  EXPECT_EQ(w13.bias != nullptr, c.bias);
  const ExpertWeights w2 = layout.w2_weights(slots.data(), 3, /*with_bias=*/true);
  EXPECT_EQ(w2.n, c.hidden);
  EXPECT_EQ(w2.k, c.intermediate);
  EXPECT_EQ(w2.bias != nullptr, c.bias);
  EXPECT_EQ(layout.w2_weights(slots.data(), 3, /*with_bias=*/false).bias, nullptr);
}

INSTANTIATE_TEST_SUITE_P(Shapes, SlotLayoutTest,
                         testing::Values(SlotCase{DType::kBF16, true, false, 1, 1},
                                         SlotCase{DType::kBF16, true, true, 3, 5},
                                         SlotCase{DType::kF16, false, true, 7, 64},
                                         SlotCase{DType::kF32, true, true, 8, 8},
                                         SlotCase{DType::kF32, false, false, 33, 17},
                                         SlotCase{DType::kBF16, true, false, 64, 128}));

TEST(SlotLayoutLimitsTest, MayHoldNothingOfTheIntermediateSize) {
  const SlotLayout layout = SlotLayout::create(DType::kBF16, true, false, 0, 16);
  EXPECT_EQ(layout.owned_bytes(), 0);
}

TEST(SlotLayoutLimitsTest, RefusesSizesThatMakeNoSense) {
  const auto create = [](DType dtype, int64_t intermediate, int64_t hidden) {
    return [=] { (void)SlotLayout::create(dtype, true, true, intermediate, hidden); };
  };
  expect_error(create(DType::kBF16, -1, 8), ErrorCode::kInvalidArgument, {"-1"});
  expect_error(create(DType::kBF16, 8, 0), ErrorCode::kInvalidArgument, {"hidden size 0"});
  expect_error(create(DType::kBF16, int64_t{1} << 62, 8), ErrorCode::kInvalidArgument, {});
  expect_error(create(DType::kBF16, 8, int64_t{1} << 62), ErrorCode::kInvalidArgument, {});
  expect_error(create(DType::kI32, 8, 8), ErrorCode::kInvalidArgument, {"i32"});
}

TEST(SlotLayoutLimitsTest, HasNoPlaceForOtherParts) {
  const SlotLayout layout = SlotLayout::create(DType::kBF16, true, false, 4, 4);
  expect_error([&] { (void)slot_target(layout, Part::kRouter, TensorKind::kWeight); },
               ErrorCode::kInvalidArgument, {"router"});
}

}  // namespace
}  // namespace gantry::test
