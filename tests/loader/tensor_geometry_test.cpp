#include "loader/tensor_geometry.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "loader/expected_tensors.h"
#include "tests/support/synthetic_layer.h"

namespace gantry::test {
namespace {

using Shape = std::vector<int64_t>;

/// E = 5, H = 6, I = 7, shared I = 9, latent 4.
MoeLayerSpec sample_spec() {
  MoeLayerSpec spec;
  spec.num_experts = 5;
  spec.hidden_size = 6;
  spec.expert_hidden_size = 6;
  spec.intermediate_size = 7;
  spec.routing.num_experts = 8;
  spec.routing.num_zero_experts = 3;
  spec.routing.top_k = 2;
  spec.shared.intermediate_size = 9;
  spec.vocab_size = 64;
  return spec;
}

Part slot_part(Part part) {
  return part == Part::kSharedW1   ? Part::kW1
         : part == Part::kSharedW3 ? Part::kW3
         : part == Part::kSharedW2 ? Part::kW2
                                   : part;
}

class PatternTest : public testing::TestWithParam<const FamilySpec*> {};

TEST_P(PatternTest, HasViewsThatReachEachElementAndNoOther) {
  const MoeLayerSpec spec = sample_spec();
  for (const TensorPattern& pattern : GetParam()->tensors) {
    if (!is_expert_part(pattern.part) && !is_shared_part(pattern.part)) continue;
    const bool single = is_shared_part(pattern.part);
    for (const TensorKind kind : {TensorKind::kWeight, TensorKind::kBias}) {
      const Shape shape = expected_shapes(pattern, kind, spec)[0];
      std::vector<int> reached(static_cast<size_t>(num_elements(shape)), 0);
      const bool per_expert = single || pattern.stacking == Stacking::kPerExpert;
      for (int expert = 0; expert < (per_expert ? 1 : spec.num_experts); ++expert) {
        for (const Part part : provided_parts(pattern.part)) {
          const FileView view = file_view(pattern, kind, spec, part, expert);
          for (int64_t o = 0; o < view.size.out; ++o) {
            for (int64_t i = 0; i < view.size.in; ++i) {
              const int64_t index = view.offset + o * view.out_stride + i * view.in_stride;
              ASSERT_GE(index, view.slab_offset) << pattern.name;
              ASSERT_LT(index, view.slab_offset + view.slab_rows * view.slab_cols) << pattern.name;
              ASSERT_LT(index, num_elements(shape)) << pattern.name;
              ++reached[static_cast<size_t>(index)];
              const Element found = element_at(pattern, kind, spec, expert, index);
              const Element wanted{.expert = single ? spec.num_experts : expert,
                                   .part = slot_part(part),
                                   .kind = kind,
                                   .out = o,
                                   .in = i};
              EXPECT_EQ(found, wanted) << pattern.name << " element " << index;
            }
          }
        }
      }
      EXPECT_EQ(reached, std::vector<int>(reached.size(), 1)) << pattern.name;
    }
  }
}

TEST_P(PatternTest, HasShapesThatHoldTheWholePart) {
  const MoeLayerSpec spec = sample_spec();
  for (const TensorPattern& pattern : GetParam()->tensors) {
    if (pattern.part == Part::kOther) continue;
    const MatrixSize size = part_size(pattern.part, spec);
    const bool stacked =
        pattern.stacking == Stacking::kStacked2d || pattern.stacking == Stacking::kStacked3d;
    // Transformers gives identity experts gate and up too: the one other size.
    const bool may_have_more =
        pattern.part == Part::kW13 && pattern.stacking == Stacking::kStacked3d;
    const std::vector<Shape> shapes = expected_shapes(pattern, TensorKind::kWeight, spec);
    for (const Shape& shape : shapes) {
      const bool has_more = may_have_more && shape[0] == spec.num_named_experts();
      const int experts = has_more ? spec.num_named_experts() : spec.num_experts;
      EXPECT_EQ(num_elements(shape), size.out * size.in * (stacked ? experts : 1)) << pattern.name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllFamilies, PatternTest, testing::ValuesIn([] {
                           std::vector<const FamilySpec*> all;
                           for (const FamilySpec& family : family_specs())
                             all.push_back(&family);
                           return all;
                         }()),
                         [](const auto& test) { return std::string(test.param->name); });

Shape usual_shape(const TensorPattern& pattern, TensorKind kind = TensorKind::kWeight) {
  return expected_shapes(pattern, kind, sample_spec())[0];
}

TEST(ExpectedShapesTest, FollowOrientation) {
  const TensorPattern out_in{"x", Part::kW13, Stacking::kStacked3d, Orientation::kOutIn};
  const TensorPattern in_out{"x", Part::kW13, Stacking::kStacked3d, Orientation::kInOut};
  EXPECT_EQ(usual_shape(out_in), (Shape{5, 14, 6}));
  EXPECT_EQ(usual_shape(in_out), (Shape{5, 6, 14}));
}

TEST(ExpectedShapesTest, StackRowsOfATwoDimensionalTensor) {
  EXPECT_EQ(usual_shape({"x", Part::kW1, Stacking::kStacked2d}), (Shape{35, 6}));
  EXPECT_EQ(usual_shape({"x", Part::kW2, Stacking::kStacked2d, Orientation::kInOut}),
            (Shape{35, 6}));
}

TEST(ExpectedShapesTest, GiveBiasesOneValueAnOutput) {
  EXPECT_EQ(usual_shape({"x", Part::kW2, Stacking::kPerExpert}, TensorKind::kBias), (Shape{6}));
  EXPECT_EQ(
      usual_shape({"x", Part::kW13, Stacking::kStacked3d, Orientation::kInOut}, TensorKind::kBias),
      (Shape{5, 14}));
}

TEST(ExpectedShapesTest, CountZeroExpertsInTheRouterAlone) {
  EXPECT_EQ(usual_shape({"x", Part::kRouter}), (Shape{8, 6}));
  EXPECT_EQ(usual_shape({"x", Part::kW1, Stacking::kStacked3d}), (Shape{5, 7, 6}));
}

TEST(ExpectedShapesTest, AllowALeadingOneOfVectors) {
  TensorPattern bias{"x", Part::kCorrectionBias};
  bias.naming = Naming::kExact;
  EXPECT_EQ(expected_shapes(bias, TensorKind::kWeight, sample_spec()),
            (std::vector<Shape>{{8}, {1, 8}}));
}

TEST(ExpectedShapesTest, KeepTheSharedGateAMatrix) {
  EXPECT_EQ(expected_shapes({"x", Part::kSharedGate}, TensorKind::kWeight, sample_spec()),
            (std::vector<Shape>{{1, 6}}));
}

TEST(ExpectedShapesTest, KeepARouterOfOneHiddenUnitAMatrix) {
  MoeLayerSpec spec = sample_spec();
  spec.hidden_size = 1;
  EXPECT_EQ(expected_shapes({"x", Part::kRouter}, TensorKind::kWeight, spec),
            (std::vector<Shape>{{8, 1}}));
}

TEST(ExpectedShapesTest, SeparateTheLatentSpaceFromTheHiddenSize) {
  MoeLayerSpec spec = sample_spec();
  spec.expert_hidden_size = 4;
  const auto shape = [&](const TensorPattern& pattern) {
    return expected_shapes(pattern, TensorKind::kWeight, spec)[0];
  };
  EXPECT_EQ(shape({"x", Part::kW1, Stacking::kPerExpert}), (Shape{7, 4}));
  EXPECT_EQ(shape({"x", Part::kW2, Stacking::kPerExpert}), (Shape{4, 7}));
  EXPECT_EQ(shape({"x", Part::kLatentIn}), (Shape{4, 6}));
  EXPECT_EQ(shape({"x", Part::kLatentOut}), (Shape{6, 4}));
  EXPECT_EQ(shape({"x", Part::kSharedW1}), (Shape{9, 6}));
}

TEST(ShapeTextTest, WritesShapesAsPythonDoes) {
  EXPECT_EQ(shape_text({8, 48, 64}), "[8, 48, 64]");
  EXPECT_EQ(shape_text({}), "[]");
}

}  // namespace
}  // namespace gantry::test
