#include "loader/expert_slot.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <vector>

#include "kernels/base/buffer.h"
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
  const auto round_up = [](int64_t value, int64_t step) {
    return (value + step - 1) / step * step;
  };
  const int64_t element = size_of(c.dtype);
  const int64_t rows = (c.gated ? 2 : 1) * c.intermediate;
  EXPECT_EQ(layout.w13_rows(), rows);
  // Panels of 32 rows (of a gated matrix: 16 of each half), k in steps of 32.
  const int64_t padded = c.gated ? 2 * round_up(c.intermediate, 16) : round_up(c.intermediate, 32);
  EXPECT_EQ(layout.w13.bytes, padded * round_up(c.hidden, 32) * element);
  EXPECT_EQ(layout.w2.bytes, round_up(c.hidden, 32) * round_up(c.intermediate, 32) * element);
  EXPECT_EQ(layout.b13.bytes, c.bias ? rows * 4 : 0);
  EXPECT_EQ(layout.b2.bytes, c.bias ? c.hidden * 4 : 0);
  EXPECT_EQ(layout.owned_bytes(),
            (rows + c.intermediate) * c.hidden * element + layout.b13.bytes + layout.b2.bytes);
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
  int64_t bytes = 0;
  for (const SlotSection& section : sections)
    bytes += section.bytes;
  EXPECT_LT(layout.stride_bytes, bytes + 4 * 256);
}

TEST_P(SlotLayoutTest, SplitsW13IntoGateThenUp) {
  for (const TensorKind kind : {TensorKind::kWeight, TensorKind::kBias}) {
    if (kind == TensorKind::kBias && !c.bias) continue;
    const SlotTarget w1 = slot_target(layout, Part::kW1, kind);
    const SlotSection& section = kind == TensorKind::kWeight ? layout.w13 : layout.b13;
    EXPECT_EQ(w1.offset, section.offset);
    EXPECT_EQ(w1.first_row, 0);
    EXPECT_EQ(w1.rows, c.intermediate);
    EXPECT_EQ(!w1.panels.has_value(), kind == TensorKind::kBias);
    if (!c.gated) continue;
    const SlotTarget w3 = slot_target(layout, Part::kW3, kind);
    EXPECT_EQ(w3.offset, section.offset);
    EXPECT_EQ(w3.first_row, c.intermediate);
    EXPECT_EQ(w3.first_row + w3.rows, layout.w13_rows());
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
  pack_matrix(layout.w13_panels, w13.data(), slot.data() + layout.w13.offset);
  pack_matrix(layout.w2_panels, w2.data(), slot.data() + layout.w2.offset);
  EXPECT_EQ(read_w13(layout, slot.data()), w13);
  EXPECT_EQ(read_w2(layout, slot.data()), w2);
}

TEST_P(SlotLayoutTest, GivesTheOperandsOfTheGemms) {
  ByteBuffer slots(static_cast<size_t>(3 * layout.stride_bytes));
  const PackedExperts experts = layout.experts(slots.data(), 3);
  EXPECT_EQ(experts.num_slots, 3);
  EXPECT_EQ(experts.hidden_size(), c.hidden);
  EXPECT_EQ(experts.intermediate_size(), c.intermediate);
  EXPECT_EQ(experts.w13.n, layout.w13_rows());
  EXPECT_EQ(experts.w13.gated, c.gated);
  EXPECT_EQ(experts.slot_stride_bytes, layout.stride_bytes);
  EXPECT_EQ(experts.b13_offset >= 0, c.bias);
  EXPECT_EQ(experts.b2_offset >= 0, c.bias);
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
